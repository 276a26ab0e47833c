"""A walk that was compiled for one kind of input gives what the walk gives, and knows when it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop
import zoo
from relprop.engine import looks
from relprop.engine.propagate import compiled
from relprop.engine.rules import RULES, Epsilon
from relprop.errors import CaptureError, ConservationError, InvalidInput


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The walks that are made, in their order: operation by operation, traced, or by a traced function."""
    made: list[str] = []
    walk, run = compiled.walk, compiled._run

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append("traced" if looks.traced() else "walked")
        return walk(*args, **kwargs)

    def ran(*args: Any, **kwargs: Any) -> Any:
        found = run(*args, **kwargs)
        if found is not None:
            made.append("ran")
        return found

    monkeypatch.setattr(compiled, "walk", counted)
    monkeypatch.setattr(compiled, "_run", ran)
    return made


def small() -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).double().eval()


def images(seed: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, 6, 6, dtype=torch.float64, generator=generator)


def assert_same(one: relprop.Explanation, other: relprop.Explanation, close: float = 1e-10) -> None:
    """The same relevance, the same accounts of the same operations."""
    torch.testing.assert_close(one.relevance, other.relevance, rtol=close, atol=close)
    assert one.audit is not None and other.audit is not None
    assert [(e.name, e.operation, e.rule, e.module) for e in one.audit.entries] == [
        (e.name, e.operation, e.rule, e.module) for e in other.audit.entries
    ]
    assert one.audit.absorbed.keys() == other.audit.absorbed.keys()
    for a, b in zip(one.audit.entries, other.audit.entries, strict=True):
        torch.testing.assert_close(a.received, b.received, rtol=close, atol=close)
        torch.testing.assert_close(a.passed, b.passed, rtol=close, atol=close)
        nothing = torch.zeros_like(a.received)
        for reason in a.absorbed.keys() | b.absorbed.keys():
            kept = (a.absorbed.get(reason, nothing), b.absorbed.get(reason, nothing))
            torch.testing.assert_close(*kept, rtol=close, atol=close)
        assert (a.magnitude is None) == (b.magnitude is None)


