"""Faithfulness by subsets: do sums of relevance over regions predict what the score loses when they are replaced?

The drops do not depend on relevance: one set of masks and scores serves every method (`drops`), and a metric is then a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.errors import InvalidInput
from relprop.evaluate.arrays import rows
from relprop.evaluate.perturb import Experiment
from relprop.evaluate.scoring import score_rows
from relprop.evaluate.similarity import pearson


def random_subsets(
    samples: Sequence[int], regions: int, size: int, count: int = 100, seed: int = 0
) -> Tensor:
    """Random subsets of `size` regions for each sample number, (B, count, regions) true inside.

    Drawn by the seed and the sample's number alone. Raises `InvalidInput` for a size that leaves nothing or no choice.
    """
    import numpy as np

    if not 1 <= size <= regions or count < 2:
        raise InvalidInput(
            f"subsets: {count} of {size} of {regions} regions\n  do: give two or more, of 1 to {regions} regions"
        )
    masks = torch.zeros(len(samples), count, regions, dtype=torch.bool)
    for row, sample in enumerate(samples):
        generator = np.random.default_rng([seed, int(sample), size, 3])
        drawn = np.stack([generator.choice(regions, size, replace=False) for _ in range(count)])
        masks[row].scatter_(1, torch.from_numpy(drawn), True)
    return masks


def drops(experiment: Experiment, subsets: Any) -> Tensor:
    """f(x) − f(x with the regions of a subset replaced), mean over the draws, float64 (B, S).

    subsets: true where a region is replaced, (S, N) for all samples or (B, S, N).
    """
    masks = torch.as_tensor(subsets).to(experiment.scorer.inputs.device) != 0
    batch = len(experiment.scorer)
    if masks.dim() == 2:
        masks = masks.expand(batch, -1, -1)
    if masks.dim() != 3 or len(masks) != batch or masks.shape[2] != experiment.regions.count:
        raise InvalidInput(
            f"subsets: shape {tuple(masks.shape)} for {batch} samples of {experiment.regions.count} regions\n"
            "  do: give (S, regions), or (B, S, regions)"
        )
    number = masks.shape[1]
    sample = torch.arange(batch, device=masks.device).repeat_interleave(number)
    flat = masks.reshape(-1, masks.shape[2])
    found = torch.zeros(len(flat), dtype=torch.float64, device=masks.device)
    for draw in range(experiment.draws):
        found += score_rows(experiment.scorer, sample, experiment.masked(flat, draw), experiment.most)
    return experiment.scorer.first[:, None] - found.reshape(batch, number) / experiment.draws


def sums(region_relevance: Tensor, subsets: Any) -> Tensor:
    """The relevance of each subset, (B, N) and (S, N) or (B, S, N) -> (B, S)."""
    masks = torch.as_tensor(subsets).to(region_relevance)
    return torch.einsum("bn,sn->bs" if masks.dim() == 2 else "bn,bsn->bs", region_relevance, masks)


def subset_correlation(relevance: Any, subsets: Any, lost: Any) -> Tensor:
    """Pearson's correlation over subsets of summed relevance and of drops (Bhatt et al. 2020), (B,); NaN without variance.

    relevance: (B, N) of regions; subsets: (S, N) or (B, S, N); lost: (B, S). Faithfulness correlation for random subsets of one
    size, sensitivity-n (Ancona et al. 2018) for subsets of n, faithfulness estimate (Alvarez-Melis and Jaakkola 2018) for
    single regions.
    """
    total = sums(rows(relevance), subsets)
    lost = rows(lost, "drops")
    small = 1e-12 * lost.abs().amax(1).clamp(min=torch.finfo(torch.float64).tiny)
    still = (lost.amax(1) - lost.amin(1)) <= small
    return (
        torch.where(still, torch.full_like(lost[:, 0], torch.nan), pearson(total, lost))
        if total.shape[1] > 1
        else torch.full_like(lost[:, 0], torch.nan)
    )


def infidelity_of(predicted: Any, lost: Any, scaled: bool = False) -> Tensor:
    """E[(a − b)²] of what relevance predicts, a, and of what is lost, b (Yeh et al. 2019), both (B, S); (B,).

    a is Iᵀφ for gradient-like φ and a perturbation I, and the sum over the replaced regions for relevance, which has the units
    of the score. `scaled` first multiplies a by the best factor, E[ab]/E[a²].
    """
    a, b = rows(predicted, "predicted"), rows(lost, "drops")
    if scaled:
        square = a.square().mean(1, keepdim=True)
        a = a * torch.where(square > 0, (a * b).mean(1, keepdim=True) / square, torch.ones_like(square))
    return (a - b).square().mean(1)


def log_sizes(regions: int, count: int = 8, largest: float = 0.8) -> tuple[int, ...]:
    """Sizes from 1 to a share of all regions in equal ratios, without repeats: the n of sensitivity-n."""
    top = max(1, int(largest * regions))
    found = (
        torch.logspace(0, torch.tensor(float(top)).log10().item(), count, dtype=torch.float64).round().long()
    )
    return tuple(sorted(set(found.clamp(1, top).tolist())))


def monotonicity_of(scores: Any) -> Tensor:
    """The share of steps at which a curve does not fall (Arya et al. 2019 ask whether it is 1), (B,).

    scores: (B, L+1), features added in ascending |R|. Rounding is no fall: up to 1e-9 of the curve's range is allowed.
    """
    curve = rows(scores, "scores")
    slack = 1e-9 * (curve.amax(1, keepdim=True) - curve.amin(1, keepdim=True))
    return (curve.diff(dim=1) >= -slack).to(torch.float64).mean(1)
