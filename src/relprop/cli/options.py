"""Options that several commands share, and the model that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import relprop
from relprop.cli import printing
from relprop.errors import InvalidInput
from relprop.models import Loaded, load

OWN = ", ".join(name for name in relprop.presets() if "/" not in name)
OTHERS = ", ".join(dict.fromkeys(name.partition("/")[0] + "/…" for name in relprop.presets() if "/" in name))

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|FILE|MODULE:CALLABLE",
        help="demo (EfficientNet-Lite0, pretrained, nothing is downloaded); a name of torchvision's or timm's"
        " (resnet50, timm:resnet50); a program saved by torch.export.save (.pt2), ONNX (.onnx), Keras (.keras) or TorchScript (.pt); load only files"
        " you trust; where texts or recordings are explained, a folder saved by transformers;"
        " or package.module:callable, called without arguments, from the current folder.",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|random",
        help="Weights of your own (.safetensors, .pt, .pth; read as tensors, never as code), or random"
        " (seeded) for a dry run. Default: the pretrained ones; of a callable, those it returns.",
        show_default=False,
    ),
]
RulesOption = Annotated[
    str,
    typer.Option(
        "--rules",
        "-r",
        metavar="PRESET",
        help=f"{OWN}; or as another toolbox has them: {OTHERS} (an unknown name lists all).",
    ),
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        help="Height and width of the input. Default: the model's own; 224 where it states none.",
        show_default=False,
    ),
]
MeanOption = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Subtracted from the channels (in 0…1). Default: the model's own; ImageNet's 0.485,0.456,0.406"
        " where it states none. One value: the model takes grey pictures.",
        show_default=False,
    ),
]
StdOption = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Divides the channels. Default: the model's own; ImageNet's 0.229,0.224,0.225 where it states"
        " none.",
        show_default=False,
    ),
]
ClassesOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Names of the model's outputs, one a line.", show_default=False),
]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps.")]
ExampleArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="INPUT",
        help="A photograph, a recording, or a text where --model is a folder saved by transformers. Default: a bundled"
        " photograph; for such a folder a sentence, or a second of noise.",
        show_default=False,
    ),
]
RateOption = Annotated[
    int | None,
    typer.Option(
        metavar="HZ",
        help="Samples a second that the model takes. Default: its own, else the recording's.",
        show_default=False,
    ),
]
ChannelsOption = Annotated[
    int,
    typer.Option(
        metavar="0|1",
        min=0,
        max=1,
        help="A recording goes in as (1, samples), or with 1 as (1, 1, samples).",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable results on stdout.")]


def load_named(
    model: str,
    weights: str | None,
    size: int | None,
    mean: str | None,
    std: str | None,
    classes: Path | None,
    device: str,
) -> Loaded:
    """The network that the options name, with its preprocessing."""
    options: dict[str, Any] = {"size": size, "mean": numbers("mean", mean), "std": numbers("std", std)}
    with printing.working(f"loading {model}"):
        return load(model, weights, **options, classes=classes, device=device)


def numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    """The numbers of an option, with commas between them."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInput(
            f"--{name}: {text!r} is no list of numbers\n  do: write it as 0.485,0.456,0.406"
        ) from error
