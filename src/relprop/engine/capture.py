"""Front ends: a model and an example become a `Graph`. `FRONTENDS` lists them; a new one is one function and
one row.

`torch.export` (non-strict, dynamic batch) captures a module without running it on data, so nothing of it can
depend on the values of one input. Where a model's control flow does, `tape.trace` records the operations of
one call instead.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from relprop.engine.analyse import analyse
from relprop.engine.archive import refuse_code
from relprop.engine.exported import first_line, graph_of
from relprop.engine.frontends import keras, onnx, torchscript
from relprop.engine.frontends.layers import respelled
from relprop.engine.graph import Graph, Meta, Node
from relprop.engine.isolate import LOCK, muted, quietly, run_isolated, untouched
from relprop.engine.ops import OPS
from relprop.engine.standins import StandIns
from relprop.engine.tape import place_of, tensors_of, trace
from relprop.errors import CaptureError, InvalidInput, RelpropError

if TYPE_CHECKING:
    from relprop.engine.frontends.onnx.model import OnnxModel

States = frozenset[tuple[int, int]]
"""Sizes of recurrent layers' states, (layers · directions, width)."""


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


def from_module(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    free: bool = True,
    counts: Sequence[int] = (2, 1),
) -> Graph:
    """Capture an eager module by torch.export: with a dynamic batch, else for one sample, else as a concrete
    trace."""
    check_module(model)
    reason = "it computes with a fixed batch size"
    free = free and any(map(_lengths, pytree.tree_leaves((args, kwargs))))
    for count, lengths in [(n, length) for n in counts for length in ((True, False) if free else (False,))]:
        try:
            graph = from_export(model, args, kwargs, count, lengths)
        except CaptureError as error:
            reason = str(error)
            continue
        mixes = count > 1 and _mixes(graph)
        if lengths and mixes:  # a length that is open can be taken for the batch
            continue
        if count == 1 or (graph.batched and not (mixes and _apart(model, args, kwargs))):
            return graph
    try:
        return from_call(model, args, kwargs)
    except CaptureError as error:
        raise CaptureError(
            f"the model {type(model).__name__} cannot be captured\n  torch.export: {reason}\n"
            f"  recording its operations: {error}"
        ) from error


def _mixes(graph: Graph) -> bool:
    """Whether values of several samples meet in the graph in a way that leaves none of them its own."""
    try:
        analyse(graph, OPS)
    except CaptureError:
        return True
    return False


def _apart(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether two samples get the outputs that each gets alone: then they can be explained one by one."""
    states = states_of(model)
    pair, axes = samples((args, kwargs), 2, states), batch_axes((args, kwargs), states)

    def alone(index: int) -> Any:
        given = map_samples(lambda leaf, axis: leaf.narrow(axis, index, 1).clone(), pair, axes)
        return pytree.tree_leaves(run_isolated(model, *given))

    try:
        both, first, second = pytree.tree_leaves(run_isolated(model, *pair)), alone(0), alone(1)
    except Exception:  # what fails is said where the model is captured
        return False
    compared = False
    for whole, *parts in zip(both, first, second, strict=False):
        if not (isinstance(whole, torch.Tensor) and whole.is_floating_point() and whole.dim()):
            continue
        if any(part.shape[:1] != (1,) for part in parts):  # the first dimension counts something else
            return False
        if whole.shape[0] == 2 and all(part.shape[1:] == whole.shape[1:] for part in parts):
            loose = 1e-2 if whole.dtype in (torch.float16, torch.bfloat16) else 1e-4
            scale = loose * max(1.0, float(whole.abs().max())) if whole.numel() else 0.0
            if not torch.allclose(whole, torch.cat(parts), rtol=loose, atol=scale, equal_nan=True):
                return False
            compared = True
    return compared


def without_cache(model: torch.nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords, and none of the keys and values that a language model would keep for its next call."""
    try:
        takes = "use_cache" in inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # a compiled function without a signature
        takes = False
    return kwargs | {"use_cache": False} if takes else kwargs


def from_export(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], count: int, free: bool = False
) -> Graph:
    """Capture a module by torch.export with two samples (a dynamic batch) or with one; with `free`, torch.export is
    asked which lengths of sequences it can leave open."""
    states = states_of(model)
    axes = batch_axes((args, kwargs), states)
    args, kwargs = samples((args, kwargs), count, states)
    kwargs = without_cache(model, kwargs)
    axes += [None] * (len(pytree.tree_leaves((args, kwargs))) - len(axes))
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for leaf, axis in zip(pytree.tree_leaves((args, kwargs)), axes, strict=True):
        open_ = {axis: Dim.AUTO} if axis is not None and count > 1 else {}
        open_ |= dict.fromkeys(_lengths(leaf) if free else (), Dim.AUTO)
        if open_:
            shapes[leaf] = open_
    with LOCK, quietly(), untouched(model), muted(), StandIns():
        try:
            program = torch.export.export(
                model, args, kwargs, dynamic_shapes=shapes if count > 1 or free else None, strict=False
            )
        except Exception as error:
            raise CaptureError(first_line(error)) from error
    return _live(graph_of(program, [axis == 0 for axis in axes]), model)


