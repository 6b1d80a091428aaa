"""How many tokens a network reads when a search runs to its full length: what the engine would do, counted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ivgcli.decoding.guidance import CANDIDATES
from ivgcli.recipes import MODES, GenerateRecipe

AGAIN = 1
"""Tokens read again at each ranking where a response is read as text: its last one may have changed."""

PER_CANDIDATE = 2
"""Tokens of another vocabulary that one candidate token takes, with what it changes before it."""


IN_BYTES = 2.4
"""Tokens of another vocabulary that guidance in bytes reads for each token of the base, what candidates would be
tokenised into included: SmolLM2 under a guide with 8,192 entries, on film reviews."""


@dataclass(frozen=True)
class Course:
    """One search, as far as it matters how much is read; T below is the tokens of a full response."""

    rows: int = 1
    """W·K, sequences that decode side by side."""
    chunk_length: int | None = None
    """L, tokens between rankings; None: one ranking, at the end."""
    every: int = 1
    """Every n-th token is guided."""
    candidates: int = CANDIDATES
    """C, tokens that a scalar value is asked about."""
    outside: str = "prefix"
    """What the other tokens get."""

    def rankings(self, tokens: int) -> int:
        """Return how often values are asked for at the end of a chunk or response."""
        if self.chunk_length is None or self.rows == 1:
            return 1
        return max(1, math.ceil(tokens / self.chunk_length))

    def guided(self, tokens: int) -> int:
        """Return how many tokens of a response are guided."""
        return math.ceil(tokens / self.every)

    def drawn(self, tokens: int) -> int:
        """Return what the base reads: every row's tokens but its last, which is drawn and not read."""
        return self.rows * max(0, tokens - 1)

    def followed(self, tokens: int, guides: bool) -> int:
        """Return what a language model or a token-Q value reads that shares the base's vocabulary.

        A guide of the last token has counted it from its own logits, as the base has.
        """
        last = guides and (tokens - 1) % self.every == 0
        return self.drawn(tokens) if last else self.rows * tokens

    def peeked(self, tokens: int, guides: bool) -> int:
        """Return what a scalar value reads: candidates where it guides, and then what was drawn beside them."""
        if not guides:
            return self.rows * tokens
        beside = self.outside != "drop" or self.every > 1
        return self.rows * (self.candidates * self.guided(tokens) + (tokens if beside else 0))

    def read_as_text(self, tokens: int, guides: bool) -> int:
        """Estimate what a network reads through a tokenizer of its own, whose tokens are taken to be as many."""
        followed = self.rows * (tokens + AGAIN * self.rankings(tokens))
        if not guides:
            return followed
        asked = PER_CANDIDATE * self.candidates * self.guided(tokens)
        return followed + self.rows * (asked + AGAIN * self.guided(tokens))

    def read_in_bytes(self, tokens: int) -> int:
        """Estimate what a language model reads that guides tokens by their bytes."""
        return math.ceil(self.rows * (tokens + (IN_BYTES - 1) * self.guided(tokens)))

    def whole_texts(self, prompt: int, tokens: int, guides: bool, ranks: bool) -> int:
        """Estimate what a network reads that takes prompt and response anew at every call."""
        total = prompt + tokens  # the value of the finished response
        if ranks and self.rankings(tokens) > 1:
            length = self.chunk_length or tokens
            ends = range(length, tokens + length, length)
            total = sum(prompt + min(end, tokens) for end in ends)
        if guides:
            here = 1 if self.outside in ("auto", "prefix") else 0
            for place in range(0, tokens, self.every):
                total += self.candidates * (prompt + place + 1) + here * (prompt + place)
        return self.rows * total


def course_of(recipe: GenerateRecipe) -> Course:
    """Return the searches of a recipe."""
    guides, ranks = MODES[recipe.mode]
    chunk, token = recipe.chunk, recipe.token
    return Course(
        rows=chunk.beam_width * chunk.successors if ranks else 1,
        chunk_length=chunk.chunk_length if ranks else None,
        every=token.every if guides else 1,
        candidates=token.candidates or CANDIDATES,
        outside=token.outside,
    )
