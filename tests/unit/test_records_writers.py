"""Writing responses: nothing lost, nothing twice, and the same bytes whatever happened."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ivgcli.errors import RecordError
from ivgcli.records import ResponseWriter, TraceWriter, open_responses
from ivgcli.records.journal import Key
from tests.unit.killable import response, wanted

RUN = "7c1e0b92"
KILLABLE = Path(__file__).with_name("killable.py")


def opened(out: Path, keys: list[Key], resume: bool = False, **changes: str) -> ResponseWriter:
    """Open an output of the run that all tests share."""
    settings = {"run": RUN, "recipe_yaml": "seed: 0\n", **changes}
    return open_responses(str(out), keys=keys, resume=resume, **settings)


def run(out: Path, keys: list[Key], order: Iterable[Key] | None = None, **changes: str) -> int:
    """Resume a run to its end and return how many responses were left to do."""
    with opened(out, keys, resume=True, **changes) as writer:
        left = [key for key in order or keys if key not in writer.done]
        for key in left:
            writer.write(response(key))
    return len(left)


def lines(keys: Iterable[Key]) -> bytes:
    """Return what a file of these responses holds, byte for byte."""
    return b"".join((json.dumps(response(k), ensure_ascii=False) + "\n").encode() for k in keys)


def test_the_finished_file_is_in_the_order_of_the_keys(tmp_path: Path) -> None:
    keys = wanted(40)
    for seed in range(5):
        out = tmp_path / f"{seed}.jsonl"
        assert run(out, keys, random.Random(seed).sample(keys, 40)) == 40
        assert out.read_bytes() == lines(keys)
        assert sorted(os.listdir(tmp_path)) == sorted(
            name
            for done in range(seed + 1)
            for name in (f"{done}.jsonl", f"{done}.jsonl.recipe.yaml")
        )


def test_twenty_kills_leave_the_bytes_of_a_run_that_was_never_stopped(tmp_path: Path) -> None:
    out, count = tmp_path / "out.jsonl", 1500
    chance = random.Random(0)
    environment = {**os.environ, "PYTHONPATH": "."}
    finished = 0
    for kill in range(20):
        child = subprocess.Popen(
            [sys.executable, str(KILLABLE), str(out), str(count), str(kill)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        time.sleep(chance.uniform(0, 0.06))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        now = out.read_bytes().count(b"\n")
        assert now >= finished, "a finished line was lost"
        finished = now
    assert 0 < finished < count
    assert run(out, wanted(count)) == count - finished
    assert out.read_bytes() == lines(wanted(count))


def test_a_cut_at_any_byte_of_the_last_two_records_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The cut stands for the stop here; waiting for the disk thousands of times adds nothing.
    monkeypatch.setattr(os, "fsync", lambda file: None)
    keys = wanted(4)
    whole = lines(keys)
    second = len(lines(keys[:2]))
    out = tmp_path / "out.jsonl"
    for cut in range(second, len(whole) + 1):
        out.write_bytes(whole[:cut])
        complete = whole[:cut].count(b"\n")
        assert run(out, keys) == 4 - complete
        assert out.read_bytes() == whole


@pytest.mark.parametrize("happens", ["before", "after"])
def test_a_stop_around_the_final_rewrite_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happens: str
) -> None:
    keys = wanted(6)
    out = tmp_path / "out.jsonl"

    class PowerCut(BaseException):
        """What no code catches."""

    def cut(temporary: Path, path: Path) -> None:
        if happens == "after":
            os.rename(temporary, path)
        raise PowerCut

    writer = opened(out, keys).__enter__()
    for key in reversed(keys):
        writer.write(response(key))
    with monkeypatch.context() as unsteady, pytest.raises(PowerCut):
        unsteady.setattr(os, "replace", cut)
        writer.__exit__(None, None, None)
    assert out.read_bytes() == lines(keys if happens == "after" else reversed(keys))
    assert run(out, keys) == 0
    assert out.read_bytes() == lines(keys)
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "out.jsonl.recipe.yaml"]


@pytest.mark.parametrize("tail", [b"\0\0\0\0", b'{"id": "movie-0001", "resp\0\0\n', b'{"id": \n'])
def test_a_tail_that_was_never_written_out_is_mended(tmp_path: Path, tail: bytes) -> None:
    keys = wanted(4)
    out = tmp_path / "out.jsonl"
    out.write_bytes(lines(keys[:2]) + tail)
    assert run(out, keys) == 2
    assert out.read_bytes() == lines(keys)


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", b'{"a": 1}', b'{"a": 1}\n', b"\n"])
def test_a_file_that_is_not_ours_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "notes"
    out.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        opened(out, wanted(2), resume=True)
    assert str(caught.value).startswith(f"{out}:1: not ")
    assert out.read_bytes() == content
    assert os.listdir(tmp_path) == ["notes"]


def test_a_malformed_line_in_the_middle_is_told_with_its_number(tmp_path: Path) -> None:
    keys = wanted(4)
    out = tmp_path / "out.jsonl"
    content = lines(keys[:1]) + b'{"id": "movie\n' + lines(keys[1:2])
    out.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        opened(out, keys, resume=True)
    assert str(caught.value).startswith(f"{out}:2: not JSON: ")
    assert str(caught.value).endswith(" → mend or remove the line")
    assert out.read_bytes() == content


def test_an_output_that_is_there_needs_resume(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("x")
    for form in ("ivg", "alpaca-eval"):
        with pytest.raises(RecordError) as caught:
            opened(out, wanted(2), format=form)
        assert str(caught.value) == (
            f"{out}: is there already and not empty → go on with --resume, or choose another --out"
        )
    assert out.read_text() == "x"
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_an_empty_output_is_as_good_as_none(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.touch()
    with opened(out, []):
        assert out.read_bytes() == b""


@pytest.mark.parametrize("form", ["ivg", "alpaca-eval"])
def test_another_runs_file_is_refused_naming_both(tmp_path: Path, form: str) -> None:
    out = tmp_path / "out.jsonl"
    write_alpaca(out, wanted(4)) if form == "alpaca-eval" else run(out, wanted(4))
    before = out.read_bytes()
    with pytest.raises(RecordError) as caught:
        opened(out, wanted(4), resume=True, run="00000000", format=form)
    assert str(caught.value).endswith(
        f": belongs to run {RUN}, and this is run 00000000"
        " → use the recipe it was made with, or another --out"
    )
    assert out.read_bytes() == before
    assert not (tmp_path / "out.jsonl.part").exists()


def test_failed_responses_are_dropped_and_done_again(tmp_path: Path) -> None:
    keys = wanted(6)
    out = tmp_path / "out.jsonl"
    with opened(out, keys) as writer:
        for index, key in enumerate(keys):
            writer.write({**response(key), "error": "too long" if index % 2 else None})
    assert out.read_bytes().count(b"too long") == 3
    with opened(out, keys, resume=True) as writer:
        assert writer.done == set(keys[::2])
        assert b"too long" not in out.read_bytes()
    assert run(out, keys) == 3
    assert out.read_bytes() == lines(keys)


def test_responses_to_prompts_that_are_gone_are_kept_at_the_end(tmp_path: Path) -> None:
    keys = wanted(6)
    out = tmp_path / "out.jsonl"
    run(out, keys)
    fewer = keys[4:] + keys[:2]
    assert run(out, fewer) == 0
    assert out.read_bytes() == lines(fewer + keys[2:4])


def test_an_interrupted_run_keeps_what_is_finished(tmp_path: Path) -> None:
    keys = wanted(6)
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt), opened(out, keys) as writer:
        writer.write(response(keys[5]))
        writer.write(response(keys[0]))
        raise KeyboardInterrupt
    assert out.read_bytes() == lines([keys[5], keys[0]])
    assert run(out, keys) == 4
    assert out.read_bytes() == lines(keys)


def test_a_second_writer_is_refused_at_once_and_changes_nothing(tmp_path: Path) -> None:
    keys = wanted(4)
    out = tmp_path / "out.jsonl"
    with opened(out, keys) as writer:
        writer.write(response(keys[0]))
        before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
        for resume in (False, True):
            command = [sys.executable, str(KILLABLE), str(out), "4", "0"]
            with pytest.raises(RecordError) as caught:
                opened(out, keys, resume=resume)
            assert str(caught.value) == (
                f"{out}: another ivg is writing it → wait for it, or choose another --out"
            )
        child = subprocess.run(
            command, capture_output=True, env={**os.environ, "PYTHONPATH": "."}, check=False
        )
        assert b"another ivg is writing it" in child.stderr
        assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
    assert run(out, keys) == 3


def test_the_file_stays_locked_while_it_is_rewritten(tmp_path: Path) -> None:
    keys = wanted(4)
    out = tmp_path / "out.jsonl"
    with opened(out, keys) as writer:
        writer.write({**response(keys[0]), "error": "too long"})
    with opened(out, keys, resume=True), pytest.raises(RecordError, match="another ivg"):
        opened(out, keys, resume=True)


def test_the_recipe_lies_beside_the_output(tmp_path: Path) -> None:
    with opened(tmp_path / "out.jsonl", []):
        assert (tmp_path / "out.jsonl.recipe.yaml").read_text() == "seed: 0\n"


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out.jsonl"
    with pytest.raises(RecordError) as caught:
        opened(out, [])
    assert str(caught.value) == f"{out}: there is no folder {out.parent} → mkdir -p {out.parent}"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(real)
    run(link, wanted(4), wanted(4)[::-1])
    assert link.is_symlink()
    assert real.read_bytes() == lines(wanted(4))


def test_a_full_disk_is_told_and_resuming_completes(tmp_path: Path) -> None:
    keys = wanted(8)
    out = tmp_path / "out.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(lines(keys[:5])) + 10, hard))
        with pytest.raises(RecordError) as caught:
            run(out, keys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    reason = "cannot be written: file too large → make room, then go on with --resume"
    assert str(caught.value) == f"{out}: {reason}"
    assert run(out, keys) == 3
    assert out.read_bytes() == lines(keys)


def test_not_a_number_is_never_written(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with opened(out, wanted(2)) as writer, pytest.raises(ValueError, match="Out of range float"):
        writer.write({**response(wanted(2)[0]), "value": float("nan")})
    assert out.read_bytes() == b""


def alpaca(key: Key) -> dict[str, object]:
    """Return a whole response, with all that AlpacaEval's form needs."""
    fields = {"prompt": f"Why {key}?", "mode": "ivg", "base": "b", "guide": "g", "dataset": "koala"}
    return {**response(key), **fields}


