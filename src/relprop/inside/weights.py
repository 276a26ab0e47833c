"""The relevance of the parameters themselves: what passes through each weight on its way to the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from relprop.engine.analyse import values_of
from relprop.engine.canonise import folded_bias, folded_weight
from relprop.engine.graph import Graph, Node, Ref, parents, replace_refs, value_of
from relprop.engine.ops import OPS
from relprop.engine.plan import table
from relprop.engine.propagate import prepare
from relprop.explain import weight_of
from relprop.explain.again import Again, Inside


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Parameters:
    """The relevance of a model's parameters.

    Attributes:
        relevance: from a parameter's path to a tensor of its shape; summed over the batch, or (B, …) per sample. That
            of a weight w_kj is Σ m_kj / d_k R_k over samples and positions, for the messages m of its operation's rule:
            over all w_kj it sums to what the operation hands on. That of a bias is its part of the account "bias".
            Where batch normalisation was folded into the weights (`Composite.fold`), `weight` and `bias` stand for the
            folded ones, and those of the normalisation are left out.
        left_out: from the path of a parameter whose relevance is not defined, or only in part, to the reason. All other
            parameters are in `relevance`; those that no relevance comes by with zeros.
    """

    relevance: dict[str, Tensor]
    left_out: dict[str, str]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            (path, str(tuple(r.shape)), f"{float(r.sum()):+.4g}", f"{float(r.abs().sum()):.4g}")
            for path, r in self.relevance.items()
        ]
        rows += [(path, "·", "left out", reason) for path, reason in self.left_out.items()]
        return table(("parameter", "shape", "Σ R", "Σ|R|"), rows)

    def __repr__(self) -> str:
        return str(self)  # as notebooks show it


def parameters(inside: Inside, per_sample: bool = False) -> Parameters:
    """The relevance of the parameters in one more walk (`per_sample`: one for each sample)."""
    parts = [single for part in inside.parts for single in (_singles(part) if per_sample else [part])]
    found = [_of_part(part) for part in parts]
    left_out = {path: reason for one in found for path, reason in one.left_out.items()}
    paths = dict.fromkeys(path for one in found for path in one.relevance)
    relevance: dict[str, Tensor] = {}
    for path in paths:
        like = next(one.relevance[path] for one in found if path in one.relevance)
        every = [one.relevance.get(path, torch.zeros_like(like)) for one in found]
        relevance[path] = torch.stack(every) if per_sample else sum(every[1:], every[0])
    return Parameters(relevance, left_out)


def _singles(part: Again) -> list[Again]:
    """The same walk for each of its samples."""
    return [part.sample(i) for i in range(part.batch)] if part.batch > 1 else [part]


def _of_part(part: Again) -> Parameters:
    graph, facts = part.captured.graph, part.captured.facts
    constants = [ref for node in graph.nodes for ref in values_of(node) if ref not in facts.data]
    program = prepare(graph, facts, part.program.plan, constants)  # the forward pass keeps what is no data
    told: dict[Ref, list[Tensor]] = {}
    readers: set[tuple[str, Ref]] = set()

    def journal(node: Node, ref: Ref, relevance: Tensor) -> None:
        readers.add((node.name, ref))
        told.setdefault(ref, []).append(relevance.detach())

    passed, way = part.walk(program=program, journal=journal, whole=True)
    reached = {entry.name for entry in way.entries}
    weights = paths_of(part.explainer.model)
    below = {
        ref: found for ref, found in _origins(graph, passed.values, weights).items() if ref not in facts.data
    }
    left_out = {
        path: f"{node.operation} at {node.where()} has no rule that says what of its relevance is this parameter's"
        for node in graph.nodes
        if node.name in reached and node.name in program.rules
        for ref in parents(node)
        if ref in below and (node.name, ref) not in readers
        for path in below[ref]
    }
    found = {
        ref: torch.stack([_fitted(one, value_of(passed.values, ref)) for one in every]).sum(0)
        for ref, every in told.items()
        if ref in below
    }
    relevance, more = _to_weights(graph, found, passed.values, below)
    left_out |= more
    relevance = {path: r for path, r in relevance.items() if path in weights}
    left_out = {path: reason for path, reason in left_out.items() if path in weights}
    for path in weights - relevance.keys() - left_out.keys():  # no relevance comes by
        weight = weight_of(part.explainer.model, path)
        relevance[path] = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
    return Parameters(relevance, left_out)


def paths_of(model: Any) -> frozenset[str]:
    """The paths of a model's parameters."""
    if isinstance(model, ExportedProgram):
        return frozenset(model.graph_signature.parameters)
    return frozenset(path for path, _ in model.named_parameters(remove_duplicate=False))


