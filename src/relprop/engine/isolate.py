"""What keeps a capture from touching anything: one lock, torch's switches put back, the model's attributes
put back."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from relprop.engine.reach import content, contents_of, places_of, read, write
from relprop.errors import InvalidInput

LOCK = threading.RLock()
"""Held while a model is captured: torch.export swaps a module's parameters for a moment, and tracing state is
global."""

_TABLES = ("_parameters", "_buffers", "_modules")


def cuda_devices() -> list[int]:
    """The CUDA devices in use, whose random numbers a capture must leave alone."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """In the precision of the tensors themselves, within `torch.autocast` too."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Neither torch's warnings nor its fused fast path of attention (which hides operations), nor autocast; random
    numbers put back."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            warnings.catch_warnings(),
            without_autocast(),
            torch.enable_grad(),
            torch.random.fork_rng(cuda_devices()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


class _Muted:
    """A stream that drops what one thread writes to it."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        """Write as the stream does, or drop."""
        return len(text) if threading.get_ident() == self._thread else int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Without torch.export's print of all it had seen of a model before it failed."""
    stream, logger = sys.stderr, logging.getLogger("torch.export._trace")
    mute: Any = _Muted(stream)

    def drop(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)
    if stream is not None:
        sys.stderr = mute
    try:
        yield
    finally:
        logger.removeFilter(drop)
        if sys.stderr is mute:
            sys.stderr = stream


@contextlib.contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """What the forward pass stores on the model (a counter, a list of attention maps, a last state) is undone
    afterwards."""
    before: list[tuple[dict[Any, Any] | list[Any], Any]] = []
    for module in model.modules():
        own = module.__dict__
        before.append((own, dict(own)))
        for name, value in own.items():
            if name in _TABLES or type(value) in (list, dict):
                before.append((value, value.copy()))
    try:
        yield
    finally:
        for container, saved in before:
            if not _same(container, saved):
                container.clear()
                container.update(saved) if isinstance(container, dict) else container.extend(saved)


@contextlib.contextmanager
def unspoiled(model: torch.nn.Module) -> Iterator[None]:
    """What a capture would leave outside of the modules, in a cache for instance, is taken back: tensors without values, and
    numbers that stand for sizes. The model could not run with them."""
    containers, names, cells, caches = places_of(model)
    kept = [(container, container.copy()) for container in containers]
    old_names = [(place, name, read(place, name)) for place, name in names]
    old_cells = [(cell, content(cell)) for cell in cells]
    try:
        yield
    finally:
        for container, saved in kept:
            if isinstance(container, dict):
                for key, value in list(container.items()):
                    if saved.get(key) is not value and _is_left(value):
                        container.pop(key) if key not in saved else container.update({key: saved[key]})
            elif any(_is_left(value) for value in container):
                container.clear()
                container.update(saved) if isinstance(container, set) else container.extend(saved)
        for place, name, value in old_names:
            if read(place, name) is not value and _is_left(read(place, name)):
                write(place, name, value)
        for cell, value in old_cells:
            if content(cell) is not value and _is_left(content(cell)):
                cell.cell_contents = value
        for function in caches:
            if _is_spoilt(function):
                function.cache_clear()


def _is_spoilt(function: Any) -> bool:
    """Whether what a function keeps of its results holds what only a capture knows."""
    waiting, seen = gc.get_referents(function), set()
    for _ in range(4):
        waiting = [value for value in waiting if id(value) not in seen and not isinstance(value, _APART)]
        seen |= set(map(id, waiting))
        if any(map(_is_left, waiting)):
            return True
        waiting = gc.get_referents(*waiting)
    return False


_APART = (type, ModuleType, FunctionType, torch.nn.Module)


def _is_left(value: Any, depth: int = 3) -> bool:
    """Whether a value is, or holds, what only a capture knows."""
    if isinstance(value, (FakeTensor, FunctionalTensor, torch.SymInt, torch.SymFloat, torch.SymBool)):
        return True
    if depth == 0 or isinstance(value, (torch.Tensor, torch.nn.Module, type, ModuleType, str, int, float)):
        return False
    if isinstance(value, dict):
        return any(_is_left(part, depth - 1) for part in (*value, *value.values()))
    if isinstance(value, (list, tuple, set)):
        return any(_is_left(part, depth - 1) for part in value)
    return _is_left(contents_of(value), depth - 1)


def _same(container: Any, saved: Any) -> bool:
    """Whether two lists or dicts hold the very same objects in the same order."""
    if len(container) != len(saved):
        return False
    if isinstance(container, dict):
        return all(k is j and v is w for (k, v), (j, w) in zip(container.items(), saved.items(), strict=True))
    return all(v is w for v, w in zip(container, saved, strict=True))


class Assignments(TorchFunctionMode):
    """While it is on, `weight.data = value` in a forward pass is a write into the weight, which a capture can see."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == _SET_DATA and args[0].shape == args[1].shape and args[0].dtype == args[1].dtype:
            return args[0].detach().copy_(args[1].detach())
        return func(*args, **(kwargs or {}))


_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]


_WRITING = frozenset(
    [
        "__set__",
        "__setitem__",
        *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")),
    ]
)


class _Writes(Assignments):
    """While it is on, parameters that a forward pass writes to (a constraint on their norm) are copied before."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._own: dict[int, list[torch.Tensor]] = {}
        self._kept: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        for parameter in model.parameters():
            if parameter.layout is torch.strided and not parameter.is_inference():
                self._own.setdefault(parameter.untyped_storage().data_ptr(), []).append(parameter)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named, name = kwargs or {}, getattr(func, "__name__", "")
        if func in (F.embedding, F.embedding_bag):
            if (args[3] if len(args) > 3 else named.get("max_norm")) is not None:
                self._keep(args[1] if len(args) > 1 else named["weight"])
        elif name in _WRITING or (name.endswith("_") and not name.endswith("__")):
            self._keep(args[0] if args else None)
        self._keep(named.get("out"))
        return super().__torch_function__(func, types, args, kwargs)

    def _keep(self, written: Any) -> None:
        if isinstance(written, torch.Tensor) and written.layout is torch.strided:
            for parameter in self._own.pop(written.untyped_storage().data_ptr(), ()):
                self._kept.append((parameter, parameter.detach().clone(), parameter._version))

    def keep(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy these, too, whatever writes to them."""
        self._kept += [
            (tensor, tensor.detach().clone(), tensor._version)
            for tensor in tensors
            if not tensor.is_inference()
        ]

    def undo(self) -> None:
        """Put back what was there."""
        for parameter, values, version in self._kept:
            if not torch.equal(parameter.detach(), values):
                parameter.detach().copy_(values)
            if parameter._version != version:
                torch._C._autograd._unsafe_set_version_counter((parameter,), (version,))


def is_compiled(model: Any) -> bool:
    """Whether torch.compile has made it of a module."""
    return type(model).__name__ == "OptimizedModule"


@contextlib.contextmanager
def put_back(model: Any, buffers: bool = True) -> Iterator[None]:
    """What calls of a module store on it, and what they write to its weights and buffers, is undone afterwards.

    Without `buffers` these are left as they are. The operations of a compiled model cannot be watched: a call that writes to its
    weights raises `InvalidInput` behind it. Of what is no module nothing is known.
    """
    if not isinstance(model, torch.nn.Module):
        yield
        return
    watched = not is_compiled(model)
    with untouched(model):
        writes = _Writes(model)
        versions = [] if watched else [weight._version for weight in model.parameters()]
        if buffers:
            writes.keep(model.buffers())
        try:
            with writes if watched else contextlib.nullcontext():
                yield
        finally:
            with torch.no_grad():
                writes.undo()
        if versions != [weight._version for weight in model.parameters()][: len(versions)]:
            raise InvalidInput(
                "model: a call writes to its weights, which cannot be undone where torch.compile has made it\n"
                "  do: load the weights again, and give the model as it was before torch.compile"
            )


def run_isolated(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The model's own output, without gradients. Inputs, weights and buffers that it writes to, and all it stores, stay as
    they were."""
    args, kwargs = pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, (args, kwargs))
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    with LOCK, quietly(), torch.no_grad(), put_back(model, buffers=False):
        return torch.func.functional_call(model, buffers, args, kwargs)
