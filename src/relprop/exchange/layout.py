"""What a ViRelAy project holds, as plain arrays, and how its HDF5 files are opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.errors import InvalidInput, MissingExtra

Integers = NDArray[np.int64]
Singles = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Category:
    """The analysis of one class.

    Attributes:
        name: as the project's label map has it.
        rows: (n,) which samples it is of, numbers of the data set as in `Project.rows`.
        embeddings: (n, d) by name, such as "spectral", "umap".
        eigenvalues: (d,) of the embeddings that have some.
        clusters: (n,) labels by name, such as "kmeans-02"; −1 belongs to none.
    """

    name: str
    rows: Integers
    embeddings: Mapping[str, Singles]
    clusters: Mapping[str, Integers]
    eigenvalues: Mapping[str, Singles] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Project:
    """A ViRelAy project.

    Attributes:
        relevance: (A, C, H, W) float32.
        prediction: (A, K) float32.
        target: (A,) the explained classes.
        rows: (A,) which sample of the data each is of.
        images: (S, C, H, W) as they are stored, or None where the pictures lie in a folder.
        label: (S,) of the images; −1 where they have several.
        classes: names by index; word_net_ids: their identifiers, empty where there are none.
        categories: the analyses, a class each.
        name, model, method, strategy: what the project says of itself.
    """

    relevance: Any
    prediction: Any
    target: Integers
    rows: Integers
    images: Any
    label: Integers
    classes: tuple[str, ...]
    categories: tuple[Category, ...] = ()
    word_net_ids: tuple[str, ...] = ()
    name: str = "relprop"
    model: str = ""
    method: str = "LRP"
    strategy: str = "predicted_label"


def h5py() -> Any:
    """The package h5py. Raises `MissingExtra` where it is not installed."""
    try:
        import h5py as package
    except ImportError as error:
        raise MissingExtra("HDF5 files need h5py\n  do: pip install 'relprop[exchange]'") from error
    return package


def yaml() -> Any:
    """The package yaml. Raises `MissingExtra` where it is not installed."""
    try:
        import yaml as package
    except ImportError as error:
        raise MissingExtra("ViRelAy projects need PyYAML\n  do: pip install 'relprop[exchange]'") from error
    return package


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An HDF5 file for reading. Raises `InvalidInput` where there is none, or what is read from it is not there or damaged."""
    package = h5py()
    try:
        with package.File(path, "r") as file:
            yield file
    except InvalidInput:
        raise
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise InvalidInput(
            f"{path}: cannot be read as HDF5 ({lines[0]})\n  do: give a file that ViRelAy or CoRelAy reads"
        ) from error
