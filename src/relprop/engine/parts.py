"""A rewrite: what is picked one by one along a dimension becomes the parts of one operation.

The adjoint of one pick is a whole of zeros with the pick's relevance in it, and all of these are added up: for the T steps of
a series, read one by one, that is T² of work. The adjoint of `unbind` sets its parts side by side, once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from relprop.engine.graph import Graph, Meta, Node, Ref, meta_of

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class _Whole:
    """A value that is picked from, along a dimension of some size, in one call of a module."""

    source: Ref
    dimension: int
    size: int
    calls: tuple[str, ...]


def join_picks(graph: Graph) -> Graph:
    """Every `select` from a value of which one call of a module picks at least half, and more than one, becomes a part of one
    `unbind`; it stays in the graph as a node that hands on that part."""
    nodes = {node.name: node for node in graph.nodes}
    picks = {node.name: found for node in graph.nodes if (found := _pick(node, nodes)) is not None}
    picked: dict[_Whole, set[int]] = {}
    for whole, place in picks.values():
        picked.setdefault(whole, set()).add(place)
    result: list[Node] = []
    made: dict[_Whole, str] = {}
    for node in graph.nodes:
        if node.name in picks:
            whole, place = picks[node.name]
            if 1 < len(picked[whole]) >= whole.size / 2:
                if whole not in made:
                    made[whole] = unused(f"{node.name}_parts", nodes)
                    result.append(_taken_apart(node, whole, made[whole]))
                part = Ref(made[whole], place)
                node = dataclasses.replace(node, function=aten.alias.default, args=(part,))
        result.append(node)
    return dataclasses.replace(graph, nodes=tuple(result))


def _taken_apart(pick: Node, whole: _Whole, name: str) -> Node:
    """The operation that takes a value apart, where its first pick stands."""
    part = pick.meta if isinstance(pick.meta, Meta) else None
    return dataclasses.replace(
        pick,
        name=name,
        function=aten.unbind.int,
        args=(whole.source, whole.dimension),
        meta=(part,) * whole.size,
    )


def beside(
    at: Node, word: str, function: Any, args: tuple[Any, ...], meta: Meta | None, nodes: dict[str, Node]
) -> Node:
    """A new node where another one stands, entered among the nodes under a name that none of them has."""
    name = unused(f"{at.name}_{word}", nodes)
    nodes[name] = dataclasses.replace(at, name=name, function=function, args=args, kwargs={}, meta=meta)
    return nodes[name]


def unused(name: str, nodes: dict[str, Node]) -> str:
    """The name, or one made of it that no node has."""
    while name in nodes:
        name += "_"
    return name


def _pick(node: Node, nodes: dict[str, Node]) -> tuple[_Whole, int] | None:
    """What a `select` picks from, and the place; None for any other node, for a place that is not fixed, and along the samples."""
    if node.operation != "aten.select.int" or node.kwargs or not isinstance(node.meta, Meta):
        return None
    source, dimension, place = node.args
    meta = meta_of(nodes, source) if isinstance(source, Ref) else None
    if meta is None or not (isinstance(dimension, int) and isinstance(place, int)):
        return None
    dimension %= len(meta.shape)
    size = meta.shape[dimension]
    if dimension in meta.batch:
        return None
    return _Whole(_without_slices(source, nodes), dimension, size, node.calls), place % size


def _without_slices(ref: Ref, nodes: dict[str, Node]) -> Ref:
    """The value that slices with nothing cut off (`x[:, …]`) were made of."""
    while nodes[ref.name].operation == "aten.slice.Tensor" and not nodes[ref.name].kwargs:
        source, _, start, stop, step = slice_arguments(nodes[ref.name])
        end = stop is None or (isinstance(stop, int) and stop >= END)
        if not isinstance(source, Ref) or start not in (0, None) or not end or step != 1:
            break
        ref = source
    return ref


END = 2**62
"""A slice up to here is a slice to the end."""


def slice_arguments(node: Node) -> tuple[Any, Any, Any, Any, Any]:
    """Source, dimension, start, end and step of a slice, those that were left out with their defaults."""
    given: list[Any] = [*node.args, *(0, None, None, 1)[len(node.args) - 1 :]]
    source, dimension, start, stop, step = given
    return source, dimension, start, stop, step
