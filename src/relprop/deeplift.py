"""DeepLIFT: what each input contributes to the difference from a reference (Shrikumar et al. 2017, the rescale rule).

Multipliers m take the place of gradients: of an operation that is linear they are the gradient, of an elementwise
function Δy/Δx, of a maximum what its winners at input and reference account for (as captum has it), and of any other
operation (products, attention, norms, softmax, recurrent layers) the gradient's mean on the straight way from the
reference to the input, which for an elementwise function is Δy/Δx again. Each of them keeps Σ m Δx = Δy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.differentiable import Differentiable
from relprop.engine.graph import Node, Ref, replace_refs, value_of
from relprop.engine.ops import OPS
from relprop.errors import InvalidInput
from relprop.explain import Captured
from relprop.sampling import Fill, filled

Found = tuple[Tensor, ...]

POINTS = 16
"""Points of the quadrature (Gauss-Legendre) of a mean gradient."""

CLOSES = 1e-2
"""How far Σ R may be from f(x) − f(x′), as a part of what is shared out."""

AFFINE = frozenset(
    [
        "add",
        "sub",
        "rsub",
        "subtract",
        "view",
        "reshape",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "permute",
        "transpose",
        "t",
        "movedim",
        "swapaxes",
        "expand",
        "expand_as",
        "broadcast_to",
        "repeat",
        "tile",
        "squeeze",
        "unsqueeze",
        "flip",
        "roll",
        "slice",
        "narrow",
        "select",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "cat",
        "concat",
        "concatenate",
        "stack",
        "pad",
        "constant_pad_nd",
        "clone",
        "contiguous",
        "detach",
        "alias",
        "_to_copy",
        "to",
        "type_as",
        "pixel_shuffle",
        "pixel_unshuffle",
        "linear",
        "conv1d",
        "conv2d",
        "conv3d",
        "convolution",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "mm",
        "matmul",
        "bmm",
        "addmm",
        "batch_norm",
        "_native_batch_norm_legit_no_training",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "_adaptive_avg_pool2d",
        "mean",
        "sum",
        "upsample_bilinear2d",
        "upsample_nearest2d",
        "embedding",
        "neg",
        "padded_convolution",
        "pooled",
    ]
)
"""Operations that are linear in their data where only one argument is, or that add: their multiplier is the gradient."""

ADDING = frozenset(["add", "sub", "rsub", "subtract", "cat", "concat", "concatenate", "stack"])
"""Those of them that are linear in several arguments together."""

PIECES = frozenset(
    [
        "relu",
        "relu6",
        "leaky_relu",
        "prelu",
        "_prelu_kernel",
        "abs",
        "clamp",
        "clamp_min",
        "hardtanh",
        "threshold",
    ]
)
"""Elementwise functions that are linear piece by piece: differences are exact, so that no Δx is too small to divide by."""


def short(node: Node) -> str:
    """The bare name of an operation: "relu" of "aten.relu.default"."""
    return node.operation.removeprefix("aten.").removeprefix("relprop.").partition(".")[0]


def deeplift(function: Differentiable, captured: Captured, baseline: Fill = 0.0) -> Found:
    """R = m (x − x′), m the multipliers of the rescale rule (Shrikumar et al. 2017): Σ R = f(x) − f(x′).

    Args:
        baseline: x′, the reference: a number, or a tensor that broadcasts to a sample. Of token ids, at their embeddings.

    Raises:
        InvalidInput: Σ R is not f(x) − f(x′): the model branches, sorts or looks up by values, where multipliers mean nothing.
    """
    reference = filled(function, baseline, "baseline")
    count = len(function.points[0])
    if function.graph.batched or count == 1:
        return _shares(function, captured, function.points, reference, function.extra())
    rows = [slice(i, i + 1) for i in range(count)]
    parts = [
        _shares(
            function, captured,
            tuple(p[row] for p in function.points), tuple(r[row] for r in reference), tuple(e[row] for e in function.extra()),
        )
        for row in rows
    ]  # fmt: skip
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _shares(
    function: Differentiable, captured: Captured, points: Found, reference: Found, extra: Found
) -> Found:
    """The relevance of some rows."""
    every = frozenset(node.name for node in function.graph.nodes)
    with torch.no_grad():
        empty, held = function.run((*reference, *extra), keep=every)
        score = function.scores(*points, *extra)

    def changed(node: Node) -> Callable[..., Any] | None:
        rule = _rule(node, captured)
        return None if rule is None else _replaced(node, captured, held, rule)

    multipliers = function.gradients(*points, changed=changed, extra=extra)
    found = tuple(m * (x - r) for m, x, r in zip(multipliers, points, reference, strict=True))
    _check(found, score - empty)
    return found


def _check(found: Found, difference: Tensor) -> None:
    """Raise where the contributions are not the difference."""
    total = torch.stack([part.double().flatten(1).sum(1) for part in found]).sum(0)
    size = torch.stack([part.double().flatten(1).abs().sum(1) for part in found]).sum(0)
    gap = (total - difference.double()).abs()
    wrong = ~(gap <= CLOSES * torch.maximum(size, difference.double().abs()).clamp(min=1e-6))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise InvalidInput(
            f"deeplift: of sample {row} the contributions add up to {float(total[row]):.4g}, and the score differs by"
            f" {float(difference[row]):.4g} from the reference's: the model decides by values, which has no multiplier\n"
            "  do: use method='integrated_gradients', or 'lrp'"
        )


Backward = Callable[[Callable[..., Any], Sequence[Tensor], Sequence[Tensor], Sequence[Any]], list[Any]]
"""Of a function of its data, the data, those at the reference and the outputs' multipliers, to the data's multipliers."""


def _data(node: Node, captured: Captured) -> list[int]:
    """The places of the data among the flat arguments of a node."""
    flat = pytree.tree_leaves((node.args, node.kwargs), is_leaf=lambda leaf: isinstance(leaf, Ref))
    return [i for i, leaf in enumerate(flat) if isinstance(leaf, Ref) and leaf in captured.facts.data]


def _rule(node: Node, captured: Captured) -> Backward | None:
    """How multipliers pass a node; None where they do as gradients."""
    if node.kind != "call":
        return None
    data, name = _data(node, captured), short(node)
    kind = OPS[node.operation].kind if node.operation in OPS else ""
    if not data or (name in AFFINE and (len(data) == 1 or name in ADDING)):
        return None
    if kind == "activation" and len(data) == 1 and node.operation.startswith("aten."):
        return _pieces if name in PIECES else _smooth
    if kind == "max":
        return _winners
    return _mean


def _replaced(node: Node, captured: Captured, held: Mapping[str, Any], rule: Backward) -> Callable[..., Any]:
    """The node's operation with another backward pass."""
    operation, places = node.function, _data(node, captured)
    assert operation is not None

    def at_reference(ref: Ref) -> Any:
        return value_of(held, ref)

    before, _ = pytree.tree_flatten(
        (replace_refs(node.args, at_reference), replace_refs(node.kwargs, at_reference))
    )

    def call(*args: Any, **kwargs: Any) -> Any:
        flat, spec = pytree.tree_flatten((args, kwargs))
        own = [i for i in places if isinstance(flat[i], Tensor) and flat[i].is_floating_point()]

        def of(*data: Tensor) -> Any:
            new = list(flat)
            for i, tensor in zip(own, data, strict=True):
                new[i] = tensor
            given, named = pytree.tree_unflatten(new, spec)
            return operation(*given, **named)

        return _Multiplied.apply(of, rule, [before[i] for i in own], *(flat[i] for i in own))

    return call


