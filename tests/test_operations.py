"""Every operation of the table keeps its promises on every sample of `samples.SAMPLES`.

The laws are those of the propagation sheet, sections 1.3 and 12: the account closes, relevance is linear in
the seed, a batch is its samples, calls are repeatable, facts about signs are true, selections are adjoints.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import relprop
from relprop import rules
from relprop.engine import audit as accounts
from relprop.engine.analyse import Facts, analyse, values_of
from relprop.engine.canonise import IN_ANY_ORDER
from relprop.engine.graph import Graph, Node, Ref, name_of, replace_refs
from relprop.engine.ops import KINDS, OPS
from relprop.engine.plan import Composite, Plan
from relprop.engine.propagate import HALF, Weights, prepare, record, walk
from relprop.engine.rules import Addition, MaxPool, Product, Recurrent, Rule, Softmax
from relprop.engine.step import sum_per_sample
from relprop.explain import Explainer, forward, leaves_of
from relprop.methods import precision_of
from samples import BATCH, SAMPLES, Network, Sample, build, each, index

EXACT = 1e-10
"""|gap| allowed in float64, as a part of max(1, Σ|R| that arrives)."""
SAME = 1e-12
"""Largest relative difference of results that are due to be the same sums in float64."""

RULES: dict[type[Rule], list[Rule]] = {
    rules.Epsilon: [
        rules.Epsilon(),
        rules.Epsilon(0.1, bias="ignore"),
        rules.Epsilon(0.0),
        rules.Epsilon(bias="distribute"),
    ],
    rules.Gamma: [rules.Gamma(), rules.Gamma(1.0, bias="ignore")],
    rules.AlphaBeta: [rules.AlphaBeta(), rules.AlphaBeta(1, 0), rules.AlphaBeta(2, 1, bias="ignore")],
    rules.ZPlus: [rules.ZPlus()],
    rules.ZBox: [rules.ZBox(-99.0, 99.0)],
    rules.WSquare: [rules.WSquare()],
    rules.Flat: [rules.Flat()],
    Addition: [Addition(how) for how in ("proportional", "abs", "positive", "first", "equal")]
    + [Addition(epsilon=0.0)],
    Product: [Product(how) for how in ("signal", "half", "proportional", "abs")]
    + [Product("proportional", 0.0)],
    Softmax: [Softmax(how) for how in ("taylor", "constant", "pass")],
    MaxPool: [MaxPool(how) for how in ("winner", "split", "proportional", "softmax")],
    Recurrent: [
        Recurrent(rules.Epsilon(1e-3), Product("half"), Addition("abs")),
        Recurrent(rules.Epsilon(0.0), Product("proportional", 0.0), Addition(epsilon=0.0)),
        Recurrent(rules.Epsilon(1e-3, bias="distribute_layer"), Product("abs")),
        Recurrent(rules.Epsilon(1e-3, bias="ignore"), Product("first"), Addition("positive")),
        Recurrent(rules.Epsilon(1e-3, stabiliser="relative")),
        Recurrent(rules.Gamma()),
        Recurrent(rules.AlphaBeta(), addition=Addition("equal")),
        Recurrent(rules.Flat()),
        Recurrent(rules.ZPlus(bias="distribute")),
    ],
}
"""The rules that are tried where an operation obeys their type."""

CASES = [
    pytest.param(name, sample, id=f"{name.removeprefix('aten.').removesuffix('.default')}-{i}")
    for name, samples in SAMPLES.items()
    for i, sample in enumerate(samples)
]
every_sample = pytest.mark.parametrize(("name", "sample"), CASES)


def everything(planned: Any) -> bool:
    """A place in a composite that every operation matches."""
    return True


@dataclass(frozen=True)
class Relevance:
    """A walk from arbitrary relevance of the outputs: relevance of each input, the audit and the model's
    outputs."""

    inputs: tuple[Tensor, ...]
    audit: accounts.Audit
    outputs: tuple[Tensor, ...]


def relevance_of(
    module: torch.nn.Module,
    inputs: tuple[Tensor, ...],
    seed: Sequence[Tensor] | None = None,
    rule: Any = "auto",
) -> Relevance:
    """The relevance of the inputs where the outputs' relevance is `seed` (the outputs themselves by
    default)."""
    explainer = Explainer(module, rule)
    captured, program = explainer.program(inputs, {})
    batch = inputs[0].shape[0]
    size = batch if captured.graph.batched else 1
    parts = []
    for start in range(0, batch, size):
        some = tuple(x[start : start + size] for x in inputs)
        passed = forward(explainer, captured, program, some, {})
        refs = captured.graph.outputs()
        outputs = [passed.values[r.name] if r.index is None else passed.values[r.name][r.index] for r in refs]
        given = [y.float() if y.dtype in HALF else y for y in outputs]
        if seed is not None:
            given = list(seed) if size == batch else [s[start : start + 1] for s in seed]
        seeds = dict(zip(refs, given, strict=True))
        score = sum(sum_per_sample(s, captured.facts.layout.get(r), passed.batch) for r, s in seeds.items())
        way = walk(program, passed.values, seeds, captured.store, passed.batch)
        reached = torch.zeros_like(score) if way.passed is None else way.passed
        audit = accounts.total(way.entries, score, reached, precision_of(captured))
        names = [node.name for node in captured.graph.nodes if node.kind == "input"]
        missing = [torch.zeros(x.shape, dtype=score.dtype) for x in some]
        parts.append(([way.inputs.get(n, m) for n, m in zip(names, missing, strict=True)], audit, outputs))
    return Relevance(
        tuple(torch.cat(column) for column in zip(*(part[0] for part in parts), strict=True)),
        accounts.join([part[1] for part in parts]),
        tuple(torch.cat(column) for column in zip(*(part[2] for part in parts), strict=True)),
    )


@cache
def built(
    sample: Sample, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Network, tuple[Tensor, ...]]:
    if sample.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("this operation runs on a GPU only")
    return build(sample, dtype, seed)


@cache
def random_seed(sample: Sample, number: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Relevance of the outputs, drawn at random."""
    module, inputs = built(sample, dtype)
    generator = torch.Generator().manual_seed(100 + number)
    outputs = relevance_of(module, inputs).outputs
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    return tuple(
        torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device, kind) for y in outputs
    )


