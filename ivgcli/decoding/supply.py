"""Where the engine's requests come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Protocol

from ivgcli.decoding.search import Request


class Supply(Protocol):
    """Where requests come from, if not all of them are known from the beginning."""

    def take(self, room: int, wait: bool) -> Sequence[Request] | None:
        """Return at most `room` requests; none if there is none now, None if there will be none.

        Args:
            room: how many searches could begin now, at least 1.
            wait: whether to wait for one, because nothing else is under way.
        """


class Listed:
    """All of some requests, in their order.

    Args:
        requests: read as far as there is room.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = iter(requests)

    def take(self, room: int, wait: bool) -> Sequence[Request] | None:
        """Return the next `room` requests, or those that are left; None if none is."""
        return list(islice(self._requests, room)) or None
