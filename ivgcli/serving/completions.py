"""The completions of a server: what it is asked, what it turns out to give, and what its answers hold."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ivgcli.serving.replies import Choice, read_choice
from ivgcli.serving.server import Fault, Server

Prompt = str | tuple[int, ...] | tuple[Mapping[str, Any], ...]
"""Text, token ids, or messages, which go to the chat endpoint."""

UNSAID = {"top_k": -1, "repetition_penalty": 1.0, "return_token_ids": True}
UNSAID = {**UNSAID, "return_tokens_as_token_ids": True}
"""What other servers than OpenAI's know. The first two are said because vLLM would otherwise take the
model's own; the others give tokens as ids."""


@dataclass(frozen=True)
class Sampling:
    """How a server draws, in the words of a recipe."""

    temperature: float
    top_k: int
    """0: off."""
    top_p: float
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Wish:
    """One request."""

    prompt: Prompt
    max_tokens: int
    seed: int
    """Of the draws; the name of the request as well."""
    count: int = 1
    """Responses to it."""
    tops: int = 0
    """Most probable first tokens to tell; 0: none."""


@dataclass(frozen=True)
class Reply:
    """What a request came to."""

    choices: tuple[Choice, ...]
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Gifts:
    """What a server gives of what it is asked for."""

    count: bool = True
    """Several responses to one request."""
    logprobs: bool = True
    tops: int = 0
    """Most probable tokens told."""
    ids: bool = False
    """Takes prompts as token ids and tells those of responses."""
    seed: bool = True
    """Draws the same again."""


class Completions:
    """The completions endpoint of a server, or its chat endpoint.

    `probing.probe` finds out what the server gives; `ask` may be called from any thread after that.

    Args:
        server: where it is.
        sampling: how it draws.
        endpoint: which of the two.
        tops: most probable tokens that will be asked for; 0: none.
    """

    def __init__(
        self,
        server: Server,
        sampling: Sampling,
        endpoint: Literal["completions", "chat"] = "completions",
        tops: int = 0,
    ) -> None:
        self.server, self.sampling, self.endpoint = server, sampling, endpoint
        self.tops = tops
        self.gifts = Gifts()
        self.known = False
        """Whether the server has been tried."""
        self.notes: list[str] = []
        """What is to be said about the server, a sentence each."""
        self.refused: set[str] = set()
        """Options that the server does not take."""
        self.limit = "max_tokens"
        """What it calls the longest answer."""

    def ask(
        self,
        client: Any,
        wish: Wish,
        over: threading.Event,
        sampling: Sampling | None = None,
        mended: Callable[[Any], bool] = lambda error: False,
    ) -> Reply | Fault:
        """Return what the server answers, or what was wrong once all attempts are spent.

        Args:
            client: of the server.
            wish: what is asked.
            over: set when nobody waits any more.
            sampling: how to draw, if not as the run does.
            mended: as for `Server.ask`.

        Raises:
            ModelError: the server refuses the key or the model.
        """
        drawing = sampling or self.sampling
        return self.server.ask(
            client,
            lambda client: self._post(client, wish, drawing),
            lambda reply: self._read(reply, wish, drawing),
            over,
            random.Random(wish.seed),
            mended,
        )

    def options(self, wish: Wish, sampling: Sampling) -> dict[str, Any]:
        """Return all that is said beside model and prompt."""
        said: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self.limit: wish.max_tokens,
            "seed": wish.seed,
            **UNSAID,
        }
        if sampling.top_k:
            said["top_k"] = sampling.top_k
        if sampling.stop and not wish.tops:
            said["stop"] = list(sampling.stop)
        if wish.count > 1:
            said["n"] = wish.count
        if self.endpoint == "chat":
            said["logprobs"] = True
        else:
            said["logprobs"] = max(1, wish.tops)
        return {name: value for name, value in said.items() if name not in self.refused}

    def _post(self, client: Any, wish: Wish, sampling: Sampling) -> Any:
        """Make one request; return the raw response."""
        options = self.options(wish, sampling)
        if self.endpoint == "chat":
            endpoint = client.chat.completions.with_raw_response
            turns = [each for each in wish.prompt if isinstance(each, Mapping)]
            asked: dict[str, Any] = {"messages": [dict(turn) for turn in turns]}
        else:
            endpoint = client.completions.with_raw_response
            prompt = wish.prompt if isinstance(wish.prompt, str) else list(wish.prompt)
            asked = {"prompt": prompt}
        return endpoint.create(model=self.server.model, **asked, extra_body=options)

    def _read(self, reply: Any, wish: Wish, sampling: Sampling) -> Reply | Fault:
        """Return what an answer holds, or what is wrong with it."""
        if not isinstance(reply, dict):
            return Fault("gave no object")
        given = reply.get("choices")
        if not isinstance(given, list) or not given:
            said = reply.get("error")
            detail = f" ({self.server.quoted(str(said))})" if said else ""
            return Fault(f"gave an answer without choices{detail}")
        ordered = sorted(given, key=_place)[: wish.count]
        counted = reply.get("usage")
        counts = [
            count if isinstance(count := (counted or {}).get(name), int) else 0
            for name in ("prompt_tokens", "completion_tokens")
        ]
        drawn = counts[1] if len(given) == 1 else None
        found: list[Choice] = []
        for each in ordered:
            choice = read_choice(each, wish.max_tokens, drawn, bool(sampling.stop), wish.tops)
            if isinstance(choice, Fault):
                return choice
            if wish.tops and self.gifts.tops and not choice.tops:
                return Fault("gave an answer without top log-probabilities")
            found.append(choice)
        return Reply(tuple(found), counts[0], counts[1])


def _place(choice: Any) -> int:
    """Return the number of a choice among those of its answer."""
    place = choice.get("index") if isinstance(choice, dict) else None
    return place if isinstance(place, int) else 0


def seed_of(key: int, step: int) -> int:
    """Return the seed of a request: 31 bits, which every server takes.

    Args:
        key: of the candidate that draws first.
        step: tokens that its response has.
    """
    return random.Random(f"{key}\x1f{step}").getrandbits(31)
