"""Recipes: what they accept, how their sources add up, and a sentence for every mistake."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from ivgcli import recipes
from ivgcli.errors import RecipeError
from ivgcli.recipes import BaseSpec, BonRecipe, GenerateRecipe, ModelSpec, load, run_id, to_yaml
from ivgcli.recipes.schema import MODES, Decoding, ModeName

PAIR = "implicit: {tuned: t, reference: r}"
BOTH = f"guide: {{{PAIR}, explicit: m:f}}"


def written(folder: Path, text: str, name: str = "recipe.yaml") -> str:
    """Write a file and return its name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def sentence(kind: type[Decoding], *arguments: Any, **named: Any) -> str:
    """Return what loading a recipe says is wrong with it."""
    with pytest.raises(RecipeError) as caught:
        load(kind, *arguments, **named)
    return str(caught.value)


def test_mode_names_and_the_table_of_pairs_agree() -> None:
    assert get_args(ModeName) == tuple(MODES)
    assert MODES["ivg"] == ("implicit", "explicit")


def test_a_bare_string_is_a_model(tmp_path: Path) -> None:
    recipe = load(GenerateRecipe, written(tmp_path, f"base: gpt2\n{BOTH}"))
    assert recipe.base == BaseSpec(model="gpt2")
    assert recipe.guide is not None
    assert recipe.guide.implicit[0].reference == ModelSpec(model="r")
    assert recipe.guide.explicit[0].callable == "m:f"


def test_a_flag_beats_a_set_which_beats_the_recipe_which_beats_the_default(tmp_path: Path) -> None:
    file = written(tmp_path, "base: gpt2\nseed: 1\nsampling: {top_k: 1, samples: 1, top_p: 0.1}")
    recipe = load(
        GenerateRecipe,
        file,
        ["seed=2", "sampling.samples=2"],
        {"seed": 3, "sampling.samples": None, "sampling.top_k": 0},
    )
    assert recipe.seed == 3
    assert recipe.sampling.samples == 2
    assert recipe.sampling.top_k == 0, "zero is a value, not the absence of one"
    assert recipe.sampling.top_p == 0.1
    assert recipe.sampling.temperature == 1.0


def test_a_flag_for_the_base_keeps_its_other_keys(tmp_path: Path) -> None:
    file = written(tmp_path, "base: {model: gpt2, template: 'Review: {prompt}'}")
    base = load(GenerateRecipe, file, flags={"base.model": "gpt2-xl"}).base
    assert base == BaseSpec(model="gpt2-xl", template="Review: {prompt}")


@pytest.mark.parametrize("explicit", ["m:f", "{callable: m:f}", "[{callable: m:f}]", "[m:f]"])
@pytest.mark.parametrize("key", ["guide.explicit.weight", "guide.explicit.0.weight"])
def test_a_single_value_is_reached_with_and_without_its_index(
    tmp_path: Path, explicit: str, key: str
) -> None:
    file = written(tmp_path, f"base: b\nguide: {{explicit: {explicit}}}")
    guide = load(GenerateRecipe, file, [f"{key}=3e-1"]).guide
    assert guide is not None
    assert [value.weight for value in guide.explicit] == [0.3]


def test_overrides_reach_into_named_guides_and_bare_models() -> None:
    guide = load(
        GenerateRecipe,
        None,
        ["guide.implicit.weight=2", "guide.implicit.tuned.dtype=float16"],
        {"base.model": "b"},
        ["tulu"],
    ).guide
    assert guide is not None
    assert guide.implicit[0].weight == 2.0
    assert guide.implicit[0].tuned == ModelSpec(model="allenai/tulu-2-dpo-7b", dtype="float16")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "--set: expected KEY=VALUE → for example --set token.weight=0.5"),
        ("=3", "--set: expected KEY=VALUE → for example --set token.weight=0.5"),
        ("seed.x=3", '--set: seed.x: "seed" is 4 and has no keys'),
        ("seed=[", "--set seed:1:2: not YAML: expected the node content, but found '<stream end>'"),
        (
            "guide.explicit.2.weight=3",
            '--set: guide.explicit.2.weight: "2" is none of its 2 entries'
            " → count from 0, as in guide.explicit.0.weight",
        ),
        (
            "guide.explicit.weight=3",
            '--set: guide.explicit.weight: "weight" is none of its 2 entries'
            " → count from 0, as in guide.explicit.0.weight",
        ),
        ("token.weigth=3", "--set: token.weigth: unknown key → did you mean weight?"),
        ("token.weight=high", '--set: token.weight: expected a number, got "high"'),
    ],
)
def test_a_wrong_override_is_told(tmp_path: Path, override: str, expected: str) -> None:
    file = written(tmp_path, "base: b\nseed: 4\nguide: {explicit: [m:f, m:g]}")
    assert sentence(GenerateRecipe, file, [override]) == expected


