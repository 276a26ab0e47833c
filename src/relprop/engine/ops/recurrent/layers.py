"""From the arguments of torch's recurrent operations to the chains they consist of, and back.

A layer of several directions is a chain each; they start from the layer below. The forward pass runs layer by
layer and remembers what each layer read; hidden states are its outputs, and gates follow from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.engine.graph import Node, Ref, refs
from relprop.engine.ops.recurrent.chains import Chain, ChainShares, Ledger, elman, gru, lstm
from relprop.engine.ops.table import Nonnegative, Operation, Propagate, rows
from relprop.engine.rules import Recurrent
from relprop.engine.step import Layout, Shares, Step

aten = torch.ops.aten

Backward = Callable[[Chain, Recurrent, Tensor, Tensor, Tensor | None, Ledger], ChainShares]


@dataclass(frozen=True, slots=True)
class Layers:
    """The arguments of a recurrent operation under their names; `hx` as a list: h0, and for an LSTM c0."""

    input: Tensor
    hx: list[Tensor]
    params: Sequence[Tensor]
    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.bidirectional else 1

    def weights(self, layer: int, direction: int) -> Sequence[Tensor]:
        """The weights of one chain: w_ih, w_hh, and where there are such b_ih, b_hh and w_hr."""
        each = len(self.params) // (self.num_layers * self.directions)
        start = (layer * self.directions + direction) * each
        return self.params[start : start + each]

    def chain(
        self, layer: int, direction: int, x: Tensor, output: Tensor, first: list[Tensor]
    ) -> tuple[Chain, Callable[[Tensor], Tensor]]:
        """One direction of one layer in the order of its steps, and the function that turns steps round.

        x (T, N, E) and output (T, N, directions · P) in the order of the sequence.
        """

        def turned(steps: Tensor) -> Tensor:
            return steps.flip(0) if direction else steps

        w_ih, w_hh, *rest = self.weights(layer, direction)
        b_ih, b_hh = rest[:2] if self.has_biases else (None, None)
        projected = len(rest) > (2 if self.has_biases else 0)
        index = layer * self.directions + direction
        after = turned(output.chunk(self.directions, -1)[direction])
        before = torch.cat([first[0][index][None], after[:-1]])
        cell = first[1][index] if len(first) > 1 else None
        return Chain(
            turned(x), before, after, cell, w_ih, w_hh, b_ih, b_hh, rest[-1] if projected else None
        ), turned


def remembering(whole: Any) -> Callable[..., tuple[Any, Any]]:
    """The operation run layer by layer: its outputs, and the output of every layer but the last."""

    def run(input: Tensor, hx: Any, params: Sequence[Tensor], *settings: Any) -> tuple[Any, Any]:
        layers = _layers(input, hx, params, *settings)
        if layers.num_layers == 1:
            return whole(input, hx, params, *settings), []
        read, x, last = [], input, []
        each = layers.directions
        for layer in range(layers.num_layers):
            own = [w for direction in range(each) for w in layers.weights(layer, direction)]
            state = [h[layer * each : (layer + 1) * each] for h in layers.hx]
            given = state if isinstance(hx, (list, tuple)) else state[0]
            x, *states = whole(
                x, given, own, layers.has_biases, 1, 0.0, False, layers.bidirectional, layers.batch_first
            )
            read.append(x)
            last.append(states)
        return (x, *(torch.cat(column) for column in zip(*last, strict=True))), read[:-1]

    return run


def _layers(input: Tensor, hx: Any, params: Sequence[Tensor], *settings: Any) -> Layers:
    return Layers(input, list(hx) if isinstance(hx, (list, tuple)) else [hx], params, *settings)


def layered(whole: Any, backward: Backward) -> Callable[[Step, Any], Shares]:
    """The relevance function of a recurrent operation of several layers, whose chains `backward` walks."""

    def propagate(step: Step, relevance: Any) -> Shares:
        layers = _layers(*step.args)
        memory, output = step.memory, step.output
        if layers.num_layers > 1 and (memory is None or memory[0].dtype != layers.input.dtype):
            output, memory = remembering(whole)(*step.args)  # 16 bits are walked in float32
        inputs = [_steps_first(values, layers) for values in (layers.input, *(memory or []), output[0])]
        first = [h.to(inputs[0].dtype) for h in layers.hx]
        out, *last = _arrived(relevance, layers, inputs[-1], first)
        of_first = [torch.zeros_like(r) for r in last]
        ledger = _ledger(step)
        for layer in reversed(range(layers.num_layers)):
            parts = []
            for direction, of_out in enumerate(out.chunk(layers.directions, -1)):
                index = layer * layers.directions + direction
                chain, turned = layers.chain(layer, direction, inputs[layer], inputs[layer + 1], first)
                ledger.cached = _cached(step, 2, index * (len(layers.params) // len(first[0])))
                cell = last[1][index] if len(last) > 1 else None
                found = backward(chain, _rule(step), turned(of_out), last[0][index], cell, ledger)
                parts.append(turned(found.x))
                of_first[0][index] = found.hidden
                if found.cell is not None:
                    of_first[1][index] = found.cell
            out = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        share = out.transpose(0, 1) if layers.batch_first else out
        return _shares(step, share, of_first, ledger, out)

    return propagate


def _arrived(relevance: Any, layers: Layers, output: Tensor, first: list[Tensor]) -> tuple[Tensor, ...]:
    """Relevance of the outputs, steps first, and of the last states; zeros where none has arrived."""
    kind = next(r.dtype for r in relevance if r is not None)
    out, *last = relevance
    found = [torch.zeros_like(h, dtype=kind) if r is None else r for r, h in zip(last, first, strict=True)]
    out = torch.zeros_like(output, dtype=kind) if out is None else _steps_first(out, layers)
    return (out, *found)


def _steps_first(values: Tensor, layers: Layers) -> Tensor:
    """(T, N, …), whatever the order in the operation."""
    return values.transpose(0, 1) if layers.batch_first else values


def cell_of(backward: Backward, several: bool) -> Callable[[Step, Any], Shares]:
    """The relevance function of a single cell: a chain of one step. `several`: it returns h and c."""

    def propagate(step: Step, relevance: Any) -> Shares:
        x, hx, w_ih, w_hh = step.args[:4]
        first = list(hx) if isinstance(hx, (list, tuple)) else [hx]
        given = list(relevance) if several else [relevance]
        kind = next(r.dtype for r in given if r is not None)
        last = [
            torch.zeros_like(h, dtype=kind) if r is None else r for r, h in zip(given, first, strict=True)
        ]
        after = step.output[0] if several else step.output
        biases = step.arg(4, "b_ih"), step.arg(5, "b_hh")
        chain = Chain(
            x[None], first[0][None], after[None], first[1] if several else None, w_ih, w_hh, *biases
        )
        ledger = _ledger(step)
        ledger.cached = _cached(step, 2, None)
        cell = last[1] if several else None
        found = backward(chain, _rule(step), torch.zeros_like(last[0])[None], last[0], cell, ledger)
        states = [found.hidden] if found.cell is None else [found.hidden, found.cell]
        return _shares(step, found.x[0], states, ledger, found.x)

    return propagate


def _rule(step: Step) -> Recurrent:
    return step.rule if isinstance(step.rule, Recurrent) else Recurrent()


def _ledger(step: Step) -> Ledger:
    """The account book of a step: how many neighbouring sequences belong to a sample, by any of its values."""
    places = [Ref(step.node.name, index) for index in (None, 0, 1, 2)] + list(refs(step.node.args[:2]))
    layout: Layout | None = next(
        (found for ref in places if (found := step.layout_of(ref)) is not None), None
    )
    return Ledger(step.batch, None if layout is None else layout.inner, lambda name, make: make())


def _cached(step: Step, position: int, index: int | None) -> Callable[[str, Callable[[], Any]], Any]:
    """Keeps what is derived from a chain's weights with the weights."""
    argument = step.node.args[position]
    ref = argument if index is None else argument[index]

    def cached(name: str, make: Callable[[], Any]) -> Any:
        return step.cached(ref, f"{step.node.name} {name}", make)

    return cached


