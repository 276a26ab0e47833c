"""Rewrites: operations that are another operation under another name become that one, so that they meet its rule."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from relprop.engine.graph import (
    Graph,
    Meta,
    Node,
    Ref,
    arguments_of,
    map_output,
    meta_of,
    of_weights,
    parents,
    replace_refs,
)
from relprop.engine.parts import END, beside, slice_arguments

aten = torch.ops.aten

_BOUNDS = {
    aten.maximum.default: aten.clamp_min.Tensor,
    aten.max.other: aten.clamp_min.Tensor,
    aten.minimum.default: aten.clamp_max.Tensor,
    aten.min.other: aten.clamp_max.Tensor,
}


def merge_twins(graph: Graph) -> Graph:
    """What one call of a module computes twice from the same values is computed once: a softmax may write out exp(x) twice."""
    first: dict[Any, str] = {}
    instead: dict[str, str] = {}
    result: list[Node] = []

    def kept(ref: Ref) -> Ref:
        return Ref(instead[ref.name], ref.index) if ref.name in instead else ref

    for node in graph.nodes:
        if any(ref.name in instead for ref in parents(node)):
            node = dataclasses.replace(
                node, args=replace_refs(node.args, kept), kwargs=replace_refs(node.kwargs, kept)
            )
        if node.kind == "call" and node.operation.startswith(_PLACE_BY_PLACE):
            key = (node.function, node.calls, repr(node.args), repr(node.kwargs))
            if key in first:
                instead[node.name] = first[key]
                continue
            first[key] = node.name
        result.append(node)
    output = map_output(graph.output, kept)
    return dataclasses.replace(graph, nodes=tuple(result), output=output)


_PLACE_BY_PLACE = tuple(
    f"aten.{name}."
    for name in ("exp", "sub", "mul", "div", "neg", "amax", "max", "sum", "sigmoid", "tanh", "square", "pow", "logsumexp")
)  # fmt: skip


def bounds_as_clamps(graph: Graph) -> Graph:
    """The larger or smaller of a value and a constant is a function of that value: a clamp."""
    nodes = {node.name: node for node in graph.nodes}
    fixed = of_weights(graph)

    def clamped(node: Node) -> Node:
        if node.function not in _BOUNDS or not all(isinstance(ref, Ref) for ref in node.args):
            return node
        x, bound = sorted(node.args, key=lambda ref: ref.name in fixed)
        given, found = meta_of(nodes, x), node.meta
        if (x.name in fixed) == (bound.name in fixed) or given is None or not isinstance(found, Meta):
            return node
        if given.dtype != found.dtype:
            return node
        return dataclasses.replace(node, function=_BOUNDS[node.function], args=(x, bound))

    return dataclasses.replace(graph, nodes=tuple(map(clamped, graph.nodes)))


_REDUCTIONS = (
    "aten.mean.dim",
    "aten.sum.dim_IntList",
    "aten.amax.",
    "aten.amin.",
    "aten.logsumexp.",
    "aten.var.",
    "aten.std.",
)


def kept_dimensions(graph: Graph) -> Graph:
    """A dimension that is put back behind a sum, mean or maximum over it was kept."""
    nodes = {node.name: node for node in graph.nodes}

    def kept(node: Node) -> Node:
        if node.operation != "aten.unsqueeze.default" or node.args[0].index is not None:
            return node
        before = nodes[node.args[0].name]
        while before.operation == "aten.slice.Tensor" and _takes_all(before):
            before = nodes[before.args[0].name]
        arguments = arguments_of(before) if before.operation.startswith(_REDUCTIONS) else {}
        dims = arguments.get("dim")
        if not isinstance(dims, (list, tuple)) or len(dims) != 1 or "keepdim" not in arguments:
            return node
        given, found = meta_of(nodes, before.args[0]), meta_of(nodes, Ref(node.name))
        if given is None or found is None or len(found.shape) != len(given.shape):
            return node
        if dims[0] % len(given.shape) != node.args[1] % len(given.shape):
            return node
        place = [*arguments].index("keepdim")
        positional, rest = before.args[:place], before.args[place + 1 :]
        kwargs = before.kwargs | {"keepdim": True}
        if place < len(before.args):
            positional, kwargs = (*positional, True, *rest), before.kwargs
        return dataclasses.replace(before, name=node.name, args=positional, kwargs=kwargs, meta=node.meta)

    return dataclasses.replace(graph, nodes=tuple(map(kept, graph.nodes)))


def _takes_all(node: Node) -> bool:
    """Whether a slice is of all that there is."""
    _, _, start, stop, step = slice_arguments(node)
    return start in (0, None) and step == 1 and (stop is None or (isinstance(stop, int) and stop >= END))


def plain_einsums(graph: Graph) -> Graph:
    """An einsum that sums nothing is a product of its two operands; one of a single operand is a sum, or another order."""
    nodes = {node.name: node for node in graph.nodes}
    result: list[Node] = []
    for node in graph.nodes:
        made = _plain(node, nodes) if node.operation == "aten.einsum.default" else None
        result += made or [node]
    return dataclasses.replace(graph, nodes=tuple(result))


def _plain(node: Node, nodes: dict[str, Node]) -> list[Node] | None:
    """The operations that an einsum is."""
    terms, arrow, output = node.args[0].replace(" ", "").partition("->")
    letters, operands = terms.split(","), node.args[1]
    once = all(len(set(term)) == len(term) and "." not in term for term in letters)
    metas = [meta_of(nodes, ref) for ref in operands]
    if not arrow or not once or None in metas or len(operands) > 2:
        return None
    moving = _Moving(node, nodes)
    if len(operands) == 1:
        value, meta, term = operands[0], metas[0], letters[0]
        gone = [d for d, letter in enumerate(term) if letter not in output]
        assert meta is not None
        for d in reversed(gone):
            meta = meta.without(d)
        if gone:
            value = moving.add(aten.sum.dim_IntList, (value, gone), meta)
            term = "".join(letter for letter in term if letter in output)
        moving.ordered(value, meta, term, output)
        return moving.finished()
    if any(letter not in output for term in letters for letter in term):
        return None
    factors = [
        moving.spread(*moving.ordered(ref, meta, term, output), output)
        for ref, meta, term in zip(operands, metas, letters, strict=True)
    ]
    assert isinstance(node.meta, Meta)
    moving.add(aten.mul.Tensor, tuple(factors), node.meta)
    return moving.finished()


@dataclasses.dataclass
class _Moving:
    """The operations that stand for a node, the last of them under its name."""

    node: Node
    nodes: dict[str, Node]
    made: list[Node] = dataclasses.field(default_factory=list)

    def add(self, function: Any, args: tuple[Any, ...], meta: Meta) -> Ref:
        made = beside(self.node, str(len(self.made)), function, args, meta, self.nodes)
        self.made.append(made)
        return Ref(made.name)

    def ordered(self, value: Ref, meta: Meta | None, term: str, output: str) -> tuple[Ref, Meta, str]:
        """A value with its dimensions in the order of the output."""
        assert meta is not None
        found = "".join(letter for letter in output if letter in term)
        order = [term.index(letter) for letter in found]
        if found == term:
            return value, meta, term
        batch = tuple(i for i, d in enumerate(order) if d in meta.batch)
        meta = Meta(tuple(meta.shape[d] for d in order), meta.dtype, batch)
        return self.add(aten.permute.default, (value, order), meta), meta, found

    def spread(self, value: Ref, meta: Meta, term: str, output: str) -> Ref:
        """A value with a dimension of size 1 for each that the output has more."""
        for d, letter in enumerate(output):
            if letter not in term:
                shape = (*meta.shape[:d], 1, *meta.shape[d:])
                meta = Meta(shape, meta.dtype, tuple(b + (b >= d) for b in meta.batch))
                value = self.add(aten.unsqueeze.default, (value, d), meta)
                term = term[:d] + letter + term[d:]
        return value

    def finished(self) -> list[Node] | None:
        if not self.made:
            return None
        *before, last = self.made
        return [*before, dataclasses.replace(last, name=self.node.name)]