def test_all_problems_are_told_at_once_each_with_line_and_key(tmp_path: Path) -> None:
    text = """\
version: 1
mode: ivgg
chunk:
  beam_widht: 3
  successors: "2"
token: {weight: high, every: 0}
sampling: {stop: ["a", ""], temperature: -1, top_p: .inf}
guide:
  implicit: {tuned: a}
  explicit: [{model: {modle: x}}, {callable: a}]
engine: 3
"""
    file = written(tmp_path, text)
    first, *rest = sentence(GenerateRecipe, file, flags={"seed": "x"}).splitlines()
    assert first == f"{file}: 15 problems"
    assert sorted(rest) == sorted(
        f"  {line}" if line.startswith("--") else f"  {file}:{line}"
        for line in [
            " base: missing → name the model to steer with --base MODEL",
            "2: mode: expected base, eft-i, eft-e, cbs-i, cbs-e, eft-i+cbs-i, eft-e+cbs-e,"
            ' eft-e+cbs-i or ivg, got "ivgg" → did you mean ivg?',
            "4: chunk.beam_widht: unknown key → did you mean beam_width?",
            '5: chunk.successors: expected a whole number, got "2"',
            '6: token.weight: expected a number, got "high"',
            "6: token.every: expected at least 1, got 0",
            "7: sampling.stop.1: expected text, got an empty one",
            "7: sampling.temperature: expected at least 0, got -1",
            "7: sampling.top_p: expected a finite number, got inf",
            "9: guide.implicit: reference is missing"
            " → give tuned and reference, or model and tuned_prompt",
            "10: guide.explicit.0.model.model: missing",
            "10: guide.explicit.0.model.modle: unknown key → did you mean model?",
            '10: guide.explicit.1.callable: expected module:function, got "a"',
            "11: engine: expected a mapping of keys, got 3",
            '--seed: expected a whole number, got "x"',
        ]
    )


