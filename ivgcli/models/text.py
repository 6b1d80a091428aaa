"""From response ids back to text, without losing a leading space or half a character, and stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ANCHOR = 4
"""Prompt tokens decoded in front of a response, because many tokenizers treat the first token of a text differently."""


BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What bytes that are no whole character are decoded to."""


def response_text(tokenizer: Any, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> str:
    """Return the text of a response as it continues its prompt; special tokens are left out.

    Decoding the response alone would drop the leading space that SentencePiece hides in its first token, so it
    is decoded behind the end of its prompt and the prompt's text is cut off.
    """
    if not response_ids:
        return ""
    size = ANCHOR
    anchor = list(prompt_ids[-size:])
    before = _decode(tokenizer, anchor)
    # Cut inside a character, the anchor would spoil a response that begins in bytes as well.
    while before.startswith(BROKEN) and size < len(prompt_ids):
        size *= 2
        anchor = list(prompt_ids[-size:])
        before = _decode(tokenizer, anchor)
    whole = _decode(tokenizer, anchor + list(response_ids))
    return whole[len(before) :] if whole.startswith(before) else _decode(tokenizer, response_ids)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


class StopStrings:
    """Finds stop strings while decoding, looking at text only when the newest token could complete one.

    Args:
        tokenizer: tokenizer of the base.
        stops: strings that end a response; they are not part of it.
        vocabulary: number of token ids.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], vocabulary: int) -> None:
        self.tokenizer = tokenizer
        self.stops = tuple(stops)
        # Special tokens are left out of a response's text, so a stop that is one is known by its id.
        self.special = {
            tokenizer.convert_tokens_to_ids(stop)
            for stop in stops
            if stop in tokenizer.all_special_tokens
        }
        self.window = 4 * max((len(stop.encode()) for stop in stops), default=0)
        lasts = {stop[-1] for stop in stops}
        # A token that is no valid text by itself (half a character) may complete anything. Two of a kind are decoded,
        # because the space in front of the first one may be hidden.
        self.closing = frozenset(
            token
            for token in (range(vocabulary) if stops else ())
            if any(char in lasts or char == BROKEN for char in _decode(tokenizer, [token, token]))
        )

    def find(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> str | None:
        """Return the response's text before the first stop string, or None while there is none."""
        if response_ids[-1] in self.special:
            return response_text(self.tokenizer, prompt_ids, response_ids)
        if not self.stops or response_ids[-1] not in self.closing:
            return None
        if len(response_ids) > self.window:
            recent = _decode(self.tokenizer, response_ids[-self.window :])
            if not any(stop in recent for stop in self.stops):
                return None
        text = response_text(self.tokenizer, prompt_ids, response_ids)
        return cut_at(text, self.stops)


def cut_at(text: str, stops: Sequence[str]) -> str | None:
    """Return a text before the first stop string in it, or None if there is none."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(places)] if places else None
