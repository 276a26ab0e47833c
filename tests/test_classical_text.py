"""Pipelines that read texts: relevance of words where they stand, rows of nonzeros, and large sparse tables."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import relprop
import relprop.text
from relprop.classical.explained import nonzeros
from relprop.text import Vocabulary

pytest.importorskip("sklearn", reason="the extra [classical] is not installed")

from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import (
    CountVectorizer,
    HashingVectorizer,
    TfidfTransformer,
    TfidfVectorizer,
)
from sklearn.feature_selection import SelectKBest, chi2
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import MaxAbsScaler, StandardScaler
from sklearn.svm import SVC, LinearSVC, OneClassSVM

TEXTS = [
    "A superb film, a SUPERB cast!",
    "Dull; the plot is dull and the cast is wasted.",
    "Moving, funny and superb: see it.",
    "The film is a waste of time, dull and long.",
    "Funny cast. Funny film. İstanbul never looked so good.",
    "Bad film, bad plot, bad sound — a naïve waste.",
    "Good, good, good.",
    "Long and bad.",
]
LABELS = np.array([1, 0, 1, 0, 1, 0, 1, 0])

VECTORISERS = {
    "counts": CountVectorizer,
    "binary": lambda: CountVectorizer(binary=True),
    "pairs": lambda: CountVectorizer(ngram_range=(1, 3), stop_words="english"),
    "tfidf": TfidfVectorizer,
    "sublinear": lambda: TfidfVectorizer(sublinear_tf=True, norm="l1"),
    "plain": lambda: TfidfVectorizer(use_idf=False, norm=None),
    "accents": lambda: TfidfVectorizer(strip_accents="unicode", lowercase=True),
    "group": lambda: TfidfVectorizer(token_pattern=r"\b(\w)\w+\b"),
    "tokenizer": lambda: TfidfVectorizer(tokenizer=str.split, token_pattern=None),
    "letters": lambda: TfidfVectorizer(analyzer="char", ngram_range=(1, 3)),
    "letters of words": lambda: TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5)),
    "hashing": lambda: HashingVectorizer(n_features=2**18),
    "collisions": lambda: HashingVectorizer(n_features=8, norm="l1"),
}


@cache
def piped(name: str, last: str = "svm") -> Any:
    heads = {"svm": LinearSVC, "logistic": LogisticRegression}
    return make_pipeline(VECTORISERS[name](), heads[last]()).fit(TEXTS, LABELS)


@pytest.mark.parametrize("name", VECTORISERS)
def test_words_share_the_score(name: str) -> None:
    model = piped(name)
    explanation = relprop.explain(model, TEXTS)
    assert explanation.audit is not None
    np.testing.assert_allclose(explanation.score, model.decision_function(TEXTS), rtol=1e-9, atol=1e-9)
    bias = explanation.audit.absorbed["bias"]
    torch.testing.assert_close(explanation.relevance.sum(1) + bias, explanation.score, rtol=1e-9, atol=1e-9)
    assert set(explanation.audit.absorbed) - {"bias"} <= {"undistributed", "stabilizer"}
    for text, tokens, row in zip(TEXTS, explanation.tokens, explanation.relevance, strict=True):
        assert all(token.text == text[token.start : token.end] for token in tokens)
        assert [token.start for token in tokens] == sorted(token.start for token in tokens)
        assert sum(token.relevance for token in tokens) == pytest.approx(float(row.sum()))


def test_word_relevance_is_weight_times_value_shared_by_occurrences() -> None:
    model = piped("tfidf")
    vectoriser, svm = model[0], model[1]
    values = vectoriser.transform(TEXTS).toarray()
    tokens = relprop.explain(model, TEXTS).tokens[0]
    assert [token.text for token in tokens] == ["superb", "film", "SUPERB", "cast"]
    column = vectoriser.vocabulary_["superb"]
    whole = svm.coef_[0, column] * values[0, column]
    assert tokens[0].relevance == pytest.approx(whole / 2) == tokens[2].relevance


def test_ngram_is_shared_by_its_words() -> None:
    model = make_pipeline(CountVectorizer(ngram_range=(2, 2)), LogisticRegression()).fit(TEXTS, LABELS)
    tokens = relprop.explain(model, "see it").tokens[0]
    w = model[1].coef_[0, model[0].vocabulary_["see it"]]
    assert [token.relevance for token in tokens] == pytest.approx([w / 2, w / 2])


def test_words_in_no_vocabulary_are_listed_without_relevance() -> None:
    tokens = relprop.explain(piped("tfidf"), "superb zebra").tokens[0]
    assert [token.text for token in tokens] == ["superb", "zebra"]
    assert tokens[1].relevance == 0


def test_colliding_terms_share_by_their_signs() -> None:
    model = piped("collisions")
    vectoriser = model[0]
    tokens = relprop.explain(model, "bad film long").tokens[0]
    hashed = vectoriser._get_hasher()
    signed = [hashed.transform([[t.text]]).toarray()[0] for t in tokens]
    norm = np.abs(sum(signed)).sum()
    expected = [float(model[1].coef_[0] @ s) / norm for s in signed]
    assert [t.relevance for t in tokens] == pytest.approx(expected)


def test_every_way_through_a_pipeline_agrees() -> None:
    steps = (TfidfVectorizer(), SelectKBest(chi2, k=12), MaxAbsScaler(), LogisticRegression())
    listed = make_pipeline(*steps).fit(TEXTS, LABELS)
    explanation = relprop.explain(listed, TEXTS)
    assert explanation.plan is not None
    np.testing.assert_allclose(explanation.score, listed.decision_function(TEXTS), rtol=1e-9)
    table = listed[0].transform(TEXTS)
    by_rows = relprop.explain(listed[1:], table)
    written_out = relprop.explain(listed[1:], table.toarray())
    assert by_rows.relevance.layout == torch.sparse_csr
    torch.testing.assert_close(by_rows.relevance.to_dense(), written_out.relevance, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by_rows.score, written_out.score)
    torch.testing.assert_close(by_rows.relevance.to_dense().sum(1), explanation.relevance.sum(1))


def test_union_of_words_and_letters_is_explained_as_one_text() -> None:
    union = make_union(TfidfVectorizer(), TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3)))
    model = make_pipeline(union, LogisticRegression()).fit(TEXTS, LABELS)
    explanation = relprop.explain(model, TEXTS)
    np.testing.assert_allclose(explanation.score, model.decision_function(TEXTS), rtol=1e-9)
    bias = float(model[1].intercept_[0])
    torch.testing.assert_close(explanation.relevance.sum(1) + bias, explanation.score)


@pytest.mark.parametrize("last", ["svd", "mlp", "rbf"])
def test_later_steps_may_need_all_values(last: str) -> None:
    tails = {
        "svd": (TruncatedSVD(3, random_state=0), StandardScaler(), LogisticRegression()),
        "mlp": (MLPClassifier((5,), random_state=0, max_iter=80),),
        "rbf": (SVC(),),
    }
    with warnings.catch_warnings(action="ignore"):
        model = make_pipeline(TfidfVectorizer(), *tails[last]).fit(TEXTS, LABELS)
    explanation = relprop.explain(model, TEXTS)
    assert explanation.audit is not None
    torch.testing.assert_close(explanation.audit.relevance, explanation.relevance.sum(1))
    total = explanation.relevance.sum(1) + sum(explanation.audit.absorbed.values())
    torch.testing.assert_close(total, explanation.score, rtol=1e-8, atol=1e-8)
    assert len(explanation.tokens[0]) == 4


def test_words_that_a_text_lacks_are_accounted_as_absent() -> None:
    model = make_pipeline(TfidfVectorizer(), KMeans(2, n_init=1, random_state=0)).fit(TEXTS)
    explanation = relprop.explain(model, TEXTS)
    assert (explanation.target.numpy() == model.predict(TEXTS)).all()
    assert explanation.audit is not None
    absent = explanation.audit.absorbed["absent"]
    torch.testing.assert_close(explanation.relevance.sum(1) + absent, explanation.score)
    vectoriser, clusters = model[0], model[1]
    table = vectoriser.transform(TEXTS)
    of_terms = relprop.explain(clusters, table.toarray()).relevance
    lacks = torch.from_numpy(table.toarray() == 0)
    torch.testing.assert_close(absent, torch.where(lacks, of_terms, 0.0).sum(1))


def test_text_is_drawn_like_that_of_a_neural_model() -> None:
    explanation = relprop.explain(piped("tfidf"), TEXTS[1])
    page = explanation._repr_html_()
    assert "wasted" in page and "background" in page
    assert explanation.heatmap().width == 720


def test_bag_of_words_and_neural_network_are_compared_word_by_word() -> None:
    text = "A superb film, isn't it? Dull; İstanbul."
    vocabulary = Vocabulary(["?", "superb", "film", "dull", "it"], unknown=0, pattern=r"\w{1,3}")
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Embedding(5, 3), torch.nn.Flatten(), torch.nn.LazyLinear(2)
    ).double()
    network(torch.tensor([[number for number, _, _ in vocabulary(text)]]))
    neural = relprop.explain(network.eval(), text, 1, tokenizer=vocabulary)
    bag = relprop.explain(piped("tfidf"), text, 1)
    ours, theirs = (relprop.text.words(one)[0] for one in (bag, neural))
    assert [(w.text, w.start, w.end) for w in ours] == [(w.text, w.start, w.end) for w in theirs]
    assert [w.text for w in ours][:6] == ["A", "superb", "film", ",", "isn't", "it"]
    for explanation, found in ((bag, ours), (neural, theirs)):
        assert sum(w.relevance for w in found) == pytest.approx(float(explanation.relevance.sum()))
    pieces = [t.relevance for t in neural.tokens[0] if t.start in (2, 5)]  # "sup" and "erb"
    assert theirs[1].relevance == pytest.approx(sum(pieces)) and len(pieces) == 2
    assert ours[1].relevance == pytest.approx(bag.tokens[0][0].relevance)
    with pytest.raises(relprop.InvalidInput, match="no texts"):
        relprop.text.words(relprop.explain(LogisticRegression().fit(np.eye(4), [0, 1, 0, 1]), np.eye(4)))


BAD = {
    "numbers": (lambda: np.eye(3), "no list of texts"),
    "empty": (lambda: ["superb", ""], "text 1 is empty"),
    "unknown": (lambda: ["zebra xylophone"], "none of the words of text 0 is in the model's vocabulary"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_texts_are_refused_in_one_line(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(relprop.InvalidInput, match=message):
        relprop.explain(piped("tfidf"), make())


def test_text_where_numbers_are_read_is_refused() -> None:
    model = LogisticRegression().fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(relprop.InvalidInput, match="inputs"):
        relprop.explain(model, ["superb"])
    with pytest.raises(relprop.InvalidInput, match="analyzer of its own"):
        own = make_pipeline(CountVectorizer(analyzer=str.split), LogisticRegression())
        relprop.explain(own.fit(TEXTS, LABELS), TEXTS)
    with pytest.raises(relprop.InvalidInput, match="negative, and this model reads counts"):
        counted = make_pipeline(TfidfTransformer(), LogisticRegression()).fit(np.eye(4), [0, 1, 0, 1])
        relprop.explain(counted, -np.eye(4))


def test_sparse_rows_with_different_lengths_and_empty_ones() -> None:
    table = sparse.random_array((20, 50), density=0.1, rng=np.random.default_rng(0), format="csr")
    table = sparse.csr_array(table.multiply(np.arange(20)[:, None] > 2))
    model = LogisticRegression().fit(table, np.arange(20) % 3)
    explanation = relprop.explain(model, table, 1)
    expected = table.multiply(model.coef_[1][None]).toarray()
    np.testing.assert_allclose(explanation.relevance.to_dense(), expected, atol=1e-14)
    np.testing.assert_allclose(explanation.output, model.decision_function(table), atol=1e-12)


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok"])
@pytest.mark.parametrize("kind", [LogisticRegression, KMeans, OneClassSVM])
def test_sparse_tables_of_any_form_are_explained_like_dense_ones(form: str, kind: Any) -> None:
    table = sparse.random_array((30, 12), density=0.3, rng=np.random.default_rng(0), format=form)
    model = kind().fit(table.tocsr(), np.arange(30) % 2)
    found = relprop.explain(model, table).relevance
    torch.testing.assert_close(found.to_dense(), relprop.explain(model, table.toarray()).relevance)


def test_one_long_row_does_not_lengthen_all_others() -> None:
    lengths = np.full(3000, 40)
    lengths[[7, 1500]] = 9000
    ends = np.cumsum([0, *lengths])
    columns = np.concatenate([np.arange(n) for n in lengths])
    values = np.random.default_rng(0).random(ends[-1])
    table = sparse.csr_array((values, columns, ends), shape=(3000, 9000))
    listed = [nonzeros.listed(table[a:b])[0].numel() for a, b in nonzeros.parts(table)]
    assert sum(listed) < 4 * table.nnz
    model = LogisticRegression().fit(table[:100], np.arange(100) % 3)
    targets = np.arange(3000) % 3
    explanation = relprop.explain(model, table, targets)
    expected = values * model.coef_[np.repeat(targets, lengths), columns]
    np.testing.assert_allclose(explanation.relevance.values(), expected, rtol=1e-12)
    np.testing.assert_allclose(
        explanation.score, model.decision_function(table)[np.arange(3000), targets], atol=1e-9
    )
    assert explanation.audit is not None and explanation.audit.closes


def test_searches_and_wrappers_of_text_pipelines_are_opened() -> None:
    search = GridSearchCV(piped("tfidf"), {"linearsvc__C": [0.1, 1.0]}, cv=2).fit(TEXTS, LABELS)
    explanation = relprop.explain(search, TEXTS)
    np.testing.assert_allclose(explanation.score, search.decision_function(TEXTS), rtol=1e-9)
    assert explanation.tokens[0][0].text == "superb"


ROOT = Path(__file__).resolve().parents[1]
CORPORA = ROOT.parent / "shared" / "data" / "text"
STATED = {"movie_reviews": 0.865, "sentence_polarity": 0.748, "subjectivity": 0.905, "product_topics": 0.983}
"""Accuracies of TF-IDF and a linear SVM on the held-out fold, as the data's README states them."""


