"""Spectral relevance analysis (SpRAy; Lapuschkin, Wäldchen, Binder, Montavon, Samek and Müller 2019).

The relevance maps of a class become points, the points a graph of nearest neighbours; the spectrum of its Laplacian says how
many groups there are, spectral clustering which samples belong to them: the strategies of the model. Each is then asked
whether it looks like an artefact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.analyse import maps as preparing
from relprop.analyse import places
from relprop.analyse.clustering import against_chance, best_number, clusterability, spectral_labels
from relprop.analyse.embedding import EMBEDDINGS, PACKAGES, embed
from relprop.analyse.graph import EXACT, SYMMETRIES, affinity, eigenpairs, needed, neighbours
from relprop.analyse.result import FLAGGED, Analysis, ClassAnalysis, Cluster
from relprop.analyse.suspicion import Known, evidence
from relprop.errors import InvalidInput

PICTURES = 2_000
"""So many pictures of a class at most are compared at a suspected place."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How maps are compared and grouped.

    Attributes:
        side: maps are pooled to at most so many cells a side; None takes every pixel.
        sign: of the relevance: `"signed"`, `"positive"` or `"absolute"`.
        norm: what each map is divided by: `"l1"`, `"l2"`, `"max"`, `"sum"` or `"none"`.
        channels: the axis of the relevance that is summed; by default axis 1 of four.
        neighbours: k of the graph.
        symmetric: `"mean"`, `"max"` or `"min"` (`relprop.analyse.knn_affinity`).
        eigenvalues: how many are computed.
        most: the largest number of clusters.
        places: let a suspicious place that divides the class have a say in the graph (docs/analysis.md); False is SpRAy as published.
        embedding: `"umap"`, `"tsne"`, `"spectral"` or `"none"`.
        exemplars: how many a cluster.
        smallest: classes of fewer samples are not analysed.
        seed: of every draw.
    """

    side: int | None = 16
    sign: str = "signed"
    norm: str = "l1"
    channels: int | None = None
    neighbours: int = 10
    symmetric: str = "mean"
    eigenvalues: int = 32
    most: int = 10
    places: bool = True
    embedding: str = "umap"
    exemplars: int = 12
    smallest: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("sign", self.sign, preparing.SIGNS),
            ("norm", self.norm, preparing.NORMS),
            ("symmetric", self.symmetric, SYMMETRIES),
            ("embedding", self.embedding, EMBEDDINGS),
        ):
            if value not in allowed:
                raise InvalidInput(f"{name}: {value!r}\n  do: give one of {', '.join(allowed)}")
        for name, number, least in (
            ("side", 1 if self.side is None else self.side, 1), ("neighbours", self.neighbours, 1),
            ("eigenvalues", self.eigenvalues, 3), ("most", self.most, 2), ("exemplars", self.exemplars, 1),
            ("smallest", self.smallest, 6), ("seed", self.seed, 0),
        ):  # fmt: skip
            if number < least:
                raise InvalidInput(f"{name}: {number}\n  do: give {least} or more")


def spray(
    relevance: Any,
    target: Any = None,
    *,
    label: Any = None,
    output: Any = None,
    score: Any = None,
    pictures: Any = None,
    rows: Any = None,
    names: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> Analysis:
    """Find the strategies of a model in the relevance of many samples, class by class.

    Args:
        relevance: (N, H, W), (N, C, H, W), (N, T) or (N, F); a tensor, an array, or anything that gives an array when it is
            indexed by rows (a column of a store), so that it need not fit in memory.
        target: (N,) the class each sample was explained for; None: all are one class, 0.
        label: (N,) true classes, −1 for none. output: (N, K). score: (N,) the explained scores.
        pictures: (N, h, w) or (N, h, w, channels), small pictures of the inputs, indexed as the relevance is.
        rows: which samples take part; by default all.
        names: of the classes.
        progress: called with the name of the class, how many are done and how many there are.
        settings: those of `Settings`.

    Returns:
        The analysis; classes that could not be analysed are in `refused`, with the reason.

    Raises:
        InvalidInput: NaN in the relevance, lengths that differ, an unknown setting, or no class that can be analysed.
        MissingExtra: a package of `pip install 'relprop[analyse]'` is missing.
    """
    how = _settings(settings)
    if not hasattr(relevance, "shape"):
        relevance = np.asarray(relevance)
    count = relevance.shape[0] if relevance.shape else 0
    if not count:
        raise InvalidInput("relevance: no samples\n  do: give one map a sample")
    targets = (
        np.zeros(count, np.int64) if target is None else _column("target", target, count).astype(np.int64)
    )
    given = {"label": label, "score": score}
    columns = {name: None if v is None else _column(name, v, count) for name, v in given.items()}
    predicted = None if output is None else _column("output", output, count).argmax(1)
    taken = np.arange(count) if rows is None else np.arange(count)[np.asarray(rows)]
    found: list[ClassAnalysis] = []
    refused: dict[int, str] = {}
    classes, sizes = np.unique(targets[taken], return_counts=True)
    if (largest := int(sizes.max(initial=0))) >= how.smallest:
        _check_packages(how, largest)
    for number, one in enumerate(classes):
        own = taken[targets[taken] == one]
        name = _called(int(one), names)
        if progress is not None:
            progress(name, number, len(classes))
        label_, predicted_, score_ = (
            None if v is None else v[own] for v in (columns["label"], predicted, columns["score"])
        )
        known = Known(int(one), label_, predicted_, score_, _pictures(pictures, own))
        try:
            found.append(analyse_class(relevance, own, name, known, how))
        except Refused as error:
            refused[int(one)] = str(error)
    if not found:
        why = "; ".join(f"{_called(one, names)}: {words}" for one, words in list(refused.items())[:3])
        raise InvalidInput(
            f"no class can be analysed ({why})\n  do: explain more samples a class, or lower smallest (--smallest)"
        )
    found.sort(key=lambda one: -one.clusterability)
    return Analysis(tuple(found), refused, {"method": "spray", **asdict(how)})


def _called(target: int, names: Sequence[str]) -> str:
    return names[target] if 0 <= target < len(names) else f"class {target}"


def _check_packages(how: Settings, largest: int) -> None:
    """Raise `MissingExtra` where a package that classes of up to `largest` samples need is missing, before any is analysed."""
    graph = ("scipy.sparse.linalg", "sklearn.neighbors", "sklearn.cluster")
    for name in (*graph, *(("pynndescent",) if largest > EXACT else ()), *PACKAGES.get(how.embedding, ())):
        needed(name)


class Refused(Exception):
    """Why a class is not analysed, in a few words; the other classes are."""


def analyse_class(
    relevance: Any, rows: NDArray[np.int64], name: str, known: Known, how: Settings
) -> ClassAnalysis:
    """The analysis of one class. Raises `Refused` where its maps cannot be grouped."""
    n = len(rows)
    if n < how.smallest:
        raise Refused(f"{n} samples, fewer than {how.smallest}")
    raw = preparing.pooled(relevance, rows, side=how.side, sign=how.sign, channels=how.channels)
    if not raw.any():
        raise Refused("all relevance is 0")
    maps, shares = preparing.normalised(raw, how.norm), preparing.shares(raw)
    del raw
    flat = maps.reshape(n, -1)
    if not np.ptp(flat, axis=0).max() > 1e-12:
        raise Refused("all maps are the same")
    split = places.search(shares, seed=how.seed) if how.places else None
    divides = split if split is not None and split.findings.suspicion >= FLAGGED else None
    features = _features(flat, shares, divides, how.seed)
    k = min(max(how.neighbours, 15 if how.embedding == "umap" else 1), n - 1)
    indices, distances = neighbours(features, k, how.seed)
    weights = affinity(indices[:, : min(how.neighbours, k)], how.symmetric)
    values, vectors = eigenpairs(weights, min(how.eigenvalues, n - 1), how.seed)
    most = min(how.most, len(values) - 1)
    labels = {number: spectral_labels(vectors, number, how.seed) for number in range(2, most + 1)}
    gap = best_number(values, most)
    chosen = _number(labels, gap, divides, shares)
    labels = {1: np.zeros(n, np.int64), **labels}
    layout = embed(features, weights, vectors, indices, distances, how.embedding, how.seed)
    size = _size(relevance.shape[1:], how.channels)
    clusters = tuple(
        _cluster(number, labels[chosen], rows, maps, shares, features, weights, known, size, how)
        for number in range(int(labels[chosen].max()) + 1)
    )
    return ClassAnalysis(
        target=known.target,
        name=name,
        rows=rows,
        eigenvalues=values,
        gap_number=gap,
        clusters_number=chosen,
        labels=labels,
        embedding=layout,
        spectral=vectors.astype(np.float32),
        clusterability=clusterability(vectors, labels[max(chosen, 2)]),
        null=against_chance(flat, how.neighbours, how.seed),
        clusters=tuple(sorted(clusters, key=lambda one: -one.suspicion)),
        mean_map=_mean(maps),
        accuracy=float("nan") if known.right is None else float(np.nanmean(known.right)),
    )


def _features(
    flat: NDArray[np.float32], shares: NDArray[np.float32], split: places.Split | None, seed: int
) -> NDArray[np.float32]:
    """The points of the graph: the maps, and where a place divides the class, one coordinate more.

    It goes from one group's usual share to the other's, and is so long that neighbours are of the same group.
    """
    if split is None:
        return flat
    random = np.random.default_rng(seed)
    pairs = random.integers(len(flat), size=(2, 256))
    length = 2 * np.sqrt(((flat[pairs[0]] - flat[pairs[1]]) ** 2).sum(1).max())
    root = np.sqrt(places.share_in(shares, split.findings.box))
    across = np.clip((root - split.threshold) / max(split.high - split.low, 1e-9) * 4, -0.5, 0.5)
    return np.hstack([flat, (length * across[:, None]).astype(np.float32)])


def _number(
    labels: Mapping[int, NDArray[np.int64]], gap: int, split: places.Split | None, shares: NDArray[np.float32]
) -> int:
    """The number of clusters: the gap's, unless a place divides the class and another number has its group as a cluster."""
    if split is None:
        return gap
    group = np.sqrt(places.share_in(shares, split.findings.box)) > split.threshold
    agreement = {number: _overlap(group, found) for number, found in labels.items()}
    best = max(agreement.values())
    if agreement.get(gap, 0.0) >= best - 0.02:
        return gap
    return min(number for number, value in agreement.items() if value >= best - 0.02)


