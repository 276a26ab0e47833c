"""Relevance maps as an analysis reads them: checked, channels summed, pooled to a small grid, of comparable size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.analyse.graph import as_array
from relprop.errors import InvalidInput

SIGNS = ("signed", "positive", "absolute")
"""What of the relevance is used; the sign is taken before channels are summed and cells pooled."""

NORMS = ("l1", "l2", "max", "sum", "none")
"""What each map is divided by: Σ|R|, √ΣR², max|R|, the signed sum (which may be near 0), or nothing."""

BLOCK = 4096
"""So many maps are read and pooled at a time."""

Singles = NDArray[np.float32]


def pooled(
    relevance: Any,
    rows: NDArray[np.int64],
    *,
    side: int | None = 16,
    sign: str = "signed",
    channels: int | None = None,
) -> Singles:
    """The maps of some samples on a grid of at most `side` cells a side, by sums of whole blocks of pixels.

    Args:
        relevance: (N, …), anything that gives an array when it is indexed by rows: (N, H, W), (N, C, H, W), (N, T), (N, F).
        rows: which samples.
        side: cells a side; each is a block of ⌈H / side⌉ pixels. None pools nothing.
        sign: one of `SIGNS`.
        channels: the axis that is summed; by default axis 1 where there are four.

    Returns:
        (n, h, w) float32; maps of one dimension have h = 1.

    Raises:
        InvalidInput: NaN or infinity in a map (the message names its row), or a shape of another kind.
    """
    if sign not in SIGNS:
        raise InvalidInput(f"sign: {sign!r}\n  do: give one of {', '.join(SIGNS)}")
    if side is not None and side < 1:
        raise InvalidInput(f"side: {side} cells\n  do: give 1 or more, or None")
    axis = 1 if channels is None and len(relevance.shape) == 4 else channels
    parts = []
    for start in range(0, len(rows), BLOCK):
        wanted = rows[start : start + BLOCK]
        values = as_array(relevance[wanted])
        if not np.isfinite(values).all():
            bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
            raise InvalidInput(
                f"relevance of sample {int(wanted[bad.argmax()])}: NaN or infinity\n  do: leave the sample out, or explain it again"
            )
        values = (
            np.abs(values) if sign == "absolute" else np.maximum(values, 0) if sign == "positive" else values
        )
        parts.append(_blocks(_plane(values, axis), side))
    return np.concatenate(parts)


def _plane(values: NDArray[Any], channels: int | None) -> NDArray[Any]:
    if channels is not None:
        if not 1 <= channels < values.ndim:
            raise InvalidInput(
                f"channels: axis {channels} of relevance with {values.ndim} axes\n  do: give 1 or more"
            )
        values = values.sum(channels)
    if values.ndim == 2:
        return values[:, None]
    if values.ndim != 3:
        raise InvalidInput(
            f"relevance: {values.ndim - 1} axes a sample\n"
            "  do: give (N, H, W), (N, C, H, W) or (N, T), or name the axis of the channels"
        )
    return values


def _blocks(values: NDArray[Any], side: int | None) -> Singles:
    n, height, width = values.shape
    tall, wide = (1, 1) if side is None else (-(-height // side), -(-width // side))
    if (tall, wide) == (1, 1):
        return values.astype(np.float32)
    padded = np.pad(values, ((0, 0), (0, -height % tall), (0, -width % wide)))
    cells = padded.reshape(n, padded.shape[1] // tall, tall, padded.shape[2] // wide, wide)
    return np.asarray(cells.sum((2, 4)), dtype=np.float32)


def normalised(maps: Singles, norm: str = "l1") -> Singles:
    """Each map divided by its size; maps of zeros stay zeros."""
    if norm not in NORMS:
        raise InvalidInput(f"norm: {norm!r}\n  do: give one of {', '.join(NORMS)}")
    if norm == "none":
        return maps
    flat = maps.reshape(len(maps), -1)
    size = {
        "l1": lambda: np.abs(flat).sum(1),
        "l2": lambda: np.sqrt((flat**2).sum(1)),
        "max": lambda: np.abs(flat).max(1),
        "sum": lambda: flat.sum(1),
    }[norm]()
    size = size[:, None, None]
    return np.asarray(np.divide(maps, size, out=np.zeros_like(maps), where=size != 0))


def shares(maps: Singles) -> Singles:
    """The share of a map's positive relevance in each cell: not negative, each map sums to 1 (or is 0)."""
    return normalised(np.maximum(maps, 0), "l1")
