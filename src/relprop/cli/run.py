"""`relprop run`: a model and a data set in, a store out; resumable."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import relprop
from relprop.cli import printing
from relprop.cli.options import (
    ClassesOption,
    DeviceOption,
    JsonOption,
    MeanOption,
    ModelOption,
    RulesOption,
    SizeOption,
    StdOption,
    WeightsOption,
    numbers,
)
from relprop.errors import InvalidInput
from relprop.run import (
    Estimate,
    Recipe,
    Summary,
    Tally,
    Task,
    begin,
    check_cluster,
    estimated,
    finish,
    prepared,
    tried,
)
from relprop.run.local import cores
from relprop.run.trial import Trial
from relprop.store import is_store

LISTED = 5
"""Failures that are listed."""


def run(
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            metavar="PATH",
            help="A folder of pictures or recordings (folders in it are classes), files (give it several times, or a .txt that"
            " lists them), .npy, .npz, .csv, .tsv, .parquet, .txt (a text a line), WebDataset tars, or package.module:callable,"
            " which returns a torch Dataset.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", "-s", metavar="DIR", help="The store: a new folder.", show_default=False),
    ] = None,
    model: ModelOption = "demo",
    weights: WeightsOption = None,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            metavar="predicted|true|top-K|N|NAME",
            help="What is explained of each sample: its largest output, its label's, the K largest (a row each), or one output.",
        ),
    ] = "predicted",
    rules: RulesOption = "auto",
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="PRESET", help="The same as --rules.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(metavar="NAME", help=f"One of {', '.join(relprop.methods())}.")] = "lrp",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the store that is there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Explain the first samples, tell size and time of the whole, and leave.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(metavar="local|ADDRESS", help="Work on a Ray cluster: local starts one here.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of the cluster. Default: as many as it has room for.", show_default=False),
    ] = None,
    reduce: Annotated[
        str, typer.Option(metavar="none|channels", help="Sum the relevance of pictures over the channels.")
    ] = "none",
    dtype: Annotated[str, typer.Option(metavar="float32|float16|float64", help="Of the stored relevance.")] = "float32",
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch", "--batch-size", metavar="N", min=1, help="Samples explained at a time. Default: 8; on a GPU 64.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="CSV with the columns file and label, where the data themselves have none.", show_default=False
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Of a table: the texts, or the numbers. Default: text; all numbers.", show_default=False),
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a table: the labels. Default: label.", show_default=False)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What arrays are: image, text, audio, series, table. Default: by their shape.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first N samples.", show_default=False)
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Tokens of a text that are kept. Default: as many as the longest has.", show_default=False),
    ] = None,
    thumbnail: Annotated[int, typer.Option(metavar="PIXELS", help="Side of the pictures' thumbnails; 0 for none.")] = 96,
    block: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Samples written at a time. Default: some ten seconds of work.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of the computation, for each worker. Default: all processors; of a cluster's workers 1.", show_default=False),
    ] = None,
    rate: Annotated[
        int | None, typer.Option(metavar="HZ", help="Samples a second of recordings. Default: the model's own.", show_default=False)
    ] = None,
    channels: Annotated[
        int, typer.Option(metavar="0|1", min=0, max=1, help="Recordings go in as (samples,), or with 1 as (1, samples).")
    ] = 0,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    classes: ClassesOption = None,
    device: DeviceOption = "cpu",
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit status 2 where any sample fails. Default: where all do.")
    ] = False,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Explain a whole data set into a store, which may be stopped at any moment and gone on with.

    \b
    Examples:
      relprop run --data photos/ --store maps.zarr
      relprop run --data photos/ --store maps.zarr --resume
      relprop run --data photos/ --store small.zarr --reduce channels --dtype float16 --dry-run
      relprop run --model FOLDER --data reviews.csv --column text --store words.zarr --target true
      relprop run --model nets:make --data mine:dataset --store maps.zarr --ray local --workers 2
    """
    with printing.reporting():
        if not data:
            raise InvalidInput("data: none given\n  do: give --data, such as a folder of pictures")
        if store is None and not dry_run:
            raise InvalidInput("store: none given\n  do: give --store and a new folder")
        if preset is not None and rules not in ("auto", preset):
            raise InvalidInput(
                f"rules: --rules {rules} and --preset {preset} are the same option\n  do: give one of them"
            )
        check_cluster(ray)
        recipe = Recipe(
            model=model, data=data[0] if len(data) == 1 else data, target=target, rules=preset or rules, method=method,
            batch=batch, reduce=reduce, dtype=dtype, labels=labels, column=column, label_column=label_column, kind=kind,
            weights=weights, size=size, mean=numbers("mean", mean), std=numbers("std", std), classes=classes, device=device,
            rate=rate, channels=channels, limit=limit, length=length, thumbnail=thumbnail,
            threads=threads or (1 if ray else None), command=_command(),
        )  # fmt: skip
        place = store or Path("relprop-store")
        with printing.working(f"loading {model}, listing the data"):
            task = prepared(recipe)
        trial = None
        if dry_run or not (resume and is_store(place)):
            _refuse(place, dry_run)
            with printing.working("explaining the first samples"):
                trial = tried(task)
            estimate = estimated(task, trial, place, _workers(ray, workers, task), block)
            _announce(task, trial, estimate, json, dry_run)
        if dry_run:
            return
        summary = _run(task, trial, place, resume, block, ray, workers)
        if json:
            printing.print_json("run", as_json(task, summary))
        else:
            print_summary(task, summary)
        if summary.failed:
            printing.say(
                f"note: {summary.failed} of {summary.samples} samples failed, their reasons are in the store"
                + ("" if strict else " (--strict makes that exit status 2)"),
                "yellow",
            )
        if summary.done == 0 or (strict and summary.failed):
            raise typer.Exit(2)


