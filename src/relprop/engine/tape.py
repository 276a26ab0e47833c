"""The concrete trace: the operations of one call on one sample, recorded while the model runs.

It takes what torch.export refuses: branches and loops that depend on values, `.item()`, packed sequences. The
graph holds for inputs that take the same branches only, so it is marked `concrete` and made anew for every
sample.

Two of torch's dispatch modes stand on top of each other in front of autograd, where operations still have the
spelling of torch.export (`linear`, `conv2d`, `lstm`). The upper one is torch's own functionalisation:
in-place operations and writes through views become operations that return new tensors. The lower one records
these, with real values.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from relprop.engine.graph import Graph, Meta, Node, Ref
from relprop.engine.isolate import LOCK, Assignments, cuda_devices, quietly, unspoiled, untouched
from relprop.errors import CaptureError

aten = torch.ops.aten

TORCH = str(Path(torch.__file__).parent) + "/"
_CALL = torch.nn.Module._call_impl.__code__
_OURS = (__file__, Assignments.__torch_function__.__code__.co_filename)
_SEEDED = torch.Tag.nondeterministic_seeded


def trace(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """The graph of one call of `model` on one sample; its parameters, buffers and attributes are read live.

    Raises `CaptureError` where the forward pass draws random numbers, switches autocast on, or fails.
    """
    tape = _Tape(model)
    with LOCK, quietly(), untouched(model), unspoiled(model), torch.no_grad():
        flat, spec = pytree.tree_flatten((args, kwargs))
        flat = [tape.input(i, leaf) if isinstance(leaf, Tensor) else leaf for i, leaf in enumerate(flat)]
        try:
            output = _run(model, tape, *pytree.tree_unflatten(flat, spec))
        except CaptureError:
            raise
        except Exception as error:
            first = (str(error).strip() or "no message").splitlines()[0]
            raise CaptureError(f"{type(error).__name__}: {first}") from error
        finally:
            tape.calls.clear()
    if not any(
        isinstance(leaf, Ref) for leaf in pytree.tree_leaves(output, is_leaf=lambda x: isinstance(x, Ref))
    ):
        name = type(output).__name__
        what, do = "in which there is no tensor", "return a tensor, or a tuple, named tuple or dict of them"
        if dataclasses.is_dataclass(output):
            what, do = "a dataclass that torch does not know", f"torch.export.register_dataclass({name})"
        raise CaptureError(f"the model returns {name}, {what}\n  do: {do}")
    inputs = tuple(node.name for node in tape.nodes if node.kind == "input")
    return Graph(tuple(tape.nodes), inputs, output, tape.constants, batched=False, concrete=True)


def _run(model: torch.nn.Module, tape: _Tape, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with enable_python_dispatcher(), _Recorder(tape), _Functional() as functional, Assignments():
        args, kwargs = pytree.tree_map_only(Tensor, functional.wrap, (args, kwargs))
        output = model(*args, **kwargs)
        return pytree.tree_map_only(Tensor, lambda value: tape.ref(_unwrapped(value)), output)


def _unwrapped(value: Tensor) -> Tensor:
    return value.from_functional() if isinstance(value, FunctionalTensor) else value


BY_ROWS = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
OF_ROWS = (
    "it holds a sparse matrix by rows or columns, which torch cannot put in another's place\n"
    "  do: keep it by coordinates (matrix.to_sparse_coo()) or dense (matrix.to_dense())"
)
"""Functionalising such a tensor ends the process."""


class _Functional(FunctionalTensorMode):  # type: ignore[no-untyped-call]
    """Torch's functionalisation, for a model whose parameters stay plain tensors: each is wrapped when it is
    met."""

    def __init__(self) -> None:
        super().__init__(pre_dispatch=True)
        self._known: dict[
            int, tuple[Tensor, FunctionalTensor]
        ] = {}  # the plain tensors live as long as their ids count

    def wrap(self, value: Tensor) -> Tensor:
        """The functional tensor that stands for a plain one, the same one each time."""
        if isinstance(value, FunctionalTensor) or torch._is_functional_tensor(value):
            return value
        if value.layout in BY_ROWS:
            raise CaptureError(OF_ROWS)
        if id(value) not in self._known:
            with self:
                self._known[id(value)] = (value, FunctionalTensor.to_functional(value))
        return self._known[id(value)][1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = pytree.tree_map_only(Tensor, self.wrap, (args, kwargs or {}))
        respell = RESPELLED.get(func)
        if respell is not None:
            with self:
                result = respell(*args, **kwargs)
            if result is not NotImplemented:
                return result
        types = tuple({type(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)})
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _can_decompose(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Composite operations stay whole, as in torch.export; those that may return a view or write are
        broken down."""
        if not isinstance(func, torch._ops.OpOverload):
            return False
        shares = torch.Tag.maybe_aliasing_or_mutating in func.tags or func is aten.native_batch_norm.default
        return shares or any(argument.alias_info for argument in func._schema.arguments)


