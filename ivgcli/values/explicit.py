"""Explicit values: a network with a value head, read at every prefix in the base's own tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ivgcli.models.readings import Reading, read_all
from ivgcli.models.streams import Peek, Stream
from ivgcli.values import Row, require_finite


class ScalarValue:
    """V(x, y≤t) from a scalar head at the last token of the prefix (D = 1).

    Next-token values are the head's outputs at prefix + candidate, all candidates of all rows in one packed pass; the
    candidate that is drawn is kept, so it is not read again.

    Reference:
        Mudgal et al. (2023), controlled decoding; Han et al. (2024), VAS; Liu et al. (2024), IVG, eq. 7 and 10.
    """

    needs_candidates = True
    always: frozenset[int] = frozenset()

    def __init__(self, name: str, stream: Stream) -> None:
        self.name = name
        self.stream = stream
        self._peek: tuple[Peek, Tensor] | None = None

    def streams(self) -> list[Stream]:
        """Return the scorer's stream."""
        return [self.stream]

    def token_streams(self) -> list[Stream]:
        """Return the scorer's stream."""
        return [self.stream]

    def start(self, row: int, state: Row) -> None:
        """Nothing to do: the stream knows the prompt."""

    def next_values(
        self,
        rows: Sequence[int],
        states: Sequence[Row],
        candidates: Tensor | None,
        logprobs: Tensor | None = None,
    ) -> Tensor:
        """Return V(prefix + candidate) (B, C)."""
        if candidates is None:
            raise AssertionError("a scalar head values candidates, not the whole vocabulary")
        translation = self.stream.translation
        read = candidates if translation is None else translation.columns[candidates]
        peek = self.stream.peek(rows, read[:, :, None])
        self._peek = (peek, candidates)
        return self.stream.network.outputs(peek.hidden[:, :, 0])[..., 0]

    def here(self, rows: Sequence[int]) -> Tensor:
        """Return V(prefix) (B,)."""
        return self.stream.outputs(rows)[:, 0]

    def drawn(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Keep the drawn candidates; a token that was no candidate is read later."""
        peek, candidates = self._peek
        self._peek = None
        hits = candidates == torch.as_tensor(tokens, device=candidates.device)[:, None]
        found, place = hits.max(dim=1)
        peek.commit(torch.where(found, place, -1).tolist())

    def values(self, rows: Sequence[int], states: Sequence[Row]) -> Tensor:
        """Return V(prefix) (B,)."""
        read_all([self.stream.unread(rows, [state.tokens for state in states])])
        return require_finite(self.name, rows, self.stream.outputs(rows)[:, 0].double().cpu())

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Nothing to do: the value is read off the stream."""

    def resize(self, rows: int) -> None:
        """Drop the latest candidates."""
        self._peek = None


class TokenQValue:
    """V(x, y≤t) = Q(h_{t−1})[y_t] from a head with one output per token (D = V): one pass values the whole vocabulary.

    The value of an empty response is 0, as in the published code.

    Reference:
        Liu et al. (2024), IVG, the token-wise explicit value of the released models.
    """

    needs_candidates = False
    always: frozenset[int] = frozenset()

    def __init__(self, name: str, stream: Stream) -> None:
        self.name = name
        self.stream = stream
        self._latest: Tensor | None = None
        self.resize(stream.slots)

    def streams(self) -> list[Stream]:
        """Return the scorer's stream."""
        return [self.stream]

    def token_streams(self) -> list[Stream]:
        """Return the scorer's stream."""
        return [self.stream]

    def start(self, row: int, state: Row) -> None:
        """Set the value of the empty response."""
        self._value[row] = 0.0
        self._valued[row] = 0

    def next_values(
        self,
        rows: Sequence[int],
        states: Sequence[Row],
        candidates: Tensor | None,
        logprobs: Tensor | None = None,
    ) -> Tensor:
        """Return Q(h)[token]: (B, V), or (B, C) for candidates."""
        self._latest = self.stream.outputs(rows)
        return self._latest.clone() if candidates is None else self._latest.gather(1, candidates)

    def here(self, rows: Sequence[int]) -> Tensor:
        """Return V(prefix) (B,)."""
        return self._value[list(rows)].float().to(self.stream.network.device)

    def drawn(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Remember the drawn tokens' values."""
        picked = self._latest.gather(
            1, torch.as_tensor(tokens, device=self._latest.device)[:, None]
        )[:, 0]
        self._latest = None
        self._remember(rows, picked, [self.stream.responses_read(row) + 1 for row in rows])

    def values(self, rows: Sequence[int], states: Sequence[Row]) -> Tensor:
        """Return Q of each row's last token, given everything before it."""
        behind = [
            (row, state.tokens)
            for row, state in zip(rows, states, strict=True)
            if self._valued[row] < len(state.tokens)
        ]
        reading = self.stream.unread([row for row, _ in behind], [tokens for _, tokens in behind])
        if reading.rows:
            read_all([reading])
            self._value_last(reading, [len(tokens) for _, tokens in behind])
        return require_finite(self.name, rows, self._value[list(rows)])

    def _value_last(self, reading: Reading, lengths: Sequence[int]) -> None:
        lasts = torch.tensor([len(tokens) for tokens in reading.tokens]).cumsum(0) - 1
        outputs = self.stream.network.outputs(reading.before[lasts])
        # The outputs are those of the network, and so are the ids that it has read.
        final = torch.tensor([tokens[-1] for tokens in reading.tokens], device=outputs.device)
        self._remember(reading.rows, outputs.gather(1, final[:, None])[:, 0], lengths)

    def _remember(self, rows: Sequence[int], values: Tensor, lengths: Sequence[int]) -> None:
        self._value[list(rows)] = values.double().cpu()
        for row, length in zip(rows, lengths, strict=True):
            self._valued[row] = length

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Copy the latest values."""
        self._value[list(targets)] = self._value[list(sources)]
        for target, source in zip(targets, sources, strict=True):
            self._valued[target] = self._valued[source]

    def resize(self, rows: int) -> None:
        """Forget all values."""
        self._latest = None
        self._value = torch.zeros(rows, dtype=torch.float64)
        self._valued = [0] * rows
