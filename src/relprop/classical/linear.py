"""Linear models and perceptrons."""

from __future__ import annotations

from typing import Any

import numpy as np

from relprop.classical.build import Place, Score, estimator, refuse, tensor
from relprop.classical.steps import Activation, Dense, Flatten

CLASSIFIERS = (
    "LinearSVC", "SGDClassifier", "LogisticRegression", "LogisticRegressionCV", "RidgeClassifier",
    "RidgeClassifierCV", "Perceptron", "PassiveAggressiveClassifier", "LinearDiscriminantAnalysis",
)  # fmt: skip
"""Classifiers whose decision function is x Wᵀ + b."""

REGRESSORS = (
    "LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "MultiTaskLasso", "MultiTaskLassoCV",
    "MultiTaskElasticNet", "MultiTaskElasticNetCV", "Lars", "LarsCV", "LassoLars", "LassoLarsCV", "LassoLarsIC", "OrthogonalMatchingPursuit",
    "OrthogonalMatchingPursuitCV", "BayesianRidge", "ARDRegression", "SGDRegressor", "PassiveAggressiveRegressor",
    "HuberRegressor", "TheilSenRegressor", "QuantileRegressor", "LinearSVR",
)  # fmt: skip
"""Regressors whose prediction is x Wᵀ + b."""


def _linear(fitted: Any, place: Place) -> bool:
    """Add x Wᵀ + b; whether there is one score, which the network then gives as (B,)."""
    weight = np.atleast_2d(fitted.coef_.toarray() if hasattr(fitted.coef_, "toarray") else fitted.coef_)
    intercept = np.broadcast_to(np.atleast_1d(fitted.intercept_), (len(weight),))
    place.scored(tensor(weight), tensor(intercept))
    return len(weight) == 1


@estimator(*CLASSIFIERS)
def classifier(fitted: Any, place: Place) -> Score:
    """One score, or one a class (one-versus-rest or multinomial)."""
    if one := _linear(fitted, place):
        place.then(Flatten())
    return Score("classes", fitted.decision_function, tuple(fitted.classes_), not one)


@estimator(*REGRESSORS)
def regressor(fitted: Any, place: Place) -> Score:
    """The prediction; with several targets (B, targets)."""
    if _linear(fitted, place) and np.ndim(fitted.coef_) == 1:
        place.then(Flatten())
    return Score("values", fitted.predict)


def _layers(fitted: Any, place: Place) -> None:
    """The layers of a perceptron, without the function of the last one."""
    place.whole()
    last = len(fitted.coefs_) - 1
    for number, (weight, bias) in enumerate(zip(fitted.coefs_, fitted.intercepts_, strict=True)):
        place.then(Dense(weight=tensor(weight.T), bias=tensor(bias)), weight.shape[1])
        if number < last and fitted.activation != "identity":
            place.then(Activation(fitted.activation))
    if fitted.n_outputs_ == 1:
        place.then(Flatten())


@estimator("MLPClassifier")
def perceptron_classifier(fitted: Any, place: Place) -> Score:
    """The logits, in front of the softmax or the logistic function."""
    _layers(fitted, place)

    def logits(x: Any) -> Any:
        """From probabilities: log p up to a constant a sample, or log p/(1 − p)."""
        with np.errstate(divide="ignore"):
            p = fitted.predict_proba(x)
            if fitted.out_activation_ == "softmax":
                return np.log(p)
            p = p[:, 1] if fitted.n_outputs_ == 1 else p
            return np.log(p) - np.log1p(-p)

    kind = "logits" if fitted.out_activation_ == "softmax" else "classes"
    return Score(kind, logits, tuple(fitted.classes_), fitted.n_outputs_ > 1)


@estimator("MLPRegressor")
def perceptron_regressor(fitted: Any, place: Place) -> Score:
    """The prediction."""
    if fitted.out_activation_ != "identity":
        raise refuse(
            fitted, f"its output passes {fitted.out_activation_!r}", "fit it with loss='squared_error'"
        )
    _layers(fitted, place)
    return Score("values", fitted.predict)
