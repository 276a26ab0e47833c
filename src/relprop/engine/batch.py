"""The samples among the inputs of a call: how many they are, along which dimensions, and a few of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

States = frozenset[tuple[int, int]]
"""Sizes of recurrent layers' states, (layers · directions, width)."""


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
