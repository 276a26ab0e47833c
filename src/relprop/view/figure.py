"""The plane of a class: one point a sample, as a figure that the browser draws with WebGL."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relprop.show.report.figures import CATEGORIES, colour
from relprop.view.book import Book, Leaf, inside, kept
from relprop.view.state import State

MOST = len(CATEGORIES) - 1
"""The most classes with a colour of their own; the others share `OTHER`."""

OTHER = "#9aa2ab"
SCALE = [[0, "#35206b"], [0.25, "#2b6ca3"], [0.5, "#2f9f8f"], [0.75, "#9cc44c"], [1, "#f2d64b"]]
"""From the smallest score to the largest."""

Legend = list[tuple[str, str, int]]


def figure(book: Book, state: State) -> tuple[dict[str, Any], Legend]:
    """The figure of the class on view, and what its colours mean: (name, colour, samples), empty for scores."""
    leaf = book.of(state)
    places = np.flatnonzero(kept(leaf, state))
    if not leaf.embedded:
        return _bare("This analysis has no embedding: relprop analyse STORE makes one."), []
    size = 3.5 if len(places) > 20_000 else 5 if len(places) > 2_000 else 7
    made = _bare("" if len(places) else "No sample passes the filters.")
    made["layout"] |= {"uirevision": str(leaf.found.target), "selectionrevision": str(leaf.found.target)}
    marker: dict[str, Any] = {"size": size, "opacity": 0.8, "line": {"width": 0}}
    if state.colour == "score":
        low, high = _range(leaf.score)
        bar = {
            "thickness": 8,
            "len": 0.5,
            "x": 1,
            "xanchor": "right",
            "y": 1,
            "yanchor": "top",
            "outlinewidth": 0,
        }
        marker |= {
            "color": packed(leaf.score[places].astype(np.float32)),
            "colorscale": SCALE,
            "cmin": low,
            "cmax": high,
        }
        marker |= {
            "showscale": True,
            "colorbar": {**bar, "tickfont": {"size": 10}, "title": {"text": "score", "font": {"size": 11}}},
        }
        made["data"] = [_trace(leaf, places, marker, state.lasso)]
        return made, []
    groups = _groups(book, leaf, places, state.colour)
    # one trace a colour: colours of single points cost the browser more time than all the rest
    made["data"] = [
        _trace(leaf, members, {**marker, "color": shade}, state.lasso)
        for _, shade, members in groups
        if len(members)
    ]
    return made, [(name, shade, len(members)) for name, shade, members in groups]


def _trace(
    leaf: Leaf, places: NDArray[np.intp], marker: dict[str, Any], lasso: tuple[float, ...]
) -> dict[str, Any]:
    """The points of some samples, with their rows of the store for who clicks on them."""
    trace: dict[str, Any] = {
        "type": "scattergl",
        "mode": "markers",
        "x": packed(leaf.points[places, 0]),
        "y": packed(leaf.points[places, 1]),
        "customdata": packed(leaf.rows[places].astype(np.int32)),
        "marker": marker,
        "hoverinfo": "none",
        "showlegend": False,
        "selected": {"marker": {"opacity": 0.95}},
        "unselected": {"marker": {"opacity": 0.2}},
    }
    if lasso:
        trace["selectedpoints"] = np.flatnonzero(inside(leaf.points[places], lasso)).tolist()
    return trace


def packed(values: NDArray[Any]) -> dict[str, str]:
    """Numbers as the browser's plotting library reads them fastest: their bytes."""
    short = {"float32": "f4", "int32": "i4"}[values.dtype.name]
    return {"dtype": short, "bdata": base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")}


Groups = list[tuple[str, str, NDArray[np.intp]]]


def _groups(book: Book, leaf: Leaf, places: NDArray[np.intp], by: str) -> Groups:
    """The samples by strategy, label or prediction: a name, a colour and their places; the rarest classes together."""
    if by == "cluster":
        numbers = sorted(cluster.number for cluster in leaf.found.clusters)
        return [(f"strategy {n + 1}", colour(n), places[leaf.cluster[places] == n]) for n in numbers]
    values = (leaf.label if by == "label" else leaf.prediction)[places]
    classes, counts = np.unique(values, return_counts=True)
    order = classes[np.argsort(-counts, kind="stable")].tolist()
    groups = [
        (book.store.class_name(c) if c >= 0 else "no label", colour(i), places[values == c])
        for i, c in enumerate(order[:MOST])
    ]
    spare = order[MOST:]
    if not spare:
        return groups
    name = f"{len(spare)} other {'class' if len(spare) == 1 else 'classes'}"
    return [*groups, (name, OTHER, places[np.isin(values, spare)])]


def _range(score: NDArray[np.float64]) -> tuple[float, float]:
    known = score[np.isfinite(score)]
    if len(known) == 0:
        return 0.0, 1.0
    low, high = np.quantile(known, [0.01, 0.99])
    return float(low), float(high if high > low else low + 1)


def _bare(words: str) -> dict[str, Any]:
    """A figure without points, with a line of words in its middle."""
    axis = {"visible": False, "zeroline": False}
    note = {"text": words, "showarrow": False, "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
    layout: dict[str, Any] = {
        "xaxis": axis,
        "yaxis": {**axis, "scaleanchor": "x"},
        "margin": {"l": 4, "r": 4, "t": 4, "b": 4},
        "dragmode": "lasso",
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "Inter, Segoe UI, Helvetica Neue, Arial, sans-serif", "color": "#7a848f"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#9aa2ab", "activecolor": "#4a7fb5"},
        "newselection": {"line": {"color": "#7a848f", "width": 1.2, "dash": "solid"}},
        "annotations": [{**note, "font": {"size": 14}}] if words else [],
    }
    return {"data": [], "layout": layout}
