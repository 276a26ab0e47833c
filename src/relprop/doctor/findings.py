"""What the doctor says: one finding a promise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from relprop.engine.plan import table

Verdict = Literal["holds", "fails", "warns", "not asked"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether one promise holds.

    Attributes:
        check: its name, a key of `CHECKS`.
        promise: what is due, in one line.
        figure: what was measured; None where nothing was.
        limit: the largest figure with which the promise holds.
        verdict: "holds"; "fails"; "warns" where no promise is broken but the picture may be unsteady; "not asked" where
            the model or its rules do not allow the question.
        detail: where it fails, why it was not asked, how much was compared.
    """

    check: str
    promise: str
    figure: float | None
    limit: float | None
    verdict: Verdict
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The finding as plain values, for machines."""
        return {
            "check": self.check,
            "promise": self.promise,
            "figure": self.figure,
            "limit": self.limit,
            "verdict": self.verdict,
            "detail": self.detail,
        }


@dataclass(frozen=True, slots=True)
class Measured:
    """What a check returns: its figure, the limit, and what there is to say. `figure` None: it could not be asked.

    A figure above `limit` fails; one above `warning`, where there is one, warns.
    """

    figure: float | None
    limit: float | None = None
    detail: str = ""
    warning: float | None = None

    @property
    def verdict(self) -> Verdict:
        """What the figure means."""
        if self.figure is None or self.limit is None:
            return "not asked"
        if not self.figure <= self.limit:
            return "fails"
        return "holds" if self.warning is None or self.figure <= self.warning else "warns"


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """All findings on one model, in the order of the checks. `print` shows a line each."""

    findings: tuple[Finding, ...] = field(default=())

    @property
    def healthy(self) -> bool:
        """Whether no promise fails."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that fail."""
        return tuple(finding for finding in self.findings if finding.verdict == "fails")

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __getitem__(self, check: str) -> Finding:
        return next(finding for finding in self.findings if finding.check == check)

    def rows(self) -> list[tuple[str, ...]]:
        """Check, verdict, figure, limit, promise and detail of each finding, as text."""
        return [
            (f.check, f.verdict, _number(f.figure), _number(f.limit), f.promise, f.detail)
            for f in self.findings
        ]

    def __str__(self) -> str:
        return table(HEAD, self.rows())

    def __repr__(self) -> str:
        return str(self)  # as notebooks show it


HEAD = ("check", "verdict", "figure", "limit", "promise", "detail")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
