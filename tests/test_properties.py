"""Laws that hold for every network and every rule, without reference values, on the networks of `zoo.py`.

The numbers are those of the table of metamorphic properties in the methods sheet, section 12.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import relprop
from relprop import Composite, rules
from zoo import ZOO, Case, randomise, seeded

pytestmark = pytest.mark.filterwarnings("ignore::relprop.RelevanceWarning")

EXACT = 1e-12  # other order of a few sums
REORDERED = 1e-10  # other operations for the same function
BATCHED = 1e-9  # other kernels for other batch sizes

LRP0 = Composite(
    [
        ("weighted", rules.Epsilon(0.0)),
        ("batch_norm", rules.Epsilon(0.0)),
        ("pool", rules.Epsilon(0.0)),
        ("addition", rules.Addition(epsilon=0.0)),
    ],
    name="lrp0",
)
RULES: dict[str, Any] = {
    "auto": "auto",
    "epsilon": "epsilon",
    "epsilon_plus_flat": "epsilon_plus_flat",
    "lrp0": LRP0,
    "large_epsilon": rules.Epsilon(0.1),
    "gamma": rules.Gamma(0.5),
    "alpha2beta1": rules.AlphaBeta(2.0, 1.0),
    "zplus": rules.ZPlus(),
    "wsquare": rules.WSquare(),
    "distribute": rules.Epsilon(0.1, bias="distribute"),
}
every_network = pytest.mark.parametrize("name", ZOO)
every_rule = pytest.mark.parametrize("rule", RULES)


@functools.cache
def network(name: str, seed: int = 0) -> Case:
    """A network of the zoo and its input, built once (and so captured once)."""
    return ZOO[name](seed)


def maxrel(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    assert a.shape == b.shape
    assert bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())
    return float((a - b).abs().max() / max(float(a.abs().max()), float(b.abs().max()), 1e-300))


def relevance(module: nn.Module, x: Tensor, rule: Any = "epsilon", target: Any = None) -> Tensor:
    return relprop.explain(
        module, x, target, RULES.get(rule, rule) if isinstance(rule, str) else rule
    ).relevance


def same_bits(a: relprop.Explanation, b: relprop.Explanation) -> bool:
    """Whether two explanations are equal to the last bit: relevance, output, score and every account."""
    pairs = [(a.relevance, b.relevance), (a.output, b.output), (a.score, b.score), (a.audit.gap, b.audit.gap)]
    for mine, other in zip(a.audit.entries, b.audit.entries, strict=True):
        assert mine.name == other.name and mine.absorbed.keys() == other.absorbed.keys()
        pairs += [(mine.received, other.received), (mine.passed, other.passed)]
        pairs += [(mine.absorbed[reason], other.absorbed[reason]) for reason in mine.absorbed]
    return all(torch.equal(mine, other) for mine, other in pairs)


# --- 1: a module used several times is as good as copies of it


class Repeated(nn.Module):
    def __init__(self, layer: nn.Module, head: nn.Module, how: str, copies: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(3)] if copies else [layer] * 3)
        self.head, self.how = copy.deepcopy(head), how

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.layers
        if self.how == "chain":
            x = c(F.relu(b(F.relu(a(x)))))
        elif self.how == "residual":
            x = x + b(F.relu(a(x)))
            x = x + c(F.relu(x))
        else:
            x = torch.cat([a(x), F.relu(b(F.relu(x)))], 1)
            x = x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :]
        return self.head(x.flatten(1))


@every_rule
@pytest.mark.parametrize("how", ["chain", "residual", "branches"])
@pytest.mark.parametrize("kind", ["linear", "convolution", "normalised"])
def test_a_module_used_again_is_as_good_as_a_copy(kind: str, how: str, rule: str) -> None:
    once, copies, x = repeated(kind, how)
    assert maxrel(relevance(once, x, rule), relevance(copies, x, rule)) <= EXACT


@functools.cache
def repeated(kind: str, how: str) -> tuple[nn.Module, nn.Module, Tensor]:
    with seeded(1):
        layer: nn.Module = nn.Linear(6, 6)
        if kind != "linear":
            layer = nn.Conv2d(2, 2, 3, padding=1)
        if kind == "normalised":
            layer = nn.Sequential(nn.BatchNorm2d(2), layer, nn.BatchNorm2d(2))
        x = torch.randn(2, 6) if kind == "linear" else torch.randn(2, 2, 4, 4)
        layer, head = randomise(layer), randomise(nn.Linear(6 if kind == "linear" else 32, 3))
    return Repeated(layer, head, how, False).eval(), Repeated(layer, head, how, True).eval(), x


# --- 2: nothing of one call is left in the next


@every_network
@every_rule
def test_the_same_call_gives_the_same_bits_whatever_came_between(name: str, rule: str) -> None:
    module, x = network(name)
    explainer = relprop.Explainer(module, RULES[rule])
    first = explainer(x)
    explainer(x.flip(0) * 0.7, target=1)
    explainer(x[:1], target=2)
    relevance(module, x + 0.1, "epsilon_plus")
    assert same_bits(first, explainer(x))
    assert same_bits(first, relprop.explain(module, x, rules=RULES[rule]))


# --- 3: one function has many spellings


class Spelling(nn.Module):
    """Some layers, and a function of them and the input."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _written(x: Tensor, part: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :1] = part
    y[:, 1:] = x[:, 1:]
    return y


