"""Evaluation: perturbation, subsets, robustness, randomisation and axioms, on models whose answers are known."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor, nn

import relprop
from relprop import evaluate as ev
from relprop.evaluate import randomisation, subsets
from relprop.evaluate.cases import Batch, Case, Data, case_of, methods_of
from relprop.evaluate.regions import permutations, regions_of
from relprop.evaluate.replacements import REPLACEMENTS
from relprop.evaluate.scoring import rows_at_a_time, scorer_of


class Heard:
    """What a model tells of its calls: what it kept itself would be put back."""

    def __init__(self) -> None:
        self.rows: list[Any] = []


class Counting(nn.Module):
    """A model that counts the rows it was asked for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.heard = model, Heard()
        self.eval()

    @property
    def count(self) -> int:
        return sum(self.heard.rows)

    def forward(self, x: Tensor) -> Tensor:
        self.heard.rows.append(len(x))
        return self.model(x)


def network(seed: int = 0, channels: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 3)
    ).double().eval()  # fmt: skip


def images(count: int = 3, channels: int = 1) -> Tensor:
    return torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def linear(features: int = 6) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    model = nn.Linear(features, 3).double().eval()
    x = torch.randn(4, features, dtype=torch.float64)
    relevance = x * model.weight.detach()[model(x).argmax(1)]
    return model, x, relevance


def sequential(
    model: nn.Module, x: Tensor, relevance: Tensor, other: Tensor, size: int, target: Tensor
) -> Tensor:
    """Region perturbation as it is told: one image after the other, one step after the other."""
    rows = []
    for image, own, to, chosen in zip(x, relevance.sum(1), other, target, strict=True):
        now, curve = image.clone(), [float(model(image[None])[0, chosen])]
        for start in range(0, own.numel(), size):
            for place in np.argsort(-own.flatten().numpy(), kind="stable")[start : start + size]:
                row, column = divmod(int(place), own.shape[1])
                now[:, row, column] = to[:, row, column]
            curve.append(float(model(now[None])[0, chosen]))
        rows.append(curve)
    return torch.tensor(rows, dtype=torch.float64)


