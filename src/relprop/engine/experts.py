"""Products with one matrix out of several for each row, whatever a library calls them: the experts of a mixture."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from relprop.engine.graph import Graph, Node

_SPELLINGS = ("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")


def grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows ends[e−1] to ends[e] of x (S, in) times weight[e] (in, out); rows behind the last end give 0."""
    stops = ends.tolist()
    starts = [0, *stops[:-1]]
    parts = [x[a:b] @ weight[e] for e, (a, b) in enumerate(zip(starts, stops, strict=True))]
    return torch.cat([*parts, x.new_zeros(x.shape[0] - stops[-1], weight.shape[2])])


def unify_experts(graph: Graph) -> Graph:
    """Every spelling of a grouped product becomes `grouped_product`."""
    return dataclasses.replace(graph, nodes=tuple(map(_unified, graph.nodes)))


def _unified(node: Node) -> Node:
    if node.operation not in _SPELLINGS or set(node.kwargs) - {"offs"}:
        return node
    ends = node.args[2] if len(node.args) > 2 else node.kwargs.get("offs")
    if ends is None or len(node.args) > 3:
        return node
    return dataclasses.replace(node, function=grouped_product, args=(*node.args[:2], ends), kwargs={})
