"""Softmax and fused attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Node, Ref, arguments_of, refs
from relprop.engine.ops.norm import argument_named, first_part, named_arguments
from relprop.engine.ops.table import Operation, rows
from relprop.engine.rules import Attention, Pass, Product, Softmax
from relprop.engine.rules.affine import add, divided_in_place, taken
from relprop.engine.step import Layout, Shares, Step

MASKED = -3e4
"""Logits below this are those of a mask: −∞, the minimum of a type, or a large number."""


def _how(step: Step) -> str:
    """What the step's rule says of a softmax."""
    if isinstance(step.rule, Attention):
        return step.rule.softmax
    return step.rule.how if isinstance(step.rule, Softmax) else "taylor"


def softmax(step: Step, relevance: Tensor) -> Shares:
    """s = softmax(x): R_i = x_i (R_i − s_i Σ_j R_j) (AttnLRP, Prop. 3.1); what the expansion's bias takes is
    absorbed."""
    x, dim, how = step.args[0], step.args[1], _how(step)
    if how == "pass":
        return Shares({0: relevance})
    if how == "constant":
        return Shares({}, {"constant": step.account(relevance)})
    x, s = x.to(relevance.dtype), step.output.to(relevance.dtype)
    shares, bias = _taylor(torch.where((s == 0) | (x < MASKED), 0.0, x), s, relevance, dim)
    return Shares({0: shares}, {"softmax_bias": step.account(bias)})


