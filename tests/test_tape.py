"""Models whose control flow depends on their input are recorded sample by sample, and explained like any
other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relprop
from relprop.engine.graph import Graph
from relprop.engine.modules import from_export
from relprop.engine.signature import structure_of
from relprop.engine.tape import trace
from relprop.errors import CaptureError

PRESETS = ["auto", "epsilon", "epsilon_plus", "epsilon_plus_flat"]
TOLERANCE = 1e-10


def close(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach(), b.detach()
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-12)
    return a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * scale


def closed(explanation: relprop.Explanation) -> bool:
    audit = explanation.audit
    assert audit is not None
    bound = torch.maximum(audit.score.abs(), torch.as_tensor(audit.magnitude)).clamp(min=1)
    return bool((audit.gap.abs() <= TOLERANCE * bound).all())


def net(**parts: Any) -> nn.Module:
    """The module's parts and its forward function in one call; eval mode, float64."""
    forward = parts.pop("forward")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return forward(self, *args, **kwargs)

    return Net().double().eval()


def mlp() -> dict[str, nn.Module]:
    return {"a": nn.Linear(6, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 3), "relu": nn.ReLU()}


class Branching(nn.Module):
    """One of two layers, by the sum of the input."""

    def __init__(self, always: str = "") -> None:
        super().__init__()
        self.a, self.up, self.down, self.c = (
            nn.Linear(6, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        up = self.always == "up" if self.always else bool(x.sum() > 0)
        h = F.relu(self.a(x))
        h = F.relu(self.up(h) if up else self.down(h))
        return self.c(h)


def always(model: Branching, branch: str) -> Branching:
    other = copy.deepcopy(model)
    other.always = branch
    return other


@pytest.fixture
def branching() -> Branching:
    return Branching().double().eval()


@pytest.fixture
def both(branching: Branching) -> Tensor:
    """Four samples of which the second and fourth take the lower branch."""
    x = torch.randn(4, 6, dtype=torch.float64).abs()
    x[1::2] *= -1
    return x


@pytest.mark.parametrize("rules", PRESETS)
def test_each_sample_takes_its_own_branch(branching: Branching, both: Tensor, rules: str) -> None:
    found = relprop.explain(branching, both, target=1, rules=rules)
    up = relprop.explain(always(branching, "up"), both[0::2], target=1, rules=rules)
    down = relprop.explain(always(branching, "down"), both[1::2], target=1, rules=rules)
    assert close(found.relevance[0::2], up.relevance)
    assert close(found.relevance[1::2], down.relevance)
    assert closed(found)


def test_a_second_call_with_the_same_shapes_is_recorded_anew(branching: Branching, both: Tensor) -> None:
    explainer = relprop.Explainer(branching, rules="epsilon")
    first, second = explainer(both[:1], target=0), explainer(both[1:2], target=0)
    assert close(first.relevance, relprop.explain(always(branching, "up"), both[:1], 0, "epsilon").relevance)
    assert close(
        second.relevance, relprop.explain(always(branching, "down"), both[1:2], 0, "epsilon").relevance
    )
    assert close(explainer(both[:1], target=0).relevance, first.relevance)


def test_nothing_is_printed_where_export_fails(capfd: pytest.CaptureFixture[str]) -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        kept = x[0][x[0] > 0]
        return module.a(x) * (2 if kept.numel() > 2 else 3)

    model = net(a=nn.Linear(6, 8), forward=forward)
    relprop.explain(model, torch.randn(2, 6, dtype=torch.float64), 1, "epsilon")
    assert capfd.readouterr() == ("", "")


def test_several_targets_share_one_recording(branching: Branching, both: Tensor) -> None:
    explainer = relprop.Explainer(branching, rules="epsilon")
    found = explainer.explain_targets(both, [0, 2])
    for target, explanation in zip((0, 2), found, strict=True):
        assert close(explanation.relevance, explainer(both, target).relevance)


def test_relevance_inside_a_recorded_model(branching: Branching, both: Tensor) -> None:
    found = relprop.explain(branching, both, target=1, rules="epsilon")
    assert found.at("a").shape == (4, 8)
    expected = relprop.explain(always(branching, "up"), both[:1], target=1, rules="epsilon")
    assert close(found.at("a")[:1], expected.at("a"))


def loop(module: nn.Module, x: Tensor) -> Tensor:
    h, steps = module.relu(module.a(x)), 0
    while h.norm() < 50 and steps < 10:
        h, steps = module.relu(module.b(h) + 1), steps + 1
    return module.c(h)


def test_a_loop_until_convergence_is_the_unrolled_network() -> None:
    model = net(**mlp(), forward=loop)
    x = torch.randn(1, 6, dtype=torch.float64)
    with torch.no_grad():
        h, steps = model.relu(model.a(x)), 0
        while h.norm() < 50 and steps < 10:
            h, steps = model.relu(model.b(h) + 1), steps + 1
    assert steps > 1

    def unrolled(module: nn.Module, x: Tensor) -> Tensor:
        h = module.relu(module.a(x))
        for _ in range(steps):
            h = module.relu(module.b(h) + 1)
        return module.c(h)

    twin = net(a=model.a, b=model.b, c=model.c, relu=model.relu, forward=unrolled)
    for rules in PRESETS:
        found, expected = relprop.explain(model, x, 0, rules), relprop.explain(twin, x, 0, rules)
        assert close(found.relevance, expected.relevance)
        assert closed(found)


def test_an_early_exit_leaves_the_later_layers_out() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        h = module.relu(module.a(x))
        early = module.c(h)
        if early.softmax(-1).max().item() > 0.1:
            return early
        return module.c(module.relu(module.b(h)))

    model = net(**mlp(), forward=forward)
    x = torch.randn(3, 6, dtype=torch.float64)
    twin = net(**dict(model.named_children()), forward=lambda m, x: m.c(m.relu(m.a(x))))
    found, expected = relprop.explain(model, x, 1, "epsilon"), relprop.explain(twin, x, 1, "epsilon")
    assert close(found.relevance, expected.relevance) and closed(found)


# the same function written with and without operations that write to their arguments


def written(module: nn.Module, x: Tensor) -> Tensor:
    h = module.a(x)
    h += 1
    view = h[:, :4]
    view *= 2
    h[:, 4:] = h[:, 4:] - 3
    module.inplace(h.view(-1, 2, 4))
    h[:, 0] = 0.5
    return module.c(h)


def pure(module: nn.Module, x: Tensor) -> Tensor:
    h = module.a(x) + 1
    h = torch.cat([h[:, :4] * 2, h[:, 4:] - 3], 1).relu()
    return module.c(torch.cat([torch.full_like(h[:, :1], 0.5), h[:, 1:]], 1))


def test_writes_in_place_and_through_views_are_seen() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        assert x.sum().item() == x.sum().item()
        return written(module, x)

    parts = {"a": nn.Linear(6, 8), "c": nn.Linear(8, 3), "inplace": nn.ReLU(inplace=True)}
    model, twin = net(**parts, forward=forward), net(**parts, forward=pure)
    x = torch.randn(2, 6, dtype=torch.float64)
    found, expected = relprop.explain(model, x, 2, "epsilon"), relprop.explain(twin, x, 2, "epsilon")
    assert close(found.output, model(x)) and closed(found)
    assert close(found.relevance, expected.relevance)


def test_a_write_through_a_view_reaches_an_output() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        h = module.a(x)
        h[:, :2].mul_(float(h.shape[1]))
        return h

    model = net(a=nn.Linear(6, 8), forward=forward)
    x = torch.randn(1, 6, dtype=torch.float64)
    graph = trace(model, (x,), {})
    assert all(not node.function._schema.is_mutable for node in graph.nodes if node.kind == "call")
    assert close(run(graph, model, x), model(x))


def test_the_users_input_is_not_written_to() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        x.add_(1 if x.sum() > 0 else 2)
        return module.a(x)

    model = net(a=nn.Linear(6, 8), forward=forward)
    x = torch.ones(2, 6, dtype=torch.float64)
    before = x.clone()
    relprop.explain(model, x, 0, "epsilon")
    assert torch.equal(x, before)


def run(graph: Graph, model: nn.Module, *inputs: Tensor) -> Any:
    """The output of a graph, computed node by node."""
    from relprop.engine.graph import Ref, map_output, replace_refs
    from relprop.explain import leaves_of

    values: dict[str, Any] = leaves_of(model, graph, inputs, {})

    def value(ref: Ref) -> Any:
        return values[ref.name] if ref.index is None else values[ref.name][ref.index]

    with torch.no_grad():
        for node in graph.nodes:
            if node.kind == "call":
                assert node.function is not None
                values[node.name] = node.function(
                    *replace_refs(node.args, value), **replace_refs(node.kwargs, value)
                )
    return map_output(graph.output, value)


def test_calls_of_reused_modules_are_named_as_export_names_them() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(6, 6), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.relu(self.fc(x)) + 1)

    model = net(block=Block(), other=Block(), forward=lambda m, x: m.other(m.block(m.block(x))))
    x = torch.randn(1, 6, dtype=torch.float64)
    recorded, exported = trace(model, (x,), {}), from_export(model, (x,), {}, 2)

    def rows(graph: Graph) -> list[Any]:
        return [
            (n.operation, n.module, n.module_class, n.calls, n.source)
            for n in graph.nodes
            if n.kind == "call"
        ]

    assert rows(recorded) == rows(exported)
    assert ("", "block@1", "block.relu@3") in {node.calls for node in recorded.nodes}


def small_cnn() -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
            self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            out = self.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            out += x
            return self.relu(out)

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        Residual(), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 5),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.double().eval()


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return net(
        embed=nn.Linear(6, 8),
        layer=layer,
        c=nn.Linear(8, 3),
        forward=lambda m, x: m.c(m.layer(m.embed(x)).mean(1)),
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (small_cnn, (2, 3, 16, 16)),
    "attention": (attention, (2, 4, 6)),
    "mlp": (lambda: net(**mlp(), forward=lambda m, x: m.c(m.relu(m.b(m.relu(m.a(x)))))), (2, 6)),
}


