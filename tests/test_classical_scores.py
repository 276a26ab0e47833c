"""Every estimator and transformer of the tables as a network has the score of scikit-learn, on real and on drawn data."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import relprop
from relprop import classical
from relprop.classical import build

pytest.importorskip("sklearn", reason="the extra [classical] is not installed")

from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline

from classical_samples import (
    CLOSED,
    DATA,
    ESTIMATORS,
    KERNELS,
    MACHINES,
    OPENED,
    PRECOMPUTED,
    TRANSFORMERS,
    Sample,
    centred_logits,
    close,
    data,
    fit,
    positive,
    targets,
)

SAMPLES = [(name, sample) for name, samples in ESTIMATORS.items() for sample in samples]
SAMPLES += list(OPENED.items())
MAKERS = [(name, make) for name, makers in TRANSFORMERS.items() for make in makers]


def labelled(rows: list[tuple[str, Any]]) -> Any:
    """Cases with the names of their classes, numbered."""
    return [pytest.param(*row, id=f"{row[0]}-{number}") for number, row in enumerate(rows)]


def output(module: Any, x: Any) -> Any:
    """What the network gives, as an array."""
    return module(torch.from_numpy(np.array(x, float))).detach().numpy()


def same_score(sample: Sample, model: Any, x: Any) -> None:
    """The network of the model has the sample's score of x."""
    found = output(classical.to_module(model), x)
    if sample.own is centred_logits and found.ndim == 2:
        found = found - found.mean(1, keepdims=True)
    close(found, sample.own(model, x))


def test_every_row_of_the_tables_has_a_sample() -> None:
    import relprop.classical.images  # noqa: F401 (enters its own rows)

    assert ESTIMATORS.keys() == classical.ESTIMATORS.keys()
    assert TRANSFORMERS.keys() == classical.TRANSFORMERS.keys()
    assert OPENED.keys() == build.OPENED.keys()
    assert CLOSED.keys() == build.CLOSED.keys()
    named = {"linear", *classical.KERNELS} - {"cosine_features"}
    assert {name for name in PRECOMPUTED if isinstance(name, str)} == named
    assert KERNELS.keys() >= classical.machines.CALLABLES.keys()


# ---------------------------------------------------------------- the data that scikit-learn bundles


@pytest.mark.parametrize(("name", "sample"), labelled(SAMPLES))
def test_estimator_has_its_own_score_and_its_account_closes(name: str, sample: Sample) -> None:
    for kind in ("wine",) if name == "FrozenEstimator" else DATA:
        x, y = data(kind)
        model = sample.fitted(x, y)
        same_score(sample, model, x)
        if kind == "wine":
            explanation = relprop.explain(model, x[:20])
            assert explanation.audit is not None and explanation.audit.closes
            assert explanation.relevance.shape == (20, x.shape[1])
            assert explanation.relevance.dtype == torch.float64
            torch.testing.assert_close(explanation.audit.relevance, explanation.relevance.sum(1))


@pytest.mark.parametrize("name", MACHINES)
def test_machines_have_their_scores_with_every_kernel(name: str) -> None:
    make, own, labels = MACHINES[name]
    for kind in DATA:
        x, y = data(kind)
        x, y = positive(x), targets(labels, y)
        for kernel in KERNELS.values():
            if name == "OneClassSVM" and kernel in (
                "rbf",
                *map(KERNELS.get, ("rbf_kernel", "laplacian_kernel")),
            ):
                continue  # soft minima of distances: see the samples
            model = fit(make().set_params(kernel=kernel), x, y)
            expected = own(model, x)
            close(output(classical.to_module(model), x), -expected if name == "OneClassSVM" else expected)
        for kernel, (parameters, matrix) in PRECOMPUTED.items():
            if name == "OneClassSVM" and kernel in ("rbf", "laplacian", KERNELS["rbf_kernel"]):
                continue
            model = fit(make().set_params(kernel="precomputed"), matrix(x, x), y)
            given_vectors = classical.Precomputed(model, x, kernel, **parameters)
            expected = own(model, matrix(x, x))
            found = output(classical.to_module(given_vectors), x)
            close(found, -expected if name == "OneClassSVM" else expected)


def test_mixture_as_a_density_has_its_log_likelihood() -> None:
    for kind in DATA:
        x, _ = data(kind)
        for covariance in ("full", "tied", "diag", "spherical"):
            model = fit(GaussianMixture(3, covariance_type=covariance, random_state=0, reg_covar=1e-2), x)
            close(output(classical.to_module(classical.Density(model)), x), -model.score_samples(x))


