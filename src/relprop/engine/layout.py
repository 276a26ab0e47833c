"""Where the samples of a batch lie in each value of a graph; an operation that mixes samples is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch.utils import _pytree as pytree

from relprop.engine.graph import Node, Ref, meta_of, parents, refs
from relprop.engine.step import Layout
from relprop.errors import CaptureError

_RESHAPES = (
    "aten.view.",
    "aten.reshape.",
    "aten._unsafe_view.",
    "aten.flatten.",
    "aten.unflatten.",
    "aten.view_copy.",
)
_MOVES: dict[str, int | None] = {
    "aten.slice.": 1, "aten.narrow.": 1, "aten.cat.": 1, "aten.split.": 2, "aten.split_with_sizes.": 2,
    "aten.chunk.": 2, "aten.repeat_interleave.self_int": 2,
    "aten.repeat.": None, "aten.tile.": None, "aten.flip.": None, "aten.roll.": None,
}  # fmt: skip
"""Operations that take, repeat, join or turn entries along dimensions, and where their one dimension stands (0 where it
is left out); None where they take several."""

_PLACED: dict[str, tuple[int, int]] = {
    "aten.index_select.": (1, 2), "aten.gather.": (1, 2), "aten.take_along_dim.": (2, 1), "aten.index_add.": (1, 2),
    "aten.index_copy.": (1, 2), "aten.index_fill.": (1, 2), "aten.scatter.": (1, 2), "aten.scatter_add.": (1, 2),
    "aten.scatter_reduce.": (1, 2), "aten.index_reduce.": (1, 2),
}  # fmt: skip
"""Operations that move values along one dimension: where that dimension stands, and the index that says whither."""

_ORDERED: dict[str, int] = {
    "aten.sort.": 1, "aten.topk.": 2, "aten.cumsum.": 1, "aten.cumprod.": 1, "aten.cummax.": 1, "aten.cummin.": 1, "aten.logcumsumexp.": 1,
    "aten.softmax.": 1, "aten._softmax.": 1, "aten.log_softmax.": 1, "aten._log_softmax.": 1,
    "aten._safe_softmax.": 1,
}  # fmt: skip
"""Operations that look at all values along one dimension, and where that dimension stands."""

_ATTENTION = ("aten.scaled_dot_product_", "aten._scaled_dot_product_")
"""Operations whose queries look at all keys and values, which lie in the last dimension but one."""


def layout_of(
    node: Node,
    ref: Ref,
    nodes: dict[str, Node],
    known: Mapping[Ref, Layout],
    numbers: Mapping[str, int],
    fed: Set[str],
) -> Layout:
    """Where the samples lie in a value (see `Layout`), from the sizes that grow with the batch.

    Only a reshape can merge the batch with another dimension; everything else leaves the merged dimension as it is.
    """
    if _rearranges(node, nodes, known, fed):
        raise _mixed(node, "moves values between the samples of a batch")
    meta = meta_of(nodes, ref)
    assert meta is not None
    if len(meta.batch) != 1:
        what = (
            "mixes the samples of a batch"
            if not meta.batch
            else "pairs the samples of a batch with each other"
        )
        raise _mixed(node, what)
    dimension = meta.batch[0]
    owners = _moved(node, ref, dimension, nodes, known, numbers)
    if owners is not None:
        return _pattern(node, dimension, owners)
    size = meta.shape[dimension]
    if size == 2:
        return Layout(dimension, 1)
    found: Layout | None = None
    for source in parents(node):
        own, shape = known.get(source), _shape(nodes, source)
        if own is None:
            continue
        inner = _inner_after(node, own, shape, meta.shape, dimension)
        if inner is None or size % (2 * inner):
            continue
        if found is not None and found.inner != inner:
            raise _mixed(
                node, "takes together values in which the samples of a batch lie in different orders"
            )
        found = Layout(dimension, inner)
    return found or Layout(dimension, size // 2)


def _inner_after(
    node: Node, own: Layout, before: tuple[int, ...], after: tuple[int, ...], dimension: int
) -> int | None:
    """How many entries in a row belong to one sample after an operation that keeps the order of all entries; None where
    the value that it reads does not say."""
    if not node.operation.startswith(_RESHAPES):
        return own.inner if before[own.dimension] == after[dimension] else None
    stride = own.inner * math.prod(before[own.dimension + 1 :])
    inner, rest = divmod(stride, math.prod(after[dimension + 1 :]))
    return inner if rest == 0 and inner else None


def _moved(
    node: Node,
    ref: Ref,
    dimension: int,
    nodes: dict[str, Node],
    known: Mapping[Ref, Layout],
    numbers: Mapping[str, int],
) -> list[int] | None:
    """Which sample (of two) each entry along the samples' dimension belongs to, after an operation that moves entries
    along it: the operation itself is run on these numbers. None for any other operation."""
    place = next((place for prefix, place in _MOVES.items() if node.operation.startswith(prefix)), -1)
    if place == -1 or node.function is None:
        return None
    sources = [source for source in refs(node.args[0]) if source in known]
    if not sources:
        return None
    first = sources[0]
    if place is not None and _dim(node, place, 0) % len(_shape(nodes, first)) != known[first].dimension:
        return None

    def owners(leaf: Any) -> Any:
        if not isinstance(leaf, Ref):
            return leaf
        if leaf.name in numbers:
            return numbers[leaf.name]
        meta = meta_of(nodes, leaf)
        assert meta is not None
        own = known.get(leaf) or Layout(meta.batch[0], meta.shape[meta.batch[0]] // 2)
        rows = torch.arange(meta.shape[own.dimension]) // own.inner % 2
        return rows.reshape([-1 if d == own.dimension else 1 for d in range(len(meta.shape))])

    try:
        args, kwargs = pytree.tree_map(owners, (node.args, node.kwargs), is_leaf=lambda x: isinstance(x, Ref))
        result = node.function(*args, **kwargs)
    except (AssertionError, IndexError, RuntimeError, TypeError):
        return None  # a size that is not known before it runs, or a constant that has no samples
    moved = result if ref.index is None else result[ref.index]
    return list(moved.movedim(dimension, 0).reshape(moved.shape[dimension], -1)[:, 0].tolist())


def _pattern(node: Node, dimension: int, owners: list[int]) -> Layout:
    """The layout in which entry i belongs to sample (i // inner) mod 2."""
    inner = owners.index(1) if 1 in owners else 0
    if not inner or len(owners) % (2 * inner) or owners != [i // inner % 2 for i in range(len(owners))]:
        raise _mixed(node, "moves values between the samples of a batch")
    return Layout(dimension, inner)


def number_of(node: Node, nodes: dict[str, Node], numbers: Mapping[str, int]) -> int | None:
    """The number that a node computes from sizes, for two samples; None where it is none."""
    if node.kind != "call" or node.meta is not None or node.function is None:
        return None
    if node.operation.startswith("aten.sym_size."):
        return int(_shape(nodes, node.args[0])[node.args[1]])
    if any(ref.name not in numbers for ref in parents(node)):
        return None
    args = pytree.tree_map(
        lambda leaf: numbers[leaf.name] if isinstance(leaf, Ref) else leaf,
        node.args,
        is_leaf=lambda leaf: isinstance(leaf, Ref),
    )
    try:
        value = node.function(*args)
    except (RuntimeError, TypeError):
        return None
    return value if isinstance(value, int) else None


def _shape(nodes: dict[str, Node], ref: Ref) -> tuple[int, ...]:
    meta = meta_of(nodes, ref)
    return () if meta is None else meta.shape


def _mixed(node: Node, what: str) -> CaptureError:
    return CaptureError(
        f"{node.operation} at {node.where()} {what}, so that no sample has an explanation of its own\n"
        "  do: explain the part of the model before it, or give one sample at a time; where the model takes steps before"
        " samples, wrap it in a module whose forward is model(x.transpose(0, 1)); where it takes one sample without a batch"
        " (the nodes of a graph), in one whose forward is model(x[0]), and give x[None]"
    )


def _rearranges(node: Node, nodes: dict[str, Node], known: Mapping[Ref, Layout], fed: Set[str]) -> bool:
    """Whether an operation moves values along the dimension of the samples to places that depend on the input, or looks
    at all of that dimension where it holds more than the samples: nothing then says which value is whose."""
    name = node.operation
    if name.startswith(("aten.index.", "aten.index_put.")):
        target = node.args[0]
        meta = meta_of(nodes, target)
        places = zip(range(99), node.args[1], strict=False)
        return meta is not None and any(d in meta.batch and _is_fed(index, fed) for d, index in places)
    for prefix, (along, index) in _PLACED.items():
        if name.startswith(prefix):
            return _samples_at(node.args[0], node.args[along], nodes) and _is_fed(node.args[index], fed)
    for prefix, position in _ORDERED.items():
        if name.startswith(prefix) and isinstance(node.args[0], Ref):
            return node.args[0] in known and _samples_at(node.args[0], _dim(node, position, -1), nodes)
    if name.startswith(_ATTENTION):
        return any(read in known and _samples_at(read, -2, nodes) for read in node.args[1:3])
    return False


def _dim(node: Node, position: int, default: int) -> Any:
    """The argument dim, by its position or its name."""
    return node.args[position] if position < len(node.args) else node.kwargs.get("dim", default)


def _is_fed(index: Any, fed: Set[str]) -> bool:
    return isinstance(index, Ref) and index.name in fed


def _samples_at(ref: Ref, dim: int | None, nodes: dict[str, Node]) -> bool:
    """Whether the samples lie along that dimension."""
    meta = meta_of(nodes, ref)
    return meta is not None and dim is not None and dim % max(1, len(meta.shape)) in meta.batch
