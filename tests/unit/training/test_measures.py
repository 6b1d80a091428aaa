"""Measures of hand-made values, and the tables that show them."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import pytest
import torch

from ivgcli.statistics import wilson
from ivgcli.training.measures import (
    FRACTIONS,
    Pairs,
    Valued,
    agreement,
    at_fraction,
    calibration,
    correlation,
    pairwise_accuracy,
    reward_margin,
    td_residual,
)
from ivgcli.training.tables import headline, table


def rising(end: float, tokens: int = 4, reward: float | None = None) -> Valued:
    """Return a response whose value goes straight from 0 to `end`."""
    return Valued([end * t / tokens for t in range(tokens + 1)], reward)


def by_fraction(lines: list[dict], measure: str, kind: str | None = None) -> dict[float, float]:
    """Return the values of one measure."""
    return {
        line["fraction"]: line["value"]
        for line in lines
        if line["measure"] == measure and kind in (None, line["kind"])
    }


def single(lines: list[dict], measure: str) -> dict:
    """Return the one line of a measure."""
    [line] = [line for line in lines if line["measure"] == measure]
    return line


def test_a_fraction_of_a_response_is_rounded_up_to_whole_tokens() -> None:
    """Exact fractions say where the prefix ends; 0.1 in binary is a little more than a tenth."""
    exact = dict(zip(FRACTIONS, map(Fraction, ("1/10", "1/4", "1/2", "3/4", "1")), strict=True))
    for tokens in range(1, 400):
        values = range(tokens + 1)
        for fraction, share in exact.items():
            assert at_fraction(values, fraction) == math.ceil(share * tokens)
    assert at_fraction([7.0], 0.5) == 7.0, "an empty response has one prefix"
    assert at_fraction(torch.tensor([0.0, 1.0, 2.0]), 1.0) == 2.0


def test_each_response_of_a_pair_is_cut_at_its_own_fraction() -> None:
    """Chosen: 2 tokens, values 0, 1, 5; rejected: 10 tokens, value t/2. At ½: 1 < 2.5; at 1: tie."""
    pairs = Pairs([Valued([0, 1, 5])], [Valued([t / 2 for t in range(11)])])
    lines = pairwise_accuracy("explicit", pairs)
    # After 10 %, 1 of 2 and 1 of 10 tokens: 1 > 0.5. After 25 %, 1 and 3: 1 < 1.5.
    assert by_fraction(lines, "pairwise_accuracy") == {0.1: 1, 0.25: 0, 0.5: 0, 0.75: 1, 1.0: 0.5}


def test_accuracy_is_a_share_of_pairs_with_wilson_s_interval() -> None:
    chosen = [rising(1.0), rising(2.0), rising(-1.0), rising(3.0)]
    lines = pairwise_accuracy("implicit", Pairs(chosen, [rising(0.0)] * 4))
    low, high = wilson(3, 4)
    for line, fraction in zip(lines, FRACTIONS, strict=True):
        assert line == {
            "measure": "pairwise_accuracy",
            "kind": "implicit",
            "fraction": fraction,
            "value": 0.75,
            "low": low,
            "high": high,
            "n": 4,
            "unit": "pairs",
        }


def test_two_values_agree_where_they_order_a_pair_alike_and_half_where_one_ties() -> None:
    implicit = Pairs([rising(9), rising(-9), rising(0), rising(5)], [rising(0)] * 4)
    # The tokens may differ: the explicit value reads one token for each four.
    explicit = Pairs([rising(1, 1), rising(2, 1), rising(3, 1), rising(4, 1)], [rising(0, 1)] * 4)
    lines = agreement(implicit, explicit)
    assert by_fraction(lines, "agreement") == dict.fromkeys(FRACTIONS, (1 + 0 + 0.5 + 1) / 4)
    assert (lines[0]["low"], lines[0]["high"]) == wilson(2.5, 4)
    ties = Pairs([rising(0)], [rising(0)])
    assert agreement(ties, ties)[0]["value"] == 1.0
    opposite = agreement(Pairs([rising(1)], [rising(2)]), Pairs([rising(2)], [rising(1)]))
    assert opposite[0]["value"] == 0.0


def test_a_constant_of_the_prompt_spoils_a_correlation_but_not_that_of_differences() -> None:
    """Values are reward + c(prompt), as an implicit value's are; differences are the rewards' own."""
    rewards = [(1.0, 0.0), (3.0, 1.0), (2.0, 1.5), (5.0, 1.0)]
    offsets = [100.0, -40.0, 7.0, -300.0]
    flat = [
        [Valued([pair[side] + c] * 3, pair[side]) for pair, c in zip(rewards, offsets, strict=True)]
        for side in (0, 1)
    ]
    lines = correlation("explicit", Pairs(*flat))
    for name in ("spearman", "pearson"):
        differences = by_fraction(lines, f"difference_{name}")
        assert differences == {fraction: pytest.approx(1.0) for fraction in FRACTIONS}
        assert by_fraction(lines, f"reward_{name}")[1.0] < 0.5
    assert single([lines[0]], "difference_spearman")["n"] == 4
    assert [line["n"] for line in lines if line["measure"] == "reward_spearman"] == [8] * 5
    implicit = correlation("implicit", Pairs(*flat))
    assert {line["measure"] for line in implicit} == {"difference_spearman", "difference_pearson"}


def test_correlations_are_of_responses_with_a_reward_and_none_where_rewards_do_not_vary() -> None:
    chosen = [rising(1, reward=1.0), rising(2, reward=None), rising(3, reward=1.0)]
    rejected = [rising(0, reward=0.0), rising(1, reward=0.0), rising(0.5, reward=0.0)]
    lines = correlation("explicit", Pairs(chosen, rejected))
    assert {line["n"] for line in lines} == {2, 4}
    for line in lines:
        if line["measure"].startswith("difference"):
            assert (line["value"], line["low"], line["high"]) == (None, None, None)
    # Four responses: values 3, 1 with reward 1; 0.5, 0 with reward 0. Ranks 4, 3 | 2, 1 against the
    # tied 3.5, 3.5 | 1.5, 1.5: covariance 4, variances 5 and 4, so 4/√20.
    assert by_fraction(lines, "reward_spearman")[1.0] == pytest.approx(4 / math.sqrt(20))
    assert correlation("explicit", Pairs([rising(1)], [rising(0)])) == []


def test_calibration_compares_each_prefix_with_the_return_of_its_rollout() -> None:
    """Two rollouts, one value each along the whole response: −1 returned 0, +1 returned 3."""
    rollouts = [Valued([-1.0] * 4, 0.0), Valued([1.0] * 9, 3.0), Valued([5.0, 5.0], None)]
    lines = calibration(rollouts, bins=2)
    bins = [line for line in lines if line["measure"] == "calibration_bin"]
    assert [(line["mean_value"], line["mean_return"], line["n"]) for line in bins] == [
        (-1.0, 0.0, 5),
        (1.0, 3.0, 5),
    ]
    # All five prefixes of a bin are of one rollout, so nothing is known of its error.
    assert [line["standard_error"] for line in bins] == [None, None]
    assert single(lines, "calibration_slope")["value"] == pytest.approx(1.5)
    assert single(lines, "calibration_intercept")["value"] == pytest.approx(1.5)
    assert single(lines, "calibration_error")["value"] == pytest.approx((1 + 2) / 2)
    assert single(lines, "calibration_error")["n"] == 10
    assert calibration([]) == []


def test_intervals_of_calibration_take_rollouts_for_independent() -> None:
    """A rollout in five copies of one value tells as much as one prefix: the interval of the slope is
    that of resampling 30 rollouts, not 150 prefixes."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn(30, generator=random).tolist()
    noise = torch.randn(30, generator=random).tolist()
    rollouts = [Valued([v] * 3, v + e) for v, e in zip(values, noise, strict=True)]
    line = single(calibration(rollouts), "calibration_slope")
    # The slope's standard error: √(Σe²/28 / Σ(v − v̄)²), about 0.2, by the usual formula.
    x, y = torch.tensor(values), torch.tensor([rollout.reward for rollout in rollouts])
    spread = (x - x.mean()).square().sum()
    residual = y - y.mean() - line["value"] * (x - x.mean())
    error = float((residual.square().sum() / 28 / spread).sqrt())
    assert (line["high"] - line["low"]) / (2 * 1.96) == pytest.approx(error, rel=0.3)


