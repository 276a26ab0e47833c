"""The report: all sections, nothing from elsewhere, bounded in size, safe against what names contain, printable."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from browser import chromium
from relprop.analyse import Analysis
from relprop.errors import InvalidInput
from relprop.show.report import report, report_html
from relprop.show.samples import picture_of
from relprop.store import Store, write_store
from strategies_store import NAMES, Horses, made_analysis, made_store


@pytest.fixture(scope="module")
def store(horses: Horses) -> Store:
    return horses.store


@pytest.fixture(scope="module")
def analysis(horses: Horses) -> Analysis:
    return horses.analysis


@pytest.fixture(scope="module")
def page(store: Store, analysis: Analysis) -> str:
    return report_html(store, analysis)


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_the_summary_names_the_flagged_strategy_with_its_evidence_and_the_experiment(page: str) -> None:
    summary = words(page[page.index('id="summary"') : page.index('id="ranking"')])
    assert "1 of 6 strategies is flagged" in summary
    assert "horse &amp; rider, strategy 1" in summary
    assert "61 % of its relevance lies in the lower left corner" in summary
    assert "confirmed by experiment" in summary and "raises the score by 2.4" in summary


def test_every_section_is_there_with_its_figures(page: str) -> None:
    said = words(page)
    for part in (
        "Classes ranked",
        "Strategies by class",
        "Method and plan",
        "Audit",
        "Failures",
        "To repeat this",
    ):
        assert part in said
    assert "238 of 240" in said  # samples explained
    assert "the file is empty" in said and "photos/00007.jpg" in said
    assert "Gamma(gamma=0.25)" in said and "relprop run --model tiny" in said and "3f9a0c" in said
    assert "3 samples, at least 20 are needed" in said  # a class that was refused
    strategies = page[page.index('id="strategies"') : page.index('id="samples"')]
    assert strategies.count('class="pair"') == 36  # six exemplars for each of six strategies


def test_nothing_is_loaded_from_elsewhere_and_names_stay_text(page: str) -> None:
    assert "<script" not in page and "dog &lt;script&gt;" in page
    assert not re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?(?!#|data:)[^"\'\s>]', page)
    assert not re.findall(r"https?://(?!www\.w3\.org)", page)


def test_without_a_flag_the_report_says_what_that_does_not_prove(store: Store, analysis: Analysis) -> None:
    calm = tuple(
        replace(one, clusters=tuple(replace(c, suspicion=0.2, confirmation=None) for c in one.clusters))
        for one in analysis.classes
    )
    said = words(report_html(store, replace(analysis, classes=calm)))
    assert "No strategy is flagged" in said and "does not prove" in said


def test_a_strategy_has_one_name_in_the_terminal_and_in_the_report(
    store: Store, analysis: Analysis, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("typer", reason="typer is not installed")
    from relprop.cli.analyse import as_json, print_analysis

    print_analysis(store, analysis)
    printed = capsys.readouterr().out
    one, cluster = analysis.flagged[0]
    assert f"strategy {cluster.number + 1}, suspicion 0.93" in printed and "cluster " not in printed
    assert f"{one.name}, strategy {cluster.number + 1}" in words(page).replace("&amp;", "&")
    assert as_json(analysis)["suspects"][0]["strategy"] == cluster.number + 1


def test_mistakes_close_decisions_and_relevance_on_the_border_are_shown(
    tmp_path: Path, store: Store, page: str
) -> None:
    part = words(page[page.index('id="samples"') : page.index('id="method"')])
    assert "Mistakes the model is surest of" in part and "Decisions that were close" in part
    wrong = store.done & (store.column("output").argmax(1) != store.column("label"))
    first = int(np.flatnonzero(wrong)[np.argmax(store.column("score")[wrong])])
    assert f"{wrong.sum()} predictions are not the label" in part
    caption = part.partition("got the highest scores.")[2].partition(" score ")[0]
    assert store.column("id")[first].split("/")[1] in caption
    assert f"label {NAMES[store.column('label')[first]].split()[0]}" in caption
    assert "Relevance on the border" not in part  # the store has no small maps
    pooled = np.full((60, 32, 32), -1.0, np.float32)
    pooled[:, 16, 16] = 3.0
    pooled[8, 0, :] = 1.0
    columns = {n: store.column(n)[:60] for n in ("output", "target", "label", "relevance", "status", "id")}
    framed = write_store(tmp_path / "s", pooled=pooled, **columns)
    part = words(report_html(framed, made_analysis(framed)))
    part = part[part.index("Relevance on the border") :]
    assert part.index("00008.jpg") < part.index("91 % on the border") < part.index("0 % on the border")


def test_an_unconfirmed_flag_is_called_a_hypothesis(store: Store) -> None:
    found = made_analysis(store, confirmed=False)
    said = words(report_html(store, found))
    assert "A flag is a hypothesis" in said and "Confirmed by experiment" not in said
    first = found.classes[0]
    why = tuple(replace(c, unconfirmed="only 3 samples") for c in first.clusters)
    untried = replace(found, classes=(replace(first, clusters=why), *found.classes[1:]))
    assert "Not put to the test: only 3 samples." in words(report_html(store, untried))


def test_a_report_that_would_be_too_large_leaves_out_classes_and_says_so(
    store: Store, analysis: Analysis, page: str
) -> None:
    small = report_html(store, analysis, largest=len(page.encode()) * 2 // 3)
    assert len(small.encode()) <= len(page.encode()) * 2 // 3
    assert "more are in the table of section 2 only" in words(small)
    assert 'id="class-2"' in small  # the most suspicious class is the last to go
    assert words(small).count("dog &lt;script&gt;") >= 1  # still in the table


def test_accounts_that_leave_more_than_rounding_are_counted(tmp_path: Path, store: Store) -> None:
    rows = np.flatnonzero(store.done)
    gap = store.column("gap")[rows]
    gap[:3] = 0.5
    columns = {name: store.column(name)[rows] for name in ("output", "target", "label", "score", "thumbnail")}
    again = write_store(
        tmp_path / "s", relevance=store.relevance[rows], gap=gap, classes=store.classes, **columns
    )
    said = words(report_html(again, made_analysis(again)))
    assert "The account of 3 of 238 explanations leaves more than rounding" in said
    assert "The store keeps no plan" in said and "every sample was read and explained" in said


@pytest.mark.parametrize("kind", ["series", "table"])
def test_values_without_two_dimensions_are_drawn_as_bars(tmp_path: Path, kind: str) -> None:
    plain = made_store(tmp_path / "s", 60, kind=kind)
    page = report_html(plain, made_analysis(plain))
    assert page.count("data:image/svg+xml") > 6 and "data:image/jpeg" not in page


def test_words_of_a_text_are_coloured_and_stay_text(tmp_path: Path) -> None:
    plain = made_store(tmp_path / "s", 60, side=6, kind="text")
    columns = {n: plain.column(n) for n in ("output", "target", "label", "id", "relevance", "status")}
    told = [json.dumps([["<b>", 0, 3], ["film", 4, 8]])] * 59 + ["[]"]
    texts = write_store(
        tmp_path / "t", kind="text", tokens=told, text=["<b> film " + "x " * 500] * 60, **columns
    )
    page = report_html(texts, made_analysis(texts))
    first = page[page.index('<p class="words">') :].partition("</p>")[0]
    assert re.search(r'<span style="background:#[0-9a-f]{6};[^"]*" title="[+−][^"]*">&lt;b&gt;</span>', first)
    assert "<b>" not in first and "…" in first
    assert "data:image/svg+xml" in page  # the mean of the class


def test_zero_is_the_neutral_colour_to_the_bit() -> None:
    from io import BytesIO

    from PIL import Image

    values = np.array([[0.0, 1.0], [-1.0, 0.0]])
    pixels = np.array(Image.open(BytesIO(picture_of(values)[1])).convert("RGB"))
    assert pixels[0, 0].tolist() == pixels[1, 1].tolist() == [247, 247, 247]
    assert pixels[0, 1, 0] > 150 > pixels[0, 1, 2] and pixels[1, 0, 2] > 150 > pixels[1, 0, 0]


def test_maps_that_are_made_smaller_keep_their_colours(tmp_path: Path) -> None:
    from io import BytesIO

    from PIL import Image

    from relprop.show.samples import overlay_of

    values = np.where(np.indices((240, 240)).sum(0) % 5 == 0, 1.0, 0.0)  # specks, a fifth of it
    values[:, :120] = 0
    photo = np.full((60, 60, 3), 128, np.uint8)
    for kind, file in (picture_of(values, side=60), overlay_of(values, photo, 60)):
        pixels = np.array(Image.open(BytesIO(file)).convert("RGB")).astype(int)
        strongest = (pixels[:, 40:, 0] - pixels[:, 40:, 2]).max()
        assert strongest > 100, kind


def test_bad_places_and_another_stores_analysis_are_refused(
    tmp_path: Path, store: Store, analysis: Analysis
) -> None:
    with pytest.raises(InvalidInput, match="does not end in"):
        report(store, analysis, tmp_path / "report.pdf")
    with pytest.raises(InvalidInput, match="no folder"):
        report(store, analysis, tmp_path / "absent" / "report.html")
    other = made_store(tmp_path / "small", 30)
    with pytest.raises(InvalidInput, match="the analysis speaks of sample"):
        report(other, analysis, tmp_path / "report.html")
    assert not list(tmp_path.glob("*.html"))


def test_a_browser_shows_it_without_a_request_in_both_schemes_and_prints_it(
    tmp_path: Path, store: Store, analysis: Analysis
) -> None:
    made = report(store.path, analysis, tmp_path / "report.html")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with chromium() as browser:
        grounds = []
        for scheme in ("light", "dark"):
            page = browser.new_page(color_scheme=scheme, viewport={"width": 1000, "height": 800})
            said: list[str] = []
            asked: list[str] = []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(made.as_uri())
            assert said == [] and [url for url in asked if not url.startswith("data:")] == [made.as_uri()]
            broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert broken == 0 and wide <= 1000
            grounds.append(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
            if scheme == "light":
                assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
            page.close()
        narrow = browser.new_page(viewport={"width": 400, "height": 800})
        narrow.goto(made.as_uri())
        assert narrow.evaluate("document.documentElement.scrollWidth") <= 400
    assert grounds[0] == "rgb(255, 255, 255)" and grounds[1] != grounds[0]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("lrp", "by layer-wise relevance propagation"),
        ("gradient", "by the method gradient: the gradient of the score"),
        (None, "the store does not say"),
    ],
)
def test_the_method_is_the_one_that_the_store_was_explained_by(
    tmp_path: Path, method: str | None, words: str
) -> None:
    store = made_store(tmp_path / "store", method=method)
    place = report(store, made_analysis(store), tmp_path / "report.html")
    assert words in place.read_text(encoding="utf-8")
