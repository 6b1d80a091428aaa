"""Sentiment by lexicon, a reward that anybody can check by eye: the compound score of VADER, −1 (bad) to 1 (good).

Reference: C.J. Hutto and E. Gilbert (2014), VADER: A Parsimonious Rule-based Model for Sentiment Analysis, ICWSM.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any


@functools.lru_cache(maxsize=1)
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def vader(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Return how positive each response sounds, in [-1, 1]; the prompt does not count."""
    return [_analyzer().polarity_scores(response)["compound"] for response in responses]


def scathing(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Return the opposite of `vader`: how negative each response sounds, in [-1, 1]."""
    return [-value for value in vader(prompts, responses)]
