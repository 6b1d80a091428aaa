"""The implicit value for a base whose vocabulary is another: a log-ratio of probabilities of text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ivgcli.models.byte_vocabulary import ByteVocabulary
from ivgcli.models.continued import Continued
from ivgcli.models.readings import Branches, read_all
from ivgcli.models.retokenised import shared_prefix
from ivgcli.models.streams import Stream
from ivgcli.models.text import ANCHOR
from ivgcli.values import Row, require_finite
from ivgcli.values.additions import Additions, Ints, Ranges
from ivgcli.values.bounds import Bounds
from ivgcli.values.coverage import Coverage
from ivgcli.values.forks import Fork
from ivgcli.values.narrowing import narrow, widths
from ivgcli.values.plan import Plan
from ivgcli.values.precision import Precision
from ivgcli.values.prefixes import PrefixReader


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
        self.additions = Additions(base.pieces, base.opens_with_space)
        self.ranges = {each: Ranges(self.additions, each) for each in {*vocabularies}}
        self.continued = {each: Continued(self.additions.pieces, each) for each in self.ranges}
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
        prompt, text = state.prompt, None
        for reader in self.readers:
            form = reader.stream.prompts
            reader.start(row, form.encode(prompt.text, prompt.messages, prompt.id), text)
            text = reader.texts[row]
        self._written[row] = b""
        self._tokens[row] = 0
        bare = not self.base.text(state.prompt_ids[-ANCHOR:])
        self._opening[row] = bare and self.base.opens_with_space
        self.coverage.start(row)

    def copy(self, targets: Sequence[int], sources: Sequence[int]) -> None:
        """Copy what is known of rows."""
        for reader in self.readers:
            reader.copy(targets, sources)
        tuned, reference = (reader.texts for reader in self.readers)
        for target, source in zip(targets, sources, strict=True):
            if tuned[source] is reference[source]:
                reference[target] = tuned[target]
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
        chances = logprobs.gather(1, candidates).exp()
        outside = self.coverage.outside(logprobs)[:, None]
        ids, weights, beyond = _downloaded(candidates, chances, outside)
        plan = self._plan(rows, ids.astype(np.int64))
        plan.look_ahead(self.continued, weights)
        tails = plan.tails()
        self._read(rows, tails)
        plan.keep(tails)
        bounds = plan.bounds()
        passes = narrow(plan, bounds, weights)
        values, nats = _differences(plan, bounds)
        self.coverage.value(rows, beyond[:, 0].tolist(), weights, nats[:, :-1], passes)
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
            tuned, reference = (reader.texts[row] for reader in self.readers)
            known, held = len(tuned.ids), tuned.held
            kept = tuned.replace(response, current)
            self.coverage.follow(row, kept >= known and not held)
            self.readers[0].shorten(row, kept)
            if reference is not tuned:
                kept = reference.replace(response, current)
            self.readers[1].shorten(row, kept)
            self._written[row] = response

    def _read(self, rows: Sequence[int], tails: Sequence[Branches]) -> None:
        """Read what the texts have grown by, and continuations, in one pass per network."""
        asked = [reader.prepare(rows) for reader in self.readers]
        read_all([reading for reading, _ in asked], [*(again for _, again in asked), *tails])
        for reader, (reading, again) in zip(self.readers, asked, strict=True):
            reader.settle(rows, reading, again)

    def _plan(self, rows: Sequence[int], ids: Ints) -> Plan:
        """Return the plan of a step for these rows and their candidates (R, C)."""
        return Plan(
            self.readers,
            self.additions,
            self.ranges,
            self.precision,
            [Fork(row, self.readers) for row in rows],
            self.additions.numbers(ids, [self._opening[row] for row in rows]),
            np.isin(ids, list(self.base.eos)),
        )


def _downloaded(*columns: Tensor) -> list[NDArray[np.float64]]:
    """Return tables of equal height in host memory as float64, brought there together."""
    table = torch.cat([column.double() for column in columns], dim=1).cpu().numpy()
    return np.split(table, np.cumsum([column.shape[1] for column in columns])[:-1], axis=1)


def _differences(
    plan: Plan, bounds: Sequence[Bounds]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the values (R, C), midpoints of the bounds, and the nats between bounds (R, C + 1)."""
    logs = []
    for found in bounds:
        middle = found.lower + 0.5 * found.gap()
        # Running sums in float64 know nothing of less than this share of the text's own probability.
        least = np.maximum(1e-16 * middle[:, -1:], 1e-300)
        logs.append(np.log(np.maximum(middle, least)))
    ratio = logs[0] - logs[1]
    values = ratio[:, :-1] - ratio[:, -1:]
    values[~(plan.written | plan.ending)] = 0.0
    return values, widths(bounds)
