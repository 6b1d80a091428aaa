"""A scalar value at prefix + token and a token-Q value before the token are one function, read in
two ways.

Two networks are built that provably represent the same V: every layer's output is zeroed, so a
hidden state is the
normalised embedding of its own token, e_t/rms(e_t). All embeddings have one length and begin with
one constant, so that
    scalar head:   V(s·a) = w·e_a/rms
    token-Q head:  Q(s)[a] = (w·e_a/const)·(constant feature of whatever token came before) =
    w·e_a/rms.
"""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import LlamaForSequenceClassification

from ivgcli.decoding import Mode, TokenGuidance
from tests import oracles
from tests.models import PROMPTS, decode, folder, plain_value, recipe, scratch, tokenizer
from tests.toys import PrefixValue

SAMPLING = {"max_new_tokens": 14}


@functools.cache
def twins() -> tuple[str, str]:
    """Return the folders of a scalar and of a token-Q network with the same value."""
    random = torch.Generator().manual_seed(0)
    size = len(tokenizer("bytes"))
    direction = torch.randn(32, generator=random)
    table = torch.randn(size, 32, generator=random)
    table[:, 0] = 1.0
    table[:, 1:] *= (31**0.5) / table[:, 1:].norm(dim=1, keepdim=True)
    values = table @ direction
    places = []
    for name, labels in (("scalar", 1), ("token-q", size)):
        model = LlamaForSequenceClassification.from_pretrained(
            folder("scalar" if labels == 1 else "token-q")
        )
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(table)
            model.model.norm.weight.fill_(1.0)
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.score.weight.zero_()
            if labels == 1:
                model.score.weight[0] = direction
            else:
                model.score.weight[:, 0] = values
        place = scratch(name) / name
        model.save_pretrained(place)
        tokenizer("bytes").save_pretrained(place)
        places.append(str(place))
    return places[0], places[1]


def test_the_twins_are_one_function():
    scalar, token_q = (LlamaForSequenceClassification.from_pretrained(place) for place in twins())
    ids = tokenizer("bytes")("an effective but too tepid")["input_ids"]
    at = oracles.head_outputs(scalar, ids)[1:, 0]
    before = oracles.head_outputs(token_q, ids)[:-1]
    assert at == pytest.approx(
        [before[place, token] for place, token in enumerate(ids[1:])], abs=1e-4
    )
    assert at.std() > 1.0


@pytest.mark.parametrize(
    "token",
    [
        {"candidates": 300, "outside": "drop"},
        {"candidates": 300},
        {"candidates": 300, "weight": -0.7},
    ],
)
def test_guidance_by_every_candidate_equals_guidance_by_the_whole_vocabulary(token):
    """With all 300 candidates there is no outside, and a constant per row does not matter."""
    scalar, token_q = twins()
    by_scalar = decode(
        recipe("llama", "eft-e", guide={"explicit": scalar}, token=token, sampling=SAMPLING)
    )
    whole = {key: value for key, value in token.items() if key == "weight"}
    by_token_q = decode(
        recipe("llama", "eft-e", guide={"explicit": token_q}, token=whole, sampling=SAMPLING)
    )
    assert by_scalar.tokens() == by_token_q.tokens()
    for key, outcome in by_scalar.outcomes.items():
        other = by_token_q.outcomes[key].winner
        assert outcome.winner.value == pytest.approx(other.value, abs=1e-3)
        assert outcome.winner.kl == pytest.approx(other.kl, abs=1e-3)


@pytest.mark.parametrize("outside", ["centred", "drop"])
def test_guidance_by_some_candidates_is_equal_too(outside):
    scalar, token_q = twins()
    token = {"candidates": 9, "outside": outside}
    runs = [
        decode(recipe("llama", "eft-e", guide={"explicit": place}, token=token, sampling=SAMPLING))
        for place in (scalar, token_q)
    ]
    assert runs[0].tokens() == runs[1].tokens()


def test_chunks_have_the_same_values():
    """The function looks at the last token only, so candidates tie now and then: values are
    compared, not choices."""
    chunk = {"beam_width": 1, "successors": 12, "chunk_length": None}
    values = []
    for place in twins():
        plan = recipe("llama", "cbs-e", guide={"explicit": place}, chunk=chunk, sampling=SAMPLING)
        decode(
            plan,
            PROMPTS[:1],
            rows=12,
            trace=lambda search, found, *_: values.append([each.value for each in found]),
        )
    assert values[0] == pytest.approx(values[1], abs=1e-3)
    assert len(values[0]) == 12


@pytest.mark.parametrize("outside", ["prefix", "centred", "drop"])
def test_a_toy_asked_for_candidates_equals_the_toy_asked_for_everything(outside):
    """The engine's two ways of asking, on a function of the whole prefix."""

    def function(prefix: tuple[int, ...]) -> float:
        return float(sum((token * 7919 + place) % 13 for place, token in enumerate(prefix))) / 6

    plan = recipe("llama", sampling={"max_new_tokens": 6})
    runs = []
    for needs in (True, False):
        value = PrefixValue(function, 300, needs_candidates=needs)
        guidance = TokenGuidance(value, 0.8, candidates=300 if needs else None, outside=outside)
        runs.append(decode(plan, mode=Mode("toy", guidance)))
    assert runs[0].tokens() == runs[1].tokens()


def test_the_scalar_head_of_a_gpt2_is_read_at_its_own_positions():
    """GPT-2 adds positions to its embeddings, so a value read one place off would differ."""
    chunk = {"beam_width": 2, "successors": 2, "chunk_length": 3}
    run = decode(
        recipe(
            "gpt2",
            "cbs-e",
            guide={"explicit": folder("scalar-gpt2")},
            chunk=chunk,
            sampling=SAMPLING,
        )
    )
    for number, prompt in enumerate(PROMPTS):
        won = run.outcomes[f"p{number}", 0].winner
        ids = tokenizer("bytes")(prompt)["input_ids"] + won.row.tokens
        assert won.value == pytest.approx(
            oracles.head_outputs(plain_value("scalar-gpt2"), ids)[-1, 0], abs=5e-4
        )
