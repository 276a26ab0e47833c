"""One forward pass for several walks at a time: its values repeated as if each sample had been given several times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor

from relprop.engine.analyse import values_of
from relprop.engine.graph import Meta, Node, Ref, replace_refs, value_of
from relprop.engine.propagate import Program
from relprop.engine.step import Layout
from relprop.explain.captured import Captured
from relprop.explain.explainer import Part
from relprop.explain.places import shape_of
from relprop.explain.seen import as_before, samples_first
from relprop.explain.start import Forward


def repeated(
    part: Part, passed: Forward, count: int, way: Iterable[Node] | None = None
) -> dict[str, Any] | None:
    """The values of a forward pass over all samples `count` times over (sample b of round k is number k·B + b).

    `way`: the operations that walks come by which are to read them; all by default. What is computed
    from data is copied, and of one sample, where its readers do not mind, only seen as many; what is not (sizes, masks,
    positions) is computed anew. None where that
    does not give all that the walk reads: then a forward pass over repeated inputs does.
    """
    captured, program = part[:2]
    leaves, shared = passed.leaves, program.common if passed.batch == 1 else frozenset[Ref]()
    if not captured.graph.batched:
        return None
    way = tuple(captured.graph.nodes if way is None else way)
    new: dict[str, Any] = {}
    read = _read(captured, program, way)
    for node in captured.graph.nodes:
        if node.name not in read:
            continue
        try:
            if node.kind in ("weight", "constant"):
                new[node.name] = leaves[node.name]
            elif captured.facts.lasts(node.name):
                new[node.name] = captured.store.get((Ref(node.name), "value"), partial(_run, node, new))
            elif node.kind == "input":
                ref = Ref(node.name)
                layout = _layout(captured, node, ref)
                new[node.name] = _times(leaves[node.name], layout, passed.batch, count, ref in shared)
            elif node.name in program.carried:
                _copy(captured, node, passed, count, new, shared)
            else:
                new[node.name] = _anew(captured, node, passed.batch * count, new)
        except _Unknown:
            if node.name in passed.values or f"{node.name} memory" in passed.values:
                return None
    return new


def _read(captured: Captured, program: Program, way: Sequence[Node]) -> set[str]:
    """The names of the values that an operation on the way reads or has made, and of what these are computed anew from."""
    read = {name for node in way for name in (node.name, *(ref.name for ref in program.reads[node.name]))}
    for node in reversed(captured.graph.nodes):
        if node.name in read and node.kind == "call" and node.name not in program.carried:
            read.update(ref.name for ref in program.reads[node.name])
    return read


class _Unknown(Exception):
    """A value whose repetition cannot be told."""


def _part(values: dict[str, Any], ref: Ref) -> Any:
    if ref.name not in values:
        raise _Unknown
    return value_of(values, ref)


def _copy(
    captured: Captured, node: Node, passed: Forward, count: int, new: dict[str, Any], shared: Set[Ref]
) -> None:
    """The value of a node, and what it remembers, with the samples repeated."""
    if node.name in passed.values:
        held = passed.values[node.name]
        if isinstance(node.meta, tuple):
            refs = values_of(node)
            new[node.name] = type(held)(
                _times(value, _layout(captured, node, ref), passed.batch, count, ref in shared)
                for ref, value in zip(refs, held, strict=True)
            )
        else:
            ref = Ref(node.name)
            new[node.name] = _times(held, _layout(captured, node, ref), passed.batch, count, ref in shared)
    memory = f"{node.name} memory"
    if memory in passed.values:
        ref = values_of(node)[0]
        kept = passed.values[memory]
        if not isinstance(kept, Tensor) or kept.shape != shape_of(captured, ref, passed.batch).shape:
            raise _Unknown
        new[memory] = _times(kept, _layout(captured, node, ref), passed.batch, count, True)


def _times(value: Any, layout: Layout | None, batch: int, count: int, shared: bool) -> Any:
    """`times`, of one sample without a copy where its many readers may share its memory."""
    if shared and layout == Layout(0, 1) and batch == 1 and isinstance(value, Tensor) and len(value) == 1:
        return value.expand(count, *value.shape[1:])
    return times(value, layout, batch, count)


def _layout(captured: Captured, node: Node, ref: Ref) -> Layout | None:
    """Where the samples of a value lie; None where it has none."""
    known = captured.facts.layout.get(ref)
    meta = node.meta[ref.index or 0] if isinstance(node.meta, tuple) else node.meta
    if known is not None or not isinstance(meta, Meta) or not meta.batch:
        return known
    if len(meta.batch) == 1 and meta.shape[meta.batch[0]] == 2:
        return Layout(meta.batch[0], 1)
    raise _Unknown


def times(value: Any, layout: Layout | None, batch: int, count: int) -> Any:
    """A value with its samples `count` times over; as it is where it has none."""
    if layout is None or not isinstance(value, Tensor):
        return value
    seen = samples_first(value, layout, batch)
    size = list(value.shape)
    size[layout.dimension] *= count
    like = torch.empty(size, device="meta")
    made = as_before(seen.repeat(count, *[1] * (seen.dim() - 1)), like, layout, batch * count)
    # in memory like the original: a view that the graph makes of it must be possible
    order = sorted(range(made.dim()), key=value.stride, reverse=True)
    return made.permute(order).contiguous().permute([order.index(d) for d in range(made.dim())])


def _anew(captured: Captured, node: Node, batch: int, new: dict[str, Any]) -> Any:
    """A value that is no data, for so many samples."""
    if "sym_size" in node.operation:
        source = node.args[0]
        return shape_of(captured, source, batch).shape[node.args[1]]
    return _run(node, new)


def _run(node: Node, values: dict[str, Any]) -> Any:
    """What a node computes of values."""
    assert node.function is not None
    args, kwargs = (replace_refs(given, lambda ref: _part(values, ref)) for given in (node.args, node.kwargs))
    with torch.no_grad():
        return node.function(*args, **kwargs)
