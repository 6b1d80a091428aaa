"""Which kind of tokenizer a tokenizer.json describes, and the bytes that its tokens' strings stand for."""

from __future__ import annotations

from typing import Any

from ivgcli.errors import ModelError

SPACE = "▁"
"""How SentencePiece writes a space."""

BYTE_LEVEL, SENTENCEPIECE, UNIGRAM = "byte-level BPE", "SentencePiece BPE", "unigram"
"""The kinds that are known."""

SPLITTERS = ("ByteLevel", "Split", "Digits", "Punctuation", "Metaspace", "UnicodeScripts")
"""Pre-tokenizers that cut a text without losing any of it."""


def refusal(name: str, what: str) -> ModelError:
    """Return the error for a tokenizer that cannot be guided across vocabularies.

    Args:
        name: of the tokenizer.
        what: what it is or does.
    """
    hint = (
        "a byte-level BPE, a SentencePiece or a unigram tokenizer can be guided across vocabularies"
    )
    return ModelError(name, what, hint)


def members(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the members of a normalizer, pre-tokenizer or decoder of tokenizer.json, sequences opened."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inner = next(value for value in part.values() if isinstance(value, list))
    return [member for each in inner for member in members(each)]


def kind_of(name: str, described: dict[str, Any]) -> str:
    """Return the kind of a tokenizer: byte-level BPE, SentencePiece BPE or unigram.

    Args:
        name: of the tokenizer, for errors.
        described: tokenizer.json.

    Raises:
        ModelError: it is of another kind, or changes or loses text. The model's type is named before anything else.
    """
    model = described["model"]
    written = model.get("type") or "BPE"
    if written not in ("BPE", "Unigram"):
        raise refusal(name, f"a {written} tokenizer")
    _require_kept(name, described)
    normal, split, decoder = (
        {part["type"] for part in members(described.get(place))}
        for place in ("normalizer", "pre_tokenizer", "decoder")
    )
    spaced = "Replace" in normal or "Metaspace" in split | decoder
    if written == "BPE" and "ByteLevel" in split:
        found = BYTE_LEVEL
    elif spaced:
        found = UNIGRAM if written == "Unigram" else SENTENCEPIECE
    else:
        raise refusal(name, f"a {written} tokenizer")
    _require_whole(name, described)
    return found


def _require_kept(name: str, described: dict[str, Any]) -> None:
    """Refuse normalisers other than NFC, a character in front, and writing a space as `SPACE`."""
    for part in members(described.get("normalizer")):
        space = part["type"] == "Replace" and part["content"] == SPACE
        if part["type"] in ("NFC", "Prepend") or (space and part["pattern"].get("String") == " "):
            continue
        raise refusal(name, f"its tokenizer changes text ({part['type']})")


def _require_whole(name: str, described: dict[str, Any]) -> None:
    """Refuse pre-tokenizers that lose text, marks in the tokens' strings, and merges left out at random."""
    for part in members(described.get("pre_tokenizer")):
        if part["type"] not in SPLITTERS or part.get("behavior") == "Removed":
            raise refusal(name, f"its tokenizer loses text ({part['type']})")
    model = described["model"]
    if model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        raise refusal(name, "its tokenizer marks the ends or the insides of words")
    if model.get("dropout"):
        raise refusal(name, "its tokenizer leaves out merges at random (dropout)")


def bytes_of(string: str, kind: str, fallback: bool) -> bytes:
    """Return the bytes that a token's string stands for.

    Args:
        string: as the vocabulary has it.
        kind: of the tokenizer, from `kind_of`.
        fallback: whether `<0x00>` to `<0xFF>` are single bytes.
    """
    if kind == BYTE_LEVEL:
        try:
            return string.translate(_LATIN).encode("latin-1")
        except UnicodeEncodeError:  # not written in the characters that stand for bytes
            return string.encode()
    if fallback and len(string) == 6 and string.startswith("<0x") and string.endswith(">"):
        return bytes([int(string[3:5], 16)])
    return string.replace(SPACE, " ").encode()


def _latin_characters() -> dict[int, str]:
    """Return the character of each byte for those of byte-level BPE, which writes others for bytes that do not print.

    Printing ones stand for themselves, the others are written from 256 on; the others as such stand for nothing.
    """
    printing = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printing]
    nothing = {byte: "\uffff" for byte in others}
    return nothing | {256 + place: chr(byte) for place, byte in enumerate(others)}


_LATIN = _latin_characters()
