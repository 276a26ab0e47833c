"""Contextual decomposition of LSTMs (Murdoch, Liu and Yu, ICLR 2018): what a word or a phrase contributes.

The hidden and the cell state are split into β, due to the phrase and its interactions with the gates' biases, and
γ, all else: h_t = β_t + γ_t at every step. What is linear behind the LSTM reads off the phrase's score from β.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from relprop.engine.graph import Graph, Node, Ref, parents, replace_refs, value_of
from relprop.engine.plan import Planned
from relprop.engine.propagate import Program
from relprop.errors import InvalidInput, UnsupportedOperation
from relprop.explain import Captured, Explainer, forward, leaves_of, start
from relprop.explain.explainer import Part
from relprop.explanation import Explanation
from relprop.targets import main_output, sum_of_sample, weights_of

Phrase = tuple[int, int]
"""The first and the last of its words."""

_AT_A_TIME = 32  # phrases that are decomposed together


def contextual_decomposition(explainer: Explainer, part: Part) -> list[Explanation]:
    """The contribution of each word, or of each phrase, to the score of a target.

    For models that read a sequence by one LSTM (one layer, one direction, zero initial states) directly or through an
    embedding, and turn its states into scores by linear operations. The option `phrases`: a list of pairs (first word,
    last word); by default every word is a phrase. `relevance` is (B, T), one number a word, or (B, phrases). Numbers
    of words do not add up to the score: the biases behind the LSTM belong to no word, and words interact.

    Raises:
        UnsupportedOperation: the model is another one; the message names the operation that stands in the way.
        InvalidInput: a phrase lies outside the sequence, or the target is a callable.
    """
    captured, program, args, kwargs, targets = part
    passed = forward(explainer, captured, program, args, kwargs)
    lstm = _lstm_of(captured, program)
    values = _all_values(captured.graph, leaves_of(explainer.model, captured.graph, args, kwargs))
    behind = _behind(captured.graph, lstm)
    cell = _cell_of(lstm, values)
    steps = _steps_of(captured, args, kwargs, len(cell.x))
    phrases = _phrases(explainer.options.get("phrases"), len(cell.x))
    nothing = _outputs_of(captured.graph, behind, values, lstm, cell.states(cell.zeros()))
    contributions: list[Tensor] = []
    with torch.no_grad():
        for first in range(0, len(phrases), _AT_A_TIME):
            for states in decomposed(cell, phrases[first : first + _AT_A_TIME]):
                found = _outputs_of(captured.graph, behind, values, lstm, cell.states(states))
                contributions.append(found - nothing)
    results = []
    for target in targets:
        if callable(target) and not isinstance(target, Tensor):
            raise InvalidInput(
                "target: contextual decomposition explains outputs and their sums, no callable\n"
                "  do: give a class, or float weights of the outputs"
            )
        _, score, resolved, _ = start(explainer, captured, passed, target)
        output = main_output(passed.output)
        weights, _ = weights_of(target, output, passed.batch)
        columns = [sum_of_sample(weights * part) for part in contributions]
        relevance = torch.stack(columns, 1)
        if explainer.options.get("phrases") is None and steps > relevance.shape[1]:
            relevance = F.pad(
                relevance, (0, steps - relevance.shape[1])
            )  # words behind a packed sequence's end
        results.append(
            Explanation(
                relevance,
                passed.output,
                resolved,
                score,
                None,
                (args, kwargs),
                method="contextual_decomposition",
            )
        )
    return results


# ---------------------------------------------------------------- the decomposition


@dataclass(frozen=True, slots=True)
class Cell:
    """An LSTM of one layer and one direction: its inputs x (T, B, E) and its weights."""

    x: Tensor
    w_ih: Tensor
    w_hh: Tensor
    bias: Tensor  # (4 H,)
    batch_first: bool

    def zeros(self) -> Tensor:
        """Hidden states (T, B, H) of nothing."""
        return self.x.new_zeros(*self.x.shape[:2], self.w_hh.shape[1])

    def states(self, hidden: Tensor) -> tuple[Tensor, Tensor, None]:
        """Hidden states (T, B, H) as the outputs of the operation: of all steps, and of the last."""
        return hidden.transpose(0, 1) if self.batch_first else hidden, hidden[-1:], None


def decomposed(cell: Cell, phrases: Sequence[Phrase]) -> Tensor:
    """β_t of each phrase (P, T, B, H): the part of the hidden states that is due to it (Murdoch 2018, Sec. 3)."""
    first, last = (
        torch.tensor(ends, device=cell.x.device).reshape(-1, 1, 1) for ends in zip(*phrases, strict=True)
    )
    read = F.linear(cell.x, cell.w_ih)
    shape = (len(phrases), cell.x.shape[1], cell.w_hh.shape[1])
    beta, gamma, beta_c, gamma_c = (cell.x.new_zeros(shape) for _ in range(4))
    result = []
    for t in range(len(cell.x)):
        inside = (first <= t) & (t <= last)
        rel = F.linear(beta, cell.w_hh) + torch.where(inside, read[t], 0.0)
        irr = F.linear(gamma, cell.w_hh) + torch.where(inside, 0.0, read[t])
        parts = zip(rel.chunk(4, -1), irr.chunk(4, -1), cell.bias.chunk(4), strict=True)
        i, f, g, o = parts
        i_rel, i_irr, i_b = _linearised(torch.sigmoid, *i)
        f_rel, f_irr, f_b = _linearised(torch.sigmoid, *f)
        g_rel, g_irr, g_b = _linearised(torch.tanh, *g)
        gate = torch.sigmoid(o[0] + o[1] + o[2])
        entered = i_rel * (g_rel + g_b) + i_b * g_rel + torch.where(inside, i_b * g_b, 0.0)
        whole = (i_rel + i_irr + i_b) * (g_rel + g_irr + g_b)
        beta_c, gamma_c = (
            (f_rel + f_b) * beta_c + entered,
            (f_rel + f_irr + f_b) * gamma_c + f_irr * beta_c + whole - entered,
        )
        both = torch.tanh(beta_c + gamma_c)
        of_beta, of_gamma = torch.tanh(beta_c), torch.tanh(gamma_c)
        beta = gate * (of_beta + both - of_gamma) / 2
        gamma = gate * (of_gamma + both - of_beta) / 2
        result.append(beta)
    return torch.stack(result, 1)


def _linearised(
    curve: Callable[[Tensor], Tensor], rel: Tensor, irr: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of φ(rel + irr + bias): averages over the orders of the terms that have the bias first."""
    of_bias, whole = curve(bias), curve(bias + rel + irr)
    of_rel, of_irr = curve(bias + rel), curve(bias + irr)
    return (of_rel - of_bias + whole - of_irr) / 2, (of_irr - of_bias + whole - of_rel) / 2, of_bias


