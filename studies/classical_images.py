"""Fisher vectors and visual words with SVMs: accuracy on Fashion-MNIST and on crops of boxed photographs, and whether
the pixels called relevant matter.

    python studies/classical_images.py --fashion /usr/share/datasets/fashion-mnist --boxes BOXES [--pictures FOLDER]

Fashion-MNIST is the Debian package dataset-fashion-mnist. BOXES is a folder with boxes.csv (file, class_name, x0, y0, x1, y1)
and images/. Crops are of the ten classes with most boxes, grey, 64 × 64, photographs apart in training and test; most
of them are persons, so that the question is: a person, or one of the other nine. Blocks of
pixels are set to the image's mean in the order of their relevance and at random; the figure is the mean part of the
score that is left over the first quarter of the blocks, with the interval of 95 % from 2000 resamples.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC, LinearSVC

import relprop
from relprop import show
from relprop.classical import histogram_intersection
from relprop.classical.images import FisherVectors, VisualWords

NAMES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def fashion(folder: Path, train: int, test: int) -> tuple[Any, Any, Any, Any]:
    """Images in 0..1 and labels, for training and test."""

    def read(name: str, offset: int) -> Any:
        return np.frombuffer(gzip.open(folder / name).read(), np.uint8, offset=offset)

    def part(name: str, count: int) -> tuple[Any, Any]:
        images = read(f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:count] / 255.0
        return images, read(f"{name}-labels-idx1-ubyte.gz", 8)[:count]

    return *part("train", train), *part("t10k", test)


def crops(folder: Path, classes: int, size: int = 64) -> tuple[Any, Any, Any, list[str]]:
    """Grey crops of the classes with most boxes, their labels, and which are held out (by photograph)."""
    from PIL import Image

    with (folder / "boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    key = "class_name"
    big = [r for r in rows if min(float(r["x1"]) - float(r["x0"]), float(r["y1"]) - float(r["y0"])) >= 32]
    names = [name for name, _ in Counter(r[key] for r in big).most_common(classes)]
    files = sorted({r["file"] for r in big})
    held_files = {file for number, file in enumerate(files) if number % 3 == 0}
    images, labels, held = [], [], []
    for row in big:
        if row[key] not in names:
            continue
        box = tuple(float(row[name]) for name in ("x0", "y0", "x1", "y1"))
        path = folder / "images" / row["file"]
        with Image.open(path if path.exists() else folder / row["file"]) as photo:
            crop = photo.convert("L").crop(box).resize((size, size), Image.Resampling.BICUBIC)
        images.append(np.asarray(crop) / 255.0)
        labels.append(names.index(row[key]))
        held.append(row["file"] in held_files)
    return np.stack(images), np.array(labels), np.array(held), names


def deletion(model: Any, images: Any, block: int, seed: int = 0) -> dict[str, Any]:
    """The part of the score that is left as blocks of pixels are set to the mean, by relevance and at random."""
    guessed = model.predict(images)
    explanation = relprop.explain(model, images, list(guessed))
    chosen = explanation.target.numpy()
    binary = explanation.output.dim() == 1
    side = images.shape[1] // block
    relevance = (
        explanation.relevance.numpy().reshape(-1, side, block, side, block).sum((2, 4)).reshape(-1, side**2)
    )
    rng = np.random.default_rng(seed)
    means = images.mean((1, 2))
    rows = np.arange(len(images))
    sign = np.where(chosen == 1, 1.0, -1.0)
    start = explanation.score.numpy()
    left = {}
    for name, key in (("relevance", -relevance), ("random", rng.random(relevance.shape))):
        order = np.argsort(key, 1)
        cut, scores = images.copy(), []
        for step in range(side**2 // 4):
            y, x = np.divmod(order[:, step], side)
            for row in rows:
                top, across = y[row] * block, x[row] * block
                cut[row, top : top + block, across : across + block] = means[row]
            if step % max(1, side**2 // 16) == 0:
                found = model.decision_function(cut)
                scores.append(found * sign if binary else found[rows, chosen])
        left[name] = np.mean(scores, 0) / np.abs(start).mean()
    gap = left["random"] - left["relevance"]
    drawn = gap[rng.integers(0, len(gap), (2000, len(gap)))].mean(1)
    return {
        "relevance": float(left["relevance"].mean()),
        "random": float(left["random"].mean()),
        "random − relevance": [float(gap.mean()), *map(float, np.percentile(drawn, [2.5, 97.5]))],
    }


def pictures(model: Any, images: Any, names: Any, folder: Path, stem: str) -> None:
    """A heatmap of each image, over the image."""
    from PIL import Image

    explanation = relprop.explain(model, images, list(model.predict(images)))
    rows = []
    for image, relevance, target in zip(
        images, explanation.relevance, explanation.target.tolist(), strict=True
    ):
        rows.append(show.heatmap(relevance, image, title=str(names[target])))
    wide, tall = sum(r.width for r in rows), max(r.height for r in rows)
    whole = Image.new("RGB", (wide, tall), "white")
    left = 0
    for drawn in rows:
        whole.paste(drawn, (left, 0))
        left += drawn.width
    whole.save(folder / f"{stem}.png")


def main() -> None:
    """Run the study and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--boxes", type=Path)
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    if options.boxes:
        x, kinds, held, every = crops(options.boxes, 10)
        assert every[0] == "person"
        y, names = (kinds > 0).astype(int), ["person", "thing"]
        encoding = FisherVectors(24, cells=(3, 5), step=4, dimensions=32, pyramid=((1, 1), (2, 2)))
        model = make_pipeline(encoding, LinearSVC(class_weight="balanced")).fit(x[~held], y[~held])
        guessed = model.predict(x[held])
        found["boxes"] = {
            "classes": dict(zip(every, np.bincount(kinds).tolist(), strict=True)),
            "accuracy": float((guessed == y[held]).mean()),
            "balanced accuracy": float(balanced_accuracy_score(y[held], guessed)),
            "deletion": deletion(model, x[held][:60], 8),
        }
        print("boxes, Fisher vectors", found["boxes"], flush=True)
        if options.pictures:
            right = np.flatnonzero(guessed == y[held])
            first = [right[y[held][right] == c][0] for c in (0, 1)] + [
                right[y[held][right] == c][7] for c in (0, 1)
            ]
            pictures(model, x[held][first], names, options.pictures, "classical_boxes")
    if options.fashion:
        x, y, xt, yt = fashion(options.fashion, options.train, options.test)
        words = make_pipeline(VisualWords(128, sharpness=2.0), SVC(kernel=histogram_intersection, C=20.0))
        words.fit(x[:1500], y[:1500])
        found["words"] = {"accuracy": float(words.score(xt[:1000], yt[:1000]))}
        print("fashion, visual words", found["words"], flush=True)
        model = make_pipeline(FisherVectors(16, pyramid=((1, 1), (2, 2))), LinearSVC()).fit(x, y)
        found["fashion"] = {
            "accuracy": float(model.score(xt, yt)),
            "deletion": deletion(model, xt[:100], 4),
        }
        print("fashion, Fisher vectors", found["fashion"], flush=True)
        if options.pictures:
            first = [int(np.flatnonzero(yt == c)[0]) for c in (9, 3, 1, 8, 5)]
            pictures(model, xt[first], NAMES, options.pictures, "classical_fashion")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
