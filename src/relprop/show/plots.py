"""Plots of relevance that is not an image: series and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInput
from .colour import COLOURS, LEVELS, Map, Numbers, colour_scale, colourise, numbers, palette
from .layout import (
    DPI,
    FAINT,
    HAIR,
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
from .picture import show_extra, stack

if TYPE_CHECKING:
    from PIL import Image

MOST_CHANNELS = 24
MOST_BARS = 400  # longer series are drawn as filled curves


def series(
    relevance: Numbers,
    signal: Numbers | None = None,
    *,
    colours: str = COLOURS,
    limit: float | None = None,
    title: str | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    size: int | None = None,
) -> Image.Image:
    """Relevance along a series: one axis a channel, red above the zero line and blue below it.

    relevance: (T,) or (C, T); (B, C, T) for a picture each. signal: the series itself, same shape; it is
    drawn as a line above its relevance, on a ground coloured by it. names: of the C channels. limit: half
    the height of the axes and the limit of the colours, default: the largest |R|, the same for all
    channels. size: width in pixels, default 720.
    Raises `InvalidInput` for wrong shapes, more than 24 channels, NaN, an unknown colour map.
    """
    array = numbers(relevance)
    if array.ndim not in (1, 2, 3):
        raise InvalidInput(
            f"series relevance has shape {array.shape}; expected (T,), (C, T) or (B, C, T)\n"
            "  do: pass one value a step and channel"
        )
    lines = None if signal is None else numbers(signal, "signal")
    if lines is not None and lines.shape != array.shape:
        raise InvalidInput(
            f"signal has shape {lines.shape}, relevance {array.shape}\n"
            "  do: pass the series that was explained"
        )
    batch = array if array.ndim == 3 else np.atleast_2d(array)[None]
    signals = [None] * len(batch) if lines is None else list(lines.reshape(batch.shape))
    channels = batch.shape[1]
    if channels > MOST_CHANNELS:
        raise InvalidInput(
            f"series has {channels} channels, and {MOST_CHANNELS} can be read\n"
            "  do: pick channels, or sum them"
        )
    if names is not None and len(names) != channels:
        raise InvalidInput(f"{len(names)} names for {channels} channels\n  do: pass one name a channel")
    labels = list(names) if names is not None else [f"channel {c + 1}" for c in range(channels)]
    if channels == 1 and names is None:
        labels = [""]
    heads = titles_of(title, len(batch))
    width = width_of(size)
    return stack(
        [
            _series_picture(values, line, labels, colours, limit, heading, width)
            for values, line, heading in zip(batch, signals, heads, strict=True)
        ]
    )


def table(
    relevance: Numbers,
    values: Numbers | None = None,
    *,
    colours: str = COLOURS,
    limit: float | None = None,
    title: str | Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    size: int | None = None,
    most: int = 15,
) -> Image.Image:
    """Relevance of the features of a table as bars, the largest |R| first.

    relevance: (F,), or (B, F) for a picture each. values: the features' values, same shape, shown beside
    their names. names: of the F features, default "feature 0" …. Of more than `most` features (default 15)
    the others are one bar, their sum, so that the bars add up to the relevance. limit: the length of the
    axes, default the longest bar.
    size: width in pixels, default 720.
    Raises `InvalidInput` for wrong shapes, NaN, an unknown colour map.
    """
    array = numbers(relevance)
    if array.ndim not in (1, 2):
        raise InvalidInput(
            f"table relevance has shape {array.shape}; expected (F,) or (B, F)\n"
            "  do: pass one value a feature"
        )
    shown = None if values is None else numbers(values, "values")
    if shown is not None and shown.shape != array.shape:
        raise InvalidInput(
            f"values have shape {shown.shape}, relevance {array.shape}\n"
            "  do: pass the features that were explained"
        )
    if most < 1:
        raise InvalidInput(f"most is {most}, and must be at least 1\n  do: leave it out")
    batch = np.atleast_2d(array)
    cells = [None] * len(batch) if shown is None else list(np.atleast_2d(shown))
    if names is not None and len(names) != batch.shape[1]:
        raise InvalidInput(f"{len(names)} names for {batch.shape[1]} features\n  do: pass one name a feature")
    labels = list(names) if names is not None else [f"feature {i}" for i in range(batch.shape[1])]
    heads = titles_of(title, len(batch))
    width = width_of(size)
    return stack(
        [
            _table_picture(row, cell, labels, colours, limit, heading, width, most)
            for row, cell, heading in zip(batch, cells, heads, strict=True)
        ]
    )


def _series_picture(
    relevance: Map,
    signal: Map | None,
    labels: Sequence[str],
    colours: str,
    limit: float | None,
    title: str,
    width: int,
) -> Image.Image:
    channels, steps = relevance.shape
    v = limit_of(relevance, limit)
    inner = width - 2 * MARGIN
    heading = wrapped(title, inner, HEAD, "bold")
    tall = 96 if channels <= 3 else 64 if channels <= 8 else 44
    tall = 170 if channels == 1 and signal is None else tall
    signal_tall = 0 if signal is None else (110 if channels == 1 else tall)
    label_tall = line_height(NAME) if any(labels) else 0
    block = label_tall + signal_tall + (4 if signal_tall else 0) + tall + 10
    top = MARGIN - 4 + (line_height(HEAD) * len(heading) + 8 if heading else 8)
    bottom = 2 * line_height(SMALL) + MARGIN - 6
    page = Page(width, top + block * channels + bottom)
    page.lines(MARGIN, MARGIN - 4, heading, HEAD, weight="bold")
    ticks = [f"+{number(v)}", "0", f"−{number(v)}"] if v else ["0"]
    left = MARGIN + int(max(text_width(t, SMALL) for t in ticks)) + 8
    for c in range(channels):
        if label_tall:
            page.text(left, top, labels[c], NAME)
            top += label_tall
        if signal is not None:
            axes = bare_axes(page, left, top, width - MARGIN - left, signal_tall, steps)
            ground = colourise(relevance[c : c + 1], v, colours)
            low, high = float(signal[c].min()), float(signal[c].max())
            room = 0.08 * (high - low) or 1.0
            axes.imshow(
                ground, extent=(-0.5, steps - 0.5, low - room, high + room), aspect="auto",
                interpolation="nearest", origin="upper",
            )  # fmt: skip
            axes.plot(np.arange(steps), signal[c], color=INK, linewidth=1.0)
            axes.set_ylim(low - room, high + room)
            top += signal_tall + 4
        axes = bare_axes(page, left, top, width - MARGIN - left, tall, steps)
        signed_fill(axes, relevance[c], colours)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_ylim(-1.06 * (v or 1), 1.06 * (v or 1))
        for label, y in zip(ticks, (0.03, 0.5, 0.97) if v else (0.5,), strict=True):
            page.text(
                left - 5, top + tall * y - line_height(SMALL) / 2 + 1, label, SMALL, "right",
                color=INK if label == "0" else FAINT,
            )  # fmt: skip
        top += tall + 10
    below = _step_axis(page, left, top - 7, width - MARGIN - left, steps)
    red, blue = ends(colours)
    words = f"relevance, ±{number(v)}" if v else "all relevance is zero"
    at: float = left
    signs = (("above zero: for", red), ("below zero: against", blue)) if v else ()
    for text, colour in ((words, FAINT), *signs):
        page.text(at, below, text, SMALL, color=colour)
        at += text_width(text, SMALL) + 18
    return printed(page.figure)


def _table_picture(
    relevance: Map,
    values: Map | None,
    labels: Sequence[str],
    colours: str,
    limit: float | None,
    title: str,
    width: int,
    most: int,
) -> Image.Image:
    order = np.argsort(-np.abs(relevance), kind="stable")
    kept = order[:most]
    bars = [float(relevance[i]) for i in kept]
    texts = [labels[i] if values is None else f"{labels[i]} = {_plain(values[i])}" for i in kept]
    rest = order[most:]
    if len(rest):
        bars.append(float(relevance[rest].sum()))
        texts.append(f"{len(rest)} others, summed")
    longest = limit_of(np.array(bars), limit)
    inner = width - 2 * MARGIN
    heading = wrapped(title, inner, HEAD, "bold")
    name_room = math.ceil(min(max(text_width(t, NAME) for t in texts) + 11, 0.4 * width))
    lines = [wrapped(t, name_room - 10, NAME) for t in texts]
    heights = [max(24, line_height(NAME) * len(one) + 4) for one in lines]
    top = MARGIN - 4 + (line_height(HEAD) * len(heading) + 8 if heading else 4)
    page = Page(width, top + sum(heights) + 8 + line_height(SMALL) + MARGIN)
    page.lines(MARGIN, MARGIN - 4, heading, HEAD, weight="bold")
    red, blue = ends(colours)
    left, right = MARGIN + name_room, width - MARGIN
    number_room = int(max(text_width(_signed(b), SMALL) for b in bars)) + 8
    low, high = _reach(bars, longest)
    left_room = number_room if low < 0 else 2
    right_room = number_room if high > 0 else 2
    scale = (right - left - left_room - right_room) / ((high - low) or 1.0)
    zero = left + left_room - low * scale
    bottom = top + sum(heights)
    for bar, one, height in zip(bars, lines, heights, strict=True):
        page.lines(
            left - 10, top + (height - line_height(NAME) * len(one)) // 2, one, NAME, align="right",
            color=FAINT if len(rest) and one is lines[-1] else INK,
        )  # fmt: skip
        end = zero + float(np.clip(bar, low, high)) * scale
        page.box(min(zero, end), top + (height - 16) / 2, abs(end - zero), 16, red if bar > 0 else blue)
        at = end + 5 if bar >= 0 else end - 5
        align = "left" if bar >= 0 else "right"
        page.text(at, top + (height - line_height(SMALL)) / 2 + 1, _signed(bar), SMALL, align, color=FAINT)
        top += height
    page.box(zero - 0.5, bottom - sum(heights), 1, sum(heights), INK)
    total = float(relevance.sum())
    words = f"relevance, sum {_signed(total)}; red for, blue against" if colours == COLOURS else (
        f"relevance, sum {_signed(total)}; right of zero for, left of it against"
    )  # fmt: skip
    page.text(MARGIN, bottom + 8, words, SMALL, color=FAINT)
    return printed(page.figure)


def _reach(bars: Sequence[float], longest: float) -> tuple[float, float]:
    """Where the axis starts and ends: only as far as bars go, so that an empty side takes no room."""
    low = -longest if min(bars) < -longest else min(0.0, *bars, 0.0)
    high = longest if max(bars) > longest else max(0.0, *bars, 0.0)
    return low, high


def bare_axes(page: Page, left: int, top: int, width: int, height: int, steps: int) -> Any:
    """Bare axes at a place in pixels, for `steps` steps."""
    place = (left / page.width, 1 - (top + height) / page.height, width / page.width, height / page.height)
    axes = page.figure.add_axes(place, facecolor="white", xscale="linear")
    axes.set_xlim(-0.5, steps - 0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(HAIR)
        spine.set_linewidth(72 / DPI)
    return axes


def signed_fill(axes: Any, values: Map, colours: str) -> None:
    """Bars from the zero line, or for long series a filled curve; one colour above it and one below."""
    with show_extra():
        from matplotlib.collections import PolyCollection

    red, blue = ends(colours)
    x = np.arange(len(values), dtype=np.float64)
    if len(values) <= MOST_BARS:
        wide = 1.0 if len(values) > 80 else 0.82
        left, right, zero = x - wide / 2, x + wide / 2, np.zeros_like(values)
        outlines = np.stack(
            [np.stack([left, left, right, right]), np.stack([zero, values, values, zero])], axis=-1
        ).swapaxes(0, 1)
        shades = [red if value > 0 else blue for value in values]
        axes.add_collection(
            PolyCollection(list(outlines), facecolors=shades, linewidths=0, antialiaseds=wide < 1)
        )
        return
    axes.fill_between(x, np.maximum(values, 0), 0, step="mid", color=red, linewidth=0.6)
    axes.fill_between(x, np.minimum(values, 0), 0, step="mid", color=blue, linewidth=0.6)


def _step_axis(page: Page, left: int, top: int, width: int, steps: int) -> int:
    """Numbers of a few steps, and the word, below the last axes; returns the position of the word's line."""
    gap = _round_gap(steps)
    marks = list(range(0, steps, gap))
    for step in marks:
        at = left + (step + 0.5) / steps * width
        page.box(at - 0.5, top - 2, 1, 3, FAINT)
        page.text(at, top + 2, str(step), SMALL, "center", color=FAINT)
    below = top + 4 + line_height(SMALL)
    page.text(left + width, below, "step", SMALL, "right", color=FAINT)
    return below


