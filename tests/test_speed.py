"""What makes the walk fast leaves its numbers as they are; and a small benchmark against gross regressions."""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import relprop
from relprop.engine.propagate import record, segments, walk
from relprop.engine.propagate.weights import Weights, row_sums
from relprop.errors import InvalidInput
from relprop.explain.captured import leaves_of
from relprop.rules import Epsilon

ROOT = Path(__file__).parent.parent
PRESETS = (
    "epsilon",
    "epsilon_plus",
    "epsilon_plus_flat",
    "epsilon_alpha2_beta1",
    "auto",
    "deep_taylor",
    "zennit/epsilon_plus_flat",
    "innvestigate/lrp_sequential_preset_a",
)


class Residual(nn.Module):
    """Convolutions behind and in front of ReLUs, a sum, poolings, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.norm, self.pool = nn.BatchNorm2d(8), nn.MaxPool2d(2)
        self.head, self.last = nn.Linear(8 * 9, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 12, 12) to (B, 5)."""
        y = torch.relu(self.norm(self.a(x)))
        y = torch.relu(self.b(y) + y)
        y = nn.functional.avg_pool2d(self.pool(torch.relu(self.c(y))), 2)
        return self.last(torch.relu(self.head(y.flatten(1))))


def residual() -> nn.Module:
    torch.manual_seed(3)
    return Residual().double().eval()


