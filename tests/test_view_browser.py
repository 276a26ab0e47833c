"""The browser in a real Chromium: what a person does, and what is there afterwards."""

from __future__ import annotations

import csv
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("dash", reason="the extra [view] is not installed")

from browser import chromium
from relprop.run import Recipe
from relprop.store import Store
from relprop.view import Listening, listen
from relprop.view.compare import at_hand
from relprop.view.names import names
from strategies_store import made_analysis, made_store

WAIT = 60_000  # milliseconds: the machine may be busy


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def store(place: Path) -> Store:
    return made_store(place / "horses", fingerprint="")  # so that any model may be at hand


@pytest.fixture(scope="module")
def served(store: Store) -> Iterator[Listening]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3)).eval()
    images = np.random.default_rng(0).random((240, 1, 16, 16)).astype(np.float32)
    listening = listen(
        store, made_analysis(store), port=0, comparer=at_hand(store, Recipe(model=net, data=images))
    )
    thread = threading.Thread(target=listening.run)
    thread.start()
    yield listening
    listening.stop()
    thread.join(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Any, served: Listening) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    page.set_default_timeout(WAIT)
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda r: None if r.url.startswith((served.url, "data:", "blob:")) else wrong.append(r.url)
    )
    page.goto(served.url)
    ready(page)
    yield page
    page.close()
    assert wrong == []  # no error, and nothing asked of another host


def ready(page: Any) -> None:
    page.wait_for_selector("#grid .tile img")
    page.wait_for_selector("#plane .nsewdrag")


def says(page: Any, where: str, words: str) -> None:
    page.wait_for_function(
        "([where, words]) => new RegExp(words).test(document.querySelector(where)?.textContent ?? '')",
        arg=[where, words],
    )


