"""Writing preference pairs: made of scored responses, which are what a stop must not lose.

A pair is a pure function of its prompt's scored responses. So the responses are the journal, in a
file of their own that a resumed run goes on with, a prompt without any pair is known as done like
every other, and the pairs are written in one atomic step when all prompts have been answered.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from ivgcli.errors import RecordError
from ivgcli.records.journal import Journal, replace, telling, write_whole
from ivgcli.records.lines import decode, encode

Record = Mapping[str, Any]


class Labeller(Protocol):
    """What makes pairs of the scored responses of one prompt."""

    def fits(self, responses: Sequence[Record]) -> bool:
        """Return whether responses of an earlier run are those of the prompt as it is now."""

    def pairs(self, responses: Sequence[Record]) -> list[dict[str, Any]]:
        """Return the pairs; called once for each answered prompt, in the order of the input."""


class PairWriter(Protocol):
    """Where scored responses go, to come out as pairs.

    A context manager: leaving it without an exception completes the output.
    """

    done: set[str]
    """Ids of the prompts that the resumed run has answered."""

    def write(self, responses: Sequence[Record]) -> None:
        """Take all responses of one prompt, prompts in any order.

        A non-null `error` in one of them marks a prompt that failed.
        """

    def __enter__(self) -> PairWriter:
        """Return the writer."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the output if nothing was raised, and close it."""


def open_pairs(
    target: str,
    *,
    ids: Sequence[str],
    responses: int,
    labeller: Labeller,
    run: str,
    recipe_yaml: str,
    resume: bool = False,
) -> PairWriter:
    """Open an output for the pairs of the prompts `ids`, which it will hold in that order.

    Beside a file, `TARGET.recipe.yaml` says what made it and `TARGET.responses.jsonl` holds every
    response with its reward.

    Args:
        target: a file, or `-` for stdout.
        ids: the prompts.
        responses: how many each of them has.
        labeller: makes the pairs.
        run: id of the run, as every record's `run` says.
        recipe_yaml: the resolved recipe.
        resume: whether to go on with the responses that are there.

    Raises:
        RecordError: the output must not be touched; it is then as it was.
    """
    path = Path(target)
    if target == "-" or (path.exists() and not path.is_file() and not path.is_dir()):
        if resume:
            raise RecordError("--resume", "a stream cannot be resumed", "name a file with --out")
        stream = sys.stdout.buffer if target == "-" else path.open("wb", buffering=0)
        return StreamPairs(stream, ids, labeller)
    beside = path.with_name(path.name + ".recipe.yaml")
    if path.is_symlink():
        path = path.resolve()
    writer = FilePairs(path, ids, responses, labeller, run, resume)
    write_whole(beside, recipe_yaml.encode())
    return writer


class FilePairs:
    """Pairs in a file: `PATH.responses.jsonl` while it runs, then all pairs at once."""

    def __init__(
        self,
        path: Path,
        ids: Sequence[str],
        responses: int,
        labeller: Labeller,
        run: str,
        resume: bool,
    ) -> None:
        self._path = path
        self._ids = list(ids)
        self._samples = range(responses)
        self._labeller = labeller
        answers = path.with_name(path.name + ".responses.jsonl")
        if path.is_dir():
            raise RecordError(str(path), "is a directory")
        if path.exists() and path.stat().st_size:
            if not resume:
                hint = "go on with --resume, or choose another --out"
                raise RecordError(str(path), "is there already and not empty", hint)
            if not answers.exists():
                what = f"is there, but not the responses it was made of, {answers.name}"
                raise RecordError(str(path), what, "choose another --out")
        self._journal = Journal(answers, run, resume)
        held = set(self._journal.keys)
        self.done = {
            identity
            for identity in self._ids
            if all((identity, sample) in held for sample in self._samples)
            and labeller.fits(self._responses(identity))
        }
        self._failed: set[str] = set()
        self._answered = set(self.done)

    def write(self, responses: Sequence[Record]) -> None:
        """Append the responses of one prompt; they are on the disk when this returns.

        A stop in the middle leaves some of them, and the prompt is then answered again as a whole,
        so that its rewards never depend on where a run was stopped.
        """
        for response in responses:
            self._journal.append((response["id"], response["sample"]), response)
        identity = responses[0]["id"]
        failed = any(response.get("error") is not None for response in responses)
        (self._failed if failed else self._answered).add(identity)

    def _responses(self, identity: str) -> list[dict[str, Any]]:
        """Return the responses of an answered prompt, in the order of their numbers."""
        return [decode(self._journal.line((identity, sample))) for sample in self._samples]

    def _lines(self) -> Iterator[bytes]:
        """Yield every pair as a line, in the order of the input."""
        for identity in self._ids:
            if identity in self._answered:
                yield from map(encode, self._labeller.pairs(self._responses(identity)))

    def __enter__(self) -> FilePairs:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the pairs if every prompt is answered or has failed, and close the responses."""
        with self._journal:
            if kind is None and self._answered | self._failed >= set(self._ids):
                self._journal.arrange(
                    (identity, sample) for identity in self._ids for sample in self._samples
                )
                write_lines(self._path, self._lines())


class StreamPairs:
    """Pairs on a stream, in the order of the input: a prompt waits only for those before it."""

    def __init__(self, stream: BinaryIO | Any, ids: Sequence[str], labeller: Labeller) -> None:
        self.done: set[str] = set()
        self._stream = stream
        self._labeller = labeller
        self._ahead = list(reversed(ids))
        self._waiting: dict[str, Sequence[Record]] = {}

    def write(self, responses: Sequence[Record]) -> None:
        """Take the responses of one prompt, and pass on the pairs whose turn it is."""
        self._waiting[responses[0]["id"]] = responses
        while self._ahead and self._ahead[-1] in self._waiting:
            self._put(self._waiting.pop(self._ahead.pop()))

    def _put(self, responses: Sequence[Record]) -> None:
        """Write the pairs of one prompt; one that failed has none."""
        if all(response.get("error") is None for response in responses):
            for pair in self._labeller.pairs(responses):
                self._stream.write(encode(pair))
            self._stream.flush()

    def __enter__(self) -> StreamPairs:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Pass on what still waits, in order, unless nobody reads any more."""
        try:
            if kind is None or not issubclass(kind, BrokenPipeError):
                for identity in reversed(self._ahead):
                    if identity in self._waiting:
                        self._put(self._waiting[identity])
        finally:
            if self._stream is not sys.stdout.buffer:
                self._stream.close()


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write a file in one atomic step, line by line, without holding it in memory.

    Raises:
        RecordError: it cannot be written; the old content stands.
    """
    temporary = path.with_name(path.name + ".tmp")
    with telling(path), open(temporary, "wb") as stream:
        stream.writelines(lines)
        stream.flush()
        os.fsync(stream.fileno())
        replace(temporary, path)
