"""What a stream says after any history of its rows is what a full, uncached forward says of the
same tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ivgcli.models import readings
from ivgcli.models.failures import RowFailure
from ivgcli.models.loading import Networks
from ivgcli.models.prompts import PromptFormat
from ivgcli.models.readings import Reading, read_all
from ivgcli.models.streams import Stream
from ivgcli.recipes import ModelSpec
from tests import oracles
from tests.models import CONTEXT, WINDOW, folder, plain

FAMILIES = ["llama", "gpt2", "mistral"]
CLOSE = 2e-4
"""Logits spread over ±5; float32 sums in another order differ by about 1e-5 here."""


def stream_of(name: str, rows: int) -> Stream:
    network, _ = Networks("cpu").language_model(ModelSpec(model=folder(name)))
    return Stream(network, PromptFormat(network.tokenizer), rows)


def text(length: int, seed: int = 0) -> list[int]:
    """Return random ordinary token ids."""
    return np.random.default_rng(seed).integers(5, 300, length).tolist()


def difference(stream: Stream, row: int, ids: list[int], family: str) -> float:
    """Return the largest difference between a row's outputs and a full forward over `ids`."""
    return float(
        np.abs(
            stream.outputs([row])[0].double().numpy() - oracles.logits(plain(family), ids)[-1]
        ).max()
    )


def prefill(stream: Stream, prompts: dict[int, list[int]]) -> None:
    read_all([Reading(stream, list(prompts), list(prompts.values()), prompt=True)])


