"""The rules for linear operations against their slow twins in `oracle.py`, through the engine, and their
float32 traps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import relprop
from oracle import ORACLE, dense
from relprop.engine.propagate import walk
from relprop.engine.rules import RULES, AlphaBeta, Epsilon, Flat, Gamma, LinearRule, WSquare, ZBox, ZPlus
from relprop.explain import Explainer, forward
from relprop.targets import main_output

CLOSE = 1e-10
BATCH = 3
STABILISERS = ("signed", "unsigned", "clip", "relative", "exact_zero_only")


@dataclass(frozen=True)
class Layer:
    """A module with the shape of one sample."""

    module: nn.Module
    shape: tuple[int, ...]
    weightless: bool = False

    def plain(self, x: Tensor) -> Tensor:
        """The operation on one sample."""
        return self.module(x[None])[0]

    def matrix(self) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            zero = self.plain(torch.zeros(self.shape, dtype=torch.float64))
            return dense(lambda e: self.plain(e) - zero, self.shape)

    def bias(self) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return self.plain(torch.zeros(self.shape, dtype=torch.float64)).flatten().numpy()

    def connected(self) -> np.ndarray[Any, Any]:
        """Which inputs each output reads, whatever the weights."""
        kept = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                p.fill_(0.0 if name.endswith("bias") else 1.0)
            found = self.matrix() != 0
            for name, p in self.module.named_parameters():
                p.copy_(kept[name])
        return found


MAKERS: dict[str, Callable[[], Layer]] = {
    "linear": lambda: Layer(nn.Linear(5, 4), (5,)),
    "linear_without_bias": lambda: Layer(nn.Linear(5, 4, bias=False), (5,)),
    "linear_over_tokens": lambda: Layer(nn.Linear(4, 3), (2, 4)),
    "linear_merged_batch": lambda: Layer(
        nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 3), nn.Unflatten(0, (-1, 2))), (2, 4)
    ),
    "conv1d": lambda: Layer(nn.Conv1d(2, 3, 3, stride=2, padding=2), (2, 5)),
    "conv1d_groups_dilation": lambda: Layer(nn.Conv1d(4, 2, 2, groups=2, dilation=2, padding=1), (4, 4)),
    "conv2d": lambda: Layer(nn.Conv2d(2, 2, (2, 3), stride=(1, 2), padding=(1, 0)), (2, 3, 4)),
    "conv2d_uneven_padding": lambda: Layer(
        nn.Sequential(nn.ZeroPad2d((0, 1, 1, 0)), nn.Conv2d(1, 2, 2)), (1, 3, 3)
    ),
    "conv2d_one_sample_window": lambda: Layer(nn.Conv2d(1, 1, 1, padding=1), (1, 2, 2)),
    "conv3d": lambda: Layer(nn.Conv3d(1, 2, 2), (1, 2, 2, 3)),
    "conv_transpose1d": lambda: Layer(nn.ConvTranspose1d(2, 2, 3, stride=2, output_padding=1), (2, 3)),
    "conv_transpose2d_groups": lambda: Layer(nn.ConvTranspose2d(2, 4, 2, groups=2, padding=1), (2, 3, 3)),
    "batch_norm": lambda: Layer(nn.BatchNorm2d(3), (3, 2, 2)),
    "avg_pool": lambda: Layer(nn.AvgPool2d(2, stride=1, padding=1), (1, 3, 3), weightless=True),
    "mean": lambda: Layer(nn.Sequential(nn.AdaptiveAvgPool1d(1)), (2, 4), weightless=True),
}


@functools.cache
def layer(name: str, behind_relu: bool = False) -> Layer:
    """A layer, made once (and so captured once: weights are read live)."""
    made = MAKERS[name]()
    module = nn.Sequential(nn.ReLU(), made.module) if behind_relu else made.module
    return Layer(module.double().eval(), made.shape, made.weightless)


def engine(
    module: nn.Module, rule: LinearRule, x: Tensor, relevance: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Relevance of x and the accounts per sample, from any relevance of the output."""
    where = ("weighted", "pool", "batch_norm")
    composite = relprop.Composite([(w, rule) for w in where], fold=False)
    explainer = Explainer(module, composite, example=x)
    captured, program = explainer.program((x,), {})
    passed = forward(explainer, captured, program, (x,), {})
    seeds = {main_output(captured.graph.output): relevance.reshape(passed.output.shape)}
    way = walk(program, passed.values, seeds, captured.store, x.shape[0], True)
    absorbed: dict[str, Tensor] = {}
    for entry in way.entries:
        for reason, amount in entry.absorbed.items():
            absorbed[reason] = absorbed[reason] + amount if reason in absorbed else amount
    return next(iter(way.inputs.values())), absorbed


GRID = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64)


