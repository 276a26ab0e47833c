"""Are the differences between methods real? Bootstrap intervals, paired tests, ranks.

Scores are (images, methods), paired by construction: the same images, masks and draws for every method. scipy is needed for tests:
`pip install 'relprop[evaluate]'`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.errors import InvalidInput, MissingExtra

Array = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95


def scipy_stats() -> Any:
    """scipy's statistics. Raises `MissingExtra` where scipy is not installed."""
    try:
        import scipy.stats
    except ImportError as error:
        raise MissingExtra(
            "tests between methods need scipy\n  do: pip install 'relprop[evaluate]'"
        ) from error
    return scipy.stats


def paired_rows(scores: Any) -> Array:
    """The images whose score is defined for every method: an image that lacks one is left out for all, (n, M)."""
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 2:
        raise InvalidInput(f"scores: shape {array.shape}\n  do: give (images, methods)")
    kept: Array = array[np.isfinite(array).all(1)]
    return kept


def bootstrap(
    scores: Any, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[Array, Array]:
    """The ends of the percentile interval of each method's mean, (M,) each; images are drawn jointly for all methods.

    NaN for fewer than two images.
    """
    array = paired_rows(scores)
    count, methods = array.shape
    if count < 2:
        return np.full(methods, np.nan), np.full(methods, np.nan)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples) / count
    means = weights @ array
    tail = (1 - level) / 2
    return np.quantile(means, tail, axis=0), np.quantile(means, 1 - tail, axis=0)


@dataclass(frozen=True, slots=True)
class Difference:
    """The paired difference a − b of two methods over the same images.

    Attributes:
        mean, low, high: the mean difference and its bootstrap interval.
        effect: the mean over the deviation of the differences.
        wins: the share of images where a is larger, ties counting ½.
        wilcoxon: the p-value of the signed-rank test, two-sided, exact for up to 25 images without differences of 0.
        t, t_p: the paired t-test.
        used: how many images.
    """

    mean: float
    low: float
    high: float
    effect: float
    wins: float
    wilcoxon: float
    t: float
    t_p: float
    used: int


def difference(
    first: Any, second: Any, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Difference:
    """Compare two methods by their scores of the same images, (B,) each; images undefined for one count for neither."""
    stats = scipy_stats()
    pairs = paired_rows(
        np.stack([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)], 1)
    )
    gaps = pairs[:, 0] - pairs[:, 1]
    count = len(gaps)
    if count < 2:
        mean = float(gaps.mean()) if count else math.nan
        nan = math.nan
        return Difference(mean, nan, nan, nan, nan, nan, nan, nan, count)
    low, high = bootstrap(gaps[:, None], resamples, level, seed)
    deviation = float(gaps.std(ddof=1))
    wins = float(((gaps > 0) + 0.5 * (gaps == 0)).mean())
    if not gaps.any():
        return Difference(0.0, 0.0, 0.0, 0.0, wins, 1.0, 0.0, 1.0, count)
    exact = count <= 25 and bool(np.all(gaps != 0))
    signed = stats.wilcoxon(
        gaps, method="exact" if exact else "approx", zero_method="zsplit" if not exact else "wilcox"
    )
    if deviation > 1e-12 * np.abs(gaps).max():
        t = float(gaps.mean() / deviation * math.sqrt(count))
        t_p = float(2 * stats.t.sf(abs(t), count - 1))
        effect = float(gaps.mean()) / deviation
    else:  # the same difference for every image
        t = effect = math.copysign(math.inf, float(gaps.mean()))
        t_p = 0.0
    return Difference(
        float(gaps.mean()), float(low[0]), float(high[0]), effect, wins, float(signed.pvalue), t, t_p, count
    )


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are (Holm 1979); NaN stays and does not count."""
    array = np.asarray(values, dtype=np.float64)
    result = array.copy()
    known = np.flatnonzero(np.isfinite(array))
    order = known[np.argsort(array[known], kind="stable")]
    largest = 0.0
    for position, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - position) * array[index]))
        result[index] = largest
    return [float(value) for value in result]


def required_n(differences: Any, power: float = 0.8, level: float = LEVEL) -> float:
    """How many images show a difference of this mean and deviation with this power: ((z_α + z_β)·sd/mean)², rounded up.

    Infinite for a mean of 0; NaN for fewer than two differences.
    """
    gaps = np.asarray(differences, dtype=np.float64)
    gaps = gaps[np.isfinite(gaps)]
    if len(gaps) < 2:
        return math.nan
    normal = scipy_stats().norm
    mean, deviation = abs(float(gaps.mean())), float(gaps.std(ddof=1))
    if mean == 0:
        return math.inf
    z = float(normal.ppf((1 + level) / 2) + normal.ppf(power))
    return float(max(2, math.ceil((z * deviation / mean) ** 2)))


@dataclass(frozen=True, slots=True)
class Ranks:
    """The mean rank of each method over images, 1 the best, and Friedman's test that they are all alike."""

    mean: tuple[float, ...]
    chi2: float
    p: float
    used: int


