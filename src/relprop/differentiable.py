"""The captured graph as a differentiable function of what is explained: what gradient and sampling methods work on.

It starts at the inputs that are real numbers, and at the embeddings that token ids look up; it ends in one score a
sample. No module is hooked and no parameter's gradient is formed, so functional models work and nothing is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.engine.batch import batch_size, has_batch
from relprop.engine.graph import Graph, Node, Ref, map_output, parents, replace_refs, value_of
from relprop.engine.ops import OPS
from relprop.errors import InvalidInput
from relprop.explain import Captured, Explainer, leaves_of
from relprop.explain.finite import check_output
from relprop.targets import Target, main_output, one_a_sample, sum_of_sample, weights_of

Changed = Callable[[Node], Callable[..., Any] | None]
"""A function of a node: what stands in for its operation, or None."""


def unchanged(node: Node) -> None:
    """Every operation as it is."""


@dataclass(frozen=True, slots=True)
class Differentiable:
    """A model and a target as a function from what is explained to scores.

    Attributes:
        graph: the captured graph.
        leaves: the values of inputs, weights and constants by node name.
        sources: the nodes where the function starts: inputs, and embeddings of token ids.
        points: their values for the inputs that are explained.
        companions: the batched inputs that are not explained (masks), by node name.
        weights: the weights of the explained sum of outputs; None where the target is a callable.
        target: the resolved target.
        output, score: the model's output and its explained score (B,), detached.
    """

    graph: Graph
    leaves: Mapping[str, Any]
    sources: tuple[str, ...]
    points: tuple[Tensor, ...]
    companions: tuple[str, ...]
    weights: Tensor | None
    target: Any
    output: Any
    score: Tensor

    def extra(self) -> tuple[Tensor, ...]:
        """What else has a row a sample, after the points, in the arguments of `scores`."""
        own = () if self.weights is None else (self.weights,)
        return (*own, *(self.leaves[name] for name in self.companions))

    def scores(self, *tensors: Tensor, changed: Changed = unchanged) -> Tensor:
        """One score for each row of `tensors`: values at the sources, then `extra`, all with as many rows."""
        return self.run(tensors, changed)[0]

    def run(
        self, tensors: tuple[Tensor, ...], changed: Changed = unchanged, keep: frozenset[str] = frozenset()
    ) -> tuple[Tensor, dict[str, Any]]:
        """The scores, and the values of the nodes to keep."""
        count = len(self.sources)
        starts = dict(zip(self.sources, tensors[:count], strict=True))
        rest = list(tensors[count:])
        weights = rest.pop(0) if self.weights is not None else None
        if not self.graph.batched and tensors[0].shape[0] > 1:
            rows = [
                self.run(tuple(t[i : i + 1] for t in tensors), changed)[0] for i in range(len(tensors[0]))
            ]
            return torch.cat(rows), {}
        leaves = {**self.leaves, **dict(zip(self.companions, rest, strict=True))}
        values = _run(self.graph, leaves, starts, changed, keep)
        output = map_output(self.graph.output, lambda ref: value_of(values, ref))
        if weights is None:
            return self.target(output), values
        return sum_of_sample(weights * main_output(output)), values

    def gradients(
        self, *points: Tensor, changed: Changed = unchanged, extra: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, ...]:
        """∂ score / ∂ point of each row, at the points (by default those of the inputs); zeros where there is none."""
        at = tuple(point.detach().clone().requires_grad_() for point in points or self.points)
        with torch.enable_grad():
            scores = self.scores(*at, *(self.extra() if extra is None else extra), changed=changed)
            if not scores.requires_grad:
                return tuple(torch.zeros_like(point) for point in at)
            found = torch.autograd.grad(scores.sum(), at, allow_unused=True)
        return tuple(torch.zeros_like(p) if g is None else g for p, g in zip(at, found, strict=True))


def differentiable(
    explainer: Explainer, captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any], target: Target
) -> Differentiable:
    """The function that one target of a batch defines. Raises `InvalidInput` as the walk does for a wrong target."""
    graph = captured.graph
    leaves = leaves_of(explainer.model, graph, args, kwargs)
    sources = sources_of(captured)
    if not sources:
        raise InvalidInput(
            "inputs: nothing to differentiate by: no real input and no look-up of single tokens (nn.Embedding; a bag of them is"
            " none)\n  do: explain it with method='lrp', or give the model's inputs as real numbers"
        )
    batch = batch_size((args, kwargs))
    with torch.no_grad():
        values = _run(graph, leaves, {}, unchanged, frozenset(sources))
    output = map_output(graph.output, lambda ref: value_of(values, ref))
    weights, resolved = None, target
    if callable(target) and not isinstance(target, Tensor):
        with torch.no_grad():
            score = one_a_sample(target(output), batch)
    else:
        main = main_output(output)
        check_output(explainer.model, captured, leaves, main_output(graph.output), main)
        weights, resolved = weights_of(target, main, batch)
        score = sum_of_sample(weights * main)
    points = tuple(values[name].detach() for name in sources)
    inputs = {node.name: node for node in graph.nodes if node.kind == "input"}
    companions = tuple(
        name
        for name in inputs
        if name not in sources and name not in graph.shared and has_batch(leaves[name], batch)
    )
    return Differentiable(
        graph, leaves, sources, points, companions, weights, resolved, output, score.detach()
    )


def sources_of(captured: Captured) -> tuple[str, ...]:
    """The inputs that are real numbers, and the embeddings that look up token ids that are explained."""
    data = captured.facts.data
    found = []
    for node in captured.graph.nodes:
        if node.kind == "input":
            real = (
                not isinstance(node.meta, tuple)
                and node.meta is not None
                and node.meta.dtype.is_floating_point
            )
            if Ref(node.name) in data and real:
                found.append(node.name)
        elif node.kind == "call" and Ref(node.name) in data:
            row = OPS.get(node.operation)
            if row is not None and row.kind == "embedding":
                found.append(node.name)
    return tuple(found)


def inputs_behind(captured: Captured, sources: tuple[str, ...]) -> dict[str, str]:
    """For each source, the input of the model that it is, or whose token ids it looks up."""
    nodes = {node.name: node for node in captured.graph.nodes}
    found = {}
    for source in sources:
        node = nodes[source]
        while node.kind != "input":
            node = nodes[next(ref.name for ref in parents(node) if ref in captured.facts.data)]
        found[source] = node.name
    return found


def _run(
    graph: Graph,
    leaves: Mapping[str, Any],
    starts: Mapping[str, Tensor],
    changed: Changed,
    keep: frozenset[str],
) -> dict[str, Any]:
    """Run the graph forward, from other values at some nodes; values that nothing reads any more are freed."""
    values: dict[str, Any] = {**leaves, **starts}
    last = {ref.name: node.name for node in graph.nodes for ref in parents(node)}
    held = keep | {ref.name for ref in graph.outputs()}
    gone: dict[str, list[str]] = {}
    for name, reader in last.items():
        if name not in held:
            gone.setdefault(reader, []).append(name)
    for node in graph.nodes:
        if node.kind == "call" and node.name not in starts:
            function = changed(node) or node.function
            assert function is not None

            def value(ref: Ref) -> Any:
                return value_of(values, ref)

            values[node.name] = function(*replace_refs(node.args, value), **replace_refs(node.kwargs, value))
        for name in gone.get(node.name, ()):
            values.pop(name, None)
    return values
