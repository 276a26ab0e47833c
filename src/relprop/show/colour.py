"""From relevance to colours: the map, its scale, its colours, and the photograph under it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InvalidInput
from .picture import show_extra

if TYPE_CHECKING:
    pass

Numbers: TypeAlias = "torch.Tensor | NDArray[Any]"
Pixels: TypeAlias = NDArray[np.uint8]
Map: TypeAlias = NDArray[np.float64]

QUANTILE = 0.995
"""Share of |R| that the colour scale covers by default; the rest is drawn in the full colours."""

COLOURS = "red_blue"
"""Default colour map: red for, blue against, near-white at zero: matplotlib's "RdBu_r" without its dark
ends."""

DIVERGING = (
    "RdBu", "PuOr", "PRGn", "BrBG", "PiYG", "RdGy", "RdYlBu", "RdYlGn", "Spectral", "coolwarm", "bwr",
    "seismic", "berlin", "managua", "vanimo",
)  # fmt: skip
"""matplotlib's diverging colour maps; each exists reversed too, with the ending `_r`."""

LEVELS = 128  # steps of colour on either side of zero
NEAREST_FROM = 4.0  # enlarged this much or more, each value is drawn as a square


def numbers(values: object, what: str = "relevance") -> Map:
    """A tensor or array as float64 on the CPU; `InvalidInput` for anything else, empty, NaN or infinite."""
    if isinstance(values, torch.Tensor):
        if values.is_complex():
            raise InvalidInput(f"{what} is complex ({values.dtype})\n  do: pass real numbers")
        values = values.detach().to("cpu", torch.float64).numpy()
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"of dtype {array.dtype}")
        array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"{what} is not numeric: {type(values).__name__} ({error})\n  do: pass a tensor or an array"
        ) from error
    if array.size == 0:
        raise InvalidInput(f"{what} is empty, shape {array.shape}\n  do: pass at least one value")
    if not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise InvalidInput(
            f"{what} of shape {array.shape} holds NaN or infinity ({bad} of {array.size} values)\n"
            "  do: find the operation that made them; such a map would be drawn wrong"
        )
    return array


def colour_scale(relevance: Numbers, quantile: float = QUANTILE) -> float:
    """The symmetric limit v of a colour scale from −v to +v, zero in its middle; same unit as the relevance.

    relevance: any shape; quantile: in (0, 1], default 0.995. v is that quantile of |R|, so that single
    outliers do not wash out the picture: on a 224×224 map 250 pixels lie beyond and take the full colour.
    Where so much is zero that the quantile is zero, v is the largest |R|; of a map that is zero everywhere
    v is 0.0, which `colourise` draws as neutral.
    Raises `InvalidInput` for NaN, infinity, an empty map or a quantile out of range.
    """
    if not 0 < quantile <= 1:
        raise InvalidInput(
            f"quantile is {quantile}, and must lie in (0, 1]\n  do: leave it at {QUANTILE}, or 1 for max |R|"
        )
    size = np.abs(numbers(relevance))
    return float(np.quantile(size, quantile)) or float(size.max())


def to_map(relevance: Numbers) -> Map:
    """Relevance of one image, (C, H, W) or (H, W), as a map (H, W): the sum over channels; float64.

    A sum, so that the map holds as much relevance as the input did. Channels come first; their place is not
    guessed: a shape that looks like (H, W, C) raises `InvalidInput`, and so does any other number of
    dimensions.
    """
    array = numbers(relevance)
    if array.ndim == 3 and array.shape[-1] in (1, 3, 4) and min(array.shape[:2]) > 4:
        raise InvalidInput(
            f"image relevance has shape {array.shape}, which looks like (H, W, C)\n"
            "  do: put channels first: relevance.permute(2, 0, 1), or .sum(-1) for a map"
        )
    if array.ndim not in (2, 3):
        raise InvalidInput(
            f"image relevance has shape {array.shape}; expected (C, H, W) or (H, W)\n"
            "  do: pick one sample, or use heatmap() for a batch (B, C, H, W)"
        )
    return array.sum(axis=0) if array.ndim == 3 else array


@lru_cache(maxsize=64)
def palette(colours: str = COLOURS) -> Pixels:
    """The colours from −v to +v, (257, 3) uint8: an odd number, so that row 128 is zero's colour exactly."""
    with show_extra():
        from matplotlib import colormaps

    name, reach = ("RdBu_r", 0.8) if colours == COLOURS else (colours, 1.0)
    if not isinstance(name, str) or name.removesuffix("_r") not in DIVERGING or name not in colormaps:
        raise InvalidInput(
            f"unknown diverging colour map {colours!r}\n"
            f"  do: use {COLOURS!r} (default), 'RdBu_r', 'PuOr_r', 'coolwarm', 'bwr', 'seismic', or another "
            "diverging map of matplotlib: zero must be the neutral middle"
        )
    steps = np.arange(-LEVELS, LEVELS + 1) / LEVELS
    fine = colormaps[name].resampled(20 * LEVELS + 1)  # odd: its middle entry is the map's middle
    rgb = np.array(fine(np.rint(10 * LEVELS * (1 + reach * steps)).astype(int), bytes=True), dtype=np.uint8)[
        :, :3
    ]
    rgb.flags.writeable = False
    return rgb


def shares(relevance: Map, limit: float) -> Map:
    """R / limit cut to [−1, 1]; a map of zeros stays zero even when the limit is 0."""
    if not (limit >= 0 and np.isfinite(limit)) or (limit == 0 and relevance.any()):
        raise InvalidInput(
            f"colour limit is {limit}, and must be a positive number\n"
            "  do: leave out limit, or pass colour_scale(relevance)"
        )
    if limit == 0:
        return np.zeros_like(relevance)
    return np.asarray(np.clip(relevance, -limit, limit) / limit)


