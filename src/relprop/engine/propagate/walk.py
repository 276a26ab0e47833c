"""The walk from the relevance of the outputs to that of the inputs, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.engine.analyse import values_of
from relprop.engine.graph import Node, Ref, filled, part_of, replace_refs
from relprop.engine.isolate import without_autocast
from relprop.engine.looks import come_to
from relprop.engine.ops.table import pass_on
from relprop.engine.propagate.book import Book, Mask, Walk
from relprop.engine.propagate.program import Program
from relprop.engine.propagate.record import memory_of
from relprop.engine.propagate.weights import Weights, stored
from relprop.engine.step import Journal, Shares, Step

_NOTHING_KEPT = Shares({})

HALF = (torch.float16, torch.bfloat16)


@without_autocast()
def walk(
    program: Program,
    values: dict[str, Any],
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

    With `release` the walk takes the values for itself, writes over what nothing reads any more and frees them as it passes:
    `values` is empty then. `masks` let a part of the
    relevance pass some values. `journal` is told the relevance of what the operations read from weights. The walk stops
    in front of the node `until`, and goes on from a walk that was stopped so (`onward`, which stays as it is).
    """
    result = Walk() if onward is None else onward.fork()
    book = Book(program, batch, audit, result.entries)
    relevance, sums = result.pending, result.sums
    result.from_outputs &= seeds.keys() <= set(program.graph.outputs())
    for ref, seed in seeds.items():
        _arrive(relevance, sums, ref, seed, book.sum(ref, seed))
    held = dict(values)
    outside: frozenset[int] | None = None  # memory that is not the walk's own to write over
    if release:
        values.clear()
        outside = frozenset(_places(held, program.graph.outputs()))
    nodes = program.graph.nodes
    while result.position < len(nodes):
        node = nodes[-1 - result.position]
        if node.name == until:
            break
        result.position += 1
        if node.kind in ("weight", "constant") and Ref(node.name) not in relevance:
            continue
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
            operation = program.operations[node.name]
            if operation.propagate is pass_on:
                pairs, shares = [(node.args[0], arrived)], _NOTHING_KEPT
            else:
                rectified = result.from_outputs and Ref(node.name) in program.rectified
                step = step_of(program, node, held, store, batch, journal, rectified)
                if outside is not None and journal is None and isinstance(step.output, Tensor):
                    step.spare = _place(step.output) not in outside
                come_to(node.name)
                shares = operation.propagate(step, arrived)
                pairs = pairs_of(node, shares)
            passed = []
            for ref, share in pairs:
                amount = book.handed(node, ref, share, arrived, sums)
                passed.append(amount)
                _arrive(relevance, sums, ref, share, amount)
            book.enter(node, arrived, shares, passed, sums)
        if release:
            held.pop(node.name, None)
            held.pop(memory_of(node), None)
    return result


def _places(values: Mapping[str, Any], refs: Iterable[Ref]) -> Iterator[int]:
    """Where the memory of values lies."""
    for ref in refs:
        held = part_of(values, ref)
        if isinstance(held, Tensor):
            yield _place(held)


def _place(value: Tensor) -> int:
    return stored(value).untyped_storage().data_ptr()


def _mask(node: Node, masks: Mapping[Ref, Mask], way: Walk, book: Book) -> None:
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


def pairs_of(node: Node, shares: Shares) -> list[tuple[Ref, Tensor]]:
    """Each share with the value it goes to."""
    pairs: list[tuple[Ref, Tensor]] = []
    for position, share in shares.arguments.items():
        pairs += _matched(node.kwargs[position] if isinstance(position, str) else node.args[position], share)
    return pairs


def _matched(argument: Any, share: Any) -> Iterator[tuple[Ref, Tensor]]:
    """The values of an argument with their shares. No function within a function, which would refer to itself and keep the
    shares alive until the garbage collector comes by."""
    if isinstance(argument, Ref):
        if share is not None:
            yield argument, share
    elif isinstance(argument, (list, tuple)):
        for item, part in zip(argument, share, strict=True):
            yield from _matched(item, part)


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in HALF


def _in_full(value: Tensor) -> Tensor:
    return value.float() if _is_half(value) else value


def step_of(
    program: Program,
    node: Node,
    values: Mapping[str, Any],
    store: Weights,
    batch: int,
    journal: Journal | None = None,
    rectified: bool = False,
) -> Step:
    """The operation as its relevance function sees it. Half precision is computed anew in float32 from its inputs.

    `rectified`: the relevance that it gets is 0 wherever its output is not positive.
    """
    facts = program.facts
    args = filled(node.args, program.places[node.name], values)
    kwargs = replace_refs(node.kwargs, lambda ref: part_of(values, ref)) if node.kwargs else {}
    output = values.get(node.name) if node.name in program.needs_output else None
    nested = bool(kwargs) or program.places[node.name] is None
    leaves = pytree.tree_leaves((args, kwargs)) if nested else args
    half = any(_is_half(value) for value in leaves)
    if half:
        args, kwargs = pytree.tree_map_only(Tensor, _in_full, (args, kwargs))
    half |= _is_half(output)  # its inputs are not, under autocast
    if half and output is not None:
        function = node.function
        assert function is not None
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
        settings=program.settings[node.name],
        memory=values.get(memory_of(node)),
        journal=journal,
        activated=program.activated.__contains__,
        rectified=rectified and not half,
    )
