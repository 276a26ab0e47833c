"""Sums of products with constant matrices that feed one non-linearity: z = Σ_i g_i ⊙ (W_i x_i + b_i) + b.

The pre-activation of a recurrent cell is one: a linear operation of the concatenated inputs with one denominator
and one ε, however the model spells it. A gate g_i (the reset gate of a GRU) scales its summand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from relprop.engine.graph import Ref, name_of
from relprop.engine.joint import joint_linear, recurrent_linear
from relprop.engine.ops.linear import LINEAR_RULES, part_of
from relprop.engine.ops.recurrent.factors import gates_receive, inverse, is_batched, shares_of_product, times
from relprop.engine.ops.table import Operation, register
from relprop.engine.rules import RULES, Affine, Epsilon, LinearRule, Product, Recurrent
from relprop.engine.rules.affine import add
from relprop.engine.step import Layout, Shares, Step
from relprop.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Summand:
    """g ⊙ (W x + b): x (…, d), weight (k, d), bias (k,), gate (…, k); without a gate g = 1."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    gate: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sum stands: how to sum its values per sample, and what is cached of its weights."""

    account: Callable[[Tensor], Tensor]
    layout: Layout | None
    batch: int
    cached: Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True, slots=True)
class JointShares:
    """Relevance of each summand's input and of its gate (None: nothing), and what is absorbed."""

    inputs: list[Tensor]
    gates: list[Tensor | None]
    absorbed: dict[str, Tensor]


def joint_shares(
    rule: LinearRule,
    product: Product,
    summands: Sequence[Summand],
    output: Tensor,
    relevance: Tensor,
    place: Place,
) -> JointShares:
    """The shares of z = Σ_i g_i ⊙ (W_i x_i + b_i) by a rule for linear operations; gates by the product rule.

    A gate that gets nothing is a part of the weights, so that every rule works. One that gets something of
    its product needs ε, whose shares are known in closed form: s_k = R_k / (z_k + ε s(z_k)).
    """
    gated = any(summand.gate is not None for summand in summands)
    if gated and is_batched(rule):
        return _with_gates(rule, product, summands, output, relevance, place)
    if gated and gates_receive(product):
        raise InvalidInput(
            f"rules: {rule} cannot be used for a sum with a gate beside {product}\n"
            '  do: give Epsilon for linear operations, or Product("signal") for products'
        )
    f = _affine(summands, output, place)
    share, absorbed = RULES[type(rule)](rule, f, relevance)
    sizes = [summand.x.shape[-1] for summand in summands]
    return JointShares(list(torch.split(share, sizes, -1)), [None] * len(summands), absorbed)


def _affine(summands: Sequence[Summand], output: Tensor, place: Place) -> Affine:
    """The sum as one linear map of the concatenated inputs; gates are a part of it."""
    sizes = [summand.x.shape[-1] for summand in summands]
    gates = [summand.gate for summand in summands]
    plain = all(gate is None for gate in gates)

    def whole() -> Tensor:
        return torch.cat([summand.weight for summand in summands], 1)

    weight: Tensor = place.cached("whole", whole)

    def apply(x: Tensor, w: Tensor | None) -> Tensor:
        assert w is not None
        if plain:
            return F.linear(x, w)
        parts = zip(torch.split(x, sizes, -1), torch.split(w, sizes, 1), gates, strict=True)
        terms = [
            F.linear(part, own) if gate is None else gate * F.linear(part, own) for part, own, gate in parts
        ]
        return functools.reduce(torch.add, terms)

    def transpose(v: Tensor, w: Tensor | None) -> Tensor:
        assert w is not None
        if plain:
            return v @ w
        parts = zip(torch.split(w, sizes, 1), gates, strict=True)
        return torch.cat([(v if gate is None else v * gate) @ own for own, gate in parts], -1)

    bias: Tensor | None = None
    for summand in summands:
        if summand.bias is not None:
            own = summand.bias if summand.gate is None else summand.gate * summand.bias
            bias = own if bias is None else bias + own
    return Affine(
        x=torch.cat([summand.x for summand in summands], -1),
        weight=weight,
        bias=bias,
        output=output,
        apply=apply,
        transpose=transpose,
        part=lambda name: place.cached(name, lambda: part_of(weight, name)),
        nonnegative=False,
        account=place.account,
        batch_dimension=None if place.layout is None else place.layout.dimension,
        layout=place.layout,
        batch=place.batch,
    )


