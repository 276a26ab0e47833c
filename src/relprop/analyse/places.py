"""Places in a class's maps that divide it in two: some samples have relevance there, the others have none.

A mark that was added to some pictures leaves such a trace: the two groups are far apart at the place, their difference lies
in the place, and everywhere else the maps of the two groups are alike. A way to write a digit or to pose divides a class
as clearly, but there the whole map moves. `Findings.suspicion` is made of these three observations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.analyse.result import Place

SIDES = (2, 3, 4, 6)
"""The sides of the boxes that are looked at, in cells of the grid."""

APART = (3.5, 6.0)
"""Ashman's D up to the first is no division, from the second on a complete one."""

STRONG = 0.03
"""From this much of the relevance on (above what the rest of the class has there) a place counts in full."""

COMMON = (0.7, 0.95)
"""A group of up to the first part of its class may be an addition; from the second on, the others lack something."""

LIKE = 0.05
"""A mean squared effect elsewhere of this size divides the suspicion's part by e."""

SEARCHED = 1_500
"""So many samples of a class, drawn at random, are searched for places; all are then assigned."""

FEWEST = 10
"""A group, and the rest of its class, of fewer samples can look divided by chance."""

KEPT = 8
"""So many boxes of each size, those that divide best, are looked at closely."""

STRAGGLERS = 5.0
"""Deviations below a group's median from which on a sample does not belong to it."""

Reals = NDArray[np.float64]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Findings:
    """How a group of samples differs from the rest of its class at one place.

    Attributes:
        box: top, left, bottom, right in cells of the grid.
        apart: Ashman's D = √2 |m₁ − m₂| / √(v₁ + v₂) of the square root of the share of positive relevance in the box
            (Ashman, Bird and Zepf 1994); above 2 two groups are separate.
        compact: of all that the group's mean map has more than the rest's, the part that lies in the box (0…1).
        elsewhere: the mean squared effect size (Cohen's d²) of the cells away from the box, without what chance gives; infinite
            where these are less than half of the map, too few to say that the maps are alike but for the place.
        share, usual: of the positive relevance in the box: the group's mean and the rest's.
        part: of the class that is in the group.
    """

    box: Box
    apart: float
    compact: float
    elsewhere: float
    share: float
    usual: float
    part: float

    @property
    def suspicion(self) -> float:
        """0…1: the cube root of apart × compact² × alike elsewhere, less where the place or the rest of the class is small."""
        alike = float(np.exp(-max(self.elsewhere, 0.0) / LIKE))
        strong = min(max((self.share - self.usual) / STRONG, 0.0), 1.0)
        addition = 1 - _ramp(self.part, COMMON)
        return float((_ramp(self.apart, APART) * self.compact**2 * alike * strong * addition) ** (1 / 3))


@dataclass(frozen=True, slots=True)
class Split:
    """A place that divides a class: where, and which samples have more relevance there than `threshold`.

    Attributes:
        findings: of the group above the threshold.
        low, high: the two groups' mean of the square root of the share; threshold is between.
    """

    findings: Findings
    threshold: float
    low: float
    high: float


def search(shares: NDArray[np.float32], smallest: float = 0.03, seed: int = 0) -> Split | None:
    """The place that divides a class in the most suspicious way, or None where none divides it at all.

    Args:
        shares: (n, h, w), each map sums to 1.
        smallest: groups of a smaller part of the class are not looked for (and none of fewer than `FEWEST` samples).
        seed: of the draw of `SEARCHED` samples.
    """
    maps = _drawn(shares, seed)
    least = max(FEWEST, int(np.ceil(smallest * len(maps))))
    if len(maps) < 2 * least:
        return None
    found: list[Split] = []
    for height, width in _sizes(*maps.shape[1:]):
        values, places = _roots(maps, height, width)
        apart, thresholds, low, high = _divisions(values, least)
        for column in np.argsort(-apart)[:KEPT]:
            if apart[column] > APART[0]:
                top, left = places[column]
                members = values[:, column] > thresholds[column]
                findings = look(maps, members, (top, left, top + height, left + width), float(apart[column]))
                found.append(
                    Split(findings, float(thresholds[column]), float(low[column]), float(high[column]))
                )
    best = max(found, key=lambda split: split.findings.suspicion, default=None)
    return None if best is None else _refined(maps, best, least)


