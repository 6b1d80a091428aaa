"""Which model of a guide can guess the base's next tokens, and why none can."""

from __future__ import annotations

from typing import Literal

from ivgcli.decoding import Mode
from ivgcli.models.streams import Stream
from ivgcli.values import Value
from ivgcli.values.placed import implicit_parts

Speculate = Literal["auto", "off"] | int
"""auto: guess where it pays; N: guess N tokens ahead."""


def obstacle(base: Stream, mode: Mode) -> str | None:
    """Return why nothing can guess the tokens of a mode, None if something can."""
    if mode.token is None and mode.chunk is None:
        return f"mode {mode.name} has no guide that could guess"
    if mode.token is not None and mode.token.every > 1:
        return f"token.every is {mode.token.every}: the guide does not read along"
    if not implicit_parts(_guide(mode)):
        return "only an implicit value in the base's own tokens can guess"
    if not guessers(base, mode):
        return "the tuned model of the guide is the base itself"
    return None


def guessers(base: Stream, mode: Mode) -> list[Stream]:
    """Return the tuned models of a mode's guide, those apart that steer away or are the base; the fastest one first."""
    parts = implicit_parts(_guide(mode))
    able = [part.tuned for part, weight in parts if weight > 0 and part.tuned is not base]
    return sorted(able, key=lambda stream: stream.network.flops_per_token)


def _guide(mode: Mode) -> Value | None:
    """Return the value that knows most about the next token: the one that guides tokens, else the one that ranks."""
    part = mode.token or mode.chunk
    return None if part is None else part.value
