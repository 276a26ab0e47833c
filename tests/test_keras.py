"""Keras 3 models on the torch backend: the relevance of the same network in PyTorch, and the model stays as it was."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop

os.environ.setdefault("KERAS_BACKEND", "torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras = pytest.importorskip("keras", reason="the extra [keras] is not installed")

L = keras.layers
RULES = ("auto", "epsilon", "epsilon_plus_flat")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(0)
    torch.set_num_threads(1)


def images() -> tuple[Any, Tensor]:
    model = keras.Sequential(
        [
            L.Input((12, 12, 3)),
            L.Rescaling(1 / 255.0),
            L.Conv2D(6, 3, strides=2, padding="valid"),
            L.BatchNormalization(),
            L.ReLU(),
            L.MaxPooling2D(),
            L.Dropout(0.5),
            L.Conv2D(5, 2, activation="relu"),
            L.Flatten(),
            L.Dense(4),
        ]
    )
    norm = model.layers[2]
    norm.set_weights([torch.rand(6).numpy() + 0.5 for _ in range(4)])
    return model, torch.rand(3, 12, 12, 3) * 255


class Twin(nn.Module):
    """The image network with layers of PyTorch's own and the same weights."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6, eps=1e-3), nn.Conv2d(6, 5, 2)
        self.out = nn.Linear(5, 4)
        (ka, ba), (gamma, beta, mean, variance), (kb, bb), (ko, bo) = (
            [variable.value.detach() for variable in layer.weights] for layer in model.layers if layer.weights and "dropout" not in layer.name
        )  # fmt: skip
        for own, value in (
            (self.a.weight, ka.permute(3, 2, 0, 1)), (self.a.bias, ba), (self.norm.weight, gamma), (self.norm.bias, beta),
            (self.norm.running_mean, mean), (self.norm.running_var, variance), (self.b.weight, kb.permute(3, 2, 0, 1)),
            (self.b.bias, bb), (self.out.weight, ko.t()), (self.out.bias, bo),
        ):  # fmt: skip
            own.data.copy_(value)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = (x / 255).permute(0, 3, 1, 2)
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.a(x))), 2)
        return self.out(torch.relu(self.b(x)).permute(0, 2, 3, 1).flatten(1))


@pytest.mark.parametrize("rules", RULES)
def test_a_network_of_images_has_the_relevance_of_its_twin_in_pytorch(rules: str) -> None:
    model, x = images()
    found, expected = relprop.explain(model, x, 1, rules), relprop.explain(Twin(model), x, 1, rules)
    torch.testing.assert_close(found.output, expected.output, rtol=1e-4, atol=1e-5)
    scale = float(expected.relevance.abs().max())
    torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-3, atol=1e-4 * scale)


def test_layers_are_named_in_the_plan_and_selected_by_path() -> None:
    model, x = images()
    explainer = relprop.Explainer(model, "epsilon", example=x)
    weighted = [row for row in explainer.plan if row.module]
    names = [layer.name for layer in model.layers if isinstance(layer, (L.Conv2D, L.Dense))]
    assert all(any(row.module.endswith(name) for row in weighted) for name in names)
    assert "batch_norm" in str(explainer.plan), "batch normalisation is folded into the convolution before it"
    rules = relprop.Composite(
        [(f"*{names[0]}", relprop.rules.ZPlus()), ("weighted", relprop.rules.Epsilon())]
    )
    chosen = relprop.Explainer(model, rules, example=x).plan
    assert any(str(row.rule).startswith("ZPlus") and row.module.endswith(names[0]) for row in chosen)


def sequence() -> tuple[Any, Tensor]:
    model = keras.Sequential(
        [L.Input((4,)), L.Embedding(15, 6), L.LSTM(4, return_sequences=True), L.GRU(3), L.Dense(2)]
    )
    return model, torch.randint(0, 15, (3, 4))


def attention() -> tuple[Any, Tensor]:
    given = L.Input((5,), dtype="int32")
    x = L.Embedding(15, 8)(given)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 4)(x, x))
    x = L.GlobalAveragePooling1D()(L.Dense(8, activation="gelu")(x))
    return keras.Model(given, L.Dense(3)(x)), torch.randint(0, 15, (3, 5))


def several() -> tuple[Any, Any]:
    a, b = L.Input((4,), name="a"), L.Input((3,), name="b")
    x = L.Concatenate()([L.Dense(3, activation="tanh")(a), b])
    model = keras.Model([a, b], L.Dense(2)(L.Add()([x, L.Dense(6)(x)])))
    return model, {"a": torch.randn(3, 4), "b": torch.randn(3, 3)}


