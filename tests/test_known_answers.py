"""Every known answer of ../shared/methods/known_answers.json, through the engine: capture, plan, walk and
accounts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relprop
from relprop import classical
from relprop.classical.local import Fisher, Pooled, spread
from relprop.classical.steps import Affine, Chain, Distances, Elementwise, Machine, Soften, Unit
from relprop.engine.graph import Ref
from relprop.engine.propagate import walk
from relprop.engine.rules import (
    Addition,
    AlphaBeta,
    Attention,
    Epsilon,
    Flat,
    Gamma,
    LinearRule,
    MaxPool,
    Pass,
    Product,
    Rule,
    Softmax,
    Taylor,
    WSquare,
    ZBox,
    ZPlus,
)
from relprop.explain import Explainer, forward, places
from relprop.patterns import pattern, sums
from relprop.targets import main_output

FILE = Path(__file__).resolve().parents[2] / "shared" / "methods" / "known_answers.json"
if not FILE.is_file():
    pytest.skip(f"the known answers are not here: {FILE}", allow_module_level=True)

ALL = {case["name"]: case for case in json.loads(FILE.read_text())["cases"]}
RTOL, ATOL = 1e-9, 1e-13


Check = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], None]
CASES: dict[str, Check] = {}


def case(*names: str) -> Callable[[Check], Check]:
    """The function checks these cases; it is called with their inputs, parameters and expected values."""

    def add(check: Check) -> Check:
        CASES.update(dict.fromkeys(names, check))
        return check

    return add


@pytest.mark.parametrize("name", ALL)
def test_known_answer(name: str) -> None:
    found = ALL[name]
    CASES[name](found["inputs"], found["parameters"], found["expected"])


def test_every_case_is_run_or_left_out_by_name() -> None:
    assert CASES.keys() == ALL.keys()


# ---------------------------------------------------------------- the walk from any relevance of the output


@dataclass
class Walked:
    """One sample of a walk: the output, relevance of the inputs, the accounts, relevance inside."""

    output: Tensor
    inputs: list[Tensor]
    absorbed: dict[str, float]
    inside: dict[str, Tensor]

    def account(self, reason: str) -> float:
        return self.absorbed.get(reason, 0.0)

    def lost(self) -> float:
        """What the expected values call undistributed: units without (positive, negative) contributions."""
        return sum(self.account(r) for r in ("undistributed", "no_positive_part", "no_negative_part"))


def numbers(value: Any) -> Tensor:
    if isinstance(value, list):
        return torch.stack([numbers(item) for item in value])
    return torch.tensor(float(value), dtype=torch.float64)


def walked(
    model: nn.Module,
    rules: Any,
    args: list[Any],
    seed: Any,
    at: tuple[str, ...] = (),
    start: str | None = None,
) -> Walked:
    """Walk from the relevance `seed` of the output (of the module `start`, if given) for a batch of two equal
    samples.

    `seed` "output": the output itself.
    """
    model = model.double().eval()
    inputs = tuple(_twice(arg) for arg in args)
    explainer = Explainer(model, rules, example=inputs)
    captured, program = explainer.program(inputs, {})
    passed = forward(explainer, captured, program, inputs, {})
    ref = main_output(captured.graph.output) if start is None else places(captured, start)[0][0]
    output = main_output(passed.output)
    relevance = (
        output if isinstance(seed, str) else _twice(seed).reshape(output.shape if start is None else (2, -1))
    )
    wanted: dict[str, Ref] = {path: places(captured, path)[0][0] for path in at}
    way = walk(program, passed.values, {ref: relevance}, captured.store, 2, True, frozenset(wanted.values()))
    absorbed: dict[str, float] = {}
    for entry in way.entries:
        assert torch.allclose(entry.gap, torch.zeros(2, dtype=torch.float64), atol=1e-10), entry
        for reason, amount in entry.absorbed.items():
            assert amount.shape == (2,)
            torch.testing.assert_close(amount[0], amount[1], rtol=RTOL, atol=ATOL)
            absorbed[reason] = absorbed.get(reason, 0.0) + float(amount[0])
    by_origin = {int(n.origin): n.name for n in captured.graph.nodes if n.kind == "input"}
    relevances = [way.inputs.get(by_origin[i], torch.zeros_like(x)) for i, x in enumerate(inputs)]
    for r in relevances:
        torch.testing.assert_close(r[0], r[1], rtol=RTOL, atol=ATOL)
    inside = {path: way.observed[ref][0] for path, ref in wanted.items()}
    return Walked(output[0], [r[0] for r in relevances], absorbed, inside)


def _twice(value: Any) -> Tensor:
    one = value if isinstance(value, Tensor) else numbers(value)
    return torch.stack([one, one])


def same(found: Any, expected: Any) -> None:
    expected = numbers(expected)
    found = found.double() if isinstance(found, Tensor) else torch.tensor(found, dtype=torch.float64)
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=RTOL, atol=ATOL)


class Applied(nn.Module):
    """A function as a module, with constants as buffers."""

    def __init__(self, function: Callable[..., Tensor], **constants: Tensor) -> None:
        super().__init__()
        self.function = function
        self.names = tuple(constants)
        for name, value in constants.items():
            self.register_buffer(name, value)

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args, *(getattr(self, name) for name in self.names))


def linear(weight: Any, bias: Any = None) -> nn.Linear:
    w = numbers(weight)
    module = nn.Linear(w.shape[1], w.shape[0], bias=bias is not None).double()
    with torch.no_grad():
        module.weight.copy_(w)
        if bias is not None:
            module.bias.copy_(numbers(bias))
    return module


def weighted(rule: Rule) -> relprop.Composite:
    return relprop.Composite([("weighted", rule)])


def exact(*pairs: tuple[str, Rule]) -> relprop.Composite:
    """A composite without stabilisers: ε = 0 wherever no pair says otherwise."""
    zero = Epsilon(0.0)
    return relprop.Composite(
        [
            *pairs,
            ("weighted", zero),
            ("batch_norm", zero),
            ("pool", zero),
            ("addition", Addition(epsilon=0.0)),
            ("product", Product("half", epsilon=0.0)),
        ]
    )


# ---------------------------------------------------------------- linear operations


def linear_rule(name: str, i: dict[str, Any], p: dict[str, Any]) -> LinearRule:
    eps, bias = p.get("epsilon", 0.0), p.get("bias", "absorb")
    if "alpha" in p:
        full = name.endswith("innvestigate")
        return AlphaBeta(p["alpha"], p["beta"], full_bias=full, bias=bias, epsilon=eps)
    if "gamma" in p:
        return Gamma(p["gamma"], modified_bias=not name.endswith("captum"), bias=bias, epsilon=eps)
    if "flat" in name:
        return Flat(epsilon=eps)
    if "wsquare" in name:
        return WSquare(bias=bias, epsilon=eps)
    if "zplus" in name:
        return ZPlus(bias=bias, epsilon=eps)
    if "zbox" in name:
        return ZBox(numbers(i["low"]), numbers(i["high"]), epsilon=eps)
    return Epsilon(eps, bias=bias, stabiliser="unsigned" if name.endswith("unsigned") else "signed")


def check_accounts(found: Walked, expected: dict[str, Any]) -> None:
    for key, reason in (
        ("to_bias", "bias"),
        ("to_stabiliser", "stabilizer"),
        ("to_softmax_bias", "softmax_bias"),
    ):
        if key in expected:
            same(found.account(reason), expected[key])
    if "undistributed" in expected:
        same(found.lost(), expected["undistributed"])


LINEAR = [name for name in ALL if name.startswith(("linear_", "alpha2beta1"))]


def check_linear(name: str) -> Check:
    def check(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
        rule = linear_rule(name, i, p)
        found = walked(linear(i["W"], i["b"]), rule, [i["x"]], i["R_out"])
        same(found.inputs[0], e["R_in"])
        check_accounts(found, e)
        if rule.bias != "ignore" and "z" in e:
            same(found.output, e["z"])
        for key in ("sum_R_in", "sum_check"):
            if key in e:
                same(found.inputs[0].sum() + (found.account("bias") if key == "sum_check" else 0.0), e[key])
        if "R_in_signed" in e:
            signed = walked(linear(i["W"], i["b"]), Epsilon(p["epsilon"]), [i["x"]], i["R_out"])
            same(signed.inputs[0], e["R_in_signed"])

    return check


CASES.update({name: check_linear(name) for name in LINEAR})


def convolution(weight: Any, bias: Any, transposed: bool = False, **options: Any) -> nn.Module:
    w = numbers(weight)
    rank = w.dim() - 2
    cls = getattr(nn, f"Conv{'Transpose' if transposed else ''}{rank}d")
    groups = options.get("groups", 1)
    out, into = (w.shape[1] * groups, w.shape[0]) if transposed else (w.shape[0], w.shape[1] * groups)
    module = cls(into, out, tuple(w.shape[2:]), bias=bias is not None, **options).double()
    with torch.no_grad():
        module.weight.copy_(w)
        if bias is not None:
            module.bias.copy_(numbers(bias))
    return module


CONVOLUTION = [name for name in ALL if name.startswith(("conv1d", "convtranspose"))]


def check_convolution(name: str) -> Check:
    def check(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
        options = {key: p[key] for key in ("stride", "padding", "groups", "dilation") if key in p}
        module = convolution(i["weight"], i.get("b"), "transpose" in name, **options)
        found = walked(module, linear_rule(name, i, p), [i["x"]], i["R_out"])
        same(found.inputs[0], e["R_in"])
        check_accounts(found, e)
        if "z" in e:
            same(found.output, e["z"])

    return check


CASES.update({name: check_convolution(name) for name in CONVOLUTION})


@case("conv3d_alpha2beta1_zplus")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    module = convolution(i["weight"], i["b"])
    found = walked(module, AlphaBeta(p["alpha"], p["beta"], epsilon=0.0), [i["x"]], i["R_out"])
    same(found.output, e["z"])
    same(found.inputs[0], e["R_in_a2b1"])
    same(found.account("bias"), e["to_bias_a2b1"])
    found = walked(module, ZPlus(epsilon=0.0), [i["x"]], i["R_out"])
    same(found.inputs[0], e["R_in_zplus_bias_ignored"])


@case("concat_then_linear")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear(i["W"], i["b"])

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.linear(torch.cat([left, right], 1))

    found = walked(Joined(), Epsilon(p["epsilon"]), [i["x_left"], i["x_right"]], i["R_out"])
    same(found.inputs[0], e["R_left"])
    same(found.inputs[1], e["R_right"])


@case("fan_out_sum")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    class Fan(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = linear(i["W_a"]), linear(i["W_b"])

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    found = walked(Fan(), exact(), [i["x"]], "output")
    same(found.output, e["y"])
    same(found.inputs[0], e["R_in"])


# ---------------------------------------------------------------- networks and targets


def network(i: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(linear(i["W1"], i["b1"]), nn.ReLU(), linear(i["W2"], i["b2"]))


@case("mlp_eps_audit")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    model = network(i).eval()
    found = relprop.explain(model, _twice(i["x"]), i["target"], rules=Epsilon(p["epsilon"]))
    same(found.output[0], e["y"])
    same(found.relevance[1], e["R_in"])
    same(found.at("1")[0], e["R_hidden"])
    audit = found.audit
    assert audit is not None
    same(audit.absorbed["bias"][0], sum(e["to_bias"]))
    same(audit.absorbed["stabilizer"][0], sum(e["to_stabiliser"]))
    top_down = [entry for entry in audit.entries if entry.operation == "aten.linear.default"]
    same(torch.stack([entry.absorbed["bias"][0] for entry in top_down]), e["to_bias"])
    same(torch.stack([entry.absorbed["stabilizer"][0] for entry in top_down]), e["to_stabiliser"])
    assert float(audit.gap.abs().max()) < 1e-12


@case("logit_difference_seed")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    model = network(i).eval()
    x = _twice(i["x"])
    signed = relprop.explain(model, x, torch.tensor([1.0, -1.0], dtype=torch.float64), rules=exact())
    same(signed.score[0], e["difference"])
    same(signed.relevance[0], e["R_in_signed_seed"])
    neuron = relprop.explain(model, x, lambda y: y[:, 0] - y[:, 1], rules=exact())
    same(neuron.score[0], e["difference"])
    same(neuron.relevance[0], e["R_in_difference_neuron"])


@case("log_odds_seed")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    def log_odds(y: Tensor) -> Tensor:
        return -torch.logsumexp(-(y[:, :1] - y[:, 1:]), 1)

    class Itself(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return y.reshape(y.shape)

    y = _twice(i["y"])
    found = relprop.explain(Itself().eval(), y, log_odds, rules=exact())
    same(found.score[0], e["log_odds"])
    same(torch.softmax(y, 1)[0, 0], e["prob"])
    same(found.relevance[0], e["R_y"])

    pooled = walked(Applied(lambda h: -torch.logsumexp(-h, 1)), exact(), [y[0, 0] - y[0, 1:]], "output")
    same(pooled.inputs[0], e["R_differences"])


@case("crp_hidden_channel_mask")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    model = network(i).eval()
    found = relprop.explain(model, _twice(i["x"]), i["target"], rules=exact())
    same(found.relevance[0], e["R_in_full"])
    hidden = found.at("1")[0]
    same(hidden, e["R_hidden"])
    condition = relprop.Condition("1", channels=p["channels"])
    (conditional,) = relprop.Explainer(model, exact()).conditional(
        _twice(i["x"]), i["target"], conditions=[condition]
    )
    same(conditional.relevance[0], e["R_in_conditional"])
    masked = hidden.sum() - hidden[p["channels"]].sum()
    same(conditional.audit.absorbed["masked"][0], masked)  # type: ignore[union-attr]


@case("embedding_mean_linear")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding.from_pretrained(numbers(i["E"]))
            self.linear = linear([i["w"]])

        def forward(self, ids: Tensor) -> Tensor:
            return self.linear(self.embedding(ids).mean(1))

    ids = torch.tensor([i["ids"], i["ids"]])
    found = relprop.explain(Bag().eval(), ids, 0, rules=exact())
    same(found.score[0], e["y"])
    same(found.relevance[0], e["R_token"])
    same(found.at("embedding")[0], e["R_embedding"])


@case("relation_network")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    class Relations(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.g, self.f = linear(i["G"], i["g_bias"]), linear(i["F"], i["f_bias"])

        def forward(self, objects: Tensor, question: Tensor) -> Tensor:
            n = objects.shape[1]
            first = objects[:, :, None, :].expand(-1, n, n, -1)
            second = objects[:, None, :, :].expand(-1, n, n, -1)
            asked = question[:, None, None, :].expand(-1, n, n, -1)
            pairs = torch.cat([first, second, asked], -1).flatten(1, 2)
            return self.f(torch.relu(self.g(pairs)).sum(1))

    found = walked(Relations(), exact(), [i["objects"], i["question"]], "output")
    same(found.output, e["y"])
    same(found.inputs[0], e["R_objects"])
    same(found.inputs[1], e["R_question"])
    same(found.account("bias"), e["to_bias_g"] + e["to_bias_f"])
    total = found.inputs[0].sum() + found.inputs[1].sum() + found.account("bias")
    same(total, e["sum_all"])


# ---------------------------------------------------------------- pooling, sums, products


@case("avgpool1d_norm")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    found = walked(nn.AvgPool1d(p["kernel"], p["stride"]), exact(), [[i["x"]]], [i["R_out"]])
    same(found.inputs[0], [e["R_in"]])


def pooled(rule: MaxPool, i: dict[str, Any], p: dict[str, Any]) -> Tensor:
    found = walked(nn.MaxPool1d(p["kernel"]), relprop.Composite([("max", rule)]), [[i["x"]]], [i["R_out"]])
    return found.inputs[0]


@case("maxpool1d_tie")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    same(pooled(MaxPool(), i, p), [e["R_in_first"]])
    same(pooled(MaxPool("split"), i, p), [e["R_in_split"]])


@case("maxpool1d_sumlike")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    same(pooled(MaxPool("proportional", epsilon=0.0), i, p), [e["R_in"]])


@case("maxpool1d_softmax")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    same(pooled(MaxPool("softmax", beta=p["beta"]), i, p), [e["R_in"]])


@case("soft_min_max_pool")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    beta = p["beta"]
    found = walked(Applied(lambda h: torch.logsumexp(beta * h, 1) / beta), exact(), [i["h"]], "output")
    same(found.output, e["smax"])
    same(found.inputs[0], e["R_smax"])
    found = walked(Applied(lambda h: -torch.logsumexp(-beta * h, 1) / beta), exact(), [i["h"]], "output")
    same(found.output, e["smin"])
    same(found.inputs[0], e["R_smin"])


@case("upsample_linear")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    found = walked(nn.Upsample(scale_factor=2, mode="linear"), exact(), [[i["x"]]], [i["R_out"]])
    same(found.output, [e["y"]])
    same(found.inputs[0], [e["R_in_linear"]])
    found = walked(nn.Upsample(scale_factor=2, mode="nearest"), exact(), [[i["x"]]], [i["R_out"]])
    same(found.inputs[0], [e["R_in_nearest"]])


def residual(rule: Addition, i: dict[str, Any]) -> Walked:
    rules = relprop.Composite([("addition", rule)])
    return walked(Applied(torch.add), rules, [i["skip"], i["branch"]], i["R_out"])


@case("residual_proportional", "residual_eps", "residual_abs_ratio")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    found = residual(Addition(p["mode"], epsilon=p.get("epsilon", 0.0)), i)
    same(found.inputs[0], e["R_skip"])
    same(found.inputs[1], e["R_branch"])
    check_accounts(found, e)


@case("residual_ratio")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    assert p["ratio"] == 0.5
    found = residual(Addition("equal"), i)
    same(found.inputs[0], e["R_skip"])
    same(found.inputs[1], e["R_branch"])
    found = residual(Addition("first"), i)
    same(found.inputs[0], e["R_skip_pass"])
    same(found.inputs[1], e["R_branch_pass"])


@case("broadcast_add")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    rules = relprop.Composite([("addition", Addition(epsilon=p["epsilon"]))])
    found = walked(Applied(lambda x, v: x + v[:, None]), rules, [i["x"], i["v"]], i["R_out"])
    same(found.inputs[0], e["R_x"])
    same(found.inputs[1], e["R_v"])


@case("product_rules")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    def gated(rule: Product, gate: bool) -> list[Tensor]:
        """gate · signal; where `gate`, the first factor is made by a sigmoid."""
        first = torch.logit(numbers(i["gate"])) if gate else numbers(i["gate"])
        module = Applied(lambda g, u: (torch.sigmoid(g) if gate else g) * u)
        return walked(module, relprop.Composite([("product", rule)]), [first, i["signal"]], i["R_out"]).inputs

    for gate in (False, True):
        for how, key in (("half", "half"), ("proportional", "prop"), ("abs", "abs")):
            found = gated(Product(how, epsilon=0.0), gate)  # type: ignore[arg-type]
            same(found[0], e[f"{key}_gate"])
            same(found[1], e[f"{key}_signal"])
    found = gated(Product("signal"), True)
    same(found[0], e["all_gate"])
    same(found[1], e["all_signal"])


@case("square_and_division")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    for square in (torch.square, lambda u: u**2, lambda u: u * u):
        same(walked(Applied(square), exact(), [i["u"]], i["R_out"]).inputs[0], e["R_square"])
    by_constant = Applied(torch.div, v=numbers(i["v"]))
    same(walked(by_constant, exact(), [i["u"]], i["R_out"]).inputs[0], e["R_u_all"])
    found = walked(Applied(torch.div), exact(), [i["u"], i["v"]], i["R_out"])
    same(found.inputs[0], e["R_u_half"])
    same(found.inputs[1], e["R_v_half"])


# ---------------------------------------------------------------- normalisation


def batch_norm(i: dict[str, Any], p: dict[str, Any]) -> nn.BatchNorm1d:
    module = nn.BatchNorm1d(len(i["running_mean"]), eps=p["eps_bn"]).double()
    with torch.no_grad():
        module.weight.copy_(numbers(i["bn_weight"]))
        module.bias.copy_(numbers(i["bn_bias"]))
        module.running_mean.copy_(numbers(i["running_mean"]))
        module.running_var.copy_(numbers(i["running_var"]))
    return module


@case("bn_after_linear_fold")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    model = nn.Sequential(linear(i["W"], i["b"]), batch_norm(i, p))
    found = walked(model, weighted(Epsilon(0.0)), [i["x"]], i["R_out"])
    same(found.output, e["z"])
    same(found.inputs[0], e["R_in"])
    same(found.account("bias"), e["to_bias"])
    apart = relprop.Composite([("weighted", Epsilon(0.0)), ("batch_norm", Epsilon(0.0))], fold=False)
    unfolded = walked(model, apart, [i["x"]], i["R_out"])
    same(unfolded.inputs[0], e["R_in"])
    same(unfolded.account("bias"), e["to_bias"])


@case("bn_own_linear")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    found = walked(batch_norm(i, p), exact(), [i["x"]], i["R_out"])
    same(found.output, e["y"])
    same(found.inputs[0], e["R_in_lrp0"])
    same(found.inputs[0], e["R_in_innvestigate"])
    same(found.account("bias"), e["to_bias"])
    found = walked(batch_norm(i, p), exact(("batch_norm", Pass())), [i["x"]], i["R_out"])
    same(found.inputs[0], e["R_in_identity"])


@case("bn_before_conv_zero_padding")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    conv = convolution(i["conv_weight"], i["conv_bias"], padding=p["padding"])
    found = walked(nn.Sequential(batch_norm(i, p), conv), exact(), [i["x"]], i["R_out"])
    same(found.output, [e["y_true"]])
    same(found.inputs[0], [e["R_in_lrp0"]])
    same(found.account("bias"), e["to_bias"])


@case("lrn_taylor")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    model = nn.LocalResponseNorm(p["size"], p["alpha"], p["beta"], p["k"])
    x, seed = [[[v]] for v in i["x"]], [[[v]] for v in i["R_out"]]
    found = walked(model, relprop.Composite([("norm", Taylor(epsilon=0.0))]), [x], seed)
    same(found.output.flatten(), e["y"])
    same(found.inputs[0].flatten(), e["R_in"])
    found = walked(model, "epsilon", [x], seed)
    same(found.inputs[0].flatten(), e["R_in_identity"])


@case("layernorm")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    model = nn.LayerNorm(3, eps=p["eps_ln"]).double()
    with torch.no_grad():
        model.weight.copy_(numbers(i["weight"]))
        model.bias.copy_(numbers(i["bias"]))
    found = walked(model, "epsilon", [i["x"]], i["R_out"])
    same(found.output, e["y"])
    same(found.inputs[0], e["R_identity"])
    ignored = exact(("norm", Epsilon(p["epsilon"], bias="ignore")))
    found = walked(model, ignored, [i["x"]], i["R_out"])
    same(found.inputs[0], e["R_detached_bias_ignored"])
    same(found.inputs[0].sum(), e["sum_detached_bias_ignored"])
    found = walked(model, exact(("norm", Epsilon(p["epsilon"]))), [i["x"]], i["R_out"])
    same(found.inputs[0], e["R_detached_bias_absorbed"])
    same(found.account("bias"), e["to_bias"])


@case("rmsnorm")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    model = nn.RMSNorm(3, eps=p["eps_rms"]).double()
    with torch.no_grad():
        model.weight.copy_(numbers(i["weight"]))
    for rules in ("epsilon", exact(("norm", Epsilon(0.0)))):
        found = walked(model, rules, [i["x"]], i["R_out"])
        same(found.output, e["y"])
        same(found.inputs[0], e["R_in"])


@case("groupnorm_detached")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    model = nn.GroupNorm(p["groups"], 2).double()
    nn.init.uniform_(model.weight, 0.5, 2.0)  # the weight cancels
    rules = exact(("norm", Epsilon(0.0, bias="ignore")))
    same(walked(model, rules, [i["x"]], i["R_out"]).inputs[0], e["R_in"])


# ---------------------------------------------------------------- softmax and attention


@case("softmax_attnlrp", "softmax_attnlrp_shifted", "softmax_masked")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    hidden = torch.isinf(numbers(i["x"]))
    x = numbers(i["x"]).masked_fill(hidden, 0.0)
    model = Applied(lambda x, mask: torch.softmax(x.masked_fill(mask, -torch.inf), 1), mask=hidden)
    found = walked(model, exact(), [x], i["R_out"])
    same(found.inputs[0], e["R_in"])
    if "s" in e:
        same(found.output, e["s"])
    if "to_bias" in e:
        same(found.account("softmax_bias"), e["to_bias"])
        same(found.inputs[0].sum(), e["sum_R_in"])


@case("matmul_bilinear_half")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    for rule in (Product("half", epsilon=p["epsilon"]), Attention(epsilon=p["epsilon"])):
        rules = relprop.Composite([("product", rule)])
        found = walked(Applied(torch.matmul), rules, [i["A"], i["V"]], i["R_out"])
        same(found.inputs[0], e["R_A"])
        same(found.inputs[1], e["R_V"])


@case("matmul_weights_constant")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    model = Applied(lambda a, v: torch.softmax(a, 2) @ v)
    logits = numbers(i["A"]).log()
    for rule in (Product("signal", epsilon=p["epsilon"]), Attention("signal", epsilon=p["epsilon"])):
        found = walked(model, relprop.Composite([("product", rule)]), [logits, i["V"]], i["R_out"])
        same(found.inputs[0], torch.zeros(2, 2).tolist())
        same(found.inputs[1], e["R_V"])


class Head(nn.Module):
    """One head of attention, written out or fused."""

    def __init__(self, i: dict[str, Any], causal: bool, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (linear(i[key]) for key in ("Wq", "Wk", "Wv", "Wo"))
        self.softmax = nn.Softmax(-1)
        self.causal, self.fused = causal, fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.fused:
            return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if self.causal:
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        return self.o(self.softmax(scores) @ v)


@case("attention_attnlrp", "attention_attnlrp_causal")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    causal = p.get("causal", False)
    for fused in (False, True):
        for rules in (
            exact(),
            exact(("product", Attention(epsilon=0.0)), ("softmax", Attention(epsilon=0.0))),
        ):
            inner = ("softmax", "q", "k", "v") if not fused else ("q", "k", "v")
            found = walked(Head(i, causal, fused), rules, [i["X"]], i["R_out"], at=inner)
            same(found.output, e["O"])
            same(found.inputs[0], e["R_X"])
            same(found.inputs[0].sum(), e["sum_R_X"])
            check_accounts(found, e)
            for path, key in (("softmax", "R_P"), ("q", "R_Q"), ("k", "R_K"), ("v", "R_V")):
                if path in inner:
                    same(found.inside[path], e[key])


@case("attention_cplrp")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    signal = Product("signal", epsilon=0.0)
    for fused in (False, True):
        for rule in (signal, Attention("signal", epsilon=0.0)):
            found = walked(Head(i, False, fused), exact(("product", rule)), [i["X"]], i["R_out"])
            same(found.output, e["O"])
            same(found.inputs[0], e["R_X"])
            same(found.inputs[0].sum(), e["sum_R_out"])
            assert not any(found.absorbed.values())


@case("swiglu")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = linear(i["W_gate"]), linear(i["W_up"]), linear(i["W_down"])
            self.hidden = Applied(torch.mul)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.hidden(F.silu(self.gate(x)), self.up(x)))

    half = exact(("product", Product("half", epsilon=0.0)))
    found = walked(Gated(), half, [i["x"]], "output", at=("hidden",))
    same(found.output, e["y"])
    same(found.inside["hidden"], e["R_hidden"])
    same(found.inputs[0], e["R_in_half"])
    gate = exact(("product", Product("second")))
    same(walked(Gated(), gate, [i["x"]], "output").inputs[0], e["R_in_gate_constant"])


# ---------------------------------------------------------------- recurrent networks


class OneStep(nn.Module):
    """One step of a recurrent network from given states (B, H): the layer, torch's cell or the cell written out."""

    def __init__(self, kind: str, i: dict[str, Any], spelling: str) -> None:
        super().__init__()
        self.kind, self.spelling = kind, spelling
        w, u = (numbers(i[a] if a in i else i[b]) for a, b in (("weight_ih", "W"), ("weight_hh", "U")))
        b = numbers(i.get("bias_ih", i.get("bias", i.get("b"))))
        d = numbers(i["bias_hh"]) if "bias_hh" in i else torch.zeros_like(b)
        self.cell = getattr(nn, kind + "Cell")(w.shape[1], u.shape[1]).double()
        self.layer = getattr(nn, kind)(w.shape[1], u.shape[1], batch_first=True).double()
        for name, value in (("weight_ih", w), ("weight_hh", u), ("bias_ih", b), ("bias_hh", d)):
            for module, path in ((self.cell, name), (self.layer, f"{name}_l0")):
                getattr(module, path).data.copy_(value)
        self.gates = nn.ModuleDict({"i": nn.Sigmoid(), "f": nn.Sigmoid(), "g": nn.Tanh(), "o": nn.Sigmoid()})

    def forward(self, x: Tensor, *states: Tensor) -> Tensor:
        if self.spelling == "layer":
            given = tuple(s[None] for s in states)
            return self.layer(x[:, None], given if self.kind == "LSTM" else given[0])[0][:, 0]
        if self.spelling == "cell":
            return self.cell(x, states)[0] if self.kind == "LSTM" else self.cell(x, states[0])
        gi, gh = self._projected(x, states[0])
        if self.kind == "RNN":
            return torch.tanh(gi + gh)
        if self.kind == "GRU":
            (a, b, c), (d, e, f) = gi.chunk(3, 1), gh.chunk(3, 1)
            r, z = torch.sigmoid(a + d), torch.sigmoid(b + e)
            return (1 - z) * torch.tanh(c + r * f) + z * states[0]
        parts = (gi + gh).chunk(4, 1)
        i, f, g, o = (self.gates[name](part) for name, part in zip("ifgo", parts, strict=True))
        return o * torch.tanh(f * states[1] + i * g)

    def _projected(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        c = self.cell
        return F.linear(x, c.weight_ih, c.bias_ih), F.linear(h, c.weight_hh, c.bias_hh)


SPELLINGS = ("layer", "cell", "written out")


@case("lstm_step_all", "lstm_step_all_arras_bias1")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    bias = "distribute_layer" if p["bias_factor"] else "absorb"
    rules = relprop.Composite(
        [("weighted", Epsilon(p["epsilon"], bias=bias)), ("addition", Addition(epsilon=p["epsilon"]))]
    )
    for spelling in SPELLINGS[:2] if p["bias_factor"] else SPELLINGS:
        model = nn.Module()
        step, head = OneStep("LSTM", i, spelling), linear(i["W_out"])
        model.step, model.head = step, head
        model.forward = lambda *inputs, step=step, head=head: head(step(*inputs))  # type: ignore[method-assign]
        args = [i["x"][0], i["h0"], i["c0"]]
        seed = [e["y"][0], 0.0]
        found = walked(model, rules, args, seed, at=("step",))
        same(found.output, e["y"])
        for result, key in zip(found.inputs, ("R_x", "R_h0", "R_c0"), strict=True):
            same(result, e[key])
        same(sum(r.sum() for r in found.inputs), e["total"])


@case("lstm_step_half")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    for spelling in SPELLINGS:
        inner = tuple(f"gates.{name}" for name in "ifgo") if spelling == "written out" else ()
        args = [i["x"], i["h0"], i["c0"]]
        found = walked(OneStep("LSTM", i, spelling), exact(), args, i["R_h1"], at=inner)
        same(found.output, e["h1"])
        for result, key in zip(found.inputs, ("R_x", "R_h0", "R_c0"), strict=True):
            same(result, e[key])
        same(found.account("bias"), e["to_bias"])
        if inner:
            same(torch.cat([found.inside[path] for path in inner]), e["R_preactivations"])


@case("gru_step_all", "elman_step")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    rules = exact(("product", Product("signal", epsilon=0.0)))
    for spelling in SPELLINGS:
        model = OneStep("GRU" if "weight_ih" in i else "RNN", i, spelling)
        found = walked(model, rules, [i["x"], i["h0"]], i["R_h1"])
        same(found.output, e["h1"])
        same(found.inputs[0], e["R_x"])
        same(found.inputs[1], e["R_h0"])
        same(found.account("bias"), e["to_bias"])


# ---------------------------------------------------------------- other methods


@case("pattern_estimators")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    x, w = numbers(i["X"]), numbers(i["w"])[None]
    found = sums(lambda weight: x @ weight.T, w, x @ w.T)
    same((x @ w.T)[:, 0], e["y"])
    estimators = {"a_linear": "linear", "a_plus": "positive", "a_plus_conditional_mean": "positive_mean"}
    for name, estimator in estimators.items():
        same(pattern(found, w, estimator)[0], e[name])
    same((w * pattern(found, w, "linear"))[0], e["w_times_a_linear"])


@case("gradient_family")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    model = nn.Sequential(linear(i["W1"], i["b1"]), nn.ReLU(), linear(i["W2"], i["b2"])).eval()
    x = numbers(i["x"])[None]

    def found(method: str, inputs: Tensor = x, **options: Any) -> Tensor:
        return relprop.explain(model, inputs, 0, method=method, **options).relevance

    same(relprop.explain(model, x, 0, method="gradient").output, e["f"])
    for method, key in (
        ("gradient", "gradient"),
        ("sensitivity", "sensitivity"),
        ("gradient_x_input", "gradient_x_input"),
        ("deconvolution", "deconvnet"),
        ("guided_backprop", "guided_backprop"),
    ):
        same(found(method), e[key])
    noisy = x + numbers(i["noise"])
    same(found("gradient", noisy).mean(0), e["smoothgrad"])
    pytest.importorskip("captum", reason="captum is not installed")
    path = found("integrated_gradients", baseline=numbers(i["ig_baseline"]), steps=p["ig_steps"], quadrature="riemann_middle")  # fmt: skip
    for sampled, key in ((path, "ig"), (found("occlusion"), "occlusion_zero")):
        torch.testing.assert_close(
            sampled[0], numbers(e[key]), rtol=1e-6, atol=1e-7
        )  # captum's sums are float32


@case("gradcam")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    maps = numbers(i["A"])[None]
    keep = nn.Conv2d(2, 2, 1, bias=False)
    with torch.no_grad():
        keep.weight.copy_(torch.eye(2)[:, :, None, None])
    model = nn.Sequential(keep, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear([i["w"]])).double().eval()
    explanation = relprop.explain(model, maps, 0, method="grad_cam")
    same(explanation.output, e["y"])
    same(explanation.relevance.sum(1), e["cam"])


@case("contextual_decomposition")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step, self.head = OneStep("LSTM", i, "layer"), linear(i["W_out"])

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.step.layer(x)[0][:, -1])

    model, x = Reader().double().eval(), _twice(i["x"])
    phrase = (p["start"], p["stop"])
    for target, (rel, irr) in enumerate(zip(e["scores_rel"], e["scores_irrel"], strict=True)):
        found = relprop.explain(model, x, target, method="contextual_decomposition", phrases=[phrase])
        assert found.audit is None
        same(found.relevance[0], [rel])
        same(found.score[0], rel + irr)
        words = relprop.explain(model, x, target, method="contextual_decomposition").relevance
        assert words.shape == x.shape[:2]
        same(words[0, phrase[0]], rel)


