"""The store: what is written is read, a block is there as a whole or not at all, and what is no store is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("zarr")

from relprop import store
from relprop.errors import InvalidInput, RelpropError
from relprop.store import DONE, FAILED, Spec, create, reopen, write_store


def arrays(count: int, seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {
        "relevance": draw.normal(size=(count, 3, 4, 5)).astype("float32"),
        "output": draw.normal(size=(count, 7)),
        "label": draw.integers(0, 7, count),
        "thumbnail": draw.integers(0, 255, (count, 6, 6, 3)).astype("uint8"),
        "id": [f"Bär {i}.jpg" for i in range(count)],
    }


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    held = arrays(10)
    made = write_store(
        tmp_path / "s", **held, classes=list("abcdefg"), block=4, attributes={"command": "by hand"}
    )
    for name, values in held.items():
        assert np.array_equal(made.column(name), values), name
    assert made.relevance.dtype == np.float32 and made.relevance.axes == ("sample", "channel", "y", "x")
    assert np.array_equal(made.column("target"), held["output"].argmax(1))
    assert np.array_equal(made.column("score"), held["output"].max(1))
    assert made.done.all() and made.complete and len(made) == 10
    assert (
        made.class_name(2) == "c"
        and made.class_name(9) == "class 9"
        and made.attributes["command"] == "by hand"
    )
    assert made.attributes["schema"] == store.SCHEMA and made.kind == "image"


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_rows_are_read_in_the_order_asked(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    where = tmp_path_factory.getbasetemp() / "rows-store"
    values = np.arange(23 * 6.0).reshape(23, 6)
    made = (
        store.open(where)
        if where.exists()
        else write_store(where, relevance=values, output=values, kind="table", block=5)
    )
    rows: Any = data.draw(
        st.one_of(
            st.lists(st.integers(-23, 22), max_size=12).map(lambda r: np.array(r, dtype=int)),
            st.integers(-23, 22),
            st.slices(23),
            st.lists(st.booleans(), min_size=23, max_size=23).map(np.array),
        )
    )
    assert np.array_equal(made.relevance[rows], values[rows])
    assert made.column("id")[3] == "3"


@pytest.mark.parametrize(
    ("rows", "words"),
    [([23], "samples"), ([True], "mask"), (["a"], "neither"), ([[1]], "neither"), ([0.5], "neither")],
)
def test_rows_that_are_none_are_refused(tmp_path: Path, rows: Any, words: str) -> None:
    made = write_store(tmp_path / "s", relevance=np.ones((23, 2)), output=np.ones((23, 1)), kind="table")
    with pytest.raises(InvalidInput, match=words):
        made.relevance[rows]


def test_what_is_not_done_reads_as_nan_and_a_block_is_finished_by_its_status(tmp_path: Path) -> None:
    specs = {
        "relevance": Spec("float32", (2,), ("feature",), np.nan),
        "output": Spec("float32", (1,), ("output",), np.nan),
    }
    writer = create(tmp_path / "s", 7, specs, {"kind": "table"}, block=3)
    assert not writer.finished().any()
    writer.write(
        1,
        {
            "relevance": np.ones((3, 2)),
            "output": np.ones((3, 1)),
            "status": [DONE, FAILED, DONE],
            "reason": ["", "why", ""],
        },
    )
    half = store.open(tmp_path / "s")
    assert half.status.tolist() == [0, 0, 0, 1, 2, 1, 0] and not half.complete
    assert np.isnan(half.relevance[0]).all() and np.isnan(half.column("score")).all()
    assert half.column("reason").tolist()[3:6] == ["", "why", ""] and half.column("target")[0] == -1
    (tmp_path / "s" / "relevance" / "c" / "0.1.partial").write_bytes(b"half")
    assert reopen(tmp_path / "s").finished().tolist() == [False, True, False]
    assert not list((tmp_path / "s").rglob("*.partial"))


def test_xarray_opens_it_with_names_for_the_axes(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    write_store(tmp_path / "s", **arrays(6), block=4)
    with xarray.open_zarr(tmp_path / "s", consolidated=False) as opened:
        assert dict(opened.sizes)["sample"] == 6 and opened.relevance.dims == ("sample", "channel", "y", "x")
        assert float(opened.relevance.sel(sample=5).sum()) == pytest.approx(
            float(arrays(6)["relevance"][5].sum()), rel=1e-5
        )
        assert str(opened.id.values[2]) == "Bär 2.jpg"


def refusal(action: Any) -> str:
    with pytest.raises(RelpropError) as caught:
        action()
    lines = str(caught.value).split("\n")
    assert len(lines) == 2 and lines[1].startswith("  do: "), lines
    return str(caught.value)


def test_what_is_no_store_or_of_the_future_is_refused_in_one_line(tmp_path: Path) -> None:
    import zarr

    path = tmp_path / "s"
    assert "no such folder" in refusal(lambda: store.open(path))
    path.mkdir()
    assert "holds no store" in refusal(lambda: store.open(path))
    zarr.create_group(tmp_path / "z")
    assert "none of relprop's" in refusal(lambda: store.open(tmp_path / "z"))
    write_store(path, **arrays(3))
    assert "holds a store already" in refusal(lambda: write_store(path, **arrays(3)))
    told = json.loads((path / "zarr.json").read_text())
    told["attributes"]["schema"] = 99
    (path / "zarr.json").write_text(json.dumps(told))
    assert "schema 99" in refusal(lambda: store.open(path)) and "update relprop" in refusal(
        lambda: reopen(path)
    )
    (path / "zarr.json").write_text("{")
    assert "cannot be opened" in refusal(lambda: store.open(path))


def test_a_damaged_or_lost_column_is_named(tmp_path: Path) -> None:
    made = write_store(tmp_path / "s", **arrays(3))
    (tmp_path / "s" / "output" / "c" / "0" / "0").write_bytes(b"?")
    assert "'output' is damaged" in refusal(lambda: made.column("output"))
    (tmp_path / "s" / "label" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "array"}')
    assert "lacks the columns label" in refusal(lambda: store.open(tmp_path / "s"))
    (tmp_path / "s" / "label" / "zarr.json").write_text("{")
    assert "a column that cannot be opened" in refusal(lambda: store.open(tmp_path / "s"))
    shutil.rmtree(tmp_path / "s" / "label")
    shutil.rmtree(tmp_path / "s" / "score")
    assert "lacks the columns label, score" in refusal(lambda: store.open(tmp_path / "s"))
    assert "no column 'heat'" in refusal(lambda: made.lazy("heat"))


def test_a_damaged_column_costs_one_line_and_nothing_more_when_the_program_ends(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    held = write_store(
        tmp_path / "s", relevance=draw.normal(size=(200, 3, 16, 16)), output=np.eye(200, 3), block=4
    )
    for file in [file for file in sorted((held.path / "relevance" / "c").rglob("*")) if file.is_file()][:10]:
        file.write_bytes(file.read_bytes()[:100])
    code = (
        "import sys, relprop\n"
        "try:\n    relprop.store.open(sys.argv[1]).relevance[:]\n"
        "except relprop.InvalidInput as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(held.path)], capture_output=True, text=True, check=False
    )
    assert "'relevance' is damaged" in done.stdout and done.stdout.count("\n") == 2
    assert done.stderr == ""


def test_columns_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    good = arrays(3)
    assert "label" in refusal(lambda: write_store(tmp_path / "s", **{**good, "label": [1]}))
    for target in ([0, 99, 0], [-1, 0, 0], [0.0, 0.0, 0.0], [0]):
        without = {name: values for name, values in good.items() if name != "score"}
        assert "target" in refusal(
            lambda t=target, w=without: write_store(tmp_path / "s", **{**w, "target": t})
        )
    assert "kind" in refusal(lambda: write_store(tmp_path / "s", **good, kind="film"))
    assert "relevance" in refusal(lambda: write_store(tmp_path / "s", relevance=[1.0], output=[[1.0]]))
    writer = create(tmp_path / "w", 3, {"relevance": Spec("float32", (2,), ("feature",)), "output": Spec("float32", (1,), ("output",))}, {"kind": "table"})  # fmt: skip
    assert "no column 'x'" in refusal(lambda: writer.write(0, {"x": [1, 2, 3], "status": [1, 1, 1]}))
    assert "shape" in refusal(lambda: writer.write(0, {"status": [1, 1]}))
    (tmp_path / "file").write_text("")
    assert "is in use" in refusal(lambda: write_store(tmp_path / "file", **good))
    assert not (tmp_path / "s").exists()