def _stacked(*parts: Tensor) -> Tensor:
    stacked = torch.stack(parts, 1)
    return stacked.reshape(stacked.shape[0], -1, *stacked.shape[3:])


def _taken(x: Tensor) -> Tensor:
    torch.relu_(x)
    return x


def _in_place_sum(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


def _unfolded(x: Tensor) -> Tensor:
    return x[:, :, :4, :4].unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)


SPELLINGS: dict[str, list[Callable[[Any, Tensor], Tensor]]] = {
    "relu": [
        lambda m, x: m.last(m.relu(m.conv(x)).flatten(1)),
        lambda m, x: m.last(F.relu(m.conv(x)).flatten(1)),
        lambda m, x: m.last(m.conv(x).relu().flatten(1)),
        lambda m, x: m.last(torch.relu(m.conv(x)).flatten(1)),
        lambda m, x: m.last(m.conv(x).clamp_min(0).flatten(1)),
        lambda m, x: m.last(m.conv(x).clamp(min=0).flatten(1)),
        lambda m, x: m.last(F.threshold(m.conv(x), 0.0, 0.0).flatten(1)),
        lambda m, x: m.last(F.relu(m.conv(x), inplace=True).flatten(1)),
        lambda m, x: m.last(_taken(m.conv(x)).flatten(1)),
        lambda m, x: m.last(m.conv(x).relu_().flatten(1)),
        lambda m, x: m.last(F.leaky_relu(m.conv(x), 0.0).flatten(1)),
        lambda m, x: m.last((lambda z: torch.where(z > 0, z, 0.0))(m.conv(x)).flatten(1)),
    ],
    "linear": [
        lambda m, x: m.last(F.relu(m.linear(x.flatten(1)))),
        lambda m, x: m.last(F.relu(F.linear(x.flatten(1), m.linear.weight, m.linear.bias))),
        lambda m, x: m.last(F.relu(x.flatten(1) @ m.linear.weight.T + m.linear.bias)),
        lambda m, x: m.last(F.relu(m.linear.bias + x.flatten(1).matmul(m.linear.weight.t()))),
        lambda m, x: m.last(F.relu(torch.addmm(m.linear.bias, x.flatten(1), m.linear.weight.T))),
        lambda m, x: m.last(F.relu(torch.einsum("bi,oi->bo", x.flatten(1), m.linear.weight) + m.linear.bias)),
        lambda m, x: m.last(F.relu((m.linear.weight @ x.flatten(1).T).T + m.linear.bias)),
    ],
    "flatten": [
        lambda m, x: m.last(m.flatten(m.conv(x))),
        lambda m, x: m.last(torch.flatten(m.conv(x), 1)),
        lambda m, x: m.last(m.conv(x).reshape(x.shape[0], -1)),
        lambda m, x: m.last(m.conv(x).view(x.size(0), 50)),
        lambda m, x: m.last(m.conv(x).permute(1, 2, 3, 0).reshape(50, -1).T),
        lambda m, x: m.last(m.conv(x).flatten(2).flatten(1)),
    ],
    "sum": [
        lambda m, x: m.last((m.conv(x) + x).flatten(1)),
        lambda m, x: m.last(torch.add(m.conv(x), x).flatten(1)),
        lambda m, x: m.last(_in_place_sum(m.conv(x), x).flatten(1)),
        lambda m, x: m.last(m.conv(x).add_(x).flatten(1)),
        lambda m, x: m.last((x + m.conv(x)).flatten(1)),
        lambda m, x: m.last((m.conv(x) - (-x)).flatten(1)),
        lambda m, x: m.last(torch.add(m.conv(x), x / 2, alpha=2).flatten(1)),
        lambda m, x: m.last(sum([m.conv(x), x]).flatten(1)),
    ],
    "concatenation": [
        lambda m, x: m.wide(torch.cat([m.conv(x), x], 1).flatten(1)),
        lambda m, x: m.wide(_stacked(m.conv(x), x).flatten(1)),
        lambda m, x: m.wide(torch.concat((m.conv(x), x), dim=1).flatten(1)),
        lambda m, x: m.wide(torch.hstack([m.conv(x), x]).flatten(1)),
        lambda m, x: m.wide((F.pad(m.conv(x), (0, 0, 0, 0, 0, 2)) + F.pad(x, (0, 0, 0, 0, 2, 0))).flatten(1)),
    ],
    "maximum": [
        lambda m, x: m.last(F.interpolate(m.pool(F.relu(m.conv(x))), (5, 5)).flatten(1)),
        lambda m, x: m.last(F.interpolate(F.max_pool2d(F.relu(m.conv(x)), 2), (5, 5)).flatten(1)),
        lambda m, x: m.last(
            F.interpolate(F.max_pool2d(F.relu(m.conv(x)), 2, return_indices=True)[0], (5, 5)).flatten(1)
        ),
        lambda m, x: m.last(F.interpolate(_unfolded(F.relu(m.conv(x))).max(-1).values, (5, 5)).flatten(1)),
    ],
    "average": [
        lambda m, x: m.few(F.adaptive_avg_pool2d(F.relu(m.conv(x)), 1).flatten(1)),
        lambda m, x: m.few(F.relu(m.conv(x)).mean((2, 3))),
        lambda m, x: m.few(F.relu(m.conv(x)).mean(3).mean(2)),
        lambda m, x: m.few(F.avg_pool2d(F.relu(m.conv(x)), 5).flatten(1)),
        lambda m, x: m.few(F.relu(m.conv(x)).sum((2, 3)) / 25),
    ],
    "writing": [
        lambda m, x: m.last(_written(m.conv(x), F.relu(x[:, :1])).flatten(1)),
        lambda m, x: m.last(torch.cat([F.relu(x[:, :1]), m.conv(x)[:, 1:]], 1).flatten(1)),
    ],
}
STABILISED = ("average", "linear", ("sum", 7), ("concatenation", 4))
"""Spellings with one more addition, or with another factor in it: ε is added to other numbers."""


