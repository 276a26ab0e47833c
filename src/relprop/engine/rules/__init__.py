"""The rules: how an operation hands the relevance of its outputs to its inputs.

A rule is a frozen dataclass (`declared`: its parameters, printable and storable) and, for linear operations,
one function (`linear`) of an `Affine` map (`affine`): operations and rules meet in that map, so that there
are operations + rules functions, not their product. Symbols: x inputs, w weights, z_kj = x_j w_kj, z_k = Σ_j
z_kj + b_k, R relevance, v⁺ = max(v, 0), v⁻ = min(v, 0).
"""

from relprop.engine.rules.affine import Affine, Result
from relprop.engine.rules.declared import (
    Addition,
    AlphaBeta,
    Attention,
    Bias,
    Epsilon,
    Flat,
    Gamma,
    LinearRule,
    MaxPool,
    Pass,
    Product,
    Recurrent,
    Rule,
    Softmax,
    Stabiliser,
    Taylor,
    WSquare,
    ZBox,
    ZPlus,
)
from relprop.engine.rules.linear import RULES

__all__ = [
    "RULES",
    "Addition",
    "Affine",
    "AlphaBeta",
    "Attention",
    "Bias",
    "Epsilon",
    "Flat",
    "Gamma",
    "LinearRule",
    "MaxPool",
    "Pass",
    "Product",
    "Recurrent",
    "Result",
    "Rule",
    "Softmax",
    "Stabiliser",
    "Taylor",
    "WSquare",
    "ZBox",
    "ZPlus",
]
