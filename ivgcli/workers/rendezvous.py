"""How processes that a launcher has started on any number of machines find the first of them."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import Any

from ivgcli.errors import RecordError
from ivgcli.workers.surroundings import Surroundings

PATIENCE = 1800.0
"""Seconds that the others wait for the first process, which may read a large input before it answers."""


def announce(around: Surroundings, run: str, port: int, token: str) -> Any:
    """Tell the others where the first process listens; they know as long as the returned store lives.

    Args:
        around: where this process, the first, is.
        run: names command, recipe and input.
        port: where it listens.
        token: lets a worker in.
    """
    store = _store(around, lasting=timedelta(seconds=60))
    store.set(_key(run), f"{port} {token}")
    return store


def look_up(around: Surroundings, run: str) -> tuple[int, str]:
    """Return port and token of the first process.

    Raises:
        RecordError: it cannot be found.
    """
    from torch.distributed import DistError

    ends = time.monotonic() + PATIENCE
    while (left := ends - time.monotonic()) > 0:
        try:
            store = _store(around, lasting=timedelta(seconds=left))
            port, token = store.get(_key(run)).decode().split()
            return int(port), token
        except DistError:  # not there yet, or the store of a command before this one
            time.sleep(0.5)
    where = f"{around.host}:{around.port}"
    what = f"process {around.rank} of {around.world} found no first process of this run there"
    hint = "start all with one command, and set MASTER_ADDR to the machine of the first"
    raise RecordError(where, what, hint)


def _store(around: Surroundings, lasting: timedelta) -> Any:
    """Return the store of this run: the launcher's own, or one that the first process keeps."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    keeps = around.rank == 0 and not around.store_is_there
    return TCPStore(
        around.host,
        around.port,
        is_master=keeps,
        timeout=lasting,
        wait_for_workers=False,
    )


def _key(run: str) -> str:
    """Return the name of our entry: one for each attempt of a launcher that starts its processes again."""
    return f"ivg/{run}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
