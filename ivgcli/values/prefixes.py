"""One model's reading of responses in its own tokens, and its distributions in the order of their bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ivgcli.models.byte_vocabulary import ByteVocabulary
from ivgcli.models.canonical import Canonical
from ivgcli.models.network import token_logprobs
from ivgcli.models.readings import Branches, Reading
from ivgcli.models.streams import Stream
from ivgcli.values import require_finite

NODES = 4
"""Distributions kept of each row: those after its latest tokens. A text that could still be tokenised in another way
rarely reaches back further; where it does, a token is read again."""

SMALLEST = 1e-9
"""A difference of two running sums in float64 is right to 1e-7 of itself down to here."""

BLOCK = 64
"""Distributions worked out at once: 64 of a 50k vocabulary are 26 MB in float64."""


def distribution_bytes(width: int) -> int:
    """Return the bytes of the distributions that are kept of one row, over `width` ids."""
    return 8 * NODES * (width + 1)


class PrefixReader:
    """Follows rows in a model's own canonical tokens and keeps its latest next-token distributions.

    A distribution is kept as its running sum over the vocabulary in byte order, in float64, so that the probability of
    "any token that begins with these bytes" is a difference of two numbers. A node is the place behind some number of
    a row's tokens; nodes beyond its text are numbered by `look_beyond`.

    Args:
        stream: the stream that reads; its rows are driven from here alone.
        vocabulary: of its tokenizer.
    """

    def __init__(self, stream: Stream, vocabulary: ByteVocabulary) -> None:
        self.stream = stream
        self.vocabulary = vocabulary
        network = stream.network
        self.width = max(network.width, vocabulary.size)
        """Ids that a distribution is over, a padded head's included: they are what the model was trained with."""
        others = np.setdiff1d(np.arange(self.width), vocabulary.order)
        order = np.concatenate([vocabulary.order, others])
        self.order = torch.from_numpy(order).to(network.device)
        self.places = np.empty(self.width, dtype=np.int64)
        """Place of every id in byte order; ids without text stand last."""
        self.places[order] = np.arange(self.width)
        self.resize(stream.slots)

    def resize(self, rows: int) -> None:
        """Forget all rows."""
        self.texts: list[Canonical] = [None] * rows  # type: ignore[list-item]  # until `start`
        """The canonical tokenisation of each row; whoever appends to one says so to `shorten`."""
        self.logprobs: list[list[float]] = [[] for _ in range(rows)]
        """Of every token of a row given those before it; 0 for the prompt's."""
        self.spans: list[tuple[int, int]] = [(0, -1)] * rows
        """First and last node whose distribution is kept, none if the last is smaller."""
        self._fresh = [False] * rows
        device = self.stream.network.device
        shape = (rows * NODES, self.width + 1)
        self._table = torch.empty(shape, dtype=torch.float64, device=device)
        self._beyond = self._table[:0]
        self._states: Tensor | None = None
        self.stream.bytes_per_row = distribution_bytes(self.width)

    def start(self, row: int, prompt_ids: Sequence[int], like: Canonical | None = None) -> None:
        """Begin a row whose prompt the stream has read.

        Args:
            row: its number.
            prompt_ids: the prompt.
            like: another reader's text of the row, which is shared where it has the same tokens.
        """
        same = like is not None and like.vocabulary is self.vocabulary
        shared = same and like.prompt_ids == list(prompt_ids)
        self.texts[row] = like if shared else Canonical(self.vocabulary, prompt_ids)
        self.logprobs[row] = [0.0] * len(prompt_ids)
        self.spans[row] = (0, -1)
        self._fresh[row] = True
        if not self.stream.intact[row]:
            # A sibling's text reached back into the prompt, so what is stored is not the prompt.
            self.stream.rewind(row, 0)

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Copy what is known of rows."""
        if not targets:
            return
        for target, source in zip(targets, sources, strict=True):
            text = self.texts[source]
            self.texts[target] = None if text is None else text.copy()
            self.logprobs[target] = list(self.logprobs[source])
            self.spans[target] = self.spans[source]
            self._fresh[target] = self._fresh[source]
        nodes = torch.arange(NODES)
        to = (torch.tensor(targets)[:, None] * NODES + nodes).reshape(-1).to(self._table.device)
        of = (torch.tensor(sources)[:, None] * NODES + nodes).reshape(-1).to(self._table.device)
        self._table[to] = self._table[of]
        if self._states is not None:
            self._states[to] = self._states[of]

    def shorten(self, row: int, kept: int) -> None:
        """Take note that only the first `kept` of a row's tokens are as they were."""
        self._fresh[row] &= kept >= len(self.logprobs[row])
        del self.logprobs[row][kept:]
        low, high = self.spans[row]
        self.spans[row] = (low, min(high, kept))

    def prepare(self, rows: Sequence[int]) -> tuple[Reading, Branches]:
        """Return what has to be read for these rows to be known to the end of their texts.

        New tokens are appended; the last tokens of a prompt that has just been read are looked at again where the text
        could still be tokenised in another way.
        """
        reading, again = Reading(self.stream, [], []), Branches(self.stream, [], [], [])
        for row in rows:
            ids = self.texts[row].ids
            known = len(self.logprobs[row])
            if self._fresh[row] and known == len(ids) == self.stream.lengths[row]:
                begin = self.first_node(row)
                if begin < known:
                    again.rows.append(row)
                    again.starts.append(begin - 1)
                    again.tokens.append(ids[begin - 1 :])
                continue
            known = min(known, self.stream.lengths[row])
            low, high = self.spans[row]
            begin = known if low <= known <= high else max(0, known - 1)
            intact = self.stream.intact[row] and known >= self.stream.origins[row]
            self.stream.rewind(row, begin)
            self.stream.intact[row] = intact  # what is read again of a prompt is what was there
            if begin < len(ids):
                reading.rows.append(row)
                reading.tokens.append(ids[begin:])
        return reading, again

    def settle(self, rows: Sequence[int], reading: Reading, again: Branches) -> None:
        """Keep the distributions that a pass has brought, and count the tokens that it has read.

        Args:
            rows: all rows that `prepare` was asked about.
            reading: what it returned, read.
            again: likewise.
        """
        read = {*again.rows, *reading.rows}
        alone = [row for row in rows if self._fresh[row] and row not in read]
        if alone:
            lasts = [len(self.texts[row].ids) for row in alone]
            self._weigh(self.stream.hidden(alone), alone, lasts, [-1] * len(alone))
            for row, last in zip(alone, lasts, strict=True):
                self.spans[row] = (last, last)
        for pass_, starts in ((reading, None), (again, again.starts)):
            if not pass_.rows:
                continue
            owners, nodes, following = [], [], []
            if starts is None:
                self._count_first(reading)
            for place, (row, tokens) in enumerate(zip(pass_.rows, pass_.tokens, strict=True)):
                begin = starts[place] if starts else self.stream.lengths[row] - len(tokens)
                owners += [row] * len(tokens)
                nodes += range(begin + 1, begin + len(tokens) + 1)
                following += [*tokens[1:], -1]
            found = self._weigh(pass_.hidden, owners, nodes, following)
            for row, node, token, logprob in zip(owners, nodes, following, found, strict=True):
                if token >= 0 and node == len(self.logprobs[row]):
                    self.logprobs[row].append(logprob)
            for row, tokens in zip(pass_.rows, pass_.tokens, strict=True):
                last = len(self.texts[row].ids)
                low, high = self.spans[row]
                begin = last - len(tokens)
                first = low if low <= begin <= high else begin + 1
                self.spans[row] = (max(first, last - NODES + 1), last)
        for row in rows:
            self._fresh[row] = False

    def _count_first(self, reading: Reading) -> None:
        """Count the first tokens of a reading by the distributions that are kept from before."""
        known: list[tuple[int, int, int]] = []
        for row, tokens in zip(reading.rows, reading.tokens, strict=True):
            node = self.stream.lengths[row] - len(tokens)
            low, high = self.spans[row]
            if node != len(self.logprobs[row]):
                continue
            if low <= node <= high:
                known.append((row, self.slot(row, node), tokens[0]))
            else:
                # A sequence's very first token has nothing in front of it that could predict it.
                self.logprobs[row].append(0.0)
        if not known:
            return
        rows, slots, tokens = (list(column) for column in zip(*known, strict=True))
        places = self.places[tokens]
        found = self.probabilities(np.asarray(slots), places, places + 1)
        with np.errstate(divide="ignore"):
            logprobs = np.log(found)
        small = np.flatnonzero(found <= SMALLEST).tolist()
        if small:
            states = self._states[torch.tensor([slots[i] for i in small])]
            logprobs[small] = self._logprobs(states, [tokens[i] for i in small])
        for row, logprob in zip(rows, logprobs.tolist(), strict=True):
            self.logprobs[row].append(logprob)

    def _logprobs(self, hidden: Tensor, tokens: Sequence[int]) -> list[float]:
        """Return log p (N,) of tokens after hidden states (N, H), however small it is."""
        targets = torch.tensor(tokens, device=hidden.device)
        found = token_logprobs(self.stream.network, hidden, targets)
        return found.clamp_min(-690.0).tolist()  # no token is impossible

    def _weigh(
        self,
        hidden: Tensor,
        owners: Sequence[int],
        nodes: Sequence[int],
        following: Sequence[int],
    ) -> list[float]:
        """Keep the distributions after hidden states (N, H), and return log p of the token that follows each (N,).

        Of the nodes of one row only the last `NODES` are kept: earlier ones are overwritten by them.
        """
        logprobs: list[float] = []
        for begin in range(0, len(owners), BLOCK):
            part = slice(begin, begin + BLOCK)
            sums = self._sums(hidden[part], owners[part])
            slots = [r * NODES + n % NODES for r, n in zip(owners[part], nodes[part], strict=True)]
            # Later nodes take the place of earlier ones of the same row, so they are written in order.
            last = {slot: place for place, slot in enumerate(slots)}
            device = sums.device
            to = torch.tensor(list(last), device=device)
            of = torch.tensor(list(last.values()), device=device)
            self._table[to] = sums[of]
            if self._states is None:
                self._states = hidden.new_zeros((len(self._table), hidden.shape[-1]))
            self._states[to] = hidden[part][of]
            places = torch.from_numpy(self.places[np.maximum(following[part], 0)]).to(device)
            row = torch.arange(len(slots), device=device)
            picked = (sums[row, places + 1] - sums[row, places]).cpu().numpy()
            with np.errstate(divide="ignore"):
                found = np.log(picked).tolist()
            tiny = (picked <= SMALLEST).tolist()
            small = [
                place for place, token in enumerate(following[part]) if token >= 0 and tiny[place]
            ]
            if small:
                tokens = [following[begin + place] for place in small]
                exact = self._logprobs(hidden[part][torch.tensor(small, device=device)], tokens)
                for place, logprob in zip(small, exact, strict=True):
                    found[place] = logprob
            logprobs += found
        return logprobs

    def _sums(self, hidden: Tensor, owners: Sequence[int]) -> Tensor:
        """Return the running sums (N, V + 1) of the distributions after hidden states (N, H)."""
        logits = self.stream.network.outputs(hidden)
        if logits.shape[1] < self.width:
            logits = F.pad(logits, (0, self.width - logits.shape[1]), value=-torch.inf)
        probabilities = torch.softmax(logits, dim=-1)
        require_finite(self.stream.network.name, owners, probabilities[:, 0])
        sums = probabilities.new_zeros((len(owners), self.width + 1), dtype=torch.float64)
        torch.cumsum(
            probabilities.index_select(1, self.order), -1, dtype=torch.float64, out=sums[:, 1:]
        )
        return sums

    def look_beyond(self, tails: Branches) -> int:
        """Keep the distributions after every token of continuations until the next call; return the first one's number.

        Args:
            tails: continuations of the texts, read.
        """
        owners = [row for row, ids in zip(tails.rows, tails.tokens, strict=True) for _ in ids]
        self._beyond = self._sums(tails.hidden, owners) if owners else self._table[:0]
        return len(self._table)

    def look_further(self, tails: Branches) -> int:
        """Keep further distributions beside those of `look_beyond`; return the first one's number."""
        first = len(self._table) + len(self._beyond)
        before = self._beyond
        self.look_beyond(tails)
        self._beyond = torch.cat([before, self._beyond])
        return first

    def first_node(self, row: int) -> int:
        """Return the first node from which a token could still run past the end of a row's text, of those kept."""
        last = len(self.texts[row].ids)
        known = min(len(self.logprobs[row]), self.stream.lengths[row])
        low, high = self.spans[row]
        waiting = self._fresh[row] and known == last
        if not waiting and not low <= known <= high:
            low = known
        return max(min(self.texts[row].root, last), last - NODES + 1, low, 1)

    def ending(self, slots: Sequence[int]) -> np.ndarray:
        """Return the probability (R,) of all EOS ids together in distributions."""
        total = np.zeros(len(slots))
        for token in self.vocabulary.eos:
            places = np.full(len(slots), self.places[token])
            total += self.probabilities(np.asarray(slots), places, places + 1)
        return total

    def slot(self, row: int, node: int) -> int:
        """Return the number of a row's kept distribution."""
        return row * NODES + node % NODES

    def probabilities(self, slots: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return the probability (Q,) of a range of places, in float64, each in one distribution.

        Args:
            slots: (Q,) numbers of distributions.
            begins: (Q,) first place of each range.
            ends: (Q,) the place behind its last; −1 for the whole vocabulary.
        """
        ends = np.where(ends < 0, self.width, ends)
        beyond = slots >= len(self._table)
        where = np.stack([begins, ends]) + slots * (self.width + 1)
        parts = []
        for table, chosen, shift in (
            (self._table, ~beyond, 0),
            (self._beyond, beyond, len(self._table)),
        ):
            if chosen.any():
                at = torch.from_numpy(where[:, chosen] - shift * (self.width + 1))
                lower, upper = table.view(-1)[at.to(table.device)]
                parts.append(upper - lower)
        found = np.empty(len(slots))
        order = np.concatenate([np.flatnonzero(~beyond), np.flatnonzero(beyond)])
        found[order] = torch.cat(parts).cpu().numpy() if parts else 0.0
        return found
