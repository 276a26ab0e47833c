"""The graph, its spectrum, the number of clusters and what an analysis keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import relprop
from relprop import analyse
from relprop.analyse import graph
from relprop.analyse.result import load


def blobs(sizes: tuple[int, ...] = (20, 25, 15), dimensions: int = 5, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.concatenate([random.normal(8 * k, 1, (n, dimensions)) for k, n in enumerate(sizes)])


def test_separate_blobs_have_as_many_zero_eigenvalues_and_the_gap_says_so() -> None:
    values = analyse.laplacian_spectrum(analyse.knn_affinity(blobs(), 5), 8)
    assert (np.abs(values[:3]) < 1e-12).all() and values[3] > 0.1
    assert (np.diff(values) >= 0).all() and values[-1] < 1.5, "the largest of magnitude are not among them"
    assert analyse.eigengap(values) == 3


def test_the_sparse_solver_agrees_with_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    affinity = analyse.knn_affinity(np.random.default_rng(0).normal(size=(300, 4)), 6)
    dense = analyse.laplacian_spectrum(affinity, 10)
    monkeypatch.setattr(graph, "DENSE", 10)
    np.testing.assert_allclose(analyse.laplacian_spectrum(affinity, 10), dense, atol=1e-6)


def test_eigenvalues_add_up_to_the_number_of_nodes() -> None:
    values = analyse.laplacian_spectrum(torch.tensor(analyse.knn_affinity(blobs(), 4).toarray()))
    assert isinstance(values, torch.Tensor) and values.min() > -1e-12 and values.max() <= 2 + 1e-12
    assert float(values.sum()) == pytest.approx(60, abs=1e-9)


def test_no_point_is_its_own_neighbour_though_others_equal_it() -> None:
    affinity = analyse.knn_affinity(np.zeros((8, 3)), 3)
    assert affinity.diagonal().max() == 0
    indices, distances = graph._without_self(
        np.array([[1, 2, 0], [1, 0, 2], [0, 1, 1]]), np.array([[0.0, 0, 0], [0, 1, 2], [0, 0, 0]])
    )
    assert indices.tolist() == [[1, 2], [0, 2], [0, 1]] and distances.shape == (3, 2)


def test_a_node_without_edges_is_a_component_of_its_own() -> None:
    affinity = np.zeros((4, 4))
    affinity[:2, :2] = [[0, 1], [1, 0]]
    np.testing.assert_allclose(analyse.laplacian_spectrum(affinity), [0, 0, 0, 2], atol=1e-12)


def test_the_discriminant_does_not_change_with_scale_or_place() -> None:
    points, labels = blobs(), np.repeat([0, 1, 2], (20, 25, 15))
    tau = analyse.fisher_discriminant(points, labels)
    assert analyse.fisher_discriminant(3 * points - 7, labels) == pytest.approx(tau, rel=1e-9)
    assert analyse.fisher_discriminant(points, np.zeros(60)) == 0
    assert analyse.fisher_discriminant(points, labels, smallest=20) < np.inf


def test_projecting_twice_changes_nothing_more() -> None:
    h, v, z = torch.randn(5, 4).double(), torch.randn(4).double(), torch.randn(4).double()
    once = analyse.project_out(h, v, z)
    torch.testing.assert_close(analyse.project_out(once, v, z), once)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: analyse.laplacian_spectrum([[0, 1], [2, 0]]), "not symmetric"),
        (lambda: analyse.laplacian_spectrum([[0, -1], [-1, 0]]), "negative values"),
        (lambda: analyse.laplacian_spectrum([[0, 1]]), "square"),
        (lambda: analyse.eigengap([1.0]), "two or more"),
        (lambda: analyse.eigengap([1.0, 0.5]), "ascending"),
        (lambda: analyse.knn_affinity([[0.0], [1.0]], 2), "of 2 points"),
        (lambda: analyse.knn_affinity([[0.0], [1.0]], 1, "sum"), "mean, max, min"),
        (lambda: analyse.fisher_discriminant([[0.0], [1.0]], [0]), "labels"),
        (lambda: analyse.signal_pattern(torch.ones(2, 2), torch.ones(2)), "the same for all"),
        (lambda: analyse.project_out(torch.ones(2, 2), torch.zeros(2), torch.zeros(2)), "length 0"),
    ],
)
def test_bad_input_is_refused_in_words(call: object, words: str) -> None:
    with pytest.raises(relprop.InvalidInput, match=words):
        call()  # type: ignore[operator]


def small_analysis() -> analyse.Analysis:
    effect = analyse.Effect(2.0, 0.1, 1.5, 2.2, 8)
    confirmation = analyse.Confirmation(effect, effect, 0.4, 0.0, 0.3, 0.02, True, "confirmed")
    cluster = analyse.Cluster(
        1, np.array([5, 9]), 0.5, 0.8, (analyse.Evidence("place", 0.4, 0.01, "in one corner"),), np.array([9]),
        np.ones((2, 2), np.float32), analyse.Place(0.5, 0, 1, 0.5), confirmation,
    )  # fmt: skip
    other = analyse.Cluster(0, np.array([2, 3]), 0.5, 0.1, (), np.array([2]), np.zeros((2, 2), np.float32))
    one = analyse.ClassAnalysis(
        3, "three", np.array([2, 3, 5, 9]), np.array([0, 0.1, 0.9]), 2, 2, {2: np.array([0, 0, 1, 1])},
        np.zeros((4, 2), np.float32), np.zeros((4, 3), np.float32), 12.5, {"eigenvalue_2_z": -4.0},
        (cluster, other), np.ones((2, 2), np.float32), 0.9,
    )  # fmt: skip
    return analyse.Analysis((one,), {7: "3 samples"}, {"k": 10}, {"store": "runs/a"})


def test_an_analysis_comes_back_from_its_folder(tmp_path: Path) -> None:
    saved = small_analysis()
    for _ in range(2):  # the second time it replaces the first
        saved.save(tmp_path / "found")
    back = load(tmp_path / "found")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found"]
    assert back.refused == saved.refused and back.settings == saved.settings and back.targets == [3]
    one, same = back[3], saved[3]
    np.testing.assert_array_equal(one.labels[2], same.labels[2])
    np.testing.assert_array_equal(one.rows, same.rows)
    assert one.clusters[0].place == same.clusters[0].place
    assert one.clusters[0].confirmation == same.clusters[0].confirmation
    assert one.clusters[0].evidence == same.clusters[0].evidence
    assert [cluster.flagged for _, cluster in back.suspects] == [True, False] and len(back.flagged) == 1


def test_a_folder_that_is_no_analysis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(relprop.InvalidInput, match="no analysis is there"):
        load(tmp_path)
    with pytest.raises(relprop.InvalidInput, match="is no analysis"):
        small_analysis().save(tmp_path)
    folder = small_analysis().save(tmp_path / "found")
    text = (folder / "analysis.json").read_text()
    (folder / "analysis.json").write_text(text.replace('"schema": 1', '"schema": 99'))
    with pytest.raises(relprop.InvalidInput, match="later relprop"):
        load(folder)
    (folder / "analysis.json").write_text(text[:100])
    with pytest.raises(relprop.InvalidInput, match="damaged"):
        load(folder)


def test_a_place_names_pixels() -> None:
    assert analyse.Place(0.75, 0, 1, 0.25).pixels(28, 28) == (21, 0, 28, 7)
    assert analyse.Place(0.5, 0.5, 0.5, 0.5).pixels(4, 4) == (2, 2, 3, 3)
