"""Preference pairs in TRL's format: plain text or conversations, in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ivgcli.errors import RecordError
from ivgcli.records.prompts import Prompt, prompt_of, read_entries, shared_beginning, spoken

OTHERS = ("chosen", "rejected", "messages", "completion")
"""Fields that a trainer would take for a pair's own: other responses to the same prompt."""


@dataclass(frozen=True)
class Pair:
    """A prompt with two responses, the first of which is preferred."""

    prompt: Prompt
    chosen: str
    rejected: str

    @property
    def id(self) -> str:
        """The id of the record."""
        return self.prompt.id


def read_pairs(source: str, limit: int | None = None) -> list[Pair]:
    """Read all preference pairs of a source; arguments as for `read_prompts`.

    Takes what TRL takes: `prompt`, `chosen` and `rejected` as texts or as lists of messages, and
    pairs whose prompt is the common beginning of `chosen` and `rejected`.

    Raises:
        RecordError: the first thing wrong, with its file and line.
    """
    pairs = read_entries(source, limit, _pair)
    if not pairs:
        hint = 'write one {"prompt": ..., "chosen": ..., "rejected": ...} a line'
        raise RecordError(spoken(source), "no pairs", hint)
    return pairs


def read_pairs_or_prompts(source: str, limit: int | None = None) -> list[Pair] | list[Prompt]:
    """Read a source of pairs, or one of prompts: the first record says which; arguments as for `read_prompts`.

    Raises:
        RecordError: the first thing wrong, with its file and line.
    """
    kinds: list[bool] = []

    def entry(row: dict[str, Any], number: int) -> Pair | Prompt:
        kinds.append(row.get("chosen") is not None)
        return _pair(row, number) if kinds[0] else without_answers(prompt_of(row, number))

    found: Any = read_entries(source, limit, entry)
    if not found:
        hint = 'write one {"prompt": ..., "chosen": ..., "rejected": ...} a line'
        raise RecordError(spoken(source), "no records", hint)
    return found  # type: ignore[no-any-return]


def without_answers(prompt: Prompt) -> Prompt:
    """Return a prompt from whose record no other response passes through."""
    extra = {name: value for name, value in prompt.extra.items() if name not in OTHERS}
    return replace(prompt, extra=extra)


def preference(
    prompt: Prompt,
    identity: str,
    chosen: str,
    rejected: str,
    fields: Mapping[str, Any],
    conversational: bool = False,
) -> dict[str, Any]:
    """Return a pair as TRL reads it: id, prompt, both responses, `fields`, what passes through.

    Args:
        prompt: the record's prompt.
        identity: the pair's id.
        chosen: the preferred response.
        rejected: the other one.
        fields: what else is known of the pair.
        conversational: whether to write messages even where the prompt is text.
    """
    pair: dict[str, Any]
    if prompt.messages is None and not conversational:
        pair = {"prompt": prompt.text, "chosen": chosen, "rejected": rejected}
    else:
        asked = prompt.messages or ({"role": "user", "content": prompt.text},)
        pair = {
            "prompt": [*asked],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
    own = {"id": identity, **pair, **fields}
    kept = {name: value for name, value in prompt.extra.items() if name not in own}
    return {**own, **kept}


def _pair(row: dict[str, Any], number: int) -> Pair:
    """Return the pair that an object holds; a ValueError's text says why it holds none."""
    absent = [name for name in ("chosen", "rejected") if row.get(name) is None]
    if absent:
        what = f'no field "{absent[0]}" (found {", ".join(row) or "nothing"})'
        raise ValueError(f"{what} → a pair has prompt, chosen and rejected")
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _conversation(row, number, chosen, rejected)
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise ValueError('"chosen" and "rejected" are not both texts or both lists of messages')
    explicit = any(row.get(key) is not None for key in ("prompt", "instruction", "messages"))
    prompt = prompt_of(row, number)
    cut = 0 if explicit else len(prompt.text or "")
    return Pair(without_answers(prompt), chosen[cut:], rejected[cut:])


def _conversation(
    row: dict[str, Any], number: int, chosen: Sequence[Any], rejected: Sequence[Any]
) -> Pair:
    """Return a pair of conversations, of which the last message is the response."""
    asked = row.get("prompt")
    if not isinstance(asked, list):
        # As TRL does, a prompt that is text gives way to the messages that both begin with.
        shared: Sequence[Any] = ()
        if chosen[:1] == rejected[:1]:
            shared = shared_beginning(chosen, rejected)
        # Two equal conversations begin with all of themselves; the answer is no part of the prompt.
        asked = [*shared[: max(min(len(chosen), len(rejected)) - 1, 0)]]
        if not asked and isinstance(row.get("prompt"), str):
            asked = [{"role": "user", "content": row["prompt"]}]
        if not asked:
            raise ValueError('"chosen" and "rejected" share no prompt → add a field "prompt"')
    prompt = without_answers(prompt_of({**row, "prompt": asked}, number))
    return Pair(prompt, _answer("chosen", chosen, asked), _answer("rejected", rejected, asked))


def _answer(name: str, messages: Sequence[Any], asked: Sequence[Any]) -> str:
    """Return the text of the one message that follows the prompt."""
    rest = messages[len(asked) :] if [*messages[: len(asked)]] == [*asked] else messages
    only = rest[0] if len(rest) == 1 and isinstance(rest[0], dict) else {}
    if only.get("role") != "assistant" or not isinstance(only.get("content"), str):
        raise ValueError(f'"{name}" is not one message of the assistant after the prompt')
    return str(only["content"])
