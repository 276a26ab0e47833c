"""ONNX files: every operator computes what ONNX says, exported networks get the relevance of the originals, and what
cannot be read is refused by name."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop.engine.frontends.onnx import load, operators
from relprop.engine.frontends.onnx.table import ML

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

OPERATORS = operators()
F32, I64 = TensorProto.FLOAT, TensorProto.INT64
RULES = ("auto", "epsilon", "epsilon_plus_flat")


def file_of(
    folder: Path,
    nodes: list[Any],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: list[str],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 18,
    ml: int = 1,
    kind: int = F32,
) -> Path:
    """A file of these operators."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, t, shape) for name, (t, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    sets = [helper.make_opsetid("", opset), helper.make_opsetid(ML, ml)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=10)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """The exporters print and warn."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def exported(model: nn.Module, x: Tensor, path: Path, opset: int, dynamo: bool, batch: bool = True) -> Path:
    """The file that torch writes."""
    free: dict[str, Any] = {}
    if batch and dynamo:
        free = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)}
    elif batch:
        free = {"dynamic_axes": {"x": {0: "batch"}}}
    with silent():
        torch.onnx.export(
            model, (x,), path, opset_version=opset, dynamo=dynamo, input_names=["x"], verbose=False, **free
        )
    return path


# operators


def cases() -> dict[str, list[Any]]:
    """ONNX's own tests of single operators, by operator."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: dict[str, list[Any]] = {}
        for case in collect_testcases(None):
            node = case.model.graph.node[0]
            alone = len(case.model.graph.node) == 1
            if alone and not case.name.endswith("_expanded") and (node.domain, node.op_type) in OPERATORS:
                found.setdefault(node.op_type, []).append(case)
    return found


def _array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def prepared(case: Any) -> tuple[Any, dict[str, Tensor], dict[str, np.ndarray]] | None:
    """The case with real outputs, and weights of recurrent networks as constants; None for types torch has not."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    arrays, wanted = ([_array(value) for value in values] for values in case.data_sets[0])
    names = [value.name for value in model.graph.input]
    inputs = dict(zip(names, arrays, strict=True))
    expected = dict(zip((value.name for value in model.graph.output), wanted, strict=True))
    if any(
        value.dtype.isbuiltin != 1 or value.dtype.kind not in "fiub"
        for value in (*inputs.values(), *expected.values())
    ):
        return None
    if model.graph.node[0].op_type == "Not":
        model.opset_import[0].version = 13  # its own is too old for the cast below
    if model.graph.node[0].op_type in ("LSTM", "GRU", "RNN"):
        for name in names[1:]:
            model.graph.initializer.append(numpy_helper.from_array(inputs.pop(name), name))
            model.graph.input.remove(next(v for v in model.graph.input if v.name == name))
    for value in list(model.graph.output):
        if value.type.tensor_type.elem_type not in (F32, TensorProto.DOUBLE, TensorProto.FLOAT16):
            model.graph.node.append(helper.make_node("Cast", [value.name], [f"{value.name}_real"], to=F32))
            model.graph.output.remove(value)
            model.graph.output.append(helper.make_tensor_value_info(f"{value.name}_real", F32, None))
            expected[f"{value.name}_real"] = expected.pop(value.name).astype(np.float32)
    return model, {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}, expected


def test_every_operator_computes_what_onnx_says(tmp_path: Path) -> None:
    wrong, passed = [], set()
    for operation, found in cases().items():
        for case in found:
            ready = prepared(case)
            if ready is None or any(word in case.name for word in ("empty_set", "same_values")):
                continue  # no maximum of nothing; any of several equal values is the largest
            model, inputs, expected = ready
            path = tmp_path / "case.onnx"
            path.write_bytes(model.SerializeToString())
            try:
                module = load(path)
                result = module(**inputs)
            except relprop.RelpropError:
                continue  # refused by name: a setting, a type or an older operator set
            outputs = result if isinstance(result, dict) else {module.outputs[0].name: result}
            for name, value in outputs.items():
                want = expected[name]
                loose = 2e-3 if want.dtype == np.float16 else 1e-4
                given = value.numpy()
                if given.shape != want.shape or not np.allclose(given, want, loose, loose, equal_nan=True):
                    wrong.append(f"{case.name}: {name}")
            passed.add(operation)
    assert not wrong
    here = {name for domain, name in OPERATORS if not domain}
    refused = {
        "GRU",
        "MeanVarianceNormalization",
    }  # in the settings of ONNX's cases; the first is tested below
    assert here - passed == refused, "every operator has a case that is not refused"


