"""`ivg train-explicit` as a user runs it: every kind of value, rounds, stops, and what it refuses."""

from __future__ import annotations

import functools
import gc
import json
import math
import shutil
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner, Result

from ivgcli import statistics
from ivgcli.cli import app
from ivgcli.recipes import InitSpec
from ivgcli.records import Prompt
from ivgcli.training import explicit, report, rollouts, runs
from ivgcli.training.reading import explicit_values
from ivgcli.training.sequences import Encoder, Example
from ivgcli.training.start import Start
from ivgcli.training.value_trainer import ValueTrainer
from tests.forks import Forks, undrawn
from tests.models import folder, tokenizer

HEADS = ("scalar", "token-q")
TARGETS = ("fudge", "fudge-bce", "monte-carlo", "td-lambda", "cd-q")
RESPONSES = ("given", "base", "guided")
LAM = 0.5

RECIPE: dict[str, Any] = {
    "data": {"held_out": 0, "max_length": 64},
    "reward": "tests.toys:vowels",
    "reward_model": {"learning_rate": 1e-3, "batch_size": 4, "max_steps": 2},
    "value": {"learning_rate": 1e-3, "batch_size": 8, "lam": LAM, "candidates": 4},
    "train": {"save_steps": 1000, "logging_steps": 1},
    "engine": {"device": "cpu"},
}
ROLLOUTS = {"responses": 1, "sampling": {"max_new_tokens": 5}}


@pytest.fixture(autouse=True, scope="module")
def unhurried() -> Iterator[None]:
    """Leave out what takes longer than a tiny network: figures, resampling, and libraries' garbage."""
    few = functools.partial(statistics.bootstrap_interval, n=10)
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_figure", undrawn)
        patch.setattr(statistics, "bootstrap_interval", few)
        yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """The parent of all runs that are killed."""
    parent = Forks()
    yield parent
    parent.close()


def ivg(*arguments: object, stdin: str = "") -> Result:
    """Run the command line, and return what came of it."""
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin)


def refused(result: Result, told: str) -> None:
    """Check that a command ended with one sentence."""
    assert (result.stderr, result.exit_code) == (f"error: {told}\n", 2), result.exception


def pairs(count: int = 8) -> list[dict[str, Any]]:
    """Return pairs in which a tender film beats a bad one."""
    ways = ["a good film", "tender", "fine", "a slow and tender shot of the sea"]
    return [
        {"id": f"p{n}", "prompt": f"film {n} is", "chosen": f" {ways[n % 4]}", "rejected": " bad"}
        for n in range(count)
    ]


