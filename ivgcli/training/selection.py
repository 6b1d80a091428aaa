"""Which pairs are trained on, which are kept for the report, and which are left out and why."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ivgcli.errors import RecordError
from ivgcli.records import Pair, Prompt
from ivgcli.training.sequences import Encoder, Example

LEAST_HELD_OUT = 2
"""Fewer held-out pairs than this say nothing."""


class Named(Protocol):
    """A record with an id."""

    @property
    def id(self) -> str:
        """The record's id."""
        ...


Record = TypeVar("Record", bound=Named)


@dataclass(frozen=True)
class EncodedPair:
    """A preference pair in tokens."""

    chosen: Example
    rejected: Example


@dataclass
class Selection:
    """Pairs in tokens, and how many were left out or cut, by reason."""

    pairs: list[EncodedPair]
    records: list[Pair] = field(default_factory=list)
    """The records of `pairs`."""
    left_out: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    """Pairs of which a response was cut at `max_length`."""


def encode_pairs(
    pairs: Sequence[Pair], encoder: Encoder, max_length: int, cutting: bool
) -> Selection:
    """Put pairs into tokens, leaving out those that nothing can be learnt from.

    Args:
        pairs: the records.
        encoder: how the network reads them.
        max_length: longest prompt and response together, in tokens.
        cutting: whether a response that is too long is cut; if not, its pair is left out, for a
            reward is of the whole response.

    Raises:
        RecordError: a prompt does not suit the network, or no pair is left.
    """
    found = Selection([])
    for pair in pairs:
        if pair.chosen == pair.rejected:
            found.left_out["chosen and rejected are equal"] += 1
            continue
        both = [
            encoder.encode(pair.prompt, text, identity=f"{pair.id}/{name}")
            for name, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
        ]
        short = [cut(each, max_length) for each in both]
        if len(both[0].prompt_ids) >= max_length:
            found.left_out[f"the prompt alone has {max_length} tokens or more"] += 1
        elif not cutting and any(len(each.ids) > max_length for each in both):
            found.left_out[f"a response ends beyond {max_length} tokens"] += 1
        elif short[0].response_ids == short[1].response_ids:
            found.left_out[f"chosen and rejected are equal in {max_length} tokens"] += 1
        else:
            found.cut += any(len(each.ids) > max_length for each in both)
            found.pairs.append(EncodedPair(*short))
            found.records.append(pair)
    if not found.pairs:
        reasons = "; ".join(f"{count:,}: {why}" for why, count in found.left_out.items())
        what = f"none of {len(pairs):,} pairs can be trained on ({reasons})"
        raise RecordError("pairs", what, "mend them, or raise data.max_length")
    return found


def cut(example: Example, max_length: int) -> Example:
    """Return an example without what is beyond `max_length`."""
    room = max_length - len(example.prompt_ids)
    if len(example.response_ids) <= room:
        return example
    return Example(
        example.id, example.prompt_ids, example.response_ids[:room], False, example.reward
    )


def split(
    records: Sequence[Record],
    held_out: float | int,
    seed: int,
    keys: Callable[[Record], Sequence[str]],
) -> tuple[list[Record], list[Record]]:
    """Keep records from training, so that nothing they hold is trained on either.

    Records that share a key (a prompt, a response) go to the same side. Which side that is depends
    on the seed and on their contents alone, not on their order.

    Args:
        records: all of them.
        held_out: a share below 1, or how many.
        seed: of the choice.
        keys: what a record must not share across the sides.

    Returns:
        Those to train on and those held out, in the order given; none are held out for 0.

    Raises:
        RecordError: they share so much that the sides cannot be told apart.
    """
    wanted = round(held_out * len(records)) if isinstance(held_out, float) else held_out
    if wanted <= 0:
        return list(records), []
    groups = _groups(records, keys)
    groups.sort(key=lambda group: _draw(seed, min(key for i in group for key in keys(records[i]))))
    kept: set[int] = set()
    for group in groups:
        if len(kept) >= wanted:
            break
        if len(group) <= wanted and len(kept) + len(group) <= 1.5 * wanted:
            kept.update(group)
    if len(kept) < min(wanted, LEAST_HELD_OUT) or len(kept) == len(records):
        what = f"{wanted} of {len(records)} records cannot be held out: they share prompts or responses"
        hint = "give data.held_out a file of other pairs, or 0"
        raise RecordError("data.held_out", what, hint)
    return (
        [record for index, record in enumerate(records) if index not in kept],
        [record for index, record in enumerate(records) if index in kept],
    )


def keys_of(records: Sequence[Pair] | Sequence[Prompt]) -> Callable[[Any], Sequence[str]]:
    """Return what a record must not share across the sides.

    That is its prompt, or its responses if all pairs answer the same prompt.
    """
    one = len({_spoken(record) for record in records}) == 1

    def keys(record: Pair | Prompt) -> Sequence[str]:
        if one and isinstance(record, Pair):
            return (record.chosen, record.rejected)
        return (_spoken(record),)

    return keys


def _spoken(record: Pair | Prompt) -> str:
    """Return a record's prompt as one string."""
    prompt = record.prompt if isinstance(record, Pair) else record
    return prompt.text if prompt.text is not None else repr(prompt.messages)


def _groups(records: Sequence[Record], keys: Callable[[Record], Sequence[str]]) -> list[list[int]]:
    """Return the indices of records that share a key, directly or through others (union-find)."""
    leader = list(range(len(records)))

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    first: dict[str, int] = {}
    for index, record in enumerate(records):
        for key in keys(record):
            leader[find(index)] = find(first.setdefault(key, index))
    groups: dict[int, list[int]] = {}
    for index in range(len(records)):
        groups.setdefault(find(index), []).append(index)
    return list(groups.values())


def _draw(seed: int, key: str) -> bytes:
    """Return a group's place in a random order that depends on seed and content only."""
    return hashlib.blake2b(f"{seed}/{key}".encode("utf-8", "surrogatepass")).digest()
