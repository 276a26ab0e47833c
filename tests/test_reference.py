"""Trained networks and relevance published with them: the same numbers from relprop's rules.

Each composite below is the translation of another toolbox's conventions; what they are is said beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import relprop
from relprop import rules

# --- MNIST

TOOLBOX = {
    # No rule leaves the bias out: those that use it (ε, αβ) keep it in their denominators ("absorb").
    # The pooling of this network is the sum of four values times 0.5. The toolbox adds the ε of its ε rules
    # to the plain sum, before the factor 0.5: seen from the output, half of it.
    "simple": (rules.Epsilon(1e-16), rules.Epsilon(0.5e-12)),
    "epsilon_0.01": (rules.Epsilon(0.01), rules.Epsilon(0.005)),
    "epsilon_1": (rules.Epsilon(1.0), rules.Epsilon(0.5)),
    "alphabeta_1": (rules.AlphaBeta(1, 0, epsilon=0.0), rules.AlphaBeta(1, 0, epsilon=0.0)),
    # Pooling sees no negative contribution: α counts twice there and nothing offsets it, in both tools.
    "alphabeta_2": (rules.AlphaBeta(2, 1, epsilon=0.0), rules.AlphaBeta(2, 1, epsilon=0.0)),
    "flat": (rules.Flat(epsilon=0.0), rules.Flat(epsilon=0.0)),
    "ww": (rules.WSquare(epsilon=0.0), rules.WSquare(epsilon=0.0)),  # uniform in pooling
}
ROUNDING = 2e-14
"""Largest difference seen is 4.9e-15 of the largest relevance of a digit (float64, other order of sums)."""


class SumPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2, divisor_override=2)  # the sum of four values times 0.5


class LeNet5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = [(1, 10, 5), (10, 25, 5), (25, 100, 4), (100, 10, 1)]
        self.conv1, self.conv2, self.conv3, self.conv4 = (nn.Conv2d(*size) for size in sizes)
        self.pool = SumPool()

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = self.pool(F.relu(convolution(x)))
        return self.conv4(x).flatten(1)


def load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def lenet(shared: Path) -> nn.Module:
    net = LeNet5().double().eval()
    net.load_state_dict({k: torch.from_numpy(v) for k, v in load(shared / "mnist/lenet5.npz").items()})
    return net


def digits(images: np.ndarray) -> Tensor:
    return F.pad(torch.from_numpy(images).double()[:, None] / 127.5 - 1, (2, 2, 2, 2), value=-1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_lenet_names_9924_of_the_10000_digits(shared: Path, dtype: torch.dtype) -> None:
    net = lenet(shared).to(dtype)
    data = load(shared / "mnist/mnist_test.npz")
    labels = torch.from_numpy(data["labels"]).long()
    parts = np.array_split(data["images"], 20)
    with torch.no_grad():
        found = torch.cat([net(digits(part).to(dtype)).argmax(1) for part in parts])
    assert int((found == labels).sum()) == 9924


@pytest.mark.parametrize("name", TOOLBOX)
def test_lenet_relevance_is_that_of_the_first_toolbox(shared: Path, name: str) -> None:
    reference = load(shared / "mnist/lenet5_reference_relevance.npz")
    x = digits(load(shared / "mnist/mnist_test.npz")["images"][reference["index"]])
    weighted, pool = TOOLBOX[name]
    found = relprop.explain(
        lenet(shared), x, rules=relprop.Composite([("weighted", weighted), ("pool", pool)])
    )
    np.testing.assert_allclose(found.output, reference["output"], atol=2e-14 * 40, rtol=0)
    np.testing.assert_allclose(found.score, reference["start_relevance"].max(1), atol=2e-14 * 40, rtol=0)
    expected = torch.from_numpy(reference[f"relevance_{name}"])
    assert relative(found.relevance[:, 0], expected) < ROUNDING
    sums, expected_sums = found.relevance.flatten(1).sum(1), expected.flatten(1).sum(1)
    assert torch.allclose(sums, expected_sums, rtol=1e-12, atol=0)
    if name in ("alphabeta_1", "flat", "ww"):  # no bias is positive here: nothing is absorbed
        assert not any(float(a.abs().max()) > 1e-12 for a in found.audit.absorbed.values())
    if name == "alphabeta_2":
        assert (found.audit.absorbed["no_negative_part"] < -1).all()


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference within a sample, as a part of that sample's largest value; the worst one's."""
    size = expected.abs().flatten(1).amax(1)
    return float(((found.double() - expected.double()).abs().flatten(1).amax(1) / size).max())


