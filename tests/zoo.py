"""Small float64 networks of many architectures, away from kinks, for laws that hold for every network.

`ZOO` maps a name to a builder: `ZOO[name](seed)` gives a module in eval mode and an input of three samples.
Every pre-activation is at least `KINK` away from zero and every maximum that far above the runner-up, so that
rounding flips nothing; biases and statistics of batch normalisation are not those of a fresh layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

Build = Callable[[], nn.Module]
Case = tuple[nn.Module, Tensor]

KINK = 1e-3
SAMPLES = 3
TRIES = 400


# --- how a case is made


def randomise(module: nn.Module) -> nn.Module:
    """Scores near 1; biases, scales and running statistics away from those of a fresh layer."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats:
                part.running_mean.normal_(0, 0.4)
                part.running_var.uniform_(0.5, 2.0)
            if isinstance(part, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)):
                part.weight.uniform_(0.6, 1.5).mul_(
                    torch.where(torch.rand_like(part.weight) < 0.2, -1.0, 1.0)
                )
                part.bias.normal_(0, 0.3)
            elif isinstance(getattr(part, "weight", None), nn.Parameter) and part.weight.dim() > 1:
                nn.init.kaiming_normal_(part.weight)
                if part.bias is not None:
                    part.bias.normal_(0, 0.2)
    return module


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A block with its own random numbers, drawn in float64."""
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_rng_state(state)


def case(build: Build, shape: tuple[int, ...], seed: int = 0) -> Case:
    """A network and an input away from kinks: the first of a series of seeds that gives one."""
    for attempt in range(TRIES):
        with seeded(1000 * seed + attempt):
            module = randomise(build()).eval()
            x = torch.randn(SAMPLES, *shape)
        if smooth(module, x):
            return module, x
    raise AssertionError(f"no case away from kinks in {TRIES} tries: make {build.__name__} smaller")


def smooth(module: nn.Module, x: Tensor) -> bool:
    """Whether the forward pass stays away from kinks."""
    with torch.no_grad(), _Kinks() as watch:
        module(x)
    return watch.distance > KINK


class _Kinks(TorchDispatchMode):
    """How close a forward pass comes to a kink of ReLU and its relatives, or to a tie in max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.distance = float("inf")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if name in ("relu", "relu_", "leaky_relu", "clamp_min", "clamp", "hardtanh", "threshold"):
            self._near(args[0].abs())
            limits = [v for v in args[1:] if isinstance(v, (int, float)) and v]
            if name in ("clamp", "hardtanh"):
                for limit in limits:
                    self._near((args[0] - limit).abs())
        if name in ("hardswish", "hardsigmoid"):
            self._near((args[0].abs() - 3).abs())
        result = function(*args, **kwargs)
        if "max_pool" in name:
            values, index = result
            rest = args[0].flatten(2).scatter(2, index.flatten(2), float("-inf")).reshape(args[0].shape)
            second = function(rest, *args[1:], **kwargs)[0]
            self._near((values - second)[values > 0])
        return result

    def _near(self, distances: Tensor) -> None:
        if distances.numel():
            self.distance = min(self.distance, float(distances.min()))


# --- the networks


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 4))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.ReLU(),
        nn.Linear(6, 4),
    )


