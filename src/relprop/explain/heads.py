"""Where the heads of an attention are: what each head gives out, before the output projection mixes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.engine.exported import path_of
from relprop.engine.graph import Node, Ref, refs
from relprop.engine.ops import OPS
from relprop.errors import InvalidInput
from relprop.explain.captured import Captured
from relprop.explain.seen import samples_first

_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
"""Under which names attention modules keep how many heads they have."""


def contexts(captured: Captured, path: str) -> list[Ref]:
    """The outputs of all heads in the module at `path`, one value for each attention that is computed in it.

    That is the product of the attention weights with the values, fused or written out. Raises `InvalidInput` where
    there is no such module or none is computed in it.
    """
    nodes = {node.name: node for node in captured.graph.nodes}
    inside = [node for node in captured.graph.nodes if _within(node, path)]
    found = [
        Ref(node.name, 0 if isinstance(node.meta, tuple) else None)
        for node in inside
        if _is_context(node, nodes, captured)
    ]
    if not found:
        known = sorted({node.module for node in nodes.values() if _is_context(node, nodes, captured)})
        raise InvalidInput(
            f"heads: {'no attention is computed in' if inside else 'there is no module'} {path!r}\n"
            + (
                f"  do: one of {', '.join(known[:12])}"
                if known
                else "  do: the model computes no attention that relprop knows"
            )
        )
    owners = sorted({nodes[ref.name].module for ref in found})
    if len(owners) > 1:
        raise InvalidInput(f"heads: {path!r} holds several attentions\n  do: one of {', '.join(owners[:12])}")
    return found


def _within(node: Node, path: str) -> bool:
    if "@" in path:
        return node.kind == "call" and path in node.calls
    return node.kind == "call" and any(path_of(call) == path for call in node.calls)


def _is_context(node: Node, nodes: dict[str, Node], captured: Captured) -> bool:
    """Whether a node multiplies the output of a softmax with values that carry relevance."""
    if node.kind != "call" or not any(ref.name == node.name for ref in captured.facts.data):
        return False
    if "scaled_dot_product" in node.operation:
        return True
    row = OPS.get(node.operation)
    operands = [ref for ref in refs(node.args) if ref in captured.facts.data]
    return row is not None and row.kind == "linear" and len(operands) > 1 and _of_softmax(operands[0], nodes)


def _of_softmax(ref: Ref, nodes: dict[str, Node]) -> bool:
    """Whether a value is the output of a softmax, rearranged, cast or scaled at most."""
    for _ in range(20):
        node = nodes[ref.name]
        if node.kind != "call":
            return False
        if "softmax" in node.operation:
            return "log" not in node.operation
        row, read = OPS.get(node.operation), list(refs(node.args))
        if row is None or row.kind not in ("selection", "activation") or not read:
            return False
        ref = read[0]
    return False


def heads_first(captured: Captured, model: Any, ref: Ref, value: Tensor, batch: int) -> Tensor:
    """A context as (B, heads, …). Raises `InvalidInput` where the heads cannot be told from another dimension."""
    seen = samples_first(value, captured.facts.layout.get(ref), batch)
    node = next(node for node in captured.graph.nodes if node.name == ref.name)
    return seen.movedim(head_axis(node, seen, model), 1)


def head_axis(node: Node, seen: Tensor, model: Any) -> int:
    """The dimension of the heads in a context with the samples first: (B, …, heads, tokens, width)."""
    axis = seen.dim() - 3 if "einsum" not in node.operation else _axis_of_letters(node)
    count = _count(node, model)
    if axis < 1 or axis >= seen.dim() or count not in (None, seen.shape[axis]):
        raise InvalidInput(
            f"heads: the heads at {node.where()} cannot be told apart in a value of shape {tuple(seen.shape)}\n"
            "  do: mask the module by neurons= (a head is a block of them), or write the attention with the heads in a"
            " dimension of their own"
        )
    return axis


def _axis_of_letters(node: Node) -> int:
    """For an einsum: the index that both operands and the output share, next to the batch."""
    left, _, right = str(node.args[0]).replace(" ", "").partition("->")
    common = [place for place, letter in enumerate(right) if all(letter in term for term in left.split(","))]
    rest = [place for place in common if place != 0]
    return rest[0] if len(rest) == 1 else -1


def _count(node: Node, model: Any) -> int | None:
    """How many heads the innermost module around a node says it has."""
    if not isinstance(model, torch.nn.Module):
        return None
    for call in reversed(node.calls):
        try:
            module = model.get_submodule(path_of(call))
        except AttributeError:
            continue
        for name in _COUNTS:
            count = getattr(module, name, None)
            if type(count) is int:
                return count
    return None
