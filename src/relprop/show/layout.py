"""Panels, text and colour bars set on a page, in whole pixels, through matplotlib's object API.

pyplot is never touched: no global figure, no display, safe in threads. Pixels of panels are copied, not
resampled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .colour import COLOURS, Pixels, colourise, overlaid
from .picture import show_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

DPI = 100
MARGIN, GAP, ROW_GAP = 16, 20, 18
BAR, BAR_GAP = 9, 8
NARROWEST = 168  # pixels of width that the words of a colour bar need
INK, FAINT, HAIR = "#222222", "#6b6b6b", "#c8c8c8"
HEAD, NAME, SMALL = 10.5, 9.5, 8.0  # points
LEADING = 1.32
PHOTO_GREY = 176  # the ground of an overlay's colour bar


@dataclass(frozen=True, slots=True)
class Panel:
    """One image of a page: pixels (H, W, 3), a title above, and a colour bar below if a limit is given."""

    pixels: Pixels
    title: str = ""
    limit: float | None = None
    note: str = ""


def number(value: float) -> str:
    """A number in two significant digits with a true minus sign: 0.031, −12, 3.1·10⁻⁵."""
    text = f"{value:#.2g}".rstrip(".") if value else "0"
    if "e" in text and 1 <= abs(value) < 1e5:
        text = f"{float(text):.0f}"
    elif "e" in text:
        digits, _, power = text.partition("e")
        text = f"{digits}·10{str(int(power)).translate(str.maketrans('0123456789-', '⁰¹²³⁴⁵⁶⁷⁸⁹⁻'))}"
    return text.replace("-", "−")


def line_height(points: float) -> int:
    """Height of a line of text in pixels."""
    return math.ceil(points * DPI / 72 * LEADING)


MORE = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "WenQuanYi Zen Hei", "Arial Unicode MS",
)  # fmt: skip
"""Fonts for the letters that DejaVu Sans does not have, which comes with matplotlib."""


@cache
def families() -> list[str]:
    """DejaVu Sans, and those of `MORE` that are installed."""
    with show_extra():
        from matplotlib.font_manager import fontManager

    there = set(fontManager.get_font_names())
    return ["DejaVu Sans", *(name for name in MORE if name in there)]


@contextmanager
def any_letter() -> Iterator[None]:
    """Without matplotlib's warnings of letters that no font has: they show as boxes, and are right in the terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def text_style(points: float, **more: Any) -> dict[str, Any]:
    """Keyword arguments of a text: in the `families`, never parsed as a formula, whatever the user's matplotlibrc
    says."""
    style = {
        "fontfamily": families(),
        "fontsize": points,
        "color": INK,
        "parse_math": False,
        "usetex": False,
    }
    return style | more


def blank_page(width: int, height: int) -> Figure:
    """An empty white figure of a size in pixels, with its own canvas and no place in pyplot."""
    with show_extra():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    # half a pixel more: figsize × dpi is rounded down
    figure = Figure(figsize=((width + 0.5) / DPI, (height + 0.5) / DPI), dpi=DPI, facecolor="white")
    figure.set_layout_engine("none")
    FigureCanvasAgg(figure)
    return figure


def printed(figure: Figure) -> Image.Image:
    """The finished figure as an RGB image."""
    with show_extra():
        from PIL import Image

    canvas: Any = figure.canvas
    with any_letter():
        canvas.draw()
    return Image.fromarray(np.array(canvas.buffer_rgba())[..., :3].copy())


@lru_cache(maxsize=4096)
def text_width(text: str, points: float, weight: str = "normal") -> float:
    """Width of a line of text in pixels."""
    with show_extra():
        from matplotlib.backends.backend_agg import RendererAgg
        from matplotlib.font_manager import FontProperties

    renderer: Any = RendererAgg(8, 8, DPI)  # type: ignore[no-untyped-call]
    font = FontProperties(family=families(), size=points, weight=weight)
    with any_letter():
        width, _, _ = renderer.get_text_width_height_descent(text, font, False)
    return float(width)


