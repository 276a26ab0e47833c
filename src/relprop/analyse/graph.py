"""From points to a graph of nearest neighbours, the spectrum of its Laplacian, and the number of clusters that shows in it.

Needs scipy and scikit-learn; more than 10,000 points also pynndescent: `pip install 'relprop[analyse]'`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relprop.errors import InvalidInput, MissingExtra

EXACT = 10_000
"""Up to so many points the nearest neighbours are exact; above they come from pynndescent, which misses a few."""

DENSE = 1_500
"""Up to so many nodes the eigenvalue problem is solved densely."""

SYMMETRIES = ("mean", "max", "min")
"""How a directed graph A becomes undirected: (A + Aᵀ)/2, max(A, Aᵀ) or min(A, Aᵀ)."""

Reals = NDArray[np.float64]


def needed(name: str) -> Any:
    """A module of the extra. Raises `MissingExtra` where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # umap-learn tells of what it does not find
            return import_module(name)
    except ImportError as error:
        package = {"sklearn": "scikit-learn", "umap": "umap-learn"}
        first = (error.name or name).partition(".")[0]  # umap needs pynndescent, scikit-learn needs scipy
        raise MissingExtra(
            f"this analysis needs {package.get(first, first)}\n  do: pip install 'relprop[analyse]'"
        ) from error


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """torch's number of threads as it was, also after numba, which shares OpenMP with it, has set its own."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def neighbours(points: NDArray[Any], k: int, seed: int = 0) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The k nearest other points of each point, by Euclidean distance, the nearest first.

    Args:
        points: (n, d), more than k rows.
        k: how many neighbours; the point itself is not among them, also where others equal it.
        seed: of the approximate search that serves more than `EXACT` points.

    Returns:
        Indices and distances, both (n, k).
    """
    if not 1 <= k < len(points):
        raise InvalidInput(f"neighbours: {k} of {len(points)} points\n  do: give 1 to {len(points) - 1}")
    if len(points) <= EXACT:
        search = needed("sklearn.neighbors").NearestNeighbors(n_neighbors=k, algorithm="brute")
        distances, indices = search.fit(
            points
        ).kneighbors()  # without an argument the point itself is left out
        return indices.astype(np.int32), distances.astype(np.float32)
    descent = needed("pynndescent").NNDescent
    with torch_threads_kept():
        index = descent(
            points, n_neighbors=k + 1, random_state=seed, n_trees=6, max_candidates=20, low_memory=True
        )
        indices, distances = index.neighbor_graph
    return _without_self(indices, distances)


