"""Pairs of features behind a similarity: Σ_m R⁽ᵐ⁾(x) ⊗ R⁽ᵐ⁾(x'), from one forward pass a side."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import relprop
from relprop import rules

pytestmark = pytest.mark.filterwarnings("ignore::relprop.RelevanceWarning")


class Conv(nn.Module):
    """An embedding of images; the ReLU in it is what makes pairs more than a product of sums."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.one, self.pool = nn.Conv2d(3, 8, 3, padding=1, bias=bias), nn.MaxPool2d(2)
        self.two = nn.Linear(8 * 36, 10, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.pool(F.relu(self.one(x))).flatten(1))


class Words(nn.Module):
    """An embedding of sentences with attention, a mask and a mean over the words that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mha = nn.Embedding(30, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        h, there = self.table(ids), ids.ne(0)
        h = h + self.mha(h, h, h, key_padding_mask=~there, need_weights=False)[0]
        return (h * there[..., None]).sum(1) / there.sum(1, keepdim=True)


def one_by_one(model: nn.Module, x: Tensor, y: Tensor, rule: Any, part: Callable[[Tensor], Tensor]) -> Tensor:
    """The definition, a walk for each dimension of either side."""
    with torch.no_grad():
        size = model(x).shape[1]
    total: Any = 0
    for m in range(size):
        first, second = (part(relprop.explain(model, side, m, rule).relevance) for side in (x, y))
        total = total + torch.einsum("bp,bq->bpq", first.flatten(1), second.flatten(1))
    return total


def patches(relevance: Tensor) -> Tensor:
    return F.avg_pool2d(relevance.sum(1, keepdim=True), 4) * 16


@pytest.mark.parametrize("at_once", [1, 3, 32])
def test_pairs_of_patches_are_the_sum_over_all_dimensions(at_once: int) -> None:
    model, x, y = (
        Conv().double().eval(),
        torch.randn(2, 3, 12, 12).double(),
        torch.randn(2, 3, 12, 12).double(),
    )
    found = relprop.bilrp(model, x, y, rules.Gamma(0.25), patch=4, at_once=at_once)
    expected = one_by_one(model, x, y, rules.Gamma(0.25), patches)
    assert found.relevance.shape == (2, 3, 3, 3, 3) and found.patch == 4
    assert torch.allclose(found.relevance.reshape(2, 9, 9), expected, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(found.similarity, (model(x) * model(y)).sum(1))
    assert float(found.gap.abs().max()) < 1e-12


def test_pairs_of_a_network_without_biases_sum_to_the_inner_product() -> None:
    model = Conv(bias=False).double().eval()
    x, y = torch.randn(3, 3, 12, 12).double(), torch.randn(3, 3, 12, 12).double()
    found = relprop.bilrp(model, x, y, rules.Epsilon(0.0))
    assert torch.allclose(found.relevance.flatten(1).sum(1), found.similarity, rtol=1e-12, atol=1e-12)
    assert all(float(amount.abs().max()) < 1e-12 for amount in found.absorbed.values())
    assert found.relevance.shape == (3, 12, 12, 12, 12)  # 16 patches along a side are more than its pixels


def test_what_the_walks_absorb_and_the_pairs_add_up_to_the_similarity() -> None:
    model = Conv().double().eval()
    x, y = torch.randn(2, 3, 12, 12).double(), torch.randn(2, 3, 12, 12).double()
    for rule in (rules.Epsilon(0.1), rules.AlphaBeta(), rules.ZPlus()):
        for similarity in ("inner", "cosine"):
            found = relprop.bilrp(model, x, y, rule, similarity=similarity)  # type: ignore[arg-type]
            assert float(found.gap.abs().max()) < 1e-11
            assert set(found.absorbed) >= {"stabilizer"}
    with torch.no_grad():
        assert torch.allclose(found.similarity, F.cosine_similarity(model(x), model(y)))


def test_pairs_of_words_in_sentences_of_different_length() -> None:
    model = Words().double().eval()
    x, y = torch.tensor([[3, 7, 1, 0], [5, 2, 9, 4]]), torch.tensor([[8, 3, 3, 1, 6, 2], [7, 7, 2, 0, 0, 0]])
    found = relprop.bilrp(model, x, y, "attn_lrp")
    expected = one_by_one(model, x, y, "attn_lrp", lambda r: r)
    assert found.relevance.shape == (2, 4, 6) and found.patch is None
    assert torch.allclose(found.relevance, expected, rtol=1e-8, atol=1e-11)
    assert not bool(found.relevance[0, 3].any()) and not bool(found.relevance[1, :, 3:].any())  # padding
    explainer = relprop.Explainer(model, "attn_lrp")  # one capture serves both lengths
    assert torch.equal(relprop.bilrp(explainer, x, y).relevance, found.relevance)
    swapped = relprop.bilrp(model, y, x, "attn_lrp")
    assert torch.allclose(swapped.relevance.mT, found.relevance, rtol=1e-9, atol=1e-12)


def test_all_dimensions_of_a_side_share_one_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, passes = importlib.import_module("relprop.inside.pairs"), []
    original = pairs.forward
    monkeypatch.setattr(pairs, "forward", lambda *a: passes.append(1) or original(*a))
    model, x = Conv().double().eval(), torch.randn(2, 3, 12, 12).double()
    relprop.bilrp(model, x, x, at_once=4)
    assert len(passes) == 2
    copies, walks = [], []
    together = importlib.import_module("relprop.explain.together")
    walk, repeated = pairs.walk, together.repeated
    monkeypatch.setattr(pairs, "walk", lambda *a: walks.append(1) or walk(*a))
    monkeypatch.setattr(together, "repeated", lambda *a: copies.append(1) or repeated(*a))
    relprop.bilrp(model, x, x, at_once=4)
    assert len(walks) == 2 * 3 and len(copies) == 2 * 2  # of 10 dimensions: 4, 4 and 2


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_batch_in_parts_has_the_same_pairs(batch_size: int) -> None:
    model, x = Conv().double().eval(), torch.randn(3, 3, 12, 12).double()
    whole = relprop.bilrp(model, x, x.flip(0))
    parts = relprop.bilrp(model, x, x.flip(0), batch_size=batch_size)
    assert torch.allclose(whole.relevance, parts.relevance, rtol=1e-8, atol=1e-11)
    for reason, amount in whole.absorbed.items():
        assert torch.allclose(parts.absorbed[reason], amount, rtol=1e-8, atol=1e-11)


class Branching(nn.Module):
    """Its forward pass asks for values, so that it is captured for one sample at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if float(x.sum()) > 0 else self.two(x)


