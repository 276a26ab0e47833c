"""Values that are picked one by one along a dimension, as parts of one operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop.engine import canonise
from relprop.engine.parts import join_picks

STEPS = 6


class Picking(nn.Module):
    """A model that reads a series (B, T, 4) in its own way."""

    def __init__(self, read: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.read, self.layer, self.relu = read, nn.Linear(4, 4), nn.ReLU()
        self.chosen, self.head = Chosen(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 4) to (B, 3)."""
        result: Tensor = self.head(self.read(self, x))
        return result


class Chosen(nn.Module):
    """A module whose output is a pick."""

    def forward(self, x: Tensor, place: int) -> Tensor:
        """(B, T, 4) to (B, 4)."""
        return x.select(1, place)


def step_by_step(m: Any, x: Tensor) -> Tensor:
    h = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = torch.tanh(m.layer(x[:, t]) + h)
    return h


def backwards(m: Any, x: Tensor) -> Tensor:
    h = m.relu(m.layer(x))
    return sum((-1) ** t * h.select(-2, -1 - t) for t in range(STEPS))  # type: ignore[return-value]


def some_twice(m: Any, x: Tensor) -> Tensor:
    h = m.layer(x)
    return m.relu(h[:, 0] * h[:, 3] + h[:, 5] - h[:, 3])  # type: ignore[no-any-return]


def of_two_dimensions(m: Any, x: Tensor) -> Tensor:
    h = m.layer(x).reshape(-1, 2, 3, 4)
    rows = [h[:, 0], h[:, 1]]
    return m.relu(rows[0][:, 0] + rows[0][:, 2] - rows[1][:, 1] * rows[1][:, 2])  # type: ignore[no-any-return]


def before_the_samples(m: Any, x: Tensor) -> Tensor:
    h = m.layer(x).reshape(x.shape[0], 2, 3, 4).permute(2, 0, 1, 3)
    q, k, v = h[0], h[1], h[2]
    return (torch.softmax(q @ k.mT, -1) @ v).mean(1)


def by_a_module(m: Any, x: Tensor) -> Tensor:
    h = m.layer(x)
    return m.chosen(h, 0) + m.relu(h[:, 1]) - h[:, 4] * h[:, 5]  # type: ignore[no-any-return]


JOINED = [step_by_step, backwards, some_twice, of_two_dimensions, before_the_samples]


def made(read: Callable[[Any, Tensor], Tensor]) -> tuple[Picking, Tensor]:
    torch.manual_seed(0)
    return Picking(read).double().eval(), torch.randn(3, STEPS, 4, dtype=torch.float64)


def operations(explainer: relprop.Explainer) -> list[str]:
    return [row.operation for row in explainer.plan]


@pytest.mark.parametrize("read", JOINED, ids=lambda read: read.__name__)
@pytest.mark.parametrize("rules", ["epsilon", "lrp_all", "attn_lrp"])
def test_parts_get_what_picks_get(
    read: Callable[[Any, Tensor], Tensor], rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = made(read)
    explainer = relprop.Explainer(model, rules)
    found = explainer(x, 1)
    names = operations(explainer)
    assert "aten.unbind.int" in names and "aten.select.int" not in names
    monkeypatch.setattr(canonise, "REWRITES", [r for r in canonise.REWRITES if r is not join_picks])
    model, x = made(read)
    explainer = relprop.Explainer(model, rules)
    expected = explainer(x, 1)
    assert "aten.select.int" in operations(explainer)
    assert torch.equal(found.output, expected.output)
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-10, atol=1e-12)
    for sample in range(3):  # the parts of a batch are those of its samples
        assert torch.allclose(explainer(x[sample : sample + 1], 1).relevance[0], found.relevance[sample])


def few(m: Any, x: Tensor) -> Tensor:
    return m.relu(m.layer(x[:, 0] - x[:, 3]))  # type: ignore[no-any-return]


def one(m: Any, x: Tensor) -> Tensor:
    return m.relu(m.layer(x))[:, 0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("read", [few, one], ids=lambda read: read.__name__)
def test_a_few_picks_of_many_places_stay_what_they_are(read: Callable[[Any, Tensor], Tensor]) -> None:
    model, x = made(read)
    explainer = relprop.Explainer(model, "epsilon")
    explainer(x, 1)
    assert "aten.unbind.int" not in operations(explainer)


def test_a_module_whose_output_is_a_pick_is_looked_into() -> None:
    model, x = made(by_a_module)
    found = relprop.explain(model, x, 1, "epsilon")
    inner, whole = found.at("chosen"), found.at("layer")
    assert inner.shape == (3, 4) and whole.shape == (3, STEPS, 4)
    assert torch.equal(inner, whole[:, 0])


def test_a_block_that_picks_hands_on_what_it_did() -> None:
    model, x = made(step_by_step)
    whole = nn.Sequential(model, nn.Linear(3, 2).double()).eval()
    found = relprop.explain(whole, x, 1, "epsilon")
    assert found.at("0").shape == (3, 3) and found.at("0.head").shape == (3, 3)


def test_other_lengths_are_read_alike() -> None:
    model, x = made(step_by_step)
    explainer = relprop.Explainer(model, "lrp_all")
    explainer(x, 1)
    for length in (3, 9):
        x = torch.randn(2, length, 4, dtype=torch.float64)
        found = explainer(x, 1)
        assert torch.allclose(found.output, model(x))
        assert found.audit is not None and found.audit.closes