def canonical(name: str) -> str:
    """The operation that is walked in the place of the one of that name."""
    return {name_of(own): name_of(other) for own, other in IN_ANY_ORDER.items()}.get(name, name)


def obeyed(name: str, sample: Sample) -> list[Rule]:
    """The rules of `RULES` that the sample's operation obeys in this place."""
    module, inputs = built(sample)
    (row,) = {row.kind for row in planned(module, inputs) if row.operation == canonical(name)}
    types = [t for t in OPS[name].rules if not (row == "product" and issubclass(t, rules.LinearRule))]
    if row in ("linear", "convolution"):
        types = [t for t in types if t is not Product]
    return [rule for t in types for rule in RULES.get(t, [])]


def planned(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> Plan:
    explainer = Explainer(module, "auto")
    explainer.program(inputs, {})
    return explainer.plan


def largest(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    scale = max(float(a.abs().max()), float(b.abs().max()), 1e-300)
    return float((a - b).abs().max()) / scale


def assert_closes(found: Relevance, tolerance: float) -> None:
    """The account of every operation and of the whole walk adds up."""
    for entry in found.audit.entries:
        size = torch.maximum(torch.ones(()), found.audit.magnitude)
        assert (entry.gap.abs() <= tolerance * size).all(), (
            entry.operation,
            entry.rule,
            entry.gap,
            entry.absorbed,
        )
    size = torch.maximum(found.audit.score.abs(), found.audit.magnitude).clamp(min=1)
    assert (found.audit.gap.abs() <= tolerance * size).all(), found.audit.gap


# ---------------------------------------------------------------- the sweep itself


def test_every_operation_has_a_sample() -> None:
    assert SAMPLES.keys() == OPS.keys()


@every_sample
def test_sample_consists_of_its_operation(name: str, sample: Sample) -> None:
    module, inputs = built(sample)
    operations = {row.operation for row in planned(module, inputs)}
    if "aten.select.int" in sample.also:  # picks may have become parts of one operation
        operations = {"aten.select.int" if one in PICKED else one for one in operations}
    expected = {canonical(name), *sample.also}
    assert operations in (
        expected,
        expected - {"aten.slice.Tensor"},
    )  # one of everything (`x[:, …]`) is left out there


PICKED = ("aten.unbind.int", "aten.alias.default")


@every_sample
def test_account_closes(name: str, sample: Sample) -> None:
    module, inputs = built(sample)
    for number in range(3):
        assert_closes(relevance_of(module, inputs, random_seed(sample, number)), EXACT)


@every_sample
def test_account_closes_under_every_rule(name: str, sample: Sample) -> None:
    module, inputs = built(sample)
    for rule in obeyed(name, sample):
        composite = Composite([(everything, rule)])
        assert_closes(relevance_of(module, inputs, random_seed(sample), composite), EXACT)


@every_sample
def test_relevance_is_linear_in_the_seed(name: str, sample: Sample) -> None:
    module, inputs = built(sample)
    one, two = random_seed(sample), random_seed(sample, 1)
    first, second = relevance_of(module, inputs, one), relevance_of(module, inputs, two)
    double = relevance_of(module, inputs, [2 * s for s in one])
    both = relevance_of(module, inputs, [a + b for a, b in zip(one, two, strict=True)])
    for a, b, d, s in zip(first.inputs, second.inputs, double.inputs, both.inputs, strict=True):
        assert torch.equal(d, 2 * a)
        scale = max(float(a.abs().max()), float(b.abs().max()), 1e-300)
        assert float((s - a - b).abs().max()) <= SAME * scale


@every_sample
def test_batch_is_its_samples(name: str, sample: Sample) -> None:
    module, inputs = built(sample)
    seed = random_seed(sample)
    whole = relevance_of(module, inputs, seed)
    order = torch.tensor([2, 0, 1])
    axes = [batch_axis(module, inputs, i) for i in range(len(seed))]
    shuffled = relevance_of(
        module,
        tuple(x[order] for x in inputs),
        [blocks(s, a, order) for s, a in zip(seed, axes, strict=True)],
    )
    for a, b in zip(whole.inputs, shuffled.inputs, strict=True):
        assert largest(a[order], b) <= SAME
    for i in range(BATCH):
        one = torch.tensor([i])
        single = relevance_of(
            module,
            tuple(x[one] for x in inputs),
            [blocks(s, a, one) for s, a in zip(seed, axes, strict=True)],
        )
        for a, b in zip(whole.inputs, single.inputs, strict=True):
            assert largest(a[one], b) <= SAME
        for reason, amount in whole.audit.absorbed.items():
            zero = torch.zeros(1, dtype=torch.float64)
            alone = single.audit.absorbed.get(reason, zero)
            assert float((amount[one] - alone).abs()) <= SAME * max(1.0, float(whole.audit.magnitude[i])), (
                reason
            )


def batch_axis(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: int) -> Any:
    """Where the samples lie in an output of the network."""
    explainer = Explainer(module, "auto")
    captured, _ = explainer.program(inputs, {})
    return captured.facts.layout.get(captured.graph.outputs()[output])


def blocks(tensor: Tensor, layout: Any, order: Tensor) -> Tensor:
    """The samples of a tensor in another order."""
    if layout is None:
        return tensor[order]
    dimension, inner = layout
    outer = tensor.shape[dimension] // (BATCH * inner)
    split = tensor.unflatten(dimension, (outer, BATCH, inner))
    return split.index_select(dimension + 1, order).flatten(dimension, dimension + 2)


@every_sample
def test_same_call_gives_the_same_bits(name: str, sample: Sample) -> None:
    module, inputs = built(sample)
    before = [x.clone() for x in inputs]
    first, second = (relevance_of(module, inputs, random_seed(sample)) for _ in range(2))
    for a, b in zip(first.inputs, second.inputs, strict=True):
        assert torch.equal(a, b)
    assert {k: v.tolist() for k, v in first.audit.absorbed.items()} == {
        k: v.tolist() for k, v in second.audit.absorbed.items()
    }
    for x, same in zip(inputs, before, strict=True):
        assert torch.equal(x, same), "the user's tensor has changed"


# ---------------------------------------------------------------- facts about signs


def behind_relu(graph: Graph) -> Graph:
    """The same graph with a ReLU on every input of real numbers."""
    nodes: list[Node] = []
    moved: dict[Ref, Ref] = {}
    for node in graph.nodes:
        args, kwargs = (replace_refs(part, lambda r: moved.get(r, r)) for part in (node.args, node.kwargs))
        nodes.append(replace(node, args=args, kwargs=kwargs))
        if node.kind == "input" and node.meta.dtype.is_floating_point:
            nodes.append(
                Node(
                    f"{node.name}_relu",
                    "call",
                    torch.ops.aten.relu.default,
                    (Ref(node.name),),
                    meta=node.meta,
                )
            )
            moved[Ref(node.name)] = Ref(f"{node.name}_relu")
    return Graph(tuple(nodes), graph.inputs, graph.output, graph.constants, graph.batched)


def all_values(
    module: torch.nn.Module, graph: Graph, facts: Facts, inputs: tuple[Tensor, ...]
) -> dict[Ref, Tensor]:
    refs = [ref for node in graph.nodes for ref in values_of(node)]
    program = prepare(graph, facts, Plan((), Composite()), refs)
    values = record(program, leaves_of(module, graph, inputs, {}), Weights())
    return {ref: values[ref.name] if ref.index is None else values[ref.name][ref.index] for ref in refs}


@every_sample
def test_facts_about_signs_are_true(name: str, sample: Sample) -> None:
    module, inputs = built(sample)
    explainer = Explainer(module, "auto")
    captured, _ = explainer.program(inputs, {})
    for graph in (captured.graph, behind_relu(captured.graph)):
        facts = analyse(graph, OPS)
        for seed in range(4):
            drawn = built(sample, torch.float64, seed)[1]
            if seed == 3 and sample.draw.__name__ == "normal":
                drawn = tuple(x.round() for x in drawn)  # zeros and equal values
            some = drawn if graph.batched else tuple(x[:1] for x in drawn)
            for ref, value in all_values(module, graph, facts, some).items():
                if ref in facts.nonnegative:
                    assert not bool((value[value.isfinite()] < 0).any()), ref


# ---------------------------------------------------------------- selections


SELECTIONS = [case for case in CASES if OPS[case.values[0]].kind == "selection" and not case.values[1].sums]


@pytest.mark.parametrize(("name", "sample"), SELECTIONS)
def test_selection_is_its_adjoint(name: str, sample: Sample) -> None:
    module, inputs = built(sample)
    seed = random_seed(sample)
    found = relevance_of(module, inputs, seed)
    kept = found.audit.absorbed.get("constant", torch.zeros(BATCH, dtype=torch.float64))
    assert set(found.audit.absorbed) <= {"constant"}
    assert (found.audit.score - found.audit.relevance - kept).abs().max() <= EXACT
    if not sample.adjoint:
        return
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = module(*leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    pairs = [(y, s) for y, s in zip(outputs, seed, strict=True) if y.requires_grad]
    grads = torch.autograd.grad([y for y, _ in pairs], leaves, [s for _, s in pairs], allow_unused=True)
    for relevance, grad in zip(found.inputs, grads, strict=True):
        expected = torch.zeros_like(relevance) if grad is None else grad
        assert torch.equal(relevance, expected)


# ---------------------------------------------------------------- precision


STEADY = Composite(
    [(everything, rule) for rule in (rules.Epsilon(0.1), Addition(epsilon=0.1), Product(epsilon=0.1))]
)
"""Stabilisers that keep small denominators from blowing rounding up."""


@every_sample
@pytest.mark.filterwarnings("ignore::relprop.RelevanceWarning")
def test_float32_agrees_with_float64(name: str, sample: Sample) -> None:
    exact = relevance_of(*built(sample), random_seed(sample), STEADY)
    rough = relevance_of(*built(sample, torch.float32), random_seed(sample, 0, torch.float32), STEADY)
    for a, b in zip(exact.inputs, rough.inputs, strict=True):
        assert largest(a, b.double()) <= 1e-4
    assert_closes(rough, accounts.TOLERANCE[torch.float32])


@every_sample
def test_account_closes_in_sixteen_bits(name: str, sample: Sample) -> None:
    module, inputs = built(sample, torch.bfloat16)
    try:
        module(*inputs)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"torch cannot run it in bfloat16: {error}")
    found = relevance_of(module, inputs, random_seed(sample, 0, torch.bfloat16))
    assert_closes(found, accounts.TOLERANCE[torch.bfloat16])


# ---------------------------------------------------------------- uses that are refused


REFUSED = {
    "slope": (each(lambda x: F.prelu(x, x[0, 0, :1])), "slope depends"),
    "divisor": (lambda x: torch.fmod(x, x.flip(1)), "divisor depends"),
    "dropout": (lambda x: F.dropout(x, 0.5, training=True), "dropout is active"),
    "einsum": (lambda x: torch.einsum("...a,...a,...a->...", x, x, x), "ellipsis"),
    "unknown": (lambda x: torch.linalg.pinv(x), "no relevance function"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_use_without_a_rule_is_refused_with_a_reason(name: str) -> None:
    function, reason = REFUSED[name]
    x = torch.rand(2, 3, 4, 3, dtype=torch.float64)
    with pytest.raises(relprop.UnsupportedOperation, match=reason) as error:
        relprop.Explainer(Network(function, []), example=x)
    what, where, *_, todo = str(error.value).splitlines()
    assert what.startswith("aten.")
    assert "samples.py:" in where and "output [" in where
    assert todo.strip().startswith("do: ")


class Quantised(nn.Module):
    """A part of its output goes through numbers of eight bits."""

    def __init__(self, exported: bool) -> None:
        super().__init__()
        self.exported = exported

    def forward(self, x: Tensor) -> Tensor:
        y = x + torch.quantize_per_tensor(2 * x, 0.1, 0, torch.qint8).dequantize()
        return y if self.exported or float(x.sum()) > 0 else 2 * y


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("exported", [True, False])
def test_quantised_numbers_are_refused_by_name(exported: bool) -> None:
    """Also in a model that is recorded, where their part was a constant."""
    with pytest.raises(relprop.UnsupportedOperation, match="quantised") as error:
        relprop.explain(Quantised(exported).eval(), torch.randn(2, 3), 0)
    assert "before it was quantised" in str(error.value)


# ---------------------------------------------------------------- spellings that are broken down


COMPOSITES = {
    "absolute": lambda x: x.absolute(),
    "clip": lambda x: x.clip(-0.5, 0.5),
    "hstack": lambda x: torch.hstack([x, x]),
    "inner": lambda x: torch.inner(x, x.new_ones(5, 4)),
    "tensordot": lambda x: torch.tensordot(x, x.new_ones(4, 2), 1),
    "cosine": lambda x: F.cosine_similarity(x, x.flip(-1), dim=-1),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "assignment": lambda x: _assigned(x),
}


def _assigned(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1] = x[:, 0]
    y[:, 2] += 2 * x[:, 1]
    return y


@pytest.mark.parametrize("name", COMPOSITES)
def test_composite_without_a_row_is_broken_down(name: str) -> None:
    module = Network(COMPOSITES[name], [])
    x = torch.randn(3, 3, 4, dtype=torch.float64)
    found = relevance_of(module, (x,))
    assert torch.allclose(found.outputs[0], module(x))
    assert_closes(found, EXACT)


# ---------------------------------------------------------------- what lends its shape

DONORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "type_as": lambda mask, x: mask.type_as(x),
    "to": lambda mask, x: mask.to(x),
    "expand_as": lambda mask, x: mask.expand_as(x),
    "view_as": lambda mask, x: mask.expand(x.shape).view_as(x),
    "zeros_like": lambda mask, x: torch.zeros_like(x) + mask,
    "new_full": lambda mask, x: x.new_full((1, 3), 0.5) + mask,
}


@pytest.mark.parametrize("name", DONORS)
def test_tensor_that_lends_its_shape_or_type_makes_nothing_data(name: str) -> None:
    """`mask.type_as(x)` reads the type of x alone: its product with x is a scaling, not a product of two data."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([[1.0, 0.5, 2.0]]))

        def forward(self, x: Tensor) -> Tensor:
            return (x * DONORS[name](self.mask, x)).sum(1, keepdim=True)

    x = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]], dtype=torch.float64)
    explanation = relprop.explain(Scaled().double().eval(), x, 0)
    expected = x * DONORS[name](torch.tensor([[1.0, 0.5, 2.0]], dtype=torch.float64), x)
    torch.testing.assert_close(explanation.relevance, expected, rtol=1e-5, atol=0)


# ---------------------------------------------------------------- twins: two spellings of one function

EVERY_LINEAR_RULE = (
    rules.Epsilon(0.1),
    rules.Gamma(),
    rules.AlphaBeta(),
    rules.ZPlus(),
    rules.WSquare(),
    rules.ZBox(-9.0, 9.0),
)


def assert_same_relevance(one: nn.Module, other: nn.Module, *inputs: Tensor, rule: Any = "auto") -> None:
    first, second = (relevance_of(module, inputs, rule=rule) for module in (one, other))
    for a, b in zip(first.inputs, second.inputs, strict=True):
        assert largest(a, b) <= SAME


class Mixed(nn.Module):
    """A matrix that is a buffer, at the left or the right of data."""

    def __init__(self, matrix: Tensor, left: bool) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.left = left
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.left and self.matrix.layout != torch.strided:
            return torch.sparse.mm(self.matrix, x.t()).t()
        return (self.matrix @ x.T).T if self.left else x @ self.matrix


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr", "to_sparse_csc"])
@pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")
def test_sparse_matrix_is_its_dense_twin(layout: str, left: bool) -> None:
    matrix = torch.randn(4, 4, dtype=torch.float64).clamp(min=-0.3)
    matrix[1, 2] = matrix[0] = 0
    x = torch.randn(3, 4, dtype=torch.float64)
    dense, sparse = Mixed(matrix, left), Mixed(getattr(matrix, layout)(), left)
    for rule in EVERY_LINEAR_RULE:
        assert_same_relevance(dense, sparse, x, rule=rule)
    explainer = Explainer(sparse)
    before = explainer(x, 1).relevance
    entries = sparse.matrix._values() if sparse.matrix.layout == torch.sparse_coo else sparse.matrix.values()
    entries.mul_(2)
    assert largest(explainer(x, 1).relevance, 2 * before) <= 1e-4, "a change of its entries is noticed"


def test_sparse_matrix_that_ends_the_process_is_refused() -> None:
    """Torch aborts where it makes a program functional that holds one by rows."""

    class Written(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            y = (self.matrix @ x.T).T.clone()
            y[:, 0] += 1
            return y

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Written(torch.eye(4).to_sparse_csr(), left=True)
    with pytest.raises(relprop.CaptureError, match="to_sparse_coo"):
        relprop.explain(model, torch.randn(3, 4), 0)


def test_deformable_convolution_without_offsets_is_a_convolution() -> None:
    deform = import_module("torchvision").ops.deform_conv2d
    x, w, b = (torch.randn(size, dtype=torch.float64) for size in ((3, 4, 5, 5), (2, 4, 3, 3), (2,)))

    def deformed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return deform(x, x.new_zeros(len(x), 18, 5, 5), w, b, padding=1)  # type: ignore[no-any-return]

    plain = Network(lambda x, w, b: F.conv2d(x, w, b, padding=1), [w, b])
    for rule in (*EVERY_LINEAR_RULE, rules.Flat()):
        if not isinstance(rule, (rules.Flat, rules.WSquare)):  # which count a zero's places, too
            assert_same_relevance(Network(deformed, [w, b]), plain, x, rule=rule)


def test_mask_of_a_deformable_convolution_is_a_gate() -> None:
    """Under the default rule a mask that is a sigmoid gets nothing, as a gate that is written out."""
    deform = import_module("torchvision").ops.deform_conv2d
    w, x, m = (torch.randn(s, dtype=torch.float64) for s in ((2, 4, 3, 3), (3, 4, 5, 5), (3, 9, 5, 5)))

    def modulated(x: Tensor, m: Tensor, w: Tensor) -> Tensor:
        return deform(x, x.new_zeros(len(x), 18, 5, 5), w, padding=1, mask=m.sigmoid())  # type: ignore[no-any-return]

    found = relevance_of(Network(modulated, [w]), (x, m))
    assert not bool(found.inputs[1].any())
    assert_closes(found, EXACT)


def test_largest_of_a_bag_of_embeddings_is_a_maximum_over_its_tokens() -> None:
    table, tokens = torch.randn(9, 4, dtype=torch.float64), torch.randint(0, 9, (3, 6))
    bag = Network(lambda i, w: F.embedding_bag(i, w, mode="max"), [table])
    plain = Network(lambda i, w: F.embedding(i, w).amax(1), [table])
    assert_same_relevance(bag, plain, tokens)


def test_scattered_product_is_a_product() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    one = Network(lambda x: x.new_ones(len(x), 2).scatter_reduce(1, index(0, 1, 0, 1).expand(len(x), 4), x, "prod", include_self=False), [])  # fmt: skip
    assert_same_relevance(one, Network(lambda x: x.unflatten(1, (2, 2)).prod(1), []), x)


def test_cross_product_is_its_components() -> None:
    x, w = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    zero = w.new_zeros(())
    rows = ((zero, w[2], -w[1]), (-w[2], zero, w[0]), (w[1], -w[0], zero))
    matrix = torch.stack([torch.stack(row) for row in rows])
    one = Network(lambda x, w: torch.linalg.cross(x, w.expand_as(x)), [w])
    for rule in EVERY_LINEAR_RULE:
        assert_same_relevance(one, Network(F.linear, [matrix]), x, rule=rule)


def test_squared_error_is_a_squared_difference() -> None:
    """What an autoencoder scores outliers by."""
    x, w = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    one = Network(lambda x, w: F.mse_loss(x, w.expand_as(x), reduction="none"), [w])
    assert_same_relevance(one, Network(lambda x, w: (x - w.expand_as(x)) ** 2, [w]), x)


def test_inverse_of_one_number_is_its_reciprocal() -> None:
    x = torch.randn(3, 1, 1, dtype=torch.float64)
    assert_same_relevance(Network(torch.linalg.inv, []), Network(torch.reciprocal, []), x)


def test_solution_by_a_constant_matrix_is_a_linear_layer() -> None:
    w, x = torch.randn(4, 4, dtype=torch.float64) + 3 * torch.eye(4), torch.randn(3, 4, dtype=torch.float64)
    solved = Network(lambda x, w: torch.linalg.solve(w, x.mT).mT, [w])
    for rule in EVERY_LINEAR_RULE:
        plain = Network(F.linear, [torch.linalg.inv(w)])
        first, second = (relevance_of(module, (x,), rule=rule).inputs[0] for module in (solved, plain))
        assert largest(first, second) <= 1e-9


# ---------------------------------------------------------------- uneven padding


def test_same_padding_is_exact_at_uneven_sides() -> None:
    x, w = torch.randn(2, 1, 6, dtype=torch.float64), torch.randn(1, 1, 4, dtype=torch.float64)
    named = Network(lambda x, w: F.conv1d(x, w, padding="same"), [w])
    padded = Network(lambda x, w: F.conv1d(F.pad(x, (1, 2)), w), [w])
    seed = [torch.randn(2, 1, 6, dtype=torch.float64)]
    for rule in (rules.Epsilon(), rules.Gamma(), rules.Flat(), rules.WSquare()):
        one, other = relevance_of(named, (x,), seed, rule), relevance_of(padded, (x,), seed, rule)
        assert largest(one.inputs[0], other.inputs[0]) <= SAME


def test_bias_that_is_data_is_a_summand() -> None:
    """addmm(y, x, w) is shared like y + x @ w."""
    w = torch.randn(5, 4, dtype=torch.float64)
    x, y = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    seed = [torch.randn(3, 4, dtype=torch.float64)]
    one = relevance_of(Network(lambda x, y, w: torch.addmm(y, x, w), [w]), (x, y), seed)
    other = relevance_of(Network(lambda x, y, w: y + x @ w, [w]), (x, y), seed)
    for a, b in zip(one.inputs, other.inputs, strict=True):
        assert largest(a, b) <= SAME


class Decay(nn.Module):
    """The decay between every two steps, exp(g_i − g_j) for i ≥ j, as gated linear attention has it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        g = self.gate(x).cumsum(1)
        decay = (g[:, :, None] - g[:, None, :]).tril().exp().tril()
        return (decay * g[:, None, :]).sum(1)


def test_a_step_taken_from_itself_leaves_nothing_to_share() -> None:
    torch.manual_seed(0)
    model = Decay().eval()
    x = torch.randn(3, 4)
    found, exact = relprop.explain(model, x, 2), relprop.explain(model.double(), x.double(), 2)
    assert found.audit is not None and found.audit.closes
    assert float(found.audit.magnitude.max()) < 1e3  # not 1/ε
    assert bool((found.audit.absorbed["undistributed"] != 0).all())
    torch.testing.assert_close(found.relevance.double(), exact.relevance, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- operations from outside

CALLS: list[int] = []
"""How often the kernel of the foreign operation has run."""


@torch.library.custom_op("relprop_tests::swirl", mutates_args=())
def swirl(x: Tensor) -> Tensor:
    CALLS.append(1)
    return x.flip(-1) * 2


@swirl.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


SWIRL = torch.ops.relprop_tests.swirl.default


def swirled(step: relprop.Step, relevance: Tensor) -> relprop.Shares:
    """Its rule: a selection and a factor."""
    return relprop.Shares({0: relevance.flip(-1)})


def doubled(step: relprop.Step, relevance: Tensor) -> relprop.Shares:
    """A wrong rule: it creates relevance."""
    return relprop.Shares({0: 2 * relevance})


@pytest.fixture
def foreign() -> Iterator[torch.nn.Module]:
    CALLS.clear()
    yield torch.nn.Sequential(
        torch.nn.Linear(4, 6), Network(lambda x: SWIRL(x), []), torch.nn.Linear(6, 3)
    ).eval()
    OPS.pop(name_of(SWIRL), None)


def test_operation_from_outside_is_planned_and_audited(foreign: torch.nn.Module) -> None:
    relprop.register(SWIRL, relprop.Operation("selection", swirled, "inputs"))
    explanation = relprop.explain(foreign, torch.randn(2, 4), target=1)
    assert name_of(SWIRL) in str(explanation.plan)
    assert explanation.audit is not None
    assert name_of(SWIRL) in explanation.audit.table()
    assert explanation.audit.closes


def test_wrong_rule_from_outside_fails_the_audit_by_name(foreign: torch.nn.Module) -> None:
    relprop.register("relprop_tests.swirl.default", relprop.Operation("selection", doubled))
    with pytest.raises(relprop.ConservationError, match=r"relprop_tests\.swirl\.default"):
        relprop.explain(foreign, torch.randn(2, 4), target=1)


def test_unknown_operation_is_refused_before_anything_runs(foreign: torch.nn.Module) -> None:
    with pytest.raises(relprop.UnsupportedOperation) as error:
        relprop.explain(foreign, torch.randn(2, 4), target=1)
    assert CALLS == []
    what, where, todo = str(error.value).splitlines()
    assert what == "relprop_tests.swirl.default: no relevance function"
    assert "(1, samples.py:" in where and "output [B, 6] float32" in where
    assert "relprop.register" in todo


def test_row_is_not_replaced_by_accident() -> None:
    row = OPS["aten.relu.default"]
    with pytest.raises(ValueError, match="has a row already"):
        relprop.register("aten.relu.default", row)
    relprop.register("aten.relu.default", row, replace=True)
    assert OPS["aten.relu.default"] is row


def test_row_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=f"none of {', '.join(KINDS)}"):
        relprop.register("relprop_tests.other.default", relprop.Operation("magic", swirled))


class Bag(torch.nn.Module):
    """A linear layer written as a sum of the rows of a table, weighted by the input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag, self.head = torch.nn.EmbeddingBag(6, 4, mode="sum"), torch.nn.Linear(4, 3, bias=False)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(6).expand(x.shape[0], 6).contiguous()
        return self.head(self.bag(rows, per_sample_weights=x))


def test_weights_of_a_bag_of_rows_that_are_no_data_are_explained() -> None:
    model, x = Bag(), torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = relprop.explain(model, x, 1, "epsilon").relevance
    assert torch.allclose(found, x * (model.head.weight[1] @ model.bag.weight.t()).detach(), atol=1e-5)


def test_table_of_embeddings_that_is_data_is_refused() -> None:
    class Table(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack(
                [F.embedding(torch.tensor([0, 2]), one.view(3, 2)).sum(0) for one in x.unbind()]
            )

    with pytest.raises(relprop.UnsupportedOperation, match="the table of embeddings depends"):
        relprop.explain(Table().eval(), torch.ones(2, 6), 1, "epsilon")
