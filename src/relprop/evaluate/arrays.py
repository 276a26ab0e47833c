"""Relevance as plain arrays: checked, channels pooled, ranked; what every metric starts from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relprop.errors import InvalidInput
from relprop.explanation import Explanation

POOLS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "sum": lambda r, dim: r.sum(dim),
    "sum_pos": lambda r, dim: r.sum(dim).clamp(min=0),
    "pos_sum": lambda r, dim: r.clamp(min=0).sum(dim),
    "max_abs": lambda r, dim: r.abs().amax(dim),
    "l1": lambda r, dim: r.abs().sum(dim),
    "l2": lambda r, dim: r.square().sum(dim).sqrt(),
    "l2_squared": lambda r, dim: r.square().sum(dim),
}
"""How the channels of a place become one value (Arras et al. 2022): name -> function of relevance and dimension."""


def given(relevance: Any, name: str = "relevance") -> Tensor:
    """The array as a float64 tensor (B, …). Raises `InvalidInput` for NaN, infinity, no batch or an empty one."""
    if isinstance(relevance, Explanation):
        raise InvalidInput(f"{name}: an Explanation, and arrays are ranked\n  do: give its .relevance")
    try:
        tensor = torch.as_tensor(relevance, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"{name}: a {type(relevance).__name__} is no array of numbers\n  do: give a tensor or array (B, …)"
        ) from error
    if tensor.dim() < 2 or tensor.numel() == 0:
        raise InvalidInput(
            f"{name}: shape {tuple(tensor.shape)}, and the batch comes first\n  do: give (B, …), relevance[None] for one sample"
        )
    if not bool(torch.isfinite(tensor).all()):
        count = int((~torch.isfinite(tensor)).sum())
        raise InvalidInput(
            f"{name}: {count} of {tensor.numel()} values are NaN or infinite, which nothing can rank\n"
            "  do: find the method or rule that gave them; they are no relevance"
        )
    return tensor


def rows(relevance: Any, name: str = "relevance") -> Tensor:
    """The array as (B, N), a row a sample."""
    return given(relevance, name).flatten(1)


def pool_channels(relevance: Any, how: str = "sum", dim: int = 1) -> Tensor:
    """One value a place: relevance (B, C, …) -> (B, …); `how` is a key of `POOLS`, `dim` the channels' dimension."""
    if how not in POOLS:
        raise InvalidInput(f"pool: {how!r} is unknown\n  do: one of {', '.join(POOLS)}")
    return POOLS[how](given(relevance), dim)


def with_mask(relevance: Any, mask: Any, channels: str = "sum") -> tuple[Tensor, Tensor]:
    """Relevance and mask of the same places as (B, N) each, channels pooled where the mask has none or one.

    Raises `InvalidInput` for shapes that do not belong together and a mask that is neither true/false nor 0/1.
    """
    values, places = given(relevance), torch.as_tensor(mask).detach().to("cpu")
    if places.dtype != torch.bool and not bool(((places == 0) | (places == 1)).all()):
        raise InvalidInput("mask: values besides 0 and 1\n  do: give a true/false mask: mask > 0")
    if values.dim() == places.dim() and places.dim() > 2 and places.shape[1] == 1 < values.shape[1]:
        places = places[:, 0]
    if values.dim() == places.dim() + 1:
        values = pool_channels(values, channels)
    if values.shape != places.shape:
        raise InvalidInput(
            f"mask: shape {tuple(torch.as_tensor(mask).shape)} for relevance of shape {tuple(torch.as_tensor(relevance).shape)}\n"
            "  do: give one value a place: (B, H, W) or (B, 1, H, W) for images"
        )
    return values.flatten(1), places.flatten(1).to(values.device) != 0


def order(scores: Tensor, descending: bool = True) -> Tensor:
    """The places of each row from the largest value to the smallest, or the other way; ties by place, (B, N)."""
    return torch.argsort(scores, dim=1, descending=descending, stable=True)


def rank_of(ordered: Tensor) -> Tensor:
    """The position of each place in an order, (B, N)."""
    places = torch.arange(ordered.shape[1], device=ordered.device).expand_as(ordered)
    return torch.empty_like(ordered).scatter_(1, ordered, places)


def mean_ranks(values: Tensor) -> Tensor:
    """The rank of each value in its row from 1 on, ties sharing their mean, float64 (B, N)."""
    place = _sorted(values)
    ordered = values.gather(1, place)
    count = values.shape[1]
    at = torch.arange(count, device=values.device, dtype=torch.float64).expand(values.shape)
    differs = ordered[:, 1:] != ordered[:, :-1]
    ranks = at + 1
    if bool((~differs).any()):
        edge = torch.ones(len(values), 1, dtype=torch.bool, device=values.device)
        first = torch.where(torch.cat([edge, differs], 1), at, 0).cummax(1).values
        last = torch.where(torch.cat([differs, edge], 1), at, float(count)).flip(1).cummin(1).values.flip(1)
        ranks = (first + last) / 2 + 1
    return torch.empty_like(ranks).scatter_(1, place, ranks)


def _sorted(values: Tensor) -> Tensor:
    """The places of each row from the smallest value to the largest, ties in any order, (B, N)."""
    if values.device.type != "cpu":
        return values.argsort(1)
    import numpy as np

    return torch.from_numpy(np.argsort(values.numpy(), axis=1))  # on a processor several times as fast


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, NaN where the denominator is 0."""
    safe = torch.where(denominator == 0, torch.ones_like(denominator), denominator)
    return torch.where(denominator == 0, torch.full_like(safe, torch.nan), numerator / safe)
