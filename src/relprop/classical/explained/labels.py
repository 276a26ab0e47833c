"""Targets by the names that an estimator has for them: classes, clusters, sides of an outlier score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.classical.build import Score
from relprop.errors import InvalidInput
from relprop.targets import Contrast

SIDES: dict[Any, float] = {"outlier": 1.0, "inlier": -1.0, -1: 1.0, 1: -1.0}
"""What the sides of an outlier score are called, and their signs."""


def one_output(score: Score) -> bool:
    """Whether two classes share one output, which speaks for the second."""
    return score.kind == "classes" and len(score.labels) == 2 and not score.several


def resolved(target: Any, score: Score, width: int, batch: int) -> Any:
    """A target in the network's outputs: labels become indices, of one output its sign.

    width: the number of outputs, where they have no labels. Raises `InvalidInput` for what is no label and no index of
    an output.
    """
    if target is None or callable(target) or (isinstance(target, Tensor) and target.is_floating_point()):
        return target
    if isinstance(target, Contrast):
        sides = (resolved(side, score, width, batch) for side in (target.a, target.b))
        return Contrast(*sides)
    rows = _rows(target, batch)
    if score.kind == "outlier":
        return torch.tensor([_side(row) for row in rows], dtype=torch.float64)
    indices = [_index(row, score, width) for row in rows]
    if one_output(score):
        return torch.tensor([1.0 if index else -1.0 for index in indices], dtype=torch.float64)
    return indices


def _rows(target: Any, batch: int) -> list[Any]:
    """One target a sample."""
    target = target.tolist() if hasattr(target, "tolist") else target
    rows = list(target) if isinstance(target, list) else [target] * batch
    if len(rows) != batch:
        raise InvalidInput(
            f"target: {len(rows)} targets for {batch} samples\n  do: give one, or one a sample"
        )
    return rows


def _index(target: Any, score: Score, width: int) -> int:
    labels = [_plain(label) for label in score.labels]
    target = _plain(target)
    if not isinstance(target, bool) or bool in map(type, labels):
        for index, label in enumerate(labels):
            if type(label) in (int, float) and type(target) in (int, float):
                if label == target:
                    return index
            elif type(label) is type(target) and label == target:
                return index
    count = len(labels) or width
    if isinstance(target, int) and not isinstance(target, bool) and 0 <= target < count:
        return target
    known = ", ".join(map(repr, labels[:8])) or f"0 to {count - 1}"
    raise InvalidInput(
        f"target: {target!r} is none of the {score.kind} of this model\n"
        f"  do: one of {known}{' …' if len(labels) > 8 else ''}"
    )


def _side(target: Any) -> float:
    if isinstance(target, (str, int)) and not isinstance(target, bool) and target in SIDES:
        return SIDES[target]
    raise InvalidInput(
        f"target: {target!r} is neither side of an outlier score\n"
        "  do: 'outlier' (or -1), which is the default, or 'inlier' (or 1): the score's negative"
    )


def _plain(value: Any) -> Any:
    """A number of NumPy or torch as Python's own."""
    return value.item() if hasattr(value, "item") else value
