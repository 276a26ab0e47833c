"""What relprop writes opens in ViRelAy, and what CoRelAy writes opens in relprop: checked in that software itself.

    python benchmarks/interoperation.py [--work FOLDER] [--json FILE]

A virtual environment of its own gets `virelay` and `corelay` from the package index, which are under licences of their own and no
part of relprop; only their interfaces are used. A store and an analysis are exported; ViRelAy's server is asked for the project,
every picture, heatmap and embedding, and its answers are compared with the store. Then CoRelAy clusters the same maps, and its
cache and an analysis of its results are read back. Exit code 1 where anything differs. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from relprop import analyse, exchange
from relprop.store import Store, write_store

SIDE, EACH = 24, 30

VIRELAY = """
import base64, json, sys
from virelay.model import Workspace
from virelay.server import Server
workspace = Workspace()
workspace.add_project(sys.argv[1])
client = Server(workspace).app.test_client()
def get(path):
    answer = client.get(path)
    assert answer.status_code == 200, (path, answer.status, answer.data[:200])
    return answer
project = get("/api/projects/0").json
found = {"project": project, "samples": [], "embeddings": []}
for i in range(int(sys.argv[2])):
    sample, attribution = get(f"/api/projects/0/dataset/{i}").json, get(f"/api/projects/0/attributions/{i}").json
    picture = base64.b64encode(get(f"/api/projects/0/dataset/{i}/image").data).decode()
    heatmap = len(get(f"/api/projects/0/attributions/{i}/heatmap?colorMap=blue-white-red").data)
    raw = workspace.get_project("%s").get_attribution(i).data
    found["samples"].append([sample["labels"], attribution["labels"], attribution["prediction"], picture, heatmap, raw.tolist()])
method = project["analysisMethods"][0]
for category in method["categories"]:
    for clustering in method["clusterings"]:
        for embedding in method["embeddings"]:
            path = f"/api/projects/0/analyses/{method['name']}?category={category['name']}&clustering={clustering}&embedding={embedding}"
            found["embeddings"].append([category["name"], clustering, embedding, get(path).json])
json.dump(found, open(sys.argv[3], "w"))
"""

CORELAY = """
import sys
import h5py, numpy as np
from corelay.io.storage import HashedHDF5
from corelay.pipeline.spectral import SpectralClustering
from corelay.processor.clustering import KMeans
from corelay.processor.embedding import EigenDecomposition
from corelay.processor.flow import Parallel
maps = np.load(sys.argv[1])
with h5py.File(sys.argv[2], "w") as cache, h5py.File(sys.argv[3], "w") as made:
    for name, values in maps.items():
        io = HashedHDF5(cache.require_group(name))
        pipeline = SpectralClustering(
            embedding=EigenDecomposition(n_eigval=8, io=io),
            clustering=Parallel([KMeans(n_clusters=k, io=io) for k in (2, 3)], broadcast=True, is_output=True),
        )
        labels = pipeline(values)
        group = made.create_group(name)
        group["index"] = np.load(sys.argv[4])[name].astype(np.uint32)
        for k, own in zip((2, 3), labels):
            group[f"cluster/kmeans-{k:02}"] = own
        step = next(one for one in cache[name].values() if isinstance(one["data"], h5py.Group))
        group["embedding/spectral"] = step["data/001"][:].astype(np.float32)
        group["embedding/spectral"].attrs["eigenvalue"] = step["data/000"][:].astype(np.float32)
"""


def software(folder: Path) -> Path:
    """The interpreter of an environment that has ViRelAy and CoRelAy."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "virelay", "corelay"], check=True)
    return python


def a_store(folder: Path) -> Store:
    """Two classes, each with two strategies: relevance in one corner or another."""
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 1], EACH)
    relevance = draw.normal(size=(2 * EACH, 3, SIDE, SIDE)).astype(np.float32) * 0.1
    for i in range(2 * EACH):
        place = slice(2, 9) if i % 2 else slice(14, 21)
        relevance[i, :, place, place] += 1
    thumbnail = draw.integers(0, 255, (2 * EACH, SIDE, SIDE, 3), dtype=np.uint8)
    thumbnail[:] = thumbnail[:, :1, :1]  # one colour a picture, which JPEG keeps
    output = np.eye(2, dtype=np.float32)[labels] + draw.normal(size=(2 * EACH, 2)).astype(np.float32) * 0.1
    return write_store(
        folder, relevance=relevance, output=output, label=labels, thumbnail=thumbnail, classes=("cat", "dog")
    )


def an_analysis(store: Store) -> analyse.Analysis:
    """What `relprop analyse` would find: the two strategies of each class."""
    classes = []
    for target in (0, 1):
        rows = np.flatnonzero(store.column("target") == target)
        maps = store.relevance[rows].sum(1)
        labels = rows % 2
        clusters = tuple(
            analyse.Cluster(
                k, rows[labels == k], 0.5, 0.1, (), rows[labels == k][:3], maps[labels == k].mean(0)
            )
            for k in (0, 1)
        )
        places, _ = analyse.principal(maps.reshape(len(maps), -1), 2)
        spectral = np.asarray(places, dtype=np.float32)
        values = np.array([0.0, 0.01])
        classes.append(
            analyse.ClassAnalysis(target, store.class_name(target), rows, values, 2, 2, {2: labels}, spectral, spectral, 1.0, {}, clusters, maps.mean(0))
        )  # fmt: skip
    return analyse.Analysis(tuple(classes))


