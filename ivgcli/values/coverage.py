"""How well one vocabulary can say what another means, measured while it guides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor

from ivgcli.models.byte_vocabulary import ByteVocabulary

WIDEST = 10.0
"""Nats; a wider interval counts as this one, since one whose lower bound is 0 has no width."""


@dataclass
class Tally:
    """What is counted for one row."""

    steps: int = 0
    outside: float = 0.0
    width: float = 0.0
    followed: int = 0
    aligned: int = 0
    passes: int = 0

    def __add__(self, other: Tally) -> Tally:
        """Return both together."""
        return Tally(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))


class Coverage:
    """Counts, for every row, what guidance across vocabularies had to bridge.

    Args:
        base: the base's vocabulary.
        guide: the guide's.
    """

    def __init__(self, base: ByteVocabulary, guide: ByteVocabulary) -> None:
        self._outside = [
            token
            for token, piece in enumerate(base.pieces)
            if token not in base.eos and (piece is None or piece not in guide.ids)
        ]
        self._index: Tensor | None = None
        """The same, of those that the base's head has, where its log-probabilities are."""
        self.rows: list[Tally] = []

    def resize(self, rows: int) -> None:
        """Forget all rows."""
        self.rows = [Tally() for _ in range(rows)]

    def start(self, row: int) -> None:
        """Begin counting."""
        self.rows[row] = Tally()

    def follow(self, row: int, aligned: bool) -> None:
        """Count a token of the base that has been followed.

        Args:
            row: whose.
            aligned: whether the guide's tokens before it stayed as they were and ended where it began.
        """
        self.rows[row].followed += 1
        self.rows[row].aligned += aligned

    def outside(self, logprobs: Tensor) -> Tensor:
        """Return the base's probability (B,) of strings that the guide has no token for, from log-probabilities."""
        if self._index is None or self._index.device != logprobs.device:
            within = [token for token in self._outside if token < logprobs.shape[1]]
            self._index = torch.tensor(within, dtype=torch.int64, device=logprobs.device)
        return logprobs.index_select(1, self._index).exp().sum(-1)

    def value(
        self,
        rows: Sequence[int],
        outside: Sequence[float],
        weights: np.ndarray,
        widths: np.ndarray,
        passes: Sequence[int],
    ) -> None:
        """Count one step's values.

        Args:
            rows: B rows.
            outside: (B,) from the method of that name.
            weights: (B, C) its probabilities of the candidates.
            widths: (B, C) nats between the bounds of each candidate's value.
            passes: (B,) further passes that each row took part in.
        """
        mean = (weights * np.minimum(widths, WIDEST)).sum(-1) / np.maximum(weights.sum(-1), 1e-30)
        for row, beyond, nats, count in zip(rows, outside, mean.tolist(), passes, strict=True):
            tally = self.rows[row]
            tally.steps += 1
            tally.outside += beyond
            tally.width += nats
            tally.passes += count


def summed(tallies: Sequence[Tally]) -> dict[str, float] | None:
    """Return what a record says of its rows, or None if nothing was guided across vocabularies.

    Returns:
        `outside`: mean probability of the base on strings that the guide has no token for;
        `aligned`: share of tokens behind which the guide's tokenisation of the text stayed as it was;
        `width`: mean width in nats of the interval that a candidate's value is known to lie in, by the base's
        probability; `passes`: further passes.
    """
    total = sum(tallies, Tally())
    if not total.steps:
        return None
    return {
        "outside": total.outside / total.steps,
        "aligned": total.aligned / max(total.followed, 1),
        "width": total.width / total.steps,
        "passes": total.passes,
    }
