"""The operations, a file a family. Importing this package fills the table `OPS`."""

from relprop.engine.ops import (
    attention,
    distance,
    elementwise,
    inverse,
    linear,
    norm,
    pool,
    recurrent,
    structure,
)
from relprop.engine.ops.table import KINDS, OPS, Operation, register

__all__ = [
    "KINDS",
    "OPS",
    "Operation",
    "attention",
    "distance",
    "elementwise",
    "inverse",
    "linear",
    "norm",
    "pool",
    "recurrent",
    "register",
    "structure",
]
