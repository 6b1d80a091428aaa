"""What people see while data flows elsewhere: progress, remarks, tables and errors.

Everything goes to stderr. A bar is drawn only where somebody can watch it; elsewhere one line
every half minute says that the run is alive.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from ivgcli.errors import IvgError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

HEARTBEAT_SECONDS = 30.0


def say(text: str, *, quiet: bool = False) -> None:
    """Tell something worth knowing; `--quiet` silences it."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Tell something that may be wrong, even under `--quiet`."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


@contextmanager
def guard() -> Iterator[None]:
    """Turn what can end a command into its exit code: 2, 130, or 0 for a closed pipe.

    Any other exception is a bug and passes through, with its traceback and exit code 1.
    """
    try:
        yield
    except IvgError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends, and must not fail at it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


class Narrator(Protocol):
    """Whom a workflow tells how it goes; `Progress` is one."""

    def advance(self, count: int = 1, text: str | None = None, under_way: float = 0.0) -> None:
        """Count finished responses."""

    def note(self, text: str, under_way: float = 0.0) -> None:
        """Show a few words beside the count, and how many responses' worth of work is done on the others."""

    def say(self, text: str) -> None:
        """Tell something worth knowing."""

    def warn(self, text: str) -> None:
        """Tell something that may be wrong."""


class Progress:
    """How far a run is: a bar on a terminal, else a line every half minute.

    A context manager. `advance` and `note` are cheap enough to call for every token. The count is
    of whole responses; bar, rate and time left go by the work done, on those under way as well,
    and never back.

    Args:
        total: how many responses are wanted.
        done: how many of them an earlier run has finished.
        quiet: show nothing but warnings.
        stream: where to show it.
        clock: seconds, from any start.
        things: what is counted, where it is not responses.
        title: what goes on, where a command does several things in turn.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        things: str = "responses",
        title: str = "",
    ) -> None:
        self.total = total
        self._things = things
        self._title = title
        self.done = done
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._clock = clock
        self._began = self._beat = clock()
        self._done_before = done
        self._work = float(done)
        self._text = ""
        self._bar: Bar | None = None

    def advance(self, count: int = 1, text: str | None = None, under_way: float = 0.0) -> None:
        """Count finished responses, and show `text` beside them if given."""
        self.done += count
        self.note(self._text if text is None else text, under_way)

    def note(self, text: str, under_way: float = 0.0) -> None:
        """Show a few words beside the count, such as `132 tokens/s`.

        Args:
            text: the words.
            under_way: how many responses' worth of work is done on those not finished.
        """
        self._text = text
        self._work = max(self._work, min(self.done + under_way, float(self.total)))
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=self._work, done=self.done, text=text)
        elif not self._quiet and self._clock() - self._beat >= HEARTBEAT_SECONDS:
            self._beat = self._clock()
            print(self._line(), file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """Tell something worth knowing, above the bar; `--quiet` silences it."""
        if not self._quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """Tell something that may be wrong, above the bar, even under `--quiet`."""
        self._print(f"warning: {text}")

    def _print(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def _line(self) -> str:
        """Return the heartbeat."""
        fresh = self._work - self._done_before
        title = f"{self._title}: " if self._title else ""
        parts = [f"{title}{self.done}/{self.total} {self._things}"]
        if fresh > 0:
            rate = fresh / max(self._clock() - self._began, 1e-9)
            left = (self.total - self._work) / rate
            parts += [f"{_count(60 * rate)} a minute", f"{_duration(left)} left"]
        return ", ".join([*parts, self._text] if self._text else parts)

    def __enter__(self) -> Progress:
        """Start showing."""
        if not self._quiet and self._stream.isatty():
            self._bar = _bar(self._stream, bool(self._title))
            self._bar.add_task(
                self._title, total=self.total, completed=self.done, done=self.done, text=self._text
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing; the summary that follows says it all."""
        if self._bar is not None:
            self._bar.stop()


def _bar(stream: TextIO, titled: bool) -> Bar:
    """Return a bar with count, rate and time left, which disappears when it is done."""
    from rich import progress
    from rich.console import Console
    from rich.table import Column
    from rich.text import Text

    class Pace(progress.ProgressColumn):
        """Responses a minute and time left, as soon as work is done."""

        max_refresh = 0.5

        def render(self, task: progress.Task) -> Text:
            if not task.speed or task.time_remaining is None:
                return Text("")
            pace = f"{_count(60 * task.speed)} a minute"
            return Text(f"{pace}, {_duration(task.time_remaining)} left")

    title = [progress.TextColumn("{task.description}", markup=False)] if titled else []
    return progress.Progress(
        *title,
        progress.BarColumn(bar_width=None),
        progress.TextColumn("{task.fields[done]}/{task.total}"),
        Pace(table_column=Column(no_wrap=True)),
        progress.TextColumn("{task.fields[text]}", markup=False),
        console=Console(file=stream, stderr=True),
        transient=True,
        expand=True,
    )


def _count(number: float) -> str:
    """Return a number to three digits, or all of those before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _duration(seconds: float) -> str:
    """Return a duration as people say it: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = 80) -> str:
    """Return a small table as text of at most `width` columns, its last line without a newline.

    The first column is for names, on the left; all others are for numbers, on the right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    stream = StringIO()
    Console(file=stream, width=width, color_system=None, markup=False).print(drawn)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())
