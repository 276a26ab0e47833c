"""The promises of the engine, asked of the user's own model: `CHECKS` is the table; a new one is a function and a row."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from relprop.doctor import patient as patients
from relprop.doctor.findings import Measured
from relprop.doctor.patient import SAMPLES, Patient, difference, explained, loose, outputs, part, tensors
from relprop.doctor.textbook import compare
from relprop.engine import capture as capturing
from relprop.engine.analyse import analyse
from relprop.engine.audit import LARGE
from relprop.engine.batch import batch_size
from relprop.engine.canonise import REWRITES, fold_batch_norm
from relprop.engine.graph import value_of
from relprop.engine.ops import OPS
from relprop.engine.plan import Composite
from relprop.engine.propagate import HALF
from relprop.engine.rules import Addition, Epsilon
from relprop.explain import Captured, Explainer, arguments
from relprop.explain.captured import run_eagerly
from relprop.targets import main_output

ROUNDING = 1e-6
"""How far an operation's float64 messages may be from the formula's: the formula's sums cancel too."""


@dataclass(frozen=True, slots=True)
class Check:
    """One row: what is promised, and the function that measures it on a patient."""

    promise: str
    measure: Callable[[Patient], Measured]


def computes_the_same(patient: Patient) -> Measured:
    """The captured graph against the model itself, for one sample and for three."""
    if not isinstance(patient.model, torch.nn.Module):
        return Measured(None, detail="an exported program is its own graph")
    worst, where = 0.0, ""
    for number in range(2):
        whole = patient.drawn(number)
        for count in (SAMPLES, 1):
            inputs = part(whole, 0, count)
            args, kwargs = arguments(inputs)
            expected = tensors(run_eagerly(patient.model, args, kwargs))
            explainer = Explainer(patient.model, patient.composite)
            found = _forwarded(explainer, inputs, count)
            gap = difference(found[: len(expected)], expected[: len(found)])
            if gap > worst:
                worst, where = gap, f"{count} sample{'s' * (count > 1)}, draw {number}"
    return Measured(worst, loose(patients.precision(patient.model)), f"worst for {where}" if where else "")


def _forwarded(explainer: Explainer, inputs: Any, count: int) -> list[Tensor]:
    """The outputs of the captured graph, sample by sample where it holds for one."""
    from relprop.explain import forward

    args, kwargs = arguments(inputs)
    captured, program = explainer.program(args, kwargs)
    if captured.graph.batched or count == 1:
        return tensors(forward(explainer, captured, program, args, kwargs).output)
    singles = []
    for i in range(count):
        some = part((args, kwargs), i, i + 1, count)
        captured, program = explainer.program(*some)
        singles.append(tensors(forward(explainer, captured, program, *some).output))
    return [torch.cat(column) for column in zip(*singles, strict=True)]


def rewrites_compute_the_same(patient: Patient) -> Measured:
    """The graph after each rewrite against the graph before it."""
    model, inputs, _ = patient.precise
    args, kwargs = arguments(inputs)
    graph = capturing.capture(model, args, kwargs)
    if not graph.batched:
        inputs = part(inputs, 0, 1)
    before, worst, where = None, 0.0, ""
    for rewrite in (None, *REWRITES):
        if rewrite is fold_batch_norm and not patient.composite.fold:
            continue
        graph = graph if rewrite is None else rewrite(graph)
        captured = Captured(graph, analyse(graph, OPS))
        found = outputs(graph, patients.run(captured, model, inputs)[1])
        if before is not None and rewrite is not None:
            gap = difference(found, before)
            if gap > worst:
                worst, where = gap, rewrite.__name__
        before = found
    dtype = patients.precision(model)
    return Measured(
        worst, 1e-9 if dtype == torch.float64 else loose(dtype), f"worst at {where}" if where else ""
    )


def facts_are_true(patient: Patient) -> Measured:
    """Values that are said never to be negative, on random inputs."""
    model, _, _ = patient.precise
    worst, where, count = 0.0, "", 0
    for number in range(2):
        inputs = (
            patients.as_double(patient.drawn(number)) if model is patient.exact else patient.drawn(number)
        )
        captured, inputs = _captured(patient, model, inputs)
        values = patients.run(captured, model, inputs)[1]
        nodes = {node.name: node for node in captured.graph.nodes}
        count = len(captured.facts.nonnegative)
        for ref in captured.facts.nonnegative:
            value = value_of(values, ref)
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                low = -float(value.min())
                if low > worst:
                    worst, where = low, f"{nodes[ref.name].operation} at {nodes[ref.name].where()}"
    return Measured(worst, 0.0, f"negative: {where}" if where else f"{count} values")


