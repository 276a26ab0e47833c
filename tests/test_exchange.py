"""Other software's files: what is written is what they read (benchmarks/interoperation.py opens it in them), and comes back."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relprop
from relprop import analyse, exchange
from relprop.errors import InvalidInput
from relprop.store import Store, write_store

h5py = pytest.importorskip("h5py")
yaml = pytest.importorskip("yaml")
pytest.importorskip("zarr")

N = 12
LABELS = np.repeat([0, 1], 6)


def a_store(path: Path, **more: Any) -> Store:
    draw = np.random.default_rng(0)
    given: dict[str, Any] = {
        "relevance": draw.normal(size=(N, 3, 8, 8)).astype(np.float32),
        "output": np.eye(2)[LABELS] + draw.normal(size=(N, 2)) * 0.1,
        "label": LABELS,
        "thumbnail": draw.integers(0, 255, (N, 8, 8, 3), dtype=np.uint8),
        "classes": ("cat", "dog"),
        "id": [f"photo {i}" for i in range(N)],
        "attributes": {"model": {"name": "a network"}, "method": "lrp", "rules": "auto"},
    }
    return write_store(path, **{**given, **more})


def an_analysis(store: Store) -> analyse.Analysis:
    classes = []
    for target in (0, 1):
        rows = np.flatnonzero((store.column("target") == target) & store.done)
        labels = np.arange(len(rows)) % 2
        maps = store.relevance[rows].sum(1)
        clusters = tuple(
            analyse.Cluster(
                k, rows[labels == k], 0.5, 0.9 - k / 2, (), rows[labels == k][:2], maps[labels == k].mean(0)
            )
            for k in (0, 1)
        )
        draw = np.random.default_rng(target)
        classes.append(
            analyse.ClassAnalysis(
                target, store.class_name(target), rows, np.array([0.0, 0.1, 0.5]), 2, 2, {2: labels, 3 + target: labels},
                draw.normal(size=(len(rows), 2)).astype(np.float32), draw.normal(size=(len(rows), 3)).astype(np.float32),
                1.0, {}, clusters, maps.mean(0),
            )
        )  # fmt: skip
    return analyse.Analysis(tuple(classes))


def test_a_store_becomes_the_files_that_virelay_reads(tmp_path: Path) -> None:
    store = a_store(tmp_path / "store")
    file = exchange.export_virelay(store, tmp_path / "project", an_analysis(store))
    told = yaml.safe_load(file.read_text())["project"]
    assert told["dataset"]["type"] == "hdf5" and told["attributions"]["attribution_strategy"] == "true_label"
    with h5py.File(file.parent / told["dataset"]["path"]) as held:
        assert held["data"].shape == (N, 3, 8, 8) and held["data"].dtype == np.uint8
        np.testing.assert_array_equal(held["data"][:], store.column("thumbnail").transpose(0, 3, 1, 2))
        assert held["label"].dtype.kind == "u" and list(held["label"]) == list(LABELS)
    with h5py.File(file.parent / told["attributions"]["sources"][0]) as held:
        np.testing.assert_array_equal(held["attribution"][:], store.relevance[:])
        assert held["label"].shape == (N,) and held["label"].dtype == np.uint32
        assert held["prediction"].shape == (N, 2) and held["prediction"].dtype == np.float32
    with h5py.File(file.parent / told["analyses"][0]["sources"][0]) as held:
        assert list(held) == ["00000000", "00000001"]
        for group in held.values():  # the same names in every class, which is what ViRelAy shows
            assert set(group["embedding"]) == {"picture", "spectral"} and set(group["cluster"]) == {
                "spray",
                "kmeans-02",
            }
            assert group["index"].dtype == np.uint32
        np.testing.assert_allclose(
            held["00000000/embedding/spectral"].attrs["eigenvalue"], [0, 0.1, 0.5], atol=1e-7
        )
    labels = json.loads((file.parent / "label-map.json").read_text())
    assert labels[1] == {"index": 1, "word_net_id": "00000001", "name": "dog"}


def test_a_project_comes_back_as_the_store_and_clusters_that_it_was(tmp_path: Path) -> None:
    store = a_store(tmp_path / "store")
    before = an_analysis(store)
    file = exchange.export_virelay(store, tmp_path / "project", before)
    again, after = exchange.import_virelay(file, tmp_path / "again")
    assert after is not None and again.classes == store.classes
    for name in ("target", "label", "thumbnail"):
        np.testing.assert_array_equal(again.column(name), store.column(name))
    np.testing.assert_array_equal(again.relevance[:], store.relevance[:])
    np.testing.assert_allclose(again.column("score"), store.column("score"), rtol=1e-6)
    assert np.isnan(again.column("gap")).all()  # no audit came with it, and none is claimed
    for target in (0, 1):
        mine, theirs = before[target], after[target]
        np.testing.assert_allclose(theirs.embedding, mine.embedding)
        np.testing.assert_allclose(theirs.eigenvalues, mine.eigenvalues, atol=1e-7)
        assert {c.number: list(c.rows) for c in theirs.clusters} == {
            c.number: list(c.rows) for c in mine.clusters
        }
        assert all("suspicion was not computed" in c.evidence[0].words for c in theirs.clusters)
    kept = after.save(tmp_path / "analysis")
    assert analyse.load(kept).targets == [0, 1]


def test_only_what_is_explained_is_exported_and_no_label_is_made_up(tmp_path: Path) -> None:
    status = np.ones(N)
    status[[0, 7]] = 2
    labels = LABELS.copy()
    labels[3] = -1
    store = a_store(tmp_path / "store", status=status, label=labels)
    file = exchange.export_virelay(store, tmp_path / "project", an_analysis(store))
    with h5py.File(file.parent / "data.input.h5") as held:
        marks = held["label"][:]
        assert marks.dtype == bool and marks.shape == (10, 2)
        assert not marks[2].any() and marks[0].tolist() == [True, False]
    found = exchange.read_virelay(file)
    assert list(found.label) == [0, 0, -1, 0, 0, 1, 1, 1, 1, 1]
    np.testing.assert_array_equal(found.relevance, store.relevance[store.done])
    assert [list(c.rows) for c in found.categories] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_eigenvalues_that_run_downwards_are_turned_with_their_vectors(tmp_path: Path) -> None:
    store = a_store(tmp_path / "store")
    before = an_analysis(store)
    file = exchange.export_virelay(store, tmp_path / "project", before)
    with h5py.File(file.parent / "spray.analysis.h5", "r+") as held:
        for group in held.values():
            embedding = group["embedding/spectral"]
            embedding[:] = embedding[:][:, ::-1]
            embedding.attrs["eigenvalue"] = embedding.attrs["eigenvalue"][::-1]
    _, after = exchange.import_virelay(file, tmp_path / "again")
    assert after is not None
    np.testing.assert_allclose(after[0].eigenvalues, before[0].eigenvalues, atol=1e-7)
    np.testing.assert_allclose(after[0].spectral, before[0].spectral)


def test_data_sets_in_groups_and_labels_in_rows_are_read_as_virelay_does(tmp_path: Path) -> None:
    file = exchange.export_virelay(a_store(tmp_path / "store"), tmp_path / "project")
    place = file.parent / "relevance.attribution.h5"
    with h5py.File(place, "r+") as held:
        maps, labels = held["attribution"][:], held["label"][:]
        del held["attribution"], held["label"], held["index"]
        for i, one in enumerate(maps):
            held[f"attribution/{i:04}"] = one
        held["label"] = np.eye(2, dtype=np.float32)[labels]
    found = exchange.read_virelay(file)
    np.testing.assert_array_equal(found.relevance, maps)
    assert list(found.target) == list(labels) and list(found.rows) == list(range(N)) and not found.categories


def test_photographs_that_are_still_there_are_exported_as_the_network_saw_them(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    how = relprop.data.Preprocessing(8, 10, (0.5,) * 3, (0.5,) * 3, "nearest")
    photo = image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.png")
    told = {n: getattr(how, n) for n in how.__dataclass_fields__}
    store = a_store(
        tmp_path / "store", source=[str(tmp_path / "photo.png")] * N, attributes={"preprocessing": told}
    )
    file = exchange.export_virelay(store, tmp_path / "project")
    with h5py.File(file.parent / "data.input.h5") as held:
        np.testing.assert_array_equal(held["data"][3], np.asarray(how.crop(photo)).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda p: (p / "project.yaml").write_text("project: [1"), "no ViRelAy project"),
        (lambda p: (p / "project.yaml").write_text("project: {name: x}"), "'attributions' is missing"),
        (lambda p: (p / "project.yaml").write_text("!!python/object/apply:os.getcwd []"), "no ViRelAy project"),
        (lambda p: (p / "project.yaml").unlink(), "cannot be read"),
        (lambda p: (p / "label-map.json").write_text('[{"index": 0}]'), "no label map"),
        (lambda p: (p / "relevance.attribution.h5").write_bytes(b"\x89HDF nonsense"), "cannot be read as HDF5"),
        (lambda p: _shorten(p / "data.input.h5", "data"), "samples that are not there"),
        (lambda p: (p / "data.input.h5").unlink(), "cannot be read as HDF5"),
        (lambda p: _shorten(p / "relevance.attribution.h5", "prediction"), "3 of prediction for 12 attributions"),
        (lambda p: _shorten(p / "spray.analysis.h5", "00000001/cluster/spray"), "3 of 00000001/spray for 6 samples"),
    ],
)  # fmt: skip
def test_damaged_projects_are_refused_with_the_file_at_fault(
    tmp_path: Path, break_it: Any, words: str
) -> None:
    store = a_store(tmp_path / "store")
    file = exchange.export_virelay(store, tmp_path / "project", an_analysis(store))
    break_it(file.parent)
    with pytest.raises(InvalidInput, match=words):
        exchange.import_virelay(file, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def _shorten(file: Path, name: str) -> None:
    with h5py.File(file, "r+") as held:
        values = held[name][:3]
        del held[name]
        held[name] = values


def test_what_virelay_cannot_show_is_refused(tmp_path: Path) -> None:
    texts = write_store(tmp_path / "texts", relevance=np.ones((2, 5)), output=np.ones((2, 2)), kind="text")
    with pytest.raises(InvalidInput, match="kind 'text', and ViRelAy shows images"):
        exchange.export_virelay(texts, tmp_path / "project")
    bare = write_store(tmp_path / "bare", relevance=np.ones((2, 8, 8)), output=np.ones((2, 2)))
    with pytest.raises(InvalidInput, match="neither thumbnails nor photographs"):
        exchange.export_virelay(bare, tmp_path / "project")
    store = a_store(tmp_path / "store")
    exchange.export_virelay(store, tmp_path / "project")
    with pytest.raises(InvalidInput, match="is in use"):
        exchange.export_virelay(store, tmp_path / "project")
    category = exchange.Category("0", np.arange(3), {"umap": np.ones((3, 2))}, {"a": np.zeros(3, np.int64)})
    project = exchange.read_virelay(tmp_path / "project" / "project.yaml")
    other = replace(category, name="1", clusters={"b": category.clusters["a"]})
    with pytest.raises(InvalidInput, match="other embeddings or clusterings"):
        exchange.write_virelay(tmp_path / "x", replace(project, categories=(category, other)))


def test_steps_of_a_corelay_cache_are_read(tmp_path: Path) -> None:
    file = tmp_path / "cache.h5"
    with h5py.File(file, "w") as held:
        held["aa/data"] = np.arange(6).reshape(2, 3)
        held["aa/meta"] = json.dumps({"type": "SpectralEmbedding", "n_eigval": 32})
        held["steps/bb/data/000"], held["steps/bb/data/001"] = np.zeros(2), np.ones((2, 2))
        held["notes"] = 3
    first, second = exchange.read_corelay(file)
    assert first.key == "aa" and first.meta["n_eigval"] == 32 and first.data.shape == (2, 3)
    assert [one.shape for one in second.data] == [(2,), (2, 2)] and second.meta == {}
    with pytest.raises(InvalidInput, match="cannot be read as HDF5"):
        exchange.read_corelay(tmp_path / "none.h5")


def test_a_strategys_samples_are_listed_as_csv_and_parquet(tmp_path: Path) -> None:
    store = a_store(tmp_path / "store")
    found = an_analysis(store)
    columns = exchange.strategy_rows(
        found, store.column("id"), target=1, strategy=1, columns={"label": store.column("label")}
    )
    assert columns["id"] == ["photo 6", "photo 8", "photo 10"] and columns["label"] == [1, 1, 1]
    assert columns["strategy"] == [1, 1, 1]  # as in the report
    assert columns["flagged"] == [True] * 3 and columns["exemplar"] == [True, True, False]
    with exchange.save_table(columns, tmp_path / "one.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == columns["id"] and rows[0]["class_name"] == "dog"
    assert len(exchange.strategy_rows(found)["row"]) == N
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(exchange.save_table(columns, tmp_path / "one.parquet"))
    assert table.to_pydict() == columns
    for target, strategy, words in [
        (1, 0, "strategy 0: not in this analysis\n  do: one of 1, 2"),
        (1, 7, "strategy 7: not in this analysis"),
        (None, 1, "name the class too"),
        (5, None, "class 5"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            exchange.strategy_rows(found, target=target, strategy=strategy)
    with pytest.raises(InvalidInput, match="neither CSV nor Parquet"):
        exchange.save_table(columns, tmp_path / "one.xlsx")
    with pytest.raises(InvalidInput, match="cannot be written"):
        exchange.save_table(columns, tmp_path / "none" / "one.csv")


def test_xarray_opens_a_store_with_named_dimensions(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    store = a_store(tmp_path / "store")
    with xarray.open_zarr(store.path, consolidated=False) as opened:
        assert opened["relevance"].dims == ("sample", "channel", "y", "x")
        mean = opened["relevance"].where(opened["label"] == 1, drop=True).mean(("sample", "channel"))
        np.testing.assert_allclose(mean, store.relevance[LABELS == 1].mean((0, 1)), rtol=1e-5, atol=1e-7)
        assert opened.attrs["classes"] == ["cat", "dog"] and str(opened["id"].values[3]) == "photo 3"
