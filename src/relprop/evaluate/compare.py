"""Methods side by side on one model and data: a table with intervals that says which differences are real."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.engine import capture as capturing
from relprop.errors import InvalidInput
from relprop.evaluate import statistics
from relprop.evaluate.cases import Batch, Case, Data, Method, case_of, methods_of
from relprop.evaluate.statistics import Difference
from relprop.evaluate.table import METRICS

Array = NDArray[np.float64]

METHODS = ("lrp", "gradient_x_input", "sensitivity", "random")
"""The methods that are compared by default; "random" is what every one of them has to beat."""

CURVED = {"aopc_morf": ("morf",), "aopc_lerf": ("lerf",), "abpc": ("morf", "lerf"), "naopc": ("morf",)}
"""The metrics whose curves are kept, and of which orders."""


@dataclass(frozen=True, slots=True)
class Row:
    """One method under one metric.

    Attributes:
        method, metric: their names.
        mean, low, high: over the samples that are defined for every method, with a bootstrap interval of 95 %.
        used, total: samples that are defined for every method, and all of them.
        tier: 1 the best; methods in one tier are not told apart by these samples.
        behind: the paired difference to the best method (0 for itself), and `p` its Wilcoxon test, Holm-corrected over all pairs.
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
    """

    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    values: Mapping[str, Array]
    curves: Mapping[str, Array] = field(repr=False)
    fractions: tuple[float, ...] = field(repr=False)
    seconds: Mapping[str, float] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)

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
        against = {i: statistics.difference(values[:, i], values[:, best]) for i in order if i != best}
        pairs = [(i, j) for i in range(len(means)) for j in range(i + 1, len(means))]
        corrected = statistics.holm(
            [statistics.difference(values[:, i], values[:, j], 2).wilcoxon for i, j in pairs]
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
        found = [
            statistics.mean_rank(self.values[name], METRICS[name].direction == "higher") for name in graded
        ]
        if not found:
            return {}, math.nan
        table = np.array(found)
        means = dict(zip(self.methods, (float(v) for v in table.mean(0)), strict=True))
        return means, statistics.kendall_w(table)

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
            "mean_rank": ranks,
            "kendall_w": _number(agreement),
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
                _figure(row.mean),
                _between(row.low, row.high),
                str(row.tier) if METRICS[metric].direction != "describes" else "",
                "" if row.behind is None else _with_interval(row.behind),
                "" if row.behind is None or not math.isfinite(row.p) else f"{row.p:.2g}",
                _figure(row.above_random),
                "" if not math.isfinite(row.needed) else f"{row.needed:.0f}",
                f"{row.used} / {row.total}",
            )
            for row in self.rows(metric)
        ]  # fmt: skip

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


def compare(
    model: Any,
    data: Any,
    methods: Sequence[Any] | Mapping[str, Any] = METHODS,
    metrics: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("aopc_morf", "aopc_lerf", "abpc"),
    *,
    perturbation: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    store: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Comparison:
    """Evaluate methods by metrics, on the same samples, masks, draws and targets.

    Args:
        model: as for `relprop.explain`.
        data: inputs, or a `Data` of inputs, targets, masks and bounds.
        methods: names ("lrp", "lrp:PRESET", any of `relprop.methods()`), or a mapping from a name to such a name, to a dict of an
            `Explainer`'s arguments, or to a callable of (model, inputs, target) that returns relevance.
        metrics: names of `METRICS`, or a mapping from a name to its options.
        perturbation: options of `perturb` for all metrics that perturb: regions, steps, size, replacement, draws, score, bounds, ….
        batch_size: samples that are worked on at a time; results do not depend on it.
        seed: of all draws.
        store: a folder in which finished work is kept: a run that was interrupted goes on where it stopped. Callables are known
            by their name alone.
        progress: called with the units done, all units, and what is next.

    Returns:
        A `Comparison`: `.rows(metric)`, `.values[metric]` (N, M), `.curves`, `print(comparison)`.

    Raises:
        InvalidInput: an unknown name, a metric that the data or the model does not allow, or relevance that is not finite.
    """
    held = data if isinstance(data, Data) else Data(data)
    chosen = methods_of(methods)
    asked = _asked(metrics, held)
    if batch_size < 1:
        raise InvalidInput(f"batch_size: {batch_size}\n  do: give a whole number from 1 on")
    settings = dict(perturbation or {})
    if held.bounds is None and "bounds" not in settings:
        settings["bounds"] = _extremes(model, held)  # the same for every batch
    source = torch.cat([leaf for leaf in pytree.tree_leaves(held.inputs) if isinstance(leaf, Tensor)][:1])
    settings.setdefault("data", source)
    kept = Kept(None if store is None else Path(store), model, seed, settings, asked)
    starts = range(0, len(held), batch_size)
    total, done = len(starts) * len(chosen), 0
    units: dict[str, list[dict[str, Any]]] = {method.name: [] for method in chosen}
    for start in starts:
        part = held.part(start, min(start + batch_size, len(held)))
        batch = Batch(model, part, settings, seed)
        for method in chosen:
            if progress is not None:
                progress(
                    done, total, f"{method.name}, samples {start + 1} to {start + len(part)} of {len(held)}"
                )
            unit = kept.read(method, part)
            if unit is None:
                unit = _measured(batch, method, asked)
                kept.write(method, part, unit)
            units[method.name].append(unit)
            done += 1
    if progress is not None:
        progress(total, total, "done")
    return _joined(chosen, asked, units, {"seed": seed, "batch_size": batch_size, "samples": len(held), "perturbation": _described(settings), "options": {n: _described(o) for n, o in asked.items()}, "specs": {m.name: m.spec for m in chosen}})  # fmt: skip


def _asked(metrics: Sequence[str] | Mapping[str, Mapping[str, Any]], data: Data) -> dict[str, dict[str, Any]]:
    names = {name: dict(metrics[name]) if isinstance(metrics, Mapping) else {} for name in metrics}
    if not names:
        raise InvalidInput("metrics: none given\n  do: give names such as 'aopc_morf'")
    for name in names:
        if name not in METRICS:
            raise InvalidInput(f"metrics: {name!r} is unknown\n  do: one of {', '.join(METRICS)}")
        if "mask" in METRICS[name].needs and data.mask is None:
            raise InvalidInput(
                f"metrics: {name} needs to know where the object is, and the data has no masks\n  do: give Data(inputs, mask=…), or leave it out"
            )
    return names


def _extremes(model: Any, data: Data) -> Any:
    """The range of the inputs, by channel of images: of all samples, so that batches do not matter."""
    real = [
        leaf
        for leaf in pytree.tree_leaves(data.inputs)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    if not real or real[0].dim() < 2:
        return None
    x = real[0]
    dims = [0, *range(2, x.dim())] if x.dim() >= 4 else list(range(x.dim()))
    return x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)


def _measured(batch: Batch, method: Method, asked: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All metrics of one method on one batch, as plain values."""
    started = time.perf_counter()
    case = case_of(batch, method)
    seconds = time.perf_counter() - started
    values = {name: METRICS[name].run(case, **options).tolist() for name, options in asked.items()}
    found = {way: _curve(case, asked, way) for way in ("morf", "lerf")}
    return {
        "values": values,
        "seconds": seconds,
        "curves": {way: curve[0] for way, curve in found.items() if curve is not None},
        "fractions": next((curve[1] for curve in found.values() if curve is not None), []),
    }


