"""The commands as a user runs them: tiny real networks on disk, files in, files out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from ivgcli.cli import app
from ivgcli.recipes import MODES, BonRecipe, GenerateRecipe, load, run_id
from tests.models import folder, pair, plain, tokenizer

EXPLICIT: dict[str, Any] = {
    "scalar": {"model": "scalar"},
    "token-q": {"model": "token-q"},
    "callable": {"callable": "tests.toys:vowels"},
}
LINES = [
    {"id": "sea", "prompt": "the film opens", "rating": 1.5, "tags": ["a", None], "mode": "mine"},
    {"prompt": "an effective but", "résumé": "naïve"},
    {"id": 7, "prompt": "a"},
]
KEYS = [("sea", 0), ("sea", 1), ("2", 0), ("2", 1), ("7", 0), ("7", 1)]
CONTRACT = {
    "id", "prompt", "response", "sample", "mode", "base", "guide", "seed", "tokens", "finish",
    "value", "base_logprob", "kl", "run",
}  # fmt: skip

MEASURED = ("value", "base_logprob", "kl")
"""Fields that are sums of floating-point numbers."""


def ivg(*arguments: object, stdin: str = "") -> Result:
    """Run the command line, and return what came of it."""
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin)


def done(*arguments: object, stdin: str = "") -> Result:
    """Run the command line, which has to end well."""
    result = ivg(*arguments, stdin=stdin)
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    return result


def records(path: Path | str) -> list[dict[str, Any]]:
    """Return the JSON lines of a file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def keys(found: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    """Return the (id, sample) of each record."""
    return [(record["id"], record["sample"]) for record in found]


def responses(path: Path | str) -> list[str]:
    """Return the texts of the responses in a file."""
    return [record["response"] for record in records(path)]


def assert_same(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> None:
    """Check that two runs wrote the same lines, whatever their rows.

    Sums over other batches are taken in another order: float32 has seven digits, of which the
    responses show six, and a difference of sums may lose one more.
    """
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert {**one, **dict.fromkeys(MEASURED)} == {**other, **dict.fromkeys(MEASURED)}
        for key in MEASURED:
            close = one[key] is other[key] or math.isclose(
                one[key], other[key], rel_tol=1e-5, abs_tol=2e-5
            )
            assert close, (one["id"], key, one[key], other[key])


def explicit(kind: str, **rest: Any) -> dict[str, Any]:
    """Return an explicit value of a guide."""
    value = dict(EXPLICIT[kind])
    if "model" in value:
        value["model"] = folder(value["model"])
    return {**value, **rest}


def written(path: Path, **keys: Any) -> Path:
    """Write a YAML file and return its path."""
    path.write_text(yaml.safe_dump(keys))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Three prompts, with fields of all kinds beside them."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


@pytest.fixture
def guide(tmp_path: Path) -> Path:
    """A guide with an implicit and a scalar explicit value."""
    implicit = pair("llama-tuned", "llama-reference")
    return written(tmp_path / "kind.yaml", implicit=implicit, explicit=explicit("scalar"))


@pytest.fixture
def common(prompts: Path, tmp_path: Path) -> list[object]:
    """Flags of a short run."""
    return ["--base", folder("llama"), "-i", prompts, "--max-new-tokens", 10, "-q", "-L", 3]


def check_trace(lines: list[dict[str, Any]], record: dict[str, Any], width: int) -> None:
    """Check the rankings of one response: who goes on, who ends, and who has won.

    Unfinished candidates are ranked by score, best first, ties to the lower number, and at most
    `width` of them go on; finished ones never do; the best of all finished ones is the response.
    """
    assert [line["chunk"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["over"] for line in lines] == [False] * (len(lines) - 1) + [True]
    ended = []
    for line in lines:
        found = line["candidates"]
        assert [each["candidate"] for each in found] == list(range(len(found)))
        live = [each for each in found if each["finish"] is None]
        live.sort(key=lambda each: (-each["score"], each["candidate"]))
        assert [each["rank"] for each in live] == [
            rank if rank < width else None for rank in range(len(live))
        ]
        finished = [each for each in found if each["finish"] is not None]
        assert all(each["rank"] is None for each in finished)
        ended += finished
    best = max(ended, key=lambda each: each["value"])  # the first of equals
    told = {key: record[key] for key in ("value", "finish", "tokens")}
    assert told == {key: best[key] for key in told}
    assert record["response"] == best["text"]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        (mode, kind)
        for mode, pairing in MODES.items()
        for kind in (EXPLICIT if "explicit" in pairing else ["scalar"])
    ],
)
def test_every_mode_keeps_the_contract(
    mode: str, kind: str, tmp_path: Path, prompts: Path, common: list[object]
) -> None:
    out, trace = tmp_path / "out.jsonl", tmp_path / "trace.jsonl"
    implicit = pair("llama-tuned", "llama-reference")
    guide = written(tmp_path / "kind.yaml", implicit=implicit, explicit=explicit(kind))
    flags = [*common, "--mode", mode, "--guide", guide, "--samples", 2, "--trace", trace]
    flags += ["-W", 2, "-K", 2, "--set", "token.candidates=5"]
    done("generate", *flags, "-o", out)
    found = records(out)
    assert keys(found) == KEYS
    recipe = load(GenerateRecipe, f"{out}.recipe.yaml")
    account = json.loads(Path(f"{out}.run.json").read_text())
    assert (account["run"], account["records"], account["failures"]) == (run_id(recipe), 6, [])
    assert account["tokens"] == sum(record["tokens"] for record in found)
    on_tokens, on_chunks = MODES[mode]
    rankings = records(trace)
    for record, line in zip(found, [line for line in LINES for _ in range(2)], strict=True):
        assert set(record) >= CONTRACT
        # What was beside the prompt is there still; only the response's own names win.
        passed = {key: value for key, value in line.items() if key not in ("id", "mode")}
        assert {key: record[key] for key in passed} == passed
        assert (record["mode"], record["base"], record["seed"]) == (mode, folder("llama"), 0)
        assert (record["guide"], record["run"]) == ("kind", run_id(recipe))
        assert record["finish"] in ("eos", "length")
        assert (record["tokens"] == 10) >= (record["finish"] == "length")
        assert record["base_logprob"] < 0
        assert (record["value"] is None) == (mode == "base")
        assert (record["kl"] == 0) == (on_tokens is None), "only token guidance leaves the base"
        if kind == "callable" and "explicit" in (on_chunks or on_tokens):
            assert record["value"] == sum(letter in "aeiou" for letter in record["response"])
        own = [each for each in rankings if (each["id"], each["sample"]) == keys([record])[0]]
        if on_chunks:
            check_trace(own, record, width=2)
        else:
            assert own == []
    # The recipe beside the output makes it again, to the byte; with other rows, to a last digit.
    again, narrow = tmp_path / "again.jsonl", tmp_path / "narrow.jsonl"
    done("generate", f"{out}.recipe.yaml", "-i", prompts, "-o", again, "-q")
    assert again.read_bytes() == out.read_bytes()
    done("generate", f"{out}.recipe.yaml", "-i", prompts, "-o", narrow, "-q", "--rows", 9)
    assert_same(records(narrow), found)


@pytest.mark.parametrize("by", ["implicit", "explicit", "reward"])
def test_best_of_n_keeps_the_best_of_what_it_drew(
    by: str, tmp_path: Path, prompts: Path, guide: Path, common: list[object]
) -> None:
    out, trace = tmp_path / "out.jsonl", tmp_path / "trace.jsonl"
    flags = [*common[:-2], "--guide", guide, "--by", by, "-n", 3, "--samples", 2, "--trace", trace]
    done("bon", *flags, "--reward", "tests.toys:vowels", "-o", out)
    found, choices = records(out), {keys([line])[0]: line for line in records(trace)}
    assert keys(found) == KEYS
    identity = run_id(load(BonRecipe, f"{out}.recipe.yaml"))
    for record in found:
        drawn = choices[keys([record])[0]]["candidates"]
        best = max(drawn, key=lambda each: each["value"])
        assert [each["candidate"] for each in drawn] == [0, 1, 2]
        assert [each["rank"] for each in drawn] == [0 if each is best else None for each in drawn]
        assert (record["value"], record["response"]) == (best["value"], best["text"])
        assert (record["mode"], record["n"], record["kl"]) == (f"bon-{by}", 3, 0)
        assert record["run"] == identity
        if by == "reward":
            assert record["value"] == sum(letter in "aeiou" for letter in record["response"])
    again, narrow = tmp_path / "again.jsonl", tmp_path / "narrow.jsonl"
    done("bon", f"{out}.recipe.yaml", "-i", prompts, "-o", again, "-q")
    assert again.read_bytes() == out.read_bytes()
    done("bon", f"{out}.recipe.yaml", "-i", prompts, "-o", narrow, "-q", "--rows", 2)
    assert_same(records(narrow), found)


def test_one_chunk_of_n_candidates_is_best_of_n(
    tmp_path: Path, guide: Path, common: list[object]
) -> None:
    flags = [*common[:-2], "--guide", guide]
    done("bon", *flags, "--by", "explicit", "-n", 4, "-o", tmp_path / "bon.jsonl")
    wide = ["-W", 1, "-K", 4, "--set", "chunk.chunk_length=null"]
    done("generate", *flags, "--mode", "cbs-e", *wide, "-o", tmp_path / "cbs.jsonl")
    kept = records(tmp_path / "bon.jsonl")
    assert {record.pop("n") for record in kept} == {4}
    searched = records(tmp_path / "cbs.jsonl")
    names = dict.fromkeys(("mode", "run"))
    assert_same([{**each, **names} for each in kept], [{**each, **names} for each in searched])


def test_greedy_base_writes_what_transformers_generates() -> None:
    prompt = "the film opens"
    flags = ["--base", folder("llama"), "--prompt", prompt, "--max-new-tokens", 12, "-q"]
    [record] = map(json.loads, done("generate", *flags, "--temperature", 0).stdout.splitlines())
    ids = torch.tensor([tokenizer("bytes")(prompt)["input_ids"]])
    theirs = plain("llama").generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0)[0]
    fresh = theirs[ids.shape[1] :]
    assert record["response"] == tokenizer("bytes").decode(fresh, skip_special_tokens=True)
    with torch.inference_mode():
        logits = plain("llama")(theirs[None]).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
    total = float(logits.gather(1, fresh[:, None]).sum())
    assert math.isclose(record["base_logprob"], total, rel_tol=1e-4)  # float32, six digits kept