class Own(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.drop, self.two = L.Dense(5, activation="tanh"), L.Dropout(0.9), L.Dense(2)

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        return self.two(self.drop(self.one(x), training=training) * 2)


def subclassed() -> tuple[Any, Tensor]:
    model, x = Own(), torch.randn(3, 6)
    model(x)
    return model, x


def pooled() -> tuple[Any, Tensor]:
    layers = [
        L.Input((8, 8, 2)), L.SeparableConv2D(4, 3, padding="same"), L.AveragePooling2D(2), L.ZeroPadding2D(1),
        L.Conv2DTranspose(3, 3, strides=2), L.UpSampling2D(), L.GlobalMaxPooling2D(), L.Dense(2),
    ]  # fmt: skip
    return keras.Sequential(layers), torch.randn(2, 8, 8, 2)


@pytest.mark.parametrize("make", [sequence, attention, several, subclassed, pooled], ids=lambda f: f.__name__)
def test_common_layers_are_explained_and_the_model_stays_as_it_was(make: Any) -> None:
    model, x = make()
    given = list(x.values()) if isinstance(x, dict) else x
    with torch.no_grad():
        output = model(given, training=False)
    every = [model, *model._flatten_layers()]
    before = [(dict(vars(layer)), layer.training) for layer in every]
    values = [variable.value.detach().clone() for variable in model.variables]
    found = relprop.explain(model, x, 1, "epsilon")
    torch.testing.assert_close(found.output, output)
    first = found.relevance["a"] if isinstance(x, dict) else found.relevance
    assert float(first.abs().sum()) > 0
    for layer, (held, training) in zip(every, before, strict=True):
        assert vars(layer).keys() == held.keys() and layer.training == training
        assert all(vars(layer)[name] is value for name, value in held.items())
    assert all(torch.equal(v.value, old) for v, old in zip(model.variables, values, strict=True))
    single = {name: value[:1] for name, value in x.items()} if isinstance(x, dict) else x[:1]
    alone = relprop.explain(model, single, 1, "epsilon")
    first_alone = alone.relevance["a"] if isinstance(x, dict) else alone.relevance
    torch.testing.assert_close(first_alone, first[:1], rtol=1e-3, atol=1e-5)


def test_weights_are_read_live_and_the_capture_is_kept() -> None:
    model, x = subclassed()
    first = relprop.explain(model, x, 1, "epsilon")
    for variable in model.variables:
        if "dropout" not in variable.path:
            variable.assign(variable.value * 2)
    second = relprop.explain(model, x, 1, "epsilon")
    torch.testing.assert_close(second.output, model(x, training=False).detach())
    assert not torch.allclose(first.score, second.score)


def test_a_saved_model_is_read_in_safe_mode(tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    plain = keras.Sequential([L.Input((6,)), L.Dense(3, activation="relu"), L.Dense(2)])
    path = tmp_path / "plain.keras"
    plain.save(path)
    found, expected = relprop.explain(path, x, 1), relprop.explain(plain, x, 1)
    torch.testing.assert_close(found.relevance, expected.relevance)
    unsafe = keras.Sequential([L.Input((6,)), L.Lambda(lambda y: y * 2), L.Dense(2)])
    unsafe.save(tmp_path / "unsafe.keras")
    with pytest.raises(
        relprop.InvalidInput, match=r"unsafe\.keras is not a Keras model.*safe mode.*\n  do: save"
    ):
        relprop.explain(tmp_path / "unsafe.keras", x, 1)
    (tmp_path / "short.keras").write_bytes(path.read_bytes()[:200])
    with pytest.raises(relprop.InvalidInput, match=r"short\.keras is not a Keras model.*\n  do: "):
        relprop.explain(tmp_path / "short.keras", x, 1)
    with pytest.raises(relprop.InvalidInput, match=r"no file .*none\.keras"):
        relprop.explain(tmp_path / "none.keras", x, 1)


def test_a_model_without_weights_and_other_backends_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(relprop.InvalidInput, match=r"'own\w*' has no weights yet\n  do: call it once"):
        relprop.explain(Own(), torch.randn(2, 6), 1)
    model, x = subclassed()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(relprop.InvalidInput, match=r"backend 'jax'\n  do: .*KERAS_BACKEND=torch"):
        relprop.explain(model, x, 1)


def test_keras_is_imported_with_torchs_backend_where_nothing_chose_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from relprop.engine.frontends import keras as frontend

    seen: list[str | None] = []

    def imported(name: str) -> Any:
        seen.append(os.environ.get("KERAS_BACKEND"))
        raise ImportError(name)

    monkeypatch.setattr(frontend.importlib, "import_module", imported)
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.delenv("KERAS_BACKEND")
    with pytest.raises(relprop.MissingExtra, match=r"pip install 'relprop\[keras\]'"):
        frontend.load(Path("model.keras"))
    assert seen == ["torch"] and "KERAS_BACKEND" not in os.environ
