"""The decoding loop: many searches at once, one token for every live row per step.

Order within a step is fixed: read what is new, tilt the base by values, warp, draw, book. A search ranks its candidates
whenever all of them have ended or come to the end of the chunk; searches that are over make room for waiting ones at
once, so the batch stays full until the input runs out.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from ivgcli.decoding import ChunkRanking, Limits, Mode
from ivgcli.decoding.beams import Candidate, select, select_published
from ivgcli.decoding.guessers import Speculate
from ivgcli.decoding.guesses import Guessed
from ivgcli.decoding.search import Hypothesis, Outcome, Request, Search, Spent
from ivgcli.decoding.served import ServedBase
from ivgcli.decoding.stepper import Graphs, Stepper
from ivgcli.decoding.supply import Listed, Supply
from ivgcli.errors import ModelError, RecordError
from ivgcli.models.failures import RowFailure
from ivgcli.models.readings import Reading, read_all
from ivgcli.models.streams import Stream
from ivgcli.models.text import response_text
from ivgcli.values import Row, Value
from ivgcli.values.by_text import TextMeter
from ivgcli.values.coverage import Coverage, Tally

Trace = Callable[[Search, list[Candidate], list[int], bool], None]
"""Called at every ranking with the search, its candidates, the numbers that go on, and whether it is over."""

SINGLE = ChunkRanking(value=None)
"""W = K = 1 over whole responses: nothing to rank."""


class Engine:
    """Decodes requests under a mode.

    Args:
        base: stream of the large frozen model, or where it is served.
        mode: how tokens are drawn and chunks are ranked.
        limits: length, temperature, truncation, stop strings.
        eos_ids: token ids that end a response.
        rows: sequences that decode at once, at least the W·K of one search.
        seed: of all draws.
        width: V, token ids that may be drawn.
        trace: called at every ranking.
        warn: called with a sentence when memory ran out and the rows were halved.
        stepped: called after every step, for whoever wants to show `under_way`.
        meters: of values that read whole texts, and not through streams.
        coverages: of values that guide tokens across vocabularies.
        graphs: whether several tokens are drawn between two looks at them, where the mode allows it; auto: on a GPU.
        speculate: whether a guide guesses tokens ahead; auto: where that pays, N: always N of them.

    Raises:
        RecipeError: `speculate` is a number, and nothing in the mode can guess.
    """

    def __init__(
        self,
        base: Stream | ServedBase,
        mode: Mode,
        limits: Limits,
        eos_ids: frozenset[int],
        rows: int,
        seed: int = 0,
        width: int | None = None,
        trace: Trace | None = None,
        warn: Callable[[str], None] = lambda sentence: None,
        stepped: Callable[[], None] = lambda: None,
        meters: Sequence[TextMeter] = (),
        coverages: Sequence[Coverage] = (),
        graphs: Graphs = "auto",
        speculate: Speculate = "off",
    ) -> None:
        self.base = base
        self.mode = mode
        self.limits = limits
        self.eos_ids = eos_ids
        self.seed = seed
        self.trace = trace
        self.warn = warn
        self.stepped = stepped
        self.meters = meters
        self.coverages = coverages
        self.ranking = mode.chunk if mode.chunk is not None and mode.chunk.rows > 1 else SINGLE
        self.values: list[Value] = list(
            {
                id(part.value): part.value for part in (mode.token, mode.chunk) if part is not None
            }.values()
        )
        self.served = base if isinstance(base, ServedBase) else None
        local = [] if isinstance(base, ServedBase) else [base]
        streams = [*local, *(stream for value in self.values for stream in value.streams())]
        self.streams: list[Stream] = list({id(stream): stream for stream in streams}.values())
        self.shards = base.network.shards if isinstance(base, Stream) else None
        self.stepper = Stepper(
            base, mode, limits, eos_ids, width or base.network.width, warn, graphs, speculate
        )
        self.resize(rows)

    def resize(self, rows: int) -> None:
        """Start over with `rows` empty slots; whatever was under way is forgotten."""
        self.rows = rows
        self.searches: list[Search] = []
        self.free = list(range(rows))
        self.owner: list[str | None] = [None] * rows
        for follower in (*self.streams, *self.values, self.stepper):
            follower.resize(rows)

    def guessed(self) -> Guessed | None:
        """Return how guessing tokens ahead has gone, None if it was never tried."""
        speculation = self.stepper.speculation
        tried = speculation is not None and speculation.tally.rounds > 0
        return speculation.tally if tried else None

    def under_way(self) -> tuple[int, float]:
        """Return the tokens of every unfinished search's longest candidate, and what share of their limits that is.

        The shares are in 0..1 and add up: two searches half done are 1.
        """
        tokens, share = 0, 0.0
        for search in self.searches:
            longest = search.longest()
            tokens += longest
            share += longest / search.max_new_tokens
        return tokens, share

    @torch.inference_mode()
    def run(self, requests: Iterable[Request] | Supply) -> Iterator[Outcome]:
        """Decode all requests; yield each outcome as soon as it is known, in no particular order.

        Raises:
            ModelError: not even one search fits into memory.
        """
        supply = Listed(requests) if isinstance(requests, Iterable) else requests
        waiting: deque[Request] = deque()
        more = True
        while more or waiting or self.searches:
            room = len(self.free) // self.ranking.rows - len(waiting)
            if more and room > 0:
                found = supply.take(room, wait=not waiting and not self.searches)
                more = found is not None
                waiting.extend(found or ())
            try:
                yield from self._admit(waiting)
                yield from self._guarded(self._step)
                self.stepped()
                yield from self._guarded(self._settle)
            except (torch.OutOfMemoryError, RuntimeError) as problem:
                if not _out_of_memory(problem):
                    raise
                waiting.extendleft(search.request for search in reversed(self.searches))
                self._shrink()

    def _shrink(self) -> None:
        """Halve the rows after memory ran out; what was under way begins again, with the same draws."""
        need = self.ranking.rows
        if self.shards is not None:
            # The other processes still have room, and go on without asking.
            what = f"out of memory with {self.rows} rows on one of {self.shards.count} GPUs"
            raise ModelError(
                "engine.rows", what, f"--rows {max(self.rows // 2, need)}, or more --shards"
            )
        if self.rows <= need:
            what = f"out of memory with {self.rows} rows, and one search needs {need}"
            raise ModelError(
                "engine.rows",
                what,
                "lower beam_width, successors or max_new_tokens, or use a smaller dtype",
            )
        smaller = max(self.rows // 2, need)
        self.warn(f"out of memory with {self.rows} rows: going on with {smaller}")
        self.resize(smaller)
        if self.base.network.device.type == "cuda":
            torch.cuda.empty_cache()

    def _guarded(self, work: Callable[[], Iterable[Outcome]]) -> Iterator[Outcome]:
        """Run one part of the loop; rows that a network fails on take their searches with them, the others go on."""
        while True:
            try:
                yield from work()
                return
            except RowFailure as failure:
                hit = [search for search in self.searches if set(search.slots) & set(failure.rows)]
                for search in hit:
                    for slot in search.slots:
                        for stream in self.streams:
                            stream.wipe(slot)
                        self.owner[slot] = None
                    self._retire(search)
                    yield Outcome(search.request, None, str(failure))

    def _admit(self, waiting: deque[Request]) -> Iterator[Outcome]:
        """Start waiting searches while there is room; every prompt is read once per stream, then shared."""
        need = self.ranking.rows
        fresh: dict[str, Search] = {}
        started: list[Search] = []
        while waiting and len(self.free) >= need:
            request = waiting.popleft()
            search = self._open(request)
            if isinstance(search, Outcome):
                yield search
                continue
            source = fresh.get(request.prompt.id)
            holder = next(
                (slot for slot in range(self.rows) if self.owner[slot] == request.prompt.id), None
            )
            search.slots = [heapq.heappop(self.free) for _ in range(need)]
            for slot in search.slots:
                self.owner[slot] = request.prompt.id
                for stream in self.streams:
                    stream.spent[slot] = 0
            if self.served is not None:
                self.served.begin(search.slots)
            # From here on the request is under way, and begins again should memory run out below.
            self.searches.append(search)
            started.append(search)
            self._reserve(search)
            if source is None and holder is not None:
                for stream in self.streams:
                    stream.restart(search.slots, holder)
            elif source is None:
                fresh[request.prompt.id] = search
        if not started:
            return
        self._prefill(list(fresh.values()))
        for search in started:
            source = fresh.get(search.request.prompt.id)
            if source is not None:
                for stream in self.streams:
                    stream.restart(search.slots, source.slots[0])
            self._begin(search)

    def _open(self, request: Request) -> Search | Outcome:
        """Return a search for a request, or its failure if the prompt does not suit a model or leaves no room."""
        prompt = request.prompt
        room = self.limits.max_new_tokens
        if request.max_new_tokens is not None:
            room = min(room, request.max_new_tokens)
        readers: list[Stream | ServedBase] = [*self.streams]
        if self.served is not None:
            readers.insert(0, self.served)
        for stream in readers:
            try:
                length = len(stream.prompts.encode(prompt.text, prompt.messages, prompt.id))
            except RecordError as problem:
                return Outcome(
                    request, None, f"{stream.network.name}: {problem.what} → {problem.hint}"
                )
            left = stream.network.context - length
            if left < 1:
                name = stream.network.name
                what = f"the prompt has {length:,} tokens for {name}, whose context is {stream.network.context:,}"
                return Outcome(request, None, f"{what} → shorten it")
            room = min(room, left)
        ids = self.base.prompts.encode(prompt.text, prompt.messages, prompt.id)
        return Search(request, ids, room, [])

    def _reserve(self, search: Search) -> None:
        """Make every cache as long as this search may need: growing it step by step would copy it again and again."""
        prompt = search.request.prompt
        for stream in self.streams:
            length = len(stream.prompts.encode(prompt.text, prompt.messages, prompt.id))
            stream.cache.reserve(min(length + search.max_new_tokens, stream.network.context))

    def _prefill(self, searches: Sequence[Search]) -> None:
        readings = []
        for stream in self.streams:
            rows = [search.slots[0] for search in searches]
            prompts = [search.request.prompt for search in searches]
            ids = [
                stream.prompts.encode(prompt.text, prompt.messages, prompt.id) for prompt in prompts
            ]
            readings.append(Reading(stream, rows, ids, prompt=True))
        read_all(readings)

    def _begin(self, search: Search) -> None:
        search.beam = list(search.slots)
        for slot in search.slots:
            search.hypotheses[slot] = Hypothesis(Row(search.request.prompt, search.prompt_ids))
            for value in self.values:
                value.start(slot, search.hypotheses[slot].row)
        search.open_chunk(self.ranking.chunk_length, self.seed)

    def _step(self) -> Iterable[Outcome]:
        """Draw for every row that has neither ended nor come to the end of its chunk."""
        self.stepper.step(self.searches)
        return ()

    def _settle(self) -> Iterable[Outcome]:
        """Rank the searches whose chunk is over; finish some, branch the others."""
        due = [search for search in self.searches if search.due()]
        if not due:
            return []
        self._value(due)
        won, going, targets, sources = [], [], [], []
        for search in due:
            winner, moves = self._rank(search)
            if winner is None:
                going.append(search)
            else:
                won.append((search, winner))
            targets += moves[0]
            sources += moves[1]
        # Copying may run out of memory, and then what has not been handed on begins again: nothing is
        # retired before.
        for follower in (*self.streams, *self.values):
            follower.copy(targets, sources)
        for search in going:
            search.open_chunk(self.ranking.chunk_length, self.seed)
        return [self._finish(search, winner) for search, winner in won]

    def _value(self, searches: Sequence[Search]) -> None:
        """Fill in values and base log-probabilities of all candidates."""
        rows = [slot for search in searches for slot in search.beam]
        found = [search.hypotheses[slot] for search in searches for slot in search.beam]
        judge = self.mode.chunk or self.mode.token
        if judge is not None:
            values = judge.value.values(rows, [hypothesis.row for hypothesis in found])
            if self.shards is not None:
                values = self.shards.agreed(values)
            for hypothesis, value in zip(found, values.tolist(), strict=True):
                hypothesis.value = value
        if isinstance(self.base, Stream):
            for slot, hypothesis in zip(rows, found, strict=True):
                hypothesis.base_logprob = float(self.base.totals[slot])

    def _rank(self, search: Search) -> tuple[Hypothesis | None, tuple[list[int], list[int]]]:
        """Return the winner if the search is over, and the slots to copy if it goes on."""
        ranking = self.ranking
        if ranking.rows == 1:
            return search.hypotheses[search.beam[0]], ([], [])
        candidates = []
        values: dict[tuple[int, ...], float] = {}
        for number, slot in enumerate(search.beam):
            hypothesis = search.hypotheses[slot]
            # The same response twice is a tie, whatever the last bits of its two values say.
            hypothesis.value = values.setdefault(tuple(hypothesis.row.tokens), hypothesis.value)
            parent = search.parent_values.get(slot, 0.0) if ranking.score == "advantage" else 0.0
            hypothesis.score = hypothesis.value - parent
            finished = hypothesis.row.finish is not None
            candidates.append(Candidate(number, hypothesis.value, hypothesis.score, finished))
        if ranking.compat == "w2s":
            selection = select_published(candidates, ranking.beam_width)
            winners = [search.hypotheses[search.beam[selection.parents[0]]]]
        else:
            selection = select(candidates, ranking.beam_width, [done.value for done in search.pool])
            search.pool += [search.hypotheses[search.beam[number]] for number in selection.pooled]
            winners = sorted(search.pool, key=lambda done: -done.value)
        search.chunk += 1
        if self.trace is not None:
            self.trace(search, candidates, selection.parents, selection.over)
        if selection.over:
            return winners[0], ([], [])
        return None, search.branch(
            [search.beam[number] for number in selection.parents], ranking.successors
        )

    def _finish(self, search: Search, winner: Hypothesis) -> Outcome:
        self._retire(search)
        state = winner.row
        text = state.text
        if text is None:
            text = response_text(self.base.network.tokenizer, state.prompt_ids, state.tokens)
        tallies = (each.rows[slot] for each in self.coverages for slot in search.slots)
        coverage = sum(tallies, Tally())
        return Outcome(
            search.request,
            winner,
            text=text,
            spent=self._spent(search),
            coverage=coverage,
            usage={} if self.served is None else self.served.used(search.slots),
        )

    def _spent(self, search: Search) -> tuple[Spent, ...]:
        """Return what every network has read for a search that is over."""
        prompt = search.request.prompt
        found = []
        for stream in self.streams:
            if stream.role:
                length = len(stream.prompts.encode(prompt.text, prompt.messages, prompt.id))
                tokens = sum(stream.spent[slot] for slot in search.slots)
                found.append(Spent(stream.role, length, tokens, stream.network.flops_per_token))
        for meter in self.meters:
            tokens = sum(meter.spent[slot] for slot in search.slots)
            if tokens:
                found.append(Spent(meter.role, 0, tokens, meter.flops_per_token))
        return tuple(found)

    def _retire(self, search: Search) -> None:
        self.searches.remove(search)
        for slot in search.slots:
            heapq.heappush(self.free, slot)


def _out_of_memory(problem: RuntimeError) -> bool:
    """Return whether an error says that memory ran out, on a GPU or a CPU."""
    text = str(problem).lower()
    return (
        isinstance(problem, torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )
