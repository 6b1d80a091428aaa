"""Guidance in bytes by canonical tokenisations alone, worked out from fresh tokenisations and plain forward passes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.oracles_bytes import END, STOP, Rows, decoded, sums


class CanonicalSums:
    """P of text by one network along canonical tokenisations: the trunk's, and those of the text with candidates.

    Args:
        rows: row 0 of them is asked.
        side: 0 the tuned network, 1 its reference.
        choices: candidates whose canonical tokenisations are followed.
    """

    def __init__(self, rows: Rows, side: int, choices: Sequence[int]) -> None:
        self.pieces = rows.guide.pieces
        self.text = rows.guide.text
        self.brute = sums(rows.guide_name, rows.folders[side])
        self.context, self.pending = rows.context(0, side)
        response = rows.base.text(rows.states[0].tokens)
        self.trunk = self._tokens(rows, response)
        self.paths = {self.trunk[:count] for count in range(len(self.trunk) + 1)}
        """Beginnings, as tokens behind the context."""
        for piece in (rows.base.pieces[token] for token in choices):
            tokens = self._tokens(rows, response + (piece or b""))
            whole = self.pending + (piece or b"")
            beginnings = (tokens[:count] for count in range(len(tokens) + 1))
            self.paths |= {each for each in beginnings if inside(self.text(each), whole)}

    def _tokens(self, rows: Rows, response: bytes) -> tuple[int, ...]:
        """Return the tokens behind the context; none where the text has others than those of the context."""
        ids = rows.guide.tokenizer(rows.states[0].prompt.text + decoded(response)[0])["input_ids"]
        count = len(self.context)
        return tuple(ids[count:]) if ids[:count] == self.context else ()

    def chances(self, path: tuple[int, ...]) -> np.ndarray:
        return self.brute.next_probabilities((*self.context, *path))

    def mass(self, path: tuple[int, ...]) -> float:
        """Return the probability of a path."""
        steps = (self.chances(path[:place])[token] for place, token in enumerate(path))
        return float(np.prod([*steps]))

    def going_on(self, piece: bytes) -> float:
        """Return P(pending + piece): from each path, any token that covers the rest."""
        whole, total = self.pending + piece, 0.0
        for path in self.paths:
            if inside(self.text(path), whole):
                rest = whole[len(self.text(path)) :]
                over = [t for t, p in enumerate(self.pieces) if p and p.startswith(rest)]
                total += self.mass(path) * float(self.chances(path)[over].sum())
        return total

    def here(self) -> float:
        """Return P(pending): also paths that end where it does, which no token into them covers a second time."""
        total = 0.0
        for path in self.paths:
            done = self.text(path)
            if done == self.pending:
                total += self.mass(path)
            elif inside(done, self.pending):
                rest = self.pending[len(done) :]
                over = [t for t, p in enumerate(self.pieces) if p and p.startswith(rest)]
                over = [t for t in over if self.pieces[t] != rest or (*path, t) not in self.paths]
                total += self.mass(path) * float(self.chances(path)[over].sum())
        return total

    def ending(self) -> float:
        """Return P(pending, and then it ends), behind the trunk alone."""
        return self.mass(self.trunk) * float(self.chances(self.trunk)[[END, STOP]].sum())


def inside(beginning: bytes, text: bytes) -> bool:
    """Return whether a text begins with these bytes and has more."""
    return beginning != text and text.startswith(beginning)
