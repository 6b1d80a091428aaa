"""One run as several processes: who this one is, waiting for the others, and starting them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from datetime import timedelta

from accelerate import PartialState
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

PATIENCE = timedelta(days=2)
"""How long the others wait while the first process draws responses."""

TALKERS = ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api")
"""Loggers of the launcher: what went wrong is said by the process where it did."""


def rank() -> int:
    """Return this process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Return how many processes run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Processes:
    """The processes of a training run, as a launcher (torchrun, accelerate, srun) has started them.

    Args:
        cpu: whether they train on the CPU.
    """

    def __init__(self, cpu: bool) -> None:
        self.count = world()
        self.first = rank() == 0
        self._state = None
        if self.count > 1:
            self._state = PartialState(cpu=cpu, timeout=PATIENCE)

    def wait(self) -> None:
        """Wait for all others to come here."""
        if self._state is not None:
            self._state.wait_for_everyone()


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run `ivg ARGUMENTS` as `count` processes on this machine, by torchrun's own machinery.

    Returns:
        The exit code: 0, that of the first process that failed, which has said why, or 128 and the
        number of the signal that ended them all.
    """
    for name in TALKERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="ivg",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "ivgcli", *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as caught:
        return 128 + int(caught.sigval)
    return 0