def same_by_definition(what: str, index: int, rule: str) -> bool:
    """Whether two spellings are the same for this rule, not only for LRP-0."""
    if what == "linear" and index == 6:  # the bias takes its share in an addition of its own
        return rule in ("lrp0", "epsilon")
    if what == "relu" and index == 11:  # relevance of inactive units goes to the constant 0 in where()
        return rule not in ("wsquare", "distribute")
    return True


@functools.cache
def spelling(what: str, index: int) -> tuple[nn.Module, Tensor]:
    with seeded(3):
        layers = {
            "conv": nn.Conv2d(2, 2, 3, padding=1),
            "relu": nn.ReLU(),
            "linear": nn.Linear(50, 7),
            "flatten": nn.Flatten(),
            "pool": nn.MaxPool2d(2),
            "last": nn.Linear(7 if what == "linear" else 50, 4),
            "wide": nn.Linear(100, 4),
            "few": nn.Linear(2, 4),
        }
        x = torch.randn(2, 2, 5, 5)
        for layer in layers.values():
            randomise(layer)
    return Spelling(SPELLINGS[what][index], **layers).eval(), x


@every_rule
@pytest.mark.parametrize(
    "what, index", [(what, i) for what, forms in SPELLINGS.items() for i in range(1, len(forms))]
)
def test_every_spelling_of_a_function_has_the_same_relevance(what: str, index: int, rule: str) -> None:
    (first, x), (other, _) = spelling(what, 0), spelling(what, index)
    a, b = relevance(first, x, rule, target=1), relevance(other, x, rule, target=1)
    assert torch.allclose(first(x), other(x), rtol=1e-12, atol=1e-12)
    stabilised = rule != "lrp0" and (what in STABILISED or (what, index) in STABILISED)
    if same_by_definition(what, index, rule):
        assert maxrel(a, b) <= (1e-4 if stabilised else REORDERED)
    else:
        assert maxrel(a, b) > 1e-4


def _scaled_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v


def _fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


class Attend(nn.Module):
    def __init__(self, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.attend(self.q(x), self.k(x), self.v(x)).mean(1))


@pytest.mark.parametrize("rule", ["auto", "epsilon", "lrp0"])
def test_fused_attention_is_explicit_attention(rule: str) -> None:
    with seeded(4):
        explicit, x = randomise(Attend(_scaled_attention)).eval(), torch.randn(2, 5, 6)
    fused = Attend(_fused_attention).double().eval()
    fused.load_state_dict(explicit.state_dict())
    assert maxrel(relevance(explicit, x, rule, 1), relevance(fused, x, rule, 1)) <= 1e-6


class Recurrent(nn.Module):
    """An LSTM of one layer, fused or as a loop over its cell's formulas with the joint pre-activation."""

    def __init__(self, loop: bool) -> None:
        super().__init__()
        self.lstm, self.head, self.loop = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3), loop

    def forward(self, x: Tensor) -> Tensor:
        if not self.loop:
            return self.head(self.lstm(x)[0][:, -1])
        w = torch.cat([self.lstm.weight_ih_l0, self.lstm.weight_hh_l0], 1)
        bias = self.lstm.bias_ih_l0 + self.lstm.bias_hh_l0
        h = c = x.new_zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            i, f, g, o = F.linear(torch.cat([x[:, t], h], 1), w, bias).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


@pytest.mark.parametrize("rule", ["epsilon", "lrp0"])
def test_an_lstm_is_its_written_out_loop(rule: str) -> None:
    """Both are walked as linear operations and sums, step by step: the same up to where a small ε is added."""
    with seeded(5):
        fused, x = Recurrent(loop=False).eval(), torch.randn(2, 4, 3)
    loop = Recurrent(loop=True).double().eval()
    loop.load_state_dict(fused.state_dict())
    assert torch.allclose(fused(x), loop(x), atol=1e-12)
    tolerance = REORDERED if rule == "lrp0" else 1e-4
    assert maxrel(relevance(fused, x, rule, 1), relevance(loop, x, rule, 1)) <= tolerance


# --- 5 and 6: samples do not know of each other


