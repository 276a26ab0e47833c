"""The functions of the rules for linear operations, each of an `Affine` map. `RULES` lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relprop.engine.looks import holds, traced
from relprop.engine.rules.affine import (
    Affine,
    Quotient,
    Result,
    add,
    divided,
    divided_in_place,
    kept_where_positive,
    owned,
    scaled,
    settled,
    some,
)
from relprop.engine.rules.declared import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from relprop.errors import InvalidInput


def epsilon(rule: Epsilon, f: Affine, relevance: Tensor) -> Result:
    """LRP-ε: Bach et al. 2015, Eq. 58; with ε = 0 Eq. 56."""
    bias = None if rule.bias == "ignore" else f.bias
    z = f.output if f.bias is None or bias is not None else f.output - f.bias
    quotient = divided(rule, f, relevance, z)
    return settled(
        rule, f, relevance, quotient, bias, scaled(f.x, f.transpose(quotient.s, f.weight), quotient.s)
    )


def gamma(rule: Gamma, f: Affine, relevance: Tensor) -> Result:
    """LRP-γ: Montavon et al. 2019, Sec. 10.2.1; for inputs of any sign Andéol et al. 2021.

    The branch is chosen by the sign σ of the true z_k; units with z_k = 0 hand nothing on. The contributions of that sign are
    ½ (z_kj + σ |z_kj|), so that z_kj + γ z_kj^σ is in proportion to z_kj + κ σ |x_j| |w_kj|, κ = γ / (2 + γ): one pass more each
    way, whatever the signs of x and z.
    """
    if not rule.modified_bias:
        return _gamma_of_weights(rule, f, relevance)
    if _only_positive(rule, f):
        return _gamma_of_positive(rule, f, relevance)
    kappa = rule.gamma / (2 + rule.gamma)
    bias = None if rule.bias == "ignore" else f.bias
    z = f.output if f.bias is None or bias is not None else f.output - f.bias
    size = f.x if f.nonnegative else f.x.abs()
    extent = f.apply(size, f.part("absolute"))
    if rule.stabiliser == "signed" and rule.epsilon and not (rule.spreads or f.noted or traced()):
        return _gamma_by_size(rule, f, relevance, bias, z, size, extent)
    extent = extent if bias is None else extent + bias.abs()  # Σ_j |z_kj| + |b_k|
    sign = z.sign()
    # the denominators are those of the rule over 1 + γ/2, and so is the stabiliser
    own = rule if rule.stabiliser == "relative" else replace(rule, epsilon=rule.epsilon * (1 - kappa))
    quotient = divided(own, f, relevance, torch.addcmul(z, sign, extent, value=kappa), sign=z)
    signed = quotient.s * sign
    s = signed * sign  # 0 where z is
    shares = _by_size(f, size, kappa, s, signed)
    if bias is None or rule.spreads or f.noted is not None:
        every = None if bias is None else sign * (sign * bias + kappa * bias.abs())
        return settled(rule, f, relevance, quotient, every, shares)
    shares, absorbed = settled(rule, f, relevance, quotient, None, shares)
    absorbed["bias"] = f.account_product(s, bias) + kappa * f.account_product(signed, bias.abs())
    return shares, absorbed


def _gamma_by_size(
    rule: Gamma, f: Affine, relevance: Tensor, bias: Tensor | None, z: Tensor, size: Tensor, extent: Tensor
) -> Result:
    """γ by σ s = R / (|z| + κ Σ_j |z_kj| + ε), whose denominator is positive: few passes over memory, and no stabiliser in it.

    `size`: |x|; `extent`: Σ_j |x_j| |w_kj|, which is written over.
    """
    kappa = rule.gamma / (2 + rule.gamma)
    epsilon = z.new_full((), rule.epsilon * (1 - kappa))
    spread = None if bias is None else kappa * bias.abs()
    own = extent if owned(extent, f.x, z) else extent.clone()
    magnitude = z.abs()
    own.mul_(kappa).add_(epsilon if spread is None else spread + epsilon).add_(magnitude)
    present, kept = relevance, None
    if not holds(f.x, lambda: magnitude.amin() != 0, cheap=True):  # the stabiliser keeps all where z = 0
        present = kept_where_positive(relevance, magnitude.expand_as(relevance))
        kept = f.account(relevance - present)
    signed = divided_in_place(present, own)
    sign = torch.sign(z, out=magnitude)
    s = torch.mul(signed, sign, out=sign) if signed.shape == sign.shape else signed * sign
    shares = _by_size(f, size, kappa, s, signed)
    absorbed: dict[str, Tensor] = {} if kept is None else {"stabilizer": kept}
    if spread is None or bias is None:
        add(absorbed, "stabilizer", f.account_product(signed, epsilon))
        return shares, absorbed
    to_stabiliser, to_bias = f.account_products(signed, epsilon, spread)
    add(absorbed, "stabilizer", to_stabiliser)
    absorbed["bias"] = f.account_product(s, bias) + to_bias
    return shares, absorbed


def _by_size(f: Affine, size: Tensor, kappa: float, s: Tensor, signed: Tensor) -> Tensor:
    """Σ_k (z_kj + κ σ_k |z_kj|) s_k, of s and σ s; `size`: |x|."""
    plain, absolute = f.transpose(s, f.weight), f.transpose(signed, f.part("absolute"))
    if f.nonnegative:
        return scaled(f.x, torch.add(plain, absolute, alpha=kappa), s)
    return torch.addcmul(f.x * plain, size, absolute, value=kappa)


def _only_positive(rule: Gamma, f: Affine) -> bool:
    """Whether x ≥ 0 and relevance arrives only where z > 0, as behind ReLU: one branch of the rule then does."""
    plain = f.nonnegative and f.weight is not None and rule.bias == "absorb"
    return bool(plain and f.rectified and rule.gamma and rule.epsilon and rule.stabiliser == "signed")


def _gamma_of_positive(rule: Gamma, f: Affine, relevance: Tensor) -> Result:
    """m_kj = x_j (w_kj + γ w_kj⁺) in the units with z_k > 0, which are all that have relevance."""
    name = f"favour {rule.gamma!r}"
    bias = None if f.bias is None else f.bias + rule.gamma * f.bias.clamp(min=0)
    d = f.apply(f.x, f.part(name)).add_(rule.epsilon if bias is None else bias + rule.epsilon)
    s = divided_in_place(relevance, d.clamp_(min=rule.epsilon))  # the floor keeps 0/0 from idle units
    quotient = Quotient(s, s.new_full((), rule.epsilon), None)
    return settled(rule, f, relevance, quotient, bias, scaled(f.x, f.transpose(s, f.part(name)), s))


def _gamma_of_weights(rule: Gamma, f: Affine, relevance: Tensor) -> Result:
    """captum's γ: weights w + γ w⁺ whatever the sign of x and z, the bias as it is."""
    bias = None if rule.bias == "ignore" else f.bias
    z = f.output if f.bias is None or bias is not None else f.output - f.bias
    quotient = divided(rule, f, relevance, z + rule.gamma * f.plus(f.x))
    shares = f.x * f.favour_transpose(quotient.s, rule.gamma)
    return settled(rule, f, relevance, quotient, bias, shares)


