"""What all tests share: seeds, threads, the folder of shared data, and torch's state that no test may change.

One thread: the tests' networks are so small that a second one makes them slower, and sums have one order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from strategies_store import Horses

SHARED = Path(__file__).resolve().parents[2] / "shared"
SEED = 0

torch.set_num_threads(1)
torch.backends.cudnn.deterministic = True
torch.backends.cudnn.benchmark = False
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False


def torch_state() -> tuple[object, ...]:
    """The settings of torch that belong to the whole process."""
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_autocast_enabled(),
    )


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    """Every test starts from the same seed and leaves torch as it found it."""
    torch.manual_seed(SEED)
    before = torch_state()
    yield
    assert torch_state() == before, "a setting of torch has changed for the whole process"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Take a package away, as if it were not installed."""

    def take(package: str) -> None:
        for name in (package, *(name for name in sys.modules if name.startswith(f"{package}."))):
            monkeypatch.setitem(sys.modules, name, None)

    return take


@pytest.fixture(scope="session")
def horses(tmp_path_factory: pytest.TempPathFactory) -> Horses:
    """A store with a planted strategy and its analysis, made by hand, once for all."""
    from strategies_store import Horses, made_analysis, made_store

    store = made_store(tmp_path_factory.mktemp("strategies") / "horses")
    return Horses(store, made_analysis(store))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data beside the repository; what needs it is skipped by name without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no reference data: {SHARED} is missing")
    return SHARED / "data"
