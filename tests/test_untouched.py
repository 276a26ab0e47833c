"""The user's models and process are read, never written; threads and earlier calls leave no trace."""

from __future__ import annotations

import copy
import functools
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import relprop
from relprop import Composite, rules
from zoo import ZOO, randomise, seeded

pytestmark = pytest.mark.filterwarnings("ignore::relprop.RelevanceWarning")

FEW = ["residual", "inverted_residual", "functional", "shuffle", "attention"]


# --- what may not change


def state_of(module: nn.Module) -> dict[str, Any]:
    """Everything that a call could leave behind on a model."""
    state: dict[str, Any] = {"class": type(module), "class attributes": sorted(vars(type(module)))}
    for path, part in module.named_modules(remove_duplicate=False):
        state[f"{path}: training"] = part.training
        state[f"{path}: keys"] = list(vars(part))
        state[f"{path}: call"] = (type(part), type(part).__call__, type(part).forward)
        for name, value in vars(part).items():
            if "hooks" in name:
                state[f"{path}: {name}"] = dict(value)
            elif isinstance(value, (bool, int, float, str, tuple, list, type(None))):
                state[f"{path}: {name}"] = copy.deepcopy(value)
    for name, weight in [*module.named_parameters(), *module.named_buffers()]:
        grad = weight.grad if isinstance(weight, nn.Parameter) else None
        state[f"{name}: tensor"] = (
            id(weight),
            type(weight),
            weight.data_ptr(),
            weight._version,
            weight.requires_grad,
            weight.dtype,
            weight.shape,
            weight.stride(),
            weight.is_leaf,
            weight.grad_fn,
            None if grad is None else (id(grad), grad.clone()),
            len(weight._backward_hooks or {}),
            dict(vars(weight)),
        )
        state[f"{name}: bits"] = weight.detach().clone()
    return state


