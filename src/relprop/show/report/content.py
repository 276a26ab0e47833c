"""What the report says, as plain data: read from the store and the analysis, ready for the page."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.analyse import FLAGGED, Analysis, ClassAnalysis, Cluster, Confirmation
from relprop.errors import InvalidInput
from relprop.methods import METHODS
from relprop.show.report import figures
from relprop.show.report.gallery import SHOWN, Exemplar, Gallery, exemplars, galleries, outcomes
from relprop.show.samples import data_uri, map_of, picture_of
from relprop.store import FAILED, PENDING, Store

IN_FULL = 40
"""The most classes with a section of their own."""

NAMED = 40
"""The most failed samples that are named for each reason."""

ALLOWED = 1e-5
"""What rounding may leave of max(1, |score|) in float32 before a sample counts as one whose account does not close."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """A cluster on the page."""

    anchor: str
    number: int
    colour: str
    size: int
    share: float
    suspicion: float
    flagged: bool
    evidence: tuple[str, ...]
    mean: str
    box: str
    exemplars: tuple[Exemplar, ...]
    confirmation: Confirmation | None
    unconfirmed: str


@dataclass(frozen=True, slots=True)
class ClassPart:
    """A class on the page. `strategies` is empty where the class has a row in the table only."""

    anchor: str
    rank: int
    name: str
    samples: int
    accuracy: float
    clusters: int
    clusterability: float
    bar: float
    against_chance: float
    eigenvalue_2: float
    suspicion: float
    scatter: str
    shown: int
    spectrum: str
    strategies: tuple[Strategy, ...]


@dataclass(frozen=True, slots=True)
class Account:
    """How well the sums closed: gaps relative to max(1, |score|)."""

    samples: int
    median: float
    high: float
    largest: float
    beyond: int
    scores: tuple[float, float, float]
    histogram: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A reason, how many samples failed for it, and the names of the first."""

    reason: str
    samples: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """The whole page."""

    title: str
    made: str
    model: str
    method: str
    kind: str
    store: str
    samples: int
    done: int
    pending: int
    accuracy: float
    classes: tuple[ClassPart, ...]
    refused: tuple[tuple[str, str], ...]
    flagged: tuple[tuple[ClassPart, Strategy], ...]
    level: float
    rules: tuple[tuple[str, int, str], ...]
    plan: tuple[Mapping[str, str], ...]
    settings: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    account: Account | None
    failures: tuple[Failure, ...]
    left_out: int
    together: bool
    galleries: tuple[Gallery, ...]

    @property
    def strategies(self) -> int:
        """How many clusters there are in all classes."""
        return sum(part.clusters for part in self.classes)

    @property
    def confirmed(self) -> int:
        """How many of the flagged clusters an experiment confirmed."""
        return sum(s.confirmation is not None and s.confirmation.confirmed for _, s in self.flagged)

    @property
    def failed(self) -> int:
        """How many samples could not be read or explained."""
        return sum(f.samples for f in self.failures)


def content(store: Store, analysis: Analysis) -> Content:
    """The page of an analysis. Raises `InvalidInput` where the analysis speaks of rows that the store lacks."""
    last = max((int(one.rows.max()) for one in analysis.classes if len(one.rows)), default=-1)
    if last >= len(store):
        raise InvalidInput(
            f"report: the analysis speaks of sample {last}, and {store.path} has {len(store)}\n"
            "  do: analyse this store again"
        )
    top = max(
        (one.clusterability for one in analysis.classes if np.isfinite(one.clusterability)), default=1.0
    )
    order = sorted(range(len(analysis.classes)), key=lambda i: -analysis.classes[i].suspicion)
    full = set(order[:IN_FULL])
    classes = tuple(
        _class(store, one, rank + 1, top, rank in full) for rank, one in enumerate(analysis.classes)
    )
    status, done, said = store.status, store.done, outcomes(store)
    model = store.attributes.get("model") or {}
    name = str(model.get("name") or "a model") if isinstance(model, Mapping) else str(model)
    return Content(
        title=name,
        made=f"{datetime.datetime.now(datetime.UTC):%-d %B %Y, %H:%M} UTC",
        model=name,
        method=_method(str(store.attributes.get("method") or "")),
        kind=store.kind,
        store=Path(store.path).name,
        samples=len(store),
        done=int(done.sum()),
        pending=int((status == PENDING).sum()),
        accuracy=said.accuracy,
        classes=classes,
        refused=tuple((store.class_name(t), why) for t, why in sorted(analysis.refused.items())),
        flagged=_flagged(classes),
        level=FLAGGED,
        rules=_rules(store.attributes.get("plan") or ()),
        plan=tuple(row for row in store.attributes.get("plan") or () if isinstance(row, Mapping)),
        settings=tuple((str(k).replace("_", " "), _plain(v)) for k, v in analysis.settings.items()),
        facts=_facts(store),
        account=_account(store.column("gap")[done], store.column("score")[done]),
        failures=_failures(store, status),
        left_out=len(classes) - len(full),
        together=bool(analysis.source.get("together")),
        galleries=galleries(store, said),
    )


def fewer(found: Content, factor: float) -> Content:
    """The page with so many sections of classes left out that it shrinks by about `factor`; at least one goes."""
    full = [part for part in found.classes if part.strategies]
    keep = min(len(full) - 1, int(len(full) / (1.1 * factor)))
    if keep < 0:
        return found
    kept = {part.anchor for part in sorted(full, key=lambda part: -part.suspicion)[:keep]}
    classes = tuple(
        part if part.anchor in kept else replace(part, strategies=(), scatter="", spectrum="")
        for part in found.classes
    )
    return replace(found, classes=classes, left_out=len(classes) - keep)


