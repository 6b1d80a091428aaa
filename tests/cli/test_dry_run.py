"""`--dry-run` of every command: a plan on stdout, and nothing loaded or written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ivgcli.cli import app
from ivgcli.cli.planning import memory, number
from tests.models import PROMPTS, folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with prompts, pairs, and networks of which the weights are gone."""
    monkeypatch.chdir(tmp_path)
    for name in ("llama", "llama-tuned", "llama-reference", "scalar"):
        shutil.copytree(folder(name), tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
    prompts = [json.dumps({"prompt": text}) for text in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(prompts))
    pairs = [{"prompt": text, "chosen": " good", "rejected": " bad"} for text in PROMPTS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (tmp_path / "guide.yaml").write_text(
        "implicit: {tuned: llama-tuned, reference: llama-reference}\nexplicit: {model: scalar}\n"
    )
    return tmp_path


COMMANDS = {
    "generate": "--base llama --guide guide.yaml --mode ivg --in prompts.jsonl --out o.jsonl",
    "bon": "--base llama --guide guide.yaml --by implicit --in prompts.jsonl --out o.jsonl",
    "synthesize": "--base llama --reward scalar --in prompts.jsonl --out o.jsonl",
    "train-implicit": "--init llama --in pairs.jsonl --out o --held-out 1",
    "train-explicit": "--init llama --in pairs.jsonl --out o --held-out 1",
}


def planned(command: str, words: str) -> str:
    result = CliRunner().invoke(app, [command, *words.split(), "--dry-run"])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_plan_needs_no_weights_writes_nothing_and_fits_the_page(command: str, here: Path) -> None:
    before = sorted(path.name for path in here.iterdir())
    text = planned(command, COMMANDS[command])
    assert sorted(path.name for path in here.iterdir()) == before
    assert text.startswith(f"ivg {command}")
    assert text.count("its weights are not on this machine; size by its configuration") >= 2
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_table_of_ivg_names_every_network_with_its_numbers(here: Path) -> None:
    """37,792 weights of 4 bytes; the prompts are read once, 4·255 tokens of each response."""
    text = planned("generate", COMMANDS["generate"])
    assert "5 prompts of prompts.jsonl, 1 response each, at most 256 tokens" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if " float32 " in line}
    assert list(rows) == ["base", "tuned", "reference", "value"]
    assert rows["base"][1:5] == ["37,792", "float32", "148", "KiB"]
    assert rows["base"][1:] == rows["tuned"][1:]
    for name in ("llama", "llama-tuned", "llama-reference", "scalar"):
        assert any(line.endswith(f" {name}") for line in text.splitlines())


def test_several_workers_are_planned_and_more_than_there_are_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"{COMMANDS['generate']} --device cpu --gpus 3"
    text = " ".join(planned("generate", words).split())
    weights = text.split(" all ")[-1].split(" KiB")[0]
    assert f"3 workers, all on this CPU; each loads all weights, {weights} KiB" in text
    assert "rows and memory are those of one worker" in text
    words = f"{COMMANDS['bon']} --device cuda --gpus 3"  # for another machine
    assert "3 workers, each on a GPU of its own" in " ".join(planned("bon", words).split())
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    result = CliRunner().invoke(app, ["bon", *words.split(), "--dry-run"])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith("only 2 are here → --gpus 2")


def test_groups_of_gpus_are_planned_with_what_each_holds(here: Path) -> None:
    """In two bytes a weight: half of the base's 73.8 KiB, and 73.8 + 73.8 + 55.1 KiB of the others."""
    words = f"{COMMANDS['generate']} --device cuda --gpus 4 --shards 2"  # for another machine
    text = planned("generate", words)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if " bfloat16 " in line}
    assert rows["base"][3:5] == ["36.9", "KiB"]
    assert rows["tuned"][3:5] == ["73.8", "KiB"]
    told = " ".join(text.split())
    assert "2 workers of 2 GPUs: 240 KiB of weights on each" in told
    assert "divided among 2 GPUs: 1 of its 2 key/value heads on each" in told
    result = CliRunner().invoke(app, ["generate", *words.split(), "--gpus", "3", "--dry-run"])
    assert result.exit_code == 2
    assert result.stderr.endswith(
        "3 GPUs make no groups of 2, one for each copy of the base → --gpus 4\n"
    )


def test_input_that_is_not_here_is_told_and_its_number_is_the_limits(here: Path) -> None:
    words = "--base llama --in hf:someone/prompts:test --limit 7"
    text = " ".join(planned("generate", words).split())
    assert "7 prompts of hf:someone/prompts:test" in text
    assert "not here: hf:someone/prompts:test (their number is --limit's;" in text
    text = " ".join(planned("generate", "--base llama --in later.jsonl").split())
    assert "for one of the prompts of later.jsonl" in text
    assert "not here: later.jsonl (their number is not known;" in text


def test_a_known_data_set_has_the_rows_of_its_card(here: Path) -> None:
    text = planned("train-implicit", "--init llama --in hf:ZHZisZZ/imdb_preference:train")
    assert "20,000 pairs of hf:ZHZisZZ/imdb_preference:train, 1,000 of them held out" in text
    assert "Would write OUT/reference, OUT/tuned, OUT/guide.yaml." in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("generate --base llama --mode ivg --in prompts.jsonl", "ivg needs an implicit"),
        ("generate --base llama --in torn.jsonl", "torn.jsonl:1: not JSON"),
        ("generate --base llama --guide runs/none --in prompts.jsonl", "is not there"),
        ("generate --base llama --in prompts.jsonl --device tpu9", 'no device "tpu9"'),
        ("train-explicit --init llama --target cd-q --in pairs.jsonl", "rollouts.base"),
    ],
)
def test_what_cannot_run_cannot_be_planned_either(words: str, sentence: str, here: Path) -> None:
    (here / "torn.jsonl").write_text('{"prompt": ')
    result = CliRunner().invoke(app, [*words.split(), "--dry-run"])
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_a_prompt_of_the_command_line_is_one_prompt(here: Path) -> None:
    result = CliRunner().invoke(
        app, ["generate", "--base", "llama", "--prompt", "the film opens", "--dry-run"]
    )
    assert "1 prompt of the command line, 1 response each" in result.stdout


def test_pairs_that_are_labelled_anew_are_scored_and_nothing_is_drawn(here: Path) -> None:
    text = planned("synthesize", "--relabel --reward scalar --in pairs.jsonl")
    assert "5 pairs of pairs.jsonl, of which both responses are scored" in text
    assert [line.split()[0] for line in text.splitlines() if " float32 " in line] == ["reward"]


def test_numbers_are_written_as_people_say_them() -> None:
    assert [number(each) for each in (805, 999_999, 1_234_567, 6_738_415_616)] == [
        "805",
        "999,999",
        "1.23M",
        "6.74B",
    ]
    assert [memory(each) for each in (0, 999, 1536, 13.5 * 2**30)] == [
        "0 B",
        "999 B",
        "1.5 KiB",
        "13.5 GiB",
    ]
