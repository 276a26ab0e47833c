"""Pictures of relevance. Zero is always the neutral colour, and every picture states its scale.

`DRAW` has a row for each kind of data; `draw` picks the row from the shape where the shape says enough.
matplotlib and pillow are imported when a picture is drawn: `pip install 'relprop[show]'`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInput
from .audio import audio, spectrogram
from .colour import Numbers, colour_scale, colourise, numbers, photograph, to_map
from .features import features
from .heatmap import heatmap, methods_row, video
from .maximal import maximal
from .pairs import pairs
from .picture import html, png_bytes, save, save_page
from .plots import series, table
from .text import coloured, text, text_html, text_picture, text_terminal
from .text_matrix import text_matrix

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "DRAW",
    "audio",
    "colour_scale",
    "coloured",
    "colourise",
    "draw",
    "features",
    "heatmap",
    "html",
    "kind_of",
    "maximal",
    "methods_row",
    "pairs",
    "photograph",
    "png_bytes",
    "save",
    "save_page",
    "series",
    "spectrogram",
    "table",
    "text",
    "text_html",
    "text_matrix",
    "text_picture",
    "text_terminal",
    "to_map",
    "video",
]

DRAW: dict[str, Callable[..., Image.Image]] = {
    "image": heatmap,
    "series": series,
    "video": video,
    "table": table,
    "text": text,
    "audio": audio,
}
"""From a kind of data to the function (relevance, inputs=None, **options) that draws it."""

WHOLE = {"image": 3, "series": 2, "video": 4, "table": 1, "text": 1, "audio": 1}
"""Dimensions of one sample of each kind with its channels; a batch has one more."""


def kind_of(shape: tuple[int, ...]) -> str:
    """The kind of data that a sample of this shape (without batch) is: a key of `DRAW`.

    (T,) is a series; (C, T) with up to 16 channels and eight steps a channel or more is a series; (H, W)
    with both sides at least 8 and neither over four times the other is an image; so is (C, H, W), and (C,
    T, H, W) is a video, with up to 4 channels. Raises `InvalidInput` for all others, where the shape does
    not say enough.
    """
    match shape:
        case (_,):
            return "series"
        case (channels, steps) if channels <= 16 and steps >= 8 * channels:
            return "series"
        case (high, wide) if min(high, wide) >= 8 and max(high, wide) <= 4 * min(high, wide):
            return "image"
        case (channels, _, _) if channels <= 4:
            return "image"
        case (channels, _, _, _) if channels <= 4:
            return "video"
    raise InvalidInput(
        f"cannot tell what relevance of shape {tuple(shape)} a sample belongs to\n"
        f"  do: pass kind=, one of {', '.join(map(repr, DRAW))}"
    )


def draw(
    relevance: Numbers, kind: str | None = None, *, inputs: Any = None, batched: bool = True, **options: Any
) -> Image.Image:
    """A picture of relevance of any kind.

    relevance: (B, …) as `Explanation.relevance` is, or one sample with `batched=False`. kind: a key of
    `DRAW`, default: what `kind_of` says of a sample's shape. inputs: what was explained, of the relevance's
    shape: photographs, signals, frames or feature values. options: those of the function in `DRAW`
    (`title`, `limit`, `colours`, `size`, …).
    Raises `InvalidInput` for an unknown kind, a shape that does not say enough, and as that function does.
    """
    array = numbers(relevance)
    if batched and array.ndim < 2:
        raise InvalidInput(
            f"relevance has shape {array.shape}, and its first dimension is the batch\n"
            "  do: pass batched=False for a single sample"
        )
    sample = array.shape[1:] if batched else array.shape
    kind = kind_of(sample) if kind is None else kind
    if kind not in DRAW:
        raise InvalidInput(f"unknown kind {kind!r}\n  do: use one of {', '.join(map(repr, DRAW))}")
    bare = (
        kind not in ("table", "text", "audio") and len(sample) == WHOLE[kind] - 1
    )  # channels left out: (H, W), (T,)
    one_channel = kind == "audio" and len(sample) == 2 and sample[0] == 1
    if not bare and not one_channel and len(sample) != WHOLE[kind]:
        raise InvalidInput(
            f"relevance of shape {tuple(sample)} a sample is no {kind}, which has {WHOLE[kind]} dimensions\n"
            "  do: pass another kind, or batched=False for a single sample"
        )
    if bare:
        array = array.reshape(*array.shape[: array.ndim - len(sample)], 1, *sample)
        if kind == "series" and inputs is not None:
            signal = numbers(inputs, "signal")
            inputs = signal.reshape(array.shape) if signal.size == array.size else signal
    return DRAW[kind](array, inputs, **options)
