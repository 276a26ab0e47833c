"""The forward pass that records the values the walk will read, and the walk from the output's relevance to the inputs'."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from relprop.engine.analyse import Facts, values_of
from relprop.engine.audit import Entry
from relprop.engine.graph import Graph, Node, Ref, parents, replace_refs
from relprop.engine.ops import OPS
from relprop.engine.ops.elementwise import gate_source, is_complement
from relprop.engine.plan import Plan
from relprop.engine.rules import Rule
from relprop.engine.step import Journal, Shares, Step, sum_per_sample

HALF = (torch.float16, torch.bfloat16)


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
    last: dict[str, str] = {}
    for node in graph.nodes:
        last[node.name] = node.name
        for ref in parents(node):
            last[ref.name] = node.name
    dead: dict[str, list[str]] = {}
    for name, reader in last.items():
        if name not in held:
            dead.setdefault(reader, []).append(name)
    statistics = _statistics(graph, facts)
    return Program(
        graph,
        facts,
        plan,
        rules,
        frozenset(kept),
        {reader: tuple(names) for reader, names in dead.items()},
        _gates(graph, facts, statistics),
        statistics,
        frozenset(needs_output),
        _activated(graph),
    )


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
        ref = next(parents(nodes[ref.name]))
    return ref


def _summarises(statistic: Ref, of: Ref, nodes: Mapping[str, Node], facts: Facts) -> bool:
    """Whether a value is computed from another by elementwise functions, constants and at least one reduction."""
    ref, reduced = statistic, False
    for _ in range(20):
        if _origin(ref, nodes) == of:
            return reduced
        node = nodes[ref.name]
        row = OPS.get(node.operation)
        read = {parent for parent in parents(node) if parent in facts.data}
        if (
            row is None
            or len(read) != 1
            or row.kind not in ("activation", "selection", "pool", "addition", "product", "max")
        ):
            return False
        reduced = reduced or row.kind in ("pool", "max")
        ref = read.pop()
    return False


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


class Weights:
    """Values that depend on weights alone, computed once and kept for as long as the weights stay as they are.

    A change is noticed by the version counter, the place in memory and a checksum of every weight that something was
    derived from (writes through `.data` move no counter).
    """

    def __init__(self) -> None:
        self._values: dict[tuple[Ref, str], Any] = {}
        self._weights: Mapping[str, Tensor] = {}
        self._token: tuple[Any, ...] | None = None
        self._lock = threading.RLock()

    def fresh(self, weights: Mapping[str, Tensor]) -> None:
        """Forget everything where a weight has changed since it was derived."""
        with self._lock:
            if self._values and fingerprint(weights) != self._token:
                self._values.clear()
            self._weights = weights if not self._values else {}

    def get(self, key: tuple[Ref, str], make: Callable[[], Any]) -> Any:
        """The kept value, made on first use."""
        with self._lock:
            if key not in self._values:
                if not self._values:
                    self._token, self._weights = fingerprint(self._weights), {}
                self._values[key] = make()
            return self._values[key]


def fingerprint(weights: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """What tells one state of the weights from another: place, version, and a checksum that knows the order of rows."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for w in weights.values():
        groups.setdefault((w.dtype, w.device), []).append(_checksum(w))
    sums = [value for group in groups.values() for value in torch.stack(group).tolist()]
    marks = [
        (w.data_ptr(), None if w.is_inference() else w._version, w.shape, w.dtype) for w in weights.values()
    ]
    return (*marks, *sums)


def _checksum(weight: Tensor) -> Tensor:
    """Σ_k k Σ_j w_kj over the rows k of a weight."""
    if weight.dim() == 0 or not weight.is_floating_point():
        return weight.sum()
    rows = weight.reshape(weight.shape[0], -1).sum(1)
    return rows @ torch.arange(1, len(rows) + 1, dtype=rows.dtype, device=rows.device)


