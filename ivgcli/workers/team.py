"""Who works, on what, and how each worker is doing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ivgcli.console import Narrator


@dataclass(frozen=True)
class Job:
    """What there is to do, and where it goes."""

    units: Sequence[int]
    """Numbers of the units that are not done."""
    unit_of: Callable[[Any], int]
    """Number of the unit that a record, or a prompt's records, finish."""
    accept: Callable[[int, Any], None]
    """Given a worker's number and what finishes a unit, writes it."""
    narrator: Narrator
    """Shows how far the run is."""
    trace: Callable[[Mapping[str, Any]], None] = lambda line: None
    """Writes a line of the trace."""
    portions: int = 1
    """As the dispenser takes it."""


@dataclass
class Hand:
    """One worker, as the leader sees it."""

    number: int
    writer: asyncio.StreamWriter | None = None
    process: asyncio.subprocess.Process | None = None
    ended: bool = False
    """Whether it has told what its work came to."""
    lost: bool = False
    code: int | None = None
    """How its process has ended; None: it has not, or is not ours."""
    room: int = 0
    """Of its unanswered question for work; 0: there is none."""
    tokens: int = 0
    under_way: float = 0.0
    account: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Team:
    """Who works."""

    run: str
    """Names command, recipe and input; a worker of another run is refused."""
    environments: Sequence[Mapping[str, str]]
    """Of the workers to start here, numbered from 0, as changes to this process's environment."""
    command: Sequence[str] = ()
    """Which starts one of them."""
    others: int = 0
    """Workers that somebody else starts, numbered behind them."""
    host: str = "127.0.0.1"
    """Where to listen."""
    opened: Callable[[int, str], Mapping[str, str]] = lambda port, token: {}
    """Told the port and the token; returns what lets a worker that is started here find them."""
