"""The cache of captured graphs: each model is captured, canonised, analysed and checked once for each kind of input."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from relprop.engine import capture as capturing
from relprop.engine.analyse import Facts, analyse
from relprop.engine.batch import batch_axes, batch_size, map_samples, samples, states_of
from relprop.engine.canonise import canonise
from relprop.engine.graph import Graph, Node, Ref, value_of
from relprop.engine.isolate import LOCK, quietly, run_isolated
from relprop.engine.modules import apart, without_cache
from relprop.engine.ops import OPS
from relprop.engine.plan import Composite, Plan, refuse
from relprop.engine.propagate import HALF, Program, Weights, prepare, record
from relprop.engine.signature import length_free, signature_of, structure_of
from relprop.engine.sizes import fits, is_free, with_sizes
from relprop.engine.step import CACHED
from relprop.errors import CaptureError, InvalidInput, UnsupportedOperation
from relprop.explain.images import images_of, with_channels_last
from relprop.explain.inputs import check_ids

if TYPE_CHECKING:  # loaded when a walk is compiled
    from relprop.engine.propagate.compiled import CompiledWalks


@dataclass(slots=True)
class Batches:
    """Whether samples were found to get in a batch what they get alone; shared by the graphs of all lengths."""

    apart: bool = False


@dataclass(slots=True)
class Captured:
    """A canonised graph with its facts, and what is derived from it on first use.

    `checked`: it was found to compute what the model computes; `finite`: it has given finite outputs; `counts`: the numbers of samples for which that was asked
    apart, since the model may take another way for them; `batches`: whether samples leave each other alone. `images`: the inputs that run through it with their channels last
    in memory.
    """

    graph: Graph
    facts: Facts
    store: Weights = field(default_factory=Weights)
    programs: dict[Any, Program] = field(default_factory=dict)
    precision: torch.dtype | None = None  # the coarsest that carries relevance, once it is known
    bytes_per_sample: int | None = None  # of all values of the graph, once they are counted
    compiled: dict[int, CompiledWalks] = field(default_factory=dict)  # by the identity of their program
    lock: threading.RLock = field(default_factory=threading.RLock)
    checked: bool = False
    finite: bool = False
    counts: set[int] = field(default_factory=set)
    batches: Batches = field(default_factory=Batches)
    images: frozenset[str] = frozenset()


@dataclass(slots=True)
class Family:
    """A graph whose lengths are free, and what is derived from it that holds for every length."""

    graph: Graph
    store: Weights
    batches: Batches
    members: list[Any] = field(default_factory=list)  # the cache's keys of the lengths seen last


_CACHE: weakref.WeakKeyDictionary[Any, dict[Any, Captured]] = weakref.WeakKeyDictionary()
_FAMILIES: weakref.WeakKeyDictionary[Any, dict[Any, list[Family]]] = weakref.WeakKeyDictionary()
_LENGTHS = 64  # graphs of one family that are kept
_STRUCTURES = 8  # of one model, whose graphs are kept


def clear_cache() -> None:
    """Forget all captured graphs and everything derived from models' weights."""
    with LOCK:
        _CACHE.clear()
        _FAMILIES.clear()


def forget(model: Any) -> None:
    """Forget the captured graphs of a model."""
    with LOCK:
        _CACHE.pop(model, None)
        _FAMILIES.pop(model, None)


def captured_graph(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], fold: bool, check: bool = True
) -> Captured:
    """The canonised graph of the model for inputs of these shapes and types, captured at most once.

    It is found to compute what the model computes, unless `check` puts that off until somebody asks for it with a check:
    nothing may be said of the model by such a graph. A concrete graph holds for one sample: it is recorded anew each time,
    from the first sample of these inputs. Where the capture left lengths of sequences free, its graph serves inputs of
    another length.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    batch = batch_size((args, kwargs))
    inputs = tuple(signature_of(leaf, batch) for leaf in leaves)
    with LOCK:
        known = _CACHE.setdefault(model, {})
        key = (structure_of(model), str(spec), inputs, fold)
        captured = known.get(key)
        general = (*key[:2], tuple(length_free(leaf, batch) for leaf in leaves))
        kinds = _FAMILIES.setdefault(model, {})
        families = kinds.setdefault(general, [])
        if batch > 1:  # a model that mixes samples is captured anew, to be refused
            families[:] = [family for family in families if not family.graph.lone]
            captured = None if captured is not None and captured.graph.lone else captured
        if captured is not None and check and not (captured.checked or captured.graph.concrete):
            captured.checked = _verified(model, captured, args, kwargs)
            if not captured.checked:
                known.pop(key)
                families[:] = [family for family in families if family.store is not captured.store]
                captured = None
        if captured is None or captured.graph.concrete:
            captured = _relative(model, families, args, kwargs, key, check) or _new(
                model, families, args, kwargs, key, check, again=captured is not None
            )
            known[key] = captured
            _forget(known, families)
            _forget_structures(known, kinds)
        else:
            check_ids(captured.graph, leaves)
        return captured


def adopt(twin: torch.nn.Module, model: Any) -> None:
    """Let a deep copy of a model have the model's captured graphs: its weights, read live, may be others."""
    with LOCK:
        known, own = _CACHE.get(model, {}), structure_of(model)
        _CACHE[twin] = {
            (structure_of(twin), *key[1:]): Captured(
                captured.graph,
                captured.facts,
                checked=captured.checked,
                counts=set(captured.counts),
                batches=captured.batches,
                images=captured.images,
            )
            for key, captured in known.items()
            if key[0] == own and not captured.graph.concrete
        }


