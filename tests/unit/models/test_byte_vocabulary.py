"""Bytes behind ids, ranges of the sorted vocabulary and closed places, against brute force."""

from __future__ import annotations

import random
import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ivgcli.errors import ModelError
from ivgcli.models.byte_vocabulary import START, ByteVocabulary
from tests.models import tokenizer
from tests.real_tokenizers import (
    FAMILIES,
    REAL,
    byte_level,
    mistral,
    named,
    smollm2,
    trained,
    vocabulary,
    wrapped,
)
from tests.texts import TEXTS

TOYS = ["bytes", "other", "metaspace", "permuted"]
EVERY = [*REAL, *FAMILIES]
ENDINGS = [
    "",
    "x",
    "X",
    "ing",
    " ",
    "  ",
    " x",
    "\n",
    "\n\n",
    " \n",
    "0",
    "12",
    ".",
    "...",
    "'s",
    "'",
]
ENDINGS += ["é", "ж", "好", "。", "ा", "🏽", "\u200d", "\u00a0", "\t", "/", "<", "e\u0301", ":\n"]
"""What a text may go on with."""


def encoded(name: str, text: str) -> list[int]:
    """Return the ids of a text."""
    return named(name).backend_tokenizer.encode(text, add_special_tokens=False).ids


def brute_span(pieces: list[bytes | None], prefix: bytes) -> set[int]:
    """Return the ids whose piece begins with a prefix."""
    return {token for token, piece in enumerate(pieces) if piece and piece.startswith(prefix)}


def brute_heads(pieces: list[bytes | None], text: bytes) -> set[int]:
    """Return the ids whose piece is a beginning of a text, but shorter."""
    return {
        token
        for token, piece in enumerate(pieces)
        if piece and text.startswith(piece) and piece != text
    }


@pytest.mark.parametrize("name", EVERY)
def test_the_bytes_of_a_texts_ids_are_the_texts(name: str) -> None:
    reader = vocabulary(name)
    for text in TEXTS.values():
        if name in ("unigram", "unigram-unsplit"):
            # Characters that the model has never seen have no bytes.
            text = "".join(each for each in text if each.isspace() or each.encode() in reader.ids)
        given = reader.normalised(text)
        opens = reader.opens_with_space and not (given.startswith(" ") and name != "mistral")
        assert reader.text(encoded(name, text)).decode() == " " * opens + given


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("gemma", "roberta")])
def test_ends_are_where_the_tokenizer_itself_ends_its_tokens(name: str) -> None:
    reader = vocabulary(name)
    for text in ("wholly 清晨的雾 ok", "naïve жук 12", TEXTS["Japanese"][:60]):
        written = (" " if reader.opens_with_space else "") + text
        ends = reader.ends(written.encode(), START)
        encoding = named(name).backend_tokenizer.encode(text, add_special_tokens=False)
        theirs = [place for _, place in encoding.offsets]
        shift = len(written) - len(text)
        for ours, place in zip(ends, theirs, strict=True):
            # Where a token ends inside a character, the tokenizer names the character's end.
            low = len(written[: max(0, place + shift - 1)].encode())
            assert low <= ours <= len(written[: place + shift].encode())
        assert ends[-1] == len(written.encode())


@pytest.mark.parametrize("name", TOYS)
def test_ranges_and_beginnings_are_those_of_brute_force_on_a_whole_toy_vocabulary(
    name: str,
) -> None:
    reader = ByteVocabulary(tokenizer(name))
    asked = {piece[:size] for piece in reader.sorted for size in range(1, len(piece) + 1)}
    for prefix in (*asked, b"", b"\xff", b"\xff\xff", b"zz\xff", b"\x00"):
        begin, end = reader.span(prefix)
        assert set(reader.order[begin:end].tolist()) == brute_span(reader.pieces, prefix)
        for text in (prefix, prefix + b"e", prefix + b" the film"):
            heads = reader.heads(text)
            assert set(heads) == brute_heads(reader.pieces, text)
            assert len(set(heads)) == len(heads)


@pytest.mark.parametrize("name", REAL)
def test_ranges_and_beginnings_are_those_of_brute_force_on_samples(name: str) -> None:
    reader = vocabulary(name)
    rng = random.Random(5)
    for _ in range(12):
        piece = rng.choice(reader.sorted)
        prefix = piece[: rng.randrange(1, len(piece) + 1)]
        text = piece + rng.choice(reader.sorted)
        begin, end = reader.span(prefix)
        assert set(reader.order[begin:end].tolist()) == brute_span(reader.pieces, prefix)
        heads = reader.heads(text)
        assert set(heads) == brute_heads(reader.pieces, text)
        sizes = [len(reader.pieces[token] or b"") for token in heads]
        assert sizes == sorted(sizes)


