"""Outliers and clusters on digits: removing the most relevant features lowers the score faster than other orders.

    python studies/classical_flipping.py [--json FILE]

Outliers: a one-class SVM is fitted on digits 0 to 8; the planted outliers are digits 0 to 8 with noise on a quarter of
their pixels, and the nines. γ = 2 for pixels in 0..1: with a broad kernel the score is the distance from the mean, and
|x − mean| is its explanation. Clusters: k-means on all digits. A feature is removed, for an outlier, by leaving it out
of all distances (which for a Gaussian kernel is to integrate over it), and by setting it to the mean of the ten inliers
that are nearest in the other features; for a cluster by setting it to the mean of all digits. The orders are relevance, |x − mean| and random; the
figure is the mean part of the score that is left over the first 16 of 64 features, with the interval of 95 % from 2000
resamples of the differences.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.svm import OneClassSVM

import relprop
from relprop import classical

STEPS = 16


def removed(x: Any, inliers: Any, gone: Any, near: int = 10) -> Any:
    """x with some features (a mask of its shape) from the inliers that are nearest in the features that stay."""
    result = x.copy()
    for row, mask in enumerate(gone):
        distance = ((inliers[:, ~mask] - x[row, ~mask]) ** 2).sum(1)
        nearest = inliers[np.argpartition(distance, near)[:near]]
        result[row, mask] = nearest[:, mask].mean(0)
    return result


def curves(x: Any, keys: dict[str, Any], replace: Any, score: Any) -> dict[str, Any]:
    """For each order the mean part of the score that is left: one value a sample."""
    start = np.abs(score(x)).mean()
    found = {}
    for name, key in keys.items():
        order = np.argsort(-key, 1, kind="stable")
        gone, scores = np.zeros(x.shape, bool), []
        for step in range(STEPS):
            gone[np.arange(len(x)), order[:, step]] = True
            scores.append(score(replace(x, gone)))
        found[name] = np.mean(scores, 0) / start
    return found


def compared(found: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """The means, and by how much relevance leaves less than the other orders, with intervals."""
    rng = np.random.default_rng(seed)
    result: dict[str, Any] = {name: float(values.mean()) for name, values in found.items()}
    for other in (name for name in found if name != "relevance"):
        gap = found[other] - found["relevance"]
        drawn = gap[rng.integers(0, len(gap), (2000, len(gap)))].mean(1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        result[f"{other} − relevance"] = [float(gap.mean()), float(low), float(high)]
    return result


def outliers(count: int = 60, seed: int = 0) -> dict[str, Any]:
    """Planted outliers of a one-class SVM."""
    rng = np.random.default_rng(seed)
    x, y = load_digits(return_X_y=True)
    x = x / 16
    own = x[y != 9]
    inliers, rest = own[: -count // 2], own[-count // 2 :]
    noisy = rest.copy()
    where = rng.random(rest.shape) < 0.25
    noisy[where] = rng.random(int(where.sum()))
    planted = np.concatenate([noisy, x[y == 9][: count // 2]])
    model = OneClassSVM(nu=0.1, gamma=2.0).fit(inliers)
    rewritten = classical.rewritten(model, normalised=True)
    explanation = relprop.explain(rewritten, planted)
    squares = (planted[:, None] - model.support_vectors_[None]) ** 2
    share = np.log(model.dual_coef_[0] / model.dual_coef_.sum())

    def score(points: Any) -> Any:
        return rewritten.network(torch.from_numpy(points)).numpy()

    def left_out(gone: Any) -> Any:
        h = share - model.gamma * (squares * ~gone[:, None]).sum(-1)
        top = h.max(1)
        return -(top + np.log(np.exp(h - top[:, None]).sum(1))) / model.gamma

    keys = {
        "relevance": explanation.relevance.numpy(),
        "|x − mean|": np.abs(planted - inliers.mean(0)),
        "random": rng.random(planted.shape),
    }
    nothing = np.zeros(planted.shape, bool)
    assert np.allclose(left_out(nothing), explanation.score)
    return {
        "left out": compared(curves(nothing, keys, lambda _, gone: gone, left_out)),
        "filled in": compared(curves(planted, keys, lambda p, gone: removed(p, inliers, gone), score)),
    }


def clusters(count: int = 120, seed: int = 0) -> dict[str, Any]:
    """The evidence for the cluster that a digit was put in."""
    rng = np.random.default_rng(seed)
    x, _ = load_digits(return_X_y=True)
    x = x / 16
    model = KMeans(10, n_init=2, random_state=seed).fit(x)
    points = x[rng.permutation(len(x))[:count]]
    explanation = relprop.explain(model, points)
    chosen = explanation.target.numpy()
    network = classical.to_module(model)
    mean = x.mean(0)

    def score(given: Any) -> Any:
        return network(torch.from_numpy(given)).numpy()[np.arange(len(given)), chosen]

    keys = {
        "relevance": explanation.relevance.numpy(),
        "|x − mean|": np.abs(points - mean),
        "random": rng.random(points.shape),
    }
    return compared(curves(points, keys, lambda p, gone: np.where(gone, mean, p), score))


def main() -> None:
    """Run the study and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {**{f"outliers, {name}": rows for name, rows in outliers().items()}, "clusters": clusters()}
    for name, rows in found.items():
        print(name)
        for key, value in rows.items():
            print("  ", key, np.round(value, 3))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
