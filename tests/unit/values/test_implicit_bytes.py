"""Guidance in bytes as rows live: followed, copied, restarted, batched, cut, counted."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ivgcli.models.failures import RowFailure
from ivgcli.values import Row
from ivgcli.values.coverage import WIDEST, summed
from tests.oracles_bytes import END, STOP, Rows, sums, toy
from tests.oracles_canonical import CanonicalSums

CLOSE = 5e-6
"""Nats; see tests/golden/test_guidance_in_bytes.py."""
EXACT = (0.0, 0.0, "all")
DEFAULT = (0.5, 0.1, "canonical")
NARROW = (0.5, 0.02, "possible")
LOOSE = (1e9, 1.0, "canonical")
"""Nothing is ever uncertain."""

DIRECTIONS = [("bytes", "pieces"), ("pieces", "bytes"), ("words", "unigram"), ("unigram", "words")]
PROMPTS = ["ab ca", "c", "b aab cab bc"]


def random_tokens(name: str, seed: int, length: int) -> list[int]:
    usable = [t for t, p in enumerate(toy(name).pieces) if p and p.isascii()]
    return np.random.default_rng(seed).choice(usable, length).tolist()


def spell(name: str, text: str) -> list[int]:
    """Return ids of a text, one for each byte."""
    return [toy(name).pieces.index(bytes([byte])) for byte in text.encode()]


@pytest.mark.parametrize(("base", "guide"), DIRECTIONS)
@pytest.mark.parametrize("precision", [EXACT, DEFAULT])
def test_a_row_that_was_followed_equals_one_that_begins_with_the_whole_text(base, guide, precision):
    """The other one is asked once before its first token, as every row is, and then again at the end of its text."""
    tokens = [*random_tokens(base, 1, 3), *spell(base, "é"), *random_tokens(base, 2, 2)]
    prompts = [PROMPTS[0]] * (len(tokens) + 1)
    rows = Rows((base, 1), (guide, 2, 3), prompts, precision)
    rows.next_values(range(len(prompts)))
    for count in range(1, len(tokens) + 1):
        rows.states[0].tokens = tokens[:count]
        rows.states[count].tokens = tokens[:count]
        followed, fresh = rows.next_values([0, count])
        np.testing.assert_allclose(fresh, followed, atol=CLOSE)
        for reader in rows.value.readers:
            assert reader.texts[0].ids == reader.texts[count].ids


@pytest.mark.parametrize(("base", "guide"), DIRECTIONS)
@pytest.mark.parametrize("precision", [DEFAULT, NARROW])
def test_rows_of_unequal_length_in_one_batch_get_what_each_gets_alone(base, guide, precision):
    rows = Rows((base, 1), (guide, 2, 3), PROMPTS, precision)
    alone = [Rows((base, 1), (guide, 2, 3), [prompt], precision) for prompt in PROMPTS]
    for step in range(3):
        together = rows.next_values([2, 0, 1])
        for number, row in enumerate([2, 0, 1]):
            single = alone[row].next_values()[0]
            np.testing.assert_allclose(together[number], single, atol=CLOSE)
            added = random_tokens(base, 10 * row + step, 1 + row)
            rows.states[row].tokens += added
            alone[row].states[0].tokens += added


@pytest.mark.parametrize(("base", "guide"), DIRECTIONS)
def test_a_copy_goes_on_like_the_row_it_was_copied_from(base, guide):
    rows = Rows((base, 1), (guide, 2, 3), [PROMPTS[0]] * 3, DEFAULT)
    rows.states[0].tokens = random_tokens(base, 3, 5)
    rows.states[1].tokens = random_tokens(base, 4, 2)
    rows.next_values([0, 1])
    with torch.inference_mode():
        for follower in (*rows.streams, rows.value):
            follower.copy([1, 2], [0, 0])
    for row in (1, 2):
        rows.states[row].tokens = list(rows.states[0].tokens)
    for token in random_tokens(base, 5, 3):
        found = rows.next_values([0, 1, 2])
        np.testing.assert_allclose(found[1:], found[[0, 0]], atol=CLOSE)
        for state in rows.states:
            state.tokens.append(token)


@pytest.mark.parametrize("precision", [EXACT, DEFAULT])
def test_a_sibling_starts_cleanly_where_a_text_has_reached_back_into_the_prompt(precision):
    """The prompt ends with "a"; the response "b…" merges with it, so what the slot holds is not the prompt any more."""
    rows = Rows(("pieces", 1), ("bytes", 2, 3), ["c a", "c a"], precision)
    untouched = rows.next_values([1])[0]
    rows.states[0].tokens = spell("pieces", "bb")
    rows.next_values([0])
    assert not any(stream.intact[0] for stream in rows.streams), "nothing was merged"
    with torch.inference_mode():
        for stream in rows.streams:
            stream.restart([1], 0)
        rows.states[1] = Row(rows.states[1].prompt, rows.states[1].prompt_ids)
        rows.value.start(1, rows.states[1])
    np.testing.assert_allclose(rows.next_values([1])[0], untouched, atol=CLOSE)


def by_text(rows: Rows, states: list[Row]) -> list[float]:
    """Return the values of whole texts by the value that ranks responses of another vocabulary."""
    value = rows.assembly.implicit(rows.plan.guide, for_tokens=False)
    for follower in (*value.streams(), value):
        follower.resize(len(states))
    rows.prefill(value, states)
    with torch.inference_mode():
        return value.values(range(len(states)), states).tolist()


@pytest.mark.parametrize(("base", "guide"), DIRECTIONS)
def test_whole_texts_are_worth_what_the_value_by_text_says(base, guide):
    """Unfinished, ended, cut by a stop string to a beginning of what was read, and to nothing at all."""
    rows = Rows((base, 1), (guide, 2, 3), [PROMPTS[0]] * 4, DEFAULT, ends=1)
    tokens = [*random_tokens(base, 6, 3), *spell(base, "é"), *random_tokens(base, 7, 2)]
    rows.states[0].tokens = list(tokens)
    rows.states[1].tokens, rows.states[1].finish = [*tokens, END], "eos"
    for row, cut in ((2, 4), (3, 0)):
        rows.states[row].tokens = list(tokens)
        rows.next_values([row])
        whole = rows.base.text(tokens).decode()
        rows.states[row].text, rows.states[row].finish = whole[:cut], "stop"
    with torch.inference_mode():
        found = rows.value.values(range(4), rows.states).tolist()
    assert found == pytest.approx(by_text(rows, rows.states), abs=10 * CLOSE)


@pytest.mark.parametrize(("base", "guide"), DIRECTIONS)
def test_a_step_is_one_pass_of_each_network_where_nothing_is_uncertain(base, guide):
    """Read are the canonical tokens that the text has grown by or changed, and continuations; nothing else."""
    rows = Rows((base, 1), (guide, 2, 3), PROMPTS, LOOSE)
    rows.next_values([0, 1, 2])
    known = [[list(text.ids) for text in reader.texts] for reader in rows.value.readers]
    for step in range(5):
        for row in range(3):
            rows.states[row].tokens += random_tokens(base, 7 * step + row, 1)
        ledgers = [stream.network.ledger for stream in rows.streams]
        before = [(ledger.passes, ledger.tokens, ledger.peeked) for ledger in ledgers]
        rows.next_values([0, 1, 2])
        for side, (ledger, (passes, tokens, peeked)) in enumerate(
            zip(ledgers, before, strict=True)
        ):
            assert ledger.passes - passes == 1
            fresh = 0
            for row in range(3):
                old, new = known[side][row], rows.value.readers[side].texts[row].ids
                same = next(
                    (n for n, pair in enumerate(zip(old, new, strict=False)) if len({*pair}) > 1),
                    min(len(old), len(new)),
                )
                fresh += len(new) - same
                known[side][row] = list(new)
            read = ledger.tokens - tokens - (ledger.peeked - peeked)
            # One more for a row whose changed tokens reach behind the distributions that are kept.
            assert fresh <= read <= fresh + 3
    assert summed(rows.value.coverage.rows)["passes"] == 0


def test_coverage_is_what_can_be_counted_by_hand():
    """Base `bytes`, guide `pieces`: é, ©a, abc and bca are the base's tokens that the guide has none for.

    The response a, b, a on the prompt "c ": the guide has ▁ c▁, then ▁ c ▁a, then ▁ c ▁ab, then ▁ c ▁ab a, so that
    only the last token leaves the guide's tokens before it as they were.
    """
    rows = Rows(("bytes", 1), ("pieces", 2, 3), ["c "], LOOSE)
    pieces, others = rows.base.pieces, set(rows.guide.pieces) - {None}
    assert {p for p in pieces if p and p not in others} == {"é".encode(), b"\xa9a", b"abc", b"bca"}
    logprobs = np.full((1, len(pieces)), -np.inf)
    chosen = [pieces.index(b"abc"), pieces.index(b"a"), END]
    logprobs[0, chosen] = np.log([0.25, 0.5, 0.25])
    for token in [*spell("bytes", "aba"), None]:
        rows.next_values([0], [chosen[1], END, STOP], logprobs)
        if token is not None:
            rows.states[0].tokens.append(token)
    tally = rows.value.coverage.rows[0]
    assert (tally.steps, tally.followed, tally.aligned, tally.passes) == (4, 3, 1, 0)
    assert tally.outside == pytest.approx(4 * 0.25)
    assert 0 < tally.width <= 4 * WIDEST
    found = summed([tally, tally])
    assert found["outside"] == pytest.approx(0.25)
    assert found["aligned"] == pytest.approx(1 / 3)
    assert found["width"] == pytest.approx(tally.width / 4)


@pytest.fixture
def forbid(monkeypatch) -> Callable[..., None]:
    """Let one network give tokens a logit whatever stands before, for the rest of a test."""

    def change(rows: Rows, side: int, tokens: list[int], logit: float = float("-inf")) -> None:
        network = rows.streams[side].network
        outputs = network.outputs

        def changed(hidden: torch.Tensor) -> torch.Tensor:
            found = outputs(hidden).clone()
            found[..., tokens] = logit
            return found

        monkeypatch.setattr(network, "outputs", changed)

    return change


@pytest.mark.parametrize("precision", [EXACT, DEFAULT, LOOSE])
@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)])
def test_no_candidate_gets_an_infinite_value_where_a_model_gives_none(precision, sides, forbid):
    """All tokens with a "b" are impossible, and EOS; then also a text in which one stands already."""
    rows = Rows(("bytes", 1), ("pieces", 2, 3), [PROMPTS[0]], precision)
    gone = [t for t, p in enumerate(rows.guide.pieces) if p and b"b" in p]
    for side in sides:
        forbid(rows, side, [*gone, END, STOP])
    for token in spell("bytes", "cba"):
        assert np.isfinite(rows.next_values()[0]).all()
        rows.states[0].tokens.append(token)
    with torch.inference_mode():
        assert bool(torch.isfinite(rows.value.values([0], rows.states)).all())


def test_a_token_of_tiny_probability_costs_what_its_logarithm_says(forbid):
    """log p = −60 or so: far below the rounding of running sums, and still a number of the network's."""
    rows = Rows(("bytes", 1), ("pieces", 2, 3), ["ab c"], LOOSE, ends=1)
    single = rows.guide.pieces.index(b"c")
    forbid(rows, 0, [single], -60.0)
    rows.states[0].tokens = spell("bytes", " cab c")
    with torch.inference_mode():
        found = rows.value.values([0], rows.states).tolist()
    assert found == pytest.approx(by_text(rows, rows.states), abs=1e-3)


