"""Bad input is refused with what is wrong, where, and what to do; nothing is computed from it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import relprop
from relprop import Composite, rules
from zoo import randomise, seeded


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU()), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with seeded(1):
        return randomise(Net()).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def refused(
    call: Callable[[], Any],
    *parts: str,
    error: type[Exception] = relprop.InvalidInput,
) -> str:
    """The message of the error that a call raises; it names what and where (`parts`) and what to do."""
    with pytest.raises(relprop.RelpropError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert isinstance(caught.value, ValueError) == (error is relprop.InvalidInput)
    for part in parts:
        assert part in message, message
    what, _, advice = message.partition("\n  do: ")
    assert what and advice.strip(), f"no advice: {message}"
    return message


# --- inputs


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_inputs_that_are_not_finite(net: nn.Module, x: Tensor, value: float) -> None:
    x[1, 0, 2, 2] = value
    refused(lambda: relprop.explain(net, x), "inputs", "1 of 64", "NaN or infinite")


def test_inputs_of_an_empty_batch(net: nn.Module, x: Tensor) -> None:
    refused(lambda: relprop.explain(net, x[:0]), "inputs", "empty", "(0, 2, 4, 4)")


@pytest.mark.parametrize(
    "given, name",
    [(None, "NoneType"), ([], "nothing"), ((), "nothing"), ({}, "nothing"), ("photo.jpg", "str"), (3, "int")],
)
def test_inputs_that_hold_no_tensor(net: nn.Module, given: Any, name: str) -> None:
    refused(lambda: relprop.explain(net, given), "inputs", name, "torch.Tensor")


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 2, 5, 4), (2, 32), (2,)])
def test_inputs_of_a_shape_that_the_model_does_not_take(net: nn.Module, shape: tuple[int, ...]) -> None:
    given = torch.ones(shape, dtype=torch.float64)
    refused(lambda: relprop.explain(net, given), "inputs", "the model itself fails", str((1, *shape[1:])))


def test_inputs_of_the_wrong_number(net: nn.Module, x: Tensor) -> None:
    refused(lambda: relprop.explain(net, (x, x)), "inputs", "the model itself fails")
    refused(lambda: relprop.explain(net, {"image": x}), "inputs", "the model itself fails", "image")


def test_inputs_of_another_precision(net: nn.Module, x: Tensor) -> None:
    refused(lambda: relprop.explain(net, x.float()), "inputs", "torch.float32", "inputs.to(torch.float64)")
    refused(lambda: relprop.explain(net, x.half()), "inputs", "torch.float16", "inputs.to(torch.float64)")


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.bool])
def test_inputs_of_whole_numbers_where_the_model_takes_real_ones(
    net: nn.Module, x: Tensor, kind: torch.dtype
) -> None:
    refused(lambda: relprop.explain(net, (x * 10).to(kind)), "inputs", "inputs.to(torch.float64)")


def test_inputs_of_real_numbers_where_the_model_takes_ids() -> None:
    reader = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    refused(lambda: relprop.explain(reader, torch.ones(2, 3)), "inputs", "inputs.to(torch.int64)")


@pytest.mark.parametrize("how", ["one-hot", "cast"])
def test_whole_numbers_that_no_embedding_reads(how: str) -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(9, 2)

        def forward(self, ids: Tensor) -> Tensor:
            read = F.one_hot(ids, 9).sum(1) if how == "one-hot" else ids
            return self.head(read.float())

    given = torch.randint(0, 9, (2, 9))
    refused(lambda: relprop.explain(Reading().eval(), given), "inputs", "int64", "embedding", "one_hot")


def test_a_data_loader_is_no_batch(net: nn.Module, x: Tensor) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x))
    refused(lambda: relprop.explain(net, loader), "inputs", "DataLoader", "relprop.run")  # type: ignore[arg-type]


def test_inputs_on_another_device(net: nn.Module, x: Tensor) -> None:
    refused(lambda: relprop.explain(net, x.to("meta")), "inputs", "meta", "cpu", "inputs.to('cpu')")
    refused(lambda: relprop.explain(Net().double().eval().to("meta"), x), "meta", "cpu")


def test_a_model_without_data(x: Tensor) -> None:
    module = Net().double().eval().to("meta")
    refused(lambda: relprop.explain(module, x.to("meta")), "meta")


def test_inputs_of_another_layout(net: nn.Module, x: Tensor) -> None:
    refused(lambda: relprop.explain(net, x.to_sparse()), "inputs", "sparse_coo", "to_dense")


def test_arrays_with_hidden_values(net: nn.Module, x: Tensor) -> None:
    hidden = np.ma.masked_less(x.numpy(), 0)
    refused(lambda: relprop.explain(net, hidden), "inputs", "masked array", "filled")


def test_arrays_of_numbers_that_torch_does_not_have(net: nn.Module, x: Tensor) -> None:
    refused(lambda: relprop.explain(net, x.numpy().astype(np.longdouble)), "inputs", "astype")


# --- models


def test_weights_that_are_not_finite(net: nn.Module, x: Tensor) -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        module = randomise(Net().double()).eval()
        with torch.no_grad():
            module.features[0].weight[1, 0, 1, 1] = value
        refused(
            lambda module=module: relprop.explain(module, x),
            "model",
            "'features.0.weight'",
            "NaN or infinity",
        )


def test_a_weight_that_is_not_finite_and_is_hidden_by_relu(x: Tensor) -> None:
    module = randomise(Net().double()).eval()
    with torch.no_grad():
        module.features[0].bias[1] = -float("inf")
    assert torch.isfinite(module(x)).all()
    refused(lambda: relprop.explain(module, x), "model", "'features.0.bias'", "NaN or infinity")


def test_an_output_that_is_not_finite(x: Tensor) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(32, 4)).double().eval()
    with torch.no_grad():
        module[1].weight.mul_(1e200)
    refused(
        lambda: relprop.explain(module, x * 1e200),
        "output",
        "infinite",
        " begins at linear (1)",
        "aten.linear.default",
    )


class Rooted(nn.Module):
    """NaN where the hidden values are negative, infinity where they are divided by nothing; samples mix on demand."""

    def __init__(self, mixes: bool = False, divides: bool = False) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.mixes, self.divides = mixes, divides

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x - x.mean(0, keepdim=True) if self.mixes else x)
        return self.head(hidden / (hidden * 0) if self.divides else hidden.sqrt())


@pytest.mark.parametrize("method", ["lrp", "gradient", "integrated_gradients"])
def test_nan_within_a_model_is_named_by_the_operation_that_begins_it(method: str) -> None:
    inputs = torch.randn(2, 4)
    message = refused(lambda: relprop.explain(Rooted().eval(), inputs, method=method), "NaN begins at sqrt (the model itself, test_bad_input.py:", "aten.sqrt.default")  # fmt: skip
    assert "infinity" not in message
    refused(lambda: relprop.explain(Rooted(divides=True).eval(), inputs, method=method), "infinity begins at div (", "; NaN begins at linear_1 (head, ")  # fmt: skip


def test_a_model_that_gave_nan_first_is_asked_again_whether_samples_mix() -> None:
    model, inputs = Rooted(mixes=True).eval(), torch.randn(2, 4)
    with torch.no_grad():
        model.body.bias.fill_(-1e3)
    with pytest.raises(relprop.RelpropError):
        relprop.explain(model, inputs)
    with torch.no_grad():
        model.body.bias.fill_(1e3)
    refused(lambda: relprop.explain(model, inputs), "mean", "mixes the samples", error=relprop.CaptureError)


@pytest.mark.parametrize("path", ["", "features", "features.1", "head"])
def test_a_model_in_training_mode(x: Tensor, path: str) -> None:
    module = Net().double().eval()
    module.get_submodule(path).train()
    refused(
        lambda: relprop.explain(module, x),
        "model",
        "training mode",
        "model.eval()",
        *([repr(path)] if path else []),
    )


@pytest.mark.parametrize("model", [None, 3, "no-such-file.pt2", lambda x: x, Net])
def test_what_is_no_model(model: Any, x: Tensor) -> None:
    refused(lambda: relprop.explain(model, x), "model")


class Fails(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("the disk is full")


def test_a_model_that_fails(x: Tensor) -> None:
    message = refused(
        lambda: relprop.explain(Fails().double().eval(), x), "the model itself fails", "the disk is full"
    )
    assert "inputs" in message


class Mixes(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.head, self.how = nn.Linear(32, 4), how
        self.norm = nn.BatchNorm1d(32, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.how == "mean":
            x = x - x.mean(0)
        elif self.how == "flip":
            x = x.flip(0)
        elif self.how == "pairs":
            return self.head(x) @ self.head(x).T
        elif self.how == "statistics":
            x = self.norm(x)
        elif self.how == "softmax":
            x = x.softmax(0)
        elif self.how == "merged":
            return self.head(x.reshape(-1, 32)).sum(0)
        return self.head(x)


@pytest.mark.parametrize("how", ["mean", "flip", "pairs", "statistics", "softmax", "merged"])
def test_a_model_that_mixes_samples(how: str, x: Tensor) -> None:
    """No sample has an explanation of its own there: refused, or explained one by one."""
    module = randomise(Mixes(how).double()).eval()
    try:
        found = relprop.explain(module, x, 0)
    except relprop.RelpropError as error:
        assert "\n  do: " in str(error)
        assert any(word in str(error) for word in ("batch", "sample")), str(error)
        return
    alone = torch.cat([relprop.explain(module, x[i : i + 1], 0).relevance for i in range(2)])
    assert torch.allclose(found.relevance, alone)
    assert torch.allclose(found.output, torch.cat([module(x[i : i + 1]) for i in range(2)]))


@pytest.mark.parametrize("how", ["mean", "flip", "pairs", "softmax"])
def test_one_sample_of_a_model_that_mixes_samples_is_explained(how: str, x: Tensor) -> None:
    module = randomise(Mixes(how).double()).eval()
    with contextlib.suppress(relprop.RelpropError):
        relprop.explain(module, x, 0)
    for _ in range(2):
        found = relprop.explain(module, x[:1], 0)
        assert torch.allclose(found.output, module(x[:1]).detach()) and found.relevance.shape == x[:1].shape
    with pytest.raises(relprop.RelpropError, match="sample"):
        relprop.explain(module, x, 0)


class Unsupported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"odd": OddOperation()})
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner["odd"](x))


class OddOperation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)  # the line that messages name


def test_an_operation_without_a_rule_is_named_with_module_and_line() -> None:
    module, x = Unsupported().double().eval(), torch.ones(2, 8, dtype=torch.float64)
    text = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = 1 + next(i for i, code in enumerate(text) if code.endswith("# the line that messages name"))
    for call in (lambda: relprop.explain(module, x), lambda: relprop.Explainer(module, example=x)):
        refused(
            call,
            "aten.special_bessel_j0",
            "inner.odd",
            f"test_bad_input.py:{line}",
            "[B, 8]",
            "relprop.register",
            error=relprop.UnsupportedOperation,
        )


# --- targets


def target_message(net: nn.Module, x: Tensor, target: Any, *parts: str) -> None:
    refused(lambda: relprop.explain(net, x, target), "target", *parts)


@pytest.mark.parametrize("target", [4, -1, [0, 4], torch.tensor([0, 9]), np.int64(4), 10**30])
def test_targets_out_of_range(net: nn.Module, x: Tensor, target: Any) -> None:
    target_message(net, x, target, "out of range", "4 classes")


@pytest.mark.parametrize("target", [[0], [0, 1, 2], torch.tensor([1]), np.array([0, 1, 2]), []])
def test_targets_of_the_wrong_number(net: nn.Module, x: Tensor, target: Any) -> None:
    target_message(net, x, target, "2 samples")


@pytest.mark.parametrize(
    "target", [True, False, [True, False], torch.tensor([True, False]), np.array([True, False])]
)
def test_targets_that_are_truth_values(net: nn.Module, x: Tensor, target: Any) -> None:
    target_message(net, x, target, "True")


@pytest.mark.parametrize(
    "target", [1.0, [0.0, 1.0], "cat", ["a", "b"], {1, 2}, {0: 1}, [[0], [1]], 2j, object()]
)
def test_targets_of_a_wrong_type(net: nn.Module, x: Tensor, target: Any) -> None:
    target_message(net, x, target, "class")


@pytest.mark.parametrize("target", [(0, 1), (0, 1, 2), (), (1.5,), ("a",), (True,), (4,), (-5,)])
def test_indices_that_do_not_fit_the_output(net: nn.Module, x: Tensor, target: Any) -> None:
    target_message(net, x, target, "(2, 4)")


@pytest.mark.parametrize("shape", [(2, 3), (3, 4), (3,), (2, 4, 1), ()])
def test_weights_of_the_wrong_shape(net: nn.Module, x: Tensor, shape: tuple[int, ...]) -> None:
    target_message(net, x, torch.ones(shape, dtype=torch.float64), "weights of shape", str(shape), "(2, 4)")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_numbers(net: nn.Module, x: Tensor, value: float) -> None:
    target_message(net, x, torch.tensor([1.0, value, 0.0, 0.0]), "NaN or infinity")


CALLABLES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a score for each output": (lambda y: y, "(B,)"),
    "one score for all samples": (lambda y: y.sum(), "(B,)"),
    "no tensor": (lambda y: 3.0, "(B,)"),
    "nothing": (lambda y: None, "(B,)"),
    "a constant": (lambda y: torch.ones(y.shape[0], dtype=y.dtype), "does not depend"),
    "another number of samples": (lambda y: y[:1, 0], "(B,)"),
    "a failure": (lambda y: y[:, 17], "callable fails"),
    "another score for other sizes": (
        lambda y: y[:, 0] * torch.arange(1.0, 9.0, dtype=y.dtype)[: len(y)],
        "batch",
    ),
    "weights of each sample": (lambda y: (y * torch.eye(2, 4, dtype=y.dtype)).sum(1), "its own"),
    "a class of each place": (lambda y: y[torch.arange(len(y)), torch.tensor([1, 2])[: len(y)]], "its own"),
    "classes of two samples": (lambda y: y.gather(1, torch.tensor([[1], [2]]))[:, 0], "its own"),
    "a norm over samples": (lambda y: F.layer_norm(y.t(), [len(y)]).t()[:, 1], "their number or places"),
}


@pytest.mark.parametrize("what", CALLABLES)
def test_callables_that_return_no_score_a_sample(net: nn.Module, x: Tensor, what: str) -> None:
    function, part = CALLABLES[what]
    refused(lambda: relprop.explain(net, x, function), "target", part)


class Several(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(5, 3), nn.Linear(5, 2), how

    def forward(self, x: Tensor) -> Any:
        if self.how == "dict":
            return {"boxes": self.a(x), "scores": self.b(x)}
        if self.how == "labels":
            return self.a(x).argmax(1)
        return self.a(x), self.b(x)


@pytest.mark.parametrize("how, part", [("tuple", "2 values"), ("dict", "boxes, scores")])
def test_several_outputs_need_a_callable(how: str, part: str) -> None:
    module, x = Several(how).double().eval(), torch.ones(2, 5, dtype=torch.float64)
    for target in (None, 0):
        refused(lambda target=target: relprop.explain(module, x, target), "target", part, "callable")


def test_an_output_of_whole_numbers() -> None:
    module, x = Several("labels").double().eval(), torch.ones(2, 5, dtype=torch.float64)
    refused(lambda: relprop.explain(module, x), "torch.int64")


def test_no_target_for_an_output_of_more_than_two_dimensions(x: Tensor) -> None:
    module = nn.Conv2d(2, 3, 1).double().eval()
    target_message(module, x, None, "(2, 3, 4, 4)", "tuple")
    target_message(module, x, 1, "(2, 3, 4, 4)", "tuple")
    target_message(module, x, (1, 2), "(2, 3, 4, 4)", "3 whole numbers")
    target_message(module, x, (1, 2, 4), "(2, 3, 4, 4)", "out of range")


def test_an_output_with_its_samples_in_another_dimension_as_long_as_they_are_many() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).t()

    module, x = Turned().double().eval(), torch.randn(3, 5, dtype=torch.float64)
    for audit in (True, False):
        refused(lambda audit=audit: relprop.explain(module, x, 1, audit=audit), "(3, 3)", "the batch first")


def test_no_targets_at_all(net: nn.Module, x: Tensor) -> None:
    refused(lambda: relprop.Explainer(net).explain_targets(x, []), "targets", "empty")


# --- rules, methods and options


def test_presets_and_methods_that_do_not_exist(net: nn.Module, x: Tensor) -> None:
    refused(lambda: relprop.explain(net, x, rules="epsilon_minus"), "epsilon_minus", "epsilon_plus")
    refused(lambda: relprop.explain(net, x, method="magic"), "method", "'magic'", "lrp")


@pytest.mark.parametrize(
    "given", [None, 3, rules.Epsilon, [("linear", rules.Epsilon())], {"linear": rules.Epsilon()}]
)
def test_rules_of_a_wrong_type(net: nn.Module, x: Tensor, given: Any) -> None:
    refused(lambda: relprop.explain(net, x, rules=given), "rules", "Composite")


@pytest.mark.parametrize("method", ["gradient", "occlusion", "contextual_decomposition", "random"])
@pytest.mark.parametrize("given", ["epsilon", rules.Epsilon(), Composite([("linear", rules.Gamma())])])
def test_rules_of_a_method_that_has_none(net: nn.Module, x: Tensor, method: str, given: Any) -> None:
    refused(
        lambda: relprop.explain(net, x, rules=given, method=method), "rules", repr(method), "leave rules out"
    )


@pytest.mark.parametrize(
    "pair", [("linear",), ("linear", "epsilon"), (3, rules.Epsilon()), "linear", ("linear", rules.Epsilon)]
)
def test_composites_of_something_else_than_pairs(pair: Any) -> None:
    refused(lambda: Composite([pair]), "Composite", "pair")


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one(net: nn.Module, size: int) -> None:
    refused(lambda: relprop.Explainer(net, batch_size=size), "batch_size", str(size))


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda: rules.Epsilon(-1.0), "epsilon"),
        (lambda: rules.Epsilon(float("nan")), "epsilon"),
        (lambda: rules.Gamma(-0.1), "gamma"),
        (lambda: rules.AlphaBeta(1.0, 1.0), "alpha"),
        (lambda: rules.AlphaBeta(0.5, -0.5), "beta"),
        (lambda: rules.Epsilon(bias="drop"), "bias"),
        (lambda: rules.Epsilon(stabiliser="sometimes"), "stabiliser"),
        (lambda: rules.ZBox(low=1.0, high=0.0), "low"),
    ],
)
def test_parameters_of_rules_that_make_no_sense(make: Callable[[], Any], part: str) -> None:
    refused(make, part)


def test_the_bounds_of_the_box_rule_come_first() -> None:
    assert rules.ZBox(-1.0, 2.0) == rules.ZBox(low=-1.0, high=2.0)


@pytest.mark.parametrize("low, high", [(0.0, 9.0), (-9.0, 0.0), (0.1, 0.2)])
def test_inputs_outside_the_box(net: nn.Module, x: Tensor, low: float, high: float) -> None:
    composite = Composite([("first", rules.ZBox(low=low, high=high)), ("linear", rules.Epsilon())])
    refused(
        lambda: relprop.explain(net, x, rules=composite), "ZBox", "bounds", f"{float(x.max()):.4g}", "mean"
    )


def test_bounds_of_a_shape_that_does_not_fit_the_input(net: nn.Module, x: Tensor) -> None:
    composite = Composite(
        [("first", rules.ZBox(low=torch.full((3, 1, 1), -9.0), high=torch.full((3, 1, 1), 9.0)))]
    )
    refused(lambda: relprop.explain(net, x, rules=composite), "ZBox", "(3, 1, 1)")


def test_a_rule_that_an_operation_cannot_obey(net: nn.Module, x: Tensor) -> None:
    composite = Composite([("activation", rules.Flat())])
    refused(lambda: relprop.explain(net, x, rules=composite), "rules", "aten.relu", "features.1", "Pass")


def test_a_rule_that_applies_to_nothing_is_worth_a_warning(net: nn.Module, x: Tensor) -> None:
    with pytest.warns(relprop.RelevanceWarning, match=r"layer9\.\*"):
        relprop.explain(net, x, rules=Composite([("layer9.*", rules.Flat())]))


def test_a_module_that_does_not_exist(net: nn.Module, x: Tensor) -> None:
    found = relprop.explain(net, x)
    refused(lambda: found.at("features.9"), "at", "'features.9'", "features.0")
    refused(lambda: found.at("haed"), "at", "'haed'", "head")
    refused(lambda: found.at("features.1@3"), "at", "'features.1@3'")


def test_the_plan_of_a_method_without_rules(net: nn.Module, x: Tensor) -> None:
    explainer = relprop.Explainer(net, method="gradient", example=x)
    refused(lambda: explainer.plan, "plan", "'gradient'", "no rules")


def test_the_plan_of_an_explainer_that_has_seen_nothing(net: nn.Module) -> None:
    refused(lambda: relprop.Explainer(net).plan, "plan", "example=")


class TwoUnsupported(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.special.bessel_j0(x) + torch.special.bessel_y0(x.abs() + 1))


def test_all_operations_without_a_rule_are_named_at_once() -> None:
    x = torch.ones(2, 8, dtype=torch.float64)
    refused(
        lambda: relprop.explain(TwoUnsupported().eval(), x),
        "bessel_j0",
        "bessel_y0",
        error=relprop.UnsupportedOperation,
    )


def test_a_model_that_takes_tokens_before_samples_is_told_how_to_be_wrapped() -> None:
    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.lstm, self.head = nn.Embedding(9, 4), nn.LSTM(4, 6), nn.Linear(6, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.lstm(self.embedding(ids))[0][-1])

    with pytest.raises(relprop.CaptureError, match=r"x\.transpose\(0, 1\)"):
        relprop.explain(TokensFirst().eval(), torch.randint(9, (7, 2)), 1)


@pytest.mark.parametrize("method", ["gradient", "gradient_x_input", "sensitivity", "smoothgrad"])
def test_a_derivative_that_does_not_exist_is_no_relevance(method: str) -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a((0 * x).abs().sqrt())

    module, x = Root().double().eval(), torch.ones(2, 6, dtype=torch.float64)
    refused(lambda: relprop.explain(module, x, 1, method=method), "method", repr(method), "no derivative")
    assert torch.isfinite(relprop.explain(module, x, 1).relevance).all()


@pytest.mark.parametrize(
    "given, said",
    [
        (Image.new("RGB", (2, 2)), "to_tensor"),
        (pandas.DataFrame([[0.0, 1.0]]), "to_numpy"),
        ([0.0, 1.0], "torch.tensor(inputs)"),
    ],
    ids=["image", "table", "numbers"],
)
def test_what_is_no_tensor_is_told_how_to_become_one(given: Any, said: str) -> None:
    refused(lambda: relprop.explain(nn.Linear(2, 2).eval(), given, 0), "holds no tensor", said)
