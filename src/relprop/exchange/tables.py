"""Strategies as tables: which samples have which, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from relprop.analyse.result import Analysis
from relprop.errors import InvalidInput, MissingExtra
from relprop.show.picture import whole

SUFFIXES = (".csv", ".parquet")


def strategy_rows(
    analysis: Analysis,
    ids: Sequence[str] | None = None,
    *,
    target: int | None = None,
    strategy: int | None = None,
    columns: Mapping[str, Any] | None = None,
) -> dict[str, list[Any]]:
    """A row a sample and the strategy (its cluster) that it has, column by column.

    Args:
        analysis: of a store.
        ids: (N,) of all the store's samples; their rows are listed in any case.
        target, strategy: of this class, or of this strategy of it, alone; strategies are numbered from 1, as in the report.
        columns: more of them, (N,) each over the store's samples, such as `label`, `score`.

    Returns the columns `id`, `row`, `class`, `class_name`, `strategy`, `suspicion`, `flagged`, `exemplar` and those given.
    Raises `InvalidInput` for a class or strategy that the analysis does not have.
    """
    classes = analysis.classes if target is None else (analysis[target],)
    if strategy is not None:
        known = () if target is None else sorted(c.number + 1 for c in classes[0].clusters)
        if strategy not in known:
            do = f"one of {', '.join(map(str, known))}" if known else "name the class too"
            raise InvalidInput(f"strategy {strategy}: not in this analysis\n  do: {do}")
    found: dict[str, list[Any]] = {
        name: [] for name in ("id", "row", "class", "class_name", "strategy", "suspicion", "flagged", "exemplar", *(columns or {}))
    }  # fmt: skip
    for one in classes:
        for held in one.clusters:
            if strategy is not None and held.number + 1 != strategy:
                continue
            exemplars = set(held.exemplars.tolist())
            for row in map(int, held.rows):
                found["id"].append(str(row) if ids is None else str(ids[row]))
                found["row"].append(row)
                found["class"].append(int(one.target))
                found["class_name"].append(one.name)
                found["strategy"].append(int(held.number) + 1)
                found["suspicion"].append(float(held.suspicion))
                found["flagged"].append(bool(held.flagged))
                found["exemplar"].append(row in exemplars)
                for name, values in (columns or {}).items():
                    value = values[row]
                    found[name].append(value.item() if isinstance(value, np.generic) else value)
    return found


def save_table(columns: Mapping[str, Sequence[Any]], file: str | Path) -> Path:
    """Write columns as CSV or, with pyarrow, as Parquet, by the file's suffix.

    Raises `InvalidInput` for another suffix or a place that cannot be written, `MissingExtra` without pyarrow.
    """
    path = Path(file)
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInput(
            f"{path}: neither CSV nor Parquet\n  do: a name that ends in {' or '.join(SUFFIXES)}"
        )
    write = _csv if path.suffix.lower() == ".csv" else _parquet
    with whole(path) as opened:
        write(columns, opened)
    return path


def _csv(columns: Mapping[str, Sequence[Any]], file: IO[bytes]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    text.detach()


def _parquet(columns: Mapping[str, Sequence[Any]], file: IO[bytes]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("Parquet needs pyarrow\n  do: pip install 'relprop[exchange]'") from error
    parquet.write_table(pyarrow.table({name: list(values) for name, values in columns.items()}), file)
