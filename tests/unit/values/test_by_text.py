"""Token guidance by values that see text: every candidate's whole text, encoded and read afresh, is
the oracle."""

from __future__ import annotations

import numpy as np
import pytest

from tests import oracles
from tests.models import PROMPTS, decode, folder, plain, plain_value, recipe, tokenizer
from tests.toys import vowels

SAMPLING = {"max_new_tokens": 8}
ASCII = [prompt for prompt in PROMPTS if prompt.isascii()]


def ids(prompt: str, vocabulary: str = "ascii") -> list[int]:
    return tokenizer(vocabulary)(prompt)["input_ids"]


def text_of(response: list[int]) -> str:
    return tokenizer("ascii").decode(list(response), skip_special_tokens=True)


def other_value(prompt: str, response: list[int]) -> float:
    """Return the value of a response as text in the other tokenizer; EOS (token 1) ends it there
    too."""
    ended = bool(response) and response[-1] == 1
    sequence = ids(prompt + text_of(response), "other") + (
        [tokenizer("other").eos_token_id] if ended else []
    )
    return float(oracles.head_outputs(plain_value("scalar-other"), sequence)[-1, 0])


def vowel_value(prompt: str, response: list[int]) -> float:
    return vowels([prompt], [text_of(response)])[0]


def naive(prompt: str, value, count: int, outside: str, weight: float) -> oracles.Policy:
    bare = oracles.policy(plain("llama-ascii"), ids(prompt), 8)

    def guided(response):
        base = bare.base(response)
        chosen = np.argsort(-base)[:count]
        values = np.array([value(prompt, [*response, int(token)]) for token in chosen])
        full = np.full_like(
            base,
            {"prefix": value(prompt, list(response)), "centred": values.mean(), "drop": -np.inf}[
                outside
            ],
        )
        full[chosen] = values
        return oracles.log_softmax(base + weight * full)

    return oracles.Policy(bare.base, guided, frozenset([1]), 8, {})


@pytest.mark.parametrize("outside", ["prefix", "centred", "drop"])
@pytest.mark.parametrize(
    ("entry", "value", "weight"),
    [("scalar-other", other_value, 0.8), ("tests.toys:vowels", vowel_value, 0.9)],
    ids=["another tokenizer", "callable"],
)
def test_candidates_are_valued_as_the_text_that_they_would_make(entry, value, weight, outside):
    given = entry if ":" in entry else folder(entry)
    token = {"candidates": 4, "outside": outside, "weight": weight}
    run = decode(
        recipe("llama-ascii", "eft-e", guide={"explicit": given}, token=token, sampling=SAMPLING),
        ASCII,
    )
    for number, prompt in enumerate(ASCII):
        policy = naive(prompt, value, 4, outside, weight)
        expected = policy.extend(oracles.Hypothesis(), 8, oracles.stream_key(0, f"p{number}", 0, 0))
        won = run.outcomes[f"p{number}", 0].winner
        assert tuple(won.row.tokens) == expected.tokens
        assert won.value == pytest.approx(value(prompt, list(expected.tokens)), abs=5e-4)
        assert won.kl == pytest.approx(expected.kl, abs=2e-3)


def test_a_scalar_value_by_text_in_the_base_s_own_tokenizer_agrees_with_one_by_token():
    """`by_text: true` is another route to the same numbers wherever encoding the text gives the
    drawn tokens again."""
    chunk = {"beam_width": 1, "successors": 24, "chunk_length": None}
    values = []
    for entry in ({"model": folder("scalar")}, {"model": folder("scalar"), "by_text": True}):
        plan = recipe(
            "llama", "cbs-e", guide={"explicit": entry}, chunk=chunk, sampling={"max_new_tokens": 2}
        )
        found: list[tuple[list[int], float]] = []
        decode(
            plan,
            PROMPTS[:1],
            rows=24,
            trace=lambda search, candidates, *_, found=found: found.extend(
                (search.hypotheses[slot].row.tokens, each.value)
                for slot, each in zip(search.beam, candidates, strict=True)
            ),
        )
        values.append(found)
    agreeing = 0
    for (tokens, by_token), (again, by_text) in zip(*values, strict=True):
        assert tokens == again
        text = tokenizer("bytes").decode(tokens, skip_special_tokens=True)
        before = ids(PROMPTS[0], "bytes")
        if ids(PROMPTS[0] + text, "bytes") == before + tokens:
            agreeing += 1
            assert by_text == pytest.approx(by_token, abs=5e-4)
    assert agreeing > 3


def test_a_stop_string_cuts_the_text_that_is_valued():
    """The value of a stopped response is that of the text which the user gets, not of the stop
    string behind it."""
    free = decode(recipe("llama-ascii", sampling={"max_new_tokens": 20}), ASCII)
    stop = max((outcome.text for outcome in free.outcomes.values()), key=len)[4]
    plan = recipe(
        "llama-ascii",
        "cbs-e",
        guide={"explicit": "tests.toys:length"},
        chunk={"beam_width": 1, "successors": 2, "chunk_length": 5},
        sampling={"max_new_tokens": 20, "stop": [stop]},
    )
    run = decode(plan, ASCII)
    assert any(outcome.winner.row.finish == "stop" for outcome in run.outcomes.values())
    for number, prompt in enumerate(ASCII):
        outcome = run.outcomes[f"p{number}", 0]
        assert outcome.winner.value == len(prompt) + len(outcome.text)
        assert stop not in outcome.text
