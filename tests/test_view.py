"""The browser's server: what it shows for which state, whom it answers, what it writes where; without a browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("dash", reason="the extra [view] is not installed")

from relprop.analyse import Analysis
from relprop.cli import main
from relprop.errors import InvalidInput
from relprop.run import Recipe, run
from relprop.store import Store
from relprop.view import listen
from relprop.view.app import application
from relprop.view.book import Book, chosen, kept, opened
from relprop.view.compare import at_hand, compare
from relprop.view.figure import figure
from relprop.view.guard import COOKIE, is_loopback
from relprop.view.names import csv_of, forget, give, names, names_file
from relprop.view.state import COLOURS, ONLY, SHOWS, SORTS, VERTICES, State, checked, read, write
from strategies_store import Horses, made_analysis, made_store


@pytest.fixture(scope="module")
def store(horses: Horses) -> Store:
    return horses.store


@pytest.fixture(scope="module")
def analysis(horses: Horses) -> Analysis:
    return horses.analysis


@pytest.fixture(scope="module")
def book(store: Store, analysis: Analysis) -> Book:
    return opened(store, analysis)


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# ---------------------------------------------------------------- the state in the address

STATES = st.builds(
    State,
    target=st.none() | st.integers(0, 10_000),
    colour=st.sampled_from(list(COLOURS)),
    only=st.sampled_from(list(ONLY)),
    clusters=st.lists(st.integers(0, 40), unique=True, max_size=5).map(lambda v: tuple(sorted(v))),
    low=st.none() | st.integers(-1000, 1000).map(lambda v: v / 8),
    high=st.none() | st.integers(-1000, 1000).map(lambda v: v / 8),
    find=st.text(max_size=20).filter(lambda v: not any(0xD800 <= ord(c) < 0xE000 for c in v)),
    sort=st.sampled_from(list(SORTS)),
    show=st.sampled_from(list(SHOWS)),
    lasso=st.lists(st.tuples(*[st.integers(-999, 999).map(float)] * 2), min_size=3, max_size=VERTICES).map(
        lambda corners: tuple(v for corner in corners for v in corner)
    ),
    page=st.integers(0, 100),
    sample=st.none() | st.integers(0, 10**6 - 1),
)


@settings(max_examples=60, deadline=None)
@given(STATES)
def test_a_state_survives_its_address(state: State) -> None:
    assert read(write(state)) == state


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_address_is_some_state(query: str) -> None:
    state = read("?" + query)
    assert state.colour in COLOURS and state.sort in SORTS and state.page >= 0
    read(f"?lasso={query}&page=-3&sample=1e99&low=nan&clusters=1.5,-2&target={query}&colour=../../etc")


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(list(State.__dataclass_fields__)), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9), lambda inner: st.lists(inner, max_size=4),
    max_leaves=6)))  # fmt: skip
def test_anything_a_browser_sends_is_some_state(values: dict[str, Any]) -> None:
    state = checked(values)
    assert read(write(state)).target == state.target


# ---------------------------------------------------------------- what is shown


def test_filters_and_the_lasso_keep_what_they_say(book: Book) -> None:
    leaf = book.of(State(target=2))
    wrong = kept(leaf, State(target=2, only="wrong"))
    assert (leaf.prediction[wrong] != leaf.label[wrong]).all() and wrong.any()
    assert set(leaf.cluster[kept(leaf, State(clusters=(0, 2)))]) == {0, 2}
    some = kept(leaf, State(low=3.0, high=4.0))
    assert some.any() and (leaf.score[some] >= 3).all() and (leaf.score[some] <= 4).all()
    assert [leaf.ids[i] for i in np.flatnonzero(kept(leaf, State(find="00029.JPG")))] == ["photos/00029.jpg"]
    low, high = leaf.points[leaf.cluster == 0].min(0) - 0.01, leaf.points[leaf.cluster == 0].max(0) + 0.01
    box = (low[0], low[1], high[0], low[1], high[0], high[1], low[0], high[1])
    inside = chosen(leaf, State(target=2, lasso=tuple(map(float, box))))
    assert set(np.flatnonzero(leaf.cluster == 0)) <= set(inside.tolist())
    assert all(low[0] <= leaf.points[i, 0] <= high[0] for i in inside)


@pytest.mark.parametrize("sort", list(SORTS))
def test_every_order_keeps_every_sample(book: Book, sort: str) -> None:
    leaf = book.of(State(target=2))
    order = chosen(leaf, State(target=2, sort=sort))
    assert sorted(order.tolist()) == list(range(len(leaf.rows)))
    if sort == "score":
        assert (np.diff(leaf.score[order]) <= 0).all()
    if sort == "typical":
        exemplars = {int(c.exemplars[0]) for c in leaf.found.clusters}
        assert set(leaf.rows[order[: len(exemplars)]].tolist()) == exemplars


@pytest.mark.parametrize("colour", list(COLOURS))
def test_the_plane_has_a_point_for_every_sample_and_a_legend_that_adds_up(book: Book, colour: str) -> None:
    made, legend = figure(book, State(target=2, colour=colour))
    rows = [np.frombuffer(base64.b64decode(t["customdata"]["bdata"]), np.int32) for t in made["data"]]
    leaf = book.of(State(target=2))
    assert sorted(np.concatenate(rows).tolist()) == sorted(leaf.rows.tolist())
    if colour != "score":
        assert sum(count for _, _, count in legend) == len(leaf.rows)
        assert [t["marker"]["color"] for t in made["data"]] == [shade for _, shade, count in legend if count]


def test_many_classes_share_the_last_colour(tmp_path: Path, store: Store, analysis: Analysis) -> None:
    from dataclasses import replace

    book = opened(store, analysis)
    leaf = replace(book.leaf(2), label=np.arange(len(book.leaf(2).rows)) % 30)
    made, legend = figure(Book(store, analysis, lambda target: leaf), State(target=2, colour="label"))
    assert len(legend) == 10 and legend[-1][0] == "21 other classes"
    assert sum(count for _, _, count in legend) == len(leaf.rows)
    assert len({t["marker"]["color"] for t in made["data"]}) == 10


# ---------------------------------------------------------------- who may look


def test_on_loopback_other_hosts_and_other_pages_are_refused(store: Store, analysis: Analysis) -> None:
    client = application(store, analysis).server.test_client()
    assert client.get("/", base_url="http://127.0.0.1:8050").status_code == 200
    assert client.get("/", base_url="http://localhost:8050").status_code == 200
    assert client.get("/", base_url="http://evil.example:8050").status_code == 403  # DNS rebinding
    crossed = client.post("/_dash-update-component", base_url="http://127.0.0.1:8050", json={}, headers={"Origin": "http://evil.example"})  # fmt: skip
    assert crossed.status_code == 403
    answer = client.get("/", base_url="http://127.0.0.1:8050")
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_opened_to_others_everything_needs_the_token(store: Store, analysis: Analysis) -> None:
    server = application(store, analysis, host="0.0.0.0", token="correct horse").server
    client = server.test_client()
    for place in ("/", "/picture/0/map", "/_dash-layout", "/_dash-dependencies", "/_favicon.ico", "/absent"):
        assert client.get(place).status_code == 401, place
    assert client.post("/_dash-update-component", json={}).status_code == 401
    assert client.get("/?token=wrong").status_code == 403
    client.set_cookie(COOKIE, "wrong")
    assert client.get("/picture/0/map").status_code == 401
    entered = client.get("/?token=correct+horse&target=2&colour=score")
    assert entered.status_code == 303 and entered.headers["Location"] == "/?target=2&colour=score"
    cookie = entered.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert client.get("/picture/0/map").status_code == 200 and client.get("/").status_code == 200


def test_no_path_of_a_request_reaches_the_file_system(store: Store, analysis: Analysis) -> None:
    client = application(store, analysis).server.test_client()
    secret = Path(store.path).parent / "secret.txt"
    secret.write_text("secret-content")
    attempts = [
        "/picture/../../etc/passwd", "/picture/-1/map", "/picture/99999999/map", "/picture/0/../../secret.txt",
        "/picture/0/map/..%2f..%2fsecret.txt", "/assets/../secret.txt", "/assets/..%2f..%2fsecret.txt", "/assets/style.css",
        "/_dash-component-suites/relprop/view/app.py", "/_dash-component-suites/dash/../../secret.txt",
        "/_dash-component-suites/dash/dcc/..%2f..%2f..%2fflask%2fapp.py", "/static/app.py", "/secret.txt", "/%2e%2e/secret.txt",
        f"/{secret}", f"/picture/{secret}", "/picture/7/map",  # 7 failed
    ]  # fmt: skip
    for attempt in attempts:
        answer = client.get(attempt, base_url="http://127.0.0.1")
        body = answer.get_data()
        assert b"secret-content" not in body and b"root:" not in body and b"def application" not in body, (
            attempt
        )
        assert answer.status_code == 404 or b"react-entry-point" in body, (
            attempt
        )  # nothing, or the page itself


def test_pictures_are_of_the_sample(store: Store, analysis: Analysis) -> None:
    from PIL import Image

    client = application(store, analysis).server.test_client()
    found = client.get("/picture/2/input", base_url="http://127.0.0.1")
    pixels = np.array(Image.open(io.BytesIO(found.get_data())).convert("RGB"))
    assert np.array_equal(pixels, store.lazy("thumbnail")[2])
    for what in ("map", "overlay", "input/large", "map/large", "overlay/large"):
        answer = client.get(f"/picture/2/{what}", base_url="http://127.0.0.1")
        assert answer.status_code == 200 and Image.open(io.BytesIO(answer.get_data())).size[0] >= 16


@pytest.mark.parametrize(
    ("host", "own"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.3", False), ("example.org", False), ("127.0.0.1.evil.example", False)]
)  # fmt: skip
def test_loopback_is_told_from_the_rest(host: str, own: bool) -> None:
    assert is_loopback(host) is own


# ---------------------------------------------------------------- names and exports


def test_names_are_kept_beside_the_store_which_is_only_read(tmp_path: Path) -> None:
    store = made_store(tmp_path / "horses", 60)
    before = files(tmp_path / "horses")
    leaf = opened(store, made_analysis(store)).leaf(2)
    places = np.flatnonzero(leaf.cluster == 0)
    give(store, "  the   mark ", 2, leaf.ids[places].tolist())
    give(store, "other", 2, leaf.ids[:2].tolist())
    assert (
        give(store, "the mark", 2, leaf.ids[places].tolist())[-1].name == "the mark"
    )  # replaced, not doubled
    assert [one.name for one in names(store)] == ["other", "the mark"]
    assert names(store)[1].ids == tuple(leaf.ids[places])
    assert files(tmp_path / "horses") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["horses", "horses.names.json"]
    rows = list(csv.DictReader(io.StringIO(csv_of(store, leaf, places, "the mark"))))
    assert [row["id"] for row in rows] == leaf.ids[places].tolist()
    assert {row["name"] for row in rows} == {"the mark"} and {row["strategy"] for row in rows} == {"1"}
    assert [float(row["score"]) for row in rows] == leaf.score[places].tolist()
    assert [one.name for one in forget(store, 0)] == ["the mark"]


@pytest.mark.parametrize("name", ["", "   ", "x" * 81, "bell\x07", "line\x00"])
def test_names_that_are_none_are_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidInput, match="printable characters"):
        give(store, name, 2, ["a"])
    assert not names_file(store).exists()


def test_a_damaged_or_later_file_of_names_is_one_clear_line(tmp_path: Path) -> None:
    store = made_store(tmp_path / "s", 12)
    names_file(store).write_text("{")
    with pytest.raises(InvalidInput, match="cannot be read"):
        names(store)
    names_file(store).write_text(json.dumps({"schema": 9, "names": []}))
    with pytest.raises(InvalidInput, match="later relprop"):
        give(store, "a", 0, ["b"])


# ---------------------------------------------------------------- the model at hand


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, torch.nn.Module, np.ndarray]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)
    ).eval()
    images = np.random.default_rng(0).random((6, 1, 8, 8)).astype(np.float32)
    folder = tmp_path_factory.mktemp("hand")
    run(net, images, folder / "store", rules="epsilon")
    from relprop.store import open as open_store

    return open_store(folder / "store"), net, images


def test_presets_on_demand_are_those_of_explain(explained: tuple[Store, torch.nn.Module, np.ndarray]) -> None:
    import relprop

    store, net, images = explained
    comparer = at_hand(store, Recipe(model=net, data=images))
    found = {
        one.preset: one
        for one in compare(comparer, store, 4, ["epsilon", "epsilon_plus", "absent", "epsilon"])
    }
    assert list(found) == ["epsilon", "epsilon_plus"]
    for preset, one in found.items():
        direct = relprop.explain(
            net, torch.from_numpy(images[4:5]), int(store.lazy("target")[4]), rules=preset
        )
        assert one.score == pytest.approx(float(direct.score[0]))
        assert one.relevance == pytest.approx(float(direct.relevance.sum()), abs=1e-5)
        assert one.picture.startswith("data:image/png") and not one.refused
    assert found["epsilon"].score == pytest.approx(float(store.lazy("score")[4]))


def test_another_model_other_data_or_none_are_refused(
    explained: tuple[Store, torch.nn.Module, np.ndarray],
) -> None:
    store, net, images = explained
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
    with pytest.raises(InvalidInput, match="--model is not the model of"):
        at_hand(store, Recipe(model=other, data=images))
    with pytest.raises(InvalidInput, match="--data is not the data of"):
        at_hand(store, Recipe(model=net, data=images[::-1].copy()))
    with pytest.raises(InvalidInput, match="--model needs the samples too"):
        at_hand(store, Recipe(model=net))


# ---------------------------------------------------------------- listening


def test_a_port_in_use_is_one_clear_line(store: Store, analysis: Analysis) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        with pytest.raises(
            InvalidInput, match=r"port: \d+ is in use on 127.0.0.1\n  do: give another --port"
        ):
            listen(store, analysis, port=held.getsockname()[1])


def test_opened_to_others_a_random_token_is_made_and_a_short_one_refused(
    store: Store, analysis: Analysis
) -> None:
    one, two = (listen(store, analysis, host="0.0.0.0", port=0) for _ in range(2))
    try:
        assert one.token and two.token and one.token != two.token and len(one.token) >= 24
        assert one.url.endswith(f"/?token={one.token}")
    finally:
        one.stop()
        two.stop()
    with pytest.raises(InvalidInput, match="shorter than 8"):
        listen(store, analysis, host="0.0.0.0", port=0, token="short")
    with pytest.raises(InvalidInput, match="port: 70000"):
        listen(store, analysis, port=70000)


def test_it_answers_on_loopback_until_it_is_stopped(store: Store, analysis: Analysis) -> None:
    listening = listen(store, analysis, port=0)
    assert listening.token is None and listening.url.startswith("http://127.0.0.1:")
    thread = threading.Thread(target=listening.run)
    thread.start()
    try:
        assert b"relprop" in urlopen(listening.url, timeout=30).read()
    finally:
        listening.stop()
        thread.join(30)
    assert not thread.is_alive()


def test_the_command_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made_store(tmp_path / "s", 30)
    cases = {
        (): "no store is named",
        (str(tmp_path / "absent"),): "no such folder",
        (str(store.path),): "has not been analysed",
        (str(store.path), "--analysis", str(tmp_path)): "no analysis is there",
    }
    for arguments, words in cases.items():
        assert main(["view", *arguments]) == 2
        said = capsys.readouterr()
        assert (
            words in said.err and said.err.count("\n") <= 2 and "Traceback" not in said.err and said.out == ""
        )
    made_analysis(store).save(tmp_path / "s.analysis")
    assert main(["view", str(store.path), "--data", "x"]) == 2
    assert "with --model only" in capsys.readouterr().err
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        assert main(["view", str(store.path), "--port", str(held.getsockname()[1])]) == 2
    assert "is in use" in capsys.readouterr().err
