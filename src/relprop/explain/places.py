"""Where a module's outputs are in a captured graph."""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.engine.analyse import Facts, values_of
from relprop.engine.exported import path_of
from relprop.engine.graph import Graph, Ref, consumers, meta_of
from relprop.errors import InvalidInput
from relprop.explain.captured import Captured


def module_outputs(graph: Graph, facts: Facts) -> dict[str, list[Ref]]:
    """For each call of a module, the data values computed in it that are read outside it: its outputs."""
    readers = consumers(graph)
    calls = {node.name: frozenset(node.calls) for node in graph.nodes}
    found: dict[str, list[Ref]] = {}
    for node in graph.nodes:
        for ref in values_of(node):
            if node.kind != "call" or ref not in facts.data:
                continue
            for call in dict.fromkeys(node.calls):  # a folded operation names the modules around it twice
                if any(name == "output" or call not in calls[name] for name in readers.get(ref, ())):
                    found.setdefault(call, []).append(ref)
    return found


def places(captured: Captured, path: str) -> list[list[Ref]]:
    """The values that are the output of the module at a path, a list for each of its calls.

    "relu" means all calls of that module, "relu@0" the first alone, "relu@1" the second.
    """
    outputs = module_outputs(captured.graph, captured.facts)
    exact = path.removesuffix("@0")  # the first call is recorded by the module's path alone
    calls = [call for call in outputs if call == exact or ("@" not in path and path_of(call) == path)]
    if not calls:
        known = sorted({path_of(call) for call in outputs if call})
        near = [name for name in known if name.startswith(path.split(".")[0])] or known
        raise InvalidInput(
            f"at: no relevance at {path!r}: there is no such module, or it computes nothing of its own (an identity, an inactive dropout)\n"
            f"  do: one of {', '.join(near[:12])}{' …' if len(near) > 12 else ''}"
        )
    return [outputs[call] for call in calls]


def shape_of(captured: Captured, ref: Ref, batch: int) -> Tensor:
    """A tensor without values, of the shape and type that a value has for so many samples."""
    meta = meta_of({node.name: node for node in captured.graph.nodes}, ref)
    assert meta is not None
    sizes = (size * batch // 2 if d in meta.batch else size for d, size in enumerate(meta.shape))
    return torch.empty(*sizes, dtype=meta.dtype, device="meta")
