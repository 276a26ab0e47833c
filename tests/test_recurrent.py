"""Recurrent networks: a layer is its written-out loop, packed is padded, accounts close, lengths are free."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relprop
from relprop.engine.propagate import record
from relprop.explain import Explainer, captured_graph, leaves_of
from relprop.rules import Addition, Epsilon, Gamma, Product, Recurrent

SAME = 1e-10
KINDS = ("LSTM", "GRU", "RNN")
PRESETS = ("auto", "lrp_all", "lrp_half", "lrp_prop", "epsilon_plus_flat", "epsilon_alpha2_beta1", "attn_lrp")
ABS = relprop.Composite(
    [("weighted", Epsilon(1e-3)), ("product", Product("abs")), ("addition", Addition("abs"))], name="abs"
)


def maxrel(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / torch.maximum(a.abs().max(), b.abs().max()).clamp(min=1e-30))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class Reader(nn.Module):
    """A recurrent layer and a linear one on its last output, spelled in several ways with the same weights."""

    def __init__(self, kind: str, spelling: str = "layer", **options: Any) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(3, 4, batch_first=True, **options)
        self.head = nn.Linear(4, 3)
        self.kind, self.spelling = kind, spelling
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.spelling == "layer":
            return self.head(self.layer(x)[0][:, -1])
        w, u, b, d = (
            getattr(self.layer, f"{name}_l0", None)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = c = x.new_zeros(x.shape[0], 4)
        read = F.linear(x, w, b)  # of all steps at once
        for t in range(x.shape[1]):
            if self.spelling == "cell":
                h, c = self._cell(x[:, t], h, c, w, u, b, d)
            elif self.spelling == "joint":
                h, c = self._step(F.linear(x[:, t], w, b), F.linear(h, u, d), h, c)
            else:
                product = torch.matmul(h, u.t())
                h, c = self._step(read[:, t], product if d is None else product + d, h, c)
        return self.head(h)

    def _cell(self, x: Tensor, h: Tensor, c: Tensor, *weights: Any) -> tuple[Tensor, Tensor]:
        if self.kind == "LSTM":
            return torch.lstm_cell(x, (h, c), *weights)
        return (torch.gru_cell if self.kind == "GRU" else torch.rnn_tanh_cell)(x, h, *weights), c

    def _step(self, a: Tensor, b: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "RNN":
            return torch.tanh(a + b), c
        if self.kind == "LSTM":
            i, f, g, o = (a + b).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c
        (ar, az, an), (br, bz, bn) = a.chunk(3, 1), b.chunk(3, 1)
        r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
        return (1 - z) * torch.tanh(an + r * bn) + z * h, c


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spelling", ["cell", "joint", "apart"])
def test_a_written_out_loop_is_the_layer_under_every_preset(kind: str, spelling: str) -> None:
    layer, loop, x = Reader(kind), Reader(kind, spelling), normal(2, 4, 3)
    loop.load_state_dict(layer.state_dict())
    for rules in (
        *PRESETS,
        ABS,
        Epsilon(0.1),
        Epsilon(0.01, bias="distribute"),
        Epsilon(0.01, bias="ignore"),
    ):
        one, two = (relprop.explain(model, x, 1, rules) for model in (layer, loop))
        assert maxrel(one.relevance, two.relevance) <= SAME, rules
        for reason, amount in one.audit.absorbed.items():
            assert torch.allclose(amount, two.audit.absorbed[reason], rtol=1e-8, atol=1e-12), (rules, reason)


@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
        {"num_layers": 2, "batch_first": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [*KINDS, "relu", "proj"])
def test_accounts_close_in_every_variant_and_a_batch_is_its_samples(
    kind: str, options: dict[str, Any]
) -> None:
    own = {"relu": {"nonlinearity": "relu"}, "proj": {"proj_size": 2}}.get(kind, {})
    name = {"relu": "RNN", "proj": "LSTM"}.get(kind, kind)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = getattr(nn, name)(3, 4, **({"batch_first": True} | own | options))
            self.head = nn.LazyLinear(2)

        def forward(self, x: Tensor) -> Tensor:
            if self.layer.batch_first:
                return self.head(self.layer(x)[0].mean(1))
            return self.head(self.layer(x.transpose(0, 1))[0].mean(0))

    model, x = Net().double().eval(), normal(3, 4, 3)
    model(x)
    for rules in ("auto", "lrp_half", "epsilon_plus"):
        together = relprop.explain(model, x, 1, rules)
        assert together.relevance.shape == x.shape and together.audit.closes
        assert float(together.audit.gap.abs().max()) <= 1e-12 * float(
            together.audit.magnitude.max().clamp(min=1)
        )
        alone = relprop.explain(model, x[1:2], 1, rules)
        assert maxrel(alone.relevance[0], together.relevance[1]) <= SAME
    operations = [row.operation for row in Explainer(model, "auto", example=x).plan]
    assert sum(".input" in operation for operation in operations) == 1, "the layer is one operation"


def test_packed_is_padded_and_masked_and_padding_gets_nothing() -> None:
    class Masked(nn.Module):
        def __init__(self, packs: bool) -> None:
            super().__init__()
            self.layer, self.head, self.packs = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2), packs

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            if self.packs:
                packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
                return self.head(self.layer(packed)[1][0][-1])
            last = (lengths - 1).reshape(-1, 1, 1).expand(-1, 1, 4)
            return self.head(self.layer(x)[0].gather(1, last)[:, 0])

    padded, packed = (Masked(packs).double().eval() for packs in (False, True))
    packed.load_state_dict(padded.state_dict())
    x, lengths = normal(3, 5, 3), torch.tensor([5, 2, 3])
    for rules in ("auto", "lrp_half", "epsilon_alpha2_beta1"):
        one, two = (relprop.explain(model, (x, lengths), 1, rules).relevance[0] for model in (padded, packed))
        assert maxrel(one, two) <= SAME
        for sample, length in enumerate(lengths):
            assert not one[sample, length:].any() and not two[sample, length:].any()
            assert two[sample, length - 1].any()


class FromStates(nn.Module):
    """An LSTM whose states are inputs (B, H), learned, or zero."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.head, self.kind = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2), kind
        self.h, self.c = (nn.Parameter(torch.randn(1, 1, 4)) for _ in range(2))
        self.double().eval()

    def forward(self, x: Tensor, *states: Tensor) -> Tensor:
        given = tuple(s[None] for s in states) or None
        if self.kind == "learned":
            given = tuple(s.expand(1, len(x), 4).contiguous() for s in (self.h, self.c))
        return self.head(self.layer(x, given)[0][:, -1])


