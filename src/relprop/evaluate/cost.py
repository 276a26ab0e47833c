"""How long a comparison will take, measured on a few samples before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from relprop.evaluate.cases import Data, Method, methods_of
from relprop.evaluate.compare import asked_of, left
from relprop.evaluate.comparison import CURVED
from relprop.evaluate.perturb import Experiment, experiment
from relprop.evaluate.randomisation import layers_of
from relprop.evaluate.scoring import Scorer, rows_at_a_time, score_rows, scorer_of
from relprop.evaluate.table import METRICS

SHARED = ("faithfulness_correlation", "sensitivity_n", "infidelity", "faithfulness_estimate")
"""Metrics whose forward rows serve all methods."""

SLOW = 4.0
"""A method whose first explanation takes more seconds is timed on one sample, not on two."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a comparison costs: rows of perturbed inputs, what a row takes, and what explaining takes, in seconds."""

    rows: int
    row: float
    explaining: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.rows * self.row + self.explaining


def cost_of(
    model: Any,
    data: Data,
    methods: Sequence[Any] | Mapping[str, Any],
    metrics: Sequence[str],
    perturbation: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
    store: str | Path | None = None,
) -> Cost:
    """The cost of `compare` with these arguments: the rows are counted, and a row and each method are timed on up to two samples.

    Rows of curves and of shared subsets count; a metric that explains anew counts ten explanations ("mprt" one a layer, "emprt" and its like one).
    What a store has already costs nothing.
    """
    few, chosen, asked = data.part(0, min(2, len(data))), methods_of(methods), asked_of(metrics, data)
    remaining = left(
        model,
        data,
        methods,
        metrics,
        perturbation=perturbation,
        batch_size=batch_size,
        seed=seed,
        store=store,
    )
    scorer = scorer_of(model, few.inputs, few.target)
    rows, row = 0, 0.0
    if any(name in SHARED or _is_curve(name) for name in asked):
        trial = experiment(model, few.inputs, few.target, **{"bounds": few.bounds, **(perturbation or {})})
        each, once = _rows(trial, asked)
        rows = sum(remaining.values()) * each + max(remaining.values()) * once
        row = _row(trial, max(1, round(min(len(data), batch_size) / len(few))), clock)
    again = sum(_again(model, name, asked[name]) for name in asked if "explain" in METRICS[name].needs)
    explaining = 0.0
    for method in chosen:
        if not method.chance and remaining[method.name]:
            single = (method, model, data.part(0, 1).inputs, _one(scorer), 1, clock)
            slow = _explaining(*single) > SLOW  # with the capture, once a model
            one = (
                _explaining(*single)
                if slow
                else _explaining(method, model, few.inputs, scorer.target, len(few), clock)
            )
            explaining += (1 + again) * one * remaining[method.name]
    return Cost(rows, row, explaining)


def _again(model: Any, metric: str, options: Mapping[str, Any]) -> int:
    """How often a metric that explains anew does so for each sample."""
    how = METRICS[metric].rows
    if how.startswith("L "):
        return len(options.get("layers") or layers_of(model))
    return 1 if how.startswith("1 ") else 10


def _explaining(
    method: Method, model: Any, inputs: Any, target: Any, count: int, clock: Callable[[], float]
) -> float:
    """Seconds that a method takes for each of so many samples."""
    started = clock()
    method.explain(model, inputs, target)
    return (clock() - started) / count


def _is_curve(name: str) -> bool:
    """Whether a metric perturbs step by step."""
    return name in CURVED or METRICS[name].rows.startswith(("S", "2·"))


def _one(scorer: Scorer) -> Any:
    """The target of the first sample."""
    target = scorer.target
    return target[:1] if isinstance(target, torch.Tensor) and target.dim() else target


def _rows(trial: Experiment, metrics: Iterable[str]) -> tuple[int, int]:
    """Forward rows of one sample: for each method the steps of every order and draw; for all methods together the subsets."""
    names = list(metrics)
    orders = {way for name in names for way in CURVED.get(name, ())}
    others = [name for name in names if name not in CURVED and _is_curve(name)]
    curves = (len(orders) + len(others)) * trial.draws * (len(trial.counts) - 1)
    return curves, sum(100 * trial.draws for name in names if name in SHARED)


def _row(trial: Experiment, number: int, clock: Callable[[], float]) -> float:
    """Seconds a perturbed row takes, in a batch as large as they will be."""
    scorer, device = trial.scorer, trial.scorer.inputs.device
    count = min(rows_at_a_time(scorer), 8 * number)
    samples = torch.arange(count, device=device) % len(scorer)
    masks = torch.rand(count, trial.regions.count, device=device) < 0.5
    made = trial.masked(masks, 0)
    score_rows(scorer, samples, made)
    started = clock()
    score_rows(scorer, samples, made)
    return (clock() - started) / count