class Picked(nn.Module):
    """It counts the samples in its forward pass: each takes the step of its own number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x))
        chosen = x.abs().sum(2).argmax(1)
        return self.last(h[torch.arange(x.shape[0]), chosen])


@pytest.mark.parametrize("kind", [Branching, Picked])
def test_models_whose_values_cannot_simply_be_repeated_have_their_pairs_too(kind: Any) -> None:
    model = kind().double().eval()
    shape = (3, 6) if kind is Branching else (3, 5, 4)
    x, y = torch.randn(shape).double(), torch.randn(shape).double()
    part = (lambda r: r) if kind is Branching else (lambda r: r.sum(1))
    found = relprop.bilrp(model, x, y, rules.Epsilon(1e-6))
    expected = one_by_one(model, x, y, rules.Epsilon(1e-6), part)
    assert torch.allclose(found.relevance, expected, rtol=1e-8, atol=1e-11)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no such similarity": (lambda: relprop.bilrp(Conv().eval(), X, X, similarity="dot"), "'dot' is unknown"),  # type: ignore[arg-type]
    "nothing at once": (lambda: relprop.bilrp(Conv().eval(), X, X, at_once=0), "at_once: 0"),
    "no patch": (lambda: relprop.bilrp(Conv().eval(), X, X, patch=0), "patch: 0"),
    "other numbers": (lambda: relprop.bilrp(Conv().eval(), X, X[:1]), "as many second inputs"),
    "no embedding": (lambda: relprop.bilrp(nn.Conv2d(3, 2, 3).eval(), X, X), "is no embedding"),
    "no such sample": (
        lambda: relprop.bilrp(Conv().eval(), X, X).picture(sample=2),
        "there is no sample 2 of 2",
    ),
    "no lines": (lambda: relprop.bilrp(Conv().eval(), X, X).picture(strongest=0), "shows nothing"),
}
X = torch.rand(2, 3, 12, 12)


@pytest.mark.parametrize("what", BAD)
def test_what_has_no_pairs_is_one_clear_line(what: str) -> None:
    call, message = BAD[what]
    with pytest.raises(relprop.InvalidInput, match=message) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 2 and "\n  do: " in str(caught.value)


# --- pictures


def test_the_strongest_pair_is_a_line_of_its_sign_between_its_patches() -> None:
    model = Conv().eval()
    found = relprop.bilrp(model, X, X.flip(0), patch=4)
    relevance = torch.zeros_like(found.relevance)
    relevance[0, 0, 0, 2, 2], relevance[0, 2, 0, 0, 2] = 2.0, -1.0
    drawn = {}
    for kept in (2, 1):
        fake = relprop.inside.Pairs(relevance, found.similarity, {}, found.embeddings, (X, X.flip(0)), 4)
        drawn[kept] = np.asarray(fake.picture(strongest=kept)).astype(int)
    both, strongest = drawn[2], drawn[1]
    assert both.shape == strongest.shape
    middle = slice(360, 420)  # pixels between the two photographs
    red = (strongest[:, middle, 0] - strongest[:, middle, 2] > 60).any(0)
    blue = (strongest[:, middle, 2] - strongest[:, middle, 0] > 60).any()
    assert red.all() and not blue
    assert (both[:, middle, 2] - both[:, middle, 0] > 30).any(0).mean() > 0.8  # they cross


def test_pairs_of_words_are_drawn_with_their_names() -> None:
    model = Words().eval()
    found = relprop.bilrp(model, torch.tensor([[3, 7, 1]]), torch.tensor([[8, 3]]), "attn_lrp")
    named = found.picture(words=(["a", "cat", "sat"], ["the", "dog"]), title="two sentences")
    assert named.width > 400 and named.height > 150
    assert not np.array_equal(np.asarray(found.picture(title="two sentences")), np.asarray(named))
    with pytest.raises(relprop.InvalidInput, match="words for"):
        found.picture(words=(["a", "cat", "sat", "down"], ["the", "dog"]))


def test_pairs_print_their_account_and_no_tensors() -> None:
    found = relprop.bilrp(
        nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)).eval(), *torch.randn(2, 1, 3)
    )
    lines = str(found).splitlines()
    assert [line.split("  ")[0].strip() for line in lines[:2]] == ["similarity", "relevance"]
    assert any(line.startswith("absorbed: bias") for line in lines)
    amounts = [float(line.split()[-1]) for line in lines]
    assert abs(amounts[0] - sum(amounts[1:])) < 1e-4 * max(1.0, *map(abs, amounts))
    assert "tensor([[" not in repr(found)
