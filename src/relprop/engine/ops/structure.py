"""Operations that move values and leave them as they are, sums over places, and the embedding.

A selection is linear with weights 0 and 1, one 1 per output: its adjoint puts each relevance back where its
value came from, and adds up where a value was used several times. What comes from no data (padding, fills)
keeps its share in the account "constant".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.engine.graph import Meta, Node, Ref, name_of, refs, replace_refs
from relprop.engine.ids import recoded
from relprop.engine.ops.elementwise import addition_rule, stabilised, sum_to
from relprop.engine.ops.table import Nonnegative, Operation, Propagate, first_known, pass_on, register, rows
from relprop.engine.rules import Addition, Epsilon, Pass
from relprop.engine.rules.affine import add
from relprop.engine.step import Shares, Step

# ---------------------------------------------------------------- selections


def cast(step: Step, relevance: Tensor) -> Shares:
    """Changes of type and device: relevance goes to the argument's device, in its type (16 bits: in
    float32)."""
    x = step.args[0]
    return Shares({0: relevance.to(x.device, x.dtype if x.is_floating_point() else relevance.dtype)})


def selection(step: Step, relevance: Any) -> Shares:
    """Each relevance goes back to the place its value came from, by the adjoint of the operation."""
    given, precision = _parts(relevance)
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().to(precision).requires_grad_())
        return leaves[-1]

    with torch.enable_grad():
        args, constants = _lifted(step, leaf, lambda tensor: tensor.to(precision))
        outputs = _outputs(step, args)
    pairs = [(y, r) for y, r in zip(outputs, given, strict=False) if r is not None and y.requires_grad]
    shares: Sequence[Tensor | None] = [None] * len(leaves)
    if pairs:
        used, seeds = zip(*pairs, strict=True)
        shares = torch.autograd.grad(used, leaves, [r.to(precision) for r in seeds], allow_unused=True)
    absorbed = {"constant": _from_constants(step, given, precision)} if constants else {}
    if constants and step.journal is not None:
        _give_constants(step, given, precision)
    return Shares(_placed(step, shares), absorbed)


def reshaped(step: Step, relevance: Tensor) -> Shares:
    """Another shape for the same values in the same order."""
    return Shares({0: relevance.reshape(step.args[0].shape)})


def _give_constants(step: Step, given: list[Tensor | None], precision: torch.dtype) -> None:
    """The relevance of constants that stand beside data (a class token) goes back to their places, too."""
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().to(precision).requires_grad_())
        return leaves[-1]

    with torch.enable_grad():
        outputs = _outputs(step, _lifted(step, lambda tensor: tensor.to(precision), leaf)[0])
    pairs = [(y, r) for y, r in zip(outputs, given, strict=False) if r is not None and y.requires_grad]
    if pairs:
        used, seeds = zip(*pairs, strict=True)
        found = torch.autograd.grad(used, leaves, [r.to(precision) for r in seeds], allow_unused=True)
        for ref, share in zip(_constants(step, step.node.args, step.args), found, strict=True):
            if share is not None:
                step.give(ref, share)


def _constants(step: Step, structure: Any, value: Any) -> Iterator[Ref]:
    """The places of the constant tensors of real numbers among the arguments, in order of appearance."""
    if isinstance(structure, (list, tuple)) and not isinstance(structure, Ref):
        for part, given in zip(structure, value, strict=True):
            yield from _constants(step, part, given)
    elif isinstance(structure, Ref) and isinstance(value, Tensor) and not step.is_data(structure):
        yield from [structure] if value.is_floating_point() else []


def _from_constants(step: Step, given: list[Tensor | None], precision: torch.dtype) -> Tensor:
    """Σ relevance of the outputs that copy no data, (B,)."""
    args, _ = _lifted(
        step, lambda t: torch.ones_like(t, dtype=precision), lambda t: torch.zeros_like(t, dtype=precision)
    )
    parts = [
        step.account(torch.where(copies == 0, r, 0.0), index if isinstance(step.node.meta, tuple) else None)
        for index, (copies, r) in enumerate(zip(_outputs(step, args), given, strict=False))
        if r is not None
    ]
    return torch.stack(parts).sum(0)


def same_token(step: Step, relevance: Tensor) -> Shares:
    """An id computed from an id: relevance of the new one is that of the old one."""
    position = next(i for i, argument in enumerate(step.node.args) if i and step.data(i))
    return Shares({position: sum_to(relevance, step.args[position])})


def overwriting(step: Step, relevance: Tensor) -> Shares:
    """scatter, index_put, index_copy: of several values written to one place, the one that stayed gets its
    relevance.

    Every value is given a number and the operation run on the numbers: its result says where each output
    came from.
    """
    if _accumulates(step):
        return summation(step, relevance)
    numbered: list[Tensor] = []

    def numbers(tensor: Tensor) -> Tensor:
        start = 1 + sum(t.numel() for t in numbered)
        numbered.append(tensor)
        ids = torch.arange(start, start + tensor.numel(), dtype=torch.float64, device=tensor.device)
        return ids.reshape(tensor.shape)

    args, constants = _lifted(step, numbers, lambda t: torch.zeros_like(t, dtype=torch.float64))
    origin = _outputs(step, args)[0].long()
    sizes = [t.numel() for t in numbered]
    sums = relevance.new_zeros(1 + sum(sizes)).index_add_(0, origin.reshape(-1), relevance.reshape(-1))
    shares = [part.reshape(t.shape) for part, t in zip(torch.split(sums[1:], sizes), numbered, strict=True)]
    absorbed = {"constant": step.account(torch.where(origin == 0, relevance, 0.0))} if constants else {}
    return Shares(_placed(step, shares), absorbed)


def _accumulates(step: Step) -> bool:
    """Whether index_put adds to what is there."""
    adds = "index_put" in step.node.operation or "aten.put." in step.node.operation
    return adds and bool(step.arg(3, "accumulate", False))


def replaced(step: Step, relevance: Tensor) -> Shares:
    """copy, fill: nothing of the first argument is left in the output, all comes from the second."""
    if len(step.args) > 1 and step.data(1):
        return Shares({1: sum_to(relevance, step.args[1])})
    return Shares({}, {"constant": step.account(relevance)})


# ---------------------------------------------------------------- sums over places


def summation(step: Step, relevance: Tensor) -> Shares:
    """index_add, scatter_add, fold: each output is a sum of values from several places, shared as an
    addition.

    z = L(x) of all operands x; R_x = t(x) Lᵀ(R / L(t(x))), where t is the identity, |x|, x⁺ or 1 by the rule.
    """
    rule = addition_rule(step)
    if rule.how == "first" and step.data(0) and len(step.args) > 3:
        return Shares({0: relevance})
    transform = _TRANSFORMS[rule.how]
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        leaves.append(transform(tensor.detach().to(relevance.dtype)).requires_grad_())
        return leaves[-1]

    with torch.enable_grad():
        args, constants = _lifted(step, leaf, lambda t: transform(t.to(relevance.dtype)))
        z = _outputs(step, args)[0]
    s, absorbed = stabilised(step, z.detach(), rule.epsilon if rule.how == "proportional" else 0.0, relevance)
    grads = torch.autograd.grad(z, leaves, s)
    shares = [x.detach() * grad for x, grad in zip(leaves, grads, strict=True)]
    if constants:
        args, _ = _lifted(
            step, lambda t: torch.zeros_like(t, dtype=s.dtype), lambda t: transform(t.to(s.dtype))
        )
        others = [
            i for i, argument in enumerate(step.node.args) if isinstance(argument, Ref) and not step.data(i)
        ]
        reason = "bias" if all(step.is_parameter(i) for i in others) else "constant"
        absorbed[reason] = step.account(s * _outputs(step, args)[0])
    return Shares(_placed(step, shares), absorbed)


_TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "proportional": lambda x: x,
    "first": lambda x: x,
    "abs": torch.abs,
    "positive": lambda x: x.clamp(min=0),
    "equal": torch.ones_like,
}


def reduction(step: Step, relevance: Tensor) -> Shares:
    """scatter_reduce: a sum or mean is shared as an addition, a product evenly among its n factors; a largest or smallest
    value gives all to the value that it is.

    Of equals the first takes all: what stood in the place, then what was written there, in order.
    """
    how = step.arg(4, "reduce")
    if how in ("sum", "mean"):
        return summation(step, relevance)
    x, dim, index = step.args[:3]
    values = _written(step.args[3], index)
    own = bool(step.kwargs.get("include_self", True))
    if how == "prod":
        return _evenly(step, relevance, dim, index, own)
    order = torch.arange(1, index.numel() + 1, device=index.device).reshape(index.shape)
    wins = values == step.output.gather(dim, index)
    last = index.numel() + 1
    first = torch.full_like(step.output, last, dtype=torch.int64).scatter_reduce(
        dim, index, torch.where(wins, order, last), "amin"
    )
    stays = torch.zeros_like(first).scatter(dim, index, 1) == 0
    if own:
        stays |= x == step.output
    moved = torch.where(stays, 0.0, relevance)
    taken = relevance.new_zeros(last + 1).index_add_(0, first.flatten(), moved.flatten())
    return _handed(step, torch.where(stays, relevance, 0.0), taken[1:last].reshape(index.shape), moved)


def _evenly(step: Step, relevance: Tensor, dim: int, index: Tensor, own: bool) -> Shares:
    """A product of the n values that meet in a place: 1/n to each (AttnLRP, Prop. 3.2)."""
    ones = torch.ones(index.shape, dtype=relevance.dtype, device=index.device)
    counts = torch.zeros_like(relevance).scatter_add(dim, index, ones)
    alone = counts == 0
    each = relevance / (counts + own).clamp(min=1)
    kept = torch.where(alone, relevance, each if own else 0.0)
    return _handed(step, kept, each.gather(dim, index), torch.where(alone, 0.0, each * counts))


def _handed(step: Step, kept: Tensor, written: Tensor, moved: Tensor) -> Shares:
    """The shares of a scatter: what stays in the places, and what goes to the values that are written, which is the
    relevance `moved` of the places."""
    shares: dict[int | str, Tensor] = {}
    absorbed: dict[str, Tensor] = {}
    if step.data(0):
        shares[0] = kept
    else:
        add(absorbed, "constant", step.account(kept))
    if step.data(3):
        shares[3] = torch.zeros_like(step.args[3], dtype=kept.dtype)
        _written(shares[3], written).copy_(written)
    else:
        add(absorbed, "constant", step.account(moved))
    return Shares(shares, absorbed)


def reduction_by_rows(step: Step, relevance: Tensor) -> Shares:
    """index_reduce: a scatter_reduce whose index is the same in every row."""
    x, dim, index, values = step.args[:4]
    shape = [1] * values.dim()
    shape[dim] = -1
    places = index.reshape(shape).expand(values.shape)
    node = dataclasses.replace(step.node, function=torch.ops.aten.scatter_reduce.two)
    return reduction(
        dataclasses.replace(step, node=node, args=(x, dim, places, values, *step.args[4:])), relevance
    )


def _written(values: Tensor, index: Tensor) -> Tensor:
    """Those of the values that a scatter writes: as many as there are places in its index."""
    return values[tuple(slice(size) for size in index.shape)]


# ---------------------------------------------------------------- their common parts


def _parts(relevance: Any) -> tuple[list[Tensor | None], torch.dtype]:
    """The relevance of each part of the output, and its type."""
    given = list(relevance) if isinstance(relevance, (list, tuple)) else [relevance]
    return given, next(r.dtype for r in given if r is not None)


def _outputs(step: Step, args: Any) -> list[Tensor]:
    """What the operation makes of other arguments, as a list of its parts; a fill value counts as 0."""
    kwargs = step.kwargs
    if step.node.operation in _FILL_PLACES and kwargs.get("value") is not None:
        kwargs = kwargs | {"value": 0}
    if step.node.operation in ("aten.scatter_add.default", "aten.scatter_reduce.two"):
        args = [*args[:3], _written(args[3], args[2]), *args[4:]]  # or torch finds no derivative
    result = step.function(*args, **kwargs)
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _lifted(
    step: Step, data: Callable[[Tensor], Tensor], constant: Callable[[Tensor], Tensor]
) -> tuple[list[Any], bool]:
    """The arguments with each data tensor and each constant tensor of real numbers replaced, and a fill
    value by 0.

    Also whether values can come from elsewhere than the data: from such constants or from a fill.
    """
    found = step.node.operation in _FILL_PLACES or step.node.operation in _FILLING

    meta = step.node.meta
    whole = isinstance(meta, Meta) and not meta.dtype.is_floating_point and _copies(step.node)

    def new(structure: Any, value: Any) -> Any:
        nonlocal found
        if isinstance(structure, (list, tuple)) and not isinstance(structure, Ref):
            return [new(s, v) for s, v in zip(structure, value, strict=True)]
        if not isinstance(structure, Ref) or not isinstance(value, Tensor):
            return value
        if step.is_data(structure):
            return data(value)
        if not value.is_floating_point() and not whole:
            return value
        found = True
        return constant(value)

    args = [new(s, v) for s, v in zip(step.node.args, step.args, strict=True)]
    place = _FILL_PLACES.get(step.node.operation)
    if place is not None and place < len(args) and args[place] is not None:
        args[place] = 0
    return args, found


def _placed(step: Step, shares: Iterable[Tensor | None]) -> dict[int | str, Any]:
    """The shares of the data tensors, in order of appearance, at the places of their arguments."""
    found = iter(shares)
    placed = replace_refs(step.node.args, lambda ref: next(found) if step.is_data(ref) else None)
    holds = [any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(share)) for share in placed]
    return {i: share for i, share in enumerate(placed) if holds[i]}


def _copies(node: Node) -> bool:
    """Whether all tensors among the arguments are values that are copied, not places."""
    return node.operation.startswith(
        ("aten.cat.", "aten.concat", "aten.stack.", "aten.slice_scatter.", "aten.select_scatter.")
    )


_FILL_PLACES = {
    "aten.pad.default": 3,
    "aten.constant_pad_nd.default": 2,
    "aten.scatter.value": 3,
    "aten.index_fill.int_Scalar": 3,
}
"""Where a number that fills places stands among an operation's arguments."""

