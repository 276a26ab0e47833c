"""What a comparison of methods found: rows with intervals, tiers that these samples tell apart, tables as text and as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.evaluate import statistics
from relprop.evaluate.statistics import Difference
from relprop.evaluate.table import METRICS

Array = NDArray[np.float64]

CURVED = {"aopc_morf": ("morf",), "aopc_lerf": ("lerf",), "abpc": ("morf", "lerf"), "naopc": ("morf",)}
"""The metrics whose curves are kept, and of which orders."""

SANITY, ALIKE = ("mprt", "random_logit", "data_randomisation"), 0.99
"""The checks of what an explanation depends on, and the mean similarity from which on it depends on nothing."""


@dataclass(frozen=True, slots=True)
class Row:
    """One method under one metric.

    Attributes:
        method, metric: their names.
        mean, low, high: over the samples that are defined for every method, with a bootstrap interval of 95 %.
        used, total: samples that are defined for every method, and all of them.
        tier: 1 the best; methods in one tier are not told apart by these samples.
        behind: the paired difference to the best method over the same samples (0 for itself), and `p` its Wilcoxon test, Holm-corrected over all pairs.
        above_random: the mean difference to the method "random"; NaN where it was not compared.
        needed: samples that would show the difference to the best with 80 % power; NaN for the best itself.
    """

    method: str
    metric: str
    mean: float
    low: float
    high: float
    used: int
    total: int
    tier: int
    behind: Difference | None
    p: float
    above_random: float
    needed: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found.

    Attributes:
        methods, metrics: names, in the order they were given.
        values: for each metric the value of each sample and method, float64 (N, M); NaN where undefined.
        curves: for each order the mean scores (N, M, L+1) of every sample and method, where curves were drawn.
        fractions: the share of regions replaced at each point of the curves.
        seconds: what explaining took each method, all samples together.
        settings: everything that the values depend on, as plain values.
        notes: for a metric and a method why values are undefined and where, as far as it is known.
    """

    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    values: Mapping[str, Array]
    curves: Mapping[str, Array] = field(repr=False)
    fractions: tuple[float, ...] = field(repr=False)
    seconds: Mapping[str, float] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    notes: Mapping[tuple[str, str], str] = field(default_factory=dict, repr=False)

    def rows(self, metric: str) -> list[Row]:
        """The methods under one metric, the best first (in the given order where neither direction is better)."""
        values, direction = self.values[metric], METRICS[metric].direction
        up = direction != "lower"
        kept = statistics.paired_rows(values)
        means = kept.mean(0) if len(kept) else np.full(len(self.methods), np.nan)
        low, high = statistics.bootstrap(values)
        tiers = statistics.tiers(values, up)
        order = list(range(len(means)))
        if direction != "describes" and len(kept):
            order = [int(i) for i in np.argsort(-means if up else means, kind="stable")]
        best = order[0]
        against = {i: statistics.difference(kept[:, i], kept[:, best]) for i in order if i != best}
        pairs = [(i, j) for i in range(len(means)) for j in range(i + 1, len(means))]
        corrected = statistics.holm(
            [statistics.difference(kept[:, i], kept[:, j], 2).wilcoxon for i, j in pairs]
        )
        p = dict(zip(pairs, corrected, strict=True))
        chance = means[self.methods.index("random")] if "random" in self.methods else math.nan
        return [
            Row(
                self.methods[i], metric, float(means[i]), float(low[i]), float(high[i]), len(kept), len(values), tiers[i],
                against.get(i), p.get((min(i, best), max(i, best)), math.nan), float(means[i] - chance),
                statistics.required_n(kept[:, i] - kept[:, best]) if i != best else math.nan,
            )
            for i in order
        ]  # fmt: skip

    def ranks(self) -> tuple[dict[str, float], float]:
        """Each method's mean rank over the metrics that have a better direction, and Kendall's W, how far these agree."""
        graded = [name for name in self.metrics if METRICS[name].direction != "describes"]
        ranked = [
            statistics.mean_rank(self.values[name], METRICS[name].direction == "higher") for name in graded
        ]
        found = [
            ranks for ranks in ranked if np.isfinite(ranks).all()
        ]  # a metric without any value ranks nothing
        if not found:
            return {}, math.nan
        table = np.array(found)
        means = dict(zip(self.methods, (float(v) for v in table.mean(0)), strict=True))
        return means, statistics.kendall_w(table)

    def blind(self) -> dict[str, list[str]]:
        """Methods that answer alike whatever the model is, and the sanity checks that say so: their mean similarity is 0.99 or more."""
        found: dict[str, list[str]] = {}
        for metric in SANITY:
            if metric in self.metrics:
                for name, values in zip(self.methods, self.values[metric].T, strict=True):
                    known = values[np.isfinite(values)]
                    if len(known) and float(known.mean()) >= ALIKE:
                        found.setdefault(name, []).append(metric)
        return found

    def undefined(self) -> list[str]:
        """A line for each metric and method that some samples have no value of: how many, and why."""
        found = []
        for metric in self.metrics:
            for name, values in zip(self.methods, self.values[metric].T, strict=True):
                if missing := int(np.isnan(values).sum()):
                    why = self.notes.get((metric, name), METRICS[metric].undefined)
                    found.append(
                        f"{metric} of {name} for {missing} of {len(values)} samples ({why}): left out for every method; do: {_remedy(metric)}"
                    )
        return found

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, NaN as None."""
        ranks, agreement = self.ranks()
        return {
            "methods": list(self.methods),
            "metrics": {
                name: {
                    "about": METRICS[name].about,
                    "direction": METRICS[name].direction,
                    "chance": METRICS[name].chance,
                    "undefined": METRICS[name].undefined,
                    "rows": [_plain(row) for row in self.rows(name)],
                    "values": [[_number(v) for v in sample] for sample in self.values[name].tolist()],
                }
                for name in self.metrics
            },
            "mean_rank": {name: _number(rank) for name, rank in ranks.items()},
            "kendall_w": _number(agreement),
            "blind": self.blind(),
            "fractions": list(self.fractions),
            "curves": {way: {m: [_number(v) for v in self.curves[way][:, i].mean(0)] for i, m in enumerate(self.methods)} for way in self.curves},
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "settings": dict(self.settings),
        }  # fmt: skip

    def lines(self, metric: str) -> list[tuple[str, ...]]:
        """The rows of one metric as text; see `HEAD`."""
        return [
            (
                row.method,
                _figure(row.mean) or "undefined",
                _between(row.low, row.high),
                str(row.tier) if METRICS[metric].direction != "describes" and row.used else "",
                "" if row.behind is None else _with_interval(row.behind),
                "" if row.behind is None or not math.isfinite(row.p) else f"{row.p:.2g}",
                _figure(row.above_random),
                "" if not math.isfinite(row.needed) else f"{row.needed:.0f}",
                f"{row.used} / {row.total}",
            )
            for row in self.rows(metric)
        ]  # fmt: skip

    def __repr__(self) -> str:
        return str(self)  # as notebooks show it

    def __str__(self) -> str:
        parts = []
        for name in self.metrics:
            table = [HEAD, *self.lines(name)]
            widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
            body = [
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                for row in table
            ]
            parts.append("\n".join([headline(name), *body]))
        return "\n\n".join(parts)


HEAD = ("method", "mean", "95 % interval", "tier", "minus the best", "p", "minus random", "n needed", "used")
"""The columns of a metric's table."""


