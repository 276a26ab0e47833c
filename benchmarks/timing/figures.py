"""The figures that are promised: what is measured, its target, and whether it is met."""

from __future__ import annotations

import gc
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch
from torch.export import Dim, ShapesCollection

import relprop
from timing.clock import Call, Ratio, ratios, seconds
from timing.kernels import profiles
from timing.memory import peak
from timing.page import AUDIT, CAPTURE, CHECK, OPEN, PASSES, TEN, UNAUDITED, WITHIN
from timing.rivals import PRESETS
from timing.rivals import calls as rival_calls
from timing.subjects import ALL, CONVOLUTIONAL, IMAGES, Subject, subject


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure: where, with how many threads and rounds, on inputs of what size."""

    device: str = "cpu"
    threads: int = 2
    rounds: int = 7
    batch: int = 2
    size: int = 224
    length: int = 256
    models: tuple[str, ...] = ALL


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `least` says that the target is a least, not a most; None: nothing was promised."""

    what: str
    model: str
    figure: float
    unit: str
    target: float | None = None
    least: bool = False
    detail: dict[str, Any] | None = None

    def met(self, slack: float = 1.0) -> bool:
        """Whether the target is kept, with `slack` times as much allowed."""
        if self.target is None:
            return True
        return self.figure * slack >= self.target if self.least else self.figure <= self.target * slack

    @property
    def verdict(self) -> str:
        return "" if self.target is None else "met" if self.met() else "missed"


def rules_of(name: str) -> dict[str, float]:
    """The presets that are timed on a model, with the multiple of gradient × input that each is to stay below."""
    if name == "lstm":
        return {"lrp_all": 1.5}
    if name == "decoder":
        return {"attn_lrp": 1.3}
    found = {"epsilon": 1.1}
    if name in CONVOLUTIONAL:
        found |= {"epsilon_plus_flat": 1.5, "epsilon_gamma_box": 1.5, "epsilon_alpha2_beta1": 2.0}
    return found | ({"attn_lrp": 1.3} if name == "vit_b_16" else {})


def speed(of: Subject, given: Settings) -> Iterator[Figure]:
    """An explanation as a multiple of gradient × input, and the audit's share of it."""
    targets = rules_of(of.name)
    calls = {rules: of.call(rules) for rules in targets}
    first = next(iter(targets))
    calls[UNAUDITED] = of.call(first, audit=False)
    found = ratios(of.gradient, calls, given.rounds, given.device)
    for rules, target in targets.items():
        yield _figure(rules, of.name, found[rules], target)
    whole, rest = found[first], found[UNAUDITED]
    yield Figure(AUDIT, of.name, 100 * (1 - rest.median / whole.median), "%", 3.0)


def ten_targets(of: Subject, given: Settings) -> Iterator[Figure]:
    """Ten targets of one input, from one forward pass, as a multiple of one gradient × input call."""
    gradient, ten = _of_one_input(of, given)
    found = ratios(gradient, {"ten": ten}, min(3, given.rounds), given.device)
    yield _figure(TEN, of.name, found["ten"], 6.0)


def _of_one_input(of: Subject, given: Settings) -> tuple[Call, Call]:
    """gradient × input, and ten targets, of one input."""
    one = subject(of.name, given.device, 1, given.size)
    explainer = one.explainer("epsilon")
    return one.gradient, lambda: explainer.explain_targets(one.inputs, list(range(10)))


def memory(of: Subject, given: Settings) -> Iterator[Figure]:
    """The peak of memory during a call, as a multiple of gradient × input's."""
    keys = ("device", "threads", "batch", "size", "length")
    settings = {key: getattr(given, key) for key in keys}
    base = peak(of.name, "gradient", **settings)
    for rules in rules_of(of.name):
        own = peak(of.name, rules, **settings)
        target = 1.2 if rules == "epsilon" else 1.5
        detail = {"gradient": base, "own": own}
        yield Figure(f"peak memory, {rules}", of.name, own["peak"] / base["peak"], "×", target, detail=detail)


