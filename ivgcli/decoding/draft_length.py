"""How many tokens to guess ahead: as many as pay, by what passes cost and how often guesses have been right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ivgcli.models.network import Network
from ivgcli.models.streams import Stream

LONGEST = 8
"""Tokens guessed ahead at most, unless a number is asked for: beyond that, hardly a run of guesses is right."""

MOST_ROWS = {"cpu": 16, "cuda": 64}
"""With more rows than this, products are bound by arithmetic, and guessing ahead only adds to it."""

GAIN = 1.05
"""Guess only where it promises at least this gain."""

PRIOR = (7.0, 10.0)
"""Guesses taken to have been right, and made, before the first one."""

MEMORY = 0.95
"""Weight of the guesses so far, each time that new ones are checked."""

RETRY = 64
"""Steps without guesses after which one is tried again, if guessing would pay were it always right."""


class Speeds(NamedTuple):
    """What passes cost on a kind of device; only ratios matter."""

    layer: float
    """Seconds that each layer takes to be started."""
    bytes: float
    """Bytes of weights read in a second."""
    flops: float
    """Operations in a second, of a matrix product."""
    entry: float
    """Seconds for each entry of the vocabulary at each place: softmax, noise, draw."""


SPEEDS = {
    # Measured on one core of an AMD EPYC, float32, packed weights: 3M to 362M weights, 1 to 32 tokens.
    "cpu": Speeds(layer=5e-4, bytes=1.5e10, flops=1e11, entry=6e-9),
    # An H200 as its makers and public measurements describe it; layers are started one by one.
    "cuda": Speeds(layer=2.6e-4, bytes=4e12, flops=5.5e14, entry=1e-11),
}


class Cost(NamedTuple):
    """Seconds of a pass: a part for starting its layers, one for reading the weights, and one for each token."""

    launch: float
    fixed: float
    token: float

    @classmethod
    def of(cls, network: Network) -> Cost:
        """Return what a pass of a network costs where it is."""
        speeds = SPEEDS.get(network.device.type, SPEEDS["cuda"])
        weight = next(network.model.parameters())
        size = network.flops_per_token / 2 * weight.element_size()
        return cls(
            speeds.layer * network.layers,
            size / speeds.bytes,
            network.flops_per_token / speeds.flops + speeds.entry * network.width,
        )

    def seconds(self, tokens: int) -> float:
        """Return the time of one pass over so many tokens."""
        return self.launch + self.fixed + self.token * tokens


class DraftLength:
    """Chooses how many tokens a guide guesses ahead.

    Args:
        wanted: always this many; None: as many as pay, up to `LONGEST`.
        guesser: the stream that guesses.
        readers: the streams that read a token for every one drawn, without the guesser.
        follows: whether the guesser reads every token anyway, because it guides.
        captured: whether plain steps are replays of a graph, which start no layer one by one.
    """

    def __init__(
        self,
        wanted: int | None,
        guesser: Stream,
        readers: Sequence[Stream],
        follows: bool,
        captured: bool = False,
    ) -> None:
        self.wanted = wanted
        self.follows = follows
        self.guess = Cost.of(guesser.network)
        passes = {(id(stream.network), stream.adapter): stream for stream in readers}
        self.passes = [Cost.of(stream.network) for stream in passes.values()]
        launches = sum(each.launch for each in self.passes) + self.follows * self.guess.launch
        self.spared = launches if captured else 0.0
        """Seconds of a plain step that a graph saves."""
        self.most_rows = MOST_ROWS.get(guesser.network.device.type, MOST_ROWS["cuda"])
        self.right, self.made = PRIOR
        self.idle = 0

    def choose(self, rows: int) -> int:
        """Return how many tokens to guess for each of so many rows; 0: draw one after another."""
        if self.wanted is not None:
            return self.wanted
        if rows > self.most_rows:
            return 0
        length = self._best(rows, self.right / self.made)
        if length:
            self.idle = 0
            return length
        self.idle += 1
        if self.idle < RETRY:
            return 0
        self.idle = 0
        return min(1, self._best(rows, 1.0))

    def observe(self, right: int, made: int) -> None:
        """Take note of checked guesses: how many were right, and how many could still have been."""
        self.right = MEMORY * self.right + right
        self.made = MEMORY * self.made + made

    def _best(self, rows: int, agreement: float) -> int:
        """Return the length that draws most tokens in a second, if each guess is right with probability `agreement`.

        A run of γ guesses gives (1 − a^(γ+1)) / (1 − a) tokens on average.

        Reference:
            Leviathan, Kalman and Matias (2023), Fast inference from transformers via speculative decoding, eq. 1.
        """
        plain = self._seconds(rows, 0) - self.spared
        best, length = GAIN, 0
        expected = 1.0
        for guesses in range(1, LONGEST + 1):
            expected += agreement**guesses
            gain = expected * plain / self._seconds(rows, guesses)
            if gain > best:
                best, length = gain, guesses
        return length

    def _seconds(self, rows: int, guesses: int) -> float:
        """Return the time of a round with so many guesses for each row, 0: of a plain step."""
        checked = sum(each.seconds(rows * (guesses + 1)) for each in self.passes)
        return checked + (guesses + self.follows) * self.guess.seconds(rows)