def alpha_beta(rule: AlphaBeta | ZPlus, f: Affine, relevance: Tensor) -> Result:
    """LRP-αβ: Bach et al. 2015, Eq. 60. z⁺ (Montavon et al. 2017) is α = 1, β = 0."""
    alpha, beta = (1.0, 0.0) if isinstance(rule, ZPlus) else (rule.alpha, rule.beta)
    positive, negative = f.signs()
    plus = f.positive_part(positive, negative)
    minus = _negative_part(f, positive, negative, plus, relevance) if beta else None
    s, settle = _side(rule, f, relevance if alpha == 1 else alpha * relevance, plus, True)
    if minus is None:
        return settle(_by_sign(f, positive, negative, s, True))
    s_minus, settle_minus = _side(rule, f, -beta * relevance, minus, False)
    if negative is None and f.weight is not None and not rule.spreads:  # x (w⁺ᵀ s + w⁻ᵀ s⁻), in one product
        both, other = f.plus_transpose(s), f.minus_transpose(s_minus)
        both = both.add_(other) if owned(both, s) else both + other
        (shares, absorbed), (_, more) = settle(scaled(f.x, both, s)), settle_minus(other)
    else:
        shares, absorbed = settle(_by_sign(f, positive, negative, s, True))
        other, more = settle_minus(_by_sign(f, positive, negative, s_minus, False))
        shares = shares.add_(other) if owned(shares, f.x) else shares + other
    for reason, amount in more.items():
        add(absorbed, reason, amount)
    return shares, absorbed


