"""What an analysis of many relevance maps found: plain arrays and words, saved as a folder of JSON and NumPy arrays."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.errors import InvalidInput

SCHEMA = 1
"""The version of the saved form; a folder of a later one is refused."""

FLAGGED = 0.65
"""A cluster of at least this suspicion is flagged: set by marked and unmarked digits; studies/planted_mark.py measures it."""

ARRAYS = ("rows", "eigenvalues", "embedding", "spectral", "mean_map")
"""The arrays of a class that go into the file of arrays as they are."""

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]
Singles = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Place:
    """A box in a map, in fractions of its height and width (0 is the top or the left side, 1 the other).

    Maps of one dimension (series, tables) use the width alone: their boxes reach from top 0 to bottom 1.
    """

    top: float
    left: float
    bottom: float
    right: float

    @property
    def area(self) -> float:
        """The share of the map that the box takes."""
        return (self.bottom - self.top) * (self.right - self.left)

    def pixels(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, bottom and right in a picture of that size; at least one pixel."""
        top, left = int(self.top * height + 1e-6), int(self.left * width + 1e-6)
        bottom = max(top + 1, int(np.ceil(self.bottom * height - 1e-6)))
        return top, left, bottom, max(left + 1, int(np.ceil(self.right * width - 1e-6)))


@dataclass(frozen=True, slots=True)
class Evidence:
    """One observation about a cluster.

    Attributes:
        name: what was measured, such as `"place"`, `"border"`, `"accuracy"`.
        value: the figure for the cluster; `usual` is the same figure for the rest of its class, NaN where there is none.
        words: the observation as a sentence.
    """

    name: str
    value: float
    usual: float
    words: str