@every_network
@every_rule
def test_a_batch_is_its_samples_one_by_one(name: str, rule: str) -> None:
    module, x = network(name)
    together = relprop.explain(module, x, rules=RULES[rule])
    for i in range(len(x)):
        alone = relprop.explain(module, x[i : i + 1], rules=RULES[rule])
        assert int(alone.target) == int(together.target[i])
        assert maxrel(alone.relevance[0], together.relevance[i]) <= BATCHED
        compare_accounts(alone.audit, together.audit, i)


def compare_accounts(alone: Any, together: Any, i: int) -> None:
    size = float(alone.magnitude.clamp(min=1))
    for one, many in ((alone.score, together.score), (alone.relevance, together.relevance)):
        assert float((one[0] - many[i]).abs()) <= BATCHED * size
    assert float((alone.magnitude[0] - together.magnitude[i]).abs()) <= BATCHED * size
    for reason in {*alone.absorbed, *together.absorbed}:
        one = float(alone.absorbed[reason][0]) if reason in alone.absorbed else 0.0
        many = float(together.absorbed[reason][i]) if reason in together.absorbed else 0.0
        assert abs(one - many) <= BATCHED * size, reason
    for mine, other in zip(alone.entries, together.entries, strict=True):
        assert mine.name == other.name
        assert float((mine.received[0] - other.received[i]).abs()) <= BATCHED * size
        assert float((mine.passed[0] - other.passed[i]).abs()) <= BATCHED * size


@every_network
@pytest.mark.parametrize("rule", ["auto", "alpha2beta1", "lrp0"])
def test_permuting_the_batch_permutes_the_explanations(name: str, rule: str) -> None:
    module, x = network(name)
    order, classes = torch.tensor([2, 0, 1]), torch.tensor([3, 0, 1])
    straight = relprop.explain(module, x, classes, RULES[rule])
    permuted = relprop.explain(module, x[order], classes[order], RULES[rule])
    assert maxrel(straight.relevance[order], permuted.relevance) <= BATCHED
    assert maxrel(straight.score[order], permuted.score) <= BATCHED


# --- 7: a rule acts on each output unit by itself


ALL_RULES: dict[str, rules.LinearRule] = {
    "lrp0": rules.Epsilon(0.0),
    "epsilon": rules.Epsilon(0.1),
    "epsilon_ignore": rules.Epsilon(0.1, bias="ignore"),
    "epsilon_distribute": rules.Epsilon(0.1, bias="distribute"),
    "epsilon_clip": rules.Epsilon(0.1, stabiliser="clip"),
    "gamma": rules.Gamma(0.5),
    "gamma_captum": rules.Gamma(0.5, modified_bias=False),
    "gamma_distribute": rules.Gamma(0.5, bias="distribute"),
    "alpha1beta0": rules.AlphaBeta(1.0, 0.0),
    "alpha2beta1": rules.AlphaBeta(2.0, 1.0),
    "alpha2beta1_ignore": rules.AlphaBeta(2.0, 1.0, bias="ignore"),
    "alpha2beta1_full_bias": rules.AlphaBeta(2.0, 1.0, full_bias=True),
    "zplus": rules.ZPlus(),
    "zbox": rules.ZBox(low=-4.0, high=5.0),
    "wsquare": rules.WSquare(),
    "flat": rules.Flat(),
}


