"""One record as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def encode(record: Mapping[str, Any]) -> bytes:
    """Return a record as one line of UTF-8 JSON, its newline included.

    Raises:
        ValueError: a number is not finite, or a text holds half a surrogate pair.
    """
    return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()


def decode(line: bytes) -> dict[str, Any]:
    """Return the object that a line holds.

    Raises:
        ValueError: a sentence saying why the line is not a record.
    """
    if b"\0" in line:
        raise ValueError("has a NUL byte → the file is damaged, or not text")
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8 → save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deep") from None
    return require_object(record)


def require_object(record: Any) -> dict[str, Any]:
    """Return `record` if it is an object that can be written back.

    Raises:
        ValueError: it is not an object, or holds what JSON cannot.
    """
    if not isinstance(record, dict):
        kind = {list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
        raise ValueError(f"expected an object, got {kind.get(type(record), 'a number')}")
    try:
        encode(record)
    except TypeError as error:
        raise ValueError(f"holds what JSON does not have: {error}") from None
    except ValueError:
        # NaN and Infinity are read by Python's parser, and so are escapes of lone surrogates.
        what = "holds NaN, Infinity or half a surrogate pair, which JSON does not have"
        raise ValueError(what) from None
    return record