# --- Fashion-MNIST


class FashionNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, 2), nn.BatchNorm2d(16)
        self.parallel = nn.Sequential(nn.Conv2d(1, 16, 5, 2, bias=False), nn.BatchNorm2d(16))
        self.linear1, self.linear2 = nn.Linear(576, 120), nn.Linear(120, 10)

    def forward(self, x: Tensor) -> Tensor:
        main = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        both = F.relu(main + self.parallel(x))
        return self.linear2(F.relu(self.linear1(F.max_pool2d(both, 2).flatten(1))))


def fashion_net(shared: Path) -> nn.Module:
    net = FashionNet().eval()
    known = {k: torch.from_numpy(v) for k, v in load(shared / "fashion/fashion_resnet.npz").items()}
    counters = {k: v for k, v in net.state_dict().items() if "num_batches" in k}
    net.load_state_dict(known | counters)
    return net


@pytest.fixture(scope="module")
def fashion(shared: Path) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    data = load(shared / "fashion/fashion_first500.npz")
    reference = load(shared / "fashion/fashion_reference_relevance.npz")
    images = torch.from_numpy(data["images"]).float()[:, None] / 255
    labels = torch.from_numpy(data["labels"]).long()
    return images, labels, {name: torch.from_numpy(array) for name, array in reference.items()}


CONCEPTS = [  # zennit-crp's own tests: biases absorbed (zennit's ZPlus keeps b⁺), stabiliser 1e-6 everywhere
    ("convolution", rules.ZPlus(bias="absorb", epsilon=1e-6)),
    ("linear", rules.Epsilon(1e-6)),
    ("addition", rules.Addition("proportional", epsilon=1e-6)),
]


def score_of_nine(y: Tensor) -> Tensor:
    return y[:, 9].abs()


def test_fashion_net_names_447_of_the_first_500_images(shared: Path, fashion: Any) -> None:
    images, labels, _ = fashion
    with torch.no_grad():
        found = fashion_net(shared)(images).argmax(1)
    assert int((found == labels).sum()) == 447  # 89.4 %; it is 89.6 % of the first 5000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fashion_heatmap_and_inner_relevance_are_the_published_ones(
    shared: Path, fashion: Any, dtype: torch.dtype
) -> None:
    images, _, reference = fashion
    net = fashion_net(shared).to(dtype)
    found = relprop.explain(
        net, images[:1].to(dtype), target=score_of_nine, rules=relprop.Composite(CONCEPTS)
    )
    # 1.4e-5 and 2.1e-5: zennit leaves the variance's 1e-5 in a batch normalisation it has merged (next test)
    assert relative(found.relevance[:, 0], reference["heatmaps"][:1]) < 1.5e-5
    assert relative(found.at("conv1"), reference["conv1_relevances"][:1]) < 2.2e-5


