"""Passes: what streams are to read next, packed so that each network reads all of it at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ivgcli.models.failures import RowFailure
from ivgcli.models.slots import Segment

if TYPE_CHECKING:
    from ivgcli.models.streams import Stream

PASS_TOKENS = 4096
"""Tokens of one packed pass at most: enough for full matrix-product speed, small enough for the MLP's activations."""


@dataclass
class Reading:
    """New tokens for some rows of one stream."""

    stream: Stream
    rows: list[int]
    tokens: list[list[int]]
    """The tokens of each row, at least one."""
    prompt: bool = False
    """Whether they are a prompt, which starts its row anew."""
    guessed: bool = False
    """Whether some of them may be taken back, so that none is counted."""
    hidden: Tensor | None = None
    """Filled in by `read_all`: (N, H) hidden states of the tokens, row after row."""
    before: Tensor | None = None
    """Filled in by `read_all` unless it is a prompt: (N, H) hidden state in front of each token."""

    @property
    def length(self) -> int:
        """Number of tokens."""
        return sum(len(tokens) for tokens in self.tokens)

    def states(self, rows: Sequence[int], counts: Sequence[int]) -> Tensor:
        """Return the last `counts[i]` hidden states of each of `rows`, row after row, once this has been read.

        The state in front of a row's first new token is one of them if they are one more than its tokens.
        """
        parts, begin = {}, 0
        for row, tokens in zip(self.rows, self.tokens, strict=True):
            assert self.before is not None, "it has been read, and is no prompt"
            assert self.hidden is not None, "it has been read"
            end = begin + len(tokens)
            parts[row] = torch.cat([self.before[begin : begin + 1], self.hidden[begin:end]])
            begin = end
        return torch.cat(
            [
                parts[row][-count:] if row in parts else self.stream.hidden([row])
                for row, count in zip(rows, counts, strict=True)
            ]
        )


@dataclass
class Branches:
    """Continuations of one stream's rows that are looked at and not kept; all of them share a pass."""

    stream: Stream
    rows: list[int]
    """A row is listed once for each of its continuations."""
    starts: list[int]
    """How many of the row's tokens each continues, those counted that the same `read_all` appends."""
    tokens: list[list[int]]
    """The tokens of each, at least one."""
    hidden: Tensor | None = None
    """Filled in by `read_all`: (N, H) hidden states of the tokens, continuation after continuation."""


def read_all(readings: Sequence[Reading], branches: Sequence[Branches] = ()) -> None:
    """Read everything, with one packed pass per network and adapter (several where a pass would grow too long).

    Streams that share their weights share the pass: the weights are read from memory once for all of them.
    """
    members = [member for member in (*readings, *branches) if member.rows]
    for group in shared_passes([member.stream for member in members]):
        mine = [member for member in members if any(member.stream is each for each in group)]
        read = [member for member in mine if isinstance(member, Reading)]
        looked_at = [member for member in mine if isinstance(member, Branches)]
        if sum(reading.length for reading in read) <= PASS_TOKENS:
            _read_pass(read, looked_at)
        else:
            _read_in_parts(read)
            if looked_at:
                _read_pass([], looked_at)


def shared_passes(streams: Iterable[Stream]) -> list[list[Stream]]:
    """Return streams in groups that one pass can read for: of one network, with one adapter, or with and without it."""
    groups: dict[tuple[int, str | None], list[Stream]] = {}
    for stream in dict.fromkeys(streams):
        groups.setdefault((id(stream.network), stream.adapter), []).append(stream)
    for (network, adapter), members in list(groups.items()):
        if members[0].network.mixes(adapter):
            members += groups.pop((network, None), [])
    return list(groups.values())


def _read_in_parts(members: Sequence[Reading]) -> None:
    """Read in several passes of at most PASS_TOKENS tokens (or one row, if that alone is longer)."""
    for reading in members:
        parts: list[Reading] = []
        for row, tokens in zip(reading.rows, reading.tokens, strict=True):
            if not parts or parts[-1].length + len(tokens) > PASS_TOKENS:
                parts.append(Reading(reading.stream, [], [], reading.prompt, reading.guessed))
            parts[-1].rows.append(row)
            parts[-1].tokens.append(tokens)
        for part in parts:
            _read_pass([part])
        reading.hidden = torch.cat([part.hidden for part in parts])
        if not reading.prompt:
            reading.before = torch.cat([part.before for part in parts])