class _Multiplied(torch.autograd.Function):
    """An operation whose backward pass is a rule of multipliers."""

    @staticmethod
    def forward(ctx: Any, of: Callable[..., Any], rule: Backward, before: list[Tensor], *data: Tensor) -> Any:
        """The operation's own value."""
        ctx.of, ctx.rule, ctx.before = of, rule, before
        ctx.save_for_backward(*data)
        found = of(*data)
        if isinstance(found, list):
            found = tuple(found)
        whole = [t for t in pytree.tree_leaves(found) if isinstance(t, Tensor) and not t.is_floating_point()]
        ctx.mark_non_differentiable(*whole)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The multipliers of the data."""
        return (None, None, None, *ctx.rule(ctx.of, ctx.saved_tensors, ctx.before, grads))


def _pulled(
    of: Callable[..., Any], data: Sequence[Tensor], grads: Sequence[Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs that have multipliers, and the gradients of their weighed sum by the data."""
    with torch.enable_grad():
        own = [tensor.detach().requires_grad_() for tensor in data]
        found = of(*own)
        outputs = list(found) if isinstance(found, (tuple, list)) else [found]
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        if not pairs:
            return [o.detach() for o in outputs], [torch.zeros_like(t) for t in data]
        slopes = torch.autograd.grad([o for o, _ in pairs], own, [g for _, g in pairs], allow_unused=True)
    kept = [torch.zeros_like(t) if s is None else s for t, s in zip(own, slopes, strict=True)]
    return [o.detach() for o in outputs], kept


