"""Explanations inside the model: at every module, under conditions, ranked, maximised, and of the parameters."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import relprop
from oracle import ORACLE
from relprop import Condition, rules
from test_reference import CONCEPTS, fashion, fashion_net, relative, score_of_nine  # noqa: F401
from test_untouched import assert_same, process_state, state_of
from zoo import ZOO

pytestmark = pytest.mark.filterwarnings("ignore::relprop.RelevanceWarning")
EXACT = 1e-12


def distance(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / max(float(b.abs().max()), 1e-30))


class Cut(nn.Module):
    """Layers one after the other: each is a cut of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3)
        self.relu, self.last = nn.ReLU(), nn.Linear(5 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.two(self.relu(self.one(x)))).flatten(1))


class Skip(nn.Module):
    """A block with a way around it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.block, self.after = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.before(x))
        return self.after(h + F.relu(self.block(h)))


@pytest.fixture
def cut() -> tuple[nn.Module, Tensor]:
    return Cut().double().eval(), torch.randn(3, 3, 8, 8, dtype=torch.float64)


@pytest.fixture
def skip() -> tuple[nn.Module, Tensor]:
    return Skip().double().eval(), torch.randn(4, 6, dtype=torch.float64)


# --- relevance at every module


class Record(NamedTuple):
    left: Tensor
    right: Tensor


class Several(nn.Module):
    """One of its modules is called twice, one returns a tuple, one a dict, one a view of what it was given."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.shared, self.parts, self.flat = nn.Linear(6, 6), Parts(form), nn.Flatten()
        self.recurrent, self.last = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.parts(self.shared(torch.tanh(self.shared(x))))
        left, right = found.values() if isinstance(found, dict) else found
        steps, _ = self.recurrent(self.flat(left + right).unflatten(1, (3, 6)))
        return self.last(steps[:, -1])


class Parts(nn.Module):
    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.left, self.right, self.form = nn.Linear(6, 6), nn.Linear(6, 6), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.left(x), self.right(x))


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda a, b: (a, b),
    "named tuple": Record,
    "dict": lambda a, b: {"left": a, "right": b},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_module_has_its_relevance(form: str) -> None:
    model = Several(FORMS[form]).double().eval()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    found = relprop.explain(model, x, 1, rules.Epsilon(1e-9))
    calls = found.at("shared")
    assert [tuple(part.shape) for part in calls] == [(2, 3, 6), (2, 3, 6)]
    assert torch.equal(found.at("shared@0"), calls[0]) and torch.equal(found.at("shared@1"), calls[1])
    left, right = found.at("parts")
    assert torch.equal(left, found.at("parts.left")) and torch.equal(right, found.at("parts.right"))
    assert found.at("flat").shape == (2, 18)
    assert distance(found.at("flat"), (left + right).flatten(1)) < 1e-5  # the sum has a stabiliser
    assert found.at("recurrent").shape == (2, 3, 4) and found.at("last").shape == (2, 2)
    assert distance(found.at("").sum(1), found.score) < EXACT


def test_a_module_that_gets_no_relevance_is_an_error_and_an_output_that_gets_none_is_zero() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.parts, self.aside = nn.Linear(6, 6), Parts(lambda a, b: (a, b)), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            left, right = self.parts(self.used(x))
            return left, right, self.aside(x)

    model, x = Idle().double().eval(), torch.randn(3, 6, dtype=torch.float64)
    found = relprop.explain(model, x, lambda y: y[0].sum(1))
    left, right = found.at("parts")
    assert bool(left.abs().sum() > 0) and right.shape == (3, 6) and not bool(right.any())
    with pytest.raises(relprop.InvalidInput, match="no relevance reaches 'aside'"):
        found.at("aside")
    with pytest.raises(relprop.InvalidInput, match=r"no such module.*\n  do: one of"):
        found.at("nothing")


def test_inner_relevance_of_parts_of_a_batch_is_joined_along_the_samples() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.inner(x.transpose(0, 1)))).mean(0)

    model, x = TimeFirst().double().eval(), torch.randn(5, 3, 4, dtype=torch.float64)
    whole = relprop.explain(model, x, 1).at("inner")
    assert whole.shape == (3, 5, 4)
    for size in (1, 2, 4):
        assert distance(relprop.explain(model, x, 1, batch_size=size).at("inner"), whole) < 1e-9


# --- conditions


