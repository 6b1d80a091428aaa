"""Values that see text, not the base's tokens: any tokenizer, any scorer, any Python function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ivgcli.models.retokenised import RetokenisedStream
from ivgcli.models.streams import Stream
from ivgcli.models.text import response_text
from ivgcli.scoring import Scorer
from ivgcli.values import Row, require_finite


class Reader:
    """How the base's ids become text.

    Args:
        tokenizer: the base's tokenizer.
        eos_ids: ids that end a response.
        device: where the base's candidates live.
    """

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int], device: torch.device) -> None:
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids
        self.device = device

    def text(self, state: Row) -> str:
        """Return the response's text."""
        return (
            state.text
            if state.text is not None
            else response_text(self.tokenizer, state.prompt_ids, state.tokens)
        )

    def continued(self, state: Row, token: int) -> tuple[str, bool]:
        """Return the response's text with one more token, and whether that token ends it."""
        return response_text(
            self.tokenizer, state.prompt_ids, [*state.tokens, token]
        ), token in self.eos_ids


@dataclass
class TextMeter:
    """Counts the tokens that a scorer of whole texts has read for every row, as streams do for theirs."""

    flops_per_token: int
    role: str = "value"
    spent: list[int] = field(default_factory=list)

    def add(self, rows: Sequence[int], scorer: Scorer) -> None:
        """Count what a scorer has just read: equally many texts for each row, row after row.

        A Python function reads no tokens.
        """
        tokens = getattr(scorer, "spent", [])
        each = len(tokens) // max(len(rows), 1)
        for place, row in enumerate(rows):
            self.spent[row] += sum(tokens[place * each : (place + 1) * each])


