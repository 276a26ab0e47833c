"""Robustness: how much an explanation changes where its input hardly does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.errors import InvalidInput
from relprop.evaluate.arrays import given, ratio, rows
from relprop.evaluate.perturb import explained
from relprop.evaluate.scoring import Scorer

Explain = Callable[[Any, Any, Any], Any]
"""A method: from a model, inputs and a target to relevance."""


def changed_inputs(scorer: Scorer, values: Tensor, samples: Tensor) -> Any:
    """The model's inputs with one of them changed, (R, …), and the others those of each row's sample."""
    leaves = list(scorer.leaves)
    for index in scorer.batched:
        leaves[index] = values if index == scorer.at else leaves[index][samples]
    args, kwargs = pytree.tree_unflatten(leaves, scorer.spec)
    return kwargs if kwargs else args[0] if len(args) == 1 else args


def target_of(scorer: Scorer, samples: Tensor) -> Any:
    """The explained target of each row's sample."""
    if scorer.weights is None:
        return scorer.target
    classes = isinstance(scorer.target, Tensor) and not scorer.target.is_floating_point()
    if classes and scorer.target.shape == (len(scorer),):
        values = getattr(scorer.output, "dim", lambda: 2)()
        return None if values == 1 else scorer.target[samples.to(scorer.target.device)]
    return scorer.weights[samples]


def neighbours(
    inputs: Tensor, samples: Sequence[int], count: int, radius: float, kind: str = "uniform", seed: int = 0
) -> Tensor:
    """Inputs (B·count, …) close to each sample, drawn by the seed and its number alone.

    `kind`: "uniform", in the cube of half side `radius`; "normal", of deviation `radius`.
    """
    import numpy as np

    if not inputs.is_floating_point():
        raise InvalidInput(
            "inputs: token ids have no neighbours\n  do: ask for robustness of models of real inputs"
        )
    if count < 1 or not radius > 0:
        raise InvalidInput(
            f"neighbours: {count} within {radius}\n  do: give one or more, and a radius above 0"
        )
    shape = (count, *inputs.shape[1:])
    drawn = []
    for sample in samples:
        generator = np.random.default_rng([seed, int(sample), 4])
        drawn.append(
            generator.uniform(-1, 1, shape) if kind == "uniform" else generator.standard_normal(shape)
        )
    shifts = torch.from_numpy(np.stack(drawn)).to(inputs) * radius
    return (inputs[:, None] + shifts).reshape(-1, *inputs.shape[1:])


def distances(
    explain: Explain, model: Any, scorer: Scorer, relevance: Any, copies: Tensor, rows_at_a_time: int = 64
) -> tuple[Tensor, Tensor]:
    """‖R(x) − R(x′)‖₂ and ‖x − x′‖₂ of every copy, float64 (B, count) each; the same target is explained for all."""
    count = len(copies) // len(scorer)
    own = torch.arange(len(scorer), device=copies.device).repeat_interleave(count)
    reference, found = rows(explained(relevance, scorer)), []
    for start in range(0, len(copies), rows_at_a_time):
        part = slice(start, start + rows_at_a_time)
        again = explain(model, changed_inputs(scorer, copies[part], own[part]), target_of(scorer, own[part]))
        found.append((rows(explained(again, scorer)) - reference[own[part].to(reference.device)]).norm(dim=1))
    moved = (rows(copies, "inputs") - rows(scorer.inputs, "inputs")[own]).norm(dim=1)
    return torch.cat(found).reshape(-1, count), moved.reshape(-1, count)


def sensitivity(relevance: Any, perturbed: Any) -> tuple[Tensor, Tensor]:
    """Max- and avg-sensitivity (Yeh et al. 2019): ‖R(x) − R(x′)‖₂ / ‖R(x)‖₂, its maximum and mean over copies, (B,) each.

    relevance: (B, …); perturbed: (B, n, …). NaN for R = 0.
    """
    away = given(perturbed).flatten(2) - rows(relevance)[:, None]
    return relative(away.norm(dim=2), relevance)


def relative(away: Tensor, relevance: Any) -> tuple[Tensor, Tensor]:
    """The largest and the mean distance of each sample's copies (B, n), relative to the size of its relevance."""
    size = rows(relevance).norm(dim=1).to(away.device)
    return ratio(away.amax(1), size), ratio(away.mean(1), size)


def lipschitz(away: Tensor, moved: Tensor) -> Tensor:
    """The local Lipschitz estimate (Alvarez-Melis and Jaakkola 2018): max ‖R(x) − R(x′)‖₂ / ‖x − x′‖₂, (B, n) each; (B,)."""
    return ratio(away, moved).nan_to_num(nan=0.0).amax(1)
