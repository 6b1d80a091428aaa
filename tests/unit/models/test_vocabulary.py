"""Whether two tokenizers mean the same by the same ids, and what happens where they do not."""

from __future__ import annotations

import pytest

from ivgcli.errors import ModelError
from ivgcli.models.vocabulary import compare
from ivgcli.values.by_text import RetokenisedImplicitValue, RetokenisedScalarValue
from tests.models import decode, engine_of, folder, pair, recipe, tokenizer

SHORT = {"max_new_tokens": 6}
CHUNK = {"beam_width": 2, "successors": 2, "chunk_length": 3}


def test_a_tokenizer_agrees_with_itself_and_with_its_copy():
    match = compare(tokenizer("bytes"), tokenizer("chat"))
    assert match.same
    assert (match.shared_ids, match.base_size, match.guide_size) == (300, 300, 300)
    assert match.sentence() == "the vocabularies agree"


def test_a_guide_may_know_more_tokens_than_the_base_but_not_fewer():
    assert compare(tokenizer("bytes"), tokenizer("superset")).same
    back = compare(tokenizer("superset"), tokenizer("bytes"))
    assert not back.same
    assert back.sentence() == (
        'token 300 is "<extra-1>" in one and nothing in the other (300 strings are common, 300 of '
        "302 at the same id)"
    )


def test_equal_sizes_prove_nothing():
    """Two tokens in each other's place: 298 of 300 ids agree, and the sentence shows the first that
    does not."""
    first = tokenizer("bytes").convert_ids_to_tokens(40)
    second = tokenizer("bytes").convert_ids_to_tokens(41)
    match = compare(tokenizer("bytes"), tokenizer("renamed"))
    assert not match.same
    assert match.first_difference == (40, first, second)
    assert match.sentence() == (
        f'token 40 is "{first}" in one and "{second}" in the other (300 strings are common, 298 '
        f"of 300 at the same id)"
    )


def test_permuted_ids_share_all_strings_and_few_ids():
    match = compare(tokenizer("bytes"), tokenizer("permuted"))
    assert match.shared_strings == 300
    assert match.shared_ids < 20


@pytest.mark.parametrize("guide", ["llama-permuted", "llama-renamed", "llama-other"])
def test_token_guidance_across_vocabularies_is_refused_with_the_difference_and_the_choices(guide):
    with pytest.raises(ModelError) as caught:
        decode(recipe("llama", "eft-i", guide={"implicit": pair(guide, guide)}, sampling=SHORT))
    assert str(caught.value).startswith(f"{folder('llama')} and {folder(guide)}: token ")
    assert (
        "token guidance needs one vocabulary → use a guide of the base's family, or a mode that "
        "ranks by text" in str(caught.value)
    )


def test_chunk_ranking_across_vocabularies_goes_by_text_and_says_so():
    guide = {
        "implicit": pair("llama-permuted", "llama-permuted"),
        "explicit": folder("scalar-other"),
    }
    assembly, engine = engine_of(recipe("llama", "cbs-i", guide=guide, chunk=CHUNK), 4)
    assert isinstance(engine.values[0], RetokenisedImplicitValue)
    assert (
        f"{folder('llama-permuted')} has another vocabulary than {folder('llama')}: it reads "
        f"responses as text" in assembly.notes
    )
    assert isinstance(
        engine_of(recipe("llama", "cbs-e", guide=guide, chunk=CHUNK), 4)[1].values[0],
        RetokenisedScalarValue,
    )


def test_permuted_ids_by_text_give_the_values_of_the_same_text():
    """A tuned and a reference that are one model give 0 whatever the tokenizer, through all the
    re-encoding."""
    guide = {"implicit": pair("llama-permuted", "llama-permuted")}
    run = decode(
        recipe("llama", "cbs-i", guide=guide, chunk=CHUNK, sampling={"max_new_tokens": 12})
    )
    assert [outcome.winner.value for outcome in run.outcomes.values()] == [0.0] * 5


def test_vocabulary_same_refuses_even_where_text_would_do():
    with pytest.raises(ModelError, match="vocabulary: same, but token"):
        decode(
            recipe(
                "llama",
                "cbs-i",
                guide={"implicit": pair("llama-renamed", "llama-renamed")},
                chunk=CHUNK,
                vocabulary="same",
            )
        )


def test_vocabulary_ids_goes_ahead_with_a_warning():
    run = decode(
        recipe(
            "llama",
            "eft-i",
            guide={"implicit": pair("llama-renamed", "llama-renamed")},
            vocabulary="ids",
            sampling=SHORT,
        )
    )
    assert any(
        note.startswith("warning: ") and "ids are taken as they are" in note
        for note in run.assembly.notes
    )


def test_a_larger_guide_guides_the_tokens_that_both_have():
    """The guide's two extra tokens cannot be drawn, and cut off they do not disturb the sum."""
    run = decode(
        recipe(
            "llama",
            "eft-i",
            guide={"implicit": pair("llama-superset", "llama")},
            sampling={"max_new_tokens": 20},
        )
    )
    assert run.assembly.width == 300
    assert all(token < 300 for tokens in run.tokens().values() for token in tokens)


@pytest.mark.parametrize("mode", ["cbs-i", "eft-i", "eft-e", "cbs-e"])
def test_a_base_padded_beyond_its_vocabulary_never_draws_an_id_that_the_guide_has_no_embedding_for(
    mode,
):
    """Heads are padded to round sizes; the ids in the padding mean nothing, and would crash a
    smaller guide."""
    guide = {"implicit": pair("llama-tuned", "llama-reference"), "explicit": folder("scalar")}
    plan = recipe(
        "llama-padded",
        mode,
        guide=guide,
        chunk=CHUNK,
        token={"candidates": 200},
        sampling={"max_new_tokens": 24, "temperature": 3.0},
    )
    run = decode(plan)
    assert run.network("llama-padded").width == 400
    assert all(token < 300 for tokens in run.tokens().values() for token in tokens)
