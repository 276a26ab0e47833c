"""A rewrite: what is done to the units of a linear operation behind it becomes a part of it.

A constant for each unit that is added is its bias; constants for each unit that scale and shift it are the batch
normalisation that they write out. A rule then meets one pre-activation, whatever spelled it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Graph, Meta, Node, Ref, consumers, meta_of, of_weights, parents
from relprop.engine.parts import beside

aten = torch.ops.aten


def biased_product(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A·B + b of any number of dimensions."""
    return torch.matmul(a, b) + bias


def biased_einsum(equation: str, operands: list[Tensor], bias: Tensor) -> Tensor:
    """einsum(equation, …) + b."""
    return torch.einsum(equation, *operands) + bias


def fuse_biases(graph: Graph) -> Graph:
    """A constant for each unit of a linear operation that is added to it, and to nothing else, is its bias."""
    return _Fusing(graph).run(_Fusing.bias)


def unify_normalisations(graph: Graph) -> Graph:
    """A linear operation of (B, units, …) that is scaled and shifted by constants for each unit is one with a batch
    normalisation behind it (`FrozenBatchNorm2d`)."""
    return _Fusing(graph).run(_Fusing.normalisation)


_ADDS = ("aten.add.Tensor", "aten.sub.Tensor")
_SCALES = ("aten.mul.Tensor", "aten.div.Tensor")
_CONVOLUTIONS = (
    "aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default", "aten.convolution.default",
    "aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding",
    "aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input",
)  # fmt: skip
_MATRICES = ("aten.matmul.default", "aten.mm.default", "aten.bmm.default")


