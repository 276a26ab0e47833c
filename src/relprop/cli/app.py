"""The commands and their options. A command is a function here; what it does is elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import relprop
from relprop.cli import photos as work
from relprop.cli import printing, sounds, texts
from relprop.cli.analyse import analyse
from relprop.cli.analyses import compare, context, words
from relprop.cli.evaluate import evaluate
from relprop.cli.examples import example_of
from relprop.cli.exchange import export, import_
from relprop.cli.kinds import kind_of_inputs
from relprop.cli.options import (
    ChannelsOption,
    ClassesOption,
    DeviceOption,
    ExampleArgument,
    JsonOption,
    MeanOption,
    ModelOption,
    RateOption,
    RulesOption,
    SizeOption,
    StdOption,
    WeightsOption,
    load_named,
)
from relprop.cli.run import run
from relprop.cli.view import view
from relprop.data import DEMO, photographs_in
from relprop.doctor import CHECKS
from relprop.doctor import doctor as examine
from relprop.errors import InvalidInput
from relprop.show.picture import check_packages

app = typer.Typer(
    name="relprop",
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"relprop {relprop.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Why did the model say that? Layer-wise relevance propagation, with an audit.

    \b
    Examples:
      relprop explain                  a bundled photograph, a bundled network
      relprop explain cat.jpg --model resnet50

    Exit status: 0 success, 1 a failed check, 2 bad input (also where one of several photographs could not be read), 130 interrupted.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def explain(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="Photographs, or folders of them; a recording (.wav, .flac, …); or texts, where --model is a"
            " folder saved by transformers. Default: a bundled photograph.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = "demo",
    weights: WeightsOption = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="N|NAME",
            help="The output to explain: its number, or the name of a class. Of a text also the next token,"
            ' a token at a place ("POSITION:TOKEN", -1 is the last) and "A-vs-B", the contrast of two.'
            " Default: the largest.",
            show_default=False,
        ),
    ] = None,
    rules: RulesOption = "auto",
    method: Annotated[
        str, typer.Option(metavar="NAME", help=f"One of {', '.join(relprop.methods())}.")
    ] = "lrp",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Where the heatmap goes (.png, .jpg, .pdf; of a text also .html); for several photographs a"
            f" folder. Default: relprop-NAME.png here; for several, the folder {work.FOLDER}; of a text none.",
            show_default=False,
        ),
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Lay the map over the photograph.")] = False,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="How many classes are listed.")] = 5,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    classes: ClassesOption = None,
    device: DeviceOption = "cpu",
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Photographs explained at a time.")] = 4,
    generate: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Let the model write N tokens on from the text, and explain each.",
            show_default=False,
        ),
    ] = None,
    rate: RateOption = None,
    channels: ChannelsOption = 0,
    json: JsonOption = False,
) -> None:
    """Explain what a network sees in photographs, hears in a recording or reads in a text.

    Printed are the largest outputs and where the score went; of a text its words in the colours of their relevance.

    \b
    Examples:
      relprop explain                  a bundled photograph, a bundled network
      relprop explain cat.jpg --target "tiger cat" --rules epsilon_plus -o why.png
      relprop explain photos/ --model resnet50 --out heatmaps/
      relprop explain scan.png --model nets:make --weights best.safetensors --size 384
      relprop explain "a dull film" --model FOLDER --target "POSITIVE-vs-NEGATIVE" -o why.html
      relprop explain "Paris is the capital of" --model FOLDER --generate 5
      relprop explain recording.wav --model nets:make --rate 16000
    """
    with printing.reporting():
        kind = kind_of_inputs(inputs or [], model)
        if generate is not None and kind != "text":
            raise InvalidInput(
                "--generate: only a model that writes goes on from a text\n  do: give a text and --model FOLDER, or leave it out"
            )
        if kind == "text":
            where = texts.place(out)
            with printing.working(f"loading {model}"):
                who = texts.reader(model, rules, method, device, top)
            texts.run_all(inputs or [], who, target, generate, where, json)
            return
        if kind == "audio":
            sounds.run(
                sounds.Heard(
                    inputs or [], model, weights, target, rules, method, classes, device, rate, channels, top
                ),
                out,
                json,
            )
            return
        given = [Path(one) for one in inputs] if inputs else [DEMO / "cat.jpg"]
        found = photographs_in(given)
        several = len(found) > 1 or any(path.is_dir() for path in given)
        check_packages()
        places = work.places(found, out, several)
        loaded = load_named(model, weights, size, mean, std, classes, device)
        explainer = relprop.Explainer(loaded.model, rules, method, batch_size=batch_size)
        job = work.Job(loaded, explainer, loaded.target(target), device, batch_size, top, overlay)
        outcome = work.run(job, found, places)
        if json:
            printing.print_json("explain", work.as_json(job, outcome))
        elif several:
            work.print_summary(job, outcome, places[0].parent)
        else:
            work.print_result(job, outcome)
        if outcome.failed:
            raise typer.Exit(2)


@app.command()
def plan(
    input: ExampleArgument = None,
    model: ModelOption = "demo",
    weights: WeightsOption = None,
    rules: RulesOption = "auto",
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    device: DeviceOption = "cpu",
    rate: RateOption = None,
    channels: ChannelsOption = 0,
    json: JsonOption = False,
) -> None:
    """Print every operation of a model with its rule and why, before anything runs.

    \b
    Examples:
      relprop plan
      relprop plan --model resnet18 --weights random --rules epsilon_plus_flat
      relprop plan --model nets:make --size 384 --json
      relprop plan --model FOLDER
      relprop plan recording.wav --model nets:make --rate 16000
    """
    with printing.reporting():
        example = example_of(input, model, weights, size, mean, std, device, rate, channels)
        loaded = example.loaded
        with printing.working("capturing the model"):
            rows = relprop.Explainer(loaded.model, rules, example=example.inputs).plan
        if json:
            content = {
                "model": loaded.name,
                "weights": loaded.weights,
                "rules": rules,
                "operations": rows.as_dicts(),
            }
            printing.print_json("plan", content)
        else:
            printing.print_plan(rows, f"{example.title}, rules {rules}")


@app.command()
def doctor(
    input: ExampleArgument = None,
    model: ModelOption = "demo",
    weights: WeightsOption = None,
    rules: RulesOption = "auto",
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    device: DeviceOption = "cpu",
    seed: Annotated[int, typer.Option(metavar="N", help="Of the random inputs.")] = 0,
    rate: RateOption = None,
    channels: ChannelsOption = 0,
    json: JsonOption = False,
) -> None:
    """Ask whether relprop holds its promises on a model: a line each, with its figure; exit code 1 where one fails.

    The inputs are drawn around the one that is given: noise is added to real numbers, and tokens are shuffled.

    \b
    Examples:
      relprop doctor
      relprop doctor --model resnet18 --weights random --rules epsilon_plus_flat
      relprop doctor --model nets:make --size 64 --json
      relprop doctor "a dull film" --model FOLDER
      relprop doctor recording.wav --model nets:make --rate 16000
    """
    with printing.reporting():
        example = example_of(input, model, weights, size, mean, std, device, rate, channels)
        loaded = example.loaded
        with printing.progress() as bar:
            task = bar.add_task("examining", total=len(CHECKS))

            def show(check: str) -> None:
                bar.update(task, advance=1, description=check)

            report = examine(loaded.model, example.inputs, rules=rules, seed=seed, progress=show)
        if json:
            content = {
                "model": loaded.name,
                "weights": loaded.weights,
                "rules": rules,
                "healthy": report.healthy,
                "findings": [finding.as_dict() for finding in report],
            }
            printing.print_json("doctor", content)
        else:
            printing.print_report(report, f"{example.title}, rules {rules}")
        if not report.healthy:
            raise typer.Exit(1)


app.command()(evaluate)
app.command()(run)
app.command()(context)
app.command()(compare)
app.command()(words)
app.command()(export)
app.command("import")(import_)
app.command()(view)
app.command()(analyse)
