"""The application: routes that give pictures, and callbacks from what a person does to what is shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from dash import ALL, ClientsideFunction, Dash, Input, Output, ctx, dcc, html, no_update
from dash import State as Held
from dash.exceptions import DependencyException
from flask import Flask, Response, abort

from relprop.analyse import Analysis
from relprop.engine.presets import PRESETS
from relprop.errors import InvalidInput
from relprop.show.samples import SIDE, SMALL, map_of, overlay_of, photo_file, photo_of, picture_of
from relprop.store import DONE, Store
from relprop.view import pages
from relprop.view.book import Book, chosen, opened
from relprop.view.compare import Comparer, compare
from relprop.view.figure import figure
from relprop.view.guard import guarded
from relprop.view.names import csv_of, forget, give, names
from relprop.view.state import State, checked, moved, read

HERE = Path(__file__).parent
PLOTLY = "/_dash-component-suites/plotly/package_data/plotly.min.js"
"""The plotting library, which Dash would ask for only when the page is there."""

EARLY = (
    "<script>window.Plotly = new Promise((done, failed) => {"
    "const script = document.createElement('script');"
    f"Object.assign(script, {{src: '{PLOTLY}', async: true, onload: () => done(), onerror: failed}});"
    "document.head.append(script)})</script>"
)
"""Asks for it with the page, while everything else goes on: the component that draws waits for what `window.Plotly` is."""

LARGE = 360
"""The longer side of a picture in a sample's detail, in pixels."""

FIELDS = (
    "target",
    "colour",
    "only",
    "clusters",
    "low",
    "high",
    "find",
    "sort",
    "show",
    "lasso",
    "page",
    "sample",
)
"""The components that hold the state; each is called as the field that it holds."""

VALUES = [Held(name, "data" if name in ("lasso", "page", "sample") else "value") for name in FIELDS]


def application(
    store: Store,
    analysis: Analysis,
    *,
    comparer: Comparer | None = None,
    host: str = "127.0.0.1",
    token: str | None = None,
) -> Dash:
    """The browser of an analysed store, as a WSGI application (`.server`). The store is only read.

    comparer: the model, for presets on demand. host: where it will listen; token: what visitors must know (see
    `relprop.view.guard`). Raises `InvalidInput` where there is nothing to look at.
    """
    book = opened(store, analysis)
    figure(book, State())  # reads the first class now, not while its first visitor waits
    server = Flask("relprop.view", static_folder=None)
    guarded(server, host, token)
    app = Dash(
        __name__,
        server=server,
        title=f"{Path(store.path).name} – relprop",
        update_title="",
        assets_folder=str(HERE / "none"),
        serve_locally=True,
        suppress_callback_exceptions=True,
        index_string=_index(),
    )
    app.layout = html.Div([dcc.Location(id="url", refresh=False), html.Div(id="root")])
    server.register_error_handler(
        DependencyException, lambda error: ("Not found\n", 404)
    )  # a script of no known package
    _pictures(server, store)
    _callbacks(app, book, comparer)
    return app


def _index() -> str:
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "keys.js"))
    return (
        '<!DOCTYPE html><html lang="en"><head>{%metas%}<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><title>{%title%}</title>{%css%}'
        f"{EARLY}<style>{style}</style></head><body>{{%app_entry%}}<footer>{{%config%}}"
        f"{{%scripts%}}<script>{script}</script>"
        "{%renderer%}</footer></body></html>"
    )


# ---------------------------------------------------------------- pictures


def _pictures(server: Flask, store: Store) -> None:
    """`/picture/ROW/WHAT`, where ROW is a number of a sample that is done: nothing else of the request is used."""

    def picture(row: int, what: str, large: bool = False) -> Response:
        if row >= len(store) or int(store.lazy("status")[row]) != DONE:
            abort(404)
        kind, body = _picture(store, row, what, large)
        answer = Response(body, mimetype=kind)
        answer.headers["Cache-Control"] = "private, max-age=600"
        return answer

    for what in ("input", "map", "overlay"):
        for end, large in (("", False), ("/large", True)):
            server.add_url_rule(
                f"/picture/<int:row>/{what}{end}",
                f"{what}{end}",
                picture,
                defaults={"what": what, "large": large},
            )


