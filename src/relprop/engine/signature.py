"""What tells one kind of input, and one structure of a model, from another: the key of the cache of captured
graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.module import _global_forward_hooks as _GLOBAL_HOOKS
from torch.nn.modules.module import _global_forward_pre_hooks as _GLOBAL_PRE_HOOKS

from relprop.engine.reach import Reach, contents_of, held_by, of_class, of_function

_TABLES = ("_parameters", "_buffers")
_OWN = (*_TABLES, "_modules")
_REACHED = 3  # the same of what code reads beside the modules
_DEPTH = 6  # how far into containers and configuration objects a change is noticed


def signature_of(leaf: Any, batch: int) -> Any:
    """Shape, type and device of an input tensor, its samples left out; the value of anything else."""
    if not isinstance(leaf, Tensor):
        return type(leaf), leaf if isinstance(leaf, (int, float, str)) else repr(leaf)
    shape = tuple(leaf.shape)
    return (("B", *shape[1:]) if shape and shape[0] == batch else shape), leaf.dtype, leaf.device


def length_free(leaf: Any, batch: int) -> Any:
    """The signature of an input without its sizes: what inputs of any length share."""
    signature = signature_of(leaf, batch)
    if not isinstance(leaf, Tensor):
        return signature
    shape, *rest = signature
    return len(shape), shape[:1] == ("B",), *rest


def structure_of(model: Any) -> Any:
    """The modules of a model, their settings and hooks, what their code reads beside them, and their weights by shape, type
    and identity of sharing.

    Weights are read live, so their values do not count; tensors in lists are constants of the graph, so
    theirs do.
    """
    if not isinstance(model, torch.nn.Module):
        return None
    parts: list[Any] = [tuple(map(id, (*_GLOBAL_HOOKS.values(), *_GLOBAL_PRE_HOOKS.values())))]
    order: dict[
        int, int
    ] = {}  # tensors by identity, in order of appearance: shared ones have the same number
    seen: set[int] = set()
    classes: dict[type, None] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        seen.add(id(module))
        classes[type(module)] = None
        parts.append((path, id(type(module)), id(module)))
        for name, value in vars(module).items():
            if name in _TABLES:
                parts += [
                    (key, _kind(tensor), order.setdefault(id(tensor), len(order)))
                    for key, tensor in value.items()
                ]
            elif type(value) in _PLAIN or (type(value) in _CONTAINERS and not value):  # nearly all of them
                parts += (name, type(value), value if type(value) in _PLAIN else 0)
            elif isinstance(value, Tensor):
                parts.append((name, _kind(value)))
            elif name != "_modules":
                parts.append(name)
                _add_setting(parts, value, _DEPTH, seen)
    for cls in classes:
        parts.append(id(held_by(cls, "forward")))
        _add_reach(parts, of_class(cls), seen)
    return hash(tuple(parts))


def _add_reach(parts: list[Any], reach: Reach | None, seen: set[int]) -> None:
    """Pieces of what code reads beside the modules."""
    if reach is not None:
        for value in reach.values():
            _add_setting(parts, value, _REACHED, seen, follow=False)


def _kind(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tensor.dtype, tensor.shape, tensor.device)


_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device))

_CONTAINERS = frozenset((dict, OrderedDict, set, list, tuple))


def _add_setting(parts: list[Any], value: Any, depth: int, seen: set[int], follow: bool = True) -> None:
    """Hashable pieces of an attribute: numbers by value, tensors and functions by identity, containers and (with
    `follow`) what functions read by their contents."""
    kind = type(value)
    if kind in _PLAIN or isinstance(value, (int, float, complex, str, bytes)):
        parts += (kind, value)
    elif isinstance(value, Tensor):
        parts.append(
            (id(value), None if value.is_inference() else value._version, value.data_ptr(), _kind(value))
        )
    elif isinstance(value, np.ndarray):
        parts.append((value.shape, value.dtype.str, value.tobytes() if value.dtype != object else id(value)))
    elif id(value) in seen or depth == 0:
        parts.append(id(value))
    else:
        seen.add(id(value))
        _add_object(parts, value, depth - 1, seen, follow)


def _add_object(parts: list[Any], value: Any, depth: int, seen: set[int], follow: bool) -> None:
    """Pieces of something that has parts, each object once."""
    if isinstance(value, (type, ModuleType)):
        parts.append(id(value))
    elif isinstance(
        value, torch.nn.Module
    ):  # one that is no submodule: its weights are constants of the graph
        for module in value.modules():
            parts += (id(module), id(held_by(type(module), "forward")))
            seen.add(id(module))
            for table in (module._parameters, module._buffers):
                parts += [
                    (id(tensor), None if tensor is None else tensor.data_ptr()) for tensor in table.values()
                ]
            _add_settings(
                parts, [v for name, v in vars(module).items() if name not in _OWN], depth, seen, follow
            )
            _add_reach(parts, of_class(type(module)), seen)
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts += (type(value), len(value))
        _add_settings(parts, value, depth, seen, follow)
    elif isinstance(value, dict):
        parts += (type(value), len(value))
        _add_settings(parts, value, depth, seen, follow)
        _add_settings(parts, value.values(), depth, seen, follow)
    elif callable(value):
        parts.append(id(value))
        if follow:
            _add_reach(parts, of_function(value), seen)
    else:
        parts += (type(value), id(value), *_slots(value))
        _add_setting(parts, contents_of(value), depth, seen, follow)


def _add_settings(parts: list[Any], values: Iterable[Any], depth: int, seen: set[int], follow: bool) -> None:
    for value in values:
        _add_setting(parts, value, depth, seen, follow)


def _slots(value: Any) -> Iterator[Any]:
    """The plain values that an object without a dictionary holds."""
    for base in type(value).__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            found = getattr(value, name, None)
            yield found if type(found) in _PLAIN else id(found)