def write_alpaca(out: Path, keys: list[Key]) -> int:
    """Resume a run in AlpacaEval's form and return how many responses were left to do."""
    with opened(out, keys, resume=True, format="alpaca-eval") as writer:
        left = [key for key in keys if key not in writer.done]
        for key in reversed(left):
            writer.write(alpaca(key))
    return len(left)


def test_alpaca_eval_is_one_array_in_the_order_of_the_keys(tmp_path: Path) -> None:
    keys = wanted(4)
    out = tmp_path / "out.json"
    assert write_alpaca(out, keys) == 4
    entries = json.loads(out.read_text())
    assert entries[0] == {
        "id": "movie-0000",
        "instruction": "Why ('movie-0000', 0)?",
        "output": response(keys[0])["response"],
        "generator": "ivg:b+g",
        "dataset": "koala",
        "sample": 0,
        "run": RUN,
    }
    assert [(entry["id"], entry["sample"]) for entry in entries] == keys
    assert sorted(os.listdir(tmp_path)) == ["out.json", "out.json.recipe.yaml"]
    assert write_alpaca(out, keys) == 0
    assert json.loads(out.read_text()) == entries
    assert write_alpaca(out, wanted(6)) == 2
    assert json.loads(out.read_text())[:4] == entries


def test_an_interrupted_alpaca_eval_run_has_no_array_yet_and_resumes(tmp_path: Path) -> None:
    keys = wanted(4)
    out = tmp_path / "out.json"
    with pytest.raises(KeyboardInterrupt), opened(out, keys, format="alpaca-eval") as writer:
        writer.write(alpaca(keys[1]))
        raise KeyboardInterrupt
    assert not out.exists()
    assert write_alpaca(out, keys) == 3
    assert len(json.loads(out.read_text())) == 4


