"""A base behind a server, as the engine draws from it: chunks of many searches in flight at once.

The engine's rows, values, rankings and rules are those of a local base; what differs is where tokens come from. A row
asks for its whole chunk at a time, together with the rows that share its prefix. Under token guidance it asks for
the most probable next tokens instead, which are tilted by values and drawn from here.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ivgcli.decoding import Limits, TokenGuidance
from ivgcli.decoding.booking import Booking
from ivgcli.decoding.search import Search
from ivgcli.decoding.told import draw_told
from ivgcli.errors import ModelError
from ivgcli.models.failures import RowFailure
from ivgcli.models.served import ServedNetwork, ServedPrompts
from ivgcli.serving.completions import Completions, Prompt, Reply, Wish, seed_of
from ivgcli.serving.flight import Flight
from ivgcli.serving.probing import probe
from ivgcli.serving.server import UNANSWERED, Fault
from ivgcli.values import Row

Live = Sequence[tuple[int, Search]]


@dataclass(frozen=True)
class Errand:
    """One request under way, and the rows that share its prefix."""

    search: Search
    slots: tuple[int, ...]
    wish: Wish


class ServedBase:
    """A large frozen model that somebody else serves.

    Args:
        network: what is here of it.
        prompts: how it is shown a prompt.
        completions: its endpoint for texts.
        chat: its endpoint for conversations; None: they do not go there.
        limits: as the engine's.
        in_flight: requests at once.
        guided: whether tokens are drawn here, so that rows hold their ids.
    """

    def __init__(
        self,
        network: ServedNetwork,
        prompts: ServedPrompts,
        completions: Completions,
        chat: Completions | None,
        limits: Limits,
        in_flight: int,
        guided: bool = False,
    ) -> None:
        self.network, self.prompts = network, prompts
        self.in_flight = in_flight
        self.by_ids = prompts.by_ids or guided
        """Whether rows hold the base's token ids; else they hold text, and stand-ins for its tokens."""
        self._booking = Booking(network, limits.stop, self.by_ids)
        self._endpoints = {False: completions, True: chat}
        self._limits = limits
        self._over = threading.Event()
        self._flight: Flight | None = None
        self._client: object = None
        self.resize(1)

    def resize(self, rows: int) -> None:
        """Forget all rows; what is under way for them is not looked at when it lands."""
        self._errands: dict[int, Errand] = {}
        self._failures: list[RowFailure] = []
        self.usage = [(0, 0, 0)] * rows
        """Requests, prompt tokens and completion tokens of each row."""

    def close(self) -> None:
        """Abandon what is under way."""
        if self._flight is not None:
            self._flight.close()

    def notes(self) -> list[str]:
        """Return what is to be said about the server."""
        found = [each.notes for each in self._endpoints.values() if each is not None]
        return [note for notes in found for note in notes]

    def begin(self, slots: Sequence[int]) -> None:
        """Begin rows anew."""
        for slot in slots:
            self.usage[slot] = (0, 0, 0)

    def used(self, slots: Sequence[int]) -> dict[str, int]:
        """Return what the requests for some rows took, as the server counts it."""
        names = ("requests", "prompt_tokens", "completion_tokens")
        counts = zip(*(self.usage[slot] for slot in slots), strict=True)
        return dict(zip(names, map(sum, counts), strict=True))

    def step(self, live: Live, guidance: TokenGuidance | None) -> None:
        """Ask for what rows lack, wait until something lands, and book it.

        Args:
            live: rows that have neither ended nor come to the end of their chunk, with their searches.
            guidance: how values tilt the next token.

        Raises:
            RowFailure: a request was given up, or a value gave a number that is not finite.
            ModelError: the server has stopped answering.
        """
        if not self._failures:
            current = dict(live)
            idle = [
                (slot, search)
                for slot, search in live
                if slot not in self._errands or self._errands[slot].search is not search
            ]
            for errand in self._errands_of(idle, guidance):
                self._send(errand)
            told: list[tuple[Errand, Reply]] = []
            for errand, found in self._landed():
                self._take(errand, found, current, told)
            if told and guidance is not None:
                self._guide(told, guidance)
        if self._failures:
            raise self._failures.pop(0)

    def _errands_of(self, idle: Live, guidance: TokenGuidance | None) -> Iterator[Errand]:
        """Yield one request for all rows of a search that share their prefix, or one for each."""
        groups: dict[tuple[int, tuple[int, ...], str | None], list[tuple[int, Search]]] = {}
        for slot, search in idle:
            state = search.hypotheses[slot].row
            key = (id(search), tuple(state.tokens), state.text)
            groups.setdefault(key, []).append((slot, search))
        greedy = self._limits.temperature == 0
        for members in groups.values():
            slots = tuple(slot for slot, _ in members)
            search = members[0][1]
            prompt = self._prompt(search.hypotheses[slots[0]].row)
            endpoint = self._endpoint(prompt)
            # Greedy rows with one prefix have one continuation, and so have rows that ask for log-probabilities.
            guided = guidance is not None and self._place(search, slots[0]) % guidance.every == 0
            if greedy or guided or endpoint.gifts.count:
                yield self._errand(search, slots, prompt, guidance, 1 if greedy else len(slots))
            else:
                for slot in slots:
                    yield self._errand(search, (slot,), prompt, guidance, 1)

    def _errand(
        self,
        search: Search,
        slots: tuple[int, ...],
        prompt: Prompt,
        guidance: TokenGuidance | None,
        count: int,
    ) -> Errand:
        """Return a request for the next tokens of rows with one prefix."""
        place = self._place(search, slots[0])
        room = min(search.chunk_end, search.max_new_tokens) - place
        seed = seed_of(search.keys[slots[0]], place)
        if guidance is None:
            return Errand(search, slots, Wish(prompt, room, seed, count))
        into = place % guidance.every
        if into:
            return Errand(
                search, slots, Wish(prompt, min(room, guidance.every - into), seed, count)
            )
        return Errand(search, slots, Wish(prompt, 1, seed, 1, self._endpoint(prompt).gifts.tops))

    def _place(self, search: Search, slot: int) -> int:
        """Return how many tokens a row has."""
        return len(search.hypotheses[slot].row.tokens)

    def _prompt(self, state: Row) -> Prompt:
        """Return what the server is shown of a row: prompt and response so far."""
        asked = state.prompt
        if self.prompts.by_ids:
            return (*state.prompt_ids, *state.tokens)
        messages = self.prompts.messages(asked.text, asked.messages)
        if messages is not None:
            return messages
        text = self.prompts.text(asked.text, asked.messages, asked.id)
        return text + self._booking.text(state)

    def _endpoint(self, prompt: Prompt) -> Completions:
        """Return where a prompt goes, found out about before it is first used."""
        talks = not isinstance(prompt, str) and bool(prompt) and not isinstance(prompt[0], int)
        found = self._endpoints[talks]
        if found is None:
            raise AssertionError("conversations go to the chat endpoint only where there is one")
        if not found.known:
            probe(found, prompt)
        return found

    def _send(self, errand: Errand) -> None:
        """Have a request made."""
        endpoint = self._endpoint(errand.wish.prompt)
        if self._flight is None:
            client = endpoint.server.client(self._over)
            self._flight = Flight(self.in_flight, self._over, client.close)
            self._client = client
        for slot in errand.slots:
            self._errands[slot] = errand
        ask: Callable[[], Reply | Fault] = functools.partial(
            endpoint.ask, self._client, errand.wish, self._over
        )
        self._flight.submit(errand, ask)

    def _landed(self) -> Iterator[tuple[Errand, Reply | Fault]]:
        """Yield what has landed, having waited for one."""
        flight = self._flight
        if flight is None or not flight.under_way:
            return
        landed = flight.land()
        while landed is not None:
            yield landed
            landed = flight.land(wait=False)

    def _take(
        self,
        errand: Errand,
        found: Reply | Fault,
        current: dict[int, Search],
        told: list[tuple[Errand, Reply]],
    ) -> None:
        """Book a reply, or put it aside for guidance; rows that have been given up are past caring."""
        slots = [slot for slot in errand.slots if current.get(slot) is errand.search]
        if not slots:
            return
        for slot in slots:
            del self._errands[slot]
        if isinstance(found, Fault):
            self._give_up(found, slots)
            return
        requests, prompts, drawn = self.usage[slots[0]]
        counts = (prompts + found.prompt_tokens, drawn + found.completion_tokens)
        self.usage[slots[0]] = (requests + 1, *counts)
        if errand.wish.tops:
            told.append((errand, found))
            return
        alike = self._limits.temperature == 0
        choices = found.choices[:1] * len(slots) if alike else found.choices
        # Fewer choices than rows: the others ask again.
        for slot, choice in zip(slots, choices, strict=False):
            hypothesis = errand.search.hypotheses[slot]
            self._booking.chunk(errand.search, hypothesis, choice, errand.wish.max_tokens)

    def _give_up(self, fault: Fault, slots: Sequence[int]) -> None:
        """Fail the rows of a request, or the run if the server answers nothing any more."""
        server = next(each.server for each in self._endpoints.values() if each is not None)
        unanswered = 0 if fault.final else server.give_up()
        if unanswered >= UNANSWERED:
            what = f"has answered none of the latest {unanswered} requests; the last: {fault.what}"
            raise ModelError(server.name, what, "check the server, then go on with --resume")
        self._failures.append(RowFailure(server.name, fault.what, "--resume tries it again", slots))

    def _guide(self, told: Sequence[tuple[Errand, Reply]], guidance: TokenGuidance) -> None:
        """Draw the next token of each row from what the server told of it, and book that."""
        rows = [(slot, each.search, reply) for each, reply in told for slot in each.slots]
        found = [search.hypotheses[slot] for slot, search, _ in rows]
        drawn = draw_told(
            self.network,
            guidance,
            self._limits,
            [slot for slot, _, _ in rows],
            [hypothesis.row for hypothesis in found],
            [search.keys[slot] for slot, search, _ in rows],
            [reply.choices[0] for _, _, reply in rows],
        )
        for (_, search, _), hypothesis, token, logprob, gain in zip(
            rows, found, *drawn, strict=True
        ):
            self._booking.token(search, hypothesis, token, gain, logprob)
