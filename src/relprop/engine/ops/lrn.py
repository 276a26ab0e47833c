"""Local response normalisation: torch writes it out, so the pattern is recognised and becomes one operation.

Importing this file adds the rewrite to `canonise.REWRITES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from relprop.engine.canonise import REWRITES, drop_dead, zero_padding
from relprop.engine.graph import Graph, Node, Ref
from relprop.engine.rules import Taylor
from relprop.engine.step import Shares, Step


def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """y_c = x_c / (k + alpha/size Σ_{i∈N(c)} x_i²)^beta over a window of `size` channels, x (B, C, …)."""
    return x / _base(x, size, alpha, k).pow(beta)


def _base(x: Tensor, size: int, alpha: float, k: float) -> Tensor:
    return k + alpha / size * _window_sum(x.square(), size // 2, (size - 1) // 2)


def _window_sum(values: Tensor, before: int, after: int) -> Tensor:
    """Σ over the channels from c − before to c + after, clipped to the tensor."""
    width = values.shape[1]
    channel = torch.arange(width, device=values.device)
    distance = channel[None, :] - channel[:, None]
    near = ((distance >= -before) & (distance <= after)).to(values.dtype)
    return torch.einsum("ci,bi...->bc...", near, values)


def local_response_shares(step: Step, relevance: Tensor) -> Shares:
    """The identity, or under `Taylor` the first-order messages of Binder et al. 2016.

    Between x and the point that keeps only x_c: m_cc = x_c/(k + a x_c²)^β and m_ci = −2aβ x_c x_i²/(k + a Σ
    x²)^(β+1) for the other i of the window, a = alpha/size; R_i = Σ_c m_ci / (Σ_i m_ci + ε s) R_c. Their
    remainder beyond y_c is normalised away.
    """
    rule = step.rule
    if not isinstance(rule, Taylor):
        return Shares({0: relevance})
    x, size, alpha, beta, k = step.args
    a = alpha / size
    before, after = size // 2, (size - 1) // 2
    squares = x.square()
    own = x * (k + a * squares).pow(-beta)
    slope = -2 * a * beta * x * _base(x, size, alpha, k).pow(-beta - 1)
    total = own + slope * (_window_sum(squares, before, after) - squares)
    stabiliser = torch.copysign(total.new_full((), rule.epsilon), total)
    d = total + stabiliser
    s = torch.where(d == 0, 0.0, relevance / d)
    shares = own * s + squares * (_window_sum(slope * s, after, before) - slope * s)
    lost = step.account(torch.where(d == 0, relevance, 0.0))
    return Shares({0: shares}, {"stabilizer": step.account(s * stabiliser), "undistributed": lost})


def recognise_local_response_norm(graph: Graph) -> Graph:
    """x / (alpha · mean of x² over neighbouring channels + k)^beta, as torch writes it out, becomes one
    operation."""
    nodes = {node.name: node for node in graph.nodes}
    result = []
    for node in graph.nodes:
        found = _match(node, nodes)
        if found is not None:
            node = dataclasses.replace(node, function=local_response_norm, args=found, kwargs={})
        result.append(node)
    return drop_dead(dataclasses.replace(graph, nodes=tuple(result)))


def _match(node: Node, nodes: Mapping[str, Node]) -> tuple[Any, ...] | None:
    """x, size, alpha, beta and k of a written-out local response normalisation that ends in `node`."""
    numbers: list[float] = []
    power = node
    for name in ("aten.div.Tensor", "aten.pow.Tensor_Scalar", "aten.add.", "aten.mul."):
        if not power.operation.startswith(name) or power.kwargs or len(power.args) != 2:
            return None
        step = power.args[1] if name == "aten.div.Tensor" else power.args[0]
        if name != "aten.div.Tensor":
            if not isinstance(power.args[1], (int, float)):
                return None
            numbers.append(power.args[1])
        if not isinstance(step, Ref):
            return None
        power = nodes[step.name]
    beta, k, alpha = numbers
    pool = _unshaped(power, nodes)
    pad = _source(pool, nodes)
    if pad is None or not pool.operation.startswith(("aten.avg_pool2d.", "aten.avg_pool3d.")):
        return None
    size = pool.args[1][0]
    flat = all(k == 1 for k in pool.args[1][1:]) and all(s == 1 for s in pool.args[2]) and len(pool.args) == 3
    widths = zero_padding(pad)
    if widths is None or not flat or widths[-2:] != [size // 2, (size - 1) // 2] or any(widths[:-2]):
        return None
    start = _source(pad, nodes)
    square = None if start is None else _unshaped(start, nodes)
    x = node.args[0]
    if square is None or not square.operation.startswith("aten.mul.Tensor") or square.args != (x, x):
        return None
    return x, size, alpha, beta, k


def _source(node: Node, nodes: Mapping[str, Node]) -> Node | None:
    first = node.args[0] if node.args else None
    return nodes[first.name] if isinstance(first, Ref) else None


def _unshaped(node: Node, nodes: Mapping[str, Node]) -> Node:
    """The node before views that add or remove dimensions."""
    while node.operation.startswith(("aten.view.", "aten.squeeze.", "aten.unsqueeze.", "aten.reshape.")):
        before = _source(node, nodes)
        if before is None:
            break
        node = before
    return node


REWRITES.append(recognise_local_response_norm)
