"""The words every contestant of a measurement shares: what it is given and what it hands back.

A contestant is a function `(networks, prompts, mode, settings) -> Outcome`. It decodes every prompt
to exactly `settings.max_new_tokens` tokens, so that all contestants do the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODES = ("base", "eft-i", "cbs-i")


@dataclass(frozen=True)
class Networks:
    """The three networks of an implicit value and the tokenizer they share."""

    base: PreTrainedModel
    """The network that writes."""
    tuned: PreTrainedModel
    """The guide after tuning."""
    reference: PreTrainedModel
    """The guide before tuning."""
    tokenizer: PreTrainedTokenizerBase
    """Text to ids and back, with a padding token."""


@dataclass(frozen=True)
class Settings:
    """How to decode; the same object goes to every contestant."""

    samples: int = 1
    """Sequences per prompt in the modes base and eft-i."""
    beam_width: int = 4
    """W, beams kept after each chunk in the mode cbs-i."""
    successors: int = 4
    """K, continuations of each beam in the mode cbs-i."""
    chunk_length: int = 5
    """L, tokens between two selections in the mode cbs-i."""
    max_new_tokens: int = 50
    """Tokens of every response; the end-of-sequence token is an ordinary token here."""
    temperature: float = 1.0
    """Divides the combined logits; 0 takes the most probable token."""
    top_k: int = 50
    """Tokens that may be drawn; 0 admits all."""
    top_p: float = 1.0
    """Probability mass that may be drawn; 1 admits all."""
    weight: float = 1.0
    """Multiplies the implicit value in the mode eft-i."""
    seed: int = 0
    """Seed of the draws; contestants need not draw the same tokens from it."""

    def rows_per_prompt(self, mode: str) -> int:
        """Count the sequences that decode side by side for one prompt under `mode`."""
        return self.beam_width * self.successors if mode == "cbs-i" else self.samples


@dataclass(frozen=True)
class Round:
    """One selection of a chunk search over the candidates of one prompt."""

    candidates: list[list[int]]
    """Response tokens of the W·K candidates."""
    values: list[float]
    """Implicit value of each candidate, in nats."""
    survivors: list[int]
    """The W candidates that go on, best first."""


@dataclass(frozen=True)
class Outcome:
    """What one contestant did in one run."""

    responses: list[list[int]]
    """Accepted response tokens, prompt by prompt (and sample by sample)."""
    row_tokens: int
    """Tokens drawn over all rows, including those of candidates that were dropped."""

    @property
    def accepted_tokens(self) -> int:
        """Count the tokens a user gets to see."""
        return sum(len(response) for response in self.responses)


Contestant = Callable[[Networks, Sequence[Sequence[int]], str, Settings], Outcome]