class _Recorder(ProxyTorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands each functional operation to the tape. Torch lets only its own kind of mode stand in front of
    autograd."""

    def __init__(self, tape: _Tape) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]
        self.tape = tape

    def __enter__(self) -> _Recorder:
        TorchDispatchMode.__enter__(self)  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        TorchDispatchMode.__exit__(self, *error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.tape.check_autocast()
        drawn = (
            self.tape.random_state()
            if isinstance(func, torch._ops.OpOverload) and _SEEDED in func.tags
            else None
        )
        result = func(*args, **kwargs)
        node = self.tape.record(func, args, kwargs, result)
        if drawn is not None and not all(map(torch.equal, drawn, self.tape.random_state())):
            where = f" at {node.where()}" if node is not None else ""
            raise CaptureError(f"the forward pass is random: {func} draws random numbers{where}")
        return result


class _Tape:
    """The nodes recorded so far, and which tensor is the value of which. All tensors are kept, so that no id
    is reused."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.calls: dict[FrameType, str] = {}  # each running call of a module, kept for the same reason
        self._values: dict[int, tuple[Tensor, Ref]] = {}
        self._names: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._autocast = _autocast()
        self._devices = cuda_devices()
        self._modules: dict[int, str] = {}
        for path, module in model.named_modules():
            self._modules.setdefault(id(module), path)
        self._paths: dict[int, str] = {}
        self._places: dict[Any, str] = {}
        for path, tensor in tensors_of(model):
            self._paths.setdefault(id(tensor), path)
            self._places.setdefault(place_of(tensor), path)

    def input(self, index: int, value: Tensor) -> Tensor:
        """A tensor of its own for the input at a place, with its node."""
        value = value.detach()
        self._add(value, Node(self._name("input"), "input", origin=str(index), meta=_meta(value)))
        return value

    def ref(self, value: Tensor) -> Ref:
        """Where the graph holds this tensor. One that no operation made is a weight of the model, or a
        constant."""
        known = self._values.get(id(value))
        if known is not None:
            return known[1]
        path = self._paths.get(id(value)) or self._places.get(place_of(value))
        if path is not None:
            return self._add(
                value,
                Node(self._name("p_" + path.replace(".", "_")), "weight", origin=path, meta=_meta(value)),
            )
        name = self._name("constant")
        self.constants[name] = value.detach()
        return self._add(value, Node(name, "constant", origin=name, meta=_meta(value)))

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Node | None:
        """Append the operation; None where it returns no new tensor (it reads a number, or returns its
        argument)."""
        parts = list(result) if isinstance(result, (list, tuple)) else [result]
        if all(not isinstance(part, Tensor) or id(part) in self._values for part in parts):
            return None
        args, kwargs = pytree.tree_map_only(Tensor, self.ref, (args, kwargs))
        path, cls, calls, source = self._place()
        several = isinstance(result, (list, tuple))
        node = Node(
            self._name(func.__name__.split(".")[0] if isinstance(func, torch._ops.OpOverload) else str(func)),
            "call",
            func,
            tuple(args),
            dict(kwargs),
            module=path,
            module_class=cls,
            calls=calls,
            source=source,
            meta=tuple(_meta(part) for part in parts) if several else _meta(result),
        )
        self.nodes.append(node)
        for index, part in enumerate(parts):
            if isinstance(part, Tensor) and id(part) not in self._values:
                self._values[id(part)] = (part, Ref(node.name, index if several else None))
        return node

    def check_autocast(self) -> None:
        """Raise where the model has switched autocast on or off: a walk would run in another precision."""
        if _autocast() != self._autocast:
            raise CaptureError("the model switches autocast on within its forward pass")

    def random_state(self) -> list[Tensor]:
        """The states of all generators."""
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._devices)]

    def _add(self, value: Tensor, node: Node) -> Ref:
        self.nodes.append(node)
        self._values[id(value)] = (value, Ref(node.name))
        return Ref(node.name)

    def _name(self, base: str) -> str:
        count = self._names.get(base, 0)
        self._names[base] = count + 1
        name = f"{base}_{count}" if count else base
        return name if name == base or name not in self._names else self._name(base)

    def _place(self) -> tuple[str, str, tuple[str, ...], str]:
        """Path and class of the innermost module that runs, the calls of all modules around it, and the
        source line."""
        source, found = "", []
        for frame in _frames():
            file = frame.f_code.co_filename
            if not source and not file.startswith(TORCH) and file not in _OURS:
                source = f"{Path(file).name}:{frame.f_lineno}"
            if frame.f_code is _CALL and id(module := frame.f_locals["self"]) in self._modules:
                found.append((module, self._call(frame, self._modules[id(module)])))
        if not found:
            return "", "", ("",), source
        innermost = type(found[0][0])
        calls = tuple(call for _, call in reversed(found))
        return (
            self._modules[id(found[0][0])],
            f"{innermost.__module__}.{innermost.__qualname__}",
            calls,
            source,
        )

    def _call(self, frame: FrameType, path: str) -> str:
        """The name of a module's call: its path, and from the second call on which one it is:
        "block.relu@1"."""
        if frame not in self.calls:
            count = self._counts.get(path, 0)
            self._counts[path] = count + 1
            self.calls[frame] = f"{path}@{count}" if count else path
        return self.calls[frame]


