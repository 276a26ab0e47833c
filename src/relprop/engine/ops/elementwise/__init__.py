"""Activations, sums and products of tensors, choices between them, and the constants that meet them."""

from relprop.engine.ops.elementwise import activations, choices, products, signs, sums
from relprop.engine.ops.elementwise.products import gate_source
from relprop.engine.ops.elementwise.sums import addition_rule, is_complement, stabilised, sum_to, without_mask

__all__ = [
    "activations",
    "addition_rule",
    "choices",
    "gate_source",
    "is_complement",
    "products",
    "signs",
    "stabilised",
    "sum_to",
    "sums",
    "without_mask",
]