# ---------------------------------------------------------------- the model around it


_BEFORE = ("embedding", "selection")
_BEHIND = ("selection", "linear", "pool")


def _lstm_of(captured: Captured, program: Program) -> Node:
    """The one LSTM of the model. Raises `UnsupportedOperation` where the model is another."""
    nodes = {node.name: node for node in captured.graph.nodes}
    lstms = [row for row in program.plan if row.operation == "aten.lstm.input"]
    if len(lstms) != 1:
        raise _unsuited(f"it has {len(lstms)} LSTM layers' operations", None)
    node = nodes[lstms[0].name]
    if node.args[4] != 1 or node.args[7] or len(node.args[2]) not in (2, 4):
        raise _unsuited("its LSTM has several layers, two directions or a projection", lstms[0])
    behind = _behind(captured.graph, node)
    for row in program.plan:
        kinds = _BEHIND if row.name in behind else _BEFORE
        if row.name != node.name and row.kind not in kinds and not row.operation.startswith("aten.dropout"):
            raise _unsuited(f"it has {row.operation}, of kind {row.kind!r}", row)
    if any(Ref(node.name, 2) in parents(other) for other in captured.graph.nodes):
        raise _unsuited("it reads the LSTM's last cell state, which is not decomposed linearly", lstms[0])
    return node


