"""One sample under several presets, computed when it is asked for: the model is at hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from relprop.engine.presets import PRESETS
from relprop.errors import InvalidInput, RelpropError
from relprop.explain import Explainer
from relprop.run import Recipe, Sample, prepared
from relprop.run.recipe import Task, model_fingerprint
from relprop.run.rows import batch_of, relevance_of
from relprop.run.sources import opened
from relprop.show.samples import data_uri, map_of, picture_of
from relprop.show.text import Coloured, coloured
from relprop.store import Store

LOCK = threading.Lock()
"""One computation at a time: they share the machine's threads and memory."""

MOST = 8
"""The most presets that are computed for one request."""

SIDE = 320


@dataclass(frozen=True, slots=True)
class Comparison:
    """The relevance of a sample under one preset: a picture (or coloured words), its account, or why it was refused."""

    preset: str
    picture: str = ""
    told: Coloured | None = None
    score: float = float("nan")
    relevance: float = float("nan")
    gap: float = float("nan")
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Comparer:
    """A model at hand, and how the samples of a store become its inputs.

    Attributes:
        task: the model, ready to explain, and what it takes.
        read: from a row of the store to the sample; raises what says why it cannot be read.
    """

    task: Task = field(repr=False)
    read: Callable[[int], Sample] = field(repr=False)
    held: dict[str, Explainer] = field(default_factory=dict, repr=False, compare=False)


def at_hand(store: Store, recipe: Recipe) -> Comparer:
    """The model of a store, ready to explain its samples.

    recipe: `model` and its options as for `relprop.run`, and `data` where the samples are found again; left out (None),
    texts come from the store itself, and pictures from the files that it names.

    Raises:
        InvalidInput: the model or the data are not there, or not those of the store; or the samples cannot be found
            without data.
    """
    rows = np.flatnonzero(store.done)
    given, texts = recipe.data, store.kind == "text" and "text" in store.columns
    if given is None:
        first = str(store.lazy("source")[int(rows[0])]) if len(rows) else ""
        if texts and len(rows):
            recipe = replace(recipe, data=[str(store.lazy("text")[int(rows[0])])])
        elif store.kind == "image" and first and Path(first).is_file():
            recipe = replace(recipe, data=[first])
        else:
            raise InvalidInput(
                f"view: --model needs the samples too, and {store.path} does not hold them\n"
                "  do: give --data as it was given to relprop run"
            )
    task = prepared(recipe)
    _belongs(store, task, given is not None)

    def read(row: int) -> Sample:
        if given is not None:
            number = store.lazy("sample")[row] if "sample" in store.columns else row
            return task.samples.read(int(number))
        if texts:
            return Sample(str(store.lazy("text")[row]))
        return opened([str(store.lazy("source")[row])], task.intake).read(0)

    return Comparer(task, read)


def _belongs(store: Store, task: Task, with_data: bool) -> None:
    """Refuse another model, and other data, than those of the store."""
    known = [("model", "--model", model_fingerprint(task.explainer))]
    known += [("data", "--data", task.samples.fingerprint)] if with_data else []
    for name, option, found in known:
        told = store.attributes.get(name)
        wanted = told.get("fingerprint") if isinstance(told, Mapping) else None
        if wanted and wanted != found:
            raise InvalidInput(
                f"view: {option} is not the {name} of {store.path} (fingerprint {found}, there {wanted})\n"
                f"  do: give the {name} that relprop run had"
            )


def compare(comparer: Comparer, store: Store, row: int, presets: Sequence[str]) -> list[Comparison]:
    """The relevance of one sample of a store, for the output that the store explains, under each preset."""
    wanted = [name for name in dict.fromkeys(presets) if name in PRESETS][:MOST]
    target = int(store.lazy("target")[row])
    with LOCK:
        try:
            inputs = batch_of(comparer.task, [comparer.read(row)])
        except Exception as error:  # the user's files and code
            return [Comparison(name, refused=_line(error)) for name in wanted]
        return [_one(comparer, inputs, target, name) for name in wanted]


def _one(comparer: Comparer, inputs: Any, target: int, preset: str) -> Comparison:
    usual = comparer.task.explainer
    try:
        if preset not in comparer.held:
            options = {} if usual.tokenizer is None else {"tokenizer": usual.tokenizer}
            comparer.held[preset] = Explainer(usual.model, preset, **options)
        explanation = comparer.held[preset](inputs, target if target >= 0 else None)
        relevance, tokens = relevance_of(comparer.task, explanation)
    except RelpropError as error:
        return Comparison(preset, refused=_line(error))
    told, picture = None, ""
    if tokens is not None:
        told = coloured(explanation.tokens, inputs)[0]
    else:
        picture = data_uri(picture_of(map_of(relevance[0].double().numpy()), side=SIDE))
    audit, nothing = explanation.audit, float("nan")
    return Comparison(
        preset, picture, told, float(explanation.score[0]),
        nothing if audit is None else float(audit.relevance[0]), nothing if audit is None else float(audit.gap[0]),
    )  # fmt: skip


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
