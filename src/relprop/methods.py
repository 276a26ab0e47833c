"""The methods of explanation: `METHODS` is the table from name to function; a new one is a function and a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.engine import audit as accounts
from relprop.engine.graph import Ref
from relprop.engine.propagate import HALF, Program, walk
from relprop.errors import InvalidInput
from relprop.explain import Captured, Explainer, forward, places, start
from relprop.explanation import Explanation
from relprop.targets import Target


@dataclass(frozen=True, slots=True)
class Method:
    """One row: what the method is, and its function of an explainer, the captured graph and one batch."""

    about: str
    run: Callable[
        [Explainer, Captured, Program, tuple[Any, ...], dict[str, Any], list[Target]], list[Explanation]
    ]


def lrp(
    explainer: Explainer,
    captured: Captured,
    program: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    targets: list[Target],
) -> list[Explanation]:
    """Layer-wise relevance propagation by the explainer's plan; one walk a target, one forward pass for all."""
    passed = forward(explainer, captured, program, args, kwargs)
    results = []
    for index, target in enumerate(targets):
        seeds, score, resolved, entries = start(explainer, captured, passed, target)
        last = index == len(targets) - 1
        way = walk(program, passed.values, seeds, captured.store, passed.batch, explainer.audit, release=last)
        audit = None
        if explainer.audit:
            reached = (
                torch.zeros(passed.batch, dtype=torch.float64, device=score.device)
                if way.passed is None
                else way.passed
            )
            audit = accounts.total([*entries, *way.entries], score.double(), reached, precision_of(captured))
            audit.check()
        results.append(
            Explanation(
                relevance_of(captured, way.inputs, args, kwargs),
                passed.output,
                resolved,
                score,
                audit,
                (args, kwargs),
                program.plan,
                "lrp",
                _observer(explainer, captured, program, args, kwargs, target, score),
            )
        )
    return results


def precision_of(captured: Captured) -> torch.dtype:
    """The coarsest real type among the values that carry relevance."""
    order = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
    found = {
        meta.dtype
        for node in captured.graph.nodes
        for meta in (node.meta if isinstance(node.meta, tuple) else (node.meta,))
        if meta is not None and Ref(node.name) in captured.facts.data and meta.dtype in order
    }
    return min(found, key=order.index, default=torch.float32)


def relevance_of(
    captured: Captured, found: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The relevance of each input tensor in the form the inputs were given: a tensor, a tuple or a dict."""
    by_origin = {int(node.origin): node.name for node in captured.graph.nodes if node.kind == "input"}
    flat, spec = pytree.tree_flatten((args, kwargs))
    result: list[Any] = []
    for index, leaf in enumerate(flat):
        if not isinstance(leaf, Tensor):
            result.append(None)
            continue
        name = by_origin.get(index)
        missing = torch.zeros(
            leaf.shape,
            dtype=leaf.dtype if leaf.is_floating_point() and leaf.dtype not in HALF else torch.float32,
            device=leaf.device,
        )
        result.append(found.get(name, missing) if name is not None else missing)
    positional, named = pytree.tree_unflatten(result, spec)
    if named and not positional:
        return named
    if named:
        return (*positional, named)
    return positional[0] if len(positional) == 1 else positional


def _observer(
    explainer: Explainer,
    captured: Captured,
    program: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    target: Target,
    score: Tensor,
) -> Callable[[str], Any]:
    """Relevance inside the model, by another walk over the same inputs."""

    def at(path: str) -> Any:
        wanted = places(captured, path)
        passed = forward(explainer, captured, program, args, kwargs)
        seeds, again, _, _ = start(explainer, captured, passed, target)
        if not torch.equal(again, score):
            raise InvalidInput(
                "at: the model or its input has changed since this was explained\n  do: explain again, then ask for at(path)"
            )
        refs = frozenset(ref for refs in wanted for ref in refs)
        way = walk(program, passed.values, seeds, captured.store, passed.batch, False, refs, release=True)

        def value(ref: Ref) -> Tensor:
            found = way.observed.get(ref)
            if found is None:
                raise InvalidInput(f"at: no relevance reaches {path!r} for this target")
            return found

        calls = [tuple(value(ref) for ref in refs) for refs in wanted]
        flat = tuple(tensor for call in calls for tensor in call)
        return flat[0] if len(flat) == 1 else flat

    return at


METHODS: dict[str, Method] = {
    "lrp": Method("layer-wise relevance propagation (Bach et al. 2015), by the rules of a composite", lrp),
}


def methods() -> dict[str, str]:
    """The names of all methods, with one line on each."""
    return {name: method.about for name, method in METHODS.items()}
