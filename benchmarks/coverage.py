"""One small random member of every family of the model libraries, explained with the preset "auto".

    python benchmarks/coverage.py [torchvision|timm|transformers|"by hand" …] [--family NAME …] [--json FILE] [--write FILE]
                                  [--timeout SECONDS] [--workers N] [--again STATUS …]

Each family runs in a process of its own: one that hangs or dies is a line of the table and no more. Results are
kept in the JSON file as they come; a second run does what is not there yet (`--again refused failed` repeats the
families with these results). `--write docs/coverage.md` writes the table.

A result is one of
    explained    the model ran, and the account of its relevance closes
    refused      relprop named an operation it has no rule for, or a reason why it cannot capture the model
    failed       relprop raised anything else (an account that does not close is an error, never a result), or took too long
    not built    the library could not build or run the small member itself; says nothing about relprop
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import relprop
from families import LIBRARIES, Case

_PRELOADED = (
    "torch.export", "torch._functorch.aot_autograd", "torch._inductor.decomposition", "torch._export.passes", "networkx",
)  # fmt: skip
"""What the first export would import anew in every process."""

FILES = {"torchvision": "vision", "timm": "images", "transformers": "transformer", "by hand": "others"}

DEFAULT = Path(__file__).with_name("coverage.json")


def outcome(library: str, family: str) -> dict[str, Any]:
    """Build, run and explain one family."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    begun = time.perf_counter()
    try:
        case: Case = LIBRARIES[library]().build(family)
        with torch.no_grad():
            case.run()
    except Exception as error:
        return {"result": "not built", "why": one_line(error)}
    built = time.perf_counter()
    row: dict[str, Any] = {"member": case.name, "weights": sum(p.numel() for p in case.model.parameters())}
    try:
        explanation = relprop.explain(case.model, case.inputs, case.target)
        audit = explanation.audit
        assert audit is not None
        largest = int(audit.score.abs().argmax())
        row |= {
            "result": "explained",
            "operations": len(explanation.plan or ()),
            "kinds": sorted({entry.operation for entry in audit.entries}),
            "gap": float((audit.gap.abs() / audit.tolerance).max() * 1e-5),
            "magnitude": float(audit.magnitude[largest] / audit.score[largest].abs()),
            "relevance": float(audit.relevance[largest] / audit.score[largest]),
            "masked": case.leaks(explanation.relevance),
        }
    except relprop.RelpropError as error:
        refused = isinstance(error, (relprop.UnsupportedOperation, relprop.CaptureError))
        row |= {"result": "refused" if refused else "failed", "why": one_line(error)}
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        row |= {"result": "failed", "why": f"{one_line(error)} ({Path(last.filename).name}:{last.lineno})"}
    return row | {"built": round(built - begun, 1), "seconds": round(time.perf_counter() - built, 1)}


def one_line(error: BaseException) -> str:
    """The kind of an error and the lines of what it says, as one."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return f"{type(error).__name__}: {text}"[:600]


def _send(pipe: Any, library: str, family: str) -> None:
    sink = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(sink, stream)
    pipe.send(outcome(library, family))


def run(work: list[tuple[str, str]], timeout: float, workers: int, keep: Any) -> None:
    """Every piece of work in a process of its own, `workers` at a time; `keep(library, family, row)` takes results.

    They are forks of a server that has loaded the libraries and computed nothing: autograd cannot be forked once it has
    run.
    """
    fork = multiprocessing.get_context("forkserver")
    libraries = {library for library, _ in work}
    fork.set_forkserver_preload(
        [
            "relprop",
            *_PRELOADED,
            *libraries & {"torchvision", "timm", "transformers"},
            *(f"families.{FILES[name]}" for name in libraries),
        ]
    )
    waiting, running = collections.deque(work), []
    while waiting or running:
        while waiting and len(running) < workers:
            library, family = waiting.popleft()
            ours, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=_send, args=(theirs, library, family))
            process.start()
            theirs.close()
            running.append((process, ours, time.monotonic(), library, family))
        still = []
        for process, pipe, begun, library, family in running:
            row = None
            if pipe.poll():
                try:
                    row = pipe.recv()
                except EOFError:
                    row = {"result": "failed", "why": "the process died (out of memory, or a crash in torch)"}
            elif time.monotonic() - begun > timeout:
                process.kill()
                row = {"result": "failed", "why": f"took more than {timeout:.0f} s"}
            if row is None:
                still.append((process, pipe, begun, library, family))
                continue
            process.join()
            keep(library, family, row)
        running = still
        time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("libraries", nargs="*", choices=[[], *LIBRARIES], default=list(LIBRARIES))
    parser.add_argument("--family", nargs="*", default=None)
    parser.add_argument("--json", type=Path, default=DEFAULT)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--timeout", type=float, default=400)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", nargs="*", default=[])
    given = parser.parse_args()
    results = json.loads(given.json.read_text()) if given.json.is_file() else {}
    work = []
    for name in given.libraries:
        library = LIBRARIES[name]()
        for family in library.families():
            known = results.get(name, {}).get(family)
            wanted = (
                family in given.family if given.family else known is None or known["result"] in given.again
            )
            if wanted:
                work.append((name, family))

    def keep(library: str, family: str, row: dict[str, Any]) -> None:
        results.setdefault(library, {})[family] = row
        given.json.write_text(json.dumps(results, indent=1, sort_keys=True))
        shown = row.get("why") or (
            f"{row['operations']} operations, gap {row['gap']:.0e}, relevance/score {row['relevance']:.3g}, {row['seconds']} s"
        )
        print(f"{library:12} {family:28} {row['result']:10} {shown}", flush=True)

    run(work, given.timeout, given.workers, keep)
    print(totals(results))
    if given.write:
        given.write.write_text(page(results))
    return int(any(row["result"] == "failed" for rows in results.values() for row in rows.values()))


def totals(results: dict[str, Any]) -> str:
    """One line a library: how many families ran, and how many of these were explained."""
    lines = []
    for library, rows in results.items():
        count = collections.Counter(row["result"] for row in rows.values())
        ran = len(rows) - count["not built"]
        share = 100 * count["explained"] / max(1, ran)
        lines.append(
            f"{library}: {count['explained']} of {ran} families that ran are explained ({share:.1f} %);"
            f" refused {count['refused']}, failed {count['failed']}; not built {count['not built']} of {len(rows)}"
        )
    return "\n".join(lines)


def page(results: dict[str, Any]) -> str:
    """The table as a page."""
    from families.page import text

    known = {name: LIBRARIES[name]().families() for name in results}
    return text(results, totals, known)


if __name__ == "__main__":
    sys.exit(main())
