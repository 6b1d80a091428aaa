"""The prefix scorer, its batches and its loss, against plain transformers one prefix at a time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig
from transformers import BertForSequenceClassification as Encoder

from ivgcli.errors import ModelError, RecordError
from ivgcli.recipes.training import LoraSpec, ValueSpec
from ivgcli.training import lookahead
from ivgcli.training.lookahead import (
    as_decoded,
    next_distributions,
    packed_next_values,
    require_packable,
)
from ivgcli.training.scorer import PrefixScorer, as_scorer, plain_model, save_value
from ivgcli.training.sequences import Example
from ivgcli.training.value_trainer import PrefixCollator, ValueTrainer, mean_prefixes, rows
from tests import oracles
from tests.models import decode, folder, plain, recipe, scratch, tokenizer
from tests.unit.training.test_value_toys import quiet

PAD, EOS, SIZE = 0, 1, 300
EXAMPLES = [
    Example("long", [40, 50, 60], [70, 80, 90, 100, EOS], True, 2.0),
    Example("cut", [45], [55, 65], False, -1.0),
    Example("framed", [41, 42, 43, 44, 46, 47], [EOS], True, 0.5),
    Example("empty", [48, 49], [], False, 1.0),
]
HEADS = ("scalar", "token-q")
EXACT = 1e-5
"""Batched and padded passes add up in another order than single ones: 2e-6 is seen."""


@functools.cache
def scorer(name: str, head: str = "scalar") -> PrefixScorer:
    """Return a network of tests.models with its own random head."""
    return as_scorer(folder(name), head, SIZE).eval()


def spec(head: str = "scalar", target: str = "fudge", **rest: Any) -> ValueSpec:
    return ValueSpec(head=head, target=target, **rest)


def read(scorer: PrefixScorer, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return scorer(
            batch["input_ids"], batch["attention_mask"], batch["reads"], batch.get("tokens")
        )


def slow_value(scorer: PrefixScorer, head: str, prompt: Sequence[int], y: Sequence[int]) -> float:
    """Return a prefix's value from one pass over it alone, as decoding defines it."""
    with torch.no_grad():
        outputs = oracles.head_outputs(plain_model(scorer.model), [*prompt, *y])
    return float(outputs[-1, 0] if head == "scalar" else outputs[-2, y[-1]])


@pytest.mark.parametrize(
    ("name", "head"), [("scalar", "scalar"), ("scalar-gpt2", "scalar"), ("token-q", "token-q")]
)
def test_a_batch_holds_the_value_of_every_prefix(name, head):
    batch = PrefixCollator(PAD, spec(head))(rows(EXAMPLES))
    found = read(scorer(name, head), batch)
    first = HEADS.index(head)
    for row, example in enumerate(EXAMPLES):
        y = example.response_ids
        expected = [
            slow_value(scorer(name, head), head, example.prompt_ids, y[:t])
            for t in range(first, len(y) + 1)
        ]
        assert int(batch["trained"][row].sum()) == len(expected)
        assert found[row, : len(expected)].tolist() == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize(("name", "head"), [("scalar", "scalar"), ("token-q", "token-q")])
def test_decoding_reads_the_values_that_training_writes(name, head):
    target = str(scratch("value") / "value")
    save_value(as_scorer(folder(name), head, SIZE), tokenizer("bytes"), target)
    chunk = {"beam_width": 2, "successors": 2, "chunk_length": 3}
    plan = recipe(
        "llama", "cbs-e", guide={"explicit": target}, chunk=chunk, sampling={"max_new_tokens": 9}
    )
    run = decode(plan)
    given = []
    for (identity, _), outcome in run.outcomes.items():
        won = outcome.winner.row
        given.append(Example(identity, list(won.prompt.ids(plan)), won.tokens, True, 0.0))
    assert given
