"""An ONNX file is read and checked: its operators, constants, inputs and outputs, before anything is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relprop.engine.frontends.onnx.table import ML, NEWEST, OLDEST, OPERATORS, Node
from relprop.engine.frontends.onnx.types import TYPES, name_of_type, torch_type
from relprop.errors import InvalidInput, MissingExtra, UnsupportedOperation

Array = np.ndarray[Any, Any]

OWN = ("", "ai.onnx")
"""The names of ONNX's own domain."""

OLDER = {
    "Abs": 6, "Add": 7, "ArgMax": 12, "ArgMin": 12, "Cast": 6, "Ceil": 6, "Clip": 12, "Concat": 4, "Constant": 9,
    "Div": 7, "Equal": 11, "Erf": 9, "Exp": 6, "Expand": 8, "Flatten": 9, "Floor": 6, "Gather": 11, "Gemm": 9,
    "Greater": 9, "Identity": 1, "Less": 9, "Log": 6, "MatMul": 9, "Max": 12, "Min": 12, "Mul": 7, "Neg": 6,
    "Pad": 11, "Pow": 7, "Reciprocal": 6, "Relu": 6, "Reshape": 5, "Resize": 11, "Shape": 1, "Sigmoid": 6, "Sign": 9,
    "Slice": 11, "Sqrt": 6, "Sub": 7, "Sum": 8, "Tanh": 6, "Tile": 6, "Transpose": 1, "GatherElements": 11,
    "GatherND": 12, "IsNaN": 9, "Mean": 8, "Mod": 10, "ScatterElements": 11, "ScatterND": 11, "Size": 1,
    "BatchNormalization": 9, "ReduceMean": 1, "ReduceSum": 1, "ReduceMax": 1, "ReduceMin": 1, "ReduceProd": 1, "ReduceL1": 1,
    "ReduceL2": 1, "ReduceSumSquare": 1, "ReduceLogSum": 1, "ReduceLogSumExp": 1,
}  # fmt: skip
"""Operators whose meaning is the same before set 13, from this version on: later ones take more types."""


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of the file: its name, type, and sizes (None where they are free, or not stated)."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name} ({str(self.dtype).removeprefix('torch.')})"
        sizes = ", ".join(
            "B" if s is None and d == 0 else "any" if s is None else str(s) for d, s in enumerate(self.shape)
        )
        return f"{self.name} [{sizes}] {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds: operators in order, constants by name, inputs, and the outputs that are real numbers."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def package() -> Any:
    """The package onnx. Raises `MissingExtra`."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra(
            "model: an ONNX file needs the package onnx\n  do: pip install 'relprop[onnx]'"
        ) from error
    return onnx


def contents(path: Path) -> Contents:
    """Read a file. Raises `InvalidInput` where it is damaged, `UnsupportedOperation` for operators without a row."""
    onnx = package()
    model = inlined(onnx, parsed(onnx, path), path)
    versions = opsets(onnx, model, path)
    constants = {held.name: _array(onnx, held, path) for held in model.graph.initializer}
    if model.graph.sparse_initializer:
        raise InvalidInput(f"model: {path} holds sparse weights\n  do: export the model with dense ones")
    nodes = _nodes(onnx, model, versions, constants)
    inputs = tuple(_value(onnx, held, path) for held in model.graph.input if held.name not in constants)
    outputs, names = _outputs(onnx, model, nodes, path)
    nodes = needed([node for node in nodes if node.operation != "ZipMap"], names)
    refuse_unknown(nodes)
    return Contents(tuple(nodes), constants, inputs, outputs)


def parsed(onnx: Any, path: Path) -> Any:
    """The file's contents with its external data, checked by onnx."""
    if not path.is_file():
        raise InvalidInput(f"model: no file {path}\n  do: give the path of an ONNX file")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise InvalidInput(
            f"model: {path} is not a readable ONNX file: it is damaged, cut short or something else\n"
            "  do: export it again with torch.onnx.export, or copy it again"
        ) from error
    if not model.graph.node or not model.opset_import:
        raise InvalidInput(
            f"model: {path} is not an ONNX model: there is no operator in it\n  do: export it again"
        )
    folder = path.resolve().parent
    for tensor in onnx.external_data_helper._get_all_tensors(model):
        if onnx.external_data_helper.uses_external_data(tensor):
            _external(onnx, tensor, folder, path)
    return model