def _by_sign(f: Affine, positive: Tensor, negative: Tensor | None, s: Tensor, upper: bool) -> Tensor:
    """Σ_k z_kj⁺ s_k (upper) or Σ_k z_kj⁻ s_k: x⁺ meets the weights of that sign, x⁻ those of the other."""
    if f.weight is None:  # all weights are ≥ 0
        part = positive if upper else torch.zeros_like(positive) if negative is None else negative
        return scaled(part, f.plus_transpose(s), s)
    if negative is None:
        return scaled(positive, f.plus_transpose(s) if upper else f.minus_transpose(s), s)
    plus, minus = f.transposes(s)
    same, other = (plus, minus) if upper else (minus, plus)
    return torch.addcmul(positive * same, negative, other)


def _side(
    rule: AlphaBeta | ZPlus, f: Affine, relevance: Tensor, part: Tensor, upper: bool
) -> tuple[Tensor, Callable[[Tensor], Result]]:
    """R / (part + its part of the bias), and the function that settles the accounts of that half of the rule.

    A unit without contributions of that sign hands nothing on: its R goes to the account named after what is missing.
    """
    full = isinstance(rule, AlphaBeta) and rule.full_bias
    bias = None
    if f.bias is not None and rule.bias != "ignore":
        bias = f.bias if full else f.bias.clamp(min=0) if upper else f.bias.clamp(max=0)
    if not full and rule.epsilon and rule.stabiliser == "signed" and not rule.spreads:
        return _one_sided(rule, f, relevance, part, bias, rule.epsilon if upper else -rule.epsilon)
    part = part if bias is None else part + bias
    every = not full and holds(f.x, lambda: (part.amin() if upper else part.amax()) != 0, cheap=True)
    empty = None if every else part == 0
    present = relevance if empty is None else torch.where(empty, 0.0, relevance)
    sign = part if full else part.new_full((), 1.0 if upper else -1.0)
    quotient = divided(rule, f, present, part, sign)

    def settle(shares: Tensor) -> Result:
        shares, absorbed = settled(rule, f, present, quotient, bias, shares)
        if empty is not None:
            reason = "no_positive_part" if upper else "no_negative_part"
            add(absorbed, reason, f.account(torch.where(empty, relevance, 0.0)))
        return shares, absorbed

    return quotient.s, settle


def _one_sided(
    rule: AlphaBeta | ZPlus,
    f: Affine,
    relevance: Tensor,
    part: Tensor,
    bias: Tensor | None,
    stabiliser: float,
) -> tuple[Tensor, Callable[[Tensor], Result]]:
    """`_side` for a part whose terms, bias and stabiliser have one sign: d is never 0, and equal to the stabiliser
    where nothing contributes. Few passes over memory."""
    offset = stabiliser if bias is None else bias + stabiliser
    d = part.add_(offset) if owned(part, f.x) else part + offset
    every = holds(f.x, lambda: ~((d.amin() if stabiliser > 0 else -d.amax()) <= abs(stabiliser)), cheap=True)
    present, absent = relevance, None
    if not every:  # some unit has no contribution
        present = kept_where_positive(relevance, d if stabiliser > 0 else -d, abs(stabiliser))
        absent = f.account(relevance - present)
    s = divided_in_place(present, d)
    quotient = Quotient(s, s.new_full((), stabiliser), None)

    def settle(shares: Tensor) -> Result:
        shares, absorbed = settled(rule, f, present, quotient, bias, shares)
        if absent is not None:
            add(absorbed, "no_positive_part" if stabiliser > 0 else "no_negative_part", absent)
        return shares, absorbed

    return s, settle