def record(program: Program, leaves: Mapping[str, Any], store: Weights) -> dict[str, Any]:
    """Run the graph forward; the result holds the values of inputs, of the outputs and of all that the walk reads.

    `leaves`: the values of inputs, weights and constants by node name.
    """
    values: dict[str, Any] = dict(leaves)
    facts = program.facts

    def value(ref: Ref) -> Any:
        held = values[ref.name]
        return held if ref.index is None else held[ref.index]

    with torch.no_grad():
        for node in program.graph.nodes:
            if node.kind == "call":
                function = node.function
                assert function is not None

                remembers = OPS[node.operation].remembers if node.name in program.rules else None

                def run(node: Node = node, function: Callable[..., Any] = remembers or function) -> Any:
                    return function(*replace_refs(node.args, value), **replace_refs(node.kwargs, value))

                if facts.lasts(node.name):
                    values[node.name] = store.get((Ref(node.name), "value"), run)
                elif remembers is not None:
                    values[node.name], values[_memory(node)] = run()
                else:
                    values[node.name] = run()
            for name in program.dead.get(node.name, ()):
                del values[name]
    return values


def _memory(node: Node) -> str:
    """Under which name the values hold what an operation remembers; no node is called so."""
    return f"{node.name} memory"


@dataclass(frozen=True, slots=True)
class Mask:
    """What may pass a value: the relevance that arrives there is multiplied by `keep`, which broadcasts to it.

    The rest goes to the account "masked" under the name `where`. With `alone` all relevance that does not pass this
    value goes to the account "parallel".
    """

    keep: Tensor
    where: str
    alone: bool = False


@dataclass(slots=True)
class Walk:
    """What a walk returns: relevance of the inputs and of the values asked for, and every operation's account.

    One that was stopped on the way also holds the relevance that has arrived and was not handed on (`pending`, its
    sums in `sums`), and how many nodes it has passed; another walk can go on from there.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    observed: dict[Ref, Tensor] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    passed: Tensor | None = None  # Σ relevance that reached the inputs, (B,)
    masked: set[Ref] = field(default_factory=set)  # the masked values that relevance has reached
    pending: dict[Ref, Tensor] = field(default_factory=dict)
    sums: dict[Ref, Tensor] = field(default_factory=dict)
    position: int = 0

    def fork(self) -> Walk:
        """A copy that can go on by itself."""
        return Walk(
            dict(self.inputs),
            dict(self.observed),
            list(self.entries),
            self.passed,
            set(self.masked),
            dict(self.pending),
            dict(self.sums),
            self.position,
        )


def walk(
    program: Program,
    values: Mapping[str, Any],
    seeds: Mapping[Ref, Tensor],
    store: Weights,
    batch: int,
    audit: bool = True,
    observe: frozenset[Ref] = frozenset(),
    release: bool = False,
    *,
    masks: Mapping[Ref, Mask] = MappingProxyType({}),
    journal: Journal | None = None,
    onward: Walk | None = None,
    until: str | None = None,
) -> Walk:
    """Propagate the relevance of the outputs (`seeds`) to the inputs, operation by operation, in reverse order.

    With `release` the values are freed as the walk passes (then they serve one walk only). `masks` let a part of the
    relevance pass some values. `journal` is told the relevance of what the operations read from weights. The walk stops
    in front of the node `until`, and goes on from a walk that was stopped so (`onward`, which stays as it is).
    """
    result = Walk() if onward is None else onward.fork()
    book = _Book(program, batch, audit, result.entries)
    relevance, sums = result.pending, result.sums
    for ref, seed in seeds.items():
        _arrive(relevance, sums, ref, seed, book.sum(ref, seed))
    held = dict(values)
    nodes = program.graph.nodes
    while result.position < len(nodes):
        node = nodes[-1 - result.position]
        if node.name == until:
            break
        result.position += 1
        if masks:
            _mask(node, masks, result, book)
        arrived = _collect(node, relevance, observe, result.observed)
        if arrived is not None and node.kind == "input":
            result.inputs[node.name] = arrived
            if audit:
                result.passed = (
                    sums[Ref(node.name)] if result.passed is None else result.passed + sums[Ref(node.name)]
                )
        elif arrived is not None:
            step = step_of(program, node, held, store, batch, journal)
            shares = OPS[node.operation].propagate(step, arrived)
            passed = []
            for ref, share in _pairs(node, shares):
                amount = book.handed(node, ref, share, arrived, sums)
                passed.append(amount)
                _arrive(relevance, sums, ref, share, amount)
            book.enter(node, arrived, shares, passed, sums)
        if release:
            held.pop(node.name, None)
            held.pop(_memory(node), None)
    return result


def _mask(node: Node, masks: Mapping[Ref, Mask], way: Walk, book: _Book) -> None:
    """Let pass what the masks of a node's values keep of the relevance that has arrived there."""
    for ref in values_of(node):
        mask = masks.get(ref)
        if mask is None or ref not in way.pending:
            continue
        arrived = way.pending[ref]
        keep = mask.keep.to(arrived.device, arrived.dtype)
        way.masked.add(ref)
        way.pending[ref] = arrived * keep
        bypassing = [other for other in way.pending if mask.alone and other != ref]
        book.mask(node, mask, ref, arrived * (1 - keep), way, bypassing)
        for other in bypassing:
            del way.pending[other]


