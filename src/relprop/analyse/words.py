"""Words over a data set of texts: the most relevant of each class, and two models compared word by word."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from relprop.analyse.comparison import (
    Alike,
    Group,
    ModelComparison,
    Paired,
    answers,
    jaccard,
    mean_of,
    tested,
    top,
)
from relprop.analyse.documents import unit
from relprop.analyse.graph import needed
from relprop.analyse.signs import FLIPS
from relprop.errors import InvalidInput, MissingExtra
from relprop.evaluate.similarity import spearman

Words = Sequence[tuple[str, float]]
"""The words of a text in their order, each with its relevance."""

SCORES: dict[str, Callable[[Sequence[float]], float]] = {
    "max": lambda values: max(values),
    "mean": lambda values: sum(values) / len(values),
    "sum": lambda values: sum(values),
}
"""How the relevance of a word's occurrences becomes one value."""


@dataclass(frozen=True, slots=True)
class WordRow:
    """A word in the texts of one class.

    Attributes:
        word: in lower case.
        score: what the words are sorted by; greatest, mean: over its occurrences.
        occurrences, documents: how often it is there, and in how many texts.
        shared: whether the list of the model that this one is compared with has it too; None without one.
    """

    word: str
    score: float
    greatest: float
    mean: float
    occurrences: int
    documents: int
    shared: bool | None = None


def words_of(tokens: Iterable[tuple[str, int, int, float]]) -> list[tuple[str, float]]:
    """An explanation's tokens of one text as words in lower case; special tokens, which stand for no characters, are left out.

    Parts of a word that follow each other without a space are one word, with the sum of their relevance.
    """
    found: list[tuple[str, float]] = []
    before = -1
    for text, start, end, relevance in tokens:
        if end <= start:
            continue
        joins = start == before and found and found[-1][0][-1:].isalnum() and text[:1].isalnum()
        if joins:
            found[-1] = found[-1][0] + text.lower(), found[-1][1] + relevance
        else:
            found.append((text.lower(), float(relevance)))
        before = end
    return found


def class_words(
    texts: Sequence[Words],
    classes: Sequence[str],
    *,
    score: str = "max",
    least: int = 3,
    most: int = 20,
    other: Mapping[str, Iterable[str]] | None = None,
) -> dict[str, tuple[WordRow, ...]]:
    """The most relevant words of each class over a data set.

    Args:
        texts: the words of each text with their relevance (`words_of`), of the score of its class.
        classes: of each text the class, as predicted.
        score: "max" (the largest relevance that the word has anywhere, as in Arras et al. 2017), "mean" or "sum".
        least: words in fewer texts of the class are left out.
        most: how many are listed.
        other: for each class the words of another model's list, for the column `shared`.

    Raises `InvalidInput` for an unknown score and lengths that do not belong together.
    """
    if score not in SCORES:
        raise InvalidInput(f"score: {score!r} is unknown\n  do: one of {', '.join(SCORES)}")
    if len(texts) != len(classes):
        raise InvalidInput(f"classes: {len(classes)} for {len(texts)} texts\n  do: give one a text")
    found: dict[str, tuple[WordRow, ...]] = {}
    for name in sorted(set(classes)):
        values: dict[str, list[float]] = defaultdict(list)
        documents: dict[str, int] = defaultdict(int)
        for words, own in zip(texts, classes, strict=True):
            if own != name:
                continue
            for word, relevance in words:
                values[word].append(relevance)
            for word in {word for word, _ in words}:
                documents[word] += 1
        listed = None if other is None else set(other.get(name, ()))
        rows = [
            WordRow(
                word,
                SCORES[score](held),
                max(held),
                sum(held) / len(held),
                len(held),
                documents[word],
                None if listed is None else word in listed,
            )
            for word, held in values.items()
            if documents[word] >= least
        ]
        found[name] = tuple(sorted(rows, key=lambda row: (-row.score, row.word))[:most])
    return found


def coherence(words: Iterable[str], vectors: Mapping[str, Any]) -> float:
    """How close in meaning the words of a list are: the mean cosine of all pairs of their vectors.

    Words without a vector are left out; NaN for fewer than two.
    """
    held = [torch.as_tensor(vectors[word], dtype=torch.float64) for word in words if word in vectors]
    if len(held) < 2:
        return math.nan
    stacked = unit(torch.stack(held))
    table = stacked @ stacked.T
    count = len(held)
    return float((table.sum() - table.diagonal().sum()) / (count * (count - 1)))


def stop_words() -> frozenset[str]:
    """scikit-learn's English words without a subject of their own."""
    try:
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
    except ImportError as error:
        raise MissingExtra("stop words need scikit-learn\n  do: pip install 'relprop[analyse]'") from error
    found: frozenset[str] = ENGLISH_STOP_WORDS
    return found


