"""Several tokens for every row without the host: all it says before is which rows, all it asks after is what was drawn.

A step of the ordinary loop lays out a pass on the host and waits for the drawn tokens; on a GPU both take longer than
small models need to decode. A burst keeps tokens, positions, keys and results in tensors on the device, so that a
whole step (all forward passes, combination, truncation, keyed draw, append) is the same work on the same addresses
every time: one CUDA graph per number of lanes. Rows that end within a burst stand still until it is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ivgcli.decoding import Limits, TokenGuidance
from ivgcli.decoding.choice import Choice, choose_plain, choose_tilted
from ivgcli.decoding.draws import mixed_keys, signed
from ivgcli.decoding.sampling import warped
from ivgcli.models.lanes import Lanes
from ivgcli.models.logprobs import log_softmax_
from ivgcli.models.network import Ledger
from ivgcli.models.readings import shared_passes
from ivgcli.models.streams import Stream
from ivgcli.values.placed import implicit_parts

STEPS = 16
"""Tokens of a burst at most: a row that ends in its first waits for the others that long."""

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Numbers of lanes that are captured, beside the engine's rows themselves."""

BESIDE = 32
"""Up to this many lanes no network fills the GPU, so they run beside each other."""

TOKEN, LOGPROB, GAIN = range(3)
"""What a burst reports of a draw; the log-probabilities under counting streams follow."""


@dataclass
class Drawn:
    """What a burst drew in one lane; only tokens up to the row's end count."""

    tokens: list[int]
    gains: list[float]
    logprobs: dict[int, list[float]]
    """Log-probabilities under the base and each counting stream, by the stream's id()."""


@dataclass
class Lane:
    """One row of a burst."""

    slot: int
    token: int
    """The latest token, which nobody has read yet."""
    key: int
    """64-bit key of the row's noise."""
    step: int
    """Place of the next token in the response."""
    left: int
    """Tokens that it may still draw now."""


class Table:
    """What a number of lanes needs on the device, and the graph of a step over it.

    Args:
        size: number of lanes.
        streams: what reads.
        counting: how many of them report log-probabilities besides the base.
        device: where.
    """

    def __init__(self, size: int, streams: Sequence[Stream], counting: int, device: torch.device):
        fields = 5 + len(streams)
        self.inputs = torch.zeros((fields, size), dtype=torch.int64, device=device)
        self.slots, self.tokens, self.keys, self.steps, self.left = self.inputs[:5]
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        """Number of the step within the burst."""
        self.results = torch.zeros((STEPS, 3 + counting, size), dtype=torch.float64, device=device)
        self.trouble = torch.zeros(2, dtype=torch.bool, device=device)
        """Whether a nucleus was too wide, and whether a number was not finite."""
        self.lanes = {
            id(stream): Lanes(stream.cache, self.slots, positions)
            for stream, positions in zip(streams, self.inputs[5:], strict=True)
        }
        self.stores = [stream.cache.store for stream in streams]
        """Held so that no other cache can come to lie where they were."""
        self.graph: torch.cuda.CUDAGraph | None = None

    def fits(self, streams: Sequence[Stream]) -> bool:
        """Return whether the caches are still those that it was made for."""
        pairs = zip(self.stores, streams, strict=True)
        return all(store is stream.cache.store for store, stream in pairs)


