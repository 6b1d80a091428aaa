"""The words every contestant of a measurement shares: what it is given and what it hands back.

A contestant is a function `(networks, prompts, mode, settings) -> Outcome`. It decodes every prompt
to exactly the forced length, so that all contestants do the same work. A contestant that cannot run
a mode raises NotImplementedError with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODES = ("base", "eft-i", "cbs-i", "ivg")
SEARCHES = ("cbs-i", "ivg")
"""Modes that rank W·K candidates of each prompt after every chunk."""


@dataclass(frozen=True)
class Networks:
    """The networks of a run and the tokenizer they share."""

    base: PreTrainedModel
    """The network that writes."""
    tuned: PreTrainedModel
    """The guide after tuning."""
    reference: PreTrainedModel
    """The guide before tuning."""
    tokenizer: PreTrainedTokenizerBase
    """Text to ids and back, with a padding token."""
    value: PreTrainedModel | None = None
    """A sequence classifier with one label, which ranks the chunks in the mode ivg."""

    def named(self) -> dict[str, PreTrainedModel]:
        """Return every network once, under its first name."""
        roles = {
            "base": self.base,
            "tuned": self.tuned,
            "reference": self.reference,
            "value": self.value,
        }
        first: dict[int, str] = {}
        for name, network in roles.items():
            first.setdefault(id(network), name)
        return {
            name: network
            for name, network in roles.items()
            if network is not None and first[id(network)] == name
        }


@dataclass(frozen=True)
class Settings:
    """How to decode; the same object goes to every contestant."""

    samples: int = 1
    """Sequences per prompt in the modes base and eft-i."""
    beam_width: int = 4
    """W, beams kept after each chunk in the modes cbs-i and ivg."""
    successors: int = 4
    """K, continuations of each beam in the modes cbs-i and ivg."""
    chunk_length: int = 5
    """L, tokens between two selections in the modes cbs-i and ivg."""
    max_new_tokens: int = 50
    """Tokens of every response; the end-of-sequence token is an ordinary token here."""
    lengths: tuple[int, ...] | None = None
    """Tokens of each prompt's responses, at most `max_new_tokens`; None: all have that many."""
    rows: int | None = None
    """Sequences that decode at once, for contestants that can choose; None: all of them."""
    temperature: float = 1.0
    """Divides the combined logits; 0 takes the most probable token."""
    top_k: int = 50
    """Tokens that may be drawn; 0 admits all."""
    top_p: float = 1.0
    """Probability mass that may be drawn; 1 admits all."""
    weight: float = 1.0
    """Multiplies the implicit value in the modes eft-i and ivg."""
    seed: int = 0
    """Seed of the draws; contestants need not draw the same tokens from it."""
    deterministic: bool = False
    """Whether ivg leaves no trace of the batch in any bit. On a GPU its networks stay that way."""

    def rows_per_prompt(self, mode: str) -> int:
        """Count the sequences that decode side by side for one prompt under `mode`."""
        return self.beam_width * self.successors if mode in SEARCHES else self.samples

    def length(self, prompt: int) -> int:
        """Return the forced length of the responses to prompt number `prompt`."""
        return self.max_new_tokens if self.lengths is None else self.lengths[prompt]

    def row_tokens(self, prompts: int, mode: str) -> int:
        """Count the tokens that are wanted of all rows of the first `prompts` prompts."""
        return self.rows_per_prompt(mode) * sum(self.length(number) for number in range(prompts))

    def cut(self, responses: Sequence[Sequence[int]], mode: str) -> list[list[int]]:
        """Shorten responses of full length to the forced ones: what static batches decode beyond is waste."""
        each = 1 if mode in SEARCHES else self.samples
        return [
            list(response[: self.length(number // each)])
            for number, response in enumerate(responses)
        ]


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
    """Wanted tokens over all rows, including those of candidates that were dropped."""

    @property
    def accepted_tokens(self) -> int:
        """Count the tokens a user gets to see."""
        return sum(len(response) for response in self.responses)


Contestant = Callable[[Networks, Sequence[Sequence[int]], str, Settings], Outcome]
