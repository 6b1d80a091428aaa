"""One choice of a server's answer: its text, how it ended, and its tokens as far as they are told."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from ivgcli.serving.server import Fault

AS_ID = re.compile(r"token_id:(\d+)")
"""How vLLM writes a token where it was asked for ids."""

Finish = Literal["eos", "length", "stop", "unknown"]


@dataclass(frozen=True)
class Choice:
    """What a server has drawn."""

    text: str
    finish: Finish
    """eos; stop: a stop string; length: `max_tokens`; unknown: eos or stop, the server does not say."""
    tokens: int
    """How many there are, as the server counts; an estimate of it where it does not tell."""
    ids: tuple[int, ...] | None = None
    """Their ids; None: not told."""
    logprob: float | None = None
    """Σ log p of them; None: not told."""
    tops: tuple[tuple[int | str, float], ...] = ()
    """The most probable first tokens, as ids or strings, with their log-probabilities."""


def read_choice(
    given: Any, asked: int, drawn: int | None, stops: bool, tops: int
) -> Choice | Fault:
    """Return a choice as it is needed here, or what is wrong with it.

    Args:
        given: one entry of `choices`, of either endpoint.
        asked: `max_tokens`.
        drawn: tokens that the answer says it has, where this is its only choice.
        stops: whether there were stop strings to end it.
        tops: most probable first tokens wanted; a server may tell the drawn one besides.
    """
    if not isinstance(given, dict):
        return Fault("gave a choice that is no object")
    message = given.get("message")
    text = message.get("content") if isinstance(message, dict) else given.get("text")
    if not isinstance(text, str):
        return Fault("gave an answer without text")
    finish = _finish(given, stops)
    if finish is None:
        return Fault(f'gave an answer that ended by "{given.get("finish_reason")}"')
    tokens, logprobs, likely = _logprobs(given.get("logprobs"))
    ids = _ids(given.get("token_ids"), tokens)
    total = math.fsum(logprobs) if logprobs is not None else None
    if ids is not None:
        count = len(ids)
    elif tokens is not None:
        count = len(tokens)
    elif drawn is not None:
        count = drawn
    else:
        count = asked if finish == "length" else min(asked, -(-len(text) // 4))
    return Choice(
        text, finish, count, ids, total, tuple(sorted(likely, key=lambda each: -each[1])[:tops])
    )


def _finish(given: dict[str, Any], stops: bool) -> Finish | None:
    """Return how a choice ended; None: not in a way that makes it a response."""
    reason = given.get("finish_reason")
    if reason == "length":
        return "length"
    if reason == "content_filter":
        return "stop"
    if reason != "stop":
        return None
    for name in ("stop_reason", "matched_stop"):  # vLLM's word, and SGLang's
        if name in given:
            return "stop" if isinstance(given[name], str) else "eos"
    return "unknown" if stops else "eos"


def _logprobs(
    given: Any,
) -> tuple[list[str] | None, list[float] | None, tuple[tuple[int | str, float], ...]]:
    """Return tokens, their log-probabilities and the most probable first tokens, as far as they are there."""
    if not isinstance(given, dict):
        return None, None, ()
    content, tokens, logprobs = (
        given.get(name) for name in ("content", "tokens", "token_logprobs")
    )
    if isinstance(content, list):  # the chat endpoint
        told = [each for each in content if isinstance(each, dict)]
        tokens, logprobs = ([each.get(name) for each in told] for name in ("token", "logprob"))
    if not isinstance(tokens, list) or not isinstance(logprobs, list):
        return None, None, ()
    if any(not isinstance(each, (int, float)) for each in logprobs):
        return list(map(str, tokens)), None, ()
    found = given.get("top_logprobs")
    first = found[0] if isinstance(found, list) and found else None
    likely = first.items() if isinstance(first, dict) else ()
    return (
        list(map(str, tokens)),
        logprobs,
        tuple((_token(name), float(value)) for name, value in likely),
    )


def _token(name: str) -> int | str:
    """Return a token's id if it is written as one."""
    named = AS_ID.fullmatch(name)
    return name if named is None else int(named[1])


def _ids(given: Any, tokens: list[str] | None) -> tuple[int, ...] | None:
    """Return the token ids of a choice, told outright or in place of its tokens' strings."""
    if isinstance(given, list) and all(isinstance(each, int) for each in given):
        return tuple(given)
    named = [_token(each) for each in tokens or ()]
    ids = tuple(each for each in named if isinstance(each, int))
    return ids if tokens is not None and len(ids) == len(named) else None
