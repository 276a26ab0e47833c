"""Heatmaps of images and videos: alone, over the photograph, in grids, beside other methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import InvalidInput
from .colour import (
    COLOURS,
    NEAREST_FROM,
    QUANTILE,
    Map,
    Numbers,
    Pixels,
    colour_scale,
    colourise,
    numbers,
    overlaid,
    photograph,
    resized_map,
    resized_photo,
    to_map,
)
from .layout import Panel, composed, number
from .picture import stack

if TYPE_CHECKING:
    from PIL import Image

ALONE, IN_GRID, IN_STRIP = 380, 240, 150  # pixels of a panel's longer side
QUANTILE_WORDS = f"{100 * QUANTILE:g} % quantile of |R|"
BEYOND = "larger values take the full colour"


def heatmap(
    relevance: Numbers,
    image: object = None,
    *,
    overlay: bool = True,
    colours: str = COLOURS,
    limit: float | None = None,
    title: str | Sequence[str] | None = None,
    size: int | None = None,
) -> Image.Image:
    """A finished picture of image relevance, with a colour bar that states its scale in numbers.

    relevance: (H, W) or (C, H, W) for one image; (B, C, H, W) for a grid of pictures. Channels are summed.
    image: the photograph, or B of them (a batch or a list), in any form that `photograph` knows: uint8,
    floats in
      0…1, PIL, or normalised floats, which are rescaled by their own minimum and maximum.
    overlay: with an image, True (default) lays the map over the photograph, shown in grey: opacity grows
      with |R| / limit, so that zero relevance leaves the photograph untouched. False: photograph and map,
      side by side.
    colours: a diverging map of matplotlib, or the default "red_blue" (red for, blue against; see
    `colourise`).
    limit: the relevance v at the ends of the scale −v…+v; default: each map's own `colour_scale`. Given, it
    holds for
      every map of the batch.
    title: one line above; for a batch also B of them, one a picture. Long titles are wrapped.
    size: the longer side of a panel in pixels, default 380, in grids 240.

    Zero is always the neutral colour. For display the map is stretched over the panel (so pass the image as
    the model saw it, cropped alike): nearest neighbour where enlarged four times or more, else bilinear.
    Raises `InvalidInput` for wrong shapes, NaN or infinity, an unknown colour map, a limit or size that is
    not positive; `MissingExtra` without matplotlib and pillow.
    """
    batched, maps = _maps(relevance)
    photos = _photos(image, len(maps), batched)
    side = _side(size, IN_GRID if len(maps) > 1 else ALONE)
    heading, names = _titles(title, len(maps))
    limits = [colour_scale(m) if limit is None else _positive(limit, "limit") for m in maps]
    shared = limit is not None and len(maps) > 1
    notes = [_scale_note(m, limit) if len(maps) == 1 else "" for m in maps]
    bars = [None if shared else v for v in limits]
    cells: list[list[Panel]] = []
    for values, photo, v, bar, name, note in zip(maps, photos, limits, bars, names, notes, strict=True):
        shape = _panel_shape(values, photo, side)
        cell = [Panel(_painted(values, photo if overlay else None, v, colours, shape), name, bar, note)]
        if photo is not None and not overlay:
            cell = [Panel(resized_photo(photo, shape), name), Panel(cell[0].pixels, "", bar, note)]
        cells.append(cell)
    across = _columns(len(cells), len(cells[0]))
    rows = [[panel for cell in cells[i : i + across] for panel in cell] for i in range(0, len(cells), across)]
    footing = ""
    if len(maps) > 1:
        footing = (
            f"Each map has its own scale: ± the {QUANTILE_WORDS}; {BEYOND}."
            if limit is None
            else f"One scale for all maps, ±{number(limit)} as given; {BEYOND}."
        )
    return composed(
        rows,
        title=heading,
        note=footing,
        limit=limits[0] if shared else None,
        colours=colours,
        over=overlay and image is not None,
    )


def methods_row(
    image: object,
    maps: Mapping[str, Numbers],
    *,
    overlay: bool = False,
    colours: str = COLOURS,
    title: str | None = None,
    size: int | None = None,
) -> Image.Image:
    """Methods compared: the photograph, then each method's map under its name; a row for each image.

    image: one photograph, or B of them (see `heatmap`).
    maps: from a method's name to its relevance: (H, W) or (C, H, W) for one image, (B, C, H, W) for B.
    overlay: False (default) shows maps alone, True over the grey photograph.
    size: the longer side of a panel in pixels, default 240.

    Methods have different units, so each map is normalised by its own limit (`colour_scale`), stated in its
    colour bar and said below: colours show where relevance lies, and are not to be compared in size between
    maps.
    Raises as `heatmap` does, and `InvalidInput` where there is no map or the numbers of images differ.
    """
    if not maps:
        raise InvalidInput(
            'methods_row got no relevance maps\n  do: pass {"name": relevance, ...}, a row needs at least one'
        )
    read = {name: _maps(relevance, f"relevance of {name!r}") for name, relevance in maps.items()}
    samples = {name: values for name, (_, values) in read.items()}
    counts = {name: len(values) for name, values in samples.items()}
    if len(set(counts.values())) > 1:
        raise InvalidInput(
            f"methods_row got maps for different numbers of images: {counts}\n"
            "  do: give every method the same batch (B, C, H, W), or one image each (C, H, W)"
        )
    photos = _photos(image, next(iter(counts.values())), any(batched for batched, _ in read.values()))
    side = _side(size, IN_GRID)
    rows: list[list[Panel]] = []
    for b, photo in enumerate(photos):
        if photo is None:
            raise InvalidInput("methods_row got no image\n  do: pass the photograph, or use heatmap()")
        name_of = dict.fromkeys(samples, "") if b else {name: name for name in samples}
        first = next(iter(samples.values()))[b]
        shape = _panel_shape(first, photo, side)
        row = [Panel(resized_photo(photo, shape), "" if b else "input")]
        for name, values in samples.items():
            v = colour_scale(values[b])
            under = photo if overlay else None
            row.append(Panel(_painted(values[b], under, v, colours, shape), name_of[name], v))
        rows.append(row)
    footing = f"Each map is normalised by its own limit, the {QUANTILE_WORDS}, stated below it; {BEYOND}."
    return composed(rows, title=title, note=footing, colours=colours, over=overlay)


def video(
    relevance: Numbers,
    frames: object = None,
    *,
    overlay: bool = True,
    colours: str = COLOURS,
    limit: float | None = None,
    title: str | Sequence[str] | None = None,
    size: int | None = None,
    most: int = 6,
) -> Image.Image:
    """A strip of frames with their maps, all on one scale.

    relevance: (C, T, H, W), or (B, C, T, H, W) for a strip each; channels are summed. frames: the video, of
    the same layout with 1 or 3 channels; then the frames stand above their maps, which are laid over them
    if `overlay` is set. Of more than `most` frames (default 6), as many are shown, evenly spaced, first and
    last among them.
    size: the longer side of a frame in pixels, default 150. The scale is that of the whole video, not only
    of the frames shown. Raises as `heatmap` does.
    """
    array = numbers(relevance)
    if array.ndim not in (4, 5):
        raise InvalidInput(
            f"video relevance has shape {array.shape}; expected (C, T, H, W), or (B, C, T, H, W)\n"
            "  do: for images use heatmap()"
        )
    if most < 1:
        raise InvalidInput(f"most is {most}, and must be at least 1\n  do: leave it out")
    clips = array if array.ndim == 5 else array[None]
    shots: list[Map | None] = [None] * len(clips)
    if frames is not None:
        film = numbers(frames, "frames")
        given = film.shape
        film = film if array.ndim == 5 else film[None]
        same = film.ndim == 5 and len(film) == len(clips) and film.shape[2] == clips.shape[2]
        if not same or film.shape[1] not in (1, 3):
            raise InvalidInput(
                f"frames have shape {given}, relevance {array.shape}; expected "
                "(3, T, H, W) with as many frames\n  do: pass the video in the layout the model took"
            )
        whole = getattr(frames, "dtype", None) in (torch.uint8, np.dtype(np.uint8))
        shots = [clip if not whole else clip / 255 for clip in film]
    heading, names = _titles(title, len(clips))
    strips = [
        _strip(clip.sum(axis=0), shot, overlay, colours, limit, name or heading, _side(size, IN_STRIP), most)
        for clip, shot, name in zip(clips, shots, names, strict=True)
    ]
    return stack(strips)


def _strip(
    maps: Map,
    film: Map | None,
    overlay: bool,
    colours: str,
    limit: float | None,
    title: str | None,
    side: int,
    most: int,
) -> Image.Image:
    """The picture of one video: maps (T, H, W) and its frames (C, T, H, W)."""
    picked = np.unique(np.linspace(0, len(maps) - 1, min(most, len(maps))).round().astype(int))
    v = colour_scale(maps) if limit is None else _positive(limit, "limit")
    photos: list[Pixels | None] = [None] * len(picked)
    if film is not None:
        low, high = float(film.min()), float(film.max())  # one scale for the whole video, or it would flicker
        scaled = (film - low) / ((high - low) or 1.0) if low < 0 or high > 1 else film
        photos = [photograph(np.moveaxis(scaled[:, t], 0, -1)) for t in picked]
    upper: list[Panel] = []
    lower: list[Panel] = []
    for t, photo in zip(picked, photos, strict=True):
        shape = _panel_shape(maps[t], photo, side)
        name = f"frame {t + 1} of {len(maps)}"
        if photo is not None:
            upper.append(Panel(resized_photo(photo, shape), name))
        pixels = _painted(maps[t], photo if overlay else None, v, colours, shape)
        lower.append(Panel(pixels, "" if photo is not None else name))
    rows = [upper, lower] if upper else [lower]
    over = overlay and film is not None
    return composed(rows, title=title, note=_scale_note(maps, limit), limit=v, colours=colours, over=over)


def _maps(relevance: Numbers, what: str = "relevance") -> tuple[bool, list[Map]]:
    """Whether there is a batch dimension, and the map of each image."""
    array = numbers(relevance, what)
    return array.ndim == 4, [to_map(sample) for sample in (array if array.ndim == 4 else [array])]


def _painted(values: Map, photo: Pixels | None, limit: float, colours: str, shape: tuple[int, int]) -> Pixels:
    """The pixels of a map at its display size, over the photograph if there is one."""
    shown = resized_map(values, shape)
    if photo is None:
        return colourise(shown, limit, colours)
    return overlaid(shown, resized_photo(photo, shape), limit, colours)


def _panel_shape(values: Map, photo: Pixels | None, side: int) -> tuple[int, int]:
    """Display size (H, W): the longer side is `side`, or a little less so that magnified values are equal
    squares."""
    high, wide = photo.shape[:2] if photo is not None else values.shape
    scale = side / max(high, wide)
    if scale >= NEAREST_FROM:
        scale = math.floor(scale)
    return max(1, round(high * scale)), max(1, round(wide * scale))


def _columns(count: int, width: int) -> int:
    """How many of `count` pictures, each of `width` panels, go into one row of a grid."""
    most = max(1, 4 // width)
    return count if count <= most else min(most, math.ceil(count / math.ceil(count / most)))


def _scale_note(values: Map, limit: float | None) -> str:
    """What the colour limit is, in words."""
    largest = float(np.abs(values).max())
    if largest == 0:
        return ""  # the colour bar says so
    if limit is not None:
        return f"±{number(limit)} was given as the limit; largest |R| {number(largest)}."
    v = colour_scale(values)
    if v == largest:
        return f"±{number(v)} is the largest |R|."
    return f"±{number(v)} is the {QUANTILE_WORDS}; largest {number(largest)}."


def _titles(title: str | Sequence[str] | None, count: int) -> tuple[str | None, list[str]]:
    """The heading of the page and the name of each picture."""
    if title is None or isinstance(title, str):
        return title, [""] * count
    if len(title) != count:
        raise InvalidInput(
            f"{len(title)} titles for {count} pictures\n  do: pass one string, or one title a picture"
        )
    return None, [str(name) for name in title]


def _photos(image: object, count: int, batched: bool) -> list[Pixels | None]:
    """The photograph of each of `count` maps."""
    if image is None:
        return [None] * count
    images: list[object] = [image]
    if batched and (isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4):
        images = list(image)  # type: ignore[call-overload]
    if len(images) != count:
        raise InvalidInput(
            f"{len(images)} images for {count} relevance maps\n"
            "  do: pass as many photographs as maps, in order"
        )
    return [photograph(one) for one in images]


def _positive(value: float, what: str) -> float:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise InvalidInput(f"{what} is {value!r}, and must be a positive number\n  do: leave it out")
    return float(value)


def _side(size: int | None, default: int) -> int:
    if size is None:
        return default
    if not isinstance(size, int) or not 16 <= size <= 4096:
        raise InvalidInput(
            f"size is {size!r}, and must be a whole number of pixels from 16 to 4096\n"
            f"  do: leave it out for {default}"
        )
    return size
