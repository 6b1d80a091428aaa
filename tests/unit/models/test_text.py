"""From ids back to text: leading spaces, half characters, stop strings."""

from __future__ import annotations

import pytest

from ivgcli.models.text import StopStrings, response_text
from tests.models import decode, recipe, tokenizer

KINDS = ["bytes", "metaspace"]


def ids(kind: str, text: str) -> list[int]:
    return tokenizer(kind)(text)["input_ids"]


def split(kind: str, prompt: str, response: str) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt and of what follows it when both are encoded together."""
    whole = ids(kind, prompt + response)
    before = ids(kind, prompt)
    assert whole[: len(before)] == before, "the cut falls between two tokens"
    return before, whole[len(before) :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("response", [" a good film", "ing", " 😀", "😀 naïve", ", and that", " "])
@pytest.mark.parametrize("prompt", ["this is", "the 😀😀", "naïve café"])
def test_prompt_and_response_text_make_up_the_text_of_all_ids(kind, prompt, response):
    before = ids(kind, prompt)
    rest = split(kind, prompt, response)[1] if kind == "metaspace" else ids(kind, response)
    assert response_text(tokenizer(kind), before, rest) == response


def test_a_leading_space_that_sentencepiece_hides_is_kept():
    before, rest = split("metaspace", "this is", " a film")
    assert tokenizer("metaspace").decode(rest) == "a film", "decoding the response alone loses it"
    assert response_text(tokenizer("metaspace"), before, rest) == " a film"


@pytest.mark.parametrize("count", range(1, 12))
def test_characters_in_bytes_at_the_end_of_a_prompt_do_not_spoil_a_response_that_begins_in_bytes(
    count,
):
    """However many bytes the prompt ends in, cutting its anchor inside a character must not turn
    good text into �."""
    prompt = "é" * (count % 3) + "字" * count
    assert (
        response_text(
            tokenizer("metaspace"), ids("metaspace", prompt), ids("metaspace", "x字字")[-6:]
        )
        == "字字"
    )


def test_half_a_character_shows_only_where_a_response_really_ends_in_one():
    before, rest = ids("bytes", "the film"), ids("bytes", " 😀!")
    texts = [
        response_text(tokenizer("bytes"), before, rest[:count]) for count in range(len(rest) + 1)
    ]
    assert texts[0] == ""
    assert texts[-1] == " 😀!"
    assert all("�" not in text for text in (texts[0], texts[1], texts[-2], texts[-1]))
    assert any("�" in text for text in texts), "in between the emoji is incomplete"


def test_special_tokens_are_left_out():
    tokens = [*ids("bytes", " good"), tokenizer("bytes").eos_token_id]
    assert response_text(tokenizer("bytes"), ids("bytes", "a"), tokens) == " good"


def first_stop(
    kind: str, prompt: str, response: str, stops: tuple[str, ...]
) -> tuple[int | None, str | None]:
    """Return after how many tokens a stop is found, and the text before it."""
    before, rest = split(kind, prompt, response)
    finder = StopStrings(tokenizer(kind), stops, len(tokenizer(kind)))
    for count in range(1, len(rest) + 1):
        cut = finder.find(before, rest[:count])
        if cut is not None:
            return count, cut
    return None, None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("response", "stops", "kept"),
    [
        (" good film. And more", (". A",), " good film"),
        (" good film. And more", ("film",), " good "),
        (" so\n\nand then", ("\n\n",), " so"),
        (" xyz then", ("zzz", " then", "y"), " x"),
        (" naïve 😀 café", ("😀",), " naïve "),
        (" naïve café x", ("é x",), " naïve caf"),
        (" the end of it", (" the",), ""),
        (" so Q: what", ("Q: ",), " so "),
    ],
)
def test_a_stop_string_is_found_when_it_is_complete_whatever_tokens_it_is_made_of(
    kind, response, stops, kept
):
    count, cut = first_stop(kind, "this is", response, stops)
    assert cut == kept
    before, rest = split(kind, "this is", response)
    shown = response_text(tokenizer(kind), before, rest[: count - 1])
    assert not any(stop in shown for stop in stops), "and not a token later"


@pytest.mark.parametrize("kind", KINDS)
def test_what_only_looks_like_a_stop_string_does_not_stop(kind):
    assert first_stop(kind, "the end", " of the story", ("end of it", "xyz", "  of")) == (
        None,
        None,
    )


def test_a_stop_string_must_lie_in_the_response():
    """ "film." straddles prompt and response: the prompt's part does not count."""
    assert first_stop("bytes", "the film", ". and", ("film.",)) == (None, None)


def test_without_stop_strings_nothing_is_looked_up():
    finder = StopStrings(tokenizer("bytes"), (), 0)
    assert finder.find([1, 2], [3]) is None


def test_a_run_stops_at_its_stop_strings_and_leaves_them_out():
    free = decode(recipe("llama", sampling={"max_new_tokens": 24}))
    text = free.outcomes["p2", 0].text
    stop = next(char for char in text[3:] if char.isascii() and char.isprintable())
    run = decode(recipe("llama", sampling={"max_new_tokens": 24, "stop": [stop]}))
    for key, outcome in run.outcomes.items():
        whole = free.outcomes[key]
        if stop in whole.text:
            assert outcome.winner.row.finish == "stop"
            assert outcome.text == whole.text.split(stop)[0]
            assert (
                outcome.winner.row.tokens
                == whole.winner.row.tokens[: len(outcome.winner.row.tokens)]
            )
        else:
            assert outcome.text == whole.text
    assert run.outcomes["p2", 0].winner.row.finish == "stop"


def test_every_eos_id_ends_a_response_and_is_kept_among_its_tokens():
    free = decode(recipe("llama", sampling={"max_new_tokens": 24}), eos_ids=frozenset())
    ends = {1, free.tokens()["p2", 0][4]}
    run = decode(recipe("llama", sampling={"max_new_tokens": 24}), eos_ids=frozenset(ends))
    for key, tokens in free.tokens().items():
        place = next((place for place, token in enumerate(tokens) if token in ends), None)
        expected = tokens if place is None else tokens[: place + 1]
        assert run.tokens()[key] == expected
        assert run.outcomes[key].winner.row.finish == ("length" if place is None else "eos")


def test_a_stop_that_is_a_special_token_is_known_by_its_id():
    """Its text never appears in a response, so no search of the text can find it."""
    reader = tokenizer("bytes")
    finder = StopStrings(reader, (reader.pad_token,), len(reader))
    before, rest = split("bytes", "this is", " a film")
    assert finder.find(before, rest) is None
    assert finder.find(before, [*rest, reader.pad_token_id]) == " a film"
