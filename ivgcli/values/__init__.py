"""What a prefix is worth: value functions that follow the rows of a run.

A value keeps its own view of every row (an implicit value two streams, an explicit one its scorer's stream, a value on
text nothing but the text) and catches up with what the rows have become whenever it is asked. Rows are copied,
shortened or dropped by the engine; a value never decides anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ivgcli.models.failures import RowFailure
from ivgcli.models.streams import Stream


@dataclass
class Prompted:
    """One prompt, as its record gives it."""

    id: str
    text: str | None
    messages: tuple[dict, ...] | None = None
    plain: str = ""
    """The prompt as one string, for values on text."""


@dataclass
class Row:
    """The response that one slot is decoding, as every value sees it."""

    prompt: Prompted
    prompt_ids: list[int]
    """The base's token ids of the prompt."""
    tokens: list[int] = field(default_factory=list)
    """The base's token ids of the response so far."""
    finish: str | None = None
    """None while it goes on, else eos, length or stop."""
    text: str | None = None
    """The response's text where a stop string has cut it."""


class TokenValue(Protocol):
    """V(prefix + token), asked of rows whose prefix has been read."""

    name: str
    needs_candidates: bool
    """Whether next-token values are to be had for a few candidates only (a scalar head)."""
    always: frozenset[int]
    """The base's ids that have to be among the candidates in every step."""

    def next_values(
        self,
        rows: Sequence[int],
        states: Sequence[Row],
        candidates: Tensor | None,
        logprobs: Tensor | None = None,
    ) -> Tensor:
        """Return V(prefix + token) of rows whose tokens have been read, up to a constant per row.

        Args:
            rows: B rows.
            states: their responses.
            candidates: (B, C) token ids, or None for the whole vocabulary (then the result is (B, V)).
            logprobs: (B, V) the base's log-probabilities, for values that look closer where it matters.

        Returns:
            (B, C) or (B, V) float32; the caller may change it.
        """
        ...

    def here(self, rows: Sequence[int]) -> Tensor:
        """Return V(prefix) (B,) on the scale of the latest `next_values`."""
        ...

    def drawn(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Take note of the token that each row of the latest `next_values` drew."""
        ...


class Value(TokenValue, Protocol):
    """V(x, y≤t), followed for every row."""

    def streams(self) -> list[Stream]:
        """Return every stream that has to have read the prompt before anything else is asked."""
        ...

    def token_streams(self) -> list[Stream]:
        """Return those that have to have read the response's base tokens before `next_values` is asked."""
        ...

    def start(self, row: int, state: Row) -> None:
        """Begin a row whose prompt the streams have read."""
        ...

    def values(self, rows: Sequence[int], states: Sequence[Row]) -> Tensor:
        """Return V(prefix) (B,) in float64, reading whatever has not been read."""
        ...

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Copy what the value itself knows of rows (the streams are copied by the engine)."""
        ...

    def resize(self, rows: int) -> None:
        """Forget all rows and make room for `rows` of them."""
        ...


def require_finite(name: str, rows: Sequence[int], values: Tensor) -> Tensor:
    """Return `values` (B,), or raise RowFailure for the rows whose value is not a finite number."""
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        bad = [row for row, fine in zip(rows, finite.tolist(), strict=True) if not fine]
        raise RowFailure(
            name,
            "gave a number that is not finite",
            "check it; a network may need a wider --dtype",
            bad,
        )
    return values
