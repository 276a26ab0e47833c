"""Classical models: every estimator and transformer as a network has the score of scikit-learn, and the account closes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import relprop
from relprop import classical
from relprop.classical.explained import CHECKED, rewritten
from relprop.rules import Epsilon

pytest.importorskip("sklearn", reason="the extra [classical] is not installed")

from sklearn import (
    cluster,
    compose,
    covariance,
    datasets,
    decomposition,
    discriminant_analysis,
    ensemble,
    feature_selection,
    impute,
    kernel_approximation,
    linear_model,
    mixture,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    random_projection,
    svm,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise

EXACT = 1e-9
"""Largest |difference| of scores, as a part of max(1, |score|)."""


@cache
def data(name: str) -> tuple[Any, Any]:
    """Features and labels that scikit-learn bundles; wine and breast cancer at unit variance."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    if name in ("wine", "breast_cancer"):
        x = (x - x.mean(0)) / x.std(0)
    return x[:400], y[:400]


def fitted(estimator: Any, name: str = "wine") -> Any:
    """The estimator fitted on a data set; that it has not converged is no matter here."""
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        return estimator.fit(*data(name))


Make = Callable[[], Any]

CLASSIFIERS: dict[str, Make] = {
    "LinearSVC": svm.LinearSVC,
    "SGDClassifier": lambda: linear_model.SGDClassifier(random_state=0),
    "LogisticRegression": linear_model.LogisticRegression,
    "RidgeClassifier": linear_model.RidgeClassifier,
    "LinearDiscriminantAnalysis": discriminant_analysis.LinearDiscriminantAnalysis,
    "Perceptron": linear_model.Perceptron,
    "MLPClassifier": lambda: neural_network.MLPClassifier((9, 7), random_state=0, max_iter=50),
    "MLP tanh": lambda: neural_network.MLPClassifier((9,), "tanh", random_state=0, max_iter=50),
    "SVC linear": lambda: svm.SVC(kernel="linear"),
    "SVC rbf": svm.SVC,
    "SVC poly": lambda: svm.SVC(kernel="poly", coef0=0.7),
    "SVC sigmoid": lambda: svm.SVC(kernel="sigmoid", coef0=0.1),
    "SVC one-versus-one": lambda: svm.SVC(decision_function_shape="ovo"),
    "SVC laplacian": lambda: svm.SVC(kernel=pairwise.laplacian_kernel),
    "NuSVC": lambda: svm.NuSVC(nu=0.3),
}
REGRESSORS: dict[str, Make] = {
    "LinearRegression": linear_model.LinearRegression,
    "Ridge": linear_model.Ridge,
    "Lasso": linear_model.Lasso,
    "ElasticNet": linear_model.ElasticNet,
    "LinearSVR": svm.LinearSVR,
    "SVR": lambda: svm.SVR(C=50.0),
    "NuSVR poly": lambda: svm.NuSVR(kernel="poly", degree=2),
    "MLPRegressor": lambda: neural_network.MLPRegressor(hidden_layer_sizes=(8,), random_state=0, max_iter=60),
}
OUTLIERS: dict[str, Make] = {
    "OneClassSVM": lambda: svm.OneClassSVM(nu=0.2),
    "OneClassSVM linear": lambda: svm.OneClassSVM(kernel="linear"),
    "OneClassSVM laplacian": lambda: svm.OneClassSVM(kernel=pairwise.laplacian_kernel, nu=0.2),
    "KernelDensity": lambda: neighbors.KernelDensity(bandwidth=1.3),
    "KernelDensity exponential": lambda: neighbors.KernelDensity(bandwidth=1.3, kernel="exponential"),
    "EllipticEnvelope": lambda: covariance.EllipticEnvelope(random_state=0),
    "Density": lambda: mixture.GaussianMixture(3, random_state=0, reg_covar=1e-2),
}
CLUSTERS: dict[str, Make] = {
    "KMeans": lambda: cluster.KMeans(4, n_init=1, random_state=0),
    "MiniBatchKMeans": lambda: cluster.MiniBatchKMeans(4, n_init=1, random_state=0),
    "BisectingKMeans": lambda: cluster.BisectingKMeans(5, random_state=0),
    "MeanShift": lambda: cluster.MeanShift(bandwidth=3.0),
    **{
        f"GaussianMixture {kind}": lambda kind=kind: mixture.GaussianMixture(  # type: ignore[misc]
            3, covariance_type=kind, random_state=0, reg_covar=1e-2
        )
        for kind in ("full", "tied", "diag", "spherical")
    },
    "BayesianGaussianMixture": lambda: mixture.BayesianGaussianMixture(
        n_components=3, random_state=0, reg_covar=1e-2
    ),
}


