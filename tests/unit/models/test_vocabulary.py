"""Whether two tokenizers mean the same by the same ids, and what happens where they do not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ivgcli.errors import ModelError
from ivgcli.models.probe import PROBES, spans
from ivgcli.models.vocabulary import byte_vocabulary, compare
from ivgcli.values.by_text import RetokenisedImplicitValue, RetokenisedScalarValue
from tests.models import (
    SPECIALS,
    byte_tokenizer,
    decode,
    engine_of,
    folder,
    pair,
    recipe,
    tokenizer,
    wrapped,
)

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
def test_vocabulary_same_refuses_token_guidance_with_the_difference_and_a_choice(guide):
    with pytest.raises(ModelError) as caught:
        parts = {"guide": {"implicit": pair(guide, guide)}, "sampling": SHORT}
        decode(recipe("llama", "eft-i", vocabulary="same", **parts))
    said = str(caught.value)
    assert said.startswith(f"{folder('llama')} and {folder(guide)}: vocabulary: same, but token ")
    assert "→ use a guide of the base's family" in said


def test_a_tokenizer_of_no_known_kind_guides_no_tokens_and_another_way_is_named():
    with pytest.raises(ModelError) as caught:
        decode(recipe("llama", "eft-i", guide={"implicit": pair("words", "words")}, sampling=SHORT))
    assert "a WordLevel tokenizer" in str(caught.value)
    assert "or a mode that ranks by text: cbs-i, cbs-e, or ivg bon" in str(caught.value)


def test_chunk_ranking_across_vocabularies_goes_by_text_and_says_so():
    guide = {"implicit": pair("llama-other", "llama-other"), "explicit": folder("scalar-other")}
    assembly, engine = engine_of(recipe("llama", "cbs-i", guide=guide, chunk=CHUNK), 4)
    assert isinstance(engine.values[0], RetokenisedImplicitValue)
    assert (
        f"{folder('llama-other')} has another vocabulary than {folder('llama')}: it reads "
        f"responses as text" in assembly.notes
    )
    assert isinstance(
        engine_of(recipe("llama", "cbs-e", guide=guide, chunk=CHUNK), 4)[1].values[0],
        RetokenisedScalarValue,
    )


@pytest.mark.parametrize("name", ["llama-permuted", "llama-other"])
def test_other_ids_by_table_and_by_text_give_the_values_of_the_same_text(name):
    """A tuned and a reference that are one model give 0 whatever the tokenizer, through all the
    re-encoding."""
    guide = {"implicit": pair(name, name)}
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


def by_string(base: Any, guide: Any, also: dict[str, str] | None = None) -> tuple[int, ...]:
    """Return the guide's id of every token of the base by its string, or by another one."""
    other = also or {}
    ids = guide.get_vocab()
    ours = sorted((token, text) for text, token in base.get_vocab().items())
    return tuple(ids[other.get(text, text)] for _, text in ours)


def described(name: str) -> dict[str, Any]:
    return json.loads(tokenizer(name).backend_tokenizer.to_str())


def rebuilt(text: dict[str, Any], **specials: str) -> Any:
    return wrapped(Tokenizer.from_str(json.dumps(text)), None, **specials)


def respecialled(names: dict[str, str]) -> Any:
    """Return the permuted tokenizer with other names for some special tokens."""
    text = json.dumps(described("permuted"))
    for old, new in names.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    roles = {"pad_token": "<|pad|>", "eos_token": "<|end|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text),
        **{role: names.get(name, name) for role, name in roles.items()},
    )


@pytest.mark.parametrize("guide", ["permuted", "renamed"])
def test_a_permuted_vocabulary_is_exact_by_a_table_from_string_to_string(guide):
    match = compare(tokenizer("bytes"), tokenizer(guide))
    assert (match.relation, match.exact, match.same) == ("permuted", True, False)
    assert match.guide_ids == by_string(tokenizer("bytes"), tokenizer(guide))
    assert match.guide_ids != tuple(range(300))
    assert (match.base_kind, match.shared_bytes) == ("byte-level BPE", 300 - len(SPECIALS))


def test_a_permuted_vocabulary_may_have_more_tokens_and_the_base_may_not():
    larger = rebuilt(described("permuted"))
    larger.add_tokens(["<extra-1>", "<extra-2>"])
    match = compare(tokenizer("bytes"), larger)
    assert match.relation == "permuted"
    assert match.guide_ids == by_string(tokenizer("bytes"), larger)
    back = compare(larger, tokenizer("bytes"))
    assert (back.relation, back.guide_ids, back.guidable) == ("overlapping", None, True)
    assert compare(larger, tokenizer("bytes"), base_width=300).relation == "permuted"


def test_ids_that_mean_the_same_are_identical_padded_or_a_superset_by_tokens_and_widths():
    base, copy, larger = tokenizer("bytes"), tokenizer("chat"), tokenizer("superset")
    everything = tuple(range(300))
    for guide, widths, relation in (
        (copy, (None, None), "identical"),
        (copy, (300, 300), "identical"),
        (copy, (300, None), "identical"),
        (copy, (300, 320), "padded"),
        (copy, (320, 300), "padded"),
        (larger, (300, 302), "superset"),
        (larger, (None, None), "superset"),
    ):
        match = compare(base, guide, *widths)
        assert (match.relation, match.same, match.guide_ids) == (relation, True, everything)


