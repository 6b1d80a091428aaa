"""What would become of a guide over a base, told by tokenizers and configurations alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ivgcli.errors import ModelError
from ivgcli.models.vocabulary import compare
from ivgcli.recipes import GenerateRecipe
from ivgcli.workflows.compatibility import Compatibility, explain
from tests.models import folder, pair, plain, recipe, tokenizer

BY_ID, BY_TABLE = "directly by id", "exactly, by a table of ids"
IN_TOKENS, AGAINST = "in the base's tokens", "by id, though the ids mean other things"
PER_TOKEN = "refused: its values are of other tokens than the base's"


def explained(base: str = "llama", **sections: Any) -> Compatibility:
    return explain(recipe(base, guide=sections.pop("guide"), **sections))


def uses(found: Compatibility) -> list[tuple[str, str]]:
    return [(str(member.tokens), str(member.chunks)) for member in found.members]


def with_tokenizer(name: str, other: str, place: Path) -> str:
    """Return a copy of a network's folder with another tokenizer."""
    target = place / f"{name}-{other}"
    shutil.copytree(folder(name), target)
    tokenizer(other).save_pretrained(target)
    return str(target)


@pytest.mark.parametrize(
    ("guide", "vocabulary", "relation", "tokens", "chunks"),
    [
        ("llama-tuned", "auto", "identical", BY_ID, IN_TOKENS),
        ("llama-tuned", "same", "identical", BY_ID, IN_TOKENS),
        ("llama-padded", "auto", "padded", BY_ID, IN_TOKENS),
        ("llama-superset", "auto", "superset", BY_ID, IN_TOKENS),
        ("llama-permuted", "auto", "permuted", BY_TABLE, f"{IN_TOKENS}, by a table of ids"),
        ("llama-permuted", "same", "permuted", *["refused: vocabulary: same"] * 2),
        ("llama-permuted", "ids", "permuted", AGAINST, AGAINST),
        ("llama-metaspace", "auto", "overlapping", "in bytes", "as text"),
        ("llama-metaspace", "same", "overlapping", *["refused: vocabulary: same"] * 2),
        ("llama-metaspace", "ids", "overlapping", AGAINST, AGAINST),
    ],
)
def test_an_implicit_value_is_used_as_its_vocabulary_allows(
    guide, vocabulary, relation, tokens, chunks
):
    found = explained(guide={"implicit": pair(guide, guide)}, vocabulary=vocabulary)
    assert [member.match.relation for member in found.members] == [relation] * 2
    assert uses(found) == [(tokens, chunks)] * 2
    assert (found.kind, found.size, found.vocabulary) == ("byte-level BPE", 300, vocabulary)


def test_a_tokenizer_of_unknown_kind_is_refused_for_tokens_and_ranks_as_text():
    (words, _) = explained(guide={"implicit": pair("words", "words")}).members
    assert words.kind == "unknown: a WordLevel tokenizer"
    assert str(words.tokens).startswith("refused: the guide: a WordLevel tokenizer; a byte-level")
    assert str(words.chunks) == "as text"
    own = explained("words", guide={"implicit": pair("words-tuned", "words-reference")})
    assert uses(own) == [(BY_ID, IN_TOKENS)] * 2


def test_explicit_values_are_used_by_what_they_give(tmp_path):
    """One value for a prefix, one for each token, one for a text; heads are known by their outputs."""
    values = [
        folder("scalar"),
        {"model": folder("scalar"), "by_text": True},
        folder("scalar-other"),
        folder("token-q"),
        with_tokenizer("token-q", "permuted", tmp_path),
        with_tokenizer("token-q", "metaspace", tmp_path),
        "ivgcli.scoring.sentiment:vader",
    ]
    found = explained(guide={"explicit": values})
    assert uses(found) == [
        (BY_ID, IN_TOKENS),
        ("as text", "as text"),
        ("as text", "as text"),
        (BY_ID, IN_TOKENS),
        (BY_TABLE, f"{IN_TOKENS}, by a table of ids"),
        (PER_TOKEN, PER_TOKEN),
        ("as text", "as text"),
    ]
    assert found.members[-1].match is None
    assert [member.part.role for member in found.members] == [
        "value",
        *(f"value {number}" for number in range(2, 8)),
    ]


