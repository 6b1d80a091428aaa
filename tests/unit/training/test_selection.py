"""Which pairs are trained on, which are held out, and what is told of the others."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from ivgcli.errors import RecordError
from ivgcli.models.prompts import PromptFormat
from ivgcli.records import Pair, Prompt
from ivgcli.training.selection import Selection, encode_pairs, keys_of, split
from ivgcli.training.sequences import Encoder
from tests.models import tokenizer


def pair(prompt: str, chosen: str, rejected: str, identity: str = "a") -> Pair:
    return Pair(Prompt(identity, prompt, None), chosen, rejected)


def selected(*pairs: Pair, max_length: int = 16, cutting: bool = True) -> Selection:
    encoder = Encoder(PromptFormat(tokenizer("ascii")))
    return encode_pairs(pairs, encoder, max_length, cutting)


def tokens(text: str) -> int:
    return len(tokenizer("ascii")(text)["input_ids"])


FINE = pair("film", " a", " b", "fine")
LONG = " a" * 20


def test_equal_responses_teach_nothing() -> None:
    found = selected(FINE, pair("film", " a", " a"))
    assert found.left_out == Counter({"chosen and rejected are equal": 1})
    assert found.records == [FINE]


def test_responses_that_are_equal_as_far_as_they_are_read_teach_nothing() -> None:
    """Found as pairs of zero gradient: both are cut before they differ."""
    found = selected(FINE, pair("film", LONG + " x", LONG + " y"))
    assert found.left_out == Counter({"chosen and rejected are equal in 16 tokens": 1})
    assert found.cut == 0


def test_a_prompt_without_room_for_a_response_is_left_out() -> None:
    size = tokens("film a film a")
    whole = selected(FINE, pair("film a film a", " a", " b"), max_length=size + 1)
    assert [len(each.chosen.response_ids) for each in whole.pairs] == [2, 1]
    full = selected(FINE, pair("film a film a", " a", " b"), max_length=size)
    assert full.left_out == Counter({f"the prompt alone has {size} tokens or more": 1})


def test_a_long_response_is_cut_for_a_policy_and_left_out_for_a_reward() -> None:
    """A policy learns from every token; a reward is of the whole response."""
    given = (FINE, pair("film", LONG, " b"))
    found = selected(*given)
    assert (found.cut, found.left_out) == (1, Counter())
    [_, one] = found.pairs
    assert (len(one.chosen.ids), one.chosen.ended) == (16, False)
    assert (one.rejected.ended, one.rejected.response_ids[-1]) == (True, 1)
    found = selected(*given, cutting=False)
    assert (found.cut, found.records) == (0, [FINE])
    assert found.left_out == Counter({"a response ends beyond 16 tokens": 1})


def test_nothing_left_is_told_with_all_reasons() -> None:
    with pytest.raises(RecordError) as raised:
        selected(pair("film", " a", " a"), pair("film" + LONG, " a", " b"))
    assert str(raised.value) == (
        "pairs: none of 2 pairs can be trained on (1: chosen and rejected are equal; 1: the prompt"
        " alone has 16 tokens or more) → mend them, or raise data.max_length"
    )


def many(count: int, prompts: int, seed: int = 0) -> list[Pair]:
    """Return pairs that answer a few prompts."""
    draw = random.Random(seed)
    return [pair(f"p{draw.randrange(prompts)}", f"c{n}", f"r{n}", str(n)) for n in range(count)]


def ids(pairs: Sequence[Pair]) -> list[str]:
    return [each.id for each in pairs]


@pytest.mark.parametrize("seed", range(10))
def test_no_prompt_is_on_both_sides(seed: int) -> None:
    pairs = many(200, 60, seed)
    train, held_out = split(pairs, 0.1, seed, keys_of(pairs))
    assert sorted(ids(train) + ids(held_out), key=int) == ids(pairs)
    assert not {each.prompt.text for each in train} & {each.prompt.text for each in held_out}
    # Prompts of three pairs or so fill twenty places, and half as many again at most.
    assert 20 <= len(held_out) <= 30


@pytest.mark.parametrize("seed", range(10))
def test_under_one_prompt_no_response_is_on_both_sides(seed: int) -> None:
    draw = random.Random(seed)
    pairs = [pair("a", f"c{draw.randrange(150)}", f"r{n}", str(n)) for n in range(200)]
    train, held_out = split(pairs, 30, seed, keys_of(pairs))
    sides = [
        {text for each in side for text in (each.chosen, each.rejected)}
        for side in (train, held_out)
    ]
    assert not sides[0] & sides[1]
    assert 30 <= len(held_out) <= 45


def test_the_side_depends_on_seed_and_content_alone() -> None:
    pairs = many(100, 50)
    train, held_out = split(pairs, 10, 0, keys_of(pairs))
    again = random.Random(1).sample(pairs, len(pairs))
    assert set(ids(split(again, 10, 0, keys_of(again))[1])) == set(ids(held_out))
    assert ids(train) == [each.id for each in pairs if each not in held_out], "order is kept"
    others = {tuple(ids(split(pairs, 10, seed, keys_of(pairs))[1])) for seed in range(5)}
    assert len(others) == 5


def test_conversations_are_split_by_their_messages() -> None:
    turns = [({"role": "user", "content": f"q{n // 2}"},) for n in range(20)]
    pairs = [Pair(Prompt(str(n), None, turn), f"c{n}", f"r{n}") for n, turn in enumerate(turns)]
    _, held_out = split(pairs, 4, 0, keys_of(pairs))
    assert sorted(Counter(repr(each.prompt.messages) for each in held_out).values()) == [2, 2]


def test_nothing_is_held_out_where_none_is_wanted() -> None:
    pairs = many(5, 5)
    assert split(pairs, 0.05, 0, keys_of(pairs)) == (pairs, [])
    assert split(pairs, 0, 0, keys_of(pairs)) == (pairs, [])


@pytest.mark.parametrize(
    "pairs",
    [
        # Two prompts of ten pairs each: three cannot be had of them.
        [pair(f"p{n % 2}", f"c{n}", f"r{n}", str(n)) for n in range(20)],
        # One prompt, and every pair's rejected response is the same.
        [pair("a", f"c{n}", "r", str(n)) for n in range(20)],
    ],
)
def test_pairs_that_share_too_much_are_told(pairs: list[Pair]) -> None:
    with pytest.raises(RecordError) as raised:
        split(pairs, 3, 0, keys_of(pairs))
    assert str(raised.value) == (
        "data.held_out: 3 of 20 records cannot be held out: they share prompts or responses"
        " → give data.held_out a file of other pairs, or 0"
    )