def test_a_missing_base_is_told_with_its_flag() -> None:
    assert sentence(GenerateRecipe) == "base: missing → name the model to steer with --base MODEL"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "base: {model: b, dtype: fp16}",
            ":1: base.dtype: expected auto, float32, bfloat16 or "
            'float16, got "fp16" → did you mean float16?',
        ),
        ("base: ''", ":1: base: expected text, got an empty one"),
        ("base: 3", ":1: base: expected a mapping of keys, got 3"),
        ("base:", ":1: base: expected a mapping of keys, got nothing"),
        ("base: package:llm", ':1: base: expected package:NAME/FILE, got "package:llm"'),
        (
            "base: {model: b, template: 'Review:'}",
            ":1: base.template: {prompt} is not in the template → write it where the prompt goes",
        ),
        (
            "base: {model: b, template: '{prompt}', system: Be kind}",
            ":1: base: system needs the chat template → write it into template instead",
        ),
        (
            "base: {model: b, system: Be kind, chat: false}",
            ":1: base: system needs the chat template → write it into template instead",
        ),
        ("base: b\nseed: 1.5", ":2: seed: expected a whole number, got 1.5"),
        ("base: b\nseed: true", ":2: seed: expected a whole number, got true"),
        ("base: b\nversion: 2", ":2: version: expected 1, got 2"),
        ("base: b\nsampling: {top_p: 0}", ":2: sampling.top_p: expected more than 0, got 0"),
        ("base: b\nsampling: {top_p: 1.1}", ":2: sampling.top_p: expected at most 1, got 1.1"),
        ("base: b\nsampling: {stop: ''}", ":2: sampling.stop: expected text, got an empty one"),
        ("base: {model: b, chat: 'no'}", ':1: base.chat: expected true or false, got "no"'),
        (
            "base: b\nguide: {}",
            ":2: guide: the guide has no value → give it implicit, explicit or both",
        ),
        (
            "base: b\nguide: 3",
            ":2: guide: expected text or a mapping → give a name, a file, a"
            " folder or the guide itself",
        ),
        (
            "base: b\nguide: {implicit: {model: m, tuned: t}}",
            ":2: guide.implicit: two models and a prompt pair are both described"
            " → give tuned and reference, or model and tuned_prompt",
        ),
        (
            "base: b\nguide: {implicit: {model: m}}",
            ":2: guide.implicit: tuned_prompt is missing"
            " → give tuned and reference, or model and tuned_prompt",
        ),
        (
            "base: b\nguide: {implicit: {weight: 1}}",
            ":2: guide.implicit: the pair is missing"
            " → give tuned and reference, or model and tuned_prompt",
        ),
        (
            "base: b\nguide: {explicit: {weight: 1}}",
            ":2: guide.explicit: needs a model or a callable, and neither is given"
            " → give one of them",
        ),
        (
            "base: b\nguide: {explicit: {callable: m:f, head: scalar}}",
            ":2: guide.explicit: head and by_text belong to a model"
            " → leave them out beside callable",
        ),
        (
            "base: b\nmode: ivg\nguide: {name: mine, explicit: m:f}",
            ':2: mode: ivg needs an implicit and an explicit value, and guide "mine" has explicit'
            " only → add one with --guide, or choose --mode base or eft-e or cbs-e or eft-e+cbs-e",
        ),
        (
            "base: b\nmode: cbs-i",
            ":2: mode: cbs-i needs an implicit value, and no guide is given"
            " → add one with --guide, or choose --mode base",
        ),
    ],
)
def test_what_makes_no_sense_is_told(tmp_path: Path, text: str, expected: str) -> None:
    file = written(tmp_path, text)
    assert sentence(GenerateRecipe, file) == file + expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            {},
            "by: reward needs a reward, and none is given"
            " → name one with --reward MODEL or --reward module:function",
        ),
        (
            {"by": "implicit"},
            "--by: implicit needs an implicit value, and no guide is given"
            " → add one with --guide, or choose another --by",
        ),
        (
            {"best_of": 0, "by": "reward", "reward": "m:f"},
            "--best-of: expected at least 1, got 0",
        ),
    ],
)
def test_best_of_n_without_its_value_is_told(flags: dict[str, Any], expected: str) -> None:
    assert sentence(BonRecipe, flags={"base.model": "b", **flags}) == expected


def test_a_reward_is_a_model_or_a_callable() -> None:
    flags = {"base.model": "b"}
    by_name = load(BonRecipe, flags={**flags, "reward": "org/reward-model"}).reward
    assert by_name is not None
    assert by_name.model == ModelSpec(model="org/reward-model")
    by_code = load(BonRecipe, flags={**flags, "reward": "my.rewards:polite"}).reward
    assert by_code is not None
    assert by_code.callable == "my.rewards:polite"


def test_a_constructor_validates_and_freezes() -> None:
    base = BaseSpec(model="b")
    with pytest.raises(ValidationError, match="ivg needs an implicit and an explicit value"):
        GenerateRecipe(base=base, mode="ivg")
    with pytest.raises(ValidationError, match="frozen"):
        GenerateRecipe(base=base).seed = 3  # type: ignore[misc]


TOKENS = ["hf_" + "a1B2" * 8, "sk-" + "proj-x9Y8" * 4]


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("where", ["base: {{model: b, system: 'x {}'}}", "{}: b", "seed: {}"])
def test_a_secret_is_refused_and_never_repeated(tmp_path: Path, token: str, where: str) -> None:
    file = written(tmp_path, "chunk: {beam_width: x}\n" + where.format(token))
    text = sentence(GenerateRecipe, file)
    assert "looks like an access token → keep it out of recipes" in text
    assert token not in text
    text = sentence(GenerateRecipe, None, [f"base={token}"])
    assert text == (
        "--set: base: looks like an access token"
        " → keep it out of recipes: set HF_TOKEN in the environment"
    )


