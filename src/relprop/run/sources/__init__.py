"""Where samples come from: `opened` tells from what is given; a new source is a file here and a row of `_named`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from relprop import audio
from relprop.errors import InvalidInput
from relprop.run.samples import Intake, Label, Samples
from relprop.run.sources.arrays import array_file, arrays
from relprop.run.sources.datasets import dataset, dataset_named, is_dataset
from relprop.run.sources.files import list_of, pictures, recordings
from relprop.run.sources.tables import lines, table, texts
from relprop.run.sources.tars import tars

__all__ = ["opened"]

TABLES = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz")


def opened(
    data: Any,
    intake: Intake,
    labels: Sequence[Label] = (),
    column: str | None = None,
    label_column: str | None = None,
    kind: str | None = None,
) -> Samples:
    """The samples that `data` means.

    Args:
        data: a path or several: a folder of pictures or recordings (its first level of folders are the classes), files of
            them, a text file that lists them, `.npy` or `.npz`, `.txt` (a text a line), CSV, TSV or Parquet, tars of
            WebDataset's layout; "package.module:callable", which is or returns a torch `Dataset`; or in Python an array
            or tensor (N, …), a `Dataset`, a list of texts (for a model that reads), `Samples`.
        intake: what the model takes.
        labels: of data in memory.
        column, label_column: of a table.
        kind: what an array is, where its shape does not tell.

    Raises `InvalidInput` for what is not there, is empty or is of no known kind.
    """
    if isinstance(data, Samples):
        return data
    if isinstance(data, (np.ndarray, Tensor)):
        return arrays(data, labels, intake, kind)
    if isinstance(data, (str, Path)):
        return _named([str(data)], intake, column, label_column, kind)
    if isinstance(data, (list, tuple)) and data and all(isinstance(one, (str, Path)) for one in data):
        given = [str(one) for one in data]
        if intake.reads == "text" and not all(Path(one).exists() for one in given if len(one) < 256):
            return texts(given, labels)
        return _named(given, intake, column, label_column, kind)
    if is_dataset(data) and not isinstance(data, (list, tuple)):
        return dataset(data, intake, kind)
    raise InvalidInput(
        f"data: a {type(data).__name__} is no data set\n"
        "  do: give a folder, files, an array (N, …), texts, or a torch Dataset with a length"
    )


def _named(
    given: Sequence[str], intake: Intake, column: str | None, label_column: str | None, kind: str | None
) -> Samples:
    """The samples of paths, by the ending of the first, or of a callable."""
    paths = [Path(one) for one in given]
    first = paths[0]
    suffix, whole = first.suffix.lower(), first.name.lower()
    if ":" in given[0] and not first.exists() and len(given) == 1:
        return dataset_named(given[0], intake, kind)
    if first.is_dir() and (inside := sorted(first.glob("*.tar"))):
        return tars(inside, intake)
    if suffix == ".tar":
        return tars(paths, intake)
    single = suffix in (".npy", ".npz", ".txt") or whole.endswith(TABLES)
    if single and len(paths) > 1:
        raise InvalidInput(
            f"data: {len(paths)} files, the first of them {first}\n  do: give one file of that kind"
        )
    if suffix in (".npy", ".npz"):
        return array_file(first, intake, kind)
    if whole.endswith(TABLES):
        return table(first, intake, column, label_column)
    if suffix == ".txt" and intake.reads == "text":
        return lines(first)
    if suffix == ".txt":
        paths = list_of(first)
    if intake.reads == "text":
        raise InvalidInput(
            f"data: {first}, for a model that reads texts\n  do: give .txt (a text a line), CSV, TSV, Parquet or tars"
        )
    sounds = intake.reads == "sound" or paths[0].suffix.lower() in audio.SUFFIXES
    return recordings(paths, intake) if sounds or _holds_sounds(paths[0]) else pictures(paths, intake)


def _holds_sounds(path: Path) -> bool:
    """Whether a folder has recordings."""
    return path.is_dir() and any(file.suffix.lower() in audio.SUFFIXES for file in path.rglob("*"))
