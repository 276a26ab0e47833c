"""Labels: from what the data have (numbers, names, nothing) to classes of the model."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relprop.errors import InvalidInput
from relprop.run.samples import Label

NAMES = ("label", "class_index", "class", "target", "y")
"""What a column of labels is called, the first that is there."""

FILES = ("file", "id", "path", "name", "filename")
"""What a column of the samples' names is called, the first that is there."""


@dataclass(frozen=True, slots=True)
class Classes:
    """How labels become classes.

    Attributes:
        names: of the outputs; those of the labels where the model names none and there are as many.
        numbers: from a label's name to its class; empty where labels are numbers.
        unknown: labels' names that are no class of the model's: they count as no label.
    """

    names: tuple[str, ...]
    numbers: dict[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    def number(self, label: Label) -> int:
        """The class of a label; −1 for none."""
        if isinstance(label, str):
            number = whole(label)
            return self.numbers.get(label, -1) if number is None else number
        return -1 if label is None else int(label)


def classes_of(labels: Sequence[Label], classes: Sequence[str], outputs: int) -> Classes:
    """How these labels become classes of a model with these names of classes and this many outputs.

    Names are looked for among the model's. Where it has none of them, but as many outputs as there are names, they are
    numbered in the order of the alphabet, as torchvision's `ImageFolder` does.
    """
    names = sorted({one for one in labels if isinstance(one, str) and whole(one) is None and one})
    if not names:
        return Classes(tuple(classes))
    table: dict[str, int] = {}
    for number, name in enumerate(classes):
        for spelling in (name, name.partition(",")[0]):
            table.setdefault(_plain(spelling), number)
    found = {name: table[_plain(name)] for name in names if _plain(name) in table}
    if not found and len(names) == outputs:
        return Classes(tuple(classes) or tuple(names), {name: i for i, name in enumerate(names)})
    return Classes(tuple(classes), found, tuple(name for name in names if name not in found))


def numbers_of(labels: Sequence[Label], classes: Classes, count: int) -> NDArray[np.int64]:
    """The class of every sample, (N,); −1 where it is not known."""
    if not labels:
        return np.full(count, -1, dtype=np.int64)
    return np.array([classes.number(label) for label in labels], dtype=np.int64)


def labels_of_file(file: Path, ids: Sequence[str]) -> list[Label]:
    """The label of each sample from a CSV or TSV file with a column of names (or paths) and one of labels.

    A sample without a row has no label. Raises `InvalidInput` where the columns lack or no row names a sample.
    """
    rows = table_of(file)
    head = list(rows[0]) if rows else []
    key = next((name for name in FILES if name in head), None)
    value = next((name for name in NAMES if name in head), None)
    if key is None or value is None:
        raise InvalidInput(
            f"labels: {file} has the columns {', '.join(head) or 'none'}\n"
            f"  do: call one {' or '.join(FILES[:2])} and one {' or '.join(NAMES[:2])}"
        )
    table = {row[key]: row[value] for row in rows}
    table |= {Path(name).name: label for name, label in table.items() if Path(name).name not in table}
    found = [table.get(one, table.get(Path(one).name)) for one in ids]
    if all(label is None for label in found):
        raise InvalidInput(
            f"labels: {file} names none of the samples ({ids[0]}, …)\n  do: name them as the data do, {key} by {key}"
        )
    return [label if label else None for label in found]


def table_of(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV or TSV file with a header, also compressed (.gz). Raises `InvalidInput`."""
    import gzip
    import zlib

    limit = csv.field_size_limit(1 << 30)
    tabs = ".tsv" in file.name.lower()
    try:
        opener = gzip.open if file.suffix.lower() == ".gz" else open
        with opener(file, "rt", encoding="utf-8-sig", newline="") as held:
            return [dict(row) for row in csv.DictReader(held, delimiter="\t" if tabs else ",")]
    except FileNotFoundError as error:
        raise InvalidInput(f"{file}: no such file\n  do: look at the path") from error
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise InvalidInput(
            f"{file}: not a table in UTF-8 ({str(error).splitlines()[0]})\n  do: save it as CSV in UTF-8"
        ) from error
    finally:
        csv.field_size_limit(limit)


def whole(text: str) -> int | None:
    """The whole number that a text is; None for any other text."""
    plain = text.strip()
    return int(plain) if plain.removeprefix("-").isdecimal() else None


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
