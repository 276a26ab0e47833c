"""The units of a module by their relevance: channels, neurons, tokens and the heads of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from relprop.engine.graph import Ref
from relprop.engine.plan import table
from relprop.errors import InvalidInput
from relprop.explain.again import Find, Inside
from relprop.explain.captured import Captured
from relprop.explain.conditions import AXES
from relprop.explain.heads import contexts, heads_first
from relprop.explain.places import places
from relprop.explain.seen import samples_first

Unit = Literal["channels", "neurons", "tokens", "heads"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ranking:
    """The units of a module, for each sample from the most relevant to the least.

    Attributes:
        path, unit: which module, and what is ranked.
        index: (B, k) the units. relevance: (B, k) their R_c = Σ R over all positions; `normalise`d it is divided by
            Σ_c |R_c| over all units.
        total: (B,) Σ_c R_c over all units.
    """

    path: str
    unit: Unit
    index: Tensor
    relevance: Tensor
    total: Tensor

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            (
                str(sample),
                ", ".join(f"{int(i)} ({float(r):+.3g})" for i, r in zip(index, relevance, strict=True)),
            )
            for sample, (index, relevance) in enumerate(
                zip(self.index[:, :8], self.relevance[:, :8], strict=True)
            )
        ]
        return table(("sample", f"{self.unit} of {self.path} (relevance)"), rows)

    def __repr__(self) -> str:
        return str(self)  # as notebooks show it


def ranked(inside: Inside, path: str, unit: Unit, k: int | None = None, normalise: bool = False) -> Ranking:
    """The units of the module at `path` by relevance, the k first ones (all by default)."""
    groups = inside.observed(finder(path, unit), path)
    model = inside.parts[0].explainer.model
    captured = inside.parts[0].captured
    refs = [ref for group in finder(path, unit)(captured) for ref in group]
    values = [tensor for group in groups for tensor in group]
    batch = sum(part.batch for part in inside.parts)
    sums = [
        units_first(captured, model, path, unit, ref, value, batch).flatten(2).sum(2, dtype=torch.float64)
        for ref, value in zip(refs, values, strict=True)
    ]
    return listed(path, unit, together(sums, path, unit), k, normalise)


def listed(path: str, unit: Unit, relevance: Tensor, k: int | None, normalise: bool) -> Ranking:
    """The ranking of units with relevance (B, units)."""
    count = relevance.shape[1]
    if k is not None and not 1 <= k <= count:
        raise InvalidInput(
            f"{unit}: k={k} of {path!r}, which has {count}\n  do: give 1 to {count}, or leave k out"
        )
    total = relevance.sum(1)
    if normalise:
        relevance = relevance / (relevance.abs().sum(1, keepdim=True) + 1e-10)
    values, index = relevance.sort(dim=1, descending=True, stable=True)
    return Ranking(path, unit, index[:, :k], values[:, :k], total)


def finder(path: str, unit: Unit) -> Find:
    """Where the units of a module are in a captured graph."""

    def find(captured: Captured) -> list[list[Ref]]:
        return [contexts(captured, path)] if unit == "heads" else places(captured, path)

    return find


def units_first(
    captured: Captured, model: Any, path: str, unit: Unit, ref: Ref, value: Tensor, batch: int
) -> Tensor:
    """A value as (B, units, positions…); the last dimension is there even where a unit has one value."""
    if unit == "heads":
        return heads_first(captured, model, ref, value, batch)
    seen = samples_first(value, captured.facts.layout.get(ref), batch)
    if seen.dim() < 2:
        raise InvalidInput(
            f"{unit}: {path!r} gives one number a sample, which has no {unit}\n  do: name another module"
        )
    return seen.movedim(AXES[unit], 1)[..., None]


def together(parts: list[Tensor], path: str, unit: Unit) -> Tensor:
    """The sum over calls and outputs of a module that all have the same units."""
    if len({part.shape[1] for part in parts}) > 1:
        counts = ", ".join(str(part.shape[1]) for part in parts)
        raise InvalidInput(
            f"{unit}: the calls or outputs of {path!r} have different numbers of them ({counts})\n"
            f'  do: name one call ("{path}@0"), or a module inside it'
        )
    return torch.stack(parts).sum(0)