@pytest.mark.parametrize("rules", PRESETS)
@pytest.mark.parametrize("name", NETS)
def test_a_recorded_graph_gives_the_relevance_of_the_exported_one(
    name: str, rules: str, monkeypatch: Any
) -> None:
    make, shape = NETS[name]
    model, x = make(), torch.randn(shape, dtype=torch.float64)
    expected = relprop.explain(model, x, 1, rules)
    found = recorded(model, x, rules, monkeypatch)
    assert close(found.relevance, expected.relevance)
    assert closed(found)


def recorded(model: nn.Module, x: Any, rules: str, monkeypatch: Any, target: Any = 1) -> relprop.Explanation:
    """The explanation by way of the recording, where torch.export would do."""
    import relprop.engine.modules as modules

    def refuse(*args: Any) -> Any:
        raise CaptureError("not in this test")

    relprop.clear_cache()
    with monkeypatch.context() as patch:
        patch.setattr(modules, "from_export", refuse)
        found = relprop.explain(model, x, target, rules)
    relprop.clear_cache()
    return found


def test_functions_and_modules_are_the_same(monkeypatch: Any) -> None:
    parts = mlp()
    modules = net(**parts, forward=lambda m, x: m.c(m.relu(m.a(x))))
    functions = net(
        **parts,
        forward=lambda m, x: torch.addmm(m.c.bias, F.relu(x @ m.a.weight.t() + m.a.bias), m.c.weight.t()),
    )
    x = torch.randn(2, 6, dtype=torch.float64)
    found = [recorded(model, x, "epsilon", monkeypatch).relevance for model in (modules, functions)]
    assert float((found[0] - found[1]).abs().max()) < 1e-5  # the sum has a stabiliser of its own


