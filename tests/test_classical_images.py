"""Images by local descriptors, and the evidence of flipping: what is called relevant matters to the score."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import relprop
from relprop import classical
from relprop.classical.local import dense_sift, fisher_statistics, grid, regions
from relprop.rules import Epsilon

pytest.importorskip("sklearn", reason="the extra [classical] is not installed")

from sklearn.datasets import load_digits
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC, LinearSVC

from relprop.classical.images import FisherVectors, VisualWords

SMALL: dict[str, Any] = {
    "cells": (1,),
    "step": 1,
    "dimensions": 8,
    "samples": 2000,
    "pyramid": ((1, 1), (2, 2)),
}


@cache
def digits() -> tuple[Any, Any]:
    images, labels = load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8) / 16, labels


@cache
def fisher() -> Any:
    images, labels = digits()
    model = make_pipeline(FisherVectors(4, **SMALL), LinearSVC(C=10.0)).fit(images[:300], labels[:300])
    assert model.score(images[300:500], labels[300:500]) > 0.8
    return model


def test_fisher_vector_relevance_adds_up_to_the_score() -> None:
    model, images = fisher(), digits()[0][300:306]
    explanation = relprop.explain(model, images)
    np.testing.assert_allclose(explanation.output, model.decision_function(images), rtol=1e-9)
    assert explanation.relevance.shape == images.shape
    assert explanation.audit is not None
    total = explanation.relevance.sum((1, 2)) + explanation.audit.absorbed["bias"]
    torch.testing.assert_close(total, explanation.score, rtol=1e-9, atol=1e-9)
    vector = model[:1].transform(images)
    weights = model[1].coef_[explanation.target.numpy()]
    np.testing.assert_allclose(explanation.at("chain.steps.5"), vector * weights, rtol=1e-8, atol=1e-12)
    descriptors = explanation.at("chain.steps.0").sum(-1)
    torch.testing.assert_close(descriptors.sum(1), explanation.relevance.sum((1, 2)))


def test_pixels_have_the_shares_of_the_descriptors_that_cover_them() -> None:
    model, images = fisher(), digits()[0][300:302]
    explanation = relprop.explain(model, images)
    local = explanation.at("chain.steps.0").sum(-1).reshape(2, 5, 5)
    expected = torch.zeros(2, 8, 8, dtype=torch.float64)
    for y in range(5):
        for x in range(5):
            expected[:, y : y + 4, x : x + 4] += local[:, y, x, None, None] / 16
    torch.testing.assert_close(explanation.relevance, expected)


def test_stabiliser_of_the_pooling_is_accounted() -> None:
    model, images = fisher(), digits()[0][300:302]
    rules = relprop.Composite([("pool", Epsilon(0.1, stabiliser="relative"))])
    steady = relprop.explain(model, images, rules=rules)
    exact = relprop.explain(model, images)
    assert steady.audit is not None
    assert float(steady.relevance.abs().sum()) < float(exact.relevance.abs().sum())
    assert float(steady.audit.absorbed["stabilizer"].abs().max()) > 0


@pytest.mark.parametrize("sharpness", [None, 2.0])
def test_visual_words_with_an_intersection_kernel_are_explained(sharpness: float | None) -> None:
    images, labels = digits()
    words = VisualWords(16, sharpness=sharpness, **SMALL)
    model = make_pipeline(words, SVC(kernel=classical.histogram_intersection)).fit(
        images[:150], labels[:150] < 5
    )
    explanation = relprop.explain(model, images[200:204])
    np.testing.assert_allclose(
        explanation.output, model.decision_function(images[200:204]), rtol=1e-9, atol=1e-9
    )
    assert explanation.audit is not None
    total = explanation.relevance.sum((1, 2)) + explanation.audit.absorbed["bias"]
    torch.testing.assert_close(total, explanation.score, rtol=1e-9, atol=1e-9)


def test_descriptor_of_an_edge_points_across_it() -> None:
    image = torch.zeros(1, 12, 12, dtype=torch.float64)
    image[:, :, 6:] = 1
    found = dense_sift(image, 3, 1)
    assert found.shape == (1, 1, 128)
    by_direction = found.reshape(16, 8).square().sum(0)
    assert by_direction.argmax() == 0 and by_direction[0] > 0.999  # brighter to the right
    assert float(found.square().sum()) == pytest.approx(1)
    assert not dense_sift(torch.ones(1, 12, 12, dtype=torch.float64), 3, 1).any()


def test_responsibilities_are_those_of_the_mixture() -> None:
    x = np.random.default_rng(0).normal(size=(200, 3))
    mixture = GaussianMixture(2, covariance_type="diag", random_state=0).fit(x)
    s, m, d = (torch.from_numpy(v) for v in (mixture.weights_, mixture.means_, mixture.covariances_**0.5))
    psi = fisher_statistics(torch.from_numpy(x)[None], s, m, d)[0].reshape(200, 2, 2, 3)
    first = psi[:, 0] * d * s.sqrt()[:, None] / (torch.from_numpy(x)[:, None] - m)
    np.testing.assert_allclose(first.mean(-1), mixture.predict_proba(x), rtol=1e-9, atol=1e-12)


def test_regions_of_the_pyramid_divide_the_descriptors() -> None:
    found = regions((20, 16), (1, 2), 2, ((1, 1), (2, 2), (3, 1)))
    count = sum(int(np.prod(grid((20, 16), cell, 2))) for cell in (1, 2))
    assert found.shape == (8, count)
    for level in (found[:1], found[1:5], found[5:]):
        assert torch.equal(level.sum(0), torch.ones(count, dtype=torch.float64))


def test_bad_images_are_refused_in_one_line() -> None:
    model, images = fisher(), digits()[0]
    with pytest.raises(relprop.InvalidInput, match=r"fitted on grey images of \(8, 8\)"):
        relprop.explain(model, images[:2, :6])
    with pytest.raises(relprop.InvalidInput, match="NaN or infinite"):
        relprop.explain(model, np.where(images[:2] > 0.9, np.nan, images[:2]))
    with pytest.raises(relprop.InvalidInput, match="hold no window of 12 pixels"):
        FisherVectors(cells=(3,)).fit(images[:5])
    with pytest.raises(relprop.InvalidInput, match="not finite grey images"):
        FisherVectors().fit(images[0])


# ---------------------------------------------------------------- evidence


def study(name: str) -> Any:
    path = Path(__file__).resolve().parents[1] / "studies" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_removing_what_makes_an_outlier_lowers_its_score_fastest() -> None:
    for name, found in study("classical_flipping").outliers(20).items():
        for other in ("|x − mean|", "random"):
            assert found[f"{other} − relevance"][1] > 0, (name, other)  # the interval's lower end


def test_removing_what_makes_a_cluster_lowers_its_evidence_fastest() -> None:
    found = study("classical_flipping").clusters(40)
    for other in ("|x − mean|", "random"):
        assert found[f"{other} − relevance"][1] > 0, other