def test_a_candidate_that_the_tuned_model_all_but_forbids_is_not_treated_as_neutral(forbid):
    """Probability e^−60 under the tuned model, some percent under its reference: the value is far below 0."""
    rows = Rows(("bytes", 1), ("pieces", 2, 3), ["ab "], EXACT)
    forbid(rows, 0, [t for t, p in enumerate(rows.guide.pieces) if p and b"c" in p], -60.0)
    found = rows.next_values()[0]
    assert found[rows.base.pieces.index(b"c")] < -20


def test_narrowing_goes_on_until_little_enough_is_uncertain():
    """After the steps that precision allows, no more than `mass` of the base's probability has an interval wider than
    `width`, also where many small paths make up the gap."""
    seen = []
    rows = Rows(("bytes", 1), ("unigram", 2, 3), [PROMPTS[0]], (0.3, 0.05, "all"))
    count = rows.value.coverage.value

    def value(rows_, outside, weights, widths, passes) -> None:
        seen.append(float((weights * (widths > 0.3)).sum()))
        count(rows_, outside, weights, widths, passes)

    rows.value.coverage.value = value
    for token in random_tokens("bytes", 8, 8):
        rows.next_values()
        rows.states[0].tokens.append(token)
    assert max(seen) <= 0.05


def test_sums_over_all_tokenisations_count_texts_that_end_in_any_tokens():
    """EOS behind "ab": behind the token ab, and behind a, b; by the two sums of the reference."""
    rows = Rows(("pieces", 1), ("bytes", 2, 3), ["c"], EXACT)
    rows.next_values()
    rows.states[0].tokens = spell("pieces", "ab")
    found = rows.next_values()[0][END]
    logs = []
    for side, folder in enumerate(rows.folders):
        context, pending = rows.context(0, side)
        brute = sums("bytes", folder)
        ended = brute.ending_probability(context, pending)
        logs.append(np.log(ended / brute.prefix_probability(context, pending)))
    assert found == pytest.approx(logs[0] - logs[1], abs=CLOSE)