def test_fashion_heatmap_is_the_published_one_more_closely_in_zennits_merge(
    shared: Path, fashion: Any
) -> None:
    """Merged weights, then a batch normalisation that divides by √(1 + 1e-5) and passes relevance."""
    images, _, reference = fashion
    net = fashion_net(shared).double()
    pairs = ((net.conv1, net.bn1), (net.conv2, net.bn2), (net.parallel[0], net.parallel[1]))
    with torch.no_grad():
        for convolution, norm in pairs:
            factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            bias = 0.0 if convolution.bias is None else convolution.bias
            convolution.weight.mul_(factor[:, None, None, None])
            convolution.bias = nn.Parameter((bias - norm.running_mean) * factor + norm.bias)
            norm.reset_parameters()
    composite = relprop.Composite([*CONCEPTS, ("batch_norm", rules.Pass())], fold=False)
    found = relprop.explain(net, images[:1].double(), target=score_of_nine, rules=composite)
    assert relative(found.relevance[:, 0], reference["heatmaps"][:1]) < 8e-6
    assert relative(found.at("conv1"), reference["conv1_relevances"][:1]) < 1.1e-5


class OneBranch(nn.Module):
    """The network with the relevance of one branch cut off: the other summand is handed in from outside."""

    def __init__(self, net: nn.Module, keep: str) -> None:
        super().__init__()
        self.net, self.keep = net, keep

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        net = self.net
        if self.keep == "parallel":
            both = F.relu(other + net.parallel(x))
        else:
            both = F.relu(net.bn2(net.conv2(F.relu(net.bn1(net.conv1(x))))) + other)
        return net.linear2(F.relu(net.linear1(F.max_pool2d(both, 2).flatten(1))))


def test_fashion_heatmaps_of_one_branch_alone_are_the_published_ones(shared: Path, fashion: Any) -> None:
    """Conditions 2 (nothing through conv2) and 4 (nothing through parallel.0): together condition 1."""
    images, _, reference = fashion
    net = fashion_net(shared).double().eval()
    x = images[:1].double()
    with torch.no_grad():
        main, parallel = net.bn2(net.conv2(F.relu(net.bn1(net.conv1(x))))), net.parallel(x)
    composite = relprop.Composite(CONCEPTS)
    maps = []
    for keep, other, row in (("parallel", main, 1), ("main", parallel, 3)):
        cut = OneBranch(net, keep).eval()
        found = relprop.explain(cut, (x, other), target=score_of_nine, rules=composite).relevance[0]
        assert relative(found[:, 0], reference["heatmaps"][row][None]) < 2e-5
        maps.append(found)
    whole = relprop.explain(net, x, target=score_of_nine, rules=composite).relevance
    assert relative(maps[0] + maps[1], whole) < 1e-13


def test_the_published_fashion_heatmaps_add_up_over_conditions(fashion: Any) -> None:
    _, _, reference = fashion
    heatmaps, channels = reference["heatmaps"].double(), reference["channel_heatmaps"].double()
    size = heatmaps[0].abs().max()
    assert (heatmaps[1] + heatmaps[3] - heatmaps[0]).abs().max() / size < 1e-6
    assert (channels.sum(0) - heatmaps[3]).abs().max() / size < 1e-6
    assert (channels[2] + heatmaps[1] - heatmaps[2]).abs().max() / size < 1e-6
    assert (channels[[1, 2, 3]].sum(0) - heatmaps[4]).abs().max() / size < 1e-6


# --- gait


@pytest.fixture(scope="module")
def gait(shared: Path) -> tuple[Tensor, Tensor, Tensor, dict[str, np.ndarray], dict[str, np.ndarray]]:
    data = load(shared / "gait/clinical_grf.npz")
    force = torch.from_numpy(data["force"])
    low, high = force.amin((0, 1)), force.amax((0, 1))
    labels, fold = torch.from_numpy(data["target"]).long(), torch.from_numpy(data["fold"]).long()
    models = load(shared / "gait/clinical_models.npz")
    relevance = load(shared / "gait/clinical_relevance.npz")
    return (force - low) / (high - low), labels, fold, models, relevance


class GaitNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(1, 24, 8, 2), nn.Conv1d(24, 32, 8, 2)
        self.conv3, self.linear = nn.Conv1d(32, 48, 6, 3), nn.Linear(2304, 2)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = F.relu(convolution(x))
        return self.linear(x.flatten(1))