def _remedy(metric: str) -> str:
    """What to do about undefined values."""
    if metric == "mprt":
        return "compare without this method, or in Python name layers that leave a map: metrics={'mprt': {'layers': […]}}"
    return "compare without this method or these samples"


def headline(metric: str) -> str:
    """A metric in one line: name, direction, what it is."""
    row = METRICS[metric]
    words = {"higher": "higher is better", "lower": "lower is better", "describes": "describes the model"}
    return f"{metric} ({words[row.direction]}; chance: {row.chance}): {row.about}"


def _figure(value: float) -> str:
    return "" if not math.isfinite(value) else f"{value:.4g}"


def _between(low: float, high: float) -> str:
    return f"{_figure(low)} … {_figure(high)}" if math.isfinite(low) and math.isfinite(high) else ""


def _with_interval(found: Difference) -> str:
    interval = _between(found.low, found.high)
    return f"{_figure(found.mean)} ({interval})" if interval else _figure(found.mean)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _plain(row: Row) -> dict[str, Any]:
    behind = None
    if row.behind is not None:
        behind = {name: _number(getattr(row.behind, name)) for name in Difference.__dataclass_fields__}
    own = {name: getattr(row, name) for name in Row.__dataclass_fields__ if name != "behind"}
    return {n: _number(v) if isinstance(v, float) else v for n, v in own.items()} | {"behind": behind}
