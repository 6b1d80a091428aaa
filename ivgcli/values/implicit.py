"""The implicit value: log-probability of a tuned model minus that of its untuned reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ivgcli.models.logprobs import log_softmax_
from ivgcli.models.readings import read_all
from ivgcli.models.streams import Stream
from ivgcli.values import Row, require_finite

FLOOR = -1e30
"""A token that both models forbid has log-ratio 0, not −inf − (−inf)."""


class ImplicitValue:
    """V(x, y≤t) = Σ_{i≤t} [ log π_tuned(y_i | x, y<i) − log π_ref(y_i | x, y<i) ].

    Exact up to a constant per prompt for a pair trained with KL regularisation, so it ranks prefixes of one prompt, not
    prompts. If tuned and reference are one stream, V is 0.

    Args:
        tuned: stream of the tuned model.
        reference: stream of its untuned reference; may be the base's own stream.

    Reference:
        Liu et al. (2024), IVG, eq. 5, 6 and 9; Zhou et al. (2024), weak-to-strong search.
    """

    needs_candidates = False
    always: frozenset[int] = frozenset()

    def __init__(self, name: str, tuned: Stream, reference: Stream) -> None:
        self.name = name
        self.tuned = tuned
        self.reference = reference
        self._latest: tuple[Tensor, Tensor] | None = None
        self._buffer: Tensor | None = None
        tuned.counting = reference.counting = True

    def streams(self) -> list[Stream]:
        """Return tuned and reference."""
        return [self.tuned, self.reference]

    def token_streams(self) -> list[Stream]:
        """Return tuned and reference."""
        return [self.tuned, self.reference]

    def start(self, row: int, state: Row) -> None:
        """Nothing to do: the streams keep the sums."""

    def next_values(
        self,
        rows: Sequence[int],
        states: Sequence[Row],
        candidates: Tensor | None,
        logprobs: Tensor | None = None,
    ) -> Tensor:
        """Return log π_tuned − log π_ref of the next token: (B, V), or (B, C) for candidates."""
        self.weigh(rows)
        for stream, logprobs in zip(self.streams(), self._latest, strict=True):
            # One NaN or +∞ among the logits makes its whole row NaN, so one column tells.
            require_finite(stream.network.name, rows, logprobs[:, 0])
        if candidates is not None:
            tuned, reference = self._latest
            return tuned.gather(1, candidates) - reference.gather(1, candidates)
        return self.ratios()

    def weigh(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Work out both models' log-probabilities after rows; return one number of each row (B,), finite if all are."""
        tuned = normalised(self.tuned.outputs(rows))
        reference = tuned
        if self.reference is not self.tuned:
            reference = normalised(self.reference.outputs(rows))
        self._latest = (tuned, reference)
        return tuned[:, 0] + reference[:, 0]

    def ratios(self) -> Tensor:
        """Return log π_tuned − log π_ref (B, V) of what was weighed last; the caller may change it."""
        tuned, reference = self._latest
        rows = tuned.shape[0]
        width = min(tuned.shape[1], reference.shape[1])
        # One buffer for all steps: memory for so wide a result would be paged in anew each time.
        if self._buffer is None or self._buffer.shape[1] != width or self._buffer.shape[0] < rows:
            self._buffer = tuned.new_empty((max(rows, self.tuned.slots), width))
        return torch.sub(tuned[:, :width], reference[:, :width], out=self._buffer[:rows])

    def here(self, rows: Sequence[int]) -> Tensor:
        """Return 0: the next token's log-ratio is what it adds to the prefix."""
        return torch.zeros(len(rows), device=self.tuned.network.device)

    def drawn(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Count the drawn tokens from the logits at hand, so that no token is read just to be scored."""
        for stream, logprobs in self.picked(torch.as_tensor(tokens, device=self._latest[0].device)):
            stream.count(rows, logprobs)
        self._latest = None

    def picked(self, tokens: Tensor) -> list[tuple[Stream, Tensor]]:
        """Return each stream's log-probability (B,) of the tokens (B,) that follow what was weighed last."""
        streams = dict.fromkeys(self.streams())
        return [
            (stream, logprobs.gather(1, tokens[:, None])[:, 0])
            for stream, logprobs in zip(streams, self._latest, strict=False)
        ]

    def values(self, rows: Sequence[int], states: Sequence[Row]) -> Tensor:
        """Return the log-ratio of each response so far; what is not counted is read in one pass per network."""
        readings = []
        for stream in dict.fromkeys(self.streams()):
            behind = [
                (row, state.tokens)
                for row, state in zip(rows, states, strict=True)
                if stream.counted[row] < len(state.tokens)
            ]
            readings.append(
                stream.unread([row for row, _ in behind], [tokens for _, tokens in behind])
            )
        read_all(readings)
        index = list(rows)
        for stream in self.streams():
            require_finite(stream.network.name, rows, stream.totals[index])
        return self.tuned.totals[index] - self.reference.totals[index]

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Nothing to do: the streams keep the sums."""

    def resize(self, rows: int) -> None:
        """Drop the latest logits."""
        self._latest = self._buffer = None


def normalised(outputs: Tensor) -> Tensor:
    """Return a language model's outputs (B, V) as log-probabilities, in float32 and in place."""
    return log_softmax_(outputs).clamp_(min=FLOOR)
