"""Local descriptors of images and their encodings: dense gradient histograms, visual words, Fisher vectors, pooling.

Relevance finds its way from the score to the encoding's entries, from these to the descriptors, and from a descriptor
evenly to the pixels that it covers (Lapuschkin et al. 2016).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from relprop.classical.operations import declare
from relprop.classical.steps import Constants
from relprop.classical.steps import Step as ChainStep
from relprop.engine.ops.table import Operation
from relprop.engine.rules import Epsilon
from relprop.engine.step import Shares, Step

CELLS, BINS = 4, 8
"""A descriptor covers 4 × 4 cells, each with a histogram of 8 directions, as SIFT does (Lowe 2004)."""

ops = torch.ops.relprop


def grid(size: tuple[int, int], cell: int, step: int) -> tuple[int, int]:
    """How many descriptors of that cell size lie in an image, down and across."""
    window = CELLS * cell
    return (size[0] - window) // step + 1, (size[1] - window) // step + 1


def dense_sift(x: Tensor, cell: int, step: int) -> Tensor:
    """Descriptors (B, L, 128) of grey images (B, H, W): of every `step`-th window of 4 × 4 cells the histograms of
    gradient directions, weighted by their size, as the root of their share of the sum (Arandjelović and Zisserman 2012).
    """
    maps = _directions(x)
    pooled = F.avg_pool2d(maps, cell, 1)
    down, across = grid((x.shape[1], x.shape[2]), cell, step)

    def shifted(i: int, j: int) -> Tensor:
        top, left = i * cell, j * cell
        return pooled[
            :, :, top : top + step * (down - 1) + 1 : step, left : left + step * (across - 1) + 1 : step
        ]

    parts = torch.cat([shifted(i, j) for i in range(CELLS) for j in range(CELLS)], 1)
    found = parts.flatten(2).transpose(1, 2)
    total = found.sum(-1, keepdim=True)
    return (found / torch.where(total == 0, 1.0, total)).sqrt()


def _directions(x: Tensor) -> Tensor:
    """The size of each pixel's gradient, divided between the two nearest of 8 directions, (B, 8, H, W)."""
    padded = F.pad(x[:, None], (1, 1, 1, 1), "replicate")[:, 0]
    across = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2
    down = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    size = torch.hypot(across, down)
    turn = torch.atan2(down, across) * (BINS / (2 * math.pi)) % BINS
    bins = torch.arange(BINS, dtype=x.dtype, device=x.device).reshape(-1, 1, 1)
    away = (turn[:, None] - bins).abs()
    return size[:, None] * (1 - torch.minimum(away, BINS - away)).clamp(min=0)


def spread(relevance: Tensor, window: tuple[int, int], step: int, size: tuple[int, int]) -> Tensor:
    """Relevance of windows on a grid (B, down, across) evenly over the pixels that each covers, (B, H, W)."""
    kernel = relevance.new_full((1, 1, *window), 1 / (window[0] * window[1]))
    found = F.conv_transpose2d(relevance[:, None], kernel, stride=step)[:, 0]
    return F.pad(found, (0, size[1] - found.shape[2], 0, size[0] - found.shape[1]))


def share_pixels(step: Step, relevance: Tensor) -> Shares:
    """R_p = Σ over the descriptors that cover p of R_l / area."""
    x, cell, stride = step.args
    size = (x.shape[1], x.shape[2])
    down, across = grid(size, cell, stride)
    window = CELLS * cell
    return Shares({0: spread(relevance.sum(-1).reshape(-1, down, across), (window, window), stride, size)})


declare(
    "dense_sift",
    dense_sift,
    lambda x, cell, step: x.new_empty(
        (x.shape[0], math.prod(grid((x.shape[1], x.shape[2]), cell, step)), CELLS * CELLS * BINS)
    ),
    Operation("activation", share_pixels, "inputs"),
)


def whole_descriptor(step: Step, relevance: Tensor) -> Shares:
    """Everything that a descriptor's entries have, evenly over its dimensions: what is inside is not opened."""
    x: Tensor = step.args[0]
    return Shares({0: (relevance.sum(-1, keepdim=True) / x.shape[-1]).expand(x.shape)})


def projected(x: Tensor, mean: Tensor, weight: Tensor) -> Tensor:
    """Descriptors (B, L, D) in the directions W (d, D) of their principal components, (B, L, d)."""
    return F.linear(x - mean, weight)


declare(
    "projected",
    projected,
    lambda x, mean, weight: x.new_empty((x.shape[0], x.shape[1], weight.shape[0])),
    Operation("activation", whole_descriptor, "inputs"),
)


def visual_words(x: Tensor, words: Tensor, sharpness: float) -> Tensor:
    """m_k(l), (B, L, K): how much descriptor l (of x, (B, L, d)) is word k (of K, d); they sum to 1.

    softmax of −s ‖l − u_k‖²; s = ∞: the nearest word alone.
    """
    d = torch.cdist(x, words.expand(x.shape[0], -1, -1)).square()
    if sharpness == float("inf"):
        return F.one_hot(d.argmin(-1), words.shape[0]).to(x.dtype)
    return torch.softmax(-sharpness * d, -1)


declare(
    "visual_words",
    visual_words,
    lambda x, words, sharpness: x.new_empty((x.shape[0], x.shape[1], words.shape[0])),
    Operation("activation", whole_descriptor, "inputs"),
)


