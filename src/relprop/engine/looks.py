"""Whether the walk may look at values between its operations, and at the memory that they lie in.

On a CPU a look is free and spares work: whether relevance arrives at positive units only, whether rounding would be lost.
On a GPU it costs more than what it spares. While a walk is traced into one function there is nothing to see: the trace
goes by what a walk before it has seen, and the function tells whether that still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor

Condition = Callable[[], Tensor]
"""A condition on values, worked out where it is asked for: a bool tensor of no dimensions."""

Place = tuple[str, int]
"""A node, and the number of the question that its rule asks."""


@dataclass(slots=True)
class Looks:
    """What a walk has seen: from a place to whether the condition held there.

    `traced`: the walk is one that sees nothing and goes by what is in `seen`; `conditions` are then those under which
    it is right.
    """

    seen: dict[Place, bool] = field(default_factory=dict)
    traced: bool = False
    conditions: dict[Place, Tensor] = field(default_factory=dict)
    node: str = ""
    asked: int = 0

    def at(self, node: str) -> None:
        """The walk has come to a node."""
        self.node, self.asked = node, 0

    def place(self) -> Place:
        """The place of the next question."""
        self.asked += 1
        return self.node, self.asked


_LOOKS: ContextVar[Looks | None] = ContextVar("relprop_looks", default=None)


@contextmanager
def seen_by(looks: Looks) -> Iterator[None]:
    """Within this a walk takes down what it sees, or goes by it."""
    token = _LOOKS.set(looks)
    try:
        yield
    finally:
        _LOOKS.reset(token)


def come_to(node: str) -> None:
    """Say that the walk has come to a node."""
    looks = _LOOKS.get()
    if looks is not None:
        looks.at(node)


def traced() -> bool:
    """Whether the walk is traced: it writes over nothing then, and knows nothing of memory."""
    looks = _LOOKS.get()
    return looks is not None and looks.traced


def holds(of: Tensor, condition: Condition, *, cheap: bool = False, demanded: bool = False) -> bool:
    """Whether a condition on values is seen to hold. False where to look costs more than what it spares.

    `of`: a tensor on the device of the values. `cheap`: what the condition spares is so little that no trace goes by it.
    `demanded`: what does not meet the condition is an error, for which every walk looks.
    """
    looks = _LOOKS.get()
    if looks is None:
        return (demanded or of.device.type == "cpu") and bool(condition())
    place = looks.place()
    if not looks.traced:
        looks.seen[place] = (demanded or of.device.type == "cpu") and bool(condition())
        return looks.seen[place]
    if cheap or not (demanded or looks.seen.get(place, False)):
        return False
    looks.conditions[place] = condition()
    return True