@pytest.mark.skipif(not CORPORA.is_dir(), reason=f"the corpora are not here: {CORPORA}")
@pytest.mark.parametrize("name", STATED)
def test_deleting_relevant_words_costs_the_score_on_real_corpora(name: str) -> None:
    spec = importlib.util.spec_from_file_location("classical_text", ROOT / "studies" / "classical_text.py")
    assert spec is not None and spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    found = study.study(CORPORA, name, 12 if name == "movie_reviews" else 30)
    assert found["accuracy"] > STATED[name] - 0.01
    left = {order: row["mean"] for order, row in found["left"].items()}
    assert left["relevance"] < min(left["|weight|"], left["random"])
    assert found["|weight| − relevance"][1] > 0  # the interval's lower end


LARGE = """
import resource
import numpy as np
from scipy import sparse
from sklearn.linear_model import SGDClassifier
import relprop
imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rng = np.random.default_rng(0)
rows, columns, each = 10_000, 100_000, 100
x = sparse.csr_array(
    (
        rng.random(rows * each),
        rng.integers(0, columns, rows * each, dtype=np.int32),
        np.arange(0, rows * each + 1, each, dtype=np.int32),
    ),
    shape=(rows, columns),
)
x.sum_duplicates()
model = SGDClassifier(max_iter=1, tol=None).fit(x[:500], np.arange(500) % 2)
r = relprop.explain(model, x).relevance
assert r.shape == (rows, columns)
assert np.allclose(r.values(), x.data * model.coef_[0, x.indices])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imports) // 1024)
"""


def test_hundred_thousand_features_of_ten_thousand_documents_stay_under_a_gigabyte() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400  # MB beyond the imports, which take 0.5 to 0.9 GB by the build of torch
