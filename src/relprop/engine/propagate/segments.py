"""Checkpoints: a forward pass that keeps few values, and a walk that computes the others again, a segment at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from torch import Tensor

from relprop.engine.graph import Ref, parents
from relprop.engine.propagate.book import Walk
from relprop.engine.propagate.program import Program
from relprop.engine.propagate.record import record
from relprop.engine.propagate.walk import walk
from relprop.engine.propagate.weights import Weights


@dataclass(frozen=True, slots=True)
class Segments:
    """A program in consecutive parts: where each begins, and the values that are read beyond the part that made them."""

    starts: tuple[int, ...]
    kept: frozenset[str]


def segments(program: Program) -> Segments:
    """About √n parts of a program of n operations, whose values take about the same memory."""
    nodes = program.graph.nodes
    sizes = [sum(meta.numel for meta in node.metas) if node.kind == "call" else 0 for node in nodes]
    count = max(2, isqrt(sum(node.kind == "call" for node in nodes)))
    share, starts, filled = sum(sizes) / count, [0], 0
    for index, size in enumerate(sizes[:-1]):
        filled += size
        if filled >= share * len(starts) and len(starts) < count:
            starts.append(index + 1)
    part = {node.name: sum(start <= index for start in starts) for index, node in enumerate(nodes)}
    kept = {ref.name for ref in program.graph.outputs()} | {
        ref.name for node in nodes for ref in parents(node) if part[ref.name] < part[node.name]
    }
    return Segments(tuple(starts), frozenset(kept))


def walk_by_segments(
    program: Program,
    parts: Segments,
    values: Mapping[str, Any],
    seeds: Mapping[Ref, Tensor],
    store: Weights,
    batch: int,
    audit: bool = True,
    autocast: Any = None,
) -> Walk:
    """`walk` over the `values` that a forward pass with the same `parts` has kept: from the last part to the first, each run
    forward again just before it is walked."""
    nodes = program.graph.nodes
    way: Walk | None = None
    for start, stop in zip(parts.starts[::-1], (len(nodes), *parts.starts[:0:-1]), strict=True):
        own = record(program, values, store, nodes=slice(start, stop), autocast=autocast)
        way = walk(
            program, own, seeds if way is None else {}, store, batch, audit, release=True, onward=way,
            until=nodes[start - 1].name if start else None,
        )  # fmt: skip
    assert way is not None
    return way
