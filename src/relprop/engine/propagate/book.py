"""What a walk returns, and the accounts that it keeps on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relprop.engine.audit import Entry
from relprop.engine.graph import Node, Ref
from relprop.engine.looks import traced
from relprop.engine.propagate.program import Program
from relprop.engine.step import Shares, size_per_sample, sum_per_sample


@dataclass(frozen=True, slots=True)
class Mask:
    """What may pass a value: the relevance that arrives there is multiplied by `keep`, which broadcasts to it.

    The rest goes to the account "masked" under the name `where`. With `alone` all relevance that does not pass this
    value goes to the account "parallel".
    """

    keep: Tensor
    where: str
    alone: bool = False


@dataclass(slots=True)
class Walk:
    """What a walk returns: relevance of the inputs and of the values asked for, and every operation's account.

    One that was stopped on the way also holds the relevance that has arrived and was not handed on (`pending`, its
    sums in `sums`), and how many nodes it has passed; another walk can go on from there.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    observed: dict[Ref, Tensor] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    passed: Tensor | None = None  # Σ relevance that reached the inputs, (B,)
    masked: set[Ref] = field(default_factory=set)  # the masked values that relevance has reached
    pending: dict[Ref, Tensor] = field(default_factory=dict)
    sums: dict[Ref, Tensor] = field(default_factory=dict)
    position: int = 0
    from_outputs: bool = True  # all relevance started at the graph's outputs

    def fork(self) -> Walk:
        """A copy that can go on by itself."""
        return Walk(
            dict(self.inputs),
            dict(self.observed),
            list(self.entries),
            self.passed,
            set(self.masked),
            dict(self.pending),
            dict(self.sums),
            self.position,
            self.from_outputs,
        )


class Book:
    """Keeps the accounts of a walk; without an audit it does nothing."""

    def __init__(self, program: Program, batch: int, active: bool, entries: list[Entry]) -> None:
        self.program, self.batch, self.active, self.entries = program, batch, active, entries
        self.rows = {row.name: row for row in program.plan}

    def sum(self, ref: Ref, values: Tensor) -> Tensor | None:
        """Σ of a tensor that is laid out like a value, per sample."""
        if not self.active:
            return None
        return sum_per_sample(values, self.program.facts.layout.get(ref), self.batch)

    def handed(
        self, node: Node, ref: Ref, share: Tensor, arrived: Any, sums: dict[Ref, Tensor]
    ) -> Tensor | None:
        """Σ of a share. Where it is the very tensor that arrived, or a view of it, its sum is known."""
        if not self.active:
            return None
        if isinstance(arrived, Tensor) and _same_values(share, arrived):
            return sums[Ref(node.name)]
        return self.sum(ref, share)

    def mask(self, node: Node, mask: Mask, ref: Ref, lost: Tensor, way: Walk, bypassing: list[Ref]) -> None:
        """Enter what a mask takes from the relevance that has arrived at a value, and what does not pass that value."""
        if not self.active:
            return
        absorbed = {"masked": _sure(self.sum(ref, lost))}
        received, passed = way.sums[ref], _sure(self.sum(ref, way.pending[ref]))
        if bypassing:
            absorbed["parallel"] = _total([way.sums[other] for other in bypassing])
            received = received + absorbed["parallel"]
        way.sums[ref] = passed
        self.entries.append(
            Entry(node.name, "condition", node.module, node.source, mask.where, received, passed, absorbed)
        )

    def enter(
        self, node: Node, arrived: Any, shares: Shares, passed: list[Tensor | None], sums: dict[Ref, Tensor]
    ) -> None:
        """Enter the account of an operation."""
        if not self.active:
            return
        row = self.rows[node.name]
        parts = arrived if isinstance(arrived, list) else [arrived]
        refs_of = (
            [Ref(node.name, i) for i in range(len(parts))] if isinstance(arrived, list) else [Ref(node.name)]
        )
        received = [sums[ref] for ref in refs_of if ref in sums]
        size = None
        if row.kind not in _KEEPING:
            sizes = [
                size_per_sample(part, self.program.facts.layout.get(ref), self.batch)
                for ref, part in zip(refs_of, parts, strict=True)
                if part is not None
            ]
            size = _total(sizes)
            if shares.magnitude is not None:
                size = torch.maximum(size, shares.magnitude)
        handed = [amount for amount in passed if amount is not None]
        self.entries.append(
            Entry(
                node.name,
                row.operation,
                row.module,
                row.source,
                self.program.printed[node.name],
                _total(received),
                _total(handed) if handed else torch.zeros_like(received[0]),
                shares.absorbed,
                size,
            )
        )


def _sure(amount: Tensor | None) -> Tensor:
    assert amount is not None
    return amount


def _same_values(share: Tensor, arrived: Tensor) -> bool:
    """Whether both are the same numbers in the same memory."""
    if traced():
        return share is arrived
    return share is arrived or (
        share.data_ptr() == arrived.data_ptr()
        and share.numel() == arrived.numel()
        and share.is_contiguous()
        and arrived.is_contiguous()
    )


_KEEPING = ("activation", "selection", "norm")


def _total(parts: list[Tensor]) -> Tensor:
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result