def _lengths(leaf: Any) -> range:
    """The dimensions of an input that may count steps or tokens: those after the first, but of pictures and videos."""
    sequence = isinstance(leaf, torch.Tensor) and leaf.dim() in (2, 3)
    return range(1, leaf.dim() if sequence else 0)


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


def from_call(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """Capture the operations of one call with the first sample: they hold for that sample."""
    args, kwargs = samples((args, kwargs), 1, states_of(model))
    return trace(model, args, without_cache(model, kwargs))


def _live(graph: Graph, model: torch.nn.Module) -> Graph:
    """Constants that are attributes of the model's modules become weights, so that they are read anew each
    time."""
    paths = {place_of(tensor): path for path, tensor in tensors_of(model)}
    nodes, constants = [], {}
    for node in graph.nodes:
        if node.kind == "constant":
            value = graph.constants[node.origin]
            path = paths.get(place_of(value))
            if path is None:
                constants[node.origin] = value
            else:
                node = dataclasses.replace(node, kind="weight", origin=path)
        nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes), constants=constants)


def unwrapped(model: Any) -> Any:
    """The model inside torch.compile, DataParallel and DistributedDataParallel, which computes the same; for a
    Keras model or TorchScript the module that stands for it."""
    if keras.is_keras(model):
        return keras.adapted(model)
    if torchscript.is_script(model):
        return torchscript.adapted(model)
    while True:
        if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
            model = model.module
        elif type(model).__name__ == "OptimizedModule":
            model = model._orig_mod
        else:
            return model


def check_module(model: torch.nn.Module) -> None:
    """Raise `InvalidInput` for a module that has no values to explain, or whose code is not Python's."""
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InvalidInput(
                f"model: its weight {path!r} is not initialised yet\n  do: call the model once on an example"
            )
        if tensor.is_meta:
            raise InvalidInput(
                f"model: its weight {path!r} is on the meta device and has no values\n"
                "  do: load the weights: model.to_empty(device='cpu'), then model.load_state_dict(…)"
            )


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
            return torch.export.load(file)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(
            f"model: {file} is not a readable torch.export program ({first_line(error)})\n"
            "  do: save the model again with torch.export.save(torch.export.export(model, …), file)"
        ) from error


def samples(structure: Any, count: int, states: States = frozenset()) -> Any:
    """The same inputs with `count` samples (the first ones, repeated where there are too few).

    `states`: recurrent layers' states, which have the samples in their second dimension (`states_of`).
    """
    size = batch_size(structure)

    def take(leaf: torch.Tensor, axis: int) -> torch.Tensor:
        leaf = leaf.detach()
        if size < count:
            leaf = torch.cat([leaf] * -(-count // size), axis)
        return leaf.narrow(axis, 0, count).clone()

    return map_samples(take, structure, batch_axes(structure, states))


def batch_size(structure: Any) -> int:
    """The number of samples: the first size of the first tensor that has dimensions (1 where there is
    none)."""
    for leaf in pytree.tree_leaves(structure):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return int(leaf.shape[0])
    return 1


def states_of(model: Any) -> States:
    """The initial states of a model's recurrent layers, (layers · directions, B, width): all their sizes but B."""
    if not isinstance(model, torch.nn.Module):
        return frozenset()
    layers = [module for module in model.modules() if isinstance(module, torch.nn.RNNBase)]
    return frozenset(
        (layer.num_layers * (2 if layer.bidirectional else 1), width)
        for layer in layers
        for width in (layer.hidden_size, layer.proj_size)
    )


def batch_axes(structure: Any, states: States = frozenset(), size: int | None = None) -> list[int | None]:
    """The dimension of each leaf that counts samples: the first, the second of a recurrent layer's state, or none."""
    size, leaves = batch_size(structure) if size is None else size, pytree.tree_leaves(structure)
    first = next((i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.dim()), 0)

    def is_state(index: int, leaf: Any) -> bool:
        solid = isinstance(leaf, torch.Tensor) and leaf.dim() == 3 and leaf.is_floating_point()
        return index != first and solid and leaf.shape[1] == size and (leaf.shape[0], leaf.shape[2]) in states

    return [1 if is_state(i, leaf) else 0 if has_batch(leaf, size) else None for i, leaf in enumerate(leaves)]


def map_samples(take: Callable[[torch.Tensor, int], Any], structure: Any, axes: Sequence[int | None]) -> Any:
    """The structure with take(leaf, axis) for every leaf that counts samples along an axis."""
    leaves, spec = pytree.tree_flatten(structure)
    pairs = zip(leaves, axes, strict=True)
    return pytree.tree_unflatten([leaf if axis is None else take(leaf, axis) for leaf, axis in pairs], spec)


def has_batch(leaf: Any, size: int) -> bool:
    """Whether a value is a tensor whose first dimension counts the samples."""
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == size


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
    wrong = f"inputs: the exported program takes {node.meta} for {node.name}, given is {shape}"
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
