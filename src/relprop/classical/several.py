"""Estimators around several others: one-versus-rest, one-versus-one, several targets, means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from relprop.classical.build import Place, Score, estimator, predict, refuse
from relprop.classical.machines import signs
from relprop.classical.steps import Affine, Branches, Chain, Duels, Flatten, Select


def _side_by_side(fitted: Any, place: Place) -> list[Score]:
    """Add the scores of all estimators within, (B, C), each of which gives one."""
    chains, scores = [], []
    for one in fitted.estimators_:
        inner = place.branch(range(place.width))
        scores.append(predict(one, inner))
        if not inner.steps or not isinstance(inner.steps[-1], Flatten):
            raise refuse(one, f"within {type(fitted).__name__} does not give one score")
        place.counts = place.counts or inner.counts
        chains.append(inner.steps[:-1])
    count = len(chains)
    if all(len(chain) == 1 and isinstance(chain[0], Affine) for chain in chains):
        place.then(_stacked([chain[0] for chain in chains]), count)
    else:
        every = torch.arange(place.width)
        place.then(Branches([(every, Chain(chain), 1) for chain in chains], place.width), count)
    place.reference = None
    return scores


def _stacked(steps: Sequence[Any]) -> Affine:
    """Several linear scores as one step."""
    return Affine(
        weight=torch.cat([step.weight for step in steps]), bias=torch.cat([step.bias for step in steps])
    )


def _decisions(fitted: Any) -> Any:
    """The function that gives the scores of the estimators within, (B, C)."""

    def scores(x: Any) -> Any:
        return np.stack([np.ravel(one.decision_function(x)) for one in fitted.estimators_], 1)

    return scores


@estimator("OneVsRestClassifier")
def one_versus_rest(fitted: Any, place: Place) -> Score:
    """One score a class, that of its own machine; of two classes, or several labels a sample, as the wrapper has it."""
    _side_by_side(fitted, place)
    if len(fitted.estimators_) == 1:
        place.then(Flatten())
        return Score("classes", fitted.decision_function, tuple(fitted.classes_))
    return Score("classes", _decisions(fitted), tuple(fitted.classes_), several=True)


@estimator("OneVsOneClassifier")
def one_versus_one(fitted: Any, place: Place) -> Score:
    """One score a class: duels won, and the sum of all margins squashed; of two classes the second's."""
    if fitted.pairwise_indices_ is not None:
        raise refuse(fitted, "was fitted on a precomputed kernel", "use SVC(kernel='precomputed')")
    _side_by_side(fitted, place)
    classes = len(fitted.classes_)
    pairs = torch.tensor([(i, j) for i in range(classes) for j in range(i + 1, classes)])
    place.then(Duels(signs=-signs(pairs, classes)), classes)
    if classes == 2:
        place.then(Select(torch.tensor([1]), 2), 1)
        place.then(Flatten())
    return Score("classes", fitted.decision_function, tuple(fitted.classes_))


@estimator("MultiOutputRegressor")
def several_values(fitted: Any, place: Place) -> Score:
    """One prediction a target."""
    _side_by_side(fitted, place)
    return Score("values", fitted.predict)


@estimator("VotingRegressor")
def mean_value(fitted: Any, place: Place) -> Score:
    """The mean of the predictions, weighted."""
    _side_by_side(fitted, place)
    weights = np.ones(len(fitted.estimators_)) if fitted.weights is None else np.array(fitted.weights, float)
    place.then(Affine(weight=torch.from_numpy(weights / weights.sum())[None], bias=None), 1)
    place.then(Flatten())
    return Score("values", fitted.predict)