def _relative(
    model: Any, families: list[Family], args: tuple[Any, ...], kwargs: dict[str, Any], key: Any, check: bool
) -> Captured | None:
    """The graph of inputs of another length with this length set, if it computes what the model computes."""
    leaves = pytree.tree_leaves((args, kwargs))
    for family in families:
        if fits(family.graph, leaves):
            found = _prepared(model, family.graph, args, kwargs, key[-1], family.store, check)
            if found is not None:
                found.batches = family.batches
                family.members.append(key)
                return found
    return None


def _new(
    model: Any,
    families: list[Family],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: Any,
    check: bool,
    again: bool,
) -> Captured:
    """A new capture: with free lengths where that works, else for this length."""
    for free in (True, False):
        raw = _capture(model, args, kwargs, again, free)
        found = _prepared(model, raw, args, kwargs, key[-1], Weights(), check)
        if found is not None:
            if is_free(raw):
                families.append(Family(raw, found.store, found.batches, [key]))
            return found
        if not is_free(raw):
            break
    if not raw.concrete and isinstance(model, torch.nn.Module):
        with contextlib.suppress(CaptureError):  # a model that does other things while it is exported
            raw = _capture(model, args, kwargs, True, False)
            found = _prepared(model, raw, args, kwargs, key[-1], Weights(), check)
            if found is not None:
                return found
    raise CaptureError(
        "the captured graph does not compute what the model computes: its forward pass depends on"
        " chance, on the values of the input or on state outside its parameters\n"
        "  do: make the forward pass a function of its inputs and weights"
    )


def _prepared(
    model: Any,
    raw: Graph,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    fold: bool,
    store: Weights,
    check: bool,
) -> Captured | None:
    """The graph for these inputs, canonised and analysed; None where it does not compute what the model computes."""
    leaves = pytree.tree_leaves((args, kwargs))
    graph = with_sizes(raw, leaves)
    for folds in (True, False) if fold else (False,):  # folding may move scores that hang on rounding
        captured = _analysed(canonise(graph, folds), store)
        check_ids(captured.graph, leaves)
        captured.checked = check and _verified(model, captured, args, kwargs)
        if captured.checked or not check:
            return captured
    return None


def _forget(known: dict[Any, Captured], families: list[Family]) -> None:
    """Keep the graphs of the lengths seen last."""
    for family in families:
        while len(family.members) > _LENGTHS:
            known.pop(family.members.pop(0), None)


def _forget_structures(*caches: dict[Any, Any]) -> None:
    """Keep the graphs of the structures seen last: the code of a model that counts its calls reads something else every time."""
    for cache in caches:
        structures = list(dict.fromkeys(key[0] for key in cache))
        for key in [key for key in cache if key[0] in structures[:-_STRUCTURES]]:
            del cache[key]


def _capture(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], again: bool, free: bool) -> Graph:
    try:
        return capturing.capture(model, args, kwargs, again, free)
    except (CaptureError, UnsupportedOperation):
        if isinstance(model, torch.nn.Module):
            run_eagerly(model, *samples((args, kwargs), 1, states_of(model)))
        raise


def run_eagerly(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The model's own output. Raises `InvalidInput` where the model itself fails on these inputs."""
    try:
        return run_isolated(model, args, kwargs)
    except UnsupportedOperation:  # of an operator in a file
        raise
    except Exception as error:
        shapes = ", ".join(
            str(tuple(t.shape)) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)
        )
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidInput(
            f"inputs: the model itself fails on one sample of shape {shapes}: {first}\n"
            + (
                "  do: give ids below the size of the vocabulary, and no more tokens than the model has positions"
                if isinstance(error, IndexError)
                else f"  do: inputs.to({other})" + ("" if other == torch.int64 else ", scaled as in training")
                if (other := _taken(model, args, kwargs)) is not None
                else "  do: give inputs, their first dimension the batch, with which model(inputs) runs"
                if len(args) == 1 or kwargs
                else "  do: give inputs with which model(*inputs) runs, as a tuple or list is the model's arguments;"
                " of a data loader's batch, give the inputs alone"
            )
        ) from error


