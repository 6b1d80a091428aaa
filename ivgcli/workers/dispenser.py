"""Who does what: units of work, handed out a few at a time to whoever has room."""

from __future__ import annotations

import heapq
from collections.abc import Iterable


class Dispenser:
    """Hands out numbered units of work; what a lost worker held is handed out again.

    A worker may hold its fair share of what is unfinished, and no more: at the end of a run it
    would otherwise fill its rows with work that the others wait for.

    Args:
        units: their numbers, in the order to begin them.
        workers: how many workers there will be.
        portions: into how many portions a worker's fair share is cut. 1 for those who do all they
            hold side by side; more for those who do it in turn.
    """

    def __init__(self, units: Iterable[int], workers: int, portions: int = 1) -> None:
        self._order = list(units)
        self._waiting = list(range(len(self._order)))
        self._place = {unit: place for place, unit in enumerate(self._order)}
        self._unfinished = set(self._order)
        self._held: dict[int, set[int]] = {}
        self._holder: dict[int, int] = {}
        self._workers = workers
        self._portions = portions

    @property
    def over(self) -> bool:
        """Whether every unit is finished."""
        return not self._unfinished

    @property
    def workers(self) -> int:
        """How many workers are left, those who have not come yet included."""
        return self._workers

    def take(self, worker: int, room: int) -> list[int]:
        """Return at most `room` units that a worker may begin now; none, if it has its share.

        Whoever holds nothing gets something, as long as there is anything.
        """
        held = self._held.setdefault(worker, set())
        share = -(-len(self._unfinished) // max(1, self._workers * self._portions))
        count = max(0, min(room, share - len(held), len(self._waiting)))
        taken = [self._order[heapq.heappop(self._waiting)] for _ in range(count)]
        held.update(taken)
        self._holder.update(dict.fromkeys(taken, worker))
        return taken

    def finish(self, unit: int) -> bool:
        """Book a unit as finished; return whether it was not finished before.

        It may be finished twice: by a worker that was taken for lost, and by its successor.
        """
        if unit not in self._unfinished:
            return False
        self._unfinished.remove(unit)
        holder = self._holder.pop(unit, None)
        if holder is None:  # taken back, and not yet begun again
            self._waiting.remove(self._place[unit])
            heapq.heapify(self._waiting)
        else:
            self._held[holder].remove(unit)
        return True

    def lose(self, worker: int) -> int:
        """Take back what a worker holds, to be begun before all else; return how many units that is."""
        self._workers -= 1
        held = self._held.pop(worker, set())
        for unit in held:
            del self._holder[unit]
            heapq.heappush(self._waiting, self._place[unit])
        return len(held)
