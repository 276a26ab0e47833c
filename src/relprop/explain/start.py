"""The forward pass, and the relevance of the outputs that starts a walk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.engine import audit as accounts
from relprop.engine.batch import batch_size
from relprop.engine.graph import Meta, Ref, map_output, meta_of, value_of
from relprop.engine.ops import KINDS
from relprop.engine.plan import Composite
from relprop.engine.propagate import HALF, Program, Segments, record, walk
from relprop.errors import CaptureError, InvalidInput
from relprop.explain.captured import Captured, leaves_alone, leaves_of, weights_by_node
from relprop.explain.explainer import Explainer
from relprop.explain.finite import check_output
from relprop.explain.images import with_channels_last
from relprop.targets import Score, Target, main_output, sum_of_sample, weights_of


@dataclass(frozen=True, slots=True)
class Forward:
    """A forward pass and how to start a walk from it."""

    values: dict[str, Any]
    output: Any
    batch: int
    leaves: dict[str, Any]


def forward(
    explainer: Explainer,
    captured: Captured,
    program: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parts: Segments | None = None,
) -> Forward:
    """Run the graph on one batch and keep what the walk reads; with `parts` only what they read of each other."""
    keep_freed_memory()
    leaves = leaves_of(explainer.model, captured.graph, args, kwargs)
    leaves = with_channels_last(leaves, captured.images)
    captured.store.fresh(weights_by_node(captured.graph, leaves), captured.graph)
    only = None if parts is None else parts.kept
    values = record(program, leaves, captured.store, only=only, autocast=explainer.options.get("autocast"))

    output = map_output(captured.graph.output, lambda ref: _in_order(value_of(values, ref)))
    return Forward(values, output, batch_size((args, kwargs)), leaves)


def _in_order(value: Any) -> Any:
    """An output as the model gives it: in the order of its dimensions in memory."""
    return value.contiguous() if isinstance(value, Tensor) else value


@cache
def keep_freed_memory() -> None:
    """Let the C library's allocator keep freed memory for the next tensor, where it would give it back to the system and
    ask for it again, page by page, at several times the cost of what is computed. glibc's thresholds for that follow the
    largest block that was ever freed, up to 32 MB: this one is of that size and never touched. Elsewhere nothing happens.
    """
    torch.empty(32 * 2**20 - 2**16, dtype=torch.uint8, device="cpu")


def start(
    explainer: Explainer, captured: Captured, passed: Forward, target: Target
) -> tuple[dict[Ref, Tensor], Tensor, Any, list[accounts.Entry]]:
    """The relevance of the model's outputs that starts the walk, the score, the resolved target, and the accounts so far."""
    if callable(target) and not isinstance(target, Tensor):
        return _start_callable(explainer, captured, passed, target)
    ref, output = main_output(captured.graph.output), main_output(passed.output)
    if not output.is_floating_point():
        raise InvalidInput(
            f"target: the output is of type {output.dtype}, not a real number\n"
            "  do: explain the scores before the model rounds or compares them"
        )
    meta = meta_of({ref.name: captured.graph[ref.name]}, ref)
    elsewhere = captured.graph.batched and meta is not None and 0 not in meta.batch
    if output.dim() == 0 or output.shape[0] != passed.batch or (elsewhere and passed.batch > 1):
        raise InvalidInput(
            f"target: the output has shape {tuple(output.shape)} for {passed.batch} samples\n  do: give a model whose output has the batch first"
        )
    _check(explainer, captured, passed, ref, output)
    weights, resolved = weights_of(target, output, passed.batch)
    if ref not in captured.facts.data:
        types = {
            node.meta.dtype
            for node in captured.graph.nodes
            if node.kind == "input" and isinstance(node.meta, Meta)
        }
        if not any(dtype.is_floating_point for dtype in types):
            raise InvalidInput(
                f"inputs: of type {', '.join(sorted(map(str, types)))}; whole numbers are explained where an embedding reads them as ids,"
                " and this model reads them otherwise\n"
                "  do: give real numbers, inputs.float(); read a table by F.embedding(ids, table); of a model that makes ids one-hot,"
                " explain the part behind, which takes F.one_hot(ids, classes).float()"
            )
        raise InvalidInput(
            "model: the output does not depend on the inputs through operations that carry relevance\n"
            "  do: check that model(inputs) changes with its inputs (rounding and comparisons carry nothing)"
        )
    seed = weights * output
    seed = seed.float() if seed.dtype in HALF else seed
    return {ref: seed}, sum_of_sample(seed), resolved, []


