"""The README says what is there: modes, guides, files, commands, snippets."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ivgcli.cli import app
from ivgcli.recipes import MODES, Guide, shipped_guides

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    """Return the code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    """Return every `ivg` command of the README with a recipe as its words, pipes cut off."""
    lines = [line for block in fenced("sh") for line in block.splitlines()]
    return [
        shlex.split(line.partition(" | ")[0])[1:]
        for line in lines
        if line.startswith("ivg ") and not line.startswith("ivg guide ")
    ]


def test_the_mode_table_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `([a-z+-]+)` \| (\S+) \| (\S+) \|", README, re.MULTILINE)
    shown = {name: tuple(None if kind == "–" else kind for kind in pair) for name, *pair in rows}
    assert shown == MODES


def test_the_list_of_guides_is_what_is_shipped() -> None:
    listed = re.search(r"takes a shipped name \(([^)]*)\)", README).group(1)
    assert tuple(re.findall(r"`([a-z]+)`", listed)) == shipped_guides()


@pytest.mark.parametrize("place", re.findall(r"^\| `([\w./]+)`", README, re.MULTILINE))
def test_every_file_of_the_map_exists(place: str) -> None:
    if "/" in place:
        assert (ROOT / place).exists(), f"{place} is on the README's map and not in the tree"


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_every_command_is_understood(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, values in (("implicit", "{tuned: a, reference: b}"), ("explicit", "{model: a}")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        guide = f"{name}: {values}\n"
        (tmp_path / "runs" / name / "guide.yaml").write_text(guide, encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: gpt2\nguide: {explicit: [{callable: 'a:b'}]}\n", encoding="utf-8")
    words = [str(recipe) if word == "recipe.yaml" else word for word in words]
    result = CliRunner().invoke(app, [*words, "--print-recipe"])
    assert result.exit_code == 0, result.stderr
    assert yaml.safe_load(result.stdout)["version"] == 1


def test_every_guide_snippet_is_a_guide() -> None:
    (block,) = (block for block in fenced("yaml") if "implicit:" in block)
    lines = [line for line in block.splitlines() if line and not line.startswith("#")]
    for line in lines:
        guide = Guide.model_validate(yaml.safe_load(line))
        assert guide.implicit or guide.explicit
    assert len(lines) == 5


def test_the_record_has_the_fields_of_the_contract() -> None:
    (block,) = fenced("json")
    record = json.loads(block)
    assert list(record) == [
        *("id", "prompt", "response", "sample", "mode", "base", "guide", "seed"),
        *(
            "tokens",
            "finish",
            "value",
            "base_logprob",
            "kl",
            "kl_choice",
            "compute",
            "run",
            "weight",
        ),
    ]
