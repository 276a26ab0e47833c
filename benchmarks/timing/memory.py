"""The peak of memory during one call, in a process of its own.

python benchmarks/timing/memory.py SUBJECT CALL [--device D] [--threads N] [--batch B] [--size S] [--length T]

On a CPU that is the largest resident set (VmHWM, which Linux lets a process reset) while the call runs, after two calls
that have captured the model and kept what is kept; on CUDA the largest amount that torch's allocator held. Weights and
libraries are part of it. CALL: "gradient" or a preset. Prints a JSON object of bytes: before the call, and its peak.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def peak(name: str, call: str, **settings: Any) -> dict[str, int]:
    """The figures of a call, measured in a new process."""
    command = [sys.executable, str(Path(__file__)), name, call]
    for key, value in settings.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {key}: the peak of memory is measured on Linux only")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("call")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    for option, default in (("batch", 2), ("size", 224), ("length", 256)):
        parser.add_argument(f"--{option}", type=int, default=default)
    options = parser.parse_args()
    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from timing.subjects import subject

    torch.set_num_threads(options.threads)
    of = subject(options.name, options.device, options.batch, options.size, options.length)
    call = of.gradient if options.call == "gradient" else of.call(options.call)
    call()
    call()
    gc.collect()
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        print(json.dumps({"before": before, "peak": torch.cuda.max_memory_allocated()}))
        return
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    print(json.dumps({"before": before, "peak": _status("VmHWM")}))


if __name__ == "__main__":
    main()
