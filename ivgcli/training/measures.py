"""Is the value any good? From the values of prefixes to lines of a report.

Every function returns flat lines, ready for metrics.jsonl: `measure`, `kind` (implicit or explicit),
`fraction` where it is measured along the response, `value` with its 95 % interval `low`, `high`, and
`n` of a `unit`. A number that is not defined is None; a measure that nothing was given for has no line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ivgcli import statistics
from ivgcli.statistics import Interval, Numbers

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Shares of a response after which its value is read."""

CORRELATIONS = {"spearman": statistics.spearman, "pearson": statistics.pearson}

Kind = Literal["implicit", "explicit"]
Line: TypeAlias = dict[str, Any]


class Valued(NamedTuple):
    """One response: the values (n + 1,) of its prefixes, the empty one first, and its reward."""

    values: Numbers
    reward: float | None = None


class Pairs(NamedTuple):
    """Held-out pairs: item i of both lists answers one prompt."""

    chosen: Sequence[Valued]
    rejected: Sequence[Valued]


def at_fraction(values: Numbers, fraction: float) -> float:
    """Return the value after a share of a response.

    Args:
        values: (n + 1,) values of its prefixes.
        fraction: in (0, 1]; of n tokens the first ⌈fraction · n⌉ have been seen, so at least one, and
            at 1 all of them, EOS included.
    """
    return float(values[math.ceil(fraction * (len(values) - 1))])


def _seen(responses: Iterable[Valued], fraction: float) -> Tensor:
    """Return the value (N,) of each response at its own fraction."""
    return statistics.as_numbers([at_fraction(values, fraction) for values, _ in responses])


def _gaps(pairs: Pairs, fraction: float) -> Tensor:
    """Return V(chosen) − V(rejected) (N,), each cut at its own fraction."""
    return _seen(pairs[0], fraction) - _seen(pairs[1], fraction)


def pairwise_accuracy(kind: Kind, pairs: Pairs) -> list[Line]:
    """Return on which share of pairs the chosen prefix has the larger value, by fraction; a tie counts half."""
    n = len(pairs[0])
    lines = []
    for fraction in FRACTIONS if n else ():
        gaps = _gaps(pairs, fraction)
        share = statistics.accuracy(gaps, torch.zeros(n)) or 0.0
        place = {"measure": "pairwise_accuracy", "kind": kind, "fraction": fraction}
        lines.append(_line(place, share, statistics.wilson(share * n, n), n, "pairs"))
    return lines


def agreement(implicit: Pairs, explicit: Pairs) -> list[Line]:
    """Return on which share of pairs both values order the prefixes alike, by fraction.

    Where one of them ties and the other does not, the pair counts half.

    Args:
        implicit: the pairs with implicit values.
        explicit: the same pairs with explicit ones; their tokens may be others.
    """
    n = len(implicit[0])
    lines = []
    for fraction in FRACTIONS if n else ():
        apart = (_gaps(implicit, fraction).sign() - _gaps(explicit, fraction).sign()).abs()
        alike = float((2 - apart).sum() / 2)
        place = {"measure": "agreement", "kind": "both", "fraction": fraction}
        lines.append(_line(place, alike / n, statistics.wilson(alike, n), n, "pairs"))
    return lines


def correlation(kind: Kind, pairs: Pairs) -> list[Line]:
    """Return how values and final rewards go together, by fraction, over what has a reward.

    `difference_spearman` and `difference_pearson` correlate V(chosen) − V(rejected) with the
    difference of the rewards over pairs. An implicit value is known up to a constant of the prompt,
    which these do without. For explicit values, `reward_spearman` and `reward_pearson` correlate
    value and reward over single responses; their intervals resample pairs, so that the responses to
    one prompt stay together.
    """
    both = [(one, two) for one, two in zip(*pairs, strict=True) if None not in (one[1], two[1])]
    rated = Pairs([one for one, _ in both], [two for _, two in both])
    rewards = [statistics.as_numbers([reward for _, reward in side]) for side in rated]  # type: ignore[misc]
    lines = []
    for name, statistic in CORRELATIONS.items() if both else ():
        for fraction in FRACTIONS:
            sides = [_seen(side, fraction) for side in rated]
            place = {"measure": f"difference_{name}", "kind": kind, "fraction": fraction}
            gaps = (sides[0] - sides[1], rewards[0] - rewards[1])
            lines.append(_correlated(place, statistic, [gaps], "pairs"))
            if kind == "explicit":
                place = {**place, "measure": f"reward_{name}"}
                single = list(zip(sides, rewards, strict=True))
                lines.append(_correlated(place, statistic, single, "responses"))
    return lines


def _correlated(
    place: Line,
    statistic: Callable[[Tensor, Tensor], float | None],
    samples: Sequence[tuple[Tensor, Tensor]],
    unit: str,
) -> Line:
    """Return the line of a correlation over one or two samples, which are resampled together."""

    def of(drawn: Tensor) -> float | None:
        x, y = (torch.cat([sample[side][drawn] for sample in samples]) for side in (0, 1))
        return statistic(x, y)

    count = len(samples[0][0])
    interval = statistics.bootstrap_interval(of, count)
    return _line(place, of(torch.arange(count)), interval, count * len(samples), unit)