def drawn(shape: tuple[int, ...], seed: int, grid: bool) -> Tensor:
    """Normal numbers, or those of a coarse grid: sums then cancel to 0 exactly, contributions vanish."""
    generator = torch.Generator().manual_seed(seed)
    if grid:
        return GRID[torch.randint(len(GRID), shape, generator=generator)]
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def fill(module: nn.Module, seed: int, grid: bool) -> None:
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(drawn(tuple(p.shape), seed + 10 + i, grid))
        for i, (name, buffer) in enumerate(module.named_buffers()):
            if name.endswith("running_mean"):
                buffer.copy_(drawn(tuple(buffer.shape), seed + 30 + i, grid))
            elif name.endswith("running_var"):
                buffer.copy_(drawn(tuple(buffer.shape), seed + 50 + i, grid).abs() + 0.5)


@st.composite
def rules(draw: st.DrawFn) -> LinearRule:
    options: dict[str, Any] = {
        "bias": draw(st.sampled_from(["absorb", "ignore", "distribute"])),
        "epsilon": draw(st.sampled_from([0.0, 1e-6, 0.3])),
        "stabiliser": draw(st.sampled_from(STABILISERS)),
    }
    kind = draw(st.sampled_from(list(RULES)))
    if kind is Gamma:
        return Gamma(draw(st.sampled_from([0.0, 0.25, 2.0])), draw(st.booleans()), **options)
    if kind is AlphaBeta:
        alpha = draw(st.sampled_from([1.0, 2.0, 1.5]))
        return AlphaBeta(alpha, alpha - 1, draw(st.booleans()), **options)
    if kind is ZBox:
        return ZBox(-5.0, 5.0, **options) if draw(st.booleans()) else ZBox(torch.tensor(-6.0), 7.0, **options)
    return kind(**options)  # type: ignore[no-any-return]


def test_every_rule_has_a_twin() -> None:
    assert ORACLE.keys() == RULES.keys()


