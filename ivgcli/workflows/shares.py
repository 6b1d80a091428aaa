"""A worker's share of the requests of a run, as the engine takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeVar

from ivgcli.decoding.search import Request
from ivgcli.workflows.summary import Share

Thing = TypeVar("Thing")


class SharedRequests:
    """The requests of the units that a worker is given, `size` for each unit.

    Args:
        share: gives the units.
        requests: of all units, in their order.
        size: requests of one unit; they stay together, since they share their prompt.
    """

    def __init__(self, share: Share, requests: Sequence[Request], size: int) -> None:
        self._share = share
        self._requests = requests
        self._size = size
        self._begun: deque[Request] = deque()

    def take(self, room: int, wait: bool) -> list[Request] | None:
        """Return at most `room` requests; none if there is none now, None if there will be none."""
        missing = room - len(self._begun)
        if missing > 0:
            units = self._share.take(-(-missing // self._size), wait and not self._begun)
            if units is None and not self._begun:
                return None
            for unit in units or ():
                first = unit * self._size
                self._begun.extend(self._requests[first : first + self._size])
        return [self._begun.popleft() for _ in range(min(room, len(self._begun)))]


def portions(things: Sequence[Thing], size: int, share: Share | None) -> Iterator[list[Thing]]:
    """Yield what is to be done in turn: at most `size` things at once, of all or of a worker's share."""
    if share is None:
        for begin in range(0, len(things), size):
            yield list(things[begin : begin + size])
        return
    while (units := share.take(size, wait=True)) is not None:
        yield [things[unit] for unit in units]
