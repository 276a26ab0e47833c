"""Sizes and indices that a file computes on the way: evaluated as plain numbers, not as tensors.

Exporters write `Reshape` with a shape that is made by Shape, Gather, Concat and arithmetic. Kept as numbers (while
a graph is captured, also as torch's symbols of a free batch size), they stay out of the graph of tensors.
Values are numpy arrays, of objects where they hold symbols.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.engine.frontends.onnx.table import Node

Array = np.ndarray[Any, Any]
LIMIT = 4096
"""Larger arrays of whole numbers are tensors."""


def is_host(value: Any) -> bool:
    """Whether a value is one of plain numbers."""
    return isinstance(value, np.ndarray)


def numbers(value: Any) -> Any:
    """A value of plain numbers as a number or nested lists of them."""
    return value.tolist() if value.ndim else value.item() if value.dtype != object else value[()]


def array(items: list[Any]) -> Array:
    """Numbers side by side; an array of objects where some are symbols."""
    if all(type(item) in (int, bool) for item in items):
        return np.array(items, dtype=np.int64)
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out


def sizes(node: Node, x: Tensor) -> Array:
    """The sizes of a tensor, as Shape gives them."""
    return array(list(x.shape)[node["start"] or 0 : node["end"]])


def size(node: Node, x: Tensor) -> Array:
    """The number of values of a tensor."""
    return np.array(functools.reduce(lambda a, b: a * b, x.shape, 1))


def tensor(value: Array, device: torch.device) -> Tensor:
    """Plain numbers as a tensor; symbols become values that follow the batch size."""
    if value.dtype != object:
        return torch.from_numpy(np.array(value)).to(device)
    items = [torch.scalar_tensor(item, dtype=torch.int64, device=device) for item in value.reshape(-1)]
    return torch.stack(items).reshape(value.shape)


def _axes(node: Node, given: Array | None) -> tuple[int, ...] | None:
    axes = node["axes"] if given is None else [int(a) for a in np.atleast_1d(given)]
    return tuple(axes) if axes else None


def _divide(node: Node, a: Array, b: Array) -> Array:
    if a.dtype.kind == "f" or b.dtype.kind == "f":
        return a / b
    return np.asarray(a // b)  # sizes are never negative


def _cast(node: Node, x: Array) -> Array:
    import onnx

    kind = onnx.helper.tensor_dtype_to_np_dtype(node["to"])
    return x if x.dtype == object and kind == np.int64 else x.astype(kind)


def _reduce(function: Callable[..., Any]) -> Callable[..., Array]:
    def reduced(node: Node, x: Array, axes: Array | None = None) -> Array:
        return np.asarray(function(x, axis=_axes(node, axes), keepdims=bool(node["keepdims"])))

    return reduced


def _slice(
    node: Node, x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    places = range(len(starts)) if axes is None else [int(a) for a in axes]
    cuts: list[slice] = [slice(None)] * x.ndim
    for i, axis in enumerate(places):
        step = 1 if steps is None else int(steps[i])
        end: int | None = int(ends[i])
        if step < 0 and end is not None and end < -x.shape[axis]:
            end = None
        cuts[axis] = slice(int(starts[i]), end, step)
    return x[tuple(cuts)]


def _unsqueeze(node: Node, x: Array, axes: Array | None = None) -> Array:
    return np.expand_dims(x, _axes(node, axes) or ())


def _split(node: Node, x: Array, parts: Array | None = None) -> Any:
    given = node["split"] if parts is None else [int(p) for p in parts]
    if given is None:
        return tuple(np.array_split(x, len(node.outputs), node["axis"]))
    return tuple(np.split(x, np.cumsum(given)[:-1], node["axis"]))


def _filled(node: Node, shape: Array) -> Any:
    if shape.dtype == object or np.prod(shape) > LIMIT:
        return NotImplemented
    value = node["value"]
    return np.full(
        [int(s) for s in np.atleast_1d(shape)],
        0.0 if value is None else value.item(),
        np.float32 if value is None else value.dtype,
    )


def _range(node: Node, start: Array, limit: Array, delta: Array) -> Any:
    ends = [np.atleast_1d(v)[0] for v in (start, limit, delta)]
    if any(isinstance(end, torch.SymInt) for end in ends):
        return NotImplemented
    return np.arange(*ends)


def _expand(node: Node, x: Array, shape: Array) -> Any:
    if shape.dtype == object:
        return NotImplemented
    wanted = [int(s) for s in np.atleast_1d(shape)]
    full = np.broadcast_shapes(x.shape, tuple(wanted))
    return NotImplemented if np.prod(full) > LIMIT else np.broadcast_to(x, full)


def _reshape(node: Node, x: Array, shape: Array) -> Array:
    return x.reshape([x.shape[i] if s == 0 else int(s) for i, s in enumerate(np.atleast_1d(shape))])


HOST: dict[str, Callable[..., Any]] = {
    "Abs": lambda node, x: abs(x),
    "Add": lambda node, a, b: a + b,
    "And": lambda node, a, b: np.logical_and(a, b),
    "Cast": _cast,
    "Ceil": lambda node, x: np.ceil(x),
    "Concat": lambda node, *xs: np.concatenate(xs, node["axis"]),
    "ConstantOfShape": _filled,
    "Div": _divide,
    "Equal": lambda node, a, b: np.equal(a, b),
    "Expand": _expand,
    "Floor": lambda node, x: np.floor(x),
    "Gather": lambda node, x, at: np.asarray(np.take(x, at.astype(np.int64), node["axis"])),
    "Greater": lambda node, a, b: np.greater(a, b),
    "Identity": lambda node, x: x,
    "Less": lambda node, a, b: np.less(a, b),
    "Max": lambda node, *xs: functools.reduce(np.maximum, xs),
    "Min": lambda node, *xs: functools.reduce(np.minimum, xs),
    "Mod": lambda node, a, b: a % b,
    "Mul": lambda node, a, b: a * b,
    "Neg": lambda node, x: -x,
    "Not": lambda node, x: np.logical_not(x),
    "Or": lambda node, a, b: np.logical_or(a, b),
    "Range": _range,
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Reshape": _reshape,
    "ScatterND": lambda node, x, at, new: _scattered(x, at, new),
    "Slice": _slice,
    "Split": _split,
    "Sqrt": lambda node, x: np.sqrt(x),
    "Squeeze": lambda node, x, axes=None: np.squeeze(x, _axes(node, axes)),
    "Sub": lambda node, a, b: a - b,
    "Transpose": lambda node, x: x.transpose(node["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": lambda node, c, a, b: np.where(c, a, b),
}
"""The operators that exporters compute sizes with. NotImplemented: the tensors' version is taken."""


def _scattered(x: Array, at: Array, new: Array) -> Array:
    x = x.copy()
    x[tuple(np.moveaxis(at, -1, 0))] = new
    return x