def _refined(maps: NDArray[np.float32], split: Split, least: int) -> Split:
    """The split with its threshold where both groups end.

    That is where both are equally many deviations away: of the lower group by mean and standard deviation, so that its tail of
    samples that have something of their own at the place counts; of the upper one by median and median deviation, which
    stragglers do not move. It is not below Otsu's threshold, and nothing `STRAGGLERS` deviations below the upper median belongs.
    """
    values = np.sqrt(share_in(maps, split.findings.box).astype(np.float64))
    threshold, low, high = split.threshold, split.low, split.high
    for _ in range(10):
        below, above = values[values <= threshold], values[values > threshold]
        if min(len(below), len(above)) < least:
            return split
        low, high = float(below.mean()), float(np.median(above))
        floor = 0.02 * (high - low)
        spread = max(float(below.std()), floor), max(1.4826 * float(np.median(np.abs(above - high))), floor)
        even = (low * spread[1] + high * spread[0]) / sum(spread)
        threshold = max(split.threshold, even, high - STRAGGLERS * spread[1])
    members = values > threshold
    if min(members.sum(), (~members).sum()) < least:
        return split
    here, there = values[members], values[~members]
    apart = float(ashman(here.mean(), there.mean(), here.var(), there.var()))
    return Split(look(maps, members, split.findings.box, apart), threshold, low, high)


def compare(shares: NDArray[np.float32], members: Mask, seed: int = 0) -> Findings | None:
    """The place where given members of a class differ from the rest in the most suspicious way.

    None where either side has fewer than `FEWEST` samples.
    """
    rows = _rows(len(shares), seed)
    maps, inside = shares[rows], members[rows]
    if min(inside.sum(), (~inside).sum()) < FEWEST:
        return None
    found: list[Findings] = []
    for height, width in _sizes(*maps.shape[1:]):
        values, places = _roots(maps, height, width)
        here, there = values[inside], values[~inside]
        apart = ashman(here.mean(0), there.mean(0), here.var(0), there.var(0))
        apart = np.where(here.mean(0) > there.mean(0), apart, 0)
        for column in np.argsort(-apart)[:KEPT]:
            top, left = places[column]
            found.append(look(maps, inside, (top, left, top + height, left + width), float(apart[column])))
    return max(found, key=lambda one: (one.suspicion, one.apart * one.compact))


