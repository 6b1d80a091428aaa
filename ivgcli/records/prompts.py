"""Reading prompts: JSON lines, a JSON array or a data set, in the shapes that users have."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ivgcli.errors import RecordError
from ivgcli.records.lines import decode, require_object

PROMPT_KEYS = ("prompt", "instruction", "messages")
"""Fields that may hold a prompt, the first one present wins."""

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """One prompt, as text or as a conversation."""

    id: str
    """The record's id; without one, its line number from 1."""
    text: str | None
    """The prompt as text; None if it is a conversation."""
    messages: tuple[Message, ...] | None
    """The conversation, each message with `role` and `content`; None if the prompt is text."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """All other fields of the record, which pass through to its responses."""

    def respond(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return a response's record: id and prompt first, then `fields`, then what passes through.

        Where a passed-through field has the name of one of the response's, the response's stands.
        """
        asked = {"prompt": self.text} if self.messages is None else {"messages": [*self.messages]}
        kept = {key: value for key, value in self.extra.items() if key not in fields}
        return {"id": self.id, **asked, **fields, **kept}


class Identified(Protocol):
    """Anything with a record's id."""

    @property
    def id(self) -> str:
        """The id."""


Entry = TypeVar("Entry", bound=Identified)


def read_prompts(source: str, limit: int | None = None) -> list[Prompt]:
    """Read all prompts of a file, of stdin (`-`) or of a data set (`hf:NAME[:SPLIT]`).

    Takes `prompt` (text or messages), `messages`, AlpacaEval's `instruction` and TRL's pairs, whose
    prompt is what `chosen` and `rejected` have in common at their beginning.

    Args:
        source: file of JSON lines or of one JSON array, `-`, or `hf:NAME[:SPLIT]`.
        limit: read only so many prompts, at least 1; what comes after them is not looked at.

    Raises:
        RecordError: the first thing wrong, with its file and line.
    """
    prompts = read_entries(source, limit, prompt_of)
    if not prompts:
        raise RecordError(spoken(source), "no prompts", 'write one {"prompt": ...} a line')
    return prompts


def read_entries(
    source: str, limit: int | None, parse: Callable[[dict[str, Any], int], Entry]
) -> list[Entry]:
    """Read all objects of a source, each with an id of its own; arguments as for `read_prompts`.

    Args:
        source: where to read.
        limit: read only so many.
        parse: takes an object and its number; a ValueError's text says what is wrong with it.

    Raises:
        RecordError: the first thing wrong, with its file and line.
    """
    rows = _rows_of_dataset(source) if source.startswith("hf:") else _rows_of_text(source)
    entries: list[Entry] = []
    seen: dict[str, str] = {}
    for number, place, row in islice(rows, limit):
        try:
            entry = parse(row, number)
        except ValueError as error:
            raise _record_error(place, error) from None
        if entry.id in seen:
            what = f'id "{entry.id}" is there already, at {seen[entry.id]}'
            raise RecordError(place, what, "give every prompt its own id")
        seen[entry.id] = place
        entries.append(entry)
    return entries


def spoken(source: str) -> str:
    """Return how errors call a source."""
    return "stdin" if source == "-" else source


def _record_error(place: str, error: ValueError) -> RecordError:
    """Return an error at a place from a sentence `what → hint`."""
    what, _, hint = str(error).partition(" → ")
    return RecordError(place, what, hint)


