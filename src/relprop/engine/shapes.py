"""Shapes of values while a model is exported with open sizes.

torch works out the shape of what an operation returns, where a size is a symbol, by running the operation's decomposition
on shapes: a clamp is ten operations, a layer normalisation twenty. For operations whose result has the shape of their
argument nothing need be decomposed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_ELEMENTWISE = (
    "relu", "relu6", "hardtanh", "gelu", "silu", "hardswish", "hardsigmoid", "elu", "leaky_relu", "sigmoid", "tanh",
    "softplus", "mish", "exp", "abs", "neg", "sqrt", "rsqrt", "erf", "clamp", "clamp_min", "clamp_max",
)  # fmt: skip
"""Operations of one tensor, number by number, that keep a floating type."""


def _batch_norm(x: Tensor, *_: Any) -> Any:
    """Normalised values, and on a CPU no statistics."""
    if not (x.is_cpu and x.is_contiguous()):
        return None
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


def _layer_norm(x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    """Normalised values, and mean and deviation over the last dimensions."""
    plain = x.dtype in (torch.float32, torch.float64)
    if not plain or any(t is not None and t.dtype != x.dtype for t in (weight, bias)):
        return None
    lead = x.shape[: x.dim() - len(shape)]
    mean, deviation = (x.new_empty((*lead, *[1] * len(shape))) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.contiguous_format), mean, deviation


def _new(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(x)


def _same(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


_SHAPES: dict[Any, Callable[..., Any]] = {
    **{getattr(aten, name).default: _new for name in _ELEMENTWISE},
    **{getattr(aten, f"{name}_").default: _same for name in _ELEMENTWISE if hasattr(aten, f"{name}_")},
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
}
"""From an operation to what gives values of the shapes that it returns; None where torch is to be asked."""


class Shapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, operations of `_SHAPES` on tensors with open sizes give values of the right shape without being
    decomposed. Tensors that hold numbers have no open sizes: nothing of them is left out."""

    supports_higher_order_operators = True  # torch.cond and its like pass as they are

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The result of the operation: of a value without numbers, or by torch."""
        shaped = _SHAPES.get(func)
        if shaped is not None and _is_open(args[0]):
            found = shaped(*args, **kwargs or {})
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))


def _is_open(x: Any) -> bool:
    """Whether a tensor is one of real numbers whose sizes are symbols."""
    return (
        isinstance(x, Tensor) and x.is_floating_point() and any(isinstance(n, torch.SymInt) for n in x.shape)
    )
