"""A linear operation as its rule sees it, and the division by its stabilised output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from relprop.engine.looks import traced
from relprop.engine.rules.declared import LinearRule
from relprop.engine.step import Layout, as_in_memory, columns_at_a_time, is_dense, lie_alike, rows_of

Result = tuple[Tensor, dict[str, Tensor]]
"""Relevance of the input, and what the rule absorbed: from a reason to a sum per sample, (B,) float64."""


@dataclass(frozen=True, slots=True)
class Affine:
    """A linear operation as its rule sees it: z = apply(x, w) + b.

    `apply(x, w)` and its adjoint `transpose(v, w)` (from an output-shaped tensor to an input-shaped one) take
    any weight of w's shape; `part(name)` gives w's derived tensors: "positive", "negative", "absolute", "square",
    "ones".
    For an operation without weights (pooling, sums) w is None, `apply` has no negative weights and the parts
    are None. `bias` broadcasts to the output. `nonnegative`: x ≥ 0 is known. `account` sums an output-shaped
    tensor per sample. `batch_dimension`: the dimension of x along which its samples lie, if there is one;
    `layout`: the same of the output. `paired`: dimension 1 holds x's channels and those of w, and they are so
    few that two of them cost no more than one: L⁺ and L⁻ then run as one operation with the part "both".
    `batch`: the number of samples, where it is known. `noted`: told s and the bias where s·bias is absorbed.
    `spare`: nothing reads `output` after this rule, which may write over it. `rectified`: the relevance is 0
    wherever the output is not positive.
    """

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    output: Tensor
    apply: Callable[[Tensor, Tensor | None], Tensor]
    transpose: Callable[[Tensor, Tensor | None], Tensor]
    part: Callable[[str], Tensor | None]
    nonnegative: bool
    account: Callable[[Tensor], Tensor]
    batch_dimension: int | None = None
    layout: Layout | None = None
    paired: bool = False
    batch: int | None = None
    noted: Callable[[Tensor, Tensor], None] | None = None
    spare: bool = False
    rectified: bool = False

    def positive_part(self, positive: Tensor, negative: Tensor | None) -> Tensor:
        """Σ_j z_kj⁺ = L⁺(x⁺) + L⁻(x⁻), of x in its two parts (`negative` is None where x ≥ 0)."""
        if negative is None or self.weight is None:
            return self.plus(positive)
        if self.paired:
            return self.apply(torch.cat([positive, negative], 1), self.part("both"))
        return self.plus(positive) + self.minus(negative)

    def transposes(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The adjoints of L⁺ and of L⁻."""
        if self.paired:
            plus, minus = self.transpose(v, self.part("both")).chunk(2, 1)
            return plus, minus
        return self.plus_transpose(v), self.minus_transpose(v)

    def plus(self, x: Tensor) -> Tensor:
        """L⁺(x)."""
        return self.apply(x, self.part("positive"))

    def minus(self, x: Tensor) -> Tensor:
        """L⁻(x)."""
        return self.output.new_zeros(()) if self.weight is None else self.apply(x, self.part("negative"))

    def plus_transpose(self, v: Tensor) -> Tensor:
        """Adjoint of L⁺."""
        return self.transpose(v, self.part("positive"))

    def minus_transpose(self, v: Tensor) -> Tensor:
        """Adjoint of L⁻."""
        return v.new_zeros(()) if self.weight is None else self.transpose(v, self.part("negative"))

    def favour_transpose(self, v: Tensor, gamma: float) -> Tensor:
        """Adjoint of L with the weights w + γ w⁺, in one pass."""
        if self.weight is None:
            return self.transpose(v, None) * (1 + gamma)
        if self.paired:
            plus, minus = self.transposes(v)
            return (1 + gamma) * plus + minus
        return self.transpose(v, self.part(f"favour {gamma!r}"))

    def signs(self) -> tuple[Tensor, Tensor | None]:
        """x⁺, and x⁻ where x may be negative."""
        return (self.x, None) if self.nonnegative else (self.x.clamp(min=0), self.x.clamp(max=0))

    def account_product(self, s: Tensor, factor: Tensor) -> Tensor:
        """Σ s·factor per sample, (B,) float64, without the product in memory where the factor is one number, or one a
        channel, and the samples lie first."""
        if factor.dim() == 0:
            return self.account(s) * factor.double()
        if self._samples_first(s) and s.dtype == factor.dtype:
            if _one_a_channel(s, factor):
                return (_channel_sums(s) @ factor.flatten()).double()
            if s.is_contiguous() and factor.shape == s.shape[-1:]:
                return (s.flatten(0, -2) @ factor).reshape(s.shape[0], -1).sum(1, dtype=torch.float64)
        return self.account(s * factor)

    def account_products(self, s: Tensor, number: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """`account_product` with one number and with another factor: in one pass where that has one number a channel."""
        if self._samples_first(s) and s.dtype == factor.dtype and _one_a_channel(s, factor):
            sums = _channel_sums(s)
            return sums.sum(1, dtype=torch.float64) * number.double(), (sums @ factor.flatten()).double()
        return self.account_product(s, number), self.account_product(s, factor)

    def _samples_first(self, s: Tensor) -> bool:
        first = self.layout == Layout(0, 1) and s.shape[:1] == (self.batch,) and not traced()
        return first and s.dim() > 1 and is_dense(s)

    def root_mean_square(self, z: Tensor) -> Tensor:
        """√(mean z²) of each sample, in a shape that broadcasts to z."""
        squares = self.account(z.square())
        samples = squares.shape[0]
        sizes = (squares * samples / z.numel()).sqrt().to(z.dtype)
        if self.layout is None or samples == 1:
            return sizes.mean()
        dimension, inner = self.layout
        size = z.shape[dimension]
        per_index = sizes.repeat_interleave(inner).repeat(size // (samples * inner))
        return per_index.reshape(size, *[1] * (z.dim() - dimension - 1))


def _one_a_channel(s: Tensor, factor: Tensor) -> bool:
    """Whether a factor has one number for each channel of s, (C, 1, …)."""
    return factor.dim() > 1 and factor.dim() == s.dim() - 1 and factor.shape[0] == factor.numel()


def _channel_sums(s: Tensor) -> Tensor:
    """Σ of each channel of each sample, (B, C), over memory as it lies."""
    if s.is_contiguous():
        return s.flatten(2).sum(2)
    return s.sum(tuple(range(2, s.dim())))


def kept_where_positive(values: Tensor, sign: Tensor, least: float = 0.0) -> Tensor:
    """The values where `sign`, of their shape, is above `least`, and 0 elsewhere; several times as fast as `torch.where`."""
    return torch.ops.aten.threshold_backward(values, sign, least)  # type: ignore[no-any-return]


def some(values: Tensor) -> Tensor:
    """Whether any value is not 0, as a tensor of one; several times as fast as `any`."""
    return (values.amax() != 0) | (values.amin() != 0)


def divided_in_place(relevance: Tensor, d: Tensor) -> Tensor:
    """R / d, written over d, which the caller has just made: a large allocation costs more than the division."""
    return torch.div(relevance, d, out=d) if replaceable(d, relevance) else relevance / d


def owned(result: Tensor, *others: Tensor) -> bool:
    """Whether an operation's result has memory of its own, apart from `others`, so that it may be written over."""
    if traced():
        return False
    whole = result.untyped_storage().nbytes() == result.nbytes and result._base is None
    apart = all(result.data_ptr() != other.data_ptr() for other in others)
    return whole and apart and is_dense(result) and not result.requires_grad


def scaled(x: Tensor, shares: Tensor, s: Tensor) -> Tensor:
    """x · shares, the adjoint of s, written over `shares` where no other tensor has that memory."""
    fits = shares.dtype == x.dtype and x.dim() == shares.dim()
    fits = fits and all(own in (1, size) for own, size in zip(x.shape, shares.shape, strict=True))
    return shares.mul_(x) if fits and owned(shares, x, s) else x * shares


class Quotient(NamedTuple):
    """s = R / d of a stabilised denominator d = z + stabiliser; `empty` marks d = 0, where s is 0 (None:
    nowhere). The stabiliser is the quotient's own: its account is written over it. `kept`: the account of one that is
    no longer there, Σ s · stabiliser of each sample, (B,) float64."""

    s: Tensor
    stabiliser: Tensor | None
    empty: Tensor | None
    kept: Tensor | None = None


def divided(
    rule: LinearRule, f: Affine, relevance: Tensor, z: Tensor, sign: Tensor | None = None
) -> Quotient:
    """R / (z + stabiliser); the stabiliser has the sign of `sign` (of z by default), + for zero."""
    eps = rule.epsilon if rule.epsilon >= torch.finfo(z.dtype).tiny else 0.0
    if eps == 0:
        return _guarded(relevance, z, None)
    if rule.stabiliser == "unsigned":
        return _guarded(relevance, z + eps, torch.full_like(z, eps))
    over = f.spare and z is f.output
    if sign is None and rule.stabiliser == "signed" and not rule.spreads:
        if over and f.rectified and replaceable(z, relevance):
            return Quotient(divided_where_positive(relevance, z, eps), z.new_full((), eps), None)
        found = divided_at_once(relevance, z, f.layout, f.batch or 0, eps, over=over)
        if found is not None:
            return Quotient(found[0], None, None, found[1])
    # copysign takes −0.0 as negative: such a sum has no contributions at all, so that its sign is free
    stabiliser = torch.copysign(z.new_full((), eps), z if sign is None else sign)
    if rule.stabiliser == "relative":
        stabiliser = stabiliser * f.root_mean_square(z)
        return _guarded(relevance, z + stabiliser, stabiliser)
    if rule.stabiliser == "clip":
        small = z.abs() < eps
        d = torch.where(small, stabiliser, z)
        return Quotient(relevance / d, torch.where(small, stabiliser - z, 0.0), None)
    if rule.stabiliser == "exact_zero_only":
        stabiliser = torch.where(z == 0, stabiliser, 0.0)
    d = z.add_(stabiliser) if over and sign is None else z + stabiliser
    return Quotient(divided_in_place(relevance, d), stabiliser, None)


def replaceable(z: Tensor, relevance: Tensor) -> bool:
    """Whether a quotient of R and z can be written over z, as it stands."""
    same = relevance.shape == z.shape and relevance.dtype == z.dtype
    return same and not (traced() or relevance.requires_grad or z.requires_grad)


def divided_where_positive(relevance: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """R / (z + ε), written over z, where R is 0 wherever z ≤ 0; a block at a time, which stays in the processor's cache."""
    size = columns_at_a_time(1)
    if z.device.type == "cpu" and z.numel() > size and lie_alike(z, relevance):
        blocks = (torch.split(as_in_memory(one, 1).view(-1), size) for one in (z, relevance))
        for d, r in zip(*blocks, strict=True):
            torch.div(r, d.clamp_(min=0).add_(epsilon), out=d)
        return z
    return torch.div(relevance, z.clamp_(min=0).add_(epsilon), out=z)


def divided_at_once(
    relevance: Tensor,
    z: Tensor,
    layout: Layout | None,
    batch: int,
    epsilon: float,
    *,
    over: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """s = R / (z + ε sign z), and what the stabiliser takes, Σ s ε sign z, (B,) float64, in one pass over memory; None where
    that cannot be had.

    z may be one sample for all that R has; its denominators are then worked out once. With `over` s is written over z.
    """
    one_for_all = (
        z.shape[:1] == (1,) and batch > 1 and layout == Layout(0, 1) and z.shape[1:] == relevance.shape[1:]
    )
    rows, received = rows_of(z, layout, 1 if one_for_all else batch), rows_of(relevance, layout, batch)
    fits = rows is not None and received is not None and rows.shape[1:] == received.shape[1:]
    fits = fits and lie_alike(z[:1], relevance[:1])
    if rows is not None and received is not None and fits and rows.dtype == received.dtype:
        over = over and not one_for_all
        s = z if over else torch.empty_like(relevance)
        out = rows if over else as_in_memory(s, 1).view(received.shape)
        return s, _divided_by_blocks(received, rows, epsilon, out)
    if one_for_all and not traced() and relevance.is_contiguous() and relevance.dtype == z.dtype:
        stabiliser = torch.copysign(z.new_full((), epsilon), z)
        s = relevance / (z + stabiliser)
        return s, _products(s.flatten(1), stabiliser.flatten())
    return None


def _divided_by_blocks(relevance: Tensor, z: Tensor, epsilon: float, out: Tensor) -> Tensor:
    """R / (z + ε sign z), written to `out`, which may be z, of rows (B, N); returns what the stabiliser takes, Σ s ε sign z,
    (B,) float64.

    A block at a time, which stays in the processor's cache, so that memory is read and written once. z may be one row for all.
    """
    together = relevance.shape[0] if z.shape[0] == 1 else 1  # rows that are divided by the same
    length, size = z.shape[1], columns_at_a_time(together)
    of_one, own = z.new_full((), epsilon), z.new_empty(min(size, length))
    scratch = torch.empty_like(own)
    kept: list[Tensor] = []
    for k, row in enumerate(z):
        rows, parts = slice(k * together, (k + 1) * together), []
        for start in range(0, length, size):
            block = slice(start, min(start + size, length))
            z_k, s = row[block], out[rows, block]
            d, stabiliser = own[: len(z_k)], torch.copysign(of_one, z_k, out=scratch[: len(z_k)])
            torch.div(relevance[rows, block], torch.add(z_k, stabiliser, out=d), out=s)
            parts.append(_products(s, stabiliser))
        kept.append(torch.stack(parts).sum(0))
    return torch.cat(kept)


_ADDED = 1 << 17
"""How many numbers of one sign a product of a matrix and a vector adds up in float32 before more than a millionth is lost."""


def _products(s: Tensor, factor: Tensor) -> Tensor:
    """Σ_j s_kj f_j of each row of s (K, N), (K,) float64."""
    parts = [torch.mv(rows, own) for rows, own in zip(torch.split(s, _ADDED, 1), torch.split(factor, _ADDED), strict=True)]  # fmt: skip
    return torch.stack(parts).sum(0, dtype=torch.float64)


def _guarded(relevance: Tensor, d: Tensor, stabiliser: Tensor | None) -> Quotient:
    empty = d == 0
    return Quotient(torch.where(empty, 0.0, relevance / d), stabiliser, empty)


def settled(
    rule: LinearRule, f: Affine, relevance: Tensor, quotient: Quotient, bias: Tensor | None, shares: Tensor
) -> Result:
    """What the rule absorbs beside the inputs' `shares`, in closed form: to the stabiliser, the bias, and
    where d = 0.

    `bias`: the bias as the rule counts it, None where it takes no part. Under "distribute" its share and the
    stabiliser's are spread evenly over the inputs that each unit is connected to.
    """
    s, stabiliser, empty, kept_sum = quotient
    absorbed: dict[str, Tensor] = {}
    if empty is not None:
        absorbed["undistributed"] = f.account(torch.where(empty, relevance, 0.0))
    if rule.spreads:
        kept = [part for part in (bias, stabiliser) if part is not None]
        for part in kept:
            shares, lost = _spread(f, shares, s * part)
            add(absorbed, "undistributed", lost)
        return shares, absorbed
    if kept_sum is not None:
        absorbed["stabilizer"] = kept_sum
    if stabiliser is not None and bias is not None and stabiliser.dim() == 0:
        absorbed["stabilizer"], absorbed["bias"] = f.account_products(s, stabiliser, bias)
    else:
        if stabiliser is not None:
            absorbed["stabilizer"] = (
                f.account(taken(s, stabiliser)) if stabiliser.dim() else f.account_product(s, stabiliser)
            )
        if bias is not None:
            absorbed["bias"] = f.account_product(s, bias)
    if bias is not None and f.noted is not None:
        f.noted(s, bias)
    return shares, absorbed


def taken(s: Tensor, stabiliser: Tensor) -> Tensor:
    """s · stabiliser, written over the stabiliser, which nothing reads after this."""
    own = stabiliser.shape == s.shape and not s.requires_grad and not traced()
    return stabiliser.mul_(s) if own else s * stabiliser


def _spread(f: Affine, shares: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
    """`shares` plus an amount per output unit, spread evenly over its inputs; and what units without inputs
    keep."""
    ones = f.part("ones")
    count = f.apply(torch.ones_like(f.x), ones)
    alone = count == 0
    each = torch.where(alone, 0.0, amount / count)
    return shares + f.transpose(each, ones), f.account(torch.where(alone, amount, 0.0))


def add(accounts: dict[str, Tensor], reason: str, amount: Tensor) -> None:
    """Enter an amount under a reason that may be there already."""
    accounts[reason] = accounts[reason] + amount if reason in accounts else amount
