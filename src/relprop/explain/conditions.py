"""Conditions on the way of relevance: which channels, neurons, tokens or heads of a module may pass it on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Ref
from relprop.engine.propagate import Mask
from relprop.errors import InvalidInput
from relprop.explain.captured import Captured
from relprop.explain.heads import contexts, head_axis
from relprop.explain.places import places, shape_of
from relprop.explain.seen import as_before, samples_first

Indices = int | Sequence[int] | Tensor | slice | range
AXES = {"channels": 1, "tokens": 1, "neurons": -1}
"""The dimension of a module's output (samples first) that each word counts along."""


@dataclass(frozen=True, init=False, eq=False)
class Condition:
    """Only the relevance of some units of a module is followed on (concept-conditional relevance, Achtibat et al. 2023).

    The relevance at the output of the module at `path` is set to 0 outside the named units, and the walk goes on with
    what is left; the rest is in the audit as "masked".

        relprop.Condition("layer3.1", channels=[5, 9])               # channel 5 or 9
        relprop.Condition("layer3.1", channels=5) & relprop.Condition("layer2", channels=[1, 7])   # and, at layer2, 1 or 7

    Args:
        path: a module; "relu@1" is its second call alone ("relu@0" the first), "relu" all of its calls.
        channels: indices along dimension 1 of its output (samples are dimension 0): a number, several, a slice, a
            boolean mask. Tokens alike.
        tokens: the same dimension of an output (B, T, D).
        neurons: indices along the last dimension.
        heads: indices of the heads of the attention that is computed in the module, before its output projection.
        along: a dict from a dimension of the output to indices along it, for any other.
        mask: a tensor that broadcasts to one sample's output, True (or 1) where relevance may pass: places of an image
            as (H, W), single units as (C, H, W).
        output: which output, of a module that gives several (from 0, in the order in which they are computed).
        exclude_parallel: relevance that does not pass this module at all (through a skip connection around it) is cut
            off, too, and is in the audit as "parallel".

    Several of the words in one condition hold at once. Raises `InvalidInput` where nothing is named.
    """

    path: str
    along: tuple[tuple[int, Any], ...]
    heads: Any
    mask: Tensor | None
    output: int | None
    exclude_parallel: bool
    also: Condition | None = None

    def __init__(
        self,
        path: str,
        *,
        channels: Indices | None = None,
        tokens: Indices | None = None,
        neurons: Indices | None = None,
        heads: Indices | None = None,
        along: Mapping[int, Indices] | None = None,
        mask: Tensor | None = None,
        output: int | None = None,
        exclude_parallel: bool = False,
        also: Condition | None = None,
    ) -> None:
        named = {"channels": channels, "tokens": tokens, "neurons": neurons}
        pairs = [(AXES[word], indices) for word, indices in named.items() if indices is not None]
        pairs += list((along or {}).items())
        if not isinstance(path, str):
            raise InvalidInput(
                f"Condition: {path!r} is no path of a module\n  do: give a name of model.named_modules()"
            )
        if heads is not None and (pairs or mask is not None):
            raise InvalidInput(
                "Condition: heads= stands alone\n  do: join two conditions: Condition(…) & Condition(…)"
            )
        if not pairs and heads is None and mask is None:
            raise InvalidInput(
                f"Condition: nothing of {path!r} is named\n  do: give channels=, tokens=, neurons=, heads=, along= or mask="
            )
        fields = {"path": path, "heads": heads, "mask": mask, "output": output, "also": also}
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "along", tuple(pairs))
        object.__setattr__(self, "exclude_parallel", exclude_parallel)

    def __and__(self, other: Condition) -> Condition:
        """Both hold: relevance passes the units of this one and the units of that one."""
        *rest, last = list(self)
        joined = _with(last, other)
        for part in reversed(rest):
            joined = _with(part, joined)
        return joined

    def __iter__(self) -> Iterator[Condition]:
        """The conditions that it joins, each on one module."""
        part: Condition | None = self
        while part is not None:
            yield part
            part = part.also

    def __str__(self) -> str:
        return " & ".join(_text(part) for part in self)


def _with(part: Condition, also: Condition) -> Condition:
    copy = object.__new__(Condition)
    for field in dataclasses.fields(Condition):
        object.__setattr__(copy, field.name, getattr(part, field.name))
    object.__setattr__(copy, "also", also)
    return copy


def _text(part: Condition) -> str:
    words = [f"dimension {axis}: {_short(indices)}" for axis, indices in part.along]
    words += [f"heads {_short(part.heads)}"] if part.heads is not None else []
    words += [f"mask of shape {tuple(part.mask.shape)}"] if part.mask is not None else []
    return f"{part.path} ({', '.join(words)})"