# the softmax rule by its own name, beside its default
def test_softmax_rule_can_be_named() -> None:
    found = ALL["softmax_attnlrp"]
    rules = relprop.Composite([("softmax", Softmax("taylor"))])
    result = walked(
        Applied(lambda x: torch.softmax(x, 1)), rules, [found["inputs"]["x"]], found["inputs"]["R_out"]
    )
    same(result.inputs[0], found["expected"]["R_in"])


# ---------------------------------------------------------------- classical models, fitted by hand


def fitted(make: Any, **learned: Any) -> Any:
    """An estimator of scikit-learn that has learned these values."""
    import numpy as np

    model = make
    for name, value in learned.items():
        setattr(model, name, np.array(value) if isinstance(value, list) else value)
    return model


def chained(*steps: nn.Module) -> nn.Module:
    return classical.Network(Chain(steps))


@case("ocsvm_outlier")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    gamma = p["gamma"]
    offset = numbers(i["alpha"]).log() / gamma
    model = chained(Distances(numbers(i["support_vectors"])), Soften(gamma, offset))
    found = walked(model, classical.RULES, [i["x"]], "output", at=("chain.steps.0",))
    same(found.output, e["o"])
    same(found.inside["chain.steps.0"], e["R_support"])
    same(found.inputs[0], e["R_in"])
    same(found.inputs[0].sum(), e["sum_R_in"])


