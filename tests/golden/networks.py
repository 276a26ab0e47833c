"""The networks of the golden files. The files hold their weights: a generator's numbers may change."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SEED = 20
DTYPE = torch.float64


class Flattened(nn.Module):
    """Features, flattened by a function (captum has no rule for the module), then a classifier."""

    def __init__(self, features: list[nn.Module], classifier: list[nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(*classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))  # type: ignore[no-any-return]


def _seeded(network: nn.Module) -> nn.Module:
    """Weights, biases and running statistics drawn from a seed."""
    random = torch.Generator().manual_seed(SEED)

    def draw(like: Tensor, scale: float, shift: float = 0.0) -> Tensor:
        return torch.randn(like.shape, generator=random, dtype=DTYPE) * scale + shift

    network = network.to(DTYPE).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.copy_(draw(module.weight, (2 / module.weight[0].numel()) ** 0.5))
                module.bias.copy_(draw(module.bias, 0.1))
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(draw(module.weight, 0.1, 1.0))
                module.bias.copy_(draw(module.bias, 0.1))
                module.running_mean.copy_(draw(module.running_mean, 0.2))
                module.running_var.copy_(draw(module.running_var, 0.2, 1.0).abs())
    return network


def sample() -> Tensor:
    """Two images, pixels normalised as for ImageNet."""
    random = torch.Generator().manual_seed(SEED + 1)
    pixels = torch.rand(2, 3, 12, 12, generator=random, dtype=DTYPE)
    mean, std = (
        torch.tensor(v, dtype=DTYPE).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return (pixels - mean) / std


def vgg() -> nn.Module:
    """Convolutions, ReLU, max pooling, average pooling, three linear layers."""
    return _seeded(
        Flattened(
            [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
             nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
             nn.AdaptiveAvgPool2d((2, 2))],
            [nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 10)],
        )
    )  # fmt: skip


def batch_norm() -> nn.Module:
    """Convolutions with batch normalisation behind them, stride 2, average pooling, one linear layer."""
    return _seeded(
        Flattened(
            [nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
             nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
             nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)],
            [nn.Linear(8, 10)],
        )
    )  # fmt: skip


NETWORKS = {"vgg": vgg, "batch_norm": batch_norm}
