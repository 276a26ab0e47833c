"""The table of speed: what is promised, what is measured, and whether the promise is kept.

    python benchmarks/speed.py [--json FILE] [--page FILE]
                               [--parts speed targets memory capture import rivals profile compile]
                               [--models vgg11 …] [--rounds 7] [--threads 2] [--device cpu] [--quick]

Times are multiples of gradient × input (one forward and one backward pass to the input) in the same process: every round
times it and then each competitor once, a ratio is taken within its round, and the median over rounds counts. relprop's
times include forward pass, walk, audit and its check. Peak memory is that of one call in a process of its own. zennit,
captum and autoLRP take part where they are installed. With one thread on a CPU the thread's own clock is read, which
stands still while other programs run; otherwise the clock on the wall.

`--json` keeps the figures that the file has of other parts and models, if they were measured in the same way. `--page`
makes the tables of docs/benchmarks.md anew from that file: benchmarks/speed.json is what the page shows, beside the files
speed-….json next to it, of other machines. With `--parts` and nothing behind it nothing is measured.

`--quick` times two models in three rounds on small images and fails on a gross regression only (twice the target); the
tests run it. Otherwise the exit status is 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from timing.figures import PARTS, Figure, Settings, as_data, every, line
from timing.page import filled
from timing.subjects import ALL

QUICK = Settings(threads=1, rounds=3, batch=1, size=96, models=("vgg11", "resnet50"))


def write(file: Path, new: dict[str, Any]) -> None:
    """Write figures beside those that a file has already, where they were measured in the same way."""
    old = json.loads(file.read_text()) if file.is_file() else {}

    def way(data: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in data.items() if key not in ("figures", "measured")}

    own = {(figure["what"], figure["model"]) for figure in new["figures"]}
    kept = old["figures"] if way(old) == way(new) else []
    kept = [figure for figure in kept if (figure["what"], figure["model"]) not in own]
    file.write_text(json.dumps(new | {"figures": [*kept, *new["figures"]]}, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--parts", nargs="*", choices=["import", *PARTS], default=["import", *PARTS])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--page", type=Path, help="make this page's tables anew from the file of --json")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    if options.page and not options.json:
        parser.error("--page: name the file of figures with --json")
    given = Settings(
        options.device, options.threads, options.rounds, options.batch, models=tuple(options.models)
    )
    given = replace(QUICK, device=options.device) if options.quick else given
    parts = ["speed"] if options.quick else options.parts
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    where = platform.machine() if given.device == "cpu" else torch.cuda.get_device_name(given.device)
    print(f"{where}, {given.threads} thread(s), torch {torch.__version__}, {given.rounds} rounds", flush=True)
    figures: list[Figure] = []
    for figure in every(parts, given):
        figures.append(figure)
        print(line(figure), flush=True)
        if options.json:
            write(options.json, {"machine": where} | as_data([figure], given))
    if options.page:
        others = {
            file.stem: json.loads(file.read_text()) for file in options.json.parent.glob("speed-*.json")
        }
        page = filled(options.page.read_text(), json.loads(options.json.read_text()), others)
        options.page.write_text(page)
    if options.quick:
        return 0 if all(figure.met(2.0) for figure in figures if figure.unit == "×") else 1
    return 0 if all(figure.met() for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
