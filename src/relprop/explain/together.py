"""Several walks over one forward pass, made together: as one walk whose batch holds each sample once for every walk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from relprop.engine.audit import Entry
from relprop.engine.graph import Ref
from relprop.engine.propagate import Mask, Program, Walk, walk
from relprop.engine.step import Layout
from relprop.explain.batches import fitting
from relprop.explain.captured import Captured
from relprop.explain.explainer import Explainer, Part
from relprop.explain.places import shape_of
from relprop.explain.repeated import repeated, times
from relprop.explain.seen import as_before, joined, samples_first
from relprop.explain.start import Forward

SAMPLES = {"cpu": 8, "cuda": 64}
"""How many samples a walk may have, by device, before it stops to pay to take another one in."""

SHARED = {"cpu": 16, "cuda": 64}
"""The same for walks of one sample, which share its values."""

ROOM = 12 * 2**20
"""How many bytes the values at one operation of walks that share a sample may take on a CPU: so many lie in its cache until they
are read again. Where values are larger, as they become towards an image, the walks part and go on in smaller groups."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One of the walks: the relevance that starts it, and what may pass where."""

    seeds: Mapping[Ref, Tensor]
    masks: Mapping[Ref, Mask] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Passed:
    """A forward pass, and how many walks may come by each of its operations together, in the order of a walk: fewer and fewer."""

    part: Part
    forward: Forward
    audit: bool
    at_once: tuple[int, ...]