def _round_gap(steps: int) -> int:
    """A round distance that puts at most eight marks on an axis of `steps` steps."""
    least = max(1.0, steps / 8)
    power = 10 ** int(np.floor(np.log10(least)))
    return int(next(f * power for f in (1, 2, 5, 10) if f * power >= least))


def ends(colours: str) -> tuple[str, str]:
    """The colours for and against as hex; inside the map, except for the default, as its ends may be nearly
    black."""
    far = LEVELS if colours == COLOURS else round(0.8 * LEVELS)
    rows = palette(colours)[[LEVELS + far, LEVELS - far]]
    red, blue = ("#" + bytes(row.tolist()).hex() for row in rows)
    return red, blue


def limit_of(values: Map, limit: float | None) -> float:
    """The end of an axis: the limit that was given, or the largest |R|."""
    if limit is None:
        return colour_scale(values, 1.0)
    if not (np.isfinite(limit) and limit > 0):
        raise InvalidInput(f"limit is {limit!r}, and must be a positive number\n  do: leave it out")
    return float(limit)


def titles_of(title: str | Sequence[str] | None, count: int) -> list[str]:
    """A title for each of `count` pictures; one string is the first one's."""
    if title is None or isinstance(title, str):
        return [title or ""] + [""] * (count - 1)
    if len(title) != count:
        raise InvalidInput(
            f"{len(title)} titles for {count} pictures\n  do: pass one string, or one title a picture"
        )
    return [str(one) for one in title]


def width_of(size: int | None) -> int:
    """The width of a picture in pixels."""
    if size is None:
        return 720
    if not isinstance(size, int) or not 200 <= size <= 4096:
        raise InvalidInput(f"size is {size!r}, and must be 200 to 4096 pixels\n  do: leave it out for 720")
    return size


def _plain(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)