def example(batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rules", PRESETS)
def test_targets_that_share_one_sample_are_explained_as_if_alone(rules: str) -> None:
    explainer = relprop.Explainer(residual(), rules)
    together = explainer.explain_targets(example(), [0, 1, 2, 3, 4])
    for target, found in enumerate(together):
        alone = explainer(example(), target)
        assert torch.allclose(found.relevance, alone.relevance, rtol=0, atol=1e-12)
        assert found.audit is not None and alone.audit is not None
        for reason, amount in alone.audit.absorbed.items():
            assert torch.allclose(found.audit.absorbed[reason], amount, rtol=0, atol=1e-12)


def test_walks_part_where_values_are_too_large_for_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    together = importlib.import_module("relprop.explain.together")
    batches: list[int] = []
    monkeypatch.setattr(
        together, "walk", lambda *given, own=together.walk, **options: batches.append(given[4]) or own(*given, **options)
    )  # fmt: skip
    explainer = relprop.Explainer(residual(), "epsilon")
    expected = explainer.explain_targets(example(), [0, 1, 2, 3, 4])
    largest, small = (8 * side * side * 8 for side in (12, 6))  # bytes in front of and behind the max pooling
    assert 4 * small < 2 * (12 * 8 * 9 * 8)  # the weight of the first linear layer counts for nothing
    found = []
    for room in (4 * largest, 4 * small, 1):
        monkeypatch.setattr(together, "ROOM", room)
        found.append(explainer.explain_targets(example(), [0, 1, 2, 3, 4]))
    assert batches == [5, 5, 2, 3, 5, 2, 1, 1, 3, 1, 1, 1, 5, 1, 1, 1, 1, 1]
    for explanations in found:
        for one, other in zip(explanations, expected, strict=True):
            assert torch.allclose(one.relevance, other.relevance, rtol=0, atol=1e-12)
            assert one.audit is not None and other.audit is not None
            pairs = zip(one.audit.entries, other.audit.entries, strict=True)
            assert all(torch.allclose(a.received, b.received, rtol=0, atol=1e-12) for a, b in pairs)


class Written(TorchDispatchMode):
    """Counts the numbers that operations write, by the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._overloadpacket.__name__
        if isinstance(result, Tensor):
            self.numbers[name] = self.numbers.get(name, 0) + result.numel()
        return result


@pytest.mark.parametrize("cached", [1 << 17, 40])
def test_the_denominators_of_a_shared_sample_are_worked_out_once(
    monkeypatch: pytest.MonkeyPatch, cached: int
) -> None:
    monkeypatch.setattr(importlib.import_module("relprop.engine.step"), "CACHED", cached)
    explainer, numbers = relprop.Explainer(residual(), "epsilon"), []
    for count in (2, 5):
        explainer.explain_targets(example(), list(range(count)))
        with Written() as written:
            explainer.explain_targets(example(), list(range(count)))
        numbers.append(written.numbers["copysign"])
    pooled = 8 * 3 * 3  # the average pooling looks at as many as there are walks
    assert numbers[1] - numbers[0] <= 3 * pooled


def test_values_of_one_sample_are_not_copied_for_its_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    repeated = importlib.import_module("relprop.explain.repeated")
    made: list[Tensor] = []
    monkeypatch.setattr(
        repeated, "times", lambda value, *_, own=repeated.times: made.append(value) or own(value, *_)
    )
    model = residual()
    for form in (torch.contiguous_format, torch.channels_last):
        explainer, x = (
            relprop.Explainer(model.to(memory_format=form), "epsilon"),
            example().to(memory_format=form),
        )
        found = explainer.explain_targets(x, [0, 1, 2])
        assert torch.allclose(found[2].relevance, explainer(x, 2).relevance, rtol=0, atol=1e-12)
    large = [value for value in made if isinstance(value, Tensor) and value.shape[2:] in ((12, 12), (6, 6))]
    assert [value.shape[3] for value in large] == [
        6
    ] * 2  # what the average pooling reads; all others are shared


def test_the_walk_frees_the_values_that_it_has_passed() -> None:
    explainer, x = relprop.Explainer(residual(), "epsilon"), example()
    captured, program = explainer.program((x,), {})
    values = record(program, leaves_of(explainer.model, captured.graph, (x,), {}), captured.store)
    (ref,) = captured.graph.outputs()
    walk(program, values, {ref: values[ref.name].clone()}, captured.store, 1, release=True)
    assert not values


@pytest.mark.parametrize("rules", PRESETS)
def test_writing_over_dead_values_a_block_at_a_time_changes_no_number(
    monkeypatch: pytest.MonkeyPatch, rules: str
) -> None:
    monkeypatch.setattr(importlib.import_module("relprop.engine.step"), "CACHED", 40)
    explainer, x = relprop.Explainer(residual(), rules), example(3)
    captured, program = explainer.program((x,), {})
    (ref,) = captured.graph.outputs()
    ways = []
    for release in (False, True):
        values = record(program, leaves_of(explainer.model, captured.graph, (x,), {}), captured.store)
        seed = values[ref.name].clone()
        ways.append(walk(program, values, {ref: seed}, captured.store, 3, release=release))
    for kept, over in zip(*(way.entries for way in ways), strict=True):
        assert torch.allclose(kept.received, over.received, rtol=0, atol=1e-12)
        for reason, amount in kept.absorbed.items():
            assert torch.allclose(over.absorbed[reason], amount, rtol=0, atol=1e-12)
        assert (kept.magnitude is None) == (over.magnitude is None)
    for name, relevance in ways[0].inputs.items():
        assert torch.allclose(ways[1].inputs[name], relevance, rtol=0, atol=1e-12)


class Shown(nn.Module):
    """Returns a value from its midst, through a view, beside its output; and reads its input twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 6) to (B, 3) and (B, 2, 3)."""
        y = self.a(x) + x
        return self.b(y), y.view(-1, 2, 3)


@pytest.mark.parametrize("targets", [1, 2])
def test_the_account_of_a_large_stabiliser_is_exact_in_float32(
    targets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two million shares of one sign: a plain sum of their products would lose a millionth of them, and more of more."""
    monkeypatch.setattr("relprop.engine.step.CACHED", 1 << 20)
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(1 << 21, 2, bias=False)
    ).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[2].weight.fill_(1.0)
    rules = relprop.Composite([("convolution", Epsilon(1.0)), ("linear", Epsilon(1e-6))])
    x = torch.rand(1, 1, 1024, 2048)
    for one in relprop.Explainer(model, rules).explain_targets(x, [0, 1][:targets]):
        assert one.audit is not None
        convolution = one.audit.entries[-1]
        assert float(convolution.absorbed["stabilizer"]) > 0.3 * float(one.score)
        assert abs(float(convolution.gap)) < 2e-7 * float(one.score)


