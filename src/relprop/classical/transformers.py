"""Transformers of numbers: scalers, projections, feature maps, selections, imputation, categories."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from relprop.classical.build import Place, refuse, tensor, transformer
from relprop.classical.kernels import KERNELS
from relprop.classical.steps import Keeping, Machine, Monomials, OneHot, Select, Unit
from relprop.errors import InvalidInput


@transformer("StandardScaler")
def standardised(fitted: Any, place: Place) -> None:
    """(x − mean) / deviation."""
    offset = tensor(fitted.mean_) if fitted.with_mean else None
    place.scaled(offset, 1 / tensor(fitted.scale_) if fitted.with_std else None)


@transformer("MinMaxScaler")
def ranged(fitted: Any, place: Place) -> None:
    """x · scale + min: zero is where the range's lower end puts it."""
    if fitted.clip:
        raise refuse(fitted, "with clip=True is no linear function", "fit it with clip=False")
    scale = tensor(fitted.scale_)
    place.scaled(-tensor(fitted.min_) / scale, scale)


@transformer("MaxAbsScaler")
def shrunk(fitted: Any, place: Place) -> None:
    """x / largest |x|."""
    if getattr(fitted, "clip", False):
        raise refuse(fitted, "with clip=True is no linear function", "fit it with clip=False")
    place.scaled(None, 1 / tensor(fitted.scale_))


@transformer("RobustScaler")
def robust(fitted: Any, place: Place) -> None:
    """(x − median) / quantile range."""
    offset = tensor(fitted.center_) if fitted.with_centering else None
    place.scaled(offset, 1 / tensor(fitted.scale_) if fitted.with_scaling else None)


@transformer("Normalizer")
def normalised(fitted: Any, place: Place) -> None:
    """x / ‖x‖, the norm a constant."""
    place.whole()
    place.then(Unit(fitted.norm), keeps=True)


@transformer("TfidfTransformer")
def weighted_terms(fitted: Any, place: Place) -> None:
    """Counts, or 1 + log of them, times idf, at length 1."""
    place.whole()
    place.counts = True
    if fitted.sublinear_tf:
        place.then(Keeping("log_counts"), keeps=True)
    if fitted.use_idf:
        place.scaled(None, tensor(fitted.idf_))
    if fitted.norm is not None:
        place.then(Unit(fitted.norm), keeps=True)


@transformer("FunctionTransformer")
def applied(fitted: Any, place: Place) -> None:
    """The identity, or a function of single values that is known: log1p, sqrt, square."""
    if fitted.func is None:
        return
    name = getattr(fitted.func, "__name__", "")
    if fitted.func not in (np.log1p, np.sqrt, np.square) or fitted.kw_args:
        raise refuse(
            fitted, f"its function {name or fitted.func!r} is not known", "use numpy's log1p, sqrt or square"
        )
    place.whole()
    place.then(Keeping(name), keeps=True)


# ---------------------------------------------------------------- projections


@transformer("PCA", "IncrementalPCA")
def principal(fitted: Any, place: Place) -> None:
    """(x − mean) Wᵀ, at unit variance with whiten=True."""
    weight = tensor(fitted.components_)
    if fitted.whiten:
        weight = weight / tensor(fitted.explained_variance_).sqrt()[:, None]
    place.projected(tensor(fitted.mean_), weight)


@transformer("FastICA")
def independent(fitted: Any, place: Place) -> None:
    """(x − mean) Wᵀ."""
    place.projected(tensor(fitted.mean_) if fitted.whiten else None, tensor(fitted.components_))


@transformer("TruncatedSVD", "GaussianRandomProjection", "SparseRandomProjection")
def projected(fitted: Any, place: Place) -> None:
    """x Wᵀ."""
    place.projected(None, tensor(fitted.components_))


@transformer("LinearDiscriminantAnalysis")
def discriminated(fitted: Any, place: Place) -> None:
    """(x − x̄) S, or x S by the solver "eigen"."""
    count = fitted._max_components
    offset = tensor(fitted.xbar_) if fitted.solver == "svd" else None
    place.projected(offset, tensor(fitted.scalings_[:, :count].T))


# ---------------------------------------------------------------- feature maps of kernels

_SAME_NAMES = {"polynomial": "poly"}


@transformer("Nystroem")
def sampled_kernel(fitted: Any, place: Place) -> None:
    """k(x, basis) N ᵀ."""
    name = _SAME_NAMES.get(fitted.kernel, fitted.kernel)
    degree = 3 if fitted.degree is None else fitted.degree
    if name not in KERNELS or int(degree) != degree:
        raise refuse(
            fitted, f"its kernel {name!r} (degree {degree}) is not known", "use 'rbf', 'poly' or 'laplacian'"
        )
    defaults = {"chi2": 1.0}
    gamma = fitted.gamma if fitted.gamma is not None else defaults.get(name, 1 / place.width)
    coef0 = fitted.coef0 if fitted.coef0 is not None else 1.0
    place.counts = place.counts or KERNELS[name].counts
    _machine(place, name, float(gamma), int(degree), fitted.components_, fitted.normalization_, float(coef0))


