"""Every recipe that is shipped loads as what it says it is, and what it names exists."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ivgcli.cli import app
from ivgcli.errors import RecipeError
from ivgcli.recipes import (
    BonRecipe,
    GenerateRecipe,
    Guide,
    JudgeRecipe,
    SynthesizeRecipe,
    TrainExplicitRecipe,
    TrainImplicitRecipe,
    load,
    run_id,
    shipped_dir,
    shipped_guides,
    to_yaml,
)
from ivgcli.records import read_prompts

RECIPES = Path(__file__).parent.parent / "recipes"
PARTS = {path for name in ("guides", "judges") for path in (RECIPES / name).glob("*.yaml")}
SHIPPED = sorted(set(RECIPES.rglob("*.yaml")) - PARTS - {RECIPES / "sizes.yaml"})
PAPERS = ("hh", "imdb", "tldr", "ultrafeedback")

KINDS = {
    **dict.fromkeys(["best-of-n", "bon"], BonRecipe),
    "judge": JudgeRecipe,
    **dict.fromkeys(["implicit", "finetune"], TrainImplicitRecipe),
    "synthesize": SynthesizeRecipe,
    "train-implicit": TrainImplicitRecipe,
    "train-explicit": TrainExplicitRecipe,
    **dict.fromkeys(["vas", "ivo", "fudge"], TrainExplicitRecipe),
}
"""What a recipe is by its file's name; all others are for `ivg generate`."""

OWN_GUIDE = ("hh/generate.yaml", "hh/generate-ivo.yaml", "hh/generate-vas.yaml")
"""Recipes that have to be given a guide, for nobody has published one."""


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
    assert_callables_exist(getattr(recipe, "guide", None))
    for value in recipe.guide.explicit:
        assert value.model is None or not value.model.trust_remote_code


@pytest.fixture
def own_guide(tmp_path: Path) -> str:
    """A guide as the training commands write one."""
    path = tmp_path / "guide.yaml"
    path.write_text("implicit: {tuned: t, reference: r}\nexplicit: {model: v}\n")
    return str(path)


def loaded(place: str, guides: list[str] | None = None) -> Any:
    """Return a shipped recipe of whatever kind."""
    path = RECIPES / place
    return load(KINDS.get(path.stem, GenerateRecipe), path, guides=guides or [])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(RECIPES)))
def test_a_shipped_recipe_loads_and_reads_back_as_itself(
    path: Path, tmp_path: Path, own_guide: str
) -> None:
    place = path.relative_to(RECIPES).as_posix()
    recipe = loaded(place, [own_guide] if place in OWN_GUIDE else None)
    assert_callables_exist(getattr(recipe, "guide", None))
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(recipe))
    assert load(type(recipe), copy) == recipe
    assert run_id(load(type(recipe), copy)) == run_id(recipe)


@pytest.mark.parametrize("place", OWN_GUIDE)
def test_a_recipe_without_a_published_guide_asks_for_one(place: str) -> None:
    with pytest.raises(RecipeError, match="no guide is given → add one with --guide"):
        loaded(place)


@pytest.mark.parametrize("task", ["imdb", "tldr"])
def test_ivg_on_small_models_has_the_numbers_of_the_paper(task: str) -> None:
    """Liu et al. (2024), appendix A.1.5, and W, K, L of scripts/*/run.sh in the published code."""
    implicit = loaded(f"{task}/train-implicit.yaml")
    stages = (implicit.sft, implicit.preference)
    assert [stage.learning_rate for stage in stages] == [2e-5, 1e-6]
    assert {stage.lr_scheduler_type for stage in stages} == {"cosine"}
    assert {stage.num_train_epochs for stage in stages} == {1}
    assert implicit.sft.responses == "both"
    assert implicit.preference.loss == ("sigmoid",)
    explicit = loaded(f"{task}/train-explicit.yaml").value
    assert (explicit.head, explicit.target, explicit.responses) == ("token-q", "fudge", "given")
    decoding = loaded(f"{task}/generate.yaml")
    chunk = decoding.chunk
    assert (chunk.beam_width, chunk.successors, chunk.chunk_length) == (4, 4, 5)
    assert (decoding.mode, decoding.sampling.temperature) == ("ivg", 0.7)
    assert decoding.sampling.max_new_tokens == {"imdb": 50, "tldr": 128}[task]
    assert loaded(f"{task}/best-of-n.yaml").best_of == chunk.beam_width * chunk.successors


def test_the_base_alone_is_told_what_to_write() -> None:
    """Liu et al. (2024), appendix A.1.6: zero-shot and two-shot prompts are the base's."""
    imdb, tldr = loaded("imdb/generate.yaml"), loaded("tldr/generate.yaml")
    assert imdb.base.template == "Here is a movie review from imdb: {prompt}"
    assert imdb.guide.implicit[0].tuned.template is None
    assert tldr.base.template.count("TL;DR: ") == 2
    assert tldr.base.template.endswith("\n\n{prompt}\nTL;DR:")
    assert loaded("tldr/best-of-n.yaml").base == tldr.base
    assert tldr.sampling.stop == ("\n",)
    for place in ("tldr/train-implicit.yaml", "tldr/train-explicit.yaml"):
        assert loaded(place).init.template == "{prompt}TL;DR: "
        assert loaded(place).init.template == tldr.guide.implicit[0].tuned.template


def test_pairs_of_sentiment_are_labelled_as_the_published_ones_were() -> None:
    """Data card of ZHZisZZ/imdb_preference: log p(positive) − log p(negative), Bradley-Terry."""
    recipe = loaded("imdb/synthesize.yaml")
    assert (recipe.label, recipe.label_temperature, recipe.responses) == ("bradley-terry", 1.0, 2)
    assert (recipe.reward.model.model, recipe.reward.label) == (
        "lvwerra/distilbert-imdb",
        "POSITIVE",
    )


