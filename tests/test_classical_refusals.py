"""Models and inputs that are refused: one clear line each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import relprop
from relprop import classical

pytest.importorskip("sklearn", reason="the extra [classical] is not installed")

from sklearn import (
    cluster,
    compose,
    decomposition,
    ensemble,
    linear_model,
    mixture,
    model_selection,
    neighbors,
    pipeline,
    preprocessing,
    svm,
)
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import pairwise

from classical_samples import data, fit


def fitted(estimator: Any) -> Any:
    """The estimator fitted on the wines."""
    return fit(estimator, *data("wine"))


class Own(linear_model.LogisticRegression):
    """A subclass that decides in its own way."""

    def decision_function(self, x: Any) -> Any:
        return super().decision_function(x) ** 3


def _unknown(x: Any, y: Any) -> Any:
    return x @ y.T


def rbf_kernel(x: Any, y: Any) -> Any:
    return x @ y.T


def _precomputed() -> Any:
    return svm.SVC(kernel="precomputed").fit(np.eye(20), np.arange(20) % 2)


def fitted_texts() -> Any:
    """A table with a column of texts and one of numbers."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["good", "bad", "fine"], "size": [1.0, 2.0, 3.0]})
    columns = [("text", TfidfVectorizer(), "text"), ("size", preprocessing.StandardScaler(), ["size"])]
    model = pipeline.make_pipeline(compose.ColumnTransformer(columns), linear_model.LogisticRegression())
    return model.fit(frame, [1, 0, 1])


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
    "class": (lambda: svm.SVC, "is not something relprop can read"),
    "half a pipeline": (
        lambda: pipeline.make_pipeline(fitted(preprocessing.StandardScaler()), svm.SVC()),
        "Pipeline is not fitted",
    ),
    "search without an estimator": (
        lambda: fitted(model_selection.GridSearchCV(svm.SVC(), {"C": [1.0]}, cv=2, refit=False)),
        "kept no fitted estimator",
    ),
    "kernel of one's own in a partial": (
        lambda: fitted(svm.SVC(kernel=partial(_unknown))),
        "its kernel '_unknown' is not known",
    ),
    "kernel of a known name": (
        lambda: fitted(svm.SVC(kernel=rbf_kernel)),
        "its kernel 'rbf_kernel' is not known",
    ),
    "vectors of another number": (
        lambda: classical.Precomputed(_precomputed(), np.eye(7), "linear"),
        r"vectors of shape \(7, 7\), and the machine was fitted on 20",
    ),
    "vectors that are none": (
        lambda: classical.Precomputed(_precomputed(), np.ones(20)),
        r"of shape \(20,\)",
    ),
    "vectors below zero": (lambda: classical.Precomputed(_precomputed(), -np.eye(20)), "below 0"),
    "machine without vectors": (
        lambda: classical.Precomputed(svm.SVC(kernel="precomputed"), np.eye(20)),
        "SVC is not fitted",
    ),
    "density of no mixture": (
        lambda: classical.Density(mixture.GaussianMixture()),
        "no fitted GaussianMixture",
    ),
    "labels that are words": (
        lambda: classical.KernelKMeans(np.eye(3), ["a", "b", "c"], 1.0),
        "not one whole number",
    ),
    "labels that are fractions": (
        lambda: classical.KernelKMeans(np.eye(3), [0.0, 1.0, 1.0], 1.0),
        "not one whole number",
    ),
    "text in a column": (
        lambda: fitted_texts(),
        "TfidfVectorizer .sklearn.: reads a column of a table",
    ),
    "dictionaries": (
        lambda: pipeline.make_pipeline(DictVectorizer(), linear_model.LogisticRegression()).fit(
            [{"a": 1}, {"b": 2}], [0, 1]
        ),
        "DictVectorizer .sklearn.: does not say how many features",
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
    "words": (lambda x: [["a"] * 13], "an array of <U1, and LogisticRegression takes numbers"),
    "a word": (lambda x: np.array([[*x[0, :12], "a"]], object), "column 12 holds 'a', which is no number"),
    "numbers as words": (lambda x: x.astype(str), "do: X.astype"),
    "complex numbers": (lambda x: x.astype(complex), "an array of complex128"),
    "dates": (lambda x: np.full((2, 13), np.datetime64("2020-01-01")), "an array of datetime64"),
    "rows of different lengths": (lambda x: [[1.0, 2.0], [3.0]], "rows of different lengths"),
    "nothing": (lambda x: None, "an estimator takes .samples, features."),
    "infinity": (lambda x: np.where(x == x[0, 0], np.inf, x), "NaN or infinite"),
    "text": (lambda x: "a text", "an estimator takes .samples, features."),
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
    for reference in ([1.0, 2.0], "mean", float("nan")):
        with pytest.raises(relprop.InvalidInput, match=r"reference: .* of shape"):
            classical.to_module(fitted(linear_model.LogisticRegression()), reference=reference)
    clusters = fitted(cluster.KMeans(3, n_init=1))
    for beta in (-1.0, float("nan"), "much"):
        with pytest.raises(relprop.InvalidInput, match="is no sharpness"):
            classical.to_module(clusters, beta=beta)
    with pytest.raises(relprop.InvalidInput, match="of a soft minimum"):
        classical.to_module(clusters, soft=True)
    with pytest.raises(relprop.UnsupportedOperation, match=r"int \(builtins\): is no estimator"):
        classical.to_module(5)


def test_what_the_estimator_itself_refuses_is_refused_in_its_words() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"kind": ["a", "b"] * 5, "size": np.arange(10.0)})
    columns = [
        ("kind", preprocessing.OneHotEncoder(), ["kind"]),
        ("size", preprocessing.StandardScaler(), ["size"]),
    ]
    model = pipeline.make_pipeline(compose.ColumnTransformer(columns), linear_model.LogisticRegression())
    model.fit(frame, [0, 1] * 5)
    with pytest.raises(relprop.InvalidInput, match=r"refuses them: Found unknown categories \['c'\]"):
        relprop.explain(model, pandas.DataFrame({"kind": ["c"], "size": [1.0]}))
    with pytest.raises(relprop.InvalidInput, match="refuses them: Specifying the columns using strings"):
        relprop.explain(model, np.array([["a", 1.0]], object))
    for wrong, message in ((frame.assign(more=1), "'more' is none"), (frame[["size"]], "'kind' lacks")):
        with pytest.raises(relprop.InvalidInput, match=message):
            relprop.explain(model, wrong)


def test_negative_counts_are_refused() -> None:
    x, y = data("digits")
    model = svm.SVC(kernel=pairwise.chi2_kernel).fit(x[:60], y[:60])
    with pytest.raises(relprop.InvalidInput, match="negative, and this model reads counts"):
        relprop.explain(model, x[:3] - 1)