def opened(rows: Rows, side: int) -> tuple[list[int], bytes]:
    """Return what `Rows.context` does, of a base whose decoder leaves out the first space of a whole text."""
    text = rows.base.text(rows.states[0].tokens).removeprefix(b" ").decode()
    ids = rows.guide.tokenizer(text)["input_ids"]
    count = rows.value.readers[side].first_node(0)
    space = rows.guide.text(rows.guide.tokenizer("a")["input_ids"])[:1] == b" "
    # Before there is any text, the guide's first token is still to bring the space that begins its documents.
    pending = rows.guide.text(ids[count:]) if text else b" " * space
    return ids[:count], pending


@pytest.mark.parametrize(
    ("base", "guide", "response"),
    [("pieces", "bytes", "ab c"), ("unigram", "bytes", "  a"), ("pieces", "unigram", "ab c")],
)
def test_behind_an_empty_prompt_a_sentencepiece_base_begins_without_its_unwritten_space(
    base, guide, response
):
    """▁a is worth what the text "a" is, ▁ alone nothing; the second space is one. Sums over all tokenisations."""
    rows = Rows((base, 1), (guide, 2, 3), [""], EXACT)
    pieces = rows.base.pieces
    written = [token for token, piece in enumerate(pieces) if piece]
    for step, token in enumerate(spell(base, response)):
        found = rows.next_values()[0]
        texts = [pieces[t].removeprefix(b" ") if step == 0 else pieces[t] for t in written]
        logs = []
        for side, folder in enumerate(rows.folders):
            brute = sums(guide, folder)
            context, pending = opened(rows, side)
            brute.read_ahead(context, pending, texts)
            whole = brute.prefix_probability(context, pending)
            parts = [brute.prefix_probability(context, pending + text) for text in texts]
            logs.append(np.log(parts) - np.log(whole))
        np.testing.assert_allclose(found[written], logs[0] - logs[1], atol=CLOSE)
        if step == 0:
            assert found[pieces.index(b" a")] == found[pieces.index(b"a")] != 0
            assert found[pieces.index(b" ")] == 0
        rows.states[0].tokens.append(token)


