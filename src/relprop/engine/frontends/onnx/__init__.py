"""ONNX files, read with the package onnx (`pip install 'relprop[onnx]'`) and run with torch.

`table.OPERATORS` lists the operators; the files of `FAMILIES` hold their functions. All of it is loaded when a file is.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relprop.engine.frontends.onnx.model import OnnxModel
    from relprop.engine.frontends.onnx.table import Operator

FAMILIES = ("classical", "elementwise", "linear", "norm", "recurrent", "shape")


def is_onnx(model: Any) -> bool:
    """Whether a model was read from an ONNX file; to ask loads nothing."""
    return any(cls.__module__ == f"{__name__}.model" for cls in type(model).__mro__)


def load(path: str | Path) -> OnnxModel:
    """The ONNX file as a module in eval mode. Nothing in it is unpickled or run as code.

    Raises `InvalidInput` where it is damaged, `UnsupportedOperation` that names operators without a conversion,
    `MissingExtra` without the package onnx.
    """
    from relprop.engine.frontends.onnx.model import OnnxModel

    operators()
    return OnnxModel(Path(path))


def operators() -> Mapping[tuple[str, str], Operator]:
    """The table of operators, by domain and name, with the rows of all families."""
    from relprop.engine.frontends.onnx.table import OPERATORS

    for family in FAMILIES:  # they enter their rows
        import_module(f"{__name__}.{family}")
    return OPERATORS
