"""Relevance of sound: a waveform on the colours of its relevance, a spectrogram in them, and bars over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InvalidInput
from .colour import COLOURS, Map, Numbers, colour_scale, colourise, numbers
from .layout import FAINT, HEAD, INK, MARGIN, SMALL, Page, line_height, number, printed, text_width, wrapped
from .picture import stack
from .plots import bare_axes, ends, limit_of, signed_fill, titles_of, width_of

if TYPE_CHECKING:
    from PIL import Image

MOST_BARS = 100
WAVE, MAP, BARS = 120, 200, 110  # heights in pixels
SPANS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


def audio(
    relevance: Numbers,
    sound: Numbers | None = None,
    *,
    rate: float = 16000,
    colours: str = COLOURS,
    limit: float | None = None,
    title: str | Sequence[str] | None = None,
    size: int | None = None,
) -> Image.Image:
    """Relevance of a sound over its time: red speaks for, blue against; the bars below add up to the relevance.

    relevance: of samples, (N,) or (B, N) or (B, 1, N). sound: the samples, same shape, drawn as a waveform.
    rate: samples a second. Samples are summed over spans of 1 ms, 2 ms, 5 ms …, at most 100 of them, as the
    relevance of a single sample says nothing to the eye. limit: of a span, default the largest |R|. size: width
    in pixels, default 720. Raises `InvalidInput` for wrong shapes, NaN, an unknown colour map.
    """
    array = _rows(numbers(relevance), "relevance")
    heard = None if sound is None else _rows(numbers(sound, "sound"), "sound")
    if heard is not None and heard.shape != array.shape:
        raise InvalidInput(
            f"sound has shape {heard.shape}, relevance {array.shape}\n"
            "  do: pass the samples that were explained"
        )
    waves: list[Map | None] = [None] * len(array) if heard is None else list(heard)
    names = titles_of(title, len(array))
    return stack(
        [
            _sound_picture(values, wave, rate, colours, limit, name, width_of(size))
            for values, wave, name in zip(array, waves, names, strict=True)
        ]
    )


def spectrogram(
    relevance: Numbers,
    seconds: float | None = None,
    *,
    colours: str = COLOURS,
    limit: float | None = None,
    title: str = "",
    size: int | None = None,
) -> Image.Image:
    """Relevance of one spectrogram (bands, steps), low bands below, and its sum over the bands at each step.

    seconds: how long it lasts; without it the axis counts steps. limit: of the map's colours, default the 99.5 %
    quantile of |R|. Raises `InvalidInput` for another shape, NaN, an unknown colour map.
    """
    array = numbers(relevance)
    if array.ndim != 2:
        raise InvalidInput(
            f"spectrogram relevance has shape {array.shape}; expected (bands, steps)\n  do: pass one sample"
        )
    v = colour_scale(array) if limit is None else limit_of(array, limit)
    length = float(array.shape[1]) if seconds is None else seconds
    page, left, wide, top = _page(title, width_of(size), MAP, array.sum(0))
    axes = bare_axes(page, left, top, wide, MAP, array.shape[1])
    axes.imshow(
        colourise(array[::-1], v, colours), extent=(-0.5, array.shape[1] - 0.5, 0, 1), aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    axes.set_ylim(0, 1)
    words = f"colours: relevance of a band, ±{number(v)}; bars: its sum at each step"
    _bars(page, left, wide, top + MAP + 8, array.sum(0), length, "s" if seconds else "step", colours, words)
    return printed(page.figure)


def _rows(array: Map, what: str) -> Map:
    if array.ndim == 3 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2):
        raise InvalidInput(
            f"{what} of a sound has shape {array.shape}; expected (N,), (B, N) or (B, 1, N)\n"
            "  do: pass one value a sample, one channel"
        )
    return np.atleast_2d(array)


def spans(values: Map, rate: float) -> Map:
    """Relevance of samples (N,) summed over spans of equal time, (spans,); the last one may be shorter."""
    return np.add.reduceat(values, np.arange(0, len(values), span(len(values), rate)))


def span(count: int, rate: float) -> int:
    """How many samples of `count` are summed in one bar: those of a round time, for at most 100 bars."""
    seconds = count / rate
    return max(1, round(next((s for s in SPANS if seconds / s <= MOST_BARS), seconds / MOST_BARS) * rate))


def _sound_picture(
    values: Map, wave: Map | None, rate: float, colours: str, limit: float | None, title: str, width: int
) -> Image.Image:
    summed, each = spans(values, rate), span(len(values), rate)
    v = limit_of(summed, limit)
    seconds = len(values) / rate
    page, left, wide, top = _page(title, width, WAVE if wave is not None else 0, summed)
    if wave is not None:
        axes = bare_axes(page, left, top, wide, WAVE, len(summed))
        loud = float(np.abs(wave).max()) or 1.0
        axes.imshow(
            colourise(summed[None], v, colours), extent=(-0.5, len(summed) - 0.5, -1.05, 1.05), aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        low, high = _envelope(wave / loud, wide)
        x = (np.arange(len(low)) + 0.5) / len(low) * len(wave) / each - 0.5
        axes.fill_between(x, low, high, color=INK, linewidth=0.6)
        axes.set_xlim(-0.5, len(wave) / each - 0.5)
        axes.set_ylim(-1.05, 1.05)
        top += WAVE + 8
    words = f"relevance of {1000 * each / rate:.3g} ms each, ±{number(v)}"
    _bars(page, left, wide, top, summed, seconds, "s", colours, words if v else "all relevance is zero", v)
    return printed(page.figure)


def _page(title: str, width: int, picture: int, bars: Map) -> tuple[Page, int, int, int]:
    """The page, where its axes start and how wide they are, and the first line below the title."""
    heading = wrapped(title, width - 2 * MARGIN, HEAD, "bold")
    top = MARGIN - 4 + (line_height(HEAD) * len(heading) + 8 if heading else 8)
    page = Page(width, top + (picture + 8 if picture else 0) + BARS + 2 * line_height(SMALL) + MARGIN)
    page.lines(MARGIN, MARGIN - 4, heading, HEAD, weight="bold")
    v = limit_of(bars, None)
    left = MARGIN + int(max(text_width(t, SMALL) for t in (f"−{number(v)}", "0"))) + 8
    return page, left, width - MARGIN - left, top


def _bars(
    page: Page, left: int, wide: int, top: int, values: Map, length: float, unit: str, colours: str,
    words: str, limit: float | None = None,
) -> None:  # fmt: skip
    """Bars over time from a zero line, with the axes' numbers and a line of words."""
    v = limit_of(values, None) if limit is None else limit
    axes = bare_axes(page, left, top, wide, BARS, len(values))
    signed_fill(axes, values, colours)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_ylim(-1.06 * (v or 1), 1.06 * (v or 1))
    for label, y in ((f"+{number(v)}", 0.03), ("0", 0.5), (f"−{number(v)}", 0.97)) if v else (("0", 0.5),):
        page.text(
            left - 5, top + BARS * y - line_height(SMALL) / 2 + 1, label, SMALL, "right",
            color=INK if label == "0" else FAINT,
        )  # fmt: skip
    below = top + BARS + 3
    gap = next((s for s in (*SPANS, 100, 200, 500, 1000, 2000, 5000) if length / s <= 8), length)
    for step in range(int(length / gap + 1e-9) + 1):
        at = left + step * gap / length * wide
        page.box(at - 0.5, below - 2, 1, 3, FAINT)
        page.text(at, below + 2, f"{step * gap:.4g}", SMALL, "center", color=FAINT)
    row = below + 4 + line_height(SMALL)
    page.text(left + wide, row, unit, SMALL, "right", color=FAINT)
    red, blue = ends(colours)
    at = float(left)
    for text, colour in ((words, FAINT), ("above zero: for", red), ("below zero: against", blue)):
        page.text(at, row, text, SMALL, color=colour)
        at += text_width(text, SMALL) + 18


def _envelope(wave: Map, columns: int) -> tuple[Map, Map]:
    """The lowest and highest sample of each of at most `columns` stretches of a waveform."""
    starts = np.unique(np.linspace(0, len(wave), min(columns, len(wave)), endpoint=False).astype(int))
    return np.minimum.reduceat(wave, starts), np.maximum.reduceat(wave, starts)
