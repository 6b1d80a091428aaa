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
        shared = [
            token in base.eos or (piece is not None and piece in guide.ids)
            for token, piece in enumerate(base.pieces)
        ]
        self._shared = torch.tensor(shared)
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

    def value(
        self,
        rows: Sequence[int],
        logprobs: Tensor,
        weights: np.ndarray,
        widths: np.ndarray,
        passes: Sequence[int],
    ) -> None:
        """Count one step's values.

        Args:
            rows: B rows.
            logprobs: (B, V) the base's log-probabilities.
            weights: (B, C) its probabilities of the candidates.
            widths: (B, C) nats between the bounds of each candidate's value.
            passes: (B,) further passes that each row took part in.
        """
        width = min(logprobs.shape[1], len(self._shared))
        outside = torch.nonzero(~self._shared[:width])[:, 0].to(logprobs.device)
        mass = logprobs.index_select(1, outside).exp().sum(-1).tolist()
        mean = (weights * np.minimum(widths, WIDEST)).sum(-1) / np.maximum(weights.sum(-1), 1e-30)
        for row, beyond, nats, count in zip(rows, mass, mean.tolist(), passes, strict=True):
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
