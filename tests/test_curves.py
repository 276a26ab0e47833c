"""Functions that are written out are explained as the operations that they are."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import relprop

Curve = Callable[[Tensor], Tensor]


class Written(nn.Module):
    """An activation by its formula."""

    def __init__(self, curve: Curve) -> None:
        super().__init__()
        self.curve = curve

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return self.curve(x)


def gelu_new(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def gelu_fast(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def gelu_halved_last(x: Tensor) -> Tensor:
    return x * (1.0 + torch.erf(x * 0.7071067811865475)) / 2


def gelu_by_erf(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def gelu_by_a_constant(x: Tensor) -> Tensor:
    return x * torch.tensor(0.5, dtype=torch.float64) * (1.0 + torch.erf(x / math.sqrt(2.0)))


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def swish_by_exp(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(nn.functional.softplus(x))


def hard_swish(x: Tensor) -> Tensor:
    return x * nn.functional.relu6(x + 3) / 6


def hard_swish_by_parts(x: Tensor) -> Tensor:
    return x * (nn.functional.relu6(x + 3) / 6)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def hard_sigmoid(x: Tensor) -> Tensor:
    return (x + 3).clamp(0, 6) / 6


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def softplus_by_log1p(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(x))


def elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.exp(x) - 1)


def elu_by_parts(x: Tensor) -> Tensor:
    return nn.functional.relu(x) + torch.expm1(x).clamp(max=0)


def selu(x: Tensor) -> Tensor:
    return 1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * (torch.exp(x) - 1))


def log_sigmoid(x: Tensor) -> Tensor:
    return torch.log(torch.sigmoid(x))


def log_sigmoid_by_softplus(x: Tensor) -> Tensor:
    return -nn.functional.softplus(-x)


def soft_shrink(x: Tensor) -> Tensor:
    return torch.where(x > 0.5, x - 0.5, torch.where(x < -0.5, x + 0.5, 0.0))


SPELLED: list[tuple[Curve, nn.Module]] = [
    (gelu_new, nn.GELU("tanh")),
    (gelu_fast, nn.GELU("tanh")),
    (gelu_halved_last, nn.GELU()),
    (gelu_by_erf, nn.GELU()),
    (gelu_by_a_constant, nn.GELU()),
    (swish, nn.SiLU()),
    (swish_by_exp, nn.SiLU()),
    (mish, nn.Mish()),
    (hard_swish, nn.Hardswish()),
    (hard_swish_by_parts, nn.Hardswish()),
    (sigmoid, nn.Sigmoid()),
    (hard_sigmoid, nn.Hardsigmoid()),
    (softplus, nn.Softplus()),
    (softplus_by_log1p, nn.Softplus()),
    (elu, nn.ELU()),
    (elu_by_parts, nn.ELU()),
    (selu, nn.SELU()),
    (log_sigmoid, nn.LogSigmoid()),
    (log_sigmoid_by_softplus, nn.LogSigmoid()),
    (soft_shrink, nn.Softshrink()),
]


def network(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 8), activation, nn.Linear(8, 3))
    return layers.double().eval()


@pytest.mark.parametrize("spelled, named", SPELLED, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("rules", ["epsilon", "auto", "attn_lrp", "lrp_half", "epsilon_plus"])
def test_a_spelled_activation_is_explained_as_the_named_one(
    spelled: Curve, named: nn.Module, rules: str
) -> None:
    x = 2 * torch.randn(4, 6, dtype=torch.float64)
    model = network(Written(spelled))
    found, expected = relprop.explain(model, x, 1, rules), relprop.explain(network(named), x, 1, rules)
    assert torch.allclose(found.output, model(x), atol=1e-8)
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-5, atol=1e-8)
    assert found.at("1@0").shape == (4, 8)


def another_constant(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.05 * torch.pow(x, 3.0))))


def clamped(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.clamp(-12, 12))


def of_a_neighbour(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.roll(1, -1))


@pytest.mark.parametrize("curve", [another_constant, clamped, of_a_neighbour], ids=lambda f: f.__name__)
def test_other_functions_stay_what_they_are(curve: Curve) -> None:
    explainer = relprop.Explainer(network(Written(curve)), "epsilon")
    explainer(torch.randn(2, 6, dtype=torch.float64))
    names = [row.operation for row in explainer.plan]
    assert "aten.mul.Tensor" in names
    assert not {"aten.gelu.default", "aten.silu.default"} & set(names)


def test_what_else_reads_the_parts_still_gets_them() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            gate = torch.sigmoid(h)
            result: Tensor = self.b(h * gate + gate + 2 * (h * gate))
            return result

    model, x = Both().double().eval(), torch.randn(3, 6, dtype=torch.float64)
    explainer = relprop.Explainer(model, "epsilon")
    found = explainer(x, 1)
    names = [row.operation for row in explainer.plan]
    assert "aten.silu.default" in names and "aten.sigmoid.default" in names
    assert torch.allclose(found.output, model(x))
    assert found.audit is not None and found.audit.closes


class Spelled(nn.Module):
    """A network with one operation of its own in the middle."""

    def __init__(self, middle: Curve, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.middle, self.a, self.b = middle, nn.Linear(6, 8), nn.Linear(width, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 6) to (B, 3)."""
        result: Tensor = self.b(self.middle(self.a(x)))
        return result


@pytest.mark.parametrize("rules", ["epsilon", "auto", "attn_lrp", "cp_lrp", "lrp_all", "lrp_half"])
def test_glu_is_the_product_that_it_is(rules: str) -> None:
    def written(h: Tensor) -> Tensor:
        signal, gate = h.chunk(2, -1)
        return signal * torch.sigmoid(gate)

    x = torch.randn(4, 6, dtype=torch.float64)
    found, expected = (relprop.explain(Spelled(f, 4), x, 1, rules) for f in (nn.functional.glu, written))
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-9, atol=1e-12)