@pytest.mark.parametrize("family", FAMILIES)
def test_prefills_of_unequal_prompts_share_a_pass_and_equal_full_forwards(family):
    stream = stream_of(family, 4)
    prompts = {0: text(11), 1: text(1, 1), 3: text(4, 2)}
    prefill(stream, prompts)
    assert stream.network.ledger.passes == 1
    assert all(difference(stream, row, ids, family) < CLOSE for row, ids in prompts.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefill_of_one_token_equals_a_full_forward(family):
    stream = stream_of(family, 2)
    prefill(stream, {1: [7]})
    assert difference(stream, 1, [7], family) < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_single_steps_equal_full_forwards_long_past_the_window(family):
    stream = stream_of(family, 3)
    rows = {0: text(2), 1: text(9, 1), 2: text(5, 2)}
    prefill(stream, rows)
    for step in range(3 * WINDOW):
        tokens = text(3, 100 + step)
        read_all([Reading(stream, [0, 1, 2], [[token] for token in tokens])])
        for row, token in enumerate(tokens):
            rows[row].append(token)
    assert all(difference(stream, row, ids, family) < CLOSE for row, ids in rows.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_chunks_equal_the_same_chunks_read_alone_and_a_full_forward(family):
    together, alone = stream_of(family, 4), stream_of(family, 1)
    prompts = {row: text(3 + 2 * row, row) for row in range(4)}
    chunks = [text(1, 10), text(7, 11), text(2, 12), text(12, 13)]
    prefill(together, prompts)
    read_all([Reading(together, [0, 1, 2, 3], chunks)])
    for row in range(4):
        prefill(alone, {0: prompts[row]})
        read_all([Reading(alone, [0], [chunks[row]])])
        assert float((together.outputs([row]) - alone.outputs([0])).abs().max()) < CLOSE
        assert difference(together, row, prompts[row] + chunks[row], family) < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_every_position_of_a_long_chunk_equals_a_full_forward(family):
    """More than SHORT new tokens per row take the fused kernel; all its positions count, not only
    the last."""
    stream = stream_of(family, 2)
    prompts = {0: text(3), 1: text(6, 1)}
    chunks = [text(40, 2), text(5, 3)]
    prefill(stream, prompts)
    reading = Reading(stream, [0, 1], chunks)
    read_all([reading])
    ours = stream.network.outputs(reading.hidden).double().numpy()
    theirs = [
        oracles.logits(plain(family), prompts[row] + chunks[row])[len(prompts[row]) :]
        for row in (0, 1)
    ]
    assert np.abs(ours - np.concatenate(theirs)).max() < CLOSE
    before = stream.network.outputs(reading.before).double().numpy()
    shifted = [
        oracles.logits(plain(family), prompts[row] + chunks[row])[len(prompts[row]) - 1 : -1]
        for row in (0, 1)
    ]
    assert np.abs(before - np.concatenate(shifted)).max() < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [[0, 2, 3], [1, 9], [4]], ids=["small hole", "far apart", "one"])
def test_holes_between_rows_change_nothing(family, rows):
    stream = stream_of(family, 10)
    prompts = {row: text(4 + row, row) for row in range(10)}
    prefill(stream, prompts)
    for step in range(3):
        read_all([Reading(stream, rows, [[token] for token in text(len(rows), 50 + step)])])
    read_all([Reading(stream, rows, [text(2 + row, row + 70) for row in rows])])
    for place, row in enumerate(rows):
        ids = (
            prompts[row]
            + [text(len(rows), 50 + step)[place] for step in range(3)]
            + text(2 + row, row + 70)
        )
        assert difference(stream, row, ids, family) < CLOSE
    idle = next(row for row in range(10) if row not in rows)
    assert difference(stream, idle, prompts[idle], family) < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_peeked_alternatives_equal_full_forwards_and_leave_no_trace(family):
    stream = stream_of(family, 5)
    prompts = {0: text(3), 1: text(9, 1), 3: text(6, 2)}
    prefill(stream, prompts)
    tails = torch.tensor([[text(2, 10 * row + c) for c in range(4)] for row in range(3)])
    peek = stream.peek([0, 1, 3], tails)
    ours = stream.network.outputs(peek.hidden).double().numpy()
    for i, row in enumerate([0, 1, 3]):
        for c in range(4):
            theirs = oracles.logits(plain(family), prompts[row] + tails[i, c].tolist())[-2:]
            assert np.abs(ours[i, c] - theirs).max() < CLOSE
    read_all([Reading(stream, [0, 1, 3], [[8], [9], [10]])])
    assert difference(stream, 1, [*prompts[1], 9], family) < CLOSE


def test_a_peeked_tail_longer_than_the_window_does_not_see_its_own_far_past():
    stream = stream_of("mistral", 1)
    prefill(stream, {0: text(7)})
    tail = text(WINDOW + 4, 3)
    hidden = stream.peek([0], torch.tensor([[tail]])).hidden
    ours = stream.network.outputs(hidden[0, 0]).double().numpy()
    assert np.abs(ours - oracles.logits(plain("mistral"), text(7) + tail)[7:]).max() < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_committed_alternative_is_as_good_as_a_read_token(family):
    stream = stream_of(family, 3)
    rows = {row: text(5 + row, row) for row in range(3)}
    prefill(stream, rows)
    for step in range(4):
        candidates = torch.tensor([[text(3, 7 * row + step)] for row in range(3)]).view(3, 3, 1)
        peek = stream.peek([0, 1, 2], candidates)
        passes = stream.network.ledger.passes
        peek.commit([2, -1, 0])
        assert stream.network.ledger.passes == passes
        rows[0].append(int(candidates[0, 2, 0]))
        rows[2].append(int(candidates[2, 0, 0]))
    assert all(difference(stream, row, ids, family) < CLOSE for row, ids in rows.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_start_from_their_parents_and_go_their_own_ways(family):
    stream = stream_of(family, 4)
    prompt = text(6)
    prefill(stream, {0: prompt})
    stream.restart([0, 1, 2, 3], 0)
    chunks = [text(4, row) for row in range(4)]
    read_all([Reading(stream, [0, 1, 2, 3], chunks)])
    stream.copy([1, 3], [0, 2])
    rows = [prompt + chunks[0], prompt + chunks[0], prompt + chunks[2], prompt + chunks[2]]
    assert all(difference(stream, row, rows[row], family) < CLOSE for row in range(4))
    more = [text(3, 40 + row) for row in range(4)]
    read_all([Reading(stream, [0, 1, 2, 3], more)])
    assert all(difference(stream, row, rows[row] + more[row], family) < CLOSE for row in range(4))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sibling_restarts_behind_the_prompt_without_reading_it(family):
    stream = stream_of(family, 3)
    prompt = text(8)
    prefill(stream, {2: prompt})
    read_all([Reading(stream, [2], [text(5, 1)])])
    read = stream.network.ledger.tokens
    stream.restart([0, 2], 2)
    assert stream.network.ledger.tokens == read
    assert difference(stream, 0, prompt, family) < CLOSE
    read_all([Reading(stream, [0, 2], [text(3, 5), text(4, 6)])])
    assert difference(stream, 0, prompt + text(3, 5), family) < CLOSE
    assert difference(stream, 2, prompt + text(4, 6), family) < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_growth_of_the_slots_keeps_what_is_stored(family):
    stream = stream_of(family, 2)
    rows = {0: text(3), 1: text(2, 1)}
    prefill(stream, rows)
    sizes = {stream.cache.capacity}
    while len(rows[0]) < CONTEXT - 5:
        grown = {0: text(5, len(rows[0])), 1: text(1, len(rows[0]))}
        read_all([Reading(stream, [0, 1], list(grown.values()))])
        rows = {row: rows[row] + grown[row] for row in rows}
        sizes.add(stream.cache.capacity)
    assert len(sizes) > 3, "the text outgrows the slots several times"
    assert len(sizes) < 12, "and they grow in strides, not token by token"
    assert all(difference(stream, row, ids, family) < CLOSE for row, ids in rows.items())


def test_slots_with_an_old_tenant_do_not_remember_it():
    stream = stream_of("llama", 2)
    prefill(stream, {0: text(40), 1: text(30, 1)})
    prefill(stream, {0: text(3, 2)})
    read_all([Reading(stream, [0, 1], [[5], [6]])])
    assert difference(stream, 0, [*text(3, 2), 5], "llama") < CLOSE
    assert difference(stream, 1, [*text(30, 1), 6], "llama") < CLOSE


def test_prompts_that_exceed_one_pass_are_read_in_parts(monkeypatch):
    monkeypatch.setattr(readings, "PASS_TOKENS", 12)
    stream = stream_of("llama", 3)
    prompts = {0: text(9), 1: text(20, 1), 2: text(2, 2)}
    prefill(stream, prompts)
    assert stream.network.ledger.passes == 3, "9, 20 alone (longer than a pass), 2"
    assert all(difference(stream, row, ids, "llama") < CLOSE for row, ids in prompts.items())


def test_chunks_that_exceed_one_pass_count_the_same_log_probability(monkeypatch):
    totals = []
    for limit in (4096, 12):
        monkeypatch.setattr(readings, "PASS_TOKENS", limit)
        stream = stream_of("llama", 3)
        stream.counting = True
        prompts = {row: text(4, row) for row in range(3)}
        for row, ids in prompts.items():
            prefill(stream, {row: ids})
        chunks = [text(8, 20 + row) for row in range(3)]
        read_all([Reading(stream, [0, 1, 2], chunks)])
        totals.append(stream.totals.numpy().copy())
        expected = [
            oracles.response_logprob(plain("llama"), prompts[row], chunks[row]) for row in range(3)
        ]
        assert np.abs(totals[-1] - expected).max() < 1e-3
    assert np.abs(totals[0] - totals[1]).max() < 1e-4


def test_log_probabilities_are_counted_once_whether_drawn_or_read():
    """A token counted when it is drawn is not counted again when it is read."""
    stream = stream_of("gpt2", 2)
    stream.counting = True
    prompt, response = text(5), text(6, 1)
    prefill(stream, {0: prompt, 1: prompt})
    logprobs = torch.log_softmax(stream.outputs([0]), -1)
    stream.count([0], logprobs[:, response[0]])
    stream.count([0], logprobs[:, response[0]])
    read_all([Reading(stream, [0, 1], [response[:3], response[:2]])])
    read_all([Reading(stream, [0, 1], [response[3:], response[2:]])])
    expected = oracles.response_logprob(plain("gpt2"), prompt, response)
    assert float(stream.totals[0]) == pytest.approx(expected, abs=1e-3)
    assert float(stream.totals[1]) == pytest.approx(expected, abs=1e-3)


def test_a_row_beyond_the_context_is_named_and_nothing_is_read():
    stream = stream_of("llama", 2)
    prefill(stream, {0: text(4), 1: text(CONTEXT - 2, 1)})
    read = stream.network.ledger.tokens
    with pytest.raises(RowFailure, match=f"longer than its context of {CONTEXT} tokens") as caught:
        read_all([Reading(stream, [0, 1], [text(3), text(3)])])
    assert caught.value.rows == [1]
    assert stream.network.ledger.tokens == read


def test_a_wiped_slot_gives_clean_numbers_to_its_next_tenant():
    """A masked position weighs 0, and 0 times NaN is NaN: what a failed row left behind must go."""
    stream = stream_of("llama", 2)
    prefill(stream, {0: text(20), 1: text(3, 1)})
    stream.cache.store[:, :, 0] = torch.nan
    stream.last[0] = torch.nan
    stream.wipe(0)
    prefill(stream, {0: text(2, 2)})
    read_all([Reading(stream, [0, 1], [[5], [6]])])
    assert difference(stream, 0, [*text(2, 2), 5], "llama") < CLOSE
    assert difference(stream, 1, [*text(3, 1), 6], "llama") < CLOSE
