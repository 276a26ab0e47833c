"""Texts and tables as samples: lines of a file, columns of CSV, TSV and Parquet files, texts in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relprop.errors import InvalidInput, MissingExtra
from relprop.run.labels import NAMES, table_of
from relprop.run.samples import Intake, Label, Sample, Samples, fingerprint

TEXTS = ("text", "sentence", "review", "content", "document")
"""What a column of texts is called, the first that is there."""


def lines(file: Path) -> Samples:
    """The lines of a text file, each a text. Raises `InvalidInput` where there are none."""
    try:
        found = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise InvalidInput(f"data: {file}: no such file\n  do: look at the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"data: {file} is no text in UTF-8 ({type(error).__name__})\n  do: save it in UTF-8"
        ) from error
    return texts(found, (), str(file), first=1)


def texts(
    found: Sequence[str],
    labels: Sequence[Label],
    name: str = "texts",
    ids: Sequence[str] = (),
    first: int = 0,
) -> Samples:
    """Texts as samples. Raises `InvalidInput` where there are none."""
    if not any(text.strip() for text in found):
        raise InvalidInput(f"data: {name}: no texts\n  do: give one a line, or a column of them")
    place = str(Path(name).absolute()) if Path(name).exists() else name
    return Samples(
        kind="text",
        name=name,
        ids=list(ids) or [str(number + first) for number in range(len(found))],
        fingerprint=fingerprint(found),
        read=lambda number: Sample(found[number]),
        source=lambda number: f"{place}#{number + first}",
        labels=list(labels),
        texts=found,
    )


def table(file: Path, intake: Intake, column: str | None, label: str | None) -> Samples:
    """A table: its column of texts where the model reads, else its columns of numbers.

    column: the texts; or the names of the numbers' columns with commas between them. label: the column of labels.
    """
    rows = _parquet(file) if file.suffix.lower() == ".parquet" else table_of(file)
    if not rows:
        raise InvalidInput(f"data: {file} has no rows\n  do: give a header and at least one row")
    head = list(rows[0])
    named = label or next((name for name in NAMES if name in head), None)
    labels = [] if named is None else [_label(row[named]) for row in _checked(rows, [named], file)]
    ids = [str(row["id"]) for row in rows] if "id" in head else []
    ids = ids if len(set(ids)) == len(rows) else []
    if intake.reads == "text":
        name = column or next((one for one in TEXTS if one in head), None)
        if name is None:
            raise InvalidInput(
                f"data: {file} has the columns {', '.join(head)}\n  do: name that of the texts with --column"
            )
        found = [str(row[name] or "") for row in _checked(rows, [name], file)]
        return texts(found, labels, str(file), ids)
    names = [part.strip() for part in column.split(",")] if column else _numeric(rows, named)
    if not names:
        raise InvalidInput(f"data: {file} has no columns of numbers\n  do: name them with --column A,B,…")
    _checked(rows, names, file)

    def read(number: int) -> Sample:
        values = [_number(rows[number][name], name) for name in names]
        return intake.array(np.array(values), "table")

    return Samples(
        kind="table",
        name=str(file),
        ids=ids or [str(number) for number in range(len(rows))],
        fingerprint=fingerprint([*names, *([row[name] for name in names] for row in rows)]),
        read=read,
        source=lambda number: f"{file.absolute()}#{number}",
        labels=labels,
        features=tuple(names),
    )


def _checked(rows: list[dict[str, Any]], names: Sequence[str], file: Path) -> list[dict[str, Any]]:
    for name in names:
        if name not in rows[0]:
            raise InvalidInput(f"data: {file} has no column {name!r}\n  do: one of {', '.join(rows[0])}")
    return rows


def _numeric(rows: list[dict[str, Any]], label: str | None) -> list[str]:
    """The columns whose first value that is there is a number."""
    found = []
    for name in rows[0]:
        first = next((row[name] for row in rows if row[name] not in (None, "")), None)
        if name not in (label, "id") and first is not None and _is_number(first):
            found.append(name)
    return found


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _number(value: Any, name: str) -> float:
    if value is None or value == "" or not _is_number(value) or math.isnan(float(value)):
        raise InvalidInput(
            f"its column {name!r} holds {value!r}, which is no number\n  do: mend the row, or choose columns by --column"
        )
    return float(value)


def _label(value: Any) -> Label:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _parquet(file: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtra("Parquet files need pyarrow\n  do: pip install 'relprop[exchange]'") from error
    if not file.is_file():
        raise InvalidInput(f"data: {file}: no such file\n  do: look at the path")
    try:
        rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
    except Exception as error:  # pyarrow's own errors
        raise InvalidInput(
            f"data: {file} is no Parquet file ({str(error).splitlines()[0]})\n  do: write it again as Parquet, or as CSV"
        ) from error
    return rows
