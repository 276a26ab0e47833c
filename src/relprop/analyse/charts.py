"""Pictures of analyses over data sets: context use class by class, and document vectors in the plane."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from relprop.analyse.context import ContextRow, ContextUse
from relprop.analyse.documents import principal
from relprop.errors import InvalidInput
from relprop.evaluate.picture import LINES
from relprop.show.layout import (
    FAINT,
    HAIR,
    HEAD,
    INK,
    NAME,
    SMALL,
    blank_page,
    line_height,
    printed,
    text_style,
    text_width,
    wrapped,
)

if TYPE_CHECKING:
    from PIL import Image

MARGIN, BAR, BETWEEN, BARS_WIDTH, SIDE = 18, 11, 10, 430, 300


def context_chart(
    models: Mapping[str, ContextUse], *, least: int = 5, title: str = "", most: int = 24
) -> Image.Image:
    """The median context ratio of each class as bars, a colour a model, with 95 % intervals; the mean over classes last.

    Args:
        models: by their names, over the same classes.
        least: classes with fewer samples in any model are left out, and counted below.
        most: how many classes are drawn, those with most samples first.

    Raises `InvalidInput` where no class has enough samples.
    """
    tables = {name: {row.name: row for row in use.rows} for name, use in models.items()}
    first = next(iter(tables.values()), {})
    names = [n for n in first if all(n in t and t[n].used >= least for t in tables.values())]
    if not names:
        raise InvalidInput(
            f"context_chart: no class has {least} samples with a ratio in every model\n  do: a smaller least="
        )
    left_out = len(first) - len(names)
    names = sorted(names, key=lambda n: -min(t[n].used for t in tables.values()))[:most]
    names.sort(key=lambda n: -float(np.mean([t[n].median for t in tables.values()])))
    rows = [
        (f"{n}  ({min(t[n].used for t in tables.values())})", [t[n] for t in tables.values()]) for n in names
    ]
    rows.append(("mean over classes", [use.overall for use in models.values()]))
    note = (
        "μ = mean relevance outside of the boxes / inside: 1 would be a map that is the same everywhere."
        " Bars: medians over the samples (their number in brackets), with 95 % intervals; an arrow where one goes on."
        + (f" {left_out} classes with fewer than {least} samples are not shown." if left_out else "")
    )
    return _bars(rows, tuple(models), title, note)


def _bars(
    rows: Sequence[tuple[str, list[ContextRow]]], models: tuple[str, ...], title: str, note: str
) -> Image.Image:
    left = MARGIN + 10 + int(max(text_width(name, NAME, "bold") for name, _ in rows))
    width = left + BARS_WIDTH + MARGIN
    head = wrapped(title, width - 2 * MARGIN, HEAD, "bold")
    foot = wrapped(note, width - 2 * MARGIN, SMALL)
    top = MARGIN + line_height(HEAD) * len(head) + line_height(NAME) + 14
    step = BAR * len(models) + BETWEEN
    high = step * len(rows) + 8
    height = top + high + 26 + line_height(SMALL) * len(foot) + MARGIN
    figure = blank_page(width, height)
    axes = figure.add_axes((left / width, 1 - (top + high) / height, BARS_WIDTH / width, high / height))
    _plain(axes)
    values = [
        end for _, found in rows for row in found for end in (row.median, row.high) if math.isfinite(end)
    ]
    longest = max(1.0, *(row.median for _, found in rows for row in found if math.isfinite(row.median)))
    limit = 1.06 * max(longest, min(max(values), 2 * longest))
    axes.set_xlim(0, limit)
    axes.set_ylim(high, 0)
    axes.set_yticks([])
    axes.axvline(1, color=FAINT, linewidth=0.8, linestyle=":")
    for number, (name, found) in enumerate(rows):
        start = 4 + BETWEEN / 2 + number * step
        last = number == len(rows) - 1
        if last:
            axes.axhline(start - BETWEEN / 2, color=HAIR, linewidth=0.8)
        for which, row in enumerate(found):
            at = start + BAR * (which + 0.5)
            axes.barh(at, row.median, BAR - 2, color=LINES[which % len(LINES)])
            if math.isfinite(row.low):
                axes.plot([row.low, min(row.high, limit)], [at, at], color=INK, linewidth=0.9)
                if row.high > limit:  # it goes on
                    axes.plot([limit * 0.995], [at], color=INK, marker=">", markersize=4, clip_on=False)
        figure.text(
            (left - 8) / width,
            1 - (top + start + BAR * len(models) / 2) / height,
            name,
            ha="right",
            va="center",
            **text_style(NAME, fontweight="bold" if last else "normal"),
        )
    at = MARGIN
    for line in head:
        figure.text(MARGIN / width, 1 - at / height, line, va="top", **text_style(HEAD, fontweight="bold"))
        at += line_height(HEAD)
    _legend(figure, width, height, left, at + 4, models)
    at = top + high + 26
    for line in foot:
        figure.text(MARGIN / width, 1 - at / height, line, va="top", **text_style(SMALL, color=FAINT))
        at += line_height(SMALL)
    return printed(figure)


def _legend(figure: Any, width: int, height: int, left: float, top: float, names: Sequence[str]) -> None:
    """Squares of colour with names, in one line."""
    from matplotlib.patches import Rectangle

    for number, name in enumerate(names):
        square = Rectangle(
            (left / width, 1 - (top + 12) / height),
            10 / width,
            10 / height,
            transform=figure.transFigure,
            facecolor=LINES[number % len(LINES)],
        )
        figure.add_artist(square)
        figure.text((left + 15) / width, 1 - (top + 7) / height, name, va="center", **text_style(NAME))
        left += 15 + text_width(name, NAME) + 18


def _plain(axes: Any) -> None:
    axes.grid(True, axis="x", color=HAIR, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(FAINT)
    axes.tick_params(colors=FAINT, labelsize=SMALL)


def document_chart(
    vectors: Mapping[str, Any],
    labels: Any,
    classes: Sequence[str],
    *,
    captions: Mapping[str, str] | None = None,
    title: str = "",
    columns: int = 3,
) -> Image.Image:
    """Document vectors of several kinds in the plane of their first two principal components, coloured by class.

    Args:
        vectors: (B, D) for each kind, of the same documents.
        labels: (B,) the class of each document, an index into `classes`.
        captions: a line below the name of a kind, such as its accuracy.
    """
    held = np.asarray(labels)
    if not len(vectors) or any(len(one) != len(held) for one in vectors.values()):
        raise InvalidInput(
            f"document_chart: {len(held)} labels for vectors of {[len(one) for one in vectors.values()]} documents\n"
            "  do: give the same documents for every kind"
        )
    columns = min(columns, len(vectors))
    down = -(-len(vectors) // columns)
    width = 2 * MARGIN + columns * SIDE + (columns - 1) * 26
    key = line_height(NAME)
    used = [int(i) for i in np.unique(held)]
    lines = _key_lines([classes[i] for i in used], width - 2 * MARGIN)
    head = wrapped(title, width - 2 * MARGIN, HEAD, "bold")
    caption = line_height(NAME) + line_height(SMALL) + 8
    top = MARGIN + line_height(HEAD) * len(head) + 4
    height = top + down * (caption + SIDE + 16) + key * len(lines) + 10 + MARGIN
    figure = blank_page(width, height)
    at = MARGIN
    for line in head:
        figure.text(MARGIN / width, 1 - at / height, line, va="top", **text_style(HEAD, fontweight="bold"))
        at += line_height(HEAD)
    for number, (name, one) in enumerate(vectors.items()):
        x = MARGIN + (number % columns) * (SIDE + 26)
        y = top + (number // columns) * (caption + SIDE + 16)
        places, parts = principal(one)
        figure.text(x / width, 1 - y / height, name, va="top", **text_style(NAME, fontweight="bold"))
        words = (captions or {}).get(name, "")
        words = f"{words}{' · ' if words else ''}{float(parts.sum()):.0%} of the variance"
        figure.text(
            x / width, 1 - (y + line_height(NAME)) / height, words, va="top", **text_style(SMALL, color=FAINT)
        )
        axes = figure.add_axes((x / width, 1 - (y + caption + SIDE) / height, SIDE / width, SIDE / height))
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(HAIR)
        order = np.random.default_rng(0).permutation(len(held))  # no class lies on top of all others
        colours = np.array([LINES[used.index(int(i)) % len(LINES)] for i in held])
        axes.scatter(places[order, 0], places[order, 1], s=9, c=colours[order], alpha=0.75, linewidths=0)
    y = top + down * (caption + SIDE + 16) + 4
    for row in lines:
        x = MARGIN
        for index in row:
            name, colour = classes[used[index]], LINES[index % len(LINES)]
            figure.text(x / width, 1 - y / height, "●", va="top", **text_style(NAME, color=colour))
            figure.text((x + 13) / width, 1 - y / height, name, va="top", **text_style(NAME))
            x += int(13 + text_width(name, NAME) + 18)
        y += key
    return printed(figure)


def _key_lines(names: Sequence[str], width: float) -> list[list[int]]:
    """The names' positions, in lines no wider than `width`."""
    lines: list[list[int]] = [[]]
    used = 0.0
    for index, name in enumerate(names):
        own = 31 + text_width(name, NAME)
        if lines[-1] and used + own > width:
            lines.append([])
            used = 0.0
        lines[-1].append(index)
        used += own
    return lines
