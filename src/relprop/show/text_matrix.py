"""The relevance of tokens for tokens as a picture: a row for each that was written, a column for each that was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInput
from .colour import COLOURS, Numbers, colour_scale, colourise, numbers
from .layout import (
    BAR_GAP,
    FAINT,
    HEAD,
    INK,
    MARGIN,
    NAME,
    SMALL,
    Page,
    bar_height,
    line_height,
    printed,
    text_style,
    text_width,
    wrapped,
)
from .text import drawable

if TYPE_CHECKING:
    from PIL import Image

CELL, LEAST = 22, 3  # pixels of a cell's side, and the least where there are many
WIDEST = 1600  # pixels that the columns may take
LONGEST = 24  # characters of a name


def text_matrix(
    relevance: Numbers,
    read: Sequence[str],
    written: Sequence[str],
    special: Sequence[bool] | None = None,
    *,
    colours: str = COLOURS,
    limit: float | None = None,
    title: str | None = None,
    size: int | None = None,
) -> Image.Image:
    """A picture of relevance (written, read): the names of the tokens, a coloured cell for each pair, the scale.

    special: which columns are special tokens: they often hold most, and do not set the scale. limit: the
    relevance at its ends, default: the largest |R| of the other columns. size: the side of a cell in pixels.
    Raises `InvalidInput` where names and relevance do not fit, for NaN and an unknown colour map.
    """
    array = numbers(relevance)
    if array.shape != (len(written), len(read)):
        raise InvalidInput(
            f"relevance has shape {array.shape}, with {len(written)} written tokens and {len(read)} read ones\n"
            "  do: pass one row a written token, one column a read one"
        )
    if limit is not None and not (np.isfinite(limit) and limit > 0):
        raise InvalidInput(f"limit is {limit!r}, and must be a positive number\n  do: leave it out")
    own = np.zeros(len(read), dtype=bool) if special is None else np.asarray(special, dtype=bool)
    inside = array[:, ~own] if (~own).any() and array[:, ~own].any() else array
    scale = colour_scale(inside, 1.0) if limit is None else limit
    side = size or max(LEAST, min(CELL, WIDEST // len(read)))
    columns, rows = [_name(one) for one in read], [_name(one) for one in written]
    named = side >= line_height(SMALL) - 4
    left = MARGIN + (int(max(text_width(one, NAME) for one in rows)) if side >= 12 else 0) + 8
    head = int(max(text_width(one, SMALL) for one in columns)) + 6 if named else 0
    width = max(left + side * len(read) + MARGIN, 340)
    heading = wrapped(drawable(title or ""), width - 2 * MARGIN, HEAD, "bold")
    top = MARGIN + (line_height(HEAD) * len(heading) + 6 if heading else 0) + head
    below = top + side * len(written) + BAR_GAP + 8
    beyond = bool((np.abs(array) > 1.001 * scale).any())
    notes = "A row for each token that was written, a column for each that was read" + (
        "; larger values take the full colour." if beyond else "."
    )
    footing = wrapped(notes, width - 2 * MARGIN, SMALL)
    page = Page(width, below + bar_height() + line_height(SMALL) * len(footing) + MARGIN)
    page.lines(MARGIN, MARGIN - 4, heading, HEAD, weight="bold")
    cells = np.repeat(np.repeat(colourise(array, scale, colours), side, 0), side, 1)
    page.image(left, top, cells)
    if named:
        for number, name in enumerate(columns):
            _upright(page, left + side * (number + 0.5), top - 5, name, FAINT if own[number] else INK)
    if side >= 12:
        for number, name in enumerate(rows):
            y = top + side * number + (side - line_height(NAME)) / 2
            page.text(left - 7, y, name, NAME, "right")
    page.bar(MARGIN, below, min(width - 2 * MARGIN, 320), scale, colours, False)
    page.lines(MARGIN, below + bar_height() + 2, footing, SMALL, color=FAINT)
    return printed(page.figure)


def _name(token: str) -> str:
    shown = drawable(token.strip() or token.replace("\n", "⏎").replace(" ", "␣"))
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def _upright(page: Page, middle: float, bottom: float, text: str, colour: str) -> None:
    """A name written upwards, its end above a column."""
    style: dict[str, Any] = text_style(SMALL, color=colour, ha="center", va="bottom", rotation=90)
    page.figure.text(middle / page.width, 1 - bottom / page.height, text, **style)
