"""The samples of a data set that maximise the relevance, or the activation, of a module's units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.engine.graph import Ref, value_of
from relprop.engine.propagate import prepare
from relprop.errors import InvalidInput
from relprop.explain.again import Again
from relprop.explain.batches import slice_batch
from relprop.explain.explainer import Explainer
from relprop.explain.start import forward
from relprop.inside.ranking import Unit, finder, units_first
from relprop.targets import Target

By = Literal["relevance", "activation"]
How = Literal["max", "sum"]


@dataclass(frozen=True, slots=True)
class Maximal:
    """The samples that maximise some units of a module, the best first.

    Attributes:
        path, unit, by, how: of which module, what, and by which measure.
        units: the units, n of them.
        index: (n, k) numbers of the samples in the data set, from 0. value: (n, k) their measure.
        position: (n, k, dimensions) where in the unit the largest relevance or activation lies, in the order of the
            output's dimensions behind the unit's; (row, column) of a feature map. No columns where a unit is one number.
        size: the sizes of those dimensions for each of the samples, (n, k, dimensions).
        samples: from a sample's number to its inputs, those of the samples in `index`; empty where they were not kept.
        seen: how many samples the data set had.
    """

    path: str
    unit: Unit
    by: By
    how: How
    units: tuple[int, ...]
    index: Tensor
    value: Tensor
    position: Tensor
    size: Tensor
    samples: dict[int, Any] = field(repr=False)
    seen: int

    def picture(self, **options: Any) -> Any:
        """The samples as pictures, a row for each unit, with a frame around each position (a PIL image).

        `options`: `size` and `title`, as for `relprop.show.maximal`. Raises `InvalidInput` where they are no images or
        were not kept.
        """
        from relprop import show

        return show.maximal(self, **options)


def maximise(
    explainer: Explainer,
    data: Iterable[Any],
    path: str,
    units: int | Sequence[int] | None = None,
    *,
    unit: Unit = "channels",
    by: By = "relevance",
    how: How = "max",
    target: Target | Literal["label"] = None,
    k: int = 8,
    keep: bool | None = None,
) -> Maximal:
    """Which samples of a data set have the largest relevance (or activation) in a unit of a module.

    Relevance maximisation (Achtibat et al. 2023): the samples for which a channel was used most, not those that merely
    excite it most (`by="activation"`). The data set is read once; a batch costs one forward pass and a walk down to the
    module, and memory holds the best k samples a unit.

    Args:
        explainer: an `Explainer` of the method "lrp".
        data: batches of inputs, each as an explainer takes it.
        path: a module, as for `Explanation.at`.
        units: which of its channels (`unit`: neurons, tokens, heads); all of them by default.
        how: the largest value over the positions of a unit, or their sum.
        target: what is explained; "label" where each batch is a pair (inputs, targets). None: the largest output.
        k: how many samples a unit.
        keep: whether the inputs of the best samples are kept; by default where `units` are given.

    Raises:
        InvalidInput: an argument is wrong, or the data set is empty.
    """
    _check(explainer, by, how, k)
    table = _Best(
        k, [units] if isinstance(units, int) else None if units is None else list(units), path, unit
    )
    kept: dict[int, Any] = {}
    keep = units is not None if keep is None else keep
    seen = 0
    with torch.inference_mode(False):
        for batch in data:
            inputs, wanted = batch if target == "label" else (batch, target)
            text, args, kwargs = explainer.read(inputs)
            for captured, program, part_args, part_kwargs, targets in explainer.parts(
                args, kwargs, [wanted], text
            ):
                part = Again(explainer, captured, program, part_args, part_kwargs, targets[0], None)
                table.add(_measured(part, path, unit, by), how, seen)
                if keep:
                    given = {
                        seen + i: slice_batch((part_args, part_kwargs), part.batch, i, i + 1)
                        for i in range(part.batch)
                    }
                    chosen = set(table.index.flatten().tolist())
                    every = {**kept, **given}
                    kept = {i: every[i] if i in kept else _kept(every[i]) for i in every if i in chosen}
                seen += part.batch
    if not seen:
        raise InvalidInput("data: the data set holds no batch\n  do: give an iterable of batches")
    return Maximal(
        path,
        unit,
        by,
        how,
        tuple(table.units),
        table.index,
        table.value,
        table.position,
        table.size,
        kept,
        seen,
    )


def _kept(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """The inputs of one sample, without the batch and in memory of their own."""
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.detach()[0].cpu().clone() if isinstance(leaf, Tensor) and leaf.dim() else leaf,
        inputs,
    )
    if kwargs:
        return kwargs if not args else (*args, kwargs)
    return args[0] if len(args) == 1 else args


def _check(explainer: Explainer, by: str, how: str, k: int) -> None:
    for name, value, allowed in (("by", by, ("relevance", "activation")), ("how", how, ("max", "sum"))):
        if value not in allowed:
            raise InvalidInput(f"maximise: {name}={value!r} is unknown\n  do: one of {', '.join(allowed)}")
    if not isinstance(explainer, Explainer) or explainer.method != "lrp":
        raise InvalidInput(
            "maximise: needs an explainer of the method 'lrp'\n  do: relprop.Explainer(model, rules=…)"
        )
    if k < 1:
        raise InvalidInput(
            f"maximise: k={k} is below 1\n  do: give the number of samples to keep for each unit"
        )


def _measured(part: Again, path: str, unit: Unit, by: By) -> Tensor:
    """Relevance or activation of each unit at each position: (B, units, positions…), over all calls of the module."""
    captured = part.captured
    refs = [ref for group in finder(path, unit)(captured) for ref in group]
    if by == "activation":
        program = prepare(captured.graph, captured.facts, part.program.plan, refs)
        held = forward(part.explainer, captured, program, part.args, part.kwargs).values
        values: dict[Ref, Tensor] = {ref: value_of(held, ref) for ref in refs}
    else:
        values = part.walk(refs)[1].observed
        if not values:
            raise InvalidInput(
                f"maximise: no relevance reaches {path!r} for this target\n  do: name another module"
            )
    seen = [
        units_first(captured, part.explainer.model, path, unit, ref, value, part.batch)
        for ref, value in values.items()
    ]
    if len({value.shape for value in seen}) > 1:
        raise InvalidInput(
            f'maximise: the calls or outputs of {path!r} differ in shape\n  do: name one call: "{path}@0"'
        )
    return torch.stack(seen).sum(0)


class _Best:
    """The best k samples of each unit so far."""

    def __init__(self, k: int, units: list[int] | None, path: str, unit: Unit) -> None:
        self.k, self.given, self.path, self.unit = k, units, path, unit
        self.units: list[int] = []
        self.index = torch.empty(0, 0, dtype=torch.long)
        self.value, self.position, self.size = torch.empty(0, 0), torch.empty(0, 0, 0), torch.empty(0, 0, 0)

    def add(self, measure: Tensor, how: How, first: int) -> None:
        """Enter a batch of (B, units, positions…), whose samples are numbered from `first`."""
        measure = self._chosen(measure.detach().to("cpu"))
        batch, count, *sizes = measure.shape
        flat = measure.reshape(batch, count, -1)
        top, place = flat.max(2)
        value = (top if how == "max" else flat.sum(2)).T
        position = torch.stack(torch.unravel_index(place.T, sizes), -1)[
            ..., : len(sizes) - 1 if sizes[-1] == 1 else None
        ]
        shape = torch.tensor(sizes[: position.shape[-1]], dtype=torch.long).expand(count, batch, -1)
        index = torch.arange(first, first + batch).expand(count, batch)
        if not self.units:
            self.units = list(range(count)) if self.given is None else self.given
            self.index, self.value, self.position, self.size = (
                index[:, :0],
                value[:, :0],
                position[:, :0],
                shape[:, :0],
            )
        columns = [
            torch.cat(pair, 1)
            for pair in (
                (self.index, index),
                (self.value, value),
                (self.position, position),
                (self.size, shape),
            )
        ]
        order = columns[1].argsort(dim=1, descending=True, stable=True)[:, : self.k]
        self.index, self.value = (column.gather(1, order) for column in columns[:2])
        deep = order[..., None].expand(*order.shape, position.shape[-1])
        self.position, self.size = (column.gather(1, deep) for column in columns[2:])

    def _chosen(self, measure: Tensor) -> Tensor:
        if self.given is None:
            return measure
        count = measure.shape[1]
        for one in self.given:
            if not 0 <= one < count:
                raise InvalidInput(
                    f"maximise: {one} is none of the {count} {self.unit} of {self.path!r}\n  do: give 0 to {count - 1}"
                )
        return measure[:, self.given]
