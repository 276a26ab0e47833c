"""Relevance of text: coloured words as a picture, as HTML and for the terminal. Zero is the neutral colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import InvalidInput, MissingExtra
from ..text import Token
from .colour import COLOURS, LEVELS, Numbers, colour_scale, colourise, numbers, palette
from .layout import (
    BAR_GAP,
    FAINT,
    HEAD,
    INK,
    MARGIN,
    SMALL,
    Page,
    bar_height,
    line_height,
    number,
    printed,
    text_width,
    wrapped,
)
from .picture import show_extra, stack

if TYPE_CHECKING:
    from PIL import Image
    from rich.text import Text

BODY = 11.5  # points of the words
SPECIAL = 8.5  # points of special tokens' names
PAD = 1  # pixels around a word that belong to its colour
GAP_WIDTH = 7
LACKING = "□"
BREAK = "⏎"


class Segment(NamedTuple):
    """A stretch of a text: its characters, its relevance (None between tokens), whether it is a token's name only."""

    text: str
    relevance: float | None = None
    special: bool = False


@dataclass(frozen=True, slots=True)
class Coloured:
    """A text in coloured segments, and the relevance v at the ends of the scale −v…+v."""

    segments: tuple[Segment, ...]
    limit: float
    title: str = ""


def text(
    relevance: Numbers,
    words: Any = None,
    *,
    colours: str = COLOURS,
    limit: float | None = None,
    title: str | Sequence[str] | None = None,
    size: int | None = None,
) -> Image.Image:
    """A picture of words coloured by their relevance; red speaks for, blue against.

    relevance: (T,) for one text, (B, T) for a picture each. words: T words, or B lists of them; default: their
    numbers. Words are set with spaces between them. limit: the relevance at the ends of the scale, default: the
    largest |R| of each text. title: one line above; for several texts also one each. size: width in pixels,
    default 720. Raises `InvalidInput` for wrong shapes and numbers, NaN, an unknown colour map.
    """
    array = numbers(relevance)
    if array.ndim not in (1, 2):
        raise InvalidInput(
            f"text relevance has shape {array.shape}; expected (T,) or (B, T)\n  do: pass one value a token"
        )
    batch = np.atleast_2d(array)
    given: Any = [range(batch.shape[1])] * len(batch) if words is None else words
    given = given.tolist() if hasattr(given, "tolist") else given
    given = given if given and isinstance(given[0], (list, tuple, range)) else [given]
    names = [[word if isinstance(word, str) else f"{word:.4g}" for word in one] for one in given]
    if len(names) != len(batch) or any(len(one) > batch.shape[1] for one in names):
        raise InvalidInput(
            f"words do not fit relevance of shape {array.shape}\n  do: pass one word for each value"
        )
    tokens = [
        [
            Token(word, at, at + len(word), float(value))
            for word, value, at in zip(one, row, _starts(one), strict=False)
        ]
        for one, row in zip(names, batch, strict=True)
    ]
    texts = [" ".join(one) for one in names]
    return text_picture(coloured(tokens, texts, limit=limit, title=title), colours=colours, size=size)


def _starts(words: Sequence[str]) -> list[int]:
    return [sum(len(w) + 1 for w in words[:i]) for i in range(len(words))]


def coloured(
    tokens: Sequence[Sequence[Token]],
    texts: Sequence[str],
    *,
    limit: float | None = None,
    title: str | Sequence[str] | None = None,
) -> list[Coloured]:
    """Texts cut into segments with the relevance of their tokens.

    limit: of all texts; default: of each its own, the largest |R| of a stretch of characters, so that special
    tokens beyond it, which often hold most, take the full colour and the words stay readable.
    """
    if limit is not None and not (np.isfinite(limit) and limit > 0):
        raise InvalidInput(f"limit is {limit!r}, and must be a positive number\n  do: leave it out")
    if title is None or isinstance(title, str):
        title = [title or "", *[""] * (len(texts) - 1)]
    if len(title) != len(texts):
        raise InvalidInput(
            f"{len(title)} titles for {len(texts)} texts\n  do: pass one string, or one title a text"
        )
    found = []
    for row, whole, heading in zip(tokens, texts, title, strict=True):
        cut = segments(row, whole)
        inside = [s.relevance for s in cut if s.relevance is not None and not s.special]
        values = inside if any(inside) else [s.relevance for s in cut if s.relevance is not None]
        scale = colour_scale(np.asarray(values), 1.0) if limit is None else limit
        found.append(Coloured(tuple(cut), scale, heading))
    return found


