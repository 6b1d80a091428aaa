"""What one network has read of every row: the prompt in its own format, then the response, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ivgcli.models.network import Network, token_logprobs
from ivgcli.models.prompts import PromptFormat
from ivgcli.models.readings import Reading
from ivgcli.models.slots import Segment, SlotCache
from ivgcli.models.translation import Translation


class Stream:
    """One network's reading of all rows under one prompt format (and one adapter).

    A row's sequence lives in the slot of the same number. `last` holds each row's hidden state after the last
    token read, so the outputs there can be had at any time without reading anything twice; `first` holds the
    one after the prompt, so that another sample of the prompt starts without reading it again. A language model
    also keeps, for each row, the log-probability of the response under it (`totals`) and of how many tokens
    that is the sum (`counted`): a token that is drawn from the model's own logits is counted before it is read.

    With a `translation`, responses are the base's ids, and so are the outputs: the network reads its own ids for
    them, and what its head has besides is left out before anything is normalised.
    """

    def __init__(
        self,
        network: Network,
        prompts: PromptFormat,
        rows: int,
        adapter: str | None = None,
        translation: Translation | None = None,
    ) -> None:
        self.network = network
        self.prompts = prompts
        self.adapter = adapter
        self.translation = translation
        self.role = ""
        """What it is in a run, as records call it: base, tuned, reference or value."""
        self.counting = False
        """Whether `read_all` counts log-probabilities; set by whoever needs them."""
        self.bytes_per_row = 0
        """What a value keeps of a row beside keys and values."""
        self.resize(rows)

    def resize(self, rows: int) -> None:
        """Forget everything, give the memory back, and start over with `rows` slots."""
        self.slots = rows
        self.cache = SlotCache(self.network.layers, rows)
        self.cache.apart = self.network.height is not None
        self.lengths = [0] * rows
        self.origins = [0] * rows
        self.counted = [0] * rows
        self.intact = [True] * rows
        self.spent = [0] * rows
        """Tokens that each slot has read or peeked at since its owner came, without the prompt and rejected guesses."""
        self.totals = torch.zeros(rows, dtype=torch.float64)
        self.last: Tensor | None = None
        self.first: Tensor | None = None

    @property
    def key(self) -> tuple[int, str | None, tuple, bool]:
        """What makes two streams read the same thing."""
        return (
            id(self.network),
            self.adapter,
            self.prompts.key,
            self.translation is not None,
        )

    def responses_read(self, row: int) -> int:
        """Return how many response tokens of `row` have been read."""
        return self.lengths[row] - self.origins[row]

    def unread(self, rows: Sequence[int], responses: Sequence[Sequence[int]]) -> Reading:
        """Return the reading of whatever these rows have not read of their responses (token ids)."""
        wanted = [
            (row, self.own(ids[self.responses_read(row) :]))
            for row, ids in zip(rows, responses, strict=True)
        ]
        wanted = [(row, ids) for row, ids in wanted if ids]
        return Reading(self, [row for row, _ in wanted], [ids for _, ids in wanted])

    def own(self, ids: Sequence[int]) -> list[int]:
        """Return the network's ids for the base's."""
        if self.translation is None:
            return list(ids)
        return [self.translation.ids[token] for token in ids]

    def outputs(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Return the head's outputs (B, D) after the last token read of each row."""
        return self.translated(self.network.outputs(self.hidden(rows)))

    def translated(self, outputs: Tensor) -> Tensor:
        """Return outputs (N, D) for the base's tokens, in the order of the base's ids; a scalar stays what it is."""
        if self.translation is None or outputs.shape[-1] == 1:
            return outputs
        return outputs.index_select(-1, self.translation.columns)

    def token_logprobs(self, before: Tensor, tokens: Sequence[int]) -> Tensor:
        """Return log p (N,) in float64 of tokens in the network's own ids that follow hidden states (N, H)."""
        translation = self.translation
        if translation is not None:
            tokens = [translation.places[token] for token in tokens]
        targets = torch.tensor(tokens, device=before.device)
        return token_logprobs(self.network, before, targets, self.translated)

    def hidden(self, rows: Sequence[int] | Tensor) -> Tensor:
        """Return the hidden states (B, H) after the last token read of each row."""
        return self.last[torch.as_tensor(rows, device=self.last.device)]

    def count(self, rows: Sequence[int], logprobs: Tensor) -> None:
        """Add the log-probability (B,) of the token that each row has just drawn, unless it is counted already.

        A stream can have two roles, base and reference say, and each of them counts.
        """
        fresh = [i for i, row in enumerate(rows) if self.counted[row] == self.responses_read(row)]
        index = [rows[i] for i in fresh]
        self.totals[index] += logprobs[fresh].to(self.totals)
        for row in index:
            self.counted[row] += 1

    def count_run(self, row: int, start: int, logprobs: Sequence[float]) -> None:
        """Add the log-probabilities of the tokens that a row drew from place `start` on, those counted already apart.

        Args:
            row: the row; all its tokens before `start` are counted.
            start: place of the first of them in the response.
            logprobs: of one token after another.
        """
        fresh = logprobs[self.counted[row] - start :]
        self.totals[row] += sum(fresh)
        self.counted[row] += len(fresh)

    def restart(self, targets: Sequence[int], source: int) -> None:
        """Start `targets` at the end of the prompt that row `source` has read; it may be one of them."""
        origin = self.origins[source]
        others = [target for target in targets if target != source]
        self.cache.copy(others, [source] * len(others), 0, origin)
        state = self.first[source].clone()
        for target in targets:
            self.lengths[target] = self.origins[target] = origin
            self.intact[target] = self.intact[source]
            self.counted[target] = 0
            self.totals[target] = 0.0
            self.last[target] = state
            self.first[target] = state

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Make the rows `targets` equal to the rows `sources` of the same prompt; no target is a source."""
        if not targets:
            return
        # A row whose retokenised text reached back into its prompt shares less of it with its siblings.
        aligned = all(self.intact[row] for row in (*targets, *sources))
        start = min(self.origins[source] for source in sources) if aligned else 0
        self.cache.copy(targets, sources, start, max(self.lengths[source] for source in sources))
        for target, source in zip(targets, sources, strict=True):
            self.lengths[target] = self.lengths[source]
            self.origins[target] = self.origins[source]
            self.counted[target] = self.counted[source]
            self.intact[target] = self.intact[source]
        self.totals[list(targets)] = self.totals[list(sources)]
        self.last[list(targets)] = self.last[list(sources)]
        self.first[list(targets)] = self.first[list(sources)]

    def rewind(self, row: int, length: int) -> None:
        """Shorten a row to its first `length` tokens; its latest hidden state is then stale until something is read."""
        self.network.ledger.reread += max(0, self.lengths[row] - length)
        self.lengths[row] = length
        self.intact[row] &= length >= self.origins[row]

    def take_back(self, rows: Sequence[int], lengths: Sequence[int], hidden: Tensor) -> None:
        """Shorten rows whose last tokens were guesses to `lengths` tokens; `hidden` (B, H) are their states there.

        The network's ledger keeps what they cost; a row's own account does not, as it says what a response takes
        whichever way it is decoded.
        """
        for row, length in zip(rows, lengths, strict=True):
            rejected = self.lengths[row] - length
            self.network.ledger.rejected += rejected
            self.spent[row] -= rejected
            self.lengths[row] = length
        self.keep(rows, hidden)

    def wipe(self, row: int) -> None:
        """Clear a row that met a non-finite number, so that the slot's next owner starts clean."""
        self.cache.wipe(row)
        if self.last is not None:
            self.last[row] = 0
            self.first[row] = 0

    def keep(self, rows: Sequence[int], hidden: Tensor, prompt: bool = False) -> None:
        """Remember hidden states (B, H) as the latest of `rows`, and as those after their prompts if they are."""
        if self.last is None:
            self.last = hidden.new_zeros((self.slots, hidden.shape[-1]))
            self.first = torch.zeros_like(self.last)
        index = torch.as_tensor(rows, device=hidden.device)
        self.last[index] = hidden
        if prompt:
            self.first[index] = hidden

    def peek(self, rows: Sequence[int], tails: Tensor, starts: Sequence[int] | None = None) -> Peek:
        """Read alternatives of equal length after each row without keeping them, in one packed pass.

        Args:
            rows: B rows.
            tails: (B, C, n) token ids: C continuations of n tokens per row.
            starts: position where the continuations of each row begin, at most its length; default: its length.

        Returns:
            The hidden states (B, C, n, H), and what is needed to keep one of them.
        """
        count, width = tails.shape[1], tails.shape[2]
        starts = [self.lengths[row] for row in rows] if starts is None else list(starts)
        self.cache.reserve(max(starts) + 1)
        segment = Segment(
            self.cache,
            rows,
            starts,
            [count * width] * len(rows),
            self.network.device,
            tail_width=width,
        )
        flat = tails.reshape(-1).to(self.network.device)
        hidden = self.network.read(flat, [segment], [self.adapter])
        self.network.ledger.peeked += int(flat.shape[0])
        for row in rows:
            self.spent[row] += count * width
        return Peek(self, list(rows), segment, hidden.view(len(rows), count, width, -1))


@dataclass
class Peek:
    """Alternatives that a stream has looked at; committing one makes it read."""

    stream: Stream
    rows: list[int]
    segment: Segment
    hidden: Tensor
    """(B, C, n, H)."""

    def commit(self, picks: Sequence[int]) -> None:
        """Keep alternative `picks[i]` of row i as its next token (-1: none); alternatives of one token only."""
        self.segment.commit(picks)
        chosen = [
            (i, row, pick)
            for i, (row, pick) in enumerate(zip(self.rows, picks, strict=True))
            if pick >= 0
        ]
        if not chosen:
            return
        index, rows, picked = (list(part) for part in zip(*chosen, strict=True))
        self.stream.keep(rows, self.hidden[index, picked, 0])
        for row in rows:
            self.stream.lengths[row] += 1
        self.segment.peeked.clear()
