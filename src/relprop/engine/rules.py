"""The rules: how an operation hands the relevance of its outputs to its inputs.

A rule is a frozen dataclass (its parameters, printable and storable) and, for linear operations, one function of an
`Affine` map: operations and rules meet in that map, so that there are operations + rules functions, not their product.
Symbols: x inputs, w weights, z_kj = x_j w_kj, z_k = Σ_j z_kj + b_k, R relevance, v⁺ = max(v, 0), v⁻ = min(v, 0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from relprop.errors import InvalidInput

Bias = Literal["absorb", "ignore", "distribute"]
Stabiliser = Literal["signed", "unsigned", "clip", "relative", "exact_zero_only"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Base of all rules: parameters only."""


@dataclass(frozen=True, kw_only=True)
class LinearRule(Rule):
    """A rule for operations that are linear in their data: linear, convolution, pooling, sums, batch normalisation.

    `bias`: "absorb" keeps the bias in the denominator and its share in the account "bias"; "ignore" leaves it out of
    the rule; "distribute" spreads its share and the stabiliser's evenly over the inputs of each unit.
    `epsilon`: the stabiliser ≥ 0, added to each denominator with the sign of what it stabilises (zero counts as
    positive). `stabiliser` changes how: "unsigned" adds it as it is; "clip" raises small denominators to it;
    "relative" multiplies it by the root mean square of each sample's z; "exact_zero_only" uses it where z is 0 exactly.
    """

    bias: Bias = "absorb"
    epsilon: float = 1e-6
    stabiliser: Stabiliser = "signed"

    def __post_init__(self) -> None:
        if self.bias not in ("absorb", "ignore", "distribute"):
            raise InvalidInput(f'bias: {self.bias!r} is not "absorb", "ignore" or "distribute"')
        if not self.epsilon >= 0:
            raise InvalidInput(f"epsilon: {self.epsilon!r} is negative\n  do: give a number ≥ 0")
        if self.stabiliser not in ("signed", "unsigned", "clip", "relative", "exact_zero_only"):
            raise InvalidInput(f"stabiliser: {self.stabiliser!r} is unknown")


@dataclass(frozen=True)
class Epsilon(LinearRule):
    """LRP-ε (Bach et al. 2015, Eq. 58): R_j = Σ_k z_kj / (z_k + ε s(z_k)) R_k. With ε = 0 it is LRP-0 (Eq. 56)."""

    epsilon: float = 1e-6


@dataclass(frozen=True)
class Gamma(LinearRule):
    """LRP-γ (Montavon et al. 2019, Sec. 10.2.1; for inputs of any sign Andéol et al. 2021).

    Contributions with the sign of z_k count 1 + γ times: z_kj + γ z_kj⁺ where z_k > 0, z_kj + γ z_kj⁻ where z_k < 0; the
    bias likewise. `modified_bias=False` leaves the bias as it is and always favours positive weights (captum's rule).
    """

    gamma: float = 0.25
    modified_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma >= 0:
            raise InvalidInput(f"gamma: {self.gamma!r} is negative\n  do: give a number ≥ 0")


@dataclass(frozen=True)
class AlphaBeta(LinearRule):
    """LRP-αβ (Bach et al. 2015, Eq. 60): R_j = Σ_k (α z_kj⁺/(Σ z_kj⁺ + b_k⁺) − β z_kj⁻/(Σ z_kj⁻ + b_k⁻)) R_k, α − β = 1.

    A unit without positive (negative) contributions leaves that part of its relevance in the account
    "no_positive_part" ("no_negative_part"). `full_bias` puts the whole bias into both denominators (iNNvestigate).
    """

    alpha: float = 2.0
    beta: float = 1.0
    full_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.alpha - self.beta - 1) > 1e-9 or self.beta < 0:
            raise InvalidInput(
                f"alpha={self.alpha!r}, beta={self.beta!r}: α − β must be 1 and β ≥ 0\n  do: give for example alpha=2, beta=1"
            )


