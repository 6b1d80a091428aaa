"""Selection at the end of a chunk, by cases worked out by hand and by an independent rule."""

from __future__ import annotations

import numpy as np
import pytest

from ivgcli.decoding.beams import Candidate, select, select_published


def candidates(*given: tuple[float, bool], scores: list[float] | None = None) -> list[Candidate]:
    """Return candidates of (value, finished), numbered in order."""
    return [
        Candidate(number, value, value if scores is None else scores[number], finished)
        for number, (value, finished) in enumerate(given)
    ]


def test_the_best_live_candidates_go_on_best_first():
    assert select(candidates((1, False), (3, False), (2, False), (0, False)), 2, []) == (
        [1, 2],
        [],
        False,
    )


def test_finished_candidates_leave_for_the_pool_and_do_not_crowd_the_beam():
    assert select(candidates((9, True), (1, False), (2, False), (0, False)), 2, []) == (
        [2, 1],
        [0],
        False,
    )
    assert select(candidates((9, True), (1, False), (8, True), (0, False)), 2, []) == (
        [1, 3],
        [0, 2],
        True,
    )


def test_ties_go_to_the_lower_number():
    assert select(candidates((1, False), (1, False), (1, False)), 2, []).parents == [0, 1]
    assert select_published(candidates((1, True), (1, False), (1, False)), 2).parents == [0, 1]


def test_a_full_pool_that_no_live_candidate_beats_ends_the_search():
    assert select(candidates((2, False), (1, False)), 2, [3.0, 2.0]).over, (
        "a tie counts as not beaten"
    )
    assert not select(candidates((2.1, False), (1, False)), 2, [3.0, 2.0]).over, (
        "one could still enter the best two"
    )
    assert not select(candidates((0, False)), 2, [3.0]).over, "the pool is not full"


def test_a_search_without_live_candidates_is_over():
    assert select(candidates((1, True), (0, True)), 2, []) == ([], [0, 1], True)


def test_only_the_best_of_the_pool_count():
    assert select(candidates((5, False)), 1, [1.0, 9.0, 2.0]).over


def test_scores_rank_the_beam_and_values_decide_when_to_stop():
    """With `score: advantage` the candidate that gained most goes on, but finished values compare
    with values."""
    found = candidates((4, False), (3, False), (2, False), scores=[0.0, 2.0, 1.0])
    assert select(found, 2, []).parents == [1, 2]
    assert select(found, 2, [3.5, 3.5]).over, (
        "3 and 2 go on, both worse than the pool; 4 does not go on"
    )


def test_published_selection_lets_finished_copies_fill_the_beam_and_stop():
    """Field study §1.3: K copies of one finished best hypothesis end the search though another
    could still win."""
    found = candidates((5, True), (5, True), (4.9, False), (4.8, False))
    assert select_published(found, 2) == ([0, 1], [], True)
    assert select(found[1:], 2, []) == ([2, 3], [1], False), (
        "a finished one is there once, and both live ones go on"
    )


@pytest.mark.parametrize("seed", range(20))
def test_selection_equals_the_rule_in_words(seed):
    random = np.random.default_rng(seed)
    for _ in range(50):
        count, width = int(random.integers(1, 9)), int(random.integers(1, 5))
        values = random.integers(0, 5, count).astype(float)
        finished = random.random(count) < 0.4
        pool = random.integers(0, 5, random.integers(0, 4)).astype(float).tolist()
        chosen = select(candidates(*zip(values, finished, strict=True)), width, pool)
        alive = [n for n in range(count) if not finished[n]]
        best: list[int] = []
        while alive and len(best) < width:
            best.append(max(alive, key=lambda n: (values[n], -n)))
            alive.remove(best[-1])
        everyone = sorted(pool + [v for v, done in zip(values, finished, strict=True) if done])[
            ::-1
        ]
        hopeless = len(everyone) >= width and all(values[n] <= everyone[width - 1] for n in best)
        assert chosen.parents == best
        assert chosen.pooled == [n for n in range(count) if finished[n]]
        assert chosen.over == (not best or hopeless)
