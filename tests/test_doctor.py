"""The doctor: healthy models pass every check, and each planted defect is found by the check that is due to find it."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import relprop
from relprop.doctor import CHECKS, Report, doctor
from relprop.engine import canonise, capture
from relprop.engine.ops import OPS
from relprop.engine.propagate import Weights
from relprop.engine.step import Shares, Step
from zoo import ZOO, randomise, seeded


class Small(nn.Module):
    """Every kind of operation that the defects are planted in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.side = nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        y = F.max_pool2d(torch.cat([y, F.relu(self.side(x))], 1), 2)
        return self.head((y + y.flip(2)).flatten(1))


def small() -> nn.Module:
    with seeded(3):
        model = randomise(Small())
    return model.float().eval()


def example() -> Tensor:
    return torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def verdicts(report: Report) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in report}


# --- healthy models


@pytest.mark.parametrize("rules", ["auto", "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon"])
def test_a_healthy_network_passes_every_check(rules: str) -> None:
    report = doctor(small(), example(), rules=rules)
    assert report.healthy, report
    assert list(verdicts(report)) == list(CHECKS)
    assert set(verdicts(report).values()) == {"holds"}


@pytest.mark.parametrize("name", ["residual", "attention", "inverted_residual", "shuffle"])
def test_networks_of_the_zoo_are_healthy(name: str) -> None:
    model, x = ZOO[name](0)
    report = doctor(model, x)
    assert report.healthy, report


def test_a_model_of_token_ids_is_examined() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(F.relu(self.embedding(ids)).mean(1))

    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 2]])
    report = doctor(Words().eval(), {"ids": ids})
    assert report.healthy, report
    assert report["gradient"].verdict == "not asked"


def test_what_cannot_be_asked_says_why() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)).eval()
    finding = doctor(model, torch.randn(2, 4))["gradient"]
    assert finding.verdict == "not asked" and "gelu" in finding.detail


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks_are_healthy(layer: type[nn.Module]) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer(3, 5, 2, batch_first=True, bidirectional=True)
            self.head = nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.layer(x)[0]).mean(1))

    report = doctor(Reader().eval(), torch.randn(2, 6, 3))
    assert report.healthy, report
    assert report["gradient"].verdict == "not asked"


def test_the_report_is_a_table_and_plain_values() -> None:
    report = doctor(small(), example())
    assert all(name in str(report) for name in CHECKS)
    assert json.loads(json.dumps([finding.as_dict() for finding in report]))[0]["check"] == "capture"


def test_bad_arguments_are_one_clear_line() -> None:
    with pytest.raises(relprop.InvalidInput, match="training mode"):
        doctor(small().train(), example())
    with pytest.raises(relprop.InvalidInput, match="NaN"):
        doctor(small(), torch.full((1, 2, 4, 4), float("nan")))
    with pytest.raises(relprop.InvalidInput, match="shape"):
        doctor(small(), torch.randn(2, 5))


# --- planted defects

Plant = Callable[[pytest.MonkeyPatch], nn.Module]
DEFECTS: dict[str, tuple[Plant, str]] = {}


def defect(found_by: str) -> Callable[[Plant], Plant]:
    """The function plants a defect in the engine or returns a model with one; this check is due to find it."""

    def enter(plant: Plant) -> Plant:
        DEFECTS[plant.__name__] = (plant, found_by)
        return plant

    return enter


def replaced(
    patch: pytest.MonkeyPatch, operation: str, change: Callable[[Step, Any, Shares], Shares]
) -> None:
    """The row of an operation with its shares changed."""
    row = OPS[operation]

    def propagate(step: Step, relevance: Any) -> Shares:
        return change(step, relevance, row.propagate(step, relevance))

    patch.setitem(OPS, operation, dataclasses.replace(row, propagate=propagate))


