"""The audit: where the score went, per operation and in total, and whether the account adds up."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from relprop.engine.plan import table
from relprop.errors import ConservationError, InvalidInput, RelevanceWarning

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-2}
"""|gap| allowed, as a part of max(1, |score|, magnitude), by the precision of the model."""

LARGE = 1e4
"""A magnitude above this many times the score (and 1) is worth a warning: most relevance then cancels."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """The account of one operation. Tensors (B,) float64: what came in from above, what it handed on, what it kept."""

    name: str
    operation: str
    module: str
    source: str
    rule: str
    received: Tensor
    passed: Tensor
    absorbed: dict[str, Tensor]
    magnitude: Tensor | None = None  # Σ|R| that arrived, where it was measured

    @property
    def gap(self) -> Tensor:
        """What the account lacks: rounding error, or a defect."""
        gap = self.received - self.passed
        for amount in self.absorbed.values():
            gap = gap - amount
        return gap


@dataclass(frozen=True, slots=True, eq=False)
class Audit:
    """Where the score went. All tensors have shape (B,) and are float64.

    `score` = `relevance` + Σ `absorbed` + `gap`, where the gap is rounding error and nothing else.
    `magnitude` is the largest Σ|R| at any operation: how far positive and negative relevance were blown up on the way.
    """

    score: Tensor
    relevance: Tensor
    absorbed: dict[str, Tensor]
    magnitude: Tensor
    entries: tuple[Entry, ...] = field(repr=False)
    precision: torch.dtype = torch.float32

    @property
    def gap(self) -> Tensor:
        """score − relevance − Σ absorbed, (B,)."""
        gap = self.score - self.relevance
        for amount in self.absorbed.values():
            gap = gap - amount
        return gap

    @property
    def tolerance(self) -> Tensor:
        """The largest |gap| that rounding explains, (B,)."""
        scale = torch.maximum(self.score.abs(), self.magnitude).clamp(min=1)
        return TOLERANCE[self.precision] * scale

    @property
    def closes(self) -> bool:
        """Whether the account of every sample adds up."""
        return bool((self.gap.abs() <= self.tolerance).all())

    def check(self) -> None:
        """Raise `ConservationError` where the account does not close; warn where relevance was blown up on the way."""
        if not self.closes:
            excess = torch.nan_to_num(self.gap.abs() / self.tolerance, nan=float("inf"))
            sample = int(excess.argmax())
            first = next((e for e in self.entries if not bool(e.gap[sample].isfinite())), None)
            if first is not None:
                raise ConservationError(
                    f"relevance of sample {sample} has grown beyond the numbers of {str(self.precision).removeprefix('torch.')}"
                    f"\n  at {first.operation}, {first.name} ({first.module or 'the model itself'}, {first.source}),"
                    f" rule {first.rule}: positive and negative parts nearly cancel there, step after step\n"
                    "  do: use a rule with less cancellation (a larger epsilon, Gamma; in recurrent layers the preset lrp_all),"
                    " or weights and inputs in float64"
                )
            worst = max(
                self.entries, key=lambda e: float(torch.nan_to_num(e.gap[sample].abs(), nan=float("inf")))
            )
            raise ConservationError(
                f"the account of sample {sample} lacks {float(self.gap[sample]):.3g} of a score of {float(self.score[sample]):.4g}"
                f" (rounding explains {float(self.tolerance[sample]):.1g})\n"
                f"  at {worst.operation}, {worst.name} ({worst.module or 'the model itself'}, {worst.source}), rule {worst.rule}:"
                f" it received {float(worst.received[sample]):.6g} and accounts for"
                f" {float(worst.received[sample] - worst.gap[sample]):.6g}\n"
                "  do: report this as a defect of that operation; float64 weights and inputs tell rounding from a wrong rule"
            )
        ratio = self.magnitude / self.score.abs().clamp(min=1)
        sample = int(ratio.argmax())
        if float(ratio[sample]) > LARGE:
            measured = [e for e in self.entries if e.magnitude is not None]
            worst = max(measured, key=lambda e: float(e.magnitude[sample]))  # type: ignore[index]
            warnings.warn(
                f"relevance was blown up to {float(ratio[sample]):.2g} times the score at {worst.operation}"
                f" ({worst.module or 'the model itself'}, {worst.source}): positive and negative parts nearly cancel there;"
                " a rule with less cancellation (Gamma, ZPlus, a larger epsilon) gives a calmer picture",
                RelevanceWarning,
                stacklevel=4,
            )

    def table(self, sample: int = 0) -> str:
        """The account of one sample per operation, in the order of the walk (from the output to the input)."""
        self._check_sample(sample)
        rows: list[tuple[str, ...]] = []
        for e in self.entries:
            kept = ", ".join(
                f"{reason} {float(a[sample]):+.4g}" for reason, a in e.absorbed.items() if float(a[sample])
            )
            size = "" if e.magnitude is None else f"{float(e.magnitude[sample]):.4g}"
            rows.append(
                (e.operation, e.module or "·", e.rule, f"{float(e.received[sample]):+.6g}", f"{float(e.passed[sample]):+.6g}", kept, f"{float(e.gap[sample]):+.1e}", size)
            )  # fmt: skip
        return table(
            ("operation", "module", "rule", "received", "passed on", "absorbed", "gap", "Σ|R|"), rows
        )

    def summary(self, sample: int = 0) -> str:
        """The total account of one sample, in lines."""
        self._check_sample(sample)
        lines = [
            ("score", f"{float(self.score[sample]):+.6g}"),
            ("relevance", f"{float(self.relevance[sample]):+.6g}"),
        ]
        lines += [(f"absorbed: {reason}", f"{float(a[sample]):+.6g}") for reason, a in self.absorbed.items()]
        lines += [
            ("gap", f"{float(self.gap[sample]):+.1e}"),
            ("magnitude", f"{float(self.magnitude[sample]):.4g}"),
        ]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines)

    def _check_sample(self, sample: int) -> None:
        if not 0 <= sample < len(self.score):
            raise InvalidInput(f"sample: there is no {sample}\n  do: give 0 to {len(self.score) - 1}")

    def __str__(self) -> str:
        return self.summary()


def total(entries: list[Entry], score: Tensor, relevance: Tensor, precision: torch.dtype) -> Audit:
    """The audit of a walk from its operations' accounts."""
    amounts: dict[str, list[Tensor]] = {}
    for entry in entries:
        for reason, amount in entry.absorbed.items():
            amounts.setdefault(reason, []).append(amount)
    absorbed = {reason: torch.stack(parts).sum(0) for reason, parts in amounts.items()}
    sizes = [entry.magnitude for entry in entries if entry.magnitude is not None]
    magnitude = torch.stack([torch.zeros_like(score), *sizes]).amax(0)
    some = torch.stack([*absorbed.values()]).count_nonzero(1).tolist() if absorbed else []
    kept = {reason: amount for (reason, amount), count in zip(absorbed.items(), some, strict=True) if count}
    return Audit(score, relevance, kept, magnitude, tuple(entries), precision)


