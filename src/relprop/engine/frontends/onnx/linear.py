"""Products with weights, convolutions, pooling, reductions and resampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.engine.frontends.onnx.shape import axes_of, listed
from relprop.engine.frontends.onnx.table import Node, operator, simple

simple("MatMul", torch.matmul)


@operator("Gemm")
def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """α A B + β C, as a linear layer wherever C is a bias."""
    a = a.t() if node["transA"] else a
    weight = b if node["transB"] else b.t()
    if node["alpha"] != 1:
        weight = weight * node["alpha"]
    if c is not None and node["beta"] != 1:
        c = c * node["beta"]
    if c is not None and c.dim() == 2 and c.shape[0] == 1 and c.shape[1] == weight.shape[0]:
        c = c.reshape(-1)
    if c is None or (c.dim() == 1 and c.shape[0] == weight.shape[0]):
        return F.linear(a, weight, c)
    return F.linear(a, weight) + c


@operator("Einsum")
def einsum(node: Node, *inputs: Tensor) -> Tensor:
    """Einstein's sum."""
    return torch.einsum(node["equation"], *inputs)


_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_ADAPTIVE: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
_ADAPTIVE_MAX: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_max_pool1d,
    2: F.adaptive_max_pool2d,
    3: F.adaptive_max_pool3d,
}


def _ranked(table: dict[int, Callable[..., Any]], node: Node, x: Tensor) -> Callable[..., Any]:
    if x.dim() - 2 not in table:
        raise node.refuse(f"an input of {x.dim()} dimensions")
    return table[x.dim() - 2]


def _window(
    node: Node, x: Tensor, kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and the padding before and after each axis."""
    rank = len(kernel)
    strides = list(node["strides"] or [1] * rank)
    dilations = list(node["dilations"] or [1] * rank)
    kind = node["auto_pad"] or "NOTSET"
    if kind in ("NOTSET", "VALID"):
        pads = list(node["pads"] or [0] * 2 * rank) if kind == "NOTSET" else [0] * 2 * rank
        return strides, dilations, pads[:rank], pads[rank:]
    before, after = [], []
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-int(size) // s) - 1) * s + (k - 1) * d + 1 - int(size))
        small, large = total // 2, total - total // 2
        before.append(small if kind == "SAME_UPPER" else large)
        after.append(large if kind == "SAME_UPPER" else small)
    return strides, dilations, before, after


def _widths(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Padding in torch's order: the last axis first."""
    return [w for pair in reversed(list(zip(before, after, strict=True))) for w in pair]


@operator("Conv")
def conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution."""
    strides, dilations, before, after = _window(node, x, weight.shape[2:])
    if before != after:
        x, before = F.pad(x, _widths(before, after)), [0] * len(before)
    function = _ranked(_CONV, node, x)
    return function(x, weight, bias, strides, before, dilations, node["group"])  # type: ignore[no-any-return]


@operator("ConvTranspose")
def conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Transposed convolution; what the padding cuts off unevenly is cut afterwards."""
    kernel = weight.shape[2:]
    rank = len(kernel)
    strides = list(node["strides"] or [1] * rank)
    dilations = list(node["dilations"] or [1] * rank)
    extra = list(node["output_padding"] or [0] * rank)
    pads = list(node["pads"] or [0] * 2 * rank)
    before, after = pads[:rank], pads[rank:]
    kind = node["auto_pad"] or "NOTSET"
    full = [
        s * (int(size) - 1) + e + (k - 1) * d + 1
        for size, k, s, d, e in zip(x.shape[2:], kernel, strides, dilations, extra, strict=True)
    ]
    if node["output_shape"] or kind.startswith("SAME"):
        wanted = node["output_shape"] or [int(size) * s for size, s in zip(x.shape[2:], strides, strict=True)]
        totals = [f - w for f, w in zip(full, wanted[-rank:], strict=True)]
        halves = [t // 2 for t in totals]
        rests = [t - h for t, h in zip(totals, halves, strict=True)]
        before, after = (halves, rests) if kind == "SAME_UPPER" else (rests, halves)
    elif kind == "VALID":
        before = after = [0] * rank
    function = _ranked(_TRANSPOSED, node, x)
    if (
        before == after
        and all(w >= 0 for w in before)
        and all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True))
    ):
        return function(x, weight, bias, strides, before, extra, node["group"], dilations)  # type: ignore[no-any-return]
    y = function(x, weight, bias, strides, [0] * rank, [0] * rank, node["group"], dilations)
    return F.pad(y, _widths([-w for w in before], [e - w for e, w in zip(extra, after, strict=True)]))


