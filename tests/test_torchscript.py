"""TorchScript modules and files, and programs of torch.export with inputs and outputs of every form."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.network, self.out = (
            nn.Embedding(9, 4),
            nn.LSTM(4, 3, batch_first=True),
            nn.Linear(3, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.network(self.table(x))[0][:, -1])


class Branching(nn.Module):
    """Which layer it uses depends on the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return torch.relu(self.one(x))
        return self.two(x)


def compiled(model: nn.Module, x: Tensor, how: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(model) if how == "script" else torch.jit.trace(model, x)


MODELS = {
    "convolutional": (Convolutional, torch.randn(3, 2, 6, 6)),
    "recurrent": (Recurrent, torch.randint(0, 9, (3, 5))),
}


@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("name", MODELS)
def test_a_script_has_the_relevance_of_its_module(name: str, how: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind, x = MODELS[name]
    model = kind().eval()
    script = compiled(model, x, how)
    torch.jit.save(script, tmp_path / "model.pt")
    expected = relprop.explain(model, x, 1)
    scale = float(expected.relevance.abs().max())
    for given in (script, tmp_path / "model.pt"):
        found = relprop.explain(given, x, 1)
        torch.testing.assert_close(found.output, expected.output)
        torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-3, atol=1e-4 * scale)


def test_branches_by_value_are_taken_for_each_sample() -> None:
    torch.manual_seed(0)
    model = Branching().eval()
    x = torch.randn(4, 4)
    x = x - x.mean(1, True) + torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    script = compiled(model, x, "script")
    found = relprop.explain(script, x, 1, "epsilon")
    for i in range(4):
        alone = relprop.explain(model, x[i : i + 1], 1, "epsilon")
        torch.testing.assert_close(found.relevance[i : i + 1], alone.relevance)


def test_weights_of_a_script_are_read_live_and_it_stays_as_it_was() -> None:
    torch.manual_seed(0)
    x = MODELS["convolutional"][1]
    script = compiled(Convolutional().eval(), x, "trace")
    before = {name: value.clone() for name, value in script.state_dict().items()}
    first = relprop.explain(script, x, 1)
    assert all(torch.equal(script.state_dict()[name], value) for name, value in before.items())
    with torch.no_grad():
        for value in script.parameters():
            value.mul_(1.5)
    second = relprop.explain(script, x, 1)
    torch.testing.assert_close(second.output, script(x).detach())
    assert not torch.allclose(first.score, second.score)


def test_files_that_are_no_torchscript_are_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "weights.pt")
    torch.save(nn.Linear(4, 3), tmp_path / "pickled.pt")
    for name in ("weights.pt", "pickled.pt"):
        with pytest.raises(
            relprop.InvalidInput, match=rf"{name} is no TorchScript: it holds weights, or a pickled"
        ):
            relprop.explain(tmp_path / name, x, 1)
    held = tmp_path / "whole.pt"
    torch.jit.save(compiled(nn.Linear(4, 3).eval(), x, "trace"), held)
    (tmp_path / "short.pt").write_bytes(held.read_bytes()[:-300])
    with pytest.raises(relprop.InvalidInput, match=r"short\.pt is .*TorchScript.*\n  do: "):
        relprop.explain(tmp_path / "short.pt", x, 1)
    with pytest.raises(relprop.InvalidInput, match=r"no file .*none\.pt"):
        relprop.explain(tmp_path / "none.pt", x, 1)


def test_a_script_in_training_mode_is_refused(tmp_path: Path) -> None:
    script = compiled(nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train(), torch.randn(2, 4), "script")
    torch.jit.save(script, tmp_path / "model.pt")
    for given in (script, tmp_path / "model.pt"):
        with pytest.raises(relprop.InvalidInput, match=r"training mode.*\n  do: call model\.eval\(\)"):
            relprop.explain(given, torch.randn(2, 4), 1)


# programs of torch.export


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, *, mask: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.one(x * mask))
        return {"hidden": hidden.mean(1), "logits": self.two(hidden).mean(1)}


def test_a_program_takes_names_free_sizes_and_gives_several_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Several().eval()
    given = {"x": torch.randn(2, 5, 4), "mask": torch.rand(2, 5, 4)}
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (), given, dynamic_shapes={"x": free, "mask": free})
    torch.export.save(program, tmp_path / "model.pt2")
    explainer = relprop.Explainer(tmp_path / "model.pt2", "epsilon")
    for steps in (5, 3):
        x = {"x": torch.randn(3, steps, 4), "mask": torch.rand(3, steps, 4)}
        found, expected = explainer(x, 1), relprop.explain(model, x, 1, "epsilon")
        torch.testing.assert_close(found.relevance["x"], expected.relevance["x"])
        torch.testing.assert_close(found.relevance["mask"], expected.relevance["mask"])
    chosen = explainer(x, lambda y: y["hidden"][:, 0])
    torch.testing.assert_close(chosen.score, model(**x)["hidden"][:, 0].detach())