def every_share(shares: Shares, change: Callable[[Tensor], Tensor]) -> Shares:
    def on(share: Any) -> Any:
        if isinstance(share, (list, tuple)):
            return [on(one) for one in share]
        return None if share is None else change(share)

    return Shares({key: on(share) for key, share in shares.arguments.items()}, shares.absorbed)


@defect("account")
def a_rule_that_hands_on_too_much(patch: pytest.MonkeyPatch) -> nn.Module:
    replaced(patch, "aten.linear.default", lambda step, r, shares: every_share(shares, lambda s: 1.01 * s))
    return small()


@defect("account")
def a_bias_that_is_not_accounted_for(patch: pytest.MonkeyPatch) -> nn.Module:
    def forget(step: Step, relevance: Any, shares: Shares) -> Shares:
        return Shares(shares.arguments, {k: v for k, v in shares.absorbed.items() if k != "bias"})

    replaced(patch, "aten.linear.default", forget)
    return small()


@defect("rules")
def a_rule_that_keeps_the_sum_and_shares_it_wrongly(patch: pytest.MonkeyPatch) -> nn.Module:
    def evenly(share: Tensor) -> Tensor:
        return share.flatten(1).mean(1).reshape(-1, *[1] * (share.dim() - 1)).expand_as(share).clone()

    replaced(patch, "aten.linear.default", lambda step, r, shares: every_share(shares, evenly))
    return small()


@defect("rules")
def a_selection_that_puts_relevance_in_the_wrong_place(patch: pytest.MonkeyPatch) -> nn.Module:
    replaced(patch, "aten.cat.default", lambda step, r, shares: every_share(shares, lambda s: s.flip(-1)))
    return small()


@defect("rules")
def a_maximum_that_pays_the_wrong_one(patch: pytest.MonkeyPatch) -> nn.Module:
    replaced(patch, "aten.max_pool2d.default", lambda step, r, shares: every_share(shares, lambda s: s.roll(1, -1)))  # fmt: skip
    return small()


@defect("samples")
def an_operation_that_mixes_the_samples(patch: pytest.MonkeyPatch) -> nn.Module:
    def mixed(share: Tensor) -> Tensor:
        return share + 0.01 * (share.mean(0, keepdim=True) - share)

    replaced(patch, "aten.relu.default", lambda step, r, shares: every_share(shares, mixed))
    return small()


@defect("seed")
def an_operation_that_drops_negative_relevance(patch: pytest.MonkeyPatch) -> nn.Module:
    replaced(
        patch, "aten.relu.default", lambda step, r, shares: every_share(shares, lambda s: s.clamp(min=0))
    )
    return small()


@defect("signs")
def a_value_that_is_said_not_to_be_negative(patch: pytest.MonkeyPatch) -> nn.Module:
    patch.setitem(
        OPS, "aten.flip.default", dataclasses.replace(OPS["aten.flip.default"], nonnegative="always")
    )
    patch.setitem(OPS, "aten.conv2d.default", dataclasses.replace(OPS["aten.conv2d.default"], nonnegative="always"))  # fmt: skip
    return small()


@defect("rewrites")
def a_fold_that_forgets_the_mean(patch: pytest.MonkeyPatch) -> nn.Module:
    fold = canonise.fold_batch_norm

    def wrong(graph: Any) -> Any:
        folded = fold(graph)
        nodes = []
        for node in folded.nodes:
            if node.kind == "call" and node.folded:
                function = node.function

                def off(*args: Any, function: Any = function, **kwargs: Any) -> Tensor:
                    return function(*args, **kwargs) + 0.1

                node = dataclasses.replace(node, function=off)
            nodes.append(node)
        return dataclasses.replace(folded, nodes=tuple(nodes))

    patch.setattr(canonise, "REWRITES", [*canonise.REWRITES[:-1], wrong])
    patch.setattr(importlib.import_module("relprop.doctor.checks"), "REWRITES", canonise.REWRITES)
    return small()


@defect("weights")
def split_weights_that_are_kept_for_ever(patch: pytest.MonkeyPatch) -> nn.Module:
    patch.setattr(Weights, "fresh", lambda self, weights, graph=None: setattr(self, "_weights", weights))
    return small()


