"""What is here of a base that a server draws from: its name, its tokenizer, how it is shown a prompt."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from ivgcli.errors import RecordError
from ivgcli.models.prompts import PLACEHOLDER, PromptFormat


@dataclass
class ServedNetwork:
    """A network that runs elsewhere, as far as values here have to know it."""

    name: str
    tokenizer: Any | None
    """None: responses are text."""
    device: torch.device
    """Of the values."""
    width: int = 1
    """V, token ids that it may draw."""
    eos_ids: frozenset[int] = frozenset()
    context: int = 10**9
    """Only the server knows: what is too long it refuses."""

    @classmethod
    def of(cls, name: str, tokenizer: Any, device: torch.device) -> ServedNetwork:
        """Return a network whose tokens are those of a tokenizer."""
        width = max(tokenizer.get_vocab().values()) + 1
        return cls(name, tokenizer, device, width, closing_ids(tokenizer))

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token that alone is written so, for servers that tell strings."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return {}
        found: dict[str, int] = {}
        for token in range(self.width):
            text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
            found[text] = -1 if text in found else token
        return {text: token for text, token in found.items() if token >= 0}


def closing_ids(tokenizer: Any) -> frozenset[int]:
    """Return every id that ends a response: the tokenizer's own, and those of the generation config beside it."""
    ids = {tokenizer.eos_token_id}
    try:
        given = GenerationConfig.from_pretrained(tokenizer.name_or_path).eos_token_id
    except (OSError, ValueError):
        given = None
    ids.update(given if isinstance(given, list) else [given])
    return frozenset(int(each) for each in ids if each is not None)


class ServedPrompts:
    """How a served base is shown a prompt: by its tokenizer's rules, or as the text itself.

    Args:
        form: the tokenizer's, with the options of the recipe; None: there is no tokenizer.
        template: text holding `{prompt}`, where there is no tokenizer.
        system: system prompt of the chat endpoint.
        chat: whether conversations may go to the chat endpoint.
        converses: whether every prompt does.
    """

    def __init__(
        self,
        form: PromptFormat | None,
        template: str | None = None,
        system: str | None = None,
        chat: bool = False,
        converses: bool = False,
    ) -> None:
        self.form, self.template, self.system = form, template, system
        self.answers, self.converses = chat, converses
        self.by_ids = False
        """Whether the server is shown token ids; found out by asking it."""

    @property
    def chat(self) -> bool:
        """Whether prompts are put as a conversation."""
        return self.converses if self.form is None else self.form.chat

    def encode(
        self, text: str | None, messages: Sequence[dict[str, str]] | None, where: str = "record"
    ) -> list[int]:
        """Return the token ids of a prompt; none where there is no tokenizer.

        Raises:
            RecordError: the prompt cannot be put to this base.
        """
        if self.form is not None:
            return self.form.encode(text, messages, where)
        if self.messages(text, messages) is None:
            self._plain(text, messages, where)
        return []

    def messages(
        self, text: str | None, messages: Sequence[dict[str, str]] | None
    ) -> tuple[Mapping[str, str], ...] | None:
        """Return a prompt as the chat endpoint takes it; None where it goes to the other."""
        if self.form is not None or not self.answers or not (self.converses or messages):
            return None
        turns = tuple(messages or ({"role": "user", "content": str(text)},))
        if self.system is not None:
            rest = tuple(turn for turn in turns if turn["role"] != "system")
            turns = ({"role": "system", "content": self.system}, *rest)
        return turns

    def text(
        self, text: str | None, messages: Sequence[dict[str, str]] | None, where: str = "record"
    ) -> str:
        """Return a prompt as text, without the token that a server puts in front by itself."""
        if self.form is None:
            return self._plain(text, messages, where)
        return self.form.render(text, messages, where).removeprefix(self._opening)

    @functools.cached_property
    def _opening(self) -> str:
        """The token that a chat template writes down and a server's tokenizer puts in front all the same."""
        if self.form is None or not self.form.chat:
            return ""
        tokenizer = self.form.tokenizer
        own = tokenizer("a")["input_ids"][:1]
        return str(tokenizer.bos_token) if own == [tokenizer.bos_token_id] else ""

    def _plain(
        self, text: str | None, messages: Sequence[dict[str, str]] | None, where: str
    ) -> str:
        """Return the text itself, inside the template."""
        if text is None:
            if not messages or len(messages) != 1 or messages[0]["role"] != "user":
                what = "a conversation, and no tokenizer that says how the served base is told it"
                raise RecordError(where, what, "name one: base.tokenizer")
            text = messages[0]["content"]
        return text if self.template is None else self.template.replace(PLACEHOLDER, text)
