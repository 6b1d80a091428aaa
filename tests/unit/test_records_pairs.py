"""Preference pairs in and out: what TRL takes, and what it takes of ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ivgcli.errors import RecordError
from ivgcli.records import (
    Prompt,
    open_pairs,
    pair_writers,
    preference,
    read_pairs,
    read_prompts,
    without_answers,
)

USER = {"role": "user", "content": "a film?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("good", "bad"))


def read(tmp_path: Path, *rows: Mapping[str, Any]) -> list[Any]:
    """Return the pairs of a file with these rows."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_pairs(str(path))


@pytest.mark.parametrize(
    ("row", "asked", "answers"),
    [
        ({"prompt": "x", "chosen": " good", "rejected": " bad"}, "x", (" good", " bad")),
        # An explicit prompt is not cut off a response that begins with it.
        ({"prompt": "x", "chosen": "x good", "rejected": "x bad"}, "x", ("x good", "x bad")),
        ({"chosen": "x is good", "rejected": "x is bad"}, "x is", (" good", " bad")),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, (USER,), ("good", "bad")),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, (USER,), ("good", "bad")),
        # UltraFeedback (binarized): a prompt as text beside whole conversations.
        (
            {
                "prompt": "a film?",
                "chosen": [USER, GOOD],
                "rejected": [USER, BAD],
                "messages": [USER],
            },
            (USER,),
            ("good", "bad"),
        ),
        (
            {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            (USER,),
            ("good", "bad"),
        ),
        ({"prompt": "a film?", "chosen": [GOOD], "rejected": [BAD]}, (USER,), ("good", "bad")),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, (USER,), ("good", "good")),
        ({"messages": [USER], "chosen": "good", "rejected": "bad"}, (USER,), ("good", "bad")),
    ],
)
def test_every_shape_of_a_pair_is_read(row, asked, answers, tmp_path):
    [pair] = read(tmp_path, {**row, "rating": 3})
    assert (pair.prompt.text if isinstance(asked, str) else pair.prompt.messages) == asked
    assert (pair.chosen, pair.rejected) == answers
    assert pair.prompt.extra == {"rating": 3}, "no other response passes through"
    assert pair.id == "1"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"prompt": "x"},
            'no field "chosen" (found prompt) → a pair has prompt, chosen and rejected',
        ),
        ({"prompt": "x", "chosen": "a", "rejected": None}, 'no field "rejected"'),
        ({"prompt": "x", "chosen": "a", "rejected": [BAD]}, "are not both texts or both lists"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "share no prompt"),
        ({"chosen": "good", "rejected": "bad"}, "share no prompt"),
        (
            {"prompt": [USER], "chosen": [GOOD, USER, GOOD], "rejected": [BAD]},
            '"chosen" is not one message of the assistant after the prompt',
        ),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": []}, '"rejected" is not one message'),
    ],
)
def test_what_is_no_pair_is_told_with_its_line(row, told, tmp_path):
    fine = {"id": "fine", "prompt": "x", "chosen": "a", "rejected": "b"}
    with pytest.raises(RecordError) as raised:
        read(tmp_path, fine, row)
    assert told in str(raised.value)
    assert raised.value.where == f"{tmp_path}/pairs.jsonl:2"


def test_two_pairs_of_one_id_and_an_empty_file_are_refused(tmp_path):
    row = {"id": "a", "prompt": "x", "chosen": "a", "rejected": "b"}
    with pytest.raises(RecordError, match='id "a" is there already'):
        read(tmp_path, row, row)
    with pytest.raises(RecordError, match="no pairs → write one"):
        read(tmp_path)


def test_reading_what_is_written_is_the_identity(tmp_path):
    for prompt in (Prompt("1", "x", None, {"n": 1}), Prompt("1", None, (USER,), {"n": 1})):
        [pair] = read(tmp_path, preference(prompt, "1", " good", "bad", {}))
        assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, " good", "bad")


@pytest.mark.parametrize("talk", [False, True])
def test_what_is_written_loads_in_datasets_and_is_a_preference_to_trl(talk, tmp_path):
    import datasets
    from trl.data_utils import extract_prompt, is_conversational, maybe_extract_prompt

    source = tmp_path / "prompts.jsonl"
    source.write_text(json.dumps({"prompt": "x", "messages": [USER], "chosen": "z", "n": 1}))
    [prompt] = map(without_answers, read_prompts(str(source)))
    fields = {"chosen_reward": 1.0, "rejected_reward": 0.0, "probability": 0.73, "run": "r"}
    pair = preference(prompt, "1", " good", " bad", fields, conversational=talk)
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(pair) + "\n")
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
    assert loaded.column_names == ["id", "prompt", "chosen", "rejected", *fields, "n"]
    [row] = loaded
    assert row == pair
    # TRL looks at whichever of its columns it meets first: all of them must tell the same.
    assert all(
        is_conversational({key: row[key]}) is talk for key in ("prompt", "chosen", "rejected")
    )
    assert maybe_extract_prompt(row) == row, "the prompt is explicit"
    whole = {key: row["prompt"] + row[key] for key in ("chosen", "rejected")}
    assert extract_prompt(whole)["prompt"] == row["prompt"]


