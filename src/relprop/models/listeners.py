"""Models of transformers that hear: a folder's network with its feature extractor."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from relprop.audio import Recording
from relprop.errors import InvalidInput
from relprop.models.loaded import first_line
from relprop.text import folder_model, parameters_of


def listener(folder: str | Path) -> tuple[nn.Module, Any, int]:
    """The network of a folder, its feature extractor, and the samples a second that it takes.

    No code of the folder runs and nothing is downloaded. Raises `InvalidInput` where it has not both.
    """
    place = Path(folder)
    if not (place / "preprocessor_config.json").is_file() and not (place / "processor_config.json").is_file():
        raise InvalidInput(
            f"model: {place} has no feature extractor, so that it cannot hear recordings\n"
            "  do: save it beside the model: feature_extractor.save_pretrained(folder); give a text to a model that reads"
        )
    model = folder_model(place)
    try:
        transformers = importlib.import_module("transformers")
        features = transformers.AutoFeatureExtractor.from_pretrained(
            place, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the library's own errors are of many kinds
        raise InvalidInput(
            f"model: the feature extractor of {place} cannot be opened ({first_line(error)})\n"
            "  do: save it again: feature_extractor.save_pretrained(folder)"
        ) from error
    rate = getattr(features, "sampling_rate", None)
    if not isinstance(rate, int):
        raise InvalidInput(
            f"model: {place} takes no recordings (its feature extractor has no sampling rate)\n"
            "  do: give a model that hears"
        )
    return model, features, rate


def features_of(model: nn.Module, features: Any, recording: Recording, device: str) -> dict[str, Tensor]:
    """What the folder's feature extractor makes of a recording, as far as the model takes it, with a batch of one.

    Raises `InvalidInput` where it refuses the recording.
    """
    try:
        held = features(recording.samples.numpy(), sampling_rate=recording.rate, return_tensors="pt")
    except Exception as error:
        raise InvalidInput(
            f"model: its feature extractor refuses the recording ({first_line(error)})\n"
            "  do: give a recording at the rate and length that the model takes"
        ) from error
    takes = parameters_of(model)
    weight = next((w for w in model.parameters() if w.is_floating_point()), None)
    return {
        name: value.to(device, weight.dtype if weight is not None and value.is_floating_point() else None)
        for name, value in held.items()
        if isinstance(value, Tensor) and (not takes or name in takes)
    }
