"""Which GPU is whose: the environment that shows a worker its own and no other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

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
    count: int, device: str | None, environment: Mapping[str, str], each: int = 1
) -> list[dict[str, str]]:
    """Return what to set for each of `count` workers of this machine: its GPUs, or a share of the cores.

    Args:
        count: of workers.
        device: as the recipe says; None: GPUs if there are any.
        environment: this process's.
        each: GPUs of a worker.

    Raises:
        RecipeError: there are fewer GPUs, or the recipe names one.
    """
    if device is not None and ":" in device:
        what = f'each worker has a GPU of its own, and engine.device is "{device}"'
        raise RecipeError("--gpus", what, "--device cuda")
    gpus = [] if device == "cpu" else visible_gpus(environment)
    if not gpus and device != "cuda":
        threads = str(_threads(count * each, environment))
        hidden = (
            {VISIBLE: ""} if each > 1 else {}
        )  # transformers would cut weights for a GPU it sees
        return [{"OMP_NUM_THREADS": threads, **hidden} for _ in range(count)]
    wanted = count * each
    if wanted > len(gpus):
        found = "no GPU is here" if not gpus else f"only {len(gpus)} are here"
        hint = (
            f"--gpus {len(gpus) // each * each}" if len(gpus) >= each else f"--shards {len(gpus)}"
        )
        what = f"{wanted} GPUs are asked for, and {found}"
        raise RecipeError("--gpus", what, hint if gpus else "--device cpu")
    return [_shown(gpus, number, each) for number in range(count)]


def groups(gpus: int | None, shards: int) -> int:
    """Return how many workers `--gpus` makes of groups of `shards` GPUs each; unset: one.

    Raises:
        RecipeError: some GPUs would be left over.
    """
    wanted = shards if gpus is None else gpus
    if wanted % shards:
        what = f"{wanted} GPUs make no groups of {shards}, one for each copy of the base"
        raise RecipeError("--gpus", what, f"--gpus {-(-wanted // shards) * shards}")
    return wanted // shards


def own_environment(
    local_rank: int, device: str | None, environment: Mapping[str, str], each: int = 1
) -> dict[str, str]:
    """Return what to set for the process `local_rank` of this machine, which a launcher has started.

    It gets `each` GPUs: the launcher starts one process for so many.

    Raises:
        RecipeError: it has no GPU, though others have.
    """
    gpus = [] if device == "cpu" or (device and ":" in device) else visible_gpus(environment)
    if not gpus:
        return {}
    if len(gpus) == each:  # srun may show every task its own
        return _shown(gpus, 0, each)
    if (local_rank + 1) * each > len(gpus):
        what = f"process {local_rank} of this machine has none of its {len(gpus)} GPUs"
        hint = f"start {len(gpus) // each} processes on each machine"
        if each > 1:
            what = f"process {local_rank} of this machine has no {each} of its {len(gpus)} GPUs"
        raise RecipeError("engine.device", what, hint)
    return _shown(gpus, local_rank, each)


def _shown(gpus: Sequence[str], number: int, each: int) -> dict[str, str]:
    """Return what shows process `number` its `each` GPUs and no other."""
    return {VISIBLE: ",".join(gpus[number * each : (number + 1) * each])}


def _threads(count: int, environment: Mapping[str, str]) -> int:
    """Return how many threads each of `count` workers may run on the cores of this process."""
    wanted = environment.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = max(1, (cores or 1) // count)
    return min(share, int(wanted)) if wanted.isdigit() and int(wanted) else share
