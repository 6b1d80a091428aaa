"""What a whole response is worth: rewards on text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Scorer(Protocol):
    """A reward on text; the same object serves best-of-N, chunk ranking, token guidance by text and judging."""

    name: str

    def score(
        self, prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool]
    ) -> list[float]:
        """Return the reward of each response to its prompt; `finished` says whether it ended by itself."""
        ...
