"""Every form of target, several at once, several inputs and outputs, chunks, and layers inside."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import relprop
from relprop import Composite, rules
from zoo import ZOO, randomise, seeded

pytestmark = pytest.mark.filterwarnings("ignore::relprop.RelevanceWarning")


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor]:
    return ZOO["residual"](0)


def explained(case: Any, target: Any, **options: Any) -> relprop.Explanation:
    return relprop.explain(*case, target, **options)


# --- forms of a target


def test_without_a_target_the_largest_output_is_explained(case: Any) -> None:
    module, x = case
    output = module(x).detach()
    found = explained(case, None)
    assert torch.equal(found.target, output.argmax(1))
    assert torch.allclose(found.score, output.max(1).values)
    assert torch.allclose(found.output, output)
    assert torch.equal(found.relevance, explained(case, output.argmax(1)).relevance)


@pytest.mark.parametrize(
    "target",
    [
        2,
        np.int64(2),
        np.uint8(2),
        torch.tensor(2),
        np.array(2),
        [2, 2, 2],
        torch.tensor([2, 2, 2]),
        torch.tensor([2, 2, 2], dtype=torch.uint8),
        np.array([2, 2, 2]),
        [np.int64(2), 2, torch.tensor(2)],
        (2,),
        (np.int64(2),),
        torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64),
        torch.tensor([[0.0, 0.0, 1.0, 0.0]] * 3, dtype=torch.float64),
        torch.tensor([0.0, 0.0, 1.0, 0.0]),
        (lambda y: y[:, 2]),
    ],
    ids=lambda target: f"{type(target).__name__} {target}" if not callable(target) else "callable",
)
def test_one_class_has_many_spellings(case: Any, target: Any) -> None:
    expected, found = explained(case, 2), explained(case, target)
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-12, atol=1e-14)
    assert torch.allclose(found.score, case[0](case[1])[:, 2])
    assert found.score.shape == (3,)


def test_each_sample_may_have_a_class_of_its_own(case: Any) -> None:
    module, x = case
    found = explained(case, [3, 0, 1])
    assert torch.equal(found.target, torch.tensor([3, 0, 1]))
    for i, target in enumerate((3, 0, 1)):
        alone = relprop.explain(module, x[i : i + 1], target)
        assert torch.allclose(found.relevance[i], alone.relevance[0], rtol=1e-9, atol=1e-12)


def test_weights_explain_a_contrast(case: Any) -> None:
    module, x = case
    weights = torch.tensor([1.0, -1.0, 0.0, 0.5], dtype=torch.float64)
    found = explained(case, weights)
    assert torch.allclose(found.score, module(x) @ weights)
    parts = [explained(case, i).relevance * float(weights[i]) for i in range(4)]
    assert torch.allclose(found.relevance, sum(parts), rtol=1e-10, atol=1e-12)


def test_a_difference_written_as_a_function_is_the_contrast_under_lrp0(case: Any) -> None:
    """The appended subtraction and the signed start are the same for LRP-0 (case logit_difference_seed)."""
    exact = Composite([("weighted", rules.Epsilon(0.0)), ("addition", rules.Addition(epsilon=0.0))])
    signed = explained(case, torch.tensor([1.0, -1.0, 0.0, 0.0]), rules=exact)
    function = explained(case, lambda y: y[:, 0] - y[:, 1], rules=exact)
    assert torch.allclose(signed.score, function.score)
    assert torch.allclose(signed.relevance, function.relevance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y[:, 1].abs(),
        lambda y: y.sum(1),
        lambda y: y.max(1).values,
        lambda y: y[:, :2].mean(1),
        lambda y: 2 * y[:, 0] - 3 * y[:, 3],
        lambda y: y.gather(1, torch.ones_like(y[:, :1], dtype=torch.long)).squeeze(1),
        lambda y: (y * torch.tensor([1.0, 2.0, 0.0, -1.0], dtype=y.dtype)).sum(1),
    ],
)
def test_a_function_of_the_output_is_explained(case: Any, function: Any) -> None:
    module, x = case
    found = explained(case, function)
    assert torch.allclose(found.score, function(module(x)))
    total = found.audit.relevance + sum(found.audit.absorbed.values())
    assert torch.allclose(total, found.score)


def test_a_softmax_score_is_explained_through_the_softmax(case: Any) -> None:
    module, x = case
    found = explained(case, lambda y: y.softmax(1)[:, 1])
    assert torch.allclose(found.score, module(x).softmax(1)[:, 1])
    assert "softmax_bias" in found.audit.absorbed
    assert found.audit.closes
    as_it_is = explained(
        case, lambda y: y.softmax(1)[:, 1], rules=Composite([("softmax", rules.Softmax("pass"))])
    )
    assert float(as_it_is.relevance.abs().sum()) > 0


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_a_tuple_names_one_value_of_a_larger_output() -> None:
    with seeded(2):
        module, x = randomise(Pixels()).eval(), torch.randn(2, 2, 5, 5)
    found = relprop.explain(module, x, (1, 2, 4))
    assert torch.allclose(found.score, module(x)[:, 1, 2, 4])
    outside = torch.ones(5, 5, dtype=torch.bool)
    outside[1:4, 3:5] = False
    assert not found.relevance[:, :, outside].any()
    assert torch.equal(found.relevance, relprop.explain(module, x, (1, -3, -1)).relevance)
    assert torch.allclose(found.relevance, relprop.explain(module, x, lambda y: y[:, 1, 2, 4]).relevance)
    weights = torch.zeros(2, 3, 5, 5, dtype=torch.float64)
    weights[:, 1, 2, 4] = 1
    assert torch.equal(found.relevance, relprop.explain(module, x, weights).relevance)


def test_one_number_a_sample_needs_no_target() -> None:
    with seeded(3):
        module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0)).eval()
        x = torch.randn(3, 5)
    found = relprop.explain(module, x)
    assert torch.allclose(found.score, module(x))
    for target in (0, [0, 0, 0], torch.tensor([0, 0, 0]), torch.ones(3, dtype=torch.float64), lambda y: y):
        assert torch.allclose(found.relevance, relprop.explain(module, x, target).relevance)
    single = nn.Sequential(*list(module)[:3]).eval()
    assert torch.allclose(found.relevance, relprop.explain(single, x).relevance)


# --- several outputs and inputs


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: Tensor


torch.utils._pytree.register_dataclass(Output)


class Named(NamedTuple):
    hidden: Tensor
    logits: Tensor


@dataclasses.dataclass
class Unknown:
    logits: Tensor


class Outputs(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.logits, self.boxes, self.how = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(6, 4), how

    def forward(self, x: Tensor) -> Any:
        hidden = F.relu(self.body(x))
        if self.how == "dict":
            return {"boxes": self.boxes(hidden), "logits": self.logits(hidden)}
        if self.how == "out":
            return {"out": self.logits(hidden), "aux": self.boxes(hidden)}
        if self.how == "object":
            return Output(self.logits(hidden), hidden)
        if self.how == "named":
            return Named(hidden, self.logits(hidden))
        if self.how == "unknown":
            return Unknown(self.logits(hidden))
        if self.how == "boxes":
            return {"boxes": self.boxes(hidden), "scores": self.logits(hidden)}
        if self.how == "nested":
            return {"heads": [self.logits(hidden), (self.boxes(hidden),)]}
        if self.how == "single":
            return (self.logits(hidden),)
        if self.how == "tuple":
            return self.logits(hidden), self.boxes(hidden)
        return self.logits(hidden)


PICK = {
    "dict": lambda y: y["logits"][:, 1],
    "out": lambda y: y["out"][:, 1],
    "object": lambda y: y.logits[:, 1],
    "named": lambda y: y.logits[:, 1],
    "nested": lambda y: y["heads"][0][:, 1],
    "single": lambda y: y[0][:, 1],
    "tuple": lambda y: y[0][:, 1],
}


def outputs(how: str) -> tuple[nn.Module, Tensor]:
    with seeded(4):
        return randomise(Outputs(how)).eval(), torch.randn(3, 5)


@pytest.mark.parametrize("how", PICK)
def test_a_function_picks_from_several_outputs(how: str) -> None:
    expected = relprop.explain(*outputs("plain"), 1)
    found = relprop.explain(*outputs(how), PICK[how])
    assert torch.allclose(found.relevance, expected.relevance, rtol=1e-12, atol=1e-14)
    assert type(found.output) is type(outputs(how)[0](outputs(how)[1]))


@pytest.mark.parametrize("how", ["dict", "out", "object", "named", "single"])
def test_the_main_output_is_found_by_its_name(how: str) -> None:
    expected = relprop.explain(*outputs("plain"), 1)
    assert torch.allclose(
        relprop.explain(*outputs(how), 1).relevance, expected.relevance, rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("tuple", r"\(2 values\)\n  do: .* target=lambda y: y\[0\]\[:, 3\]"),
        ("boxes", r"\(boxes, scores\)\n  do: .* target=lambda y: y\['boxes'\]\[:, 3\]"),
    ],
)
def test_several_outputs_without_a_main_one_are_named(how: str, words: str) -> None:
    with pytest.raises(relprop.InvalidInput, match=words):
        relprop.explain(*outputs(how))


def test_a_dataclass_that_torch_does_not_know_is_told_how_to_make_known() -> None:
    with pytest.raises(relprop.CaptureError, match=r"do: torch.export.register_dataclass\(Unknown\)"):
        relprop.explain(*outputs("unknown"))


def test_a_function_may_join_several_outputs() -> None:
    module, x = outputs("tuple")
    found = relprop.explain(module, x, lambda y: y[0][:, 1] + y[1][:, 2], rules="epsilon")
    assert torch.allclose(found.score, module(x)[0][:, 1] + module(x)[1][:, 2])
    parts = [
        relprop.explain(module, x, lambda y, i=i: y[i][:, i + 1], rules="epsilon").relevance for i in (0, 1)
    ]
    assert torch.allclose(found.relevance, parts[0] + parts[1], rtol=1e-5, atol=1e-6)  # ε of the appended sum
    assert found.audit.closes


class Inputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 6), nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(
        self, image: Tensor, table: Tensor, scale: float = 1.0, unused: Tensor | None = None
    ) -> Tensor:
        return self.head(F.relu(self.a(image) + self.b(table))) * scale


def inputs() -> tuple[nn.Module, Tensor, Tensor]:
    with seeded(5):
        return randomise(Inputs()).eval(), torch.randn(3, 5), torch.randn(3, 3)


def test_several_inputs_have_relevance_each_in_the_form_given() -> None:
    module, image, table = inputs()
    listed = relprop.explain(module, (image, table), 1)
    named = relprop.explain(module, {"image": image, "table": table}, 1)
    swapped = relprop.explain(module, {"table": table, "image": image}, 1)
    assert isinstance(listed.relevance, tuple) and isinstance(named.relevance, dict)
    assert set(named.relevance) == set(swapped.relevance) == {"image", "table"}
    for other in (named, swapped):
        assert torch.allclose(other.relevance["image"], listed.relevance[0])
        assert torch.allclose(other.relevance["table"], listed.relevance[1])
    assert listed.relevance[0].shape == image.shape and listed.relevance[1].shape == table.shape
    both = sum(part.flatten(1).sum(1) for part in listed.relevance)
    assert torch.allclose(listed.audit.relevance, both)
    assert listed.audit.closes


def test_arguments_that_are_no_tensors_are_passed_on() -> None:
    module, image, table = inputs()
    found = relprop.explain(module, {"image": image, "table": table, "scale": 2.0}, 1)
    assert torch.allclose(found.score, module(image, table)[:, 1] * 2)
    assert found.relevance["scale"] is None
    assert torch.allclose(relprop.explain(module, (image, table, 2.0), 1).score, found.score)


def test_an_input_that_is_not_used_gets_zeros() -> None:
    module, image, table = inputs()
    found = relprop.explain(module, {"image": image, "table": table, "unused": torch.ones_like(image)}, 1)
    assert torch.equal(found.relevance["unused"], torch.zeros_like(image))


# --- several targets


def test_several_targets_share_one_forward_pass(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = case
    explainer = relprop.Explainer(module, example=x)
    targets = [None, 1, [0, 1, 2], torch.tensor([0.5, 0.0, -1.0, 0.0]), lambda y: y[:, 3]]
    expected = [explainer(x, target) for target in targets]
    methods = __import__("sys").modules["relprop.methods"]
    passes = []
    whole = methods.forward
    monkeypatch.setattr(methods, "forward", lambda *args: passes.append(1) or whole(*args))
    found = explainer.explain_targets(x, targets)
    assert len(passes) == 1 and len(found) == len(targets)
    for mine, other in zip(found, expected, strict=True):
        assert torch.equal(mine.relevance, other.relevance) and torch.equal(mine.score, other.score)


# --- chunks


TARGETS = {
    "none": None,
    "int": 2,
    "list": [3, 0, 1],
    "tensor": torch.tensor([3, 0, 1]),
    "numpy": np.array([3, 0, 1]),
    "weights": torch.tensor([1.0, -1.0, 0.0, 2.0]),
    "weights of each": torch.arange(12.0).reshape(3, 4) / 6 - 1,
    "tuple": (1,),
    "callable": lambda y: y[:, 0] - y[:, 1],
}


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("target", TARGETS)
def test_chunks_give_what_one_batch_gives(case: Any, target: str, size: int) -> None:
    module, x = case
    whole = relprop.Explainer(module, "epsilon_plus")(x, TARGETS[target])
    found = relprop.Explainer(module, "epsilon_plus", batch_size=size)(x, TARGETS[target])
    for name in ("relevance", "output", "score"):
        assert torch.allclose(getattr(found, name), getattr(whole, name), rtol=1e-10, atol=1e-12)
    assert type(found.target) is type(whole.target)
    if isinstance(whole.target, Tensor):
        assert torch.equal(found.target, whole.target)
    assert found.audit.score.shape == (3,) and found.audit.closes
    for reason, amount in whole.audit.absorbed.items():
        assert torch.allclose(found.audit.absorbed[reason], amount, rtol=1e-9, atol=1e-12)
    assert [e.name for e in found.audit.entries] == [e.name for e in whole.audit.entries]
    assert torch.allclose(found.at("blocks.0"), whole.at("blocks.0"), rtol=1e-9, atol=1e-12)
    assert "magnitude" in found.audit.summary(2) and found.audit.table(2)


def test_weights_of_outputs_are_not_taken_for_samples() -> None:
    """As many samples as outputs: a weight for each output stays one when the batch is cut."""
    with seeded(6):
        module, x = nn.Linear(5, 3).eval(), torch.randn(3, 5)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    whole = relprop.explain(module, x, weights)
    for size in (1, 2):
        found = relprop.Explainer(module, batch_size=size)(x, weights)
        assert torch.allclose(found.relevance, whole.relevance)


def test_chunks_of_several_inputs_and_targets() -> None:
    module, image, table = inputs()
    whole = relprop.Explainer(module).explain_targets((image, table), [1, [0, 1, 2]])
    found = relprop.Explainer(module, batch_size=2).explain_targets((image, table), [1, [0, 1, 2]])
    for mine, other in zip(found, whole, strict=True):
        for a, b in zip(mine.relevance, other.relevance, strict=True):
            assert torch.allclose(a, b, rtol=1e-10)


# --- inside the model


def test_relevance_inside_adds_up_on_a_cut_of_the_network(case: Any) -> None:
    module, x = case
    found = explained(case, 1, rules=rules.ZPlus())
    assert found.at("blocks.0").shape == module.blocks[0](F.relu(module.bn(module.stem(x)))).shape
    head = relprop.explain(
        module.head, module.blocks(F.relu(module.bn(module.stem(x)))).mean((2, 3)), 1, rules.ZPlus()
    )
    assert torch.allclose(found.at("blocks").sum((2, 3)), head.relevance, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.at("blocks"), found.at("blocks.1"))
    assert torch.allclose(found.at("head").sum(1), found.score)


def test_at_a_folded_normalisation_and_its_convolution_relevance_is_the_same(case: Any) -> None:
    found = explained(case, 1)
    for conv, norm in (
        ("blocks.0.conv1", "blocks.0.bn1"),
        ("blocks.1.downsample.0", "blocks.1.downsample.1"),
        ("stem", "bn"),
    ):
        assert torch.equal(found.at(conv), found.at(norm))
    assert torch.equal(found.at("blocks.1.downsample"), found.at("blocks.1.downsample.1"))


def test_at_an_unfolded_normalisation_relevance_is_its_own(case: Any) -> None:
    unfolded = Composite([("weighted", rules.Gamma(0.5)), ("batch_norm", rules.Epsilon())], fold=False)
    found = explained(case, 1, rules=unfolded)
    assert found.at("stem").shape == found.at("bn").shape
    assert not torch.allclose(found.at("stem"), found.at("bn"))


def test_at_a_module_called_several_times_each_call_has_its_own() -> None:
    module, x = ZOO["reused"](0)
    found = relprop.explain(module, x, 1)
    calls = found.at("relu")
    assert isinstance(calls, tuple) and len(calls) == 3
    for i, part in enumerate(calls):
        assert torch.equal(part, found.at("relu" if i == -1 else f"relu@{i}") if i else part)
    assert torch.equal(found.at("relu@1"), calls[1]) and torch.equal(found.at("relu@2"), calls[2])
    assert len(found.at("again")) == 3
    assert not torch.equal(calls[0], calls[1])


@pytest.mark.parametrize(
    "name, path", [("branches", "three"), ("unet", "up"), ("dense", "convs.0"), ("shuffle", "branch")]
)
def test_at_containers_and_branches(name: str, path: str) -> None:
    module, x = ZOO[name](0)
    found = relprop.explain(module, x, 1)
    shapes: list[Any] = []
    handle = module.get_submodule(path).register_forward_hook(lambda m, i, o: shapes.append(o.shape))
    module(x)
    handle.remove()
    inner = found.at(path)
    parts = inner if isinstance(inner, tuple) else (inner,)
    assert [part.shape for part in parts] == shapes
    assert all(torch.isfinite(part).all() for part in parts)


def test_at_the_model_itself_relevance_is_the_start(case: Any) -> None:
    found = explained(case, 1)
    start = torch.zeros_like(found.output)
    start[:, 1] = found.score
    assert torch.equal(found.at("head"), start)
    assert torch.equal(found.at(""), start)


def test_at_keeps_its_target_and_inputs(case: Any) -> None:
    module, x = case
    mine = x.clone()
    found = relprop.explain(module, mine, 1)
    relprop.explain(module, x * 2, 3)
    inner = found.at("blocks.0")
    assert torch.equal(inner, relprop.explain(module, x, 1).at("blocks.0"))
    mine.mul_(
        2
    )  # the caller's tensor changes afterwards: refused, never explained silently as something else
    with pytest.raises(relprop.InvalidInput, match="changed"):
        found.at("blocks.0")


def test_without_an_audit_the_relevance_is_the_same(case: Any) -> None:
    module, x = case
    found, bare = relprop.explain(module, x, 1), relprop.explain(module, x, 1, audit=False)
    assert bare.audit is None and torch.equal(found.relevance, bare.relevance)
    assert torch.equal(bare.at("stem"), found.at("stem"))


def test_an_explanation_holds_what_it_was_made_of(case: Any) -> None:
    module, x = case
    found = relprop.explain(module, x, 1)
    assert found.inputs is x and found.method == "lrp" and found.plan is not None
    assert found.relevance.shape == x.shape and found.score.shape == (3,)
    for tensor in (found.relevance, found.output, found.score):
        assert not tensor.requires_grad
    assert "score" in str(found)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.score = None
