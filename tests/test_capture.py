"""Capture: what a model computes is what its graph computes, whatever it writes to, and however it is
called."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relprop
from relprop.engine import exported
from relprop.engine.capture import capture
from relprop.engine.exported import decomposed, read
from relprop.engine.functional import functionalise
from relprop.engine.graph import Graph, Ref, map_output, replace_refs
from relprop.engine.modules import from_call
from relprop.errors import CaptureError, InvalidInput
from relprop.explain import captured, leaves_of

TOLERANCE = 1e-10


class Net(nn.Module):
    """A module with the given parts and forward function."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def net(function: Callable[..., Any], **parts: Any) -> Net:
    """A `Net` of two linear layers, in eval mode and float64."""
    layers = {"a": nn.Linear(6, 8), "c": nn.Linear(8, 3), "relu": nn.ReLU(), "inplace": nn.ReLU(inplace=True)}
    return Net(function, **(layers | parts)).double().eval()


def mlp(module: Any, x: Tensor) -> Tensor:
    result: Tensor = module.c(module.relu(module.a(x)))
    return result


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach(), b.detach()
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-12)
    return a.shape == b.shape and a.dtype == b.dtype and float((a - b).abs().max()) <= TOLERANCE * scale


def run(graph: Graph, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
    """The output of a graph, computed node by node."""
    values: dict[str, Any] = leaves_of(model, graph, args, kwargs or {})

    def value(ref: Ref) -> Any:
        return values[ref.name] if ref.index is None else values[ref.name][ref.index]

    with torch.no_grad():
        for node in graph.nodes:
            if node.function is not None:
                operands = replace_refs(node.args, value), replace_refs(node.kwargs, value)
                values[node.name] = node.function(*operands[0], **operands[1])
    return map_output(graph.output, value)


def mutates(graph: Graph) -> bool:
    schemas = [getattr(node.function, "_schema", None) for node in graph.nodes]
    return any(schema is not None and schema.is_mutable for schema in schemas)


# writes in place: each function is one trap


def relu_of_a_view(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    m.inplace(h.view(-1, 4, 2))
    return m.c(h)


def slice_plus_one(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    y = h[:, :2]
    y += 1
    return m.c(h)


def slice_used_after_the_whole(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    y = h[:, :2]
    h += 1
    return m.c(h) * y.sum(1, keepdim=True)


def input_plus_one(m: Any, x: Tensor) -> Tensor:
    x.add_(1)
    return m.c(m.a(x))


def input_through_a_view(m: Any, x: Tensor) -> Tensor:
    x[:, 0].mul_(3)
    return m.c(m.a(x))


def counter(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    return m.c(m.a(x)) * m.count


def chain(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).relu_().add_(1).mul_(2)
    h.sub_(0.5).tanh_()
    return m.c(h)


def returned(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    h = m.a(x)
    y = m.c(h)
    h.relu_()
    return y, h


def written_before_and_after(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    before = m.c(h)
    h.add_(1)
    return before + m.c(h)


def identity_used_later(m: Any, x: Tensor) -> Tensor:
    identity = m.a(x)
    out = identity
    out += identity
    return m.c(out * identity)


def residual(m: Any, x: Tensor) -> Tensor:
    identity = m.a(x)
    out = F.relu(identity)
    out += identity
    return m.c(m.inplace(out)) + m.c(identity)


def dropout_then_write(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    y = F.dropout(h, 0.5, m.training)
    y += 1
    return m.c(h) + m.c(y)


def dropout_in_place(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    F.dropout(h, 0.5, m.training, inplace=True)
    return m.c(m.inplace(h))


def contiguous_then_write(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    y = h.contiguous()
    y.relu_()
    return m.c(h)


def reshape_of_transposed_is_a_copy(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    y = h.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8)
    y.relu_()
    return m.c(h) + m.c(y)


def same_type_then_write(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    y = h.to(torch.float64)
    y += 1
    return m.c(h)


def flatten_then_write(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    h.flatten(1).add_(1)
    return m.c(h)


def chunks(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    left, right = h.chunk(2, 1)
    left += right
    right.relu_()
    return m.c(h)


def expanded(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    wide = h.unsqueeze(1).expand(-1, 2, -1)
    h.relu_()
    return m.c(wide.sum(1))


def setitem(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    h[:, 0] = 0
    h[:, 1] = h[:, 2] * 2
    h[..., 3:5] = x[:, :2]
    return m.c(h)


def masked(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    h.masked_fill_(h < 0, 0.25)
    h[h > 1] = 1.0
    return m.c(h)


def narrower_type(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).half()
    h += m.a(x)
    return m.c(h.double())


def unsqueezed_in_place(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    h.unsqueeze_(1).relu_()
    return m.c(h.squeeze_(1))


def zeros_filled(m: Any, x: Tensor) -> Tensor:
    out = x.new_zeros(x.shape[0], 8)
    out += m.a(x)
    out[:, :2].zero_()
    return m.c(out)


def parameter_written(m: Any, x: Tensor) -> Tensor:
    m.memory.mul_(0.5).add_(m.a(x).detach().mean())
    return m.c(m.a(x) + m.memory)


def without_gradient(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    with torch.no_grad():
        y = h * 2
        y.relu_()
        h.add_(1)
    return m.c(h + y)


def swapped(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    old = h.clone()
    h.copy_(old.flip(1))
    return m.c(h) - m.c(old)


def twice_the_same_view(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    u, v = h[:, :4], h[:, 2:6]
    u += 1
    v *= 2
    u.relu_()
    return m.c(h) + u.sum(1, keepdim=True) * v.sum(1, keepdim=True)


def dead_base(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).flatten(1)
    y = h.view(-1, 2, 4)
    m.inplace(y)
    return m.c(y.flatten(1))


TRAPS = [
    relu_of_a_view, slice_plus_one, slice_used_after_the_whole, input_plus_one, input_through_a_view,
    counter, chain, returned, written_before_and_after, identity_used_later, residual, dropout_then_write,
    dropout_in_place, contiguous_then_write, reshape_of_transposed_is_a_copy, same_type_then_write,
    flatten_then_write, chunks, expanded, setitem, masked, narrower_type, unsqueezed_in_place, zeros_filled,
    parameter_written, without_gradient, swapped, twice_the_same_view, dead_base,
]  # fmt: skip
RENAMED = {
    chain, residual, dropout_in_place, written_before_and_after, returned, input_plus_one, counter, dead_base,
}  # fmt: skip
"""Those for which renaming is enough."""


def trap(function: Callable[..., Any]) -> Net:
    model = net(function)
    model.register_buffer("count", torch.ones((), dtype=torch.float64))
    model.register_buffer("memory", torch.ones(8, dtype=torch.float64))
    return model


class Plain(nn.Module):
    """A signature with one name, which torch.export asks for where shapes are given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


def program_of(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim.AUTO},)
    return torch.export.export(Plain(model).eval(), (x,), dynamic_shapes=shapes, strict=False)


def eager(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What the model computes, by a copy of it and of its inputs."""
    with torch.no_grad():
        return copy.deepcopy(model)(*copy.deepcopy(args), **copy.deepcopy(kwargs))


def flat(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, tuple) else [output]


@pytest.mark.parametrize("function", TRAPS)
def test_a_graph_without_writes_computes_what_the_model_computes(function: Callable[..., Any]) -> None:
    model, x = trap(function), randn(2, 6)
    graph = capture(model, (x.clone(),), {})
    assert not mutates(graph)
    expected = flat(eager(model, x))
    given = x.clone()
    for _ in range(2):  # a graph that writes would differ the second time
        assert all(map(close, flat(run(graph, model, (given,))), expected))
        assert torch.equal(given, x) and float(model.count) == 1


@pytest.mark.parametrize("function", TRAPS)
def test_renaming_torchs_decomposition_and_the_recording_agree(function: Callable[..., Any]) -> None:
    model, x = trap(function), randn(2, 6)
    if function is chunks:
        pytest.skip("torch.export refuses to write to the parts of a split")
    program = program_of(model, x.clone())
    wrapped = Plain(model).eval()
    renamed, slow = functionalise(read(program)), functionalise(read(decomposed(program)))
    assert slow is not None and not mutates(slow)
    assert renamed is None or not mutates(renamed)
    assert (renamed is not None) >= (function in RENAMED)
    expected = flat(run(slow, wrapped, (x,)))
    if renamed is not None:
        assert all(map(close, flat(run(renamed, wrapped, (x,))), expected))
    if function is not reshape_of_transposed_is_a_copy:
        single = flat(run(from_call(model, (x[:1],), {}), model, (x[:1],)))
        assert all(map(close, single, flat(eager(model, x[:1]))))


@pytest.mark.parametrize("function", TRAPS)
def test_relevance_does_not_depend_on_the_way_of_capture(
    function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if function in (returned, parameter_written, narrower_type):
        pytest.skip("several outputs, mixes samples, or half precision")
    model, x = trap(function), randn(2, 6)
    given = x.clone()
    fast = relprop.explain(model, given, 1, "epsilon")
    relprop.clear_cache()
    monkeypatch.setattr(
        exported, "functionalise", lambda graph: None if mutates(graph) else functionalise(graph)
    )
    slow = relprop.explain(model, given, 1, "epsilon")
    relprop.clear_cache()
    assert close(fast.relevance, slow.relevance)
    assert torch.equal(given, x) and float(model.count) == 1 and int(model.count._version) == 0


# inputs


def two(m: Any, x: Tensor, y: Tensor | None = None, scale: float = 1.0, flip: bool = False) -> Tensor:
    h = m.a(x) * scale
    h = h if y is None else h + m.b(y)
    return m.c(h.flip(1) if flip else h)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(
        self, x: Tensor, y: Tensor | None = None, scale: float = 1.0, flip: bool = False, mode: str = ""
    ) -> Tensor:
        h = two(self, x, y, scale, flip)
        return h * 2 if mode == "double" else h


@pytest.fixture
def double() -> Two:
    return Two().double().eval()


def test_keyword_arguments_in_any_order(double: Two) -> None:
    x, y = randn(3, 6), randn(3, 4)
    expected = relprop.explain(double, (x, y), 1, "epsilon").relevance
    for inputs in ({"x": x, "y": y}, {"y": y, "x": x}):
        found = relprop.explain(double, inputs, 1, "epsilon").relevance
        assert list(found) == list(inputs)
        assert close(found["x"], expected[0]) and close(found["y"], expected[1])


def test_other_numbers_and_switches_are_captured_anew(double: Two) -> None:
    x, y = randn(3, 6), randn(3, 4)
    for rest in ((2.0, False), (2.0, True), (1, False), (True, False), (3.0, 0), (2.0, 1)):
        found = relprop.explain(double, (x, y, *rest), 1, "epsilon")
        assert close(found.output, eager(double, x, y, *rest))
    for mode in ("double", "single"):
        found = relprop.explain(double, {"x": x, "mode": mode}, 1, "epsilon")
        assert close(found.output, eager(double, x, mode=mode))


def test_an_input_may_be_none(double: Two) -> None:
    x = randn(3, 6)
    found = relprop.explain(double, (x, None), 1, "epsilon")
    assert close(found.relevance[0], relprop.explain(double, x, 1, "epsilon").relevance)
    assert found.relevance[1] is None


def test_nested_inputs_keep_their_structure() -> None:
    def function(m: Any, batch: dict[str, Any], masks: list[Tensor]) -> Tensor:
        result: Tensor = m.c(m.a(batch["x"]) * masks[0] + m.a(batch["more"][0]) * masks[1])
        return result

    model = net(function)
    batch = {"x": randn(2, 6), "more": (randn(2, 6),)}
    masks = [torch.ones(2, 8).double(), torch.ones(8).double()]
    found = relprop.explain(model, (batch, masks), 1, "epsilon")
    assert found.relevance[0]["x"].shape == (2, 6) and found.relevance[0]["more"][0].shape == (2, 6)
    assert close(found.output, eager(model, batch, masks))


def shifted(m: Any, x: Tensor, shift: Tensor) -> Tensor:
    result: Tensor = m.c(torch.relu(m.a(x) @ shift))
    return result


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("keyword", [False, True])
def test_an_input_without_a_batch_is_the_same_for_all_samples(batch: int, keyword: bool) -> None:
    model, x, shift = net(shifted), randn(batch, 6), randn(8, 8)
    inputs: Any = {"x": x, "shift": shift} if keyword else (x, shift)
    found = relprop.explain(model, inputs, 1, "epsilon")
    relevance = found.relevance["x"] if keyword else found.relevance[0]
    for i in range(batch):
        single = relprop.explain(model, (x[i : i + 1], shift), 1, "epsilon").relevance[0]
        assert close(relevance[i : i + 1], single)
    rest = found.relevance["shift"] if keyword else found.relevance[1]
    assert rest.shape == (8, 8) and not rest.any()


def test_a_first_call_with_one_sample_serves_larger_batches() -> None:
    model, x = net(mlp), randn(4, 6)
    explainer = relprop.Explainer(model, "epsilon", example=x[:1])
    assert close(
        explainer(x, 1).relevance, torch.cat([explainer(x[i : i + 1], 1).relevance for i in range(4)])
    )


def counting() -> Net:
    calls: list[int] = []

    def forward(m: Any, x: Tensor) -> Tensor:
        calls.append(1)
        return m.c(m.relu(m.a(x) * len(calls)))

    return net(forward)


def otherwise_while_exported(m: Any, x: Tensor) -> Tensor:
    return m.c(m.a(x) if torch.compiler.is_exporting() else m.relu(m.a(x)))


@pytest.mark.parametrize("used", ["the plan", "an explanation", "another explainer"])
def test_a_capture_made_ahead_is_checked_before_anything_is_said_by_it(used: str) -> None:
    model, x = counting(), randn(2, 6)
    ready = relprop.Explainer(model, "epsilon", example=x)  # no run of the model yet
    ways: dict[str, Callable[[], Any]] = {
        "the plan": lambda: ready.plan,
        "an explanation": lambda: ready(x, 1),
        "another explainer": lambda: relprop.explain(model, x, 1, "epsilon_plus"),
    }
    for _ in range(2):
        with pytest.raises(relprop.CaptureError, match="state outside"):
            ways[used]()


@pytest.mark.parametrize("used", ["plan", "explanation"])
def test_a_capture_made_ahead_that_turns_out_wrong_is_made_anew(used: str) -> None:
    model, x = net(otherwise_while_exported), randn(2, 6)
    ready = relprop.Explainer(model, "epsilon", example=x)
    if used == "explanation":
        assert close(ready(x, 1).output, eager(model, x))
    assert any("relu" in row.operation for row in ready.plan)
    assert close(ready(x, 1).relevance, relprop.explain(model, x, 1, "epsilon").relevance)


def test_a_model_written_for_one_sample_is_explained_sample_by_sample() -> None:
    model, x = net(lambda m, x: m.c(m.a(x).view(1, 8).relu())), randn(3, 6)
    found = relprop.explain(model, x, 1, "epsilon")
    expected = [relprop.explain(model, x[i : i + 1], 1, "epsilon").relevance for i in range(3)]
    assert close(found.relevance, torch.cat(expected))


def test_a_graph_network_is_explained_in_a_module_that_takes_its_graph_out_of_a_batch_of_one() -> None:
    def over_edges(m: Any, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        hidden = m.relu(m.a(x))
        summed = torch.zeros_like(hidden).index_add(0, target, hidden[source])
        result: Tensor = m.c(m.relu(summed - hidden)).mean(0, keepdim=True)
        return result

    graph = net(over_edges)
    module = net(lambda m, x, edges: m.graph(x[0], edges), graph=graph)
    x, edges = randn(5, 6), torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])
    with pytest.raises(CaptureError, match=r"model\(x\[0\]\), and give x\[None\]"):
        relprop.explain(graph, (x, edges), 1)
    found = relprop.explain(module, (x[None], edges), 1, relprop.rules.Epsilon(1e-12))
    leaf = x.clone().requires_grad_()
    graph(leaf, edges)[0, 1].backward()
    assert torch.allclose(found.relevance[0][0], leaf * leaf.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("keyword", [True, False])
def test_an_input_that_samples_share_keeps_its_shape_when_they_are_walked_one_by_one(keyword: bool) -> None:
    def one_sample(m: Any, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return m.c((m.a(x).view(1, 8) + shift.mean(0)).relu())

    model, x, shift = net(one_sample), randn(3, 6), randn(8, 8)
    inputs: Any = {"x": x, "shift": shift} if keyword else (x, shift)
    found = relprop.explain(model, inputs, 1, "epsilon").relevance
    assert found["x" if keyword else 0].shape == (3, 6)
    assert found["shift" if keyword else 1].shape == (8, 8)


def test_inputs_with_a_size_of_two_that_is_no_batch() -> None:
    model = net(lambda m, x, pair: m.c(m.a(x) * pair.sum(0)))
    x, pair = randn(3, 6), randn(2, 8)
    found = relprop.explain(model, (x, pair), 1, "epsilon")
    assert close(found.output, eager(model, x, pair))
    assert found.relevance[1].shape == (2, 8)


# exported programs and files


def exported_program(model: nn.Module, batch: int, dynamic: bool) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    return torch.export.export(Plain(model).eval(), (randn(batch, 6),), dynamic_shapes=shapes)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[torch.export.ExportedProgram], Path]:
    def save(program: torch.export.ExportedProgram) -> Path:
        torch.export.save(program, tmp_path / "model.pt2")
        return tmp_path / "model.pt2"

    return save


@pytest.mark.parametrize("batch", [2, 5])
def test_a_program_with_a_dynamic_batch(saved: Callable[..., Path], batch: int) -> None:
    model, x = net(residual), randn(3, 6)
    program = exported_program(model, batch, dynamic=True)
    expected = relprop.explain(model, x, 1, "epsilon")
    path = saved(program)
    for source in (program, path, str(path)):
        found = relprop.explain(source, x, 1, "epsilon")
        assert close(found.relevance, expected.relevance)
        assert close(found.at("inner.a"), expected.at("a"))


def test_a_program_for_one_sample_explains_a_batch_sample_by_sample(saved: Callable[..., Path]) -> None:
    model, x = net(residual), randn(3, 6)
    found = relprop.explain(saved(exported_program(model, 1, dynamic=False)), x, 1, "epsilon")
    assert close(found.relevance, relprop.explain(model, x, 1, "epsilon").relevance)


def test_a_program_for_a_fixed_batch_asks_for_a_dynamic_one() -> None:
    program = exported_program(net(mlp), 4, dynamic=False)
    with pytest.raises(relprop.CaptureError, match=r"fixed batch of 4.*\n.*dynamic batch"):
        relprop.explain(program, randn(3, 6), 1)
    with pytest.raises(relprop.CaptureError, match=r"fixed batch of 4.*\n.*dynamic batch"):
        relprop.explain(program, randn(4, 6), 1)


def test_a_program_with_another_dynamic_size() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.c(torch.relu(self.a(x)).mean(1))
            return result

    model = Steps().double().eval()
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(model, (randn(4, 7, 6),), dynamic_shapes=({0: free, 1: free},))
    for steps in (5, 7):
        x = randn(3, steps, 6)
        assert close(relprop.explain(program, x, 1).relevance, relprop.explain(model, x, 1).relevance)


def test_a_program_takes_its_arguments_as_it_was_exported(double: Two) -> None:
    x, y = randn(2, 6), randn(2, 4)
    free = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(double, (), {"x": x, "y": y}, dynamic_shapes={"x": free, "y": free})
    x, y = randn(3, 6), randn(3, 4)
    expected = relprop.explain(double, (x, y), 1, "epsilon").relevance
    found = relprop.explain(program, {"y": y, "x": x}, 1, "epsilon").relevance
    assert close(found["x"], expected[0]) and close(found["y"], expected[1])
    with pytest.raises(relprop.InvalidInput, match="x=, y="):
        relprop.explain(program, (x, y), 1)
    with pytest.raises(relprop.InvalidInput, match=r"given is \(3, 5\)"):
        relprop.explain(program, {"x": x, "y": randn(3, 5)}, 1)


@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage", "empty"])
def test_a_file_that_cannot_be_read_is_an_invalid_input(saved: Callable[..., Path], damage: str) -> None:
    path = saved(exported_program(net(mlp), 2, dynamic=True))
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"truncated": content[: len(content) // 2], "garbage": b"no archive", "empty": b""}[damage]
        )
    with pytest.raises(relprop.InvalidInput, match=r"model\.pt2"):
        relprop.explain(path, randn(2, 6), 1)


def test_a_program_with_numbers_among_its_arguments(double: Two) -> None:
    x, free = randn(2, 6), {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(double, (x, None, 2.0), dynamic_shapes=(free, None, None))
    found = relprop.explain(program, (randn(3, 6), None, 2.0), 1, "epsilon")
    assert found.relevance[0].shape == (3, 6) and found.relevance[1:] == (None, None)


# models of other kinds


def test_what_cannot_be_captured_is_refused_with_what_to_do() -> None:
    x = torch.randn(2, 6)
    with pytest.raises(relprop.InvalidInput, match=r"'0\.weight'.*meta.*\n.*load_state_dict"):
        relprop.explain(nn.Sequential(nn.Linear(6, 3, device="meta")).eval(), x, 1)
    with pytest.raises(relprop.InvalidInput, match="initialised"):
        relprop.explain(nn.Sequential(nn.LazyLinear(3)).eval(), x, 1)
    with pytest.raises(relprop.InvalidInput, match="a dict of 1 entries is no model"):
        relprop.explain({"a": 1}, x, 1)


def test_wrappers_are_looked_through() -> None:
    model, x = net(mlp), randn(2, 6)
    expected = relprop.explain(model, x, 1, "epsilon").relevance
    assert close(relprop.explain(nn.DataParallel(model), x, 1, "epsilon").relevance, expected)
    assert close(relprop.explain(torch.compile(model), x, 1, "epsilon").relevance, expected)
    assert close(
        relprop.explain(
            torch.fx.symbolic_trace(nn.Sequential(model.a, model.relu, model.c)).eval(), x, 1, "epsilon"
        ).relevance,
        expected,
    )


def test_parametrised_weights() -> None:
    parts = {
        "a": nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)),
        "c": nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3)),
    }
    model, x = net(mlp, **parts), randn(2, 6)
    for _ in range(2):
        plain = net(mlp)
        plain.load_state_dict({f"{k}.{n}": getattr(parts[k], n) for k in "ac" for n in ("weight", "bias")})
        found = relprop.explain(model, x, 1, "epsilon").relevance
        assert close(found, relprop.explain(plain, x, 1, "epsilon").relevance)
        with torch.no_grad():
            model.a.parametrizations.weight.original0.mul_(2)


def test_gradients_switched_off_within_the_model() -> None:
    def function(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = m.a(x)
            with torch.enable_grad():
                h = m.relu(h)
        result: Tensor = m.c(h)
        return result

    model, x = net(function), randn(2, 6)
    plain = net(mlp, a=model.a, c=model.c)
    for ambient in (torch.no_grad(), torch.enable_grad(), torch.inference_mode()):
        relprop.clear_cache()
        with ambient:
            found = relprop.explain(model, x, 1, "epsilon").relevance
        assert close(found, relprop.explain(plain, x, 1, "epsilon").relevance)


# weights are read live


def changed_by_a_step(model: Net) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(randn(4, 6)).pow(2).sum().backward()
    optimiser.step()


def changed_by_loading(model: Net) -> None:
    model.load_state_dict({name: 2 * tensor + 0.1 for name, tensor in model.state_dict().items()})


def changed_by_data(model: Net) -> None:
    model.a.weight.data.mul_(-1)
    model.c.weight.data = model.c.weight.data * 3


def changed_by_assignment(model: Net) -> None:
    model.c.weight = nn.Parameter(-2 * model.c.weight.detach())


def changed_by_a_new_module(model: Net) -> None:
    model.c = nn.Linear(8, 3).double()


def changed_by_a_new_kind_of_module(model: Net) -> None:
    model.relu = nn.LeakyReLU(0.3)


def changed_by_a_setting(model: Net) -> None:
    model.scale = 3.0


def changed_by_a_list(model: Net) -> None:
    model.scales[0] = 5.0


def changed_by_a_configuration(model: Net) -> None:
    model.configuration.factor = 7.0


def changed_by_a_tensor_in_place(model: Net) -> None:
    model.shift.add_(1)


def changed_by_a_new_tensor(model: Net) -> None:
    model.shift = model.shift * 3


def changed_by_a_tensor_in_a_list(model: Net) -> None:
    model.shifts[0] = model.shifts[0] * 3


def changed_by_a_tensor_in_a_list_in_place(model: Net) -> None:
    model.shifts[0].mul_(3)


def changed_by_a_buffer(model: Net) -> None:
    model.memory.fill_(4)


def changed_by_a_hook(model: Net) -> None:
    model.a.register_forward_hook(lambda module, args, output: output * 2)


def changed_by_a_method(model: Net) -> None:
    model.relu.forward = torch.tanh


def changed_by_untying(model: Net) -> None:
    model.twin.weight = nn.Parameter(model.twin.weight.detach() * 2)


def changed_by_a_number(model: Net) -> None:
    model.scale = 3.0


def changed_by_a_tuple(model: Net) -> None:
    model.pair = (1.0, 3.0)


def changed_by_filling_a_list(model: Net) -> None:
    model.more.append(2.0)


def changed_by_another_class(model: Net) -> None:
    model.relu.__class__ = nn.Tanh


class Configuration:
    def __init__(self) -> None:
        self.factor = 1.0


def many_settings(m: Any, x: Tensor) -> Tensor:
    h = m.relu(m.a(x) * m.scale + m.shift + m.shifts[0] + m.memory)
    h = m.twin(m.tied(h)) * m.scales[0] * m.configuration.factor * m.pair[1] + sum(m.more)
    result: Tensor = m.c(h)
    return result


def with_settings() -> Net:
    tied, twin = nn.Linear(8, 8), nn.Linear(8, 8)
    twin.weight = tied.weight
    model = net(many_settings, tied=tied, twin=twin)
    model.scale, model.scales, model.configuration = 1.0, [2.0], Configuration()
    model.pair, model.more = (1.0, 1.0), []
    model.shift, model.shifts = randn(8), [randn(8)]
    model.register_buffer("memory", torch.ones(8, dtype=torch.float64), persistent=False)
    return model


CHANGES = [value for name, value in sorted(globals().items()) if name.startswith("changed_by")]


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_explanation_is_of_the_model_as_it_is_now(change: Callable[[Net], None]) -> None:
    model, x = with_settings(), randn(3, 6)
    explainer = relprop.Explainer(model, "epsilon_plus")
    before = explainer(x, 1).relevance
    change(model)
    model.zero_grad()
    model.eval()
    found = explainer(x, 1)
    expected = relprop.explain(copy.deepcopy(model), x, 1, "epsilon_plus")
    assert close(found.output, eager(model, x))
    assert close(found.relevance, expected.relevance)
    assert not close(found.relevance, before)


def test_a_number_is_told_from_one_that_has_its_place_in_memory() -> None:
    model, x = with_settings(), randn(3, 6)
    explainer = relprop.Explainer(model, "epsilon_plus")
    for _ in range(20):  # of two numbers that replace each other, a third gets the first one's memory
        explainer(x, 1)
        for _ in range(2):
            model.scale = model.scale * 1.1
        assert close(explainer(x, 1).output, eager(model, x))


def test_a_changed_stride_is_noticed() -> None:
    model = net(lambda m, x: m.c(m.conv(x).relu().mean((2, 3))), conv=nn.Conv2d(2, 8, 3, padding=1))
    x = randn(2, 2, 8, 8)
    before = relprop.explain(model, x, 1, "epsilon").relevance
    model.conv.stride = (2, 2)
    found = relprop.explain(model, x, 1, "epsilon")
    assert close(found.output, eager(model, x)) and not close(found.relevance, before)


def test_names_of_repeated_calls() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(6, 6), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.relu(self.relu(self.fc(x)) + 1)
            return result

    model = net(lambda m, x: m.c(m.a(m.outer(m.outer(x)))), outer=nn.Sequential(Block()))
    x = randn(2, 6)
    found = relprop.explain(model, x, 1, "epsilon")
    assert found.at("outer@1").shape == (2, 6)
    assert close(found.at("outer.0.relu@3"), found.at("outer@1"))
    assert close(found.at("outer.0.relu@1"), found.at("outer.0")[0])
    assert len(found.at("outer.0.relu")) == 4 and len(found.at("outer.0.fc")) == 2
    with pytest.raises(relprop.InvalidInput, match="no such module"):
        found.at("outer@2")


def test_arrays_are_inputs_as_tensors_are() -> None:
    model = nn.Linear(3, 2).double().eval()
    x = np.random.default_rng(0).normal(size=(4, 3))
    x.flags.writeable = False
    found = relprop.explain(model, x, 1).relevance
    assert torch.equal(found, relprop.explain(model, torch.tensor(x), 1).relevance)
    assert torch.equal(found, relprop.explain(model, {"input": x}, 1).relevance["input"])
    for other in (x.astype(">f8"), x[::-1][::-1].copy()[::-1][::-1], np.asfortranarray(x)):
        assert torch.equal(found, relprop.explain(model, other, 1).relevance)
    assert torch.equal(found.flip(0), relprop.explain(model, x[::-1], 1).relevance)


class ByCount(nn.Module):
    """Takes another way for some numbers of samples, the outputs of which may be small."""

    def __init__(self, other: Callable[[int], bool], scale: float = 1.0) -> None:
        super().__init__()
        self.a, self.b, self.other, self.scale = nn.Linear(4, 3), nn.Linear(4, 3), other, scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4) to (B, 3)."""
        return self.scale * (self.b(x) if self.other(x.shape[0]) else self.a(x))


@pytest.mark.parametrize(
    ("other", "wrong", "right", "advice"),
    [
        (lambda count: count > 4, 8, 3, "explain 2 to 4 at a time"),
        (lambda count: count == 5, 5, 4, "explain 2, 3, 4, 6, 7"),
        (lambda count: count % 2 == 1, 3, 4, "explain 2, 4, 6, 8"),
        (lambda count: count == 1, 1, 3, "explain 2 to 64 at a time"),
    ],
)
def test_a_model_that_goes_by_the_number_of_samples_is_refused_where_that_matters(
    other: Callable[[int], bool], wrong: int, right: int, advice: str
) -> None:
    model = ByCount(other).double().eval()
    x = torch.randn(8, 4, dtype=torch.float64)
    for _ in range(2):
        with pytest.raises(CaptureError, match=f"something else for {wrong} samples(.|\n)*{advice}"):
            relprop.explain(model, x[:wrong], 1, "epsilon")
        found = relprop.explain(model, x[:right], 1, "epsilon")
        assert torch.equal(found.score, model(x[:right])[:, 1].detach())


def test_all_parts_of_a_batch_are_asked_for_before_the_first_is_explained() -> None:
    torch.manual_seed(0)
    model, x = ByCount(lambda count: count > 4).double().eval(), torch.randn(8, 4, dtype=torch.float64)
    parts = relprop.Explainer(model, "epsilon", batch_size=4)(x, 1)
    assert torch.equal(parts.score[:4], model(x[:4])[:, 1].detach())
    model = ByCount(lambda count: count == 1, scale=1e-4).eval()
    with pytest.raises(CaptureError, match="for 1 samples at a time"):  # the last of nine
        relprop.Explainer(model, "epsilon", batch_size=4)(torch.cat([x, x])[:9].float(), 1)


class ByBoth(nn.Module):
    """Takes another way for some numbers of texts and tokens."""

    def __init__(self, other: Callable[[int, int], bool]) -> None:
        super().__init__()
        self.other = other
        self.table, self.a, self.b = nn.Embedding(9, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) to (B, 3)."""
        y = self.table(ids).mean(1)
        return self.b(y) if self.other(*ids.shape) else self.a(y)


def test_a_single_sample_is_asked_for_at_every_length() -> None:
    model = ByBoth(lambda count, length: count == 1 and length > 6).double().eval()
    explainer = relprop.Explainer(model, "epsilon")
    explainer(torch.arange(5)[None], 1)
    with pytest.raises(CaptureError, match="for 1 samples at a time"):
        explainer(torch.arange(9)[None], 1)


@pytest.mark.parametrize(
    ("other", "advice"),
    [
        (lambda count, length: count > 4, "explain 2 to 4 at a time"),
        (lambda count, length: count * length > 20, "explain 2 to 3 at a time"),
    ],
)
def test_conditions_on_the_number_of_samples_hold_at_every_length(
    other: Callable[[int, int], bool], advice: str
) -> None:
    model = ByBoth(other).double().eval()
    explainer = relprop.Explainer(model, "epsilon")
    ids = torch.randint(0, 9, (6, 6), generator=torch.Generator().manual_seed(0))
    for count, length in ((2, 5), (3, 6), (3, 4)):
        found = explainer(ids[:count, :length], 1)
        assert torch.equal(found.score, model(ids[:count, :length])[:, 1].detach())
    with pytest.raises(CaptureError, match=f"for 6 samples at a time(.|\n)*{advice}"):
        explainer(ids, 1)


def test_a_program_with_a_largest_batch_takes_no_more() -> None:
    model, x = nn.Linear(4, 3).double().eval(), torch.randn(6, 4, dtype=torch.float64)
    largest = torch.export.Dim("samples", max=3)
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: largest},))
    assert torch.equal(relprop.explain(program, x[:3], 1, "epsilon").score, model(x[:3])[:, 1].detach())
    assert relprop.explain(program, x[:1], 1, "epsilon").score.shape == (1,)
    with pytest.raises(InvalidInput, match="the model itself fails"):
        relprop.explain(program, x, 1, "epsilon")


class Careful(nn.Module):
    """Works in parts where there are many samples, and gives a single one without its dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4) to (B, 1)."""
        parts = x.split(x.shape[0] // 2) if x.shape[0] > 4 else [x]
        y = torch.cat([self.a(part) for part in parts])
        return y[0] if x.shape[0] == 1 else y


@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_way_for_other_numbers_of_samples_that_computes_the_same_is_taken(count: int) -> None:
    model, x = Careful().double().eval(), torch.randn(6, 4, dtype=torch.float64)
    found = relprop.explain(model, x[:count], rules="epsilon")
    assert torch.allclose(found.score, model(x[:count]).detach().reshape(-1), rtol=0, atol=1e-12)


# what the code of a model reads beside its modules

FACTOR = 2.0


class Slotted:
    __slots__ = ("factor",)

    def __init__(self) -> None:
        self.factor = 2.0


class Beside(nn.Module):
    factor = 2.0

    def __init__(self, read: Callable[[Any], Any], held: Any = None) -> None:
        super().__init__()
        self.layer, self.read, self.held = nn.Linear(4, 3).double(), read, held
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.read(self)


def of_a_global() -> tuple[nn.Module, Callable[[], None]]:
    return Beside(lambda m: FACTOR), lambda: globals().__setitem__("FACTOR", FACTOR + 1)


def of_the_class() -> tuple[nn.Module, Callable[[], None]]:
    return Beside(lambda m: 1.0), lambda: setattr(Beside, "forward", lambda m, x: 3 * m.layer(x))


def of_a_closure() -> tuple[nn.Module, Callable[[], None]]:
    factor = [2.0]
    return Beside(lambda m: factor[0]), lambda: factor.__setitem__(0, 3.0)


def of_a_closures_layer() -> tuple[nn.Module, Callable[[], None]]:
    layer = nn.Linear(1, 3).double()
    return Beside(lambda m: layer.weight[:, 0]), lambda: setattr(
        layer, "weight", nn.Parameter(layer.weight + 1)
    )


def of_slots() -> tuple[nn.Module, Callable[[], None]]:
    held = Slotted()
    return Beside(lambda m: m.held.factor, held), lambda: setattr(held, "factor", 3.0)


def of_an_array() -> tuple[nn.Module, Callable[[], None]]:
    held = np.ones(3)
    return Beside(lambda m: torch.from_numpy(m.held), held), lambda: held.__setitem__(0, 3.0)


def of_a_listed_module() -> tuple[nn.Module, Callable[[], None]]:
    held = [nn.Linear(1, 3).double()]
    return Beside(lambda m: m.held[0].weight[:, 0], held), lambda: setattr(
        held[0], "weight", nn.Parameter(held[0].weight + 1)
    )


def of_a_global_hook() -> tuple[nn.Module, Callable[[], None]]:
    hook = nn.modules.module.register_module_forward_hook
    return Beside(lambda m: 1.0), lambda: HOOKS.append(
        hook(lambda m, i, o: 2 * o if type(m) is nn.Linear else None)
    )


HOOKS: list[Any] = []
READ = [value for name, value in sorted(globals().items()) if name.startswith("of_")]


@pytest.mark.parametrize("read", READ)
def test_what_code_reads_beside_its_modules_is_noticed_too(
    read: Callable[[], tuple[nn.Module, Callable[[], None]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Beside, "forward", Beside.forward)  # all is put back
    monkeypatch.setitem(globals(), "FACTOR", FACTOR)
    (model, change), x = read(), randn(2, 4)
    try:
        explainer = relprop.Explainer(model, "epsilon")
        before = explainer(x, 1).output
        change()
        found = explainer(x, 1).output
        assert close(found, eager(model, x)) and not close(found, before)
    finally:
        while HOOKS:
            HOOKS.pop().remove()


class Lazy:
    """What is loaded when it is first looked at."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError(name)


LAZY = Lazy()


def test_nothing_is_asked_of_objects_beside_the_model() -> None:
    lazy, x = LAZY, randn(2, 4)
    model = Beside(lambda m: 2.0 if LAZY is lazy else 3.0, LAZY)
    explainer = relprop.Explainer(model, "epsilon")
    assert close(explainer(x, 1).output, explainer(x, 1).output)


def test_of_a_model_that_counts_its_calls_few_graphs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "FACTOR", FACTOR)
    model = Beside(lambda m: FACTOR)
    explainer = relprop.Explainer(model, "epsilon")
    for _ in range(captured._STRUCTURES + 3):
        globals()["FACTOR"] += 1
        explainer(randn(2, 4), 1)
    assert len(captured._CACHE[model]) == len(captured._FAMILIES[model]) == captured._STRUCTURES


# chance


CHANCE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "noise": lambda m, x: m.c(m.a(x) + torch.randn_like(m.a(x))),
    "a scale for all": lambda m, x: m.c(m.a(x) * torch.rand(8, dtype=x.dtype)),
    "an order": lambda m, x: m.c(m.a(x)[:, torch.randperm(8)]),
    "a choice": lambda m, x: m.c(m.a(x) * torch.bernoulli(torch.full_like(m.a(x), 0.5))),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("what", CHANCE)
def test_a_score_of_chance_is_refused(what: str, count: int) -> None:
    with pytest.raises(CaptureError, match=r"random: aten\.(.|\n)*do: draw them outside"):
        relprop.explain(net(CHANCE[what]), randn(count, 6), 1, "epsilon")


def test_a_program_with_a_score_of_chance_is_refused() -> None:
    program = program_of(net(CHANCE["noise"]), randn(2, 6))
    with pytest.raises(CaptureError, match="random"):
        relprop.explain(program, randn(3, 6), 1, "epsilon")


def test_random_numbers_that_no_output_hangs_on_do_no_harm() -> None:
    model, x = net(lambda m, x: m.c(m.a(x) + 0 * torch.randn_like(m.a(x)))), randn(3, 6)
    assert close(relprop.explain(model, x, 1, "epsilon").output, eager(model, x))


# padding that is no part of a convolution


@pytest.mark.parametrize("pad", [(0, 0, 0, 0, 0, 1), (1, 0, 0, 1, 1, 1)])
def test_channels_of_zeros_are_no_padding_of_a_convolution(pad: tuple[int, ...]) -> None:
    model = net(lambda m, x: m.c(m.conv(F.pad(x, pad)).mean((2, 3))), conv=nn.Conv2d(2 + sum(pad[4:]), 8, 2))
    x = randn(2, 2, 4, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    found = relprop.explain(model, x.detach(), 1, relprop.rules.Epsilon(0.0)).relevance
    assert torch.allclose(found, gradient * x.detach(), atol=1e-4)


def test_a_padded_convolution_of_one_sample_without_its_dimension() -> None:
    model = net(
        lambda m, x: m.c(torch.stack([m.conv(F.pad(one, (1, 1))).mean(1) for one in x.unbind()])),
        conv=nn.Conv1d(2, 8, 3),
    )
    x = randn(2, 2, 5)
    assert close(relprop.explain(model, x, 1, "epsilon").output, eager(model, x))


def test_a_later_sample_that_the_model_does_not_take_is_an_invalid_input() -> None:
    model = net(lambda m, x: m.c(m.a(x[x > 0][:6][None].expand(x.shape[0], 6))))
    x = randn(1, 6).abs().repeat(2, 1)
    x[1, :3] *= -1
    with pytest.raises(InvalidInput, match="the model itself fails"):
        relprop.explain(model, x, 1, "epsilon")
