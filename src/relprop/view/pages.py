"""The parts of the page, as components of Dash: pure functions of the book and the state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dash import dcc, html
from numpy.typing import NDArray

from relprop.analyse import Cluster
from relprop.show.report.figures import colour
from relprop.show.samples import data_uri, map_of, picture_of, words_of
from relprop.store import Store
from relprop.view.book import Book, Leaf
from relprop.view.compare import Comparison
from relprop.view.figure import Legend, figure
from relprop.view.names import Named
from relprop.view.state import COLOURS, ONLY, SHOWS, SORTS, State

PER_PAGE = 24
TOP = 5
"""The largest outputs that a sample's detail lists."""

KEYS = (
    ("← →", "the sample before, after"),
    ("Esc", "close"),
    ("[ ]", "the page before, after"),
    ("c", "colour by the next"),
    ("m", "show the next kind of picture"),
    ("/", "search a name"),
    ("x", "clear the selection"),
    ("?", "these keys"),
)


def page(book: Book, state: State, comparable: bool, presets: Sequence[str]) -> Any:
    """The whole page for a state."""
    leaf = book.of(state)
    made, legend = figure(book, state)
    classes = [
        {"label": f"{one.name or book.store.class_name(one.target)} · {len(one.rows):,}", "value": one.target}
        for one in book.analysis.classes
    ]
    return html.Div(
        [
            _header(book),
            html.Main(
                [
                    html.Aside(_controls(state, leaf, classes), id="controls"),
                    html.Section(
                        [
                            dcc.Graph(
                                id="plane",
                                figure=made,
                                config={"displaylogo": False, "scrollZoom": True, "responsive": True,
                                        "showSendToCloud": False,
                                    "plotlyServerURL": "",
                                    "modeBarButtonsToRemove": ["toImage", "autoScale2d", "zoomIn2d", "zoomOut2d"]},
                            ),
                            html.Img(id="peek", alt="", hidden=True),
                            html.Div(legends(legend), id="legend"),
                        ],
                        id="middle",
                    ),
                    html.Section(
                        [
                            html.Div(
                                [
                                    html.H2(id="count"),
                                    _select("sort", SORTS, state.sort, "order"),
                                    _select("show", SHOWS, state.show, "picture"),
                                ],
                                className="bar",
                            ),
                            html.Div(
                                [
                                    dcc.Input(id="name", placeholder="name this selection", maxLength=80, debounce=True),
                                    html.Button("Save name", id="save"),
                                    html.Button("Export CSV", id="export"),
                                    html.Span(id="said", role="status"),
                                ],
                                className="bar",
                            ),
                            html.Div(id="grid"),
                            html.Div(
                                [
                                    html.Button("‹", id="back", title="page before ["),
                                    html.Span(id="where"),
                                    html.Button("›", id="on", title="page after ]"),
                                    _scale(),
                                ],
                                className="bar pager",
                            ),
                        ],
                        id="right",
                    ),
                ]
            ),
            html.Div(id="detail", hidden=True),
            html.Div(id="compare-tools", children=_tools(comparable, presets), hidden=True),
            html.Div(
                [html.H2("Keys"), html.Dl([x for k, v in KEYS for x in (html.Dt(k), html.Dd(v))])], id="help", hidden=True
            ),
            dcc.Store(id="lasso", data=list(state.lasso)),
            dcc.Store(id="page", data=state.page),
            dcc.Store(id="sample", data=state.sample),
            dcc.Store(id="names-version", data=0),
            dcc.Store(id="address"),
            dcc.Store(id="noted"),
            dcc.Download(id="file"),
        ],
        id="all",
    )  # fmt: skip


def _scale() -> Any:
    """What the colours of the maps mean."""
    return html.Span(
        ["against", html.I("0"), "for"],
        className="scale",
        title="Relevance: blue spoke against the explained class, red for it; the neutral grey in the middle is 0."
        " Each map has its own scale.",
    )


