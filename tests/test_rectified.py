"""Where relevance is known to be zero because a ReLU stands behind: the γ and ε rules compute less there."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop.engine.graph import Ref
from relprop.engine.ops import OPS
from relprop.engine.propagate import record, walk
from relprop.explain.captured import leaves_of
from relprop.rules import AlphaBeta, Epsilon, Flat, Gamma, MaxPool, ZPlus
from zoo import ZOO

RULES = {"epsilon": Epsilon(), "gamma": Gamma(), "zplus": ZPlus(), "alphabeta": AlphaBeta()}


class Residual(nn.Module):
    """Two convolutions with a skip between them, a pool, and a classifier: what stands behind ReLUs in practice."""

    def __init__(self, pool: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), act, pool)
        self.one = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), act)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.act, self.head = act, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.act(x + self.two(self.one(x)))
        return self.head(x.mean((2, 3)).flatten(1))


def _walked(model: nn.Module, rule: object) -> tuple[dict[str, Tensor], dict[Ref, Tensor], frozenset[Ref]]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    explainer = relprop.Explainer(model.double().eval(), rule, example=x)
    captured, program = explainer.program((x,), {})
    known = program.rectified
    everything = frozenset(Ref(n.name) for n in program.graph.nodes if n.kind == "call")
    kept = dataclasses.replace(program, dead={}, kept=program.kept | known)
    values = record(kept, leaves_of(model, captured.graph, (x,), {}), captured.store)
    output = captured.graph.outputs()[0]
    seed = values[output.name] * torch.eye(4, dtype=torch.float64)[:2]
    way = walk(kept, values, {output: seed}, captured.store, 2, observe=everything)
    return values, way.observed, known


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Identity()])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6()])
def test_no_relevance_arrives_where_a_rectified_value_is_not_positive(
    rule: str, pool: nn.Module, act: nn.Module
) -> None:
    values, observed, known = _walked(Residual(pool, act), RULES[rule])
    assert len(known) >= 3  # the stem, the first convolution and the sum
    silent = 0
    for ref in known & observed.keys():
        idle = values[ref.name] <= 0
        silent += int(idle.sum())
        assert not observed[ref][idle].any()
    assert silent > 100


@pytest.mark.parametrize(
    "rule", [Flat(), Epsilon(bias="distribute"), Gamma(bias="distribute"), MaxPool("proportional")]
)
def test_a_rule_that_gives_to_inputs_of_zero_makes_nothing_rectified(rule: object) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4))
    composite = rule
    if isinstance(rule, MaxPool):
        composite = relprop.Composite([("max", rule), ("linear", Epsilon())])
    _, _, known = _walked(model, composite)
    assert not any("conv" in ref.name for ref in known)


class Spread(nn.Module):
    """Reads a ReLU's output by its deviation or its distances: there a value of 0 gets relevance."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.first, self.last = how, nn.Linear(192, 8), nn.Linear(2, 4)
        self.register_buffer("places", torch.rand(2, 8, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x.flatten(1)))
        found = torch.cdist(y, self.places) if self.how == "cdist" else torch.stack([y.std(1), y.mean(1)], 1)
        return self.last(found)


@pytest.mark.parametrize("how", ["std", "cdist"])
@pytest.mark.parametrize("rule", RULES)
def test_an_operation_that_gives_to_values_of_zero_makes_nothing_rectified(how: str, rule: str) -> None:
    _, _, known = _walked(Spread(how), RULES[rule])
    assert not known


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("rule", ["gamma", "auto"])
def test_of_every_network_of_the_zoo_what_is_rectified_has_no_relevance_where_it_is_not_positive(
    name: str, rule: str
) -> None:
    model, x = ZOO[name](0)
    explainer = relprop.Explainer(model, RULES.get(rule, rule), example=x)
    captured, program = explainer.program((x,), {})
    kept = dataclasses.replace(program, dead={}, kept=program.kept | program.rectified)
    values = record(kept, leaves_of(model, captured.graph, (x,), {}), captured.store)
    output = captured.graph.outputs()[0]
    way = walk(
        kept, values, {output: values[output.name].clone()}, captured.store, len(x), observe=program.rectified
    )
    for ref in program.rectified & way.observed.keys():
        assert not way.observed[ref][values[ref.name] <= 0].any(), ref


def test_an_activation_that_lets_negative_values_pass_makes_nothing_rectified() -> None:
    for act in (nn.LeakyReLU(), nn.GELU(), nn.Hardtanh(), nn.SiLU()):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), act, nn.Flatten(), nn.Linear(288, 4))
        assert not _walked(model, Gamma())[2]


def test_relevance_that_starts_inside_is_shared_out_in_full() -> None:
    """A seed may lie on units that a ReLU silences."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    x = torch.rand(2, 5, dtype=torch.float64)
    explainer = relprop.Explainer(model.eval(), Gamma(), example=x)
    captured, program = explainer.program((x,), {})
    values = record(program, leaves_of(model, captured.graph, (x,), {}), captured.store)
    first = next(n for n in program.graph.nodes if n.name in program.rules and "linear" in n.operation)
    assert Ref(first.name) in program.rectified
    z = values[first.name]
    assert (z < 0).any()
    way = walk(program, values, {Ref(first.name): z}, captured.store, 2)
    (relevance,) = way.inputs.values()
    expected = relprop.explain(model[0], x, target=torch.ones(2, 6, dtype=torch.float64), rules=Gamma())
    torch.testing.assert_close(relevance, expected.relevance)


def test_the_kinds_that_are_taken_for_proportional_exist() -> None:
    assert {"aten.relu.default", "aten.relu6.default", "aten.add.Tensor"} <= OPS.keys()