def test_what_a_head_cannot_say_is_no_token_of_its_vocabulary():
    """Two added tokens beyond the base's head never come; ten beyond the guide's cannot be asked about."""
    match = compare(tokenizer("superset"), tokenizer("bytes"), base_width=300)
    assert (match.relation, match.guide_ids) == ("identical", tuple(range(300)))
    match = compare(tokenizer("bytes"), tokenizer("chat"), 300, 290)
    assert (match.relation, match.same) == ("overlapping", False)
    assert match.first_difference == (290, tokenizer("bytes").convert_ids_to_tokens(290), None)


def test_the_same_strings_with_other_merges_are_not_the_same_vocabulary():
    text = described("bytes")
    text["model"]["merges"].reverse()
    other = rebuilt(text)
    differing = tuple(
        name
        for name, probe in PROBES.items()
        if other(probe)["input_ids"] != tokenizer("bytes")(probe)["input_ids"]
    )
    match = compare(tokenizer("bytes"), other)
    assert "English" in differing
    assert (match.relation, match.same, match.exact) == ("overlapping", False, False)
    assert (match.shared_ids, match.first_difference) == (300, None)
    assert match.otherwise_cut == differing
    assert match.sentence() == (
        "the ids mean the same strings, but texts are cut into other tokens "
        f"({', '.join(differing)})"
    )
    assert match.coverage["English"].shared == 1.0
    assert match.coverage["English"].same_span < 1.0


def test_a_permuted_copy_with_other_merges_is_not_exact():
    text = described("permuted")
    text["model"]["merges"].reverse()
    assert compare(tokenizer("bytes"), rebuilt(text)).relation == "overlapping"


def test_special_tokens_of_other_names_are_matched_by_their_roles():
    names = {"<|pad|>": "<nothing>", "<|end|>": "</s>"}
    guide = respecialled(names)
    match = compare(tokenizer("bytes"), guide)
    assert match.relation == "permuted"
    assert match.guide_ids == by_string(tokenizer("bytes"), guide, names)


def test_a_special_token_without_a_counterpart_is_no_exact_match():
    """<|system|> has no role that transformers knows, and the guide calls it otherwise."""
    match = compare(tokenizer("bytes"), respecialled({"<|system|>": "<sys>"}))
    assert (match.relation, match.guidable) == ("overlapping", True)


def test_what_ends_a_text_goes_with_what_ends_a_text():
    """The base also ends with <|user|>, id 3; the guide with <|assistant|> first, id 4, which the base never does."""
    match = compare(tokenizer("bytes"), tokenizer("permuted"), base_eos=[1, 3], guide_eos=[1])
    assert match.guide_ids is not None
    assert match.guide_ids[1] == match.guide_ids[3] == 1
    back = compare(tokenizer("bytes"), tokenizer("permuted"), base_eos=[1], guide_eos=[4, 1])
    assert back.relation == "overlapping"


def test_a_byte_and_a_character_of_the_same_bytes_keep_apart():
    """SentencePiece's <0x61> and a are the same byte; each goes to its own kind, though one of two would do."""
    text = described("metaspace")
    head = 2 + len(SPECIALS)
    size = len(text["model"]["vocab"])
    text["model"]["vocab"] = {
        string: token if token < head else head + size - 1 - token
        for string, token in text["model"]["vocab"].items()
    }
    guide = rebuilt(text, unk_token="<unk>", bos_token="<s>")
    base = tokenizer("metaspace")
    match = compare(base, guide)
    assert {"<0x61>", "a"} <= base.get_vocab().keys()
    assert (match.relation, match.base_kind) == ("permuted", "SentencePiece BPE")
    assert match.guide_ids == by_string(base, guide)


def pieces(reader: Any) -> dict[int, bytes]:
    """Return the bytes of every token that stands for text, from transformers' table and the strings."""
    table = {character: byte for byte, character in bytes_to_unicode().items()}
    special = set(reader.all_special_ids) | {
        reader.convert_tokens_to_ids(each) for each in SPECIALS
    }
    found = {}
    for text, token in reader.get_vocab().items():
        if token in special:
            continue
        if reader is not tokenizer("metaspace"):
            found[token] = bytes(table[character] for character in text)
        elif text.startswith("<0x"):
            found[token] = bytes.fromhex(text[3:5])
        else:
            found[token] = text.replace("▁", " ").encode()
    return found


def naive_spans(reader: Any, text: str) -> list[tuple[int, int, bytes]]:
    """Return begin, end and bytes of every token; a first space that nobody wrote is cut off."""
    own, place, found = pieces(reader), 0, []
    unwritten = 1 if reader is tokenizer("metaspace") else 0
    for token in reader(text, add_special_tokens=False)["input_ids"]:
        begin, place = place, place + len(own[token])
        found.append((max(0, begin - unwritten), place - unwritten, own[token]))
    return [each for each in found if each[1] > each[0]]


