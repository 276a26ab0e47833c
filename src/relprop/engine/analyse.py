"""Facts about a graph that hold for every input: what carries relevance, what is never negative, where samples lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from relprop.engine.graph import Graph, Meta, Node, Ref, consumers, meta_of, parents, refs
from relprop.engine.layout import layout_of, number_of
from relprop.engine.ops.table import Operation
from relprop.engine.step import Layout

_CREATIONS = (
    "aten.new_zeros.", "aten.new_ones.", "aten.new_full.", "aten.new_empty.", "aten.new_empty_strided.",
    "aten.zeros_like.", "aten.ones_like.", "aten.full_like.", "aten.empty_like.", "aten.rand_like.",
    "aten.randn_like.", "aten.randint_like.",
)  # fmt: skip
"""Operations that read no more than the shape and type of their argument."""

_READ: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_CREATIONS, ()),
    **dict.fromkeys(
        ("aten.type_as.", "aten.to.other", "aten.expand_as.", "aten.view_as.", "aten.reshape_as."),
        (0,),
    ),
}
"""The arguments whose values count, where others lend no more than their shape, type or device, by the beginning of
the operation's name."""

_READ_NAMES = tuple(_READ)

_SIZES = (*_CREATIONS, "aten.sym_size.", "aten.sym_numel.", "aten.sym_stride.")
"""Operations whose result does not depend on the values of their argument."""


@dataclass(frozen=True, slots=True)
class Facts:
    """`data`: values that depend on an explained input through operations that carry relevance. `static`: nodes that
    depend on weights and constants alone. `nonnegative`: values that are never below zero. `layout`: where the samples
    of a batch lie in each data value (empty for a graph of one sample)."""

    data: frozenset[Ref]
    static: frozenset[str]
    nonnegative: frozenset[Ref]
    layout: Mapping[Ref, Layout]
    sized: frozenset[str] = frozenset()  # static nodes that hang on the length of the inputs

    def lasts(self, name: str) -> bool:
        """Whether what a node computes depends on weights and constants alone, for inputs of every length."""
        return name in self.static and name not in self.sized


def analyse(graph: Graph, operations: Mapping[str, Operation]) -> Facts:
    """All facts, in one pass over the nodes."""
    nodes = {node.name: node for node in graph.nodes}
    data: set[Ref] = set()
    static: set[str] = set()
    sized: set[str] = set()
    nonnegative: set[Ref] = set()
    layout: dict[Ref, Layout] = {}
    numbers: dict[str, int] = {}  # computed from sizes
    readers = consumers(graph)
    ids = _token_ids(graph, operations)
    fed: set[str] = set()  # nodes whose values depend on those of an input
    for node in graph.nodes:
        outputs = values_of(node)
        if node.kind in ("weight", "constant"):
            static.add(node.name)
        elif node.kind == "input":
            fed.add(node.name)
            data.update(
                ref for ref in outputs if node.name not in graph.shared and _explained(node, ref, ids)
            )
        else:
            operation = operations.get(node.operation)
            read = list(parents(node))
            if all(ref.name in static for ref in read):
                static.add(node.name)
                if node.name in graph.sized or any(ref.name in sized for ref in read):
                    sized.add(node.name)
            if any(ref.name in fed for ref in read) and not node.operation.startswith(_SIZES):
                fed.add(node.name)
            if any(ref in data for ref in _sources(node)):
                data.update(
                    ref
                    for ref in outputs
                    if _carries(node, operation, meta_of(nodes, ref), nodes, data)
                    and _explained(node, ref, ids)
                )
            if operation is not None and operation.is_nonnegative(node, nonnegative):
                nonnegative.update(outputs)
        if graph.batched:
            number = number_of(node, nodes, numbers)
            if number is not None:
                numbers[node.name] = number
            for ref in outputs:
                if ref in data and ref in readers:
                    layout[ref] = layout_of(node, ref, nodes, layout, numbers, fed)
    return Facts(frozenset(data), frozenset(static), frozenset(nonnegative), layout, frozenset(sized))


def values_of(node: Node) -> list[Ref]:
    """The values that a node has: itself, or its parts."""
    if isinstance(node.meta, tuple):
        return [Ref(node.name, index) for index in range(len(node.meta))]
    return [Ref(node.name)]


def _sources(node: Node) -> list[Ref]:
    """The values that a node reads for more than their shape and type."""
    name = node.operation
    if not name.startswith(_READ_NAMES):
        return list(parents(node))
    places = next(places for prefix, places in _READ.items() if name.startswith(prefix))
    return [ref for place in places if place < len(node.args) for ref in refs(node.args[place])]


def _token_ids(graph: Graph, operations: Mapping[str, Operation]) -> set[Ref]:
    """Values that an embedding looks up, or that become such by being rearranged. Other whole numbers (masks, positions
    made from them, lengths) are no part of what is explained."""
    found: set[Ref] = set()
    for node in reversed(graph.nodes):
        operation = operations.get(node.operation)
        kind = None if operation is None else operation.kind
        if kind == "embedding" or (kind == "selection" and any(ref in found for ref in values_of(node))):
            found.update(parents(node))
    return found


def _explained(node: Node, ref: Ref, ids: set[Ref]) -> bool:
    """Whether a value of a node can carry relevance: real numbers, and token ids."""
    meta = meta_of({node.name: node}, ref)
    return meta is None or meta.dtype.is_floating_point or meta.dtype.is_complex or ref in ids


def _carries(
    node: Node, operation: Operation | None, meta: Meta | None, nodes: dict[str, Node], data: set[Ref]
) -> bool:
    """Whether a value computed from data is data: real numbers are; whole numbers only as rearranged token ids."""
    if meta is None:
        return False
    kinds = [meta_of(nodes, ref) for ref in _sources(node) if ref in data]
    from_numbers = any(
        kind is not None and (kind.dtype.is_floating_point or kind.dtype.is_complex) for kind in kinds
    )
    if meta.dtype.is_floating_point or meta.dtype.is_complex:
        return from_numbers or (operation is not None and operation.kind == "embedding")
    return (
        not from_numbers
        and meta.dtype != torch.bool
        and operation is not None
        and operation.kind == "selection"
    )


def weighted(graph: Graph, operations: Mapping[str, Operation], facts: Facts) -> list[Node]:
    """The linear operations with weights that stand on a path from an explained input, in order."""
    return [
        node
        for node in graph.nodes
        if node.kind == "call"
        and any(ref in facts.data for ref in values_of(node))
        and (operation := operations.get(node.operation)) is not None
        and operation.kind in ("linear", "convolution", "recurrent")
    ]


def first_and_last(
    graph: Graph, operations: Mapping[str, Operation], facts: Facts
) -> tuple[set[str], set[str]]:
    """The names of the first weighted operations (no other lies between them and an input) and of the last ones."""
    names = {node.name for node in weighted(graph, operations, facts)}
    carriers = {ref.name for ref in facts.data}
    behind: set[str] = set()  # nodes that a weighted operation has fed
    first: set[str] = set()
    for node in graph.nodes:
        fed = any(ref.name in behind for ref in parents(node) if ref.name in carriers)
        if node.name in names and not fed:
            first.add(node.name)
        if fed or node.name in names:
            behind.add(node.name)
    ahead: set[str] = set()  # nodes that feed a weighted operation
    last: set[str] = set()
    for node in reversed(graph.nodes):
        if node.name in names and node.name not in ahead:
            last.add(node.name)
        if node.name in names or node.name in ahead:
            ahead.update(ref.name for ref in parents(node) if ref.name in carriers)
    return first, last
