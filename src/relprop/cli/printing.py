"""What the command line prints: tables and JSON to stdout, messages, progress and errors to stderr."""

from __future__ import annotations

import errno
import json
import platform
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import relprop
from relprop.doctor.findings import HEAD, Report
from relprop.engine.audit import Audit
from relprop.engine.plan import Plan
from relprop.errors import ConservationError, RelevanceWarning, RelpropError

REASONS = {
    "bias": "evidence of biases and batch-norm offsets, which lie in no pixel",
    "stabilizer": "taken by ε in the denominators",
    "constant": "evidence of constants inside the network, which lie in no pixel",
    "undistributed": "reached sums that are exactly 0, which have no shares",
    "no_positive_part": "reached units without positive contributions, where z⁺ and α have no shares",
    "no_negative_part": "reached units without negative contributions, where β has no shares",
    "softmax_bias": "the constant of the softmax's linear expansion",
}
"""What absorbed relevance that reached no input, in words; a reason that is not here is printed alone."""


def stdout() -> Console:
    """The console for data: of a terminal's width and colours; elsewhere plain, lines of any length."""
    console = Console(highlight=False, soft_wrap=True)
    return (
        console
        if console.is_terminal
        else Console(highlight=False, soft_wrap=True, width=1000, color_system=None)
    )


def stderr() -> Console:
    """The console for messages."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str, style: str = "") -> None:
    """One message to stderr."""
    stderr().print(Text(message, style=style))


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal that something takes a while; what libraries print meanwhile goes to stderr."""
    console = stderr()
    with redirect_stdout(sys.stderr), console.status(f"{what} …") if console.is_terminal else nullcontext():
        yield


def progress() -> Progress:
    """A progress bar on stderr, shown on a terminal only."""
    console = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def reporting() -> Iterator[None]:
    """Turn errors into one message and an exit code, and warnings about relevance into notes."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, RelevanceWarning):
                say(f"note: {message}", "yellow")
            else:
                others(message, category, *place, **more)

        warnings.simplefilter("always", RelevanceWarning)
        warnings.showwarning = note
        try:
            yield
        except ConservationError as error:
            raise _failed(str(error), 1) from error
        except RelpropError as error:
            raise _failed(str(error), 2) from error
        except BrokenPipeError:
            raise
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise _failed("the memory does not suffice\n  do: a smaller --batch-size or --size", 2) from error
        except OSError as error:
            raise _failed(f"{plain(error)}\n  do: {_remedy(error)}", 2) from error
        except KeyboardInterrupt as error:
            raise _failed("interrupted", 130) from error


def _failed(message: str, code: int) -> typer.Exit:
    say(f"error: {message}", "bold red")
    return typer.Exit(code)


def plain(error: OSError) -> str:
    """An error of the operating system in one line: the file and what is wrong with it."""
    words = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {words}" if error.filename else words


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room, or give another place"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "ask for the right to, or give another place"
    return "look at the path"


def print_json(command: str, content: dict[str, Any]) -> None:
    """The results as one JSON object."""
    versions = {
        "relprop": relprop.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    typer.echo(
        json.dumps({"command": command, **content, "versions": versions}, ensure_ascii=False, indent=2)
    )


def print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = (), strong: int = -1
) -> None:
    """A table on stdout; `right` names the columns aligned right, `strong` is the row that stands out."""
    console = stdout()
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, header_style="bold")
    for name in head:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for index, row in enumerate(rows):
        table.add_row(*(Text(cell) for cell in row), style="bold" if index == strong else None)
    if console.is_terminal:
        console.print(table, soft_wrap=False)
        return
    with console.capture() as plain_text:
        console.print(table, soft_wrap=False)
    typer.echo("\n".join(line.rstrip() for line in plain_text.get().splitlines()))


def print_gap() -> None:
    """A blank line between parts; on a terminal the frames of tables make it."""
    if not stdout().is_terminal:
        typer.echo("")


def print_field(name: str, value: str) -> None:
    """One line of a name and its value on stdout."""
    stdout().print(Text.assemble((f"{name:<10} ", "bold"), value))


def print_audit(audit: Audit, sample: int, part: str = "pixel") -> None:
    """Where the score of one sample went; `part`: what the input consists of."""
    score = float(audit.score[sample])

    def row(name: str, amount: float, meaning: str) -> tuple[str, str, str, str]:
        share = f"{round(100 * amount / score, 1) + 0.0:.1f} %" if score else ""
        return name, f"{amount:+.6g}", share, meaning

    rows = [
        row("score", score, "what is explained"),
        row("relevance", float(audit.relevance[sample]), f"reached the {part}s: the sum of the heatmap"),
        *(
            row(f"absorbed: {reason}", float(amount[sample]), REASONS.get(reason, "").replace("pixel", part))
            for reason, amount in audit.absorbed.items()
        ),
    ]
    gap, allowed = float(audit.gap[sample]), float(audit.tolerance[sample])
    rows.append(("gap", f"{gap:+.1e}", "", f"rounding; up to {allowed:.1e} is allowed"))
    size = float(audit.magnitude[sample])
    rows.append(("magnitude", f"{size:.4g}", "", "the largest sum of |relevance| at any operation"))
    print_table(("where the score went", "amount", "share", "meaning"), rows, ("amount", "share"))


def audit_json(audit: Audit, sample: int) -> dict[str, Any]:
    """The account of one sample as plain values."""
    return {
        "score": float(audit.score[sample]),
        "relevance": float(audit.relevance[sample]),
        "absorbed": {reason: float(amount[sample]) for reason, amount in audit.absorbed.items()},
        "gap": float(audit.gap[sample]),
        "tolerance": float(audit.tolerance[sample]),
        "magnitude": float(audit.magnitude[sample]),
    }


def print_plan(plan: Plan, title: str) -> None:
    """The plan as a table, and how often each rule occurs."""
    console = stdout()
    console.print(Text(title, style="bold"))
    head = ("operation", "module", "source", "output", "rule", "why")
    short = _short if console.is_terminal else str  # a terminal's width is scarce
    rows = [(short(r.operation), r.module or "·", r.source, r.shape, str(r.rule), r.why) for r in plan]
    print_table(head, rows)
    counts = Counter(str(row.rule) for row in plan)
    words = ", ".join(f"{count} {rule}" for rule, count in counts.most_common())
    console.print(Text(f"{len(plan)} operations: {words}"))


def print_report(report: Report, title: str) -> None:
    """The doctor's findings, a line each, and the sum of them."""
    console = stdout()
    console.print(Text(title, style="bold"))
    print_table(HEAD, report.rows(), ("figure", "limit"))
    counts = Counter(finding.verdict for finding in report)
    console.print(Text(", ".join(f"{count} {verdict}" for verdict, count in counts.items())))


def _short(operation: str) -> str:
    return operation.removeprefix("aten.").removeprefix("relprop.").replace(".default", "")
