"""Front ends: a model and an example become a `Graph`. `FRONTENDS` lists them; a new one is one function and
one row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from relprop.engine.batch import States, batch_axes, batch_size, has_batch, samples, states_of
from relprop.engine.exported import first_line
from relprop.engine.frontends import keras, onnx, torchscript
from relprop.engine.frontends.layers import respelled
from relprop.engine.graph import Graph, Meta, Node
from relprop.engine.modules import from_call, from_module
from relprop.engine.programs import from_program, load_program
from relprop.errors import CaptureError, InvalidInput, RelpropError

if TYPE_CHECKING:
    from relprop.engine.frontends.onnx.model import OnnxModel


def capture(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], again: bool = False, free: bool = False
) -> Graph:
    """The graph of `model` called with `args` and `kwargs` (only their shapes, types and devices matter).

    With `again` the model is known to need a concrete trace, and the values of the first sample matter. With `free`
    the lengths of sequences may be left free in it (`engine.sizes`).
    Raises `CaptureError` where no front end takes the model or the one that does cannot capture it.
    """
    for accepts, frontend in FRONTENDS:
        if accepts(model):
            graph = from_call(model, args, kwargs) if again else frontend(model, args, kwargs, free)
            return dataclasses.replace(graph, shared=_shared(graph, args, kwargs, states_of(model)))
    raise InvalidInput(
        f"model: {type(model).__name__} is not something relprop can read\n"
        "  do: give a torch.nn.Module, a fitted estimator, an exported program, a Keras model, or a file (.pt2, .onnx, .keras, .pt)"
    )


def _shared(graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any], states: States) -> frozenset[str]:
    """The inputs whose first size is not the number of samples: masks, grids, embeddings of all classes."""
    axes = batch_axes((args, kwargs), states)

    def counts(node: Node) -> bool:
        if graph.batched:
            return isinstance(node.meta, Meta) and bool(node.meta.batch)
        return axes[int(node.origin)] is not None

    return frozenset(node.name for node in graph.nodes if node.kind == "input" and not counts(node))


def from_onnx(model: OnnxModel, args: tuple[Any, ...], kwargs: dict[str, Any], free: bool = True) -> Graph:
    """Capture an ONNX file, once its outputs for one sample are found to be those that ONNX computes."""
    from relprop.engine.frontends.onnx.model import batch_of, check_inputs
    from relprop.engine.frontends.onnx.reference import compare

    size = batch_size((args, kwargs))
    check_inputs(model, args, kwargs, size)
    ordered, places = _ordered([value.name for value in model.inputs], args, kwargs)
    fixed = batch_of(model, [has_batch(leaf, size) for leaf in ordered])
    if fixed not in (None, 1):
        raise CaptureError(
            f"the ONNX file is for a fixed batch of {fixed}\n"
            "  do: export it with a dynamic batch: torch.onnx.export(…, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))"
        )
    one, named = samples((args, kwargs), 1)
    try:
        compare(model, one, named)
    except RelpropError:
        raise
    except Exception as error:
        raise CaptureError(first_line(error)) from error
    if batch_size(ordered) != size:  # the file's first input has no samples
        return from_call(model, args, kwargs)
    return _placed(from_module(model, ordered, {}, free, (2, 1) if fixed is None else (1,)), places)


def _ordered(
    names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], list[int]]:
    """All inputs by position, in the order of the names, and where each is among those given.

    torch.export cannot guard keywords of a module that takes any.
    """
    held = list(kwargs)
    places = [
        *range(len(args)),
        *(len(args) + held.index(name) for name in names[len(args) :] if name in kwargs),
    ]
    given = (*args, *kwargs.values())
    return tuple(given[place] for place in places), places


def _placed(graph: Graph, places: list[int]) -> Graph:
    """The graph with its inputs where they are among those given."""
    nodes = [
        dataclasses.replace(node, origin=str(places[int(node.origin)])) if node.kind == "input" else node
        for node in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=tuple(nodes))


def from_keras(
    model: keras.KerasModel, args: tuple[Any, ...], kwargs: dict[str, Any], free: bool = True
) -> Graph:
    """Capture a Keras model."""
    return keras.tidied(from_module(model, (*args, kwargs) if kwargs else args, {}, free), model)


def from_script(
    model: torchscript.ScriptModel, args: tuple[Any, ...], kwargs: dict[str, Any], free: bool = True
) -> Graph:
    """Capture a TorchScript module."""
    names = torchscript.names_of(model)
    if not kwargs or not set(kwargs) <= set(names[len(args) :]):
        return respelled(from_module(model, args, kwargs, free))
    ordered, places = _ordered(names, args, kwargs)
    return respelled(_placed(from_module(model, ordered, {}, free), places))


def from_file(path: str | Path, args: tuple[Any, ...], kwargs: dict[str, Any], free: bool = True) -> Graph:
    """Capture a program saved by `torch.export.save`."""
    return from_program(load_program(path), args, kwargs)


def load(path: str | Path) -> ExportedProgram | torch.nn.Module:
    """The model in a file: `FILES` says by its ending which one reads it. Raises `InvalidInput` for other files."""
    file = Path(path)
    read = FILES.get(file.suffix.lower())
    if read is None:
        raise InvalidInput(
            f"model: {file} is not a file that relprop reads\n  do: give one ending in {', '.join(FILES)}"
        )
    return read(file)


Frontend = Callable[[Any, tuple[Any, ...], dict[str, Any], bool], Graph]


FRONTENDS: list[tuple[Callable[[Any], bool], Frontend]] = [
    (lambda model: isinstance(model, ExportedProgram), from_program),
    (onnx.is_onnx, from_onnx),
    (lambda model: isinstance(model, keras.KerasModel), from_keras),
    (lambda model: isinstance(model, torchscript.ScriptModel), from_script),
    (lambda model: isinstance(model, torch.nn.Module), from_module),
    (lambda model: isinstance(model, (str, Path)) and str(model).endswith(".pt2"), from_file),
]


FILES: dict[str, Callable[[Path], ExportedProgram | torch.nn.Module]] = {
    ".pt2": load_program,
    ".onnx": onnx.load,
    ".keras": keras.load,
    ".pt": torchscript.load,
    ".pth": torchscript.load,
    ".ts": torchscript.load,
    ".torchscript": torchscript.load,
}
"""From the ending of a file's name to what reads a model from it."""
