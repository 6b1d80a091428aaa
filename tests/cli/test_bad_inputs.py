"""What a user can get wrong: each ends in a sentence and exit code 2; no finished work is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

from ivgcli.cli import app
from ivgcli.models.network import Network
from ivgcli.records import open_responses
from tests.models import folder, pair, tokenizer

PROMPTS = '{"id": "a", "prompt": "the film"}\n{"id": "b", "prompt": "an effective but"}\n'
FINISHED = '{"id": "kept", "prompt": "x", "response": "y", "sample": 0, "run": "another"}\n'


def ivg(*arguments: object, stdin: str | bytes = "") -> Result:
    """Run the command line, and return what came of it."""
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin)


def generate(*arguments: object, stdin: str | bytes = PROMPTS) -> Result:
    """Run a short `ivg generate` over a tiny base, unless told otherwise."""
    base = [] if "--base" in arguments else ["--base", folder("llama")]
    return ivg("generate", *base, "--max-new-tokens", 6, "-q", *arguments, stdin=stdin)


def guided(place: Path, mode: str, **values: Any) -> list[object]:
    """Return the flags of a mode with a guide of these values."""
    path = place / "guide.yaml"
    path.write_text(yaml.safe_dump(values))
    return ["--mode", mode, "--guide", path]


def assert_refused(result: Result, told: str) -> None:
    """Check that a command ended with one sentence, of at most three lines, and wrote nothing."""
    assert result.stderr == f"error: {told}\n"
    assert result.stderr.count("\n") <= 3
    assert (result.exit_code, result.stdout) == (2, "")


# ---------------------------------------------------------------------------------------- models


def damaged(place: Path, damage: Callable[[Path], object]) -> Path:
    """Return a copy of the tiny base after `damage`."""
    shutil.copytree(folder("llama"), place / "model")
    damage(place / "model")
    return place / "model"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("./nowhere", "no such folder → check the path; a hub id looks like organisation/name"),
        ("a b", "neither a folder nor a hub id → check the path; a hub id looks like"
            " organisation/name"),
        ("absent.gguf", "no such file → check the path"),
        ("page.gguf", "not a GGUF file, whatever its name says → download it again"),
        ("notes.txt", "a file, but not a .gguf file → name a model folder, a .gguf file or a"
            " hub id"),
        ("empty", "not a local folder, and the hub could not provide it → check the name and the"
            " network, or download it first and give its folder"),
        ("./empty", "the folder holds no model (no config.json) → name a folder that"
            " save_pretrained wrote"),
        ("package:nobody_has_this/model.gguf", "the Python package nobody_has_this is not installed"
            " → pip install --no-deps nobody-has-this"),
    ],
)  # fmt: skip
def test_a_name_that_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("page.gguf").write_text("<!doctype html>")
    Path("notes.txt").touch()
    if name == "./empty":
        Path("empty").mkdir()
    assert_refused(generate("--base", name), f"{name}: {told}")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda model: (model / "config.json").write_text("{"), "not a valid JSON file"),
        (
            lambda model: (model / "config.json").write_text('{"model_type": "zebra"}'),
            "model type `zebra`",
        ),
        (lambda model: (model / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda model: os.truncate(model / "model.safetensors", 5000), "cannot be loaded ("),
        (
            lambda model: (model / "config.json").write_text(
                (model / "config.json")
                .read_text()
                .replace('"hidden_size": 32', '"hidden_size": 64')
            ),
            "its weights have other shapes than config.json says",
        ),
    ],
    ids=["config", "type", "no weights", "torn weights", "shapes"],
)
def test_a_damaged_model_is_named_with_its_damage(
    tmp_path: Path, damage: Callable[[Path], object], told: str
) -> None:
    model = damaged(tmp_path, damage)
    result = generate("--base", model)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {model}: cannot be loaded (")
    assert told in result.stderr
    assert result.stderr.endswith(" → check that it is a complete transformers model\n")
    assert result.stderr.count("\n") == 1


def test_heads_that_do_not_fit_are_named() -> None:
    assert_refused(
        generate("--base", folder("scalar")),
        f"{folder('scalar')}: a value model (LlamaForSequenceClassification), not a language model"
        " → use it as guide.explicit",
    )


@pytest.mark.parametrize(
    ("model", "head", "told"),
    [
        ("llama", "auto", "a language model (LlamaForCausalLM): it has no value head → train one"
            " with ivg train-explicit, or name a reward model"),
        ("token-q", "scalar", "a head with 300 outputs, not a scalar one → head: token-q"),
        ("scalar", "token-q", "a head with 1 outputs for 300 tokens → head: scalar, or name a"
            " checkpoint with one output per token"),
        ("two-labels", "auto", "a classifier with 2 labels, neither one value nor one for each"
            " token → name a reward model with one label, or a Python callable: module:function"),
    ],
)  # fmt: skip
def test_a_value_with_the_wrong_head(tmp_path: Path, model: str, head: str, told: str) -> None:
    value = {"model": folder(model), "head": head}
    flags = guided(tmp_path, "cbs-e", explicit=value)
    assert_refused(generate(*flags), f"{folder(model)}: {told}")


def test_token_guidance_that_must_share_the_vocabulary_says_what_differs(tmp_path: Path) -> None:
    value = pair("llama-other", "llama-other-reference")
    result = generate(*guided(tmp_path, "eft-i", implicit=value), "--set", "vocabulary=same")
    assert result.exit_code == 2
    assert re.fullmatch(
        rf"error: {folder('llama')} and {folder('llama-other')}: vocabulary: same, but token \d+ is"
        r" \"\S+\" in one and \"\S+\" in the other \(\d+ strings are common, \d+ of 300 at the same"
        r" id\) → use a guide of the base's family, or vocabulary: auto\n",
        result.stderr,
    )


USER_LINE = "generate --base mistralai/Mistral-7B-Instruct-v0.2 --guide tulu --mode ivg"


@pytest.mark.parametrize(
    "network", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}], ids=str
)
def test_without_a_network_the_model_is_named(tmp_path: Path, network: dict[str, str]) -> None:
    hidden = ("HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    environment = {key: value for key, value in os.environ.items() if key.upper() not in hidden}
    environment.update(network, HF_HOME=str(tmp_path))
    result = subprocess.run(
        [sys.executable, "-m", "ivgcli", *USER_LINE.split(), "--prompt", "hi"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: mistralai/Mistral-7B-Instruct-v0.2: not a local folder, and the hub could not"
        " provide it → check the name and the network, or download it first and give its folder\n"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test misses")
def test_a_device_that_is_not_there() -> None:
    assert_refused(
        generate("--device", "cuda"),
        'engine.device: "cuda", but torch sees no CUDA device → --device cpu',
    )


# ---------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", ': no prompts → write one {"prompt": ...} a line'),
        (b'{"prompt": "a"}\n{"prompt":\n{"prompt": "b"}\n',
            ":2: not JSON: Expecting value at column 11"),
        (b'{"prompt": "a"}\n\0\0\0\0\n', ":2: has a NUL byte → the file is damaged, or not text"),
        (b'{"prompt": "caf\xe9"}\n', ":1: byte 16 is not UTF-8 → save the file as UTF-8"),
        (b'{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}\n',
            ':2: id "1" is there already, at {source}:1 → give every prompt its own id'),
        (b'{"text": "a"}\n', ':1: no field "prompt" (found text) → rename the field that holds it'),
        (b'{"prompt": "a", "x": NaN}\n',
            ":1: holds NaN, Infinity or half a surrogate pair, which JSON does not have"),
    ],
    ids=["empty", "malformed", "NUL", "latin-1", "duplicate", "no prompt", "NaN"],
)  # fmt: skip
def test_a_prompt_file_that_cannot_be_read_touches_no_output(
    tmp_path: Path, content: bytes, told: str
) -> None:
    source, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(content)
    out.write_text(FINISHED)
    result = generate("-i", source, "-o", out, "--resume")
    assert_refused(result, f"{source}{told.replace('{source}', str(source))}")
    assert out.read_text() == FINISHED
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.jsonl", "out.jsonl"}


def test_all_problems_of_a_recipe_are_told_at_once(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "mode: base\nsampling: {temprature: 1, top_p: high}\nchunk: {beam_widht: 3}\n"
        "engine: {rows: 1.5}\n"
    )
    result = generate(recipe)
    assert (result.exit_code, result.stdout) == (2, "")
    first, *others = result.stderr.splitlines()
    assert first == f"error: {recipe}: 4 problems"
    assert sorted(others) == [
        f"  {recipe}:2: sampling.temprature: unknown key → did you mean temperature?",
        f'  {recipe}:2: sampling.top_p: expected a number, got "high"',
        f"  {recipe}:3: chunk.beam_widht: unknown key → did you mean beam_width?",
        f"  {recipe}:4: engine.rows: expected a whole number, got 1.5",
    ]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--mode ivg", "--mode: ivg needs an implicit and an explicit value, and no guide is given"
            " → add one with --guide, or choose --mode base"),
        ("--dtype zebra", '--dtype: expected auto, float32, bfloat16 or float16, got "zebra"'),
        ("--guide tullu", '--guide: no guide named "tullu" → did you mean tulu? shipped: critics,'
            " imdb, starling, summarize, tulu, ultra, zephyr; or give a YAML file or a folder with"
            " guide.yaml"),
        ("--device zebra", 'engine.device: no device "zebra" → cpu, cuda or cuda:N'),
    ],
)  # fmt: skip
def test_a_flag_that_does_not_fit(flags: str, told: str) -> None:
    assert_refused(generate(*flags.split()), told)


def failures(result: Result) -> list[dict[str, Any]]:
    """Return the records of stdout that hold an error."""
    return [each for each in map(json.loads, result.stdout.splitlines()) if each.get("error")]


def test_a_prompt_longer_than_the_context_fails_alone(tmp_path: Path) -> None:
    lines = [("a", "the film"), ("long", "xyz " * 60), ("c", "a")]
    source = "".join(json.dumps({"id": name, "prompt": text}) + "\n" for name, text in lines)
    result = generate(stdin=source)
    sentence = f"the prompt has 240 tokens for {folder('llama')}, whose context is 96 → shorten it"
    assert result.exit_code == 2
    assert result.stderr == (f"error: 1 record failed → their lines say why\n  long: {sentence}\n")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["id"] for each in found] == ["a", "long", "c"]
    assert [each["response"] is None for each in found] == [False, True, False]
    assert found[1]["error"] == sentence
    # Shortened, the record is all that is left to do.
    out, prompts = tmp_path / "out.jsonl", tmp_path / "prompts.jsonl"
    prompts.write_text(source)
    assert generate("-i", prompts, "-o", out).exit_code == 2
    kept = out.read_text().splitlines()
    prompts.write_text(source.replace("xyz " * 60, "xyz"))
    assert generate("-i", prompts, "-o", out, "--resume").exit_code == 0
    assert [line for line in out.read_text().splitlines() if '"long"' not in line] == [
        kept[0],
        kept[2],
    ]


def test_a_conversation_for_a_model_without_a_template_fails_alone() -> None:
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    result = generate(stdin=PROMPTS + json.dumps({"id": "talk", "messages": turns}) + "\n")
    assert result.exit_code == 2
    assert result.stdout.count("\n") == 3
    [failed] = failures(result)
    assert failed["id"] == "talk"
    assert failed["error"] == (
        f"{folder('llama')}: a conversation, but the model has no chat template"
        " → give it a prompt, or use a chat model"
    )


# ---------------------------------------------------------------------------------------- output


def test_an_output_that_holds_something_is_never_touched(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(FINISHED)
    hint = "go on with --resume, or choose another --out"
    assert_refused(generate("-o", out), f"{out}: is there already and not empty → {hint}")
    assert out.read_text() == FINISHED
    result = generate("-o", out, "--resume")
    assert result.exit_code == 2
    assert f"{out}:1: belongs to run another, and this is run " in result.stderr
    out.write_text("my notes\n")
    hint = "mend or remove the line"
    result = generate("-o", out, "--resume")
    assert_refused(result, f"{out}:1: not JSON: Expecting value at column 1 → {hint}")
    assert out.read_text() == "my notes\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_an_output_is_not_written_by_two(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with open_responses(str(out), keys=[("a", 0)], run="r", recipe_yaml="first: 1\n"):
        hint = "wait for it, or choose another --out"
        assert_refused(generate("-o", out), f"{out}: another ivg is writing it → {hint}")
    assert Path(f"{out}.recipe.yaml").read_text() == "first: 1\n"


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    assert_refused(generate("-o", tmp_path), f"{tmp_path}: is a directory")
    away = tmp_path / "no" / "out.jsonl"
    told = f"{away}: there is no folder {away.parent} → mkdir -p {away.parent}"
    assert_refused(generate("-o", away), told)


# ---------------------------------------------------------------------------------------- decoding


def test_a_beam_wider_than_the_rows(tmp_path: Path) -> None:
    flags = guided(tmp_path, "cbs-e", explicit="tests.toys:vowels")
    result = generate(*flags, "-W", 2, "-K", 3, "--rows", 5)
    told = "chunk: one search decodes W·K = 2·3 = 6 sequences, but rows is 5"
    assert_refused(result, f"{told} → --rows 6 or a smaller beam")


MINE = """
import math

