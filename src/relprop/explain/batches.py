"""Large batches in parts: how many samples fit, cutting inputs and targets, joining the explanations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.engine import audit as accounts
from relprop.engine.batch import States, batch_axes, map_samples
from relprop.engine.graph import Graph, meta_of
from relprop.errors import InvalidInput
from relprop.explain.captured import Captured
from relprop.explain.inputs import Inputs
from relprop.explanation import Explanation
from relprop.targets import Contrast, Target, main_output


def fitting(captured: Captured, inputs: Any) -> int:
    """How many samples fit half of the free memory, by the sizes of all values of the graph."""
    if captured.bytes_per_sample is None:
        calls = (node for node in captured.graph.nodes if node.kind == "call")
        # sizes are those of two samples: one for the value, one for its relevance
        captured.bytes_per_sample = sum(4 * meta.numel for node in calls for meta in node.metas if meta.batch)
    device = next(leaf.device for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    return max(1, int(free_memory(device) / 2 / max(1, captured.bytes_per_sample)))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8 * 1024**3


def slice_batch(structure: Any, batch: int, start: int, stop: int, states: States = frozenset()) -> Any:
    """The samples from start to stop of every tensor that has the batch first, and of recurrent layers' states."""
    if start == 0 and stop == batch:
        return structure

    axes = batch_axes(structure, states, batch)
    return map_samples(lambda leaf, axis: leaf.narrow(axis, start, stop - start), structure, axes)


def slice_target(target: Target, batch: int, start: int, stop: int, rank: int) -> Target:
    """The part of a target that belongs to the samples from start to stop; `rank`: the output's dimensions."""
    if start == 0 and stop == batch:
        return target
    if isinstance(target, Contrast):
        return Contrast(*(slice_target(side, batch, start, stop, rank) for side in (target.a, target.b)))
    if hasattr(target, "tolist") and not isinstance(target, Tensor):
        target = torch.as_tensor(target)
    if isinstance(target, Tensor) and target.is_floating_point() and target.dim() != rank:
        return target  # weights for all samples
    if isinstance(target, Tensor) and target.dim() and target.shape[0] == batch:
        return target[start:stop]
    if isinstance(target, list) and len(target) == batch:
        return target[start:stop]
    return target


def rank_of(graph: Graph) -> int:
    """The number of dimensions of the graph's first output."""
    nodes = {node.name: node for node in graph.nodes}
    metas = (meta_of(nodes, ref) for ref in graph.outputs())
    return next((len(meta.shape) for meta in metas if meta is not None), 0)


def sizes_of(graph: Graph) -> tuple[int, ...]:
    """The sizes of the explained output in the captured example; () where the model has no one main output."""
    try:
        meta = meta_of({node.name: node for node in graph.nodes}, main_output(graph.output))
    except InvalidInput:
        return ()
    return () if meta is None else meta.shape


def join(parts: list[Explanation], inputs: Inputs) -> Explanation:
    """One explanation of a batch from those of its parts, in their order."""
    first = parts[0]

    def cat(pieces: list[Any]) -> Any:
        return torch.cat(pieces) if isinstance(pieces[0], Tensor) and pieces[0].dim() else pieces[0]

    def merge(structures: list[Any]) -> Any:
        flat = [pytree.tree_flatten(structure) for structure in structures]
        return pytree.tree_unflatten(
            [cat(list(column)) for column in zip(*(f[0] for f in flat), strict=True)], flat[0][1]
        )

    if len(parts) == 1:
        relevance, output, target, score, audit = (
            first.relevance,
            first.output,
            first.target,
            first.score,
            first.audit,
        )
    else:
        relevance, output = (
            _of_inputs(merge([p.relevance for p in parts]), parts, inputs),
            merge([p.output for p in parts]),
        )
        target = _joined_target([p.target for p in parts], first.score)
        score = torch.cat([p.score for p in parts])
        audits = [p.audit for p in parts if p.audit is not None]
        audit = accounts.join(audits) if audits else None
    at = None if first._at is None else first._at.joined([p._at for p in parts if p._at is not None])
    errors = first.standard_error
    if errors is not None and len(parts) > 1:
        errors = _of_inputs(merge([p.standard_error for p in parts]), parts, inputs)
    return Explanation(
        relevance, output, target, score, audit, inputs, first.plan, first.method, at, standard_error=errors
    )


def _joined_target(targets: list[Any], score: Tensor) -> Any:
    """The resolved target of all samples; `score`: that of the first part."""
    first = targets[0]
    if isinstance(first, Contrast):
        sides = ([t.a for t in targets], [t.b for t in targets])
        return Contrast(*(_joined_target(side, score) for side in sides))
    if isinstance(first, list):
        return [one for part in targets for one in part]
    if isinstance(first, Tensor) and first.shape[:1] == score.shape:
        return torch.cat(targets)
    return first


def _of_inputs(relevance: Any, parts: list[Explanation], inputs: Inputs) -> Any:
    """The joined relevance, with that of an input which all samples share summed instead of set side by side."""
    given = iter(leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    columns = zip(*(pytree.tree_leaves(part.relevance) for part in parts), strict=True)
    joined, spec = pytree.tree_flatten(relevance)
    result: list[Any] = []
    for whole, pieces in zip(joined, columns, strict=True):
        if isinstance(whole, Tensor) and whole.shape != (shape := next(given).shape):
            turned = torch.cat(pieces, 1) if whole.dim() == 3 else whole  # states (layers, B, H)
            whole = turned if turned.shape == shape else torch.stack(pieces).sum(0)
        result.append(whole)
    return pytree.tree_unflatten(result, spec)