class OutputsSplit(nn.Module):
    """One layer, or two with a part of its outputs each."""

    def __init__(self, layer: nn.Module, split: bool) -> None:
        super().__init__()
        outputs = layer.weight.shape[0]
        self.parts = nn.ModuleList([layer])
        if split:
            self.parts = nn.ModuleList(
                [self._part(layer, 0, outputs // 3), self._part(layer, outputs // 3, outputs)]
            )
        self.head = nn.Linear(outputs * (1 if isinstance(layer, nn.Linear) else 16), 3)

    @staticmethod
    def _part(layer: nn.Module, start: int, stop: int) -> nn.Module:
        part = copy.deepcopy(layer)
        part.weight = nn.Parameter(layer.weight[start:stop].detach().clone())
        part.bias = nn.Parameter(layer.bias[start:stop].detach().clone())
        return part

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(torch.cat([part(x) for part in self.parts], 1)).flatten(1))


@functools.cache
def outputs_split(kind: str, split: bool) -> tuple[nn.Module, Tensor]:
    with seeded(6):
        layer = nn.Linear(5, 6) if kind == "linear" else nn.Conv2d(2, 6, 3, padding=1)
        module = randomise(OutputsSplit(randomise(layer), False))
        x = torch.randn(2, 5) if kind == "linear" else torch.randn(2, 2, 4, 4)
        if split:
            halves = OutputsSplit(module.parts[0], True)
            halves.head = module.head
            module = halves
    return module.eval(), x


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("rule", ALL_RULES)
def test_a_layer_is_two_layers_with_its_outputs_side_by_side(kind: str, rule: str) -> None:
    composite = Composite([("first", ALL_RULES[rule]), ("weighted", rules.Epsilon(0.0))])
    (whole, x), (halves, _) = outputs_split(kind, False), outputs_split(kind, True)
    assert maxrel(relevance(whole, x, composite, 1), relevance(halves, x, composite, 1)) <= EXACT


class InputsSplit(nn.Module):
    def __init__(self, layer: nn.Linear, split: bool) -> None:
        super().__init__()
        self.layer, self.split, self.head = layer, split, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.split:
            return self.head(F.relu(self.layer(x)))
        w = self.layer.weight
        return self.head(F.relu(F.linear(x[:, :2], w[:, :2]) + F.linear(x[:, 2:], w[:, 2:], self.layer.bias)))


@pytest.mark.parametrize("rule", ["lrp0", "gamma", "alpha2beta1", "zplus", "flat", "wsquare", "epsilon"])
def test_a_layer_is_the_sum_of_two_with_its_inputs_only_under_lrp0(rule: str) -> None:
    with seeded(7):
        whole, x = randomise(InputsSplit(nn.Linear(5, 6), False)).eval(), torch.randn(2, 5)
    parts = InputsSplit(whole.layer, True)
    parts.head = whole.head
    composite = Composite([("weighted", ALL_RULES[rule]), ("addition", rules.Addition(epsilon=0.0))])
    difference = maxrel(relevance(whole, x, composite, 1), relevance(parts.eval(), x, composite, 1))
    assert difference <= EXACT * 100 if rule == "lrp0" else difference > 1e-6


# --- 8: folding batch normalisation


class Normed(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first: nn.Module = {
            "linear": lambda: nn.Linear(5, 6),
            "convolution": lambda: nn.Conv2d(2, 6, 3, padding=1, stride=2, bias=False),
            "grouped": lambda: nn.Conv2d(2, 6, 3, padding=1, groups=2, stride=2),
            "transposed": lambda: nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False),
            "series": lambda: nn.Conv1d(2, 6, 3),
        }[kind]()
        norm = nn.BatchNorm2d
        if kind in ("linear", "series"):
            norm = nn.BatchNorm1d
        self.norm = norm(6)
        self.head = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.first(x))).flatten(1))


SHAPES = {
    "linear": (5,),
    "convolution": (2, 5, 5),
    "grouped": (2, 5, 5),
    "transposed": (4, 2, 2),
    "series": (2, 6),
}


