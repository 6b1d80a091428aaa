"""Which tokens a canonical tokenisation can begin with, when only the beginning of the text is known."""

from __future__ import annotations

from collections.abc import Sequence

from ivgcli.models.byte_vocabulary import ByteVocabulary
from ivgcli.models.tokenizer_kinds import UNIGRAM

MOST = 48
"""Tokens tried as what the text may go on with; where more are possible, the answer is yes."""


def canonical_opening(
    vocabulary: ByteVocabulary, before: str, text: bytes, path: Sequence[int], rest: bytes
) -> bool:
    """Return whether the canonical tokenisation of `text` and whatever may follow it can begin with `path`.

    Models are trained on canonical tokenisations, so the other ones hold next to none of their probability.
    For a BPE the text is tried as it stands, and with every token that goes past its end from where `path` ends. A
    unigram model chooses its segmentation as a whole, and text at any distance can change it: there the answer is no
    only where a closed place behind the path leaves no choice.

    Args:
        vocabulary: of the tokenizer.
        before: what stands in front of the text, as in `ByteVocabulary.canonical`.
        text: bytes from a closed place on.
        path: ids; all of them end inside `text`.
        rest: the end of `text` that `path` leaves.
    """
    try:
        if vocabulary.kind == UNIGRAM:
            return _settled(vocabulary, before, text, path, rest)
        return _tried(vocabulary, before, text, path, rest)
    except UnicodeDecodeError:
        return True  # half a character has no canonical tokenisation


def _settled(
    vocabulary: ByteVocabulary, before: str, text: bytes, path: Sequence[int], rest: bytes
) -> bool:
    """Return whether the text up to its last closed place has the tokens of `path`; yes if none is behind them."""
    # A space that begins a document although nobody has written it is no text by itself.
    first = max(len(text) - len(rest), len(vocabulary.unwritten(before)) + 1)
    for place in range(len(text), first - 1, -1):
        if vocabulary.closed(text, place):
            return vocabulary.canonical(text[:place], before)[: len(path)] == tuple(path)
    return True


def _tried(
    vocabulary: ByteVocabulary, before: str, text: bytes, path: Sequence[int], rest: bytes
) -> bool:
    """Return whether the text has the tokens of `path` as it stands or with one token that goes past its end."""
    begin, end = vocabulary.span(rest)
    if end - begin > MOST:
        return True
    longer = (piece[len(rest) :] for piece in vocabulary.sorted[begin:end])
    return any(
        vocabulary.canonical(text + more, before)[: len(path)] == tuple(path)
        for more in (b"", *longer)
    )
