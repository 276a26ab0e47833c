"""How long an explanation takes, as a multiple of gradient × input in the same process.

    python benchmarks/speed.py [--models vgg11 resnet50] [--rounds 7] [--batch 2] [--threads 1] [--device cpu]
                               [--json FILE]

Every round times gradient × input and then each competitor once, so that all share the machine's moods; a
ratio is taken within its round and the median over rounds is printed. relprop's times include forward pass,
walk, audit and its check. zennit (`pip install zennit==0.5.1`) and captum (`pip install captum`) take
part where they are installed. One thread on a CPU is timed by its own clock, which stands still while other
programs run; everything else by the clock on the wall. The exit status is 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import relprop
from relprop.engine.presets import epsilon_gamma_box

PRESETS = (
    "epsilon",
    "epsilon_plus",
    "epsilon_plus_flat",
    "epsilon_gamma_box",
    "epsilon_alpha2_beta1",
    "auto",
)
TARGETS = {"epsilon": 1.3, "epsilon_plus": 1.7, "epsilon_alpha2_beta1": 2.3}
"""The ratio that a preset is to stay below."""
CAPTURE_TARGET = 3.0
"""Seconds that capture and plan of ResNet-50 may take, once per model."""

Call = Callable[[], Any]


def gradient_x_input(model: nn.Module, x: Tensor) -> Tensor:
    """The yardstick: one forward and one backward pass, the weights' requires_grad as it is."""
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).max(1).values.sum(), leaf)
    return gradient * x


def relprop_calls(model: nn.Module, x: Tensor) -> dict[str, Call]:
    low, high = float(x.min()), float(x.max())
    calls: dict[str, Call] = {}
    for name in PRESETS:
        rules = epsilon_gamma_box(low, high) if name == "epsilon_gamma_box" else name
        explainer = relprop.Explainer(model, rules)
        calls[f"relprop {name}"] = lambda explainer=explainer: explainer(x)
    unaudited = relprop.Explainer(model, "epsilon", audit=False)
    calls["relprop epsilon, no audit"] = lambda: unaudited(x)
    return calls


def zennit_calls(model: nn.Module, x: Tensor) -> dict[str, Call]:
    try:
        from zennit.attribution import Gradient
        from zennit.composites import COMPOSITES, LayerMapComposite, layer_map_base
        from zennit.rules import Epsilon
        from zennit.torchvision import ResNetCanonizer, VGGCanonizer
        from zennit.types import Convolution
    except ImportError:
        print("zennit is not installed: left out (pip install zennit==0.5.1)", file=sys.stderr)
        return {}
    canonizer = ResNetCanonizer if isinstance(model, torchvision.models.ResNet) else VGGCanonizer

    def composite(name: str) -> Any:
        if name == "epsilon":
            rules = [*layer_map_base(), (Convolution, Epsilon()), (nn.Linear, Epsilon())]
            return LayerMapComposite(rules, canonizers=[canonizer()])
        bounds = {"low": x.amin() + 0 * x[:1], "high": x.amax() + 0 * x[:1]} if name.endswith("box") else {}
        return COMPOSITES[name](canonizers=[canonizer()], **bounds)

    def call(name: str) -> Any:
        with Gradient(model, composite(name)) as attributor:
            return attributor(x.clone(), lambda y: y * (y == y.amax(1, keepdim=True)))

    return {f"zennit {name}": lambda name=name: call(name) for name in PRESETS if name != "auto"}


def captum_calls(model: nn.Module, x: Tensor) -> dict[str, Call]:
    try:
        from captum.attr import LRP
    except ImportError:
        print("captum is not installed: left out (pip install captum)", file=sys.stderr)
        return {}
    with torch.no_grad():
        target = model(x).argmax(1)
    lrp = LRP(model)
    try:
        lrp.attribute(x.clone(), target=target)
    except Exception as error:  # captum refuses modules that are used twice, such as a ResNet's ReLU
        first = str(error).splitlines()[0]
        print(f"captum cannot explain this model: {type(error).__name__}: {first}", file=sys.stderr)
        return {}
    return {"captum epsilon": lambda: lrp.attribute(x.clone(), target=target)}


