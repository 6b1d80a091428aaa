"""`ivg guide`: a pair explained on a page, or as JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ivgcli.cli import app
from ivgcli.models.vocabulary import compare
from tests.models import folder, tokenizer


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with guides, and networks of which the weights are gone."""
    monkeypatch.chdir(tmp_path)
    names = ["llama", "llama-tuned", "llama-metaspace", "llama-permuted", "llama-renamed", "words"]
    for name in (*names, "scalar"):
        shutil.copytree(folder(name), tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
    for name in names[1:]:
        text = f"implicit: {{tuned: {name}, reference: {name}}}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def guided(words: str) -> Result:
    return CliRunner().invoke(app, ["guide", *words.split()])


def spoken(words: str) -> str:
    """Return what the command prints, as one line."""
    result = guided(words)
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    return " ".join(result.stdout.split())


def test_an_overlapping_pair_is_explained_with_its_numbers(here):
    match = compare(tokenizer("bytes"), tokenizer("metaspace"))
    text = spoken("llama-metaspace.yaml --base llama")
    assert "base llama byte-level BPE, 300 tokens weights: 148 KiB as float32" in text
    count = len(tokenizer("metaspace"))
    assert f"tuned llama-metaspace overlapping: SentencePiece BPE, {count} tokens" in text
    assert f"{match.shared_strings} strings in common, {match.shared_ids} of the base's 300" in text
    assert f"{match.shared_bytes} of the base's tokens are one token here, by their bytes" in text
    assert 'token 0 is "<|pad|>" to the base and "<unk>" here' in text
    assert text.count("token guidance: in bytes chunk ranking: as text") == 2
    assert "compares with the base as tuned does" in text
    assert "its weights are not on this machine; size by its configuration" in text
    assert "weights of all networks: " in text


def test_the_table_has_a_line_for_every_text_with_its_shares(here):
    match = compare(tokenizer("bytes"), tokenizer("metaspace"))
    lines = guided("llama-metaspace.yaml --base llama").stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip().endswith("%")}
    assert rows == {
        name: [f"{100 * share:.1f}%" for share in (each.shared, each.aligned, each.same_span)]
        for name, each in match.coverage.items()
    }
    assert len(rows) == 8


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        (
            "llama-tuned.yaml",
            ["identical: ", "300 strings in common, 300 of", "token guidance: directly by id"],
        ),
        (
            "llama-renamed.yaml",
            [
                "permuted: ",
                "300 strings in common, 298 of",
                "the first difference: token 40 is ",
                "token guidance: exactly, by a table of ids",
            ],
        ),
        ("llama-permuted.yaml --vocabulary same", ["token guidance: refused: vocabulary: same"]),
        (
            "llama-permuted.yaml --vocabulary ids",
            ["vocabulary: ids", "token guidance: by id, though the ids mean other things"],
        ),
        (
            "words.yaml",
            ["unknown: a WordLevel tokenizer", "token guidance: refused: ", "ranking: as text"],
        ),
    ],
)
def test_a_pair_is_explained_in_words(words, sentences, here):
    text = spoken(f"{words} --base llama")
    for sentence in sentences:
        assert sentence in text
    assert "same span" not in text, "there is no table where nothing was measured"


def test_guides_are_found_as_other_commands_find_them(here):
    """The shipped guide's two models stand in folders of their names here."""
    for name in ("zephyr-7b-beta", "mistral-7b-sft-beta"):
        shutil.copytree(here / "llama-metaspace", here / "HuggingFaceH4" / name)
    text = spoken("zephyr --base llama")
    assert "tuned HuggingFaceH4/zephyr-7b-beta overlapping: SentencePiece BPE" in text
    trained = here / "trained"
    trained.mkdir()
    (trained / "guide.yaml").write_text("explicit: {model: ../scalar}\n")
    assert "value scalar identical: byte-level BPE" in spoken("trained --base llama")


def test_number_formats_and_keys_of_the_guide_count(here):
    assert "weights: 73.8 KiB as bfloat16" in spoken(
        "llama-tuned.yaml --base llama --dtype bfloat16"
    )
    text = spoken("llama-tuned.yaml --base llama --set guide.implicit.tuned=llama-metaspace")
    assert "tuned llama-metaspace overlapping" in text
    assert "reference llama-tuned identical" in text


def test_json_is_one_object_with_the_same_numbers(here):
    match = compare(tokenizer("bytes"), tokenizer("metaspace"))
    result = guided("llama-metaspace.yaml --base llama --json")
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert (found["guide"], found["vocabulary"]) == ("llama-metaspace", "auto")
    tuned, reference = found["networks"]
    assert tuned["vocabulary"]["shared_strings"] == match.shared_strings
    assert tuned["vocabulary"]["coverage"]["German"]["aligned"] == match.coverage["German"].aligned
    assert reference["token_guidance"] == {"how": "in bytes", "why": None}
    assert found["base"]["weight_bytes"] == 37_792 * 4


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("nobody --base llama", '--guide: no guide named "nobody"'),
        ("gone.yaml --base llama", 'guide "gone.yaml" is not there'),
        ("zephyr --base llama", "HuggingFaceH4/zephyr-7b-beta: its tokenizer cannot be had"),
        ("llama-tuned.yaml --base someone/else", "someone/else: its tokenizer cannot be had"),
        ("llama-tuned.yaml --base ./llama-2", "./llama-2: no such folder"),
        ("llama-tuned.yaml --base llama --vocabulary most", "--vocabulary: "),
        ("llama-tuned.yaml --base llama --device tpu9", 'no device "tpu9"'),
    ],
)
def test_what_cannot_be_read_is_one_sentence_and_exit_code_2(words, sentence, here):
    result = guided(words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_help_shows_an_example():
    text = " ".join(guided("--help").stdout.split())
    assert "Example: ivg guide tulu --base mistralai/Mistral-7B-Instruct-v0.2" in text
