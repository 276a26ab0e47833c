"""The intermediate representation: a functional graph of ATen operations, frozen and checked when built.

Every front end produces a `Graph`; everything behind it reads one. Nothing here knows where a graph came from.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from operator import itemgetter
from typing import Any, Literal

import torch
from torch.utils import _pytree as pytree

from relprop.errors import CaptureError


class Ref(tuple[Any, ...]):
    """One value of the graph: the output of the node `name`, or its part `index` where a node has several outputs.

    A tuple, because tuples are fast keys. The name stands last in it: transformers' outputs take a pair that begins with
    a string for a field of theirs and its value.
    """

    __slots__ = ()

    def __new__(cls, name: str, index: int | None = None) -> Ref:
        """The value of a node, or a part of it."""
        return tuple.__new__(cls, (index, name))

    name: str = property(itemgetter(1))  # type: ignore[assignment]
    index: int | None = property(itemgetter(0))  # type: ignore[assignment]  # the tuple's own is not needed

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.name, self.index

    def __repr__(self) -> str:
        return f"Ref({self.name!r}{'' if self.index is None else f', {self.index}'})"


@dataclass(frozen=True, slots=True)
class Size:
    """A size among the arguments of an operation that the capture left free (`engine.sizes`)."""

    expression: Any

    def __str__(self) -> str:
        return str(self.expression)


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of a value before it is computed. Sizes of the batch are as in the example (two samples)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    batch: tuple[int, ...] = ()  # the dimensions whose size grows with the batch
    sizes: tuple[Any, ...] = field(default=(), compare=False)  # the shape in symbols, where some are free

    @property
    def numel(self) -> int:
        """How many numbers it has, of two samples."""
        return math.prod(self.shape)

    def without(self, dimension: int) -> Meta:
        """That of a value without one of its dimensions."""
        shape = (*self.shape[:dimension], *self.shape[dimension + 1 :])
        batch = tuple(d - (d > dimension) for d in self.batch if d != dimension)
        return Meta(shape, self.dtype, batch)

    def __str__(self) -> str:
        sizes = (
            "B" if d in self.batch and s == 2 else f"{s // 2}·B" if d in self.batch else str(s)
            for d, s in enumerate(self.shape)
        )
        return f"[{', '.join(sizes)}] {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True, slots=True)
class Node:
    """One step of the graph.

    `kind` says where its value comes from: an `input` of the call, a `weight` (parameter or buffer, read live from
    the model by its path `origin`), a `constant` of the graph (`origin` is its key) or a `call` of `function`.
    """

    name: str
    kind: Literal["input", "weight", "constant", "call"]
    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    module: str = ""  # path of the module that ran it, "layer1.0.conv1"; "" is the model itself
    module_class: str = ""  # qualified name of that module's class
    calls: tuple[str, ...] = (
        "",
    )  # the calls of the modules around it: "", "block", "block.relu@1" (a second call)
    source: str = ""  # file and line that ran it: "net.py:41"
    folded: str = ""  # the batch normalisation that was folded into it
    meta: Meta | tuple[Meta | None, ...] | None = None
    _operation: str = field(
        default="", init=False, compare=False, repr=False
    )  # worked out when first asked for
    _parents: tuple[Ref, ...] | None = field(
        default=None, init=False, compare=False, repr=False
    )  # so are these

    @property
    def operation(self) -> str:
        """The name of what the node computes, as messages and tables print it: `aten.conv2d.default`."""
        if not self._operation:
            name = self.kind if self.function is None else name_of(self.function)
            object.__setattr__(self, "_operation", name)
        return self._operation

    @property
    def metas(self) -> tuple[Meta, ...]:
        """What is known of its value, or of each of its parts."""
        found = self.meta if isinstance(self.meta, tuple) else (self.meta,)
        return tuple(meta for meta in found if meta is not None)

    def where(self) -> str:
        """Module path, source line and shape, for messages."""
        module = self.module or "the model itself"
        return f"{self.name} ({module}{', ' + self.source if self.source else ''})"


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in the order in which they run, the input values, and the outputs as a nested structure of `Ref`s."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    output: Any
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    batched: bool = True  # False: captured for one sample; a batch is walked sample by sample
    concrete: bool = False  # True: recorded from one call; holds for that sample only
    lone: bool = False  # True: of a single sample given to a model that would mix it with others
    shared: frozenset[str] = (
        frozenset()
    )  # inputs without a batch, the same for all samples: they are not explained
    free: Mapping[Any, tuple[int, int] | None] = field(
        default_factory=dict
    )  # symbols in shapes: the input and dimension that have their size (None: the batch); see `engine.sizes`
    sized: frozenset[str] = frozenset()  # nodes that hang on sizes that were free
    conditions: tuple[Any, ...] = ()  # under which a number of samples takes the way that was captured

    def __post_init__(self) -> None:
        """Check that every name is defined once, before it is used."""
        seen: set[str] = set()
        for node in self.nodes:
            for ref in parents(node):
                if ref.name not in seen:
                    raise CaptureError(
                        f"graph: {node.where()} reads {ref.name}, which is not defined before it"
                    )
            if node.name in seen:
                raise CaptureError(f"graph: {node.name} is defined twice")
            seen.add(node.name)
        for ref in self.outputs():
            if ref.name not in seen:
                raise CaptureError(f"graph: the output {ref.name} is not defined")

    def takes(self, count: int) -> bool:
        """Whether so many samples are known to take the way through the model that was captured with two."""
        numbers = {symbol: count for symbol, place in self.free.items() if place is None}
        asked = (condition.subs(numbers) for condition in self.conditions)
        return count == 2 or (count > 2 and all(found == True for found in asked))  # noqa: E712  # it may stay undecided

    def outputs(self) -> list[Ref]:
        """All values that the graph returns, in order."""
        leaves = pytree.tree_leaves(self.output, is_leaf=lambda leaf: isinstance(leaf, Ref))
        return [leaf for leaf in leaves if isinstance(leaf, Ref)]

    def __getitem__(self, name: str) -> Node:
        """The node of that name (linear search; for messages and tests)."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)


