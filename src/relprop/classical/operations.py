"""The operations that classical models add to the table: what torch has no operation for whose shares would be right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relprop.classical.kernels import KERNELS, blocks
from relprop.engine.ops.table import Operation, register
from relprop.engine.rules import Epsilon
from relprop.engine.rules.affine import add
from relprop.engine.step import Shares, Step


def declare(name: str, function: Callable[..., Tensor], shape: Callable[..., Tensor], row: Operation) -> None:
    """Make a function an operation: for capture by the shape of its result, for gradients by running it again."""
    operation = torch.library.custom_op(f"relprop::{name}", function, mutates_args=())
    operation.register_fake(shape)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.given = inputs

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            x = ctx.given[0].detach().requires_grad_()
            result = function(x, *ctx.given[1:])
        if not result.requires_grad:  # a step function
            return (torch.zeros_like(x), *[None] * (len(ctx.given) - 1))
        (found,) = torch.autograd.grad(result, x, gradient)
        return (found, *[None] * (len(ctx.given) - 1))

    operation.register_autograd(backward, setup_context=keep)
    register(f"relprop.{name}.default", row)


def _like(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _wide(x: Tensor, other: Tensor, *rest: Any) -> Tensor:
    """(B, K), K the length of the second argument."""
    return x.new_empty((x.shape[0], other.shape[0]))


def passed(step: Step, relevance: Tensor) -> Shares:
    """The identity."""
    return Shares({0: relevance})


# ---------------------------------------------------------------- differences, norms, roots


def centre(x: Tensor, reference: Tensor) -> Tensor:
    """x − r, all of whose relevance is x's: the reference is where relevance is zero."""
    return x - reference


def unit_rows(x: Tensor, norm: str) -> Tensor:
    """The rows of x (B, D) at length 1 by "l1", "l2" or "max"; rows of zeros stay. The length is a constant (identity)."""
    order = {"l1": 1.0, "l2": 2.0, "max": float("inf")}[norm]
    length = torch.linalg.vector_norm(x, order, dim=1, keepdim=True)
    return x / torch.where(length == 0, 1.0, length)


def _log_counts(x: Tensor) -> Tensor:
    seen = x > 0
    return torch.where(seen, 1 + torch.log(torch.where(seen, x, 1.0)), 0.0)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "log_counts": _log_counts,  # 1 + log x of counts, 0 of 0: the sublinear term frequency
    "signed_root": lambda x: torch.sign(x) * x.abs().sqrt(),  # the power normalisation of Fisher vectors
    "squashed": lambda x: x / (3 * (x.abs() + 1)),  # the tie-break of one-versus-one votes
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "square": torch.square,
}
"""Functions of single values that a classical model applies, by name."""


def elementwise(x: Tensor, name: str) -> Tensor:
    """A function of `FUNCTIONS` of each value (identity)."""
    return FUNCTIONS[name](x)


_PASSED = Operation("activation", passed, "nothing")
declare("centre", centre, _like, _PASSED)
declare("unit_rows", unit_rows, _like, _PASSED)
declare("elementwise", elementwise, _like, _PASSED)


# ---------------------------------------------------------------- distances and their margins


def distances(x: Tensor, centres: Tensor, precision: Tensor | None, power: int) -> Tensor:
    """d_k = Σ_i q_ki, (B, K): q = (x_i − μ_ki)², weighted by a precision (K, D), or δ_i (P_k δ)_i by one (K, D, D).

    With power 1, q = |x_i − μ_ki|.
    """
    if precision is not None and precision.dim() == 3:
        return _terms(x, centres, precision, power).sum(-1)
    if power == 1:
        return torch.cdist(x, centres, p=1.0)
    if precision is None:
        return torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.cat([_terms(x, u, p, 2).sum(-1) for u, p in _paired(x, centres, precision)], 1)


