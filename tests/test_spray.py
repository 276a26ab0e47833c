"""Spectral relevance analysis finds what was planted, and nothing where nothing was."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

import relprop
from relprop import analyse
from relprop.analyse import embedding, places
from relprop.analyse.maps import normalised, pooled, shares

SIDE = 12


def styles(count: int = 60, seed: int = 0) -> np.ndarray:
    """Maps (2·count, 12, 12) of two honest strategies: relevance along one of two strokes, smeared at random."""
    random = np.random.default_rng(seed)
    maps = random.gamma(0.4, 0.05, (2 * count, SIDE, SIDE))
    for number in range(2 * count):
        for step in range(2, SIDE - 2):
            column = step if number < count else SIDE - 1 - step
            maps[number, step, np.clip(column + random.integers(-1, 2), 0, SIDE - 1)] += random.gamma(4, 0.25)
    return maps


def marked(maps: np.ndarray, rows: np.ndarray) -> np.ndarray:
    changed = maps.copy()
    changed[rows, -2:, 5:7] += np.random.default_rng(1).gamma(6, 0.1, (len(rows), 2, 2))
    return changed


def agreement(found: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Precision and recall."""
    both = len(set(found.tolist()) & set(true.tolist()))
    return both / len(found), both / len(true)


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray]:
    rows = np.sort(np.random.default_rng(3).choice(120, 36, replace=False))
    return marked(styles(), rows), rows


def options(**more: Any) -> dict[str, Any]:
    return {"embedding": "spectral", **more}


def test_two_strategies_are_two_clusters_and_neither_is_flagged() -> None:
    analysis = analyse.spray(styles(), **options())
    one = analysis[0]
    assert one.gap_number == one.clusters_number == 2 and not analysis.flagged
    found = one.labels[2]
    assert (found[:60] == found[0]).all() and (found[60:] == found[-1]).all() and found[0] != found[-1]
    assert one.null["eigenvalue_2_z"] < -3, "better separated than shuffled maps"


def test_a_mark_is_a_cluster_of_its_own_and_the_most_suspicious(
    planted: tuple[np.ndarray, np.ndarray],
) -> None:
    maps, rows = planted
    _, first = analyse.spray(maps, **options()).suspects[0]
    assert first.flagged and min(agreement(first.rows, rows)) >= 0.9
    assert first.place is not None and first.place.bottom == 1
    told = {one.name: one for one in first.evidence}
    assert "the lower side" in told["place"].words and told["place"].value > 5 * told["place"].usual


def test_places_off_is_plain_spectral_clustering(planted: tuple[np.ndarray, np.ndarray]) -> None:
    one = analyse.spray(planted[0], **options(places=False))[0]
    assert one.clusters_number == one.gap_number


def test_the_same_seed_gives_the_same_analysis_and_a_tensor_is_as_good_as_an_array() -> None:
    maps = styles(20)
    first, second = (analyse.spray(given, **options())[0] for given in (maps, torch.from_numpy(maps)))
    np.testing.assert_array_equal(first.labels[2], second.labels[2])
    np.testing.assert_array_equal(first.embedding, second.embedding)


def test_classes_are_ranked_by_clusterability_and_what_cannot_be_analysed_is_named() -> None:
    noise = np.random.default_rng(0).gamma(1, 1, (120, SIDE, SIDE))
    maps = np.concatenate(
        [noise, styles(), styles(2)[:3], np.zeros((30, SIDE, SIDE)), np.ones((30, SIDE, SIDE))]
    )
    target = np.repeat([4, 7, 1, 2, 3], [120, 120, 3, 30, 30])
    analysis = analyse.spray(maps, target, names=["a"] * 8, **options())
    assert [one.target for one in analysis.classes] == [7, 4]
    assert analysis.refused == {
        1: "3 samples, fewer than 20",
        2: "all relevance is 0",
        3: "all maps are the same",
    }
    with pytest.raises(relprop.InvalidInput, match="3 samples"):
        _ = analysis[1]


