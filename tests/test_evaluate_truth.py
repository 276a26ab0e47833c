"""Data where the truth is known: sums of two numbers, rendered scenes; and Quantus over relprop's methods."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import relprop
from relprop import evaluate as ev
from relprop.evaluate import digits, planted, scenes
from relprop.evaluate.arithmetic import Adder, Sums, arithmetic, steps_occluded, sums
from relprop.evaluate.quantus import QuantusFunction, quantus_scores


def test_subtraction_separates_the_methods() -> None:
    found = {one.method: one for one in arithmetic(("subtract",), count=100)}
    whole, gradient, occlusion = (found[name] for name in ("lrp:lrp_all", "gradient_x_input", "occlusion"))
    assert whole.first > 0.97 and whole.second < -0.97 and whole.share > 0.95 and whole.gap < 0.1
    assert -0.85 < gradient.second < -0.5 and -0.65 < occlusion.second < -0.3
    assert found["lrp:lrp_half"].second > -0.8 and abs(found["lrp:lrp_prop"].second) < 0.3


def test_sums_mark_two_steps_and_add_or_subtract_them() -> None:
    for task, sign in (("add", 1), ("subtract", -1)):
        part: Sums = sums(50, 6, task, seed=3)
        every = torch.arange(50)
        assert bool((part.a < part.b).all()) and bool((part.x[:, :, 1].sum(1) == 2).all())
        assert bool((part.x[every, part.a, 1] == 1).all())
        torch.testing.assert_close(part.result, part.x[every, part.a, 0] + sign * part.x[every, part.b, 0])
    with pytest.raises(relprop.errors.InvalidInput, match="task: 'divide'"):
        sums(1, 4, "divide", 0)


def test_occlusion_of_steps_is_what_the_score_loses() -> None:
    model, x = Adder().eval(), torch.randn(3, 5, 2)
    found = steps_occluded(model, x, None)
    changed = x.clone()
    changed[:, 2] = 0
    with torch.no_grad():
        torch.testing.assert_close(found[:, 2, 0], (model(x) - model(changed))[:, 0])
    assert bool((found[:, :, 1] == 0).all())


def test_scenes_have_the_red_object_in_the_mask_and_repeat_by_seed() -> None:
    one, again = scenes.scenes(20, seed=1), scenes.scenes(20, seed=1)
    assert torch.equal(one.images, again.images) and set(one.labels.tolist()) == {0, 1, 2}
    assert bool((one.images >= 0).all()) and bool((one.images <= 1).all())
    for image, mask, every in zip(one.images, one.single, one.every, strict=True):
        assert (
            30 < int(mask.sum()) < 130
            and bool((every | ~mask).all())
            and int(every.sum()) > 2 * int(mask.sum()) - 60
        )
        assert bool((image[0][mask] > 0.75).all()) and bool((image[0][~mask] < 0.4).all())


class Redness(nn.Module):
    """A model whose decision lies in the red object alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red = torch.relu(x[:, 0] - 0.5).flatten(1).sum(1)
        return torch.stack([red, -red], 1)


def test_relevance_of_a_model_that_sees_the_object_alone_lies_on_it() -> None:
    data = scenes.scenes(10, seed=2)
    relevance = relprop.explain(
        Redness().eval(), data.images.double(), target=0, method="gradient_x_input"
    ).relevance
    for metric in (ev.relevance_mass, ev.relevance_rank, ev.pointing_game, ev.roc_auc):
        torch.testing.assert_close(metric(relevance, data.single), torch.ones(10, dtype=torch.float64))
    assert float(ev.relevance_mass(relevance, ~data.single).max()) == 0


def tiny(channels: int = 3) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    return model, torch.rand(4, channels, 8, 8), torch.tensor([0, 1, 2, 0])


def test_a_method_answers_as_quantus_asks() -> None:
    model, x, y = tiny()
    found = QuantusFunction("gradient_x_input")(model, x.numpy(), y.numpy(), device="cpu")
    expected = relprop.explain(model, x, target=y, method="gradient_x_input").relevance.sum(1, keepdim=True)
    assert isinstance(found, np.ndarray) and found.shape == (4, 1, 8, 8)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