@case("kde_outlier")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    from sklearn.neighbors import KernelDensity

    model = KernelDensity(bandwidth=(1 / (2 * p["gamma"])) ** 0.5).fit(i["points"])
    found = relprop.explain(model, _twice(i["x"]))
    same(found.score[0], e["o"])
    same(found.relevance[0], e["R_in"])


@case("kmeans_neon")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    from sklearn.cluster import KMeans

    model = fitted(KMeans(3), cluster_centers_=i["centroids"], n_features_in_=2, _n_threads=1)
    for options, score, relevance in (
        ({}, "f_hard", "R_in_hard"),
        ({"beta": p["beta_hard"]}, "f_hard", "R_in_hard"),
        ({"beta": float("inf")}, "f_hard", "R_in_winner_take_all"),
        ({"beta": p["beta_soft"], "soft": True}, "f_soft", "R_in_soft"),
    ):
        found = relprop.explain(classical.rewritten(model, **options), _twice(i["x"]))
        assert found.target.tolist() == [i["cluster"]] * 2
        same(found.score[0], e[score])
        same(found.relevance[0], e[relevance])
    same(p["beta_soft"] * found.score[0], e["logit_soft"])


@case("gmm_two_components")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    from sklearn.mixture import GaussianMixture

    precision = [[1 / s**2 for s in row] for row in i["stds"]]
    root = [[1 / s for s in row] for row in i["stds"]]
    model = fitted(
        GaussianMixture(2, covariance_type="diag"),
        weights_=i["weights"],
        means_=i["means"],
        precisions_=precision,
        precisions_cholesky_=root,
        n_features_in_=2,
    )
    found = relprop.explain(model, _twice(i["x"]), 0)
    same(found.score[0], e["logit"])
    same(torch.sigmoid(found.score[0]), e["posterior"])
    same(found.relevance[0], e["R_in"])
    assert found.audit is not None
    same(found.audit.absorbed["bias"][0], e["to_bias"])


