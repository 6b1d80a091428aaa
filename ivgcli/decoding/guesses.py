"""One round of guessing ahead: what has been guessed and read, until what was drawn is booked; and how rounds went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, fields
from typing import NamedTuple

from torch import Tensor

from ivgcli.models.streams import Stream


class Run(NamedTuple):
    """The tokens that one row drew in a round, at least one."""

    tokens: list[int]
    gains: list[float]
    """log p_guided − log p_base of each."""


@dataclass
class Guessed:
    """How guessing went, all rows together."""

    rounds: int = 0
    """Times that guesses were checked, each with one pass of the base."""
    made: int = 0
    """Tokens guessed."""
    right: int = 0
    """Tokens guessed and kept."""
    tokens: int = 0
    """Tokens drawn in rounds."""
    saved: int = 0
    """Passes of the base that the longest run of each round has saved."""

    def __add__(self, other: Guessed) -> Guessed:
        """Return both together."""
        return Guessed(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def of(cls, written: Mapping[str, float]) -> Guessed:
        """Return what `to_json` has written."""
        return cls(**{field.name: int(written[field.name]) for field in fields(cls)})

    @property
    def acceptance(self) -> float:
        """Share of the guessed tokens that were kept, in 0..1."""
        return self.right / max(self.made, 1)

    def to_json(self) -> dict[str, float]:
        """Return it as what JSON can hold."""
        return {**asdict(self), "acceptance": round(self.acceptance, 4)}


@dataclass
class Round:
    """What is under way between the first guess and the end of booking.

    A row has one place in front of each of its guesses and one behind the last; the places of all rows lie one after
    another, N of them.
    """

    slots: list[int]
    starts: list[int]
    """Tokens of each response before."""
    guesses: list[list[int]] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)
    """The guesser's outputs (D,) where it has guessed, row by row."""
    hidden: list[list[Tensor]] = field(default_factory=list)
    """Its hidden states (H,) there."""
    states: dict[int, tuple[Stream, Tensor]] = field(default_factory=dict)
    """By the identity of each stream that has read guesses: its hidden states (N, H) at all places."""
    logprobs: list[tuple[Stream, list[float]]] = field(default_factory=list)
    """What each stream that counts gives the drawn tokens at all places."""
    right: list[int] = field(default_factory=list)
    """Guesses of each row that are what the check has drawn, up to the first that is not."""

    def __post_init__(self) -> None:
        """Begin without guesses."""
        self.guesses = [[] for _ in self.slots]
        self.outputs = [[] for _ in self.slots]
        self.hidden = [[] for _ in self.slots]

    @property
    def counts(self) -> list[int]:
        """Places of each row."""
        return [len(guesses) + 1 for guesses in self.guesses]

    @property
    def firsts(self) -> list[int]:
        """Number of each row's first place."""
        places, end = [], 0
        for count in self.counts:
            places.append(end)
            end += count
        return places
