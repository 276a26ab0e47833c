"""What keeps a capture from touching anything: one lock, torch's switches put back, the model's attributes
put back."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

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


def _same(container: Any, saved: Any) -> bool:
    """Whether two lists or dicts hold the very same objects in the same order."""
    if len(container) != len(saved):
        return False
    if isinstance(container, dict):
        return all(k is j and v is w for (k, v), (j, w) in zip(container.items(), saved.items(), strict=True))
    return all(v is w for v, w in zip(container, saved, strict=True))


def run_isolated(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The model's own output, without gradients. Inputs and buffers that it writes to, and all it stores, stay as they
    were."""
    args, kwargs = pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, (args, kwargs))
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    with LOCK, quietly(), untouched(model), torch.no_grad():
        return torch.func.functional_call(model, buffers, args, kwargs)
