"""Front ends: a model and an example become a `Graph`. `FRONTENDS` lists them; a new one is one function and one row.

`torch.export` (non-strict, dynamic batch) captures a module without running it on data, so nothing of it can depend on
the values of one input. Where a model's control flow does, `tape.trace` records the operations of one call instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from relprop.engine.functional import functionalise
from relprop.engine.graph import Graph, Meta, Node, Ref, name_of
from relprop.engine.ops import OPS
from relprop.errors import CaptureError, InvalidInput

LOCK = threading.RLock()
"""Held while a model is captured: torch.export swaps a module's parameters for a moment, and tracing state is global."""

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_CALL = re.compile(r"@\d+")
_IGNORED = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "_assert_async")


def capture(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """The graph of `model` called with `args` and `kwargs` (only their shapes, types and devices matter).

    Raises `CaptureError` where no front end takes the model or the one that does cannot capture it.
    """
    for accepts, frontend in FRONTENDS:
        if accepts(model):
            return frontend(model, args, kwargs)
    raise InvalidInput(
        f"model: {type(model).__name__} is not something relprop can read\n"
        "  do: give a torch.nn.Module, a torch.export.ExportedProgram or the path of a saved .pt2 file"
    )


def from_module(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """Capture an eager module by torch.export: with a dynamic batch, else for one sample, else as a concrete trace."""
    from relprop.engine.tape import trace

    reasons = []
    for count in (2, 1):
        try:
            program = export(model, samples(args, count), samples(kwargs, count), dynamic=count == 2)
            graph = from_program(program, args, kwargs)
        except CaptureError as error:
            reasons.append(str(error))
            continue
        if graph.batched or count == 1:
            return graph
    try:
        return trace(model, samples(args, 1), samples(kwargs, 1))
    except CaptureError as error:
        raise CaptureError(
            f"the model {type(model).__name__} cannot be captured\n  torch.export: {reasons[0] if reasons else 'fixed batch size'}\n"
            f"  recording its operations: {error}"
        ) from error


def from_file(path: str | Path, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """Capture a program saved by `torch.export.save`."""
    return from_program(load(path), args, kwargs)


def load(path: str | Path) -> ExportedProgram:
    """The exported program in a `.pt2` file. Raises `InvalidInput` where it cannot be read."""
    file = Path(path)
    if not file.is_file():
        raise InvalidInput(f"model: no file {file}\n  do: give the path of a program saved by torch.export.save")
    try:
        return torch.export.load(file)
    except Exception as error:
        raise InvalidInput(
            f"model: {file} is not a readable torch.export program ({_first_line(error)})\n"
            "  do: save the model again with torch.export.save(torch.export.export(model, …), file)"
        ) from error


def export(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool
) -> ExportedProgram:
    """`torch.export` of a module, non-strict; with `dynamic`, the first dimension of the batch's tensors is free."""
    shapes = None
    if dynamic:
        shapes = ShapesCollection()
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == 2:
                shapes[leaf] = {0: Dim.AUTO}
    with _quietly():
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise CaptureError(_first_line(error)) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Neither torch's warnings nor its fused fast path of attention (which hides operations) while a model is traced."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    random = torch.get_rng_state()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        torch.set_rng_state(random)


def samples(structure: Any, count: int) -> Any:
    """The same inputs with `count` samples (the first ones, repeated where there are too few)."""
    size = batch_size(structure)

    def take(leaf: Any) -> Any:
        if not (isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == size):
            return leaf
        leaf = leaf.detach()
        if size >= count:
            return leaf[:count].clone()
        return leaf.repeat((-(-count // size),) + (1,) * (leaf.dim() - 1))[:count].clone()

    return pytree.tree_map(take, structure)


def batch_size(structure: Any) -> int:
    """The number of samples: the first size of the first tensor that has dimensions (1 where there is none)."""
    for leaf in pytree.tree_leaves(structure):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return int(leaf.shape[0])
    return 1


def from_program(
    program: ExportedProgram, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> Graph:
    """The graph of an exported program: functional, and with composite operations kept whole where the table has them."""
    graph = functionalise(read(program))
    if graph is None or any(_unknown_composite(node) for node in graph.nodes):
        graph = functionalise(read(decomposed(program)))
    if graph is None:
        raise CaptureError("the model writes into a tensor in a way that cannot be made functional")
    return graph


def _unknown_composite(node: Node) -> bool:
    """An operation without a row that torch can break down into others."""
    function = node.function
    known = node.operation in OPS
    return not known and isinstance(function, torch._ops.OpOverload) and function._can_decompose()


def read(program: ExportedProgram) -> Graph:
    """The graph of an exported program as it stands: operations that write to their arguments are still in it."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    reader = _Reader()
    inputs: list[str] = []
    constants: dict[str, torch.Tensor] = {}
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        spec = specs[node.name]
        kind = spec.kind.name
        if kind in ("PARAMETER", "BUFFER"):
            reader.add(node, Node(node.name, "weight", origin=spec.target, meta=_meta(node)))
        elif kind in ("CONSTANT_TENSOR", "CUSTOM_OBJ"):
            value = program.constants[spec.target]
            if not isinstance(value, torch.Tensor):
                raise CaptureError(f"the model holds {spec.target}, a {type(value).__name__} that is no tensor")
            constants[spec.target] = value.detach()
            reader.add(node, Node(node.name, "constant", origin=spec.target, meta=_meta(node)))
        elif kind == "USER_INPUT":
            inputs.append(node.name)
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                reader.add(node, Node(node.name, "input", origin=str(len(inputs) - 1), meta=_meta(node)))
            else:
                reader.env[node] = value
        else:
            raise CaptureError(f"the exported program has an input of kind {kind}")
    results = reader.run(program.graph_module, {})
    kinds = [spec.kind.name for spec in program.graph_signature.output_specs]
    if any(kind == "LOSS_OUTPUT" for kind in kinds):
        raise CaptureError("the exported program is a training program")
    outputs = [result for result, kind in zip(results, kinds, strict=True) if kind == "USER_OUTPUT"]
    tensors = [node for node in reader.nodes if node.kind == "input"]
    batched = any(node.meta.batch == (0,) for node in tensors if isinstance(node.meta, Meta))
    return Graph(
        tuple(reader.nodes),
        tuple(inputs),
        pytree.tree_unflatten(outputs, program.call_spec.out_spec),
        constants,
        batched,
    )


class _Reader:
    """Reads an FX graph node by node; programs called within it (`with torch.no_grad()` in a model) are read in place."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.env: dict[fx.Node, Any] = {}

    def add(self, node: fx.Node, ours: Node) -> None:
        self.nodes.append(ours)
        self.env[node] = Ref(ours.name)

    def value(self, structure: Any) -> Any:
        return fx.map_arg(structure, lambda node: self.env[node])

    def run(self, module: fx.GraphModule, attributes: dict[str, Any], prefix: str = "") -> Any:
        for node in module.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                return _plain(self.value(node.args[0]))
            if node.op == "get_attr":
                self.env[node] = module.get_submodule(node.target) if hasattr(module, node.target) else None
                continue
            if any(name in str(node.target) for name in _IGNORED):
                continue
            self.call(node, prefix)
        raise CaptureError("the exported program returns nothing")

    def call(self, node: fx.Node, prefix: str) -> None:
        args, kwargs = _plain(self.value(node.args)), _plain(self.value(node.kwargs))
        name = name_of(node.target)  # type: ignore[arg-type]
        if name == "python getitem" and not isinstance(args[1], Ref):
            source, index = args
            if isinstance(source, list):  # parts of a program read in place
                self.env[node] = source[index]
                return
            if isinstance(source, Ref) and isinstance(index, int):
                self.env[node] = Ref(source.name, index)
                return
        programs = [arg for arg in args if isinstance(arg, fx.GraphModule)]
        if programs:
            self.inline(node, name, programs[0], args, prefix)
            return
        path, cls, calls = _modules(node)
        self.add(
            node,
            Node(
                prefix + node.name,
                "call",
                node.target,  # type: ignore[arg-type]
                args,
                kwargs,
                module=path,
                module_class=cls,
                calls=calls,
                source=_source(node.meta.get("stack_trace")),
                meta=_meta(node),
            ),
        )

    def inline(
        self, node: fx.Node, name: str, program: fx.GraphModule, args: tuple[Any, ...], prefix: str
    ) -> None:
        if not any(wrapper in name for wrapper in ("wrap_with_set_grad_enabled", "wrap_with_autocast")):
            raise CaptureError(f"the model uses the control flow operator {name}")
        if "autocast" in name:
            raise CaptureError("the model switches autocast on within its forward pass")
        operands = args[args.index(program) + 1 :]
        holes = [inner for inner in program.graph.nodes if inner.op == "placeholder"]
        self.env.update(zip(holes, operands, strict=True))
        self.env[node] = list(self.run(program, {}, f"{prefix}{node.name}_"))


def _plain(structure: Any) -> Any:
    """FX's immutable lists and dicts as ordinary ones."""
    if isinstance(structure, Ref):
        return structure
    if isinstance(structure, (list, tuple)):
        items = [_plain(item) for item in structure]
        return items if isinstance(structure, list) else tuple(items)
    if isinstance(structure, dict):
        return {key: _plain(item) for key, item in structure.items()}
    if isinstance(structure, slice):
        return slice(_plain(structure.start), _plain(structure.stop), _plain(structure.step))
    return structure


def _meta(node: fx.Node) -> Meta | tuple[Meta | None, ...] | None:
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return tuple(_meta_of(part) for part in value)
    return _meta_of(value)


def _meta_of(value: Any) -> Meta | None:
    if not isinstance(value, torch.Tensor):
        return None
    sizes = []
    batch = []
    for dimension, size in enumerate(value.shape):
        if isinstance(size, torch.SymInt):
            hint = size.node.hint
            if hint is None:
                raise CaptureError("the shape of a value depends on the data")
            if size.node.expr.free_symbols:
                batch.append(dimension)
            size = hint
        sizes.append(int(size))
    return Meta(tuple(sizes), value.dtype, tuple(batch))


def _modules(node: fx.Node) -> tuple[str, str, tuple[str, ...]]:
    """Path and class of the innermost module that ran the node, and the calls of all modules around it."""
    stack = node.meta.get("nn_module_stack") or {}
    calls = tuple(key.removeprefix("L__self__") for key in stack if key.startswith("L__self__"))
    if not calls:
        return "", "", ("",)
    cls = list(stack.values())[len(calls) - 1][1]
    return _CALL.sub("", calls[-1]), cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}", calls


def path_of(call: str) -> str:
    """The module path of a call: "relu@1" is the second call of "relu"."""
    return _CALL.sub("", call)


_TORCH = str(Path(torch.__file__).parent)


def _source(stack_trace: str | None) -> str:
    """File name and line of the innermost frame outside torch."""
    frames = [(file, line) for file, line in _FRAME.findall(stack_trace or "") if not file.startswith(_TORCH)]
    if not frames or frames[-1][0].startswith("torch/"):
        return ""
    file, line = frames[-1]
    return f"{Path(file).name}:{line}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program functionalised by torch, high-level operations kept (slower than `canonise.functionalise`)."""
    with _quietly():
        return program.run_decompositions({})


Frontend = Callable[[Any, tuple[Any, ...], dict[str, Any]], Graph]
FRONTENDS: list[tuple[Callable[[Any], bool], Frontend]] = [
    (lambda model: isinstance(model, ExportedProgram), from_program),
    (lambda model: isinstance(model, torch.nn.Module), from_module),
    (lambda model: isinstance(model, (str, Path)) and str(model).endswith(".pt2"), from_file),
]
