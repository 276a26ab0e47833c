"""From a fitted estimator to a `Network`: the tables of rewritings, and what is known on the way.

A rewriting is one function. Of a transformer: (fitted, place) -> None, which adds steps to the `Place`. Of an estimator:
(fitted, place) -> `Score`, which adds the last steps and says what the scores mean. It is entered under the name of
scikit-learn's class, which is looked up along the class's bases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relprop.classical.steps import Affine, Centre, Chain, Network, Scale, Shift
from relprop.errors import InvalidInput, MissingExtra, UnsupportedEstimator

HOUSES = ("sklearn.", "relprop.")
"""Packages whose classes the tables speak of."""


@dataclass(frozen=True, slots=True)
class Score:
    """What the scores of a network mean.

    Attributes:
        kind: "classes", "values", "outlier", "clusters" or "features".
        own: the estimator's own score of features, as an array, which the network's output equals.
        labels: the names of the outputs: classes, clusters. Two labels and one output: the output speaks for the second.
        several: whether two labels have an output each (a model that gives any number of labels to a sample).
    """

    kind: str
    own: Callable[[Any], Any]
    labels: tuple[Any, ...] = ()
    several: bool = False


@dataclass
class Place:
    """Where a rewriting stands: the values that the next step meets, and the steps before it.

    Attributes:
        width: the number of features here.
        reference: the values (D,) from which those here are counted; None while no step has named one.
        raw: of each feature the column of the explained input that it still is; None where it is something new.
        steps: the steps so far.
        fixed: whether the caller gave the reference, so that no step names another.
        options: what the caller asks of the last step; what it knows it takes out.
        categories: of columns of the input that are no numbers, their values in the order of their codes.
        fills: of columns of the input, what stands for a missing value: (missing, value).
        counts: whether values below zero have no meaning.
        text: whether a document stands here, which only a vectoriser takes.
        images: the height and width of the images that stand here, which only an encoding of local descriptors takes.
        words: the vectorisers of the documents, with the number of their columns, in the order of the columns.
    """

    width: int
    reference: Tensor | None = None
    raw: tuple[int, ...] | None = None
    steps: list[nn.Module] = field(default_factory=list)
    fixed: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    categories: dict[int, Any] = field(default_factory=dict)
    fills: dict[int, tuple[Any, float]] = field(default_factory=dict)
    counts: bool = False
    text: bool = False
    images: tuple[int, int] | None = None
    words: list[tuple[Any, int]] = field(default_factory=list)

    def then(self, step: nn.Module, width: int | None = None, keeps: bool = False) -> None:
        """Add a step; `keeps`: each feature is still the one that it was."""
        self.steps.append(step)
        self.width = self.width if width is None else width
        self.raw = self.raw if keeps else None

    def counted_from(self, offset: Tensor | None) -> Tensor | None:
        """The reference here, counted from a step's own offset (D,), which becomes the reference where there is none."""
        if offset is None:
            return self.reference
        if self.reference is None and bool(offset.any()):
            self.steps.append(Centre(reference=offset))
            self.reference = offset
        return (torch.zeros_like(offset) if self.reference is None else self.reference) - offset

    def scaled(self, offset: Tensor | None, factor: Tensor | None) -> None:
        """x becomes (x − offset) · factor."""
        reference = self.counted_from(offset)
        if factor is not None:
            self.then(Scale(factor=factor), keeps=True)
            reference = None if reference is None else reference * factor
        self.reference = reference

    def projected(self, offset: Tensor | None, weight: Tensor, after: Tensor | None = None) -> None:
        """x becomes (x − offset) Wᵀ + after, W (C, D)."""
        reference = self.counted_from(offset)
        self.then(Affine(weight=weight, bias=None), len(weight))
        moved = None if reference is None else weight @ reference
        if after is not None:
            moved = after if moved is None else moved + after
        self.reference = moved

    def scored(self, weight: Tensor, intercept: Tensor) -> None:
        """The last step: x becomes x Wᵀ + b, (B, C)."""
        bias = intercept if self.reference is None else intercept + weight @ self.reference
        self.then(Affine(weight=weight, bias=bias), len(weight))
        self.reference = None

    def whole(self) -> None:
        """Values themselves again, for a step that is no function of differences."""
        if self.reference is not None and bool(self.reference.any()):
            self.steps.append(Shift(reference=self.reference))
        self.reference = None

    def origin(self) -> Tensor:
        """The reference here; zero where none was named."""
        return torch.zeros(self.width, dtype=torch.float64) if self.reference is None else self.reference

    def asked(self, name: str, default: Any = None) -> Any:
        """What the caller asks of the last step, under that name."""
        return self.options.pop(name, default)

    def branch(self, columns: Sequence[int]) -> Place:
        """The same place for a part of the columns."""
        index = list(columns)
        return Place(
            len(index),
            None if self.reference is None else self.reference[index],
            None if self.raw is None else tuple(self.raw[i] for i in index),
            fixed=self.fixed,
            categories=self.categories,
            fills=self.fills,
        )


