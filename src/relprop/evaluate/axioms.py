"""Axioms: properties that explanations may be asked for. Each check tells a value, a tolerance and what it means.

`AXIOMS` lists them. That a method fails one is a finding, not always a fault: LRP is not implementation invariant in general,
gradient × input is not invariant to a shift of the input, and rules with β > 0 are meant to give negative relevance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relprop.engine.modules import unwrapped
from relprop.errors import InvalidInput
from relprop.evaluate.arrays import ratio, rows
from relprop.evaluate.perturb import explained
from relprop.evaluate.scoring import Scorer, called, measured
from relprop.evaluate.stability import Explain, changed_inputs, neighbours, target_of


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found.

    Attributes:
        value: of each sample, float64 (B,); NaN where it is undefined.
        passed: whether each value is within the tolerance, (B,), which what is undefined does not break; None for a value that is only to be compared.
        tolerance: the limit.
        details: what was done, in words.
    """

    value: Tensor
    passed: Tensor | None
    tolerance: float | None
    details: str


@dataclass(frozen=True, slots=True)
class Explained:
    """One method's explanation of a batch, and how to ask it again.

    Attributes:
        explain: the method; `model`: the model.
        scorer: scores and inputs; `relevance`: of the changed input, (B, …).
        samples: the samples' numbers.
    """

    explain: Explain
    model: Any
    scorer: Scorer
    relevance: Any
    samples: tuple[int, ...]

    def again(self, model: Any, values: Tensor) -> Tensor:
        """The relevance of other values, or of another model."""
        everyone = torch.arange(len(self.scorer), device=values.device)
        inputs = changed_inputs(self.scorer, values, everyone)
        return explained(self.explain(model, inputs, target_of(self.scorer, everyone)), self.scorer)


def _within(value: Tensor, tolerance: float, details: str) -> Checked:
    return Checked(value, ~(value > tolerance), tolerance, details)


def conservation_gap(relevance: Any, score: Any, tiny: float = 1e-12) -> Tensor:
    """|Σ R − f| / |f|, (B,): 0 where relevance adds up to the score; the absolute gap where |f| is tiny.

    relevance: (B, …); score: (B,).
    """
    total, f = rows(relevance).sum(1), torch.as_tensor(score, dtype=torch.float64).detach()
    size = f.abs().to(total.device)
    return (total - f.to(total.device)).abs() / torch.where(size < tiny, torch.ones_like(size), size)


def conservation(case: Explained, tolerance: float = 1e-4) -> Checked:
    """Σ R = f(x), relative."""
    return _within(
        conservation_gap(case.relevance, case.scorer.first), tolerance, "|ΣR − f| / |f|; biases may absorb"
    )


def completeness(case: Explained, baseline: Any = 0.0, tolerance: float = 1e-2) -> Checked:
    """Σ R = f(x) − f(baseline) (Sundararajan et al. 2017), relative to that difference."""
    x = case.scorer.inputs
    at = torch.as_tensor(baseline, dtype=x.dtype, device=x.device).expand(x.shape)
    everyone = torch.arange(len(x), device=x.device)
    gain = case.scorer.first - case.scorer.of(at, everyone)
    return _within(
        conservation_gap(case.relevance, gain),
        tolerance,
        "|ΣR − (f(x) − f(baseline))| / |f(x) − f(baseline)|",
    )


def positivity(case: Explained, tolerance: float = 1e-6) -> Checked:
    """No negative relevance for f(x) ≥ 0 (Montavon et al. 2017): −min R / max |R|, 0 where there is none; NaN for f(x) < 0."""
    values = rows(case.relevance)
    largest = values.abs().amax(1)
    value = ratio(-values.amin(1).clamp(max=0), largest)
    value = torch.where(case.scorer.first.to(value.device) < 0, torch.full_like(value, torch.nan), value)
    return _within(
        value, tolerance, "−min R / max |R|; αβ with β > 0 and ε are meant to give negative relevance"
    )


