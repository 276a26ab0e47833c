"""The table of metrics: what each needs, which way is better, its range, what chance gives, and when it is undefined."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relprop.evaluate import axioms, complexity, localisation, randomisation
from relprop.evaluate.arrays import ratio, rows
from relprop.evaluate.cases import Case
from relprop.evaluate.stability import lipschitz, relative
from relprop.evaluate.subsets import (
    infidelity_of,
    log_sizes,
    monotonicity_of,
    subset_correlation,
    sums,
)


@dataclass(frozen=True, slots=True)
class Metric:
    """One row.

    Attributes:
        about: one line, with its source.
        needs: of "model" (calls it), "explain" (explains anew) and "mask" (ground truth); () for arrays alone.
        direction: "higher" or "lower" is better; "describes" the model rather than the explanation.
        range: the least and the largest value.
        chance: the value of an uninformed explanation, in words.
        rows: forward rows an image and method: S steps, D draws, n samples, L layers, N regions; or explanations.
        undefined: when it is NaN.
        run: its function of a `Case` and of options, which have defaults; float64 (B,).
    """

    about: str
    needs: tuple[str, ...]
    direction: str
    range: tuple[float, float]
    chance: str
    rows: str
    undefined: str
    run: Callable[..., Tensor]


INF = math.inf
RANDOM = "the random order's value"


def aopc_morf(case: Case, **options: Any) -> Tensor:
    """AOPC, most relevant first."""
    return case.curve("morf", **options).aopc


def aopc_lerf(case: Case, **options: Any) -> Tensor:
    """AOPC, least relevant first."""
    return case.curve("lerf", **options).aopc


def abpc(case: Case, **options: Any) -> Tensor:
    """The area between the curves."""
    return aopc_morf(case, **options) - aopc_lerf(case, **options)


def naopc(case: Case, **options: Any) -> Tensor:
    """AOPC where f(x) is 1 and f∅ is 0."""
    return case.curve("morf", **options).naopc


def insertion_auc(case: Case, **options: Any) -> Tensor:
    """The area under the curve while the most relevant regions come back into the blurred image."""
    given = {"replacement": "blur", "score": "probability", **options}
    return case.curve("morf", reveal=True, **given).auc


def deletion_auc(case: Case, **options: Any) -> Tensor:
    """The area under the curve while the most relevant regions are set to 0."""
    given = {"replacement": 0.0, "score": "probability", **options}
    return case.curve("morf", **given).auc


def road_gap(case: Case, **options: Any) -> Tensor:
    """Least relevant first minus most relevant first, mean over the levels, with ROAD's replacement."""
    levels = {"steps": (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9), "size": None}
    given = {"replacement": "noisy_linear", "score": "probability", "draws": 1, **levels, **options}
    morf, lerf = case.curve("morf", **given), case.curve("lerf", **given)
    gap = (lerf.scores - morf.scores)[:, 1:].mean(1)
    return torch.where(morf.constant, torch.full_like(gap, torch.nan), gap)


def irof(case: Case, **options: Any) -> Tensor:
    """The area over the curve of f_k/f₀ while segments, ordered by mean relevance, are set to the image's mean."""
    given = {"replacement": "mean", "score": "probability", "partial": "mean", **options}
    curve = case.curve("morf", **given)
    share = ratio(curve.scores[:, 1:], curve.scores[:, :1].expand_as(curve.scores[:, 1:]))
    return torch.where(curve.constant, torch.full_like(share[:, 0], torch.nan), 1 - share.mean(1))


def faithfulness_correlation(case: Case, subsets: int = 100, share: float = 0.1, **options: Any) -> Tensor:
    """Correlation over random subsets of a share of the regions."""
    experiment = case.batch.experiment(**options)
    size = max(1, round(share * experiment.regions.count))
    masks, lost = case.batch.subsets(experiment, size, subsets)
    return subset_correlation(experiment.regions.scores(case.relevance), masks, lost)


def sensitivity_n(
    case: Case, subsets: int = 100, sizes: tuple[int, ...] | None = None, **options: Any
) -> Tensor:
    """The same for subsets of n regions, mean over n from 1 to 80 % of all."""
    experiment = case.batch.experiment(**options)
    found = []
    for size in sizes or log_sizes(experiment.regions.count):
        masks, lost = case.batch.subsets(experiment, size, subsets)
        found.append(subset_correlation(experiment.regions.scores(case.relevance), masks, lost))
    return torch.stack(found).mean(0)


