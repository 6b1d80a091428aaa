"""The prefix scorer, its batches and its loss, against plain transformers one prefix at a time."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig
from transformers import BertForSequenceClassification as Encoder

from ivgcli.errors import ModelError, RecordError
from ivgcli.recipes.training import LoraSpec, ValueSpec
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
    run = decode(
        recipe(
            "llama",
            "cbs-e",
            guide={"explicit": target},
            chunk=chunk,
            sampling={"max_new_tokens": 9},
        )
    )
    winners = [outcome.winner for outcome in run.outcomes.values()]
    given = [
        Example("", each.row.prompt_ids, each.row.tokens, each.row.finish == "eos", 0.0)
        for each in winners
    ]
    batch = PrefixCollator(PAD, spec(head))(rows(given))
    found = read(scorer(name, head), batch)
    whole = found.gather(1, batch["lengths"][:, None] - 1)[:, 0]
    # Decoding reads through its own cache, a few tokens at a time.
    assert whole.tolist() == pytest.approx([each.value for each in winners], abs=1e-4)


def test_a_language_model_s_values_start_at_zero_and_a_fitting_head_is_kept():
    batch = PrefixCollator(PAD, spec())(rows(EXAMPLES))
    for name in ("llama", "two-labels", "token-q"):
        start = as_scorer(folder(name), "scalar", SIZE)
        assert start.width == 1
        assert not read(start, batch).any()
    start = as_scorer(folder("scalar"), "token-q", SIZE)
    assert start.width == SIZE
    assert not start.all_next_values(torch.ones(3, 32)).any()
    for name, head in (("scalar", "scalar"), ("token-q", "token-q")):
        kept = AutoModelForSequenceClassification.from_pretrained(folder(name)).score.weight
        assert torch.equal(plain_model(scorer(name, head).model).score.weight, kept)


def test_a_configuration_may_cut_layers_off_but_not_add_some():
    config = AutoConfig.from_pretrained(folder("llama"))
    config.num_hidden_layers = 1
    assert as_scorer(folder("llama"), "scalar", SIZE, config=config).config.num_hidden_layers == 1
    config.num_hidden_layers = 3
    with pytest.raises(ModelError, match=r"weights are missing: model\.layers\.2.* … → name"):
        as_scorer(folder("llama"), "scalar", SIZE, config=config)
    assert config.num_labels == 2, "the caller's own configuration stays as it is"


def test_dropout_is_off_while_training():
    """The GPT-2 of the tests has a dropout of 0.1 after embeddings and attention."""
    batch = PrefixCollator(PAD, spec())(rows(EXAMPLES))
    start = as_scorer(folder("scalar-gpt2"), "scalar", SIZE).train()
    assert torch.equal(read(start, batch), read(start, batch))
    assert AutoModelForSequenceClassification.from_pretrained(
        folder("scalar-gpt2")
    ).config.embd_pdrop == pytest.approx(0.1)


def test_a_classifier_without_a_per_token_head_is_refused():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 9, "num_hidden_layers": 1}
    encoder = Encoder(BertConfig(num_attention_heads=1, num_labels=1, **sizes))
    with pytest.raises(ModelError, match='a "bert" classifier has no per-token value head → start'):
        PrefixScorer(encoder)


def test_examples_that_teach_nothing_are_refused():
    with pytest.raises(RecordError, match="bare: its prompt has no token → leave it out"):
        rows([Example("bare", [], [5], True, 1.0)])
    for reward in (None, float("nan")):
        with pytest.raises(RecordError, match=f"r: its reward is {reward}, not a finite number"):
            rows([Example("r", [5], [5], True, reward)])


def test_prefixes_without_a_target_are_not_trained():
    """Targets are for prefixes 0..n; a token-Q head has no value of the first."""
    given = rows(EXAMPLES[:2], [[1.0, None, 3.0, None, None, 6.0], None])
    scalar = PrefixCollator(PAD, spec("scalar", "monte-carlo"))(given)
    assert scalar["trained"].int().tolist() == [[1, 0, 1, 0, 0, 1], [1, 1, 1, 0, 0, 0]]
    assert scalar["targets"].tolist() == [[1, 0, 3, 0, 0, 6], [-1, -1, -1, 0, 0, 0]]
    token_q = PrefixCollator(PAD, spec("token-q", "monte-carlo"))(given)
    assert token_q["trained"].int().tolist() == [[0, 1, 0, 0, 1], [1, 1, 0, 0, 0]]
    assert token_q["targets"].tolist() == [[0, 3, 0, 0, 6], [-1, -1, 0, 0, 0]]
    assert mean_prefixes(given, spec("scalar", "monte-carlo")) == 3.0
    assert mean_prefixes(given, spec("token-q", "monte-carlo")) == 2.0
    assert mean_prefixes(given, spec("scalar")) == 4.5


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_of_values_that_are_zero_is_half_the_mean_squared_reward(head):
    """Over prefixes, in whatever batches they are evaluated."""
    given = rows(EXAMPLES)
    trainer = ValueTrainer(
        as_scorer(folder("llama"), head, SIZE),
        quiet(1, 2, per_device_eval_batch_size=2),
        spec(head),
        PAD,
        given,
        given,
    )
    counts = [len(example.response_ids) + (head == "scalar") for example in EXAMPLES]
    squares = [n * example.reward**2 for n, example in zip(counts, EXAMPLES, strict=True)]
    expected = 0.5 * sum(squares) / sum(counts)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


def appended(scorer: PrefixScorer, example: Example, t: int, candidates: Sequence[int]) -> list:
    """Return the values of prefix t with each candidate after it, one whole pass for each."""
    prompt, prefix = example.prompt_ids, example.response_ids[:t]
    return [slow_value(scorer, "scalar", prompt, [*prefix, token]) for token in candidates]


@pytest.mark.parametrize("name", ["scalar", "scalar-gpt2"])
@pytest.mark.parametrize("most", [1024, 7])
def test_packed_candidates_have_the_values_of_appended_ones(name, most):
    """Seven candidates of a pass are two prefixes' worth of three."""
    batch = PrefixCollator(PAD, spec())(rows(EXAMPLES))
    random = torch.Generator().manual_seed(0)
    candidates = torch.randint(3, SIZE, (*batch["reads"].shape, 3), generator=random)
    with as_decoded(scorer(name)):
        found = packed_next_values(
            scorer(name),
            batch["input_ids"],
            batch["attention_mask"],
            batch["reads"],
            candidates,
            most,
        )
    for row, example in enumerate(EXAMPLES):
        for t in range(len(example.response_ids) + 1):
            expected = appended(scorer(name), example, t, candidates[row, t].tolist())
            assert found[row, t].tolist() == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("head", HEADS)