def name_of(function: Callable[..., Any]) -> str:
    """The printed name of an operation: `aten.relu.default`, `python getitem`, `relprop.padded_conv`."""
    if isinstance(function, torch._ops.OpOverload):
        return _printed(function)
    module = getattr(function, "__module__", "") or ""
    prefix = "relprop." if module.startswith("relprop") else "python "
    return prefix + str(getattr(function, "__name__", function))


@cache
def _printed(function: torch._ops.OpOverload[Any, Any]) -> str:
    return str(function)


def refs(structure: Any) -> Iterator[Ref]:
    """All `Ref`s in a nested structure of lists, tuples, dicts and slices, in order of appearance."""
    if isinstance(structure, Ref):
        yield structure
    elif isinstance(structure, (list, tuple)):
        for item in structure:
            yield from refs(item)
    elif isinstance(structure, dict):
        for item in structure.values():
            yield from refs(item)
    elif isinstance(structure, slice):
        yield from refs((structure.start, structure.stop, structure.step))


def replace_refs(structure: Any, new: Callable[[Ref], Any]) -> Any:
    """The same structure with every `Ref` r replaced by new(r)."""
    if isinstance(structure, Ref):
        return new(structure)
    if isinstance(structure, (list, tuple)):
        items = [replace_refs(item, new) for item in structure]
        return items if isinstance(structure, list) else tuple(items)
    if isinstance(structure, dict):
        return {key: replace_refs(item, new) for key, item in structure.items()}
    if isinstance(structure, slice):
        return slice(*(replace_refs(p, new) for p in (structure.start, structure.stop, structure.step)))
    return structure


Places = tuple[tuple[int, Ref], ...] | None
"""Where arguments are values of other nodes: position and value; None where one lies within a list."""


def places_of(args: tuple[Any, ...]) -> Places:
    """The places of the arguments that are `Ref`s, worked out once for `filled`."""
    if any(True for item in args if not isinstance(item, Ref) for _ in refs(item)):
        return None
    return tuple((i, item) for i, item in enumerate(args) if isinstance(item, Ref))


def filled(args: tuple[Any, ...], places: Places, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments with the values that they name; None for one that is not held."""
    if places is None:
        every: tuple[Any, ...] = replace_refs(args, lambda ref: part_of(values, ref))
        return every
    found = [*args]
    for position, ref in places:
        found[position] = part_of(values, ref)
    return tuple(found)


def part_of(values: Mapping[str, Any], ref: Ref) -> Any:
    """The value at `ref`, of values by node name; None where it is not held."""
    held = values.get(ref.name)
    return held if ref.index is None or held is None else held[ref.index]


def parents(node: Node) -> tuple[Ref, ...]:
    """The values that a node reads, in order of appearance (arguments first, then keywords)."""
    found = node._parents
    if found is None:
        found = (*refs(node.args), *refs(node.kwargs))
        object.__setattr__(node, "_parents", found)
    return found


def consumers(graph: Graph) -> dict[Ref, list[str]]:
    """For each value, the names of the nodes that read it (the word "output" where the graph returns it)."""
    readers: dict[Ref, list[str]] = {}
    for node in graph.nodes:
        for ref in parents(node):
            readers.setdefault(ref, []).append(node.name)
    for ref in graph.outputs():
        readers.setdefault(ref, []).append("output")
    return readers


def of_weights(graph: Graph) -> set[str]:
    """The names of the nodes whose values hang on weights and constants alone."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.kind in ("weight", "constant") or (
            node.kind == "call" and all(ref.name in found for ref in parents(node))
        ):
            found.add(node.name)
    return found


@cache
def signature(function: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of an operation's arguments, in its order, and the defaults of those that have one."""
    schema = getattr(function, "_schema", None)
    if schema is None:
        given = inspect.signature(function).parameters.values()
        return tuple(p.name for p in given), {p.name: p.default for p in given if p.default is not p.empty}
    arguments = schema.arguments
    return tuple(a.name for a in arguments), {
        a.name: a.default_value for a in arguments if a.has_default_value()
    }


def by_name(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call by their names, in the operation's order: None for those left out that have no default."""
    names, defaults = signature(function)
    return dict.fromkeys(names) | defaults | dict(zip(names, args, strict=False)) | {**kwargs}


def arguments_of(node: Node) -> dict[str, Any]:
    """What a call reads, by the names of its operation's arguments: values of the graph as `Ref`s."""
    assert node.function is not None
    return by_name(node.function, node.args, node.kwargs)


def meta_of(nodes: dict[str, Node], ref: Ref) -> Meta | None:
    """What is known of the value at `ref`."""
    meta = nodes[ref.name].meta
    if isinstance(meta, tuple):
        return meta[ref.index] if ref.index is not None and ref.index < len(meta) else None
    return meta


def value_of(values: Mapping[str, Any], ref: Ref) -> Any:
    """The value at `ref`, of values by node name."""
    held = values[ref.name]
    return held if ref.index is None else held[ref.index]


def map_output(output: Any, new: Callable[[Ref], Any]) -> Any:
    """The output structure with every `Ref` replaced; it may hold any container that torch knows."""
    return pytree.tree_map(
        lambda leaf: new(leaf) if isinstance(leaf, Ref) else leaf,
        output,
        is_leaf=lambda x: isinstance(x, Ref),
    )