class ScorerValue:
    """V(x, y≤t) = score of the text so far; for token guidance, of the text with each candidate.

    Reference:
        Khanov et al. (2024), ARGS, is this with a reward model, `outside: drop`; Deng and Raffel (2023), RAD, re-encode
        candidates in the same way.
    """

    needs_candidates = True
    always: frozenset[int] = frozenset()

    def __init__(self, scorer: Scorer, reader: Reader) -> None:
        self.name = scorer.name
        self.scorer = scorer
        self.reader = reader
        self.meter = TextMeter(getattr(scorer, "flops_per_token", 0))
        self._states: Sequence[Row] = ()

    def streams(self) -> list[Stream]:
        """Return none: every call reads the whole text."""
        return []

    def token_streams(self) -> list[Stream]:
        """Return none."""
        return []

    def start(self, row: int, state: Row) -> None:
        """Begin counting."""
        self.meter.spent[row] = 0

    def next_values(
        self,
        rows: Sequence[int],
        states: Sequence[Row],
        candidates: Tensor | None,
        logprobs: Tensor | None = None,
    ) -> Tensor:
        """Return the score of each text with one more token (B, C)."""
        self._states = states
        texts, ended, prompts = [], [], []
        for state, choices in zip(states, candidates.tolist(), strict=True):
            for token in choices:
                text, ends = self.reader.continued(state, token)
                texts.append(text)
                ended.append(ends)
                prompts.append(state.prompt.plain)
        values = self.scorer.score(prompts, texts, ended)
        self.meter.add(rows, self.scorer)
        return torch.tensor(values, dtype=torch.float32, device=self.reader.device).view(
            candidates.shape
        )

    def here(self, rows: Sequence[int]) -> Tensor:
        """Return the score of the texts so far (B,)."""
        return self.values(rows, self._states).float().to(self.reader.device)

    def drawn(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Nothing to do."""

    def values(self, rows: Sequence[int], states: Sequence[Row]) -> Tensor:
        """Return the score of each text so far."""
        texts = [self.reader.text(state) for state in states]
        ended = [state.finish == "eos" for state in states]
        values = self.scorer.score([state.prompt.plain for state in states], texts, ended)
        self.meter.add(rows, self.scorer)
        return require_finite(self.name, rows, torch.tensor(values, dtype=torch.float64))

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Nothing to do."""

    def resize(self, rows: int) -> None:
        """Forget what was counted."""
        self.meter.spent = [0] * rows


class RetokenisedScalarValue:
    """V(x, y≤t) from a scalar head with a tokenizer of its own, reading only what retokenising has changed."""

    needs_candidates = True
    always: frozenset[int] = frozenset()

    def __init__(self, name: str, stream: Stream, reader: Reader) -> None:
        self.name = name
        self.stream = stream
        self.reader = reader
        self.text = RetokenisedStream(stream)

    def streams(self) -> list[Stream]:
        """Return the scorer's stream."""
        return [self.stream]

    def token_streams(self) -> list[Stream]:
        """Return none: the stream follows text."""
        return []

    def start(self, row: int, state: Row) -> None:
        """Begin with the prompt in the scorer's own tokens."""
        self.text.start(row, _prompt_ids(self.stream, state))

    def next_values(
        self,
        rows: Sequence[int],
        states: Sequence[Row],
        candidates: Tensor | None,
        logprobs: Tensor | None = None,
    ) -> Tensor:
        """Return the value of each text with one more token (B, C), in one packed pass."""
        self._follow(rows, states)
        alternatives = []
        for state, choices in zip(states, candidates.tolist(), strict=True):
            rendered = _rendered(self.stream, state)
            texts = (self.reader.continued(state, token) for token in choices)
            alternatives.append([self.text.encode(rendered, text, ends) for text, ends in texts])
        peek, lasts = self.text.peek(rows, alternatives)
        place = torch.tensor(lasts, device=peek.hidden.device)[:, :, None, None]
        hidden = peek.hidden.take_along_dim(place, dim=2)[:, :, 0]
        return self.stream.network.outputs(hidden)[..., 0].to(self.reader.device)

    def here(self, rows: Sequence[int]) -> Tensor:
        """Return V(prefix) (B,)."""
        return self.stream.outputs(rows)[:, 0].to(self.reader.device)

    def drawn(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Nothing to do: the drawn token is read as text."""

    def values(self, rows: Sequence[int], states: Sequence[Row]) -> Tensor:
        """Return V(prefix) (B,)."""
        self._follow(rows, states)
        return require_finite(self.name, rows, self.stream.outputs(rows)[:, 0].double().cpu())

    def _follow(self, rows: Sequence[int], states: Sequence[Row]) -> None:
        self.text.follow(rows, _sequences(self.text, self.reader, states))

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Copy the ids."""
        self.text.copy(targets, sources)

    def resize(self, rows: int) -> None:
        """Forget all ids."""
        self.text.resize(rows)


class RetokenisedImplicitValue:
    """log π_tuned − log π_ref of the response as text, for a pair with tokenizers of its own."""

    needs_candidates = False
    always: frozenset[int] = frozenset()

    def __init__(self, name: str, tuned: Stream, reference: Stream, reader: Reader) -> None:
        self.name = name
        self.reader = reader
        self.pair = [RetokenisedStream(stream) for stream in (tuned, reference)]

    def streams(self) -> list[Stream]:
        """Return tuned and reference."""
        return [text.stream for text in self.pair]

    def token_streams(self) -> list[Stream]:
        """Return none: the streams follow text."""
        return []

    def start(self, row: int, state: Row) -> None:
        """Begin with the prompt in the pair's own tokens."""
        for text in self.pair:
            text.start(row, _prompt_ids(text.stream, state))

    def next_values(
        self,
        rows: Sequence[int],
        states: Sequence[Row],
        candidates: Tensor | None,
        logprobs: Tensor | None = None,
    ) -> Tensor:
        """Not available: token guidance needs one vocabulary, which is checked before a run starts."""
        raise AssertionError("token guidance by an implicit value needs the base's vocabulary")

    def here(self, rows: Sequence[int]) -> Tensor:
        """Not available, like `next_values`."""
        raise AssertionError("token guidance by an implicit value needs the base's vocabulary")

    def drawn(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Nothing to do."""

    def values(self, rows: Sequence[int], states: Sequence[Row]) -> Tensor:
        """Return the log-ratio of each response's text."""
        totals = []
        for text in self.pair:
            text.follow(rows, _sequences(text, self.reader, states), count=True)
            sums = [
                text.total(row, _prompt_ids(text.stream, state))
                for row, state in zip(rows, states, strict=True)
            ]
            totals.append(
                require_finite(
                    text.stream.network.name, rows, torch.tensor(sums, dtype=torch.float64)
                )
            )
        return totals[0] - totals[1]

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Copy ids and log-probabilities."""
        for text in self.pair:
            text.copy(targets, sources)

    def resize(self, rows: int) -> None:
        """Forget all ids."""
        for text in self.pair:
            text.resize(rows)


def _rendered(stream: Stream, state: Row) -> str:
    return stream.prompts.render(state.prompt.text, state.prompt.messages, state.prompt.id)


def _prompt_ids(stream: Stream, state: Row) -> list[int]:
    return stream.prompts.encode(state.prompt.text, state.prompt.messages, state.prompt.id)


def _sequences(text: RetokenisedStream, reader: Reader, states: Sequence[Row]) -> list[list[int]]:
    return [
        text.encode(_rendered(text.stream, state), reader.text(state), state.finish == "eos")
        for state in states
    ]
