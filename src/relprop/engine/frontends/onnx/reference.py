"""What ONNX itself computes: a converted model is compared with it before it is explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.engine.frontends.onnx import load
from relprop.engine.frontends.onnx.file import package
from relprop.engine.frontends.onnx.model import OnnxModel
from relprop.errors import CaptureError, InvalidInput

LOOSE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""How far outputs may differ, as a share of the largest value."""


def outputs_of(path: Path, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The file's outputs by name: from onnxruntime where it is installed and takes the file, else from onnx."""
    package()
    arrays = {name: _array(value) for name, value in inputs.items()}
    if not path.is_file():
        raise InvalidInput(f"model: the file {path} is gone\n  do: leave it in place while it is explained")
    return _by_runtime(path, arrays) or _by_reference(path, arrays)


def _array(value: Tensor) -> Any:
    value = value.detach().cpu()
    if value.dtype == torch.bfloat16:
        import ml_dtypes  # a requirement of onnx

        return value.float().numpy().astype(ml_dtypes.bfloat16)
    return value.numpy()


def _by_runtime(path: Path, arrays: dict[str, Any]) -> dict[str, Any] | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, arrays), strict=True))
    except Exception:  # newer operator sets, types it has no kernel for
        return None


def _by_reference(path: Path, arrays: dict[str, Any]) -> dict[str, Any]:
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(str(path))
        return dict(zip(evaluator.output_names, evaluator.run(None, arrays), strict=True))
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise CaptureError(
            f"onnx itself cannot run {path} on one sample ({said[0]}), so that its conversion cannot be checked\n"
            "  do: give inputs that the file runs on; pip install onnxruntime runs some that onnx does not"
        ) from error


def compare(model: OnnxModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise `CaptureError` where a file, converted, does not give ONNX's outputs for these inputs.

    The file is converted anew: the model's weights may have been changed, or cast to another type, since it was read.
    """
    given = dict(zip((value.name for value in model.inputs), args, strict=False)) | kwargs
    named = {value.name: given[value.name].to(value.dtype) for value in model.inputs}
    expected = outputs_of(model.file, named)
    with torch.no_grad():
        found = load(model.file)(**{name: value.cpu() for name, value in named.items()})
    results = found if isinstance(found, dict) else {model.outputs[0].name: found}
    for name, value in results.items():
        if name not in expected:
            continue  # a table of probabilities by label, made of this tensor
        wanted = torch.from_numpy(np.asarray(expected[name]).astype(np.float64)).reshape(
            np.shape(expected[name])
        )
        given = value.detach().cpu().double()
        if given.shape != wanted.shape:
            differ = f"its shape is {tuple(given.shape)}, not {tuple(wanted.shape)}"
        else:
            scale = max(1.0, float(wanted.nan_to_num().abs().max())) if wanted.numel() else 1.0
            loose = LOOSE.get(value.dtype, 1e-3)
            if torch.allclose(given, wanted, rtol=loose, atol=loose * scale, equal_nan=True):
                continue
            differ = (
                f"it differs by {float((given - wanted).abs().max()):.2g}, where values reach {scale:.2g}"
            )
        raise CaptureError(
            f"the ONNX file was converted wrongly: output {name!r}: {differ}\n"
            "  do: report it with the file; explain the model that was exported instead"
        )
