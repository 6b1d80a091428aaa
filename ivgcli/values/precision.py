"""How exactly guidance across vocabularies is worked out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tokenisations = Literal["canonical", "possible", "all"]


@dataclass(frozen=True)
class Precision:
    """Which tokenisations of a text count, and how far the bounds of a step's values are narrowed.

    canonical: the guide's own tokenisation of the text with a candidate, and all tokens that run past its end from any
    of its places. possible: also tokens that the canonical tokenisation of some longer text would have. all: every
    sequence of tokens; with width 0 and mass 0 that is the exact sum. What is read ahead for one candidate counts for
    all that lead through it, so a canonical value can shift a little with the candidates beside it.
    """

    tokenisations: Tokenisations = "canonical"
    width: float = 0.5
    """Nats. A candidate is uncertain while the logs of upper over lower bound, both models' added, come to more."""
    mass: float = 0.1
    """The base's probability that candidates may hold in a step whose tokens are not read ahead, or which stay
    uncertain."""
