"""An ONNX file as a module of PyTorch: its operators run one by one with torch's functions."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relprop.engine.frontends.onnx import host
from relprop.engine.frontends.onnx.file import Array, Value, contents
from relprop.engine.frontends.onnx.table import OPERATORS, Node, Operator
from relprop.errors import InvalidInput

_SMALL = 16  # real constants of so few entries may take part in the arithmetic of sizes


class Step(nn.Module):
    """One operator; its path in the model is the node's name in the file."""

    def __init__(self, node: Node, row: Operator, own: nn.Module | None) -> None:
        super().__init__()
        self.node, self.row, self.own = node, row, own
        self.taken: tuple[int, ...] = getattr(
            own, "taken", ()
        )  # the places of constants that it holds itself

    def forward(self, *inputs: Any) -> Any:
        """The operator's outputs from the values of its inputs."""
        return self.row.function(self.node, *inputs) if self.own is None else self.own(*inputs)


class OnnxModel(nn.Module):
    """An ONNX file that runs with torch.

    It takes the file's inputs by position or by name and returns its output; of several those that are real
    numbers, by name.

    Attributes:
        file: where it was read from.
        inputs, outputs: names, types and sizes as the file states them.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        held = contents(path)
        self.file, self.inputs, self.outputs = path, held.inputs, held.outputs
        self.weights, self.steps = nn.Module(), nn.Module()
        self.known: dict[str, Array] = {}
        self.places: dict[str, str] = {}
        runs: list[Step] = []
        for node in held.nodes:
            row = OPERATORS[node.domain, node.operation]
            own = None if row.build is None else row.build(node, held.constants)
            step = Step(node, row, own)
            self.steps.add_module(node.path, step)
            runs.append(step)
        self.order = tuple(step.node.path for step in runs)
        read = {
            name for step in runs for place, name in enumerate(step.node.inputs) if place not in step.taken
        }
        read |= {value.name for value in held.outputs}
        for name, value in held.constants.items():
            if name in read:
                self._add(name, value)
        self.read_as = self.real_type()
        self.eval()

    def real_type(self) -> torch.dtype | None:
        """The type of its first real weight."""
        return next((weight.dtype for weight in self.parameters()), None)

    def takes(self, value: Value) -> torch.dtype:
        """The type of an input: the file's, or the one that the whole model was cast to."""
        cast = self.real_type()
        return (
            cast
            if cast is not None and cast != self.read_as and value.dtype.is_floating_point
            else value.dtype
        )

    def _add(self, name: str, value: Array) -> None:
        """Keep a constant: real numbers as a parameter, whole ones as a buffer and as numbers."""
        if value.dtype == object:
            raise InvalidInput(
                f"model: {self.file} computes with words ({name!r})\n  do: export the scores without labels"
            )
        if value.size <= (host.LIMIT if value.dtype.kind in "iub" else _SMALL):
            self.known[name] = value
        path = f"w{len(self.places)}_" + "".join(c if c.isalnum() else "_" for c in name)
        tensor = _tensor(value)
        if tensor.is_floating_point():
            self.weights.register_parameter(path, nn.Parameter(tensor, requires_grad=False))
        else:
            self.weights.register_buffer(path, tensor)
        self.places[name] = path

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the operators in order."""
        values: dict[str, Any] = dict(zip((value.name for value in self.inputs), args, strict=False)) | kwargs
        device = next(
            (value.device for value in values.values() if isinstance(value, Tensor)), torch.device("cpu")
        )
        run = _Run(self, values, device)
        with contextlib.nullcontext() if device.type == "cpu" else device:  # where constants are made
            for path in self.order:
                step: Any = getattr(self.steps, path)
                run.step(step)
            found = {value.name: run.tensor(value.name) for value in self.outputs}
        return found if len(found) > 1 else next(iter(found.values()))


class _Run:
    """One run of a model: the values so far."""

    def __init__(self, model: OnnxModel, values: dict[str, Any], device: torch.device) -> None:
        self.model, self.values, self.device = model, values, device

    def step(self, step: Step) -> None:
        """Run one operator and keep its outputs."""
        result = self._known(step.node)
        if result is NotImplemented:
            result = step(*self._inputs(step))
        if len(step.node.outputs) == 1 and not isinstance(result, (tuple, list)):
            result = (result,)
        self.values.update(
            (name, value) for name, value in zip(step.node.outputs, result, strict=False) if name
        )

    def _known(self, node: Node) -> Any:
        """The operator on plain numbers, where all its inputs are such."""
        if node.domain:
            return NotImplemented
        if node.operation in ("Shape", "Size") and isinstance(self.values.get(node.inputs[0]), Tensor):
            return (host.sizes if node.operation == "Shape" else host.size)(node, self.values[node.inputs[0]])
        if node.operation not in host.HOST:
            return NotImplemented
        held = [self._numbers(name) if name else None for name in node.inputs]
        if any(value is None and name for value, name in zip(held, node.inputs, strict=True)):
            return NotImplemented
        return host.HOST[node.operation](node, *held)

    def _numbers(self, name: str) -> Array | None:
        """The value as plain numbers, if it is known without computing with tensors."""
        value = self.values.get(name)
        if value is None:
            value = self.model.known.get(name)
        return value if host.is_host(value) else None

    def _inputs(self, step: Step) -> list[Any]:
        node, row = step.node, step.row
        found: list[Any] = []
        for place, name in enumerate(node.inputs):
            known = self._numbers(name) if name else None
            if not name or place in step.taken:
                found.append(None)
            elif place in row.host:
                found.append(host.numbers(known) if known is not None else self.tensor(name).tolist())
            elif (
                known is not None and known.size == 1 and known.ndim <= row.numbers and known.dtype != object
            ):
                found.append(known.item())
            else:
                found.append(self.tensor(name))
        if row.numbers >= 0 and not any(isinstance(value, Tensor) for value in found):
            found[0] = self.tensor(node.inputs[0])
        return found

    def tensor(self, name: str) -> Tensor:
        """The value as a tensor."""
        value = self.values.get(name)
        if isinstance(value, Tensor):
            return value
        if value is None:
            return getattr(self.model.weights, self.model.places[name])  # type: ignore[no-any-return]
        made = self.values[name] = host.tensor(value, self.device)
        return made


def _tensor(value: Array) -> Tensor:
    """A constant as a tensor of its own memory."""
    if value.dtype.name == "bfloat16":
        return torch.from_numpy(value.astype(np.float32)).bfloat16()
    return torch.from_numpy(np.array(value))


def check_inputs(model: OnnxModel, args: Sequence[Any], kwargs: dict[str, Any], batch: int) -> None:
    """Raise `InvalidInput` where the given inputs are not those of the file; the batch may be of any size."""
    takes = ", ".join(str(value) for value in model.inputs)
    names = [value.name for value in model.inputs]
    if len(args) > len(names) or set(kwargs) != set(names[len(args) :]):
        given = f"{len(args)} by position" if not kwargs else f"{', '.join(map(repr, kwargs))}"
        raise InvalidInput(
            f"inputs: the ONNX file takes {takes}; given are {given}\n"
            "  do: give all of them, a tuple in this order or a dict by these names"
        )
    for value, given in zip(
        model.inputs, (*args, *(kwargs[name] for name in names[len(args) :])), strict=True
    ):
        if not isinstance(given, Tensor):
            raise InvalidInput(f"inputs: {value.name} is a {type(given).__name__}\n  do: give a torch.Tensor")
        if given.dtype != model.takes(value):
            raise InvalidInput(
                f"inputs: {value.name} is of type {given.dtype}, the ONNX file takes {value}\n"
                f"  do: {value.name}.to({model.takes(value)})"
            )
        if value.shape is None:
            continue
        wrong = given.dim() != len(value.shape) or any(
            size is not None and size != own and not (d == 0 and own == batch)
            for d, (size, own) in enumerate(zip(value.shape, given.shape, strict=True))
        )
        if wrong:
            raise InvalidInput(
                f"inputs: {value.name} has shape {tuple(given.shape)}, the ONNX file takes {value}\n"
                "  do: give that shape, or export the model with these sizes dynamic"
            )


def batch_of(model: OnnxModel, batched: Sequence[bool]) -> int | None:
    """The number of samples that the file is for: None where it is free."""
    fixed = [
        value.shape[0]
        for value, counts in zip(model.inputs, batched, strict=True)
        if counts and value.shape and value.shape[0] is not None
    ]
    return fixed[0] if fixed else None
