"""How images lie in memory on their way through a convolutional network."""

from __future__ import annotations

import operator
from typing import Any

import torch

from relprop.engine.graph import Graph, Meta, Node

_BY_STRIDES = (
    "aten.as_strided", "aten.view_as_real", "aten.view_as_complex", "aten.view.dtype", "relprop.complex_linear",
)  # fmt: skip
"""Operations whose result hangs on how their argument lies in memory."""


def images_of(graph: Graph) -> frozenset[str]:
    """The inputs that run through the graph with their channels last in memory: images in float32 on their way through
    convolutions.

    There are none where an operation may look at how values lie in memory: those of other libraries may.
    """
    calls = [node for node in graph.nodes if node.kind == "call"]
    if not all(_is_blind(node) for node in calls) or not any(_is_convolution(node) for node in calls):
        return frozenset()
    return frozenset(node.name for node in graph.nodes if node.kind == "input" and _is_image(node.meta))


def _is_blind(node: Node) -> bool:
    """Whether the operation's result is the same however its arguments lie in memory."""
    name = node.operation
    known = name.startswith(("aten.", "relprop.")) or node.function in _OF_PYTHON
    return known and not name.startswith(_BY_STRIDES)


_OF_PYTHON = frozenset(value for value in vars(operator).values() if callable(value))


def _is_convolution(node: Node) -> bool:
    """Whether it is a convolution over two dimensions."""
    return "conv" in node.operation and isinstance(node.meta, Meta) and len(node.meta.shape) == 4


def _is_image(meta: Any) -> bool:
    return (
        isinstance(meta, Meta) and len(meta.shape) == 4 and meta.shape[1] > 1 and meta.dtype == torch.float32
    )


def with_channels_last(values: dict[str, Any], images: frozenset[str]) -> dict[str, Any]:
    """The values of a graph's leaves, with the channels of those images last that lie in a processor's memory: its
    convolutions and elementwise operations are faster so."""
    return values | {
        name: values[name].contiguous(memory_format=torch.channels_last)
        for name in images
        if values[name].device.type == "cpu"
    }
