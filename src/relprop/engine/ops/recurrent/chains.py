"""The walk through one direction of one recurrent layer, from its last step to its first.

Everything that does not hang on the relevance of a later step is worked out for all steps at once: gates,
cell states, the shares of sums and products, and after the walk the relevance of the inputs and all accounts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from relprop.engine.ops.recurrent.factors import (
    Inverse,
    Parts,
    gates_receive,
    inverse,
    is_batched,
    product_of,
    shares_of_product,
    shares_of_sum,
    times,
)
from relprop.engine.ops.recurrent.joint import Place, Summand, joint_shares
from relprop.engine.rules import LinearRule, Product, Recurrent
from relprop.engine.rules.affine import add
from relprop.engine.step import Layout, sum_per_sample


@dataclass(frozen=True, slots=True)
class Chain:
    """One direction of one layer in the order of its steps: T steps, N sequences, E inputs, H units.

    x (T, N, E); before and after (T, N, P): the hidden states that each step starts from and ends with (P = H
    without a projection); cell (N, H): the first cell state of an LSTM. Weights as torch keeps them.
    """

    x: Tensor
    before: Tensor
    after: Tensor
    cell: Tensor | None
    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None = None


@dataclass(slots=True)
class Ledger:
    """What a layer absorbs, per sample. `inner`: neighbouring sequences that belong to one sample (None: all do)."""

    batch: int
    inner: int | None
    cached: Callable[[str, Callable[[], Any]], Any]
    absorbed: dict[str, Tensor] = field(default_factory=dict)
    magnitude: Tensor | None = None  # the largest Σ|R| of each sample at any step

    def see(self, relevance: Tensor) -> None:
        """Take down how large relevance (T, N, H) has grown at any step."""
        sizes = relevance.abs().sum(-1, dtype=torch.float64)
        groups = (-1, self.batch, self.inner) if self.inner is not None else (1, 1, sizes.shape[1])
        largest = sizes.reshape(len(sizes), *groups).sum((1, 3)).amax(0)
        self.magnitude = largest if self.magnitude is None else torch.maximum(self.magnitude, largest)

    def enter(self, reason: str, values: Tensor) -> None:
        """Add Σ values (…, N, K) of each sample."""
        add(self.absorbed, reason, self.account(values))

    def account(self, values: Tensor) -> Tensor:
        """Σ values (…, N, K) of each sample, (B,) float64."""
        layout = None if self.inner is None else Layout(values.dim() - 2, self.inner)
        return sum_per_sample(values, layout, self.batch)

    def lose(self, relevance: Tensor, parts: Parts | Inverse) -> None:
        """Enter what a stabiliser takes of the relevance of all steps, and what has no denominator."""
        if parts.stabiliser is not None:
            self.enter("stabilizer", relevance * parts.stabiliser)
        if parts.empty is not None:
            self.enter("undistributed", torch.where(parts.empty, relevance, 0.0))

    def place(self, name: str) -> Place:
        """Where a single step's linear operation stands; its weights' parts are cached under `name`."""
        layout = None if self.inner is None else Layout(0, self.inner)
        return Place(self.account, layout, self.batch, lambda part, make: self.cached(f"{name} {part}", make))


class Linear:
    """Some rows of z = W x + b_ih + g ⊙ (U h + b_hh), walked step by step. This one by ε: relevance of step t
    needs one product with U, all the rest is done at the end for all steps."""

    def __init__(
        self, chain: Chain, rows: slice, rule: LinearRule, product: Product, gate: Tensor | None = None
    ) -> None:
        self.chain, self.rule, self.gate = chain, rule, gate
        self.w, self.u = chain.w_ih[rows], chain.w_hh[rows]
        has_bias = chain.b_ih is not None and chain.b_hh is not None and rule.bias != "ignore"
        self.b_ih = chain.b_ih[rows] if has_bias and chain.b_ih is not None else None
        self.b_hh = chain.b_hh[rows] if has_bias and chain.b_hh is not None else None
        self.hidden = F.linear(chain.before, self.u, self.b_hh)
        z = F.linear(chain.x, self.w, self.b_ih)
        self.d = inverse(z.add_(self.hidden if gate is None else gate * self.hidden), rule.epsilon)
        self.parts = Parts(0.0, 1.0) if gate is None else shares_of_product(product, gate, self.hidden)
        self.through = None if gate is None else product_of(gate, self.parts.second)
        self.to_gate = 0.0 if gate is None else product_of(gate * self.hidden, self.parts.first)
        self.s = torch.zeros_like(z)
        self.lost = torch.zeros_like(z) if self.d.empty is not None else None
        self.count = chain.x.shape[-1] + chain.before.shape[-1]

    def back(self, t: int, relevance: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the relevance of z at step t (N, K) to that of h_{t−1} (N, P) and of the gate."""
        s = torch.mul(relevance, self.d.value[t], out=self.s[t])
        if self.lost is not None:
            self.lost[t] = relevance
        v = s if not isinstance(self.through, Tensor) else s * self.through[t]
        shares = self.chain.before[t] * (v @ self.u)
        if self.rule.spreads:
            shares += self._kept(s, v, t).sum(-1, keepdim=True) / self.count
        return shares, s * self.to_gate[t] if isinstance(self.to_gate, Tensor) else None

    def _kept(self, s: Tensor, v: Tensor, t: int | slice) -> Tensor:
        """What bias and stabiliser take of s, in z's shape."""
        kept = torch.zeros_like(s) if self.d.stabiliser is None else s * self.d.stabiliser[t]
        if self.b_ih is not None and self.b_hh is not None:
            kept = kept + s * self.b_ih + v * self.b_hh
        return kept

    def finish(self, ledger: Ledger) -> Tensor:
        """Relevance of the inputs of all steps (T, N, E); the accounts are entered."""
        s = self.s
        v = s if not isinstance(self.through, Tensor) else s * self.through
        shares = (s @ self.w).mul_(self.chain.x)
        if self.gate is not None:
            ledger.lose(s * self.gate * self.hidden, self.parts)
        if self.lost is not None and self.d.empty is not None:
            ledger.enter("undistributed", torch.where(self.d.empty, self.lost, 0.0))
        if self.rule.spreads:
            return shares + self._kept(s, v, slice(None)).sum(-1, keepdim=True) / self.count
        if self.d.stabiliser is not None:
            ledger.enter("stabilizer", s * self.d.stabiliser)
        if self.b_ih is not None and self.b_hh is not None:
            ledger.enter("bias", torch.addcmul(s * self.b_ih, v, self.b_hh))
        return shares