_FILLING = (
    "aten.im2col.default", "aten.triu.default", "aten.tril.default", "aten.diag_embed.default",
    "aten.max_unpool2d.default", "aten.max_unpool3d.default", "aten.block_diag.default",
)  # fmt: skip
"""Operations that fill places with zeros."""


# ---------------------------------------------------------------- the embedding


def embedding(step: Step, relevance: Tensor) -> Shares:
    """Relevance of tokens ends at their embedding: its sum over the embedding dimension, per token."""
    _give_rows(step, relevance)
    return Shares({1: relevance.sum(-1)})


def _give_rows(step: Step, relevance: Tensor) -> None:
    """Each row of the table has the relevance of the tokens that look it up; `relevance` (…, dimensions of a row)."""
    if step.journal is not None:
        table, tokens = step.args[:2]
        rows = torch.zeros_like(table, dtype=relevance.dtype)
        step.give(step.node.args[0], rows.index_add_(0, tokens.flatten(), relevance.flatten(0, -2)))


def embedding_bag(step: Step, relevance: Any) -> Shares:
    """Bags of embeddings, summed or averaged: each token's summand has its share of the sum, with ε; of the largest values
    each goes to the first token that has it. Where the tokens are no data, their weights in the sum are what is explained."""
    weight, tokens, offsets = step.args[:3]
    r = relevance[0]
    places = torch.arange(tokens.numel(), device=tokens.device)
    bag = torch.searchsorted(offsets[: r.shape[0]].contiguous(), places, right=True) - 1
    padding = step.arg(8, "padding_idx")
    counted = tokens.ne(-1 if padding is None else padding).to(r.dtype)
    if step.arg(4, "mode", 0) == 2:
        return _largest_of_bag(step, r, bag, counted > 0)
    factor = (
        counted if step.arg(6, "per_sample_weights") is None else counted * step.arg(6, "per_sample_weights")
    )
    if step.arg(4, "mode", 0) == 1:
        sizes = counted.new_zeros(r.shape[0]).index_add_(0, bag, counted)
        factor = factor / sizes.clamp(min=1)[bag]
    epsilon = step.rule.epsilon if isinstance(step.rule, Epsilon) else 0.0
    s, absorbed = stabilised(step, step.output[0], epsilon, r, 0)
    shares = weight[tokens] * s[bag] * factor[:, None]
    _give_rows(step, shares)
    named: int | str = 6 if len(step.args) > 6 else "per_sample_weights"
    return Shares({1 if step.data(1) else named: shares.sum(-1)}, absorbed)