def _captured(patient: Patient, model: Any, inputs: Any) -> tuple[Captured, Any]:
    """The captured graph, and as many of the samples as it takes."""
    explainer = Explainer(model, patient.composite)
    captured, _ = explainer.program(*arguments(inputs))
    if captured.graph.batched:
        return captured, inputs
    inputs = part(inputs, 0, 1)
    return explainer.program(*arguments(inputs))[0], inputs


def rules_are_the_papers(patient: Patient) -> Measured:
    """Units drawn from every operation against the printed formula of its rule."""
    model, inputs, _ = patient.precise
    captured, inputs = _captured(patient, model, inputs)
    plan = Explainer(model, patient.composite).program(*arguments(inputs))[1].plan
    program, values = patients.run(captured, model, inputs, plan)
    batch = batch_size(arguments(inputs))
    found, skipped = compare(program, values, captured.store, batch, patient.seed)
    if not found:
        return Measured(None, detail="no operation whose rule has a formula of its own")
    worst = max(found, key=lambda one: one.difference)
    left = ", ".join(f"{count} {kind}" for kind, count in skipped.items())
    detail = f"{len(found)} operations" + (f"; judged by the account alone: {left}" if left else "")
    limit = ROUNDING if patients.precision(model) == torch.float64 else 1e-2
    if worst.difference > limit:
        detail = f"{worst.node.operation}, {worst.rule} at {worst.node.where()}; {detail}"
    return Measured(worst.difference, limit, detail)


def account_closes(patient: Patient) -> Measured:
    """The audit of the whole and of every operation, as a part of what rounding explains."""
    worst, where = 0.0, ""
    for number in range(2):
        inputs = patient.drawn(number)
        explainer = Explainer(patient.model, patient.composite)
        audit = explained(explainer, inputs, patient.question(patient.model, inputs)).audit
        assert audit is not None
        whole = float((audit.gap.abs() / audit.tolerance).max())
        if whole > worst:
            worst, where = whole, "the whole"
        for entry in audit.entries:
            size = torch.maximum(audit.magnitude, entry.received.abs())
            one = float(
                (
                    entry.gap.abs()
                    / (audit.tolerance * (size / audit.magnitude.clamp(min=1e-300)).clamp(min=1))
                ).max()
            )
            if one > worst:
                worst, where = (
                    one,
                    f"{entry.operation} ({entry.module or 'the model itself'}, {entry.source})",
                )
    return Measured(worst, 1.0, f"largest at {where}" if where else "")


def samples_are_alone(patient: Patient) -> Measured:
    """Three samples together against each of them alone, and in another order."""
    model, inputs, rounding = patient.precise
    question = patient.question(model, inputs)
    explainer = Explainer(model, patient.composite)
    together = explained(explainer, inputs, question)
    worst = 0.0
    for i in range(SAMPLES):
        alone = explained(explainer, part(inputs, i, i + 1), part(question, i, i + 1))
        worst = max(
            worst,
            difference(alone.relevance, part(together.relevance, i, i + 1)),
            difference(alone.score, together.score[i : i + 1]),
        )
    order = torch.tensor([2, 0, 1])

    def turned(structure: Any) -> Any:
        return pytree.tree_map(
            lambda leaf: leaf[order.to(leaf.device)] if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == SAMPLES else leaf,
            structure,
        )  # fmt: skip

    other = explained(explainer, turned(inputs), turned(question))
    worst = max(worst, difference(other.relevance, turned(together.relevance)))
    return Measured(worst, 100 * rounding)


def calls_leave_nothing(patient: Patient) -> Measured:
    """The same inputs explained before and after others, to the last bit."""
    explainer = Explainer(patient.model, patient.composite)
    first, other = patient.drawn(0), patient.drawn(1)
    question = patient.question(patient.model, first)
    before = explained(explainer, first, question)
    explained(explainer, other, patient.question(patient.model, other))
    again = explained(explainer, first, question)
    fresh = explained(Explainer(patient.model, patient.composite), first, question)
    pairs = [(a, b) for other in (again, fresh) for a, b in zip(tensors(before.relevance), tensors(other.relevance), strict=True)]  # fmt: skip
    worst = max(difference([a], [b]) for a, b in pairs)
    exact = 0.0 if all(leaf.device.type == "cpu" for leaf in tensors(before.relevance)) else 1e-5
    return Measured(worst, exact)


