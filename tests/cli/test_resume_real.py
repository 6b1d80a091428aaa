"""Runs of tiny real models that are killed at random and resumed: nothing lost, nothing twice.

Importing torch takes seconds, so one parent process imports everything once and forks a child for
each run; the test kills the child by its process id.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.models import folder, pair

COUNT = 32
SAMPLES = 2
KILLS = 4
MEASURED = ("value", "base_logprob", "kl")

FORKING = """
import os, sys
import torch
torch.set_num_threads(1)
import ivgcli.workflows.best_of_n, ivgcli.workflows.generate
from ivgcli.cli import main
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.argv = ["ivg", *line.split("\\t")[:-1]]
        try:
            main()
        except SystemExit as end:
            os._exit(end.code or 0)
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Runner:
    """Runs command lines in forked children, and kills those that are not to end."""

    def __init__(self) -> None:
        self.parent = subprocess.Popen(
            [sys.executable, "-c", FORKING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._said() == "ready"

    def _said(self) -> str:
        assert self.parent.stdout is not None
        return self.parent.stdout.readline().strip()

    def run(self, arguments: Sequence[object], after: tuple[Path, int] | None = None) -> int:
        """Run one command line and return its exit code.

        Args:
            arguments: of `ivg`.
            after: kill it once this file has so many bytes.
        """
        assert self.parent.stdin is not None
        self.parent.stdin.write("\t".join(map(str, arguments)) + "\t\n")
        self.parent.stdin.flush()
        child = int(self._said())
        if after is not None:
            path, size = after
            while alive(child) and (path.stat().st_size if path.exists() else 0) < size:
                time.sleep(0.001)
            os.kill(child, signal.SIGKILL)  # a child that has ended waits to be told of: no error
        return int(self._said())

    def close(self) -> None:
        """End the parent."""
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        self.parent.stdin.close()
        self.parent.wait()
        self.parent.stdout.close()


def alive(child: int) -> bool:
    """Return whether a process is still running."""
    try:
        return " Z " not in Path(f"/proc/{child}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    """One parent for all runs of this file."""
    runner = Runner()
    yield runner
    runner.close()


def by_key(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the records of a file by (id, sample), each of which is there once."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    found = {(record["id"], record["sample"]): record for record in records}
    assert len(found) == len(records), "a response is there twice"
    return found


def assert_same(ours: Path, theirs: Path) -> None:
    """Check that two files hold the same responses, sums of floats to what other rows leave."""
    one, other = by_key(ours), by_key(theirs)
    assert one.keys() == other.keys()
    for key, record in one.items():
        expected = other[key]
        assert {**record, **dict.fromkeys(MEASURED)} == {**expected, **dict.fromkeys(MEASURED)}
        for name in MEASURED:
            pairs = (record[name], expected[name])
            assert None in pairs or math.isclose(*pairs, rel_tol=1e-5, abs_tol=2e-5), (key, name)


COMMANDS = {
    "base": ["generate", "--mode", "base"],
    "eft-i": ["generate", "--mode", "eft-i"],
    "ivg": ["generate", "--mode", "ivg", "-L", 3],
    "bon": ["bon", "--by", "implicit", "-n", 2],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_killed_at_random_and_resumed_otherwise_is_the_run_never_stopped(
    name: str, runner: Runner, tmp_path: Path
) -> None:
    lines = [json.dumps({"id": f"p{n}", "prompt": f"the film {n}", "n": n}) for n in range(COUNT)]
    prompts, shuffled = tmp_path / "prompts.jsonl", tmp_path / "shuffled.jsonl"
    prompts.write_text("\n".join(lines))
    chance = random.Random(name)
    shuffled.write_text("\n".join(chance.sample(lines, COUNT)))
    guide = tmp_path / "kind.yaml"
    values = {"implicit": pair("llama-tuned", "llama-reference"), "explicit": folder("scalar")}
    guide.write_text(yaml.safe_dump(values))
    command = [*COMMANDS[name], "--base", folder("llama"), "--guide", guide, "-q"]
    command += ["--samples", SAMPLES, "--max-new-tokens", 12, "--device", "cpu"]
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert runner.run([*command, "-i", prompts, "-o", whole, "--rows", 12]) == 0
    assert len(by_key(whole)) == COUNT * SAMPLES
    size = whole.stat().st_size
    killed = 0
    for kill in range(KILLS):
        # A little further each time, at whatever byte that is.
        wanted = int(size * (kill + chance.random()) / KILLS * 0.9) + 1
        flags = ["-i", chance.choice([prompts, shuffled]), "--rows", chance.choice([4, 8, 20])]
        end = runner.run([*command, *flags, "-o", broken, "--resume"], after=(broken, wanted))
        killed += end == -signal.SIGKILL
        if broken.exists() and chance.random() < 0.5:
            # What a power cut adds to a kill: the last line is torn.
            os.truncate(broken, chance.randrange(broken.stat().st_size + 1))
    assert killed >= 2, "the runs were too short to be killed"
    begun = broken.read_bytes()
    kept = [line for line in begun.split(b"\n")[:-1]]
    assert runner.run([*command, "-i", shuffled, "-o", broken, "--resume", "--rows", 4]) == 0
    assert_same(broken, whole)
    order = [json.loads(line)["id"] for line in shuffled.read_text().splitlines()]
    assert list(by_key(broken)) == [(each, sample) for each in order for sample in range(SAMPLES)]
    assert set(kept) <= set(broken.read_bytes().split(b"\n")), "finished lines are not rewritten"
    # With the prompts in their own order, the file takes the order of the run never stopped.
    assert runner.run([*command, "-i", prompts, "-o", broken, "--resume"]) == 0
    assert list(by_key(broken)) == list(by_key(whole))
    assert_same(broken, whole)


def test_killed_and_resumed_row_by_row_the_file_is_the_same_to_the_byte(
    runner: Runner, tmp_path: Path
) -> None:
    # One row at a time, every sum is taken in the same order, before the kill and after it.
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"a {n}"}) + "\n" for n in range(COUNT)))
    guide = tmp_path / "kind.yaml"
    guide.write_text(yaml.safe_dump({"implicit": pair("llama-tuned", "llama-reference")}))
    command = ["generate", "--mode", "eft-i", "--base", folder("llama"), "--guide", guide, "-q"]
    command += ["-i", prompts, "--rows", 1, "--max-new-tokens", 8, "--device", "cpu"]
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert runner.run([*command, "-o", whole]) == 0
    size = whole.stat().st_size
    flags = [*command, "-o", broken, "--resume"]
    ends = [runner.run(flags, after=(broken, int(size * share))) for share in (0.2, 0.5, 0.8)]
    assert -signal.SIGKILL in ends
    assert runner.run(flags) == 0
    assert broken.read_bytes() == whole.read_bytes()
