"""The forward pass that records the values the walk will read, and the walk from the output's relevance to the inputs'."""

from relprop.engine.propagate.book import Mask, Walk
from relprop.engine.propagate.program import Program, prepare
from relprop.engine.propagate.record import record
from relprop.engine.propagate.segments import Segments, segments, walk_by_segments
from relprop.engine.propagate.walk import HALF, pairs_of, step_of, walk
from relprop.engine.propagate.weights import Weights

__all__ = [
    "HALF",
    "Mask",
    "Program",
    "Segments",
    "Walk",
    "Weights",
    "pairs_of",
    "prepare",
    "record",
    "segments",
    "step_of",
    "walk",
    "walk_by_segments",
]
