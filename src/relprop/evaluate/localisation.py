"""Ground truth for places: how much of the relevance lies where it should.

relevance: (B, H, W), or (B, C, H, W) whose channels are summed; mask: (B, H, W) or (B, 1, H, W), true inside; any other
dimensions of places will do. Results are (B,) float64, NaN where undefined (`METRICS` says when), never 0 instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from relprop.errors import InvalidInput
from relprop.evaluate.arrays import given, mean_ranks, order, ratio, with_mask


def _signs(values: Tensor, pool: str) -> Tensor:
    if pool == "positive":
        return values.clamp(min=0)
    if pool == "abs":
        return values.abs()
    if pool == "signed":
        return values
    raise InvalidInput(f"pool: {pool!r} is unknown\n  do: 'positive', 'abs' or 'signed'")


def _where(values: Tensor, defined: Tensor) -> Tensor:
    return torch.where(defined, values, torch.full_like(values, torch.nan))


def relevance_mass(relevance: Any, mask: Any, pool: str = "positive", channels: str = "sum") -> Tensor:
    """The share of the relevance that lies in the mask (Arras et al. 2022): R inside / R, of the positive part.

    `pool`: "positive", "abs", or "signed", which can leave [0, 1]. A uniform map has the mask's share of the area.
    NaN for an empty mask and where there is no relevance.
    """
    values, inside = with_mask(relevance, mask, channels)
    values = _signs(values, pool)
    return _where(ratio((values * inside).sum(1), values.sum(1)), inside.any(1))


inside_share = relevance_mass
"""Kohlbrenner et al. (2020) call it μ: R⁺ inside / R⁺."""


def relevance_rank(relevance: Any, mask: Any, channels: str = "sum") -> Tensor:
    """The share of the K most relevant places that lie in the mask of K places (Arras et al. 2022); NaN for an empty one."""
    values, inside = with_mask(relevance, mask, channels)
    size = inside.sum(1)
    hits = inside.gather(1, order(values))
    first = torch.arange(values.shape[1], device=values.device) < size[:, None]
    return ratio((hits & first).sum(1).to(torch.float64), size.to(torch.float64))


def top_k(relevance: Any, mask: Any, k: int, channels: str = "sum") -> Tensor:
    """The share of the k most relevant places that lie in the mask (Theiner et al. 2021); NaN for an empty mask.

    At most |mask| / k. Raises `InvalidInput` for a k that the map does not have.
    """
    values, inside = with_mask(relevance, mask, channels)
    if not 1 <= k <= values.shape[1]:
        raise InvalidInput(f"k: {k} of {values.shape[1]} places\n  do: give 1 to {values.shape[1]}")
    return _where(inside.gather(1, order(values))[:, :k].to(torch.float64).mean(1), inside.any(1))


def roc_auc(relevance: Any, mask: Any, channels: str = "sum") -> Tensor:
    """The area under the ROC curve of relevance against the mask, ties counting ½; ½ for a uniform map.

    NaN for a mask that is empty or full.
    """
    values, inside = with_mask(relevance, mask, channels)
    positive = inside.sum(1).to(torch.float64)
    negative = values.shape[1] - positive
    ranks = (mean_ranks(values) * inside).sum(1)
    return ratio(ranks - positive * (positive + 1) / 2, positive * negative)


def average_precision(relevance: Any, mask: Any, channels: str = "sum") -> Tensor:
    """The mean precision over the ranks of the mask's places, ties at one threshold; NaN for a mask empty or full."""
    values, inside = with_mask(relevance, mask, channels)
    placed = order(values)
    ordered, hits = values.gather(1, placed), inside.gather(1, placed).to(torch.float64)
    found = hits.cumsum(1)
    upto = torch.searchsorted(-ordered.contiguous(), -ordered.contiguous(), right=True)  # places at or above
    precision = found.gather(1, upto - 1) / upto
    size = inside.sum(1).to(torch.float64)
    return _where(ratio((precision * hits).sum(1), size), size < values.shape[1])


