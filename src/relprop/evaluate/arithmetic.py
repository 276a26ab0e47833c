"""The toy task of Arras et al. (2019): an LSTM that adds or subtracts two marked numbers, so that true relevance is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relprop.errors import InvalidInput
from relprop.evaluate.arrays import ratio
from relprop.evaluate.cases import methods_of
from relprop.evaluate.similarity import pearson

TASKS = {"add": 1.0, "subtract": -1.0}
"""The sign of the second number in the sum."""

LENGTHS = tuple(range(4, 11))
"""The lengths of sequences."""

METHODS = ("lrp:lrp_all", "lrp:lrp_half", "lrp:lrp_prop", "gradient_x_input", "occlusion")
"""The methods that are compared by default."""

LEARNED = 1e-3
"""The mean squared error below which a network has learned its task."""


def agreement(n_a: Any, n_b: Any, r_a: Any, r_b: Any, others: Any) -> tuple[float, float, float]:
    """ρ(n_a, R_a), ρ(n_b, R_b) and the mean share (|R_a| + |R_b|) / Σ_t |R_t| of the marked steps (Arras et al. 2019).

    All (B,): the two marked numbers, the relevance of their steps, and Σ|R_t| of all other steps. Where the numbers are
    subtracted the ideal ρ(n_b, R_b) is −1.
    """

    def flat(x: Any) -> Tensor:
        return torch.as_tensor(x, dtype=torch.float64).detach().reshape(1, -1)

    a, b, ra, rb, rest = map(flat, (n_a, n_b, r_a, r_b, others))
    marked = ra.abs() + rb.abs()
    share = ratio(marked, marked + rest)
    return float(pearson(a, ra)), float(pearson(b, rb)), float(share[torch.isfinite(share)].mean())


class Adder(nn.Module):
    """An LSTM of one cell and a linear output without bias: sequences (B, T, 2) to a number (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 1, batch_first=True)
        self.out = nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The result, (B, 1)."""
        found: Tensor = self.out(self.lstm(x)[0][:, -1])
        return found


@dataclass(frozen=True, slots=True)
class Sums:
    """Sequences of one length: x (B, T, 2) of numbers in [−1, 1] and marks, the places a < b of the marks, the results (B,)."""

    x: Tensor
    a: Tensor
    b: Tensor
    result: Tensor


def sums(count: int, length: int, task: str, seed: int) -> Sums:
    """Random sequences of a task, with two marked numbers each. Raises `InvalidInput` for an unknown task."""
    if task not in TASKS:
        raise InvalidInput(f"task: {task!r} is unknown\n  do: one of {', '.join(TASKS)}")
    generator = torch.Generator().manual_seed(seed)
    numbers = 2 * torch.rand(count, length, generator=generator) - 1
    places = torch.rand(count, length, generator=generator).argsort(1)[:, :2].sort(1).values
    marks = torch.zeros(count, length).scatter_(1, places, 1.0)
    a, b = places[:, 0], places[:, 1]
    every = torch.arange(count)
    return Sums(torch.stack([numbers, marks], 2), a, b, numbers[every, a] + TASKS[task] * numbers[every, b])


def trained(
    task: str, seed: int = 0, tries: int = 12, progress: Callable[[str], None] | None = None
) -> Adder:
    """An LSTM whose mean squared error at a task is below 1e-3 on new sequences of length 8.

    1000 sequences for each length from 4 to 10; Adam at 0.02, batches of 128 of one length, 3500 steps, the rate cut to 0.3 of
    itself after 1800 and 2800, gradients clipped at norm 1. An initialisation that gets stuck is given up for the next.
    Raises `InvalidInput` where no try has learned it.
    """
    data = [sums(1000, length, task, 100 * seed + length) for length in LENGTHS]
    held = sums(500, 8, task, 100 * seed + 99)
    for attempt in range(tries):
        if progress is not None:
            progress(f"{task}: training, try {attempt + 1}")
        model = _fitted(data, 1000 * seed + attempt)
        with torch.no_grad():
            error = float((model(held.x)[:, 0] - held.result).square().mean())
        if error < LEARNED:
            model.zero_grad(set_to_none=True)
            return model.eval()
    raise InvalidInput(f"task: no network learned to {task} in {tries} tries\n  do: another seed")


def _fitted(data: Sequence[Sums], seed: int) -> Adder:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.manual_seed(seed)
        model = Adder()
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [1800, 2800], 0.3)
        for step in range(3500):
            part = data[int(torch.randint(len(data), (), generator=generator))]
            chosen = torch.randint(len(part.x), (128,), generator=generator)
            optimiser.zero_grad()
            loss = (model(part.x[chosen])[:, 0] - part.result[chosen]).square().mean()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if step == 1200 and float(loss.detach()) > 0.05:
                break  # stuck
    return model


@dataclass(frozen=True, slots=True)
class Agreement:
    """One method on one task.

    Attributes:
        task, method: their names.
        first, second: ρ(n_a, R_a) and ρ(n_b, R_b); the ideal of the second is 1 where numbers are added, −1 where subtracted.
        share: the mean share of |R| on the marked steps.
        gap: the mean |ΣR − f|.
    """

    task: str
    method: str
    first: float
    second: float
    share: float
    gap: float


def arithmetic(
    tasks: Sequence[str] = tuple(TASKS),
    methods: Sequence[Any] | Mapping[str, Any] = METHODS,
    *,
    count: int = 350,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[Agreement]:
    """How well each method finds the two numbers that were added or subtracted (Arras et al. 2019), one trained LSTM a task.

    Relevance of a step is the sum over its two coordinates. "occlusion" sets a whole step to 0 at a time.

    Args:
        methods: as for `compare`.
        count: test sequences of each length from 4 to 10.
        seed: of data, training and methods.
        progress: called with what is done next.
    """
    results = []
    for task in tasks:
        model = trained(task, seed, progress=progress)
        tests = [sums(count, length, task, 100 * seed + 50 + length) for length in LENGTHS]
        for method in methods_of(methods):
            if progress is not None:
                progress(f"{task}: {method.name}")
            explain = steps_occluded if method.name == "occlusion" else method.explain
            columns = [
                torch.cat(column)
                for column in zip(*(_measured(explain, model, part) for part in tests), strict=True)
            ]
            results.append(Agreement(task, method.name, *agreement(*columns[:5]), float(columns[5].mean())))
    return results


def _measured(explain: Callable[[Any, Any, Any], Any], model: Adder, part: Sums) -> tuple[Tensor, ...]:
    """The marked numbers, their relevance, Σ|R| of the others, and |ΣR − f|, (B,) each."""
    relevance = torch.as_tensor(explain(model, part.x, None)).detach().to(torch.float64).sum(2)
    every = torch.arange(len(part.x))
    r_a, r_b = relevance[every, part.a], relevance[every, part.b]
    with torch.no_grad():
        score = model(part.x)[:, 0].to(torch.float64)
    others = relevance.abs().sum(1) - r_a.abs() - r_b.abs()
    return (
        part.x[every, part.a, 0],
        part.x[every, part.b, 0],
        r_a,
        r_b,
        others,
        (relevance.sum(1) - score).abs(),
    )


def steps_occluded(model: Any, x: Tensor, target: Any) -> Tensor:
    """f(x) − f(x with one step set to 0), given to that step's first coordinate, (B, T, F)."""
    batch, length, _ = x.shape
    gone = torch.eye(length, dtype=torch.bool, device=x.device).repeat(batch, 1)[:, :, None]
    with torch.no_grad():
        lost = model(x)[:, :1] - model(x.repeat_interleave(length, 0).masked_fill(gone, 0.0))[:, 0].reshape(
            batch, length
        )
    return torch.cat([lost[:, :, None], torch.zeros_like(x[:, :, 1:])], 2)
