"""What is explained: from the caller's `target` to one score a sample and the relevance that starts the walk."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.engine.graph import Ref
from relprop.errors import InvalidInput


@dataclasses.dataclass(frozen=True, slots=True)
class Contrast:
    """Why `a` rather than `b`: the score is the output of `a` minus that of `b`.

    Each of them is a target that names outputs: a class, B of them, a tuple, or a name (of a class, of a token).
    """

    a: Any
    b: Any


def contrast(a: Any, b: Any) -> Contrast:
    """The target that asks why `a` rather than `b`: of two classes or two tokens, the difference of their scores.

    `contrast(3, 5)` for classes, `contrast("POSITIVE", "NEGATIVE")` where their names are known,
    `contrast((-1, 464), (-1, 318))` or `contrast(" Paris", " London")` for next tokens. A list names one a sample.
    """
    return Contrast(a, b)


Target = int | str | Sequence[Any] | Tensor | Callable[[Any], Tensor] | Contrast | None

MAIN = ("logits", "out")
"""Names under which models that return several values keep the one that is explained."""


def main_output(output: Any) -> Any:
    """The one value of a model's output that a target means: the output itself, or its part "logits" or "out".

    Raises `InvalidInput` where the model returns several values and none has such a name.
    """
    if isinstance(output, (Tensor, Ref)):
        return output
    names = _names(output)
    for name in MAIN:
        if name in names:
            part = output[name] if isinstance(output, Mapping) else getattr(output, name)
            if isinstance(part, (Tensor, Ref)):
                return part
    leaves = [leaf for leaf in pytree.tree_leaves(output, is_leaf=_is_value) if _is_value(leaf)]
    if len(leaves) == 1:
        return leaves[0]
    told = ", ".join(map(str, names)) if names else f"{len(leaves)} values"
    first = "[0]" if not names else f"[{names[0]!r}]" if isinstance(output, Mapping) else f".{names[0]}"
    raise InvalidInput(
        f"target: the model returns several outputs ({told})\n"
        f"  do: give a callable that takes the output and returns one score a sample: target=lambda y: y{first}[:, 3]"
    )


def _names(output: Any) -> list[Any]:
    """The names of the parts of a mapping, a named tuple or a dataclass; none for any other output."""
    if isinstance(output, Mapping):
        return list(output)
    if dataclasses.is_dataclass(output):
        return [field.name for field in dataclasses.fields(output)]
    return list(getattr(output, "_fields", ()))


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, (Tensor, Ref))


def weights_of(target: Target, output: Tensor, batch: int) -> tuple[Tensor, Any]:
    """The weights w of the explained sum of outputs, score = Σ w·y per sample, in y's shape; and the resolved target.

    Raises `InvalidInput` for a target that is out of range, of the wrong type or the wrong number.
    """
    if isinstance(target, Tensor) and target.is_floating_point():
        return _given(target, output), target.detach()
    if isinstance(target, Contrast):
        for side in (target.a, target.b):
            if side is None or isinstance(side, (Contrast, Tensor)) or callable(side):
                raise InvalidInput(
                    f"target: a contrast of {side!r}\n  do: contrast two classes, tuples or names: contrast(3, 5)"
                )
        (first, a), (second, b) = (weights_of(side, output, batch) for side in (target.a, target.b))
        if torch.equal(first, second):
            raise InvalidInput(
                f"target: a contrast of {target.a!r} with itself is zero\n  do: contrast two different outputs"
            )
        return first - second, Contrast(a, b)
    if output.dim() == 1:
        if target is not None and any(_classes(target, batch)):
            raise InvalidInput("target: the model returns one number a sample\n  do: leave target out")
        return torch.ones_like(output), torch.zeros(batch, dtype=torch.long)
    if target is None:
        if output.dim() > 2:
            raise InvalidInput(
                f"target: the output has shape {tuple(output.shape)}, so that there is no largest class\n"
                "  do: give a tuple with an index into it, such as (class, row, column) or (position, token),"
                " or a callable that returns one score a sample"
            )
        target = output.detach().argmax(1)
    if isinstance(target, tuple):
        indices = _filled([target] * batch, output)
        return _indexed(indices, output), indices if None in target else target
    if isinstance(target, list) and any(isinstance(one, tuple) for one in target):
        if len(target) != batch or not all(isinstance(one, tuple) for one in target):
            raise InvalidInput(
                f"target: {target!r} is no list of one index a sample, and there are {batch} samples\n"
                "  do: give one tuple, or one a sample"
            )
        indices = _filled(target, output)
        return _indexed(indices, output), indices
    classes = _classes(target, batch)
    if output.dim() > 2:
        raise InvalidInput(
            f"target: {target!r} does not name one value of an output of shape {tuple(output.shape)}\n"
            "  do: give a tuple with an index for each dimension after the batch"
        )
    _in_range(classes, output.shape[1], "classes")
    index = torch.tensor(classes, device=output.device)
    weights = torch.zeros_like(output)
    weights[torch.arange(batch, device=output.device), index] = 1
    return weights, index.to("cpu")


def _classes(target: Any, batch: int) -> list[int]:
    if hasattr(target, "tolist"):  # a tensor or an array
        target = target.tolist()
    if isinstance(target, bool):
        raise InvalidInput("target: True and False are no classes\n  do: give the number of an output")
    given = target if isinstance(target, list) else [target]
    classes = [number for number in map(_whole, given) if number is not None]
    if len(classes) < len(given):
        raise InvalidInput(
            f"target: {target!r} is neither a class, nor a list of classes\n"
            "  do: give a number, one a sample, a tuple of indices, weights (a float tensor) or a callable"
        )
    if not isinstance(target, list):
        return classes * batch
    if len(classes) != batch:
        raise InvalidInput(
            f"target: {len(classes)} classes for {batch} samples\n  do: give one number, or one a sample"
        )
    return classes


def _whole(number: Any) -> int | None:
    """The value of a whole number of any type; None for truth values and all else."""
    if isinstance(number, bool) or getattr(number, "dtype", None) in (torch.bool, "bool"):
        return None
    try:
        return operator.index(number)
    except TypeError:
        return None


def _in_range(values: list[int], size: int, what: str) -> None:
    for value in values:
        if not 0 <= value < size:
            raise InvalidInput(
                f"target: {value} is out of range, the output has {size} {what}\n  do: give 0 to {size - 1}"
            )


def _filled(targets: Sequence[tuple[Any, ...]], output: Tensor) -> list[tuple[Any, ...]]:
    """Indices whose last number may be None: the largest output at the place that the others name."""
    found = []
    for sample, given in enumerate(targets):
        if given and given[-1] is None:
            place = _place((*given[:-1], 0), output)[:-1]
            given = (*given[:-1], int(output[(sample, *place)].argmax()))
        found.append(given)
    return found


def _indexed(targets: Sequence[tuple[Any, ...]], output: Tensor) -> Tensor:
    weights = torch.zeros_like(output)
    for sample, given in enumerate(targets):
        weights[(sample, *_place(given, output))] = 1
    return weights


def _place(given: tuple[Any, ...], output: Tensor) -> list[int]:
    """An index into one sample's output. Raises `InvalidInput` where it names no value of it."""
    index = [number for number in map(_whole, given) if number is not None]
    if len(index) < len(given) or len(index) != output.dim() - 1:
        raise InvalidInput(
            f"target: {given!r} does not index one value of an output of shape {tuple(output.shape)}\n"
            f"  do: give {output.dim() - 1} whole numbers, one for each dimension after the batch"
        )
    if not all(-size <= i < size for i, size in zip(index, output.shape[1:], strict=True)):
        raise InvalidInput(
            f"target: {given!r} is out of range of an output of shape {tuple(output.shape)}\n"
            "  do: give numbers below the sizes after the batch"
        )
    return index


