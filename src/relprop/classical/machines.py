"""Support vector machines, and the kernels that they take."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.classical.build import Place, Score, check_fitted, estimator, predict, refuse, rows, tensor
from relprop.classical.kernels import KERNELS
from relprop.classical.steps import Distances, Duels, Flatten, Machine, Soften
from relprop.errors import InvalidInput, UnsupportedEstimator

CALLABLES: dict[str, str] = {
    "rbf_kernel": "rbf",
    "laplacian_kernel": "laplacian",
    "polynomial_kernel": "poly",
    "sigmoid_kernel": "sigmoid",
    "chi2_kernel": "chi2",
    "additive_chi2_kernel": "additive_chi2",
    "linear_kernel": "linear",
    "histogram_intersection": "histogram_intersection",
}
"""Kernel functions that may be given as callables, by themselves or as `functools.partial`: the name in `KERNELS`."""

PARAMETERS = ("gamma", "coef0", "degree")


def histogram_intersection(x: Any, y: Any = None) -> Any:
    """The kernel Σ_i min(x_i, y_i) of non-negative histograms, (n, m): for SVC(kernel=histogram_intersection)."""
    a = tensor(x)
    b = a if y is None else tensor(y)
    return KERNELS["histogram_intersection"].sums(a, b).numpy()


@dataclass(frozen=True, eq=False)
class Precomputed:
    """A machine that was fitted on a precomputed kernel matrix, with what it was computed from.

    Attributes:
        machine: the fitted SVC, SVR, OneClassSVM … with kernel="precomputed".
        vectors: the training vectors (n, D).
        kernel: a name of scikit-learn ("rbf", "poly", …, "histogram_intersection") or a kernel function known here.
        gamma, coef0, degree: the kernel's parameters; None for those that its function has in scikit-learn (γ = 1/features,
            of chi2 1; coef0 1; degree 3). The machine does not know its kernel: another one than it was fitted with, or
            other vectors of the same number, go unnoticed.
    """

    machine: Any
    vectors: Any
    kernel: Any = "histogram_intersection"
    gamma: float | None = None
    coef0: float | None = None
    degree: int | None = None

    @property
    def n_features_in_(self) -> int:
        """The number of features of the training vectors."""
        return int(np.shape(self.vectors)[-1]) if np.ndim(self.vectors) else 0

    def matrix(self, x: Any) -> Any:
        """The kernel between x (m, D) and the training vectors, (m, n)."""
        k = self.of(tensor(self.vectors))
        row = KERNELS[k.name]
        s = row.sums(tensor(x), k.support)
        return row.function(s, k.gamma, torch.tensor(k.coef0), k.degree).numpy()

    def of(self, support: Tensor) -> _Kernel:
        """The kernel, with the vectors that it is computed with."""
        own = {name: getattr(self, name) for name in PARAMETERS if getattr(self, name) is not None}
        return _named(self.machine, self.kernel, self.n_features_in_, support, own)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A machine's kernel: its name in `KERNELS` and its parameters, and the vectors that it is computed with."""

    name: str
    gamma: float
    coef0: float
    degree: int
    support: Tensor


def _named(fitted: Any, kernel: Any, width: int, support: Tensor, given: dict[str, Any]) -> _Kernel:
    """A kernel by its name or function; parameters that are not given are those that its function has."""
    if isinstance(kernel, functools.partial) and not kernel.args and set(kernel.keywords) <= set(PARAMETERS):
        given = {name: value for name, value in kernel.keywords.items() if value is not None} | given
        kernel = kernel.func
    name = kernel if isinstance(kernel, str) else getattr(kernel, "__name__", type(kernel).__name__)
    known = name if isinstance(kernel, str) and name in KERNELS else None
    if getattr(kernel, "__module__", "").startswith(("sklearn.", "relprop.")):
        known = CALLABLES.get(name)
    if known is None:
        raise refuse(
            fitted,
            f"its kernel {name!r} is not known",
            f"use one of {', '.join(k for k in KERNELS if k != 'cosine_features')}, or {', '.join(CALLABLES)}",
        )
    usual = {"gamma": 1.0 if known == "chi2" else 1 / width, "coef0": 1.0, "degree": 3}
    chosen = usual | given
    return _Kernel(known, float(chosen["gamma"]), float(chosen["coef0"]), int(chosen["degree"]), support)


def _kernel(fitted: Any, place: Place) -> _Kernel:
    """What the machine computes, of its support vectors."""
    given: Precomputed | None = place.asked("precomputed")
    index = torch.from_numpy(fitted.support_.astype(np.int64))
    if given is not None:
        return given.of(tensor(given.vectors)[index])
    if isinstance(fitted.kernel, str) and fitted.kernel == "precomputed":
        raise UnsupportedEstimator(
            f"{type(fitted).__name__}: fitted on a precomputed kernel, whose vectors it does not know\n"
            "  do: explain relprop.classical.Precomputed(machine, training_vectors, kernel)"
        )
    if callable(fitted.kernel):  # scikit-learn then keeps all vectors, and passes no parameters
        vectors = tensor(fitted._BaseLibSVM__Xfit)
        return _named(fitted, fitted.kernel, place.width, vectors[index], {})
    own = {"gamma": fitted._gamma, "coef0": fitted.coef0, "degree": fitted.degree}
    return _named(fitted, fitted.kernel, place.width, tensor(fitted.support_vectors_), own)


