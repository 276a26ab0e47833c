"""Parts of a graph that compute with complex numbers become one operation from real numbers to real numbers.

A complex value has no relevance of its own. Rotary positions written as complex products, Fourier transforms and filters
between them are linear in their data: what lies between the last real value and the next one is run as a whole. Magnitudes,
and what joins several complex values (products, sums, real and imaginary parts of their own), is written in real numbers
first: pairs of a real and an imaginary part, whose operations have the rules of real ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Graph, Meta, Node, Ref, meta_of, parents, refs, replace_refs

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Segment:
    """Operations in order, the values they read from outside (the first one is the data), and the last one's result."""

    nodes: tuple[Node, ...]
    reads: tuple[Ref, ...]


def complex_linear(segment: Segment, *values: Tensor) -> Tensor:
    """The result of a segment's last operation, a real tensor."""
    known: dict[Ref, Any] = dict(zip(segment.reads, values, strict=True))

    def value(ref: Ref) -> Any:
        if ref in known:
            return known[ref]
        whole = known[Ref(ref.name)]
        return whole[ref.index]

    for node in segment.nodes:
        assert node.function is not None
        known[Ref(node.name)] = node.function(
            *replace_refs(node.args, value), **replace_refs(node.kwargs, value)
        )
    result: Tensor = known[Ref(segment.nodes[-1].name)]
    return result


def real_pairs(z: Tensor) -> Tensor:
    """Real and imaginary parts of (…) as (…, 2)."""
    return torch.view_as_real(z.resolve_conj())


def fuse_complex(graph: Graph) -> Graph:
    """Every real value computed from complex ones that are linear in one real value becomes one operation of that."""
    if not any(is_complex(node) for node in graph.nodes):
        return graph
    graph = _in_real_numbers(graph)
    nodes = {node.name: node for node in graph.nodes}
    fed = _fed(graph)
    result: list[Node] = []
    for node in graph.nodes:
        segment = None
        if (
            node.name in fed
            and not is_complex(node)
            and any(is_complex(nodes[ref.name]) for ref in parents(node))
        ):
            segment = _segment(node, graph, nodes, fed)
        if segment is not None:
            node = dataclasses.replace(
                node, function=complex_linear, args=(segment, *segment.reads), kwargs={}
            )
        result.append(node)
    return dataclasses.replace(graph, nodes=tuple(result))


Parts = tuple[Any, Any]
"""Real and imaginary part of a value, a reference or a number each; None for the imaginary part of a real one."""

Call = Callable[..., Ref]
"""Adds an operation on real numbers: its function and its arguments."""


def _in_real_numbers(graph: Graph) -> Graph:
    """Magnitudes of complex data, and what joins complex values, by operations on real numbers."""
    nodes = {node.name: node for node in graph.nodes}
    fed = _fed(graph)
    result: list[Node] = []
    pairs: dict[Ref, Ref] = {}
    for node in graph.nodes:
        node = _of_source(node, nodes)
        name, data = _short(node), sum(ref.name in fed for ref in parents(node))
        least = 2 if name in _PRODUCTS else 1  # a constant factor is linear, a constant summand is not
        joins = is_complex(node) and name in (*_JOINS, *_ALONG, *_OF_ONE) and data >= least
        alone = name in (*_OF_MAGNITUDES, "angle") and data == 1 and is_complex(nodes[parents(node)[0].name])
        result += _written(node, nodes, pairs) if joins or alone else [node]
    return dataclasses.replace(graph, nodes=tuple(result))


def _of_source(node: Node, nodes: dict[str, Node]) -> Node:
    """What is written over all of a complex value as a copy of its source: nothing of the value is read."""
    if _short(node) != "copy" or not is_complex(node):
        return node
    source, own = node.args[1], node.metas[0]
    same = isinstance(source, Ref) and nodes[source.name].metas[0].shape == own.shape
    return dataclasses.replace(node, function=aten.to.dtype, args=(source, own.dtype)) if same else node


