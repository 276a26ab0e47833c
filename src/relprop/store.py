"""The store: explanations of a whole data set as a Zarr v3 group, an array a column, samples first.

A store is written in blocks of samples, each of which is there as a whole or not at all, and read lazily. Needs zarr:
`pip install 'relprop[run]'`. The columns are in docs/datasets.md.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.errors import InvalidInput, MissingExtra, RelpropError

SCHEMA = 1
"""The version of the layout that is written; later ones are refused."""

PENDING, DONE, FAILED = 0, 1, 2
"""The values of `status`."""

KINDS = ("image", "text", "audio", "series", "table")
"""The values of the attribute `kind`."""

AXES = {
    ("image", 3): ("channel", "y", "x"),
    ("image", 2): ("y", "x"),
    ("text", 1): ("token",),
    ("audio", 1): ("time",),
    ("audio", 2): ("channel", "time"),
    ("series", 1): ("time",),
    ("series", 2): ("channel", "time"),
    ("table", 1): ("feature",),
}
"""The names of relevance's axes after the samples, by the kind of data and their number."""

CHUNK = 1 << 20
"""Bytes that are compressed together, about: what has to be read for one sample."""

SHARD = 32 << 20
"""Bytes of the largest column in one block, about."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a column holds for each sample.

    Attributes:
        dtype: a NumPy type, or "string".
        shape: of one sample; () for one value.
        axes: the names of these axes.
        fill: what a sample has that is not done yet.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    axes: tuple[str, ...] = ()
    fill: Any = None

    @property
    def size(self) -> int:
        """Bytes of one sample (a guess for strings)."""
        each = 64 if self.dtype == "string" else np.dtype(self.dtype).itemsize
        return each * int(np.prod(self.shape, dtype=np.int64))


SPECS = {
    "id": Spec("string", fill=""),
    "target": Spec("int64", fill=-1),
    "label": Spec("int64", fill=-1),
    "score": Spec("float64", fill=np.nan),
    "gap": Spec("float64", fill=np.nan),
    "status": Spec("uint8", fill=PENDING),
    "reason": Spec("string", fill=""),
    "source": Spec("string", fill=""),
}
"""The columns that every store has beside `relevance` and `output`; label −1 is none, reason why a sample failed."""


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
    group, attributes = _group(Path(path), "r")
    columns = {name: Column(name, array) for name, array in group.arrays()}
    lacking = [name for name in ("relevance", "output", *SPECS) if name not in columns]
    if lacking:
        raise InvalidInput(
            f"store: {path} lacks the columns {', '.join(lacking)}\n  do: restore it from a copy, or run again"
        )
    return Store(Path(path), attributes, columns)


def is_store(path: str | Path) -> bool:
    """Whether a folder looks like a store, of whatever version."""
    return (Path(path) / "zarr.json").is_file()


# ---------------------------------------------------------------- writing


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
    zarr, place = _zarr(), Path(path)
    whole = {**SPECS, **specs}
    _check(samples, whole, attributes)
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
        group = zarr.create_group(making, zarr_format=3, attributes={**told, **attributes})
        for name, spec in whole.items():
            _array(group, name, samples, size, spec)
        making.replace(place)
    return reopen(place, durable=durable)


def reopen(path: str | Path, *, durable: bool = True, tidy: bool = True) -> Writer:
    """A store whose blocks are not all there yet, for writing on. Raises `InvalidInput` as `open` does.

    Files that a killed process left half written are removed (`tidy`; not while another process writes).
    """
    place = Path(path)
    group, attributes = _group(place, "r+")
    with writing(place):
        for file in place.rglob("*.partial") if tidy else ():
            file.unlink(missing_ok=True)
    specs = {name: _spec(array) for name, array in group.arrays()}
    return Writer(place, group["status"].shape[0], int(attributes["block"]), specs, group, durable)


def _at_targets(outputs: NDArray[Any], targets: NDArray[Any]) -> NDArray[Any]:
    """The output of each sample at its target."""
    if targets.shape != (len(outputs),) or targets.dtype.kind not in "iu":
        raise InvalidInput(
            f"target: {targets.dtype} {targets.shape}\n  do: give {len(outputs)} whole numbers, or score="
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < outputs.shape[1]:
        raise InvalidInput(
            f"target: {int(targets.min())} to {int(targets.max())}, of {outputs.shape[1]} outputs\n"
            "  do: give numbers of outputs, or the explained score= itself"
        )
    found: NDArray[Any] = outputs[np.arange(len(outputs)), targets]
    return found


def write_store(
    path: str | Path,
    *,
    relevance: Any,
    output: Any,
    target: Any = None,
    label: Any = None,
    score: Any = None,
    gap: Any = None,
    id: Sequence[str] | None = None,
    status: Any = None,
    reason: Sequence[str] | None = None,
    source: Sequence[str] | None = None,
    thumbnail: Any = None,
    kind: str = "image",
    classes: Sequence[str] = (),
    block: int | None = None,
    attributes: Mapping[str, Any] | None = None,
    **columns: Any,
) -> Store:
    """A complete store from arrays, in one call.

    Args:
        path: the folder, which must not exist yet.
        relevance: (N, …), real.
        output: (N, K).
        target: (N,) whole numbers; by default the largest output.
        label: (N,); by default −1, none.
        score: (N,); by default the output at the target. gap: (N,); by default 0.
        id: (N,) names; by default the numbers of the samples.
        status: (N,); by default 1, done. reason, source: (N,) strings; by default empty.
        thumbnail: (N, h, w, 3) uint8.
        kind: one of `KINDS`. classes: names of the outputs.
        attributes: more of them, such as `plan`, `model`, `versions`, `command`.
        columns: more columns (N, …) by name.

    Raises `InvalidInput` where arrays do not fit each other or the folder is in use.
    """
    held, outputs = np.asarray(relevance), np.asarray(output)
    if held.ndim < 2 or outputs.ndim != 2:
        raise InvalidInput(
            f"relevance {held.shape} and output {outputs.shape}\n  do: give (N, …) and (N, K), a row a sample"
        )
    count = len(held)
    targets = outputs.argmax(1) if target is None else np.asarray(target)
    scores = _at_targets(outputs, targets) if score is None else score
    given: dict[str, Any] = {
        "relevance": held,
        "output": outputs,
        "target": targets,
        "label": np.full(count, -1) if label is None else label,
        "score": scores,
        "gap": np.zeros(count) if gap is None else gap,
        "id": [str(i) for i in range(count)] if id is None else list(id),
        "status": np.full(count, DONE) if status is None else status,
        "reason": [""] * count if reason is None else list(reason),
        "source": [""] * count if source is None else list(source),
        **({} if thumbnail is None else {"thumbnail": thumbnail}),
        **columns,
    }
    arrays = {name: np.asarray(values) for name, values in given.items()}
    for name, array in arrays.items():
        if array.shape[:1] != (count,):
            raise InvalidInput(
                f"{name}: shape {array.shape} for {count} samples\n  do: give one row a sample"
            )
    specs = {name: spec_of(name, array, kind) for name, array in arrays.items() if name not in SPECS}
    told = {"kind": kind, "classes": list(classes), **(attributes or {})}
    writer = create(path, count, specs, told, block=block, durable=False)
    for number in range(writer.blocks):
        rows = writer.rows(number)
        writer.write(number, {name: array[rows.start : rows.stop] for name, array in arrays.items()})
    return open(path)


def stored(specs: Mapping[str, Spec], columns: Mapping[str, Any]) -> int:
    """How many bytes a block with these columns takes in a store, compressed."""
    from zarr.storage import MemoryStore

    held: dict[str, Any] = {}
    group = _zarr().create_group(MemoryStore(held), zarr_format=3)
    for name, values in columns.items():
        spec = specs.get(name, SPECS.get(name))
        if spec is not None and len(values):
            _array(group, name, len(values), len(values), spec)
            group[name][:] = np.asarray(values, dtype=object if spec.dtype == "string" else spec.dtype)
    return sum(len(value) for name, value in held.items() if not name.endswith("zarr.json"))


def spec_of(name: str, array: NDArray[Any], kind: str) -> Spec:
    """The specification of a column that holds such an array (N, …)."""
    text = array.dtype.kind in "OUT"
    dtype, shape = "string" if text else array.dtype.name, array.shape[1:]
    fill: Any = "" if text else np.nan if array.dtype.kind == "f" else False if dtype == "bool" else 0
    return Spec(dtype, shape, axes_of(name, len(shape), kind), fill)


def axes_of(name: str, count: int, kind: str) -> tuple[str, ...]:
    """The names of a column's axes after the samples."""
    if name == "relevance" and (kind, count) in AXES:
        return AXES[kind, count]
    return ("output",) if (name, count) == ("output", 1) else tuple(f"{name}_{i + 1}" for i in range(count))


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


