"""Which tokens a canonical tokenisation can begin with, when only the beginning of the text is known."""

from __future__ import annotations

from collections.abc import Sequence

from ivgcli.models.byte_vocabulary import ByteVocabulary

MOST = 48
"""Tokens tried as what the text may go on with; where more are possible, the answer is yes."""


def canonical_opening(
    vocabulary: ByteVocabulary, before: str, text: bytes, path: Sequence[int], rest: bytes
) -> bool:
    """Return whether the canonical tokenisation of `text` and whatever may follow it can begin with `path`.

    Models are trained on canonical tokenisations, so the other ones hold next to none of their probability.
    The text is tried as it stands, and with every token that goes past its end from where `path` ends.

    Args:
        vocabulary: of the tokenizer.
        before: what stands in front of the text, as in `ByteVocabulary.canonical`.
        text: bytes from a closed place on.
        path: ids; all of them end inside `text`.
        rest: the end of `text` that `path` leaves.
    """
    begin, end = vocabulary.span(rest)
    if end - begin > MOST:
        return True
    wanted = tuple(path)
    longer = (piece[len(rest) :] for piece in vocabulary.sorted[begin:end])
    for more in (b"", *longer):
        try:
            ids = vocabulary.canonical(text + more, before)
        except UnicodeDecodeError:
            return True  # half a character has no canonical tokenisation
        if ids[: len(wanted)] == wanted:
            return True
    return False