def test_alpaca_eval_never_shows_a_failure_as_an_answer(tmp_path: Path) -> None:
    keys = wanted(4)
    out = tmp_path / "out.json"
    with opened(out, keys, format="alpaca-eval") as writer:
        for key in keys[1:]:
            writer.write(alpaca(key))
        writer.write({"id": keys[0][0], "sample": keys[0][1], "error": "too long"})
    assert [(each["id"], each["sample"]) for each in json.loads(out.read_text())] == keys[1:]
    assert write_alpaca(out, keys) == 1
    assert len(json.loads(out.read_text())) == 4


def test_a_conversations_instruction_is_its_last_message(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    record = alpaca(("a", 0))
    del record["prompt"], record["guide"]
    record["messages"] = [{"role": "user", "content": text} for text in ("first", "last")]
    with opened(out, [("a", 0)], format="alpaca-eval") as writer:
        writer.write(record)
    [entry] = json.loads(out.read_text())
    assert (entry["instruction"], entry["generator"]) == ("last", "ivg:b")


def replace_stdout(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """Return what takes the place of stdout."""
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=buffer))
    return buffer


def test_a_stream_waits_only_for_what_comes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = replace_stdout(monkeypatch)
    keys = wanted(4)
    with open_responses("-", keys=keys, run=RUN, recipe_yaml="") as writer:
        for key, shown in zip([keys[1], keys[0], keys[3], keys[2]], [0, 2, 2, 4], strict=True):
            writer.write(response(key))
            assert stdout.getvalue() == lines(keys[:shown])