def test_cd_q_regresses_on_the_base_s_expectation_one_token_ahead(head):
    name = "scalar" if head == "scalar" else "token-q"
    ahead = next_distributions(plain("llama"), EXAMPLES, candidates=5, batch_size=3)
    given = rows(EXAMPLES, ahead=ahead)
    trainer = ValueTrainer(
        scorer(name, head), quiet(1, 4), spec(head, "cd-q", candidates=5), PAD, given
    )
    batch = PrefixCollator(PAD, spec(head, "cd-q"))(given)
    found = trainer.targets(scorer(name, head), read(scorer(name, head), batch), batch)
    first = HEADS.index(head)
    for row, example in enumerate(EXAMPLES):
        y = example.response_ids
        expected = []
        for t in range(first, len(y)):
            ids, chances = (part[t].tolist() for part in ahead[row])
            values = [
                slow_value(scorer(name, head), head, example.prompt_ids, [*y[:t], token])
                for token in ids
            ]
            expected.append(sum(p * v for p, v in zip(chances, values, strict=True)))
        if len(y) + 1 > first and batch["lengths"][row]:
            expected.append(example.reward)
        assert found[row, : len(expected)].tolist() == pytest.approx(expected, abs=EXACT)
        assert not found[row, len(expected) :].any()


def test_next_distributions_are_the_model_s_own_cut_and_renormalised():
    model = plain("gpt2")
    for (ids, chances), example in zip(
        next_distributions(model, EXAMPLES, candidates=4, batch_size=3, width=290),
        EXAMPLES,
        strict=True,
    ):
        assert len(ids) == len(chances) == len(example.response_ids) + 1
        for t in range(len(ids)):
            logits = oracles.logits(model, [*example.prompt_ids, *example.response_ids[:t]])[-1]
            logits = logits[:290]
            best = sorted(range(290), key=lambda z: -logits[z])[:4]
            weights = oracles.log_softmax(logits[best])
            assert ids[t].tolist() == best
            assert chances[t].log().tolist() == pytest.approx(weights.tolist(), abs=EXACT)


