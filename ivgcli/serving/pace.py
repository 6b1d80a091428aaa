"""Threads that make requests, and a limit on how many a minute they make."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


class Pace:
    """Spreads requests evenly, so that no minute has more than its share; threads may share one.

    Args:
        per_minute: requests in a minute; None: any number.
        clock: seconds, from any start.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._interval = 0.0 if per_minute is None else 60.0 / per_minute
        self._clock, self._sleep = clock, sleep
        self._next = -math.inf
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next request may be made."""
        if not self._interval:
            return
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._interval
        if turn > now:
            self._sleep(turn - now)


class Crew:
    """Threads that do the same work; the last one to end cleans up, so that nothing is closed under another.

    They are daemons: a request that hangs must not keep an interrupted command alive.

    Args:
        work: what each thread does.
        clean: called once, after all of them.
    """

    def __init__(self, work: Callable[[], None], clean: Callable[[], None]) -> None:
        self._work, self._clean = work, clean
        self._lock = threading.Lock()
        self._left = 0

    def start(self, count: int) -> None:
        """Start so many threads; without any, clean up at once."""
        if not count:
            self._clean()
            return
        self._left = count
        for _ in range(count):
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        """Work, then end."""
        try:
            self._work()
        finally:
            with self._lock:
                self._left -= 1
                last = not self._left
            if last:
                self._clean()