@pytest.mark.parametrize(("name", "make"), labelled(MAKERS))
def test_transformer_has_its_own_features_and_the_account_behind_it_closes(name: str, make: Any) -> None:
    for kind in DATA:
        x, y = data(kind)
        x = x[:, 20:26] if name == "SequentialFeatureSelector" and kind == "digits" else x
        transformed(make, name, x, targets("classes", y), whole=kind == "wine")


def transformed(make: Any, name: str, x: Any, y: Any, whole: bool = False) -> None:
    """The network of a transformer alone gives its features, and with a classifier behind it the score."""
    reads_counts = any(word in str(make) for word in ("log1p", "sqrt", "chi2"))
    x = positive(x) if reads_counts else x
    x = (2 * x).round() if name == "OneHotEncoder" else x
    step = fit(make(), x, y)
    with warnings.catch_warnings(action="ignore"):
        features = step.transform(x)
        features = features.toarray() if hasattr(features, "toarray") else np.asarray(features)
        model = fit(make_pipeline(make(), LogisticRegression(max_iter=20)), x, y)
        score = model.decision_function(x)
    if name != "LinearDiscriminantAnalysis":  # alone it is a classifier
        close(output(classical.to_module(step), x), features)
    close(output(classical.to_module(model), x), score)
    if whole:
        explanation = relprop.explain(model, x[:20])
        assert explanation.audit is not None and explanation.audit.closes


# ---------------------------------------------------------------- drawn data


@st.composite
def tables(draw: Any) -> tuple[Any, Any]:
    """Features of some size, with ties and with columns that do not vary, and numbers to predict."""
    rows, width = draw(st.integers(24, 40)), draw(st.integers(4, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = rng.normal(size=(rows, width)) * draw(st.sampled_from([1e-2, 1.0, 30.0]))
    if draw(st.booleans()):
        x[rng.random(x.shape) < 0.3] = 0.0
    if draw(st.booleans()):
        x[:, 0] = 1.0
    if draw(st.booleans()):
        x[1:4] = x[0]
    return x, rng.permutation(np.arange(rows) % 3)


DRAWN = settings(
    max_examples=3, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)


@pytest.mark.parametrize(
    ("name", "sample"), labelled([row for row in SAMPLES if row[0] != "FrozenEstimator"])
)
@DRAWN
@given(table=tables())
def test_estimator_has_its_own_score_of_drawn_data(name: str, sample: Sample, table: Any) -> None:
    x, y = table
    with warnings.catch_warnings(action="ignore"):
        try:
            model = sample.fitted(x, y)
        except (ValueError, np.linalg.LinAlgError):  # scikit-learn does not take these
            assume(False)
        assume(len(getattr(model, "cluster_centers_", (0, 0))) > 1)
        same_score(sample, model, x)


@pytest.mark.parametrize(("name", "make"), labelled(MAKERS))
@DRAWN
@given(table=tables())
def test_transformer_has_its_own_features_of_drawn_data(name: str, make: Any, table: Any) -> None:
    try:
        transformed(make, name, *table)
    except (ValueError, np.linalg.LinAlgError) as error:  # scikit-learn does not take these
        assume(isinstance(error, relprop.RelpropError))
        raise


# ---------------------------------------------------------------- what is closed


@pytest.mark.parametrize("name", CLOSED)
def test_what_is_closed_is_refused_with_what_to_do(name: str) -> None:
    x, y = data("wine")
    reason, advice = build.CLOSED[name]
    model = fit(CLOSED[name](), positive(x) + 0.1, y + 1)
    with pytest.raises(relprop.UnsupportedOperation) as caught:
        relprop.explain(model, positive(x)[:3])
    first, second = str(caught.value).split("\n")
    assert first == f"{name} (sklearn): {reason}" and second == f"  do: {advice}"


def test_every_unknown_class_of_scikit_learn_is_refused_by_name() -> None:
    from sklearn.utils import all_estimators

    known = {*classical.ESTIMATORS, *classical.TRANSFORMERS, *build.OPENED, *build.CLOSED}
    for name, cls in all_estimators():
        if any(base.__name__ in known for base in cls.__mro__):
            continue
        model = cls.__new__(cls)
        with pytest.raises(relprop.UnsupportedOperation, match=name):
            raise build.unknown(model)
        assert all(
            build.row_of(table, model) is None for table in (classical.ESTIMATORS, classical.TRANSFORMERS)
        )
    with pytest.raises(relprop.UnsupportedOperation, match="RandomForestClassifier"):
        relprop.explain(fit(RandomForestClassifier(2), *data("wine")), data("wine")[0][:2])