def friedman(scores: Any, higher_is_better: bool = True) -> Ranks:
    """Mean ranks and Friedman's test of scores (images, methods); NaN statistics for fewer than three methods or two images."""
    stats = scipy_stats()
    array = paired_rows(scores)
    if not len(array):
        return Ranks((math.nan,) * array.shape[1], math.nan, math.nan, 0)
    ranks = stats.rankdata(-array if higher_is_better else array, axis=1)
    mean = tuple(float(value) for value in ranks.mean(0))
    if array.shape[1] < 3 or len(array) < 2 or bool((ranks == ranks[:, :1]).all()):
        return Ranks(mean, math.nan, math.nan, len(array))
    found = stats.friedmanchisquare(*array.T)
    return Ranks(mean, float(found.statistic), float(found.pvalue), len(array))


def tiers(scores: Any, higher_is_better: bool = True, level: float = LEVEL) -> list[int]:
    """The tier of each method, 1 the best: methods that the best of a tier does not beat for sure share it.

    From the best mean on, a method joins the tier unless its paired difference to the tier's first is real: the Wilcoxon test,
    Holm-corrected over all pairs, rejects, and the bootstrap interval of the mean difference leaves out 0. No strict order is
    claimed within a tier.
    """
    array = paired_rows(scores)
    count = array.shape[1]
    if len(array) < 2:
        return [1] * count
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    found = {(i, j): difference(array[:, i], array[:, j], level=level) for i, j in pairs}
    corrected = dict(zip(pairs, holm([one.wilcoxon for one in found.values()]), strict=True))
    order = np.argsort(-array.mean(0) if higher_is_better else array.mean(0), kind="stable")
    result, tier, first = [0] * count, 1, int(order[0])
    for method in map(int, order):
        pair = (min(first, method), max(first, method))
        if method != first and corrected[pair] < 1 - level and not found[pair].low <= 0 <= found[pair].high:
            tier, first = tier + 1, method
        result[method] = tier
    return result


def mean_rank(scores: Any, higher_is_better: bool = True) -> Array:
    """The rank of each method by its mean over the images that all are defined for, 1 the best, ties sharing theirs; (M,).

    NaN where no image is defined for all.
    """
    array = paired_rows(scores)
    if not len(array):
        return np.full(array.shape[1], np.nan)
    means = array.mean(0)
    found: Array = scipy_stats().rankdata(-means if higher_is_better else means)
    return found


def kendall_w(ranks: Any) -> float:
    """Kendall's coefficient of concordance of rankings (metrics, methods): 1 where all agree, 0 for none; NaN for too few."""
    table = np.asarray(ranks, dtype=np.float64)
    judges, methods = table.shape
    if judges < 2 or methods < 2 or not np.isfinite(table).all():
        return math.nan
    spread = float(((table.sum(0) - table.sum() / methods) ** 2).sum())
    return float(12 * spread / (judges**2 * (methods**3 - methods)))