def short(prompts, responses):
    return [1.0]

def words(prompts, responses):
    return ["good"] * len(responses)

def broken(prompts, responses):
    raise RuntimeError("a bug of mine")

def undefined(prompts, responses):
    return [math.nan if prompt.startswith("the") else 1.0 for prompt in prompts]
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module in the working directory, and its name."""
    name = "mine_" + re.sub(r"\W", "_", tmp_path.name)
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("nowhere:good", "no module nowhere → check the name; the working directory is searched"),
        ("{mine}:absent", "the module has no function absent → check the name"),
        ("{mine}:short", "returned 1 values for 2 responses → return one for each"),
        ("{mine}:words", "returned something that is no list of numbers (could not convert string"
            " to float: 'good')"),
    ],
)  # fmt: skip
def test_a_callable_that_keeps_no_promise(
    tmp_path: Path, mine: str, function: str, told: str
) -> None:
    name = function.format(mine=mine)
    # Both responses are valued at once: greedy, they have the same length.
    flags = guided(tmp_path, "cbs-e", explicit=name)
    result = generate(*flags, "-W", 1, "-K", 2, "--temperature", 0, stdin='{"prompt": "a"}\n')
    assert_refused(result, f"{name}: {told}")


def test_an_exception_of_the_users_function_keeps_its_traceback(tmp_path: Path, mine: str) -> None:
    result = generate(*guided(tmp_path, "cbs-e", explicit=f"{mine}:broken"))
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)
    assert str(result.exception) == "a bug of mine"


@pytest.mark.parametrize("mode", ["cbs-e", "eft-e"])
def test_a_value_that_is_not_a_number_fails_its_record_alone(
    tmp_path: Path, mine: str, mode: str
) -> None:
    result = generate(*guided(tmp_path, mode, explicit=f"{mine}:undefined"))
    assert result.exit_code == 2
    sentence = (
        f"{mine}:undefined: gave a number that is not finite → check it; a network may need a"
        " wider --dtype"
    )
    assert result.stderr == f"error: 1 record failed → their lines say why\n  a: {sentence}\n"
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["response"], first["error"]) == (None, sentence)
    assert second["value"] == 1.0


# ---------------------------------------------------------------------------------------- memory


def narrow(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let memory run out in every pass over more than `most` tokens."""
    read = Network.read

    def limited(self: Network, tokens: Any, segments: Sequence[Any], *rest: Any) -> Any:
        if tokens.shape[0] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(self, tokens, segments, *rest)

    monkeypatch.setattr(Network, "read", limited)


def test_out_of_memory_halves_the_rows_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "".join(json.dumps({"id": f"p{n}", "prompt": "the film"}) + "\n" for n in range(9))
    calm = generate("--rows", 8, stdin=source)
    prompt = len(tokenizer("bytes")("the film")["input_ids"])
    narrow(monkeypatch, most=2 * prompt + 1)  # all prompts are read at once, and two of them fit
    tight = generate("--rows", 8, stdin=source)
    assert tight.exit_code == 0, tight.stderr
    assert tight.stderr.splitlines() == [
        "warning: out of memory with 8 rows: going on with 4",
        "warning: out of memory with 4 rows: going on with 2",
    ]
    texts = [
        [json.loads(line)["response"] for line in run.stdout.splitlines()] for run in (calm, tight)
    ]
    assert texts[0] == texts[1]


def test_no_room_for_one_search_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Network.require_drivable
    monkeypatch.setattr(
        Network, "require_drivable", lambda self: (begun(self), narrow(monkeypatch, 0))
    )
    result = generate("--rows", 2)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "warning: out of memory with 2 rows: going on with 1",
        "error: engine.rows: out of memory with 1 rows, and one search needs 1 → lower beam_width,"
        " successors or max_new_tokens, or use a smaller dtype",
    ]
