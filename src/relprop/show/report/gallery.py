"""Samples as the report shows them, and those of a store that a reader should see whatever the strategies are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.show.samples import SMALL, data_uri, map_of, photo_file, photo_of, picture_of, words_of
from relprop.show.text import Painted, painted
from relprop.store import Store

SHOWN = 6
"""Samples in a row."""

CHARACTERS = 600
"""About the most characters of a text that are shown."""

BLOCK = 8192
"""Rows of the output that are read together."""

RING = 16
"""The border is this part of a map's side wide."""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One sample: its name, what it was explained for, its label, its picture (where the store has one) and its relevance.

    `words` holds a text in coloured stretches, and then `relevance` is empty. `note` is what it is shown for.
    """

    name: str
    explained: str
    label: str
    score: float
    photo: str
    relevance: str
    words: tuple[Painted, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Samples that have something in common."""

    title: str
    words: str
    samples: tuple[Exemplar, ...]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What the model said of all samples: (N,) each; of samples that are not done −1, NaN and False.

    `prediction` is the largest output, `margin` by how much it exceeds the next, `right` whether it is the label; `known`
    says of which samples that can be said.
    """

    prediction: NDArray[np.int64]
    margin: NDArray[np.float64]
    known: NDArray[np.bool_]
    right: NDArray[np.bool_] = field(repr=False)

    @property
    def accuracy(self) -> float:
        """The share of right predictions among the known ones; NaN where none is known."""
        return float(self.right[self.known].mean()) if self.known.any() else float("nan")


def outcomes(store: Store) -> Outcomes:
    """Predictions and their margins, read block by block. Where outputs are no classes nothing is known."""
    count, done, label = len(store), store.done, store.column("label")
    prediction, margin = np.full(count, -1), np.full(count, np.nan)
    output = store.lazy("output")
    if store.attributes.get("output") != "score" and len(output.shape) == 2:
        for start in range(0, count, BLOCK):
            values = np.asarray(output[start : start + BLOCK], np.float64)
            prediction[start : start + BLOCK] = values.argmax(1)
            if values.shape[1] > 1:
                top = np.partition(values, -2, axis=1)[:, -2:]
                margin[start : start + BLOCK] = top[:, 1] - top[:, 0]
        prediction[~done], margin[~done] = -1, np.nan
    known = done & (label >= 0) & (prediction >= 0)
    return Outcomes(prediction, margin, known, known & (prediction == label))


def galleries(store: Store, found: Outcomes) -> tuple[Gallery, ...]:
    """The surest mistakes, the closest decisions, and relevance on the border; each where there is such a thing."""
    score = np.where(store.done, store.column("score"), np.nan)
    kinds = []
    wrong = np.where(found.known & ~found.right, score, np.nan)
    count = int(np.isfinite(wrong).sum())
    if count:
        many = (
            f"{count:,} predictions are not the label. These"
            if count > 1
            else "One prediction is not the label. It"
        )
        kinds.append(("Mistakes the model is surest of", f"{many} got the highest scores.", wrong, _no_note))
    close = -found.margin
    if np.isfinite(close).sum() > SHOWN:
        words = "Here the largest output is hardly larger than the next: the model might as well have said something else."
        kinds.append(("Decisions that were close", words, close, lambda value: f"ahead by {-value:.2g}"))
    border = on_the_border(store)
    if np.isfinite(border).sum() > SHOWN:
        words = (
            f"Of all samples these have the largest share of their positive relevance in the outer {100 / RING:.0f} % of the picture on each"
            " side, where captions, frames and marks are. Over all samples it is"
            f" {100 * np.nanmean(border):.0f} %, and relevance spread evenly would put {100 * _ring_area():.0f} % there."
        )
        kinds.append(
            ("Relevance on the border", words, border, lambda value: f"{100 * value:.0f} % on the border")
        )
    return tuple(_gallery(store, *kind) for kind in kinds)


def _no_note(value: float) -> str:
    return ""


def _gallery(store: Store, title: str, words: str, values: NDArray[np.float64], note: Any) -> Gallery:
    rows = np.argsort(np.where(np.isfinite(values), -values, np.inf), kind="stable")[:SHOWN]
    rows = rows[np.isfinite(values[rows])]
    return Gallery(title, words, exemplars(store, rows, [note(float(values[row])) for row in rows]))


def _ring_area() -> float:
    return 1 - (1 - 2 / RING) ** 2


def on_the_border(store: Store) -> NDArray[np.float64]:
    """(N,) the share of positive relevance on the border, from the small maps of the store; NaN where there is none."""
    found = np.full(len(store), np.nan)
    if "pooled" not in store.columns:
        return found
    small, done = store.lazy("pooled"), store.done
    width = max(1, small.shape[1] // RING)
    for start in range(0, len(store), BLOCK):
        rows = start + np.flatnonzero(done[start : start + BLOCK])
        positive = np.maximum(np.nan_to_num(np.asarray(small[rows], np.float64)), 0)
        whole = positive.sum((1, 2))
        inside = positive[:, width:-width, width:-width].sum((1, 2))
        found[rows] = np.divide(whole - inside, whole, out=np.full(len(rows), np.nan), where=whole > 0)
    return found


def exemplars(store: Store, rows: NDArray[Any], notes: Sequence[str] = ()) -> tuple[Exemplar, ...]:
    """Samples by their rows, in this order; `notes` are one for each, or none."""
    if len(rows) == 0:
        return ()
    relevance = np.nan_to_num(store.relevance[rows])
    names, targets, labels, scores = (
        store.lazy(column)[rows] for column in ("id", "target", "label", "score")
    )
    found = []
    for i, row in enumerate(rows):
        photo, told = photo_of(store, int(row)), words_of(store, int(row))
        found.append(
            Exemplar(
                name=str(names[i]),
                explained=store.class_name(int(targets[i])) if targets[i] >= 0 else "",
                label=store.class_name(int(labels[i])) if labels[i] >= 0 else "",
                score=float(scores[i]),
                photo="" if photo is None else data_uri(photo_file(photo)),
                relevance=data_uri(picture_of(map_of(relevance[i]), side=SMALL)) if told is None else "",
                words=()
                if told is None
                else tuple(shortened(painted(told)) or [Painted("no words", "", "")]),
                note=notes[i] if notes else "",
            )
        )
    return tuple(found)


def shortened(parts: Sequence[Painted]) -> list[Painted]:
    """The first stretches of a text, up to `CHARACTERS`, and an ellipsis where it goes on."""
    found: list[Painted] = []
    left = CHARACTERS
    for part in parts:
        if len(part.text) > left:
            return [*found, part._replace(text=part.text[:left]), Painted(" …", "", "")]
        found.append(part)
        left -= len(part.text)
    return found
