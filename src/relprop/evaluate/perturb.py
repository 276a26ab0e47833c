"""Perturbation: regions are destroyed in the order of their relevance, and the score is watched.

Pixel flipping (Bach et al. 2015), region perturbation (Samek et al. 2017), insertion and deletion (Petsiuk et al. 2018), ROAD
(Rong et al. 2022) are this with different regions, replacements and scores. All steps of all samples are rows of full batches:
a row is where(step of each place ≤ k, replacement, input), and a step that changes nothing has no row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relprop.errors import InvalidInput
from relprop.evaluate import curves
from relprop.evaluate.arrays import given
from relprop.evaluate.imputation import imputed, noise_for
from relprop.evaluate.regions import Regions, ordered, regions_of, tied
from relprop.evaluate.replacements import Replacement, Setting, bounds_of, expanded, replacement_of
from relprop.evaluate.scoring import Scorer, score_rows, scorer_of
from relprop.explain import Inputs
from relprop.targets import Target

DRAWS = 5
"""Draws of a random replacement over which scores are averaged."""

MOST_STEPS = 32
"""Steps that the default divides the regions into, where there are more regions."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """All that curves of one batch share, whatever the method: scores f(x), regions, replacements, steps.

    Attributes:
        scorer: the model and target.
        regions: what is replaced at a time.
        counts: how many regions are replaced at each point, from 0 on, (L+1).
        setting: what replacements are made of; `replacement` makes them.
        draws: how many of them.
        most: rows that run through the model at a time; None finds it.
        empties, fields: f∅ and what values are replaced by, once they have been computed, by draw.
    """

    scorer: Scorer
    regions: Regions
    counts: tuple[int, ...]
    setting: Setting
    replacement: Replacement
    draws: int
    most: int | None = None
    empties: dict[int, Tensor] = field(default_factory=dict, repr=False)
    fields: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def fractions(self) -> tuple[float, ...]:
        """The share of the regions that is replaced at each point."""
        return tuple(count / self.regions.count for count in self.counts)

    def empty(self, draw: int | None = None) -> Tensor:
        """f∅, the score with every region replaced, (B,): of one draw, or the mean of all."""
        if draw is None:
            return torch.stack([self.empty(number) for number in range(self.draws)]).mean(0)
        if draw not in self.empties:
            device = self.scorer.inputs.device
            everything = torch.ones(len(self.scorer), self.regions.count, dtype=torch.bool, device=device)
            samples = torch.arange(len(self.scorer), device=device)
            self.empties[draw] = score_rows(self.scorer, samples, self.masked(everything, draw), self.most)
        return self.empties[draw]

    def _spread(self, places: Tensor) -> Tensor:
        """A map of places (B, *places) that broadcasts to the inputs."""
        return places if self.regions.channels is None else places.unsqueeze(self.regions.channels)

    def _rows(self, point: Tensor, samples: Tensor, points: Tensor, draw: int, reveal: bool) -> Tensor:
        """The changed inputs of rows: `point` (R, …) of each place is when it is replaced, `points` (R,) how far a row is."""
        x = self.scorer.inputs
        at = points.reshape(-1, *[1] * (point.dim() - 1))
        gone = point > at if reveal else point <= at
        if self.replacement.field is not None:
            return torch.where(gone, _of(self.field(draw), samples), _of(x, samples))
        noise, mean = self.field(draw), self.setting.data.mean((0, 2, 3)).reshape(-1, 1, 1).to(x)
        return imputed(x[samples], gone, noise[samples], mean)

    def field(self, draw: int) -> Tensor:
        """What each value is replaced by, (B, …): the same in all curves; of "noisy_linear" the noise alone."""
        if draw not in self.fields:
            self.fields.clear()  # one at a time: a field is as large as the inputs
            if self.replacement.field is not None:
                self.fields[draw] = self.replacement.field(self.setting, draw)
            else:
                drawn = noise_for(self.setting.samples, self.scorer.inputs.shape[1:], self.setting.seed, draw)
                self.fields[draw] = drawn.to(self.scorer.inputs) * self.setting.noise
        return self.fields[draw]

    def masked(self, masks: Tensor, draw: int) -> Callable[[slice, Tensor], Tensor]:
        """A function of a range of rows and their samples: the inputs with each row's own regions replaced; masks (R, N)."""
        labels = self.regions.labels.flatten(1)
        steps = torch.tensor([0], device=masks.device)

        def made(rows: slice, own: Tensor) -> Tensor:
            places = labels.expand(len(self.scorer), -1)[own]
            gone = masks[rows].gather(1, places.clamp(min=0)) & (places >= 0)
            point = self._spread((~gone).long().reshape(len(own), *self.regions.labels.shape[1:]))
            return self._rows(point, own, steps, draw, False)

        return made

    def curve(
        self,
        relevance: Any,
        order: str = "morf",
        *,
        absolute: bool = False,
        ties: str = "stable",
        pool: str = "sum",
        reveal: bool = False,
        constant: str = "refuse",
    ) -> Curves:
        """The curve of one method's relevance. See `perturb`."""
        scores = self.regions.scores(relevance, pool).to(self.scorer.inputs.device)
        if len(scores) != len(self.scorer):
            raise InvalidInput(
                f"relevance: of {len(scores)} samples, and there are {len(self.scorer)}\n  do: give one map a sample"
            )
        present = self.regions.present(len(scores))
        flat = _constant(scores, present) if order != "random" else torch.zeros(len(scores), dtype=torch.bool)
        if bool(flat.any()) and constant == "refuse":
            raise InvalidInput(
                f"relevance: constant over all regions for sample {int(flat.nonzero()[0])}, so that it orders nothing\n"
                "  do: leave the sample out, or constant='nan' to mark it"
            )
        rank = ordered(scores, present, order, absolute=absolute, ties=ties, samples=self.setting.samples, seed=self.setting.seed)  # fmt: skip
        counts = torch.tensor(self.counts, device=rank.device)
        point = self.regions.spread(torch.searchsorted(counts, rank + 1), len(self.counts)).to(torch.int32)
        drawn = torch.stack([self._one(point, draw, reveal) for draw in range(self.draws)], 1)
        return Curves(drawn, self.fractions, order, flat.to(drawn.device), scores, self)

    def _one(self, point: Tensor, draw: int, reveal: bool) -> Tensor:
        """The scores (B, L+1) of one draw."""
        x, length = self.scorer.inputs, len(self.counts)
        spread = self._spread(point)
        live = self._live(point, draw, length)
        sample, at = live.nonzero(as_tuple=True)
        points = at.to(torch.int32)  # as the map of points: another type would be converted place by place
        found = torch.zeros(len(x), length, dtype=torch.float64, device=x.device)
        found[:, 0] = self.empty(draw) if reveal else self.scorer.first

        def made(rows: slice, own: Tensor) -> Tensor:
            return self._rows(_of(spread, own), own, points[rows], draw, reveal)

        found[sample, at] = score_rows(self.scorer, sample, made, self.most)
        if len(sample) == len(x) * (length - 1):
            return found
        index = torch.where(live, torch.arange(length, device=x.device), 0).cummax(1).values
        return found.gather(1, index)

    def _live(self, point: Tensor, draw: int, length: int) -> Tensor:
        """The steps that change a value, (B, L+1); point 0 is none of them."""
        x = self.scorer.inputs
        changed = torch.ones_like(point, dtype=torch.bool)
        if self.replacement.field is not None:
            changed = self.field(draw) != x
            if self.regions.channels is not None:
                changed = changed.any(self.regions.channels)
        steps = torch.where(changed, point, length).long().flatten(1)
        live = torch.zeros(len(x), length + 1, dtype=torch.bool, device=x.device).scatter_(1, steps, True)
        live[:, 0] = False
        return live[:, :length]


