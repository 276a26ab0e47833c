"""Token ids that are computed from token ids: shifted, hashed, clamped. Relevance of the new id is that of the old one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from relprop.engine.graph import Graph, Meta, Node, Ref, parents

_ARITHMETIC = tuple(
    f"aten.{name}."
    for name in (
        "add", "sub", "rsub", "mul", "remainder", "fmod", "floor_divide", "clamp", "clamp_min", "clamp_max", "bitwise_and",
        "bitwise_or", "bitwise_xor", "abs", "neg", "maximum", "minimum", "__rshift__", "__lshift__", "bitwise_right_shift",
        "bitwise_left_shift", "div",
    )
)  # fmt: skip


def recoded(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """An operation on whole numbers that makes ids of ids: function(*arguments)."""
    return function(*arguments, **named)


def recode_ids(graph: Graph) -> Graph:
    """Elementwise operations between token ids and the embedding that looks them up become `recoded`."""
    nodes = {node.name: node for node in graph.nodes}
    wanted: set[str] = set()
    for node in reversed(graph.nodes):
        if "embedding" in node.operation or (node.name in wanted and _whole(node)):
            wanted.update(ref.name for ref in parents(node) if _whole(nodes[ref.name]))
    given = {node.name for node in graph.nodes if node.kind == "input" and node.name in wanted}
    result: list[Node] = []
    fed: set[str] = set()  # whatever depends on the values of an input
    for node in graph.nodes:
        if node.kind == "input" or any(ref.name in fed for ref in parents(node)):
            fed.update(() if "sym_size" in node.operation else (node.name,))
        ids = [ref for ref in parents(node) if isinstance(ref, Ref) and ref.name in given]
        if node.name in wanted and ids and _whole(node):
            given.add(node.name)
            alone = all(
                ref in ids or ref.name not in fed for ref in parents(node)
            )  # no sum of ids and lengths
            if node.operation.startswith(_ARITHMETIC) and alone:
                node = dataclasses.replace(node, function=recoded, args=(node.function, *node.args))
        result.append(node)
    return dataclasses.replace(graph, nodes=tuple(result))


def _whole(node: Node) -> bool:
    """Whether a node holds whole numbers."""
    meta = node.meta[0] if isinstance(node.meta, tuple) and node.meta else node.meta
    return isinstance(meta, Meta) and not (
        meta.dtype.is_floating_point or meta.dtype.is_complex or str(meta.dtype) == "torch.bool"
    )