def _written(node: Node, nodes: dict[str, Node], pairs: dict[Ref, Ref]) -> list[Node]:
    """The operations on real numbers that compute a node's value; the node itself where none are known.

    `pairs` has the real and imaginary parts of complex values that were written before, and takes in those that are now.
    """
    meta, result = node.metas[0], list[Node]()

    def add(function: Callable[..., Any], shape: Meta, *args: Any, name: str = "") -> Ref:
        dtype = meta.dtype if function is aten.view_as_complex.default else meta.dtype.to_real()
        own = dataclasses.replace(shape, dtype=dtype, sizes=())
        name = name or f"{node.name}_real_{len(result)}"
        result.append(dataclasses.replace(node, name=name, function=function, args=args, kwargs={}, meta=own))
        return Ref(name)

    def call(function: Callable[..., Any], *args: Any) -> Ref:
        return add(function, meta, *args)

    def kind(ref: Ref) -> Meta:
        found = meta_of(nodes, ref)
        assert found is not None
        return found

    def pair(ref: Ref) -> Ref:
        if ref not in pairs:
            pairs[ref] = add(real_pairs, _paired(kind(ref)), ref)
        return pairs[ref]

    def parts(value: Any) -> Parts:
        if isinstance(value, complex):
            return value.real, value.imag
        if not isinstance(value, Ref) or not kind(value).dtype.is_complex:
            return value, None
        both, shape = pair(value), kind(value)
        return add(aten.select.int, shape, both, -1, 0), add(aten.select.int, shape, both, -1, 1)

    name = _short(node)
    if name in _OF_MAGNITUDES:
        z, *rest = node.args
        if name == "abs":
            add(aten.linalg_vector_norm.default, meta, pair(z), 2, [-1], name=node.name)
            return result
        size = add(aten.linalg_vector_norm.default, kind(z), pair(z), 2, [-1])
        return [*result, dataclasses.replace(node, args=(size, *rest))]
    if name == "angle":
        real, imaginary = parts(node.args[0])
        add(aten.atan2.default, meta, imaginary, real, name=node.name)
        return result
    if name in _ALONG:
        place = _ALONG[name]
        if node.kwargs or not all(kind(ref).dtype.is_complex for ref in parents(node)):
            return [node]
        given, dim = replace_refs(node.args[:place], pair), (*node.args[place:], 0)[0]
        assert node.function is not None
        both = add(node.function, _paired(meta), *given, dim - (dim < 0), *node.args[place + 1 :])
    elif name in _OF_ONE:
        if name == "pow" and node.args[1] != 2:
            return [node]
        turn = _turn(nodes[node.args[0].name]) if name == "exp" else None
        z = (None, call(aten.mul.Tensor, *turn)) if turn is not None else parts(node.args[0])
        both = add(aten.stack.default, _paired(meta), list(_OF_ONE[name](call, z)), -1)
    else:
        joined = node.args[1] if name == "einsum" else node.args[:2]
        if node.kwargs or len(joined) != 2 or not _fills(meta, [kind(ref) for ref in refs(joined)]):
            return [node]
        found = _JOINS[name](node, call, parts(joined[0]), parts(joined[1]))
        both = add(aten.stack.default, _paired(meta), list(found), -1)
    add(aten.view_as_complex.default, meta, both, name=node.name)
    return result


def _fills(meta: Meta, given: list[Meta]) -> bool:
    """Whether an imaginary part that is one value's alone has the result's size: the others are of real numbers."""
    alone = [own for own in given if own.dtype.is_complex]
    return len(alone) != 1 or len(given) == 1 or alone[0].shape == meta.shape


def _paired(meta: Meta) -> Meta:
    return dataclasses.replace(meta, shape=(*meta.shape, 2), sizes=())


def _of_parts(node: Node, call: Call, a: Parts, b: Parts) -> Parts:
    return a[0], b[0]


def _polar(node: Node, call: Call, size: Parts, angle: Parts) -> Parts:
    cos, sin = call(aten.cos.default, angle[0]), call(aten.sin.default, angle[0])
    return call(aten.mul.Tensor, size[0], cos), call(aten.mul.Tensor, size[0], sin)


def _exponential(call: Call, z: Parts) -> Parts:
    """exp(a + ib) = exp(a) (cos b, sin b), a product; of ib alone no factor that is always 1 takes part."""
    cos, sin = call(aten.cos.default, z[1]), call(aten.sin.default, z[1])
    if z[0] is None:
        return cos, sin
    size = call(aten.exp.default, z[0])
    return call(aten.mul.Tensor, size, cos), call(aten.mul.Tensor, size, sin)


def _turn(node: Node) -> tuple[Ref, float] | None:
    """b and c of a value i c b, a real one times an imaginary number."""
    if _short(node) != "mul":
        return None
    numbers = [value for value in node.args[:2] if isinstance(value, complex) and value.real == 0]
    values = [value for value in node.args[:2] if isinstance(value, Ref)]
    return (values[0], numbers[0].imag) if len(numbers) == len(values) == 1 else None


def _square(call: Call, z: Parts) -> Parts:
    return _joined(call, partial(call, aten.mul.Tensor), z, z)


def _sum(node: Node, call: Call, a: Parts, b: Parts) -> Parts:
    """a + b, a − b or b − a, part by part."""
    name, real = _short(node), call(node.function, a[0], b[0])
    if a[1] is not None and b[1] is not None:
        return real, call(node.function, a[1], b[1])
    alone, negative = (a[1], name == "rsub") if b[1] is None else (b[1], name == "sub")
    if not isinstance(alone, Ref):
        alone = call(aten.full_like.default, a[0], alone)
    return real, call(aten.neg.default, alone) if negative else alone


def _product(node: Node, call: Call, a: Parts, b: Parts) -> Parts:
    """a · b by the node's own product of real numbers: (a₁b₁ − a₂b₂, a₁b₂ + a₂b₁)."""

    def times(one: Any, other: Any) -> Ref:
        if _short(node) == "einsum":
            return call(node.function, node.args[0], [one, other])
        return call(node.function, one, other)

    return _joined(call, times, a, b)


