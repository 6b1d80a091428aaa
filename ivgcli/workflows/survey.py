"""What is known of the networks and prompts of a run before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ivgcli.errors import ModelError, RecordError
from ivgcli.models.loading import chosen_device
from ivgcli.models.prompts import PLACEHOLDER, PromptFormat
from ivgcli.models.sizes import Found, Head, Kind, find, tokenizer_of
from ivgcli.models.vocabulary import compare
from ivgcli.recipes import EngineSpec, ModelSpec
from ivgcli.recipes.sizes import known_size

CHARACTERS = 4
"""Characters of English text in a token, where no tokenizer is there to count."""

QUANTISED = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}
"""Bytes of a quantised weight; 4 bits come with a float32 for each block of 64."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


Agreement = Literal["same", "table", "bytes", "text"]
"""A guide's ids are the base's; a table says which are; its bytes can guide tokens; it can only read texts."""


@dataclass(frozen=True)
class Question:
    """One text that networks will read: a prompt, and perhaps a response behind it."""

    text: str | None
    messages: tuple[Mapping[str, Any], ...] | None = None
    response: str = ""


@dataclass(frozen=True)
class Asked:
    """What a run will answer or judge, as far as it is there."""

    place: str
    """File, data set or flag."""
    questions: tuple[Question, ...] | None
    """None: they are not here."""
    number: int | None
    """How many there are; None: not known."""
    told_by: str = ""
    """Where the number comes from, if the questions are not here."""
    things: str = "prompts"
    """What they are."""

    @property
    def count(self) -> int:
        """How many the plan counts: one, where their number is not known."""
        return 1 if self.number is None else self.number


class Survey:
    """Looks models up, each once, and says what they would take.

    Args:
        engine: where they would run.

    Raises:
        ModelError: there is no device of that name.
    """

    def __init__(self, engine: EngineSpec) -> None:
        self.device, self.device_is_here = planned_device(engine.device)
        self.dtype = engine.dtype
        self._found: dict[tuple[ModelSpec, Kind, Head], Found] = {}
        self._tokenizers: dict[str, Any] = {}
        self._lengths: dict[tuple[Any, ...], list[int]] = {}

    def find(self, spec: ModelSpec, kind: Kind, head: Head = "own") -> Found:
        """Return what is known of a model."""
        key = (spec, kind, head)
        if key not in self._found:
            self._found[key] = find(spec, kind, head)
        return self._found[key]

    def tokenizer(self, spec: ModelSpec) -> Any:
        """Return a model's tokenizer, or None if it is not here."""
        if spec.model not in self._tokenizers:
            self._tokenizers[spec.model] = tokenizer_of(spec)
        return self._tokenizers[spec.model]

    def format_of(self, spec: ModelSpec) -> str:
        """Return the number format that a model's activations, keys and values would have."""
        named = spec.dtype if spec.dtype != "auto" else self.dtype
        if named in (None, "auto"):
            return "float32" if self.device.type == "cpu" else "bfloat16"
        return str(named)

    def weight_bytes(self, spec: ModelSpec, found: Found) -> int | None:
        """Return the bytes of a model's weights; None if its size is not known."""
        size = found.size
        if size is None:
            return None
        each = BYTES[self.format_of(spec)]
        if spec.quantization is None:
            return (size.parameters + found.adapter) * each
        kept = size.vocabulary * size.hidden * (1 if size.tied or size.encoder else 2)
        quantised = max(0, size.parameters - kept)
        return int(quantised * QUANTISED[spec.quantization] + (kept + found.adapter) * each)

    def vocabularies(self, base: ModelSpec, guide: ModelSpec) -> tuple[Agreement | None, str]:
        """Return how the ids of a guide and the base agree, and a sentence if they do not.

        None: neither tokenizers nor the table of published sizes tell.
        """
        if base.model == guide.model:
            return "same", ""
        ours, theirs = self.tokenizer(base), self.tokenizer(guide)
        if ours is not None and theirs is not None:
            match = compare(ours, theirs)
            if match.same:
                return "same", ""
            by_bytes: Agreement = "bytes" if match.guidable else "text"
            return "table" if match.exact else by_bytes, match.sentence()
        known = [known_size(each.model) for each in (base, guide)]
        names = [None if size is None else size.tokenizer for size in known]
        if None in names:
            return None, ""
        if names[0] == names[1]:
            return "same", ""
        return "bytes", f"one has the vocabulary of {names[0]}, the other {names[1]}'s"

    def lengths(
        self, spec: ModelSpec, asked: Asked, template: str | None = None, system: str | None = None
    ) -> list[int] | None:
        """Return the tokens of each question in a model's own format; None if they are not here.

        Where the tokenizer is not here, four characters are a token. What does not suit the model
        counts nothing.
        """
        if asked.questions is None:
            return None
        key = (spec, template, system, id(asked))
        if key not in self._lengths:
            tokenizer = self.tokenizer(spec)
            shown = spec.template if template is None else template
            told = spec.system if system is None else system
            if tokenizer is None:
                found = [_guess(each, shown, told) for each in asked.questions]
            else:
                form = PromptFormat(tokenizer, shown, told, spec.chat)
                found = [_count(each, form) for each in asked.questions]
            self._lengths[key] = found
        return self._lengths[key]


def planned_device(name: str | None) -> tuple[torch.device, bool]:
    """Return a device, and whether it is here: a plan may be for another machine's GPU.

    Raises:
        ModelError: there is no device of that name.
    """
    try:
        return chosen_device(name), True
    except ModelError:
        if name is None or not re.fullmatch(r"cuda(:\d+)?", name):
            raise
        return torch.device(name), False


def _count(question: Question, form: PromptFormat) -> int:
    """Return a question's tokens; 0 if it does not suit the model, which its record will say."""
    messages = None if question.messages is None else [dict(each) for each in question.messages]
    try:
        length = len(form.encode(question.text, messages))
    except RecordError:
        return 0
    if question.response:
        length += len(form.tokenizer(question.response, add_special_tokens=False)["input_ids"])
    return length


def _guess(question: Question, template: str | None, system: str | None) -> int:
    """Return a question's tokens by its characters."""
    text = question.text
    if text is None:
        text = "\n\n".join(str(each["content"]) for each in question.messages or ())
    around = (template or PLACEHOLDER).replace(PLACEHOLDER, "")
    return -(-len(text + around + (system or "") + question.response) // CHARACTERS)


def questions(prompts: Sequence[Any]) -> tuple[Question, ...]:
    """Return prompts as what networks read."""
    return tuple(Question(each.text, each.messages) for each in prompts)