@functools.cache
def normed(kind: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A network with batch normalisation, and the same with it folded by hand."""
    with seeded(8):
        module, x = Normed(kind).eval(), torch.randn(2, *SHAPES[kind])
        module(x)
        randomise(module)
    folded = copy.deepcopy(module)
    norm, first = folded.norm, folded.first
    with torch.no_grad():
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = 0.0 if first.bias is None else first.bias
        first.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
        if (
            kind == "transposed"
        ):  # the weight is (in, out / groups, …); inputs 0 and 1 belong to outputs 0 to 2
            first.weight.mul_(scale.reshape(2, 3).repeat_interleave(2, 0)[:, :, None, None])
        else:
            first.weight.mul_(scale.reshape(-1, *[1] * (first.weight.dim() - 1)))
    folded.norm = nn.Identity().eval()
    return module, folded, x


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("rule", ALL_RULES)
def test_folding_is_folding_by_hand(kind: str, rule: str) -> None:
    module, folded, x = normed(kind)
    composite = Composite([("first", ALL_RULES[rule]), ("weighted", rules.Epsilon(0.0))])
    assert maxrel(relevance(module, x, composite, 1), relevance(folded, x, composite, 1)) <= REORDERED
    assert all(row.kind != "batch_norm" for row in relprop.explain(module, x, 1, composite).plan)


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "linear"])
@pytest.mark.parametrize("rule", ALL_RULES)
def test_instance_norm_by_running_statistics_is_batch_norm(kind: str, rule: str) -> None:
    module, _, x = normed(kind)
    other = copy.deepcopy(module)
    norm = nn.InstanceNorm1d if kind == "series" else nn.InstanceNorm2d
    other.norm = norm(6, affine=True, track_running_stats=True, dtype=x.dtype).eval()
    other.norm.load_state_dict(module.norm.state_dict())
    composite = Composite([("first", ALL_RULES[rule]), ("weighted", rules.Epsilon(0.0))])
    assert torch.equal(relevance(module, x, composite, 1), relevance(other, x, composite, 1))


@pytest.mark.parametrize("name", ["residual", "dense", "series", "volume", "shuffle", "normalised"])
def test_folding_changes_nothing_under_lrp0(name: str) -> None:
    module, x = network(name)
    found = relprop.explain(module, x, rules=Composite(LRP0.rules, fold=False))
    assert any(row.kind == "batch_norm" for row in found.plan)
    assert maxrel(relevance(module, x, "lrp0"), found.relevance) <= REORDERED


def test_normalisation_before_a_padded_convolution_is_kept_as_it_is() -> None:
    """The padding is zero behind the normalisation: a fold would be wrong at the border."""
    with seeded(9):
        module = randomise(
            nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 3))
        )
        module, x = module.eval(), torch.randn(2, 2, 4, 4)
    found = relprop.explain(module, x, 1, LRP0)
    assert [row.kind for row in found.plan][:2] == ["batch_norm", "convolution"]
    assert maxrel(found.relevance, gradient_times_input(module, x, 1)) <= REORDERED


# --- 9: hidden units have no scale


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.upper(F.relu(self.lower(x)))


@functools.cache
def two_layers(uniform: bool | None) -> tuple[nn.Module, Tensor]:
    with seeded(10):
        module, x = randomise(TwoLayers()).eval(), torch.randn(3, 5)
        factors = torch.rand(8) * 3 + 0.2
    if uniform is not None:
        factors = torch.full_like(factors, 2.5) if uniform else factors
        with torch.no_grad():
            module.lower.weight.mul_(factors[:, None])
            module.lower.bias.mul_(factors)
            module.upper.weight.div_(factors)
    return module, x


LOWER = {
    "lrp0": rules.Epsilon(0.0),
    "gamma": rules.Gamma(0.5, epsilon=0.0),
    "alpha2beta1": rules.AlphaBeta(2, 1, epsilon=0.0),
    "zplus": rules.ZPlus(epsilon=0.0),
    "wsquare": rules.WSquare(epsilon=0.0),
    "flat": rules.Flat(epsilon=0.0),
    "zbox": rules.ZBox(low=-4.0, high=5.0, epsilon=0.0),
    "epsilon": rules.Epsilon(0.1),
}
UPPER = LOWER | {"zbox": rules.ZBox(low=0.0, high=60.0, epsilon=0.0)}
INVARIANT = ("lrp0", "epsilon", "gamma", "alpha2beta1", "zplus", "flat")


@pytest.mark.parametrize("lower", LOWER)
@pytest.mark.parametrize("upper", UPPER)
def test_hidden_units_may_be_rescaled(lower: str, upper: str) -> None:
    composite = Composite([("first", LOWER[lower]), ("last", UPPER[upper])])
    (plain, x), (scaled, _) = two_layers(None), two_layers(False)
    difference = maxrel(relevance(plain, x, composite, 1), relevance(scaled, x, composite, 1))
    if (lower != "epsilon" and upper in INVARIANT) or lower == "flat":
        assert difference <= REORDERED
    else:
        assert (
            difference > 1e-6
        )  # these pairs do depend on the scale: the law would hold for the wrong reason
    if upper == "wsquare" and lower != "epsilon":
        assert (
            maxrel(relevance(plain, x, composite, 1), relevance(two_layers(True)[0], x, composite, 1))
            <= REORDERED
        )


# --- 10: precision


@functools.cache
def rounded_network(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A network and its input in float32, and the same rounded weights in float64."""
    module, x = network(name)
    coarse = copy.deepcopy(module).float()
    return coarse, copy.deepcopy(coarse).double(), x.float()


@every_network
@pytest.mark.parametrize("rule", ["zplus", "alpha2beta1", "gamma", "wsquare", "large_epsilon"])
def test_float32_is_float64_to_its_precision(name: str, rule: str) -> None:
    coarse, fine, rounded = rounded_network(name)
    with torch.no_grad():
        classes = fine(rounded.double()).argmax(1)
    found = relprop.explain(coarse, rounded, classes, RULES[rule])
    assert found.relevance.dtype == torch.float32
    expected = relprop.explain(fine, rounded.double(), classes, RULES[rule])
    blown_up = float(
        expected.audit.magnitude.max() / expected.relevance.abs().flatten(1).sum(1).max().clamp(min=1e-3)
    )
    tolerance = (1e-3 if rule == "large_epsilon" else 1e-4) * max(1.0, blown_up)
    assert maxrel(found.relevance.double(), expected.relevance) <= tolerance
    assert found.audit.closes


# --- 11: writing in place


class Writing(nn.Module):
    """The same function with and without operations that write to their arguments."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = (
            nn.Conv2d(2, 3, 3, padding=1),
            nn.Conv2d(3, 3, 1),
            nn.Linear(48, 3),
        )
        self.relu, self.in_place = nn.ReLU(inplace=in_place), in_place

    def forward(self, x: Tensor) -> Tensor:
        if not self.in_place:
            y = self.relu(self.conv1(x))
            y = (y + self.conv2(y)) * 2
            y = torch.cat([y[:, :1], F.relu(y[:, 1:])], 1)
            y = torch.cat([y[..., :1] * 3, y[..., 1:]], -1)
            return self.head(y.flatten(1))
        y = self.relu(self.conv1(x))
        y += self.conv2(y)
        y.mul_(2)
        F.relu_(y[:, 1:])
        y[..., 0] = y[..., 0] * 3
        return self.head(y.flatten(1))


@functools.cache
def writings() -> tuple[nn.Module, nn.Module, Tensor]:
    with seeded(11):
        plain, x = randomise(Writing(False)).eval(), torch.randn(2, 2, 4, 4)
    writing = Writing(True).double().eval()
    writing.load_state_dict(plain.state_dict())
    return plain, writing, x


@every_rule
def test_writing_in_place_changes_nothing(rule: str) -> None:
    plain, writing, x = writings()
    kept, version = x.clone(), x._version
    assert torch.allclose(plain(x), writing(x))
    assert maxrel(relevance(plain, x, rule, 1), relevance(writing, x, rule, 1)) <= EXACT
    assert torch.equal(x, kept) and x._version == version


class WritingToInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return self.head(x.relu_())


def test_a_model_that_writes_to_its_input_leaves_the_callers_tensor_alone() -> None:
    with seeded(12):
        module, x = randomise(WritingToInput()).eval(), torch.randn(2, 5)
    kept, version = x.clone(), x._version
    try:
        found = relprop.explain(module, x, 1, LRP0).relevance
    except relprop.RelpropError:  # refusing is honest, too
        found = None
    assert torch.equal(x, kept) and x._version == version
    if found is not None:
        pure = nn.Sequential(nn.ReLU(), module.head).eval()
        assert maxrel(found, relevance(pure, 2 * x, "lrp0", 1)) <= EXACT


# --- 13: linear in what starts the walk


@every_network
@every_rule
def test_relevance_is_linear_in_the_weights_of_the_outputs(name: str, rule: str) -> None:
    module, x = network(name)
    weights = torch.randn(2, len(x), 4, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    explainer = relprop.Explainer(module, RULES[rule])
    a, b, both, scaled = explainer.explain_targets(
        x, [weights[0], weights[1], weights[0] + weights[1], weights[0] * -3]
    )
    size = max(float(a.relevance.abs().max()), float(b.relevance.abs().max()))
    assert float((a.relevance + b.relevance - both.relevance).abs().max()) <= EXACT * size
    assert float((a.relevance * -3 - scaled.relevance).abs().max()) <= EXACT * 3 * size
    assert maxrel(a.score + b.score, both.score) <= EXACT


# --- 14: the account adds up


@every_network
@every_rule
def test_the_account_of_every_operation_and_of_the_run_adds_up(name: str, rule: str) -> None:
    module, x = network(name)
    found = relprop.explain(module, x, rules=RULES[rule])
    audit = found.audit
    assert torch.equal(audit.score, found.score)
    assert maxrel(audit.relevance, found.relevance.flatten(1).sum(1)) <= REORDERED
    size = audit.magnitude.clamp(min=1)
    for entry in audit.entries:
        assert (entry.gap.abs() <= 1e-10 * size).all(), entry.name
        if entry.magnitude is not None:
            assert (entry.received.abs() <= entry.magnitude * (1 + 1e-12) + 1e-300).all(), entry.name
    total = audit.score - audit.relevance - sum(audit.absorbed.values())
    assert (total.abs() <= 1e-10 * size).all()
    assert float((total - audit.gap).abs().max()) <= 1e-14 * float(size.max())
    for reason, amount in audit.absorbed.items():
        parts = [entry.absorbed[reason] for entry in audit.entries if reason in entry.absorbed]
        assert (amount - sum(parts)).abs().max() <= 1e-12 * float(size.max())
    handed = sum(entry.passed for entry in audit.entries) - sum(entry.received for entry in audit.entries)
    assert ((handed + audit.score - audit.relevance).abs() <= 1e-10 * size * len(audit.entries)).all()


# --- 16: LRP-0 is gradient times input


def gradient_times_input(module: nn.Module, x: Tensor, target: Any) -> Tensor:
    leaf = x.clone().requires_grad_()
    output = module(leaf)
    classes = torch.full((len(x),), target) if isinstance(target, int) else target
    (grad,) = torch.autograd.grad(output[torch.arange(len(x)), classes].sum(), leaf)
    return x * grad


PIECEWISE_LINEAR = [
    name for name in ZOO if name not in ("signed", "attention", "inverted_residual", "hard_gates")
]


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "unfolded"])
@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_lrp0_is_gradient_times_input(name: str, fold: bool) -> None:
    module, x = network(name)
    found = relprop.explain(module, x, rules=Composite(LRP0.rules, fold=fold))
    assert maxrel(found.relevance, gradient_times_input(module, x, found.target)) <= BATCHED
    assert set(found.audit.absorbed) <= {"bias", "undistributed"}


# --- 17: what does nothing changes nothing


class Interlude(nn.Module):
    def __init__(self, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3), nn.Linear(8, 3)
        self.same, self.zero = nn.Conv2d(3, 3, 1, groups=3, bias=False), nn.Conv2d(3, 3, 3, padding=1)
        self.dropout, self.identity, self.between = nn.Dropout(0.5), nn.Identity(), between

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self, F.relu(self.conv1(x)))
        return self.head(F.relu(self.conv2(x)).flatten(1))


NOTHING: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "permuted twice": lambda m, x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    "reshaped twice": lambda m, x: x.flatten(1).reshape(x.shape),
    "dropout": lambda m, x: m.dropout(x),
    "identity": lambda m, x: m.identity(x),
    "cloned": lambda m, x: x.clone().contiguous(),
    "cast": lambda m, x: x.to(torch.float64),
    "concatenated and cut": lambda m, x: torch.cat([x, x * 2], 1)[:, :3],
    "cut and concatenated": lambda m, x: torch.cat(list(x.split(1, 1)), 1),
    "stacked and taken": lambda m, x: torch.stack([x, x], 0)[1],
    "padded and cropped": lambda m, x: F.pad(x, (1, 1, 1, 1))[..., 1:-1, 1:-1],
    "flipped twice": lambda m, x: x.flip(3).flip(3),
    "times one": lambda m, x: x * 1.0,
    "negated twice": lambda m, x: x.neg().neg(),
    "plus zero": lambda m, x: x + 0.0,
    "a branch of zero weight": lambda m, x: x + m.zero(x),
    "a product with zero": lambda m, x: x + 0 * m.conv1.bias.reshape(3, 1, 1),
    "an identity convolution": lambda m, x: m.same(x),
    "detached": lambda m, x: x.detach(),
}
UNUSED = ("flat", "wsquare")
NOT_NEUTRAL = {
    "an identity convolution": ("alpha2beta1", "epsilon"),
    "plus zero": UNUSED,
    "a branch of zero weight": UNUSED,
    "a product with zero": UNUSED,
}
"""α2β1 counts the α part twice where no contribution is negative; ε is added once more; flat and w² give it
to inactive units, where a sum is 0 + 0 and shares nothing out."""


@functools.cache
def interlude(what: str | None) -> tuple[nn.Module, Tensor]:
    with seeded(13):
        module, x = randomise(Interlude(lambda m, x: x)).eval(), torch.randn(2, 2, 4, 4)
        with torch.no_grad():
            module.same.weight.fill_(1)
            module.zero.weight.zero_()
            module.zero.bias.zero_()
    if what is not None:
        module.between = NOTHING[what]
    return module, x


@pytest.mark.parametrize("rule", ["lrp0", "epsilon", "gamma", "alpha2beta1", "zplus", "flat", "wsquare"])
@pytest.mark.parametrize("what", NOTHING)
def test_what_does_nothing_changes_nothing(what: str, rule: str) -> None:
    given = ALL_RULES[rule] if rule == "epsilon" else dataclasses.replace(ALL_RULES[rule], epsilon=0.0)
    composite = Composite([("weighted", given), ("addition", rules.Addition(epsilon=0.0))])
    (plain, x), (longer, _) = interlude(None), interlude(what)
    assert torch.allclose(plain(x), longer(x))
    difference = maxrel(relevance(plain, x, composite, 1), relevance(longer, x, composite, 1))
    assert difference > 1e-6 if rule in NOT_NEUTRAL.get(what, ()) else difference <= EXACT


# --- 18: symmetries of the input


@pytest.mark.parametrize("rule", ALL_RULES)
def test_permuting_inputs_and_weights_permutes_relevance(rule: str) -> None:
    module, x = two_layers(None)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = copy.deepcopy(module)
    with torch.no_grad():
        permuted.lower.weight.copy_(module.lower.weight[:, order])
    composite = Composite([("first", ALL_RULES[rule]), ("last", rules.Gamma(0.25))])
    assert (
        maxrel(relevance(module, x, composite, 1)[:, order], relevance(permuted, x[:, order], composite, 1))
        <= EXACT
    )


@functools.cache
def flipped_pair() -> tuple[nn.Module, nn.Module, Tensor]:
    with seeded(14):
        layers = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU())
        module = randomise(
            nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
        ).eval()
        x = torch.randn(2, 2, 5, 5)
    flipped = copy.deepcopy(module)
    with torch.no_grad():
        for part in flipped:
            if isinstance(part, nn.Conv2d):
                part.weight.copy_(part.weight.flip(3))
    return module, flipped, x


@pytest.mark.parametrize("rule", ALL_RULES)
def test_flipping_image_and_kernels_flips_relevance(rule: str) -> None:
    module, flipped, x = flipped_pair()
    composite = Composite(
        [("first", ALL_RULES[rule]), ("convolution", rules.ZPlus()), ("linear", rules.Epsilon(0.0))]
    )
    a, b = relevance(module, x, composite, 1), relevance(flipped, x.flip(3), composite, 1)
    assert maxrel(a.flip(3), b) <= EXACT


# --- 20: knowing signs only saves time


@every_network
@pytest.mark.parametrize("rule", ["auto", "gamma", "alpha2beta1", "zplus"])
def test_known_signs_change_nothing(name: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = network(name)
    expected = relprop.explain(module, x, rules=RULES[rule])
    explaining = importlib.import_module("relprop.explain.captured")
    analyse = explaining.analyse

    def without_signs(*args: Any, **kwargs: Any) -> Any:
        return dataclasses.replace(analyse(*args, **kwargs), nonnegative=frozenset())

    monkeypatch.setattr(explaining, "analyse", without_signs)
    unaware = unaware_copy(name)
    found = relprop.explain(unaware, x, rules=RULES[rule])
    assert maxrel(found.relevance, expected.relevance) <= REORDERED
    for reason in {*found.audit.absorbed, *expected.audit.absorbed}:
        assert torch.allclose(
            found.audit.absorbed.get(reason, torch.zeros(len(x), dtype=x.dtype)),
            expected.audit.absorbed.get(reason, torch.zeros(len(x), dtype=x.dtype)),
            rtol=1e-9,
            atol=1e-9,
        ), reason


@functools.cache
def unaware_copy(name: str) -> nn.Module:
    """A copy that has never been captured, so that it is captured without signs (once for all rules)."""
    return copy.deepcopy(network(name)[0])
