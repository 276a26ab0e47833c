"""How this process treats memory that has been freed: `relprop` owns its process, so it may say so."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM, MAP = -1, -3
"""glibc's numbers of M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (mallopt(3))."""

OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Settings by which the user has spoken."""


def keep_freed() -> bool:
    """Keep freed memory for the next batch; whether that could be asked for.

    By default glibc gives large blocks back to the system at once, which hands them out again page by page, zeroed: as
    much as half of the time of a forward pass. Elsewhere than on Linux with glibc nothing happens, nor where the user has set it.
    """
    if sys.platform != "linux" or any(name in os.environ for name in OWN):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(MAP, 2**30)) and bool(mallopt(TRIM, 2**31 - 1))
