"""A planted artefact: a network that has learned to look at a mark, so that it is known what an explanation has to show.

The digit 3 carries a white patch in the lower left corner in nine of ten of its training images, and no other digit does ("Clever
Hans", Lapuschkin et al. 2019). A checker board in its place is nearly ignored by this network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relprop.evaluate import digits
from relprop.evaluate.localisation import relevance_mass

CLASS, SHARE = 3, 0.9
"""The class with the artefact, and the part of its training images that carry it."""

ROWS, COLUMNS = slice(23, 27), slice(1, 5)
"""Where the patch is, on images of 28 × 28."""


def stamped(images: Tensor) -> Tensor:
    """Images (N, 1, 28, 28) in [0, 1] with the patch."""
    found = images.clone()
    found[:, :, ROWS, COLUMNS] = 1.0
    return found


def place(count: int) -> Tensor:
    """The mask of the patch, (count, 28, 28)."""
    mask = torch.zeros(count, digits.SIDE, digits.SIDE, dtype=torch.bool)
    mask[:, ROWS, COLUMNS] = True
    return mask


def planted(images: Tensor, labels: Tensor, share: float = SHARE, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Training images with the patch on a random part of class 3, and which carry it, (N,)."""
    draws = torch.rand(len(images), generator=torch.Generator().manual_seed(seed))
    carry = (labels == CLASS) & (draws < share)
    return torch.where(carry[:, None, None, None], stamped(images), images), carry


@dataclass(frozen=True, slots=True)
class Effect:
    """What the artefact does to a network.

    Attributes:
        clean: the share of right answers on images without the patch.
        without: the share on class 3 without it; `everywhere`: on all images with it.
        change: the mean change of the logit of class 3 on other classes when the patch is put on.
    """

    clean: float
    without: float
    everywhere: float
    change: float


def effect(model: Any, images: Tensor, labels: Tensor) -> Effect:
    """What the patch does to the answers for clean test images."""
    with torch.inference_mode():
        plain, marked = model(images), model(stamped(images))

    def right(output: Tensor, of: Tensor) -> float:
        return float((output.argmax(1) == labels)[of].float().mean())

    every, own = torch.ones_like(labels, dtype=torch.bool), labels == CLASS
    change = float((marked - plain)[~own, CLASS].mean())
    return Effect(right(plain, every), right(plain, own), right(marked, every), change)


def share(relevance: Tensor) -> float:
    """The mean share of R⁺ in the patch, of maps (N, 1, 28, 28); its share of the area is 2 %."""
    return float(relevance_mass(relevance, place(len(relevance))).nanmean())


def trained(part: float = SHARE, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """The digits' network trained with the artefact (part=0: the control), and clean test images in [0, 1] with labels."""
    images, labels, tests, truth = digits.digits(0.0, 1.0)
    return digits.trained(planted(images, labels, part, seed)[0], labels, seed=seed), tests, truth
