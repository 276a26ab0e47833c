"""The analyses of whole stores: context use from boxes, two stores compared, the words of each class."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.analyse.boxes import Box, box_mask, named, output_names
from relprop.analyse.comparison import ModelComparison, Paired, cell_names, cells, compare_places, steps
from relprop.analyse.context import ContextUse, context_table
from relprop.analyse.graph import needed
from relprop.analyse.signs import FLIPS
from relprop.analyse.words import WordRow, class_words, compare_words, words_of
from relprop.data import Preprocessing, pillow
from relprop.errors import InvalidInput
from relprop.evaluate.localisation import context_ratio
from relprop.store import Store

BLOCK = 256
"""Samples of relevance that are in memory at a time."""

ORIENTATION = 0x0112
"""The EXIF tag; from 5 on the picture lies on its side."""


@dataclass(frozen=True, slots=True)
class StoredContext:
    """The context use of a store.

    Attributes:
        use: over the samples that show a box of the class that they are explained for.
        rows: which samples of the store these are.
        excluded: from a reason to how many samples it kept out.
    """

    use: ContextUse
    rows: np.ndarray
    excluded: Mapping[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The tables as plain values."""
        return {**self.use.as_dict(), "samples": len(self.rows), "excluded": dict(self.excluded)}

    def __str__(self) -> str:
        out = [f"{count} samples: {why}" for why, count in self.excluded.items()]
        return "\n".join([str(self.use), *out])


def preprocessing_of(store: Store) -> Preprocessing:
    """How the store's photographs became inputs. Raises `InvalidInput` where it does not say."""
    told = store.attributes.get("preprocessing") or {}
    known = {one.name for one in fields(Preprocessing)}
    if not isinstance(told, Mapping) or not {"size", "resize"} <= told.keys() <= known:
        raise InvalidInput(
            f"store: {store.path} does not say how its photographs were cropped, so that boxes cannot be placed\n"
            "  do: give a store that relprop run made of photographs"
        )
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in told.items()}
    return Preprocessing(**values)


def store_context(
    store: Store,
    boxes: Mapping[str, Sequence[Box]],
    meant: Mapping[str, Sequence[int]] | None = None,
    *,
    pool: str = "positive",
    seed: int = 0,
) -> StoredContext:
    """How much the model of a store of photographs uses what surrounds the objects.

    Args:
        store: explained for the class that is asked about (the predicted or the true one).
        boxes: of each photograph by its file name (`read_boxes`).
        meant: which outputs stand for a class of boxes (`read_classes`); without it classes have the outputs' own names.

    Raises `InvalidInput` where the store is of no photographs or no sample shows a box of its class.
    """
    if store.kind != "image":
        raise InvalidInput(
            f"store: {store.path} is of kind {store.kind!r}\n  do: give one of photographs, which boxes lie in"
        )
    how, names = preprocessing_of(store), output_names(store.classes, meant)
    targets, sources, done = store.column("target"), store.column("source"), store.done
    guesses = guesses_of(store)
    measured: list[tuple[int, str]] = []
    ratios: list[Tensor] = []
    excluded = Counter[str]()
    side = int(store.relevance.shape[-1])
    for start in range(0, len(store), BLOCK):
        masks = []
        for row in range(start, min(start + BLOCK, len(store))):
            name = names.get(int(targets[row]), "")
            found, why = (
                _mask(Path(str(sources[row])), name, boxes, how, side)
                if done[row]
                else (None, "not explained")
            )
            if found is None:
                excluded[why] += 1
                continue
            measured.append((row, name))
            masks.append(found)
        if masks:
            maps = summed(store.relevance[[row for row, _ in measured[-len(masks) :]]]), torch.stack(masks)
            ratios.append(torch.stack([context_ratio(*maps, pool, area=area) for area in (True, False)]))
    if not measured:
        told = ", ".join(f"{count} {why}" for why, count in excluded.items())
        raise InvalidInput(
            f"boxes: no sample of {store.path} shows a box of the class that it is explained for ({told})\n"
            "  do: give boxes by the photographs' file names, and which outputs a class stands for"
        )
    correct = [names.get(int(guesses[row])) == name for row, name in measured]
    ratio, how_much = torch.cat(ratios, 1)
    use = context_table(ratio, how_much, [name for _, name in measured], correct, pool=pool, seed=seed)
    return StoredContext(use, np.array([row for row, _ in measured]), dict(excluded))