def test_names_that_only_resemble_secrets_pass() -> None:
    for name in ("hf-internal-testing/tiny-random-gpt2", "org/task-specific-model-with-long-name"):
        assert load(GenerateRecipe, flags={"base.model": name}).base.model == name


def test_every_shipped_guide_loads_and_says_what_it_is() -> None:
    names = recipes.shipped_guides()
    assert {"critics", "imdb", "starling", "summarize", "tulu", "ultra", "zephyr"} <= set(names)
    for name in names:
        guide = load(GenerateRecipe, None, (), {"base.model": "b"}, [name]).guide
        assert guide is not None
        assert guide.name == name
        assert guide.description


def test_the_line_of_the_readme_resolves() -> None:
    recipe = load(
        GenerateRecipe,
        flags={"base.model": "mistralai/Mistral-7B-Instruct-v0.2", "mode": "ivg"},
        guides=["tulu"],
    )
    assert recipe.guide is not None
    assert recipe.guide.implicit[0].reference == ModelSpec(model="allenai/tulu-2-7b")
    assert recipe.guide.explicit[0].model == ModelSpec(model="sfairXC/FsfairX-LLaMA3-RM-v0.1")


def test_a_later_guide_fills_in_and_replaces(tmp_path: Path) -> None:
    first = written(tmp_path, f"description: x\n{PAIR}", "first.yaml")
    second = written(tmp_path, "explicit: m:f", "second/guide.yaml")
    third = written(tmp_path, "implicit: {tuned: t3, reference: r3}", "third.yaml")
    folder = str(Path(second).parent)
    guide = load(GenerateRecipe, None, (), {"base.model": "b"}, [first, folder, third]).guide
    assert guide is not None
    assert guide.name == "first+second+third"
    assert guide.description is None
    assert guide.implicit[0].tuned == ModelSpec(model="t3")
    assert guide.explicit[0].callable == "m:f"


def test_a_recipe_may_name_its_guides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "explicit: m:f", "deep/scored.yaml")
    file = written(tmp_path, "base: b\nguide: [zephyr, scored.yaml]", "deep/recipe.yaml")
    guide = load(GenerateRecipe, file).guide
    assert guide is not None
    assert (guide.name, len(guide.implicit), len(guide.explicit)) == ("zephyr+scored", 1, 1)
    assert load(GenerateRecipe, file, ["guide=imdb"]).guide.name == "imdb"  # type: ignore[union-attr]
    by_flag = load(GenerateRecipe, file, ["guide=imdb"], guides=["tulu"]).guide
    assert by_flag is not None
    assert by_flag.name == "tulu"


def test_a_guide_of_the_working_folder_goes_before_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "explicit: m:mine", "recipes/guides/tulu.yaml")
    guide = load(GenerateRecipe, None, (), {"base.model": "b"}, ["tulu"]).guide
    assert guide is not None
    assert guide.explicit[0].callable == "m:mine"


def test_models_beside_a_guide_are_found_and_hub_ids_stay(tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    text = "implicit: {tuned: tuned, reference: {model: org/reference}}"
    guide_file = written(tmp_path, text, "guide.yaml")
    guide = load(GenerateRecipe, None, (), {"base.model": "b"}, [guide_file]).guide
    assert guide is not None
    assert guide.name == tmp_path.name
    assert guide.implicit[0].tuned == ModelSpec(model=str(tmp_path / "tuned"))
    assert guide.implicit[0].reference == ModelSpec(model="org/reference")


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("tuluu", 'no guide named "tuluu" → did you mean tulu? shipped: critics, imdb, '),
        ("xyz", 'no guide named "xyz" → shipped: critics, imdb, '),
        ("no.yaml", 'guide "no.yaml" is not there → give a YAML file or a folder with guide.yaml'),
        ("./dir", 'guide "./dir" has no guide.yaml → give a YAML file or a folder with guide.yaml'),
    ],
)
def test_a_guide_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir").mkdir()
    text = sentence(GenerateRecipe, None, (), {"base.model": "b"}, [reference])
    assert text.startswith("--guide: " + expected)


