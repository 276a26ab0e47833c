"""Rewrites: activations and the softmax that a model writes out become the operations that they are.

GELU as ½ x (1 + tanh(…)) or ½ x (1 + erf(x/√2)) is, operation by operation, a product of two things that both hang on x, and a
rule for products would share relevance between them; as one function of x it hands on what it gets (Achtibat et al. 2024,
Eq. 9), like the same function under its own name. Which function it is, is told by its values, whatever its spelling.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Graph, Node, Ref, meta_of, parents, replace_refs

aten = torch.ops.aten

_STEPS = tuple(
    f"aten.{name}."
    for name in (
        "mul", "add", "sub", "rsub", "div", "pow", "square", "neg", "tanh", "erf", "sigmoid", "softplus", "exp", "log", "log1p",
        "reciprocal", "relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "hardsigmoid", "expm1", "abs", "where",
        "maximum", "minimum", "gt", "ge", "lt", "le", "masked_fill",
    )
)  # fmt: skip
"""What a written-out activation is made of: each result hangs on the numbers in the same place alone."""

_LAST = (
    "aten.mul.", "aten.div.", "aten.reciprocal.", "aten.log.", "aten.log1p.", "aten.where.", "aten.add.", "aten.maximum.",
)  # fmt: skip

_KNOWN: tuple[tuple[Any, dict[str, Any]], ...] = (
    (aten.gelu.default, {"approximate": "tanh"}),
    (aten.gelu.default, {}),
    (aten.silu.default, {}),
    (aten.mish.default, {}),
    (aten.hardswish.default, {}),
    (aten.sigmoid.default, {}),
    (aten.hardsigmoid.default, {}),
    (aten.softplus.default, {}),
    (aten.elu.default, {}),
    (aten.selu.default, {}),
)
_FAR = 12  # how many values back a function may begin
_CLOSE = 1e-6


def unify_activations(graph: Graph) -> Graph:
    """Every activation of `_KNOWN` that is written out becomes one operation on the value that it is a function of."""
    nodes = {node.name: node for node in graph.nodes}
    behind: dict[
        Ref, tuple[Ref, ...]
    ] = {}  # of a value: all that it is a function of, place by place; the nearest first
    result: list[Node] = []
    for node in graph.nodes:
        own = Ref(node.name)
        numbers = numbers_of(node, graph, nodes)
        read = [ref for ref in dict.fromkeys(parents(node)) if ref not in numbers]
        behind[own] = (own,)
        if read and node.kind == "call" and node.operation.startswith(_STEPS):
            ways = [behind.get(ref, (ref,)) for ref in read]
            behind[own] += tuple(ref for ref in ways[0] if all(ref in way for way in ways))[:_FAR]
            if node.operation.startswith(_LAST):
                found = next(filter(None, (_known(own, x, graph, nodes) for x in behind[own][1:])), None)
                if found is not None:
                    node = dataclasses.replace(node, **found)
        result.append(node)
    return dataclasses.replace(graph, nodes=tuple(result))


def numbers_of(node: Node, graph: Graph, nodes: dict[str, Node]) -> dict[Ref, Tensor]:
    """The constants of one number that a node reads, with these numbers."""
    found: dict[Ref, Tensor] = {}
    for ref in parents(node):
        origin = _copied(nodes[ref.name], nodes)
        value = graph.constants.get(origin.origin) if origin.kind == "constant" else None
        if value is not None and value.dim() == 0:
            found[ref] = value.cpu()
    return found


def _copied(node: Node, nodes: dict[str, Node]) -> Node:
    """The node whose value another one copies, at whatever remove; the node itself where it copies none."""
    while node.operation.startswith(_COPIES):
        node = nodes[node.args[0].name]
    return node


_COPIES = ("aten.lift_fresh_copy.", "aten.detach.", "aten.clone.", "aten.alias.")


@cache
def _curves() -> tuple[Tensor, tuple[Tensor, ...]]:
    """Numbers near and far from 0, and what each activation of `_KNOWN` gives of them."""
    near = torch.linspace(-8, 8, 161, dtype=torch.float64, device="cpu")
    far = near.new_tensor([10.0, 15.0, 20.0, 40.0, 100.0])
    grid = torch.cat([-far, near, far])
    return grid, tuple(function(grid, **named) for function, named in _KNOWN)


def _known(value: Ref, x: Ref, graph: Graph, nodes: dict[str, Node]) -> dict[str, Any] | None:
    """What the node of a value is instead: the operation on x that gives the same of any x."""
    grid, curves = _curves()
    done: dict[Ref, Tensor] = {x: grid}

    def computed(ref: Ref) -> Any:
        if ref not in done:
            node = nodes[ref.name]
            assert node.function is not None
            done.update(numbers_of(node, graph, nodes))
            done[ref] = node.function(
                *replace_refs(node.args, computed), **replace_refs(node.kwargs, computed)
            )
        return done[ref]

    found = computed(value)
    if found.shape != grid.shape or found.dtype != grid.dtype:
        return None
    for (function, named), curve in zip(_KNOWN, curves, strict=True):
        if torch.allclose(found, curve, rtol=0.0, atol=_CLOSE):
            return {"function": function, "args": (x,), "kwargs": named}
    return None


def unify_softmax(graph: Graph) -> Graph:
    """exp(x) over its sum along a dimension, with or without the largest x taken off before, becomes a softmax."""
    nodes = {node.name: node for node in graph.nodes}
    result = [
        node
        if (found := _softmax(node, nodes)) is None
        else dataclasses.replace(node, function=aten.softmax.int, args=found)
        for node in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=tuple(result))


def _softmax(node: Node, nodes: dict[str, Node]) -> tuple[Ref, int] | None:
    """What a quotient is the softmax of, and along which dimension; None for every other node."""
    if node.operation != "aten.div.Tensor" or not all(isinstance(ref, Ref) for ref in node.args):
        return None
    above, below = (nodes[ref.name] for ref in node.args)
    if above.operation != "aten.exp.default" or below.args[:1] != (node.args[0],):
        return None
    dimension = _along(below, "aten.sum.dim_IntList", nodes)
    if dimension is None:
        return None
    x: Ref = above.args[0]
    shifted = nodes[x.name]
    if shifted.operation == "aten.sub.Tensor" and len(shifted.args) == 2 and not shifted.kwargs:
        source, largest = shifted.args
        taken = _copied(nodes[largest.name], nodes) if isinstance(largest, Ref) else shifted
        if taken.args[:1] == (source,) and dimension in (
            _along(taken, "aten.amax.default", nodes),
            _along(taken, "aten.max.dim", nodes),
        ):
            x = source
    return x, dimension


def _along(node: Node, operation: str, nodes: dict[str, Node]) -> int | None:
    """The one dimension that an operation takes together and keeps as one of size 1; None for another one."""
    if node.operation != operation or len(node.args) < 3 or node.args[2] is not True:
        return None
    given = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
    meta = meta_of(nodes, node.args[0])
    return given[0] % len(meta.shape) if len(given) == 1 and meta is not None and meta.shape else None