def test_ivg_on_instructions_has_the_numbers_of_the_published_script() -> None:
    """scripts/alpaca_leaderboard/run.sh and the templates of its src/utils.py."""
    decoding = loaded("ultrafeedback/generate.yaml")
    chunk, sampling = decoding.chunk, decoding.sampling
    assert (chunk.beam_width, chunk.successors, chunk.chunk_length) == (2, 2, 30)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.7, 50, 1.0)
    assert loaded("ultrafeedback/best-of-n.yaml").best_of == chunk.beam_width * chunk.successors
    ultra = load(GenerateRecipe, flags={"base.model": "b"}, guides=["ultra"]).guide
    implicit = loaded("ultrafeedback/train-implicit.yaml")
    assert implicit.sft is None
    assert implicit.init.model == ultra.implicit[0].reference.model
    assert implicit.init.template == ultra.implicit[0].tuned.template
    explicit = loaded("ultrafeedback/train-explicit.yaml")
    assert explicit.init.template == ultra.explicit[0].model.template
    assert explicit.value.head == ultra.explicit[0].head


def test_vas_has_the_numbers_of_its_code(own_guide: str) -> None:
    """vas_config.py, tinyllama_hh.py and VASLogitsProcessor."""
    recipe = loaded("hh/vas.yaml")
    value = recipe.value
    assert (value.target, value.lam, value.head, value.start) == (
        "td-lambda",
        0.95,
        "scalar",
        "init",
    )
    assert (value.learning_rate, value.batch_size, value.num_train_epochs) == (1.41e-5, 32, 2)
    assert (value.weight_decay, value.max_grad_norm) == (0, 0)
    assert (value.responses, value.rounds) == ("base", 1)
    assert (recipe.lora.rank, recipe.lora.alpha) == (16, 16)
    decoding = loaded("hh/generate-vas.yaml", [own_guide])
    token = decoding.token
    assert (token.weight, token.candidates, token.outside) == (3.0, 20, "centred")
    assert decoding.base == loaded("hh/best-of-n.yaml").base
    assert decoding.base.model == recipe.rollouts.base.model
    assert loaded("hh/best-of-n.yaml").reward.model == recipe.reward.model


def test_ivo_has_the_numbers_of_its_paper(own_guide: str) -> None:
    """Liu et al. (2025), table 5 and eq. 5 and 14, dialogue."""
    recipe = loaded("hh/ivo.yaml")
    value, rollouts = recipe.value, recipe.rollouts
    assert (value.target, value.continuations, value.head) == ("monte-carlo", 1, "scalar")
    assert (value.responses, value.rounds, rollouts.responses) == ("guided", 2, 4)
    assert (value.learning_rate, value.batch_size, value.num_train_epochs) == (5e-6, 128, 2)
    assert value.lr_scheduler_type == "constant"
    reward = recipe.reward_model
    assert (reward.learning_rate, reward.batch_size, reward.num_train_epochs) == (1e-5, 256, 2)
    assert (reward.warmup_steps, reward.weight_decay) == (0.03, 0.001)
    decoding = loaded("hh/generate-ivo.yaml", [own_guide])
    for token in (rollouts.token, decoding.token):
        assert (token.weight, token.candidates, token.outside) == (2.0, 20, "prefix")
    assert (rollouts.token.every, decoding.token.every, decoding.chunk.chunk_length) == (1, 4, 4)
    assert (rollouts.sampling.temperature, rollouts.sampling.max_new_tokens) == (0.7, 128)
    base = loaded("hh/train-implicit.yaml")
    assert (base.sft.learning_rate, base.sft.batch_size, base.sft.num_train_epochs) == (5e-6, 64, 2)
    assert (base.sft.warmup_steps, base.sft.weight_decay, base.data.max_length) == (0.05, 0.01, 512)


def test_fudge_is_ivo_without_its_second_round() -> None:
    fudge, ivo = loaded("hh/fudge.yaml"), loaded("hh/ivo.yaml")
    assert (fudge.value.target, fudge.value.responses, fudge.value.rounds) == ("fudge", "base", 1)
    assert (fudge.init, fudge.reward_model) == (ivo.init, ivo.reward_model)
    changed = {"target": "monte-carlo", "responses": "guided", "rounds": 2}
    assert fudge.value.model_copy(update=changed) == ivo.value


def commands(folder: str) -> list[list[str]]:
    """Return every `ivg` command of a folder's README as its words."""
    text = (RECIPES / folder / "README.md").read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    return [shlex.split(line)[1:] for line in blocks.splitlines() if line.startswith("ivg ")]


@pytest.mark.parametrize("folder", PAPERS)
def test_every_command_of_a_papers_readme_is_understood(
    folder: str, tmp_path: Path, own_guide: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipes").symlink_to(RECIPES)
    made = {words[words.index("-o") + 1] for words in commands(folder) if "train" in words[0]}
    for name in made:
        Path(name).mkdir(parents=True)
        (Path(name) / "guide.yaml").write_text(Path(own_guide).read_text())
    for words in commands(folder):
        result = CliRunner().invoke(app, [*words, "--print-recipe"])
        assert result.exit_code == 0, f"{shlex.join(words)}\n{result.stderr}"


@pytest.mark.parametrize("folder", PAPERS)
def test_a_papers_readme_names_every_file_of_its_folder(folder: str) -> None:
    text = (RECIPES / folder / "README.md").read_text(encoding="utf-8")
    for path in (RECIPES / folder).glob("*.yaml"):
        assert f"`{path.name}`" in text, path.name


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
