"""Names that people give to groups of samples, kept in a file beside the store; the store itself is only read."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relprop.errors import InvalidInput
from relprop.show.picture import whole
from relprop.store import Store
from relprop.view.book import Leaf

SCHEMA = 1
LONGEST = 80
"""The most characters of a name."""

LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class Named:
    """A group of samples with a name: the class in which they were chosen, and their ids."""

    name: str
    target: int
    ids: tuple[str, ...]


def names_file(store: Store) -> Path:
    """Where the names of a store are kept: beside it, `STORE.names.json`."""
    place = Path(store.path).resolve()
    return place.with_name(f"{place.name}.names.json")


def names(store: Store) -> list[Named]:
    """All names, in the order they were given. Raises `InvalidInput` where the file is damaged or of a later version."""
    file = names_file(store)
    if not file.exists():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["schema"] > SCHEMA:
            raise InvalidInput(f"names: {file} is of a later relprop\n  do: update relprop")
        return [Named(str(n["name"]), int(n["target"]), tuple(map(str, n["ids"]))) for n in content["names"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            f"names: {file} cannot be read ({error})\n  do: mend the file or move it away"
        ) from error


def give(store: Store, name: str, target: int, ids: Sequence[str]) -> list[Named]:
    """Name a group of samples; a group of that name in that class is replaced. Returns all names.

    Raises `InvalidInput` for a name that is empty, too long or not printable, no samples, or a folder that cannot be
    written.
    """
    clean = " ".join(name.split())
    if not clean or len(clean) > LONGEST or not clean.isprintable():
        raise InvalidInput(f"name: {name[:LONGEST]!r}\n  do: give 1 to {LONGEST} printable characters")
    if len(ids) == 0:
        raise InvalidInput("name: no samples are selected\n  do: select some first")
    with LOCK:
        others = [one for one in names(store) if (one.name, one.target) != (clean, target)]
        return _kept(store, [*others, Named(clean, target, tuple(map(str, ids)))])


def forget(store: Store, number: int) -> list[Named]:
    """Remove the name of that number. Returns the names that are left."""
    with LOCK:
        held = names(store)
        return _kept(store, [one for i, one in enumerate(held) if i != number])


def _kept(store: Store, held: list[Named]) -> list[Named]:
    content = {"schema": SCHEMA, "store": Path(store.path).name, "names": [asdict(one) for one in held]}
    try:
        with whole(names_file(store)) as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=1).encode("utf-8"))
    except OSError as error:
        raise InvalidInput(
            f"names: {names_file(store)} cannot be written ({error.strerror or error})\n"
            "  do: export the ids as CSV, or give the store a folder that can be written"
        ) from error
    return held


def csv_of(store: Store, leaf: Leaf, places: NDArray[np.intp], name: str = "") -> str:
    """Samples of a class as CSV: id, row, strategy, label, prediction, score and, where there is one, the name."""
    made = io.StringIO()
    table = csv.writer(made, lineterminator="\n")
    table.writerow(["id", "row", "strategy", "label", "prediction", "score", *(["name"] if name else [])])
    for i in places:
        label = store.class_name(int(leaf.label[i])) if leaf.label[i] >= 0 else ""
        table.writerow(
            [
                leaf.ids[i],
                int(leaf.rows[i]),
                int(leaf.cluster[i]) + 1,
                label,
                store.class_name(int(leaf.prediction[i])),
                repr(float(leaf.score[i])),
                *([name] if name else []),
            ]
        )
    return made.getvalue()
