"""The byte strings of a vocabulary in the order of their bytes: which begin with a text, and which begin it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEMORY = 100_000
"""Answers remembered of each kind of question, at most: some 30 MB each."""


class BytePieces:
    """The bytes of every id, sorted.

    Args:
        pieces: of every id; None for one that stands for no text.
    """

    def __init__(self, pieces: Sequence[bytes | None]) -> None:
        self.pieces = list(pieces)
        """The bytes of every id; None for special tokens, the unknown token and ids without a token."""
        self.size = len(self.pieces)
        """1 + the largest id."""
        listed = sorted((piece, token) for token, piece in enumerate(self.pieces) if piece)
        self.sorted = [piece for piece, _ in listed]
        """The pieces in the order of their bytes."""
        self.order = np.array([token for _, token in listed], dtype=np.int64)
        """Their ids (N,)."""
        self.places = {token: place for place, token in enumerate(self.order.tolist())}
        """The place of every id in `order`."""
        self.longest = max(map(len, self.sorted))
        """Bytes of the longest piece."""
        self.ids: dict[bytes, tuple[int, ...]] = {}
        """The ids of every piece: a byte token and a character can be one and the same byte."""
        for piece, token in listed:
            self.ids[piece] = (*self.ids.get(piece, ()), token)
        self.beside = neighbours(self.sorted)
        """Whether some piece has the second byte behind the first (256, 256)."""
        self._spans: dict[bytes, tuple[int, int]] = {}
        self._heads: dict[bytes, tuple[int, ...]] = {}

    def text(self, ids: Collection[int]) -> bytes:
        """Return the bytes of ids; special and unknown tokens have none."""
        return b"".join(self.pieces[token] or b"" for token in ids if token < self.size)

    def span(self, prefix: bytes) -> tuple[int, int]:
        """Return the range of places in `order` of the pieces that begin with `prefix` (bytes)."""
        found = self._spans.get(prefix)
        if found is None:
            found = self.bisected(prefix)
            remember(self._spans, prefix, found)
        return found

    def bisected(self, prefix: bytes) -> tuple[int, int]:
        """Return what `span` does without remembering it."""
        after = prefix.rstrip(b"\xff")
        begin = bisect_left(self.sorted, prefix)
        if not after:
            return begin, len(self.sorted)
        return begin, bisect_left(self.sorted, after[:-1] + bytes([after[-1] + 1]), begin)

    def heads(self, text: bytes) -> tuple[int, ...]:
        """Return the ids whose piece is a beginning of `text` (bytes) but not all of it, shortest first."""
        found = self._heads.get(text)
        if found is None:
            most = min(len(text) - 1, self.longest)
            found = tuple(
                token for size in range(1, most + 1) for token in self.ids.get(text[:size], ())
            )
            remember(self._heads, text, found)
        return found


def neighbours(pieces: Collection[bytes]) -> NDArray[np.bool_]:
    """Return whether some piece has the second byte behind the first (256, 256)."""
    everything = np.frombuffer(b"".join(pieces), dtype=np.uint8)
    inside = np.ones(len(everything), dtype=bool)
    inside[np.cumsum([len(piece) for piece in pieces], dtype=np.int64) - 1] = False
    places = np.flatnonzero(inside)
    beside = np.zeros((256, 256), dtype=bool)
    beside[everything[places], everything[places + 1]] = True
    return beside


def remember(memory: dict[Any, Any], key: Any, answer: Any, most: int = MEMORY) -> None:
    """Keep an answer; when there are too many (`most`), all are forgotten."""
    if len(memory) >= most:
        memory.clear()
    memory[key] = answer