def test_what_the_caller_holds_is_never_written_over() -> None:
    torch.manual_seed(0)
    model, x = Shown().double().eval(), torch.randn(4, 6, dtype=torch.float64)
    before, expected = x.clone(), [y.detach().clone() for y in model(x)]
    found = relprop.explain(model, x, lambda out: out[0][:, 1], "epsilon")
    assert torch.equal(x, before)
    for own, output in zip(found.output, expected, strict=True):
        assert torch.allclose(own, output, rtol=0, atol=1e-12)


def test_a_walk_leaves_no_relevance_for_the_garbage_collector() -> None:
    explainer, x = relprop.Explainer(residual(), "epsilon"), example()

    def large() -> int:
        found = (item for item in gc.get_objects() if type(item) is Tensor)
        return sum(item.shape == (1, 8, 12, 12) for item in found)

    explainer(x, 1)
    gc.collect()
    gc.disable()
    try:
        before = large()
        explainer(x, 1)
        assert large() <= before
    finally:
        gc.enable()


@pytest.mark.parametrize(("make", "shape"), [(residual, (3, 3, 12, 12)), (Shown, (4, 6))])
@pytest.mark.parametrize("rules", ["epsilon", "auto"])
def test_checkpoints_change_no_number(make: Any, shape: tuple[int, ...], rules: str) -> None:
    model = make().double().eval()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    targets = [
        lambda y: (y[0] if isinstance(y, tuple) else y)[:, 1],
        lambda y: (y[0] if isinstance(y, tuple) else y)[:, 2],
    ]
    kept = relprop.Explainer(model, rules).explain_targets(x, targets)
    again = relprop.Explainer(model, rules, checkpoints=True).explain_targets(x, targets)
    for one, other in zip(kept, again, strict=True):
        assert torch.allclose(one.relevance, other.relevance, rtol=0, atol=1e-12)
        assert one.audit is not None and other.audit is not None
        assert len(one.audit.entries) == len(other.audit.entries)
        assert torch.allclose(other.audit.gap, one.audit.gap, rtol=0, atol=1e-12)


def test_checkpoints_hold_a_part_of_the_values() -> None:
    explainer, x = relprop.Explainer(residual(), "epsilon"), example()
    captured, program = explainer.program((x,), {})
    leaves = leaves_of(explainer.model, captured.graph, (x,), {})
    parts = segments(program)
    held = record(program, leaves, captured.store, only=parts.kept)
    whole = record(program, leaves, captured.store)
    assert len(parts.starts) > 2
    assert set(held) - set(leaves) <= parts.kept
    assert len(set(held) - set(leaves)) < len(set(whole) - set(leaves))


def test_autocast_is_close_to_float32_and_its_account_closes() -> None:
    model, x = residual().float(), example(2).float()
    plain = relprop.explain(model, x, 1, "epsilon_plus")
    cast = relprop.explain(model, x, 1, "epsilon_plus", autocast=torch.bfloat16)
    assert cast.output.dtype == torch.bfloat16 and cast.relevance.dtype == torch.float32
    assert cast.audit is not None and cast.audit.precision == torch.float32 and cast.audit.closes
    assert float((cast.relevance - plain.relevance).norm() / plain.relevance.norm()) < 0.05
    after = relprop.explain(model, x, 1, "epsilon_plus")
    assert torch.equal(after.relevance, plain.relevance)  # nothing in the coarser type is kept


