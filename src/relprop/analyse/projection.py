"""A direction of an artefact in a layer's activations, and activations without it: P-ClArC."""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.errors import InvalidInput


def signal_pattern(activations: Tensor, affected: Tensor) -> Tensor:
    """The direction in which an artefact moves activations: cov(h, t) / var(t) (Pahde et al. 2022).

    Args:
        activations: (n, d) floating point.
        affected: (n,) 1 or True where the artefact is in the sample.

    Returns:
        (d,), not normalised: the mean difference that the artefact makes.

    Raises:
        InvalidInput: the lengths differ, or all samples are affected or none.
    """
    if activations.ndim != 2 or affected.shape != activations.shape[:1]:
        raise InvalidInput(
            f"activations {tuple(activations.shape)} and affected {tuple(affected.shape)}\n  do: give (n, d) and (n,)"
        )
    t = affected.to(activations.dtype)
    t = t - t.mean()
    variance = (t**2).sum()
    if variance == 0:
        raise InvalidInput(
            "affected: the same for all samples\n  do: give samples with the artefact and without it"
        )
    return (t @ (activations - activations.mean(0))) / variance


def project_out(activations: Tensor, direction: Tensor, reference: Tensor) -> Tensor:
    """Activations whose part along a direction is that of a reference: h' = h − v vᵀ(h − z) (P-ClArC, Anders et al. 2022).

    Args:
        activations: (n, d).
        direction: (d,) of any length but 0; v is it at unit length.
        reference: (d,), z: for P-ClArC the mean activation of samples without the artefact, for A-ClArC that of samples with it.

    Returns:
        (n, d); vᵀh' = vᵀz for every sample. Done twice it changes nothing more.
    """
    length = torch.linalg.vector_norm(direction)
    if not length > 0:
        raise InvalidInput(
            "direction: of length 0, or not finite\n  do: give signal_pattern of samples that differ"
        )
    v = direction / length
    along: Tensor = (activations - reference) @ v
    found: Tensor = activations - along[:, None] * v
    return found