def test_weight_zero_is_the_base_and_another_run(
    tmp_path: Path, guide: Path, common: list[object]
) -> None:
    flags = [*common, "--guide", guide, "--mode"]
    done("generate", *flags, "base", "-o", tmp_path / "base.jsonl")
    done("generate", *flags, "eft-i", "--weight", 0, "-o", tmp_path / "zero.jsonl")
    done("generate", *flags, "eft-i", "--weight", 2, "-o", tmp_path / "two.jsonl")
    base, zero, two = (records(tmp_path / f"{name}.jsonl") for name in ("base", "zero", "two"))
    assert [each["response"] for each in zero] == [each["response"] for each in base]
    assert {each["kl"] for each in zero} == {0}
    assert [each["response"] for each in two] != [each["response"] for each in base]
    assert len({each["run"] for each in [*base, *zero, *two]}) == 3


def test_the_mix_of_several_values_is_set_at_run_time(tmp_path: Path, common: list[object]) -> None:
    both = [explicit("scalar"), explicit("callable", weight=0.5)]
    mixed = written(tmp_path / "mixed.yaml", explicit=both)
    first = written(tmp_path / "first.yaml", explicit=explicit("scalar"))
    flags = [*common, "--mode", "cbs-e", "-W", 2, "-K", 3]

    def run(name: str, *more: object) -> list[dict[str, Any]]:
        done("generate", *flags, *more, "-o", tmp_path / name)
        return records(tmp_path / name)

    alone = run("alone", "--guide", first)
    none = run("none", "--guide", mixed, "--set", "guide.explicit.1.weight=0")
    much = run("much", "--guide", mixed, "--set", "guide.explicit.1.weight=9")
    assert_same(
        [{**each, "guide": "", "run": ""} for each in alone],
        [{**each, "guide": "", "run": ""} for each in none],
    )
    vowels = [sum(letter in "aeiou" for letter in each["response"]) for each in much]
    fewer = [sum(letter in "aeiou" for letter in each["response"]) for each in alone]
    assert sum(vowels) > sum(fewer), "nine times the vowels outweigh the scalar"
    assert len({each["run"] for each in (alone[0], none[0], much[0])}) == 3


