"""`relprop evaluate`: methods side by side on a model and data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.text import Text

from relprop.cli import printing
from relprop.cli.options import (
    DeviceOption,
    JsonOption,
    MeanOption,
    ModelOption,
    SizeOption,
    StdOption,
    WeightsOption,
    load_named,
)
from relprop.data import DEMO, Preprocessing, open_photograph, photographs_in
from relprop.errors import InvalidInput
from relprop.evaluate import digits, scenes
from relprop.evaluate.arithmetic import Agreement, arithmetic
from relprop.evaluate.cases import Data
from relprop.evaluate.compare import HEAD, METHODS, Comparison, compare, headline
from relprop.evaluate.perturb import experiment
from relprop.evaluate.picture import picture
from relprop.evaluate.protocols import PROTOCOLS, Protocol, protocol
from relprop.evaluate.table import METRICS
from relprop.show import save

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


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be compared.

    Attributes:
        model, name: the network and what it is called.
        data: the samples; `source` says where they are from.
    """

    model: Any
    name: str
    data: Data
    source: str


def evaluate(
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            metavar="PHOTO|FOLDER|FILE.npz|digits|scenes",
            help="Photographs or folders of them; a .npz file of arrays inputs (or images), and if you like target and mask;"
            " or digits (scikit-learn's) or scenes (rendered, with masks), with a small network that is trained at once. Default: the bundled photograph.",
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
        int | None,
        typer.Option(
            metavar="PIXELS",
            min=1,
            help="The side of the patches that are replaced at a time.",
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
            help="uniform, zero, black, mean, blur, invert, dataset, noisy_linear, or a number.",
            show_default=False,
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Draws of a random replacement.", show_default=False),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="logit, probability, log_odds or accuracy.", show_default=False),
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
    seed: Annotated[int, typer.Option(metavar="N", help="Of all draws.")] = 0,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Samples explained at a time.")] = 8,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Compare methods of explanation on your own model and data: which should one believe?

    Printed is a table for each metric with intervals, tiers that tell which differences are real, and how many samples the others
    would need; the curves are drawn as a figure.

    \b
    Examples:
      relprop evaluate --data photos/ --methods lrp,lrp:epsilon_plus,integrated_gradients,random
      relprop evaluate --data photos/ --protocol samek2017 --store done/
      relprop evaluate --protocol bach2015 --limit 50
      relprop evaluate --protocol arras2019
      relprop evaluate --data scenes --methods lrp,sensitivity,random
      relprop evaluate --data arrays.npz --model nets:make --metrics roc_auc,relevance_mass
    """
    with printing.reporting():
        chosen = DEFAULT if protocol_name is None else protocol(protocol_name)
        names = _names(methods) or chosen.methods
        if chosen.data == "arithmetic":
            if data or metrics or model != "demo":
                raise InvalidInput(
                    "protocol: arras2019 trains networks of its own and has its own measures\n  do: leave --data, --model and --metrics out"
                )
            _print_agreement(_agreement(names, seed), json)
            return
        work = _work(data, chosen, (model, weights, size, mean, std, device), limit)
        settings = _settings(chosen, work.data, regions, steps, replacement, draws, score)
        asked = _names(metrics) or (
            LOCALISED if protocol_name is None and work.data.mask is not None else chosen.metrics
        )
        _announce(work, settings, names, asked)
        with printing.progress() as bar:
            task = bar.add_task("comparing", total=None)

            def show(done: int, total: int, what: str) -> None:
                bar.update(task, completed=done, total=total, description=what)

            found = compare(
                work.model, work.data, names, asked, perturbation=settings, batch_size=batch_size, seed=seed, store=store, progress=show
            )  # fmt: skip
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
            }
            printing.print_json("evaluate", content | found.as_dict())
        else:
            _print(work, found, place)


def _digits(limit: int | None) -> Work:
    images, labels, tests, truth = digits.digits()
    network = digits.trained(images, labels)
    name = f"a network of two convolutions, {_correct(network, tests, truth)} % correct"
    return Work(network, name, Data(tests[:limit], bounds=(-1.0, 1.0)), "scikit-learn's digits in [−1, 1]")


def _scenes(limit: int | None) -> Work:
    network, tests = scenes.trained(), scenes.scenes(limit or 100, seed=10_000)
    name = f"a network of three convolutions, {_correct(network, tests.images, tests.labels)} % correct"
    held = Data(tests.images, tests.labels, tests.single, (0.0, 1.0))
    return Work(network, name, held, "rendered scenes, the class the shape of the red object")


OWN = {"digits": _digits, "scenes": _scenes}
"""Data that come with a network, which is trained when they are asked for."""


def _correct(network: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> str:
    with torch.no_grad():
        return f"{100 * float((network(inputs).argmax(1) == labels).float().mean()):.1f}"


NETWORKS = 3
"""How many LSTMs are trained for each arithmetic task; means over them are printed."""


def _agreement(methods: Sequence[str], seed: int) -> list[list[Agreement]]:
    """What was found for each of several trained networks."""
    found = []
    with printing.progress() as bar:
        task = bar.add_task("training", total=NETWORKS)
        for number in range(NETWORKS):
            found.append(
                arithmetic(
                    methods=methods,
                    seed=seed + number,
                    progress=lambda what: bar.update(task, description=what),
                )
            )
            bar.update(task, advance=1)
    return found


def _print_agreement(found: list[list[Agreement]], json: bool) -> None:
    """The correlations of relevance with the truth: means over networks, and the least and the largest."""
    names = [name for name in Agreement.__dataclass_fields__ if name not in ("task", "method")]
    if json:
        rows = [
            {"network": i, **{n: getattr(row, n) for n in Agreement.__dataclass_fields__}}
            for i, rows in enumerate(found)
            for row in rows
        ]
        printing.print_json("evaluate", {"protocol": "arras2019", "rows": rows})
        return
    lines = []
    for same in zip(*found, strict=True):
        columns = [[getattr(row, name) for row in same] for name in names]
        lines.append(
            (
                same[0].task,
                same[0].method,
                *(f"{np.mean(c):.3f} ({min(c):.3f} … {max(c):.3f})" for c in columns),
            )
        )
    printing.print_field(
        "model",
        f"{len(found)} LSTMs of one cell a task, trained to a squared error below 1e-3; means (least … largest)",
    )
    printing.print_gap()
    printing.print_table(
        ("task", "method", "ρ(n_a, R_a)", "ρ(n_b, R_b)", "share of |R| on both", "mean |ΣR − f|"), lines
    )
    printing.print_field(
        "ideal", "1 and 1 where numbers are added, 1 and −1 where they are subtracted; share 1"
    )


def _names(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _settings(
    chosen: Protocol, data: Data, regions: int | None, steps: int | None, replacement: str | None, draws: int | None, score: str | None
) -> dict[str, Any]:  # fmt: skip
    settings = dict(chosen.perturbation)
    given = {"regions": regions, "draws": draws, "score": score, "replacement": _number(replacement)}
    settings |= {name: value for name, value in given.items() if value is not None}
    if steps is not None:
        settings |= {"steps": steps, "size": 1}
    if "regions" not in settings and isinstance(data.inputs, torch.Tensor) and data.inputs.dim() == 4:
        settings["regions"] = max(1, data.inputs.shape[-1] // 16)
    return settings


def _number(text: str | None) -> Any:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _work(given: Sequence[str] | None, chosen: Protocol, named: tuple[Any, ...], limit: int | None) -> Work:
    """The model and the data that the command line names."""
    paths = list(given or ([chosen.data] if chosen.data else []))
    if len(paths) == 1 and paths[0] in OWN:
        if named[0] != "demo":
            raise InvalidInput(
                f"data: {paths[0]} come with a network of their own\n  do: leave --model out, or give data in a .npz file"
            )
        with printing.working(f"training a small network on {paths[0]}"):
            return OWN[paths[0]](limit)
    model, weights, size, mean, std, device = named
    loaded = load_named(model, weights, size, mean, std, None, device)
    if len(paths) == 1 and paths[0].endswith(".npz"):
        return Work(
            loaded.model, loaded.name, _arrays(Path(paths[0]), loaded.dtype(), device, limit), paths[0]
        )
    files = photographs_in([Path(path) for path in paths] or [DEMO / "cat.jpg"])[:limit]
    how = loaded.preprocessing
    with printing.working(f"reading {len(files)} photographs"):
        tensors = torch.stack([how.tensor(how.crop(open_photograph(file))) for file in files])
    inputs = tensors.to(device=device, dtype=loaded.dtype())
    source = ", ".join(paths) if paths else "the bundled photograph"
    return Work(loaded.model, loaded.name, Data(inputs, bounds=_range(how, inputs)), source)


def _range(how: Preprocessing, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What black and white become after normalisation, a value a channel."""
    mean, std = (
        torch.tensor(v, dtype=inputs.dtype, device=inputs.device)[:, None, None] for v in (how.mean, how.std)
    )
    slack = 1e-5 / std  # rounding of the normalisation
    return (0 - mean) / std - slack, (1 - mean) / std + slack


def _arrays(file: Path, dtype: torch.dtype, device: str, limit: int | None) -> Data:
    """Samples from a .npz file: inputs (or images), and if it has them target (whole numbers) and mask."""
    if not file.exists():
        raise InvalidInput(f"{file}: no such file")
    try:
        with np.load(file, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{file}: not a .npz file of arrays ({str(error).splitlines()[0]})") from error
    name = next((one for one in ("inputs", "images") if one in arrays), None)
    if name is None:
        raise InvalidInput(
            f"{file}: arrays {', '.join(arrays) or 'none'}\n  do: name the samples inputs, (N, …)"
        )
    inputs = torch.from_numpy(arrays[name])[:limit].to(device)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    target = torch.from_numpy(arrays["target"])[:limit] if "target" in arrays else None
    mask = torch.from_numpy(arrays["mask"])[:limit] if "mask" in arrays else None
    return Data(inputs, target, mask)


def _announce(work: Work, settings: dict[str, Any], methods: Sequence[str], asked: Sequence[str]) -> None:
    """Say what will be done and, where inputs are perturbed, about how long the rows will take."""
    curved = [name for name in asked if name in ("aopc_morf", "aopc_lerf", "abpc", "naopc")]
    if not curved:
        return
    few = work.data.part(0, min(8, len(work.data)))
    trial = experiment(work.model, few.inputs, few.target, **{"bounds": few.bounds, **settings})
    everyone = torch.arange(len(few), device=trial.scorer.inputs.device)
    started = time.perf_counter()
    trial.scorer.of(trial.scorer.inputs, everyone)
    each = (time.perf_counter() - started) / len(few)
    orders = 1 if set(curved) <= {"aopc_morf", "naopc"} else 2
    rows = len(work.data) * len(methods) * orders * trial.draws * (len(trial.counts) - 1)
    printing.say(
        f"{len(work.data)} samples, {len(methods)} methods: {rows} forward rows of perturbed inputs, about {_duration(rows * each)}",
        "dim",
    )


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
    if len(found.metrics) > 1 and ranks:
        printing.print_gap()
        words = ", ".join(
            f"{name} {rank:.2g}" for name, rank in sorted(ranks.items(), key=lambda item: item[1])
        )
        printing.print_field("mean rank", f"{words}; Kendall's W {agreement:.2f}")
    times = ", ".join(f"{name} {seconds:.2g} s" for name, seconds in found.seconds.items())
    printing.print_field("explaining", times)
    if place is not None:
        printing.print_field("figure", str(place))
