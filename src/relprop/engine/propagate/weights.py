"""Values that weights alone make: kept for as long as the weights stay as they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Ref


class Weights:
    """Values that depend on weights alone, computed once and kept for as long as the weights stay as they are.

    A change is noticed by the version counter, the place in memory and a checksum of every weight that something was
    derived from (writes through `.data` move no counter).
    """

    def __init__(self) -> None:
        self._values: dict[tuple[Ref, str], Any] = {}
        self._weights: Mapping[str, Tensor] = {}
        self._token: tuple[Any, ...] | None = None
        self._lock = threading.RLock()

    def fresh(self, weights: Mapping[str, Tensor]) -> None:
        """Forget everything where a weight has changed since it was derived."""
        with self._lock:
            if self._values and fingerprint(weights) != self._token:
                self._values.clear()
            self._weights = weights if not self._values else {}

    def get(self, key: tuple[Ref, str], make: Callable[[], Any]) -> Any:
        """The kept value, made on first use."""
        with self._lock:
            if key not in self._values:
                if not self._values:
                    self._token, self._weights = fingerprint(self._weights), {}
                self._values[key] = make()
            return self._values[key]


def fingerprint(weights: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """What tells one state of the weights from another: place, version, and a checksum that knows the order of rows."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for w in weights.values():
        groups.setdefault((w.dtype, w.device), []).append(_checksum(w))
    sums = [value for group in groups.values() for value in torch.stack(group).tolist()]
    marks = [
        (w.data_ptr(), None if w.is_inference() else w._version, w.shape, w.dtype) for w in weights.values()
    ]
    return (*marks, *sums)


def _checksum(weight: Tensor) -> Tensor:
    """Σ_k k Σ_j w_kj over the rows k of a weight."""
    if weight.dim() == 0 or not weight.is_floating_point():
        return weight.sum()
    rows = weight.reshape(weight.shape[0], -1).sum(1)
    return rows @ torch.arange(1, len(rows) + 1, dtype=rows.dtype, device=rows.device)
