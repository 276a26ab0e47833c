"""Two models compared: planted differences are found where they were planted, and nowhere else."""

from __future__ import annotations

import math

import numpy as np
import pytest

from relprop import analyse
from relprop.analyse.signs import sign_flips
from relprop.errors import InvalidInput

pytest.importorskip("scipy")


def test_sign_flips_hold_their_level_and_find_what_is_there() -> None:
    draw = np.random.default_rng(0)
    false = sum(
        float(sign_flips([draw.normal(size=(12, 30)), draw.normal(size=(20, 30))], 199, seed)[0].p.min())
        < 0.05
        or False
        for seed in range(60)
    )
    assert false <= 7  # of 60 at a level of at most 5 %: 3 are due, 8 or more have a chance of 1 %
    found = sign_flips([draw.normal(size=(12, 30)) + np.eye(30)[3] * 3], 999)[0]
    assert found.p.argmin() == 3 and found.p[3] < 0.01 and np.sort(found.p)[1] > 0.05


def test_the_smallest_p_value_is_that_of_all_sign_flips_of_few_samples() -> None:
    found = sign_flips([np.array([[1.0], [2.0], [3.0], [4.0]])], 4000)[0]
    assert found.p[0] == pytest.approx(2 / 2**4, abs=0.02)
    assert found.z[0] == pytest.approx(10 / math.sqrt(30))


def test_dense_and_sparse_differences_give_the_same() -> None:
    from scipy.sparse import csr_array

    values = np.random.default_rng(1).normal(size=(15, 6)) * (np.arange(6) % 2)
    dense, sparse = (sign_flips([one], 100)[0] for one in (values, csr_array(values)))
    np.testing.assert_allclose(dense.z, sparse.z)
    np.testing.assert_allclose(dense.p, sparse.p)
    assert np.isnan(dense.z[::2]).all() and (dense.count == [0, 15] * 3).all()


