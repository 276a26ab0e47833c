"""What a relevance function sees (`Step`) and what it returns (`Shares`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from relprop.engine.graph import Node, Ref, refs
from relprop.engine.looks import traced

if TYPE_CHECKING:
    from relprop.engine.rules import Rule

_BLOCK = 1024
_ROW = 1 << 17
"""A row of at most so many numbers is not worth several threads; torch sums it in a tree, as exact as blocks."""

CACHED = 1 << 19
"""How many numbers a thread works on at a time where one pass over memory takes more than one operation on a CPU: so many stay
in its cache."""

Journal = Callable[["Node", Ref, Tensor], None]
"""Takes down the relevance of a value that an operation reads and that is no data: node, value, relevance."""


class Layout(NamedTuple):
    """Where the samples of a batch lie in a tensor: index i of `dimension` belongs to sample (i // inner) mod B."""

    dimension: int
    inner: int


def sum_per_sample(values: Tensor, layout: Layout | None, batch: int) -> Tensor:
    """Σ values of each sample, float64, shape (B,). Blocks of 1024 values are summed in the tensor's own precision.

    With `layout` None, or one sample, all values belong to one sample.
    """
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    if traced() and (layout is None or batch == 1):
        return values.sum(dtype=torch.float64).reshape(1)
    if layout is None or batch == 1:
        return _blocked_sum(as_in_memory(values, 0).reshape(1, -1))
    dimension, inner = layout
    size = values.shape[dimension]
    if traced() and layout == Layout(0, 1) and size == batch and values.dim() > 1:
        return values.sum(
            tuple(range(1, values.dim())), dtype=torch.float64
        )  # in what order, the compiler sees
    if dimension == 0 and size == batch * inner:
        return _blocked_sum(as_in_memory(values, 1).reshape(batch, -1))
    split = (*values.shape[:dimension], size // (batch * inner), batch, inner, *values.shape[dimension + 1 :])
    values = values.reshape(split)
    if values.dim() > dimension + 3:  # what lies within one index first: the rest is small enough to be moved
        values = values.sum(tuple(range(dimension + 3, values.dim())))
    return _blocked_sum(values.movedim(dimension + 1, 0).reshape(batch, -1))


def _blocked_sum(rows: Tensor) -> Tensor:
    """Row sums in float64: exact enough in float32 within a block, and as fast as memory allows."""
    length = rows.shape[1]
    if rows.dtype == torch.float64 or traced():  # a compiled sum converts as it reads
        return rows.sum(1, dtype=torch.float64)
    if length <= _ROW:
        return rows.sum(1).double()
    block = _block(length)
    if length % block == 0:
        return rows.view(rows.shape[0], -1, block).sum(-1).sum(-1, dtype=torch.float64)
    whole = length // block * block
    total = rows[:, :whole].reshape(rows.shape[0], -1, block).sum(-1).sum(-1, dtype=torch.float64)
    return total + rows[:, whole:].sum(1, dtype=torch.float64)


def size_per_sample(values: Tensor, layout: Layout | None, batch: int) -> Tensor:
    """Σ |values| of each sample, float64, shape (B,), without a second tensor of that size where the samples lie first."""
    rows = rows_of(values, layout, batch)
    if rows is None:
        return sum_per_sample(values.abs(), layout, batch)
    count, length = rows.shape
    size = columns_at_a_time(count)
    scratch, sums = values.new_empty(count * min(size, length)), []
    for start in range(0, length, size):
        part = rows[:, start : start + size]
        sums.append(_blocked_sum(torch.abs(part, out=scratch[: part.numel()].view(part.shape))))
    return torch.stack(sums).sum(0)


def columns_at_a_time(count: int) -> int:
    """How many columns of so many rows stay in the caches of the threads that work on them."""
    size = max(1, CACHED * torch.get_num_threads() // count)
    return size - size % _BLOCK if size > _BLOCK else size


def rows_of(values: Tensor, layout: Layout | None, batch: int) -> Tensor | None:
    """A large tensor on a CPU as a row for each sample, its values as they lie in memory, without a copy; None for all others."""
    if traced() or values.device.type != "cpu" or values.numel() < 2 * CACHED:
        return None
    if values.dtype not in (torch.float32, torch.float64) or values.requires_grad:
        return None
    values = as_in_memory(values, 0 if batch == 1 else 1)
    if not values.is_contiguous():
        return None
    if batch == 1:
        return values.view(1, -1)
    return values.view(batch, -1) if layout == Layout(0, 1) and values.shape[0] == batch else None


def one_of(values: Tensor) -> Tensor:
    """The one sample of a tensor that is one seen as many, the samples first; any other tensor as it is."""
    seen = values.dim() > 1 and values.shape[0] > 1 and values.stride(0) == 0 and not traced()
    return values[:1] if seen else values


def all_finite(values: Tensor) -> Tensor:
    """Whether no value is NaN or infinite, as a tensor of one; many times as fast as to ask each."""
    if values.is_complex() or values.numel() == 0:
        return torch.isfinite(values).all()
    return torch.isfinite(values.amax()) & torch.isfinite(values.amin())


@lru_cache
def _block(size: int) -> int:
    """The largest block of at most 1024 values, but not far below, that divides a row; 1024 where none does."""
    return next((block for block in range(_BLOCK, _BLOCK // 8, -1) if size % block == 0), _BLOCK)


def as_in_memory(values: Tensor, first: int) -> Tensor:
    """The tensor with its dimensions, after the `first` ones, in the order that they have in memory: a sum over them then
    needs no copy."""
    if values.is_contiguous():
        return values
    if values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last):
        return values.permute(0, 2, 3, 1)
    rest = sorted(range(first, values.dim()), key=values.stride, reverse=True)
    return values.permute(*range(first), *rest)


def lie_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of a shape have their values in the same order in memory, without gaps."""
    if one.shape != other.shape:
        return False
    if one.is_contiguous():
        return other.is_contiguous()
    steps = zip(one.shape, one.stride(), other.stride(), strict=True)
    return all(a == b or size == 1 for size, a, b in steps) and is_dense(one)


def is_dense(values: Tensor) -> bool:
    """Whether the values, the samples first, lie in memory without gaps, in whatever order: channels last, for instance."""
    return values.is_contiguous() or as_in_memory(values, 1).is_contiguous()


@dataclass(frozen=True, slots=True)
class Shares:
    """The relevance that an operation hands to its arguments, and what it absorbed.

    `arguments`: from the position of an argument (or the name of a keyword) to relevance of that argument's shape; a
    list of them where the argument is a list of tensors. Arguments left out get nothing.
    `absorbed`: from a reason to its sum over each sample, (B,) float64. Computed from the rule's formula, never as a
    difference of what came in and what went out: otherwise the audit could not fail.
    `magnitude`: the largest Σ|R| of each sample on the way through an operation that is many in one (a recurrent
    layer), (B,) float64.
    """

    arguments: dict[int | str, Any]
    absorbed: dict[str, Tensor] = field(default_factory=dict)
    magnitude: Tensor | None = None


@dataclass(slots=True)
class Step:
    """One operation at the time of the walk: its values, its rule, and what is known of them."""

    node: Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    rule: Rule
    batch: int
    is_data: Callable[[Ref], bool]  # carries relevance
    is_nonnegative: Callable[[Ref], bool]  # never below zero, whatever the input
    layout_of: Callable[[Ref], Layout | None]
    gates: Callable[[Ref], bool]  # the output of a sigmoid or softmax, rearranged at most
    statistics: Callable[[Ref, Ref], bool]  # the first is a statistic (norm, deviation, mean) of the second
    parameters: Callable[[Ref], bool]  # computed from weights alone
    cached: Callable[
        [Ref, str, Callable[[], Any]], Any
    ]  # something derived from a value, kept with the weights
    settings: dict[str, Any] = field(default_factory=dict)  # of the node alone, kept from call to call
    memory: Any = None  # what `Operation.remembers` kept of the forward pass
    journal: Journal | None = None  # asks for the relevance of weights
    activated: Callable[[Ref], bool] = lambda ref: False  # the output of an activation, rearranged at most
    rectified: bool = False  # the relevance is 0 wherever the output is not positive
    spare: bool = False  # nothing reads the output after this step: it may be written over

    @property
    def function(self) -> Callable[..., Any]:
        """What the operation computes."""
        assert self.node.function is not None
        return self.node.function

    def data(self, position: int | str) -> bool:
        """Whether the argument at that position (or keyword) depends on what is explained."""
        argument = self._argument(position)
        return any(self.is_data(ref) for ref in refs(argument))

    def nonnegative(self, position: int | str) -> bool:
        """Whether the argument at that position is never negative."""
        found = list(refs(self._argument(position)))
        return bool(found) and all(self.is_nonnegative(ref) for ref in found)

    def is_activated(self, position: int) -> bool:
        """Whether the argument at that position is the output of an activation, rearranged at most."""
        return any(self.activated(ref) for ref in refs(self._argument(position)))

    def is_gate(self, position: int) -> bool:
        """Whether the argument at that position is a gate: the output of a sigmoid or softmax, rearranged at most."""
        return any(self.gates(ref) for ref in refs(self._argument(position)))

    def is_statistic(self, position: int, of: int) -> bool:
        """Whether one argument is a norm, a mean or a deviation over the values of the other."""
        pairs = ((s, x) for s in refs(self._argument(position)) for x in refs(self._argument(of)))
        return any(self.statistics(s, x) for s, x in pairs)

    def is_parameter(self, position: int) -> bool:
        """Whether the argument at that position is computed from the model's weights alone."""
        return any(self.parameters(ref) for ref in refs(self._argument(position)))

    def _argument(self, position: int | str) -> Any:
        if isinstance(position, str):
            return self.node.kwargs.get(position)
        return self.node.args[position] if position < len(self.node.args) else None

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def give(self, argument: Any, relevance: Tensor) -> None:
        """Take down the relevance of an argument of the node that is no data, where the relevance of weights is asked
        for. Its shape is the argument's, or one that broadcasting makes of it: what belongs to one value is summed."""
        if self.journal is not None and isinstance(argument, Ref) and not self.is_data(argument):
            self.journal(self.node, argument, relevance)

    def account(self, values: Tensor, index: int | None = None) -> Tensor:
        """Σ per sample of a tensor that is laid out like the output (or like its part `index`): (B,) float64."""
        return sum_per_sample(values, self.layout_of(Ref(self.node.name, index)), self.batch)

    def account_argument(self, values: Tensor, position: int) -> Tensor:
        """Σ per sample of a tensor that is laid out like an argument: (B,) float64."""
        ref = next(refs(self.node.args[position]))
        return sum_per_sample(values, self.layout_of(ref), self.batch)