def capture(of: Subject, given: Settings) -> Iterator[Figure]:
    """Capture and plan as a multiple of a bare `torch.export`, and where it goes: torch.export with the sizes open that
    relprop leaves open, called without it, and relprop's passes over the graph; the check of what was captured, which comes
    before its first use; and all of it from the cache. What is imported and set up once is left out on both sides: a first
    round does not count."""
    named = isinstance(of.inputs, dict)
    args, kwargs = ((), of.inputs | {"use_cache": False}) if named else ((of.inputs,), {})

    def export() -> None:
        torch.export.export(of.model, args, kwargs, strict=False)

    def open_export() -> None:
        _export_with_open_sizes(of, args, kwargs)

    def ready() -> relprop.Explainer:
        return of.explainer("epsilon", example=of.inputs)

    times: dict[str, list[float]] = {
        name: [] for name in ("export", "open", "capture", "within", "check", "gradient")
    }
    for number in range(4):
        relprop.clear_cache()
        made: list[relprop.Explainer] = []
        calls: dict[str, Call] = {
            "export": export,
            "open": open_export,
            "capture": lambda made=made: made.append(ready()),  # type: ignore[misc]
            "check": lambda made=made: made[0].plan,  # type: ignore[misc]
            "gradient": of.gradient,
        }
        for name, call in calls.items():
            gc.collect()  # not in the middle of an export
            within: list[float] = []
            with mock.patch("torch.export.export", _timed(torch.export.export, within, given.device)):
                took = seconds(call, given.device)
            if number:  # but for what is imported on first use
                times[name].append(took)
                if name == "capture":
                    times["within"].append(sum(within))
    again = min(seconds(lambda: ready().plan, given.device) for _ in range(3))

    def over(own: str, base: str) -> float:
        return statistics.median(a / b for a, b in zip(times[own], times[base], strict=True))

    detail = {f"{name}_seconds": taken for name, taken in times.items()}
    yield Figure(
        CAPTURE,
        of.name,
        over("capture", "export"),
        "×",
        2.0,
        detail=detail,
    )
    yield Figure(OPEN, of.name, over("open", "export"), "×")
    yield Figure(WITHIN, of.name, over("within", "export"), "×")
    times["passes"] = [whole - part for whole, part in zip(times["capture"], times["within"], strict=True)]
    yield Figure(PASSES, of.name, over("passes", "export"), "×")
    yield Figure(CHECK, of.name, over("check", "gradient"), "×")
    yield Figure("capture and plan, from the cache", of.name, 1000 * again, "ms", 50.0)


def _export_with_open_sizes(of: Subject, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """torch.export with an open number of samples, and of tokens: two samples, as a size of one is no open one."""
    (x,) = (*args, *(value for value in kwargs.values() if isinstance(value, torch.Tensor)))
    pair = torch.cat([x, x])[:2]
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    shapes[pair] = dict.fromkeys(range(2 if x.dim() == 2 else 1), Dim.AUTO)
    own = {name: pair if value is x else value for name, value in kwargs.items()}
    torch.export.export(of.model, (pair,) if args else (), own, dynamic_shapes=shapes, strict=False)


def _timed(call: Callable[..., Any], times: list[float], device: str) -> Callable[..., Any]:
    """The call, which notes how long each run of it takes."""

    def run(*args: Any, **kwargs: Any) -> Any:
        found: list[Any] = []
        times.append(seconds(lambda: found.append(call(*args, **kwargs)), device))
        return found[0]

    return run


def rivals(of: Subject, given: Settings) -> Iterator[Figure]:
    """How many times longer others take for the same explanation, where they are installed."""
    calls = {f"relprop {rules}": of.call(rules) for rules in PRESETS} | rival_calls(of)
    found = ratios(of.gradient, calls, min(3, given.rounds), given.device)
    for name, ratio in found.items():
        tool, _, rules = name.partition(" ")
        if rules and tool != "relprop":
            own = found[f"relprop {rules}"]
            least = 1.0 if tool == "captum" else 1.8
            detail = {"their ratio": ratio.median, "own ratio": own.median}
            yield Figure(
                f"{tool}'s time over relprop's, {rules}",
                of.name,
                ratio.median / own.median,
                "×",
                least,
                True,
                detail,
            )


def importing() -> Figure:
    """What `import relprop` takes beyond `import torch`, in seconds of a processor: the least of five processes."""
    code = (
        "import time, torch; start = time.process_time(); import relprop; print(time.process_time() - start)"
    )
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    return Figure("import, beyond torch's", "", min(times), "s", 0.2)


def profile(of: Subject, given: Settings) -> Iterator[Figure]:
    """The kernels of an explanation, in all and by kind, as a multiple of gradient × input's; and what is beside them."""
    calls = {rules: of.call(rules) for rules in rules_of(of.name)}
    first = next(iter(calls))
    calls[f"{first}, {UNAUDITED}"] = of.call(first, audit=False)
    yield from _profile(of, {"gradient × input": of.gradient} | calls, given)
    if of.name in PARTS["targets"][1]:
        gradient, ten = _of_one_input(of, given)
        yield from _profile(of, {"gradient × input of one input": gradient, TEN: ten}, given)


def _profile(of: Subject, calls: dict[str, Call], given: Settings) -> Iterator[Figure]:
    """The kernels of calls beside those of the first."""
    found = profiles(calls, min(3, given.rounds), given.device)
    base = next(iter(found.values()))
    for name, own in found.items():
        detail = own.beside(base)
        yield Figure(f"kernels, {name}", of.name, own.seconds / base.seconds, "×", detail=detail)
        yield Figure(f"arithmetic, {name}", of.name, detail["arithmetic"], "×")


def compiled(of: Subject, given: Settings) -> Iterator[Figure]:
    """A compiled walk beside the walk operation by operation; how long the compiler takes from an empty cache, in seconds of
    a processor; and after how many calls it has paid for itself, where it saves a hundredth of a call at least."""
    from torch._inductor import config
    from torch._inductor.utils import fresh_cache

    for rules in rules_of(of.name):
        calls = {"plain": of.call(rules), "own": of.call(rules, compile=True)}
        calls["plain"]()
        with fresh_cache(), config.patch(compile_threads=1):
            making = _processor(calls["own"]) - _processor(calls["plain"])
        found = ratios(of.gradient, calls, given.rounds, given.device)
        saved = found["plain"].median - found["own"].median
        yield Figure(f"{rules}, operation by operation", of.name, found["plain"].median, "×")
        yield Figure(f"{rules}, compiled", of.name, found["own"].median, "×")
        yield Figure(f"{rules}, to compile", of.name, making, "s")
        if saved > 0.01 * found["plain"].median:
            yield Figure(
                f"{rules}, to break even", of.name, making / (saved * found["yardstick"].seconds), "calls"
            )


def _processor(call: Callable[[], Any]) -> float:
    """Seconds of a processor that a call takes, with those of the compilers that it starts and waits for."""

    def used() -> float:
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    start = used()
    call()
    return used() - start


Measure = Callable[[Subject, Settings], Iterator[Figure]]
PARTS: dict[str, tuple[Measure, tuple[str, ...]]] = {
    "speed": (speed, ALL),
    "targets": (ten_targets, ("vgg11", "resnet50", "efficientnet_lite0")),
    "memory": (memory, ALL),
    "capture": (capture, (*IMAGES, "decoder")),
    "rivals": (rivals, ("vgg11", "resnet50")),
    "profile": (profile, ALL),
    "compile": (compiled, IMAGES),
}
"""The parts of the table: a function and the models that it is asked of."""


def every(parts: list[str], given: Settings) -> Iterator[Figure]:
    """The figures asked for, model by model, as they come."""
    if "import" in parts:
        yield importing()
    for name in given.models:
        of = subject(name, given.device, given.batch, given.size, given.length)
        for part in parts:
            measure, models = PARTS.get(part, (None, ()))
            if measure is not None and name in models:
                yield from measure(of, given)
        relprop.clear_cache()


def line(figure: Figure) -> str:
    """A figure as a line of the table."""
    target = (
        "" if figure.target is None else f"{'≥' if figure.least else '≤'} {figure.target:g} {figure.unit}"
    )
    number = f"{figure.figure:8.2f} {figure.unit}"
    return f"{figure.model:19s} {figure.what:46s} {number:12s} {target:10s} {figure.verdict}".rstrip()


def as_data(figures: list[Figure], given: Settings) -> dict[str, Any]:
    """All figures with what they were measured on, for a JSON file."""
    return {
        "settings": {key: value for key, value in asdict(given).items() if key != "models"},
        "versions": {"torch": torch.__version__, "relprop": relprop.__version__},
        "measured": time.strftime("%Y-%m-%d"),
        "figures": [asdict(figure) | {"verdict": figure.verdict} for figure in figures],
    }


def _figure(what: str, model: str, ratio: Ratio, target: float) -> Figure:
    return Figure(what, model, ratio.median, "×", target, detail=asdict(ratio))