def test_options_that_cannot_be_had_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"autocast: the model computes in torch\.float64"):
        relprop.explain(residual(), example(), 1, autocast=torch.bfloat16)
    with pytest.raises(InvalidInput, match="autocast: 'half'"):
        relprop.explain(residual(), example(), 1, autocast="half")
    with pytest.raises(InvalidInput, match="checkpoints: not together with conditions"):
        relprop.Explainer(residual(), checkpoints=True).conditional(example(), 1, conditions=[None])


def test_only_weights_that_something_was_computed_from_are_compared() -> None:
    weights = {"w": torch.randn(3, 4), "v": torch.randn(2, 2), "u": torch.randn(5)}
    store = Weights()
    store._sources = {"w": frozenset({"w"}), "v": frozenset({"v"}), "u": frozenset({"u"})}
    store.fresh(weights)
    from relprop.engine.graph import Ref

    store.get((Ref("w"), "square"), lambda: weights["w"].square())
    store.get((Ref("v"), "view"), lambda: weights["v"].t())
    assert list(store._sums) == ["w"]
    weights["v"].data[0] += 1  # a view shows it
    store.fresh(weights)
    assert store._values
    weights["w"].data[0, 0] += 1
    store.fresh(weights)
    assert not store._values
    assert torch.equal(row_sums(torch.tensor(3.0)), torch.tensor([3.0]))


class Attending(nn.Module):
    """A transformer's block over steps of a series."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 16) to (B, 3)."""
        return self.head(self.block(x).mean(1))


class Names(TorchDispatchMode):
    """Takes down the operations that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_the_forward_pass_multiplies_matrices_as_often_as_the_model_does() -> None:
    """torch takes one product for each position where the input is a transposed view and no weight is learnt."""
    model, x = Attending().double().eval(), torch.randn(2, 5, 16, dtype=torch.float64)
    explainer = relprop.Explainer(model, "epsilon")
    captured, program = explainer.program((x,), {})
    leaves = leaves_of(model, captured.graph, (x,), {})
    with Names() as run:
        values = record(program, leaves, captured.store)
    assert "aten.bmm.default" not in run.names
    (ref,) = captured.graph.outputs()
    assert torch.allclose(values[ref.name], model(x), rtol=0, atol=1e-12)


NETWORKS = [(residual, (2, 3, 12, 12)), (lambda: Attending().eval(), (2, 5, 16))]


@pytest.mark.parametrize(("make", "shape"), NETWORKS, ids=["convolutions", "attention"])
@pytest.mark.parametrize("rules", ["epsilon", "epsilon_plus", "epsilon_alpha2_beta1", "auto", "attn_lrp"])
def test_off_the_cpu_nothing_on_the_way_reads_a_value(
    make: object, shape: tuple[int, ...], rules: str
) -> None:
    """Tensors without values stand for a device that would have to be waited for: reading one raises."""
    model = make()  # type: ignore[operator]
    x = torch.randn(shape, dtype=next(model.parameters()).dtype)
    explainer = relprop.Explainer(model, rules)
    captured, program = explainer.program((x,), {})
    leaves = leaves_of(explainer.model, captured.graph, (x,), {})
    away = {name: value.to("meta") if isinstance(value, Tensor) else value for name, value in leaves.items()}
    store = Weights()
    store._weights = {}
    values = record(program, away, store)
    (ref,) = captured.graph.outputs()
    way = walk(program, values, {ref: values[ref.name].clone()}, store, 2)
    assert all(relevance.is_meta for relevance in way.inputs.values()) and way.entries


WAITS = ("aten._local_scalar_dense", "aten.equal", "aten.nonzero", "aten.masked_select", "aten._unique2")
"""Operations that bring a value to the processor: on a GPU each waits for all that has been asked of it."""

CASES = [("convolutions", preset) for preset in relprop.presets()]
CASES += [("attention", preset) for preset in ("epsilon", "auto", "attn_lrp", "cp_lrp", "lrp_half")]


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[nn.Module, Tensor]]:
    """Each with an input within the bounds of ImageNet's pixels."""
    return {
        "convolutions": (residual(), example(2) / 4),
        "attention": (Attending().eval(), torch.randn(2, 5, 16)),
    }