@transformer("RBFSampler")
def random_features(fitted: Any, place: Place) -> None:
    """√(2/n) cos(x W + c)."""
    count = fitted.random_weights_.shape[1]
    scale = np.sqrt(2.0 / count) * np.eye(count)
    offset = fitted.random_offset_
    _machine(place, "cosine_features", 1.0, 1, fitted.random_weights_.T, scale, offset)


def _machine(
    place: Place, name: str, gamma: float, degree: int, support: Any, coefficients: Any, coef0: Any
) -> None:
    step = Machine(
        name,
        gamma,
        degree,
        support=tensor(support),
        coefficients=tensor(coefficients),
        bias=None,
        reference=place.origin(),
        coef0=tensor(coef0),
    )
    place.then(step, len(coefficients))
    place.reference = None


@transformer("PolynomialFeatures")
def polynomial(fitted: Any, place: Place) -> None:
    """Products of powers."""
    place.whole()
    powers = torch.from_numpy(np.array(fitted.powers_, dtype=np.int64))
    place.then(Monomials(powers=powers), len(powers))


# ---------------------------------------------------------------- selections, missing values, categories


@transformer(
    "SelectKBest", "SelectPercentile", "SelectFpr", "SelectFdr", "SelectFwe", "GenericUnivariateSelect",
    "SelectFromModel", "RFE", "RFECV", "SequentialFeatureSelector", "VarianceThreshold",
)  # fmt: skip
def selected(fitted: Any, place: Place) -> None:
    """Some of the features."""
    kept = np.flatnonzero(fitted.get_support())
    raw, reference = place.raw, place.reference
    place.then(Select(torch.from_numpy(kept), place.width), len(kept))
    place.raw = None if raw is None else tuple(raw[i] for i in kept)
    place.reference = None if reference is None else reference[torch.from_numpy(kept)]


@transformer("SimpleImputer")
def imputed(fitted: Any, place: Place) -> None:
    """Missing values of the input are filled in before anything is explained; a filled-in value is its feature's own."""
    if fitted.add_indicator or place.raw is None or place.steps:
        raise refuse(
            fitted,
            "adds indicators" if fitted.add_indicator else "fills values that other steps have made",
            "put it first in the pipeline, with add_indicator=False",
        )
    statistics = np.asarray(fitted.statistics_, dtype=object)
    empty = np.array([value is None or value != value for value in statistics])
    for column, value in zip(place.raw, statistics, strict=True):
        if isinstance(value, str):
            raise refuse(fitted, "fills in strings", "fill them in before the model")
        place.fills[column] = (fitted.missing_values, 0.0 if value != value else float(value))
    if empty.any() and not fitted.keep_empty_features:
        kept = np.flatnonzero(~empty)
        raw = place.raw
        place.then(Select(torch.from_numpy(kept), place.width), len(kept))
        place.raw = tuple(raw[i] for i in kept)


@transformer("OneHotEncoder")
def categories(fitted: Any, place: Place) -> None:
    """1 for a column's category: the column receives the relevance of all its categories."""
    if fitted._infrequent_enabled:
        raise refuse(
            fitted, "groups infrequent categories", "fit it without min_frequency and max_categories"
        )
    place.whole()
    columns: list[int] = []
    codes: list[float] = []
    for number, values in enumerate(fitted.categories_):
        dropped = None if fitted.drop_idx_ is None else fitted.drop_idx_[number]
        coded = _codes(fitted, place, number, values)
        for index, code in enumerate(coded):
            if index != dropped:
                columns.append(number)
                codes.append(code)
    place.then(OneHot(column=torch.tensor(columns), category=tensor(codes)), len(codes))


def _codes(fitted: Any, place: Place, number: int, values: Any) -> list[float]:
    """The numbers that stand for a column's categories: themselves, or their places where they are no numbers."""
    if np.asarray(values).dtype.kind in "fiub":
        return [float(value) for value in values]
    if place.raw is None:
        raise refuse(fitted, "reads categories that other steps have made", "put it first on its columns")
    column = place.raw[number]
    known = place.categories.setdefault(column, list(values))
    if list(known) != list(values):
        raise InvalidInput(
            f"OneHotEncoder: column {column} is read by two encoders with different categories\n"
            "  do: give both the same categories"
        )
    return [float(index) for index in range(len(values))]
