"""Labels: Bradley-Terry frequencies, argmax, margins and pairings, against plain lists."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from ivgcli.recipes import SynthesizeRecipe, run_id
from ivgcli.records import Pair, Prompt
from ivgcli.workflows.labelling import Labelling, partners, possible, sigmoid, uniform


def recipe(**given: Any) -> SynthesizeRecipe:
    """Return a recipe; neither its base nor its reward is ever loaded."""
    return SynthesizeRecipe.model_validate({"base": "b", "reward": "m:f", **given})


def scored(identity: str, answers: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """Return the scored responses of one prompt."""
    return [
        {"id": identity, "prompt": "x", "response": text, "sample": sample, "reward": reward}
        for sample, (text, reward) in enumerate(answers)
    ]


def labelled(plan: SynthesizeRecipe, answers: Sequence[tuple[str, float]], identity: str = "a"):
    """Return the pairs of one prompt, and the tally."""
    labelling = Labelling(plan, [Prompt(identity, "x", None)])
    return labelling.pairs(scored(identity, answers)), labelling.tally


@pytest.mark.parametrize(
    ("gap", "temperature"), [(0.0, 1.0), (1.0, 1.0), (-0.5, 0.25), (3.0, 2.0), (-4.0, 1.0)]
)
def test_the_frequency_of_a_label_is_the_sigmoid_of_the_difference(gap, temperature):
    # Each id has its own draw, so the count is binomial. With n = 20,000, a deviation of 4.5
    # standard deviations has a probability of 7e-6 if the code is right; there are five cases.
    plan = recipe(label_temperature=temperature)
    count = 20_000
    prompts = [Prompt(f"p{number}", "x", None) for number in range(count)]
    labelling = Labelling(plan, prompts)
    first = 0
    for prompt in prompts:
        [pair] = labelling.pairs(scored(prompt.id, [("one", gap), ("two", 0.0)]))
        first += pair["chosen"] == "one"
        chance = 1 / (
            1 + math.exp(-(pair["chosen_reward"] - pair["rejected_reward"]) / temperature)
        )
        assert pair["probability"] == pytest.approx(chance, rel=1e-5)
    expected = 1 / (1 + math.exp(-gap / temperature))
    assert abs(first / count - expected) < 4.5 * math.sqrt(expected * (1 - expected) / count)
    assert labelling.tally.swapped == count - first
    if gap:
        right = first if gap > 0 else count - first
        assert labelling.tally.account()["agreement"] == pytest.approx(right / count, rel=1e-5)
    else:
        assert labelling.tally.account()["agreement"] is None, "no reward tells the two apart"


def test_the_draws_of_pairs_are_uniform_and_independent_of_each_other():
    # 40,000 draws in 20 bins: chi-squared has 19 degrees of freedom, and exceeds 52 with p = 7e-5.
    numbers = [uniform(3, f"p{n // 2}", n % 2) for n in range(40_000)]
    bins = [0] * 20
    for number in numbers:
        assert 0 < number < 1
        bins[int(20 * number)] += 1
    assert sum((count - 2000) ** 2 / 2000 for count in bins) < 52
    # The two pairs of a prompt: correlation of 20,000 uncorrelated pairs has deviation 0.0071.
    products = [(a - 0.5) * (b - 0.5) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
    assert abs(12 * sum(products) / len(products)) < 4.5 * 0.0071
    assert uniform(0, "1", 23) != uniform(0, "12", 3), "id and number cannot run together"
    assert len({uniform(seed, "a", 0) for seed in range(100)}) == 100


def test_a_label_does_not_depend_on_which_response_was_drawn_first():
    plan = recipe(label_temperature=2.0)
    for number in range(200):
        one, two = ("alpha", 0.3), ("beta", -0.4)
        [there], _ = labelled(plan, [one, two], f"p{number}")
        [back], _ = labelled(plan, [two, one], f"p{number}")
        assert there == back


def test_the_sigmoid_neither_overflows_nor_loses_its_tail():
    assert sigmoid(0) == 0.5
    assert sigmoid(1e4) == 1
    assert sigmoid(-1e4) == 0
    assert sigmoid(-40) == pytest.approx(math.exp(-40), rel=1e-12)
    assert sigmoid(1.7) + sigmoid(-1.7) == pytest.approx(1, abs=1e-15)


def oracle(answers: Sequence[tuple[str, float]], pairs: str, margin: float):
    """Return by plain lists the pairs that argmax makes, and the reasons of the others."""
    made, reasons = [], []
    count = len(answers)
    if pairs == "disjoint":
        ways = [(2 * number, 2 * number + 1) for number in range(count // 2)]
    elif pairs == "all":
        ways = [(a, b) for a in range(count) for b in range(count) if a < b]
    else:
        texts: list[str] = []
        distinct = []
        for index, (text, _) in enumerate(answers):
            if text not in texts:
                texts.append(text)
                distinct.append(index)
        ranked = sorted(distinct, key=lambda index: answers[index][1], reverse=True)  # is stable
        ways = [(ranked[0], ranked[-1])] if len(ranked) > 1 else [(0, 1)]
    for number, (a, b) in enumerate(ways):
        if answers[a][0] == answers[b][0]:
            reasons.append("identical")
        elif answers[a][1] == answers[b][1]:
            reasons.append("tied")
        elif abs(answers[a][1] - answers[b][1]) < margin:
            reasons.append("within the margin")
        else:
            best, worst = (a, b) if answers[a][1] > answers[b][1] else (b, a)
            made.append((number, answers[best][0], answers[worst][0]))
    return made, reasons


@pytest.mark.parametrize("pairs", ["disjoint", "all", "best-worst"])
@pytest.mark.parametrize("margin", [0.0, 1.5])
def test_argmax_margin_and_pairings_are_those_of_plain_lists(pairs, margin):
    chance = random.Random(pairs)
    reasons_seen = set()
    for case in range(300):
        count = chance.choice([2, 4, 6])
        worth = {text: chance.choice([-1.0, 0.0, 1.0, 2.0]) for text in "abcdef"}
        answers = [(text, worth[text]) for text in chance.choices("abcdef", k=count)]
        plan = recipe(responses=count, pairs=pairs, label="argmax", margin=margin)
        made, tally = labelled(plan, answers)
        expected, reasons = oracle(answers, pairs, margin)
        several = possible(count, pairs) > 1
        assert [(each["id"], each["chosen"], each["rejected"]) for each in made] == [
            (f"a-{number}" if several else "a", best, worst) for number, best, worst in expected
        ], case
        assert all(each["probability"] == 1 for each in made)
        assert tally.skipped == {name: reasons.count(name) for name in reasons}
        assert tally.pairs + sum(tally.skipped.values()) == possible(count, pairs)
        reasons_seen |= set(reasons)
    # What differs by no more than a whole number cannot lie within a margin of 0.
    expected_reasons = {"identical", "tied"} | ({"within the margin"} if margin else set())
    assert reasons_seen == expected_reasons


def test_a_difference_of_exactly_the_margin_is_enough():
    made, _ = labelled(recipe(margin=0.5), [("a", 0.5), ("b", 0.0)])
    assert len(made) == 1
    _, tally = labelled(recipe(margin=0.5001), [("a", 0.5), ("b", 0.0)])
    assert tally.skipped == {"within the margin": 1}


def test_ties_are_coin_flips_under_bradley_terry_and_left_out_under_argmax():
    [pair], _ = labelled(recipe(), [("a", 1.0), ("b", 1.0)])
    assert pair["probability"] == 0.5
    made, tally = labelled(recipe(label="argmax"), [("a", 1.0), ("b", 1.0)])
    assert (made, tally.skipped) == ([], {"tied": 1})


def test_best_and_worst_are_distinct_texts_where_there_are_any():
    assert partners(["a", "b", "a", "c"], [1.0, 1.0, 1.0, 1.0], "best-worst") == [(0, 3)]
    assert partners(["a", "a", "b"], [1.0, 1.0, 1.0], "best-worst") == [(0, 2)]
    assert partners(["a", "a"], [1.0, 1.0], "best-worst") == [(0, 1)]
    assert partners(["a", "b", "c"], [0.0, 2.0, 1.0], "best-worst") == [(0, 1)]


def test_the_account_is_of_sums_that_can_be_checked_by_hand():
    plan = recipe(responses=4, label="argmax")
    _, tally = labelled(plan, [("a", 1.0), ("b", 3.0), ("c", 0.0), ("c", 0.0)])
    assert tally.account() == {
        "pairs": 1,
        "skipped": {"identical": 1},
        "swapped": 1,
        "mean_reward": 1.0,
        "mean_gap": 2.0,
        "agreement": 1.0,
    }


def test_fields_pass_through_and_the_pairs_own_names_stand():
    plan = recipe(label="argmax")
    given = Prompt("a", "x", None, {"rating": 2, "probability": "theirs"})
    [pair] = Labelling(plan, [given]).pairs(scored("a", [("good", 1.0), ("bad", 0.0)]))
    assert list(pair.items()) == [
        ("id", "a"),
        ("prompt", "x"),
        ("chosen", "good"),
        ("rejected", "bad"),
        ("chosen_reward", 1.0),
        ("rejected_reward", 0.0),
        ("probability", 1.0),
        ("run", run_id(plan)),
        ("rating", 2),
    ]


def test_earlier_responses_to_another_prompt_do_not_fit():
    labelling = Labelling(recipe(), [Prompt("a", "x", None), Prompt("b", "y", None)])
    assert labelling.fits(scored("a", [("one", 0.0), ("two", 0.0)]))
    assert not labelling.fits(scored("b", [("one", 0.0), ("two", 0.0)])), "b asks y, not x"
    pair = Pair(Prompt("a", "x", None), "one", "two")
    again = Labelling(recipe(relabel=True), [pair])
    assert again.fits(scored("a", [("one", 0.0), ("two", 0.0)]))
    assert not again.fits(scored("a", [("two", 0.0), ("one", 0.0)]))
