"""The windows of a pooling, of any rank: which places of the input each output looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Windows:
    """`index` [O, K]: the flat place in the input's last `rank` dimensions of each of the K members of each
    of the O windows; `valid` [O, K] is False for members that lie in the padding."""

    index: Tensor
    valid: Tensor
    rank: int


def windows_of(operation: str, a: dict[str, Any], x: Tensor, output: Tensor) -> Windows:
    """The windows of a max pooling of x, by its arguments' names; `output` counts by its shape."""
    rank = int(next(c for c in operation if c.isdigit()))
    sizes, counts = x.shape[-rank:], output.shape[-rank:]
    if "output_size" in a:
        places = [_adaptive(size, count, x.device) for size, count in zip(sizes, counts, strict=True)]
        return _combined(places, sizes)
    kernel = _full(a["kernel_size"], rank)
    stride = _full(a["stride"], rank) if a["stride"] else kernel
    padding, dilation = _full(a["padding"], rank), _full(a["dilation"], rank)
    places = [
        _fixed(sizes[d], counts[d], kernel[d], stride[d], padding[d], dilation[d], x.device)
        for d in range(rank)
    ]
    return _combined(places, sizes)


def _full(value: Any, rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values


def _fixed(
    size: int, count: int, kernel: int, stride: int, padding: int, dilation: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Places [count, kernel] along one dimension, and which of them lie inside."""
    start = torch.arange(count, device=device) * stride - padding
    place = start[:, None] + torch.arange(kernel, device=device)[None, :] * dilation
    return place, (place >= 0) & (place < size)


def _adaptive(size: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Output i looks at the places from ⌊i·size/count⌋ to ⌈(i+1)·size/count⌉."""
    number = torch.arange(count, device=device)
    start, stop = number * size // count, -(-(number + 1) * size // count)
    place = start[:, None] + torch.arange(int((stop - start).max()), device=device)[None, :]
    return place, place < stop[:, None]


def _combined(places: list[tuple[Tensor, Tensor]], sizes: torch.Size) -> Windows:
    index, valid = places[0]
    for (place, inside), size in zip(places[1:], sizes[1:], strict=True):
        index = (index[:, None, :, None] * size + place[None, :, None, :]).flatten(2).flatten(0, 1)
        valid = (valid[:, None, :, None] & inside[None, :, None, :]).flatten(2).flatten(0, 1)
    return Windows(torch.where(valid, index, 0), valid, len(sizes))


def gathered(x: Tensor, windows: Windows) -> Tensor:
    """The members of all windows: [..., *spatial] → [..., O, K]; members in the padding hold some other
    value."""
    return x.flatten(-windows.rank)[..., windows.index]


def scattered(members: Tensor, like: Tensor, windows: Windows) -> Tensor:
    """The adjoint of `gathered`: members in the padding are left out, overlapping windows add up."""
    members = torch.where(windows.valid, members, 0.0).flatten(-2)
    flat = like.flatten(-windows.rank)
    result = torch.zeros_like(flat, dtype=members.dtype)
    return result.index_add(-1, windows.index.flatten(), members).reshape(like.shape)