def join(audits: list[Audit]) -> Audit:
    """One audit of several batches."""
    reasons = list(dict.fromkeys(reason for audit in audits for reason in audit.absorbed))

    def cat(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts)

    absorbed = {
        reason: cat([audit.absorbed.get(reason, torch.zeros_like(audit.score)) for audit in audits])
        for reason in reasons
    }
    entries = tuple(
        _join_entries(list(column)) for column in zip(*(audit.entries for audit in audits), strict=False)
    )
    return Audit(
        cat([a.score for a in audits]),
        cat([a.relevance for a in audits]),
        absorbed,
        cat([a.magnitude for a in audits]),
        entries,
        audits[0].precision,
    )


def _join_entries(column: list[Entry]) -> Entry:
    reasons = list(dict.fromkeys(reason for entry in column for reason in entry.absorbed))
    zeros = [torch.zeros_like(entry.received) for entry in column]
    first = column[0]
    sizes = [entry.magnitude for entry in column]
    return Entry(
        first.name,
        first.operation,
        first.module,
        first.source,
        first.rule,
        torch.cat([entry.received for entry in column]),
        torch.cat([entry.passed for entry in column]),
        {r: torch.cat([e.absorbed.get(r, z) for e, z in zip(column, zeros, strict=True)]) for r in reasons},
        None
        if any(size is None for size in sizes)
        else torch.cat([size for size in sizes if size is not None]),
    )
