"""Fused attention against the same attention written out, and its masks, groups and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import relprop
from relprop.engine.rules import Addition, Attention, Epsilon, Pass, Product, Rule, Softmax
from test_rules import drawn

CLOSE = 1e-10
B, HEADS, L, S, E, EV = 3, 4, 3, 5, 4, 2


def exact(rule: Rule, *more: tuple[str, Rule]) -> relprop.Composite:
    """One rule for attention's products (and its softmax, where it is one); no stabilisers anywhere."""
    pairs = [
        *more,
        ("product", rule),
        ("weighted", Epsilon(0.0)),
        ("addition", Addition(epsilon=0.0)),
        ("pool", Epsilon(0.0)),
    ]
    if isinstance(rule, Attention):
        pairs.insert(0, ("softmax", rule))
    return relprop.Composite(pairs)


RULES = [
    Attention(epsilon=0.0),
    Attention("half", "constant", epsilon=0.0),
    Attention("half", "pass", epsilon=0.0),
    Attention("signal", epsilon=0.0),
    Attention("first", epsilon=0.0),
    Product("half", epsilon=0.0),
    Product("signal", epsilon=0.0),
    Product("second", epsilon=0.0),
]


class Calls(nn.Module):
    """A function of several inputs and constants as a module; the output of each sample is one row."""

    def __init__(self, function: Callable[..., Tensor], *constants: Tensor, learned: bool = False) -> None:
        super().__init__()
        self.function = function
        self.count = len(constants)
        for n, constant in enumerate(constants):
            if learned:
                self.register_parameter(f"c{n}", nn.Parameter(constant))
            else:
                self.register_buffer(f"c{n}", constant)

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args, *(getattr(self, f"c{n}") for n in range(self.count))).flatten(1)


def written_out(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """softmax(q kᵀ scale + mask) v with masks by masked_fill, groups by repeat_interleave."""
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    logits = torch.matmul(q, k.transpose(-2, -1)) * (E**-0.5 if scale is None else scale)
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return torch.matmul(torch.softmax(logits, -1), v)


def operands(kv_heads: int = HEADS, length: int = L) -> tuple[Tensor, Tensor, Tensor]:
    return (
        drawn((B, HEADS, length, E), 1, False),
        drawn((B, kv_heads, S, E), 2, False),
        drawn((B, kv_heads, S, EV), 3, False),
    )


def compare(
    fused: nn.Module, plain: nn.Module, inputs: tuple[Tensor, ...], rules: Any
) -> tuple[relprop.Explanation, relprop.Explanation]:
    """Both give the same relevance to every input, and the same accounts."""
    weights = drawn(tuple(plain(*inputs).shape), 9, False)
    first = relprop.explain(fused.eval(), inputs, weights, rules)
    second = relprop.explain(plain.eval(), inputs, weights, rules)
    torch.testing.assert_close(first.output, second.output, rtol=CLOSE, atol=CLOSE)
    found, expected = (r if isinstance(r, tuple) else (r,) for r in (first.relevance, second.relevance))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=CLOSE, atol=CLOSE)
    assert first.audit is not None and second.audit is not None
    for reason in {*first.audit.absorbed, *second.audit.absorbed}:
        zero = torch.zeros(B, dtype=torch.float64)
        kept = [audit.absorbed.get(reason, zero) for audit in (first.audit, second.audit)]
        torch.testing.assert_close(*kept, rtol=CLOSE, atol=CLOSE)
    return first, second


KEEP = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
VARIANTS: dict[str, tuple[int, Tensor | None, bool, float | None]] = {
    "plain": (HEADS, None, False, None),
    "scale": (HEADS, None, False, 0.3),
    "causal": (HEADS, None, True, None),
    "boolean_mask": (HEADS, KEEP, False, None),
    "float_bias": (HEADS, drawn((HEADS, L, S), 5, False), False, None),
    "grouped_queries": (2, None, False, None),
    "grouped_causal": (1, None, True, None),
}


@pytest.mark.filterwarnings("ignore::relprop.RelevanceWarning")
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_fused_attention_equals_written_out(name: str, rule: Rule) -> None:
    kv, mask, causal, scale = VARIANTS[name]
    gqa = kv != HEADS
    given = () if mask is None else (mask,)

    def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=gqa)

    def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return written_out(q, k, v, mask, causal, scale)

    first, _ = compare(Calls(fused, *given), Calls(plain, *given), operands(kv), exact(rule))
    if rule.how in ("signal", "second"):  # type: ignore[attr-defined]
        assert not first.relevance[0].any() and not first.relevance[1].any()