def test_curves_equal_a_sequential_implementation() -> None:
    model, x = network(channels=2), images(channels=2)
    relevance, other = torch.randn_like(x), torch.rand_like(x)
    found = ev.perturb(model, x, relevance, size=5, replacement=lambda given: other)
    with torch.no_grad():
        expected = sequential(model, x, relevance, other, 5, model(x).argmax(1))
    torch.testing.assert_close(found.scores, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("score", ev.SCORES)
def test_scores_are_what_they_are_called(score: str) -> None:
    model, x, relevance = linear()
    curve = ev.perturb(model, x, relevance, target=1, steps=1, replacement=0.0, score=score).scores[:, 0]
    with torch.no_grad():
        out = model(x)
    p = out.softmax(1)[:, 1]
    known = {
        "logit": out[:, 1],
        "probability": p,
        "log_odds": torch.log(p / (1 - p)),
        "accuracy": (out.argmax(1) == 1).double(),
    }
    torch.testing.assert_close(curve, known[score])


def test_steps_that_change_nothing_have_no_row_and_the_ends_are_shared() -> None:
    x = images(2)
    x[:, :, :4] = 0
    model = Counting(network())
    trial = ev.experiment(model, x, replacement=0.0, size=1)
    before = model.count
    first = trial.curve(torch.randn_like(x))
    assert model.count - before == 2 * 32  # half of the 64 pixels are 0 already
    trial.curve(torch.randn_like(x), "lerf")
    assert model.count - before == 2 * 64
    torch.testing.assert_close(first.scores[:, -1], trial.empty())
    assert model.count == 2 + 2 * 64 + 2


def test_a_sample_scores_the_same_whatever_else_is_in_the_batch() -> None:
    model, x = network(), images(5)
    relevance = torch.randn_like(x)
    for replacement in REPLACEMENTS:
        options: dict[str, Any] = {
            "size": 9,
            "replacement": replacement,
            "draws": 2,
            "bounds": (0, 1),
            "data": x,
        }
        whole = ev.perturb(model, x, relevance, samples=range(5), **options).drawn
        alone = ev.perturb(model, x[3:4], relevance[3:4], samples=[3], **options).drawn
        torch.testing.assert_close(whole[3:4], alone, rtol=1e-9, atol=1e-9)


def test_the_seed_decides_the_draws() -> None:
    model, x = network(), images()
    relevance = torch.randn_like(x)
    one, again, other = (ev.perturb(model, x, relevance, size=16, seed=s, draws=2).scores for s in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_rows_at_a_time_do_not_matter() -> None:
    model, x = network(), images(8)
    relevance = torch.randn_like(x)
    few, found = (
        ev.perturb(model, x, relevance, size=1, replacement=0.5, rows=rows).scores for rows in (3, None)
    )
    torch.testing.assert_close(few, found, rtol=1e-10, atol=1e-10)


class Seen(nn.Module):
    """A convolution and a linear layer that keeps the strides and the number of the rows it is given."""

    def __init__(self, viewed: bool, channels: int) -> None:
        super().__init__()
        self.convolution, self.out = nn.Conv2d(channels, 4, 3, padding=1), nn.Linear(4 * 64, 3)
        self.viewed, self.heard = viewed, Heard()

    def forward(self, x: Tensor) -> Tensor:
        self.heard.rows.append((len(x), x.stride()))
        hidden = self.convolution(x).relu()
        return self.out(hidden.view(len(x), -1) if self.viewed else hidden.flatten(1))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_run_channels_last_unless_the_model_refuses(channels: int) -> None:
    x, relevance = torch.rand(2, channels, 8, 8), torch.randn(2, channels, 8, 8)
    found = {}
    for viewed, last in ((False, True), (True, False)):
        torch.manual_seed(0)
        model = Seen(viewed, channels).eval()
        found[viewed] = ev.perturb(model, x, relevance, size=1, draws=1).scores
        assert (model.heard.rows[-1][1][1] == 1) is last
    torch.testing.assert_close(found[False], found[True], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "rows"), [((1, 28, 28), 64), ((3, 64, 64), 64), ((3, 224, 224), 4)])
def test_the_batch_of_rows_follows_from_the_shapes_alone(shape: tuple[int, ...], rows: int) -> None:
    scorer = scorer_of(nn.Flatten().eval(), torch.rand(1, *shape))
    assert rows_at_a_time(scorer) == rows
    ids = scorer_of(
        nn.Sequential(nn.Embedding(9, 2), nn.Flatten()).eval(), torch.zeros(1, 32, dtype=torch.long)
    )
    assert rows_at_a_time(ids) == 64


def test_the_steepest_order_of_a_linear_model_is_its_relevance() -> None:
    model, x, relevance = linear()
    trial = ev.experiment(model, x, replacement=0.0, size=1)
    best = trial.curve(relevance)
    assert bool((ev.abpc(best.scores, trial.curve(relevance, "lerf").scores) > 0).all())
    for seed in range(5):
        other = trial.curve(torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)))
        assert bool((best.aopc >= other.aopc - 1e-12).all())


def test_least_relevant_first_is_most_relevant_first_of_the_negative() -> None:
    model, x, relevance = linear()
    trial = ev.experiment(model, x, replacement=0.0, size=1)
    tied = (4 * relevance).round()
    assert torch.equal(trial.curve(tied, "lerf").scores, trial.curve(-tied).scores)


def test_bringing_back_ends_at_the_input() -> None:
    model, x, relevance = linear()
    found = ev.perturb(model, x, relevance, replacement=0.0, size=1, reveal=True)
    with torch.no_grad():
        torch.testing.assert_close(found.scores[:, -1], model(x).amax(1))
        torch.testing.assert_close(
            found.scores[:, 0], model(0 * x).gather(1, model(x).argmax(1)[:, None])[:, 0]
        )