def _of(values: Tensor, samples: Tensor) -> Tensor:
    """The values of each row's sample; of a single sample one row that broadcasts."""
    return values if len(values) == 1 else values.index_select(0, samples)


def _constant(scores: Tensor, present: Tensor) -> Tensor:
    """Whether all regions of a sample that it has are equal, and there are several, (B,)."""
    low = scores.masked_fill(~present.to(scores.device), torch.inf).amin(1)
    high = scores.masked_fill(~present.to(scores.device), -torch.inf).amax(1)
    return (low == high) & (present.sum(1) > 1).to(scores.device)


@dataclass(frozen=True, slots=True)
class Curves:
    """How the scores of a batch fell (or rose, as regions came back).

    Attributes:
        drawn: the scores of every draw, float64 (B, draws, L+1); column 0 is f(x).
        fractions: the share of the regions replaced at each point.
        order: "morf", "lerf" or "random".
        constant: samples whose relevance is constant, (B,): their areas are NaN.
        relevance: of the regions, (B, N).
        experiment: what was done.
    """

    drawn: Tensor
    fractions: tuple[float, ...]
    order: str
    constant: Tensor
    relevance: Tensor = field(repr=False)
    experiment: Experiment = field(repr=False)

    @property
    def ties(self) -> Tensor:
        """The share of regions that have another one's relevance, (B,)."""
        return tied(self.relevance)

    @property
    def scores(self) -> Tensor:
        """The curves, means over the draws, (B, L+1)."""
        return self.drawn.mean(1)

    @property
    def aopc(self) -> Tensor:
        """The area over the curve, mean over k = 0…L (Samek et al. 2017), (B,)."""
        return self._defined(curves.aopc(self.scores))

    @property
    def auc(self) -> Tensor:
        """The area under the curve over the replaced fraction, by trapezoids, (B,)."""
        return self._defined(curves.auc(self.scores, self.fractions))

    @property
    def naopc(self) -> Tensor:
        """The area over the curve on the scale where f(x) is 1 and f∅ is 0, (B,); NaN where these are equal."""
        return self._defined(curves.naopc(self.scores, self.experiment.empty()))

    def _defined(self, values: Tensor) -> Tensor:
        return torch.where(self.constant, torch.full_like(values, torch.nan), values)