def continuity(case: Explained, samples: int = 10, radius: float = 0.02, seed: int = 0) -> Checked:
    """max ‖R(x) − R(x′)‖₁ / ‖x − x′‖₂ over close x′ (Montavon et al. 2018): to compare methods by."""
    copies = neighbours(case.scorer.inputs, case.samples, samples, radius, "uniform", seed)
    count = len(case.scorer)
    own = torch.arange(count, device=copies.device).repeat_interleave(samples)
    again = case.explain(case.model, changed_inputs(case.scorer, copies, own), target_of(case.scorer, own))
    away = (rows(explained(again, case.scorer)) - rows(case.relevance)[own]).abs().sum(1).reshape(count, -1)
    moved = (rows(copies) - rows(case.scorer.inputs)[own]).norm(dim=1).reshape(count, -1)
    return Checked(ratio(away, moved).amax(1), None, None, f"{samples} neighbours within {radius}")


def symmetry(case: Explained, pairs: Sequence[tuple[int, int]] = (), tolerance: float = 1e-5) -> Checked:
    """Inputs that the model treats alike and that are equal get equal relevance: max |R_i − R_j| / max |R| over pairs.

    `pairs`: positions in the flattened input. Pairs for which the model is not symmetric at this input, or whose values
    differ, do not count; NaN where none is left.
    """
    x, values = case.scorer.inputs, rows(case.relevance)
    flat, everyone = x.flatten(1), torch.arange(len(x), device=x.device)
    worst = torch.full((len(x),), torch.nan, dtype=torch.float64, device=values.device)
    for i, j in pairs:
        probe = flat.clone()
        probe[:, i], probe[:, j] = flat[:, i] + 1, flat[:, j]
        other = flat.clone()
        other[:, i], other[:, j] = flat[:, i], flat[:, j] + 1
        alike = torch.isclose(
            case.scorer.of(probe.reshape(x.shape), everyone), case.scorer.of(other.reshape(x.shape), everyone), rtol=1e-5, atol=1e-8
        )  # fmt: skip
        gap = (values[:, i] - values[:, j]).abs() / values.abs().amax(1).clamp(
            min=torch.finfo(values.dtype).tiny
        )
        counts = (alike & (flat[:, i] == flat[:, j])).to(values.device)
        worst = torch.where(counts, torch.fmax(worst, gap), worst)
    return _within(worst, tolerance, f"{len(pairs)} pairs")


