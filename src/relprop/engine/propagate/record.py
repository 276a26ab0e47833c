"""The forward pass: it keeps the values that the walk will read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from relprop.engine.graph import Node, Ref, filled, replace_refs, value_of
from relprop.engine.isolate import without_autocast
from relprop.engine.propagate.program import Program, read_last
from relprop.engine.propagate.weights import Weights


def record(
    program: Program,
    leaves: Mapping[str, Any],
    store: Weights,
    *,
    nodes: slice = slice(None),
    only: Set[str] | None = None,
    autocast: torch.dtype | None = None,
) -> dict[str, Any]:
    """Run the graph forward; the result holds the values of inputs, of the outputs and of all that the walk reads.

    `leaves`: the values of inputs, weights and constants by node name. `nodes`: the part of the graph that is run, from
    values that `leaves` hold as well. `only`: of what is computed just these are kept. `autocast`: the type in which
    torch's autocast computes linear operations (None: as the caller has it); what depends on weights alone is computed in
    theirs.
    """
    values: dict[str, Any] = dict(leaves)
    facts = program.facts
    run_nodes = program.graph.nodes[nodes]
    dead = program.dead if only is None else read_last(run_nodes, only | leaves.keys())

    def value(ref: Ref) -> Any:
        return value_of(values, ref)

    device = next((v.device.type for v in leaves.values() if isinstance(v, torch.Tensor)), "cpu")
    with torch.no_grad(), _cast(device, autocast):
        for node in run_nodes:
            if node.kind == "call":
                function = node.function
                assert function is not None

                row = program.operations.get(node.name)
                remembers = row.remembers if row is not None and node.name in program.rules else None
                instead = remembers if row is None or remembers is not None else row.computes

                def run(node: Node = node, function: Callable[..., Any] = instead or function) -> Any:
                    named = replace_refs(node.kwargs, value) if node.kwargs else {}
                    return function(*filled(node.args, program.places[node.name], values), **named)

                if facts.lasts(node.name):
                    with without_autocast():
                        values[node.name] = store.get((Ref(node.name), "value"), run)
                elif remembers is not None:
                    values[node.name], values[memory_of(node)] = run()
                    if only is not None:
                        del values[memory_of(node)]
                else:
                    values[node.name] = run()
            for name in dead.get(node.name, ()):
                del values[name]
    return values


def _cast(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device, dtype, cache_enabled=False)


def memory_of(node: Node) -> str:
    """Under which name the values hold what an operation remembers; no node is called so."""
    return f"{node.name} memory"