@pytest.mark.parametrize("name", MAKERS)
@given(rule=rules(), seed=st.integers(0, 10_000), nonnegative=st.booleans(), grid=st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_rule_equals_its_twin(name: str, rule: LinearRule, seed: int, nonnegative: bool, grid: bool) -> None:
    tested = layer(name, behind_relu=nonnegative)
    plain = layer(name)
    if tested.weightless and isinstance(rule, (Flat, WSquare)):
        return  # a sum has no weights: these two share in proportion to it, see the next test
    fill(tested.module, seed, grid)
    fill(plain.module, seed, grid)
    x = drawn((BATCH, *plain.shape), seed, grid).clamp(-4, 4)
    x = x.abs() if nonnegative else x
    with torch.no_grad():
        size = plain.module(x).shape
    relevance = drawn(tuple(size), seed + 1, grid)
    found, accounts = engine(tested.module, rule, x, relevance)
    w, b, connected = plain.matrix(), plain.bias(), plain.connected()
    given_bias = None if tested.weightless else b
    assert set(accounts) <= {"bias", "stabilizer", "undistributed", "no_positive_part", "no_negative_part"}
    for i in range(BATCH):
        r = relevance[i].flatten().numpy()
        expected, kept = ORACLE[type(rule)](rule, x[i].flatten().numpy(), w, given_bias, r, connected)
        scale = max(1.0, float(np.abs(expected).max()), *(abs(v) for v in kept.values()))
        np.testing.assert_allclose(found[i].flatten().numpy(), expected, rtol=CLOSE, atol=CLOSE * scale)
        for reason in {*accounts, *kept}:
            amount = float(accounts[reason][i]) if reason in accounts else 0.0
            assert amount == pytest.approx(kept.get(reason, 0.0), rel=CLOSE, abs=CLOSE * scale), reason


@pytest.mark.parametrize("rule", [Flat(epsilon=0.0), WSquare(epsilon=0.0)])
def test_input_free_rules_share_averages_evenly(rule: LinearRule) -> None:
    pool = layer("mean")
    relevance = drawn((BATCH, 2, 1), 0, False)
    found, _ = engine(pool.module, rule, drawn((BATCH, 2, 4), 1, False), relevance)
    torch.testing.assert_close(found, (relevance / 4).expand(-1, -1, 4))


SHORTCUT = [Gamma(0.5), AlphaBeta(2.0, 1.0), AlphaBeta(1.0, 0.0, bias="distribute"), ZPlus()]


@pytest.mark.parametrize("rule", SHORTCUT, ids=str)
@pytest.mark.parametrize("name", ["linear", "conv2d", "avg_pool"])
def test_shortcut_for_nonnegative_inputs_equals_the_general_way(name: str, rule: LinearRule) -> None:
    plain, behind = layer(name), layer(name, behind_relu=True)
    fill(plain.module, 3, False)
    fill(behind.module, 3, False)
    x = drawn((BATCH, *plain.shape), 4, False).abs()
    with torch.no_grad():
        relevance = drawn(tuple(plain.module(x).shape), 5, False)
    general, first = engine(plain.module, rule, x, relevance)
    short, second = engine(behind.module, rule, x, relevance)
    torch.testing.assert_close(short, general, rtol=CLOSE, atol=CLOSE)
    for reason in first:
        torch.testing.assert_close(second[reason], first[reason], rtol=CLOSE, atol=CLOSE)


# ---------------------------------------------------------------- float32


def positive_units(module: nn.Module) -> None:
    """Weights of every other unit become positive: those units have no negative part."""
    with torch.no_grad():
        weight = module.weight
        weight[::2] = weight[::2].abs()
        module.bias[::2] = module.bias[::2].abs()


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize(
    "made", [lambda: nn.Linear(500, 60), lambda: nn.Conv2d(16, 24, 3, padding=1)], ids=["linear", "conv2d"]
)
def test_empty_part_of_alpha_beta_is_no_rounding_noise(
    made: Callable[[], nn.Module], nonnegative: bool
) -> None:
    module = made()
    positive_units(module)
    shape = (2, 500) if isinstance(module, nn.Linear) else (2, 16, 8, 8)
    x = torch.rand(shape) + 0.01
    tested = nn.Sequential(nn.ReLU(), module).eval() if nonnegative else module.eval()
    with torch.no_grad():
        relevance = torch.randn(tested(x).shape)
    found, accounts = engine(tested, AlphaBeta(2.0, 1.0, epsilon=0.0), x, relevance)
    received, magnitude = relevance.double().flatten(1).sum(1), relevance.abs().double().flatten(1).sum(1)
    balance = received - found.double().flatten(1).sum(1) - sum(accounts.values())
    assert float((balance.abs() / magnitude).max()) <= 1e-5
    missing = -relevance[:, ::2].double().flatten(1).sum(1)
    torch.testing.assert_close(accounts["no_negative_part"], missing, rtol=1e-5, atol=1e-4)
    assert float(found.abs().sum()) <= 4 * float(relevance.abs().sum())


@pytest.mark.parametrize(
    "rule",
    [
        Epsilon(1e-2),
        Gamma(0.25),
        AlphaBeta(2.0, 1.0),
        ZPlus(),
        ZBox(-4.0, 4.0),
        WSquare(),
        Flat(),
        Epsilon(1e-2, bias="distribute"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_account_closes_in_low_precision(rule: LinearRule, dtype: torch.dtype) -> None:
    module = nn.Conv2d(8, 16, 3, padding=1).to(dtype).eval()
    x = torch.randn(3, 8, 12, 12).clamp(-3, 3).to(dtype)
    with torch.no_grad():
        relevance = torch.randn(module(x).shape)
    found, accounts = engine(module, rule, x, relevance)
    assert found.dtype == torch.float32
    balance = relevance.double().flatten(1).sum(1) - found.double().flatten(1).sum(1) - sum(accounts.values())
    magnitude = torch.maximum(relevance.abs(), torch.ones(())).double().flatten(1).sum(1)
    assert float((balance.abs() / magnitude).max()) <= 1e-5


def test_box_refuses_inputs_outside_its_bounds() -> None:
    module = layer("linear").module
    with pytest.raises(relprop.InvalidInput, match="leaves the bounds"):
        engine(
            module, ZBox(-1.0, 1.0), torch.full((2, 5), 1.5, dtype=torch.float64), torch.ones(2, 4).double()
        )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Epsilon(-1.0),
        lambda: Epsilon(bias="spread"),  # type: ignore[arg-type]
        lambda: Epsilon(stabiliser="none"),  # type: ignore[arg-type]
        lambda: Gamma(-0.5),
        lambda: AlphaBeta(2.0, 2.0),
        lambda: ZBox(1.0, 0.0),
        lambda: relprop.rules.MaxPool("largest"),  # type: ignore[arg-type]
        lambda: relprop.rules.Product("both"),  # type: ignore[arg-type]
        lambda: relprop.rules.Addition("signal"),  # type: ignore[arg-type]
        lambda: relprop.rules.Softmax("gradient"),  # type: ignore[arg-type]
    ],
)
def test_wrong_parameters_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(relprop.InvalidInput):
        wrong()


def test_boxes_with_equal_bounds_are_one_rule() -> None:
    low, high = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    assert ZBox(low, high) == ZBox(low.clone(), high.clone())
    assert hash(ZBox(low, high)) == hash(ZBox(low.clone(), high.clone()))
    assert ZBox(low, high) != ZBox(low, high + 1)
