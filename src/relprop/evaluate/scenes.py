"""Rendered scenes with known masks: data where it is known what a model has to look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 32
SHAPES = ("circle", "square", "triangle")
COLOURS = ((1.0, 0.1, 0.1), (0.1, 0.9, 0.1), (0.2, 0.3, 1.0))
"""Red, green and blue; the class is the shape of the red object."""


@dataclass(frozen=True, slots=True)
class Scenes:
    """Scenes: images (N, 3, 32, 32) in [0, 1], the class (N,), the red object's mask and that of all objects, (N, 32, 32)."""

    images: Tensor
    labels: Tensor
    single: Tensor
    every: Tensor


def scenes(count: int, seed: int = 0) -> Scenes:
    """Three objects of different colours, of any shapes, on noise, none over another; the class is the red one's shape."""
    import numpy as np

    draws = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    images = draws.uniform(0, 0.35, (count, 3, SIDE, SIDE))
    labels = np.zeros(count, dtype=np.int64)
    single = np.zeros((count, SIDE, SIDE), dtype=bool)
    every = np.zeros((count, SIDE, SIDE), dtype=bool)
    corners = [(8, 8), (8, 24), (24, 8), (24, 24)]
    for index in range(count):
        places = draws.permutation(4)[:3]
        for number, colour in enumerate(COLOURS):
            row, column = (at + int(draws.integers(-2, 3)) for at in corners[places[number]])
            radius, shape = int(draws.integers(4, 6)), int(draws.integers(3))
            down, across = rows - row, columns - column
            inside = (
                down**2 + across**2 <= radius**2,
                (abs(down) <= radius - 1) & (abs(across) <= radius - 1),
                (down <= radius - 1) & (down + radius >= 2 * abs(across)) & (down >= -radius),
            )[shape]
            images[index][:, inside] = np.asarray(colour)[:, None] * draws.uniform(0.8, 1.0)
            every[index] |= inside
            if number == 0:
                labels[index], single[index] = shape, inside
    tensors = (torch.from_numpy(one) for one in (images.astype(np.float32), labels, single, every))
    return Scenes(*tensors)


def network() -> nn.Module:
    """Three convolutions of 3 × 3 with ReLUs and max pooling, and two dense layers; untrained."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 3),
    )  # fmt: skip


def trained(count: int = 6000, epochs: int = 10, seed: int = 0) -> nn.Module:
    """The network after training on scenes."""
    data = scenes(count, seed + 1)
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.manual_seed(seed)
        model = network()
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
        for epoch in range(epochs):
            if epoch == epochs - 3:
                optimiser.param_groups[0]["lr"] = 5e-4
            for part in torch.split(torch.randperm(count), 64):
                optimiser.zero_grad()
                torch.autograd.backward(F.cross_entropy(model(data.images[part]), data.labels[part]))
                optimiser.step()
    model.zero_grad(set_to_none=True)
    return model.eval()
