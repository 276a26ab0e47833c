"""LSTM, GRU and RNN: each becomes a module of torch's with the file's weights, one operation in the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relprop.engine.frontends.onnx.table import Node, built

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Torch's gates by their place in ONNX's order: i o f c → i f g o, and z r n → r z n."""

_ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}


class Recurrent(nn.Module):
    """One layer in one direction or both, with ONNX's shapes: (T, B, F) in, (T, directions, B, H) out."""

    taken = (1, 2, 3)

    def __init__(self, node: Node, constants: Mapping[str, np.ndarray[Any, Any]]) -> None:
        super().__init__()
        _check(node, constants)
        weight = constants[node.inputs[1]]
        hidden, directions = node["hidden_size"], weight.shape[0]
        dtype = torch.from_numpy(weight[:0].copy()).dtype
        kinds = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
        options: dict[str, Any] = {}
        if node.operation == "RNN":
            options["nonlinearity"] = str((node["activations"] or ["Tanh"])[0]).lower()
        self.network = kinds[node.operation](
            weight.shape[2], hidden, bidirectional=directions == 2, device="meta", dtype=dtype, **options
        )
        self.network.to_empty(device="cpu")
        self.layout = bool(node["layout"])
        self.reversed = node["direction"] == "reverse"
        self.cell = node.operation == "LSTM"
        self.directions, self.hidden, self.count = directions, hidden, len(node.outputs)
        bias = _constant(constants, node, 3)
        for direction in range(directions):
            suffix = "_l0" + "_reverse" * direction
            self._set("weight_ih" + suffix, _ordered(node, weight[direction]))
            self._set("weight_hh" + suffix, _ordered(node, constants[node.inputs[2]][direction]))
            both = (
                np.zeros((2, len(_GATES[node.operation]) * hidden), weight.dtype)
                if bias is None
                else bias[direction].reshape(2, -1)
            )
            self._set("bias_ih" + suffix, _ordered(node, both[0]))
            self._set("bias_hh" + suffix, _ordered(node, both[1]))
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)

    def _set(self, name: str, value: np.ndarray[Any, Any]) -> None:
        getattr(self.network, name).data.copy_(torch.from_numpy(value))

    def forward(self, x: Tensor, *rest: Tensor | None) -> Any:
        """X, then W, R, B, sequence_lens, initial_h and initial_c of the node."""
        if self.layout:
            x = x.transpose(0, 1)
        state = [
            None if value is None else value.transpose(0, 1) if self.layout else value for value in rest[4:6]
        ]
        if self.reversed:
            x = x.flip(0)
        given: Any = state[0] if state else None
        if self.cell and any(value is not None for value in state):
            zero = torch.zeros(self.directions, x.shape[1], self.hidden, dtype=x.dtype, device=x.device)
            given = tuple(zero if value is None else value for value in (*state, None)[:2])
        y, last = self.network(x, given)
        y = y.unflatten(-1, (self.directions, self.hidden)).transpose(1, 2)
        if self.reversed:
            y = y.flip(0)
        last = last if isinstance(last, tuple) else (last,)
        if self.layout:
            y, last = y.permute(2, 0, 1, 3), tuple(value.transpose(0, 1) for value in last)
        return (y, *last)


def _constant(constants: Mapping[str, np.ndarray[Any, Any]], node: Node, place: int) -> Any:
    """An input of the node that the file gives a value for; None where it is left out."""
    name = node.inputs[place] if place < len(node.inputs) else ""
    return constants[name] if name else None


def _check(node: Node, constants: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Raise for what torch's modules do not compute."""
    for place, what in ((1, "weights"), (2, "weights"), (3, "biases")):
        name = node.inputs[place] if place < len(node.inputs) else ""
        if name and name not in constants:
            raise node.refuse(f"{what} that are computed")
    if len(node.inputs) > 4 and node.inputs[4]:
        raise node.refuse("lengths of sequences (sequence_lens)")
    if len(node.inputs) > 7 and node.inputs[7]:
        raise node.refuse("peephole weights")
    if node["clip"] or node["input_forget"]:
        raise node.refuse("clip or input_forget")
    if node.operation == "GRU" and not node["linear_before_reset"]:
        raise node.refuse("linear_before_reset=0, a reset gate before the product")
    given = [str(name).lower() for name in node["activations"] or ()]
    customary = list(_ACTIVATIONS[node.operation])
    if node.operation == "RNN" and given and len(set(given)) == 1 and given[0] in ("tanh", "relu"):
        return
    if given and given != customary * (len(given) // len(customary)):
        raise node.refuse(f"activations {', '.join(node['activations'])}")


def _ordered(node: Node, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows of gates in torch's order."""
    gates = _GATES[node.operation]
    parts = np.split(value, len(gates), 0)
    return np.concatenate([parts[gate] for gate in gates], 0)


for _name in _GATES:
    built(_name, Recurrent)
