"""Image networks by name: the bundled one, torchvision's, timm's, a saved program or the user's own code.

torchvision, timm and safetensors are imported when they are used: `pip install 'relprop[models]'`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from relprop.data import Preprocessing
from relprop.errors import InvalidInput
from relprop.models.listeners import features_of, listener
from relprop.models.loaded import Loaded, check_names, first_line
from relprop.models.sources import SOURCES, source_of
from relprop.models.weights import state_dict

__all__ = [
    "SOURCES",
    "Loaded",
    "check_names",
    "features_of",
    "listener",
    "load",
    "source_of",
    "state_dict",
    "usable",
]


def load(
    model: str = "demo",
    weights: str | None = None,
    *,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: str | Path | None = None,
    device: str = "cpu",
) -> Loaded:
    """The network that a name means, with its weights and preprocessing.

    Args:
        model: "demo" (EfficientNet-Lite0, pretrained), a name of torchvision's ("resnet50") or timm's
            ("timm:resnet50"), a file saved by `torch.export.save` (".pt2"), of ONNX (".onnx") or TorchScript
            (".pt"), or "package.module:callable",
            which is called without arguments and returns a module; the current folder is importable.
        weights: None for the pretrained ones (of a callable: those it returns); "random" for seeded random
            ones; or a file of them (.safetensors, .pt, .pth), read as tensors only, never as code.
        size, mean, std: replace the model's own preprocessing. Defaults where a model states none: 224, and
            ImageNet's mean (0.485, 0.456, 0.406) and deviation (0.229, 0.224, 0.225).
        classes: a text file with the name of one output a line.
        device: where the model is put.

    Raises:
        InvalidInput: no such model, weights that do not fit or cannot be had.
        MissingExtra: the package that has the model is not installed.
    """
    place = usable(device)
    source, name = source_of(model)
    loaded = SOURCES[source](name, weights)
    names = loaded.classes if classes is None else _lines(Path(classes))
    module = loaded.model
    if isinstance(module, nn.Module):
        module = module.to(place).eval()
    elif place.type != "cpu":
        from torch.export.passes import move_to_device_pass

        module = move_to_device_pass(module, str(place))
    return dataclasses.replace(
        loaded, model=module, preprocessing=_changed(loaded.preprocessing, size, mean, std), classes=names
    )


def usable(device: str) -> torch.device:
    """The device of that name. Raises `InvalidInput` where there is none or it holds no values."""
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise InvalidInput(
            f"device: {device!r} cannot be used ({first_line(error)})\n  do: one of {', '.join(there)}"
        ) from error
    return place


def _changed(
    how: Preprocessing, size: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Preprocessing:
    """The preprocessing with what the user gave in place of the model's own."""
    resize = how.resize if size is None else max(size, round(size * how.resize / how.size))
    return dataclasses.replace(
        how,
        size=how.size if size is None else size,
        resize=resize,
        mean=how.mean if mean is None else tuple(mean),
        std=how.std if std is None else tuple(std),
    )


def _lines(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"classes: {file} cannot be read ({first_line(error)})\n  do: give a text file in UTF-8, one name a line"
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise InvalidInput(f"classes: {file} names none\n  do: write one name a line")
    return names