def _largest_of_bag(step: Step, relevance: Tensor, bag: Tensor, counted: Tensor) -> Shares:
    """The largest value of a bag in each dimension; an empty bag is a constant 0."""
    values, count = step.args[0][step.args[1]], bag.numel()
    wins = (values == step.output[0][bag]) & counted[:, None]
    order = torch.where(wins, torch.arange(count, device=bag.device)[:, None], count)
    rows = bag[:, None].expand_as(order)
    first = torch.full_like(relevance, count, dtype=torch.int64).scatter_reduce(0, rows, order, "amin")
    shares = relevance.new_zeros(count + 1, relevance.shape[1]).scatter_add(0, first, relevance)[:count]
    _give_rows(step, shares)
    empty = step.account(torch.where(first == count, relevance, 0.0), 0)
    return Shares({1: shares.sum(-1)}, {"constant": empty})


# ---------------------------------------------------------------- the rows


def _all_known(node: Node, values: Set[Ref]) -> bool:
    """Never negative where none of the tensors in it is."""
    found = [ref for i in _SOURCES[node.operation] for ref in refs(node.args[i])]
    return bool(found) and all(ref in values for ref in found)


_SOURCES: dict[str, tuple[int, ...]] = {
    "aten.select_scatter.default": (0, 1),
    "aten.slice_scatter.default": (0, 1),
    "aten.diagonal_scatter.default": (0, 1),
    "aten.copy.default": (1,),
    "aten.index_put.default": (0, 2),
    "aten.index_copy.default": (0, 3),
    "aten.masked_scatter.default": (0, 2),
    "aten.scatter.src": (0, 3),
    "aten.scatter_add.default": (0, 3),
    "aten.scatter_reduce.two": (0, 3),
    "aten.index_reduce.default": (0, 3),
    "aten.put.default": (0, 2),
    "aten.fill.Tensor": (1,),
}
"""Where the values of an operation with several sources come from."""