def test_two_guides_fill_in_for_each_other(tmp_path: Path, common: list[object]) -> None:
    whole = written(
        tmp_path / "whole.yaml",
        name="tuned+scored",
        implicit=pair("llama-tuned", "llama-reference"),
        explicit=explicit("scalar"),
    )
    for name in ("tuned", "scored"):
        (tmp_path / name).mkdir()
    written(tmp_path / "tuned/guide.yaml", implicit=pair("llama-tuned", "llama-reference"))
    written(tmp_path / "scored/guide.yaml", explicit=explicit("scalar"))
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    done("generate", *common, "--mode", "ivg", "--guide", whole, "-o", one)
    parts = ["--guide", tmp_path / "tuned", "--guide", tmp_path / "scored"]
    done("generate", *common, "--mode", "ivg", *parts, "-o", two)
    assert one.read_bytes() == two.read_bytes()


def test_stdin_to_stdout_is_file_to_file(tmp_path: Path, prompts: Path, guide: Path) -> None:
    flags = ["--base", folder("llama"), "--guide", guide, "--mode", "ivg", "--max-new-tokens", 6]
    out = tmp_path / "out.jsonl"
    done("generate", *flags, "-i", prompts, "-o", out)
    piped = done("generate", *flags, stdin=prompts.read_text())
    assert piped.stdout == out.read_text()
    assert piped.stderr.startswith("3 responses, ")
    first = done("generate", *flags, "-i", prompts, "--limit", 1)
    assert_same([json.loads(first.stdout)], records(out)[:1])
    single = json.loads(done("generate", *flags, "--prompt", "a", "-q").stdout)
    assert (single["id"], single["prompt"]) == ("1", "a")