def segments(tokens: Sequence[Token], text: str) -> list[Segment]:
    """A text cut at the bounds of its tokens. Tokens of the same characters (bytes of one letter) are one segment."""
    found: list[Segment] = []
    cursor = 0
    for token in tokens:
        if token.start == token.end:
            found.append(Segment(token.text, token.relevance, True))
            continue
        if token.end <= cursor:  # the same characters again
            place = next(i for i in range(len(found) - 1, -1, -1) if not found[i].special)
            whole = found[place]
            found[place] = whole._replace(relevance=(whole.relevance or 0.0) + token.relevance)
            continue
        start = max(cursor, token.start)
        if start > cursor:
            found.append(Segment(text[cursor:start]))
        found.append(Segment(text[start : token.end], token.relevance))
        cursor = token.end
    if cursor < len(text):
        found.append(Segment(text[cursor:]))
    return found


# ---------------------------------------------------------------- as a picture


def text_picture(
    texts: Sequence[Coloured], *, colours: str = COLOURS, size: int | None = None
) -> Image.Image:
    """The texts as one picture, one under the other, each with its scale."""
    if size is not None and not (isinstance(size, int) and 200 <= size <= 4096):
        raise InvalidInput(f"size is {size!r}, and must be 200 to 4096 pixels\n  do: leave it out for 720")
    return stack([_page(one, colours, size or 720) for one in texts])


class _Box(NamedTuple):
    """A coloured word, or a part of one, on the page."""

    left: float
    line: int
    width: float
    text: str
    segment: Segment


def _page(one: Coloured, colours: str, width: int) -> Image.Image:
    inner = width - 2 * MARGIN
    boxes, lines = _set(one.segments, inner)
    heading = wrapped(drawable(one.title), inner, HEAD, "bold")
    notes = []
    if one.limit and any(abs(s.relevance or 0) > 1.001 * one.limit for s in one.segments):
        notes.append("larger values take the full colour")
    if any(LACKING in box.text and LACKING not in box.segment.text for box in boxes):
        notes.append(f"{LACKING} stands for a character that this picture's font lacks")
    footing = wrapped("; ".join(notes), inner, SMALL)
    tall = line_height(BODY) + 8
    top = MARGIN - 4 + (line_height(HEAD) * len(heading) + 8 if heading else 6)
    bar_top = top + tall * lines + 8 + BAR_GAP
    page = Page(width, bar_top + bar_height() + line_height(SMALL) * len(footing) + MARGIN - 4)
    page.lines(MARGIN, MARGIN - 4, heading, HEAD, weight="bold")
    for box in boxes:
        left, y = MARGIN + box.left, top + tall * box.line
        shade, ink = INK, INK
        if box.segment.relevance is not None:
            shade, ink = _shades(box.segment.relevance, one.limit, colours)
            page.box(left, y + 2, box.width, tall - 4, shade)
        points = SPECIAL if box.segment.special else BODY
        raised = (line_height(BODY) - line_height(points)) / 2
        inset = PAD if box.segment.relevance is not None else 0
        page.text(left + inset, y + 4 + raised, box.text, points, color=ink)
    page.bar(MARGIN, bar_top, min(inner, 320), one.limit, colours, False)
    page.lines(MARGIN, bar_top + bar_height() + 2, footing, SMALL, color=FAINT)
    return printed(page.figure)


def _set(parts: Sequence[Segment], inner: float) -> tuple[list[_Box], int]:
    """Segments set in lines no wider than `inner`, broken between words; and how many lines."""
    boxes: list[_Box] = []
    word: list[_Box] = []
    left, line = 0.0, 0

    def place() -> None:
        """Put the word that is complete on this line, or on the next one where it does not fit."""
        nonlocal left, line
        wide = sum(box.width for box in word)
        if left and left + wide > inner:
            left, line = 0.0, line + 1
        for box in word:
            if left and left + box.width > inner:
                left, line = 0.0, line + 1
            boxes.append(box._replace(left=left, line=line))
            left += box.width
        word.clear()

    for segment in parts:
        inset = 2 * PAD if segment.relevance is not None else 0
        points = SPECIAL if segment.special else BODY
        if segment.special:
            place()
        for piece in _pieces(segment.text):
            if piece.isspace() and segment.relevance is None:
                place()
                left = left + GAP_WIDTH if left else 0.0
                for _ in range(piece.count("\n")):
                    left, line = 0.0, line + 1
                continue
            shown = (BREAK * piece.count("\n") or "␣") if piece.isspace() else piece
            for part in _fitting(drawable(shown), inner - inset, points):
                word.append(_Box(0.0, 0, text_width(part, points) + inset, part, segment))
            if piece.isspace():
                place()
                for _ in range(piece.count("\n")):
                    left, line = 0.0, line + 1
        if segment.special:
            place()
            left += 2
    place()
    return boxes, line + 1


def _pieces(text: str) -> list[str]:
    """Words and the spaces between them, in order."""
    found: list[str] = []
    for letter in text:
        if found and found[-1][-1].isspace() == letter.isspace():
            found[-1] += letter
        else:
            found.append(letter)
    return found


def _fitting(text: str, width: float, points: float) -> list[str]:
    """A word cut where it is wider than a line."""
    return [text] if text_width(text, points) <= width else wrapped(text, width, points)


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    with show_extra():
        from matplotlib import font_manager, ft2font

    found = font_manager.findfont("DejaVu Sans")
    return frozenset(ft2font.FT2Font(found).get_charmap())