def _curve(
    case: Case, asked: Mapping[str, Mapping[str, Any]], way: str
) -> tuple[list[list[float]], list[float]] | None:
    """The curves of an order that a metric without options of its own has drawn; None where none has."""
    if not any(way in CURVED.get(name, ()) and not options for name, options in asked.items()):
        return None
    curves = case.curve(way)
    return curves.scores.tolist(), list(curves.fractions)


def _joined(
    chosen: Sequence[Method], asked: Mapping[str, Any], units: Mapping[str, list[dict[str, Any]]], settings: dict[str, Any]
) -> Comparison:  # fmt: skip
    names = tuple(method.name for method in chosen)

    def table(kind: str, key: str) -> Array:
        """What was found under a kind and a key, samples first and methods second."""
        columns = [[one for unit in units[name] for one in unit[kind][key]] for name in names]
        return np.array(columns, dtype=np.float64).swapaxes(0, 1)

    values = {metric: table("values", metric) for metric in asked}
    first = units[names[0]][0]
    curves = {way: table("curves", way) for way in first["curves"]}
    seconds = {name: sum(unit["seconds"] for unit in units[name]) for name in names}
    return Comparison(names, tuple(asked), values, curves, tuple(first["fractions"]), seconds, settings)


def _described(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as plain values: tensors by shape and checksum, callables by name."""
    return {name: _plainly(value) for name, value in settings.items()}


def _plainly(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.numel() <= 8:
            return value.flatten().tolist()
        return {"shape": list(value.shape), "sha256": checksum([value])}
    if isinstance(value, (tuple, list)):
        return [_plainly(one) for one in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    return getattr(value, "__qualname__", type(value).__name__)


def checksum(tensors: Sequence[Tensor]) -> str:
    """A checksum of values, shapes and types."""
    found = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return found.hexdigest()[:24]


class Kept:
    """Finished units of work in a folder, by what they depend on; without a folder nothing is kept."""

    def __init__(
        self,
        folder: Path | None,
        model: Any,
        seed: int,
        settings: Mapping[str, Any],
        asked: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.base = ""
        if folder is None:
            return
        from relprop import __version__

        held = capturing.load(model) if isinstance(model, (str, Path)) else capturing.unwrapped(model)
        state = held.state_dict() if callable(held.state_dict) else held.state_dict
        weights = checksum([value for value in state.values() if isinstance(value, Tensor)])
        facts = [
            __version__,
            type(held).__name__,
            weights,
            seed,
            _described(settings),
            {n: _described(o) for n, o in asked.items()},
        ]
        self.base = json.dumps(facts, sort_keys=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"store: {folder} cannot be made: {error.strerror}\n  do: name another folder"
            ) from error

    def place(self, method: Method, part: Data) -> Path:
        """The file of one unit."""
        assert self.folder is not None
        tensors = [leaf for leaf in pytree.tree_leaves((part.inputs, part.mask)) if isinstance(leaf, Tensor)]
        facts = json.dumps(
            [self.base, method.name, method.spec, checksum(tensors), part.samples, repr(part.target)]
        )
        return self.folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.json"

    def read(self, method: Method, part: Data) -> dict[str, Any] | None:
        """A finished unit, or None."""
        if self.folder is None or not (place := self.place(method, part)).exists():
            return None
        try:
            found: dict[str, Any] = json.loads(place.read_text())
        except json.JSONDecodeError:
            return None
        return found

    def write(self, method: Method, part: Data, unit: dict[str, Any]) -> None:
        """Keep a unit; the file appears whole or not at all."""
        if self.folder is None:
            return
        place = self.place(method, part)
        beside = place.with_suffix(f".{os.getpid()}.tmp")
        beside.write_text(json.dumps(unit))
        beside.replace(place)