def test_conversations_go_through_the_chat_template() -> None:
    turns = [
        {"role": "user", "content": "a film?"},
        {"role": "assistant", "content": "is it"},
        {"role": "user", "content": "the end"},
    ]
    text = "<|user|>a film?<|end|><|assistant|>is it<|end|><|user|>the end<|end|><|assistant|>"
    flags = ["--base", folder("llama-chat"), "--max-new-tokens", 8, "-q"]
    talk, plain_text = ({"id": "x", **asked} for asked in ({"messages": turns}, {"prompt": text}))
    record = json.loads(done("generate", *flags, stdin=json.dumps(talk)).stdout)
    flags += ["--set", "base.chat=false"]
    bare = json.loads(done("generate", *flags, stdin=json.dumps(plain_text)).stdout)
    assert record["messages"] == turns
    assert "prompt" not in record
    assert (record["response"], record["base_logprob"]) == (bare["response"], bare["base_logprob"])


def test_alpaca_eval_is_one_array_of_the_same_responses(
    tmp_path: Path, prompts: Path, guide: Path, common: list[object]
) -> None:
    out, lines = tmp_path / "out.json", tmp_path / "out.jsonl"
    flags = [*common, "--guide", guide, "--mode", "cbs-i"]
    done("generate", *flags, "-o", lines)
    done("generate", *flags, "-o", out, "--format", "alpaca-eval")
    entries = json.loads(out.read_text())
    assert [entry["output"] for entry in entries] == responses(lines)
    assert [entry["instruction"] for entry in entries] == [line["prompt"] for line in LINES]
    assert {entry["generator"] for entry in entries} == {f"cbs-i:{folder('llama')}+kind"}
    assert not Path(f"{out}.part").exists()


