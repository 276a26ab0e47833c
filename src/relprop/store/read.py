"""Reading: a store whose columns are read when they are indexed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.errors import InvalidInput
from relprop.store.group import opened, settle
from relprop.store.schema import DONE, PENDING, SPECS


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a store; its values are read when it is indexed by samples.

    `column[rows]`: rows is a number, a slice, a mask (N,) or any sequence of numbers; the result is a NumPy array in
    that order, strings as Python objects.
    """

    name: str
    array: Any = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, …)."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values; object for strings."""
        kind: np.dtype[Any] = self.array.dtype
        return np.dtype(object) if kind.kind == "T" else kind

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of all axes, "sample" first."""
        return tuple(self.array.metadata.dimension_names or ())

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        try:
            values = self._read(rows)
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, InvalidInput):
                raise
            settle()
            lines = str(error).splitlines() or [type(error).__name__]
            raise InvalidInput(
                f"store: its column {self.name!r} is damaged ({lines[0]})\n  do: restore it from a copy, or run again"
            ) from error
        return values.astype(object) if values.dtype.kind == "T" else values

    def _read(self, rows: Any) -> NDArray[Any]:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step > 0:
                return np.asarray(self.array[start : max(start, stop) : step])
            rows = range(start, stop, step)
        wanted = np.asarray(rows)
        if wanted.dtype == bool:
            if wanted.shape != (len(self),):
                raise InvalidInput(
                    f"rows: a mask of shape {wanted.shape} for {len(self)} samples\n  do: give one value a sample"
                )
            wanted = np.flatnonzero(wanted)
        if wanted.size == 0:
            return np.asarray(self.array[0:0])
        if wanted.dtype.kind not in "iu" or wanted.ndim > 1:
            raise InvalidInput(
                "rows: neither numbers of samples nor a mask\n  do: give a number, a slice, a mask (N,) or numbers (n,)"
            )
        if wanted.min() < -len(self) or wanted.max() >= len(self):
            raise InvalidInput(
                f"rows: {int(wanted.min())} … {int(wanted.max())} in a store of {len(self)} samples\n"
                f"  do: give numbers from 0 to {len(self) - 1}"
            )
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        if wanted.ndim == 0:
            return np.asarray(self.array[int(wanted)])
        unique, places = np.unique(wanted, return_inverse=True)
        if unique[-1] - unique[0] + 1 == len(unique):
            read = np.asarray(self.array[int(unique[0]) : int(unique[-1]) + 1])
        else:
            read = np.asarray(self.array.oindex[unique])
        return read if np.array_equal(unique, wanted) else read[places]


@dataclass(frozen=True, slots=True)
class Store:
    """A store, opened for reading.

    Attributes:
        path: its folder.
        attributes: how it was made: `plan`, `model`, `versions`, `command`, `schema`, `classes` (names of the outputs),
            `kind` (one of `KINDS`), …
        columns: what it holds, by name.
    """

    path: Path
    attributes: Mapping[str, Any] = field(repr=False)
    columns: Mapping[str, Column] = field(repr=False)

    def __len__(self) -> int:
        return len(self.columns["status"])

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(sorted(self.columns))

    @property
    def kind(self) -> str:
        """What was explained: one of `KINDS`."""
        return str(self.attributes["kind"])

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the outputs; empty where they are not known."""
        return tuple(self.attributes.get("classes") or ())

    @property
    def relevance(self) -> Column:
        """Relevance (N, …), read when indexed; NaN for samples that are not done."""
        return self.lazy("relevance")

    @property
    def status(self) -> NDArray[np.uint8]:
        """0 not yet, 1 done, 2 failed: (N,)."""
        return self.column("status")

    @property
    def done(self) -> NDArray[np.bool_]:
        """Which samples are explained: (N,)."""
        return np.asarray(self.status == DONE)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do: every sample is explained or has failed."""
        return bool((self.status != PENDING).all())

    def lazy(self, name: str) -> Column:
        """A column whose values are read when it is indexed. Raises `InvalidInput` where there is none of that name."""
        if name not in self.columns:
            raise InvalidInput(
                f"store: no column {name!r} in {self.path}\n  do: one of {', '.join(self.names)}"
            )
        return self.columns[name]

    def column(self, name: str) -> NDArray[Any]:
        """All values of a column, (N, …); strings as Python objects. Raises `InvalidInput` as `lazy` does."""
        return self.lazy(name)[:]

    def class_name(self, index: int) -> str:
        """The name of an output, or "class 7"."""
        names = self.classes
        return names[index] if 0 <= index < len(names) else f"class {index}"


def open(path: str | Path) -> Store:
    """The store in a folder, for reading.

    Raises:
        InvalidInput: there is none, or it was written by a later version of relprop.
        MissingExtra: zarr is not installed.
    """
    group, attributes = opened(Path(path), "r")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is no column: it is named below
            columns = {name: Column(name, array) for name, array in group.arrays()}
    except (OSError, ValueError, KeyError, TypeError) as error:  # of a column's own metadata
        settle()
        lines = str(error).splitlines() or [type(error).__name__]
        raise InvalidInput(
            f"store: {path} has a column that cannot be opened ({lines[0]})\n  do: restore it from a copy, or run again"
        ) from error
    lacking = [name for name in ("relevance", "output", *SPECS) if name not in columns]
    if lacking:
        raise InvalidInput(
            f"store: {path} lacks the columns {', '.join(lacking)}\n  do: restore it from a copy, or run again"
        )
    return Store(Path(path), attributes, columns)
