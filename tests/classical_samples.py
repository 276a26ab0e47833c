"""A sample or more of every estimator and transformer of scikit-learn that has a rewriting, and data to fit them on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from sklearn import (
    cluster,
    compose,
    covariance,
    datasets,
    decomposition,
    discriminant_analysis,
    ensemble,
    feature_selection,
    frozen,
    impute,
    kernel_approximation,
    linear_model,
    mixture,
    model_selection,
    multiclass,
    multioutput,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    random_projection,
    semi_supervised,
    svm,
)
from sklearn.metrics import pairwise

from relprop import classical

DATA = ("digits", "wine", "breast_cancer", "diabetes")
ROWS = 150

Make = Callable[[], Any]
Own = Callable[[Any, Any], Any]


@cache
def data(name: str) -> tuple[Any, Any]:
    """Features of about unit size, and labels, of what scikit-learn bundles; diabetes' labels are numbers."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(x))[:ROWS]
    x, y = x[rows], y[rows]
    return (x / 16 if name == "digits" else (x - x.mean(0)) / x.std(0)), y


def positive(x: Any) -> Any:
    """The features from 0 to 1, for kernels and weights of counts."""
    low, high = x.min(0), x.max(0)
    return (x - low) / np.where(high > low, high - low, 1.0)


def fit(estimator: Any, x: Any, y: Any = None) -> Any:
    """The estimator fitted; that it has not converged, or is soon to be called otherwise, is no matter here."""
    with warnings.catch_warnings(action="ignore"):
        return estimator.fit(x, y)


def close(found: Any, expected: Any) -> None:
    """Equal to 1e-9 of the largest score, where the estimator's own is a number."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    assert found.shape == expected.shape
    known = np.isfinite(expected)
    assert known.any()
    scale = max(1.0, np.abs(expected[known]).max())
    assert np.abs(found[known] - expected[known]).max() <= 1e-9 * scale


# ---------------------------------------------------------------- estimators


@dataclass(frozen=True)
class Sample:
    """How an estimator is made, which of a data set's labels it takes, and the score that its network is to have."""

    make: Make
    own: Own
    labels: str = "classes"  # "classes", "two", "numbers", "several numbers", "several labels", "none"
    counts: bool = False

    def fitted(self, x: Any, y: Any) -> Any:
        """The estimator fitted on rows x with labels as it takes them."""
        return fit(self.make(), positive(x) if self.counts else x, targets(self.labels, y))


def targets(kind: str, y: Any) -> Any:
    """Labels of the kind that an estimator takes, from classes or numbers."""
    if kind == "none":
        return None
    classes = y if len(np.unique(y)) < 12 else np.digitize(y, np.quantile(y, [0.3, 0.7]))
    numbers = y + np.sin(np.arange(len(y)))
    return {
        "classes": classes,
        "two": classes if len(np.unique(classes)) == 2 else np.where(classes > classes.min(), "yes", "no"),
        "numbers": numbers,
        "several numbers": np.stack([numbers, np.cos(numbers)], 1),
        "several labels": np.stack([classes > 0, np.arange(len(y)) % 3 > 0, classes < 1], 1).astype(int),
        "two labels": np.stack([classes > 0, np.arange(len(y)) % 3 > 0], 1).astype(int),
    }[kind]


def decision(model: Any, x: Any) -> Any:
    return model.decision_function(x)


def prediction(model: Any, x: Any) -> Any:
    return model.predict(x)


def log_odds(model: Any, x: Any) -> Any:
    """log p/(1 − p) of a perceptron's logistic outputs."""
    p = model.predict_proba(x)
    p = p[:, 1] if model.n_outputs_ == 1 else p
    known = (p > 1e-6) & (p < 1 - 1e-6)  # nearer to 0 or 1 the probability does not tell the logit
    p = np.where(known, p, 0.5)
    return np.where(known, np.log(p) - np.log1p(-p), np.nan)


