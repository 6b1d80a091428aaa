"""The bytes behind every id of a tokenizer, and the tokens that it would itself choose for a text."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivgcli.errors import ModelError

SPACE = "▁"
"""How SentencePiece writes a space."""

MEMORY = 100_000
"""Answers remembered of each kind of question, at most: some 30 MB each."""

ANCHORS = ("a", "\n", ".", "0", "。", "é", " ")
"""Characters that a text may be put behind, so that a tokenizer does not take it for the beginning of a document."""

FOLLOWERS = ("", "x", "X", " ", "\n", "0", ".", "'s", "é", "。")
"""What may follow a place at which words are said to end."""

START = ""
"""In place of a character: the text is the beginning of a document."""

SPLITTERS = ("ByteLevel", "Split", "Digits", "Punctuation", "Metaspace", "UnicodeScripts")
"""Pre-tokenizers that cut a text without losing any of it."""


class ByteVocabulary:
    """A tokenizer as a set of byte strings.

    Byte-level BPE (GPT-2, Llama 3, Qwen), BPE as SentencePiece has it (Llama 2, Mistral, Gemma) and unigram models
    are known; their normalisation may turn a space into `▁` and put one in front, or be Unicode's NFC.
    Text that is the name of a special token is read as any other text (but a unigram model that lists its special
    tokens among its pieces finds them there).

    Args:
        tokenizer: a fast tokenizer of transformers. It is copied: truncation and padding that are switched on
            for other work have no effect here.
        eos: ids that end a text; default: the tokenizer's own.

    Raises:
        ModelError: a tokenizer of another kind, named in the sentence.
    """

    def __init__(self, tokenizer: Any, eos: Collection[int] = ()) -> None:
        self.name = str(tokenizer.name_or_path or type(tokenizer).__name__)
        core = getattr(tokenizer, "backend_tokenizer", None)
        if core is None:
            raise self._unknown("a tokenizer in Python, whose tokens cannot be told apart by bytes")
        written = core.to_str()
        described = json.loads(written)
        self.kind = self._kind(described)
        """byte-level BPE, SentencePiece BPE or unigram."""
        self.core = type(core).from_str(written)
        self.core.no_truncation()
        self.core.no_padding()
        known = eos or ([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])
        self.eos = frozenset(int(token) for token in known)
        """Ids that end a text."""
        added = tokenizer.added_tokens_decoder
        self.special = {
            token: each.content
            for token, each in added.items()
            if each.special or token in self.eos
        }
        """Id → string of the special tokens, which stand for no text."""
        self.unknown: int | None = tokenizer.unk_token_id
        strings = tokenizer.get_vocab()
        self.size = 1 + max(strings.values())
        """1 + the largest id."""
        self.pieces: list[bytes | None] = [None] * self.size
        """The bytes of every id; None for special tokens, the unknown token and ids without a token."""
        as_bytes = bool(described["model"].get("byte_fallback"))
        inside = self.core.model.token_to_id
        # An added token that the model has, too, stands there for what the model writes so (Gemma's runs of ▁).
        literal = {token for token, each in added.items() if inside(each.content) is None}
        mute = self.special.keys() | self.eos | {self.unknown}
        for string, token in strings.items():
            if token not in mute:
                plain = token in literal
                self.pieces[token] = string.encode() if plain else self._bytes(string, as_bytes)
        self._sizes = [-1 if piece is None else len(piece) for piece in self.pieces]
        self._index()
        self._look(described, literal)
        # What stands in front of the added tokens is truncation and padding, which come and go.
        digest = hashlib.sha256(written[written.index('"added_tokens"') :].encode())
        digest.update(f"{sorted(self.special.items())} {sorted(self.eos)}".encode())
        self.fingerprint = digest.hexdigest()[:16]

    def _unknown(self, what: str) -> ModelError:
        hint = "a byte-level BPE, a SentencePiece or a unigram tokenizer can be guided across vocabularies"
        return ModelError(self.name, what, hint)

    def _kind(self, described: dict[str, Any]) -> str:
        """Return the kind of a tokenizer from its description in tokenizer.json."""
        model = described["model"]
        kind = model.get("type") or "BPE"
        normal, split, decoder = (
            _flat(described.get(name)) for name in ("normalizer", "pre_tokenizer", "decoder")
        )
        for part in normal:
            space = part["type"] == "Replace" and part["content"] == SPACE
            if part["type"] not in ("NFC", "Prepend") and not (
                space and part["pattern"].get("String") == " "
            ):
                raise self._unknown(f"its tokenizer changes text ({part['type']})")
        kinds = {part["type"] for part in split}
        if kind == "BPE" and "ByteLevel" in kinds:
            found = "byte-level BPE"
        elif kind in ("BPE", "Unigram") and (
            "Metaspace" in kinds | {part["type"] for part in decoder}
            or any(part["type"] == "Replace" for part in normal)
        ):
            found = "unigram" if kind == "Unigram" else "SentencePiece BPE"
        else:
            raise self._unknown(f"a {kind} tokenizer")
        for part in split:
            if part["type"] not in SPLITTERS or part.get("behavior") == "Removed":
                raise self._unknown(f"its tokenizer loses text ({part['type']})")
        if model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
            raise self._unknown("its tokenizer marks the ends or the insides of words")
        if model.get("dropout"):
            raise self._unknown("its tokenizer leaves out merges at random (dropout)")
        return found

    def _bytes(self, string: str, as_bytes: bool) -> bytes:
        """Return the bytes that a token's string stands for."""
        if self.kind == "byte-level BPE":
            try:
                return string.translate(_LATIN).encode("latin-1")
            except UnicodeEncodeError:  # not written in the characters that stand for bytes
                return string.encode()
        if as_bytes and len(string) == 6 and string.startswith("<0x") and string.endswith(">"):
            return bytes([int(string[3:5], 16)])
        return string.replace(SPACE, " ").encode()

    def _index(self) -> None:
        """Sort the pieces, and note which bytes ever stand beside each other in one."""
        listed = sorted((piece, token) for token, piece in enumerate(self.pieces) if piece)
        self.sorted = [piece for piece, _ in listed]
        """The pieces in the order of their bytes."""
        self.order = np.array([token for _, token in listed], dtype=np.int64)
        """Their ids (N,)."""
        self.places = {token: place for place, token in enumerate(self.order.tolist())}
        """The place of every id in `order`."""
        self.longest = max(map(len, self.sorted))
        """Bytes of the longest piece."""
        self.ids: dict[bytes, tuple[int, ...]] = {}
        """The ids of every piece: a byte token and a character can be one and the same byte."""
        for piece, token in listed:
            self.ids[piece] = (*self.ids.get(piece, ()), token)
        self.beside = _neighbours(self.sorted)
        """Whether some piece has the second byte behind the first (256, 256)."""
        self._beside = [bytes(row) for row in self.beside]  # a look into bytes is ten times as fast
        self._spans: dict[bytes, tuple[int, int]] = {}
        self._heads: dict[bytes, tuple[int, ...]] = {}
        self._canonical: dict[tuple[str, bytes], tuple[int, ...]] = {}
        self._anchors: dict[tuple[str, int], str] = {}
        self._openings: dict[str, tuple[int, ...]] = {}
        self._word_ends: dict[tuple[str, str], bool] = {}

    def _look(self, described: dict[str, Any], literal: Collection[int]) -> None:
        """Find out how a document and a section behind a special token begin, and what cuts text into words."""
        self.composes = any(part["type"] == "NFC" for part in _flat(described.get("normalizer")))
        """Whether text is brought into Unicode's NFC."""
        split = _flat(described.get("pre_tokenizer"))
        by_rule = any(
            (part["type"] == "Split" and "Regex" in part["pattern"])
            or (part["type"] == "ByteLevel" and part.get("use_regex", True))
            for part in split
        )  # fmt: skip
        self.looks_around = by_rule or self.composes
        """Whether what stands further off can decide if a word ends at a place, too."""
        # Where words are cut, only an added token that is found before that can lie across the ends of words.
        whole = [piece for token in literal if (piece := self.pieces[token])]
        crossed = _neighbours(whole) if by_rule else self.beside
        self._crossed = [bytes(row) for row in crossed]
        fallback = described["model"].get("byte_fallback")
        self._fuses = not fallback and self.kind != "byte-level BPE"
        # Equally good segmentations of a lattice are told apart by rounding, which depends on all that is in it.
        self._splits = self.kind == "unigram" and any(
            part["type"] == "Metaspace" and part.get("split", True) for part in split
        )
        special = next(iter(self.special.values()), "")
        behind = self._behind(special, "a").ids
        self.opens_with_space = self.text(self._encode("a"))[:1] == b" "
        """Whether a document begins with a space that nobody has written."""
        self.sections_open_with_space = bool(special) and self.text(behind)[:1] == b" "
        """Whether that holds behind every special token."""
        self._doubles = self.text(self._encode(" a"))[:2] == b"  "

    def text(self, ids: Collection[int]) -> bytes:
        """Return the bytes of ids; special and unknown tokens have none."""
        return b"".join(self.pieces[token] or b"" for token in ids if token < self.size)

    def normalised(self, text: str) -> str:
        """Return a text as the tokens have it: in NFC where the tokenizer composes, a written `▁` as a space."""
        if self.kind != "byte-level BPE":
            text = text.replace(SPACE, " ")
        return unicodedata.normalize("NFC", text) if self.composes else text

    def span(self, prefix: bytes) -> tuple[int, int]:
        """Return the range of places in `order` of the pieces that begin with `prefix` (bytes)."""
        found = self._spans.get(prefix)
        if found is None:
            after = prefix.rstrip(b"\xff")
            begin = bisect_left(self.sorted, prefix)
            end = len(self.sorted)
            if after:
                end = bisect_left(self.sorted, after[:-1] + bytes([after[-1] + 1]), begin)
            found = (begin, end)
            _remember(self._spans, prefix, found)
        return found

    def heads(self, text: bytes) -> tuple[int, ...]:
        """Return the ids whose piece is a beginning of `text` (bytes) but not all of it, shortest first."""
        found = self._heads.get(text)
        if found is None:
            most = min(len(text) - 1, self.longest)
            found = tuple(
                token for size in range(1, most + 1) for token in self.ids.get(text[:size], ())
            )
            _remember(self._heads, text, found)
        return found

    def closed(self, text: bytes | bytearray, place: int) -> bool:
        r"""Return whether the tokens on either side of `place` (0 < place) have no bearing on each other.

        Every merge of a BPE, and every arc of a unigram's lattice, is a piece: where no piece has the last byte in
        front of the place and the first behind it beside each other, what stands before is tokenised without
        regard to what stands, or will come to stand, behind. A tokenizer that cuts text into words by a regular
        expression, which can look further (`\s+(?!\S)` leaves the last space of several to the next word), must
        also end a word there in any case: between a letter or digit and something else, and before a space that
        is the first one.
        """
        last = text[place - 1]
        if place == len(text):
            open_ended = self.looks_around or self._splits or any(self._crossed[last])
            if open_ended or not _whole(text):
                return False
        elif text[place] & 0xC0 == 0x80 or self._crossed[last][text[place]]:
            return False
        elif self._splits:
            return text[place] == 0x20
        if not (self.looks_around or self._fuses):
            return True
        before = text[max(0, place - 4) : place].decode(errors="ignore")[-1:]
        after = text[place : place + 4].decode(errors="ignore")[:1]
        if self._fuses and before.encode() not in self.ids and after.encode() not in self.ids:
            return False  # one unknown token may stand for both
        return not self.looks_around or self._ends_word(before, after)

    def _ends_word(self, before: str, after: str) -> bool:
        """Return whether a word ends between two characters, whatever stands further off."""
        found = self._word_ends.get((before, after))
        if found is None:
            found = self._word_ends[before, after] = bool(before and after) and (
                _unlike(before, after) and self._cuts(before, after)
            )
        return found

    def _cuts(self, before: str, after: str) -> bool:
        """Return whether the pre-tokenizer ends a word between two characters in each of several texts."""
        if self.core.pre_tokenizer is None:
            return True
        texts = (f"x {before}{after}{more}" for more in FOLLOWERS)
        cut = self.core.pre_tokenizer.pre_tokenize_str
        return all(any(begin == 3 for _, (begin, _) in cut(text)) for text in texts)

    def canonical(self, segment: bytes, before: str) -> tuple[int, ...]:
        """Return the ids of a stretch of text as the tokenizer has them in a document.

        Args:
            segment: whole characters in UTF-8; no token lies across its beginning (`closed`). Where a document or
                section begins with a space that nobody has written, the segment does, too.
            before: the character in front of it, the string of a special token there, or START.
        """
        if not segment:
            return ()
        if len(before) == 1:
            before = self._anchor(before, segment[0])
        key = (before, segment)
        found = self._canonical.get(key)
        if found is None:
            encoding, first, _ = self._segment(segment.decode(), before)
            found = tuple(encoding.ids[first:])
            _remember(self._canonical, key, found)
        return found

    def unwritten(self, before: str) -> bytes:
        """Return the space that begins a document (START) or a section (a special token's string), if there is one."""
        opens = self.opens_with_space if before == START else self.sections_open_with_space
        return b" " if opens and len(before) != 1 else b""

    def ends(self, segment: bytes, before: str) -> list[int]:
        """Return the byte place in a stretch of text where each of its tokens (`canonical`) ends."""
        ids = self.canonical(segment, before)
        sizes = [self._sizes[token] for token in ids]
        if -1 not in sizes:
            return list(accumulate(sizes))
        # An unknown token stands for characters that no piece has; only the tokenizer knows for how many.
        text = segment.decode()
        encoding, first, shift = self._segment(
            text, self._anchor(before, segment[0]) if len(before) == 1 else before
        )
        for place, (begin, end) in enumerate(encoding.offsets[first:]):
            if sizes[place] < 0:
                sizes[place] = len(text[begin + shift : end + shift].encode())
        return list(accumulate(sizes))

    def _segment(self, text: str, before: str) -> tuple[Any, int, int]:
        """Tokenise a stretch of text.

        Returns:
            What the tokenizer makes of it, perhaps with something in front; the first token that counts; what to
            add to its places in characters to get those in `text`.
        """
        anchors: Sequence[str] = (before, *ANCHORS)
        if len(before) != 1:
            if self.unwritten(before):
                own = "" if text == " " else text[1:] if self._doubles else text
                return self._encoding(own), 0, len(text) - len(own)
            if not self.opens_with_space:
                return self._encoding(text), 0, 0
            whole = self._behind(before, text)
            if not self.special.keys() & set(whole.ids[1:]):
                return whole, 1, -len(before)
            first = text.encode()[0]
            anchors = [each for each in ANCHORS if not self._beside[each.encode()[-1]][first]]
        for anchor in anchors:
            opening = self._openings.get(anchor)
            if opening is None:
                opening = self._openings[anchor] = self._encode(anchor)
            whole = self._encoding(anchor + text)
            # Only behind a prompt that is not tokenised as its text would be can the two have run together.
            if tuple(whole.ids[: len(opening)]) == opening:
                return whole, len(opening), -len(anchor)
        return self._encoding(text), 0, 0

    def _anchor(self, before: str, first: int) -> str:
        """Return a character that serves as well as `before` in front of the byte `first`, to remember fewer texts."""
        key = (before, first)
        found = self._anchors.get(key)
        if found is None:
            fitting = (c for c in ANCHORS if not self._beside[c.encode()[-1]][first])
            found = self._anchors[key] = next(fitting, before)
        return found

    def _encoding(self, text: str) -> Any:
        return self.core.encode(text, add_special_tokens=False)

    def _behind(self, special: str, text: str) -> Any:
        """Tokenise a special token and text behind it; special tokens in that text are found, too."""
        self.core.encode_special_tokens = False
        try:
            return self._encoding(special + text)
        finally:
            self.core.encode_special_tokens = True

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._encoding(text).ids)


