"""From a record to the token ids a model reads: chat templates, prompt templates, system prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from ivgcli.errors import RecordError

PLACEHOLDER = "{prompt}"
"""Where a template takes the prompt; every other brace of a template or a prompt is data."""


class PromptFormat:
    """How one model is shown a prompt.

    A chat model gets its own chat template, with `system` as its system message; any other model gets the text itself,
    after `system` if that is given. A `template` is the whole text around the prompt, in place of a chat
    template; together with `chat: true` it wraps the last user message instead.

    Args:
        tokenizer: the model's tokenizer.
        template: text holding `{prompt}`, or None.
        system: system prompt, or None for whatever the chat template does by itself.
        chat: whether to use the chat template; None means if the tokenizer has one and no template is given.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None = None,
        system: str | None = None,
        chat: bool | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.system = system
        self.chat = bool(tokenizer.chat_template) and template is None if chat is None else chat
        if self.chat and not tokenizer.chat_template:
            raise RecordError(
                str(tokenizer.name_or_path),
                "chat: true, but the tokenizer has no chat template",
                "chat: false",
            )
        self._rendered: dict[tuple[str | None, str], str] = {}
        self._encoded: dict[str, list[int]] = {}

    @property
    def key(self) -> tuple:
        """What makes two formats of one tokenizer read the same thing."""
        return (self.template, self.system, self.chat)

    def render(
        self, text: str | None, messages: Sequence[dict[str, str]] | None, where: str = "record"
    ) -> str:
        """Return the text that the model reads before its response; each prompt is rendered once.

        Args:
            text: the prompt, if the record has one.
            messages: the conversation, if the record has one; it ends with the message to be answered, or with the
                beginning of the answer.
            where: what to call the record in an error.

        Raises:
            RecordError: a conversation for a model without a chat template, or one that its template refuses.
        """
        key = (text, repr(messages))
        if key not in self._rendered:
            self._rendered[key] = self._render(text, messages, where)
        return self._rendered[key]

    def _render(
        self, text: str | None, messages: Sequence[dict[str, str]] | None, where: str
    ) -> str:
        """Apply template, system prompt and chat template to one prompt."""
        if messages and messages[-1]["role"] == "assistant":
            # The response is begun already. A template would trim it, or close its turn.
            begun = messages[-1]["content"]
            return self._render(text, messages[:-1], where) + begun
        if not self.chat:
            return (self.system or "") + self._wrap(self._single(text, messages, where))
        turns = (
            [dict(turn) for turn in messages] if messages else [{"role": "user", "content": text}]
        )
        if self.template is not None:
            asked = [turn for turn in turns if turn["role"] == "user"]
            if asked:
                asked[-1]["content"] = self._wrap(asked[-1]["content"])
        if self.system is not None:
            turns = [
                {"role": "system", "content": self.system},
                *(t for t in turns if t["role"] != "system"),
            ]
        try:
            return self._apply(turns)
        except TemplateError as problem:
            # Templates such as Mistral's or Gemma's refuse a system role: it then opens the first message.
            if turns[0]["role"] == "system" and len(turns) > 1:
                merged = {**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
                with contextlib.suppress(TemplateError):
                    return self._apply([merged, *turns[2:]])
            what = f"the chat template refuses the conversation ({problem})"
            raise RecordError(where, what, "check its roles and their order") from problem

    def encode(
        self, text: str | None, messages: Sequence[dict[str, str]] | None, where: str = "record"
    ) -> list[int]:
        """Return the token ids of `render`, begun the way the model's own tokenizer begins a sequence."""
        rendered = self.render(text, messages, where)
        if rendered not in self._encoded:
            ids = self.tokenizer(rendered, add_special_tokens=not self.chat)["input_ids"]
            if not self.chat and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
                ids = ids[:-1]  # some tokenizers close every text themselves
            self._encoded[rendered] = list(ids)
        return self._encoded[rendered]

    def _apply(self, turns: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def _wrap(self, text: str) -> str:
        return text if self.template is None else self.template.replace(PLACEHOLDER, text)

    @staticmethod
    def _single(text: str | None, messages: Sequence[dict[str, str]] | None, where: str) -> str:
        if text is not None:
            return text
        if messages and len(messages) == 1 and messages[0]["role"] == "user":
            return messages[0]["content"]
        raise RecordError(
            where,
            "a conversation, but the model has no chat template",
            "give it a prompt, or use a chat model",
        )