def _flagged(classes: Sequence[ClassPart]) -> tuple[tuple[ClassPart, Strategy], ...]:
    pairs = [(part, s) for part in classes for s in part.strategies if s.flagged]
    return tuple(sorted(pairs, key=lambda pair: -pair[1].suspicion))


def _class(store: Store, one: ClassAnalysis, rank: int, top: float, full: bool) -> ClassPart:
    labels = one.labels[one.clusters_number]
    picture, shown = figures.scatter(one.embedding, labels) if full else ("", 0)
    return ClassPart(
        anchor=f"class-{one.target}",
        rank=rank,
        name=one.name or store.class_name(one.target),
        samples=len(one.rows),
        accuracy=one.accuracy,
        clusters=len(one.clusters),
        clusterability=one.clusterability,
        bar=max(0.0, min(1.0, one.clusterability / top))
        if top > 0 and np.isfinite(one.clusterability)
        else 0.0,
        against_chance=float(one.null.get("eigenvalue_2_z", float("nan"))),
        eigenvalue_2=float(one.eigenvalues[1]) if len(one.eigenvalues) > 1 else float("nan"),
        suspicion=one.suspicion,
        scatter=picture,
        shown=shown,
        spectrum=figures.spectrum(one.eigenvalues, one.clusters_number) if full else "",
        strategies=tuple(_strategy(store, one, cluster) for cluster in one.clusters) if full else (),
    )


def _strategy(store: Store, one: ClassAnalysis, cluster: Cluster) -> Strategy:
    return Strategy(
        anchor=f"class-{one.target}-strategy-{cluster.number}",
        number=cluster.number + 1,
        colour=figures.colour(cluster.number),
        size=cluster.size,
        share=cluster.share,
        suspicion=cluster.suspicion,
        flagged=cluster.flagged,
        evidence=tuple(item.words for item in cluster.evidence),
        mean=data_uri(picture_of(map_of(cluster.mean_map))),
        box=_box(cluster),
        exemplars=exemplars(store, cluster.exemplars[:SHOWN]),
        confirmation=cluster.confirmation,
        unconfirmed=cluster.unconfirmed,
    )


def _box(cluster: Cluster) -> str:
    """The frame around the cluster's place, as CSS."""
    p = cluster.place
    if p is None:
        return ""
    return (
        f"top:{100 * p.top:.2f}%;left:{100 * p.left:.2f}%;height:{100 * (p.bottom - p.top):.2f}%;"
        f"width:{100 * (p.right - p.left):.2f}%"
    )


def _rules(plan: Any) -> tuple[tuple[str, int, str], ...]:
    """Each rule, how many operations have it, and the kinds of these operations."""
    rows = [row for row in plan if isinstance(row, Mapping)]
    counts = Counter(str(row.get("rule", "")) for row in rows)
    kinds = {
        rule: ", ".join(
            dict.fromkeys(str(row.get("kind", "")) for row in rows if str(row.get("rule", "")) == rule)
        )
        for rule in counts
    }
    return tuple((rule, count, kinds[rule]) for rule, count in counts.most_common())


def _facts(store: Store) -> tuple[tuple[str, str], ...]:
    """What is needed to repeat the run."""
    at, model = store.attributes, store.attributes.get("model")
    facts = [("command", _plain(at.get("command")))]
    facts += [(f"model: {k}", _plain(v)) for k, v in model.items()] if isinstance(model, Mapping) else []
    facts += [(str(k), _plain(v)) for k, v in (at.get("versions") or {}).items()]
    facts += [
        ("store's schema", str(at.get("schema"))),
        ("relevance", f"{store.relevance.shape}, {store.relevance.dtype}"),
    ]
    return tuple((name, value) for name, value in facts if value)


def _method(name: str) -> str:
    """How the samples were explained, as a sentence."""
    if name == "lrp":
        return (
            "Each sample was explained by layer-wise relevance propagation (Bach et al. 2015): the score of the explained class is"
            " handed back through the network, operation by operation, to the input."
        )
    if name in METHODS:
        return (
            f"Each sample was explained by the method {name}: {METHODS[name].about}. It keeps no account of the score, which its"
            " relevance need not add up to."
        )
    return "How each sample was explained the store does not say."


def _plain(value: Any) -> str:
    """A setting in words."""
    if value is None or value == "":
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _account(gap: NDArray[Any], score: NDArray[Any]) -> Account | None:
    known = np.isfinite(gap) & np.isfinite(score)
    if not known.any():
        return None
    size = np.abs(gap[known]) / np.maximum(1.0, np.abs(score[known]))
    low, middle, high = np.quantile(score[known], [0, 0.5, 1])
    with np.errstate(divide="ignore"):
        logs = np.log10(size)
    return Account(
        samples=int(known.sum()),
        median=float(np.median(size)),
        high=float(np.quantile(size, 0.99)),
        largest=float(size.max()),
        beyond=int((size > ALLOWED).sum()),
        scores=(float(low), float(middle), float(high)),
        histogram=figures.histogram(logs, -12.0, -2.0),
    )


def _failures(store: Store, status: NDArray[Any]) -> tuple[Failure, ...]:
    rows = np.flatnonzero(status == FAILED)
    if len(rows) == 0:
        return ()
    reasons, names = store.lazy("reason")[rows], store.lazy("id")[rows]
    counts = Counter(
        str(reason).splitlines()[0] if reason else "no reason was recorded" for reason in reasons
    )
    grouped: dict[str, list[str]] = {reason: [] for reason in counts}
    for reason, name in zip(reasons, names, strict=True):
        grouped[str(reason).splitlines()[0] if reason else "no reason was recorded"].append(str(name))
    return tuple(Failure(r, n, tuple(grouped[r][:NAMED])) for r, n in counts.most_common())
