"""Exported programs become graphs: FX nodes are read one by one, with what torch.export recorded of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from relprop.engine.functional import functionalise
from relprop.engine.graph import Graph, Meta, Node, Ref, Size, name_of
from relprop.engine.isolate import quietly
from relprop.engine.ops import OPS
from relprop.engine.standins import ORIGINALS
from relprop.engine.tape import BY_ROWS, OF_ROWS, TORCH
from relprop.errors import CaptureError

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_CALL = re.compile(r"@\d+")
_IGNORED = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "_assert_async")


def graph_of(program: ExportedProgram, batched: Sequence[bool] | None = None) -> Graph:
    """The graph of an exported program: functional, and with composite operations kept whole where the table
    has them.

    `batched` says of each input whether its first dimension counts samples (by default of every one).
    """
    if any(name_of(node.target) == "python _add_batch_dim" for node in program.graph.nodes):
        program = decomposed(program)  # what torch.vmap ran has no meaning outside of it
    graph = functionalise(read(program, batched))
    if graph is None or any(_breaks_down(node) for node in graph.nodes):
        graph = functionalise(read(decomposed(program), batched))
    if graph is None:
        raise CaptureError("the model writes into a tensor in a way that cannot be made functional")
    return graph


def _breaks_down(node: Node) -> bool:
    """Whether a node is an unknown composite whose values could carry relevance: masks, positions and sizes need no row."""
    numbers = any(meta.dtype.is_floating_point or meta.dtype.is_complex for meta in node.metas)
    return numbers and _is_unknown_composite(node.function)


def _is_unknown_composite(function: Any) -> bool:
    """An operation without a row that torch can break down into others."""
    if not isinstance(function, torch._ops.OpOverload) or name_of(function) in OPS:
        return False
    return bool(function._can_decompose())


def read(program: ExportedProgram, batched: Sequence[bool] | None = None) -> Graph:
    """The graph of an exported program as it stands: operations that write to their arguments are still in
    it."""
    signature = program.graph_signature
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    holes = [node for node in program.graph.nodes if node.op == "placeholder"]
    given = [node for node in holes if specs[node.name].kind.name == "USER_INPUT"]
    flags = [True] * len(given) if batched is None else list(batched)
    reader = _Reader(_Sizes([node.meta.get("val") for node in given], flags))
    constants: dict[str, torch.Tensor] = {}
    for node in holes:
        spec = specs[node.name]
        kind = spec.kind.name
        if kind in ("PARAMETER", "BUFFER"):
            reader.add(node, Node(node.name, "weight", origin=str(spec.target), meta=reader.meta(node)))
        elif kind in ("CONSTANT_TENSOR", "CUSTOM_OBJ"):
            value = program.constants[str(spec.target)]
            if not isinstance(value, torch.Tensor):
                raise CaptureError(
                    f"the model holds {spec.target}, a {type(value).__name__} that is no tensor"
                )
            constants[str(spec.target)] = value.detach()
            reader.add(node, Node(node.name, "constant", origin=str(spec.target), meta=reader.meta(node)))
        elif kind == "USER_INPUT":
            if isinstance(node.meta.get("val"), torch.Tensor):
                origin = str(given.index(node))
                reader.add(node, Node(node.name, "input", origin=origin, meta=reader.meta(node)))
            else:
                reader.env[node] = node.meta.get("val")
        else:
            raise CaptureError(f"the exported program has an input of kind {kind}")
    results = reader.run(program.graph_module)
    kinds = [spec.kind.name for spec in signature.output_specs]
    if any(kind == "LOSS_OUTPUT" for kind in kinds):
        raise CaptureError("the exported program is a training program")
    outputs = [result for result, kind in zip(results, kinds, strict=True) if kind == "USER_OUTPUT"]
    inputs = [node for node in reader.nodes if node.kind == "input"]
    counted = [
        0 in node.meta.batch for node in inputs if isinstance(node.meta, Meta) and flags[int(node.origin)]
    ]
    return Graph(
        tuple(reader.nodes),
        tuple(node.name for node in inputs),
        pytree.tree_unflatten(outputs, program.call_spec.out_spec),
        constants,
        any(counted) and all(counted),
        free=reader.sizes.free,
        conditions=_conditions(program, (node.meta.get("val") for node in given), reader.sizes.batch),
    )


def _conditions(program: ExportedProgram, inputs: Iterable[Any], batch: set[Any]) -> tuple[Any, ...]:
    """What torch.export has asked of the number of samples on its way through the model, as formulas that have to hold."""
    import sympy  # type: ignore[import-untyped]  # torch.export has loaded it; importing relprop need not

    ends = [
        sympy.Le(symbol, found.upper)
        for symbol in batch
        if (found := program.range_constraints.get(symbol)) is not None and found.upper.is_Integer
    ]
    modes = (getattr(value, "fake_mode", None) for value in inputs)
    environment = next((mode.shape_env for mode in modes if mode is not None and mode.shape_env), None)
    guards = () if environment is None else (guard.expr for guard in environment.guards)
    return (*ends, *(guard for guard in guards if guard.free_symbols & batch))


class _Sizes:
    """The sizes of values for two samples. A size that holds a symbol of the batch grows with the number of
    samples."""

    def __init__(self, inputs: Sequence[Any], batched: Sequence[bool]) -> None:
        import sympy

        self.batch: set[Any] = set()
        self.known: dict[Any, Any] = {}
        for value, counts in zip(inputs, batched, strict=True):
            for dimension, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                if isinstance(size, torch.SymInt) and size.node.hint is not None:
                    expression = size.node.expr
                    if expression.is_Symbol:
                        self.known.setdefault(expression, sympy.Integer(size.node.hint))
                    if dimension == 0 and counts:
                        self.batch |= expression.free_symbols
        self.known |= dict.fromkeys(self.batch, sympy.Integer(2))
        self.free: dict[Any, tuple[int, int] | None] = dict.fromkeys(self.batch)
        for index, value in enumerate(inputs):
            for dimension, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                if isinstance(size, torch.SymInt) and size.node.expr in self.known:
                    self.free.setdefault(size.node.expr, (index, dimension))

    def free_size(self, value: Any) -> Size | None:
        """A number computed from sizes that are free, those of the batch left out."""
        if not isinstance(value, torch.SymInt):
            return None
        symbols = value.node.expr.free_symbols
        free = symbols and symbols <= self.free.keys() - self.batch
        return Size(value.node.expr) if free else None

    def meta(self, value: Any) -> Meta | tuple[Meta | None, ...] | None:
        """Shape, type and batch dimensions of a value, or of each part of one with several."""
        if isinstance(value, (list, tuple)):
            return tuple(self._meta(part) for part in value)
        return self._meta(value)

    def _meta(self, value: Any) -> Meta | None:
        if not isinstance(value, torch.Tensor):
            return None
        shape: list[Any] = list(value.shape)
        sizes = [self._size(size) for size in shape]
        symbolic = [size.node.expr for size in shape if isinstance(size, torch.SymInt)]
        free = any(expression.free_symbols - self.batch for expression in symbolic)
        forms = [size.node.expr if isinstance(size, torch.SymInt) else size for size in shape]
        return Meta(
            tuple(size for size, _ in sizes),
            value.dtype,
            tuple(d for d, (_, grows) in enumerate(sizes) if grows),
            tuple(forms) if free else (),
        )

    def _size(self, size: int | torch.SymInt) -> tuple[int, bool]:
        if not isinstance(size, torch.SymInt):
            return int(size), False
        expression = size.node.expr
        symbols = expression.free_symbols
        if not symbols <= self.known.keys():
            raise CaptureError("the shape of a value depends on the data")
        return int(expression.xreplace(self.known)), bool(symbols & self.batch)


class _Reader:
    """Reads an FX graph node by node; programs called within it (`with torch.no_grad()` in a model) are read
    in place."""

    def __init__(self, sizes: _Sizes) -> None:
        self.nodes: list[Node] = []
        self.env: dict[fx.Node, Any] = {}
        self.sizes = sizes

    def meta(self, node: fx.Node) -> Meta | tuple[Meta | None, ...] | None:
        return self.sizes.meta(node.meta.get("val"))

    def add(self, node: fx.Node, ours: Node) -> None:
        self.nodes.append(ours)
        self.env[node] = Ref(ours.name)

    def value(self, structure: Any) -> Any:
        return fx.map_arg(structure, lambda node: self.env[node])

    def run(self, module: fx.GraphModule, prefix: str = "") -> Any:
        for node in module.graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                return _plain(self.value(node.args[0]))
            if node.op == "get_attr":
                self.env[node] = self.part(module, str(node.target))
                continue
            if any(name in str(node.target) for name in _IGNORED):
                continue
            self.call(node, prefix)
        raise CaptureError("the exported program returns nothing")

    def part(self, module: fx.GraphModule, target: str) -> Any:
        """A program within the program; None for a tensor, which is read where the graph's signature names it."""
        found = getattr(module, target, None)
        if found is None or isinstance(found, (torch.nn.Module, torch.Tensor)):
            return found if isinstance(found, torch.nn.Module) else None
        raise CaptureError(f"the export keeps {target}, which is no operation but a function of Python")

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
        size = self.sizes.free_size(node.meta.get("val"))
        if size is not None:
            self.env[node] = size
            return
        path, cls, calls = _modules(node)
        self.add(
            node,
            Node(
                prefix + node.name,
                "call",
                ORIGINALS.get(node.target, node.target),
                args,
                kwargs,
                module=path,
                module_class=cls,
                calls=calls,
                source=_source(node.meta.get("stack_trace")),
                meta=self.meta(node),
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
        self.env[node] = list(self.run(program, f"{prefix}{node.name}_"))


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


def _modules(node: fx.Node) -> tuple[str, str, tuple[str, ...]]:
    """Path and class of the innermost module that ran the node, and the calls of all modules around it."""
    stack = node.meta.get("nn_module_stack") or {}
    calls = tuple(key.removeprefix("L__self__") for key in stack if key.startswith("L__self__"))
    if not calls:
        return "", "", ("",)
    cls = list(stack.values())[len(calls) - 1][1]
    return (
        _CALL.sub("", calls[-1]),
        cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}",
        calls,
    )


def path_of(call: str) -> str:
    """The module path of a call: "relu@1" is the second call of "relu"."""
    return _CALL.sub("", call)


def _source(stack_trace: str | None) -> str:
    """File name and line of the innermost frame outside torch."""
    frames = [(file, line) for file, line in _FRAME.findall(stack_trace or "") if not file.startswith(TORCH)]
    if not frames or frames[-1][0].startswith("torch/"):
        return ""
    file, line = frames[-1]
    return f"{Path(file).name}:{line}"


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program functionalised by torch (slower than `functional.functionalise`), composites kept whole.

    Composites without a row are broken down until none is left that torch can break down.
    """
    held = [*program.state_dict.values(), *program.constants.values()]
    if any(isinstance(t, torch.Tensor) and t.layout in BY_ROWS for t in held):
        raise CaptureError(OF_ROWS)
    table = torch.export.default_decompositions()
    done: set[Any] = set()
    unknown = _unknown_composites(program)
    while True:
        with quietly():
            program = program.run_decompositions({f: table[f] for f in unknown if f in table})
        done |= unknown
        unknown = _unknown_composites(program) - done
        if not unknown:
            return program


def _unknown_composites(program: ExportedProgram) -> set[Any]:
    return {node.target for node in program.graph.nodes if _is_unknown_composite(node.target)}
