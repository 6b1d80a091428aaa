"""One OpenAI-compatible server: where it is, with which key, and a request made until it is answered."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ivgcli.errors import ModelError
from ivgcli.recipes.guide import SERVER
from ivgcli.serving.client import ADDRESS, KEY, client_library, key_for, quoted
from ivgcli.serving.pace import Pace

FIRST_PAUSE, LONGEST_PAUSE, JITTER = 0.5, 8.0, 0.25
"""Seconds before the second attempt, doubling up to the longest, less a random share of each."""

UNANSWERED = 16
"""So many requests without any answer mean that there will be none."""

ENDINGS = {
    401: ("the server refuses the key", f"set {KEY}"),
    402: ("the account has no credit", "add some, or name another server"),
    403: ("the key may not use this model", f"check the model and {KEY}"),
    404: ("the server knows no such model or address", "check openai:http://HOST:PORT/v1#MODEL"),
}
"""What no further request will mend, by its HTTP status."""

PASSING = (408, 409, 429)
"""Statuses below 500 that may pass."""

Read = TypeVar("Read")


class Abandoned(Exception):
    """A request that nobody waits for any more."""


@dataclass(frozen=True)
class Fault:
    """Why there is no answer, in words that follow the server's name."""

    what: str
    final: bool = False
    """Whether the server has answered, and refuses this very request."""


class Server:
    """A model behind an OpenAI-compatible server.

    A request is made until it is answered, `attempts` times at most. The client itself tries again
    after timeouts, broken connections and the statuses 408, 409, 429 and 5xx, and waits as long as
    Retry-After says; what it takes for an answer and is none (a web page, broken JSON) is tried again
    here. Any other status is final.

    Args:
        place: `openai:MODEL` or `openai:http://HOST:PORT/v1#MODEL`.
        attempts: how often a request is made.
        timeout: seconds that the server has for one answer.
        per_minute: requests in a minute; None: any number.
        sleep: waits so many seconds.

    Raises:
        ModelError: the client is not installed, there is no key, or the address is none.
    """

    def __init__(
        self,
        place: str,
        attempts: int,
        timeout: float,
        per_minute: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        named = SERVER.fullmatch(place)
        if named is None:
            raise AssertionError("the recipe has checked the address")
        self.name = re.sub(r"//[^/@]*@", "//", place)
        self.model, self.address = named["model"], named["url"] or os.environ.get(ADDRESS)
        self._openai = client_library(self.name)
        self._key = key_for(self.name, self.address)
        self._attempts, self._timeout, self._sleep = attempts, timeout, sleep
        self._pace = Pace(per_minute, sleep=sleep)
        self._lock = threading.Lock()
        self.answered = 0
        """Requests that were."""
        self.unanswered = 0
        """Requests since the latest answer that were given up."""

    def client(self, over: threading.Event) -> Any:
        """Return a client that keeps to the pace, and makes no request once `over` is set."""

        def before(request: Any) -> None:
            if over.is_set():
                raise Abandoned
            self._pace.wait()

        http = self._openai.DefaultHttpxClient(event_hooks={"request": [before]})
        return self._openai.OpenAI(
            api_key=self._key, base_url=self.address, timeout=self._timeout, http_client=http
        )

    def ask(
        self,
        client: Any,
        post: Callable[[Any], Any],
        read: Callable[[Any], Read | Fault],
        over: threading.Event,
        jitter: random.Random,
        mended: Callable[[Any], bool] = lambda error: False,
    ) -> Read | Fault:
        """Return what `read` makes of an answer, or what was wrong once all attempts are spent.

        Args:
            client: of this server.
            post: makes the request with the client it is given, and returns the raw response.
            read: reads the JSON of an answer; a fault is tried again.
            over: set when nobody waits any more.
            jitter: of the pauses.
            mended: whether to ask again at once after a status that is final.

        Raises:
            ModelError: the server refuses the key or the model.
            Abandoned: nobody waits any more.
        """
        pause, left, fault = FIRST_PAUSE, self._attempts, Fault("")
        while left and not over.is_set():
            try:
                raw = post(client.with_options(max_retries=left - 1))
            except self._openai.APIStatusError as error:
                if mended(error):
                    continue
                final = int(error.status_code) < 500 and int(error.status_code) not in PASSING
                return Fault(self._refusal(error), final)
            except self._openai.APIError as error:
                said = quoted(error.message, self._key)
                return Fault(f"gave no answer in {_times(left)} ({said})")
            left -= raw.retries_taken + 1
            try:
                found = read(raw.http_response.json())
            except ValueError:
                found = Fault(f"gave {raw.headers.get('content-type')}, which is no answer")
            if not isinstance(found, Fault):
                with self._lock:
                    self.answered, self.unanswered = self.answered + 1, 0
                return found
            fault = found
            if left:
                self._sleep(pause * (1 - JITTER * jitter.random()))
                pause = min(2 * pause, LONGEST_PAUSE)
        if over.is_set():
            raise Abandoned
        return Fault(f"{fault.what}, after {_times(self._attempts)}")

    def give_up(self) -> int:
        """Count a request that was given up; return how many there were since the latest answer."""
        with self._lock:
            self.unanswered += 1
            return self.unanswered

    def quoted(self, text: str) -> str:
        """Return what the server said, on one line, short, and without the key."""
        return quoted(text, self._key)

    def _refusal(self, error: Any) -> str:
        """Return what a status says; raise if it holds for every request."""
        status = int(error.status_code)
        said = self.quoted(error.message)
        status = 402 if error.code == "insufficient_quota" else status
        if status in ENDINGS:
            what, hint = ENDINGS[status]
            raise ModelError(self.name, f"{what} ({said})", hint) from None
        return f"refused the question ({said})"


def _times(count: int) -> str:
    """Return a number of attempts as a sentence has it."""
    return "1 attempt" if count == 1 else f"{count} attempts"
