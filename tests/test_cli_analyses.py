"""The commands over stores: context, compare, words, export and import."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import relprop
from relprop.analyse import load
from relprop.cli import main
from relprop.store import write_store
from test_analyse_stored import a_store as photographs_store
from test_analyse_stored import photographs, texts
from test_exchange import a_store, an_analysis

pytest.importorskip("zarr")
pytest.importorskip("scipy")
pytest.importorskip("h5py")

BOXES = "file,class_name,x0,y0,x1,y1\n" + "".join(f"{i}.png,{'dog' if i % 2 else 'cat'},0,0,12,16\n" for i in range(8))  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_context_prints_a_table_and_draws_a_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    photographs_store(folder / "store", photographs(folder / "photos"), 1.0)
    (folder / "boxes.csv").write_text(BOXES)
    (folder / "classes.csv").write_text("class_name,outputs\ncat,0\ndog,1\n")
    command = ["context", "store", "--boxes", "boxes.csv", "--classes", "classes.csv"]
    assert main([*command, "-o", "context.png"]) == 0
    told = capsys.readouterr().out
    assert "all classes" in told and "100.0%" in told
    with image.open(folder / "context.png") as drawn:
        assert drawn.size[0] > 300
    assert main([*command, "--json", "--signed"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pool"] == "signed" and found["overall"]["used"] == 8 and found["excluded"] == {}
    assert main(["context", "store", "--boxes", "none.csv"]) == 2
    assert capsys.readouterr().err.startswith("error: none.csv: cannot be read")


def test_compare_lists_where_strategies_differ(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [f"/there/{i}.png" for i in range(30)]
    photographs_store(folder / "first", sources, 1.0)
    photographs_store(folder / "second", sources, 0.0, seed=1)
    assert main(["compare", "first", "second", "--grid", "2"]) == 0
    told = capsys.readouterr().out
    assert "100.0% have the same prediction" in told and "row 1, column 1" in told and "McNemar p = 1" in told
    assert main(["compare", "first", "second", "--grid", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["compared"] == 30 and found["contrasts"][0]["p"] < 0.01
    photographs_store(folder / "few", sources[:4], 1.0)
    assert main(["compare", "first", "few"]) == 0
    assert "no class has the six samples" in capsys.readouterr().out
    texts(folder / "texts", 0.0)
    assert main(["compare", "first", "texts"]) == 2
    assert "do: give two stores of the same data" in capsys.readouterr().err
    photographs_store(folder / "elsewhere", [f"/elsewhere/of another set {i}.png" for i in range(30)], 1.0)
    assert main(["compare", "first", "elsewhere"]) == 2
    assert "share no sample" in capsys.readouterr().err
    assert main(["words", "first"]) == 2
    assert "holds no tokens (kind 'image')" in capsys.readouterr().err


def test_a_missing_package_is_named_before_anything_is_computed(
    folder: Path, capsys: pytest.CaptureFixture[str], without: Callable[[str], None]
) -> None:
    photographs_store(folder / "store", photographs(folder / "photos"), 1.0)
    texts(folder / "first", 0.0)
    texts(folder / "second", 3.0)
    without("scipy")
    assert main(["compare", "first", "second"]) == 2
    assert (
        capsys.readouterr().err == "error: this analysis needs scipy\n  do: pip install 'relprop[analyse]'\n"
    )
    without("matplotlib")
    (folder / "boxes.csv").write_text(BOXES)
    assert main(["context", "store", "--boxes", "boxes.csv", "-o", "no/context.png"]) == 2
    assert "there is no folder 'no'" in capsys.readouterr().err
    assert main(["context", "store", "--boxes", "boxes.csv", "-o", "context.png"]) == 2
    assert "pip install 'relprop[show]'" in capsys.readouterr().err


def test_words_lists_each_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts(folder / "first", 0.0)
    texts(folder / "second", 3.0)
    assert main(["words", "first", "--other", "second", "--top", "2"]) == 0
    told = capsys.readouterr().out
    assert "fine" in told and "shared" in told
    assert main(["words", "first", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"]["bad"][0]["word"] == "dull"
    assert main(["words", "first", "--least", "50"]) == 2
    assert "do: a smaller --least" in capsys.readouterr().err


def test_strategies_leave_as_a_table_and_a_project_and_come_back(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = a_store(folder / "store")
    an_analysis(store).save(folder / "store.analysis")
    assert main(["export", "store", "--table", "all.parquet"]) == 0  # the analysis beside the store
    assert "12 samples" in capsys.readouterr().out
    (folder / "store.analysis").rename(folder / "analysis")
    command = ["export", "store", "--analysis", "analysis"]
    assert (
        main([*command, "--virelay", "project", "--table", "one.csv", "--target", "1", "--strategy", "1"])
        == 0
    )
    assert "virelay project/project.yaml" in capsys.readouterr().out
    with (folder / "one.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["photo 6", "photo 8", "photo 10"] and rows[0]["label"] == "1"
    assert main(["import", "project", "--store", "again", "--analysis", "clusters", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["classes"]) == (12, 2) and (folder / "clusters" / "analysis.json").is_file()
    for arguments, words in [
        (["export", "store"], "do: give --virelay DIR or --table FILE"),
        (["export", "store", "--table", "x.csv"], "or give --analysis DIR"),
        ([*command, "--table", "x.csv", "--target", "9"], "class 9: not analysed"),
        ([*command, "--virelay", "project"], "is in use"),
        (["import", "none.yaml", "--store", "new"], "none.yaml: cannot be read"),
        (["import", "project/project.yaml", "--store", "again"], "holds a store already"),
        (["export", "nothing", "--virelay", "x"], "no such folder"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error
    small = a_store(folder / "small", **{name: np.asarray(store.column(name))[:3] for name in ("relevance", "output", "label", "thumbnail")}, id=["a", "b", "c"])  # fmt: skip
    assert len(small) == 3 and main(["export", "small", "--analysis", "analysis", "--virelay", "y"]) == 2
    assert "the analysis of this store" in capsys.readouterr().err


def test_a_full_disk_is_told_and_leaves_nothing_half_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = a_store(folder / "store")
    an_analysis(store).save(folder / "analysis")
    command = ["export", "store", "--analysis", "analysis"]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        assert main([*command, "--table", "rows.csv"]) == 2
    assert "rows.csv: cannot be written (No space left on device)\n  do: make room" in capsys.readouterr().err
    with monkeypatch.context() as disk:
        disk.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
        assert main([*command, "--virelay", "project"]) == 2
    assert "and the disk has 100\n  do: make room" in capsys.readouterr().err
    with monkeypatch.context() as disk:
        disk.setattr("relprop.store.write.add_column", full)
        with pytest.raises(relprop.RelpropError, match="do: make room"):
            write_store(folder / "new", relevance=np.ones((4, 8, 8)), output=np.ones((4, 2)))
    assert sorted(path.name for path in folder.iterdir()) == ["analysis", "project", "store"]
    assert main([*command, "--virelay", "project", "--table", "rows.csv"]) == 0


def test_classes_too_small_for_an_analysis_are_analysed_together(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    draw = np.random.default_rng(0)
    count = 48
    maps = draw.gamma(1, 1, (count, 1, 12, 12)).astype(np.float32)
    maps[::2, :, 2:5, :] += 4
    maps[1::2, :, :, 7:10] += 4
    output = np.eye(count, dtype=np.float32) + 0.01
    label = np.arange(count)
    label[3] = 4
    status = np.ones(count)
    status[-1] = 0
    photos = np.full((count, 12, 12, 3), 128, np.uint8)
    write_store(folder / "few", relevance=maps, output=output, label=label, status=status, thumbnail=photos)
    assert main(["analyse", "few", "--embedding", "spectral"]) == 0
    told = capsys.readouterr()
    assert "no class has the 20 samples" in told.err and "1 of 48 samples are not explained yet" in told.err
    found = load("few.analysis")
    assert found.targets == [-1] and found.classes[0].name == "all samples"
    assert {tuple(sorted(c.rows % 2)) for c in found.classes[0].clusters} == {(0,) * 24, (1,) * 23}
    assert found.classes[0].accuracy == pytest.approx(46 / 47)
    page = (folder / "few.analysis" / "report.html").read_text()
    assert "analysed as one group" in page and "100 % of the class" not in page
    write_store(folder / "none", relevance=maps, output=output, status=np.zeros(count))
    assert main(["analyse", "none", "--embedding", "none"]) == 2
    told = capsys.readouterr().err
    assert "no sample of none is explained yet" in told and "of the others" not in told
    assert main(["analyse", "few", "--embedding", "none", "--class", "3"]) == 2
    assert "1 samples, fewer than 20" in capsys.readouterr().err
    (folder / "file").touch()
    for more, words in (
        (["--out", "file/result"], "result: file/result cannot be written (Not a directory)"),
        (["--together", "--class", "3"], "leave out --class"),
        (["--model", "demo", "--data", "x"], "more samples a class"),
    ):
        assert main(["analyse", "few", *more]) == 2
        assert words in capsys.readouterr().err
    assert main(["export", "few", "--virelay", "project"]) == 0
    assert main(["import", "project/project.yaml", "--store", "back", "--analysis", "back.analysis"]) == 0
    again = load("back.analysis").classes[0]
    assert (again.target, again.name, len(again.rows)) == (-1, "all samples", 47)
    assert main(["export", "few", "--table", "few.csv", "--target", "-1", "--strategy", "1"]) == 0
    assert "strategy" in (folder / "few.csv").read_text().partition("\n")[0]
