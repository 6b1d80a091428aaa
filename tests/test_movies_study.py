"""The film-review study as a user runs it, with networks made on the spot: values, modes, judges, report."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ivgcli.scoring.sentiment import vader

ROOT = Path(__file__).parent.parent
PROMPTS, SAMPLES = 48, 4
MODES = {
    "base": "base",
    "ft": "base",
    "bon-i-4": "bon-implicit",
    "bon-e-4": "bon-explicit",
    "eft-i-1": "eft-i",
    "eft-e-explicit": "eft-e",
    "cbs-e-explicit": "cbs-e",
    "eft-e-fudge": "eft-e",
    "cbs-e-fudge": "cbs-e",
    "eft-e-vas": "eft-e",
    "cbs-e-vas": "cbs-e",
    "eft-e-ivo": "eft-e",
    "cbs-e-ivo": "cbs-e",
    "args": "eft-e",
    "cbs-i": "cbs-i",
    "eft-i+cbs-i": "eft-i+cbs-i",
    "ivg-1": "ivg",
    "small-base": "base",
    "small-cbs-e": "cbs-e",
}
"""The systems of the study and their modes."""

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `QUICK=1 recipes/movies/study.sh` has filled."""
    pytest.importorskip("vaderSentiment")
    place = tmp_path_factory.mktemp("study")
    (place / "recipes").symlink_to(ROOT / "recipes")
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": beside, "PYTHONPATH": str(ROOT), "QUICK": "1"}
    result = subprocess.run(
        ["bash", "recipes/movies/study.sh"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return place / "runs/movies-quick"


def lines_of(path: Path) -> list[dict]:
    """Return the records of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_system_is_judged_on_every_prompt(study: Path) -> None:
    prompts = [line["prompt"] for line in lines_of(study / "base.jsonl")]
    assert len(prompts) == PROMPTS * SAMPLES
    for name, mode in MODES.items():
        judged = lines_of(study / "judged" / f"{name}.jsonl")
        assert [line["prompt"] for line in judged] == prompts
        assert {line["mode"] for line in judged} == {mode}
        texts = [line["response"] for line in judged]
        assert [line["rewards"]["gold"] for line in judged] == pytest.approx(
            vader([""] * len(texts), texts), abs=1e-6
        )
        assert all(line["rewards"]["learned"] is not None for line in judged)


def test_the_report_has_a_row_for_each_with_the_mean_of_its_lines(study: Path) -> None:
    with (study / "report/report.csv").open(encoding="utf-8", newline="") as stream:
        rows = {row["system"]: row for row in csv.DictReader(stream)}
    assert list(rows) == list(MODES)
    lines = lines_of(study / "report/metrics.jsonl")
    means = {
        line["system"]: line["value"]
        for line in lines
        if line["measure"] == "reward" and line["reward"] == "gold"
    }
    for name in MODES:
        rewards = [line["rewards"]["gold"] for line in lines_of(study / f"judged/{name}.jsonl")]
        assert means[name] == pytest.approx(sum(rewards) / len(rewards), abs=1e-6)
    figures = {path.name for path in (study / "report/figures").glob("*.png")}
    assert {"reward-kl.png", "reward-compute.png"} <= figures


@pytest.mark.parametrize("name", ["eft-i-1", "cbs-e-explicit", "ivg-1"])
def test_guidance_raises_the_reward_that_its_values_were_trained_for(
    study: Path, name: str
) -> None:
    """The gain over the base is above 0 by its 95 % interval, prompts resampled (n = 48)."""
    [gain] = [
        line
        for line in lines_of(study / "report/metrics.jsonl")
        if line["measure"] == "difference" and (line["system"], line["reward"]) == (name, "gold")
    ]
    assert gain["n"] == PROMPTS
    assert gain["low"] > 0


def test_guidance_costs_what_its_networks_read(study: Path) -> None:
    """Four candidates read more than one response does; best of 4 moves at most ln 4 − 3/4 nats."""

    def tokens(name: str, role: str) -> int:
        return sum(line["compute"][role]["tokens"] for line in lines_of(study / f"{name}.jsonl"))

    for name in ("cbs-e-explicit", "ivg-1", "bon-e-4"):
        assert tokens(name, "base") > 2 * tokens("base", "base")
        assert tokens(name, "value") > tokens("base", "base")
    best = lines_of(study / "bon-e-4.jsonl")
    assert {round(line["kl_choice"], 4) for line in best} == {0.6363}


@pytest.mark.parametrize("name", ["implicit", "explicit", "fudge", "vas", "ivo"])
def test_every_value_comes_with_its_report(study: Path, name: str) -> None:
    folder = study / name
    lines = [line for line in lines_of(folder / "metrics.jsonl") if line["stage"] == "report"]
    kind = "implicit" if name == "implicit" else "explicit"
    shares = [
        line for line in lines if line["measure"] == "pairwise_accuracy" and line["kind"] == kind
    ]
    assert [line["fraction"] for line in shares] == [0.1, 0.25, 0.5, 0.75, 1.0]
    if kind == "explicit":
        # At the end of a response its value goes with its reward, by the whole 95 % interval.
        [whole] = [
            line
            for line in lines
            if line["measure"] == "reward_spearman" and line["fraction"] == 1.0
        ]
        assert whole["low"] > 0
    assert (folder / "guide.yaml").is_file()
    assert (folder / "report.svg").is_file()


def test_the_first_step_of_dpo_shows_ln_2(study: Path) -> None:
    log = lines_of(study / "implicit" / "metrics.jsonl")
    first = next(line for line in log if line["stage"] == "preference")
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_ivo_learns_from_responses_that_its_first_value_has_guided(study: Path) -> None:
    rounds = [lines_of(study / "ivo" / "rollouts" / f"round-{n}.jsonl") for n in (1, 2)]
    means = [sum(line["reward"] for line in lines) / len(lines) for lines in rounds]
    assert len(rounds[0]) == len(rounds[1])
    assert means[1] > means[0]
