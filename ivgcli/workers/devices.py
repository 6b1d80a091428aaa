"""Which GPU is whose: the environment that shows a worker its own and no other."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ivgcli.errors import RecipeError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the GPUs that this process may use, without starting CUDA."""
    import torch

    count = torch.cuda.device_count()
    named = environment.get(VISIBLE)
    names = [str(index) for index in range(count)] if named is None else named.split(",")
    return [name.strip() for name in names[:count]]


def worker_environments(
    count: int, device: str | None, environment: Mapping[str, str]
) -> list[dict[str, str]]:
    """Return what to set for each of `count` workers of this machine: a GPU each, or a share of the cores.

    Args:
        count: of workers.
        device: as the recipe says; None: GPUs if there are any.
        environment: this process's.

    Raises:
        RecipeError: there are fewer GPUs, or the recipe names one.
    """
    if device is not None and ":" in device:
        what = f'each worker has a GPU of its own, and engine.device is "{device}"'
        raise RecipeError("--gpus", what, "--device cuda")
    gpus = [] if device == "cpu" else visible_gpus(environment)
    if not gpus and device != "cuda":
        return [{"OMP_NUM_THREADS": str(_threads(count, environment))} for _ in range(count)]
    if count > len(gpus):
        found = "no GPU is here" if not gpus else f"only {len(gpus)} are here"
        hint = f"--gpus {len(gpus)}" if gpus else "--device cpu"
        raise RecipeError("--gpus", f"{count} GPUs are asked for, and {found}", hint)
    return [{VISIBLE: name} for name in gpus[:count]]


def own_environment(
    local_rank: int, device: str | None, environment: Mapping[str, str]
) -> dict[str, str]:
    """Return what to set for the process `local_rank` of this machine, which a launcher has started.

    Raises:
        RecipeError: it has no GPU, though others have.
    """
    gpus = [] if device == "cpu" or (device and ":" in device) else visible_gpus(environment)
    if not gpus:
        return {}
    if len(gpus) == 1:  # srun may show every task its own
        return {VISIBLE: gpus[0]}
    if local_rank >= len(gpus):
        what = f"process {local_rank} of this machine has none of its {len(gpus)} GPUs"
        raise RecipeError("engine.device", what, f"start {len(gpus)} processes on each machine")
    return {VISIBLE: gpus[local_rank]}


def _threads(count: int, environment: Mapping[str, str]) -> int:
    """Return how many threads each of `count` workers may run on the cores of this process."""
    wanted = environment.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = max(1, (cores or 1) // count)
    return min(share, int(wanted)) if wanted.isdigit() and int(wanted) else share