Transform = Callable[[Any, Place], None]
Predict = Callable[[Any, Place], Score]

TRANSFORMERS: dict[str, Transform] = {}
"""From the name of a transformer's class to its rewriting."""

ESTIMATORS: dict[str, Predict] = {}
"""From the name of an estimator's class to its rewriting."""


OPENED: dict[str, str] = {
    "GridSearchCV": "best_estimator_",
    "RandomizedSearchCV": "best_estimator_",
    "HalvingGridSearchCV": "best_estimator_",
    "HalvingRandomSearchCV": "best_estimator_",
    "FrozenEstimator": "estimator",
    "FixedThresholdClassifier": "estimator_",
    "TunedThresholdClassifierCV": "estimator_",
    "SelfTrainingClassifier": "estimator_",
    "RANSACRegressor": "estimator_",
}
"""Estimators that have the score of the one within: from the class to the attribute that holds it."""

_PARTS = "its score is no sum of the scores of the estimators within"
_SEARCH = "its transform is the result of a search, not a function written down"

CLOSED: dict[str, tuple[str, str]] = {
    "CalibratedClassifierCV": (_PARTS, "explain a machine within: model.calibrated_classifiers_[0].estimator"),
    **dict.fromkeys(
        (
            "VotingClassifier", "StackingClassifier", "StackingRegressor", "BaggingClassifier", "BaggingRegressor",
            "MultiOutputClassifier", "ClassifierChain", "RegressorChain",
        ),
        (_PARTS, "explain the estimators within, one by one: model.estimators_"),
    ),
    "OutputCodeClassifier": (_PARTS, "use OneVsRestClassifier"),
    "TransformedTargetRegressor": (_PARTS, "explain the regressor within: model.regressor_"),
    **dict.fromkeys(("NMF", "MiniBatchNMF", "LatentDirichletAllocation"), (_SEARCH, "use TruncatedSVD")),
}  # fmt: skip
"""Classes that are refused for a reason of their own, from the name to the reason and what to do."""


def transformer(*names: str) -> Callable[[Transform], Transform]:
    """Enter a rewriting of transformers under the names of their classes."""

    def enter(function: Transform) -> Transform:
        TRANSFORMERS.update(dict.fromkeys(names, function))
        return function

    return enter


def estimator(*names: str) -> Callable[[Predict], Predict]:
    """Enter a rewriting of estimators under the names of their classes."""

    def enter(function: Predict) -> Predict:
        ESTIMATORS.update(dict.fromkeys(names, function))
        return function

    return enter


def row_of(table: Mapping[str, Any], fitted: Any) -> Any:
    """The row of an object's class or of the nearest of its bases; None where there is none."""
    for cls in type(fitted).__mro__:
        if cls.__name__ in table and cls.__module__.startswith(HOUSES):
            return table[cls.__name__]
    return None


def is_estimator(model: Any) -> bool:
    """Whether a model is what this package speaks of: an object of scikit-learn's kind, of whatever library."""
    if isinstance(model, (nn.Module, type, str)):
        return False
    if any(cls.__module__.startswith("sklearn.") for cls in type(model).__mro__):
        return True
    known = row_of(ESTIMATORS, model) is not None or row_of(TRANSFORMERS, model) is not None
    return known or (hasattr(model, "fit") and hasattr(model, "predict"))


def refuse(fitted: Any, why: str = "has no rewriting as a network", do: str = "") -> UnsupportedEstimator:
    """The error that an estimator or transformer cannot be explained."""
    home = type(fitted).__module__.split(".")[0]
    return UnsupportedEstimator(
        f"{type(fitted).__name__} ({home}): {why}\n"
        f"  do: {do or 'give another model, or add one function to relprop.classical.ESTIMATORS or TRANSFORMERS'}"
    )


def unknown(fitted: Any) -> UnsupportedEstimator:
    """The error for a class without a rewriting, with its own reason where there is one."""
    return refuse(fitted, *(row_of(CLOSED, fitted) or ()))


def opened(fitted: Any) -> Any:
    """The estimator whose score is explained: what is within searches for parameters and their like.

    Raises `InvalidInput` where it is not fitted, or a search has kept no estimator.
    """
    while (name := row_of(OPENED, fitted)) is not None:
        check_fitted(fitted)
        inner = getattr(fitted, name, None)
        if inner is None:
            raise InvalidInput(
                f"model: {type(fitted).__name__} has kept no fitted estimator ({name})\n  do: fit it with refit=True"
            )
        fitted = inner
    return fitted


def check_fitted(fitted: Any) -> None:
    """Raise `InvalidInput` for an object of scikit-learn that has not been fitted."""
    try:
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted
    except ImportError as error:
        raise MissingExtra(
            "model: an estimator needs scikit-learn\n  do: pip install 'relprop[classical]'"
        ) from error
    if not hasattr(fitted, "fit"):
        return
    try:
        check_is_fitted(fitted)
    except NotFittedError as error:
        raise InvalidInput(
            f"model: {type(fitted).__name__} is not fitted\n  do: call its fit(X, y) first"
        ) from error
    except (TypeError, AttributeError) as error:  # it is not scikit-learn's
        raise refuse(fitted) from error


def transform(fitted: Any, place: Place) -> None:
    """Add a transformer's steps. Raises `UnsupportedEstimator` where it has no row."""
    row = row_of(TRANSFORMERS, fitted)
    if row is None:
        raise unknown(fitted)
    check_fitted(fitted)
    _documents(fitted, place)
    row(fitted, place)


def _documents(fitted: Any, place: Place) -> None:
    """Raise `UnsupportedEstimator` where a step meets documents that no vectoriser has read."""
    if place.text and not hasattr(fitted, "build_analyzer") and not hasattr(fitted, "transformer_list"):
        raise refuse(
            fitted, "meets text that no vectoriser has read", "put a CountVectorizer or TfidfVectorizer first"
        )


def predict(fitted: Any, place: Place) -> Score:
    """Add an estimator's steps; of a transformer its own, so that its features are explained."""
    fitted = opened(fitted)
    row = row_of(ESTIMATORS, fitted)
    if row is not None:
        check_fitted(fitted)
        if type(fitted).__name__ != "Pipeline":
            _documents(fitted, place)
        score: Score = row(fitted, place)
        return score
    if row_of(TRANSFORMERS, fitted) is None:
        raise unknown(fitted)
    transform(fitted, place)
    place.whole()
    return Score("features", lambda x: fitted.transform(x))


def network(place: Place) -> Network:
    """The network of all steps."""
    return Network(Chain(place.steps))


def rows(values: Any) -> Any:
    """Rows of numbers, sparse or in a data frame, as an array (B, D) in float64."""
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float64)


def tensor(values: Any) -> Tensor:
    """An array as a float64 tensor of its own."""
    return torch.from_numpy(rows(values).copy())