class SteppedLinear:
    """The same by any other rule, whose shares are worked out for one step at a time."""

    def __init__(
        self,
        chain: Chain,
        rows: slice,
        rule: LinearRule,
        product: Product,
        ledger: Ledger,
        gate: Tensor | None = None,
    ) -> None:
        self.chain, self.rule, self.product, self.gate = chain, rule, product, gate
        self.place = ledger.place(f"{rows.start}")
        self.w, self.u = chain.w_ih[rows], chain.w_hh[rows]
        self.b_ih = None if chain.b_ih is None else chain.b_ih[rows]
        self.b_hh = None if chain.b_hh is None else chain.b_hh[rows]
        hidden = F.linear(chain.before, self.u, self.b_hh)
        self.z = F.linear(chain.x, self.w, self.b_ih) + (hidden if gate is None else gate * hidden)
        self.shares = torch.zeros_like(chain.x)
        self.absorbed: dict[str, Tensor] = {}

    def back(self, t: int, relevance: Tensor) -> tuple[Tensor, Tensor | None]:
        """From the relevance of z at step t (N, K) to that of h_{t−1} (N, P) and of the gate."""
        summands = [
            Summand(self.chain.x[t], self.w, self.b_ih),
            Summand(self.chain.before[t], self.u, self.b_hh, None if self.gate is None else self.gate[t]),
        ]
        found = joint_shares(self.rule, self.product, summands, self.z[t], relevance, self.place)
        self.shares[t] = found.inputs[0]
        for reason, amount in found.absorbed.items():
            add(self.absorbed, reason, amount)
        return found.inputs[1], found.gates[1]

    def finish(self, ledger: Ledger) -> Tensor:
        """Relevance of the inputs of all steps (T, N, E); the accounts are entered."""
        for reason, amount in self.absorbed.items():
            add(ledger.absorbed, reason, amount)
        return self.shares