def _unlike(before: str, after: str) -> bool:
    """Return whether two characters are such that the known regular expressions end a word between them."""
    if after == " ":
        return not before.isspace()
    # Letters take marks and further letters; "'" may begin the end of a word ('s, 'll).
    others = unicodedata.category(after)[0] not in "LNM" and after != "'"
    return others and unicodedata.category(before)[0] in "LN"


def _whole(text: bytes | bytearray) -> bool:
    """Return whether the last character of a text has all its bytes."""
    tail = bytes(text[-4:])
    begin = max((place for place in range(len(tail)) if tail[place] & 0xC0 != 0x80), default=0)
    try:
        tail[begin:].decode()
    except UnicodeDecodeError:
        return False
    return True


def _neighbours(pieces: Collection[bytes]) -> NDArray[np.bool_]:
    """Return whether some piece has the second byte behind the first (256, 256)."""
    everything = np.frombuffer(b"".join(pieces), dtype=np.uint8)
    inside = np.ones(len(everything), dtype=bool)
    inside[np.cumsum([len(piece) for piece in pieces], dtype=np.int64) - 1] = False
    places = np.flatnonzero(inside)
    beside = np.zeros((256, 256), dtype=bool)
    beside[everything[places], everything[places + 1]] = True
    return beside


def _flat(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the members of a normalizer, pre-tokenizer or decoder of tokenizer.json, sequences opened."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inner = next(value for value in part.values() if isinstance(value, list))
    return [member for each in inner for member in _flat(each)]


def _remember(memory: dict[Any, Any], key: Any, answer: Any) -> None:
    """Keep an answer; when there are too many, all are forgotten."""
    if len(memory) >= MEMORY:
        memory.clear()
    memory[key] = answer


def _latin_characters() -> dict[int, str]:
    """Return the character of each byte for those of byte-level BPE, which writes others for bytes that do not print.

    Printing ones stand for themselves, the others are written from 256 on; the others as such stand for nothing.
    """
    printing = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printing]
    nothing = {byte: "\uffff" for byte in others}
    return nothing | {256 + place: chr(byte) for place, byte in enumerate(others)}


_LATIN = _latin_characters()