def test_quantus_flips_pixels_to_the_same_curve() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantus = pytest.importorskip("quantus", reason="the extra [quantus] is not installed")
        model, x, y = tiny(1)
        # of one channel: of several, Quantus flips the values of a pixel one by one
        metric = quantus.PixelFlipping(
            features_in_step=4, perturb_baseline=0.0, abs=False, normalise=False, disable_warnings=True
        )
        theirs = quantus_scores(metric, model, ev.Data(x, y), ["gradient_x_input"])["gradient_x_input"]
    relevance = relprop.explain(model, x, target=y, method="gradient_x_input").relevance
    ours = ev.perturb(model, x, relevance, target=y, size=4, replacement=0.0).scores[:, 1:]
    np.testing.assert_allclose(np.array(theirs), ours.numpy(), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def marked() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    return planted.trained()


def test_a_planted_artefact_is_what_the_network_looks_at_and_what_relevance_shows(marked: Any) -> None:
    model, images, labels = marked
    effect = planted.effect(model, images, labels)
    assert effect.change > 3 and effect.without < effect.clean < 1 and effect.everywhere < effect.clean
    own = planted.stamped(images[labels == planted.CLASS])
    found = {
        r: planted.share(relprop.explain(model, own, planted.CLASS, r).relevance)
        for r in ("auto", "epsilon_plus")
    }
    assert min(found.values()) > 0.15, found  # of 2 % of the area
    clean = relprop.explain(model, images[labels == planted.CLASS], planted.CLASS).relevance
    assert planted.share(clean) < 0.05
    noise = relprop.explain(model, own, planted.CLASS, method="random").relevance
    assert planted.share(noise) < 0.05


def edges(model: Any, inputs: Any, target: Any) -> torch.Tensor:
    """An edge detector that asks nothing of the model."""
    return torch.nn.functional.pad((inputs[..., 1:] - inputs[..., :-1]).abs(), (0, 1))


def test_methods_that_show_the_input_or_its_edges_are_caught(marked: Any) -> None:
    model, images, labels = marked
    other = digits.trained(images[:300], labels[torch.randperm(300)], epochs=3)
    methods = {
        "lrp": "lrp",
        "gradient": "gradient",
        "input": lambda model, inputs, target: inputs,
        "edges": edges,
    }
    found = ev.compare(
        model, images[:6], methods, {"mprt": {}, "random_logit": {}, "data_randomisation": {"other": other}}
    )  # fmt: skip
    for name in found.metrics:
        means = dict(zip(found.methods, found.values[name].mean(0), strict=True))
        assert means["input"] > 0.999 and means["edges"] > 0.999, name
        assert means["lrp"] < 0.95 and means["gradient"] < 0.95, name
    assert found.blind() == {"input": list(found.metrics), "edges": list(found.metrics)}


def test_data_randomisation_asks_for_the_other_network(marked: Any) -> None:
    model, images, _ = marked
    with pytest.raises(relprop.InvalidInput, match="trained on permuted labels"):
        ev.compare(model, images[:2], ["gradient"], ["data_randomisation"])


def test_shuffled_relevance_scores_like_random(marked: Any) -> None:
    model, images, _ = marked

    def shuffled(model: Any, inputs: Any, target: Any) -> torch.Tensor:
        relevance = relprop.explain(model, inputs, target).relevance.flatten(1)
        return relevance.gather(1, torch.rand(relevance.shape).argsort(1)).reshape(inputs.shape)

    found = ev.compare(
        model, images[:40], {"lrp": "lrp", "shuffled": shuffled, "random": "random"}, ["aopc_morf", "abpc"],
        perturbation={"regions": 2, "steps": 12, "size": 8, "replacement": 0.0},
    )  # fmt: skip
    for metric in found.metrics:
        tiers = {row.method: row.tier for row in found.rows(metric)}
        assert tiers["lrp"] == 1 and tiers["shuffled"] == tiers["random"] > 1
    between = found.values["abpc"][:, 1]
    assert abs(between.mean()) < 4 * between.std() / len(between) ** 0.5


def test_superpixels_are_regions_of_each_image_by_itself() -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    images = torch.zeros(2, 3, 32, 32)
    images[:, 0, :, 16:] = 1.0
    images[1, 1, 8:24, 8:24] = 1.0
    labels = ev.superpixels(images, 12)
    assert labels.shape == (2, 32, 32) and 4 < int(labels.max()) < 24
    assert torch.equal(ev.superpixels(images[1:], 12), labels[1:])
    left, right = labels[0, :, :14].unique(), labels[0, :, 18:].unique()
    assert not set(left.tolist()) & set(right.tolist())  # none lies across the edge
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)).eval()
    curves = ev.perturb(
        model, images, torch.rand(2, 32, 32), regions="superpixels", replacement="mean", size=1
    )
    assert curves.scores.shape[0] == 2 and bool(torch.isfinite(curves.scores).all())
    with pytest.raises(relprop.InvalidInput, match="superpixels"):
        ev.perturb(nn.Linear(4, 2).eval(), torch.rand(2, 4), torch.rand(2, 4), regions="superpixels")


def test_segments_of_a_series_go_together() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 30, 3)).eval()
    series, relevance = torch.rand(4, 2, 30), torch.rand(4, 2, 30)
    experiment = ev.experiment(model, series, 1, regions=10, channels=1, replacement=0.0)
    assert experiment.regions.count == 3
    scores = experiment.regions.scores(relevance)
    torch.testing.assert_close(scores, relevance.double().reshape(4, 2, 3, 10).sum((1, 3)))