class Initials:
    """Makes one pair of the first two responses of every prompt but those that begin with n."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def fits(self, responses: Sequence[Mapping[str, Any]]) -> bool:
        return "stale" not in responses[0]["response"]

    def pairs(self, responses: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        self.asked.append(responses[0]["id"])
        if responses[0]["id"].startswith("n"):
            return []
        return [{"id": responses[0]["id"], "chosen": responses[0]["response"]}]


def answers(identity: str, text: str = "é", error: str | None = None) -> list[dict[str, Any]]:
    """Return the responses of one prompt."""
    return [
        {"id": identity, "response": text, "sample": sample, "run": "r", "error": error}
        for sample in (0, 1)
    ]


def opened(out: Path | str, ids: Sequence[str], resume: bool = False) -> Any:
    """Open a file for pairs, and return its writer and what labels."""
    labeller = Initials()
    writer = open_pairs(
        str(out), ids=ids, responses=2, labeller=labeller, run="r", recipe_yaml="", resume=resume
    )
    return writer, labeller


def test_pairs_come_out_in_the_order_of_the_input_when_all_is_answered(tmp_path):
    out = tmp_path / "pairs.jsonl"
    writer, labeller = opened(out, ["a", "n", "b"])
    with writer:
        for identity in ("b", "n", "a"):
            writer.write(answers(identity))
            assert not out.exists()
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", "b"]
    assert labeller.asked == ["a", "n", "b"]
    # A prompt without a pair is known as done, and nothing has to be answered again.
    before = out.read_bytes()
    writer, _ = opened(out, ["a", "n", "b"], resume=True)
    with writer:
        assert writer.done == {"a", "n", "b"}
    assert out.read_bytes() == before


def test_a_prompt_with_some_of_its_responses_is_answered_again_as_a_whole(tmp_path):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "pairs.jsonl"
    for path in (whole, out):
        writer, _ = opened(path, ["a", "b"])
        with writer:
            writer.write(answers("a"))
            writer.write(answers("b"))
    journal = Path(f"{out}.responses.jsonl")
    content = journal.read_bytes()
    for cut in range(len(content)):
        journal.write_bytes(content[:cut])
        out.unlink(missing_ok=True)
        writer, _ = opened(out, ["a", "b"], resume=True)
        complete = content[:cut].count(b"\n") // 2
        with writer:
            assert writer.done == set(["a", "b"][:complete])
            for identity in ["a", "b"][complete:]:
                writer.write(answers(identity))
        assert out.read_bytes() == whole.read_bytes(), cut
        assert journal.read_bytes() == content


def test_responses_that_no_longer_fit_are_drawn_again(tmp_path):
    out = tmp_path / "pairs.jsonl"
    writer, _ = opened(out, ["a", "b"])
    with writer:
        writer.write(answers("a", "stale"))
        writer.write(answers("b"))
    writer, _ = opened(out, ["a", "b"], resume=True)
    with writer:
        assert writer.done == {"b"}
        writer.write(answers("a", "fresh"))
    assert [json.loads(line)["chosen"] for line in out.read_text().splitlines()] == ["fresh", "é"]


def test_a_failed_prompt_has_no_pair_and_is_tried_again(tmp_path):
    out = tmp_path / "pairs.jsonl"
    writer, _ = opened(out, ["a", "b"])
    with writer:
        writer.write(answers("a", error="too long"))
        writer.write(answers("b"))
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["b"]
    assert "too long" in Path(f"{out}.responses.jsonl").read_text()
    writer, _ = opened(out, ["a", "b"], resume=True)
    with writer:
        assert writer.done == {"b"}
        writer.write(answers("a"))
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", "b"]


def test_an_interrupted_run_keeps_its_responses_and_the_old_pairs(tmp_path):
    out = tmp_path / "pairs.jsonl"
    writer, _ = opened(out, ["a", "b"])
    with pytest.raises(KeyboardInterrupt), writer:
        writer.write(answers("b"))
        raise KeyboardInterrupt
    assert not out.exists()
    assert opened(out, ["a", "b"], resume=True)[0].done == {"b"}


@pytest.mark.parametrize("after", [False, True])
def test_a_stop_around_the_writing_of_the_pairs_loses_nothing(after, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "pairs.jsonl"
    real = pair_writers.replace

    def stopped(temporary: Path, path: Path) -> None:
        if after:
            real(temporary, path)
        raise KeyboardInterrupt

    for path, stop in ((whole, real), (out, stopped)):
        writer, _ = opened(path, ["a", "b"])
        monkeypatch.setattr(pair_writers, "replace", stop)
        try:
            with writer:
                for identity in ("b", "a"):
                    writer.write(answers(identity))
        except KeyboardInterrupt:
            assert path == out
    assert out.exists() is after
    monkeypatch.setattr(pair_writers, "replace", real)
    writer, _ = opened(out, ["a", "b"], resume=True)
    with writer:
        assert writer.done == {"a", "b"}
    assert out.read_bytes() == whole.read_bytes()
    assert {each.name for each in tmp_path.glob("pairs*")} == {
        "pairs.jsonl",
        "pairs.jsonl.recipe.yaml",
        "pairs.jsonl.responses.jsonl",
    }


def test_an_output_is_never_overwritten_by_chance(tmp_path):
    out = tmp_path / "pairs.jsonl"
    out.write_text("precious\n")
    with pytest.raises(RecordError, match="is there already and not empty → go on with --resume"):
        opened(out, ["a"])
    with pytest.raises(RecordError, match="is there, but not the responses it was made of"):
        opened(out, ["a"], resume=True)
    assert (out.read_text(), os.listdir(tmp_path)) == ("precious\n", ["pairs.jsonl"])
    other = tmp_path / "other.jsonl"
    with opened(other, ["a"])[0] as writer:
        writer.write(answers("a"))
    other.unlink()
    with pytest.raises(RecordError, match=r"other\.jsonl\.responses\.jsonl: is there already"):
        opened(other, ["a"])
    with pytest.raises(RecordError, match="a stream cannot be resumed"):
        opened("-", ["a"], resume=True)
