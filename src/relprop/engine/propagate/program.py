"""A graph with everything that the passes need to know of it, worked out once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from relprop.engine.analyse import Facts, values_of
from relprop.engine.graph import Graph, Meta, Node, Places, Ref, parents, places_of
from relprop.engine.ops import OPS, Operation
from relprop.engine.ops.elementwise import gate_source, is_complement
from relprop.engine.plan import Plan
from relprop.engine.propagate.rectified import rectified
from relprop.engine.rules import MaxPool, Rule


@dataclass(frozen=True, slots=True)
class Program:
    """A graph with everything that is worked out once: facts, plan, what to keep for the walk and what to free when."""

    graph: Graph
    facts: Facts
    plan: Plan
    rules: Mapping[str, Rule]
    kept: frozenset[Ref]  # values that the walk reads
    dead: Mapping[str, tuple[str, ...]]  # nodes whose values nothing reads after this node has run
    gates: frozenset[Ref]
    statistics: frozenset[tuple[Ref, Ref]]
    needs_output: frozenset[str]
    activated: frozenset[Ref] = frozenset()
    rectified: frozenset[Ref] = (
        frozenset()
    )  # relevance that starts at the outputs is 0 where these are not positive
    printed: Mapping[str, str] = field(default_factory=dict)  # the rules as accounts print them
    operations: Mapping[str, Operation] = field(default_factory=dict)  # the rows of the table
    settings: Mapping[str, dict[str, Any]] = field(
        default_factory=dict
    )  # what they work out once of their node alone
    reads: Mapping[str, tuple[Ref, ...]] = field(default_factory=dict)  # what each operation reads
    carried: frozenset[str] = frozenset()  # nodes with a value that carries relevance; none of whole numbers
    common: frozenset[Ref] = frozenset()  # of one sample, several walks read these without copies
    places: Mapping[str, Places] = field(default_factory=dict)  # of the values among the nodes' arguments


def prepare(graph: Graph, facts: Facts, plan: Plan, keep: Iterable[Ref] = ()) -> Program:
    """Work out what the passes need to know of a planned graph."""
    rules = {row.name: row.rule for row in plan if row.rule is not None}
    kept: set[Ref] = set(keep) | set(graph.outputs())
    needs_output: set[str] = set()
    for node in graph.nodes:
        if node.name not in rules:
            continue
        reads = OPS[node.operation].reads
        if reads in ("inputs", "both"):
            kept.update(parents(node))
        if reads in ("output", "both"):
            needs_output.add(node.name)
            kept.add(Ref(node.name))
    held = {ref.name for ref in kept}
    statistics = _statistics(graph, facts)
    read = {node.name: tuple(dict.fromkeys(parents(node))) for node in graph.nodes}
    return Program(
        graph,
        facts,
        plan,
        rules,
        frozenset(kept),
        read_last(graph.nodes, held),
        _gates(graph, facts, statistics),
        statistics,
        frozenset(needs_output),
        _activated(graph),
        rectified(graph, rules),
        {row.name: str(row.rule) for row in plan},
        {node.name: OPS[node.operation] for node in graph.nodes if node.operation in OPS},
        {name: {} for name in rules},
        read,
        frozenset(node.name for node in graph.nodes if _carries(node, facts)),
        _common(graph, rules, read),
        {node.name: places_of(node.args) for node in graph.nodes},
    )


def _carries(node: Node, facts: Facts) -> bool:
    """Whether a value of the node carries relevance. Rearranged token ids and masks do not count: they cost nothing to make again."""
    whole = isinstance(node.meta, Meta) and not (
        node.meta.dtype.is_floating_point or node.meta.dtype.is_complex
    )
    return not whole and any(ref in facts.data for ref in values_of(node))


_BROADCAST = ("linear", "convolution", "batch_norm", "addition", "activation", "product", "norm", "softmax")
"""Kinds of operations that read a value of one sample, seen as many, as they read any other."""


def _common(graph: Graph, rules: Mapping[str, Rule], reads: Mapping[str, tuple[Ref, ...]]) -> frozenset[Ref]:
    """The values that need no copies for several walks: nothing reads them in the walk that would look at their memory."""
    found: set[Ref] = set()
    barred: set[Ref] = set()
    for node in graph.nodes:
        row = OPS.get(node.operation)
        if row is None or node.name not in rules:
            continue
        winners = row.remembers is not None and isinstance(rules[node.name], MaxPool)
        place = found if row.kind in _BROADCAST or winners else barred
        if row.reads in ("inputs", "both"):
            place.update(reads[node.name])
        if row.reads in ("output", "both"):
            place.update(values_of(node))
    return frozenset(found - barred)


def read_last(nodes: Iterable[Node], held: Set[str]) -> dict[str, tuple[str, ...]]:
    """From the name of a node to those of the values that no later one reads, but for those that are held."""
    last: dict[str, str] = {}
    for node in nodes:
        last |= dict.fromkeys((node.name, *(ref.name for ref in parents(node))), node.name)
    dead: dict[str, list[str]] = {}
    for name, reader in last.items():
        if name not in held:
            dead.setdefault(reader, []).append(name)
    return {reader: tuple(names) for reader, names in dead.items()}


def _statistics(graph: Graph, facts: Facts) -> frozenset[tuple[Ref, Ref]]:
    """Pairs (s, x) of a product or quotient of s and x in which s is a statistic of x: a norm, a mean, a deviation."""
    nodes = {node.name: node for node in graph.nodes}
    found: set[tuple[Ref, Ref]] = set()
    for node in graph.nodes:
        row = OPS.get(node.operation)
        operands = [
            argument for argument in node.args[:2] if isinstance(argument, Ref) and argument in facts.data
        ]
        if row is None or row.kind != "product" or len(operands) < 2:
            continue
        for statistic, of in (operands, operands[::-1]):
            if _summarises(statistic, _origin(of, nodes), nodes, facts):
                found.add((statistic, of))
    return frozenset(found)


def _origin(ref: Ref, nodes: Mapping[str, Node]) -> Ref:
    """The value that a cast or a copy was made from."""
    while nodes[ref.name].operation.startswith(
        ("aten._to_copy", "aten.to.", "aten.clone", "aten.alias", "aten.contiguous")
    ):
        ref = parents(nodes[ref.name])[0]
    return ref


def _summarises(statistic: Ref, of: Ref, nodes: Mapping[str, Node], facts: Facts) -> bool:
    """Whether a value is computed from another by elementwise functions, constants and at least one reduction."""
    ref, reduced = statistic, False
    for _ in range(20):
        if _origin(ref, nodes) == of:
            return reduced
        node = nodes[ref.name]
        row = OPS.get(node.operation)
        own = parents(node)[:1] if node.operation.startswith(_LIKE) else parents(node)
        read = {parent for parent in own if parent in facts.data}
        if (
            row is None
            or len(read) != 1
            or row.kind not in ("activation", "selection", "pool", "addition", "product", "max")
        ):
            return False
        reduced = reduced or row.kind in ("pool", "max")
        ref = read.pop()
    return False


_LIKE = ("aten.expand_as.", "aten.view_as.", "aten.reshape_as.", "aten.type_as.", "aten.to.other")
"""Operations that give one value the form of another, of whose numbers nothing is read."""


def _gates(graph: Graph, facts: Facts, statistics: Set[tuple[Ref, Ref]]) -> frozenset[Ref]:
    """Values that are the output of a sigmoid or softmax, rearranged, selected, scaled by constants or divided by their
    own sum at most (the weights of a router), and one minus such."""
    found: set[Ref] = set()
    for node in graph.nodes:
        row = OPS.get(node.operation)
        if node.kind != "call" or row is None:
            continue
        read = list(parents(node))
        kept = row.kind == "selection" or is_complement(node) or node.operation.startswith(_KEEPS_GATES)
        if not kept and row.kind in ("product", "activation") and node.operation.startswith(_SCALES):
            rest = [ref for ref in read[1:] if ref in facts.data]
            kept = all((ref, read[0]) in statistics for ref in rest)
        if gate_source(node) or (kept and read and read[0] in found):
            found.update(values_of(node))
    return frozenset(found)


def _activated(graph: Graph) -> frozenset[Ref]:
    """Values that are the output of a function such as SiLU or GELU, rearranged at most."""
    found: set[Ref] = set()
    for node in graph.nodes:
        row = OPS.get(node.operation)
        read = list(parents(node))
        moved = row is not None and row.kind == "selection" and bool(read) and read[0] in found
        if node.operation.startswith(_ACTIVATIONS) or moved:
            found.update(values_of(node))
    return frozenset(found)


_ACTIVATIONS = tuple(
    f"aten.{name}."
    for name in [
        "silu",
        "gelu",
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "celu",
        "selu",
        "mish",
        "softplus",
        "tanh",
        "sigmoid",
        "hardsigmoid",
        "hardswish",
    ]
)
_KEEPS_GATES = ("aten.dropout.", "aten.topk.", "aten.sort.")
_SCALES = ("aten.mul.", "aten.div.")
