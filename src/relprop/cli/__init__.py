"""The command line: parse, call, print. It needs typer and rich: `pip install 'relprop[cli]'`.

Data goes to stdout, messages and progress to stderr. Exit codes: 0 success, 1 a failed check, 2 bad input,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default with the process's arguments, and return its exit code."""
    try:
        from relprop.cli.app import app
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich", "click"):
            raise
        print(f"error: the command line needs {package}: pip install 'relprop[cli]'", file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # None where it is closed
            stream.reconfigure(errors="replace")  # a terminal without × or Σ shows ? instead
    try:
        code = app(
            args=None if arguments is None else list(arguments), prog_name="relprop", standalone_mode=False
        )
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer raises for a wrong command line has it
            raise
        context = getattr(error, "ctx", None)
        command = "relprop" if context is None else context.command_path
        message = error.format_message().strip().rstrip(".").replace("\n", " ")
        print(f"error: {message}\n  do: {command} --help shows the options with an example", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0
