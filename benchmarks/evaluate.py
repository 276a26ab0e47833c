"""What evaluation costs: against the bare forward passes that a protocol needs, and side by side with Quantus at equal results.

    python benchmarks/evaluate.py [--rounds 5] [--photographs FOLDER] [--json FILE]

A small CNN (the digits' network) on images of 28 × 28, one thread, this process's own CPU time; a figure is the median of the
ratios within rounds in which all take turns. Floor: the rows of the protocol, as
the data gives them, through the model and nothing else, in batches of 64. Quantus
(`pip install 'relprop[quantus]'`) takes part where it is installed. With a folder of photographs, the curve of one and `samek2017`
on the first four, stated and run, on EfficientNet-Lite0. The exit status is 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.evaluate import Data, compare, digits, experiment
from relprop.evaluate.cost import cost_of
from relprop.evaluate.protocols import PROTOCOLS
from relprop.evaluate.randomisation import mprt
from relprop.evaluate.scoring import scorer_of

Call = Callable[[], Any]
LEVELS = tuple(step / 10 for step in range(1, 10))


def seconds(call: Call) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def ratios(calls: dict[str, Call], over: str, rounds: int, times: int = 1) -> dict[str, float]:
    """Each one's seconds over those of one of them: in every round all take turns, `times` calls each; the median over rounds."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):  # the first round does not count
        spent = {
            name: seconds(lambda call=call: [call() for _ in range(times)]) for name, call in calls.items()
        }
        if number:
            for name in calls:
                found[name].append(spent[name] / spent[over])
    return {name: statistics.median(values) for name, values in found.items()}


def quantus() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import quantus
    except ImportError:
        print("Quantus is not installed: left out (pip install 'relprop[quantus]')", file=sys.stderr)
        return None
    return quantus


def gradient_x_input(model: Any, inputs: Any, targets: Any, **options: Any) -> Any:
    """The same explanation for both sides: of tensors a tensor, of arrays an array."""
    x = torch.as_tensor(inputs).detach().clone().requires_grad_()
    chosen = torch.as_tensor(targets).reshape(-1).long()
    (gradient,) = torch.autograd.grad(model(x)[torch.arange(len(x)), chosen].sum(), x)
    found = gradient * x.detach()
    return found if isinstance(inputs, Tensor) else found.detach().numpy()


def rows_of(model: Any, call: Callable[[Any], Any], batch: int = 64) -> list[Tensor]:
    """The rows that a call sends through the model, in batches of so many."""

    class Seen(torch.nn.Module):
        def forward(self, values: Tensor) -> Any:
            held.append(values.clone())
            return model(values)

    held: list[Tensor] = []
    call(Seen().eval())
    return [part.clone() for part in torch.cat(held).split(batch)]


def forwards(model: Any, batches: list[Tensor]) -> Call:
    """Bare forward passes of these batches."""

    def call() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(batch)

    return call


