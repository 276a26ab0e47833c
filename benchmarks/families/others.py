"""Kinds of models that no library here has as a family: written by hand, from torch's own parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from families import Case, steady


class GraphConvolution(nn.Module):
    """Two rounds of messages along the edges, summed at their ends by a scatter, and the mean over the nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", torch.randint(0, 10, (2, 40)))
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, nodes: Tensor) -> Tensor:
        """Scores (B, 3) of nodes (B, 10, 6)."""
        for layer in (self.first, self.second):
            sent = layer(nodes)
            index = self.edges[1][None, :, None].expand(len(sent), -1, sent.shape[2])
            nodes = (sent + torch.zeros_like(sent).scatter_add(1, index, sent[:, self.edges[0]])).relu()
        return self.head(nodes.mean(1))


class Bags(nn.Module):
    """A table with categories: each column's embedding in a bag, beside numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(50, 16, mode="sum")
        self.net = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """Scores (B, 3) of categories (B, 5), whole numbers, and numbers (B, 4)."""
        return self.net(torch.cat([self.bag(categories), numbers], 1))


def _block(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU())


class UNet(nn.Module):
    """Segmentation by a path down, a path up and bridges between them (Ronneberger et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(3, 8), _block(8, 16), _block(16, 32)])
        self.rise = nn.ModuleList([nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)])
        self.up = nn.ModuleList([_block(32, 16), _block(16, 8)])
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        """A map of scores (B, 4, H, W)."""
        bridges, x = [], images
        for block in self.down:
            x = block(x if not bridges else nn.functional.max_pool2d(x, 2))
            bridges.append(x)
        for rise, block, bridge in zip(self.rise, self.up, reversed(bridges[:-1]), strict=True):
            x = block(torch.cat([rise(x), bridge], 1))
        return self.head(x)


def _class_map(output: Tensor) -> Tensor:
    """The mean score of one class over a segmentation map."""
    return output[:, 2].mean((1, 2))


ROWS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], Any]] = {
    "graph convolution by scatter": (GraphConvolution, lambda: torch.randn(2, 10, 6), None),
    "embedding bags over a table": (
        Bags,
        lambda: (torch.randint(0, 50, (2, 5)), torch.randn(2, 4)),
        None,
    ),
    "U-Net (segmentation)": (UNet, lambda: torch.randn(2, 3, 32, 32), _class_map),
}
"""Family: model, inputs, target."""


def families() -> list[str]:
    return list(ROWS)


def build(family: str) -> Case:
    """One member with random weights."""
    make, draw, target = ROWS[family]
    model, inputs = make(), draw()
    steady(model, lambda: model(*inputs) if isinstance(inputs, tuple) else model(inputs))
    return Case(make.__name__, model, inputs, target)