class Block(nn.Module):
    """A basic residual block, with a projection where the shape changes."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += kept
        return self.relu(y)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.blocks = nn.Sequential(Block(3, 3), Block(3, 4, 2))
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.bn(self.stem(x)))).mean((2, 3)))


class Dense(nn.Module):
    """Batch normalisation in front of convolutions, outputs concatenated with inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(5), nn.BatchNorm2d(7)])
        self.convs = nn.ModuleList(
            [nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.Conv2d(5, 2, 3, padding=1, bias=False)]
        )
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        x = F.relu(self.norms[2](torch.cat(features, 1)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class InvertedResidual(nn.Module):
    """MobileNet's block with squeeze and excitation: depthwise convolution, gates, linear bottleneck."""

    def __init__(self, activation: type[nn.Module] = nn.SiLU, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.expand, self.bn1 = nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.depth, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.project, self.bn3 = nn.Conv2d(6, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.activation, self.gate = activation(), gate()
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.activation(self.bn1(self.expand(x)))
        y = self.activation(self.bn2(self.depth(y)))
        y = y * self.gate(self.excite(self.activation(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = x + self.bn3(self.project(y))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def hard_gates() -> nn.Module:
    return InvertedResidual(nn.Hardswish, nn.Hardsigmoid)


class Branches(nn.Module):
    """Inception's block: four branches side by side, one of them average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 2, 1)
        self.three = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 3, padding=1))
        self.wide = nn.Conv2d(2, 2, (1, 3), padding=(0, 1))
        self.pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(2, 2, 1))
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.cat([self.one(x), self.three(x), self.wide(x), self.pooled(x)], 1))
        return self.head(F.avg_pool2d(x, 4).flatten(1))


def series() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 5, stride=2, padding=2),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Conv1d(4, 3, 3, dilation=2),
        nn.ReLU(),
        nn.AvgPool1d(2),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(2, 3, (3, 2, 2)),
        nn.BatchNorm3d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3, 4),
    )


class UNet(nn.Module):
    """Down, up by interpolation and by transposed convolution, with skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.down3 = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.mix, self.last = nn.Conv2d(7, 3, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(a))
        c = F.relu(self.down3(b))
        y = F.relu(self.mix(torch.cat([self.up(c), b], 1)))
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(torch.cat([y, a], 1)).flatten(2).mean(2)


class Reused(nn.Module):
    """One linear layer and one activation called three times, and the same layer on two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(10, 4)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        a = self.relu(self.again(x))
        b = self.relu(self.again(a))
        return self.head(torch.cat([b, self.again(x)], 1))


class Shuffle(nn.Module):
    """ShuffleNet's unit: half of the channels pass, halves are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.branch = nn.Sequential(
            nn.Conv2d(2, 2, 1),
            nn.BatchNorm2d(2),
            nn.ReLU(inplace=True),
            nn.Conv2d(2, 2, 3, padding=1, groups=2),
            nn.BatchNorm2d(2),
            nn.Conv2d(2, 2, 1),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(2):
            kept, moved = x.chunk(2, 1)
            x = torch.cat([kept, self.branch(moved)], 1)
            b, c, h, w = x.shape
            x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(x.mean(dim=[2, 3]))


def grouped_dilated() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.LeakyReLU(0.1),
        nn.Conv2d(6, 3, (1, 3)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(9, 4),
    )


class Functional(nn.Module):
    """No module inside: parameters and functions only."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = (
            nn.Parameter(torch.randn(3, 2, 3, 3) * 0.3),
            nn.Parameter(torch.randn(3) * 0.2),
        )
        self.matrix, self.offset = nn.Parameter(torch.randn(27, 5) * 0.3), nn.Parameter(torch.randn(5) * 0.2)
        self.last = nn.Parameter(torch.randn(4, 5) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(F.pad(x, (1, 1, 1, 1)), self.kernel, self.shift).relu()
        x = F.max_pool2d(x, 2).reshape(x.shape[0], -1)
        x = (x @ self.matrix + self.offset).clamp_min(0)
        return F.linear(x, self.last) * 2


class Normalised(nn.Module):
    """Batch normalisation in front of, behind and between everything."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0, self.conv1, self.bn1 = nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.bn2, self.conv2, self.bn3 = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.linear, self.bn4, self.head = nn.Linear(16, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(F.relu(self.bn1(self.conv1(self.bn0(x)))))
        x = F.relu(self.bn3(self.conv2(x))).flatten(1)
        return self.head(F.relu(self.bn4(self.linear(x))))


def signed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.Tanh(),
        nn.Linear(6, 4),
    )


def maxpool() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.ReLU(),
        nn.Linear(5, 4),
    )


class Attention(nn.Module):
    """A transformer block of one head with explicit attention, norms in front, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(6), nn.LayerNorm(6)
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        weights = (self.q(y) @ self.k(y).transpose(1, 2) / 6**0.5).softmax(-1)
        x = x + self.o(weights @ self.v(y))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


_TABLE: dict[str, tuple[Build, tuple[int, ...]]] = {
    "mlp": (mlp, (7,)),
    "cnn": (cnn, (2, 6, 6)),
    "residual": (Residual, (2, 4, 4)),
    "dense": (Dense, (2, 4, 4)),
    "inverted_residual": (InvertedResidual, (2, 5, 5)),
    "hard_gates": (hard_gates, (2, 4, 4)),
    "branches": (Branches, (2, 4, 4)),
    "series": (series, (2, 17)),
    "volume": (volume, (1, 3, 4, 4)),
    "unet": (UNet, (2, 8, 8)),
    "reused": (Reused, (6,)),
    "shuffle": (Shuffle, (2, 4, 4)),
    "grouped_dilated": (grouped_dilated, (2, 6, 6)),
    "functional": (Functional, (2, 6, 6)),
    "normalised": (Normalised, (2, 6, 6)),
    "signed": (signed, (2, 6, 6)),
    "maxpool": (maxpool, (2, 8, 8)),
    "attention": (Attention, (5, 6)),
}

ZOO: dict[str, Callable[[int], Case]] = {
    name: functools.partial(case, build, shape) for name, (build, shape) in _TABLE.items()
}
