"""The types of values in ONNX files."""

from __future__ import annotations

from typing import Any

import torch

from relprop.engine.frontends.onnx.table import Node
from relprop.errors import InvalidInput

TYPES: dict[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
"""ONNX's numbers of types that torch computes with."""


def torch_type(code: int, at: Node | str) -> torch.dtype:
    """Torch's type for ONNX's number of one. Raises for strings, complex and packed types."""
    if code in TYPES:
        return TYPES[code]
    if isinstance(at, Node):
        raise at.refuse(f"the type {name_of_type(code)}")
    raise InvalidInput(
        f"model: {at} is of type {name_of_type(code)}, which has no relevance\n"
        "  do: export the model from real numbers or whole ones"
    )


def name_of_type(code: Any) -> str:
    """ONNX's name of a type."""
    import onnx

    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return str(names.get(code, f"number {code}")).lower()
