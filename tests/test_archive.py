"""A saved program that could run code when it is read is refused before torch reads it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch

import relprop


class Malicious:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


def saved(folder: Path) -> Path:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()).eval()
    shapes = ({0: torch.export.Dim.AUTO},)
    file = folder / "model.pt2"
    torch.export.save(torch.export.export(model, (torch.randn(2, 3),), dynamic_shapes=shapes), file)
    return file


def with_entry(file: Path, suffix: str, content: bytes) -> Path:
    """The same archive with one entry's content replaced."""
    other = file.with_name(f"changed_{file.name}")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith(suffix) else old.read(name))
    return other


def test_plain_program_is_read(tmp_path: Path) -> None:
    explanation = relprop.explain(str(saved(tmp_path)), torch.randn(3, 3), target=0)
    assert explanation.relevance.shape == (3, 3)


@pytest.mark.parametrize("suffix", ["sample_inputs/model.pt", "data/serialization_id"])
def test_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, suffix: str) -> None:
    trace = tmp_path / "ran"
    file = with_entry(saved(tmp_path), suffix, pickle.dumps(Malicious(trace)))
    with pytest.raises(relprop.InvalidInput, match="could run code"):
        relprop.explain(str(file), torch.randn(3, 3))
    assert not trace.exists()


def test_weight_declared_as_pickled_is_checked(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    file = saved(tmp_path)
    with zipfile.ZipFile(file) as archive:
        name = next(n for n in archive.namelist() if n.endswith("model_weights_config.json"))
        config = archive.read(name).replace(b'"use_pickle": false', b'"use_pickle": true')
    changed = with_entry(
        with_entry(file, "model_weights_config.json", config), "weight_0", pickle.dumps(Malicious(trace))
    )
    with pytest.raises(relprop.InvalidInput, match="could run code"):
        relprop.explain(str(changed), torch.randn(3, 3))
    assert not trace.exists()
