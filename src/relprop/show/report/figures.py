"""The report's small figures as inline SVG: strategies in the plane, the spectrum, the rounding of the account."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CATEGORIES = (
    "#2b6ca3", "#c8641b", "#2f8f6b", "#a3528f", "#b8920f", "#5aa0c8", "#7d6bb5", "#8a5a44", "#6f7f2c", "#c2577a",
)  # fmt: skip
"""Colours of clusters: apart in every common colour-vision deficiency, readable on white and on black."""

MOST_POINTS = 1500
WIDE, TALL = 340, 260


def colour(number: int) -> str:
    """The colour of a cluster."""
    return CATEGORIES[number % len(CATEGORIES)]


def scatter(points: NDArray[Any], labels: NDArray[Any], *, seed: int = 0) -> tuple[str, int]:
    """Points (n, 2) coloured by their cluster, as SVG, and how many of them are shown (at most `MOST_POINTS`)."""
    kept = np.flatnonzero(np.isfinite(points).all(1))
    if len(kept) > MOST_POINTS:
        kept = np.sort(np.random.default_rng(seed).choice(kept, MOST_POINTS, replace=False))
    if len(kept) == 0:
        return "", 0
    shown = points[kept].astype(np.float64)
    low, high = shown.min(0), shown.max(0)
    scale = min((WIDE - 16) / ((high[0] - low[0]) or 1), (TALL - 16) / ((high[1] - low[1]) or 1))
    middle = (low + high) / 2
    placed = (shown - middle) * scale * [1, -1] + [WIDE / 2, TALL / 2]
    paths = []
    for number in np.unique(labels[kept]):
        d = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in placed[labels[kept] == number])
        paths.append(f'<path d="{d}" stroke="{colour(int(number))}"/>')
    size = 4.5 if len(kept) < 400 else 3.2
    svg = (
        f'<svg viewBox="0 0 {WIDE} {TALL}" role="img" aria-label="strategies in the plane">'
        f'<g fill="none" stroke-width="{size}" stroke-linecap="round" stroke-opacity=".75">{"".join(paths)}</g></svg>'
    )
    return svg, len(kept)


def spectrum(values: NDArray[Any], number: int) -> str:
    """The smallest eigenvalues as dots; those of the clusters that were found are filled."""
    shown = np.asarray(values, np.float64)[:16]
    if len(shown) == 0:
        return ""
    top = max(float(shown.max()), 1e-9) * 1.05
    left, bottom, wide, tall = 34, 132, 290, 116
    step = wide / max(1, len(shown))
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * tall
        parts.append(f'<path class="grid" d="M{left} {y:.1f}h{wide}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{share * top:.2f}</text>')
    for i, value in enumerate(shown):
        x, y = left + step * (i + 0.5), bottom - tall * value / top
        parts.append(f'<path class="stem" d="M{x:.1f} {bottom}V{y:.1f}"/>')
        kind = "in" if i < number else "out"
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>')
        if i == 0 or (i + 1) % 4 == 0:
            parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{i + 1}</text>')
    return f'<svg class="spectrum" viewBox="0 0 330 152" role="img" aria-label="eigenvalues">{"".join(parts)}</svg>'


def histogram(values: NDArray[Any], low: float, high: float, bins: int = 28) -> str:
    """How often values in `low`…`high` occur, as bars on a line; those beyond the ends count at the ends."""
    counts, _ = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
    top, wide = max(1, int(counts.max())), 330 / bins
    rects = "".join(
        f'<rect x="{i * wide + 0.5:.1f}" y="{60 - 56 * c / top:.1f}" width="{wide - 1:.1f}" height="{56 * c / top:.1f}"/>'
        for i, c in enumerate(counts)
        if c
    )
    ticks = "".join(
        f'<text x="{330 * (k - low) / (high - low):.1f}" y="76" text-anchor="{a}">10<tspan dy="-4" font-size="75%">{str(int(k)).replace("-", "−")}</tspan></text>'
        for k, a in ((low, "start"), ((low + high) // 2, "middle"), (high, "end"))
    )
    return (
        '<svg class="histogram" viewBox="0 0 330 80" role="img" aria-label="distribution">'
        f'{rects}<path class="grid" d="M0 60.5h330"/>{ticks}</svg>'
    )