@case("tfidf_linear_svm")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    from sklearn.feature_extraction.text import TfidfTransformer, TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    svm = fitted(LinearSVC(), coef_=[i["w"]], intercept_=[i["b"]], classes_=[0, 1], n_features_in_=3)
    weighted = fitted(TfidfTransformer(), idf_=i["idf"], n_features_in_=3)
    found = relprop.explain(make_pipeline(weighted, svm), _twice(i["counts"]))
    same(found.score[0], e["score"])
    same(found.relevance[0], e["R_word"])
    spread = relprop.explain(
        make_pipeline(weighted, svm), _twice(i["counts"]), rules=Epsilon(0.0, bias="distribute")
    )
    same(spread.relevance[0], e["R_word_bias_distributed"])
    read = TfidfVectorizer(vocabulary=["first", "second", "third"])
    read.idf_ = weighted.idf_
    text = relprop.explain(make_pipeline(read, svm), "first, second: first unknown")
    same(text.score[0], e["score"])
    once = e["R_per_occurrence"]
    same(text.relevance[0], [once[0], once[1], once[0], 0.0])
    assert [token.text for token in text.tokens[0]] == ["first", "second", "first", "unknown"]


@case("histogram_intersection_svm")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    model = chained(intersecting(i))
    found = walked(model, classical.RULES, [i["x"]], "output")
    same(found.output, [e["score"]])
    same(found.inputs[0], e["R_d"])
    found = walked(model, Epsilon(0.0, bias="distribute"), [i["x"]], "output")
    same(found.inputs[0], e["R_d_bias_distributed"])


