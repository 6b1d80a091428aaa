"""What the base's tokens add to a text, and where in a guide's byte order the tokens stand that cover it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ivgcli.models.byte_pieces import BytePieces, remember

Ints = NDArray[np.int64]


class Additions(BytePieces):
    """The bytes that each token of the base adds, as tables over their numbers.

    A token's number is its id. Where the base's decoder leaves out a space at the beginning of a text, each token has a
    second number, under which it stands without that space; the last number is of everything that adds nothing.

    Args:
        pieces: the bytes of the base's ids; None for those without text.
        opens_with_space: whether the base's decoder leaves out a space at the beginning of a text.
    """

    def __init__(self, pieces: Sequence[bytes | None], opens_with_space: bool = False) -> None:
        bare = [piece and piece.removeprefix(b" ") for piece in pieces] if opens_with_space else []
        super().__init__([*pieces, *bare, None])
        self.tokens = len(pieces)
        """The base's ids."""
        self.firsts = np.array([piece[0] if piece else 0 for piece in self.pieces], dtype=np.uint8)
        """(N,) the first byte of each; 0 without text."""
        self.sizes = np.array([len(piece or b"") for piece in self.pieces], dtype=np.int64)
        """(N,) bytes of each."""
        self.ranks = np.full(self.size, -1, dtype=np.int64)
        """(N,) the place of each in the order of their bytes; −1 without text."""
        self.ranks[self.order] = np.arange(len(self.order))

    def numbers(self, ids: Ints, opening: Sequence[bool]) -> Ints:
        """Return the numbers (B, C) of the base's ids (B, C).

        Args:
            ids: those of a padded head included.
            opening: (B,) whether the decoder would leave out a space at the beginning of what is added.
        """
        shift = self.tokens * np.asarray(opening, dtype=np.int64)
        return np.where(ids < self.tokens, ids + shift[:, None], self.size - 1)


class Ranges:
    """The ranges of a guide's tokens that begin with what may follow a text.

    Args:
        additions: what may follow.
        guide: the guide's tokens in the order of their bytes.
    """

    def __init__(self, additions: Additions, guide: BytePieces) -> None:
        self.additions = additions
        self.guide = guide
        self.begins = np.zeros(additions.size, dtype=np.int64)
        """(N,) first place of the guide's tokens that begin with an addition."""
        self.ends = np.zeros(additions.size, dtype=np.int64)
        """(N,) the place behind their last; where no token does, that is the first one, too."""
        for piece, numbers in additions.ids.items():
            begin, end = guide.bisected(piece)
            self.begins[list(numbers)], self.ends[list(numbers)] = begin, end
        self._followers: dict[bytes, NDArray[np.bool_] | None] = {}

    def followers(self, back: bytes) -> NDArray[np.bool_] | None:
        """Return which bytes (256,) some token of the guide has behind `back`, with which it begins; None: no byte."""
        if back not in self._followers:
            begin, end = self.guide.span(back)
            size = len(back)
            found = {piece[size] for piece in self.guide.sorted[begin:end] if len(piece) > size}
            mask = np.zeros(256, dtype=bool)
            mask[list(found)] = True
            remember(self._followers, back, mask if found else None)
        return self._followers[back]

    def behind(self, numbers: Ints, backs: Sequence[bytes]) -> Ints:
        """Return (Q, 4) row, column, begin and end of the tokens that cover what is pending and an addition.

        Args:
            numbers: (K, C) of additions.
            backs: (K,) what is pending before those of each row; all have `followers`.
        """
        additions = self.additions
        masks = np.stack([mask for back in backs if (mask := self.followers(back)) is not None])
        fitting = np.take_along_axis(masks, additions.firsts[numbers].astype(np.int64), 1)
        rows, columns = np.nonzero(fitting & (additions.sizes[numbers] > 0))
        pieces = (additions.pieces[number] for number in numbers[rows, columns].tolist())
        places = zip(rows.tolist(), pieces, strict=True)
        return self._spans(rows, columns, [backs[row] + (piece or b"") for row, piece in places])

    def beyond(self, numbers: Ints, aheads: Sequence[bytes]) -> Ints:
        """Return (Q, 4) row, column, begin and end of the tokens that cover what is left of an addition.

        Args:
            numbers: (K, C) of additions.
            aheads: (K,) what those of each row have to begin with, and which is covered.
        """
        additions = self.additions
        begins, ends = np.array([additions.span(ahead) for ahead in aheads]).T[:, :, None]
        covered = np.array([len(ahead) for ahead in aheads])[:, None]
        ranks = additions.ranks[numbers]
        fitting = (ranks >= begins) & (ranks < ends) & (additions.sizes[numbers] > covered)
        rows, columns = np.nonzero(fitting)
        pieces = (additions.pieces[number] for number in numbers[rows, columns].tolist())
        places = zip(rows.tolist(), pieces, strict=True)
        return self._spans(
            rows, columns, [(piece or b"")[len(aheads[row]) :] for row, piece in places]
        )

    def _spans(self, rows: Ints, columns: Ints, rests: list[bytes]) -> Ints:
        spans = np.array([self.guide.span(rest) for rest in rests], dtype=np.int64).reshape(-1, 2)
        found = np.column_stack([rows, columns, spans])
        return found[spans[:, 0] < spans[:, 1]]
