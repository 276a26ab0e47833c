"""The rules' declarations: frozen dataclasses of parameters. Their functions are in `linear` and `ops`."""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from relprop.errors import InvalidInput

Bias = Literal["absorb", "ignore", "distribute", "distribute_layer"]
Stabiliser = Literal["signed", "unsigned", "clip", "relative", "exact_zero_only"]


def _one_of(rule: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidInput(
            f"{rule}: {name}={value!r} is unknown\n  do: one of {', '.join(map(repr, allowed))}"
        )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Base of all rules: parameters only. `str` leaves out switches and shared settings at their defaults."""

    def __str__(self) -> str:
        """The rule as tables print it: "Gamma(gamma=0.25)"."""
        shared = type(self).__mro__[1]
        common = {f.name for f in dataclasses.fields(shared)} if dataclasses.is_dataclass(shared) else set()
        shown = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if not (f.name in common or isinstance(f.default, bool)) or getattr(self, f.name) != f.default
        }
        if not shown and "epsilon" in common:
            shown["epsilon"] = getattr(self, "epsilon", None)
        return f"{type(self).__name__}({', '.join(f'{name}={_value(v)}' for name, v in shown.items())})"


def _number(name: str, value: object) -> None:
    """Raise `InvalidInput` for what is no number ≥ 0."""
    if not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
        raise InvalidInput(f"{name}: {value!r} is negative or no number\n  do: give a number ≥ 0")


def _value(value: object) -> str:
    """A parameter in a few characters."""
    if not isinstance(value, Tensor):
        return str(value) if isinstance(value, Rule) else repr(value)
    if value.numel() > 4:
        return f"tensor of shape {tuple(value.shape)}"
    return f"({', '.join(f'{float(v):.3g}' for v in value.flatten())})"


@dataclass(frozen=True, kw_only=True)
class LinearRule(Rule):
    """A rule for operations that are linear in their data: linear, convolution, pooling, sums, batch
    normalisation.

    `bias`: "absorb" keeps the bias in the denominator and its share in the account "bias"; "ignore" leaves it
    out of the rule; "distribute" spreads its share and the stabiliser's evenly over the inputs of each unit;
    "distribute_layer" does the same, and in recurrent layers also spreads what the sum in an LSTM's cell leaves to
    its stabiliser, over all units of both summands (Arras et al. 2017, bias_factor = 1).
    `epsilon`: the stabiliser ≥ 0, added to each denominator with the sign of what it stabilises (zero counts
    as positive). `stabiliser` changes how: "unsigned" adds it as it is; "clip" raises small denominators to
    it; "relative" multiplies it by the root mean square of each sample's z; "exact_zero_only" uses it where z
    is 0 exactly.
    """

    bias: Bias = "absorb"
    epsilon: float = 1e-6
    stabiliser: Stabiliser = "signed"

    def __post_init__(self) -> None:
        name = type(self).__name__
        _one_of(name, "bias", self.bias, ("absorb", "ignore", "distribute", "distribute_layer"))
        _number("epsilon", self.epsilon)
        _one_of(
            name, "stabiliser", self.stabiliser, ("signed", "unsigned", "clip", "relative", "exact_zero_only")
        )

    @property
    def spreads(self) -> bool:
        """Whether what bias and stabiliser take is spread over the inputs."""
        return self.bias in ("distribute", "distribute_layer")


@dataclass(frozen=True)
class Epsilon(LinearRule):
    """LRP-ε (Bach et al. 2015, Eq. 58): R_j = Σ_k z_kj / (z_k + ε s(z_k)) R_k. With ε = 0 LRP-0 (Eq. 56)."""

    epsilon: float = 1e-6


@dataclass(frozen=True)
class Gamma(LinearRule):
    """LRP-γ (Montavon et al. 2019, Sec. 10.2.1; for inputs of any sign Andéol et al. 2021).

    Contributions with the sign of z_k count 1 + γ times: z_kj + γ z_kj⁺ where z_k > 0, z_kj + γ z_kj⁻ where
    z_k < 0; the bias likewise, and with `bias="ignore"` it is left out of z_k too. `modified_bias=False`
    leaves the bias as it is and favours positive weights whatever the sign of z_k (captum's rule).
    """

    gamma: float = 0.25
    modified_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _number("gamma", self.gamma)


@dataclass(frozen=True)
class AlphaBeta(LinearRule):
    """LRP-αβ (Bach et al. 2015, Eq. 60): R_j = Σ_k (α z_kj⁺/(Σ z_kj⁺ + b_k⁺) − β z_kj⁻/(Σ z_kj⁻ + b_k⁻)) R_k,
    α − β = 1.

    A unit without positive (negative) contributions leaves that part of its relevance in the account
    "no_positive_part" ("no_negative_part"). `full_bias` puts the whole bias into both denominators
    (iNNvestigate).
    """

    alpha: float = 2.0
    beta: float = 1.0
    full_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _number("alpha", self.alpha)
        _number("beta", self.beta)
        if abs(self.alpha - self.beta - 1) > 1e-9 or self.beta < 0:
            raise InvalidInput(
                f"alpha={self.alpha!r}, beta={self.beta!r}: α − β must be 1 and β ≥ 0\n"
                "  do: give for example alpha=2, beta=1"
            )


@dataclass(frozen=True)
class ZPlus(LinearRule):
    """The z⁺ rule (Montavon et al. 2017): α = 1, β = 0; without the bias, as in deep Taylor decomposition."""

    bias: Bias = field(default="ignore", kw_only=True)


@dataclass(frozen=True)
class ZBox(LinearRule):
    """The box rule zᴮ (Montavon et al. 2017) for inputs l ≤ x ≤ h: z_kj − l_j w_kj⁺ − h_j w_kj⁻ ≥ 0.

    `low` and `high`: numbers, or tensors that broadcast to one sample, in the input's own (normalised) space.
    Inputs outside the bounds are refused. The bias takes no part.
    """

    low: float | Tensor = 0.0
    high: float | Tensor = 1.0
    bias: Bias = field(default="ignore", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool((torch.as_tensor(self.low) > torch.as_tensor(self.high)).any()):
            raise InvalidInput(
                "ZBox: low is above high\n  do: give the smallest input as low, the largest as high"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ZBox):
            return NotImplemented
        same = (self.bias, self.epsilon, self.stabiliser) == (other.bias, other.epsilon, other.stabiliser)
        pairs = ((self.low, other.low), (self.high, other.high))
        return same and all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)

    def __hash__(self) -> int:
        return hash((ZBox, str(self.low), str(self.high), self.epsilon))


@dataclass(frozen=True)
class WSquare(LinearRule):
    """The w² rule (Montavon et al. 2017): shares in proportion to w_kj². The input's value takes no part."""

    bias: Bias = field(default="ignore", kw_only=True)


@dataclass(frozen=True)
class Flat(LinearRule):
    """The flat rule (Lapuschkin et al. 2019): all connected inputs get the same, padding and bias nothing."""

    bias: Bias = field(default="ignore", kw_only=True)


@dataclass(frozen=True)
class Pass(Rule):
    """The identity: the input receives the output's relevance. For activations and norms (AttnLRP, Eq. 9)."""


@dataclass(frozen=True)
class Addition(Rule):
    """How a sum of data tensors is shared.

    "proportional" to the summands, with the signed stabiliser ε; "abs": to their absolute values; "positive":
    to their positive parts; "first": everything to the first summand; "equal": the same to each.
    """

    how: Literal["proportional", "abs", "positive", "first", "equal"] = "proportional"
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        _one_of("Addition", "how", self.how, ("proportional", "abs", "positive", "first", "equal"))


@dataclass(frozen=True)
class Product(Rule):
    """How a product of two data tensors is shared (Arras et al. 2019; AttnLRP, Prop. 3.2 and 3.3).

    "signal": a factor that is a gate (the output of a sigmoid or softmax) gets nothing, the other all;
    without a gate half each. "half": half each. "first", "second": everything to that factor, as for a gate
    that only its model knows. "proportional": to the factors' values; "abs": to their absolute values; products
    of matrices know these two as "half". `activated`: for "signal", the output of an activation is a gate where
    the other factor is none (SwiGLU, GEGLU under CP-LRP: all goes to the factor that is not activated).
    """

    how: Literal["signal", "half", "first", "second", "proportional", "abs"] = "signal"
    epsilon: float = 1e-6
    activated: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _one_of("Product", "how", self.how, ("signal", "half", "first", "second", "proportional", "abs"))


@dataclass(frozen=True)
class Softmax(Rule):
    """Softmax: "taylor" (AttnLRP, Prop. 3.1), "constant" (nothing passes, CP-LRP) or "pass" (identity)."""

    how: Literal["taylor", "constant", "pass"] = "taylor"

    def __post_init__(self) -> None:
        _one_of("Softmax", "how", self.how, ("taylor", "constant", "pass"))


@dataclass(frozen=True)
class Attention(Product):
    """Attention softmax(q·k)·v, fused or written out; one rule for its two products and its softmax.

    "half" (AttnLRP, Prop. 3.1 and 3.3): half of the ε rule to each factor of a product, and `softmax` as in
    `Softmax`. "signal" (CP-LRP, Ali et al. 2022): the attention weights are a gate; everything goes to v and
    nothing to q and k.
    """

    how: Literal["signal", "half", "first", "second", "proportional", "abs"] = "half"
    softmax: Literal["taylor", "constant", "pass"] = "taylor"
    epsilon: float = field(default=1e-6, kw_only=True)

    def __post_init__(self) -> None:
        _one_of("Attention", "how", self.how, ("signal", "half", "first", "second"))
        _one_of("Attention", "softmax", self.softmax, ("taylor", "constant", "pass"))


@dataclass(frozen=True)
class MaxPool(Rule):
    """Maxima over windows and dimensions: who gets the relevance of the largest value.

    "winner" takes all (the first of equals); "split" equally among equals (lrp_toolbox); "proportional" to
    the values, as in a sum (for x ≥ 0), with the signed stabiliser ε; "softmax" by softmax(β x). For minima
    −x stands for x in the last. Selections by rank (sort, top-k, median) know only the winner.
    """

    how: Literal["winner", "split", "proportional", "softmax"] = "winner"
    beta: float = 1.0
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        _one_of("MaxPool", "how", self.how, ("winner", "split", "proportional", "softmax"))


@dataclass(frozen=True)
class Taylor(Rule):
    """Local response normalisation by the first-order messages of Binder et al. 2016, in proportion,
    stabiliser ε."""

    epsilon: float = 1e-6


@dataclass(frozen=True)
class Recurrent(Rule):
    """Recurrent layers and cells: the rules of the operations that they consist of.

    `linear`: of the pre-activations, with the input and the hidden state as one input of one denominator (and of an
    LSTM's projection); `product`: of gates and what they gate; `addition`: of the sum in an LSTM's or GRU's cell. A
    composite that names none gives each part what it gives to operations of that kind, so that a layer gets the
    relevance of its written-out loop. LRP-all is Product("signal") (Arras et al. 2017), LRP-half Product("half").
    """

    linear: LinearRule = field(default_factory=Epsilon)
    product: Product = field(default_factory=Product)
    addition: Addition = field(default_factory=Addition)

    def __str__(self) -> str:
        """As tables print it: the rule of linear operations, and how products (and unusual sums) are shared."""
        how = "" if self.addition.how == "proportional" else f", addition={self.addition.how!r}"
        return f"Recurrent({self.linear}, product={self.product.how!r}{how})"
