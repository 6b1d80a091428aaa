"""What numbers depend on: libraries, processor, threads, device."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
import transformers


def describe_machine(device: torch.device | str, dtype: torch.dtype) -> dict[str, object]:
    """Name the libraries, the processor and the device that a measurement ran on."""
    device = torch.device(device)
    cuda = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda if cuda else None,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
    }


def processor_name() -> str:
    """Read the processor's name from the kernel, else from what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