@dataclass(frozen=True)
class ZPlus(LinearRule):
    """The z⁺ rule (Montavon et al. 2017): α = 1, β = 0; by default without the bias, as in deep Taylor decomposition."""

    bias: Bias = "ignore"


@dataclass(frozen=True)
class ZBox(LinearRule):
    """The box rule zᴮ (Montavon et al. 2017) for inputs l ≤ x ≤ h: z_kj − l_j w_kj⁺ − h_j w_kj⁻ ≥ 0.

    `low` and `high`: numbers, or tensors that broadcast to one sample, in the input's own (normalised) space. Inputs
    outside the bounds are refused. The bias takes no part.
    """

    low: float | Tensor = 0.0
    high: float | Tensor = 1.0
    bias: Bias = "ignore"

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool((torch.as_tensor(self.low) > torch.as_tensor(self.high)).any()):
            raise InvalidInput("ZBox: low is above high")

    def __hash__(self) -> int:
        return hash((ZBox, str(self.low), str(self.high), self.epsilon))


@dataclass(frozen=True)
class WSquare(LinearRule):
    """The w² rule (Montavon et al. 2017): shares in proportion to w_kj². The input's value takes no part."""

    bias: Bias = "ignore"


@dataclass(frozen=True)
class Flat(LinearRule):
    """The flat rule (Lapuschkin et al. 2019): the same share for every connected input; padding and bias take none."""

    bias: Bias = "ignore"


@dataclass(frozen=True)
class Pass(Rule):
    """The identity: the input receives the output's relevance. For activations and norms (AttnLRP, Eq. 9)."""


@dataclass(frozen=True)
class Addition(Rule):
    """How a sum of data tensors is shared.

    "proportional" to the summands, with the signed stabiliser ε; "abs": to their absolute values; "positive": to their
    positive parts; "first": everything to the first summand; "equal": the same to each.
    """

    how: Literal["proportional", "abs", "positive", "first", "equal"] = "proportional"
    epsilon: float = 1e-6


@dataclass(frozen=True)
class Product(Rule):
    """How a product of two data tensors is shared (Arras et al. 2019; AttnLRP, Prop. 3.2 and 3.3).

    "signal": a factor that is a gate (the output of a sigmoid or softmax) gets nothing, the other all; without a gate
    half each. "half": half each. "proportional": to the factors' values; "abs": to their absolute values.
    """

    how: Literal["signal", "half", "proportional", "abs"] = "signal"
    epsilon: float = 1e-6


@dataclass(frozen=True)
class Softmax(Rule):
    """Softmax: "taylor" (AttnLRP, Prop. 3.1), "constant" (no relevance passes, CP-LRP) or "pass" (identity)."""

    how: Literal["taylor", "constant", "pass"] = "taylor"


@dataclass(frozen=True)
class MaxPool(Rule):
    """Max pooling: "winner" takes all (the first of equals), "split" equally among equals, or "proportional" to x ≥ 0."""

    how: Literal["winner", "split", "proportional"] = "winner"
    epsilon: float = 1e-6


@dataclass(frozen=True)
class Modified(Rule):
    """A backward walk that is no relevance but a gradient: "gradient", "deconvolution" or "guided" at activations."""

    how: Literal["gradient", "deconvolution", "guided"] = "gradient"


