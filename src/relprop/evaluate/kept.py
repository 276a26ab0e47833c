"""Finished work in a folder: a unit is what one method says of one batch, under a name made of all that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.engine import capture as capturing
from relprop.engine.modules import unwrapped
from relprop.errors import InvalidInput
from relprop.evaluate.cases import Data, Method


def described(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as plain values: tensors by shape and checksum, callables by name."""
    return {name: _plainly(value) for name, value in settings.items()}


def _plainly(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.numel() <= 8:
            return value.flatten().tolist()
        return {"shape": list(value.shape), "sha256": checksum([value])}
    if isinstance(value, (tuple, list)):
        return [_plainly(one) for one in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    return getattr(value, "__qualname__", type(value).__name__)


def checksum(tensors: Sequence[Tensor]) -> str:
    """A checksum of values, shapes and types."""
    found = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return found.hexdigest()[:24]


class Kept:
    """Finished units of work in a folder, by what they depend on; without a folder nothing is kept."""

    def __init__(
        self,
        folder: Path | None,
        model: Any,
        seed: int,
        settings: Mapping[str, Any],
        asked: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.base = ""
        if folder is None:
            return
        from relprop import __version__

        held = capturing.load(model) if isinstance(model, (str, Path)) else unwrapped(model)
        state = held.state_dict() if callable(held.state_dict) else held.state_dict
        weights = checksum([value for value in state.values() if isinstance(value, Tensor)])
        facts = [
            __version__,
            type(held).__name__,
            weights,
            seed,
            described(settings),
            {n: described(o) for n, o in asked.items()},
        ]
        self.base = json.dumps(facts, sort_keys=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"store: {folder} cannot be made: {error.strerror}\n  do: name another folder"
            ) from error

    def place(self, method: Method, part: Data) -> Path:
        """The file of one unit."""
        assert self.folder is not None
        tensors = [leaf for leaf in pytree.tree_leaves((part.inputs, part.mask)) if isinstance(leaf, Tensor)]
        facts = json.dumps(
            [self.base, method.name, method.spec, checksum(tensors), part.samples, repr(part.target)]
        )
        return self.folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.json"

    def read(self, method: Method, part: Data) -> dict[str, Any] | None:
        """A finished unit, or None."""
        if self.folder is None or not (place := self.place(method, part)).exists():
            return None
        try:
            found: dict[str, Any] = json.loads(place.read_text())
        except json.JSONDecodeError:
            return None
        return found

    def write(self, method: Method, part: Data, unit: dict[str, Any]) -> None:
        """Keep a unit; the file appears whole or not at all."""
        if self.folder is None:
            return
        place = self.place(method, part)
        beside = place.with_suffix(f".{os.getpid()}.tmp")
        beside.write_text(json.dumps(unit))
        beside.replace(place)