def _rows_of_text(source: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield each object of a file or stdin with its number and place."""
    name = spoken(source)
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except FileNotFoundError:
        raise RecordError(name, "no such file") from None
    except OSError as error:
        raise RecordError(name, (error.strerror or str(error)).lower()) from None
    content = content.removeprefix(b"\xef\xbb\xbf")
    if content.lstrip().startswith(b"["):
        yield from _rows_of_array(content, name)
        return
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            place = f"{name}:{number}"
            try:
                yield number, place, decode(line)
            except ValueError as error:
                raise _record_error(place, error) from None


def _rows_of_array(content: bytes, name: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield each object of a JSON array with its number, counted from 1."""
    try:
        rows = json.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecordError(f"{name}:{line}", "not UTF-8", "save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"{name}:{error.lineno}"
        raise RecordError(place, f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise RecordError(name, "not JSON: nested too deep") from None
    for number, row in enumerate(rows, start=1):
        place = f"{name}: entry {number}"
        try:
            yield number, place, require_object(row)
        except ValueError as error:
            raise _record_error(place, error) from None


def _rows_of_dataset(source: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield each row of `hf:NAME[:SPLIT]` with its number, counted from 1."""
    import datasets

    name, _, split = source.removeprefix("hf:").partition(":")
    try:
        loaded = datasets.load_dataset(name, split=split or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RecordError(source, reason, "check the name, the split and the network") from None
    if isinstance(loaded, Mapping):
        if len(loaded) != 1:
            hint = f"name one, for example hf:{name}:{next(iter(loaded), 'train')}"
            raise RecordError(source, f"has the splits {', '.join(loaded)}", hint)
        loaded = next(iter(loaded.values()))
    for number, row in enumerate(loaded, start=1):
        place = f"{source}: row {number}"
        try:
            yield number, place, require_object(row)
        except ValueError as error:
            raise _record_error(place, error) from None


def prompt_of(row: dict[str, Any], number: int) -> Prompt:
    """Return the prompt that an object holds; a ValueError's text says why it holds none."""
    key = next((key for key in PROMPT_KEYS if row.get(key) is not None), None)
    if key is not None:
        asked = row[key]
    elif row.get("chosen") is not None and row.get("rejected") is not None:
        asked = shared_beginning(row["chosen"], row["rejected"])
    else:
        found = ", ".join(row) or "nothing"
        raise ValueError(f'no field "prompt" (found {found}) → rename the field that holds it')
    extra = {name: value for name, value in row.items() if name not in ("id", key)}
    identity = _identity(row.get("id"), number)
    if isinstance(asked, str) and key != "messages":
        if not asked.strip():
            raise ValueError("the prompt is empty")
        return Prompt(identity, asked, None, extra)
    return Prompt(identity, None, _messages(asked, key or "chosen"), extra)


def _identity(given: Any, number: int) -> str:
    """Return the id of a record as text."""
    if given is None:
        return str(number)
    if isinstance(given, bool) or not isinstance(given, (str, int)) or given == "":
        raise ValueError("the id is neither a text nor a whole number")
    return str(given)


def _messages(asked: Any, key: str) -> tuple[Message, ...]:
    """Return a conversation that a model can answer."""
    if not isinstance(asked, list):
        raise ValueError(f'"{key}" is neither a text nor a list of messages')
    if not asked:
        raise ValueError("the prompt is empty")
    for turn, message in enumerate(asked, start=1):
        fields = (message.get("role"), message.get("content")) if isinstance(message, dict) else ()
        if not fields or not all(isinstance(value, str) for value in fields):
            raise ValueError(f'message {turn} of "{key}" lacks a role or content that is text')
    if asked[-1]["role"] == "assistant":
        raise ValueError("the last message is the assistant's → end with the one to be answered")
    return tuple(asked)


def shared_beginning(chosen: Any, rejected: Any) -> Any:
    """Return what both responses of a pair begin with, as TRL extracts the prompt of a pair."""
    if not isinstance(chosen, (str, list)) or type(chosen) is not type(rejected):
        raise ValueError('"chosen" and "rejected" are not both texts or both lists of messages')
    length = sum(1 for _ in takewhile(_same, zip(chosen, rejected, strict=False)))
    if length < min(len(chosen), len(rejected)) and chosen[:length][-1:] == " ":
        length -= 1  # the space belongs to the word after it, as tokenizers see it
    if not length:
        raise ValueError('"chosen" and "rejected" share no prompt → add a field "prompt"')
    return chosen[:length]


def _same(pair: Iterable[Any]) -> bool:
    """Return whether both of a pair are equal."""
    left, right = pair
    return bool(left == right)