def _check(explainer: Explainer, captured: Captured, passed: Forward, ref: Ref, output: Tensor) -> None:
    check_output(explainer.model, captured, passed.leaves, ref, output, explainer.options.get("autocast"))


def _scorer_program(scorer: Explainer, args: tuple[Any, ...]) -> tuple[Captured, Program]:
    """The callable of a target, captured and found to give each sample what it gives it alone."""
    own = "where each sample has a target of its own, give classes or weights: target=[0, 2, 1]"
    try:
        scored, program = scorer.program(args, {})
    except (CaptureError, InvalidInput) as error:
        what = "fails on fewer samples" if isinstance(error, InvalidInput) else "cannot be captured"
        raise InvalidInput(
            f"target: the callable {what}: {str(error).splitlines()[0]}\n"
            f"  do: write it for any number of samples; {own}"
        ) from error
    alone = scored.graph.batched or args[0].shape[0] == 1
    if not alone or not leaves_alone(scorer.model, scored, args, {}):
        raise InvalidInput(
            "target: the callable means something else for a batch than for one sample (it goes by their number or places)\n"
            f"  do: write it for any number of samples; {own}"
        )
    return scored, program


def _start_callable(
    explainer: Explainer, captured: Captured, passed: Forward, target: Callable[[Any], Tensor]
) -> tuple[dict[Ref, Tensor], Tensor, Any, list[accounts.Entry]]:
    """A callable target is captured like a model and walked first."""
    leaves, spec = pytree.tree_flatten(passed.output)
    refs = pytree.tree_leaves(captured.graph.output, is_leaf=lambda leaf: isinstance(leaf, Ref))
    for place, leaf in zip(refs, leaves, strict=True):
        if isinstance(place, Ref) and isinstance(leaf, Tensor) and leaf.is_floating_point():
            _check(explainer, captured, passed, place, leaf)
    module = Score(target, spec)
    expected = module.score_of(leaves, passed.batch)
    kinds = [
        (where, rule) for where, rule in explainer.composite.rules if where == "weighted" or where in KINDS
    ]
    scorer = Explainer(module, Composite(kinds, explainer.composite.fold))
    args = (torch.empty(passed.batch), *leaves)
    scored, program = (
        _scorer_program(scorer, args) if captured.graph.batched else scorer.program_of_call(args)
    )
    result = forward(scorer, scored, program, args, {})
    score = result.output
    ref = main_output(scored.graph.output)
    if ref not in scored.facts.data:
        raise InvalidInput(
            "target: the callable's score does not depend on the model's output\n  do: compute it from the output"
        )
    if score.shape != expected.shape or not torch.allclose(score, expected, rtol=1e-3, atol=1e-5):
        raise InvalidInput(
            "target: the callable means something else for a batch than for one sample (it uses its size)\n"
            "  do: write it for any number of samples, or explain with batch_size=1"
        )
    seed = score.float() if score.dtype in HALF else score
    way = walk(program, result.values, {ref: seed}, scored.store, passed.batch, explainer.audit)
    origins = {node.name: int(node.origin) for node in scored.graph.nodes if node.kind == "input"}
    seeds: dict[Ref, Tensor] = {}
    for name, relevance in way.inputs.items():
        place = refs[origins[name] - 1]
        seeds[place] = seeds[place] + relevance if place in seeds else relevance
    return {r: s for r, s in seeds.items() if r in captured.facts.data}, seed, target, way.entries
