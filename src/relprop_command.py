"""The command `relprop`, outside of the package: what it imports takes seconds, within which Ctrl-C is no failure."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Load and run the command line, and return its exit code."""
    try:
        from relprop.cli import main as command

        return command()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
