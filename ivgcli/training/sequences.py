"""From records to the token ids that are trained on: the very ids that decoding reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ivgcli.models.prompts import PromptFormat
from ivgcli.records import Prompt

ANCHORS = ("\n", ".", "0", "é")
"""Texts that few words of a vocabulary begin with."""


@dataclass(frozen=True)
class Example:
    """One response to one prompt, in the tokens of the network that learns from it."""

    id: str
    prompt_ids: list[int]
    response_ids: list[int]
    """Ends with EOS if the response ended by itself."""
    ended: bool
    reward: float | None = None
    """Reward of the whole response."""

    @property
    def ids(self) -> list[int]:
        """Return prompt and response."""
        return self.prompt_ids + self.response_ids


class Encoder:
    """Puts prompts and responses into tokens as decoding does.

    A prompt goes through the model's own format, a response comes after it, EOS is at the end.

    Args:
        form: how the network is shown a prompt.
    """

    def __init__(self, form: PromptFormat) -> None:
        self.form = form
        self.tokenizer: Any = form.tokenizer

    def encode(
        self,
        prompt: Prompt,
        response: str,
        ended: bool = True,
        reward: float | None = None,
        identity: str | None = None,
    ) -> Example:
        """Return one response in tokens.

        Args:
            prompt: the record's prompt.
            response: its text.
            ended: whether it ended by itself, rather than at a limit.
            reward: its reward, if that is known.
            identity: the example's id; the prompt's by default.

        Raises:
            RecordError: the prompt does not suit the network.
        """
        prompt_ids = self.form.encode(prompt.text, prompt.messages, prompt.id)
        rendered = self.form.render(prompt.text, prompt.messages, prompt.id)
        response_ids = self._continuation(rendered, prompt_ids, response)
        end = int(self.tokenizer.eos_token_id)
        if ended and response_ids[-1:] != [end]:
            response_ids.append(end)
        return Example(identity or prompt.id, prompt_ids, response_ids, ended, reward)

    def _continuation(self, rendered: str, prompt_ids: list[int], response: str) -> list[int]:
        """Return the ids of a response after its prompt.

        The prompt's ids stay what they are even where the text's last token would merge with the
        response's first, for decoding starts from them, too.
        """
        framed = not self.form.chat
        whole = self._ids(rendered + response, framed)
        if framed and whole and whole[-1] == self.tokenizer.eos_token_id:
            whole.pop()  # some tokenizers close every text themselves
        if whole[: len(prompt_ids)] == prompt_ids:
            return whole[len(prompt_ids) :]
        text = self._text(whole)
        found = [self._ids(response, False), *self._behind_anchors(response)]
        return next((ids for ids in found if self._text(prompt_ids + ids) == text), found[0])

    def _behind_anchors(self, response: str) -> Iterator[list[int]]:
        """Yield the ids of a response behind a text that it does not merge with.

        Where a tokenizer opens every text with a space, the response's own ids would say it, too.
        """
        for anchor in ANCHORS:
            begun = self._ids(anchor, False)
            whole = self._ids(anchor + response, False)
            if whole[: len(begun)] == begun:
                yield whole[len(begun) :]

    def _ids(self, text: str, framed: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=framed)["input_ids"])

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