def test_td_residuals_by_hand() -> None:
    """Values 1, 2, 4 with reward 5: steps 1 and 2, end 1. Values 0, −1 with reward −3: −1, end −2."""
    responses = [Valued([1, 2, 4], 5.0), Valued(torch.tensor([0.0, -1.0]), -3.0)]
    lines = td_residual(responses)
    assert single(lines, "td_step_mean")["value"] == pytest.approx(2 / 3)
    assert single(lines, "td_step_rms")["value"] == pytest.approx(math.sqrt(6 / 3))
    assert single(lines, "td_end_mean")["value"] == pytest.approx(-0.5)
    assert single(lines, "td_end_rms")["value"] == pytest.approx(math.sqrt(5 / 2))
    assert {line["measure"]: (line["n"], line["unit"]) for line in lines} == {
        "td_step_mean": (3, "steps"),
        "td_step_rms": (3, "steps"),
        "td_end_mean": (2, "responses"),
        "td_end_rms": (2, "responses"),
    }
    # Resampled, the steps are those of one response or the other, or of both.
    assert single(lines, "td_step_mean")["low"] == pytest.approx(-1.0)
    assert single(lines, "td_step_mean")["high"] == pytest.approx(1.5)


def test_a_token_q_head_has_no_residual_at_the_empty_response() -> None:
    """Its value is 0 by definition, and the first token's may be anything."""
    lines = td_residual([Valued([0, 7, 8], 8.0), Valued([0, 2], None)], first=1)
    assert single(lines, "td_step_mean")["value"] == 1.0
    assert single(lines, "td_step_mean")["n"] == 1
    assert single(lines, "td_end_mean")["n"] == 1
    assert td_residual([Valued([0.0, 2.0], None)], first=1) == []


