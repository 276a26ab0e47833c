"""What CoRelAy keeps of a pipeline: its cache of intermediate results in an HDF5 file, a group for each step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relprop.exchange.layout import opened


@dataclass(frozen=True, slots=True)
class Cached:
    """The result of one step of a CoRelAy pipeline.

    Attributes:
        key: the hash that CoRelAy finds it by.
        data: an array, or a tuple of them where the step gives several.
        meta: what CoRelAy wrote about the step and its settings; empty where nothing can be read.
    """

    key: str
    data: Any
    meta: Any


def read_corelay(file: str | Path) -> tuple[Cached, ...]:
    """Every result in a cache file of CoRelAy (its `HashedHDF5`), in whatever group it lies, in the order of their keys.

    Raises `InvalidInput` for a file that is not there or not HDF5.
    """
    with opened(Path(file)) as held:
        return tuple(_found(held))


def _found(group: Any) -> Iterator[Cached]:
    for key, one in group.items():
        if not hasattr(one, "keys"):
            continue
        if "data" in one:
            yield Cached(str(key), _values(one["data"]), _meta(one))
        else:
            yield from _found(one)


def _values(held: Any) -> Any:
    if hasattr(held, "shape"):
        return np.asarray(held[()])
    return tuple(_values(held[key]) for key in sorted(held))


def _meta(group: Any) -> Any:
    raw = (
        group["meta"][()] if "meta" in group and hasattr(group["meta"], "shape") else group.attrs.get("meta")
    )
    try:
        return json.loads(raw) if raw is not None else {}
    except (TypeError, ValueError):
        return {}
