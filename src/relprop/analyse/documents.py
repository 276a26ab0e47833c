"""Documents as vectors: sums of word vectors, weighted by relevance (Arras et al. 2017, PLoS ONE 12(8) e0181142).

A vector says what a classifier saw in a document. How much of the topic it carries is measured by nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.errors import InvalidInput, MissingExtra

NEIGHBOURS = tuple(range(1, 52, 2))
"""The numbers of neighbours that the explanatory power is the best of."""


def document_vectors(relevance: Any, word_vectors: Any, normalise: bool = False) -> Tensor:
    """The sum of the word vectors of each document, weighted by relevance: d = Σ_t R_t v_t (Arras et al. 2017, eq. 9).

    Args:
        relevance: (T,) of the words of a document, or (T, D) of the components of their vectors, where d_i = Σ_t R_ti v_ti;
            of B documents (B, T) or (B, T, D), padded by zeros, or a list of documents of any lengths. Other weights serve
            as well: ones for the uniform sum, `tfidf`.
        word_vectors: (T, D) in the same order, (B, T, D), or a list.
        normalise: to Euclidean length 1; a document of zeros stays zero.

    Returns float64 (D,) for one document, (B, D) for several. The sum is of products, so the two may also be given the
    other way round. Raises `InvalidInput` for lengths that do not belong together, NaN and infinity.
    """
    if isinstance(relevance, (list, tuple)) and _ragged(relevance):
        if not isinstance(word_vectors, (list, tuple)) or len(word_vectors) != len(relevance):
            raise InvalidInput(
                f"word_vectors: {len(relevance)} documents of relevance need as many of vectors\n"
                "  do: give a list of (T, D), one a document"
            )
        pairs = zip(relevance, word_vectors, strict=True)
        return torch.stack([document_vectors(one, vectors, normalise) for one, vectors in pairs])
    weights, vectors = _numbers("relevance", relevance), _numbers("word_vectors", word_vectors)
    if weights.dim() > vectors.dim():
        weights, vectors = vectors, weights
    whole = weights.shape == vectors.shape
    if vectors.dim() not in (2, 3) or not (whole or weights.shape == vectors.shape[:-1]):
        raise InvalidInput(
            f"document_vectors: relevance of shape {tuple(weights.shape)} for word vectors of shape {tuple(vectors.shape)}\n"
            "  do: give (T,) or (T, D) with (T, D), or (B, T) or (B, T, D) with (B, T, D)"
        )
    found = ((weights if whole else weights.unsqueeze(-1)) * vectors).sum(-2)
    return unit(found) if normalise else found


def _ragged(documents: Sequence[Any]) -> bool:
    """Whether a list is of documents, not of the numbers of one."""
    return len(documents) > 0 and all(
        isinstance(one, (Tensor, np.ndarray)) and one.ndim >= 1 for one in documents
    )


def _numbers(name: str, values: Any) -> Tensor:
    tensor = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidInput(f"{name}: NaN or infinite values\n  do: leave these documents out, and say so")
    return tensor


def unit(vectors: Any) -> Tensor:
    """Vectors (…, D) at Euclidean length 1; zero stays zero."""
    values = torch.as_tensor(vectors, dtype=torch.float64)
    length = values.norm(dim=-1, keepdim=True)
    return values / torch.where(length > 0, length, torch.ones_like(length))


def tfidf(counts: Any, documents: int, frequency: Any) -> Tensor:
    """Weights of words: the count in the document times ln(documents / frequency), unsmoothed, (…, V) float64.

    Args:
        counts: (…, V) how often each word is in the document.
        documents: how many documents there are.
        frequency: (V,) in how many of them each word is; a word of no document has the weight 0.
    """
    held = torch.as_tensor(frequency, dtype=torch.float64)
    if bool((held > documents).any()) or bool((held < 0).any()):
        raise InvalidInput(
            f"frequency: {float(held.max()):g} of {documents} documents\n  do: count each document once a word"
        )
    weight = torch.where(held > 0, torch.log(documents / held.clamp(min=1e-300)), torch.zeros_like(held))
    return torch.as_tensor(counts, dtype=torch.float64) * weight


# ---------------------------------------------------------------- nearest neighbours


def knn(train: Any, labels: Any, test: Any, k: int | Iterable[int] = 1) -> Tensor:
    """The label that most of the k nearest training vectors have: (n,) int64, or (len(k), n) for several k.

    Euclidean distance; among equals the smaller label wins, as in scikit-learn, which is needed.
    """
    wanted = [k] if isinstance(k, int) else list(k)
    known, classes = np.unique(np.asarray(labels), return_inverse=True)
    if len(classes) != len(train):
        raise InvalidInput(f"labels: {len(classes)} for {len(train)} vectors\n  do: give one a vector")
    if not wanted or min(wanted) < 1 or max(wanted) > len(classes):
        raise InvalidInput(f"k: {wanted} neighbours among {len(classes)}\n  do: give 1 to {len(classes)}")
    near = _neighbours(np.asarray(train), np.asarray(test), max(wanted))
    votes = np.zeros((len(test), len(known)), dtype=np.int64)
    rows, found = np.arange(len(test)), {}
    for position in range(max(wanted)):
        votes[rows, classes[near[:, position]]] += 1
        if position + 1 in wanted:
            found[position + 1] = known[votes.argmax(1)]
    predicted = torch.from_numpy(np.stack([found[one] for one in wanted]).astype(np.int64))
    return predicted[0] if isinstance(k, int) else predicted


def _neighbours(train: np.ndarray, test: np.ndarray, k: int) -> np.ndarray:
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError as error:
        raise MissingExtra(
            "nearest neighbours need scikit-learn\n  do: pip install 'relprop[analyse]'"
        ) from error
    found: np.ndarray = NearestNeighbors(n_neighbors=k).fit(train).kneighbors(test, return_distance=False)
    return found


def knn_accuracy(train: Any, labels: Any, test: Any, test_labels: Any, k: int = 1) -> float:
    """The part of the test vectors whose label `knn` finds."""
    return float((knn(train, labels, test, k) == torch.as_tensor(test_labels)).double().mean())


@dataclass(frozen=True, slots=True)
class Power:
    """How well neighbours of document vectors share their topic: the explanatory power index (Arras et al. 2017).

    Attributes:
        value: the mean accuracy at the best number of neighbours.
        k: that number.
        deviation: over the repeats, at that number.
        curve: the mean accuracy for each number of neighbours.
        used, excluded: documents, and those left out because their vector is zero.
    """

    value: float
    k: int
    deviation: float
    curve: dict[int, float]
    used: int
    excluded: int


def explanatory_power(
    vectors: Any, labels: Any, ks: Sequence[int] = NEIGHBOURS, repeats: int = 10, seed: int = 0
) -> Power:
    """Nearest neighbours' accuracy on document vectors of length 1, half of the documents for each side, the best k.

    Args:
        vectors: (B, D), as `document_vectors` gives them; they are brought to length 1.
        labels: (B,) the true classes, integers.
        ks: numbers of neighbours; those that half of the documents do not have are left out.
        repeats: random halves, the same for every kind of vectors with the same documents and seed.

    The prediction leaks into vectors of the predicted class, so that the index is close to the classifier's own accuracy:
    compare within one model, and with the relevance of a wrong class.
    Raises `InvalidInput` for fewer than four documents with a vector.
    """
    values, classes = unit(_numbers("vectors", vectors)), torch.as_tensor(labels)
    if values.dim() != 2 or classes.shape != values.shape[:1]:
        raise InvalidInput(
            f"explanatory_power: vectors {tuple(values.shape)} and labels {tuple(classes.shape)}\n"
            "  do: give (B, D) and (B,)"
        )
    kept = values.abs().amax(1) > 0
    if int(kept.sum()) < 4:
        raise InvalidInput(
            f"vectors: {int(kept.sum())} of {len(kept)} documents have a vector that is not zero\n"
            "  do: give four or more with known words"
        )
    draw = np.random.default_rng(seed)
    found = []
    least = int(kept.sum()) // 2
    for _ in range(repeats):
        order = torch.from_numpy(draw.permutation(len(values)))
        order = order[kept[order]]  # the same halves for all kinds of vectors, but for their own zeros
        train, test = order[: len(order) // 2], order[len(order) // 2 :]
        wanted = [k for k in ks if k <= least]
        predicted = knn(values[train], classes[train], values[test], wanted)
        found.append((predicted == classes[test]).double().mean(1))
    accuracy = torch.stack(found)
    means = accuracy.mean(0)
    best = int(means.argmax())
    return Power(
        float(means[best]),
        wanted[best],
        float(accuracy[:, best].std()) if repeats > 1 else 0.0,
        {k: float(v) for k, v in zip(wanted, means, strict=True)},
        int(kept.sum()),
        int((~kept).sum()),
    )


def principal(vectors: Any, count: int = 2) -> tuple[Tensor, Tensor]:
    """The first principal components of vectors at length 1: coordinates (B, count) and their parts of the variance.

    The sign of each is such that its largest coordinate is positive.
    """
    values = unit(_numbers("vectors", vectors))
    centred = values - values.mean(0)
    left, size, _ = torch.linalg.svd(centred, full_matrices=False)
    places = left[:, :count] * size[:count]
    largest = places.gather(0, places.abs().argmax(0, keepdim=True))
    total = size.square().sum()
    part = size[:count].square() / total if float(total) else torch.zeros(count, dtype=torch.float64)
    return places * torch.where(largest < 0, -1.0, 1.0), part