def perturb(
    model: Any,
    inputs: Inputs,
    relevance: Any,
    target: Target = None,
    *,
    regions: Any = "pixels",
    order: str = "morf",
    steps: int | Sequence[float] | None = None,
    size: int | None = None,
    replacement: Any = None,
    draws: int | None = None,
    score: str = "logit",
    seed: int = 0,
    bounds: Any = None,
    absolute: bool = False,
    ties: str = "stable",
    pool: str = "sum",
    reveal: bool = False,
    constant: str = "refuse",
    **options: Any,
) -> Curves:
    """The scores while the regions of an input are replaced in the order of their relevance.

    Args:
        model, inputs, target: as for `relprop.explain`; the model itself is called, in inference mode.
        relevance: of the input's shape, or with its channels pooled; (B, …). NaN is refused.
        regions: "pixels" (every place), "superpixels", the side of square patches (9), a side for each dimension, or whole numbers
            (*places) or (B, *places) that say which region a place belongs to (words, anything), −1 for none.
        order: "morf", most relevant first: signed relevance, the negative last; "lerf", least relevant first; "random".
        steps: the number of steps, or the fractions of the regions that are replaced at each point, such as (0.1, 0.5, 0.9). By
            default until all are replaced, in at most 32 steps of equal size (one region each where `size` or `steps` is given).
        size: the number of regions that are replaced in a step.
        replacement: a number, a tensor, a name of `REPLACEMENTS`, or a callable; for token ids an id. Default: "uniform".
        draws: of a random replacement, 5 by default; others need only one. Every draw fixes what each value is replaced by,
            at all steps and for all methods, by the seed and the sample's number alone.
        score: "logit", "probability", "log_odds" or "accuracy" of the target (a score of its own: a callable target).
        seed: of draws, random orders and random ties.
        bounds: the lowest and the highest valid input value, (low, high) or one a channel; "uniform" draws between them. By
            default the extremes of the given inputs.
        absolute: order by |relevance|.
        ties: "stable" (by place, row by row) or "random".
        pool: how channels become one value: a key of `POOLS`.
        reveal: start from all regions replaced and bring them back (insertion).
        constant: "refuse" relevance that is constant, or mark its areas as "nan".
        options: those of `experiment`: samples, data, channels, partial, at, noise, rows.

    Returns:
        `Curves`: `.scores` (B, L+1), `.aopc` (B,), `.auc`, `.naopc`, `.drawn` (B, draws, L+1).

    Raises:
        InvalidInput: an argument is wrong: more steps than regions, an unknown name, NaN, a replacement out of range, …
    """
    prepared = experiment(
        model, inputs, target, regions=regions, steps=steps, size=size, replacement=replacement, draws=draws, score=score,
        seed=seed, bounds=bounds, **options,
    )  # fmt: skip
    return prepared.curve(
        explained(relevance, prepared.scorer), order, absolute=absolute, ties=ties, pool=pool, reveal=reveal, constant=constant
    )  # fmt: skip


def explained(relevance: Any, scorer: Scorer) -> Tensor:
    """The relevance of the input that is changed, of those that an explanation has."""
    if isinstance(relevance, dict) or (
        isinstance(relevance, (tuple, list)) and any(isinstance(r, Tensor) for r in relevance)
    ):
        parts = list(relevance.values()) if isinstance(relevance, dict) else list(relevance)
        relevance = parts[scorer.at]
    return given(relevance)


