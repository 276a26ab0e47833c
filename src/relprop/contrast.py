"""Contrastive relevance: what speaks for the target and not for the other classes as well."""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.engine.propagate import HALF, Program, walk
from relprop.errors import InvalidInput
from relprop.explain import Captured, Forward
from relprop.targets import main_output

LEAST = 1e-6
"""Where less than this part of the start reaches the inputs, it is too little to be normalised."""


def contrasted(captured: Captured, program: Program, passed: Forward, chosen: Tensor) -> dict[str, Tensor]:
    """CLRP (Gu, Yang and Tresp 2018): R = max(0, N(R of the target) − N(R of all other classes)).

    N divides a sample's relevance by its sum over all inputs. All other classes start with the same relevance. Two
    walks from one forward pass.

    Args:
        chosen: (B, C), 1 at the target of each sample, else 0.

    Returns:
        The relevance of the inputs, by the names of their nodes.

    Raises:
        InvalidInput: (nearly) all relevance of a sample is absorbed on the way, or more than all of it.
    """
    ref = main_output(captured.graph.output)
    others = (1 - chosen) / (chosen.shape[1] - 1)
    target, rest = (_normalised(captured, program, passed, {ref: seed}) for seed in (chosen, others))
    return {name: (target[name] - rest[name]).clamp(min=0) for name in target}


def _normalised(
    captured: Captured, program: Program, passed: Forward, seeds: dict[object, Tensor]
) -> dict[str, Tensor]:
    """The relevance of the inputs divided by its sum, of a walk that starts with 1 a sample."""
    seeds = {ref: seed.float() if seed.dtype in HALF else seed for ref, seed in seeds.items()}
    way = walk(program, passed.values, seeds, captured.store, passed.batch)  # type: ignore[arg-type]
    sums = torch.zeros(passed.batch) if way.passed is None else way.passed
    if bool((sums < LEAST).any()):
        sample = int(sums.argmin())
        raise InvalidInput(
            f"clrp: of sample {sample} {float(sums[sample]):.2g} of the relevance reaches the inputs, the rest is absorbed:"
            " it cannot be normalised to 1\n"
            "  do: use rules that keep relevance and its sign, such as rules=relprop.rules.ZPlus()"
        )
    return {name: r / sums.to(r.dtype).reshape(-1, *[1] * (r.dim() - 1)) for name, r in way.inputs.items()}
