"""Blocks of samples on one machine: reading, explaining and writing overlap."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from relprop.run.recipe import Task
from relprop.run.rows import Failure, Form, Row, block_of, explained, read
from relprop.run.samples import Sample
from relprop.run.trial import loaders
from relprop.store import Writer

AHEAD = 3
"""Batches that are read ahead."""

UNWRITTEN = 2
"""Blocks that may wait for the disk."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What was done: samples explained, samples failed."""

    done: int
    failed: int


Progress = Callable[[Tally], None]
"""Called after every batch with what it added."""


def work(
    task: Task, form: Form, writer: Writer, blocks: Sequence[int], progress: Progress = lambda added: None
) -> None:
    """Explain and write blocks of the store, in this order.

    Raises what the memory, the device or the disk raise; blocks that were written stay.
    """
    with ExitStack() as stack:
        stack.enter_context(settled(task))
        readers = stack.enter_context(_pool(loaders(task)))
        disk = stack.enter_context(_pool(1))
        writing: deque[Future[None]] = deque()
        batches = _ahead(task, readers, _batches(task, writer, blocks))
        for block in blocks:
            numbers = samples_of(task, writer, block)
            found: list[list[Row] | Failure] = []
            while len(found) < len(numbers):
                some, held = next(batches)
                new = explained(task, form.classes, some, held)
                found += new
                failed = sum(isinstance(one, Failure) for one in new)
                progress(Tally(len(new) - failed, failed))
            while len(writing) >= UNWRITTEN:
                writing.popleft().result()
            writing.append(disk.submit(_write, task, form, writer, block, numbers, found))
        for written in writing:
            written.result()


def samples_of(task: Task, writer: Writer, block: int) -> range:
    """The samples of a block."""
    rows = writer.rows(block)
    return range(rows.start // task.asked.count, rows.stop // task.asked.count)


def _write(
    task: Task,
    form: Form,
    writer: Writer,
    block: int,
    numbers: Sequence[int],
    found: Sequence[list[Row] | Failure],
) -> None:
    writer.write(block, block_of(task, form, writer.specs, numbers, found))


def _batches(task: Task, writer: Writer, blocks: Sequence[int]) -> Iterator[Sequence[int]]:
    """The numbers of the samples of every batch; none reaches over the end of a block."""
    for block in blocks:
        numbers = samples_of(task, writer, block)
        for start in range(0, len(numbers), task.batch):
            yield numbers[start : start + task.batch]


def _ahead(
    task: Task, readers: ThreadPoolExecutor, batches: Iterator[Sequence[int]]
) -> Iterator[tuple[Sequence[int], list[Sample | Failure]]]:
    """The samples of each batch; those of the next ones are read meanwhile."""
    waiting: deque[tuple[Sequence[int], list[Future[Sample | Failure]]]] = deque()
    for numbers in batches:
        waiting.append((numbers, [readers.submit(read, task, number) for number in numbers]))
        if len(waiting) > AHEAD:
            yield _read(waiting.popleft())
    while waiting:
        yield _read(waiting.popleft())


def _read(batch: tuple[Sequence[int], list[Future[Any]]]) -> tuple[Sequence[int], list[Sample | Failure]]:
    return batch[0], [one.result() for one in batch[1]]


@contextmanager
def _pool(size: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that drop what they have not begun when the work ends early."""
    pool = ThreadPoolExecutor(size)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def settled(task: Task) -> Iterator[None]:
    """The settings on which the last bits of results hang: as many threads as the store says, no choice of algorithms.

    Warnings of image decoders, which come from several threads, are not shown.
    """
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    torch.set_num_threads(task.threads)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.benchmark = before


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