def test_mistral_has_every_byte_and_some_characters_twice() -> None:
    reader = vocabulary("mistral")
    assert reader.size == 32000
    assert {bytes([byte]) for byte in range(256)} <= reader.ids.keys()
    assert len(reader.ids[b"a"]) == 2, "the byte <0x61> and the character"
    assert [reader.pieces[token] for token in range(3)] == [None, None, None]
    assert reader.pieces[3 + 0x0A] == b"\n"
    assert reader.pieces[mistral().convert_tokens_to_ids("▁▁▁")] == b"   "
    assert reader.kind == "SentencePiece BPE"


def test_kinds_are_told_apart() -> None:
    kinds = {name: vocabulary(name).kind for name in ("smollm2", "tekken", "unigram", "gemma")}
    assert kinds == {
        "smollm2": "byte-level BPE",
        "tekken": "byte-level BPE",
        "unigram": "unigram",
        "gemma": "SentencePiece BPE",
    }


@pytest.mark.parametrize("name", [name for name in EVERY if name != "unigram-unsplit"])
def test_tokens_before_a_closed_place_stay_however_the_text_goes_on(name: str) -> None:
    reader = vocabulary(name)
    rng = random.Random(11)
    doubling = 1 if reader.opens_with_space else 0
    closed = 0
    for text in TEXTS.values():
        begin = rng.randrange(len(text) - 40)
        text = reader.normalised("x" + text[begin : begin + 40])
        whole = (" " * doubling + text).encode()
        ids = reader.canonical(whole, START)
        for place, count in [(end, n + 1) for n, end in enumerate(reader.ends(whole, START))]:
            if not reader.closed(whole, place):
                continue
            closed += 1
            cut = len(whole[:place].decode()) - doubling
            # Whatever follows the text as it is, and whatever else might have followed the next character.
            goes_on = [text + ending for ending in ENDINGS]
            goes_on += [text[: cut + 1] + ending for ending in ENDINGS]
            for longer in goes_on:
                assert tuple(encoded(name, longer)[:count]) == ids[:count], (longer, cut)
                if cut >= len(text):
                    break
            rest = whole[place:]
            assert ids[:count] + reader.canonical(rest, text[cut - 1]) == ids
    assert closed > 40


@pytest.mark.parametrize("name", [name for name in EVERY if name != "unigram-unsplit"])
def test_no_token_lies_across_a_closed_place(name: str) -> None:
    reader = vocabulary(name)
    for text in TEXTS.values():
        text = reader.normalised("x" + text[:80])
        for cut in range(1, len(text)):
            place = len(text[:cut].encode()) + reader.opens_with_space
            whole = (" " * reader.opens_with_space + text).encode()
            if reader.closed(whole, place):
                assert place in reader.ends(whole, START), (text[:cut], text[cut:])


def test_a_place_inside_a_character_is_open() -> None:
    reader = vocabulary("mistral")
    assert not reader.beside[0xF3].any(), "no piece has anything behind the first byte"
    text = "a\U000f0000".encode()
    assert not any(reader.closed(text, place) for place in range(2, 5))
    assert not any(reader.closed(text[:place], place) for place in range(2, 5))
    assert reader.closed(b"a\n", 2)


def test_an_added_token_keeps_the_places_within_it_open() -> None:
    reader = vocabulary("added")
    assert reader.closed(b"<tool_call>", 5) is False
    assert vocabulary("smollm2").closed(b"<tool_call>", 5) is True


def test_names_of_special_tokens_are_text_and_truncation_elsewhere_has_no_effect() -> None:
    reading = trained("starcoder")
    before = ByteVocabulary(reading)
    core = reading.backend_tokenizer
    core.enable_truncation(2)
    core.enable_padding(length=9)
    try:
        reader = ByteVocabulary(reading)
    finally:
        core.no_truncation()
        core.no_padding()
    assert reader.fingerprint == before.fingerprint
    text = b"Strike </s> out, and <s> as well"
    assert reader.text(reader.canonical(text, START)) == text
    assert core.encode("a</s>", add_special_tokens=False).ids[-1] == reading.eos_token_id


