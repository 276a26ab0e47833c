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

from relprop.engine.graph import Graph, Meta, Node, Ref, arguments_of, meta_of, parents, replace_refs
from relprop.engine.parts import unused

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
    "aten.neg.",
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
    (aten.log_sigmoid.default, {}),
    (aten.softshrink.default, {}),
)
_FAR = 12  # how many values back a function may begin
_CLOSE = 1e-6


def unify_activations(graph: Graph) -> Graph:
    """Every activation of `_KNOWN` that is written out becomes one operation on the value that it is a function of; what is divided
    by its inverse is multiplied by it."""
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
        if node.operation == "aten.div.Tensor" and len(read) == 2:
            gate = _gate(node, behind.get(node.args[1], ()), graph, nodes)
            if gate is not None:
                result.append(gate)
                node = dataclasses.replace(
                    node, function=aten.mul.Tensor, args=(node.args[0], Ref(gate.name))
                )
        result.append(node)
    return dataclasses.replace(graph, nodes=tuple(result))


def _gate(node: Node, behind: tuple[Ref, ...], graph: Graph, nodes: dict[str, Node]) -> Node | None:
    """What a quotient is the product with: the sigmoid of x in a / (1 + exp(−x))."""
    for x in behind[1:]:
        found = _known(behind[0], x, graph, nodes, inverse=True)
        if found is not None:
            name = unused(f"{node.name}_gate", nodes)
            return dataclasses.replace(nodes[behind[0].name], name=name, **found)
    return None


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
def _curves() -> tuple[Tensor, Tensor]:
    """Numbers near and far from 0, and what each activation of `_KNOWN` gives of them, a row each."""
    near = torch.linspace(-8, 8, 161, dtype=torch.float64, device="cpu")
    far = near.new_tensor([10.0, 15.0, 20.0, 40.0, 100.0])
    grid = torch.cat([-far, near, far])
    return grid, torch.stack([function(grid, **named) for function, named in _KNOWN])


def _known(
    value: Ref, x: Ref, graph: Graph, nodes: dict[str, Node], inverse: bool = False
) -> dict[str, Any] | None:
    """What the node of a value, or of its inverse, is instead: the operation on x that gives the same of any x."""
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

    found = computed(value).reciprocal() if inverse else computed(value)
    if found.shape != grid.shape or found.dtype != grid.dtype:
        return None
    close = ((curves - found).abs() <= _CLOSE).all(1).tolist()
    if not any(close):
        return None
    function, named = _KNOWN[close.index(True)]
    return {"function": function, "args": (x,), "kwargs": named}


def unify_softmax(graph: Graph) -> Graph:
    """exp(x) over its sum along a dimension becomes a softmax, and the logarithm of that sum a logsumexp, with or without the
    largest x taken off before; so does the exponential of what is left of x without its logsumexp."""
    nodes = {node.name: node for node in graph.nodes}
    for node in graph.nodes:
        for function, find in ((aten.logsumexp.default, _log_sum_exp), (aten.softmax.int, _softmax)):
            found = find(node, nodes)
            if found is not None:
                nodes[node.name] = dataclasses.replace(node, function=function, args=found)
    return dataclasses.replace(graph, nodes=tuple(nodes.values()))


def _softmax(node: Node, nodes: dict[str, Node]) -> tuple[Ref, int] | None:
    """What a node is the softmax of, and along which dimension; None for every other node."""
    if node.operation == "aten.exp.default":
        return _exp_of_log_softmax(nodes[node.args[0].name], nodes)
    if node.operation != "aten.div.Tensor" or not all(isinstance(ref, Ref) for ref in node.args):
        return None
    above, below = (nodes[ref.name] for ref in node.args)
    if above.operation != "aten.exp.default" or below.args[:1] != (node.args[0],):
        return None
    dimension = _along(below, "aten.sum.dim_IntList", nodes)
    if dimension is None:
        return None
    x: Ref = above.args[0]
    source, largest = _difference(nodes[x.name])
    return (source if source is not None and _is_largest(largest, source, dimension, nodes) else x), dimension


def _exp_of_log_softmax(node: Node, nodes: dict[str, Node]) -> tuple[Ref, int] | None:
    meta = node.meta
    if node.operation == "aten.log_softmax.int" and isinstance(meta, Meta) and node.args[2:] in ((), (None,)):
        return node.args[0], node.args[1] % len(meta.shape)
    x, total = _difference(node)
    below = nodes[total.name] if total is not None else node
    dimension = _along(below, "aten.logsumexp.default", nodes)
    return (x, dimension) if x is not None and dimension is not None and below.args[0] == x else None


def _log_sum_exp(node: Node, nodes: dict[str, Node]) -> tuple[Ref, list[int], bool] | None:
    """What a node is the logsumexp of, along which dimension, and whether that is kept; None for every other node."""
    if node.operation == "aten.log.default":
        total = nodes[node.args[0].name]
        summed = nodes[total.args[0].name] if total.operation == "aten.sum.dim_IntList" else node
        if summed.operation == "aten.exp.default":
            _, dims, keepdim, dtype = arguments_of(total).values()
            if isinstance(dims, (list, tuple)) and len(dims) == 1 and dtype is None:
                return summed.args[0], [*dims], keepdim
    if node.operation == "aten.add.Tensor" and not node.kwargs and all(isinstance(r, Ref) for r in node.args):
        for largest, rest in (node.args, node.args[::-1]):
            dimension = _along(nodes[rest.name], "aten.logsumexp.default", nodes)
            x, off = (
                _difference(nodes[nodes[rest.name].args[0].name]) if dimension is not None else (None, None)
            )
            if (
                dimension is not None
                and x is not None
                and off == largest
                and _is_largest(off, x, dimension, nodes)
            ):
                return x, [dimension], True
    return None


def _difference(node: Node) -> tuple[Ref, Ref] | tuple[None, None]:
    """The two values of which a node is the difference."""
    plain = node.operation == "aten.sub.Tensor" and len(node.args) == 2 and not node.kwargs
    return tuple(node.args) if plain and all(isinstance(ref, Ref) for ref in node.args) else (None, None)


def _is_largest(value: Ref | None, x: Ref, dimension: int, nodes: dict[str, Node]) -> bool:
    """Whether a value is the largest x along a dimension."""
    if value is None:
        return False
    taken = _copied(nodes[value.name], nodes)
    return taken.args[:1] == (x,) and dimension in (
        _along(taken, "aten.amax.default", nodes),
        _along(taken, "aten.max.dim", nodes),
    )


def _along(node: Node, operation: str, nodes: dict[str, Node]) -> int | None:
    """The one dimension that an operation takes together and keeps as one of size 1; None for another one."""
    arguments = arguments_of(node) if node.operation == operation else {}
    if arguments.get("keepdim") is not True:
        return None
    dims = arguments["dim"]
    given = dims if isinstance(dims, (list, tuple)) else [dims]
    meta = meta_of(nodes, node.args[0])
    return given[0] % len(meta.shape) if len(given) == 1 and meta is not None and meta.shape else None
