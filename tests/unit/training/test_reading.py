"""The values of prefixes against one plain forward for each prefix."""

from __future__ import annotations

import math
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ivgcli.errors import ModelError
from ivgcli.training.reading import explicit_values, implicit_values
from ivgcli.training.sequences import Example
from tests import oracles
from tests.models import folder, plain, plain_value

LENGTHS = [(3, 9), (1, 1), (7, 0), (2, 30), (12, 4), (5, 16), (1, 22)]
"""Prompt and response tokens: uneven, so that every batch has padding."""


def examples(vocabulary: int = 300) -> list[Example]:
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(5, vocabulary) for _ in range(count)]

    return [Example(f"r{i}", ids(p), ids(n), False) for i, (p, n) in enumerate(LENGTHS)]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("name", ["scalar", "scalar-gpt2"])
def test_a_scalar_value_is_the_head_s_output_at_the_end_of_each_prefix(name, batch_size):
    """Tolerance: float32 sums of up to 42 terms of size 1, in another order."""
    model = plain_value(name)
    found = explicit_values(model, "scalar", examples(), batch_size)
    for example, values in zip(examples(), found, strict=True):
        expected = [
            oracles.head_outputs(model, example.prompt_ids + example.response_ids[:t])[-1, 0]
            for t in range(len(example.response_ids) + 1)
        ]
        assert values.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_token_q_value_is_that_of_the_last_token_given_all_before_it(batch_size):
    model = plain_value("token-q")
    found = explicit_values(model, "token-q", examples(), batch_size)
    for example, values in zip(examples(), found, strict=True):
        expected = [0.0]
        for t, token in enumerate(example.response_ids):
            before = example.prompt_ids + example.response_ids[:t]
            expected.append(oracles.head_outputs(model, before)[-1, token])
        assert values.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_token_q_value_is_read_in_blocks_of_any_size(monkeypatch):
    model = plain_value("token-q")
    whole = explicit_values(model, "token-q", examples(), 4)
    monkeypatch.setattr("ivgcli.training.reading.BLOCK", 7)
    for one, other in zip(whole, explicit_values(model, "token-q", examples(), 4), strict=True):
        # Another number of rows may sum in another order.
        assert other.tolist() == pytest.approx(one.tolist(), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_implicit_value_is_the_log_ratio_of_each_prefix(family, batch_size):
    """Tolerance: 1e-5 for each unit of the sums, which reach 50."""
    tuned, reference = (plain(f"{family}-{role}") for role in ("tuned", "reference"))
    found = implicit_values(tuned, reference, examples(), batch_size)
    for example, values in zip(examples(), found, strict=True):
        expected = [
            oracles.response_logprob(tuned, example.prompt_ids, example.response_ids[:t])
            - oracles.response_logprob(reference, example.prompt_ids, example.response_ids[:t])
            for t in range(len(example.response_ids) + 1)
        ]
        assert values.tolist() == pytest.approx(expected, abs=1e-5, rel=1e-5)
        assert float(values[0]) == 0.0


def test_an_adapter_over_the_reference_is_read_as_the_model_that_it_makes():
    reference = plain("llama")
    base = AutoModelForCausalLM.from_pretrained(folder("llama"), dtype=torch.float32)
    torch.manual_seed(0)
    tuned = get_peft_model(base, LoraConfig(init_lora_weights=False, target_modules=["q_proj"]))
    found = implicit_values(tuned, reference, examples(), 3)
    merged = tuned.merge_and_unload()
    expected = implicit_values(merged, reference, examples(), 3)
    for one, other in zip(found, expected, strict=True):
        assert one.tolist() == pytest.approx(other.tolist(), abs=1e-4)
    assert max(float(values.abs().max()) for values in found) > 0.1, "the adapter does something"


def test_a_model_that_ignores_which_logits_are_wanted_is_read_right_all_the_same(monkeypatch):
    tuned, reference = plain("llama-tuned"), plain("llama-reference")
    wanted = implicit_values(tuned, reference, examples(), 1)
    forward = type(tuned).forward

    def all_logits(self, *args, logits_to_keep=0, **rest):
        return forward(self, *args, **rest)

    monkeypatch.setattr(type(tuned), "forward", all_logits)
    for one, other in zip(wanted, implicit_values(tuned, reference, examples(), 1), strict=True):
        assert other.tolist() == pytest.approx(one.tolist(), abs=1e-5)


def test_a_link_is_applied_to_every_value_the_empty_response_s_included():
    model = plain_value("token-q")
    plain_values = explicit_values(model, "token-q", examples(), 4)
    linked = explicit_values(model, "token-q", examples(), 4, "log-sigmoid")
    for outputs, values in zip(plain_values, linked, strict=True):
        expected = [-math.log1p(math.exp(-z)) for z in outputs.tolist()]
        assert values.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_network_is_read_without_dropout_and_left_as_it_was():
    model = AutoModelForSequenceClassification.from_pretrained(
        folder("scalar-gpt2"), dtype=torch.float32, resid_pdrop=0.5
    )
    calm = explicit_values(model.eval(), "scalar", examples(), 4)
    told: list[int] = []
    again = explicit_values(model.train(), "scalar", examples(), 3, advance=told.append)
    assert model.training
    assert told == [3, 3, 1]
    for one, other in zip(calm, again, strict=True):
        assert other.tolist() == pytest.approx(one.tolist(), abs=1e-5)


def test_a_value_that_is_no_number_is_refused_by_the_response_and_its_place():
    model = AutoModelForSequenceClassification.from_pretrained(
        folder("token-q"), dtype=torch.float32
    )
    with torch.no_grad():
        model.score.weight[299] = math.nan
    sound = Example("sound", [5, 6], [7, 8, 9], False)
    torn = Example("torn", [5, 6], [7, 299, 9], False)
    with pytest.raises(ModelError, match='the value of "torn" after 2 tokens is nan') as told:
        explicit_values(model, "token-q", [sound, torn], 2)
    assert told.value.hint == "lower learning_rate and train again"
