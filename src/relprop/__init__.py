"""relprop: why a model predicted what it predicted, with an account that adds up."""

from relprop import rules, store
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
from relprop.explain import Condition, Explainer, clear_cache, explain
from relprop.explanation import Explanation
from relprop.generation import Generation, explain_generation
from relprop.inside import bilrp, maximise
from relprop.methods import methods
from relprop.run import run

__version__ = "0.1.0"

__all__ = [
    "OPS",
    "CaptureError",
    "Composite",
    "Condition",
    "ConservationError",
    "Explainer",
    "Explanation",
    "Generation",
    "InvalidInput",
    "MissingExtra",
    "Operation",
    "Plan",
    "RelevanceWarning",
    "RelpropError",
    "Shares",
    "Step",
    "UnsupportedOperation",
    "bilrp",
    "clear_cache",
    "doctor",
    "explain",
    "explain_generation",
    "maximise",
    "methods",
    "presets",
    "register",
    "rules",
    "run",
    "store",
]
