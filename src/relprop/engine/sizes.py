"""Sizes that a capture left free: sequence lengths. A graph for inputs of other sizes is the same graph with them set.

Where torch.export found the size of an input's dimension to be free, the captured graph holds its symbol: in the
shapes of values, and as `Size` among the arguments of operations. Setting it gives the graph that a capture with
inputs of that size would give, without one. Whether it computes what the model computes is then asked as after any
capture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from relprop.engine.graph import Graph, Meta, Node, Ref, Size, parents


def is_free(graph: Graph) -> bool:
    """Whether the graph holds sizes that are not set."""
    return any(place is not None for place in graph.free.values())


def fits(graph: Graph, leaves: Sequence[Any]) -> bool:
    """Whether inputs have the sizes that the graph has not left free, and equal ones where it has one symbol."""
    values = _values(graph, leaves)
    for node in graph.nodes:
        if node.kind != "input" or not isinstance(node.meta, Meta):
            continue
        leaf, meta = leaves[int(node.origin)], _set(node.meta, values)
        if not isinstance(leaf, torch.Tensor) or leaf.dim() != len(meta.shape):
            return False
        pairs = enumerate(zip(leaf.shape, meta.shape, strict=True))
        if any(own != size for d, (own, size) in pairs if d not in meta.batch):
            return False
    return True


def with_sizes(graph: Graph, leaves: Sequence[Any]) -> Graph:
    """The graph for inputs of these sizes: every shape is a number, and so is every size among the arguments; of the
    conditions on the number of samples only that is left open.

    `sized` of the result names the nodes that hang on such a size.
    """
    if not is_free(graph):
        return graph
    values = _values(graph, leaves)
    nodes: list[Node] = []
    sized: set[str] = set()
    for node in graph.nodes:
        args, kwargs = _without_sizes(node.args, values), _without_sizes(node.kwargs, values)
        hangs = args is not node.args or kwargs is not node.kwargs
        if hangs or any(ref.name in sized for ref in parents(node)):
            sized.add(node.name)
        meta = node.meta
        if isinstance(meta, tuple):
            meta = tuple(None if part is None else _set(part, values) for part in meta)
        elif meta is not None:
            meta = _set(meta, values)
        nodes.append(
            dataclasses.replace(node, args=args, kwargs=kwargs, meta=meta)
            if hangs or meta is not node.meta
            else node
        )
    output = pytree.tree_map(
        lambda leaf: _without_sizes(leaf, values),
        graph.output,
        is_leaf=lambda leaf: isinstance(leaf, (Ref, Size)),
    )
    batch = {symbol: None for symbol, place in graph.free.items() if place is None}
    lengths = {symbol: size for symbol, size in values.items() if symbol not in batch}
    return dataclasses.replace(
        graph,
        nodes=tuple(nodes),
        output=output,
        free=batch,
        sized=frozenset(sized),
        conditions=tuple(condition.xreplace(lengths) for condition in graph.conditions),
    )


def _values(graph: Graph, leaves: Sequence[Any]) -> dict[Any, Any]:
    """The number that each symbol stands for; symbols of the batch are 2, as in every shape of a graph."""
    import sympy  # type: ignore[import-untyped]  # half a second, which importing relprop need not take

    return {
        symbol: sympy.Integer(2 if place is None else leaves[place[0]].shape[place[1]])
        for symbol, place in graph.free.items()
    }


def _set(meta: Meta, values: Mapping[Any, Any]) -> Meta:
    if not meta.sizes:
        return meta
    shape = tuple(size if isinstance(size, int) else _number(size, values) for size in meta.sizes)
    return Meta(shape, meta.dtype, meta.batch)


def _number(expression: Any, values: Mapping[Any, Any]) -> int:
    found = values.get(expression)
    return int(expression.xreplace(values) if found is None else found)


def _without_sizes(structure: Any, values: Mapping[Any, Any]) -> Any:
    """The structure with every `Size` as a number; itself where there is none."""
    if isinstance(structure, Size):
        return _number(structure.expression, values)
    if isinstance(structure, (list, tuple)) and not hasattr(structure, "_fields"):
        items = [_without_sizes(item, values) for item in structure]
        if all(new is old for new, old in zip(items, structure, strict=True)):
            return structure
        return items if isinstance(structure, list) else tuple(items)
    if isinstance(structure, dict):
        found = {key: _without_sizes(item, values) for key, item in structure.items()}
        return structure if all(found[key] is structure[key] for key in structure) else found
    if isinstance(structure, slice):
        parts = (structure.start, structure.stop, structure.step)
        new = _without_sizes(parts, values)
        return structure if new is parts else slice(*new)
    return structure
