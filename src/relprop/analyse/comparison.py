"""Two models on one data set: where they agree, and where their strategies differ.

A model's strategy for a class is where its relevance lies: in the cells of a grid over pictures, on the words of
texts (`words.py`). Each sample's relevance is divided by its Σ|R| over the places, so that models of other scales of scores can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from relprop.analyse.graph import needed
from relprop.analyse.signs import FLIPS, Flipped, sign_flips
from relprop.errors import InvalidInput
from relprop.evaluate.arrays import given, ratio
from relprop.evaluate.similarity import spearman
from relprop.evaluate.statistics import bootstrap

LEVEL = 0.05
LEAST = 6
"""A class with fewer samples is not tested: no sign-flip test can show anything on it."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """What two models see in one place, or one word, of the samples of one class.

    Attributes:
        group: the class.
        name: the word, or the cell: "row 3, column 5".
        first, second: the mean part of Σ|R| that each model has there, signed.
        z, p: of the paired sign-flip test, p corrected for all places of all classes.
        count: samples that say something about it.
    """

    group: str
    name: str
    first: float
    second: float
    z: float
    p: float
    count: int


@dataclass(frozen=True, slots=True)
class Alike:
    """How alike the relevance of two models is on the samples of one class.

    Attributes:
        group: the class; count: samples that both explain for the same target.
        similarity: the mean Spearman correlation; low, high: its 95 % bootstrap interval.
        overlap: the Jaccard index of the two lists of most relevant places or words.
        first, second: these lists, most relevant first.
    """

    group: str
    count: int
    similarity: float
    low: float
    high: float
    overlap: float
    first: tuple[tuple[str, float], ...]
    second: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """Two models on the same samples.

    Attributes:
        names: of the two models.
        samples: how many; compared: those that both explain for the same target, which strategies are compared on.
        accuracy: of each, NaN where labels are not known; mcnemar: the exact p-value that both err equally often.
        agree: the part of the samples with the same prediction.
        classes: a row a class; contrasts: what was tested, the smallest p-value first.
    """

    names: tuple[str, str]
    samples: int
    compared: int
    accuracy: tuple[float, float]
    mcnemar: float
    agree: float
    classes: tuple[Alike, ...]
    contrasts: tuple[Contrast, ...]

    def different(self, level: float = LEVEL) -> tuple[Contrast, ...]:
        """Where the strategies differ for sure: corrected p below `level`, which holds for all of them together."""
        return tuple(one for one in self.contrasts if one.p < level)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, None for what is undefined."""
        found: dict[str, Any] = _plain(asdict(self))
        return found

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(found: ModelComparison, most: int = 12) -> list[str]:
    a, b = found.names
    lines = [f"{a} and {b} on {found.samples} samples: {found.agree:.1%} with the same prediction"]
    if not math.isnan(found.accuracy[0]):
        lines.append(
            f"accuracy {found.accuracy[0]:.1%} and {found.accuracy[1]:.1%} (McNemar p = {found.mcnemar:.2g})"
        )
    lines.append(
        f"{found.compared} samples explained for the same target; Spearman correlation of their relevance:"
    )
    for one in found.classes:
        lines.append(
            f"  {one.group:<20} n = {one.count:<6} {one.similarity:+.3f} ({one.low:+.3f} … {one.high:+.3f}),"
            f" most relevant shared {one.overlap:.0%}"
        )
    sure = found.different()
    lines.append(f"strategies differ at {len(sure)} of {len(found.contrasts)} places (corrected p < {LEVEL})")
    lines += [
        f"  {one.group:<20} {one.name:<20} {one.first:+.4f} {one.second:+.4f}  p = {one.p:.2g}"
        for one in sure[:most]
    ]
    if len(sure) > most:
        lines.append(f"  and {len(sure) - most} more")
    return lines


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models' answers to the same samples, in the same order.

    Attributes:
        targets: the explained class of each, (B,) int64 a model.
        predictions: the predicted class of each; None where they are the targets.
        labels: the true classes, −1 where not known, or None.
        classes: names of the classes by their index; an index without a name is called "class 7".
        names: of the two models.
    """

    targets: tuple[Any, Any]
    predictions: tuple[Any, Any] | None = None
    labels: Any = None
    classes: Sequence[str] = ()
    names: tuple[str, str] = ("first", "second")


@dataclass(frozen=True, slots=True)
class Group:
    """The samples of one class that both models explain, and what each has at every place: (n, m), dense or sparse."""

    name: str
    rows: np.ndarray
    first: Any
    second: Any


def answers(pair: Paired, count: int) -> tuple[np.ndarray, list[tuple[str, np.ndarray]], dict[str, Any]]:
    """The samples with one target for both, these by class, and the figures of predictions alone."""
    targets = [_ids("targets", one, count) for one in pair.targets]
    predictions = [_ids("predictions", one, count) for one in pair.predictions or pair.targets]
    same = np.flatnonzero(targets[0] == targets[1])
    groups = [
        (_class_name(pair.classes, int(index)), same[targets[0][same] == index])
        for index in np.unique(targets[0][same])
    ]
    figures: dict[str, Any] = {
        "names": pair.names,
        "samples": count,
        "compared": len(same),
        "agree": float((predictions[0] == predictions[1]).mean()),
        "accuracy": (math.nan, math.nan),
        "mcnemar": math.nan,
    }
    if pair.labels is not None:
        labels = _ids("labels", pair.labels, count)
        known = labels >= 0
        if known.any():
            right = [(one == labels)[known] for one in predictions]
            figures["accuracy"] = float(right[0].mean()), float(right[1].mean())
            figures["mcnemar"] = mcnemar(int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()))
    return same, groups, figures


def _ids(name: str, values: Any, count: int) -> np.ndarray:
    found = np.asarray(values)
    if found.shape != (count,):
        raise InvalidInput(
            f"{name}: shape {found.shape} for {count} samples\n  do: give one class a sample, in their order"
        )
    return found.astype(np.int64)


def _class_name(classes: Sequence[str], index: int) -> str:
    return classes[index] if 0 <= index < len(classes) else f"class {index}"


def mcnemar(first: int, second: int) -> float:
    """The exact two-sided p-value that of first + second samples only one model is right on, either is so equally often."""
    test = needed("scipy.stats").binomtest
    return float(test(first, first + second).pvalue) if first + second else 1.0


def tested(
    groups: Sequence[Group], places: Sequence[Sequence[str]], flips: int, seed: int
) -> tuple[Contrast, ...]:
    """Every place of every class with enough samples, tested together; the smallest p-value first."""
    enough = [i for i, one in enumerate(groups) if len(one.rows) >= LEAST]
    found = sign_flips([groups[i].first - groups[i].second for i in enough], flips, seed)
    rows = [row for i, test in zip(enough, found, strict=True) for row in _rows(groups[i], places[i], test)]
    return tuple(sorted(rows, key=lambda one: (one.p, -abs(one.z))))


def _rows(group: Group, places: Sequence[str], test: Flipped) -> list[Contrast]:
    means = [np.asarray(one.mean(0)).ravel() for one in (group.first, group.second)]
    return [
        Contrast(
            group.name,
            name,
            float(means[0][i]),
            float(means[1][i]),
            float(test.z[i]),
            float(test.p[i]),
            int(test.count[i]),
        )
        for i, name in enumerate(places)
        if math.isfinite(float(test.z[i]))
    ]


def top(
    values: np.ndarray, places: Sequence[str], most: int
) -> tuple[tuple[tuple[str, float], ...], set[str]]:
    """The places with the largest values, none of 0 or less: with their values, and as a set."""
    order = [int(i) for i in np.argsort(-values, kind="stable")[:most] if values[i] > 0]
    return tuple((places[i], float(values[i])) for i in order), {places[i] for i in order}


def jaccard(first: set[str], second: set[str]) -> float:
    """The part of both together that they share; NaN for two empty sets."""
    return len(first & second) / len(first | second) if first | second else math.nan


def similarity_of(first: Any, second: Any, seed: int = 0) -> tuple[float, float, float]:
    """The mean of correlations over samples and its interval; a sample without one is left out."""
    values = np.asarray(spearman(first, second))
    return mean_of(values, seed)


def mean_of(values: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """The mean of what is defined, and its bootstrap interval."""
    kept = values[np.isfinite(values)]
    if not len(kept):
        return math.nan, math.nan, math.nan
    low, high = bootstrap(kept[:, None], seed=seed)
    return float(kept.mean()), float(low[0]), float(high[0])


# ---------------------------------------------------------------- places


def cells(relevance: Any, grid: int = 8) -> Tensor:
    """The relevance in each cell of a grid: (B, C, H, W) or (B, H, W) -> (B, g·g); channels are summed."""
    values = given(relevance)
    if values.dim() not in (3, 4):
        raise InvalidInput(
            f"relevance: shape {tuple(values.shape)} is of no pictures\n  do: give (B, H, W) or (B, C, H, W)"
        )
    values = values.sum(1) if values.dim() == 4 else values
    if not 1 <= grid <= min(values.shape[1:]):
        raise InvalidInput(
            f"grid: {grid} cells a side of maps {tuple(values.shape[1:])}\n"
            f"  do: give 1 to {min(values.shape[1:])}"
        )
    area = values.shape[1] * values.shape[2] / grid**2
    return F.interpolate(values[:, None], (grid, grid), mode="area")[:, 0].flatten(1) * area


def cell_names(grid: int) -> list[str]:
    """What the cells of a grid are called, row by row."""
    return [f"row {i + 1}, column {j + 1}" for i in range(grid) for j in range(grid)]


def steps(relevance: Any, count: int = 64) -> Tensor:
    """The relevance in equal steps of time: (B, T) or (B, C, T), channels summed -> (B, count)."""
    values = given(relevance)
    values = values.sum(1) if values.dim() == 3 else values
    if values.dim() != 2 or not 1 <= count <= values.shape[1]:
        raise InvalidInput(
            f"relevance: shape {tuple(values.shape)} in {count} steps\n  do: give (B, T) or (B, C, T) and at most T"
        )
    return F.interpolate(values[:, None], count, mode="area")[:, 0] * (values.shape[1] / count)


def compare_maps(
    first: Any, second: Any, pair: Paired, *, grid: int = 8, most: int = 5, flips: int = FLIPS, seed: int = 0
) -> ModelComparison:
    """Compare two models by the relevance maps of the same pictures, which may be of different sizes.

    Args:
        first, second: (B, C, H, W) or (B, H, W), sample for sample.
        grid: cells a side; every cell of every class is tested.

    The other arguments and what is raised are those of `compare_places`.
    """
    pooled = cells(first, grid), cells(second, grid)
    return compare_places(*pooled, cell_names(grid), pair, most=most, flips=flips, seed=seed)


def compare_places(
    first: Any,
    second: Any,
    places: Sequence[str],
    pair: Paired,
    *,
    most: int = 5,
    flips: int = FLIPS,
    seed: int = 0,
) -> ModelComparison:
    """Compare two models by the relevance of the same places of the same samples: features, cells, steps.

    Args:
        first, second: (B, m), sample for sample; each row is divided by its Σ|R|.
        places: names of the m places; every place of every class is tested.
        pair: the models' targets, predictions and labels. Strategies are compared on samples that both explain for one class.
        most: how many places are listed as most relevant.
        flips, seed: of the sign-flip test.

    Raises `InvalidInput` for shapes that are not of the same samples, NaN and infinity. scipy is needed.
    """
    values = [given(first, "first"), given(second, "second")]
    if values[0].shape != values[1].shape:
        raise InvalidInput(
            f"compare: {_shape(values[0])} and {_shape(values[1])}\n  do: explain the same samples with both models"
        )
    if values[0].dim() != 2 or values[0].shape[1] != len(places):
        raise InvalidInput(
            f"places: {len(places)} names for relevance of shape {tuple(values[0].shape)}\n  do: give (B, m) and m names"
        )
    _, named, figures = answers(pair, len(values[0]))
    totals = [one.abs().sum(1) for one in values]
    arrays = [
        np.asarray(ratio(one, total[:, None].expand_as(one)))
        for one, total in zip(values, totals, strict=True)
    ]
    defined = np.asarray((totals[0] > 0) & (totals[1] > 0))
    groups, alike = [], []
    for name, rows in named:
        rows = rows[defined[rows]]
        if not len(rows):
            continue
        one, other = arrays[0][rows], arrays[1][rows]
        groups.append(Group(name, rows, one, other))
        lists = [top(held.mean(0), places, most) for held in (one, other)]
        figure = similarity_of(one, other, seed)
        alike.append(
            Alike(name, len(rows), *figure, jaccard(lists[0][1], lists[1][1]), lists[0][0], lists[1][0])
        )
    contrasts = tested(groups, [places] * len(groups), flips, seed)
    return ModelComparison(**figures, classes=tuple(alike), contrasts=contrasts)


def _shape(values: Tensor) -> str:
    return f"{values.shape[0]} samples of {values.shape[1]} places"