def built(name: str, table: dict[str, Make], kind: str = "wine") -> Any:
    model = fitted(table[name](), kind)
    return classical.Density(model) if name == "Density" else model


def close(found: Any, expected: Any) -> None:
    """Equal to 1e-9 of the largest score."""
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= EXACT * max(1.0, np.abs(expected).max())


def explained(model: Any, x: Any, target: Any = None, **options: Any) -> relprop.Explanation:
    """The explanation, whose account is held to 1e-10 and whose score is the network's."""
    explanation = relprop.explain(model, x, target, **options)
    assert explanation.audit is not None
    assert explanation.relevance.dtype == torch.float64
    total = explanation.relevance.sum(1) + sum(explanation.audit.absorbed.values())
    torch.testing.assert_close(total, explanation.score, atol=1e-9, rtol=1e-9)
    return explanation


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("kind", ["wine", "breast_cancer"])
def test_classifier_has_its_decision_function(name: str, kind: str) -> None:
    model, (x, _) = built(name, CLASSIFIERS, kind), data(kind)
    x = x[:60]
    found = classical.to_module(model)(torch.from_numpy(x)).detach().numpy()
    if "MLP" in name:
        binary = found.ndim == 1
        p = model.predict_proba(x)
        mine = 1 / (1 + np.exp(-found)) if binary else np.exp(found) / np.exp(found).sum(1, keepdims=True)
        close(mine, p[:, 1] if binary else p)
    else:
        close(found, model.decision_function(x))
    explanation = explained(model, x)
    predicted = (found > 0).astype(int) if found.ndim == 1 else found.argmax(1)
    if "one-versus-one" not in name:
        assert (model.classes_[predicted] == model.predict(x)).mean() > 0.98  # votes may tie
    assert explanation.relevance.shape == x.shape


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressor_has_its_prediction(name: str) -> None:
    model, (x, _) = built(name, REGRESSORS, "diabetes"), data("diabetes")
    explanation = explained(model, x[:40])
    close(explanation.output, model.predict(x[:40]))


@pytest.mark.parametrize("name", OUTLIERS)
def test_outlier_score_is_that_of_the_densities(name: str) -> None:
    model, (x, _) = built(name, OUTLIERS), data("wine")
    x = x[:50]
    o = explained(model, x).output.numpy()
    if name == "OneClassSVM":
        close(np.exp(-model._gamma * o), model.score_samples(x))
        assert ((o > -np.log(model.offset_) / model._gamma) == (model.predict(x) < 0)).all()
    elif name == "OneClassSVM laplacian":
        close(np.exp(-o / x.shape[1]), model.score_samples(x))
    elif name == "OneClassSVM linear":
        close(-o, model.decision_function(x))
    elif name == "EllipticEnvelope":
        close(-o, model.score_samples(x))
    elif name == "Density":
        close(-o, model.mixture.score_samples(x))
    else:
        width = 1 / 1.3 if "exp" in name else 1 / (2 * 1.3**2)
        difference = model.score_samples(x) + width * o
        close(difference, np.full(len(x), difference[0]))


@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster_evidence_is_that_of_the_assignment(name: str) -> None:
    model, (x, _) = built(name, CLUSTERS), data("wine")
    x = x[:50]
    explanation = explained(model, x)
    assigned = model.predict(x)
    assert (explanation.target.numpy() == assigned).all()
    assert (explanation.score > 0).all() or "Gaussian" in name
    if "Gaussian" in name:
        p = model.predict_proba(x)
        inside = np.clip(p, 1e-12, 1 - 1e-12)
        sure = (p > 1e-6) & (p < 1 - 1e-6)
        close(explanation.output.numpy()[sure], (np.log(inside) - np.log1p(-inside))[sure])
    elif name != "BisectingKMeans":
        d = ((x[:, None] - model.cluster_centers_) ** 2).sum(-1)
        rows = np.arange(len(x))
        own = d[rows, assigned]
        d[rows, assigned] = np.inf
        close(explanation.score, d.min(1) - own)