def gated_by_exp(h: Tensor) -> Tensor:
    signal, gate = h.chunk(2, -1)
    return signal / (1 + torch.exp(-gate))


def gated_by_tanh(h: Tensor) -> Tensor:
    signal, gate = h.chunk(2, -1)
    return signal * (0.5 + 0.5 * torch.tanh(gate / 2))


@pytest.mark.parametrize("written", [gated_by_exp, gated_by_tanh], ids=lambda f: f.__name__)
@pytest.mark.parametrize("rules", ["epsilon", "attn_lrp", "cp_lrp", "lrp_all"])
def test_a_written_gate_is_one(written: Curve, rules: str) -> None:
    x, model = torch.randn(4, 6, dtype=torch.float64), Spelled(written, 4)
    found = relprop.explain(model, x, 1, rules)
    expected = relprop.explain(Spelled(nn.functional.glu, 4), x, 1, rules)
    assert torch.allclose(found.output, model(x))
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rules", ["epsilon", "auto", "attn_lrp"])
def test_a_normalised_vector_hands_on_what_it_gets(rules: str) -> None:
    def written(h: Tensor) -> Tensor:
        return h / h.norm(dim=-1, keepdim=True)

    x = torch.randn(4, 6, dtype=torch.float64)
    found, expected = (
        relprop.explain(Spelled(f, 8), x, 1, rules)
        for f in (lambda h: nn.functional.normalize(h, dim=-1), written)
    )
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-9, atol=1e-12)


def softmax_by_exp(x: Tensor) -> Tensor:
    e = torch.exp(x)
    return e / e.sum(-1, keepdim=True)


def softmax_less_the_largest(x: Tensor) -> Tensor:
    e = torch.exp(x - x.max(1, keepdim=True).values)
    return e / torch.sum(e, dim=-1, keepdim=True)


def softmax_less_a_constant(x: Tensor) -> Tensor:
    e = (x - x.amax(-1, keepdim=True).detach()).exp()
    return e / e.sum(1, keepdim=True)


def softmax_by_a_dropped_dimension(x: Tensor) -> Tensor:
    e = torch.exp(x)
    return e / e.sum(1)[:, None]


def softmax_by_log_softmax(x: Tensor) -> Tensor:
    return torch.log_softmax(x, 1).exp()


def softmax_by_log_sum_exp(x: Tensor) -> Tensor:
    return torch.exp(x - torch.logsumexp(x, -1, keepdim=True))


def softmax_by_its_logarithm(x: Tensor) -> Tensor:
    m = x.amax(-1, keepdim=True)
    return torch.exp(x - (m + (x - m).exp().sum(-1, keepdim=True).log()))


@pytest.mark.parametrize(
    "written",
    [
        softmax_by_exp,
        softmax_less_the_largest,
        softmax_less_a_constant,
        softmax_by_a_dropped_dimension,
        softmax_by_log_softmax,
        softmax_by_log_sum_exp,
        softmax_by_its_logarithm,
    ],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("rules", ["epsilon", "auto", "attn_lrp", "cp_lrp"])
def test_a_written_softmax_is_one(written: Curve, rules: str) -> None:
    x, model = torch.randn(4, 6, dtype=torch.float64), Spelled(written, 8)
    found = relprop.explain(model, x, 1, rules)
    expected = relprop.explain(Spelled(lambda h: torch.softmax(h, -1), 8), x, 1, rules)
    assert torch.allclose(found.output, model(x))
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-9, atol=1e-12)


def log_of_the_sum(x: Tensor) -> Tensor:
    return torch.log(torch.exp(x).sum(1))


def log_of_the_kept_sum(x: Tensor) -> Tensor:
    return torch.log(torch.exp(x).sum(1, keepdim=True)).squeeze(1)


def largest_and_log_of_the_rest(x: Tensor) -> Tensor:
    m = x.max(-1, keepdim=True).values
    return (torch.log(torch.sum(torch.exp(x - m), -1, keepdim=True)) + m).squeeze(-1)


@pytest.mark.parametrize(
    "written", [log_of_the_sum, log_of_the_kept_sum, largest_and_log_of_the_rest], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("rules", ["epsilon", "auto", "attn_lrp", "cp_lrp"])
def test_a_written_logsumexp_is_one(written: Curve, rules: str) -> None:
    def two(log_sum_exp: Curve) -> Curve:
        return lambda h: torch.stack([log_sum_exp(h[:, :4]), log_sum_exp(h[:, 4:])], 1)

    x, model = torch.randn(4, 6, dtype=torch.float64), Spelled(two(written), 2)
    found = relprop.explain(model, x, 1, rules)
    expected = relprop.explain(Spelled(two(lambda h: torch.logsumexp(h, 1)), 2), x, 1, rules)
    assert torch.allclose(found.output, model(x))
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-9, atol=1e-12)
    assert (
        found.relevance.abs().max() > 1e-3
    )  # under cp_lrp, too: its weights are constants, and it hands on by them


def test_a_quotient_by_the_sum_of_others_is_no_softmax() -> None:
    def other(h: Tensor) -> Tensor:
        return torch.exp(h) / torch.exp(h - 1).sum(-1, keepdim=True)

    explainer = relprop.Explainer(Spelled(other, 8), "epsilon")
    explainer(torch.randn(4, 6, dtype=torch.float64), 1)
    assert "aten.softmax.int" not in [row.operation for row in explainer.plan]
