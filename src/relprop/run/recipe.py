"""What is to be done: from what the caller names to a model, its samples and a target, ready to explain."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relprop.data import Preprocessing
from relprop.errors import InvalidInput
from relprop.explain import Explainer
from relprop.models import Loaded, features_of, listener, load, usable
from relprop.run.labels import labels_of_file
from relprop.run.samples import Intake, Label, Samples, fingerprint
from relprop.run.sources import opened
from relprop.store.group import zarr_of
from relprop.text import folder_model, folder_tokenizer, is_folder, labels_of
from relprop.text.tokenizers import encode

REDUCE = ("none", "channels")
DTYPES = ("float32", "float16", "float64")


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a run depends on, as it was asked for; another process makes the same of it.

    Attributes:
        model: as for `relprop.explain`; or a name of `relprop.models.load`, or what that returned.
        data: see `relprop.run.sources.opened`.
        target: "predicted", "true", "top-K" (the K largest outputs), or what is explained of every sample: a number, the
            name of a class, an index ("3,10,10").
        rules, method, options, tokenizer: as for `relprop.Explainer`.
        batch: samples explained at a time; None: 8, on a GPU 64.
        reduce: "channels" sums relevance over the channels.
        dtype: of the stored relevance.
        labels: one a sample, or a CSV file of them. column, label_column, kind: see `sources.opened`.
        weights, size, mean, std, classes, device: see `relprop.models.load`.
        rate, channels: of recordings: samples a second, and 1 where they go in as (1, samples).
        limit: only the first samples.
        length: places for tokens of a text; by default as many as the longest has.
        thumbnail: the longer side of thumbnails in pixels; 0 for none.
        threads: of the computation; None: as many as torch uses now. Results depend on it in the last bits.
        command: what was typed.
        folder: where relative paths and modules are looked for.
    """

    model: Any = "demo"
    data: Any = None
    target: str | int = "predicted"
    rules: Any = "auto"
    method: str = "lrp"
    options: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Any = None
    batch: int | None = None
    reduce: str = "none"
    dtype: str = "float32"
    labels: Any = None
    column: str | None = None
    label_column: str | None = None
    kind: str | None = None
    weights: str | None = None
    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: str | Path | None = None
    device: str = "cpu"
    rate: int | None = None
    channels: int = 0
    limit: int | None = None
    length: int | None = None
    thumbnail: int = 96
    threads: int | None = None
    command: str = ""
    folder: str = field(default_factory=os.getcwd)

    def __post_init__(self) -> None:
        if self.reduce not in REDUCE:
            raise InvalidInput(f"reduce: {self.reduce!r} is unknown\n  do: one of {', '.join(REDUCE)}")
        if self.dtype not in DTYPES:
            raise InvalidInput(f"dtype: {self.dtype!r} is unknown\n  do: one of {', '.join(DTYPES)}")
        for name in ("batch", "limit", "length", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(f"{name}: {value} is below 1\n  do: give a whole number, at least 1")
        if not 0 <= self.thumbnail <= 1024:
            raise InvalidInput(f"thumbnail: {self.thumbnail} pixels\n  do: give 0 to 1024; 0 for none")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is explained of every sample.

    Attributes:
        mode: "predicted", "true", "top" or "fixed".
        count: rows a sample: K of the K largest outputs, else 1.
        fixed: the target itself.
    """

    mode: str
    count: int = 1
    fixed: Any = None


@dataclass(frozen=True, slots=True)
class Task:
    """A recipe made ready: the model is loaded, the samples are listed; nothing is computed yet."""

    recipe: Recipe
    explainer: Explainer = field(repr=False)
    samples: Samples = field(repr=False)
    labels: Sequence[Label] = field(repr=False)
    asked: Asked
    intake: Intake
    name: str
    weights: str
    classes: tuple[str, ...] = field(repr=False)
    batch: int
    threads: int

    def __len__(self) -> int:
        return len(self.samples) if self.recipe.limit is None else min(len(self.samples), self.recipe.limit)


def prepared(recipe: Recipe) -> Task:
    """The task of a recipe.

    Raises:
        InvalidInput: the model, the data or the target are not there or do not fit.
        MissingExtra: a package that they need is missing.
    """
    zarr_of()  # which the store needs: missed before anything is loaded
    loaded, explainer, intake = _model(recipe)
    given: Sequence[Label] = (
        () if recipe.labels is None or isinstance(recipe.labels, (str, Path)) else list(recipe.labels)
    )
    samples = opened(recipe.data, intake, given, recipe.column, recipe.label_column, recipe.kind)
    labels = given or samples.labels
    if isinstance(recipe.labels, (str, Path)):
        labels = labels_of_file(Path(recipe.labels), samples.ids)
    if labels and len(labels) != len(samples):
        raise InvalidInput(f"labels: {len(labels)} for {len(samples)} samples\n  do: give one a sample")
    if samples.kind in ("text", "table") and recipe.reduce == "channels":
        raise InvalidInput(
            f"reduce: {samples.kind}s have no channels\n  do: leave it out; relevance is one number a token or feature"
        )
    asked = asked_of(recipe.target, loaded)
    if asked.mode == "true" and not labels and samples.together:
        raise InvalidInput(
            f"target: the true classes are not known, {samples.name} has no labels\n"
            "  do: give folders of classes, --labels FILE, or another target"
        )
    batch = recipe.batch or (64 if torch.device(recipe.device).type == "cuda" else 8)
    explainer.batch_size = batch  # never split by the memory that happens to be free: bits would hang on it
    threads = recipe.threads or torch.get_num_threads()
    return Task(
        recipe, explainer, samples, labels, asked, intake, loaded.name, loaded.weights, loaded.classes, batch, threads
    )  # fmt: skip


def _model(recipe: Recipe) -> tuple[Loaded, Explainer, Intake]:
    """The model with what is known of it, an explainer for it, and what it takes."""
    model, tokenizer, sounds, rate = recipe.model, recipe.tokenizer, None, recipe.rate
    if is_folder(model):
        if tokenizer is None and _hears(Path(model)):
            network, features, own = listener(model)
            network = network.to(usable(recipe.device))
            sounds, rate = partial(_features, network, features, recipe.device), rate or own
        else:
            network = folder_model(model).to(usable(recipe.device))
            tokenizer = folder_tokenizer(model) if tokenizer is None else tokenizer
        loaded = Loaded(network, type(network).__name__, f"of the folder {model}", classes=labels_of(network))
    elif isinstance(model, (str, Path)):
        names: dict[str, Any] = {"size": recipe.size, "mean": recipe.mean, "std": recipe.std}
        loaded = load(str(model), recipe.weights, **names, classes=recipe.classes, device=recipe.device)
    elif isinstance(model, Loaded):
        loaded = model
    else:
        loaded = Loaded(model, type(model).__name__, "as given", Preprocessing(), labels_of(model))
    explainer = Explainer(loaded.model, recipe.rules, recipe.method, tokenizer=tokenizer, **recipe.options)
    texts = explainer.tokenizer is not None or (
        explainer.estimator is not None and explainer.estimator.reader.texts
    )
    intake = Intake(
        reads="sound" if sounds is not None else "text" if texts else "array",
        preprocessing=loaded.preprocessing,
        dtype=_dtype(explainer),
        device=recipe.device,
        features=sounds,
        rate=rate,
        channels=bool(recipe.channels),
        side=recipe.thumbnail,
    )
    return loaded, explainer, intake


def _features(network: Any, features: Any, device: str, heard: Any) -> dict[str, Any]:
    return features_of(network, features, heard, device)


def _hears(folder: Path) -> bool:
    """Whether a folder's model takes recordings: it has a feature extractor with a sampling rate and no tokenizer alone."""
    import json

    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            told = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if "sampling_rate" in told or "sampling_rate" in told.get("feature_extractor", {}):
            return True
    return False


def _dtype(explainer: Explainer) -> torch.dtype:
    if explainer.estimator is not None:
        return torch.float64
    return (
        Loaded(explainer.model, "", "").dtype()
        if not isinstance(explainer.model, (str, Path))
        else torch.float32
    )


def asked_of(target: str | int, loaded: Loaded) -> Asked:
    """What a caller's `target` asks for. Raises `InvalidInput` where it is none."""
    if isinstance(target, int) and not isinstance(target, bool):
        return Asked("fixed", fixed=target)
    text = str(target).strip()
    if text in ("predicted", "true"):
        return Asked(text)
    if text.startswith("top-"):
        if not text[4:].isdecimal() or int(text[4:]) < 1:
            raise InvalidInput(
                f"target: {text!r} names no number of classes\n  do: write top-3 for the three largest"
            )
        count = int(text[4:])
        return Asked("top", count) if count > 1 else Asked("predicted")
    return Asked("fixed", fixed=loaded.target(text))


def tokens_of(task: Task) -> int:
    """How many tokens the longest text has; those that no tokenizer takes are left out."""
    if task.recipe.length is not None:
        return task.recipe.length
    texts, tokenizer = task.samples.texts[: len(task)], task.explainer.tokenizer
    if tokenizer is None:
        import re

        return max((len(re.findall(r"\w+|[^\w\s]", text)) for text in texts), default=1)
    longest = 1
    for text in texts:
        try:
            longest = max(longest, len(encode(tokenizer, text).pieces))
        except InvalidInput:  # it will fail when it is explained, and say why
            continue
    return longest + (
        1 if getattr(getattr(task.explainer.model, "config", None), "is_encoder_decoder", False) else 0
    )


def model_fingerprint(explainer: Explainer) -> str:
    """A name for a model's weights and buffers: equal for equal values under equal names."""
    model = explainer.model
    held = (
        model.state_dict()
        if hasattr(model, "state_dict") and callable(model.state_dict)
        else getattr(model, "state_dict", {})
    )
    parts: list[Any] = [type(model).__name__]
    for name, value in held.items():
        if isinstance(value, torch.Tensor):
            parts += [name, tuple(value.shape), value.dtype, _bytes(value)]
    return fingerprint(parts)


def _bytes(value: torch.Tensor) -> bytes:
    flat: NDArray[np.uint8] = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat.tobytes()