def drawable(text: str) -> str:
    """The text with a square in place of every character that the picture's font lacks."""
    return "".join(letter if ord(letter) in _glyphs() else LACKING for letter in text)


def _shades(relevance: float, limit: float, colours: str) -> tuple[str, str]:
    """The colour of a relevance, and the colour of letters that can be read on it."""
    rgb = colourise(np.array([[relevance]]) if limit else np.zeros((1, 1)), limit, colours)[0, 0]
    light = float(rgb.astype(np.float64) @ np.array([0.299, 0.587, 0.114]))
    return "#" + bytes(rgb.tolist()).hex(), "#ffffff" if light < 128 else INK


# ---------------------------------------------------------------- as HTML


def text_html(texts: Sequence[Coloured], caption: str = "", *, colours: str = COLOURS) -> str:
    """The texts as self-contained HTML: every token coloured, its relevance in the tooltip; text is escaped.

    Nothing is loaded from elsewhere, so that it works in notebooks (`_repr_html_`), reports and files.
    """
    blocks = []
    for one in texts:
        spans = [
            f'<span style="{style}" title="{title}">{escape(shown)}</span>' if style else escape(shown)
            for shown, style, title in painted(one, colours)
        ]
        heading = f'<div style="font-weight:bold">{escape(one.title)}</div>' if one.title else ""
        body = (
            f'<div style="line-height:1.9;white-space:pre-wrap;overflow-wrap:anywhere">{"".join(spans)}</div>'
        )
        blocks.append(heading + body + _html_bar(one.limit, colours))
    below = (
        f'<figcaption style="font:12px/1.5 ui-monospace,Menlo,Consolas,monospace;color:#555;margin-top:12px;white-space:pre-wrap">'
        f"{escape(caption)}</figcaption>"
        if caption
        else ""
    )
    return (
        '<figure style="margin:0.5em 0;padding:8px 12px;background:#fff;color:#222;font:15px sans-serif;'
        f'max-width:52em">{"".join(blocks)}{below}</figure>'
    )


class Painted(NamedTuple):
    """A stretch of a text as a browser shows it: its characters, CSS (empty between tokens), its relevance in words."""

    text: str
    style: str
    title: str


def painted(one: Coloured, colours: str = COLOURS) -> list[Painted]:
    """A text in stretches with their colours, not escaped."""
    found = []
    for segment in one.segments:
        if segment.relevance is None:
            found.append(Painted(segment.text, "", ""))
            continue
        shade, ink = _shades(segment.relevance, one.limit, colours)
        style = f"background:{shade};color:{ink};border-radius:2px;padding:1px 0"
        if segment.special:
            style += ";font-size:75%;padding:1px 3px;margin:0 1px"
        shown = segment.text.replace("\n", f"{BREAK}\n") if not segment.text.strip() else segment.text
        found.append(Painted(shown, style, f"{segment.relevance:+.4g}".replace("-", "−")))
    return found


def _html_bar(limit: float, colours: str) -> str:
    if not limit:
        return '<div style="font:12px sans-serif;color:#555;margin:4px 0 10px">all relevance is zero</div>'
    rows = palette(colours)[np.linspace(0, 2 * LEVELS, 9).astype(int)]
    stops = ",".join("#" + bytes(row.tolist()).hex() for row in rows)
    ends = (f"−{number(limit)} against", "left"), ("0", "center"), (f"+{number(limit)} for", "right")
    words = "".join(f'<span style="text-align:{side}">{w}</span>' for w, side in ends)
    return (
        f'<div style="width:18em;max-width:100%;margin:4px 0 14px"><div style="height:8px;'
        f'background:linear-gradient(to right,{stops})"></div><div style="display:grid;'
        f'grid-template-columns:1fr auto 1fr;font:12px sans-serif;color:#555">{words}</div></div>'
    )


# ---------------------------------------------------------------- for the terminal


def text_terminal(one: Coloured, *, colours: str = COLOURS) -> Text:
    """A text coloured for the terminal (a `rich` text): letters on the colour of their relevance."""
    try:
        from rich.text import Text
    except ImportError as error:
        raise MissingExtra("coloured text needs rich\n  do: pip install 'relprop[cli]'") from error

    found = Text()
    ground, ink = _shades(0.0, 1.0, colours)
    for segment in one.segments:
        if segment.relevance is None:
            found.append(segment.text, style=f"{ink} on {ground}")
            continue
        shade, ink_here = _shades(segment.relevance, one.limit, colours)
        shown = segment.text.replace("\n", f"{BREAK}\n") if not segment.text.strip() else segment.text
        if segment.special:
            found.append(f" {shown} ", style=f"italic {ink_here} on {shade}")
            continue
        found.append(shown, style=f"{ink_here} on {shade}")
    return found
