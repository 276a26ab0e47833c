"""The browser of a store: seconds to the first view, and from the end of a lasso to its grid, in a Chromium without a screen.

    python benchmarks/view.py [--samples 50000] [--classes 1] [--repeats 5] [--screenshot FILE]

The store has maps and thumbnails of 32 × 32 and is made in a temporary folder; all samples of a class are in one plane, so
`--classes 1` draws all of them at once. Wall-clock seconds, and the processor seconds that browser and server spent in
them, which hardly depend on what else the machine does. Chromium draws with the processor here (no graphics card). The last
line gives the median first view and its target; the exit status is 1 where it is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from relprop.analyse import Analysis, ClassAnalysis, Cluster
from relprop.store import open as open_store
from relprop.store import write_store
from relprop.view import listen

SIDE = 32
CLUSTERS = 6
TARGET = 3.0
"""Seconds to the first view of 50,000 samples."""


def make(folder: Path, samples: int, classes: int) -> None:
    """A store of random maps, and an analysis of it, in a folder."""
    draw = np.random.default_rng(0)
    target = np.arange(samples) % classes
    output = draw.normal(size=(samples, max(2, classes))).astype(np.float32)
    output[np.arange(samples), target] += 4
    few = draw.normal(size=(512, 1, SIDE, SIDE)).astype(np.float32)
    photos = draw.integers(0, 255, (512, SIDE, SIDE, 3), dtype=np.uint8)
    pick = draw.integers(0, 512, samples)
    store = write_store(
        folder / "store",
        relevance=few[pick],
        thumbnail=photos[pick],
        output=output,
        target=target,
        label=target,
    )
    found = []
    for c in range(classes):
        rows = np.flatnonzero(target == c)
        labels = draw.integers(0, CLUSTERS, len(rows))
        centres = 6 * draw.normal(size=(CLUSTERS, 2))
        points = (centres[labels] + draw.normal(size=(len(rows), 2))).astype(np.float32)
        clusters = tuple(
            Cluster(k, rows[labels == k], 1 / CLUSTERS, 0.1 * k, (), rows[labels == k][:6], few[k, 0])
            for k in range(CLUSTERS)
        )
        spectral = np.repeat(points, 4, axis=1)
        values = np.linspace(0, 1, 8)
        found.append(
            ClassAnalysis(c, "", rows, values, CLUSTERS, CLUSTERS, {CLUSTERS: labels}, points, spectral, 1.0, {}, clusters, few[0, 0])
        )  # fmt: skip
    Analysis(tuple(found)).save(folder / "analysis")
    del store


def serve(folder: Path) -> None:
    """The server, in a process of its own."""
    from relprop.analyse import load

    begun = time.perf_counter()
    listening = listen(open_store(folder / "store"), load(folder / "analysis"), port=0)
    print(listening.url, f"{time.perf_counter() - begun:.2f}", flush=True)
    listening.run()


def spent(root: int) -> float:
    """Processor seconds of a process and all its descendants, those that ended aside."""
    parents: dict[int, list[int]] = {}
    times: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
            times[int(entry.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    total, waiting = 0.0, [root]
    while waiting:
        one = waiting.pop()
        total += times.get(one, 0.0)
        waiting += parents.get(one, [])
    return total


def look(page: Any, url: str) -> None:
    """Until the points are drawn and the grid has its pictures."""
    page.goto(url)
    page.wait_for_selector("#grid .tile img")
    page.wait_for_function("document.querySelector('#plane .gl-canvas-context')")
    page.wait_for_function("[...document.querySelectorAll('#grid img')].every(i => i.complete)")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def lasso(page: Any) -> None:
    """Half of the plane; until the grid shows what was chosen."""
    box = page.locator("#plane .nsewdrag").bounding_box()
    corners = [(0.3, 0.2), (0.7, 0.2), (0.7, 0.8), (0.3, 0.8), (0.3, 0.25)]
    places = [(box["x"] + a * box["width"], box["y"] + b * box["height"]) for a, b in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=5)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--screenshot")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return 0
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name:
        make(Path(name), given.samples, given.classes)
        server = subprocess.Popen(
            [sys.executable, __file__, "--serve", name], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            url, opening = server.stdout.readline().split()
            print(
                f"{given.samples:,} samples, {given.classes} classes; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
            )
            print(f"opening store and analysis: {opening} s")
            views: list[float] = []
            with sync_playwright() as driver:
                found = shutil.which("chromium") or shutil.which("google-chrome")
                arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
                for _ in range(given.repeats):
                    browser = driver.chromium.launch(executable_path=found, args=arguments)
                    page = browser.new_page(viewport={"width": 1500, "height": 900})
                    page.goto("about:blank")
                    before, begun = spent(os.getpid()), time.perf_counter()
                    look(page, url)
                    first, used = time.perf_counter() - begun, spent(os.getpid()) - before
                    views.append(first)
                    lasso(page)
                    before, begun = spent(os.getpid()), time.perf_counter()
                    page.mouse.up()
                    page.wait_for_function("/selected/.test(document.querySelector('#count').textContent)")
                    chosen, more = time.perf_counter() - begun, spent(os.getpid()) - before
                    count = page.locator("#count").inner_text()
                    print(
                        f"first view {first:.2f} s ({used:.2f} s of processor); {count}: {chosen:.2f} s ({more:.2f} s)"
                    )
                    if given.screenshot:
                        page.screenshot(path=given.screenshot)
                    browser.close()
        finally:
            server.terminate()
            server.wait()
    middle = statistics.median(views)
    met = middle <= TARGET
    print(
        f"first view: median {middle:.2f} s, largest {max(views):.2f} s, target {TARGET:g} s {'met' if met else 'missed'}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