def test_a_mistake_in_a_guide_file_is_told_at_its_own_line(tmp_path: Path) -> None:
    guide = written(tmp_path, f"{PAIR}\nexplict: m:f", "guide.yaml")
    recipe = written(tmp_path, f"base: b\nguide: {guide}")
    assert sentence(GenerateRecipe, recipe) == (
        f"{guide}:2: guide.explict: unknown key → did you mean explicit?"
    )
    empty = written(tmp_path, "", "empty.yaml")
    assert sentence(GenerateRecipe, recipe, guides=[empty]) == (
        f"{empty}: not a guide → give it implicit, explicit or both"
    )


def drawn_recipe(chance: random.Random) -> GenerateRecipe:
    """Draw a recipe with awkward texts and numbers."""
    texts = [
        "a",
        "1e-5",
        "yes",
        "null",
        "010",
        "12:30",
        " x ",
        "a\nb\n",
        "{prompt}: #é\t",
        "~",
        "»\x85",
    ]

    def model() -> dict[str, Any]:
        spec: dict[str, Any] = {"model": chance.choice(texts)}
        if chance.random() < 0.5:
            spec["template"] = chance.choice(texts) + "{prompt}"
        elif chance.random() < 0.5:
            spec["system"] = chance.choice(texts)
        return spec

    weight = chance.choice([0, 1, -0.5, 1e-5, 1e20, 0.1 + 0.2])
    return GenerateRecipe.model_validate(
        {
            "base": model(),
            "guide": {
                "implicit": [{"tuned": model(), "reference": model(), "weight": weight}],
                "explicit": [{"model": model()}, "m:f"],
            },
            "mode": chance.choice(list(MODES)),
            "seed": chance.randrange(-(2**40), 2**40),
            "chunk": {"chunk_length": chance.choice([None, 5])},
            "sampling": {"stop": chance.sample(texts, 3), "temperature": abs(weight)},
        }
    )


@pytest.mark.parametrize("seed", range(40))
def test_writing_and_reading_a_recipe_is_the_identity(tmp_path: Path, seed: int) -> None:
    recipe = drawn_recipe(random.Random(seed))
    again = load(GenerateRecipe, written(tmp_path, to_yaml(recipe)))
    assert again == recipe
    assert to_yaml(again) == to_yaml(recipe)
    assert run_id(again) == run_id(recipe)


@pytest.mark.parametrize("given", ["auto", "off", "1", "12"])
def test_speculation_is_auto_off_or_a_number(tmp_path: Path, given: str) -> None:
    recipe = load(GenerateRecipe, written(tmp_path, f"base: b\nengine: {{speculate: {given}}}\n"))
    assert recipe.engine.speculate == (int(given) if given.isdecimal() else given)
    assert load(GenerateRecipe, written(tmp_path, to_yaml(recipe))) == recipe


@pytest.mark.parametrize("given", ["on", "0", "-2", "1.5", "true", '"4"', "[4]"])
def test_any_other_speculation_is_told(tmp_path: Path, given: str) -> None:
    text = f"base: b\nengine:\n  speculate: {given}\n"
    assert "expected auto, off or a number of tokens, got" in sentence(
        GenerateRecipe, written(tmp_path, text)
    )


def test_the_run_id_names_what_a_response_depends_on() -> None:
    def named(**flags: Any) -> str:
        return run_id(load(GenerateRecipe, flags={"base.model": "b", **flags}))

    assert len(named()) == 8
    assert int(named(), 16) >= 0
    assert named(**{"engine.rows": 3}) == named(**{"engine.device": "cuda"}) == named()
    assert named(**{"engine.speculate": 3}) == named(**{"engine.speculate": "off"}) == named()
    changed = [{"seed": 1}, {"token.weight": 0.5}, {"engine.dtype": "float16"}, {"base.model": "c"}]
    assert len({named(), *(named(**flags) for flags in changed)}) == 5
    assert named(**{"token.weight": 1}) == named(**{"token.weight": 1.0})
