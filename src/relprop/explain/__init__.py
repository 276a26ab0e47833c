"""From a model and inputs to an explanation."""

from relprop.explain.captured import (
    Captured,
    captured_graph,
    clear_cache,
    leaves_of,
    weight_of,
    weights_by_node,
)
from relprop.explain.conditions import Condition
from relprop.explain.explainer import Explainer, composite_of, explain
from relprop.explain.inputs import Inputs, arguments, check_inputs
from relprop.explain.places import module_outputs, places
from relprop.explain.start import Forward, forward, start

__all__ = [
    "Captured",
    "Condition",
    "Explainer",
    "Forward",
    "Inputs",
    "arguments",
    "captured_graph",
    "check_inputs",
    "clear_cache",
    "composite_of",
    "explain",
    "forward",
    "leaves_of",
    "module_outputs",
    "places",
    "start",
    "weight_of",
    "weights_by_node",
]