def _header(book: Book) -> Any:
    store = book.store
    model = store.attributes.get("model") or {}
    name = str(model.get("name") or "") if isinstance(model, dict) else str(model)
    flagged = len(book.analysis.flagged)
    return html.Header(
        [
            html.H1(Path(store.path).name),
            html.Span(name),
            html.Span(
                f"{len(store):,} samples"
                if book.analysis.source.get("together")
                else f"{len(store):,} samples, {len(book.analysis.classes)} {'class' if len(book.analysis.classes) == 1 else 'classes'}"
            ),
            html.Span(f"{flagged} flagged", className="tag flagged" if flagged else "tag"),
            html.Button("?", id="help-button", title="keys"),
        ]
    )


def _controls(state: State, leaf: Leaf, classes: list[dict[str, Any]]) -> list[Any]:
    low, high = _limits(leaf.score)
    unlabelled = not bool((leaf.label >= 0).any()) and state.only == "all"
    return [
        html.Label("class", htmlFor="target"),
        dcc.Dropdown(classes, leaf.found.target, id="target", clearable=False, maxHeight=420),
        html.Label("colour"),
        dcc.RadioItems(COLOURS, state.colour, id="colour", className="choices"),
        html.Label("strategies"),
        dcc.Checklist(strategies(leaf), list(state.clusters), id="clusters", className="strategies"),
        html.Div(
            [
                html.Label("prediction"),
                dcc.RadioItems(ONLY, state.only, id="only", className="choices", inline=True),
            ],
            className="group",
            hidden=unlabelled,  # neither right nor wrong
        ),
        html.Label("score"),
        html.Div(
            [
                dcc.Input(
                    id="low", type="number", value=state.low, placeholder=low, debounce=True, step="any"
                ),
                html.Span("to"),
                dcc.Input(
                    id="high", type="number", value=state.high, placeholder=high, debounce=True, step="any"
                ),
            ],
            className="range",
        ),
        html.Label("name contains", htmlFor="find"),
        dcc.Input(id="find", value=state.find, debounce=0.4, maxLength=200, autoComplete="off"),
        html.Button("Clear selection and filters", id="clear"),
        html.Label("named groups"),
        html.Div(id="names"),
    ]


def _limits(score: NDArray[np.float64]) -> tuple[str, str]:
    known = score[np.isfinite(score)]
    return (_amount(known.min(), 3), _amount(known.max(), 3)) if len(known) else ("", "")


def _select(id: str, table: dict[str, str], value: str, what: str) -> Any:
    options = [{"label": words, "value": key} for key, words in table.items()]
    return dcc.Dropdown(options, value, id=id, clearable=False, searchable=False, className="short")


def strategies(leaf: Leaf) -> list[dict[str, Any]]:
    """The strategies of a class as options: colour, mean map, size, suspicion, and the strongest evidence as a hint."""
    return [{"label": _strategy(cluster), "value": cluster.number} for cluster in leaf.found.clusters]


def _strategy(cluster: Cluster) -> Any:
    words = " ".join(item.words for item in cluster.evidence[:2]) or "nothing sets it apart"
    state = f"suspicion {cluster.suspicion:.2f}"
    if cluster.confirmation is not None and cluster.confirmation.confirmed:
        state += ", confirmed"
    return html.Span(
        [
            html.Img(src=data_uri(picture_of(map_of(cluster.mean_map))), alt="mean relevance"),
            html.Span(
                [
                    html.B(
                        [
                            html.I(style={"background": colour(cluster.number)}),
                            f"strategy {cluster.number + 1}",
                        ]
                    ),
                    html.Small(f"{cluster.size:,} samples"),
                    html.Small(state, className="flagged" if cluster.flagged else ""),
                ]
            ),
        ],
        className="strategy",
        title=words,
    )


def legends(legend: Legend) -> list[Any]:
    """What the colours of the plane mean."""
    return [
        html.Span([html.I(style={"background": shade}), name, html.Small(f"{count:,}")])
        for name, shade, count in legend
    ]


def grid(book: Book, leaf: Leaf, places: NDArray[np.intp], state: State) -> list[Any]:
    """The tiles of a page of the grid."""
    shown = places[state.page * PER_PAGE : (state.page + 1) * PER_PAGE]
    if len(places) == 0:
        return [html.P("Nothing is selected: clear the selection or loosen the filters.", className="empty")]
    return [_tile(book.store, leaf, int(i), state.show) for i in shown]