def linear_of(
    chain: Chain, rows: slice, rule: Recurrent, ledger: Ledger, gate: Tensor | None = None
) -> Linear | SteppedLinear:
    """Some rows of a cell's pre-activation by its rule."""
    if is_batched(rule.linear):
        return Linear(chain, rows, rule.linear, rule.product, gate)
    return SteppedLinear(chain, rows, rule.linear, rule.product, ledger, gate)


@dataclass(frozen=True, slots=True)
class ChainShares:
    """Relevance of the inputs (T, N, E) and of the first hidden (N, P) and cell state (N, H)."""

    x: Tensor
    hidden: Tensor
    cell: Tensor | None = None


def elman(
    chain: Chain, rule: Recurrent, out: Tensor, hidden: Tensor, cell: Tensor | None, ledger: Ledger
) -> ChainShares:
    """h = φ(W x + U h + b): the identity through φ, then one linear operation (propagation sheet, 6.2).

    `out` (T, N, P): relevance of the states as outputs; `hidden` (N, P), `cell` (N, H): of the last states.
    """
    z = linear_of(chain, slice(0, None), rule, ledger)
    arrived = torch.empty_like(out)
    for t in reversed(range(len(out))):
        hidden, _ = z.back(t, torch.add(out[t], hidden, out=arrived[t]))
    ledger.see(arrived)
    return ChainShares(z.finish(ledger), hidden)


def gru(
    chain: Chain, rule: Recurrent, out: Tensor, hidden: Tensor, cell: Tensor | None, ledger: Ledger
) -> ChainShares:
    """n = tanh(W x + b_in + r ⊙ (U h + b_hn)), h' = (1 − z) ⊙ n + z ⊙ h (propagation sheet, 6.2).

    r, z and 1 − z are gates; under rules that give gates something, relevance of 1 − z is that of z.
    """
    size = chain.before.shape[-1]
    x_part = F.linear(chain.x, chain.w_ih, chain.b_ih)
    h_part = F.linear(chain.before, chain.w_hh, chain.b_hh)
    r, z = torch.sigmoid(x_part[..., : 2 * size] + h_part[..., : 2 * size]).chunk(2, -1)
    n = torch.tanh(torch.addcmul(x_part[..., 2 * size :], r, h_part[..., 2 * size :]))
    new, old = (1 - z) * n, z * chain.before
    summed = shares_of_sum(rule.addition, new, old)
    products = shares_of_product(rule.product, 1 - z, n), shares_of_product(rule.product, z, chain.before)
    to_n, to_h = product_of(summed.first, products[0].second), product_of(summed.second, products[1].second)
    to_z = product_of(summed.first, products[0].first), product_of(summed.second, products[1].first)
    candidate = linear_of(chain, slice(2 * size, None), rule, ledger, r)
    gates = linear_of(chain, slice(0, 2 * size), rule, ledger) if gates_receive(rule.product) else None
    arrived = torch.empty_like(out)
    for t in reversed(range(len(out))):
        whole = torch.add(out[t], hidden, out=arrived[t])
        hidden, of_r = candidate.back(t, _or_zero(times(whole, _at(to_n, t)), whole))
        kept = times(whole, _at(to_h, t))
        hidden = hidden if kept is None else hidden + kept
        if gates is not None:
            of_z = [share for f in to_z if (share := times(whole, _at(f, t))) is not None]
            both = torch.cat([_or_zero(of_r, whole), sum(of_z, torch.zeros_like(whole))], -1)
            hidden = hidden + gates.back(t, both)[0]
    ledger.see(arrived)
    ledger.lose(arrived, summed)
    ledger.lose(_or_zero(times(arrived, summed.first), arrived), products[0])
    ledger.lose(_or_zero(times(arrived, summed.second), arrived), products[1])
    shares = candidate.finish(ledger)
    return ChainShares(shares if gates is None else shares + gates.finish(ledger), hidden)


