"""What a record says of its cost and of its distance from the base: every token read is in exactly one record."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
)

from ivgcli.models.network import Network
from ivgcli.recipes import BonRecipe, GenerateRecipe
from ivgcli.records import Prompt
from ivgcli.scoring.texts import TextEncoder
from ivgcli.workflows.best_of_n import best_of_n
from ivgcli.workflows.generate import generate
from tests.models import PROMPTS, folder, pair, plain, scratch, tokenizer
from tests.toys import ListWriter

GUIDE = {"implicit": pair("llama-tuned", "llama-reference"), "explicit": folder("scalar")}
NETWORKS = {
    "base": folder("llama"),
    "tuned": folder("llama-tuned"),
    "reference": folder("llama-reference"),
    "value": folder("scalar"),
}


def decoded(mode: str, **given: Any) -> tuple[ListWriter, Any]:
    plan = {
        "base": folder("llama"),
        "mode": mode,
        "guide": GUIDE,
        "chunk": {"beam_width": 2, "successors": 2, "chunk_length": 4},
        "sampling": {"max_new_tokens": 11},
        **given,
    }
    writer = ListWriter()
    prompts = [Prompt(f"p{number}", text, None) for number, text in enumerate(PROMPTS)]
    return writer, generate(GenerateRecipe.model_validate(plan), prompts, writer)


def total(writer: ListWriter, role: str) -> int:
    return sum(record["compute"].get(role, {"tokens": 0})["tokens"] for record in writer.records)


@pytest.mark.parametrize(
    ("mode", "roles"),
    [
        ("base", ["base"]),
        ("eft-i", ["base", "tuned", "reference"]),
        ("eft-e", ["base", "value"]),
        ("cbs-e", ["base", "value"]),
        ("ivg", ["base", "tuned", "reference", "value"]),
    ],
)
def test_the_records_tokens_add_up_to_what_every_network_read(mode: str, roles: list[str]) -> None:
    writer, summary = decoded(mode)
    for record in writer.records:
        assert sorted(record["compute"]) == sorted(roles)
    for role in roles:
        ledger = summary.networks[NETWORKS[role]]
        assert total(writer, role) == ledger["tokens"] - ledger["rejected"], role


@pytest.mark.parametrize("rows", [4, 9])
def test_what_a_record_says_of_its_cost_does_not_depend_on_its_neighbours(rows: int) -> None:
    alone, _ = decoded("ivg", engine={"rows": 4})
    beside, _ = decoded("ivg", engine={"rows": rows})
    for key, record in alone.by_key().items():
        assert record["compute"] == beside.by_key()[key]["compute"]


def test_the_candidates_of_best_of_n_share_the_reading_of_their_prompt() -> None:
    plan = BonRecipe.model_validate(
        {
            "base": folder("llama"),
            "by": "explicit",
            "guide": GUIDE,
            "best_of": 3,
            "sampling": {"max_new_tokens": 9},
        }
    )
    writer = ListWriter()
    summary = best_of_n(plan, [Prompt("p0", PROMPTS[0], None)], writer)
    for role in ("base", "value"):
        assert total(writer, role) == summary.networks[NETWORKS[role]]["tokens"]
    assert writer.records[0]["kl_choice"] == pytest.approx(math.log(3) - 2 / 3, abs=1e-5)


def test_a_reference_that_is_the_base_is_counted_once() -> None:
    writer, summary = decoded("eft-i", guide={"implicit": pair("llama-tuned", "llama")})
    assert sorted(writer.records[0]["compute"]) == ["base", "tuned"]
    assert total(writer, "base") == summary.networks[folder("llama")]["tokens"]


def test_a_token_costs_two_operations_for_each_weight_that_it_meets() -> None:
    model = plain("llama")
    embeddings = model.get_input_embeddings().weight.numel()
    weights = sum(each.numel() for each in model.parameters()) - embeddings
    writer, _ = decoded("base")
    for record in writer.records:
        entry = record["compute"]["base"]
        assert entry["flops"] == 2 * weights * entry["tokens"]


def test_a_mixture_of_experts_costs_the_experts_that_a_token_meets() -> None:
    shape = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "tie_word_embeddings": False,
    }
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MixtralConfig(**shape))
    assert isinstance(model, MixtralForCausalLM)
    network = Network("m", model, tokenizer("bytes"), model.get_output_embeddings(), 64)
    attention, norms, router, expert = 4 * 16 * 16, 2 * 16, 4 * 16, 3 * 16 * 24
    layer = attention + norms + router + expert
    assert network.flops_per_token == 2 * (2 * layer + 16 + 64 * 16)


@pytest.mark.parametrize("mode", ["cbs-e", "ivg"])
def test_choosing_among_chunks_is_bounded_by_how_many_candidates_could_carry_a_response(
    mode: str,
) -> None:
    writer, _ = decoded(mode)
    for record in writer.records:
        chunks = math.ceil(record["tokens"] / 4)
        assert record["kl_choice"] == pytest.approx(math.log(2) + chunks * math.log(2), abs=1e-5)


def test_nothing_is_chosen_where_nothing_is_ranked() -> None:
    for mode, weight in (("base", None), ("eft-i", 1.0)):
        writer, _ = decoded(mode)
        assert {record["kl_choice"] for record in writer.records} == {0.0}
        assert {record.get("weight") for record in writer.records} == {weight}


def test_a_reward_model_that_reads_whole_texts_is_counted_by_the_text() -> None:
    """A BERT has no head that could be driven: every text is read from its beginning."""
    path = scratch("bert")
    reader = tokenizer("bytes")
    config = BertConfig(
        vocab_size=len(reader),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=1,
        pad_token_id=reader.pad_token_id,
    )
    model = BertForSequenceClassification(config)
    model.save_pretrained(path)
    reader.save_pretrained(path)
    plan = BonRecipe.model_validate(
        {
            "base": folder("llama"),
            "by": "reward",
            "reward": {"model": str(path)},
            "best_of": 3,
            "sampling": {"max_new_tokens": 9},
        }
    )
    read: list[int] = []
    original = TextEncoder.encode

    def counting(self: TextEncoder, *texts: Any) -> Any:
        rows = original(self, *texts)
        read.extend(len(row.ids) for row in rows)
        return rows

    writer = ListWriter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextEncoder, "encode", counting)
        best_of_n(plan, [Prompt("p0", PROMPTS[0], None)], writer)
    entry = writer.records[0]["compute"]["value"]
    assert entry["tokens"] == sum(read)
    embeddings = sum(each.numel() for each in model.bert.embeddings.parameters()) - 2 * 16
    weights = sum(each.numel() for each in model.parameters()) - embeddings
    assert entry["flops"] == 2 * weights * sum(read)
