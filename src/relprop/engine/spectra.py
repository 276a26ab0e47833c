"""Parts of a graph that compute with complex numbers become one operation from real numbers to real numbers.

Rotary positions written as complex products, Fourier transforms and filters between them are linear in their data,
but a complex value has no relevance of its own. What lies between the last real value and the next one is run as a whole.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from relprop.engine.graph import Graph, Node, Ref, parents, replace_refs


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


def fuse_complex(graph: Graph) -> Graph:
    """Every real value computed from complex ones that are linear in one real value becomes one operation of that."""
    nodes = {node.name: node for node in graph.nodes}
    if not any(_is_complex(node) for node in graph.nodes):
        return graph
    fed = _fed(graph, nodes)
    result: list[Node] = []
    for node in graph.nodes:
        segment = None
        if (
            node.name in fed
            and not _is_complex(node)
            and any(_is_complex(nodes[ref.name]) for ref in parents(node))
        ):
            segment = _segment(node, graph, nodes, fed)
        if segment is not None:
            node = dataclasses.replace(
                node, function=complex_linear, args=(segment, *segment.reads), kwargs={}
            )
        result.append(node)
    return dataclasses.replace(graph, nodes=tuple(result))


def _is_complex(node: Node) -> bool:
    return any(meta.dtype.is_complex for meta in node.metas)


def _fed(graph: Graph, nodes: dict[str, Node]) -> set[str]:
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
        if not _is_linear(node, own):
            return None
        for ref in parents(node):
            if ref.name in fed and _is_complex(nodes[ref.name]):
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


def _is_linear(node: Node, data: list[Ref]) -> bool:
    """Whether an operation is linear in the one value that depends on the input (real and imaginary parts apart)."""
    name = node.operation.removeprefix("aten.").split(".")[0]
    if name in _PRODUCTS:
        return len(data) == 1 and (name != "div" or node.args[0] in data)
    return name in _LINEAR


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
        "roll",
        "flip",
        "sum",
        "mean",
        "complex",
        "select_scatter",
        "slice_scatter",
        "constant_pad_nd",
    ]
)