def test_packed_sequences_are_the_sequences_without_their_padding() -> None:
    def packed(module: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
        sequence = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = module.lstm(sequence)
        output, _ = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
        return module.c(output.sum(1))

    parts = {"lstm": nn.LSTM(6, 5, batch_first=True, bidirectional=True), "c": nn.Linear(10, 3)}
    model = net(**parts, forward=packed)
    twin = net(**parts, forward=lambda m, x: m.c(m.lstm(x)[0].sum(1)))
    x, lengths = torch.randn(3, 7, 6, dtype=torch.float64), torch.tensor([7, 4, 2])
    graph = trace(model, (x[1:2], lengths[1:2]), {})
    assert "aten.lstm.input" in {node.operation for node in graph.nodes}
    assert close(run(graph, model, x[1:2], lengths[1:2]), model(x[1:2], lengths[1:2]))
    if "aten.lstm.input" not in relprop.OPS:
        pytest.skip("no row for aten.lstm.input")
    found = relprop.explain(model, (x, lengths), 1, "epsilon")
    for i, length in enumerate(lengths):
        expected = relprop.explain(twin, x[i : i + 1, :length], 1, "epsilon")
        assert close(found.relevance[0][i : i + 1, :length], expected.relevance)
        assert not found.relevance[0][i, length:].any()


def test_an_output_of_any_structure() -> None:
    def forward(module: nn.Module, x: Tensor) -> dict[str, Any]:
        h = module.a(x)
        if h.sum() > 0:
            h = h * 2
        return {"logits": module.c(h), "parts": (h, [x]), "nothing": None, "count": 3}

    model = net(**mlp(), forward=forward)
    x = torch.randn(1, 6, dtype=torch.float64)
    output = run(trace(model, (x,), {}), model, x)
    assert output["nothing"] is None and output["count"] == 3
    assert close(output["logits"], model(x)["logits"]) and torch.equal(output["parts"][1][0], x)
    found = relprop.explain(model, x, lambda out: out["logits"][:, 1], "epsilon")
    assert closed(found) and close(found.score, model(x)["logits"][:, 1])


def test_numbers_read_from_the_input_are_constants() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        scale = x.abs().max().item()
        keep = [i for i, value in enumerate(x[0].tolist()) if value > 0]
        return module.a(x / scale) + torch.tensor([float(len(keep))], dtype=x.dtype)

    model = net(a=nn.Linear(6, 8), forward=forward)
    x = torch.randn(2, 6, dtype=torch.float64)
    found = relprop.explain(model, x, 1, "epsilon")
    assert close(found.output, torch.cat([model(x[:1]), model(x[1:])])) and closed(found)


def test_weights_of_a_recorded_model_are_read_live(branching: Branching, both: Tensor) -> None:
    explainer = relprop.Explainer(branching, rules="epsilon")
    explainer(both, 1)
    with torch.no_grad():
        branching.up.weight.mul_(2)
    branching.c.weight = nn.Parameter(-branching.c.weight.detach())
    found = explainer(both, 1)
    expected = relprop.explain(always(branching, "up"), both[::2], 1, "epsilon")
    assert close(found.relevance[::2], expected.relevance)


def state(model: nn.Module) -> list[Any]:
    facts: list[Any] = [structure_of(model), torch.get_rng_state().tolist(), torch.is_grad_enabled()]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        facts += [
            name,
            id(tensor),
            tensor.data_ptr(),
            tensor._version,
            tensor.requires_grad,
            tensor.tolist(),
            tensor.grad,
        ]
    for path, module in model.named_modules():
        facts += [path, module.training, *((name, id(value)) for name, value in vars(module).items())]
    return facts


def stateful(module: nn.Module, x: Tensor) -> Tensor:
    module.steps += 1
    module.count += 1
    h = module.relu(module.a(x))
    module.last = h
    module.seen.append(h)
    if h.sum() > 1e9:
        raise ValueError("too large")
    return module.c(h)


@pytest.mark.parametrize("size", [1.0, 1e12])
def test_the_model_is_left_as_it_was(size: float) -> None:
    model = net(**mlp(), forward=stateful)
    model.register_buffer("steps", torch.zeros((), dtype=torch.float64))
    model.count, model.seen, model.last = 0, [], None
    before = state(model)
    x = torch.full((2, 6), size, dtype=torch.float64)
    if size == 1:
        assert closed(relprop.explain(model, x, 1, "epsilon"))
    else:
        with pytest.raises(relprop.InvalidInput, match="the model itself fails"):
            relprop.explain(model, x, 1, "epsilon")
    assert state(model) == before and model.seen == [] and model.last is None


@pytest.mark.parametrize(
    "chance",
    [lambda x: F.dropout(x, 0.5, training=True), lambda x: x * torch.rand(8, dtype=x.dtype), torch.bernoulli],
)
def test_a_random_forward_pass_is_refused(chance: Callable[[Tensor], Tensor]) -> None:
    model = net(a=nn.Linear(6, 8), forward=lambda m, x: chance(torch.sigmoid(m.a(x))))
    random = torch.get_rng_state()
    with pytest.raises(CaptureError, match="random"):
        trace(model, (torch.randn(1, 6, dtype=torch.float64),), {})
    torch.set_rng_state(random)


def test_autocast_in_the_forward_pass_is_refused() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(x.sum() < 1e9)):
            return module.a(x)

    model = net(a=nn.Linear(6, 8), forward=forward).float()
    with pytest.raises(CaptureError, match="autocast"):
        trace(model, (torch.randn(1, 6),), {})