def _fill_known(node: Node, values: Set[Ref]) -> bool:
    """A filled tensor is ≥ 0 where the tensor and what it is filled with are."""
    place = _FILL_PLACES[node.operation]
    fill = node.args[place] if place < len(node.args) else node.kwargs.get("value")
    return node.args[0] in values and (fill is None or (isinstance(fill, (int, float)) and fill >= 0))


def _sum_known(node: Node, values: Set[Ref]) -> bool:
    """index_add is ≥ 0 where both its summands and its factor are."""
    alpha = node.kwargs.get("alpha", 1)
    return (
        node.args[0] in values and node.args[3] in values and isinstance(alpha, (int, float)) and alpha >= 0
    )


def _selections(names: str, nonnegative: Nonnegative, propagate: Propagate = selection) -> None:
    rows(names, Operation("selection", propagate, "inputs", Pass(), (Pass,), nonnegative))


_selections(
    "flatten.using_ints unflatten.int view_as reshape_as permute transpose.int t"
    " movedim.int movedim.intlist swapaxes expand expand_as broadcast_to repeat tile"
    " repeat_interleave.self_int repeat_interleave.self_Tensor squeeze squeeze.dim squeeze.dims unsqueeze"
    " flip roll rot90 unfold as_strided slice.Tensor narrow select.int index.Tensor index_select gather take"
    " take_along_dim diagonal diag_embed triu tril im2col pixel_shuffle pixel_unshuffle channel_shuffle"
    " split.Tensor split_with_sizes chunk unbind.int tensor_split.sections unsafe_split.Tensor"
    " unsafe_split_with_sizes unsafe_chunk"
    " upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec"
    " upsample_nearest1d upsample_nearest2d upsample_nearest3d"
    " _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec _upsample_nearest_exact3d.vec"
    " _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d"
    " reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d"
    " replication_pad3d"
    " cat concat concatenate stack masked_select block_diag",
    first_known(0),
)
_selections("view _unsafe_view reshape", first_known(0), reshaped)
_selections("select_scatter slice_scatter diagonal_scatter", _all_known)
_selections("pad constant_pad_nd", _fill_known)
_selections("scatter.src index_put index_copy put", _all_known, overwriting)
_selections("masked_scatter", _all_known, overwriting)
_selections("max_unpool2d max_unpool3d", first_known(0), overwriting)
_selections("scatter.value index_fill.int_Scalar", _fill_known, overwriting)
_selections("_to_copy to.dtype to.device to.dtype_layout to.other type_as", first_known(0), cast)
rows(
    "clone contiguous detach alias lift_fresh_copy",
    Operation("selection", pass_on, "nothing", Pass(), (Pass,), first_known(0)),
)
_selections("copy fill.Tensor", _all_known, replaced)
_selections("fill.Scalar zero", "never", replaced)

register(name_of(recoded), Operation("selection", same_token, "inputs", Pass(), (Pass,)))

_SUMS = (Addition, Epsilon)
rows("index_add", Operation("addition", summation, "inputs", Addition(), _SUMS, _sum_known))
rows("scatter_add", Operation("addition", summation, "inputs", Addition(), _SUMS, _all_known))
rows("scatter_reduce.two", Operation("addition", reduction, "both", Addition(), _SUMS, _all_known))
rows("index_reduce", Operation("addition", reduction_by_rows, "both", Addition(), _SUMS, _all_known))
rows("col2im", Operation("addition", summation, "inputs", Addition(), _SUMS, first_known(0)))

_TABLE = {0: "the table of embeddings depends on the explained input"}
rows("embedding", Operation("embedding", embedding, "inputs", Pass(), (Pass,), fixed=_TABLE))
for _bag in ("embedding_bag", "embedding_bag.padding_idx", "_embedding_bag"):
    rows(
        _bag,
        Operation("embedding", embedding_bag, "both", Epsilon(), (Epsilon,), fixed=_TABLE),
    )
