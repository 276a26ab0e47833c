"""The table `OPERATORS`: from an ONNX operator to the function that computes it with torch. A new operator is one
function and one line above it.

A function takes the `Node` (its attributes, with the schema's defaults filled in) and the values of its inputs, None
for those left out, and returns a tensor, or a tuple of them where the operator has several outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from relprop.errors import UnsupportedOperation

OLDEST, NEWEST = 13, 28
"""The versions of ONNX's own operator set that the functions were written for and compared with."""

ML = "ai.onnx.ml"


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of the file.

    `version` is the operator set of the file in the operator's domain; `path` is the name of the module that runs it.
    """

    operation: str
    domain: str
    version: int
    name: str
    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, attribute: str) -> Any:
        """The value of an attribute: the file's, else the schema's default, else None."""
        return self.attributes.get(attribute)

    def where(self) -> str:
        """The operator and its place in the file, for messages."""
        kind = f"{self.domain}.{self.operation}" if self.domain else self.operation
        return f"{kind} (node {self.name or self.outputs[0]!r})"

    def refuse(self, why: str) -> UnsupportedOperation:
        """The error for a setting of the operator that has no counterpart here."""
        return UnsupportedOperation(
            f"ONNX operator {self.where()}: {why}, which is not converted\n"
            "  do: export the model without it, or give relprop the PyTorch model that it was made from"
        )


@dataclass(frozen=True, slots=True)
class Operator:
    """How an ONNX operator is computed.

    Attributes:
        function: from the node and its inputs to its outputs.
        host: the positions of inputs that are sizes, axes and the like: handed over as plain numbers.
        numbers: a known input of a single value is handed over as a plain number if it has at most so many dimensions.
        build: makes a module from the node and the file's constants, which then takes the function's place.
    """

    function: Callable[..., Any]
    host: tuple[int, ...] = ()
    numbers: int = -1
    build: Callable[[Node, Mapping[str, np.ndarray[Any, Any]]], torch.nn.Module] | None = None


OPERATORS: dict[tuple[str, str], Operator] = {}
"""From domain and name of an ONNX operator to how it is computed."""


def operator(
    *names: str, host: tuple[int, ...] = (), numbers: int = -1, domain: str = ""
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter the decorated function in the table under these names."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            OPERATORS[domain, name] = Operator(function, host, numbers)
        return function

    return enter


def simple(name: str, function: Callable[..., Any], *, numbers: int = -1) -> None:
    """Enter an operator that has no attributes: its inputs are the function's arguments."""
    OPERATORS["", name] = Operator(lambda node, *inputs: function(*inputs), (), numbers)


def built(
    name: str, build: Callable[[Node, Mapping[str, np.ndarray[Any, Any]]], torch.nn.Module], domain: str = ""
) -> None:
    """Enter an operator that becomes a module with weights of its own."""
    OPERATORS[domain, name] = Operator(_unused, build=build)


def _unused(node: Node, *inputs: Any) -> Any:
    raise node.refuse("it computes by a module of its own")