class Reader(nn.Module):
    """A recurrent layer that classifies a series by its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 4) to (B, 3)."""
        return self.head(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


def reader() -> zoo.Case:
    with zoo.seeded(4):
        return Reader().eval(), torch.randn(2, 5, 4)


CASES = [
    ("cnn", "epsilon"),
    ("cnn", "auto"),
    ("cnn", "epsilon_alpha2_beta1"),
    ("cnn", "epsilon_plus_flat"),
    ("cnn", "deep_taylor"),
    ("residual", "auto"),
    ("residual", "epsilon_plus"),
    ("inverted_residual", "epsilon"),
    ("inverted_residual", "epsilon_alpha2_beta1"),
    ("attention", "attn_lrp"),
    ("attention", "auto"),
    ("reader", "lrp_all"),
]


@pytest.mark.parametrize(("name", "rules"), CASES)
def test_a_traced_walk_gives_what_the_walk_gives_for_other_inputs_too(
    name: str, rules: str, walks: list[str]
) -> None:
    model, x = reader() if name == "reader" else zoo.ZOO[name](0)
    explainer = relprop.Explainer(model, rules, compile="eager")
    explainer(x, 1)
    other = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    assert_same(explainer(other, 1), relprop.explain(model, other, 1, rules))
    assert walks[:3] == ["walked", "traced", "ran"]


def test_a_compiled_walk_gives_what_the_walk_gives(walks: list[str]) -> None:
    model = small().float()
    explainer = relprop.Explainer(model, "epsilon_plus", compile=True)
    explainer(images(1).float())
    x = images(2).float()
    found = explainer(x)
    assert walks == ["walked", "traced", "ran"]
    assert_same(found, relprop.explain(model, x, rules="epsilon_plus"), 1e-5)
    assert torch.equal(found.at("0"), relprop.explain(model, x, rules="epsilon_plus").at("0"))


def test_without_an_audit_nothing_is_summed(walks: list[str]) -> None:
    explainer = relprop.Explainer(small(), "epsilon_plus", compile="eager", audit=False)
    explainer(images(1))
    found = explainer(images(2))
    assert walks == ["walked", "traced", "ran"] and found.audit is None
    assert torch.equal(found.relevance, relprop.explain(small(), images(2), rules="epsilon_plus").relevance)


def test_the_account_of_a_compiled_walk_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RULES[Epsilon]

    def wrong(*args: Any) -> Any:
        shares, absorbed = rule(*args)
        return shares * (1.01 if looks.traced() else 1.0), absorbed

    monkeypatch.setitem(RULES, Epsilon, wrong)
    explainer = relprop.Explainer(small(), "epsilon", compile="eager")
    explainer(images(1))
    with pytest.raises(ConservationError, match="lacks"):
        explainer(images(1))


@pytest.mark.parametrize(
    ("rules", "made"), [("epsilon", ["ran", "ran"]), ("epsilon_plus", ["walked", "ran"])]
)
def test_changed_weights_are_noticed(rules: str, made: list[str], walks: list[str]) -> None:
    """Where something is derived from them one walk is made operation by operation, and none is traced anew."""
    model, x = small(), images(1)
    explainer = relprop.Explainer(model, rules, compile="eager")
    before = explainer(x, 0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.data.add_(0.1)
    for _ in range(2):
        found = explainer(x, 0)
        assert_same(found, relprop.explain(model, x, 0, rules))
    assert not torch.allclose(found.relevance, before.relevance)
    assert walks == ["walked", "traced", *made]


def test_inputs_of_other_shapes_are_traced_by_themselves(walks: list[str]) -> None:
    explainer = relprop.Explainer(small(), compile="eager")
    for batch in (2, 3, 2, 3):
        assert_same(explainer(images(1, batch), 1), relprop.explain(small(), images(1, batch), 1))
    assert walks == ["walked", "traced", "walked", "traced", "ran", "ran"]


def test_several_targets_are_walked_by_one_function(walks: list[str]) -> None:
    explainer = relprop.Explainer(small(), compile="eager")
    found = explainer.explain_targets(images(1), [0, 1, [2, 0]])
    assert walks == ["walked", "traced", "ran", "ran"]
    for one, other in zip(
        found, relprop.Explainer(small()).explain_targets(images(1), [0, 1, [2, 0]]), strict=True
    ):
        assert_same(one, other)


def test_a_forward_pass_in_half_precision_has_the_same_walk(walks: list[str]) -> None:
    model, x = small().float(), images(2).float()
    explainer = relprop.Explainer(model, "epsilon_plus", compile="eager")
    half = relprop.Explainer(model, "epsilon_plus", compile="eager", autocast=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        explainer(images(1).float(), 1)
        assert_same(explainer(x, 1), relprop.explain(model, x, 1, "epsilon_plus"), 1e-5)
    assert_same(half(x, 1), relprop.explain(model, x, 1, "epsilon_plus", autocast=torch.bfloat16), 1e-5)
    assert walks == ["walked", "traced", "ran", "ran"]


class Signed(nn.Module):
    """Two linear layers of weights of both signs: units lose their negative part where the last input is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[2.0, 2, -1], [2, 1, -1], [1, 2, -1], [3, -2, 1]]))
            self.last.weight.copy_(torch.tensor([[1.0, -1, 1, -1]]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3) to (B, 1)."""
        return self.last(self.first(x.abs()))  # type: ignore[no-any-return]


def test_what_was_seen_and_does_not_hold_is_walked_and_traced_anew(walks: list[str]) -> None:
    model = Signed().double().eval()
    rules = relprop.rules.AlphaBeta(2.0, 1.0)
    explainer = relprop.Explainer(model, rules, compile="eager")
    both, without = torch.tensor([[1.0, 1.0, 1.0]]).double(), torch.tensor([[1.0, 9.0, 0.0]]).double()
    for x in (both, both, without, without, both):
        assert_same(explainer(x), relprop.explain(model, x, rules=rules))
    assert walks == ["walked", "traced", "ran", "ran", "walked", "traced", "ran", "ran"]


def test_bounds_that_the_input_leaves_are_refused_and_nothing_is_traced_anew(walks: list[str]) -> None:
    rules = relprop.Composite([("first", relprop.rules.ZBox(-5.0, 5.0))])
    explainer = relprop.Explainer(small(), rules, compile="eager")
    explainer(images(1), 1)
    with pytest.raises(InvalidInput, match="leaves the bounds"):
        explainer(10 * images(1), 1)
    explainer(images(1), 1)
    assert walks == ["walked", "traced", "ran", "walked", "ran"]
    with pytest.raises(InvalidInput, match="NaN"):
        explainer(images(1) * float("nan"), 1)


class Switching(nn.Module):
    """A forward pass that branches on values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3) to (B, 2)."""
        return self.layer(x if x.sum() > 0 else -x)  # type: ignore[no-any-return]


def _conditional(explainer: relprop.Explainer, x: Tensor) -> Any:
    return explainer.conditional(x, 1, conditions=[None])


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({"compile": "fast"}, None, "compile: 'fast'"),
        ({"compile": True, "checkpoints": True}, None, "compile: not together with checkpoints"),
        ({"compile": True}, _conditional, "compile: not together with conditions"),
        ({"compile": True, "method": "gradient"}, None, "compile: no option of the method 'gradient'"),
    ],
)
def test_what_does_not_go_together_is_refused(
    options: dict[str, Any], call: Callable[..., Any] | None, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        explainer = relprop.Explainer(small().float(), **options)
        (call or relprop.Explainer.__call__)(explainer, images(1).float())


def test_a_model_that_branches_on_values_is_refused() -> None:
    with pytest.raises(InvalidInput, match="compile: this model is captured anew"):
        relprop.explain(Switching().eval(), torch.randn(1, 3), compile=True)


def test_a_walk_that_hangs_on_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RULES[Epsilon]

    def looking(epsilon: Any, f: Any, relevance: Tensor) -> Any:
        return rule(epsilon, f, relevance * bool(relevance.sum() > 0))

    monkeypatch.setitem(RULES, Epsilon, looking)
    with pytest.raises(
        CaptureError, match=r"compile: the walk is no one function.*\n  do: leave compile out"
    ):
        relprop.explain(small(), images(1), rules="epsilon", compile=True)


def test_a_machine_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor

    def none(*args: Any) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch._inductor, "compile", none)
    with pytest.raises(CaptureError, match=r"No working C\+\+ compiler.*\n  do: install a C\+\+ compiler"):
        relprop.explain(small(), images(1), compile=True)
