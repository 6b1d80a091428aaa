"""Temperature, top-k, top-p and the draw: transformers' own warpers say what is left, softmax how
often."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ivgcli.decoding import Limits
from ivgcli.decoding import sampling as sampling_module
from ivgcli.decoding.draws import exponential_noise, step_keys
from ivgcli.decoding.sampling import draw, truncate, warped
from tests import oracles

VOCABULARY = 200


def logits(seed: int, size: int = VOCABULARY, spread: float = 2.5, rows: int = 1) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.normal(0, spread, (rows, size))).float()


def keys(count: int, seed: int = 0) -> torch.Tensor:
    return step_keys(
        [oracles.stream_key(seed, f"r{row}", 0, 0) for row in range(count)],
        [0] * count,
        torch.device("cpu"),
    )


def vocabulary(size: int = VOCABULARY) -> torch.Tensor:
    return torch.arange(size, dtype=torch.int32)


def kept(scores: torch.Tensor, **warp: float) -> set[int]:
    """Return the token ids that our warp leaves."""
    return set(torch.isfinite(warped(scores, Limits(**warp))[0]).nonzero()[:, 0].tolist())


COMBINATIONS = [
    {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    for temperature in (0.0, 0.3, 1.0, 2.0)
    for top_k in (0, 1, 7, VOCABULARY, 10 * VOCABULARY)
    for top_p in (1.0, 0.95, 0.5, 1e-6)
]


@pytest.mark.parametrize(
    "warp", COMBINATIONS, ids=lambda w: "T{temperature} k{top_k} p{top_p}".format(**w)
)
def test_a_warp_leaves_what_transformers_warpers_leave(warp):
    for seed, spread in ((0, 2.5), (1, 0.05), (2, 12.0)):
        scores = torch.log_softmax(logits(seed, spread=spread), -1)
        theirs = oracles.warped(scores[0].numpy(), **warp)
        ours = warped(scores, Limits(**warp))[0].double().numpy()
        if seed == 2:
            # Probabilities below float32's range are 0 for us and 1e-60 for an oracle in float64.
            theirs = np.where(theirs < -80, -np.inf, theirs)
            ours = np.where(ours < -80, -np.inf, ours)
        assert (np.isfinite(ours) == np.isfinite(theirs)).all()
        both = np.isfinite(ours)
        assert np.abs(ours[both] - theirs[both]).max() < 1e-4


@pytest.mark.parametrize(
    "warp", COMBINATIONS[::3], ids=lambda w: "T{temperature} k{top_k} p{top_p}".format(**w)
)
def test_a_draw_is_the_winner_of_the_same_race_among_what_transformers_leaves(warp):
    scores = torch.log_softmax(logits(5, rows=24), -1)
    drawn = draw(scores, Limits(**warp), keys(24), vocabulary())
    for row in range(24):
        noise = oracles.noise(oracles.stream_key(0, f"r{row}", 0, 0), 0, VOCABULARY)
        token = oracles.pick(oracles.warped(scores[row].numpy(), **warp), noise)
        assert int(drawn.tokens[row]) == token
        temperature = warp["temperature"] or 1.0
        tempered = oracles.log_softmax(scores[row].double().numpy() / temperature)
        assert float(drawn.logprobs[row]) == pytest.approx(tempered[token], abs=1e-4), (
            "before top-k and top-p"
        )


def test_temperature_zero_takes_the_most_probable_token_and_the_lowest_of_equals():
    scores = torch.tensor(
        [[0.0, 3.0, 1.0, 3.0], [2.0, 2.0, 2.0, 2.0], [-torch.inf, -5.0, -torch.inf, -6.0]]
    )
    drawn = draw(scores, Limits(temperature=0.0), keys(3), vocabulary(4))
    assert drawn.tokens.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "warp", [{}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 0.5}, {"temperature": 0.0}]
)
def test_a_forbidden_token_is_never_drawn(warp):
    scores = torch.full((500, 6), -torch.inf)
    scores[:, [2, 5]] = torch.tensor([0.0, -1.0])
    drawn = draw(scores, Limits(**warp), keys(500), vocabulary(6))
    assert set(drawn.tokens.tolist()) <= {2, 5}


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 4.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_looking_at_the_head_first_leaves_the_nucleus_of_a_full_sort(monkeypatch, spread, top_p):
    """Peaked rows end in the head, flat ones do not; both in one block must come out as if sorted
    in full."""
    scores = torch.cat([logits(1, 900, spread), logits(2, 900, 6.0)])
    probabilities = torch.softmax(scores, -1)

    def nucleus() -> list[dict[int, float]]:
        found, ids = truncate(probabilities, 0, top_p)
        return [
            {token: p for token, p in zip(row_ids, row, strict=True) if p > 0}
            for row, row_ids in zip(found.tolist(), ids.tolist(), strict=True)
        ]

    monkeypatch.setattr(sampling_module, "HEAD", 10_000)
    full = nucleus()
    monkeypatch.setattr(sampling_module, "HEAD", 40)
    short = nucleus()
    for ours, theirs in zip(short, full, strict=True):
        assert len(ours) == len(theirs)
        assert sum(ours.values()) == pytest.approx(sum(theirs.values()), abs=1e-5)
        if spread:
            assert ours == theirs, "without equals there is one answer"


@pytest.mark.parametrize(
    "warp", [{"top_k": VOCABULARY}, {"top_p": 0.9999999}, {"top_k": 10 * VOCABULARY}]
)
def test_a_truncation_that_keeps_everything_draws_what_the_whole_vocabulary_draws(warp):
    scores = logits(9, rows=300, spread=1.0)
    full = draw(scores, Limits(), keys(300), vocabulary())
    assert (
        draw(scores, Limits(**warp), keys(300), vocabulary()).tokens.tolist()
        == full.tokens.tolist()
    )


def test_a_nucleus_that_is_exactly_full_takes_no_further_token():
    """0.5 of (0.5, 0.25, 0.25) is the first token alone, as in transformers; above it come two."""
    probabilities = torch.tensor([[0.25, 0.5, 0.25]])
    for top_p, size in ((0.5, 1), (0.5001, 2), (0.75, 2), (0.7501, 3), (1e-9, 1)):
        kept, ids = truncate(probabilities, 0, top_p)
        assert int((kept > 0).sum()) == size
        assert int(ids[0, 0]) == 1


def test_a_row_draws_the_same_in_any_block():
    """Rows are worked on sixteen at a time: neither the place in a block nor the block's other rows
    matter."""
    scores = logits(4, rows=50)
    for warp in ({}, {"top_k": 5}, {"top_p": 0.7}):
        together = draw(scores, Limits(**warp), keys(50), vocabulary()).tokens.tolist()
        alone = [
            int(draw(scores[r : r + 1], Limits(**warp), keys(50)[r : r + 1], vocabulary()).tokens)
            for r in range(50)
        ]
        shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))
        mixed = draw(scores[shuffled], Limits(**warp), keys(50)[shuffled], vocabulary()).tokens
        assert together == alone
        assert mixed.tolist() == [together[r] for r in shuffled.tolist()]


@pytest.mark.parametrize(
    "warp", [{}, {"top_k": 6}, {"top_p": 0.7}, {"temperature": 0.6, "top_k": 9, "top_p": 0.9}]
)
def test_tokens_are_drawn_as_often_as_softmax_says(warp):
    """20,000 draws, chi-square against the warped probabilities; false alarm: z > 4, one in 30,000
    per case."""
    count = 20_000
    scores = logits(3, 12, 0.5)
    drawn = draw(
        scores.expand(count, -1), Limits(**warp), keys(count, seed=8), vocabulary(12)
    ).tokens
    expected = np.exp(oracles.warped(torch.log_softmax(scores, -1)[0].numpy(), **warp)) * count
    counts = np.bincount(drawn.numpy(), minlength=12)
    assert counts[expected == 0].sum() == 0
    assert abs(oracles.chi_square(counts[expected > 0], expected[expected > 0])) < 4


def test_noise_that_rounds_to_infinity_still_leaves_a_winner():
    """The largest of 2³¹ uniforms is 1 in float32 and its exponential infinite: p/∞ = 0 must not
    make a NaN or lose the row."""
    scores = torch.tensor([[0.0, -torch.inf]])
    drawn = [
        draw(scores, Limits(**warp), keys(1), vocabulary(2))
        for warp in ({}, {"top_k": 1}, {"top_p": 0.5})
    ]
    assert [int(each.tokens) for each in drawn] == [0, 0, 0]
    race = torch.softmax(scores, -1) / torch.full((1, 2), torch.inf)
    assert race.tolist() == [[0.0, 0.0]]
    assert torch.isfinite(exponential_noise(keys(1), vocabulary(2))).all()