def _without_self(
    indices: NDArray[Any], distances: NDArray[Any]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    own = indices == np.arange(len(indices))[:, None]
    own[~own.any(1), -1] = True  # among many equal points the search may have missed the point itself
    k = indices.shape[1] - 1
    return (
        indices[~own].reshape(-1, k).astype(np.int32),
        distances[~own].reshape(-1, k).astype(np.float32),
    )


def knn_affinity(points: Any, k: int = 10, symmetric: str = "mean", seed: int = 0) -> Any:
    """The affinity matrix of the graph of k nearest neighbours: 1 for a neighbour, 0 else, made symmetric.

    Args:
        points: (n, d).
        k: neighbours of each point, without itself.
        symmetric: `"mean"` (A + Aᵀ)/2, so that an edge counts ½ where one point alone has the other among its nearest,
            `"max"`, or `"min"` (mutual neighbours only).
        seed: see `neighbours`.

    Returns:
        A sparse matrix (n, n), float64, without self-edges.
    """
    indices, _ = neighbours(as_array(points), k, seed)
    return affinity(indices, symmetric)


def affinity(indices: NDArray[Any], symmetric: str = "mean") -> Any:
    """The affinity matrix of neighbours that are known already, (n, k) indices."""
    if symmetric not in SYMMETRIES:
        raise InvalidInput(f"symmetric: {symmetric!r}\n  do: give one of {', '.join(SYMMETRIES)}")
    sparse = needed("scipy.sparse")
    n, k = indices.shape
    ones, rows = np.ones(n * k), np.repeat(np.arange(n), k)
    directed = sparse.csr_array((ones, (rows, indices.reshape(-1))), shape=(n, n))
    if symmetric == "mean":
        return ((directed + directed.T) / 2).tocsr()
    return (directed.maximum(directed.T) if symmetric == "max" else directed.minimum(directed.T)).tocsr()


def eigenpairs(weights: Any, number: int | None = None, seed: int = 0) -> tuple[Reals, Reals]:
    """The smallest eigenvalues of the symmetric normalised Laplacian, and their eigenvectors.

    L = I − D^(−1/2) W D^(−1/2) (Ng, Jordan and Weiss 2002). Solved for the largest algebraic eigenvalues of
    D^(−1/2) W D^(−1/2), not those of largest magnitude, among which strongly negative ones would be.

    Args:
        weights: (n, n) symmetric, not negative; an array or a sparse matrix. A node without edges counts as a component.
        number: how many; None for all of them.
        seed: of the start of the iteration that serves more than `DENSE` nodes.

    Returns:
        (number,) ascending, in [0, 2], and (n, number).
    """
    sparse = needed("scipy.sparse")
    w = sparse.csr_array(weights, dtype=np.float64)
    n = w.shape[0]
    number = n if number is None else min(number, n)
    degree = np.asarray(w.sum(1)).reshape(-1)
    scale = np.divide(1.0, np.sqrt(degree), out=np.zeros(n), where=degree > 0)
    normalised = sparse.diags_array(scale) @ w @ sparse.diags_array(scale)
    normalised = normalised + sparse.diags_array((degree == 0).astype(np.float64))
    if n <= DENSE or number > n // 3:
        values, vectors = needed("scipy.linalg").eigh(
            normalised.toarray(), subset_by_index=(n - number, n - 1)
        )
    else:
        start = np.random.default_rng(seed).uniform(0.5, 1.5, n) * np.sqrt(np.maximum(degree, 1e-3))
        values, vectors = needed("scipy.sparse.linalg").eigsh(
            normalised, k=number, which="LA", v0=start, tol=1e-5, ncv=max(2 * number + 1, 40)
        )
    order = np.argsort(-values, kind="stable")
    return 1 - values[order], vectors[:, order]


def laplacian_spectrum(affinity: Any, number: int | None = None) -> Any:
    """The eigenvalues of the symmetric normalised Laplacian of a graph, ascending.

    As many are 0 as the graph has connected components (von Luxburg 2007, proposition 4).

    Args:
        affinity: (n, n) symmetric, not negative: a tensor, an array, nested lists or a sparse matrix.
        number: only so many of the smallest; None for all.

    Returns:
        (n,) or (number,) float64; a tensor where a tensor was given, else an array.

    Raises:
        InvalidInput: not square, not symmetric, negative, or not finite.
    """
    matrix = affinity if hasattr(affinity, "tocsr") else as_array(affinity)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.shape[0]:
        raise InvalidInput(f"affinity: shape {tuple(matrix.shape)}\n  do: give a square matrix")
    entries = matrix.tocsr().data if hasattr(matrix, "tocsr") else matrix
    if not np.isfinite(entries).all() or (entries < 0).any():
        raise InvalidInput(
            "affinity: holds negative values, NaN or infinity\n  do: give weights of 0 or more"
        )
    if abs(matrix - matrix.T).max() > 1e-9 * max(1.0, entries.max(initial=0.0)):
        raise InvalidInput("affinity: not symmetric\n  do: give (A + Aᵀ)/2")
    return like(eigenpairs(matrix, number)[0], affinity)


def eigengap(eigenvalues: Any, most: int = 10) -> int:
    """The number of clusters by the largest gap: the k in 1 … most for which λ(k+1) − λ(k) is largest.

    Args:
        eigenvalues: of `laplacian_spectrum`, ascending; at least two.
        most: the largest number that is considered. The answer 1 means that there are no clusters.

    Raises:
        InvalidInput: fewer than two values, or not ascending.
    """
    values = as_array(eigenvalues).reshape(-1)
    if len(values) < 2:
        raise InvalidInput(f"eigenvalues: {len(values)} of them\n  do: give two or more")
    gaps = np.diff(values)
    if not np.isfinite(values).all() or gaps.min() < -1e-9:
        raise InvalidInput("eigenvalues: not ascending, or not finite\n  do: give them sorted")
    return int(np.argmax(gaps[:most])) + 1


def as_array(values: Any) -> NDArray[Any]:
    """An array of floating-point numbers from a tensor, an array or lists; float32 stays what it is."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    try:
        array = np.asarray(values)
        return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"not an array of numbers ({error})\n  do: give a tensor, an array or lists"
        ) from error


def like(values: NDArray[Any], given: Any) -> Any:
    """A tensor where a tensor was given, else the array."""
    return torch.from_numpy(np.ascontiguousarray(values)) if isinstance(given, torch.Tensor) else values