def _taylor(x: Tensor, s: Tensor, relevance: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Shares of the logits x, and Σ_j R_j (1 − x_j + Σ_i s_i x_i) before it is summed (AttnLRP, Prop. 3.1).

    Masked entries (s = 0, or x below −30,000, which only a mask makes; of a row that is all masked s is not 0)
    count as x = 0, which the caller sees to. The logits are taken as they are: the rule is not invariant to a shift of them.
    """
    total, first = relevance.sum(dim, keepdim=True), relevance * x
    weighted = s * x
    bias = total * (1 + weighted.sum(dim, keepdim=True)) - first.sum(dim, keepdim=True)
    return torch.addcmul(first, weighted, total, value=-1), bias


def log_softmax(step: Step, relevance: Tensor) -> Shares:
    """y_i = x_i − log Σ_j exp x_j: shared like the difference it is, with ε; the logarithm's share by
    softmax(x)_j.

    `Softmax("constant")` keeps the logarithm's share in the account "constant"; under "pass" all goes to x_i.
    """
    how = _how(step)
    if how == "pass" or isinstance(step.rule, Pass):
        return Shares({0: relevance})
    x, dim, y = step.args[0].to(relevance.dtype), step.args[1], step.output.to(relevance.dtype)
    stabiliser = torch.copysign(y.new_full((), 1e-6), y)
    s = relevance / (y + stabiliser)
    absorbed = {"stabilizer": step.account(s * stabiliser)}
    rest = s * (y - x)
    if how == "constant":
        return Shares({0: s * x}, absorbed | {"constant": step.account(rest)})
    return Shares({0: s * x + y.exp() * rest.sum(dim, keepdim=True)}, absorbed)


@dataclass(frozen=True, slots=True)
class _Heads:
    """Query, key and value with the same leading dimensions, and what is added to the scaled products of q
    and k."""

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    added: Tensor | None  # a mask of numbers, which broadcasts to the logits
    hidden: Tensor | None  # True where a key is masked

    def of_queries(self, block: slice) -> _Heads:
        """The same for some of the queries."""

        def some(mask: Tensor | None) -> Tensor | None:
            return mask if mask is None or mask.dim() < 2 or mask.shape[-2] == 1 else mask[..., block, :]

        return _Heads(
            self.query[..., block, :], self.key, self.value, self.scale, some(self.added), some(self.hidden)
        )


def _heads(a: dict[str, Any]) -> _Heads:
    """The operands of a fused attention by its arguments' names; keys and values of grouped queries are
    repeated."""
    q, k, v = a["query"], a["key"], a["value"]
    if a.get("enable_gqa"):
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])  # type: ignore[no-untyped-call]
    q, k, v = (t.expand(*lead, *t.shape[-2:]) for t in (q, k, v))
    mask = a.get("attn_mask", a.get("attn_bias"))
    hidden, added = (~mask, None) if mask is not None and mask.dtype == torch.bool else (None, mask)
    if a.get("is_causal"):
        later = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
        hidden = later if hidden is None else hidden | later
    scale = q.shape[-1] ** -0.5 if a.get("scale") is None else a["scale"]
    return _Heads(q, k, v, scale, added, hidden)


def attention(step: Step, relevance: Any) -> Shares:
    """C = P·V, P = softmax(S), S = q·kᵀ·scale + mask, walked backwards as three operations (AttnLRP, Sec. 3).

    Each of the two products hands half of the ε rule to either factor (all of it to the one that is data),
    the softmax follows Prop. 3.1 on the scaled logits. With the rule's "signal" everything goes to V (CP-LRP,
    Ali et al. 2022). A mask takes no share where it hides or adds zero; a bias added to the logits takes its
    part of the sum. Long sequences are walked a block of queries at a time, so that no matrix of all queries
    and keys is held.
    """
    r, index = first_part(relevance)
    a = named_arguments(step)
    h = _heads(a)
    names = list(a)
    mask_name = "attn_mask" if "attn_mask" in a else "attn_bias"
    data = {name: _is_data(step, names.index(name), name) for name in ("query", "key", "value")}
    data["mask"] = h.added is not None and _is_data(step, names.index(mask_name), mask_name)
    parts: dict[str, list[Tensor]] = {}
    book: dict[str, Tensor] = {}
    for block in _blocks(h, step.layout_of(Ref(step.node.name, index))):
        found, amounts = _walk_block(step, h.of_queries(block), data, r[..., block, :], index)
        for reason, amount in amounts.items():
            add(book, reason, amount)
        for name, share in found.items():
            if name in ("key", "value") and name in parts:
                parts[name][0] = parts[name][0] + share
            else:
                parts.setdefault(name, []).append(share)
    shares = {name: torch.cat(found, -2) if len(found) > 1 else found[0] for name, found in parts.items()}
    if "bias" in shares:
        step.give(argument_named(step, mask_name), shares.pop("bias"))
    if "mask" in shares:
        shares[mask_name] = shares.pop("mask")
    placed: dict[int | str, Any] = {}
    for name, share in shares.items():
        position = names.index(name)
        placed[position if position < len(step.args) else name] = _fold(share, a[name])
    return Shares(placed, book)


_BLOCK = 1 << 19
"""Weights of attention (queries times keys, of all heads and samples) that are held at a time."""


def _blocks(h: _Heads, layout: Layout | None) -> list[slice]:
    """The queries in blocks; all at once where few weights are held, or where the samples lie along the queries."""
    count = h.query.shape[-2]
    weights = h.query[..., 0, 0].numel() * h.key.shape[-2]
    along = layout is not None and layout.dimension >= h.query.dim() - 2
    size = count if along else max(1, min(count, _BLOCK // max(1, weights)))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)] or [slice(0, 0)]


def _walk_block(
    step: Step, h: _Heads, data: dict[str, bool], r: Tensor, index: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The shares of some queries' heads ("bias": of a mask of weights), and what is absorbed."""
    rule = step.rule if isinstance(step.rule, Product) else Attention()
    book: dict[str, Tensor] = {}

    def enter(reason: str, values: Tensor) -> None:
        add(book, reason, step.account(values, index))

    raw = (h.query * h.scale) @ h.key.mT
    logits = raw if h.added is None else raw + h.added
    logits = logits if h.hidden is None else logits.masked_fill(h.hidden, -torch.inf)
    weights = torch.softmax(logits, -1)
    if logits is not raw:
        weights = weights.nan_to_num(nan=0.0)  # a query that may look at nothing: zero, as in torch
    varies = data["query"] or data["key"] or data["mask"]  # the weights depend on what is explained
    through = varies and not (rule.how in ("signal", "second") and data["value"])
    s = _quotient(r, weights @ h.value, rule.epsilon, enter)
    to_value = 1.0 if not through else _half(data["value"], True, rule.how, first=False)
    shares: dict[str, Tensor] = {}
    if data["value"]:
        shares["value"] = h.value * (weights.mT @ s) * to_value
    if through:
        of_weights = ((1 - to_value) * s @ h.value.mT).mul_(weights)
        how = _how(step)
        if how == "constant":
            enter("constant", of_weights)
        else:
            of_logits = of_weights
            if how == "taylor":
                seen = logits
                if logits is not raw:
                    seen = logits.masked_fill((weights == 0) | (logits < MASKED), 0.0)
                of_logits, bias = _taylor(seen, weights, of_weights, -1)
                enter("softmax_bias", bias)
            if h.added is not None:
                of_logits, of_mask = _without_mask(of_logits, raw, h.added, weights, rule.epsilon, enter)
                if data["mask"]:
                    shares["mask"] = of_mask
                else:
                    learned = _is_learned(step)
                    enter("bias" if learned else "constant", of_mask)
                    if step.journal is not None:
                        shares["bias"] = of_mask
            _share_products(h, raw, of_logits, data, rule, shares, enter)
    return shares, book


