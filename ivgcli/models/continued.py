"""How texts would be tokenised with a token of another vocabulary behind them, for many texts and tokens at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ivgcli.models.byte_pieces import remember
from ivgcli.models.byte_vocabulary import ByteVocabulary
from ivgcli.models.canonical import Canonical

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
        self._characters: list[str] = []
        known: dict[str, int] = {}
        self._firsts = np.zeros(len(pieces), dtype=np.int64)
        """The number of each piece's first character."""
        self._tails = np.zeros(len(pieces), dtype=np.int64)
        """UNKNOWN, WITH_TEXT, SINGLE or a place in `_lists`."""
        self._lists: list[tuple[int, ...]] = [(), ()]
        for number, piece in enumerate(pieces):
            try:
                first = (piece or b"").decode()[:1]
            except UnicodeDecodeError:
                first = ""
            if not first:
                self._tails[number] = WITH_TEXT
            elif first not in known:
                known[first] = len(self._characters)
                self._characters.append(first)
            self._firsts[number] = known.get(first, 0)
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
        for number in np.unique(numbers[apart & (self._tails[numbers] == UNKNOWN)]).tolist():
            self._tails[number] = self._place(self.pieces[number] or b"")
        tails = np.where(apart, self._tails[numbers], WITH_TEXT)
        found: list[list[Tail]] = [[] for _ in texts]
        pieces = self.pieces
        rows, columns = np.nonzero(tails != SINGLE)
        places, which = tails[rows, columns].tolist(), numbers[rows, columns].tolist()
        for row, column, place, number in zip(
            rows.tolist(), columns.tolist(), places, which, strict=True
        ):
            text = texts[row]
            if place != WITH_TEXT:
                found[row].append((column, len(text.ids), self._lists[place]))
            elif piece := pieces[number]:
                kept, tail = text.retokenised(piece)
                if len(tail) > 1 or text.held:
                    found[row].append((column, kept, tail))
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
        return (np.take_along_axis(tables, firsts, 1) == YES) & usable

    def _table(self, last: str) -> NDArray[np.uint8]:
        """Return what is known of a text's last character; without one, nothing is tokenised apart."""
        if last not in self._apart:
            state = UNKNOWN if last else NO
            table = np.full(max(1, len(self._characters)), state, dtype=np.uint8)
            remember(self._apart, last, table, 2000)
        return self._apart[last]

    def _place(self, piece: bytes) -> int:
        """Return what `_tails` says of a piece that is tokenised apart."""
        added = self.vocabulary.normalised(piece.decode()).encode()
        anchor = self.vocabulary.anchor(added[0]) if added else None
        if anchor is None:
            return WITH_TEXT
        tail = self.vocabulary.canonical(added, anchor)
        if len(tail) < 2:
            return SINGLE
        self._lists.append(tail)
        return len(self._lists) - 1
