"""Targets and losses against plain Python: sums over lists, one response and one prefix at a time."""

from __future__ import annotations

import math

import pytest
import torch

from ivgcli.objectives import (
    expected_next_values,
    final_reward_targets,
    lambda_returns,
    prefix_bce,
    prefix_loss,
)

LENGTHS = torch.tensor([5, 1, 3, 4])


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (4, 5) values and (4,) rewards in float64."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 5, generator=random, dtype=torch.float64)
    return values, torch.randn(4, generator=random, dtype=torch.float64)


def summed_returns(values: list[float], reward: float, lam: float) -> list[float]:
    """Return Σ_n (1 − λ) λ^(n−1) G_n with all weight that is left on the last, where the n-step
    return G_n is the value n prefixes on, and the reward once the response is over."""
    found = []
    for place in range(len(values)):
        left = len(values) - place
        steps = [values[place + n] if n < left else reward for n in range(1, left + 1)]
        weights = [(1 - lam) * lam ** (n - 1) for n in range(1, left)] + [lam ** (left - 1)]
        assert math.isclose(sum(weights), 1.0)
        found.append(sum(weight * step for weight, step in zip(weights, steps, strict=True)))
    return found


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_a_lambda_return_is_the_weighted_sum_of_n_step_returns(lam):
    values, rewards = batch()
    found = lambda_returns(values, rewards, LENGTHS, lam)
    for row, length in enumerate(LENGTHS.tolist()):
        expected = summed_returns(values[row, :length].tolist(), float(rewards[row]), lam)
        assert found[row, :length].tolist() == pytest.approx(expected, abs=1e-12)
        assert found[row, length:].tolist() == [0.0] * (5 - length)


def test_lambda_one_is_fudge():
    values, rewards = batch()
    fudge = final_reward_targets(rewards, LENGTHS, 5)
    assert torch.equal(lambda_returns(values, rewards, LENGTHS, 1.0), fudge)
    assert fudge[2].tolist() == [float(rewards[2])] * 3 + [0.0, 0.0]


def test_lambda_zero_chases_the_next_value():
    values, rewards = batch()
    found = lambda_returns(values, rewards, LENGTHS, 0.0)
    assert found[0].tolist() == [*values[0, 1:].tolist(), float(rewards[0])]
    assert found[1].tolist() == [float(rewards[1]), 0.0, 0.0, 0.0, 0.0]


def test_no_gradient_flows_into_targets():
    values, rewards = batch()
    values.requires_grad_()
    assert not lambda_returns(values, rewards, LENGTHS, 0.5).requires_grad
    ahead = values[:, :, None].expand(-1, -1, 3)
    assert not expected_next_values(ahead, ahead.detach().exp(), rewards, LENGTHS).requires_grad


def test_expected_next_values_are_means_over_the_candidates():
    _, rewards = batch()
    random = torch.Generator().manual_seed(1)
    ahead = torch.randn(4, 5, 3, generator=random, dtype=torch.float64)
    chances = torch.rand(4, 5, 3, generator=random, dtype=torch.float64)
    chances[1, 1:] = 0.0  # as padding has it
    found = expected_next_values(ahead, chances, rewards, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        expected = [
            sum(float(p * v) for p, v in zip(chances[row, t], ahead[row, t], strict=True))
            / sum(map(float, chances[row, t]))
            for t in range(length - 1)
        ]
        expected += [float(rewards[row])] + [0.0] * (5 - length)
        assert found[row].tolist() == pytest.approx(expected, abs=1e-12)


def test_the_loss_is_half_the_squared_error_of_the_trained_prefixes_for_each_response():
    """Two responses: ½ (1² + 2²) = 2.5 and ½ 4² = 8; what is not trained may be anything."""
    predictions = torch.tensor([[1.0, 3.0, 70.0], [5.0, math.inf, 0.0]])
    targets = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    trained = torch.tensor([[True, True, False], [True, False, False]])
    assert float(prefix_loss(predictions, targets, trained)) == pytest.approx((2.5 + 8) / 2)
    assert float(prefix_loss(predictions, targets, trained, 1.5)) == pytest.approx(3.5)


def test_the_cross_entropy_of_a_logit_is_that_of_its_probability():
    """Logit ln 3 is probability 3/4: −ln ¾ for label 1, −ln ¼ for label 0."""
    logits = torch.tensor([[math.log(3), math.log(3)], [0.0, 9.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    trained = torch.tensor([[True, True], [True, False]])
    expected = (math.log(4 / 3) + math.log(4) + math.log(2)) / 2
    assert float(prefix_bce(logits, labels, trained)) == pytest.approx(expected)


@pytest.mark.parametrize("loss", [prefix_loss, prefix_bce])
def test_the_parts_of_a_batch_average_to_the_whole(loss):
    values, _ = batch()
    targets = (batch(1)[0] > 0).double()
    trained = torch.arange(5) < LENGTHS[:, None]
    parts = [
        loss(values[part], targets[part], trained[part], 2.0) for part in (slice(2), slice(2, 4))
    ]
    whole = loss(values, targets, trained, 2.0)
    assert float(sum(parts) / 2) == pytest.approx(float(whole), abs=1e-12)


def test_the_best_value_of_a_shared_prefix_is_the_mean_reward_whatever_the_lengths():
    """A response of one prefix with reward 1 and one of three with reward 0 share their first: the
    loss's gradient there is 0 at ½, not at the ¾ that averaging over each response would give."""
    shared = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    others = torch.zeros(2, 2, dtype=torch.float64)
    predictions = torch.cat([shared.expand(2, 1), others], dim=1)
    lengths = torch.tensor([1, 3])
    targets = final_reward_targets(torch.tensor([1.0, 0.0], dtype=torch.float64), lengths, 3)
    prefix_loss(predictions, targets, torch.arange(3) < lengths[:, None]).backward()
    assert float(shared.grad) == 0.0