def linear_in_the_seed(patient: Patient) -> Measured:
    """−3 times a score has −3 times its relevance; two scores together have the sum of theirs."""
    model, inputs, rounding = patient.precise
    first = patient.question(model, inputs)
    if callable(first) and not isinstance(first, Tensor):
        return Measured(None, detail="the target is a callable")
    generator = torch.Generator().manual_seed(patient.seed)
    second = torch.randn(first.shape, generator=generator, dtype=torch.float64).to(first)
    explainer = Explainer(model, patient.composite)
    one, two, scaled, both = explainer_many(explainer, inputs, [first, second, -3 * first, first + second])
    size = _size(one) + _size(two)
    gaps = [
        *(float((c + 3 * a).abs().max()) for a, c in zip(one, scaled, strict=True)),
        *(float((d - a - b).abs().max()) for a, b, d in zip(one, two, both, strict=True)),
    ]
    return Measured(max(gaps) / max(size, 1e-300), rounding)


def explainer_many(explainer: Explainer, inputs: Any, targets: list[Any]) -> list[list[Tensor]]:
    """The relevance of the inputs for each target, walked one after the other."""
    return [tensors(explained(explainer, inputs, target).relevance) for target in targets]


def _size(relevance: list[Tensor]) -> float:
    return max((float(tensor.abs().max()) for tensor in relevance if tensor.numel()), default=0.0)


_PLAIN = Composite(
    [
        *((where, Epsilon(0.0)) for where in ("weighted", "batch_norm", "pool")),
        ("addition", Addition(epsilon=0.0)),
    ],
    name="lrp0",
)
_LINEAR = ("linear", "convolution", "batch_norm", "pool", "addition", "max", "selection")
"""Kinds of operations that are linear in their data, or linear piece by piece."""
_PIECEWISE = (
    "aten.relu.", "aten.relu_.", "aten.leaky_relu.", "aten.leaky_relu_.", "aten._prelu_kernel.", "aten.prelu.",
    "aten.dropout.", "aten.clone.", "aten._to_copy.", "aten.alias.", "aten.contiguous.", "aten.neg.",
    "aten.mul", "aten.div",
)  # fmt: skip
"""Activations that are so too; products and quotients stand for scalings by constants here."""


def is_gradient_times_input(patient: Patient) -> Measured:
    """Under LRP-0 everywhere a piecewise linear network's relevance is its gradient times its input (Bach 2015)."""
    model, inputs, rounding = patient.precise
    if not isinstance(model, torch.nn.Module):
        return Measured(None, detail="an exported program has no gradient")
    explainer = Explainer(model, _PLAIN)
    _, program = explainer.program(*arguments(inputs))
    for row in program.plan:
        piecewise = row.kind == "activation" and row.operation.startswith(_PIECEWISE)
        if row.kind not in _LINEAR and not piecewise:
            return Measured(None, detail=f"only for piecewise linear networks; this one has {row.operation}")
    question = patient.question(model, inputs)
    if not isinstance(question, Tensor):
        return Measured(None, detail="the target is a callable")
    found = explained(explainer, inputs, question).relevance
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if not all(leaf.is_floating_point() for leaf in leaves):
        return Measured(None, detail="the inputs are token ids")
    args, kwargs = pytree.tree_map(lambda leaf: leaf.detach().clone().requires_grad_() if isinstance(leaf, Tensor) else leaf, arguments(inputs))  # fmt: skip
    own = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    with torch.enable_grad():
        score = (main_output(copy.deepcopy(model)(*args, **kwargs)) * question).sum()
    gradients = torch.autograd.grad(score, own, allow_unused=True)
    expected = [
        torch.zeros_like(x) if g is None else x.detach() * g for x, g in zip(own, gradients, strict=True)
    ]
    return Measured(difference(found, expected), 1000 * rounding)


