"""ONNX files, read with the package onnx (`pip install 'relprop[onnx]'`) and run with torch.

`table.OPERATORS` lists the operators; the files beside it hold their functions, a family each.
"""

from relprop.engine.frontends.onnx import classical, elementwise, linear, norm, recurrent, shape
from relprop.engine.frontends.onnx.model import OnnxModel, batch_of, check_inputs, load
from relprop.engine.frontends.onnx.reference import compare
from relprop.engine.frontends.onnx.table import OPERATORS

__all__ = [
    "OPERATORS",
    "OnnxModel",
    "batch_of",
    "check_inputs",
    "classical",
    "compare",
    "elementwise",
    "linear",
    "load",
    "norm",
    "recurrent",
    "shape",
]
