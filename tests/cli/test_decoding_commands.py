"""`ivg generate` and `ivg bon` around a workflow that needs no model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ivgcli import __version__
from ivgcli.cli import app
from ivgcli.console import Progress
from ivgcli.recipes import BonRecipe, GenerateRecipe, run_id
from ivgcli.records import Prompt, ResponseWriter, TraceWriter


@dataclass(frozen=True)
class Summary:
    """What a workflow returns."""

    records: int
    failures: list[tuple[str, str]]
    tokens: int = 640
    seconds: float = 4.0
    rows: int = 8
    peak_memory_bytes: int | None = 3 * 2**29
    notes: tuple[str, ...] = ("same vocabulary",)


def echo(
    recipe: GenerateRecipe | BonRecipe,
    prompts: Sequence[Prompt],
    writer: ResponseWriter,
    trace: TraceWriter | None,
    progress: Progress,
) -> Summary:
    """Answer every prompt with itself in capitals, and fail where it says so."""
    failures, count = [], 0
    for prompt in prompts:
        for sample in range(recipe.sampling.samples):
            if (prompt.id, sample) in writer.done:
                continue
            text = prompt.text if prompt.text is not None else prompt.messages[-1]["content"]
            error = "prompt too long" if "fail" in text else None
            if error:
                failures.append((prompt.id, error))
            fields = {"response": text.upper(), "sample": sample, "run": run_id(recipe)}
            mode = recipe.mode if isinstance(recipe, GenerateRecipe) else f"bon-{recipe.by}"
            guide = recipe.guide.name if recipe.guide else None
            more = {"mode": mode, "base": recipe.base.model, "guide": guide, "error": error}
            writer.write(prompt.respond({**fields, **more}))
            progress.advance()
            if trace is not None:
                trace.write({"id": prompt.id, "step": 0})
            count += 1
    return Summary(count, failures)


@pytest.fixture(autouse=True)
def _workflows(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, function in (("generate", "generate"), ("best_of_n", "best_of_n")):
        fake = ModuleType(f"ivgcli.workflows.{module}")
        setattr(fake, function, echo)
        monkeypatch.setitem(sys.modules, f"ivgcli.workflows.{module}", fake)


def ivg(*arguments: str | Path, stdin: str | bytes = "") -> Result:
    """Run the command line."""
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin)


def test_prompts_on_stdin_become_responses_on_stdout() -> None:
    result = ivg("generate", "--base", "b", stdin='{"id": "a", "prompt": "hi", "genre": "x"}\n')
    assert result.exit_code == 0, result.stderr
    [record] = map(json.loads, result.stdout.splitlines())
    assert record["response"] == "HI"
    assert record["genre"] == "x"
    assert (record["mode"], record["base"], record["guide"]) == ("base", "b", None)
    assert result.stderr == (
        "same vocabulary\n"
        "1 response, 640 tokens, 160 tokens/s, 4.0 s, 8 rows, peak memory 1.50 GiB\n"
    )


def test_quiet_says_nothing_when_all_is_well() -> None:
    result = ivg("generate", "--base", "b", "--prompt", "hi", "-q")
    assert (result.exit_code, result.stderr) == (0, "")


def test_files_limit_samples_resume_and_recipe_work_together(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"p{index}"}) + "\n" for index in range(4)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: b\nsampling: {samples: 3}\n")
    flags = ["generate", recipe, "-i", prompts, "-o", out, "--samples", "2"]
    assert ivg(*flags, "--limit", "2").exit_code == 0
    first = out.read_text()
    records = map(json.loads, first.splitlines())
    keys = [(record["id"], record["sample"]) for record in records]
    assert keys == [("1", 0), ("1", 1), ("2", 0), ("2", 1)]
    refused = ivg(*flags)
    assert refused.exit_code == 2
    assert "is there already and not empty → go on with --resume" in refused.stderr
    resumed = ivg(*flags, "--resume")
    assert resumed.exit_code == 0
    assert resumed.stderr.startswith("resuming: 4 of 8 responses are there\n")
    assert out.read_text().startswith(first)
    assert out.read_text().count("\n") == 8
    # The recipe beside the output is one: it gives the same run.
    again = ivg("generate", f"{out}.recipe.yaml", "-i", prompts, "-o", out, "--resume")
    assert again.exit_code == 0
    other = ivg(*flags, "--resume", "--seed", "1")
    assert other.exit_code == 2
    assert "belongs to run" in other.stderr


def test_failed_records_are_told_after_all_the_work() -> None:
    lines = "".join(json.dumps({"prompt": f"fail {index}"}) + "\n" for index in range(7))
    result = ivg("generate", "--base", "b", stdin=lines + '{"prompt": "fine"}\n')
    assert result.exit_code == 2
    assert result.stdout.count("\n") == 8
    told = result.stderr[result.stderr.index("error: ") :].splitlines()
    assert told == [
        "error: 7 records failed → their lines say why",
        *[f"  {number}: prompt too long" for number in range(1, 6)],
        "  and 2 more",
    ]


def test_every_flag_reaches_its_key() -> None:
    flags = (
        "--base b --guide tulu --mode eft-e+cbs-i --weight 0.5 --candidates 7 -W 3 -K 4 -L 5"
        " --samples 6 --temperature 0 --top-k 0 --top-p 0.9 --max-new-tokens 8 --stop a --stop b"
        " --seed 9 --device cpu --dtype float32 --rows 10 --set token.every=2 --print-recipe"
    )
    result = ivg("generate", *flags.split())
    assert result.exit_code == 0, result.stderr
    for line in (
        "mode: eft-e+cbs-i", "  name: tulu", "  weight: 0.5", "  candidates: 7", "  every: 2",
        "  beam_width: 3", "  successors: 4", "  chunk_length: 5", "  samples: 6",
        "  temperature: 0.0", "  top_k: 0", "  top_p: 0.9", "  max_new_tokens: 8", "  - a", "  - b",
        "seed: 9", "  device: cpu", "  dtype: float32", "  rows: 10",
    ):  # fmt: skip
        assert line in result.stdout.splitlines()


def test_best_of_n_has_its_own_flags() -> None:
    result = ivg("bon", "--base", "b", "--reward", "m:f", "-n", "16", "--print-recipe")
    assert "best_of: 16\n" in result.stdout
    assert "  callable: m:f\n" in result.stdout
    result = ivg("bon", "--base", "b", "--by", "implicit", "--guide", "zephyr", "--prompt", "hi")
    assert json.loads(result.stdout)["mode"] == "bon-implicit"


def test_alpaca_eval_goes_in_and_out(tmp_path: Path) -> None:
    source, out = tmp_path / "alpaca_eval.json", tmp_path / "out.json"
    source.write_text(json.dumps([{"instruction": "Why?", "dataset": "koala"}]))
    result = ivg("generate", "--base", "b", "-i", source, "-o", out, "--format", "alpaca-eval")
    assert result.exit_code == 0, result.stderr
    [entry] = json.loads(out.read_text())
    assert (entry["instruction"], entry["output"]) == ("Why?", "WHY?")
    assert (entry["generator"], entry["dataset"]) == ("base:b", "koala")


def test_a_trace_goes_to_its_file(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    ivg("generate", "--base", "b", "--prompt", "hi", "--trace", trace)
    assert trace.read_text() == '{"id": "1", "step": 0}\n'


@pytest.mark.parametrize(
    ("arguments", "stdin", "told"),
    [
        (["generate"], "", "base: missing → name the model to steer with --base MODEL"),
        (["generate", "nowhere.yaml"], "", "nowhere.yaml: no such file"),
        (["generate", "--base", "b"], "", 'stdin: no prompts → write one {"prompt": ...} a line'),
        (["generate", "--base", "b"], "x\n", "stdin:1: not JSON: Expecting value at column 1"),
        (
            ["generate", "--base", "b", "--prompt", "a", "--in", "-"],
            "",
            "--prompt: --in names prompts too → give one of them",
        ),
        (["generate", "--base", "b", "--prompt", " "], "", "--prompt: the prompt is empty"),
        (
            ["generate", "--base", "b", "--prompt", "a", "--format", "csv"],
            "",
            '--format: expected ivg or alpaca-eval, got "csv"',
        ),
        (
            ["generate", "--base", "b", "--prompt", "a", "--resume"],
            "",
            "--resume: a stream cannot be resumed → name a file with --out",
        ),
        (
            ["generate", "--base", "b", "--prompt", "a", "--trace", "-"],
            "",
            "--trace: stdout is for responses → name a file",
        ),
        (
            ["generate", "--base", "b", "--mode", "ivgg"],
            "",
            "--mode: expected base, eft-i, eft-e, cbs-i, cbs-e, eft-i+cbs-i, eft-e+cbs-e,"
            ' eft-e+cbs-i or ivg, got "ivgg" → did you mean ivg?',
        ),
    ],
)
def test_what_can_be_mended_ends_in_one_sentence_and_exit_code_2(
    arguments: list[str], stdin: str, told: str
) -> None:
    result = ivg(*arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {told}\n"


def test_a_terminal_without_prompts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from ivgcli.cli import decoding

    streams = decoding.Streams(None, None, "-", "ivg", None, None, False, False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(Exception, match="there are no prompts to read → name a file with --in"):
        decoding.prompts_of(streams)


def test_a_bug_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **named: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["ivgcli.workflows.generate"], "generate", broken)
    result = ivg("generate", "--base", "b", "--prompt", "hi")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_version_and_short_help() -> None:
    assert ivg("--version").stdout == f"ivg {__version__}\n"
    for command in ([], ["generate"], ["bon"]):
        assert ivg(*command, "-h").stdout == ivg(*command, "--help").stdout


PIPED = """
import sys
sys.path.insert(0, ".")
from types import ModuleType
from tests.cli.test_decoding_commands import echo
fake = ModuleType("ivgcli.workflows.generate")
fake.generate = echo
sys.modules["ivgcli.workflows.generate"] = fake
sys.argv = ["ivg", "generate", "--base", "b"]
from ivgcli.cli import main
main()
"""


def test_a_closed_pipe_ends_the_run_quietly() -> None:
    line = json.dumps({"prompt": "x" * 5000}) + "\n"
    child = subprocess.Popen(
        [sys.executable, "-c", PIPED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdin.write((line * 200).encode())
    child.stdin.close()
    assert json.loads(child.stdout.readline())["id"] == "1"
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() == 0


def test_help_answers_at_once() -> None:
    code = (
        "import sys; sys.argv = ['ivg', '--help']\n"
        "from ivgcli.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)\n"
    )
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(child.stderr.split())
    assert not loaded & {
        "torch",
        "transformers",
        "datasets",
        "numpy",
        "pydantic",
        "yaml",
        "asyncio",
    }
    # 349 modules take about 0.2 s; `benchmarks.startup` measures what the contract promises, 0.3 s.
    assert len(loaded) < 400
