"""relprop: why a model predicted what it predicted, with an account that adds up."""

from relprop import rules
from relprop.doctor import doctor
from relprop.engine.ops import OPS, Operation, register
from relprop.engine.plan import Composite, Plan
from relprop.engine.presets import presets
from relprop.engine.step import Shares, Step
from relprop.errors import (
    CaptureError,
    ConservationError,
    InvalidInput,
    MissingExtra,
    RelevanceWarning,
    RelpropError,
    UnsupportedOperation,
)
from relprop.explain import Explainer, clear_cache, explain
from relprop.explanation import Explanation
from relprop.methods import methods

__version__ = "0.1.0"

__all__ = [
    "OPS",
    "CaptureError",
    "Composite",
    "ConservationError",
    "Explainer",
    "Explanation",
    "InvalidInput",
    "MissingExtra",
    "Operation",
    "Plan",
    "RelevanceWarning",
    "RelpropError",
    "Shares",
    "Step",
    "UnsupportedOperation",
    "clear_cache",
    "doctor",
    "explain",
    "methods",
    "presets",
    "register",
    "rules",
]
