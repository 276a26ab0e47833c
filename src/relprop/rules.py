"""The rules, under the name that users import: `from relprop.rules import Epsilon`."""

from relprop.engine.rules import (
    Addition,
    AlphaBeta,
    Attention,
    Epsilon,
    Flat,
    Gamma,
    LinearRule,
    MaxPool,
    Pass,
    Product,
    Rule,
    Softmax,
    Taylor,
    WSquare,
    ZBox,
    ZPlus,
)

__all__ = [
    "Addition",
    "AlphaBeta",
    "Attention",
    "Epsilon",
    "Flat",
    "Gamma",
    "LinearRule",
    "MaxPool",
    "Pass",
    "Product",
    "Rule",
    "Softmax",
    "Taylor",
    "WSquare",
    "ZBox",
    "ZPlus",
]
