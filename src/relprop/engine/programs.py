"""Programs saved by torch.export: read from a file, and turned into a graph for the inputs given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from relprop.engine.archive import refuse_code
from relprop.engine.batch import batch_size, has_batch
from relprop.engine.exported import first_line, graph_of
from relprop.engine.graph import Graph, Node
from relprop.engine.isolate import quietly
from relprop.errors import CaptureError, InvalidInput


def load_program(path: str | Path) -> ExportedProgram:
    """The exported program in a `.pt2` file. Raises `InvalidInput` where it cannot be read, or could run code."""
    file = Path(path)
    if not file.is_file():
        raise InvalidInput(
            f"model: no file {file}\n  do: give the path of a program saved by torch.export.save"
        )
    try:
        refuse_code(file)
        with quietly():
            import relprop.classical  # noqa: F401  # the operations of rewritten estimators

            return torch.export.load(file)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(
            f"model: {file} is not a readable torch.export program ({first_line(error)})\n"
            "  do: save the model again with torch.export.save(torch.export.export(model, …), file)"
        ) from error


def from_program(
    program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], free: bool = True
) -> Graph:
    """Capture an exported program for inputs like these, given in the order and under the names it was
    exported with.

    Raises `InvalidInput` where the inputs are not those of the program, `CaptureError` where its batch size
    is fixed.
    """
    leaves = pytree.tree_leaves((args, kwargs))
    origins = _arranged(program, args, kwargs)
    size = batch_size(leaves)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    specs = program.graph_signature.input_specs
    given = [values[spec.arg.name] for spec in specs if spec.kind.name == "USER_INPUT"]
    batched = [
        has_batch(leaves[origin], size) and isinstance(value, torch.Tensor) and _is_free(value)
        for origin, value in zip(origins, given, strict=True)
    ]
    graph = graph_of(program, batched)
    nodes = []
    for node in graph.nodes:
        if node.kind == "input":
            node = dataclasses.replace(node, origin=str(origins[int(node.origin)]))
            _check_shape(node, values[node.name], leaves[int(node.origin)], size, any(batched))
        nodes.append(node)
    places = {
        symbol: None if place is None else (origins[place[0]], place[1])
        for symbol, place in graph.free.items()
    }
    return dataclasses.replace(graph, nodes=tuple(nodes), free=places)


def _is_free(value: torch.Tensor) -> bool:
    return value.dim() > 0 and isinstance(value.shape[0], torch.SymInt)


def _arranged(program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """For each input of the program, in its order, the place of the given one."""
    flat, given = pytree.tree_flatten((args, kwargs))
    spec = program.call_spec.in_spec
    positional, named = pytree.tree_unflatten(list(range(len(flat))), given)
    expected = pytree.tree_unflatten([0] * spec.num_leaves, spec)
    if set(named) == set(expected[1]):
        places, found = pytree.tree_flatten((positional, {name: named[name] for name in expected[1]}))
        if found == spec:
            return places
    names = [f"{len(expected[0])} positional"] * bool(expected[0]) + [f"{name}=" for name in expected[1]]
    raise InvalidInput(
        f"inputs: the exported program does not take these arguments\n  do: give it {', '.join(names)}"
        " in the form it was exported with: a tuple for positional arguments, a dict for keywords"
    )


def _check_shape(node: Node, value: torch.Tensor, given: Any, batch: int, batched: bool) -> None:
    shape = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
    wrong = f"inputs: the exported program takes {node.meta} for {node.name}, given is {shape}\n  do: give such inputs"
    if not isinstance(given, torch.Tensor) or given.dim() != value.dim():
        raise InvalidInput(wrong)
    for dimension, (size, own) in enumerate(zip(value.shape, given.shape, strict=True)):
        if isinstance(size, torch.SymInt):
            continue
        if dimension == 0 and own == batch and not batched:
            if size != 1:  # a program for one sample is walked sample by sample
                raise CaptureError(f"the program was exported for a fixed batch of {size}{_DYNAMIC}")
        elif size != own:
            raise InvalidInput(wrong)


_DYNAMIC = (
    "\n  do: export it with a dynamic batch:"
    " torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))"
)