@dataclass(frozen=True, slots=True)
class Effect:
    """A change of the explained score, paired with the same change at random places.

    Attributes:
        change, control: means over the samples, in units of the score.
        low, high: a 95 % bootstrap interval of the mean of change − control.
        samples: how many there were.
    """

    change: float
    control: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What happened to the score when a suspected artefact was put into clean samples and taken out of affected ones.

    Attributes:
        inject, remove: the two experiments, each against a random patch of the same size.
        flips, flips_control: the share of clean samples of other classes that turn to the class.
        share: of the members' positive relevance inside the place; `area` is the place's share of the map.
        confirmed: both intervals exclude 0 in the artefact's direction.
        words: the result as a sentence.
    """

    inject: Effect
    remove: Effect
    flips: float
    flips_control: float
    share: float
    area: float
    confirmed: bool
    words: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """Samples of a class whose relevance maps are alike: one strategy of the model.

    Attributes:
        number: its label in `ClassAnalysis.labels[ClassAnalysis.clusters_number]`.
        rows: the rows of the store (or of the array) that belong to it.
        share: of the class's samples.
        suspicion: 0…1; how much it looks like an artefact. From `FLAGGED` on it is flagged.
        evidence: why, the strongest first.
        exemplars: rows, the most typical first.
        mean_map: (h, w) or (w,), the mean of the normalised maps, signed.
        place: where the cluster's relevance differs from the rest of the class; None where nothing stands out.
        confirmation: filled in by `confirm_store`.
        unconfirmed: why `confirm_store` could not put the cluster to the test, in a few words; empty where it did, or was not asked.
    """

    number: int
    rows: Integers
    share: float
    suspicion: float
    evidence: tuple[Evidence, ...]
    exemplars: Integers
    mean_map: Singles
    place: Place | None = None
    confirmation: Confirmation | None = None
    unconfirmed: str = ""

    @property
    def size(self) -> int:
        """How many samples."""
        return len(self.rows)

    @property
    def flagged(self) -> bool:
        """The suspicion reaches `FLAGGED`."""
        return self.suspicion >= FLAGGED


@dataclass(frozen=True, slots=True)
class ClassAnalysis:
    """The strategies that a model uses for one class.

    Attributes:
        target: the class (the explained output); `name` what it is called.
        rows: (n,) the rows of the store that were explained for it; the arrays below are in this order.
        eigenvalues: (q,) the smallest of the normalised Laplacian, ascending.
        gap_number: the number of clusters by the largest gap of the eigenvalues.
        clusters_number: the number of clusters that is reported (docs/analysis.md: where it differs from `gap_number`).
        labels: from a number of clusters to (n,) labels.
        embedding: (n, 2) for looking at; NaN in all of it where none was asked for.
        spectral: (n, q) the eigenvectors that belong to the eigenvalues.
        clusterability: Fisher's discriminant τ of the clusters in the spectral embedding.
        null: what `eigenvalue_2` and `clusterability` are worth against maps whose pixels were shuffled across samples:
            z-scores `eigenvalue_2_z` (negative: better separated than chance) and `clusterability_z`.
        clusters: at `clusters_number`, the most suspicious first.
        mean_map: (h, w) or (w,), over all maps of the class.
        accuracy: the share whose label is the class; NaN where there are no labels.
    """

    target: int
    name: str
    rows: Integers
    eigenvalues: Reals
    gap_number: int
    clusters_number: int
    labels: Mapping[int, Integers]
    embedding: Singles
    spectral: Singles
    clusterability: float
    null: Mapping[str, float]
    clusters: tuple[Cluster, ...]
    mean_map: Singles
    accuracy: float = float("nan")

    @property
    def suspicion(self) -> float:
        """That of the most suspicious cluster."""
        return max((cluster.suspicion for cluster in self.clusters), default=0.0)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Analysis:
    """The strategies of a model, class by class.

    Attributes:
        classes: by clusterability, the most clusterable first.
        refused: from a class to why it was not analysed (too few samples, constant maps, …).
        settings: every setting of the analysis, as it was used.
        source: the store that was analysed and its state, or nothing.
    """

    classes: tuple[ClassAnalysis, ...]
    refused: Mapping[int, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, target: int) -> ClassAnalysis:
        """The analysis of one class. Raises `InvalidInput` where there is none."""
        for one in self.classes:
            if one.target == target:
                return one
        why = self.refused.get(target, "no sample was explained for it")
        raise InvalidInput(f"class {target}: not analysed ({why})\n  do: classes are {self.targets}")

    def __repr__(self) -> str:
        strategies = sum(len(one.clusters) for one in self.classes)
        head = f"{len(self.classes)} classes, {strategies} strategies, {len(self.flagged)} flagged"
        return f"<Analysis: {head}, {len(self.refused)} classes left out>"

    @property
    def targets(self) -> list[int]:
        """The classes that were analysed, ascending."""
        return sorted(one.target for one in self.classes)

    @property
    def suspects(self) -> list[tuple[ClassAnalysis, Cluster]]:
        """All clusters with their classes, the most suspicious first."""
        pairs = [(one, cluster) for one in self.classes for cluster in one.clusters]
        return sorted(pairs, key=lambda pair: -pair[1].suspicion)

    @property
    def flagged(self) -> list[tuple[ClassAnalysis, Cluster]]:
        """Those of `suspects` that reach `FLAGGED`."""
        return [pair for pair in self.suspects if pair[1].flagged]

    def save(self, path: str | Path) -> Path:
        """Write a folder `path` with `analysis.json` and `arrays.npz`; an analysis that is there already is replaced.

        Raises `InvalidInput` where `path` is something else than an analysis.
        """
        folder = Path(path)
        if folder.exists() and not (folder / "analysis.json").is_file():
            raise InvalidInput(f"{folder}: is there and is no analysis\n  do: give another path")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InvalidInput(f"{folder}: {error.filename} is a file\n  do: give another path") from error
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            with (made / "arrays.npz").open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **_arrays(self))
            content = {"schema": SCHEMA, **_described(self)}
            (made / "analysis.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
            made.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            made.rename(folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return folder


def load(path: str | Path) -> Analysis:
    """The analysis in a folder that `Analysis.save` wrote.

    Raises `InvalidInput` where there is none, it is damaged, or a later version wrote it.
    """
    folder = Path(path)
    if not (folder / "analysis.json").is_file():
        raise InvalidInput(f"{folder}: no analysis is there\n  do: relprop analyse STORE makes one")
    try:
        content = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
        schema = content["schema"]
        if schema > SCHEMA:
            raise InvalidInput(
                f"{folder}: an analysis of schema {schema}, of a later relprop (this one reads {SCHEMA})\n"
                "  do: upgrade relprop, or analyse the store again"
            )
        with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
            classes = tuple(_class(one, arrays) for one in content["classes"])
    except InvalidInput:
        raise
    except Exception as error:  # zipfile, json, KeyError, TypeError, OSError: a damaged folder has many faces
        raise InvalidInput(
            f"{folder}: a damaged analysis ({error})\n  do: analyse the store again"
        ) from error
    refused = {int(target): why for target, why in content["refused"].items()}
    return Analysis(classes, refused, content["settings"], content["source"])


def with_confirmation(analysis: Analysis, target: int, number: int, found: Confirmation | str) -> Analysis:
    """The analysis with what `confirm` found for one cluster, or with why it could not be asked."""
    change: dict[str, Any] = (
        {"confirmation": None, "unconfirmed": found}
        if isinstance(found, str)
        else {"confirmation": found, "unconfirmed": ""}
    )

    def updated(one: ClassAnalysis) -> ClassAnalysis:
        if one.target != target:
            return one
        clusters = tuple(replace(c, **change) if c.number == number else c for c in one.clusters)
        return replace(one, clusters=clusters)

    return replace(analysis, classes=tuple(updated(one) for one in analysis.classes))


def _arrays(analysis: Analysis) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in analysis.classes:
        found |= {f"{one.target}/{name}": getattr(one, name) for name in ARRAYS}
        found |= {f"{one.target}/labels/{k}": labels.astype(np.int32) for k, labels in one.labels.items()}
        for cluster in one.clusters:
            place = f"{one.target}/cluster/{cluster.number}"
            found |= {f"{place}/rows": cluster.rows, f"{place}/mean_map": cluster.mean_map}
    return found


def _described(analysis: Analysis) -> dict[str, Any]:
    classes = []
    for one in analysis.classes:
        kept = {f.name: getattr(one, f.name) for f in fields(one) if f.name not in (*ARRAYS, "labels")}
        kept["null"] = dict(one.null)
        kept["labels"] = [int(k) for k in one.labels]
        kept["clusters"] = [_cluster_described(cluster) for cluster in one.clusters]
        classes.append(kept)
    return {
        "classes": classes,
        "refused": {str(target): why for target, why in analysis.refused.items()},
        "settings": dict(analysis.settings),
        "source": dict(analysis.source),
    }


def _cluster_described(cluster: Cluster) -> dict[str, Any]:
    kept = {
        f.name: getattr(cluster, f.name) for f in fields(cluster) if f.name not in ("rows", "mean_map")
    } | {"exemplars": cluster.exemplars.tolist()}
    kept["evidence"] = [asdict(one) for one in cluster.evidence]
    for name in ("place", "confirmation"):
        kept[name] = None if kept[name] is None else asdict(kept[name])
    return kept


def _class(content: dict[str, Any], arrays: Any) -> ClassAnalysis:
    target = content["target"]
    given = {name: arrays[f"{target}/{name}"] for name in ARRAYS}
    given["labels"] = {k: arrays[f"{target}/labels/{k}"].astype(np.int64) for k in content["labels"]}
    given["clusters"] = tuple(_cluster(one, target, arrays) for one in content["clusters"])
    return ClassAnalysis(**{**content, **given})


def _cluster(content: dict[str, Any], target: int, arrays: Any) -> Cluster:
    place = f"{target}/cluster/{content['number']}"
    content["rows"], content["mean_map"] = arrays[f"{place}/rows"], arrays[f"{place}/mean_map"]
    content["exemplars"] = np.array(content["exemplars"], dtype=np.int64)
    content["evidence"] = tuple(Evidence(**one) for one in content["evidence"])
    content["place"] = None if content["place"] is None else Place(**content["place"])
    if (found := content["confirmation"]) is not None:
        effects = {name: Effect(**found[name]) for name in ("inject", "remove")}
        content["confirmation"] = Confirmation(**{**found, **effects})
    return Cluster(**content)