@pytest.mark.parametrize(("name", "rules"), CASES, ids="-".join)
def test_a_call_off_the_cpu_waits_a_few_times_and_its_walk_never(
    models: dict[str, tuple[nn.Module, Tensor]], monkeypatch: pytest.MonkeyPatch, name: str, rules: str
) -> None:
    """zᴮ looks at the input's bounds once. Before the walk inputs, weights and output are looked at, after it the audit."""
    for module in ("rules.linear", "ops.elementwise.sums"):  # they look as they do where a look is not free
        monkeypatch.setattr(
            importlib.import_module(f"relprop.engine.{module}"),
            "holds",
            lambda of, condition, cheap=False, demanded=False: demanded and bool(condition()),
        )
    model, x = models[name]
    explainer = relprop.Explainer(model, rules)
    explainer(x, 1)
    with Names() as whole:
        explainer(x, 1)
    captured, program = explainer.program((x,), {})
    values = record(program, leaves_of(model, captured.graph, (x,), {}), captured.store)
    (ref,) = captured.graph.outputs()
    with Names() as walked:
        walk(program, values, {ref: values[ref.name].clone()}, captured.store, 2)
    boxes = sum("ZBox" in printed for printed in program.printed.values())
    assert boxes == rules.endswith("gamma_box")
    assert sum(one.startswith(WAITS) for one in walked.names) == boxes
    assert sum(one.startswith(WAITS) for one in whole.names) <= 6 + boxes


def test_the_page_of_benchmarks_shows_the_figures_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    data = json.loads((ROOT / "benchmarks" / "speed.json").read_text(encoding="utf-8"))
    files = (ROOT / "benchmarks").glob("speed-*.json")
    others = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    filled = importlib.import_module("timing.page").filled
    assert filled(page, data, others) == page, (
        "python benchmarks/speed.py --parts --json … --page … makes it anew"
    )
    data["figures"] = [figure | {"figure": 9.87, "verdict": "missed"} for figure in data["figures"]]
    assert "**9.87**" in filled(page, data, others)


def test_a_profile_knows_kernels_by_kind_and_counts_their_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    profile = importlib.import_module("timing.kernels")
    names = [name for group in profile.GROUPS.values() for name in group]
    assert len(names) == len(set(names))
    a, b = torch.randn(8, 16), torch.randn(16, 4)
    assert profile.operations(lambda: a @ b) == 2 * 8 * 16 * 4
    times, count = profile.kernels(lambda: (a @ b).add_(1).view(-1))
    assert {"mm", "add"} <= set(times) and "view" not in times and count >= 2
    model, x = residual(), example(2)
    leaf = x.clone().requires_grad_()
    gradient = profile.operations(lambda: torch.autograd.grad(model(leaf).sum(), leaf))
    explainers = {rules: relprop.Explainer(model, rules) for rules in ("epsilon", "epsilon_alpha2_beta1")}
    for own in explainers.values():
        own(x, 1)  # captures, and checks the capture
    needed = {rules: profile.operations(lambda own=own: own(x, 1)) for rules, own in explainers.items()}
    assert 0.9 * gradient <= needed["epsilon"] <= 1.1 * gradient < needed["epsilon_alpha2_beta1"]


def test_no_gross_regression_of_speed() -> None:
    """Two models, three rounds: fails where an explanation takes more than twice what is promised."""
    command = [sys.executable, str(ROOT / "benchmarks" / "speed.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_peak_of_a_call_is_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    peak = importlib.import_module("timing.memory").peak
    found = peak("chain", "gradient", size=32, length=2)
    assert found["peak"] >= found["before"] > 0
