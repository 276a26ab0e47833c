"""Document vectors: what relevance picks out brings documents of one topic together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import SHARED
from relprop import analyse
from relprop.errors import InvalidInput


def corpus(seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Word vectors (T, D) and relevance (T,) of documents of two topics, most of whose words say nothing."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(60) % 2
    vectors, relevance = [], []
    for label in labels:
        words = torch.randn(int(torch.randint(12, 20, (), generator=draw)), 6, generator=draw).double()
        words[0, 0] = 2.0 if label else -2.0
        weights = torch.rand(len(words), generator=draw).double() * 0.1
        weights[0] = 1
        vectors.append(words)
        relevance.append(weights)
    return vectors, relevance, labels


def test_documents_of_any_length_padded_or_listed_give_the_same() -> None:
    vectors, relevance, _ = corpus()
    listed = analyse.document_vectors(relevance, vectors)
    padded = analyse.document_vectors(
        torch.nn.utils.rnn.pad_sequence(relevance, batch_first=True),
        torch.nn.utils.rnn.pad_sequence(vectors, batch_first=True),
    )
    torch.testing.assert_close(padded, listed)
    torch.testing.assert_close(analyse.document_vectors(vectors, relevance), listed)
    torch.testing.assert_close(
        analyse.document_vectors([r[:, None].expand(-1, 6) for r in relevance], vectors), listed
    )
    assert torch.allclose(
        analyse.document_vectors(relevance, vectors, normalise=True).norm(dim=1), torch.ones(60).double()
    )


def test_relevance_explains_more_than_uniform_weights() -> None:
    pytest.importorskip("sklearn")
    vectors, relevance, labels = corpus()
    by_relevance = analyse.explanatory_power(analyse.document_vectors(relevance, vectors), labels)
    uniform = analyse.explanatory_power(
        analyse.document_vectors([torch.ones_like(r) for r in relevance], vectors), labels
    )
    assert by_relevance.value > 0.95 > 0.85 > uniform.value
    assert by_relevance.curve[by_relevance.k] == by_relevance.value and max(by_relevance.curve) <= 30
    assert (by_relevance.used, by_relevance.excluded) == (60, 0)


def test_documents_without_a_vector_are_left_out_and_counted() -> None:
    pytest.importorskip("sklearn")
    vectors, relevance, labels = corpus()
    found = analyse.document_vectors(relevance, vectors)
    found[3] = 0
    assert analyse.explanatory_power(found, labels).excluded == 1
    with pytest.raises(InvalidInput, match="3 of 3 documents"):
        analyse.explanatory_power(found[:3], labels[:3])


def test_several_neighbour_counts_are_those_of_scikit_learn() -> None:
    neighbours = pytest.importorskip("sklearn.neighbors")
    draw = np.random.default_rng(0)
    train, test = draw.normal(size=(50, 3)), draw.normal(size=(40, 3))
    labels = draw.integers(2, 6, 50)
    found = analyse.knn(train, labels, test, [1, 4, 9])
    for row, k in zip(found, (1, 4, 9), strict=True):
        fitted = neighbours.KNeighborsClassifier(k).fit(train, labels)
        assert (row.numpy() == fitted.predict(test)).all()
    with pytest.raises(InvalidInput, match="do: give 1 to 50"):
        analyse.knn(train, labels, test, 51)


def test_principal_components_show_the_planted_direction() -> None:
    vectors, relevance, labels = corpus()
    places, parts = analyse.principal(analyse.document_vectors(relevance, vectors))
    first = places[:, 0]
    assert abs(first[labels == 1].mean() - first[labels == 0].mean()) > 1.2
    assert parts[0] > 0.5 and parts.sum() <= 1 + 1e-12
    assert (places.gather(0, places.abs().argmax(0, keepdim=True)) > 0).all()


def test_the_picture_has_a_panel_a_kind_and_refuses_other_documents() -> None:
    pytest.importorskip("matplotlib")
    vectors, relevance, labels = corpus()
    by_relevance = analyse.document_vectors(relevance, vectors)
    two = analyse.document_chart(
        {"a": by_relevance, "b": by_relevance}, labels, ["one", "other"], captions={"a": "90 %"}
    )
    one = analyse.document_chart({"a": by_relevance}, labels, ["one", "other"])
    assert two.width > 1.7 * one.width and one.height == two.height
    colours = {tuple(pixel) for pixel in np.asarray(one).reshape(-1, 3)[::7]}
    assert len(colours) > 20  # points of two classes on white
    with pytest.raises(InvalidInput, match="60 labels for vectors"):
        analyse.document_chart({"a": by_relevance[1:]}, labels, ["one", "other"])


@pytest.mark.parametrize(
    ("relevance", "vectors", "words"),
    [
        (torch.ones(3), torch.ones(4, 2), "relevance of shape"),
        ([torch.ones(3)], [torch.ones(3, 2), torch.ones(3, 2)], "1 documents of relevance"),
        (torch.tensor([1.0, float("nan")]), torch.ones(2, 2), "NaN or infinite"),
    ],
)
def test_what_does_not_belong_together_is_refused(relevance: object, vectors: object, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        analyse.document_vectors(relevance, vectors)


def test_a_frequency_above_the_number_of_documents_is_refused() -> None:
    with pytest.raises(InvalidInput, match="5 of 4 documents"):
        analyse.tfidf([1, 2], 4, [5, 1])
    assert analyse.tfidf([1.0], 4, [0]).item() == 0


def test_time_profiles_need_steps_between_the_borders() -> None:
    with pytest.raises(InvalidInput, match="leaves none between"):
        analyse.along_time(torch.ones(1, 4), border=2)
    video = torch.rand(2, 3, 6, 4, 4)
    assert analyse.along_time(video, axis=2).share.sum(1) == pytest.approx([1, 1])
    with pytest.raises(InvalidInput, match="a single one has no pair"):
        analyse.trial_correlation(torch.ones(1, 5))


def test_trials_of_one_person_are_alike_where_they_were_made_so() -> None:
    draw = torch.Generator().manual_seed(0)
    persons = [i // 4 for i in range(24)]
    own = torch.randn(6, 10, 3, generator=draw).double()
    alike = own[persons] + torch.randn(24, 10, 3, generator=draw) * 0.5
    found = analyse.trials_alike(alike, persons, 199)
    assert found.within > 0.6 > 0.2 > abs(found.between) and found.p == 1 / 200 and len(found.persons) == 6
    pairs = torch.cat([analyse.trial_correlation(alike[i * 4 : i * 4 + 4]) for i in range(6)])
    assert found.within == pytest.approx(float(pairs.mean()))
    noise = analyse.trials_alike(torch.randn(24, 30, generator=draw), persons, 199)
    assert noise.p > 0.05 and abs(noise.within - noise.between) < 0.1
    with pytest.raises(InvalidInput, match="no two trials of one person"):
        analyse.trials_alike(alike[:3], ["a", "b", "c"])
    with pytest.raises(InvalidInput, match="persons: 2 for 24 trials"):
        analyse.trials_alike(alike, ["a", "b"])


def test_the_published_relevance_of_gait_is_personal() -> None:
    folder = SHARED / "data/gait"
    if not folder.is_dir():
        pytest.skip(f"the gait data are not here: {folder}")
    with np.load(folder / "clinical_relevance.npz", allow_pickle=False) as held:
        relevance = held["linear_svm.relevance_epsilon"][:200]
    with np.load(folder / "clinical_grf.npz", allow_pickle=False) as held:
        persons = held["subject"][:200]
    found = analyse.trials_alike(relevance, persons, 99)
    assert found.within > found.between + 0.1 and found.p == 0.01


def test_a_region_of_chance_has_enrichment_one() -> None:
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :2] = True
    found = analyse.regions(torch.ones(2, 4, 4), {"half": mask})["half"]
    assert found.share[0] == 0.5 and found.enrichment[0] == 1 and found.share[1].isnan()