def wrapped(text: str, width: float, points: float, weight: str = "normal") -> list[str]:
    """Text cut into lines no wider than `width` pixels, at spaces where there are any, within words
    otherwise."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if text_width(longer, points, weight) <= width:
                line = longer
                continue
            if line:
                lines.append(line)
            while text_width(word, points, weight) > width and len(word) > 1:
                cut = next(
                    (n for n in range(len(word) - 1, 1, -1) if text_width(word[:n], points, weight) <= width),
                    1,
                )
                lines.append(word[:cut])
                word = word[cut:]
            line = word
        if line:
            lines.append(line)
    return lines


def bar_height() -> int:
    """Height in pixels of a colour bar with its numbers and words."""
    return BAR + 3 + 2 * line_height(SMALL)


class Page:
    """A white page of a size in pixels; positions are given from the top left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.figure = blank_page(width, height)

    def image(self, left: int, top: int, pixels: Pixels) -> None:
        """Copy pixels (H, W, 3) unchanged, and draw a hair line of one pixel around them."""
        height, width = pixels.shape[:2]
        framed = np.empty((height + 2, width + 2, 3), dtype=np.uint8)
        framed[:] = np.frombuffer(bytes.fromhex(HAIR[1:]), dtype=np.uint8)
        framed[1:-1, 1:-1] = pixels
        self.figure.figimage(framed, left - 1, self.height - top - height - 1, origin="upper")

    def box(self, left: float, top: float, width: float, height: float, colour: str) -> None:
        """A filled rectangle."""
        with show_extra():
            from matplotlib.patches import Rectangle
            from matplotlib.transforms import IdentityTransform

        corner = (left, self.height - top - height)
        style: dict[str, Any] = {"facecolor": colour, "edgecolor": "none", "transform": IdentityTransform()}
        self.figure.add_artist(Rectangle(corner, width, height, **style))

    def text(
        self, left: float, top: float, text: str, points: float, align: str = "left", **style: Any
    ) -> None:
        """One line of text with its top at `top`; `align` says which part of it is at `left`."""
        y = self.height - top - line_height(points) / LEADING * 0.98
        self.figure.text(
            left / self.width, y / self.height, text, **text_style(points, ha=align, va="baseline", **style)
        )

    def lines(self, left: float, top: int, lines: Sequence[str], points: float, **style: Any) -> int:
        """Lines of text; returns the position below them."""
        for line in lines:
            self.text(left, top, line, points, **style)
            top += line_height(points)
        return top

    def bar(self, left: int, top: int, width: int, limit: float, colours: str, over: bool) -> None:
        """A colour bar that states its scale: −limit against, 0, +limit for; on grey if it is of an
        overlay."""
        steps = np.repeat(np.linspace(-1, 1, width)[None], BAR, axis=0) * (limit > 0)
        plain = np.full((*steps.shape, 3), PHOTO_GREY, dtype=np.uint8)
        self.image(left, top, overlaid(steps, plain, 1, colours) if over else colourise(steps, 1, colours))
        row, next_row = top + BAR + 3, top + BAR + 3 + line_height(SMALL)
        self.text(left + width / 2, row, "0", SMALL, "center")
        if not limit:
            self.text(left + width / 2, next_row, "all relevance is zero", SMALL, "center", color=FAINT)
            return
        self.text(left, row, f"−{number(limit)}", SMALL)
        self.text(left + width, row, f"+{number(limit)}", SMALL, "right")
        self.text(left, next_row, "against", SMALL, color=FAINT)
        self.text(left + width / 2, next_row, "relevance", SMALL, "center", color=FAINT)
        self.text(left + width, next_row, "for", SMALL, "right", color=FAINT)


def composed(
    rows: Sequence[Sequence[Panel]],
    *,
    title: str | None = None,
    note: str = "",
    limit: float | None = None,
    colours: str = COLOURS,
    over: bool = False,
) -> Image.Image:
    """A page of panels in rows and columns.

    A panel with a limit has its own colour bar; `limit` gives one common bar below all; `over`: bars are of
    overlays. The page is as large as its contents and a margin of 16 pixels; titles and notes are wrapped,
    never cut.
    """
    columns = max(len(row) for row in rows)
    barred = limit is not None or any(panel.limit is not None for row in rows for panel in row)
    least = NARROWEST if barred and (limit is None or columns == 1) else 1
    widths = [max(least, *(row[i].pixels.shape[1] for row in rows if i < len(row))) for i in range(columns)]
    inner = max(sum(widths) + GAP * (columns - 1), NARROWEST if barred else 1)
    heading = wrapped(title or "", inner, HEAD, "bold")
    footing = wrapped(note, inner, SMALL)
    names = [[wrapped(p.title, widths[i], NAME) for i, p in enumerate(row)] for row in rows]
    notes = [[wrapped(p.note, widths[i], SMALL) for i, p in enumerate(row)] for row in rows]
    name_heights = [line_height(NAME) * max(map(len, row)) + (4 if any(row) else 0) for row in names]
    image_heights = [max(p.pixels.shape[0] for p in row) for row in rows]
    bar_heights = [BAR_GAP + bar_height() if any(p.limit is not None for p in row) else 0 for row in rows]
    note_heights = [line_height(SMALL) * max(map(len, row)) + (2 if any(row) else 0) for row in notes]
    body = sum(map(sum, (name_heights, image_heights, bar_heights, note_heights))) + ROW_GAP * (len(rows) - 1)
    top = MARGIN - 4 if heading or name_heights[0] else MARGIN
    below = (12 + bar_height() if limit is not None else 0) + (
        10 + line_height(SMALL) * len(footing) if footing else 0
    )
    height = top + (line_height(HEAD) * len(heading) + 6 if heading else 0) + body + below + MARGIN - 4

    page = Page(inner + 2 * MARGIN, height)
    if heading:
        top = page.lines(MARGIN, top, heading, HEAD, weight="bold") + 6
    for r, row in enumerate(rows):
        left = MARGIN
        for i, panel in enumerate(row):
            line = top + name_heights[r] - 4 - line_height(NAME) * len(names[r][i])
            page.lines(left, line, names[r][i], NAME)
            high, wide = panel.pixels.shape[:2]
            under = top + name_heights[r] + image_heights[r]
            page.image(left + (widths[i] - wide) // 2, under - high, panel.pixels)
            if panel.limit is not None:
                page.bar(left, under + BAR_GAP, widths[i], panel.limit, colours, over)
            page.lines(left, under + bar_heights[r] + 2, notes[r][i], SMALL, color=FAINT)
            left += widths[i] + GAP
        top += name_heights[r] + image_heights[r] + bar_heights[r] + note_heights[r] + ROW_GAP
    top -= ROW_GAP
    if limit is not None:
        page.bar(MARGIN, top + 12, min(inner, 420), limit, colours, over)
        top += 12 + bar_height()
    if footing:
        page.lines(MARGIN, top + 10, footing, SMALL, color=FAINT)
    return printed(page.figure)
