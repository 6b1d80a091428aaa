"""Responses as text, and the rewards that are given to them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from ivgcli.errors import RecordError
from ivgcli.models.loading import Networks
from ivgcli.recipes import RewardSpec
from ivgcli.records import Pair, Prompt
from ivgcli.training.answers import Answer, answers_of, distinct, rewarded
from tests.models import folder, tokenizer

CALLS: list[tuple[list[str], list[str]]] = []
"""What the callable below was asked."""

TALK = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "a film?"})


def letters(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Reward: characters of the response; not a number for an empty one."""
    CALLS.append(([*prompts], [*responses]))
    return [float(len(response)) if response else math.nan for response in responses]


def asked(identity: str, text: str = "the film") -> Prompt:
    """Return a prompt as text."""
    return Prompt(identity, text, None)


def given(answers: Sequence[Answer], **spec: object) -> list[Answer]:
    """Return answers with the rewards of a recipe's reward."""
    return rewarded(answers, RewardSpec.model_validate(spec), Networks("cpu"), lambda count: None)


def test_the_chosen_one_comes_first() -> None:
    pairs = [Pair(asked(name), f"good {name}", f"bad {name}") for name in "ab"]
    assert [(each.id, each.text, each.ended) for each in answers_of(pairs)] == [
        ("a/chosen", "good a", True),
        ("a/rejected", "bad a", True),
        ("b/chosen", "good b", True),
        ("b/rejected", "bad b", True),
    ]


def test_a_response_of_several_pairs_is_learnt_once() -> None:
    """The same text after another prompt is another response."""
    other = Prompt("c", None, TALK)
    answers = [
        Answer("a/chosen", asked("a"), "x"),
        Answer("b/rejected", asked("b"), "x"),
        Answer("c/chosen", other, "x"),
        Answer("d/chosen", asked("d", "it"), "x"),
        Answer("a/rejected", asked("a"), "y"),
    ]
    kept = [each.id for each in distinct(answers)]
    assert kept == ["a/chosen", "c/chosen", "d/chosen", "a/rejected"]


def test_a_callable_is_asked_for_the_responses_of_a_prompt_at_once() -> None:
    """It sees what a conversation says, without its roles."""
    CALLS.clear()
    answers = [
        Answer("a/1", asked("a"), "one"),
        Answer("a/2", asked("a"), "three"),
        Answer("b/1", Prompt("b", None, TALK), "five"),
    ]
    found = given(answers, callable="tests.unit.training.test_answers:letters")
    assert [each.reward for each in found] == [3.0, 5.0, 4.0]
    assert CALLS == [
        (["the film"] * 2, ["one", "three"]),
        (["be brief\n\na film?"], ["five"]),
    ]


def test_no_number_is_told_with_the_record_that_has_none() -> None:
    name = "tests.unit.training.test_answers:letters"
    answers = [Answer("p1/chosen", asked("p1"), "one"), Answer("p1/rejected", asked("p1"), "")]
    with pytest.raises(RecordError) as raised:
        given(answers, callable=name)
    assert str(raised.value) == (
        f"p1/rejected: has no reward: {name}: gave a number that is not finite"
        " → check it; a network may need a wider --dtype"
    )


def test_a_classifier_s_reward_is_the_log_odds_of_its_label() -> None:
    """log p/(1 − p) of two labels is the difference of their logits, at the text's last token."""
    model = AutoModelForSequenceClassification.from_pretrained(folder("two-labels")).eval()
    answers = [Answer("a/1", asked("a"), " opens"), Answer("b/1", asked("b"), " is a good film")]
    found = given(answers, model=folder("two-labels"), label=1)
    for each in found:
        ids = tokenizer("bytes")(f"the film{each.text}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = model.model(ids).last_hidden_state[:, -1]
            logits = model.score(hidden)[0]
        assert each.reward == pytest.approx(float(logits[1] - logits[0]), abs=1e-5)