@dataclass(frozen=True, slots=True)
class Affine:
    """A linear operation as its rule sees it: z = apply(x, w) + b.

    `apply(x, w)` and its adjoint `transpose(v, w)` (from an output-shaped tensor to an input-shaped one) take any weight
    of w's shape; `part(name)` gives w's derived tensors: "positive", "negative", "square", "ones". For an operation
    without weights (pooling, sums) w is None, `apply` has no negative weights and the parts are None.
    `bias` broadcasts to the output. `nonnegative`: x ≥ 0 is known. `account` sums an output-shaped tensor per sample.
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
    batch_dimension: int = 0

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


Result = tuple[Tensor, dict[str, Tensor]]


def _quotient(relevance: Tensor, denominator: Tensor) -> Tensor:
    """R / d with 0 where d is 0."""
    return torch.where(denominator == 0, torch.zeros_like(denominator), relevance / denominator)


def _stabilised(rule: LinearRule, z: Tensor, reference: Tensor | None = None) -> tuple[Tensor, Tensor | float]:
    """The denominator z + stabiliser, and the stabiliser; its sign is that of `reference` (z itself by default)."""
    eps = rule.epsilon
    sign_of = z if reference is None else reference
    if eps == 0:
        return z, 0.0
    if rule.stabiliser == "unsigned":
        return z + eps, eps
    signed = torch.copysign(z.new_full((), eps), sign_of)  # −0.0 has no contributions at all: its sign is free
    if rule.stabiliser == "clip":
        clipped = torch.where(z.abs() >= eps, z, signed)
        return clipped, clipped - z
    if rule.stabiliser == "exact_zero_only":
        signed = torch.where(z == 0, signed, 0.0)
    elif rule.stabiliser == "relative":
        signed = signed * z.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (z.dim() - 1))
    return z + signed, signed


def _accounts(
    f: Affine, relevance: Tensor, denominator: Tensor, s: Tensor, stabiliser: Tensor | float
) -> dict[str, Tensor]:
    """The stabiliser's share, or with ε = 0 the relevance of units whose denominator is 0."""
    if isinstance(stabiliser, float) and stabiliser == 0.0:
        lost = torch.where(denominator == 0, relevance, torch.zeros_like(relevance))
        return {"undistributed": f.account(lost)}
    return {"stabilizer": f.account(s * stabiliser)}


def _spread(f: Affine, share: Tensor) -> Tensor:
    """An amount per output unit, spread evenly over the inputs that the unit is connected to."""
    ones = f.part("ones")
    count = f.apply(torch.ones_like(f.x), ones)
    return f.transpose(_quotient(share, count), ones)


def epsilon(rule: Epsilon, f: Affine, relevance: Tensor) -> Result:
    """LRP-ε: Bach et al. 2015, Eq. 58."""
    z = f.output if f.bias is None or rule.bias != "ignore" else f.output - f.bias
    d, stabiliser = _stabilised(rule, z)
    s = _quotient(relevance, d) if rule.epsilon == 0 or rule.stabiliser != "signed" else relevance / d
    shares = f.x * f.transpose(s, f.weight)
    if rule.bias == "distribute":
        extra = s * stabiliser if f.bias is None else s * (f.bias + stabiliser)
        absorbed = {} if rule.epsilon else _accounts(f, relevance, d, s, 0.0)
        return shares + _spread(f, extra), absorbed
    absorbed = _accounts(f, relevance, d, s, stabiliser)
    if f.bias is not None and rule.bias == "absorb":
        absorbed["bias"] = f.account(s * f.bias)
    return shares, absorbed


def gamma(rule: Gamma, f: Affine, relevance: Tensor) -> Result:
    """LRP-γ: Montavon et al. 2019; for inputs of any sign Andéol et al. 2021. The branch is chosen by the true z."""
    g = rule.gamma
    bias = f.bias if f.bias is not None else f.output.new_zeros(())
    z = f.output
    positive = f.x if f.nonnegative else f.x.clamp(min=0)
    negative = None if f.nonnegative else f.x.clamp(max=0)
    plus = f.plus(positive) if negative is None or f.weight is None else f.plus(positive) + f.minus(negative)
    minus = z - bias - plus
    if not rule.modified_bias:
        return _gamma_of_weights(rule, f, relevance)
    up = z > 0
    inner = torch.where(up, z + g * plus, torch.where(z < 0, z + g * minus, torch.zeros_like(z)))
    if rule.bias == "ignore":
        inner = torch.where(z == 0, inner, inner - bias)
        bias_part = torch.zeros_like(bias)
    else:
        bias_part = torch.where(up, bias + g * bias.clamp(min=0), bias + g * bias.clamp(max=0))
        inner = torch.where(z == 0, inner, inner - bias + bias_part)
    d, stabiliser = _stabilised(rule, inner, reference=z)
    s = _quotient(relevance, d)
    s_up, s_down = torch.where(up, s, torch.zeros_like(s)), torch.where(z < 0, s, torch.zeros_like(s))
    one_sided = f.x.device.type == "cpu" and not bool(s_down.any())
    shares = _gamma_shares(f, g, positive, negative, s_up, None if one_sided else s_down)
    used = s_up + s_down
    absorbed = _accounts(f, relevance, d, s, stabiliser)
    if f.bias is not None and rule.bias != "ignore":
        share = used * bias_part
        if rule.bias == "distribute":
            shares = shares + _spread(f, share)
        else:
            absorbed["bias"] = f.account(share)
    if rule.bias == "distribute" and rule.epsilon:
        del absorbed["stabilizer"]
        shares = shares + _spread(f, s * stabiliser)
    return shares, absorbed


