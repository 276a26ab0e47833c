"""Writing: block by block, each of which is there as a whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.errors import InvalidInput, RelpropError
from relprop.store.group import SHARD, add_column, is_store, opened, spec_in, zarr_of
from relprop.store.schema import PENDING, SCHEMA, SPECS, Spec, check


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes a store block by block; a block is there when its `status` is, which is written last.

    Attributes:
        path: the store's folder.
        samples: N, how many samples it has in the end.
        block: samples in each block (the last one may have fewer).
        durable: wait until the disk holds a block before it counts as done.
    """

    path: Path
    samples: int
    block: int
    specs: Mapping[str, Spec] = field(repr=False)
    group: Any = field(repr=False)
    durable: bool = True

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.samples // self.block)

    def rows(self, number: int) -> range:
        """The samples of a block."""
        return range(number * self.block, min((number + 1) * self.block, self.samples))

    def finished(self) -> NDArray[np.bool_]:
        """Which blocks are there: (blocks,)."""
        status = np.asarray(self.group["status"][:])
        return np.array([bool((status[list(self.rows(k))] != PENDING).all()) for k in range(self.blocks)])

    def write(self, number: int, columns: Mapping[str, Any]) -> None:
        """Write one block: for every column of the store the values of its samples, in their order.

        Columns that are left out keep their fill value. Writing a block again replaces it.

        Raises:
            InvalidInput: a column is unknown, or of the wrong shape.
            RelpropError: the disk is full or refuses.
        """
        rows = self.rows(number)
        if "status" not in columns:
            raise InvalidInput("store: a block without a status\n  do: give status, a value a sample")
        ready = {name: self._checked(name, values, len(rows)) for name, values in columns.items()}
        status = ready.pop("status")
        with writing(self.path):
            for name, values in ready.items():
                self.group[name][rows.start : rows.stop] = values
                if self.durable:
                    self._settle(name, number)
            self.group["status"][rows.start : rows.stop] = status
            if self.durable:
                self._settle("status", number)

    def _checked(self, name: str, values: Any, count: int) -> NDArray[Any]:
        if name not in self.specs:
            raise InvalidInput(f"store: no column {name!r}\n  do: one of {', '.join(sorted(self.specs))}")
        spec = self.specs[name]
        array = np.asarray(values, dtype=object if spec.dtype == "string" else spec.dtype)
        if array.shape != (count, *spec.shape):
            raise InvalidInput(
                f"store: {name} of shape {array.shape}\n  do: give {(count, *spec.shape)}, a row a sample"
            )
        return array

    def _settle(self, name: str, number: int) -> None:
        """Wait until the disk holds what was written of a column's block."""
        place = self.path / name / "c" / str(number)
        for file in [place] if place.is_file() else [f for f in place.rglob("*") if f.is_file()]:
            with file.open("rb") as held:
                os.fsync(held.fileno())


def create(
    path: str | Path,
    samples: int,
    specs: Mapping[str, Spec],
    attributes: Mapping[str, Any],
    *,
    block: int | None = None,
    durable: bool = True,
) -> Writer:
    """A new, empty store in a folder that does not exist yet (or is empty); it appears as a whole.

    Args:
        path: the folder.
        samples: how many samples it will have, N.
        specs: what `relevance`, `output` and columns of one's own hold; those of `SPECS` are added.
        attributes: `kind` and whatever else is told of the store, as plain values (JSON).
        block: samples a block; by default as many as keep the largest column near `SHARD` bytes, at most 1024.
        durable: see `Writer`.

    Raises:
        InvalidInput: the folder is in use, or a specification does not fit.
        MissingExtra: zarr is not installed.
        RelpropError: the disk refuses.
    """
    zarr, place = zarr_of(), Path(path)
    whole = {**SPECS, **specs}
    check(samples, whole, attributes)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        what = "holds a store already" if is_store(place) else "is in use"
        raise InvalidInput(
            f"store: {place} {what}\n  do: give another folder, or go on with a store by --resume (resume=True)"
        )
    size = block or max(1, min(1024, SHARD // max(1, *(spec.size for spec in whole.values()))))
    size = max(1, min(size, samples))
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        making = place.with_name(f".{place.name}.creating")
        shutil.rmtree(making, ignore_errors=True)
        told = {
            "schema": SCHEMA,
            "block": size,
            "plan": [],
            "model": {},
            "versions": {},
            "command": "",
            "classes": [],
        }
        try:
            group = zarr.create_group(making, zarr_format=3, attributes={**told, **attributes})
            for name, spec in whole.items():
                add_column(group, name, samples, size, spec)
            making.replace(place)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
    return reopen(place, durable=durable)


def reopen(path: str | Path, *, durable: bool = True, tidy: bool = True) -> Writer:
    """A store whose blocks are not all there yet, for writing on. Raises `InvalidInput` as `open` does.

    Files that a killed process left half written are removed (`tidy`; not while another process writes).
    """
    place = Path(path)
    group, attributes = opened(place, "r+")
    with writing(place):
        for file in place.rglob("*.partial") if tidy else ():
            file.unlink(missing_ok=True)
    specs = {name: spec_in(array) for name, array in group.arrays()}
    return Writer(place, group["status"].shape[0], int(attributes["block"]), specs, group, durable)


def stored(specs: Mapping[str, Spec], columns: Mapping[str, Any]) -> int:
    """How many bytes a block with these columns takes in a store, compressed."""
    from zarr.storage import MemoryStore

    held: dict[str, Any] = {}
    group = zarr_of().create_group(MemoryStore(held), zarr_format=3)
    for name, values in columns.items():
        spec = specs.get(name, SPECS.get(name))
        if spec is not None and len(values):
            add_column(group, name, len(values), len(values), spec)
            group[name][:] = np.asarray(values, dtype=object if spec.dtype == "string" else spec.dtype)
    return sum(len(value) for name, value in held.items() if not name.endswith("zarr.json"))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses while a store is written into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if isinstance(error, RelpropError):
            raise
        words = error.strerror or str(error) or type(error).__name__
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        do = "make room, then go on with --resume" if full else "give a folder that can be written"
        raise RelpropError(f"store: {path} cannot be written ({words})\n  do: {do}") from error