def _frames() -> Iterator[FrameType]:
    """The running frames, innermost first, up to the call of the model."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not trace.__code__:
        yield frame
        frame = frame.f_back


def tensors_of(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters, buffers and plain tensor attributes of a model with their paths."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield f"{path}.{name}" if path else name, value


def place_of(value: Tensor) -> Any:
    """Memory and layout of a tensor: two of the same are the same numbers. A tensor without memory equals
    itself only."""
    if value.numel() == 0 or value.layout is not torch.strided:
        return id(value)
    return value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), value.device


def _meta(value: Any) -> Meta | None:
    return Meta(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None


def _autocast() -> tuple[bool, ...]:
    return tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))


def _dropout(x: Tensor, p: float, train: bool) -> Any:
    return NotImplemented if train else x


def _pack(x: Tensor, lengths: Tensor, batch_first: bool) -> Any:
    """A packed sequence of one sample is its first steps."""
    if len(lengths) != 1:
        return NotImplemented
    steps = (x[0] if batch_first else x[:, 0])[: int(lengths[0])]
    return steps, torch.ones(len(steps), dtype=torch.int64)


def _unpack(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: Any, total_length: int
) -> Any:
    if not _one(batch_sizes):
        return NotImplemented
    length = len(data)
    missing = max(0, total_length - length)
    if missing:
        data = torch.nn.functional.pad(data, [0, 0] * (data.dim() - 1) + [0, missing], value=padding_value)
    return data.unsqueeze(0 if batch_first else 1), torch.tensor([length])


def _one(batch_sizes: Tensor) -> bool:
    return all(size == 1 for size in batch_sizes.tolist())


def _recurrent(whole: Any) -> Callable[..., Any]:
    """A recurrent network over the packed sequence of one sample is the network over that sequence."""

    def respelled(data: Tensor, batch_sizes: Tensor, state: Any, params: Any, *rest: Any) -> Any:
        if not _one(batch_sizes):
            return NotImplemented
        output, *states = whole(data.unsqueeze(1), state, params, *rest, False)
        return (output.squeeze(1), *states)

    return respelled


RESPELLED: dict[Any, Callable[..., Any]] = {
    aten.dropout.default: _dropout,
    aten.feature_dropout.default: _dropout,
    aten.alpha_dropout.default: _dropout,
    aten.feature_alpha_dropout.default: _dropout,
    aten._pack_padded_sequence.default: _pack,
    aten._pad_packed_sequence.default: _unpack,
    aten.lstm.data: _recurrent(aten.lstm.input),
    aten.gru.data: _recurrent(aten.gru.input),
    aten.rnn_tanh.data: _recurrent(aten.rnn_tanh.input),
    aten.rnn_relu.data: _recurrent(aten.rnn_relu.input),
}
"""Operations that are written with others where that says the same; NotImplemented leaves one as it is."""
