"""Whole chunk searches, against list-based searches over full forwards with the same noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import oracles
from tests.models import decode, folder, pair, plain, plain_value, recipe, tokenizer
from tests.toys import vowels

PROMPTS = ["the film opens", "an effective but", "a", "a film, t"]
LONGEST = 18


def ids(prompt: str, vocabulary: str = "bytes") -> list[int]:
    return tokenizer(vocabulary)(prompt)["input_ids"]


READERS = {"llama-ascii": "ascii"}
"""Bases that do not have the tokenizer "bytes"."""


def naive_pair(family: str, prompt: str) -> oracles.Pair:
    return oracles.Pair(
        plain(f"{family}-tuned"), plain(f"{family}-reference"), ids(prompt), ids(prompt)
    )


def guide(family: str = "llama", explicit: str | None = None) -> dict:
    given = {"implicit": pair(f"{family}-tuned", f"{family}-reference")}
    return given if explicit is None else {**given, "explicit": folder(explicit)}


def scalar(prompt: str):
    return lambda found: oracles.head_outputs(plain_value("scalar"), [*ids(prompt), *found.tokens])[
        -1, 0
    ]


def token_q(prompt: str):
    def value(found):
        outputs = oracles.head_outputs(plain_value("token-q"), [*ids(prompt), *found.tokens[:-1]])
        return outputs[-1, found.tokens[-1]]

    return value


def rendered(found: oracles.Hypothesis, vocabulary: str = "bytes") -> str:
    return tokenizer(vocabulary).decode(list(found.tokens), skip_special_tokens=True)


def scalar_by_text(prompt: str, vocabulary: str):
    def value(found):
        sequence = ids(prompt + rendered(found, vocabulary), "other")
        if found.finish == "eos":
            sequence.append(tokenizer("other").eos_token_id)
        return oracles.head_outputs(plain_value("scalar-other"), sequence)[-1, 0]

    return value


def implicit_by_text(prompt: str, vocabulary: str):
    def value(found):
        sequence = ids(prompt + rendered(found, vocabulary), "other")
        if found.finish == "eos":
            sequence.append(tokenizer("other").eos_token_id)
        alone = ids(prompt, "other")
        shared = next(
            (i for i, (a, b) in enumerate(zip(alone, sequence, strict=False)) if a != b),
            min(len(alone), len(sequence)),
        )
        shared = max(shared, 1)
        both = oracles.Pair(
            plain("llama-other"),
            plain("llama-other-reference"),
            sequence[:shared],
            sequence[:shared],
        )
        return both.value(sequence[shared:])

    return value


def check(
    run,
    search,
    number: int,
    prompt: str,
    policy: oracles.Policy,
    value,
    shape: dict,
    family: str = "llama",
) -> None:
    """Compare one record with what a naive search finds."""

    def keys(candidate: int) -> int:
        return oracles.stream_key(0, f"p{number}", 0, candidate)

    expected = search(
        policy, value, keys, shape["beam_width"], shape["successors"], shape["chunk_length"]
    )
    won = run.outcomes[f"p{number}", 0].winner
    assert (tuple(won.row.tokens), won.row.finish) == (expected.tokens, expected.finish)
    assert won.value == pytest.approx(expected.value, abs=3e-3)
    assert won.kl == pytest.approx(expected.kl, abs=3e-3)
    base = oracles.response_logprob(
        plain(family), ids(prompt, READERS.get(family, "bytes")), expected.tokens
    )
    assert won.base_logprob == pytest.approx(base, abs=2e-3)


SHAPES = [
    {"beam_width": 2, "successors": 2, "chunk_length": 4},
    {"beam_width": 3, "successors": 2, "chunk_length": 1},
    {"beam_width": 1, "successors": 4, "chunk_length": 5},
    {"beam_width": 4, "successors": 1, "chunk_length": 3},
    {"beam_width": 2, "successors": 3, "chunk_length": None},
]


@pytest.mark.parametrize(
    ("family", "shape"),
    [*(("llama", shape) for shape in SHAPES), ("gpt2", SHAPES[0]), ("gpt2", SHAPES[4])],
    ids=lambda given: (
        given
        if isinstance(given, str)
        else "W{beam_width} K{successors} L{chunk_length}".format(**given)
    ),
)
def test_cbs_i_equals_a_naive_search_with_teacher_forced_log_ratios(family, shape):
    plan = recipe(
        family, "cbs-i", guide=guide(family), chunk=shape, sampling={"max_new_tokens": LONGEST}
    )
    run = decode(plan, PROMPTS, rows=16)
    for number, prompt in enumerate(PROMPTS):
        both = naive_pair(family, prompt)
        policy = oracles.policy(plain(family), ids(prompt), LONGEST)
        check(
            run,
            oracles.chunk_search,
            number,
            prompt,
            policy,
            lambda found, both=both: both.value(found.tokens),
            shape,
            family,
        )


@pytest.mark.parametrize(("name", "value"), [("scalar", scalar), ("token-q", token_q)])
def test_cbs_e_equals_a_naive_search_with_full_forwards(name, value):
    shape = SHAPES[0]
    plan = recipe(
        "llama",
        "cbs-e",
        guide={"explicit": folder(name)},
        chunk=shape,
        sampling={"max_new_tokens": LONGEST},
    )
    run = decode(plan, PROMPTS, rows=16)
    for number, prompt in enumerate(PROMPTS):
        policy = oracles.policy(plain("llama"), ids(prompt), LONGEST)
        check(run, oracles.chunk_search, number, prompt, policy, value(prompt), shape)


BY_TEXT = {
    "scalar": ("cbs-e", {"explicit": "scalar-other"}, scalar_by_text),
    "implicit": ("cbs-i", {"implicit": ("llama-other", "llama-other-reference")}, implicit_by_text),
}


@pytest.mark.parametrize("kind", BY_TEXT)
@pytest.mark.parametrize(
    ("base", "shape"),
    # Two candidates that differ by half a character only have one text and tie up to rounding, so
    # "bytes" keeps to
    # chunks long enough for that to be rare.
    [
        ("llama-ascii", SHAPES[0]),
        ("llama-ascii", SHAPES[1]),
        ("llama-ascii", SHAPES[2]),
        ("llama", SHAPES[0]),
    ],
    ids=["W2 K2 L4", "W3 K2 L1", "W1 K4 L5", "half characters W2 K2 L4"],
)
def test_chunk_search_by_text_equals_one_that_encodes_everything_afresh(kind, base, shape):
    mode, entry, value = BY_TEXT[kind]
    vocabulary = READERS.get(base, "bytes")
    given = (
        {"explicit": folder(entry["explicit"])}
        if kind == "scalar"
        else {"implicit": pair(*entry["implicit"])}
    )
    run = decode(
        recipe(base, mode, guide=given, chunk=shape, sampling={"max_new_tokens": LONGEST}),
        PROMPTS,
        rows=8,
    )
    for number, prompt in enumerate(PROMPTS):
        policy = oracles.policy(plain(base), ids(prompt, vocabulary), LONGEST)
        check(
            run,
            oracles.chunk_search,
            number,
            prompt,
            policy,
            value(prompt, vocabulary),
            shape,
            base,
        )
    others = [network for network in run.assembly.networks.all() if "other" in network.name]
    assert all(network.ledger.reread > 0 for network in others), (
        "merges did change what had been read"
    )


@pytest.mark.parametrize("mode", ["ivg", "eft-i+cbs-i", "eft-e+cbs-i", "eft-e+cbs-e"])
def test_combined_modes_equal_naive_searches(mode):
    shape = SHAPES[0]
    explicit = "scalar" if mode == "ivg" else "token-q"
    plan = recipe(
        "llama",
        mode,
        guide=guide(explicit=explicit),
        chunk=shape,
        token={"weight": 0.7},
        sampling={"max_new_tokens": LONGEST},
    )
    run = decode(plan, PROMPTS, rows=9)
    for number, prompt in enumerate(PROMPTS):
        both = naive_pair("llama", prompt)

        def by_pair(response, both=both):
            return 0.7 * both.tilt(response)

        def by_head(response, prompt=prompt):
            return 0.7 * oracles.head_outputs(plain_value("token-q"), [*ids(prompt), *response])[-1]

        tilt = by_head if mode.startswith("eft-e") else by_pair
        value = {"ivg": scalar(prompt), "eft-e+cbs-e": token_q(prompt)}.get(
            mode, lambda found, both=both: both.value(found.tokens)
        )
        policy = oracles.policy(plain("llama"), ids(prompt), LONGEST, tilt=tilt)
        check(run, oracles.chunk_search, number, prompt, policy, value, shape)


@pytest.mark.parametrize("mode", ["eft-e+cbs-e"])
def test_a_scalar_value_that_guides_and_ranks_is_one_stream_and_equals_a_naive_search(mode):
    shape = SHAPES[0]
    plan = recipe(
        "llama",
        mode,
        guide={"explicit": folder("scalar")},
        chunk=shape,
        token={"candidates": 3, "outside": "drop"},
        sampling={"max_new_tokens": 10},
    )
    run = decode(plan, PROMPTS[:2])
    assert len(run.engine.streams) == 2
    for number, prompt in enumerate(PROMPTS[:2]):

        def tilt(response, prompt=prompt):
            values = np.full(300, -np.inf)
            for token in np.argsort(
                -oracles.next_logprobs(plain("llama"), [*ids(prompt), *response])
            )[:3]:
                values[token] = oracles.head_outputs(
                    plain_value("scalar"), [*ids(prompt), *response, token]
                )[-1, 0]
            return values

        policy = oracles.policy(plain("llama"), ids(prompt), 10, tilt=tilt)
        check(run, oracles.chunk_search, number, prompt, policy, scalar(prompt), shape)


def test_ranking_by_advantage_equals_a_naive_search_and_differs_from_the_absolute_value():
    shape = {"beam_width": 2, "successors": 3, "chunk_length": 3}
    plan = recipe(
        "llama",
        "cbs-i",
        guide=guide(),
        chunk={**shape, "score": "advantage"},
        sampling={"max_new_tokens": LONGEST},
    )
    run = decode(plan, PROMPTS, rows=12)

    def search(*arguments):
        return oracles.chunk_search(*arguments, advantage=True)

    for number, prompt in enumerate(PROMPTS):
        both = naive_pair("llama", prompt)
        policy = oracles.policy(plain("llama"), ids(prompt), LONGEST)
        check(
            run,
            search,
            number,
            prompt,
            policy,
            lambda found, both=both: both.value(found.tokens),
            shape,
        )
    absolute = recipe(
        "llama", "cbs-i", guide=guide(), chunk=shape, sampling={"max_new_tokens": LONGEST}
    )
    assert decode(absolute, PROMPTS, rows=12).tokens() != run.tokens()


@pytest.mark.parametrize(
    "shape", [SHAPES[0], {"beam_width": 2, "successors": 2, "chunk_length": 2}]
)
def test_compat_w2s_equals_the_published_selection(shape):
    plan = recipe(
        "llama",
        "cbs-i",
        guide=guide(),
        chunk={**shape, "compat": "w2s"},
        sampling={"max_new_tokens": LONGEST},
    )
    run = decode(plan, PROMPTS, rows=8)
    for number, prompt in enumerate(PROMPTS):
        both = naive_pair("llama", prompt)
        policy = oracles.policy(plain("llama"), ids(prompt), LONGEST)
        check(
            run,
            oracles.published_search,
            number,
            prompt,
            policy,
            lambda found, both=both: both.value(found.tokens),
            shape,
        )


def test_a_copy_of_a_finished_hypothesis_keeps_its_token_q_value():
    """`compat: w2s` copies finished rows; a token-Q value is remembered, not read off a stream."""
    shape = SHAPES[0]
    plan = recipe(
        "llama",
        "cbs-e",
        guide={"explicit": folder("token-q")},
        chunk={**shape, "compat": "w2s"},
        sampling={"max_new_tokens": LONGEST},
    )
    for prompts in (PROMPTS, ["the sea", "it is", "a bad", "so", "and"]):
        run = decode(plan, prompts, rows=8)
        for number, prompt in enumerate(prompts):
            policy = oracles.policy(plain("llama"), ids(prompt), LONGEST)
            check(run, oracles.published_search, number, prompt, policy, token_q(prompt), shape)


@pytest.mark.parametrize("compat", [None, "w2s"])
def test_ties_go_to_the_lower_number(compat):
    """Counting vowels ties all the time."""
    shape = {"beam_width": 2, "successors": 3, "chunk_length": 3}
    entry = {"explicit": "tests.toys:vowels"}
    plan = recipe(
        "llama",
        "cbs-e",
        guide=entry,
        chunk={**shape, "compat": compat},
        sampling={"max_new_tokens": LONGEST},
    )
    run = decode(plan, PROMPTS, rows=12)
    search = oracles.chunk_search if compat is None else oracles.published_search
    for number, prompt in enumerate(PROMPTS):
        policy = oracles.policy(plain("llama"), ids(prompt), LONGEST)
        check(
            run,
            search,
            number,
            prompt,
            policy,
            lambda found: vowels([""], [rendered(found)])[0],
            shape,
        )


def test_a_finished_hypothesis_wins_early_when_nothing_alive_is_better():
    """With a value that falls with length, the first W hypotheses to end beat everything alive:
    fewer passes than tokens."""
    run = decode(
        recipe(
            "llama",
            "cbs-e",
            guide={"explicit": [{"callable": "tests.toys:length", "weight": -1.0}]},
            chunk={"beam_width": 1, "successors": 8, "chunk_length": 2},
            sampling={"max_new_tokens": 40},
        ),
        PROMPTS[:1],
    )
    won = run.outcomes["p0", 0].winner
    assert won.row.finish == "eos"
    assert run.network("llama").ledger.passes < 40


def test_one_beam_with_one_successor_is_plain_sampling():
    base = decode(recipe("llama", sampling={"max_new_tokens": LONGEST}), PROMPTS)
    one = {"beam_width": 1, "successors": 1, "chunk_length": 3}
    plan = recipe("llama", "cbs-i", guide=guide(), chunk=one, sampling={"max_new_tokens": LONGEST})
    run = decode(plan, PROMPTS)
    assert run.tokens() == base.tokens()
    for number, prompt in enumerate(PROMPTS):
        won = run.outcomes[f"p{number}", 0].winner
        assert won.value == pytest.approx(
            naive_pair("llama", prompt).value(won.row.tokens), abs=2e-3
        )


def test_a_ranking_traces_every_candidate_with_its_value_and_its_fate():
    seen = []
    plan = recipe("llama", "cbs-i", guide=guide(), chunk=SHAPES[0], sampling={"max_new_tokens": 8})
    decode(
        plan,
        PROMPTS[:1],
        trace=lambda search, candidates, parents, over: seen.append(
            (
                [len(search.hypotheses[slot].row.tokens) for slot in search.beam],
                list(candidates),
                list(parents),
                over,
            )
        ),
    )
    assert [over for *_, over in seen] == [False] * (len(seen) - 1) + [True]
    for lengths, candidates, parents, _ in seen:
        assert len(lengths) == len(candidates) <= 4
        live = sorted((c for c in candidates if not c.finished), key=lambda c: (-c.value, c.number))
        assert parents == [c.number for c in live[:2]]


def test_the_same_response_twice_is_a_tie_whatever_the_last_bits_of_its_values_say(monkeypatch):
    """At temperature 0 all candidates are one response; noise in its values must not renumber the
    beam, since the numbers choose the draws."""
    from ivgcli.values.implicit import ImplicitValue

    honest = ImplicitValue.values

    def noisy(self, rows, states):
        return honest(self, rows, states) + 1e-9 * torch.arange(len(rows))

    monkeypatch.setattr(ImplicitValue, "values", noisy)
    kept = []
    shape = {"beam_width": 2, "successors": 2, "chunk_length": 2}
    limits = {"max_new_tokens": 8, "temperature": 0.0}
    decode(
        recipe("llama", "cbs-i", guide=guide(), chunk=shape, sampling=limits),
        PROMPTS,
        trace=lambda search, candidates, parents, over: kept.append((parents, over)),
    )
    lives = [parents for parents, over in kept if not over]
    assert lives, "some greedy response is longer than a chunk"
    assert all(parents == [0, 1] for parents in lives), "the lower numbers win a tie"
