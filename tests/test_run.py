"""Whole data sets: every kind of data, failures that are told, resuming bit for bit, clusters, bad input in one line."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

import relprop
from relprop.errors import RelpropError, UnsupportedOperation

pytest.importorskip("zarr", reason="zarr is not installed")
Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")

from relprop import store as stores  # noqa: E402
from relprop.data import Preprocessing  # noqa: E402
from relprop.models import Loaded  # noqa: E402
from relprop.run.labels import classes_of  # noqa: E402
from relprop.text import Vocabulary  # noqa: E402

ROOT = Path(__file__).parents[1]
TINY = {"batch": 4, "threads": 1}


def network(outputs: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, outputs)
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network()


@pytest.fixture(scope="module")
def sees(model: nn.Module) -> Loaded:
    return Loaded(model, "small", "random", Preprocessing(24, 28), ("cat", "dog", "bird"))


def picture(seed: int, width: int = 40, height: int = 32) -> Any:
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Folders of classes, in which some files are no pictures."""
    folder = tmp_path / "photos"
    for number in range(7):
        place = folder / ("dog" if number % 2 else "cat")
        place.mkdir(parents=True, exist_ok=True)
        picture(number, 40 + 7 * number).save(place / f"{number}.png")
    (folder / "dog" / "empty.jpg").touch()
    (folder / "cat" / "broken.jpg").write_bytes(b"no picture")
    (folder / "cat" / "notes.txt").write_text("no sample")
    return folder


class Items(Dataset[Any]):
    """Random pictures: one cannot be read, one has no finite values, one is of another size."""

    def __init__(self, count: int = 12) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        if number == 5:
            raise ValueError("item 5 is damaged")
        draw = torch.Generator().manual_seed(number)
        item = torch.randn(3, 9 if number == 7 else 12, 12, generator=draw)
        return (item * float("nan") if number == 6 else item), number % 3


