"""Kill a run at random moments, fill its disk, and compare what it comes to with an uninterrupted run, byte by byte.

    python benchmarks/resume.py --kills 20

Runs are children of a process that has computed nothing, so that each begins at once. A killed one gets SIGKILL at a
random moment of its life. Exit code 1 where a store differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import zarr  # noqa: F401  # imported once, before the runs are forked
from torch import nn
from torch.utils.data import Dataset

import relprop
from relprop.errors import RelpropError

SAMPLES = 48


class Items(Dataset[Any]):
    """Random pictures that take a while to read; some cannot be read, one is of another size."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        time.sleep(0.005)
        if number in (5, 17):
            raise OSError(f"item {number} is damaged")
        side = 8 if number == 30 else 12
        draw = torch.Generator().manual_seed(number)
        return torch.randn(3, side, side, generator=draw), number % 3


def network() -> nn.Module:
    """A small network that is captured already, which runs no backward pass: that could not be forked."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    model = nn.Sequential(*layers).eval()
    relprop.Explainer(model, example=torch.zeros(2, 3, 12, 12))
    return model


NETWORK = network()


def once(store: Path, resume: bool) -> None:
    """One run, from its beginning or on from what is there."""
    relprop.run(NETWORK, Items(), store, resume=resume, target="true", batch=2, block=4, threads=1)


def child(work: Any) -> int:
    """A process that does some work; its number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    return pid


def ended(pid: int) -> int:
    """The exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def files(store: Path) -> dict[str, bytes]:
    """What a store consists of."""
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def killed(folder: Path, kills: int, seed: int) -> bool:
    """Whether runs that were killed at random moments come to what one comes to that was not."""
    whole, store, draw = folder / "whole", folder / "killed", random.Random(seed)
    started = time.perf_counter()
    assert ended(child(lambda: once(whole, False))) == 0
    seconds, wanted = time.perf_counter() - started, files(whole)
    moments: list[str] = []
    good, complete = True, 0
    while len(moments) < kills:
        moment = draw.uniform(0.2, 1.1) * seconds
        pid = child(lambda: once(store, True))
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if ended(pid) == 0:
            good, complete = good and files(store) == wanted, complete + 1
            shutil.rmtree(store)
            continue
        done = int((relprop.store.open(store).status > 0).sum()) if relprop.store.is_store(store) else 0
        moments.append(f"{100 * moment / seconds:.0f} %: {done}")
    if store.exists():
        assert ended(child(lambda: once(store, True))) == 0
        good, complete = good and files(store) == wanted, complete + 1
    print(
        f"killed {kills} times, at … of a run's {seconds:.1f} s with … of {SAMPLES} samples done ({', '.join(moments)}):"
        f" {complete} completed stores {'are equal' if good else 'DIFFER'}"
    )
    return good


def filled(folder: Path) -> bool | None:
    """Whether a run on a disk that fills up stops with one line and goes on when there is room; None: no such disk."""
    whole, disk = folder / "whole", folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "relprop", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        return None
    try:
        store, told = disk / "store", folder / "told"

        def fill() -> None:
            try:
                once(store, False)
            except RelpropError as error:
                told.write_text(str(error))

        assert ended(child(fill)) == 0
        message = told.read_text() if told.exists() else "it did not fill"
        before = int((relprop.store.open(store).status > 0).sum())
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert ended(child(lambda: once(store, True))) == 0
        same = files(whole) == files(store)
        first = message.splitlines()[0].replace(str(folder), "")
        print(f"disk full after {before} of {SAMPLES} ({first}): {'equal' if same else 'DIFFERENT'}")
        return same and "--resume" in message and 0 < before < SAMPLES
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def limited(folder: Path) -> bool:
    """The same by a limit on the size of files, which needs no rights."""
    whole, store, told = folder / "whole", folder / "limited", folder / "limited.txt"

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        try:
            once(store, True)
        except RelpropError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            told.write_text(str(error))

    ended(child(fill))
    message = told.read_text() if told.exists() else ""
    assert ended(child(lambda: once(store, True))) == 0
    same = files(whole) == files(store)
    print(
        f"files limited ({message.splitlines()[0].replace(str(folder), '') if message else 'no error'}): {'equal' if same else 'DIFFERENT'}"
    )
    return same and "--resume" in message


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 16))
    asked = parser.parse_args()
    print(f"seed {asked.seed}")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        good = killed(folder, asked.kills, asked.seed)
        full = filled(folder)
        if full is None:
            print("disk full: skipped, no file system can be mounted here")
        good = limited(folder) and good and full is not False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