@pytest.mark.parametrize(("base", "guide"), DIRECTIONS)
@pytest.mark.parametrize("together", [False, True])
def test_canonical_values_are_those_of_the_canonical_tokenisations_of_text_and_candidate(
    base, guide, together
):
    """Each candidate alone, whose paths are its own and the trunk's; and all at once, where they share their paths."""
    rows = Rows((base, 1), (guide, 2, 3), [PROMPTS[0]], (0.0, 0.0, "canonical"))
    pieces = rows.base.pieces
    real = [t for t, piece in enumerate(pieces) if piece or t == END]
    asked = paths = 0
    for token in [pieces.index(b"b"), *spell(base, "cé"), *random_tokens(base, 12, 2)]:
        for choices in [real] if together else [[each] for each in real[::2]]:
            found = rows.next_values([0], choices)[0]
            logs = []
            for side in (0, 1):
                oracle = CanonicalSums(rows, side, choices)
                whole = oracle.here()
                parts = np.array(
                    [oracle.going_on(pieces[t]) if pieces[t] else oracle.ending() for t in choices]
                )
                # Bytes that can be no character here have no canonical tokenisation: their value is 0.
                nowhere = parts == 0
                logs.append(np.log(np.where(nowhere, whole, parts)) - np.log(whole))
            np.testing.assert_allclose(found, logs[0] - logs[1], atol=1e-5)
            asked += len(choices)
            paths += int((~nowhere).sum())
        rows.states[0].tokens.append(token)
    assert paths > 0.6 * asked


