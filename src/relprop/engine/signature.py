"""What tells one kind of input, and one structure of a model, from another: the key of the cache of captured
graphs."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, compress
from operator import attrgetter
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.module import _global_forward_hooks as _GLOBAL_HOOKS
from torch.nn.modules.module import _global_forward_pre_hooks as _GLOBAL_PRE_HOOKS

from relprop.engine.reach import Reach, contents_of, held_by, of_class, of_function

_OWN = ("_parameters", "_buffers", "_modules")
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
    held = _HELD.get(model)
    live = None if held is None else held.live()
    if held is None or live is None:
        held = _HELD[model] = _looked_through(model)
        live = held.live()
        assert live is not None
    modules, rest = live
    parts: list[Any] = [held.key, *map(id, (*_GLOBAL_HOOKS.values(), *_GLOBAL_PRE_HOOKS.values()))]
    seen = {*map(id, modules)}
    _add_settings(parts, rest, _DEPTH, seen, True)
    for cls in dict.fromkeys(map(type, modules)):
        parts.append(id(held_by(cls, "forward")))
        _add_reach(parts, of_class(cls), seen)
    return hash(tuple(parts))


@dataclass(frozen=True, slots=True)
class _Held:
    """What the modules of a model held when it was looked through, each thing by its identity. While that is the same, so are
    the modules, the kinds of their tensors and all settings that are plain values: `key` stands for them.

    Values that could leave their identity to others are kept; nothing that could keep the model alive is.
    """

    key: int
    modules: tuple[weakref.ref[torch.nn.Module], ...]
    classes: list[int]
    names: list[str]
    values: list[int]
    kept: tuple[Any, ...]
    tensors: list[bool]  # which of the values are tensors, containers without contents, and things with parts
    empty: list[bool]
    parted: list[bool]
    kinds: list[Any]  # of the tensors

    def live(self) -> tuple[list[Any], list[Any]] | None:
        """The modules, and the values with parts that may have changed; None where something else has."""
        modules = [reference() for reference in self.modules]
        if any(module is None for module in modules) or [*map(id, map(type, modules))] != self.classes:
            return None
        names, values = _contents(modules)
        if names != self.names or [*map(id, values)] != self.values or any(compress(values, self.empty)):
            return None
        if [*map(_KIND, compress(values, self.tensors))] != self.kinds:
            return None
        return modules, [*compress(values, self.parted)]


_HELD: weakref.WeakKeyDictionary[Any, _Held] = weakref.WeakKeyDictionary()
_KIND = attrgetter("dtype", "shape", "device")


def _contents(modules: Iterable[Any]) -> tuple[list[str], list[Any]]:
    """The attributes, weights and submodules of modules: names and values."""
    own = [*map(vars, modules)]
    tables = [*own, *(attributes[table] for table in _OWN for attributes in own)]
    return [*chain.from_iterable(tables)], [*chain.from_iterable(map(dict.values, tables))]


def _looked_through(model: torch.nn.Module) -> _Held:
    paths = [*model.named_modules(remove_duplicate=False)]
    modules = {id(module): module for _, module in paths}
    classes = [*map(id, map(type, modules.values()))]
    names, values = _contents(modules.values())
    plain = [*map(_is_plain, values)]
    tensors = [isinstance(value, Tensor) for value in values]
    empty = [type(value) in _CONTAINERS and not value for value in values]
    others = modules.keys() | {id(vars(module)[table]) for module in modules.values() for table in _OWN}
    parted = [
        not any(known) and id(value) not in others
        for value, *known in zip(values, plain, tensors, empty, strict=True)
    ]
    order: dict[
        int, int
    ] = {}  # tensors by identity, in order of appearance: shared ones have the same number
    parts: list[Any] = [(path, id(module)) for path, module in paths] + classes
    for name, value, is_plain in zip(names, values, plain, strict=True):
        parts += (name, type(value))
        if isinstance(value, Tensor):
            parts += (_KIND(value), order.setdefault(id(value), len(order)))
        elif is_plain:
            _add_setting(parts, value, _DEPTH, set())
    return _Held(
        hash(tuple(parts)),
        tuple(map(weakref.ref, modules.values())),
        classes,
        names,
        [*map(id, values)],
        tuple(compress(values, plain)),
        tensors,
        empty,
        parted,
        [*map(_KIND, compress(values, tensors))],
    )


def _is_plain(value: Any) -> bool:
    """Whether it is a value that cannot change, and tells nothing but itself."""
    return type(value) in _PLAIN or (type(value) is tuple and all(type(part) in _PLAIN for part in value))


def _add_reach(parts: list[Any], reach: Reach | None, seen: set[int]) -> None:
    """Pieces of what code reads beside the modules."""
    if reach is not None:
        for value in reach.values():
            _add_setting(parts, value, _REACHED, seen, follow=False)


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
            (id(value), None if value.is_inference() else value._version, value.data_ptr(), _KIND(value))
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
