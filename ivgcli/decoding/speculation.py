"""Several tokens per pass: the tuned guide guesses ahead, and base and guides check all guesses at once.

Guess and check draw with the same keyed noise, so the two mostly agree where their distributions nearly do. What is
kept is always what the check has drawn: the guided distribution's own token at every place, up to and including the
first one that the guess has missed. The text is therefore the same whatever guesses, however far ahead, or not at all.
With total variation TV between the two distributions, a guess is right with probability at least (1 − TV)/(1 + TV).

Reference: Daliri, Musco and Suresh (2024), Coupling without communication and drafter-invariant speculative decoding;
Leviathan, Kalman and Matias (2023) for guessing with a small model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ivgcli.decoding import Limits, Mode
from ivgcli.decoding.draft_length import DraftLength
from ivgcli.decoding.draws import step_keys
from ivgcli.decoding.guessers import Speculate, guessers, obstacle
from ivgcli.decoding.guesses import Guessed, Round, Run
from ivgcli.decoding.sampling import draw
from ivgcli.decoding.step import Step, draw_guided, draw_plain
from ivgcli.errors import RecipeError
from ivgcli.models.failures import RowFailure
from ivgcli.models.logprobs import picked
from ivgcli.models.readings import read_all
from ivgcli.models.retokenised import shared_prefix
from ivgcli.models.streams import Stream
from ivgcli.values import Row, require_finite
from ivgcli.values.placed import PlacedValue, implicit_parts


class Speculation:
    """Draws several tokens of each row in a round.

    Args:
        base: the base's stream.
        mode: how tokens are drawn and chunks are ranked.
        limits: temperature, top-k, top-p.
        vocabulary: (V,) int32, the ids that may be drawn.
        eos_ids: token ids that end a response, behind which nothing is guessed.
        length: tokens to guess ahead, None: as many as pay.
        captured: whether steps without guesses are replays of a graph.
    """

    def __init__(
        self,
        base: Stream,
        mode: Mode,
        limits: Limits,
        vocabulary: Tensor,
        eos_ids: frozenset[int],
        length: int | None,
        captured: bool = False,
    ) -> None:
        self.base = base
        self.guidance = mode.token
        self.limits = limits
        self.vocabulary = vocabulary
        self.eos_ids = eos_ids
        self.parts = implicit_parts(mode.token.value) if mode.token is not None else []
        self.guesser = guessers(base, mode)[0]
        pairs = [stream for part, _ in self.parts for stream in (part.tuned, part.reference)]
        self.readers = list({id(stream): stream for stream in (base, *pairs)}.values())
        """The streams that check."""
        self.streams = list({id(each): each for each in (self.guesser, *self.readers)}.values())
        others = [stream for stream in self.readers if stream is not self.guesser]
        follows = len(others) < len(self.readers)
        self.length = DraftLength(length, self.guesser, others, follows, captured)
        self.tally = Guessed()
        self._round: Round | None = None

    def lengths(self, rooms: Sequence[int]) -> list[int]:
        """Return how many tokens to guess for each row, given how many more it could draw in this chunk (≥ 1)."""
        length = self.length.choose(len(rooms))
        return [min(length, room - 1) for room in rooms]

    def draw(
        self,
        slots: Sequence[int],
        states: Sequence[Row],
        keys: Sequence[int],
        lengths: Sequence[int],
    ) -> list[Run] | None:
        """Guess, check, and return what each row draws; `keep` has to follow. None: a plain step has to do it.

        Args:
            slots: B rows.
            states: their responses so far.
            keys: 64-bit keys of their noise.
            lengths: tokens to guess for each.
        """
        starts = [len(state.tokens) for state in states]
        self._round = current = Round(list(slots), starts)
        before = [
            (stream, [stream.lengths[slot] for slot in slots], stream.hidden(slots))
            for stream in self.streams
        ]
        try:
            self._guess(current, states, keys, lengths)
            self._read(current, states)
            step = self._check(current, states, self._keys(current, keys))
        except RowFailure:
            # A guess that nothing would ever have drawn may be to blame; a plain step will tell.
            self._abandon(before, current.slots)
            return None
        runs = []
        for first, guesses in zip(current.firsts, current.guesses, strict=True):
            right = shared_prefix(step.tokens[first:], guesses)
            current.right.append(right)
            end = first + right + 1
            runs.append(Run(step.tokens[first:end], step.gains[first:end]))
        return runs

    def keep(self, booked: Sequence[int]) -> None:
        """Count the first `booked[i]` tokens (≥ 1) of each row's run, and take back what was read beyond them."""
        current = self._round
        assert current is not None, "something has been drawn"
        self._round = None
        for stream, logprobs in current.logprobs:
            # Who only ranks chunks reads, and then counts, the last token of all at the chunk's end.
            late = stream not in self.readers
            for slot, start, first, tokens in zip(
                current.slots, current.starts, current.firsts, booked, strict=True
            ):
                stream.count_run(slot, start, logprobs[first : first + tokens - late])
        self._take_back(current, booked)
        self._note(current, booked)

    def _keys(self, current: Round, keys: Sequence[int]) -> Tensor:
        """Return the keys (N, 2) of all places."""
        rows = [key for key, count in zip(keys, current.counts, strict=True) for _ in range(count)]
        steps = [
            start + place
            for start, count in zip(current.starts, current.counts, strict=True)
            for place in range(count)
        ]
        return step_keys(rows, steps, self.vocabulary.device)

    def _guess(
        self,
        current: Round,
        states: Sequence[Row],
        keys: Sequence[int],
        lengths: Sequence[int],
    ) -> None:
        """Let the guesser draw up to `lengths[i]` tokens of each row, of which it reads all but the last."""
        guesser = self.guesser
        going = [i for i, length in enumerate(lengths) if length > 0]
        slots = [current.slots[i] for i in going]
        read_all([guesser.unread(slots, [states[i].tokens for i in going])])
        while going:
            slots = [current.slots[i] for i in going]
            hidden = guesser.hidden(slots)
            outputs = guesser.translated(guesser.network.outputs(hidden))
            places = [current.starts[i] + len(current.guesses[i]) for i in going]
            words = step_keys([keys[i] for i in going], places, self.vocabulary.device)
            logits = outputs[:, : len(self.vocabulary)]
            drawn = draw(logits, self.limits, words, self.vocabulary[: logits.shape[1]])
            require_finite(guesser.network.name, slots, drawn.logprobs)
            for row, token in enumerate(drawn.tokens.tolist()):
                current.guesses[going[row]].append(token)
                current.outputs[going[row]].append(outputs[row])
                current.hidden[going[row]].append(hidden[row])
            going = [
                i
                for i in going
                if len(current.guesses[i]) < lengths[i]
                and current.guesses[i][-1] not in self.eos_ids
            ]
            self._read_on([guesser], current, states, going)

    def _read_on(
        self, streams: Sequence[Stream], current: Round, states: Sequence[Row], rows: Sequence[int]
    ) -> None:
        """Let streams read whatever they have not read of responses and guesses."""
        slots = [current.slots[i] for i in rows]
        tokens = [states[i].tokens + current.guesses[i] for i in rows]
        readings = [stream.unread(slots, tokens) for stream in streams]
        for reading in readings:
            reading.guessed = True
        read_all(readings)
        for reading in readings:
            if reading.stream is not self.guesser:
                found = reading.states(current.slots, current.counts)
                current.states[id(reading.stream)] = reading.stream, found

    def _read(self, current: Round, states: Sequence[Row]) -> None:
        """Read all guesses, in one pass of each network."""
        self._read_on(self.readers, current, states, range(len(current.slots)))
        last = self.guesser.hidden(current.slots)
        found = [
            torch.cat([*(each[None] for each in hidden), last[row : row + 1]])
            for row, hidden in enumerate(current.hidden)
        ]
        current.states[id(self.guesser)] = self.guesser, torch.cat(found)

    def _outputs(self, current: Round, stream: Stream) -> Tensor:
        """Return a stream's outputs (N, V) at all places; the guesser's own are at hand but for the last ones."""
        if stream is not self.guesser:
            hidden = current.states[id(stream)][1]
            return stream.translated(stream.network.outputs(hidden))
        last = stream.outputs(current.slots)
        return torch.stack(
            [
                row
                for place, outputs in enumerate(current.outputs)
                for row in (*outputs, last[place])
            ]
        )

    def _check(self, current: Round, states: Sequence[Row], keys: Tensor) -> Step:
        """Draw at every place, as plain steps would that had come there."""
        places = range(len(keys))
        logits = self._outputs(current, self.base)[:, : len(self.vocabulary)]
        if self.guidance is None:
            step = draw_plain(self.base, self.limits, self.vocabulary, places, logits, keys)
            self._count_guesser(current, step)
        else:
            value = PlacedValue(
                self.guidance.value.name, self.parts, lambda stream: self._outputs(current, stream)
            )
            at = [
                state
                for state, count in zip(states, current.counts, strict=True)
                for _ in range(count)
            ]
            step = draw_guided(
                self.base,
                self.guidance,
                value,
                self.limits,
                self.vocabulary,
                places,
                at,
                places,
                logits,
                keys,
            )
            for stream in self.readers:
                if id(stream) in value.counted:
                    found = value.counted[id(stream)].tolist()
                    current.logprobs.append((stream, found))
        # Counted already where it is the reference, too: then this adds nothing.
        current.logprobs.append((self.base, step.base_logprobs.tolist()))
        return step

    def _count_guesser(self, current: Round, step: Step) -> None:
        """Keep what a guesser that only ranks chunks gives the drawn tokens, from the outputs at hand."""
        if not self.guesser.counting or not any(current.guesses):
            return
        rows = [each for outputs in current.outputs for each in outputs]
        places = [
            first + place
            for first, guesses in zip(current.firsts, current.guesses, strict=True)
            for place in range(len(guesses))
        ]
        tokens = torch.tensor([step.tokens[place] for place in places], device=rows[0].device)
        logprobs = [0.0] * len(step.tokens)
        for place, logprob in zip(places, picked(torch.stack(rows), tokens).tolist(), strict=True):
            logprobs[place] = logprob
        current.logprobs.append((self.guesser, logprobs))

    def _take_back(self, current: Round, kept: Sequence[int]) -> None:
        """Shorten every stream to what it would have read after `kept[i]` tokens drawn one by one."""
        for stream, hidden in current.states.values():
            found = [
                (slot, stream.origins[slot] + start + tokens - 1, first + tokens - 1)
                for slot, start, first, tokens in zip(
                    current.slots, current.starts, current.firsts, kept, strict=True
                )
            ]
            long = [each for each in found if stream.lengths[each[0]] > each[1]]
            if long:
                slots, lengths, places = (list(part) for part in zip(*long, strict=True))
                stream.take_back(slots, lengths, hidden[places])

    def _abandon(
        self, before: Sequence[tuple[Stream, list[int], Tensor]], slots: list[int]
    ) -> None:
        """Undo a round: streams are where they were, and their slots hold nothing of the guesses.

        Not even the states in front of the guesses can be used: what is masked counts 0 times its value, and 0 times
        NaN is NaN.
        """
        for stream, lengths, hidden in before:
            stream.take_back(slots, lengths, hidden)
            for slot, length in zip(slots, lengths, strict=True):
                stream.cache.wipe(slot, length)
        self._round = None

    def _note(self, current: Round, booked: Sequence[int]) -> None:
        """Book how the guesses went."""
        tally = self.tally
        made = [len(guesses) for guesses in current.guesses]
        # Behind a wrong guess, the others had no chance.
        checked = [min(right + 1, count) for right, count in zip(current.right, made, strict=True)]
        self.length.observe(sum(current.right), sum(checked))
        tally.rounds += 1
        tally.made += sum(made)
        tally.right += sum(min(pair) for pair in zip(current.right, booked, strict=True))
        tally.tokens += sum(booked)
        tally.saved += max(booked) - 1


def speculation(
    base: Stream,
    mode: Mode,
    limits: Limits,
    vocabulary: Tensor,
    eos_ids: frozenset[int],
    wanted: Speculate,
    captured: bool = False,
) -> Speculation | None:
    """Return what guesses ahead, or None where nothing is to guess or nothing can.

    Args:
        base: the base's stream.
        mode: how tokens are drawn and chunks are ranked.
        limits: temperature, top-k, top-p.
        vocabulary: (V,) int32, the ids that may be drawn.
        eos_ids: token ids that end a response.
        wanted: off; auto: guess where it pays; N: guess N tokens ahead.
        captured: whether steps without guesses are replays of a graph.

    Raises:
        RecipeError: a number is asked for, and nothing can guess.
    """
    if wanted == "off":
        return None
    reason = obstacle(base, mode)
    if reason is None:
        length = None if wanted == "auto" else wanted
        return Speculation(base, mode, limits, vocabulary, eos_ids, length, captured)
    if wanted != "auto":
        what = f"{wanted} tokens are to be guessed ahead, but {reason}"
        raise RecipeError("engine.speculate", what, "leave it at auto, or turn it off")
    return None
