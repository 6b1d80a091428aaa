"""Handing out work: everything once, fair shares, and no idle worker while there is work."""

from __future__ import annotations

import random

import pytest

from ivgcli.workers.dispenser import Dispenser


def test_units_go_out_in_order_and_each_once():
    dispenser = Dispenser([4, 2, 9, 7], workers=2)
    assert dispenser.take(0, 5) == [4, 2]  # its fair share of four
    assert dispenser.take(1, 1) == [9]
    assert dispenser.take(1, 5) == [7]
    assert dispenser.take(0, 5) == []
    assert [dispenser.finish(unit) for unit in (2, 9, 7, 4)] == [True] * 4
    assert dispenser.over


def test_a_share_grows_as_others_are_lost():
    dispenser = Dispenser(range(9), workers=3)
    assert dispenser.take(0, 9) == [0, 1, 2]
    assert dispenser.take(1, 9) == [3, 4, 5]
    assert dispenser.take(0, 9) == []
    dispenser.finish(4)
    assert dispenser.lose(1) == 2
    assert dispenser.take(0, 9) == [3]  # what was begun comes first; four of eight are its share
    assert dispenser.lose(2) == 0  # it has never come
    assert dispenser.take(0, 9) == [5, 6, 7, 8]


def test_who_holds_nothing_gets_something():
    dispenser = Dispenser(range(3), workers=8, portions=4)
    assert [dispenser.take(worker, 9) for worker in (5, 1, 6)] == [[0], [1], [2]]
    assert dispenser.take(0, 9) == []
    dispenser.lose(1)
    assert dispenser.take(0, 9) == [1]


def test_a_unit_finished_by_two_counts_once():
    dispenser = Dispenser(range(2), workers=2)
    assert dispenser.take(0, 1) == [0]
    dispenser.lose(0)
    assert dispenser.finish(0)  # it was not dead, and nobody has begun it again
    assert dispenser.take(1, 5) == [1]
    assert not dispenser.finish(0)
    assert dispenser.finish(1)
    assert dispenser.over


def test_portions_become_smaller_towards_the_end():
    dispenser = Dispenser(range(100), workers=2, portions=2)
    sizes = []
    while taken := dispenser.take(len(sizes) % 2, 99):
        sizes.append(len(taken))
        for unit in taken:
            dispenser.finish(unit)
    assert sizes[:4] == [25, 19, 14, 11]
    assert sizes[-3:] == [1, 1, 1]
    assert sum(sizes) == 100


@pytest.mark.parametrize("seed", range(20))
def test_no_worker_idles_while_work_waits_whatever_the_lengths_and_deaths(seed):
    """Each worker does R units side by side, a step at a time, and asks for more before every step.

    List scheduling on W·R places takes at most Σ/(W·R) + max steps (Graham 1966); after a death, what
    was begun costs at most another longest unit on the places that are left.
    """
    draw = random.Random(seed)
    workers, rows, count = draw.randint(1, 5), draw.randint(1, 6), draw.randint(1, 120)
    lengths = [1 + int(draw.expovariate(0.05)) for _ in range(count)]
    doomed = {draw.randrange(1, workers): draw.randint(1, 40)} if workers > 1 and seed % 2 else {}
    dispenser = Dispenser(range(count), workers)
    held: dict[int, dict[int, int]] = {worker: {} for worker in range(workers)}
    finished: list[int] = []
    steps = 0
    while not dispenser.over:
        for worker in [worker for worker in held if doomed.get(worker, -1) == steps]:
            assert dispenser.lose(worker) == len(held.pop(worker))
        for worker, under_way in held.items():
            if len(under_way) < rows:
                for unit in dispenser.take(worker, rows - len(under_way)):
                    under_way[unit] = lengths[unit]
        for under_way in held.values():
            for unit in list(under_way):
                under_way[unit] -= 1
                if not under_way[unit]:
                    del under_way[unit]
                    assert dispenser.finish(unit)
                    finished.append(unit)
        steps += 1
    assert sorted(finished) == list(range(count))
    places, longest = len(held) * rows, max(lengths)
    assert steps <= sum(lengths) / places + longest * (2 if doomed else 1) + len(doomed) * 40
