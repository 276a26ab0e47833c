"""`relprop evaluate --protocol arras2019`: LSTMs that add and subtract, and how far relevance agrees with the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from relprop.cli import printing
from relprop.evaluate.arithmetic import Agreement, arithmetic

NETWORKS = 3
"""How many LSTMs are trained for each arithmetic task; means over them are printed."""


def agreements(methods: Sequence[str], seed: int) -> list[list[Agreement]]:
    """What was found for each of several trained networks."""
    found = []
    with printing.progress() as bar:
        task = bar.add_task("training", total=NETWORKS)
        for number in range(NETWORKS):
            found.append(
                arithmetic(
                    methods=methods,
                    seed=seed + number,
                    progress=lambda what: bar.update(task, description=what),
                )
            )
            bar.update(task, advance=1)
    return found


def print_agreements(found: list[list[Agreement]], json: bool) -> None:
    """The correlations of relevance with the truth: means over networks, and the least and the largest."""
    names = [name for name in Agreement.__dataclass_fields__ if name not in ("task", "method")]
    if json:
        rows = [
            {"network": i, **{n: getattr(row, n) for n in Agreement.__dataclass_fields__}}
            for i, rows in enumerate(found)
            for row in rows
        ]
        printing.print_json("evaluate", {"protocol": "arras2019", "rows": rows})
        return
    lines = []
    for same in zip(*found, strict=True):
        columns = [[getattr(row, name) for row in same] for name in names]
        lines.append(
            (
                same[0].task,
                same[0].method,
                *(f"{np.mean(c):.3f} ({min(c):.3f} … {max(c):.3f})" for c in columns),
            )
        )
    printing.print_field(
        "model",
        f"{len(found)} LSTMs of one cell a task, trained to a squared error below 1e-3; means (least … largest)",
    )
    printing.print_gap()
    printing.print_table(
        ("task", "method", "ρ(n_a, R_a)", "ρ(n_b, R_b)", "share of |R| on both", "mean |ΣR − f|"), lines
    )
    printing.print_field(
        "ideal", "1 and 1 where numbers are added, 1 and −1 where they are subtracted; share 1"
    )