def precision_suffices(patient: Patient) -> Measured:
    """The user's precision against double: what rounding does to relevance, as a part of Σ|R| on the way."""
    if patient.exact is None:
        return Measured(None, detail="the model cannot be copied to float64")
    dtype = patients.precision(patient.model)
    if dtype == torch.float64:
        return Measured(None, detail="the model is in float64 already")
    inputs = patient.drawn(0)
    doubled = patients.as_double(inputs)
    question = patient.question(patient.exact, doubled)
    mine = question.to(dtype) if isinstance(question, Tensor) else question
    rough = explained(Explainer(patient.model, patient.composite), inputs, mine)
    fine = explained(Explainer(patient.exact, patient.composite), doubled, question)
    assert fine.audit is not None
    worst = 0.0
    for a, b in zip(tensors(rough.relevance), tensors(fine.relevance), strict=True):
        gap = (a.double() - b).flatten(1).abs().sum(1) if a.dim() > 1 else (a.double() - b).abs()
        scale = torch.maximum(fine.audit.magnitude, fine.score.double().abs()).clamp(min=1e-300)
        worst = max(worst, float((gap / scale).max()))
    detail = "ε this small lets sums that cancel decide; Gamma, ZPlus or a larger ε are calmer"
    steady = 0.2 if dtype in HALF else 1e-2
    return Measured(worst, 0.25 if dtype not in HALF else 1.0, detail if worst > steady else "", steady)


def weights_are_read_live(patient: Patient) -> Measured:
    """After its weights change, the same explainer explains the model of now."""
    if patient.copied is None:
        return Measured(None, detail="the model cannot be copied")
    model = copy.deepcopy(patient.copied)
    explainer = Explainer(model, patient.composite)
    inputs = patient.drawn(0)
    question = patient.question(model, inputs)
    explained(explainer, inputs, question)
    generator = torch.Generator().manual_seed(patient.seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point():
                noise = 1 + 0.1 * torch.rand(weight.shape, generator=generator, dtype=torch.float64)
                weight.mul_(noise.to(weight))
    after = explained(explainer, inputs, question)
    fresh = explained(Explainer(copy.deepcopy(model), patient.composite), inputs, question)
    worst = max(difference(after.relevance, fresh.relevance), difference(after.score, fresh.score))
    return Measured(worst, 10 * loose(patients.precision(model)))


def model_is_untouched(patient: Patient) -> Measured:
    """Weights, gradients, modes, hooks and attributes of the model before the first of all checks and after them."""
    if not isinstance(patient.model, torch.nn.Module):
        return Measured(None, detail="an exported program has no state that could change")
    after = patients.state_of(patient.model)
    keys = patient.before.keys() | after.keys()
    changed = [key for key in keys if not _equal(patient.before.get(key), after.get(key))]
    return Measured(float(len(changed)), 0.0, f"changed: {', '.join(sorted(changed)[:5])}" if changed else "")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)))
    return type(a) is type(b) and bool(a == b)


def relevance_stays_small(patient: Patient) -> Measured:
    """How far positive and negative relevance are blown up on the way, as a multiple of the score."""
    inputs = patient.drawn(0)
    audit = explained(Explainer(patient.model, patient.composite), inputs, patient.question(patient.model, inputs)).audit  # fmt: skip
    assert audit is not None
    ratio = audit.magnitude / audit.score.abs().clamp(min=1)
    figure = float(ratio.max())
    return Measured(figure, float("inf"), "Gamma and ZPlus cancel less" if figure > LARGE else "", LARGE)


CHECKS: dict[str, Check] = {
    "capture": Check("the captured graph computes the model's output", computes_the_same),
    "rewrites": Check("folding and fusing leave the output as it is", rewrites_compute_the_same),
    "signs": Check("values said never to be negative are not", facts_are_true),
    "rules": Check("each operation hands on what its rule's formula says", rules_are_the_papers),
    "account": Check("the account closes, of the whole and of each operation (1 = rounding)", account_closes),
    "samples": Check("a sample's relevance does not depend on the others in the batch", samples_are_alone),
    "calls": Check("an explanation does not depend on earlier ones", calls_leave_nothing),
    "seed": Check("relevance is linear in the score that is explained", linear_in_the_seed),
    "gradient": Check("LRP-0 of a piecewise linear network is gradient × input", is_gradient_times_input),
    "precision": Check("the model's precision suffices for its relevance", precision_suffices),
    "weights": Check("changed weights change the explanation at once", weights_are_read_live),
    "untouched": Check("the model is as it was", model_is_untouched),
    "magnitude": Check("relevance is not blown up on the way (Σ|R| over the score)", relevance_stays_small),
}
"""From the name of a check to what it promises and how it measures it, in the order of the report."""