def test_a_shuffled_relevance_scores_like_random() -> None:
    torch.manual_seed(0)
    model = nn.Linear(40, 1).double().eval()
    x = torch.randn(200, 40, dtype=torch.float64)
    relevance = x * model.weight.detach()
    shuffled = torch.stack([row[torch.randperm(40)] for row in relevance])
    trial = ev.experiment(model, x, replacement=0.0, size=4)
    own, mixed, chance = (
        trial.curve(relevance).aopc,
        trial.curve(shuffled).aopc,
        trial.curve(relevance, "random").aopc,
    )
    error = float((mixed - chance).std()) / 200**0.5
    assert abs(float((mixed - chance).mean())) < 3 * error
    assert float((own - chance).mean()) > 20 * error


def test_regions_by_number_are_replaced_together_and_minus_one_never() -> None:
    model, x, relevance = linear()
    words = torch.tensor([0, 0, 1, 1, 2, -1])
    found = ev.perturb(model, x, relevance, regions=words, steps=3, replacement=0.0)
    assert found.scores.shape == (4, 4)
    with torch.no_grad():
        left = torch.where(words == -1, x, torch.zeros_like(x))
        expected = model(left).gather(1, model(x).argmax(1)[:, None])[:, 0]
    torch.testing.assert_close(found.scores[:, -1], expected)


def test_patches_that_the_border_cuts_are_dropped_padded_or_averaged() -> None:
    x = images()
    assert [regions_of(x, 3, partial=way).count for way in ("drop", "pad", "mean")] == [4, 9, 9]
    ones = torch.ones_like(x)
    assert regions_of(x, 3, partial="pad").scores(ones)[0].tolist() == [9, 9, 6, 9, 9, 6, 6, 6, 4]
    assert regions_of(x, 3, partial="mean").scores(ones)[0].tolist() == [1] * 9
    assert int((regions_of(x, 3).labels < 0).sum()) == 64 - 36


def test_samples_may_have_different_numbers_of_regions() -> None:
    model, x, relevance = linear()
    maps = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 1], [0, 1, 2, 0, 1, 2], [0, 1, 2, 2, 2, 2]])
    found = ev.perturb(model, x, relevance, regions=maps, steps=3, replacement=0.0)
    with torch.no_grad():
        expected = model(0 * x).gather(1, model(x).argmax(1)[:, None])[:, 0]
    torch.testing.assert_close(found.scores[:, -1], expected)
    torch.testing.assert_close(found.scores[1, 2], found.scores[1, 3])


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 3, dtype=torch.float64)
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        held = self.table(input_ids) * attention_mask[..., None]
        return {"logits": held.sum(1)}


def test_token_ids_are_replaced_by_an_id_and_masks_go_along() -> None:
    torch.manual_seed(0)
    model = Reader()
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    inputs = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}
    relevance = relprop.explain(model, inputs, target=1).relevance
    found = ev.perturb(model, inputs, relevance, target=1, steps=2, regions="tokens", replacement=0)
    first = relevance["input_ids"].argmax(1)
    with torch.no_grad():
        changed = ids.clone()
        changed[torch.arange(2), first] = 0
        expected = model(changed, inputs["attention_mask"])["logits"][:, 1]
    torch.testing.assert_close(found.scores[:, 1], expected)