def _mask(
    source: Path, name: str, boxes: Mapping[str, Sequence[Box]], how: Preprocessing, side: int
) -> tuple[Tensor | None, str]:
    if source.name not in boxes:
        return None, "no boxes for the photograph"
    own = named(boxes[source.name], name)
    if not own:
        return None, "no box of the explained class"
    size = _size(source)
    if size is None:
        return None, "the photograph is not there any more"
    return box_mask(own, *size, how, side), ""


def _size(file: Path) -> tuple[int, int] | None:
    """Width and height of a photograph as it is looked at; None where there is none."""
    try:
        with pillow().Image.open(file) as opened:
            width, height = opened.size
            turned = int(opened.getexif().get(ORIENTATION, 1)) >= 5
            return (height, width) if turned else (width, height)
    except (OSError, ValueError):
        return None


def summed(relevance: Any) -> Tensor:
    """Maps (B, H, W), channels summed."""
    values = torch.as_tensor(np.asarray(relevance, dtype=np.float64))
    return values.sum(1) if values.dim() == 4 else values


def guesses_of(store: Store) -> np.ndarray:
    """The class that each sample is taken for: (N,)."""
    output = store.column("output")
    if output.shape[1] == 1:
        return decided(store)[0]
    found: np.ndarray = np.where(np.isfinite(output).all(1), np.nan_to_num(output).argmax(1), -1)
    return found


