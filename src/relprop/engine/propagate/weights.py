"""Values that weights alone make: kept for as long as the weights stay as they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Graph, Ref, parents


class Weights:
    """Values that depend on weights alone, computed once and kept for as long as the weights stay as they are.

    A change is noticed by the version counter, the place in memory and the sums of the rows of every weight that
    something was computed from (writes through `.data` move no counter); where only views were made of a weight, by its
    place: a view shows what is written to it.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[Ref, str], Any] = {}
        self._weights: Mapping[str, Tensor] = {}
        self._sources: Mapping[str, frozenset[str]] = {}
        self._places: dict[str, tuple[Any, ...]] = {}  # of the weights that kept values were derived from
        self._sums: dict[str, Tensor] = {}  # of those that they were computed from
        self._before: list[Tensor] = []  # these sums, joined
        self._lock = threading.RLock()

    def fresh(self, weights: Mapping[str, Tensor], graph: Graph | None = None) -> None:
        """Take the weights by the names of their nodes in the graph; forget everything that was derived from them where
        one of these has changed since."""
        with self._lock:
            self._weights = weights
            if graph is not None and not self._sources:
                self._sources = sources_of(graph)
            if self._values and not self._unchanged():
                self._values.clear()
                self._places.clear()
                self._sums.clear()
                self._before.clear()

    def get(self, key: tuple[Ref, str], make: Callable[[], Any]) -> Any:
        """The kept value, made on first use."""
        with self._lock:
            if key not in self._values:
                value = make()
                self._note(key[0].name, value)
                self._values[key] = value
            return self._values[key]

    def kept(self) -> dict[tuple[Ref, str], Any]:
        """All values that are kept now."""
        with self._lock:
            return dict(self._values)

    def _note(self, name: str, value: Any) -> None:
        """Take down the state of the weights that a value was derived from."""
        own = self._sources.get(name)
        names = [n for n in (self._weights if own is None else own) if n in self._weights]
        view = isinstance(value, Tensor) and len(names) == 1 and _same_memory(value, self._weights[names[0]])
        for n in names:
            self._places.setdefault(n, _place(self._weights[n]))
            if not view and n not in self._sums:
                self._sums[n] = row_sums(self._weights[n]).clone()
                self._before.clear()

    def _unchanged(self) -> bool:
        if any(n not in self._weights or _place(self._weights[n]) != p for n, p in self._places.items()):
            return False
        self._before = self._before or _joined(self._sums.values())
        now = _joined(row_sums(self._weights[n]) for n in self._sums)
        return all(map(torch.equal, now, self._before))


def sources_of(graph: Graph) -> dict[str, frozenset[str]]:
    """From the name of each node to those of the weights that it is computed from, directly or not."""
    found: dict[str, frozenset[str]] = {}
    for node in graph.nodes:
        own = frozenset((node.name,)) if node.kind == "weight" else frozenset[str]()
        found[node.name] = own.union(*(found[ref.name] for ref in parents(node)))
    return found


def row_sums(weight: Tensor) -> Tensor:
    """Σ_j w_kj of each row k of a weight; of a vector the vector itself."""
    weight = stored(weight)
    if weight.dim() == 1:
        return weight
    return weight.flatten(1).sum(1) if weight.dim() > 1 else weight.reshape(1)


def _place(weight: Tensor) -> tuple[Any, ...]:
    version = None if weight.is_inference() else weight._version
    own = stored(weight)
    return own.data_ptr(), version, weight.shape, own.stride(), weight.dtype, weight.device


def stored(weight: Tensor) -> Tensor:
    """The numbers that a tensor has in memory: those of a sparse matrix without their places."""
    if weight.layout == torch.strided:
        return weight
    return weight._values() if weight.layout == torch.sparse_coo else weight.values()


def _same_memory(value: Tensor, weight: Tensor) -> bool:
    return stored(value).untyped_storage().data_ptr() == stored(weight).untyped_storage().data_ptr()


def _joined(sums: Iterable[Tensor]) -> list[Tensor]:
    """Vectors of a type on a device as one: a comparison then is one operation."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for vector in sums:
        groups.setdefault((vector.dtype, vector.device), []).append(vector)
    return [torch.cat(group) for group in groups.values()]