def walks(
    explainer: Explainer, part: Part, passed: Forward, wanted: Sequence[Wanted], trunk: Walk | None = None
) -> list[Walk]:
    """All walks, each from its own seeds, or on from the `trunk` that they share; in the order given."""
    captured, program, args, kwargs, _ = part
    device = next(v.device.type for v in passed.values.values() if isinstance(v, Tensor))
    few = (SHARED if passed.batch == 1 else SAMPLES).get(device, 1)
    most = max(1, min(few, fitting(captured, (args, kwargs))) // passed.batch)
    if any(mask.alone for one in wanted for mask in one.masks.values()):
        most = 1
    room = ROOM if passed.batch == 1 and device == "cpu" else None
    at_once = _at_once(program, passed, most, room)
    way = _Passed(part, passed, explainer.audit, at_once)
    return [found for some in _groups(len(wanted), most) for found in _walked(way, wanted[some], trunk)]


def _at_once(program: Program, passed: Forward, most: int, room: int | None) -> tuple[int, ...]:
    """How many walks may come by each operation together."""
    found = []
    sizes = {name: _bytes(passed.values[name]) for name in program.carried & passed.values.keys()}
    for node in reversed(program.graph.nodes):
        if room is not None and node.kind == "call":
            largest = max(sizes.get(ref.name, 1) for ref in (Ref(node.name), *program.reads[node.name]))
            most = max(1, min(most, room // largest))
        found.append(most)
    return tuple(found)


def _bytes(held: Any) -> int:
    values = held if isinstance(held, (tuple, list)) else (held,)
    return max((value.nbytes for value in values if isinstance(value, Tensor)), default=0) or 1


def _groups(count: int, most: int) -> list[slice]:
    """The numbers below `count` in as few groups as can be, of about one size."""
    groups = -(-count // most)
    bounds = [count * i // groups for i in range(groups + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _walked(passed: _Passed, wanted: Sequence[Wanted], trunk: Walk | None) -> list[Walk]:
    """Walks that start together."""
    layouts, batch, count = passed.part[0].facts.layout, passed.forward.batch, len(wanted)
    onward = Walk() if trunk is None else trunk.fork()
    onward.entries = []
    onward.pending = {
        ref: times(relevance, layouts.get(ref), batch, count) for ref, relevance in onward.pending.items()
    }
    onward.inputs = {
        name: times(relevance, layouts.get(Ref(name)), batch, count)
        for name, relevance in onward.inputs.items()
    }
    onward.sums = {ref: amount.repeat(count) for ref, amount in onward.sums.items()}
    onward.passed = None if onward.passed is None else onward.passed.repeat(count)
    found = _onward(passed, wanted, onward, True)
    before = [] if trunk is None else trunk.entries
    for way, one in zip(found, wanted, strict=True):
        way.entries = [*before, *_entries(way.entries, one)]
        way.masked = {ref for ref in way.masked if ref in one.masks}
    return found


def _onward(passed: _Passed, wanted: Sequence[Wanted], onward: Walk, begin: bool) -> list[Walk]:
    """Walks that go on together, and part where values become too large for as many. `begin`: from their seeds."""
    (captured, program), forward, count = passed.part[:2], passed.forward, len(wanted)
    batch = forward.batch
    start, nodes = onward.position, captured.graph.nodes[::-1]
    stop = next((i for i in range(start, len(nodes)) if passed.at_once[i] < count), len(nodes))
    values: dict[str, Any] | None = forward.values
    if count > 1 and stop > start:
        values = repeated(passed.part, forward, count, nodes[start:stop])
    if values is None:  # there are none that so many walks could read
        alone = _parts(captured, onward, batch, [1] * count)
        return [_onward(passed, [one], own, begin)[0] for one, own in zip(wanted, alone, strict=True)]
    way = walk(
        program, values, _seeds(captured, wanted, batch) if begin else {}, captured.store, batch * count, passed.audit,
        masks=_masks(captured, wanted, batch), onward=onward, until=nodes[stop].name if stop < len(nodes) else None,
    )  # fmt: skip
    if count == 1:
        return [way]
    accounts = _accounts(way.entries, batch, count)
    way.entries = []
    groups = _groups(count, 1 if stop == len(nodes) else passed.at_once[stop])
    found = _parts(captured, way, batch, [some.stop - some.start for some in groups])
    del way, onward  # and with them the relevance of all
    if stop < len(nodes):
        found = [one for some in groups for one in _onward(passed, wanted[some], found.pop(0), False)]
    for one, own in zip(found, accounts, strict=True):
        one.entries = own + one.entries
    return found


def _seeds(captured: Captured, wanted: Sequence[Wanted], batch: int) -> dict[Ref, Tensor]:
    """The relevance that starts several walks."""
    seeds: dict[Ref, Tensor] = {}
    for ref in dict.fromkeys(ref for one in wanted for ref in one.seeds):
        like = next(one.seeds[ref] for one in wanted if ref in one.seeds)
        pieces = [one.seeds.get(ref, torch.zeros_like(like)) for one in wanted]
        seeds[ref] = joined(pieces, captured.facts.layout.get(ref), [batch] * len(wanted))
    return seeds


def _masks(captured: Captured, wanted: Sequence[Wanted], batch: int) -> dict[Ref, Mask]:
    """The masks of several walks as those of one; a walk's own as they are."""
    if len(wanted) == 1:
        return dict(wanted[0].masks)
    masks: dict[Ref, Mask] = {}
    for ref in dict.fromkeys(ref for one in wanted for ref in one.masks):
        every = torch.ones(shape_of(captured, ref, batch).shape)
        keeps = [one.masks[ref].keep if ref in one.masks else every for one in wanted]
        masks[ref] = Mask(joined(keeps, captured.facts.layout.get(ref), [batch] * len(wanted)), "")
    return masks


def _parts(captured: Captured, way: Walk, batch: int, counts: list[int]) -> list[Walk]:
    """A walk that is several together, parted into groups of so many; without its accounts."""
    samples, total = [batch * count for count in counts], batch * sum(counts)

    def rows(amount: Tensor) -> tuple[Tensor, ...]:
        return amount.split_with_sizes(samples)

    def of(name: Ref, relevance: Tensor) -> list[Tensor]:
        layout = captured.facts.layout.get(name)
        if layout is None or layout == Layout(0, 1):
            return list(relevance.split_with_sizes(samples))
        pieces = samples_first(relevance, layout, total).split_with_sizes(samples)
        found = []
        for piece, own in zip(pieces, samples, strict=True):
            shape = list(relevance.shape)
            shape[layout.dimension] = shape[layout.dimension] * own // total
            found.append(as_before(piece, torch.empty(shape, device="meta"), layout, own))
        return found

    parts = [
        Walk(masked=set(way.masked), position=way.position, from_outputs=way.from_outputs) for _ in counts
    ]
    for name, relevance in way.inputs.items():
        for part, own in zip(parts, of(Ref(name), relevance), strict=True):
            part.inputs[name] = own.clone()
    for ref, relevance in way.pending.items():
        for part, own in zip(parts, of(ref, relevance), strict=True):
            part.pending[ref] = own
    for ref, amount in way.sums.items():
        for part, own in zip(parts, rows(amount), strict=True):
            part.sums[ref] = own
    if way.passed is not None:
        for part, own in zip(parts, rows(way.passed), strict=True):
            part.passed = own
    return parts


def _accounts(entries: list[Entry], batch: int, count: int) -> list[list[Entry]]:
    """The accounts of several walks together as those of each."""
    samples = [batch] * count
    found: list[list[Entry]] = [[] for _ in samples]
    for entry in entries:
        received, passed = (amount.split_with_sizes(samples) for amount in (entry.received, entry.passed))
        absorbed = [(reason, amount.split_with_sizes(samples)) for reason, amount in entry.absorbed.items()]
        magnitude = None if entry.magnitude is None else entry.magnitude.split_with_sizes(samples)
        for k, own in enumerate(found):
            own.append(
                Entry(
                    entry.name, entry.operation, entry.module, entry.source, entry.rule, received[k], passed[k],
                    {reason: amounts[k] for reason, amounts in absorbed}, None if magnitude is None else magnitude[k],
                )
            )  # fmt: skip
    return found


def _entries(entries: list[Entry], one: Wanted) -> Iterator[Entry]:
    """The accounts of one of the walks: without those of the others' conditions."""
    names = {ref.name: mask.where for ref, mask in one.masks.items()}
    for entry in entries:
        if entry.operation != "condition":
            yield entry
        elif entry.name in names:
            yield dataclasses.replace(entry, rule=names[entry.name])


def rounds(
    explainer: Explainer, part: Part, passed: Forward, count: int, at_once: int
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """The numbers below `count` in groups, each with the values of a forward pass for so many walks at once."""
    captured, _, args, kwargs, _ = part
    many = max(1, min(at_once, count, fitting(captured, (args, kwargs)) // passed.batch))
    size, copy = 1, passed.values
    for first in range(0, count, many):
        chosen = list(range(first, min(first + many, count)))
        if len(chosen) != size:
            made = passed.values if len(chosen) == 1 else repeated(part, passed, len(chosen))
            if made is None:
                yield from (([i], passed.values) for i in range(first, count))
                return
            size, copy = len(chosen), made
        yield chosen, copy
