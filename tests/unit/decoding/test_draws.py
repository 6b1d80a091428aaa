"""The keyed noise: frozen values, an independent computation, and statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ivgcli.decoding.draws import exponential_noise, step_keys, stream_key
from tests import oracles

CPU = torch.device("cpu")


def noise(key: int, step: int, tokens: int) -> np.ndarray:
    return exponential_noise(
        step_keys([key], [step], CPU), torch.arange(tokens, dtype=torch.int32)
    )[0].numpy()


FROZEN_KEY = 9752284345942563461
FROZEN_NOISE = [0.96406573, 0.58732772, 1.3500335, 2.502265, 0.61711955, 2.0007455]
"""These numbers are a promise: a response made today can be made again by any later version."""


def test_the_key_of_a_record_never_changes():
    assert stream_key(7, "movie-00003", 1, 2) == FROZEN_KEY


def test_the_noise_of_a_key_never_changes():
    assert noise(FROZEN_KEY, 5, 6).tolist() == pytest.approx(FROZEN_NOISE, rel=1e-6)


@pytest.mark.parametrize("step", [0, 1, 17, 10_000])
def test_noise_equals_the_same_arithmetic_in_wider_integers(step):
    for seed in (0, -3, 2**40):
        key = stream_key(seed, "naïve\x1f😀", 3, 11)
        assert key == oracles.stream_key(seed, "naïve\x1f😀", 3, 11)
        ours, theirs = noise(key, step, 3000).astype(np.float64), oracles.noise(key, step, 3000)
        small = theirs < 0.5
        assert ours[small] == pytest.approx(theirs[small], rel=1e-6), (
            "small numbers decide the race"
        )
        assert np.exp(-ours) == pytest.approx(np.exp(-theirs), abs=2e-7), (
            "large ones are as exact as a float32 uniform"
        )


def test_every_part_of_a_key_counts_and_parts_cannot_run_into_each_other():
    given = [
        (0, "a", 0, 0),
        (1, "a", 0, 0),
        (0, "b", 0, 0),
        (0, "a", 1, 0),
        (0, "a", 0, 1),
        (0, "a\x1f1", 0, 0),
        (0, "a", 10, 0),
        (0, "a1", 0, 0),
    ]
    assert len({stream_key(*parts) for parts in given}) == len(given)
    assert stream_key(1, "1", 2, 3) != stream_key(11, "", 2, 3)


def test_noise_for_some_tokens_is_that_of_the_whole_vocabulary():
    keys = step_keys([5, 6], [0, 3], CPU)
    full = exponential_noise(keys, torch.arange(1000, dtype=torch.int32))
    ids = torch.tensor([[3, 999, 3], [0, 17, 500]], dtype=torch.int32)
    assert torch.equal(exponential_noise(keys, ids), full.gather(1, ids.long()))


def test_small_numbers_which_decide_the_race_keep_their_precision():
    """The least of 4 million is about 2.4e-7, and all of the smallest ones are distinct numbers."""
    keys = step_keys(list(range(40)), [0] * 40, CPU)
    found = (
        exponential_noise(keys, torch.arange(100_000, dtype=torch.int32)).flatten().sort().values
    )
    assert 2.0**-32 * (1 - 1e-6) <= float(found[0]) < 3e-6
    assert len(set(found[:1000].tolist())) >= 999


def test_noise_is_exponential_in_every_direction():
    """Chi-square of 64 equal bins over tokens, over steps, over records; false alarm z > 4: one in
    30,000 each.

    1 − exp(−E) is uniform on (0, 1) if E is Exp(1).
    """
    size = 64_000
    over_tokens = noise(stream_key(0, "a", 0, 0), 0, size)
    steps = step_keys([stream_key(0, "a", 0, 0)] * size, list(range(size)), CPU)
    over_steps = exponential_noise(steps, torch.tensor([7], dtype=torch.int32))[:, 0].numpy()
    records = step_keys(
        [stream_key(0, str(record), 0, 0) for record in range(size)], [0] * size, CPU
    )
    over_records = exponential_noise(records, torch.tensor([7], dtype=torch.int32))[:, 0].numpy()
    for found in (over_tokens, over_steps, over_records):
        counts = np.histogram(1 - np.exp(-found.astype(np.float64)), bins=64, range=(0, 1))[0]
        assert abs(oracles.chi_square(counts, [size / 64] * 64)) < 4


def test_neighbouring_tokens_steps_candidates_and_records_are_independent():
    """Correlations of 20,000 pairs stay below 4/√20,000 = 0.028; false alarm: one in 15,000
    each."""
    size = 20_000
    ranks = lambda found: np.argsort(np.argsort(found))  # noqa: E731
    here = ranks(noise(stream_key(0, "a", 0, 0), 0, size))
    others = {
        "the next step": noise(stream_key(0, "a", 0, 0), 1, size),
        "the next candidate": noise(stream_key(0, "a", 0, 1), 0, size),
        "the next sample": noise(stream_key(0, "a", 1, 0), 0, size),
        "the next seed": noise(stream_key(1, "a", 0, 0), 0, size),
        "another record": noise(stream_key(0, "b", 0, 0), 0, size),
        "the next token": np.roll(noise(stream_key(0, "a", 0, 0), 0, size), 1),
        "the token 2 away": np.roll(noise(stream_key(0, "a", 0, 0), 0, size), 2),
    }
    for name, found in others.items():
        assert abs(np.corrcoef(here, ranks(found))[0, 1]) < 4 / math.sqrt(size), name


def test_pairs_of_tokens_fill_the_square_evenly():
    """Chi-square of 16 × 16 cells of (noise of token v, of token v + 1) over 64,000 records' steps;
    false alarm as above."""
    size = 64_000
    keys = step_keys([stream_key(3, str(record), 0, 0) for record in range(size)], [2] * size, CPU)
    pairs = exponential_noise(keys, torch.tensor([100, 101], dtype=torch.int32)).double().numpy()
    counts = np.histogram2d(*(1 - np.exp(-pairs)).T, bins=16, range=[[0, 1], [0, 1]])[0]
    assert abs(oracles.chi_square(counts.flatten(), [size / 256] * 256)) < 4
