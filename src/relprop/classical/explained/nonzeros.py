"""Sparse rows as lists of nonzeros, a part of the batch at a time, and relevance of listed values as a sparse array again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

LISTED = 2**19
"""The most values that are listed at a time."""

FILLED, SMALL = 4, 2**16
"""A list of rows of different lengths, filled up to the longest, has at most so many times their values, or is small."""


def listed(table: Any) -> tuple[Tensor, Tensor]:
    """The nonzeros of a CSR array as rows of one length, a power of two: values and columns, (B, K)."""
    counts = np.diff(table.indptr)
    length = _length(counts.max(initial=1))
    values = np.zeros((table.shape[0], length))
    columns = np.zeros((table.shape[0], length), dtype=np.int64)
    row, place = _places(table)
    values[row, place], columns[row, place] = table.data, table.indices
    return torch.from_numpy(values), torch.from_numpy(columns)


def unlisted(table: Any, values: Tensor) -> Tensor:
    """What stands in a list (B, K) of the nonzeros of a CSR array, in the order of its data, (N,)."""
    row, place = _places(table)
    return values[torch.from_numpy(row), torch.from_numpy(place)]


def parts(table: Any) -> Iterator[tuple[int, int]]:
    """Consecutive rows of a CSR array that are listed together: the first and the one behind the last.

    One long row does not lengthen all others: it ends a part, as does a list of more than `LISTED` values.
    """
    start, longest = 0, 1
    for row, stop in enumerate(table.indptr[1:]):
        own = _length(stop - table.indptr[row])
        longest = max(longest, own)
        size = (row + 1 - start) * longest
        allowed = min(LISTED, max(SMALL, FILLED * int(stop - table.indptr[start])))
        if row > start and size > allowed:
            yield start, row
            start, longest = row, own
    yield start, table.shape[0]


def _length(count: Any) -> int:
    return 1 << max(0, int(count) - 1).bit_length()


def _places(table: Any) -> tuple[Any, Any]:
    """Of each nonzero its row, and its place in the row's list."""
    row = np.repeat(np.arange(table.shape[0]), np.diff(table.indptr))
    return row, np.arange(table.nnz) - np.repeat(table.indptr[:-1], np.diff(table.indptr))


def with_data(table: Any, data: Tensor) -> Any:
    """A CSR array of the same places with other values (N,)."""
    from scipy import sparse

    return sparse.csr_array((data.numpy(), table.indices, table.indptr), shape=table.shape)


def sparse_of(relevance: Tensor) -> Any:
    """A tensor (B, D) as a CSR array."""
    from scipy import sparse

    return sparse.csr_array(relevance.numpy())


def csr_tensor(table: Any) -> Tensor:
    """A CSR array as a sparse tensor in float64."""
    arrays = (table.indptr, table.indices, table.data)
    rows, columns, values = (torch.from_numpy(np.ascontiguousarray(part)) for part in arrays)
    with warnings.catch_warnings(
        action="ignore", category=UserWarning
    ):  # CSR tensors are in beta, says torch
        return torch.sparse_csr_tensor(
            rows.long(), columns.long(), values.double(), size=table.shape, check_invariants=False
        )
