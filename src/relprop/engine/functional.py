"""Functionalisation: a captured graph without operations that write to their arguments."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from relprop.engine.graph import Graph, Meta, Node, Ref, map_output, meta_of, parents, replace_refs

_FRESH = {
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "max_pool1d", "max_pool2d",
    "max_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool1d", "silu",
    "softmax", "log_softmax", "matmul", "scaled_dot_product_attention", "upsample_bilinear2d",
    "upsample_nearest2d", "cat", "concat",
}  # fmt: skip
"""Composite operations whose result never shares memory with an argument, though no schema says so."""


def functionalise(graph: Graph) -> Graph | None:
    """The graph without operations that write to their arguments; None where renaming is not provably safe.

    Renaming means: every later reader of the value written to reads what the operation returns. That is safe
    where no other value in the same memory is read later (views and operations that may return their argument
    share memory), and where no type is promoted: what is written in place keeps the type of its place.
    """
    renaming = _Renaming(graph)
    nodes: list[Node] = []
    for place, node in enumerate(graph.nodes):
        node = renaming.of(node)
        if _written(node):
            pure = _functional(node.function)
            target = node.args[0]
            if pure is None or not renaming.safe(node, target, place):
                return None
            node = dataclasses.replace(node, function=pure)
            renaming.rename(target, Ref(node.name))
        elif node.kind == "call" and may_alias(node):
            renaming.share(node)
        nodes.append(node)
    output = map_output(graph.output, renaming.current)
    return dataclasses.replace(graph, nodes=tuple(nodes), output=output)


class _Renaming:
    """Which name each value of a graph has now, which values share memory, and which reader is the last."""

    def __init__(self, graph: Graph) -> None:
        self._names: dict[Ref, Ref] = {}
        self._older: dict[Ref, list[Ref]] = {}  # the names that now mean a value
        self._shared: dict[Ref, set[Ref]] = {}
        self._nodes: dict[str, Node] = {}
        self._last = {ref: place for place, node in enumerate(graph.nodes) for ref in parents(node)}
        self._last |= dict.fromkeys(graph.outputs(), len(graph.nodes))

    def current(self, ref: Ref) -> Ref:
        """The name of a value now."""
        return self._names.get(ref, ref)

    def of(self, node: Node) -> Node:
        """The node with the names of its arguments as they are now."""
        if any(ref in self._names for ref in parents(node)):
            args, kwargs = replace_refs(node.args, self.current), replace_refs(node.kwargs, self.current)
            node = dataclasses.replace(node, args=args, kwargs=kwargs)
        self._nodes[node.name] = node
        return node

    def rename(self, old: Ref, new: Ref) -> None:
        """From here on, `new` is meant by every name of `old`."""
        self._older[new] = [*self._older.pop(old, []), old]
        self._names |= dict.fromkeys(self._older[new], new)

    def share(self, node: Node) -> None:
        """The results of the node may lie in the memory of its arguments."""
        results = [Ref(node.name), *(Ref(node.name, i) for i in range(_parts(node)))]
        shared = set(results).union(*(self._shared.get(ref, {ref}) for ref in parents(node)))
        self._shared |= dict.fromkeys(shared, shared)

    def safe(self, node: Node, target: Any, place: int) -> bool:
        """Whether nothing but `target` shows that the node has written to it."""
        if _written(node) != [0] or not isinstance(target, Ref) or self._promotes(node, target):
            return False
        others = self._shared.get(target, {target}) - {target}
        names = [name for ref in others for name in (ref, *self._older.get(ref, []))]
        return all(self._last.get(name, -1) <= place for name in names)

    def _promotes(self, node: Node, target: Ref) -> bool:
        """Whether the operation could return another type than that of the value written to."""
        own = meta_of(self._nodes, target)
        others = {meta.dtype for ref in parents(node) if isinstance(meta := meta_of(self._nodes, ref), Meta)}
        if own is None or not own.dtype.is_floating_point:
            return len(others) > 1
        return any(other.is_floating_point or other.is_complex for other in others - {own.dtype})


def _parts(node: Node) -> int:
    return len(node.meta) if isinstance(node.meta, tuple) else 0


def _written(node: Node) -> list[int]:
    schema = getattr(node.function, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    return [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]


def _functional(function: Any) -> Any:
    """The operation that returns what `function` writes: aten.relu_ -> aten.relu."""
    namespace, name = function._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    pure = getattr(packet, function._overloadname, None)
    if pure is None or not name.endswith("_"):
        return None
    types = [[str(a.type) for a in f._schema.arguments] for f in (pure, function)]
    names = [[a.name for a in f._schema.arguments[1:]] for f in (pure, function)]
    return pure if types[0] == types[1] and names[0] == names[1] and not pure._schema.is_mutable else None


def may_alias(node: Node) -> bool:
    """Whether the result may share memory with an argument."""
    function = node.function
    if not isinstance(function, torch._ops.OpOverload):
        return False
    schema = function._schema
    if any(result.alias_info is not None for result in schema.returns):
        return True
    name = schema.name.split("::")[1]
    if name in _FRESH:
        return False
    return function._can_decompose() or "dropout" in name
