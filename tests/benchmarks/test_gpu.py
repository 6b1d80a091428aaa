"""The script for a borrowed GPU, run on the CPU: every part leaves results, and no failure stops the rest."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, startup
from benchmarks.contest import Outcome
from benchmarks.parts import OutOfTime, Run
from benchmarks.parts.sameness import differences

LINE = ["--shape", "tiny", "--device", "cpu", "--threads", "1"]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_part_leaves_results_on_a_cpu(tmp_path: Path, threads: None) -> None:
    assert gpu.main(["--out", str(tmp_path), *LINE, "--minutes", "30"]) == 0
    found = records(tmp_path)
    assert list(dict.fromkeys(record["part"] for record in found)) == ["tests", *gpu.PARTS]
    assert not [record for record in found if "failed" in record or "stopped" in record]
    shares = [record["share_of_limit"] for record in found if "share_of_limit" in record]
    # Far below what the machine could do at this size, and above nothing at all.
    assert shares
    assert all(share > 0 for share in shares)
    named = {record["name"] for record in found}
    peers = {"published-loop", "batched-generate", "static-generate", "continuous-batching"}
    assert named >= peers | {"ivg", "compiled-decode", "ivg-without-incremental"}
    text = (tmp_path / "summary.md").read_text()
    assert all(f"## {name}: {part.title}" in text for name, part in gpu.PARTS.items())
    assert "- torch: " in text
    assert "--shape tiny --device cpu" in text


def test_a_part_that_breaks_keeps_its_traceback_and_the_next_one_runs(
    tmp_path: Path, monkeypatch, threads: None
) -> None:
    def broken(run: Run) -> None:
        run.note(name="before", seconds=1.0)
        raise RuntimeError("the device has gone")

    def late(run: Run) -> None:
        time.sleep(60)

    monkeypatch.setitem(gpu.PARTS, "G1", gpu.Part("Broken", broken, 1))
    monkeypatch.setitem(gpu.PARTS, "G2", gpu.Part("Late", late, 1e-9))
    line = ["--out", str(tmp_path), *LINE, "--only", "G1,G2,G7", "--minutes", "30"]
    assert gpu.main(line) == 1
    by_name = {record["name"]: record for record in records(tmp_path)}
    assert by_name["before"]["seconds"] == 1.0
    assert by_name["G1"]["failed"] == "RuntimeError: the device has gone"
    assert by_name["G2"]["stopped"].endswith("s are over")
    assert by_name["another order, a fifth of the rows"]["differing"] == 0
    assert 'raise RuntimeError("the device has gone")' in (tmp_path / "log.txt").read_text()
    assert "RuntimeError: the device has gone" in (tmp_path / "summary.md").read_text()


def test_the_clock_of_a_part_is_put_away_after_it() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(OutOfTime), gpu.limited(0.0):
        time.sleep(60)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_unknown_part_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path), *LINE, "--only", "G77"])
    assert "no part G77: choose from G0, G1" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_way_to_run_on_a_cpu_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--out", str(tmp_path)])
    assert "no GPU is here: add --device cpu --shape tiny" in capsys.readouterr().err


def test_differences_count_each_response_once_and_stop_there() -> None:
    whole = Outcome([[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9]], 12)
    other = Outcome([[1, 2, 3, 4], [5, 0, 0, 0]], 8)
    found = differences(whole, other)
    assert (found["responses"], found["differing"]) == (2, 1)
    # Four equal tokens, then one equal and one that differs; what follows it is another text.
    assert found["tokens"] == 6
    assert found["flips_per_million"] == pytest.approx(1e6 / 6)


def test_startup_times_are_those_of_a_model_that_answers(tmp_path: Path) -> None:
    startup.write_model(tmp_path, "tiny", "cpu", "float32")
    found = startup.stages(tmp_path, "cpu", "float32")
    assert list(found) == ["load", "first token", "another prompt's"]
    assert min(found.values()) > 0
