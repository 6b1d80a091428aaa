"""What a worker is given of a run, and what a run came to, of one process or of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Share(Protocol):
    """A worker's part of a run: units of work, numbered in the order of the input."""

    def take(self, room: int, wait: bool) -> list[int] | None:
        """Return at most `room` units to begin; none if there is none now, None if there will be none.

        Args:
            room: how many could begin now, at least 1.
            wait: whether to wait for one, because there is nothing else to do.
        """

    def report(self, tokens: int, under_way: float) -> None:
        """Tell the tokens drawn so far, and how many responses' worth of work is under way."""


@dataclass(frozen=True)
class Worker:
    """What one of several workers did."""

    worker: int
    units: int
    """Prompts or responses that it finished."""
    tokens: int
    """Tokens of the responses that it finished."""
    passes: int
    """Of the base: its steps, and the prompts it read."""
    lost: bool
    """Whether it died; then what it had not finished was done by others, and its passes are not known."""


@dataclass(frozen=True)
class Summary:
    """What a run came to."""

    records: int
    failures: list[tuple[str, str]]
    """(id, sentence) of each record that has no response."""
    tokens: int
    """Tokens of the responses written."""
    seconds: float
    """Of decoding, without loading."""
    rows: int
    """Sequences decoding at once, on all workers together."""
    peak_memory_bytes: int | None
    """Of the worker that took most."""
    notes: tuple[str, ...] = ()
    device: str = ""
    networks: dict[str, dict[str, int]] = field(default_factory=dict)
    """What each network did: passes, tokens read, and which of them were prompts, read again or peeked at."""
    versions: dict[str, str] = field(default_factory=dict)
    speculation: dict[str, float] = field(default_factory=dict)
    """How guessing tokens ahead went; empty where nothing was guessed."""
    workers: tuple[Worker, ...] = ()
    """What each did, where there were several."""


@dataclass(frozen=True)
class Part(Summary):
    """What one worker's share came to, with what cannot be told before all shares are known."""

    base: str = ""
    """The base's name among the networks."""
    bridged: tuple[float, ...] = ()
    """What guidance across vocabularies bridged, as `Tally` counts it."""
    drawn: tuple[int, int] = (0, 0)
    """Tokens and candidates that responses were chosen from."""


@dataclass(frozen=True)
class Written:
    """What is kept in memory of a unit that a worker has finished."""

    worker: int
    id: str
    tokens: int
    """Of its response, or of all its responses."""
    error: str | None

    @classmethod
    def of(cls, worker: int, records: Sequence[Mapping[str, Any]]) -> Written:
        """Return what is kept of a unit's records, at least one."""
        tokens = sum(each.get("tokens") or 0 for each in records)
        errors = (each["error"] for each in records if each.get("error") is not None)
        return cls(worker, records[0]["id"], tokens, next(errors, None))


def merged(
    accounts: Mapping[int, Mapping[str, Any]],
    written: Sequence[Written],
    seconds: float,
    lost: Sequence[int] = (),
) -> Summary:
    """Return what a run of several workers came to.

    Args:
        accounts: the parts of those that came to their end, as mappings, by worker.
        written: every unit that was written.
        seconds: of decoding.
        lost: numbers of the workers that died.
    """
    known = list(accounts.values())
    failures = [(each.id, each.error) for each in written if each.error is not None]
    units = Counter(each.worker for each in written)
    tokens = dict.fromkeys(sorted({*units, *accounts, *lost}), 0)
    for each in written:
        tokens[each.worker] += each.tokens
    peaks = [found for each in known if (found := each["peak_memory_bytes"]) is not None]
    return Summary(
        len(written),
        failures,
        sum(tokens.values()),
        seconds,
        sum(each["rows"] for each in known),
        max(peaks, default=None),
        _notes(known),
        devices(known),
        _networks(known),
        dict(known[0]["versions"]) if known else {},
        _speculation(known),
        workers=tuple(
            Worker(number, units[number], tokens[number], _passes(accounts, number), number in lost)
            for number in tokens
        ),
    )


def drawing(tokens: int, candidates: int) -> str:
    """Return what to say of candidates that responses were chosen from."""
    return f"{tokens:,} tokens drawn for {candidates:,} candidates"


def _notes(accounts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return each of the workers' notes once, and what is to be said of all together."""
    notes = list(dict.fromkeys(note for each in accounts for note in each["notes"]))
    tallies = [each["bridged"] for each in accounts if any(each.get("bridged", ()))]
    if tallies:
        from ivgcli.values.coverage import Tally
        from ivgcli.workflows.generate import bridging

        notes += bridging([Tally(*each) for each in tallies])
    if speculation := _speculation(accounts):
        from ivgcli.decoding.guesses import Guessed
        from ivgcli.workflows.generate import guessing

        notes += guessing(Guessed.of(speculation))
    drawn = [each.get("drawn", (0, 0)) for each in accounts]
    tokens, candidates = (sum(each[place] for each in drawn) for place in (0, 1))
    return (*notes, drawing(tokens, candidates)) if candidates else tuple(notes)


def devices(accounts: Sequence[Mapping[str, Any]]) -> str:
    """Return the devices, each kind with its number."""
    counts = Counter(each["device"] for each in accounts)
    return ", ".join(f"{count} × {name}" for name, count in counts.items())


def _networks(accounts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return what each network did on all workers together."""
    found: dict[str, Counter[str]] = {}
    for each in accounts:
        for name, ledger in each["networks"].items():
            found.setdefault(name, Counter()).update(ledger)
    return {name: dict(ledger) for name, ledger in found.items()}


def _speculation(accounts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return how guessing tokens ahead went on all workers together; nothing where nothing was guessed."""
    found = [each["speculation"] for each in accounts if each.get("speculation")]
    if not found:
        return {}
    from ivgcli.decoding.guesses import Guessed

    return sum((Guessed.of(each) for each in found), Guessed()).to_json()


def _passes(accounts: Mapping[int, Mapping[str, Any]], worker: int) -> int:
    """Return the passes of a worker's base; 0 if it did not come to its end."""
    account = accounts.get(worker, {})
    return int(account.get("networks", {}).get(account.get("base"), {}).get("passes", 0))
