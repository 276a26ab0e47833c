"""Kernels k(x, u) = φ(Σ_i κ(x_i, u_i)): a sum over features, then a function of one number. `KERNELS` is the table.

A kernel of that form has a share for each feature, exactly and in closed form, of what it changes between a reference r
and x: k(x, u) − k(r, u) = Σ_i [κ(x_i, u_i) − κ(r_i, u_i)] · (φ(s) − φ(s_r)) / (s − s_r), with s and s_r the two sums. It
is the first-order expansion (Bach et al. 2015, Taylor-type decomposition) with the mean slope of φ on the way from r to
x in place of the slope at one point, so that nothing is left over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 2**22
"""Values (B, n, D) that are held at a time where a kernel needs them one by one."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row of `KERNELS`.

    `sums(x, u)` is Σ_i κ(x_i, u_i), (B, n) for x (B, D) and u (n, D). `spread(x, r, u, t)` is, for weights t (B, n),
    Σ_j t_j [κ(x_i, u_ji) − κ(r_i, u_ji)], (B, D). `function(s, γ, c, degree)` is φ, and `slope(s, s_r, γ, c, degree)`
    its difference quotient; c, γ and the degree are scikit-learn's coef0, gamma and degree. `additive`: φ is the
    identity and every term κ(x_i, u_i) is the feature's own, without a reference (r is None in `spread`). `counts`: for x ≥ 0 only.
    """

    sums: Callable[[Tensor, Tensor], Tensor]
    spread: Callable[..., Tensor]
    function: Callable[[Tensor, float, Tensor, int], Tensor]
    slope: Callable[[Tensor, Tensor, float, Tensor, int], Tensor]
    additive: bool = False
    counts: bool = False


def _dots(x: Tensor, u: Tensor) -> Tensor:
    return x @ u.T


def _spread_dots(x: Tensor, r: Tensor, u: Tensor, t: Tensor) -> Tensor:
    return (x - r) * (t @ u)


def _squares(x: Tensor, u: Tensor) -> Tensor:
    return torch.cdist(x, u, compute_mode="donot_use_mm_for_euclid_dist").square()


def _spread_squares(x: Tensor, r: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """Σ_j t_j [(x_i − u_ji)² − (r_i − u_ji)²] = (x_i − r_i) Σ_j t_j (x_i + r_i − 2 u_ji)."""
    return (x - r) * ((x + r) * t.sum(1, keepdim=True) - 2 * (t @ u))


def _termwise(
    term: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """`sums` and `spread` of a κ that is no product, a block of the u at a time."""

    def sums(x: Tensor, u: Tensor) -> Tensor:
        return torch.cat([term(x[:, None], part[None]).sum(-1) for part in blocks(u, x.shape[0])], 1)

    def spread(x: Tensor, r: Tensor | None, u: Tensor, t: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        start = 0
        for part in blocks(u, x.shape[0]):
            own = t[:, start : start + len(part)]
            terms = term(x[:, None], part[None])
            if r is not None:
                terms = terms - term(r[None, None], part[None])
            total = total + torch.einsum("bn,bnd->bd", own, terms)
            start += len(part)
        return total

    return sums, spread


def blocks(u: Tensor, batch: int) -> tuple[Tensor, ...]:
    """The rows of u in blocks, so that (B, rows, D) stays small."""
    return torch.split(u, max(1, CHUNK // max(1, batch * u.shape[1])))


def _least(x: Tensor, u: Tensor) -> Tensor:
    return torch.minimum(x, u)


def _chi_squared(x: Tensor, u: Tensor) -> Tensor:
    """−(x − u)² / (x + u), 0 where both are."""
    total = x + u
    return -torch.where(total == 0, 0.0, (x - u).square() / torch.where(total == 0, 1.0, total))


def _city_block(x: Tensor, u: Tensor) -> Tensor:
    return (x - u).abs()


def _same(s: Tensor, gamma: float, c: Tensor, degree: int) -> Tensor:
    return s


def _one(s: Tensor, r: Tensor, gamma: float, c: Tensor, degree: int) -> Tensor:
    return torch.ones_like(s)


def _power(s: Tensor, gamma: float, c: Tensor, degree: int) -> Tensor:
    return (gamma * s + c) ** degree


def _power_slope(s: Tensor, r: Tensor, gamma: float, c: Tensor, degree: int) -> Tensor:
    """(aᵈ − bᵈ) / (a − b) = Σ_k a^k b^(d−1−k)."""
    a, b = gamma * s + c, gamma * r + c
    return gamma * sum((a**k * b ** (degree - 1 - k) for k in range(degree)), torch.zeros_like(a))


def _tanh(s: Tensor, gamma: float, c: Tensor, degree: int) -> Tensor:
    return torch.tanh(gamma * s + c)


def _tanh_slope(s: Tensor, r: Tensor, gamma: float, c: Tensor, degree: int) -> Tensor:
    """tanh a − tanh b = tanh(a − b) (1 − tanh a tanh b)."""
    a, b = gamma * s + c, gamma * r + c
    return gamma * _ratio(torch.tanh(a - b), a - b) * (1 - torch.tanh(a) * torch.tanh(b))


def _decay(sign: float) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """exp(sign γ s) and its difference quotient."""

    def function(s: Tensor, gamma: float, c: Tensor, degree: int) -> Tensor:
        return torch.exp(sign * gamma * s)

    def slope(s: Tensor, r: Tensor, gamma: float, c: Tensor, degree: int) -> Tensor:
        a, b = sign * gamma * s, sign * gamma * r
        gap = -(a - b).abs()  # from the larger of the two, so that nothing overflows
        return sign * gamma * torch.exp(torch.maximum(a, b)) * _ratio(torch.expm1(gap), gap)

    return function, slope


def _cosine(s: Tensor, gamma: float, c: Tensor, degree: int) -> Tensor:
    return torch.cos(gamma * s + c)


def _cosine_slope(s: Tensor, r: Tensor, gamma: float, c: Tensor, degree: int) -> Tensor:
    """cos a − cos b = −2 sin((a + b)/2) sin((a − b)/2)."""
    a, b = gamma * s + c, gamma * r + c
    return -gamma * torch.sin((a + b) / 2) * torch.sinc((a - b) / (2 * torch.pi))


def _ratio(value: Tensor, by: Tensor) -> Tensor:
    """value / by, with the limit 1 at 0."""
    small = by == 0
    return torch.where(small, 1.0, value / torch.where(small, 1.0, by))


_DOT, _SQUARE = (_dots, _spread_dots), (_squares, _spread_squares)
_PLAIN = (_same, _one)

KERNELS: dict[str, Kernel] = {
    "linear": Kernel(*_DOT, *_PLAIN),
    "poly": Kernel(*_DOT, _power, _power_slope),
    "sigmoid": Kernel(*_DOT, _tanh, _tanh_slope),
    "rbf": Kernel(*_SQUARE, *_decay(-1.0)),
    "laplacian": Kernel(*_termwise(_city_block), *_decay(-1.0)),
    "chi2": Kernel(*_termwise(_chi_squared), *_decay(1.0), counts=True),
    "additive_chi2": Kernel(*_termwise(_chi_squared), *_PLAIN, additive=True, counts=True),
    "histogram_intersection": Kernel(*_termwise(_least), *_PLAIN, additive=True, counts=True),
    "cosine_features": Kernel(*_DOT, _cosine, _cosine_slope),
}
"""From a kernel's name to its row; "cosine_features" are the random features cos(w·x + c) of scikit-learn's RBFSampler."""
