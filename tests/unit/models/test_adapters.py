"""An adapter that counts for some tokens of a pass: what two passes give, for one reading of the weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from ivgcli.models.loading import Networks
from ivgcli.models.prompts import PromptFormat
from ivgcli.models.readings import Reading, read_all, shared_passes
from ivgcli.models.streams import Stream
from ivgcli.recipes import ModelSpec
from tests import oracles
from tests.models import PROMPTS, Run, decode, folder, recipe, scratch, tokenizer

LAYERS = ["q_proj", "v_proj", "down_proj"]


def adapter(seed: int = 0, **rest: object) -> str:
    """Return the folder of a LoRA adapter over "llama" with random weights."""
    place = scratch("lora") / "adapter"
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(folder("llama"))
    config = LoraConfig(r=4, lora_alpha=6, target_modules=LAYERS, init_lora_weights=False, **rest)
    get_peft_model(base, config).save_pretrained(place)
    return str(place)


def streams(*models: str) -> list[Stream]:
    networks = Networks("cpu")
    loaded = [networks.language_model(ModelSpec(model=model)) for model in models]
    return [Stream(network, PromptFormat(network.tokenizer), 2, name) for network, name in loaded]


def outputs(*models: str, together: bool) -> tuple[list[np.ndarray], int]:
    """Return each model's outputs after a prompt and two tokens more, and the passes that it took."""
    built = streams(*models)
    ids = tokenizer("bytes")("an effective but too tepid")["input_ids"]
    passes = [[Reading(stream, [1], [ids[:-2]], prompt=True)] for stream in built]
    later = [[Reading(stream, [1], [ids[-2:]])] for stream in built]
    for each in (passes, later):
        for batch in [list(itertools.chain(*each))] if together else each:
            read_all(batch)
    return [stream.outputs([1])[0].detach().numpy() for stream in built], built[
        0
    ].network.ledger.passes


def test_one_pass_with_an_adapter_and_without_equals_two() -> None:
    """To 1e-5: the products have other shapes, so float32 rounds in another order."""
    models = [adapter(), folder("llama")]
    (apart, two), (mixed, one) = (outputs(*models, together=each) for each in (False, True))
    assert (two, one) == (4, 2)
    for found, expected in zip(mixed, apart, strict=True):
        assert np.abs(found - expected).max() < 1e-5
    assert np.abs(apart[0] - apart[1]).max() > 0.1
    ids = tokenizer("bytes")("an effective but too tepid")["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(folder("llama"))
    assert np.abs(mixed[1] - oracles.logits(base, ids)[-1]).max() < 1e-4


def test_scales_are_what_they_were_after_a_pass_that_failed() -> None:
    tuned, plain = streams(adapter(), folder("llama"))
    layers = [each for each in tuned.network.adapters.modules() if isinstance(each, LoraLayer)]
    assert len(layers) == 2 * len(LAYERS)
    bad = [Reading(each, [0], [[10**9]], prompt=True) for each in (tuned, plain)]
    with pytest.raises(IndexError):
        read_all(bad)
    assert all(layer.scaling == {tuned.adapter: 1.5} for layer in layers)


def test_what_changes_the_weights_themselves_takes_a_pass_of_its_own() -> None:
    tuned, other, plain = streams(adapter(use_dora=True), adapter(1), folder("llama"))
    assert shared_passes([plain, tuned]) == [[plain], [tuned]]
    assert shared_passes([plain, tuned, other]) == [[tuned], [other, plain]]


@pytest.mark.parametrize("graphs", ["off", "on"])
def test_a_pair_of_an_adapter_and_its_base_reads_the_weights_once_a_step(graphs: str) -> None:
    """Base and reference are one stream; so guided decoding takes as many passes as the base alone."""
    guide = {"implicit": {"tuned": adapter(), "reference": folder("llama")}}
    sampling = {"max_new_tokens": 9}
    forced = {"eos_ids": frozenset(), "graphs": graphs}
    plan = recipe("llama", "eft-i", guide=guide, sampling=sampling)
    run: Run = decode(plan, PROMPTS[:2], **forced)
    assert run.network("llama").ledger.passes == 9
