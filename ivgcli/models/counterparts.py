"""Which id of one vocabulary says what an id of another says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from ivgcli.models.byte_vocabulary import ByteVocabulary
from ivgcli.models.probe import segmented

ROLES = ("bos", "pad", "unk")
"""What special tokens are for, besides the end of a text."""


@dataclass(frozen=True)
class Reading:
    """What a tokenizer has and does, as far as two are compared by it."""

    strings: dict[str, int]
    """Token → id, added and special tokens included."""
    cut: dict[str, tuple[int, ...]]
    """The ids of every text of the probe."""
    roles: dict[str, int | None]
    """Role → id of the special tokens that transformers knows; `eos` is one."""
    special: frozenset[int]
    """Ids of all special tokens."""

    @cached_property
    def key(self) -> int:
        """A hash of all this, good within one process."""
        parts = (self.strings.items(), self.cut.items(), self.roles.items(), self.special)
        return hash(tuple(map(frozenset, parts)))


_READ: WeakKeyDictionary[Any, tuple[int, Reading]] = WeakKeyDictionary()


def reading_of(tokenizer: Any) -> Reading:
    """Return what a tokenizer has and does, found out once for each tokenizer object."""
    size, reading = _READ.get(tokenizer, (-1, None))
    if reading is None or size != len(tokenizer):  # tokens may be added to a tokenizer later
        added = tokenizer.added_tokens_decoder.items()
        reading = Reading(
            strings=tokenizer.get_vocab(),
            cut=segmented(tokenizer),
            roles={role: getattr(tokenizer, f"{role}_token_id") for role in ("eos", *ROLES)},
            special=frozenset(token for token, each in added if each.special),
        )
        _READ[tokenizer] = (len(tokenizer), reading)
    return reading


class Side:
    """One of two tokenizers, with what its network's head can say.

    Args:
        tokenizer: of transformers.
        width: outputs of the head; None: one for each token.
        eos: ids that end a text, the usual one first; empty: the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, width: int | None, eos: Sequence[int]) -> None:
        self.tokenizer, self.width, self.eos = tokenizer, width, tuple(eos)
        self.reading = reading_of(tokenizer)
        self.strings = self.reading.strings
        self.key = (self.reading.key, width, self.eos)
        """What a comparison depends on."""

    @cached_property
    def usable(self) -> dict[int, str]:
        """Id → string of the tokens that the head has an output for."""
        width = self.width
        return {
            token: text for text, token in self.strings.items() if width is None or token < width
        }

    @property
    def size(self) -> int:
        """1 + the largest id that is a token and can be emitted."""
        return 1 + max(self.usable, default=-1)

    @property
    def usual_end(self) -> int | None:
        """The id that ends a text where there are several; None: none does that can be emitted."""
        named = (*self.eos, self.reading.roles["eos"])
        return next((token for token in named if token in self.usable), None)


def counterparts(
    ours: Side, theirs: Side, base: ByteVocabulary, guide: ByteVocabulary
) -> tuple[int, ...] | None:
    """Return the guide's id for every id that the base can emit; None if one of them has none.

    A text token has the token of the same string, or else one of the same bytes that no other has: a byte token and
    a character can be one and the same byte. A special token has the one of the same string, or else of its role;
    what ends a text goes with what ends a text. Even then None is returned if the two cut the probe into other tokens.

    Args:
        ours: the base's side.
        theirs: the guide's.
        base: the base's bytes.
        guide: the guide's.
    """
    table: dict[int, int] = {}
    rest = []
    for token in range(ours.size):
        text = ours.usable.get(token)
        if text is None:
            return None
        other = theirs.strings.get(text)
        if other not in theirs.usable or not _agree(token, other, base, guide):
            other = None
        piece = base.pieces[token]
        if other is None and piece is not None:
            rest.append((token, piece))
            continue
        if other is None:
            other = _by_role(token, ours, theirs, base, guide)
        if other is None:
            return None
        table[token] = other
    taken = set(table.values())
    for token, piece in rest:
        free = (each for each in guide.ids.get(piece, ()) if each not in taken)
        spare = next((each for each in free if each in theirs.usable), None)
        if spare is None:
            return None
        table[token] = spare
        taken.add(spare)
    cut = {name: tuple(map(table.get, ids)) for name, ids in ours.reading.cut.items()}
    return tuple(table[token] for token in range(ours.size)) if cut == theirs.reading.cut else None


def _agree(token: int, other: int, base: ByteVocabulary, guide: ByteVocabulary) -> bool:
    """Return whether two tokens stand for the same bytes, and both or neither for the end of a text."""
    same = base.pieces[token] == guide.pieces[other]
    return same and (token in base.eos) == (other in guide.eos)


def _by_role(
    token: int, ours: Side, theirs: Side, base: ByteVocabulary, guide: ByteVocabulary
) -> int | None:
    """Return the guide's special token of the same role as one of the base's; None: there is none."""
    if token in base.eos:
        return theirs.usual_end
    for role in ROLES:
        other = theirs.reading.roles[role]
        if ours.reading.roles[role] == token and other in theirs.usable and other not in guide.eos:
            return other
    return None