def of_fold(models: dict[str, np.ndarray], prefix: str, net: nn.Module, fold: int) -> nn.Module:
    net.load_state_dict(
        {name: torch.from_numpy(models[f"{prefix}.{name}"][fold]) for name in net.state_dict()}
    )
    return net.double().eval()


def test_gait_networks_meet_their_ten_published_accuracies(gait: Any) -> None:
    x, labels, fold, models, _ = gait
    signal = x.transpose(1, 2).flatten(1)[:, None]
    found = []
    for k in range(10):
        net, held_out = of_fold(models, "cnn", GaitNet().double(), k), fold == k
        with torch.no_grad():
            found.append(float((net(signal[held_out]).argmax(1) == labels[held_out]).double().mean()))
    assert found == pytest.approx(models["cnn.published_accuracy"].tolist(), abs=1e-12)
    assert sum(found) / 10 == pytest.approx(0.8606, abs=5e-5)


@pytest.mark.parametrize("kind", ["linear_sgd", "linear_svm"])
def test_gait_linear_models_have_their_published_relevance(gait: Any, kind: str) -> None:
    """Start: the true class's score. ε 1e-5, bias in the denominator. The published arrays are float32."""
    x, labels, fold, models, reference = gait
    for k in range(10):
        net, held_out = of_fold(models, kind, nn.Linear(606, 2).double(), k), fold == k
        found = relprop.explain(
            net, x[held_out].flatten(1), target=labels[held_out], rules=rules.Epsilon(1e-5)
        )
        np.testing.assert_allclose(found.output, reference[f"{kind}.output"][held_out], atol=1e-12, rtol=0)
        expected = torch.from_numpy(reference[f"{kind}.relevance_epsilon"])[held_out].flatten(1)
        assert float((found.relevance - expected).abs().max()) < 2e-8


@pytest.mark.parametrize("kind", ["linear_sgd", "linear_svm"])
def test_gait_linear_models_have_their_published_box_relevance(gait: Any, kind: str) -> None:
    """Box rule with the bounds of the training trials; 728 of 970 trials lie within them."""
    x, labels, fold, models, reference = gait
    inside_count = 0
    for k in range(10):
        net, held_out = of_fold(models, kind, nn.Linear(606, 2).double(), k), fold == k
        seen = x[(fold != k) & (fold != (k + 1) % 10)].flatten(1)
        low, high = seen.amin(0), seen.amax(0)
        trials = x[held_out].flatten(1)
        inside = ((trials >= low) & (trials <= high)).all(1)
        inside_count += int(inside.sum())
        rule = rules.ZBox(low=low, high=high, epsilon=0.0)
        found = relprop.explain(net, trials[inside], target=labels[held_out][inside], rules=rule)
        expected = torch.from_numpy(reference[f"{kind}.relevance_epsilon_zb"])[held_out].flatten(1)
        assert float((found.relevance - expected[inside]).abs().max()) < 3e-9
        with pytest.raises(relprop.InvalidInput, match="leaves the bounds"):
            relprop.explain(net, trials, target=labels[held_out], rules=rule)
        everything = box_by_hand(net, trials, labels[held_out], low, high)
        assert float((everything - expected).abs().max()) < 3e-9
    assert inside_count == 728


def box_by_hand(net: nn.Linear, x: Tensor, target: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The box rule outside its bounds: LRP-0 on x W − l W⁺ − h W⁻, a linear layer of (x, l, h), summed."""
    weight = net.weight.detach()
    wide = nn.Linear(3 * x.shape[1], 2, bias=False).double().eval()
    wide.load_state_dict({"weight": torch.cat([weight, -weight.clamp(min=0), -weight.clamp(max=0)], 1)})
    inputs = torch.cat([x, low.expand_as(x), high.expand_as(x)], 1)
    with torch.no_grad():
        start = F.one_hot(target, 2) * net(x) / wide(inputs)  # the walk starts at the true score
    return relprop.explain(wide, inputs, start, rules.Epsilon(0.0)).relevance.reshape(len(x), 3, -1).sum(1)
