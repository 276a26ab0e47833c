"""A walk that was made, and can be made again: to look inside the model, or to ask for the relevance of its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.engine.batch import batch_size, states_of
from relprop.engine.graph import Graph, Ref
from relprop.engine.propagate import Mask, Program, Walk, walk
from relprop.engine.step import Journal
from relprop.errors import InvalidInput
from relprop.explain.batches import rank_of, slice_batch, slice_target
from relprop.explain.captured import Captured
from relprop.explain.conditions import Condition, masks_of
from relprop.explain.explainer import Explainer
from relprop.explain.places import places, shape_of
from relprop.explain.seen import joined
from relprop.explain.start import Forward, forward, start
from relprop.targets import Target


@dataclass(frozen=True, slots=True)
class Again:
    """What one batch was explained by; the `score` tells whether the model or its input has changed since (None: not
    asked)."""

    explainer: Explainer
    captured: Captured
    program: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Target
    score: Tensor | None
    condition: Condition | None = None

    @property
    def batch(self) -> int:
        """The number of samples."""
        return batch_size((self.args, self.kwargs))

    def sample(self, index: int) -> Again:
        """The same for one sample."""
        states = states_of(self.explainer.model)
        args, kwargs = slice_batch((self.args, self.kwargs), self.batch, index, index + 1, states)
        target = slice_target(self.target, self.batch, index, index + 1, rank_of(self.captured.graph))
        return dataclasses.replace(self, args=args, kwargs=kwargs, target=target, score=None)

    def walk(
        self,
        observe: Iterable[Ref] = (),
        *,
        program: Program | None = None,
        journal: Journal | None = None,
        whole: bool = False,
    ) -> tuple[Forward, Walk]:
        """The forward pass and the walk, down to the last of the observed values, or to the inputs (`whole`)."""
        program = self.program if program is None else program
        passed = forward(self.explainer, self.captured, program, self.args, self.kwargs)
        seeds, again, _, _ = start(self.explainer, self.captured, passed, self.target)
        if self.score is not None and not torch.equal(again, self.score):
            raise InvalidInput(
                "at: the model or its input has changed since this was explained\n"
                "  do: explain again, then ask for what is inside"
            )
        seen = frozenset(observe)
        way = walk(
            program,
            passed.values,
            seeds,
            self.captured.store,
            passed.batch,
            journal is not None,
            seen,
            release=journal is None,
            masks=masks(self.captured, self.explainer, self.condition, passed.batch),
            journal=journal,
            until=None if whole or not seen else behind(self.captured.graph, seen),
        )
        return passed, way


def masks(
    captured: Captured, explainer: Explainer, condition: Condition | None, batch: int
) -> dict[Ref, Mask]:
    """The masks of a condition; none without one."""
    return {} if condition is None else masks_of(captured, explainer.model, condition, batch)


def behind(graph: Graph, refs: Iterable[Ref]) -> str | None:
    """The node that a walk meets next after it has collected the relevance of all these values."""
    names = {ref.name for ref in refs}
    before: str | None = None
    for node in graph.nodes:
        if node.name in names:
            return before
        before = node.name
    return None


Find = Callable[[Captured], Sequence[Sequence[Ref]]]
"""Where to look in a captured graph: values, in groups (one for each call of a module)."""


@dataclass(frozen=True, slots=True)
class Inside:
    """Relevance inside the model, of a batch that may have been walked in parts."""

    parts: tuple[Again, ...]

    def joined(self, others: Sequence[Inside]) -> Inside:
        """That of consecutive parts of a batch, in their order; it is one of them."""
        return Inside(tuple(part for other in others for part in other.parts))

    def __call__(self, path: str) -> Any:
        """Relevance at the output of the module at a path: a tensor, or a tuple with one for each call and output."""
        groups = self.observed(lambda captured: places(captured, path), path)
        flat = tuple(tensor for group in groups for tensor in group)
        return flat[0] if len(flat) == 1 else flat

    def observed(self, find: Find, name: str) -> list[list[Tensor]]:
        """The relevance of the values that are found, in their layout; 0 where none reaches one of several.

        Raises `InvalidInput` where relevance reaches none of them.
        """
        found = [self._part(part, find, name) for part in self.parts]
        layouts = [
            [self.parts[0].captured.facts.layout.get(ref) for ref in group]
            for group in find(self.parts[0].captured)
        ]
        batches = [part.batch for part in self.parts]
        return [
            [joined([part[g][i] for part in found], layout, batches) for i, layout in enumerate(group)]
            for g, group in enumerate(layouts)
        ]

    @staticmethod
    def _part(part: Again, find: Find, name: str) -> list[list[Tensor]]:
        wanted = find(part.captured)
        refs = [ref for group in wanted for ref in group]
        _, way = part.walk(refs)
        if not any(ref in way.observed for ref in refs):
            raise InvalidInput(
                f"at: no relevance reaches {name!r} for this target\n  do: give a module on the way to it"
            )
        like = next(iter(way.observed.values()))

        def value(ref: Ref) -> Tensor:
            if ref in way.observed:
                return way.observed[ref].contiguous()
            return like.new_zeros(shape_of(part.captured, ref, part.batch).shape)

        return [[value(ref) for ref in group] for group in wanted]
