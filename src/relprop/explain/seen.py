"""Values of a graph seen with the samples first, whatever their layout, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.engine.step import Layout


def samples_first(value: Tensor, layout: Layout | None, batch: int) -> Tensor:
    """A value as (B, …): the samples first, then all other dimensions in their order.

    Where the samples share a dimension with something else (windows, heads), that stands in its place without them. A
    value of one sample that has no dimension for it gets one.
    """
    if layout is None:
        return value if value.dim() and value.shape[0] == 1 else value[None]
    dimension, inner = layout
    outer = value.shape[dimension] // (batch * inner)
    if (dimension, outer, inner) == (0, 1, 1):
        return value
    before, behind = value.shape[:dimension], value.shape[dimension + 1 :]
    apart = value.reshape(*before, outer, batch, inner, *behind).movedim(dimension + 1, 0)
    between = [size for size in (outer, inner) if size > 1]
    return apart.reshape(batch, *before, *between, *behind)


def as_before(seen: Tensor, like: Tensor, layout: Layout | None, batch: int) -> Tensor:
    """A tensor (B, …) in the layout of the value `like` that `samples_first` made it of."""
    if layout is None:
        return seen.reshape(like.shape)
    dimension, inner = layout
    outer = like.shape[dimension] // (batch * inner)
    before, behind = like.shape[:dimension], like.shape[dimension + 1 :]
    apart = seen.reshape(batch, *before, outer, inner, *behind)
    return apart.movedim(0, dimension + 1).reshape(like.shape)


def joined(parts: list[Tensor], layout: Layout | None, batches: list[int]) -> Tensor:
    """Values of consecutive parts of a batch as that of the whole batch."""
    if len(parts) == 1 or layout is None or layout == Layout(0, 1):
        return torch.cat(parts) if len(parts) > 1 else parts[0]
    seen = torch.cat([samples_first(p, layout, b) for p, b in zip(parts, batches, strict=True)])
    dimension = layout.dimension
    size = sum(part.shape[dimension] for part in parts)
    like = parts[0].new_empty(()).expand(*parts[0].shape[:dimension], size, *parts[0].shape[dimension + 1 :])
    return as_before(seen, like, layout, sum(batches))
