"""Do two tokenizers mean the same by the same ids? Equal sizes prove nothing; strings, bytes and cut texts do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakValueDictionary

from ivgcli.errors import ModelError
from ivgcli.models.byte_vocabulary import ByteVocabulary
from ivgcli.models.counterparts import Side, counterparts
from ivgcli.models.probe import Coverage, covered

Relation = Literal["identical", "padded", "superset", "permuted", "overlapping", "disjoint"]


@dataclass(frozen=True)
class VocabularyMatch:
    """How the vocabulary of a guide compares with the base's.

    What no head can emit counts in no relation: ids beyond the width of the base's logits are nothing that it says,
    those beyond the guide's nothing that it can be asked about.
    """

    same: bool
    """Every id that the base can emit means the same string to the guide, and both cut texts alike."""
    shared_ids: int
    """Ids that mean the same string in both."""
    shared_strings: int
    """Strings that both have, at whatever id."""
    base_size: int
    guide_size: int
    first_difference: tuple[int, str, str | None] | None
    """(id, the base's string, the guide's string or None) of the lowest id that differs."""
    relation: Relation
    """identical: the same tokens. padded: the same tokens, but one head is wider. superset: the guide has all of the
    base's tokens at their ids, and more. permuted: all of them, but elsewhere, and both cut texts alike. overlapping:
    some, or all of them but with other merges. disjoint: none but single bytes."""
    guide_ids: tuple[int, ...] | None = field(default=None, repr=False)
    """The guide's id for every id that the base can emit; None unless there is one for each."""
    shared_bytes: int | None = None
    """Tokens of the base whose bytes are one token of the guide; None where that was not asked, because the ids agree,
    or cannot be told."""
    base_kind: str | None = None
    """Kind of the base's tokenizer, or `unknown: ` and a sentence; None where the ids agree, whatever it is."""
    guide_kind: str | None = None
    """Kind of the guide's."""
    refusal: str | None = None
    """Why tokens cannot be guided across these two; None: they can."""
    otherwise_cut: tuple[str, ...] = ()
    """Texts of the probe that the two cut into other tokens, where the ids mean the same strings."""
    coverage: Mapping[str, Coverage] = field(default_factory=dict)
    """By text of the probe, where the vocabularies overlap or are disjoint and their bytes are known."""

    @property
    def exact(self) -> bool:
        """Return whether every token of the base is one of the guide, by `guide_ids`, and texts are cut alike."""
        return self.guide_ids is not None

    @property
    def guidable(self) -> bool:
        """Return whether the guide can guide tokens: by ids, or in bytes."""
        return self.refusal is None

    def sentence(self) -> str:
        """Say in one sentence how they differ."""
        if self.same:
            return "the vocabularies agree"
        if self.first_difference is None:
            texts = ", ".join(self.otherwise_cut)
            return f"the ids mean the same strings, but texts are cut into other tokens ({texts})"
        token, ours, theirs = self.first_difference
        other = "nothing" if theirs is None else f'"{theirs}"'
        return (
            f'token {token} is "{ours}" in one and {other} in the other ({self.shared_strings:,} strings are common, '
            f"{self.shared_ids:,} of {self.base_size:,} at the same id)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything but the table of ids, which is as long as the vocabulary, as what JSON can hold."""
        plain = asdict(replace(self, guide_ids=None, coverage=dict(self.coverage)))
        del plain["guide_ids"]
        return {**plain, "exact": self.exact, "guidable": self.guidable}


_COMPARED: dict[tuple[Any, Any], VocabularyMatch] = {}


def compare(
    base: Any,
    guide: Any,
    base_width: int | None = None,
    guide_width: int | None = None,
    base_eos: Sequence[int] = (),
    guide_eos: Sequence[int] = (),
) -> VocabularyMatch:
    """Compare two tokenizers by the strings and bytes behind their ids, added and special tokens included.

    A guide may know more tokens than the base (padding, added tokens); the base may not know more than the guide,
    since the guide could then not read what the base wrote. Vocabularies that were compared before are not compared
    again, whichever objects they are in.

    Args:
        base: tokenizer of the base.
        guide: tokenizer of the guide.
        base_width: outputs of the base's head; None: one for each token.
        guide_width: outputs of the guide's head; None: one for each token.
        base_eos: ids that end the base's texts, the usual one first; default: the tokenizer's own.
        guide_eos: ids that end the guide's.
    """
    ours, theirs = Side(base, base_width, base_eos), Side(guide, guide_width, guide_eos)
    key = (ours.key, theirs.key)
    if key not in _COMPARED:
        _COMPARED[key] = _compared(ours, theirs)
    return _COMPARED[key]


def _compared(ours: Side, theirs: Side) -> VocabularyMatch:
    """Return the comparison of two vocabularies, by strings and by how texts are cut where these agree."""
    different = [token for token, text in ours.usable.items() if theirs.usable.get(token) != text]
    first = min(different, default=None)
    match = VocabularyMatch(
        same=False,
        shared_ids=len(ours.strings.items() & theirs.strings.items()),
        shared_strings=len(ours.strings.keys() & theirs.strings.keys()),
        base_size=len(ours.strings),
        guide_size=len(theirs.strings),
        first_difference=None
        if first is None
        else (first, ours.usable[first], theirs.usable.get(first)),
        relation="overlapping",
    )
    cut = theirs.reading.cut
    otherwise = tuple(name for name, ids in ours.reading.cut.items() if ids != cut[name])
    if different:
        return _by_bytes(match, ours, theirs)
    if otherwise:
        return _by_bytes(replace(match, otherwise_cut=otherwise), ours, theirs)
    identity = tuple(range(ours.size))
    return replace(match, same=True, relation=_agreement(ours, theirs), guide_ids=identity)


def _agreement(ours: Side, theirs: Side) -> Relation:
    """Return the relation of two vocabularies of which the base's ids mean the same to the guide."""
    if len(theirs.usable) > len(ours.usable) and ours.strings != theirs.strings:
        return "superset"
    if None in (ours.width, theirs.width) or ours.width == theirs.width:
        return "identical"
    return "padded"


def _by_bytes(match: VocabularyMatch, ours: Side, theirs: Side) -> VocabularyMatch:
    """Return the comparison of two vocabularies whose ids do not say the same."""
    base_kind, base_refusal = kind_of(ours.tokenizer, ours.eos)
    guide_kind, guide_refusal = kind_of(theirs.tokenizer, theirs.eos)
    match = replace(match, base_kind=base_kind, guide_kind=guide_kind)
    if base_refusal or guide_refusal:
        side = f"the base: {base_refusal}" if base_refusal else f"the guide: {guide_refusal}"
        common = any(len(text) > 1 for text in ours.strings.keys() & theirs.strings.keys())
        return replace(match, refusal=side, relation="overlapping" if common else "disjoint")
    base = byte_vocabulary(ours.tokenizer, ours.eos)
    guide = byte_vocabulary(theirs.tokenizer, theirs.eos)
    pieces = (base.pieces[token] for token in ours.usable)
    shared = [piece for piece in pieces if piece is not None and piece in guide.ids]
    match = replace(match, shared_bytes=len(shared))
    table = None if match.otherwise_cut else counterparts(ours, theirs, base, guide)
    if table is not None:
        return replace(match, relation="permuted", guide_ids=table)
    relation: Relation = "overlapping" if any(len(each) > 1 for each in shared) else "disjoint"
    return replace(match, relation=relation, coverage=covered(base, guide))


_BUILT: WeakKeyDictionary[Any, dict[tuple[int, tuple[int, ...]], ByteVocabulary]] = (
    WeakKeyDictionary()
)
_KNOWN: WeakValueDictionary[str, ByteVocabulary] = WeakValueDictionary()
"""By fingerprint: the two models of a pair come with a tokenizer each, and what is remembered of it serves both."""


def byte_vocabulary(tokenizer: Any, eos: Sequence[int] = ()) -> ByteVocabulary:
    """Return a tokenizer as a set of byte strings, the same object for all tokenizers that are alike.

    Args:
        tokenizer: a fast tokenizer of transformers.
        eos: ids that end a text; default: the tokenizer's own.

    Raises:
        ModelError: a tokenizer of a kind whose bytes are not known, named in the sentence.
    """
    built = _BUILT.setdefault(tokenizer, {})
    key = (len(tokenizer), tuple(eos))  # tokens may be added to a tokenizer later
    if key not in built:
        fresh = ByteVocabulary(tokenizer, eos)
        built[key] = _KNOWN.setdefault(fresh.fingerprint, fresh)
    return built[key]


def kind_of(tokenizer: Any, eos: Sequence[int] = ()) -> tuple[str, str | None]:
    """Return the kind of a tokenizer, and why it cannot be guided in bytes (None: it can)."""
    try:
        return byte_vocabulary(tokenizer, eos).kind, None
    except ModelError as problem:
        return f"unknown: {problem.what}", f"{problem.what}; {problem.hint}"
