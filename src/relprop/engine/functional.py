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
    """The graph without operations that write to their arguments, by renaming; None where renaming is not
    provably safe.

    Renaming is safe where the value written to shares its memory with no other value: then every later reader
    means the new value. Views and operations that may return their argument count as sharing. And it is safe
    only where no type is promoted: what is written in place keeps the type of its place.
    """
    known: dict[str, Node] = {}
    alias: dict[Ref, set[Ref]] = {}
    renamed: dict[Ref, Ref] = {}
    nodes: list[Node] = []

    def group(ref: Ref) -> set[Ref]:
        return alias.setdefault(ref, {ref})

    for node in graph.nodes:
        args, kwargs = (
            replace_refs(part, lambda ref: renamed.get(ref, ref)) for part in (node.args, node.kwargs)
        )
        node = dataclasses.replace(node, args=args, kwargs=kwargs)
        known[node.name] = node
        if node.kind != "call":
            nodes.append(node)
            continue
        written = _written(node)
        if written:
            pure = _functional(node.function)
            target = node.args[0] if written == [0] else None
            if (
                pure is None
                or not isinstance(target, Ref)
                or len(group(target)) > 1
                or _promotes(node, target, known)
            ):
                return None
            node = dataclasses.replace(node, function=pure)
            for old in [old for old, new in renamed.items() if new == target] + [target]:
                renamed[old] = Ref(node.name)
        elif may_alias(node):
            shared = set().union(*(group(ref) for ref in parents(node)), {Ref(node.name)})
            parts = len(node.meta) if isinstance(node.meta, tuple) else 0
            shared |= {Ref(node.name, index) for index in range(parts)}
            for member in shared:
                alias[member] = shared
        nodes.append(node)
    output = map_output(graph.output, lambda ref: renamed.get(ref, ref))
    return dataclasses.replace(graph, nodes=tuple(nodes), output=output)


def _written(node: Node) -> list[int]:
    schema = getattr(node.function, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    return [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]


def _promotes(node: Node, target: Ref, known: dict[str, Node]) -> bool:
    """Whether the operation could return another type than that of the value written to."""
    own = meta_of(known, target)
    others = {meta.dtype for ref in parents(node) if isinstance(meta := meta_of(known, ref), Meta)}
    if own is None or not own.dtype.is_floating_point:
        return len(others) > 1
    return any(other.is_floating_point or other.is_complex for other in others - {own.dtype})


def _functional(function: Any) -> Any:
    """The operation that returns what `function` writes: aten.relu_ -> aten.relu."""
    namespace, name = function._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    pure = getattr(packet, function._overloadname, None)
    if pure is None or not name.endswith("_"):
        return None
    same = [(a.name, str(a.type)) for a in pure._schema.arguments] == [
        (a.name, str(a.type)) for a in function._schema.arguments
    ]
    return pure if same and not pure._schema.is_mutable else None


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