def test_what_cannot_be_recorded_says_so() -> None:
    model = net(a=nn.Linear(6, 8), forward=lambda m, x: m.a(torch.from_numpy(x.numpy() * 2)))
    with pytest.raises(CaptureError, match="cannot be captured"):
        relprop.explain(model, torch.randn(1, 6, dtype=torch.float64), 0)


def test_threads_record_without_disturbing_each_other(branching: Branching, both: Tensor) -> None:
    from concurrent.futures import ThreadPoolExecutor

    expected = relprop.explain(branching, both, 1, "epsilon").relevance
    explainer = relprop.Explainer(branching, rules="epsilon")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: explainer(both, 1).relevance, range(8)))
    assert all(torch.equal(relevance, expected) for relevance in found)


def test_a_callable_may_read_an_output_of_any_shape() -> None:
    def boxes(module: nn.Module, x: Tensor) -> list[dict[str, Tensor]]:
        h = module.relu(module.a(x)).reshape(4, 2)
        keep = torch.nonzero(h[:, 0] > 0)[:, 0]
        return [{"boxes": h[keep], "scores": h[keep].sum(1), "labels": keep}]

    model, x = net(**mlp(), forward=boxes), torch.randn(3, 6, dtype=torch.float64)
    found = relprop.explain(model, x, lambda out: out[0]["scores"].max().reshape(1), "epsilon")
    assert closed(found)
    for i in range(3):
        assert close(found.score[i], model(x[i : i + 1])[0]["scores"].max())


def test_a_callable_may_read_an_output_whose_first_part_has_no_batch_in_front() -> None:
    model = net(**mlp(), forward=lambda m, x: (m.a(x)[None], m.c(m.relu(m.a(x)))))
    twin = net(**dict(model.named_children()), forward=lambda m, x: m.c(m.relu(m.a(x))))
    x = torch.randn(3, 6, dtype=torch.float64)
    found = relprop.explain(model, x, lambda out: out[1][:, 2], "epsilon")
    assert close(found.relevance, relprop.explain(twin, x, 2, "epsilon").relevance)