def _external(onnx: Any, tensor: Any, folder: Path, path: Path) -> None:
    """Read one tensor that lies in a file beside the model's."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    try:
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    except Exception as error:
        there = (folder / location).is_file()
        why = "is cut short, or not where a model may read" if there else "is missing"
        raise InvalidInput(
            f"model: {path} keeps the weight {tensor.name!r} in the file {location}, which {why}\n"
            f"  do: put {location} beside {path.name}, as the export wrote it"
        ) from error
    tensor.data_location = onnx.TensorProto.DEFAULT


def inlined(onnx: Any, model: Any, path: Path) -> Any:
    """The model with the functions that the file itself defines written out."""
    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:
        raise InvalidInput(
            f"model: the functions that {path} defines cannot be written out\n  do: export it again"
        ) from error


def opsets(onnx: Any, model: Any, path: Path) -> dict[str, int]:
    """The version of each domain's operator set. Raises `InvalidInput` for one that is newer than known."""
    versions = {"" if held.domain in OWN else held.domain: held.version for held in model.opset_import}
    newest = min(NEWEST, onnx.defs.onnx_opset_version())
    if not 1 <= versions.get("", 1) <= newest:
        raise InvalidInput(
            f"model: {path} is of ONNX operator set {versions['']}; known are {OLDEST} to {newest}\n"
            f"  do: export it with opset_version={newest}, or update relprop and onnx"
        )
    return versions


def _nodes(onnx: Any, model: Any, versions: Mapping[str, int], constants: dict[str, Array]) -> list[Node]:
    """The operators in order; constants among them, and copies of constants, are entered with the others."""
    nodes: list[Node] = []
    paths: dict[str, int] = {}
    for held in model.graph.node:
        domain = "" if held.domain in OWN else held.domain
        if not domain and held.op_type == "Constant":
            constants[held.output[0]] = _constant(onnx, held)
            continue
        if not domain and held.op_type == "Identity" and held.input[0] in constants:
            constants[held.output[0]] = constants[held.input[0]]
            continue
        base = re.sub(r"\W+", "_", held.name or held.op_type).strip("_") or held.op_type
        paths[base] = count = paths.get(base, -1) + 1
        nodes.append(
            Node(
                held.op_type, domain, versions.get(domain, 1), held.name, f"{base}_{count}" if count else base,
                tuple(held.input), tuple(held.output), _attributes(onnx, held, domain, versions),
            )
        )  # fmt: skip
    return nodes


def _constant(onnx: Any, held: Any) -> Array:
    attribute = held.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return onnx.numpy_helper.to_array(value)  # type: ignore[no-any-return]
    kinds = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if attribute.name not in kinds:
        return np.array(None, dtype=object)  # words or sparse values: refused where they are read
    return np.array(value, dtype=kinds[attribute.name])


def _attributes(onnx: Any, held: Any, domain: str, versions: Mapping[str, int]) -> dict[str, Any]:
    """The attributes with the schema's defaults; words as str, tensors as arrays."""
    found: dict[str, Any] = {}
    schema = _schema(onnx, held.op_type, domain, versions)
    if schema is not None:
        for name, attribute in schema.attributes.items():
            if attribute.default_value.name:
                found[name] = _plain(onnx, onnx.helper.get_attribute_value(attribute.default_value))
    for attribute in held.attribute:
        found[attribute.name] = _plain(onnx, onnx.helper.get_attribute_value(attribute))
    return found