def _tile(store: Store, leaf: Leaf, i: int, show: str) -> Any:
    row, label, prediction = int(leaf.rows[i]), int(leaf.label[i]), int(leaf.prediction[i])
    wrong = label >= 0 and label != prediction
    name = str(leaf.ids[i]).rsplit("/", 1)[-1]
    return html.Button(
        [
            html.Div(_pictures(store, row, show), className="pictures"),
            html.Span(
                [
                    html.I(style={"background": colour(int(leaf.cluster[i]))}),
                    html.B(name, title=str(leaf.ids[i])),
                    html.Small(_amount(leaf.score[i], 3), title="score"),
                ]
            ),
            html.Small(f"{store.class_name(label)} → {store.class_name(prediction)}", className="flagged")
            if wrong
            else html.Small(store.class_name(int(store.lazy("target")[row])), title="the explained class")
            if leaf.found.target < 0
            else None,
        ],
        className="tile text" if store.kind == "text" else "tile",
        **{"data-row": str(row)},
    )


def _pictures(store: Store, row: int, show: str, large: bool = False) -> list[Any]:
    told = words_of(store, row)
    if told is not None:
        return [words(told)]
    photo = "thumbnail" in store.columns
    kinds = ["input", "map"] if show == "both" else [show]
    kinds = [kind for kind in kinds if photo or kind == "map"] or ["map"]
    end = "/large" if large else ""
    return [html.Img(src=f"/picture/{row}/{kind}{end}", alt=kind) for kind in kinds]


def words(told: Any) -> Any:
    """Coloured words."""
    from relprop.show.text import painted

    return html.P(
        [
            html.Span(p.text, style=_style(p.style), title=p.title) if p.style else p.text
            for p in painted(told)
        ],
        className="words",
    )


def _style(css: str) -> dict[str, str]:
    """CSS as Dash wants it: camelCase names."""
    pairs = (part.split(":", 1) for part in css.split(";") if part)
    return {
        "".join(w.title() if i else w for i, w in enumerate(name.split("-"))): value for name, value in pairs
    }


def count_words(leaf: Leaf, found: int, state: State) -> str:
    """How many samples are on view, in words."""
    whole = len(leaf.rows)
    if state.lasso and leaf.embedded:
        return f"{found:,} selected"
    return f"{found:,} samples" if found == whole else f"{found:,} of {whole:,} samples"


def where(found: int, state: State) -> str:
    """Which page of how many."""
    return f"page {state.page + 1:,} of {max(1, -(-found // PER_PAGE)):,}"


def group_name(store: Store, target: int) -> str:
    """The name of a class, or of all samples where they were analysed together."""
    return store.class_name(target) if target >= 0 else "all samples"


def named(held: Sequence[Named], store: Store) -> list[Any]:
    """The groups that people have named."""
    if not held:
        return [html.P("none yet", className="empty")]
    return [
        html.Div(
            [
                html.Span(
                    [
                        html.B(one.name),
                        html.Small(f"{group_name(store, one.target)}, {len(one.ids):,} samples"),
                    ]
                ),
                html.Button("CSV", id={"type": "csv", "number": i}, title="export as CSV"),
                html.Button("×", id={"type": "forget", "number": i}, title="forget this name"),
            ],
            className="named",
        )
        for i, one in enumerate(held)
    ]


def detail(book: Book, row: int, comparable: bool) -> list[Any]:
    """One sample: pictures, facts, the largest outputs, the account, and a place for presets."""
    store = book.store
    one = {
        name: store.lazy(name)[row]
        for name in store.names
        if name not in ("relevance", "thumbnail", "pooled")
    }
    output = np.asarray(one["output"], np.float64)
    label, target = int(one["label"]), int(one["target"])
    facts = [("name", str(one["id"]))]
    facts += [("label", store.class_name(label))] if label >= 0 else []
    facts += [("explained", store.class_name(target))]
    facts += [("strategy", s)] if (s := _strategy_of(book, row)) else []
    facts += [("source", str(one["source"]))] if one["source"] and one["source"] != one["id"] else []
    return [
        html.Div([html.H2(str(one["id"]).rsplit("/", 1)[-1]), html.Button("×", id="close", title="close (Esc)")], className="bar"),
        html.Div([html.Figure(image) for image in _large(store, row)], className="large"),
        html.Div(
            [
                html.Div([html.H3("Sample"), _facts(facts)]),
                html.Div([html.H3("Largest outputs"), _outputs(store, output, target, label)]),
                html.Div([html.H3("Where the score went"), _facts(_account(store, one, row))]),
            ],
            className="columns",
        ),
        html.P(
            "Start relprop view with --model to compare presets on this sample.", className="empty"
        ) if not comparable else None,
    ]  # fmt: skip