class _Fusing:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.readers: Mapping[Ref, list[str]] = consumers(graph)
        self.nodes = {node.name: node for node in graph.nodes}
        self.fixed = of_weights(graph)
        self.made: list[Node] = []

    def run(self, find: Callable[[_Fusing, Node], tuple[list[Node], Node] | None]) -> Graph:
        """The graph in which each node that `find` knows has become another, and those that it took up are gone."""
        result: dict[str, Node] = {}
        for node in self.graph.nodes:
            found = None if node.name in self.fixed else find(self, node)
            if found is not None:
                taken, node = found
                for name in (old.name for old in taken):
                    del result[name]
                result |= {made.name: made for made in self.made}
            self.made = []
            result[node.name] = self.nodes[node.name] = node
        return dataclasses.replace(self.graph, nodes=tuple(result.values()))

    # ------------------------------------------------------------ constants that scale and shift

    def normalisation(self, node: Node) -> tuple[list[Node], Node] | None:
        """The last of the steps that scale and shift the units of a linear operation: a batch normalisation."""
        readers = self.readers.get(Ref(node.name), [])
        if len(readers) == 1 and readers[0] != "output" and self.step(self.nodes[readers[0]]) == node:
            return None
        steps: list[Node] = []
        at = node
        while (before := self.step(at)) is not None:
            steps.insert(0, at)
            at = before
        shifts = [step for step in steps if step.operation in _ADDS]
        if not 0 < len(shifts) < len(steps) or not isinstance(node.meta, Meta) or self.units(at) != {1}:
            return None
        rows = [ref for step in steps for ref in parents(step) if self.is_fixed(ref)]
        if not rows:
            return None
        row = self.flat(node, rows[0])
        zeros, ones = (
            self.make(node, word, function, (row,))
            for word, function in (("zeros", aten.zeros_like.default), ("ones", aten.ones_like.default))
        )
        scale, shift = ones, zeros
        for step in steps:
            number = self.constant(step)
            number = self.flat(node, number) if isinstance(number, Ref) else number
            shift = self.make(node, "shift", step.function, (shift, number))
            if step.operation in _SCALES:
                scale = self.make(node, "scale", step.function, (scale, number))
        args = (Ref(at.name), scale, shift, zeros, ones, False, 0.0, 0.0, False)
        calls = tuple(dict.fromkeys(call for step in steps for call in step.calls))
        norm = dataclasses.replace(node, function=aten.batch_norm.default, args=args, kwargs={}, calls=calls)
        return steps[:-1], norm

    def step(self, node: Node) -> Node | None:
        """The node of the value that a node scales or shifts by a constant, a number or one for each channel."""
        if node.operation not in (*_ADDS, *_SCALES) or node.kwargs or len(node.args) != 2:
            return None
        constant = self.constant(node)
        value = node.args[1] if constant == node.args[0] else node.args[0]
        if constant == node.args[0] and node.operation in ("aten.sub.Tensor", "aten.div.Tensor"):
            return None
        before = self.only_for(value, node)
        if not isinstance(constant, Ref):
            return before
        meta, whole = meta_of(self.nodes, constant), node.meta
        if before is None or not self.is_fixed(constant) or meta is None or not isinstance(whole, Meta):
            return None
        shape = (1,) * (len(whole.shape) - len(meta.shape)) + meta.shape
        channels = tuple(size if d == 1 else 1 for d, size in enumerate(whole.shape))
        return before if shape == channels and meta.dtype == whole.dtype else None

    def constant(self, node: Node) -> Any:
        """Which of two operands is the constant."""
        first, second = node.args
        return first if self.is_fixed(first) else second

    # ------------------------------------------------------------ constants that are added

    def bias(self, node: Node) -> tuple[list[Node], Node] | None:
        """A sum of a linear operation and a constant for each of its units: that operation with its bias."""
        found = self.shifted(node)
        if found is None:
            return None
        product, constant = found
        if node.operation == "aten.sub.Tensor":
            constant = self.make(node, "negative", aten.neg.default, (constant,))
        context: dict[str, Any] = {"calls": tuple(dict.fromkeys((*product.calls, *node.calls)))}
        if product.module_class:
            context |= {"module": product.module, "module_class": product.module_class}
        context |= self.with_bias(product, node, constant)
        return [product], dataclasses.replace(node, kwargs=context.pop("kwargs", {}), **context)

    def shifted(self, node: Node) -> tuple[Node, Ref] | None:
        """The linear operation that a sum or difference adds a constant for each unit to, and that constant."""
        if node.operation not in _ADDS or node.kwargs or len(node.args) != 2:
            return None
        turned = node.operation == "aten.add.Tensor"
        for value, constant in (node.args, node.args[::-1]) if turned else (node.args,):
            product = self.only_for(value, node)
            if product is None or not isinstance(constant, Ref) or constant.name not in self.fixed:
                continue
            if self.is_one_each(constant, product, node):
                return product, constant
        return None

    def only_for(self, ref: Any, reader: Node) -> Node | None:
        """The node of a value that nothing else reads, of the reader's shape and type."""
        if not isinstance(ref, Ref) or ref.index is not None or self.readers[ref] != [reader.name]:
            return None
        node = self.nodes[ref.name]
        return node if isinstance(node.meta, Meta) and node.meta == reader.meta else None

    def is_one_each(self, constant: Ref, product: Node, node: Node) -> bool:
        """Whether a constant has one number for each unit of a linear operation."""
        meta, whole, units = meta_of(self.nodes, constant), node.meta, self.units(product)
        if meta is None or not isinstance(whole, Meta) or units is None or meta.dtype != whole.dtype:
            return False
        offset = len(whole.shape) - len(meta.shape)
        numbers = {i + offset for i, size in enumerate(meta.shape) if size != 1}
        each = all(size in (1, whole.shape[i + offset]) for i, size in enumerate(meta.shape))
        one = all(whole.shape[d] == 1 for d in units)
        return offset >= 0 and each and (one or bool(numbers)) and numbers <= units

    def units(self, node: Node) -> set[int] | None:
        """The dimensions of a linear operation's output that its weight has, not its input; None for all others."""
        args, whole = node.args, node.meta
        assert isinstance(whole, Meta)
        if node.operation == "aten.linear.default":
            return {len(whole.shape) - 1} if self.is_fixed(args[1]) else None
        if node.operation in _CONVOLUTIONS:
            weight = meta_of(self.nodes, args[1]) if self.is_fixed(args[1]) else None
            return None if weight is None or len(weight.shape) != len(whole.shape) else {1}
        if node.operation in _MATRICES:
            return self.units_of_product(args[0], args[1], len(whole.shape))
        if node.operation == "aten.einsum.default" and len(args[1]) == 2:
            return self.units_of_einsum(node, len(whole.shape))
        return None

    def units_of_product(self, a: Any, b: Any, rank: int) -> set[int] | None:
        left, right = (meta_of(self.nodes, ref) for ref in (a, b))
        if self.is_fixed(a) == self.is_fixed(b) or left is None or right is None:
            return None
        weight, own = (left, rank - 2) if self.is_fixed(a) else (right, rank - 1)
        if min(len(left.shape), len(right.shape)) < 2:
            return None
        several = {rank - 3 - i for i, size in enumerate(reversed(weight.shape[:-2])) if size != 1}
        return {own, *several}

    def units_of_einsum(self, node: Node, rank: int) -> set[int] | None:
        equation, operands = node.args[0].replace(" ", ""), node.args[1]
        fixed = [self.is_fixed(ref) for ref in operands]
        terms, arrow, output = equation.partition("->")
        weight = terms.split(",")[fixed.index(True)] if sum(fixed) == 1 else "."
        if not arrow or "." in weight:
            return None
        front, _, back = output.partition("...")
        places = {letter: i for i, letter in enumerate(front)}
        places |= {letter: rank - len(back) + i for i, letter in enumerate(back)}
        return {places[letter] for letter in weight if letter in places}

    def is_fixed(self, ref: Any) -> bool:
        return isinstance(ref, Ref) and ref.name in self.fixed

    def with_bias(self, product: Node, node: Node, bias: Ref) -> dict[str, Any]:
        """Function and arguments of a linear operation with a bias more."""
        args = product.args
        if product.operation == "aten.einsum.default":
            return {"function": biased_einsum, "args": (*args, bias)}
        if product.operation in _MATRICES:
            weight = meta_of(self.nodes, args[1])
            if not self.is_fixed(args[1]) or weight is None or len(weight.shape) != 2:
                return {"function": biased_product, "args": (bias, *args)}
            args = (args[0], self.make(node, "weight", aten.t.default, (args[1],)), self.flat(node, bias))
            return {"function": aten.linear.default, "args": args}
        own = args[2] if len(args) > 2 else product.kwargs.get("bias")
        bias = self.flat(node, bias)
        bias = bias if own is None else self.make(node, "biases", aten.add.Tensor, (own, bias))
        rest = {name: value for name, value in product.kwargs.items() if name != "bias"}
        return {"function": product.function, "args": (*args[:2], bias, *args[3:]), "kwargs": rest}

    def flat(self, node: Node, constant: Ref) -> Ref:
        """A constant as a row."""
        meta = meta_of(self.nodes, constant)
        assert meta is not None
        return (
            constant
            if len(meta.shape) == 1
            else self.make(node, "row", aten.reshape.default, (constant, [-1]))
        )

    def make(self, at: Node, word: str, function: Any, args: tuple[Any, ...]) -> Ref:
        """A new node that computes a constant of others."""
        metas = [meta_of(self.nodes, ref) for ref in args if isinstance(ref, Ref)]
        whole = next(meta for meta in metas if meta is not None)
        shape = whole.shape[::-1] if function is aten.t.default else whole.shape
        shape = tuple(size for size in shape if size != 1) if function is aten.reshape.default else shape
        node = beside(at, word, function, args, Meta(shape, whole.dtype), self.nodes)
        self.fixed.add(node.name)
        self.made.append(node)
        return Ref(node.name)
