"""Context use: how much relevance lies outside of the object (Lapuschkin et al., CVPR 2016).

μ = mean relevance outside the object's boxes / mean relevance inside: 1 for a map that is the same everywhere, 0 where
nothing outside counts. It describes the model; it is no grade of an explanation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.errors import InvalidInput
from relprop.evaluate.arrays import with_mask
from relprop.evaluate.localisation import context_ratio
from relprop.evaluate.statistics import LEVEL, RESAMPLES, Difference, difference, holm

ALL = "all classes"


@dataclass(frozen=True, slots=True)
class ContextRow:
    """The context use of one class.

    Attributes:
        name: the class; of the last row "all classes", the mean over them.
        used, dropped: samples, and those where μ is undefined: the box fills the image or lies outside of it, or the mean
            inside is not positive.
        mean, median: of μ; low, high: the 95 % bootstrap interval of the median.
        how_much: the median of Σ outside / Σ inside, which the sizes are not taken out of.
        share: the mean of outside/(outside + inside), of means: 0 to 1, and ½ for a uniform map.
        accuracy: the part of the samples whose prediction is right; NaN where it was not given.
    """

    name: str
    used: int
    dropped: int
    mean: float
    median: float
    low: float
    high: float
    how_much: float
    share: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class ContextUse:
    """How much a model uses the surroundings of what it names.

    Attributes:
        rows: a row a class, from the largest median down.
        overall: the means over the classes that have a value; its interval is from samples drawn anew in each class.
        classes: (B,) the class of each sample.
        ratio, how_much, share: (B,) μ, Σ outside / Σ inside, and the bounded share of each sample, NaN where undefined.
        pool: "positive" or "signed".
    """

    rows: tuple[ContextRow, ...]
    overall: ContextRow
    classes: tuple[str, ...]
    ratio: Tensor
    how_much: Tensor
    share: Tensor
    pool: str

    def as_dict(self) -> dict[str, Any]:
        """The tables as plain values, None for what is undefined."""
        return {
            "pool": self.pool,
            "classes": [_plain(row) for row in self.rows],
            "overall": _plain(self.overall),
        }

    def __str__(self) -> str:
        head = f"{'class':<20} used dropped   mean median   95 % interval  Σout/Σin  share accuracy"
        lines = [head, *(_line(row) for row in (*self.rows, self.overall))]
        return "\n".join(lines)


def _line(row: ContextRow) -> str:
    accuracy = "" if math.isnan(row.accuracy) else f"{row.accuracy:.1%}"
    return (
        f"{row.name:<20} {row.used:>4} {row.dropped:>7} {row.mean:>6.3f} {row.median:>6.3f}"
        f"   {row.low:>5.3f} … {row.high:>5.3f} {row.how_much:>9.3f} {row.share:>6.3f} {accuracy:>8}"
    )


def _plain(row: ContextRow) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(row).items()}


def context_use(
    relevance: Any,
    masks: Any,
    classes: Sequence[str],
    correct: Sequence[bool] | None = None,
    *,
    pool: str = "positive",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ContextUse:
    """Relevance outside over inside the boxes of the explained class, a class at a time.

    Args:
        relevance: (B, H, W), or (B, C, H, W) whose channels are summed; of the score of the class that the mask marks.
        masks: (B, H, W), true in the union of all boxes of that class (`box_mask`).
        classes: (B,) its name.
        correct: (B,) whether the prediction is right; for the accuracy of each class.
        pool: "positive" (R⁺), which is never negative, or "signed", as published.
        resamples, seed: of the bootstrap intervals.

    Raises `InvalidInput` for lengths and shapes that do not belong together, NaN and infinity.
    """
    values, inside = with_mask(relevance, masks)
    ratio = context_ratio(values, inside, pool)
    how_much = context_ratio(values, inside, pool, area=False)
    return context_table(ratio, how_much, classes, correct, pool=pool, resamples=resamples, seed=seed)


def context_table(
    ratio: Tensor,
    how_much: Tensor,
    classes: Sequence[str],
    correct: Sequence[bool] | None = None,
    *,
    pool: str = "positive",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ContextUse:
    """The tables of `context_use` from each sample's ratios (`relprop.evaluate.context_ratio`), with and without areas: (B,)."""
    names = tuple(str(name) for name in classes)
    for what, given in (("classes", names), ("correct", correct)):
        if given is not None and len(given) != len(ratio):
            raise InvalidInput(f"{what}: {len(given)} for {len(ratio)} samples\n  do: give one a sample")
    share = torch.where(ratio >= 0, ratio / (1 + ratio), torch.full_like(ratio, torch.nan))
    right = np.full(len(names), np.nan) if correct is None else np.asarray([bool(c) for c in correct], float)
    draw = np.random.default_rng(seed)
    columns = [*(np.asarray(one) for one in (ratio, how_much, share)), right]
    rows, drawn = [], []
    for name in sorted(set(names)):
        own = np.array([one == name for one in names])
        row, medians = _row(name, [one[own] for one in columns], resamples, draw)
        rows.append(row)
        drawn.append(medians)
    rows.sort(key=lambda row: -row.median if math.isfinite(row.median) else math.inf)
    return ContextUse(tuple(rows), _overall(rows, drawn), names, ratio, how_much, share, pool)


