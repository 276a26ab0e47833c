"""What speaks for a cluster being an artefact, in words and numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relprop.analyse.places import Findings, Mask
from relprop.analyse.result import Evidence, Place

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the samples of a class beside their maps; None where it is not.

    Attributes:
        label: (n,) −1 for none. predicted: (n,). score: (n,). target: the class that was explained.
        pictures: (n, h, w, …) of any type, such as thumbnails.
    """

    target: int
    label: NDArray[np.int64] | None = None
    predicted: NDArray[np.int64] | None = None
    score: NDArray[np.float64] | None = None
    pictures: NDArray[np.float32] | None = None

    @property
    def right(self) -> NDArray[np.float64] | None:
        """(n,) 1 where the prediction is the label, NaN where there is no label."""
        if self.label is None or self.predicted is None or (self.label < 0).all():
            return None
        return np.where(self.label < 0, np.nan, self.predicted == self.label)


def evidence(
    findings: Findings | None,
    place: Place | None,
    shares: NDArray[np.float32],
    members: Mask,
    main: Mask,
    isolated: float,
    known: Known,
) -> tuple[Evidence, ...]:
    """Every observation about a cluster that the data allows.

    Args:
        findings, place: of `relprop.analyse.places`, and the place as fractions of the map.
        shares: (n, h, w) of positive relevance.
        members: the cluster. main: the class's largest other cluster.
        isolated: the share of the members' edges in the graph that stay in the cluster.
        known: labels, predictions, scores, pictures.
    """
    found: list[Evidence] = []
    if findings is not None and place is not None:
        found += _of_place(findings, place, shares.shape[1] == 1)
        if known.pictures is not None:
            found += _of_content(known.pictures, members, place)
    found += _of_border(shares, members)
    found += _of_strategy(shares, members, main, isolated)
    found += _of_results(members, known)
    return tuple(found)


def where(place: Place, line: bool = False) -> str:
    """A place in words, such as "the lower left corner"."""
    across, down = (place.left + place.right) / 2, (place.top + place.bottom) / 2
    if line:
        return "the beginning" if across < 1 / 3 else "the end" if across > 2 / 3 else "the middle"
    row = "upper" if down < 1 / 3 else "lower" if down > 2 / 3 else ""
    column = "left" if across < 1 / 3 else "right" if across > 2 / 3 else ""
    if row and column:
        return f"the {row} {column} corner"
    if not row and not column:
        return "the centre"
    return f"the {row or column} side"


def _of_place(findings: Findings, place: Place, line: bool) -> list[Evidence]:
    name = where(place, line)
    elsewhere = (
        "the maps are like those of the rest of the class"
        if findings.elsewhere < 0.05
        else "the maps differ from the rest of the class, too"
    )
    parted = (
        "two groups with nothing between"
        if findings.apart > 4
        else "two groups that touch"
        if findings.apart > 2
        else "no two groups"
    )
    return [
        Evidence(
            "place", findings.share, findings.usual,
            f"{_percent(findings.share)} of the positive relevance lies at {name}, in {_percent(place.area)} of the map;"
            f" in the rest of the class {_percent(findings.usual)}",
        ),
        Evidence("apart", findings.apart, 2.0, f"there the class falls into {parted} (Ashman's D {findings.apart:.1f}; 2 is a clear division)"),
        Evidence("compact", findings.compact, NAN, f"{_percent(findings.compact)} of what the cluster's mean map has more than the rest's lies there"),
        Evidence("elsewhere", findings.elsewhere, 0.05, f"away from there {elsewhere} (mean squared effect {max(findings.elsewhere, 0):.3f})"),
    ]  # fmt: skip


def _of_content(pictures: NDArray[np.float32], members: Mask, place: Place) -> list[Evidence]:
    top, left, bottom, right = place.pixels(*pictures.shape[1:3])
    there = pictures[:, top:bottom, left:right].reshape(len(pictures), -1).astype(np.float64)
    varied = pictures.reshape(len(pictures), -1).std(0).mean()
    if varied == 0:
        return []
    inside, outside = there[members], there[~members]
    value, usual = float(inside.std(0).mean() / varied), float(outside.std(0).mean() / varied)
    apart = float(np.abs(inside.mean(0) - outside.mean(0)).mean() / varied)
    words = f"the pictures there vary {value:.2f} times as much as pictures of the class do on average; those of the rest {usual:.2f} times"
    return [
        Evidence("content", value, usual, words),
        Evidence("content_difference", apart, NAN, f"there the cluster's pictures differ from the rest's by {apart:.2f} times that much"),
    ]  # fmt: skip


def _of_border(shares: NDArray[np.float32], members: Mask) -> list[Evidence]:
    height, width = shares.shape[1:]
    if width < 6:
        return []
    ring = np.ones((height, width), dtype=bool)
    ring[(slice(None) if height == 1 else slice(1, -1)), 1:-1] = False
    value, usual = (float(shares[group][:, ring].sum(1).mean()) for group in (members, ~members))
    what = "at both ends" if height == 1 else "on the border"
    words = f"{_percent(value)} of the positive relevance lies {what}, in {_percent(ring.mean())} of the map; in the rest of the class {_percent(usual)}"
    return [Evidence("border", value, usual, words)]


def _of_strategy(shares: NDArray[np.float32], members: Mask, main: Mask, isolated: float) -> list[Evidence]:
    here, there = shares[members].mean(0), shares[main].mean(0)
    distance = float(np.abs(here - there).sum() / 2)
    return [
        Evidence("distance", distance, NAN, f"its mean map has {_percent(distance)} of the relevance elsewhere than the class's main strategy"),
        Evidence("isolation", isolated, float(members.mean()), f"{_percent(isolated)} of its members' nearest neighbours are members; by chance {_percent(members.mean())}"),
    ]  # fmt: skip


def _of_results(members: Mask, known: Known) -> list[Evidence]:
    found: list[Evidence] = []
    if (right := known.right) is not None:
        pair = [_mean(right[group]) for group in (members, ~members)]
        words = f"{_percent(pair[0])} of its samples are classified right; in the rest of the class {_percent(pair[1])}"
        found.append(Evidence("accuracy", pair[0], pair[1], words))
    if known.label is not None and (known.label >= 0).any():
        pair = [
            _mean(np.where(known.label < 0, np.nan, known.label == known.target)[group])
            for group in (members, ~members)
        ]
        if min(pair) < 1:  # explained for the predicted class
            words = f"{_percent(pair[0])} of its samples are labelled as the class; in the rest {_percent(pair[1])}"
            found.append(Evidence("purity", pair[0], pair[1], words))
    if known.score is not None:
        pair = [float(known.score[group].mean()) for group in (members, ~members)]
        found.append(
            Evidence(
                "score",
                pair[0],
                pair[1],
                f"its mean score is {pair[0]:.3g}; in the rest of the class {pair[1]:.3g}",
            )
        )
    return found


def _mean(values: NDArray[np.float64]) -> float:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else NAN


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if value < 0.0995 else f"{100 * value:.0f} %"
