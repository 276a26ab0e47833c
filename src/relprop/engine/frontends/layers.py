"""Graph passes that see the layers of other frameworks in the operations that they are made of.

Each is a function `Graph -> Graph` whose result computes the same output. A rule should meet one linear operation with
its bias, and one normalisation that folds into it, as in a model of PyTorch's own layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from relprop.engine.canonise import convolution_arguments, drop_dead
from relprop.engine.graph import (
    Graph,
    Meta,
    Node,
    Ref,
    consumers,
    map_output,
    meta_of,
    of_weights,
    parents,
    replace_refs,
)

aten = torch.ops.aten

_COPIES = (
    "aten.to.",
    "aten._to_copy.",
    "aten.alias.",
    "aten.lift_fresh_copy.",
)


def without_copies(graph: Graph) -> Graph:
    """Casts to the type that a value has, and copies, are read as the value itself."""
    nodes = {node.name: node for node in graph.nodes}
    instead: dict[Ref, Ref] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        node = _reading(node, instead)
        source = node.args[0] if node.args and isinstance(node.args[0], Ref) else None
        if source is not None and node.operation.startswith(_COPIES):
            own, before = node.meta, meta_of(nodes, source)
            if isinstance(own, Meta) and before is not None and own.dtype == before.dtype:
                instead[Ref(node.name)] = source
                continue
        kept.append(node)
    output = map_output(graph.output, lambda ref: instead.get(ref, ref))
    return dataclasses.replace(graph, nodes=tuple(kept), output=output)


def ids_kept(graph: Graph) -> Graph:
    """Whole numbers that are cast to real ones and then to whole ones again are read as they were.

    Keras' inputs are real numbers unless declared otherwise, and token ids pass through them.
    """
    nodes = {node.name: node for node in graph.nodes}
    origin: dict[Ref, Ref] = {}  # a whole number cast to a real one, and from where
    result: list[Node] = []
    for node in graph.nodes:
        source = node.args[0] if node.args and isinstance(node.args[0], Ref) else None
        if source is not None and node.operation.startswith(("aten.to.", "aten._to_copy.")):
            own, before = meta_of(nodes, Ref(node.name)), meta_of(nodes, source)
            first = source if _is_whole(before) else origin.get(source)
            if first is not None and _is_whole(own) and first != source:
                node = dataclasses.replace(node, args=(first, *node.args[1:]))
            elif first is not None and not _is_whole(own):
                origin[Ref(node.name)] = first
        result.append(node)
    return dataclasses.replace(graph, nodes=tuple(result))


def _is_whole(meta: Meta | None) -> bool:
    return meta is not None and not meta.dtype.is_floating_point and meta.dtype != torch.bool


def respelled(graph: Graph) -> Graph:
    """Convolutions as TorchScript spells them, with settings of the backend behind their arguments."""

    def plain(node: Node) -> Node:
        if node.operation != "aten._convolution.default":
            return node
        return dataclasses.replace(node, function=aten.convolution.default, args=node.args[:9])

    return dataclasses.replace(graph, nodes=tuple(map(plain, graph.nodes)))


def biased_convolutions(graph: Graph) -> Graph:
    """A constant for each channel that is added behind a convolution, its channels moved last, is its bias; one whose channels
    stay where they are `engine.biases` knows."""
    return _matched(graph, _bias)


def batch_norms(graph: Graph) -> Graph:
    """(x - mean) · scale + shift with constants for each channel is a batch normalisation."""
    return _matched(graph, _batch_norm)


@dataclasses.dataclass(slots=True)
class _Look:
    """What a pass knows of a graph."""

    nodes: dict[str, Node]
    fixed: set[str]
    readers: Mapping[Ref, list[str]]

    def maker(self, ref: Any, reader: Node, *names: str) -> Node | None:
        """The node that makes a value which nothing but `reader` reads, if it is one of these operations."""
        if not isinstance(ref, Ref) or self.readers.get(ref) != [reader.name]:
            return None
        node = self.nodes[ref.name]
        return node if node.operation.startswith(names) else None

    def channels(self, ref: Any, whole: Meta) -> int | None:
        """The dimension along which a constant has one value for each channel of a value of `whole`'s shape."""
        meta = meta_of(self.nodes, ref) if isinstance(ref, Ref) and ref.name in self.fixed else None
        if meta is None:
            return None
        rank = len(whole.shape)
        shape = (1,) * (rank - len(meta.shape)) + meta.shape
        found = [d for d in {1, rank - 1} if shape[d] == whole.shape[d] and sum(s != 1 for s in shape) <= 1]
        return max(found, key=lambda d: shape[d]) if found and len(shape) == rank > 1 else None


def _matched(graph: Graph, find: Any) -> Graph:
    """The graph with each node that `find` knows as the last of a pattern replaced by other nodes."""
    look = _Look({node.name: node for node in graph.nodes}, of_weights(graph), consumers(graph))
    result: list[Node] = []
    for node in graph.nodes:
        new = find(node, look) if node.kind == "call" and node.name not in look.fixed else None
        new = new or [node]
        look.nodes |= {n.name: n for n in new}
        result += new
    return drop_dead(dataclasses.replace(graph, nodes=tuple(result)))


