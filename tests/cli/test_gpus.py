"""`--gpus N` and launchers from end to end: real processes, tiny networks, deaths, other numbers of workers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ivgcli.cli import app
from tests.models import PROMPTS, folder

VALUE = """
import os, signal, sys, time
from pathlib import Path
here = Path(__file__).parent
number = os.environ.get("IVG_WORKER")
calls = 0
if number is not None and not (here / "alone").exists():
    (here / f"came-{number}").touch()
    while not all((here / f"came-{other}").exists() for other in (0, 1)):
        time.sleep(0.02)  # so that both take part, however busy this machine is

def vowels(prompts, responses):
    global calls
    calls += 1
    fatal = here / f"fatal-{number}"
    if fatal.exists() and calls == int(fatal.read_text()):
        fatal.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return [sum(letter in "aeiou" for letter in response) for response in responses]
"""

MATE = """

if os.environ.get("IVG_SHARD") == "1":
    whole = vowels

    def vowels(prompts, responses):
        if calls == 3 and number == "0":
            (here / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(prompts, responses)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with prompts, and a value of whole responses whose calls can be fatal."""
    (tmp_path / "judgement.py").write_text(VALUE)
    lines = [json.dumps({"id": f"p{n}", "prompt": text}) + "\n" for n, text in enumerate(PROMPTS * 3)]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(out: Path, *more: object) -> list[str]:
    """Return the words of a run."""
    words = ["bon", "--base", folder("llama"), "--by", "reward", "--reward", "judgement:vowels"]
    words += ["-n", "3", "--samples", "2", "--max-new-tokens", "8", "--rows", "6"]
    words += ["--device", "cpu", "-i", "in.jsonl", "-o", out]
    return [*map(str, [*words, *more])]


def ivg(words: Sequence[str], **environment: str) -> tuple[int, str]:
    """Run a command line in a process of its own; return its exit code and what it said."""
    root = Path(__file__).parent.parent.parent
    known = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), **environment}
    done = subprocess.run(
        [sys.executable, "-m", "ivgcli", *words], env=known, capture_output=True, text=True, timeout=300
    )  # fmt: skip
    assert done.stdout == ""
    return done.returncode, done.stderr


def alone(place: Path) -> bytes:
    """Return what one process writes."""
    result = CliRunner().invoke(app, command(place / "alone.jsonl"))
    assert result.exit_code == 0, result.stderr
    return (place / "alone.jsonl").read_bytes()


def approximately(text: bytes) -> list[dict[str, Any]]:
    """Return records whose numbers may differ by what sums over two halves leave."""
    found = [json.loads(line) for line in text.splitlines()]
    return [
        {
            key: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            for key, value in record.items()
        }
        for record in found
    ]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_worker_killed_in_the_middle_loses_nothing(place):
    (place / "fatal-1").write_text("7")
    out = place / "out.jsonl"
    code, said = ivg(command(out, "--gpus", 2))
    assert code == 0, said
    [told] = [line for line in said.splitlines() if "worker" in line]
    assert told.startswith(
        "warning: worker 1 was killed (SIGKILL): the others do what it had begun, "
    )
    assert out.read_bytes() == alone(place)  # in the order of the input, each once
    account = json.loads((place / "out.jsonl.run.json").read_text())
    assert [each["lost"] for each in account["workers"]] == [False, True]
    assert sum(each["units"] for each in account["workers"]) == len(PROMPTS) * 6
    assert {each.name for each in place.glob("out.jsonl*")} == {
        "out.jsonl", "out.jsonl.recipe.yaml", "out.jsonl.run.json",
    }  # fmt: skip


def test_all_workers_dead_another_number_resumes(place):
    out = place / "out.jsonl"
    for number in (0, 1):
        (place / f"fatal-{number}").write_text("7")
    code, said = ivg(command(out, "--gpus", 2))
    assert code == 2
    last = said.splitlines()[-1]
    assert "and it was the last → see that memory suffices, and go on with --resume" in last
    written = lines(out)
    assert 0 < len(written) < len(PROMPTS) * 6
    result = CliRunner().invoke(app, command(out, "--resume"))  # one process goes on
    assert result.exit_code == 0, result.stderr
    there = f"resuming: {len(written)} of {len(PROMPTS) * 6} responses are there"
    assert there in result.stderr
    assert out.read_bytes() == alone(place)


@pytest.mark.long
def test_one_process_killed_three_workers_resume(place):
    out, expected = place / "out.jsonl", alone(place)
    kept = expected.splitlines(keepends=True)[5:12]
    out.write_bytes(b"".join(kept) + expected.splitlines()[0][:20])  # a torn line at the end
    code, said = ivg(command(out, "--gpus", 3, "--resume"))
    assert code == 0, said
    assert f"resuming: 7 of {len(PROMPTS) * 6} responses are there" in said
    assert out.read_bytes() == expected


def test_what_the_user_can_mend_is_said_once(place):
    words = command(place / "out.jsonl", "--gpus", 2)
    words[words.index(folder("llama"))] = "nowhere/at-all"
    code, said = ivg(words)
    assert code == 2, said
    assert said.count("nowhere/at-all") == 1
    assert said.startswith("error: nowhere/at-all: ")


def test_a_pipe_cannot_be_shared(place):
    words = ["generate", "--base", "x", "--gpus", "2"]
    result = CliRunner().invoke(app, words, input='{"prompt": "hi"}\n')
    assert result.exit_code == 2
    told = "error: --in: several processes cannot read one pipe → name a file with --in\n"
    assert result.stderr == told


@pytest.mark.long
def test_a_mate_killed_in_the_middle_takes_its_worker_along_and_nothing_is_lost(place):
    """Two workers of two processes each; the second process of the first worker dies."""
    (place / "alone").touch()
    text = (place / "judgement.py").read_text()
    (place / "judgement.py").write_text(text + MATE)
    out = place / "out.jsonl"
    code, said = ivg(command(out, "--gpus", 4, "--shards", 2))
    assert code == 0, said
    assert (place / "died").exists()
    [told] = [line for line in said.splitlines() if "worker" in line]
    assert told.startswith(
        "warning: worker 0 was killed (SIGKILL): the others do what it had begun, "
    )
    assert lines(out) == approximately(alone(place))


@pytest.mark.long
def test_pairs_and_judgements_of_two_workers_are_those_of_one(place):
    (place / "alone").touch()
    for gpus in (1, 2):
        drawing = [
            "synthesize",
            "--base",
            folder("llama"),
            "--reward",
            "judgement:vowels",
            "-n",
            "4",
        ]
        drawing += ["--max-new-tokens", "8", "--device", "cpu", "-i", "in.jsonl"]
        judging = ["judge", "--reward", "judgement:vowels", "--device", "cpu"]
        judging += ["-i", "pairs-1.jsonl.responses.jsonl", "-o", f"judged-{gpus}.jsonl"]
        for words in ([*drawing, "-o", f"pairs-{gpus}.jsonl"], judging):
            if gpus == 1:
                result = CliRunner().invoke(app, words)
                code, said = result.exit_code, result.stderr
            else:
                code, said = ivg([*words, "--gpus", "2"])
            assert code == 0, said
    for name in ("pairs-{}.jsonl", "pairs-{}.jsonl.responses.jsonl", "judged-{}.jsonl"):
        one, two = ((place / name.format(gpus)).read_text() for gpus in (1, 2))
        assert len(lines(place / name.format(1))) >= len(PROMPTS)
        if name.startswith("judged"):
            assert one == two
        else:
            # Log-probabilities differ by what other rows beside them leave.
            assert [rounded(line) for line in one.splitlines()] == [
                rounded(line) for line in two.splitlines()
            ]


def rounded(line: str) -> dict[str, Any]:
    """Return a record with its numbers to four digits."""
    return {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in json.loads(line).items()
    }


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_under_a_launcher_each_process_works_and_the_first_writes(place, launcher):
    out = place / "out.jsonl"
    (place / "alone").touch()
    words = ["-m", "ivgcli", *command(out)]
    known = {**os.environ, "OMP_NUM_THREADS": "1"}
    known["PYTHONPATH"] = str(Path(__file__).parent.parent.parent)
    if launcher == "torchrun":
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        started = [subprocess.Popen([*run, *words], env=known, stderr=subprocess.PIPE)]
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        step = {"SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started = [
            subprocess.Popen(
                [sys.executable, *words],
                env={**known, **step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
                stderr=subprocess.PIPE,
            )
            for rank in "01"
        ]
    said = [each.communicate(timeout=300)[1].decode() for each in started]
    assert [each.returncode for each in started] == [0] * len(started), said
    assert out.read_bytes() == alone(place)
    account = json.loads((place / "out.jsonl.run.json").read_text())
    assert len(account["workers"]) == 2
    ends = [line for line in "".join(said).splitlines() if line.startswith("30 responses, ")]
    assert len(ends) == 1, said
