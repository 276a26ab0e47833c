"""What single fields ask of relevance: video frames, repeated trials, objects and bands.

relevance comes as arrays or tensors, batch first; results are float64 tensors, NaN where undefined, never 0 instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.errors import InvalidInput
from relprop.evaluate.arrays import given, ratio
from relprop.evaluate.localisation import relevance_mass
from relprop.evaluate.similarity import pearson


@dataclass(frozen=True, slots=True)
class Profile:
    """Relevance along time, a row a sample (Anders et al. 2018).

    Attributes:
        share: (B, T) the part of the relevance that each step has; rows sum to 1.
        border: (B,) the mean of the first and last steps over the mean of those between: 1 is no border effect.
        centroid: (B,) Σ t·share, in steps from 0.
    """

    share: Tensor
    border: Tensor
    centroid: Tensor


def along_time(relevance: Any, axis: int = 1, border: int = 1, positive: bool = True) -> Profile:
    """Where in time the relevance lies, for videos, series and recordings.

    Args:
        relevance: (B, …); all dimensions but the batch and `axis`, the steps of time, are summed.
        border: how many steps at each end count as the border.
        positive: of the positive part R⁺, else of signed relevance, whose sum may be 0 (then NaN).

    Raises `InvalidInput` where no step lies between the borders.
    """
    values = given(relevance)
    if not 1 <= axis < values.dim():
        raise InvalidInput(
            f"axis: {axis} of relevance with {values.dim()} dimensions\n  do: give 1 to {values.dim() - 1}"
        )
    values = (values.clamp(min=0) if positive else values).movedim(axis, 1)
    values = values.reshape(*values.shape[:2], -1).sum(2)
    steps = values.shape[1]
    if not 1 <= border < steps / 2:
        raise InvalidInput(
            f"border: {border} at each end of {steps} steps leaves none between\n"
            f"  do: give 1 to {max(1, (steps - 1) // 2)}"
        )
    share = ratio(values, values.sum(1, keepdim=True).expand_as(values))
    outer = torch.cat([values[:, :border], values[:, steps - border :]], 1).mean(1)
    inner = values[:, border : steps - border].mean(1)
    return Profile(share, ratio(outer, inner), (share * torch.arange(steps, dtype=torch.float64)).sum(1))


def trial_correlation(trials: Any) -> Tensor:
    """Pearson's correlation of each pair of trials (Horst et al. 2019): (n, …) -> (n·(n − 1)/2,), row by row.

    Its mean is the figure for one person. Raises `InvalidInput` for fewer than two trials; NaN for a constant one.
    """
    values = given(trials, "trials").flatten(1)
    if len(values) < 2:
        raise InvalidInput("trials: a single one has no pair\n  do: give two or more of one person")
    first, second = torch.triu_indices(len(values), len(values), 1)
    return pearson(values[first], values[second])


@dataclass(frozen=True, slots=True)
class Trials:
    """Whether one person's trials are explained alike (Horst et al. 2019).

    Attributes:
        within, between: the mean Pearson correlation of pairs of trials of one person, and of two.
        p: of the difference, by giving the trials to persons at random; no smaller than 1/(permutations + 1).
        persons: the mean within each person who has two trials or more.
    """

    within: float
    between: float
    p: float
    persons: dict[Any, float]


def trials_alike(trials: Any, persons: Sequence[Any], permutations: int = 999, seed: int = 0) -> Trials:
    """Compare the relevance of trials (n, …) within and between persons (n,); constant trials are left out.

    Raises `InvalidInput` where no person has two trials, or all are of one.
    """
    values = given(trials, "trials").flatten(1)
    if len(persons) != len(values):
        raise InvalidInput(f"persons: {len(persons)} for {len(values)} trials\n  do: give one a trial")
    moves = values.amax(1) > values.amin(1)
    names, who = np.unique(np.asarray(persons)[np.asarray(moves)], return_inverse=True)
    centred = values[moves] - values[moves].mean(1, keepdim=True)
    centred = centred / centred.norm(dim=1, keepdim=True)
    table = np.asarray(centred @ centred.T)
    same = (who[:, None] == who[None, :]) & ~np.eye(len(who), dtype=bool)
    count, others = int(same.sum()), int(len(who) * (len(who) - 1) - same.sum())
    if not count or not others:
        raise InvalidInput(
            "persons: no two trials of one person, or all of one\n  do: give several trials of several persons"
        )
    total = float(table.sum() - np.trace(table))

    def gap(inside: float) -> float:
        return inside / count - (total - inside) / others

    within = float(table[same].sum())
    draw, reached = np.random.default_rng(seed), 0
    for _ in range(permutations):
        order = draw.permutation(len(who))
        reached += gap(float(table[np.ix_(order, order)][same].sum())) >= gap(within) - 1e-12
    each = {
        name: float(table[np.ix_(who == i, who == i)][~np.eye(int((who == i).sum()), dtype=bool)].mean())
        for i, name in enumerate(names.tolist())
        if int((who == i).sum()) > 1
    }
    return Trials(within / count, (total - within) / others, (reached + 1) / (permutations + 1), each)


def fisher_mean(correlations: Any) -> float:
    """The mean of correlations by way of Fisher's z: tanh of the mean of artanh; NaN are left out."""
    values = torch.as_tensor(correlations, dtype=torch.float64)
    return float(torch.tanh(torch.atanh(values[torch.isfinite(values)]).mean()))


@dataclass(frozen=True, slots=True)
class Region:
    """How much of the positive relevance a region has: (B,) each.

    Attributes:
        share: Σ R⁺ inside / Σ R⁺.
        enrichment: share over the region's part of the area: 1 is chance. A large region has a large share by its size.
    """

    share: Tensor
    enrichment: Tensor


def regions(relevance: Any, masks: Mapping[str, Any]) -> dict[str, Region]:
    """Share and enrichment of named regions: objects of a game, parts of a face, bands of a spectrum.

    Args:
        relevance: (B, H, W), (B, C, H, W) whose channels are summed, or (B, …) with other places.
        masks: for each name (B, H, W), true inside. Samples without the region are NaN.
    """
    found = {}
    for name, mask in masks.items():
        share = relevance_mass(relevance, mask)
        area = (torch.as_tensor(mask) != 0).flatten(1).to(torch.float64).mean(1)
        found[name] = Region(share, ratio(share, area))
    return found
