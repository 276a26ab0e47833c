"""A walk as one compiled function, for values of fixed shapes: made after a walk that has seen which ways are taken."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.engine.audit import Entry
from relprop.engine.exported import first_line
from relprop.engine.graph import Ref
from relprop.engine.isolate import LOCK, quietly, without_autocast
from relprop.engine.looks import Looks, Place, seen_by
from relprop.engine.propagate.book import Walk
from relprop.engine.propagate.program import Program
from relprop.engine.propagate.walk import walk
from relprop.engine.propagate.weights import Weights
from relprop.errors import CaptureError

BACKENDS = ("inductor", "eager")
"""What runs a traced walk: torch's compiler, or its operations one by one, without a compiler."""

_PATIENCE = 3
"""How often a walk is traced again because what one had seen did not hold; after that none goes by what was seen."""

Key = tuple[Ref, str]


@dataclass(frozen=True, slots=True)
class Traced:
    """A walk as a function of tensors: `run` takes those leaves of (values, seeds) that it `reads`, and what is `derived`
    from the weights.

    It returns the relevance of the inputs (`names`), the accounts as one tensor (N, B), and the conditions at `places`,
    without which its numbers do not count.
    """

    run: Callable[..., Sequence[Tensor]]
    reads: tuple[int, ...]
    derived: tuple[Key, ...]
    names: tuple[str, ...]
    entries: tuple[Entry, ...]  # the accounts, without numbers
    places: tuple[Place, ...]


@dataclass(slots=True)
class _Kind:
    """Walks over values of one kind: what they have seen, the function they were compiled to, and how often it failed."""

    seen: dict[Place, bool]
    traced: Traced | None = None
    failed: int = 0

    def see(self, seen: Mapping[Place, bool], failed: Sequence[Place]) -> None:
        """Take in what one more walk has seen, which the function did not hold for at some places."""
        self.failed += bool(failed)
        self.seen = {
            place: held and self.seen.get(place, True) and place not in failed and self.failed < _PATIENCE
            for place, held in seen.items()
        }


@dataclass(slots=True)
class CompiledWalks:
    """The compiled walks of a program, by the kind of their values."""

    kinds: dict[Any, _Kind] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def walk(
        self,
        program: Program,
        values: dict[str, Any],
        seeds: Mapping[Ref, Tensor],
        store: Weights,
        batch: int,
        audit: bool = True,
        *,
        again: Callable[[], dict[str, Any]],
        backend: str = "inductor",
    ) -> Walk:
        """What `walk` returns, by a function compiled for values of these shapes.

        The first walk over values of a kind is made operation by operation, and so is the first after a change of weights
        that something is derived from. It is made so as well where something does not hold that the walks before had
        seen, and the function is then made anew for all that was seen. The walk takes the `values` for itself; `again`
        gives them a second time.

        Raises:
            CaptureError: there is no compiler, or the walk hangs on values in a way that no one function has.
        """
        key = (audit, backend, batch, _kind_of((values, dict(seeds))))
        kind = self.kinds.get(key)
        traced = None if kind is None else kind.traced
        failed: tuple[Place, ...] = ()
        if traced is not None:
            found = _run(traced, values, seeds, store)
            if isinstance(found, Walk):
                return found
            if found is not None:
                values, failed = again(), found
        shapes = _shapes((values, dict(seeds))) if traced is None or failed else None
        looks = Looks()
        with seen_by(looks):
            way = walk(program, values, seeds, store, batch, audit, release=True)
        if shapes is None:
            return way
        with self.lock:
            kind = self.kinds.setdefault(key, _Kind(dict(looks.seen)))
            if kind.traced is traced:  # no other thread was faster
                kind.see(looks.seen, failed)
                kind.traced = trace(program, shapes, store, batch, audit, kind.seen, backend)
        return way