def centred_logits(model: Any, x: Any) -> Any:
    """log p up to a constant a sample, which softmax does not know; of two classes the log-odds."""
    if model.n_outputs_ == 1:
        return log_odds(model, x)
    found = np.log(model.predict_proba(x))
    return found - found.mean(1, keepdims=True)


def inside(own: Own, name: str) -> Own:
    """The score of the estimator within."""
    return lambda model, x: own(getattr(model, name), x)


def distance(model: Any, x: Any) -> Any:
    """−γ⁻¹ log Σ α k of a one-class machine."""
    gamma = model._gamma if isinstance(model.kernel, str) else 1 / x.shape[1]
    with np.errstate(divide="ignore"):
        return -np.log(model.score_samples(x)) / gamma


def density(model: Any, x: Any) -> Any:
    """The kernel density's log, without the kernel's constant, by the distances themselves."""
    d = pairwise.euclidean_distances(x, np.asarray(model.tree_.data))
    direct = ((x[:, None] - np.asarray(model.tree_.data)[None]) ** 2).sum(-1)
    gaussian = model.kernel == "gaussian"
    gamma = 1 / (2 * model.bandwidth_**2) if gaussian else 1 / model.bandwidth_
    h = direct if gaussian else np.sqrt(direct)
    assert np.allclose(d**2, direct)
    top = -gamma * h.min(1)
    own = -(np.log(np.exp(-gamma * h - top[:, None]).mean(1)) + top) / gamma
    constant = model.score_samples(x) + gamma * own  # of scikit-learn: the same for all points
    assert np.abs(constant - constant[0]).max() <= 1e-9 * max(1, np.abs(gamma * own).max())
    return own


def nearest(model: Any, x: Any) -> Any:
    """How much nearer each centre is than the nearest other one."""
    d = ((x[:, None] - model.cluster_centers_[None]) ** 2).sum(-1)
    return np.stack([np.delete(d, c, 1).min(1) - d[:, c] for c in range(d.shape[1])], 1)


def components(model: Any, x: Any) -> Any:
    """The log-odds of each component, from scikit-learn's posterior where it is neither 0 nor 1."""
    a = model._estimate_weighted_log_prob(x)
    rest = [np.delete(a, c, 1) for c in range(a.shape[1])]
    tops = [part.max(1) for part in rest]
    whole = [np.log(np.exp(p - t[:, None]).sum(1)) + t for p, t in zip(rest, tops, strict=True)]
    found = a - np.stack(whole, 1)
    p = model.predict_proba(x)
    sure = (p > 1e-6) & (p < 1 - 1e-6)
    close(1 / (1 + np.exp(-found[sure])), p[sure])
    return found


def splits(model: Any, x: Any) -> Any:
    """The smallest margin of the splits on the way to each cluster, above zero where a point is in it."""

    def walk(node: Any, margin: Any, found: dict[int, Any]) -> dict[int, Any]:
        if node.left is None:
            return {**found, int(node.label): margin}
        left, right = (((x - model._X_mean - child.center) ** 2).sum(1) for child in (node.left, node.right))
        found = walk(node.left, np.minimum(margin, right - left), found)
        return walk(node.right, np.minimum(margin, left - right), found)

    found = walk(model._bisecting_tree, np.full(len(x), np.inf), {})
    scores = np.stack([found[c] for c in range(len(found))], 1)
    assert (scores.argmax(1) == model.predict(x)).mean() > 0.98
    return scores


def column_scores(model: Any, x: Any) -> Any:
    return np.stack([np.ravel(one.decision_function(x)) for one in model.estimators_], 1)


CLASSIFY = ("classes", "two")
_LINEAR = linear_model
_MLP = partial(neural_network.MLPClassifier, random_state=0, max_iter=30)
_LR = linear_model.LogisticRegression

