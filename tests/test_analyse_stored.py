"""The analyses of whole stores: context use, two stores compared, words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relprop import analyse
from relprop.data import Preprocessing
from relprop.errors import InvalidInput
from relprop.store import Store, write_store

pytest.importorskip("zarr")
image = pytest.importorskip("PIL.Image")

HOW = Preprocessing(16, 16, (0.5,) * 3, (0.5,) * 3)
TOLD = {"preprocessing": {n: getattr(HOW, n) for n in HOW.__dataclass_fields__}, "model": {"name": "net"}}


def photographs(folder: Path, count: int = 8) -> list[str]:
    folder.mkdir()
    for i in range(count):
        image.new("RGB", (24, 16)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(count)]


def a_store(path: Path, sources: list[str], inside: float, seed: int = 0, **more: Any) -> Store:
    """Half of the samples are of each class; the object is the left half of the crop."""
    draw = np.random.default_rng(seed)
    count = len(sources)
    relevance = draw.random((count, 3, 16, 16)) * 0.1
    relevance[:, :, :, :8] += inside
    target = np.arange(count) % 2
    given: dict[str, Any] = {
        "relevance": relevance.astype(np.float32),
        "output": np.eye(2)[target],
        "label": target,
        "source": sources,
        "id": sources,
        "classes": ("tabby", "beagle"),
        "attributes": TOLD,
    }
    return write_store(path, **{**given, **more})


BOXES = [analyse.Box("cat", 0, 0, 12, 16), analyse.Box("dog", 0, 0, 12, 16)]  # the crop starts at 4


def test_the_context_use_of_a_store_follows_boxes_classes_and_what_is_there(tmp_path: Path) -> None:
    sources = photographs(tmp_path / "photos")
    status = np.ones(8)
    status[0] = 2
    store = a_store(tmp_path / "store", sources, 1.0, status=status)
    boxes = {Path(one).name: BOXES for one in sources}
    boxes.pop("2.png")
    boxes["3.png"] = BOXES[:1]  # a cat alone, and sample 3 is explained for the dog
    Path(sources[5]).unlink()
    found = analyse.store_context(store, boxes, {"cat": [0], "dog": [1, 7]})
    assert list(found.rows) == [1, 4, 6, 7] and found.use.classes == ("dog", "cat", "cat", "dog")
    assert found.excluded == {
        "not explained": 1,
        "no boxes for the photograph": 1,
        "no box of the explained class": 1,
        "the photograph is not there any more": 1,
    }
    assert all(0.02 < float(r) < 0.08 for r in found.use.ratio)  # 0.05 outside, 1.05 inside
    assert found.use.overall.accuracy == 1.0
    assert "the photograph is not there" in str(found) and found.as_dict()["samples"] == 4


def test_stores_that_boxes_cannot_be_placed_in_are_refused(tmp_path: Path) -> None:
    sources = photographs(tmp_path / "photos")
    boxes = {Path(one).name: BOXES for one in sources}
    store = a_store(tmp_path / "store", sources, 1.0)
    with pytest.raises(InvalidInput, match="no sample of"):
        analyse.store_context(store, boxes)  # the outputs' names are those of breeds
    with pytest.raises(InvalidInput, match="does not say how its photographs were cropped"):
        analyse.store_context(a_store(tmp_path / "bare", sources, 1.0, attributes={}), boxes)
    table = write_store(tmp_path / "table", relevance=np.ones((2, 5)), output=np.ones((2, 2)), kind="table")
    with pytest.raises(InvalidInput, match="kind 'table'"):
        analyse.store_context(table, boxes)


def test_two_stores_are_compared_by_their_ids(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    sources = [f"/there/{i}.png" for i in range(30)]
    first = a_store(tmp_path / "first", sources, 1.0)
    turned = a_store(tmp_path / "second", sources[::-1][:28], 1.0, seed=1)
    found = analyse.compare_stores(first, turned, grid=2, flips=300)
    assert (
        found.samples == 28 and found.agree == 0.0
    )  # the second's classes run the other way, sample by sample
    same = a_store(tmp_path / "third", sources, 0.0, seed=1)
    found = analyse.compare_stores(first, same, ("left", "anywhere"), grid=2, flips=300)
    assert found.agree == 1 and found.names == ("left", "anywhere")
    assert {one.name for one in found.different() if one.first > one.second} == {
        "row 1, column 1",
        "row 2, column 1",
    }
    with pytest.raises(InvalidInput, match="share no sample"):
        analyse.compare_stores(first, a_store(tmp_path / "fourth", ["/other.png"] * 1, 1.0))
    with pytest.raises(InvalidInput, match="other classes"):
        analyse.compare_stores(first, a_store(tmp_path / "fifth", sources, 1.0, classes=("a", "b")))


@pytest.mark.parametrize(
    ("kind", "shape", "place"),
    [("table", (6,), "age"), ("series", (32,), "step 1 of 16"), ("audio", (1, 64), "step 1 of 16")],
)
def test_tables_and_series_are_compared_place_by_place(
    tmp_path: Path, kind: str, shape: tuple[int, ...], place: str
) -> None:
    pytest.importorskip("scipy")
    draw = np.random.default_rng(0)
    told = {"features": ["age", *"bcdef"]} if kind == "table" else {}
    stores = []
    for number in (0, 1):
        relevance = draw.random((20, *shape))
        relevance[..., 0] += number * 60
        if kind != "table":
            relevance[3, ..., -5:] = np.nan  # a shorter sample than the others
        stores.append(
            write_store(tmp_path / str(number), relevance=relevance, output=np.ones((20, 1)), target=np.zeros(20, int), kind=kind, attributes=told)
        )  # fmt: skip
    found = analyse.compare_stores(*stores, grid=4, flips=300)
    first = found.different()[0]
    assert (first.name, first.count) == (place, 20) and first.second > first.first
    assert found.agree == 1.0


def texts(path: Path, mark: float) -> Store:
    words = [["a", "fine", "film"], ["a", "dull", "film"]] * 10
    draw = np.random.default_rng(int(mark))
    relevance = np.zeros((20, 5))
    for i, own in enumerate(words):
        relevance[i, : len(own)] = np.array([0.0, 1.0, mark]) + draw.normal(0, 0.05, 3)
    tokens = [json.dumps([["a", 0, 1], [w[1], 2, 6], ["film", 7, 11]]) for w in words]
    output = np.eye(2)[[1, 0] * 10]
    return write_store(
        path, relevance=relevance, output=output, tokens=tokens, kind="text", classes=("bad", "good")
    )


def test_the_words_of_stores_of_texts_are_listed_and_compared(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    first, second = texts(tmp_path / "first", 0.0), texts(tmp_path / "second", 3.0)
    listed = analyse.store_words(first, most=1, other=second)
    assert {name: rows[0].word for name, rows in listed.items()} == {"bad": "dull", "good": "fine"}
    assert not listed["bad"][0].shared and analyse.store_words(second, most=1)["bad"][0].word == "film"
    found = analyse.compare_stores(first, second, flips=300)
    assert ("good", "film") in {(one.group, one.name) for one in found.different()}
    with pytest.raises(InvalidInput, match="holds no tokens"):
        analyse.stored_words(a_store(tmp_path / "images", ["x"], 1.0))


def test_one_value_for_two_classes_speaks_for_either(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    two = texts(tmp_path / "two", 0.0)
    sign = np.where(np.arange(20) % 2 == 0, 1.0, -1.0)  # good is class 1, bad is below 0
    given: dict[str, Any] = {
        "relevance": two.relevance[:] * sign[:, None],
        "output": sign[:, None],
        "target": np.ones(20, dtype=int),
        "score": sign,
        "tokens": list(two.column("tokens")),
        "kind": "text",
        "classes": ("bad", "good"),
    }
    one = write_store(tmp_path / "one", **given)
    assert analyse.store_words(one, most=1) == analyse.store_words(two, most=1)
    found = analyse.compare_stores(one, two, flips=100)
    assert found.agree == 1.0 and not found.different()
    assert all(each.similarity == pytest.approx(1.0) for each in found.classes)