def pointing_game(
    relevance: Any, mask: Any, tolerance: int = 0, ties: str = "first", channels: str = "sum"
) -> Tensor:
    """1 where the most relevant place lies in the mask, or within `tolerance` places of it (Zhang et al. 2018), else 0.

    Several equal maxima: the first in row-major order counts, or with ties="any" any of them. NaN for an empty mask.
    """
    if ties not in ("first", "any"):
        raise InvalidInput(f"ties: {ties!r} is unknown\n  do: 'first' or 'any'")
    wide = torch.as_tensor(mask)
    if tolerance:
        shape = wide.shape
        if wide.dim() not in (3, 4) or (wide.dim() == 4 and shape[1] != 1):
            raise InvalidInput(
                "tolerance: it widens masks of images\n  do: give masks (B, H, W), or leave it out"
            )
        side = 2 * tolerance + 1
        wide = F.max_pool2d((wide != 0).float().reshape(-1, 1, *shape[-2:]), side, 1, tolerance) > 0
        wide = wide.reshape(shape)
    values, inside = with_mask(relevance, wide, channels)
    highest = values == values.amax(1, keepdim=True)
    first = highest.long().argmax(1, keepdim=True)
    hits = inside.gather(1, first)[:, 0] if ties == "first" else (highest & inside).any(1)
    return _where(hits.to(torch.float64), inside.any(1))


def context_ratio(
    relevance: Any, mask: Any, pool: str = "positive", area: bool = True, channels: str = "sum"
) -> Tensor:
    """μ = mean relevance outside the mask / mean relevance inside it (Lapuschkin et al. 2016): 1 for a uniform map.

    It describes how much a model uses context; it is no grade of an explanation.

    Args:
        mask: the union of all boxes of the explained class.
        pool: "positive" (R⁺) or "signed", as published.
        area: divide by the areas; False gives the ratio of the sums, "how much" instead of "how dense".

    NaN where the mask is the whole image or empty, and where the mean inside is not positive.
    """
    values, inside = with_mask(relevance, mask, channels)
    values = _signs(values, pool)
    within, size = (values * inside).sum(1), inside.sum(1).to(torch.float64)
    beyond, rest = (values * ~inside).sum(1), (~inside).sum(1).to(torch.float64)
    if area:
        within, beyond = ratio(within, size), ratio(beyond, rest)
    return _where(ratio(beyond, within), (within > 0) & (size > 0) & (rest > 0))


def focus(relevance: Any, target_tiles: Any) -> Tensor:
    """The share of R⁺ on the tiles of a mosaic that show the explained class (Arias-Duart et al. 2022); chance is ½.

    relevance: (B, C, H, W) or (B, H, W) of 2 × 2 mosaics; target_tiles: (B, 4) true for the tiles of the class, row-major.
    Raises `InvalidInput` for other shapes.
    """
    values, tiles = given(relevance), torch.as_tensor(target_tiles)
    values = values.sum(1) if values.dim() == 4 else values
    if values.dim() != 3 or tiles.numel() != 4 * len(values):
        raise InvalidInput(
            f"focus: relevance of shape {tuple(values.shape)} and tiles of shape {tuple(tiles.shape)}\n"
            "  do: it is for mosaics of 2 × 2 images (B, H, W), with the tiles of the class as mask (B, 4)"
        )
    tiles = tiles.reshape(-1, 2, 2).to(values.device) != 0
    high, wide = values.shape[1:]
    mask = tiles.repeat_interleave(-(-high // 2), 1).repeat_interleave(-(-wide // 2), 2)[:, :high, :wide]
    return relevance_mass(values, mask)


def by_class(values: Any, classes: Sequence[Any]) -> dict[Any, float]:
    """The mean of each class over the samples where the value is defined, NaN where there is none; classes in sorted order.

    values: (B,), such as `context_ratio`'s; classes: one a sample.
    """
    array = torch.as_tensor(values, dtype=torch.float64).detach()
    found = {}
    for name in sorted(set(classes)):
        own = array[torch.tensor([one == name for one in classes])]
        found[name] = float(own[torch.isfinite(own)].mean())
    return found
