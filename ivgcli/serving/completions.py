"""The completions of a server: what it is asked, what it turns out to give, and what its answers hold."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ivgcli.errors import ModelError
from ivgcli.serving.replies import Choice, read_choice
from ivgcli.serving.server import Fault, Server

Prompt = str | tuple[int, ...] | tuple[Mapping[str, Any], ...]
"""Text, token ids, or messages, which go to the chat endpoint."""

TOPS = (20, 5)
"""Most probable tokens to ask for where more are refused: what vLLM and what OpenAI gives at most."""

PROBED = 8
"""Tokens of the answers that a server is tried with: enough to tell two seeds apart."""

UNSAID = {"top_k": -1, "repetition_penalty": 1.0, "return_token_ids": True}
UNSAID = {**UNSAID, "return_tokens_as_token_ids": True}
"""What other servers than OpenAI's know. The first two are said because vLLM would otherwise take the
model's own; the others give tokens as ids."""

ROUNDS = 12
"""How often a server may refuse another option before it is given up."""


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

    `probe` finds out what the server gives; `ask` may be called from any thread after that.

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
        self._refused: set[str] = set()
        self._limit = "max_tokens"
        self._over = threading.Event()

    def probe(self, prompt: Prompt, as_text: str | None = None) -> None:
        """Ask for a few tokens, to learn what the server refuses and leaves out.

        Args:
            prompt: any prompt.
            as_text: the same as text, for a server that takes no ids.

        Raises:
            ModelError: the server does not answer, or lacks what this run cannot do without.
        """
        client = self.server.client(self._over)
        tried = Sampling(1.0, self.sampling.top_k, 1.0, ())
        try:
            wish, reply = self._settle(
                client, Wish(prompt, PROBED, 1, 2, self.tops), tried, as_text
            )
            again = self._once(client, wish, tried)
        finally:
            client.close()
        first = reply.choices[0]
        by_ids = isinstance(wish.prompt, tuple) and first.ids is not None
        # Texts, for log-probabilities differ in their last digits with whatever else the server is doing.
        texts = [each.text for each in reply.choices]
        same = isinstance(again, Reply) and [each.text for each in again.choices] == texts
        self.gifts = Gifts(
            count=len(reply.choices) == 2,
            logprobs=first.logprob is not None,
            tops=min(len(first.tops), wish.tops),
            ids=by_ids,
            seed="seed" not in self._refused and same,
        )
        self.known = True
        self._tell()

    def ask(self, client: Any, wish: Wish, over: threading.Event) -> Reply | Fault:
        """Return what the server answers, or what was wrong once all attempts are spent.

        Raises:
            ModelError: the server refuses the key or the model.
        """
        return self.server.ask(
            client,
            lambda client: self._post(client, wish, self.sampling),
            lambda reply: self._read(reply, wish, self.sampling),
            over,
            random.Random(wish.seed),
        )

    def _once(self, client: Any, wish: Wish, sampling: Sampling) -> Reply | Fault:
        """Ask without regard for refusals."""
        return self.server.ask(
            client,
            lambda client: self._post(client, wish, sampling),
            lambda reply: self._read(reply, wish, sampling),
            self._over,
            random.Random(0),
        )

    def _settle(
        self, client: Any, wish: Wish, sampling: Sampling, as_text: str | None
    ) -> tuple[Wish, Reply]:
        """Ask until nothing is refused any more; return what was asked then, and the answer."""
        refusals: list[str] = []
        found: Reply | Fault = Fault("")
        for _ in range(ROUNDS):
            refusals.clear()

            def refused(error: Any) -> bool:
                if error.status_code in (400, 422):
                    refusals.append(f"{error.message} {error.body}")
                return False

            asked = wish
            found = self.server.ask(
                client,
                lambda client, asked=asked: self._post(client, asked, sampling),  # type: ignore[misc]
                lambda reply, asked=asked: self._read(reply, asked, sampling),  # type: ignore[misc]
                self._over,
                random.Random(0),
                refused,
            )
            if isinstance(found, Reply):
                return wish, found
            if not refusals:
                break
            changed = self._without(refusals[-1], wish, as_text)
            if changed is None:
                break
            wish = changed
        what = found.what if isinstance(found, Fault) else ""
        raise ModelError(self.server.name, what, "check openai:http://HOST:PORT/v1#MODEL")

    def _without(self, refusal: str, wish: Wish, as_text: str | None) -> Wish | None:
        """Return what to ask instead, less what a refusal names; None if it names nothing."""
        options = self._options(wish, self.sampling)
        named = {name for name in options if re.search(rf"\b{name}\b", refusal) and len(name) > 1}
        named |= {"n"} & {name for name in options if re.search(r"['\"`]n['\"`]|\bn must", refusal)}
        if self._limit in named and "max_completion_tokens" in refusal:
            self._limit = "max_completion_tokens"
            return wish
        fewer = next((top for top in TOPS if top < wish.tops), None)
        if named & {"logprobs", "top_logprobs"} and fewer is not None:
            return _changed(wish, tops=fewer)
        named -= {"temperature", "max_tokens", "max_completion_tokens", "top_p"}
        if not named and isinstance(wish.prompt, tuple) and as_text is not None:
            return _changed(wish, prompt=as_text)
        named = named or set(UNSAID) & set(options)
        if "top_k" in named and self.sampling.top_k:
            what = "the server knows no top_k"
            raise ModelError("sampling.top_k", what, "leave it 0, or use a server such as vLLM")
        if not named:
            return None
        self._refused |= named
        return _changed(wish, count=1) if "n" in named else wish

    def _options(self, wish: Wish, sampling: Sampling) -> dict[str, Any]:
        """Return all that is said beside model and prompt."""
        said: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self._limit: wish.max_tokens,
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
        return {name: value for name, value in said.items() if name not in self._refused}

    def _post(self, client: Any, wish: Wish, sampling: Sampling) -> Any:
        """Make one request; return the raw response."""
        options = self._options(wish, sampling)
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

    def _tell(self) -> None:
        """Note what a reader of the results has to know."""
        name = self.server.name
        drawn_here = self.sampling.temperature == 0 or self.tops > 0
        if not self.gifts.seed and not drawn_here:
            how = "knows no seed" if "seed" in self._refused else "does not repeat itself by seed"
            self.notes.append(f"{name} {how}: another run draws other responses")
        if not self.gifts.count and not drawn_here and self.endpoint == "completions":
            self.notes.append(
                f"{name} gives one response to a request, whatever n says: each is asked"
            )
        if not self.gifts.logprobs:
            self.notes.append(f"{name} gives no log-probabilities: base_logprob is null")


def _changed(wish: Wish, **fields: Any) -> Wish:
    """Return a request with some fields changed."""
    return Wish(**{**vars(wish), **fields})


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
