"""Images run through convolutional networks with their channels last in memory: faster, and nothing else."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop.explain import images
from relprop.explain.captured import captured_graph

PRESETS = (
    "auto",
    "epsilon",
    "epsilon_plus_flat",
    "epsilon_alpha2_beta1",
    "deep_taylor",
    "zennit/epsilon_gamma_box",
    "innvestigate/lrp_sequential_preset_a",
    "captum/default",
    "lrp_toolbox/alpha2_beta1",
)


class Net(nn.Module):
    """Convolutions with and without groups and padding, norms, poolings, sums, joins, a view of values in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c, self.up = nn.Conv2d(8, 8, 3, padding="same"), nn.ConvTranspose2d(16, 4, 2, stride=2)
        self.norm, self.groups = nn.BatchNorm2d(8), nn.GroupNorm(2, 8)
        self.most, self.mean = nn.MaxPool2d(2), nn.AvgPool2d(3)
        self.head, self.last = nn.Linear(4 * 16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 12, 12) to (B, 5)."""
        y = torch.relu(self.norm(self.a(x)))
        y = nn.functional.relu6(self.b(y) + y)
        z = self.most(self.groups(self.c(y)))
        y = self.up(torch.cat([z, self.most(y)], 1)).clamp(min=0)
        y = self.mean(y)
        return self.last(torch.relu(self.head(y.view(y.shape[0], -1))))


def net() -> nn.Module:
    torch.manual_seed(3)
    return Net().eval()


def pictures(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def seen_of(model: nn.Module, x: Tensor) -> frozenset[str]:
    return captured_graph(model, (x,), {}, True).images


def assert_close(one: Any, other: Any, loose: float = 1e-4) -> None:
    scale = float(other.abs().max())
    assert torch.allclose(one, other, rtol=0, atol=loose * scale)


@pytest.mark.parametrize("rules", PRESETS)
def test_the_order_in_memory_changes_no_relevance(rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("relprop.engine.step"), "CACHED", 40)
    exact = relprop.explain(net().double(), pictures().double(), 1, rules)
    model = net()
    assert seen_of(model, pictures())
    found = relprop.explain(model, pictures(), 1, rules)
    assert_close(found.relevance, exact.relevance.float())
    assert_close(found.at("a"), exact.at("a").float())
    several = relprop.Explainer(model, rules).explain_targets(pictures(1), [1, 2, 3])
    assert_close(several[0].relevance, found.relevance[:1])
    assert found.audit is not None and exact.audit is not None
    for own, other in zip(found.audit.entries, exact.audit.entries, strict=True):
        assert own.absorbed.keys() == other.absorbed.keys()
        for reason, amount in own.absorbed.items():
            assert torch.allclose(amount, other.absorbed[reason], rtol=1e-3, atol=1e-4)


def test_everything_a_user_gets_lies_in_the_order_of_its_dimensions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    x = pictures()
    found = relprop.explain(model, x, lambda y: y[:, 0].sum((1, 2)), "epsilon")
    assert seen_of(model, x) and x.is_contiguous() and model[0].weight.is_contiguous()
    for values in (found.relevance, found.output, found.at("0")):
        assert values.is_contiguous()


def test_a_model_captured_with_one_order_takes_the_other() -> None:
    x = pictures().double()
    explainer = relprop.Explainer(net().double(), "epsilon_plus")
    last = x.contiguous(memory_format=torch.channels_last)
    own, other = explainer(x, 1).relevance, explainer(last, 1).relevance
    assert torch.allclose(own, other, rtol=0, atol=1e-12) and other.is_contiguous()


class Strided(nn.Module):
    """Looks at how its values lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 2, 2) to (B, 3)."""
        y = self.conv(x)
        return self.last(torch.as_strided(y, (y.shape[0], 8), (16, 1)))


def test_values_stay_as_they_lie_where_an_operation_looks_at_that() -> None:
    torch.manual_seed(0)
    model, x = Strided().eval(), torch.randn(2, 3, 2, 2)
    assert not seen_of(model, x)
    found = relprop.explain(model, x, 1, "epsilon")
    exact = relprop.explain(Strided().double().eval().requires_grad_(False), x.double(), 1, "epsilon")
    assert found.output.shape == exact.output.shape
    assert_close(found.score, model(x)[:, 1].detach())


class Turned(nn.Module):
    """A view by another tensor's shape, and one of pairs of real numbers as complex ones."""

    def __init__(self, pairs: bool) -> None:
        super().__init__()
        self.conv, self.last, self.pairs = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 3), pairs

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 8, 8) to (B, 3)."""
        y = torch.relu(self.conv(x))
        if self.pairs:
            turned = torch.view_as_complex(y.unflatten(3, (4, 2))) * torch.tensor(0.6 + 0.8j)
            return self.last(torch.view_as_real(turned).flatten(1))
        return self.last(y.view_as(torch.zeros(x.shape[0], 256)))


@pytest.mark.parametrize("pairs", [False, True])
def test_views_of_values_in_any_order_are_explained(pairs: bool) -> None:
    torch.manual_seed(0)
    model, x = Turned(pairs).eval(), torch.randn(2, 3, 8, 8)
    found = relprop.explain(model, x, 1, "epsilon")
    assert_close(found.score, model(x)[:, 1].detach())
    if not pairs:  # complex numbers of double precision are other operations
        assert_close(
            found.relevance, relprop.explain(model.double(), x.double(), 1, "epsilon").relevance.float()
        )


def test_a_callable_target_gets_the_output_as_the_model_gives_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    assert seen_of(model, pictures())
    found = relprop.explain(model, pictures(), lambda y: y.view(y.shape[0], -1).sum(1), "epsilon")
    assert_close(found.score, model(pictures()).detach().flatten(1).sum(1))


@pytest.mark.parametrize("method", ["lrp", "gradient_x_input", "integrated_gradients"])
def test_every_method_takes_images_with_their_channels_last(method: str) -> None:
    explainer, x = relprop.Explainer(net(), method=method), pictures()
    own = explainer(x, 1).relevance
    assert_close(explainer(x.contiguous(memory_format=torch.channels_last), 1).relevance, own)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 2)), pictures()),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(200, 2)), pictures()[:, :1]),
        (nn.Sequential(nn.Conv1d(3, 2, 3), nn.Flatten(), nn.Linear(20, 2)), pictures()[:, :, 0]),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(200, 2)).double(), pictures().double()),
    ],
)
def test_only_images_of_several_channels_in_single_precision_are_laid_out_anew(
    model: nn.Module, x: Tensor
) -> None:
    assert not seen_of(model.eval(), x)


def test_a_graph_that_fails_with_channels_last_runs_as_the_values_are_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    laid_out = images.with_channels_last

    def wrong(values: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
        return {n: v + 1 if n in names else v for n, v in laid_out(values, names).items()}

    monkeypatch.setattr(importlib.import_module("relprop.explain.captured"), "with_channels_last", wrong)
    model = net()
    assert not seen_of(model, pictures())
    assert_close(relprop.explain(model, pictures(), 1, "epsilon").score, model(pictures())[:, 1].detach())
