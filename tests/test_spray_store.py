"""From data to a store to its analysis: a planted mark is found, named and confirmed; stores that cannot be analysed are refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import relprop
from relprop import analyse
from relprop.analyse.of_store import folder_of
from relprop.cli import main
from relprop.show.report import _template
from relprop.store import write_store

pytest.importorskip("zarr", reason="the extra [analyse] is not installed")

NETS = """
import torch

def make():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 2, bias=False))
    weight = model[1].weight.data
    weight.copy_(torch.rand(2, 144) * 0.02)
    weight[1].view(12, 12)[-2:, -2:] = 0.3
    return model.eval()
"""


def study() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "studies" / "planted_mark.py"
    spec = importlib.util.spec_from_file_location("planted_mark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mark", [True, False], ids=["with a mark", "without one"])
def test_a_planted_mark_is_found_and_confirmed_and_nothing_is_flagged_without_it(
    shared: Path, mark: bool
) -> None:
    told = study().run(0, "mnist", mark, epochs=6, count=1500, embedding="spectral")
    assert told["passed"], told
    if mark:
        assert told["inject"] > 3 * abs(told["inject control"]) and told["flips"] > 0.05


def planted(folder: Path, others: int = 80) -> tuple[Path, np.ndarray]:
    """A model, data and a store in a folder; class 1 has 80 samples, a bright corner in 30 % of them, class 0 has none."""
    (folder / "corner_nets.py").write_text(NETS)
    random = np.random.default_rng(0)
    x = random.gamma(2, 0.25, (others + 80, 1, 12, 12)).astype(np.float32)
    y = np.repeat([0, 1], [others, 80])
    x[:, :, -2:, -2:] = 0.02
    marked = np.sort(random.choice(np.arange(others, others + 80), 24, replace=False))
    x[marked, :, -2:, -2:] = random.uniform(0.8, 1, (24, 1, 2, 2))
    np.savez(folder / "data.npz", inputs=x, labels=y)
    store = folder / "maps.zarr"
    assert (
        main(
            [
                "run",
                "--model",
                "corner_nets:make",
                "--data",
                "data.npz",
                "--store",
                str(store),
                "--target",
                "true",
            ]
        )
        == 0
    )
    return store, marked


def test_the_command_names_the_mark_confirms_it_and_leaves_the_store_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store, marked = planted(tmp_path)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    capsys.readouterr()
    common = ["analyse", str(store), "--embedding", "spectral"]
    assert main([*common, "--model", "corner_nets:make", "--data", "data.npz", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    first = content["suspects"][0]
    assert content["flagged"] == 1 and first["class"] == 1 and first["confirmed"] is True
    assert "the lower right corner" in first["evidence"][0]["words"]
    assert before == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    held = analyse.load(folder_of(store))
    one, cluster = held.flagged[0]
    assert sorted(cluster.rows) == marked.tolist() and cluster.confirmation is not None
    assert one.accuracy == pytest.approx(
        np.mean(relprop.store.open(store).column("output")[80:].argmax(1) == 1)
    )
    assert Path(content["report"]).read_text().startswith("<!")

    assert main([*common, "--class", "1", "--out", "again"]) == 0
    printed = capsys.readouterr().out
    assert "flagged" in printed and "of the positive relevance lies at the lower right corner" in printed
    assert analyse.load("again").targets == [1]

    (tmp_path / "corner_nets.py").write_text(NETS.replace("0.3", "0.4"))
    np.savez(tmp_path / "other.npz", inputs=np.ones((160, 1, 12, 12), np.float32), labels=np.zeros(160, int))
    assert main([*common, "--model", "corner_nets:make", "--data", "other.npz"]) == 2


def test_a_class_of_three_samples_is_named_and_what_it_leaves_untried_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store, marked = planted(tmp_path, others=3)
    command = [
        "analyse",
        str(store),
        "--embedding",
        "none",
        "--model",
        "corner_nets:make",
        "--data",
        "data.npz",
    ]
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "class 0: 3 samples, fewer than 20" in printed and "untried" in printed
    assert "Not put to the test: 3 samples of classes other than class 1, 5 are needed." in printed
    (_, cluster), *_ = analyse.load(folder_of(store)).flagged
    assert sorted(cluster.rows) == marked.tolist() and cluster.confirmation is None
    assert cluster.unconfirmed.startswith("3 samples of classes other than")


def test_a_place_without_room_for_a_control_is_left_untried_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from relprop.run import Recipe, prepared

    monkeypatch.chdir(tmp_path)
    store = relprop.store.open(planted(tmp_path)[0])
    analysis = analyse.spray_store(store, embedding="none")
    one, cluster = analysis.flagged[0]
    large = replace(cluster, place=analyse.Place(0.25, 0.25, 0.75, 0.75))
    rest = tuple(large if other is cluster else other for other in one.clusters)
    wide = replace(
        analysis,
        classes=tuple(replace(c, clusters=rest) if c is one else c for c in analysis.classes),
    )
    task = prepared(Recipe(model="corner_nets:make", data="data.npz"))
    found = analyse.confirm_store(store, wide, task).flagged[0][1]
    assert (
        found.confirmation is None
        and found.unconfirmed == "the place leaves no room for a control of its size"
    )


def made(folder: Path, **columns: Any) -> Path:
    random = np.random.default_rng(0)
    given = {"relevance": random.gamma(1, 1, (40, 8, 8)), "output": random.normal(size=(40, 3))}
    given["target"] = np.zeros(40, int)
    write_store(folder / "maps.zarr", **{**given, **columns})
    return folder / "maps.zarr"


@pytest.mark.parametrize(
    ("columns", "arguments", "words"),
    [
        ({}, ["--class", "2"], "do: one of class 0"),
        ({}, ["--class", "horse"], "has no names of classes"),
        ({}, ["--seed", "-1"], "greater than or equal to 0"),
        ({}, ["--model", "demo"], "both the model and the data"),
        ({}, ["--report", "report.txt"], "does not end in .html"),
        ({}, ["--norm", "l3"], "l1, l2, max"),
        ({"status": np.full(40, 2)}, [], "no sample of"),
        (
            {"target": np.arange(40) // 3, "output": np.zeros((40, 14))},
            ["--class", "0"],
            "3 samples, fewer than 20",
        ),
        ({"relevance": np.ones((40, 8, 8))}, [], "all maps are the same"),
        ({"relevance": np.full((40, 8, 8), np.nan)}, [], "sample 0: NaN"),
        ({}, ["--correct"], "target is its label"),
    ],
)
def test_what_cannot_be_analysed_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    columns: dict[str, Any], arguments: list[str], words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["analyse", str(made(tmp_path, **columns)), "--embedding", "none", *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told and "Traceback" not in told and len(told.strip().splitlines()) <= 2
    assert not folder_of(tmp_path / "maps.zarr").exists(), "nothing is left behind"


@pytest.mark.parametrize(
    ("package", "named"),
    [("sklearn", "scikit-learn"), ("umap", "umap-learn"), ("matplotlib", "matplotlib"), ("jinja2", "jinja2")],
)
def test_a_missing_package_is_named_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    without: Callable[[str], None], package: str, named: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("relprop.analyse.strategies.analyse_class", lambda *_: pytest.fail("it computes"))
    _template.cache_clear()
    without(package)
    assert main(["analyse", str(made(tmp_path))]) == 2
    told = capsys.readouterr().err
    assert named in told.splitlines()[0] and "do: pip install 'relprop[" in told


def test_what_confirms_an_artefact_is_looked_for_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("relprop.analyse.strategies.analyse_class", lambda *_: pytest.fail("it computes"))
    store, _ = planted(tmp_path)
    capsys.readouterr()
    for arguments, words in [
        (["--model", "corner_nets:mkae", "--data", "data.npz"], "has no 'mkae'"),
        (["--model", "corner_nets:make", "--data", "dada.npz"], "dada.npz: no such file"),
        (["--report", "no/report.html"], "there is no folder 'no'"),
    ]:
        assert main(["analyse", str(store), *arguments]) == 2
        told = capsys.readouterr().err
        assert words in told and told.count("\n  do: ") == 1 and not folder_of(store).exists()


def test_what_is_no_store_is_refused_and_so_is_a_place_for_the_result_that_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(made(tmp_path))
    shutil.copytree(store, tmp_path / "bare.zarr")
    shutil.rmtree(tmp_path / "bare.zarr" / "relevance")
    (tmp_path / "file").write_text("")
    for arguments, words in [
        ([str(tmp_path / "nowhere")], "no such folder"),
        ([str(tmp_path / "bare.zarr")], "lacks the columns relevance"),
        ([str(tmp_path / "file")], "holds no store"),
        ([store, "--out", str(tmp_path / "file")], "is there and is no analysis"),
        ([store, "--out", str(tmp_path / "file" / "below")], "cannot be written"),
    ]:
        assert main(["analyse", *arguments, "--embedding", "none"]) == 2
        told = capsys.readouterr().err
        assert words in told and len(told.strip().splitlines()) <= 2


def test_texts_of_differing_lengths_end_where_they_end(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    relevance = random.gamma(1, 1, (40, 20))
    length = random.integers(8, 21, 40)
    relevance[np.arange(20) >= length[:, None]] = np.nan
    store = write_store(
        tmp_path / "words.zarr", relevance=relevance, output=random.normal(size=(40, 2)), target=np.zeros(40, int),
        length=length, kind="text",
    )  # fmt: skip
    assert analyse.spray_store(store, embedding="none").targets == [0]
    together = analyse.spray_store(store, embedding="none", together=True)
    assert together.targets == [-1] and len(together.classes[0].rows) == 40
    with pytest.raises(relprop.InvalidInput, match="leave out classes and correct"):
        analyse.spray_store(store, together=True, correct=True)


def test_failed_samples_take_no_part(tmp_path: Path) -> None:
    status = np.ones(40, int)
    status[7] = 2
    relevance = np.random.default_rng(0).gamma(1, 1, (40, 8, 8))
    relevance[7] = np.nan
    store = relprop.store.open(made(tmp_path, status=status, relevance=relevance))
    found = analyse.spray_store(store, embedding="none")
    assert 7 not in found[0].rows and len(found[0].rows) == 39 and found.source["analysed"] == 39


def test_an_unrelated_model_is_refused_for_confirmation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from relprop.run import Recipe, prepared

    monkeypatch.chdir(tmp_path)
    store, _ = planted(tmp_path)
    held = relprop.store.open(store)
    task = prepared(
        Recipe(model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 2)).eval(), data="data.npz")
    )
    with pytest.raises(relprop.InvalidInput, match="not the one that"):
        analyse.confirm_store(held, analyse.spray_store(held, embedding="none"), task)