def files(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


# ---------------------------------------------------------------- what comes in


def test_a_folder_of_classes_becomes_a_store_with_labels_thumbnails_and_reasons(
    photos: Path, sees: Loaded, tmp_path: Path
) -> None:
    found = relprop.run(sees, photos, tmp_path / "s", **TINY)
    held = found.open()
    assert held.column("id").tolist()[:3] == ["cat/0.png", "cat/2.png", "cat/4.png"] and len(held) == 9
    assert (found.done, found.failed, found.before) == (7, 2, 0)
    at = {name: row for row, name in enumerate(held.column("id"))}
    assert "empty file" in held.column("reason")[at["dog/empty.jpg"]]
    assert "not a picture" in held.column("reason")[at["cat/broken.jpg"]]
    assert held.column("label")[[at["cat/0.png"], at["dog/1.png"], at["dog/empty.jpg"]]].tolist() == [0, 1, 1]
    assert held.column("thumbnail").shape == (9, 24, 24, 3) and held.kind == "image"
    row = at["dog/3.png"]
    how = sees.preprocessing
    crop = how.crop(Image.open(photos / "dog" / "3.png"))
    alone = relprop.explain(sees.model, how.tensor(crop)[None])
    assert np.allclose(held.relevance[row], alone.relevance[0], atol=1e-6)
    assert held.column("target")[row] == int(alone.target[0]) and held.classes == sees.classes
    assert held.column("score")[row] == pytest.approx(float(alone.score[0]), abs=1e-5)
    assert alone.audit is not None
    parts = held.column("relevance_sum")[row] + held.column("absorbed")[row] + held.column("gap")[row]
    assert parts == pytest.approx(float(alone.audit.score[0]), abs=1e-5)
    assert Path(held.column("source")[row]) == photos / "dog" / "3.png"
    failed = ~held.done
    assert np.isnan(held.relevance[failed]).all() and np.isnan(held.column("score")[failed]).all()


def as_npy(folder: Path, values: NDArray[Any]) -> Any:
    np.save(folder / "x.npy", values)
    return folder / "x.npy"


def as_npz(folder: Path, values: NDArray[Any]) -> Any:
    np.savez(folder / "x.npz", inputs=values, label=np.arange(len(values)) % 3)
    return folder / "x.npz"


def as_dataset(folder: Path, values: NDArray[Any]) -> Any:
    return torch.utils.data.TensorDataset(torch.from_numpy(values), torch.arange(len(values)) % 3)


ARRAYS = {"npy": as_npy, "npz": as_npz, "dataset": as_dataset, "memory": lambda folder, values: values}


@pytest.mark.parametrize("form", ARRAYS)
def test_arrays_are_explained_wherever_they_are(form: str, model: nn.Module, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(6, 3, 12, 12)).astype("float32")
    options = {"labels": [0, 1, 2, 0, 1, 2]} if form in ("npy", "memory") else {}
    found = relprop.run(
        model, ARRAYS[form](tmp_path, values), tmp_path / "s", target="true", **options, **TINY
    )
    held = found.open()
    expected = relprop.explain(model, torch.from_numpy(values), [0, 1, 2, 0, 1, 2])
    assert np.allclose(held.relevance[:], expected.relevance, atol=1e-6)
    assert held.column("target").tolist() == held.column("label").tolist() == [0, 1, 2, 0, 1, 2]
    assert held.relevance.axes == ("sample", "channel", "y", "x") and found.failed == 0


def test_pictures_in_numbers_are_prepared_as_photographs_are(sees: Loaded, tmp_path: Path) -> None:
    raw = np.stack([np.asarray(picture(seed)) for seed in range(3)])
    held = relprop.run(sees, raw, tmp_path / "s", **TINY).open()
    crops = torch.stack(
        [sees.preprocessing.tensor(sees.preprocessing.crop(picture(seed))) for seed in range(3)]
    )
    assert np.allclose(held.relevance[:], relprop.explain(sees.model, crops).relevance, atol=1e-6)


def test_tars_are_read_in_place(sees: Loaded, photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "part-0.tar", "w") as tar:
        for number in (0, 2):
            tar.add(photos / "cat" / f"{number}.png", f"{number:03}.png")
            for name, text in ((f"{number:03}.cls", b"2"), (f"{number:03}.json", b"{}")):
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text))
    held = relprop.run(sees, tmp_path / "part-0.tar", tmp_path / "tar", **TINY).open()
    direct = relprop.run(
        sees, [photos / "cat" / f"{n}.png" for n in (0, 2)], tmp_path / "files", **TINY
    ).open()
    assert np.array_equal(held.relevance[:], direct.relevance[:])
    assert held.column("id").tolist() == ["part-0/000", "part-0/002"] and held.column("label").tolist() == [
        2,
        2,
    ]
    whole = (tmp_path / "part-0.tar").read_bytes()
    (tmp_path / "short.tar").write_bytes(whole[:2000])
    assert "tar" in refusal(lambda: relprop.run(sees, tmp_path / "short.tar", tmp_path / "n", **TINY))


@pytest.mark.parametrize("ending", ["csv", "tsv.gz", "parquet"])
def test_tables_are_read_by_their_columns(ending: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval().double()
    rows = [("r1", 0.5, 1.0, 1), ("r2", -1.0, 2.0, 0), ("r3", 3.0, None, None), ("r4", 2.0, 0.25, 1)]
    file = tmp_path / f"x.{ending}"
    if ending == "parquet":
        arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
        import pyarrow.parquet as parquet

        names = ("id", "a", "b", "label")
        parquet.write_table(
            arrow.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), file
        )
    else:
        import gzip

        mark = "\t" if "tsv" in ending else ","
        lines = [mark.join(["id", "a", "b", "label"])]
        lines += [mark.join("" if value is None else str(value) for value in row) for row in rows]
        text = "\n".join(lines).encode()
        file.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    found = relprop.run(dense, file, tmp_path / "s", dtype="float64", **TINY)
    held = found.open()
    inputs = torch.tensor([[0.5, 1.0], [-1.0, 2.0], [2.0, 0.25]], dtype=torch.float64)
    assert np.allclose(held.relevance[held.done], relprop.explain(dense, inputs).relevance, atol=1e-12)
    assert held.column("id").tolist() == ["r1", "r2", "r3", "r4"] and held.kind == "table"
    assert held.column("label").tolist() == [1, 0, -1, 1] and held.attributes["features"] == ["a", "b"]
    assert "'b'" in held.column("reason")[2] and found.failed == 1


