"""DPO on a toy of two responses, through TRL, against the closed form."""

from __future__ import annotations

import math

import pytest
import torch

from ivgcli.training.implicit import load_pair, optimise_preference
from tests.unit.training.test_implicit import encoded, log_probability, setting_of, unhurried

__all__ = ["unhurried"]

BETA = 0.5
STEPS = 200


@pytest.mark.slow
def test_dpo_reaches_the_tilted_reference() -> None:
    """π*(y) = π_ref(y)·exp(r(y)/β)/Z (Rafailov et al., 2023, eq. 4).

    Three pairs of four prefer a to b, which is σ(r_a − r_b) = 3/4 for r_a − r_b = ln 3. Then
    log π*(a)/π_ref(a) − log π*(b)/π_ref(b) = (r_a − r_b)/β = ln 3/0.5 = 2.197, and among the two,
    π*(a) : π*(b) = π_ref(a)·3² : π_ref(b).

    Every step is on all four pairs, so the gradient vanishes at the optimum and Adam stands still
    there; 1e-3 is what is left of the way after 200 steps of a falling learning rate.
    """
    given = [("north", " east", " south")] * 3 + [("north", " south", " east")]
    preference = {"learning_rate": 1e-2, "beta": BETA, "batch_size": 4, "max_steps": STEPS}
    train = {"save_steps": 10_000, "logging_steps": 1}
    setting, start = setting_of("words", preference=preference, train=train)
    pairs = encoded(start, given)
    optimise_preference(setting, start, pairs)
    tuned, reference = load_pair(setting, start)
    a, b = pairs[0].chosen, pairs[0].rejected
    probabilities = {
        (name, side): log_probability(model, example)
        for name, model in (("tuned", tuned), ("reference", reference))
        for side, example in (("a", a), ("b", b))
    }
    ratio = {side: probabilities["tuned", side] - probabilities["reference", side] for side in "ab"}
    assert ratio["a"] - ratio["b"] == pytest.approx(math.log(3) / BETA, abs=1e-3)
    tilted = torch.tensor(
        [probabilities["reference", "a"] + math.log(3) / BETA, probabilities["reference", "b"]]
    ).softmax(0)
    learnt = torch.tensor([probabilities["tuned", side] for side in "ab"]).softmax(0)
    torch.testing.assert_close(learnt, tilted, atol=1e-3, rtol=0)
    # What σ(βΔ) = 3/4 leaves of the loss is the labels' own entropy; it is flat there.
    line = setting.folder.lines()[-1]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert line["step"] == STEPS
    assert line["loss"] == pytest.approx(entropy, abs=1e-5)