def test_kernel_machines_with_other_kernels_have_their_scores() -> None:
    x, y = data("digits")
    x, y = x[:120] / x[:120].sum(1, keepdims=True), y[:120]
    for kernel in (classical.histogram_intersection, pairwise.chi2_kernel, pairwise.additive_chi2_kernel):
        model = svm.SVC(kernel=kernel).fit(x, y)
        close(explained(model, x[:20]).output, model.decision_function(x[:20]))


def test_precomputed_kernel_is_explained_with_its_vectors() -> None:
    x, y = data("digits")
    x, y = x[:120], y[:120] < 5
    matrix = classical.histogram_intersection(x, x)
    model = svm.SVC(kernel="precomputed").fit(matrix, y)
    with_vectors = classical.Precomputed(model, x, "histogram_intersection")
    explanation = explained(with_vectors, x[:20])
    close(explanation.output, model.decision_function(matrix[:20]))
    coefficients = torch.from_numpy(model.dual_coef_)
    terms = torch.minimum(torch.from_numpy(x[:20, None]), torch.from_numpy(x[model.support_][None]))
    torch.testing.assert_close(explanation.relevance, torch.einsum("n,bnd->bd", coefficients[0], terms))


def test_kernel_clustering_explains_its_assignment() -> None:
    x, _ = data("wine")
    labels = cluster.SpectralClustering(3, gamma=0.1, random_state=0).fit_predict(x)
    model = classical.KernelKMeans(x, labels, 0.1)
    explanation = explained(model, x[:50])
    assert (explanation.target.numpy() == model.predict(x[:50])).all()
    assert (explanation.score > 0).all()
    agree = (model.predict(x) == labels).mean()
    assert agree > 0.9


# ---------------------------------------------------------------- relevance


@pytest.mark.parametrize("name", ["LinearSVC", "LogisticRegression", "RidgeClassifier", "SVC linear"])
def test_linear_model_gives_weight_times_difference_from_the_reference(name: str) -> None:
    model, (x, _) = built(name, CLASSIFIERS, "breast_cancer"), data("breast_cancer")
    w = torch.from_numpy(np.array(model.coef_).reshape(-1))
    plain = explained(model, x)
    assert torch.allclose(plain.relevance, torch.from_numpy(x) * w, rtol=1e-12, atol=1e-12)
    assert plain.audit is not None
    torch.testing.assert_close(
        plain.audit.absorbed["bias"], torch.full((len(x),), float(np.ravel(model.intercept_)[0])).double()
    )
    reference = np.random.default_rng(0).normal(size=x.shape[1])
    moved = explained(rewritten(model, reference), x)
    assert torch.allclose(moved.relevance, torch.from_numpy(x - reference) * w, rtol=1e-12, atol=1e-12)
    close(moved.score, plain.score)
    spread = relprop.explain(model, x, rules=Epsilon(0.0, bias="distribute"))
    share = float(np.ravel(model.intercept_)[0]) / x.shape[1]
    torch.testing.assert_close(spread.relevance, plain.relevance + share, rtol=1e-9, atol=1e-12)


def test_linear_model_behind_a_scaler_is_explained_against_the_mean() -> None:
    x, y = datasets.load_wine(return_X_y=True)
    model = pipeline.make_pipeline(
        preprocessing.StandardScaler(), decomposition.PCA(5), linear_model.LogisticRegression()
    ).fit(x, y)
    explanation = explained(model, x, 2)
    scaler, pca, last = (step for _, step in model.steps)
    w = last.coef_[2] @ pca.components_ / scaler.scale_
    close(explanation.relevance, (x - scaler.mean_) * w)
    explicit = explained(rewritten(model, x[0]), x, 2)
    close(explicit.relevance, (x - x[0]) * w)
    assert float(explicit.relevance[0].abs().max()) == 0


@pytest.mark.parametrize("kernel", ["rbf", "poly", "sigmoid", "linear"])
def test_kernel_machine_shares_what_it_changes_from_the_reference(kernel: str) -> None:
    x, y = data("breast_cancer")
    model = svm.SVC(kernel=kernel, coef0=0.3).fit(x, y)
    reference = x[7]
    explanation = explained(rewritten(model, reference), x[:30])
    change = model.decision_function(x[:30]) - model.decision_function(x[7:8])
    close(explanation.relevance.sum(1), change)
    assert float(explanation.relevance[7].abs().max()) < 1e-12


