"""Which hypotheses of a chunk-level beam search live on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Candidate:
    """One hypothesis at the end of a chunk."""

    number: int
    """Canonical number in this chunk: rank of the parent times K, plus k."""
    value: float
    """Its value; ranking and the choice of the winner use `score`."""
    score: float
    """The value, or its difference to the parent's value."""
    finished: bool


class Selection(NamedTuple):
    """The outcome of one ranking."""

    parents: list[int]
    """Numbers of the candidates that go on, best first."""
    pooled: list[int]
    """Numbers of the finished candidates that leave the beam for the pool."""
    over: bool
    """Whether the search ends here."""


def select(candidates: Sequence[Candidate], beam_width: int, pool: Sequence[float]) -> Selection:
    """Keep the best W live candidates; finished ones go to the pool, keep their value and never crowd the beam.

    The search is over when nothing lives, or when the pool holds W hypotheses of which none is worse than the best live
    candidate. Ties go to the lower number.

    Args:
        candidates: the chunk's candidates, in the order of their numbers.
        beam_width: W.
        pool: values of the finished hypotheses so far.

    Reference:
        Zhou et al. (2024), weak-to-strong search; the treatment of finished hypotheses is ours (the published code lets
        copies of one finished hypothesis fill the beam, see `select_published`).
    """
    live = sorted((c for c in candidates if not c.finished), key=lambda c: (-c.score, c.number))[
        :beam_width
    ]
    done = [c for c in candidates if c.finished]
    best = sorted([*pool, *(c.value for c in done)], reverse=True)[:beam_width]
    beaten = bool(live) and len(best) == beam_width and max(c.value for c in live) <= best[-1]
    return Selection([c.number for c in live], [c.number for c in done], over=not live or beaten)


def select_published(candidates: Sequence[Candidate], beam_width: int) -> Selection:
    """Keep the best W of all candidates, finished ones and their copies included (`compat: w2s`).

    The search is over when all W are finished; the first of them is the result.

    Reference:
        The published decoders of weak-to-strong search and IVG.
    """
    ranked = sorted(candidates, key=lambda c: (-c.score, c.number))[:beam_width]
    return Selection([c.number for c in ranked], [], over=all(c.finished for c in ranked))
