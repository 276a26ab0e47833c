"""Stores and their analyses as ViRelAy projects, and such projects as stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop import store as stores
from relprop.analyse.result import Analysis, ClassAnalysis, Cluster, Evidence
from relprop.analyse.stored import guesses_of, preprocessing_of
from relprop.data import pillow
from relprop.errors import InvalidInput
from relprop.exchange.layout import Category, Project
from relprop.exchange.virelay import read_virelay, write_virelay
from relprop.store import Store

EXEMPLARS = 9


@dataclass(frozen=True, slots=True)
class Lazy:
    """An array (N, …) whose blocks of samples are made when they are asked for."""

    shape: tuple[int, ...]
    read: Callable[[np.ndarray], Any]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.asarray(self.read(np.arange(len(self))[part]))


def export_virelay(store: Store, folder: str | Path, analysis: Analysis | None = None) -> Path:
    """Write a store of images, and its analysis, as a project that ViRelAy opens; returns the path of project.yaml.

    The samples that are explained are exported, in the order of the store. Pictures are the photographs as the network saw
    them, where their files are still there, else the store's thumbnails, brought to the size of the relevance maps.
    Raises `InvalidInput` where the store is of no images or the folder is in use.
    """
    if store.kind != "image":
        raise InvalidInput(
            f"store: {store.path} is of kind {store.kind!r}, and ViRelAy shows images\n"
            "  do: export the clusters as a table instead: --csv FILE"
        )
    rows = np.flatnonzero(store.done)
    if not len(rows):
        raise InvalidInput(f"store: {store.path} has no sample that is explained\n  do: relprop run --resume")
    relevance, output = store.relevance, store.lazy("output")
    targets, labels = store.column("target")[rows], store.column("label")[rows].astype(np.int64)
    outputs = max(output.shape[1], int(targets.max()) + 1, int(labels.max()) + 1)
    names = tuple(store.class_name(i) for i in range(outputs))

    def predicted(part: np.ndarray) -> np.ndarray:
        found = np.zeros((len(part), outputs), dtype=np.float32)
        found[:, : output.shape[1]] = output[rows[part]]
        return found

    project = Project(
        relevance=Lazy((len(rows), *relevance.shape[1:]), lambda part: relevance[rows[part]]),
        prediction=Lazy((len(rows), outputs), predicted),
        target=targets.astype(np.int64),
        rows=np.arange(len(rows)),
        images=_pictures(store, rows),
        label=labels,
        classes=names,
        categories=() if analysis is None else _categories(analysis, rows),
        name=store.path.name,
        model=str((store.attributes.get("model") or {}).get("name", "")),
        method=f"{store.attributes.get('method', 'lrp')} {store.attributes.get('rules', '')}".strip(),
        strategy="true_label" if (targets == labels).all() else "predicted_label",
    )
    return write_virelay(folder, project)


def _pictures(store: Store, rows: np.ndarray) -> Lazy:
    high, wide = store.relevance.shape[-2:]
    sources = store.column("source")[rows]
    there = all(Path(str(one)).is_file() for one in sources)
    told = bool(store.attributes.get("preprocessing"))
    if not (there and told) and "thumbnail" not in store.columns:
        raise InvalidInput(
            f"store: {store.path} has neither thumbnails nor photographs that are still there, and ViRelAy needs pictures\n"
            "  do: put the photographs back where they were, or run again with thumbnails"
        )
    package = pillow()

    def fitted(picture: Any) -> np.ndarray:
        return np.asarray(picture.convert("RGB").resize((wide, high), package.Image.Resampling.BICUBIC)).transpose(2, 0, 1)  # fmt: skip

    def read(part: np.ndarray) -> np.ndarray:
        if there and told:
            how = preprocessing_of(store)
            return np.stack([fitted(how.cropped(str(sources[i]))) for i in part])
        return np.stack([fitted(package.Image.fromarray(one)) for one in store.lazy("thumbnail")[rows[part]]])

    return Lazy((len(rows), 3, high, wide), read)


def _categories(analysis: Analysis, rows: np.ndarray) -> tuple[Category, ...]:
    """The analysed classes, with the clusterings that all have; the reported one is called "spray"."""
    place = np.full(int(rows.max()) + 1, -1)
    place[rows] = np.arange(len(rows))
    if not analysis.classes:
        return ()
    common = set.intersection(*(set(one.labels) for one in analysis.classes))
    drawn = all(np.isfinite(one.embedding).all() for one in analysis.classes)
    found = []
    for one in analysis.classes:
        if not np.isin(one.rows, rows).all():
            raise InvalidInput(
                "analysis: it speaks of samples that the store has not explained\n  do: relprop analyse again"
            )
        clusters = {f"kmeans-{k:02}": np.asarray(one.labels[k]) for k in sorted(common)}
        reported = np.full(len(one.rows), -1)
        for cluster in one.clusters:
            reported[np.isin(one.rows, cluster.rows)] = cluster.number
        embeddings = {"spectral": one.spectral}
        if drawn:
            embeddings = {"picture": one.embedding, **embeddings}
        name = f"{one.target:08}" if one.target >= 0 else one.name  # all samples as one group
        found.append(
            Category(name, place[one.rows], embeddings, {"spray": reported, **clusters}, {"spectral": one.eigenvalues.astype(np.float32)})
        )  # fmt: skip
    return tuple(found)


# ---------------------------------------------------------------- the other way


def import_virelay(project: str | Path, store: str | Path) -> tuple[Store, Analysis | None]:
    """Make a store of a ViRelAy project, and an analysis of what the project has clustered; None without one.

    Args:
        project: the path of its project.yaml.
        store: the folder to write, which must not exist yet.

    The analysis holds the clusters as they were found elsewhere: suspicion 0, and evidence that says where they are from.
    Raises `InvalidInput` as `read_virelay` and `relprop.store.write_store` do.
    """
    held = read_virelay(project)
    count = len(held.relevance)
    if count != len(np.unique(held.rows)):
        raise InvalidInput(
            f"{project}: {count} attributions of {len(np.unique(held.rows))} samples\n"
            "  do: import a project with one attribution a sample"
        )
    score = held.prediction[np.arange(count), np.clip(held.target, 0, held.prediction.shape[1] - 1)]
    columns: dict[str, Any] = (
        {"thumbnail": _thumbnails(held.images[held.rows])} if held.images is not None else {}
    )
    made = stores.write_store(
        store,
        relevance=held.relevance,
        output=held.prediction,
        target=held.target,
        label=held.label[held.rows],
        score=score.astype(np.float64),
        gap=np.full(count, np.nan),  # no audit came with it
        id=[str(row) for row in held.rows],
        kind="image",
        classes=held.classes,
        attributes={
            "model": {"name": held.model},
            "method": held.method,
            "command": f"imported from the ViRelAy project {held.name}",
        },
        **columns,
    )
    return made, _analysis(held, made)


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """Pictures (B, C, H, W) or (B, H, W, C) as (B, H, W, 3) uint8; ranges are told apart as ViRelAy does, sample by sample."""
    values = np.asarray(images)
    if values.shape[1] in (1, 3) and values.shape[-1] not in (1, 3):
        values = np.moveaxis(values, 1, -1)
    if values.dtype != np.uint8:
        flat = values.reshape(len(values), -1)
        low, high = (end.reshape(-1, 1, 1, 1) for end in (flat.min(1), flat.max(1)))
        values = np.where(low < 0, (values + 1) / 2, np.where(high > 1, values / 255, values))
        values = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values


def _common(targets: NDArray[np.int64]) -> int:
    """The class that all of these are; −1 where they are of several, and so make no class."""
    return int(targets[0]) if (targets == targets[0]).all() else -1


def _analysis(held: Project, store: Store) -> Analysis | None:
    if not held.categories:
        return None
    ids = {name: i for i, name in enumerate(held.word_net_ids)}
    place = {int(sample): row for row, sample in enumerate(held.rows)}
    right = guesses_of(store) == store.column("label")
    classes = []
    for one in held.categories:
        rows = np.array([place[int(sample)] for sample in one.rows], dtype=np.int64)
        labels = {len(np.unique(v[v >= 0])): v for name, v in sorted(one.clusters.items()) if (v >= 0).any()}
        name, chosen = _chosen(one)
        target = ids.get(one.name, _common(held.target[rows]))
        maps = _normalised(held.relevance[rows])
        pictures = [v for v in one.embeddings.values() if v.ndim == 2 and v.shape[1] == 2]
        spectral = one.embeddings.get("spectral", next(iter(one.embeddings.values())))
        values = one.eigenvalues.get("spectral", np.full(spectral.shape[1], np.nan)).astype(np.float64)
        ascending = np.argsort(values, kind="stable")  # CoRelAy lists them from the largest down
        classes.append(
            ClassAnalysis(
                target,
                held.classes[target] if 0 <= target < len(held.classes) else one.name,
                rows,
                values[ascending],
                len(np.unique(chosen[chosen >= 0])),
                len(np.unique(chosen[chosen >= 0])),
                labels,
                pictures[-1] if pictures else np.full((len(rows), 2), np.nan, np.float32),
                spectral[:, ascending],
                float("nan"),
                {},
                _clusters(rows, chosen, maps, f"{name} of the ViRelAy project {held.name}"),
                maps.mean(0),
                float(right[rows].mean()),
            )
        )
    settings: Mapping[str, Any] = {"imported": held.name}
    return Analysis(tuple(classes), {}, settings, {"store": str(store.path)})


def _chosen(category: Category) -> tuple[str, np.ndarray]:
    """The clustering that is shown first: relprop's own, else the first by name."""
    name = "spray" if "spray" in category.clusters else min(category.clusters)
    return name, np.asarray(category.clusters[name])


def _normalised(relevance: np.ndarray) -> np.ndarray:
    maps = relevance.sum(1)
    total = np.abs(maps).sum((1, 2), keepdims=True)
    found: np.ndarray = (maps / np.where(total > 0, total, 1)).astype(np.float32)
    return found


def _clusters(rows: np.ndarray, labels: np.ndarray, maps: np.ndarray, origin: str) -> tuple[Cluster, ...]:
    found = []
    for number in np.unique(labels[labels >= 0]):
        own = labels == number
        mean = maps[own].mean(0)
        near = np.argsort(((maps[own] - mean) ** 2).sum((1, 2)), kind="stable")[:EXEMPLARS]
        words = f"imported: {origin}; its suspicion was not computed"
        share = float(own.mean())
        evidence = (Evidence("imported", share, float("nan"), words),)
        found.append(Cluster(int(number), rows[own], share, 0.0, evidence, rows[own][near], mean))
    return tuple(sorted(found, key=lambda one: -one.size))
