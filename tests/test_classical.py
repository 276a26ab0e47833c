"""Classical models: every estimator and transformer as a network has the score of scikit-learn, and the account closes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import relprop
from relprop import classical
from relprop.classical.explained import CHECKED, rewritten
from relprop.rules import Epsilon

pytest.importorskip("sklearn", reason="the extra [classical] is not installed")

from scipy import sparse
from sklearn import (
    cluster,
    compose,
    datasets,
    decomposition,
    impute,
    linear_model,
    multiclass,
    pipeline,
    preprocessing,
    svm,
)
from sklearn.metrics import pairwise

from classical_samples import ESTIMATORS, TRANSFORMERS, close, data, fit


def fitted(estimator: Any, name: str = "wine") -> Any:
    """The estimator fitted on a data set."""
    return fit(estimator, *data(name))


def explained(model: Any, x: Any, target: Any = None, **options: Any) -> relprop.Explanation:
    """The explanation, whose account is held to 1e-10 and whose score is the network's."""
    explanation = relprop.explain(model, x, target, **options)
    assert explanation.audit is not None
    assert explanation.relevance.dtype == torch.float64
    total = explanation.relevance.sum(1) + sum(explanation.audit.absorbed.values())
    torch.testing.assert_close(total, explanation.score, atol=1e-9, rtol=1e-9)
    return explanation


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


@pytest.mark.parametrize(
    "name", ["KMeans", "MiniBatchKMeans", "MeanShift", "AffinityPropagation", "BisectingKMeans"]
)
def test_evidence_is_above_zero_for_the_assigned_cluster(name: str) -> None:
    x, _ = data("wine")
    model = ESTIMATORS[name][0].fitted(x, None)
    explanation = explained(model, x[:50])
    assert (explanation.target.numpy() == model.predict(x[:50])).all()
    assert (explanation.score > 0).all()
    other = relprop.explain(model, x[:50], (model.predict(x[:50]) + 1) % explanation.output.shape[1])
    assert (other.score < 0).all()


def test_outlier_score_is_above_its_threshold_for_what_is_called_an_outlier() -> None:
    x, _ = data("wine")
    model = fitted(svm.OneClassSVM(nu=0.2))
    o = explained(model, x).score.numpy()
    assert ((o > -np.log(model.offset_) / model._gamma) == (model.predict(x) < 0)).all()
    shares = relprop.explain(rewritten(model, normalised=True), x).score.numpy()
    close(shares - o, np.full(len(x), np.log(model.dual_coef_.sum()) / model._gamma))
    assert (shares >= 0).all()


def test_machine_of_which_every_vector_is_a_support_vector_has_its_score() -> None:
    x, y = data("digits")
    model = fit(svm.SVC(kernel=pairwise.laplacian_kernel), x[:40], y[:40])
    assert len(model.support_) == 40 and (np.diff(model.support_) < 0).any()
    close(explained(model, x[40:60]).output, model.decision_function(x[40:60]))


# ---------------------------------------------------------------- relevance


LINEAR = (
    svm.LinearSVC,
    linear_model.LogisticRegression,
    linear_model.RidgeClassifier,
    partial(svm.SVC, kernel="linear"),
)


@pytest.mark.parametrize("make", LINEAR)
def test_linear_model_gives_weight_times_difference_from_the_reference(make: Any) -> None:
    model, (x, _) = fitted(make(), "breast_cancer"), data("breast_cancer")
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
    model = fitted(cluster.KMeans(4, n_init=1, random_state=0))
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
    model, (x, _) = fitted(svm.SVC(), "breast_cancer"), data("breast_cancer")
    linear = fitted(linear_model.LogisticRegression(), "breast_cancer")
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

REFERRED: dict[str, Any] = {
    name: TRANSFORMERS[name][0]
    for name in (
        "MaxAbsScaler",
        "PCA",
        "FeatureUnion",
        "Nystroem",
        "RBFSampler",
        "PolynomialFeatures",
        "Normalizer",
    )
}


@pytest.mark.parametrize("name", REFERRED)
def test_given_reference_has_no_relevance_of_its_own(name: str) -> None:
    x, y = data("wine")
    model = fit(
        pipeline.make_pipeline(preprocessing.StandardScaler(), REFERRED[name](), svm.SVC(gamma=0.1)),
        x,
        y == 0,
    )
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


def test_columns_of_a_table_are_called_and_drawn_by_their_names() -> None:
    pandas = pytest.importorskip("pandas")
    x, y = data("wine")
    names = [f"column {i}" for i in range(x.shape[1])]
    frame = pandas.DataFrame(x, columns=names)
    model = fit(linear_model.LogisticRegression(), frame, y)
    assert relprop.explain(model, frame[:2]).features == tuple(names)
    assert relprop.explain(model, x[:2]).features == tuple(names)
    plain = relprop.explain(fit(linear_model.LogisticRegression(), x, y), x[:2])
    assert plain.features == range(x.shape[1])
    pytest.importorskip("matplotlib")
    explanation = relprop.explain(model, frame[:2])
    drawn = explanation.heatmap(title=["one", "two"])
    by_hand = [
        relprop.show.table(
            row,
            names=[f"{n} = {v:.4g}".replace("-", "−") for n, v in zip(names, values, strict=True)],
            title=head,
        )
        for row, values, head in zip(explanation.relevance, x[:2], ("one", "two"), strict=True)
    ]
    assert drawn.height == sum(one.height for one in by_hand)
    same = drawn.crop((0, 0, by_hand[0].width, by_hand[0].height)).tobytes() == by_hand[0].tobytes()
    assert same
    table = sparse.csr_array(np.where(x > 1, x, 0.0))
    listed = relprop.explain(fit(linear_model.LogisticRegression(), table, y), table[:2])
    assert listed.heatmap().height < drawn.height


def test_two_labels_with_an_output_each_are_no_two_classes() -> None:
    x, _ = data("wine")
    labels = np.stack([x[:, 0] > 0, x[:, 1] > 0], 1).astype(int)
    for model in (linear_model.RidgeClassifier(), multiclass.OneVsRestClassifier(svm.LinearSVC())):
        fit(model, x, labels)
        for label in (0, 1):
            explanation = relprop.explain(model, x[:5], label)
            close(explanation.score, model.decision_function(x[:5])[:, label])
            assert explanation.target.tolist() == [label] * 5


def test_estimator_is_left_as_it_was() -> None:
    model = fitted(svm.SVC())
    before = {name: np.array(value, dtype=object) for name, value in vars(model).items()}
    relprop.explain(model, data("wine")[0][:CHECKED])
    after = vars(model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[k], np.array(after[k], dtype=object)) for k in before)
