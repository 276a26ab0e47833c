"""`relprop evaluate`: methods side by side on a model and data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.text import Text

from relprop.cli import printing
from relprop.cli.agreement import agreements, print_agreements
from relprop.cli.memory import keep_freed
from relprop.cli.options import (
    DeviceOption,
    JsonOption,
    MeanOption,
    ModelOption,
    SizeOption,
    StdOption,
    WeightsOption,
)
from relprop.cli.work import Work, work_of
from relprop.errors import InvalidInput
from relprop.evaluate.cases import Data
from relprop.evaluate.compare import METHODS, compare
from relprop.evaluate.comparison import HEAD, Comparison, headline
from relprop.evaluate.cost import cost_of
from relprop.evaluate.picture import picture
from relprop.evaluate.protocols import PROTOCOLS, Protocol, protocol
from relprop.evaluate.statistics import scipy_stats
from relprop.evaluate.table import METRICS
from relprop.show import save
from relprop.show.picture import check_packages, check_place

OUT = Path("relprop-evaluate.png")
DEFAULT = Protocol(
    "region perturbation of patches, 16 a side, until all are replaced by uniform noise",
    METHODS,
    ("aopc_morf", "aopc_lerf", "abpc"),
    {"replacement": "uniform", "draws": 5, "score": "logit"},
)
"""What is done where no protocol is named."""


LOCALISED = ("relevance_mass", "relevance_rank", "pointing_game", "roc_auc", "abpc")
"""The metrics by default where the data has masks."""


def evaluate(
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            metavar="PHOTO|FOLDER|FILE.npz|digits|scenes|planted",
            help="Photographs or folders of them; a .npz file of arrays inputs (or images), and if you like target and mask;"
            " or digits (scikit-learn's), scenes (rendered, with masks) or planted (digits with a mark that the network relies on), with a small network that is trained at once. Default: the bundled photograph.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = "demo",
    weights: WeightsOption = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help=f"lrp, lrp:PRESET or another method. Default: {','.join(METHODS)}.",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help=f"Of {', '.join(METRICS)}. Default: {','.join(DEFAULT.metrics)}.",
            show_default=False,
        ),
    ] = None,
    protocol_name: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="NAME",
            help=f"One of {', '.join(PROTOCOLS)}: its settings, unless others are given.",
            show_default=False,
        ),
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(
            metavar="N|N,N|NAME",
            help="The side of the patches that are replaced at a time, one side a dimension (2,16), pixels, or superpixels."
            " Default: a protocol's; a sixteenth of a picture's width; else single values.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Steps of one patch each. Default: until all are replaced, in 32.",
            show_default=False,
        ),
    ] = None,
    replacement: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|NUMBER",
            help="uniform, zero, black, mean, blur, invert, dataset, noisy_linear, or a number (of token ids the id). Default: a protocol's, else uniform.",
            show_default=False,
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Draws of a random replacement. Default: a protocol's, else 5.",
            show_default=False,
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="logit, probability, log_odds or accuracy. Default: a protocol's, else logit.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Use only the first N samples.", show_default=False)
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Where the figure of the curves goes.")
    ] = OUT,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep finished work here; the same command goes on where it was stopped.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of all draws.")] = 0,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Samples explained at a time.")] = 8,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    device: DeviceOption = "cpu",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Run the perturbed rows through a model made by torch.compile: worth it from some minutes of rows on.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compare methods of explanation on your own model and data: which should one believe?

    Printed is a table for each metric with intervals, tiers that tell which differences are real, and how many samples the others
    would need; the curves are drawn as a figure.

    \b
    Examples:
      relprop evaluate --data photos/ --methods lrp,lrp:epsilon_plus,integrated_gradients,random
      relprop evaluate --data photos/ --protocol samek2017 --store done/ --compile
      relprop evaluate --protocol bach2015 --limit 50
      relprop evaluate --protocol arras2019
      relprop evaluate --data scenes --methods lrp,sensitivity,random
      relprop evaluate --data arrays.npz --model nets:make --metrics roc_auc,relevance_mass
    """
    with printing.reporting():
        keep_freed()
        chosen = DEFAULT if protocol_name is None else protocol(protocol_name)
        names = _names("methods", methods) or chosen.methods
        if chosen.data == "arithmetic":
            if data or metrics or compiled or model != "demo":
                raise InvalidInput(
                    "protocol: arras2019 trains networks of its own and has its own measures\n  do: leave --data, --model, --metrics and --compile out"
                )
            print_agreements(agreements(names, seed), json)
            return
        check_place(out)
        check_packages()  # which the figure needs, as the tables need scipy: missed before anything is computed
        scipy_stats()
        work = work_of(data, chosen, (model, weights, size, mean, std, device), limit)
        if compiled:
            work = replace(work, model=_compiled(work.model))
        settings = _settings(chosen, work.data, regions, steps, replacement, draws, score)
        asked = _names("metrics", metrics) or (
            LOCALISED if protocol_name is None and work.data.mask is not None else chosen.metrics
        )
        stated = _announce(work, settings, names, asked, batch_size, seed, store)
        started = time.perf_counter()
        with printing.progress() as bar:
            task = bar.add_task("comparing", total=None)

            def show(done: int, total: int, what: str) -> None:
                bar.update(task, completed=done, total=total, description=what)

            found = compare(
                work.model, work.data, names, asked, perturbation=settings, batch_size=batch_size, seed=seed, store=store, progress=show
            )  # fmt: skip
        taken = time.perf_counter() - started
        printing.say(f"done in {_duration(taken)}", "dim")
        place = None
        if found.curves:
            title = f"{work.name}, {len(work.data)} samples of {work.source}"
            place = save(picture(found, title, settings.get("score", "logit")), out)
        if json:
            content = {
                "model": work.name,
                "data": work.source,
                "protocol": protocol_name,
                "figure": None if place is None else str(place),
                "seconds_stated": stated,
                "seconds_taken": taken,
            }
            printing.print_json("evaluate", content | found.as_dict())
        else:
            _print(work, found, place)


