"""A leader and real processes without models: nothing lost, nothing twice, everything told once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ivgcli.errors import IvgError, ModelError
from ivgcli.workers.crew import Crashed, Crew
from ivgcli.workers.surroundings import ADDRESS, NUMBER, TOKEN
from ivgcli.workers.team import Job, Team

WORKER = """
import os, signal, sys, time
from ivgcli.errors import ModelError
from ivgcli.workers.link import Link
host, _, port = os.environ["IVG_LEADER"].rpartition(":")
number = int(os.environ["IVG_WORKER"])
def die():
    os.kill(os.getpid(), signal.SIGKILL)
with Link(host, int(port), os.environ["IVG_LEADER_TOKEN"], "a run", number) as link:
    written = 0
    link.warn("rows halved")
    while (units := link.take(3, wait=True)) is not None:
        for unit in units:
            FAULT
            link.write({"id": str(unit), "worker": number})
            written += 1
            time.sleep(0.002)
    link.end({"written": written})
"""


class Listener:
    """Keeps what a leader tells."""

    def __init__(self) -> None:
        self.count = 0
        self.warnings: list[str] = []

    def advance(self, count: int = 1, text: str | None = None, under_way: float = 0.0) -> None:
        self.count += count

    def note(self, text: str, under_way: float = 0.0) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Shift:
    """A crew of workers with a fault, and what came of it."""

    def __init__(self, fault: str, count: int = 3, units: Sequence[int] = range(200)) -> None:
        self.written: list[Mapping[str, Any]] = []
        self.told = Listener()
        job = Job(
            units, lambda given: int(given["id"]), lambda worker, given: self.written.append(given),
            self.told,
        )  # fmt: skip
        source = WORKER.replace("FAULT", fault or "pass")
        team = Team(
            "a run", [{NUMBER: str(number)} for number in range(count)],
            [sys.executable, "-c", source],
            opened=lambda port, token: {ADDRESS: f"127.0.0.1:{port}", TOKEN: token},
        )  # fmt: skip
        self.crew = Crew(team, job)

    def ids(self) -> list[int]:
        return sorted(int(each["id"]) for each in self.written)

    def makers(self) -> set[int]:
        return {each["worker"] for each in self.written}


def test_everything_is_done_once_and_a_warning_is_told_once():
    shift = Shift("", units=[*range(0, 300, 2)])
    shift.crew.run()
    assert shift.ids() == [*range(0, 300, 2)]
    assert shift.told.count == 150
    assert shift.told.warnings == ["rows halved"]
    assert shift.crew.lost == []
    done = [each["written"] for each in shift.crew.accounts.values()]
    assert sum(done) == 150


def test_what_a_killed_worker_had_begun_is_done_by_the_others(tmp_path):
    # It dies with work in hand when it has written ten; the others wait for that.
    flag = tmp_path / "dead"
    fault = (
        f"(open({str(flag)!r}, 'w').close(), die()) if number == 1 and written == 10 else None\n"
        f"            while number != 1 and not os.path.exists({str(flag)!r}): time.sleep(0.01)"
    )
    shift = Shift(fault)
    shift.crew.run()
    assert shift.ids() == [*range(200)]
    assert shift.crew.lost == [1]
    assert sum(each["worker"] == 1 for each in shift.written) == 10
    [_, told] = shift.told.warnings
    # Of three at once it had written the first of the fourth time.
    assert told == ("worker 1 was killed (SIGKILL): the others do what it had begun, 2 of 200")


def test_the_last_death_ends_the_run_and_what_was_written_stays():
    shift = Shift("die() if written == 4 else None", count=2)
    with pytest.raises(ModelError, match=r"worker \d was killed \(SIGKILL\), and it was the last"):
        shift.crew.run()
    assert len(shift.written) == len(set(shift.ids())) == 8


def test_an_error_of_the_user_is_raised_here_as_it_was_there():
    fault = "raise ModelError('base', 'no such model', 'mend it', ['one', 'two'])"
    shift = Shift(fault)
    with pytest.raises(IvgError) as caught:
        shift.crew.run()
    assert str(caught.value) == "base: no such model → mend it\n  one\n  two"
    assert caught.value.exit_code == 2
    running = [hand.process.returncode is None for hand in shift.crew.hands.values()]
    assert running == [False] * 3


def test_a_bug_comes_with_the_traceback_of_the_worker(capfd):
    with pytest.raises(Crashed, match=r"File .<string>., line \d+, in <module>\nZeroDivisionError"):
        Shift("1 / 0").crew.run()
    assert capfd.readouterr().err == ""  # whoever leads prints it, once


def test_a_worker_of_another_run_is_refused():
    shift = Shift("")
    object.__setattr__(shift.crew.team, "run", "another")
    with pytest.raises(IvgError, match="start all processes with one command"):
        shift.crew.run()


def test_strangers_are_not_heard():
    """They speak first, say nothing, or know no token: the run goes on without them."""
    strangers: list[socket.socket] = []

    def visited(port: int, token: str) -> Mapping[str, str]:
        for said in (
            b"GET / HTTP/1.1\r\n\r\n",
            json.dumps({"token": "x", "worker": 0}).encode() + b"\n",
            b"",
        ):
            strangers.append(socket.create_connection(("127.0.0.1", port)))
            strangers[-1].sendall(said)
        return {ADDRESS: f"127.0.0.1:{port}", TOKEN: token}

    shift = Shift("", count=1, units=range(5))
    object.__setattr__(shift.crew.team, "opened", visited)
    shift.crew.run()
    assert shift.ids() == [*range(5)]
    for stranger in strangers:
        stranger.close()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_leader_that_ends_takes_its_workers_with_it(tmp_path, ending):
    """They are out of the terminal's reach: at Ctrl-C they are ended, else they notice by themselves."""
    place = tmp_path / "worker"
    source = WORKER.replace(
        "FAULT", f"open({str(place)!r}, 'w').write(str(os.getpid())); time.sleep(0.05)"
    )
    leading = (
        "import sys; from tests.unit.workers.test_crew import *\n"
        f"shift = Shift('', count=1, units=range(10**4)); team = shift.crew.team\n"
        f"object.__setattr__(team, 'command', [sys.executable, '-c', {source!r}])\n"
        "shift.crew.run()"
    )
    leader = subprocess.Popen([sys.executable, "-c", leading], stderr=subprocess.DEVNULL)
    while not (place.exists() and place.read_text()):
        time.sleep(0.01)
    leader.send_signal(ending)
    leader.wait()
    child = int(place.read_text())
    for _ in range(1000):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if " Z " in Path(f"/proc/{child}/stat").read_text():
            return  # over, and waits for somebody to ask how
        time.sleep(0.01)
    raise AssertionError("the worker is still there after ten seconds")
