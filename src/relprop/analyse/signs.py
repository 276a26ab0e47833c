"""Are paired differences real, at many places at once? The sign-flip test with the largest statistic.

Without a difference each sample's could as well have the other sign. Flipping the signs of whole samples at random gives the
distribution of the largest statistic over all places, so that p-values hold for all of them together, however the
places depend on each other (Westfall & Young 1993; Nichols & Holmes 2002).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FLIPS = 2000
AT_A_TIME = 250


@dataclass(frozen=True, slots=True)
class Flipped:
    """The test of one group of samples, (m,) each for m places.

    Attributes:
        z: Σ d / √Σ d², of mean 0 and variance 1 where there is no difference; NaN where all differences are 0.
        p: corrected for all places of all groups that were tested together.
        count: samples whose difference is not 0.
    """

    z: Array
    p: Array
    count: NDArray[np.int64]


def sign_flips(groups: Sequence[Any], flips: int = FLIPS, seed: int = 0) -> list[Flipped]:
    """Test groups of paired differences, (n, m) each, dense or sparse arrays, together.

    The smallest p-value is 1/(flips + 1), and no less than 2/2ⁿ: fewer than six samples show nothing.
    """
    draw = np.random.default_rng(seed)
    scales = [np.sqrt(np.asarray((one * one).sum(0)).ravel()) for one in groups]
    seen = [_z(np.ones((1, one.shape[0])), one, scale)[0] for one, scale in zip(groups, scales, strict=True)]
    largest = []
    for start in range(0, flips, AT_A_TIME):
        count = min(AT_A_TIME, flips - start)
        top = np.zeros(count)
        for one, scale in zip(groups, scales, strict=True):
            signs = draw.integers(0, 2, (count, one.shape[0])) * 2.0 - 1.0
            found = np.abs(np.nan_to_num(_z(signs, one, scale)))
            top = np.maximum(top, found.max(1)) if found.shape[1] else top
        largest.append(top)
    null = np.sort(np.concatenate(largest)) if largest else np.zeros(0)
    return [Flipped(z, _p(z, null), _count(one)) for z, one in zip(seen, groups, strict=True)]


def _z(signs: NDArray[Any], differences: Any, scale: NDArray[Any]) -> Array:
    sums: Array = np.asarray((differences.T @ signs.T).T)
    found: Array = np.divide(sums, scale, out=np.full(sums.shape, np.nan), where=scale > 0)
    return found


def _p(z: Array, null: Array) -> Array:
    """The part of the flips, the true signs among them, whose largest statistic is at least as large."""
    above = len(null) - np.searchsorted(null, np.abs(z) * (1 - 1e-9), side="left")
    found: Array = np.where(np.isfinite(z), (above + 1) / (len(null) + 1), np.nan)
    return found


def _count(differences: Any) -> NDArray[np.int64]:
    found = (differences != 0).sum(0)
    return np.asarray(found, dtype=np.int64).ravel()
