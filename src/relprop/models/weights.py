"""Weights: of a file, random or pretrained. Files are read as tensors only, never as code."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relprop.errors import InvalidInput, MissingExtra
from relprop.models.loaded import first_line, listed

SEED = 0
"""The seed of random weights."""

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""Endings of files that hold weights."""


def state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a file of weights. PyTorch's are read with `weights_only=True`: no code in them runs.

    Raises `InvalidInput` where there is no such file, it is damaged, or it holds more than tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise InvalidInput(
            f"weights: no file {file}\n  do: give a file ending in {', '.join(WEIGHTS)}, or random"
        )
    held: Any
    if file.suffix.lower() == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise MissingExtra(
                f"weights: {file} needs safetensors\n  do: pip install 'relprop[models]'"
            ) from error
        try:
            held = load_file(file)
        except Exception as error:
            raise InvalidInput(
                f"weights: {file} is not a readable safetensors file ({first_line(error)})\n  do: fetch or save it again"
            ) from error
    else:
        held = _load_pickle(file)
    for key in ("state_dict", "model_state_dict", "model", "net", "module"):
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if (
        not isinstance(held, Mapping)
        or not held
        or not all(isinstance(value, Tensor) for value in held.values())
    ):
        raise InvalidInput(
            f"weights: {file} holds no table of weights (a {type(held).__name__})\n"
            "  do: save it with torch.save(model.state_dict(), file)"
        )
    found = {str(key): value for key, value in held.items()}
    if all(key.startswith("module.") for key in found):  # of nn.DataParallel
        found = {key.removeprefix("module."): value for key, value in found.items()}
    return found


def _load_pickle(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with file.open("rb") as opened:
            start = opened.read(2)
        if start not in (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6))):
            raise InvalidInput(
                f"weights: {file} is not a file of weights\n"
                "  do: give one saved by torch.save(model.state_dict(), file), or .safetensors"
            ) from error
        raise InvalidInput(
            f"weights: {file} holds more than tensors; it is refused, as reading it could run code\n"
            "  do: save the weights alone with torch.save(model.state_dict(), file), or as safetensors"
        ) from error
    except Exception as error:
        raise InvalidInput(
            f"weights: {file} is not a readable file of weights ({first_line(error)})\n  do: fetch or save it again"
        ) from error


def weighted(build: Callable[[int | None], nn.Module], weights: str, name: str) -> tuple[nn.Module, str]:
    """The network with random weights or those of a file, and where they come from."""
    if weights != "random":
        return fit(build, state_dict(weights), name, weights), f"from the file {weights}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build(None), f"random, seed {SEED}"


def fit(
    build: Callable[[int | None], nn.Module], weights: dict[str, Tensor], name: str, file: str = "its package"
) -> nn.Module:
    """The network with these weights; its last layer gets as many classes as the weights have."""
    with torch.random.fork_rng(devices=[]):
        model = build(None)
        own = model.state_dict()
        differ = [key for key in own if key in weights and own[key].shape != weights[key].shape]
        counts = {weights[key].shape[0] for key in differ if weights[key].dim()}
        if len(counts) == 1 and len({own[key].shape[0] for key in differ if own[key].dim()}) == 1:
            model = build(counts.pop())
            own = model.state_dict()
            differ = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    strange = [key for key in weights if key not in own]
    if missing or strange or differ:
        parts = [
            *([f"it lacks {listed(missing, 3)}"] if missing else []),
            *([f"the network has no {listed(strange, 3)}"] if strange else []),
            *[
                f"{k} has shape {tuple(weights[k].shape)} where the network takes {tuple(own[k].shape)}"
                for k in differ[:2]
            ],
        ]
        raise InvalidInput(
            f"weights: {file} does not fit {name}: {'; '.join(parts)}\n"
            "  do: give the weights of this very network"
        )
    model.load_state_dict(weights, strict=False)
    return model


def pretrained(name: str, library: str, get: Callable[[], Any]) -> nn.Module:
    """What `get` returns. Raises `InvalidInput` where the library cannot have the weights (no network)."""
    try:
        model: nn.Module = get()
    except Exception as error:  # URLError, the hub's own errors, a full disk, a name without weights
        raise InvalidInput(
            f"weights: the pretrained weights of {name} cannot be had from {library} ({first_line(error)})\n"
            "  do: go online once, give your own with --weights FILE, or --weights random for a dry run"
        ) from error
    return model
