"""Several values at once: V = Σ w_i V_i."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ivgcli.models.streams import Stream
from ivgcli.values import Row, Value


class WeightedSum:
    """V = Σ w_i V_i, for several objectives or personal preferences.

    Args:
        values: the parts, at least one.
        weights: their factors; negative ones steer away.
    """

    def __init__(self, values: Sequence[Value], weights: Sequence[float]) -> None:
        self.name = " + ".join(value.name for value in values)
        self.parts = list(zip(values, weights, strict=True))
        self.needs_candidates = any(value.needs_candidates for value in values)
        self.always = frozenset().union(*(value.always for value in values))

    def streams(self) -> list[Stream]:
        """Return the parts' streams."""
        return [stream for value, _ in self.parts for stream in value.streams()]

    def token_streams(self) -> list[Stream]:
        """Return the parts' token streams."""
        return [stream for value, _ in self.parts for stream in value.token_streams()]

    def start(self, row: int, state: Row) -> None:
        """Begin a row in every part."""
        for value, _ in self.parts:
            value.start(row, state)

    def next_values(
        self,
        rows: Sequence[int],
        states: Sequence[Row],
        candidates: Tensor | None,
        logprobs: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted sum of the parts' next-token values, cut to the narrowest vocabulary."""
        parts = [
            (weight, value.next_values(rows, states, candidates, logprobs))
            for value, weight in self.parts
        ]
        width = min(values.shape[1] for _, values in parts)
        return sum(weight * values[:, :width] for weight, values in parts)

    def here(self, rows: Sequence[int]) -> Tensor:
        """Return the weighted sum of the parts' prefix values (B,)."""
        return sum(weight * value.here(rows) for value, weight in self.parts)

    def drawn(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Tell every part."""
        for value, _ in self.parts:
            value.drawn(rows, tokens)

    def values(self, rows: Sequence[int], states: Sequence[Row]) -> Tensor:
        """Return the weighted sum of the parts' values (B,)."""
        return sum(weight * value.values(rows, states) for value, weight in self.parts)

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Copy in every part."""
        for value, _ in self.parts:
            value.copy(targets, sources)

    def resize(self, rows: int) -> None:
        """Forget all rows in every part."""
        for value, _ in self.parts:
            value.resize(rows)
