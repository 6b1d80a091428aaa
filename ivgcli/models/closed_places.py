"""Places in a text at which its tokens on either side have no bearing on each other."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from typing import Any

from ivgcli.models.byte_pieces import BytePieces, neighbours
from ivgcli.models.tokenizer_kinds import BYTE_LEVEL, UNIGRAM, members

FOLLOWERS = ("", "x", "X", " ", "\n", "0", ".", "'s", "é", "。")
"""What may follow a place at which words are said to end."""


class ClosedPlaces:
    r"""What a tokenizer's rules say of the places in a text.

    Every merge of a BPE, and every arc of a unigram's lattice, is a piece: where no piece has the last byte in front
    of a place and the first behind it beside each other, what stands before is tokenised without regard to what
    stands, or will come to stand, behind. A tokenizer that cuts text into words by a regular expression, which can
    look further (`\s+(?!\S)` leaves the last space of several to the next word), must also end a word there in any
    case: between a letter or digit and something else, and before a space that is the first one.

    Args:
        core: the tokenizer, of the `tokenizers` library.
        described: its tokenizer.json.
        kind: from `kind_of`.
        index: its pieces.
        literal: the pieces of added tokens that are found in a text before it is cut into words.
    """

    def __init__(
        self,
        core: Any,
        described: dict[str, Any],
        kind: str,
        index: BytePieces,
        literal: Collection[bytes],
    ) -> None:
        self.core = core
        self.ids = index.ids
        composes = any(part["type"] == "NFC" for part in members(described.get("normalizer")))
        split = members(described.get("pre_tokenizer"))
        by_rule = any(
            (part["type"] == "Split" and "Regex" in part["pattern"])
            or (part["type"] == "ByteLevel" and part.get("use_regex", True))
            for part in split
        )  # fmt: skip
        self.looks_around = by_rule or composes
        """Whether what stands further off can decide if a word ends at a place, too."""
        # Where words are cut, only an added token that is found before that can lie across the ends of words.
        crossed = neighbours(literal) if by_rule else index.beside
        self._crossed = [bytes(row) for row in crossed]  # a look into bytes is ten times as fast
        self._fuses = kind != BYTE_LEVEL and not described["model"].get("byte_fallback")
        # Equally good segmentations of a lattice are told apart by rounding, which depends on all that is in it.
        self._splits = kind == UNIGRAM and any(
            part["type"] == "Metaspace" and part.get("split", True) for part in split
        )
        self._word_ends: dict[tuple[str, str], bool] = {}

    def closed(self, text: bytes | bytearray, place: int) -> bool:
        """Return whether the tokens on either side of `place` (0 < place ≤ len(text)) have no bearing on each other."""
        last = text[place - 1]
        if place == len(text):
            open_ended = self.looks_around or self._splits or any(self._crossed[last])
            if open_ended or not _whole(text):
                return False
        elif text[place] & 0xC0 == 0x80 or self._crossed[last][text[place]]:
            return False
        elif self._splits:
            return text[place] == 0x20
        if not (self.looks_around or self._fuses):
            return True
        before = text[max(0, place - 4) : place].decode(errors="ignore")[-1:]
        after = text[place : place + 4].decode(errors="ignore")[:1]
        if self._fuses and before.encode() not in self.ids and after.encode() not in self.ids:
            return False  # one unknown token may stand for both
        return not self.looks_around or self._ends_word(before, after)

    def _ends_word(self, before: str, after: str) -> bool:
        """Return whether a word ends between two characters, whatever stands further off."""
        found = self._word_ends.get((before, after))
        if found is None:
            found = self._word_ends[before, after] = bool(before and after) and (
                _unlike(before, after) and self._cuts(before, after)
            )
        return found

    def _cuts(self, before: str, after: str) -> bool:
        """Return whether the pre-tokenizer ends a word between two characters in each of several texts."""
        if self.core.pre_tokenizer is None:
            return True
        texts = (f"x {before}{after}{more}" for more in FOLLOWERS)
        cut = self.core.pre_tokenizer.pre_tokenize_str
        return all(any(begin == 3 for _, (begin, _) in cut(text)) for text in texts)


def _unlike(before: str, after: str) -> bool:
    """Return whether two characters are such that the known regular expressions end a word between them."""
    if after == " ":
        return not before.isspace()
    # Letters take marks and further letters; "'" may begin the end of a word ('s, 'll).
    others = unicodedata.category(after)[0] not in "LNM" and after != "'"
    return others and unicodedata.category(before)[0] in "LN"


def _whole(text: bytes | bytearray) -> bool:
    """Return whether the last character of a text has all its bytes."""
    tail = bytes(text[-4:])
    begin = max((place for place in range(len(tail)) if tail[place] & 0xC0 != 0x80), default=0)
    try:
        tail[begin:].decode()
    except UnicodeDecodeError:
        return False
    return True