def test_initial_states_get_relevance_as_inputs_and_an_account_as_constants() -> None:
    x, h, c = normal(3, 4, 3), normal(3, 4), normal(3, 4)
    given = relprop.explain(FromStates("input"), (x, h, c), 1, "lrp_half")
    assert [tuple(r.shape) for r in given.relevance] == [(3, 4, 3), (3, 4), (3, 4)]
    assert all(bool(r.isfinite().all()) and bool(r.any()) for r in given.relevance)
    assert "constant" not in given.audit.absorbed
    learned = relprop.explain(FromStates("learned"), x, 1, "lrp_half")
    assert bool(learned.audit.absorbed["constant"].all())
    zero = FromStates("zero")
    assert "constant" not in relprop.explain(zero, x, 1, "lrp_half").audit.absorbed
    twin = FromStates("learned")
    twin.load_state_dict(zero.state_dict())
    for state in (twin.h, twin.c):
        state.data.zero_()
    assert maxrel(*(relprop.explain(model, x, 1).relevance for model in (zero, twin))) <= SAME


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_states_in_the_form_of_the_layer_are_taken_as_they_are(batch: int) -> None:
    """(layers, B, H): the samples lie in the second dimension, also where as many layers as samples are given."""

    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.LSTM(3, 4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
            return self.head(self.layer(x, (h, c))[0][:, -1])

    model, inputs = (
        Stateful().double().eval(),
        (normal(batch, 4, 3), normal(2, batch, 4), normal(2, batch, 4)),
    )
    together = relprop.explain(model, inputs, 1)
    apart = relprop.explain(model, inputs, 1, batch_size=1)
    assert [r.shape for r in together.relevance] == [x.shape for x in inputs]
    assert "constant" not in together.audit.absorbed and together.audit.closes
    for one, two in zip(together.relevance, apart.relevance, strict=True):
        assert maxrel(one, two) <= SAME and bool(one.any())


def test_lrp_all_without_stabiliser_is_gradient_times_input_with_gates_held() -> None:
    """Propagation sheet, 6.1: gates, tanh(c)/c and tanh(g)/g are constants."""
    model, x = Reader("LSTM", bias=False), normal(2, 4, 3)
    zero = relprop.Composite([("weighted", Epsilon(0.0)), ("addition", Addition(epsilon=0.0))])
    found = relprop.explain(model, x, 1, zero)
    leaf = x.clone().requires_grad_()
    h = c = x.new_zeros(2, 4)
    for t in range(4):
        z = F.linear(leaf[:, t], model.layer.weight_ih_l0) + F.linear(h, model.layer.weight_hh_l0)
        i, f, g, o = z.chunk(4, 1)
        i, f, o = (torch.sigmoid(gate).detach() for gate in (i, f, o))
        c = f * c + i * g * (torch.tanh(g) / g).detach()
        h = o * c * (torch.tanh(c) / c).detach()
    y = model.head(h)[:, 1]
    (grad,) = torch.autograd.grad(y.sum(), leaf)
    share = (found.score - model.head.bias[1].detach()) / found.score  # the head's bias keeps its part
    assert torch.allclose(found.relevance, leaf.detach() * grad, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.relevance.sum((1, 2)), share * found.score, rtol=1e-9)


def test_rules_of_a_layer_are_those_of_its_parts() -> None:
    model, x = Reader("GRU"), normal(2, 3, 3)
    rules = relprop.Composite(
        [("layer", Gamma(0.5)), ("recurrent", Product("half")), ("weighted", Epsilon(0.1))]
    )
    row = next(r for r in Explainer(model, rules, example=x).plan if r.kind == "recurrent")
    assert row.rule == Recurrent(Gamma(0.5), Product("half"), Addition())
    assert str(row.rule) == "Recurrent(Gamma(gamma=0.5), product='half')"
    with pytest.raises(relprop.InvalidInput, match=r"(?s)Gamma.*gate.*do: give Epsilon"):
        relprop.explain(model, x, 1, rules)
    with pytest.raises(relprop.InvalidInput, match=r"Pass.*aten.gru.input"):
        relprop.explain(model, x, 1, relprop.Composite([("recurrent", relprop.rules.Pass())]))
    auto = next(r for r in Explainer(model, "auto", example=x).plan if r.kind == "recurrent")
    assert auto.rule == Recurrent(Epsilon(1e-3), Product("signal"), Addition())


# ---------------------------------------------------------------- sums of linear operations elsewhere


def test_only_sums_that_feed_gates_become_one_linear_operation() -> None:
    class Two(nn.Module):
        def __init__(self, last: nn.Module) -> None:
            super().__init__()
            self.a, self.b, self.last, self.head = nn.Linear(4, 5), nn.Linear(4, 5), last, nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.last(self.a(x) + self.b(torch.tanh(x))))

    x = normal(2, 4)
    for last, joined in (
        (nn.Tanh(), True),
        (nn.Sigmoid(), True),
        (nn.ReLU(), False),
        (nn.LayerNorm(5), False),
        (nn.Identity(), False),
    ):
        model = Two(last).double().eval()
        operations = [row.operation for row in Explainer(model, "epsilon", example=x).plan]
        assert ("relprop.joint_linear" in operations) == joined, last
        assert relprop.explain(model, x, 1, "epsilon").audit.closes
        assert ("aten.add.Tensor" in operations) != joined