def _arrive(
    relevance: dict[Ref, Tensor], sums: dict[Ref, Tensor], ref: Ref, share: Tensor, amount: Tensor | None
) -> None:
    relevance[ref] = relevance[ref] + share if ref in relevance else share
    if amount is not None:
        sums[ref] = sums[ref] + amount if ref in sums else amount


def _collect(
    node: Node, relevance: dict[Ref, Tensor], observe: frozenset[Ref], observed: dict[Ref, Tensor]
) -> Any:
    """The relevance that has arrived at a node: a tensor, or a list with one per part; None where there is none."""
    if isinstance(node.meta, tuple):
        parts = [relevance.pop(Ref(node.name, index), None) for index in range(len(node.meta))]
        for index, part in enumerate(parts):
            if part is not None and Ref(node.name, index) in observe:
                observed[Ref(node.name, index)] = part
        return parts if any(part is not None for part in parts) else None
    arrived = relevance.pop(Ref(node.name), None)
    if arrived is not None and Ref(node.name) in observe:
        observed[Ref(node.name)] = arrived
    return arrived


def _pairs(node: Node, shares: Shares) -> list[tuple[Ref, Tensor]]:
    """Each share with the value it goes to."""
    pairs: list[tuple[Ref, Tensor]] = []

    def match(argument: Any, share: Any) -> None:
        if isinstance(argument, Ref):
            if share is not None:
                pairs.append((argument, share))
        elif isinstance(argument, (list, tuple)):
            for item, part in zip(argument, share, strict=True):
                match(item, part)

    for position, share in shares.arguments.items():
        match(node.kwargs[position] if isinstance(position, str) else node.args[position], share)
    return pairs


def step_of(
    program: Program,
    node: Node,
    values: Mapping[str, Any],
    store: Weights,
    batch: int,
    journal: Journal | None = None,
) -> Step:
    """The operation as its relevance function sees it. Half precision is computed anew in float32 from its inputs."""
    half = False

    def value(ref: Ref) -> Any:
        nonlocal half
        held = values.get(ref.name)
        held = held if ref.index is None or held is None else held[ref.index]
        if isinstance(held, Tensor) and held.dtype in HALF:
            half = True
            return held.float()
        return held

    facts = program.facts
    args, kwargs = replace_refs(node.args, value), replace_refs(node.kwargs, value)
    output = values.get(node.name) if node.name in program.needs_output else None
    function = node.function
    assert function is not None
    if half and output is not None:
        with torch.no_grad():
            output = function(*args, **kwargs)

    def cached(ref: Ref, name: str, make: Callable[[], Any]) -> Any:
        return store.get((ref, name), make) if facts.lasts(ref.name) else make()

    return Step(
        node=node,
        args=args,
        kwargs=kwargs,
        output=output,
        rule=program.rules[node.name],
        batch=batch,
        is_data=facts.data.__contains__,
        is_nonnegative=facts.nonnegative.__contains__,
        layout_of=facts.layout.get,
        gates=program.gates.__contains__,
        statistics=lambda statistic, of: (statistic, of) in program.statistics,
        parameters=lambda ref: ref.name in facts.static,
        cached=cached,
        memory=values.get(_memory(node)),
        journal=journal,
        activated=program.activated.__contains__,
    )