class Reader(nn.Module):
    """A bag of words with a mask by the padding's own embedding, which is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(6, 4, padding_idx=0), nn.Linear(4, 2, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.table(ids).sum(1))


def test_texts_keep_their_tokens_and_their_lengths(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reader, words = Reader().eval().double(), Vocabulary(["[pad]", "a", "dull", "good", "film"], padding=0)
    texts = ["a dull film", "good", "an unknown word", "a good good film"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    found = relprop.run(
        reader, tmp_path / "texts.txt", tmp_path / "s", tokenizer=words, dtype="float64", **TINY
    )
    held = found.open()
    assert held.relevance.shape == (4, 4) and held.column("length").tolist() == [3, 1, 0, 4]
    tokens = json.loads(held.column("tokens")[0])
    assert tokens == [["a", 0, 1], ["dull", 2, 6], ["film", 7, 11]] and held.column("text")[3] == texts[3]
    alone = relprop.explain(reader, texts[0], tokenizer=words).tokens[0]
    assert np.allclose(held.relevance[0], [*(t.relevance for t in alone), 0.0]) and held.kind == "text"
    assert "not in the vocabulary" in held.column("reason")[2] and found.failed == 1
    assert held.column("source")[1].endswith("texts.txt#2")


def test_recordings_of_different_lengths_are_filled_up(tmp_path: Path) -> None:
    sound = pytest.importorskip("soundfile", reason="soundfile is not installed")

    class Hears(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters, self.last = nn.Conv1d(1, 3, 9, stride=4), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.filters(x)).mean(-1))

    torch.manual_seed(0)
    hears = Hears().eval()
    for name, length in (("a", 200), ("b", 330), ("c", 200)):
        values = np.random.default_rng(length).normal(size=length).astype("float32") / 10
        sound.write(tmp_path / f"{name}.wav", values, 8000, subtype="FLOAT")
    held = relprop.run(hears, tmp_path, tmp_path / "s", channels=1, reduce="channels", **TINY).open()
    assert held.relevance.shape == (3, 330) and held.column("length").tolist() == [200, 330, 200]
    assert held.kind == "audio" and held.relevance.axes == ("sample", "time")
    values, _ = sound.read(tmp_path / "a.wav", dtype="float32")
    alone = relprop.explain(hears, torch.from_numpy(values)[None, None])
    assert np.allclose(held.relevance[0][:200], alone.relevance[0, 0], atol=1e-6)
    assert (held.relevance[0][200:] == 0).all()


# ---------------------------------------------------------------- what is explained, and how it is kept


def test_the_largest_outputs_get_a_row_each(model: nn.Module, tmp_path: Path) -> None:
    found = relprop.run(model, Items(6), tmp_path / "s", target="top-2", **TINY)
    held = found.open()
    assert len(held) == 12 and found.samples == 6 and found.failed == 1
    assert held.column("id").tolist()[:3] == ["0#1", "0#2", "1#1"] and held.column("rank")[:3].tolist() == [
        1,
        2,
        1,
    ]
    inputs = Items()[3][0][None]
    ranked = model(inputs)[0].argsort(descending=True)
    for rank in range(2):
        alone = relprop.explain(model, inputs, int(ranked[rank]))
        assert held.column("target")[6 + rank] == int(ranked[rank])
        assert np.allclose(held.relevance[6 + rank], alone.relevance[0], atol=1e-6)


def test_what_fails_is_told_and_the_others_go_on(model: nn.Module, tmp_path: Path) -> None:
    found = relprop.run(model, Items(), tmp_path / "s", target=1, **TINY)
    held = found.open()
    assert (found.done, found.failed) == (9, 3) and (held.column("target")[held.done] == 1).all()
    reasons = dict(found.failures)
    assert reasons["5"] == "ValueError: item 5 is damaged"
    assert "NaN or infinite" in reasons["6"] and "where the store holds (3, 12, 12)" in reasons["7"]


def test_channels_are_summed_and_small_maps_are_kept(tmp_path: Path, model: nn.Module) -> None:
    values = torch.randn(2, 3, 64, 64)
    held = relprop.run(model, values, tmp_path / "s", reduce="channels", dtype="float16", **TINY).open()
    whole = relprop.explain(model, values).relevance.sum(1)
    assert held.relevance.dtype == np.float16
    assert np.allclose(held.relevance[:], whole, atol=2e-3 * float(whole.abs().max()))
    assert np.allclose(held.column("pooled"), whole.reshape(2, 32, 2, 32, 2).mean((2, 4)), atol=1e-6)


def test_relevance_that_16_bits_would_lose_is_refused_not_rounded(tmp_path: Path) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 2, bias=False)).eval()
    values = torch.rand(3, 3, 2, 2) * torch.tensor([1.0, 1e-8, 1e8])[:, None, None, None]
    found = relprop.run(linear, values, tmp_path / "s", dtype="float16", **TINY)
    assert found.open().done.tolist() == [True, False, False]
    reasons = dict(found.failures)
    assert "loses more than 2 %" in reasons["1"] and "too large in float16" in reasons["2"]


def test_names_of_labels_become_classes_of_the_model() -> None:
    named = classes_of(["tabby_cat", "dog", None], ("tabby cat, tabby", "lion", "dog"), 3)
    assert [named.number(one) for one in ("tabby_cat", "dog", None)] == [0, 2, -1]
    assert classes_of(["7", 2], ("x",), 9).number("7") == 7
    sorted_ones = classes_of(["b", "a", "c"], (), 3)
    assert sorted_ones.number("c") == 2 and sorted_ones.names == ("a", "b", "c")
    other = classes_of(["b", "a"], ("x", "y", "z"), 3)
    assert other.number("a") == -1 and other.unknown == ("a", "b")


def test_labels_come_from_a_file_and_those_that_lack_are_counted(
    photos: Path, sees: Loaded, tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text("file,label\n0.png,bird\n1.png,2\n")
    found = relprop.run(sees, photos, tmp_path / "s", labels=tmp_path / "labels.csv", **TINY)
    held = found.open()
    at = {name: row for row, name in enumerate(held.column("id"))}
    assert held.column("label")[[at["cat/0.png"], at["dog/1.png"], at["cat/2.png"]]].tolist() == [2, 2, -1]
    assert found.unlabelled == 5


def test_the_store_tells_how_it_was_made(model: nn.Module, tmp_path: Path) -> None:
    held = relprop.run(model, Items(4), tmp_path / "s", rules="epsilon", command="by hand", **TINY).open()
    told = held.attributes
    assert told["command"] == "by hand" and told["versions"]["torch"] == torch.__version__
    assert told["model"]["fingerprint"] and told["data"]["samples"] == 4 and told["rules"] == "epsilon"
    assert {row["rule"] for row in told["plan"]} >= {repr(relprop.rules.Epsilon())}


# ---------------------------------------------------------------- stopped and gone on with


def test_a_stopped_run_goes_on_to_the_same_bits(model: nn.Module, tmp_path: Path) -> None:
    relprop.run(model, Items(), tmp_path / "whole", block=4, **TINY)

    class Stop(Exception):
        pass

    seen = []

    def stop(added: relprop.run.Tally) -> None:  # type: ignore[name-defined]
        seen.append(added)
        if len(seen) == 2:
            raise Stop

    with pytest.raises(Stop):
        relprop.run(model, Items(), tmp_path / "s", block=4, progress=stop, **TINY)
    half = stores.open(tmp_path / "s")
    assert (half.status > 0).sum() == 4 and not half.complete
    found = relprop.run(model, Items(), tmp_path / "s", block=4, resume=True, **TINY)
    assert found.before == 4 and files(tmp_path / "s") == files(tmp_path / "whole")
    again = relprop.run(model, Items(), tmp_path / "s", resume=True, **TINY)
    assert again.before == again.samples == 12


def test_runs_killed_at_random_moments_and_full_disks_lose_nothing() -> None:
    script = ROOT / "benchmarks" / "resume.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "5"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "completed stores are equal" in done.stdout and "files limited" in done.stdout


OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": network(seed=1)}, "another model"),
    "rules": ({"rules": "epsilon"}, "another plan"),
    "method": ({"method": "gradient"}, "another method"),
    "data": ({"data": Items(11)}, "another data set"),
    "target": ({"target": 1}, "another target"),
    "labels": ({"labels": [0] * 12}, "another labels"),
    "batch": ({"batch": 2}, "another batch (4, now 2)"),
    "dtype": ({"dtype": "float64"}, "another dtype"),
}


def test_a_store_of_another_model_plan_or_data_set_is_refused(model: nn.Module, tmp_path: Path) -> None:
    relprop.run(model, Items(), tmp_path / "s", **TINY)
    before = files(tmp_path / "s")
    for changed, words in OTHER.values():
        asked = {"model": model, "data": Items(), **TINY, **changed}
        given, data = asked.pop("model"), asked.pop("data")
        assert words in refusal(
            lambda g=given, d=data, a=asked: relprop.run(g, d, tmp_path / "s", resume=True, **a)
        )
    assert files(tmp_path / "s") == before
    assert "holds a store already" in refusal(lambda: relprop.run(model, Items(), tmp_path / "s", **TINY))
    told = json.loads((tmp_path / "s" / "zarr.json").read_text())
    told["attributes"]["schema"] = 99
    (tmp_path / "s" / "zarr.json").write_text(json.dumps(told))
    assert "schema 99" in refusal(lambda: relprop.run(model, Items(), tmp_path / "s", resume=True, **TINY))
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "notes").touch()
    assert "holds no store" in refusal(
        lambda: relprop.run(model, Items(), tmp_path / "t", resume=True, **TINY)
    )


def test_a_store_is_written_by_one_run_at_a_time(model: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="no locks here")
    relprop.run(model, Items(4), tmp_path / "s", **TINY)
    from relprop.run.whole import _locked

    with _locked(tmp_path / "s"):
        assert "another run" in refusal(
            lambda: relprop.run(model, Items(4), tmp_path / "s", resume=True, **TINY)
        )


# ---------------------------------------------------------------- bad input


def refusal(action: Any) -> str:
    with pytest.raises(RelpropError) as caught:
        action()
    lines = str(caught.value).split("\n")
    assert len(lines) <= 2 and all(line.strip() for line in lines), lines
    return str(caught.value)


def test_bad_data_is_refused_before_a_store_is_made(model: nn.Module, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("\n")
    (tmp_path / "none.csv").write_text("a,b\n")
    (tmp_path / "words.csv").write_text("a,b\nx,y\n")
    (tmp_path / "bad.npz").write_bytes(b"no")
    np.savez(tmp_path / "odd.npz", a=np.ones((2, 2)), b=np.ones((2, 2)))
    np.save(tmp_path / "flat.npy", np.ones(3))
    place = tmp_path / "s"
    for data, words in (
        (tmp_path / "empty", "without photographs"),
        (tmp_path / "nowhere", "no such file or folder"),
        (tmp_path / "list.txt", "lists no files"),
        (tmp_path / "none.csv", "no rows"),
        (tmp_path / "words.csv", "no columns of numbers"),
        (tmp_path / "bad.npz", "no arrays"),
        (tmp_path / "odd.npz", "call the samples inputs"),
        (tmp_path / "flat.npy", "a row a sample"),
        ("no_such_module:make", "no module"),
        ("collections:OrderedDict", "is empty"),
        (iter([1]), "is no data set"),
        (Items(0), "is empty"),
        ([photos / "cat" / "0.png"] * 2, "named twice"),
        (photos / "dog" / "empty.jpg", "none of the first 1 samples"),
    ):
        assert words in refusal(lambda d=data: relprop.run(model, d, place, **TINY)), words
    assert not place.exists()


def test_bad_options_are_refused(model: nn.Module, sees: Loaded, photos: Path, tmp_path: Path) -> None:
    for options, words in (
        ({"reduce": "all"}, "reduce"),
        ({"dtype": "int8"}, "dtype"),
        ({"batch": 0}, "batch"),
        ({"target": "top-x"}, "top-3"),
        ({"target": "top-9"}, "top-9"),
        ({"target": "cow"}, "cow"),
        ({"target": 3}, "3"),
        ({"labels": [1]}, "labels"),
        ({"labels": tmp_path / "none.csv"}, "no such file"),
        ({"rules": "nothing"}, "nothing"),
    ):
        assert words in refusal(lambda o=options: relprop.run(sees, photos, tmp_path / "s", **o)), words
    unlabelled = np.zeros((2, 3, 12, 12), "float32")
    assert "no labels" in refusal(lambda: relprop.run(model, unlabelled, tmp_path / "s", target="true"))
    other = Loaded(model, "small", "random", sees.preprocessing, ("x", "y", "z"))
    assert "none of the model's classes" in refusal(
        lambda: relprop.run(other, photos, tmp_path / "s", target="true")
    )
    assert not (tmp_path / "s").exists()


def test_files_and_folders_that_may_not_be_read_are_told_as_that(
    sees: Loaded, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(place: Any, *given: Any, **more: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", denied)
        told = refusal(lambda: relprop.run(sees, photos, tmp_path / "s", **TINY))
    assert "0.png: it may not be read (Permission denied)" in told and "damaged" not in told
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", denied)
        told = refusal(lambda: relprop.run(sees, photos, tmp_path / "s", **TINY))
    assert "the folder" in told and "cannot be read (Permission denied)" in told


def test_a_model_that_no_rule_covers_is_refused_by_the_operation(tmp_path: Path) -> None:
    class Sorts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.matrix_exp(x)[:, 0]

    with pytest.raises(UnsupportedOperation, match="matrix_exp"):
        relprop.run(Sorts().eval(), torch.randn(3, 4, 4), tmp_path / "s", **TINY)
    assert not (tmp_path / "s").exists()


def test_a_read_only_and_a_full_disk_are_told_in_one_line(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zarr

    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(
        lambda: relprop.run(model, Items(4), tmp_path / "file" / "s", **TINY)
    )

    def no_right(**given: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:  # told before anything is explained
        patch.setattr(tempfile, "TemporaryFile", no_right)
        patch.setattr(stores, "create", None)
        assert "Read-only" in refusal(lambda: relprop.run(model, Items(4), tmp_path / "s", **TINY))
    for number, words in ((errno.EROFS, "can be written"), (errno.ENOSPC, "--resume")):

        def refuse(*given: Any, code: int = number, **more: Any) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(zarr, "create_group", refuse)
            # the size is estimated in memory by the same function: the trial is left out
            from relprop.store import Spec, create

            specs = {
                "relevance": Spec("float32", (2,), ("feature",)),
                "output": Spec("float32", (1,), ("output",)),
            }
            assert words in refusal(lambda s=specs: create(tmp_path / "s", 3, s, {"kind": "table"}))


# ---------------------------------------------------------------- the command line

NETS = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.ReLU(), nn.Linear(4, 3))

def data():
    return TensorDataset(torch.arange(480.).reshape(10, 3, 4, 4).sin(), torch.arange(10) % 3)

def damaged():
    return [torch.ones(3, 4, 4), torch.full((3, 4, 4), float("nan")), torch.zeros(3, 4, 4)]
"""