def _gamma_shares(
    f: Affine, g: float, positive: Tensor, negative: Tensor | None, s_up: Tensor, s_down: Tensor | None
) -> Tensor:
    """Σ_k m_kj/d_k R_k for z_k > 0 (s_up) and z_k < 0 (s_down)."""
    up_plus, up_minus = f.plus_transpose(s_up), f.minus_transpose(s_up)
    shares = positive * ((1 + g) * up_plus + up_minus)
    if negative is not None:
        shares = shares + negative * (up_plus + (1 + g) * up_minus)
    if s_down is not None:
        down_plus, down_minus = f.plus_transpose(s_down), f.minus_transpose(s_down)
        shares = shares + positive * (down_plus + (1 + g) * down_minus)
        if negative is not None:
            shares = shares + negative * ((1 + g) * down_plus + down_minus)
    return shares


def _gamma_of_weights(rule: Gamma, f: Affine, relevance: Tensor) -> Result:
    """captum's γ: weights w + γ w⁺ whatever the sign of x and z, the bias as it is."""
    d, stabiliser = _stabilised(rule, f.output + rule.gamma * f.plus(f.x))
    s = _quotient(relevance, d)
    shares = f.x * (f.transpose(s, f.weight) + rule.gamma * f.plus_transpose(s))
    absorbed = _accounts(f, relevance, d, s, stabiliser)
    if f.bias is not None:
        absorbed["bias"] = f.account(s * f.bias)
    return shares, absorbed


def alpha_beta(rule: AlphaBeta | ZPlus, f: Affine, relevance: Tensor) -> Result:
    """LRP-αβ: Bach et al. 2015, Eq. 60. z⁺ is α = 1, β = 0."""
    alpha, beta = (1.0, 0.0) if isinstance(rule, ZPlus) else (rule.alpha, rule.beta)
    with_bias = f.bias is not None and rule.bias != "ignore"
    positive = f.x if f.nonnegative else f.x.clamp(min=0)
    negative = None if f.nonnegative else f.x.clamp(max=0)
    plus = f.plus(positive) if negative is None or f.weight is None else f.plus(positive) + f.minus(negative)
    full = isinstance(rule, AlphaBeta) and rule.full_bias
    absorbed: dict[str, Tensor] = {}
    extra: list[Tensor] = []

    def side(part: Tensor, weight: float, floor: bool, reason: str) -> Tensor:
        """weight · R / (part + bias part), with its accounts; `floor`: the bias part and the stabiliser are ≥ 0."""
        bias_part = None
        if with_bias:
            assert f.bias is not None
            bias_part = f.bias if full else f.bias.clamp(min=0) if floor else f.bias.clamp(max=0)
            part = part + bias_part
        empty = part == 0
        d, stabiliser = _stabilised(rule, part, part if full else torch.ones_like(part) if floor else -torch.ones_like(part))
        s = torch.where(empty, torch.zeros_like(d), weight * relevance / torch.where(empty, torch.ones_like(d), d))
        _add(absorbed, reason, f.account(torch.where(empty, weight * relevance, torch.zeros_like(d))))
        if rule.bias == "distribute":
            extra.append(s * stabiliser if bias_part is None else s * (stabiliser + bias_part))
        else:
            if rule.epsilon:
                _add(absorbed, "stabilizer", f.account(s * stabiliser))
            if bias_part is not None:
                _add(absorbed, "bias", f.account(s * bias_part))
        return s

    s = side(plus, alpha, True, "no_positive_part")
    shares = positive * f.plus_transpose(s)
    if negative is not None and f.weight is not None:
        shares = shares + negative * f.minus_transpose(s)
    if beta:
        s = side(_negative_part(f, positive, negative, plus, relevance), -beta, False, "no_negative_part")
        shares = shares + positive * f.minus_transpose(s)
        if negative is not None:
            shares = shares + negative * f.plus_transpose(s)
    for share in extra:
        shares = shares + _spread(f, share)
    return shares, absorbed


