"""Models of transformers that hear: a folder's network with its feature extractor."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from relprop.errors import InvalidInput
from relprop.models.loaded import first_line
from relprop.text import folder_model


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
            f"model: the feature extractor of {place} cannot be opened ({first_line(error)})"
        ) from error
    rate = getattr(features, "sampling_rate", None)
    if not isinstance(rate, int):
        raise InvalidInput(
            f"model: {place} takes no recordings (its feature extractor has no sampling rate)\n"
            "  do: give a model that hears"
        )
    return model, features, rate