def lasso(page: Any, corners: list[tuple[float, float]]) -> None:
    box = page.locator("#plane .nsewdrag").bounding_box()
    places = [(box["x"] + a * box["width"], box["y"] + b * box["height"]) for a, b in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for one in [*places[1:], places[0]]:
        page.mouse.move(*one, steps=3)
    page.mouse.up()


def rows(page: Any) -> list[int]:
    return [
        int(v) for v in page.eval_on_selector_all("#grid [data-row]", "all => all.map(e => e.dataset.row)")
    ]


CORNER = [(0.01, 0.5), (0.45, 0.5), (0.45, 0.99), (0.01, 0.99)]
"""Where the planted strategy lies in the plane of the horses."""


def test_a_lasso_fills_the_grid_and_its_link_restores_the_view(page: Any, browser: Any, store: Store) -> None:
    says(page, "#count", "79 samples")
    lasso(page, CORNER)
    says(page, "#count", "25 selected")
    planted = {int(r) for r in np.flatnonzero((store.column("target") == 2) & store.done) if r % 9 < 3}
    assert set(rows(page)) <= planted and len(rows(page)) == 24
    page.locator("#on").click()
    says(page, "#where", "page 2 of 2")
    page.locator("#colour input").nth(3).click()  # by score
    page.wait_for_function("location.search.includes('colour=score') && location.search.includes('page=1')")
    page.locator("#grid [data-row]").first.click()
    page.wait_for_selector("#detail .large img")
    page.wait_for_function("location.search.includes('sample=')")
    again = browser.new_page(viewport={"width": 1500, "height": 900})
    again.set_default_timeout(WAIT)
    again.goto(page.url)
    ready(again)
    says(again, "#count", "25 selected")
    says(again, "#where", "page 2 of 2")
    assert again.locator("#colour input").nth(3).is_checked() and rows(again) == rows(page)
    again.wait_for_selector("#detail .large img")
    assert again.locator("#detail h2").inner_text() == page.locator("#detail h2").inner_text()
    again.close()
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail", state="hidden")
    page.locator("#clear").click()
    says(page, "#count", "79 samples")


def test_filters_order_and_keys(page: Any, store: Store) -> None:
    page.locator("#only input").nth(2).click()  # wrong ones
    says(page, "#count", r"4 of 79 samples")
    wrong = np.flatnonzero((store.column("target") == 2) & (store.column("label") != 2) & store.done)
    assert sorted(rows(page)) == wrong.tolist()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#detail .large img")
    first = page.locator("#detail h2").inner_text()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("name => document.querySelector('#detail h2').textContent !== name", arg=first)
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail", state="hidden")
    page.keyboard.press("c")
    page.wait_for_function("location.search.includes('colour=label')")
    page.keyboard.press("m")
    page.wait_for_function("location.search.includes('show=overlay')")
    page.wait_for_selector("#grid img[src$=overlay]")
    page.keyboard.press("/")
    page.wait_for_function("document.activeElement.id === 'find'")
    page.keyboard.insert_text("00100")
    says(page, "#count", "1 of 79 samples")
    assert rows(page) == [100]
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.wait_for_selector("#help", state="visible")


def test_a_strategy_is_named_and_exported_and_the_store_stays_as_it_was(
    page: Any, store: Store, tmp_path: Path
) -> None:
    def files() -> dict[str, bytes]:
        return {str(f): f.read_bytes() for f in Path(store.path).rglob("*") if f.is_file()}

    before = files()
    page.locator("#clusters input").first.click()
    says(page, "#count", "25 of 79 samples")
    page.locator("#name").fill("white mark <b>")
    page.locator("#save").click()
    says(page, "#said", "25 samples are now")
    says(page, "#names", "white mark <b>")
    assert [(one.name, one.target, len(one.ids)) for one in names(store)] == [("white mark <b>", 2, 25)]
    with page.expect_download() as waited:
        page.locator("#names button", has_text="CSV").click()
    waited.value.save_as(tmp_path / "one.csv")
    with page.expect_download() as waited:
        page.locator("#export").click()
    waited.value.save_as(tmp_path / "two.csv")
    one, two = (list(csv.DictReader((tmp_path / n).read_text().splitlines())) for n in ("one.csv", "two.csv"))
    assert {r["id"] for r in one} == {r["id"] for r in two} == set(names(store)[0].ids)
    assert re.fullmatch(r"[\w.-]+\.csv", waited.value.suggested_filename)
    page.locator("#names button", has_text="×").click()
    says(page, "#names", "none yet")
    page.locator("#name").fill("")
    page.locator("#save").click()
    says(page, "#said", "printable characters")
    assert files() == before


def test_the_detail_has_outputs_account_and_presets_on_demand(page: Any, store: Store) -> None:
    page.locator("#grid [data-row]").first.click()
    page.wait_for_selector("#detail .large img")
    said = page.locator("#detail").inner_text()
    assert "explained" in said and "left over" in said and "1 of 3 (horse & rider)" in said
    assert page.evaluate("document.querySelectorAll('#detail script, #grid script').length") == 0
    page.wait_for_function(
        "[...document.querySelectorAll('#detail img')].every(i => i.complete && i.naturalWidth)"
    )
    page.locator("#compute").click()
    page.wait_for_selector("#compared figure")
    assert page.locator("#compared figure").count() == 4
    assert page.locator("#compared figure img").count() >= 3
    page.locator("#close").click()
    page.wait_for_selector("#compare-tools", state="hidden")


def test_another_class_has_its_own_plane_and_strategies(page: Any) -> None:
    page.locator("#target").click()
    page.locator(".dash-dropdown-option", has_text="dog").click()
    says(page, "#count", "79 samples")
    page.wait_for_function("document.querySelectorAll('#clusters input').length === 1")
    page.wait_for_function("location.search.includes('target=1')")
    says(page, "#legend", "strategy 1")


def test_words_of_a_text_are_coloured(browser: Any, place: Path) -> None:
    import json

    plain = made_store(place / "words", 60, side=6, kind="text")
    from relprop.store import write_store

    columns = {n: plain.column(n) for n in ("output", "target", "label", "id", "relevance", "status")}
    told = [json.dumps([["good", 0, 4], ["<b>film", 5, 12]]) for _ in range(60)]
    texts = write_store(place / "texts", kind="text", classes=plain.classes, tokens=told, text=["good <b>film"] * 60, **columns)  # fmt: skip
    listening = listen(texts, made_analysis(texts), port=0)
    thread = threading.Thread(target=listening.run)
    thread.start()
    try:
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(listening.url)
        page.wait_for_selector("#grid .tile .words")
        first = page.locator("#grid .words").first
        assert first.inner_text() == "good <b>film"
        assert (
            first.locator("span").first.evaluate("e => getComputedStyle(e).backgroundColor")
            != "rgba(0, 0, 0, 0)"
        )
        page.close()
    finally:
        listening.stop()
        thread.join(30)


@pytest.mark.parametrize("width", [400, 800, 1600])
def test_no_control_is_cut_off_in_a_window_of_any_width(browser: Any, served: Listening, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(served.url)
    page.wait_for_selector(".tile", timeout=WAIT)
    for what in ("#export", "#save", "#show", "#sort", "#on", "#help-button", "#clear", ".pager .scale"):
        box = page.locator(what).bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width, what
    page.close()
