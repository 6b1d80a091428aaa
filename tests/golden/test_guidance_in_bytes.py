"""Guidance in bytes against the sum over all tokenisations, by enumeration on toy vocabularies, in both directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ivgcli.decoding import TokenGuidance
from ivgcli.decoding.guidance import tilted
from ivgcli.values.coverage import Coverage
from tests.oracles_bytes import END, STOP, Rows, Sums, allowed_pairs, decoded, network, sums, toy

CLOSE = 5e-6
"""Nats. Weights are float64, but rotary angles, attention weights and logits are float32 on the way: 2e-6 was the
most in 60 steps of these models."""

DIRECTIONS = [("bytes", "pieces"), ("pieces", "bytes"), ("words", "unigram"), ("unigram", "words")]
PROMPTS = ["ab ca", "c ab é"]
"""Both end inside a word, the first one inside what some pieces merge."""


def oracles_of(rows: Rows, name: str) -> list[Sums]:
    return [sums(name, folder) for folder in rows.folders]


def text_of(name: str, seed: int, length: int = 5) -> list[int]:
    """Return random ids of a base, with a character that is written in two of them in the middle."""
    pieces = toy(name).pieces
    random = np.random.default_rng(seed)
    usable = [t for t, p in enumerate(pieces) if p and p.decode(errors="ignore").isascii()]
    usable = [t for t in usable if pieces[t].isascii()]
    drawn = random.choice(usable, length).tolist()
    half = [pieces.index(b"\xc3"), pieces.index(b"\xa9")]
    return [*drawn[: length // 2], *half, *drawn[length // 2 :]]


def exact_values(rows: Rows, row: int, both: list[Sums]) -> np.ndarray:
    """Return log P_T(text + s)/P_T(text) − the same of the reference for every token of the base; 0 without bytes."""
    logs = []
    for side, brute in enumerate(both):
        context, pending = rows.context(row, side)
        brute.read_ahead(context, pending, filter(None, rows.base.pieces))
        here = brute.prefix_probability(context, pending)
        found = np.ones(len(rows.base.pieces))
        for token, piece in enumerate(rows.base.pieces):
            if piece:
                found[token] = brute.prefix_probability(context, pending + piece) / here
            elif token in (END, STOP):
                found[token] = brute.ending_probability(context, pending) / here
        logs.append(np.log(found))
    return logs[0] - logs[1]


@pytest.mark.parametrize(("base", "guide"), DIRECTIONS)
def test_every_candidate_gets_the_log_ratio_of_sums_over_all_tokenisations(base, guide):
    """At every step: each token of the base, half characters included, and EOS, over two EOS ids of the guide."""
    rows = Rows((base, 1), (guide, 2, 3), PROMPTS)
    both = oracles_of(rows, guide)
    back = held = 0
    before = [rows.guide.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    # A "b" behind the prompt's "a" changes the prompt's own last token in all four vocabularies.
    first = rows.base.pieces.index(b"b")
    for step in zip(*([first, *text_of(base, len(prompt))] for prompt in PROMPTS), strict=True):
        values = rows.next_values([0, 1])
        for row, token in enumerate(step):
            np.testing.assert_allclose(values[row], exact_values(rows, row, both), atol=CLOSE)
            rows.states[row].tokens.append(token)
            text, half = decoded(rows.base.text(rows.states[row].tokens))
            after = rows.guide.tokenizer(PROMPTS[row] + text)["input_ids"]
            back += after[: len(before[row])] != before[row]
            held += bool(half)
            before[row] = after
    assert back, "the guide's tokenisation never changed behind its end"
    assert held, "no character was ever incomplete"


def test_the_guided_distribution_is_the_base_tilted_by_the_exact_values():
    """p(a) ∝ p_base(a)·exp(w·g(a)) over all tokens; among few candidates the others keep their probability."""
    rows = Rows(("bytes", 1), ("pieces", 2, 3), ["ab ca"])
    brute = sums("bytes", network("bytes", 1))
    both = oracles_of(rows, "pieces")
    for token in text_of("bytes", 3, 3):
        ids = (*rows.states[0].prompt_ids, *rows.states[0].tokens)
        plain = brute.next_probabilities(ids)
        rows.next_values()
        exact = exact_values(rows, 0, both)
        logprobs = torch.from_numpy(np.log(plain))[None]
        for count, outside in ((len(plain), "drop"), (5, "mass")):
            guidance = TokenGuidance(rows.value, 1.7, count, outside)
            with torch.inference_mode():
                found = tilted(guidance, logprobs, [0], rows.states)
            found = torch.softmax(found.double(), -1)[0].numpy()
            if outside == "drop":
                want = plain * np.exp(1.7 * exact)
                np.testing.assert_allclose(found, want / want.sum(), atol=CLOSE)
                continue
            valued = sorted({*_most_probable(plain, 5), END, STOP})
            others = [t for t in range(len(plain)) if t not in valued]
            np.testing.assert_allclose(found[others], plain[others], rtol=1e-6)
            want = plain[valued] * np.exp(1.7 * exact[valued])
            want *= plain[valued].sum() / want.sum()
            np.testing.assert_allclose(found[valued], want, atol=CLOSE)
        rows.states[0].tokens.append(token)


def _most_probable(chances: np.ndarray, count: int) -> list[int]:
    order = [t for t in np.argsort(-chances).tolist() if t not in (END, STOP)]
    return order[:count]


@pytest.mark.parametrize(("base", "guide"), DIRECTIONS)
def test_increments_add_up_while_the_context_stays(base, guide):
    """Σ increments = log-ratio of P(all that was added) for any models, as long as the context does not move on.

    Where it does, tokenisations that do not go through the new context are left behind with their probability.
    """
    rows = Rows((base, 1), (guide, 2, 3), ["ab ca"])
    both = oracles_of(rows, guide)
    values = rows.next_values()[0]
    began = [rows.context(0, side) for side in (0, 1)]
    longest, count, total = 0, 0, 0.0
    for token in text_of(base, 11, 8):
        gain = values[token]
        rows.states[0].tokens.append(token)
        values = rows.next_values()[0]
        now = [rows.context(0, side) for side in (0, 1)]
        total, count = total + gain, count + 1
        if any(here[0] != there[0] for here, there in zip(now, began, strict=True)):
            total, count, began = 0.0, 0, now
            continue
        logs = [
            np.log(brute.prefix_probability(*end) / brute.prefix_probability(*start))
            for brute, end, start in zip(both, now, began, strict=True)
        ]
        assert total == pytest.approx(logs[0] - logs[1], abs=count * CLOSE)
        longest = max(longest, count)
    assert longest >= 2


@pytest.mark.parametrize("vocabulary", ["bytes", "pieces"])
def test_a_sequence_is_canonical_when_every_pair_in_it_is(vocabulary):
    """What the networks that forbid other tokenisations rest upon, by enumeration of all sequences of three tokens."""
    known = toy(vocabulary)
    pairs = allowed_pairs(vocabulary)
    core = known.tokenizer.backend_tokenizer
    strings = [core.id_to_token(token) for token in range(len(known.pieces))]
    usable = [
        t
        for t, p in enumerate(known.pieces)
        if p and p.isascii() and not strings[t].startswith("<")
    ]
    for one in usable:
        for two in usable:
            for three in usable:
                text = strings[one] + strings[two] + strings[three]
                ids = [piece.id for piece in core.model.tokenize(text)]
                assert (ids == [one, two, three]) == bool(pairs[one, two] and pairs[two, three])


@pytest.mark.parametrize(("base", "guide"), [("bytes", "pieces"), ("pieces", "bytes")])
@pytest.mark.parametrize("counted", ["all", "possible"])
def test_increments_of_canonical_models_add_up_to_the_log_ratio_of_the_whole_text(
    base, guide, counted
):
    """Where only canonical tokenisations have probability, contexts may move on as they like; EOS included.

    Then it does not matter, either, whether other tokenisations are summed or left out.
    """
    prompt = "ab c"
    for seed in (5, 6):
        rows = Rows((base, 1), (guide, 2, 3), [prompt], (0.0, 0.0, counted), canonical=True)
        both = oracles_of(rows, guide)
        total, starts = 0.0, []
        for token in [*text_of(base, seed), END]:
            values = rows.next_values()[0]
            starts = starts or [rows.context(0, side) for side in (0, 1)]
            total += values[token]
            rows.states[0].tokens.append(token)
        text, _ = decoded(rows.base.text(rows.states[0].tokens))
        ids = rows.guide.tokenizer(prompt + text)["input_ids"]
        logs = []
        for brute, (context, pending) in zip(both, starts, strict=True):
            assert ids[: len(context)] == context
            ending = np.log(brute.next_probabilities(tuple(ids))[[END, STOP]].sum())
            whole = brute.canonical_logprob(ids, len(context)) + ending
            logs.append(whole - np.log(brute.prefix_probability(context, pending)))
        assert total == pytest.approx(logs[0] - logs[1], abs=20 * CLOSE)


@pytest.mark.parametrize(("base", "guide"), [("bytes", "pieces"), ("pieces", "bytes")])
def test_leaving_out_other_tokenisations_is_exact_where_models_do(base, guide):
    """`possible` with width 0, against the sum over all tokenisations of models that forbid all but one."""
    rows = Rows((base, 1), (guide, 4, 5), ["ab ca"], (0.0, 0.0, "possible"), canonical=True)
    both = oracles_of(rows, guide)
    whole = [t for t, p in enumerate(rows.base.pieces) if p is None or p.isascii()]
    for token in text_of(base, 8):
        found = rows.next_values()[0]
        half = decoded(rows.base.text(rows.states[0].tokens))[1]
        if not half:
            with np.errstate(all="ignore"):
                want = exact_values(rows, 0, both)
            np.testing.assert_allclose(found[whole], want[whole], atol=CLOSE)
        assert np.isfinite(found).all()
        rows.states[0].tokens.append(token)


class Recorded(Coverage):
    """Keeps the width of every candidate's interval."""

    widths: np.ndarray

    def value(self, rows, outside, weights, widths, passes) -> None:
        """Keep and count."""
        self.widths = widths
        super().value(rows, outside, weights, widths, passes)


@pytest.mark.parametrize("precision", [(9.0, 1.0), (1.0, 0.1), (0.5, 0.02), (0.1, 0.0)])
def test_values_lie_within_the_widths_that_are_reported(precision):
    """Of two candidates: the text's own probability cancels, so the error is at most the sum of both widths."""
    rows = Rows(("pieces", 1), ("bytes", 2, 3), ["ab ca"], (*precision, "all"))
    rows.value.coverage = Recorded(rows.value.base, rows.value.readers[0].vocabulary)
    rows.value.coverage.resize(1)
    both = oracles_of(rows, "bytes")
    real = [t for t, p in enumerate(rows.base.pieces) if p or t in (END, STOP)]
    for token in text_of("pieces", 4):
        found = rows.next_values()[0][real]
        error = found - exact_values(rows, 0, both)[real]
        width = rows.value.coverage.widths[0][real]
        apart = np.abs(error[:, None] - error[None, :])
        assert (apart <= width[:, None] + width[None, :] + CLOSE).all()
        rows.states[0].tokens.append(token)