def test_dpo_s_margin_and_accuracy_are_those_of_whole_responses() -> None:
    """β = 0.1: margins 0.1·(4 − 1), 0.1·(0 − 5), 0.1·(2 − 2): mean −0.0667; right, wrong, tie: ½."""
    pairs = Pairs([rising(4), rising(0), rising(2)], [rising(1), rising(5), rising(2)])
    margin, right = reward_margin(pairs, beta=0.1)
    assert margin["value"] == pytest.approx((0.3 - 0.5) / 3)
    assert margin["low"] == pytest.approx(-0.5)
    assert margin["high"] == pytest.approx(0.3)
    assert (right["value"], right["n"]) == (0.5, 3)
    assert reward_margin(Pairs([], []), 0.1) == []


def test_no_pairs_have_no_lines() -> None:
    nothing = Pairs([], [])
    assert pairwise_accuracy("explicit", nothing) == agreement(nothing, nothing) == []
    assert correlation("explicit", nothing) == td_residual([]) == []


def test_plain_tuples_are_taken_for_responses() -> None:
    pairs = ([([0.0, 2.0], 1.0)], [([0.0, 1.0], 0.0)])
    assert pairwise_accuracy("explicit", pairs)[0]["value"] == 1.0
    assert correlation("explicit", pairs)[0]["n"] == 1


