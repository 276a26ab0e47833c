"""The page of the coverage: one table a library, and what did not run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

HEAD = """# Coverage

One small random member of every family of the model libraries, explained with the preset `"auto"` on random inputs (two
samples): does the account of its relevance close, or which operation is refused? `python benchmarks/coverage.py --write
docs/coverage.md` makes this page; results are kept in a JSON file as they come, so that it can be stopped and go on.

`gap` is the largest |gap| of the two accounts as a part of max(1, |score|, magnitude): rounding, where it is below 1e-5.
`R/f` is the sum of relevance at the inputs over the score; what is missing to 1 stands in the account under its reasons
(bias, constants, the softmax's expansion). `|R|/f` is the largest Σ|R| at any operation over the score. Of a network with
random weights both say little; a large one shows that positive and negative parts cancel. Tokens that an attention mask
hides get exactly 0, but in the families that are listed below their table. Seconds are of a machine at work on other
things.

A family that was not built could not be made small, or did not run on made-up inputs, without relprop having any part in
it; a family that is refused is refused before anything is computed.
"""


def text(
    results: dict[str, Any], totals: Callable[[dict[str, Any]], str], known: dict[str, list[str]]
) -> str:
    """The page as Markdown; `known`: all families of each library."""
    parts = [HEAD, "## Totals\n", *(f"- {line}" for line in totals(results).splitlines()), ""]
    for library, rows in results.items():
        parts += [f"## {library}\n", _explained(rows), _hidden(rows), _others(rows)]
        left = [family for family in known[library] if family not in rows]
        if left:
            parts.append(f"### Not tried yet\n\n{', '.join(left)}\n")
    return "\n".join(part for part in parts if part is not None).rstrip() + "\n"


def _hidden(rows: dict[str, Any]) -> str | None:
    """Which families give relevance to tokens that the attention mask hides."""
    leaks = [family for family, row in sorted(rows.items()) if row.get("masked")]
    if not leaks:
        return None
    return (
        "Relevance at tokens that the attention mask hides is not 0 in the families whose own layers read these tokens all"
        f" the same (convolutions and means over all places, or no use of the mask): {', '.join(leaks)}.\n"
    )


def _explained(rows: dict[str, Any]) -> str:
    lines = [
        "| family | member | operations | gap | R/f | \\|R\\|/f | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, row in sorted(rows.items()):
        if row["result"] == "explained":
            lines.append(
                f"| {family} | {row['member']} | {row['operations']} | {row['gap']:.0e} | {row['relevance']:.3g}"
                f" | {row['magnitude']:.2g} | {row['seconds']} |"
            )
    return "\n".join(lines) + "\n"


def _others(rows: dict[str, Any]) -> str:
    parts = []
    for result, title in (
        ("refused", "Refused"),
        ("failed", "Failed: an error in place of a result, or no result in time"),
        ("not built", "Not built or not run"),
    ):
        found = sorted((family, row) for family, row in rows.items() if row["result"] == result)
        if found:
            lines = [f"- {family}: {_short(row['why'])}" for family, row in found]
            parts.append("\n".join([f"### {title}\n", *lines, ""]))
    return "\n".join(parts)


def _short(why: str) -> str:
    """A reason in one line of a page."""
    plain = why.replace("|", "\\|").replace("<", "‹").replace(">", "›").replace("`", "'")
    return plain if len(plain) < 240 else plain[:237] + "…"