def test_residual_sums_stay_sums() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = x + self.a(x)
            return self.head(torch.relu(y + self.b(y)))

    operations = [
        row.operation for row in Explainer(Residual().double().eval(), "epsilon", example=normal(2, 4)).plan
    ]
    assert operations.count("aten.add.Tensor") == 2


# ---------------------------------------------------------------- lengths


class Tagger(nn.Module):
    """Tokens to one score a class, by a layer over their embeddings and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(20, 6), nn.Embedding(64, 6)
        self.layer = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        block = nn.TransformerEncoderLayer(10, 2, 12, batch_first=True)
        self.block, self.head = block, nn.Linear(10, 3)
        self.double().eval()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.position(torch.arange(ids.shape[1]))
        y = self.layer(x)[0]
        y = (y.reshape(-1, 10) * 2).reshape(y.shape)  # the samples and steps in one dimension
        return self.head(self.block(y).mean(1))


def test_a_new_length_needs_no_new_export_and_gives_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    exports = []
    export = torch.export.export

    def counted(*args: Any, **kwargs: Any) -> Any:
        exports.append(1)
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", counted)
    model = Tagger()
    found = {}
    for length in (7, 2, 1, 31, 8):
        ids = torch.randint(0, 20, (3, length))
        found[length] = ids, relprop.explain(model, ids, 1)
    assert len(exports) == 1
    for ids, explanation in (found[2], found[31]):
        relprop.clear_cache()
        anew = relprop.explain(model, ids, 1)
        assert torch.equal(anew.relevance, explanation.relevance)
        assert anew.plan is not None and anew.plan.as_dicts() == explanation.plan.as_dicts()
        for reason, amount in anew.audit.absorbed.items():
            assert torch.equal(amount, explanation.audit.absorbed[reason])


def test_weights_are_live_for_every_length() -> None:
    model, short, long = Tagger(), torch.randint(0, 20, (2, 3)), torch.randint(0, 20, (2, 9))
    for ids in (short, long):
        relprop.explain(model, ids, 1, "epsilon_plus")
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    found = [relprop.explain(model, ids, 1, "epsilon_plus").relevance for ids in (short, long)]
    relprop.clear_cache()
    for ids, relevance in zip((short, long), found, strict=True):
        assert torch.equal(relprop.explain(model, ids, 1, "epsilon_plus").relevance, relevance)


def test_a_model_that_branches_on_the_length_is_captured_for_each_branch() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)[0]
            return self.head(y[:, -1] if x.shape[1] > 5 else y.mean(1))

    model = Branching().double().eval()
    for length in (4, 9, 3, 7):
        x = normal(2, length, 3)
        found = relprop.explain(model, x, 0)
        assert torch.allclose(found.score, model(x)[:, 0].detach())
        assert found.audit.closes


def test_a_thousand_steps_take_memory_in_proportion_and_no_more_than_the_layer_keeps() -> None:
    """What the forward pass keeps for the walk, counted over all values: bytes per step do not grow with the steps."""
    model = Reader("LSTM")
    explainer = Explainer(model, "lrp_all")
    sizes = {}
    for steps in (100, 1000):
        x = normal(1, steps, 3)
        captured, program = explainer.program((x,), {})
        values = record(program, leaves_of(model, captured.graph, (x,), {}), captured.store)
        weights = {w.data_ptr() for w in model.parameters()}
        tensors = {
            t.data_ptr(): t.untyped_storage().nbytes()
            for t in _tensors(values)
            if t.data_ptr() not in weights
        }
        sizes[steps] = sum(tensors.values())
    assert sizes[1000] <= 10.5 * sizes[100]
    explanation = explainer(normal(1, 1000, 3), 1)
    assert explanation.audit.closes and bool(explanation.relevance.isfinite().all())


def _tensors(structure: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(structure) if isinstance(leaf, Tensor)]


def test_lrp_all_costs_little_more_than_gradient_times_input() -> None:
    """Ratio within one process; the promise is 1.5, the test allows for a busy machine."""
    model = Reader("LSTM").float().requires_grad_(False)
    model.layer, model.head = nn.LSTM(128, 128, batch_first=True), nn.Linear(128, 3)
    model.eval().requires_grad_(False)
    x = torch.randn(8, 100, 128)
    explainer = Explainer(model, "lrp_all")

    def by_gradient() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)

    def seconds(run: Any) -> float:
        times = []
        for _ in range(4):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(lambda: explainer(x, 0)) <= 4 * seconds(by_gradient)


# ---------------------------------------------------------------- bad input


class StepsFirst(nn.Module):
    """The last output of a layer that takes (T, B, …), or with `whole` all of them."""

    def __init__(self, layer: nn.Module, whole: bool = False) -> None:
        super().__init__()
        self.layer, self.whole = layer, whole

    def forward(self, x: Tensor, *states: Tensor) -> Tensor:
        found = self.layer(x, *states)
        found = found[0] if isinstance(found, tuple) else found
        return found if self.whole else found[-1]


class Turned(nn.Module):
    def __init__(self, inner: StepsFirst) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, *states: Tensor) -> Tensor:
        found = self.inner(x.transpose(0, 1), *states)
        return found.transpose(0, 1) if self.inner.whole else found


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("layer", ["LSTM", "GRU", "encoder"])
def test_steps_before_samples_get_the_relevance_of_the_turned_model(layer: str, samples: int) -> None:
    for whole in (False, True):
        torch.manual_seed(0)
        layers = {
            "LSTM": lambda: nn.LSTM(4, 4, 2, bidirectional=True),
            "GRU": lambda: nn.GRU(4, 4),
            "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, 0.0), 1),
        }
        model = StepsFirst(layers[layer](), whole).double().eval()
        x, target = normal(5, samples, 4), (4, 1) if whole else 1
        states = (normal(1, samples, 4),) if layer == "GRU" else ()
        turned = x.transpose(0, 1)
        found = relprop.explain(model, (x, *states) if states else x, target)
        expected = relprop.explain(Turned(model).eval(), (turned, *states) if states else turned, target)
        assert found.audit is not None and found.audit.closes
        torch.testing.assert_close(found.output, model(x, *states).detach())
        mine, other = found.relevance, expected.relevance
        if states:
            (mine, first), (other, same) = mine, other
            assert torch.equal(first, same)
        torch.testing.assert_close(mine, other.transpose(0, 1))
        torch.testing.assert_close(found.at("layer"), expected.at("inner.layer"))


def test_samples_that_attend_to_each_other_are_refused() -> None:
    class Attends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    with pytest.raises(relprop.CaptureError, match=r"(?s)attention.*between the samples"):
        relprop.explain(Attends().eval(), normal(4, 6), 1)


def test_bad_sequences_are_refused_in_one_clear_line() -> None:
    model = Reader("LSTM")
    with pytest.raises(relprop.InvalidInput, match="empty sequence"):
        relprop.explain(model, normal(2, 0, 3), 1)
    with pytest.raises(relprop.InvalidInput, match="model itself fails"):
        relprop.explain(model, normal(2, 4, 5), 1)

    with pytest.raises(
        relprop.UnsupportedOperation, match=r"(?s)aten\.lstm\.input.*steps lie where the samples"
    ):
        relprop.explain(StepsFirst(nn.LSTM(3, 4), True).double().eval(), normal(4, 3), 1)

    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.layer(packed)[1][0][0]

    packs = Packs().double().eval()
    for lengths in ([3, 0], [3, 9]):
        for first in (0, 1):  # the sample at fault stands first or second
            given = torch.tensor(lengths if first else lengths[::-1])
            with pytest.raises(relprop.InvalidInput):
                relprop.explain(packs, (normal(2, 4, 3), given), 1)


def test_relevance_that_outgrows_its_numbers_is_an_error_that_says_so() -> None:
    model, x = Reader("LSTM").float(), torch.randn(1, 2000, 3)
    rules = relprop.Composite([("weighted", Epsilon(0.0)), ("product", Product("proportional", 0.0))])
    with pytest.raises(
        relprop.ConservationError, match=r"(?s)beyond the numbers of float32.*aten\.lstm.*lrp_all"
    ):
        relprop.explain(model, x, 1, rules)


# ---------------------------------------------------------------- contextual decomposition


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(20, 5), nn.LSTM(5, 4, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.double().eval()

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(ids))[1][0][-1])


def test_a_phrase_of_all_words_is_the_score_without_the_last_bias() -> None:
    model, ids = Words(), torch.randint(0, 20, (3, 6))
    method = "contextual_decomposition"
    whole = relprop.explain(model, ids, 1, method=method, phrases=[(0, 5), (2, 3), (2, 2)])
    assert whole.relevance.shape == (3, 3)
    bias = model.head.bias[1].detach()
    # the biases' own interactions belong to no phrase, so that γ is not nothing even then
    words = relprop.explain(model, ids, 1, method=method)
    assert words.relevance.shape == ids.shape and words.audit is None
    assert torch.equal(words.relevance[:, 2], whole.relevance[:, 2])
    assert torch.allclose(whole.relevance[:, 0], whole.score - bias, atol=1e-12)
    singles = [relprop.explain(model, ids[i : i + 1], 1, method=method).relevance for i in range(3)]
    assert maxrel(torch.cat(singles), words.relevance) <= SAME


def test_contextual_decomposition_refuses_other_models_by_name() -> None:
    ids = torch.randint(0, 20, (2, 4))
    with pytest.raises(relprop.UnsupportedOperation, match=r"several layers.*\n.*layer"):
        relprop.explain(Tagger(), ids, 1, method="contextual_decomposition")
    with pytest.raises(relprop.UnsupportedOperation, match="0 LSTM"):
        relprop.explain(Reader("GRU"), normal(2, 4, 3), 1, method="contextual_decomposition")
    for phrases in ([(2, 9)], [(3, 2)], "word", []):
        with pytest.raises(relprop.InvalidInput, match=r"(?s)phrases.*first word, last word"):
            relprop.explain(Words(), ids, 1, method="contextual_decomposition", phrases=phrases)


# ---------------------------------------------------------------- a trained network


def test_an_lstm_that_adds_is_explained_by_the_numbers_it_adds() -> None:
    """Arras et al. 2019, Sec. 4: LRP-all finds the two marked numbers, and their relevance is their value."""
    torch.manual_seed(1)
    model = Adder()
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(model.parameters(), 3e-2)
    for step in range(1500):
        if step in (800, 1250):
            optimiser.param_groups[0]["lr"] *= 0.3
        x, y, _ = additions(128, 4 + step % 7, generator)
        loss = (model(x)[:, 0] - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    x, y, places = additions(300, 8, generator)
    model, x = model.double().eval(), x.double()
    assert float((model(x)[:, 0] - y).square().mean().detach()) < 5e-3, "the network has not learned to add"
    found = relprop.explain(model, x, 0, "lrp_all")
    steps = found.relevance.sum(-1)
    marked = steps.gather(1, places)
    numbers = x[..., 0].gather(1, places)
    for column in (0, 1):
        assert float(torch.corrcoef(torch.stack([numbers[:, column], marked[:, column]]))[0, 1]) > 0.95
    share = marked.abs().sum(1) / steps.abs().sum(1)
    assert float(share.median()) > 0.9
    assert found.audit.closes
    assert float(found.audit.gap.abs().max()) < 1e-12 * float(found.audit.magnitude.max().clamp(min=1))


class Adder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(2, 1, batch_first=True), nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def additions(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers with two of them marked (evaluation sheet, 3.1), their sum, and where they stand."""
    pairs = torch.tensor(list(itertools.combinations(range(length), 2)))
    places = pairs[torch.randint(len(pairs), (count,), generator=generator)]
    numbers = torch.rand(count, length, generator=generator) * 2 - 1
    marks = torch.zeros(count, length).scatter_(1, places, 1.0)
    return torch.stack([numbers, marks], -1), numbers.gather(1, places).sum(1), places


def test_the_model_is_left_as_it_was() -> None:
    model, x = Reader("LSTM"), normal(2, 4, 3)
    before = {name: (w.data_ptr(), w.clone()) for name, w in model.named_parameters()}
    flat = [w.data_ptr() for w in model.layer._flat_weights]
    calls = torch._VF.lstm
    relprop.explain(model, x, 1)
    assert [w.data_ptr() for w in model.layer._flat_weights] == flat
    assert all(
        w.data_ptr() == before[n][0] and torch.equal(w, before[n][1]) for n, w in model.named_parameters()
    )
    assert torch._VF.lstm is calls
    assert captured_graph(model, (x,), {}, True) is captured_graph(model, (x,), {}, True)
