"""`relprop explain`: photographs in, heatmaps and results out, a batch at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch import Tensor

from relprop import Explainer, Explanation
from relprop.cli import printing
from relprop.data import DEMO
from relprop.errors import InvalidInput, RelpropError
from relprop.models import Loaded
from relprop.show.picture import FORMATS
from relprop.targets import main_output

FOLDER = "relprop-heatmaps"
"""Where the heatmaps of several photographs go by default, in the current folder."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is done with every photograph."""

    loaded: Loaded
    explainer: Explainer
    target: int | tuple[int, ...] | None
    device: str
    batch_size: int
    top: int
    overlay: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What came out for one photograph: a sample of an explanation, and where its heatmap was written."""

    photo: Path
    heatmap: Path
    explanation: Explanation
    sample: int

    @property
    def score(self) -> float:
        """The explained score."""
        return float(self.explanation.score[self.sample])

    @property
    def target(self) -> int | tuple[int, ...]:
        """The explained output: its number, or its index."""
        target = self.explanation.target
        return int(target[self.sample]) if isinstance(target, Tensor) else target


@dataclass(slots=True)
class Outcome:
    """What came out for all photographs; `failed` holds those that could not be read, with the reason."""

    results: list[Result] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


def places(photos: Sequence[Path], out: Path | None, several: bool) -> list[Path]:
    """Where the heatmap of each photograph goes. Raises `InvalidInput` where that cannot be.

    A folder for several photographs is made when it is missing.
    """
    if not several:
        name = Path(f"relprop-{photos[0].stem}.png")
        place = name if out is None else out / name if out.is_dir() else out
        if place.resolve() == photos[0].resolve():
            raise InvalidInput(f"--out: {place} is the photograph itself\n  do: give another file")
        if place.suffix.lower() not in FORMATS:
            raise InvalidInput(f"--out: {place} has no known ending\n  do: use one of {', '.join(FORMATS)}")
        if not place.parent.is_dir():
            raise InvalidInput(
                f"--out: there is no folder {place.parent}\n  do: create it, or give another file"
            )
        return [place]
    folder = Path(FOLDER) if out is None else out
    if folder.exists() and not folder.is_dir():
        raise InvalidInput(
            f"--out: {folder} is a file\n  do: give a folder, as there are several photographs"
        )
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Path] = []
    for photo in photos:
        place, count = folder / f"relprop-{photo.stem}.png", 1
        while place in found:
            count += 1
            place = folder / f"relprop-{photo.stem}-{count}.png"
        found.append(place)
    return found


def run(job: Job, photos: Sequence[Path], places: Sequence[Path]) -> Outcome:
    """Explain the photographs, a batch at a time, and write each heatmap when it is done.

    A photograph that cannot be read is reported at once, and the others go on; a single one is an error.
    """
    outcome = Outcome()
    with redirect_stdout(sys.stderr), printing.progress() as bar:
        task = bar.add_task("explaining", total=len(photos))
        try:
            for start in range(0, len(photos), job.batch_size):
                stop = min(start + job.batch_size, len(photos))
                opened: list[tuple[Path, Path, Any]] = []
                for photo, place in zip(photos[start:stop], places[start:stop], strict=True):
                    try:
                        opened.append((photo, place, job.loaded.preprocessing.cropped(photo)))
                    except RelpropError as error:
                        if len(photos) == 1:
                            raise
                        message = str(error).replace("\n  ", "; ")
                        outcome.failed.append((photo, message))
                        printing.say(f"error: {message}", "bold red")
                for result in _batch(job, opened):
                    outcome.results.append(result)
                    bar.advance(task)
                bar.update(task, completed=stop)
        except KeyboardInterrupt:
            if len(photos) > 1:
                count = len(outcome.results)
                printing.say(f"{count} of {len(photos)} heatmaps are finished, in {places[0].parent}")
            raise
    return outcome


def _batch(job: Job, opened: Sequence[tuple[Path, Path, Any]]) -> Iterator[Result]:
    """Explain one batch; each result is yielded when its heatmap is written."""
    from relprop import show

    if not opened:
        return
    stacked = torch.stack([job.loaded.preprocessing.tensor(crop) for _, _, crop in opened])
    explanation = job.explainer(stacked.to(job.device, job.loaded.dtype()), job.target)
    job.loaded.check_names_of(main_output(explanation.output))
    for sample, (photo, place, crop) in enumerate(opened):
        result = Result(photo, place, explanation, sample)
        relevance = explanation.relevance[sample]
        show.save(show.heatmap(relevance, crop, overlay=job.overlay, title=_title(job, result)), place)
        yield result


def _title(job: Job, result: Result) -> str:
    name = _target_name(job, result)
    return (
        f"{name} {result.score:.2f}".replace("-", "−") if result.score < 0 else f"{name} {result.score:.2f}"
    )


def _target_name(job: Job, result: Result) -> str:
    target = result.target
    return job.loaded.class_name(target) if isinstance(target, int) else f"output {target}"


def _rules(job: Job) -> str:
    method, composite = job.explainer.method, job.explainer.composite
    return f"{method}, rules {composite.name}" if method == "lrp" else method


def largest(job: Job, result: Result) -> list[dict[str, Any]]:
    """The classes with the largest scores; empty where the output is no row of classes.

    "probability" is the softmax of the scores, or the score itself where the outputs are probabilities.
    """
    output = main_output(result.explanation.output)[result.sample].detach().double().cpu()
    if output.dim() != 1 or len(output) < 2:
        return []
    already = bool((output >= 0).all()) and abs(float(output.sum()) - 1) < 1e-3
    probability = output if already else output.softmax(0)
    found = output.topk(min(job.top, len(output))).indices.tolist()
    return [
        {
            "index": index,
            "name": job.loaded.class_name(index),
            "score": float(output[index]),
            "probability": float(probability[index]),
        }
        for index in found
    ]


def as_json(job: Job, outcome: Outcome) -> dict[str, Any]:
    """The results as plain values."""
    loaded, how = job.loaded, job.loaded.preprocessing
    return {
        "model": loaded.name,
        "weights": loaded.weights,
        "preprocessing": {name: getattr(how, name) for name in how.__dataclass_fields__},
        "method": job.explainer.method,
        "rules": job.explainer.composite.name if job.explainer.method == "lrp" else None,
        "results": [_result_json(job, result) for result in outcome.results],
        "failed": [{"photo": str(photo), "error": message} for photo, message in outcome.failed],
    }


def _result_json(job: Job, result: Result) -> dict[str, Any]:
    audit, i = result.explanation.audit, result.sample
    account = None if audit is None else printing.audit_json(audit, i)
    return {
        "photo": str(result.photo),
        "target": result.target,
        "name": _target_name(job, result),
        "score": result.score,
        "top": largest(job, result),
        "audit": account,
        "heatmap": str(result.heatmap),
    }


def print_result(job: Job, outcome: Outcome) -> None:
    """One photograph: its classes, its audit, its heatmap."""
    (result,) = outcome.results
    bundled = " (bundled)" if result.photo.parent == DEMO else ""
    for name, value in (
        ("photograph", result.photo.name + bundled if bundled else str(result.photo)),
        ("model", f"{job.loaded.name}, weights {job.loaded.weights}"),
        ("input", str(job.loaded.preprocessing)),
        ("method", _rules(job)),
        ("explained", f"{_target_name(job, result)}, score {result.score:.4g}"),
    ):
        printing.print_field(name, value)
    classes = largest(job, result)
    if classes:
        printing.print_gap()
        rows = [
            (c["name"], str(c["index"]), f"{c['score']:.4g}", f"{100 * c['probability']:.1f} %")
            for c in classes
        ]
        strong = next((i for i, c in enumerate(classes) if c["index"] == result.target), -1)
        numbers = ("class", "score", "probability")
        printing.print_table(("largest outputs", *numbers), rows, numbers, strong)
    printing.print_gap()
    if result.explanation.audit is not None:
        printing.print_audit(result.explanation.audit, result.sample)
        printing.print_gap()
    printing.print_field("heatmap", str(result.heatmap))


def print_summary(job: Job, outcome: Outcome, folder: Path) -> None:
    """Several photographs: one line each."""
    rows = []
    for result in outcome.results:
        audit, i = result.explanation.audit, result.sample
        kept = "" if audit is None else f"{float(sum(amount[i] for amount in audit.absorbed.values())):+.4g}"
        relevance = float(result.explanation.relevance[i].double().sum())
        gap = "" if audit is None else f"{float(audit.gap[i]):+.1e}"
        numbers = (f"{result.score:.4g}", f"{relevance:+.4g}", kept, gap)
        rows.append((result.photo.name, _target_name(job, result), *numbers, result.heatmap.name))
    right = ("score", "relevance", "absorbed", "gap")
    if rows:
        printing.print_table(("photograph", "explained", *right, "heatmap"), rows, right)
    console, total = printing.stdout(), len(rows) + len(outcome.failed)
    failed = f"; {len(outcome.failed)} could not be read" if outcome.failed else ""
    console.print(
        Text(f"{job.loaded.name}, {_rules(job)}: {len(rows)} of {total} photographs explained{failed}")
    )
    console.print(Text(f"heatmaps in {folder}"))