def _read_pass(batch: Sequence[Reading], branches: Sequence[Branches] = ()) -> None:
    """Run one packed pass and move every stream forward."""
    network = (batch or branches)[0].stream.network
    segments, flat = [], []
    adapters: list[str | None] = []
    for reading in batch:
        stream = reading.stream
        counts = [len(tokens) for tokens in reading.tokens]
        starts = [0 if reading.prompt else stream.lengths[row] for row in reading.rows]
        require_room(stream, reading.rows, starts, counts)
        stream.cache.reserve(
            max(start + count for start, count in zip(starts, counts, strict=True))
        )
        segments.append(Segment(stream.cache, reading.rows, starts, counts, network.device))
        flat.extend(token for tokens in reading.tokens for token in tokens)
        adapters.append(stream.adapter)
    places = []
    for member in branches:
        places.append(_lay_out(member, segments, flat))
        adapters += [member.stream.adapter] * (len(segments) - len(adapters))
    hidden = network.read(torch.tensor(flat, device=network.device), segments, adapters)
    for member, place in zip(branches, places, strict=True):
        member.hidden = hidden[torch.tensor(place, device=hidden.device)]
    end = 0
    for reading, segment in zip(batch, segments, strict=False):
        begin, end = end, end + segment.tokens
        reading.hidden = hidden[begin:end]
        _advance(reading, segment)
        if reading.stream.counting and not reading.prompt and not reading.guessed:
            _count(reading)


def _lay_out(branches: Branches, segments: list[Segment], flat: list[int]) -> list[int]:
    """Add continuations to a pass, one segment for each length, and return where each of their tokens stands in it."""
    stream = branches.stream
    require_room(stream, branches.rows, branches.starts, [len(ids) for ids in branches.tokens])
    stream.cache.reserve(max(branches.starts) + 1)
    begins: dict[int, int] = {}
    for width in sorted({len(ids) for ids in branches.tokens}):
        members = [i for i, ids in enumerate(branches.tokens) if len(ids) == width]
        rows = [branches.rows[i] for i in members]
        starts = [branches.starts[i] for i in members]
        counts = [width] * len(members)
        device = stream.network.device
        segments.append(Segment(stream.cache, rows, starts, counts, device, tail_width=width))
        for i in members:
            begins[i] = len(flat)
            flat.extend(branches.tokens[i])
            stream.spent[branches.rows[i]] += width
        stream.network.ledger.peeked += width * len(members)
    return [
        begins[i] + offset for i, ids in enumerate(branches.tokens) for offset in range(len(ids))
    ]


def require_room(
    stream: Stream, rows: Sequence[int], starts: Sequence[int], counts: Sequence[int]
) -> None:
    """Refuse rows that outgrow the network's context, where position embeddings would run out."""
    limit = stream.network.context
    long = [
        row for row, start, count in zip(rows, starts, counts, strict=True) if start + count > limit
    ]
    if long:
        what = f"prompt and response are longer than its context of {limit:,} tokens"
        raise RowFailure(
            stream.network.name, what, "shorten the prompt or lower --max-new-tokens", long
        )


def _advance(reading: Reading, segment: Segment) -> None:
    """Book what a reading has read: lengths, latest hidden states, and the states in front of every token."""
    stream, counts = reading.stream, segment.counts
    ends = np.cumsum(counts) - 1
    if not reading.prompt:
        reading.before = torch.roll(reading.hidden, 1, 0)
        reading.before[torch.from_numpy(ends - counts + 1)] = stream.hidden(reading.rows)
    stream.keep(reading.rows, reading.hidden[torch.from_numpy(ends)], reading.prompt)
    for row, count in zip(reading.rows, counts.tolist(), strict=True):
        if reading.prompt:
            stream.lengths[row] = stream.origins[row] = count
            stream.counted[row] = 0
            stream.intact[row] = True
            stream.totals[row] = 0.0
            stream.network.ledger.prefilled += count
        else:
            stream.lengths[row] += count
            stream.spent[row] += count


def _count(reading: Reading) -> None:
    """Add to each row's log-probability the tokens of a finished reading that are not counted yet."""
    stream = reading.stream
    places, owners, end = [], [], 0
    for row, tokens in zip(reading.rows, reading.tokens, strict=True):
        begin, end = end, end + len(tokens)
        index = stream.responses_read(row) - len(tokens)
        fresh = range(begin + max(0, stream.counted[row] - index), end)
        places.extend(fresh)
        owners.extend([row] * len(fresh))
        stream.counted[row] = max(stream.counted[row], stream.responses_read(row))
    if not places:
        return
    flat = [token for tokens in reading.tokens for token in tokens]
    before = reading.before[torch.tensor(places, device=reading.before.device)]
    logprobs = stream.token_logprobs(before, [flat[place] for place in places])
    stream.totals.index_add_(0, torch.tensor(owners), logprobs.to(stream.totals))