def faithfulness_estimate(case: Case, **options: Any) -> Tensor:
    """The correlation of each region's relevance with what the score loses without it alone."""
    from relprop.evaluate.subsets import drops

    experiment = case.batch.experiment(**options)
    single = torch.eye(experiment.regions.count, dtype=torch.bool, device=case.relevance.device)
    lost = case.batch.remember(("single", id(experiment)), lambda: drops(experiment, single))
    return subset_correlation(experiment.regions.scores(case.relevance), single, lost)


def infidelity(
    case: Case, subsets: int = 100, share: float = 0.1, scaled: bool = False, **options: Any
) -> Tensor:
    """The mean squared difference of a subset's relevance and what the score loses without it."""
    experiment = case.batch.experiment(**options)
    size = max(1, round(share * experiment.regions.count))
    masks, lost = case.batch.subsets(experiment, size, subsets)
    return infidelity_of(sums(experiment.regions.scores(case.relevance), masks), lost, scaled)


def monotonicity(case: Case, **options: Any) -> Tensor:
    """The share of steps that do not lower the score while regions come back, the least |R| first."""
    curve = case.curve("lerf", reveal=True, absolute=True, **options)
    found = monotonicity_of(curve.scores)
    return torch.where(curve.constant, torch.full_like(found, torch.nan), found)


def conservation_gap(case: Case) -> Tensor:
    """|ΣR − f| / |f|."""
    return axioms.conservation_gap(case.relevance, case.batch.scorer().first)


def completeness_gap(case: Case, baseline: Any = 0.0) -> Tensor:
    """|ΣR − (f(x) − f(baseline))| relative to that difference."""
    return axioms.completeness(case.explained, baseline).value


def positivity_gap(case: Case) -> Tensor:
    """−min R / max |R|."""
    return axioms.positivity(case.explained).value


def continuity(case: Case, samples: int = 10, radius: float = 0.02) -> Tensor:
    """max ‖R(x) − R(x′)‖₁ / ‖x − x′‖₂."""
    return axioms.continuity(case.explained, samples, radius, case.batch.seed).value


def selectivity(case: Case, **options: Any) -> Tensor:
    """The area under the curve, patches set to 0."""
    return case.curve("morf", **{"replacement": 0.0, **options}).auc


def input_invariance(case: Case, shift: float = 1.0) -> Tensor:
    """‖R − R′‖₁ / ‖R‖₁ after a shift of the input that the first bias undoes."""
    return axioms.input_invariance(case.explained, shift).value


def mprt(case: Case, **options: Any) -> Tensor:
    """Similarity to the explanation of models with random layers, mean over the layers."""
    curve = randomisation.mprt(
        case.method.explain, case.batch.model, case.batch.scorer(), case.relevance, seed=case.batch.seed, **options
    )  # fmt: skip
    lost = curve.isnan().any(0)
    if bool(lost.any()):
        case.notes["mprt"] = _lost(case, int(lost.nonzero()[0]), **options)
    return curve.mean(1)


def _lost(
    case: Case, first: int, *, layers: Sequence[str] | None = None, order: str = "top_down", **others: Any
) -> str:
    """From which layer on random weights leave a constant map: `first` in the order in which they are randomised."""
    named = randomisation.layers_of(case.batch.model) if layers is None else list(layers)
    path = (named[::-1] if order == "top_down" else named)[first]
    return f"a constant map with random weights, from layer {path!r} on"


def emprt(case: Case, **options: Any) -> Tensor:
    """The relative rise of the histogram's entropy for a random model."""
    return randomisation.emprt(
        case.method.explain, case.batch.model, case.batch.scorer(), case.relevance, seed=case.batch.seed, **options
    )  # fmt: skip


def data_randomisation(case: Case, other: Any = None, similarity: str = "spearman") -> Tensor:
    """Similarity to the explanation of the network trained on permuted labels."""
    return randomisation.data_randomisation(
        case.method.explain, other, case.batch.scorer(), case.relevance, similarity=similarity
    )


def random_logit(case: Case, **options: Any) -> Tensor:
    """Similarity to the explanation of another class."""
    return randomisation.random_logit(
        case.method.explain, case.batch.model, case.batch.scorer(), case.relevance,
        seed=case.batch.seed, samples=case.batch.samples, **options,
    )  # fmt: skip


def max_sensitivity(case: Case, samples: int = 10, radius: float = 0.02) -> Tensor:
    """The largest relative change of relevance among close inputs."""
    return relative(case.distances(samples, radius, "uniform")[0], case.relevance)[0]


