"""An example of what a model takes, for the commands that ask about the model: a photograph, a recording or a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from relprop import Explainer
from relprop.audio import Recording, open_recording
from relprop.cli import printing
from relprop.cli.kinds import kind_of_inputs
from relprop.cli.options import load_named
from relprop.data import DEMO
from relprop.errors import InvalidInput
from relprop.models import Loaded, features_of, listener, load, source_of, usable
from relprop.text import folder_model, folder_tokenizer, is_folder, labels_of

TEXT = "The film was long, but the ending made up for all of it."
"""What a model that reads is asked about where no text is given."""


@dataclass(frozen=True, slots=True)
class Example:
    """A model with one sample of its inputs. `source` names the input that is explained, where there are several."""

    loaded: Loaded
    inputs: Any
    recording: Recording | None = None
    source: str = ""

    @property
    def title(self) -> str:
        """The model in words."""
        return f"{self.loaded.name}, weights {self.loaded.weights}"


def example_of(
    given: str | None,
    model: str,
    weights: str | None,
    size: int | None,
    mean: str | None,
    std: str | None,
    device: str,
    rate: int | None = None,
    channels: int = 0,
) -> Example:
    """The model that the options name and what it takes: the photograph, recording or text that is given, else a bundled
    photograph, or for a folder saved by transformers a text or a second of noise.

    Raises `InvalidInput` where model and input do not fit.
    """
    folder = is_folder(model)
    kind = kind_of_inputs([given], model) if given is not None else "folder" if folder else "photos"
    if kind == "audio":
        assert given is not None
        with printing.working(f"loading {model}"):
            return heard(Path(given), model, weights, device, rate, channels)
    if kind == "photos":
        loaded = load_named(model, weights, size, mean, std, None, device)
        how = loaded.preprocessing
        file = DEMO / "cat.jpg" if given is None else Path(given)
        photograph = how.tensor(how.cropped(file))
        return Example(loaded, photograph[None].to(device=device, dtype=loaded.dtype()))
    with printing.working(f"loading {model}"):
        if given is None and folder_tokenizer(model, False) is None:
            return _noise(model, device)
        return read(TEXT if given is None else given, model, device)


def read(text: str, folder: str, device: str) -> Example:
    """A folder that reads, and the tokens of a text."""
    tokenizer = folder_tokenizer(folder)
    loaded = _of_folder(folder_model(folder), folder, device)
    _, args, kwargs = Explainer(loaded.model, tokenizer=tokenizer).read(text)
    return Example(loaded, kwargs or args)


def heard(
    file: Path,
    model: str,
    weights: str | None,
    device: str,
    rate: int | None,
    channels: int,
    classes: Path | None = None,
) -> Example:
    """A model that hears, and the recording as it takes it."""
    source = "folder" if is_folder(model) else source_of(model)[0]
    if source == "folder":
        network, features, own = listener(model)
        return _features(
            network, features, open_recording(file, own if rate is None else rate), model, device
        )
    if source != "code":
        raise InvalidInput(
            f"model: {model} takes photographs, not recordings\n"
            "  do: give a folder saved by transformers, or package.module:callable"
        )
    loaded = load(model, weights, classes=classes, device=device)
    recording = open_recording(file, rate)
    inputs = recording.samples.to(device, loaded.dtype())[None]
    return Example(loaded, inputs[:, None] if channels else inputs, recording)


def _noise(folder: str, device: str) -> Example:
    """A folder that hears, and a second of noise."""
    network, features, rate = listener(folder)
    samples = 0.1 * torch.randn(rate, generator=torch.Generator().manual_seed(0))
    return _features(network, features, Recording(samples, rate), folder, device)


def _features(network: Any, features: Any, recording: Recording, folder: str, device: str) -> Example:
    loaded = _of_folder(network, folder, device)
    inputs = features_of(loaded.model, features, recording, device)
    name = getattr(network, "main_input_name", "input_values")
    return Example(loaded, inputs, recording, name if name in inputs else next(iter(inputs)))


def _of_folder(model: Any, folder: str, device: str) -> Loaded:
    model = model.to(usable(device))
    return Loaded(model, type(model).__name__, f"of the folder {folder}", classes=labels_of(model))
