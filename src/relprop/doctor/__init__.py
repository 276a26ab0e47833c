"""Does the engine hold its promises on this model? One finding a promise."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from relprop.errors import CaptureError, ConservationError, InvalidInput, UnsupportedOperation
from relprop.explain import Explainer, Inputs, arguments, check_inputs, composite_of
from relprop.targets import Target

if TYPE_CHECKING:
    from relprop.doctor.checks import CHECKS, Check
    from relprop.doctor.findings import Finding, Measured, Report
    from relprop.doctor.patient import Patient

__all__ = ["CHECKS", "Check", "Finding", "Measured", "Report", "doctor"]


def __getattr__(name: str) -> Any:
    """The checks and their findings, loaded when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'relprop.doctor' has no attribute {name!r}")
    place = "checks" if name in ("CHECKS", "Check") else "findings"
    return getattr(import_module(f"relprop.doctor.{place}"), name)


@torch.inference_mode(False)
def doctor(
    model: Any,
    inputs: Inputs,
    target: Target = None,
    rules: Any = "auto",
    *,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Ask of a model all that relprop promises: metamorphic properties, accounts, formulas, precision.

    Each check explains inputs drawn at random around those given (three samples); laws that rounding blurs are tested
    on a copy of the model in float64. The model itself is not changed.

    Args:
        model, target, rules: as for `relprop.explain`; without a target each sample's largest output is explained.
        inputs: an example; shapes, types and the spread of its values are kept, token ids are shuffled.
        seed: of the random inputs.
        progress: called with the name of each check before it runs.

    Returns:
        A `Report`: `report.healthy`, and a `Finding` with figure, limit and verdict for each check.

    Raises:
        InvalidInput: the model, inputs or rules are none that could be explained.
    """
    from relprop.doctor.checks import CHECKS
    from relprop.doctor.findings import Report
    from relprop.doctor.patient import Patient

    explainer = Explainer(model, rules)
    check_inputs(explainer.model, *arguments(inputs))
    patient = Patient(explainer.model, inputs, target, composite_of(rules), seed)
    findings = []
    for name, check in CHECKS.items():
        if progress is not None:
            progress(name)
        findings.append(_asked(name, check, patient))
    return Report(tuple(findings))


def _asked(name: str, check: Check, patient: Patient) -> Finding:
    from relprop.doctor.findings import Finding

    try:
        measured = check.measure(patient)
    except InvalidInput as error:
        if name == "capture":
            raise
        return Finding(name, check.promise, None, None, "fails", str(error).splitlines()[0])
    except (CaptureError, ConservationError, UnsupportedOperation) as error:
        return Finding(name, check.promise, None, None, "fails", str(error).splitlines()[0])
    limit = measured.warning if measured.warning is not None else measured.limit
    return Finding(name, check.promise, measured.figure, limit, measured.verdict, measured.detail)