def test_kernel_relevance_is_the_mean_gradient_of_dot_product_kernels() -> None:
    x, y = data("breast_cancer")
    model = svm.SVC(kernel="poly", coef0=0.5).fit(x, y)
    module = classical.to_module(model)
    points = torch.from_numpy(x[:5])
    at, weights = np.polynomial.legendre.leggauss(6)
    total = torch.zeros_like(points)
    for t, w in zip((at + 1) / 2, weights / 2, strict=True):
        leaf = (points * t).requires_grad_()
        total += w * torch.autograd.grad(_plain_poly(model, leaf).sum(), leaf)[0] * points
    torch.testing.assert_close(relprop.explain(model, x[:5]).relevance, total, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(module(points), _plain_poly(model, points))


def _plain_poly(model: Any, x: torch.Tensor) -> torch.Tensor:
    support, dual = torch.from_numpy(model.support_vectors_), torch.from_numpy(model.dual_coef_[0])
    return (model._gamma * x @ support.T + model.coef0) ** model.degree @ dual + float(model.intercept_[0])


def test_one_class_relevance_is_that_of_the_formula() -> None:
    x, _ = data("wine")
    model = svm.OneClassSVM(nu=0.2).fit(x)
    alpha, u, gamma = model.dual_coef_[0], model.support_vectors_, model._gamma
    squares = (x[:20, None] - u[None]) ** 2
    d = squares.sum(-1)
    h = d - np.log(alpha) / gamma
    p = np.exp(-gamma * (h - h.min(1, keepdims=True)))
    p /= p.sum(1, keepdims=True)
    o = -np.log((alpha * np.exp(-gamma * d)).sum(1)) / gamma
    ratio = np.divide(squares, d[..., None], out=np.zeros_like(squares), where=d[..., None] > 0)
    expected = (ratio * (p * o[:, None])[..., None]).sum(1)
    explanation = relprop.explain(model, x[:20])
    close(explanation.relevance, expected)
    inlier = relprop.explain(model, x[:20], "inlier")
    close(inlier.relevance, -expected)
    close(inlier.score, -o)


def test_cluster_relevance_is_that_of_the_midpoints() -> None:
    x, _ = data("wine")
    model = fitted(CLUSTERS["KMeans"]())
    centres = model.cluster_centers_
    explanation = relprop.explain(model, x[:10])
    for row in range(10):
        c, f = int(explanation.target[row]), float(explanation.score[row])
        others = [k for k in range(4) if k != c]
        w = 2 * (centres[c] - centres[others])
        terms = (x[row] - (centres[c] + centres[others]) / 2) * w
        h = terms.sum(1)
        p = np.exp(-(h - h.min()) / f)
        p /= p.sum()
        close(explanation.relevance[row], (terms * (p / h * f)[:, None]).sum(0))
    winner = relprop.explain(rewritten(model, beta=float("inf")), x[:10])
    assert not torch.allclose(winner.relevance, explanation.relevance)
    close(winner.relevance.sum(1), explanation.relevance.sum(1))


def test_targets_are_labels_indices_and_sides() -> None:
    x, y = data("breast_cancer")
    named = np.where(y == 1, "benign", "malignant")
    model = linear_model.LogisticRegression().fit(x, named)
    score = model.decision_function(x[:6])
    close(relprop.explain(model, x[:6]).score, score)
    close(relprop.explain(model, x[:6], "malignant").score, score)
    close(relprop.explain(model, x[:6], "benign").score, -score)
    close(relprop.explain(model, x[:6], list(named[:6])).score.abs(), abs(score))
    close(relprop.explain(model, x[:6], 1).score, score)
    mixed = relprop.explain(model, x[:6], ["benign", "malignant"] * 3)
    close(mixed.score, score * np.array([-1, 1] * 3))
    assert mixed.target.tolist() == [0, 1] * 3
    shifted = linear_model.LogisticRegression().fit(*(data("wine")[0], data("wine")[1] + 5))
    found = relprop.explain(shifted, data("wine")[0][:4], 7)
    assert found.target.tolist() == [2] * 4
    several = relprop.Explainer(shifted).explain_targets(data("wine")[0][:4], [5, 6])
    assert [one.target.tolist() for one in several] == [[0] * 4, [1] * 4]


def test_other_methods_explain_the_same_score() -> None:
    model, (x, _) = built("SVC rbf", CLASSIFIERS, "breast_cancer"), data("breast_cancer")
    linear = built("LogisticRegression", CLASSIFIERS, "breast_cancer")
    gradient = relprop.explain(linear, x[:5], method="gradient_x_input")
    close(gradient.relevance, x[:5] * linear.coef_[0])
    occluded = relprop.explain(model, x[:2], method="occlusion")
    close(occluded.score, model.decision_function(x[:2]))


def test_input_may_be_a_tensor_an_array_lists_or_a_frame() -> None:
    pandas = pytest.importorskip("pandas")
    x, y = data("wine")
    model = fitted(linear_model.LogisticRegression())
    expected = relprop.explain(model, x[:4]).relevance
    for same in (torch.from_numpy(x[:4]), torch.from_numpy(x[:4]).float().double(), x[:4].tolist()):
        torch.testing.assert_close(relprop.explain(model, same).relevance, expected, atol=1e-6, rtol=1e-6)
    names = [f"f{i}" for i in range(x.shape[1])]
    framed = linear_model.LogisticRegression().fit(pandas.DataFrame(x, columns=names), y)
    found = relprop.explain(framed, pandas.DataFrame(x[:4], columns=names))
    torch.testing.assert_close(found.relevance, expected)
    with pytest.raises(relprop.InvalidInput, match="in another order"):
        relprop.explain(framed, pandas.DataFrame(x[:4], columns=names)[names[::-1]])


# ---------------------------------------------------------------- transformers

TRANSFORMERS: dict[str, Make] = {
    "StandardScaler": preprocessing.StandardScaler,
    "MinMaxScaler": lambda: preprocessing.MinMaxScaler((-1, 2)),
    "MaxAbsScaler": preprocessing.MaxAbsScaler,
    "RobustScaler": preprocessing.RobustScaler,
    "Normalizer l2": preprocessing.Normalizer,
    "Normalizer l1": lambda: preprocessing.Normalizer("l1"),
    "Normalizer max": lambda: preprocessing.Normalizer("max"),
    "PCA": lambda: decomposition.PCA(4),
    "PCA whiten": lambda: decomposition.PCA(4, whiten=True),
    "TruncatedSVD": lambda: decomposition.TruncatedSVD(4, random_state=0),
    "FastICA": lambda: decomposition.FastICA(4, random_state=0, max_iter=1000, tol=1e-2),
    "GaussianRandomProjection": lambda: random_projection.GaussianRandomProjection(6, random_state=0),
    "SparseRandomProjection": lambda: random_projection.SparseRandomProjection(6, random_state=0),
    "Nystroem": lambda: kernel_approximation.Nystroem(n_components=20, random_state=0),
    "Nystroem poly": lambda: kernel_approximation.Nystroem(
        kernel="poly", degree=2, n_components=20, random_state=0
    ),
    "Nystroem laplacian": lambda: kernel_approximation.Nystroem(
        kernel="laplacian", n_components=9, random_state=0
    ),
    "RBFSampler": lambda: kernel_approximation.RBFSampler(gamma=0.1, n_components=30, random_state=0),
    "SelectKBest": lambda: feature_selection.SelectKBest(k=5),
    "SelectFromModel": lambda: feature_selection.SelectFromModel(linear_model.LogisticRegression()),
    "VarianceThreshold": lambda: feature_selection.VarianceThreshold(0.5),
    "PolynomialFeatures": lambda: preprocessing.PolynomialFeatures(3),
    "interactions": lambda: preprocessing.PolynomialFeatures(2, interaction_only=True, include_bias=False),
    "OneHotEncoder": lambda: preprocessing.OneHotEncoder(handle_unknown="ignore"),
    "SimpleImputer": impute.SimpleImputer,
    "FunctionTransformer": lambda: preprocessing.FunctionTransformer(np.square),
    "LinearDiscriminantAnalysis": lambda: pipeline.make_pipeline(
        discriminant_analysis.LinearDiscriminantAnalysis(n_components=2)
    ),
    "FeatureUnion": lambda: pipeline.FeatureUnion(
        [("scaled", preprocessing.StandardScaler()), ("few", decomposition.PCA(2))],
        transformer_weights={"few": 0.5},
    ),
    "ColumnTransformer": lambda: compose.ColumnTransformer(
        [
            ("scale", preprocessing.StandardScaler(), [0, 2]),
            ("bin", preprocessing.MinMaxScaler(), slice(3, 6)),
        ],
        remainder="passthrough",
    ),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformer_in_a_pipeline_has_its_features(name: str) -> None:
    x, y = datasets.load_wine(return_X_y=True)
    x = x.round() if name == "OneHotEncoder" else data("wine")[0] if "poly" in name else x
    last = linear_model.LogisticRegression()
    with warnings.catch_warnings(action="ignore"):
        model = pipeline.make_pipeline(TRANSFORMERS[name](), last).fit(x, y)
        rest = model[:-1]
    with warnings.catch_warnings(action="ignore"):
        close(model.decision_function(x), explained(model, x).output)
        features = rest.transform(x)
    features = features.toarray() if hasattr(features, "toarray") else features
    if name == "LinearDiscriminantAnalysis":
        return  # alone it is a classifier
    module = classical.to_module(rest)
    found = module(torch.from_numpy(x)).detach().numpy()
    close(found, features)


@pytest.mark.parametrize(
    "name",
    ["MaxAbsScaler", "PCA", "Nystroem", "RBFSampler", "PolynomialFeatures", "FeatureUnion", "Normalizer l2"],
)
def test_given_reference_has_no_relevance_of_its_own(name: str) -> None:
    x, y = data("wine")
    with warnings.catch_warnings(action="ignore"):
        model = pipeline.make_pipeline(
            preprocessing.StandardScaler(), TRANSFORMERS[name](), svm.SVC(gamma=0.1)
        ).fit(x, y == 0)
    explanation = explained(rewritten(model, x[3]), x[:8])
    close(explanation.output, model.decision_function(x[:8]))
    assert float(explanation.relevance[3].abs().max()) < 1e-10
    if name in ("MaxAbsScaler", "PCA", "FeatureUnion"):
        close(explanation.relevance.sum(1), explanation.output - model.decision_function(x[3:4])[0])


def test_categories_and_missing_values_belong_to_their_columns() -> None:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    colour = rng.choice(["red", "green", "blue"], 120)
    size = rng.normal(size=120)
    size[::7] = np.nan
    frame = pandas.DataFrame({"colour": colour, "size": size, "kind": rng.integers(0, 3, 120)})
    y = ((colour == "red") ^ (np.nan_to_num(size) > 1)).astype(int)
    scaled = pipeline.make_pipeline(impute.SimpleImputer(), preprocessing.StandardScaler())
    model = pipeline.make_pipeline(
        compose.ColumnTransformer(
            [("c", preprocessing.OneHotEncoder(), ["colour", "kind"]), ("s", scaled, ["size"])]
        ),
        linear_model.LogisticRegression(),
    ).fit(frame, y)
    explanation = explained(model, frame)
    close(explanation.output, model.decision_function(frame))
    names = list(model[0].get_feature_names_out())
    w = model[1].coef_[0]
    expected = [w[names.index(f"c__colour_{c}")] for c in colour]
    close(explanation.relevance[:, 0], expected)
    assert float(explanation.relevance[::7, 1].abs().max()) < 1e-12  # filled in with the mean


# ---------------------------------------------------------------- drawn data


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(12, 30),
    width=st.integers(2, 6),
    scale=st.sampled_from([1e-2, 1.0, 1e2]),
    which=st.sampled_from(
        ["LogisticRegression", "SVC rbf", "SVC poly", "OneClassSVM", "KMeans", "EllipticEnvelope"]
    ),
)
def test_scores_and_accounts_hold_on_drawn_data(
    seed: int, rows: int, width: int, scale: float, which: str
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, width)) * scale
    y = np.arange(rows) % 3
    make = {**CLASSIFIERS, **OUTLIERS, **CLUSTERS}[which]
    with warnings.catch_warnings(action="ignore"):
        model = make().fit(x, y) if which in CLASSIFIERS else make().fit(x)
    fresh = np.concatenate([x[:3], rng.normal(size=(3, width)) * scale])
    explanation = explained(model, fresh)
    if which in CLASSIFIERS:
        close(explanation.output, model.decision_function(fresh))
    alone = relprop.explain(model, fresh[4:5])
    torch.testing.assert_close(alone.relevance[0], explanation.relevance[4], rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- bad input


class Own(linear_model.LogisticRegression):
    """A subclass that decides in its own way."""

    def decision_function(self, x: Any) -> Any:
        return super().decision_function(x) ** 3


def _unknown(x: Any, y: Any) -> Any:
    return x @ y.T


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "unfitted": (lambda: svm.SVC(), "SVC is not fitted"),
    "unfitted pipeline": (lambda: pipeline.make_pipeline(svm.SVC()), "is not fitted"),
    "forest": (
        lambda: fitted(ensemble.RandomForestClassifier(3)),
        "RandomForestClassifier .sklearn.: has no rewriting",
    ),
    "neighbours": (lambda: fitted(neighbors.KNeighborsClassifier()), "KNeighborsClassifier"),
    "unknown kernel": (lambda: fitted(svm.SVC(kernel=_unknown)), "its kernel '_unknown' is not known"),
    "precomputed alone": (
        lambda: svm.SVC(kernel="precomputed").fit(np.eye(20), np.arange(20) % 2),
        "classical.Precomputed",
    ),
    "NMF": (
        lambda: pipeline.make_pipeline(decomposition.NMF(2, max_iter=2000, tol=1e-2), svm.SVC()).fit(
            np.abs(data("wine")[0]), data("wine")[1]
        ),
        "NMF .sklearn.: its transform is the result of a search",
    ),
    "quantiles": (
        lambda: fitted(pipeline.make_pipeline(preprocessing.QuantileTransformer(n_quantiles=9), svm.SVC())),
        "QuantileTransformer",
    ),
    "clipped": (
        lambda: fitted(pipeline.make_pipeline(preprocessing.MinMaxScaler(clip=True), svm.SVC())),
        "with clip=True",
    ),
    "one cluster": (lambda: fitted(cluster.KMeans(1, n_init=1)), "has one cluster"),
    "compact kernel": (lambda: fitted(neighbors.KernelDensity(kernel="tophat")), "no soft minimum"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_model_without_a_rewriting_is_refused_by_name(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(relprop.InvalidInput, match=message) as caught:
        relprop.explain(make(), data("wine")[0][:3])
    assert str(caught.value).count("\n") == 1


def test_estimator_of_another_library_is_refused_by_name() -> None:
    class Boosted:
        def fit(self, x: Any, y: Any) -> None: ...
        def predict(self, x: Any) -> None: ...

    with pytest.raises(relprop.UnsupportedOperation, match="Boosted"):
        relprop.explain(Boosted(), data("wine")[0])


def test_class_that_decides_in_its_own_way_is_refused() -> None:
    with pytest.raises(relprop.CaptureError, match="Own does not compute its score"):
        relprop.explain(fitted(Own()), data("wine")[0])


BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "width": (lambda x: x[:, :4], "4 features, and the model was fitted on 13"),
    "one row": (lambda x: x[0], r"reshape\(1, -1\)"),
    "no rows": (lambda x: x[:0], "an empty batch"),
    "NaN": (lambda x: np.where(x == x[0, 0], np.nan, x), "NaN or infinite"),
    "words": (lambda x: np.array([["a"] * 13]), "column 0 holds 'a', which is no number"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(name: str) -> None:
    change, message = BAD[name]
    with pytest.raises(relprop.InvalidInput, match=message):
        relprop.explain(fitted(linear_model.LogisticRegression()), change(data("wine")[0]))


@pytest.mark.parametrize("target", [7, -1, 1.5, "cat", True, [0, 1]])
def test_target_that_is_no_class_is_refused(target: Any) -> None:
    with pytest.raises(relprop.InvalidInput, match="target"):
        relprop.explain(fitted(linear_model.LogisticRegression()), data("wine")[0][:3], target)


def test_options_of_another_kind_of_model_are_refused() -> None:
    with pytest.raises(relprop.InvalidInput, match="beta: no option of LogisticRegression"):
        classical.to_module(fitted(linear_model.LogisticRegression()), beta=1.0)
    with pytest.raises(relprop.InvalidInput, match="reference: of shape"):
        classical.to_module(fitted(linear_model.LogisticRegression()), reference=[1.0, 2.0])


def test_negative_counts_are_refused() -> None:
    x, y = data("digits")
    model = svm.SVC(kernel=pairwise.chi2_kernel).fit(x[:60], y[:60])
    with pytest.raises(relprop.InvalidInput, match="negative, and this model reads counts"):
        relprop.explain(model, x[:3] - 1)


def test_estimator_is_left_as_it_was() -> None:
    model = fitted(svm.SVC())
    before = {name: np.array(value, dtype=object) for name, value in vars(model).items()}
    relprop.explain(model, data("wine")[0][:CHECKED])
    after = vars(model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[k], np.array(after[k], dtype=object)) for k in before)
