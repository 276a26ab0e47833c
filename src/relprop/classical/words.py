"""Documents as counts of terms, and the way back: from relevance of terms to the words where they stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from relprop.classical.build import Place, refuse, tensor, transformer
from relprop.classical.steps import Keeping, Unit
from relprop.errors import InvalidInput
from relprop.text.tokens import Piece, found_in

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A term where it stands: the term, and of the words that it covers the share that each has in it."""

    term: str
    words: tuple[tuple[int, float], ...]


@transformer("CountVectorizer")
def counted(fitted: Any, place: Place) -> None:
    """Counts of terms."""
    _read(fitted, place, len(fitted.vocabulary_))


@transformer("TfidfVectorizer")
def weighted(fitted: Any, place: Place) -> None:
    """Counts of terms, or 1 + log of them, times idf, at length 1."""
    _read(fitted, place, len(fitted.vocabulary_))
    if fitted.sublinear_tf:
        place.then(Keeping("log_counts"))
    if fitted.use_idf:
        place.scaled(None, tensor(fitted.idf_))
    if fitted.norm is not None:
        place.then(Unit(fitted.norm))


@transformer("HashingVectorizer")
def hashed(fitted: Any, place: Place) -> None:
    """Counts of terms in the columns that a hash gives them, at length 1."""
    _read(fitted, place, fitted.n_features)
    if fitted.norm is not None:
        place.then(Unit(fitted.norm))


def _read(fitted: Any, place: Place, width: int) -> None:
    if not place.text:
        raise refuse(
            fitted,
            "reads a column of a table, or what other steps have made",
            "put it first in the pipeline, and give texts alone",
        )
    if callable(fitted.analyzer):
        raise refuse(
            fitted,
            "has an analyzer of its own, which does not say where its terms stand",
            "give it a tokenizer instead",
        )
    place.text = False
    place.words.append((fitted, width))
    place.width = width


def counts(vectoriser: Any, texts: Sequence[str]) -> Any:
    """The counts of a vectoriser's terms, a sparse array (B, D), before they are weighted and normalised."""
    from sklearn.feature_extraction.text import CountVectorizer

    if isinstance(vectoriser, CountVectorizer):
        return CountVectorizer.transform(vectoriser, texts)
    analyse = vectoriser.build_analyzer()
    found = vectoriser._get_hasher().transform(analyse(text) for text in texts)
    if vectoriser.binary:
        found.data.fill(1)
    return found


# ---------------------------------------------------------------- where terms stand


def occurrences(vectoriser: Any, text: str) -> tuple[list[Span], list[Occurrence]]:
    """The words of a text, by their characters, and the terms that a vectoriser finds in it.

    Raises `UnsupportedEstimator` where the terms found so are not the vectoriser's own.
    """
    processed = vectoriser.build_preprocessor()(text)
    if vectoriser.analyzer == "word":
        words, found = _word_terms(vectoriser, processed)
    else:
        words, found = _letter_terms(vectoriser, processed)
    if sorted(one.term for one in found) != sorted(vectoriser.build_analyzer()(text)):
        raise refuse(
            vectoriser, "finds other terms than its settings say", "use its own preprocessing and analyzers"
        )
    places = _places(vectoriser, text, processed)
    if places is None:
        words = found_in(text, [processed[start:end] for start, end in words])
    else:
        words = [(places[start], places[end - 1] + 1) if end > start else (0, 0) for start, end in words]
    return words, found


def _places(vectoriser: Any, text: str, processed: str) -> list[int] | None:
    """Of each letter of the processed text the letter of the text; None where that cannot be told."""
    if len(processed) == len(text):
        return list(range(len(text)))
    process = vectoriser.build_preprocessor()
    letters = [process(letter) for letter in text]
    if "".join(letters) != processed:
        return None
    return [place for place, made in enumerate(letters) for _ in made]


def _word_terms(vectoriser: Any, text: str) -> tuple[list[Span], list[Occurrence]]:
    """Words by the vectoriser's pattern or tokenizer, and the n-grams of those that are no stop words."""
    if vectoriser.tokenizer is None:
        pattern = re.compile(vectoriser.token_pattern)
        matches = [match.span(pattern.groups and 1) for match in pattern.finditer(text)]
        words = [(int(start), int(end)) for start, end in matches]
        names = [text[start:end] for start, end in words]
    else:
        names = list(vectoriser.build_tokenizer()(text))
        words = found_in(text, names)
    stops = vectoriser.get_stop_words() or ()
    kept = [number for number, name in enumerate(names) if name not in stops]
    least, most = vectoriser.ngram_range
    found = []
    for size in range(least, min(most, len(kept)) + 1):
        for start in range(len(kept) - size + 1):
            covered = kept[start : start + size]
            term = " ".join(names[number] for number in covered)
            found.append(Occurrence(term, tuple((number, 1 / size) for number in covered)))
    return words, found


