"""Regions of an input: pixels, patches, superpixels, words; their relevance and their order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.errors import InvalidInput, MissingExtra
from relprop.evaluate.arrays import given, order, pool_channels, rank_of

ORDERS = ("morf", "lerf", "random")
"""Most relevant first, least relevant first, and by chance."""

PLACES = ("pixels", "tokens", "features")
"""Names under which every place is a region of its own."""


SUPERPIXELS = 49
"""How many superpixels "superpixels" asks for."""


def superpixels(images: Tensor, count: int = SUPERPIXELS, compactness: float = 10.0) -> Tensor:
    """The superpixel of each pixel by SLIC (Achanta et al. 2012), (B, C, H, W) -> whole numbers (B, H, W).

    Each image by itself, its values spread to 0…1, so that batches do not matter. About `count` of them an image; the larger
    `compactness`, the squarer. Needs scikit-image.

    Raises:
        InvalidInput: the inputs are no images, or `count` is no number from 2 to the number of pixels.
        MissingExtra: scikit-image is not installed.
    """
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise MissingExtra(
            "superpixels are found by scikit-image\n  do: pip install 'relprop[evaluate]'"
        ) from error
    if images.dim() != 4 or not images.is_floating_point():
        raise InvalidInput(
            f"regions: superpixels of inputs of shape {tuple(images.shape)}\n  do: they are for images (B, C, H, W); give a tensor of numbers for others"
        )
    if not 2 <= count <= images[0, 0].numel():
        raise InvalidInput(f"regions: {count} superpixels\n  do: give a number from 2 on")
    found = []
    for image in images.detach().cpu().double():
        low, high = image.min(), image.max()
        spread = ((image - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy()
        labels = slic(spread, count, compactness / 100, start_label=0, channel_axis=2, convert2lab=False)
        found.append(torch.from_numpy(labels).long())
    return torch.stack(found).to(images.device)


@dataclass(frozen=True, slots=True)
class Regions:
    """Which region each place of a sample belongs to.

    Attributes:
        labels: the number of each place's region, −1 where it is never replaced; whole numbers, (1 or B, *places).
        count: how many regions there are, of the sample with most.
        channels: the dimension of a batch of inputs that is no place and is replaced as a whole; None if there is none.
        mean: a region's relevance is the mean over its places, not the sum.
    """

    labels: Tensor
    count: int
    channels: int | None
    mean: bool = False

    def scores(self, relevance: Any, pool: str = "sum") -> Tensor:
        """The relevance of each region, float64 (B, N); 0 for a region that a sample lacks."""
        values = given(relevance)
        places = self.labels.dim()
        if values.dim() == places + 1 and self.channels is not None:
            values = pool_channels(values, pool, self.channels)
        if values.dim() != places or values.shape[1:] != self.labels.shape[1:]:
            raise InvalidInput(
                f"relevance: shape {tuple(torch.as_tensor(relevance).shape)} for places {tuple(self.labels.shape[1:])}\n"
                "  do: give relevance of the input's shape"
            )
        labels = self.labels.to(values.device).flatten(1).expand(len(values), -1)
        kept = labels >= 0
        index = labels.clamp(min=0)
        found = torch.zeros(len(values), self.count, dtype=values.dtype, device=values.device)
        found.scatter_add_(1, index, values.flatten(1) * kept)
        if self.mean:
            sizes = torch.zeros_like(found).scatter_add_(1, index, kept.to(values.dtype))
            found = found / sizes.clamp(min=1)
        return found

    def present(self, batch: int) -> Tensor:
        """Which regions each sample has, (B, N)."""
        labels = self.labels.flatten(1)
        found = torch.zeros(len(labels), self.count + 1, dtype=torch.bool, device=labels.device)
        found.scatter_(1, torch.where(labels < 0, self.count, labels), True)
        return found[:, :-1].expand(batch, -1)

    def spread(self, values: Tensor, outside: int) -> Tensor:
        """The value of each place's region, and `outside` where a place has none: (B, N) -> (B, *places)."""
        labels = self.labels.flatten(1).expand(len(values), -1)
        found = values.gather(1, labels.clamp(min=0))
        return torch.where(labels < 0, outside, found).reshape(len(values), *self.labels.shape[1:])


