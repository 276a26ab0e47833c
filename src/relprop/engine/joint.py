"""A rewrite: sums of products with constant matrices that feed one non-linearity become one linear operation.

W x + U h + b is the pre-activation of a hand-written recurrent cell. As two linear operations and a sum it would
have three denominators and three stabilisers; as one it has one, like the module that it spells out. A sum is
taken for one where it feeds sigmoids and hyperbolic tangents, or any non-linearity in a loop that uses the same
weights again. All others (of branches before a ReLU, in a residual stream, before a norm) stay sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from relprop.engine.graph import Graph, Meta, Node, Ref, consumers, meta_of, of_weights, parents
from relprop.engine.parts import END, slice_arguments, unused

aten = torch.ops.aten


def joint_linear(
    xs: list[Tensor],
    weights: list[Tensor],
    gates: list[Tensor | None],
    biases: list[Tensor | None],
    bias: Tensor | None,
) -> Tensor:
    """Σ_i g_i ⊙ (W_i x_i + b_i) + b; a gate or a bias that is None is left out."""
    total: Tensor | None = None
    for x, weight, gate, own in zip(xs, weights, gates, biases, strict=True):
        term = F.linear(x, weight, own)
        term = term if gate is None else gate * term
        total = term if total is None else total + term
    assert total is not None
    return total if bias is None else total + bias


def recurrent_linear(
    xs: list[Tensor],
    weights: list[Tensor],
    gates: list[Tensor | None],
    biases: list[Tensor | None],
    bias: Tensor | None,
) -> Tensor:
    """`joint_linear` in a loop: the same weights are used again further on, or a gate scales a summand."""
    return joint_linear(xs, weights, gates, biases, bias)


_PARTS = ("aten.chunk.", "aten.split.", "aten.split_with_sizes.", "aten.unsafe_chunk.", "aten.unsafe_split")
_MOVES = (
    *_PARTS,
    "aten.slice.",
    "aten.select.",
    "aten.unbind.",
    "aten.narrow.",
    "aten.squeeze",
    "aten.unsqueeze",
)
_CURVES = tuple(
    f"aten.{name}."
    for name in (
        "sigmoid", "hardsigmoid", "tanh", "hardtanh", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu",
        "softplus", "clamp", "clamp_min", "softsign",
    )
)  # fmt: skip
_SATURATING = tuple(f"aten.{name}." for name in ("sigmoid", "hardsigmoid", "tanh", "hardtanh"))


@dataclass(frozen=True, slots=True)
class _Term:
    """g ⊙ (W x + b) as it stands in the graph: some rows of W and b, some place (dimension, index) of x."""

    x: Ref
    weight: Ref
    turned: bool  # the weight is (d, k) and to be transposed
    bias: Ref | None
    rows: tuple[int, int] | None = None
    picks: tuple[tuple[int, int], ...] = ()
    gate: Ref | None = None


def join_linears(graph: Graph) -> Graph:
    """Every sum of linear operations and biases that is a cell's pre-activation becomes `joint_linear`.

    A part of a linear operation's outputs (`chunk`) and a step of them (`[:, t]`) are linear operations of their
    own: of these rows of the weight, and of that step of the input.
    """
    return _Joining(graph).run()


class _Joining:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.readers = consumers(graph)
        self.nodes = {node.name: node for node in graph.nodes}
        self.fixed = of_weights(graph)
        self.made: dict[Any, Ref] = {}
        self.result: list[Node] = []

    def run(self) -> Graph:
        joined: dict[str, list[_Term]] = {}
        for node in self.graph.nodes:
            found = self.terms_of(node)
            if found is None:
                self.result.append(node)
                continue
            terms, bias = found
            joined[node.name] = terms
            self.result.append(self.joint(node, terms, bias))
        if not joined:
            return self.graph
        weights = {name: {self.root(t.weight) for t in terms} for name, terms in joined.items()}
        again = _recurrent(self.graph, weights)
        again |= {name for name, terms in joined.items() if any(term.gate is not None for term in terms)}
        nodes = tuple(self.settled(node, joined, again) for node in self.result)
        return dataclasses.replace(self.graph, nodes=nodes)

    def settled(self, node: Node, joined: dict[str, list[_Term]], again: set[str]) -> Node:
        """A joined sum as the operation of a loop, as one that stands alone, or as the sum that it was."""
        if node.name in again:
            return replace(node, function=recurrent_linear)
        if node.name in joined and not self.feeds_curves(Ref(node.name), _SATURATING):
            return self.nodes[node.name]
        return node

    # ------------------------------------------------------------ what is a sum of linear operations

    def terms_of(self, node: Node) -> tuple[list[_Term], Ref | None] | None:
        """The summands of a sum that is to be joined, and its bias."""
        if not _is_sum(node) or not self.feeds_curves(Ref(node.name)):
            return None
        terms: list[_Term] = []
        biases: list[Ref] = []
        for ref in self.summands(node):
            term = self.term(ref)
            if term is not None and meta_of(self.nodes, ref) == node.meta:
                terms.append(term)
            elif self.is_bias(ref, node):
                biases.append(ref)
            else:
                return None
        if len(terms) < 2 or len(biases) > 1 or all(term.gate is not None for term in terms):
            return None
        return terms, biases[0] if biases else None

    def summands(self, node: Node) -> Iterator[Ref]:
        """The summands of a chain of sums that nothing else reads."""
        for ref in node.args[:2]:
            inner = self.nodes[ref.name]
            if _is_sum(inner) and self.readers[ref] == [node.name]:
                yield from self.summands(inner)
            else:
                yield ref

    def feeds_curves(self, ref: Ref, curves: tuple[str, ...] = _CURVES) -> bool:
        """Whether all that reads a value, or parts of it, are elementwise non-linearities of a kind."""
        refs_of = [ref]
        node = self.nodes[ref.name]
        if isinstance(node.meta, tuple):
            refs_of = [Ref(ref.name, index) for index in range(len(node.meta))]
        names = [name for r in refs_of for name in self.readers.get(r, ())]
        if not names or "output" in names:
            return False
        for name in names:
            operation = self.nodes[name].operation
            if operation.startswith(curves):
                continue
            if not operation.startswith(_MOVES) or not self.feeds_curves(Ref(name), curves):
                return False
        return True

    def is_bias(self, ref: Ref, node: Node) -> bool:
        """A vector computed from weights alone, one number for each output."""
        meta = meta_of(self.nodes, ref)
        whole = node.meta
        return (
            ref.name in self.fixed
            and meta is not None
            and isinstance(whole, Meta)
            and meta.shape == whole.shape[-1:]
        )

    def term(self, ref: Ref) -> _Term | None:
        """The linear operation that a value is, or is a part of."""
        node = self.nodes[ref.name]
        operation = node.operation
        if operation == "aten.mul.Tensor":
            return self.gated(node)
        if operation.startswith(_PARTS) and ref.index is not None:
            return self.part(node, ref.index)
        if operation.startswith(("aten.select.int", "aten.unbind.int")):
            return self.picked(node, ref.index)
        if operation == "aten.slice.Tensor":
            return self.sliced(node)
        return self.whole(node)

    def whole(self, node: Node) -> _Term | None:
        args = node.args
        if node.operation == "aten.linear.default":
            bias = args[2] if len(args) > 2 else None
            found = (args[0], args[1], False, bias)
        elif node.operation in ("aten.matmul.default", "aten.mm.default"):
            found = (args[0], args[1], True, None)
        elif node.operation == "aten.addmm.default" and len(args) == 3 and not node.kwargs:
            found = (args[1], args[2], True, args[0])
        else:
            return None
        x, weight, turned, bias = found
        constants = [weight] if bias is None else [weight, bias]
        if node.kwargs or not all(isinstance(ref, Ref) and ref.name in self.fixed for ref in constants):
            return None
        matrix = meta_of(self.nodes, weight)
        vector = None if bias is None else meta_of(self.nodes, bias)
        if (
            matrix is None
            or len(matrix.shape) != 2
            or (bias is not None and (vector is None or len(vector.shape) != 1))
        ):
            return None
        return _Term(x, weight, turned, bias)

    def gated(self, node: Node) -> _Term | None:
        """A linear operation times a gate of its shape."""
        if len(self.readers[Ref(node.name)]) != 1:
            return None
        for gate, signal in (node.args[:2], node.args[1::-1]):
            if not (isinstance(gate, Ref) and isinstance(signal, Ref) and self.is_gate(gate)):
                continue
            same = meta_of(self.nodes, gate) == meta_of(self.nodes, signal) == node.meta
            term = self.term(signal) if same else None
            if term is not None and term.gate is None:
                return replace(term, gate=gate)
        return None

    def is_gate(self, ref: Ref) -> bool:
        """The output of a sigmoid, or a part of it."""
        node = self.nodes[ref.name]
        if "sigmoid" in node.operation and "log" not in node.operation:
            return True
        return node.operation.startswith(_MOVES) and self.is_gate(parents(node)[0])

    def part(self, node: Node, index: int) -> _Term | None:
        """A part of the outputs: some rows of the weight."""
        source, metas = node.args[0], node.meta
        whole = meta_of(self.nodes, source)
        dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        if whole is None or not isinstance(metas, tuple) or dim % len(whole.shape) != len(whole.shape) - 1:
            return None
        sizes = [meta.shape[-1] for meta in metas if meta is not None]
        return self.with_rows(source, sum(sizes[:index]), sum(sizes[: index + 1]))

    def sliced(self, node: Node) -> _Term | None:
        """All of a linear operation (`y[:]`), or some rows of its weight."""
        source, dim, start, stop, step = slice_arguments(node)
        whole = meta_of(self.nodes, source)
        if (
            whole is None
            or node.kwargs
            or not all(isinstance(v, (int, type(None))) for v in (start, stop, step))
        ):
            return None
        size = whole.shape[dim]
        start, stop = start or 0, size if stop is None else stop
        if step != 1 or start < 0 or stop < 0:
            return None
        if start == 0 and stop >= END:
            return self.term(source)
        last = dim % len(whole.shape) == len(whole.shape) - 1
        return self.with_rows(source, start, min(stop, size)) if last else None

    def with_rows(self, source: Ref, start: int, stop: int) -> _Term | None:
        term = self.term(source)
        if term is None or term.gate is not None:
            return None
        offset = 0 if term.rows is None else term.rows[0]
        return replace(term, rows=(offset + start, offset + stop))

    def picked(self, node: Node, index: int | None) -> _Term | None:
        """One step of a linear operation: the linear operation of that step."""
        source = node.args[0]
        whole = meta_of(self.nodes, source)
        if index is None:
            dim, index = node.args[1], node.args[2]
        else:
            dim = node.args[1] if len(node.args) > 1 else 0
        if whole is None or not isinstance(index, int):
            return None
        dim = dim % len(whole.shape)
        if dim == len(whole.shape) - 1 or dim in whole.batch:
            return None
        term = self.term(source)
        return (
            None
            if term is None or term.gate is not None
            else replace(term, picks=(*term.picks, (dim, index)))
        )

    def root(self, weight: Ref) -> Ref:
        """The weight that a transposed one was made from."""
        while self.nodes[weight.name].operation in (
            "aten.t.default",
            "aten.transpose.int",
            "aten.permute.default",
        ):
            weight = parents(self.nodes[weight.name])[0]
        return weight

    # ------------------------------------------------------------ the operation that it becomes

    def joint(self, node: Node, terms: list[_Term], bias: Ref | None) -> Node:
        xs, weights, gates, biases = [], [], [], []
        for term in terms:
            xs.append(self.input_of(node, term))
            weights.append(self.rows_of(node, self.matrix_of(node, term), term.rows))
            gates.append(term.gate)
            biases.append(None if term.bias is None else self.rows_of(node, term.bias, term.rows))
        return replace(node, function=joint_linear, args=(xs, weights, gates, biases, bias), kwargs={})

    def matrix_of(self, node: Node, term: _Term) -> Ref:
        if not term.turned:
            return term.weight
        return self.make(
            node, ("t", term.weight), f"{term.weight.name}_t", aten.t.default, (term.weight,), None
        )

    def rows_of(self, node: Node, weight: Ref, rows: tuple[int, int] | None) -> Ref:
        if rows is None:
            return weight
        name = f"{weight.name}_rows_{rows[0]}"
        args = (weight, 0, *rows)
        return self.make(node, ("rows", weight, rows), name, aten.slice.Tensor, args, None)

    def input_of(self, node: Node, term: _Term) -> Ref:
        x = term.x
        for dim, index in term.picks:
            meta = meta_of(self.nodes, x)
            assert meta is not None
            name = f"{x.name}_at_{index}".replace("-", "m")
            x = self.make(
                node, ("pick", x, dim, index), name, aten.select.int, (x, dim, index), meta.without(dim)
            )
        return x

    def make(
        self, at: Node, key: Any, name: str, function: Any, args: tuple[Any, ...], meta: Meta | None
    ) -> Ref:
        """A new node, made once."""
        if key not in self.made:
            name = unused(name, self.nodes)
            node = Node(
                name, "call", function, args, meta=meta,
                module=at.module, module_class=at.module_class, calls=at.calls, source=at.source,
            )  # fmt: skip
            self.nodes[name] = node
            self.result.append(node)
            self.made[key] = Ref(name)
        return self.made[key]


def _is_sum(node: Node) -> bool:
    plain = node.operation == "aten.add.Tensor" and not node.kwargs and len(node.args) == 2
    return plain and all(isinstance(argument, Ref) for argument in node.args)


def _recurrent(graph: Graph, weights: dict[str, set[Ref]]) -> set[str]:
    """The joined sums one of whose weights another one further on uses again; `weights`: of each of them."""
    behind: dict[str, frozenset[Ref]] = {}
    again: set[Ref] = set()
    nothing: frozenset[Ref] = frozenset()
    for node in graph.nodes:
        seen = nothing
        for ref in parents(node):
            above = behind.get(ref.name, nothing)
            seen = seen if above <= seen else above if seen <= above else seen | above
        own = weights.get(node.name)
        if own is not None:
            again |= own & seen
            seen = seen if own <= seen else seen | own
        if seen:
            behind[node.name] = seen
    return {name for name, own in weights.items() if own & again}