def curves(model: Any, images: Tensor, relevance: Tensor, rounds: int, q: Any) -> list[dict[str, Any]]:
    """112 steps of seven pixels, replaced by black: steps that change a value, and f(x)."""
    found = []
    for count in (1, 8, 64):
        x, r = images[:count], relevance[:count]

        def ours(own: Any = model, x: Tensor = x, r: Tensor = r) -> Any:
            return experiment(own, x, size=7, replacement="black", bounds=(-1, 1)).curve(r)

        calls: dict[str, Call] = {"ours": ours, "floor": forwards(model, rows_of(model, ours))}
        if q is not None:
            metric = q.PixelFlipping(features_in_step=7, perturb_baseline="black", disable_warnings=True, display_progressbar=False, normalise=False)  # fmt: skip
            labels = model(x).argmax(1).numpy()
            call = {
                "model": model,
                "x_batch": x.numpy(),
                "y_batch": labels,
                "a_batch": r.numpy(),
                "softmax": False,
            }
            calls["quantus"] = lambda metric=metric, call=call: metric(**call)
            theirs, own = np.array(metric(**call)), ours().scores[:, 1:].numpy()
            assert np.abs(theirs - own).max() < 1e-4, "the curves are not the same"
        over = ratios(calls, "floor", rounds, 64 // count)
        name = f"curve of {count} image{'s' if count > 1 else ''}"
        found.append(row(f"{name}, over the floor", over["ours"], 1.15, "below"))
        if q is not None:
            found.append(row(f"{name}, Quantus over ours", over["quantus"] / over["ours"], 1.0, "above"))
    return found


def road(model: Any, images: Tensor, relevance: Tensor, rounds: int, q: Any) -> list[dict[str, Any]]:
    """Nine levels of noisy linear imputation without noise; the accuracies are the same."""

    def ours() -> Any:
        return experiment(
            model, images, steps=LEVELS, replacement="noisy_linear", noise=0.0, draws=1, bounds=(-1, 1), score="accuracy"
        ).curve(relevance)  # fmt: skip

    metric = q.ROAD(percentages=[10 * k for k in range(1, 10)], noise=0.0, disable_warnings=True, display_progressbar=False, normalise=False)  # fmt: skip
    labels = model(images).argmax(1).numpy()
    call = {
        "model": model,
        "x_batch": images.numpy(),
        "y_batch": labels,
        "a_batch": relevance.numpy(),
        "softmax": False,
    }
    theirs = np.array(list(metric(**call).values()), dtype=float)
    assert np.abs(ours().scores[:, 1:].mean(0).numpy() - theirs).max() < 0.04, (
        "the accuracies are not the same"
    )
    over = ratios({"ours": ours, "quantus": lambda: metric(**call)}, "ours", rounds)
    return [row("ROAD of 64 images, Quantus over ours", over["quantus"], 5.0, "above")]


def randomisation(model: Any, images: Tensor, rounds: int, q: Any) -> list[dict[str, Any]]:
    """Four layers, top down, the rank correlation; both explain by the same function and are given the original explanation."""
    scorer = scorer_of(model, images)
    labels = model(images).argmax(1).numpy()

    relevance = gradient_x_input(model, images, scorer.target)

    def ours() -> Any:
        return mprt(gradient_x_input, model, scorer, relevance, similarity="spearman")

    metric = q.MPRT(similarity_func=q.similarity_func.correlation_spearman, return_average_correlation=False, disable_warnings=True, display_progressbar=False, normalise=False)  # fmt: skip
    call = {
        "model": model,
        "x_batch": images.numpy(),
        "y_batch": labels,
        "a_batch": relevance.detach().numpy(),
        "explain_func": gradient_x_input,
    }
    over = ratios({"ours": ours, "quantus": lambda: metric(**call)}, "ours", rounds)
    return [row("parameter randomisation, Quantus over ours", over["quantus"], 3.0, "above")]


def shared(model: Any, images: Tensor, rounds: int) -> list[dict[str, Any]]:
    """Sensitivity-n of five methods, whose explanations are at hand, over that of one."""
    held = {f"m{i}": torch.randn(16, 1, 28, 28) for i in range(5)}
    methods = {name: (lambda model, inputs, target, r=r: r) for name, r in held.items()}
    options = {"perturbation": {"regions": 4, "replacement": 0.0}}

    def of(count: int) -> Call:
        chosen = dict(list(methods.items())[:count])
        return lambda: compare(
            model, Data(images[:16], bounds=(-1, 1)), chosen, {"sensitivity_n": {"subsets": 50}}, **options
        )

    over = ratios({"one": of(1), "five": of(5)}, "one", rounds)
    return [row("sensitivity-n of five methods over one", over["five"], 1.3, "below")]


def photographed(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """EfficientNet-Lite0: the curve of one photograph over the floor, and the time that samek2017 states for four over what it takes."""
    from relprop.data import open_photograph, photographs_in
    from relprop.models import load

    loaded, protocol = load("demo"), PROTOCOLS["samek2017"]
    how = loaded.preprocessing
    x = torch.stack(
        [how.tensor(how.crop(open_photograph(file))) for file in photographs_in([folder])[:4]]
    ).float()
    relevance = torch.randn(1, 3, 224, 224)

    def one(model: Any = loaded.model) -> Any:
        return experiment(model, x[:1], regions=9, steps=24, size=1, draws=1).curve(relevance)

    floor = forwards(loaded.model, rows_of(loaded.model, one, 4))
    over = ratios({"ours": one, "floor": floor}, "floor", rounds)
    found = [row("curve of one photograph, over the floor", over["ours"], 1.15, "below")]
    settings = {**protocol.perturbation, "draws": 1, "steps": 25}
    arguments = (loaded.model, Data(x), protocol.methods, protocol.metrics)
    cost = cost_of(*arguments, settings, 4, time.process_time)
    taken = seconds(lambda: compare(*arguments, perturbation=settings, batch_size=4))
    wrong = max(cost.seconds / taken, taken / cost.seconds)
    name = "samek2017 on four photographs: stated and taken, the larger over the smaller"
    return [*found, row(name, wrong, 1.5, "below")]


def row(name: str, figure: float, target: float, side: str) -> dict[str, Any]:
    met = figure <= target if side == "below" else figure >= target
    return {"what": name, "figure": round(figure, 3), "target": target, "side": side, "met": met}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, images = digits.network().eval(), digits.digits()[2][:64]
    relevance = torch.randn(64, 1, 28, 28)
    q = quantus()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = curves(model, images, relevance, given.rounds, q)
        found += shared(model, images, given.rounds)
        if q is not None:
            found += road(model, images, relevance, given.rounds, q)
            found += randomisation(model, images, given.rounds, q)
        if given.photographs is not None:
            found += photographed(given.photographs, min(3, given.rounds))
    for one in found:
        side = "≤" if one["side"] == "below" else "≥"
        verdict = "met" if one["met"] else "MISSED"
        print(f"{one['what']:<78} {one['figure']:>7.2f}  {side} {one['target']:<5} {verdict}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    return 0 if all(one["met"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
