"""The forward pass: it keeps the values that the walk will read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from relprop.engine.graph import Node, Ref, replace_refs, value_of
from relprop.engine.ops import OPS
from relprop.engine.propagate.program import Program
from relprop.engine.propagate.weights import Weights


def record(program: Program, leaves: Mapping[str, Any], store: Weights) -> dict[str, Any]:
    """Run the graph forward; the result holds the values of inputs, of the outputs and of all that the walk reads.

    `leaves`: the values of inputs, weights and constants by node name.
    """
    values: dict[str, Any] = dict(leaves)
    facts = program.facts

    def value(ref: Ref) -> Any:
        return value_of(values, ref)

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
                    values[node.name], values[memory_of(node)] = run()
                else:
                    values[node.name] = run()
            for name in program.dead.get(node.name, ()):
                del values[name]
    return values


def memory_of(node: Node) -> str:
    """Under which name the values hold what an operation remembers; no node is called so."""
    return f"{node.name} memory"