def experiment(
    model: Any,
    inputs: Inputs,
    target: Target = None,
    *,
    regions: Any = "pixels",
    steps: int | Sequence[float] | None = None,
    size: int | None = None,
    replacement: Any = None,
    draws: int | None = None,
    score: str = "logit",
    seed: int = 0,
    bounds: Any = None,
    samples: Sequence[int] | None = None,
    data: Tensor | None = None,
    channels: int | str | None = "auto",
    partial: str = "drop",
    at: int | str | None = None,
    noise: float = 0.01,
    rows: int | None = None,
) -> Experiment:
    """What curves of several methods and orders share; `.curve(relevance, order)` gives each of them.

    Args, besides those of `perturb`:
        samples: the numbers of the samples in the data set, which seed their draws; by default 0, 1, ….
        data: inputs (M, …) that "dataset" takes donors from; by default the inputs.
        channels: the dimension that is no place; by default 1 where a sample has three dimensions or more, else none.
        partial: patches cut by the border: "drop", "pad" or "mean".
        at: which of several inputs is changed, by position or name.
        noise: the deviation of the noise of "noisy_linear".
        rows: rows that run through the model at a time; by default it is found.
    """
    return arranged(
        scorer_of(model, inputs, target, score, at), regions=regions, steps=steps, size=size, replacement=replacement,
        draws=draws, seed=seed, bounds=bounds, samples=samples, data=data, channels=channels, partial=partial, noise=noise, rows=rows,
    )  # fmt: skip


def arranged(
    scorer: Scorer,
    *,
    regions: Any = "pixels",
    steps: int | Sequence[float] | None = None,
    size: int | None = None,
    replacement: Any = None,
    draws: int | None = None,
    seed: int = 0,
    bounds: Any = None,
    samples: Sequence[int] | None = None,
    data: Tensor | None = None,
    channels: int | str | None = "auto",
    partial: str = "drop",
    noise: float = 0.01,
    rows: int | None = None,
) -> Experiment:
    """The experiment on a scorer that several of them share. See `experiment`."""
    low, high = bounds_of(scorer.inputs, bounds)
    pool = scorer.inputs if data is None else data
    setting = Setting(
        scorer.inputs, expanded(samples, len(scorer)), low, high, pool, seed, bounds is not None, noise
    )
    chosen = replacement_of(_default(scorer.inputs) if replacement is None else replacement, setting)
    found = regions_of(scorer.inputs, regions, channels, partial)
    if seed < 0:
        raise InvalidInput(f"seed: {seed}\n  do: give a whole number from 0 on")
    if draws is not None and (not isinstance(draws, int) or draws < 1):
        raise InvalidInput(f"draws: {draws!r}\n  do: give a whole number from 1 on")
    number = (draws or DRAWS) if chosen.random else 1
    return Experiment(scorer, found, counts_of(found.count, steps, size), setting, chosen, number, rows)


def _default(inputs: Tensor) -> str:
    if not inputs.is_floating_point():
        raise InvalidInput(
            "replacement: none given for token ids\n  do: give the id that stands for nothing: replacement=tokenizer.mask_token_id"
        )
    return "uniform"


def counts_of(
    regions: int, steps: int | Sequence[float] | None = None, size: int | None = None
) -> tuple[int, ...]:
    """How many regions are replaced at each point, from 0 on. Raises `InvalidInput` for more steps than regions allow."""
    if steps is not None and not isinstance(steps, int):
        shares = [float(share) for share in steps]
        if not shares or not all(0 < share <= 1 for share in shares) or sorted(set(shares)) != shares:
            raise InvalidInput(f"steps: {steps!r}\n  do: give growing fractions above 0, up to 1")
        counts = [round(share * regions) for share in shares]
        if len(set(counts)) < len(counts) or counts[0] == 0:
            raise InvalidInput(
                f"steps: {len(shares)} fractions of {regions} regions are not all different\n  do: give fewer, or smaller regions"
            )
        return (0, *counts)
    for name, value in (("steps", steps), ("size", size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InvalidInput(f"{name}: {value!r}\n  do: give a whole number from 1 on")
    each = size or (1 if steps is not None else -(-regions // MOST_STEPS))
    most = -(-regions // each)
    if steps is not None and steps > most:
        raise InvalidInput(
            f"steps: {steps}, of {each} region{'s' if each > 1 else ''} each, and there are {regions} regions\n"
            f"  do: give at most {most} steps, or smaller regions"
        )
    return tuple(min(each * k, regions) for k in range((steps or most) + 1))
