"""What is wrong with one key of a recipe, as a sentence instead of a validator's message."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

MISSING = {
    "base": "name the model to steer with --base MODEL",
    "init": "name the model to start from with --init MODEL",
    "reward": "name one with --reward MODEL or --reward module:function",
}
"""What to do about a key that a recipe cannot do without."""

NUMBERS = {
    "greater_than": "more than",
    "greater_than_equal": "at least",
    "less_than_equal": "at most",
}
"""Bounds of a number, as pydantic names them and as a sentence does."""

WANTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a mapping of keys",
    "finite_number": "a finite number",
}
"""What each type error of pydantic wanted instead."""


def describe(kind: type[BaseModel], detail: ErrorDetails) -> tuple[str, str]:
    """Return the fact and the hint for one of pydantic's own errors."""
    error, got, context = detail["type"], show(detail["input"]), detail.get("ctx", {})
    *parents, last = detail["loc"]
    if error == "missing":
        return "missing", MISSING.get(str(last), "")
    if error == "extra_forbidden":
        known = list(_section(kind, parents).model_fields)
        close = difflib.get_close_matches(str(last), known, n=1)
        return "unknown key", f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    if error == "literal_error":
        allowed = context["expected"].replace("'", "")
        close = difflib.get_close_matches(
            str(detail["input"]), re.split(r", | or ", allowed), n=1, cutoff=0.5
        )
        return f"expected {allowed}, got {got}", f"did you mean {close[0]}?" if close else ""
    if error in NUMBERS:
        bound = next(context[name] for name in ("gt", "ge", "le") if name in context)
        return f"expected {NUMBERS[error]} {bound:g}, got {got}", ""
    if error == "string_too_short":
        return "expected text, got an empty one", ""
    if error in WANTED:
        return f"expected {WANTED[error]}, got {got}", ""
    return f"{detail['msg']}, got {got}", ""


def _section(kind: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel]:
    """Return the class of the section at a location."""
    for part in location:
        if isinstance(part, str):
            kind = next(_classes(kind.model_fields[part].annotation))
    return kind


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that an annotation such as `tuple[ModelSpec, ...] | None` mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _classes(argument)


def show(value: Any) -> str:
    """Return a raw value as a sentence quotes it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, BaseModel)):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = str(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f'"{text}"' if isinstance(value, str) else text