def _compiled(model: Any) -> Any:
    if not isinstance(model, torch.nn.Module):
        raise InvalidInput(
            f"compile: {type(model).__name__} is not a torch.nn.Module\n  do: leave --compile out"
        )
    return torch.compile(model, dynamic=False)


def _names(what: str, text: str | None) -> tuple[str, ...]:
    found = () if text is None else tuple(part.strip() for part in text.split(",") if part.strip())
    if text is not None and not found:
        raise InvalidInput(
            f"{what}: none given\n  do: give names with commas between them, or leave --{what} out"
        )
    return found


def _settings(
    chosen: Protocol, data: Data, regions: str | None, steps: int | None, replacement: str | None, draws: int | None, score: str | None
) -> dict[str, Any]:  # fmt: skip
    settings = dict(chosen.perturbation)
    given = {
        "regions": _regions(regions),
        "draws": draws,
        "score": score,
        "replacement": _number(replacement),
    }
    settings |= {name: value for name, value in given.items() if value is not None}
    if steps is not None:
        settings |= {"steps": steps, "size": 1}
    if "regions" not in settings and isinstance(data.inputs, torch.Tensor) and data.inputs.dim() == 4:
        settings["regions"] = max(1, data.inputs.shape[-1] // 16)
    return settings


def _number(text: str | None) -> Any:
    """A whole number, a number, or the name that was given."""
    for kind in (int, float):
        try:
            return None if text is None else kind(text)
        except ValueError:
            continue
    return text


def _regions(text: str | None) -> Any:
    """A side, several, or the name that was given."""
    if text is None or not text.replace(",", "").strip().lstrip("-").isdigit():
        return text
    sides = [int(part) for part in text.split(",") if part.strip().lstrip("-").isdigit()]
    return sides[0] if len(sides) == 1 else tuple(sides)


def _announce(
    work: Work, settings: dict[str, Any], methods: Sequence[str], asked: Sequence[str], batch_size: int, seed: int,
    store: Path | None,
) -> float:  # fmt: skip
    """Say what will be done and about how long it will take, less what a store has; the seconds."""
    with printing.working("measuring a few samples"):
        cost = cost_of(work.model, work.data, methods, asked, settings, batch_size, seed=seed, store=store)
    rows = f"{cost.rows} forward rows of perturbed inputs, " if cost.rows else ""
    printing.say(
        f"{len(work.data)} samples, {len(methods)} methods: {rows}about {_duration(cost.seconds)}", "dim"
    )
    return cost.seconds


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _print(work: Work, found: Comparison, place: Path | None) -> None:
    console = printing.stdout()
    printing.print_field("model", work.name)
    printing.print_field("data", f"{len(work.data)} samples of {work.source}")
    for name in found.metrics:
        printing.print_gap()
        console.print(Text(headline(name), style="bold"))
        printing.print_table(
            HEAD, found.lines(name), ("mean", "tier", "p", "n needed", "used", "minus random")
        )
    ranks, agreement = found.ranks()
    if len(found.metrics) > 1 and len(ranks) > 1:
        printing.print_gap()
        words = ", ".join(
            f"{name} {rank:.2g}" for name, rank in sorted(ranks.items(), key=lambda item: item[1])
        )
        printing.print_field("mean rank", f"{words}; Kendall's W {agreement:.2f}")
    for line in found.undefined():
        printing.print_field("undefined", line)
    for name, checks in found.blind().items():
        printing.print_field(
            "caught", f"{name} answers alike whatever the model has learned ({', '.join(checks)})"
        )
    times = ", ".join(f"{name} {seconds:.2g} s" for name, seconds in found.seconds.items())
    printing.print_field("explaining", times)
    if place is not None:
        printing.print_field("figure", str(place))
