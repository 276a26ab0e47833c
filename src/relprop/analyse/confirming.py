"""Is a suspected artefact what the model goes by? It is put into clean samples and taken out of affected ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relprop.analyse.result import Confirmation, Effect, Place
from relprop.engine.isolate import put_back
from relprop.errors import InvalidInput

BOOTSTRAP = 2_000
"""How often the mean of differences is drawn anew for its interval."""

FEWEST = 5
"""Samples that an interval needs at least."""

Scores = Callable[[Tensor], Tensor]


def confirm(
    model: Scores,
    affected: Tensor,
    clean: Tensor,
    place: Place,
    target: int,
    *,
    donors: Tensor | None = None,
    share: float = float("nan"),
    controls: int = 4,
    batch_size: int = 64,
    seed: int = 0,
) -> Confirmation:
    """Measure what the content of a place does to the score of a class (Lapuschkin et al. 2019; Anders et al. 2022).

    Into each clean sample goes the place's content of an affected sample, drawn at random; out of each affected sample goes the
    place's content, replaced by that of a donor. The control is a random patch: places of the same size, drawn at random, that do
    not touch the suspected one, with the content of another clean sample there, or of the donor. (Elsewhere in affected samples is
    what the class honestly looks like, which moves the score as well.)

    Args:
        model: gives outputs (B, K) for inputs (B, C, H, W) or (B, C, T).
        affected: (n, …) samples of the suspected cluster, such as its exemplars.
        clean: (m, …) samples of other classes.
        place: of the cluster.
        target: the class.
        donors: (d, …) samples of the same class outside the cluster; by default the clean ones.
        share: of the affected samples' positive relevance in the place, for the record.
        controls: random places for each pair.
        seed: of all draws.

    Returns:
        The changes in units of the output. `confirmed` where both intervals of change − control exclude 0: the score of the clean
        rises with the artefact, that of the affected falls without it.

    Raises:
        InvalidInput: fewer than five samples on a side, shapes that differ, a target out of range, or a place that leaves no room
            for a control.
    """
    given = clean if donors is None else donors
    _check(affected, clean, given)
    shape = tuple(affected.shape[2:])
    box = place.pixels(*((1, *shape) if len(shape) == 1 else shape))
    random = np.random.default_rng(seed)

    def scores(inputs: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        with torch.no_grad(), put_back(model):
            outputs = torch.cat([model(part) for part in torch.split(inputs, batch_size)])
        if outputs.ndim != 2 or not 0 <= target < outputs.shape[1]:
            raise InvalidInput(
                f"target: {target} for outputs {tuple(outputs.shape)}\n  do: give a class of the model"
            )
        return outputs[:, target].double().cpu().numpy(), (outputs.argmax(1) == target).cpu().numpy()

    def swapped(base: Tensor, source: Tensor, patches: Tensor, sign: float) -> tuple[Effect, float, float]:
        """The effect of source's content in base, pair by pair, against that of patches elsewhere; and how many turn to the
        class, with it and in the control."""
        before, was = scores(base)
        after, now = scores(_pasted(base, source, [box] * len(base)))
        drawn, turned = np.zeros(len(base)), []
        for _ in range(controls):
            elsewhere = [_elsewhere(box, shape, random) for _ in range(len(base))]
            other, then = scores(_pasted(base, patches, elsewhere))
            drawn += (other - before) / controls
            turned.append(_rate(then, ~was))
        change = after - before
        low, high = _interval(sign * (change - drawn), random)
        effect = Effect(float(sign * change.mean()), float(sign * drawn.mean()), low, high, len(base))
        return effect, _rate(now, ~was), float(np.nanmean(turned)) if (~was).any() else float("nan")

    artefacts = affected[torch.from_numpy(random.integers(len(affected), size=len(clean)))]
    others = clean.roll(int(random.integers(1, len(clean))), 0)
    inject, flips, usual = swapped(clean, artefacts, others, 1.0)
    donated = given[torch.from_numpy(random.integers(len(given), size=len(affected)))]
    remove, _, _ = swapped(affected, donated, donated, -1.0)
    confirmed = inject.low > 0 and remove.low > 0
    return Confirmation(
        inject, remove, flips, usual, share, place.area, confirmed, _words(inject, remove, flips, usual, confirmed)
    )  # fmt: skip


def _check(affected: Tensor, clean: Tensor, donors: Tensor) -> None:
    for name, samples in (("affected", affected), ("clean", clean)):
        if len(samples) < FEWEST:
            raise InvalidInput(f"{name}: {len(samples)} samples\n  do: give {FEWEST} or more")
    if len(donors) < 1:
        raise InvalidInput("donors: no samples\n  do: give samples of the class outside the cluster")
    if not affected.shape[1:] == clean.shape[1:] == donors.shape[1:] or affected.ndim not in (3, 4):
        shapes = ", ".join(str(tuple(x.shape)) for x in (affected, clean, donors))
        raise InvalidInput(f"inputs: {shapes}\n  do: give (n, C, H, W) or (n, C, T), all of one size")
    if not affected.is_floating_point():
        raise InvalidInput(
            f"inputs: {affected.dtype}\n  do: give floating-point inputs; ids of tokens have no places"
        )


def _pasted(base: Tensor, source: Tensor, boxes: list[tuple[int, int, int, int]]) -> Tensor:
    """Each sample with the content of its box from its partner."""
    mixed = base.clone()
    for row, (top, left, bottom, right) in enumerate(boxes):
        if base.ndim == 3:
            mixed[row, :, left:right] = source[row, :, left:right]
        else:
            mixed[row, :, top:bottom, left:right] = source[row, :, top:bottom, left:right]
    return mixed


def has_room(place: Place, shape: tuple[int, ...]) -> bool:
    """Whether a control of a place's size fits beside it into inputs of that shape, (H, W) or (T,)."""
    height, width = (1, *shape) if len(shape) == 1 else shape
    top, left, bottom, right = place.pixels(height, width)
    tall, wide = bottom - top, right - left
    return max(top, height - bottom) >= tall or max(left, width - right) >= wide


def _elsewhere(
    box: tuple[int, int, int, int], shape: tuple[int, ...], random: Any
) -> tuple[int, int, int, int]:
    """A box of the same size at random that does not touch the given one."""
    height, width = (1, *shape) if len(shape) == 1 else shape
    top, left, bottom, right = box
    tall, wide = bottom - top, right - left
    free = [
        (y, x)
        for y in range(height - tall + 1)
        for x in range(width - wide + 1)
        if y >= bottom or y + tall <= top or x >= right or x + wide <= left
    ]
    if not free:
        raise InvalidInput(
            "place: too large for a control of the same size beside it\n  do: give a smaller place"
        )
    y, x = free[int(random.integers(len(free)))]
    return y, x, y + tall, x + wide


def _interval(differences: NDArray[np.float64], random: Any) -> tuple[float, float]:
    means = differences[random.integers(len(differences), size=(BOOTSTRAP, len(differences)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _rate(values: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    return float(values[among].mean()) if among.any() else float("nan")


def _words(inject: Effect, remove: Effect, flips: float, usual: float, confirmed: bool) -> str:
    verdict = "Confirmed" if confirmed else "Not confirmed"
    return (
        f"{verdict}: put into {inject.samples} clean samples it moves the score by {inject.change:+.3g} (a random patch of the same"
        f" size: {inject.control:+.3g}) and turns {100 * flips:.0f} % of them to the class (random: {100 * usual:.0f} %);"
        f" taken out of {remove.samples} affected ones it lowers the score by {remove.change:.3g} (random: {remove.control:.3g})."
    )
