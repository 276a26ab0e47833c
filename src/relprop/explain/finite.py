"""Outputs that are NaN or infinite: refused, with the operation where that begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from relprop.engine.batch import samples, states_of
from relprop.engine.graph import Node, Ref, parents, value_of
from relprop.engine.isolate import quietly
from relprop.engine.step import all_finite
from relprop.errors import InvalidInput
from relprop.explain.captured import Captured, computed, forget, leaves_of
from relprop.explain.inputs import refuse_infinite_weights
from relprop.targets import main_output


def check_output(
    model: Any,
    captured: Captured,
    leaves: dict[str, Any],
    ref: Ref,
    output: Tensor,
    autocast: torch.dtype | None = None,
) -> None:
    """Raise `InvalidInput` where an output has NaN or infinity; it names the weight, or the operation, where they begin.

    leaves: the values of inputs, weights and constants that it was computed from; ref: where it is in the graph. Whether the
    graph is right, and whether samples leave each other alone, cannot be told by such numbers: a model that has not given
    others before is forgotten, and asked again at the next call.
    """
    if bool(all_finite(output)):
        captured.finite = True
        return
    if not captured.finite:
        forget(model)
    refuse_infinite_weights(model)
    raise InvalidInput(
        f"model: its output is NaN or infinite for these inputs{_beginning(captured, leaves, ref, autocast)}\n"
        "  do: look for a quotient by 0, a root or logarithm of a negative number, inputs of another scale; or use float64"
    )


def refuse_output(model: Any, captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """As `check_output`, of the model's main output for these inputs, computed for it: why samples seemed to mix."""
    graph = captured.graph
    if not graph.batched:
        args, kwargs = samples((args, kwargs), 1, states_of(model))
    leaves, ref = leaves_of(model, graph, args, kwargs), main_output(graph.output)
    with quietly():
        output = value_of(computed(captured, leaves), ref)
    check_output(model, captured, leaves, ref, output)


def _beginning(captured: Captured, leaves: dict[str, Any], ref: Ref, autocast: torch.dtype | None) -> str:
    """Where NaN or infinity that reaches an output begins, in words; the graph runs once more for it."""
    calls = {node.name: node for node in captured.graph.nodes if node.kind == "call"}
    with quietly():
        values = computed(captured, leaves, map(Ref, calls), autocast)

    def first(wrong: Callable[[Tensor], Tensor], refs: Iterable[Ref]) -> Node | None:
        """The call, on the way to one of these values, that gives what is wrong of values that are not."""
        node = None
        while ref := next(
            (one for one in refs if one.name in calls and _any(wrong, value_of(values, one))), None
        ):
            node = calls[ref.name]
            refs = parents(node)
        return node

    nan = first(torch.isnan, [ref])
    infinite = first(torch.isinf, [ref] if nan is None else parents(nan))
    begins = [
        f"{what} begins at {node.where()}, {node.operation}"
        for what, node in (("infinity", infinite), ("NaN", nan))
        if node is not None
    ]
    return f": {'; '.join(begins)}" if begins else ""


def _any(wrong: Callable[[Tensor], Tensor], value: Any) -> bool:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(one, Tensor) and bool(wrong(one).any()) for one in parts)
