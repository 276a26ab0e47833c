"""The model libraries: which families they have, and one small random member of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A model in eval mode, inputs for it, and what is explained. `hidden`: from the name of an input to True where
    an attention mask hides it, so that it must get nothing."""

    name: str
    model: torch.nn.Module
    inputs: Any
    target: Any = None
    hidden: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> Any:
        """The model's own output."""
        if isinstance(self.inputs, dict):
            return self.model(**self.inputs)
        return self.model(*self.inputs) if isinstance(self.inputs, tuple) else self.model(self.inputs)

    def leaks(self, relevance: Any) -> float:
        """The largest relevance at a place that a mask hides: 0, or a defect."""
        found = [0.0]
        for name, hidden in self.hidden.items():
            values = relevance[name]
            if isinstance(values, Tensor) and bool(hidden.any()):
                found.append(float(values[hidden].abs().max()))
        return max(found)


def alive(model: torch.nn.Module) -> None:
    """Heads and scales that start at zero would have no score to explain: small random numbers take their place."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if name == "weight" and weight.dim() > 1 and not bool(weight.any()):
                torch.nn.init.normal_(weight, std=0.02)


def steady(model: torch.nn.Module, run: Callable[[], Any]) -> None:
    """Batch normalisation gets the statistics of one batch, so that scores are neither 0 nor infinite."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    if norms:
        with torch.no_grad():
            run()
    model.eval()


LIBRARIES: dict[str, Callable[[], Any]] = {
    "torchvision": lambda: import_module("families.vision"),
    "timm": lambda: import_module("families.images"),
    "transformers": lambda: import_module("families.transformer"),
    "by hand": lambda: import_module("families.others"),
}