def _divided(
    of: Any, data: Sequence[Tensor], before: Sequence[Tensor], grads: Sequence[Any], small: float
) -> list[Any]:
    """m Δy/Δx of an elementwise function; its slope halfway where Δx is too small to divide by."""
    (x,), (r,) = data, before
    step = x - r
    with torch.no_grad():
        rise = of(x) - of(r)
    close = step.abs() <= small * (1 + x.abs())
    _, (slope,) = _pulled(of, [(x + r) / 2], grads)
    return [torch.where(close, slope, grads[0] * rise / torch.where(close, torch.ones_like(step), step))]


def _pieces(of: Any, data: Sequence[Tensor], before: Sequence[Tensor], grads: Sequence[Any]) -> list[Any]:
    """Of ReLU and its like."""
    return _divided(of, data, before, grads, 1e-10)


def _smooth(of: Any, data: Sequence[Tensor], before: Sequence[Tensor], grads: Sequence[Any]) -> list[Any]:
    """Of sigmoid and its like, where the difference of close values is rounding."""
    return _divided(of, data, before, grads, float(np.sqrt(torch.finfo(data[0].dtype).eps)))


def _winners(of: Any, data: Sequence[Tensor], before: Sequence[Tensor], grads: Sequence[Any]) -> list[Any]:
    """Of a maximum: what the output gains over the reference's goes to the input's winner, what it falls short of to the reference's.

    captum's rule, with max(y, y′) in between. Overlapping windows add.
    """
    with torch.no_grad():
        there, here = _listed(of(*before)), _listed(of(*data))
    top = [torch.maximum(o, p) if o.is_floating_point() else o for o, p in zip(here, there, strict=True)]
    gained = [None if g is None else g * (t - p) for g, t, p in zip(grads, top, there, strict=True)]
    missed = [None if g is None else g * (o - t) for g, o, t in zip(grads, here, top, strict=True)]
    _, up = _pulled(of, data, gained)
    _, down = _pulled(of, before, missed)
    _, plain = _pulled(of, data, grads)
    return [
        torch.where(
            (x - r).abs() <= 1e-10,
            p,
            (u + d) / torch.where((x - r).abs() <= 1e-10, torch.ones_like(x), x - r),
        )
        for x, r, u, d, p in zip(data, before, up, down, plain, strict=True)
    ]


def _listed(found: Any) -> list[Tensor]:
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _mean(of: Any, data: Sequence[Tensor], before: Sequence[Tensor], grads: Sequence[Any]) -> list[Any]:
    """The mean gradient on the straight way from the reference to the input: Σ m Δx = Δy of any smooth function."""
    nodes, weights = np.polynomial.legendre.leggauss(POINTS)
    total = [torch.zeros_like(x) for x in data]
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        _, slopes = _pulled(
            of, [torch.lerp(r, x, float(node)) for x, r in zip(data, before, strict=True)], grads
        )
        total = [t + float(weight) * s for t, s in zip(total, slopes, strict=True)]
    return total
