"""The benchmark of guesses: what it forces is what happens, and no response changes."""

from __future__ import annotations

import sys

import pytest

from benchmarks.speculation import arguments, contestants, measure


def test_forced_guesses_are_kept_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 tokens: guesses of 3 that are all right take 3 rounds, those that are all wrong 12."""
    words = "--base tiny --guide tiny --vocabulary 300 --prompt 8 --tokens 12 --speculate 3"
    monkeypatch.setattr(sys, "argv", ["", *words.split(), "--acceptance", "1", "0"])
    found = contestants(arguments())
    truth: dict[int, list[int]] = {}
    for each in found:
        measure(each, 1, truth)
        truth = truth if each.name == "base" else each.tokens
    guided, right, wrong = found[1:]
    assert guided.tokens == right.tokens == wrong.tokens
    assert guided.engine.guessed() is None
    assert (right.engine.guessed().rounds, right.engine.guessed().acceptance) == (3, 1.0)
    assert wrong.engine.guessed().right == 0
    assert wrong.engine.guessed().rounds >= 11  # the last token may need no guess