def avg_sensitivity(case: Case, samples: int = 10, radius: float = 0.02) -> Tensor:
    """The mean relative change of relevance among close inputs."""
    return relative(case.distances(samples, radius, "uniform")[0], case.relevance)[1]


def local_lipschitz(case: Case, samples: int = 10, radius: float = 0.1) -> Tensor:
    """The largest change of relevance over the change of the input."""
    return lipschitz(*case.distances(samples, radius, "normal"))


def _pooled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A metric of arrays on the relevance of places: channels of images summed."""

    def run(case: Case, **options: Any) -> Tensor:
        values = case.relevance.sum(1) if case.relevance.dim() >= 4 else case.relevance
        return function(values, **options)

    return run


def _masked(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A metric of relevance and masks."""

    def run(case: Case, **options: Any) -> Tensor:
        return function(case.relevance, case.mask, **options)

    return run


def top_k(relevance: Any, mask: Any, k: int | None = None) -> Tensor:
    """Top-k intersection; k is a tenth of the places by default."""
    size = rows(mask, "mask").shape[1]
    return localisation.top_k(relevance, mask, k or max(1, size // 10))


M, E, G = ("model",), ("model", "explain"), ("mask",)
CONSTANT = "constant relevance"

METRICS: dict[str, Metric] = {
    "aopc_morf": Metric("area over the perturbation curve, most relevant first (Samek et al. 2017)", M, "higher", (-INF, INF), RANDOM, "S·D + 1", CONSTANT, aopc_morf),
    "aopc_lerf": Metric("the same, least relevant first", M, "lower", (-INF, INF), RANDOM, "S·D + 1", CONSTANT, aopc_lerf),
    "abpc": Metric("area between the two curves (Samek et al. 2017)", M, "higher", (-INF, INF), "0", "2·S·D + 1", CONSTANT, abpc),
    "naopc": Metric("area over the curve where f(x) is 1 and f∅ is 0", M, "higher", (-INF, INF), RANDOM, "S·D + 1 + D", "f(x) = f∅, or constant relevance", naopc),
    "insertion_auc": Metric("area under the curve of regions that come back (Petsiuk et al. 2018)", M, "higher", (0, 1), RANDOM, "S + 1", CONSTANT, insertion_auc),
    "deletion_auc": Metric("area under the curve of regions set to 0 (Petsiuk et al. 2018)", M, "lower", (0, 1), RANDOM, "S + 1", CONSTANT, deletion_auc),
    "selectivity": Metric("area under the curve of regions set to 0, of the score (Montavon et al. 2018)", M, "lower", (-INF, INF), RANDOM, "S + 1", CONSTANT, selectivity),
    "road_gap": Metric("least minus most relevant first, neighbours' interpolation (Rong et al. 2022)", M, "higher", (-1, 1), "0", "2 · levels", CONSTANT, road_gap),
    "irof": Metric("area over the relative curve of segments set to the mean (Rieger and Hansen 2020)", M, "higher", (-INF, 1), RANDOM, "segments", "f(x) = 0, or constant relevance", irof),
    "faithfulness_correlation": Metric("correlation of relevance and drops over random subsets (Bhatt et al. 2020)", M, "higher", (-1, 1), "0", "n·D + 1, shared by all methods", "no variance in sums or drops", faithfulness_correlation),
    "faithfulness_estimate": Metric("the same over single regions (Alvarez-Melis and Jaakkola 2018)", M, "higher", (-1, 1), "0", "N·D + 1, shared", "no variance", faithfulness_estimate),
    "sensitivity_n": Metric("the same over subsets of n regions, mean over n (Ancona et al. 2018)", M, "higher", (-1, 1), "0", "n·D a size, shared", "no variance", sensitivity_n),
    "infidelity": Metric("squared difference of a subset's relevance and its drop (Yeh et al. 2019)", M, "lower", (0, INF), "E[drop²], the value of R = 0", "n·D + 1, shared", "never", infidelity),
    "monotonicity": Metric("share of steps that do not lower the score, least |R| first (Arya et al. 2019)", M, "higher", (0, 1), "about 0.5", "S·D + 1", CONSTANT, monotonicity),
    "conservation_gap": Metric("|ΣR − f| / |f|", M, "lower", (0, INF), "0 ideal", "1", "never: absolute where f is 0", conservation_gap),
    "completeness_gap": Metric("|ΣR − (f(x) − f(baseline))|, relative (Sundararajan et al. 2017)", M, "lower", (0, INF), "0 ideal", "2", "never: absolute where the difference is 0", completeness_gap),
    "positivity_gap": Metric("−min R / max |R| (Montavon et al. 2017)", M, "lower", (0, 1), "0 ideal", "1", "f(x) < 0, or R = 0", positivity_gap),
    "continuity": Metric("change of relevance over change of a close input (Montavon et al. 2018)", E, "lower", (0, INF), "none", "n explanations", "never", continuity),
    "input_invariance": Metric("change of relevance by a shift that the first bias undoes (Kindermans et al. 2019)", E, "lower", (0, INF), "0 ideal", "1 explanation", "R = 0; refused where the first layer has no bias", input_invariance),
    "mprt": Metric("similarity to explanations of randomised models (Adebayo et al. 2018)", E, "lower", (-1, 1), "0 ideal", "L explanations", "a constant map", mprt),
    "emprt": Metric("rise of entropy for a random model (Hedström et al. 2024)", E, "higher", (-1, INF), "0", "1 explanation", "entropy 0", emprt),
    "data_randomisation": Metric("similarity to the explanation of the network trained on permuted labels (Adebayo et al. 2018)", E, "lower", (-1, 1), "0 ideal", "1 explanation", "a constant map", data_randomisation),
    "random_logit": Metric("similarity to the explanation of another class (Sixt et al. 2020)", E, "lower", (-1, 1), "none", "1 explanation", "a constant map; refused for a single class", random_logit),
    "max_sensitivity": Metric("largest relative change among close inputs (Yeh et al. 2019)", E, "lower", (0, INF), "0 ideal", "n explanations", "R = 0", max_sensitivity),
    "avg_sensitivity": Metric("mean relative change among close inputs (Yeh et al. 2019)", E, "lower", (0, INF), "0 ideal", "n explanations", "R = 0", avg_sensitivity),
    "local_lipschitz": Metric("largest change over the input's change (Alvarez-Melis and Jaakkola 2018)", E, "lower", (0, INF), "none", "n explanations", "never", local_lipschitz),
    "gini": Metric("sparseness, the Gini index of |R| (Chalasani et al. 2020)", (), "higher", (0, 1), "0 for uniform relevance", "0", "R = 0", _pooled(complexity.gini)),
    "entropy": Metric("complexity, the entropy of |R| (Bhatt et al. 2020)", (), "lower", (0, INF), "ln n for uniform relevance", "0", "R = 0", _pooled(complexity.entropy)),
    "relevance_mass": Metric("share of R⁺ in the mask (Arras et al. 2022)", G, "higher", (0, 1), "the mask's share of the area", "0", "empty mask, or no positive relevance", _masked(localisation.relevance_mass)),
    "inside_share": Metric("the same, as Kohlbrenner et al. (2020) name it", G, "higher", (0, 1), "the mask's share of the area", "0", "empty mask, or no positive relevance", _masked(localisation.relevance_mass)),
    "relevance_rank": Metric("share of the K most relevant places in a mask of K (Arras et al. 2022)", G, "higher", (0, 1), "the mask's share of the area", "0", "empty mask", _masked(localisation.relevance_rank)),
    "top_k": Metric("share of the k most relevant places in the mask (Theiner et al. 2021)", G, "higher", (0, 1), "the mask's share of the area", "0", "empty mask", _masked(top_k)),
    "roc_auc": Metric("area under the ROC curve of relevance against the mask", G, "higher", (0, 1), "0.5", "0", "empty or full mask", _masked(localisation.roc_auc)),
    "average_precision": Metric("mean precision over the mask's places", G, "higher", (0, 1), "the mask's share of the area", "0", "empty or full mask", _masked(localisation.average_precision)),
    "pointing_game": Metric("the maximum lies in the mask (Zhang et al. 2018)", G, "higher", (0, 1), "the mask's share of the area", "0", "empty mask", _masked(localisation.pointing_game)),
    "context_ratio": Metric("relevance outside over relevance inside, by area (Lapuschkin et al. 2016)", G, "describes", (0, INF), "1", "0", "the mask is empty or all, or nothing inside", _masked(localisation.context_ratio)),
    "focus": Metric("share of R⁺ on the tiles of the explained class (Arias-Duart et al. 2022)", G, "higher", (0, 1), "0.5", "0", "no positive relevance", _masked(localisation.focus)),
}  # fmt: skip
"""The metrics by name; a new one is a function of a `Case` and a row."""
