"""Pairs of features behind a similarity: lines between the patches of two images, or the words of two texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import InvalidInput
from .colour import LEVELS, Map, numbers, palette, photograph, resized_photo
from .layout import (
    FAINT,
    GAP,
    HEAD,
    INK,
    MARGIN,
    NAME,
    SMALL,
    Page,
    line_height,
    number,
    printed,
    text_width,
    wrapped,
)
from .picture import show_extra

if TYPE_CHECKING:
    from PIL import Image

    from ..inside.pairs import Pairs

STRONGEST = 24
SIDE = 300  # pixels of a photograph's longer side
BETWEEN = 150  # pixels between two photographs, or two rows of words
WIDEST, THINNEST = 4.5, 0.7  # pixels of the strongest line and of one near zero


def pairs(
    found: Pairs,
    *,
    sample: int = 0,
    strongest: int = STRONGEST,
    words: tuple[Sequence[str], Sequence[str]] | None = None,
    title: str | None = None,
) -> Image.Image:
    """The strongest pairs of one sample as lines, red for the similarity and blue against it.

    Width and opacity grow with |R|, on the scale of the strongest pair, which the note below states together with the
    part of all relevance that is shown. Photographs are shown with a frame around each patch that has a line.

    found: of `relprop.bilrp`. sample: which of its samples. strongest: how many lines at most, default 24. words: the
    names of the parts of both inputs, if they are no images and their tokens are not known.
    Raises `InvalidInput` where there is no such sample, or parts of neither images nor words.
    """
    relevance = found.relevance
    if not 0 <= sample < len(relevance):
        raise InvalidInput(
            f"pairs: there is no sample {sample} of {len(relevance)}\n  do: give 0 to {len(relevance) - 1}"
        )
    if strongest < 1:
        raise InvalidInput(f"pairs: strongest={strongest} shows nothing\n  do: give the number of lines")
    one = relevance[sample]
    if found.patch is not None:
        return _of_images(found, sample, numbers(one), strongest, title)
    if one.dim() != 2:
        raise InvalidInput(
            f"pairs: parts of shape {tuple(one.shape)} are neither patches nor words\n  do: draw them yourself"
        )
    names = _words(found, sample) if words is None else [list(enumerate(side)) for side in words]
    for side, size in zip(names, one.shape, strict=True):
        if any(place >= size for place, _ in side):
            raise InvalidInput(
                f"pairs: {len(side)} words for {size} parts\n  do: give a name for each part, in order"
            )
    return _of_words(numbers(one), names, strongest, title, found, sample)


def _words(found: Pairs, sample: int) -> list[list[tuple[int, str]]]:
    """The words of either side with their places among the parts; numbers where no token is known."""
    if found.tokens is None:
        return [[(i, str(i)) for i in range(size)] for size in found.relevance.shape[1:]]
    names = []
    for side, size in zip(found.tokens, found.relevance.shape[1:], strict=True):
        places = torch.arange(size, dtype=torch.float64).expand(len(found.relevance), size)
        names.append(
            [(int(token.relevance), token.text.strip() or "␣") for token in side.tokens(places)[sample]]
        )
    return names


def _chosen(relevance: Map, strongest: int) -> list[tuple[int, int, float]]:
    """The pairs with the largest |R|, the weakest of them first, so that the strongest is drawn last."""
    flat = relevance.reshape(relevance.shape[0], -1)
    order = np.argsort(-np.abs(flat), axis=None, kind="stable")[:strongest]
    places = [divmod(int(place), flat.shape[1]) for place in order if flat.flat[place]]
    return [(i, j, float(flat[i, j])) for i, j in reversed(places)]


def _note(relevance: Map, chosen: list[tuple[int, int, float]], found: Pairs, sample: int) -> str:
    """How much of the relevance is shown, and on what scale."""
    if not chosen:
        return "All relevance is zero."
    shown, whole = sum(abs(r) for _, _, r in chosen), float(np.abs(relevance).sum())
    kept = sum(float(amount[sample]) for amount in found.absorbed.values())
    rest = (
        f" {number(kept)} of the similarity is absorbed on the way."
        if abs(kept) > 0.01 * abs(float(found.similarity[sample]))
        else ""
    )
    return (
        f"The {len(chosen)} strongest pairs of {relevance.size}: {100 * shown / whole:.0f} % of Σ|R|. Red: for the similarity,"
        f" blue: against it; the strongest has R = {number(chosen[-1][2])}.{rest}"
    )


def _of_images(found: Pairs, sample: int, relevance: Map, strongest: int, title: str | None) -> Image.Image:
    photos = [photograph(_sample_of(inputs, sample)) for inputs in found.inputs]
    shapes = [_display(photo.shape[0], photo.shape[1]) for photo in photos]
    high = max(shape[0] for shape in shapes)
    width = 2 * MARGIN + sum(shape[1] for shape in shapes) + BETWEEN
    grids = relevance.shape[:2], relevance.shape[2:]
    flat = relevance.reshape(grids[0][0] * grids[0][1], -1)
    chosen = _chosen(flat, strongest)
    page, top = _page(width, high, title, found, sample, _note(flat, chosen, found, sample))
    lefts = [MARGIN, MARGIN + shapes[0][1] + BETWEEN]
    tops = [top + (high - shape[0]) // 2 for shape in shapes]
    for photo, shape, left, upper in zip(photos, shapes, lefts, tops, strict=True):
        page.image(left, upper, resized_photo(photo, shape))
    assert found.patch is not None
    frames = []
    for photo, shape, left, upper in zip(photos, shapes, lefts, tops, strict=True):
        frames.append((found.patch * shape[0] / photo.shape[0], left, upper))
    for i, j, r in chosen:
        ends = []
        for (side, left, upper), place, grid in zip(frames, (i, j), grids, strict=True):
            row, column = divmod(place, grid[1])
            ends.append((left + (column + 0.5) * side, upper + (row + 0.5) * side, side))
        _line(page, ends[0][:2], ends[1][:2], r, chosen[-1][2])
        for x, y, side in ends:
            _frame(page, x, y, side, r, chosen[-1][2])
    return printed(page.figure)


def _of_words(
    relevance: Map,
    names: list[list[tuple[int, str]]],
    strongest: int,
    title: str | None,
    found: Pairs,
    sample: int,
) -> Image.Image:
    """The words of the first text above those of the second, lines between them."""
    chosen = _chosen(relevance, strongest)
    space = 14
    widths = [[max(8.0, text_width(word, NAME)) for _, word in side] for side in names]
    spans = [sum(side) + space * (len(side) - 1) for side in widths]
    width = int(max(max(spans, default=0), 420)) + 2 * MARGIN
    high = BETWEEN + 2 * line_height(NAME)
    page, top = _page(width, high, title, found, sample, _note(relevance, chosen, found, sample))
    middles: list[dict[int, float]] = []
    for side, sizes, span, upper in zip(
        names, widths, spans, (top, top + high - line_height(NAME)), strict=True
    ):
        left, centre = (width - span) / 2, {}
        for (place, word), size in zip(side, sizes, strict=True):
            page.text(left + size / 2, upper, word, NAME, "center")
            centre[place] = left + size / 2
            left += size + space
        middles.append(centre)
    upper, lower = top + line_height(NAME) + 3, top + high - line_height(NAME) - 3
    for i, j, r in chosen:
        if i in middles[0] and j in middles[1]:  # padding has no word
            _line(page, (middles[0][i], upper), (middles[1][j], lower), r, chosen[-1][2])
    return printed(page.figure)


def _page(width: int, high: int, title: str | None, found: Pairs, sample: int, note: str) -> tuple[Page, int]:
    """A page for a drawing of so many pixels, and the top of the drawing."""
    head = f"similarity {number(float(found.similarity[sample]))}" if title is None else title
    heading, footing = wrapped(head, width - 2 * MARGIN, HEAD), wrapped(note, width - 2 * MARGIN, SMALL)
    top = MARGIN + len(heading) * line_height(HEAD) + 8
    page = Page(width, top + high + GAP + len(footing) * line_height(SMALL) + MARGIN)
    page.lines(MARGIN, MARGIN, heading, HEAD, color=INK)
    page.lines(MARGIN, top + high + GAP - 6, footing, SMALL, color=FAINT)
    return page, top


def _style(r: float, most: float) -> tuple[str, float, float]:
    """Colour, width and opacity of a line."""
    part = abs(r / most)
    rows = palette()[[2 * LEVELS, 0]]
    colour = "#" + bytes(rows[0 if r > 0 else 1].tolist()).hex()
    return colour, THINNEST + (WIDEST - THINNEST) * part, 0.25 + 0.7 * part


def _line(page: Page, start: tuple[float, ...], end: tuple[float, ...], r: float, most: float) -> None:
    """A line in pixels from the top left corner."""
    with show_extra():
        from matplotlib.lines import Line2D
        from matplotlib.transforms import IdentityTransform

    colour, width, opacity = _style(r, most)
    style: dict[str, Any] = {
        "color": colour,
        "alpha": opacity,
        "linewidth": 0.72 * width,
        "solid_capstyle": "round",
    }
    heights = [page.height - start[1], page.height - end[1]]
    page.figure.add_artist(Line2D([start[0], end[0]], heights, transform=IdentityTransform(), **style))


def _frame(page: Page, x: float, y: float, side: float, r: float, most: float) -> None:
    """A square around a patch."""
    with show_extra():
        from matplotlib.patches import Rectangle
        from matplotlib.transforms import IdentityTransform

    colour, _, opacity = _style(r, most)
    style: dict[str, Any] = {"facecolor": "none", "edgecolor": colour, "alpha": opacity, "linewidth": 0.9}
    corner = (x - side / 2, page.height - y - side / 2)
    page.figure.add_artist(Rectangle(corner, side, side, transform=IdentityTransform(), **style))


def _display(high: int, wide: int) -> tuple[int, int]:
    scale = SIDE / max(high, wide)
    scale = math.floor(scale) if scale >= 4 else scale
    return max(1, round(high * scale)), max(1, round(wide * scale))


def _sample_of(inputs: Any, sample: int) -> Any:
    """One image of a batch that was given alone, in a tuple or a dict."""
    if isinstance(inputs, dict):
        inputs = next(iter(inputs.values()))
    if isinstance(inputs, (tuple, list)):
        inputs = inputs[0]
    return inputs[sample]