def _short(indices: Any) -> str:
    if isinstance(indices, Tensor):
        indices = indices.tolist()
    text = str(indices)
    return text if len(text) < 60 else text[:57] + "…"


def masks_of(captured: Captured, model: Any, condition: Condition, batch: int) -> dict[Ref, Mask]:
    """The mask of every value that a condition is about, for so many samples.

    Raises `InvalidInput` for paths, indices and masks that do not fit the model.
    """
    found: dict[Ref, Mask] = {}
    for part in condition:
        for ref in _places(captured, part):
            keep = _keep(captured, model, part, ref, batch)
            before = found.get(ref)
            alone, where = part.exclude_parallel, _text(part)
            if before is not None:
                keep, alone, where = before.keep * keep, alone or before.alone, f"{before.where} & {where}"
            found[ref] = Mask(keep, where, alone)
    return found


def _places(captured: Captured, part: Condition) -> list[Ref]:
    if part.heads is not None:
        refs = contexts(captured, part.path)
    else:
        calls = places(captured, part.path)
        several = max(len(call) for call in calls)
        if several > 1 and part.output is None:
            raise InvalidInput(
                f"Condition: {part.path!r} gives {several} outputs\n  do: say which: output=0 to output={several - 1}"
            )
        place = part.output or 0
        if not 0 <= place < several:
            raise InvalidInput(
                f"Condition: output={place} of {part.path!r}, which gives {several}\n  do: 0 to {several - 1}"
            )
        refs = [call[place] for call in calls if place < len(call)]
    if part.exclude_parallel and len(refs) > 1:
        raise InvalidInput(
            f"Condition: exclude_parallel with {part.path!r}, which is called {len(refs)} times\n"
            f'  do: name one of its calls: "{part.path}@0" to "{part.path}@{len(refs) - 1}"'
        )
    return refs


def _keep(captured: Captured, model: Any, part: Condition, ref: Ref, batch: int) -> Tensor:
    """1 where relevance may pass, in the layout of the value."""
    layout, value = captured.facts.layout.get(ref), shape_of(captured, ref, batch)
    seen = samples_first(value, layout, batch)
    keep = torch.ones(seen.shape[1:])
    pairs = list(part.along)
    if part.heads is not None:
        node = next(node for node in captured.graph.nodes if node.name == ref.name)
        pairs = [(head_axis(node, seen, model), part.heads)]
    for axis, indices in pairs:
        keep = keep * _line(part.path, axis, indices, seen)
    if part.mask is not None:
        try:
            keep = keep * part.mask.detach().to("cpu", keep.dtype).expand(keep.shape)
        except RuntimeError as error:
            raise InvalidInput(
                f"Condition: a mask of shape {tuple(part.mask.shape)} for {part.path!r},"
                f" whose output for one sample is {tuple(keep.shape)}\n  do: give a mask that broadcasts to that"
            ) from error
    return as_before(keep.expand(batch, *keep.shape), value, layout, batch)


def _line(path: str, axis: int, indices: Any, seen: Tensor) -> Tensor:
    """1 at the named indices of a dimension, in a shape that broadcasts to one sample."""
    dimension = axis if axis >= 0 else seen.dim() + axis
    if not 1 <= dimension < seen.dim():
        raise InvalidInput(
            f"Condition: dimension {axis} of {path!r}, whose output is {tuple(seen.shape)}\n"
            "  do: name a dimension behind the samples, which are dimension 0"
        )
    size = seen.shape[dimension]
    line = torch.zeros(size)
    line[_chosen(path, indices, size)] = 1
    return line.reshape(-1, *[1] * (seen.dim() - dimension - 1))


def _chosen(path: str, indices: Any, size: int) -> list[int]:
    if isinstance(indices, slice):
        return list(range(size))[indices]
    if isinstance(indices, Tensor) and indices.dtype == torch.bool:
        if indices.shape != (size,):
            raise InvalidInput(
                f"Condition: a mask of shape {tuple(indices.shape)} for {size} units of {path!r}\n  do: give ({size},)"
            )
        return indices.nonzero().flatten().tolist()
    given = indices.tolist() if isinstance(indices, Tensor) else indices
    found = list(given) if isinstance(given, (Sequence, range)) else [given]
    for index in found:
        if type(index) is not int or not -size <= index < size:
            raise InvalidInput(
                f"Condition: {index!r} is no unit of {path!r}, which has {size}\n  do: give 0 to {size - 1}"
            )
    return found
