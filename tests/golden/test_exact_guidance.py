"""The equations of token guidance, proved by enumeration on a vocabulary of six words and through
the whole engine."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ivgcli.decoding import Mode, TokenGuidance
from ivgcli.decoding.guidance import tilted
from ivgcli.values import Prompted, Row
from tests import oracles
from tests.models import decode, plain, recipe, tokenizer
from tests.toys import PrefixValue

Prefix = tuple[int, ...]
PROMPT = "north east"
SIZE = 6
END = 1
LENGTH = 3
RESPONSES = oracles.responses(SIZE, LENGTH, frozenset([END]))
TEMPERATURE = 3.0
"""The tiny network is peaked; flattened, all 6³ responses have a part in the sums."""


def table(seed: int, size: int, depth: int) -> Callable[[Prefix], np.ndarray]:
    """Return a table of next-token probabilities, one row for each prefix."""
    known: dict[Prefix, np.ndarray] = {}

    def conditional(prefix: Prefix) -> np.ndarray:
        if prefix not in known:
            random = np.random.default_rng([seed, size, depth, *prefix])
            known[prefix] = random.dirichlet(np.ones(size))
        return known[prefix]

    return conditional


def attribute(response: Prefix) -> float:
    """a(y): whether the response goes north at least once and does not end in the east."""
    return float(2 % SIZE in response and response[-1] != 0)


def reward(response: Prefix) -> float:
    """r(y): uneven on purpose, so that a mean is far from a soft value."""
    return (
        2.0 * sum(token == 0 for token in response)
        - 1.5 * (response[-1] == 2)
        + 0.5 * len(set(response))
    )


def guided_probabilities(
    conditional: Callable[[Prefix], np.ndarray],
    value: Callable[[Prefix], float],
    size: int,
    every: list[Prefix],
    weight: float,
) -> dict[Prefix, float]:
    """Return p(y) under `guidance.tilted` with a table for the base and a function for the
    value."""
    guidance = TokenGuidance(PrefixValue(value, size), weight)

    def step(prefix: Prefix) -> np.ndarray:
        row = Row(Prompted("p", ""), [], list(prefix))
        logprobs = torch.from_numpy(np.log(conditional(prefix))[None])
        return torch.softmax(tilted(guidance, logprobs, [0], [row]).double(), -1)[0].numpy()

    return oracles.sequence_probabilities(step, every)


@pytest.mark.parametrize(("size", "depth"), [(3, 4), (4, 3), (5, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_fudge_with_exact_prefix_probabilities_samples_the_exact_conditional(size, depth, seed):
    """p(a | y≤t) exact, V = log p(a = 1 | y≤t), w = 1: Π p(y_t)·p(a|y≤t)/p(a|y<t) =
    p(y)·p(a|y)/p(a) = p(y | a)."""
    base = table(seed, size, depth)
    every = oracles.responses(size, depth)
    prior = oracles.sequence_probabilities(base, every)
    soft = {
        y: 0.05 + 0.9 * attribute(y) * np.random.default_rng([seed, *y]).random() for y in every
    }
    chance = oracles.prefix_expectation(prior, lambda y: soft[y])
    guided = guided_probabilities(base, lambda prefix: math.log(chance(prefix)), size, every, 1.0)
    evidence = sum(prior[y] * soft[y] for y in every)
    # The values pass through float32, whose rounding of log-probabilities up to 5 is 5e-7.
    assert max(abs(guided[y] - prior[y] * soft[y] / evidence) for y in every) < 1e-5


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0])
def test_the_soft_value_samples_the_optimum_of_the_regularised_objective(weight):
    """V(s) = (1/w)·log E[exp(w·r) | s] gives p(y)·exp(w·r(y))/Z."""
    base = table(0, 4, 3)
    every = oracles.responses(4, 3)
    prior = oracles.sequence_probabilities(base, every)
    boosted = oracles.prefix_expectation(prior, lambda y: math.exp(weight * reward(y)))
    guided = guided_probabilities(
        base, lambda prefix: math.log(boosted(prefix)) / weight, 4, every, weight
    )
    total = sum(prior[y] * math.exp(weight * reward(y)) for y in every)
    optimum = {y: prior[y] * math.exp(weight * reward(y)) / total for y in every}
    assert max(abs(guided[y] - optimum[y]) for y in every) < 1e-5


def test_the_mean_value_does_not():
    """Negative control: V(s) = E[r | s] is another policy, so the test above can tell one from the
    other."""
    base = table(0, 4, 3)
    every = oracles.responses(4, 3)
    prior = oracles.sequence_probabilities(base, every)
    mean = oracles.prefix_expectation(prior, reward)
    guided = guided_probabilities(base, mean, 4, every, 1.0)
    total = sum(prior[y] * math.exp(reward(y)) for y in every)
    assert max(abs(guided[y] - prior[y] * math.exp(reward(y)) / total) for y in every) > 1e-2


def words_prior() -> dict[Prefix, float]:
    """Return p(y) of the tiny network at the temperature, by full forwards over every prefix."""
    prompt = tokenizer("words")(PROMPT)["input_ids"]

    def conditional(prefix: Prefix) -> np.ndarray:
        return np.exp(
            oracles.log_softmax(
                oracles.next_logprobs(plain("words"), [*prompt, *prefix]) / TEMPERATURE
            )
        )

    return oracles.sequence_probabilities(conditional, RESPONSES)


def frequencies(
    function: Callable[[Prefix], float], weight: float, samples: int
) -> dict[Prefix, int]:
    """Return how often the engine draws each response.

    The temperature divides the tilt too (`warp: after`), so the weight is given times it.
    """
    value = PrefixValue(function, SIZE)
    plan = recipe(
        "words", sampling={"max_new_tokens": LENGTH, "temperature": TEMPERATURE, "samples": samples}
    )
    run = decode(
        plan, [PROMPT], rows=250, mode=Mode("toy", TokenGuidance(value, weight * TEMPERATURE))
    )
    counts: dict[Prefix, int] = {}
    for tokens in run.tokens().values():
        counts[tuple(tokens)] = counts.get(tuple(tokens), 0) + 1
    return counts


def surprise(counts: dict[Prefix, int], expected: dict[Prefix, float], samples: int) -> float:
    """Return the chi-square z of counts against probabilities, rare responses pooled into one
    bin."""
    common = [y for y, p in expected.items() if p * samples >= 8]
    observed = [counts.get(y, 0) for y in common]
    wanted = [expected[y] * samples for y in common]
    rest = max(samples - sum(wanted), 1e-9)
    if rest >= 8:
        observed.append(samples - sum(observed))
        wanted.append(rest)
    return oracles.chi_square(observed, wanted)


SAMPLES = 3000


def test_the_engine_without_a_guide_samples_the_base_s_distribution_of_whole_responses():
    """Chi-square over whole responses; false alarm z > 4: one in 30,000. So in the tests below."""
    counts = frequencies(lambda prefix: 0.0, 0.0, SAMPLES)
    assert surprise(counts, words_prior(), SAMPLES) < 4


def test_fudge_through_the_engine_samples_the_exact_conditional():
    prior = words_prior()
    soft = {y: 0.02 + 0.96 * attribute(y) for y in RESPONSES}
    chance = oracles.prefix_expectation(prior, lambda y: soft[y])
    evidence = sum(prior[y] * soft[y] for y in RESPONSES)
    posterior = {y: prior[y] * soft[y] / evidence for y in RESPONSES}
    counts = frequencies(lambda prefix: math.log(chance(prefix)), 1.0, SAMPLES)
    assert surprise(counts, posterior, SAMPLES) < 4
    assert surprise(counts, prior, SAMPLES) > 20, "the base itself is told apart"


def test_the_soft_value_through_the_engine_samples_the_optimum_and_the_mean_value_does_not():
    prior = words_prior()
    boosted = oracles.prefix_expectation(prior, lambda y: math.exp(reward(y)))
    total = sum(prior[y] * math.exp(reward(y)) for y in RESPONSES)
    optimum = {y: prior[y] * math.exp(reward(y)) / total for y in RESPONSES}
    assert (
        surprise(
            frequencies(lambda prefix: math.log(boosted(prefix)), 1.0, SAMPLES), optimum, SAMPLES
        )
        < 4
    )
    mean = oracles.prefix_expectation(prior, reward)
    assert surprise(frequencies(mean, 1.0, SAMPLES), optimum, SAMPLES) > 5


def test_kl_averages_to_the_divergence_of_the_two_distributions():
    """E[log p_guided(y) − log p_base(y)] over guided samples is KL(guided‖base); within 4 standard
    errors."""
    prior = words_prior()
    boosted = oracles.prefix_expectation(prior, lambda y: math.exp(reward(y)))
    total = sum(prior[y] * math.exp(reward(y)) for y in RESPONSES)
    optimum = {y: prior[y] * math.exp(reward(y)) / total for y in RESPONSES}
    exact = sum(p * math.log(p / prior[y]) for y, p in optimum.items())
    value = PrefixValue(lambda prefix: math.log(boosted(prefix)), SIZE)
    plan = recipe(
        "words", sampling={"max_new_tokens": LENGTH, "temperature": TEMPERATURE, "samples": SAMPLES}
    )
    run = decode(plan, [PROMPT], rows=250, mode=Mode("toy", TokenGuidance(value, TEMPERATURE)))
    found = np.array([outcome.winner.kl for outcome in run.outcomes.values()])
    assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(SAMPLES)
    for outcome in list(run.outcomes.values())[:50]:
        y = tuple(outcome.winner.row.tokens)
        assert outcome.winner.kl == pytest.approx(math.log(optimum[y] / prior[y]), abs=1e-3)