ESTIMATORS: dict[str, list[Sample]] = {
    **{
        name: [Sample(getattr(_LINEAR, name), decision, kind) for kind in CLASSIFY]
        for name in ("LogisticRegression", "Perceptron", "PassiveAggressiveClassifier", "SGDClassifier")
    },
    "LogisticRegressionCV": [Sample(partial(_LINEAR.LogisticRegressionCV, Cs=2, cv=2), decision)],
    "RidgeClassifier": [
        Sample(_LINEAR.RidgeClassifier, decision, k) for k in (*CLASSIFY, "several labels", "two labels")
    ],
    "RidgeClassifierCV": [Sample(_LINEAR.RidgeClassifierCV, decision, kind) for kind in CLASSIFY],
    "LinearSVC": [
        *(Sample(svm.LinearSVC, decision, kind) for kind in CLASSIFY),
        Sample(partial(svm.LinearSVC, multi_class="crammer_singer", fit_intercept=False), decision),
    ],
    "LinearDiscriminantAnalysis": [
        Sample(partial(discriminant_analysis.LinearDiscriminantAnalysis, **options), decision, kind)
        for options in ({}, {"solver": "lsqr", "shrinkage": "auto"})
        for kind in CLASSIFY
    ],
    "MLPClassifier": [
        Sample(partial(_MLP, (9, 7)), centred_logits),
        Sample(partial(_MLP, (9,), "tanh"), log_odds, "two"),
        Sample(partial(_MLP, (5,), "logistic"), log_odds, "several labels"),
        Sample(partial(_MLP, (5,), "identity"), log_odds, "two labels"),
    ],
    "MLPRegressor": [
        Sample(
            partial(neural_network.MLPRegressor, hidden_layer_sizes=(8,), random_state=0, max_iter=30, **options), prediction, kind
        )
        for options, kind in (({}, "numbers"), ({"activation": "tanh"}, "several numbers"))
    ],
    **{
        name: [Sample(partial(getattr(_LINEAR, name), **options), prediction, "numbers")]
        for name, options in {
            "LassoCV": {"cv": 2}, "Lars": {}, "LarsCV": {"cv": 2}, "LassoLars": {"alpha": 0.1}, "LassoLarsCV": {"cv": 2},
            "LassoLarsIC": {}, "OrthogonalMatchingPursuit": {}, "OrthogonalMatchingPursuitCV": {"cv": 2},
            "BayesianRidge": {}, "ARDRegression": {}, "SGDRegressor": {"max_iter": 20}, "PassiveAggressiveRegressor": {},
            "HuberRegressor": {}, "TheilSenRegressor": {"max_subpopulation": 20, "random_state": 0, "max_iter": 20},
            "QuantileRegressor": {"alpha": 0.01}, "ElasticNetCV": {"cv": 2},
        }.items()
    },
    **{
        name: [Sample(getattr(_LINEAR, name), prediction, kind) for kind in ("numbers", "several numbers")]
        for name in ("LinearRegression", "Ridge", "RidgeCV", "Lasso", "ElasticNet")
    },
    **{
        name: [Sample(partial(getattr(_LINEAR, name), alpha=0.1), prediction, "several numbers")]
        for name in ("MultiTaskLasso", "MultiTaskElasticNet")
    },
    **{
        name: [Sample(partial(getattr(_LINEAR, name), cv=2, alphas=2), prediction, "several numbers")]
        for name in ("MultiTaskLassoCV", "MultiTaskElasticNetCV")
    },
    "LinearSVR": [Sample(svm.LinearSVR, prediction, "numbers")],
    "SVC": [
        *(Sample(partial(svm.SVC, kernel="rbf"), decision, kind) for kind in CLASSIFY),
        Sample(partial(svm.SVC, decision_function_shape="ovo"), decision),
        Sample(partial(svm.SVC, break_ties=True, class_weight="balanced"), decision),
    ],
    "NuSVC": [
        *(Sample(partial(svm.NuSVC, nu=0.05), decision, kind) for kind in CLASSIFY),
        Sample(partial(svm.NuSVC, nu=0.05, decision_function_shape="ovo"), decision),
    ],
    "SVR": [Sample(partial(svm.SVR, C=50.0), prediction, "numbers")],
    "NuSVR": [Sample(partial(svm.NuSVR, C=50.0), prediction, "numbers")],
    "OneClassSVM": [
        Sample(partial(svm.OneClassSVM, nu=0.2), distance, "none"),
        Sample(partial(svm.OneClassSVM, kernel=pairwise.laplacian_kernel, nu=0.2), distance, "none"),
        Sample(partial(svm.OneClassSVM, kernel="linear"), lambda m, x: -decision(m, x), "none"),
        Sample(partial(svm.OneClassSVM, kernel="poly"), lambda m, x: -decision(m, x), "none"),
    ],
    "SGDOneClassSVM": [Sample(_LINEAR.SGDOneClassSVM, lambda m, x: -decision(m, x), "none")],
    "KernelDensity": [
        Sample(partial(neighbors.KernelDensity, bandwidth=1.3, **options), density, "none")
        for options in ({}, {"kernel": "exponential"}, {"algorithm": "ball_tree"})
    ],
    **{
        name: [Sample(make, lambda m, x: m.mahalanobis(x), "none") for make in makes]
        for name, makes in {
            "EllipticEnvelope": [partial(covariance.EllipticEnvelope, random_state=0)],
            "EmpiricalCovariance": [
                covariance.EmpiricalCovariance, covariance.LedoitWolf, covariance.OAS, covariance.ShrunkCovariance,
            ],
            "MinCovDet": [partial(covariance.MinCovDet, random_state=0)],
        }.items()
    },
    "KMeans": [Sample(partial(cluster.KMeans, 4, n_init=1, random_state=0), nearest, "none")],
    "MiniBatchKMeans": [Sample(partial(cluster.MiniBatchKMeans, 4, n_init=1, random_state=0), nearest, "none")],
    "MeanShift": [Sample(partial(cluster.MeanShift, bandwidth=1.5, max_iter=20), nearest, "none")],
    "AffinityPropagation": [Sample(partial(cluster.AffinityPropagation, random_state=0), nearest, "none")],
    "BisectingKMeans": [Sample(partial(cluster.BisectingKMeans, 5, random_state=0), splits, "none")],
    "GaussianMixture": [
        Sample(
            partial(
                mixture.GaussianMixture, 3, covariance_type=kind, random_state=0, reg_covar=0.1, max_iter=10
            ),
            components,
            "none",
        )
        for kind in ("full", "tied", "diag", "spherical")
    ],
    "BayesianGaussianMixture": [
        Sample(
            partial(mixture.BayesianGaussianMixture, n_components=3, random_state=0, reg_covar=0.3, max_iter=10),
            components,
            "none",
        )
    ],
    "OneVsRestClassifier": [
        Sample(partial(multiclass.OneVsRestClassifier, make), own, kind)
        for make in (svm.LinearSVC(), svm.SVC(), pipeline.make_pipeline(preprocessing.StandardScaler(), _LR()))
        for own, kind in (
            (decision, "classes"), (decision, "two"), (column_scores, "several labels"), (column_scores, "two labels"),
        )
    ],
    "OneVsOneClassifier": [
        Sample(partial(multiclass.OneVsOneClassifier, make), decision, kind)
        for make in (svm.LinearSVC(), svm.SVC())
        for kind in CLASSIFY
    ],
    "MultiOutputRegressor": [
        Sample(partial(multioutput.MultiOutputRegressor, make), prediction, "several numbers")
        for make in (_LINEAR.Ridge(), svm.SVR())
    ],
    "VotingRegressor": [
        Sample(
            partial(ensemble.VotingRegressor, [("a", _LINEAR.Ridge()), ("b", svm.SVR())], weights=weights),
            prediction,
            "numbers",
        )
        for weights in (None, [1, 3])
    ],
    "Pipeline": [
        Sample(
            lambda: pipeline.make_pipeline(preprocessing.StandardScaler(), "passthrough", svm.SVC()), decision
        )
    ],
    "Precomputed": [],  # see test_machines_have_their_scores_with_every_kernel
    "KernelKMeans": [],  # see test_kernel_clustering_explains_its_assignment
    "Density": [],  # see test_mixture_as_a_density_has_its_log_likelihood
}  # fmt: skip
"""From the name of a class in `classical.ESTIMATORS` to its samples."""

