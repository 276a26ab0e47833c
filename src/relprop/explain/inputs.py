"""What the caller gives: the form of inputs, and the checks that refuse bad ones in one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from relprop.engine import capture as capturing
from relprop.engine.batch import batch_size
from relprop.engine.frontends.onnx import is_onnx
from relprop.engine.graph import Graph, Meta, Ref
from relprop.engine.modules import check_module, every_module
from relprop.engine.step import all_finite
from relprop.errors import InvalidInput
from relprop.text import Tokenised

Inputs = Tensor | np.ndarray[Any, Any] | str | tuple[Any, ...] | list[Any] | Mapping[str, Any] | Tokenised


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model's call; arrays of numbers become tensors that share their memory."""
    if isinstance(inputs, Mapping):
        return (), {name: _tensor(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_tensor(value) for value in inputs), {}
    return (_tensor(inputs),), {}


def _tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        return value
    if np.ma.is_masked(value):
        raise InvalidInput(
            "inputs: a masked array, whose hidden values count like any other\n  do: array.filled(0.0)"
        )
    native = value.dtype.isnative and all(step >= 0 for step in value.strides)
    try:
        return torch.from_numpy(
            value
            if value.flags.writeable and native
            else value.astype(value.dtype.newbyteorder("="), order="C")
        )
    except TypeError as error:
        raise InvalidInput(f"inputs: an array of {value.dtype}\n  do: array.astype('float32')") from error


_REARRANGED = ("aten.view.", "aten.reshape.", "aten.to.", "aten._to_copy.", "aten.clone.", "aten.contiguous.")
"""Operations that leave token ids the ids they were."""


def check_ids(graph: Graph, leaves: list[Any]) -> None:
    """Raise `InvalidInput` for a token id that the embedding it indexes does not have."""
    nodes = {node.name: node for node in graph.nodes}
    for node in graph.nodes:
        if node.operation != "aten.embedding.default" or not all(isinstance(a, Ref) for a in node.args[:2]):
            continue
        table, read = (nodes[ref.name] for ref in node.args[:2])
        while read.operation.startswith(_REARRANGED) and isinstance(read.args[0], Ref):
            read = nodes[read.args[0].name]
        if read.kind != "input" or not isinstance(table.meta, Meta):
            continue
        ids, size = leaves[int(read.origin)], table.meta.shape[0]
        least, largest = int(ids.min()), int(ids.max())
        if least < 0 or largest >= size:
            wrong = least if least < 0 else largest
            raise InvalidInput(
                f"inputs: the id {wrong} is out of range, the model's embedding has {size} rows\n"
                f"  do: give ids from 0 to {size - 1}; is the tokenizer this model's own?"
            )


def check_model(model: Any) -> None:
    """Raise `InvalidInput` for what no front end takes, and for a module in training mode."""
    if not any(accepts(model) for accepts, _ in capturing.FRONTENDS):
        if isinstance(model, type) and issubclass(model, torch.nn.Module):
            raise InvalidInput(
                f"model: {model.__name__} is a class\n  do: give a model, an instance of it, with its weights: {model.__name__}(…)"
            )
        if isinstance(model, Mapping):
            raise InvalidInput(
                f"model: a {type(model).__name__} of {len(model)} entries is no model\n"
                "  do: build the network and load_state_dict into it, then give the network"
            )
        raise InvalidInput(
            f"model: {_brief(model)} is not something relprop can read\n"
            "  do: give a torch.nn.Module, a fitted estimator, an exported program, a Keras model, or a file (.pt2, .onnx, .keras, .pt)"
        )
    if isinstance(model, torch.nn.Module):
        check_module(model)
        if not any(module.training for module in every_module(model)):
            return
        for path, module in model.named_modules():
            if module.training:
                where = f"its module {path!r} is" if path else "it is"
                raise InvalidInput(
                    f"model: {where} in training mode, where dropout and batch statistics make a score of chance\n"
                    "  do: call model.eval() first"
                )


def _brief(value: Any) -> str:
    """What was given, in a line."""
    text = repr(value)
    return text if len(text) <= 100 and "\n" not in text else f"a {type(value).__name__}"


_TURNED = {
    "getbands": ", of an image as in training: torchvision.transforms.functional.to_tensor(image)[None], normalised",
    "to_numpy": ", of a table or column: torch.tensor(inputs.to_numpy(), dtype=torch.float32), scaled as in training",
    "__float__": ": torch.tensor(inputs)",
}
"""What makes a tensor of an image of PIL, a table of pandas and plain numbers, by an attribute of theirs."""


def check_inputs(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise `InvalidInput` for what is no tensor, empty, not finite, on another device or of another type than the model."""
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        given = type(leaves[0]).__name__ if leaves else "nothing"
        if leaves and isinstance(leaves[0], (Dataset, DataLoader)):
            raise InvalidInput(
                f"inputs: a {given}, of which relprop.explain takes one batch\n"
                "  do: for inputs, labels in loader: explainer(inputs); a whole data set into a store: relprop.run"
            )
        turn = next((way for name, way in _TURNED.items() if leaves and hasattr(leaves[0], name)), "")
        raise InvalidInput(
            f"inputs: {given} holds no tensor\n  do: give a torch.Tensor with the batch first{turn}"
        )
    for tensor in tensors:
        if tensor.layout is not torch.strided or tensor.is_nested:
            form = "nested" if tensor.is_nested else str(tensor.layout)
            raise InvalidInput(
                f"inputs: a tensor of the layout {form}\n  do: give an ordinary one: inputs.to_dense(), or to_padded_tensor(0.0)"
            )
    batch = batch_size((args, kwargs))
    weight = next((w for w in _weights(model) if w.is_floating_point()), None)
    for tensor in tensors:
        if tensor.numel() == 0 or batch == 0:
            empty, more = ("sequence", "step or token") if batch else ("batch", "sample")
            raise InvalidInput(
                f"inputs: an empty {empty}, shape {tuple(tensor.shape)}\n  do: give one {more} or more"
            )
        if weight is not None and tensor.device != weight.device:
            raise InvalidInput(
                f"inputs: on {tensor.device}, but the model is on {weight.device}\n"
                f"  do: move one of them: inputs.to({str(weight.device)!r})"
            )
        if tensor.is_complex():
            raise InvalidInput(
                f"inputs: of type {tensor.dtype}; a complex number has no relevance of its own\n"
                "  do: give real and imaginary parts, and torch.view_as_complex within the model"
            )
        if tensor.is_meta:
            raise InvalidInput("inputs: on the device meta, without values\n  do: move them to a real device")
        if tensor.is_floating_point() and not bool(all_finite(tensor)):
            count = int((~torch.isfinite(tensor)).sum())
            raise InvalidInput(
                f"inputs: {count} of {tensor.numel()} values are NaN or infinite\n"
                "  do: find where they come from, or replace them: torch.nan_to_num(inputs)"
            )
        own = not is_onnx(model)  # an ONNX file states the types that it takes
        if own and weight is not None and tensor.is_floating_point() and tensor.dtype != weight.dtype:
            raise InvalidInput(
                f"inputs: of type {tensor.dtype}, but the model's weights are {weight.dtype}\n  do: inputs.to({weight.dtype})"
            )


def _weights(model: Any) -> Iterable[Tensor]:
    return model.parameters() if isinstance(model, torch.nn.Module) else model.state_dict.values()


def check_finite(model: Any, output: Tensor) -> None:
    """Raise `InvalidInput` where the model's output has NaN or infinity."""
    if not bool(all_finite(output)):
        refuse_infinite_weights(model)
        raise InvalidInput(
            "model: its output is NaN or infinite for these inputs\n  do: check the scale of the inputs, or use float64"
        )


def check_relevance(relevance: Any, method: str) -> None:
    """Raise `InvalidInput` for relevance that is not finite: a derivative that does not exist, or too large numbers."""
    for leaf in pytree.tree_leaves(relevance):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(all_finite(leaf)):
            raise InvalidInput(
                f"method: {method!r} gives NaN or infinite relevance for these inputs: the model has no derivative there (a root"
                " at 0, a logarithm or a quotient that a choice hides), or its numbers grow too large\n"
                "  do: use method='lrp' with its audit, move the inputs away from there, or use float64"
            )


def refuse_infinite_weights(model: Any) -> None:
    """Raise `InvalidInput` that names a weight with NaN or infinity."""
    if isinstance(model, torch.nn.Module):
        for path, weight in [*model.named_parameters(), *model.named_buffers()]:
            if weight.is_floating_point() and not bool(all_finite(weight)):
                raise InvalidInput(
                    f"model: its weight {path!r} holds NaN or infinity\n  do: load or train the model again"
                )