def test_a_stop_string_ends_a_response_and_is_not_part_of_it(
    tmp_path: Path, common: list[object]
) -> None:
    free, cut = tmp_path / "free.jsonl", tmp_path / "cut.jsonl"
    flags = [*common[:-2], "--samples", 4, "--max-new-tokens", 30]
    done("generate", *flags, "-o", free)
    done("generate", *flags, "-o", cut, "--stop", "e", "--stop", "in")
    stopped = 0
    for whole, record in zip(records(free), records(cut), strict=True):
        places = [whole["response"].find(stop) for stop in ("e", "in")]
        ends = min((place for place in places if place >= 0), default=None)
        assert record["response"] == whole["response"][:ends]
        assert (record["finish"] == "stop") == (ends is not None)
        stopped += ends is not None
    assert stopped >= 3, "the tiny network hardly ever writes an e: choose another text"


def test_an_adapter_free_value_by_text_serves_another_tokenizer(
    tmp_path: Path, common: list[object]
) -> None:
    guide = written(tmp_path / "other.yaml", explicit={"model": folder("scalar-other")})
    result = done("generate", *common[:-3], "-L", 3, "--guide", guide, "--mode", "cbs-e")
    assert (
        f"{folder('scalar-other')} has another vocabulary than {folder('llama')}: it reads"
        " responses as text\n"
    ) in result.stderr
    values = [json.loads(line)["value"] for line in result.stdout.splitlines()]
    assert all(math.isfinite(value) for value in values)


def test_order_and_rows_change_nothing(tmp_path: Path, guide: Path, common: list[object]) -> None:
    lines = [{"id": f"p{number}", "prompt": f"the {number}"} for number in range(9)]
    flags = ["--base", folder("llama"), "--guide", guide, "--mode", "ivg", "-L", 3, "-q"]
    flags += ["--max-new-tokens", 8]
    runs = []
    for order, rows in ((lines, 4), (lines[::-1], 12), (lines[3:] + lines[:3], 7)):
        source = "".join(json.dumps(line) + "\n" for line in order)
        found = done("generate", *flags, "--rows", rows, stdin=source).stdout.splitlines()
        assert [json.loads(line)["id"] for line in found] == [line["id"] for line in order]
        runs.append(sorted(map(json.loads, found), key=lambda record: record["id"]))
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])


@pytest.mark.parametrize("mode", ["eft-i", "ivg", "eft-i+cbs-i"])
def test_guidance_in_bytes_says_what_it_bridged_whatever_order_rows_and_stops(
    mode: str, tmp_path: Path
) -> None:
    parts = {
        "implicit": pair("llama-other", "llama-other-reference"),
        "explicit": {"model": folder("scalar-other")},
    }
    guide = written(tmp_path / "other.yaml", **parts)
    lines = [{"id": f"p{number}", "prompt": f"the {number} fil"} for number in range(7)]
    flags = ["--base", folder("llama"), "--guide", guide, "--mode", mode, "-L", 3]
    flags += ["--max-new-tokens", 8, "-q"]
    runs = []
    for order, rows in ((lines, 4), (lines[::-1], 12), (lines[3:] + lines[:3], 7)):
        source = "".join(json.dumps(line) + "\n" for line in order)
        result = done("generate", *flags, "--rows", rows, stdin=source)
        found = [json.loads(line) for line in result.stdout.splitlines()]
        runs.append(sorted(found, key=lambda record: record["id"]))
    for record in runs[0]:
        bridged = record["vocabulary"]
        assert list(bridged) == ["outside", "aligned", "width", "passes"]
        # 330 tokens of other texts share bytes, and a few strings, with the base's 300.
        assert 0 < bridged["outside"] < 1
        assert 0 <= bridged["aligned"] <= 1
        assert bridged["width"] >= bridged["passes"] == 0
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            assert one["response"] == two["response"]
            ours, theirs = one.pop("vocabulary"), two["vocabulary"]
            assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-5)
            one["vocabulary"] = ours
    out = tmp_path / "out.jsonl"
    source = "".join(json.dumps(line) + "\n" for line in lines)
    whole = done("generate", *flags[:-1], "-o", out, stdin=source)
    assert "across vocabularies: " in whole.stderr
    assert "it guides tokens by their bytes" in whole.stderr
    kept = out.read_text()
    out.write_text("".join(kept.splitlines(keepends=True)[:3]) + '{"id": "p3", "resp')
    done("generate", *flags, "-o", out, "--resume", stdin=source)
    assert [each["response"] for each in records(out)] == [each["response"] for each in runs[0]]