SEARCHED = {"C": [0.1, 1.0]}

OPENED: dict[str, Sample] = {
    "GridSearchCV": Sample(partial(model_selection.GridSearchCV, _LR(), SEARCHED, cv=2), decision),
    "RandomizedSearchCV": Sample(
        partial(model_selection.RandomizedSearchCV, _LR(), SEARCHED, n_iter=2, cv=2), decision
    ),
    "HalvingGridSearchCV": Sample(lambda: _halving("HalvingGridSearchCV"), decision),
    "HalvingRandomSearchCV": Sample(lambda: _halving("HalvingRandomSearchCV"), decision),
    "FrozenEstimator": Sample(lambda: frozen.FrozenEstimator(fit(_LR(), *data("wine"))), decision),
    "FixedThresholdClassifier": Sample(
        partial(model_selection.FixedThresholdClassifier, svm.SVC(), threshold=0.3),
        inside(decision, "estimator_"),
        "two",
    ),
    "TunedThresholdClassifierCV": Sample(
        partial(model_selection.TunedThresholdClassifierCV, _LR(), cv=2),
        inside(decision, "estimator_"),
        "two",
    ),
    "SelfTrainingClassifier": Sample(
        partial(semi_supervised.SelfTrainingClassifier, _LR()), inside(decision, "estimator_")
    ),
    "RANSACRegressor": Sample(partial(_LINEAR.RANSACRegressor, random_state=0), prediction, "numbers"),
}
"""Estimators that are opened, with what is within."""