def intersecting(i: dict[str, Any]) -> nn.Module:
    """A machine with the histogram-intersection kernel."""
    return Machine(
        "histogram_intersection",
        1.0,
        1,
        support=numbers(i["support"]),
        coefficients=numbers([i["alpha_y"]]),
        bias=numbers([i["b"]]),
        reference=torch.zeros(3, dtype=torch.float64),
        coef0=torch.zeros((), dtype=torch.float64),
    )


def of_pixels(local: Any, i: dict[str, Any]) -> Tensor:
    """Relevance of pixels from that of three windows of two pixels each, in a row of four."""
    assert i["areas"] == [[0, 1], [1, 2], [2, 3]]
    return spread(local.reshape(1, 1, 3), (1, 2), 1, (1, 4))[0, 0]


@case("bow_to_local_to_pixel")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    whole = torch.ones(1, 3, dtype=torch.float64)
    model = chained(Pooled(regions=whole), intersecting(i))
    found = walked(model, Epsilon(0.0, bias=p["bias"]), [i["m"]], "output", at=("chain.steps.0",))
    same(found.output, [e["score"]])
    same(found.inside["chain.steps.0"], e["R_d"])
    same(found.inputs[0].sum(-1), e["R_local"])
    same(of_pixels(found.inputs[0].sum(-1), i), e["R_pixel"])


@case("fisher_vector_svm")
def _(i: dict[str, Any], p: dict[str, Any], e: dict[str, Any]) -> None:
    column = {"means": numbers(i["means"])[:, None], "deviations": numbers(i["stds"])[:, None]}
    model = chained(
        Fisher(shares=numbers(i["weights"]), **column),
        Pooled(regions=torch.ones(1, 3, dtype=torch.float64)),
        Elementwise("signed_root"),
        Unit("l2"),
        Affine(weight=numbers([i["w"]]), bias=numbers([i["b"]])),
    )
    x = numbers(i["descriptors"])[:, None]
    same(model.chain.steps[0](x[None])[0], e["psi"])
    at = tuple(f"chain.steps.{step}" for step in (1, 3))
    found = walked(model, classical.RULES, [x], "output", at=at)
    same(found.output, [e["score"]])
    same(found.inside["chain.steps.3"], e["R_d"])
    same(found.inside["chain.steps.1"], e["R_d"])
    same(found.inputs[0].sum(-1), e["R_local"])
    same(of_pixels(found.inputs[0].sum(-1), i), e["R_pixel"])
    same(found.account("bias"), e["to_bias"])