def _overlap(group: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    """The largest F1 of a group and any of the clusters."""
    sizes = np.bincount(labels)
    inside = np.bincount(labels[group], minlength=len(sizes))
    return float((2 * inside / (sizes + group.sum())).max())


def _cluster(
    number: int,
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    maps: NDArray[np.float32],
    shares: NDArray[np.float32],
    features: NDArray[np.float32],
    weights: Any,
    known: Known,
    size: tuple[int, int],
    how: Settings,
) -> Cluster:
    members = labels == number
    findings = places.compare(shares, members, how.seed)
    place = None if findings is None else places.as_place(findings.box, shares.shape[1:], size)
    sizes = np.bincount(labels)
    sizes[number] = 0
    main = labels == sizes.argmax() if len(sizes) > 1 else members
    inside = weights[members]
    isolated = float(inside[:, members].sum() / max(inside.sum(), 1e-12))
    own = np.flatnonzero(members)
    centre = features[own].mean(0)
    typical = own[np.argsort(((features[own] - centre) ** 2).sum(1), kind="stable")[: how.exemplars]]
    told = () if len(sizes) == 1 else evidence(findings, place, shares, members, main, isolated, known)
    return Cluster(
        number=number,
        rows=rows[own],
        share=len(own) / len(rows),
        suspicion=0.0 if findings is None else findings.suspicion,
        evidence=told,
        exemplars=rows[typical],
        mean_map=_mean(maps[own]),
        place=place if told else None,
    )


def _mean(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = maps.mean(0, dtype=np.float64).astype(np.float32)
    return found[0] if found.shape[0] == 1 else found


def _size(shape: tuple[int, ...], channels: int | None) -> tuple[int, int]:
    """Height and width of the maps before they are pooled."""
    axis = 1 if channels is None and len(shape) == 3 else channels
    left = [size for number, size in enumerate(shape, 1) if number != axis]
    return (1, left[0]) if len(left) == 1 else (left[0], left[1])


def _pictures(pictures: Any, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
    """The class's pictures as float32, or None where there are too many to hold."""
    if pictures is None or len(rows) > PICTURES:
        return None
    return np.asarray(pictures[rows], dtype=np.float32)


def _column(name: str, values: Any, count: int) -> NDArray[Any]:
    array = np.asarray(values)
    if array.shape[:1] != (count,):
        raise InvalidInput(f"{name}: shape {array.shape} for {count} maps\n  do: give one row a sample")
    return array


def _settings(given: Mapping[str, Any]) -> Settings:
    unknown = set(given) - set(Settings.__dataclass_fields__)
    if unknown:
        raise InvalidInput(
            f"{', '.join(sorted(unknown))}: no setting of spray\n  do: one of {', '.join(Settings.__dataclass_fields__)}"
        )
    return Settings(**given)
