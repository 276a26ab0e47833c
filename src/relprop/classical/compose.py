"""Pipelines, unions and columns: several rewritings as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from relprop.classical.build import Place, Score, estimator, predict, refuse, transform, transformer
from relprop.classical.steps import Branches, Chain
from relprop.errors import InvalidInput


@estimator("Pipeline")
def pipeline(fitted: Any, place: Place) -> Score:
    """The steps one after the other; of the last its score."""
    steps = [step for _, step in fitted.steps if step is not None and step != "passthrough"]
    if not steps:
        raise InvalidInput("model: the pipeline has no steps\n  do: give a fitted model")
    for step in steps[:-1]:
        if hasattr(step, "steps"):
            nested(step, place)
        else:
            transform(step, place)
    score = predict(steps[-1], place)
    before = fitted[: len(fitted.steps) - 1] if len(fitted.steps) > 1 else None

    def own(x: Any) -> Any:
        return score.own(x if before is None else before.transform(x))

    return dataclasses.replace(score, own=own)


@transformer("Pipeline")
def nested(fitted: Any, place: Place) -> None:
    """A pipeline of transformers only, within another model."""
    for _, step in fitted.steps:
        if step is not None and step != "passthrough":
            transform(step, place)


@transformer("FeatureUnion")
def union(fitted: Any, place: Place) -> None:
    """Several transformers of the same features, side by side, each times its weight."""
    weights = fitted.transformer_weights or {}
    parts = [
        (list(range(place.width)), step, weights.get(name))
        for name, step in fitted.transformer_list
        if step != "drop"
    ]
    _side_by_side(parts, place)


@transformer("ColumnTransformer")
def columns(fitted: Any, place: Place) -> None:
    """Transformers of some of the columns each, side by side."""
    weights = fitted.transformer_weights or {}
    if place.raw is None or place.steps:
        raise refuse(fitted, "is not the first step", "put it first in the pipeline")
    parts = []
    for name, step, where in fitted.transformers_:
        index = _numbers(fitted, where)
        if not (isinstance(step, str) and step == "drop") and index:
            parts.append((index, step, weights.get(name)))
    _side_by_side(parts, place)


def _numbers(fitted: Any, where: Any) -> list[int]:
    """Columns by their numbers, from numbers, names, masks or slices."""
    every = np.arange(fitted.n_features_in_)
    if isinstance(where, str):
        where = [where]
    if isinstance(where, slice):
        if isinstance(where.start, str) or isinstance(where.stop, str):
            names = list(fitted.feature_names_in_)
            start = 0 if where.start is None else names.index(where.start)
            stop = len(names) if where.stop is None else names.index(where.stop) + 1
            return list(range(start, stop))
        return [int(i) for i in every[where]]
    found = np.atleast_1d(np.asarray(where))
    if not found.size:
        return []
    if found.dtype == bool:
        return [int(i) for i in np.flatnonzero(found)]
    if found.dtype.kind in "OUT":
        names = list(getattr(fitted, "feature_names_in_", ()))
        return [names.index(name) for name in found]
    return [int(i) for i in every[found]]


def _side_by_side(parts: Sequence[tuple[list[int], Any, float | None]], place: Place) -> None:
    """Add branches. Each counts from its own reference; what they give counts from none, but where the caller named one."""
    branches: list[tuple[torch.Tensor, Chain, int]] = []
    width = place.width
    raw: list[int] = []
    references: list[torch.Tensor] = []
    for index, step, weight in parts:
        inner = place.branch([] if place.text else index)
        inner.text = place.text
        if not (isinstance(step, str) and step == "passthrough"):
            transform(step, inner)
        if weight is not None:
            inner.scaled(None, torch.full((inner.width,), float(weight), dtype=torch.float64))
        if place.text:
            start = width
            wide = sum(size for _, size in inner.words)
            index = list(range(start, start + wide))
            place.words += inner.words
            width += wide
        raw += [-1] * inner.width if inner.raw is None else list(inner.raw)
        references.append(inner.origin())
        place.counts = place.counts or inner.counts
        branches.append((torch.tensor(index), Chain(inner.steps), inner.width))
    total = sum(wide for _, _, wide in branches)
    reference = torch.cat(references)
    place.text = False
    place.then(Branches(branches, width), total)
    place.raw = tuple(raw) if all(column >= 0 for column in raw) else None
    place.reference = reference if place.fixed or bool(reference.any()) else None
