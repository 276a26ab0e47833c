"""Every known answer of ../shared/methods/known_answers_evaluation.json in the order of its sections."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relprop import analyse
from relprop import evaluate as ev
from relprop.evaluate import arithmetic, localisation, stability, statistics, subsets
from relprop.evaluate.arrays import order, rank_of
from relprop.evaluate.curves import abpc
from relprop.evaluate.regions import ordered, regions_of

FILE = Path(__file__).resolve().parents[2] / "shared" / "methods" / "known_answers_evaluation.json"
if not FILE.is_file():
    pytest.skip(f"the known answers are not here: {FILE}", allow_module_level=True)

ALL = {case["name"]: case for case in json.loads(FILE.read_text())}
Check = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]
CASES: dict[str, Check] = {}


def case(check: Check) -> Check:
    """The function checks the case of its name; it is called with its inputs, parameters and expected values."""
    CASES[check.__name__] = check
    return check


@pytest.mark.parametrize("name", ALL)
def test_known_answer(name: str) -> None:
    found = ALL[name]
    CASES[name](found["inputs"], found["parameters"], found["expected"])


def test_every_case_is_checked() -> None:
    assert set(ALL) == set(CASES)


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-10, atol=1e-12)


def linear(weights: list[float], bias: float = 0.0) -> nn.Module:
    layer = nn.Linear(len(weights), 1).double().eval()
    with torch.no_grad():
        layer.weight.copy_(double([weights]))
        layer.bias.fill_(bias)
    return layer


@case
def aopc_morf(inputs: Any, parameters: Any, expected: Any) -> None:
    same(ev.aopc(inputs["scores"]), expected["per_image"])
    same(ev.aopc(inputs["scores"]).mean(), expected["aopc"])
    same(ev.aopc(inputs["scores"], first=False).mean(), expected["aopc_excluding_k0"])


@case
def _abpc(inputs: Any, parameters: Any, expected: Any) -> None:
    same(abpc(inputs["morf"], inputs["lerf"]).mean(), expected["abpc"])
    same(ev.aopc(inputs["morf"]).mean(), expected["aopc_morf"])
    same(ev.aopc(inputs["lerf"]).mean(), expected["aopc_lerf"])


CASES["abpc"] = CASES.pop("_abpc")


@case
def curve_auc_trapezoid(inputs: Any, parameters: Any, expected: Any) -> None:
    curve = [inputs["scores"]]
    same(ev.auc(curve)[0], expected["auc_trapezoid"])
    same(ev.auc(curve)[0] * 4, expected["quantus_np_trapz_dx1"])
    same(curve[0][0] - ev.aopc(curve)[0], expected["mean_of_points"])


@case
def normalised_curve(inputs: Any, parameters: Any, expected: Any) -> None:
    same(ev.normalised([inputs["scores"]], [inputs["f_empty"]])[0], expected["curve"])
    same(ev.naopc([inputs["scores"]], [inputs["f_empty"]])[0], expected["naopc"])


@case
def order_with_ties_and_negatives(inputs: Any, parameters: Any, expected: Any) -> None:
    values = double(inputs["relevance"]).reshape(1, -1)
    same(order(values)[0], expected["morf"])
    same(order(values, descending=False)[0], expected["lerf"])
    same(order(values.abs())[0], expected["morf_abs"])


@case
def cumulative_mask(inputs: Any, parameters: Any, expected: Any) -> None:
    x, relevance = double([inputs["x"]]), double([inputs["relevance"]])
    placed = order(relevance)
    same(placed[0], expected["order"])
    same(rank_of(placed)[0], expected["rank"])
    rows: list[Tensor] = []

    class Keeping(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            rows.extend(values)
            return values.sum(1, keepdim=True)

    ev.perturb(Keeping().eval(), x, relevance, regions="pixels", steps=4, replacement=inputs["baseline"])
    kept = torch.stack(rows)
    # the unchanged input, then the steps in their order
    same(kept, expected["masked"])


@case
def region_sums_and_order(inputs: Any, parameters: Any, expected: Any) -> None:
    relevance = double([inputs["relevance"]])
    patches = regions_of(torch.zeros(1, 4, 4), parameters["patch"])
    sums = patches.scores(relevance)
    same(sums[0], expected["sums"])
    rank = ordered(sums, patches.present(1))
    same(rank[0].argsort(), expected["morf"])


@case
def linear_model_pixel_flipping(inputs: Any, parameters: Any, expected: Any) -> None:
    model, x = linear(inputs["w"], inputs["bias"]), double([inputs["x"]])
    relevance = x * double(inputs["w"])
    same(relevance[0], expected["relevance"])
    for way in ("morf", "lerf"):
        found = ev.perturb(model, x, relevance, order=way, steps=4, replacement=inputs["baseline"])
        same(found.scores[0], expected[f"{way}_scores"])


@case
def road_imputation_centre(inputs: Any, parameters: Any, expected: Any) -> None:
    image = double(inputs["image"])
    missing = torch.zeros_like(image, dtype=torch.bool)
    for row, column in inputs["missing"]:
        missing[row, column] = True
    found = ev.impute_noisy_linear(image[None, None], missing[None], noise=parameters["noise"])[0, 0]
    same(found[missing], expected["values"])
    same(found[~missing], image[~missing])


CASES["road_imputation_corner_pair"] = road_imputation_centre


@case
def gini_sparseness(inputs: Any, parameters: Any, expected: Any) -> None:
    same(ev.gini([inputs["relevance"]])[0], expected["gini"])
    same(ev.gini([[1.0, 1, 1, 1]])[0], expected["uniform_vector"])
    same(ev.gini([[0.0, 1, 0, 0]])[0], expected["one_hot_of_4"])


@case
def entropy_complexity(inputs: Any, parameters: Any, expected: Any) -> None:
    same(ev.entropy([inputs["relevance"]])[0], expected["entropy"])
    same(ev.entropy([[1.0, 1, 1, 1]])[0], expected["uniform_4"])


@case
def effective_complexity_threshold(inputs: Any, parameters: Any, expected: Any) -> None:
    same(ev.effective_complexity([inputs["relevance"]], parameters["eps"])[0], expected["count"])


@case
def conservation_gap(inputs: Any, parameters: Any, expected: Any) -> None:
    relevance = double([inputs["relevance"]])
    same(relevance.sum(), expected["sum"])
    same(ev.conservation_gap(relevance, double([inputs["score"]]))[0], expected["relative"])


@case
def monotonicity(inputs: Any, parameters: Any, expected: Any) -> None:
    scores = [inputs["predictions_adding_features_in_ascending_relevance"]]
    found = float(subsets.monotonicity_of(scores)[0])
    same(found, expected["fraction_nonnegative_steps"])
    assert (found == 1) == expected["arya"]
    same(
        ev.spearman([inputs["relevance_sorted_ascending"]], scores)[0],
        expected["spearman_relevance_vs_prediction"],
    )


def indicator(chosen: list[list[int]], count: int) -> Tensor:
    masks = torch.zeros(len(chosen), count, dtype=torch.bool)
    for row, members in enumerate(chosen):
        masks[row, members] = True
    return masks


@case
def faithfulness_correlation_fixed_subsets(inputs: Any, parameters: Any, expected: Any) -> None:
    relevance, drops = double([inputs["relevance"]]), double([inputs["score_drops"]])
    masks = indicator(inputs["subsets"], relevance.shape[1])
    same(subsets.sums(relevance, masks)[0], expected["sums"])
    same(subsets.subset_correlation(relevance, masks, drops)[0], expected["pearson"])


@case
def sensitivity_n_exhaustive(inputs: Any, parameters: Any, expected: Any) -> None:
    weights = double(inputs["w"])

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ weights + x[:, 0] * x[:, 1]

    x = double([inputs["x"]])
    trial = ev.experiment(Model().eval(), x, replacement=inputs["baseline"])
    for size, value in expected.items():
        masks = indicator([list(c) for c in itertools.combinations(range(4), int(size))], 4)
        lost = subsets.drops(trial, masks)
        same(subsets.subset_correlation(double([inputs["relevance"]]), masks, lost)[0], value)


@case
def infidelity(inputs: Any, parameters: Any, expected: Any) -> None:
    predicted = (double(inputs["perturbations"]) @ double(inputs["relevance"]))[None]
    drops = double([inputs["score_drops"]])
    same(subsets.infidelity_of(predicted, drops)[0], expected["infidelity"])
    same(subsets.infidelity_of(predicted, drops, scaled=True)[0], expected["infidelity_scaled"])


@case
def max_sensitivity_and_lipschitz(inputs: Any, parameters: Any, expected: Any) -> None:
    relevance, perturbed = double([inputs["explanation"]]), double([inputs["perturbed"]])
    largest, average = stability.sensitivity(relevance, perturbed)
    same(largest[0], expected["max_sensitivity"])
    same(average[0], expected["avg_sensitivity"])
    away = (perturbed - relevance[:, None]).norm(dim=2)
    moved = double([inputs["input_shifts"]]).norm(dim=2)
    same(stability.lipschitz(away, moved)[0], expected["lipschitz"])


@case
def mprt_rank_similarity(inputs: Any, parameters: Any, expected: Any) -> None:
    maps = double([inputs["original"]]), double([inputs["randomised"]])
    same(ev.spearman(*maps)[0], expected["spearman"])
    same(ev.spearman_abs(*maps)[0], expected["spearman_abs"])


@case
def relevance_mass_and_rank_accuracy(inputs: Any, parameters: Any, expected: Any) -> None:
    pair = double([inputs["relevance"]]), torch.tensor([inputs["mask"]])
    for pool in ("signed", "positive", "abs"):
        same(ev.relevance_mass(*pair, pool=pool)[0], expected[f"mass_{pool}"])
    same(ev.relevance_rank(*pair)[0], expected["rank"])
    same(ev.roc_auc(*pair)[0], expected["roc_auc"])


@case
def channel_pooling(inputs: Any, parameters: Any, expected: Any) -> None:
    for how, value in expected.items():
        same(ev.pool_channels(double([inputs["relevance_chw"]]), how)[0], value)


@case
def pointing_game(inputs: Any, parameters: Any, expected: Any) -> None:
    pair = double(inputs["maps"]), torch.tensor(inputs["masks"])
    for ties in ("first", "any"):
        hits = ev.pointing_game(*pair, ties=ties)
        same(hits, expected[f"hits_{ties}"])
        same(hits.mean(), expected[f"accuracy_{ties}"])


@case
def top_k_intersection(inputs: Any, parameters: Any, expected: Any) -> None:
    pair = double([inputs["relevance"]]), torch.tensor([inputs["mask"]])
    same(ev.top_k(*pair, k=parameters["k"])[0], expected["tki"])
    same(order(pair[0].flatten(1))[0], expected["order"])


@case
def toy_lstm_metrics(inputs: Any, parameters: Any, expected: Any) -> None:
    found = arithmetic.agreement(
        inputs["n_a"], inputs["n_b"], inputs["R_a"], inputs["R_b"], inputs["R_other_abs_sum"]
    )
    same(found, [expected["rho_a"], expected["rho_b"], expected["share"]])


@case
def context_mu(inputs: Any, parameters: Any, expected: Any) -> None:
    pair = double([inputs["relevance"]]), torch.tensor([inputs["bbox_mask"]])
    same(ev.context_ratio(*pair, pool="signed")[0], expected["mu_signed"])
    same(ev.context_ratio(*pair)[0], expected["mu_positive"])
    same(ev.context_ratio(*pair, area=False)[0], expected["sum_ratio_positive"])


@case
def context_per_class_table(inputs: Any, parameters: Any, expected: Any) -> None:
    table = localisation.by_class(inputs["mu"], inputs["classes"])
    accuracy = inputs["accuracy"]
    same([table[name] for name in sorted(accuracy)], [expected[name] for name in sorted(accuracy)])
    found = ev.pearson([[table[name] for name in accuracy]], [list(accuracy.values())])
    same(found[0], expected["pearson_context_vs_accuracy"])


@case
def laplacian_eigengap(inputs: Any, parameters: Any, expected: Any) -> None:
    values = analyse.laplacian_spectrum(double(inputs["affinity"]))
    same(values, expected["eigenvalues"])
    same(values.diff(), expected["gaps"])
    assert analyse.eigengap(values) == expected["k"]


@case
def knn_affinity(inputs: Any, parameters: Any, expected: Any) -> None:
    affinity = analyse.knn_affinity(double(inputs["points_1d"])[:, None], parameters["k"], "mean")
    same(double(affinity.toarray()), expected["affinity"])
    same(double(affinity.sum(0)), expected["degrees"])
    same(double(analyse.laplacian_spectrum(affinity)), expected["laplacian_eigenvalues"])


@case
def two_components(inputs: Any, parameters: Any, expected: Any) -> None:
    values = analyse.laplacian_spectrum(double(inputs["affinity"]))
    same(values, expected["eigenvalues"])
    assert int((values.abs() < 1e-9).sum()) == expected["multiplicity_of_zero"]


@case
def fda_tau(inputs: Any, parameters: Any, expected: Any) -> None:
    for tau, name in (("max", "max_eig"), ("trace", "trace"), ("ratio", "trace_ratio")):
        same(double(analyse.fisher_discriminant(inputs["points"], inputs["labels"], tau)), expected[name])


@case
def p_clarc_projection(inputs: Any, parameters: Any, expected: Any) -> None:
    direction = double(inputs["direction"])
    found = analyse.project_out(double(inputs["activations"]), direction, double(inputs["reference"]))
    same(found, expected["projected"])
    same(found @ direction, expected["dot_after"])


@case
def cav_signal_pattern(inputs: Any, parameters: Any, expected: Any) -> None:
    found = analyse.signal_pattern(double(inputs["activations"]), double(inputs["artifact_label"]))
    same(found, expected["pattern"])
    same(found / found.norm(), expected["unit"])


@case
def map_similarity(inputs: Any, parameters: Any, expected: Any) -> None:
    maps = double([inputs["a"]]), double([inputs["b"]])
    for name, function in (("cosine", ev.cosine), ("pearson", ev.pearson), ("spearman", ev.spearman), ("kendall_tau_b", ev.kendall)):  # fmt: skip
        same(function(*maps)[0], expected[name])


@case
def paired_test(inputs: Any, parameters: Any, expected: Any) -> None:
    found = statistics.difference(inputs["method_a"], inputs["method_b"])
    same([found.t, found.t_p, found.mean], [expected["t"], expected["p"], expected["mean_difference"]])
    same(found.wilcoxon, expected["wilcoxon_p"])


@case
def average_rank_friedman(inputs: Any, parameters: Any, expected: Any) -> None:
    found = statistics.friedman(inputs["scores_images_by_methods"])
    same(found.mean, expected["mean_ranks"])
    same([found.chi2, found.p], [expected["chi2"], expected["p"]])


@case
def document_vector(inputs: Any, parameters: Any, expected: Any) -> None:
    given = inputs["relevance"], inputs["word_vectors"]
    same(analyse.document_vectors(*given), expected["vector"])
    same(analyse.document_vectors(*given, normalise=True), expected["unit"])
    same(analyse.document_vectors(np.ones(3), inputs["word_vectors"]), expected["uniform"])


@case
def document_vector_elementwise(inputs: Any, parameters: Any, expected: Any) -> None:
    same(
        analyse.document_vectors(inputs["elementwise_relevance"], inputs["word_vectors"]), expected["vector"]
    )


@case
def tfidf(inputs: Any, parameters: Any, expected: Any) -> None:
    counts, frequency = inputs["document_counts"], inputs["document_frequency"]
    found = analyse.tfidf(list(counts.values()), inputs["documents"], [frequency[word] for word in counts])
    same(found, [expected[word] for word in counts])


@case
def knn_accuracy(inputs: Any, parameters: Any, expected: Any) -> None:
    given = inputs["train"], inputs["labels"], inputs["test"]
    same(analyse.knn(*given, parameters["k"]), expected["predicted"])
    same(analyse.knn_accuracy(*given, inputs["test_labels"], parameters["k"]), expected["accuracy"])


@case
def trial_to_trial_correlation(inputs: Any, parameters: Any, expected: Any) -> None:
    pairs = analyse.trial_correlation(inputs["trials"])
    same(pairs, expected["pairs"])
    same(pairs.mean(), expected["mean"])
    same(analyse.fisher_mean(pairs), expected["fisher_z_mean"])


@case
def frame_relevance_border(inputs: Any, parameters: Any, expected: Any) -> None:
    found = analyse.along_time(inputs["frame_sums"], border=parameters["border_frames"])
    same(found.share, expected["share"])
    same(found.border, expected["border_ratio"])
    same(found.centroid, expected["temporal_centroid"])


@case
def object_relevance_share(inputs: Any, parameters: Any, expected: Any) -> None:
    masks = {name: [mask] for name, mask in inputs["masks"].items()}
    for name, region in analyse.regions([inputs["relevance"]], masks).items():
        same(region.share[0], expected[name])
        same(region.enrichment[0], expected[f"{name}_enrichment"])
