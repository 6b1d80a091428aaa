"""The whole study on tiny networks, as a user runs it: pairs, both kinds of value, decoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ivgcli.scoring.sentiment import vader
from ivgcli.statistics import as_numbers, bootstrap_interval

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that `recipes/tiny/study.sh` has filled."""
    pytest.importorskip("vaderSentiment")
    place = tmp_path_factory.mktemp("study")
    (place / "recipes").symlink_to(ROOT / "recipes")
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": beside, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        ["bash", "recipes/tiny/study.sh"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return place / "runs" / "tiny"


def lines_of(path: Path) -> list[dict]:
    """Return the records of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["2-eft-i", "3-cbs-e-fudge", "6-ivg"])
def test_guidance_raises_the_reward_that_its_value_was_trained_for(study: Path, name: str) -> None:
    """The gain over the base is above 0 by its 95 % interval, prompts resampled (n = 48)."""

    def rewards(file: str) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for line in lines_of(study / f"{file}.jsonl"):
            found.setdefault(line["prompt"], []).append(vader([""], [line["response"]])[0])
        return {prompt: sum(those) / len(those) for prompt, those in found.items()}

    base, guided = rewards("1-base"), rewards(name)
    gains = as_numbers([guided[prompt] - base[prompt] for prompt in base])
    interval = bootstrap_interval(lambda drawn: float(gains[drawn].mean()), len(gains))
    assert interval is not None
    assert interval[0] > 0


@pytest.mark.parametrize("name", ["implicit", "fudge", "vas", "ivo"])
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
    # Rewards have a standard deviation of about 0.3 and there are about 860: the mean's is 0.01.
    assert means[1] > means[0] + 0.02
