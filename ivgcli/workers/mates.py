"""The processes that hold one base between them: the first of them works for a leader, its mates do all that it does.

All run the same command over the same prompts, in step: what the first is given to do it passes on, and what they
must decide alike (drawn tokens, values of candidates, rows) is settled between them. The first starts its mates. A mate
that dies takes the first along, whose work the leader then gives to others, and mates end when the first is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any

from ivgcli.errors import IvgError
from ivgcli.records.lines import decode, encode
from ivgcli.workers.devices import VISIBLE
from ivgcli.workers.link import Link

SHARD, MEETING = "IVG_SHARD", "IVG_SHARDS_AT"
"""A mate's number, from 1, and the port where it finds the first."""

HOST = "127.0.0.1"

LASTING = timedelta(days=30)
"""How long one process waits for another; one that has died is noticed by other ways."""

GRACE = 2.0
"""Seconds in which another process's death is noticed, before what it brings about here is told."""


class Mates:
    """The first process's side; a context manager, inside which the group is there.

    Args:
        link: to the leader.
        command: starts a mate.
        count: of the processes that hold the base, this one included.
    """

    def __init__(self, link: Link, command: Sequence[str], count: int) -> None:
        self._link, self._count = link, count
        self._parting = False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._store = _store(0, 0)
        gpus = _dealt(os.environ, count)
        os.environ.update(gpus[0])
        for number in range(1, count):
            told = {SHARD: str(number), MEETING: str(self._store.port), **gpus[number]}
            process = subprocess.Popen(
                command,
                env={**os.environ, **told},
                stdin=subprocess.PIPE,  # ends when this process does, however it ends
                stdout=subprocess.PIPE,  # where a mate says what the user can mend
            )
            self._processes.append(process)
            threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        link.passing_on = self.share

    def share(self, units: Sequence[int] | None, room: int) -> None:
        """Give all mates what this process was given to do; they ask for the same `room` at the same time."""
        import torch
        import torch.distributed as dist

        found = [-1] if units is None else [len(units), *units]
        dist.broadcast(torch.tensor(found + [0] * (room + 1 - len(found))), src=0)

    def __enter__(self) -> Mates:
        """Meet the mates."""
        _gather(self._store, 0, self._count)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Part from the mates; after an error, end them."""
        if error is not None and not isinstance(error, (IvgError, KeyboardInterrupt)):
            time.sleep(GRACE)  # if a mate's death is behind it, the leader is to see us die of that
        self._parting = True
        if error is None:
            _part()
        for process in self._processes:
            try:
                process.wait(GRACE if error is None else 0)
            except subprocess.TimeoutExpired:
                process.kill()

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """End this process when a mate is over before its time, and in the same way."""
        assert process.stdout is not None, "it is a pipe"
        told, code = process.stdout.read().splitlines(), process.wait()
        if self._parting:
            return
        if code < 0:
            os.kill(os.getpid(), -code)
        if code == IvgError.exit_code and told:  # libraries may have written there before
            self._link.send(decode(told[-1]))
        os._exit(code or 1)


class Mate:
    """What a workflow takes in a mate for its writer, its narrator and its share of the work.

    Args:
        count: of the processes that hold the base.
    """

    def __init__(self, count: int) -> None:
        self.done: set[Any] = set()
        """Empty, as the first process's."""
        self.trace = None
        self._count = count
        threading.Thread(target=_end_with_the_first, daemon=True).start()
        self._number, port = int(os.environ[SHARD]), int(os.environ[MEETING])
        self._store = _store(self._number, port)

    def take(self, room: int, wait: bool) -> list[int] | None:
        """Return what the first process was given when it asked for as much."""
        import torch
        import torch.distributed as dist

        found = torch.zeros(room + 1, dtype=torch.int64)
        dist.broadcast(found, src=0)
        count, *units = found.tolist()
        return None if count < 0 else units[:count]

    def write(self, given: Any) -> None:
        """Nothing: the first process hands over what is finished, and tells everything below."""

    def report(self, tokens: int, under_way: float) -> None:
        """Nothing."""

    def advance(self, count: int = 1, text: str | None = None, under_way: float = 0.0) -> None:
        """Nothing."""

    def note(self, text: str, under_way: float = 0.0) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def end(self, account: Mapping[str, Any]) -> None:
        """Nothing."""

    def __enter__(self) -> Mate:
        """Meet the others."""
        _gather(self._store, self._number, self._count)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Part; what the user can mend is told to the first process, which may not have met it."""
        if error is None:
            _part()
        elif isinstance(error, IvgError):
            told = (error.where, error.what, error.hint, list(error.details))
            os.write(sys.__stdout__.fileno(), encode({"error": told}))  # type: ignore[union-attr]
            os._exit(error.exit_code)
        else:
            time.sleep(
                GRACE
            )  # if the first is gone, this process is over before it tells its share


def _store(number: int, port: int) -> Any:
    """Return where the processes find each other; the first keeps it, at a port that was free."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    first = number == 0
    return TCPStore(HOST, port, is_master=first, timeout=LASTING, wait_for_workers=False)


def _gather(store: Any, number: int, count: int) -> None:
    """Make this process number `number` of a group of `count`."""
    import torch
    import torch.distributed as dist

    os.environ["LOCAL_RANK"] = "0"  # each sees its own GPU alone, and transformers asks which it is
    if sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=LASTING)


def _part() -> None:
    """Leave the group, once all have come so far."""
    import torch.distributed as dist

    dist.destroy_process_group()


def _dealt(environment: Mapping[str, str], count: int) -> list[dict[str, str]]:
    """Return what shows each of `count` processes its own GPU; nothing where there is none."""
    gpus = [name for name in environment.get(VISIBLE, "").split(",") if name]
    return [{VISIBLE: name} for name in gpus[:count]] if len(gpus) >= count else [{}] * count


def _end_with_the_first() -> None:
    """Wait until the first process is gone, and end this one."""
    while os.read(0, 1):
        pass
    os._exit(1)
