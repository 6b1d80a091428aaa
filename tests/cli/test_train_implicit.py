"""`ivg train-implicit` as a user runs it: what it leaves behind, what it refuses, what it survives."""

from __future__ import annotations

import gc
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from ivgcli.cli import app
from ivgcli.training import implicit, report
from tests.forks import Forks, undrawn
from tests.models import folder

ROOT = Path(__file__).parents[2]
STEPS = 4
"""Optimiser steps of each stage: 16 pairs, or their 32 responses, in batches of 4 or 8."""

RECIPE: dict[str, Any] = {
    "data": {"held_out": 0, "max_length": 64},
    "sft": {"learning_rate": 1e-3, "batch_size": 8},
    "preference": {"learning_rate": 1e-3, "batch_size": 4},
    "train": {"save_steps": 1, "logging_steps": 1},
    "engine": {"device": "cpu"},
}
HINT = "lower learning_rate, or raise warmup_steps, and train again in a new --out"


def ivg(*arguments: object, stdin: str = "") -> Result:
    """Run the command line, and return what came of it."""
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin)


def pairs(count: int = 16) -> list[dict[str, Any]]:
    """Return pairs in which a tender film beats a bad one."""
    ways = ["a good film", "tender", "fine", "a slow and tender shot of the sea"]
    return [
        {"id": f"p{n}", "prompt": f"film {n} is", "chosen": f" {ways[n % 4]}", "rejected": " bad"}
        for n in range(count)
    ]


def lines(place: Path, rows: list[dict[str, Any]]) -> Path:
    """Write records, and return their file."""
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def written(place: Path, model: str = "llama", **sections: Any) -> Path:
    """Write the recipe, `sections` over it, and return its file."""
    recipe = {"init": {"model": folder(model)}, **RECIPE}
    for name, section in sections.items():
        both = isinstance(section, Mapping) and isinstance(recipe.get(name), Mapping)
        recipe[name] = {**recipe[name], **section} if both else section
    place.write_text(yaml.safe_dump(recipe))
    return place


def command(place: Path, model: str = "llama", rows: Any = None, **sections: Any) -> list[object]:
    """Return the words that train on `rows` into `place`/out, under the recipe and `sections`."""
    source = lines(place / "pairs.jsonl", pairs() if rows is None else rows)
    recipe = written(place / "recipe.yaml", model, **sections)
    return ["train-implicit", recipe, "-i", source, "-o", place / "out", "-q"]


def trained(place: Path, model: str = "llama", rows: Any = None, **sections: Any) -> Path:
    """Train, which has to end well, and return the folder."""
    result = ivg(*command(place, model, rows, **sections))
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    return place / "out"


def logged(out: Path, stage: str) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that a stage wrote."""
    found = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["stage"] == stage]


def weights(out: Path, name: str) -> dict[str, torch.Tensor]:
    """Return the weights of a model of a folder."""
    [file] = (out / name).glob("*.safetensors")
    return dict(load_file(file))


def assert_equal(ours: Path, theirs: Path) -> None:
    """Check that two runs made the same models, bit for bit."""
    for name in ("reference", "tuned"):
        one, other = weights(ours, name), weights(theirs, name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def refused(result: Result, told: str) -> None:
    """Check that a command ended with one sentence."""
    assert (result.stderr, result.exit_code) == (f"error: {told}\n", 2), result.exception


@pytest.fixture(autouse=True, scope="module")
def unhurried() -> Iterator[None]:
    """Train by one thread, as forked runs do, and leave out what takes longer than a tiny network.

    That is drawing, and collecting what libraries hold.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_figure", undrawn)
        yield
    torch.set_num_threads(threads)
    gc.unfreeze()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """The parent of all runs that are killed."""
    parent = Forks()
    yield parent
    parent.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """A run that nothing has disturbed."""
    place = tmp_path_factory.mktemp("whole")
    status, said = forks.run(place / "log", command(place))
    assert status == 0, said
    return place


# ------------------------------------------------------------------------------ what it leaves