def _fitted(relevance: Tensor, value: Tensor) -> Tensor:
    """The relevance of a value from that of what it was broadcast or reshaped to."""
    if relevance.numel() == value.numel():
        return relevance.reshape(value.shape)
    return relevance.sum_to_size(value.shape)


def _origins(graph: Graph, values: Mapping[str, Any], weights: frozenset[str]) -> dict[Ref, tuple[str, ...]]:
    """For each value of real numbers that is no data, the parameters that it is computed from, if any."""
    found: dict[Ref, tuple[str, ...]] = {}
    for node in graph.nodes:
        if node.kind == "weight":
            paths: tuple[str, ...] = (node.origin,) if node.origin in weights else ()
        else:
            paths = tuple(dict.fromkeys(path for ref in parents(node) for path in found.get(ref, ())))
        if not paths or node.name not in values:
            continue
        for ref in values_of(node):
            value = value_of(values, ref)
            if isinstance(value, Tensor) and value.is_floating_point():
                found[ref] = paths
    return found


def _to_weights(
    graph: Graph, found: dict[Ref, Tensor], values: Mapping[str, Any], below: Mapping[Ref, tuple[str, ...]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The relevance of parameters from that of values computed from them, and why some get none."""
    pending, relevance, left_out = dict(found), dict[str, Tensor](), dict[str, str]()
    for node in reversed(graph.nodes):
        arrived = {ref: pending.pop(ref) for ref in values_of(node) if ref in pending}
        if not arrived:
            continue
        if node.kind == "weight":
            (amount,) = arrived.values()
            relevance[node.origin] = relevance[node.origin] + amount if node.origin in relevance else amount
            continue
        shares = _back(node, arrived, values, below)
        if shares is None:
            reason = f"{node.operation} at {node.where()} computes what the model uses from it"
            left_out |= dict.fromkeys((path for ref in arrived for path in below[ref]), reason)
            continue
        if node.function in (folded_weight, folded_bias):
            others = [ref for ref in parents(node) if ref in below and ref not in shares]
            reason = f"normalisation folded into {node.module or 'the model itself'}, which has its relevance"
            left_out |= dict.fromkeys((path for ref in others for path in below[ref]), reason)
        for ref, share in shares.items():
            pending[ref] = pending[ref] + share if ref in pending else share
    return relevance, left_out


def _back(
    node: Node, arrived: dict[Ref, Tensor], values: Mapping[str, Any], below: Mapping[Ref, tuple[str, ...]]
) -> dict[Ref, Tensor] | None:
    """The relevance of the parameters' values that a node reads; None where there is no one way to share it."""
    row = OPS.get(node.operation)
    read = list(dict.fromkeys(ref for ref in parents(node) if ref in below))
    if node.function is folded_weight:
        return {node.args[0]: next(iter(arrived.values()))}
    if node.function is folded_bias:
        own = next((argument for argument in (node.args[0], node.args[2]) if isinstance(argument, Ref)), None)
        return {} if own is None else {own: next(iter(arrived.values()))}
    if row is not None and row.kind == "selection":
        return _moved_back(node, read, arrived, values)
    whole = next(iter(arrived.values()))
    elementwise = row is not None and row.kind in ("activation", "product")
    if elementwise and len(read) == 1 and value_of(values, read[0]).shape == whole.shape:
        return {read[0]: whole}  # each value comes from one
    return None


def _moved_back(
    node: Node, read: list[Ref], arrived: dict[Ref, Tensor], values: Mapping[str, Any]
) -> dict[Ref, Tensor]:
    """Each relevance at the place that its value came from."""
    precision = next(iter(arrived.values())).dtype
    leaves = {ref: value_of(values, ref).detach().to(precision).requires_grad_() for ref in read}

    def value(ref: Ref) -> Any:
        return leaves[ref] if ref in leaves else value_of(values, ref)

    assert node.function is not None
    with torch.enable_grad():
        made = node.function(*replace_refs(node.args, value), **replace_refs(node.kwargs, value))
    pairs = [(made if ref.index is None else made[ref.index], r) for ref, r in arrived.items()]
    pairs = [(y, r) for y, r in pairs if y.requires_grad]
    if not pairs:
        return {}
    grads = torch.autograd.grad(
        [y for y, _ in pairs], list(leaves.values()), [r for _, r in pairs], allow_unused=True
    )
    return {ref: grad for ref, grad in zip(leaves, grads, strict=True) if grad is not None}
