"""Every recipe that is shipped loads as what it says it is, and what it names exists."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ivgcli.cli import app
from ivgcli.recipes import (
    BonRecipe,
    GenerateRecipe,
    Guide,
    SynthesizeRecipe,
    load,
    run_id,
    shipped_dir,
    shipped_guides,
    to_yaml,
)
from ivgcli.records import read_prompts

RECIPES = Path(__file__).parent.parent / "recipes"
DECODING = sorted(set(RECIPES.rglob("*.yaml")) - set((RECIPES / "guides").glob("*.yaml")))
KINDS = {"best-of-n": BonRecipe, "synthesize": SynthesizeRecipe}


def assert_callables_exist(guide: Guide | None) -> None:
    """Check that a function is behind every `module:function` of a guide."""
    for value in guide.explicit if guide else ():
        if value.callable is not None:
            module, _, function = value.callable.partition(":")
            assert callable(getattr(importlib.import_module(module), function))


def test_the_shipped_folder_is_the_one_of_the_repository() -> None:
    assert shipped_dir().resolve() == RECIPES.resolve()
    assert list(shipped_guides()) == sorted(path.stem for path in RECIPES.glob("guides/*.yaml"))
    assert "tulu" in shipped_guides(), "the user's own line names it"


@pytest.mark.parametrize("name", shipped_guides())
def test_a_shipped_guide_loads_by_its_name_and_describes_itself(name: str) -> None:
    recipe = load(GenerateRecipe, flags={"base.model": "b"}, guides=[name])
    assert recipe.guide is not None
    assert recipe.guide.name == name
    assert recipe.guide.description
    assert not recipe.guide.description.endswith(".")
    assert_callables_exist(recipe.guide)
    for value in recipe.guide.explicit:
        assert value.model is None or not value.model.trust_remote_code


@pytest.mark.parametrize("path", DECODING, ids=lambda path: str(path.relative_to(RECIPES)))
def test_a_shipped_recipe_loads_and_reads_back_as_itself(path: Path, tmp_path: Path) -> None:
    kind = KINDS.get(path.stem, GenerateRecipe)
    recipe = load(kind, path)
    assert_callables_exist(recipe.guide)
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(recipe))
    assert load(kind, copy) == recipe
    assert run_id(load(kind, copy)) == run_id(recipe)


@pytest.mark.parametrize("mode", ["base", "eft-i", "cbs-e", "ivg"])
def test_the_critics_take_every_mode_of_the_demo_from_a_flag(mode: str) -> None:
    path = RECIPES / "critics/steer.yaml"
    scathing = ["guide.implicit.weight=-1", "guide.explicit.weight=-1"]
    recipe = load(GenerateRecipe, path, scathing, {"mode": mode})
    assert recipe.mode == mode
    assert recipe.guide is not None
    assert [value.weight for value in (*recipe.guide.implicit, *recipe.guide.explicit)] == [-1, -1]


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.jsonl")), ids=lambda path: path.name)
def test_shipped_prompts_read_as_prompts_with_ids_of_their_own(path: Path) -> None:
    prompts = read_prompts(str(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [prompt.id for prompt in prompts] == [line["id"] for line in lines]


def test_the_users_own_line_resolves_to_ivg_under_tulu() -> None:
    line = "generate --base mistralai/Mistral-7B-Instruct-v0.2 --guide tulu --mode ivg"
    result = CliRunner().invoke(app, [*line.split(), "--print-recipe"])
    assert result.exit_code == 0, result.stderr
    for text in ("mode: ivg", "    model: allenai/tulu-2-dpo-7b", "    model: allenai/tulu-2-7b"):
        assert any(each.endswith(text.strip()) for each in result.stdout.splitlines()), text