def look(shares: NDArray[np.float32], members: Mask, box: Box, apart: float) -> Findings:
    """How members differ from the others at a box and elsewhere."""
    top, left, bottom, right = box
    here, there = shares[members].mean(0), shares[~members].mean(0)
    more = np.maximum(here - there, 0)
    compact = float(more[top:bottom, left:right].sum() / max(more.sum(), 1e-12))
    around = np.zeros(shares.shape[1:], dtype=bool)
    around[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = True
    share, usual = (float(m[top:bottom, left:right].sum()) for m in (here, there))
    elsewhere = _effect(shares[:, ~around], members) if around.mean() <= 0.5 else float("inf")
    return Findings(box, apart, compact, elsewhere, share, usual, float(members.mean()))


def _effect(rest: NDArray[np.float32], members: Mask) -> float:
    """The mean of Cohen's d² over cells, of the square roots of each map's shares among these cells alone.

    Less what chance gives, plus its standard error: that a few samples of a few cells are alike is not yet evidence.
    """
    total = rest.sum(1, keepdims=True)
    roots = np.sqrt(np.divide(rest, total, out=np.zeros_like(rest), where=total > 1e-9))
    here, there = roots[members], roots[~members]
    sizes = len(here), len(there)
    variance = (sizes[0] * here.var(0) + sizes[1] * there.var(0)) / len(roots) + 1e-4
    squared = (here.mean(0) - there.mean(0)) ** 2 / variance
    alive = variance > 2e-4
    chance = (
        1 / sizes[0] + 1 / sizes[1]
    ) * alive.mean()  # what d² of groups that do not differ has on average,
    error = chance * np.sqrt(2 / max(alive.sum(), 1))  # and its standard error, as if cells were independent
    return float(squared.mean() - chance + error)


def ashman(m1: Any, m2: Any, v1: Any, v2: Any) -> Reals:
    """Ashman's D of two groups by their means and variances."""
    return np.asarray(np.sqrt(2) * np.abs(m1 - m2) / np.sqrt(v1 + v2 + 1e-12))


def share_in(shares: NDArray[np.float32], box: Box) -> NDArray[np.float32]:
    """(n,) the share of each map's positive relevance that lies in a box."""
    top, left, bottom, right = box
    found: NDArray[np.float32] = shares[:, top:bottom, left:right].sum((1, 2))
    return found


def _ramp(value: float, ends: tuple[float, float]) -> float:
    return min(max((value - ends[0]) / (ends[1] - ends[0]), 0.0), 1.0)


def as_place(box: Box, grid: tuple[int, int], size: tuple[int, int]) -> Place:
    """A box of cells as fractions of a map of `size` pixels, of which each cell holds ⌈size / grid⌉."""
    tall, wide = (-(-pixels // cells) for pixels, cells in zip(size, grid, strict=True))
    top, left, bottom, right = box
    return Place(
        top * tall / size[0],
        left * wide / size[1],
        min(bottom * tall / size[0], 1.0),
        min(right * wide / size[1], 1.0),
    )


def _drawn(shares: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    return shares[_rows(len(shares), seed)]


def _rows(n: int, seed: int) -> NDArray[np.int64]:
    if n <= SEARCHED:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, SEARCHED, replace=False))


def _sizes(height: int, width: int) -> list[tuple[int, int]]:
    """The sizes of boxes in a grid: at most half of it a side; a grid of one row has boxes of one row."""
    tall = [1] if height == 1 else [side for side in SIDES if side <= height / 2] or [1]
    wide = [side for side in SIDES if side <= width / 2] or [1]
    return [(h, w) for h in tall for w in wide]


def _roots(maps: NDArray[np.float32], height: int, width: int) -> tuple[Reals, list[tuple[int, int]]]:
    """(n, places) square roots of the shares in all boxes of a size, and the boxes' upper left cells."""
    sums = np.pad(maps.cumsum(1, dtype=np.float64).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    boxes = (
        sums[:, height:, width:]
        - sums[:, :-height, width:]
        - sums[:, height:, :-width]
        + sums[:, :-height, :-width]
    )
    places = [(top, left) for top in range(boxes.shape[1]) for left in range(boxes.shape[2])]
    return np.sqrt(np.maximum(boxes, 0)).reshape(len(maps), -1), places


def _divisions(values: Reals, least: int) -> tuple[Reals, Reals, Reals, Reals]:
    """For each column the threshold with the least variance within two groups (Otsu 1979), and how far apart they are.

    values: (n, columns). Returns Ashman's D, the threshold, the lower and the upper mean, each (columns,).
    """
    n, columns = values.shape
    ordered = np.sort(values, 0)
    first, second = ordered.cumsum(0), (ordered**2).cumsum(0)
    below = np.arange(least, n - least + 1)[:, None]
    low = first[below[:, 0] - 1] / below
    high = (first[-1] - first[below[:, 0] - 1]) / (n - below)
    spread_low = np.maximum(second[below[:, 0] - 1] / below - low**2, 0)
    spread_high = np.maximum((second[-1] - second[below[:, 0] - 1]) / (n - below) - high**2, 0)
    best = (below * spread_low + (n - below) * spread_high).argmin(0)
    pick = best, np.arange(columns)
    apart = ashman(low[pick], high[pick], spread_low[pick], spread_high[pick])
    edge = least + best
    thresholds = (ordered[edge - 1, pick[1]] + ordered[edge, pick[1]]) / 2
    return apart, thresholds, low[pick], high[pick]
