"""A module becomes a graph.

`torch.export` (non-strict, dynamic batch) captures a module without running it on data, so nothing of it can
depend on the values of one input. Where a model's control flow does, `tape.trace` records the operations of
one call instead.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from operator import attrgetter
from typing import Any

import torch
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from relprop.engine.analyse import analyse
from relprop.engine.batch import batch_axes, batch_size, map_samples, samples, states_of
from relprop.engine.exported import first_line, graph_of
from relprop.engine.frontends import keras, torchscript
from relprop.engine.graph import Graph
from relprop.engine.isolate import (
    LOCK,
    Assignments,
    is_compiled,
    muted,
    quietly,
    run_isolated,
    unspoiled,
    untouched,
)
from relprop.engine.ops import OPS
from relprop.engine.shapes import Shapes
from relprop.engine.standins import StandIns, keeps_recurrent
from relprop.engine.tape import place_of, tensors_of, trace
from relprop.errors import CaptureError, InvalidInput


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
    single, lone = batch_size((args, kwargs)) == 1, False
    for count, lengths in [(n, length) for n in counts for length in ((True, False) if free else (False,))]:
        try:
            graph = from_export(model, args, kwargs, count, lengths)
        except CaptureError as error:
            reason = str(error)
            continue
        mixes = count > 1 and _mixes(graph)
        if lengths and mixes:  # a length that is open can be taken for the batch
            continue
        lone = lone or (mixes and single)  # there is nothing to mix it with
        if count == 1 or (graph.batched and not (mixes and (lone or _one_by_one(model, args, kwargs)))):
            return dataclasses.replace(graph, lone=lone)
    try:
        return dataclasses.replace(from_call(model, args, kwargs), lone=lone)
    except CaptureError as error:
        raise CaptureError(
            f"the model {type(model).__name__} cannot be captured\n  torch.export: {reason}\n"
            f"  recording its operations: {error}" + ("" if "\n  do:" in str(error) else _OTHERWISE)
        ) from error


_OTHERWISE = (
    "\n  do: take what is no operation of torch (numpy, numbers from .item()) out of the forward pass,"
    " or explain the part of the model without it"
)


def _mixes(graph: Graph) -> bool:
    """Whether values of several samples meet in the graph in a way that leaves none of them its own."""
    try:
        analyse(graph, OPS)
    except CaptureError:
        return True
    return False


def _one_by_one(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the model gives two samples the outputs that each gets alone."""
    states = states_of(model)
    pair, axes = samples((args, kwargs), 2, states), batch_axes((args, kwargs), states)
    return apart(lambda args, kwargs: run_isolated(model, args, kwargs), pair, axes) is True


def apart(run: Callable[..., Any], pair: Any, axes: Sequence[int | None]) -> bool | None:
    """Whether two samples get the outputs that each gets alone: then they can be explained one by one. `run`: what gives the
    outputs of arguments and keywords such as `pair`, whose samples lie along `axes`. None where that cannot be told: two
    samples do not run, an output's first dimension counts something else, or it has no finite value."""

    def alone(index: int) -> Any:
        given = map_samples(lambda leaf, axis: leaf.narrow(axis, index, 1).clone(), pair, axes)
        return pytree.tree_leaves(run(*given))

    try:
        both, first, second = pytree.tree_leaves(run(*pair)), alone(0), alone(1)
    except Exception:  # what fails is said where the model is captured
        return None
    found: set[bool | None] = set()
    near: list[Any] | None = None
    for place, (whole, *parts) in enumerate(zip(both, first, second, strict=False)):
        if not (isinstance(whole, torch.Tensor) and whole.is_floating_point() and whole.dim()):
            continue
        if any(part.shape[:1] != (1,) for part in parts) or not bool(torch.isfinite(whole).any()):
            found.add(None)
        elif whole.shape[0] == 2 and all(part.shape[1:] == whole.shape[1:] for part in parts):
            own = torch.cat(parts)
            if not (alike := _alike(whole, own, 0.0)):  # rounding may be blown up on the way
                near = near or pytree.tree_leaves(run(*map_samples(_nudged, pair, axes)))
                moved = (near[place] - whole).abs().nan_to_num(0.0, 0.0).max()
                alike = _alike(whole, own, _ROUNDING * float(moved))
            found.add(alike)
    return False if False in found else found == {True} or None


def _nudged(leaf: torch.Tensor, axis: int) -> torch.Tensor:
    return leaf * (1 + 4 * torch.finfo(leaf.dtype).eps) if leaf.is_floating_point() else leaf


_ROUNDING = 30  # times what a nudge of the inputs' last bits does


def _alike(value: torch.Tensor, other: torch.Tensor, rounding: float) -> bool:
    """Whether two values are equal but for what another order of sums does to them."""
    loose = 1e-2 if value.dtype in (torch.float16, torch.bfloat16) else 1e-4
    finite = value[torch.isfinite(value)]
    scale = loose * max(1.0, float(finite.abs().max())) if finite.numel() else 0.0
    return torch.allclose(value, other, rtol=loose, atol=max(scale, rounding), equal_nan=True)


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
    dynamic = shapes if count > 1 or free else None
    recurrent = any(isinstance(module, torch.nn.RNNBase) for module in every_module(model))
    program = _exported(model, args, kwargs, dynamic, recurrent)
    if not recurrent and keeps_recurrent(program):  # called as functions
        program = _exported(model, args, kwargs, dynamic, True)
    return _live(graph_of(program, [axis == 0 for axis in axes]), model)


def _exported(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any, recurrent: bool
) -> ExportedProgram:
    """What torch.export makes of a module; with `recurrent`, recurrent layers are kept whole by stand-ins."""
    shaped = Shapes()  # type: ignore[no-untyped-call]
    with (
        LOCK,
        quietly(),
        untouched(model),
        unspoiled(model),
        muted(),
        shaped,
        Assignments(),
        StandIns() if recurrent else nullcontext(),
    ):
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise CaptureError(first_line(error)) from error


def _lengths(leaf: Any) -> range:
    """The dimensions of an input that may count steps or tokens: those after the first, but of pictures and videos."""
    sequence = isinstance(leaf, torch.Tensor) and leaf.dim() in (2, 3)
    return range(1, leaf.dim() if sequence else 0)


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
        elif is_compiled(model):
            model = model._orig_mod
        else:
            return model


def every_module(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The module and all that are in it, each once, in no promised order; without the cost of their paths."""
    waiting, seen = [model], {id(model)}
    while waiting:
        module = waiting.pop()
        yield module
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)


def check_module(model: torch.nn.Module) -> None:
    """Raise `InvalidInput` for a module that has no values to explain, or whose code is not Python's."""
    tables = (table for module in every_module(model) for table in (module._parameters, module._buffers))
    tensors = [tensor for table in tables if table for tensor in table.values() if tensor is not None]
    if not any(map(is_lazy, tensors)) and not any(map(attrgetter("is_meta"), tensors)):
        return
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