def _letter_terms(vectoriser: Any, text: str) -> tuple[list[Span], list[Occurrence]]:
    """n-grams of letters; words are what stands between spaces, and a space counts to the word before it."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    least, most = vectoriser.ngram_range
    found: list[Occurrence] = []
    if vectoriser.analyzer == "char":
        letters, owners = _squeezed(text, words)
        for size in range(least, min(most, len(letters)) + 1):
            for start in range(len(letters) - size + 1):
                found.append(_letters(letters[start : start + size], owners[start : start + size]))
        return words, found
    for number, (begin, end) in enumerate(words):
        padded = f" {text[begin:end]} "
        for size in range(least, most + 1):
            for start in range(max(1, len(padded) - size + 1)):
                found.append(Occurrence(padded[start : start + size], ((number, 1.0),)))
            if size >= len(padded):
                break
    return words, found


def _squeezed(text: str, words: list[Span]) -> tuple[str, list[int]]:
    """The text with each run of two or more spaces as one, and the word of each letter."""
    letters, owners, word = [], [], 0
    for place, letter in enumerate(text):
        while word + 1 < len(words) and place >= words[word + 1][0]:
            word += 1
        letters.append(letter)
        owners.append(word)
    squeezed, of = [], []
    for match in re.finditer(r"\s\s+|[\s\S]", "".join(letters)):
        squeezed.append(" " if len(match.group()) > 1 else match.group())
        of.append(owners[match.start()])
    return "".join(squeezed), of


def _letters(term: str, owners: Sequence[int]) -> Occurrence:
    """A term of letters: each letter that is no space has the same share."""
    real = [owner for letter, owner in zip(term, owners, strict=True) if not letter.isspace()] or list(owners)
    share: dict[int, float] = {}
    for owner in real:
        share[owner] = share.get(owner, 0.0) + 1 / len(real)
    return Occurrence(term, tuple(share.items()))


# ---------------------------------------------------------------- from terms to words


@dataclass(frozen=True, slots=True)
class Documents:
    """A batch of texts as counts, and where the terms stand.

    Attributes:
        texts: the B texts.
        counts: the counts of all terms, a sparse array (B, D).
        pieces: the words of each text.
        shares: of each text (word, column, share): how much of a column's relevance is that word's.
    """

    texts: tuple[str, ...]
    counts: Any
    pieces: tuple[tuple[Piece, ...], ...]
    shares: tuple[tuple[Any, Any, Any], ...]

    def of_words(self, relevance: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """From relevance of terms, a sparse array (B, D), to that of words, (B, T), filled up with zeros.

        Beside it what terms have that are not in the text, (B,): a distance, say, also counts the words that lack.
        """
        longest = max(len(pieces) for pieces in self.pieces)
        result, absent = np.zeros((len(self.texts), longest)), np.zeros(len(self.texts))
        for row, (word, column, share) in enumerate(self.shares):
            begin, end = relevance.indptr[row : row + 2]
            order = np.argsort(relevance.indices[begin:end])
            places, values = relevance.indices[begin:end][order], relevance.data[begin:end][order]
            absent[row] = values[~np.isin(places, column)].sum()
            if len(places):
                found = np.searchsorted(places, column).clip(max=len(places) - 1)
                amounts = np.where(places[found] == column, values[found], 0.0)
                np.add.at(result[row], word, share * amounts)
        return torch.from_numpy(result), torch.from_numpy(absent)


def documents(words: Sequence[tuple[Any, int]], texts: Sequence[str]) -> Documents:
    """Texts as the counts of one or more vectorisers, side by side.

    Raises `InvalidInput` for a text without a word, or of whose words the vocabularies hold none.
    """
    from scipy import sparse

    tables = [sparse.csr_array(counts(vectoriser, texts)) for vectoriser, _ in words]
    whole = sparse.csr_array(sparse.hstack(tables, format="csr"), dtype=np.float64)
    pieces, shares = [], []
    for number, text in enumerate(texts):
        spans: list[Span] = []
        places: dict[Span, int] = {}
        word, column, share = [], [], []
        start = 0
        for vectoriser, width in words:
            own, found = occurrences(vectoriser, text)
            for span in own:
                places.setdefault(span, len(places))
            columns, signs = _columns(vectoriser, [one.term for one in found])
            totals: dict[int, list[float]] = {}
            for at, sign in zip(columns, signs, strict=True):
                totals.setdefault(at, []).append(sign)
            for one, at, sign in zip(found, columns, signs, strict=True):
                if at < 0:
                    continue
                total = sum(totals[at])
                part = sign / total if total else 1 / len(totals[at])
                for index, fraction in one.words:
                    word.append(places[own[index]])
                    column.append(start + at)
                    share.append(part * fraction)
            start += width
        spans = list(places)
        if not spans:
            raise InvalidInput(
                f"inputs: text {number} is empty: {text[:20]!r} has no words\n  do: give a text with words"
            )
        if not word:
            raise InvalidInput(
                f"inputs: none of the words of text {number} is in the model's vocabulary\n"
                "  do: give a text of the kind that the vectoriser was fitted on"
            )
        order = sorted(range(len(spans)), key=lambda i: spans[i])
        rank = {old: new for new, old in enumerate(order)}
        pieces.append(tuple(Piece(text[slice(*spans[i])], *spans[i], rank[i]) for i in order))
        shares.append((np.array([rank[i] for i in word]), np.array(column), np.array(share)))
    return Documents(tuple(texts), whole, tuple(pieces), tuple(shares))


def _columns(vectoriser: Any, terms: Sequence[str]) -> tuple[list[int], list[float]]:
    """The column of each term (−1: none) and the sign of its count there."""
    if hasattr(vectoriser, "vocabulary_"):
        return [int(vectoriser.vocabulary_.get(term, -1)) for term in terms], [1.0] * len(terms)
    known = sorted(set(terms))
    table = vectoriser._get_hasher().transform([term] for term in known).tocsr()
    where = {term: (int(table.indices[i]), float(table.data[i])) for i, term in enumerate(known)}
    return [where[term][0] for term in terms], [where[term][1] for term in terms]
