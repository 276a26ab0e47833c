"""Operations that move values and leave them as they are, the embedding, and sums along dimensions.

A selection is linear with weights 0 and 1, one 1 per output: its adjoint puts each relevance back where its value came
from, and adds up where a value was used several times. What comes from no data (padding, fills) keeps its share in the
account "constant".
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.engine.graph import Node, Ref, replace_refs
from relprop.engine.ops.table import Operation, rows
from relprop.engine.rules import Pass
from relprop.engine.step import Shares, Step


def selection(step: Step, relevance: Any) -> Shares:
    """Each relevance goes back to the place its value came from, by the adjoint of the operation."""
    precision = next(r for r in pytree.tree_leaves(relevance) if isinstance(r, Tensor))
    leaves: list[Tensor] = []

    def lift(structure: Any, values: Any) -> Any:
        """The arguments with each data tensor replaced by a leaf of the same shape."""
        if isinstance(structure, Ref):
            if not step.is_data(structure):
                filler = isinstance(values, Tensor) and values.is_floating_point()
                return values.to(precision.dtype) if filler else values
            leaf = torch.zeros(values.shape, dtype=precision.dtype, device=values.device, requires_grad=True)
            leaves.append(leaf)
            return leaf
        if isinstance(structure, (list, tuple)):
            items = [lift(s, v) for s, v in zip(structure, values, strict=True)]
            return items if isinstance(structure, list) else tuple(items)
        return values

    with torch.enable_grad():
        args = lift(step.node.args, step.args)
        result = step.function(*args, **step.kwargs)
    parts = list(result) if isinstance(result, (list, tuple)) else [result]
    given = list(relevance) if isinstance(result, (list, tuple)) else [relevance]
    pairs = [(part, r) for part, r in zip(parts, given, strict=False) if r is not None and part.requires_grad]
    grads = torch.autograd.grad([p for p, _ in pairs], leaves, [r.to(p.dtype) for p, r in pairs], allow_unused=True)
    found = iter(zip(leaves, grads, strict=True))

    def place(ref: Ref) -> Any:
        if not step.is_data(ref):
            return None
        leaf, grad = next(found)
        return torch.zeros_like(leaf) if grad is None else grad.detach()

    shares = replace_refs(step.node.args, place)
    arguments = {i: share for i, share in enumerate(shares) if _holds_tensor(share)}
    return Shares(arguments, _from_constants(step, given, args))


def _holds_tensor(share: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(share))


def _from_constants(step: Step, given: list[Any], args: Any) -> dict[str, Tensor]:
    """The relevance of outputs that copy no data: of fills, paddings and constant operands."""
    if not step.node.operation.startswith(_FILLING):
        return {}

    def ones(leaf: Any) -> Any:
        return torch.ones_like(leaf) if isinstance(leaf, Tensor) and leaf.requires_grad else _blank(leaf)

    copies = step.function(*pytree.tree_map(ones, args), **step.kwargs)
    if step.node.operation.startswith(("aten.pad.", "aten.constant_pad_nd.")):
        mode = next((a for a in (*step.args[2:], *step.kwargs.values()) if isinstance(a, str)), "constant")
        if mode != "constant":
            return {}
        copies = torch.nn.functional.pad(torch.ones_like(args[0]), step.args[1])
    copies = copies if isinstance(copies, (list, tuple)) else [copies]
    total = None
    for index, (copy, r) in enumerate(zip(copies, given, strict=True)):
        if r is not None:
            part = step.account(torch.where(copy == 0, r, torch.zeros_like(r)), index if len(given) > 1 else None)
            total = part if total is None else total + part
    return {} if total is None else {"constant": total}


def _blank(leaf: Any) -> Any:
    return torch.zeros_like(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


_FILLING = (
    "aten.pad.", "aten.constant_pad_nd.", "aten.cat.", "aten.concat", "aten.stack.", "aten.slice_scatter.",
    "aten.select_scatter.", "aten.index_put.", "aten.scatter.", "aten.copy.", "aten.masked_scatter.",
    "aten.im2col.", "aten.triu.", "aten.tril.",
)  # fmt: skip


def embedding(step: Step, relevance: Tensor) -> Shares:
    """Relevance of tokens ends at their embedding: its sum over the embedding dimension, per token."""
    return Shares({1: relevance.sum(-1)})


def _fill_known(node: Node, values: Set[Ref]) -> bool:
    """A padded tensor is ≥ 0 where the tensor and what it is filled with are."""
    fill = [v for v in (*node.args[2:], *node.kwargs.values()) if isinstance(v, (int, float))]
    return node.args[0] in values and all(v >= 0 for v in fill)


_SELECTION = Operation("selection", selection, "inputs", Pass(), (Pass,), "if inputs")
rows(
    "view reshape _unsafe_view flatten.using_ints unflatten.int view_as permute transpose.int t movedim.int movedim.intlist"
    " swapaxes expand expand_as broadcast_to repeat tile repeat_interleave.self_int repeat_interleave.self_Tensor"
    " squeeze squeeze.dim squeeze.dims unsqueeze flip roll rot90 unfold"
    " slice.Tensor narrow select.int index.Tensor index_select gather take take_along_dim diagonal"
    " split.Tensor split_with_sizes chunk unbind.int tensor_split.sections unsafe_split.Tensor unsafe_chunk"
    " clone contiguous detach alias lift_fresh_copy _to_copy to.dtype to.device to.dtype_layout to.other type_as float"
    " pixel_shuffle pixel_unshuffle channel_shuffle"
    " upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec upsample_nearest1d upsample_nearest2d"
    " upsample_nearest3d _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec _upsample_nearest_exact3d.vec"
    " reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
    " cat concat concatenate stack select_scatter slice_scatter scatter.src copy index_put im2col",
    _SELECTION,
)
rows("pad constant_pad_nd", Operation("selection", selection, "inputs", Pass(), (Pass,), _fill_known))
rows("scatter.value triu tril", Operation("selection", selection, "inputs", Pass(), (Pass,)))
rows("embedding", Operation("embedding", embedding, "inputs", Pass(), (Pass,)))