def _array(group: Any, name: str, samples: int, block: int, spec: Spec) -> None:
    """An empty column: a block a file, in it chunks that can be read by themselves."""
    shape, chunk = (samples, *spec.shape), (block, *spec.shape)
    rows = next(r for r in range(block, 0, -1) if block % r == 0 and (r == 1 or r * spec.size <= CHUNK))
    sharded = rows < block
    group.create_array(
        name,
        shape=shape,
        chunks=(rows, *spec.shape) if sharded else chunk,
        shards=chunk if sharded else None,
        dtype=spec.dtype,
        fill_value=spec.fill,
        dimension_names=("sample", *spec.axes),
    )


def _spec(array: Any) -> Spec:
    """The specification of a column that is there."""
    dtype = "string" if array.dtype.kind == "T" else array.dtype.name
    axes = tuple(array.metadata.dimension_names or ())[1:]
    return Spec(dtype, tuple(array.shape[1:]), axes, array.fill_value)


def _check(samples: int, specs: Mapping[str, Spec], attributes: Mapping[str, Any]) -> None:
    if samples < 1:
        raise InvalidInput("store: no samples\n  do: give at least one")
    if attributes.get("kind") not in KINDS:
        raise InvalidInput(f"kind: {attributes.get('kind')!r} is unknown\n  do: one of {', '.join(KINDS)}")
    for name in ("relevance", "output"):
        if name not in specs:
            raise InvalidInput(f"store: no specification of {name}\n  do: give its dtype and shape")
    for name, spec in specs.items():
        if len(spec.axes) != len(spec.shape) or 0 in spec.shape[:-1]:
            raise InvalidInput(
                f"store: {name} has axes {spec.axes} for shape {spec.shape}\n  do: name each axis, of size 1 or more"
            )