def calibration(rollouts: Sequence[Valued], bins: int = 10) -> list[Line]:
    """Compare explicit values with Monte-Carlo returns of the policy that drew the rollouts.

    The return of a rollout is an unbiased sample of the expectation that each of its prefixes
    predicts. Its prefixes at all fractions are compared; they share that return, so standard errors
    and intervals take rollouts, not prefixes, for independent.

    Args:
        rollouts: responses with their returns.
        bins: of about equally many prefixes.

    Returns:
        A `calibration_bin` for each bin, `calibration_slope`, `calibration_intercept` and
        `calibration_error`.
    """
    rated = [rollout for rollout in rollouts if rollout[1] is not None]
    if not rated:
        return []
    values = torch.stack([_seen(rated, fraction) for fraction in FRACTIONS], 1)
    returns = statistics.as_numbers([float(gain or 0.0) for _, gain in rated])[:, None]
    returns = returns.expand_as(values)
    owners = torch.arange(len(rated))[:, None].expand_as(values)
    found = statistics.calibration(values, returns, bins, owners)
    assert found is not None, "there is a rollout"
    lines: list[Line] = []
    for number, each in enumerate(found.bins):
        fields = {"measure": "calibration_bin", "kind": "explicit", "bin": number}
        lines.append({**fields, **each._asdict(), "unit": "prefixes"})
    for place, name in enumerate(("slope", "intercept")):

        def of(drawn: Tensor, place: int = place) -> float | None:
            line = statistics.fit(values[drawn], returns[drawn])
            return None if line is None else line[place]

        fields = {"measure": f"calibration_{name}", "kind": "explicit"}
        interval = statistics.bootstrap_interval(of, len(rated))
        lines.append(_line(fields, getattr(found, name), interval, values.numel(), "prefixes"))
    fields = {"measure": "calibration_error", "kind": "explicit"}
    return [*lines, _line(fields, found.error, None, values.numel(), "prefixes")]


def td_residual(responses: Sequence[Valued], first: int = 0) -> list[Line]:
    """Return how much an explicit value contradicts itself from one token to the next.

    The residuals are δ_t = V_{t+1} − V_t inside a response (`td_step`), and r − V_n at its end
    (`td_end`). The value of the policy that drew the responses has mean residuals of 0; their root
    mean square is what is learnt on the way, and not 0. Intervals resample responses.

    Args:
        responses: with their rewards; without one, a response has no residual at its end.
        first: the first prefix that is valued: 0 for a scalar head, 1 for token-q, whose value of
            the empty response is 0 by definition.
    """
    steps = [statistics.as_numbers(values)[first:].diff() for values, _ in responses]
    ends = [
        statistics.as_numbers([reward - float(values[-1])])
        for values, reward in responses
        if reward is not None
    ]
    lines = []
    for name, unit, residuals in (("td_step", "steps", steps), ("td_end", "responses", ends)):
        moments = [(len(each), float(each.sum()), float(each.square().sum())) for each in residuals]
        sample = torch.tensor(moments, dtype=torch.float64).reshape(-1, 3)
        counts, sums, squares = sample.unbind(1)
        if not counts.sum() > 0:
            continue

        def mean(drawn: Tensor, sums: Tensor = sums, counts: Tensor = counts) -> float | None:
            count = float(counts[drawn].sum())
            return float(sums[drawn].sum()) / count if count else None

        def root(drawn: Tensor, sums: Tensor = squares, counts: Tensor = counts) -> float | None:
            square = mean(drawn, sums, counts)
            return None if square is None else math.sqrt(square)

        for tail, statistic in (("mean", mean), ("rms", root)):
            fields = {"measure": f"{name}_{tail}", "kind": "explicit"}
            interval = statistics.bootstrap_interval(statistic, len(residuals))
            everything = statistic(torch.arange(len(residuals)))
            lines.append(_line(fields, everything, interval, int(counts.sum()), unit))
    return lines


def reward_margin(pairs: Pairs, beta: float) -> list[Line]:
    """Return margin and accuracy of DPO's implicit reward β·(log π_tuned − log π_reference).

    Args:
        pairs: whole responses with their implicit values.
        beta: β of the preference optimisation.

    Reference:
        Rafailov et al. (2023), Direct Preference Optimization, eq. 7.
    """
    n = len(pairs[0])
    if n == 0:
        return []
    gaps = beta * _gaps(pairs, 1.0)
    share = statistics.accuracy(gaps, torch.zeros(n)) or 0.0
    spread = statistics.bootstrap_interval(lambda drawn: float(gaps[drawn].mean()), n)
    margin = {"measure": "reward_margin", "kind": "implicit"}
    right = {"measure": "reward_accuracy", "kind": "implicit"}
    return [
        _line(margin, float(gaps.mean()), spread, n, "pairs"),
        _line(right, share, statistics.wilson(share * n, n), n, "pairs"),
    ]


def _line(place: Line, value: float | None, interval: Interval | None, n: int, unit: str) -> Line:
    low, high = (None, None) if interval is None else interval
    return {**place, "value": value, "low": low, "high": high, "n": n, "unit": unit}
