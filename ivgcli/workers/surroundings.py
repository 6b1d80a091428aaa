"""Which of several processes this one is, as its environment says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

ADDRESS, TOKEN, NUMBER = "IVG_LEADER", "IVG_LEADER_TOKEN", "IVG_WORKER"
"""Where a worker that a leader has started finds it, what lets it in, and its number."""

PORTS = range(20_000, 30_000)
"""Where processes meet that were told no port."""


@dataclass(frozen=True)
class Surroundings:
    """One process among those that a launcher (torchrun, accelerate, srun) has started."""

    rank: int
    """Its number, from 0."""
    world: int
    """How many there are, at least 2."""
    local_rank: int
    """Its number among those of its machine."""
    host: str
    """Machine of process 0."""
    port: int
    """Where they meet."""
    store_is_there: bool
    """Whether the launcher itself keeps a store at that port, as torchrun does."""


def launched(environment: Mapping[str, str]) -> Surroundings | None:
    """Return what a launcher says of this process; None if there is no launcher, or only one process.

    torchrun and accelerate set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. srun sets
    SLURM_PROCID, SLURM_STEP_NUM_TASKS and SLURM_LOCALID; the first of these and SLURM_NTASKS are
    there in a batch script as well, which is one process.
    """
    if environment.get("RANK", "").isdigit() and "WORLD_SIZE" in environment:
        rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", rank))
    elif "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        rank, world = int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"])
        local_rank = int(environment.get("SLURM_LOCALID", rank))
    else:
        return None
    if world < 2:
        return None
    host = environment.get("MASTER_ADDR") or _first_host(environment.get("SLURM_STEP_NODELIST", ""))
    port = int(environment.get("MASTER_PORT") or _agreed_port(environment))
    kept = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Surroundings(rank, world, local_rank, host, port, kept)


def _first_host(names: str) -> str:
    """Return the first host of SLURM's list of nodes: `gpu[03-06,9],cpu1` begins with gpu03."""
    found = re.match(r"([^,\[]+)(?:\[(\d+))?", names)
    return "localhost" if found is None else found[1] + (found[2] or "")


def _agreed_port(environment: Mapping[str, str]) -> int:
    """Return a port that all processes of a SLURM step work out alike, and those of another do not."""
    job, step = (environment.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    number = int(job) * 100 + int(step) if job.isdigit() and step.isdigit() else 0
    return PORTS[number % len(PORTS)]
