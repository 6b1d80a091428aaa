"""The output folder of a training run: locked, resumable, and never holding half a model under a model's name."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ivgcli.errors import RecordError
from ivgcli.records.journal import replace, telling, write_whole
from ivgcli.records.lines import decode, encode

GUIDE, RECIPE, METRICS, ACCOUNT = "guide.yaml", "recipe.yaml", "metrics.jsonl", "run.json"
LOCK = ".lock"
CHECKPOINTS = "checkpoints"


class TrainingFolder:
    """What one training run writes, and what is there of it already.

    A model gets its name only when all of it is on the disk; `guide.yaml` comes last of all, so that
    a folder with one is a finished run.

    Args:
        path: the folder; made if it is not there.
        run: id of the run.
        recipe_yaml: the resolved recipe.
        resume: whether to go on with what the folder holds; if not, it must be empty.
        writes: whether this process writes; of several, only the first does.

    Raises:
        RecordError: the folder cannot be made, is not empty, belongs to another run, or is being
            written by another process.
    """

    def __init__(
        self, path: Path, run: str, recipe_yaml: str, resume: bool, writes: bool = True
    ) -> None:
        self.path = path
        self.run = run
        self.writes = writes
        self._lock: int | None = None
        if not writes:
            return
        if path.exists() and not path.is_dir():
            raise RecordError(str(path), "is a file, and a folder is to be made", "another --out")
        # Nothing is written, not even a lock, into a folder of something else.
        self._require_ours()
        with telling(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = self._take()
        try:
            self._settle(recipe_yaml, resume)
        except BaseException:
            self.close()
            raise

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return (self.path / GUIDE).is_file()

    def has(self, name: str) -> bool:
        """Return whether a model of that name is finished."""
        return (self.path / name).is_dir()

    def checkpoints(self, stage: str) -> Path:
        """Return the folder of a stage's checkpoints."""
        return self.path / CHECKPOINTS / stage

    @contextlib.contextmanager
    def publishing(self, name: str) -> Iterator[Path]:
        """Yield a folder to write a model into; it takes its name when everything has reached the disk."""
        target = self.path / name
        work = target.with_name(f".{target.name}.partial")
        if self.writes:
            shutil.rmtree(work, ignore_errors=True)
        with telling(target):
            try:
                if self.writes:
                    work.mkdir(parents=True)
                yield work
                if self.writes:
                    for each in (work, *sorted(work.rglob("*"))):
                        _open_to_readers(each, work.stat().st_mode)
                        _sync(each)
                    replace(work, target)
            except BaseException:
                if self.writes:
                    shutil.rmtree(work, ignore_errors=True)
                raise

    def log(self, stage: str, fields: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; numbers that are not finite become null."""
        if not self.writes:
            return
        line = encode({"stage": stage, **{name: _plain(value) for name, value in fields.items()}})
        with telling(self.path / METRICS), open(self.path / METRICS, "ab", buffering=0) as stream:
            stream.write(line)

    def forget(self, stage: str, after: int = -1) -> None:
        """Drop a stage's lines of steps beyond `after`, which are about to be written again."""
        if self.writes:
            kept = [
                line
                for line in self.lines()
                if line["stage"] != stage or line.get("step", math.inf) <= after
            ]
            self._rewrite(kept)

    def lines(self) -> list[dict[str, Any]]:
        """Return all whole lines of metrics.jsonl."""
        path = self.path / METRICS
        if not path.is_file():
            return []
        found = []
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):  # a kill may have torn the last one
                found.append(decode(line))
        return found

    def account(self, fields: Mapping[str, Any]) -> None:
        """Add to run.json, which says what the run was and came to."""
        if self.writes:
            known = _read(self.path / ACCOUNT)
            write_whole(self.path / ACCOUNT, encode({**known, **fields}))

    def recorded(self) -> dict[str, Any]:
        """Return what run.json says."""
        return _read(self.path / ACCOUNT)

    def finish(self, guide_yaml: str) -> None:
        """Write guide.yaml and remove the checkpoints."""
        if self.writes:
            write_whole(self.path / GUIDE, guide_yaml.encode())
            shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> TrainingFolder:
        """Return the folder."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the folder."""
        self.close()

    def _take(self) -> int:
        """Lock the folder for this process."""
        lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            hint = "wait for it, or choose another --out"
            raise RecordError(str(self.path), "another ivg is writing it", hint) from None
        return lock

    def _require_ours(self) -> set[str]:
        """Return what a run has come to here; a folder that holds something else is refused."""
        there = {each.name for each in self.path.iterdir()} if self.path.is_dir() else set()
        there -= {LOCK, f"{ACCOUNT}.tmp"}  # all that is there before the account is
        if there and "run" not in _read(self.path / ACCOUNT):
            what = "holds files that no training run wrote"
            raise RecordError(str(self.path), what, "choose another --out")
        return there - {ACCOUNT, RECIPE, f"{RECIPE}.tmp"}

    def _settle(self, recipe_yaml: str, resume: bool) -> None:
        """Check that what is there belongs to this run, and write down what it is.

        A run that came to nothing, because its model's name was wrong, leaves an account and a
        recipe; they are no reason to choose another folder once the name is mended.
        """
        begun = self._require_ours()
        known = _read(self.path / ACCOUNT) if begun else {}
        if begun and not resume:
            hint = "go on with --resume, or choose another --out"
            raise RecordError(str(self.path), "is there already and not empty", hint)
        if begun and known["run"] != self.run:
            what = f"belongs to run {known['run']}, and this is run {self.run}"
            hint = "use the recipe and the pairs it was made with, or another --out"
            raise RecordError(str(self.path), what, hint)
        for partial in self.path.glob(".*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
        if self.finished:  # and killed before the checkpoints were gone
            shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
        # The account comes first: it says whose folder this is.
        write_whole(self.path / ACCOUNT, encode({"run": self.run, **known}))
        write_whole(self.path / RECIPE, recipe_yaml.encode())

    def _rewrite(self, lines: Iterable[Mapping[str, Any]]) -> None:
        write_whole(self.path / METRICS, b"".join(map(encode, lines)))


def _read(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; an absent file holds none."""
    if not path.is_file():
        return {}
    try:
        return decode(path.read_bytes())
    except ValueError as error:
        raise RecordError(str(path), str(error), "choose another --out") from None


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _open_to_readers(path: Path, mode: int) -> None:
    """Let a file be read by whoever may read its folder; weights are written for their owner alone."""
    if path.is_file():
        path.chmod(mode & 0o666)


def _sync(path: Path) -> None:
    """Wait until the disk has a file or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