@defect("capture")
def a_capture_that_is_frozen_in_its_first_branch(patch: pytest.MonkeyPatch) -> nn.Module:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = x.flatten(1)
            if torch.compiler.is_exporting():
                return self.head(y)
            return self.head(y.clamp(max=1.5))

    captured = importlib.import_module("relprop.explain.captured")
    patch.setattr(captured, "_verified", lambda *arguments: True)
    return Branching().eval()


@defect("untouched")
def a_front_end_that_leaves_a_mark(patch: pytest.MonkeyPatch) -> nn.Module:
    frontend = next(row for row in capture.FRONTENDS if row[0](small()))[1]

    def marking(model: nn.Module, *call: Any) -> Any:
        model.eval()
        model.explained = True  # type: ignore[assignment]
        return frontend(model, *call)

    rows = [(a, marking if f is frontend else f) for a, f in capture.FRONTENDS]
    patch.setattr(capture, "FRONTENDS", rows)
    return small()


@defect("precision")
def an_operation_that_computes_in_half_precision(patch: pytest.MonkeyPatch) -> nn.Module:
    def rough(step: Step, relevance: Any, shares: Shares) -> Shares:
        if relevance.dtype == torch.float64:
            return shares
        return every_share(shares, lambda s: s.roll(1, -1))

    replaced(patch, "aten.relu.default", rough)
    return small()


@defect("gradient")
def a_graph_whose_branches_are_swapped(patch: pytest.MonkeyPatch) -> nn.Module:
    def first_only(step: Step, relevance: Any, shares: Shares) -> Shares:
        total = sum(share for share in shares.arguments.values())
        return Shares({0: total}, shares.absorbed)

    replaced(patch, "aten.add.Tensor", first_only)
    return small()


@defect("samples")
def a_model_whose_samples_see_each_other(patch: pytest.MonkeyPatch) -> nn.Module:
    class Together(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = x.flatten(1)
            return self.head(y - 0.5 * y.mean(0, keepdim=True))

    return Together().eval()


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, found_by = DEFECTS[name]
    relprop.clear_cache()
    try:
        report = doctor(plant(monkeypatch), example(), rules="epsilon_plus")
    finally:
        relprop.clear_cache()
    assert report[found_by].verdict == "fails", report
    assert not report.healthy


# --- the command

NETS = """
import torch
from torch import nn
from torch.nn import functional as F

def healthy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 5))

class Together(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = healthy()

    def forward(self, x):
        return self.net(x - x.mean(0, keepdim=True) / 2)

def ill():
    return Together()
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of networks in the current folder, under a name of its own."""
    name = f"nets_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def run(*arguments: str) -> Any:
    pytest.importorskip("typer", reason="typer is not installed")
    from typer.testing import CliRunner

    from relprop.cli.app import app

    return CliRunner().invoke(app, ["doctor", "--size", "27", *arguments])


def test_the_command_prints_a_line_each_and_exits_with_0(nets: str) -> None:
    done = run("--model", f"{nets}:healthy", "--rules", "epsilon_plus_flat")
    assert done.exit_code == 0, done.output
    assert all(any(line.startswith(name) for line in done.output.splitlines()) for name in CHECKS)
    assert f"{len(CHECKS)} holds" in done.output


def test_the_command_exits_with_1_where_a_promise_fails(nets: str) -> None:
    done = run("--model", f"{nets}:ill", "--json")
    assert done.exit_code == 1, done.output
    content = json.loads(done.output)
    assert not content["healthy"]
    assert {f["check"]: f["verdict"] for f in content["findings"]}["samples"] == "fails"


def test_the_command_exits_with_2_on_bad_input(nets: str) -> None:
    assert run("--model", f"{nets}:missing").exit_code == 2
    assert run("--model", f"{nets}:healthy", "--rules", "none").exit_code == 2
