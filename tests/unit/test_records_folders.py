"""The output folder of a training run: whose it is, and that half a model never has a model's name."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from ivgcli.errors import RecordError
from ivgcli.records import TrainingFolder

RUN = "7c1e0b92"


def opened(path: Path, resume: bool = False, run: str = RUN, **rest: bool) -> TrainingFolder:
    """Open the folder of a run."""
    return TrainingFolder(path, run, "seed: 0\n", resume, **rest)


def test_a_new_folder_says_whose_it_is(tmp_path: Path) -> None:
    with opened(tmp_path / "deep" / "er") as folder:
        assert not folder.finished
        assert folder.recorded() == {"run": RUN}
    assert (tmp_path / "deep" / "er" / "recipe.yaml").read_text() == "seed: 0\n"


def test_a_model_has_its_name_when_all_of_it_is_written(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        with folder.publishing("rounds/1") as work:
            (work / "weights").write_text("all")
            assert not folder.has("rounds/1")
        assert folder.has("rounds/1")
        assert (tmp_path / "rounds" / "1" / "weights").read_text() == "all"
        assert [each.name for each in (tmp_path / "rounds").iterdir()] == ["1"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, RecordError])
def test_a_failure_while_publishing_leaves_nothing(
    error: type[BaseException], tmp_path: Path
) -> None:
    with opened(tmp_path) as folder:
        with pytest.raises(error), folder.publishing("tuned") as work:
            (work / "weights").write_text("half")
            raise error("a", "b") if error is RecordError else error
        assert not folder.has("tuned")
        assert {each.name for each in tmp_path.iterdir()} == {".lock", "run.json", "recipe.yaml"}


def test_a_full_disk_while_publishing_is_a_sentence_with_the_models_name(tmp_path: Path) -> None:
    with (
        opened(tmp_path) as folder,
        pytest.raises(RecordError) as raised,
        folder.publishing("tuned"),
    ):
        raise OSError(28, "No space left on device")
    assert raised.value.where == str(tmp_path / "tuned")
    assert raised.value.what == "cannot be written: no space left on device"


def test_what_a_kill_left_of_a_model_is_cleared_away(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.log("sft", {"step": 1})
        partial = tmp_path / ".tuned.partial"
        partial.mkdir()
        (partial / "model.safetensors").write_text("half")
    with opened(tmp_path, resume=True) as folder:
        assert not partial.exists()
        assert not folder.has("tuned")


def test_steps_that_are_about_to_come_again_are_forgotten(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        for step in (1, 2, 3):
            folder.log("sft", {"step": step, "loss": 0.5})
        folder.log("report", {"measure": "kl"})
        folder.log("preference", {"step": 3, "loss": math.nan})
        with (tmp_path / "metrics.jsonl").open("ab") as stream:
            stream.write(b'{"stage": "preference", "st')  # killed amid a line
        folder.forget("sft", 2)
        folder.forget("report")
        folder.log("sft", {"step": 3, "loss": 0.25})
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"stage": "sft", "step": 1, "loss": 0.5},
        {"stage": "sft", "step": 2, "loss": 0.5},
        {"stage": "preference", "step": 3, "loss": None},
        {"stage": "sft", "step": 3, "loss": 0.25},
    ]


def test_the_account_grows(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.account({"pairs": 3, "stages": {"sft": None}})
        folder.account({"stages": {"sft": {"steps": 2}}})
    assert json.loads((tmp_path / "run.json").read_text()) == {
        "run": RUN,
        "pairs": 3,
        "stages": {"sft": {"steps": 2}},
    }


def test_a_finished_run_has_a_guide_and_no_checkpoints(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.checkpoints("sft").mkdir(parents=True)
        folder.finish("implicit: {}\n")
        assert folder.finished
        assert not (tmp_path / "checkpoints").exists()
    # A kill between the two leaves checkpoints that nobody needs.
    (tmp_path / "checkpoints").mkdir()
    with opened(tmp_path, resume=True) as folder:
        assert folder.finished
        assert not (tmp_path / "checkpoints").exists()


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    with opened(tmp_path):
        with pytest.raises(RecordError, match="another ivg is writing it → wait for it"):
            opened(tmp_path, resume=True)
        # The others of one run write nothing and need no lock.
        with opened(tmp_path, writes=False) as second:
            second.log("sft", {"step": 1})
            second.account({"pairs": 1})
            with second.publishing("tuned"):
                pass
            assert not second.has("tuned")
    assert not (tmp_path / "metrics.jsonl").exists()
    opened(tmp_path, resume=True).close()


def test_a_run_that_came_to_nothing_leaves_the_folder_free(tmp_path: Path) -> None:
    """Found as a folder that a misspelt model's name had made useless."""
    opened(tmp_path).close()
    opened(tmp_path, run="another1").close()
    assert json.loads((tmp_path / "run.json").read_text()) == {"run": "another1"}


@pytest.mark.parametrize("left", [".lock", "run.json.tmp"])
def test_a_run_that_was_killed_at_its_very_start_leaves_the_folder_free(
    left: str, tmp_path: Path
) -> None:
    (tmp_path / left).touch()
    opened(tmp_path).close()


def test_a_run_that_has_begun_is_only_gone_on_with(tmp_path: Path) -> None:
    with opened(tmp_path) as folder:
        folder.log("sft", {"step": 1})
    with pytest.raises(RecordError, match="is there already and not empty → go on with --resume"):
        opened(tmp_path)
    with pytest.raises(RecordError) as raised:
        opened(tmp_path, resume=True, run="another1")
    assert raised.value.what == f"belongs to run {RUN}, and this is run another1"
    with opened(tmp_path, resume=True) as folder:
        assert folder.lines() == [{"stage": "sft", "step": 1}]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["recipe.yaml", "notes.txt", "run.json", "metrics.jsonl"])
def test_a_folder_of_something_else_is_left_as_it_was(
    name: str, resume: bool, tmp_path: Path
) -> None:
    """Found as a user's recipe.yaml that --out . --resume would have overwritten."""
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(RecordError, match="holds files that no training run wrote → choose"):
        opened(tmp_path, resume)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == '{"mine": 1}'


def test_a_place_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="is a file, and a folder is to be made"):
        opened(tmp_path / "file")
    with pytest.raises(RecordError, match="cannot be written: not a directory"):
        opened(tmp_path / "file" / "out")


def test_others_may_read_what_was_written_for_its_owner_alone(tmp_path: Path) -> None:
    """safetensors gives weights the mode 600, and a shared guide could not be loaded."""
    before = os.umask(0o027)
    try:
        with opened(tmp_path / "out") as folder, folder.publishing("tuned") as work:
            (work / "model.safetensors").touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "out" / "tuned" / "model.safetensors").stat().st_mode & 0o777 == 0o640