def _paired(x: Tensor, centres: Tensor, precision: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """Centres and their precisions in blocks."""
    parts = blocks(centres, x.shape[0])
    if precision is None:
        return [(part, None) for part in parts]
    return list(zip(parts, torch.split(precision, len(parts[0])), strict=True))


def _terms(x: Tensor, centres: Tensor, precision: Tensor | None, power: int) -> Tensor:
    """q, (B, K, D)."""
    gap = x[:, None] - centres[None]
    if precision is not None and precision.dim() == 3:
        return gap * torch.einsum("kde,bke->bkd", precision, gap)
    terms = gap.abs() if power == 1 else gap.square()
    return terms if precision is None else terms * precision


def share_distances(step: Step, relevance: Tensor) -> Shares:
    """Each distance in proportion to its terms (Kauffmann et al. 2020): R_i = Σ_k q_ki / d_k R_k."""
    x, centres, precision, power = step.args
    d: Tensor = step.output
    empty = d == 0
    s = torch.where(empty, 0.0, relevance / torch.where(empty, 1.0, d))
    shares = torch.zeros_like(x)
    start = 0
    for u, p in _paired(x, centres, precision):
        part = s[:, start : start + len(u)]
        shares = shares + torch.einsum("bk,bkd->bd", part, _terms(x, u, p, power))
        start += len(u)
    return Shares({0: shares}, {"undistributed": step.account(torch.where(empty, relevance, 0.0))})


declare("distances", distances, _wide, Operation("activation", share_distances))


def margins(d: Tensor, own: Tensor, other: Tensor, beta: float, soft: bool) -> Tensor:
    """f_c = min over the pairs of c of h = d_other − d_own, (B, C); `soft`: −β⁻¹ log Σ exp(−β h).

    own and other (C, M): which distances of d (B, K) are compared; own = −1 where a cluster has fewer pairs.
    """
    h = _gaps(d, own, other)
    return -torch.logsumexp(-beta * h, -1) / beta if soft else h.amin(-1)


def _gaps(d: Tensor, own: Tensor, other: Tensor) -> Tensor:
    h = d[:, other.clamp(min=0)] - d[:, own.clamp(min=0)]
    return torch.where(own < 0, torch.inf, h)


def share_margins(step: Step, relevance: Tensor) -> Shares:
    """R of each pair is softmin(β h) R, and h is a difference of two distances (Kauffmann et al. 2022, NEON).

    β = 0 stands for 1/|f|, the size of each sample's own evidence; β = ∞ is winner takes all. With distances that are
    shared in proportion to their terms, the result is that of the linear layer w·(x − m), m the midpoint of two centres.
    """
    d, own, other, beta, _ = step.args
    f: Tensor = step.output
    h = _gaps(d, own, other)
    sharpness = torch.full_like(f, beta) if beta else 1 / torch.where(f == 0, 1.0, f.abs())
    if beta == float("inf"):
        p = torch.nn.functional.one_hot(h.argmin(-1), h.shape[-1]).to(h.dtype)
    else:
        p = torch.softmax(-sharpness.unsqueeze(-1) * h, -1)
    part = p * relevance.unsqueeze(-1)
    empty = (h == 0) | torch.isinf(h)
    s = torch.where(empty, 0.0, part / torch.where(empty, 1.0, h))
    tau = torch.zeros_like(d)
    for index, sign in ((other, 1), (own, -1)):
        tau = tau.index_add(1, index.clamp(min=0).flatten(), sign * s.flatten(1))
    lost = step.account(torch.where(h == 0, part, 0.0).sum(-1))
    return Shares({0: tau * d}, {"undistributed": lost})


declare("margins", margins, _wide, Operation("activation", share_margins))


# ---------------------------------------------------------------- kernel machines


def kernel_machine(
    x: Tensor,
    support: Tensor,
    coefficients: Tensor,
    bias: Tensor | None,
    reference: Tensor,
    kernel: str,
    gamma: float,
    coef0: Tensor,
    degree: int,
) -> Tensor:
    """f_k = Σ_j c_kj k(x + r, u_j) + b_k, (B, C), of x (B, D) counted from the reference r; kernels are `KERNELS`."""
    row = KERNELS[kernel]
    values = row.function(row.sums(x + reference, support), gamma, coef0, degree) @ coefficients.T
    return values if bias is None else values + bias


def share_kernels(step: Step, relevance: Tensor) -> Shares:
    """Each feature's share of Σ_j c_j [k(x, u_j) − k(r, u_j)] (see `kernels`); what is left is the score at the
    reference, with the intercept: the bias, by the rule's option."""
    x, support, coefficients, bias, reference, name, gamma, coef0, degree = step.args
    rule = step.rule
    assert isinstance(rule, Epsilon)
    row = KERNELS[name]
    constant = torch.zeros_like(coefficients[:, 0]) if bias is None else bias
    at_reference = row.sums(reference[None], support)
    if not row.additive:
        constant = constant + coefficients @ row.function(at_reference, gamma, coef0, degree)[0]
    z = step.output - constant if rule.bias == "ignore" else step.output
    stabiliser = torch.copysign(z.new_full((), rule.epsilon), z)
    d = z + stabiliser
    empty = d == 0
    s = torch.where(empty, 0.0, relevance / torch.where(empty, 1.0, d))
    weights = s @ coefficients
    whole = x + reference
    if row.additive:
        shares = row.spread(whole, None, support, weights)
    else:
        slope = row.slope(row.sums(whole, support), at_reference, gamma, coef0, degree)
        shares = row.spread(whole, reference, support, weights * slope)
    absorbed: dict[str, Tensor] = {"undistributed": step.account(torch.where(empty, relevance, 0.0))}
    rest = {"stabilizer": s * stabiliser}
    if rule.bias != "ignore":
        rest["bias"] = s * constant
    if rule.spreads:
        shares = shares + sum(part.sum(1, keepdim=True) for part in rest.values()) / x.shape[1]
    else:
        for reason, part in rest.items():
            add(absorbed, reason, step.account(part))
    return Shares({0: shares}, absorbed)


declare(
    "kernel_machine",
    kernel_machine,
    lambda x, support, coefficients, *rest: x.new_empty((x.shape[0], coefficients.shape[0])),
    Operation("linear", share_kernels, "both", Epsilon(0.0), (Epsilon,)),
)


# ---------------------------------------------------------------- features of features


def monomials(x: Tensor, powers: Tensor) -> Tensor:
    """Π_i x_i^(p_ki), (B, K), for whole powers (K, D)."""
    return torch.stack([(x**row).prod(1) for row in powers], 1)


def share_monomials(step: Step, relevance: Tensor) -> Shares:
    """A product of n factors: 1/n to each (Achtibat et al. 2024, Prop. 3.2); the constant 1 keeps what it gets."""
    powers: Tensor = step.args[1]
    degree = powers.sum(1)
    share = powers.to(relevance.dtype) / degree.clamp(min=1).unsqueeze(1)
    kept = torch.where(degree == 0, relevance, 0.0)
    return Shares({0: relevance @ share}, {"constant": step.account(kept)})


declare("monomials", monomials, _wide, Operation("activation", share_monomials, "inputs"))


def one_hot(x: Tensor, column: Tensor, category: Tensor) -> Tensor:
    """1 where x (B, D) has in a column (M,) that category (M,), else 0: (B, M)."""
    return (x[:, column] == category).to(x.dtype)


def share_one_hot(step: Step, relevance: Tensor) -> Shares:
    """A column receives what all its categories have."""
    x: Any = step.args[0]
    return Shares({0: torch.zeros_like(x).index_add(1, step.args[1], relevance)})


declare("one_hot", one_hot, _wide, Operation("activation", share_one_hot, "inputs"))
