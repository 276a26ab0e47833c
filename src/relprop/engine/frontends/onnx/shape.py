"""Operators that move, select, cast and create values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.engine.frontends.onnx.table import Node, operator
from relprop.engine.frontends.onnx.types import torch_type

Size = int | torch.SymInt


def listed(value: Any) -> list[Any]:
    """The entries of a known input: it may be a single number."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def axes_of(node: Node, given: Any, rank: int) -> list[int]:
    """The axes from an attribute (older operator sets) or an input, counted from the front; none means all."""
    axes = node["axes"] if given is None else listed(given)
    return [axis % rank for axis in axes] if axes else []


@operator("Identity")
def identity(node: Node, x: Any) -> Any:
    """The value itself."""
    return x


@operator("Cast")
def cast(node: Node, x: Tensor) -> Tensor:
    """Another type."""
    return x.to(torch_type(node["to"], node))


@operator("CastLike")
def cast_like(node: Node, x: Tensor, like: Tensor) -> Tensor:
    """The type of another tensor."""
    return x.to(like.dtype)


@operator("Reshape", host=(1,))
def reshape(node: Node, x: Tensor, shape: Any) -> Tensor:
    """Another shape; 0 copies a size, unless `allowzero` says that it means an empty one."""
    sizes = listed(shape)
    if not node["allowzero"]:
        sizes = [x.shape[i] if isinstance(size, int) and size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(node: Node, x: Tensor) -> Tensor:
    """Two dimensions: those before the axis and the others."""
    axis = node["axis"] % x.dim() if node["axis"] < 0 else node["axis"]
    if axis == 1:
        return torch.flatten(x, 1) if x.dim() > 1 else x.unsqueeze(1)
    if axis == 0:
        return x.reshape(1, -1)
    return x.flatten(axis, -1).flatten(0, axis - 1) if axis < x.dim() else x.flatten().unsqueeze(1)


@operator("Transpose")
def transpose(node: Node, x: Tensor) -> Tensor:
    """Permuted dimensions; without an order they are reversed."""
    return x.permute(node["perm"] or list(range(x.dim()))[::-1])


@operator("Squeeze", host=(1,))
def squeeze(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    """Without dimensions of size 1."""
    found = axes_of(node, axes, x.dim())
    return x.squeeze(found) if found else x.squeeze()


@operator("Unsqueeze", host=(1,))
def unsqueeze(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    """With new dimensions of size 1."""
    given = node["axes"] if axes is None else listed(axes)
    for axis in sorted(axis % (x.dim() + len(given)) for axis in given):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(node: Node, *inputs: Tensor) -> Tensor:
    """Side by side along an axis."""
    return torch.cat(inputs, node["axis"])


@operator("Split", host=(1,))
def split(node: Node, x: Tensor, sizes: Any = None) -> Any:
    """Parts along an axis: of given sizes, or equal ones (the last may be smaller)."""
    parts = listed(sizes) if sizes is not None else node["split"]
    if parts is None:
        count = node["num_outputs"] or len(node.outputs)
        return torch.split(x, -(-int(x.shape[node["axis"]]) // count), node["axis"])
    return torch.split(x, parts, node["axis"])


@operator("Slice", host=(1, 2, 3, 4))
def cut(node: Node, x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    """From start to end along axes, also backwards."""
    starts, ends = listed(starts), listed(ends)
    found = axes_of(node, axes, x.dim()) if axes is not None else list(range(len(starts)))
    for axis, start, end, step in zip(
        found, starts, ends, listed(steps) if steps is not None else [1] * len(starts), strict=True
    ):
        if step > 0:
            x = x[(slice(None),) * axis + (slice(start, end, None if step == 1 else step),)]
        else:
            size = int(x.shape[axis])
            stop = end if end >= 0 or end < -size else end + size
            places = range(min(start if start >= 0 else start + size, size - 1), max(stop, -1), step)
            if places == range(size - 1, -1, -1):
                x = x.flip(axis)
            else:
                x = x.index_select(axis, torch.tensor(list(places), device=x.device))
    return x


@operator("Expand", host=(1,))
def expand(node: Node, x: Tensor, shape: Any) -> Tensor:
    """Broadcast in both directions: a size of 1 in the asked shape keeps the tensor's own."""
    sizes = listed(shape)
    own = [1] * (len(sizes) - x.dim()) + list(x.shape)
    asked = [1] * (len(own) - len(sizes)) + sizes
    return x.expand(
        [mine if isinstance(size, int) and size == 1 else size for mine, size in zip(own, asked, strict=True)]
    )


@operator("Tile", host=(1,))
def tile(node: Node, x: Tensor, repeats: Any) -> Tensor:
    """Repeated along each axis."""
    return x.repeat(listed(repeats))


@operator("Gather", numbers=0)
def gather(node: Node, x: Tensor, indices: Any) -> Tensor:
    """Rows along an axis at indices of any shape; a table of numbers read at its first axis is an embedding."""
    axis = node["axis"] % x.dim()
    if isinstance(indices, int):
        return x.select(axis, indices)
    if axis == 0 and x.dim() == 2 and isinstance(x, torch.nn.Parameter) and indices.dim():
        return torch.nn.functional.embedding(indices, x)
    return x[(slice(None),) * axis + (indices.long(),)]


@operator("GatherElements")
def gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """Single values along an axis."""
    return torch.gather(x, node["axis"], _forward(indices, x.shape[node["axis"]]))


@operator("GatherND")
def gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """Values or slices at tuples of indices."""
    count = node["batch_dims"] or 0
    indices = indices.long()
    batch = [
        torch.arange(x.shape[d], device=x.device).reshape(
            [-1 if i == d else 1 for i in range(indices.dim() - 1)]
        )
        for d in range(count)
    ]
    return x[tuple(batch) + tuple(indices.unbind(-1))]


def _forward(indices: Tensor, size: Size) -> Tensor:
    """Indices counted from the front."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


@operator("ScatterElements")
def scatter_elements(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Single values written along an axis."""
    places, how = _forward(indices, x.shape[node["axis"]]), node["reduction"] or "none"
    if how == "none":
        return torch.scatter(x, node["axis"], places, updates)
    if how == "add":
        return torch.scatter_add(x, node["axis"], places, updates)
    kinds = {"mul": "prod", "max": "amax", "min": "amin"}
    return torch.scatter_reduce(x, node["axis"], places, updates, kinds[how], include_self=True)


@operator("ScatterND")
def scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Values or slices written at tuples of indices."""
    how = node["reduction"] or "none"
    if how not in ("none", "add"):
        raise node.refuse(f"reduction {how!r}")
    return torch.index_put(x, tuple(indices.long().unbind(-1)), updates, accumulate=how == "add")


@operator("Pad", host=(1, 2, 3))
def pad(node: Node, x: Tensor, pads: Any, value: Any = None, axes: Any = None) -> Tensor:
    """A border of constants, of mirrored or of repeated values."""
    given = listed(pads)
    found = axes_of(node, axes, x.dim()) or list(range(x.dim()))
    before = dict(zip(found, given[: len(found)], strict=True))
    after = dict(zip(found, given[len(found) :], strict=True))
    widths = [w for axis in reversed(range(x.dim())) for w in (before.get(axis, 0), after.get(axis, 0))]
    while widths and isinstance(widths[-1], int) and widths[-1] == 0 and widths[-2] == 0:
        widths = widths[:-2]
    if not widths:
        return x
    mode = node["mode"]
    if mode == "constant":
        return torch.nn.functional.pad(x, widths, value=listed(value)[0] if value is not None else 0)
    kinds = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    if len(widths) // 2 > x.dim() - 1:
        raise node.refuse(f"mode {mode!r} along the batch")
    return _padded(x, widths, kinds[mode])


def _padded(x: Tensor, widths: Sequence[Any], mode: str) -> Tensor:
    """Torch takes the last dimensions, of tensors with one or two more."""
    count = len(widths) // 2
    missing = max(0, x.dim() - count - 2)
    if not missing:
        return torch.nn.functional.pad(x, list(widths), mode=mode)
    shape = x.shape
    y = torch.nn.functional.pad(x.flatten(0, missing), list(widths), mode=mode)
    return y.reshape(*shape[: missing + 1], *y.shape[1:])


@operator("DepthToSpace")
def depth_to_space(node: Node, x: Tensor) -> Tensor:
    """Channels become pixels, in column-row-depth order (torch's) or depth-column-row."""
    size = node["blocksize"]
    if node["mode"] == "CRD":
        return torch.pixel_shuffle(x, size)
    n, c, h, w = x.shape
    y = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // size**2, h * size, w * size)


@operator("SpaceToDepth")
def space_to_depth(node: Node, x: Tensor) -> Tensor:
    """Pixels become channels, in depth-column-row order or column-row-depth (torch's)."""
    size = node["blocksize"]
    n, c, h, w = x.shape
    if node["mode"] == "CRD":
        return torch.pixel_unshuffle(x, size)
    y = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * size**2, h // size, w // size)


@operator("Trilu", host=(1,))
def trilu(node: Node, x: Tensor, k: Any = None) -> Tensor:
    """The upper or lower triangle."""
    diagonal = 0 if k is None else int(listed(k)[0])
    return x.triu(diagonal) if node["upper"] else x.tril(diagonal)


@operator("ConstantOfShape", host=(0,))
def constant_of_shape(node: Node, shape: Any) -> Tensor:
    """A tensor of one value."""
    value = node["value"]
    if value is None:
        return torch.zeros(listed(shape))
    return torch.full(listed(shape), value.item(), dtype=torch.from_numpy(value).dtype)


@operator("EyeLike")
def eye_like(node: Node, x: Tensor) -> Tensor:
    """Ones on a diagonal, in the shape of another tensor."""
    dtype = x.dtype if node["dtype"] is None else torch_type(node["dtype"], node)
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    columns = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
    return (columns - rows == node["k"]).to(dtype)  # type: ignore[no-any-return]


@operator("Range", host=(0, 1, 2))
def count(node: Node, start: Any, limit: Any, delta: Any) -> Tensor:
    """Numbers from start to limit."""
    return torch.arange(*(listed(v)[0] for v in (start, limit, delta)))


@operator("OneHot", host=(1, 2))
def one_hot(node: Node, indices: Tensor, depth: Any, values: Any) -> Tensor:
    """One value at the index, another elsewhere, along a new axis."""
    size = int(listed(depth)[0])
    low, high = listed(values)
    axis = node["axis"] % (indices.dim() + 1)
    places = _forward(indices, size).unsqueeze(axis)
    shape = [-1 if d == axis else 1 for d in range(indices.dim() + 1)]
    hot = places == torch.arange(size, device=indices.device).reshape(shape)
    return torch.where(hot, high, low)


@operator("NonZero")
def nonzero(node: Node, x: Tensor) -> Tensor:
    """The places of values that are not zero."""
    return torch.nonzero(x).t()


@operator("Compress")
def compress(node: Node, x: Tensor, condition: Tensor) -> Tensor:
    """The entries where a condition holds."""
    kept = torch.nonzero(condition).squeeze(1)
    return x.flatten()[kept] if node["axis"] is None else x.index_select(node["axis"], kept)


@operator("TopK", host=(1,))
def topk(node: Node, x: Tensor, k: Any) -> Any:
    """The largest or smallest values along an axis, and their places."""
    return torch.topk(x, int(listed(k)[0]), node["axis"], bool(node["largest"]), bool(node["sorted"]))


@operator("ArgMax", "ArgMin")
def extreme(node: Node, x: Tensor) -> Tensor:
    """The place of the largest or smallest value."""
    if node["select_last_index"]:
        raise node.refuse("select_last_index")
    function = torch.argmax if node.operation == "ArgMax" else torch.argmin
    return function(x, node["axis"], bool(node["keepdims"]))


@operator("Shape")
def shape(node: Node, x: Tensor) -> Tensor:
    """The sizes as a tensor (where they are not read as numbers)."""
    return torch.tensor(x.shape[node["start"] or 0 : node["end"]])


@operator("CenterCropPad", host=(1,))
def center_crop_pad(node: Node, x: Tensor, sizes: Any) -> Tensor:
    """Crop or pad around the centre."""
    for axis, size in zip(axes_of(node, None, x.dim()) or range(x.dim()), listed(sizes), strict=True):
        own = int(x.shape[axis])
        if own > size:
            x = x.narrow(axis, (own - size) // 2, size)
        elif own < size:
            left = (size - own) // 2
            widths = [0, 0] * (x.dim() - 1 - axis) + [left, size - own - left]
            x = torch.nn.functional.pad(x, widths)
    return x