def _machine(kernel: _Kernel, place: Place, coefficients: Tensor, bias: Tensor | None) -> None:
    """Add f_k = Σ_j c_kj k(x, u_j) + b_k."""
    if kernel.name == "linear":
        zero = torch.zeros(len(coefficients), dtype=torch.float64)
        place.scored(coefficients @ kernel.support, zero if bias is None else bias)
        return
    place.counts = place.counts or KERNELS[kernel.name].counts
    step = Machine(
        kernel.name,
        kernel.gamma,
        kernel.degree,
        support=kernel.support,
        coefficients=coefficients,
        bias=bias,
        reference=place.origin(),
        coef0=torch.tensor(kernel.coef0, dtype=torch.float64),
    )
    place.then(step, len(coefficients))
    place.reference = None


def _pairs(fitted: Any) -> tuple[Tensor, Tensor]:
    """The coefficients of each one-versus-one machine over all support vectors, (P, n), and the pairs (P, 2)."""
    dual = tensor(fitted.dual_coef_)
    ends = np.cumsum([0, *fitted.n_support_])
    classes = len(fitted.classes_)
    rows, pairs = [], []
    for i in range(classes):
        for j in range(i + 1, classes):
            row = torch.zeros(dual.shape[1], dtype=torch.float64)
            row[ends[i] : ends[i + 1]] = dual[j - 1, ends[i] : ends[i + 1]]
            row[ends[j] : ends[j + 1]] = dual[i, ends[j] : ends[j + 1]]
            rows.append(row)
            pairs.append((i, j))
    return torch.stack(rows), torch.tensor(pairs)


@estimator("SVC", "NuSVC")
def support_vector_classifier(fitted: Any, place: Place) -> Score:
    """One score for two classes; for more, one a class by votes of one-versus-one machines, or one a pair ("ovo")."""
    kernel = _kernel(fitted, place)
    labels = tuple(fitted.classes_)
    if len(labels) == 2:
        _machine(kernel, place, tensor(fitted.dual_coef_), tensor(fitted.intercept_))
        place.then(Flatten())
        return Score("classes", fitted.decision_function, labels)
    coefficients, pairs = _pairs(fitted)
    _machine(kernel, place, coefficients, tensor(fitted.intercept_))
    if fitted.decision_function_shape == "ovo":
        names = tuple((labels[i], labels[j]) for i, j in pairs.tolist())
        return Score("values", fitted.decision_function, names)
    place.then(Duels(signs=signs(pairs, len(labels))), len(labels))
    return Score("classes", fitted.decision_function, labels)


def signs(pairs: Tensor, classes: int) -> Tensor:
    """(C, P): 1 where a class is the first of a pair, −1 where it is the second."""
    found = torch.zeros(classes, len(pairs), dtype=torch.float64)
    numbers = torch.arange(len(pairs))
    found[pairs[:, 0], numbers], found[pairs[:, 1], numbers] = 1.0, -1.0
    return found


@estimator("SVR", "NuSVR")
def support_vector_regressor(fitted: Any, place: Place) -> Score:
    """The prediction."""
    _machine(_kernel(fitted, place), place, tensor(fitted.dual_coef_), tensor(fitted.intercept_))
    place.then(Flatten())
    return Score("values", fitted.predict)


@estimator("SGDOneClassSVM")
def linear_one_class(fitted: Any, place: Place) -> Score:
    """The outlier score ρ − w·x: the decision function's negative."""
    place.scored(-tensor(fitted.coef_)[None], tensor(fitted.offset_))
    place.then(Flatten())
    return Score("outlier", lambda x: -fitted.decision_function(x))


@estimator("OneClassSVM")
def one_class(fitted: Any, place: Place) -> Score:
    """The outlier score: with a Gaussian kernel −γ⁻¹ log Σ_j α_j k(x, u_j), a soft minimum of distances (Kauffmann et
    al. 2020); the same with a Laplacian one; with other kernels the decision function's negative."""
    kernel = _kernel(fitted, place)
    power = {"rbf": 2, "laplacian": 1}.get(kernel.name)
    alpha = tensor(fitted.dual_coef_)[0]
    if power is None or bool((alpha <= 0).any()):
        _machine(kernel, place, -alpha[None], -tensor(fitted.intercept_))
        place.then(Flatten())
        return Score("outlier", lambda x: -fitted.decision_function(x))
    place.then(Distances(kernel.support - place.origin(), power=power), len(alpha))
    whole = float(alpha.sum()) if place.asked("normalised", False) else 1.0
    place.then(Soften(kernel.gamma, (alpha / whole).log() / kernel.gamma), 1)

    def own(x: Any) -> Any:
        with np.errstate(divide="ignore"):
            return -np.log(fitted.score_samples(x) / whole) / kernel.gamma

    return Score("outlier", own)


@estimator("Precomputed")
def precomputed(given: Precomputed, place: Place) -> Score:
    """A machine with the vectors that its kernel matrix came from."""
    if getattr(given.machine, "kernel", None) != "precomputed":
        raise InvalidInput(
            f"Precomputed: {type(given.machine).__name__} was not fitted with kernel='precomputed'\n"
            "  do: give the machine itself to relprop.explain"
        )
    check_fitted(given.machine)
    vectors, count = np.shape(given.vectors), int(given.machine.shape_fit_[0])
    if len(vectors) != 2 or vectors[0] != count:
        raise InvalidInput(
            f"Precomputed: vectors of shape {vectors}, and the machine was fitted on {count} rows of a kernel matrix\n"
            "  do: give the vectors that the matrix was computed from, (rows, features)"
        )
    values = rows(given.vectors)
    if not np.isfinite(values).all() or (KERNELS[given.of(tensor(values)).name].counts and values.min() < 0):
        raise InvalidInput(
            "Precomputed: the vectors hold NaN, infinity, or numbers below 0 where the kernel reads counts\n"
            "  do: give the vectors that the matrix was computed from"
        )
    place.options["precomputed"] = given
    score = predict(given.machine, place)
    return dataclasses.replace(score, own=lambda x: score.own(given.matrix(x)))