def test_the_folder_is_a_guide_that_decoding_takes(whole: Path) -> None:
    out = whole / "out"
    assert {each.name for each in out.iterdir()} == {
        ".lock", "guide.yaml", "metrics.jsonl", "recipe.yaml", "reference", "run.json", "tuned",
    }  # fmt: skip
    guide = yaml.safe_load((out / "guide.yaml").read_text())
    assert guide["implicit"] == {"tuned": {"model": "tuned"}, "reference": {"model": "reference"}}
    account = json.loads((out / "run.json").read_text())
    assert (account["pairs"], account["processes"]) == (16, 1)
    assert {name: each["steps"] for name, each in account["stages"].items()} == {
        "sft": STEPS,
        "preference": STEPS,
    }
    words = ["generate", "--base", folder("llama"), "--guide", out, "--mode", "eft-i"]
    result = ivg(*words, "--prompt", "film 3 is", "--max-new-tokens", 4, "-q")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["guide"] == "out"
    # Readable by whoever may read the folder: safetensors alone would keep the weights private.
    modes = {file.stat().st_mode & 0o777 for file in (out / "tuned").iterdir()}
    assert modes == {out.stat().st_mode & 0o666}


def test_the_first_step_of_dpo_has_a_loss_of_ln_2(whole: Path) -> None:
    """Tuned and reference are one model then, so σ(β·0) = 1/2, whatever the pairs."""
    first = logged(whole / "out", "preference")[0]
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (first["rewards/chosen"], first["rewards/rejected"]) == (0.0, 0.0)


def test_the_resolved_recipe_trains_the_same_models_again(whole: Path, tmp_path: Path) -> None:
    words = ["train-implicit", whole / "out" / "recipe.yaml", "-i", whole / "pairs.jsonl"]
    result = ivg(*words, "-o", tmp_path / "out", "-q")
    assert result.exit_code == 0, result.stderr
    assert_equal(tmp_path / "out", whole / "out")


def test_bfloat16_computes_the_same_first_step(tmp_path: Path) -> None:
    """Both networks round alike, so the rewards stay 0; the loss is a mean of equal float32 numbers."""
    out = trained(tmp_path, train={"bf16": True}, sft=None, preference={"max_steps": 1})
    [first] = logged(out, "preference")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/chosen"] == 0.0


def test_gradient_checkpointing_computes_the_same_weights(whole: Path, tmp_path: Path) -> None:
    """The activations are recomputed by the very same operations."""
    out = trained(tmp_path, train={"gradient_checkpointing": True})
    assert_equal(out, whole / "out")


def test_a_factor_of_the_loss_is_not_taken_for_a_wrong_reference(tmp_path: Path) -> None:
    """Found as a run refused at its first step: a weight w makes it w·ln 2."""
    out = trained(tmp_path, sft=None, preference={"loss_weights": [0.5], "max_steps": 1})
    assert logged(out, "preference")[0]["loss"] == pytest.approx(math.log(2) / 2, abs=1e-6)


