"""Models that bring their tokenizer: pipelines of transformers, and folders saved by `save_pretrained`.

transformers is imported when a folder is opened: `pip install 'relprop[text]'`.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from relprop.errors import InvalidInput, MissingExtra

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
"""Files of which a folder with a tokenizer has at least one."""


def opened(model: Any, tokenizer: Any = None) -> tuple[Any, Any]:
    """The module and the tokenizer of what a caller gives as a model.

    A pipeline of transformers gives both, and so does a folder saved by `save_pretrained`; all other models are
    returned as they are. A given tokenizer goes before the model's own; it may be a folder too.
    """
    if isinstance(tokenizer, (str, Path)):
        tokenizer = folder_tokenizer(tokenizer)
    if is_folder(model):
        return folder_model(model), tokenizer if tokenizer is not None else folder_tokenizer(model, False)
    if not isinstance(model, torch.nn.Module) and isinstance(getattr(model, "model", None), torch.nn.Module):
        own = getattr(model, "tokenizer", None)
        if own is not None or hasattr(model, "feature_extractor"):  # a pipeline
            return model.model, own if tokenizer is None else tokenizer
    return model, tokenizer


def is_folder(model: Any) -> bool:
    """Whether a model is given as a folder that `save_pretrained` wrote (it has a config.json)."""
    return isinstance(model, (str, Path)) and (Path(model) / "config.json").is_file()


def folder_model(folder: str | Path) -> torch.nn.Module:
    """The model of a folder, in eval mode: of the class it was saved from, its weights from safetensors only.

    No code of the folder runs and nothing is downloaded. Raises `InvalidInput` where that cannot be.
    """
    place = Path(folder)
    transformers = _transformers()
    config = _config(place)
    if not any(place.glob("*.safetensors")):
        raise InvalidInput(
            f"model: {place} holds no weights in safetensors\n"
            "  do: save it again with model.save_pretrained(folder); other files could run code when they are read"
        )
    names = config.get("architectures") or []
    known = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    if not known:
        raise InvalidInput(
            f"model: {place} is of the class {', '.join(map(str, names)) or '(none named)'}, which transformers does not have\n"
            "  do: build the model in Python and give it to relprop.explain"
        )
    with _silent(), _refused(f"model: {place} cannot be opened"):
        found, report = known[0].from_pretrained(
            place,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise InvalidInput(
            f"model: {place} lacks the weights {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''} of {names[0]}\n"
            "  do: save the whole model, with the layers that were trained for the task"
        )
    model: torch.nn.Module = found.eval()
    return model


def folder_tokenizer(folder: str | Path, needed: bool = True) -> Any:
    """The tokenizer of a folder. Raises `InvalidInput` where it has none and it is `needed`."""
    place = Path(folder)
    if not any((place / name).is_file() for name in TOKENIZER_FILES):
        if not needed:
            return None
        raise InvalidInput(
            f"tokenizer: there is none in {place}\n  do: save it beside the model: tokenizer.save_pretrained(folder)"
        )
    transformers = _transformers()
    with _silent(), _refused(f"tokenizer: that of {place} cannot be opened"):
        return transformers.AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=False
        )


def labels_of(model: Any) -> tuple[str, ...]:
    """The names of a model's classes by its config, in their order; empty where it names none."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, dict) or sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        return ()
    return tuple(str(names[key]) for key in sorted(names, key=int))


def _config(place: Path) -> dict[str, Any]:
    try:
        held = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"model: {place / 'config.json'} cannot be read\n  do: save the model again: model.save_pretrained(folder)"
        ) from error
    if not isinstance(held, dict):
        raise InvalidInput(
            f"model: {place / 'config.json'} is no table of settings\n  do: save the model again: model.save_pretrained(folder)"
        )
    return held


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtra(
            "model: a folder of transformers needs transformers\n  do: pip install 'relprop[text]'"
        ) from error


@contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library's own errors are of many kinds
        lines = str(error).strip().splitlines()
        raise InvalidInput(
            f"{what} ({lines[0].rstrip('.') if lines else type(error).__name__})\n"
            "  do: save it again with save_pretrained, model and tokenizer in one folder"
        ) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Without the library's progress bars and reports, for the time of one call."""
    bars = importlib.import_module("transformers.utils.logging")
    logger = logging.getLogger("transformers")
    level, shown = logger.level, bars.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            bars.enable_progress_bar()
