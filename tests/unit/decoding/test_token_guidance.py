"""Token guidance through the whole engine, against loops of full forwards with the same noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import oracles
from tests.models import PROMPTS, decode, folder, pair, plain, plain_value, recipe, tokenizer

FAMILIES = ["llama", "gpt2"]
LONG = {"max_new_tokens": 20}
GREEDY = {"max_new_tokens": 20, "temperature": 0.0}


def ids(prompt: str) -> list[int]:
    return tokenizer("bytes")(prompt)["input_ids"]


def implicit(family: str, weight: float = 1.0) -> dict:
    return {"implicit": pair(f"{family}-tuned", f"{family}-reference", weight=weight)}


def naive_pair(family: str, prompt: str, weight: float = 1.0) -> oracles.Pair:
    return oracles.Pair(
        plain(f"{family}-tuned"), plain(f"{family}-reference"), ids(prompt), ids(prompt), weight
    )


def naive(
    policy: oracles.Policy, prompt_number: int, seed: int = 0, sample: int = 0
) -> oracles.Hypothesis:
    key = oracles.stream_key(seed, f"p{prompt_number}", sample, 0)
    return policy.extend(oracles.Hypothesis(), policy.longest, key)


@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
@pytest.mark.parametrize(
    "warp",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.6, "temperature": 1.3},
        {"top_k": 9, "top_p": 0.8},
    ],
)
def test_plain_sampling_equals_a_loop_of_full_forwards_with_the_same_noise(family, warp):
    run = decode(recipe(family, sampling={**LONG, **warp}, seed=3))
    for number, prompt in enumerate(PROMPTS):
        expected = naive(oracles.policy(plain(family), ids(prompt), 20, **warp), number, seed=3)
        won = run.outcomes[f"p{number}", 0].winner
        assert (tuple(won.row.tokens), won.row.finish) == (expected.tokens, expected.finish)
        assert won.kl == 0.0
        assert won.base_logprob == pytest.approx(
            oracles.response_logprob(plain(family), ids(prompt), expected.tokens), abs=1e-3
        )


def test_samples_of_a_prompt_are_independent_loops_of_their_own():
    run = decode(recipe("llama", sampling={**LONG, "samples": 3}), rows=4)
    for number, prompt in enumerate(PROMPTS):
        for sample in range(3):
            expected = naive(oracles.policy(plain("llama"), ids(prompt), 20), number, sample=sample)
            assert tuple(run.tokens()[f"p{number}", sample]) == expected.tokens
        assert len({tuple(run.tokens()[f"p{number}", sample]) for sample in range(3)}) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_weight_zero_is_base_sampling(family):
    base = decode(recipe(family, sampling=LONG))
    guided = decode(
        recipe(family, "eft-i", guide=implicit(family), token={"weight": 0.0}, sampling=LONG)
    )
    assert guided.tokens() == base.tokens()
    for key, outcome in guided.outcomes.items():
        assert outcome.winner.kl == pytest.approx(0.0, abs=1e-4)
        assert outcome.winner.base_logprob == pytest.approx(
            base.outcomes[key].winner.base_logprob, abs=1e-4
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("warp", [{}, {"temperature": 0.8, "top_k": 12, "top_p": 0.9}])
def test_base_as_reference_with_weight_one_is_the_tuned_model(family, warp):
    """log π_base + log π_tuned − log π_base = log π_tuned, so the same noise draws the same
    tokens."""
    guide = {"implicit": pair(f"{family}-tuned", family)}
    guided = decode(recipe(family, "eft-i", guide=guide, sampling={**LONG, **warp}))
    tuned = decode(recipe(f"{family}-tuned", sampling={**LONG, **warp}))
    assert guided.tokens() == tuned.tokens()
    for key, outcome in guided.outcomes.items():
        won = outcome.winner
        tuned_logprob = tuned.outcomes[key].winner.base_logprob
        assert won.value == pytest.approx(tuned_logprob - won.base_logprob, abs=2e-3)
        if not warp:
            assert won.kl == pytest.approx(tuned_logprob - won.base_logprob, abs=2e-3)


def test_weight_minus_one_of_swapped_models_is_weight_one():
    straight = decode(recipe("llama", "eft-i", guide=implicit("llama"), sampling=LONG))
    guide = {"implicit": pair("llama-reference", "llama-tuned", weight=-1.0)}
    assert (
        decode(recipe("llama", "eft-i", guide=guide, sampling=LONG)).tokens() == straight.tokens()
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weight", [0.5, 1.0, -1.5])
def test_greedy_eft_i_equals_a_naive_loop_token_for_token(family, weight):
    plan = recipe(
        family, "eft-i", guide=implicit(family), token={"weight": weight}, sampling=GREEDY
    )
    run = decode(plan)
    for number, prompt in enumerate(PROMPTS):
        tilt = naive_pair(family, prompt, weight).tilt
        expected = naive(
            oracles.policy(plain(family), ids(prompt), 20, tilt=tilt, temperature=0.0), number
        )
        assert tuple(run.tokens()[f"p{number}", 0]) == expected.tokens


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("warp", [{}, {"temperature": 0.7, "top_p": 0.8}])
def test_sampled_eft_i_equals_a_naive_loop_with_value_kl_and_base_logprob(family, warp):
    plan = recipe(
        family, "eft-i", guide=implicit(family), token={"weight": 0.8}, sampling={**LONG, **warp}
    )
    run = decode(plan)
    for number, prompt in enumerate(PROMPTS):
        both = naive_pair(family, prompt, 0.8)
        policy = oracles.policy(plain(family), ids(prompt), 20, tilt=both.tilt, **warp)
        expected = naive(policy, number)
        won = run.outcomes[f"p{number}", 0].winner
        assert tuple(won.row.tokens) == expected.tokens
        base = oracles.response_logprob(plain(family), ids(prompt), expected.tokens)
        assert won.base_logprob == pytest.approx(base, abs=1e-3)
        assert won.value == pytest.approx(both.value(expected.tokens) / 0.8, abs=2e-3), (
            "weight is not part of the value"
        )
        assert won.kl == pytest.approx(
            naive_kl(policy, expected.tokens, warp.get("temperature", 1.0)), abs=2e-3
        )


def naive_kl(policy: oracles.Policy, tokens: tuple[int, ...], temperature: float = 1.0) -> float:
    """Return Σ log p_guided − log p_base of drawn tokens, both at the temperature and before top-k
    and top-p."""
    total = 0.0
    for place, token in enumerate(tokens):
        guided = oracles.log_softmax(policy.guided(tokens[:place]) / temperature)
        total += (
            guided[token] - oracles.log_softmax(policy.base(tokens[:place]) / temperature)[token]
        )
    return total


@pytest.mark.parametrize("every", [2, 3])
def test_every_guides_only_the_tokens_whose_place_is_a_multiple(every):
    plan = recipe("llama", "eft-i", guide=implicit("llama"), token={"every": every}, sampling=LONG)
    run = decode(plan)
    base = decode(recipe("llama", sampling=LONG))
    for number, prompt in enumerate(PROMPTS):
        both = naive_pair("llama", prompt)

        def tilt(response, both=both):
            return both.tilt(response) if len(response) % every == 0 else np.zeros(300)

        policy = oracles.policy(plain("llama"), ids(prompt), 20, tilt=tilt)
        expected = naive(policy, number)
        won = run.outcomes[f"p{number}", 0].winner
        assert tuple(won.row.tokens) == expected.tokens
        assert won.kl == pytest.approx(naive_kl(policy, expected.tokens), abs=2e-3)
        assert won.value == pytest.approx(both.value(expected.tokens), abs=2e-3), (
            "the value counts unguided tokens too"
        )
    assert run.tokens() != base.tokens()


def test_warp_before_truncates_the_base_and_lets_the_tilt_come_on_top():
    warp = {"temperature": 0.8, "top_k": 7}
    plan = recipe(
        "llama",
        "eft-i",
        guide=implicit("llama"),
        token={"warp": "before"},
        sampling={**LONG, **warp},
    )
    run = decode(plan)
    after = decode(recipe("llama", "eft-i", guide=implicit("llama"), sampling={**LONG, **warp}))
    for number, prompt in enumerate(PROMPTS):
        both = naive_pair("llama", prompt)
        bare = oracles.policy(plain("llama"), ids(prompt), 20)

        def guided(response, both=both, bare=bare):
            return oracles.log_softmax(
                oracles.warped(bare.base(response), **warp) + both.tilt(response)
            )

        expected = naive(oracles.Policy(bare.base, guided, frozenset([1]), 20, {}), number)
        assert tuple(run.tokens()[f"p{number}", 0]) == expected.tokens
    assert run.tokens() != after.tokens()


@pytest.mark.parametrize("outside", ["prefix", "centred", "drop"])
def test_implicit_candidates_and_what_the_others_get(outside):
    """The base's top 6 are tilted; the others keep the base (prefix), the base against centred
    values, or nothing."""
    plan = recipe(
        "llama",
        "eft-i",
        guide=implicit("llama"),
        token={"candidates": 6, "outside": outside},
        sampling=LONG,
    )
    run = decode(plan)
    for number, prompt in enumerate(PROMPTS):
        both = naive_pair("llama", prompt)
        bare = oracles.policy(plain("llama"), ids(prompt), 20)

        def guided(response, both=both, bare=bare):
            return tilted_by_formula(bare.base(response), both.tilt(response), 6, outside, here=0.0)

        expected = naive(oracles.Policy(bare.base, guided, frozenset([1]), 20, {}), number)
        assert tuple(run.tokens()[f"p{number}", 0]) == expected.tokens


def tilted_by_formula(
    base: np.ndarray, values: np.ndarray, count: int, outside: str, here: float
) -> np.ndarray:
    """Return the tilt with candidates, each token's value written out: V(s·a), V(s), 0 around the
    mean, or −∞."""
    chosen = np.argsort(-base)[:count]
    full = {
        "prefix": np.full_like(base, here),
        "centred": np.zeros_like(base),
        "drop": np.full_like(base, -np.inf),
    }[outside]
    full[chosen] = values[chosen] - (values[chosen].mean() if outside == "centred" else 0.0)
    return oracles.log_softmax(base + full)


def test_a_weighted_list_of_implicit_values_is_their_sum():
    guide = {
        "implicit": [
            pair("llama-tuned", "llama-reference", weight=0.7),
            pair("llama-reference", "llama", weight=-0.4),
        ]
    }
    run = decode(recipe("llama", "eft-i", guide=guide, token={"weight": 0.9}, sampling=LONG))
    for number, prompt in enumerate(PROMPTS):
        first = naive_pair("llama", prompt, 0.7)
        second = oracles.Pair(
            plain("llama-reference"), plain("llama"), ids(prompt), ids(prompt), -0.4
        )

        def tilt(response, first=first, second=second):
            return 0.9 * (first.tilt(response) + second.tilt(response))

        expected = naive(oracles.policy(plain("llama"), ids(prompt), 20, tilt=tilt), number)
        won = run.outcomes[f"p{number}", 0].winner
        assert tuple(won.row.tokens) == expected.tokens
        assert won.value == pytest.approx(
            first.value(expected.tokens) + second.value(expected.tokens), abs=3e-3
        )


def test_a_prompt_pair_on_one_model_reads_two_prompts():
    guide = {
        "implicit": {
            "model": folder("llama"),
            "tuned_prompt": "good film: {prompt}",
            "reference_prompt": "bad {x} film ",
        }
    }
    run = decode(recipe("llama", "eft-i", guide=guide, sampling=LONG))
    for number, prompt in enumerate(PROMPTS):
        both = oracles.Pair(
            plain("llama"),
            plain("llama"),
            ids("good film: " + prompt),
            ids("bad {x} film " + prompt),
        )
        expected = naive(oracles.policy(plain("llama"), ids(prompt), 20, tilt=both.tilt), number)
        won = run.outcomes[f"p{number}", 0].winner
        assert tuple(won.row.tokens) == expected.tokens
        assert won.value == pytest.approx(both.value(expected.tokens), abs=2e-3)


def scalar_values(name: str, prompt: str, response: list[int], tokens: np.ndarray) -> np.ndarray:
    outputs = [
        oracles.head_outputs(plain_value(name), [*ids(prompt), *response, token])[-1, 0]
        for token in tokens
    ]
    return np.array(outputs)


@pytest.mark.parametrize("outside", ["prefix", "centred", "drop"])
def test_a_scalar_value_is_read_at_prefix_and_candidate(outside):
    plan = recipe(
        "llama",
        "eft-e",
        guide={"explicit": folder("scalar")},
        token={"candidates": 4, "outside": outside, "weight": 1.5},
        sampling={"max_new_tokens": 9},
    )
    run = decode(plan, PROMPTS[:3])
    for number, prompt in enumerate(PROMPTS[:3]):
        bare = oracles.policy(plain("llama"), ids(prompt), 9)

        def guided(response, prompt=prompt, bare=bare):
            base = bare.base(response)
            values = np.zeros_like(base)
            chosen = np.argsort(-base)[:4]
            values[chosen] = 1.5 * scalar_values("scalar", prompt, response, chosen)
            here = (
                1.5 * oracles.head_outputs(plain_value("scalar"), [*ids(prompt), *response])[-1, 0]
            )
            return tilted_by_formula(base, values, 4, outside, here)

        expected = naive(oracles.Policy(bare.base, guided, frozenset([1]), 9, {}), number)
        won = run.outcomes[f"p{number}", 0].winner
        assert tuple(won.row.tokens) == expected.tokens
        final = oracles.head_outputs(plain_value("scalar"), [*ids(prompt), *expected.tokens])[-1, 0]
        assert won.value == pytest.approx(final, abs=5e-4)


@pytest.mark.parametrize("every", [1, 2])
def test_a_token_q_head_values_the_whole_vocabulary_before_the_token(every):
    plan = recipe(
        "llama",
        "eft-e",
        guide={"explicit": folder("token-q")},
        token={"weight": 0.6, "every": every},
        sampling=LONG,
    )
    run = decode(plan)
    for number, prompt in enumerate(PROMPTS):

        def tilt(response, prompt=prompt):
            if len(response) % every:
                return np.zeros(300)
            return 0.6 * oracles.head_outputs(plain_value("token-q"), [*ids(prompt), *response])[-1]

        expected = naive(oracles.policy(plain("llama"), ids(prompt), 20, tilt=tilt), number)
        won = run.outcomes[f"p{number}", 0].winner
        assert tuple(won.row.tokens) == expected.tokens
        *before, last = expected.tokens
        final = oracles.head_outputs(plain_value("token-q"), [*ids(prompt), *before])[-1, last]
        assert won.value == pytest.approx(final, abs=5e-4)


def test_a_scalar_value_that_guides_every_other_token_reads_what_it_has_skipped():
    plan = recipe(
        "llama",
        "eft-e",
        guide={"explicit": folder("scalar")},
        token={"candidates": 5, "every": 2},
        sampling={"max_new_tokens": 9},
    )
    run = decode(plan, PROMPTS[:3])
    for number, prompt in enumerate(PROMPTS[:3]):
        bare = oracles.policy(plain("llama"), ids(prompt), 9)

        def guided(response, prompt=prompt, bare=bare):
            base = bare.base(response)
            if len(response) % 2:
                return base
            values = np.zeros_like(base)
            chosen = np.argsort(-base)[:5]
            values[chosen] = scalar_values("scalar", prompt, response, chosen)
            here = oracles.head_outputs(plain_value("scalar"), [*ids(prompt), *response])[-1, 0]
            return tilted_by_formula(base, values, 5, "prefix", here)

        expected = naive(oracles.Policy(bare.base, guided, frozenset([1]), 9, {}), number)
        won = run.outcomes[f"p{number}", 0].winner
        assert tuple(won.row.tokens) == expected.tokens
        final = oracles.head_outputs(plain_value("scalar"), [*ids(prompt), *expected.tokens])[-1, 0]
        assert won.value == pytest.approx(final, abs=5e-4)


def test_a_weighted_list_of_explicit_values_is_their_sum():
    """A scalar and a token-Q value together: both are asked at the candidates."""
    entry = [
        {"model": folder("scalar"), "weight": 0.5},
        {"model": folder("token-q"), "weight": -0.3},
    ]
    plan = recipe(
        "llama",
        "eft-e",
        guide={"explicit": entry},
        token={"candidates": 4, "outside": "drop"},
        sampling={"max_new_tokens": 8},
    )
    run = decode(plan, PROMPTS[:2])
    for number, prompt in enumerate(PROMPTS[:2]):
        bare = oracles.policy(plain("llama"), ids(prompt), 8)

        def guided(response, prompt=prompt, bare=bare):
            base = bare.base(response)
            chosen = np.argsort(-base)[:4]
            values = np.zeros_like(base)
            values[chosen] = 0.5 * scalar_values("scalar", prompt, response, chosen)
            values[chosen] -= (
                0.3
                * oracles.head_outputs(plain_value("token-q"), [*ids(prompt), *response])[
                    -1, chosen
                ]
            )
            return tilted_by_formula(base, values, 4, "drop", 0.0)

        expected = naive(oracles.Policy(bare.base, guided, frozenset([1]), 8, {}), number)
        assert tuple(run.tokens()[f"p{number}", 0]) == expected.tokens


def test_a_draw_outside_the_candidates_is_read_by_the_value_later():
    """With one candidate and `outside: prefix` most draws were never peeked at; the value must
    still follow them."""
    plan = recipe(
        "llama",
        "eft-e",
        guide={"explicit": folder("scalar")},
        token={"candidates": 1},
        sampling=LONG,
    )
    run = decode(plan)
    for number, prompt in enumerate(PROMPTS):
        won = run.outcomes[f"p{number}", 0].winner
        final = oracles.head_outputs(plain_value("scalar"), [*ids(prompt), *won.row.tokens])[-1, 0]
        assert won.value == pytest.approx(final, abs=5e-4)


def test_the_drawn_tokens_are_those_of_torch_inference_and_not_of_training():
    """Dropout or gradients left on would make two runs differ."""
    plan = recipe("gpt2", "eft-i", guide=implicit("gpt2"), sampling=LONG)
    run = decode(plan)
    assert decode(plan).tokens() == run.tokens()
    assert not any(
        p.requires_grad
        for network in run.assembly.networks.all()
        for p in network.model.parameters()
    )
    assert not torch.is_inference_mode_enabled()
