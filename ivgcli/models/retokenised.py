"""A stream over text in another tokenizer: what changed is read again, what did not is kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ivgcli.models.network import token_logprobs
from ivgcli.models.readings import Reading, read_all, require_room
from ivgcli.models.streams import Peek, Stream


class RetokenisedStream:
    """Follows responses as text: prompt and response are encoded together, and the cache keeps their common prefix.

    Adding text can change the last tokens of what was there, so a row is rewound to the longest common prefix
    of old and new ids, and to one token before it where the log-probability of the first new token is needed.

    Args:
        stream: the stream that reads; its rows are driven from here alone.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.resize(stream.slots)

    def resize(self, rows: int) -> None:
        """Forget all rows."""
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.logprobs: list[list[float]] = [[] for _ in range(rows)]

    def start(self, row: int, prompt_ids: Sequence[int]) -> None:
        """Begin a row whose prompt the stream has read."""
        if self.stream.intact[row]:
            self.ids[row] = list(prompt_ids)
        else:
            self.ids[row] = []
            self.stream.rewind(row, 0)
        self.logprobs[row] = [0.0] * len(self.ids[row])

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Copy what is known of rows."""
        for target, source in zip(targets, sources, strict=True):
            self.ids[target] = list(self.ids[source])
            self.logprobs[target] = list(self.logprobs[source])

    def encode(self, prompt: str, response: str, ended: bool) -> list[int]:
        """Return the ids of a rendered prompt and a response, with EOS if the response ended by itself."""
        tokenizer = self.stream.network.tokenizer
        ids = list(
            tokenizer(prompt + response, add_special_tokens=not self.stream.prompts.chat)[
                "input_ids"
            ]
        )
        eos = tokenizer.eos_token_id
        if ended and eos is not None and (not ids or ids[-1] != eos):
            ids.append(eos)
        elif not ended and len(ids) > 1 and ids[-1] == eos:
            ids.pop()  # some tokenizers close every text themselves
        return ids

    def follow(
        self, rows: Sequence[int], sequences: Sequence[list[int]], count: bool = False
    ) -> None:
        """Make the rows hold these ids, reading no more than has changed.

        Args:
            rows: rows, each at most once.
            sequences: their whole sequences, prompt included; none empty.
            count: whether to keep every new token's log-probability.
        """
        # Before anything is rewound, so that a row that is too long leaves the others as they are.
        require_room(self.stream, rows, [0] * len(rows), [len(ids) for ids in sequences])
        moved, tokens, shared = [], [], []
        for row, ids in zip(rows, sequences, strict=True):
            same = shared_prefix(self.ids[row], ids)
            if same == len(ids) == len(self.ids[row]):
                continue
            start = same if same == len(self.ids[row]) else max(0, min(same, len(ids)) - 1)
            self.stream.rewind(row, start)
            moved.append(row)
            tokens.append(ids[start:])
            shared.append(same)
            self.ids[row] = list(ids)
        if not moved:
            return
        reading = Reading(self.stream, moved, tokens)
        read_all([reading])
        if count:
            self._count(reading, shared)

    def _count(self, reading: Reading, shared: Sequence[int]) -> None:
        flat = torch.tensor(
            [token for tokens in reading.tokens for token in tokens], device=reading.before.device
        )
        logprobs = token_logprobs(self.stream.network, reading.before, flat).tolist()
        end = 0
        for row, tokens, same in zip(reading.rows, reading.tokens, shared, strict=True):
            begin, end = end, end + len(tokens)
            again = same - (len(self.ids[row]) - len(tokens))
            self.logprobs[row] = self.logprobs[row][:same] + logprobs[begin + again : end]

    def total(self, row: int, prompt_ids: Sequence[int]) -> float:
        """Return the log-probability of the response: of all tokens after the common prefix of prompt and whole text.

        A sequence's very first token has nothing in front of it that could predict it, so it never counts.
        """
        return sum(self.logprobs[row][max(1, shared_prefix(prompt_ids, self.ids[row])) :])

    def peek(
        self, rows: Sequence[int], alternatives: Sequence[Sequence[list[int]]]
    ) -> tuple[Peek, list[list[int]]]:
        """Read several whole sequences per row without keeping them, in one packed pass.

        Args:
            rows: B rows, which hold the ids of their own text.
            alternatives: C sequences per row.

        Returns:
            The hidden states after each row's common prefix, and for each alternative the place of its last
            token there.
        """
        starts = []
        for row, choices in zip(rows, alternatives, strict=True):
            starts.append(
                min(min(shared_prefix(self.ids[row], ids), len(ids) - 1) for ids in choices)
            )
        width = max(
            len(ids) - start
            for start, choices in zip(starts, alternatives, strict=True)
            for ids in choices
        )
        tails = [
            [ids[start:] + [ids[-1]] * (width - len(ids) + start) for ids in choices]
            for start, choices in zip(starts, alternatives, strict=True)
        ]
        require_room(self.stream, rows, starts, [width] * len(starts))
        lasts = [
            [len(ids) - start - 1 for ids in choices]
            for start, choices in zip(starts, alternatives, strict=True)
        ]
        return self.stream.peek(rows, torch.tensor(tails), starts), lasts


def shared_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many leading ids two sequences share."""
    shared = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        shared += 1
    return shared
