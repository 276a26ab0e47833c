"""The bundled digits: scikit-learn's 1797 handwritten ones, enlarged, and a small network trained on them in seconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relprop.errors import MissingExtra

SIDE, TRAINED = 28, 1078
"""Pixels a side, and how many of the images are for training."""


def digits(low: float = -1.0, high: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, then those for testing: (N, 1, 28, 28) float32 from `low` to `high`, and (N,).

    8 × 8 grey values of 0…16, enlarged by bilinear interpolation. Needs scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra(
            "the digits come with scikit-learn\n  do: pip install 'relprop[evaluate]'"
        ) from error
    held = load_digits()
    small = torch.from_numpy(held.images).float()[:, None] / 16
    images = low + (high - low) * F.interpolate(small, (SIDE, SIDE), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(held.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return images[:TRAINED], labels[:TRAINED], images[TRAINED:], labels[TRAINED:]


def network() -> nn.Module:
    """Two convolutions of 5 × 5 with 16 and 32 maps, max pooling, two dense layers, ReLUs; untrained."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def trained(images: Tensor, labels: Tensor, epochs: int = 12, seed: int = 0) -> nn.Module:
    """The network after training on images and labels; the same for the same seed on the same machine."""
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.manual_seed(seed)
        model = network()
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(epochs):
            for part in torch.split(torch.randperm(len(images)), 64):
                optimiser.zero_grad()
                torch.autograd.backward(F.cross_entropy(model(images[part]), labels[part]))
                optimiser.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()