class _Ignoring(nn.Module):
    """The model, and an input more, whose values do not matter: the last row of the first dimension after the batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.model(x[:, :-1])


def dummy(case: Explained, tolerance: float = 1e-9) -> Checked:
    """Inputs that the model ignores get no relevance: Σ|R of the ignored| / Σ|R|, with a row of ignored inputs set beside."""
    if len(case.scorer.leaves) != 1 or not isinstance(unwrapped(case.model), nn.Module):
        raise InvalidInput(
            "dummy: it sets an ignored row beside the input\n  do: give a torch.nn.Module of one input"
        )
    x = case.scorer.inputs
    wide = torch.cat([x, x[:, :1]], 1)
    everyone = torch.arange(len(x), device=x.device)
    wider = _Ignoring(unwrapped(case.model))
    found = explained(case.explain(wider, wide, target_of(case.scorer, everyone)), case.scorer)
    ignored, everything = rows(found[:, -1:]).abs().sum(1), rows(found).abs().sum(1)
    return _within(
        ratio(ignored, everything), tolerance, "an ignored row beside the input; flat rules may break it"
    )


def input_invariance(case: Explained, shift: float = 1.0, tolerance: float = 1e-3) -> Checked:
    """Relevance stays when all inputs are shifted and the first bias undoes it (Kindermans et al. 2019): ‖R − R′‖₁ / ‖R‖₁.

    Raises `InvalidInput` where the first layer with parameters is no linear layer or unpadded convolution with a bias.
    """
    model = unwrapped(case.model)
    twin = copy.deepcopy(model) if isinstance(model, nn.Module) else None
    first = (
        next((m for m in twin.modules() if any(True for _ in m.parameters(recurse=False))), None)
        if twin
        else None
    )
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    padded = not isinstance(first, nn.Linear) and any(getattr(first, "padding", ()) or ())
    if not isinstance(first, kinds) or first.bias is None or padded:
        raise InvalidInput(
            "input_invariance: the first layer has no bias that could undo a shift of all inputs\n  do: it is for models that begin with a linear layer or an unpadded convolution, with a bias"
        )
    assert twin is not None
    with torch.no_grad():
        first.bias -= shift * first.weight.flatten(1).sum(1)
    x = case.scorer.inputs + shift
    everyone = torch.arange(len(x), device=x.device)
    scorer = case.scorer
    moved = Scorer(twin, scorer.leaves, scorer.spec, scorer.batched, scorer.at, scorer.weights, scorer.target, scorer.kind, scorer.first, scorer.output)  # fmt: skip
    again = measured(scorer.kind, called(moved, x, everyone), scorer.weights, scorer.target)
    scale = scorer.first.abs().clamp(min=1)
    if bool(((again - scorer.first).abs() > 1e-3 * scale).any()):
        raise InvalidInput(
            "input_invariance: the shifted model gives other scores\n  do: it is for models whose first layer sees the input as it is"
        )
    before, after = rows(case.relevance), rows(case.again(twin, x))
    return _within(
        ratio((before - after).abs().sum(1), before.abs().sum(1)), tolerance, f"a shift of {shift:g}"
    )


def implementation_invariance(case: Explained, twin: Any = None, tolerance: float = 1e-3) -> Checked:
    """Equal functions get equal explanations (Sundararajan et al. 2017): ‖R − R′‖₁ / ‖R‖₁ for `twin`, a model that computes the same.

    Raises `InvalidInput` for a twin whose scores differ. LRP is not invariant in general.
    """
    if twin is None:
        raise InvalidInput(
            "implementation_invariance: no second model\n  do: give twin=, a model that computes the same"
        )
    x, scorer = case.scorer.inputs, case.scorer
    everyone = torch.arange(len(x), device=x.device)
    other = Scorer(twin, scorer.leaves, scorer.spec, scorer.batched, scorer.at, scorer.weights, scorer.target, scorer.kind, scorer.first, scorer.output)  # fmt: skip
    again = other.of(x, everyone)
    if bool(((again - scorer.first).abs() > 1e-3 * scorer.first.abs().clamp(min=1)).any()):
        raise InvalidInput(
            "implementation_invariance: the twin gives other scores\n  do: give a model that computes the same"
        )
    before, after = rows(case.relevance), rows(case.again(twin, x))
    return _within(
        ratio((before - after).abs().sum(1), before.abs().sum(1)), tolerance, "the twin's explanation"
    )


def selectivity(case: Explained, **options: Any) -> Checked:
    """Removing what is called relevant lowers the score: the area under the curve, patches set to 0 (Montavon et al. 2018)."""
    from relprop.evaluate.perturb import arranged

    side = max(1, case.scorer.inputs.shape[-1] // 8) if case.scorer.inputs.dim() == 4 else 1
    settings = {"regions": side, "replacement": 0.0, **options}
    curves = arranged(case.scorer, samples=case.samples, **settings).curve(case.relevance, constant="nan")
    return Checked(curves.auc, None, None, f"patches of {side}, area under the curve")


AXIOMS: dict[str, Callable[..., Checked]] = {
    check.__name__: check
    for check in (
        conservation, completeness, positivity, continuity, selectivity, symmetry, dummy, input_invariance, implementation_invariance,
    )
}  # fmt: skip
"""The checks by name; a new one is a function of an `Explained` and of options with defaults."""
