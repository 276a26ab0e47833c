"""Methods side by side on one model and data: a table with intervals that says which differences are real."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.errors import InvalidInput
from relprop.evaluate.cases import Batch, Case, Data, Method, case_of, methods_of
from relprop.evaluate.comparison import CURVED, Array, Comparison
from relprop.evaluate.kept import Kept, described
from relprop.evaluate.table import METRICS

METHODS = ("lrp", "gradient_x_input", "sensitivity", "random")
"""The methods that are compared by default; "random" is what every one of them has to beat."""


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
    held, chosen, asked, settings, kept, parts = _planned(
        model, data, methods, metrics, perturbation, batch_size, seed, store
    )
    total, done = len(parts) * len(chosen), 0
    units: dict[str, list[dict[str, Any]]] = {method.name: [] for method in chosen}
    for start, part in parts:
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
    return _joined(chosen, asked, units, {"seed": seed, "batch_size": batch_size, "samples": len(held), "perturbation": described(settings), "options": {n: described(o) for n, o in asked.items()}, "specs": {m.name: m.spec for m in chosen}})  # fmt: skip


class _Plan(NamedTuple):
    """What a comparison works through: the data, methods, metrics and settings as they are meant, and the parts of the data."""

    data: Data
    methods: list[Method]
    metrics: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    kept: Kept
    parts: list[tuple[int, Data]]


def _planned(
    model: Any, data: Any, methods: Any, metrics: Any, perturbation: Mapping[str, Any] | None, batch_size: int, seed: int,
    store: str | Path | None,
) -> _Plan:  # fmt: skip
    """The plan of `compare` with these arguments."""
    held = data if isinstance(data, Data) else Data(data)
    chosen = methods_of(methods)
    asked = asked_of(metrics, held)
    if batch_size < 1:
        raise InvalidInput(f"batch_size: {batch_size}\n  do: give a whole number from 1 on")
    if seed < 0:
        raise InvalidInput(f"seed: {seed}\n  do: give a whole number from 0 on")
    settings = dict(perturbation or {})
    if held.bounds is None and "bounds" not in settings:
        settings["bounds"] = _extremes(model, held)  # the same for every batch
    names = {r for r in (one.get("replacement") for one in (settings, *asked.values())) if isinstance(r, str)}
    if names & {"dataset", "noisy_linear"} or "road_gap" in asked:  # they look at all samples
        settings.setdefault("data", _source(held))
    kept = Kept(None if store is None else Path(store), model, seed, settings, asked)
    starts = range(0, len(held), batch_size)
    parts = [(start, held.part(start, min(start + batch_size, len(held)))) for start in starts]
    return _Plan(held, chosen, asked, settings, kept, parts)


def left(
    model: Any,
    data: Any,
    methods: Sequence[Any] | Mapping[str, Any] = METHODS,
    metrics: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("aopc_morf", "aopc_lerf", "abpc"),
    *,
    perturbation: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    store: str | Path | None = None,
) -> dict[str, int]:
    """How many samples each method has yet to be evaluated on: all of them, less those that a store has."""
    plan = _planned(model, data, methods, metrics, perturbation, batch_size, seed, store)
    return {
        method.name: sum(len(part) for _, part in plan.parts if plan.kept.read(method, part) is None)
        for method in plan.methods
    }


def _source(data: Data) -> Tensor:
    """All samples of the first input."""
    return next(leaf for leaf in pytree.tree_leaves(data.inputs) if isinstance(leaf, Tensor))


def asked_of(
    metrics: Sequence[str] | Mapping[str, Mapping[str, Any]], data: Data
) -> dict[str, dict[str, Any]]:
    """The options of each metric by name. Raises `InvalidInput` for an unknown one and one that the data does not allow."""
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
        "notes": case.notes,
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
    notes = {
        (metric, name): note
        for name in names
        for unit in reversed(units[name])  # the first sample that lacks a value has the word
        for metric, note in unit.get("notes", {}).items()
    }
    return Comparison(
        names, tuple(asked), values, curves, tuple(first["fractions"]), seconds, settings, notes
    )
