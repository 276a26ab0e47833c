"""Norms, and scales and shifts of channels, that are written out are explained as the operations that they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop.engine.norms import written_norm

Norm = Callable[[Tensor, Tensor, Tensor], Tensor]
EPS = 1e-5


def by_squares(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    m = x.mean(-1, keepdim=True)
    v = ((x - m) ** 2).mean(-1, keepdim=True)
    return (x - m) / torch.sqrt(v + EPS) * w + b


def by_var(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    v = x.var(-1, keepdim=True, unbiased=False)
    return b + w * ((x - x.mean(-1, keepdim=True)) * torch.rsqrt(v + EPS))


def by_var_mean(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    v, m = torch.var_mean(x, (-1,), keepdim=True, correction=0)
    return torch.addcmul(b, w, (x - m) * (v + EPS).pow(-0.5))


def by_sums(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    m = x.sum(2, keepdim=True) / 8
    y = x - m
    return y * (1 / (torch.sum(y * y, 2, keepdim=True) / 8 + EPS) ** 0.5) * w + b


def by_moments(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    m = x.mean(-1, keepdim=True)
    v = x.square().mean(-1, keepdim=True) - m * m
    factor = torch.rsqrt(v + EPS) * w
    return x * factor + (b - m * factor)


def by_constants(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = torch.sub(x, x.mean(-1, keepdim=True))
    two = torch.tensor(2.0, dtype=x.dtype)
    v = torch.pow(y, two).mean(-1, keepdim=True) + torch.tensor(EPS, dtype=x.dtype)
    return torch.div(y, torch.sqrt(v)) * w + b


def by_dropped_spread(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = x - x.mean(2).unsqueeze(2)
    return y / (x.var(-1).unsqueeze(-1) * (7 / 8) + EPS).sqrt() * w + b


def layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, (8,), w, b, EPS)


def rms_by_rsqrt(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS))


def rms_by_division(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return x / ((x * x).mean(-1, keepdim=True) + EPS).sqrt() * w


def rms(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, (8,), w, EPS)


SPELLED: list[tuple[Norm, Norm]] = [
    *((f, layer) for f in (by_squares, by_var, by_var_mean, by_sums, by_moments, by_constants)),
    (by_dropped_spread, layer),
    (rms_by_rsqrt, rms),
    (rms_by_division, rms),
]


class Network(nn.Module):
    """A norm of 5 tokens of width 8 between two linear layers."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.a, self.b = norm, nn.Linear(6, 8), nn.Linear(40, 3)
        self.weight, self.bias = nn.Parameter(1 + 0.3 * torch.randn(8)), nn.Parameter(torch.randn(8))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 5, 6) to (B, 3)."""
        result: Tensor = self.b(self.norm(self.a(x), self.weight, self.bias).flatten(1))
        return result


@pytest.mark.parametrize("spelled, named", SPELLED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("rules", ["auto", "epsilon", "attn_lrp", "cp_lrp", "lrp_half", "detached"])
def test_a_written_norm_is_explained_as_the_named_one(spelled: Norm, named: Norm, rules: str) -> None:
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    way = rules if rules != "detached" else relprop.Composite([("norm", relprop.rules.Epsilon())])
    found, expected = (relprop.explain(Network(norm), x, 1, way) for norm in (spelled, named))
    assert torch.allclose(found.output, expected.output, atol=1e-9)
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-6, atol=1e-9)
    assert found.audit is not None and found.audit.closes


def test_what_is_written_becomes_one_operation() -> None:
    for norm, _ in SPELLED[:6]:
        explainer = relprop.Explainer(Network(norm), "epsilon")
        explainer(torch.randn(2, 5, 6, dtype=torch.float64), 0)
        names = [row.operation for row in explainer.plan if row.operation.startswith("aten.l")]
        assert names == ["aten.linear.default", "aten.layer_norm.default", "aten.linear.default"], norm


def by_deviation(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return w * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 0.01) + b


def of_channels(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    h = x.transpose(1, 2)
    m = h.mean(1, keepdim=True)
    h = (h - m) / torch.sqrt((h - m).pow(2).mean(1, keepdim=True) + EPS)
    return (w[:, None] * h + b[:, None]).transpose(1, 2)


def test_a_norm_by_the_deviation_is_one() -> None:
    x, model = torch.randn(4, 5, 6, dtype=torch.float64), Network(by_deviation)
    explainer = relprop.Explainer(model, "attn_lrp")
    found = explainer(x, 1)
    assert torch.allclose(found.output, model(x))
    assert "relprop.written_norm" in [row.operation for row in explainer.plan]
    last = relprop.explain(
        model.b, model.norm(model.a(x), model.weight, model.bias).flatten(1), 1, "attn_lrp"
    )
    assert torch.allclose(found.at("a").flatten(1), last.relevance)  # the norm is an identity for relevance


def test_a_norm_of_channels_is_explained_as_that_of_the_last_dimension() -> None:
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    for rules in ("auto", relprop.Composite([("norm", relprop.rules.Epsilon())])):
        found, expected = (relprop.explain(Network(norm), x, 1, rules) for norm in (of_channels, layer))
        assert torch.allclose(found.relevance, expected.relevance, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("centred", [True, False])
def test_the_operation_is_what_it_says(centred: bool) -> None:
    x, w, b = torch.randn(3, 4, 5), torch.randn(4, 1), torch.randn(4, 1)
    found = written_norm(x, w, b, (1,), centred, 4 / 3, 0.01, 0.1)
    y = x - x.mean(1, keepdim=True) if centred else x
    spread = y.square().sum(1, keepdim=True) / 3
    assert torch.allclose(found, y / ((spread + 0.01).sqrt() + 0.1) * w + b, atol=1e-6)


def without_root(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + EPS) * w + b


def of_others(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = x.roll(1, 1)
    return (x - x.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True) + EPS).sqrt() * w + b


def half_centred(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (x - 0.5 * x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + EPS).sqrt() * w + b


def weighted(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    m = (x * w).mean(-1, keepdim=True)
    return (x - m) / (x.var(-1, keepdim=True) + EPS).sqrt() * w + b


def along_another_dimension(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.var(-1, keepdim=True) + EPS).sqrt() * w + b


@pytest.mark.parametrize(
    "norm",
    [without_root, of_others, half_centred, weighted, along_another_dimension],
    ids=lambda f: f.__name__,
)
def test_other_quotients_stay_what_they_are(norm: Norm) -> None:
    x, model = torch.randn(3, 5, 6, dtype=torch.float64), Network(norm)
    explainer = relprop.Explainer(model, "auto")
    found = explainer(x, 1)
    assert torch.allclose(found.output, model(x))
    assert not [row.operation for row in explainer.plan if row.operation.endswith(("_norm", "_norm.default"))]


class Pictures(nn.Module):
    """A group norm of 8 channels in 2 groups between two convolutions."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.a, self.b = norm, nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 2)
        self.weight, self.bias = nn.Parameter(1 + 0.3 * torch.randn(8)), nn.Parameter(torch.randn(8))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3)."""
        result: Tensor = self.b(self.norm(self.a(x), self.weight, self.bias)).mean((2, 3))
        return result


def group(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return nn.functional.group_norm(x, 2, w, b, EPS)


def group_by_views(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = x.reshape(x.shape[0], 2, -1)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + EPS).sqrt()
    return y.reshape(x.shape) * w.view(1, -1, 1, 1) + b.view(1, -1, 1, 1)


def group_by_parts(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = x.view(x.shape[0], 2, 4, *x.shape[2:])
    v, m = torch.var_mean(y, (2, 3, 4), keepdim=True, unbiased=False)
    return b[:, None, None] + ((y - m) * torch.rsqrt(v + EPS)).view_as(x) * w[:, None, None]


def group_by_instances(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = nn.functional.instance_norm(x.reshape(x.shape[0], 2, -1), eps=EPS)
    return y.reshape(x.shape) * w[:, None, None] + b[:, None, None]


def group_by_scaled_instances(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    two, three = x.new_tensor([2.0, 0.5]), x.new_tensor([0.3, -0.3])
    y = nn.functional.instance_norm(x.reshape(x.shape[0], 2, -1), weight=two, bias=three, eps=EPS).reshape(
        x.shape
    )
    factor = two.repeat_interleave(4)[:, None, None]
    shift = three.repeat_interleave(4)[:, None, None] / factor
    return y * (w[:, None, None] / factor) + (b[:, None, None] - shift * w[:, None, None])


@pytest.mark.parametrize(
    "norm",
    [group_by_views, group_by_parts, group_by_instances, group_by_scaled_instances],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("rules", ["auto", "epsilon", "detached"])
def test_a_written_group_norm_is_explained_as_one(norm: Norm, rules: str) -> None:
    x = torch.randn(3, 3, 6, 5, dtype=torch.float64)
    way = rules if rules != "detached" else relprop.Composite([("norm", relprop.rules.Epsilon())])
    found, expected = (relprop.explain(Pictures(f), x, 1, way) for f in (norm, group))
    assert torch.allclose(found.output, expected.output, atol=1e-9)
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-6, atol=1e-9)


def test_a_changed_weight_is_seen() -> None:
    x, model = torch.randn(3, 3, 6, 5, dtype=torch.float64), Pictures(group_by_instances)
    explainer = relprop.Explainer(model, "epsilon")
    explainer(x, 1)
    with torch.no_grad():
        model.bias += 1
    named = Pictures(group)
    named.load_state_dict(model.state_dict())
    assert torch.allclose(explainer(x, 1).relevance, relprop.explain(named, x, 1, "epsilon").relevance)


Running = Callable[[nn.BatchNorm2d, Tensor], Tensor]


def _row(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def frozen(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
    scale = _row(bn.weight) * (_row(bn.running_var) + EPS).rsqrt()
    return x * scale + (_row(bn.bias) - _row(bn.running_mean) * scale)


def by_formula(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
    y = (x - bn.running_mean[:, None, None]) / torch.sqrt(bn.running_var + EPS)[:, None, None]
    return y * bn.weight[:, None, None] + bn.bias[:, None, None]


def by_numbers(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
    scale = bn.weight / torch.sqrt(bn.running_var + EPS)
    shift = bn.bias - bn.running_mean * scale
    return (x * (scale[:, None, None] / 2) - 1.0) * 2 + (shift + 2)[:, None, None]


class Running2d(nn.Module):
    """A normalisation by running statistics between a convolution and the rest."""

    def __init__(self, norm: Running | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.bn = norm, nn.BatchNorm2d(6, eps=EPS)
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 2), nn.Linear(4, 3)
        for values in (*self.bn.parameters(), self.bn.running_mean):
            nn.init.normal_(values)
        nn.init.uniform_(self.bn.running_var, 0.5, 2)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3)."""
        h = self.a(x)
        h = torch.relu(self.bn(h) if self.norm is None else self.norm(self.bn, h))
        result: Tensor = self.c(torch.relu(self.b(h)).mean((2, 3)))
        return result


