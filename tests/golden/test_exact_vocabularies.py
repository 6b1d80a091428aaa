"""A guide whose tokens stand at other ids, or beside more of them, guides as if they did not."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ivgcli.decoding.search import Outcome, Request
from recipes.vocabularies.permuted import permute
from tests.models import PROMPTS, engine_of, folder, prompted, recipe, scratch

SAMPLING = {"max_new_tokens": 12, "temperature": 0.9}
CHUNK = {"beam_width": 2, "successors": 2, "chunk_length": 4}


@functools.cache
def permuted(name: str) -> str:
    """Return a copy of a network whose ordinary tokens stand in another order."""
    target = scratch(f"{name}-permuted")
    permute(Path(folder(name)), target)
    return str(target)


@functools.cache
def widened(name: str, tokens: int) -> str:
    """Return a copy of a network whose head has 64 more outputs, `tokens` of which are tokens."""
    target = scratch(f"{name}-widened")
    model = AutoModelForCausalLM.from_pretrained(folder(name))
    tokenizer = AutoTokenizer.from_pretrained(folder(name))
    size = len(tokenizer)
    tokenizer.add_tokens([f"<more-{number}>" for number in range(tokens)])
    torch.manual_seed(0)
    model.resize_token_embeddings(size + 64, mean_resizing=False)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return str(target)


def decoded(mode: str, tuned: str, reference: str, **sections: Any) -> tuple[list[Outcome], Any]:
    guide = {
        "implicit": {"tuned": tuned, "reference": reference},
        "explicit": {"model": sections.pop("value", folder("scalar"))},
    }
    plan = recipe("llama", mode, guide=guide, sampling=SAMPLING, chunk=CHUNK, **sections)
    assembly, engine = engine_of(plan, rows=8)
    requests = [Request(prompt) for prompt in prompted(PROMPTS)]
    done = sorted(engine.run(requests), key=lambda each: each.request.prompt.id)
    return done, assembly


def told(outcomes: list[Outcome]) -> list[tuple[Any, ...]]:
    return [(each.text, each.winner.row.tokens, each.winner.value, each.winner.kl)
            for each in outcomes]  # fmt: skip


COPIES = {
    "permuted": permuted,
    "padded": lambda name: widened(name, 0),
    "superset": lambda name: widened(name, 3),
}


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("mode", ["eft-i", "cbs-i", "eft-i+cbs-i"])
def test_the_same_tokens_elsewhere_give_the_same_bits(mode: str, copy: str) -> None:
    expected, _ = decoded(mode, folder("llama-tuned"), folder("llama-reference"))
    found, assembly = decoded(mode, COPIES[copy]("llama-tuned"), COPIES[copy]("llama-reference"))
    # The same logits are gathered before they are normalised, so even the last bit agrees.
    assert told(found) == told(expected)
    tables = [note for note in assembly.notes if "a table says which" in note]
    assert len(tables) == (2 if copy == "permuted" else 0)


@pytest.mark.parametrize(
    ("kind", "mode"), [("scalar", "eft-e"), ("scalar", "cbs-e"), ("token-q", "eft-e")]
)
def test_an_explicit_value_of_a_permuted_vocabulary_gives_the_same_bits(
    kind: str, mode: str
) -> None:
    target = scratch(f"{kind}-permuted")
    permute_value(Path(folder(kind)), target)
    plain, _ = decoded(mode, "-", "-", value=folder(kind))
    moved, _ = decoded(mode, "-", "-", value=str(target))
    assert told(moved) == told(plain)


def permute_value(source: Path, target: Path) -> None:
    """Write a classifier with its tokens, and its outputs where it has one for each, in another order."""
    permute(Path(folder("llama")), target)
    old = AutoTokenizer.from_pretrained(source).get_vocab()
    new = AutoTokenizer.from_pretrained(target).get_vocab()
    moved = torch.tensor([new[text] for text, _ in sorted(old.items(), key=lambda pair: pair[1])])
    model = AutoModelForSequenceClassification.from_pretrained(source)
    layers = [model.get_input_embeddings()]
    if model.config.num_labels > 1:
        layers.append(model.score)
    for layer in layers:
        before = layer.weight.data.clone()
        layer.weight.data[moved] = before
    (target / "model.safetensors").unlink()
    model.save_pretrained(target)


def test_a_guide_of_the_base_s_vocabulary_can_guide_in_bytes_all_the_same() -> None:
    pair = folder("llama-tuned"), folder("llama-reference")
    found, assembly = decoded("eft-i", *pair, vocabulary="bytes")
    # Every token was guided in bytes, with one pass a step.
    for outcome in found:
        assert outcome.coverage.steps == len(outcome.winner.row.tokens)
        assert outcome.coverage.passes == 0
    assert not any("bytes" in note for note in assembly.notes)


def test_ids_taken_as_they_are_guide_otherwise_and_say_so() -> None:
    pair = permuted("llama-tuned"), permuted("llama-reference")
    expected, _ = decoded("eft-i", *pair)
    found, assembly = decoded("eft-i", *pair, vocabulary="ids")
    assert [each.text for each in found] != [each.text for each in expected]
    assert sum("ids are taken as they are, as published code does" in note
               for note in assembly.notes) == 2  # fmt: skip
