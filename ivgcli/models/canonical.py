"""The canonical tokenisation of a prompt and a growing response, kept up to date without reading it all again."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ivgcli.models.byte_vocabulary import START, ByteVocabulary
from ivgcli.models.retokenised import shared_prefix

TAIL = 64
"""Tokens of a prompt in which the last closed place is looked for; if there is none, in twice as many, and so on."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""In place of a character that is not known."""


class Canonical:
    """The ids that a tokenizer gives to prompt + response, after every addition to the response.

    Only what stands behind the last closed place is tokenised again (`ByteVocabulary.closed`); a character whose
    bytes are not all there yet is held back, and bytes that are no character become U+FFFD, as they do when the
    base's response is decoded. Byte places count from the last closed place of the prompt.

    Where a document, or a section behind a special token, begins with a space that nobody has written, `text` has
    that space, too, even while nothing else follows: the response's first token must stand for both.

    Args:
        vocabulary: of the tokenizer.
        prompt_ids: the prompt's ids under it.
    """

    def __init__(self, vocabulary: ByteVocabulary, prompt_ids: Sequence[int]) -> None:
        self.vocabulary = vocabulary
        self.prompt_ids = list(prompt_ids)
        self._begin()

    def _begin(self) -> None:
        """Go back to the prompt alone."""
        first, openings = self._opening()
        tail = self.vocabulary.text(self.prompt_ids[first:])
        ids = tuple(self.prompt_ids[first:])
        # A prompt that was cut to length can begin in the middle of a character.
        valid = tail.decode(errors="ignore").encode() == tail
        fitting = [each for each in openings if valid and self._tokenised(tail, each) == ids]
        if not fitting:
            # A prompt that is tokenised in another way than its text would be: its end is as good as closed.
            first, tail = len(self.prompt_ids), b""
            text = self.vocabulary.text(self.prompt_ids[-TAIL:])
            fitting = [text.decode(errors="ignore")[-1:] or REPLACEMENT]
        self.before = fitting[0]
        """What stands in front of the last closed place: a character, a special token's string, or START."""
        self.ids = list(self.prompt_ids)
        """All ids, the prompt's first."""
        self.ends = self.vocabulary.ends(tail, self.before)
        """Byte place in `text` where each token behind the prompt's last closed place ends."""
        self.text = bytearray(tail or self.vocabulary.unwritten(self.before))
        """What follows the prompt's last closed place, the response included; whole characters only."""
        self.root = first
        """Tokens before the last closed place."""
        self.root_place = 0
        """That place in `text`."""
        self._first = first
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def _opening(self) -> tuple[int, list[str]]:
        """Return how many tokens stand before the prompt's last closed place, and what may stand in front of it."""
        pieces, ids = self.vocabulary.pieces, self.prompt_ids
        begin = len(ids)
        for size in (TAIL * 2**power for power in range(len(ids).bit_length() + 1)):
            while begin and len(ids) - begin < size and pieces[ids[begin - 1]] is not None:
                begin -= 1
            text = self.vocabulary.text(ids[begin:])
            place = len(text)
            for first in range(len(ids), begin, -1):
                if place > 3 and self.vocabulary.closed(text, place):
                    return first, [text[:place].decode(errors="ignore")[-1:] or REPLACEMENT]
                place -= len(pieces[ids[first - 1]] or b"")
            if len(ids) - begin < size:
                break
        if begin == 0:
            return 0, [START]
        last = ids[begin - 1]
        if last == self.vocabulary.unknown or last not in self.vocabulary.special:
            return begin, [REPLACEMENT]
        # A first special token can be put in front of a document, or be the beginning of its text.
        section = self.vocabulary.special[last]
        return begin, [START, section] if begin == 1 else [section]

    @property
    def held(self) -> bytes:
        """Return the bytes of the last character while it is not whole."""
        return self._decoder.getstate()[0]

    @property
    def length(self) -> int:
        """Return the byte place of the end of `text`."""
        return len(self.text)

    def end(self, count: int) -> int:
        """Return the byte place behind the first `count` ids; `text` must hold the last of them."""
        return 0 if count == self._first else self.ends[count - self._first - 1]

    def append(self, more: bytes) -> int:
        """Add bytes to the response, and return how many leading ids are as they were."""
        apart = self._apart(more) if more else None
        added = self._decoder.decode(more)
        if apart is not None:
            kept, before = len(self.ids), self.last
            segment = self.vocabulary.normalised(added).encode()
            self._replace_tail(kept, len(self.text), before, segment, apart)
        else:
            grown = self._grown(added)
            if grown is None:
                return len(self.ids)
            fresh = self._tokenised(grown, self.before)
            kept = self.root + shared_prefix(self.ids[self.root :], fresh)
            self._replace_tail(self.root, self.root_place, self.before, grown, fresh)
        self._close()
        return kept

    def _replace_tail(
        self, count: int, place: int, before: str, segment: bytes, fresh: Sequence[int]
    ) -> None:
        """Put text and its ids behind the first `count` ids, which end at `place`."""
        self.text[place:] = segment
        self.ids[count:] = fresh
        ends = self.vocabulary.ends(segment, before)
        self.ends[count - self._first :] = [place + end for end in ends]

    def replace(self, response: bytes, current: bytes) -> int:
        """Make `response` of what was `current`, and return how many leading ids are as they were."""
        if response.startswith(current):
            return self.append(response[len(current) :])
        old = self.ids
        self._begin()
        self.append(response)
        return shared_prefix(old, self.ids)

    def after(self, more: bytes) -> tuple[int, tuple[int, ...]]:
        """Return how the text would be tokenised with more bytes: how many ids stay, and those that follow them.

        Bytes of a character that is not whole are left out.
        """
        apart = self._apart(more)
        return self.retokenised(more) if apart is None else (len(self.ids), apart)

    def retokenised(self, more: bytes) -> tuple[int, tuple[int, ...]]:
        """Return what `after` does by tokenising all text behind the last closed place."""
        segment = self.grown(more)
        if segment is None:
            return len(self.ids), ()
        fresh = self._tokenised(segment, self.before)
        kept = shared_prefix(self.ids[self.root :], fresh)
        return self.root + kept, fresh[kept:]

    def grown(self, more: bytes) -> bytes | None:
        """Return what would stand behind the last closed place with more bytes; None if no character is added."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.setstate(self._decoder.getstate())
        return self._grown(decoder.decode(more))

    @property
    def last(self) -> str:
        """Return the text's last character if more may be tokenised apart from what stands before it; else nothing."""
        # An unwritten space has no token of its own before there is something behind it.
        if self.held or not self.ends or self.ends[-1] != len(self.text):
            return ""
        return self.text[-4:].decode(errors="ignore")[-1:]

    def _apart(self, more: bytes) -> tuple[int, ...] | None:
        """Return the ids of more bytes if they close the text behind which they stand; None if that is not so.

        Most candidates begin a word. Their ids are then remembered for all texts, and not for each word before them.
        """
        last = self.last
        before = last.encode()
        if not last or not self.vocabulary.closed(before + more, len(before)):
            return None
        try:
            added = self.vocabulary.normalised(more.decode()).encode()
        except UnicodeDecodeError:
            return None
        return self._tokenised(added, last)

    def copy(self) -> Canonical:
        """Return another one that goes on from here."""
        other = object.__new__(Canonical)
        other.__dict__.update(self.__dict__)
        other.ids, other.ends, other.text = list(self.ids), list(self.ends), self.text[:]
        other._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        other._decoder.setstate(self._decoder.getstate())
        return other

    def _grown(self, added: str) -> bytes | None:
        """Return what stands behind the last closed place with more characters; None if there are no more."""
        if not added:
            return None
        return self.vocabulary.normalised(self.text[self.root_place :].decode() + added).encode()

    def _tokenised(self, segment: bytes, before: str) -> tuple[int, ...]:
        return self.vocabulary.canonical(segment, before)

    def _close(self) -> None:
        """Move the root to the last closed place."""
        for count in range(len(self.ids), self.root, -1):
            place = self.end(count)
            if place and self.vocabulary.closed(self.text, place):
                self.root, self.root_place = count, place
                self.before = self.text[max(0, place - 4) : place].decode(errors="ignore")[-1]
                return