def _ceiled(
    node: Node,
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
) -> list[int]:
    """How far windows that begin within the padded input stick out of it, where sizes are rounded up."""
    if not node["ceil_mode"]:
        return [0] * len(kernel)
    more = []
    for size, k, s, d, b, a in zip(x.shape[2:], kernel, strides, dilations, before, after, strict=True):
        length, reach = int(size) + b + a, (k - 1) * d + 1
        count = -(-(length - reach) // s) + 1
        if (count - 1) * s >= int(size) + b:
            count -= 1
        more.append(max(0, (count - 1) * s + reach - length))
    return more


@operator("AveragePool")
def average_pool(node: Node, x: Tensor) -> Tensor:
    """Averages of windows, with or without the padding in the count."""
    kernel = list(node["kernel_shape"])
    strides, dilations, before, after = _window(node, x, kernel)
    if any(d != 1 for d in dilations):
        raise node.refuse("dilations")
    function = _ranked(_AVERAGE, node, x)
    counted = bool(node["count_include_pad"])
    more = _ceiled(node, x, kernel, strides, dilations, before, after)
    if before == after and all(2 * b <= k for b, k in zip(before, kernel, strict=True)):
        return function(x, kernel, strides, before, bool(node["ceil_mode"]), counted)  # type: ignore[no-any-return]
    if any(more) or not counted:
        if not any(more) and not any(before) and not any(after):
            return function(x, kernel, strides)  # type: ignore[no-any-return]
        return _uncounted(function, x, kernel, strides, before, after, more, counted)
    return function(F.pad(x, _widths(before, after)), kernel, strides)  # type: ignore[no-any-return]


def _uncounted(
    function: Callable[..., Tensor],
    x: Tensor,
    kernel: list[int],
    strides: list[int],
    before: list[int],
    after: list[int],
    more: list[int],
    counted: bool,
) -> Tensor:
    """The average over the values that count: the average over all, divided by the share of those."""
    inside, outside = _widths(before, after), _widths([0] * len(more), more)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    ones = F.pad(F.pad(ones, inside, value=1.0 if counted else 0.0), outside)
    summed = function(F.pad(F.pad(x, inside), outside), kernel, strides)
    return summed / function(ones, kernel, strides)


@operator("MaxPool")
def max_pool(node: Node, x: Tensor) -> Any:
    """The largest value of each window."""
    if len(node.outputs) > 1 and node.outputs[1]:
        raise node.refuse("the places of the largest values as an output")
    kernel = list(node["kernel_shape"])
    strides, dilations, before, after = _window(node, x, kernel)
    function = _ranked(_MAX, node, x)
    if before != after or any(2 * b > k for b, k in zip(before, kernel, strict=True)):
        x, before = F.pad(x, _widths(before, after), value=-math.inf), [0] * len(kernel)
    return function(x, kernel, strides, before, dilations, bool(node["ceil_mode"]))


@operator("GlobalAveragePool")
def global_average_pool(node: Node, x: Tensor) -> Tensor:
    """The average of each channel."""
    return _ranked(_ADAPTIVE, node, x)(x, 1)  # type: ignore[no-any-return]


@operator("GlobalMaxPool")
def global_max_pool(node: Node, x: Tensor) -> Tensor:
    """The maximum of each channel."""
    return _ranked(_ADAPTIVE_MAX, node, x)(x, 1)  # type: ignore[no-any-return]


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
}


