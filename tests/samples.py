"""Samples: for every operation of the table, small networks that consist of it.

`SAMPLES` maps the name of an operation to networks whose graph holds that operation alone on the way of
relevance (and those of `also`). Shapes have the batch first: three samples.
"""

# ruff: noqa: B008 (an operation bound when its sample is made)

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import relprop.classical  # noqa: F401  its operations are registered when it is loaded
from relprop.engine.norms import written_norm

aten = torch.ops.aten
BATCH = 3


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def positive(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return normal(shape, generator).abs() + 0.1


def inside(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Between 0.05 and 0.95."""
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 0.9 + 0.05


def scattered(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A sparse matrix half of whose entries are 0."""
    return normal(shape, generator).clamp(min=0).to_sparse()


def compressed(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """The same by rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the first one
        return scattered(shape, generator).to_sparse_csr()


def beyond(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Above 1."""
    return positive(shape, generator) + 1


def ids(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Token ids below 5."""
    return torch.randint(0, 5, shape, generator=generator)


@dataclass(frozen=True)
class Sample:
    """A network `function(*inputs, *weights)`.

    `inputs` and `weights`: shapes. `draw`: the inputs' domain. `weight`: the weights' domain. `also`: other
    operations that its graph holds. `adjoint`: False where relevance is due to differ from autograd's
    product, though the operation is a selection. `sums`: where such an operation adds values up. `device`:
    where alone it runs.
    """

    function: Callable[..., Any]
    inputs: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[int, ...], ...] = ()
    draw: Callable[[tuple[int, ...], torch.Generator], Tensor] = normal
    weight: Callable[[tuple[int, ...], torch.Generator], Tensor] = normal
    also: tuple[str, ...] = ()
    adjoint: bool = True
    sums: bool = False
    device: str = "cpu"


class Network(nn.Module):
    """A function of inputs and parameters as a module."""

    def __init__(self, function: Callable[..., Any], weights: list[Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(weights)
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, *self.weights)


def build(
    sample: Sample, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Network, tuple[Tensor, ...]]:
    """The network and a batch of inputs; the same numbers in every type."""
    generator = torch.Generator().manual_seed(seed)

    def convert(tensor: Tensor) -> Tensor:
        return (tensor.to(dtype) if tensor.is_floating_point() else tensor).to(sample.device)

    weights = [convert(sample.weight(shape, generator)) for shape in sample.weights]
    inputs = tuple(convert(sample.draw(shape, generator)) for shape in sample.inputs)
    return Network(sample.function, weights), inputs


def on(*shape: int, draw: Callable[..., Tensor] = normal) -> dict[str, Any]:
    """One input of B samples of that shape."""
    return {"inputs": ((BATCH, *shape),), "draw": draw}


def two(*shapes: tuple[int, ...], draw: Callable[..., Tensor] = normal) -> dict[str, Any]:
    """Several inputs of B samples."""
    return {"inputs": tuple((BATCH, *shape) for shape in shapes), "draw": draw}


def each(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of one sample, applied to the samples of a batch one by one (the graph then holds one
    sample)."""
    return lambda x, *weights: torch.stack([function(sample, *weights) for sample in x.unbind(0)])


EACH = ("aten.unbind.int", "aten.stack.default")
DICT = dict[str, list[Sample]]


def index(*values: int) -> Tensor:
    return torch.tensor(values)


# ---------------------------------------------------------------- elementwise


def _overload(name: str) -> Callable[..., Tensor]:
    packet, overload = name.removeprefix("aten.").split(".")
    return getattr(getattr(aten, packet), overload)  # type: ignore[no-any-return]


def unary(names: str, draw: Callable[..., Tensor] = normal) -> DICT:
    """Functions of one tensor."""
    full = [f"aten.{name}.default" for name in names.split()]
    return {name: [Sample(_overload(name), **on(5, draw=draw))] for name in full}


ACTIVATIONS: DICT = {
    **unary(
        "relu6 sigmoid hardsigmoid exp exp2 abs square erfc cosh selu hardswish mish tanh hardshrink"
        " softshrink erf expm1 atan asinh sinh floor ceil round trunc sign sgn nan_to_num deg2rad rad2deg"
        " log_sigmoid sin cos neg sinc tan reciprocal frac i0 special_i0e special_i1 special_i1e special_erfcx"
        " special_log_ndtr"
    ),
    **unary("sqrt rsqrt log log2 log10 log1p lgamma digamma special_entr", positive),
    **unary("acos asin atanh logit erfinv special_ndtri", inside),
    **unary("acosh", beyond),
    "aten.relu.default": [Sample(F.relu, **on(5)), Sample(lambda x: F.relu(x, inplace=True), **on(2, 3))],
    "aten.softplus.default": [
        Sample(F.softplus, **on(5)),
        Sample(lambda x: F.softplus(x, 2.0, 1.0), **on(5)),
    ],
    "aten.leaky_relu.default": [Sample(lambda x: F.leaky_relu(x, 0.2), **on(5))],
    "aten.elu.default": [Sample(F.elu, **on(5)), Sample(lambda x: F.elu(x, 0.3), **on(5))],
    "aten.celu.default": [Sample(lambda x: F.celu(x, 0.3), **on(5))],
    "aten.gelu.default": [Sample(F.gelu, **on(5)), Sample(lambda x: F.gelu(x, approximate="tanh"), **on(5))],
    "aten.silu.default": [Sample(F.silu, **on(5)), Sample(lambda x: F.silu(x, inplace=True), **on(5))],
    "aten.prelu.default": [
        Sample(F.prelu, **on(4, 2), weights=((1,),)),
        Sample(F.prelu, **on(4, 2), weights=((4,),)),
    ],
    "aten._prelu_kernel.default": [Sample(lambda x, w: aten._prelu_kernel(x, w), **on(4), weights=((1, 4),))],
    "aten.clamp.default": [
        Sample(lambda x: x.clamp(-0.5, 0.5), **on(5)),
        Sample(lambda x: x.clamp(min=0), **on(5)),
        Sample(lambda x: x.clamp(max=0.3), **on(5)),
        Sample(lambda x: x.clamp(0.2, -0.3), **on(5)),
    ],
    "aten.clamp_min.default": [Sample(lambda x, b=b: aten.clamp_min(x, b), **on(5)) for b in (0, -0.5)],
    "aten.clamp_max.default": [Sample(lambda x, b=b: aten.clamp_max(x, b), **on(5)) for b in (0.5, -0.5)],
    "aten.clamp.Tensor": [
        Sample(lambda x, low, high: torch.clamp(x, low, high), **on(4), weights=((4,), (1, 4))),
        Sample(lambda x, high: torch.clamp(x, max=high), **on(4), weights=((2, 1, 4),)),
        Sample(torch.clamp, **two((4,), (4,), (1,))),
        Sample(lambda low, w: torch.clamp(w, low), **on(4), weights=((4,),)),
    ],
    "aten.clamp_min.Tensor": [
        Sample(aten.clamp_min.Tensor, **on(4), weights=((4,),)),
        Sample(aten.clamp_min.Tensor, **two((2, 4), (1, 4))),
    ],
    "aten.clamp_max.Tensor": [
        Sample(aten.clamp_max.Tensor, **on(4), weights=((4,),)),
        Sample(aten.clamp_max.Tensor, **on(4), weights=((2, 1, 4),)),
        Sample(aten.clamp_max.Tensor, **two((2, 4), (1, 4))),
    ],
    "aten.hardtanh.default": [
        Sample(F.hardtanh, **on(5)),
        Sample(lambda x: F.hardtanh(x, 0.0, 0.5), **on(5)),
        Sample(lambda x: F.hardtanh(x, -2.0, -0.5), **on(5)),
    ],
    "aten.threshold.default": [
        Sample(lambda x, limit=limit, value=value: F.threshold(x, limit, value), **on(5))
        for limit, value in ((0.2, 0.1), (0.2, -1.0), (-0.3, 0.0))
    ],
    "aten.pow.Tensor_Scalar": [
        *(Sample(lambda x, e=e: x**e, **on(5)) for e in (2, 3, -2)),
        *(Sample(lambda x, e=e: x**e, **on(5, draw=positive)) for e in (0.5, -1.5)),
    ],
    "aten.mvlgamma.default": [Sample(lambda x: torch.mvlgamma(x, 2), **on(5, draw=beyond))],
    **{
        f"aten.{name}.{kind}": [
            Sample(lambda x, w, f=f: f(x, w.abs() + 0.1), **on(5), weights=((5,),))
            if kind == "Tensor"
            else Sample(lambda x, f=f, d=d: f(x, d), **on(5))
            for d in (0.7, -0.4)
        ]
        for name, f in (("fmod", torch.fmod), ("remainder", torch.remainder))
        for kind in ("Scalar", "Tensor")
    },
    "aten.heaviside.default": [
        Sample(lambda x, w: torch.heaviside(x, w), **on(5), weights=((),)),
        Sample(
            lambda x, y: torch.heaviside(x.round(), y), **two((2, 5), (1, 5)), also=("aten.round.default",)
        ),
    ],
    "aten.rrelu.default": [Sample(F.rrelu, **on(5))],
    "aten.dropout.default": [Sample(lambda x: F.dropout(x, 0.5, False), **on(5))],
    "aten.feature_dropout.default": [Sample(lambda x: F.dropout2d(x, 0.5, False), **on(2, 3, 3))],
    "aten.alpha_dropout.default": [Sample(lambda x: F.alpha_dropout(x, 0.5, False), **on(5))],
    "aten.feature_alpha_dropout.default": [
        Sample(lambda x: F.feature_alpha_dropout(x, 0.5, False), **on(5, 2))
    ],
    "aten.mul.Scalar": [
        Sample(lambda x: aten.mul.Scalar(x, -2.0), **on(5)),
        Sample(lambda x: aten.mul.Scalar(x, 2), **on(5)),
    ],
    "aten.div.Scalar": [Sample(lambda x: aten.div.Scalar(x, 2.0), **on(5))],
    "aten.multiply.Scalar": [Sample(lambda x: aten.multiply.Scalar(x, -2.0), **on(5))],
    "aten.divide.Scalar": [Sample(lambda x: aten.divide.Scalar(x, 2.0), **on(5))],
    "aten.true_divide.Scalar": [Sample(lambda x: aten.true_divide.Scalar(x, 2.0), **on(5))],
}

SUMS: DICT = {
    "aten.add.Tensor": [
        Sample(torch.add, **two((2, 4), (2, 4))),
        Sample(lambda a, b: torch.add(a, b, alpha=-2), **two((2, 4), (1, 4))),
        Sample(lambda a, b: a + b, **two((1, 4), (3, 1))),
        Sample(lambda a, b: a + b, **two((4,), (1,))),
        Sample(lambda x: x + x, **on(4)),
        Sample(lambda x: x + 1.5, **on(4)),
        Sample(lambda x, w: x + w, **on(2, 4), weights=((4,),)),
        Sample(lambda x, w: torch.add(w, x, alpha=3), **on(1, 4), weights=((2, 4),)),
        Sample(lambda x, w: torch.add(w, x, alpha=3), **on(4), weights=((),)),
        Sample(lambda x: x + x.new_full((4, 4), float("-inf")).triu(1), **on(4, 4)),
    ],
    "aten.add.Scalar": [Sample(lambda x: aten.add.Scalar(x, 2.0, 0.5), **on(4))],
    "aten.sub.Tensor": [
        Sample(torch.sub, **two((2, 4), (2, 4))),
        Sample(lambda a, b: torch.sub(a, b, alpha=2), **two((2, 1), (4,))),
        Sample(lambda x: x - 1.5, **on(4)),
        Sample(lambda x, w: x - w, **on(2, 4), weights=((4,),)),
        Sample(lambda x, w: torch.sub(w, x, alpha=2), **on(4), weights=((2, 1, 4),)),
    ],
    "aten.sub.Scalar": [Sample(lambda x: aten.sub.Scalar(x, 2.0, 0.5), **on(4))],
    "aten.subtract.Tensor": [Sample(torch.subtract, **two((2, 4), (2, 4)))],
    "aten.rsub.Scalar": [
        Sample(lambda x: 1 - x, **on(4)),
        Sample(lambda x: torch.rsub(x, 2.0, alpha=3), **on(4)),
    ],
    "aten.rsub.Tensor": [
        Sample(lambda a, b: torch.rsub(a, b, alpha=2), **two((2, 4), (1, 4))),
        Sample(lambda x, w: torch.rsub(x, w), **on(4), weights=((4,),)),
        Sample(lambda x, w: torch.rsub(w, x), **on(4), weights=((4,),)),
    ],
    "aten.addcmul.default": [
        Sample(lambda a, b, c: torch.addcmul(a, b, c, value=0.5), **two((2, 4), (2, 4), (1, 4))),
        Sample(lambda x, a, b: torch.addcmul(a, x, b, value=-2), **on(4), weights=((4,), (4,))),
        Sample(lambda x, a, b: torch.addcmul(x, a, b), **on(4), weights=((2, 1, 4), (4,))),
        Sample(lambda x, y, a: torch.addcmul(a, x, y), **two((4,), (4,)), weights=((4,),)),
    ],
    "aten.addcdiv.default": [
        Sample(lambda a, b, c: torch.addcdiv(a, b, c, value=0.5), **two((2, 4), (2, 4), (1, 4))),
        Sample(lambda x, a, b: torch.addcdiv(a, b, x), **on(4), weights=((4,), (4,))),
    ],
    "aten.lerp.Scalar": [
        Sample(lambda a, b: torch.lerp(a, b, 0.3), **two((4,), (4,))),
        Sample(lambda x, w: torch.lerp(w, x, 0.3), **on(2, 4), weights=((4,),)),
    ],
    "aten.lerp.Tensor": [
        Sample(torch.lerp, **two((4,), (4,)), weights=((4,),)),
        Sample(torch.lerp, **two((4,), (4,), (4,))),
        Sample(lambda x, w, g: torch.lerp(w, x, g), **on(4), weights=((4,), (1,))),
    ],
    "aten.index_add.default": [
        Sample(lambda x, y: x.index_add(1, index(0, 2, 0), y), **two((4, 2), (3, 2))),
        Sample(lambda x, y: x.index_add(2, index(1, 1), y, alpha=-0.5), **two((2, 3), (2, 2))),
        Sample(
            lambda x, w: x.index_add(1, index(0), w.expand(x.shape[0], 1, 2)),
            **on(4, 2),
            weights=((1, 1, 2),),
        ),
        Sample(
            lambda y, w: w.expand(y.shape[0], 4, 2).index_add(1, index(0, 3), y),
            **on(2, 2),
            weights=((1, 4, 2),),
        ),
    ],
    "aten.scatter_add.default": [
        Sample(lambda x, y: x.scatter_add(1, index(0, 2, 0).expand(x.shape[0], 3), y), **two((4,), (3,))),
        Sample(lambda x, y: x.scatter_add(1, index(0, 2, 0).expand(x.shape[0], 3), y), **two((4,), (5,))),
        Sample(
            lambda x: x.new_zeros(x.shape[0], 4).scatter_add(1, index(0, 2, 0).expand(x.shape[0], 3), x),
            **on(3),
        ),
    ],
    "aten.max_unpool2d.default": [
        Sample(
            lambda x, at=at: F.max_unpool2d(x, index(*at).reshape(1, 1, 2, 2).expand(x.shape[0], 2, 2, 2), 2),
            **on(2, 2, 2),
        )
        for at in ((0, 3, 8, 10), (1, 2, 13, 11))
    ],
    "aten.max_unpool3d.default": [
        Sample(
            lambda x: F.max_unpool3d(x, index(3, 9).reshape(1, 1, 1, 1, 2).expand(x.shape[0], 2, 1, 1, 2), 2),
            **on(2, 1, 1, 2),
        )
    ],
    "aten.scatter_reduce.two": [
        Sample(
            lambda x, y: x.scatter_reduce(1, index(0, 2, 0).expand(x.shape[0], 3), y, "sum"),
            **two((4,), (3,)),
        ),
        *(
            Sample(
                lambda x, y, how=how, own=own: x.scatter_reduce(
                    1, index(0, 2, 0).expand(x.shape[0], 3), y, how, include_self=own
                ),
                **two((4,), (5,)),
            )
            for how in ("mean", "amax", "amin", "prod")
            for own in (True, False)
        ),
        Sample(
            lambda y: y.new_zeros(y.shape[0], 4).scatter_reduce(
                1, index(0, 2, 0).expand(y.shape[0], 3), y, "amax"
            ),
            **on(3),
        ),
    ],
    "aten.index_reduce.default": [
        Sample(
            lambda x, y, how=how, own=own: x.index_reduce(1, index(0, 2, 0), y, how, include_self=own),
            **two((4, 2), (3, 2)),
        )
        for how in ("mean", "amax", "amin", "prod")
        for own in (True, False)
    ]
    + [
        Sample(
            lambda x, w: x.index_reduce(1, index(0, 2), w.expand(len(x), 2), "prod"), **on(4), weights=((2,),)
        )
    ],
    "aten.col2im.default": [
        Sample(lambda x: F.fold(x, (3, 3), 2), **on(8, 4)),
        Sample(lambda x: F.fold(x, (4, 3), (2, 2), dilation=1, padding=1, stride=2), **on(4, 6)),
    ],
}

PRODUCTS: DICT = {
    "aten.mul.Tensor": [
        Sample(lambda a, b: a * b, **two((2, 4), (2, 4))),
        Sample(lambda a, b: a * b, **two((1, 4), (3, 1))),
        Sample(lambda x: x * x, **on(4)),
        Sample(lambda x: x * 2.5, **on(4)),
        Sample(lambda x: -2 * x, **on(4)),
        Sample(lambda x, w: x * w, **on(4), weights=((4,),)),
        Sample(lambda x, w: w * x, **on(1, 4), weights=((2, 1),)),
        Sample(lambda x, w: w * x, **on(4), weights=((),)),
        Sample(lambda a, b: a * torch.sigmoid(b), **two((4,), (4,)), also=("aten.sigmoid.default",)),
        Sample(lambda a, b: torch.sigmoid(a) * b, **two((1,), (4,)), also=("aten.sigmoid.default",)),
        Sample(
            lambda x: x * torch.rsqrt(x.abs().mean(-1, keepdim=True) + 1e-6),
            **on(4),
            also=("aten.rsqrt.default", "aten.abs.default", "aten.mean.dim", "aten.add.Tensor"),
        ),
    ],
    "aten.multiply.Tensor": [Sample(torch.multiply, **two((4,), (4,)))],
    "aten.glu.default": [Sample(F.glu, **on(4)), Sample(lambda x: F.glu(x, 1), **on(4, 3))],
    "aten.div.Tensor": [
        Sample(lambda a, b: a / b, **two((2, 4), (1, 4))),
        Sample(lambda x: x / 2.5, **on(4)),
        Sample(lambda x, w: x / w, **on(4), weights=((2, 1, 4),)),
        Sample(lambda x, w: w / x, **on(4), weights=((4,),)),
        Sample(lambda x: x / x.sum(-1, keepdim=True), **on(4, draw=positive), also=("aten.sum.dim_IntList",)),
    ],
    "aten.divide.Tensor": [Sample(torch.divide, **two((4,), (4,)))],
    "aten.true_divide.Tensor": [Sample(torch.true_divide, **two((4,), (4,)))],
    "aten.div.Tensor_mode": [
        Sample(lambda x: aten.div.Tensor_mode(x, x.new_full((), 2), rounding_mode=None), **on(4)),
        Sample(lambda x, w: torch.div(x, w, rounding_mode="floor"), **on(4), weights=((4,),)),
    ],
    "aten.pow.Tensor_Tensor": [
        Sample(torch.pow, **on(4, draw=positive), weights=((4,),)),
        Sample(lambda x, w: torch.pow(w, x), **on(4), weights=((4,),), weight=positive),
        Sample(torch.pow, ((BATCH, 4), (BATCH, 1)), draw=positive),
    ],
    "aten.pow.Scalar": [Sample(lambda x: 2.0**x, **on(4))],
}

PAIRS: DICT = {
    **{
        f"aten.{name}.default": [
            Sample(lambda x, y, f=f: f(x, y, reduction="none"), **two((4,), (4,))),
            Sample(lambda x, w, f=f: f(x, w.expand_as(x), reduction="none"), **on(2, 4), weights=((4,),)),
            Sample(each(lambda x, w, f=f: f(x, w)), **on(4), weights=((4,),), also=EACH),
            Sample(each(lambda x, w, f=f, extra=extra: f(w, x, reduction="sum", **extra)), **on(4), weights=((4,),), also=EACH),
        ]
        for name, f, extra in (
            ("mse_loss", F.mse_loss, {}),
            ("smooth_l1_loss", F.smooth_l1_loss, {"beta": 0.5}),
            ("huber_loss", F.huber_loss, {"delta": 0.5}),
        )
    },
    "aten.binary_cross_entropy.default": [
        Sample(lambda x, w: F.binary_cross_entropy(x, w.expand_as(x), reduction="none"), **on(4, draw=inside), weights=((4,),), weight=inside)
    ],
    "aten.binary_cross_entropy_with_logits.default": [
        Sample(lambda x, w: F.binary_cross_entropy_with_logits(x, w.expand_as(x), reduction="none"), **on(4), weights=((4,),), weight=inside)
    ],
    **{
        f"aten.{name}": [
            Sample(_overload(f"aten.{name}"), **two((2, 4), (1, 4), draw=draw)),
            Sample(_overload(f"aten.{name}"), **on(4), weights=((4,),), weight=draw),
            Sample(lambda x, w, f=_overload(f"aten.{name}"): f(w, x), **on(4, draw=draw), weights=((2, 1, 4),)),
        ]
        for name, draw in (
            ("atan2.default", normal), ("copysign.Tensor", normal), ("hypot.default", normal), ("ldexp.Tensor", normal),
            ("xlogy.Tensor", positive), ("special_xlog1py.default", positive), ("floor_divide.default", positive),
        )
    },
    "aten.xlogy.Scalar_Other": [Sample(lambda x: torch.xlogy(x, 2.5), **on(4))],
}  # fmt: skip

CHOICES: DICT = {
    "aten.where.self": [
        Sample(lambda a, b: torch.where(a > 0, a, b), **two((2, 4), (1, 4))),
        Sample(lambda x, w: torch.where(x > 0, x, w), **on(4), weights=((4,),)),
        Sample(lambda x, w: torch.where(x > 0, w, x), **on(4), weights=((),)),
        Sample(lambda x, w: torch.where(w > 0, x, w), **on(1, 4), weights=((2, 1),)),
    ],
    "aten.where.ScalarOther": [Sample(lambda x: torch.where(x > 0.1, x, 0.5), **on(4))],
    "aten.where.ScalarSelf": [Sample(lambda x: torch.where(x > 0.1, 0.5, x), **on(4))],
    "aten.masked_fill.Scalar": [
        Sample(lambda x: x.masked_fill(x > 0, 1.5), **on(4)),
        Sample(lambda x, w: x.masked_fill(w > 0, -1.5), **on(1, 4), weights=((4,),)),
    ],
    "aten.masked_fill.Tensor": [Sample(lambda x, w: x.masked_fill(x > 0, w), **on(4), weights=((),))],
    **{
        name: [
            Sample(_overload(name), **two((2, 4), (1, 4))),
            Sample(_overload(name), **on(4), weights=((4,),)),
            Sample(lambda x, w, f=_overload(name): f(w, x), **on(4), weights=((2, 1, 4),)),
        ]
        for name in ("aten.fmax.default", "aten.fmin.default", "aten.logaddexp.default", "aten.logaddexp2.default")
    },
    **{  # with a constant these are clamps
        name: [Sample(_overload(name), **two((2, 4), (1, 4)))]
        for name in ("aten.maximum.default", "aten.max.other", "aten.minimum.default", "aten.min.other")
    },
}  # fmt: skip

# ---------------------------------------------------------------- linear


def _unbatched(function: Callable[..., Tensor], *shape: int, weights: tuple[tuple[int, ...], ...]) -> Sample:
    return Sample(each(function), **on(*shape), weights=weights, also=EACH)


def _some_of(w: Tensor) -> Tensor:
    """A matrix half of whose entries are 0."""
    return torch.where(w > 0, w, 0.0)


LINEAR: DICT = {
    "aten.linear.default": [
        Sample(F.linear, **on(5), weights=((4, 5), (4,))),
        Sample(F.linear, **on(2, 5), weights=((4, 5),)),
        Sample(F.linear, **on(5), weights=((5,),)),
        Sample(lambda x, b, w: F.linear(x, w, b), **two((5,), (4,)), weights=((4, 5),)),
        Sample(F.linear, **on(1, 5), weights=((4, 5), (4,))),
        _unbatched(F.linear, 5, weights=((4, 5), (4,))),
    ],
    "aten.matmul.default": [
        Sample(torch.matmul, **on(2, 5), weights=((5, 4),)),
        Sample(torch.matmul, **on(5), weights=((5,),)),
        Sample(lambda x, w: w @ x, **on(5, 2), weights=((4, 5),)),
        Sample(lambda x, w: w @ x, **on(5, 2), weights=((5,),)),
        Sample(lambda x, w: w @ x, **on(1, 5, 2), weights=((3, 4, 5),)),
        Sample(torch.matmul, **two((2, 5), (5, 3))),
        Sample(torch.matmul, **two((2, 2, 5), (1, 5, 3))),
        Sample(lambda x: x @ x.mT, **on(2, 5), also=("aten.transpose.int",)),
        Sample(lambda a, v: torch.softmax(a, -1) @ v, **two((2, 3), (3, 4)), also=("aten.softmax.int",)),
    ],
    "aten.mm.default": [
        Sample(torch.mm, **on(5), weights=((5, 4),)),
        Sample(lambda x, w: torch.mm(w, x.T), **on(5), weights=((4, 5),), also=("aten.permute.default",)),
    ],
    "aten.bmm.default": [
        Sample(torch.bmm, **two((2, 5), (5, 3))),
        Sample(lambda x, w: torch.bmm(x, w.expand(x.shape[0], 5, 4)), **on(2, 5), weights=((5, 4),)),
        Sample(lambda x, w: torch.bmm(w.expand(x.shape[0], 4, 5), x), **on(5, 2), weights=((4, 5),)),
    ],
    "aten.mv.default": [Sample(torch.mv, **on(5), weights=((5,),))],
    "aten.addmm.default": [
        Sample(lambda x, b, w: torch.addmm(b, x, w), **on(5), weights=((4,), (5, 4))),
        Sample(lambda x, b, w: torch.addmm(b, x, w, beta=0.5, alpha=-2), **on(5), weights=((1, 4), (5, 4))),
        Sample(lambda x, y, w: torch.addmm(y, x, w, beta=0.5, alpha=2), **two((5,), (4,)), weights=((5, 4),)),
        Sample(lambda x, y, w: torch.addmm(y, x, w), **two((5,), (1,)), weights=((5, 4),)),
    ],
    "aten.baddbmm.default": [
        Sample(
            lambda x, y, b: torch.baddbmm(b, x, y, beta=0.5, alpha=2), **two((2, 5), (5, 3)), weights=((3,),)
        ),
        Sample(lambda x, y, z: torch.baddbmm(z, x, y), **two((2, 5), (5, 3), (2, 1))),
        Sample(
            lambda x, b, w: torch.baddbmm(b, x, w.expand(x.shape[0], 5, 3)),
            **on(2, 5),
            weights=((3,), (5, 3)),
        ),
        Sample(
            lambda x, a, b: torch.baddbmm(x, a.expand(x.shape[0], 2, 5), b.expand(x.shape[0], 5, 3)),
            **on(2, 3),
            weights=((2, 5), (5, 3)),
        ),
    ],
    "aten.einsum.default": [
        Sample(lambda x, w: torch.einsum("bij,jk->bik", x, w), **on(2, 5), weights=((5, 4),)),
        Sample(lambda x, w: torch.einsum("jk,b...j->b...k", w, x), **on(2, 5), weights=((5, 4),)),
        Sample(lambda x: torch.einsum("bii->b", x), **on(3, 3)),
        Sample(lambda x: torch.einsum("bij", x), **on(2, 3)),
        Sample(lambda x, v, w: torch.einsum("i, bij, jk", v, x, w), **on(2, 5), weights=((2,), (5, 4))),
        Sample(lambda x, y: torch.einsum("bij,bkj->bik", x, y), **two((2, 5), (3, 5))),
        Sample(
            lambda x, y, w: torch.einsum("bi,ijk,bj->bk", x, w, y), **two((2,), (3,)), weights=((2, 3, 4),)
        ),
        Sample(lambda x, y, z: torch.einsum("bi,bi,bi->bi", x, y, z), **two((2,), (2,), (2,))),
    ],
}


LINEAR |= {
    "relprop.biased_product": [
        Sample(lambda x, w, b: torch.matmul(x, w) + b, **on(2, 3, 5), weights=((2, 5, 4), (2, 1, 4))),
        Sample(lambda x, w, b: b + torch.matmul(w, x), **on(5, 3), weights=((4, 5), (4, 1))),
    ],
    "relprop.biased_einsum": [
        Sample(
            lambda x, w, b: torch.einsum("bij,hjk->bhik", x, w) + b,
            **on(2, 5),
            weights=((3, 5, 4), (3, 1, 4)),
        ),
    ],
    "aten.addmv.default": [
        Sample(lambda x, b, w: torch.addmv(b, x, w, beta=0.5), **on(5), weights=((1,), (5,)))
    ],
    "aten.addr.default": [
        Sample(each(lambda x, b, w: torch.addr(b, x, w, alpha=2)), **on(5), weights=((4,), (4,)), also=EACH),
        Sample(
            each(lambda x: torch.addr(x[0, 0], x[1, :, 0], x[2, :, 1])),
            **on(3, 4, 4),
            also=("aten.stack.default", "aten.select.int"),
        ),
    ],
    "aten._sparse_mm.default": [
        *(
            Sample(
                each(lambda x, w: torch.sparse.mm(w, x)),
                **on(4, 2),
                weights=((5, 4),),
                weight=draw,
                also=EACH,
            )
            for draw in (compressed, scattered)
        ),
        Sample(
            lambda x, w: torch.sparse.mm(w, x.T).T,
            **on(4),
            weights=((5, 4),),
            weight=scattered,
            also=("aten.permute.default",),
        ),
    ],
    "aten._sparse_addmm.default": [
        Sample(
            each(
                lambda x, b, w: torch.sparse.addmm(
                    b.expand(3, 2), _some_of(w).to_sparse(), x, beta=0.5, alpha=-2
                )
            ),
            **on(4, 2),
            weights=((3, 1), (3, 4)),
            also=EACH,
        ),
    ],
    "aten.linalg_cross.default": [
        Sample(lambda x, w: torch.linalg.cross(x, w), **on(2, 3), weights=((1, 1, 3),)),
        Sample(lambda x, w: torch.linalg.cross(w, x, dim=1), **on(3, 2), weights=((1, 3, 2),)),
        Sample(lambda x, y: torch.linalg.cross(x, y, dim=1), **two((3, 2), (3, 1))),
    ],
    "aten.linalg_inv.default": [
        Sample(lambda x: torch.linalg.inv(x), **on(2, 3, 3, draw=positive)),
        Sample(
            lambda x, w: torch.linalg.solve(x, w),
            **on(3, 3, draw=positive),
            weights=((3, 2),),
            also=("aten.matmul.default",),
        ),
        Sample(
            lambda x, y: torch.linalg.solve(x, y, left=False),
            **two((3, 3), (2, 3), draw=positive),
            also=("aten.matmul.default",),
        ),
        Sample(
            lambda x, y: torch.linalg.solve(x, y),
            **two((3, 3), (3,), draw=positive),
            also=("aten.einsum.default",),
        ),
    ],
    "relprop.triangular_inverse": [
        Sample(
            lambda x, y, u=u, one=one: torch.linalg.solve_triangular(x, y, upper=u, unitriangular=one),
            **two((3, 3), (3, 2), draw=positive),
            also=("aten.matmul.default",),
        )
        for u, one in ((False, False), (True, False), (False, True), (True, True))
    ],
    "aten._linalg_det.default": [
        Sample(torch.linalg.det, **on(3, 3)),
        Sample(
            lambda x: torch.linalg.det(x * torch.tensor([1.0, 1, 0])), **on(3, 3), also=("aten.mul.Tensor",)
        ),
    ],
    "aten._linalg_slogdet.default": [
        Sample(lambda x: torch.linalg.slogdet(x)[1], **on(2, 3, 3)),
        Sample(lambda x: tuple(torch.linalg.slogdet(x)), **on(3, 3)),
    ],
}
LINEAR["aten.bilinear.default"] = [
    Sample(F.bilinear, **two((2,), (3,)), weights=((4, 2, 3), (4,))),
    Sample(lambda x, w: F.bilinear(x, x, w), **on(5, 2), weights=((4, 2, 2),)),
    Sample(lambda x, w, z: F.bilinear(x, z.expand(x.shape[0], 3), w), **on(2), weights=((4, 2, 3), (3,))),
    Sample(
        lambda x, w, b, z: F.bilinear(z.expand(x.shape[0], 2), x, w, b),
        **on(3),
        weights=((4, 2, 3), (4,), (2,)),
    ),
]


def _conv(rank: int) -> Callable[..., Tensor]:
    return (F.conv1d, F.conv2d, F.conv3d)[rank - 1]


def _convolutions(rank: int) -> list[Sample]:
    f = _conv(rank)
    size = (5, 4, 5)[:rank]
    cube = (3, 2, 3)[:rank]
    return [
        Sample(f, **on(2, *size), weights=((3, 2, *cube), (3,))),
        Sample(lambda x, w: f(x, w, None, 2, 1), **on(2, *size), weights=((3, 2, *cube),)),
        Sample(lambda x, w, b: f(x, w, b, 1, 2, 2), **on(2, *size), weights=((3, 2, *cube), (3,))),
        Sample(lambda x, w, b: f(x, w, b, 2, 1, 1, 2), **on(4, *size), weights=((6, 2, *cube), (6,))),
        _unbatched(f, 2, *size, weights=((3, 2, *cube), (3,))),
    ]


def _transposed(rank: int) -> list[Sample]:
    f = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    size, cube = (4, 3, 2)[:rank], (3, 2, 3)[:rank]
    return [
        Sample(f, **on(2, *size), weights=((2, 3, *cube), (3,))),
        Sample(lambda x, w, b: f(x, w, b, 2, 1, 1), **on(2, *size), weights=((2, 3, *cube), (3,))),
        Sample(lambda x, w, b: f(x, w, b, 2, 1, 1, 2, 2), **on(4, *size), weights=((4, 3, *cube), (6,))),
        _unbatched(f, 2, *size, weights=((2, 3, *cube), (3,))),
    ]


def _worded(rank: int) -> list[Sample]:
    f = _conv(rank)
    size, cube = (5, 4, 5)[:rank], (2, 3, 2)[:rank]
    return [
        Sample(lambda x, w, b: f(x, w, b, padding="same"), **on(2, *size), weights=((3, 2, *cube), (3,))),
        Sample(lambda x, w: f(x, w, padding="same", dilation=3), **on(2, *size), weights=((3, 2, *cube),)),
        Sample(lambda x, w: f(x, w, padding="same", groups=2), **on(2, *size), weights=((4, 1, *cube),)),
        Sample(lambda x, w, b: f(x, w, b, 2, padding="valid"), **on(2, *size), weights=((3, 2, *cube), (3,))),
        _unbatched(lambda x, w: f(x, w, padding="same"), 2, *size, weights=((3, 2, *cube),)),
    ]


CONVOLUTIONS: DICT = {
    **{f"aten.conv{rank}d.default": _convolutions(rank) for rank in (1, 2, 3)},
    **{f"aten.conv{rank}d.padding": _worded(rank) for rank in (1, 2, 3)},
    "aten.conv_transpose1d.default": _transposed(1),
    "aten.conv_transpose2d.input": _transposed(2),
    "aten.conv_transpose3d.input": _transposed(3),
    "aten.convolution.default": [
        Sample(
            lambda x, w, b: aten.convolution(x, w, b, [2, 1], [1, 0], [1, 2], False, [0, 0], 1),
            **on(2, 5, 5),
            weights=((3, 2, 3, 2), (3,)),
        ),
        Sample(
            lambda x, w: aten.convolution(x, w, None, [2, 1], [1, 0], [1, 1], True, [1, 0], 2),
            **on(4, 3, 3),
            weights=((4, 2, 3, 2),),
        ),
    ],
    "relprop.padded_convolution": [
        Sample(
            lambda x, w, b: F.conv2d(F.pad(x, (1, 2, 0, 1)), w, b, 2),
            **on(2, 5, 5),
            weights=((3, 2, 3, 2), (3,)),
        ),
        Sample(
            lambda x, w: F.conv1d(F.pad(x, (2, 0)), w, None, 1, 1, 2, 2), **on(4, 5), weights=((4, 2, 3),)
        ),
    ],
    "aten.grid_sampler.default": [
        Sample(
            lambda x, g, how=how: F.grid_sample(x, g.tanh().expand(x.shape[0], 3, 2, 2), *how),
            **on(2, 4, 5),
            weights=((3, 2, 2),),
        )
        for how in (
            ("bilinear", "zeros", False),
            ("bilinear", "border", True),
            ("nearest", "zeros", True),
        )
    ],
    "relprop.bicubic_sampler": [
        Sample(
            lambda x, g: F.grid_sample(x, g.tanh().expand(x.shape[0], 3, 2, 2), "bicubic", "border", False),
            **on(2, 4, 5),
            weights=((3, 2, 2),),
        )
    ],
    "aten.grid_sampler_2d.default": [
        Sample(
            lambda x, g: aten.grid_sampler_2d(x, g.tanh().expand(x.shape[0], 3, 2, 2), 0, 2, False),
            **on(2, 4, 5),
            weights=((3, 2, 2),),
        )
    ],
    "aten.grid_sampler_3d.default": [
        Sample(
            lambda x, g: aten.grid_sampler_3d(x, g.tanh().expand(x.shape[0], 2, 3, 2, 3), 0, 0, False),
            **on(2, 3, 4, 5),
            weights=((2, 3, 2, 3),),
        )
    ],
}

# ---------------------------------------------------------------- selections


def calls(name: str, shape: tuple[int, ...], *rest: Any, **keywords: Any) -> DICT:
    """The operation itself, called with the input and literal arguments."""
    full = name if name.startswith("aten.") else f"aten.{name}"
    full = full if full.count(".") == 2 else f"{full}.default"
    return {full: [Sample(lambda x: _overload(full)(x, *rest, **keywords), **on(*shape))]}


SHAPES: DICT = {
    "aten.view.default": [
        Sample(lambda x: x.view(-1, 6), **on(2, 3)),
        Sample(lambda x: x.view(x.shape[0], 3, 2), **on(2, 3)),
        Sample(lambda x: x.view(-1, 3), **on(2, 3)),
    ],
    "aten.reshape.default": [Sample(lambda x: x.reshape(-1, 6), **on(2, 3))],
    "aten._unsafe_view.default": [Sample(lambda x: aten._unsafe_view(x, [-1, 6]), **on(2, 3))],
    "aten.flatten.using_ints": [
        Sample(lambda x: x.flatten(1), **on(2, 3)),
        Sample(lambda x: x.flatten(-2), **on(2, 3)),
    ],
    "aten.unflatten.int": [Sample(lambda x: x.unflatten(1, (2, -1)), **on(4, 3))],
    "aten.view_as.default": [Sample(lambda x, y: aten.view_as(x, y), **two((2, 3), (6,)))],
    "aten.reshape_as.default": [Sample(lambda x, y: aten.reshape_as(x, y), **two((2, 3), (6,)))],
    **calls("permute", (2, 3), [0, -1, 1]),
    "aten.transpose.int": [
        Sample(lambda x: x.transpose(1, -1), **on(2, 3)),
        Sample(lambda x: x.transpose(0, 1), **on(2, 3)),
    ],
    **calls("t", (3,)),
    **calls("movedim.int", (2, 3), 0, -1),
    **calls("movedim.intlist", (2, 3), [1, 0], [2, 1]),
    **calls("swapaxes", (2, 3), 1, 2),
    "aten.expand.default": [
        Sample(lambda x: x.expand(-1, 2, 3), **on(1, 3)),
        Sample(lambda x: x.expand(4, -1, 3), **on(1)),
    ],
    "aten.expand_as.default": [Sample(lambda x, y: x.expand_as(y), **two((1, 3), (2, 3)))],
    **calls("broadcast_to", (1, 3), [-1, 2, 3]),
    "aten.repeat.default": [
        Sample(lambda x: x.repeat(1, 2, 1), **on(2, 3)),
        Sample(lambda x: x.repeat(2, 1, 1), **on(3)),
    ],
    "aten.tile.default": [Sample(lambda x: x.tile(2), **on(3))],
    "aten.repeat_interleave.self_int": [
        Sample(lambda x: x.repeat_interleave(2, 1), **on(2, 3)),
        Sample(lambda x: x.repeat_interleave(2, -1), **on(2, 3)),
    ],
    "aten.repeat_interleave.self_Tensor": [
        Sample(lambda x: aten.repeat_interleave.self_Tensor(x, index(1, 2, 0), 1, output_size=3), **on(3, 2))
    ],
    "aten.squeeze.default": [Sample(each(lambda x: x.squeeze()), **on(1, 3, 1), also=EACH)],
    "aten.squeeze.dim": [
        Sample(lambda x: x.squeeze(1), **on(1, 3)),
        Sample(lambda x: x.squeeze(-1), **on(2, 3)),
    ],
    "aten.squeeze.dims": [Sample(lambda x: x.squeeze((1, -1)), **on(1, 3, 1))],
    "aten.unsqueeze.default": [
        Sample(lambda x: x.unsqueeze(-1), **on(3)),
        Sample(lambda x: x.unsqueeze(1), **on(3)),
    ],
    "aten.slice.Tensor": [
        Sample(lambda x: aten.slice.Tensor(x, 1, 1, 4), **on(5)),
        Sample(lambda x: aten.slice.Tensor(x, 1, 0, 9, 2), **on(5)),
        Sample(lambda x: aten.slice.Tensor(x, -1, -3), **on(2, 5)),
    ],
    **calls("narrow", (5,), 1, 1, 3),
    "aten.select.int": [
        Sample(lambda x: aten.select.int(x, 1, -2), **on(5)),
        Sample(lambda x: aten.select.int(x, -1, 0), **on(2, 5)),
    ],
    "aten.split.Tensor": [
        Sample(lambda x: x.split(2, 1), **on(5)),
        Sample(lambda x: x.split(2, 1)[1], **on(5)),
        Sample(lambda x: x.split(2, -1)[::2], **on(2, 5)),
    ],
    "aten.split_with_sizes.default": [Sample(lambda x: x.split([1, 3, 1], 1)[:2], **on(5))],
    "aten.chunk.default": [
        Sample(lambda x: x.chunk(2, 1), **on(5)),
        Sample(lambda x: x.chunk(3, -1)[2], **on(2, 5)),
    ],
    "aten.unbind.int": [
        Sample(lambda x: x.unbind(1), **on(3, 2)),
        Sample(lambda x: x.unbind(-1)[1], **on(3, 2)),
    ],
    "aten.tensor_split.sections": [Sample(lambda x: x.tensor_split(3, 1)[::2], **on(5))],
    "aten.unsafe_split.Tensor": [Sample(lambda x: aten.unsafe_split(x, 2, 1)[1:], **on(5))],
    "aten.unsafe_split_with_sizes.default": [
        Sample(lambda x: aten.unsafe_split_with_sizes(x, [2, 3], 1)[0], **on(5))
    ],
    "aten.unsafe_chunk.default": [Sample(lambda x: aten.unsafe_chunk(x, 2, 1)[0], **on(5))],
}

MOVES: DICT = {
    "aten.flip.default": [Sample(lambda x: x.flip(1), **on(4)), Sample(lambda x: x.flip(1, -1), **on(4, 2))],
    "aten.roll.default": [
        Sample(lambda x: x.roll(1, 1), **on(4)),
        Sample(lambda x: x.roll((1, -2), (1, 2)), **on(4, 3)),
    ],
    **calls("rot90", (2, 3), 1, [1, 2]),
    "aten.unfold.default": [
        Sample(lambda x: x.unfold(1, 3, 1), **on(5)),
        Sample(lambda x: x.unfold(-1, 2, 3), **on(2, 6)),
    ],
    "aten.as_strided.default": [
        Sample(each(lambda x: x.as_strided((3, 3), (1, 1))), **on(5), also=EACH),
        Sample(each(lambda x: x.as_strided((2, 2), (1, 3))), **on(2, 3), also=EACH),
    ],
    "aten.unfold_backward.default": [
        Sample(lambda x: aten.unfold_backward(x, [len(x), 6], 1, 3, 1), **on(4, 3)),
        Sample(lambda x: aten.unfold_backward(x, [len(x), 2, 7], -1, 2, 3), **on(2, 2, 2)),
    ],
    "aten.im2col.default": [
        Sample(lambda x: F.unfold(x, (2, 3)), **on(2, 3, 4)),
        Sample(lambda x: F.unfold(x, 2, 2, 1, 2), **on(2, 4, 5)),
    ],
    **calls("pixel_shuffle", (8, 2, 3), 2),
    **calls("pixel_unshuffle", (2, 4, 6), 2),
    **calls("channel_shuffle", (6, 2, 2), 3),
    "aten.diagonal.default": [Sample(lambda x: x.diagonal(1, 1, 2), **on(3, 4))],
    "aten.diag_embed.default": [
        Sample(lambda x: torch.diag_embed(x), **on(3)),
        Sample(lambda x: torch.diag_embed(x, -1), **on(3)),
    ],
    "aten.triu.default": [Sample(lambda x: x.triu(), **on(3, 3)), Sample(lambda x: x.triu(1), **on(3, 4))],
    "aten.tril.default": [Sample(lambda x: x.tril(-1), **on(3, 3))],
    "aten.index.Tensor": [
        Sample(lambda x: aten.index.Tensor(x, [None, index(0, 2, 0)]), **on(4)),
        Sample(lambda x: aten.index.Tensor(x, [None, index(0, 1, 1), index(2, 0, 0)]), **on(2, 3)),
        Sample(
            lambda x: aten.index.Tensor(x, [None, index(0, 1)[:, None], None, index(2, 0, 0)]), **on(2, 2, 3)
        ),
        Sample(lambda x: aten.index.Tensor(x, [None, index(-1, 0, -1)]), **on(4, 2)),
    ],
    **calls("index_select", (4, 2), 1, index(3, 0, 3)),
    "aten.gather.default": [
        Sample(lambda x: x.gather(1, index(0, 2, 0).expand(x.shape[0], 3)), **on(4)),
        Sample(lambda x: x.gather(2, index(1, 1).expand(x.shape[0], 2, 2)), **on(3, 2)),
    ],
    "aten.take_along_dim.default": [
        Sample(lambda x: torch.take_along_dim(x, index(0, 2, 0).expand(x.shape[0], 3), 1), **on(4))
    ],
    "aten.take.default": [Sample(each(lambda x: torch.take(x, index(0, 5, 0))), **on(2, 3), also=EACH)],
    **{
        name: [
            Sample(lambda x, f=_overload(name): f([x, x.flip(1)], 1), **on(3), also=("aten.flip.default",)),
            Sample(lambda x, y, f=_overload(name): f([x, y], -1), **two((2, 3), (2, 1))),
            Sample(
                lambda x, w, f=_overload(name): f([w.expand(x.shape[0], 1, 3), x], 1),
                **on(2, 3),
                weights=((1, 1, 3),),
            ),
            Sample(lambda x, f=_overload(name): f([x, x], 1), **on(3)),
        ]
        for name in ("aten.cat.default", "aten.concat.default", "aten.concatenate.default")
    },
    "aten.stack.default": [
        Sample(lambda x, y: torch.stack([x, y], 1), **two((3,), (3,))),
        Sample(lambda x, w: torch.stack([w.expand(x.shape[0], 3), x, x], -1), **on(3), weights=((3,),)),
    ],
    **{
        f"aten.upsample_nearest{rank}d.vec": [
            Sample(lambda x: F.interpolate(x, scale_factor=2), **on(2, *(3, 2, 2)[:rank])),
            Sample(lambda x, rank=rank: F.interpolate(x, size=(5, 3, 1)[:rank]), **on(2, *(3, 2, 2)[:rank])),
        ]
        for rank in (1, 2, 3)
    },
    **{
        f"aten._upsample_nearest_exact{rank}d.vec": [
            Sample(
                lambda x: F.interpolate(x, scale_factor=1.5, mode="nearest-exact"), **on(2, *(3, 2, 2)[:rank])
            )
        ]
        for rank in (1, 2, 3)
    },
    **{
        f"aten.{kind}{rank}d.default": [
            Sample(
                lambda x, f=f"aten.{kind}{rank}d.default", rank=rank: _overload(f)(x, (5, 3, 4)[:rank]),
                **on(2, *(3, 2, 2)[:rank]),
            )
        ]
        for kind in ("upsample_nearest", "_upsample_nearest_exact")
        for rank in (1, 2, 3)
    },
    **{
        f"aten.{kind}_pad{rank}d.default": [
            Sample(
                lambda x, f=f"aten.{kind}_pad{rank}d.default", rank=rank: _overload(f)(
                    x, (1, 2, 0, 1, 1, 1)[: 2 * rank]
                ),
                **on(2, *(3, 4, 4)[:rank]),
            )
        ]
        for kind in ("reflection", "replication")
        for rank in (1, 2, 3)
    },
}

FILLS: DICT = {
    "aten.pad.default": [
        Sample(lambda x: F.pad(x, (1, 2)), **on(2, 3)),
        Sample(lambda x: F.pad(x, (1, -1), value=2.5), **on(2, 3)),
        Sample(lambda x: F.pad(x, (1, 0, 0, 2), value=-1.0), **on(2, 3)),
        *(
            Sample(lambda x, m=m: F.pad(x, (1, 2), mode=m), **on(2, 3))
            for m in ("reflect", "replicate", "circular")
        ),
    ],
    "aten.constant_pad_nd.default": [
        Sample(lambda x: aten.constant_pad_nd(x, [1, 2]), **on(2, 3)),
        Sample(lambda x: aten.constant_pad_nd(x, [1, -1], 2.5), **on(2, 3)),
    ],
    "aten.select_scatter.default": [
        Sample(lambda x, y: x.select_scatter(y, 1, -1), **two((3, 2), (2,))),
        Sample(lambda x, w: x.select_scatter(w.expand(x.shape[0], 2), 1, 0), **on(3, 2), weights=((2,),)),
        Sample(lambda x: x.new_zeros(x.shape[0], 3, 2).select_scatter(x, 1, 0), **on(2)),
    ],
    "aten.slice_scatter.default": [
        Sample(lambda x, y: x.slice_scatter(y, 1, 0, 4, 2), **two((4,), (2,))),
        Sample(lambda x, w: x.slice_scatter(w.expand(x.shape[0], 2), 1, 1, 3), **on(4), weights=((2,),)),
        Sample(lambda x: x.new_zeros(x.shape[0], 4).slice_scatter(x, 1, 1, 3), **on(2)),
    ],
    "aten.diagonal_scatter.default": [
        Sample(lambda x, y: x.diagonal_scatter(y, 0, 1, 2), **two((3, 3), (3,)))
    ],
    "aten.copy.default": [
        Sample(aten.copy, **two((3,), (3,)), adjoint=False),
        Sample(aten.copy, **two((2, 3), (1, 3)), adjoint=False),
        Sample(lambda x: aten.copy(x.new_zeros(x.shape[0], 2, 3), x), **on(1, 3), adjoint=False),
        Sample(aten.copy, **on(3), weights=((3,),), adjoint=False),
    ],
    "aten.index_put.default": [
        Sample(lambda x, w: aten.index_put(x, [None, index(2, 0)], w), **on(4), weights=((2,),)),
        Sample(lambda x: aten.index_put(x, [None, index(1, 1)], x.new_tensor(2.0)), **on(4)),
        Sample(lambda x, y: aten.index_put(x, [None, index(1, 3)], y), **two((4, 2), (1, 2))),
        Sample(lambda x, y: aten.index_put(x, [None, index(1, 1)], y), **two((4,), (2,)), adjoint=False),
        Sample(lambda x, y: aten.index_put(x, [None, index(1, 1)], y, True), **two((4,), (2,)), sums=True),
        Sample(
            lambda x, w: aten.index_put(x, [None, index(1, 1)], w, True),
            **on(4),
            weights=((),),
            sums=True,
        ),
    ],
    "aten.index_copy.default": [
        Sample(lambda x, y: x.index_copy(1, index(2, 0), y), **two((4,), (2,))),
        Sample(lambda x, w: x.index_copy(1, index(2), w.expand(x.shape[0], 1)), **on(4), weights=((1,),)),
    ],
    "aten.index_fill.int_Scalar": [Sample(lambda x: x.index_fill(1, index(2, 0, 2), 1.5), **on(4))],
    "aten.scatter.src": [
        Sample(lambda x, y: x.scatter(1, index(2, 0).expand(x.shape[0], 2), y), **two((4,), (2,))),
        Sample(
            lambda x, y: x.scatter(1, index(2, 2).expand(x.shape[0], 2), y), **two((4,), (2,)), adjoint=False
        ),
        Sample(
            lambda x, w: x.scatter(1, index(2, 0).expand(x.shape[0], 2), w.expand(x.shape[0], 2)),
            **on(4),
            weights=((2,),),
        ),
    ],
    "aten.scatter.value": [
        Sample(lambda x: x.scatter(1, index(2, 0).expand(x.shape[0], 2), 1.5), **on(4)),
        Sample(lambda x: x.scatter(1, index(2, 2).expand(x.shape[0], 2), -1.0), **on(4)),
    ],
    "aten.put.default": [
        Sample(each(lambda x, w: x.put(index(0, 5), w)), **on(2, 3), weights=((2,),), also=EACH),
        Sample(
            each(lambda x: x[0].put(index(0, 0), x[1, 0, :2])),
            **on(2, 3, 4),
            also=("aten.stack.default", "aten.select.int", "aten.slice.Tensor"),
            adjoint=False,
        ),
        Sample(
            each(lambda x: x[0].put(index(0, 0), x[1, 0, :2], True)),
            **on(2, 3, 4),
            also=("aten.stack.default", "aten.select.int", "aten.slice.Tensor"),
            sums=True,
        ),
    ],
    "aten.fill.Tensor": [
        Sample(lambda x, w: aten.fill.Tensor(x, w), **on(3), weights=((),)),
        Sample(each(lambda x: aten.fill.Tensor(x.new_zeros(3), x)), **on(), also=EACH),
    ],
    "aten.fill.Scalar": [Sample(lambda x: aten.fill.Scalar(x, 1.5), **on(3), adjoint=False)],
    "aten.zero.default": [Sample(lambda x: aten.zero(x), **on(3), adjoint=False)],
}

COPIES: DICT = {
    "aten.clone.default": [Sample(lambda x: x.clone(), **on(3))],
    "aten.contiguous.default": [Sample(lambda x: aten.contiguous(x), **on(3))],
    "aten.detach.default": [Sample(lambda x: x.detach(), **on(3), adjoint=False)],
    "aten.alias.default": [Sample(lambda x: aten.alias(x), **on(3))],
    "aten.lift_fresh_copy.default": [Sample(lambda x: aten.lift_fresh_copy(x), **on(3))],
    "aten._to_copy.default": [
        Sample(lambda x: aten._to_copy(x, dtype=torch.float64), **on(3)),
        Sample(lambda x: aten._to_copy(x, dtype=torch.bfloat16), **on(3), adjoint=False),
    ],
    "aten.to.dtype": [
        Sample(lambda x: x.to(torch.float16), **on(3), adjoint=False),
        Sample(lambda x: aten.to.dtype(x, torch.float64, False, True), **on(3)),
    ],
    "aten.to.device": [Sample(lambda x: aten.to.device(x, "cpu", torch.float64), **on(3))],
    "aten.to.dtype_layout": [
        Sample(lambda x: aten.to.dtype_layout(x, dtype=torch.float64, device="cpu"), **on(3))
    ],
    "aten.to.other": [Sample(lambda x, w: aten.to.other(x, w), **on(3), weights=((3,),))],
    "aten.type_as.default": [Sample(lambda x, w: x.type_as(w), **on(3), weights=((3,),))],
}

EMBEDDINGS: DICT = {
    "aten.embedding.default": [
        Sample(lambda i, w: F.embedding(i, w), **on(4, draw=ids), weights=((5, 3),)),
        Sample(lambda i, w: F.embedding(i, w, padding_idx=0), **on(2, 4, draw=ids), weights=((5, 3),)),
    ],
    "aten.embedding_bag.padding_idx": [
        Sample(
            lambda i, w, p=p, mode=mode: F.embedding_bag(i, w, mode=mode, padding_idx=p),
            **on(4, draw=ids),
            weights=((5, 3),),
            also=("aten.reshape.default",),
        )
        for mode, p in (("sum", None), ("mean", None), ("sum", 0), ("mean", 0), ("max", None), ("max", 0))
    ],
    "aten.embedding_bag.default": [
        Sample(
            lambda i, w: aten.embedding_bag(w, i.reshape(-1), 4 * torch.arange(i.shape[0]))[0],
            **on(4, draw=ids),
            weights=((5, 3),),
            also=("aten.reshape.default",),
        )
    ],
    "aten._embedding_bag.default": [
        Sample(
            lambda i, w: aten._embedding_bag(w, i.reshape(-1), 4 * torch.arange(i.shape[0]), False, 1)[0],
            **on(4, draw=ids),
            weights=((5, 3),),
            also=("aten.reshape.default",),
        )
    ],
}

# ---------------------------------------------------------------- norms, pooling, attention


def _statistics(name: str, *rest: Any, parts: bool = True) -> Sample:
    def function(x: Tensor, w: Tensor, b: Tensor, m: Tensor, v: Tensor) -> Tensor:
        result = _overload(name)(x, w, b, m.detach(), v.detach().abs() + 0.5, *rest)
        return result[0] if parts else result  # type: ignore[no-any-return]

    device = "cuda" if "cudnn" in name else "cpu"
    return Sample(function, **on(4, 3), weights=((4,),) * 4, device=device)


WEIGHT = object()


def _fill(arguments: tuple[Any, ...], weights: tuple[Tensor, ...]) -> list[Any]:
    """The arguments with each `WEIGHT` replaced by the next weight."""
    left = iter(weights)
    return [next(left) if argument is WEIGHT else argument for argument in arguments]


def with_weights(
    name: str, shape: tuple[int, ...], *arguments: Any, weight: tuple[int, ...] = (4,)
) -> Sample:
    """The operation called with the input and arguments, of which each `WEIGHT` stands for a parameter."""

    def function(x: Tensor, *weights: Tensor) -> Any:
        result = _overload(name)(x, *_fill(arguments, weights))
        return result[0] if isinstance(result, (tuple, list)) else result

    count = sum(argument is WEIGHT for argument in arguments)
    return Sample(function, **on(*shape), weights=(weight,) * count)


NORMS: DICT = {
    "aten.batch_norm.default": [
        _statistics("aten.batch_norm.default", False, 0.1, 1e-5, False, parts=False),
        Sample(
            lambda x, m, v: F.batch_norm(x, m.detach(), v.detach().abs() + 0.5), **on(4), weights=((4,), (4,))
        ),
    ],
    "aten._native_batch_norm_legit_no_training.default": [
        _statistics("aten._native_batch_norm_legit_no_training.default", 0.1, 1e-5)
    ],
    "aten.native_batch_norm.default": [_statistics("aten.native_batch_norm.default", False, 0.1, 1e-5)],
    "aten.cudnn_batch_norm.default": [_statistics("aten.cudnn_batch_norm.default", False, 0.1, 1e-5)],
    "aten.layer_norm.default": [
        with_weights("aten.layer_norm.default", (2, 4), [4], WEIGHT, WEIGHT),
        Sample(lambda x: F.layer_norm(x, (2, 4)), **on(2, 4)),
    ],
    "aten.native_layer_norm.default": [
        with_weights("aten.native_layer_norm.default", (2, 4), [4], WEIGHT, WEIGHT, 1e-5)
    ],
    "aten.group_norm.default": [
        with_weights("aten.group_norm.default", (4, 3), 2, WEIGHT, WEIGHT),
        Sample(lambda x: F.group_norm(x, 2), **on(4, 2, 2)),
    ],
    "aten.native_group_norm.default": [
        Sample(
            lambda x, w, b: aten.native_group_norm(x, w, b, x.shape[0], 4, 3, 2, 1e-5)[0],
            **on(4, 3),
            weights=((4,), (4,)),
        )
    ],
    "aten.instance_norm.default": [
        Sample(lambda x, w, b: F.instance_norm(x, weight=w, bias=b), **on(4, 3), weights=((4,), (4,))),
    ],
    "aten.rms_norm.default": [
        with_weights("aten.rms_norm.default", (2, 4), [4], WEIGHT),
        Sample(lambda x: F.rms_norm(x, (2, 4)), **on(2, 4)),
    ],
    "aten._fused_rms_norm.default": [with_weights("aten._fused_rms_norm.default", (2, 4), [4], WEIGHT, 1e-6)],
    "aten._native_batch_norm_legit.no_stats": [
        Sample(
            lambda x: aten._native_batch_norm_legit.no_stats(
                x.reshape(1, -1, 3), None, None, True, 0.1, 1e-5
            )[0],
            **on(4, 3),
            also=("aten.reshape.default",),
        )
    ],
    "relprop.written_norm": [
        Sample(
            lambda x, w, b: written_norm(x, w, b, (1,), True, 4 / 3, 0.01, 0.1),
            **on(4, 3),
            weights=((4, 1), (4, 1)),
        ),
        Sample(
            lambda x, w: written_norm(x, w, None, (1, 2), False, 1.0, 0.01, 0.0), **on(4, 3), weights=((3,),)
        ),
    ],
    "relprop.local_response_norm": [
        Sample(lambda x: F.local_response_norm(x, 3, 0.5, 0.75, 1.5), **on(5, 4)),
        Sample(lambda x: F.local_response_norm(x, 2, 0.5, 0.75, 1.5), **on(5, 4, 3)),
    ],
}


def _pools() -> DICT:
    found: DICT = {}
    for rank in (1, 2, 3):
        size = (5, 4, 4)[:rank]
        small = (2,) * rank
        window = (2, 3, 2)[:rank]
        average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
        maximum = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
        adaptive = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[rank - 1]
        largest = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[rank - 1]
        found[f"aten.avg_pool{rank}d.default"] = [
            Sample(lambda x, f=average: f(x, 2), **on(2, *size)),
            Sample(lambda x, f=average, w=window: f(x, w, 2, 1, True), **on(2, *size)),
            Sample(lambda x, f=average, w=window: f(x, w, 1, 1, False, False), **on(2, *size)),
        ]
        found[f"aten.max_pool{rank}d.default"] = [
            Sample(lambda x, f=maximum: f(x, 2), **on(2, *size)),
            Sample(lambda x, f=maximum, w=window: f(x, w, 2, 1, ceil_mode=True), **on(2, *size)),
            Sample(lambda x, f=maximum: f(x, 2, 1, 0, 2), **on(2, *size)),
        ]
        found[f"aten.max_pool{rank}d_with_indices.default"] = [
            Sample(
                lambda x, f=_overload(f"aten.max_pool{rank}d_with_indices.default"), w=small: f(x, w)[0],
                **on(2, *size),
            )
        ]
        found[f"aten.adaptive_avg_pool{rank}d.default"] = [
            Sample(lambda x, f=adaptive: f(x, 1), **on(2, *size)),
            Sample(lambda x, f=adaptive: f(x, 3), **on(2, *size)),
        ]
        found[f"aten.adaptive_max_pool{rank}d.default"] = [
            Sample(lambda x, f=largest: f(x, 3), **on(2, *size))
        ]
        linear = ("linear1d", "bilinear2d", "trilinear3d")[rank - 1]
        mode = linear[:-2]
        found[f"aten.upsample_{linear}.vec"] = [
            Sample(lambda x, m=mode: F.interpolate(x, scale_factor=2, mode=m), **on(2, *size)),
            Sample(
                lambda x, m=mode: F.interpolate(x, scale_factor=1.5, mode=m, align_corners=True),
                **on(2, *size),
            ),
        ]
        found[f"aten.upsample_{linear}.default"] = [
            Sample(
                lambda x, f=_overload(f"aten.upsample_{linear}.default"), s=[7, 3, 5][:rank]: f(x, s, False),
                **on(2, *size),
            )
        ]
    for rank in (2, 3):
        size = (5, 4, 4)[:rank]
        found[f"aten._adaptive_avg_pool{rank}d.default"] = [
            Sample(
                lambda x, f=_overload(f"aten._adaptive_avg_pool{rank}d.default"), s=[2] * rank: f(x, s),
                **on(2, *size),
            )
        ]
    for mode in ("bilinear", "bicubic"):
        found[f"aten._upsample_{mode}2d_aa.vec"] = [
            Sample(lambda x, m=mode: F.interpolate(x, (2, 3), mode=m, antialias=True), **on(2, 5, 4))
        ]
        found[f"aten._upsample_{mode}2d_aa.default"] = [
            Sample(
                lambda x, f=_overload(f"aten._upsample_{mode}2d_aa.default"): f(x, [2, 3], False),
                **on(2, 5, 4),
            )
        ]
    found["aten.upsample_bicubic2d.vec"] = [
        Sample(lambda x: F.interpolate(x, (7, 6), mode="bicubic"), **on(2, 5, 4))
    ]
    found["aten.affine_grid_generator.default"] = [
        Sample(
            lambda x, sizes=sizes, align=align: aten.affine_grid_generator(x, [x.shape[0], 1, *sizes], align),
            **on(rank, rank + 1),
        )
        for rank, sizes, align in ((2, [4, 3], False), (2, [3, 2], True), (3, [2, 3, 2], False))
    ]
    found["aten.upsample_bicubic2d.default"] = [
        Sample(lambda x: aten.upsample_bicubic2d(x, [7, 6], False), **on(2, 5, 4))
    ]
    for rank in (2, 3):
        name = f"aten.fractional_max_pool{rank}d.default"
        found[name] = [
            Sample(
                lambda x, r, f=_overload(name), rank=rank: f(
                    x, [2] * rank, [2] * rank, r.abs().expand(x.shape[0], 2, rank)
                )[0],
                **on(2, *(5, 4, 4)[:rank]),
                weights=((1, 2, rank),),
                weight=inside,
            )
        ]
    return found


def _whole(name: str, *rest: Any, draw: Callable[..., Tensor] = normal, **keywords: Any) -> list[Sample]:
    """A reduction over everything, sample by sample."""
    return [Sample(each(lambda x: _overload(name)(x, *rest, **keywords)), **on(2, 3, draw=draw), also=EACH)]


def _over(name: str, *argument_lists: tuple[Any, ...]) -> list[Sample]:
    """A reduction over dimensions, by several lists of arguments; of several outputs all of real numbers."""

    def function(x: Tensor, arguments: tuple[Any, ...]) -> Any:
        keywords = arguments[-1] if arguments and isinstance(arguments[-1], dict) else {}
        result = _overload(name)(x, *arguments[: len(arguments) - bool(keywords)], **keywords)
        if isinstance(result, Tensor):
            return result
        real = [part for part in result if part.is_floating_point()]
        return real[0] if len(real) == 1 else tuple(real)

    return [Sample(lambda x, a=arguments: function(x, a), **on(2, 3)) for arguments in argument_lists]


REDUCTIONS: DICT = {
    **{
        f"aten.{name}.default": _whole(f"aten.{name}.default")
        for name in (
            "mean",
            "sum",
            "nansum",
            "nanmean",
            "std",
            "var",
            "prod",
            "max",
            "min",
            "median",
            "nanmedian",
        )
    },
    "aten.mean.dim": _over("aten.mean.dim", ([1],), ([-1], True), ([1, 2],)),
    "aten.sum.dim_IntList": _over("aten.sum.dim_IntList", ([1],), ([-1], True), ([1, 2],)),
    "aten.cumsum.default": _over("aten.cumsum.default", (1,), (-1,)),
    "aten.linalg_vector_norm.default": _over(
        "aten.linalg_vector_norm.default", (2, [1]), (1, [-1], True), (3, [1, 2]), (float("inf"), [1])
    ),
    "aten.norm.Scalar": _whole("aten.norm.Scalar"),
    "aten.norm.ScalarOpt_dim": _over("aten.norm.ScalarOpt_dim", (2, [1]), (1, [-1], True)),
    "aten.norm.ScalarOpt_dtype": _whole("aten.norm.ScalarOpt_dtype", 2, dtype=torch.float64),
    "aten.norm.ScalarOpt_dim_dtype": _over(
        "aten.norm.ScalarOpt_dim_dtype", (2, [1], False, {"dtype": torch.float64})
    ),
    "aten.frobenius_norm.dim": _over("aten.frobenius_norm.dim", ([1],), ([-1], True)),
    **{
        f"aten.{name}.dim": _over(f"aten.{name}.dim", ([1],), ([-1], True, True), ([1, 2], False))
        for name in ("std", "var", "std_mean", "var_mean")
    },
    **{
        f"aten.{name}.correction": _over(
            f"aten.{name}.correction", ([1], {"correction": 0}), ([-1], {"keepdim": True})
        )
        for name in ("std", "var", "std_mean", "var_mean")
    },
    **{
        f"aten.{name}.default": [
            Sample(
                lambda x, f=_overload(f"aten.{name}.default"): tuple(
                    torch.stack(part) for part in zip(*(f(a) for a in x.unbind(0)), strict=True)
                ),
                **on(2, 3),
                also=EACH,
            )
        ]
        for name in ("std_mean", "var_mean")
    },
    "aten.prod.dim_int": _over("aten.prod.dim_int", (1,), (-1, True)),
    "aten.max.dim": _over("aten.max.dim", (1,), (-1, True)),
    "aten.min.dim": _over("aten.min.dim", (1,), (-1, True)),
    "aten.amax.default": _over("aten.amax.default", ([1],), ([-1], True), ([1, 2],)),
    "aten.amin.default": _over("aten.amin.default", ([1],), ([-1], True), ([1, 2],)),
    "aten.logcumsumexp.default": _over("aten.logcumsumexp.default", (1,), (-1,)),
    "aten.logsumexp.default": _over("aten.logsumexp.default", ([1],), ([-1], True), ([1, 2],)),
    "aten.sort.default": _over("aten.sort.default", (1,), (-1, True)),
    "aten.sort.stable": _over(
        "aten.sort.stable", ({"stable": True, "dim": 1},), ({"stable": True, "descending": True},)
    ),
    "aten.topk.default": _over("aten.topk.default", (2,), (1, 1, False)),
    "aten.kthvalue.default": _over("aten.kthvalue.default", (2,), (1, 1, True)),
    "aten.median.dim": _over("aten.median.dim", (1,), (-1, True)),
    "aten.nanmedian.dim": _over("aten.nanmedian.dim", (1,), (-1, True)),
    "aten.mode.default": _over("aten.mode.default", (1,), (-1, True)),
    "aten.cummax.default": _over("aten.cummax.default", (1,), (-1,)),
    "aten.cummin.default": _over("aten.cummin.default", (1,), (-1,)),
}


def _attends(name: str, device: str = "cpu", **keywords: Any) -> list[Sample]:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = _overload(name)(q, k, v, **keywords)
        return result if isinstance(result, Tensor) else result[0]

    return [Sample(function, **two((2, 3, 8), (2, 4, 8), (2, 4, 8)), device=device)]


ATTENTION: DICT = {
    "aten.softmax.int": [
        Sample(lambda x: x.softmax(-1), **on(2, 4)),
        Sample(lambda x: x.softmax(1), **on(4, 2)),
    ],
    "aten._softmax.default": [Sample(lambda x: aten._softmax(x, -1, False), **on(4))],
    "aten._safe_softmax.default": [Sample(lambda x: aten._safe_softmax(x, -1), **on(4))],
    "aten.log_softmax.int": [Sample(lambda x: x.log_softmax(-1), **on(2, 4))],
    "aten._log_softmax.default": [Sample(lambda x: aten._log_softmax(x, 1, False), **on(4, 2))],
    "aten.scaled_dot_product_attention.default": [
        Sample(F.scaled_dot_product_attention, **two((2, 3, 4), (2, 5, 4), (2, 5, 3))),
        Sample(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            **two((2, 3, 4), (2, 3, 4), (2, 3, 4)),
        ),
        Sample(lambda x, m: F.scaled_dot_product_attention(x, x, x, m), **on(2, 3, 4), weights=((3, 3),)),
        Sample(
            lambda x, k, v: F.scaled_dot_product_attention(
                x, k.expand(x.shape[0], 3, 4), v.expand(x.shape[0], 3, 4)
            ),
            **on(3, 4),
            weights=((3, 4), (3, 4)),
        ),
        Sample(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3, enable_gqa=True),
            **two((4, 3, 4), (2, 5, 4), (2, 5, 3)),
        ),
    ],
    "aten._scaled_dot_product_attention_math.default": _attends(
        "aten._scaled_dot_product_attention_math.default"
    ),
    "aten._scaled_dot_product_flash_attention_for_cpu.default": _attends(
        "aten._scaled_dot_product_flash_attention_for_cpu.default"
    ),
    "aten._scaled_dot_product_flash_attention.default": _attends(
        "aten._scaled_dot_product_flash_attention.default", "cuda"
    ),
    "aten._scaled_dot_product_efficient_attention.default": _attends(
        "aten._scaled_dot_product_efficient_attention.default",
        "cuda",
        attn_bias=None,
        compute_log_sumexp=False,
    ),
    "aten._scaled_dot_product_cudnn_attention.default": _attends(
        "aten._scaled_dot_product_cudnn_attention.default", "cuda", attn_bias=None, compute_log_sumexp=False
    ),
}

# ---------------------------------------------------------------- recurrent layers and cells


def _layer(
    layer: Callable[..., Any],
    states: int,
    weights: int,
    units: int,
    batch_first: bool = True,
    **settings: Any,
) -> Callable[..., Tensor]:
    """A recurrent layer from zero states; `weights` of each of its chains."""

    def run(x: Tensor, *w: Tensor) -> Tensor:
        each = settings.get("num_layers", 1) * (2 if settings.get("bidirectional") else 1)
        x = x if batch_first else x.transpose(0, 1)
        zeros = x.new_zeros(each, x.shape[0 if batch_first else 1], settings.get("projected", units))
        cell = x.new_zeros(*zeros.shape[:2], units)
        given = (zeros, cell) if states == 2 else zeros
        biases = weights > 3
        rest = (settings.get("num_layers", 1), 0.0, False, settings.get("bidirectional", False), batch_first)
        return layer(x, given, list(w), biases, *rest)[0]

    return run


def _chains(gates: int, units: int, *reads: int, projected: int | None = None) -> tuple[tuple[int, ...], ...]:
    """Weights of chains that read so many values, with biases."""
    shapes: list[tuple[int, ...]] = []
    for read in reads:
        shapes += [
            (gates * units, read),
            (gates * units, projected or units),
            (gates * units,),
            (gates * units,),
        ]
        shapes += [] if projected is None else [(projected, units)]
    return tuple(shapes)


def _from_states(x: Tensor, h: Tensor, c: Tensor, *w: Tensor) -> Tensor:
    return torch.lstm(x, (h[None], c[None]), list(w), True, 1, 0.0, False, False, True)[0]


def _gru_from_state(x: Tensor, h: Tensor, *w: Tensor) -> Tensor:
    return torch.gru(x, h[None], list(w), True, 1, 0.0, False, False, True)[1][0]


def _loop(x: Tensor, h: Tensor, w: Tensor, u: Tensor, b: Tensor) -> Tensor:
    for t in range(2):
        h = torch.tanh(F.linear(x[:, t], w, b) + F.linear(h, u))
    return h


def _gated_loop(x: Tensor, h: Tensor, w: Tensor, u: Tensor, b: Tensor, d: Tensor) -> Tensor:
    for t in range(2):
        h = torch.tanh(torch.sigmoid(x[:, t, :2]) * F.linear(h, u, d) + F.linear(x[:, t], w, b))
    return h


MOVED = ("aten.transpose.int",)
TAKEN = ("aten.unsqueeze.default",)
RECURRENT: DICT = {
    "aten.lstm.input": [
        Sample(
            _layer(torch.lstm, 2, 4, 2, num_layers=2, bidirectional=True),
            **on(3, 3),
            weights=_chains(4, 2, 3, 3, 4, 4),
        ),
        Sample(
            _layer(torch.lstm, 2, 5, 3, False, projected=2),
            **on(3, 2),
            weights=_chains(4, 3, 2, projected=2),
            also=MOVED,
        ),
        Sample(_from_states, **two((3, 2), (2,), (2,)), weights=_chains(4, 2, 2), also=TAKEN),
    ],
    "aten.gru.input": [
        Sample(
            _layer(torch.gru, 1, 4, 2, False, num_layers=2, bidirectional=True),
            **on(3, 3),
            weights=_chains(3, 2, 3, 3, 4, 4),
            also=MOVED,
        ),
        Sample(
            _gru_from_state,
            **two((3, 2), (2,)),
            weights=_chains(3, 2, 2),
            also=(*TAKEN, "aten.select.int"),
        ),
    ],
    "aten.rnn_tanh.input": [Sample(_layer(torch.rnn_tanh, 1, 4, 2), **on(4, 3), weights=_chains(1, 2, 3))],
    "aten.rnn_relu.input": [Sample(_layer(torch.rnn_relu, 1, 4, 2), **on(4, 3), weights=_chains(1, 2, 3))],
    "aten.lstm_cell.default": [
        Sample(
            lambda x, h, c, *w: torch.lstm_cell(x, (h, c), *w),
            **two((3,), (2,), (2,)),
            weights=_chains(4, 2, 3)[:2],
        ),
    ],
    "aten.gru_cell.default": [Sample(torch.gru_cell, **two((3,), (2,)), weights=_chains(3, 2, 3))],
    "aten.rnn_tanh_cell.default": [Sample(torch.rnn_tanh_cell, **two((3,), (2,)), weights=_chains(1, 2, 3))],
    "aten.rnn_relu_cell.default": [Sample(torch.rnn_relu_cell, **two((3,), (2,)), weights=_chains(1, 2, 3))],
    "relprop.joint_linear": [
        Sample(
            lambda x, h, w, u, b: torch.tanh(F.linear(x, w, b) + F.linear(h, u)),
            **two((3,), (2,)),
            weights=((4, 3), (4, 2), (4,)),
            also=("aten.tanh.default",),
        )
    ],
    "relprop.recurrent_linear": [
        Sample(
            _loop,
            **two((2, 3), (2,)),
            weights=((2, 3), (2, 2), (2,)),
            also=("aten.tanh.default", "aten.select.int", "aten.slice.Tensor"),
        ),
        Sample(
            _gated_loop,
            **two((2, 3), (2,)),
            weights=((2, 3), (2, 2), (2,), (2,)),
            also=("aten.tanh.default", "aten.sigmoid.default", "aten.select.int", "aten.slice.Tensor"),
        ),
    ],
}


def _routed(x: Tensor, w: Tensor) -> Tensor:
    """The rows of one sample by three experts; the second has none of them."""
    import_module("transformers.integrations.moe")
    return torch.ops.transformers.grouped_mm_fallback(x, w, index(2, 2, 4))  # type: ignore[no-any-return]


EXPERTS: DICT = {
    "relprop.grouped_product": [
        Sample(each(_routed), **on(4, 3), weights=((3, 3, 2),), also=EACH),
        Sample(
            each(lambda x, w: _routed(x[:, :3], w)),
            **on(5, 4),
            weights=((3, 3, 2),),
            also=(*EACH, "aten.slice.Tensor"),
        ),
    ]
}


def _rotated(x: Tensor) -> Tensor:
    """Rotary positions by complex numbers."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    angles = torch.arange(3, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


PARTS = ("aten.select.int", "aten.stack.default")
PRODUCT = (*PARTS, "aten.add.Tensor", "aten.sub.Tensor")
MAGNITUDE = ("aten.linalg_vector_norm.default",)


def _spectrogram(x: Tensor) -> Tensor:
    """Magnitudes of short pieces of a recording."""
    return torch.stft(x, 4, 2, window=torch.hann_window(4, dtype=x.dtype), return_complex=True).abs()


def _low_frequencies(x: Tensor, w: Tensor) -> Tensor:
    """The spectral layer of a Fourier neural operator."""
    spectrum = torch.zeros(len(x), 2, 5, dtype=torch.complex128)
    spectrum[:, :, :3] = torch.einsum("bix,iox->box", torch.fft.rfft(x)[:, :, :3], torch.view_as_complex(w))
    return torch.fft.irfft(spectrum, n=x.shape[-1])


def _hashed(tokens: Tensor, w: Tensor) -> Tensor:
    return F.embedding(torch.cat([tokens.new_full((len(tokens), 1), 3), (tokens * 7 + 2) % 5], 1), w)


def _merged(x: Tensor, y: Tensor) -> Tensor:
    """Places of the text that an image's values take."""
    mask = torch.tensor([[False, True, False, True]]).expand(x.shape[0], 4)
    return x.masked_scatter(mask, y)


def _regions(x: Tensor, boxes: Tensor) -> Tensor:
    import_module("torchvision")
    return torch.ops.torchvision.roi_align(x[None], boxes, 1.0, 2, 2, 2, True)  # type: ignore[no-any-return]


def _regions_by(name: str, *settings: Any, part: int | None = 0) -> Callable[[Tensor, Tensor], Tensor]:
    def function(x: Tensor, boxes: Tensor) -> Tensor:
        import_module("torchvision")
        found = getattr(torch.ops.torchvision, name)(x[None], boxes, *settings)
        return found if part is None else found[part]  # type: ignore[no-any-return]

    return function


def _deformed(modulated: bool, groups: int = 1) -> Callable[..., Tensor]:
    """A 3 × 3 convolution at places that other data choose."""

    def function(x: Tensor, offset: Tensor, *rest: Tensor) -> Tensor:
        deform = import_module("torchvision").ops.deform_conv2d
        mask, (w, b) = (rest[0], rest[1:]) if modulated else (None, rest)
        return deform(x, offset, w, b, padding=1, mask=mask)  # type: ignore[no-any-return]

    return function


def _boxes(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.tensor([[0.0, 0.2, 0.4, 3.1, 2.9], [0.0, 1.0, 0.0, 2.5, 3.5]], dtype=torch.float64)


WHOLE: DICT = {
    "relprop.complex_linear": [
        Sample(_rotated, **on(3, 4), also=("aten.reshape.default", "aten.flatten.using_ints")),
        Sample(lambda x: torch.fft.fftn(x, dim=(-2, -1)).real, **on(3, 4), also=("aten.select.int",)),
        Sample(
            lambda x, w: torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(w), s=x.shape[-2:]),
            **on(4, 4),
            weights=((4, 3, 2),),
        ),
        Sample(lambda x: torch.fft.rfft(x).abs(), **on(2, 5), also=MAGNITUDE),
        Sample(lambda x: torch.linalg.vector_norm(torch.fft.rfft(x), dim=1), **on(4, 5), also=MAGNITUDE),
        Sample(
            _spectrogram,
            **on(12),
            also=(
                *MAGNITUDE,
                "aten.pad.default",
                "aten.reshape.default",
                "aten.unfold.default",
                "aten.mul.Tensor",
            ),
        ),
        Sample(
            lambda x, b: (torch.fft.rfft(x) + torch.view_as_complex(b)).real,
            **on(5),
            weights=((3, 2),),
            also=(*PARTS, "aten.add.Tensor"),
        ),
        Sample(
            lambda x: (2 - torch.fft.rfft(x)).imag,
            **on(5),
            also=(*PARTS, "aten.rsub.Scalar", "aten.neg.default"),
        ),
        Sample(
            lambda x, y: torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(y).conj(), n=5),
            **two((5,), (5,)),
            also=(*PRODUCT, "aten.mul.Tensor"),
        ),
        Sample(
            lambda x, y: (torch.fft.fft(x) @ torch.fft.fft(y)).real,
            **two((2, 3), (3, 2)),
            also=(*PRODUCT, "aten.matmul.default"),
        ),
        Sample(
            lambda x, y: torch.cat([torch.fft.rfft(x), torch.fft.rfft(y)], -1).imag,
            **two((5,), (4,)),
            also=("aten.cat.default", "aten.select.int"),
        ),
        Sample(lambda x, y: torch.fft.ifft(torch.complex(x, y)).real, **two((4,), (4,)), also=PARTS),
        Sample(lambda x, y: (torch.fft.fft(x) * y).real, **two((4,), (4,)), also=(*PARTS, "aten.mul.Tensor")),
        Sample(
            lambda x: (lambda z: (z / z.abs()).real)(torch.fft.rfft(x)),
            **on(5),
            also=(*PARTS, *MAGNITUDE, "aten.div.Tensor"),
        ),
        Sample(
            lambda x, y: (torch.fft.fft(x) / torch.fft.fft(y)).real,
            **two((4,), (4,)),
            also=(*PRODUCT, "aten.mul.Tensor", "aten.div.Tensor", "aten.neg.default", "aten.square.default"),
        ),
        Sample(
            lambda x, y: torch.fft.fft(torch.polar(x, y)).imag,
            **two((3,), (3,)),
            also=(*PARTS, "aten.mul.Tensor", "aten.cos.default", "aten.sin.default"),
        ),
        Sample(lambda x: torch.fft.rfft(x).angle(), **on(5), also=("aten.select.int", "aten.atan2.default")),
        Sample(
            lambda x: torch.fft.rfft(x).exp().imag,
            **on(5),
            also=(*PARTS, "aten.mul.Tensor", "aten.exp.default", "aten.cos.default", "aten.sin.default"),
        ),
        Sample(
            lambda x: (torch.fft.rfft(x) ** 2).real,
            **on(5),
            also=(*PARTS, "aten.mul.Tensor", "aten.sub.Tensor", "aten.add.Tensor"),
        ),
        Sample(_low_frequencies, **on(2, 8), weights=((2, 2, 3, 2),), also=("aten.slice_scatter.default",)),
    ],
    "relprop.recoded": [
        Sample(
            _hashed,
            **on(4, draw=ids),
            weights=((5, 3),),
            also=("aten.cat.default", "aten.embedding.default"),
            adjoint=False,
        )
    ],
    "aten.masked_select.default": [
        Sample(each(lambda x: x.masked_select(torch.tensor([True, False, True]))), **on(2, 3), also=EACH)
    ],
    "aten.block_diag.default": [
        Sample(each(lambda x, w: torch.block_diag(x, w, x)), **on(2, 3), weights=((2, 2),), also=EACH)
    ],
    "aten.masked_scatter.default": [Sample(_merged, **two((4,), (2,)))],
    "aten.cumprod.default": [
        Sample(lambda x: torch.cumprod(x, 1), **on(4)),
        Sample(lambda x: torch.cumprod(x, -2), **on(3, 2)),
    ],
    "aten.cdist.default": [
        Sample(torch.cdist, **two((3, 4), (2, 4))),
        Sample(lambda x, w: torch.cdist(x, w), **on(3, 4), weights=((2, 4),)),
        Sample(
            lambda x, w: torch.cdist(w[None].expand(len(x), 2, 4), x, p=1.0), **on(3, 4), weights=((2, 4),)
        ),
    ],
    "aten._cdist_forward.default": [
        Sample(lambda x, y: torch.ops.aten._cdist_forward(x, y, 2.0, None), **two((3, 4), (2, 4))),
    ],
    "torchvision.deform_conv2d.default": [
        Sample(_deformed(False), **two((2, 4, 4), (18, 4, 4)), weights=((3, 2, 3, 3), (3,))),
        Sample(_deformed(True), **two((4, 4, 4), (18, 4, 4), (9, 4, 4)), weights=((2, 2, 3, 3), (2,))),
        Sample(
            lambda x, w, b, o, m: _deformed(True)(
                x, o.expand(len(x), 18, 4, 4), m.abs().expand(len(x), 9, 4, 4), w, b
            ),
            **on(2, 4, 4),
            weights=((3, 2, 3, 3), (3,), (18, 4, 4), (9, 4, 4)),
        ),
    ],
    **{
        f"torchvision.{name}.default": [
            Sample(
                each(_regions_by(name, *settings)),
                **on(8, 4, 4),
                weights=((2, 5),),
                weight=_boxes,
                also=(*EACH, "aten.unsqueeze.default"),
            )
        ]
        for name, settings in (
            ("roi_pool", (1.0, 2, 2)),
            ("ps_roi_align", (1.0, 2, 2, 2)),
        )
    },
    "torchvision.roi_align.default": [
        Sample(
            each(_regions),
            **on(2, 4, 4),
            weights=((2, 5),),
            weight=_boxes,
            also=(*EACH, "aten.unsqueeze.default"),
        ),
    ],
}

# ---------------------------------------------------------------- classical models


def _machine(kernel: str, draw: Callable[..., Tensor] = normal) -> Sample:
    """Two scores over four support vectors, counted from a reference."""
    return Sample(
        lambda x, u, c, b, r: torch.ops.relprop.kernel_machine(
            x, u.abs() if draw is positive else u, c, b, r.abs(), kernel, 0.3, r[0].abs(), 3
        ),
        **on(5, draw=draw),
        weights=((4, 5), (2, 4), (2,), (5,)),
    )


CLASSICAL: DICT = {
    "relprop.centre.default": [Sample(torch.ops.relprop.centre, **on(4), weights=((4,),))],
    "relprop.unit_rows.default": [
        Sample(lambda x, n=norm: torch.ops.relprop.unit_rows(x, n), **on(4)) for norm in ("l1", "l2", "max")
    ],
    "relprop.elementwise.default": [
        Sample(lambda x, n=name: torch.ops.relprop.elementwise(x, n), **on(4, draw=positive))
        for name in ("log_counts", "signed_root", "squashed", "log1p", "sqrt", "square")
    ],
    "relprop.distances.default": [
        Sample(lambda x, u: torch.ops.relprop.distances(x, u, None, 2), **on(4), weights=((3, 4),)),
        Sample(lambda x, u: torch.ops.relprop.distances(x, u, None, 1), **on(4), weights=((3, 4),)),
        Sample(lambda x, u, p: torch.ops.relprop.distances(x, u, p, 2), **on(4), weights=((3, 4), (3, 4))),
        Sample(lambda x, u, p: torch.ops.relprop.distances(x, u, p, 2), **on(4), weights=((3, 4), (3, 4, 4))),
    ],
    "relprop.margins.default": [
        Sample(
            lambda d, beta=beta, soft=soft: torch.ops.relprop.margins(
                d, torch.tensor([[0, 0], [1, -1]]), torch.tensor([[1, 2], [0, -1]]), beta, soft
            ),
            **on(3),
        )
        for beta, soft in ((0.0, False), (float("inf"), False), (0.5, True))
    ],
    "relprop.kernel_machine.default": [
        *(
            _machine(kernel)
            for kernel in ("linear", "poly", "sigmoid", "rbf", "laplacian", "cosine_features")
        ),
        *(_machine(kernel, positive) for kernel in ("chi2", "additive_chi2", "histogram_intersection")),
    ],
    "relprop.dense_sift.default": [Sample(lambda x: torch.ops.relprop.dense_sift(x, 1, 2), **on(7, 6))],
    "relprop.projected.default": [Sample(torch.ops.relprop.projected, **on(3, 4), weights=((4,), (2, 4)))],
    "relprop.visual_words.default": [
        Sample(lambda x, u, s=s: torch.ops.relprop.visual_words(x, u, s), **on(3, 2), weights=((4, 2),))
        for s in (0.7, float("inf"))
    ],
    "relprop.fisher_statistics.default": [
        Sample(
            lambda x, p, m, s: torch.ops.relprop.fisher_statistics(x, p.softmax(0), m, s.abs() + 0.5),
            **on(3, 2),
            weights=((2,), (2, 2), (2, 2)),
        )
    ],
    "relprop.pooled.default": [
        Sample(lambda x: torch.ops.relprop.pooled(x, torch.eye(2, 3, dtype=x.dtype) + 0), **on(3, 2))
    ],
    "relprop.monomials.default": [
        Sample(lambda x: torch.ops.relprop.monomials(x, torch.tensor([[0, 0], [1, 0], [2, 1]])), **on(2))
    ],
    "relprop.one_hot.default": [
        Sample(
            lambda x: torch.ops.relprop.one_hot(x.round(), index(0, 0, 1), torch.tensor([0.0, 1.0, 1.0])),
            **on(2),
            also=("aten.round.default",),
        )
    ],
}


SAMPLES: DICT = {
    **ACTIVATIONS,
    **SUMS,
    **PRODUCTS,
    **PAIRS,
    **CHOICES,
    **LINEAR,
    **CONVOLUTIONS,
    **SHAPES,
    **MOVES,
    **FILLS,
    **COPIES,
    **EMBEDDINGS,
    **NORMS,
    **_pools(),
    **REDUCTIONS,
    **ATTENTION,
    **RECURRENT,
    **EXPERTS,
    **WHOLE,
    **CLASSICAL,
}
