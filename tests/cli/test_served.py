"""`ivg generate` and `ivg bon` on a base that is served: what a user types and reads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("openai")

from typer.testing import CliRunner, Result

from ivgcli.cli import app
from tests.models import PROMPTS, folder
from tests.served import TinyServer, lines
from tests.unit.judging.stub import Stub

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every server is given the same key."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def ivg(*arguments: object) -> Result:
    """Run the command line."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    prompts, out, whole = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "whole.jsonl"))
    prompts.write_text(lines([{"prompt": f"{PROMPTS[0]} {number}"} for number in range(16)]))
    with Stub(complete=TinyServer(), delay=0.05) as stub:
        base = ["--base", f"openai:{stub.address}#tiny", "--set", "base.server.in_flight=3"]
        asked = ["generate", *base, "--max-new-tokens", 5, "--samples", 2, "-i", prompts]
        child = subprocess.Popen(
            [sys.executable, "-m", "ivgcli", *map(str, [*asked, "-o", out])],
            stderr=subprocess.DEVNULL,
        )
        while child.poll() is None and (out.stat().st_size if out.exists() else 0) < 2500:
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        done = out.read_text().count("\n")
        before = len(stub.requests)
        resumed = ivg(*asked, "-o", out, "--resume")
        after = len(stub.requests)
        assert ivg(*asked, "-o", whole).exit_code == 0
    assert resumed.exit_code == 0, resumed.stderr
    assert 0 < done < 32
    assert f"resuming: {done} of 32 responses are there" in resumed.stderr
    # What was there is not asked for again; three requests try the server.
    assert after - before == 3 + 32 - done
    found = [json.loads(line) for line in out.read_text().splitlines()]
    expected = [json.loads(line) for line in whole.read_text().splitlines()]
    assert len(found) == 32
    by_key = {(each["id"], each["sample"]): each["response"] for each in found}
    assert by_key == {(each["id"], each["sample"]): each["response"] for each in expected}
    assert KEY not in out.read_text() + (tmp_path / "out.jsonl.recipe.yaml").read_text()


def test_how_a_server_is_asked_changes_no_run(tmp_path: Path) -> None:
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text(lines([{"prompt": text} for text in PROMPTS]))
    with Stub(complete=TinyServer()) as stub:
        base = f"openai:{stub.address}#tiny"
        asked = ["generate", "--base", base, "--max-new-tokens", 2, "-i", prompts, "-o", out]
        assert ivg(*asked, "--limit", 2).exit_code == 0
        again = ivg(*asked, "--resume", "--set", "base.server.in_flight=1")
    assert again.exit_code == 0, again.stderr
    assert [json.loads(line)["base"] for line in out.read_text().splitlines()] == [base] * 5


NOWHERE = "openai:http://127.0.0.1:9/v1#m"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--mode", "eft-i", "--guide", "tulu"],
            "eft-i guides the tokens of a served base, and has to know them"
            " → name its tokenizer: base.tokenizer",
        ),
        (
            ["--mode", "cbs-i", "--guide", "tulu", "--set", "base.chat=true"],
            "cbs-i continues responses, which a chat endpoint cannot"
            " → name the served base's tokenizer: base.tokenizer",
        ),
        (
            ["--dtype", "float16", "--set", "base.dtype=float16"],
            "dtype and quantization are the server's own matter → leave them out",
        ),
        (["--set", "base.server.attempts=1"], "gave no answer in 1 attempt (Connection error.)"),
        (
            ["--base", "openai:http://me:secret@127.0.0.1:9/v1#m"],
            "a password in the address → set OPENAI_API_KEY instead",
        ),
        (["--base", "x", "--set", "base.tokenizer=y"], "tokenizer belongs to a served base"),
        (
            ["--mode", "cbs-e", "--guide", "tulu", "--set", f"guide.explicit.0.model={NOWHERE}"],
            "is a server, which can be the base of generate and bon, or a judge",
        ),
    ],
)
def test_what_cannot_work_is_one_sentence(arguments: list[str], sentence: str) -> None:
    result = ivg("generate", "--base", NOWHERE, "--prompt", "a", *arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_a_plan_asks_the_server_nothing(tmp_path: Path) -> None:
    asked = ["--set", f"base.tokenizer={folder('llama')}", "--prompt", "the film", "--dry-run"]
    result = ivg("generate", "--base", NOWHERE, *asked, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert "served, 32 requests in flight" in result.stdout


def test_best_of_n_draws_at_the_server_and_ranks_here() -> None:
    with Stub(complete=TinyServer()) as stub:
        base = f"openai:{stub.address}#tiny"
        asked = ["--by", "reward", "--reward", "tests.toys:vowels", "-n", 4, "--max-new-tokens", 8]
        result = ivg("bon", "--base", base, *asked, "--prompt", "the film")
        drawn = {asked.body["seed"] for asked in stub.requests[3:]}
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert len(drawn) == 4
    assert record["usage"]["requests"] == 4
    assert record["base"] == base
