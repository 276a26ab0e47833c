"""Models that take steps before samples, (T, B, …), as recurrent layers and attention of torch do by default."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from relprop.engine.batch import batch_axes, map_samples, states_of
from relprop.engine.isolate import run_isolated
from relprop.explanation import Explanation


class SamplesFirst(nn.Module):
    """A model that takes steps before samples as one that takes samples before steps.

    It shares the model's modules and weights under their own paths, and leaves recurrent layers' states as they are.

    Args:
        model: the module, which is not changed.
        turned: the leaves of its arguments, by number, whose first two dimensions are exchanged.
        outputs: whether those of its outputs are, too.
    """

    steps_first: nn.Module
    turned: tuple[int, ...]
    outputs: bool

    def __init__(self, model: nn.Module, turned: tuple[int, ...], outputs: bool) -> None:
        super().__init__()
        for table in ("_modules", "_parameters", "_buffers"):
            self.__dict__[table] = getattr(model, table)
        self.__dict__.update(training=False, steps_first=model, turned=turned, outputs=outputs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model computes."""
        args, kwargs = exchanged((args, kwargs), self.turned)
        output = self.steps_first.forward(*args, **kwargs)
        return _all_exchanged(output) if self.outputs else output


def exchanged(structure: Any, turned: tuple[int, ...]) -> Any:
    """The structure with the first two dimensions of some of its leaves exchanged."""
    leaves, spec = pytree.tree_flatten(structure)
    return pytree.tree_unflatten(
        [leaf.transpose(0, 1) if i in turned else leaf for i, leaf in enumerate(leaves)], spec
    )


def _all_exchanged(output: Any) -> Any:
    return pytree.tree_map(
        lambda t: t.transpose(0, 1) if isinstance(t, Tensor) and t.dim() > 2 else t, output
    )


def samples_first(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SamplesFirst | None:
    """The model with samples first, where it takes (T, B, …): found by asking it for one sample alone. None for all others."""
    if not isinstance(model, nn.Module) or model._forward_hooks or model._forward_pre_hooks:
        return None
    if not any(getattr(module, "batch_first", True) is False for module in model.modules()):
        return None
    leaves = pytree.tree_leaves((args, kwargs))
    first = next((i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim()), None)
    if first is None or leaves[first].dim() < 3 or not leaves[first].is_floating_point():
        return None
    size, states = leaves[first].shape[1], states_of(model)
    axes = batch_axes((args, kwargs), states, size)
    turned = tuple(
        i
        for i, leaf in enumerate(leaves)
        if i == first or (axes[i] is None and _like(leaf, leaves[first], size))
    )
    axes = [1 if i in turned else axis for i, axis in enumerate(axes)]
    last = map_samples(lambda leaf, axis: leaf.narrow(axis, size - 1, 1), (args, kwargs), axes)
    try:
        every, alone = (
            next(
                t
                for t in pytree.tree_leaves(run_isolated(model, *given))
                if isinstance(t, Tensor) and t.dim()
            )
            for given in ((args, kwargs), last)
        )
    except Exception:  # what fails is said where the model is captured
        return None
    for axis in (0, 1)[: every.dim() - 1]:
        if every.shape[axis] == size and alone.shape[axis] == 1:
            close = 1e-2 if every.dtype in (torch.float16, torch.bfloat16) else 1e-4
            if torch.allclose(every.narrow(axis, size - 1, 1), alone, rtol=close, atol=close):
                return SamplesFirst(model, turned, bool(axis))
    return None


def _like(leaf: Any, first: Tensor, size: int) -> bool:
    same = isinstance(leaf, Tensor) and leaf.dim() == first.dim() and leaf.is_floating_point()
    return same and leaf.shape[1] == size


def with_steps_first(explanation: Explanation, model: SamplesFirst, inputs: Any) -> Explanation:
    """The explanation in the form of the inputs that the caller gave."""

    tensors = [i for i, leaf in enumerate(pytree.tree_leaves(inputs)) if isinstance(leaf, Tensor)]
    turned = tuple(place for place, i in enumerate(tensors) if i in model.turned)

    return dataclasses.replace(
        explanation,
        relevance=exchanged(explanation.relevance, turned),
        standard_error=None if (error := explanation.standard_error) is None else exchanged(error, turned),
        output=_all_exchanged(explanation.output) if model.outputs else explanation.output,
        inputs=inputs,
    )
