"""Calls under way in threads of their own, and what they came to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from ivgcli.serving.pace import Crew


class Flight:
    """At most so many calls at once, in the order of `submit`; what they return lands in any order.

    Leaving it abandons what is under way: `over` is set, no waiting call is begun, and the threads
    clean up behind the last of them.

    Args:
        count: threads.
        over: set when nobody waits any more.
        clean: called once, after all threads.
    """

    def __init__(self, count: int, over: threading.Event, clean: Callable[[], None]) -> None:
        self.over = over
        self.under_way = 0
        """Calls submitted that have not landed."""
        self._count = count
        self._waiting: queue.SimpleQueue[tuple[Any, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._crew = Crew(self._work, clean)
        self._crew.start(count)

    def submit(self, name: Any, call: Callable[[], Any]) -> None:
        """Have a call made; it lands under its name."""
        self.under_way += 1
        self._waiting.put((name, call))

    def land(self, wait: bool = True) -> tuple[Any, Any] | None:
        """Return the name and the result of a call that has landed; None if none has and none is waited for.

        Raises:
            Exception: what the call raised.
        """
        try:
            name, found = self._done.get(block=wait)
        except queue.Empty:
            return None
        self.under_way -= 1
        if isinstance(found, BaseException):
            raise found
        return name, found

    def close(self) -> None:
        """Abandon what is under way."""
        self.over.set()
        for _ in range(self._count):
            self._waiting.put(None)

    def _work(self) -> None:
        """Make calls until it is over."""
        while not self.over.is_set():
            task = self._waiting.get()
            if task is None:
                return
            name, call = task
            try:
                self._done.put((name, call()))
            except BaseException as error:  # raised again by whoever waits for it to land
                self._done.put((name, error))
                self.over.set()
