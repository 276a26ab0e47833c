"""Outputs that the walk reads behind the ReLU that follows them: where that is zero, no relevance arrives.

Most rules hand relevance in proportion to the value that it goes to, so that none goes to a zero. Where a linear operation
or a sum is read by a ReLU alone, and all that reads the ReLU shares so, its relevance is zero wherever its output is not
positive, and where it is positive, the ReLU's output is the same number. The walk then needs no more than that one.
"""

from __future__ import annotations

from collections.abc import Mapping

from relprop.engine.analyse import Facts, values_of
from relprop.engine.graph import Graph, Node, Ref, consumers
from relprop.engine.ops import OPS
from relprop.engine.ops.elementwise.sums import addition
from relprop.engine.ops.linear.convolution import convolution
from relprop.engine.ops.linear.products import linear
from relprop.engine.ops.pool import average, max_pool
from relprop.engine.rules import Addition, AlphaBeta, Epsilon, Gamma, LinearRule, MaxPool, Rule, ZPlus

_MOVES = tuple(
    f"aten.{name}."
    for name in (
        "view",
        "reshape",
        "flatten",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "clone",
        "alias",
        "dropout",
        "cat",
    )
)
"""Operations whose output holds the values of their inputs, and hands each its relevance."""


def rectified(graph: Graph, facts: Facts, rules: Mapping[str, Rule]) -> dict[str, str]:
    """From the name of each operation whose relevance vanishes where it is not positive to that of the ReLU behind it."""
    nodes = {node.name: node for node in graph.nodes}
    readers = consumers(graph)
    for ref in graph.outputs():
        readers[ref] = [*readers[ref], ""]  # no node: what the graph returns may be given relevance by itself
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.operation != "aten.relu.default" or node.name not in rules:
            continue
        source = nodes[node.args[0].name]
        alone = node.args[0] == Ref(source.name) and readers[node.args[0]] == [node.name]
        if alone and _reads_rectified(source, facts, rules) and _vanishes(node, nodes, readers, facts, rules):
            found[source.name] = node.name
    return found


def _reads_rectified(node: Node, facts: Facts, rules: Mapping[str, Rule]) -> bool:
    """Whether the operation's rule makes the same of its output with zeros in place of what is not positive."""
    rule = rules.get(node.name)
    if rule is None or node.kind != "call":
        return False
    if OPS[node.operation].propagate is addition:
        proportional = isinstance(rule, Addition) and rule.how == "proportional"
        return proportional and rule.epsilon > 0  # type: ignore[attr-defined]
    if isinstance(rule, (Epsilon, Gamma)):
        plain = rule.bias == "absorb" and rule.stabiliser == "signed" and rule.epsilon > 1e-30
        return plain and _is_weighted(node, facts)
    return isinstance(rule, ZPlus) and not rule.spreads and _is_weighted(node, facts)


def _is_weighted(node: Node, facts: Facts) -> bool:
    """Whether it is a convolution or a linear operation of one tensor that is data."""
    data = [arg in facts.data for arg in (*node.args, *node.kwargs.values()) if isinstance(arg, Ref)]
    own = OPS[node.operation].propagate in (convolution, linear)
    return own and data[:1] == [True] and not any(data[1:])


def _vanishes(
    node: Node,
    nodes: Mapping[str, Node],
    readers: Mapping[Ref, list[str]],
    facts: Facts,
    rules: Mapping[str, Rule],
) -> bool:
    """Whether no relevance arrives where the node's output is zero."""
    if len(values_of(node)) != 1:
        return False
    names = [name for ref in (Ref(node.name), *values_of(node)) for name in readers.get(ref, [])]
    return all(name in nodes and _shares_by_size(nodes[name], nodes, readers, facts, rules) for name in names)


def _shares_by_size(
    node: Node,
    nodes: Mapping[str, Node],
    readers: Mapping[Ref, list[str]],
    facts: Facts,
    rules: Mapping[str, Rule],
) -> bool:
    """Whether an operation hands no relevance to a zero."""
    rule = rules.get(node.name)
    if rule is None:  # not on the way of relevance
        return not any(ref in facts.data for ref in values_of(node))
    row = OPS[node.operation]
    if row.propagate in (convolution, linear):
        shares = isinstance(rule, (Epsilon, Gamma, AlphaBeta, ZPlus)) and not rule.spreads
        return shares and _is_weighted(node, facts)
    if row.propagate is addition:
        return isinstance(rule, Epsilon) or (isinstance(rule, Addition) and rule.how == "proportional")
    if row.propagate is average:
        return isinstance(rule, Epsilon) and isinstance(rule, LinearRule) and not rule.spreads
    if row.propagate is max_pool:
        winner = isinstance(rule, MaxPool) and rule.how == "winner"
        return winner and _vanishes(node, nodes, readers, facts, rules)
    return node.operation.startswith(_MOVES) and _vanishes(node, nodes, readers, facts, rules)
