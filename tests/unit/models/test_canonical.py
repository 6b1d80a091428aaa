"""Canonical ids against encoding the whole text again, after every addition."""

from __future__ import annotations

import codecs
import importlib.util
import itertools
import json
import random
from collections.abc import Iterator, Sequence

import pytest

from ivgcli.models.byte_vocabulary import ByteVocabulary
from ivgcli.models.canonical import Canonical
from tests.real_tokenizers import FAMILIES, REAL, mistral, named, sentencepiece_file, vocabulary
from tests.texts import TEXTS

PROMPTS = {
    "chat": "{end}user\nTell me.{end}\nassistant\n",
    "turn": "Tell me.{end}",
    "raw": "The film was wonder",
    "space": "It ends in a space ",
    "spaces": "tabs and spaces \t  ",
    "apostrophe": "They don'",
    "digits": "It was 12",
    "known": "naïve café",
}
PAIRS = [
    ("smollm2", "mistral"),
    ("mistral", "smollm2"),
    ("tekken", "mistral"),
    ("mistral", "tekken"),
    ("smollm2", "mistral-metaspace"),
    ("gpt2", "tekken"),
    ("tekken", "gpt2"),
    ("smollm2", "unigram"),
]
"""Whose tokens write the text, who reads it."""

EXACT = [name for name in [*REAL, *FAMILIES] if name != "unigram-unsplit"]


def encoded(name: str, text: str) -> list[int]:
    """Return the ids of a whole text, special tokens found in it."""
    return named(name).backend_tokenizer.encode(text, add_special_tokens=False).ids


def written(writer: str, text: str) -> list[bytes]:
    """Return a text's bytes in the portions of a tokenizer's tokens."""
    pieces = vocabulary(writer).pieces
    return [pieces[token] or b"" for token in encoded(writer, text)]


def cut(text: str, rng: random.Random) -> list[bytes]:
    """Return a text's bytes in portions of 1 to 8, characters cut apart."""
    rest = text.encode()
    portions = []
    while rest:
        size = rng.choice([1, 1, 2, 3, 5, 8])
        portions.append(rest[:size])
        rest = rest[size:]
    return portions


def opened(name: str, prompt: str) -> tuple[str, Canonical]:
    """Return a prompt of `PROMPTS` with the tokenizer's special token, and a fresh object behind it."""
    text = PROMPTS[prompt].format(end=named(name).eos_token)
    return text, Canonical(vocabulary(name), encoded(name, text))


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many leading ids two sequences share."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return sum(1 for _ in pairs)


