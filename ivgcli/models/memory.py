"""How much memory is free, and how much has been used."""

from __future__ import annotations

import ctypes
import os
import resource
import sys

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


KEPT = 1 << 30
"""Blocks up to this many bytes are kept by the process when they are freed."""


def keep_large_blocks() -> None:
    """Let the C library keep freed memory instead of handing it back to the kernel (glibc on Linux; else nothing).

    Logits of a wide vocabulary are tens of megabytes, and by default each such block is mapped, zeroed page by page and
    unmapped again at every step, which costs about a tenth of the time of decoding on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        library = ctypes.CDLL("libc.so.6")
        # Older versions take no more than 32 MiB.
        if not library.mallopt(_MMAP_THRESHOLD, KEPT):
            library.mallopt(_MMAP_THRESHOLD, 1 << 25)
        library.mallopt(_TRIM_THRESHOLD, KEPT)
    except (OSError, AttributeError):
        return


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device; on a CPU, what the kernel thinks it could give."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use so far: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
