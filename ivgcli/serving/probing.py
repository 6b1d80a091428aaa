"""What a server turns out to give, found by asking it for a few tokens."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from typing import Any

from ivgcli.errors import ModelError
from ivgcli.serving.completions import UNSAID, Completions, Gifts, Prompt, Reply, Sampling, Wish
from ivgcli.serving.server import Fault

TOPS = (20, 5)
"""Most probable tokens to ask for where more are refused: what vLLM and what OpenAI gives at most."""

TRIED = 8
"""Tokens of the answers that a server is tried with: enough to tell two seeds apart."""

ROUNDS = 12
"""How often a server may refuse another option before it is given up."""

NEEDED = {"temperature", "top_p", "max_tokens", "max_completion_tokens"}
"""Options that no run does without."""


def probe(completions: Completions, prompt: Prompt, as_text: str | None = None) -> None:
    """Find out what a server refuses and leaves out, and note what a reader of the results has to know.

    Args:
        completions: of the server; what is found is written there.
        prompt: any prompt.
        as_text: the same as text, for a server that takes no ids.

    Raises:
        ModelError: the server does not answer, or lacks what this run cannot do without.
    """
    over = threading.Event()
    client = completions.server.client(over)
    sampling = Sampling(1.0, completions.sampling.top_k, 1.0, ())
    try:
        wish = Wish(prompt, TRIED, 1, 2, completions.tops)
        wish, reply = _settled(completions, client, wish, sampling, as_text)
        again, other = (
            completions.ask(client, replace(wish, seed=seed), over, sampling) for seed in (1, 2)
        )
    finally:
        client.close()
    first = reply.choices[0]
    completions.gifts = Gifts(
        count=len(reply.choices) == 2,
        logprobs=first.logprob is not None,
        tops=min(len(first.tops), wish.tops),
        ids=isinstance(wish.prompt, tuple) and first.ids is not None,
        seed="seed" not in completions.refused and _texts(again) == _texts(reply),
    )
    completions.known = True
    _tell(completions, len({*_texts(reply), *_texts(other)}) > 1)


def _texts(found: Reply | Fault) -> list[str]:
    """Return what was drawn: log-probabilities differ in their last digits with whatever else a server does."""
    return [each.text for each in found.choices] if isinstance(found, Reply) else []


def _settled(
    completions: Completions, client: Any, wish: Wish, sampling: Sampling, as_text: str | None
) -> tuple[Wish, Reply]:
    """Ask until nothing is refused any more; return what was asked then, and the answer."""
    refusals: list[str] = []

    def note(error: Any) -> bool:
        if error.status_code in (400, 422):
            refusals.append(f"{error.message} {error.body}")
        return False

    for _ in range(ROUNDS):
        refusals.clear()
        found = completions.ask(client, wish, threading.Event(), sampling, note)
        if isinstance(found, Reply):
            return wish, found
        changed = _without(completions, refusals[-1], wish, as_text) if refusals else None
        if changed is None:
            break
        wish = changed
    what = found.what if isinstance(found, Fault) else ""
    raise ModelError(completions.server.name, what, "check openai:http://HOST:PORT/v1#MODEL")


def _without(
    completions: Completions, refusal: str, wish: Wish, as_text: str | None
) -> Wish | None:
    """Return what to ask instead, less what a refusal names; None if it names nothing."""
    options = completions.options(wish, completions.sampling)
    named = {name for name in options if re.search(rf"\b{name}\b", refusal) and name != "n"}
    if "n" in options and re.search(r"['\"`]n['\"`]|\bn must", refusal):
        named.add("n")
    if completions.limit in named and "max_completion_tokens" in refusal:
        completions.limit = "max_completion_tokens"
        return wish
    fewer = next((top for top in TOPS if top < wish.tops), None)
    if "logprobs" in named and fewer is not None:
        return replace(wish, tops=fewer)
    named -= NEEDED
    if not named and isinstance(wish.prompt, tuple) and as_text is not None:
        return replace(wish, prompt=as_text)
    named = named or set(UNSAID) & set(options)
    if "top_k" in named and completions.sampling.top_k:
        hint = "leave it 0, or use a server such as vLLM"
        raise ModelError("sampling.top_k", "the server knows no top_k", hint)
    if not named:
        return None
    completions.refused |= named
    return replace(wish, count=1) if "n" in named else wish


def _tell(completions: Completions, varied: bool) -> None:
    """Note what is missing; `varied`: whether draws differ from one another."""
    name, gifts, notes = completions.server.name, completions.gifts, completions.notes
    if completions.sampling.temperature and not completions.tops:
        if not varied:
            notes.append(f"{name} gave the same response thrice: it may not heed temperature")
        if not gifts.seed:
            knows = "seed" not in completions.refused
            how = "does not repeat itself by seed" if knows else "knows no seed"
            notes.append(f"{name} {how}: another run draws other responses")
        if not gifts.count and completions.endpoint == "completions":
            notes.append(f"{name} gives one response to a request, whatever n says: each is asked")
    if not gifts.logprobs:
        notes.append(f"{name} gives no log-probabilities: base_logprob is null")
