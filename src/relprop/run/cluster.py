"""Blocks of samples on a Ray cluster: actors take them one by one and write them themselves.

Needs Ray: `pip install 'relprop[ray]'`. Every machine has to see the model, the data and the store under the same paths.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from relprop import store as stores
from relprop.errors import InvalidInput, MissingExtra, RelpropError
from relprop.run.local import Tally, work
from relprop.run.recipe import Recipe, Task, prepared
from relprop.run.rows import Form
from relprop.store import Writer

TRIES = 3
"""How often a block may take its worker down before the run gives up."""

PATIENCE = 600.0
"""Seconds to wait for a worker while there is none."""


class Worker:
    """An actor: it makes the task of its recipe and does blocks of the store."""

    def __init__(self, recipe: Recipe, form: Form, threads: int, path: str) -> None:
        if Path(recipe.folder).is_dir():
            os.chdir(recipe.folder)
        import dataclasses

        self.task = dataclasses.replace(prepared(recipe), threads=threads)
        self.form, self.writer = form, stores.reopen(path, tidy=False)

    def ready(self) -> int:
        """Its process, once it is there."""
        return os.getpid()

    def block(self, number: int) -> Tally:
        """Explain and write one block."""
        added: list[Tally] = []
        work(self.task, self.form, self.writer, [number], added.append)
        return Tally(sum(one.done for one in added), sum(one.failed for one in added))


def scattered(
    task: Task,
    form: Form,
    writer: Writer,
    blocks: Sequence[int],
    address: str,
    workers: int | None,
    progress: Callable[[Tally], None],
) -> None:
    """Have blocks done by workers of a cluster; what a lost worker was at is done again by another.

    Args:
        address: "local" for a cluster of this machine's own, or that of a cluster that runs.
        workers: how many; by default as many as the cluster has processors (for `threads` each) or GPUs for.

    Raises:
        MissingExtra: Ray is not installed.
        RelpropError: no cluster, no worker, a block that takes its workers down, or what a worker itself raises.
    """
    ray = _ray()
    started = _joined(ray, address)
    try:
        gpu = task.recipe.device.startswith("cuda")
        needs = {"num_gpus": 1} if gpu else {"num_cpus": task.threads}
        count = workers or _room(ray, gpu, task.threads)
        recipe = ray.put(task.recipe)
        actor = ray.remote(Worker).options(max_restarts=0, **needs)

        def make() -> Any:
            return actor.remote(recipe, form, task.threads, str(writer.path.absolute()))

        _done(ray, make, min(count, len(blocks)), blocks, progress)
    finally:
        if started:
            ray.shutdown()


def check(address: str) -> None:
    """Refuse a cluster that cannot be joined before anything else is done.

    Raises `MissingExtra` without Ray, and `InvalidInput` where nobody answers at HOST:PORT.
    """
    _ray()
    host, _, port = address.rpartition(":")
    if "//" in address or not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise InvalidInput(
            f"ray: no cluster at {address} ({_first(error)})\n  do: start one with `ray start --head`, or give local"
        ) from error


def _done(
    ray: Any, make: Callable[[], Any], count: int, blocks: Sequence[int], progress: Callable[[Tally], None]
) -> None:
    left, tries = deque(blocks), Counter[int]()
    starting: dict[Any, Any] = {}  # from what is awaited to its worker
    busy: dict[Any, tuple[Any, int]] = {}  # … to the worker and its block
    finished, lost = 0, 0
    for _ in range(count):
        one = make()
        starting[one.ready.remote()] = one
    while finished < len(blocks):
        awaited = [*starting, *busy]
        ready, _ = ray.wait(awaited, num_returns=1, timeout=PATIENCE if not busy else None)
        if not ready:
            raise RelpropError(
                f"ray: no worker started within {PATIENCE:.0f} s\n  do: look at the cluster with `ray status`; free processors or GPUs"
            )
        done = ready[0]
        one, block = (starting.pop(done), None) if done in starting else busy.pop(done)
        try:
            result = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from error
        except ray.exceptions.RayError as error:  # the worker, its process or its machine is gone
            if not isinstance(error, ray.exceptions.RayActorError) and block is None:
                raise RelpropError(
                    f"ray: a worker cannot be started ({_first(error)})\n  do: look at `ray status`"
                ) from error
            lost += 1
            _again(left, tries, block, lost, count, error)
            replacement = make()
            starting[replacement.ready.remote()] = replacement
            continue
        if block is not None:
            finished += 1
            progress(result)
        if left:
            block = left.popleft()
            busy[one.block.remote(block)] = (one, block)
    for one in [*starting.values(), *(pair[0] for pair in busy.values())]:
        ray.kill(one)


def _again(
    left: deque[int], tries: Counter[int], block: int | None, lost: int, count: int, error: Any
) -> None:
    """Put a block back in front that lost its worker. Raises `RelpropError` where that happens too often."""
    if block is not None:
        tries[block] += 1
        left.appendleft(block)
    if (block is not None and tries[block] >= TRIES) or lost > TRIES * count:
        what = f"block {block}" if block is not None else "starting"
        raise RelpropError(
            f"ray: {what} has cost {tries[block] if block is not None else lost} workers ({_first(error)})\n"
            "  do: give them more memory, or a smaller --batch; what was finished stays: go on with --resume"
        )


def _cause(error: Any) -> BaseException:
    """What a worker raised, as it would be raised here."""
    cause: BaseException = getattr(error, "cause", None) or error
    return (
        cause
        if isinstance(cause, (OSError, MemoryError))
        else RelpropError(f"ray: a worker failed ({_first(cause)})\n  do: run without --ray to see where")
    )


def _first(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _joined(ray: Any, address: str) -> bool:
    """Join a cluster, and whether it has to be left again."""
    if ray.is_initialized():
        return False
    import logging

    quiet: dict[str, Any] = {
        "log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False, "include_dashboard": False
    }  # fmt: skip
    if address != "local":
        del quiet["include_dashboard"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(address="local" if address == "local" else address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise InvalidInput(
                f"ray: no cluster at {address} ({_first(error)})\n  do: start one with `ray start --head`, or give local"
            ) from error
    return True


def _room(ray: Any, gpu: bool, threads: int) -> int:
    """How many workers the cluster has room for."""
    there = ray.cluster_resources()
    count = int(there.get("GPU", 0)) if gpu else int(there.get("CPU", 0)) // threads
    if count < 1:
        what = "GPU" if gpu else f"{threads} processors for a worker"
        raise InvalidInput(f"ray: the cluster has no {what}\n  do: add machines, or give fewer --threads")
    return count


def _ray() -> Any:
    try:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingExtra("clusters need Ray\n  do: pip install 'relprop[ray]'") from error
    return ray