def test_an_interrupted_stream_passes_on_what_is_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stdout = replace_stdout(monkeypatch)
    keys = wanted(6)
    with (
        pytest.raises(KeyboardInterrupt),
        open_responses("-", keys=keys, run=RUN, recipe_yaml="") as writer,
    ):
        for index in (5, 3, 0):
            writer.write(response(keys[index]))
        raise KeyboardInterrupt
    assert stdout.getvalue() == lines([keys[0], keys[3], keys[5]])


def test_a_stream_in_alpaca_evals_form_is_one_array(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = replace_stdout(monkeypatch)
    keys = wanted(4)
    opening = open_responses("-", keys=keys, run=RUN, recipe_yaml="", format="alpaca-eval")
    with opening as writer:
        for key in reversed(keys):
            writer.write(alpaca(key))
    assert [(each["id"], each["sample"]) for each in json.loads(stdout.getvalue())] == keys


def test_a_stream_cannot_be_resumed() -> None:
    with pytest.raises(RecordError) as caught:
        open_responses("-", keys=[], run=RUN, recipe_yaml="", resume=True)
    assert str(caught.value) == "--resume: a stream cannot be resumed → name a file with --out"


def test_a_device_is_a_stream() -> None:
    with open_responses(os.devnull, keys=wanted(2), run=RUN, recipe_yaml="") as writer:
        writer.write(response(wanted(2)[0]))
    assert not Path(os.devnull + ".recipe.yaml").exists()


def test_a_trace_appends_when_resumed_and_refuses_to_mix(tmp_path: Path) -> None:
    target = str(tmp_path / "trace.jsonl")
    for step in range(2):
        with TraceWriter(target, resume=bool(step)) as trace:
            trace.write({"step": step})
    assert Path(target).read_text() == '{"step": 0}\n{"step": 1}\n'
    with pytest.raises(RecordError, match="is there already and not empty → remove it, or"):
        TraceWriter(target)
    with pytest.raises(RecordError) as caught:
        TraceWriter("-")
    assert str(caught.value) == "--trace: stdout is for responses → name a file"