def _negative_part(
    f: Affine, positive: Tensor, negative: Tensor | None, plus: Tensor, relevance: Tensor
) -> Tensor:
    """Σ_j z_kj⁻. For free as z − b − Σ z_kj⁺, unless some unit's would be lost in rounding: then computed
    directly."""
    free = f.output.sub_(plus) if f.spare else f.output - plus
    free = free if f.bias is None else free.sub_(f.bias)

    def sure() -> Tensor:
        doubt = torch.add(free, plus, alpha=1e-3)  # > 0 where less than a thousandth of the terms is left
        doubt = doubt if f.bias is None else doubt.add_(f.bias.abs(), alpha=1e-3)
        few = not traced() and bool(doubt.amax() <= 0)
        return doubt.new_ones((), dtype=torch.bool) if few else ~some(kept_where_positive(relevance, doubt))

    if holds(f.x, sure):
        return free
    direct = f.minus(positive).expand_as(plus)
    if negative is not None:
        direct = direct + f.plus(negative)
    return direct


def z_box(rule: ZBox, f: Affine, relevance: Tensor) -> Result:
    """The box rule: Montavon et al. 2017; z_kj = (x_j − l_j) w_kj⁺ + (x_j − h_j) w_kj⁻, each term ≥ 0."""
    bounds = [torch.as_tensor(v, dtype=f.x.dtype, device=f.x.device) for v in (rule.low, rule.high)]
    for bound in bounds:
        sizes = zip(bound.shape[::-1], f.x.shape[::-1], strict=False)
        if bound.dim() > f.x.dim() or any(size not in (1, length) for size, length in sizes):
            raise InvalidInput(
                f"ZBox: bounds of shape {tuple(bound.shape)} do not fit the input's {tuple(f.x.shape)}\n"
                "  do: give numbers, or tensors (C, 1, 1) with one bound per channel"
            )
    low, high = (bound.expand_as(f.x) for bound in bounds)
    slack = 1e-5 * (high - low)
    if not holds(f.x, lambda: ~((f.x < low - slack) | (f.x > high + slack)).any(), demanded=True):
        raise InvalidInput(
            f"ZBox: the input reaches from {float(f.x.min()):.4g} to {float(f.x.max()):.4g}"
            " and leaves the bounds low, high\n"
            "  do: give bounds in the input's normalised space: (0 − mean)/std and (1 − mean)/std per channel"
        )
    above, below = (f.x - low).clamp(min=0), (f.x - high).clamp(max=0)
    z = f.positive_part(above, below)
    quotient = divided(rule, f, relevance, z, z.new_ones(()))
    plus, minus = f.transposes(quotient.s)
    shares = torch.addcmul(above * plus, below, minus)
    return settled(rule, f, relevance, quotient, None, shares)


def w_square(rule: WSquare, f: Affine, relevance: Tensor) -> Result:
    """The w² rule: Montavon et al. 2017 (arXiv v1, Eq. 12); a bias that is not ignored counts as b²."""
    bias = None if f.bias is None or rule.bias == "ignore" else f.bias.square()
    return _input_free(rule, f, relevance, "square", bias)


def flat(rule: Flat, f: Affine, relevance: Tensor) -> Result:
    """The flat rule: Lapuschkin et al. 2019; the bias takes no part."""
    return _input_free(rule, f, relevance, "ones", None)


def _input_free(rule: WSquare | Flat, f: Affine, relevance: Tensor, name: str, bias: Tensor | None) -> Result:
    """Shares in proportion to a part of the weights, whatever the input; one sample serves all."""
    weight = f.part(name)
    one = f.x if f.batch_dimension is None else f.x.narrow(f.batch_dimension, 0, 1)
    z = f.apply(torch.ones_like(one), weight).expand_as(f.output)
    z = z if bias is None else z + bias
    quotient = divided(rule, f, relevance, z, z.new_ones(()))
    return settled(rule, f, relevance, quotient, bias, f.transpose(quotient.s, weight))


RULES: dict[type[Any], Callable[[Any, Affine, Tensor], Result]] = {
    Epsilon: epsilon,
    Gamma: gamma,
    AlphaBeta: alpha_beta,
    ZPlus: alpha_beta,
    ZBox: z_box,
    WSquare: w_square,
    Flat: flat,
}
"""The function of every rule for linear operations. A new rule is a dataclass, a function and a row here."""