def test_a_fingerprint_is_of_bytes_merges_and_roles() -> None:
    reading = tokenizer("bytes")
    prints = {name: ByteVocabulary(tokenizer(name)).fingerprint for name in TOYS}
    assert len(set(prints.values())) == len(TOYS)
    assert ByteVocabulary(reading).fingerprint == prints["bytes"]
    assert ByteVocabulary(reading, eos=[7]).fingerprint != prints["bytes"]
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}
    both = [[("a", "b"), ("b", "c")], [("b", "c"), ("a", "b")]]
    first, second = (ByteVocabulary(wrapped(byte_level(vocab, merges))) for merges in both)
    assert first.pieces == second.pieces
    assert first.fingerprint != second.fingerprint, "abc is ab|c in one and a|bc in the other"


def test_an_added_token_that_the_model_has_too_stands_for_what_the_model_means() -> None:
    model = models.BPE(vocab={"▁": 0, "▁▁": 1, "a": 2}, merges=[("▁", "▁")])
    core = Tokenizer(model)
    core.normalizer = normalizers.Replace(" ", "▁")
    core.add_tokens(["▁▁", "▁a"])
    reader = ByteVocabulary(wrapped(core))
    assert reader.pieces == [b" ", b"  ", b"a", "▁a".encode()]


def refused(
    model: Any, split: Any = None, normal: Any = None, decoder: Any = None
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of given parts."""
    core = Tokenizer(model)
    if split is not None:
        core.pre_tokenizer = split
    if normal is not None:
        core.normalizer = normal
    if decoder is not None:
        core.decoder = decoder
    return wrapped(core, unk_token="a")


LETTERS = {"a": 0, "b": 1}
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
METASPACE = pre_tokenizers.Metaspace()
REFUSED = {
    "a WordPiece tokenizer": partial(refused, models.WordPiece(LETTERS, unk_token="a")),
    "a WordLevel tokenizer": partial(refused, models.WordLevel(LETTERS, unk_token="a")),
    "a BPE tokenizer": partial(refused, models.BPE(LETTERS, [])),
    "its tokenizer changes text (Lowercase)": partial(
        refused, models.BPE(LETTERS, []), GPT2, normalizers.Lowercase()
    ),
    "its tokenizer changes text (NFKC)": partial(
        refused, models.BPE(LETTERS, []), METASPACE, normalizers.Sequence([normalizers.NFKC()])
    ),
    "its tokenizer changes text (Strip)": partial(
        refused, models.BPE(LETTERS, []), METASPACE, normalizers.Strip()
    ),
    "its tokenizer changes text (Replace)": partial(
        refused, models.BPE(LETTERS, []), METASPACE, normalizers.Replace("``", '"')
    ),
    "its tokenizer loses text (WhitespaceSplit)": partial(
        refused,
        models.Unigram([("a", -1.0)], 0, False),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), METASPACE]),
    ),
    "its tokenizer loses text (Split)": partial(
        refused,
        models.BPE(LETTERS, []),
        pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), GPT2]),
    ),
    "its tokenizer marks the ends or the insides of words": partial(
        refused, models.BPE(LETTERS, [], end_of_word_suffix="</w>"), GPT2
    ),
    "its tokenizer leaves out merges at random (dropout)": partial(
        refused, models.BPE(LETTERS, [], dropout=0.1), GPT2, None, decoders.ByteLevel()
    ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_other_kinds_are_refused_by_name(sentence: str) -> None:
    with pytest.raises(ModelError, match=re.escape(sentence)):
        ByteVocabulary(REFUSED[sentence]())


def test_what_a_tokenizer_is_comes_before_what_it_does_to_text() -> None:
    """BERT's changes text, too, but no other setting would make it one that is known."""
    bert = refused(
        models.WordPiece(LETTERS, unk_token="a"), None, normalizers.BertNormalizer(lowercase=True)
    )
    with pytest.raises(ModelError, match="a WordPiece tokenizer"):
        ByteVocabulary(bert)


def test_a_tokenizer_in_python_is_refused() -> None:
    slow = SimpleNamespace(name_or_path="old/model")
    with pytest.raises(ModelError, match="old/model: a tokenizer in Python"):
        ByteVocabulary(slow)


def test_the_fixture_of_smollm2_is_cut_as_gpt2_cuts() -> None:
    assert len(smollm2()) == 49152
    assert smollm2().tokenize("don't  2024") == ["don", "'t", "Ġ", "Ġ", "2", "0", "2", "4"]