def _is_learned(step: Step) -> bool:
    """Whether the mask of numbers is computed from weights alone."""
    names = list(named_arguments(step))
    return step.is_parameter(names.index("attn_mask" if "attn_mask" in names else "attn_bias"))


def _is_data(step: Step, position: int, name: str) -> bool:
    return step.data(position if position < len(step.node.args) else name)


def _quotient(relevance: Tensor, z: Tensor, epsilon: float, enter: Any) -> Tensor:
    """R / (z + ε s(z)); what the stabiliser takes, and R where there is nothing to divide by, are entered."""
    if epsilon:
        stabiliser = torch.copysign(z.new_full((), epsilon), z)
        s = divided_in_place(relevance, z + stabiliser)
        enter("stabilizer", taken(s, stabiliser))
        return s
    enter("undistributed", torch.where(z == 0, relevance, 0.0))
    return torch.where(z == 0, 0.0, relevance / z)


def _without_mask(
    relevance: Tensor, raw: Tensor, mask: Tensor, weights: Tensor, epsilon: float, enter: Any
) -> tuple[Tensor, Tensor]:
    """The shares of q·k and of what a mask of numbers added to it: nothing to a mask that hides (weight 0) or
    is 0."""
    mask = mask.expand_as(raw)
    biased = (mask != 0) & (weights != 0)
    bias = torch.where(biased, mask, 0.0)
    s = _quotient(torch.where(biased, relevance, 0.0), raw + bias, epsilon, enter)
    return torch.where(biased, s * raw, relevance), s * bias


def _share_products(
    h: _Heads,
    raw: Tensor,
    relevance: Tensor,
    data: dict[str, bool],
    rule: Product,
    shares: dict[str, Tensor],
    enter: Any,
) -> None:
    """S = q·kᵀ·scale: half of the ε rule to q and to k (AttnLRP, Prop. 3.3); all to the one that is data."""
    if not (data["query"] or data["key"]):
        enter("constant", relevance)
        return
    s = _quotient(relevance, raw, rule.epsilon, enter)
    to_query = _half(data["query"], data["key"], rule.how, first=True)
    if to_query:
        shares["query"] = (h.query * (s @ h.key)).mul_(h.scale * to_query)
    if to_query < 1:
        shares["key"] = (h.key * (s.mT @ h.query)).mul_(h.scale * (1 - to_query))


def _half(data: bool, other: bool, how: str, first: bool) -> float:
    """The part of a product that one factor gets: all where it alone is data, half where both are."""
    if data and other and how == "first":
        return 1.0 if first else 0.0
    return 0.5 if data and other else 1.0 if data else 0.0


def _fold(share: Tensor, argument: Tensor) -> Tensor:
    """The sum over grouped queries and broadcast dimensions: from the expanded operand to the argument."""
    if share.dim() > 2 and argument.dim() > 2 and argument.shape[-3] not in (1, share.shape[-3]):
        groups = argument.shape[-3]
        share = share.reshape(*share.shape[:-3], groups, -1, *share.shape[-2:]).sum(-3)
    return share.sum_to_size(argument.shape)


def _drops(node: Node) -> str | None:
    chance = arguments_of(node)["dropout_p"]
    if any(True for _ in refs(chance)) or chance:
        return f"attention with active dropout (dropout_p={chance}) draws its weights by chance"
    return None


rows(
    "softmax.int _softmax _safe_softmax",
    Operation("softmax", softmax, "both", Softmax(), (Softmax, Attention), "always"),
)
rows(
    "log_softmax.int _log_softmax",
    Operation("softmax", log_softmax, "both", Softmax(), (Softmax, Attention, Pass)),
)
rows(
    "scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_flash_attention"
    " _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention"
    " _scaled_dot_product_cudnn_attention",
    Operation("product", attention, "inputs", Attention(), (Product,), refuses=_drops),
)
