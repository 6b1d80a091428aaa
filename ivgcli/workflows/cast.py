"""The networks of a run that is planned: which there would be, what they share, what each would read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ivgcli.models.prompts import PLACEHOLDER
from ivgcli.models.shards import require_heads, require_shardable
from ivgcli.models.sizes import CONFIGURATION, Found, Kind, configuration
from ivgcli.recipes import BaseSpec, ExplicitSpec, ImplicitSpec, ModelSpec, ServerSpec
from ivgcli.values.prefixes import distribution_bytes
from ivgcli.workflows.reckoning import Course
from ivgcli.workflows.survey import BYTES, Asked, Survey

Reads = Callable[[int, int], int]
"""From the tokens of a prompt and of its full response to what a network reads for one search."""


@dataclass(frozen=True)
class Part:
    """One network in one role."""

    role: str
    name: str
    """Model, callable or server."""
    found: Found | None = None
    """None: no network of ours."""
    format: str = ""
    weights: int | None = None
    """Bytes; 0 where an earlier part has them; None: not known."""
    row: int | None = None
    """Bytes of keys and values of one row at its longest."""
    tokens: int | None = None
    """Tokens read in the whole run, at most."""
    notes: tuple[str, ...] = ()
    shards: int = 1
    """GPUs that hold it between them; weights and rows are those of one of them."""

    @property
    def flops(self) -> int | None:
        """Floating-point operations of the whole run, at most; None: not known."""
        if self.found is None or self.found.size is None or self.tokens is None:
            return None
        return self.found.size.flops_per_token * self.tokens


@dataclass
class Member:
    """A part that is being put together."""

    part: Part
    reads: Reads
    lengths: list[int] | None
    """Tokens of each prompt; None: they are not here."""
    kept: bool
    """Whether it keeps keys and values, and so reads every prompt once."""
    table: int = 0
    """Bytes of the distributions that guidance in bytes keeps of a row."""


class Cast:
    """Collects the parts of a decoding run as `Assembly` would load them.

    Args:
        survey: looks models up.
        asked: what is answered.
        base: the model that draws.
        course: of one search.
        searches: of each prompt.
        limit: `max_new_tokens`.
        vocabulary: as in a recipe.
    """

    def __init__(
        self,
        survey: Survey,
        asked: Asked,
        base: ModelSpec,
        course: Course,
        searches: int,
        limit: int,
        vocabulary: str = "auto",
    ) -> None:
        self.survey, self.asked, self.base = survey, asked, base
        self.course, self.searches, self.limit = course, searches, limit
        self.vocabulary = vocabulary
        self.notes: list[str] = []
        self.members: list[Member] = []
        self._weights: dict[tuple[Any, ...], str] = {}
        self._streams: dict[tuple[Any, ...], str] = {}
        self._divided: dict[tuple[Any, ...], int] = {}
        self._reader: ModelSpec | None = base
        if isinstance(base, BaseSpec) and base.served:
            self._reader = base.reader()
            self._add_served(base)
        else:
            if isinstance(base, BaseSpec) and base.divided:
                self._divide(base, int(base.shards or 1))
            self._stream("base", base, lambda prompt, tokens: course.drawn(tokens))

    def _divide(self, base: BaseSpec, shards: int) -> None:
        """Note that several GPUs hold the weights of the base between them, and all that reads with these.

        Raises:
            ModelError: it cannot be divided, as far as can be seen.
        """
        found = self.survey.find(base, "language model")
        if found.told_by == CONFIGURATION and found.reference is not None:
            require_shardable(base.model, configuration(base, found.reference), shards)
        elif found.size is not None:
            require_heads(base.model, found.size.kv_heads, shards)
        self._divided[self._key(base, found, "language model")] = shards

    def _add_served(self, base: BaseSpec) -> None:
        """Add a base that a server draws from: nothing of it is kept here but its tokenizer."""
        in_flight = (base.server or ServerSpec()).in_flight
        part = Part("base", base.model, notes=(f"served, {in_flight} requests in flight",))
        lengths = None
        if self._reader is not None:
            lengths = self.survey.lengths(self._reader, self.asked)
        self.members.append(Member(part, _nothing, lengths, False))

    def add_implicit(self, pairs: Sequence[ImplicitSpec], guides: bool) -> None:
        """Add implicit values; `guides`: whether they guide tokens."""
        for pair in pairs:
            if pair.model is not None:
                specs = [pair.model, pair.model]
                told = [pair.tuned_prompt, pair.reference_prompt]
            else:
                specs = [spec for spec in (pair.tuned, pair.reference) if spec is not None]
                told = [None, None]
            shared = all([self._shares_tokens(spec, guides) for spec in specs])
            apart = self._in_bytes() if guides else self._by_text(False)
            reads = self._following(guides) if shared else apart
            for role, spec, prompt in zip(("tuned", "reference"), specs, told, strict=True):
                number = self._numbered(role)
                self._stream(number, spec, reads, prompt, not shared, guides and not shared)

    def add_explicit(self, values: Sequence[ExplicitSpec], guides: bool, ranks: bool) -> None:
        """Add explicit values, or rewards read as such.

        Args:
            values: a network or a callable each.
            guides: whether they guide tokens.
            ranks: whether they rank chunks or whole responses.
        """
        for value in values:
            role = self._numbered("value")
            if value.model is None:
                self.members.append(Member(Part(role, str(value.callable)), _nothing, None, False))
                continue
            spec = value.model
            found = self.survey.find(
                spec, "classifier", "token-q" if value.head == "token-q" else "own"
            )
            size = found.size
            if size is not None and size.encoder:
                self.add_reader(role, spec, found, self._whole_texts(guides, ranks))
                continue
            # A head may leave out rows of the embedding that pad it.
            wide = size is not None and 2 * size.outputs > size.vocabulary
            if value.head == "token-q" or (value.head == "auto" and wide):
                self._shares_tokens(spec, guides, by_ids=True)
                reads = self._following(guides)
            elif value.by_text or not self._shares_tokens(spec, False):
                reads = self._by_text(guides)
            else:
                reads = self._peeking(guides)
            self._add(role, spec, found, "classifier", reads, True)

    def add_reader(self, role: str, spec: ModelSpec, found: Found, reads: Reads) -> None:
        """Add a network that takes prompt and response anew at every call."""
        self._add(role, spec, found, "classifier", reads, False)

    def parts(self) -> tuple[Part, ...]:
        """Return the parts, with all that they read."""
        rooms = self._rooms()
        return tuple(
            replace(member.part, tokens=self._read(member, rooms))
            if member.part.found is not None
            else member.part
            for member in self.members
        )

    def longest(self) -> int:
        """Return the longest prompt of any network that keeps keys and values, in tokens."""
        kept = [member.lengths or [] for member in self.members if member.kept]
        return max((length for lengths in kept for length in lengths), default=0)

    def _stream(
        self,
        role: str,
        spec: ModelSpec,
        reads: Reads,
        prompt: str | None = None,
        alone: bool = False,
        in_bytes: bool = False,
    ) -> None:
        """Add a language model's stream; reading the same as an earlier one costs nothing more.

        Args:
            role: of it.
            spec: of it.
            reads: what it reads.
            prompt: its side of a prompt pair: a template, or a system prompt.
            alone: whether it reads through its own tokenizer, and so shares nothing.
            in_bytes: whether it guides tokens so, for which distributions are kept.
        """
        found = self.survey.find(spec, "language model")
        adapter = None if found.reference is None else found.reference.adapter
        form = (spec.template, spec.system, spec.chat, prompt)
        key = (self._key(spec, found, "language model"), form, adapter, role if alone else "")
        first = self._streams.setdefault(key, role)
        if first == role:
            self._add(role, spec, found, "language model", reads, True, prompt, in_bytes)
            return
        part = replace(self._described(role, spec, found), weights=0)
        part = replace(part, notes=(f"what {first} reads and keeps",))
        self.members.append(Member(part, _nothing, None, False))

    def _add(
        self,
        role: str,
        spec: ModelSpec,
        found: Found,
        kind: Kind,
        reads: Reads,
        kept: bool,
        prompt: str | None = None,
        in_bytes: bool = False,
    ) -> None:
        """Note one part; weights count where they come first."""
        key = self._key(spec, found, kind)
        part = replace(self._described(role, spec, found), shards=self._divided.get(key, 1))
        if part.shards > 1:
            part = _shard_of(part)
        first = self._weights.setdefault(key, role)
        if first != role:
            bytes_each = BYTES[part.format]
            notes = (*part.notes, f"{first}'s weights")
            part = replace(part, weights=found.adapter * bytes_each, notes=notes)
        shown = prompt if prompt is not None and PLACEHOLDER in prompt else None
        told = prompt if shown is None else None
        lengths = self.survey.lengths(spec, self.asked, shown, told)
        size = found.size
        table = 0
        if kept and size is not None:
            most = max(lengths or [0], default=0) + self.limit
            most = most if size.context is None else min(most, size.context)
            if in_bytes:
                table = distribution_bytes(max(size.outputs, size.vocabulary))
            part = replace(part, row=cached_bytes(part) * most + table)
        self.members.append(Member(part, reads, lengths, kept, table))

    def _described(self, role: str, spec: ModelSpec, found: Found) -> Part:
        """Return a part without what it shares and reads."""
        form, weights = self.survey.format_of(spec), self.survey.weight_bytes(spec, found)
        return Part(role, spec.model, found, form, weights)

    def _key(self, spec: ModelSpec, found: Found, kind: Kind) -> tuple[Any, ...]:
        """Return what makes two parts one copy of weights."""
        place = found.reference
        named: tuple[Any, ...] = (spec.model,) if place is None else (place.source, place.revision)
        if kind == "classifier" and place is not None:
            named = (*named, place.adapter)  # merged into a copy of its own
        return (*named, kind, self.survey.format_of(spec), spec.quantization)

    def _rooms(self) -> list[tuple[int, int]]:
        """Return the tokens of each prompt's full response with how many prompts that is, by the place in `lengths`."""
        count = self.asked.count
        rooms = [self.limit] * count
        for member in self.members:
            size = None if member.part.found is None else member.part.found.size
            if member.kept and member.lengths and size is not None and size.context is not None:
                for place, length in enumerate(member.lengths):
                    rooms[place] = min(rooms[place], size.context - length)
        return list(enumerate(rooms))

    def _read(self, member: Member, rooms: Sequence[tuple[int, int]]) -> int:
        """Return the tokens that a part reads in the whole run: prompts once, and every search."""
        total = 0
        for place, room in rooms:
            if room < 1:
                continue  # too long a prompt for one of the networks: its record will say so
            prompt = member.lengths[place] if member.lengths else 0
            total += self.searches * member.reads(prompt, room) + (prompt if member.kept else 0)
        return total

    def _following(self, guides: bool) -> Reads:
        return lambda prompt, tokens: self.course.followed(tokens, guides)

    def _peeking(self, guides: bool) -> Reads:
        return lambda prompt, tokens: self.course.peeked(tokens, guides)

    def _by_text(self, guides: bool) -> Reads:
        return lambda prompt, tokens: self.course.read_as_text(tokens, guides)

    def _in_bytes(self) -> Reads:
        return lambda prompt, tokens: self.course.read_in_bytes(tokens)

    def _whole_texts(self, guides: bool, ranks: bool) -> Reads:
        return lambda prompt, tokens: self.course.whole_texts(prompt, tokens, guides, ranks)

    def _shares_tokens(self, spec: ModelSpec, guides: bool, by_ids: bool = False) -> bool:
        """Return whether a guide reads the base's tokens, noting what comes of it if it does not.

        Args:
            spec: the guide.
            guides: whether it guides tokens.
            by_ids: whether its outputs are one for each of the base's ids.
        """
        if self.vocabulary == "bytes" and guides and not by_ids:
            return False
        if self._reader is None:
            return False  # a served base without a tokenizer writes text
        agreement, sentence = self.survey.vocabularies(self._reader, spec)
        name = spec.model
        refused = f"{name}: {sentence}; {{}}: THIS RUN WOULD BE REFUSED"
        if agreement is None:
            self._note(f"{name} is taken to have the base's vocabulary; nothing here tells")
        elif agreement == "same":
            return True
        elif self.vocabulary == "ids":
            self._note(f"{name}: {sentence}; ids are taken as they are")
        elif self.vocabulary == "same":
            self._note(refused.format("vocabulary: same"))
        elif agreement == "table":
            self._note(f"{name}: {sentence}; a table says which token is which")
        elif by_ids:
            self._note(refused.format("its values are of other tokens than the base's"))
        elif guides and agreement == "text":
            self._note(refused.format("tokens cannot be guided by it"))
        else:
            how = "it guides tokens by their bytes" if guides else "it reads responses as text"
            self._note(f"{name}: {sentence}; {how}, which is estimated")
            return False
        return True

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _numbered(self, role: str) -> str:
        """Return a role's name, with a number from the second network in it on."""
        taken = sum(member.part.role.split()[0] == role for member in self.members)
        return f"{role} {taken + 1}" if taken else role


def cached_bytes(part: Part) -> int:
    """Return the bytes of keys and values that one token of a part leaves behind on one GPU; 0: not known."""
    if part.found is None or part.found.size is None:
        return 0
    return part.found.size.cache_bytes(BYTES[part.format]) // part.shards


def _shard_of(part: Part) -> Part:
    """Return a part with what one of its GPUs has of the weights."""
    told = f"divided among {part.shards} GPUs"
    if part.found is not None and part.found.size is not None:
        heads = part.found.size.kv_heads
        told = f"{told}: {heads // part.shards} of its {heads} key/value heads on each"
    weights = None if part.weights is None else -(-part.weights // part.shards)
    return replace(part, weights=weights, notes=(told,))


def _nothing(prompt: int, tokens: int) -> int:
    """Return 0: it reads nothing of its own."""
    return 0
