"""What must not happen is counted: passes, prefilled and re-read tokens, candidates, tokenizer
calls."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from ivgcli.decoding.stepper import Stepper
from ivgcli.models import slots
from ivgcli.models.probe import PROBES
from tests.models import PROMPTS, Run, decode, folder, pair, recipe, tokenizer

GUIDE = {"implicit": pair("llama-tuned", "llama-reference"), "explicit": folder("scalar")}
LONG = {"max_new_tokens": 16}
PROMPT_TOKENS = sum(len(tokenizer("bytes")(prompt)["input_ids"]) for prompt in PROMPTS)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets every token drawn, by any row."""
    tokens: list[int] = []
    book = Stepper.book

    def counting(stepper: Stepper, search: Any, slot: int, token: int, gain: float) -> None:
        tokens.append(token)
        book(stepper, search, slot, token, gain)

    monkeypatch.setattr(Stepper, "book", counting)
    return tokens


def longest(run: Run) -> int:
    return max(len(tokens) for tokens in run.tokens().values())


def total(run: Run) -> int:
    return sum(len(tokens) for tokens in run.tokens().values())


@pytest.mark.parametrize("mode", ["base", "eft-i"])
def test_a_step_is_one_pass_per_network_and_no_token_is_read_twice(mode):
    """A prefill and n − 1 steps for n tokens: the last token is drawn, counted, and read by
    nobody."""
    run = decode(recipe("llama", mode, guide=GUIDE, sampling=LONG), rows=8)
    for name in ["llama", *(["llama-tuned", "llama-reference"] if mode == "eft-i" else [])]:
        ledger = run.network(name).ledger
        assert ledger.passes == longest(run)
        assert ledger.prefilled == PROMPT_TOKENS
        assert ledger.tokens == PROMPT_TOKENS + total(run) - len(PROMPTS)
        assert (ledger.reread, ledger.peeked) == (0, 0)


def test_unused_networks_of_a_guide_are_not_even_loaded():
    run = decode(recipe("llama", "eft-i", guide=GUIDE, sampling={"max_new_tokens": 2}))
    assert {network.name for network in run.assembly.networks.all()} == {
        folder(n) for n in ("llama", "llama-tuned", "llama-reference")
    }


def test_a_prompt_pair_on_the_base_itself_is_one_packed_pass_per_step():
    guide = {
        "implicit": {
            "model": folder("llama"),
            "tuned_prompt": "good: ",
            "reference_prompt": "bad: ",
        }
    }
    run = decode(recipe("llama", "eft-i", guide=guide, sampling=LONG), rows=8)
    assert len(run.assembly.networks.all()) == 1
    ledger = run.network("llama").ledger
    assert ledger.passes == longest(run)
    assert ledger.tokens == ledger.prefilled + 3 * (total(run) - len(PROMPTS))


def test_a_reference_that_is_the_base_is_the_base_s_own_stream():
    run = decode(
        recipe("llama", "eft-i", guide={"implicit": pair("llama-tuned", "llama")}, sampling=LONG),
        rows=8,
    )
    assert len(run.engine.streams) == 2
    assert run.network("llama").ledger.tokens == PROMPT_TOKENS + total(run) - len(PROMPTS)


def test_every_prompt_is_prefilled_once_per_stream_whatever_rows_and_samples():
    chunk = {"beam_width": 2, "successors": 3, "chunk_length": 4}
    run = decode(
        recipe("llama", "ivg", guide=GUIDE, chunk=chunk, sampling={**LONG, "samples": 2}), rows=60
    )
    for name in ("llama", "llama-tuned", "llama-reference", "scalar"):
        assert run.network(name).ledger.prefilled == PROMPT_TOKENS


def test_samples_that_are_admitted_one_after_another_prefill_once():
    run = decode(recipe("llama", sampling={**LONG, "samples": 6}), ["the film opens"], rows=2)
    assert run.network("llama").ledger.prefilled == len(
        tokenizer("bytes")("the film opens")["input_ids"]
    )


def test_cbs_i_reads_each_drawn_token_once_and_the_guides_once_per_chunk(drawn):
    chunk = {"beam_width": 1, "successors": 3, "chunk_length": 4}
    rankings: list[int] = []
    plan = recipe("llama", "cbs-i", guide=GUIDE, chunk=chunk, sampling=LONG)
    run = decode(plan, PROMPTS[:1], trace=lambda search, *_: rankings.append(search.chunk))
    prompt = len(tokenizer("bytes")(PROMPTS[0])["input_ids"])
    for name in ("llama-tuned", "llama-reference"):
        ledger = run.network(name).ledger
        assert ledger.tokens == prompt + len(drawn)
        assert ledger.passes == 1 + len(rankings)
    assert len(rankings) > 1
    assert run.network("llama").ledger.tokens <= prompt + len(drawn)


