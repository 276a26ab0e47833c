"""What is on view, as frozen data: read from an address, checked, and written back to one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode

COLOURS = {"cluster": "strategy", "label": "label", "prediction": "prediction", "score": "score"}
"""What points are coloured by, and what it is called."""

ONLY = {"all": "all", "right": "right", "wrong": "wrong"}
"""Which samples are shown, by whether the prediction is the label."""

SORTS = {
    "typical": "typical first",
    "score": "score, largest first",
    "-score": "score, smallest first",
    "id": "name",
    "label": "label",
    "gap": "largest rest in the audit",
}
"""The orders of the grid."""

SHOWS = {"both": "input and relevance", "overlay": "overlay", "map": "relevance", "input": "input"}
"""What a tile of the grid shows."""

VERTICES = 80
"""The most corners of a lasso."""

LONGEST = 200
"""The most characters of a search."""


@dataclass(frozen=True, slots=True)
class State:
    """What is on view.

    Attributes:
        target: the class; None for the first one of the analysis.
        colour, only, sort, show: keys of `COLOURS`, `ONLY`, `SORTS`, `SHOWS`.
        clusters: the numbers of the strategies that are shown; empty for all.
        low, high: the range of scores that is shown; None for no limit.
        find: characters that the name contains.
        lasso: the corners of the selection, flat (x1, y1, x2, y2, …); empty for none.
        page: of the grid, from 0.
        sample: the row of the sample whose detail is open; None for none.
    """

    target: int | None = None
    colour: str = "cluster"
    only: str = "all"
    clusters: tuple[int, ...] = ()
    low: float | None = None
    high: float | None = None
    find: str = ""
    sort: str = "typical"
    show: str = "both"
    lasso: tuple[float, ...] = ()
    page: int = 0
    sample: int | None = None


def read(query: str) -> State:
    """The state that the query of an address means; parts that mean nothing are left at their default."""
    try:
        return checked(dict(parse_qsl(query.removeprefix("?"), max_num_fields=40)))
    except ValueError:  # more fields than that
        return State()


def checked(given: Mapping[str, object]) -> State:
    """A state from loose values (text, numbers or lists, as an address or a browser gives them)."""
    find = given.get("find")
    lasso = tuple(_numbers(given.get("lasso")))
    return State(
        target=_whole(given.get("target")),
        colour=_one(given.get("colour"), COLOURS),
        only=_one(given.get("only"), ONLY),
        clusters=tuple(sorted({int(v) for v in _numbers(given.get("clusters")) if v == int(v) and v >= 0})),
        low=_number(given.get("low")),
        high=_number(given.get("high")),
        find=find[:LONGEST] if isinstance(find, str) else "",
        sort=_one(given.get("sort"), SORTS),
        show=_one(given.get("show"), SHOWS),
        lasso=lasso[: 2 * VERTICES] if len(lasso) >= 6 and len(lasso) % 2 == 0 else (),
        page=_whole(given.get("page")) or 0,
        sample=_whole(given.get("sample")),
    )


def write(state: State) -> str:
    """The query of an address that means this state; what is at its default is left out."""
    usual, fields = State(), {}
    for name in State.__dataclass_fields__:
        value = getattr(state, name)
        if value != getattr(usual, name):
            fields[name] = ",".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value}"
    return urlencode(fields, safe=",")


def moved(state: State, **changes: object) -> State:
    """The state with some of its parts changed, and the grid back at its first page unless a page is given."""
    return replace(state, **{"page": 0, **changes})  # type: ignore[arg-type]


def _one(value: object, table: Mapping[str, str]) -> str:
    return value if isinstance(value, str) and value in table else next(iter(table))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) and abs(found) < 1e12 else None


def _whole(value: object) -> int | None:
    found = _number(value)
    return int(found) if found is not None and found == int(found) and found >= 0 else None


def _numbers(value: object) -> list[float]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
    found = [_number(part) for part in parts[: 2 * VERTICES + 64]]
    return [] if None in found else [number for number in found if number is not None]