def decided(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """The class that each sample is explained for, (N,), and the sign, (N,), that makes its relevance speak for that class.

    A classifier with one value for two classes is explained for class 1, whatever it decides: a value below 0 is class 0, for
    which relevance speaks with its sign turned. All others are as the store has them.
    """
    target, done = store.column("target").astype(np.int64), store.done
    if store.lazy("output").shape[1] != 1 or not (target[done] == 1).all():
        return target, np.ones(len(store))
    positive = store.column("output")[:, 0] > 0
    return np.where(done, positive.astype(np.int64), target), np.where(positive, 1.0, -1.0)


# ---------------------------------------------------------------- two stores


def compare_stores(
    first: Store,
    second: Store,
    names: tuple[str, str] | None = None,
    *,
    grid: int = 8,
    flips: int = FLIPS,
    seed: int = 0,
) -> ModelComparison:
    """Compare two models by their stores over the same data, sample by sample by their ids.

    Pictures are compared in a grid of cells (`compare_maps`), texts word by word (`compare_words`), tables feature by feature,
    series and recordings in grid² steps of time. Samples that are not done in both are left out.

    Raises `InvalidInput` where the stores are of other kinds of data or other classes, or share no sample.
    """
    if first.kind != second.kind:
        raise InvalidInput(
            f"compare: {first.path} is of kind {first.kind!r}, {second.path} of {second.kind!r}\n"
            "  do: give two stores of the same data"
        )
    if first.classes and second.classes and first.classes != second.classes:
        raise InvalidInput(
            f"compare: the models of {first.path} and {second.path} have other classes\n"
            "  do: give models of the same outputs"
        )
    needed("scipy.stats")  # missed before anything is read
    rows = _shared(first, second)
    guesses = [guesses_of(store)[own] for store, own in zip((first, second), rows, strict=True)]
    labels = first.column("label")[rows[0]]
    ways = [decided(store) for store in (first, second)]
    signs = [way[1][own] for way, own in zip(ways, rows, strict=True)]
    pair = Paired(
        (ways[0][0][rows[0]], ways[1][0][rows[1]]),
        (guesses[0], guesses[1]),
        labels if (labels >= 0).any() else None,
        first.classes or second.classes,
        names or _names(first, second),
    )
    if first.kind == "text":
        texts = [stored_words(store, own) for store, own in zip((first, second), rows, strict=True)]
        texts = [_signed(one, sign) for one, sign in zip(texts, signs, strict=True)]
        return compare_words(texts[0], texts[1], pair, flips=flips, seed=seed)
    places = _places(first, second, grid)
    held = [
        torch.cat([_pooled(store, own[i : i + BLOCK], len(places)) for i in range(0, len(own), BLOCK)])
        for store, own in zip((first, second), rows, strict=True)
    ]
    held = [one * torch.as_tensor(sign)[:, None] for one, sign in zip(held, signs, strict=True)]
    return compare_places(held[0], held[1], places, pair, flips=flips, seed=seed)


def _signed(texts: list[list[tuple[str, float]]], signs: np.ndarray) -> list[list[tuple[str, float]]]:
    """The words of texts, their relevance times a sign each."""
    return [
        [(word, sign * value) for word, value in one] for one, sign in zip(texts, signs.tolist(), strict=True)
    ]


def _places(first: Store, second: Store, grid: int) -> list[str]:
    """The names of the places that two stores are compared at."""
    shapes = [store.relevance.shape for store in (first, second)]
    if first.kind == "table":
        return _features(first)
    if first.kind == "image":
        return cell_names(min(grid, *(size for shape in shapes for size in shape[-2:])))
    count = min(grid**2, *(shape[-1] for shape in shapes))
    return [f"step {i + 1} of {count}" for i in range(count)]


def _pooled(store: Store, rows: np.ndarray, places: int) -> Tensor:
    """The relevance of some samples at that many places."""
    part = store.relevance[rows]
    if store.kind == "table":
        return torch.as_tensor(part)
    if store.kind == "image":
        return cells(summed(part), math.isqrt(places))
    return steps(np.nan_to_num(part), places)  # what lies past the end of a shorter sample is NaN


def _features(store: Store) -> list[str]:
    told = [str(name) for name in store.attributes.get("features") or ()]
    return told or [f"feature {i}" for i in range(store.relevance.shape[-1])]


def _names(first: Store, second: Store) -> tuple[str, str]:
    told = [str((store.attributes.get("model") or {}).get("name", "")) for store in (first, second)]
    if all(told) and told[0] != told[1]:
        return told[0], told[1]
    return first.path.name, second.path.name if first.path.name != second.path.name else str(second.path)


def _shared(first: Store, second: Store) -> tuple[np.ndarray, np.ndarray]:
    """The rows of both of the samples that are done in both, in the order of the first.

    Where a sample has several rows, one for each of its largest outputs, rows of the same target belong together.
    """
    ids = [store.column("id") for store in (first, second)]
    single = all(len(np.unique(one.astype(str))) == len(one) for one in ids)
    places = []
    for store, names in zip((first, second), ids, strict=True):
        done, target = store.done, store.column("target")
        keys = [(str(name), 0 if single else int(target[row])) for row, name in enumerate(names)]
        places.append({key: row for row, key in enumerate(keys) if done[row]})
    both = [key for key in places[0] if key in places[1]]
    if not both:
        raise InvalidInput(
            f"compare: {first.path} and {second.path} share no sample that both explain\n"
            "  do: give two stores of the same data"
        )
    return np.array([places[0][key] for key in both]), np.array([places[1][key] for key in both])


# ---------------------------------------------------------------- texts


def stored_words(store: Store, rows: Any = None) -> list[list[tuple[str, float]]]:
    """The words of the texts of a store, with their relevance (`words_of`).

    Raises `InvalidInput` where the store is of no texts.
    """
    if store.kind != "text" or "tokens" not in store.columns:
        raise InvalidInput(
            f"store: {store.path} holds no tokens (kind {store.kind!r})\n  do: give a store that relprop run made of texts"
        )
    chosen = np.arange(len(store)) if rows is None else np.asarray(rows)
    found = []
    for start in range(0, len(chosen), BLOCK):
        part = chosen[start : start + BLOCK]
        for told, values in zip(store.lazy("tokens")[part], store.relevance[part], strict=True):
            tokens = json.loads(told) if told else []
            found.append(
                words_of([(text, a, b, float(r)) for (text, a, b), r in zip(tokens, values, strict=False)])
            )
    return found


def store_words(
    store: Store, *, score: str = "max", least: int = 3, most: int = 20, other: Store | None = None
) -> dict[str, tuple[WordRow, ...]]:
    """The most relevant words of each explained class of a store of texts (`class_words`); `other`: for the column shared."""
    listed = None
    if other is not None:
        own = store_words(other, score=score, least=least, most=most)
        listed = {name: [row.word for row in rows] for name, rows in own.items()}
    rows = np.flatnonzero(store.done)
    targets, signs = decided(store)
    names = [store.class_name(int(target)) for target in targets[rows]]
    return class_words(
        _signed(stored_words(store, rows), signs[rows]),
        names,
        score=score,
        least=least,
        most=most,
        other=listed,
    )