def _quotient(node: Node, call: Call, a: Parts, b: Parts) -> Parts:
    """a / b, of a complex b as a · b* / |b|²."""
    if b[1] is not None:
        times, squares = partial(call, aten.mul.Tensor), [call(aten.square.default, part) for part in b]
        a, b = _joined(call, times, a, (b[0], call(aten.neg.default, b[1]))), (call(aten.add.Tensor, *squares), None)  # fmt: skip
    return call(node.function, a[0], b[0]), call(node.function, a[1], b[0])


def _joined(call: Call, times: Call, a: Parts, b: Parts) -> Parts:
    if a[1] is None:
        return times(a[0], b[0]), times(a[0], b[1])
    if b[1] is None:
        return times(a[0], b[0]), times(a[1], b[0])
    real = call(aten.sub.Tensor, times(a[0], b[0]), times(a[1], b[1]))
    return real, call(aten.add.Tensor, times(a[0], b[1]), times(a[1], b[0]))


_OF_MAGNITUDES = ("abs", "linalg_vector_norm", "norm")
_ALONG = {"cat": 1, "stack": 1, "slice_scatter": 2, "select_scatter": 2}
"""What puts values beside each other, and the place of the dimension among its arguments."""

_JOINS: dict[str, Callable[[Node, Call, Parts, Parts], Parts]] = {
    **dict.fromkeys(("add", "sub", "rsub"), _sum),
    **dict.fromkeys(("mul", "matmul", "mm", "bmm", "einsum"), _product),
    "div": _quotient,
    "complex": _of_parts,
    "polar": _polar,
}
"""What two values are joined to a complex one by, written by their parts."""

_OF_ONE: dict[str, Callable[[Call, Parts], Parts]] = {"exp": _exponential, "square": _square, "pow": _square}
"""Functions of one complex value, written by its parts; of its powers the square."""


def _short(node: Node) -> str:
    return node.operation.removeprefix("aten.").removeprefix("relprop.").split(".")[0]


def is_complex(node: Node) -> bool:
    """Whether a node's value, or a part of it, is complex."""
    return any(meta.dtype.is_complex for meta in node.metas)


def _fed(graph: Graph) -> set[str]:
    """Nodes with real or complex values that depend on those of an input, or on an embedding of it."""
    found: set[str] = set()
    for node in graph.nodes:
        numbers = any(meta.dtype.is_floating_point or meta.dtype.is_complex for meta in node.metas)
        started = node.kind == "input" or "embedding" in node.operation
        if numbers and (started or any(ref.name in found for ref in parents(node))):
            found.add(node.name)
    return found


def _segment(end: Node, graph: Graph, nodes: dict[str, Node], fed: set[str]) -> Segment | None:
    """The complex operations that a real value is computed from; None where they are not linear in one real value."""
    inside: set[str] = {end.name}
    reads: list[Ref] = []
    data: list[Ref] = []
    waiting = [end]
    while waiting:
        node = waiting.pop()
        own = [ref for ref in parents(node) if ref.name in fed]
        if not is_linear(node) or not _is_linear_in(node, own):
            return None
        for ref in parents(node):
            if ref.name in fed and is_complex(nodes[ref.name]):
                if ref.name not in inside:
                    inside.add(ref.name)
                    waiting.append(nodes[ref.name])
            elif ref.name in fed:
                data.append(ref)
            else:
                reads.append(ref)
    if len(set(data)) != 1:
        return None
    ordered = tuple(node for node in graph.nodes if node.name in inside)
    return Segment(ordered, (data[0], *dict.fromkeys(reads)))


def is_linear(node: Node) -> bool:
    """Whether an operation is linear in a complex value (real and imaginary parts apart), other values held fixed."""
    return _short(node) in _PRODUCTS or _short(node) in _LINEAR


def _is_linear_in(node: Node, data: list[Ref]) -> bool:
    """Whether a linear operation is so in the values that depend on the input."""
    name = _short(node)
    return name not in _PRODUCTS or (len(data) == 1 and (name != "div" or node.args[0] in data))


_PRODUCTS = ("mul", "div", "matmul", "mm", "bmm", "einsum")
_LINEAR = frozenset(
    [
        "_fft_c2c",
        "_fft_r2c",
        "_fft_c2r",
        "fft_fft",
        "fft_ifft",
        "fft_rfft",
        "fft_irfft",
        "fft_fft2",
        "fft_ifft2",
        "fft_rfft2",
        "fft_irfft2",
        "fft_fftn",
        "fft_ifftn",
        "fft_rfftn",
        "fft_irfftn",
        "fft_fftshift",
        "fft_ifftshift",
        "stft",
        "istft",
        "real_pairs",
        "view_as_real",
        "view_as_complex",
        "real",
        "imag",
        "_to_copy",
        "to",
        "clone",
        "contiguous",
        "conj",
        "_conj",
        "resolve_conj",
        "conj_physical",
        "_conj_physical",
        "neg",
        "view",
        "reshape",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "permute",
        "transpose",
        "t",
        "movedim",
        "expand",
        "repeat",
        "squeeze",
        "unsqueeze",
        "slice",
        "select",
        "narrow",
        "alias",
        "detach",
        "index",
        "index_select",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "roll",
        "flip",
        "sum",
        "mean",
        "constant_pad_nd",
    ]
)
