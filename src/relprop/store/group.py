"""The Zarr group behind a store: opening it, its arrays, and how they are cut into files and chunks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from relprop.errors import InvalidInput, MissingExtra
from relprop.store.schema import SCHEMA, Spec

CHUNK = 1 << 20
"""Bytes that are compressed together, about: what has to be read for one sample."""

SHARD = 32 << 20
"""Bytes of the largest column in one block, about."""


def zarr_of() -> Any:
    """The module zarr. Raises `MissingExtra` where it is not installed."""
    try:
        import zarr
    except ImportError as error:
        raise MissingExtra(
            f"stores need zarr ({error.name} cannot be imported)\n  do: pip install 'relprop[run]'"
        ) from error
    return zarr


def settle() -> None:
    """Let the reads end that a failed one leaves behind; else they complain when the interpreter ends."""
    from zarr.core.sync import sync

    async def ended() -> None:
        left = {task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__name__", "") != "ended"}
        running = {task for task in left if getattr(task.get_coro(), "__name__", "") != "_runner"}
        if running:
            await asyncio.wait(running, timeout=10)

    sync(ended())


def is_store(path: str | Path) -> bool:
    """Whether a folder looks like a store, of whatever version."""
    return (Path(path) / "zarr.json").is_file()


def opened(path: Path, mode: str) -> tuple[Any, dict[str, Any]]:
    """The Zarr group of a store and its attributes, of a version that is known."""
    zarr = zarr_of()
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


def add_column(group: Any, name: str, samples: int, block: int, spec: Spec) -> None:
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


def spec_in(array: Any) -> Spec:
    """The specification of a column that is there."""
    dtype = "string" if array.dtype.kind == "T" else array.dtype.name
    axes = tuple(array.metadata.dimension_names or ())[1:]
    return Spec(dtype, tuple(array.shape[1:]), axes, array.fill_value)