def _unsuited(why: str, row: Planned | None) -> UnsupportedOperation:
    where = "" if row is None else f"\n  at {row.name} ({row.module or 'the model itself'}, {row.source})"
    return UnsupportedOperation(
        f"contextual_decomposition: {why}{where}\n"
        "  do: use it for a model of an embedding, one LSTM (one layer, one direction) and linear operations on its"
        ' states; method="lrp" explains all others'
    )


def _behind(graph: Graph, lstm: Node) -> set[str]:
    """The nodes that depend on the LSTM's outputs."""
    found = {lstm.name}
    for node in graph.nodes:
        if any(ref.name in found for ref in parents(node)):
            found.add(node.name)
    return found - {lstm.name}


def _all_values(graph: Graph, leaves: dict[str, Any]) -> dict[str, Any]:
    """The value of every node."""
    values: dict[str, Any] = dict(leaves)
    with torch.no_grad():
        for node in graph.nodes:
            if node.kind == "call":
                values[node.name] = _run(node, values)
    return values


def _run(node: Node, values: dict[str, Any]) -> Any:
    assert node.function is not None

    def value(ref: Ref) -> Any:
        return value_of(values, ref)

    return node.function(*replace_refs(node.args, value), **replace_refs(node.kwargs, value))


def _outputs_of(
    graph: Graph, behind: set[str], values: dict[str, Any], lstm: Node, states: tuple[Any, ...]
) -> Tensor:
    """The model's output with other outputs of its LSTM."""
    own = {**values, lstm.name: states}
    with torch.no_grad():
        for node in graph.nodes:
            if node.name in behind:
                own[node.name] = _run(node, own)
    found: Tensor = value_of(own, main_output(graph.output))
    return found


def _cell_of(lstm: Node, values: dict[str, Any]) -> Cell:
    """The LSTM's inputs and weights. Raises `UnsupportedOperation` for initial states that are not zero."""
    x, states = value_of(values, lstm.args[0]), [value_of(values, ref) for ref in lstm.args[1]]
    if any(bool(state.any()) for state in states):
        raise UnsupportedOperation(
            f"contextual_decomposition: the LSTM starts from states that are not zero\n  at {lstm.where()}\n"
            '  do: start it from zero states, or use method="lrp"'
        )
    w_ih, w_hh, *biases = (value_of(values, ref) for ref in lstm.args[2])
    bias = biases[0] + biases[1] if biases else w_ih.new_zeros(w_ih.shape[0])
    batch_first = bool(lstm.args[8])
    return Cell(x.transpose(0, 1) if batch_first else x, w_ih, w_hh, bias, batch_first)


def _steps_of(captured: Captured, args: tuple[Any, ...], kwargs: dict[str, Any], read: int) -> int:
    """The number of words of the input: what the LSTM reads, or more where a packed sequence ends earlier."""
    tensors = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, Tensor) and leaf.dim() > 1]
    given = tensors[0].shape[1] if tensors else read
    if given != read and not (captured.graph.concrete and given > read):
        raise UnsupportedOperation(
            f"contextual_decomposition: the LSTM reads {read} steps of an input of {given}\n"
            '  do: give the words of the sequence as the input\'s second dimension, or use method="lrp"'
        )
    return given


def _phrases(given: Any, steps: int) -> list[Phrase]:
    """The phrases asked for, every word by default. Raises `InvalidInput` for one that is not in the sequence."""
    if given is None:
        return [(t, t) for t in range(steps)]
    wrong = None
    pairs = list(given) if isinstance(given, (list, tuple)) else [given]
    for pair in pairs:
        whole = (
            isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(end, int) for end in pair)
        )
        if not whole or not 0 <= pair[0] <= pair[1] < steps:
            wrong = pair
    if wrong is not None or not pairs:
        raise InvalidInput(
            f"phrases: {wrong if pairs else given!r} is no phrase of a sequence of {steps} words\n"
            f"  do: give pairs (first word, last word) from 0 to {steps - 1}, such as phrases=[(2, 5)]"
        )
    return [(int(first), int(last)) for first, last in pairs]