@pytest.mark.filterwarnings("ignore::relprop.RelevanceWarning")
@pytest.mark.parametrize("name", VARIANTS)
def test_queries_walked_in_blocks_get_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kv, mask, causal, scale = VARIANTS[name]
    given = () if mask is None else (mask,)

    def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=kv != HEADS
        )

    model, inputs = Calls(fused, *given).eval(), operands(kv)
    whole = relprop.explain(model, inputs, 1, "attn_lrp")
    monkeypatch.setattr("relprop.engine.ops.attention._BLOCK", B * HEADS * S * 2)
    parts = relprop.explain(model, inputs, 1, "attn_lrp")
    assert parts.audit is not None and parts.audit.closes
    for a, b in zip(whole.relevance, parts.relevance, strict=True):
        torch.testing.assert_close(a, b, rtol=CLOSE, atol=CLOSE)


class Largest(TorchDispatchMode):
    """Remembers the most numbers that one floating tensor held."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, tuple | list) else (found,):
            if isinstance(part, Tensor) and part.is_floating_point():
                self.count = max(self.count, part.numel())
        return found


def test_long_sequences_hold_no_matrix_of_queries_and_keys() -> None:
    def causal(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    model, x = Calls(causal).eval(), torch.randn(1, 4, 2048, 8)
    explainer = relprop.Explainer(model, "attn_lrp")
    with Largest() as largest:
        result = explainer(x, 1)
    assert result.audit is not None and result.audit.closes
    assert x.numel() <= largest.count <= 4 * 2048 * 2048 / 8


@pytest.mark.filterwarnings("ignore::relprop.RelevanceWarning")
def test_mask_of_zeros_and_infinities_takes_no_share() -> None:
    mask = torch.zeros(L, S, dtype=torch.float64).masked_fill(~KEEP, -torch.inf)
    for low in (mask, mask.clamp(min=torch.finfo(torch.float64).min)):
        boolean = Calls(F.scaled_dot_product_attention, KEEP)
        numbers = Calls(F.scaled_dot_product_attention, low)
        first, _ = compare(numbers, boolean, operands(), exact(Attention(epsilon=0.0)))
        assert first.audit is not None
        assert set(first.audit.absorbed) <= {"softmax_bias"}


@pytest.mark.filterwarnings("ignore::relprop.RelevanceWarning")
@pytest.mark.parametrize("learned", [True, False])
def test_bias_of_the_logits_keeps_its_share(learned: bool) -> None:
    bias = drawn((HEADS, L, S), 5, False)
    model = Calls(F.scaled_dot_product_attention, bias, learned=learned).eval()
    found = relprop.explain(model, operands(), 0, exact(Attention(epsilon=0.0)))
    assert found.audit is not None
    assert bool(found.audit.absorbed["bias"].abs().sum() > 0)


@pytest.mark.filterwarnings("ignore::relprop.RelevanceWarning")
def test_bias_made_from_data_receives_its_share() -> None:
    def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, bias)

    def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return written_out(q, k, v, bias, False, None)

    inputs = (*operands(), drawn((B, 1, L, S), 6, False))
    first, _ = compare(Calls(fused), Calls(plain), inputs, exact(Attention(epsilon=0.0)))
    assert bool(first.relevance[3].any())


@pytest.mark.parametrize("rule", [Attention(epsilon=0.0), Attention("signal", epsilon=0.0)], ids=str)
@pytest.mark.parametrize("data", ["q", "k", "v", "qk", "qv", "kv"])
@pytest.mark.filterwarnings("ignore::relprop.RelevanceWarning")
def test_factors_that_are_no_data_get_nothing(data: str, rule: Rule) -> None:
    """Learned queries, constant keys: the others receive everything, and the account closes."""
    values = dict(zip("qkv", operands(), strict=True))
    fixed = {name: value[:1] for name, value in values.items() if name not in data}

    def chosen(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Tensor) -> Tensor:
            rest = iter(args)
            found = {name: next(rest) for name in data} | {name: next(rest) for name in fixed}
            return function(found["q"], found["k"], found["v"])

        return call

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return written_out(q, k, v, None, False, None)

    modules = [Calls(chosen(f), *fixed.values()) for f in (F.scaled_dot_product_attention, plain)]
    compare(modules[0], modules[1], tuple(values[name] for name in data), exact(rule))


def test_query_that_may_see_nothing_keeps_its_relevance() -> None:
    mask = KEEP.clone()
    mask[1] = False
    model = Calls(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m) + 1.0, mask).eval()
    found = relprop.explain(model, operands(), torch.ones(HEADS * L * EV).double(), "epsilon")
    assert found.audit is not None and found.audit.closes
    assert all(bool(torch.isfinite(r).all()) for r in found.relevance)


@pytest.mark.parametrize("rule", [Attention(), Attention("signal"), Product("half")], ids=str)
def test_multihead_attention_closes_in_float32(rule: Rule) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(16 * 6, 5)).eval()
    x = torch.randn(2, 6, 16)
    found = relprop.explain(model, x, None, relprop.Composite([("product", rule)]))
    assert found.audit is not None and found.audit.closes
    single = relprop.explain(model, x[:1], None, relprop.Composite([("product", rule)]))
    torch.testing.assert_close(single.relevance, found.relevance[:1], rtol=1e-3, atol=1e-4)


def test_cpu_flash_attention_is_the_same_operation() -> None:
    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)[0]

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    q, k, v = (drawn((B, HEADS, S, E), seed, False) for seed in (1, 2, 3))
    compare(Calls(flash), Calls(fused), (q, k, v), exact(Attention(epsilon=0.0)))


def test_active_dropout_is_refused() -> None:
    model = Calls(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)).eval()
    with pytest.raises(relprop.UnsupportedOperation, match=r"dropout_p=0\.1"):
        relprop.explain(model, operands(), 0)


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("dim", [1, -1])
def test_softmax_follows_its_formula(dim: int, dtype: torch.dtype | None) -> None:
    x = drawn((B, 3, 4), 1, False)
    weights = drawn((B, 12), 2, False)
    model = Calls(lambda x: torch.softmax(x, dim, dtype=dtype)).eval()
    found = relprop.explain(model, x, weights, "epsilon")
    s = torch.softmax(x, dim)
    r = s * weights.reshape(B, 3, 4)
    close = {"rtol": CLOSE, "atol": CLOSE} if dtype is None else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found.relevance.double(), x * (r - s * r.sum(dim, keepdim=True)), **close)


def test_log_softmax_decomposes_its_value() -> None:
    x = drawn((B, 4), 3, False)
    model = Calls(lambda x: torch.log_softmax(x, 1)).eval()
    found = relprop.explain(model, x, 2, relprop.Composite())
    s = torch.softmax(x, 1)
    expected = -torch.logsumexp(x, 1, keepdim=True) * s
    expected[:, 2] += x[:, 2]
    torch.testing.assert_close(found.relevance, expected, rtol=1e-4, atol=1e-5)
    passed = relprop.explain(model, x, 2, relprop.Composite([("softmax", Pass())]))
    assert torch.equal(passed.relevance.sum(1), passed.score)
    constant = relprop.explain(model, x, 2, relprop.Composite([("softmax", Softmax("constant"))]))
    assert constant.audit is not None and "constant" in constant.audit.absorbed


def test_attention_weights_behind_an_inactive_dropout_are_a_gate_all_the_same() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(4, 12)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            weights = F.dropout(torch.softmax(q @ k.transpose(1, 2), -1), 0.5, self.training)
            return (weights @ v).mean(1)

    x = torch.randn(2, 5, 4, dtype=torch.float64)
    audit = relprop.explain(Written().double().eval(), x, 1, "cp_lrp").audit
    assert "constant" not in audit.absorbed  # nothing goes to the softmax, which CP-LRP holds constant


def test_padding_mask_that_is_added_within_the_product_takes_no_share() -> None:
    """nn.MultiheadAttention adds its mask by baddbmm where it returns its weights, and by fused attention where not."""

    class Masked(torch.nn.Module):
        def __init__(self, weights: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.attention, self.weights = torch.nn.MultiheadAttention(6, 2, batch_first=True), weights
            self.double().eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.tensor([[False, False, False, True]]).expand(x.shape[0], 4)
            return self.attention(x, x, x, key_padding_mask=hidden, need_weights=self.weights)[0].mean(1)

    x = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, fused = (relprop.explain(Masked(way), x, 1).relevance for way in (True, False))
    assert torch.allclose(found, fused, rtol=0, atol=1e-10)
