"""The client of a server: the package, the address and the key, which is never told."""

from __future__ import annotations

import os
from types import ModuleType
from urllib.parse import urlsplit

from ivgcli.errors import ModelError

KEY = "OPENAI_API_KEY"
ADDRESS = "OPENAI_BASE_URL"

SECRET_LENGTH = 8
"""Shorter keys are words that people give to servers of their own, and may stand in any sentence."""


def client_library(name: str) -> ModuleType:
    """Return the client, which is an extra."""
    try:
        import openai
    except ImportError:
        what = "a server needs the openai package"
        raise ModelError(name, what, "pip install 'ivgcli[serve]'") from None
    return openai


def key_for(name: str, address: str | None) -> str:
    """Return the key from the environment; a server of one's own may need none."""
    try:
        checked = urlsplit(address or "https://api.openai.com/v1")
        known = checked.hostname and (checked.port is None or checked.port > 0)
    except ValueError:
        known = False
    if not known:
        raise ModelError(name, f'no address "{address}"', "openai:http://HOST:PORT/v1#MODEL")
    key = os.environ.get(KEY)
    if not key and address is None:
        raise ModelError(name, f"{KEY} is not set", f"set it, or {ADDRESS} to a server of your own")
    return key or "none"


def quoted(text: str, key: str) -> str:
    """Return what a server said, on one line, short, and without the key."""
    secret = key if len(key) >= SECRET_LENGTH else "\0"
    line = " ".join(text.replace(secret, "***").split())
    return line if len(line) <= 200 else line[:197] + "..."
