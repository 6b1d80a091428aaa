"""Implicit values at several places of a response at once, as the check of guessed tokens needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ivgcli.models.streams import Stream
from ivgcli.values import Row, Value, require_finite
from ivgcli.values.implicit import ImplicitValue, normalised
from ivgcli.values.weighted import WeightedSum


def implicit_parts(value: Value | None) -> list[tuple[ImplicitValue, float]]:
    """Return the implicit values that a value is the weighted sum of; none if it is or holds anything else."""
    if isinstance(value, ImplicitValue):
        return [(value, 1.0)]
    if not isinstance(value, WeightedSum):
        return []
    parts = [(part, weight) for part, weight in value.parts if isinstance(part, ImplicitValue)]
    return parts if len(parts) == len(value.parts) else []


class PlacedValue:
    """Σ w_i (log π_tuned,i − log π_ref,i) of the next token at N places, whichever rows they belong to.

    Args:
        name: of the value that this stands for.
        parts: the implicit values and their weights.
        outputs: gives a stream's outputs (N, V) at the places; they are changed.
    """

    needs_candidates = False
    always: frozenset[int] = frozenset()

    def __init__(
        self,
        name: str,
        parts: Sequence[tuple[ImplicitValue, float]],
        outputs: Callable[[Stream], Tensor],
    ) -> None:
        self.name = name
        self.parts = parts
        self.outputs = outputs
        self.logprobs: dict[int, Tensor] = {}
        """By the identity of each stream: (N, V) log-probabilities."""
        self.counted: dict[int, Tensor] = {}
        """The same of the drawn tokens alone, (N,)."""

    def next_values(
        self,
        rows: Sequence[int],
        states: Sequence[Row],
        candidates: Tensor | None,
        logprobs: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted log-ratios (N, V) of all places, or (N, C) for candidates; `rows` numbers the places."""
        for part, _ in self.parts:
            for stream in (part.tuned, part.reference):
                if id(stream) not in self.logprobs:
                    found = self.logprobs[id(stream)] = normalised(self.outputs(stream))
                    require_finite(stream.network.name, rows, found[:, 0])
        ratios = [
            (
                self._ratio(part, candidates)
                if weight == 1
                else self._ratio(part, candidates) * weight
            )
            for part, weight in self.parts
        ]
        width = min(ratio.shape[1] for ratio in ratios)
        total = ratios[0][:, :width]
        for ratio in ratios[1:]:
            total = total + ratio[:, :width]
        return total

    def _ratio(self, part: ImplicitValue, candidates: Tensor | None) -> Tensor:
        tuned, reference = (self.logprobs[id(each)] for each in (part.tuned, part.reference))
        if candidates is not None:
            return tuned.gather(1, candidates) - reference.gather(1, candidates)
        width = min(tuned.shape[1], reference.shape[1])
        return tuned[:, :width] - reference[:, :width]

    def here(self, rows: Sequence[int]) -> Tensor:
        """Return 0 for every place, as an implicit value does."""
        first = self.parts[0][0].tuned.network
        return torch.zeros(len(rows), device=first.device)

    def drawn(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Note the log-probability that each stream gives the token drawn at each place."""
        for key, logprobs in self.logprobs.items():
            index = torch.as_tensor(tokens, device=logprobs.device)[:, None]
            self.counted[key] = logprobs.gather(1, index)[:, 0]