def _halving(name: str) -> Any:
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401

    return getattr(model_selection, name)(_LR(), SEARCHED, cv=2, random_state=0)


_PAIR = [("a", _LR()), ("b", svm.SVC())]

CLOSED: dict[str, Make] = {
    "CalibratedClassifierCV": lambda: _calibrated(),
    "VotingClassifier": lambda: ensemble.VotingClassifier(_PAIR),
    "StackingClassifier": lambda: ensemble.StackingClassifier(_PAIR, cv=2),
    "StackingRegressor": lambda: ensemble.StackingRegressor([("a", _LINEAR.Ridge())], cv=2),
    "BaggingClassifier": lambda: ensemble.BaggingClassifier(_LR(), 2),
    "BaggingRegressor": lambda: ensemble.BaggingRegressor(_LINEAR.Ridge(), 2),
    "MultiOutputClassifier": lambda: _OnLabels(multioutput.MultiOutputClassifier(_LR())),
    "ClassifierChain": lambda: _OnLabels(multioutput.ClassifierChain(_LR())),
    "RegressorChain": lambda: _OnLabels(multioutput.RegressorChain(_LINEAR.Ridge())),
    "OutputCodeClassifier": lambda: multiclass.OutputCodeClassifier(_LR()),
    "TransformedTargetRegressor": lambda: compose.TransformedTargetRegressor(_LINEAR.Ridge(), func=np.exp, inverse_func=np.log),
    "NMF": lambda: decomposition.NMF(2, max_iter=20),
    "MiniBatchNMF": lambda: decomposition.MiniBatchNMF(2, max_iter=5),
    "LatentDirichletAllocation": lambda: decomposition.LatentDirichletAllocation(2, max_iter=1),
}  # fmt: skip
"""Classes that are refused for reasons of their own."""


def _calibrated() -> Any:
    from sklearn.calibration import CalibratedClassifierCV

    return CalibratedClassifierCV(svm.LinearSVC(), cv=2)