def _run(
    task: Task,
    trial: Trial | None,
    place: Path,
    resume: bool,
    block: int | None,
    ray: str | None,
    workers: int | None,
) -> Summary:
    with begin(task, place, resume=resume, block=block, trial=trial) as begun, _bar() as bar:
        if begun.before:
            printing.say(f"{begun.before} of {len(begun.task)} samples are there already")
        shown = bar.add_task("explaining", total=len(begun.task), completed=begun.before, failed="", rate="")
        tally, clock = {"done": 0, "failed": 0}, bar.get_time
        started = clock()

        def progress(added: Tally) -> None:
            tally["done"] += added.done
            tally["failed"] += added.failed
            both = tally["done"] + tally["failed"]
            failed = f"{tally['failed']} failed" if tally["failed"] else ""
            rate = f"{both / max(clock() - started, 1e-9):.3g}/s"
            bar.update(shown, completed=begun.before + both, failed=failed, rate=rate)

        try:
            return finish(begun, ray=ray, workers=workers, progress=progress)
        except KeyboardInterrupt:
            printing.say(f"what is finished is in {place}; go on with --resume")
            raise


def _bar() -> Progress:
    """Progress with the rate and the time left, on stderr, of a terminal only."""
    console = printing.stderr()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(), TextColumn("{task.fields[failed]}", style="red"),
    )  # fmt: skip
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _command() -> str:
    """What was typed."""
    return shlex.join(["relprop", *sys.argv[1:]])


def _refuse(place: Path, dry: bool) -> None:
    from relprop.run import refuse_in_use

    if not dry:
        refuse_in_use(place)


def _workers(ray: str | None, workers: int | None, task: Task) -> int:
    if ray is None:
        return 1
    return workers or (max(1, cores() // task.threads) if ray == "local" else 1)


def _announce(task: Task, trial: Trial, found: Estimate, json: bool, dry: bool) -> None:
    """The plan: on stdout where it is all that is asked for, else on stderr."""
    shape = " × ".join(map(str, found.shape))
    rows = "" if found.rows == found.samples else f", {found.rows} rows"
    fields = [
        ("model", f"{task.name}, weights {task.weights}"),
        ("data", f"{task.samples.name}: {found.samples} samples{rows}, {task.samples.kind}"),
        ("target", str(task.recipe.target)),
        ("relevance", f"{shape} {found.dtype} a sample, in blocks of {found.block} samples"),
        ("size", f"about {bytes_in_words(found.size)}; the disk has {bytes_in_words(found.free)} free"),
        ("time", f"about {duration(found.seconds)}, {found.rate:.3g} samples a second"),
    ]
    if found.failures:
        fields.append(("failed", f"{len(found.failures)} of the first samples; {found.failures[0]}"))
    if dry and json:
        content = {name: getattr(found, name) for name in found.__dataclass_fields__}
        printing.print_json(
            "run", {"dry_run": True, "model": task.name, "kind": task.samples.kind, **content}
        )
    elif dry:
        for name, value in fields:
            printing.print_field(name, value)
    else:
        for name, value in fields:
            printing.say(f"{name:<11}{value}", "dim")
    if found.size > found.free:
        printing.say(
            "note: the store will not fit on this disk; --reduce channels, --dtype float16 and --thumbnail 0 make it smaller", "yellow"
        )  # fmt: skip


def print_summary(task: Task, found: Summary) -> None:
    """What the run came to."""
    for name, value in (
        ("store", str(found.store)),
        ("samples", f"{found.done} of {found.samples} explained" + (f", {found.before} of them before" if found.before else "")),
        ("time", _pace(found)),
    ):  # fmt: skip
        printing.print_field(name, value)
    if found.failed:
        printing.print_field("failed", f"{found.failed} samples; their reasons are in the column reason")
        for name, why in found.failures[:LISTED]:
            printing.print_field("", f"{name}: {why}")
        if found.failed > LISTED:
            printing.print_field("", f"and {found.failed - LISTED} more")
    if found.unknown:
        names = ", ".join(found.unknown[:3]) + (" …" if len(found.unknown) > 3 else "")
        printing.print_field(
            "labels",
            f"{len(found.unknown)} names are none of the model's classes and count as no label ({names})",
        )
    elif found.unlabelled:
        printing.print_field("labels", f"{found.unlabelled} samples have none")
    if found.blown_up:
        printing.print_field(
            "note", f"relevance of {found.blown_up} samples was blown up on the way (column magnitude); calmer rules may suit better"
        )  # fmt: skip


def _pace(found: Summary) -> str:
    """How long the run took, and how fast it was."""
    fresh = found.samples - found.before
    if not fresh:
        return "nothing was left to do"
    return f"{duration(found.seconds)}, {fresh / max(found.seconds, 1e-9):.3g} samples a second"


def as_json(task: Task, found: Summary) -> dict[str, Any]:
    """The results as plain values."""
    values = {name: getattr(found, name) for name in found.__dataclass_fields__}
    failures = [{"id": name, "reason": why} for name, why in found.failures]
    return {
        "model": task.name,
        "kind": task.samples.kind,
        **values,
        "store": str(found.store),
        "failures": failures,
    }


def bytes_in_words(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
