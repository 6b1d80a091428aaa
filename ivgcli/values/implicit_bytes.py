"""The implicit value for a base whose vocabulary is another: a log-ratio of probabilities of text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ivgcli.models.byte_vocabulary import ByteVocabulary
from ivgcli.models.canonical import Canonical
from ivgcli.models.retokenised import shared_prefix
from ivgcli.models.streams import Branches, Stream, read_all
from ivgcli.models.text import ANCHOR
from ivgcli.values import Row, require_finite
from ivgcli.values.bounds import Bounds, ask, bound
from ivgcli.values.coverage import Coverage
from ivgcli.values.forks import Fork, branches
from ivgcli.values.openings import canonical_opening
from ivgcli.values.precision import Precision
from ivgcli.values.prefixes import PrefixReader

ROUNDS = 100
"""Rounds of further passes in one step, at most; each goes one token deeper."""


class ByteImplicitValue:
    """V(x, y≤t) = log P_tuned(text of y | x) − log P_ref(text of y | x), P summing over a model's own tokenisations.

    A candidate of the base with bytes s adds the log-ratio of both models' probabilities that the text goes on with s.
    Both are bounded from one pass per network: all tokens that cover what is pending lie in one range of the
    byte-sorted distribution, and tokens that end inside s are the gap between the bounds. What the candidates most
    probable under the base would be tokenised into is read in that same pass; where too much probability stays
    uncertain, further passes follow. Summed over all tokenisations, increments add up to the log-ratio of the text.

    The context is the text's canonical tokenisation from the last place on that no token can lie across. EOS is the
    event that the text ends here, over all EOS ids of a model. A candidate without text (another special token) adds 0;
    no probability counts as less than 1e-16 of the text's own, so that no candidate is lost to −inf.

    Args:
        name: of the pair.
        tuned: stream of the tuned model, for this value alone.
        reference: stream of its reference, likewise.
        vocabularies: of the two.
        base: vocabulary of the base.
        precision: when bounds are narrow enough.
    """

    needs_candidates = True

    def __init__(
        self,
        name: str,
        tuned: Stream,
        reference: Stream,
        vocabularies: tuple[ByteVocabulary, ByteVocabulary],
        base: ByteVocabulary,
        precision: Precision,
    ) -> None:
        self.name = name
        self.base = base
        self.always = base.eos
        """Whether a response ends is always asked."""
        self.precision = precision
        self.readers = [
            PrefixReader(stream, vocabulary)
            for stream, vocabulary in zip((tuned, reference), vocabularies, strict=True)
        ]
        self.coverage = Coverage(base, vocabularies[0])
        self.resize(tuned.slots)

    def streams(self) -> list[Stream]:
        """Return tuned and reference."""
        return [reader.stream for reader in self.readers]

    def token_streams(self) -> list[Stream]:
        """Return none: the streams follow text."""
        return []

    def resize(self, rows: int) -> None:
        """Forget all rows."""
        for reader in self.readers:
            reader.resize(rows)
        self._written = [b""] * rows
        self._tokens = [0] * rows
        self._opening = [False] * rows
        """Whether the base's next token begins with a space that its decoder leaves out."""
        self.coverage.resize(rows)

    def start(self, row: int, state: Row) -> None:
        """Begin with the prompt in the pair's own tokens."""
        prompt = state.prompt
        for reader in self.readers:
            form = reader.stream.prompts
            reader.start(row, form.encode(prompt.text, prompt.messages, prompt.id))
        self._written[row] = b""
        self._tokens[row] = 0
        bare = not self.base.text(state.prompt_ids[-ANCHOR:])
        self._opening[row] = bare and self.base.opens_with_space
        self.coverage.start(row)

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Copy what is known of rows."""
        for reader in self.readers:
            reader.copy(targets, sources)
        for target, source in zip(targets, sources, strict=True):
            self._written[target] = self._written[source]
            self._tokens[target] = self._tokens[source]
            self._opening[target] = self._opening[source]

    def here(self, rows: Sequence[int]) -> Tensor:
        """Return 0: values are what the next token adds."""
        return torch.zeros(len(rows), device=self.readers[0].stream.network.device)

    def drawn(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Nothing to do: drawn tokens are read as text."""

    def values(self, rows: Sequence[int], states: Sequence[Row]) -> Tensor:
        """Return the log-ratio of each response's text in canonical tokens, its end included if it has come."""
        self._follow(rows, states)
        self._read(rows, [])
        totals = []
        for reader in self.readers:
            ends = [reader.slot(row, len(reader.texts[row].ids)) for row in rows]
            finish = np.log(np.maximum(reader.ending(ends), 1e-300)).tolist()
            sums = [
                sum(reader.logprobs[row][shared_prefix(text.prompt_ids, text.ids) :])
                + (ending if state.finish == "eos" else 0.0)
                for row, state, ending in zip(rows, states, finish, strict=True)
                for text in [reader.texts[row]]
            ]
            name = reader.stream.network.name
            totals.append(require_finite(name, rows, torch.tensor(sums, dtype=torch.float64)))
        return totals[0] - totals[1]

    def next_values(
        self,
        rows: Sequence[int],
        states: Sequence[Row],
        candidates: Tensor | None,
        logprobs: Tensor | None = None,
    ) -> Tensor:
        """Return what each candidate adds to the value (B, C)."""
        if candidates is None or logprobs is None:
            raise AssertionError("guidance in bytes values candidates of the base")
        self._follow(rows, states)
        weights = logprobs.gather(1, candidates).exp().double().cpu().numpy()
        forks = [
            Fork(row, choices, self.base, self.readers, self._opening[row])
            for row, choices in zip(rows, candidates.tolist(), strict=True)
        ]
        for fork, chances in zip(forks, weights, strict=True):
            fork.look_ahead(chances, self.precision.mass)
        tails = self._tails(forks)
        self._read(rows, tails)
        for side, (reader, tail) in enumerate(zip(self.readers, tails, strict=True)):
            first = reader.look_beyond(tail)
            for fork in forks:
                first = fork.number(side, first)
        bounds = self._bounds(forks)
        passes = self._narrow(forks, bounds, weights)
        values, widths = self._differences(forks, bounds)
        self.coverage.value(rows, logprobs, weights, widths[:, :-1], passes)
        return torch.from_numpy(values).float().to(candidates.device)

    def _follow(self, rows: Sequence[int], states: Sequence[Row]) -> None:
        """Bring the texts up to date."""
        for row, state in zip(rows, states, strict=True):
            current = self._written[row]
            if state.text is not None:
                response = state.text.encode()
            else:
                more = self.base.text(state.tokens[self._tokens[row] :])
                if more and self._opening[row]:
                    more, self._opening[row] = more.removeprefix(b" "), False
                response = current + more
            self._tokens[row] = len(state.tokens)
            if response == current:
                continue
            for place, reader in enumerate(self.readers):
                text = reader.texts[row]
                known, held = len(text.ids), text.held
                kept = text.replace(response, current)
                reader.shorten(row, kept)
                if place == 0:
                    self.coverage.follow(row, kept >= known and not held)
            self._written[row] = response

    def _read(self, rows: Sequence[int], tails: Sequence[Branches]) -> None:
        """Read what the texts have grown by, and continuations, in one pass per network."""
        asked = [reader.prepare(rows) for reader in self.readers]
        read_all([reading for reading, _ in asked], [*(again for _, again in asked), *tails])
        for reader, (reading, again) in zip(self.readers, asked, strict=True):
            reader.settle(rows, reading, again)

    def _tails(self, forks: Sequence[Fork]) -> list[Branches]:
        """Return what has to be read for the nodes without a distribution, for each model."""
        return [branches(side, reader, forks) for side, reader in enumerate(self.readers)]

    def _bounds(self, forks: Sequence[Fork]) -> list[Bounds]:
        """Return each model's bounds of all candidates."""
        columns = forks[0].columns
        canonical = self.precision.tokenisations == "canonical"
        asked = [
            {
                id(each): ask(
                    each,
                    fork.candidates,
                    columns - 1,
                    () if canonical else fork.endings,
                    canonical,
                )
                for each in fork.lattices
            }
            for fork in forks
        ]
        return [
            bound(
                reader,
                [fork.lattices[side] for fork in forks],
                [known[id(fork.lattices[side])] for known, fork in zip(asked, forks, strict=True)],
                [fork.slots[side] for fork in forks],
                [fork.endings for fork in forks],
                columns,
            )
            for side, reader in enumerate(self.readers)
        ]

    def _narrow(self, forks: list[Fork], bounds: list[Bounds], weights: np.ndarray) -> list[int]:
        """Spend further passes until little enough of the base's probability is uncertain; return each row's number."""
        exact = self.precision.width == 0
        chances = np.concatenate([weights, np.full((len(forks), 1), float(exact))], axis=1)
        passes = [0] * len(forks)
        for _ in range(ROUNDS):
            uncertain = _widths(bounds) > self.precision.width
            wide = (chances * uncertain).sum(-1) > self.precision.mass
            if not wide.any():
                break
            found = {
                number: self._grow(forks[number], number, uncertain[number], bounds)
                for number in np.flatnonzero(wide).tolist()
            }
            grown = [number for number, (new, _) in found.items() if new]
            ruled = any(out for _, out in found.values())
            if not grown:
                if not ruled:
                    break
                continue
            some = [forks[number] for number in grown]
            tails = self._tails(some)
            read_all([], tails)
            for side, (reader, tail) in enumerate(zip(self.readers, tails, strict=True)):
                first = reader.look_further(tail)
                for fork in some:
                    first = fork.number(side, first)
            for mine, other in zip(bounds, self._bounds(some), strict=True):
                mine.patch(grown, other)
            for number in grown:
                passes[number] += 1
        return passes

    def _grow(
        self, fork: Fork, number: int, uncertain: np.ndarray, bounds: Sequence[Bounds]
    ) -> tuple[bool, bool]:
        """Give nodes to what the uncertain candidates of one row may still go through; return whether any are new."""
        before, out = fork.nodes, False
        for side, found in enumerate(bounds):
            lattice, text = fork.lattices[side], self.readers[side].texts[fork.row]
            gap = found.gap()[number]
            for at in np.flatnonzero(found.places // fork.columns == number).tolist():
                column = int(found.places[at]) % fork.columns
                share = 0.1 * gap[column] if self.precision.width else 0.0
                if not uncertain[column] or found.masses[at] <= share:
                    continue
                node, token = int(found.nodes[at]), int(found.tokens[at])
                candidate = fork.bytes_of(column)
                if self.precision.tokenisations == "possible" and not _possible(
                    fork, side, text, node, token, candidate
                ):
                    found.masses[at], out = 0.0, True
                    rest = lattice.rest(node, candidate) or b""
                    lattice.excluded.add((node, token, rest))
                else:
                    lattice.grow(node, token, candidate)
        return fork.nodes > before, out

    def _differences(
        self, forks: Sequence[Fork], bounds: Sequence[Bounds]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the values (R, C), midpoints of the bounds, and the nats between bounds (R, C + 1)."""
        logs = []
        for found in bounds:
            middle = found.lower + 0.5 * found.gap()
            # Running sums in float64 know nothing of less than this share of the text's own probability.
            least = np.maximum(1e-16 * middle[:, -1:], 1e-300)
            logs.append(np.log(np.maximum(middle, least)))
        ratio = logs[0] - logs[1]
        values = ratio[:, :-1] - ratio[:, -1:]
        for row, fork in enumerate(forks):
            mute = np.ones(fork.columns - 1, dtype=bool)
            mute[[number for number, _ in fork.candidates]] = False
            mute[fork.endings] = False
            values[row, mute] = 0.0
        return values, _widths(bounds)


def _possible(
    fork: Fork, side: int, text: Canonical, node: int, token: int, candidate: bytes
) -> bool:
    """Return whether a canonical tokenisation can go through `token` after `node` on its way to a candidate."""
    lattice = fork.lattices[side]
    piece = lattice.vocabulary.pieces[token] or b""
    rest = (lattice.rest(node, candidate) or b"")[len(piece) :]
    path = [*text.ids[text.root : fork.begins[side]], *lattice.path(node), token]
    whole = bytes(text.text[text.root_place :]) + text.held + candidate
    return canonical_opening(lattice.vocabulary, text.before, whole, path, rest)


def _widths(bounds: Sequence[Bounds]) -> np.ndarray:
    """Return the nats (R, C + 1) between the bounds of log-ratios; 0 where a model gives no probability at all."""
    total = 0.0
    for found in bounds:
        gap = found.gap()
        with np.errstate(divide="ignore", invalid="ignore"):
            nats = np.log1p(gap / found.lower)
        total = total + np.where(gap > 0, nats, 0.0)
    return total