def regions_of(
    inputs: Tensor, regions: Any = "pixels", channels: int | str | None = "auto", partial: str = "drop"
) -> Regions:
    """The regions of inputs.

    Args:
        regions: "pixels" ("tokens", "features": the same): every place; a number: square patches of that side, or for series
            segments of that length, without overlap, from the first corner on; several numbers: a side for each dimension of
            places; "superpixels": about 49 of each image, by SLIC (see `superpixels`); a tensor of whole numbers (*places) or (B, *places): words, anything; −1 is never replaced.
        channels: the dimension of inputs that is no place: 1 where a sample has three dimensions or more, else none.
        partial: what becomes of patches that the sides cut: "drop" (never replaced), "pad" (a region like the others) or
            "mean" (as "pad", and every region's relevance is divided by its size).
    """
    if channels == "auto":
        channels = 1 if inputs.dim() >= 4 else None
    if isinstance(channels, str) or (channels is not None and not 1 <= channels < inputs.dim()):
        raise InvalidInput(
            f"channels: {channels!r}\n  do: give a dimension of the inputs from 1 to {inputs.dim() - 1}, or None"
        )
    if partial not in ("drop", "pad", "mean"):
        raise InvalidInput(f"partial: {partial!r} is unknown\n  do: 'drop', 'pad' or 'mean'")
    places = tuple(size for dim, size in enumerate(inputs.shape) if dim not in (0, channels))
    device = inputs.device
    if isinstance(regions, str):
        if regions == "superpixels":
            return _labelled(superpixels(inputs), inputs, places, channels, partial == "mean")
        if regions not in PLACES:
            raise InvalidInput(
                f"regions: {regions!r} is unknown\n  do: 'pixels', 'superpixels', the side of patches, or a tensor of numbers"
            )
        total = math.prod(places)
        return Regions(torch.arange(total, device=device).reshape(1, *places), total, channels)
    if isinstance(regions, Tensor) or hasattr(regions, "__array__"):
        return _labelled(torch.as_tensor(regions).to(device), inputs, places, channels, partial == "mean")
    sides = (regions,) * len(places) if isinstance(regions, int) else tuple(regions)
    if len(sides) != len(places) or not all(
        isinstance(side, int) and 1 <= side <= size for side, size in zip(sides, places, strict=True)
    ):
        raise InvalidInput(
            f"regions: patches of {regions!r} on places {places}\n  do: give a side from 1 to {min(places)}, or one a dimension"
        )
    return _patches(places, sides, partial, channels, device)


def _patches(
    places: Sequence[int], sides: Sequence[int], partial: str, channels: int | None, device: torch.device
) -> Regions:
    labels = torch.zeros(tuple(places), dtype=torch.long, device=device)
    outside = torch.zeros(tuple(places), dtype=torch.bool, device=device)
    count = 1
    for dim, (size, side) in enumerate(zip(places, sides, strict=True)):
        number = size // side if partial == "drop" else -(-size // side)
        along = (torch.arange(size, device=device) // side).reshape(
            [-1 if d == dim else 1 for d in range(len(places))]
        )
        labels = labels * number + along.clamp(max=number - 1)
        outside |= along >= number
        count *= number
    return Regions(labels.masked_fill(outside, -1)[None], count, channels, partial == "mean")


def _labelled(
    labels: Tensor, inputs: Tensor, places: Sequence[int], channels: int | None, mean: bool
) -> Regions:
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise InvalidInput(
            f"regions: of type {labels.dtype}\n  do: give a whole number a place, −1 for places that stay"
        )
    whole = labels[None] if labels.dim() == len(places) else labels
    if whole.shape[1:] != torch.Size(places) or len(whole) not in (1, len(inputs)):
        raise InvalidInput(
            f"regions: shape {tuple(labels.shape)} for places {tuple(places)}\n  do: give {tuple(places)}, or one such map a sample"
        )
    if int(whole.max()) < 0:
        raise InvalidInput("regions: no place may be replaced\n  do: give regions from 0 on")
    return Regions(whole.to(torch.long), int(whole.max()) + 1, channels, mean)


def ordered(
    scores: Tensor,
    present: Tensor,
    way: str = "morf",
    *,
    absolute: bool = False,
    ties: str = "stable",
    samples: Sequence[int] = (),
    seed: int = 0,
) -> Tensor:
    """The rank of each region, 0 for the first one to be replaced, (B, N); regions that a sample lacks come last.

    Signed relevance: in "morf" the negative comes last. Equal values keep the order of their numbers, or with
    ties="random" one drawn for each sample from `seed` and its number; "lerf" is then not "morf" backwards.
    """
    if way not in ORDERS:
        raise InvalidInput(f"order: {way!r} is unknown\n  do: one of {', '.join(ORDERS)}")
    if ties not in ("stable", "random"):
        raise InvalidInput(f"ties: {ties!r} is unknown\n  do: 'stable' or 'random'")
    values = scores.abs() if absolute else scores
    if way == "random" or ties == "random":
        found = permutations(samples or range(len(scores)), scores.shape[1], seed).to(scores.device)
        if way != "random":
            found = found.gather(1, order(values.gather(1, found), descending=way == "morf"))
    else:
        found = order(values, descending=way == "morf")
    if not bool(present.all()):
        lacking = (~present.to(scores.device)).long().gather(1, found)
        found = found.gather(1, torch.argsort(lacking, dim=1, stable=True))
    return rank_of(found)


def permutations(samples: Sequence[int], count: int, seed: int) -> Tensor:
    """A random order of `count` regions for each sample number, the same whatever else is drawn; (B, N)."""
    import numpy as np

    drawn = [np.random.default_rng([seed, int(sample), 2]).permutation(count) for sample in samples]
    return torch.from_numpy(np.stack(drawn))


def tied(scores: Tensor) -> Tensor:
    """The share of regions whose value another one has too, (B,)."""
    values = scores.sort(1).values
    same = values[:, 1:] == values[:, :-1]
    first = torch.zeros(len(values), 1, dtype=torch.bool, device=values.device)
    return (torch.cat([first, same], 1) | torch.cat([same, first], 1)).to(torch.float64).mean(1)