def test_the_model_is_called_as_it_is_and_left_as_it_was() -> None:
    model, x = network(), images()
    before = copy.deepcopy(model.state_dict())
    hooks = [len(m._forward_hooks) for m in model.modules()]
    batch = Batch(model, Data(x), {"size": 16, "replacement": 0.0}, 0)
    case = case_of(batch, methods_of(["lrp"])[0])
    for name in ("aopc_morf", "mprt", "emprt", "random_logit", "input_invariance", "max_sensitivity"):
        assert ev.METRICS[name].run(case).shape == (3,)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert hooks == [len(m._forward_hooks) for m in model.modules()] and not model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_road_equals_the_sparse_solution(share: float) -> None:
    image = torch.rand(1, 12, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gone = torch.rand(12, 9, generator=torch.Generator().manual_seed(1)) < share
    found = ev.impute_noisy_linear(image[None], gone[None], noise=0.0)[0, 0]
    high, wide = gone.shape
    places = [tuple(place) for place in gone.nonzero().tolist()]
    number = {place: index for index, place in enumerate(places)}
    matrix, right = lil_matrix((len(places), len(places))), np.zeros(len(places))
    for (row, column), index in number.items():
        for dr in (-1, 0, 1):
            for dc in (-1, 0, 1):
                near = (row + dr, column + dc)
                if (dr, dc) == (0, 0) or not (0 <= near[0] < high and 0 <= near[1] < wide):
                    continue
                weight = 1 / 6 if 0 in (dr, dc) else 1 / 12
                matrix[index, index] += weight
                if near in number:
                    matrix[index, number[near]] -= weight
                else:
                    right[index] += weight * float(image[0][near])
    np.testing.assert_allclose(found[gone].numpy(), np.atleast_1d(spsolve(matrix.tocsr(), right)), rtol=1e-9)
    assert torch.equal(found[~gone], image[0][~gone])


def test_road_fills_an_image_without_pixels_with_the_mean() -> None:
    x = images(2)
    gone = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]).bool()
    found = ev.impute_noisy_linear(x, gone, noise=0.0, mean=0.25)
    assert bool((found[0] == 0.25).all()) and torch.equal(found[1], x[1])
    noisy = ev.impute_noisy_linear(x, gone, noise=0.1, mean=0.25)
    assert 0.05 < float(noisy[0].std()) < 0.2 and torch.equal(noisy[1], x[1])


def test_exact_relevance_of_a_linear_model_is_perfectly_faithful() -> None:
    model, x, relevance = linear()
    batch = Batch(model, Data(x), {"replacement": 0.0}, 0)
    case = Case(batch, methods_of(["gradient_x_input"])[0], relevance)
    for name in ("faithfulness_correlation", "faithfulness_estimate", "sensitivity_n"):
        options = {} if name == "faithfulness_estimate" else {"subsets": 12}
        torch.testing.assert_close(ev.METRICS[name].run(case, **options), torch.ones(4, dtype=torch.float64))
    assert float(ev.METRICS["infidelity"].run(case, subsets=12).max()) < 1e-20


def test_subset_scores_are_shared_by_methods() -> None:
    model = Counting(network())
    batch = Batch(model, Data(images()), {"regions": 2, "replacement": 0.0}, 0)
    used = []
    for name in ("gradient", "gradient_x_input", "sensitivity"):
        case = case_of(batch, methods_of([name])[0])
        before = model.count
        for metric in ("faithfulness_correlation", "infidelity"):
            ev.METRICS[metric].run(case, subsets=10)
        used.append(model.count - before)
    assert used == [30, 0, 0]


def test_a_method_that_returns_the_input_is_caught_by_randomisation() -> None:
    model, x = network(), images()
    batch = Batch(model, Data(x), {}, 0)

    def edges(model: Any, inputs: Tensor, target: Any) -> Tensor:
        return F.pad(inputs.diff(dim=3).abs(), (0, 1))

    cheat, honest = methods_of({"edges": edges, "gradient_x_input": "gradient_x_input"}).copy()
    for metric in ("mprt", "random_logit"):
        caught, passed = (float(ev.METRICS[metric].run(case_of(batch, m)).mean()) for m in (cheat, honest))
        assert caught > 0.999 and passed < 0.7


def test_randomisation_goes_layer_by_layer_from_either_end() -> None:
    model, x = network(), images()
    scorer = Batch(model, Data(x), {}, 0).scorer()
    method = methods_of(["gradient"])[0]
    relevance = method.explain(model, x, None)
    assert randomisation.layers_of(model) == ["0", "4"]
    for cascade in (True, False):
        for order, first in (("top_down", "4"), ("bottom_up", "0")):
            curve = randomisation.mprt(method.explain, model, scorer, relevance, order=order, cascade=cascade)
            assert curve.shape == (3, 2)
            twin = next(randomisation.randomised(model, [first]))
            changed = {n for n, v in twin.state_dict().items() if not torch.equal(v, model.state_dict()[n])}
            assert changed == {f"{first}.weight", f"{first}.bias"}
    shuffled = next(randomisation.randomised(model, ["4"], how="permute"))
    torch.testing.assert_close(
        shuffled[4].weight.flatten().sort().values, model[4].weight.flatten().sort().values
    )