def lstm(
    chain: Chain, rule: Recurrent, out: Tensor, hidden: Tensor, cell: Tensor | None, ledger: Ledger
) -> ChainShares:
    """c' = f ⊙ c + i ⊙ g, h' = o ⊙ tanh c' (Arras et al. 2017; propagation sheet, 6.1).

    Under "signal" (LRP-all) g and c get all, the gates i, f and o nothing.
    """
    assert chain.cell is not None and cell is not None
    size = chain.cell.shape[-1]
    z = F.linear(chain.x, chain.w_ih, chain.b_ih) + F.linear(chain.before, chain.w_hh, chain.b_hh)
    i, f, g, o = z.chunk(4, -1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    new = i * g
    cells = torch.empty(len(out) + 1, *chain.cell.shape, dtype=z.dtype, device=z.device)
    cells[0] = chain.cell
    for t in range(len(out)):
        torch.addcmul(new[t], f[t], cells[t], out=cells[t + 1])
    before = cells[:-1]
    summed = shares_of_sum(rule.addition, f * before, new)
    forget, enter = (shares_of_product(rule.product, *pair) for pair in ((f, before), (i, g)))
    leave = shares_of_product(rule.product, o, torch.tanh(cells[1:]))
    to_before, to_f = product_of(summed.first, forget.second), product_of(summed.first, forget.first)
    to_g, to_i = product_of(summed.second, enter.second), product_of(summed.second, enter.first)
    all_rows = gates_receive(rule.product)
    linear = linear_of(chain, slice(0, None) if all_rows else slice(2 * size, 3 * size), rule, ledger)
    projection = None if chain.w_hr is None else _Projection(chain, rule, o * torch.tanh(cells[1:]), ledger)
    spread = _Spread(rule, size)
    of_h, of_c = (out.new_empty(len(out), *chain.cell.shape) for _ in range(2))
    for t in reversed(range(len(out))):
        arrived = out[t] + hidden
        at_h = of_h[t].copy_(arrived if projection is None else projection.back(t, arrived))
        at_c = torch.add(cell, _or_zero(times(at_h, _at(leave.second, t)), at_h), out=of_c[t])
        extra = spread.of(at_c, summed, t)
        at_g = _plus(times(at_c, _at(to_g, t)), extra)
        if all_rows:
            shares = [
                times(at_c, _at(to_i, t)),
                times(at_c, _at(to_f, t)),
                at_g,
                times(at_h, _at(leave.first, t)),
            ]
            at_g = torch.cat([_or_zero(share, at_c) for share in shares], -1)
        hidden, _ = linear.back(t, _or_zero(at_g, at_c))
        cell = _or_zero(_plus(times(at_c, _at(to_before, t)), extra), at_c)
    ledger.see(of_h)
    ledger.see(of_c)
    ledger.lose(of_h, leave)
    if not spread.active:
        ledger.lose(of_c, summed)
    ledger.lose(_or_zero(times(of_c, summed.first), of_c), forget)
    ledger.lose(_or_zero(times(of_c, summed.second), of_c), enter)
    return ChainShares(linear.finish(ledger), hidden, cell)


class _Projection:
    """h = W_hr (o ⊙ tanh c): a linear operation of its own, one step at a time."""

    def __init__(self, chain: Chain, rule: Recurrent, values: Tensor, ledger: Ledger) -> None:
        assert chain.w_hr is not None
        self.rule, self.values, self.weight, self.after = rule, values, chain.w_hr, chain.after
        self.ledger, self.place = ledger, ledger.place("projection")

    def back(self, t: int, relevance: Tensor) -> Tensor:
        summands = [Summand(self.values[t], self.weight)]
        found = joint_shares(
            self.rule.linear, self.rule.product, summands, self.after[t], relevance, self.place
        )
        for reason, amount in found.absorbed.items():
            add(self.ledger.absorbed, reason, amount)
        return found.inputs[0]


class _Spread:
    """Arras' bias option: what the cell sum's ε takes is spread over all units of both of its terms."""

    def __init__(self, rule: Recurrent, size: int) -> None:
        self.active = rule.linear.bias == "distribute_layer"
        self.size = size

    def of(self, relevance: Tensor, summed: Parts, t: int) -> Tensor | None:
        """The part of every unit of either term, (N, 1)."""
        if not self.active or summed.stabiliser is None:
            return None
        return (relevance * summed.stabiliser[t]).sum(-1, keepdim=True) / (2 * self.size)


def _at(factor: Tensor | float, t: int) -> Tensor | float:
    return factor[t] if isinstance(factor, Tensor) else factor


def _plus(share: Tensor | None, extra: Tensor | None) -> Tensor | None:
    return share if extra is None else extra if share is None else share + extra


def _or_zero(share: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if share is None else share
