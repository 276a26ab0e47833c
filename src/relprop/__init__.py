"""relprop: why a model predicted what it predicted, with an account that adds up."""

import typing as _typing
from importlib import import_module as _import_module

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
from relprop.explain import Condition, Explainer, clear_cache, explain
from relprop.explanation import Explanation
from relprop.methods import methods
from relprop.run import run

if _typing.TYPE_CHECKING:
    from relprop import analyse as analyse
    from relprop import audio as audio
    from relprop import classical as classical
    from relprop import data as data
    from relprop import evaluate as evaluate
    from relprop import inside as inside
    from relprop import models as models
    from relprop import patterns as patterns
    from relprop import show as show
    from relprop import store
    from relprop import targets as targets
    from relprop import text as text
    from relprop.generation import Generation, explain_generation
    from relprop.inside.maximise import maximise
    from relprop.inside.pairs import bilrp

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


_PARTS = (
    "analyse",
    "audio",
    "classical",
    "data",
    "evaluate",
    "inside",
    "models",
    "patterns",
    "show",
    "store",
    "targets",
    "text",
)
"""The parts that users reach through the package: `relprop.evaluate.METRICS` needs no import of its own."""

_LATE = {
    "Generation": "relprop.generation",
    "bilrp": "relprop.inside",
    "explain_generation": "relprop.generation",
    "maximise": "relprop.inside",
}


def __getattr__(name: str) -> _typing.Any:
    """What is loaded when it is asked for."""
    if name in _PARTS:
        return _import_module(f"relprop.{name}")
    if name in _LATE:
        return getattr(_import_module(_LATE[name]), name)
    raise AttributeError(f"module 'relprop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})