class _Book:
    """Keeps the accounts of a walk; without an audit it does nothing."""

    def __init__(self, program: Program, batch: int, active: bool, entries: list[Entry]) -> None:
        self.program, self.batch, self.active, self.entries = program, batch, active, entries
        self.rows = {row.name: row for row in program.plan}

    def sum(self, ref: Ref, values: Tensor) -> Tensor | None:
        if not self.active:
            return None
        return sum_per_sample(values, self.program.facts.layout.get(ref), self.batch)

    def handed(
        self, node: Node, ref: Ref, share: Tensor, arrived: Any, sums: dict[Ref, Tensor]
    ) -> Tensor | None:
        """Σ of a share. Where it is the very tensor that arrived, or a view of it, its sum is known."""
        if not self.active:
            return None
        if isinstance(arrived, Tensor) and _same_values(share, arrived):
            return sums[Ref(node.name)]
        return self.sum(ref, share)

    def mask(self, node: Node, mask: Mask, ref: Ref, lost: Tensor, way: Walk, bypassing: list[Ref]) -> None:
        """Enter what a mask takes from the relevance that has arrived at a value, and what does not pass that value."""
        if not self.active:
            return
        absorbed = {"masked": _sure(self.sum(ref, lost))}
        received, passed = way.sums[ref], _sure(self.sum(ref, way.pending[ref]))
        if bypassing:
            absorbed["parallel"] = _total([way.sums[other] for other in bypassing])
            received = received + absorbed["parallel"]
        way.sums[ref] = passed
        self.entries.append(
            Entry(node.name, "condition", node.module, node.source, mask.where, received, passed, absorbed)
        )

    def enter(
        self, node: Node, arrived: Any, shares: Shares, passed: list[Tensor | None], sums: dict[Ref, Tensor]
    ) -> None:
        if not self.active:
            return
        row = self.rows[node.name]
        parts = arrived if isinstance(arrived, list) else [arrived]
        refs_of = (
            [Ref(node.name, i) for i in range(len(parts))] if isinstance(arrived, list) else [Ref(node.name)]
        )
        received = [sums[ref] for ref in refs_of if ref in sums]
        size = None
        if row.kind not in _KEEPING:
            sizes = [
                self.sum(ref, part.abs())
                for ref, part in zip(refs_of, parts, strict=True)
                if part is not None
            ]
            size = _total([s for s in sizes if s is not None])
            if shares.magnitude is not None:
                size = torch.maximum(size, shares.magnitude)
        zero = torch.zeros_like(received[0])
        self.entries.append(
            Entry(
                node.name,
                row.operation,
                row.module,
                row.source,
                str(row.rule),
                _total(received),
                _total([p for p in passed if p is not None]) if passed else zero,
                shares.absorbed,
                size,
            )
        )


def _sure(amount: Tensor | None) -> Tensor:
    assert amount is not None
    return amount


def _same_values(share: Tensor, arrived: Tensor) -> bool:
    """Whether both are the same numbers in the same memory."""
    return share is arrived or (
        share.data_ptr() == arrived.data_ptr()
        and share.numel() == arrived.numel()
        and share.is_contiguous()
        and arrived.is_contiguous()
    )


_KEEPING = ("activation", "selection", "norm")


def _total(parts: list[Tensor]) -> Tensor:
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result
