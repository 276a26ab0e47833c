"""Stand-ins that keep recurrent layers whole while a model is exported.

torch.export traces `aten.lstm` through a shape function that loops over the steps, which fixes their number. While
a model is captured, and then only, its calls of the layer are turned to an operation of relprop's own whose shape
function does not loop; the captured graph is given torch's operation back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten

_ARGUMENTS = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional,"
    " bool batch_first"
)


def _define(name: str, schema: str, whole: Any) -> Any:
    """The stand-in of a recurrent operation: computes what it computes, and knows its shapes without a loop."""
    torch.library.define(f"relprop::{name}", schema)
    torch.library.impl(f"relprop::{name}", "CompositeExplicitAutograd", whole)

    def shapes(input: Tensor, hx: Any, params: Any, *settings: Any) -> tuple[Tensor, ...]:
        states = list(hx) if isinstance(hx, (list, tuple)) else [hx]
        width = states[0].shape[-1] * (2 if settings[4] else 1)
        return input.new_empty(*input.shape[:2], width), *(torch.empty_like(state) for state in states)

    torch.library.register_fake(f"relprop::{name}", shapes)
    return getattr(torch.ops.relprop, name).default


ORIGINALS: dict[Any, Any] = {
    _define("lstm", f"(Tensor input, Tensor[] hx, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", aten.lstm.input):
        aten.lstm.input,
    **{
        _define(name, f"(Tensor input, Tensor hx, {_ARGUMENTS}) -> (Tensor, Tensor)", whole): whole
        for name, whole in (
            ("gru", aten.gru.input),
            ("rnn_tanh", aten.rnn_tanh.input),
            ("rnn_relu", aten.rnn_relu.input),
        )
    },
}  # fmt: skip
"""From each stand-in to torch's operation."""

_WHOLE = frozenset(ORIGINALS.values())

_CALLS: dict[Callable[..., Any], Any] = {
    getattr(torch, whole._schema.name.removeprefix("aten::")): standin for standin, whole in ORIGINALS.items()
}


def keeps_recurrent(program: ExportedProgram) -> bool:
    """Whether a program that was exported without stand-ins calls a recurrent layer."""
    parts = (part for part in program.graph_module.modules() if isinstance(part, fx.GraphModule))
    return any(node.target in _WHOLE for part in parts for node in part.graph.nodes)


class StandIns(TorchFunctionMode):
    """While it is on, recurrent layers of padded sequences run as their stand-ins; packed ones as they are."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        standin = _CALLS.get(func)
        padded = not kwargs and len(args) == 9 and isinstance(args[3], bool)
        if standin is None or not padded:
            return func(*args, **(kwargs or {}))
        states = list(args[1]) if isinstance(args[1], tuple) else args[1]
        return standin(args[0], states, *args[2:])