def pictures(seed: int, extra: float = 0.0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    found = draw.normal(size=(40, 3, 16, 16)) * 0.1 + 0.05
    found[:, :, 4:8, 4:8] += 1.0  # what both look at: row 2, column 2 of a grid of 4
    found[:20, :, 12:, :4] += extra  # row 4, column 1, in the first class alone
    return found


LABELS = np.repeat([0, 1], 20)


def test_maps_differ_where_it_was_planted_and_nowhere_else() -> None:
    pair = analyse.Paired((LABELS, LABELS), labels=LABELS, classes=("cat", "dog"), names=("A", "B"))
    found = analyse.compare_maps(pictures(0, 1.0), pictures(1), pair, grid=4, flips=500)
    first = found.different()[0]
    assert (first.group, first.name) == ("cat", "row 4, column 1") and first.first > first.second + 0.1
    assert {one.group for one in found.different()} == {
        "cat"
    }  # sums of shares: other cells of the class have less
    assert found.accuracy == (1.0, 1.0) and found.mcnemar == 1.0 and found.agree == 1.0
    cat, dog = found.classes
    assert cat.count == dog.count == 20
    assert dog.first[0][0] == dog.second[0][0] == "row 2, column 2"
    assert "strategies differ at" in str(found) and found.as_dict()["classes"][0]["group"] == "cat"


def test_maps_of_other_sizes_and_scales_are_compared_on_one_grid() -> None:
    maps = pictures(0, 1.0)
    large = maps.repeat(2, 2).repeat(2, 3) * 100
    pair = analyse.Paired((LABELS, LABELS))
    found = analyse.compare_maps(maps, large, pair, grid=4, flips=50)
    assert all(one.similarity == pytest.approx(1.0) for one in found.classes)
    assert not found.different()
    assert math.isnan(found.accuracy[0]) and "accuracy" not in str(found)


def test_only_samples_with_one_target_are_compared_and_errors_are_tested() -> None:
    other = LABELS.copy()
    other[:8] = 1
    pair = analyse.Paired((LABELS, other), labels=LABELS)
    found = analyse.compare_maps(pictures(0), pictures(1), pair, grid=4, flips=50)
    assert (found.samples, found.compared, found.agree) == (40, 32, 0.8)
    assert found.mcnemar == pytest.approx(2 / 2**8)
    assert [one.count for one in found.classes] == [12, 20]


def texts(seed: int, mark: float = 0.0) -> list[list[tuple[str, float]]]:
    draw = np.random.default_rng(seed)
    found = []
    for label in LABELS:
        own = ["goal", "ball"] if label else ["plot", "scene"]
        words = [*own, *(f"word{i}" for i in draw.integers(0, 6, 8)), "header"]
        values = [*(draw.normal(2, 0.3, 2)), *draw.normal(0, 0.2, 8), draw.normal(mark if label else 0, 0.2)]
        found.append([(w, float(v)) for w, v in zip(words, values, strict=True)])
    return found


def test_words_differ_where_it_was_planted() -> None:
    pair = analyse.Paired((LABELS, LABELS), classes=("film", "sport"))
    found = analyse.compare_words(texts(0), texts(0, 3.0), pair, flips=500)
    first = found.different()[0]
    assert (first.group, first.name, first.count) == ("sport", "header", 20) and first.second > 0.2 > abs(
        first.first
    )
    assert not [one for one in found.different() if one.group == "film"]
    sport = next(one for one in found.classes if one.group == "sport")
    assert "header" in [word for word, _ in sport.second[:3]]


def test_the_most_relevant_words_of_a_class_with_their_columns() -> None:
    names = ["sport" if label else "film" for label in LABELS]
    found = analyse.class_words(texts(0, 3.0), names, most=3, other={"sport": ["ball"]})
    assert {row.word for row in found["film"][:2]} == {"plot", "scene"}
    row = next(row for row in found["sport"] if row.word == "ball")
    assert row.shared and row.documents == row.occurrences == 20 and row.mean < row.score == row.greatest
    assert not next(row for row in found["sport"] if row.word == "header").shared
    means = analyse.class_words(texts(0, 3.0), names, score="mean", most=3)
    assert means["sport"][0].word == "header"
    with pytest.raises(InvalidInput, match="score: 'median' is unknown"):
        analyse.class_words(texts(0), names, score="median")


def test_tokens_become_words_with_the_sum_of_their_parts() -> None:
    tokens = [("[CLS]", 0, 0, 9.0), ("Un", 0, 2, 1.0), ("believ", 2, 8, 2.0), ("able", 8, 12, 0.5), ("!", 12, 13, 0.1), ("It", 14, 16, 0.2)]  # fmt: skip
    assert analyse.words_of(tokens) == [("unbelievable", 3.5), ("!", 0.1), ("it", 0.2)]


def test_kinds_of_words_and_the_closeness_of_a_list() -> None:
    pytest.importorskip("sklearn")
    shares = analyse.kind_shares([[("the", 1.0), ("1984", 2.0), (",", 1.0), ("film", 4.0)], [("x", -1.0)]])
    assert shares == {"stop words": (0.125, 0.25), "numbers": (0.25, 0.25), "signs": (0.125, 0.25)}
    vectors = {"a": [1.0, 0], "b": [1.0, 0], "c": [0, 2.0]}
    assert analyse.coherence(["a", "b", "c", "unknown"], vectors) == pytest.approx(1 / 3)


def test_samples_that_are_not_the_same_are_refused() -> None:
    pair = analyse.Paired((LABELS, LABELS))
    with pytest.raises(InvalidInput, match="40 samples of 16 places and 39 samples"):
        analyse.compare_maps(pictures(0), pictures(1)[1:], pair, grid=4)
    with pytest.raises(InvalidInput, match="targets: shape"):
        analyse.compare_maps(pictures(0)[1:], pictures(1)[1:], pair, grid=4)
    with pytest.raises(InvalidInput, match="grid: 17 cells"):
        analyse.compare_maps(pictures(0), pictures(1), pair, grid=17)
    with pytest.raises(InvalidInput, match="texts"):
        analyse.compare_words(texts(0), texts(0)[1:], pair)