def test_the_sum_over_all_channels_of_a_cut_is_the_whole_map(cut: Any) -> None:
    model, x = cut
    for rule in ("auto", "epsilon", "alpha2beta1", rules.Flat()):
        rule = rules.AlphaBeta() if rule == "alpha2beta1" else rule
        explainer = relprop.Explainer(model, rule)
        whole = explainer(x, 1)
        for path, count in (("two", 5), ("one", 6)):
            every = explainer.conditional(
                x, 1, conditions=[Condition(path, channels=c) for c in range(count)]
            )
            assert distance(sum(one.relevance for one in every), whole.relevance) < EXACT
            for one in every:
                assert torch.equal(one.score, whole.score) and one.audit.closes
                assert float(one.audit.gap.abs().max()) < 1e-13
            masked = sum(one.audit.absorbed["masked"] for one in every)  # each is masked in all runs but one
            assert distance(masked, (count - 1) * whole.at(path).sum((1, 2, 3))) < 1e-10


def test_several_conditions_share_one_forward_pass(cut: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    methods, passes = importlib.import_module("relprop.methods"), []
    original = methods.forward
    monkeypatch.setattr(methods, "forward", lambda *a: passes.append(1) or original(*a))
    model, x = cut
    relprop.Explainer(model).conditional(
        x, 1, conditions=[None, *(Condition("two", channels=c) for c in range(5))]
    )
    assert len(passes) == 1


def test_conditions_in_parts_of_a_batch_and_in_any_order_are_the_same(cut: Any) -> None:
    model, x = cut
    wanted = [
        Condition("one", channels=[0, 2]),
        None,
        Condition("two", channels=4),
        Condition("last", neurons=1),
    ]
    explainer = relprop.Explainer(model, "epsilon")
    together = explainer.conditional(x, 1, conditions=wanted)
    apart = relprop.Explainer(model, "epsilon", batch_size=2).conditional(x, 1, conditions=wanted)
    for condition, found, part in zip(wanted, together, apart, strict=True):
        (alone,) = explainer.conditional(x, 1, conditions=[condition])
        assert torch.equal(found.relevance, alone.relevance)
        assert distance(part.relevance, found.relevance) < 1e-9
        assert distance(part.at("one"), found.at("one")) < 1e-9
    assert torch.equal(together[1].relevance, explainer(x, 1).relevance)
    assert distance(together[3].relevance, together[1].relevance) < EXACT  # the target's neuron has it all


@pytest.mark.parametrize("name", ZOO)
def test_walks_that_are_made_together_are_those_made_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several targets of every network of the zoo, each with its account: in one walk, and one by one."""
    together = importlib.import_module("relprop.explain.together")
    model, x = ZOO[name](0)
    explainer = relprop.Explainer(model)
    monkeypatch.setattr(together, "SAMPLES", {"cpu": 1})
    alone = explainer.explain_targets(x, [0, 1, None])
    monkeypatch.setattr(together, "SAMPLES", {"cpu": 64})
    for found, expected in zip(explainer.explain_targets(x, [0, 1, None]), alone, strict=True):
        assert distance(found.relevance, expected.relevance) < 1e-9
        assert found.audit.absorbed.keys() == expected.audit.absorbed.keys()
        size = float(expected.audit.magnitude.max())
        for reason, amount in expected.audit.absorbed.items():
            assert float((found.audit.absorbed[reason] - amount).abs().max()) < 1e-9 * max(1.0, size)
        assert len(found.audit.entries) == len(expected.audit.entries)


def test_layers_of_one_condition_hold_at_once(cut: Any) -> None:
    model, x = cut
    explainer = relprop.Explainer(model, "epsilon")
    both = Condition("two", channels=[1, 2]) & Condition("one", channels=slice(0, 3))
    (found,) = explainer.conditional(x, 1, conditions=[both])
    pairs = [Condition("one", channels=i) & Condition("two", channels=c) for c in (1, 2) for i in range(3)]
    every = explainer.conditional(x, 1, conditions=pairs)
    assert distance(sum(one.relevance for one in every), found.relevance) < EXACT
    assert not bool(found.at("one")[:, 3:].any()) and bool(found.at("one")[:, :3].any())
    assert str(both) == "two (dimension 1: [1, 2]) & one (dimension 1: slice(0, 3, None))"


def test_units_can_be_named_in_every_way(cut: Any) -> None:
    model, x = cut
    boolean = torch.tensor([True, False, False, True, False])
    places = torch.zeros(6, 6, dtype=torch.bool).index_fill(0, torch.tensor([2]), True)
    same = [
        Condition("two", channels=[0, 3]),
        Condition("two", channels=(0, -2)),
        Condition("two", channels=boolean),
        Condition("two", channels=torch.tensor([3, 0])),
        Condition("two", channels=range(0, 4, 3)),
        Condition("two", along={1: [0, 3]}),
        Condition("two", mask=boolean[:, None, None]),
    ]
    explainer = relprop.Explainer(model, "epsilon")
    first, *rest = explainer.conditional(x, 1, conditions=same)
    assert all(torch.equal(one.relevance, first.relevance) for one in rest)
    by_place = [
        Condition("two", mask=places),
        Condition("two", along={2: 2}),
        Condition("two", along={-2: [2]}),
    ]
    row, *others = explainer.conditional(x, 1, conditions=by_place)
    assert all(torch.equal(one.relevance, row.relevance) for one in others)
    inner = row.at("two")
    assert bool(inner[:, :, 2].any()) and not bool(inner[:, :, [0, 1, 3, 4, 5]].any())
    wanted = Condition("two", channels=[0, 3], mask=places)
    (narrow,) = explainer.conditional(x, 1, conditions=[wanted])
    assert torch.equal(narrow.at("two"), inner * boolean[:, None, None])


def test_relevance_that_bypasses_a_module_stays_or_is_cut_off_as_asked(skip: Any) -> None:
    model, x = skip
    explainer = relprop.Explainer(model, "epsilon")
    everything = list(range(8))
    whole = explainer(x, 1)
    with_way, alone, nothing = explainer.conditional(
        x,
        1,
        conditions=[
            Condition("block", channels=everything),
            Condition("block", channels=everything, exclude_parallel=True),
            Condition("block", channels=[]),
        ],
    )
    assert torch.equal(with_way.relevance, whole.relevance)
    assert distance(alone.relevance + nothing.relevance, whole.relevance) < EXACT
    assert distance(alone.audit.absorbed["parallel"], whole.at("before").sum(1) - _through(whole)) < 1e-9
    assert alone.audit.closes and float(nothing.audit.absorbed["masked"].abs().sum()) > 0


def _through(whole: relprop.Explanation) -> Tensor:
    """What comes to the output of `before` through the block: the sum over the block's own inputs."""
    entry = next(e for e in whole.audit.entries if e.module == "block" and "linear" in e.operation)
    return entry.passed


def test_one_call_of_a_module_can_be_meant_alone() -> None:
    model, x = ZOO["reused"](0) if "reused" in ZOO else (None, None)
    if model is None:
        pytest.skip("the zoo has no network with a module that is called twice")
    path = next(p for p, m in model.named_modules() if isinstance(relprop.explain(model, x).at(p), tuple))
    explainer = relprop.Explainer(model, "epsilon")
    first, both = explainer.conditional(
        x, 1, conditions=[Condition(f"{path}@0", channels=[0]), Condition(path, channels=[0])]
    )
    assert not torch.equal(first.relevance, both.relevance)


BAD: dict[str, tuple[Callable[[], Condition], str]] = {
    "no unit": (lambda: Condition("two"), "nothing of 'two' is named"),
    "heads and more": (lambda: Condition("two", heads=0, channels=1), "stands alone"),
    "no path": (lambda: Condition(3, channels=1), "is no path"),  # type: ignore[arg-type]
    "no module": (lambda: Condition("three", channels=1), "no such module"),
    "no channel": (lambda: Condition("two", channels=5), "5 is no unit of 'two', which has 5"),
    "a number of channels": (lambda: Condition("two", channels=1.5), "is no unit"),  # type: ignore[arg-type]
    "a short mask": (lambda: Condition("two", channels=torch.ones(4, dtype=torch.bool)), "mask of shape"),
    "the batch": (lambda: Condition("two", along={0: 1}), "behind the samples"),
    "a mask that does not fit": (
        lambda: Condition("two", mask=torch.ones(7)),
        r"output for one sample is \(5, 6, 6\)",
    ),
    "no attention": (lambda: Condition("two", heads=0), "no attention is computed in 'two'"),
    "an output too many": (lambda: Condition("two", channels=0, output=1), "which gives 1"),
    "several calls": (lambda: Condition("relu", channels=0, exclude_parallel=True), "called 2 times"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_condition_that_means_nothing_is_one_clear_line(cut: Any, what: str) -> None:
    model, x = cut
    make, message = BAD[what]
    with pytest.raises(relprop.InvalidInput, match=message) as caught:
        relprop.Explainer(model).conditional(x, 1, conditions=[make()])
    assert len(str(caught.value).splitlines()) == 2 and "\n  do: " in str(caught.value)


def test_conditions_need_a_method_and_at_least_one_of_them(cut: Any) -> None:
    model, x = cut
    with pytest.raises(relprop.InvalidInput, match="knows none"):
        relprop.Explainer(model, rules.ZPlus(), "clrp").conditional(x, 1, conditions=[None])
    with pytest.raises(relprop.InvalidInput, match="the list is empty"):
        relprop.Explainer(model).conditional(x, 1, conditions=[])


CONDITIONS = {
    1: Condition("conv2", channels=[]),
    2: Condition("conv2", channels=[2]),
    3: Condition("parallel.0", channels=[]),
    4: Condition("parallel.0", channels=[]) & Condition("conv2", channels=[1, 2, 3]),
}


def test_published_conditional_heatmaps_of_a_trained_network(shared: Path, fashion: Any) -> None:  # noqa: F811
    """Heatmaps and inner relevance of another tool's tests, for five conditions and for 16 single channels."""
    images, _, reference = fashion
    explainer = relprop.Explainer(fashion_net(shared).double(), relprop.Composite(CONCEPTS))
    x = images[:1].double()
    found = explainer.conditional(x, score_of_nine, conditions=[None, *CONDITIONS.values()])
    size = reference["heatmaps"][0].abs().max()
    for row, one in enumerate(found):
        assert float((one.relevance[0, 0] - reference["heatmaps"][row]).abs().max() / size) < 2e-5
        inner = reference["conv1_relevances"]
        assert (
            float((one.at("conv1")[0] - inner[row]).abs().max() / inner[0].abs().max()) < 3e-5
            if row != 1
            else True
        )
    channels = [Condition("parallel.0", channels=[]) & Condition("conv2", channels=c) for c in range(16)]
    maps = torch.cat(
        [one.relevance[:, 0] for one in explainer.conditional(x, score_of_nine, conditions=channels)]
    )
    assert float((maps - reference["channel_heatmaps"]).abs().max() / size) < 2e-5


# --- heads


class Separate(nn.Module):
    """Self-attention in which every head is a module of its own."""

    def __init__(self, mha: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Identity() for _ in range(mha.num_heads))
        self.mix = nn.ModuleList(Head() for _ in range(mha.num_heads))
        self.mha, self.last = mha, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.mha.in_proj_weight, self.mha.in_proj_bias).chunk(3, -1)
        width = 8 // len(self.mix)
        pieces = [
            mix(*(t[..., h * width : (h + 1) * width] for t in (q, k, v))) for h, mix in enumerate(self.mix)
        ]
        return self.last(self.mha.out_proj(torch.cat(pieces, -1)).mean(1))


class Head(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


class Whole(nn.Module):
    def __init__(self, mha: nn.MultiheadAttention, last: nn.Linear, need_weights: bool) -> None:
        super().__init__()
        self.mha, self.last, self.need_weights = mha, last, need_weights

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mha(x, x, x, need_weights=self.need_weights)[0].mean(1))


TINY = relprop.Composite(
    [
        ("weighted", rules.Epsilon(1e-14)),
        ("product", rules.Attention(epsilon=1e-14)),
        ("addition", rules.Addition(epsilon=1e-14)),
        ("pool", rules.Epsilon(1e-14)),
    ]
)
"""Without stabilisers: they count differently where a scale stands elsewhere."""


@pytest.mark.parametrize("need_weights", [False, True])
def test_a_head_is_what_it_would_be_as_a_module_of_its_own(need_weights: bool) -> None:
    apart = Separate(nn.MultiheadAttention(8, 4, batch_first=True)).double().eval()
    model = Whole(apart.mha, apart.last, need_weights).double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    explainer, other = relprop.Explainer(model, TINY), relprop.Explainer(apart, TINY)
    heads = explainer.conditional(x, 1, conditions=[Condition("mha", heads=h) for h in range(4)])
    whole, expected = explainer(x, 1), other(x, 1)
    assert distance(whole.relevance, expected.relevance) < 1e-10
    assert distance(sum(one.relevance for one in heads), whole.relevance) < EXACT
    wanted = other.conditional(
        x,
        1,
        conditions=[
            _all(Condition(f"mix.{h}", neurons=slice(None) if h == kept else []) for h in range(4))
            for kept in range(4)
        ],
    )
    for one, module in zip(heads, wanted, strict=True):
        assert distance(one.relevance, module.relevance) < 1e-9
    ranking = whole.heads("mha")
    sums = torch.stack([expected.at(f"mix.{h}").sum((1, 2)) for h in range(4)], 1)
    assert distance(ranking.relevance, sums.sort(1, descending=True).values) < 1e-9
    assert torch.equal(ranking.index, sums.argsort(1, descending=True))


def _all(conditions: Any) -> Condition:
    first, *rest = conditions
    for condition in rest:
        first = first & condition
    return first


def bert(attention: str) -> tuple[nn.Module, Tensor, str, int]:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        attn_implementation=attention,
    )  # fmt: skip
    return (
        transformers.BertForSequenceClassification(config),
        torch.randint(1, 20, (2, 6)),
        "bert.encoder.layer.1",
        4,
    )


def llama(attention: str) -> tuple[nn.Module, Tensor, str, int]:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, attn_implementation=attention,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), torch.randint(1, 20, (2, 6)), "model.layers.0.self_attn", 4


