"""A stream that follows text in another tokenizer says what a fresh forward over the fresh encoding
says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ivgcli.models.loading import Networks
from ivgcli.models.prompts import PromptFormat
from ivgcli.models.readings import Reading, read_all
from ivgcli.models.retokenised import RetokenisedStream, shared_prefix
from ivgcli.models.streams import Stream
from ivgcli.recipes import ModelSpec
from tests import oracles
from tests.models import folder, plain, plain_value, tokenizer

CLOSE = 2e-4


def follower(rows: int = 2, kind: str = "scalar-other") -> RetokenisedStream:
    networks, spec = Networks("cpu"), ModelSpec(model=folder(kind))
    network, _ = (
        networks.value_model(spec) if kind.startswith("scalar") else networks.language_model(spec)
    )
    return RetokenisedStream(Stream(network, PromptFormat(network.tokenizer), rows))


def begin(text: RetokenisedStream, prompt: str, rows: int) -> list[int]:
    ids = text.stream.prompts.encode(prompt, None)
    read_all([Reading(text.stream, [0], [ids], prompt=True)])
    text.stream.restart(list(range(rows)), 0)
    for row in range(rows):
        text.start(row, ids)
    return ids


def fresh(prompt: str, response: str, ended: bool = False) -> list[int]:
    other = tokenizer("other")
    return other(prompt + response)["input_ids"] + ([other.eos_token_id] if ended else [])


def test_the_other_tokenizer_does_change_its_last_tokens_when_text_is_added():
    """Without this the tests below would prove nothing: "a film, th" and "a film, the end" part
    before the added text."""
    short, long = fresh("a film", ", th"), fresh("a film", ", the end")
    assert shared_prefix(short, long) < len(short)
    prompt, whole = fresh("a film, t", ""), fresh("a film, t", "he film")
    assert shared_prefix(prompt, whole) < len(prompt), (
        "a response can even change its prompt's last token"
    )


def test_values_equal_a_fresh_encoding_and_forward_at_every_addition():
    text = follower(1)
    prompt, response = "a film, t", ""
    begin(text, prompt, 1)
    for piece in ["he f", "ilm ", "open", "s. opens wi", "th it th", "e ", "end"]:
        response += piece
        ids = text.encode(prompt, response, ended=False)
        assert ids == fresh(prompt, response)
        text.follow([0], [ids])
        expected = oracles.head_outputs(plain_value("scalar-other"), ids)[-1, 0]
        assert float(text.stream.outputs([0])[0, 0]) == pytest.approx(expected, abs=CLOSE)


def test_only_what_has_changed_is_read_again():
    text = follower(1)
    prompt = "a film, t"
    begin(text, prompt, 1)
    ledger = text.stream.network.ledger
    held = fresh(prompt, "")
    for response in ["he f", "he film opens", "he film opens with it"]:
        ids = fresh(prompt, response)
        same = shared_prefix(held, ids)
        kept = same if same == len(held) else same - 1
        before = (ledger.tokens, ledger.reread)
        text.follow([0], [ids])
        assert ledger.tokens - before[0] == len(ids) - kept
        assert ledger.reread - before[1] == len(held) - kept
        held = ids
    before = ledger.passes
    text.follow([0], [held])
    assert ledger.passes == before, "unchanged text costs nothing"


def test_a_finished_text_ends_with_the_eos_of_the_other_tokenizer():
    text = follower(1)
    begin(text, "a film", 1)
    assert text.encode("a film", " opens", ended=True) == fresh("a film", " opens", ended=True)
    assert text.encode("a film", " opens", ended=False) == fresh("a film", " opens")


def test_log_probabilities_count_everything_after_the_shared_prefix():
    """A token merged out of prompt and response counts as response, as in the published code."""
    text = follower(1, "llama-other")
    prompt, response = "a film, t", ""
    prompt_ids = begin(text, prompt, 1)
    for piece in ["he f", "ilm opens", " with it"]:
        response += piece
        ids = fresh(prompt, response)
        text.follow([0], [ids], count=True)
        shared = shared_prefix(prompt_ids, ids)
        assert shared < len(prompt_ids)
        expected = oracles.response_logprob(plain("llama-other"), ids[:shared], ids[shared:])
        assert text.total(0, prompt_ids) == pytest.approx(expected, abs=1e-3)


def test_a_first_token_that_nothing_precedes_does_not_count():
    """If prompt and response merge from the very first token on, that token has no probability
    given anything."""
    prompt = next(
        p
        for p in ["t", "th", "o", "a"]
        if shared_prefix(fresh(p, ""), fresh(p, "he film is in")) == 0
    )
    text = follower(1, "llama-other")
    prompt_ids = begin(text, prompt, 1)
    ids = fresh(prompt, "he film is in")
    text.follow([0], [ids], count=True)
    expected = oracles.response_logprob(plain("llama-other"), ids[:1], ids[1:])
    assert text.total(0, prompt_ids) == pytest.approx(expected, abs=1e-3)


def test_a_copied_row_has_the_prompt_that_its_parent_has_retokenised():
    """Siblings stop sharing their prompt's last positions once a response merges with it, so a copy
    must bring them."""
    text = follower(2)
    prompt = "a film, t"
    begin(text, prompt, 2)
    responses = ["he f", "xyz"]
    text.follow([0, 1], [fresh(prompt, response) for response in responses])
    text.stream.copy([1], [0])
    text.copy([1], [0])
    ids = fresh(prompt, "he film opens")
    text.follow([1], [ids])
    expected = oracles.head_outputs(plain_value("scalar-other"), ids)[-1, 0]
    assert float(text.stream.outputs([1])[0, 0]) == pytest.approx(expected, abs=CLOSE)


def test_a_row_restarted_from_a_sibling_whose_prompt_is_gone_reads_it_again():
    text = follower(2)
    prompt = "a film, t"
    prompt_ids = begin(text, prompt, 1)
    text.follow([0], [fresh(prompt, "he film")])
    text.stream.restart([1], 0)
    text.start(1, prompt_ids)
    ids = fresh(prompt, " is in")
    text.follow([1], [ids])
    expected = oracles.head_outputs(plain_value("scalar-other"), ids)[-1, 0]
    assert float(text.stream.outputs([1])[0, 0]) == pytest.approx(expected, abs=CLOSE)


def test_shortened_texts_equal_a_fresh_forward():
    """A stop string cuts text that has been read already."""
    text = follower(1)
    begin(text, "a film", 1)
    for response in [" opens with it", " opens", " opens with the end"]:
        ids = fresh("a film", response)
        text.follow([0], [ids])
        expected = oracles.head_outputs(plain_value("scalar-other"), ids)[-1, 0]
        assert float(text.stream.outputs([0])[0, 0]) == pytest.approx(expected, abs=CLOSE)


def test_peeked_texts_equal_fresh_forwards_whatever_their_lengths():
    text = follower(2)
    prompt = "a film, t"
    begin(text, prompt, 2)
    responses = ["he fil", "ea"]
    text.follow([0, 1], [fresh(prompt, response) for response in responses])
    added = ["m", " opens", "s in the", "x"]
    alternatives = [[fresh(prompt, response + more) for more in added] for response in responses]
    peek, lasts = text.peek([0, 1], alternatives)
    for row in range(2):
        for c, ids in enumerate(alternatives[row]):
            ours = text.stream.network.outputs(peek.hidden[row, c, lasts[row][c]])
            expected = oracles.head_outputs(plain_value("scalar-other"), ids)[-1, 0]
            assert float(ours[0]) == pytest.approx(expected, abs=CLOSE)
    held = oracles.head_outputs(plain_value("scalar-other"), fresh(prompt, responses[1]))[-1, 0]
    assert float(text.stream.outputs([1])[0, 0]) == pytest.approx(held, abs=CLOSE), (
        "peeking leaves no trace"
    )


@pytest.mark.parametrize("seed", range(4))
def test_rows_that_grow_branch_and_restart_as_text_equal_fresh_forwards(seed):
    random = np.random.default_rng(seed)
    text = follower(4, "llama-other")
    prompt = "a film, t"
    prompt_ids = begin(text, prompt, 4)
    responses = [""] * 4
    for _ in range(12):
        rows = sorted(random.permutation(4)[: random.integers(1, 5)].tolist())
        for row in rows:
            responses[row] += "".join(random.choice(list("theofilm is."), random.integers(1, 5)))
        text.follow(rows, [fresh(prompt, responses[row]) for row in rows], count=True)
        source, target = random.permutation(
            rows if len(rows) > 1 else [rows[0], (rows[0] + 1) % 4]
        )[:2].tolist()
        if random.random() < 0.5:
            text.stream.copy([target], [source])
            text.copy([target], [source])
            responses[target] = responses[source]
        elif random.random() < 0.4:
            text.stream.restart([target], source)
            text.start(target, prompt_ids)
            responses[target] = " "
            text.follow([target], [fresh(prompt, " ")], count=True)
        for row in rows:
            ids = fresh(prompt, responses[row])
            shared = shared_prefix(prompt_ids, ids)
            expected = oracles.response_logprob(plain("llama-other"), ids[:shared], ids[shared:])
            assert text.total(row, prompt_ids) == pytest.approx(expected, abs=2e-3)
            outputs = text.stream.outputs([row])[0].double()
            assert torch.allclose(
                outputs, torch.from_numpy(oracles.logits(plain("llama-other"), ids)[-1]), atol=CLOSE
            )