class _OnLabels:
    """Fits an estimator on several labels, whatever it is given."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def fit(self, x: Any, y: Any) -> Any:
        return self.estimator.fit(x, np.stack([y > y.min(), np.arange(len(y)) % 3 > 0], 1).astype(int))


# ---------------------------------------------------------------- kernels

KERNELS: dict[str, Any] = {
    "linear": "linear",
    "poly": "poly",
    "rbf": "rbf",
    "sigmoid": "sigmoid",
    "rbf_kernel": pairwise.rbf_kernel,
    "laplacian_kernel": pairwise.laplacian_kernel,
    "chi2_kernel": pairwise.chi2_kernel,
    "additive_chi2_kernel": pairwise.additive_chi2_kernel,
    "linear_kernel": pairwise.linear_kernel,
    "polynomial_kernel": pairwise.polynomial_kernel,
    "sigmoid_kernel": pairwise.sigmoid_kernel,
    "chi2_kernel, γ given": partial(pairwise.chi2_kernel, gamma=0.3),
    "polynomial_kernel, all given": partial(pairwise.polynomial_kernel, gamma=0.2, coef0=0.5, degree=2),
    "histogram_intersection": classical.histogram_intersection,
}
"""Kernels that a machine may be given."""


def least(x: Any, y: Any) -> Any:
    """Σ min(x_i, y_i), written out."""
    return np.minimum(x[:, None], y[None]).sum(-1)


PRECOMPUTED: dict[Any, tuple[dict[str, Any], Callable[[Any, Any], Any]]] = {
    **{
        function: ({}, function)
        for function in (pairwise.rbf_kernel, pairwise.polynomial_kernel, pairwise.chi2_kernel)
    },
    "linear": ({}, pairwise.linear_kernel),
    "poly": (
        {"gamma": 0.3, "coef0": 0.7, "degree": 2},
        partial(pairwise.polynomial_kernel, gamma=0.3, coef0=0.7, degree=2),
    ),
    "rbf": ({"gamma": 0.3}, partial(pairwise.rbf_kernel, gamma=0.3)),
    "sigmoid": ({"gamma": 0.01, "coef0": 0.2}, partial(pairwise.sigmoid_kernel, gamma=0.01, coef0=0.2)),
    "laplacian": ({"gamma": 0.1}, partial(pairwise.laplacian_kernel, gamma=0.1)),
    "chi2": ({"gamma": 0.5}, partial(pairwise.chi2_kernel, gamma=0.5)),
    "additive_chi2": ({}, pairwise.additive_chi2_kernel),
    "histogram_intersection": ({}, least),
}
"""Kernels by name, the parameters of `Precomputed`, and the matrix as scikit-learn computes it."""

MACHINES: dict[str, tuple[Make, Own, str]] = {
    "SVC": (svm.SVC, decision, "classes"),
    "NuSVC": (partial(svm.NuSVC, nu=0.05), decision, "classes"),
    "SVR": (partial(svm.SVR, C=10.0), prediction, "numbers"),
    "NuSVR": (partial(svm.NuSVR, C=10.0), prediction, "numbers"),
    "OneClassSVM": (partial(svm.OneClassSVM, nu=0.3), decision, "none"),
}

# ---------------------------------------------------------------- transformers

_SELECT = feature_selection

TRANSFORMERS: dict[str, list[Make]] = {
    "StandardScaler": [partial(preprocessing.StandardScaler, with_mean=m, with_std=s) for m, s in ((True, True), (False, True), (True, False))],
    "MinMaxScaler": [partial(preprocessing.MinMaxScaler, (-1, 2))],
    "MaxAbsScaler": [preprocessing.MaxAbsScaler],
    "RobustScaler": [preprocessing.RobustScaler, partial(preprocessing.RobustScaler, with_centering=False)],
    "Normalizer": [partial(preprocessing.Normalizer, norm) for norm in ("l1", "l2", "max")],
    "PCA": [partial(decomposition.PCA, 2), partial(decomposition.PCA, 2, whiten=True)],
    "IncrementalPCA": [partial(decomposition.IncrementalPCA, 2, batch_size=20, whiten=w) for w in (False, True)],
    "TruncatedSVD": [partial(decomposition.TruncatedSVD, 2, random_state=0)],
    "FastICA": [
        partial(decomposition.FastICA, 2, random_state=0, max_iter=50, tol=1e-1),
        partial(decomposition.FastICA, random_state=0, max_iter=50, tol=1e-1, whiten=False),
    ],
    "GaussianRandomProjection": [partial(random_projection.GaussianRandomProjection, 3, random_state=0)],
    "SparseRandomProjection": [partial(random_projection.SparseRandomProjection, 3, random_state=0)],
    "LinearDiscriminantAnalysis": [
        partial(discriminant_analysis.LinearDiscriminantAnalysis, n_components=1),
        partial(discriminant_analysis.LinearDiscriminantAnalysis, n_components=1, solver="eigen", shrinkage=0.1),
    ],
    "Nystroem": [
        partial(kernel_approximation.Nystroem, kernel=name, n_components=6, random_state=0)
        for name in ("rbf", "poly", "polynomial", "laplacian", "sigmoid", "linear", "chi2", "additive_chi2")
    ],
    "RBFSampler": [partial(kernel_approximation.RBFSampler, gamma=0.1, n_components=8, random_state=0)],
    "PolynomialFeatures": [
        partial(preprocessing.PolynomialFeatures, 2),
        partial(preprocessing.PolynomialFeatures, 2, interaction_only=True, include_bias=False),
    ],
    "SelectKBest": [partial(_SELECT.SelectKBest, k=2)],
    "SelectPercentile": [partial(_SELECT.SelectPercentile, percentile=60)],
    "SelectFpr": [partial(_SELECT.SelectFpr, alpha=0.9)],
    "SelectFdr": [partial(_SELECT.SelectFdr, alpha=0.99)],
    "SelectFwe": [partial(_SELECT.SelectFwe, alpha=0.99)],
    "GenericUnivariateSelect": [partial(_SELECT.GenericUnivariateSelect, mode="k_best", param=2)],
    "SelectFromModel": [partial(_SELECT.SelectFromModel, _LR())],
    "RFE": [partial(_SELECT.RFE, _LR(), step=0.5)],
    "RFECV": [partial(_SELECT.RFECV, _LINEAR.RidgeClassifier(), step=0.5, cv=2)],
    "SequentialFeatureSelector": [
        partial(_SELECT.SequentialFeatureSelector, _LINEAR.RidgeClassifier(), n_features_to_select=1, cv=2)
    ],
    "VarianceThreshold": [partial(_SELECT.VarianceThreshold, 1e-4)],
    "OneHotEncoder": [
        partial(preprocessing.OneHotEncoder, handle_unknown="ignore"),
        partial(preprocessing.OneHotEncoder, drop="if_binary", handle_unknown="ignore"),
    ],
    "SimpleImputer": [impute.SimpleImputer, partial(impute.SimpleImputer, strategy="median")],
    "FunctionTransformer": [
        preprocessing.FunctionTransformer,
        *(partial(preprocessing.FunctionTransformer, f) for f in (np.square, np.log1p, np.sqrt)),
    ],
    "FeatureUnion": [
        lambda: pipeline.FeatureUnion(
            [("scaled", preprocessing.StandardScaler()), ("few", decomposition.PCA(2)), ("gone", "drop"), ("same", "passthrough")],
            transformer_weights={"few": 0.5},
        )
    ],
    "ColumnTransformer": [
        lambda: compose.ColumnTransformer(
            [("scale", preprocessing.StandardScaler(), [0]), ("mask", preprocessing.MinMaxScaler(), slice(1, 2))],
            remainder="passthrough", transformer_weights={"mask": 2.0},
        )
    ],
    "Pipeline": [lambda: pipeline.make_pipeline(preprocessing.StandardScaler(), pipeline.make_pipeline(decomposition.PCA(2)))],
    "TfidfTransformer": [],  # these read counts of terms: tests/test_classical_text.py
    "CountVectorizer": [],
    "TfidfVectorizer": [],
    "HashingVectorizer": [],
    "FisherVectors": [],  # these read images: tests/test_classical_images.py
    "VisualWords": [],
}  # fmt: skip
"""From the name of a class in `classical.TRANSFORMERS` to its samples."""

READS_COUNTS = ("log1p", "sqrt", "chi2")