def _row(
    name: str, columns: Sequence[np.ndarray], resamples: int, draw: np.random.Generator
) -> tuple[ContextRow, np.ndarray]:
    """The row of one class, and the medians of its resamples."""
    ratio, how_much, share, right = columns
    kept = np.isfinite(ratio)
    values = ratio[kept]
    used, dropped = int(kept.sum()), int((~kept).sum())
    accuracy = float(right.mean())
    nan = math.nan
    if not used:
        return ContextRow(name, 0, dropped, nan, nan, nan, nan, nan, nan, accuracy), np.full(resamples, nan)
    medians = np.median(values[draw.integers(0, used, (resamples, used))], axis=1)
    low, high = _interval(medians) if used > 1 else (nan, nan)
    shares = share[np.isfinite(share)]
    row = ContextRow(
        name,
        used,
        dropped,
        float(values.mean()),
        float(np.median(values)),
        low,
        high,
        float(np.median(how_much[kept])),
        float(shares.mean()) if len(shares) else nan,
        accuracy,
    )
    return row, medians


def _overall(rows: Sequence[ContextRow], drawn: Sequence[np.ndarray]) -> ContextRow:
    """The means over classes, each class counting once."""
    defined = [row for row in rows if row.used]

    def mean(name: str) -> float:
        values = np.array([getattr(row, name) for row in defined], dtype=np.float64)
        return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else math.nan

    low, high = (math.nan, math.nan)
    if sum(row.used > 1 for row in defined):
        low, high = _interval(np.nanmean(np.stack([one for one in drawn if np.isfinite(one).all()]), axis=0))
    return ContextRow(
        ALL,
        sum(row.used for row in rows),
        sum(row.dropped for row in rows),
        mean("mean"),
        mean("median"),
        low,
        high,
        mean("how_much"),
        mean("share"),
        mean("accuracy"),
    )


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class ContextGap:
    """Whether one model uses more context than another on the same samples.

    Attributes:
        overall: the paired difference of the bounded shares, first − second, over all samples.
        classes: the same in each class with at least `least` samples.
        corrected: the p-value of each of these classes (Wilcoxon), Holm-corrected for how many they are.
    """

    overall: Difference
    classes: dict[str, Difference]
    corrected: dict[str, float]


def context_gap(first: ContextUse, second: ContextUse, least: int = 5, seed: int = 0) -> ContextGap:
    """Compare the context use of two models sample by sample; a sample that is undefined for one counts for neither.

    The bounded share is compared, whose differences no single small denominator rules. scipy is needed.
    Raises `InvalidInput` where the two are not of the same samples in the same order.
    """
    if first.classes != second.classes:
        raise InvalidInput(
            f"context_gap: {len(first.classes)} and {len(second.classes)} samples, not of the same classes in the same order\n"
            "  do: explain the same samples with both models"
        )
    a, b = first.share.numpy(), second.share.numpy()
    names = np.array(first.classes)
    both = np.isfinite(a) & np.isfinite(b)
    found = {
        name: difference(a[names == name], b[names == name], seed=seed)
        for name in sorted(set(first.classes))
        if int(both[names == name].sum()) >= least
    }
    corrected = holm([one.wilcoxon for one in found.values()])
    return ContextGap(difference(a, b, seed=seed), found, dict(zip(found, corrected, strict=True)))