def kind_shares(
    texts: Sequence[Words], kinds: Mapping[str, Callable[[str], bool]] | None = None
) -> dict[str, tuple[float, float]]:
    """What kinds of words the positive relevance lies on: for each kind its part of ΣR⁺ and its part of the words.

    kinds: for each name whether a word is one; by default stop words, numbers, and signs without a letter or digit.
    Both parts are means over texts; texts without positive relevance are left out.
    """
    stops = stop_words() if kinds is None else frozenset()
    asked = kinds or {
        "stop words": lambda word: word in stops,
        "numbers": lambda word: any(c.isdigit() for c in word) and not any(c.isalpha() for c in word),
        "signs": lambda word: not any(c.isalnum() for c in word),
    }
    found = {}
    for name, is_one in asked.items():
        parts = []
        for words in texts:
            total = sum(max(r, 0.0) for _, r in words)
            if total > 0:
                own = [max(r, 0.0) for word, r in words if is_one(word)]
                parts.append((sum(own) / total, len(own) / len(words)))
        shares = np.array(parts).reshape(-1, 2)
        found[name] = (
            (float(shares[:, 0].mean()), float(shares[:, 1].mean())) if parts else (math.nan, math.nan)
        )
    return found


# ---------------------------------------------------------------- two models


def compare_words(
    first: Sequence[Words],
    second: Sequence[Words],
    pair: Paired,
    *,
    least: int = 10,
    most: int = 100,
    flips: int = FLIPS,
    seed: int = 0,
) -> ModelComparison:
    """Compare two models by the relevance of the words of the same texts.

    A word's part of Σ|R| of its text is compared in every text that both explain for one class; words that one model does
    not read have none there. Texts are correlated over the words of both.

    Args:
        first, second: the words of each text (`words_of`), text for text.
        pair: their targets, predictions and labels.
        least: words in fewer texts of the class are not tested.
        most: how many words are in the lists whose overlap is told.
        flips, seed: of the sign-flip test.

    Raises `InvalidInput` for lengths that do not belong together. scipy is needed.
    """
    if len(first) != len(second):
        raise InvalidInput(
            f"compare: {len(first)} and {len(second)} texts\n  do: explain the same texts with both models"
        )
    _, named, figures = answers(pair, len(first))
    parts = [[_parts(words) for words in texts] for texts in (first, second)]
    groups, lists, alike = [], [], []
    for name, rows in named:
        counts: dict[str, int] = defaultdict(int)
        for row in rows:
            for word in parts[0][row].keys() | parts[1][row].keys():
                counts[word] += 1
        vocabulary = sorted(word for word, count in counts.items() if count >= least)
        one, other = (_table([texts[row] for row in rows], vocabulary) for texts in parts)
        groups.append(Group(name, rows, one, other))
        lists.append(vocabulary)
        tops = [_greatest([texts[row] for row in rows], vocabulary, most) for texts in parts]
        figure = mean_of(np.array([_correlation(parts[0][row], parts[1][row]) for row in rows]), seed)
        alike.append(Alike(name, len(rows), *figure, jaccard(tops[0][1], tops[1][1]), tops[0][0], tops[1][0]))
    return ModelComparison(**figures, classes=tuple(alike), contrasts=tested(groups, lists, flips, seed))


def _parts(words: Words) -> dict[str, float]:
    """Each word's part of Σ|R| of its text, over its occurrences."""
    total = sum(abs(relevance) for _, relevance in words)
    found: dict[str, float] = defaultdict(float)
    for word, relevance in words:
        found[word] += relevance / total if total else 0.0
    return dict(found)


def _table(texts: Sequence[Mapping[str, float]], vocabulary: Sequence[str]) -> Any:
    """Texts × words, sparse."""
    place = {word: i for i, word in enumerate(vocabulary)}
    cells = [(i, place[w], v) for i, words in enumerate(texts) for w, v in words.items() if w in place]
    rows, columns, values = zip(*cells, strict=True) if cells else ((), (), ())
    return needed("scipy.sparse").csr_array(
        (np.array(values, dtype=np.float64), (np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64))),
        shape=(len(texts), len(vocabulary)),
    )  # fmt: skip


def _greatest(
    texts: Sequence[Mapping[str, float]], vocabulary: Sequence[str], most: int
) -> tuple[tuple[tuple[str, float], ...], set[str]]:
    """The words with the largest part in any text."""
    table = _table(texts, vocabulary)
    greatest = np.asarray(table.max(axis=0).toarray()).ravel() if len(vocabulary) else np.zeros(0)
    return top(greatest, vocabulary, most)


def _correlation(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    words = sorted(first.keys() | second.keys())
    if len(words) < 3:
        return math.nan
    values = [[[one.get(word, 0.0) for word in words]] for one in (first, second)]
    return float(spearman(*values)[0])
