"""Relevance of the columns of a table, by their names and values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .colour import Numbers, numbers
from .picture import stack
from .plots import table, titles_of

if TYPE_CHECKING:
    from PIL import Image


def features(
    relevance: Numbers,
    names: Sequence[Any],
    inputs: Any = None,
    *,
    title: str | Sequence[str] | None = None,
    **options: Any,
) -> Image.Image:
    """The relevance of a table (B, F), dense or sparse, as bars for each row (see `table`).

    names: of the columns, F of them; numbers become "feature 0" …. inputs: the table that was explained: a data frame,
    a sparse array, an array or lists; values stand beside the names. Of sparse relevance the columns that a row does
    not list are left out. options: those of `table`. Raises as `table` does.
    """
    rows = list(_rows(relevance))
    pictures = []
    for number, ((places, row), head) in enumerate(zip(rows, titles_of(title, len(rows)), strict=True)):
        labels = [names[i] if isinstance(names[i], str) else f"feature {names[i]}" for i in places]
        pictures.append(table(row, names=_labels(labels, inputs, number, places), title=head, **options))
    return stack(pictures)


def _rows(relevance: Any) -> Iterator[tuple[Any, Any]]:
    """Of each row the columns that are drawn, and their relevance."""
    if not isinstance(relevance, torch.Tensor) or relevance.layout == torch.strided:
        for row in numbers(relevance):
            yield np.arange(len(row)), row
        return
    starts, columns, values = (
        part.numpy() for part in (relevance.crow_indices(), relevance.col_indices(), relevance.values())
    )
    for start, stop in itertools.pairwise(starts):
        yield (columns[start:stop], values[start:stop]) if stop > start else (np.zeros(1, int), np.zeros(1))


def _labels(labels: Sequence[str], inputs: Any, row: int, places: Any) -> list[str]:
    if inputs is None:
        return list(labels)
    if hasattr(inputs, "tocsr"):
        values = inputs.tocsr()[[row]].toarray()[0, places]
    elif hasattr(inputs, "iloc"):
        values = [inputs.iloc[row, i] for i in places]
    else:
        values = [inputs[row][i] for i in places]
    return [f"{label} = {_plain(value)}" for label, value in zip(labels, values, strict=True)]


def _plain(value: Any) -> str:
    value = value.item() if hasattr(value, "item") else value
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else str(value)