def _schema(onnx: Any, operation: str, domain: str, versions: Mapping[str, int]) -> Any:
    try:
        return onnx.defs.get_schema(operation, versions.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return None


def _plain(onnx: Any, value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, (str, int, float)):
        return value
    try:
        return [_plain(onnx, item) for item in value]
    except TypeError:  # a graph, a sparse tensor: refused with its operator
        return value


def _array(onnx: Any, held: Any, path: Path) -> Array:
    if held.data_type not in TYPES and held.data_type != onnx.TensorProto.STRING:
        raise InvalidInput(
            f"model: {path} keeps the weight {held.name!r} as {name_of_type(held.data_type)}\n"
            "  do: export the model with float16, bfloat16, float32 or float64 weights, not quantised"
        )
    try:
        return onnx.numpy_helper.to_array(held)  # type: ignore[no-any-return]
    except Exception as error:
        raise InvalidInput(
            f"model: {path} is damaged: the weight {held.name!r} is not of its stated size\n  do: export it again"
        ) from error


def _value(onnx: Any, held: Any, path: Path) -> Value:
    kind = held.type.WhichOneof("value")
    if kind != "tensor_type":
        raise InvalidInput(
            f"model: {path} has {held.name!r}, which is no tensor but a {kind or 'value of no type'}\n"
            "  do: export the model with tensors for inputs and outputs"
        )
    tensor = held.type.tensor_type
    shape: tuple[int | None, ...] | None = None
    if tensor.HasField("shape"):
        shape = tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim
        )
    return Value(held.name, torch_type(tensor.elem_type, f"{held.name!r} of {path}"), shape)


def _outputs(onnx: Any, model: Any, nodes: list[Node], path: Path) -> tuple[tuple[Value, ...], set[str]]:
    """The outputs of real numbers; the tables that scikit-learn's export makes of probabilities as tensors."""
    zipped = {node.outputs[0]: node.inputs[0] for node in nodes if node.operation == "ZipMap"}
    found = []
    for held in model.graph.output:
        if held.name in zipped:
            found.append(Value(zipped[held.name], torch.float32, None))
        elif (
            held.type.WhichOneof("value") == "tensor_type"
            and TYPES.get(held.type.tensor_type.elem_type, torch.bool).is_floating_point
        ):
            found.append(_value(onnx, held, path))
    if not found:
        raise InvalidInput(
            f"model: {path} has no output of real numbers to explain\n  do: export the model's scores, not its labels"
        )
    return tuple(found), {value.name for value in found}


def needed(nodes: list[Node], outputs: set[str]) -> list[Node]:
    """The nodes that the outputs are computed from."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def refuse_unknown(nodes: list[Node]) -> None:
    """Raise `UnsupportedOperation` that names every operator without a row, or older than what its row is for."""
    onnx = package()
    unknown: dict[str, list[Node]] = {}
    for node in nodes:
        key = f"{node.domain}.{node.operation}" if node.domain else node.operation
        if (node.domain, node.operation) not in OPERATORS:
            unknown.setdefault(key, []).append(node)
        elif not node.domain and node.version < OLDEST and not _same_as_oldest(onnx, node):
            unknown.setdefault(f"{key} of operator set {node.version}", []).append(node)
    if unknown:
        listed = ", ".join(
            f"{key} ({len(found)} times, first {found[0].name or found[0].outputs[0]!r})"
            for key, found in unknown.items()
        )
        raise UnsupportedOperation(f"ONNX operators without a conversion: {listed}\n  do: {_advice(unknown)}")


def _same_as_oldest(onnx: Any, node: Node) -> bool:
    """Whether an operator of an old set means what it means in set 13."""
    try:
        own = onnx.defs.get_schema(node.operation, node.version, "").since_version
        oldest = onnx.defs.get_schema(node.operation, OLDEST, "").since_version
    except onnx.defs.SchemaError:
        return True  # newer than the sets: there is but one meaning
    return bool(own == oldest or own >= OLDER.get(node.operation, OLDEST))


def _advice(unknown: Mapping[str, list[Node]]) -> str:
    nodes = [node for found in unknown.values() for node in found]
    if any(" of operator set " in key for key in unknown):
        return (
            f"convert the file: onnx.version_converter.convert_version(onnx.load(file), {OLDEST}),"
            " or export it with a newer opset_version"
        )
    if all(node.domain == ML for node in nodes):
        return "explain the scikit-learn estimator itself: relprop.explain(estimator, X)"
    return "explain the model that was exported, or enter a function in relprop.engine.frontends.onnx.table.OPERATORS"
