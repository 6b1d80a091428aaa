"""A worker's side of the connection: work comes in, finished records and remarks go out.

Messages are lines of JSON. A worker that finds the other end gone stops at once: whoever ended the
run has said why, and what was sent is written.
"""

from __future__ import annotations

import select
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from ivgcli.errors import IvgError
from ivgcli.records.lines import decode, encode

PAUSE = 0.5
"""Seconds between two reports of how far the work is."""


class Link:
    """What a workflow takes in a worker for its writer, its narrator and its share of the work.

    A context manager: what is raised inside is told to the leader, and ends this process with the
    exit code that it deserves.

    Args:
        host: the leader's machine.
        port: its port.
        token: lets us in.
        run: names the command, its recipe and its input, which must be the leader's.
        number: of this worker; None: whichever is free.
    """

    def __init__(self, host: str, port: int, token: str, run: str, number: int | None) -> None:
        self.done: set[Any] = set()
        """Empty: the leader hands out no work that is done."""
        self.trace = Tracing(self)
        self.passing_on: Callable[[list[int] | None, int], None] = lambda units, room: None
        """Told what came of each question for work, and for how much."""
        self._socket = socket.create_connection((host, port))
        keep_alive(self._socket)
        self._received = bytearray()
        self._lock = threading.Lock()
        self._asked = self._over = False
        self._reported = 0.0
        self.send({"token": token, "run": run, "worker": number})

    def take(self, room: int, wait: bool) -> list[int] | None:
        """Return numbers of units to begin: at most `room`, none if there is none now, None at the end.

        Args:
            room: how many could begin now, at least 1.
            wait: whether to wait for the first of them, because there is nothing else to do.
        """
        units = self._take(room, wait)
        self.passing_on(units, room)
        return units

    def _take(self, room: int, wait: bool) -> list[int] | None:
        """Ask for work, unless that is done; return what has come, as `take` does."""
        while not self._over:
            if not self._asked:
                self.send({"ask": room})
                self._asked = True
            message = self._receive(wait)
            if message is None:
                return []
            self._asked = False
            if "units" in message:
                return [int(unit) for unit in message["units"]]
            self._over = True
        return None

    def write(self, given: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Hand over what finishes one unit: a record, or all records of a prompt."""
        self.send({"given": given})

    def report(self, tokens: int, under_way: float) -> None:
        """Tell how far the work is, now and then.

        Args:
            tokens: drawn so far.
            under_way: how many responses' worth of work is done on those not finished.
        """
        if time.monotonic() - self._reported >= PAUSE:
            self._reported = time.monotonic()
            self.send({"tokens": tokens, "under_way": under_way})

    def advance(self, count: int = 1, text: str | None = None, under_way: float = 0.0) -> None:
        """Nothing: the leader counts what it is given."""

    def note(self, text: str, under_way: float = 0.0) -> None:
        """Nothing, for the same reason."""

    def say(self, text: str) -> None:
        """Tell something worth knowing."""
        self.send({"say": text})

    def warn(self, text: str) -> None:
        """Tell something that may be wrong."""
        self.send({"warn": text})

    def end(self, account: Mapping[str, Any]) -> None:
        """Tell what all the work came to."""
        self.send({"end": account})

    def __enter__(self) -> Link:
        """Return the link."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell what was raised, and part."""
        try:
            if isinstance(error, IvgError):
                told = (error.where, error.what, error.hint, list(error.details))
                self.send({"error": told})
                raise SystemExit(error.exit_code) from None
            if isinstance(error, KeyboardInterrupt):
                raise SystemExit(130) from None  # the leader says that it was interrupted
            if error is not None and not isinstance(error, SystemExit):
                self.send({"bug": "".join(traceback.format_exception(error))})
                raise SystemExit(1) from None
        finally:
            self._socket.close()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message, whole."""
        try:
            with self._lock:
                self._socket.sendall(encode(message))
        except OSError:
            raise SystemExit(1) from None

    def _receive(self, wait: bool) -> dict[str, Any] | None:
        """Return the next message; None if it has not come and there is other work."""
        while (end := self._received.find(b"\n")) < 0:
            if not wait and not select.select([self._socket], [], [], 0)[0]:
                return None
            try:
                arrived = self._socket.recv(1 << 16)
            except OSError:
                arrived = b""
            if not arrived:
                raise SystemExit(1)
            self._received += arrived
        line = bytes(self._received[: end + 1])
        del self._received[: end + 1]
        return decode(line)


class Tracing:
    """Sends the lines of a trace to the leader, who has the file.

    Args:
        link: to the leader.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    def write(self, record: Mapping[str, Any]) -> None:
        """Send one line."""
        self._link.send({"trace": record})


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel notice within two minutes that the machine at the other end is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):  # not all of them everywhere
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
