"""What goes on each GPU, and what would fit, in numbers worked out by hand; and the plans that say so."""

from __future__ import annotations

import pytest
import torch

from ivgcli.errors import ModelError
from ivgcli.workflows import plan as planning
from ivgcli.workflows.placement import Need
from ivgcli.workflows.plan import among_workers, plan_generate
from ivgcli.workflows.survey import Asked, Question
from tests.models import PROMPTS, folder, recipe

GB = 10**9
ASKED = Asked("prompts", tuple(Question(text) for text in PROMPTS), len(PROMPTS))
LLAMA_70B = Need(141 * GB, 27 * GB, heads=8, quantised=40 * GB, row=5 * GB, other_row=8 * GB)


def test_what_a_gpu_holds_is_its_part_of_the_base_and_all_of_the_others():
    """(141 + 5) / 4 + 27 + 8 = 71.5."""
    assert LLAMA_70B.a_gpu(4) == 71.5 * GB
    assert LLAMA_70B.a_gpu(1) == 181 * GB


@pytest.mark.parametrize(
    ("free", "shards", "hint"),
    [
        (80, 4, "--shards 4 or base.quantization: 4bit"),  # 40 + 5 + 35 = 80
        (79, 4, "--shards 4"),
        (71, 8, "--shards 8"),  # 18.25 + 35 = 53.25
        (141, 2, "--shards 2 or base.quantization: 4bit"),  # 73 + 35 = 108
        (53, None, "smaller networks, or GPUs with more memory"),
        (181, 1, "--shards 1 or base.quantization: 4bit"),
    ],
)
def test_the_fewest_gpus_are_named_among_which_heads_and_bytes_go(free, shards, hint):
    assert LLAMA_70B.shards_that_fit(free * GB) == shards
    assert LLAMA_70B.what_would_fit(free * GB) == hint


def test_a_number_that_does_not_divide_the_heads_is_passed_over():
    """12 / 4 = 3 would fit, and 6 heads are not dealt to 4."""
    assert Need(12, 0, heads=6).shards_that_fit(3) == 6


def test_a_plan_counts_one_gpus_part_of_the_base_and_of_its_keys():
    """The tiny Llama has 2 key/value heads, so each of two processes keeps half of everything."""
    guide = {"implicit": {"tuned": folder("llama-tuned"), "reference": folder("llama")}}
    whole = plan_generate(recipe("llama", "eft-i", guide=guide), ASKED)
    base = {"model": folder("llama"), "shards": 2}
    halves = recipe("llama", "eft-i", guide=guide).model_validate(
        {"base": base, "mode": "eft-i", "guide": guide}
    )
    divided = plan_generate(halves, ASKED)
    # The reference reads what the base reads, with its weights, keys and values.
    for one, half in zip(whole.parts, divided.parts, strict=True):
        share = 1 if one.role == "tuned" else 2
        assert half.weights == one.weights // share
        assert half.row is one.row is None or half.row == one.row // share
        assert half.tokens == one.tokens
    assert divided.parts[0].notes == ("divided among 2 GPUs: 1 of its 2 key/value heads on each",)
    lines = among_workers(divided, 2, True, 4).lines
    assert lines[-3].startswith("2 workers of 4 GPUs: ")
    assert "by tensor parallelism" in lines[-2]


def test_what_cannot_be_divided_is_refused_before_anything_is_loaded():
    asked = recipe("llama").model_validate({"base": {"model": folder("llama"), "shards": 4}})
    with pytest.raises(ModelError, match="2 key/value heads cannot be dealt out evenly to 4 GPUs"):
        plan_generate(asked, ASKED)
    asked = recipe("llama").model_validate({"base": {"model": folder("gpt2"), "shards": 4}})
    with pytest.raises(ModelError, match="no plan by which a gpt2 could be divided"):
        plan_generate(asked, ASKED)


def test_a_plan_that_does_not_fit_says_what_would(monkeypatch):
    """37,792 weights in bfloat16 take 75,584 bytes, half of them 37,792; a row's keys and values fit beside these."""
    gpu = torch.device("cuda")
    monkeypatch.setattr("ivgcli.workflows.survey.planned_device", lambda name: (gpu, True))
    monkeypatch.setattr(planning, "free_memory", lambda device: 60_000)
    told = plan_generate(recipe("llama", sampling={"max_new_tokens": 16}), ASKED).refusal
    assert str(told) == (
        f"{folder('llama')}: the weights take 73.8 KiB a GPU, and 58.6 KiB are free there → "
        "--shards 2 or base.quantization: 4bit"
    )
    monkeypatch.setattr(planning, "free_memory", lambda device: 80_000)
    assert plan_generate(recipe("llama"), ASKED).refusal is None