def _taken(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype | None:
    """The other type of numbers, real or whole, of which the model takes inputs that it fails on."""
    real = next((w.dtype for w in model.parameters() if w.is_floating_point()), torch.float32)
    for dtype in (real, torch.int64):

        def turned(x: Tensor, to: torch.dtype = dtype) -> Tensor:
            return x if x.is_floating_point() and to.is_floating_point else x.to(to)

        try:
            run_isolated(model, *pytree.tree_map_only(Tensor, turned, (args, kwargs)))
        except Exception:
            continue
        return dtype
    return None


def _analysed(graph: Graph, store: Weights) -> Captured:
    """The graph with its facts. Raises `UnsupportedOperation` before anything is computed."""
    captured = Captured(graph, analyse(graph, OPS), store, images=images_of(graph))
    refuse(graph, captured.facts)
    return captured


def _verified(model: Any, captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the graph computes what the model computes; asked once, before anything is said by it."""
    count = 2 if captured.graph.batched else 1
    given = samples((args, kwargs), count, states_of(model))
    _refuse_chance(model, captured, *given)
    if not isinstance(model, torch.nn.Module):
        return True
    if captured.images:
        with contextlib.suppress(RuntimeError):  # an operation that does not take values in that order
            if _agrees(model, captured, *given):
                return True
        captured.images = frozenset()
    return _agrees(model, captured, *given)


def _refuse_chance(model: Any, captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise `CaptureError` where the outputs hang on random numbers that the graph draws."""
    drawing = [node for node in captured.graph.nodes if _draws(node)]
    if not drawing:
        return
    with quietly():  # once, or all would draw the same
        one, *others = (_computed(model, captured, args, kwargs) for _ in range(_DRAWS))
    if all(_equal(a, b) for other in others for a, b in zip(one, other, strict=True)):
        return
    raise CaptureError(
        f"the forward pass is random: {drawing[0].operation} at {drawing[0].where()} draws random numbers, although the model"
        " is in eval mode\n  do: draw them outside of the model and give them to it as an input, or leave them out"
    )


_DRAWS = 5  # a choice drawn at random may come out the same


def _draws(node: Node) -> bool:
    """Whether a node draws random numbers (what has a row in the table says itself when it does)."""
    function = node.function
    seeded = (
        isinstance(function, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in function.tags
    )
    return seeded and node.operation not in OPS


def check_count(model: Any, captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise `CaptureError` where the model takes another way for so many samples than for the two that it was captured with:
    for a single one, or for a number that the capture tells apart. Asked once for each number."""
    graph, count = captured.graph, batch_size((args, kwargs))
    if not graph.batched or count in captured.counts:
        return
    with LOCK:
        if not graph.takes(count) and not _agrees(model, captured, args, kwargs):
            raise CaptureError(
                f"the model computes something else for {count} samples at a time than for two: its forward pass depends on"
                f" how many there are\n  do: explain {_other_counts(graph)} (batch_size=…)"
            )
        captured.counts.add(count)


def check_batch(model: Any, captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise `CaptureError` where a sample gets another output in a batch than alone: then what explains it is not in it."""
    if not leaves_alone(model, captured, args, kwargs):
        raise CaptureError(
            "the model gives a sample another output beside other samples than alone: it mixes the samples of a batch, goes by"
            " their places in it, or takes an input for samples that is none\n  do: explain one sample at a time; make an"
            " input that all samples share another size than the batch"
        )


def leaves_alone(model: Any, captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether samples get in a batch what they get alone. Asked once, of the first two that differ; a graph recorded for one
    sample holds for that sample whatever stands beside it."""
    batch = batch_size((args, kwargs))
    if batch == 1 or captured.graph.concrete or captured.batches.apart:
        return True
    with LOCK:
        states = states_of(model)
        axes = batch_axes((args, kwargs), states)

        def taken(*indices: int) -> Any:
            return map_samples(
                lambda leaf, axis: leaf.detach()[(slice(None),) * axis + (list(indices),)],
                (args, kwargs),
                axes,
            )

        first = taken(0)
        for index in range(1, min(batch, _TRIED)):
            if all(map(_equal, pytree.tree_leaves(first), pytree.tree_leaves(taken(index)))):
                continue
            if apart(lambda *given: _outputs(model, captured, *given), taken(0, index), axes) is False:
                return False
            captured.batches.apart = True
            break
    return True


def _outputs(model: Any, captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What the graph computes of several samples; the model itself, where the graph is for one."""
    if not captured.graph.batched:
        module = model.module() if isinstance(model, ExportedProgram) else model
        return pytree.tree_leaves(run_isolated(module, args, without_cache(module, kwargs)))
    with quietly():
        return _computed(model, captured, args, kwargs)


def _computed(
    model: Any,
    captured: Captured,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    images: frozenset[str] = frozenset(),
) -> list[Any]:
    """The outputs that the graph computes, with the channels of these images last."""
    leaves = leaves_of(model, captured.graph, args, kwargs)
    values = computed(captured, with_channels_last(leaves, images))
    return [value_of(values, ref) for ref in captured.graph.outputs()]


def computed(
    captured: Captured,
    leaves: Mapping[str, Any],
    keep: Iterable[Ref] = (),
    autocast: torch.dtype | None = None,
) -> dict[str, Any]:
    """The values that the graph computes of those of inputs, weights and constants: its outputs, and those that are to be kept."""
    program = prepare(captured.graph, captured.facts, Plan((), Composite()), keep)
    return record(program, leaves, Weights(), autocast=autocast)


_TRIED = 8  # samples that are compared with the first


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else True


def _other_counts(graph: Graph) -> str:
    """How many samples at a time a graph is known to be right for."""
    known = [count for count in range(2, 65) if graph.takes(count)]
    joined = known == [*range(known[0], known[-1] + 1)]
    return f"{known[0]} to {known[-1]} at a time" if joined else f"{', '.join(map(str, known))} at a time"


def _agrees(model: Any, captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the graph and the model compute the same of these samples. That a model drops the dimension of a single sample
    is no difference."""
    module = model.module() if isinstance(model, ExportedProgram) else model
    output = run_eagerly(module, args, without_cache(module, kwargs))
    expected = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    if len(captured.graph.outputs()) < len(expected):
        return False
    with quietly():  # a graph that draws random numbers leaves the caller's as they were
        found = _computed(model, captured, args, kwargs, captured.images)
    single = captured.graph.batched and batch_size((args, kwargs)) == 1
    pairs = zip(found, expected, strict=False)
    return all(_close(*((a.flatten(), b.flatten()) if single else (a, b))) for a, b in pairs)


def _close(found: Tensor, value: Tensor) -> bool:
    """Whether a value of the graph is the model's, but for rounding. A block at a time: the scores of a whole vocabulary at
    every position are large."""
    loose = 5e-2 if value.dtype in HALF else 1e-3 if value.dtype == torch.float32 else 1e-6
    if found.shape != value.shape:
        return False
    found, value = found.detach().flatten(), value.detach().flatten()
    blocks = list(zip(torch.split(found, CACHED), torch.split(value, CACHED), strict=True))
    scale = max([0.01, *(float(own.abs().max()) for _, own in blocks if own.numel())])
    return all(
        torch.allclose(one, own, atol=loose * scale, rtol=loose, equal_nan=True) for one, own in blocks
    )


def leaves_of(model: Any, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The values of inputs, weights (read live) and constants by node name."""
    flat = pytree.tree_leaves((args, kwargs))
    values: dict[str, Any] = {}
    with LOCK:
        for node in graph.nodes:
            if node.kind == "input":
                values[node.name] = _ordinary(flat[int(node.origin)])
            elif node.kind == "weight":
                values[node.name] = _ordinary(weight_of(model, node.origin))
            elif node.kind == "constant":
                values[node.name] = graph.constants[node.origin]
    return values


def _ordinary(tensor: Tensor) -> Tensor:
    """The tensor without its history; one made in inference mode as a copy, which autograd takes."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def weight_of(model: Any, path: str) -> Tensor:
    """The parameter or buffer at a path of the model, as it is now."""
    if isinstance(model, ExportedProgram):
        found = model.state_dict.get(path)
        return model.constants[path] if found is None else found  # type: ignore[no-any-return]
    owner, name = _split(path)
    module = model
    for part in owner:
        module = module._modules.get(part)
        if module is None:
            return getattr(model.get_submodule(".".join(owner)), name)  # type: ignore[no-any-return]
    found = module._parameters.get(name)
    if found is None:
        found = module._buffers.get(name)
    return getattr(module, name) if found is None else found  # type: ignore[no-any-return]


@lru_cache(maxsize=1 << 16)
def _split(path: str) -> tuple[tuple[str, ...], str]:
    *owner, name = path.split(".")
    return tuple(owner), name


def weights_by_node(graph: Graph, values: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights among the values."""
    return {node.name: values[node.name] for node in graph.nodes if node.kind == "weight"}
