"""`ivg judge` as a user runs it: responses in, judged responses out, stops in between."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from ivgcli.cli import app
from ivgcli.recipes import JudgeRecipe, load, run_id
from ivgcli.workflows.rewards import Reward
from tests.models import folder
from tests.toys import vowels

REWARD = ["--reward", "vowels=tests.toys:vowels"]
RESPONSES = [
    {
        "id": f"p{number}",
        "prompt": f"film {number}",
        "response": " good" * number + " end",
        "sample": 0,
        "mode": "base",
        "finish": "eos",
        "run": "0badcafe",
        "rating": number / 2,
    }
    for number in range(1, 9)
]


def fussy(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Return lengths, and no number for the longest response."""
    return [math.nan if len(each) > 60 else len(each) for each in responses]


def ivg(*arguments: object, stdin: str = "") -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], input=stdin)


def done(*arguments: object, stdin: str = "") -> Result:
    result = ivg(*arguments, stdin=stdin)
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    return result


def lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def records(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def responses(tmp_path: Path) -> Path:
    path = tmp_path / "responses.jsonl"
    path.write_text(lines(RESPONSES))
    return path


def test_a_judged_record_is_the_record_with_its_rewards(responses: Path, tmp_path: Path) -> None:
    out = tmp_path / "judged.jsonl"
    done("judge", "-i", responses, "-o", out, *REWARD, "--reward", "tests.toys:vowels")
    recipe = load(JudgeRecipe, f"{out}.recipe.yaml")
    for before, after in zip(RESPONSES, records(out), strict=True):
        expected = vowels([""], [before["response"]])[0]
        assert after.pop("rewards") == {"vowels": expected}
        assert (after.pop("run"), after.pop("response_run")) == (run_id(recipe), "0badcafe")
        assert after == {key: value for key, value in before.items() if key != "run"}


def test_the_account_has_the_mean_and_its_interval(responses: Path, tmp_path: Path) -> None:
    out = tmp_path / "judged.jsonl"
    told = done("judge", "-i", responses, "-o", out, *REWARD).stderr
    numbers = vowels([""] * 8, [each["response"] for each in RESPONSES])
    mean = sum(numbers) / 8
    found = json.loads(Path(f"{out}.run.json").read_text())["means"]["vowels"]
    assert (found["n"], found["missing"]) == (8, 0)
    assert found["mean"] == pytest.approx(mean, rel=1e-5)
    assert found["low"] < mean < found["high"]
    assert f"{mean:+.3g}" in told


def test_rewards_are_added_to_those_of_an_earlier_judging(responses: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    done("judge", "-i", responses, "-o", first, *REWARD)
    done("judge", "-i", first, "-o", second, "--reward", "length=tests.cli.test_judge:fussy")
    for one, two in zip(records(first), records(second), strict=True):
        assert two["rewards"] == {**one["rewards"], "length": len(one["response"])}
        assert two["response_run"] == one["run"]


def test_a_reward_that_is_no_number_is_null_with_its_reason_and_tried_again(
    tmp_path: Path,
) -> None:
    long = [*RESPONSES, {**RESPONSES[0], "id": "long", "response": "o" * 61}]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines(long))
    flags = ["--reward", "length=tests.cli.test_judge:fussy"]
    result = ivg("judge", "-i", source, "-o", out, *flags)
    assert result.exit_code == 2
    assert "1 response without a judgement" in result.stderr
    last = records(out)[-1]
    assert last["rewards"] == {"length": None}
    assert last["reward_errors"]["length"].startswith(
        "tests.cli.test_judge:fussy: gave a number that is not finite"
    )
    again = ivg("judge", "-i", source, "-o", out, *flags, "--resume")
    assert "resuming: 8 of 9 responses are judged" in again.stderr


def test_a_record_that_failed_before_stays_as_it_was_and_has_no_reward(tmp_path: Path) -> None:
    failed = {"id": "x", "prompt": "p", "response": None, "sample": 0, "error": "too long"}
    result = done("judge", *REWARD, stdin=lines([RESPONSES[0], failed]))
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["error"] == "too long"
    assert last["rewards"] == {"vowels": None}
    assert last["reward_errors"] == {"vowels": "there is no response"}
    assert "1 record without a response" in result.stderr


@pytest.mark.parametrize("cut", [0, 1, 40, 199, 900, 1500])
def test_a_stopped_run_goes_on_to_the_same_lines(responses: Path, tmp_path: Path, cut: int) -> None:
    out = tmp_path / "judged.jsonl"
    done("judge", "-i", responses, "-o", out, *REWARD)
    whole = out.read_bytes()
    out.write_bytes(whole[:cut])
    done("judge", "-i", responses, "-o", out, *REWARD, "--resume")
    assert out.read_bytes() == whole


def test_a_response_that_has_changed_is_judged_again(responses: Path, tmp_path: Path) -> None:
    out = tmp_path / "judged.jsonl"
    done("judge", "-i", responses, "-o", out, *REWARD)
    changed = [{**each} for each in RESPONSES]
    changed[3]["response"] = " aaa"
    responses.write_text(lines(changed))
    told = done("judge", "-i", responses, "-o", out, *REWARD, "--resume").stderr
    assert "resuming: 7 of 8 responses are judged" in told
    assert records(out)[3]["rewards"]["vowels"] == vowels([""], [" aaa"])[0]


def test_several_inputs_go_to_a_folder_and_are_judged_by_what_is_loaded_once(
    responses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = tmp_path / "second.jsonl"
    second.write_text(lines(RESPONSES[:3]))
    out = tmp_path / "judged"
    built = []
    begin = Reward.__init__
    monkeypatch.setattr(
        Reward, "__init__", lambda self, *given: (built.append(given), begin(self, *given))[0]
    )
    done("judge", "-i", responses, "-i", second, "-o", out, *REWARD)
    assert len(built) == 1
    monkeypatch.undo()
    assert [len(records(out / name)) for name in ("responses.jsonl", "second.jsonl")] == [8, 3]
    one = tmp_path / "one.jsonl"
    done("judge", "-i", second, "-o", one, *REWARD)
    assert one.read_text() == (out / "second.jsonl").read_text()


def test_a_classifier_gives_the_log_odds_of_its_label(responses: Path) -> None:
    flags = ["--reward", f"c={folder('two-labels')}", "--reward-label", "LABEL_1"]
    up = done("judge", "-i", responses, *flags).stdout
    flags[-1] = "LABEL_0"
    down = done("judge", "-i", responses, *flags).stdout
    for one, other in zip(up.splitlines(), down.splitlines(), strict=True):
        # Of two labels, the log-odds of one are those of the other turned round.
        first, second = (json.loads(each)["rewards"]["c"] for each in (one, other))
        assert first == pytest.approx(-second, abs=1e-5)


def test_ours_and_theirs_change_places_with_one_minus_the_preference(tmp_path: Path) -> None:
    theirs = [{**each, "response": " bad" + each["response"]} for each in RESPONSES]
    ours_file, theirs_file = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    ours_file.write_text(lines(RESPONSES))
    theirs_file.write_text(lines(theirs))
    template = tmp_path / "short.yaml"
    template.write_text(
        'description: "for a short context"\nuser: "{prompt}|{first}|{second}"\n'
        "labels: {first: [a], second: [b]}\nmax_tokens: 1\n"
    )
    flags = ["--judge", folder("llama-chat"), "--template", template]
    here = done("judge", "-i", ours_file, "--against", theirs_file, *flags).stdout.splitlines()
    there = done("judge", "-i", theirs_file, "--against", ours_file, *flags).stdout.splitlines()
    for one, other in zip(map(json.loads, here), map(json.loads, there), strict=True):
        assert one["pairwise"]["preference"] + other["pairwise"]["preference"] == pytest.approx(
            1.0, abs=2e-5
        )
        assert len(one["pairwise"]["orders"]) == 2


def test_a_response_without_a_partner_is_null_and_stays_so_when_it_is_tried_again(
    tmp_path: Path,
) -> None:
    ours, theirs, out = (tmp_path / f"{name}.jsonl" for name in ("ours", "theirs", "out"))
    template = tmp_path / "short.yaml"
    template.write_text(
        'description: "for a short context"\nuser: "{prompt}|{first}|{second}"\n'
        "labels: {first: [a], second: [b]}\nmax_tokens: 1\n"
    )
    ours.write_text(lines(RESPONSES[:3]))
    theirs.write_text(lines([{**each, "response": " bad"} for each in RESPONSES[:2]]))
    flags = ["--judge", folder("llama-chat"), "--template", template, "--against", theirs]
    first = ivg("judge", "-i", ours, "-o", out, *flags)
    again = ivg("judge", "-i", ours, "-o", out, *flags, "--resume")
    for result in (first, again):
        assert result.exit_code == 2
        assert "holds no response to this prompt" in result.stderr
    assert "resuming: 2 of 3 responses are judged" in again.stderr
    assert [each["pairwise"]["preference"] is None for each in records(out)] == [False, False, True]


def test_generate_judge_and_report_are_a_pipe(tmp_path: Path) -> None:
    prompts = lines([{"prompt": f"the film {number}"} for number in range(4)])
    flags = ["--base", folder("llama"), "--max-new-tokens", 8]
    drawn = done("generate", *flags, stdin=prompts).stdout
    judged = done("judge", *REWARD, stdin=drawn).stdout
    table = done("report", "-", stdin=judged).stdout
    numbers = [json.loads(line)["rewards"]["vowels"] for line in judged.splitlines()]
    assert len(numbers) == 4
    row = next(line for line in table.splitlines() if line.startswith("| base"))
    shown = float(row.split("|")[3].split("±")[0])
    assert shown == pytest.approx(sum(numbers) / 4, abs=0.051)  # shown to one decimal


def test_alpaca_evals_files_are_written_and_its_annotations_read(
    responses: Path, tmp_path: Path
) -> None:
    folder, other, out = tmp_path / "alpaca", tmp_path / "ref.jsonl", tmp_path / "out.jsonl"
    theirs = [{**each, "response": "no", "base": "reference"} for each in RESPONSES]
    other.write_text(lines(theirs))
    flags = ["judge", "-i", responses, "--alpaca-eval", folder, "--against", other, "-o", out]
    done(*flags)
    ours = json.loads((folder / "model_outputs.json").read_text())
    base = json.loads((folder / "reference_outputs.json").read_text())
    assert [each["output"] for each in ours] == [each["response"] for each in RESPONSES]
    assert [each["output"] for each in base] == ["no"] * 8
    assert "pairwise" not in records(out)[0]
    preferences = [2.0, 1.0, 1.25, 1.5, 2.0, 1.75, 1.0, 2.0]
    annotated = [
        {
            "instruction": one["instruction"],
            "output_1": two["output"],
            "output_2": one["output"],
            "generator_1": "reference",
            "generator_2": one["generator"],
            "annotator": "somebody",
            "preference": preference,
        }
        for one, two, preference in zip(ours, base, preferences, strict=True)
    ]
    (folder / "annotations.json").write_text(json.dumps(annotated))
    done(*flags, "--resume")
    found = [each["pairwise"]["preference"] for each in records(out)]
    # A preference p for output_2, in [1, 2], is a probability of p − 1 that ours is better.
    wanted = [each - 1 for each in preferences]
    assert found == wanted
    account = json.loads(Path(f"{out}.run.json").read_text())
    annotated[0]["preference"] = None
    (folder / "annotations.json").write_text(json.dumps(annotated))
    out.unlink()
    result = ivg(*flags)
    assert result.exit_code == 2
    assert "p1: there is no annotation with a preference" in result.stderr
    assert records(out)[0]["pairwise"]["preference"] is None
    assert account["alpaca_eval"]["win_rate"] == pytest.approx(100 * sum(wanted) / 8)
    assert account["means"]["preference"]["mean"] == pytest.approx(sum(wanted) / 8)


def test_the_recipe_reads_back_and_names_the_run(responses: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "judge.yaml"
    recipe.write_text('rewards: {a: "tests.toys:vowels"}\n')
    told = done("judge", recipe, *REWARD, "--print-recipe").stdout
    assert sorted(yaml.safe_load(told)["rewards"]) == ["a", "vowels"]
    one = load(JudgeRecipe, flags={"pairwise": {"against": "f", "judge": "openai:m"}})
    two = load(
        JudgeRecipe,
        flags={"pairwise": {"against": "f", "judge": {"server": "openai:m", "workers": 2}}},
    )
    assert run_id(one) == run_id(two)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing is to be judged → --reward NAME"),
        (["--against", "x"], "pairwise.judge: missing"),
        (["--judge", "openai:", "--against", "x"], 'got "openai:"'),
        (["--reward", "nosuch.module:f"], "nosuch.module:f: no module nosuch.module"),
        ([*REWARD, "-i", "gone.jsonl"], "gone.jsonl: no such file"),
        ([*REWARD, "-i", "in.jsonl", "-o", "in.jsonl"], "would be written while it is read"),
        ([*REWARD, "-i", "in.jsonl", "-i", "two.jsonl"], "2 inputs have one output"),
        ([*REWARD, "-i", "in.jsonl", "-i", "in.jsonl", "-o", "d"], 'called "in.jsonl"'),
        ([*REWARD, "--resume"], "a stream cannot be resumed"),
        (
            ["--alpaca-eval", "ae", "-i", "in.jsonl", "-i", "two.jsonl", "-o", "d"],
            "2 inputs would be written to ae",
        ),
        (
            ["--alpaca-eval", "ae", "--against", "two.jsonl", "--judge", "openai:m"],
            "pairwise and alpaca_eval both say which response is the better one",
        ),
    ],
)
def test_what_cannot_be_judged_is_told_in_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in.jsonl", "two.jsonl"):
        Path(name).write_text(lines(RESPONSES))
    result = ivg("judge", *arguments, stdin=lines(RESPONSES))
    assert result.exit_code == 2, result.stderr
    assert sentence in result.stderr
    assert Path("in.jsonl").read_text() == lines(RESPONSES)
