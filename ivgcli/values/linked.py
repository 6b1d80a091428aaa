"""A value behind a link: what training fits is not always what decoding adds to log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ivgcli.models.streams import Stream
from ivgcli.recipes.guide import Link
from ivgcli.values import Row, Value


def linked(outputs: Tensor, link: Link) -> Tensor:
    """Return what a network's outputs mean as values, element by element.

        identity:     V = z
        log-sigmoid:  V = log σ(z), the log-probability of what z is the logit of

    An output of +∞ stays what it is: log σ would turn a broken network into a confident one.

    Args:
        outputs: (…) a network's outputs z.
        link: which of them.

    Reference:
        Yang and Klein (2021), FUDGE, section 3: a classifier of prefixes, trained by cross-entropy.
    """
    if link == "identity":
        return outputs
    return torch.where(outputs.isposinf(), outputs, torch.nn.functional.logsigmoid(outputs))


class LinkedValue:
    """V = link(V'), for a value V' that is a network's output.

    A constant per row would not pass through a link, so V' has to be exact, as explicit values are.

    Args:
        value: the output.
        link: what is done to it.
    """

    def __init__(self, value: Value, link: Link) -> None:
        self.name = value.name
        self.value = value
        self.link = link
        self.needs_candidates = value.needs_candidates
        self.always = value.always

    def streams(self) -> list[Stream]:
        """Return the value's streams."""
        return self.value.streams()

    def token_streams(self) -> list[Stream]:
        """Return the value's token streams."""
        return self.value.token_streams()

    def start(self, row: int, state: Row) -> None:
        """Begin a row."""
        self.value.start(row, state)

    def next_values(
        self,
        rows: Sequence[int],
        states: Sequence[Row],
        candidates: Tensor | None,
        logprobs: Tensor | None = None,
    ) -> Tensor:
        """Return link(V'(prefix + token)): (B, C) or (B, V)."""
        return linked(self.value.next_values(rows, states, candidates, logprobs), self.link)

    def here(self, rows: Sequence[int]) -> Tensor:
        """Return link(V'(prefix)) (B,)."""
        return linked(self.value.here(rows), self.link)

    def drawn(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Take note of the drawn tokens."""
        self.value.drawn(rows, tokens)

    def values(self, rows: Sequence[int], states: Sequence[Row]) -> Tensor:
        """Return link(V'(prefix)) (B,) in float64."""
        return linked(self.value.values(rows, states), self.link)

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Copy rows."""
        self.value.copy(targets, sources)

    def resize(self, rows: int) -> None:
        """Forget all rows."""
        self.value.resize(rows)