@functools.cache
def report() -> list[dict]:
    """Return the lines of a small report with everything in it."""
    chosen = [rising(2.0, reward=2.0), rising(1.0, reward=3.0), rising(0.0, reward=1.0)]
    rejected = [rising(1.0, reward=0.0), rising(-1.0, reward=-1.5), rising(0.5, reward=0.5)]
    pairs = Pairs(chosen, rejected)
    return [
        *pairwise_accuracy("explicit", pairs),
        *pairwise_accuracy("implicit", Pairs(rejected, chosen)),
        *agreement(Pairs(rejected, chosen), pairs),
        *correlation("explicit", pairs),
        *correlation("implicit", pairs),
        *calibration([*chosen, *rejected], bins=2),
        *td_residual([*chosen, *rejected]),
        *reward_margin(pairs, 0.1),
    ]


def test_the_table_shows_every_measure_by_fraction_with_half_its_interval() -> None:
    lines = table(report()).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Held out: 3 pairs, 6 responses; ± half a 95 % interval"
    assert " ".join(lines[2].split()) == "share of the response seen 10 % 25 % 50 % 75 % 100 %"
    low, high = wilson(2, 3)
    at = lines.index("chosen above rejected, share of pairs")
    assert lines[at + 1].split() == ["explicit", *["0.67"] * 5]
    assert lines[at + 2].split() == [f"±{(high - low) / 2:.2f}"] * 5
    assert lines[at + 3].split() == ["implicit", *["0.33"] * 5]
    [alike] = [line for line in lines if line.startswith("implicit and explicit order pairs alike")]
    assert alike.split()[6:] == ["0.00"] * 5


def test_the_table_shows_single_numbers_and_leaves_bins_to_the_figure() -> None:
    text = table(report())
    [margin] = [line for line in text.splitlines() if line.startswith("reward margin")]
    # β·(1 + 2 − 0.5)/3, between the smallest and the largest margin.
    assert margin.split()[3:] == ["0.083", "-0.050", "…", "0.200", "3", "pairs"]
    assert "TD: V(t+1) − V(t) inside a response, reward − V(n) at its end" in text
    assert "calibration, bin" not in text
    assert "linear correlation" not in text


def test_a_table_of_one_measure_has_nothing_else_in_it() -> None:
    text = table([{"stage": "value", "step": 3, "loss": 0.5}, *reward_margin(*some_margin())])
    assert text.splitlines()[0].startswith("reward: β (log π_tuned − log π_reference)")
    assert "calibration" not in text
    assert "share of the response seen" not in text
    assert table([]) == ""


def some_margin() -> tuple[Pairs, float]:
    """Return one pair: nothing can be resampled, so its margin has no interval."""
    return Pairs([rising(4)], [rising(1)]), 0.5


def test_an_undefined_number_is_a_dash() -> None:
    [margin, _] = table(reward_margin(*some_margin())).splitlines()[-2:]
    assert margin.split() == ["reward", "margin,", "implicit", "1.50", "–", "1", "pairs"]
    pairs = Pairs([rising(1, reward=1.0)] * 3, [rising(0, reward=0.0)] * 3)
    lines = table(correlation("implicit", pairs)).splitlines()
    assert [line.split() for line in lines if "–" in line] == [["implicit", *"–" * 5]]


def test_the_headline_says_how_many_pairs_are_ranked_right() -> None:
    """Ranks of the values 6, 4.5, 2 | 4.5, 1, 3 and of the rewards 5, 6, 4 | 2, 1, 3: 10.5/√(17 · 17.5)."""
    assert headline(report()).splitlines() == [
        "explicit value: ranks chosen above rejected on 67 % of 3 held-out pairs, on 67 % after half"
        " of each; rank correlation with the reward 0.61",
        "implicit value: ranks chosen above rejected on 33 % of 3 held-out pairs, on 33 % after half"
        " of each",
    ]
    assert headline([]) == ""
