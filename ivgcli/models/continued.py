"""How texts would be tokenised with a token of another vocabulary behind them, for many texts and tokens at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ivgcli.models.byte_pieces import remember
from ivgcli.models.byte_vocabulary import ByteVocabulary
from ivgcli.models.canonical import Canonical
from ivgcli.models.retokenised import shared_prefix

UNKNOWN, NO, YES = 0, 1, 2
"""What is known of a text's last character and a piece's first one: whether the piece is tokenised apart."""

WITH_TEXT, SINGLE = -1, 1
"""Of a piece: that its tokens are not known without the text before it; that it is one token. A larger number is the
place of its tokens in a list."""

Tail = tuple[int, int, tuple[int, ...]]


class Continued:
    """Tells where a text with a piece behind it is tokenised into several tokens more.

    That is `Canonical.after`, of which two tables are remembered: whether a piece is tokenised apart from a text, which
    the last character of one and the first of the other decide, and what its tokens then are, whatever the text.

    Args:
        pieces: bytes that may follow a text, by number; None or empty for what adds nothing.
        vocabulary: whose tokens are asked for.
    """

    def __init__(self, pieces: Sequence[bytes | None], vocabulary: ByteVocabulary) -> None:
        self.pieces = pieces
        self.vocabulary = vocabulary
        self._added = [_normalised(piece or b"", vocabulary) for piece in pieces]
        """Each piece as the vocabulary has it; None unless it is of whole characters."""
        self._written = np.array([bool(piece) for piece in pieces])
        firsts = [(piece or b"").decode()[:1] for piece in self._added]
        self._characters = sorted({*firsts})
        known = {first: number for number, first in enumerate(self._characters)}
        self._firsts = np.array([known[first] for first in firsts], dtype=np.int64)
        """The number of each piece's first character."""
        self._tails = np.where(self._firsts == known.get("", -1), WITH_TEXT, UNKNOWN)
        """UNKNOWN, WITH_TEXT, SINGLE or a place in `_lists`."""
        self._lists: list[tuple[int, ...]] = [(), ()]
        self._apart: dict[str, NDArray[np.uint8]] = {}
        """For each last character of a text, UNKNOWN, NO or YES for each first character of a piece."""

    def tails(self, texts: Sequence[Canonical], numbers: NDArray[np.int64]) -> list[list[Tail]]:
        """Return (column, kept, tail) of the pieces behind each text that are tokenised into several tokens more.

        `kept` ids of the text stay as they are; `tail` follows them. Behind half a character single tokens are
        returned, too: they end it.

        Args:
            texts: R texts.
            numbers: (R, C) of pieces.
        """
        apart = self._are_apart(texts, numbers)
        self._settle(np.unique(numbers[apart & (self._tails[numbers] == UNKNOWN)]).tolist())
        tails = np.where(apart, self._tails[numbers], WITH_TEXT)
        found: list[list[Tail]] = [[] for _ in texts]
        for row, column in np.argwhere(tails > SINGLE).tolist():
            found[row].append((column, len(texts[row].ids), self._lists[tails[row, column]]))
        rows, columns = np.nonzero((tails == WITH_TEXT) & self._written[numbers])
        places = zip(rows.tolist(), columns.tolist(), numbers[rows, columns].tolist(), strict=True)
        segments = self._segments(texts, places)
        tokenised = self.vocabulary.canonical_all(
            [(segment, texts[row].before) for row, _, segment in segments]
        )
        own = [text.ids[text.root :] for text in texts]
        for (row, column, _), fresh in zip(segments, tokenised, strict=True):
            text, ids = texts[row], own[row]
            kept = shared_prefix(ids, fresh)
            if len(fresh) - kept > 1 or text.held:
                found[row].append((column, text.root + kept, fresh[kept:]))
        for each in found:
            each.sort()
        return found

    def _segments(
        self, texts: Sequence[Canonical], places: Iterable[tuple[int, int, int]]
    ) -> list[tuple[int, int, bytes]]:
        """Return (row, column, text behind the last closed place with a piece) for (row, column, piece's number)."""
        plain = [
            None if text.held or self.vocabulary.composes else bytes(text.text[text.root_place :])
            for text in texts
        ]
        found = []
        for row, column, number in places:
            stem, added = plain[row], self._added[number]
            if stem is not None and added is not None:
                found.append((row, column, stem + added))
            elif (segment := texts[row].grown(self.pieces[number] or b"")) is not None:
                found.append((row, column, segment))
        return found

    def _are_apart(
        self, texts: Sequence[Canonical], numbers: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Return whether each piece (R, C) is tokenised apart from the text that it follows."""
        lasts = [text.last for text in texts]
        tables = np.stack([self._table(last) for last in lasts])
        firsts = self._firsts[numbers]
        known = np.take_along_axis(tables, firsts, 1)
        usable = self._tails[numbers] != WITH_TEXT
        rows, columns = np.nonzero((known == UNKNOWN) & usable)
        for row, first in {*zip(rows.tolist(), firsts[rows, columns].tolist(), strict=True)}:
            before = lasts[row].encode()
            text = before + self._characters[first].encode()
            tables[row, first] = YES if self.vocabulary.closed(text, len(before)) else NO
            self._table(lasts[row])[first] = tables[row, first]
        found: NDArray[np.bool_] = (np.take_along_axis(tables, firsts, 1) == YES) & usable
        return found

    def _table(self, last: str) -> NDArray[np.uint8]:
        """Return what is known of a text's last character; without one, nothing is tokenised apart."""
        if last not in self._apart:
            state = UNKNOWN if last else NO
            table = np.full(max(1, len(self._characters)), state, dtype=np.uint8)
            remember(self._apart, last, table, 2000)
        return self._apart[last]

    def _settle(self, numbers: Sequence[int]) -> None:
        """Find the tokens of pieces that are tokenised apart."""
        known = self.vocabulary
        added = [self._added[number] or b"" for number in numbers]
        anchors = [known.anchor(piece[0]) for piece in added]
        apart = [place for place, anchor in enumerate(anchors) if anchor is not None]
        tails = known.canonical_all([(added[place], anchors[place] or "") for place in apart])
        self._tails[numbers] = WITH_TEXT
        for place, tail in zip(apart, tails, strict=True):
            self._tails[numbers[place]] = len(self._lists) if len(tail) > 1 else SINGLE
            if len(tail) > 1:
                self._lists.append(tail)


def _normalised(piece: bytes, vocabulary: ByteVocabulary) -> bytes | None:
    try:
        return vocabulary.normalised(piece.decode()).encode()
    except UnicodeDecodeError:
        return None
