"""Slow twins of the rules for linear operations: one message at a time, on a dense matrix, as the papers
write them.

Every function takes x (n,), the matrix w (m, n), the bias b (m,) or None and the relevance r (m,) of z = w x
+ b, all in float64, and the rule with its options. It returns the relevance of x and the accounts, as
numbers. `connected` (m, n) tells which inputs a unit has at all (a convolution's unit has those of its
window).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.engine.rules import AlphaBeta, Epsilon, Flat, Gamma, LinearRule, WSquare, ZBox, ZPlus

Array = np.ndarray[Any, np.dtype[np.float64]]
Twin = tuple[Array, dict[str, float]]


def dense(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Array:
    """The matrix of a linear function of one sample of that shape, column by column."""
    size = int(np.prod(shape))
    columns = [
        function(torch.eye(size, dtype=torch.float64)[j].reshape(shape)).flatten() for j in range(size)
    ]
    return torch.stack(columns, 1).numpy()


def sign(value: float) -> float:
    """+1 for zero."""
    return 1.0 if value >= 0 else -1.0


def denominator(rule: LinearRule, z: float, of: float, all_z: Array) -> float:
    """z with its stabiliser, of the sign of `of` (methods sheet, 1.5)."""
    if rule.epsilon == 0:
        return z
    if rule.stabiliser == "signed":
        return z + rule.epsilon * sign(of)
    if rule.stabiliser == "unsigned":
        return z + rule.epsilon
    if rule.stabiliser == "clip":
        return z if abs(z) >= rule.epsilon else rule.epsilon * sign(of)
    if rule.stabiliser == "relative":
        return z + rule.epsilon * float(np.sqrt(np.mean(all_z**2))) * sign(of)
    assert rule.stabiliser == "exact_zero_only"
    return z if z != 0 else rule.epsilon * sign(of)


def hand_on(
    rule: LinearRule,
    messages: Array,
    biases: Array | None,
    signs: Array,
    r: Array,
    connected: Array,
    empty: str = "",
) -> Twin:
    """R_j = Σ_k m_kj / d_k R_k with d_k = Σ_j m_kj + m_kb + stabiliser, message by message (methods sheet,
    2).

    `biases` is m_kb, None where the bias takes no part. `empty`: the account of units whose d is 0 before it
    is stabilised.
    """
    m, n = messages.shape
    result = np.zeros(n)
    accounts: dict[str, float] = {}

    def enter(reason: str, amount: float) -> None:
        accounts[reason] = accounts.get(reason, 0.0) + amount

    z = np.array([messages[k].sum() + (0.0 if biases is None else biases[k]) for k in range(m)])
    for k in range(m):
        if empty and z[k] == 0:
            enter(empty, r[k])
            continue
        d = denominator(rule, z[k], signs[k], z)
        if d == 0:
            enter("undistributed", r[k])
            continue
        for j in range(n):
            result[j] += messages[k, j] / d * r[k]
        to_stabiliser, to_bias = (d - z[k]) / d * r[k], 0.0 if biases is None else biases[k] / d * r[k]
        if rule.bias != "distribute":
            enter("stabilizer", to_stabiliser)
            enter("bias", to_bias)
            continue
        count = int(connected[k].sum())
        if count == 0:
            enter("undistributed", to_stabiliser + to_bias)
        for j in range(n):
            if connected[k, j]:
                result[j] += (to_stabiliser + to_bias) / count
    return result, accounts


def both(first: Twin, second: Twin) -> Twin:
    accounts = dict(first[1])
    for reason, amount in second[1].items():
        accounts[reason] = accounts.get(reason, 0.0) + amount
    return first[0] + second[0], accounts


def contributions(x: Array, w: Array) -> Array:
    """z_kj = x_j w_kj."""
    return x[None, :] * w


def epsilon(rule: Epsilon, x: Array, w: Array, b: Array | None, r: Array, connected: Array) -> Twin:
    """Bach et al. 2015, Eq. 58 (Eq. 56 for ε = 0): m_kj = z_kj, m_kb = b_k."""
    bias = None if rule.bias == "ignore" else b
    z = contributions(x, w)
    true = z.sum(1) + (0.0 if bias is None else bias)
    return hand_on(rule, z, bias, true, r, connected)


def gamma(rule: Gamma, x: Array, w: Array, b: Array | None, r: Array, connected: Array) -> Twin:
    """Montavon et al. 2019, Sec. 10.2.1, in the form of Andéol et al. 2021 for inputs of any sign.

    m_kj = z_kj + γ z_kj⁺ where z_k > 0, z_kj + γ z_kj⁻ where z_k < 0, 0 where z_k = 0; the bias is one more
    contribution.
    """
    bias = None if rule.bias == "ignore" else b
    z = contributions(x, w)
    if not rule.modified_bias:  # captum: the weights w + γ w⁺, the bias as it is
        messages = contributions(x, w + rule.gamma * np.maximum(w, 0))
        total = messages.sum(1) + (0.0 if bias is None else bias)
        return hand_on(rule, messages, bias, total, r, connected)
    messages, favoured = np.zeros_like(z), None if bias is None else np.zeros_like(bias)
    true = z.sum(1) + (0.0 if bias is None else bias)
    for k in range(len(r)):
        if true[k] == 0:
            continue
        pick = max if true[k] > 0 else min
        for j in range(len(x)):
            messages[k, j] = z[k, j] + rule.gamma * pick(z[k, j], 0.0)
        if favoured is not None and bias is not None:
            favoured[k] = bias[k] + rule.gamma * pick(bias[k], 0.0)
    return hand_on(rule, messages, favoured, true, r, connected)


def alpha_beta(
    rule: AlphaBeta | ZPlus, x: Array, w: Array, b: Array | None, r: Array, connected: Array
) -> Twin:
    """Bach et al. 2015, Eq. 60: α z_kj⁺/(Σ z_kj⁺ + b_k⁺) − β z_kj⁻/(Σ z_kj⁻ + b_k⁻); z⁺ is α = 1, β = 0."""
    alpha, beta = (1.0, 0.0) if isinstance(rule, ZPlus) else (rule.alpha, rule.beta)
    full = isinstance(rule, AlphaBeta) and rule.full_bias
    z = contributions(x, w)
    bias = None if rule.bias == "ignore" else b

    def side(pick: Callable[[Array, float], Array], share: float, direction: float, empty: str) -> Twin:
        part = None if bias is None else bias if full else pick(bias, 0.0)
        messages = pick(z, 0.0)
        total = messages.sum(1) + (0.0 if part is None else part)
        signs = total if full else np.full(len(r), direction)
        return hand_on(rule, messages, part, signs, share * r, connected, empty)

    upper = side(np.maximum, alpha, 1.0, "no_positive_part")
    return both(upper, side(np.minimum, -beta, -1.0, "no_negative_part")) if beta else upper


def z_box(rule: ZBox, x: Array, w: Array, b: Array | None, r: Array, connected: Array) -> Twin:
    """Montavon et al. 2017: m_kj = x_j w_kj − l_j w_kj⁺ − h_j w_kj⁻, without the bias."""
    low, high = (
        np.broadcast_to(np.asarray(v, dtype=np.float64).flatten(), x.shape) for v in (rule.low, rule.high)
    )
    messages = x * w - low * np.maximum(w, 0) - high * np.minimum(w, 0)
    return hand_on(rule, messages, None, np.ones(len(r)), r, connected)


def w_square(rule: WSquare, x: Array, w: Array, b: Array | None, r: Array, connected: Array) -> Twin:
    """Montavon et al. 2017 (arXiv v1, Eq. 12): m_kj = w_kj²; with a bias, m_kb = b_k² (zennit)."""
    bias = None if rule.bias == "ignore" or b is None else b**2
    return hand_on(rule, w**2, bias, np.ones(len(r)), r, connected)


def flat(rule: Flat, x: Array, w: Array, b: Array | None, r: Array, connected: Array) -> Twin:
    """Lapuschkin et al. 2019: m_kj = 1 where unit k reads input j."""
    return hand_on(rule, connected.astype(np.float64), None, np.ones(len(r)), r, connected)


ORACLE: dict[type[LinearRule], Callable[..., Twin]] = {
    Epsilon: epsilon,
    Gamma: gamma,
    AlphaBeta: alpha_beta,
    ZPlus: alpha_beta,
    ZBox: z_box,
    WSquare: w_square,
    Flat: flat,
}
"""The twin of every rule of `RULES`."""