@operator(*_REDUCTIONS, "ReduceProd", host=(1,))
def reduce(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    """A reduction over axes; over all where none is named, or over none if the operator says so."""
    found = axes_of(node, axes, x.dim())
    if not found and node["noop_with_empty_axes"]:
        return x
    found, keep = sorted(found or range(x.dim())), bool(node["keepdims"])
    if node.operation == "ReduceProd":
        for axis in reversed(found):
            x = x.prod(axis, keep)
        return x
    return _REDUCTIONS[node.operation](x, found, keep)


@operator("CumSum", host=(1,))
def cumsum(node: Node, x: Tensor, axis: Any) -> Tensor:
    """The running sum, also backwards or without the value itself."""
    dim = int(listed(axis)[0])
    y = x.flip(dim) if node["reverse"] else x
    total = y.cumsum(dim)
    if node["exclusive"]:
        total = total - y
    return total.flip(dim) if node["reverse"] else total


@operator("Resize", host=(1, 2, 3))
def resize(node: Node, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None) -> Tensor:
    """Resampling by the nearest value, linearly or by cubic splines."""
    axes = axes_of(node, None, x.dim()) or list(range(x.dim()))
    own = [x.shape[axis] for axis in axes]
    if sizes is not None and listed(sizes):
        if (node["keep_aspect_ratio_policy"] or "stretch") != "stretch":
            raise node.refuse(f"the policy {node['keep_aspect_ratio_policy']!r}")
        wanted, factors = listed(sizes), [s / o for s, o in zip(listed(sizes), own, strict=True)]
    else:
        factors = [float(s) for s in listed(scales)]
        wanted = [o if f == 1 else math.floor(int(o) * f) for o, f in zip(own, factors, strict=True)]
    moved = [
        (axis, int(o), int(w), float(f))
        for axis, o, w, f in zip(axes, own, wanted, factors, strict=True)
        if axis > 1 and (w != o or f != 1)
    ]
    still = [axis for axis, o, w in zip(axes, own, wanted, strict=True) if axis <= 1 and w != o]
    how, mode = node["coordinate_transformation_mode"], node["mode"]
    if still or how == "tf_crop_and_resize":
        raise node.refuse("resizing the batch or the channels" if still else f"the mode {how!r}")
    if not moved:
        return x
    if mode == "nearest":
        for axis, o, w, f in moved:
            x = x.index_select(axis, torch.tensor(_nearest(node, o, w, f), device=x.device))
        return x
    if how == "pytorch_half_pixel" and all(w > 1 for _, _, w, _ in moved):
        how = "half_pixel"
    kinds = {
        (1, "linear"): "linear",
        (2, "linear"): "bilinear",
        (3, "linear"): "trilinear",
        (2, "cubic"): "bicubic",
    }
    kind = kinds.get((x.dim() - 2, mode))
    if kind is None or how not in ("half_pixel", "align_corners") or node["exclude_outside"]:
        raise node.refuse(f"mode {mode!r} with {how!r} on {x.dim() - 2} axes")
    if mode == "cubic" and not math.isclose(node["cubic_coeff_a"], -0.75):
        raise node.refuse(f"cubic_coeff_a {node['cubic_coeff_a']}")
    target = list(x.shape[2:])
    scale: list[float] = [1.0] * len(target)
    for axis, _, w, f in moved:
        target[axis - 2], scale[axis - 2] = w, f
    if node["antialias"] and any(f < 1 for f in scale):
        raise node.refuse("antialias")
    corners = how == "align_corners"
    if corners and any(o * f != w for _, o, w, f in moved):
        raise node.refuse("align_corners with scales that do not give whole sizes")
    if sizes is None and not corners:
        return F.interpolate(x, scale_factor=scale, mode=kind, align_corners=False)
    return F.interpolate(x, target, mode=kind, align_corners=corners)


def _nearest(node: Node, size: int, wanted: int, scale: float) -> list[int]:
    """The place that each output reads, along one axis."""
    how, rounding = node["coordinate_transformation_mode"], node["nearest_mode"]
    places = []
    for i in range(wanted):
        if how == "asymmetric":
            place = i / scale
        elif how == "align_corners":
            place = i * (size - 1) / (wanted - 1) if wanted > 1 else 0.0
        elif how == "pytorch_half_pixel" and wanted == 1:
            place = 0.0
        elif how == "half_pixel_symmetric":
            place = size / 2 * (1 - wanted / (scale * size)) + (i + 0.5) / scale - 0.5
        else:
            place = (i + 0.5) / scale - 0.5
        rounded = {
            "round_prefer_floor": math.ceil(place - 0.5),
            "round_prefer_ceil": math.floor(place + 0.5),
            "floor": math.floor(place),
            "ceil": math.ceil(place),
        }[rounding]
        places.append(min(max(rounded, 0), size - 1))
    return places


@operator("GridSample")
def grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    """Values at given places between the pixels."""
    kinds = {
        "linear": "bilinear",
        "bilinear": "bilinear",
        "cubic": "bicubic",
        "bicubic": "bicubic",
        "nearest": "nearest",
    }
    return F.grid_sample(x, grid, kinds[node["mode"]], node["padding_mode"], bool(node["align_corners"]))


@operator("LpPool")
def lp_pool(node: Node, x: Tensor) -> Tensor:
    """The norm of each window."""
    kernel, p = list(node["kernel_shape"]), float(node["p"])
    strides, dilations, before, after = _window(node, x, kernel)
    if any(d != 1 for d in dilations) or node["ceil_mode"]:
        raise node.refuse("dilations, or sizes that are rounded up")
    y = F.pad(x.abs().pow(p), _widths(before, after))
    return (_ranked(_AVERAGE, node, x)(y, kernel, strides) * math.prod(kernel)).pow(1 / p)  # type: ignore[no-any-return]