def test_the_command_runs_resumes_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("typer", reason="typer is not installed")
    from relprop.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "run_nets.py").write_text(NETS)
    base = ["run", "--model", "run_nets:make", "--data", "run_nets:data", "--batch", "4", "--store", "s"]
    assert main([*base, "--dry-run"]) == 0 and not (tmp_path / "s").exists()
    told = capsys.readouterr().out
    assert "10 samples, image" in told and "3 × 4 × 4 float32" in told and "samples a second" in told
    assert main([*base, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["done"], content["failed"], content["store"]) == (10, 0, "s")
    assert main([*base, "--resume"]) == 0
    told = capsys.readouterr().out
    assert "10 of 10 explained, 10 of them before" in told and "nothing was left to do" in told
    for more, words in (
        ([], "holds a store already"),
        (["--resume", "--target", "true"], "another target (predicted, now true)"),
    ):
        assert main([*base, *more]) == 2
        shown = capsys.readouterr().err
        assert words in shown and "Traceback" not in shown and shown.count("error:") == 1
    assert main(["run", "--store", "t"]) == 2 and "--data" in capsys.readouterr().err
    capsys.readouterr()
    (tmp_path / "two.txt").write_text("ant\nbee\n")
    assert main([*base[:-1], "t", "--classes", "two.txt"]) == 2 and not (tmp_path / "t").exists()
    assert "classes: 2 names for 3 outputs" in capsys.readouterr().err
    assert main([*base[:-1], "t", "--rules", "epsilon", "--preset", "lrp_half"]) == 2
    assert "do: give one of them" in capsys.readouterr().err
    failing = ["run", "--model", "run_nets:make", "--data", "run_nets:damaged", "--store", "f"]
    assert main(failing) == 0
    assert "note: 1 of 3 samples failed" in capsys.readouterr().err.splitlines()[-1]
    assert main([*failing, "--resume", "--strict"]) == 2
    held = stores.open(tmp_path / "s")
    assert held.attributes["command"].startswith("relprop") and held.done.all()


# ---------------------------------------------------------------- clusters


def test_a_cluster_comes_to_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    import warnings

    values = torch.randn(12, 3, 12, 12)
    values[4] = float("nan")
    relprop.run(network(), values, tmp_path / "one", block=4, command="c", **TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        found = relprop.run(
            network(), values, tmp_path / "two", block=4, command="c", ray="local", workers=1, **TINY
        )
    assert not ray.is_initialized()
    assert found.done == 11 and files(tmp_path / "one") == files(tmp_path / "two")


def test_without_ray_the_install_command_is_named(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "relprop[ray]" in refusal(
        lambda: relprop.run(model, Items(4), tmp_path / "s", ray="local", **TINY)
    )
    assert not (tmp_path / "s").exists()


def test_the_time_of_samples_that_are_read_one_at_a_time_is_theirs(model: nn.Module, tmp_path: Path) -> None:
    from relprop.run import Recipe, estimated, prepared, tried

    task = prepared(Recipe(model=model, data=Items(5), **TINY))
    trial = dataclasses.replace(tried(task), load=1.0, compute=0.1)
    assert estimated(task, trial, tmp_path / "s").seconds == pytest.approx(5)


@pytest.mark.parametrize(("package", "extra"), [("zarr", "run"), ("PIL", "show")])
def test_a_missing_package_is_no_fault_of_the_samples(
    photos: Path, sees: Loaded, tmp_path: Path, without: Callable[[str], None], package: str, extra: str
) -> None:
    without(package)
    with pytest.raises(relprop.MissingExtra, match=rf"do: pip install 'relprop\[{extra}\]'"):
        relprop.run(sees, photos, tmp_path / "s", **TINY)
    assert not (tmp_path / "s").exists()


def test_a_cluster_that_does_not_answer_is_refused_before_a_store_is_made(
    model: nn.Module, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    assert "no cluster at" in refusal(
        lambda: relprop.run(model, Items(4), tmp_path / "s", ray="127.0.0.1:1", **TINY)
    )
    assert not (tmp_path / "s").exists()