def _group(path: Path, mode: str) -> tuple[Any, dict[str, Any]]:
    """The Zarr group of a store and its attributes, of a version that is known."""
    zarr = _zarr()
    if not path.exists():
        raise InvalidInput(f"store: {path}: no such folder\n  do: make one with relprop run")
    if not is_store(path):
        raise InvalidInput(f"store: {path} holds no store\n  do: give the folder that relprop run wrote")
    try:
        group = zarr.open_group(path, mode=mode)
        attributes = dict(group.attrs)
    except Exception as error:  # damaged metadata: zarr's errors are of many kinds
        lines = str(error).splitlines() or [type(error).__name__]
        raise InvalidInput(
            f"store: {path} cannot be opened ({lines[0]})\n  do: restore it from a copy, or run again"
        ) from error
    schema = attributes.get("schema")
    if not isinstance(schema, int):
        raise InvalidInput(
            f"store: {path} is a Zarr group, but none of relprop's\n  do: give the folder that relprop run wrote"
        )
    if schema > SCHEMA:
        raise InvalidInput(
            f"store: {path} has schema {schema}, this version of relprop reads up to {SCHEMA}\n  do: update relprop"
        )
    return group, attributes


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise MissingExtra("stores need zarr\n  do: pip install 'relprop[run]'") from error
    return zarr
