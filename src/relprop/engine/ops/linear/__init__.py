"""Products with constant matrices, convolutions, and everything else that is linear in its data and has
weights."""

from relprop.engine.ops.linear import convolution, experts, products
from relprop.engine.ops.linear.maps import (
    BILINEAR_RULES,
    LINEAR_RULES,
    adjoint,
    affine,
    by_rule,
    obeyed,
    part_of,
)

__all__ = [
    "BILINEAR_RULES",
    "LINEAR_RULES",
    "adjoint",
    "affine",
    "by_rule",
    "convolution",
    "experts",
    "obeyed",
    "part_of",
    "products",
]
