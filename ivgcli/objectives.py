"""What a value regresses on, and how far it is off: pure functions of tensors.

All of them see a batch of responses as a table with a row for each response and a column for each
of its prefixes, the shortest first. A scalar head's first column is the prompt alone, so a response
of n tokens has n + 1 prefixes; a token-Q head has no value there, and n of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def within(lengths: Tensor, horizon: int) -> Tensor:
    """Return (B, T) bool, True for the prefixes that a response has.

    Args:
        lengths: (B,) number of prefixes of each response, each in 0..T.
        horizon: T.
    """
    return torch.arange(horizon, device=lengths.device) < lengths[:, None]


def final_reward_targets(rewards: Tensor, lengths: Tensor, horizon: int) -> Tensor:
    """Return the reward of the whole response at every prefix of it.

    The least-squares fit to these targets is the value under whatever drew the responses,
    V(prefix) = E[r | prefix].

    Args:
        rewards: (B,) reward of the whole response.
        lengths: (B,) number of prefixes, each in 0..T.
        horizon: T.

    Returns:
        (B, T) regression targets; positions past the end of a response hold 0.

    Reference:
        Mudgal et al. (2023), controlled decoding, CD-FUDGE.
    """
    return rewards[:, None] * within(lengths, horizon)


def lambda_returns(values: Tensor, rewards: Tensor, lengths: Tensor, lam: float) -> Tensor:
    """Return the λ-return of every prefix of a batch of finished responses.

    A response of n prefixes is valued v_1..v_n; v_n values the whole of it. The reward r arrives
    once, after the last token, and nothing is discounted:

        g_n = r        g_t = (1 - λ) v_{t+1} + λ g_{t+1}   for t < n

    With λ = 1 every prefix regresses on r, which is FUDGE. With λ = 0 each prefix chases its
    successor. Wherever a scalar head values the prompt, too, that is the first prefix.

    Args:
        values: (B, T) predicted value of each prefix. Treated as constants: no gradient flows back.
        rewards: (B,) reward of the whole response.
        lengths: (B,) number of prefixes, each in 1..T.
        lam: λ in [0, 1].

    Returns:
        (B, T) regression targets; positions past the end of a response hold 0.

    Reference:
        Sutton and Barto (2018), section 12.1; Han et al. (2024), VAS.
    """
    values = values.detach()
    horizon = values.shape[1]
    targets = torch.zeros_like(values)
    upcoming = rewards
    for t in reversed(range(horizon)):
        if t + 1 < horizon:
            upcoming = (1 - lam) * values[:, t + 1] + lam * upcoming
        # At and past a response's last token there is no successor to bootstrap from.
        upcoming = torch.where(lengths <= t + 1, rewards, upcoming)
        targets[:, t] = upcoming
    return targets.masked_fill(~within(lengths, horizon), 0.0)


def expected_next_values(
    next_values: Tensor, next_probabilities: Tensor, rewards: Tensor, lengths: Tensor
) -> Tensor:
    """Return the base's expectation of the next prefix's value, at every prefix.

        g_n = r        g_t = Σ_z p(z | y≤t) V(y≤t z) / Σ_z p(z | y≤t)   for t < n

    The sums run over the candidates z, so that with few of them the expectation is that under the
    base cut down to its most likely tokens.

    Args:
        next_values: (B, T, C) value of each prefix with each candidate after it. Treated as
            constants: no gradient flows back.
        next_probabilities: (B, T, C) the base's probability of each candidate, up to a factor.
        rewards: (B,) reward of the whole response.
        lengths: (B,) number of prefixes, each in 0..T.

    Returns:
        (B, T) regression targets; positions past the end of a response hold 0.

    Reference:
        Mudgal et al. (2023), controlled decoding, CD-Q.
    """
    total = next_probabilities.sum(dim=-1)
    # Past the end there are no candidates, and 0/0 would survive the mask below as NaN.
    mean = (next_probabilities * next_values.detach()).sum(dim=-1) / torch.where(
        total > 0, total, torch.ones_like(total)
    )
    last = torch.arange(mean.shape[1], device=lengths.device) == lengths[:, None] - 1
    return torch.where(last, rewards[:, None], mean) * within(lengths, mean.shape[1])


def prefix_loss(
    predictions: Tensor, targets: Tensor, trained: Tensor, mean_prefixes: float = 1.0
) -> Tensor:
    """Return half the squared error, summed over prefixes and averaged over responses.

        L = 1/(B n̄) Σ_responses Σ_t ½ (v_t - g_t)²

    Every prefix counts alike, wherever its response ends. Averaging over each response's own
    prefixes would not do: a prefix that both short and long responses begin with would then regress
    on E[r/n | prefix] / E[1/n | prefix], which leans to the rewards of the short ones. As n̄ is a
    constant, a batch may be split evenly over devices or accumulated passes, and the mean of the
    parts' losses is the loss of the whole.

    Args:
        predictions: (B, T) value of each prefix.
        targets: (B, T) what it regresses on.
        trained: (B, T) bool, False where there is no prefix, or none that is trained.
        mean_prefixes: n̄, above 0, one number for a whole training run. The mean number of trained
            prefixes makes the loss that of an average prefix; 1 is the papers' plain sum.

    Reference:
        Mudgal et al. (2023), controlled decoding, CD-FUDGE and CD-Q; Liu et al. (2024), IVG, eq. 12.
    """
    errors = 0.5 * (predictions - targets).square()
    return _sum_of_trained(errors, trained) / (predictions.shape[0] * mean_prefixes)


def prefix_bce(
    logits: Tensor, labels: Tensor, trained: Tensor, mean_prefixes: float = 1.0
) -> Tensor:
    """Return the cross-entropy of the labels, summed over prefixes and averaged over responses.

    At the optimum σ(logit) is the probability, given the prefix, that the response has the label.
    Prefixes and batches are weighed as by `prefix_loss`.

    Args:
        logits: (B, T) log-odds at each prefix.
        labels: (B, T) label of the whole response, 0 or 1.
        trained: (B, T) bool, as for `prefix_loss`.
        mean_prefixes: n̄, as for `prefix_loss`.

    Reference:
        Yang and Klein (2021), FUDGE.
    """
    errors = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return _sum_of_trained(errors, trained) / (logits.shape[0] * mean_prefixes)


def _sum_of_trained(errors: Tensor, trained: Tensor) -> Tensor:
    return errors.masked_fill(~trained, 0.0).sum()
