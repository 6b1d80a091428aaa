"""Decoding under value guidance: how tokens are drawn, how chunks are ranked, and the loop that does both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ivgcli.values import Value


@dataclass(frozen=True)
class TokenGuidance:
    """How values tilt the next token."""

    value: Value
    weight: float = 1.0
    """Factor on the value; 0 is the base."""
    candidates: int | None = None
    """How many of the base's most probable tokens are valued; None: the whole vocabulary."""
    outside: Literal["prefix", "centred", "mass", "drop"] = "prefix"
    """What other tokens get: the prefix's value, the candidates' mean value, just the probability that
    the base gives them, or nothing (dropped)."""
    every: int = 1
    """Guide each token whose place in the response (0, 1, …) is a multiple of this."""
    warp: Literal["after", "before"] = "after"
    """Whether temperature, top-k and top-p apply to the tilted distribution or to the base alone."""


@dataclass(frozen=True)
class ChunkRanking:
    """How values choose among continuations."""

    value: Value
    beam_width: int = 1
    """W, hypotheses kept."""
    successors: int = 1
    """K, continuations of each."""
    chunk_length: int | None = None
    """L, tokens between rankings; None: whole responses."""
    score: Literal["absolute", "advantage"] = "absolute"
    """Rank by the value, or by its difference to the parent's."""
    compat: Literal["w2s"] | None = None
    """`w2s`: finished hypotheses compete for the beam and are copied, as in the published code."""

    @property
    def rows(self) -> int:
        """W·K, the sequences of one search."""
        return self.beam_width * self.successors


@dataclass(frozen=True)
class Mode:
    """A mode is a pair: how tokens are drawn, how chunks are ranked."""

    name: str = "base"
    token: TokenGuidance | None = None
    chunk: ChunkRanking | None = None


@dataclass(frozen=True)
class Limits:
    """How long, and from which part of a distribution, responses are sampled."""

    max_new_tokens: int = 256
    temperature: float = 1.0
    """0: the most probable token."""
    top_k: int = 0
    """0: off."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
