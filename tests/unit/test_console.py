"""Progress, tables and the exit codes of what ends a command."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from ivgcli.console import Progress, guard, say, table, warn
from ivgcli.errors import IvgError, RecipeError


class Clock:
    """A clock that moves when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_off_a_terminal_a_line_is_told_every_half_minute() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(20, done=10, stream=stream, clock=clock) as progress:
        for second in range(1, 91):
            clock.now = float(second)
            progress.note(f"{second} tokens/s")
            if second % 15 == 0:
                progress.advance()
    # 2 responses in 30 s are 4 a minute; the 10 of the earlier run count for nothing.
    assert stream.getvalue().splitlines() == [
        "11/20 responses, 2 a minute, 4 min left, 30 tokens/s",
        "13/20 responses, 3 a minute, 2 min left, 60 tokens/s",
        "15/20 responses, 3.33 a minute, 2 min left, 90 tokens/s",
    ]


def test_a_stage_says_its_title_and_what_it_counts_and_fast_ones_read_as_whole_numbers() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(4000, stream=stream, clock=clock, things="steps", title="value") as progress:
        clock.now = 30.0
        progress.advance(1900, "loss 0.5")
    # 1,900 steps in 30 s; the 2,100 left take 33 s.
    assert stream.getvalue() == "value: 1900/4000 steps, 3,800 a minute, 33 s left, loss 0.5\n"


def test_work_under_way_moves_rate_and_time_left_but_not_the_count() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(24, stream=stream, clock=clock) as progress:
        clock.now = 30.0
        progress.note("x", under_way=6.0)  # all 24 are a quarter done
        clock.now = 60.0
        progress.note("y", under_way=2.0)  # begun again: what was shown once is not taken back
        clock.now = 90.0
        progress.advance(12, "z", under_way=6.0)
    assert stream.getvalue().splitlines() == [
        "0/24 responses, 12 a minute, 2 min left, x",
        "0/24 responses, 6 a minute, 3 min left, y",
        "12/24 responses, 12 a minute, 30 s left, z",
    ]


def test_quiet_silences_narration_but_not_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(2, quiet=True, stream=stream, clock=clock) as progress:
        clock.now = 100.0
        progress.advance()
        progress.say("fine")
        progress.warn("odd")
    assert stream.getvalue() == "warning: odd\n"
    say("fine", quiet=True)
    warn("odd")
    assert capsys.readouterr() == ("", "warning: odd\n")


class Terminal(io.StringIO):
    """A stream that somebody watches."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_shows_count_and_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(4, done=1, stream=stream) as progress:
        progress.advance(2, "132 tokens/s [x]")
        progress.say("a remark")
        progress.note("132 tokens/s [x]", under_way=0.5)
    assert "3/4" in stream.getvalue()
    assert "132 tokens/s [x]" in stream.getvalue()
    assert "a remark" in stream.getvalue()


def test_a_table_aligns_names_left_and_numbers_right_within_its_width() -> None:
    text = table(["mode", "reward"], [["base", "0.30 ± 0.09"], ["eft-i", "1.00"]])
    assert text.splitlines() == [
        "mode         reward",
        "─" * 19,
        "base    0.30 ± 0.09",
        "eft-i          1.00",
    ]
    wide = table(["a", "b"], [["x" * 200, "[red]"]])
    assert max(map(len, wide.splitlines())) <= 80
    assert "[red]" in wide


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (IvgError("f.jsonl:3", "not JSON", "mend it"), 2, "error: f.jsonl:3: not JSON → mend it\n"),
        (IvgError("", "nothing to do"), 2, "error: nothing to do\n"),
        (
            RecipeError.gather("r.yaml", [RecipeError("r.yaml:1", "a"), RecipeError("", "b", "c")]),
            2,
            "error: r.yaml: 2 problems\n  r.yaml:1: a\n  b → c\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_ends_a_command_has_its_exit_code_and_sentence(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, told: str
) -> None:
    with pytest.raises(SystemExit) as caught, guard():
        raise error
    assert caught.value.code == code
    assert capsys.readouterr() == ("", told)


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), guard():
        _ = 1 / 0


def test_a_closed_pipe_ends_quietly() -> None:
    code = (
        "import sys\nfrom ivgcli.console import guard\n"
        "with guard():\n"
        "    while True:\n        sys.stdout.buffer.write(b'x' * 70000)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.read(1)
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() == 0
