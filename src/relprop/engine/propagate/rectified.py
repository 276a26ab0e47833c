"""Values whose relevance is known to be zero wherever they are not positive, as behind them only a ReLU reads them."""

from __future__ import annotations

from collections.abc import Mapping

from relprop.engine.graph import Graph, Node, Ref, parents
from relprop.engine.ops import OPS
from relprop.engine.rules import Addition, AlphaBeta, Epsilon, Gamma, LinearRule, MaxPool, Pass, Rule, ZPlus

_RELUS = ("aten.relu.", "aten.relu6.")
_CLAMPS = ("aten.hardtanh.", "aten.clamp_min.", "aten.clamp.default")
_MAXIMA = ("aten.max_pool", "aten.adaptive_max_pool")


def rectified(graph: Graph, rules: Mapping[str, Rule]) -> frozenset[Ref]:
    """The values that hand no relevance on where they are ≤ 0, as long as relevance starts at the graph's outputs only.

    Behind them come ReLUs alone, or values moved and left as they are. A ReLU's output of 0 has the relevance 0 where all
    that read it share out in proportion to what they read.
    """
    readers: dict[Ref, list[Node]] = {}
    for node in graph.nodes:
        if node.name in rules:
            for ref in parents(node):
                readers.setdefault(ref, []).append(node)
    outputs = frozenset(graph.outputs())
    zero: set[Ref] = set()  # no relevance where they are 0
    found: set[Ref] = set()  # no relevance where they are ≤ 0
    for node in reversed(graph.nodes):
        own = Ref(node.name)
        if node.kind != "call" or isinstance(node.meta, tuple) or own in outputs or own not in readers:
            continue
        behind = readers[own]
        if all(_in_proportion(reader, rules[reader.name], zero) for reader in behind):
            zero.add(own)
        if all(
            Ref(reader.name) in zero if _is_relu(reader, rules[reader.name]) else _moves(reader, found)
            for reader in behind
        ):
            found.add(own)
    return frozenset(found)


def _in_proportion(node: Node, rule: Rule, zero: set[Ref]) -> bool:
    """Whether an operation hands nothing to a value of 0."""
    row = OPS[node.operation]
    if isinstance(rule, LinearRule):
        return row.proportional and type(rule) in (Epsilon, Gamma, AlphaBeta, ZPlus) and not rule.spreads
    if isinstance(rule, Addition):
        return row.proportional and rule.how == "proportional"
    if isinstance(rule, MaxPool):
        return (
            rule.how in ("winner", "split") and node.operation.startswith(_MAXIMA) and Ref(node.name) in zero
        )
    moves = row.kind == "selection" and type(rule) is Pass
    return (moves or _is_relu(node, rule)) and Ref(node.name) in zero


def _moves(node: Node, found: set[Ref]) -> bool:
    return OPS[node.operation].kind == "selection" and Ref(node.name) in found


def _is_relu(node: Node, rule: Rule) -> bool:
    if type(rule) is not Pass:
        return False
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min", node.kwargs.get("min_val"))
    return node.operation.startswith(_RELUS) or (node.operation.startswith(_CLAMPS) and low == 0)