def seconds(call: Call, device: torch.device) -> float:
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def measure(name: str, rounds: int, batch: int, device: torch.device) -> dict[str, Any]:
    """All figures of one model: times in seconds, ratios to gradient × input."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval().to(device)
    x = torch.randn(batch, 3, 224, 224, device=device)
    relprop.clear_cache()
    capture, cached = (
        seconds(lambda: relprop.Explainer(model, "epsilon", example=x), device) for _ in range(2)
    )
    plan = seconds(lambda: relprop.Explainer(model, "epsilon_plus", example=x), device)

    calls: dict[str, Call] = {"gradient × input": lambda: gradient_x_input(model, x)}
    calls |= relprop_calls(model, x)
    calls |= zennit_calls(copy.deepcopy(model), x)  # both change the model they explain
    calls |= captum_calls(copy.deepcopy(model), x)
    times: dict[str, list[float]] = {key: [] for key in calls}
    for key, call in calls.items():  # the first call of each is not counted
        try:
            call()
        except Exception as error:
            print(f"{key}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            del times[key]
    for _ in range(rounds):
        for key in times:
            times[key].append(seconds(calls[key], device))
    base = times["gradient × input"]
    ratios = {
        key: [a / b for a, b in zip(values, base, strict=True)]
        for key, values in times.items()
        if values is not base
    }
    return {
        "model": name,
        "batch": batch,
        "rounds": rounds,
        "gradient_x_input_seconds": statistics.median(base),
        "ratios": {
            key: {"median": statistics.median(values), "least": min(values), "most": max(values)}
            for key, values in ratios.items()
        },
        "capture_and_plan_seconds": capture,
        "explainer_again_seconds": cached,
        "another_plan_seconds": plan,
    }


def report(result: dict[str, Any]) -> bool:
    """Print one model's figures; whether all targets are met."""
    print(f"\n{result['model']}, batch {result['batch']}, {result['rounds']} rounds")
    milliseconds = 1000 * result["gradient_x_input_seconds"]
    print(f"  {'gradient × input':34s} {1:5.2f}×   ({milliseconds:.0f} ms)")
    met = True
    for key, ratio in result["ratios"].items():
        target = TARGETS.get(key.removeprefix("relprop ")) if key.startswith("relprop ") else None
        verdict = ""
        if target is not None:
            within = ratio["median"] <= target
            met &= within
            verdict = f"target {target}×: {'met' if within else 'missed'}"
        line = (
            f"  {key:34s} {ratio['median']:5.2f}×   [{ratio['least']:.2f}, {ratio['most']:.2f}]   {verdict}"
        )
        print(line.rstrip())
    capture = result["capture_and_plan_seconds"]
    verdict = ""
    if result["model"] == "resnet50":
        met &= capture <= CAPTURE_TARGET
        verdict = f"   target {CAPTURE_TARGET} s: {'met' if capture <= CAPTURE_TARGET else 'missed'}"
    print(f"  capture and plan, once per model   {capture:.2f} s{verdict}")
    again, other = 1000 * result["explainer_again_seconds"], 1000 * result["another_plan_seconds"]
    print(f"  an Explainer of a known model      {again:.1f} ms; with another preset {other:.1f} ms")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["vgg11", "resnet50"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    device = torch.device(options.device)
    results = []
    met = True
    for name in options.models:
        results.append(measure(name, options.rounds, options.batch, device))
        met &= report(results[-1])
        sys.stdout.flush()
    where = platform.machine() if device.type == "cpu" else torch.cuda.get_device_name(device)
    print(f"\n{where}, {options.threads} thread(s), torch {torch.__version__}, relprop {relprop.__version__}")
    if options.json:
        settings = {"machine": where, "threads": options.threads, "torch": torch.__version__}
        options.json.write_text(json.dumps({"settings": settings, "models": results}, indent=1) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