def _negative_part(
    f: Affine, positive: Tensor, negative: Tensor | None, plus: Tensor, relevance: Tensor
) -> Tensor:
    """Σ_j z_kj⁻. For free as z − b − Σ z_kj⁺, unless some unit's would be lost in rounding: then computed directly."""
    free = f.output - plus if f.bias is None else f.output - f.bias - plus
    if f.x.device.type == "cpu":
        scale = plus + f.output.abs()
        if f.bias is not None:
            scale = scale + f.bias.abs()
        if not bool(((free > -1e-3 * scale) & (relevance != 0)).any()):
            return free
    direct = f.minus(positive).expand_as(plus)
    if negative is not None:
        direct = direct + f.plus(negative)
    return direct


def _add(accounts: dict[str, Tensor], reason: str, amount: Tensor) -> None:
    accounts[reason] = accounts[reason] + amount if reason in accounts else amount


def z_box(rule: ZBox, f: Affine, relevance: Tensor) -> Result:
    """The box rule: Montavon et al. 2017."""
    low, high = (torch.as_tensor(v, dtype=f.x.dtype, device=f.x.device).expand_as(f.x) for v in (rule.low, rule.high))
    slack = 1e-5 * (high - low)
    if bool(((f.x < low - slack) | (f.x > high + slack)).any()):
        raise InvalidInput(
            f"ZBox: the input reaches from {float(f.x.min()):.4g} to {float(f.x.max()):.4g} and leaves the bounds low, high\n"
            "  do: give bounds in the input's normalised space: (0 − mean)/std and (1 − mean)/std per channel"
        )
    linear = f.output if f.bias is None else f.output - f.bias
    z = linear - f.plus(low) - f.minus(high)
    d, stabiliser = _stabilised(rule, z, torch.ones_like(z))
    s = _quotient(relevance, d)
    shares = f.x * f.transpose(s, f.weight) - low * f.plus_transpose(s) - high * f.minus_transpose(s)
    if rule.bias == "distribute" and rule.epsilon:
        return shares + _spread(f, s * stabiliser), {}
    return shares, _accounts(f, relevance, d, s, stabiliser)


def w_square(rule: WSquare, f: Affine, relevance: Tensor) -> Result:
    """The w² rule: Montavon et al. 2017 (arXiv v1, Eq. 12)."""
    return _input_free(rule, f, relevance, f.part("square"))


def flat(rule: Flat, f: Affine, relevance: Tensor) -> Result:
    """The flat rule: Lapuschkin et al. 2019."""
    return _input_free(rule, f, relevance, f.part("ones"))


def _input_free(rule: WSquare | Flat, f: Affine, relevance: Tensor, weight: Tensor | None) -> Result:
    """Shares in proportion to `weight`, whatever the input."""
    z = f.apply(torch.ones_like(f.x.narrow(f.batch_dimension, 0, 1)), weight).expand_as(f.output)
    bias = None
    if f.bias is not None and isinstance(rule, WSquare) and rule.bias != "ignore":
        bias = f.bias.square()
        z = z + bias
    d, stabiliser = _stabilised(rule, z, torch.ones_like(z))
    s = _quotient(relevance, d)
    shares = f.transpose(s, weight)
    if rule.bias == "distribute" and rule.epsilon:
        return shares + _spread(f, s * (stabiliser if bias is None else bias + stabiliser)), {}
    absorbed = _accounts(f, relevance, d, s, stabiliser)
    if bias is not None:
        absorbed["bias"] = f.account(s * bias)
    return shares, absorbed


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
