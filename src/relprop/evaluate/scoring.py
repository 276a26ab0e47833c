"""A model and a target as a function from changed inputs to scores: the user's own model, called as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from relprop.engine import capture as capturing
from relprop.engine.batch import batch_size, has_batch
from relprop.engine.isolate import is_compiled, put_back
from relprop.engine.modules import unwrapped
from relprop.engine.propagate.compiled import compiler_fails
from relprop.errors import InvalidInput
from relprop.explain import Inputs, arguments, check_inputs
from relprop.explain.inputs import check_finite, check_model
from relprop.targets import Target, main_output, one_a_sample, sum_of_sample, weights_of

SCORES = {
    "logit": "the output itself, or the sum of outputs that the target weighs",
    "probability": "the target's softmax, over the classes",
    "log_odds": "the target's output minus the logsumexp of all others",
    "accuracy": "1 while the target is the largest output, else 0",
}
"""What is measured while an input is changed."""

ON_CPU, ELSEWHERE = 800_000, 2**25
"""How many values of inputs run through the model at a time: on a processor so few that activations stay in its caches."""

FEWEST, MOST = 4, 64
"""The fewest and the most rows at a time."""

WIDTH = 256
"""A token id counts as so many values: it stands for a vector."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """The scores of rows: a row is one sample's input with one of its tensors changed.

    Attributes:
        call: the model.
        leaves: the flat arguments of the samples; `spec` puts them together.
        batched: which of them have a row a sample.
        at: which of them is changed.
        weights: of the explained outputs, (B, …); None for a callable target.
        target: the resolved target.
        kind: a key of `SCORES`.
        first: the scores of the unchanged inputs, f(x), float64 (B,).
        output: the model's output for them.
        format: how rows of the changed tensor lie in memory: channels last where that is faster and the model takes it.
        compiled: the model as torch.compile made it, if it was given so; `score_rows` runs through it.
        rows: how many rows `call` always gets, filled up by the last of them, so that it is compiled once; None: as many as there are.
    """

    call: Callable[..., Any]
    leaves: tuple[Any, ...]
    spec: Any
    batched: tuple[int, ...]
    at: int
    weights: Tensor | None
    target: Any
    kind: str
    first: Tensor
    output: Any
    format: torch.memory_format = torch.contiguous_format
    compiled: Callable[..., Any] | None = None
    rows: int | None = None

    @property
    def inputs(self) -> Tensor:
        """The tensor that is changed, (B, …)."""
        found: Tensor = self.leaves[self.at]
        return found

    def __len__(self) -> int:
        return len(self.inputs)

    def of(self, values: Tensor, samples: Tensor) -> Tensor:
        """The scores of rows: values (R, …) of the changed tensor, and the sample of each row, (R,); float64 (R,)."""
        output = called(self, values, samples)
        weights = None if self.weights is None else self.weights.index_select(0, samples)
        return measured(self.kind, output, weights, self.target)


def called(scorer: Scorer, values: Tensor, samples: Tensor) -> Any:
    """The model's output for rows; computed in inference mode."""
    leaves, count = list(scorer.leaves), len(samples)
    lacking = 0 if scorer.rows is None else scorer.rows - count
    if lacking:
        filled = torch.arange(count + lacking, device=samples.device).clamp(max=count - 1)
        values, samples = values[filled], samples[filled]
    for index in scorer.batched:
        own = values if index == scorer.at else leaves[index].index_select(0, samples)
        last = index == scorer.at and scorer.format == torch.channels_last
        leaves[index] = _channels_last(own) if last else own
    args, kwargs = pytree.tree_unflatten(leaves, scorer.spec)
    with torch.inference_mode(), put_back(scorer.call):
        output = scorer.call(*args, **kwargs)
    return pytree.tree_map_only(Tensor, lambda own: own[:count], output) if lacking else output


def _channels_last(values: Tensor) -> Tensor:
    """Images with their channels last in memory; a single channel is only said to be last, which layers behind it go by."""
    if values.shape[1] > 1:
        return values.contiguous(memory_format=torch.channels_last)
    return values[:, 0].contiguous().unsqueeze(-1).movedim(-1, 1)


