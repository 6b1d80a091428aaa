"""The next tokens of every live row, by whichever way is open and pays: ahead by guesses, in a burst, or one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch

from ivgcli.decoding import Limits, Mode
from ivgcli.decoding.burst import STEPS, Burst, Lane, possible
from ivgcli.decoding.draws import step_keys
from ivgcli.decoding.guessers import Speculate
from ivgcli.decoding.search import Search
from ivgcli.decoding.served import ServedBase
from ivgcli.decoding.speculation import Speculation, speculation
from ivgcli.decoding.step import next_tokens
from ivgcli.models.streams import Stream
from ivgcli.models.text import StopStrings

Graphs = Literal["auto", "on", "off"]
"""Whether tokens are drawn in bursts; auto: on a GPU, where each step of one is a CUDA graph."""

Live = Sequence[tuple[int, Search]]
"""Slots that have neither ended nor come to the end of their chunk, and their searches."""


class Stepper:
    """Draws tokens and books them; which way it goes about it changes no response.

    Args:
        base: stream of the base, or where it is served.
        mode: how tokens are drawn.
        limits: length, temperature, truncation, stop strings.
        eos_ids: token ids that end a response.
        width: V, token ids that may be drawn.
        warn: told what a user may want to know.
        graphs: whether to draw in bursts.
        speculate: whether to guess ahead.

    Raises:
        RecipeError: `speculate` is a number, and nothing in the mode can guess.
    """

    def __init__(
        self,
        base: Stream | ServedBase,
        mode: Mode,
        limits: Limits,
        eos_ids: frozenset[int],
        width: int,
        warn: Callable[[str], None] = lambda sentence: None,
        graphs: Graphs = "auto",
        speculate: Speculate = "off",
    ) -> None:
        self.base = base
        self.mode = mode
        self.limits = limits
        self.eos_ids = eos_ids
        self.vocabulary = torch.arange(width, dtype=torch.int32, device=base.network.device)
        self.burst: Burst | None = None
        self.speculation: Speculation | None = None
        stops = limits.stop if isinstance(base, Stream) else ()
        self.stops = StopStrings(base.network.tokenizer, stops, width if stops else 0)
        self._careful = 0
        """Single steps to come before the next burst."""
        # Bursts and guesses ahead run the base's layers without a word between the processes that hold them.
        if isinstance(base, ServedBase) or base.network.shards is not None:
            return
        wanted = graphs == "on" or (graphs == "auto" and base.network.device.type == "cuda")
        if wanted and possible(mode.token):
            self.burst = Burst(base, mode.token, limits, self.vocabulary, eos_ids, warn)
        captured = self.burst is not None and self.burst.captures
        self.speculation = speculation(
            base, mode, limits, self.vocabulary, eos_ids, speculate, captured
        )

    def resize(self, rows: int) -> None:
        """Forget all rows."""
        self._careful = 0
        if self.burst is not None:
            self.burst.resize(rows)
        if isinstance(self.base, ServedBase):
            self.base.resize(rows)

    def step(self, searches: Iterable[Search]) -> None:
        """Draw one token for every live row, or several.

        Raises:
            RowFailure: a network, a value or a server failed for some rows; nothing has been drawn for them.
        """
        searches = list(searches)
        live = _live(searches)
        if not live:
            return
        if isinstance(self.base, ServedBase):
            self.base.step(live, self.mode.token)
        elif self._guess_ahead(live):
            return
        elif self.burst is None or self._careful:
            self._careful = max(0, self._careful - 1)
            self._draw(live)
        else:
            self._draw([pair for pair in live if not self._ready(*pair)])
            self._run_ahead([pair for pair in _live(searches) if self._ready(*pair)])

    def book(self, search: Search, slot: int, token: int, gain: float) -> None:
        """Append a drawn token and see whether it ends the response."""
        hypothesis = search.hypotheses[slot]
        state = hypothesis.row
        state.tokens.append(token)
        hypothesis.kl += gain
        if token in self.eos_ids:
            state.finish = "eos"
            return
        cut = self.stops.find(state.prompt_ids, state.tokens)
        if cut is not None:
            state.finish, state.text = "stop", cut
        elif len(state.tokens) >= search.max_new_tokens:
            state.finish = "length"

    def _draw(self, live: Live) -> None:
        """Draw one token for each of these rows."""
        if not live:
            return
        slots = [slot for slot, _ in live]
        states = [search.hypotheses[slot].row for slot, search in live]
        keys = step_keys(
            [search.keys[slot] for slot, search in live],
            [len(state.tokens) for state in states],
            self.vocabulary.device,
        )
        step = next_tokens(
            self.base, self.mode.token, self.limits, self.vocabulary, slots, states, keys
        )
        for (slot, search), token, gain in zip(live, step.tokens, step.gains, strict=True):
            self.book(search, slot, token, gain)

    def _ready(self, slot: int, search: Search) -> bool:
        return self.burst.ready(slot, len(search.hypotheses[slot].row.tokens))

    def _run_ahead(self, live: Live) -> None:
        """Draw a burst for these rows, or single tokens where it meets what it cannot deal with."""
        if not live:
            return
        lanes = []
        for slot, search in live:
            tokens = search.hypotheses[slot].row.tokens
            lanes.append(
                Lane(slot, tokens[-1], search.keys[slot], len(tokens), _room(slot, search))
            )
        found = self.burst.draw(lanes)
        if found is None:
            self._careful = STEPS
            self._draw(live)
            return
        for (slot, search), lane, drawn in zip(live, lanes, found, strict=True):
            count = self._book_run(search, slot, drawn.tokens[: lane.left], drawn.gains)
            self.burst.settle(slot, drawn, count)

    def _guess_ahead(self, live: Live) -> bool:
        """Draw several tokens for every live row, if guessing them pays; return whether that was done."""
        ahead = self.speculation
        if ahead is None:
            return False
        slots = [slot for slot, _ in live]
        states = [search.hypotheses[slot].row for slot, search in live]
        lengths = ahead.lengths([_room(slot, search) for slot, search in live])
        keys = [search.keys[slot] for slot, search in live]
        runs = ahead.draw(slots, states, keys, lengths) if any(lengths) else None
        if runs is None:
            return False
        ahead.keep(
            [
                self._book_run(search, slot, run.tokens, run.gains)
                for (slot, search), run in zip(live, runs, strict=True)
            ]
        )
        return True

    def _book_run(
        self, search: Search, slot: int, tokens: Sequence[int], gains: Sequence[float]
    ) -> int:
        """Book drawn tokens up to the response's end, and return how many those are."""
        for count, (token, gain) in enumerate(zip(tokens, gains, strict=False), 1):
            self.book(search, slot, token, gain)
            if search.hypotheses[slot].row.finish is not None:
                return count
        return len(tokens)


def _live(searches: Iterable[Search]) -> list[tuple[int, Search]]:
    """Return the live slots in order, with their searches."""
    live = [
        (slot, search)
        for search in searches
        for slot in search.live()
        if len(search.hypotheses[slot].row.tokens) < search.chunk_end
    ]
    return sorted(live, key=lambda pair: pair[0])


def _room(slot: int, search: Search) -> int:
    """Return how many tokens a row may still draw before its chunk or its response is over."""
    drawn = len(search.hypotheses[slot].row.tokens)
    return min(search.chunk_end, search.max_new_tokens) - drawn