def timm_model(name: str, path: str, heads: int, **options: Any) -> tuple[nn.Module, Tensor, str, int]:
    timm = pytest.importorskip("timm")
    return timm.create_model(name, **options), torch.randn(2, 3, 32, 32), path, heads


def torchvision_vit() -> tuple[nn.Module, Tensor, str, int]:
    models = pytest.importorskip("torchvision").models
    model = models.VisionTransformer(32, 16, 1, 4, 16, 32)
    nn.init.normal_(model.heads.head.weight)
    return model, torch.randn(2, 3, 32, 32), "encoder.layers.encoder_layer_0.self_attention", 4


VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 4, "num_classes": 5}
SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 8,
    "depths": (2,),
    "num_heads": (2,),
    "num_classes": 5,
}
ATTENTIONS: dict[str, Callable[[], tuple[nn.Module, Any, str, int]]] = {
    "bert, fused": lambda: bert("sdpa"),
    "bert, written out": lambda: bert("eager"),
    "llama, grouped": lambda: llama("sdpa"),
    "timm vit": lambda: timm_model("vit_tiny_patch16_224", "blocks.1.attn", 4, **VIT),
    "timm swin": lambda: timm_model("swin_tiny_patch4_window7_224", "layers.0.blocks.1.attn", 2, **SWIN),
    "torchvision vit": torchvision_vit,
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_heads_are_found_in_the_libraries_attentions(name: str) -> None:
    model, x, path, count = ATTENTIONS[name]()
    model = model.double().eval()
    x = x.double() if x.is_floating_point() else x
    target = (5, 3) if "llama" in name else 1
    explainer = relprop.Explainer(model, "attn_lrp")
    conditions = [Condition(path, heads=h, exclude_parallel=True) for h in range(count)]
    every = explainer.conditional(x, target, conditions=[*conditions, Condition(path, heads=range(count))])
    ranking = every[-1].heads(path)
    assert ranking.index.shape == (2, count) and bool((ranking.relevance != 0).any())
    assert distance(ranking.relevance.sum(1), ranking.total) < 1e-10
    for h, one in enumerate(every[:count]):
        assert one.audit.closes
        kept = one.heads(path).relevance.gather(1, one.heads(path).index.argsort(1))
        assert bool(kept[:, h].any()) and int((kept != 0).any(0).sum()) == 1
    with pytest.raises(relprop.InvalidInput, match=rf"{count} is no unit of"):
        explainer.conditional(x, target, conditions=[Condition(path, heads=count)])


def test_a_path_with_several_attentions_is_refused_by_name() -> None:
    model, x, _, _ = ATTENTIONS["torchvision vit"]()
    deeper = nn.Sequential(model.eval(), nn.Linear(1000, 2)).double().eval()
    found = relprop.explain(deeper, x.double(), 1, "attn_lrp")
    assert found.heads("0.encoder").index.shape == (2, 4)  # one attention in it
    twice, y, _, _ = ATTENTIONS["bert, fused"]()
    with pytest.raises(relprop.InvalidInput, match="holds several attentions"):
        relprop.explain(twice.eval(), y, 1, "attn_lrp").heads("bert.encoder")


# --- units ranked


def test_channels_and_neurons_are_listed_by_relevance(cut: Any) -> None:
    model, x = cut
    found = relprop.explain(model, x, 1)
    inner = found.at("two")
    sums = inner.sum((2, 3))
    ranking = found.channels("two")
    assert distance(ranking.relevance, sums.sort(1, descending=True).values) < EXACT
    assert distance(ranking.total, sums.sum(1)) < EXACT
    first = found.channels("two", 2, normalise=True)
    assert first.index.shape == (3, 2) and torch.equal(first.index, ranking.index[:, :2])
    assert distance(first.relevance, ranking.relevance[:, :2] / sums.abs().sum(1, keepdim=True)) < 1e-8
    both = found.channels("relu@0").total + found.channels("relu@1").total
    assert distance(both, found.at("relu@0").sum((1, 2, 3)) + found.at("relu@1").sum((1, 2, 3))) < 1e-9
    with pytest.raises(relprop.InvalidInput, match="have different numbers of them"):
        found.channels("relu")
    with pytest.raises(relprop.InvalidInput, match="k=9 of 'two', which has 5"):
        found.channels("two", 9)
    assert found.neurons("last", 1).index.flatten().tolist() == [1 if s > 0 else 0 for s in found.score]
    assert "channels of two" in str(ranking)


# --- what maximises a unit


def batches(x: Tensor, size: int) -> list[Tensor]:
    return list(x.split(size))


@pytest.mark.parametrize("how", ["max", "sum"])
@pytest.mark.parametrize("by", ["relevance", "activation"])
def test_the_samples_that_maximise_a_channel_are_those_of_the_whole_data_set(by: Any, how: Any) -> None:
    model, x = Cut().double().eval(), torch.randn(23, 3, 8, 8, dtype=torch.float64)
    explainer = relprop.Explainer(model)
    if by == "relevance":
        values = explainer(x).at("two")
    else:
        with torch.no_grad():
            values = model.two(F.relu(model.one(x)))
    flat = values.flatten(2)
    measure = flat.amax(2) if how == "max" else flat.sum(2)
    order = measure.T.argsort(1, descending=True)[:, :4]
    found = relprop.maximise(explainer, batches(x, 7), "two", by=by, how=how, k=4)
    assert found.units == (0, 1, 2, 3, 4) and torch.equal(found.index, order) and found.seen == 23
    assert distance(found.value, measure.T.gather(1, order)) < 1e-9
    place = flat.argmax(2).T.gather(1, order)
    assert torch.equal(found.position, torch.stack([place // 6, place % 6], -1))
    assert found.samples == {}
    few = relprop.maximise(explainer, batches(x, 5), "two", [3], by=by, how=how, k=4)
    assert torch.equal(few.index[0], order[3]) and set(few.samples) == set(order[3].tolist())
    assert all(torch.equal(sample, x[i]) for i, sample in few.samples.items())


def test_targets_may_come_with_the_batches_and_fewer_samples_than_asked_for_are_fine(cut: Any) -> None:
    model, x = cut
    labels = torch.tensor([2, 0, 1])
    explainer = relprop.Explainer(model)
    found = relprop.maximise(
        explainer, zip(x.split(2), labels.split(2), strict=True), "two", 1, target="label", k=8
    )
    expected = explainer(x, labels).at("two")[:, 1].flatten(1).amax(1)
    assert distance(found.value[0], expected.sort(descending=True).values) < 1e-9
    assert found.index.shape == (1, 3)


def test_the_published_samples_of_a_trained_network_are_found(shared: Path, fashion: Any) -> None:  # noqa: F811
    """Of the first 500 images: those with most activation are the same under both spellings of the layer."""
    images, _, _ = fashion
    explainer = relprop.Explainer(fashion_net(shared), relprop.Composite(CONCEPTS))
    by_name = relprop.maximise(
        explainer, images[:100].split(25), "conv2", [0, 2], by="activation", how="sum", k=4
    )
    with torch.no_grad():
        net = fashion_net(shared)
        values = net.bn2(net.conv2(F.relu(net.bn1(net.conv1(images[:100]))))).sum((2, 3))
    assert torch.equal(by_name.index, values.T.argsort(1, descending=True)[[0, 2], :4])


def test_what_cannot_be_maximised_is_one_clear_line(cut: Any) -> None:
    model, x = cut
    explainer = relprop.Explainer(model)
    for options, message in (
        ({"by": "size"}, "by='size' is unknown"),
        ({"how": "mean"}, "how='mean' is unknown"),
        ({"k": 0}, "k=0 is below 1"),
        ({"units": [7]}, "7 is none of the 5 channels"),
    ):
        with pytest.raises(relprop.InvalidInput, match=message):
            relprop.maximise(explainer, [x], "two", **options)
    with pytest.raises(relprop.InvalidInput, match="no batch"):
        relprop.maximise(explainer, [], "two")
    with pytest.raises(relprop.InvalidInput, match="were not kept"):
        relprop.maximise(explainer, [x], "two").picture()
    picture = relprop.maximise(explainer, [x], "two", [0, 1], k=2).picture(title="two")
    assert picture.width > 200 and picture.height > 200


# --- the relevance of parameters


LINEAR = {
    "epsilon": rules.Epsilon(0.01),
    "epsilon, distribute": rules.Epsilon(0.01, bias="distribute"),
    "gamma": rules.Gamma(0.5),
    "gamma of captum": rules.Gamma(0.5, modified_bias=False),
    "alpha beta": rules.AlphaBeta(),
    "alpha beta, full bias": rules.AlphaBeta(full_bias=True, epsilon=1e-3),
    "z plus": rules.ZPlus(),
    "z box": rules.ZBox(-3.0, 3.0),
    "w square": rules.WSquare(),
    "flat": rules.Flat(),
}


def by_unit(rule: Any, x: np.ndarray, w: np.ndarray, b: np.ndarray, r: np.ndarray) -> np.ndarray:
    """The message that each weight of a dense layer carries, unit by unit, by the slow twin of the rule."""
    rows = [
        ORACLE[type(rule)](rule, x, w, b, r * (np.arange(len(r)) == k), np.ones_like(w, dtype=bool))[0]
        for k in range(len(r))
    ]
    return np.stack(rows)


@pytest.mark.parametrize("rule", LINEAR.values(), ids=LINEAR)
def test_the_relevance_of_weights_is_that_of_the_dense_twin(rule: Any) -> None:
    layer = nn.Linear(5, 4).double().eval()
    x = torch.randn(3, 5, dtype=torch.float64).clamp(-3, 3)
    found = relprop.explain(layer, x, torch.randn(3, 4, dtype=torch.float64), rule)
    start = (found.target * found.output).numpy()
    w, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    expected = [by_unit(rule, x[i].numpy(), w, b, start[i]) for i in range(3)]
    each = found.parameters(per_sample=True).relevance
    whole = found.parameters().relevance
    assert np.allclose(each["weight"], np.stack(expected), atol=1e-12)
    assert np.allclose(whole["weight"], sum(expected), atol=1e-12)
    assert distance(each["weight"].sum(1), found.relevance) < EXACT  # by input
    to_bias = found.audit.absorbed.get("bias", torch.zeros(3, dtype=torch.float64))
    assert torch.allclose(each["bias"].sum(1), to_bias, atol=1e-12)


@pytest.mark.parametrize("rule", LINEAR.values(), ids=LINEAR)
def test_the_relevance_of_a_kernel_is_summed_over_its_places(rule: Any) -> None:
    layer = nn.Conv1d(2, 3, 3, stride=2).double().eval()
    x = torch.randn(2, 2, 9, dtype=torch.float64).clamp(-3, 3)
    target = torch.randn(2, 3, 4, dtype=torch.float64)
    found = relprop.explain(layer, x, target, rule)
    start = target * found.output
    w, b = layer.weight.detach().flatten(1).numpy(), layer.bias.detach().numpy()
    expected = sum(
        by_unit(rule, x[i, :, 2 * p : 2 * p + 3].flatten().numpy(), w, b, start[i, :, p].numpy())
        for i in range(2)
        for p in range(4)
    )
    assert np.allclose(found.parameters().relevance["weight"].flatten(1), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["cnn", "mlp", "residual", "inverted_residual", "normalised"])
def test_weights_pass_on_what_their_operations_hand_on(name: str) -> None:
    if name not in ZOO:
        pytest.skip("not in the zoo")
    model, x = ZOO[name](0)
    for rule in ("auto", "epsilon", rules.AlphaBeta()):
        found = relprop.explain(
            model, x, 1, relprop.Composite([("weighted", rule)]) if not isinstance(rule, str) else rule
        )
        of_weights = found.parameters()
        assert all("folded into" in reason for reason in of_weights.left_out.values())
        weighted = [e for e in found.audit.entries if "conv" in e.operation or "linear" in e.operation]
        for entry in weighted:
            if sum(e.module == entry.module for e in weighted) == 1:
                sums = of_weights.relevance[f"{entry.module}.weight"].double().sum()
                assert abs(float(sums - entry.passed.sum())) < 1e-9 * max(
                    1.0, float(found.audit.magnitude.max())
                )
        biases = [r.sum() for path, r in of_weights.relevance.items() if path.endswith("bias")]
        to_bias = found.audit.absorbed.get("bias", torch.zeros(1, dtype=torch.float64)).sum()
        assert abs(float(sum(biases) - to_bias)) < 1e-9 * max(1.0, float(found.audit.magnitude.max()))


def test_parameters_of_a_transformer_have_their_relevance_or_are_left_out_by_name() -> None:
    model, x, _, _ = ATTENTIONS["timm vit"]()
    model, x = model.double().eval(), x.double()
    nn.init.normal_(model.cls_token)
    found = relprop.explain(model, x, 1, "attn_lrp")
    of_weights = found.parameters()
    paths = dict(model.named_parameters())
    assert set(of_weights.relevance) | set(of_weights.left_out) == set(paths) and not of_weights.left_out
    for path, relevance in of_weights.relevance.items():
        assert relevance.shape == paths[path].shape
    kept = sum(
        r.sum()
        for path, r in of_weights.relevance.items()
        if path.endswith(("bias", "cls_token", "pos_embed"))
    )
    accounts = sum(found.audit.absorbed[reason].sum() for reason in ("bias", "constant"))
    assert abs(float(kept - accounts)) < 1e-8 * float(found.audit.magnitude.max())
    ids = torch.tensor([[3, 1, 3]])
    table = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2)).double().eval()
    words = relprop.explain(table, ids, 0)
    rows = words.parameters().relevance["0.weight"].sum(1)
    assert torch.allclose(rows, torch.zeros(5, dtype=torch.float64).index_add(0, ids[0], words.relevance[0]))


def test_a_parameter_without_relevance_of_its_own_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.layer = nn.Parameter(torch.rand(4, 6) + 0.5), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.layer.weight * self.scale
            return F.linear(x, weight, self.layer.bias)

    model = Odd().double().eval()
    found = relprop.explain(model, torch.randn(2, 6, dtype=torch.float64), 1).parameters()
    assert set(found.relevance) == {"layer.bias"} and set(found.left_out) == {"layer.weight", "scale"}
    assert "aten.mul.Tensor" in found.left_out["scale"] and "left out" in str(found)


# --- contrast


def test_clrp_keeps_what_speaks_for_the_target_alone(cut: Any) -> None:
    model, x = cut
    rule = rules.ZPlus()
    found = relprop.explain(model, x, [2, 0, 1], rule, "clrp")
    maps = []
    for weights in (F.one_hot(torch.tensor([2, 0, 1]), 4).double(), None):
        one_hot = F.one_hot(torch.tensor([2, 0, 1]), 4).double()
        with torch.no_grad():
            seed = (one_hot if weights is not None else 1 - one_hot) / model(x)  # the start is 1 a class
        relevance = relprop.explain(model, x, seed, rule).relevance
        maps.append(relevance / relevance.sum((1, 2, 3), keepdim=True))
    assert distance(found.relevance, (maps[0] - maps[1]).clamp(min=0)) < 1e-9
    assert found.audit is None and found.method == "clrp" and bool((found.relevance >= 0).all())
    assert torch.equal(found.score, found.output[torch.arange(3), torch.tensor([2, 0, 1])])
    with pytest.raises(relprop.InvalidInput, match="no relevance inside"):
        found.at("two")


def test_clrp_refuses_what_it_cannot_normalise_and_what_is_no_class(cut: Any) -> None:
    model, x = cut
    with pytest.raises(relprop.InvalidInput, match="cannot be normalised to 1"):
        relprop.explain(
            nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).eval(), torch.zeros(1, 3), 0, "epsilon", "clrp"
        )
    with pytest.raises(relprop.InvalidInput, match="one class against all others"):
        relprop.explain(model, x, lambda y: y.sum(1), rules.ZPlus(), "clrp")


# --- nothing is touched


CALLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "conditions": lambda m, x: relprop.Explainer(m).conditional(
        x, 1, conditions=[Condition("two", channels=1), None]
    ),
    "a condition that fails": lambda m, x: _refused(
        lambda: relprop.Explainer(m).conditional(x, 1, conditions=[Condition("two", channels=99)])
    ),
    "channels": lambda m, x: relprop.explain(m, x).channels("two"),
    "maximise": lambda m, x: relprop.maximise(relprop.Explainer(m), [x], "two", 1),
    "parameters": lambda m, x: relprop.explain(m, x).parameters(per_sample=True),
    "clrp": lambda m, x: relprop.explain(m, x, 1, rules.ZPlus(), "clrp"),
    "pairs": lambda m, x: relprop.bilrp(m, x, x.flip(0)),
}


def _refused(call: Callable[[], Any]) -> None:
    with pytest.raises(relprop.InvalidInput):
        call()


@pytest.mark.parametrize("call", CALLS)
def test_looking_inside_touches_neither_model_input_nor_process(cut: Any, call: str) -> None:
    model, x = cut
    model(x).square().sum().backward()
    given, version = x.clone(), x._version
    before, process = state_of(model), process_state()
    CALLS[call](model, x)
    assert_same(before, state_of(model))
    assert_same(process, process_state())
    assert torch.equal(x, given) and x._version == version
