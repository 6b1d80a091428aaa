"""Do two tokenizers mean the same by the same ids? Equal sizes prove nothing, so the strings behind the ids decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VocabularyMatch:
    """How the vocabulary of a guide compares with the base's."""

    same: bool
    """Every id that the base can emit means the same string to the guide."""
    shared_ids: int
    """Ids that mean the same string in both."""
    shared_strings: int
    """Strings that both have, at whatever id."""
    base_size: int
    guide_size: int
    first_difference: tuple[int, str, str | None] | None
    """(id, the base's string, the guide's string or None) of the lowest id that differs."""

    def sentence(self) -> str:
        """Say in one sentence how they differ."""
        if self.same or self.first_difference is None:
            return "the vocabularies agree"
        token, ours, theirs = self.first_difference
        other = "nothing" if theirs is None else f'"{theirs}"'
        return (
            f'token {token} is "{ours}" in one and {other} in the other ({self.shared_strings:,} strings are common, '
            f"{self.shared_ids:,} of {self.base_size:,} at the same id)"
        )


def compare(base: Any, guide: Any) -> VocabularyMatch:
    """Compare two tokenizers by the strings behind their ids, added and special tokens included.

    A guide may know more tokens than the base (padding, added tokens); the base may not know more than the guide, since
    the guide could then not read what the base wrote.
    """
    ours = base.get_vocab()
    theirs = guide.get_vocab()
    by_id = {token: text for text, token in theirs.items()}
    different = sorted((token, text) for text, token in ours.items() if by_id.get(token) != text)
    first = None
    if different:
        token, text = different[0]
        first = (token, text, by_id.get(token))
    return VocabularyMatch(
        same=not different,
        shared_ids=len(ours) - len(different),
        shared_strings=len(ours.keys() & theirs.keys()),
        base_size=len(ours),
        guide_size=len(theirs),
        first_difference=first,
    )