def _picture(store: Store, row: int, what: str, large: bool) -> tuple[str, bytes]:
    side = LARGE if large else SIDE
    photo = photo_of(store, row)
    if what == "input":
        return photo_file(photo, side) if photo is not None else abort(404)
    values = np.nan_to_num(map_of(store.relevance[row]))
    if what == "overlay" and photo is not None and values.ndim == 2:
        return overlay_of(values, photo, side)
    return picture_of(values, side=LARGE if large else SMALL)


# ---------------------------------------------------------------- callbacks


def _state(values: tuple[Any, ...] | list[Any], **changes: Any) -> State:
    """The state that the components hold."""
    return checked(dict(zip(FIELDS, values, strict=True)) | changes)


def _callbacks(app: Dash, book: Book, comparer: Comparer | None) -> None:
    store = book.store

    def whole(query: str | None) -> Any:
        return pages.page(book, read(query or ""), comparer is not None, list(PRESETS))

    app.callback(Output("root", "children"), Input("url", "search"))(whole)

    def plane(*values: Any) -> tuple[Any, Any]:
        made, legend = figure(book, _state(values))
        return made, pages.legends(legend)

    filters = ("target", "colour", "only", "clusters", "low", "high", "find")
    app.callback(
        Output("plane", "figure"),
        Output("legend", "children"),
        [Input(v.component_id, v.component_property) if v.component_id in filters else v for v in VALUES],
        prevent_initial_call=True,
    )(plane)

    def tiles(*values: Any) -> tuple[Any, str, str, int]:
        state = _state(values)
        leaf = book.of(state)
        places = chosen(leaf, state)
        last = max(0, -(-len(places) // pages.PER_PAGE) - 1)
        if state.page > last:
            state = moved(state, page=last)
        return (
            pages.grid(book, leaf, places, state),
            pages.count_words(leaf, len(places), state),
            pages.where(len(places), state),
            last,
        )

    app.callback(
        Output("grid", "children"),
        Output("count", "children"),
        Output("where", "children"),
        Output("on", "data-last"),
        [
            v if v.component_id in ("colour", "sample") else Input(v.component_id, v.component_property)
            for v in VALUES
        ],
    )(tiles)

    def options(target: Any) -> tuple[Any, list[int]]:
        return pages.strategies(book.of(_state([target, *[None] * (len(FIELDS) - 1)]))), []

    app.callback(
        Output("clusters", "options"),
        Output("clusters", "value"),
        Input("target", "value"),
        prevent_initial_call=True,
    )(options)

    def shown(sample: Any) -> tuple[Any, bool, bool, Any]:
        row = checked({"sample": sample}).sample
        if row is None or row >= len(store) or int(store.lazy("status")[row]) != DONE:
            return [], True, True, []
        return pages.detail(book, row, comparer is not None), False, False, []

    app.callback(
        Output("detail", "children"),
        Output("detail", "hidden"),
        Output("compare-tools", "hidden"),
        Output("compared", "children"),
        Input("sample", "data"),
    )(shown)

    if comparer is not None:

        def computed(_: Any, sample: Any, presets: Any) -> Any:
            row = checked({"sample": sample}).sample
            if row is None or row >= len(store):
                return no_update
            asked = [name for name in presets or [] if isinstance(name, str)]
            return pages.compared(compare(comparer, store, row, asked))

        app.callback(
            Output("compared", "children", allow_duplicate=True),
            Input("compute", "n_clicks"),
            Held("sample", "data"),
            Held("presets", "value"),
            prevent_initial_call=True,
        )(computed)

    _naming(app, book)
    _clientside(app)


def _naming(app: Dash, book: Book) -> None:
    store = book.store

    def listed(_: Any) -> Any:
        try:
            return pages.named(names(store), store)
        except InvalidInput as error:
            return html.P(str(error).splitlines()[0], className="flagged")

    app.callback(Output("names", "children"), Input("names-version", "data"))(listed)

    def saved(_: Any, name: Any, version: Any, *values: Any) -> tuple[Any, str, Any]:
        state = _state(values)
        leaf = book.of(state)
        try:
            places = chosen(leaf, state)
            given = name if isinstance(name, str) else ""
            give(store, given, leaf.found.target, leaf.ids[places].tolist())
        except InvalidInput as error:
            return no_update, " – ".join(line.strip() for line in str(error).splitlines()), no_update
        return int(version or 0) + 1, f"{len(places):,} samples are now “{' '.join(given.split())}”", ""

    app.callback(
        Output("names-version", "data"),
        Output("said", "children"),
        Output("name", "value"),
        Input("save", "n_clicks"),
        Held("name", "value"),
        Held("names-version", "data"),
        *VALUES,
        prevent_initial_call=True,
    )(saved)

    def forgotten(clicks: list[Any], version: Any) -> Any:
        asked = ctx.triggered_id
        if not any(clicks) or not isinstance(asked, dict) or not isinstance(asked.get("number"), int):
            return no_update
        forget(store, asked["number"])
        return int(version or 0) + 1

    app.callback(
        Output("names-version", "data", allow_duplicate=True),
        Input({"type": "forget", "number": ALL}, "n_clicks"),
        Held("names-version", "data"),
        prevent_initial_call=True,
    )(forgotten)

    def exported(_: Any, *values: Any) -> Any:
        state = _state(values)
        leaf = book.of(state)
        title = f"{Path(store.path).name}-{pages.group_name(store, leaf.found.target)}"
        return dcc.send_string(csv_of(store, leaf, chosen(leaf, state)), f"{_file(title)}.csv")

    app.callback(Output("file", "data"), Input("export", "n_clicks"), *VALUES, prevent_initial_call=True)(
        exported
    )

    def exported_name(clicks: list[Any]) -> Any:
        asked = ctx.triggered_id
        held = names(store)
        if (
            not any(clicks)
            or not isinstance(asked, dict)
            or not 0 <= int(asked.get("number", -1)) < len(held)
        ):
            return no_update
        one = held[int(asked["number"])]
        leaf = book.of(State(target=one.target))
        places = np.flatnonzero(np.isin(leaf.ids.astype(str), one.ids))
        return dcc.send_string(csv_of(store, leaf, places, one.name), f"{_file(one.name)}.csv")

    app.callback(
        Output("file", "data", allow_duplicate=True),
        Input({"type": "csv", "number": ALL}, "n_clicks"),
        prevent_initial_call=True,
    )(exported_name)


def _file(title: str) -> str:
    """A name for a downloaded file."""
    return re.sub(r"[^\w.-]+", "-", title).strip("-.")[:80] or "samples"


def _clientside(app: Dash) -> None:
    """What the browser does by itself (keys.js): the lasso's corners, the address, pages, the peek."""

    def run(name: str) -> ClientsideFunction:
        return ClientsideFunction("view", name)

    app.clientside_callback(run("lasso"), Output("lasso", "data"), Input("plane", "selectedData"), Held("lasso", "data"),
                            prevent_initial_call=True)  # fmt: skip
    app.clientside_callback(
        run("clicked"), Output("sample", "data"), Input("plane", "clickData"), prevent_initial_call=True
    )
    app.clientside_callback(run("peek"), Output("peek", "src"), Output("peek", "hidden"), Input("plane", "hoverData"),
                            prevent_initial_call=True)  # fmt: skip
    app.clientside_callback(
        run("address"),
        Output("address", "data"),
        [Input(v.component_id, v.component_property) for v in VALUES],
    )
    app.clientside_callback(
        run("first"),
        Output("page", "data"),
        [Input(n, "value") for n in ("target", "only", "clusters", "low", "high", "find", "sort")]
        + [Input("lasso", "data")],
        prevent_initial_call=True,
    )
