"""Elementwise operators: activations, arithmetic, comparisons."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.engine.frontends.onnx.table import Node, operator, simple

_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": F.softplus,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
_COMPARISONS: dict[str, Callable[..., Any]] = {
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
}
_LOGIC: dict[str, Callable[..., Any]] = {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseNot": torch.bitwise_not,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}
for _name, _function in (_UNARY | _LOGIC).items():
    simple(_name, _function)
for _name, _function in _COMPARISONS.items():
    simple(_name, _function, numbers=1)


def _number_first(function: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """A commutative function that torch takes with the number second only."""

    def swapped(a: Any, b: Any) -> Tensor:
        return function(a, b) if isinstance(a, Tensor) else function(b, a)

    return swapped


simple("Add", _number_first(torch.add), numbers=1)
simple("Mul", _number_first(torch.mul), numbers=1)
simple("Sub", lambda a, b: a - b, numbers=1)


@operator("Div", numbers=1)
def div(node: Node, a: Any, b: Any) -> Any:
    """Division; of whole numbers it rounds towards zero."""
    whole = all(not x.is_floating_point() if isinstance(x, Tensor) else isinstance(x, int) for x in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


@operator("Mod", numbers=1)
def mod(node: Node, a: Any, b: Any) -> Any:
    """The remainder with the sign of the divisor, or with `fmod` that of the dividend."""
    return torch.fmod(a, b) if node["fmod"] else torch.remainder(a, b)


@operator("Pow", numbers=1)
def power(node: Node, a: Any, b: Any) -> Any:
    """Powers; a known whole exponent stays a number, so that a square is seen as one."""
    if isinstance(b, float) and b.is_integer():
        b = int(b)
    return torch.pow(a, b)


def _many(function: Callable[[Any, Any], Tensor]) -> Callable[..., Any]:
    def folded(node: Node, *inputs: Tensor) -> Any:
        return functools.reduce(function, inputs)

    return folded


operator("Max")(_many(torch.maximum))
operator("Min")(_many(torch.minimum))
operator("Sum")(_many(torch.add))


@operator("Mean")
def mean(node: Node, *inputs: Tensor) -> Any:
    """The mean of several tensors."""
    return functools.reduce(torch.add, inputs) / len(inputs)


@operator("Clip", numbers=1)
def clip(node: Node, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """Clamp; with bounds that are known it is ReLU6's kind of activation."""
    if low is None and high is None:
        return x
    return torch.clamp(x, low, high)


@operator("Celu")
def celu(node: Node, x: Tensor) -> Tensor:
    """CELU."""
    return F.celu(x, node["alpha"])


@operator("Elu")
def elu(node: Node, x: Tensor) -> Tensor:
    """ELU."""
    return F.elu(x, node["alpha"])


@operator("Selu")
def selu(node: Node, x: Tensor) -> Tensor:
    """SELU; other constants than the customary ones are a scaled ELU."""
    if math.isclose(node["alpha"], 1.6732632, rel_tol=1e-5) and math.isclose(
        node["gamma"], 1.0507010, rel_tol=1e-5
    ):
        return F.selu(x)
    return F.elu(x, node["alpha"]) * node["gamma"]  # type: ignore[no-any-return]


@operator("LeakyRelu")
def leaky_relu(node: Node, x: Tensor) -> Tensor:
    """Leaky ReLU."""
    return F.leaky_relu(x, node["alpha"])


@operator("ThresholdedRelu")
def thresholded_relu(node: Node, x: Tensor) -> Tensor:
    """x above the threshold, else 0."""
    return F.threshold(x, node["alpha"], 0.0)


@operator("PRelu")
def prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    """A leaky ReLU with learnt slopes: one for all, one a channel, or any that broadcast."""
    rank = x.dim()
    shape = (1,) * (rank - slope.dim()) + tuple(slope.shape)
    if slope.numel() == 1 or (rank > 1 and slope.numel() == shape[1] == x.shape[1]):
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


@operator("HardSigmoid")
def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    """clamp(α x + β, 0, 1)."""
    if math.isclose(node["alpha"], 1 / 6, rel_tol=1e-5) and math.isclose(node["beta"], 0.5, rel_tol=1e-6):
        return F.hardsigmoid(x)
    return torch.clamp(node["alpha"] * x + node["beta"], 0, 1)


@operator("Gelu")
def gelu(node: Node, x: Tensor) -> Tensor:
    """GELU, exact or with tanh."""
    return F.gelu(x, approximate=node["approximate"])


@operator("Swish")
def swish(node: Node, x: Tensor) -> Tensor:
    """x σ(α x)."""
    return F.silu(x) if node["alpha"] == 1 else x * torch.sigmoid(node["alpha"] * x)


@operator("Softsign")
def softsign(node: Node, x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return F.softsign(x)


@operator("Shrink")
def shrink(node: Node, x: Tensor) -> Tensor:
    """Values near zero become zero; the others move towards it by the bias."""
    lambd, bias = node["lambd"], node["bias"]
    if bias == 0:
        return F.hardshrink(x, lambd)
    if bias == lambd:
        return F.softshrink(x, lambd)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


@operator("IsInf")
def is_inf(node: Node, x: Tensor) -> Tensor:
    """Where x is infinite, of the signs asked for."""
    positive = torch.isposinf(x) if node["detect_positive"] else torch.zeros_like(x, dtype=torch.bool)
    negative = torch.isneginf(x) if node["detect_negative"] else torch.zeros_like(x, dtype=torch.bool)
    return positive | negative


@operator("Where", numbers=1)
def where(node: Node, condition: Any, a: Any, b: Any) -> Any:
    """Selection by a condition."""
    if not isinstance(condition, Tensor):
        reference = a if isinstance(a, Tensor) else b
        condition = torch.tensor(bool(condition), device=reference.device)
    return torch.where(condition, a, b)


@operator("Dropout", host=(1, 2))
def dropout(node: Node, x: Tensor, ratio: Any = None, training: Any = None) -> Any:
    """Nothing is dropped outside training."""
    if training:
        raise node.refuse("training mode")
    return (x, torch.ones_like(x, dtype=torch.bool))[: len(node.outputs)] if len(node.outputs) > 1 else x
