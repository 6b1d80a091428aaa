"""How far ahead to guess: the length that a closed form calls fastest, and none where guessing would lose."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ivgcli.decoding.draft_length import GAIN, LONGEST, MOST_ROWS, RETRY, Cost, DraftLength
from ivgcli.models.streams import Stream


def stream(weights: float, layers: int, device: str = "cpu") -> Stream:
    """Return what a stream of a network of so many float32 weights shows of its cost."""
    parameter = torch.zeros(1)
    network = SimpleNamespace(
        device=torch.device(device),
        layers=layers,
        flops_per_token=int(2 * weights),
        width=32_000,
        model=SimpleNamespace(parameters=lambda: iter([parameter])),
    )
    made: Any = SimpleNamespace(network=network, adapter=None)
    return made


BASE, TUNED = stream(1e9, 30), stream(1e8, 10)


def guided(device: str = "cpu") -> DraftLength:
    """Return the choice for a base and a pair of a tenth of its size."""
    sizes = [(1e9, 30), (1e8, 10), (1e8, 10)]
    base, tuned, reference = (stream(*size, device=device) for size in sizes)
    return DraftLength(None, tuned, [base, reference], follows=True)


def settle(length: DraftLength, agreement: float) -> None:
    """Show so many guesses that the first ones are forgotten."""
    for _ in range(300):
        length.observe(round(100 * agreement), 100)


@pytest.mark.parametrize("agreement", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("rows", [1, 4])
def test_the_length_is_the_one_with_most_tokens_in_a_second(agreement, rows):
    length = guided()
    settle(length, agreement)
    base, guide = Cost.of(BASE.network), Cost.of(TUNED.network)

    def rate(guesses: int) -> float:
        tokens = (1 - agreement ** (guesses + 1)) / (1 - agreement)
        checked = rows * (guesses + 1)
        guessing = (guesses + 1) * guide.seconds(rows)
        return tokens / (base.seconds(checked) + guide.seconds(checked) + guessing)

    best = max(range(LONGEST + 1), key=rate)
    assert rate(best) > GAIN * rate(0)
    assert length.choose(rows) == best


def test_better_guesses_are_made_further_ahead():
    lengths = []
    for agreement in (0.3, 0.6, 0.9, 0.99):
        choice = guided()
        settle(choice, agreement)
        lengths.append(choice.choose(1))
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] == LONGEST


def test_guesses_that_are_hardly_ever_right_are_stopped_and_tried_again_now_and_then():
    length = guided()
    settle(length, 0.02)
    chosen = [length.choose(1) for _ in range(2 * RETRY)]
    assert chosen == 2 * ([0] * (RETRY - 1) + [1])
    settle(length, 0.9)
    assert length.choose(1) > 1


def test_a_guide_as_large_as_the_base_does_not_guess_for_it():
    length = DraftLength(None, stream(1e9, 30), [BASE], follows=False)
    assert [length.choose(1) for _ in range(2 * RETRY)] == [0] * 2 * RETRY


@pytest.mark.parametrize("device", MOST_ROWS)
def test_many_rows_are_decoded_token_by_token_unless_a_number_is_asked_for(device):
    assert guided(device).choose(1) > 0
    assert guided(device).choose(MOST_ROWS[device] + 1) == 0
    assert DraftLength(3, TUNED, [BASE], follows=True).choose(1000) == 3