def lines(place: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write records, and return their file."""
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def records(place: Path) -> list[dict[str, Any]]:
    """Return the records of a file."""
    return list(map(json.loads, place.read_text().splitlines()))


def command(place: Path, rows: Any = None, **sections: Any) -> list[object]:
    """Return the words that train on `rows` into `place`/out, under the recipe and `sections`."""
    recipe = {"init": {"model": folder("llama-tuned")}, **RECIPE}
    drawn = sections.pop("rollouts", None)
    if drawn is not None:
        recipe["rollouts"] = {"base": folder("llama"), **ROLLOUTS, **drawn}
    for name, section in sections.items():
        both = isinstance(section, Mapping) and isinstance(recipe.get(name), Mapping)
        recipe[name] = {**recipe[name], **section} if both else section
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    source = lines(place / "in.jsonl", pairs() if rows is None else rows)
    return ["train-explicit", place / "recipe.yaml", "-i", source, "-o", place / "out", "-q"]


def trained(place: Path, rows: Any = None, **sections: Any) -> Path:
    """Train, which has to end well, and return the folder."""
    place.mkdir(exist_ok=True)
    result = ivg(*command(place, rows, **sections))
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    return place / "out"


def logged(out: Path, stage: str) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that a stage wrote."""
    return [line for line in records(out / "metrics.jsonl") if line["stage"] == stage]


def weights(out: Path, name: str = "value") -> dict[str, torch.Tensor]:
    """Return the weights of a model of a folder."""
    return dict(load_file(out / name / "model.safetensors"))


def furthest(ours: Path, theirs: Path, name: str = "value") -> float:
    """Return the largest difference between the weights of two models."""
    one, other = weights(ours, name), weights(theirs, name)
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def contents(out: Path) -> dict[str, str]:
    """Return the rollouts of a folder, by file."""
    return {each.name: each.read_text() for each in (out / "rollouts").iterdir()}


# ----------------------------------------------------------------------------- the whole matrix


def learnt(out: Path, target: str, responses: str) -> list[tuple[Example, list[float]]]:
    """Return what the first round learns from, in tokens, and what the prefixes 0..n regress on.

    A new head's values are all 0, so that targets that look at values are known as well: of
    td-lambda (1 − λ)·0 + λ·g, of cd-q 0 before the end.
    """
    encoder = Encoder(Start(InitSpec(model=folder("llama-tuned"))).form)
    further: dict[str, list[float]] = {}
    if responses == "given":
        found = [
            (f"{row['id']}/{name}", Prompt(row["id"], row["prompt"], None), row[name], True)
            for row in pairs()
            for name in ("chosen", "rejected")
        ]
    else:
        found = [
            (
                f"{line['id']}/round-1/{line['sample']}",
                Prompt(line["id"], line["prompt"], None),
                line["response"],
                line["finish"] == "eos",
            )
            for line in records(out / "rollouts" / "round-1.jsonl")
        ]
        if target == "monte-carlo":
            for line in records(out / "rollouts" / "continuations-1.jsonl"):
                further.setdefault(line["id"], []).append(line["reward"])
    rows = []
    for identity, prompt, text, ended in found:
        example = encoder.encode(prompt, text, ended)
        reward = float(sum(char in "aeiou" for char in text))
        n = len(example.response_ids)
        goals = [reward] * (n + 1)
        for t in range(n):
            others = further.get(f"{identity}#{t}", [])
            goals[t] = (sum(others) + reward) / (len(others) + 1)
            if target == "td-lambda":
                goals[t] = LAM ** (n - t) * reward
            if target == "cd-q":
                goals[t] = 0.0
        rows.append((example, goals))
    return rows


@pytest.mark.parametrize("responses", RESPONSES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("head", HEADS)
def test_every_value_is_trained_on_its_target_and_guides_at_once(
    head: str, target: str, responses: str, tmp_path: Path
) -> None:
    """The first step's loss, of a head that begins at 0, is half the mean square of the targets.

    It is ln 2 for fudge-bce, σ(0) being ½. What is left behind is a folder for decoding.
    """
    drawn = responses != "given"
    out = trained(
        tmp_path,
        rollouts={} if drawn or target == "cd-q" else None,
        value={
            "head": head, "target": target, "responses": responses, "max_steps": 2,
            "batch_size": 8 if drawn else 16, "rounds": 2 if responses == "guided" else 1,
            "continuations": 2 if drawn else 1, "branches": 2,
        },
    )  # fmt: skip
    rows = learnt(out, target, responses)
    first = 0 if head == "scalar" else 1
    goals = [goal for _, each in rows for goal in each[first:]]
    expected = sum(0.5 * goal**2 for goal in goals) / len(goals)
    stage = "value-1" if responses == "guided" else "value"
    loss = logged(out, stage)[0]["loss"]
    # Sums of float32 in other parts: 1e-5 of it.
    assert loss == pytest.approx(math.log(2) if target == "fudge-bce" else expected, rel=1e-5)
    if drawn and target == "monte-carlo":
        assert len(records(out / "rollouts" / "continuations-1.jsonl")) > 8
    entry = yaml.safe_load((out / "guide.yaml").read_text())["explicit"]
    link = {"link": "log-sigmoid"} if target == "fudge-bce" else {}
    assert entry == {"model": {"model": "value"}, "head": head, **link}
    model = AutoModelForSequenceClassification.from_pretrained(out / "value")
    assert model.config.num_labels == (1 if head == "scalar" else len(tokenizer("bytes")))
    for mode in ("eft-e", "cbs-e"):
        words = ["generate", "--base", folder("llama"), "--guide", out, "--mode", mode]
        words += ["--prompt", "film 3 is", "--max-new-tokens", 3, "-q"]
        result = ivg(*words)
        assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
        assert json.loads(result.stdout)["guide"] == "out"


@pytest.mark.parametrize("head", HEADS)
def test_limits_of_targets_are_fudge_bit_for_bit(head: str, tmp_path: Path) -> None:
    """λ = 1, and a continuation that is the response itself."""
    ways = {"fudge": {}, "td-lambda": {"lam": 1.0}, "monte-carlo": {"continuations": 1}}
    found = [
        trained(tmp_path / target, value={"head": head, "target": target, "max_steps": 3, **rest})
        for target, rest in ways.items()
    ]
    assert furthest(found[0], found[1]) == furthest(found[0], found[2]) == 0.0
    other = trained(tmp_path / "other", value={"head": head, "target": "td-lambda", "max_steps": 3})
    assert furthest(found[0], other) > 1e-4


def test_the_state_after_the_end_is_trained(tmp_path: Path) -> None:
    """Every response is worth 1 and the others' prefixes as much: the value after EOS comes to 1."""
    value = {"max_steps": 60, "learning_rate": 3e-3}
    out = trained(tmp_path, reward="tests.toys:constant", value=value)
    rows = learnt(out, "fudge", "given")
    model = AutoModelForSequenceClassification.from_pretrained(out / "value").eval()
    values = explicit_values(model, "scalar", [example for example, _ in rows], 16)
    assert all(example.response_ids[-1] == model.config.eos_token_id for example, _ in rows)
    assert max(abs(float(each[-1]) - 1) for each in values) < 0.1


# ---------------------------------------------------------------------------------------- rounds

GUIDED: dict[str, Any] = {
    "value": {"responses": "guided", "rounds": 2, "max_steps": 3, "batch_size": 4},
    "rollouts": {"responses": 2, "held_out": 2, "token": {"weight": 2.0, "candidates": 8}},
    "train": {"save_steps": 1},
    "data": {"held_out": 2},
}
"""Two rounds of IVO on six prompts, and two that are kept."""


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds that nothing has disturbed."""
    return trained(tmp_path_factory.mktemp("rounds"), **GUIDED)


def test_the_second_round_s_responses_are_those_of_generate(rounds: Path, tmp_path: Path) -> None:
    """`ivg generate` under the first round's value, with the round's seed, writes the same responses."""
    ours = records(rounds / "rollouts" / "round-2.jsonl")
    asked = {line["id"]: {"id": line["id"], "prompt": line["prompt"]} for line in ours}
    source = lines(tmp_path / "prompts.jsonl", list(asked.values()))
    guide = {"explicit": {"model": str(rounds / "rounds" / "1"), "head": "scalar"}}
    (tmp_path / "guide.yaml").write_text(yaml.safe_dump(guide))
    words = ["generate", "--base", folder("llama"), "--guide", tmp_path / "guide.yaml"]
    words += ["--mode", "eft-e", "--weight", 2.0, "--candidates", 8, "--samples", 2]
    words += ["--max-new-tokens", 5, "--seed", ours[0]["seed"], "-i", source]
    result = ivg(*words, "-o", tmp_path / "responses.jsonl", "-q")
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    theirs = records(tmp_path / "responses.jsonl")
    assert len(ours) == 12
    for name in ("id", "sample", "response", "finish", "kl", "mode"):
        assert [line[name] for line in ours] == [line[name] for line in theirs], name
    first = records(rounds / "rollouts" / "round-1.jsonl")
    assert {line["mode"] for line in first} == {"base"}
    assert {line["mode"] for line in ours} == {"eft-e"}
    assert [line["response"] for line in first] != [line["response"] for line in ours]
    for line in (*first, *ours):
        assert line["reward"] == sum(char in "aeiou" for char in line["response"])


def test_the_second_round_learns_from_the_responses_of_both(rounds: Path, tmp_path: Path) -> None:
    """Its first loss, in a batch of all, is that of the first round's value on both files."""
    steps = {"value": {**GUIDED["value"], "batch_size": 24, "max_steps": 1}}
    out = trained(tmp_path, **{**GUIDED, **steps})
    model = AutoModelForSequenceClassification.from_pretrained(out / "rounds" / "1").eval()
    encoder = Encoder(Start(InitSpec(model=folder("llama-tuned"))).form)
    both = [
        *records(out / "rollouts" / "round-1.jsonl"),
        *records(out / "rollouts" / "round-2.jsonl"),
    ]
    examples = [
        encoder.encode(
            Prompt(line["id"], line["prompt"], None), line["response"], line["finish"] == "eos"
        )
        for line in both
    ]
    errors = [
        0.5 * (float(value) - line["reward"]) ** 2
        for line, values in zip(both, explicit_values(model, "scalar", examples, 8), strict=True)
        for value in values
    ]
    assert len(both) == 24
    [line] = logged(out, "value-2")
    assert line["loss"] == pytest.approx(sum(errors) / len(errors), rel=1e-4)


class Stop(Exception):
    """What stops a run in these tests."""


def stopping(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, call: int) -> None:
    """Let the call of that number, from 1, raise."""
    calls = [0]
    original = getattr(where, name)

    def counted(*given: Any, **rest: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise Stop
        return original(*given, **rest)

    monkeypatch.setattr(where, name, counted)


@pytest.mark.parametrize(
    ("where", "name", "call", "left"),
    [
        (rollouts, "generate", 1, set()),
        (explicit.Explicit, "reward", 1, {"round-1.drawn.jsonl"}),
        (ValueTrainer, "compute_loss", 3, {"round-1.jsonl"}),
        (rollouts, "generate", 2, {"round-1.jsonl", "rounds"}),
        (ValueTrainer, "compute_loss", 5, {"round-1.jsonl", "round-2.jsonl", "rounds"}),
        (rollouts, "generate", 3, {"round-1.jsonl", "round-2.jsonl", "rounds", "value"}),
        (runs, "finished", 1, {"held-out.jsonl", "rounds", "value"}),
    ],
    ids=["first-drawing", "first-reward", "first-training", "second-drawing", "second-training",
        "held-out", "report"],
)  # fmt: skip
def test_a_run_that_was_stopped_comes_to_the_same_end(
    where: Any, name: str, call: int, left: set[str], rounds: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Before, inside and between rounds; nothing is drawn again, and no weight is another one."""
    words = command(tmp_path, **GUIDED)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopping(patch, where, name, call)
        assert isinstance(ivg(*words).exception, Stop)
    there = {each.name for each in (*out.iterdir(), *(out / "rollouts").glob("*"))}
    assert left <= there
    assert "guide.yaml" not in there
    assert ("value" in there) == ("value" in left)
    drawings: list[int] = []
    generate = rollouts.generate

    def counted(recipe: Any, prompts: Any, writer: Any, *rest: Any) -> Any:
        drawings.append(len(prompts) * recipe.sampling.samples - len(writer.done))
        return generate(recipe, prompts, writer, *rest)

    monkeypatch.setattr(rollouts, "generate", counted)
    result = ivg(*words, "--resume")
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    whole = {"first-drawing": [12, 12, 4], "first-reward": [0, 12, 4]}
    kept = sum(f"{each}.jsonl" in left for each in ("round-1", "round-2", "held-out"))
    expected = [12, 12, 4][kept:] if "held-out.jsonl" not in left else []
    if where is explicit.Explicit:
        expected = whole["first-reward"]
    assert drawings == expected
    assert contents(out) == contents(rounds)
    assert furthest(out, rounds) == furthest(out, rounds, "rounds/1") == 0.0
    ours, theirs = ({each.name for each in place.iterdir()} for place in (out, rounds))
    assert ours == theirs
    for stage in ("value-1", "value-2", "report"):
        mine, others = logged(out, stage), logged(rounds, stage)
        for line in (*mine, *others):
            # Rates of the clock.
            for clock in [key for key in line if "second" in key or "runtime" in key]:
                del line[clock]
        assert mine == others, stage
    stages = json.loads((out / "run.json").read_text())["stages"]
    assert {stage: each["steps"] for stage, each in stages.items()} == {"value-1": 3, "value-2": 3}


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_value(rounds: Path, tmp_path: Path, forks: Forks) -> None:
    """SIGKILL at a step of each round, once while its checkpoint is half written, then --resume."""
    words = [*command(tmp_path, **GUIDED), "--resume"]
    for stage, fault in (("value-1", "kill"), ("value-2", "tear"), ("value-2", "kill")):
        status, said = forks.run(tmp_path / "log", words, **{fault: [stage, 2]})
        assert status == -signal.SIGKILL, said
        assert not (tmp_path / "out" / "value").exists()
    status, said = forks.run(tmp_path / "log", words)
    assert status == 0, said
    assert contents(tmp_path / "out") == contents(rounds)
    for name in ("rounds/1", "value"):
        assert furthest(tmp_path / "out", rounds, name) == 0.0


def test_a_finished_run_is_left_alone(rounds: Path, tmp_path: Path) -> None:
    shutil.copytree(rounds.parent, tmp_path, dirs_exist_ok=True)
    words = ["train-explicit", tmp_path / "recipe.yaml", "-i", tmp_path / "in.jsonl"]
    before = {each: each.stat().st_mtime_ns for each in (tmp_path / "out").rglob("*.jsonl")}
    result = ivg(*words, "-o", tmp_path / "out", "--resume")
    assert (result.exit_code, result.stderr) == (0, f"{tmp_path}/out is finished\n")
    assert {each: each.stat().st_mtime_ns for each in before} == before


# ------------------------------------------------------------------------------ several processes


@pytest.mark.slow
def test_two_processes_draw_once_and_train_the_same_value(tmp_path: Path, forks: Forks) -> None:
    """The first one draws and both train: the same sum of gradients in another order.

    SGD moves by it alone, so that float32's rounding stays at 1e-6 over six steps. AdamW would
    divide rounding by rounding where a gradient vanishes. The second round's responses are drawn
    under a value that differs by so little that the same tokens come out.
    """
    plain = {"trl": {"optim": "sgd"}, "learning_rate": 0.01, "max_steps": 3, "batch_size": 4}
    sections = {
        **GUIDED, "reward": None, "reward_model": plain, "value": {**GUIDED["value"], **plain},
    }  # fmt: skip
    # Eight pairs fill the steps. Of those left over, accelerate would show each process some twice.
    alone = trained(tmp_path / "alone", pairs(10), **sections)
    (tmp_path / "both").mkdir()
    words = command(tmp_path / "both", pairs(10), **sections)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert forks.run(tmp_path / "log", words, ranks=2, port=port) == (0, "")
    both = tmp_path / "both" / "out"
    account = json.loads((both / "run.json").read_text())
    assert account["processes"] == 2
    assert {name: each["steps"] for name, each in account["stages"].items()} == {
        "reward_model": 3, "value-1": 3, "value-2": 3,
    }  # fmt: skip
    for name in ("round-1", "round-2", "held-out"):
        ours, theirs = (records(out / "rollouts" / f"{name}.jsonl") for out in (both, alone))
        assert [line["response"] for line in ours] == [line["response"] for line in theirs]
    for name in ("reward-model", "rounds/1", "value"):
        assert furthest(both, alone, name) < 1e-6
    moved = weights(alone)
    start = dict(load_file(Path(folder("llama-tuned")) / "model.safetensors"))
    assert max(float((moved[key] - start[key]).abs().max()) for key in start if key in moved) > 1e-4


# ------------------------------------------------------------------------------ a given reward


def test_prompts_are_enough_where_responses_are_drawn_and_the_reward_is_given(
    tmp_path: Path,
) -> None:
    """The report then sets the best against the worst held-out response of a prompt."""
    rows = [{"id": f"q{n}", "prompt": f"film {n} is", "note": "kept out"} for n in range(10)]
    sections = {"value": {"responses": "base", "max_steps": 2}, "data": {"held_out": 4}}
    out = trained(tmp_path, rows, **sections, rollouts={"responses": 3})
    held_out = records(out / "rollouts" / "held-out.jsonl")
    assert len(held_out) == 12
    rewards: dict[str, set[float]] = {}
    for line in held_out:
        rewards.setdefault(line["id"], set()).add(line["reward"])
    differing = sum(len(those) > 1 for those in rewards.values())
    found = logged(out, "report")
    accuracy = [line for line in found if line["measure"] == "pairwise_accuracy"]
    assert {line["n"] for line in accuracy} == {differing}
    [error] = [line for line in found if line["measure"] == "calibration_error"]
    assert error["n"] == 5 * len(held_out)
    assert "note" not in (out / "rollouts" / "round-1.jsonl").read_text()


def test_prompts_alone_are_not_enough_otherwise(tmp_path: Path) -> None:
    rows = [{"prompt": f"film {n} is"} for n in range(4)]
    what = 'no field "chosen" (found prompt) → a pair has prompt, chosen and rejected'
    drawn = {"value": {"responses": "base"}, "rollouts": {}}
    for sections in ({"reward": None, **drawn}, {}):
        refused(ivg(*command(tmp_path, rows, **sections)), f"{tmp_path}/in.jsonl:1: {what}")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["pairs", "prompts"])
def test_what_is_held_out_may_be_of_the_other_kind(given: str, tmp_path: Path) -> None:
    """Found as an AttributeError at the end of training."""
    both = {"pairs": pairs(), "prompts": [{"prompt": f"the film {n}"} for n in range(4)]}
    other = "prompts" if given == "pairs" else "pairs"
    held_out = lines(tmp_path / "held-out.jsonl", both[other])
    sections = {"value": {"responses": "base", "max_steps": 1}, "data": {"held_out": str(held_out)}}
    out = trained(tmp_path, both[given], **sections, rollouts={"responses": 2})
    accuracy = [line for line in logged(out, "report") if line["measure"] == "pairwise_accuracy"]
    assert accuracy
    if other == "pairs":
        assert {line["n"] for line in accuracy} == {8}


@pytest.mark.parametrize("responses", ["given", "base"])
def test_a_reward_that_is_no_number_stops_the_run(responses: str, tmp_path: Path) -> None:
    """What was drawn is kept, and nothing looks like a value."""
    rows = [{**row, "prompt": f"{'an' if row['id'] == 'p2' else 'a'} film"} for row in pairs(4)]
    name = "tests.toys:undefined_for_the_second"
    words = command(tmp_path, rows, reward=name, value={"responses": responses}, rollouts={})
    identity = "p2/chosen" if responses == "given" else "p2/round-1/0"
    what = f"{identity}: has no reward: {name}: gave a number that is not finite"
    refused(ivg(*words), f"{what} → check it; a network may need a wider --dtype")
    there = {each.name for each in (tmp_path / "out").iterdir()}
    assert not {"value", "guide.yaml", ".value.partial"} & there
    if responses == "base":
        drawn = tmp_path / "out" / "rollouts" / "round-1.drawn.jsonl"
        assert [line["id"] for line in records(drawn)] == ["p0", "p2"]


def test_a_reward_model_s_finished_stage_outlives_a_failure(tmp_path: Path) -> None:
    words = command(tmp_path, reward=None, value={"learning_rate": 1e30, "max_steps": 3})
    result = ivg(*words)
    assert result.stderr.startswith("error: training: diverged: the loss of step 2")
    assert {each.name for each in (tmp_path / "out").iterdir()} == {
        ".lock", "checkpoints", "metrics.jsonl", "recipe.yaml", "reward-model", "run.json",
    }  # fmt: skip
    assert not (tmp_path / "out" / "checkpoints" / "value" / "checkpoint-3").exists()


def test_a_classifier_s_label_is_a_reward(tmp_path: Path) -> None:
    spec = {"model": folder("two-labels"), "label": "LABEL_1"}
    rows = pairs(4)
    value = {"batch_size": 8, "max_steps": 1}
    out = trained(tmp_path, rows, reward=spec, value=value)
    model = AutoModelForSequenceClassification.from_pretrained(folder("two-labels")).eval()
    squares = []
    for row in rows:
        for name in ("chosen", "rejected"):
            ids = tokenizer("bytes")(row["prompt"] + row[name])["input_ids"]
            with torch.no_grad():
                logits = model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1])
            ended = tokenizer("bytes")(row[name])["input_ids"]
            squares += [0.5 * float(logits[1] - logits[0]) ** 2] * (len(ended) + 2)
    assert logged(out, "value")[0]["loss"] == pytest.approx(sum(squares) / len(squares), rel=1e-4)


def test_a_mode_that_takes_an_implicit_value_needs_one(tmp_path: Path) -> None:
    """Found as a traceback at the beginning of the second round."""
    sections = {**GUIDED, "rollouts": {"mode": "ivg"}}
    result = ivg(*command(tmp_path, **sections))
    what = "rollouts.mode: ivg takes an implicit value, too → name a guide that has one, or mode: eft-e"
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert what in result.stderr
    pair = {"tuned": folder("llama-tuned"), "reference": folder("llama-reference")}
    chunk = {"beam_width": 1, "successors": 2, "chunk_length": 2}
    guide = {"implicit": pair}
    trained(tmp_path, **{**sections, "rollouts": {"mode": "ivg", "chunk": chunk}}, guide=guide)
    drawn = records(tmp_path / "out" / "rollouts" / "round-2.jsonl")
    assert {line["mode"] for line in drawn} == {"ivg"}


# ------------------------------------------------------------------------------------- what is told


def test_bars_say_what_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no terminal, a line every half minute; here, at every count."""
    monkeypatch.setattr("ivgcli.console.HEARTBEAT_SECONDS", 0.0)
    words = command(tmp_path, **{**GUIDED, "reward": None})
    told = ivg(*words[:-1]).stderr
    for line in (
        "6 pairs trained on", "2 pairs held out",
        "reward model: 1/2 steps", "drawing round-1: 12/12 responses", "rewards: 12/12 responses",
        "value, round 1 of 2: 2/3 steps", "drawing round-2: ", "value, round 2 of 2: 3/3 steps",
        "drawing held-out: 4/4 responses", "reading values: 4/4 responses",
    ):  # fmt: skip
        assert line in told
    assert f"{tmp_path}/out is finished" in told


def test_what_a_network_has_no_positions_for_is_left_out(tmp_path: Path) -> None:
    """Of pairs before the reward model, and of the report's as well: GPT-2 here has 96."""
    rows = [*pairs(8), {"id": "long", "prompt": "a", "chosen": " bad film" * 80, "rejected": " b"}]
    sections = {"init": {"model": folder("gpt2")}, "data": {"max_length": 1024, "held_out": 0}}
    result = ivg(*command(tmp_path, rows, reward=None, value={"max_steps": 1}, **sections)[:-1])
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    told = "8 pairs trained on, 1 left out (a response ends beyond 96 tokens)\n"
    assert told in result.stderr


# ---------------------------------------------------------------------------- compared with a pair


def test_a_guide_of_the_other_kind_is_compared_with(tmp_path: Path, rounds: Path) -> None:
    """Both commands: agreement at every fraction, on as many pairs as are held out."""
    sections = {"data": {"held_out": 3}, "value": {"max_steps": 1}}
    pair = {"implicit": {"tuned": folder("llama-tuned"), "reference": folder("llama-reference")}}
    out = trained(tmp_path, guide=pair, **sections)
    found = [line for line in logged(out, "report") if line["measure"] == "agreement"]
    assert [(line["fraction"], line["n"]) for line in found] == [
        (fraction, 3) for fraction in (0.1, 0.25, 0.5, 0.75, 1.0)
    ]
    kinds = {line["kind"] for line in logged(out, "report") if "accuracy" in line["measure"]}
    assert kinds == {"implicit", "explicit"}
    source = lines(tmp_path / "in.jsonl", pairs())
    (tmp_path / "implicit.yaml").write_text(
        yaml.safe_dump({"init": folder("llama-tuned"), "sft": None, "preference": {"max_steps": 1}})
    )
    words = ["train-implicit", tmp_path / "implicit.yaml", "-i", source, "--guide", rounds]
    words += ["--held-out", 3, "--device", "cpu", "-o", tmp_path / "implicit", "-q"]
    result = ivg(*words)
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    theirs = [
        line for line in logged(tmp_path / "implicit", "report") if line["measure"] == "agreement"
    ]
    assert [line["n"] for line in theirs] == [3] * 5


def test_an_unfinished_report_leaves_no_lines_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = command(tmp_path, data={"held_out": 3}, value={"max_steps": 1})
    with monkeypatch.context() as patch:
        stopping(patch, report, "draw_figure", 1)
        assert isinstance(ivg(*words).exception, Stop)
    first = logged(tmp_path / "out", "report")
    assert first
    assert ivg(*words, "--resume").exit_code == 0
    second = logged(tmp_path / "out", "report")
    assert second == first
    places = [
        (line["measure"], line["kind"], line.get("fraction"), line.get("bin")) for line in second
    ]
    assert len(set(places)) == len(places)