def _kind_of(structure: Any) -> Any:
    """The shapes, types and places of all tensors, and everything else as it is."""
    leaves, spec = pytree.tree_flatten(structure)
    return spec, tuple(
        (leaf.shape, leaf.stride(), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf
        for leaf in leaves
    )


def _shapes(structure: Any) -> Any:
    """The structure with tensors that have no values."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        return pytree.tree_map_only(Tensor, _empty_like, structure)


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


class _Derived:
    """In place of `Weights` while a walk is traced: what is kept of the weights is an input of the traced function."""

    def __init__(self, kept: Mapping[Key, Any]) -> None:
        self._kept = kept

    def get(self, key: Key, make: Callable[[], Any]) -> Any:
        """The kept value; computed by the function itself where none was kept."""
        return self._kept[key] if key in self._kept else make()


def trace(
    program: Program,
    shapes: tuple[dict[str, Any], dict[Ref, Tensor]],
    store: Weights,
    batch: int,
    audit: bool,
    seen: Mapping[Place, bool],
    backend: str = "inductor",
) -> Traced:
    """The walk over values and seeds of these shapes as one function, which goes by what was seen."""
    from torch.fx.experimental.proxy_tensor import make_fx

    parts = {key: part for key, part in store.kept().items() if isinstance(part, Tensor)}
    leaves, spec = pytree.tree_flatten(shapes)
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    with leaves[places[0]].fake_mode:
        given = [*(leaves[index] for index in places), *(_empty_like(part) for part in parts.values())]
    looks = Looks(dict(seen), traced=True)
    found: list[Walk] = []

    def function(*tensors: Tensor) -> list[Tensor]:
        own = list(leaves)
        for index, tensor in zip(places, tensors, strict=False):
            own[index] = tensor
        values, seeds = pytree.tree_unflatten(own, spec)
        kept: Any = _Derived(dict(zip(parts, tensors[len(places) :], strict=True)))
        with seen_by(looks):
            way = walk(program, values, seeds, kept, batch, audit)
        found.append(way)
        numbers = [number for entry in way.entries for number in _numbers(entry)]
        numbers += [] if way.passed is None else [way.passed]
        accounts = [torch.stack(numbers)] if numbers else []
        conditions = [torch.stack([*looks.conditions.values()])] if looks.conditions else []
        return [*way.inputs.values(), *accounts, *conditions]

    with LOCK, quietly(), torch.no_grad():
        try:
            module = make_fx(function)(*given)
        except Exception as error:
            raise CaptureError(
                f"compile: the walk is no one function, it hangs on values: {first_line(error)}\n"
                "  do: leave compile out for this model and these rules"
            ) from error
        read = _read_inputs(module)
        run = module if backend == "eager" else _compiled(module, [given[number] for number in read])
    keys, (way,) = tuple(parts), found
    return Traced(
        run,
        tuple(places[number] for number in read if number < len(places)),
        tuple(keys[number - len(places)] for number in read if number >= len(places)),
        tuple(way.inputs),
        tuple(_without_numbers(entry) for entry in way.entries),
        tuple(looks.conditions),
    )


def _read_inputs(module: torch.fx.GraphModule) -> list[int]:
    """The numbers of the inputs that a traced function reads; the others are taken away from it."""
    module.graph.eliminate_dead_code()
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    read = [number for number, node in enumerate(inputs) if node.users]
    for node in inputs:
        if not node.users:
            module.graph.erase_node(node)
    module.recompile()
    return read


def _compiled(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """The function by torch's compiler."""
    import torch._inductor

    try:
        return torch._inductor.compile(module, [*inputs], {"layout_optimization": False})  # type: ignore[no-any-return]
    except Exception as error:
        raise compiler_fails(error) from error


def compiler_fails(error: BaseException) -> CaptureError:
    """What a user is told when torch's compiler raises."""
    cause = getattr(error, "inner_exception", error)
    return CaptureError(
        f"compile: torch's compiler fails: {first_line(cause)}\n"
        "  do: install a C++ compiler that torch finds (g++ or clang++; CXX names another), or leave compile out"
    )


def _run(
    traced: Traced, values: dict[str, Any], seeds: Mapping[Ref, Tensor], store: Weights
) -> Walk | tuple[Place, ...] | None:
    """The walk; the places of conditions that do not hold; None where what is derived from the weights is not there."""
    kept = store.kept()
    if any(key not in kept for key in traced.derived):
        return None
    leaves = pytree.tree_leaves((values, dict(seeds)))
    given = [*(leaves[index] for index in traced.reads), *(kept[key] for key in traced.derived)]
    values.clear()
    del leaves, kept
    with without_autocast(), torch.no_grad():
        results = list(traced.run(*given))
    if traced.places:
        held = results.pop().tolist()
        if not all(held):
            return tuple(place for place, own in zip(traced.places, held, strict=True) if not own)
    way = Walk(inputs=dict(zip(traced.names, results, strict=False)))
    if len(results) > len(traced.names):
        numbers = iter(results[-1].unbind())
        way.entries = [_with_numbers(entry, numbers) for entry in traced.entries]
        way.passed = next(numbers, None)
    return way


def _numbers(entry: Entry) -> list[Tensor]:
    size = [] if entry.magnitude is None else [entry.magnitude]
    return [entry.received, entry.passed, *entry.absorbed.values(), *size]


_NOTHING = torch.empty(0)


def _without_numbers(entry: Entry) -> Entry:
    size = None if entry.magnitude is None else _NOTHING
    absorbed = dict.fromkeys(entry.absorbed, _NOTHING)
    return dataclasses.replace(entry, received=_NOTHING, passed=_NOTHING, absorbed=absorbed, magnitude=size)


def _with_numbers(entry: Entry, numbers: Any) -> Entry:
    received, passed = next(numbers), next(numbers)
    absorbed = {reason: next(numbers) for reason in entry.absorbed}
    size = None if entry.magnitude is None else next(numbers)
    return dataclasses.replace(entry, received=received, passed=passed, absorbed=absorbed, magnitude=size)
