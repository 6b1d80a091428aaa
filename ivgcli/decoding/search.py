"""One search: the candidates of one sample of one prompt, and its finished hypotheses."""

from __future__ import annotations

from dataclasses import dataclass, field

from ivgcli.decoding.draws import stream_key
from ivgcli.values import Prompted, Row
from ivgcli.values.coverage import Tally


@dataclass(frozen=True)
class Request:
    """One response to decode."""

    prompt: Prompted
    sample: int = 0
    candidate: int = 0
    """Number among the candidates of best-of-N; 0 otherwise."""
    max_new_tokens: int | None = None
    """Tokens of this response at most, from 1 to what the run allows; None: as many as that."""


@dataclass
class Hypothesis:
    """A response, finished or not, with what is known of it."""

    row: Row
    kl: float = 0.0
    """Σ log p_guided − log p_base of its tokens."""
    base_logprob: float | None = 0.0
    """None: the base does not tell."""
    value: float | None = None
    score: float = 0.0


@dataclass(frozen=True)
class Spent:
    """What one network has read for a request."""

    role: str
    """base, tuned, reference or value."""
    prompt_tokens: int
    """Tokens of the prompt, whoever has read it: requests for one prompt share that."""
    tokens: int
    """Tokens of all candidates that were read or peeked at, read again included, rejected guesses left out."""
    flops_per_token: int


@dataclass
class Outcome:
    """What a request came to: the winning hypothesis, or the sentence that says why there is none."""

    request: Request
    winner: Hypothesis | None
    failure: str | None = None
    text: str = ""
    spent: tuple[Spent, ...] = ()
    """One for each stream that has a role."""
    coverage: Tally = field(default_factory=Tally)
    """What guidance across vocabularies had to bridge, all candidates together."""
    usage: dict[str, int] = field(default_factory=dict)
    """What a server counted: requests, prompt tokens, completion tokens."""


@dataclass
class Search:
    """The state of one request while it decodes."""

    request: Request
    prompt_ids: list[int]
    max_new_tokens: int
    slots: list[int]
    """All slots it owns."""
    beam: list[int] = field(default_factory=list)
    """Slots of the current candidates, in the order of their numbers."""
    hypotheses: dict[int, Hypothesis] = field(default_factory=dict)
    """By slot."""
    keys: dict[int, int] = field(default_factory=dict)
    """Draw keys by slot."""
    parent_values: dict[int, float] = field(default_factory=dict)
    pool: list[Hypothesis] = field(default_factory=list)
    chunk: int = 0
    """Number of rankings so far."""
    chunk_end: int = 0
    """Response length at which the current chunk ends."""

    def live(self) -> list[int]:
        """Return the slots that still decode."""
        return [slot for slot in self.beam if self.hypotheses[slot].row.finish is None]

    def longest(self) -> int:
        """Return the number of tokens of the longest candidate."""
        return max((len(self.hypotheses[slot].row.tokens) for slot in self.beam), default=0)

    def open_chunk(self, chunk_length: int | None, seed: int) -> None:
        """Number the candidates of a new chunk and give each its noise."""
        lengths = [len(self.hypotheses[slot].row.tokens) for slot in self.live()]
        start = max(lengths, default=0)
        self.chunk_end = self.max_new_tokens if chunk_length is None else start + chunk_length
        for number, slot in enumerate(self.beam):
            candidate = self.request.candidate + number
            self.keys[slot] = stream_key(
                seed, self.request.prompt.id, self.request.sample, candidate
            )

    def due(self) -> bool:
        """Return whether the current chunk is over: every candidate has ended or reached its end."""
        return all(
            state.finish is not None or len(state.tokens) >= self.chunk_end
            for state in (self.hypotheses[slot].row for slot in self.beam)
        )

    def branch(self, parents: list[int], successors: int) -> tuple[list[int], list[int]]:
        """Give every parent K slots, the first of them its own.

        Args:
            parents: slots that go on, best first.
            successors: K.

        Returns:
            Slots to overwrite and the slots they become copies of. A parent may be listed several times (copies of one
            finished hypothesis): only one of them keeps the slot.
        """
        spare = [slot for slot in self.slots if slot not in parents]
        beam, targets, sources = [], [], []
        kept: set[int] = set()
        hypotheses: dict[int, Hypothesis] = {}
        for parent in parents:
            for _ in range(successors):
                if parent not in kept:
                    kept.add(parent)
                    slot = parent
                else:
                    slot = spare.pop(0)
                    targets.append(slot)
                    sources.append(parent)
                beam.append(slot)
                old = self.hypotheses[parent]
                row = Row(
                    old.row.prompt,
                    old.row.prompt_ids,
                    list(old.row.tokens),
                    old.row.finish,
                    old.row.text,
                )
                hypotheses[slot] = Hypothesis(row, old.kl, old.base_logprob, old.value, old.score)
        self.parent_values = {slot: hypotheses[slot].value for slot in beam}
        self.beam, self.hypotheses = beam, hypotheses
        return targets, sources
