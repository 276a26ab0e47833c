"""The samples of a store as small pictures and coloured words, for the report and the browser."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.errors import InvalidInput
from relprop.show.colour import (
    COLOURS,
    LEVELS,
    Map,
    Pixels,
    colour_scale,
    overlaid,
    palette,
    resized_map,
    resized_photo,
    shares,
)
from relprop.show.picture import show_extra
from relprop.show.text import Coloured, coloured
from relprop.store import Store
from relprop.text import Token

SIDE = 160
"""The longer side of a picture in pixels; larger ones are made smaller, smaller ones stay as they are."""

SMALL = 80
"""The longer side of a map among many: neighbours are averaged, so that it is more than specks."""

STEPS = 127
"""Steps of colour on either side of zero in a picture of a map: 255 colours, which fit a palette."""

BARS = 240
"""The most bars of a series; of longer ones neighbours are summed."""


def map_of(relevance: NDArray[Any]) -> Map:
    """The relevance of one sample as a map (H, W), channels summed, or as (T,) values; float64.

    relevance: (C, H, W) or (H, W); (C, T) where it is flat, at most 16 channels of eight steps each or more; (T,).
    """
    values = np.asarray(relevance, np.float64)
    if values.ndim == 3:
        return np.asarray(values.sum(0))
    if values.ndim == 2 and len(values) <= 16 and values.shape[1] >= 8 * len(values):
        return np.asarray(values.sum(0))
    return values.sum(tuple(range(values.ndim - 2))) if values.ndim > 3 else values


def picture_of(values: Map, limit: float | None = None, side: int = SIDE) -> tuple[str, bytes]:
    """A map (H, W) as a PNG, or values (T,) as an SVG of bars: the media type and the file.

    limit: the relevance at the ends of the colour scale; default: the `colour_scale` of the map as it is shown.
    """
    if values.ndim == 1:
        return "image/svg+xml", bars(values, colour_scale(values) if limit is None else limit).encode()
    shown = resized_map(values, _fitting(values.shape, side))
    scale = colour_scale(shown) if limit is None else limit
    index = np.rint(shares(shown, scale) * STEPS).astype(np.intp) + STEPS
    rows = np.rint(np.linspace(0, 2 * LEVELS, 2 * STEPS + 1)).astype(int)
    with show_extra():
        from PIL import Image

    picture = Image.fromarray(index.astype(np.uint8), "P")
    picture.putpalette(palette(COLOURS)[rows].tobytes())
    return "image/png", _file(picture, "PNG", optimize=True)


def overlay_of(values: Map, photo: Pixels, side: int = SIDE) -> tuple[str, bytes]:
    """A map (H, W) over its photograph (h, w, 3) in grey."""
    shape = _fitting(photo.shape[:2], side)
    shown = resized_map(values, shape)
    pixels = overlaid(shown, resized_photo(photo, shape), colour_scale(shown))
    return photo_file(pixels, side)


def photo_file(photo: Pixels, side: int = SIDE) -> tuple[str, bytes]:
    """A photograph (h, w, 3) as a PNG where it is small, as a JPEG elsewhere."""
    with show_extra():
        from PIL import Image

    picture = Image.fromarray(resized_photo(photo, _fitting(photo.shape[:2], side)))
    if max(picture.size) <= 48:
        return "image/png", _file(picture, "PNG", optimize=True)
    return "image/jpeg", _file(picture, "JPEG", quality=85)


def photo_of(store: Store, row: int) -> Pixels | None:
    """What the model saw, (h, w, 3) uint8, where the store keeps it."""
    if "thumbnail" not in store.columns:
        return None
    return np.asarray(store.lazy("thumbnail")[int(row)], np.uint8)


def words_of(store: Store, row: int) -> Coloured | None:
    """The words of a text with the colours of their relevance; None where the store keeps no tokens."""
    if store.kind != "text" or "tokens" not in store.columns:
        return None
    try:
        told = json.loads(str(store.lazy("tokens")[int(row)]) or "[]")
        listed = [(str(word), int(start), int(end)) for word, start, end in told]
    except (ValueError, TypeError) as error:
        raise InvalidInput(
            f"store: the tokens of sample {row} are damaged ({error})\n  do: restore the store from a copy, or run again"
        ) from error
    text = str(store.lazy("text")[int(row)]) if "text" in store.columns else ""
    if not text:  # the tokens alone, with spaces between them
        words = [word for word, _, _ in listed]
        starts = np.cumsum([0, *(len(word) + 1 for word in words)]).tolist()
        text, listed = " ".join(words), [(w, a, a + len(w)) for w, a in zip(words, starts, strict=False)]
    relevance = np.nan_to_num(np.asarray(store.relevance[int(row)], np.float64)).reshape(-1)
    if not listed:
        return Coloured((), 0.0)
    tokens = [Token(w, a, b, float(r)) for (w, a, b), r in zip(listed, relevance, strict=False)]
    return coloured([tokens], [text])[0]


def bars(values: Map, limit: float) -> str:
    """Values (T,) as bars of an SVG, in the colours of their relevance, zero in the middle."""
    if len(values) > BARS:
        edges = np.linspace(0, len(values), BARS + 1).astype(int)
        values = np.add.reduceat(values, edges[:-1])
        limit = colour_scale(values)
    tall = 24 * (np.clip(values / limit, -1, 1) if limit else np.zeros(len(values)))
    colours = palette(COLOURS)[[0, 2 * LEVELS]]
    paths = []
    for sign, colour in ((-1, colours[0]), (1, colours[1])):
        d = "".join(f"M{i + 0.5:g} 25v{-h:.1f}" for i, h in enumerate(tall) if h * sign > 0.05)
        paths.append(f'<path d="{d}" stroke="#{bytes(colour.tolist()).hex()}"/>')
    wide = len(values)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} 50" width="160" height="80" '
        f'preserveAspectRatio="none"><rect width="{wide}" height="50" fill="#f7f7f7"/>'
        f'<path d="M0 25h{wide}" stroke="#999" stroke-width=".5"/><g fill="none">{"".join(paths)}</g></svg>'
    )


def data_uri(file: tuple[str, bytes]) -> str:
    """A file as an address that carries it."""
    return f"data:{file[0]};base64,{base64.b64encode(file[1]).decode('ascii')}"


def _fitting(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """The shape, made smaller where its longer side is over `side`."""
    scale = min(1.0, side / max(shape[0], shape[1]))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _file(picture: Any, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return buffer.getvalue()
