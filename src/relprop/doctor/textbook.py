"""Single operations of the user's model against the papers' formulas, one unit at a time.

The engine's relevance functions work on whole tensors with modified weights. Here a unit's weights are read off by
differentiating the operation itself, and its relevance is handed on as the formula is printed; both must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Node, Ref, parents, replace_refs, value_of
from relprop.engine.ops import OPS
from relprop.engine.propagate import Program, Weights, pairs_of, step_of
from relprop.engine.rules import (
    Addition,
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    MaxPool,
    Pass,
    Rule,
    WSquare,
    ZBox,
    ZPlus,
)

UNITS = 4
"""How many units of an operation are compared."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What was found at one operation: the largest difference relative to the formula's largest message."""

    node: Node
    rule: Rule
    difference: float


@dataclass(frozen=True, slots=True)
class Case:
    """One operation of a planned graph, the values of a forward pass, and where random numbers come from."""

    program: Program
    node: Node
    rule: Rule
    values: Mapping[str, Any]
    store: Weights
    batch: int
    generator: torch.Generator


def compare(
    program: Program, values: Mapping[str, Any], store: Weights, batch: int, seed: int
) -> tuple[list[Compared], dict[str, int]]:
    """Each operation of a planned graph against its formula; and how many of each kind have none here."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Compared] = []
    skipped: dict[str, int] = {}
    nodes = {node.name: node for node in program.graph.nodes}
    for row in program.plan:
        node = nodes[row.name]
        formula = _formula(row.kind, row.rule, node, program)
        if formula is None or not isinstance(values[node.name], Tensor):
            skipped[row.kind] = skipped.get(row.kind, 0) + 1
            continue
        assert row.rule is not None
        found.append(
            Compared(node, row.rule, formula(Case(program, node, row.rule, values, store, batch, generator)))
        )
    return found, skipped


Formula = Callable[[Case], float]


def _formula(kind: str, rule: Rule | None, node: Node, program: Program) -> Formula | None:
    """The comparison that applies to an operation, or None."""
    sources = {ref for ref in parents(node) if ref in program.facts.data}
    plain = getattr(rule, "stabiliser", "signed") == "signed" and getattr(rule, "bias", "") != "distribute"
    if kind in ("linear", "convolution", "batch_norm", "pool") and len(sources) == 1:
        return _units if plain and type(rule) in MESSAGES else None
    if kind == "addition" and isinstance(rule, Addition) and rule.how == "proportional":
        return _units
    if (kind == "selection" and isinstance(rule, Pass)) or (
        kind == "max" and isinstance(rule, MaxPool) and rule.how == "winner"
    ):
        return _moved
    if kind in ("activation", "norm") and isinstance(rule, Pass) and len(sources) == 1:
        return _kept
    return None


def _differentiable(case: Case) -> tuple[dict[Ref, Tensor], Tensor]:
    """The data that an operation reads, as leaves of a differentiable graph, and its output."""
    leaves: dict[Ref, Tensor] = {}

    def value(ref: Ref) -> Any:
        held = value_of(case.values, ref)
        if ref in case.program.facts.data and held.is_floating_point():
            if ref not in leaves:
                leaves[ref] = held.detach().clone().requires_grad_()
            return leaves[ref]
        return held

    function = case.node.function
    assert function is not None
    with torch.enable_grad():
        output = function(*replace_refs(case.node.args, value), **replace_refs(case.node.kwargs, value))
    return leaves, output


def _engine(case: Case, relevance: Tensor) -> dict[Ref, Tensor]:
    """What the engine hands to each value that the operation reads."""
    step = step_of(case.program, case.node, case.values, case.store, case.batch)
    total: dict[Ref, Tensor] = {}
    for ref, share in pairs_of(case.node, OPS[case.node.operation].propagate(step, relevance)):
        total[ref] = total[ref] + share if ref in total else share
    return total


def _units(case: Case) -> float:
    """Messages of a few units of an operation that is linear in its data."""
    leaves, output = _differentiable(case)
    worst = 0.0
    for index in torch.randint(output.numel(), (UNITS,), generator=case.generator).tolist():
        unit = output.flatten()[index]
        gradients = torch.autograd.grad(unit, list(leaves.values()), retain_graph=True, allow_unused=True)
        x = torch.cat([leaf.detach().flatten() for leaf in leaves.values()])
        w = torch.cat(
            [
                (torch.zeros_like(leaf) if g is None else g).flatten()
                for leaf, g in zip(leaves.values(), gradients, strict=True)
            ]
        )
        bias = float(unit.detach()) - float(w.double() @ x.double())
        bias = 0.0 if abs(bias) <= 1e-12 * float((w.double() * x.double()).abs().sum()) else bias
        first = next(iter(leaves.values()))
        box = tuple(
            torch.as_tensor(getattr(case.rule, side, 0.0), dtype=x.dtype, device=x.device)
            .expand(first.shape)
            .flatten()
            for side in ("low", "high")
        )
        expected = _handed_on(case.rule, x, w, bias, box)
        relevance = torch.zeros(output.shape, dtype=output.dtype, device=output.device)
        relevance.view(-1)[index] = 1.0
        shares = _engine(case, relevance)
        given = torch.cat([shares.get(ref, torch.zeros_like(leaf)).flatten() for ref, leaf in leaves.items()])
        scale = max(float(expected.abs().max()), 1e-12)
        worst = max(worst, float((given - expected).abs().max()) / scale)
    return worst


def _handed_on(rule: Rule, x: Tensor, w: Tensor, bias: float, box: tuple[Tensor, ...]) -> Tensor:
    """What one unit hands to its inputs of a relevance of 1: Σ over the parts of a rule of m_j / (Σ m_j + m_b + ε s)."""
    epsilon = getattr(rule, "epsilon", 0.0)
    keeps = getattr(rule, "bias", "absorb") == "absorb"
    result = torch.zeros_like(x)
    for share, messages, of_bias, sign in MESSAGES[type(rule)](rule, x, w, bias if keeps else 0.0, box):
        total = float(messages.double().sum()) + of_bias
        if (total == 0 and epsilon == 0) or (sign and not bool((messages != 0).any()) and of_bias == 0):
            continue
        direction = sign or (1.0 if total >= 0 else -1.0)
        result = result + share * messages / (total + epsilon * direction)
    return result


Parts = list[tuple[float, Tensor, float, float]]
"""(its share of relevance, the messages m_j, the bias' message, the stabiliser's sign: 0 for that of the sum)."""


def _epsilon(rule: Any, x: Tensor, w: Tensor, b: float, box: Any) -> Parts:
    """Bach et al. 2015, Eq. 58."""
    return [(1.0, x * w, b, 0.0)]


def _gamma(rule: Any, x: Tensor, w: Tensor, b: float, box: Any) -> Parts:
    """Montavon et al. 2019; Andéol et al. 2021: contributions with the sign of z count 1 + γ times."""
    z = x * w
    if not rule.modified_bias:
        return [(1.0, x * (w + rule.gamma * w.clamp(min=0)), b, 0.0)]
    total = float(z.double().sum()) + b
    if total == 0:
        return []
    if total > 0:
        return [(1.0, z + rule.gamma * z.clamp(min=0), b + rule.gamma * max(b, 0.0), 1.0)]
    return [(1.0, z + rule.gamma * z.clamp(max=0), b + rule.gamma * min(b, 0.0), -1.0)]


def _alpha_beta(rule: Any, x: Tensor, w: Tensor, b: float, box: Any) -> Parts:
    """Bach et al. 2015, Eq. 60; z⁺ is α = 1, β = 0."""
    alpha, beta = getattr(rule, "alpha", 1.0), getattr(rule, "beta", 0.0)
    full, z = getattr(rule, "full_bias", False), x * w
    parts = [(alpha, z.clamp(min=0), b if full else max(b, 0.0), 0.0 if full else 1.0)]
    return (
        [*parts, (-beta, z.clamp(max=0), b if full else min(b, 0.0), 0.0 if full else -1.0)]
        if beta
        else parts
    )


def _z_box(rule: Any, x: Tensor, w: Tensor, b: float, box: Any) -> Parts:
    """Montavon et al. 2017: x_j w_j − l_j w_j⁺ − h_j w_j⁻, without the bias."""
    low, high = box
    return [(1.0, x * w - low * w.clamp(min=0) - high * w.clamp(max=0), 0.0, 1.0)]


def _w_square(rule: Any, x: Tensor, w: Tensor, b: float, box: Any) -> Parts:
    """Montavon et al. 2017 (arXiv v1, Eq. 12): w_j²."""
    return [(1.0, w**2, b**2, 1.0)]


def _flat(rule: Any, x: Tensor, w: Tensor, b: float, box: Any) -> Parts:
    """Lapuschkin et al. 2019: 1 for each input that the unit reads."""
    return [(1.0, (w != 0).to(x.dtype), 0.0, 1.0)]


MESSAGES: dict[type[Rule], Callable[..., Parts]] = {
    Epsilon: _epsilon,
    Addition: _epsilon,
    Gamma: _gamma,
    AlphaBeta: _alpha_beta,
    ZPlus: _alpha_beta,
    ZBox: _z_box,
    WSquare: _w_square,
    Flat: _flat,
}


def _moved(case: Case) -> float:
    """Where values move and stay as they are, relevance goes back the same way: the operation's transpose."""
    leaves, output = _differentiable(case)
    if not leaves or output.grad_fn is None:
        return 0.0
    relevance = torch.randn(output.shape, generator=case.generator, dtype=torch.float64).to(output)
    expected = torch.autograd.grad(output, list(leaves.values()), relevance, allow_unused=True)
    shares = _engine(case, relevance)
    return _worst(
        [
            (shares.get(ref), torch.zeros_like(leaf) if g is None else g)
            for (ref, leaf), g in zip(leaves.items(), expected, strict=True)
        ]
    )


def _kept(case: Case) -> float:
    """The identity: the input's relevance is the output's, summed where the input was repeated."""
    (source,) = {ref for ref in parents(case.node) if ref in case.program.facts.data}
    held, output = value_of(case.values, source), case.values[case.node.name]
    relevance = torch.randn(output.shape, generator=case.generator, dtype=torch.float64).to(output)
    shares = _engine(case, relevance)
    return _worst([(shares.get(source), relevance.sum_to_size(held.shape))])


def _worst(pairs: list[tuple[Tensor | None, Tensor]]) -> float:
    worst = 0.0
    for given, expected in pairs:
        given = torch.zeros_like(expected) if given is None else given
        if given.shape != expected.shape:
            return float("inf")
        if expected.numel():
            scale = max(float(expected.abs().max()), 1e-12)
            worst = max(worst, float((given - expected).abs().max()) / scale)
    return worst