def _shares(step: Step, x: Tensor, first: list[Tensor], ledger: Ledger, steps: Tensor) -> Shares:
    """Relevance of input and first states at the places of their arguments; what is no data keeps it as constants.

    `steps`: the input's relevance as (T, N, E).
    """
    arguments: dict[int | str, Any] = {}
    if step.data(0):
        arguments[0] = x
    else:
        ledger.enter("constant", steps)
    states = step.node.args[1]
    listed = isinstance(states, (list, tuple)) and not isinstance(states, Ref)
    found: list[Tensor | None] = []
    for ref, share in zip(states if listed else [states], first, strict=True):
        data = isinstance(ref, Ref) and step.is_data(ref)
        found.append(share if data else None)
        if not data:
            ledger.enter("constant", share)
    if any(share is not None for share in found):
        arguments[1] = found if listed else found[0]
    return Shares(arguments, ledger.absorbed, ledger.magnitude)


def _refused(node: Node) -> str | None:
    """Why a recurrent operation cannot be explained."""
    dropout, train, batch_first = node.args[5], node.args[6], node.args[8]
    if train and dropout:
        return f"a recurrent layer with active dropout (dropout={dropout}) draws its values by chance"
    meta = node.meta[0] if isinstance(node.meta, tuple) and node.meta else None
    if meta is not None and meta.batch and meta.batch != (0 if batch_first else 1,):
        return (
            "its steps lie where the samples are expected, in the first dimension of the inputs"
            " (batch_first=False, or one sequence without a batch); give inputs (B, T, …) to a model that turns them"
        )
    return None


_WEIGHTS = {2: "its weights depend on the explained input"}


def _row(name: str, propagate: Propagate, **more: Any) -> None:
    signs: Nonnegative = "always" if "relu" in name else "never"
    row = Operation("recurrent", propagate, "both", Recurrent(), (Recurrent,), signs, **more)
    rows(name, row)


_LAYERS: dict[str, tuple[Any, Backward]] = {
    "lstm.input": (aten.lstm.input, lstm),
    "gru.input": (aten.gru.input, gru),
    "rnn_tanh.input": (aten.rnn_tanh.input, elman),
    "rnn_relu.input": (aten.rnn_relu.input, elman),
}
for _name, (_whole, _backward) in _LAYERS.items():
    _row(
        _name,
        layered(_whole, _backward),
        refuses=_refused,
        fixed=_WEIGHTS,
        remembers=remembering(_whole),
    )
_CELLS: dict[str, Backward] = {
    "lstm_cell": lstm,
    "gru_cell": gru,
    "rnn_tanh_cell": elman,
    "rnn_relu_cell": elman,
}
for _name, _backward in _CELLS.items():
    fixed = dict.fromkeys((2, 3, 4, 5), _WEIGHTS[2])
    _row(_name, cell_of(_backward, _name == "lstm_cell"), fixed=fixed)
