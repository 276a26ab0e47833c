"""The samples that maximise a module's units, in rows, with a frame where each unit was used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import InvalidInput
from .colour import Pixels, photograph, resized_photo
from .layout import Panel, composed, number

if TYPE_CHECKING:
    from PIL import Image

    from ..inside.maximise import Maximal

SIDE = 128  # pixels of a photograph's longer side
FRAME = np.array([255, 200, 0], dtype=np.uint8)


def maximal(found: Maximal, *, title: str | None = None, size: int | None = None) -> Image.Image:
    """The best samples of each unit, a row a unit, the best first, each with its number and its measure.

    A frame marks the cell of the unit's map (rows, columns) in which its largest relevance or activation lies, stretched
    over the photograph; it does not show the receptive field, which is larger.

    found: of `relprop.maximise` with images (C, H, W) of 1 or 3 channels. size: the longer side of a photograph in
    pixels, default 128. Raises `InvalidInput` where the samples were not kept, or are no images.
    """
    if not found.samples:
        raise InvalidInput("maximal: the samples were not kept\n  do: relprop.maximise(…, keep=True)")
    rows = []
    for u, unit in enumerate(found.units):
        row: list[Panel] = []
        for index, value, position, sizes in zip(
            found.index[u].tolist(),
            found.value[u].tolist(),
            found.position[u].tolist(),
            found.size[u].tolist(),
            strict=True,
        ):
            sample = found.samples[index]
            if not isinstance(sample, torch.Tensor) or sample.dim() != 3:
                raise InvalidInput(
                    "maximal: the samples are no images (C, H, W)\n  do: read found.index and found.samples"
                )
            photo = photograph(sample)
            scale = (SIDE if size is None else size) / max(photo.shape[:2])
            shape = max(1, round(photo.shape[0] * scale)), max(1, round(photo.shape[1] * scale))
            pixels = resized_photo(photo, shape).copy()
            if len(position) == 2:
                _mark(pixels, position, sizes)
            name = f"{found.unit.removesuffix('s')} {unit}: " if not row else ""
            row.append(Panel(pixels, f"{name}#{index}  {number(value)}"))
        rows.append(row)
    note = f"{found.path}, {found.how} {found.by} over {found.seen} samples."
    if found.position.shape[-1] == 2:
        note += f" A frame marks the place of the largest {found.by}."
    return composed(rows, title=title, note=note)


def _mark(pixels: Pixels, position: list[int], sizes: list[int]) -> None:
    """A frame of two pixels around one cell of a grid over the picture."""
    cell = [side / count for side, count in zip(pixels.shape[:2], sizes, strict=True)]
    (top, bottom), (left, right) = (
        (max(0, int(at * c) - 1), min(side - 1, int((at + 1) * c) + 1))
        for at, c, side in zip(position, cell, pixels.shape[:2], strict=True)
    )
    for depth in (0, 1):
        rows, columns = slice(top + depth, bottom - depth + 1), slice(left + depth, right - depth + 1)
        pixels[top + depth, columns] = pixels[bottom - depth, columns] = FRAME
        pixels[rows, left + depth] = pixels[rows, right - depth] = FRAME