def _with_gates(
    rule: LinearRule,
    product: Product,
    summands: Sequence[Summand],
    output: Tensor,
    relevance: Tensor,
    place: Place,
) -> JointShares:
    """ε with gates: what they get of their products is taken off, the rest goes on to the gated summand's inputs."""
    z = output
    if rule.bias == "ignore":
        for summand in summands:
            if summand.bias is not None:
                z = z - (summand.bias if summand.gate is None else summand.gate * summand.bias)
        summands = [replace(summand, bias=None) for summand in summands]
    d = inverse(z, rule.epsilon)
    s = relevance * d.value
    kept = [] if d.stabiliser is None else [("stabilizer", s * d.stabiliser)]
    absorbed: dict[str, Tensor] = {}
    if d.empty is not None:
        add(absorbed, "undistributed", place.account(torch.where(d.empty, relevance, 0.0)))
    inputs: list[Tensor] = []
    gates: list[Tensor | None] = []
    for summand in summands:
        v, to_gate = s, None
        if summand.gate is not None:
            u = F.linear(summand.x, summand.weight, summand.bias)
            parts = shares_of_product(product, summand.gate, u)
            whole = s * summand.gate * u
            v, to_gate = s * summand.gate * parts.second, times(whole, parts.first)
            if parts.stabiliser is not None:
                add(absorbed, "stabilizer", place.account(whole * parts.stabiliser))
            if parts.empty is not None:
                add(absorbed, "undistributed", place.account(torch.where(parts.empty, whole, 0.0)))
        if summand.bias is not None:
            kept.append(("bias", v * summand.bias))
        inputs.append(summand.x * (v @ summand.weight))
        gates.append(to_gate)
    if rule.spreads:
        total = sum(amount.sum(-1, keepdim=True) for _, amount in kept)
        count = sum(summand.x.shape[-1] for summand in summands)
        return JointShares([x + total / count for x in inputs], gates, absorbed)
    for reason, amount in kept:
        add(absorbed, reason, place.account(amount))
    return JointShares(inputs, gates, absorbed)


def joint(step: Step, relevance: Tensor) -> Shares:
    """The operation that `engine.joint` makes of a sum of linear operations."""
    xs, weights, gates, biases, bias = step.args
    rule = step.rule if isinstance(step.rule, Recurrent) else Recurrent(linear=_linear_rule(step))
    summands = [Summand(x, w, b, g) for x, w, g, b in zip(xs, weights, gates, biases, strict=True)]
    if bias is not None:  # a bias of the sum is one of its first summand that has no gate
        place = next(i for i, summand in enumerate(summands) if summand.gate is None)
        own = summands[place].bias
        summands[place] = replace(summands[place], bias=bias if own is None else own + bias)
    first = step.node.args[1][0]

    def cached(name: str, make: Callable[[], Any]) -> Any:
        return step.cached(first, f"{step.node.name} {name}", make)

    place_ = Place(step.account, step.layout_of(Ref(step.node.name)), step.batch, cached)
    found = joint_shares(rule.linear, rule.product, summands, step.output, relevance, place_)
    absorbed = dict(found.absorbed)
    results: list[list[Tensor | None]] = []
    for refs_, shares in ((step.node.args[0], found.inputs), (step.node.args[2], found.gates)):
        results.append([])
        for ref, share in zip(refs_, shares, strict=True):
            carries = isinstance(ref, Ref) and step.is_data(ref)
            results[-1].append(share if carries else None)
            if share is not None and not carries:
                amount = share.sum(
                    -1, keepdim=True
                )  # its layout is the output's in all but the last dimension
                add(absorbed, "constant", step.account(amount))
    return Shares({0: results[0], 2: results[1]}, absorbed)


def _linear_rule(step: Step) -> LinearRule:
    return step.rule if isinstance(step.rule, LinearRule) else Epsilon()


register(name_of(joint_linear), Operation("linear", joint, "both", Epsilon(), LINEAR_RULES))
register(name_of(recurrent_linear), Operation("recurrent", joint, "both", Recurrent(), (Recurrent,)))