@pytest.mark.parametrize(
    ("base", "guide"),
    [("bytes", "metaspace"), ("metaspace", "bytes"), ("bytes", "other"), ("other", "metaspace")],
)
def test_counts_and_coverage_of_overlapping_vocabularies_equal_naive_ones(base, guide):
    ours, theirs = tokenizer(base), tokenizer(guide)
    match = compare(ours, theirs)
    assert match.relation == "overlapping"
    first, second = ours.get_vocab(), theirs.get_vocab()
    assert match.shared_strings == sum(text in second for text in first)
    assert match.shared_ids == sum(second.get(text) == token for text, token in first.items())
    known = set(pieces(theirs).values())
    assert match.shared_bytes == sum(piece in known for piece in pieces(ours).values())
    assert list(match.coverage) == list(PROBES)
    for name, text in PROBES.items():
        own, other = naive_spans(ours, text), naive_spans(theirs, text)
        length = len(text.encode())
        ends = [end for _, end, _ in own if end < length]
        places = {(begin, end) for begin, end, _ in other}
        expected = (
            sum(piece in known for _, _, piece in own) / len(own),
            sum(end in {last for _, last in places} for end in ends) / len(ends),
            sum((begin, end) in places for begin, end, _ in own) / len(own),
        )
        found = match.coverage[name]
        assert (found.shared, found.aligned, found.same_span) == pytest.approx(expected, abs=1e-12)


def test_vocabularies_that_share_single_bytes_only_are_disjoint():
    match = compare(tokenizer("bytes"), byte_tokenizer(size=256 + len(SPECIALS)))
    assert (match.relation, match.shared_bytes) == ("disjoint", 256)
    assert match.coverage["English"].aligned == 1.0


def test_tokens_tile_a_text_even_where_characters_are_unknown():
    """Words alone know no character of the probe's, and stand for it all the same."""
    core = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁the", -1.0), ("▁", -2.0), ("e", -2.0)], 0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    small = byte_vocabulary(wrapped(core, None, unk_token="<unk>"))
    assert small.kind == "unigram"
    for vocabulary in (small, *map(byte_vocabulary, map(tokenizer, ("metaspace", "other")))):
        for text in PROBES.values():
            found = list(spans(vocabulary, text))
            assert [begin for _, begin, _ in found] == [0, *(end for _, _, end in found[:-1])]
            assert found[-1][2] == len(text.encode())


def test_a_wordpiece_tokenizer_is_refused_by_name_and_compared_by_strings():
    words = {"[UNK]": 0, "<|pad|>": 1, "<|end|>": 2, "th": 3, "##e": 4, "film": 5}
    core = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    guide = wrapped(core, None, unk_token="[UNK]")
    match = compare(tokenizer("bytes"), guide)
    ours = tokenizer("bytes").get_vocab()
    assert (match.relation, match.exact, match.guidable) == ("overlapping", False, False)
    assert match.guide_kind == "unknown: a WordPiece tokenizer"
    assert match.shared_strings == sum(text in ours for text in words)
    assert str(match.refusal).startswith("the guide: a WordPiece tokenizer; a byte-level BPE, ")
    assert str(compare(guide, tokenizer("bytes")).refusal).startswith("the base: a WordPiece ")
    assert match.coverage == {}
    assert compare(guide, guide).guidable, "one tokenizer agrees with itself whatever its kind"


def test_ids_that_agree_are_compared_without_a_look_at_their_bytes(monkeypatch):
    def refuse(*arguments: Any) -> None:
        raise AssertionError("bytes were asked for")

    monkeypatch.setattr("ivgcli.models.vocabulary.ByteVocabulary", refuse)
    assert compare(byte_tokenizer(size=281), byte_tokenizer(size=281)).relation == "identical"


def test_bytes_are_found_out_once_for_each_tokenizer_and_again_when_tokens_are_added():
    reader = byte_tokenizer()
    first = byte_vocabulary(reader)
    assert byte_vocabulary(reader) is first
    assert byte_vocabulary(reader, [0, 1]).eos == {0, 1}
    reader.add_tokens(["<extra-1>"])
    assert byte_vocabulary(reader).pieces[300] == b"<extra-1>"
    assert compare(tokenizer("bytes"), reader).relation == "superset"


def test_equal_tokenizers_in_other_objects_are_not_compared_again():
    first = compare(tokenizer("bytes"), rebuilt(described("metaspace"), unk_token="<unk>"))
    assert compare(tokenizer("chat"), rebuilt(described("metaspace"), unk_token="<unk>")) is first
    assert compare(tokenizer("bytes"), rebuilt(described("metaspace"))) is not first


def test_a_comparison_can_be_written_as_json():
    match = compare(tokenizer("bytes"), tokenizer("metaspace"))
    plain = json.loads(json.dumps(match.to_json()))
    assert (plain["relation"], plain["exact"], plain["guidable"]) == ("overlapping", False, True)
    assert plain["coverage"]["code"]["aligned"] == match.coverage["code"].aligned
    assert "guide_ids" not in plain
