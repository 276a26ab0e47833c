"""A store and its analysis, read class by class as they are looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.analyse import Analysis, ClassAnalysis
from relprop.errors import InvalidInput
from relprop.store import Store
from relprop.view.state import State

BLOCK = 8192
"""Rows of the output that are read together when the predictions of a class are formed."""


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """The samples of one class, in the order of the analysis; all arrays are (n,) but `points` (n, 2)."""

    found: ClassAnalysis
    rows: NDArray[np.int64]
    points: NDArray[np.float32]
    cluster: NDArray[np.int64]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    score: NDArray[np.float64]
    gap: NDArray[np.float64]
    ids: NDArray[np.object_]
    typical: NDArray[np.float64]

    @property
    def embedded(self) -> bool:
        """Whether the analysis has an embedding to look at."""
        return bool(np.isfinite(self.points).all())


@dataclass(frozen=True, slots=True, eq=False)
class Book:
    """A store, its analysis, and its classes as `Leaf`s: `leaf(target)`, kept once they are read."""

    store: Store
    analysis: Analysis
    leaf: Callable[[int], Leaf] = field(repr=False)

    def of(self, state: State) -> Leaf:
        """The class that is on view; the first one where the state names none that was analysed."""
        targets = {one.target for one in self.analysis.classes}
        wanted = state.target if state.target in targets else self.analysis.classes[0].target
        return self.leaf(int(wanted))


def opened(store: Store, analysis: Analysis) -> Book:
    """A book of an analysed store. Raises `InvalidInput` where there is nothing to look at, or they do not belong together."""
    if not analysis.classes:
        why = "; ".join(f"{store.class_name(t)}: {w}" for t, w in list(analysis.refused.items())[:3])
        raise InvalidInput(
            f"view: no class of {store.path} was analysed ({why or 'the analysis is empty'})\n"
            "  do: explain more samples, then relprop analyse STORE again"
        )
    last = max(int(one.rows.max()) for one in analysis.classes if len(one.rows))
    if last >= len(store):
        raise InvalidInput(
            f"view: the analysis speaks of sample {last}, and {store.path} has {len(store)}\n"
            "  do: relprop analyse STORE again"
        )

    @lru_cache(maxsize=64)
    def leaf(target: int) -> Leaf:
        return _leaf(store, analysis[target])

    return Book(store, analysis, leaf)


def _leaf(store: Store, one: ClassAnalysis) -> Leaf:
    rows = np.asarray(one.rows, np.int64)
    cuts = range(0, len(rows), BLOCK)
    column = (
        "target" if store.attributes.get("output") == "score" else "output"
    )  # the score alone: no classes
    parts = [_largest(store.lazy(column)[rows[i : i + BLOCK]]) for i in cuts]
    cluster = np.asarray(one.labels[one.clusters_number], np.int64)
    return Leaf(
        found=one,
        rows=rows,
        points=np.asarray(one.embedding, np.float32),
        cluster=cluster,
        label=store.lazy("label")[rows],
        prediction=np.concatenate(parts) if parts else np.zeros(0, np.int64),
        score=store.lazy("score")[rows],
        gap=store.lazy("gap")[rows],
        ids=store.lazy("id")[rows],
        typical=_distance(one, rows, cluster),
    )


def _largest(values: NDArray[Any]) -> NDArray[np.int64]:
    """The largest of each row's outputs; of one number a row, that number."""
    return values if values.ndim == 1 else values.argmax(1)


def _distance(one: ClassAnalysis, rows: NDArray[np.int64], cluster: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far each sample lies from the middle of its strategy; exemplars come first, in their order."""
    points = np.asarray(one.spectral if one.spectral.size else one.embedding, np.float64)
    found = np.zeros(len(rows))
    for number in np.unique(cluster):
        member = cluster == number
        found[member] = np.linalg.norm(points[member] - points[member].mean(0), axis=1)
    place = {int(row): i for i, row in enumerate(rows)}
    for part in one.clusters:
        for rank, row in enumerate(part.exemplars):
            if int(row) in place:
                found[place[int(row)]] = rank - 1e6
    return np.nan_to_num(found, nan=1e9)


def kept(leaf: Leaf, state: State) -> NDArray[np.bool_]:
    """Which samples of a class pass the filters, the lasso aside: (n,)."""
    mask = np.ones(len(leaf.rows), bool)
    if state.only != "all":
        right = leaf.prediction == leaf.label
        mask &= (leaf.label >= 0) & (right if state.only == "right" else ~right)
    if state.clusters:
        mask &= np.isin(leaf.cluster, state.clusters)
    if state.low is not None:
        mask &= leaf.score >= state.low
    if state.high is not None:
        mask &= leaf.score <= state.high
    if state.find:
        wanted = state.find.lower()
        mask &= np.fromiter((wanted in str(name).lower() for name in leaf.ids), bool, len(leaf.ids))
    return mask


def inside(points: NDArray[np.float32], lasso: tuple[float, ...]) -> NDArray[np.bool_]:
    """Which points (n, 2) lie within the lasso."""
    from matplotlib.path import Path

    corners = np.asarray(lasso, np.float64).reshape(-1, 2)
    return np.asarray(Path(corners).contains_points(points), bool)


def chosen(leaf: Leaf, state: State) -> NDArray[np.intp]:
    """The samples on view, within the lasso where there is one, as places in the class, in the order of the grid."""
    mask = kept(leaf, state)
    if state.lasso and leaf.embedded:
        mask &= inside(leaf.points, state.lasso)
    places = np.flatnonzero(mask)
    keys = {
        "typical": leaf.typical,
        "score": -leaf.score,
        "-score": leaf.score,
        "id": leaf.ids.astype(str),
        "label": leaf.label,
        "gap": -np.abs(leaf.gap),
    }
    return places[np.argsort(keys[state.sort][places], kind="stable")]
