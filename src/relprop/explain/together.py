"""Several walks over one forward pass, made together: as one walk whose batch holds each sample once for every walk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relprop.engine.audit import Entry
from relprop.engine.graph import Ref
from relprop.engine.propagate import Mask, Walk, walk
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

LARGEST = 24 * 2**20
"""How many bytes the largest value of such walks may take on a CPU: the C library's allocator gives blocks of 32 MB and more back
at once and fetches them anew, page by page, which costs more than what is computed in them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One of the walks: the relevance that starts it, and what may pass where."""

    seeds: Mapping[Ref, Tensor]
    masks: Mapping[Ref, Mask] = field(default_factory=dict)


def walks(
    explainer: Explainer, part: Part, passed: Forward, wanted: Sequence[Wanted], trunk: Walk | None = None
) -> list[Walk]:
    """All walks, each from its own seeds, or on from the `trunk` that they share; in the order given."""
    results: list[Walk] = []
    alone = any(mask.alone for one in wanted for mask in one.masks.values())
    few = SHARED if passed.batch == 1 else SAMPLES
    at_once = 1 if alone else max(1, few.get(_device(passed), 1) // passed.batch)
    if passed.batch == 1 and at_once > 1 and _device(passed) == "cpu":
        at_once = max(2, min(at_once, LARGEST // _largest(part[0])))
    at_once = -(-len(wanted) // -(-len(wanted) // at_once))  # as many in every round
    position = 0 if trunk is None else trunk.position
    for chosen, values in rounds(explainer, part, passed, len(wanted), at_once, position):
        some = [wanted[i] for i in chosen]
        if len(some) > 1:
            results += _together(explainer, part, passed, values, some, trunk)
            continue
        results.append(
            walk(
                part[1], passed.values, some[0].seeds, part[0].store, passed.batch, explainer.audit,
                masks=some[0].masks, onward=trunk,
            )
        )  # fmt: skip
    return results


def _device(passed: Forward) -> str:
    return next(v.device.type for v in passed.values.values() if isinstance(v, Tensor))


def _largest(captured: Captured) -> int:
    """The bytes of the largest value of one sample."""
    metas = (
        meta for node in captured.graph.nodes if node.kind == "call" for meta in node.metas if meta.batch
    )
    return max((meta.numel // 2 * meta.dtype.itemsize for meta in metas), default=1) or 1


def rounds(
    explainer: Explainer, part: Part, passed: Forward, count: int, at_once: int, position: int = 0
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """The numbers below `count` in groups, each with the values of a forward pass for so many walks at once, which have
    passed `position` nodes already."""
    captured, _, args, kwargs, _ = part
    many = max(1, min(at_once, count, fitting(captured.graph, (args, kwargs)) // passed.batch))
    size, copy = 1, passed.values
    for first in range(0, count, many):
        chosen = list(range(first, min(first + many, count)))
        if len(chosen) != size:
            made = (
                passed.values
                if len(chosen) == 1
                else repeated(part, explainer.model, passed, len(chosen), position)
            )
            if made is None:
                yield from (([i], passed.values) for i in range(first, count))
                return
            size, copy = len(chosen), made
        yield chosen, copy


def _together(
    explainer: Explainer,
    part: Part,
    passed: Forward,
    values: dict[str, Any],
    wanted: list[Wanted],
    trunk: Walk | None,
) -> list[Walk]:
    captured, program = part[:2]
    batch, count, layouts = passed.batch, len(wanted), captured.facts.layout
    seeds: dict[Ref, Tensor] = {}
    for ref in dict.fromkeys(ref for one in wanted for ref in one.seeds):
        like = next(one.seeds[ref] for one in wanted if ref in one.seeds)
        pieces = [one.seeds.get(ref, torch.zeros_like(like)) for one in wanted]
        seeds[ref] = joined(pieces, layouts.get(ref), [batch] * count)
    masks: dict[Ref, Mask] = {}
    for ref in dict.fromkeys(ref for one in wanted for ref in one.masks):
        every = torch.ones(shape_of(captured, ref, batch).shape)
        keeps = [one.masks[ref].keep if ref in one.masks else every for one in wanted]
        masks[ref] = Mask(joined(keeps, layouts.get(ref), [batch] * count), "")
    onward = None
    if trunk is not None:
        onward = trunk.fork()
        onward.entries = []
        onward.pending = {ref: times(r, layouts.get(ref), batch, count) for ref, r in trunk.pending.items()}
        onward.sums = {ref: amount.repeat(count) for ref, amount in trunk.sums.items()}
    way = walk(
        program, values, seeds, captured.store, batch * count, explainer.audit, masks=masks, onward=onward
    )
    before = [] if trunk is None else trunk.entries
    return [
        Walk(
            inputs={name: _of(r, layouts.get(Ref(name)), k, batch, count) for name, r in way.inputs.items()},
            entries=[*before, *_entries(way.entries, one, slice(k * batch, (k + 1) * batch))],
            passed=None if way.passed is None else way.passed[k * batch : (k + 1) * batch],
            masked={ref for ref in way.masked if ref in one.masks},
        )
        for k, one in enumerate(wanted)
    ]


def _of(relevance: Tensor, layout: Layout | None, k: int, batch: int, count: int) -> Tensor:
    """The part of the relevance of an input that belongs to the k-th walk."""
    if layout is None or layout == Layout(0, 1):
        return relevance[k * batch : (k + 1) * batch].clone()
    seen = samples_first(relevance, layout, batch * count)[k * batch : (k + 1) * batch]
    shape = list(relevance.shape)
    shape[layout.dimension] //= count
    return as_before(seen, torch.empty(shape, device="meta"), layout, batch).clone()


def _entries(entries: list[Entry], one: Wanted, own: slice) -> Iterator[Entry]:
    """The accounts of one of the walks."""
    names = {ref.name: mask.where for ref, mask in one.masks.items()}
    for entry in entries:
        if entry.operation == "condition" and entry.name not in names:
            continue
        yield dataclasses.replace(
            entry,
            rule=names[entry.name] if entry.operation == "condition" else entry.rule,
            received=entry.received[own],
            passed=entry.passed[own],
            absorbed={reason: amount[own] for reason, amount in entry.absorbed.items()},
            magnitude=None if entry.magnitude is None else entry.magnitude[own],
        )