def test_axioms_hold_where_they_should_and_fail_where_they_should() -> None:
    model, x = network(), images()
    batch = Batch(model, Data(x), {}, 0)

    def asked(name: str, check: str, **options: Any) -> ev.Checked:
        return ev.AXIOMS[check](case_of(batch, methods_of({name: name})[0]).explained, **options)

    assert bool(asked("gradient", "input_invariance").passed.all())
    assert not bool(asked("gradient_x_input", "input_invariance").passed.any())
    assert bool(asked("integrated_gradients", "completeness", tolerance=0.05).passed.all())
    assert not bool(asked("gradient", "completeness").passed.any())
    assert bool(asked("lrp:deep_taylor", "positivity").passed.all())
    assert not bool(asked("gradient", "positivity").passed.all())
    assert bool(asked("lrp:epsilon", "dummy").passed.all())
    bare = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)).double().eval()
    with torch.no_grad():
        for weight in bare.parameters():
            weight.abs_()  # a score far from 0, of which the stabiliser takes nothing to speak of
    case = case_of(Batch(bare, Data(torch.rand(3, 6).double()), {}, 0), methods_of(["lrp:epsilon"])[0])
    assert bool(ev.AXIOMS["conservation"](case.explained).passed.all())


def test_symmetric_inputs_get_equal_relevance() -> None:
    model = nn.Linear(3, 2).double().eval()
    with torch.no_grad():
        model.weight[:, 1] = model.weight[:, 0]
    x = torch.tensor([[1.0, 1.0, 2.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    case = case_of(Batch(model, Data(x), {}, 0), methods_of(["gradient_x_input"])[0])
    found = ev.AXIOMS["symmetry"](case.explained, pairs=[(0, 1), (0, 2)])
    assert float(found.value[0]) == 0 and bool(torch.isnan(found.value[1]))


def test_every_metric_is_declared_and_runs_or_says_why_not() -> None:
    model, x = network(), images()
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[:, 2:5, 2:5] = True
    batch = Batch(model, Data(x, mask=mask, bounds=(0, 1)), {"regions": 2, "draws": 2}, 0)
    case = case_of(batch, methods_of(["gradient_x_input"])[0])
    few = {"subsets": 5}, {"samples": 2}
    for name, metric in ev.METRICS.items():
        assert metric.direction in ("higher", "lower", "describes") and set(metric.needs) <= {
            "model",
            "explain",
            "mask",
        }
        assert metric.about and metric.undefined and metric.chance and metric.rows
        if name == "focus":
            continue
        options = few[0] if name in ("faithfulness_correlation", "sensitivity_n", "infidelity") else {}
        options = few[1] if "sensitivity" in name and "_n" not in name else options
        options = {"other": network(seed=1)} if name == "data_randomisation" else options
        found = metric.run(case, **options)
        assert found.shape == (3,) and found.dtype == torch.float64
        low, high = metric.range
        assert bool(((found >= low - 1e-9) & (found <= high + 1e-9) | torch.isnan(found)).all()), name


def test_undefined_is_nan_and_never_zero() -> None:
    zero, flat = torch.zeros(1, 4, 4), torch.ones(1, 4, 4)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    some = mask.clone()
    some[0, 0, 0] = True
    for value in (
        ev.gini(zero), ev.entropy(zero), ev.relevance_mass(flat, mask), ev.relevance_mass(zero, some), ev.relevance_rank(flat, mask),
        ev.roc_auc(flat, mask), ev.roc_auc(flat, ~mask), ev.pointing_game(flat, mask), ev.context_ratio(flat, ~mask),
        ev.context_ratio(flat, mask), ev.spearman(flat, zero), ev.normalised([[1.0, 1.0]], [1.0])[0],
    ):  # fmt: skip
        assert bool(torch.isnan(value).all())
    assert float(ev.roc_auc(flat, some)) == 0.5 and float(ev.context_ratio(flat, some)) == 1
    assert float(ev.relevance_mass(flat, some)) == 1 / 16


def test_similarity_of_structure_agrees_with_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a, b = (
        torch.randn(1, 12, 10, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
        for s in (0, 1)
    )
    b = a + 0.3 * b
    expected = metrics.structural_similarity(
        (a / a.abs().max())[0].numpy(), (b / b.abs().max())[0].numpy(), win_size=7, data_range=2.0
    )  # fmt: skip
    assert float(ev.ssim(a, b)) == pytest.approx(expected, rel=1e-9)


def test_localisation_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    relevance = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(0)).double().round(decimals=1)
    mask = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.3
    for function, other in (
        (ev.roc_auc, metrics.roc_auc_score),
        (ev.average_precision, metrics.average_precision_score),
    ):
        expected = [
            other(m.flatten().numpy(), r.flatten().numpy()) for m, r in zip(mask, relevance, strict=True)
        ]
        np.testing.assert_allclose(function(relevance, mask), expected, rtol=1e-12)


def test_random_orders_are_permutations_of_each_sample() -> None:
    found = permutations([4, 9], 6, seed=0)
    assert all(sorted(row) == list(range(6)) for row in found.tolist())
    assert torch.equal(found[1:], permutations([9], 6, seed=0))


MODEL, X, R = linear()
BAD = {
    "more steps than regions": ({"steps": 7, "replacement": 0.0}, "steps: 7"),
    "unknown regions": ({"regions": "blobs"}, "regions: 'blobs'"),
    "unknown order": ({"order": "descending", "replacement": 0.0}, "order: 'descending'"),
    "unknown score": ({"score": "energy"}, "score: 'energy'"),
    "unknown replacement": ({"replacement": "grey"}, "replacement: 'grey'"),
    "replacement out of range": ({"replacement": 9.0, "bounds": (-4, 4)}, "replacement: 9.0 is outside"),
    "replacement far out of range": ({"replacement": 1e4}, "replacement: 10000.0 is outside"),
    "replacement that is no number": ({"replacement": float("nan")}, "replacement: nan is not a number"),
    "a seed below 0": ({"seed": -1}, "seed: -1"),
    "broken bounds": ({"bounds": (0, 1)}, "bounds: inputs from"),
    "blur of a table": ({"replacement": "blur"}, "replacement: a blur"),
    "no draws": ({"draws": 0}, "draws: 0"),
    "wrong shape": ({"relevance": R[:, :3], "replacement": 0.0}, "relevance: shape (4, 3)"),
    "not a number": ({"relevance": R * torch.nan}, "relevance: 24 of 24 values are NaN"),
    "constant relevance": ({"relevance": torch.ones_like(R), "replacement": 0.0}, "relevance: constant"),
    "single output": ({"model": nn.Linear(6, 1).double().eval(), "score": "probability"}, "score: 'probability' of a model with a single"),
    "training mode": ({"model": nn.Linear(6, 2).double()}, "training mode"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name: str) -> None:
    options, message = BAD[name]
    options = {"model": MODEL, "relevance": R, **options}
    with pytest.raises(relprop.errors.InvalidInput) as caught:
        ev.perturb(options.pop("model"), X, options.pop("relevance"), **options)
    assert message in str(caught.value).splitlines()[0] and len(str(caught.value).splitlines()) <= 2


def test_a_single_class_and_missing_masks_are_named() -> None:
    model = nn.Linear(6, 1).double().eval()
    case = case_of(Batch(model, Data(X), {}, 0), methods_of(["gradient"])[0])
    with pytest.raises(relprop.errors.InvalidInput, match="another class"):
        ev.METRICS["random_logit"].run(case)
    with pytest.raises(relprop.errors.InvalidInput, match="mask: this metric needs"):
        ev.METRICS["roc_auc"].run(case)


def test_constant_relevance_can_be_marked() -> None:
    relevance = R.clone()
    relevance[2] = 1
    found = ev.perturb(MODEL, X, relevance, replacement=0.0, constant="nan")
    assert torch.isnan(found.aopc).tolist() == [False, False, True, False]


def test_subsets_are_refused_where_there_is_no_choice() -> None:
    with pytest.raises(relprop.errors.InvalidInput, match="subsets"):
        subsets.random_subsets([0], 4, 5)