def follow(name: str, prompt: str, canonical: Canonical, portions: Sequence[bytes]) -> int:
    """Append portions, and compare everything with the whole text's encoding after each; return the steps."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = prompt
    for portion in portions:
        before = list(canonical.ids)
        stay, then = canonical.after(portion)
        assert canonical.ids == before, "a look ahead changes nothing"
        kept = canonical.append(portion)
        text += decoder.decode(portion)
        assert canonical.ids == encoded(name, text), text[-40:]
        assert kept == common(before, canonical.ids)
        assert (stay, list(then)) == (kept, canonical.ids[kept:])
        assert canonical.held == decoder.getstate()[0]
        # Every byte of the text belongs to one token; before there is any, a first space is waiting.
        known = [vocabulary(name).pieces[token] for token in canonical.ids[canonical.root :]]
        rest = bytes(canonical.text[canonical.root_place :])
        if None not in known:
            unwritten = vocabulary(name).unwritten(canonical.before)
            assert b"".join(known) == rest or (rest == unwritten and not known)
        assert not canonical.ends or canonical.end(len(canonical.ids)) == canonical.length
    return len(portions)


def prompts() -> Iterator[str]:
    """Yield names of prompts, round and round."""
    return itertools.cycle(PROMPTS)


@pytest.mark.parametrize(("writer", "reader"), PAIRS)
def test_ids_are_those_of_the_whole_text_after_every_token_of_another_tokenizer(
    writer: str, reader: str
) -> None:
    names = prompts()
    steps = 0
    for name, text in TEXTS.items():
        prompt, canonical = opened(reader, next(names))
        # One text is long enough for an error to add up.
        portions = (written(writer, text) * 6)[: 510 if name == "English" else 60]
        steps += follow(reader, prompt, canonical, portions)
    assert steps > 1000


@pytest.mark.parametrize("name", EXACT)
def test_ids_are_those_of_the_whole_text_wherever_it_is_cut(name: str) -> None:
    rng = random.Random(7)
    names = prompts()
    for text in TEXTS.values():
        start = rng.randrange(len(text) - 120)
        prompt, canonical = opened(name, next(names))
        follow(name, prompt, canonical, cut(text[start : start + 120], rng))


@pytest.mark.parametrize("name", EXACT)
def test_every_prompt_can_be_followed_byte_by_byte(name: str) -> None:
    for prompt_name in PROMPTS:
        prompt, canonical = opened(name, prompt_name)
        for text in ("ful 12's  end.", "é。 好\n\n x", "3's <tool_call>can't"):
            follow(name, prompt, canonical.copy(), [bytes([byte]) for byte in text.encode()])


@pytest.mark.parametrize("name", EXACT)
def test_an_empty_prompt_begins_a_document(name: str) -> None:
    rng = random.Random(3)
    for text in TEXTS.values():
        follow(name, "", Canonical(vocabulary(name), []), cut(text[:80], rng))


@pytest.mark.parametrize("name", ["mistral-metaspace", "unigram", "roberta"])
def test_a_first_space_is_kept_beside_the_one_that_nobody_has_written(name: str) -> None:
    # Encoded as it is, " It" would be "It": these tokenizers write no second space in front of a first.
    canonical = Canonical(vocabulary(name), [])
    assert (canonical.ids, bytes(canonical.text)) == ([], b" ")
    canonical.append(b" It was")
    assert canonical.ids == encoded(name, "  It was")
    assert vocabulary(name).text(canonical.ids) == b"  It was"


@pytest.mark.parametrize("name", ["mistral", "mistral-metaspace", "smollm2"])
def test_a_beginning_token_alone_is_an_empty_prompt(name: str) -> None:
    bos = named(name).bos_token_id
    canonical = Canonical(vocabulary(name), [bos])
    canonical.append(b"It was")
    assert canonical.ids == [bos, *encoded(name, "It was")]


@pytest.mark.parametrize("name", ["mistral", "mistral-metaspace", "tekken", "smollm2"])
def test_the_name_of_a_special_token_in_a_response_is_only_text(name: str) -> None:
    end = named(name).eos_token
    canonical = Canonical(vocabulary(name), encoded(name, f"Strike it out.{end}"))
    canonical.append(f"out{end} now".encode())
    assert canonical.ids.count(named(name).eos_token_id) == 1
    assert vocabulary(name).text(canonical.ids).endswith(f"out{end} now".encode())


@pytest.mark.parametrize("name", ["mistral", "smollm2"])
def test_bytes_that_are_no_character_become_the_replacement_character(name: str) -> None:
    portions = [
        b"a\xff",
        b"b\xe2\x82",
        b"c",
        b"\xf0\x9f\x98",
        b"\x80",
        b"\xc3",
        b"\xc3",
        b"\xa9 \x80.",
    ]
    canonical = Canonical(vocabulary(name), encoded(name, "One: "))
    follow(name, "One: ", canonical, portions)
    assert canonical.ids == encoded(name, "One: " + b"".join(portions).decode(errors="replace"))


@pytest.mark.parametrize("name", ["mistral", "tekken"])
def test_a_prompt_cut_to_length_inside_a_character_can_be_followed(name: str) -> None:
    ids = encoded(name, "𓀀𓁐")[-3:]
    canonical = Canonical(vocabulary(name), ids)
    canonical.append(b"then ")
    assert canonical.ids[:3] == ids
    assert vocabulary(name).text(canonical.ids[3:]) == b"then "


@pytest.mark.parametrize("name", ["mistral", "smollm2"])
def test_a_prompt_that_is_tokenised_unlike_its_text_is_left_as_it_is(name: str) -> None:
    letters = [token for letter in "wonder" for token in encoded(name, "\n" + letter)[-1:]]
    ids = encoded(name, "The film was") + letters
    canonical = Canonical(vocabulary(name), ids)
    canonical.append(b"ful film")
    assert canonical.ids[: len(ids)] == ids
    assert vocabulary(name).text(canonical.ids).lstrip() == b"The film waswonderful film"


@pytest.mark.parametrize("name", ["mistral", "tekken", "unigram"])
def test_a_copy_goes_its_own_way(name: str) -> None:
    prompt, canonical = opened(name, "raw")
    canonical.append("ful and café".encode()[:-1])
    other = canonical.copy()
    seen = (list(canonical.ids), list(canonical.ends), bytes(canonical.text), canonical.held)
    other.append(b"\xa9 noir")
    now = (list(canonical.ids), list(canonical.ends), bytes(canonical.text), canonical.held)
    assert now == seen
    canonical.append(b"\xa9 noir")
    assert canonical.ids == other.ids == encoded(name, prompt + "ful and café noir")


@pytest.mark.parametrize("name", ["mistral", "tekken", "unigram"])
def test_replacing_a_response_equals_starting_anew(name: str) -> None:
    prompt, canonical = opened(name, "raw")
    responses = ["ful, and long", "ful, and longer", "ful, or", "land", "", "é"]
    current = b""
    for response in responses:
        before = list(canonical.ids)
        kept = canonical.replace(response.encode(), current)
        current = response.encode()
        fresh = Canonical(vocabulary(name), encoded(name, prompt))
        fresh.append(current)
        assert canonical.ids == fresh.ids == encoded(name, prompt + response)
        assert (canonical.ends, canonical.text) == (fresh.ends, fresh.text)
        assert kept == common(before, canonical.ids)


def test_an_unsplit_unigram_model_is_segmented_as_well_as_by_itself() -> None:
    # Segmentations of equal score are told apart by rounding, which depends on all that stands before.
    name = "unigram-unsplit"
    described = json.loads(named(name).backend_tokenizer.to_str())
    scores = [score for _, score in described["model"]["vocab"]]
    differing = 0
    for text in TEXTS.values():
        canonical = Canonical(vocabulary(name), encoded(name, "The film was"))
        for portion in cut(text, random.Random(1)):
            canonical.append(portion)
        theirs = encoded(name, "The film was" + text)
        differing += canonical.ids != theirs
        ours, best = (sum(scores[token] for token in ids) for ids in (canonical.ids, theirs))
        assert ours == pytest.approx(best, abs=1e-4)
    assert differing < len(TEXTS) // 2


def test_text_behind_the_last_closed_place_stays_short() -> None:
    # Words of English; in Chinese what stands between two signs of punctuation.
    for name in ("mistral", "smollm2", "tekken"):
        canonical = Canonical(vocabulary(name), encoded(name, "A story:\n"))
        longest = 0
        for portion in written("smollm2", TEXTS["English"] + TEXTS["Chinese"]):
            canonical.append(portion)
            longest = max(longest, canonical.length - canonical.root_place)
        assert longest <= 100


@pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is None, reason="sentencepiece is not installed"
)
def test_the_fixture_segments_text_as_sentencepiece_does() -> None:
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file()))
    for text in TEXTS.values():
        assert encoded("mistral", text) == theirs.encode(text)


def test_nothing_of_the_prompt_before_its_last_closed_place_is_kept_as_text() -> None:
    reader = ByteVocabulary(mistral())
    canonical = Canonical(reader, encoded("mistral", "A long story of a film that was wonder"))
    assert bytes(canonical.text) == b" wonder"
    assert canonical.end(len(canonical.ids)) == canonical.length == 7