class Burst:
    """Draws up to `STEPS` tokens for rows without looking at one in between.

    Args:
        base: stream of the base.
        guidance: an implicit value over the whole vocabulary in every step (see `possible`), or None.
        limits: temperature, top-k, top-p.
        vocabulary: (V,) int32, the ids that may be drawn.
        eos_ids: what ends a response.
        warn: told when a step cannot be captured.
    """

    def __init__(
        self,
        base: Stream,
        guidance: TokenGuidance | None,
        limits: Limits,
        vocabulary: Tensor,
        eos_ids: frozenset[int],
        warn: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.base = base
        self.guidance = guidance
        self.limits = limits
        self.vocabulary = vocabulary
        self.device = vocabulary.device
        self.warn = warn
        self.parts = implicit_parts(guidance.value) if guidance is not None else []
        guides = (stream for value, _ in self.parts for stream in value.streams())
        self.streams: list[Stream] = list({id(each): each for each in (base, *guides)}.values())
        self.counting = [each for each in self.streams if each.counting and each is not base]
        self.ends = torch.zeros(len(vocabulary), dtype=torch.bool, device=self.device)
        self.ends[[token for token in eos_ids if token < len(vocabulary)]] = True
        self.captures = self.device.type == "cuda"
        """Whether steps are to be captured."""
        self._sides: list[torch.cuda.Stream] = []
        self.replays = 0
        """Steps that were replays of a graph."""
        self.resize(base.slots)

    def resize(self, rows: int) -> None:
        """Forget all tables."""
        self.rows = rows
        self.tables: dict[int, Table] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.captures else None

    def ready(self, slot: int, tokens: int) -> bool:
        """Return whether all that is unread of a row is its latest token, and every token before it is counted.

        Args:
            slot: of the row.
            tokens: the length of its response.
        """
        return all(
            stream.intact[slot]
            and stream.responses_read(slot) == tokens - 1
            and (stream.counted[slot] == tokens or not (stream.counting or stream is self.base))
            for stream in self.streams
        )

    def draw(self, lanes: Sequence[Lane]) -> list[Drawn] | None:
        """Draw until every lane has had what it may draw or has ended, for `STEPS` tokens at most.

        Streams know nothing of it until `settle` is told how many tokens of each lane count.

        Returns:
            What each lane drew, or None where something came up that only an ordinary step can deal with.
        """
        table = self._table(len(lanes))
        steps = min(STEPS, max(lane.left for lane in lanes))
        self._load(table, lanes)
        if self.captures and table.graph is None:
            self._capture(table, lanes)
        for _ in range(steps):
            if table.graph is not None:
                table.graph.replay()
                self.replays += 1
                self._book(table)
            else:
                self._advance(table)
        # The one place where the host waits.
        found = torch.cat([table.results[:steps].flatten(), table.trouble.double()]).cpu()
        if bool(found[-2:].any()):
            self._forget(lanes)
            return None
        results = found[:-2].view(steps, 3 + len(self.counting), -1)
        return [self._read(results[..., number]) for number in range(len(lanes))]

    def _forget(self, lanes: Sequence[Lane]) -> None:
        """Clear what was read: what is masked counts 0 times its value, and 0 times NaN is NaN."""
        for stream in self.streams:
            for lane in lanes:
                stream.cache.wipe(lane.slot, stream.lengths[lane.slot])

    def settle(self, slot: int, drawn: Drawn, count: int) -> None:
        """Let the streams know that the first `count` tokens of what a lane drew count."""
        for stream in self.streams:
            stream.lengths[slot] += count
            stream.spent[slot] += count
            logprobs = drawn.logprobs.get(id(stream))
            if logprobs is not None:
                total = float(stream.totals[slot])
                for logprob in logprobs[:count]:  # one by one, as single steps add them
                    total += logprob
                stream.totals[slot] = total
                stream.counted[slot] += count

    def _read(self, results: Tensor) -> Drawn:
        """Return what one lane (steps, fields) drew."""
        logprobs = {id(self.base): results[:, LOGPROB].tolist()}
        for number, stream in enumerate(self.counting, 3):
            logprobs[id(stream)] = results[:, number].tolist()
        return Drawn(
            [int(token) for token in results[:, TOKEN].tolist()],
            results[:, GAIN].tolist(),
            logprobs,
        )

    def _table(self, count: int) -> Table:
        """Return the table for `count` lanes, anew if a cache has grown."""
        size = next((size for size in SIZES if count <= size < self.rows), self.rows)
        table = self.tables.get(size)
        if table is None or not table.fits(self.streams):
            if table is not None:
                self.tables.clear()  # the caches that they hold on to are no longer in use
            table = self.tables[size] = Table(size, self.streams, len(self.counting), self.device)
        return table

    def _load(self, table: Table, lanes: Sequence[Lane]) -> None:
        """Bring the lanes' rows to the device in one go; lanes without a row repeat the first."""
        padded = [*lanes, *[lanes[0]] * (table.inputs.shape[1] - len(lanes))]
        columns = [
            [lane.slot for lane in padded],
            [lane.token for lane in padded],
            [signed(lane.key) for lane in padded],
            [lane.step for lane in padded],
            [lane.left for lane in padded],
            *([stream.lengths[lane.slot] for lane in padded] for stream in self.streams),
        ]
        table.inputs.copy_(torch.tensor(columns, dtype=torch.int64))
        table.at.zero_()
        table.trouble.zero_()

    def _capture(self, table: Table, lanes: Sequence[Lane]) -> None:
        """Record a step as a graph; what it does while it is tried out, it does again when it counts."""
        ledgers = [
            (stream.network, Ledger(**vars(stream.network.ledger))) for stream in self.streams
        ]
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            self._advance(table)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                self._advance(table)
            table.graph = graph
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as problem:
            self.captures = False
            reason = str(problem).strip().splitlines()[0]
            self.warn(f"decoding without CUDA graphs: a step cannot be captured ({reason})")
        for network, ledger in ledgers:
            network.ledger = ledger
        self._load(table, lanes)

    def _book(self, table: Table) -> None:
        """Enter one replayed step in the ledgers, which nobody else does."""
        for members in shared_passes(self.streams):
            ledger = members[0].network.ledger
            ledger.passes += 1
            ledger.tokens += len(members) * table.inputs.shape[1]

    def _advance(self, table: Table) -> None:
        """Do one step: read the latest tokens, choose the next ones, report them, and move on."""
        self._pass(table)
        choice, finite = self._choose(table)
        table.trouble[1:] |= ~finite.all()
        rows = [choice.tokens, choice.base_logprobs, choice.gains]
        picked = {
            id(stream): logprobs
            for value, _ in self.parts
            for stream, logprobs in value.picked(choice.tokens)
        }
        rows += [picked[id(stream)] for stream in self.counting]
        report = torch.stack([row.double() for row in rows])
        table.results.index_copy_(0, table.at, report[None])
        alive = table.left > 0
        table.tokens.copy_(torch.where(alive, choice.tokens, table.tokens))
        table.inputs[5:] += alive
        table.steps += alive
        table.left.sub_(alive.long()).masked_fill_(alive & self.ends[choice.tokens], 0)
        table.at += 1

    def _pass(self, table: Table) -> None:
        """Let every network read the latest tokens, in one pass for those that share weights."""
        groups = shared_passes(self.streams)
        beside = self.captures and len(groups) > 1 and len(table.slots) <= BESIDE
        if not beside:
            for members in groups:
                self._pass_of(table, members)
            return
        current = torch.cuda.current_stream(self.device)
        self._sides += [torch.cuda.Stream(self.device) for _ in groups[len(self._sides) + 1 :]]
        for side, members in zip(self._sides, groups[1:], strict=True):
            side.wait_stream(current)
            with torch.cuda.stream(side):
                self._pass_of(table, members)
        self._pass_of(table, groups[0])
        for side in self._sides:
            current.wait_stream(side)

    def _pass_of(self, table: Table, members: Sequence[Stream]) -> None:
        """Let streams that share a pass read the latest tokens."""
        network = members[0].network
        segments = [table.lanes[id(stream)] for stream in members]
        tokens = []
        for stream, segment in zip(members, segments, strict=True):
            segment.begin()
            own = stream.translation
            tokens.append(table.tokens if own is None else own.columns[table.tokens])
        flat = torch.cat(tokens) if len(tokens) > 1 else tokens[0]
        hidden = network.read(flat, segments, [stream.adapter for stream in members])
        for stream, part in zip(members, hidden.chunk(len(members)), strict=True):
            stream.last.index_copy_(0, table.slots, part)

    def _choose(self, table: Table) -> tuple[Choice, Tensor]:
        """Return the next tokens, and which rows (B,) have nothing but finite numbers."""
        keys = mixed_keys(table.keys, table.steps)
        beyond = table.trouble[:1]
        logits = self.base.outputs(table.slots)[:, : len(self.vocabulary)]
        if self.guidance is None:
            choice = choose_plain(logits, self.limits, keys, self.vocabulary, beyond)
            return choice, torch.isfinite(choice.logprobs)
        source = plain = log_softmax_(logits)
        limits, finite = self.limits, torch.isfinite(plain.amax(-1))
        if self.guidance.warp == "before":
            source, limits = warped(plain, limits, beyond), Limits()
        tilt: Tensor | None = None
        for value, weight in self.parts:
            finite &= torch.isfinite(value.weigh(table.slots))
            tilt = _added(tilt, value.ratios(), weight)
        width = min(tilt.shape[1], source.shape[1])
        tilt = tilt[:, :width].mul_(self.guidance.weight).add_(source[:, :width])
        choice = choose_tilted(plain, source, tilt, limits, keys, self.vocabulary, beyond)
        return choice, finite & torch.isfinite(choice.logprobs)


def _added(total: Tensor | None, ratios: Tensor, weight: float) -> Tensor:
    """Return the sum of weighted values, cut to the narrowest vocabulary."""
    if weight != 1:
        ratios = weight * ratios
    if total is None:
        return ratios
    width = min(total.shape[1], ratios.shape[1])
    return total[:, :width] + ratios[:, :width]


def possible(guidance: TokenGuidance | None) -> bool:
    """Return whether bursts can draw under a guidance: none at all, or implicit values over the whole vocabulary."""
    if guidance is None:
        return True
    always = guidance.every == 1 and guidance.candidates is None
    return always and bool(implicit_parts(guidance.value))
