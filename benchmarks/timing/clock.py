"""Times as ratios: interleaved rounds in one process, so that all competitors share the machine's moods."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], Any]


def seconds(call: Call, device: str = "cpu") -> float:
    """How long a call takes. One thread on a CPU is timed by its own clock, which stands still while other programs run;
    everything else by the clock on the wall."""
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    wait(device)
    start = clock()
    call()
    wait(device)
    return clock() - start


def wait(device: str) -> None:
    """Wait for a device that works on its own."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of one competitor to the yardstick, over all rounds, and the median of its own time in seconds."""

    median: float
    least: float
    most: float
    seconds: float


def ratios(yardstick: Call, calls: Mapping[str, Call], rounds: int, device: str = "cpu") -> dict[str, Ratio]:
    """Every round times the yardstick and then each call once; a ratio is taken within its round. The yardstick itself is
    in the result under the name "yardstick"."""
    every = {"yardstick": yardstick, **calls}
    for call in every.values():  # what is done once: captures, parts of weights, threads
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(rounds):
        for name, call in every.items():
            times[name].append(seconds(call, device))
    base = times["yardstick"]
    result = {}
    for name, values in times.items():
        parts = [a / b for a, b in zip(values, base, strict=True)]
        result[name] = Ratio(statistics.median(parts), min(parts), max(parts), statistics.median(values))
    return result