def measured(kind: str, output: Any, weights: Tensor | None, target: Any) -> Tensor:
    """The scores that an output means, float64 (R,)."""
    if weights is None:
        own_score: Tensor = target(output).detach()
        return own_score.to(torch.float64).clone()
    values: Tensor = main_output(output).detach()
    if kind == "logit":
        return sum_of_sample(values * weights.to(values.dtype)).to(torch.float64)
    values, place = _class_row(values, weights).to(torch.float64), _class_row(weights, weights) != 0
    own = values[place]
    if kind == "accuracy":
        return (own >= values.amax(1)).to(torch.float64)
    if kind == "probability":
        shares: Tensor = values.softmax(1)
        return shares[place]
    others: Tensor = values.masked_fill(place, -torch.inf).logsumexp(1)
    return own - others


def _class_row(values: Tensor, weights: Tensor) -> Tensor:
    """The classes (R, C) among which the target's index chooses one, of values (R, C) or (R, …, C)."""
    size = values.shape[-1]
    place = weights.flatten(1).argmax(1) // size
    return values.reshape(len(values), -1, size)[torch.arange(len(values), device=values.device), place]


def scorer_of(
    model: Any, inputs: Inputs, target: Target = None, score: str = "logit", at: int | str | None = None
) -> Scorer:
    """The scorer of a model, inputs and a target; one forward pass of all samples, which gives f(x).

    Rows of a model out of `torch.compile` run compiled, always as many at a time, so that it compiles once.
    `at`: which input is changed, by position or name; by default the only one, else the first that has real numbers.
    Raises `InvalidInput` for what `relprop.explain` refuses, and for a score that the output or target does not allow.
    """
    if score not in SCORES:
        raise InvalidInput(f"score: {score!r} is unknown\n  do: one of {', '.join(SCORES)}")
    held = capturing.load(model) if isinstance(model, (str, Path)) else unwrapped(model)
    check_model(held)
    args, kwargs = arguments(inputs)
    check_inputs(held, args, kwargs)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    size = batch_size((args, kwargs))
    batched = tuple(i for i, leaf in enumerate(leaves) if has_batch(leaf, size))
    call = held.module() if isinstance(held, ExportedProgram) else held
    if not callable(call):
        raise InvalidInput(f"model: {type(held).__name__} cannot be called\n  do: give a torch.nn.Module")
    bare = Scorer(call, tuple(leaves), spec, batched, _changed(leaves, batched, kwargs, at), None, target, score, torch.zeros(0), None)  # fmt: skip
    try:
        output = called(bare, bare.inputs, torch.arange(size, device=bare.inputs.device))
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"inputs: the model itself fails on them: {(str(error).splitlines() or [type(error).__name__])[0]}\n"
            "  do: give inputs with which model(*inputs) runs; targets go beside them: relprop.evaluate.Data(inputs, target)"
        ) from error
    layout = format_for(bare, output)
    weights, resolved = None, target
    if callable(target) and not isinstance(target, Tensor):
        if score != "logit":
            raise InvalidInput(
                f"score: {score!r} of a callable target\n  do: let it return what is to be measured"
            )
        one_a_sample(target(output), size)
    else:
        main = main_output(output)
        check_finite(held, main)
        weights, resolved = weights_of(target, main, size)
        _check_score(score, main, weights)
    first = measured(score, output, weights, resolved)
    compiled = model if is_compiled(model) else None
    return Scorer(
        call, tuple(leaves), spec, batched, bare.at, weights, resolved, score, first, output, layout, compiled
    )


def _changed(
    leaves: Sequence[Any], batched: Sequence[int], kwargs: dict[str, Any], at: int | str | None
) -> int:
    """The leaf that is changed."""
    if isinstance(at, str):
        names = list(kwargs)
        if at not in names:
            raise InvalidInput(f"at: no input {at!r}\n  do: one of {', '.join(names) or 'positions 0, 1, …'}")
        at = len(leaves) - len(names) + names.index(at)
    if at is None:
        real = [i for i in batched if leaves[i].is_floating_point()]
        named = [i for i in batched if kwargs and list(kwargs)[i - len(leaves)] == "input_ids"]
        at = (named or real or list(batched))[0]
    if at not in batched:
        raise InvalidInput(f"at: input {at} has no row a sample\n  do: name a tensor with the batch first")
    return at