# networks


class Block(nn.Module):
    """A small residual network with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.a = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
        )
        self.down = nn.Conv2d(8, 12, 1, 2, bias=False)
        self.b = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.SiLU(), nn.Hardswish())
        self.out = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.a(x))
        x = self.down(x) + self.b(x)
        return self.out(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Recurrent(nn.Module):
    """Embedding, two layers of LSTM in both directions, the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.network = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.network(self.table(x))[0][:, -1])


class Encoder(nn.Module):
    """Two layers of a transformer's encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.network = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.network(x).mean(1))


class Attended(nn.Module):
    """Self-attention of token ids, some of which are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.qkv, self.out = nn.Embedding(9, 6), nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (part[:, None] for part in self.qkv(self.table(ids)).chunk(3, -1))
        seen = mask[:, None, None, :].bool()
        y = nn.functional.scaled_dot_product_attention(q, k, v, seen)[:, 0] * mask[..., None]
        return self.out(y.sum(1) / mask.sum(1, keepdim=True))


def network(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = {"resnet": Block, "lstm": Recurrent, "encoder": Encoder}[kind]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.6, 1.5),
                (module.weight, 0.6, 1.5),
                (module.bias, -0.2, 0.3),
            ):
                nn.init.uniform_(value, low, high)
    shapes = {"resnet": (3, 3, 24, 24), "encoder": (3, 5, 16)}
    return model, torch.randint(0, 20, (3, 7)) if kind == "lstm" else torch.randn(shapes[kind])


@pytest.mark.parametrize(
    ("kind", "opset", "dynamo"),
    [
        ("resnet", 13, False),
        ("resnet", 18, True),
        ("lstm", 14, False),
        ("lstm", 20, True),
        ("encoder", 17, False),
        ("encoder", 23, True),
    ],
)
def test_an_export_has_the_relevance_of_the_model(
    kind: str, opset: int, dynamo: bool, tmp_path: Path
) -> None:
    model, x = network(kind)
    path = exported(model, x, tmp_path / "model.onnx", opset, dynamo)
    target = [0, 1, 2]
    converted = load(path)
    for rules in RULES:
        expected = relprop.explain(model, x, target, rules)
        found = relprop.explain(converted, x, target, rules)
        torch.testing.assert_close(found.output, expected.output, rtol=1e-4, atol=1e-5)
        scale = float(expected.relevance.abs().max())
        assert float((found.relevance - expected.relevance).abs().max()) <= 1e-4 * scale
    alone = relprop.explain(converted, x[:1], target[:1], rules)
    torch.testing.assert_close(alone.relevance, found.relevance[:1], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN, nn.LSTM])
def test_recurrent_layers_become_torchs_own(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = kind(4, 3, bidirectional=True).eval()
    x = torch.randn(5, 2, 4)
    path = exported(model, x, tmp_path / "model.onnx", 17, False, batch=False)
    converted = load(path)
    assert [type(m) for m in converted.modules() if isinstance(m, nn.RNNBase)] == [kind]
    expected, found = model(x), converted(x)
    torch.testing.assert_close(next(iter(found.values())), expected[0])


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("rules", ["auto", "epsilon"])
def test_functions_that_older_sets_spell_out_become_one_operation_again(
    rules: str, opset: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Linear(8, 3)
    ).eval()
    path = exported(model, torch.randn(2, 6), tmp_path / "model.onnx", opset, False)
    x = torch.randn(4, 6)
    explainer = relprop.Explainer(str(path), rules)
    found, expected = explainer(x, 1), relprop.explain(model, x, 1, rules)
    names = [row.operation.split(".")[1] for row in explainer.plan]
    assert names == ["linear", "gelu", "layer_norm", "silu", "mish", "hardswish", "linear"]
    torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-4, atol=1e-5)


def test_a_group_norm_stays_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)
    ).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 3, 8, 8)
    path = exported(model, x, tmp_path / "model.onnx", 17, False)
    found, expected = (relprop.explain(m, x, 1, "epsilon") for m in (str(path), model))
    torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-4, atol=1e-5)