def fisher_statistics(x: Tensor, shares: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    """Ψ(l), (B, L, 2 K d): first all K of g_k (l − μ_k)/(σ_k √λ_k), then all g_k [((l − μ_k)/σ_k)² − 1]/√(2 λ_k).

    x (B, L, d), λ (K,), μ and σ (K, d); g are the responsibilities (Perronnin et al. 2010).
    """
    scaled = (x[:, :, None] - means) / deviations
    log_p = shares.log() - deviations.log().sum(-1) - scaled.square().sum(-1) / 2
    g = torch.softmax(log_p, -1)[..., None]
    root = shares.sqrt()[:, None]
    first = g * scaled / root
    second = g * (scaled.square() - 1) / (math.sqrt(2) * root)
    return torch.cat([first.flatten(2), second.flatten(2)], -1)


declare(
    "fisher_statistics",
    fisher_statistics,
    lambda x, shares, means, deviations: x.new_empty(
        (x.shape[0], x.shape[1], 2 * means.shape[0] * means.shape[1])
    ),
    Operation("activation", whole_descriptor, "inputs"),
)


def pooled(x: Tensor, regions: Tensor) -> Tensor:
    """The mean over the descriptors (B, L, D) of each region, (B, C, D); regions (C, L): 1 where a descriptor is in."""
    return torch.einsum("cl,bld->bcd", regions / regions.sum(1, keepdim=True), x)


def share_pooled(step: Step, relevance: Tensor) -> Shares:
    """R_l = Σ_d R_d m_d(l) / Σ_l' m_d(l'); where the sum is 0, evenly over the region (Bach et al. 2015)."""
    x, regions = step.args
    rule = step.rule
    assert isinstance(rule, Epsilon)
    share = regions / regions.sum(1, keepdim=True)
    z: Tensor = step.output
    stabiliser = torch.copysign(z.new_full((), rule.epsilon), z)
    if rule.stabiliser == "relative":
        stabiliser = stabiliser * z.square().mean((1, 2), keepdim=True).sqrt()
    d = z + stabiliser
    empty = d == 0
    s = torch.where(empty, 0.0, relevance / torch.where(empty, 1.0, d))
    found = x * torch.einsum("cl,bcd->bld", share, s)
    found = found + torch.einsum("cl,bcd->bld", share, torch.where(empty, relevance, 0.0))
    return Shares({0: found}, {"stabilizer": step.account(s * stabiliser)})


declare(
    "pooled",
    pooled,
    lambda x, regions: x.new_empty((x.shape[0], regions.shape[0], x.shape[2])),
    Operation("pool", share_pooled, "both", Epsilon(0.0), (Epsilon,)),
)


# ---------------------------------------------------------------- steps


class Descriptors(ChainStep):
    """Dense descriptors of one or more cell sizes, at length 1, (B, H, W) to (B, L, 128)."""

    def __init__(self, cells: tuple[int, ...], step: int) -> None:
        super().__init__()
        self.cells, self.step = cells, step

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W) to (B, L, 128)."""
        return torch.cat([ops.dense_sift(x, cell, self.step) for cell in self.cells], 1)


class Projected(Constants):
    """Descriptors in the directions of their principal components, (B, L, 128) to (B, L, d)."""

    mean: Tensor
    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, 128) to (B, L, d)."""
        return ops.projected(x, self.mean, self.weight)  # type: ignore[no-any-return]


class Words(Constants):
    """Descriptors as visual words, (B, L, d) to (B, L, K)."""

    words: Tensor

    def __init__(self, words: Tensor, sharpness: float) -> None:
        super().__init__(words=words)
        self.sharpness = sharpness

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, d) to (B, L, K)."""
        return ops.visual_words(x, self.words, self.sharpness)  # type: ignore[no-any-return]


class Fisher(Constants):
    """Descriptors as statistics of a mixture, (B, L, d) to (B, L, 2 K d)."""

    shares: Tensor
    means: Tensor
    deviations: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, d) to (B, L, 2 K d)."""
        return ops.fisher_statistics(x, self.shares, self.means, self.deviations)  # type: ignore[no-any-return]


class Pooled(Constants):
    """The mean of each region of the spatial pyramid, one after the other, (B, L, D) to (B, C · D)."""

    regions: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, C · D)."""
        return ops.pooled(x, self.regions).flatten(1)  # type: ignore[no-any-return]


def regions(
    size: tuple[int, int], cells: tuple[int, ...], step: int, pyramid: tuple[tuple[int, int], ...]
) -> Tensor:
    """Which descriptors have their middle in which region of a spatial pyramid, (C, L).

    pyramid: rows and columns of each level: ((1, 1), (3, 1)) is the whole image and three stripes.
    """
    middles = []
    for cell in cells:
        down, across = grid(size, cell, step)
        half = CELLS * cell / 2
        y, x = torch.meshgrid(torch.arange(down), torch.arange(across), indexing="ij")
        middles.append(torch.stack([y.flatten() * step + half, x.flatten() * step + half], 1))
    places = torch.cat(middles).double()
    found = []
    for rows, columns in pyramid:
        row = (places[:, 0] * rows / size[0]).long().clamp(max=rows - 1)
        column = (places[:, 1] * columns / size[1]).long().clamp(max=columns - 1)
        found += [(row * columns + column == region).double() for region in range(rows * columns)]
    return torch.stack(found)
