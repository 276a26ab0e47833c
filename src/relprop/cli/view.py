"""`relprop view`: an analysed store in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relprop import store as stores
from relprop.analyse import Analysis, load
from relprop.cli import printing
from relprop.cli.analyse import tell_unfinished
from relprop.cli.options import (
    ClassesOption,
    DeviceOption,
    JsonOption,
    MeanOption,
    SizeOption,
    StdOption,
    WeightsOption,
    numbers,
)
from relprop.errors import InvalidInput
from relprop.view import PORT, listen


def view(
    store: Annotated[
        Path | None,
        typer.Argument(metavar="STORE", help="The folder that relprop run wrote.", show_default=False),
    ] = None,
    analysis: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The analysis. Default: the one of relprop analyse STORE.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|FILE|MODULE:CALLABLE",
            help="The model that was explained, to compare presets on a sample; as for relprop run.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            "-d",
            metavar="PATH",
            help="With --model: the data as it was given to relprop run. Not needed for texts, and for pictures whose files"
            " are where they were.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Where to listen. Any but this machine's own asks visitors for a token."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", metavar="N", help="0 for a free one.")] = PORT,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            envvar="RELPROP_VIEW_TOKEN",
            help="The token. Default: a random one.",
            show_default=False,
        ),
    ] = None,
    weights: WeightsOption = None,
    size: SizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    classes: ClassesOption = None,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Look at an analysed store in the browser: strategies, samples, selections; names are kept beside the store.

    \b
    Examples:
      relprop view horses
      relprop view horses --model resnet50 --data photos
      relprop view horses --host 0.0.0.0 --port 8080
    """
    with printing.reporting():
        if store is None:
            raise InvalidInput(
                "view: no store is named\n  do: relprop view STORE, the folder that relprop run wrote"
            )
        opened = stores.open(store)
        tell_unfinished(opened)
        with printing.working("opening the analysis"):
            found = _analysis(store, analysis)
        comparer = None
        if model is not None:
            from relprop.run import Recipe
            from relprop.view.compare import at_hand

            given = None if not data else data[0] if len(data) == 1 else data
            recipe = Recipe(
                model=model,
                data=given,
                weights=weights,
                size=size,
                mean=numbers("mean", mean),
                std=numbers("std", std),
                classes=classes,
                device=device,
            )
            with printing.working(f"loading {model}"):
                comparer = at_hand(opened, recipe)
        elif data:
            raise InvalidInput("data: is of use with --model only\n  do: give --model too, or leave it out")
        listening = listen(opened, found, host=host, port=port, token=token, comparer=comparer)
        if json:
            printing.print_json("view", {"store": str(store), "url": listening.url, "token": listening.token})
        else:
            typer.echo(listening.url)
            printing.say("Ctrl-C ends it")
        try:
            listening.run()
        except KeyboardInterrupt:
            printing.say("ended")


def _analysis(store: Path, given: Path | None) -> Analysis:
    places = [given] if given is not None else [store.with_name(f"{store.name}.analysis"), store / "analysis"]
    for place in places:
        if (place / "analysis.json").is_file():
            return load(place)
    if given is not None:
        return load(given)  # says what is wrong with it
    raise InvalidInput(f"view: {store} has not been analysed\n  do: relprop analyse {store}")
