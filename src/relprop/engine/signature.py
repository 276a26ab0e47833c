"""What tells one kind of input, and one structure of a model, from another: the key of the cache of captured
graphs."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

_TABLES = ("_parameters", "_buffers")
_DEPTH = 4  # how far into containers and configuration objects a change is noticed


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
    """The modules of a model, their settings and hooks, and their weights by shape, type and identity of
    sharing.

    Weights are read live, so their values do not count; tensors in lists are constants of the graph, so
    theirs do.
    """
    if not isinstance(model, torch.nn.Module):
        return None
    parts: list[Any] = []
    order: dict[
        int, int
    ] = {}  # tensors by identity, in order of appearance: shared ones have the same number
    for path, module in model.named_modules(remove_duplicate=False):
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
                _add_setting(parts, value, _DEPTH)
    return hash(tuple(parts))


def _kind(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tensor.dtype, tensor.shape, tensor.device)


_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device))

_CONTAINERS = frozenset((dict, OrderedDict, set, list, tuple))


def _add_setting(parts: list[Any], value: Any, depth: int) -> None:
    """Hashable pieces of an attribute: numbers by value, tensors and functions by identity, containers by
    their contents."""
    kind = type(value)
    if kind in _PLAIN or isinstance(value, (int, float, complex, str, bytes)):
        parts += (kind, value)
    elif isinstance(value, Tensor):
        parts.append(
            (id(value), None if value.is_inference() else value._version, value.data_ptr(), _kind(value))
        )
    elif isinstance(value, torch.nn.Module) or callable(value) or depth == 0:
        parts.append(id(value))
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts += (kind, len(value))
        for item in value:
            _add_setting(parts, item, depth - 1)
    elif isinstance(value, dict):
        parts += (kind, len(value))
        for key, item in value.items():
            _add_setting(parts, key, depth - 1)
            _add_setting(parts, item, depth - 1)
    else:
        parts += (kind, id(value))
        _add_setting(parts, getattr(value, "__dict__", None), depth - 1)