def colourise(map: Numbers, limit: float, colours: str = COLOURS) -> Pixels:
    """Colours of a map: (H, W) relevance → (H, W, 3) uint8, from −limit to +limit; beyond it the full colour.

    Zero is the neutral colour to the bit, and +R and −R are equally far from it. `limit` has the unit of
    the map (`colour_scale` gives one). `colours` is any diverging map of matplotlib, or the default
    "red_blue": red speaks for, blue against, as in the literature. It is ColorBrewer's RdBu (matplotlib's
    "RdBu_r") from #2166ac to #b2182b. Red and blue stay apart in every common colour-vision deficiency (red
    and green do not); lightness falls evenly and alike on both sides, so the size of relevance survives
    even in grey; the middle is a very light grey (#f7f7f7), which shows the edge of the map on a white
    page. The darkest tenth at either end is left out: dark red and dark blue look alike, and black on a
    dark photograph. "bwr" and "seismic" lack the even lightness.
    Raises `InvalidInput` for an unknown or not diverging colour map, a limit that is not positive (0 is
    allowed for a map of zeros), NaN, or a map that is not 2-D.
    """
    values = numbers(map, "map")
    if values.ndim != 2:
        raise InvalidInput(
            f"map has shape {values.shape}; expected (H, W)\n  do: use to_map(relevance) first"
        )
    steps = np.rint(shares(values, limit) * LEVELS).astype(np.intp) + LEVELS
    return np.asarray(palette(colours)[steps])


def overlaid(map: Map, photo: Pixels, limit: float, colours: str = COLOURS) -> Pixels:
    """A map (H, W) over a photograph (H, W, 3) shown in grey; opacity grows with |R| / limit from 0 to 0.9.

    Where relevance is zero the grey photograph shows untouched. The tint runs from the half-way colour to
    the full one, as pale colours would lie on the photograph like fog; colour bars of overlays are painted
    by this function too, on plain grey.
    """
    share = shares(map, limit)
    alpha = (0.9 * np.abs(share) ** 0.6)[..., None]
    tint = colourise(np.sign(share) * (0.5 + 0.5 * np.abs(share)), 1.0, colours)
    return np.rint((1 - alpha) * grey(photo) + alpha * tint).astype(np.uint8)


def grey(photo: Pixels) -> Pixels:
    """A photograph (H, W, 3) in grey (luma of ITU-R BT.601), still with three channels."""
    luma = np.rint(photo.astype(np.float64) @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    return np.repeat(luma[..., None], 3, axis=-1)


def resized_map(map: Map, shape: tuple[int, int]) -> Map:
    """A map brought to a display size (H, W): values, not colours, are resized.

    Enlarged four times or more by nearest neighbour, so that each value is seen as a square; otherwise
    bilinearly, and averaging where it shrinks. Only for the eye: scales and sums come from the map as it
    was.
    """
    if map.shape == shape:
        return map
    if min(new / old for new, old in zip(shape, map.shape, strict=True)) >= NEAREST_FROM:
        rows, columns = (np.arange(new) * old // new for new, old in zip(shape, map.shape, strict=True))
        return np.asarray(map[np.ix_(rows, columns)])
    grid = torch.from_numpy(map)[None, None]
    smooth = torch.nn.functional.interpolate(grid, size=shape, mode="bilinear", antialias=True)
    return np.asarray(smooth[0, 0].numpy())


def photograph(image: object) -> Pixels:
    """An image in any usual form as (H, W, 3) uint8.

    Accepted: a PIL image; uint8 or floats of shape (3, H, W), (1, H, W), (H, W, 3), (H, W, 1) or (H, W). A
    fourth (alpha) channel is dropped. Floats within 0…1 are taken as they are; others (normalised for a
    network) are rescaled so that this image's minimum is black and its maximum white.
    Raises `InvalidInput` for other shapes and types, NaN and infinity.
    """
    if hasattr(image, "convert") and hasattr(image, "getbands"):  # PIL, without importing it
        return np.array(image.convert("RGB"), dtype=np.uint8)
    whole = getattr(image, "dtype", None) in (torch.uint8, np.dtype(np.uint8))
    array = numbers(image, "image")
    given = array.shape
    if array.ndim == 2:
        array = array[..., None]
    first, last = array.shape[0] in (1, 3, 4), array.shape[-1] in (1, 3, 4)
    if array.ndim == 3 and first and (not last or isinstance(image, torch.Tensor)):
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise InvalidInput(
            f"image has shape {given}; expected (3, H, W), (H, W, 3) or (H, W)\n"
            "  do: pass the photograph that the relevance belongs to, one image for one map"
        )
    array = array[..., :3] if array.shape[-1] > 1 else np.repeat(array, 3, axis=-1)
    low, high = float(array.min()), float(array.max())
    if whole:
        return array.astype(np.uint8)
    if low < 0 or high > 1:
        array = (array - low) / ((high - low) or 1.0)
    return np.rint(array * 255).astype(np.uint8)


def resized_photo(photo: Pixels, shape: tuple[int, int]) -> Pixels:
    """A photograph (H, W, 3) brought to a display size (H, W): squares if enlarged four times, otherwise
    Lanczos."""
    with show_extra():
        from PIL import Image

    if photo.shape[:2] == shape:
        return photo
    large = min(new / old for new, old in zip(shape, photo.shape, strict=False)) >= NEAREST_FROM
    how = Image.Resampling.NEAREST if large else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(photo).resize((shape[1], shape[0]), how), dtype=np.uint8)
