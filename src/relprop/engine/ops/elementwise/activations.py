"""Functions of one tensor: the identity rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Node
from relprop.engine.ops.elementwise.choices import split
from relprop.engine.ops.elementwise.signs import (
    clamp_known,
    power_known,
    product_known,
    second_known,
    threshold_known,
)
from relprop.engine.ops.elementwise.sums import sum_to
from relprop.engine.ops.table import Nonnegative, Operation, first_known, pass_on, rows
from relprop.engine.rules import Pass
from relprop.engine.step import Shares, Step


def clamped(step: Step, relevance: Tensor) -> Shares:
    """clamp between tensors: the identity; a bound that is data itself receives what it replaces."""
    x = step.args[0]
    only_high = "clamp_max" in step.node.operation
    low, high = (None, step.args[1]) if only_high else (step.arg(1, "min"), step.arg(2, "max"))
    at_low, at_high = (1, 1) if only_high else (_place(step, 1, "min"), _place(step, 2, "max"))
    result: dict[int | str, Any] = {}
    if high is not None and step.data(at_high):
        over = (x if low is None else torch.maximum(x, low)) > high
        result[at_high] = sum_to(torch.where(over, relevance, 0.0), high)
        relevance = torch.where(over, 0.0, relevance)
    if low is not None and step.data(at_low):
        under = x < low
        result[at_low] = sum_to(torch.where(under, relevance, 0.0), low)
        relevance = torch.where(under, 0.0, relevance)
    rest = split(step, [(0, relevance)])
    return Shares(result | rest.arguments, rest.absorbed)


def stepped(step: Step, relevance: Tensor) -> Shares:
    """heaviside(x, v): the identity; where x is 0, the value v that stands there receives it if it is data."""
    if not step.data(1):
        return Shares({0: sum_to(relevance, step.args[0])})
    chosen = step.args[0] == 0
    return split(step, [(0, torch.where(chosen, 0.0, relevance)), (1, torch.where(chosen, relevance, 0.0))])


def _place(step: Step, position: int, name: str) -> int | str:
    return position if position < len(step.args) else name


def activation(
    names: str,
    nonnegative: Nonnegative = "never",
    refuses: Callable[[Node], str | None] = lambda node: None,
    fixed: dict[int, str] | None = None,
) -> None:
    """Rows for elementwise functions: the identity rule."""
    rows(
        names,
        Operation("activation", pass_on, "nothing", Pass(), (Pass,), nonnegative, refuses, fixed or {}),
    )


def _training(node: Node) -> str | None:
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("train", False)
    return (
        "dropout is active although the model is in eval mode (training=True in its call)"
        if training
        else None
    )


def _random_slopes(node: Node) -> str | None:
    training = node.args[3] if len(node.args) > 3 else node.kwargs.get("training", False)
    return "rrelu draws random slopes (training=True in its call)" if training else None


def _averaged(node: Node) -> str | None:
    place = 4 if "logits" in node.operation else 3
    reduction = node.args[place] if len(node.args) > place else node.kwargs.get("reduction", 1)
    return (
        None
        if reduction == 0
        else "a loss averaged over all; take reduction='none', and its mean for each sample"
    )


activation(
    "relu relu6 sigmoid hardsigmoid softplus exp exp2 abs square sqrt rsqrt erfc acos cosh i0 special_i0e special_erfcx",
    "always",
)
activation(
    "leaky_relu elu selu celu gelu silu hardswish mish tanh hardshrink softshrink erf log1p expm1 reciprocal"
    " atan asin asinh sinh atanh floor ceil round trunc sign sgn nan_to_num deg2rad rad2deg frac special_i1"
    " special_i1e fmod.Scalar",
    first_known(0),
)
activation(
    "log_sigmoid log log2 log10 logit sin cos tan acosh neg sinc erfinv lgamma digamma mvlgamma special_entr"
    " special_ndtri special_log_ndtr remainder.Scalar"
)
activation("fmod.Tensor remainder.Tensor", fixed={1: "the divisor depends on the explained input"})
activation("prelu _prelu_kernel", first_known(0), fixed={1: "the slope depends on the explained input"})
activation("clamp hardtanh clamp_min clamp_max", clamp_known)
activation("threshold", threshold_known)
activation("pow.Tensor_Scalar", power_known)
activation("rrelu", first_known(0), _random_slopes)
activation("dropout feature_dropout alpha_dropout feature_alpha_dropout", first_known(0), _training)
activation("mul.Scalar div.Scalar multiply.Scalar divide.Scalar true_divide.Scalar", product_known)
activation(
    "binary_cross_entropy binary_cross_entropy_with_logits",
    "never",  # of targets beyond 0 and 1
    _averaged,
    dict.fromkeys((1, 2, 3), "what a loss compares with, or its weights, depend on the explained input"),
)
rows("heaviside", Operation("activation", stepped, "inputs", Pass(), (Pass,), second_known))
rows(
    "clamp.Tensor clamp_min.Tensor clamp_max.Tensor",
    Operation("activation", clamped, "inputs", Pass(), (Pass,), clamp_known),
)