def process_state() -> dict[str, Any]:
    """What belongs to the whole process."""
    return {
        "torch random": torch.get_rng_state(),
        "numpy random": str(np.random.get_state()),
        "python random": random.getstate(),
        "default dtype": torch.get_default_dtype(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": torch.is_autocast_enabled(),
        "threads": torch.get_num_threads(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "module class": {name: id(value) for name, value in vars(nn.Module).items()},
        "linear": (id(F.linear), id(F.relu), id(torch.add), id(Tensor.__add__), id(nn.Linear.forward)),
        "global hooks": (
            len(nn.modules.module._global_forward_hooks),
            len(nn.modules.module._global_forward_pre_hooks),
            len(nn.modules.module._global_backward_hooks),
        ),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert list(before) == list(after)
    for key, value in before.items():
        assert _equal(value, after[key]), key


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return a is b or a == b


def with_traces(name: str) -> tuple[nn.Module, Tensor]:
    """A fresh network of the zoo with gradients, one without, and a frozen weight: all must survive."""
    module, x = ZOO[name](0)
    module = copy.deepcopy(module)
    module(x).square().sum().backward()
    first, *rest = module.parameters()
    first.requires_grad_(False)
    if rest:
        rest[0].grad = None
    return module, x


CALLS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "explain": lambda m, x: relprop.explain(m, x),
    "with every fold and rule": lambda m, x: [
        relprop.explain(m, x, 1, Composite([("weighted", rule)], fold=fold))
        for rule in (rules.AlphaBeta(), rules.Flat(), rules.Gamma())
        for fold in (True, False)
    ],
    "an explainer": lambda m, x: relprop.Explainer(m, "epsilon_plus", example=x)(x, [0, 1, 2]),
    "chunks": lambda m, x: relprop.Explainer(m, batch_size=1)(x),
    "several targets": lambda m, x: relprop.Explainer(m).explain_targets(x, [0, 1]),
    "a callable target": lambda m, x: relprop.explain(m, x, lambda y: y[:, 0] - y[:, 1]),
    "inner relevance": lambda m, x: relprop.explain(m, x).at(inner_path(m)),
    "the plan": lambda m, x: str(relprop.Explainer(m, example=x).plan),
}


def inner_path(module: nn.Module) -> str:
    """The path of some layer inside a module; "" where there is none."""
    return next((path for path, part in module.named_modules() if isinstance(part, nn.Linear)), "")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", FEW)
def test_no_call_touches_model_input_or_process(name: str, call: str) -> None:
    module, x = with_traces(name)
    given, version = x.clone(), x._version
    before, process = state_of(module), process_state()
    CALLS[call](module, x)
    assert_same(before, state_of(module))
    assert_same(process, process_state())
    assert torch.equal(x, given) and x._version == version and x.grad is None and not x.requires_grad


@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference"])
def test_the_callers_gradient_mode_is_kept_and_changes_nothing(mode: str) -> None:
    module, x = ZOO["residual"](0)
    expected = relprop.explain(module, x).relevance
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]
    inner, fresh = relprop.explain(module, x).at("blocks.0"), copy.deepcopy(module)
    with context():
        before = process_state()
        for model, value in ((module, x), (fresh, x), (module, x.clone())):
            found = relprop.explain(model, value)
            assert torch.equal(found.relevance, expected) and not found.relevance.requires_grad
            assert torch.equal(found.at("blocks.0"), inner)
            assert_same(before, process_state())


def test_an_input_that_wants_a_gradient_gets_none() -> None:
    module, x = ZOO["cnn"](0)
    leaf = x.clone().requires_grad_()
    found = relprop.explain(module, leaf)
    assert leaf.grad is None and leaf.requires_grad
    for tensor in (found.relevance, found.output, found.score):
        assert not tensor.requires_grad and tensor.grad_fn is None


def test_results_are_not_views_of_the_models_own_tensors() -> None:
    """What a caller writes into a result reaches neither the model, the input nor the next explanation."""
    module, x = ZOO["mlp"](0)
    kept = x.clone()
    expected = relprop.explain(module, x)
    again = relprop.explain(module, x)
    for tensor in (again.relevance, again.output, again.score):
        tensor.zero_()
    assert torch.equal(x, kept)
    third = relprop.explain(module, x)
    assert torch.equal(third.relevance, expected.relevance) and torch.equal(third.output, expected.output)


def test_another_model_in_the_process_is_not_affected() -> None:
    module, x = ZOO["inverted_residual"](0)
    other, y = ZOO["attention"](0)
    other = copy.deepcopy(other)

    def outcome() -> list[Tensor]:
        other.zero_grad()
        leaf = y.clone().requires_grad_()
        output = other(leaf)
        output.square().sum().backward()
        return [output.detach(), leaf.grad, *(p.grad.clone() for p in other.parameters())]

    before = outcome()
    for rule in ("auto", "epsilon", "epsilon_plus_flat"):
        relprop.explain(module, x, rules=rule)
    assert all(torch.equal(a, b) for a, b in zip(before, outcome(), strict=True))


# --- also when a call fails


class FailsLate(nn.Module):
    """A model whose forward pass fails after its first layer, or has an operation that no rule covers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.last, self.how = nn.Linear(5, 6), nn.Linear(6, 3), how

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        if self.how == "raises":
            raise RuntimeError("on purpose")
        if self.how == "unsupported":
            x = torch.linalg.matrix_exp(x[:, :, None] * x[:, None, :])[:, 0]
        return self.last(x)


def bad_target(y: Tensor) -> Tensor:
    raise ValueError("the target fails on purpose")


FAILURES: dict[str, tuple[str, Callable[[nn.Module, Tensor], Any]]] = {
    "the model raises": ("raises", lambda m, x: relprop.explain(m, x)),
    "no rule covers an operation": ("unsupported", lambda m, x: relprop.explain(m, x)),
    "the shape is wrong": ("works", lambda m, x: relprop.explain(m, x[:, :3])),
    "the target is out of range": ("works", lambda m, x: relprop.explain(m, x, 7)),
    "the target raises": ("works", lambda m, x: relprop.explain(m, x, bad_target)),
    "the rule does not fit": (
        "works",
        lambda m, x: relprop.explain(m, x, 0, Composite([("activation", rules.Flat())])),
    ),
    "the box is left": ("works", lambda m, x: relprop.explain(m, x, 0, rules.ZBox(low=0.0, high=0.1))),
    "the input is not finite": ("works", lambda m, x: relprop.explain(m, x / 0)),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failing_call_touches_nothing_either(case: str) -> None:
    how, call = FAILURES[case]
    with seeded(1):
        module, x = randomise(FailsLate(how)).eval(), torch.randn(2, 5)
    before, process = state_of(module), process_state()
    with pytest.raises(Exception) as caught:
        call(module, x)
    assert isinstance(caught.value, (relprop.RelpropError, ValueError))
    assert_same(before, state_of(module))
    assert_same(process, process_state())
    if how == "works":
        assert torch.isfinite(relprop.explain(module, x).relevance).all()


def test_a_failure_half_way_through_the_walk_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = with_traces("residual")
    expected = relprop.explain(copy.deepcopy(module), x).relevance
    calls = iter(range(100))

    def breaks(step: Any, relevance: Any) -> Any:
        if next(calls) == 2:
            raise RuntimeError("half-way, on purpose")
        return whole(step, relevance)

    row = relprop.OPS["aten.relu.default"]
    whole = row.propagate
    before, process = state_of(module), process_state()
    with monkeypatch.context() as patched:
        broken = relprop.Operation(row.kind, breaks, row.reads, row.default, row.rules, row.nonnegative)
        patched.setitem(relprop.OPS, "aten.relu.default", broken)
        with pytest.raises(RuntimeError, match="on purpose"):
            relprop.explain(module, x)
        assert_same(before, state_of(module))
        assert_same(process, process_state())
    assert torch.equal(relprop.explain(module, x).relevance, expected)


# --- 12: training mode


def test_training_mode_is_refused() -> None:
    module, x = ZOO["residual"](0)
    module = copy.deepcopy(module).train()
    before = state_of(module)
    with pytest.raises(relprop.InvalidInput, match="training mode") as caught:
        relprop.explain(module, x)
    assert "model.eval()" in str(caught.value)
    assert_same(before, state_of(module))


@pytest.mark.parametrize("path", ["bn", "blocks.1.bn2", "blocks.0.relu", "head"])
def test_one_submodule_in_training_mode_is_refused_by_name(path: str) -> None:
    module, x = ZOO["residual"](0)
    module = copy.deepcopy(module)
    explainer = relprop.Explainer(module, example=x)
    module.get_submodule(path).train()
    for call in (lambda: relprop.explain(module, x), lambda: explainer(x)):
        with pytest.raises(relprop.InvalidInput, match="training mode") as caught:
            call()
        assert repr(path) in str(caught.value)
    module.eval()
    assert torch.equal(explainer(x).relevance, relprop.explain(ZOO["residual"](0)[0], x).relevance)


class ActiveDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.linear(x), 0.5, training=True)


def test_dropout_that_ignores_eval_mode_is_refused() -> None:
    module = ActiveDropout().eval()
    before = torch.get_rng_state()
    with pytest.raises(relprop.RelpropError):
        relprop.explain(module, torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())


# --- threads


def test_four_threads_explain_one_model_as_one_thread_does() -> None:
    module, x = ZOO["residual"](0)
    explainer = relprop.Explainer(module, "epsilon_plus")
    inputs = [x * (1 + i / 10) for i in range(12)]
    expected = [explainer(value, i % 4) for i, value in enumerate(inputs)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda i: explainer(inputs[i], i % 4), range(12)))
            for mine, other in zip(expected, found, strict=True):
                assert torch.equal(mine.relevance, other.relevance)
                assert torch.equal(mine.audit.gap, other.audit.gap)


@pytest.mark.parametrize("share", ["one model", "several models"])
def test_threads_that_capture_at_the_same_time_get_what_one_gets(share: str) -> None:
    names = ["residual"] * 4 if share == "one model" else ["residual", "mlp", "inverted_residual", "branches"]
    originals = [ZOO[name](0) for name in names]
    expected = [relprop.explain(module, x).relevance for module, x in originals]
    copies = [copy.deepcopy(module) for module, _ in originals]
    if share == "one model":
        copies = [copies[0]] * 4
    before = [state_of(module) for module in copies]
    barrier = threading.Barrier(4)

    def work(i: int) -> Tensor:
        barrier.wait()
        return relprop.explain(copies[i], originals[i][1]).relevance

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    for state, module in zip(before, copies, strict=True):
        assert_same(state, state_of(module))


def test_a_thread_may_use_one_model_while_another_explains_a_second() -> None:
    module, x = ZOO["residual"](0)
    other, y = ZOO["cnn"](0)
    expected = other(y).detach()
    stop, wrong = threading.Event(), []

    def predict() -> None:
        while not stop.is_set():
            if not torch.equal(other(y).detach(), expected):
                wrong.append(1)

    thread = threading.Thread(target=predict)
    thread.start()
    try:
        for _ in range(3):
            relprop.explain(copy.deepcopy(module), x)
            relprop.clear_cache()
    finally:
        stop.set()
        thread.join()
    assert not wrong


# --- weights are read live


def step(module: nn.Module, x: Tensor) -> None:
    optimiser = torch.optim.SGD(module.parameters(), 0.1)
    module(x).square().sum().backward()
    optimiser.step()


def load(module: nn.Module, x: Tensor) -> None:
    module.load_state_dict(
        {k: v * 1.3 if v.is_floating_point() else v for k, v in module.state_dict().items()}
    )


def load_assigned(module: nn.Module, x: Tensor) -> None:
    changed = {k: v * 1.3 if v.is_floating_point() else v for k, v in module.state_dict().items()}
    module.load_state_dict(changed, assign=True)


def write_data(module: nn.Module, x: Tensor) -> None:
    for parameter in module.parameters():
        parameter.data.mul_(1.4)


def replace_data(module: nn.Module, x: Tensor) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data * 1.4


def swap_two_values(module: nn.Module, x: Tensor) -> None:
    """A write through .data that leaves every sum of weights as it was."""
    for parameter in module.parameters():
        flat = parameter.data.view(-1)
        if flat.numel() > 1:
            flat[:2] = flat[:2].flip(0).clone()


def opposite_changes(module: nn.Module, x: Tensor) -> None:
    for parameter in module.parameters():
        flat = parameter.data.view(-1)
        if flat.numel() > 1:
            flat[0] += 0.5
            flat[1] -= 0.5


def replace_parameter(module: nn.Module, x: Tensor) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight = nn.Parameter(part.weight.detach() * 1.5)


def replace_module(module: nn.Module, x: Tensor) -> None:
    with seeded(7):
        for path, part in list(module.named_modules()):
            if isinstance(part, nn.Linear) and path:
                owner, _, name = path.rpartition(".")
                new = randomise(nn.Linear(part.in_features, part.out_features)).eval()
                setattr(module.get_submodule(owner), name, new)


def replace_activation(module: nn.Module, x: Tensor) -> None:
    for path, part in list(module.named_modules()):
        if isinstance(part, (nn.ReLU, nn.SiLU)):
            owner, _, name = path.rpartition(".")
            setattr(module.get_submodule(owner), name, nn.Tanh().eval())


def change_statistics(module: nn.Module, x: Tensor) -> None:
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.add_(0.3)
            part.running_var.mul_(1.5)


def train_a_step(module: nn.Module, x: Tensor) -> None:
    module.train()
    step(module, x)
    module.eval()


CHANGES = [
    step, load, load_assigned, write_data, replace_data, swap_two_values, opposite_changes, replace_parameter,
    replace_module, replace_activation, change_statistics, train_a_step,
]  # fmt: skip


@pytest.mark.parametrize(
    "name, rule",
    [
        ("mlp", "epsilon_plus_flat"),
        ("residual", "alphabeta"),
        ("inverted_residual", "auto"),
        ("normalised", "auto"),
    ],
)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_next_explanation_is_of_the_changed_model(
    name: str, rule: str, change: Callable[..., None]
) -> None:
    module, x = ZOO[name](0)
    module = copy.deepcopy(module)
    explainer = relprop.Explainer(module, rules.AlphaBeta() if rule == "alphabeta" else rule)
    first = explainer(x, 1)
    change(module, x)
    found = explainer(x, 1)
    expected = relprop.explain(fresh(module), x, 1, explainer.composite)
    assert torch.equal(found.relevance, expected.relevance) and torch.equal(found.output, expected.output)
    assert torch.allclose(found.output, module(x))
    if not torch.equal(first.output, found.output):
        assert not torch.equal(first.relevance, found.relevance)


def fresh(module: nn.Module) -> nn.Module:
    """A copy that relprop has never seen, without gradients."""
    module = copy.deepcopy(module)
    module.zero_grad()
    return module


def test_a_write_that_keeps_the_sum_of_the_weights_is_noticed() -> None:
    """Through `.data`, which moves no version counter, on weights whose sums are exact."""
    module, x = ZOO["mlp"](0)
    module = copy.deepcopy(module)
    for parameter in module.parameters():
        parameter.data = (parameter.data * 8).round() / 8
    explainer = relprop.Explainer(module, rules.AlphaBeta())
    explainer(x, 1)
    for parameter in module.parameters():
        parameter.data.copy_(parameter.data.flatten().flip(0).reshape(parameter.shape))
    found = explainer(x, 1)
    expected = relprop.explain(fresh(module), x, 1, rules.AlphaBeta())
    assert torch.equal(found.relevance, expected.relevance)


def test_at_refuses_a_model_that_has_changed() -> None:
    module, x = ZOO["cnn"](0)
    module = copy.deepcopy(module)
    found = relprop.explain(module, x)
    inner = found.at("0")
    assert torch.equal(found.at("0"), inner)
    write_data(module, x)
    with pytest.raises(relprop.InvalidInput, match="has changed") as caught:
        found.at("0")
    assert "explain again" in str(caught.value)


def test_what_is_derived_from_weights_is_kept_while_they_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = ZOO["mlp"](0)
    explainer = relprop.Explainer(copy.deepcopy(module), rules.AlphaBeta())
    explainer(x)
    clamped = []
    whole = torch.Tensor.clamp

    def counting(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if tensor.shape in [parameter.shape for parameter in module.parameters() if parameter.dim() == 2]:
            clamped.append(tensor.shape)
        return whole(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "clamp", counting)
    explainer(x)
    assert not clamped, "W⁺ and W⁻ were computed again"


def test_the_cache_lets_models_go() -> None:
    import gc
    import weakref

    module, x = ZOO["mlp"](0)
    module = copy.deepcopy(module)
    module.own, module.listed = module.forward, [module.forward]  # ways back to it
    relprop.explain(module, x)
    relprop.explain(module, x)
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


# --- forward passes that write to their own weights


class Constrained(nn.Module):
    """Keeps the norms of its weights small, in its forward pass."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.head = how, nn.Linear(5, 3)
        self.table = nn.Embedding(7, 5, max_norm=0.5)
        self.bag = nn.EmbeddingBag(7, 5, max_norm=0.5, mode="sum")

    def forward(self, x: Tensor) -> Tensor:
        weight = self.head.weight
        if self.how == "new data":
            weight.data = torch.renorm(weight.data, 2, 0, 0.5)
        elif self.how == "data in place":
            weight.data.clamp_(-0.2, 0.2)
        elif self.how == "data multiplied":
            weight.data *= 0.5 / weight.data.abs().max()
        elif self.how == "in place":
            with torch.no_grad():
                weight.clamp_(-0.2, 0.2)
        elif self.how == "an output":
            with torch.no_grad():
                torch.clamp(weight, -0.2, 0.2, out=weight)
        elif self.how == "a table":
            x = self.table(x).sum(1)
        else:
            x = self.bag(x)
        return self.head(x)


@pytest.mark.parametrize(
    "how", ["new data", "data in place", "data multiplied", "in place", "an output", "a table", "a bag"]
)
def test_weights_that_a_forward_pass_constrains_are_explained_constrained_and_stay_as_they_are(
    how: str,
) -> None:
    with seeded(3):
        module = Constrained(how).eval()
        x = torch.tensor([[1, 2, 3], [4, 5, 6]]) if how in ("a table", "a bag") else torch.randn(2, 5)
    for _ in range(2):
        before = state_of(module)
        found = relprop.explain(module, x, 1, "epsilon")
        assert_same(before, state_of(module))
        assert torch.allclose(found.output, copy.deepcopy(module)(x).detach())
        with torch.no_grad():
            for weight in module.parameters():
                weight.mul_(4)


class Writing(nn.Module):
    """Writes to a weight and a buffer, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.calls = nn.Linear(16, 3), 0
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        with torch.no_grad():
            self.head.weight.clamp_(-0.1, 0.1)
            self.get_buffer("seen").add_(1)
        return self.head(x.flatten(1))


@pytest.mark.parametrize("how", ["perturb", "compare", "confirm"])
def test_an_evaluation_leaves_weights_that_a_forward_pass_writes_to(how: str) -> None:
    with seeded(3):
        module, x = Writing().eval(), torch.randn(6, 1, 4, 4)
    before = state_of(module)
    if how == "perturb":
        relprop.evaluate.perturb(module, x, torch.rand(6, 1, 4, 4), steps=2)
    elif how == "compare":
        relprop.evaluate.compare(module, x, ["gradient"], ["aopc_morf"])
    else:
        relprop.analyse.confirm(module, x, x, relprop.analyse.Place(0.5, 0, 1, 0.5), 1)
    assert_same(before, state_of(module))


def test_a_compiled_model_that_writes_to_its_weights_is_refused_when_evaluated() -> None:
    compiled = torch.compile(Writing().eval(), backend="eager")
    with pytest.raises(relprop.InvalidInput, match="writes to its weights"):
        relprop.evaluate.perturb(compiled, torch.randn(6, 1, 4, 4), torch.rand(6, 1, 4, 4), steps=2)


# --- tensors that a model keeps outside of its modules


GLOBAL: Tensor | None = None


@functools.lru_cache
def cached_places(size: int) -> Tensor:
    return torch.arange(1.0, size + 1, dtype=torch.float64)


class Keeper:
    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}


class Keeping(nn.Module):
    """Makes a tensor once and keeps it somewhere."""

    kept: Tensor | None = None

    def __init__(self, where: str) -> None:
        super().__init__()
        self.head, self.where, self.keeper = nn.Linear(5, 3), where, Keeper()

    def places(self, x: Tensor) -> Tensor:
        global GLOBAL
        size = x.shape[1]
        made = functools.partial(torch.arange, 1.0, size + 1, dtype=x.dtype)
        if self.where == "a cache":
            return cached_places(size)
        if self.where == "an object":
            if size not in self.keeper.kept:
                self.keeper.kept[size] = made()
            return self.keeper.kept[size]
        if self.where == "the class":
            if Keeping.kept is None:
                Keeping.kept = made()
            return Keeping.kept
        if GLOBAL is None:
            GLOBAL = made()
        return GLOBAL

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x * self.places(x))
        return y * (1 if float(x.detach()[0, 0]) else 2) if self.where == "a global, recorded" else y


@pytest.mark.parametrize("where", ["a cache", "an object", "the class", "a global", "a global, recorded"])
def test_what_a_model_keeps_outside_of_its_modules_has_values(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Keeping, "kept", None)
    monkeypatch.setitem(globals(), "GLOBAL", None)
    cached_places.cache_clear()
    with seeded(1):
        module, x = randomise(Keeping(where)).eval(), torch.randn(2, 5)
    for _ in range(2):
        found = relprop.explain(module, x, 1, "epsilon")
        output = module(x)
        assert type(output) is Tensor and torch.allclose(found.output, output.detach())