def test_rows_point_into_what_was_given() -> None:
    maps = np.concatenate([np.full((5, SIDE, SIDE), np.nan), styles(20)])
    one = analyse.spray(maps, rows=np.arange(5, 45), **options())[0]
    assert one.rows.min() == 5 and one.rows.max() == 44
    assert {int(row) for cluster in one.clusters for row in cluster.rows} == set(range(5, 45))
    assert all(set(cluster.exemplars) <= set(cluster.rows) for cluster in one.clusters)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"relevance": np.where(np.arange(30)[:, None] == 17, np.nan, 1.0)}, "sample 17: NaN"),
        ({"relevance": np.ones((3, 4, 4))}, "3 samples, fewer than 20"),
        ({"relevance": np.ones((30, 4, 4))}, "all maps are the same"),
        ({"relevance": np.ones((0, 4, 4))}, "no samples"),
        ({"relevance": np.ones((30, 2, 2, 2, 2))}, "name the axis"),
        ({"relevance": styles(20), "target": [0, 1]}, "one row a sample"),
        ({"relevance": styles(20), "sign": "negative"}, "signed, positive, absolute"),
        ({"relevance": styles(20), "neighbours": 0}, "1 or more"),
        ({"relevance": styles(20), "neighbors": 5}, "no setting of spray"),
        ({"relevance": styles(20), "embedding": "pca"}, "umap, tsne"),
        ({"relevance": styles(20), "seed": -1}, "0 or more"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(relprop.InvalidInput, match=words) as raised:
        analyse.spray(**arguments)
    assert len(str(raised.value).splitlines()) <= 2


def test_series_and_tables_have_places_too() -> None:
    random = np.random.default_rng(0)
    series = random.gamma(1, 1, (80, 24))
    rows = np.arange(0, 80, 4)
    series[rows, 20:24] += random.gamma(9, 1, (20, 4))
    _, first = analyse.spray(series, **options()).suspects[0]
    assert min(agreement(first.rows, rows)) >= 0.9 and first.place is not None and first.place.left >= 0.75
    assert first.mean_map.shape == (12,)
    assert "the end" in first.evidence[0].words


def test_pooling_keeps_sums_and_normalising_makes_maps_comparable() -> None:
    maps = np.random.default_rng(0).normal(size=(5, 3, 30, 40))
    small = pooled(maps, np.arange(5), side=16)
    assert small.shape == (5, 15, 14)
    np.testing.assert_allclose(small.sum((1, 2)), maps.sum((1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(np.abs(normalised(small)).sum((1, 2)), 1, rtol=1e-5)
    np.testing.assert_allclose(shares(small).sum((1, 2)), 1, rtol=1e-5)
    assert not normalised(np.zeros((2, 3, 3), np.float32)).any()


@pytest.mark.parametrize("features", [4, 5])
def test_noise_in_few_features_is_not_flagged(features: int) -> None:
    for seed in range(4):
        noise = np.random.default_rng(seed).normal(size=(150, features))
        assert not analyse.spray(noise, embedding="none", seed=seed).flagged


def test_a_division_of_two_groups_is_found_where_it_is() -> None:
    values = np.concatenate(
        [np.random.default_rng(0).normal(0, 1, 70), np.random.default_rng(1).normal(9, 1, 30)]
    )
    apart, threshold, low, high = places._divisions(values[:, None], 5)
    assert 3 < threshold[0] < 6.5 and apart[0] > 5
    assert low[0] == pytest.approx(values[:70].mean()) and high[0] == pytest.approx(values[70:].mean())


def test_samples_beyond_the_landmarks_lie_among_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(embedding.LANDMARKS, "tsne", 60)
    one = analyse.spray(styles(), embedding="tsne")[0]
    plane, label = one.embedding, np.arange(120) < 60
    assert np.isfinite(plane).all()
    centres = np.stack([plane[label].mean(0), plane[~label].mean(0)])
    nearest = ((plane[:, None] - centres) ** 2).sum(2).argmin(1) == 0
    assert (nearest == label).mean() > 0.95


def test_the_default_layout_parts_two_strategies_and_is_the_same_every_time() -> None:
    pytest.importorskip("umap")
    maps = styles(30)
    first, second = (analyse.spray(maps)[0].embedding for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (60, 2) and first.dtype == np.float32 and np.isfinite(first).all()
    own = np.arange(60) < 30
    between = np.linalg.norm(first[own].mean(0) - first[~own].mean(0))
    within = max(np.linalg.norm(first[g] - first[g].mean(0), axis=1).max() for g in (own, ~own))
    assert between > 2 * within, "each strategy is an island"


class Corner(torch.nn.Module):
    """Class 1 is scored by the mean of the picture, and by a bright lower left corner."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x.mean((1, 2, 3)) + 3 * x[:, 0, -2:, :2].mean((1, 2))
        return torch.stack([torch.full_like(score, 1.5), score], 1)


def corner_samples() -> tuple[torch.Tensor, torch.Tensor]:
    clean, affected = torch.rand(30, 1, 8, 8) * 0.5, torch.rand(12, 1, 8, 8) * 0.5
    affected[:, 0, -2:, :2] = 1
    return affected, clean


def test_an_artefact_that_the_model_goes_by_is_confirmed() -> None:
    affected, clean = corner_samples()
    found = analyse.confirm(Corner(), affected, clean, analyse.Place(0.75, 0, 1, 0.25), 1)
    assert found.confirmed and found.inject.change == pytest.approx(3 * 0.75, abs=0.3)
    assert abs(found.inject.control) < 0.1 and found.remove.low > 1.5
    assert found.flips == 1 and found.flips_control == 0
    assert found.words.startswith("Confirmed")


class Brightness(torch.nn.Module):
    """Class 1 is scored by how bright the picture is, and by its lower left corner once more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = 9 * x.mean((1, 2, 3)) + x[:, 0, -2:, :2].mean((1, 2))
        return torch.stack([torch.zeros_like(score), score], 1)


def test_what_the_class_honestly_looks_like_is_no_control_of_its_mark() -> None:
    affected, clean = corner_samples()
    affected[:, :, :6, 2:] = 1
    found = analyse.confirm(Brightness(), affected, clean, analyse.Place(0.75, 0, 1, 0.25), 1)
    assert found.inject.low > 0 and abs(found.inject.control) < 0.1


def test_a_place_that_the_model_does_not_look_at_is_not_confirmed() -> None:
    affected, clean = corner_samples()
    found = analyse.confirm(Corner(), affected, clean, analyse.Place(0, 0.75, 0.25, 1), 1)
    assert not found.confirmed and found.words.startswith("Not confirmed")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"affected": torch.rand(2, 1, 8, 8)}, "2 samples"),
        ({"clean": torch.rand(9, 1, 6, 6)}, "one size"),
        ({"target": 7}, "target: 7"),
        ({"place": analyse.Place(0, 0, 0.8, 0.8)}, "too large for a control"),
        ({"affected": torch.ones(9, 1, 8, 8, dtype=torch.int64), "clean": torch.ones(9, 1, 8, 8, dtype=torch.int64)}, "floating-point"),
    ],
)  # fmt: skip
def test_confirming_refuses_bad_input_in_words(change: dict[str, Any], words: str) -> None:
    affected, clean = corner_samples()
    given = {
        "affected": affected,
        "clean": clean,
        "place": analyse.Place(0.75, 0, 1, 0.25),
        "target": 1,
    } | change
    with pytest.raises(relprop.InvalidInput, match=words):
        analyse.confirm(Corner(), **given)  # type: ignore[arg-type]


def test_a_missing_package_is_named_with_its_install_command() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None; sys.modules['sklearn.neighbors'] = None\n"
        "import numpy as np, relprop.analyse as a\n"
        "try: a.knn_affinity(np.eye(4), 2)\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        "MissingExtra" in done.stdout and "scikit-learn" in done.stdout and "relprop[analyse]" in done.stdout
    )
