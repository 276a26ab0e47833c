"""How time and memory of an explanation grow with the batch, the resolution, the depth and the length of the input.

    python benchmarks/scaling.py [--json FILE] [--figure FILE.png] [--threads 1] [--rounds 3] [--device cpu] [--grows NAME …]

One model a row of `GROWTH`, in which one size grows; every size is timed beside gradient × input, in the same process and
interleaved, and its peak of memory beyond what the process held before is that of a process of its own. The exponent is the
slope of the logarithms over the upper half of the sizes: 1 is growth in proportion. Figures that a run has written to the
JSON file are not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from timing.clock import ratios
from timing.memory import peak
from timing.subjects import subject


@dataclass(frozen=True, slots=True)
class Growth:
    """A model and a preset, the option of `subject` that grows, and through which sizes."""

    model: str
    rules: str
    option: str
    sizes: tuple[int, ...]
    fixed: dict[str, int]
    label: str


GROWTH: dict[str, Growth] = {
    "batch": Growth(
        "vgg11", "epsilon", "batch", (1, 2, 4, 8), {"size": 112}, "images a batch\nVGG-11, 112 × 112"
    ),
    "resolution": Growth(
        "vgg11", "epsilon", "size", (112, 160, 224, 320), {"batch": 1}, "side of the image\nVGG-11, ε"
    ),
    "depth": Growth(
        "chain",
        "epsilon",
        "length",
        (8, 16, 32, 64),
        {"batch": 2, "size": 56},
        "convolutions\n64 channels, ε",
    ),
    "steps": Growth(
        "long_lstm", "lrp_all", "length", (100, 200, 400, 800), {}, "steps\nLSTM of 256 units, lrp_all"
    ),
    "tokens": Growth(
        "decoder", "attn_lrp", "length", (64, 128, 256, 512), {}, "tokens\ndecoder of GPT-2's size, attn_lrp"
    ),
}
"""What grows, by name. The side of an image counts twice: its exponent is that of the number of pixels."""


def measured(growth: Growth, size: int, device: str, threads: int, rounds: int) -> dict[str, float]:
    """Seconds and bytes of an explanation and of gradient × input at one size."""
    options = {"batch": 2, "size": 224, "length": 256} | growth.fixed | {growth.option: size}
    of = subject(growth.model, device, **options)
    times = ratios(of.gradient, {"own": of.call(growth.rules)}, rounds, device)
    found = {"seconds": times["own"].seconds, "gradient_seconds": times["yardstick"].seconds}
    for name, call in (("bytes", growth.rules), ("gradient_bytes", "gradient")):
        held = peak(growth.model, call, device=device, threads=threads, **options)
        found[name] = float(held["peak"] - held["before"])
    return found


def exponent(growth: Growth, rows: dict[str, dict[str, float]], key: str) -> float:
    """The slope of the logarithm of a figure over that of the size, over the upper half of the sizes."""
    half = growth.sizes[len(growth.sizes) // 2 - 1 :]
    first, last = rows[str(half[0])][key], rows[str(half[-1])][key]
    pixels = 2 if growth.option == "size" else 1
    return math.log(last / first) / (pixels * math.log(half[-1] / half[0]))


def drawn(results: dict[str, Any], file: Path) -> None:
    """Times above, memory below, a column for each size that grows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    names = [name for name in GROWTH if name in results]
    figure, axes = plt.subplots(
        2, len(names), figsize=(2.6 * len(names), 5), squeeze=False, constrained_layout=True
    )
    for column, name in enumerate(names):
        growth, rows = GROWTH[name], results[name]
        for row, (key, unit, scale) in enumerate((("seconds", "seconds", 1.0), ("bytes", "MiB", 2.0**20))):
            axis = axes[row][column]
            for prefix, label, colour in (
                ("gradient_", "gradient × input", "0.55"),
                ("", "relprop", "#b2182b"),
            ):
                values = [rows[str(size)][prefix + key] / scale for size in growth.sizes]
                axis.plot(growth.sizes, values, marker="o", markersize=4, color=colour, label=label)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())
            axis.set_xticks(growth.sizes, [str(size) for size in growth.sizes], minor=False)
            axis.set_title(f"grows by {exponent(growth, rows, key):.2f}", fontsize=9)
            axis.tick_params(labelsize=8)
            axis.grid(True, alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axis.set_ylabel(unit, fontsize=9)
            if row == 1:
                axis.set_xlabel(growth.label, fontsize=8)
    axes[0][0].legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("scaling.json"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--grows", nargs="+", choices=list(GROWTH), default=list(GROWTH))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    results = json.loads(given.json.read_text()) if given.json.is_file() else {}
    print(f"{'':11}{'size':>6}{'seconds':>10}{'× gradient':>12}{'MiB':>8}{'× gradient':>12}")
    for name in given.grows:
        growth = GROWTH[name]
        rows = results.setdefault(name, {})
        for size in growth.sizes:
            if str(size) not in rows:
                rows[str(size)] = measured(growth, size, given.device, given.threads, given.rounds)
                given.json.write_text(json.dumps(results, indent=1) + "\n")
            row = rows[str(size)]
            print(
                f"{name:11}{size:6d}{row['seconds']:10.3f}{row['seconds'] / row['gradient_seconds']:12.2f}"
                f"{row['bytes'] / 2**20:8.0f}{row['bytes'] / max(1.0, row['gradient_bytes']):12.2f}",
                flush=True,
            )
        slopes = ", ".join(f"{key} by {exponent(growth, rows, key):.2f}" for key in ("seconds", "bytes"))
        print(f"{name:11}{slopes}", flush=True)
    if given.figure:
        drawn(results, given.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