@pytest.mark.parametrize("norm", [frozen, by_formula, by_numbers], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "rules", ["auto", "epsilon", "epsilon_plus_flat", "epsilon_alpha2_beta1", "unfolded"]
)
def test_a_frozen_batch_norm_is_explained_as_one(norm: Running, rules: str) -> None:
    x = torch.randn(3, 3, 6, 5, dtype=torch.float64)
    way = (
        rules
        if rules != "unfolded"
        else relprop.Composite([("convolution", relprop.rules.ZPlus())], fold=False)
    )
    found, expected = (relprop.explain(Running2d(f), x, 1, way) for f in (norm, None))
    assert torch.allclose(found.output, expected.output)
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-7, atol=1e-10)


class Shifted(nn.Module):
    """A convolution, with what is done to its values behind it."""

    def __init__(self, convolve: Callable[[nn.Conv2d, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolve, self.a, self.b = convolve, nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 3)."""
        result: Tensor = self.b(torch.relu(self.convolve(self.a, x)).mean((2, 3)))
        return result


def _alone(a: nn.Conv2d, x: Tensor) -> Tensor:
    return nn.functional.conv2d(x, a.weight, padding=1)


def test_a_shift_of_each_channel_is_the_bias_of_its_convolution() -> None:
    def spelled(a: nn.Conv2d, x: Tensor) -> Tensor:
        assert a.bias is not None
        return a.bias.view(1, -1, 1, 1) + _alone(a, x)

    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    for rules in ("auto", "epsilon_plus", "epsilon_alpha2_beta1"):
        found, expected = (relprop.explain(Shifted(f), x, 1, rules) for f in (spelled, lambda a, x: a(x)))
        assert torch.allclose(found.relevance, expected.relevance, rtol=1e-9, atol=1e-12)


def _at_each_place(a: nn.Conv2d, x: Tensor) -> Tensor:
    return a(x) * 2 + torch.linspace(-1, 1, 6, dtype=torch.float64)  # along the width


def _scaled(a: nn.Conv2d, x: Tensor) -> Tensor:
    return _alone(a, x) * _row(a.weight.sum((1, 2, 3)))


def _read_twice(a: nn.Conv2d, x: Tensor) -> Tensor:
    h = _alone(a, x)
    return h * _row(a.weight.sum((1, 2, 3))) + _row(a.weight.mean((1, 2, 3))) + torch.relu(h)


@pytest.mark.parametrize("convolve", [_at_each_place, _scaled, _read_twice], ids=lambda f: f.__name__)
def test_what_is_done_otherwise_stays_an_operation_of_its_own(convolve: Callable[..., Tensor]) -> None:
    x, model = torch.randn(3, 3, 6, 6, dtype=torch.float64), Shifted(convolve)
    explainer = relprop.Explainer(model, "epsilon_plus")
    found = explainer(x, 1)
    assert torch.allclose(found.output, model(x))
    assert found.audit is not None and found.audit.closes
    assert "aten.mul.Tensor" in [row.operation for row in explainer.plan]
