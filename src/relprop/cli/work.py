"""What `relprop evaluate` compares on: your photographs or arrays, or data that come with a network trained at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from relprop.cli import printing
from relprop.cli.options import load_named
from relprop.data import DEMO, Preprocessing, photographs_in
from relprop.errors import InvalidInput
from relprop.evaluate import digits, planted, scenes
from relprop.evaluate.cases import Data
from relprop.evaluate.protocols import Protocol


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


def _planted(limit: int | None) -> Work:
    network, tests, truth = planted.trained()
    own = planted.stamped(tests[truth == planted.CLASS])[:limit]
    name = f"a network that has learned to look at a patch, {_correct(network, tests, truth)} % correct without it"
    held = Data(own, torch.full((len(own),), planted.CLASS), planted.place(len(own)), (0.0, 1.0))
    return Work(network, name, held, "digits 3 with the patch; the mask is the patch, 2 % of the area")


OWN = {"digits": _digits, "scenes": _scenes, "planted": _planted}
"""Data that come with a network, which is trained when they are asked for."""


def _correct(network: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> str:
    with torch.no_grad():
        return f"{100 * float((network(inputs).argmax(1) == labels).float().mean()):.1f}"


def work_of(given: Sequence[str] | None, chosen: Protocol, named: tuple[Any, ...], limit: int | None) -> Work:
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
        tensors = torch.stack([how.tensor(how.cropped(file)) for file in files])
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
        raise InvalidInput(f"{file}: no such file\n  do: look at the path")
    try:
        with np.load(file, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{file}: not a .npz file of arrays ({str(error).splitlines()[0]})\n  do: write one by numpy.savez(file, inputs=…)"
        ) from error
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