def test_without_fine_tuning_the_guide_names_the_start_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(folder("llama")).parent)
    recipe = {"init": {"model": "llama"}, "sft": None, "preference": {"max_steps": 1}}
    out = trained(tmp_path, **recipe, lora={})
    assert not (out / "reference").exists()
    guide = yaml.safe_load((out / "guide.yaml").read_text())
    assert guide["implicit"]["reference"] == {"model": folder("llama")}
    adapter = json.loads((out / "tuned" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == folder("llama")


# ----------------------------------------------------------------------------------- adapters


def test_an_adapter_shares_the_weights_of_its_reference(tmp_path: Path) -> None:
    """With `lora`, tuned/ holds an adapter over ../reference, which fine-tuning has left merged."""
    from ivgcli.models.loading import Networks
    from ivgcli.recipes import ModelSpec

    out = trained(tmp_path, lora={"rank": 4})
    assert json.loads((out / "tuned" / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == "../reference"  # fmt: skip
    assert not (out / "reference" / "adapter_config.json").exists()
    assert (
        weights(out, "reference").keys()
        == dict(load_file(Path(folder("llama")) / "model.safetensors")).keys()
    )
    networks = Networks("cpu")
    reference, none = networks.language_model(ModelSpec(model=str(out / "reference")))
    tuned, name = networks.language_model(ModelSpec(model=str(out / "tuned")))
    assert tuned is reference
    assert networks.all() == [reference]
    assert (none, name is None) == (None, False)
    # The folder moves as a whole: nothing in it says where it was made.
    moved = out.rename(tmp_path / "moved")
    result = ivg(
        "generate", "--base", folder("llama"), "--guide", moved, "--mode", "eft-i",
        "--prompt", "film 3 is", "--max-new-tokens", 4, "-q",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr


def test_an_adapter_is_what_the_merged_model_is(tmp_path: Path) -> None:
    """W·x + B(A·x)·s and (W + B·A·s)·x differ by the order of float32 sums alone: 1e-5 of 10."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    out = trained(tmp_path, lora={"rank": 4}, preference={"learning_rate": 1e-2})
    source = str(out / "reference")
    ids = torch.tensor([[40, 41, 42, 50, 60]])
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(source)(ids).logits
        over = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(source), str(out / "tuned")
        )
        adapted = over(ids).logits
        merged = over.merge_and_unload()(ids).logits
    assert (adapted - plain).abs().max() > 1e-2, "training has moved it"
    torch.testing.assert_close(adapted, merged, atol=1e-4, rtol=1e-5)


# ---------------------------------------------------------------------------- stopped and resumed


def test_a_killed_run_goes_on_to_the_same_models(whole: Path, tmp_path: Path, forks: Forks) -> None:
    """SIGKILL at random steps of both stages, before and amid a checkpoint, then --resume."""
    words = [*command(tmp_path), "--resume"]
    draw = random.Random(7)
    for stage in ("sft", "preference"):
        # In rising order, so that each step is still to come.
        steps = sorted(draw.randint(1, STEPS) for _ in range(3))
        for kind, step in zip(("tear", "kill", "kill"), steps, strict=True):
            status, said = forks.run(tmp_path / "log", words, **{kind: [stage, step]})
            assert status == -signal.SIGKILL, said
            assert not {"tuned", "guide.yaml"} & {
                each.name for each in (tmp_path / "out").iterdir()
            }
    status, said = forks.run(tmp_path / "log", words)
    assert status == 0, said
    assert_equal(tmp_path / "out", whole / "out")
    for stage in ("sft", "preference"):
        ours, theirs = (logged(place / "out", stage) for place in (tmp_path, whole))
        assert [line["step"] for line in ours] == [*range(1, STEPS + 1)]
        assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    stages = json.loads((tmp_path / "out" / "run.json").read_text())["stages"]
    assert [each["steps"] for each in stages.values()] == [STEPS, STEPS]


def test_a_killed_adapter_goes_on_to_the_same_weights(tmp_path: Path, forks: Forks) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    for place in (alone, killed):
        place.mkdir()
    sections: dict[str, Any] = {"lora": {"rank": 4}, "sft": None}
    trained(alone, **sections)
    words = [*command(killed, **sections), "--resume"]
    status, said = forks.run(tmp_path / "log", words, kill=["preference", 3])
    assert status == -signal.SIGKILL, said
    status, said = forks.run(tmp_path / "log", words)
    assert status == 0, said
    one, other = weights(alone / "out", "tuned"), weights(killed / "out", "tuned")
    assert all(torch.equal(one[key], other[key]) for key in one)


def emptied(checkpoint: Path) -> None:
    """Leave nothing of a checkpoint but its name."""
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path / "model.safetensors", 5_000),
        lambda path: (path / "model.safetensors").unlink(),
        lambda path: (path / "optimizer.pt").unlink(),
        lambda path: os.truncate(path / "scheduler.pt", 100),
        lambda path: os.truncate(path / "rng_state.pth", 0),
        lambda path: (path / "trainer_state.json").unlink(),
        lambda path: os.truncate(path / "trainer_state.json", 30),
        emptied,
    ],
    ids=[
        "torn weights", "no weights", "no optimiser", "torn scheduler", "no random state",
        "no state", "torn state", "empty",
    ],
)  # fmt: skip
def test_a_torn_checkpoint_is_passed_over(
    damage: Callable[[Path], object], whole: Path, half: Path, tmp_path: Path
) -> None:
    shutil.copytree(half, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "out" / "checkpoints" / "preference" / "checkpoint-2"
    damage(newest)
    words = ["-i", half / "pairs.jsonl", "-o", tmp_path / "out", "--resume"]
    result = ivg("train-implicit", half / "recipe.yaml", *words)
    assert result.exit_code == 0, result.stderr
    assert f"warning: {newest} is not whole, and is passed over" in result.stderr
    assert "preference: resuming at step 1" in result.stderr
    assert_equal(tmp_path / "out", whole / "out")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """A run that was killed at the third step of its second stage."""
    place = tmp_path_factory.mktemp("half")
    status, said = forks.run(place / "log", command(place), kill=["preference", 3])
    assert status == -signal.SIGKILL, said
    return place


def test_a_run_that_lost_all_checkpoints_begins_its_stage_again(
    whole: Path, half: Path, tmp_path: Path
) -> None:
    shutil.copytree(half, tmp_path, dirs_exist_ok=True)
    for checkpoint in (tmp_path / "out" / "checkpoints" / "preference").glob("checkpoint-*"):
        emptied(checkpoint)
    words = ["-i", half / "pairs.jsonl", "-o", tmp_path / "out", "--resume", "-q"]
    result = ivg("train-implicit", half / "recipe.yaml", *words)
    assert (result.exit_code, result.stderr.count("passed over")) == (0, 2)
    assert_equal(tmp_path / "out", whole / "out")


@pytest.mark.parametrize(
    ("limit", "steps", "place"),
    [
        # The weights are 153 kB, the optimiser twice as much.
        (100_000, 1, "checkpoints/sft"),
        (200_000, 1, "checkpoints/sft"),
    ],
    ids=["weights", "optimiser"],
)
def test_a_full_disk_is_told_and_resumed(
    limit: int, steps: int, place: str, whole: Path, tmp_path: Path, forks: Forks
) -> None:
    words = command(tmp_path)
    status, said = forks.run(tmp_path / "log", words, limit=limit)
    out = tmp_path / "out"
    reasons = ("file too large", "the file was cut off")
    told = [
        f"error: {out}/{place}: cannot be written: {reason} → make room, then go on with --resume\n"
        for reason in reasons
    ]
    assert (status, said in told) == (2, True), said
    assert not {"reference", "tuned", "guide.yaml"} & {each.name for each in out.iterdir()}
    status, said = forks.run(tmp_path / "log", [*words, "--resume"])
    assert status == 0, said
    assert_equal(out, whole / "out")


def test_a_model_that_does_not_fit_on_the_disk_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints fit here and the reference does not."""
    from transformers import LlamaForCausalLM

    write = LlamaForCausalLM.save_pretrained

    def fill(self: Any, place: Any, **rest: Any) -> None:
        write(self, place, **rest)
        if "partial" in str(place):
            raise OSError(28, "No space left on device")

    words = command(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", fill)
        told = "cannot be written: no space left on device → make room, then go on with --resume"
        refused(ivg(*words), f"{tmp_path}/out/reference: {told}")
    assert not [*(tmp_path / "out").glob("*reference*")]
    assert ivg(*words, "--resume").exit_code == 0


def test_an_interrupted_run_says_so(tmp_path: Path, forks: Forks) -> None:
    words = command(tmp_path)
    status, said = forks.run(tmp_path / "log", words, signal=["preference", 2, int(signal.SIGINT)])
    assert (status, said) == (130, "interrupted\n")


def test_a_diverged_run_leaves_no_model(tmp_path: Path) -> None:
    what = "training: diverged: the loss of step 2 is not a finite number"
    for stage, left in (("sft", False), ("preference", True)):
        place = tmp_path / stage
        place.mkdir()
        refused(ivg(*command(place, **{stage: {"learning_rate": 1e30}})), f"{what} → {HINT}")
        there = {each.name for each in (place / "out").iterdir()}
        assert not {"tuned", "guide.yaml"} & there
        assert ("reference" in there) == left


# ------------------------------------------------------------------------------ several processes


def test_two_processes_train_the_same_models_as_one(tmp_path: Path, forks: Forks) -> None:
    """A step's gradient is the same sum in another order, and SGD moves by it alone.

    TRL divides SFT's loss by the tokens of the whole step over all processes, and DPO's parts are
    equally large here (16 pairs in fours), so their means average to the step's. Adam would divide
    rounding by rounding where a gradient vanishes, and step by its full learning rate either way.
    Pairs that do not fill the last step are another matter: accelerate then repeats some of them.
    """
    plain = {"trl": {"optim": "sgd"}, "learning_rate": 0.05}
    alone, both = tmp_path / "alone", tmp_path / "both"
    for place in (alone, both):
        place.mkdir()
    trained(alone, sft=plain, preference=plain)
    words = command(both, sft=plain, preference=plain)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert forks.run(tmp_path / "log", words, ranks=2, port=port) == (0, "")
    assert json.loads((both / "out" / "run.json").read_text())["processes"] == 2
    start = dict(load_file(Path(folder("llama")) / "model.safetensors"))
    for name in ("reference", "tuned"):
        one, other = weights(alone / "out", name), weights(both / "out", name)
        assert max((one[key] - start[key]).abs().max() for key in one) > 1e-3, "it has moved"
        assert max((one[key] - other[key]).abs().max() for key in one) < 1e-6


@pytest.mark.long
def test_it_starts_its_own_processes_and_their_failure_is_one_sentence(tmp_path: Path) -> None:
    """Neither torchrun nor the other process adds to what the first one says."""
    words = [*map(str, command(tmp_path, sft={"learning_rate": 1e30})), "--gpus", "2"]
    result = subprocess.run(
        [sys.executable, "-m", "ivgcli", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    what = "training: diverged: the loss of step 2 is not a finite number"
    assert (result.returncode, result.stderr) == (2, f"error: {what} → {HINT}\n")
    assert len(logged(tmp_path / "out", "sft")) == 1


# ------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], ': no pairs → write one {"prompt": ..., "chosen": ..., "rejected": ...} a line'),
        ([{"prompt": "a"}],
            ':1: no field "chosen" (found prompt) → a pair has prompt, chosen and rejected'),
        ([{"prompt": "a", "chosen": 1, "rejected": "b"}],
            ':1: "chosen" and "rejected" are not both texts or both lists of messages'),
        ([{"prompt": "", "chosen": "a", "rejected": "b"}], ":1: the prompt is empty"),
    ],
)  # fmt: skip
def test_bad_pairs_are_told_with_their_line(
    rows: list[dict[str, Any]], told: str, tmp_path: Path
) -> None:
    refused(ivg(*command(tmp_path, rows=rows)), f"{tmp_path}/pairs.jsonl{told}")
    assert not (tmp_path / "out").exists()


def test_pairs_that_teach_nothing_are_counted(tmp_path: Path) -> None:
    equal = {"prompt": "a", "chosen": " b", "rejected": " b"}
    long = {"prompt": "film " * 100, "chosen": " a", "rejected": " b"}
    what = "none of 2 pairs can be trained on (1: chosen and rejected are equal; 1: the prompt"
    refused(
        ivg(*command(tmp_path, rows=[equal, long])),
        f"pairs: {what} alone has 64 tokens or more) → mend them, or raise data.max_length",
    )
    wordy = {"prompt": "a", "chosen": " film" * 100, "rejected": " b"}
    words = command(tmp_path, rows=[*pairs(4), equal, long, wordy], sft=None)
    told = ivg(*words[:-1]).stderr
    assert (
        "5 pairs trained on, 1 left out (chosen and rejected are equal), 1 left out (the prompt"
        " alone has 64 tokens or more), 1 cut at 64 tokens\n"
    ) in told
    account = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (account["pairs"], account["cut"], sum(account["left_out"].values())) == (5, 1, 2)


def test_conversations_need_a_chat_template(tmp_path: Path) -> None:
    user, reply = {"role": "user", "content": "a film?"}, {"role": "assistant", "content": "good"}
    turns = [user, reply, {"role": "user", "content": "and the end?"}]
    answers = {
        name: [{"role": "assistant", "content": text}]
        for name, text in (("chosen", "tender"), ("rejected", "bad"))
    }
    rows = [{"id": f"p{n}", "prompt": turns, **answers} for n in range(4)]
    refused(
        ivg(*command(tmp_path, rows=rows)),
        "p0: a conversation, but the model has no chat template → give it a prompt, or use a chat"
        " model",
    )
    # The name is mended, and the folder is free: nothing had come of the first try.
    out = trained(tmp_path, "llama-chat", rows, sft={"max_steps": 1}, preference={"max_steps": 1})
    assert logged(out, "preference")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    words = ["generate", "--base", folder("llama-chat"), "--guide", out, "--mode", "eft-i"]
    asked = json.dumps({"messages": turns})
    result = ivg(*words, "--max-new-tokens", 4, "-q", stdin=asked)
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"preference": {"trl": {"bta": 1}}},
            'preference.trl: DPOConfig has no argument "bta" → did you mean beta?'),
        ({"preference": {"trl": {"beta": 1}}},
            'preference.trl: "beta" has a place of its own in the recipe → set it there'),
        ({"preference": {"trl": {"precompute_ref_log_probs": True}}},
            'preference.trl: "precompute_ref_log_probs" is not free here → leave it out'),
        ({"sft": {"trl": {"optim": "zebra"}}}, "sft: zebra is not a valid OptimizerNames"),
        ({"sft": {"trl": {"load_best_model_at_end": True}}}, "sft: "),
        ({"lora": {"target_modules": "zebra"}},
            "sft: Target modules zebra not found in the base model"),
        ({"train": {"report_to": "zebra"}}, 'train.report_to: no tracker "zebra" → one of all, '),
        ({"train": {"report_to": "wanb"}},
            'train.report_to: no tracker "wanb" → did you mean wandb?'),
        ({"train": {"report_to": "clearml"}},
            "train.report_to: clearml is not installed → pip install clearml, or leave it out"),
        ({"sft": {"batch_size": 6, "per_device_train_batch_size": 4}},
            "sft: batch_size 6 over 1 processes is 6 each → per_device_train_batch_size 4 does not"
            " divide it; choose one that does"),
        ({"init": {"layers": 3}}, "has 2 layers, and init.layers is 3 → fewer layers"),
    ],
)  # fmt: skip
def test_what_a_trainer_refuses_is_told_before_anything_is_trained(
    sections: dict[str, Any], told: str, tmp_path: Path
) -> None:
    """A preference section that fails after hours of fine-tuning would have cost them all."""
    init = {"model": folder("llama"), **sections.pop("init", {})}
    result = ivg(*command(tmp_path, init=init, **sections))
    assert result.exit_code == 2, result.exception
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert {each.name for each in (tmp_path / "out").iterdir()} <= {
        ".lock", "run.json", "recipe.yaml",
    }  # fmt: skip


def test_a_loss_that_trl_does_not_have_is_refused_by_the_recipe(tmp_path: Path) -> None:
    result = ivg(*command(tmp_path, preference={"loss": "sigmod"}))
    assert result.exit_code == 2
    assert 'got "sigmod" → did you mean sigmoid?' in result.stderr


def test_an_output_of_something_else_is_refused(half: Path, tmp_path: Path) -> None:
    out, words = tmp_path / "out", command(tmp_path)
    refused(
        ivg(*words[:-3], "-q"), "--out: a folder is to be made, and none is named → --out runs/mine"
    )
    out.mkdir()
    (out / "recipe.yaml").write_text("mine: 1\n")
    for flags in ([], ["--resume"]):
        told = f"{out}: holds files that no training run wrote → choose another --out"
        refused(ivg(*words, *flags), told)
    assert [each.name for each in out.iterdir()] == ["recipe.yaml"]
    assert (out / "recipe.yaml").read_text() == "mine: 1\n"
    shutil.rmtree(out)
    shutil.copytree(half / "out", out)
    before = {each.name: each.stat().st_mtime_ns for each in out.iterdir()}
    hint = "go on with --resume, or choose another --out"
    refused(ivg(*words), f"{out}: is there already and not empty → {hint}")
    result = ivg(*words, "--resume", "--beta", 0.2)
    assert f"error: {out}: belongs to run " in result.stderr
    assert "use the recipe and the pairs it was made with, or another --out" in result.stderr
    result = ivg(*command(tmp_path, rows=pairs(15)), "--resume")
    assert (result.exit_code, "belongs to run" in result.stderr) == (2, True)
    assert {each.name: each.stat().st_mtime_ns for each in out.iterdir()} == before


def test_the_second_of_two_writers_is_refused(tmp_path: Path) -> None:
    from ivgcli.records import TrainingFolder

    words = command(tmp_path)
    with TrainingFolder(tmp_path / "out", "7c1e0b92", "", False):
        hint = "wait for it, or choose another --out"
        refused(ivg(*words), f"{tmp_path}/out: another ivg is writing it → {hint}")


def test_a_reference_that_is_not_the_start_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, calls = implicit.load_trained, []

    def tampered(*given: Any) -> Any:
        model = load(*given)
        calls.append(model)
        if len(calls) == 2:
            with torch.no_grad():
                model.lm_head.weight *= 1.1
        return model

    monkeypatch.setattr(implicit, "load_trained", tampered)
    result = ivg(*command(tmp_path))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: preference: the first step's loss is ")
    assert result.stderr.endswith(
        " where 0 is: the reference is not the model that training starts from"
        " → report this, with the recipe\n"
    )
    assert not (tmp_path / "out" / "tuned").exists()