def test_a_file_for_one_sample_is_explained_sample_by_sample(tmp_path: Path) -> None:
    model, x = network("resnet")
    path = exported(model, x[:1], tmp_path / "model.onnx", 17, False, batch=False)
    found, expected = relprop.explain(path, x, 1, "epsilon"), relprop.explain(model, x, 1, "epsilon")
    torch.testing.assert_close(found.relevance, expected.relevance, rtol=1e-3, atol=1e-5)
    path = exported(model, x[:2], tmp_path / "two.onnx", 17, False, batch=False)
    with pytest.raises(relprop.CaptureError, match=r"fixed batch of 2.*\n.*dynamic"):
        relprop.explain(path, x, 1)


def linear(folder: Path, kind: type[np.floating] = np.float32, **more: Any) -> Path:
    """x A + B c, two inputs with names that are no Python."""
    rng = np.random.default_rng(0)
    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return file_of(
        folder,
        [
            helper.make_node("MatMul", ["x.1", "w"], ["a"]),
            helper.make_node("MatMul", ["the mask", "v"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        {"x.1": (code, ["batch", 4]), "the mask": (code, ["batch", 2])},
        ["y"],
        {"w": rng.normal(size=(4, 3)).astype(kind), "v": rng.normal(size=(2, 3)).astype(kind)},
        kind=code,
        **more,
    )


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_inputs_go_by_position_or_by_name_in_the_types_of_the_file(
    kind: type[np.floating], tmp_path: Path
) -> None:
    path = linear(tmp_path, kind)
    dtype = torch.from_numpy(np.zeros(1, kind)).dtype
    x, mask = torch.randn(3, 4, dtype=dtype), torch.randn(3, 2, dtype=dtype)
    explainer = relprop.Explainer(path, "epsilon")
    placed = explainer((x, mask), 1)
    named = explainer({"the mask": mask, "x.1": x}, 1)
    assert named.relevance.keys() == {"the mask", "x.1"}
    torch.testing.assert_close(named.relevance["x.1"], placed.relevance[0])
    torch.testing.assert_close(named.relevance["the mask"], placed.relevance[1])


def test_names_in_any_order_and_lengths_of_sequences_are_free_in_the_graph(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attended().eval()
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    given = {"ids": torch.randint(0, 9, (3, 5)), "mask": torch.ones(3, 5, dtype=torch.int64)}
    given["mask"][1, 3:] = 0
    with silent():
        torch.onnx.export(model, (), tmp_path / "m.onnx", kwargs=given, dynamic_shapes={"ids": free, "mask": free}, verbose=False)  # fmt: skip
    explainer = relprop.Explainer(tmp_path / "m.onnx", "epsilon")
    for steps in (5, 4):
        cut = {name: value[:, :steps] for name, value in given.items()}
        expected = relprop.explain(model, cut, 1, "epsilon")
        turned = explainer(dict(reversed(cut.items())), 1)
        torch.testing.assert_close(turned.relevance["ids"], expected.relevance["ids"], rtol=1e-4, atol=1e-6)


def test_several_outputs_are_a_table_by_name(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Sigmoid", ["a"], ["b"]), helper.make_node("ArgMax", ["a"], ["c"], axis=1)],
        {"x": (F32, ["batch", 4])},
        ["a", "b"],
    )  # fmt: skip
    x = torch.randn(3, 4)
    found = relprop.explain(path, x, lambda y: y["a"][:, 2])
    torch.testing.assert_close(found.score, x[:, 2].relu())
    with pytest.raises(relprop.InvalidInput, match=r"several outputs \(a, b\)"):
        relprop.explain(path, x, 1)


def test_weights_may_lie_in_a_file_beside_the_model(tmp_path: Path) -> None:
    path = linear(tmp_path)
    before = load(path)(torch.ones(1, 4), torch.ones(1, 2))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    torch.testing.assert_close(load(path)(torch.ones(1, 4), torch.ones(1, 2)), before)
    held = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(held[:-40])
    with pytest.raises(relprop.InvalidInput, match=r"weights\.bin, which is cut short.*\n  do: "):
        load(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(
        relprop.InvalidInput, match=r"'w' in the file weights\.bin, which is missing\n  do: put"
    ):
        load(path)


def test_a_conversion_is_compared_with_onnx_before_it_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from relprop.engine.frontends.onnx import table

    path = linear(tmp_path)
    row = table.OPERATORS["", "Add"]
    wrong = table.Operator(lambda node, a, b: a - b, row.host, row.numbers)
    monkeypatch.setitem(table.OPERATORS, ("", "Add"), wrong)
    with pytest.raises(relprop.CaptureError, match=r"converted wrongly: output 'y': it differs by"):
        relprop.explain(path, (torch.randn(2, 4), torch.randn(2, 2)), 1)


@pytest.mark.parametrize("runtime", [True, False])
def test_the_reference_is_onnxruntime_or_onnx_itself(
    runtime: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from relprop.engine.frontends.onnx import reference

    if runtime:
        pytest.importorskip("onnxruntime")
        monkeypatch.setattr(reference, "_by_reference", lambda *_: pytest.fail("onnxruntime takes this file"))
    else:
        monkeypatch.setattr(reference, "_by_runtime", lambda *_: None)
    found = relprop.explain(linear(tmp_path), (torch.randn(2, 4), torch.randn(2, 2)), 1)
    assert found.audit is not None


# scikit-learn


@pytest.fixture(scope="module")
def iris() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_iris

    data = load_iris()
    return data.data.astype(np.float32), data.target


def estimators() -> dict[str, Any]:
    from sklearn.decomposition import PCA
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler
    from sklearn.svm import SVR, LinearSVC

    return {
        "ridge": Ridge(),
        "svr": SVR(kernel="rbf"),
        "logistic": make_pipeline(StandardScaler(), LogisticRegression()),
        "reduced": make_pipeline(SimpleImputer(), PCA(3), LogisticRegression()),
        "svm": LinearSVC(),
        "mlp": make_pipeline(MinMaxScaler(), MLPClassifier((6,), max_iter=40, random_state=0)),
        "normalised": make_pipeline(Normalizer(), Ridge()),
    }


@pytest.mark.parametrize("name", ["ridge", "svr", "logistic", "reduced", "svm", "mlp", "normalised"])
def test_scikit_learns_exports_are_explained(
    name: str, iris: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    data, labels = iris
    estimator = estimators()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(data, labels)
        path = tmp_path / "model.onnx"
        path.write_bytes(skl2onnx.to_onnx(estimator, data[:1]).SerializeToString())
    x = data[::40]
    found = relprop.explain(path, torch.from_numpy(x), 0, "epsilon")
    score = (
        estimator.predict_proba(x)[:, 0]
        if hasattr(estimator, "predict_proba")
        else estimator.decision_function(x)[:, 0]
        if hasattr(estimator, "decision_function")
        else estimator.predict(x)
    )
    np.testing.assert_allclose(found.score.numpy(), score, rtol=1e-3, atol=1e-4)
    if name == "ridge":
        np.testing.assert_allclose(found.relevance.numpy(), x * estimator.coef_, rtol=1e-3, atol=1e-4)


def test_trees_are_refused_by_name(iris: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn.tree import DecisionTreeClassifier

    path = tmp_path / "model.onnx"
    held = skl2onnx.to_onnx(DecisionTreeClassifier(max_depth=2).fit(*iris), iris[0][:1])
    path.write_bytes(held.SerializeToString())
    with pytest.raises(
        relprop.UnsupportedOperation, match=r"ai\.onnx\.ml\.TreeEnsembleClassifier.*\n  do: explain"
    ):
        relprop.Explainer(path)


# bad input


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    held = linear(tmp_path).read_bytes()
    path = tmp_path / "bad.onnx"
    for content in (b"", b"not a model", held[: len(held) // 3], held[:-7], b"PK\x03\x04" + held):
        path.write_bytes(content)
        with pytest.raises(relprop.InvalidInput, match=r"bad\.onnx is not .*\n  do: ") as raised:
            relprop.Explainer(path)
        assert str(raised.value).count("\n") == 1
    with pytest.raises(relprop.InvalidInput, match=r"no file .*missing\.onnx"):
        relprop.Explainer(tmp_path / "missing.onnx")
    with pytest.raises(
        relprop.InvalidInput, match=r"model\.h5 is not a file that relprop reads\n  do: .*\.onnx"
    ):
        relprop.Explainer("model.h5")


def test_operators_and_sets_that_are_not_known_are_named(tmp_path: Path) -> None:
    def of(operation: str, domain: str = "", opset: int = 18, **attributes: Any) -> Path:
        node = helper.make_node(operation, ["x"], ["y"], name="late", domain=domain, **attributes)
        path = file_of(tmp_path, [node], {"x": (F32, ["batch", 4])}, ["y"], opset=opset)
        if domain:
            model = onnx.load(path)
            model.opset_import.append(helper.make_opsetid(domain, 1))
            path.write_bytes(model.SerializeToString())
        return path

    with pytest.raises(
        relprop.UnsupportedOperation, match=r"com\.microsoft\.FusedThing \(1 times, first 'late'\)\n  do:"
    ):
        relprop.Explainer(of("FusedThing", "com.microsoft"))
    with pytest.raises(relprop.UnsupportedOperation, match=r"QuantizeThing \(1 times"):
        relprop.Explainer(of("QuantizeThing"))
    with pytest.raises(
        relprop.UnsupportedOperation, match=r"Softmax of operator set 11.*\n.*convert_version"
    ):
        relprop.Explainer(of("Softmax", opset=11))
    with pytest.raises(relprop.InvalidInput, match=r"operator set 99; known are 13 to \d+\n  do: "):
        relprop.Explainer(of("Relu", opset=99))
    with pytest.raises(
        relprop.UnsupportedOperation, match=r"LRN \(node 'late'\): an even size, 2, which is not converted"
    ):
        relprop.explain(of("LRN", size=2), torch.randn(1, 4), 1)
    assert relprop.explain(of("Relu", opset=9), torch.ones(1, 4), 1).audit is not None


def test_wrong_inputs_are_refused_with_what_the_file_takes(tmp_path: Path) -> None:
    explainer = relprop.Explainer(linear(tmp_path))
    x, mask = torch.randn(2, 4), torch.randn(2, 2)
    takes = r"x\.1 \[B, 4\] float32, the mask \[B, 2\] float32"
    for given in (x, (x, mask, mask), {"x": x, "the mask": mask}):
        with pytest.raises(relprop.InvalidInput, match=takes):
            explainer(given, 1)
    with pytest.raises(
        relprop.InvalidInput, match=r"x\.1 has shape \(2, 5\), the ONNX file takes x\.1 \[B, 4\]"
    ):
        explainer((torch.randn(2, 5), mask), 1)
    with pytest.raises(
        relprop.InvalidInput, match=r"x\.1 is of type torch\.float64.*\n  do: x\.1\.to\(torch\.float32\)"
    ):
        explainer((x.double(), mask), 1)


def test_without_the_package_the_command_to_install_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = linear(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(relprop.MissingExtra, match=r"pip install 'relprop\[onnx\]'"):
        relprop.Explainer(path)


def test_the_command_line_explains_photographs_with_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = pytest.importorskip("relprop.cli", reason="the extra [cli] is not installed").main
    model, x = network("resnet")
    exported(model, x, tmp_path / "net.onnx", 17, False)
    torch.jit.save(torch.jit.script(model), tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["explain", "--model", "net.onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["preprocessing"]["size"] == 24
    assert (tmp_path / "relprop-cat.png").stat().st_size > 1000
    for name in ("net.onnx", "net.pt"):
        assert main(["plan", "--model", name, "--size", "24", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["operations"]
        assert sum("convolution" in row["operation"] or "conv2d" in row["operation"] for row in rows) == 5
    (tmp_path / "bad.onnx").write_bytes((tmp_path / "net.onnx").read_bytes()[:500])
    assert main(["plan", "--model", "bad.onnx"]) == 2
    message = capsys.readouterr().err
    assert (
        message.startswith("error: model: bad.onnx is not a readable ONNX file")
        and "Traceback" not in message
    )


def test_a_model_read_from_a_file_may_be_cast_and_changed(tmp_path: Path) -> None:
    path = linear(tmp_path)
    x, mask = torch.randn(3, 4).double(), torch.randn(3, 2).double()
    model = load(path).double()
    before = relprop.explain(model, (x, mask), 1, "epsilon")
    assert before.relevance[0].dtype == torch.float64
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    after = relprop.explain(model, (x, mask), 1, "epsilon")
    torch.testing.assert_close(after.score, 2 * before.score)
