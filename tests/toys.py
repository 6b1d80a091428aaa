"""Small values and rewards whose every number can be worked out by hand, and an output that is a
list."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ivgcli.models.streams import Stream
from ivgcli.values import Row


def vowels(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Reward: how many vowels a response has; small integers, so that ties are many."""
    return [float(sum(char in "aeiou" for char in response)) for response in responses]


def length(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Reward: characters of prompt and response."""
    return [
        float(len(prompt) + len(response))
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def constant(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Reward: the same for all."""
    return [1.0] * len(responses)


def undefined_for_the_second(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Reward: not a number for prompts that begin with "an"."""
    return [math.nan if prompt.startswith("an ") else 0.0 for prompt in prompts]


class PrefixValue:
    """V(y≤t) = a Python function of the token ids; nothing is read, nothing is remembered.

    Args:
        function: response ids (a tuple) to a number.
        size: tokens in the vocabulary.
        needs_candidates: whether next-token values are asked for candidates only.
    """

    def __init__(
        self,
        function: Callable[[tuple[int, ...]], float],
        size: int,
        needs_candidates: bool = False,
    ) -> None:
        self.name = "toy"
        self.function = function
        self.size = size
        self.needs_candidates = needs_candidates
        self.always: frozenset[int] = frozenset()
        self.asked: list[tuple[int, ...]] = []
        """Prefixes for which `values` was asked."""
        self._latest: list[tuple[int, ...]] = []

    def streams(self) -> list[Stream]:
        return []

    def token_streams(self) -> list[Stream]:
        return []

    def start(self, row: int, state: Row) -> None:
        pass

    def next_values(
        self,
        rows: Sequence[int],
        states: Sequence[Row],
        candidates: Tensor | None,
        logprobs: Tensor | None = None,
    ) -> Tensor:
        self._latest = [tuple(state.tokens) for state in states]
        choices = [range(self.size)] * len(rows) if candidates is None else candidates.tolist()
        return torch.tensor(
            [
                [self.function((*prefix, token)) for token in tokens]
                for prefix, tokens in zip(self._latest, choices, strict=True)
            ]
        )

    def here(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor([self.function(prefix) for prefix in self._latest])

    def drawn(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        pass

    def values(self, rows: Sequence[int], states: Sequence[Row]) -> Tensor:
        prefixes = [tuple(state.tokens) for state in states]
        self.asked += prefixes
        return torch.tensor([self.function(prefix) for prefix in prefixes], dtype=torch.float64)

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        pass

    def resize(self, rows: int) -> None:
        pass


class ListWriter:
    """A response writer that keeps what it is given."""

    def __init__(self, done: Sequence[tuple[str, int]] = ()) -> None:
        self.done = set(done)
        self.records: list[Mapping[str, Any]] = []

    def write(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)

    def by_key(self) -> dict[tuple[str, int], Mapping[str, Any]]:
        """Return the records by (id, sample)."""
        return {(record["id"], record["sample"]): record for record in self.records}

    def __enter__(self) -> ListWriter:
        return self

    def __exit__(self, *_: object) -> None:
        pass
