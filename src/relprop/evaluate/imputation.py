"""ROAD's replacement: missing pixels as a noisy mean of their neighbours, solved jointly (Rong et al. 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.errors import InvalidInput

DIRECT, DIAGONAL = 1 / 6, 1 / 12
"""The weights of the four direct and the four diagonal neighbours."""

TOLERANCE = 1e-6
"""The relative residual at which the solution is taken in float32; in float64 its square."""


def impute_noisy_linear(
    images: Any, missing: Any, noise: float = 0.01, seed: int = 0, mean: Any = None
) -> Tensor:
    """Images with their missing pixels replaced by what their neighbours let expect, plus noise (Rong et al. 2022, ROAD).

    For each missing pixel i, Σ_n w_n (x_n − x_i) = 0 with weights 1/6 for direct and 1/12 for diagonal neighbours, those that
    exist at a border; missing neighbours are unknowns of the same system, which is solved for the whole batch by conjugate gradients.

    Args:
        images: (B, C, H, W), (B, H, W) or (H, W).
        missing: true where a pixel is missing, (B, H, W), (B, 1, H, W) or (H, W).
        noise: the deviation of the normal noise that is added, so that a mask cannot be read from smoothness.
        seed: of the noise; each image has noise of its own, which does not depend on what else is in the batch.
        mean: what an image without any pixel left is filled with, one value a channel; by default the mean of the images.

    Returns:
        A tensor of the images' shape and type.
    """
    given = torch.as_tensor(images)
    shape = given.shape
    if not given.is_floating_point():
        raise InvalidInput(f"images: of type {given.dtype}\n  do: give real numbers: images.float()")
    x = given.detach().reshape(-1, 1, *shape[-2:]) if given.dim() < 4 else given.detach()
    if given.dim() not in (2, 3, 4):
        raise InvalidInput(f"images: shape {tuple(shape)}\n  do: give (B, C, H, W), (B, H, W) or (H, W)")
    gone = torch.as_tensor(missing).to(x.device) != 0
    if gone.dim() == 4 and gone.shape[1] != 1:
        raise InvalidInput("missing: a mask for each channel\n  do: give one for all channels, (B, H, W)")
    if gone.shape[-2:] != x.shape[-2:] or gone.numel() != len(x) * x.shape[-2] * x.shape[-1]:
        raise InvalidInput(
            f"missing: shape {tuple(gone.shape)} for images of shape {tuple(shape)}\n  do: give one mask an image, (B, H, W)"
        )
    gone = gone.reshape(len(x), 1, *x.shape[-2:])
    own = x.mean((0, 2, 3)) if mean is None else torch.as_tensor(mean, dtype=x.dtype, device=x.device)
    drawn = noise_for(range(len(x)), x.shape[1:], seed).to(x) * noise if noise else torch.zeros_like(x)
    return imputed(x, gone, drawn, own.reshape(-1, 1, 1)).reshape(shape)


def noise_for(samples: Any, shape: Any, seed: int, draw: int = 0) -> Tensor:
    """Standard normal noise of a shape for each sample number, the same whatever else is drawn; float64 (B, *shape)."""
    import numpy as np

    drawn = [
        np.random.default_rng([seed, int(sample), draw, 1]).standard_normal(tuple(shape))
        for sample in samples
    ]
    return torch.from_numpy(np.stack(drawn))


def _neighbours(x: Tensor) -> Tensor:
    """The weighed sum of the neighbours that exist, of each channel (B, C, H, W).

    The weights are those of (1, 2, 1) along both sides, over 12, without the pixel itself; two passes in place take a
    fraction of a convolution's time.
    """
    down = x * 2
    down[..., 1:, :] += x[..., :-1, :]
    down[..., :-1, :] += x[..., 1:, :]
    both = down * 2
    both[..., 1:] += down[..., :-1]
    both[..., :-1] += down[..., 1:]
    return both.mul_(DIAGONAL).sub_(x, alpha=2 * DIRECT)


def imputed(x: Tensor, gone: Tensor, noise: Tensor, mean: Tensor) -> Tensor:
    """x (B, C, H, W) where gone (B, 1, H, W) is false; elsewhere the solution plus the noise."""
    whole = gone.flatten(1).all(1)[:, None, None, None]
    hole = gone & ~whole
    weight = _neighbours(torch.ones_like(x[:1, :1]))
    known = torch.where(gone, torch.zeros_like(x), x)
    solution = _solve(hole, _neighbours(known) * hole, weight)
    filled = torch.where(whole, mean.expand_as(x), solution)
    return torch.where(gone, filled + noise, x)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The product of each channel's maps, (B, C, 1, 1)."""
    found: Tensor = torch.linalg.vecdot(a.flatten(2), b.flatten(2))
    return found[..., None, None]


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """a / b, 0 where b is."""
    return torch.where(b > 0, a / b.clamp(min=torch.finfo(b.dtype).tiny), torch.zeros_like(a))


def _solve(hole: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    """u, zero outside the hole, with weight·u − Σ w u_n = right inside: symmetric, positive definite; conjugate gradients.

    Images that are solved leave the batch.
    """
    tolerance = TOLERANCE**2 if right.dtype == torch.float64 else TOLERANCE
    inside, inverse = hole.to(right.dtype), 1 / weight
    result = right * inverse
    left = torch.arange(len(right), device=right.device)

    def apply(v: Tensor) -> Tensor:
        return (weight * v).sub_(_neighbours(v)).mul_(inside)

    u = result.clone()
    residual = right - apply(u)
    direction = residual * inverse
    rho = _dot(residual, direction)
    limit = tolerance**2 * _dot(right, right).clamp(min=1e-300 if right.dtype == torch.float64 else 1e-30)
    for number in range(10 * max(hole.shape[2:]) + 50):
        open_rows = (_dot(residual, residual) > limit).flatten(1).any(1)
        if not bool(open_rows.any()):
            break
        if number % 4 == 0 and int(open_rows.sum()) < 0.8 * len(open_rows):
            result[left] = u
            left = left[open_rows]
            u, residual, direction, rho, limit, inside = (
                part[open_rows] for part in (u, residual, direction, rho, limit, inside)
            )
        image = apply(direction)
        alpha = _quotient(rho, _dot(direction, image))
        u = u + alpha * direction
        residual = residual.addcmul_(alpha, image, value=-1)
        step = residual * inverse
        new = _dot(residual, step)
        direction, rho = step.addcmul_(_quotient(new, rho), direction), new
    if len(left) == len(result):
        return u
    result[left] = u
    return result