def test_an_explicit_value_reads_each_drawn_token_once_across_chunks_and_branches(drawn):
    chunk = {"beam_width": 2, "successors": 2, "chunk_length": 3}
    run = decode(recipe("llama", "cbs-e", guide=GUIDE, chunk=chunk, sampling=LONG), rows=20)
    ledger = run.network("scalar").ledger
    assert ledger.tokens == PROMPT_TOKENS + len(drawn)
    assert ledger.reread == 0


def test_candidates_are_peeked_at_in_one_pass_per_step_and_the_drawn_one_is_kept(drawn):
    """With `drop`, every draw was a candidate: the scalar network reads no token but prompts and
    candidates."""
    plan = recipe(
        "llama", "eft-e", guide=GUIDE, token={"candidates": 4, "outside": "drop"}, sampling=LONG
    )
    run = decode(plan, rows=8)
    ledger = run.network("scalar").ledger
    assert ledger.peeked == 4 * len(drawn)
    assert ledger.tokens == PROMPT_TOKENS + ledger.peeked
    assert ledger.passes == 1 + longest(run)


def test_a_token_q_value_costs_one_pass_per_step_and_reads_each_token_once():
    run = decode(
        recipe("llama", "eft-e", guide={"explicit": folder("token-q")}, sampling=LONG), rows=8
    )
    ledger = run.network("token-q").ledger
    assert ledger.passes == longest(run)
    assert ledger.tokens == PROMPT_TOKENS + total(run) - len(PROMPTS)
    assert ledger.peeked == 0


def test_guidance_at_every_third_token_lets_the_guides_read_in_threes():
    run = decode(
        recipe("llama", "eft-i", guide=GUIDE, token={"every": 3}, sampling=LONG), PROMPTS[:1]
    )
    length = len(run.outcomes["p0", 0].winner.row.tokens)
    guided = len(range(0, length, 3))
    tail = (length - 1) % 3 > 0
    for name in ("llama-tuned", "llama-reference"):
        assert run.network(name).ledger.passes == guided + tail, (
            "prefill, guided steps after the first, what is left at the end"
        )


def test_rows_that_have_ended_cost_nothing(drawn):
    run = decode(recipe("llama", sampling={"max_new_tokens": 40}), rows=8)
    lengths = sorted(len(tokens) for tokens in run.tokens().values())
    assert lengths[0] < lengths[-1], "responses end at different lengths"
    assert len(drawn) == sum(lengths)
    assert run.network("llama").ledger.tokens == PROMPT_TOKENS + sum(lengths) - len(PROMPTS)


def test_waiting_prompts_fill_the_rows_that_become_free():
    """Two rows, five responses: as many steps as the fuller row has tokens, not the sum of batch
    maxima."""
    run = decode(recipe("llama", sampling={"max_new_tokens": 40}), rows=2)
    ends = [0, 0]
    for number in range(len(PROMPTS)):
        ends.sort()
        ends[0] += len(run.tokens()[f"p{number}", 0])
    assert run.network("llama").ledger.passes <= max(ends) + len(PROMPTS)


@pytest.mark.parametrize("mode", ["base", "eft-i", "eft-e", "ivg"])
def test_one_vocabulary_needs_the_tokenizer_for_prompts_and_finished_texts_only(monkeypatch, mode):
    calls = {"encode": 0, "decode": 0}
    encode, decode_ids = PreTrainedTokenizerFast.__call__, PreTrainedTokenizerFast.decode

    def counted_encode(*arguments: Any, **rest: Any) -> Any:
        # Vocabularies are compared by how they cut a few texts, before anything is decoded.
        calls["encode"] += arguments[1] not in PROBES.values()
        return encode(*arguments, **rest)

    def counted_decode(*arguments: Any, **rest: Any) -> Any:
        calls["decode"] += 1
        return decode_ids(*arguments, **rest)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counted_encode)
    monkeypatch.setattr(PreTrainedTokenizerFast, "decode", counted_decode)
    chunk = {"beam_width": 2, "successors": 2, "chunk_length": 4}
    run = decode(
        recipe(
            "llama",
            mode,
            guide=GUIDE,
            chunk=chunk,
            token={"candidates": 3},
            sampling={**LONG, "samples": 2},
        ),
        rows=8,
    )
    assert calls["encode"] == len(PROMPTS) * len(run.engine.streams), (
        "each stream encodes each prompt once"
    )
    assert calls["decode"] <= 3 * len(run.outcomes), (
        "a finished response is decoded behind its prompt's end, once"
    )


def test_caches_are_made_once_and_as_long_as_the_run_needs(monkeypatch):
    """A cache that grew with its rows would be copied again and again."""
    made = []
    honest = slots._zeros

    def counting(shape, like):
        made.append(shape)
        return honest(shape, like)

    monkeypatch.setattr(slots, "_zeros", counting)
    rows = 4 * len(PROMPTS)
    decode(recipe("llama", "ivg", guide=GUIDE, sampling=LONG), rows=rows)
    longest_prompt = max(len(tokenizer("bytes")(prompt)["input_ids"]) for prompt in PROMPTS)
    # The probe at loading makes caches too, of three slots.
    assert [shape[4] for shape in made if shape[2] == rows] == [longest_prompt + 16] * 4