def test_every_token_is_a_candidate_where_none_is_cut():
    ids, chances = next_distributions(plain("llama"), EXAMPLES[:1], candidates=None)[0]
    assert sorted(ids[0].tolist()) == list(range(SIZE))
    assert chances.sum(-1).tolist() == pytest.approx([1.0] * 6)


def test_networks_that_take_packed_passes_are_let_through():
    require_packable(as_scorer(folder("llama"), "scalar", SIZE))
    require_packable(as_scorer(folder("gpt2"), "scalar", SIZE))


def test_a_network_that_makes_its_own_mask_is_refused():
    start = as_scorer(folder("llama"), "scalar", SIZE)

    def forget(module, args, kwargs):
        return args, {**kwargs, "attention_mask": None}

    start.backbone.register_forward_pre_hook(forget, with_kwargs=True)
    with pytest.raises(ModelError, match="a packed pass of a model of type llama differs by"):
        require_packable(start)


def test_a_sliding_window_that_is_too_short_for_packing_is_refused():
    start = as_scorer(folder("mistral"), "scalar", SIZE)
    batch = PrefixCollator(PAD, spec())(rows(EXAMPLES))
    with pytest.raises(ModelError, match="sequences of 8 tokens, beyond its sliding window of 5"):
        packed_next_values(
            start,
            batch["input_ids"],
            batch["attention_mask"],
            batch["reads"],
            batch["reads"][:, :, None],
        )


def gradients(head: str, **options: Any) -> torch.Tensor:
    """Return the gradients of one cd-q loss in one vector: what a step of length 1 goes against."""
    start = as_scorer(folder("scalar" if head == "scalar" else "token-q"), head, SIZE)
    given = rows(EXAMPLES, ahead=next_distributions(plain("llama"), EXAMPLES, candidates=5))
    before = torch.cat([weight.detach().flatten() for weight in start.parameters()])
    settings = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, **options}
    arguments = quiet(1, 4, lr_scheduler_type="constant", **settings)
    ValueTrainer(start, arguments, spec(head, "cd-q"), PAD, given).train()
    return before - torch.cat([weight.detach().flatten() for weight in start.parameters()])


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_rounds_the_gradient_and_recomputed_activations_leave_it(head):
    """Two passes of a step share what autocast and checkpointing keep: 0.02 to 0.03 is seen, and a
    layer without gradient would show as 0.3 or more."""
    exact = gradients(head)
    rounded = gradients(head, bf16=True)
    assert float((rounded - exact).norm() / exact.norm()) < 0.1
    assert torch.equal(exact, gradients(head, gradient_checkpointing=True))


def test_adapters_are_saved_merged_with_the_same_values():
    torch.manual_seed(0)
    lora = LoraSpec(rank=4, alpha=8.0)
    start = as_scorer(folder("scalar"), "scalar", SIZE, lora)
    given = rows(EXAMPLES)
    frozen = plain_model(start.model).get_input_embeddings().weight.clone()
    before = read(start, PrefixCollator(PAD, spec())(given))
    ValueTrainer(start, quiet(4, 4, learning_rate=3e-3), spec(), PAD, given).train()
    after = read(start.eval(), PrefixCollator(PAD, spec())(given))
    target = str(scratch("merged") / "value")
    save_value(start, tokenizer("bytes"), target)
    again = as_scorer(target, "scalar", SIZE).eval()
    found = read(again, PrefixCollator(PAD, spec())(given))
    assert found.flatten().tolist() == pytest.approx(after.flatten().tolist(), abs=EXACT)
    assert float((after - before).abs().max()) > 0.1
    assert again.config.num_labels == 1
    assert again.config.pad_token_id == PAD
    assert torch.equal(again.backbone.get_input_embeddings().weight, frozen)
