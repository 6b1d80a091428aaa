"""A tokenizer as a set of byte strings, and the tokens that it would itself choose for a text."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any

from ivgcli.models.byte_pieces import BytePieces, remember
from ivgcli.models.closed_places import ClosedPlaces
from ivgcli.models.tokenizer_kinds import BYTE_LEVEL, SPACE, bytes_of, kind_of, members, refusal

ANCHORS = ("a", "\n", ".", "0", "。", "é", " ")
"""Characters that a text may be put behind, so that a tokenizer does not take it for the beginning of a document."""

START = ""
"""In place of a character: the text is the beginning of a document."""


class ByteVocabulary(BytePieces):
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
            what = "a tokenizer in Python, whose tokens cannot be told apart by bytes"
            raise refusal(self.name, what)
        written = core.to_str()
        described = json.loads(written)
        self.kind = kind_of(self.name, described)
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
        # An added token that the model has, too, stands there for what the model writes so (Gemma's runs of ▁).
        inside = self.core.model.token_to_id
        literal = {token for token, each in added.items() if inside(each.content) is None}
        super().__init__(self._pieces(tokenizer.get_vocab(), literal, described))
        whole = [piece for token in literal if (piece := self.pieces[token])]
        self._closed_places = ClosedPlaces(self.core, described, self.kind, self, whole)
        normal = members(described.get("normalizer"))
        self.composes = any(part["type"] == "NFC" for part in normal)
        """Whether text is brought into Unicode's NFC."""
        self._sizes = [-1 if piece is None else len(piece) for piece in self.pieces]
        self._beside = [bytes(row) for row in self.beside]  # a look into bytes is ten times as fast
        self._canonical: dict[tuple[str, bytes], tuple[int, ...]] = {}
        self._anchors: dict[int, str | None] = {}
        self._openings: dict[str, tuple[int, ...]] = {}
        self._look()
        # What stands in front of the added tokens is truncation and padding, which come and go.
        digest = hashlib.sha256(written[written.index('"added_tokens"') :].encode())
        digest.update(f"{sorted(self.special.items())} {sorted(self.eos)} {self.unknown}".encode())
        self.fingerprint = digest.hexdigest()[:16]
        """Equal for tokenizers that are alike in all that is used of them here."""

    def _pieces(
        self, strings: dict[str, int], literal: Collection[int], described: dict[str, Any]
    ) -> list[bytes | None]:
        """Return the bytes of every id of a vocabulary (id by string); those in `literal` are written as they are."""
        pieces: list[bytes | None] = [None] * (1 + max(strings.values()))
        fallback = bool(described["model"].get("byte_fallback"))
        mute = self.special.keys() | self.eos | {self.unknown}
        for string, token in strings.items():
            if token not in mute:
                plain = token in literal
                pieces[token] = string.encode() if plain else bytes_of(string, self.kind, fallback)
        return pieces

    def _look(self) -> None:
        """Find out how a document and a section behind a special token begin."""
        special = next(iter(self.special.values()), "")
        behind = self._behind(special, "a").ids
        self.opens_with_space = self.text(self._encode("a"))[:1] == b" "
        """Whether a document begins with a space that nobody has written."""
        self.sections_open_with_space = bool(special) and self.text(behind)[:1] == b" "
        """Whether that holds behind every special token."""
        self._doubles = self.text(self._encode(" a"))[:2] == b"  "

    def normalised(self, text: str) -> str:
        """Return a text as the tokens have it: in NFC where the tokenizer composes, a written `▁` as a space."""
        if self.kind != BYTE_LEVEL:
            text = text.replace(SPACE, " ")
        return unicodedata.normalize("NFC", text) if self.composes else text

    def closed(self, text: bytes | bytearray, place: int) -> bool:
        """Return whether the tokens on either side of `place` (0 < place ≤ len(text)) have no bearing on each other.

        What stands before a closed place is tokenised without regard to what stands, or will come to stand, behind;
        `ClosedPlaces` says how that is known.
        """
        return self._closed_places.closed(text, place)

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
            remember(self._canonical, key, found)
        return found

    def canonical_all(self, segments: Sequence[tuple[bytes, str]]) -> list[tuple[int, ...]]:
        """Return what `canonical` does of many (segment, before), tokenised at once, which is quicker."""
        keys = [
            (self._anchor(before, segment[0]) if len(before) == 1 and segment else before, segment)
            for segment, before in segments
        ]
        known = self._canonical
        new = [
            key for key in dict.fromkeys(keys) if len(key[0]) == 1 and key[1] and key not in known
        ]
        texts = [before + segment.decode() for before, segment in new]
        found: dict[tuple[str, bytes], tuple[int, ...]] = {}
        for key, whole in zip(
            new, self.core.encode_batch_fast(texts, add_special_tokens=False), strict=True
        ):
            ids, opening = tuple(whole.ids), self._open(key[0])
            if ids[: len(opening)] == opening:
                found[key] = ids[len(opening) :]
                remember(known, key, found[key])
        # What was remembered may have been forgotten to make room for what is new.
        answers = (known.get(key, found.get(key)) for key in keys)
        return [
            self.canonical(segment, before) if answer is None else answer
            for answer, (before, segment) in zip(answers, keys, strict=True)
        ]

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
            opening = self._open(anchor)
            whole = self._encoding(anchor + text)
            # Only behind a prompt that is not tokenised as its text would be can the two have run together.
            if tuple(whole.ids[: len(opening)]) == opening:
                return whole, len(opening), -len(anchor)
        return self._encoding(text), 0, 0

    def _open(self, anchor: str) -> tuple[int, ...]:
        """Return the ids of a character that text is put behind."""
        if anchor not in self._openings:
            self._openings[anchor] = self._encode(anchor)
        return self._openings[anchor]

    def _anchor(self, before: str, first: int) -> str:
        """Return a character that serves as well as `before` in front of the byte `first`, to remember fewer texts."""
        return self.anchor(first) or before

    def anchor(self, first: int) -> str | None:
        """Return a character that no piece has in front of the byte `first`, if one is known."""
        if first not in self._anchors:
            fitting = (c for c in ANCHORS if not self._beside[c.encode()[-1]][first])
            self._anchors[first] = next(fitting, None)
        return self._anchors[first]

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