def _large(store: Store, row: int) -> list[Any]:
    if store.kind == "text" and "tokens" in store.columns:
        return [_pictures(store, row, "map", True)]
    kinds = ("input", "map", "overlay") if "thumbnail" in store.columns else ("map",)
    names = {"input": "input", "map": "relevance", "overlay": "overlay"}
    return [
        [
            html.Img(src=f"/picture/{row}/{kind}/large", alt=names[kind]),
            html.Figcaption([names[kind], _scale()] if kind == "map" else names[kind]),
        ]
        for kind in kinds
    ]


def _strategy_of(book: Book, row: int) -> str:
    for one in book.analysis.classes:
        place = np.flatnonzero(one.rows == row)
        if len(place):
            number = int(one.labels[one.clusters_number][place[0]])
            return f"{number + 1} of {one.clusters_number} ({one.name or book.store.class_name(one.target)})"
    return ""


def _facts(rows: Sequence[tuple[str, str]]) -> Any:
    return html.Table(html.Tbody([html.Tr([html.Th(name), html.Td(value)]) for name, value in rows]))


def _outputs(store: Store, output: NDArray[np.float64], target: int, label: int) -> Any:
    order = np.argsort(-output)[:TOP]
    extra = [c for c in (target, label) if 0 <= c < len(output) and c not in order]
    size = float(np.abs(output[[*order, *extra]]).max()) or 1.0
    rows = []
    for c in [*order.tolist(), *extra]:
        marks = " · ".join(
            word for word, is_so in (("explained", c == target), ("label", c == label)) if is_so
        )
        rows.append(
            html.Tr(
                [
                    html.Th([store.class_name(c), html.Small(marks) if marks else None]),
                    html.Td(
                        html.I(style={"width": f"{100 * abs(output[c]) / size:.0f}%"}), className="track"
                    ),
                    html.Td(_amount(output[c]), className="n"),
                ]
            )
        )
    return html.Table(html.Tbody(rows))


def _account(store: Store, one: dict[str, Any], row: int) -> list[tuple[str, str]]:
    total = one.get("relevance_sum")
    if total is None:
        total = np.nansum(np.asarray(store.relevance[row], np.float64))
    facts = [("score", _amount(one["score"])), ("relevance of the input", _amount(total))]
    if "absorbed" in one:
        facts.append(("absorbed on the way", _amount(one["absorbed"])))
    facts.append(("left over", _amount(one["gap"])))
    if "magnitude" in one:
        facts.append(("largest Σ|R|", _amount(one["magnitude"])))
    return facts


def _amount(value: Any, digits: int = 4) -> str:
    number = float(value)
    return "–" if number != number else f"{number:.{digits}g}".replace("-", "−")


def _tools(comparable: bool, presets: Sequence[str]) -> list[Any]:
    """The controls for presets; they are always there, so that the callbacks find them."""
    usual = [
        name for name in ("auto", "epsilon", "epsilon_plus_flat", "epsilon_gamma_box") if name in presets
    ]
    return [
        html.Div(
            [
                html.H3("Other presets"),
                dcc.Dropdown(list(presets), usual, id="presets", multi=True, maxHeight=260),
                html.Button("Compute", id="compute"),
            ],
            className="bar",
            hidden=not comparable,
        ),
        dcc.Loading(html.Div(id="compared"), delay_show=300, type="dot"),
    ]


def compared(found: Sequence[Comparison]) -> list[Any]:
    """The relevance of one sample under several presets."""
    return [
        html.Figure(
            [
                words(one.told) if one.told is not None else html.Img(src=one.picture, alt=one.preset) if one.picture else None,
                html.Figcaption(
                    [html.B(one.preset)]
                    + ([html.Small(one.refused, className="flagged")] if one.refused else [
                        html.Small(f"score {_amount(one.score)}, relevance {_amount(one.relevance)}, left over {_amount(one.gap)}")
                    ])
                ),
            ]
        )
        for one in found
    ]  # fmt: skip