def test_a_row_may_have_text_before_it_is_asked_for_the_first_time():
    """Distributions that nobody has read are not used: the value is that of a row that was asked from the beginning."""
    rows = Rows(("pieces", 1), ("bytes", 2, 3), ["cab c", "cab c"], LOOSE)
    rows.next_values([0])
    for state in rows.states:
        state.tokens = spell("pieces", "ab")
    np.testing.assert_allclose(*rows.next_values([0, 1]), atol=CLOSE)
    assert np.abs(rows.next_values([1])).max() > 0.1


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_a_logit_that_is_not_finite_names_the_network_and_the_row(number, side, forbid):
    """The sentence is that of a pair with the base's own tokenizer."""
    rows = Rows(("bytes", 1), ("pieces", 2, 3), PROMPTS, DEFAULT)
    rows.next_values([0, 1, 2])
    forbid(rows, side, [7], number)
    rows.states[1].tokens = spell("bytes", "b")
    name = re.escape(rows.streams[side].network.name)
    with pytest.raises(
        RowFailure,
        match=f"^{name}: gave a number that is not finite → check it; a network may need",
    ) as caught:
        rows.next_values([1])
    assert caught.value.rows == [1]


def test_what_a_step_brings_from_the_device_does_not_grow_with_rows_or_candidates(monkeypatch):
    """Each of them waits for the device: candidates with their weights once, and of each model the first token's
    probability, whether its distributions are finite, the next tokens' and all questions."""
    brought = 0

    def counted(name: str) -> None:
        plain = getattr(torch.Tensor, name)

        def bring(tensor: torch.Tensor, *given):
            nonlocal brought
            brought += 1
            return plain(tensor, *given)

        monkeypatch.setattr(torch.Tensor, name, bring)

    rows = Rows(("bytes", 1), ("pieces", 2, 3), PROMPTS, LOOSE)
    rows.next_values([0, 1, 2])
    for name in ("cpu", "tolist", "item", "__bool__"):
        counted(name)
    for asked, choices in (([0], [5, 6, END, STOP]), ([1, 2], None), ([0, 1, 2], None)):
        for row in asked:
            rows.states[row].tokens += spell("bytes", "ca")
        brought = 0
        rows.next_values(asked, choices)
        assert brought == 1 + 2 * 4


def test_the_two_models_of_a_pair_share_text_and_questions():
    """Each network comes with a tokenizer of its own; what is alike is planned once."""
    rows = Rows(("bytes", 1), ("pieces", 2, 3), PROMPTS, DEFAULT)
    rows.next_values([0, 1, 2])
    with torch.inference_mode():
        for follower in (*rows.streams, rows.value):
            follower.copy([1], [0])
    tuned, reference = rows.value.readers
    assert tuned.stream.network is not reference.stream.network
    assert tuned.vocabulary is reference.vocabulary
    for row in range(3):
        assert tuned.texts[row] is reference.texts[row]
    assert tuned.texts[1] is not tuned.texts[0]