def _bias(node: Node, look: _Look) -> list[Node] | None:
    if node.operation != "aten.add.Tensor" or node.kwargs or not isinstance(node.meta, Meta):
        return None
    for value, bias in (node.args[:2], node.args[1::-1]):
        at = look.channels(bias, node.meta)
        moved = look.maker(value, node, "aten.permute.default")
        conv = look.maker(moved.args[0], moved, "aten.conv") if moved is not None else None
        arguments = convolution_arguments(conv) if conv is not None else None
        if moved is None or conv is None or arguments is None or arguments["bias"] is not None:
            continue
        rank = len(node.meta.shape)
        if at != rank - 1 or not _is_last(moved, rank):
            continue
        flat, reshaped = _flat(node, bias, "bias", look)
        args = [*conv.args, None][: max(3, len(conv.args))]
        args[2] = flat
        with_bias = dataclasses.replace(
            conv, name=f"{node.name}_conv", args=tuple(args), module=node.module or conv.module
        )
        return [
            *reshaped,
            with_bias,
            dataclasses.replace(moved, name=node.name, args=(Ref(with_bias.name), *moved.args[1:])),
        ]
    return None


def _batch_norm(node: Node, look: _Look) -> list[Node] | None:
    if node.operation != "aten.add.Tensor" or node.kwargs or not isinstance(node.meta, Meta):
        return None
    product = look.maker(node.args[0], node, "aten.mul.Tensor")
    centred = (
        look.maker(product.args[0], product, "aten.sub.Tensor", "aten.subtract.Tensor") if product else None
    )
    if product is None or centred is None or centred.kwargs:
        return None
    x, mean, scale, shift = centred.args[0], centred.args[1], product.args[1], node.args[1]
    places = {look.channels(constant, node.meta) for constant in (mean, scale, shift)}
    at, rank = next(iter(places)), len(node.meta.shape)
    if len(places) != 1 or at is None or not isinstance(x, Ref):
        return None
    new: list[Node] = []
    arguments = []
    for constant, word in ((scale, "scale"), (shift, "shift"), (mean, "mean")):
        flat, reshaped = _flat(node, constant, word, look)
        arguments.append(flat)
        new += reshaped
    ones = dataclasses.replace(
        new[-1] if new else node, name=f"{node.name}_ones", function=aten.ones_like.default, args=(arguments[0],),
        kwargs={}, meta=look_meta(look, new, arguments[0]),
    )  # fmt: skip
    new.append(ones)
    last = at == rank - 1 and rank > 2
    source = x
    front = [0, rank - 1, *range(1, rank - 1)]
    if last:
        moved = look.nodes[x.name]
        if moved.operation == "aten.permute.default" and _is_last(moved, rank):
            source = moved.args[0]
        else:
            turned = dataclasses.replace(
                node, name=f"{node.name}_first", function=aten.permute.default, args=(x, front), kwargs={},
                meta=_permuted(node.meta, front),
            )  # fmt: skip
            new.append(turned)
            source = Ref(turned.name)
    weight, bias, average = arguments
    norm = dataclasses.replace(
        node, name=f"{node.name}_norm" if last else node.name, function=aten.batch_norm.default, kwargs={},
        args=(source, weight, bias, average, Ref(ones.name), False, 0.0, 0.0, False),
        meta=_permuted(node.meta, front) if last else node.meta,
    )  # fmt: skip
    new.append(norm)
    if last:
        back = [0, *range(2, rank), 1]
        new.append(
            dataclasses.replace(node, function=aten.permute.default, args=(Ref(norm.name), back), kwargs={})
        )
    return new


def look_meta(look: _Look, new: Sequence[Node], ref: Ref) -> Meta | None:
    """What is known of a value of the graph or of new nodes."""
    return meta_of(look.nodes | {node.name: node for node in new}, ref)


def _flat(node: Node, constant: Ref, word: str, look: _Look) -> tuple[Ref, list[Node]]:
    """A constant as a row of one value a channel, and the node that makes it one where it is not."""
    meta = meta_of(look.nodes, constant)
    assert meta is not None
    if len(meta.shape) == 1:
        return constant, []
    row = Meta((max(meta.shape),), meta.dtype)
    reshaped = dataclasses.replace(
        node,
        name=f"{node.name}_{word}",
        function=aten.reshape.default,
        args=(constant, [-1]),
        kwargs={},
        meta=row,
    )
    return Ref(reshaped.name), [reshaped]


def _is_last(node: Node, rank: int) -> bool:
    """Whether a permutation moves the channels behind all other dimensions."""
    return [d % rank for d in node.args[1]] == [0, *range(2, rank), 1]


def _permuted(meta: Meta, order: Sequence[int]) -> Meta:
    return Meta(
        tuple(meta.shape[d] for d in order),
        meta.dtype,
        tuple(i for i, d in enumerate(order) if d in meta.batch),
    )


def _reading(node: Node, instead: Mapping[Ref, Ref]) -> Node:
    """The node with the values that it reads exchanged."""
    if not any(ref in instead for ref in parents(node)):
        return node
    args = replace_refs(node.args, lambda ref: instead.get(ref, ref))
    return dataclasses.replace(
        node, args=args, kwargs=replace_refs(node.kwargs, lambda ref: instead.get(ref, ref))
    )
