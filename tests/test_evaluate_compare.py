"""Methods side by side: intervals and tests, batches, resuming, the figure and the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop import evaluate as ev
from relprop.cli import main
from relprop.evaluate import cost, statistics
from relprop.evaluate.picture import picture
from relprop.evaluate.scoring import score_rows, scorer_of

METHODS = ["gradient_x_input", "sensitivity", "random"]
METRICS = ["aopc_morf", "abpc", "gini"]
SETTINGS: dict[str, Any] = {"replacement": "uniform", "draws": 2, "size": 3}


def model_and_data(count: int = 12) -> tuple[nn.Module, ev.Data]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    return model, ev.Data(torch.randn(count, 12, dtype=torch.float64))


def test_results_do_not_depend_on_batches() -> None:
    model, data = model_and_data()
    one, other = (
        ev.compare(model, data, METHODS, METRICS, perturbation=SETTINGS, batch_size=size) for size in (12, 5)
    )
    for metric in METRICS:
        np.testing.assert_allclose(one.values[metric], other.values[metric], rtol=1e-10, atol=1e-12)
    assert set(one.curves) == {"morf", "lerf"} and one.curves["morf"].shape == (12, 3, 5)


def compiled_by(model: nn.Module, backend: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend=backend, dynamic=False)


def test_rows_of_a_compiled_model_are_always_as_many_at_a_time() -> None:
    model, data = model_and_data()
    made: list[int] = []

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        made.append(max(len(one) for one in inputs))
        return module.forward

    compiled = compiled_by(model, backend)
    own, other = (ev.compare(one, data, METHODS, METRICS, perturbation=SETTINGS) for one in (compiled, model))
    assert made == [
        64
    ]  # 12 samples, 8 and then 4 of them with 4 steps a draw, leave a rest that is filled up
    for metric in METRICS:
        np.testing.assert_allclose(own.values[metric], other.values[metric], rtol=1e-10, atol=1e-12)


def test_rows_that_fill_up_reach_no_target() -> None:
    """A target that (badly) looks at other rows sees those that were asked for."""
    model, data = model_and_data(2)
    target = lambda y: y[:, 0] - y.mean(0)[0]  # noqa: E731
    own, other = (
        scorer_of(one, data.inputs, target).of(data.inputs[:1], torch.tensor([0]))
        for one in (compiled_by(model, "eager"), model)
    )
    assert torch.equal(own, other)
    rows = score_rows(
        scorer_of(compiled_by(model, "eager"), data.inputs, target),
        torch.tensor([0]),
        lambda _, s: data.inputs[s],
    )
    assert torch.allclose(rows, other, rtol=0, atol=1e-12)


def test_a_compiler_that_fails_is_named() -> None:
    model, data = model_and_data()

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        raise RuntimeError("No working C++ compiler found")

    with pytest.raises(
        relprop.errors.CaptureError, match=r"No working C\+\+ compiler.*\n  do: install a C\+\+ comp"
    ):
        ev.compare(compiled_by(model, backend), data, ["random"], ["aopc_morf"], perturbation=SETTINGS)


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    model, data = model_and_data()
    asked: list[int] = []

    def counting(model: Any, inputs: Tensor, target: Any) -> Tensor:
        asked.append(len(inputs))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return inputs

    def run(store: Path | None) -> ev.Comparison:
        return ev.compare(
            model,
            data,
            {"own": counting, "random": "random"},
            METRICS,
            perturbation=SETTINGS,
            batch_size=4,
            store=store,
        )

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    resumed = run(tmp_path)
    assert asked == [4, 4, 4, 4]  # the first batch was not explained again
    again = run(tmp_path)
    assert asked == [4, 4, 4, 4] and str(again) == str(resumed)
    fresh = run(None)
    for metric in METRICS:
        np.testing.assert_array_equal(again.values[metric], fresh.values[metric])
    with torch.no_grad():
        model[0].weight.mul_(1.1)
    run(tmp_path)
    assert len(asked) == 10  # other weights: nothing of it holds any more


def test_more_samples_take_up_the_work_that_is_done(tmp_path: Path) -> None:
    model, data = model_and_data()
    asked: list[int] = []

    def counting(model: Any, inputs: Tensor, target: Any) -> Tensor:
        asked.append(len(inputs))
        return inputs

    bounded = ev.Data(data.inputs if isinstance(data, ev.Data) else data, bounds=(-9.0, 9.0))
    for count in (4, 8):
        ev.compare(model, bounded.part(0, count), {"own": counting}, METRICS, perturbation=SETTINGS, batch_size=4, store=tmp_path)  # fmt: skip
    assert asked == [4, 4]


def test_the_stated_cost_leaves_out_what_is_done(tmp_path: Path) -> None:
    model, data = model_and_data()
    clock = iter(float(second) for second in range(1000)).__next__

    def stated() -> cost.Cost:
        return cost.cost_of(model, bounded, METHODS, METRICS, SETTINGS, 4, clock, store=tmp_path)

    bounded = ev.Data(data.inputs, bounds=(-9.0, 9.0))
    before = stated()
    assert before.rows == 12 * 3 * 2 * 2 * 4  # samples, methods, orders, draws, steps
    assert before.explaining == 12 * 2 * 0.5  # one second for two samples; chance explains nothing
    ev.compare(model, bounded.part(0, 8), METHODS, METRICS, perturbation=SETTINGS, batch_size=4, store=tmp_path)  # fmt: skip
    half = stated()
    assert (half.rows, half.explaining) == (before.rows / 3, before.explaining / 3)
    ev.compare(model, bounded, METHODS, METRICS, perturbation=SETTINGS, batch_size=4, store=tmp_path)
    assert stated().seconds == 0


def test_the_table_orders_methods_and_says_what_is_real() -> None:
    model, data = model_and_data(40)
    found = ev.compare(model, data, METHODS, METRICS, perturbation=SETTINGS)
    rows = found.rows("aopc_morf")
    assert [row.mean for row in rows] == sorted((row.mean for row in rows), reverse=True)
    assert rows[0].behind is None and rows[0].tier == 1 and rows[-1].method == "random"
    assert (
        rows[-1].behind is not None and rows[-1].behind.high < 0 and rows[-1].p < 0.05 and rows[-1].tier > 1
    )
    assert rows[0].low < rows[0].mean < rows[0].high and rows[0].above_random > 0
    assert "aopc_morf (higher is better" in str(found) and "minus the best" in str(found)
    json.dumps(found.as_dict(), allow_nan=False)


def test_samples_undefined_for_one_method_are_dropped_for_all() -> None:
    model, data = model_and_data()

    def some(model: Any, inputs: Tensor, target: Any) -> Tensor:
        relevance = inputs.clone()
        relevance[inputs[:, 0] > 0] = 1.0
        return relevance

    found = ev.compare(model, data, {"own": some, "random": "random"}, ["aopc_morf"], perturbation=SETTINGS)
    flat = int((data.inputs[:, 0] > 0).sum())
    assert [row.used for row in found.rows("aopc_morf")] == [12 - flat] * 2 and flat > 0
    assert np.isnan(found.values["aopc_morf"][:, 0]).sum() == flat
    assert not np.isnan(found.values["aopc_morf"][:, 1]).any()


def test_differences_are_of_the_same_samples_as_the_means() -> None:
    values = np.array([[1.0, 5.0, np.nan], [2.0, 1.0, 0.0], [3.0, 2.5, 1.0]])
    found = ev.Comparison(("a", "b", "c"), ("aopc_morf",), {"aopc_morf": values}, {}, (), {}, {})
    best, *others = found.rows("aopc_morf")
    assert best.method == "a" and best.used == 2
    for row in others:
        assert row.behind is not None and row.behind.used == 2
        assert row.behind.mean == pytest.approx(row.mean - best.mean)


class Zeroed(nn.Linear):
    """A layer whose random weights are all 0: what it explains is a constant map."""

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()


def test_constant_maps_of_random_weights_are_undefined_by_name_and_never_a_number(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Linear(12, 8), nn.ReLU(), Zeroed(8, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    )
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(8))
    data = ev.Data(torch.randn(6, 12, dtype=torch.float64))
    methods = {"gradient_x_input": "gradient_x_input", "own": lambda model, inputs, target: inputs}
    for _ in range(2):  # the second time from the store
        found = ev.compare(model, data, methods, ["mprt", "gini"], store=tmp_path)
        assert [line[1] for line in found.lines("mprt")] == ["undefined"] * 2
        assert all(cell in ("", "0 / 6") for line in found.lines("mprt") for cell in line[2:])
        (said,) = found.undefined()
        assert said.startswith(
            "mprt of gradient_x_input for 6 of 6 samples (a constant map with random weights, from layer '2' on)"
        )
        assert "do: compare without this method, or" in said
        assert all(np.isfinite(rank) for rank in found.ranks()[0].values())
        json.dumps(found.as_dict(), allow_nan=False)


def test_masks_are_asked_for_before_anything_runs() -> None:
    model, data = model_and_data()
    with pytest.raises(relprop.errors.InvalidInput, match="roc_auc needs to know where"):
        ev.compare(model, data, METHODS, ["roc_auc"])
    for wrong, message in (
        ({"methods": ["lrp2"]}, "method: 'lrp2'"),
        ({"metrics": ["best"]}, "metrics: 'best'"),
    ):
        with pytest.raises(relprop.errors.InvalidInput, match=message):
            ev.compare(model, data, **{"methods": METHODS, "metrics": METRICS, **wrong})


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    draws = np.random.default_rng(0)
    inside = 0
    for trial in range(100):
        low, high = statistics.bootstrap(draws.normal(1.0, 2.0, (40, 1)), 400, seed=trial)
        inside += low[0] <= 1.0 <= high[0]
    assert 87 <= inside <= 99


def test_holm_corrects_for_the_number_of_tests() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx(
        [0.03, 0.06, 0.06, math.nan], nan_ok=True
    )


def test_the_number_of_samples_that_would_show_a_difference() -> None:
    gaps = np.random.default_rng(0).normal(size=400)
    gaps = (gaps - gaps.mean()) / gaps.std(ddof=1)
    assert statistics.required_n(1.341 * gaps + 1.215) == pytest.approx((2.8016 * 1.341 / 1.215) ** 2, abs=1)
    assert statistics.required_n(gaps + 0) > 1e10


def test_methods_that_cannot_be_told_apart_share_a_tier() -> None:
    draws = np.random.default_rng(1)
    base = draws.normal(size=(60, 1))
    scores = base + np.array([2.0, 2.0, 0.0]) + 0.3 * draws.normal(size=(60, 3))
    assert statistics.tiers(scores) == [1, 1, 2]
    assert statistics.tiers(scores, higher_is_better=False) == [2, 2, 1]


def test_agreement_of_metrics() -> None:
    assert statistics.kendall_w([[1, 2, 3], [1, 2, 3]]) == 1
    assert statistics.kendall_w([[1, 2, 3], [3, 2, 1]]) == 0


def test_the_figure_has_a_line_for_each_method() -> None:
    model, data = model_and_data()
    found = ev.compare(model, data, METHODS, ["abpc"], perturbation=SETTINGS)
    drawn = picture(found, "curves")
    assert drawn.width > drawn.height > 300 and len(drawn.convert("P").getcolors()) > 20
    long = picture(found, ", ".join(f"/data/photographs/of/animals/{k}.jpg" for k in range(9)))
    heading = np.asarray(long.convert("L"))[:60]
    assert long.width == drawn.width and long.height > drawn.height
    assert (heading < 128).any() and (heading[:, -12:] > 250).all()  # nothing is cut off at the edge
    bare = ev.compare(model, data, METHODS, ["gini"])
    with pytest.raises(relprop.errors.InvalidInput, match="no perturbation curves"):
        picture(bare)


def write_arrays(folder: Path) -> tuple[str, str]:
    (folder / "tinynet.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()\n"
        "\n\ndef single():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval()\n"
        "\n\ndef blank():\n    model = make()\n    nn.init.zeros_(model[3].weight)\n    return model\n"
    )
    draws = np.random.default_rng(0)
    mask = np.zeros((6, 8, 8), dtype=bool)
    mask[:, 2:5, 2:5] = True
    np.savez(folder / "arrays.npz", inputs=draws.random((6, 1, 8, 8), dtype=np.float32), mask=mask)
    return str(folder / "arrays.npz"), "tinynet:make"


def test_the_command_prints_tables_or_json_and_draws_the_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data, model = write_arrays(tmp_path)
    call = [
        "evaluate",
        "--data",
        data,
        "--model",
        model,
        "--methods",
        "lrp:epsilon,random",
        "--regions",
        "2",
        "--draws",
        "2",
        "--store",
        "done",
    ]
    assert main([*call, "--metrics", "aopc_morf,roc_auc"]) == 0
    printed = capsys.readouterr()
    assert (
        "aopc_morf (higher is better" in printed.out
        and "lrp:epsilon" in printed.out
        and "roc_auc" in printed.out
    )
    assert "forward rows" in printed.err and (tmp_path / "relprop-evaluate.png").is_file()
    assert main([*call, "--metrics", "gini", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["command"] == "evaluate"
        and found["methods"] == ["lrp:epsilon", "random"]
        and found["figure"] is None
    )
    assert len(found["metrics"]["gini"]["values"]) == 6
    for extra, message in (
        (["--steps", "99"], "steps: 99"),
        (["--protocol", "best"], "protocol: 'best'"),
        (["--metrics", "nothing"], "metrics: 'nothing'"),
        (["--replacement", "9"], "replacement: 9 is outside"),
        (["--replacement", "nan"], "replacement: nan is not a number"),
        (["--metrics", "focus"], "focus: relevance of shape (6, 8, 8) and tiles"),
        (["--metrics", ","], "metrics: none given"),
        (["--methods", ""], "methods: none given"),
        (
            ["--model", "tinynet:single", "--score", "probability"],
            "score: 'probability' of a model with a single",
        ),
        (
            ["--model", "tinynet:single", "--metrics", "random_logit"],
            "random_logit: it explains another class",
        ),
        (["--out", "nowhere/curves.png"], "there is no folder 'nowhere'"),
        (["--seed", "-1"], "--seed"),
    ):
        assert main([*call, *extra]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error


@pytest.mark.parametrize(("package", "extra"), [("scipy", "evaluate"), ("matplotlib", "show")])
def test_a_package_that_tables_or_figure_need_is_missed_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    without: Callable[[str], None], package: str, extra: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    data, model = write_arrays(tmp_path)
    without(package)
    assert (
        main(["evaluate", "--data", data, "--model", model, "--methods", "lrp,random", "--regions", "2"]) == 2
    )
    error = capsys.readouterr().err
    assert f"pip install 'relprop[{extra}]'" in error and "forward rows" not in error


def test_relevance_that_orders_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data, _ = write_arrays(tmp_path)
    call = ["evaluate", "--data", data, "--model", "tinynet:blank", "--methods", "gradient_x_input,random", "--regions", "2"]  # fmt: skip
    assert main([*call, "--metrics", "aopc_morf,random_logit", "--draws", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if line.startswith("undefined")]
    assert len(said) == 2 and "aopc_morf of gradient_x_input for 6 of 6 samples (constant" in said[0]


def test_rows_of_the_command_run_through_a_compiled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data, model = write_arrays(tmp_path)
    compiler, made = torch.compile, []

    def without_inductor(given: Any, **options: Any) -> Any:
        made.append(options)
        torch._dynamo.reset()
        return compiler(given, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", without_inductor)
    call = ["evaluate", "--data", data, "--model", model, "--methods", "lrp,random", "--regions", "2", "--json"]  # fmt: skip
    values = []
    for more in ([], ["--compile"]):
        assert main([*call, *more]) == 0
        values.append(json.loads(capsys.readouterr().out)["metrics"]["abpc"]["values"])
    assert made == [{"dynamic": False}]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5, atol=1e-6)


def test_words_and_series_are_perturbed_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "readers.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "def words():\n    return nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(36, 2)).eval()\n\n\n"
        "def series():\n    return nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(90, 2)).eval()\n"
    )
    draws = np.random.default_rng(0)
    np.savez(tmp_path / "words.npz", inputs=draws.integers(1, 20, (3, 9)))
    np.savez(tmp_path / "series.npz", inputs=draws.random((3, 2, 32), dtype=np.float32))

    def call(name: str, *more: str) -> tuple[int, Any]:
        known = [
            "--data",
            f"{name}.npz",
            "--model",
            f"readers:{name}",
            "--methods",
            "gradient_x_input,random",
        ]
        code = main(["evaluate", *known, "--metrics", "aopc_morf", "--draws", "1", "--json", *more])
        printed = capsys.readouterr()
        return code, json.loads(printed.out) if code == 0 else printed.err

    code, found = call("words", "--replacement", "0")
    assert code == 0 and len(found["fractions"]) == 10 and found["seconds_taken"] > 0
    for wrong, message in (("99", "does not take the changed inputs"), ("0.5", "0.5 of token ids"), ("blur", "'blur' of token ids")):  # fmt: skip
        code, error = call("words", "--replacement", wrong)
        assert code == 2 and message in error and "Traceback" not in error
    code, found = call("series", "--regions", "2,4")
    assert code == 0 and len(found["fractions"]) == 9
    code, error = call("series", "--regions", "2,4,4")
    assert code == 2 and "patches of (2, 4, 4) on places (2, 32)" in error