def _given(target: Tensor, output: Tensor) -> Tensor:
    if target.shape == output.shape[1:] and target.shape != output.shape:
        target = target.expand(output.shape)
    if target.shape != output.shape:
        raise InvalidInput(
            f"target: weights of shape {tuple(target.shape)} for an output of shape {tuple(output.shape)}\n"
            "  do: give one weight for each output"
        )
    if not bool(torch.isfinite(target).all()):
        raise InvalidInput("target: the weights hold NaN or infinity\n  do: give finite weights")
    return target.detach().to(output.dtype).to(output.device)


def one_a_sample(score: Any, batch: int) -> Tensor:
    """What a callable target returned. Raises `InvalidInput` where that is not one score a sample, (B,)."""
    if not isinstance(score, Tensor) or score.shape != (batch,):
        shape = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
        raise InvalidInput(
            f"target: the callable returned {shape} for {batch} samples\n  do: return one score a sample, shape (B,)"
        )
    return score


def sum_of_sample(values: Tensor) -> Tensor:
    """Σ over all but the first dimension, (B,)."""
    return values.flatten(1).sum(1) if values.dim() > 1 else values


class Score(torch.nn.Module):
    """A callable target as a module, so that it is captured and explained like the rest of the model."""

    def __init__(self, function: Callable[[Any], Tensor], spec: Any) -> None:
        super().__init__()
        self.function, self.spec = function, spec
        self.eval()

    def forward(self, samples: Tensor, *leaves: Any) -> Tensor:
        """The score of each sample, (B,), from the flat values of the model's output; `samples` (B,) is not read."""
        return self.function(pytree.tree_unflatten(list(leaves), self.spec))

    def score_of(self, leaves: list[Any], batch: int) -> Tensor:
        """The score, computed as it is. Raises `InvalidInput` where the callable fails or returns something else."""
        copies = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        try:
            with torch.no_grad():
                score = self(torch.empty(batch), *copies)
        except Exception as error:
            raise InvalidInput(
                f"target: the callable fails on the model's output: {type(error).__name__}: {error}\n"
                "  do: give a function that takes the output and returns one score a sample"
            ) from error
        return one_a_sample(score, batch)