def in_virelay(python: Path, store: Store, found: analyse.Analysis, work: Path) -> dict[str, bool]:
    """What ViRelAy's server tells of the exported project, against the store."""
    project = exchange.export_virelay(store, work / "project", found)
    answers = work / "answers.json"
    subprocess.run(
        [python, "-c", VIRELAY % store.path.name, project, str(len(store)), answers],
        check=True,
        capture_output=True,
    )
    told = json.loads(answers.read_text())
    names, relevance, thumbnails = store.classes, store.relevance[:], store.column("thumbnail")
    checks = dict.fromkeys(("labels", "predictions", "pictures", "heatmaps", "relevance"), True)
    for i, (labels, explained, prediction, picture, heatmap, raw) in enumerate(told["samples"]):
        checks["labels"] &= labels[0]["name"] == names[store.column("label")[i]]
        checks["labels"] &= explained[0]["name"] == names[store.column("target")[i]]
        checks["predictions"] &= bool(np.allclose(prediction, store.column("output")[i], atol=1e-6))
        seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"), dtype=float)
        checks["pictures"] &= bool(np.abs(seen - thumbnails[i]).max() < 12)  # JPEG
        checks["heatmaps"] &= heatmap > 200
        checks["relevance"] &= bool(np.allclose(np.moveaxis(np.array(raw), -1, 0), relevance[i], atol=1e-6))
    checks["clusters and embeddings"] = len(told["embeddings"]) == 2 * 2 * 2
    for category, clustering, embedding, answer in told["embeddings"]:
        one = found[int(category)]
        values = one.embedding if embedding == "picture" else one.spectral
        labels = {r: c.number for c in one.clusters for r in c.rows.tolist()}
        for point, row, value in zip(answer["embedding"], one.rows.tolist(), values, strict=True):
            same = point["attributionIndex"] == row and point["cluster"] == labels[row]
            checks["clusters and embeddings"] &= same and bool(
                np.allclose(point["value"][:2], value, atol=1e-5)
            )
        assert clustering in ("spray", "kmeans-02")
    return {f"ViRelAy shows the {name}": value for name, value in checks.items()}


def from_corelay(python: Path, store: Store, work: Path) -> dict[str, bool]:
    """What CoRelAy makes of the same maps, read back."""
    rows = {f"{t:08}": np.flatnonzero(store.column("target") == t) for t in (0, 1)}
    maps = {name: store.relevance[own].sum(1).reshape(len(own), -1) for name, own in rows.items()}
    np.savez(work / "maps.npz", **maps)
    np.savez(work / "rows.npz", **rows)
    made = work / "project" / "spray.analysis.h5"
    cache = work / "cache.h5"
    subprocess.run(
        [python, "-c", CORELAY, work / "maps.npz", cache, made, work / "rows.npz"],
        check=True,
        capture_output=True,
    )
    steps = exchange.read_corelay(cache)
    kmeans = [one for one in steps if one.meta.get("name") == "KMeans"]
    _, found = exchange.import_virelay(work / "project" / "project.yaml", work / "imported")
    assert found is not None
    with h5py.File(made) as held:
        written = {
            int(name): {2: held[f"{name}/cluster/kmeans-02"][:], 3: held[f"{name}/cluster/kmeans-03"][:]}
            for name in held
        }
    same = all(
        np.array_equal(found[t].labels[k], own) for t, both in written.items() for k, own in both.items()
    )
    rest = all(
        np.array_equal(c.rows, rows[f"{one.target:08}"][written[one.target][2] == c.number])
        for one in found.classes
        for c in one.clusters
    )
    ascending = all((np.diff(one.eigenvalues) >= 0).all() for one in found.classes)
    return {
        "CoRelAy's cache is read": len(kmeans) == 4 and all(one.data.shape == (EACH,) for one in kmeans),
        "CoRelAy's clusters are read": same and rest,
        "CoRelAy's eigenvalues are put in order": ascending,
    }


def main() -> int:
    """Run the checks and print a line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="keeps the environment for the next time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        python = software((options.work or work).absolute() / "environment")
        versions = subprocess.run(
            [python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
        )
        installed = {one["name"].lower(): one["version"] for one in json.loads(versions.stdout)}
        store = a_store(work / "store")
        checks = in_virelay(python, store, an_analysis(store), work) | from_corelay(python, store, work)
    print(f"virelay {installed['virelay']}, corelay {installed['corelay']}")
    for name, holds in checks.items():
        print(f"{'yes' if holds else 'NO ':<4} {name}")
    if options.json:
        content: dict[str, Any] = {"virelay": installed["virelay"], "corelay": installed["corelay"], **checks}
        options.json.write_text(json.dumps(content, indent=1))
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