def _check_score(score: str, output: Tensor, weights: Tensor) -> None:
    """Raise `InvalidInput` where there is nothing to normalise over, or no single class is meant."""
    if score == "logit":
        return
    if output.dim() < 2 or output.shape[1 if output.dim() == 2 else -1] < 2:
        raise InvalidInput(
            f"score: {score!r} of a model with a single output is always the same\n  do: use score='logit'"
        )
    if output.dim() > 3:
        raise InvalidInput(
            f"score: {score!r} of an output of shape {tuple(output.shape)}\n"
            "  do: give a callable target that returns the probability to be measured"
        )
    if bool((weights.flatten(1).count_nonzero(1) != 1).any()) or bool((weights.flatten(1).sum(1) != 1).any()):
        raise InvalidInput(
            f"score: {score!r} of a weighed sum of outputs\n  do: give a class as target, or score='logit'"
        )


def rows_at_a_time(scorer: Scorer) -> int:
    """How many rows run through the model at a time: a power of two, by the shapes and the device alone."""
    held = [scorer.leaves[index][0] for index in scorer.batched]
    values = sum(leaf.numel() * (1 if leaf.is_floating_point() else WIDTH) for leaf in held)
    most = (ON_CPU if scorer.inputs.device.type == "cpu" else ELSEWHERE) // max(1, values)
    return int(min(MOST, max(FEWEST, 1 << max(0, most.bit_length() - 1))))


def format_for(scorer: Scorer, output: Any) -> torch.memory_format:
    """Channels last for images on a processor, whose convolutions are faster so, if the model takes them and answers alike.

    Asked with the first sample, whose row of `output` is known: a model that looks at strides (`view`) may refuse.
    """
    x, last = scorer.inputs, torch.channels_last
    fast = x.device.type == "cpu" and x.dtype == torch.float32
    if not fast or x.dim() != 4 or 1 in x.shape[2:]:
        return torch.contiguous_format
    try:
        found = called(replace(scorer, format=last), x[:1], torch.zeros(1, dtype=torch.long))
    except RuntimeError:
        return torch.contiguous_format
    return last if _alike(found, output) else torch.contiguous_format


def _alike(one: Any, all_rows: Any) -> bool:
    """Whether the outputs for one sample are the first row of those for all, but for rounding."""
    for own, every in zip(pytree.tree_leaves(one), pytree.tree_leaves(all_rows), strict=True):
        if isinstance(own, Tensor) and own.is_floating_point() and own.dim() and own.numel():
            first = every[: len(own)]
            if first.shape != own.shape or not torch.allclose(
                own, first, rtol=1e-3, atol=1e-3 * float(first.abs().max())
            ):
                return False
    return True


def score_rows(
    scorer: Scorer, samples: Tensor, values: Callable[[slice, Tensor], Tensor], most: int | None = None
) -> Tensor:
    """The scores of many rows, in batches; float64 (R,).

    Args:
        samples: the sample of each row, (R,).
        values: gives the changed tensor for a range of rows: called with the range and the rows' samples.
        most: the number of rows at a time; by default `rows_at_a_time`.
    """
    total, size = len(samples), most or rows_at_a_time(scorer)
    if scorer.compiled is not None:
        scorer = replace(scorer, call=scorer.compiled, rows=size)
    result = torch.empty(total, dtype=torch.float64, device=scorer.inputs.device)
    for start in range(0, total, size):
        rows = slice(start, min(start + size, total))
        own = samples[rows]
        changed = values(rows, own)
        try:
            result[rows] = scorer.of(changed, own)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise compiler_fails(error) from error
        except IndexError as error:  # an embedding that has no such row
            raise InvalidInput(
                f"replacement: the model does not take the changed inputs: {error}\n"
                "  do: give a token id that the model knows"
            ) from error
    if not bool(torch.isfinite(result).all()):
        raise InvalidInput(
            "model: its score is NaN or infinite for changed inputs\n"
            "  do: use a replacement within the input's range, or float64"
        )
    return result
