"""ViRelAy's project files, written and read: data, attributions, analyses, a label map and the project itself.

The layout is the one that ViRelAy reads, which is flatter than its published description: docs/interoperation.md.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relprop.errors import InvalidInput
from relprop.exchange.layout import Category, Project, h5py, opened, yaml

BLOCK = 64
"""Samples that are in memory at a time while files are written."""

FILES = {"data": "data.input.h5", "attribution": "relevance.attribution.h5", "analysis": "spray.analysis.h5"}


def write_virelay(folder: str | Path, project: Project) -> Path:
    """Write a project that ViRelAy opens: `virelay FOLDER/project.yaml`.

    Arrays may be lazy: they are read in blocks of samples. Relevance (A, H, W) counts as one channel.
    Returns the path of project.yaml. Raises `InvalidInput` where the folder is in use, arrays do not belong together, or
    analyses have no embedding or other names of clusterings in one class than in another.
    """
    place = Path(folder)
    _check(place, project)
    package, dump = h5py(), yaml()
    try:
        place.mkdir(parents=True, exist_ok=True)
        _check_room(place, project)
        with package.File(place / FILES["data"], "w") as file:
            _fill(file, "data", project.images, np.asarray(project.images[:1]).dtype)
            file["label"] = _image_labels(project)
        with package.File(place / FILES["attribution"], "w") as file:
            _fill(file, "attribution", project.relevance, np.dtype(np.float32))
            _fill(file, "prediction", project.prediction, np.dtype(np.float32), channel=False)
            file["label"] = project.target.astype(np.uint32)
            file["index"] = project.rows.astype(np.uint32)
        if project.categories:
            with package.File(place / FILES["analysis"], "w") as file:
                for category in project.categories:
                    _analysis(file.create_group(category.name), category)
    except OSError as error:
        raise InvalidInput(
            f"{place}: cannot be written ({error.strerror or error})\n  do: give another place"
        ) from error
    (place / "label-map.json").write_text(json.dumps(label_map(project), indent=1), encoding="utf-8")
    content = {"project": _described(project)}
    (place / "project.yaml").write_text(
        dump.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    return place / "project.yaml"


def word_net_id(project: Project, index: int) -> str:
    """What a class is called in the label map: its identifier, or its index in eight digits."""
    return project.word_net_ids[index] if index < len(project.word_net_ids) else f"{index:08}"


def label_map(project: Project) -> list[dict[str, Any]]:
    """An entry for each class: index, word_net_id and name."""
    count = max(len(project.classes), int(project.prediction.shape[1]))
    return [
        {
            "index": i,
            "word_net_id": word_net_id(project, i),
            "name": project.classes[i] if i < len(project.classes) else f"class {i}",
        }
        for i in range(count)
    ]


def _check(place: Path, project: Project) -> None:
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InvalidInput(f"{place}: is in use\n  do: give a folder that does not exist yet")
    counts = {
        "prediction": len(project.prediction),
        "target": len(project.target),
        "rows": len(project.rows),
    }
    for name, count in counts.items():
        if count != len(project.relevance):
            raise InvalidInput(
                f"{name}: {count} for {len(project.relevance)} attributions\n  do: give one each"
            )
    if project.images is None or len(project.images) != len(project.label):
        raise InvalidInput("images: not as many as labels\n  do: give a picture for every sample")
    if len(project.rows) and int(np.max(project.rows)) >= len(project.images):
        raise InvalidInput(
            f"rows: {int(np.max(project.rows))} in a data set of {len(project.images)}\n  do: give rows of it"
        )
    names = {(tuple(sorted(one.embeddings)), tuple(sorted(one.clusters))) for one in project.categories}
    if len(names) > 1:
        raise InvalidInput(
            "categories: with other embeddings or clusterings in one class than in another, which ViRelAy cannot show\n"
            "  do: give every class the same names"
        )
    if names and not all(next(iter(names))):
        raise InvalidInput(
            "categories: without an embedding or a clustering\n  do: give one of each at least"
        )


def _check_room(place: Path, project: Project) -> None:
    """Raise `InvalidInput` where the disk has no room for the arrays: HDF5 ends the process when a disk is full."""
    needed = sum(
        math.prod(values.shape) * np.asarray(values[:1]).itemsize
        for values in (project.images, project.relevance, project.prediction)
    )
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InvalidInput(
            f"{place}: the project may take {needed:,} bytes, and the disk has {free:,}\n  do: make room, or give another place"
        )


def _fill(file: Any, name: str, values: Any, dtype: np.dtype[Any], channel: bool = True) -> None:
    """A data set, filled block by block; maps (A, H, W) get a channel."""
    shape = tuple(values.shape)
    flat = channel and len(shape) == 3
    shape = (shape[0], 1, *shape[1:]) if flat else shape
    if channel and len(shape) != 4:
        raise InvalidInput(
            f"{name}: shape {shape} is of no pictures, which is what ViRelAy shows\n  do: export a store of images"
        )
    made = file.create_dataset(
        name, shape, dtype, chunks=(1, *shape[1:]), compression="gzip", compression_opts=1
    )
    for start in range(0, shape[0], BLOCK):
        part = np.asarray(values[start : start + BLOCK])
        made[start : start + BLOCK] = part[:, None] if flat else part


def _image_labels(project: Project) -> np.ndarray:
    """A class index for each picture; where some have none, a row of marks, none of which is set for those."""
    labels = np.asarray(project.label)
    if (labels >= 0).all():
        return labels.astype(np.uint16)
    marks = np.zeros((len(labels), len(label_map(project))), dtype=bool)
    known = np.flatnonzero(labels >= 0)
    marks[known, labels[known]] = True
    return marks


def _analysis(group: Any, category: Category) -> None:
    group["index"] = category.rows.astype(np.uint32)
    for name, values in category.embeddings.items():
        group[f"embedding/{name}"] = np.asarray(values, dtype=np.float32)
        if name in category.eigenvalues:
            group[f"embedding/{name}"].attrs["eigenvalue"] = np.asarray(
                category.eigenvalues[name], dtype=np.float32
            )
    for name, labels in category.clusters.items():
        group[f"cluster/{name}"] = np.asarray(labels, dtype=np.int32)
        group[f"cluster/{name}"].attrs["k"] = int(np.max(labels, initial=-1)) + 1
        group[f"cluster/{name}"].attrs["index"] = np.arange(len(labels), dtype=np.uint32)


def _described(project: Project) -> dict[str, Any]:
    height, width = project.images.shape[-2:]
    found: dict[str, Any] = {
        "name": project.name,
        "model": project.model,
        "label_map": "label-map.json",
        "dataset": {
            "name": project.name,
            "type": "hdf5",
            "path": FILES["data"],
            "input_width": int(width),
            "input_height": int(height),
            "up_sampling_method": "none",
            "down_sampling_method": "none",
        },
        "attributions": {
            "attribution_method": project.method,
            "attribution_strategy": project.strategy,
            "sources": [FILES["attribution"]],
        },
    }
    analyses = [{"analysis_method": "Spectral", "sources": [FILES["analysis"]]}] if project.categories else []
    return {**found, "analyses": analyses}


# ---------------------------------------------------------------- reading


def read_virelay(path: str | Path) -> Project:
    """The project of a project.yaml, read into memory, with every attribution and analysis that it names.

    Pictures that lie in a folder are not read: `images` is None. Raises `InvalidInput` for what is not there, damaged, or
    not as ViRelAy reads it, with the file at fault.
    """
    file = Path(path)
    told = _project(file)
    labels = _label_map(file.parent / told["label_map"])
    parts = [_attributions(file.parent / one) for one in told["attributions"]]
    images, image_labels = (None, None) if told["data"] is None else _data(file.parent / told["data"])
    rows = np.concatenate([part["rows"] for part in parts])
    count = int(rows.max()) + 1 if images is None else len(images)
    categories = [one for source in told["analyses"] for one in _categories(file.parent / source)]
    known = set(rows.tolist())
    if int(rows.max()) >= count or any(not known.issuperset(one.rows.tolist()) for one in categories):
        raise InvalidInput(
            f"{file}: attributions or analyses of samples that are not there\n  do: restore the files"
        )
    return Project(
        np.concatenate([part["relevance"] for part in parts]),
        np.concatenate([part["prediction"] for part in parts]),
        np.concatenate([part["target"] for part in parts]),
        rows,
        images,
        np.full(count, -1) if image_labels is None else image_labels,
        tuple(str(one["name"]) for one in labels),
        tuple(categories),
        tuple(str(one["word_net_id"]) for one in labels),
        *told["words"],
    )


def _project(file: Path) -> dict[str, Any]:
    """The names of a project's files and what it says of itself."""
    package = yaml()
    try:
        held: dict[str, Any] = package.safe_load(file.read_text(encoding="utf-8"))["project"]
        given, dataset = held["attributions"], held["dataset"]
        words = (
            held.get("name", file.stem),
            held.get("model", ""),
            given.get("attribution_method", ""),
            given.get("attribution_strategy", "predicted_label"),
        )
        found: dict[str, Any] = {
            "label_map": str(held["label_map"]),
            "attributions": [str(one) for one in given["sources"]],
            "data": str(dataset["path"]) if dataset.get("type") == "hdf5" else None,
            "analyses": [str(one) for held_by in held.get("analyses") or () for one in held_by["sources"]],
            "words": tuple(str(one) for one in words),
        }
        if not found["attributions"]:
            raise KeyError("sources")
    except OSError as error:
        raise InvalidInput(f"{file}: cannot be read ({error.strerror})\n  do: give a project.yaml") from error
    except KeyError as error:
        raise InvalidInput(
            f"{file}: no ViRelAy project: {error} is missing\n  do: give a project.yaml"
        ) from error
    except (package.YAMLError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{file}: no ViRelAy project\n  do: give a project.yaml") from error
    return found


def _label_map(file: Path) -> list[dict[str, Any]]:
    try:
        held: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        return sorted(held, key=lambda one: (int(one["index"]), str(one["word_net_id"]), str(one["name"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{file}: no label map ({type(error).__name__})\n  do: give a list of index, word_net_id and name"
        ) from error


def _stacked(held: Any) -> np.ndarray:
    """A data set, or a group of one a sample in the order of their names."""
    return np.asarray(held[:]) if hasattr(held, "shape") else np.stack([held[key][:] for key in held])


def _classes(values: np.ndarray) -> np.ndarray:
    """Class indices; a row of several is its only entry that is not 0, −1 where there are more."""
    if values.ndim == 1 and values.dtype != bool:
        return values.astype(np.int64)
    marked = values != 0
    return np.where(marked.sum(1) == 1, marked.argmax(1), -1).astype(np.int64)


def _labels(held: Any) -> np.ndarray:
    values = np.asarray(held[()]) if hasattr(held, "shape") else np.stack([held[key][()] for key in held])
    return _classes(values)


def _data(file: Path) -> tuple[np.ndarray, np.ndarray]:
    with opened(file) as held:
        return _stacked(held["data"]), _labels(held["label"])


def _attributions(file: Path) -> dict[str, np.ndarray]:
    with opened(file) as held:
        relevance = _stacked(held["attribution"]).astype(np.float32)
        prediction = _stacked(held["prediction"]).astype(np.float32)
        rows = np.asarray(held["index"][:]) if "index" in held else np.arange(len(relevance))
        target = _labels(held["label"])
    for name, values in (("prediction", prediction), ("index", rows), ("label", target)):
        if len(values) != len(relevance):
            raise InvalidInput(
                f"{file}: {len(values)} of {name} for {len(relevance)} attributions\n  do: restore the file"
            )
    return {
        "relevance": relevance,
        "prediction": prediction,
        "target": target,
        "rows": rows.astype(np.int64),
    }


def _categories(file: Path) -> Sequence[Category]:
    with opened(file) as held:
        found = []
        for name, group in held.items():
            embeddings = {key: np.asarray(one[:], np.float32) for key, one in group["embedding"].items()}
            values = {
                key: np.asarray(one.attrs["eigenvalue"], np.float32)
                for key, one in group["embedding"].items()
                if "eigenvalue" in one.attrs
            }
            clusters = {key: np.asarray(one[:]).astype(np.int64) for key, one in group["cluster"].items()}
            rows = np.asarray(group["index"][:]).astype(np.int64)
            counts = {key: len(one) for key, one in embeddings.items()} | {
                k: len(v) for k, v in clusters.items()
            }
            for key, count in counts.items():
                if count != len(rows):
                    raise InvalidInput(
                        f"{file}: {count} of {name}/{key} for {len(rows)} samples\n  do: restore the file"
                    )
            found.append(Category(str(name), rows, embeddings, clusters, values))
        return found
