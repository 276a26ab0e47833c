"""What a new user tries after the README: names without further imports, pictures of the notebook, copies, mistakes."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop import evaluate, show
from relprop.rules import AlphaBeta, Epsilon, Flat, Gamma


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).double().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def explained(net: nn.Module, x: Tensor) -> relprop.Explanation:
    return relprop.explain(net, x)


def refused(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(relprop.InvalidInput) as caught:
        call()
    message = str(caught.value)
    assert "\n  do: " in message and len(message) < 500, message
    for part in parts:
        assert part in message, message


def test_the_parts_of_the_package_need_no_import_of_their_own() -> None:
    code = (
        "import relprop; names = ('evaluate.METRICS', 'analyse.eigengap', 'classical.to_module', 'text.Vocabulary',"
        "'show.heatmap', 'targets.contrast', 'store', 'data.open_photograph', 'models.load', 'audio', 'patterns.Patterns',"
        "'inside.bilrp'); print([eval('relprop.' + name) is not None for name in names] == [True] * 12, set(n.split('.')[0]"
        " for n in names) <= set(dir(relprop)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True True"
    with pytest.raises(AttributeError, match="'evaluation'"):
        relprop.evaluation  # noqa: B018


def test_what_a_notebook_shows_is_short_or_a_table(net: nn.Module, x: Tensor) -> None:
    explainer = relprop.Explainer(net, example=x)
    explanation = explainer(x)
    shown = repr(explanation)
    assert "(2, 3, 8, 8) float64" in shown and "audit closes" in shown and len(shown) < 200
    assert repr(explainer) == "<Explainer of Sequential: method='lrp', rules='auto'>"
    assert repr(explainer.plan) == str(explainer.plan)
    assert repr(explanation.channels("0")) == str(explanation.channels("0"))
    assert repr(explanation.parameters()) == str(explanation.parameters())
    both = relprop.explain(net, {"input": x}, method="gradient")
    assert "{'input': (2, 3, 8, 8) float64}" in repr(both)


def test_explanations_are_compared_as_the_objects_they_are(net: nn.Module, x: Tensor) -> None:
    one, other = relprop.explain(net, x), relprop.explain(net, x)
    assert one == one and one != other and len({one, other}) == 2 and one in [other, one]
    assert one.audit != other.audit


def test_an_explanation_that_is_pickled_leaves_its_model_behind(explained: relprop.Explanation) -> None:
    buffer = io.BytesIO()
    torch.save(explained, buffer)
    buffer.seek(0)
    for copied in (
        pickle.loads(pickle.dumps(explained)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(copied.relevance, explained.relevance)
        assert copied.audit.closes and str(copied) == str(explained)
        assert copied.audit.table() == explained.audit.table()
        refused(lambda copied=copied: copied.at("0"), "at", "saved", "explain again")
        refused(copied.parameters, "parameters", "explain again")


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
def test_a_copy_still_looks_into_the_model(explained: relprop.Explanation, how: Any) -> None:
    copied = how(explained)
    assert torch.equal(copied.at("0"), explained.at("0"))
    assert (copied.relevance is explained.relevance) == (how is copy.copy)


def test_the_account_below_a_picture_keeps_its_lines(explained: relprop.Explanation) -> None:
    caption = explained._repr_html_().partition("<figcaption")[2]
    assert "white-space:pre-wrap" in caption and "monospace" in caption
    assert str(explained.audit) in caption


def test_saving_tells_where_the_picture_is(explained: relprop.Explanation, tmp_path: Path) -> None:
    assert explained.save(tmp_path / "map") == tmp_path / "map.png"
    assert (tmp_path / "map.png").is_file()


def test_mistakes_in_asking_for_what_is_inside(
    net: nn.Module, explained: relprop.Explanation, x: Tensor
) -> None:
    refused(lambda: explained.at(net[0]), "at", "Conv2d", "named_modules")  # type: ignore[arg-type, index]
    refused(lambda: explained.channels(0), "channels", "int")  # type: ignore[arg-type]
    refused(lambda: relprop.explain(net, x, method="gradient").at("0"), "gradient", "method='lrp'")
    for account in ("table", "summary"):
        refused(lambda account=account: getattr(explained.audit, account)(2), "sample", "0 to 1")


def test_mistakes_in_what_is_explained(net: nn.Module, x: Tensor) -> None:
    refused(lambda: relprop.explain(net.state_dict(), x), "OrderedDict", "load_state_dict")
    refused(lambda: relprop.explain(nn.ReLU, x), "ReLU is a class", "ReLU(…)")
    refused(lambda: relprop.explain([net] * 40, x), "a list")
    refused(lambda: relprop.explain(net, x[0]), "the model itself fails", "first dimension the batch")
    refused(lambda: relprop.explain(net, [x, torch.arange(2)]), "the model itself fails", "data loader")
    refused(lambda: relprop.Explainer(net).explain_targets(x, 3), "targets", "list")  # type: ignore[arg-type]
    refused(
        lambda: relprop.explain(net, x, epsilon=1e-3), "epsilon", "compile", "batch_size", "Epsilon(1e-3)"
    )


def test_mistakes_in_rules(net: nn.Module, x: Tensor) -> None:
    refused(lambda: relprop.explain(net, x, rules=Gamma), "Gamma is a class", "relprop.rules.Gamma()")
    refused(lambda: relprop.Composite([("first", Flat)]), "Flat()")  # type: ignore[list-item]
    refused(lambda: relprop.Composite(None), "no list of pairs")  # type: ignore[arg-type]
    for rule in (
        lambda: Epsilon("a"),  # type: ignore[arg-type]
        lambda: Epsilon(float("nan")),
        lambda: Gamma(None),  # type: ignore[arg-type]
        lambda: AlphaBeta("2", 1),  # type: ignore[arg-type]
    ):
        refused(rule, "no number")


def test_mistakes_in_evaluation(net: nn.Module, x: Tensor, explained: relprop.Explanation) -> None:
    refused(lambda: evaluate.perturb(net, x, explained), "relevance", ".relevance")
    refused(lambda: evaluate.gini("map"), "relevance", "str")
    refused(lambda: evaluate.compare(net, (x, torch.arange(2)), ["lrp"], ["gini"]), "Data(inputs, target)")


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


def test_a_model_that_cannot_be_captured_says_what_to_do() -> None:
    with pytest.raises(relprop.CaptureError, match=r"Numpy cannot be captured(.|\n)*\n  do: "):
        relprop.explain(Numpy().eval(), torch.ones(1, 4))


def test_a_notebook_shows_the_first_of_many_samples_and_says_so() -> None:
    many = relprop.explain(nn.Sequential(nn.Linear(4, 2)).eval(), torch.rand(40, 4))
    few = relprop.explain(nn.Sequential(nn.Linear(4, 2)).eval(), torch.rand(12, 4))
    assert (
        "the first 12 of 40" in many._repr_html_()
        and "the first" not in few._repr_html_().split("account")[0]
    )
    assert many.heatmap().height > 3 * few._first(12).heatmap().height


def test_a_recording_with_its_channel_is_drawn_as_one() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 8, 4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()).eval()
    explanation = relprop.explain(model, torch.rand(2, 1, 400))
    drawn = explanation.heatmap(kind="audio", rate=8000)
    assert drawn.size == show.audio(explanation.relevance, rate=8000).size
