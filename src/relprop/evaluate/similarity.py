"""How alike two explanations of the same input are: rank and linear correlation, cosine, SSIM.

Both maps (B, …) of one shape; results (B,) float64 in [−1, 1], NaN where a map is constant (`cosine`: is zero).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from relprop.errors import InvalidInput
from relprop.evaluate.arrays import given, mean_ranks, ratio, rows


def _pair(first: Any, second: Any) -> tuple[Tensor, Tensor]:
    a, b = rows(first), rows(second).to(torch.as_tensor(first).device)
    if torch.as_tensor(first).shape != torch.as_tensor(second).shape:
        raise InvalidInput(
            f"maps: shapes {tuple(torch.as_tensor(first).shape)} and {tuple(torch.as_tensor(second).shape)}\n  do: compare maps of one shape"
        )
    return a, b


def cosine(first: Any, second: Any) -> Tensor:
    """Σ ab / ‖a‖‖b‖."""
    a, b = _pair(first, second)
    return ratio((a * b).sum(1), a.norm(dim=1) * b.norm(dim=1))


def _centred(a: Tensor) -> Tensor:
    """Minus the mean; exactly 0 where all values are equal."""
    constant = a.amax(1, keepdim=True) == a.amin(1, keepdim=True)
    return torch.where(constant, torch.zeros_like(a), a - a.mean(1, keepdim=True))


def pearson(first: Any, second: Any) -> Tensor:
    """The linear correlation over places."""
    a, b = _pair(first, second)
    return cosine(_centred(a), _centred(b))


def spearman(first: Any, second: Any) -> Tensor:
    """The correlation of ranks, ties sharing their mean rank; of signed maps, so that a flipped sign gives −1."""
    a, b = _pair(first, second)
    return pearson(mean_ranks(a), mean_ranks(b))


def spearman_abs(first: Any, second: Any) -> Tensor:
    """The correlation of the ranks of |R|."""
    a, b = _pair(first, second)
    return spearman(a.abs(), b.abs())


def kendall(first: Any, second: Any) -> Tensor:
    """Kendall's τ_b; quadratic in the number of places."""
    a, b = _pair(first, second)
    da, db = ((x[:, :, None] - x[:, None, :]).sign().flatten(1) for x in (a, b))
    return ratio((da * db).sum(1), (da.square().sum(1) * db.square().sum(1)).sqrt())


def ssim(first: Any, second: Any, window: int = 7) -> Tensor:
    """Structural similarity (Wang et al. 2004) of maps (B, H, W) or (B, C, H, W), channels summed.

    Each map is first divided by its own largest |R|, so that the range of the data is 2; a uniform window of `window` places a
    side, sample covariance, the mean over all places where the window fits. NaN for a map of zeros.
    """
    maps = []
    for one in (first, second):
        values = given(one)
        values = values.sum(1) if values.dim() == 4 else values
        if values.dim() != 3 or min(values.shape[1:]) < window:
            raise InvalidInput(
                f"ssim: maps of shape {tuple(torch.as_tensor(one).shape)} with a window of {window}\n"
                "  do: give images (B, H, W) or (B, C, H, W), no smaller than the window"
            )
        largest = values.abs().flatten(1).amax(1)[:, None, None]
        maps.append(ratio(values, largest.expand_as(values))[:, None])
    a, b = maps
    count = window * window

    def local(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, 1)

    sample = count / (count - 1)
    mean_a, mean_b = local(a), local(b)
    var_a = sample * (local(a * a) - mean_a**2)
    var_b = sample * (local(b * b) - mean_b**2)
    both = sample * (local(a * b) - mean_a * mean_b)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    found = ((2 * mean_a * mean_b + c1) * (2 * both + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return found.flatten(1).mean(1)


SIMILARITIES: dict[str, Callable[[Any, Any], Tensor]] = {
    function.__name__: function for function in (spearman, spearman_abs, pearson, cosine, kendall, ssim)
}
"""The measures of similarity by name."""

RANKS: dict[str, Callable[[Tensor], Tensor]] = {
    "spearman": mean_ranks,
    "spearman_abs": lambda values: mean_ranks(values.abs()),
}
"""The measures that are Pearson's correlation of ranks."""


def similarity_to(name: str, reference: Any) -> Callable[[Any], Tensor]:
    """The similarity of a map to one and the same reference, whose ranks are found once.

    Raises `InvalidInput` for an unknown name.
    """
    if name not in SIMILARITIES:
        raise InvalidInput(f"similarity: {name!r} is unknown\n  do: one of {', '.join(SIMILARITIES)}")
    if name not in RANKS:
        return lambda other: SIMILARITIES[name](reference, other)
    ranks = RANKS[name](rows(reference))
    centred = _centred(ranks)
    size = centred.norm(dim=1)

    def like(other: Any) -> Tensor:
        own = _centred(RANKS[name](_pair(other, reference)[0]))
        return ratio((centred * own).sum(1), size * own.norm(dim=1))

    return like