def test_one_head_without_an_output_for_each_token_is_not_taken_for_the_vocabulary():
    """The scalar head has one output, which says nothing about the ids that the network reads."""
    (value,) = explained(guide={"explicit": folder("scalar")}).members
    assert value.match.relation == "identical"
    assert value.match.guide_ids == tuple(range(300))


def test_weights_count_once_and_their_bytes_are_those_of_the_parameters():
    each = 4 * sum(weight.numel() for weight in plain("llama").parameters())
    found = explained(guide={"implicit": pair("llama-tuned", "llama")}, engine={"device": "cpu"})
    assert [member.part.weights for member in found.members] == [each, 0]
    assert (found.base.weights, found.weights) == (each, 2 * each)
    halved = explained(
        guide={"implicit": pair("llama-tuned", "llama")},
        engine={"device": "cpu", "dtype": "bfloat16"},
    )
    assert halved.weights == each


def test_a_prompt_pair_is_two_readings_of_one_network():
    pair_of_prompts = {"model": folder("llama-tuned"), "tuned_prompt": "well {prompt}"}
    found = explained(guide={"implicit": pair_of_prompts})
    assert [member.part.role for member in found.members] == ["tuned", "reference"]
    assert found.members[0].match == found.members[1].match
    assert found.weights == 2 * found.base.weights


def test_the_comparison_is_that_of_the_tokenizers_with_the_widths_of_the_heads():
    found = explained("llama-padded", guide={"implicit": pair("llama", "llama-metaspace")})
    same, other = (member.match for member in found.members)
    assert same == compare(tokenizer("bytes"), tokenizer("chat"), 400, 300, [1], [1])
    assert same.relation == "padded"
    assert other.coverage == compare(tokenizer("bytes"), tokenizer("metaspace")).coverage


def test_a_tokenizer_that_is_not_here_is_named_with_what_is_published(tmp_path, monkeypatch):
    """A folder may be called like a model of the table; its tokenizer is taken from the folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder("llama"), tmp_path / "gpt2")
    guide = {"implicit": {"tuned": "allenai/tulu-2-dpo-7b", "reference": "gpt2"}}
    plan = GenerateRecipe.model_validate({"base": "gpt2", "guide": guide})
    with pytest.raises(ModelError) as caught:
        explain(plan)
    assert str(caught.value).startswith(
        "allenai/tulu-2-dpo-7b: its tokenizer cannot be had; by the table of published sizes, "
        "one has the vocabulary of gpt2, the other llama-2's → "
    )
    gone = {"implicit": {"tuned": "./gone", "reference": "gpt2"}}
    with pytest.raises(ModelError, match=r"\./gone: no such folder → check its name"):
        explain(GenerateRecipe.model_validate({"base": "gpt2", "guide": gone}))


def test_a_size_of_the_table_serves_where_only_the_tokenizer_is_here(tmp_path, monkeypatch):
    """Mistral 7B has 7.24B weights by its card, and the folder has no config.json."""
    monkeypatch.chdir(tmp_path)
    tokenizer("metaspace").save_pretrained(tmp_path / "held")
    monkeypatch.setattr("ivgcli.workflows.survey.tokenizer_of", lambda spec: tokenizer("metaspace"))
    model = "HuggingFaceH4/zephyr-7b-beta"
    plan = recipe(
        "llama",
        guide={"implicit": {"tuned": model, "reference": model}},
        engine={"device": "cpu", "dtype": "bfloat16"},
    )
    part = explain(plan).members[0].part
    assert part.weights == 2 * 7_241_732_096
    assert (part.found.told_by, part.found.missing) == (
        "the table of published sizes",
        "not on this machine",
    )


def test_what_is_found_can_be_written_as_json():
    guide = {"name": "mine", "implicit": pair("llama-metaspace", "llama")}
    found = explained(guide={**guide, "explicit": "ivgcli.scoring.sentiment:vader"})
    written = json.loads(json.dumps(found.to_json()))
    assert (written["guide"], written["base"]["tokens"]) == ("mine", 300)
    tuned, reference, value = written["networks"]
    assert tuned["token_guidance"] == {"how": "in bytes", "why": None}
    assert reference["vocabulary"]["relation"] == "identical"
    assert (value["vocabulary"], value["weight_bytes"]) == (None, None)
    assert written["weight_bytes"] == found.weights
