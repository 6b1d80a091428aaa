"""Any history of reads, peeks, commits, copies, restarts and rewinds ends where a full forward
ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ivgcli.models.loading import Networks
from ivgcli.models.prompts import PromptFormat
from ivgcli.models.readings import Reading, read_all
from ivgcli.models.streams import Stream
from ivgcli.recipes import ModelSpec
from tests import oracles
from tests.models import CONTEXT, folder, plain

ROWS = 7
CLOSE = 2e-4
"""As in test_streams: float32, other order of sums."""


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_any_history_equals_full_forwards(family, seed):
    random = np.random.default_rng(seed)
    network, _ = Networks("cpu").language_model(ModelSpec(model=folder(family)))
    stream = Stream(network, PromptFormat(network.tokenizer), ROWS)
    texts: list[list[int] | None] = [None] * ROWS
    prompts: list[list[int] | None] = [None] * ROWS

    def tokens(count: int) -> list[int]:
        return random.integers(5, 300, count).tolist()

    def some(filled: bool, room: int = 0) -> list[int]:
        able = [row for row in range(ROWS) if (texts[row] is not None) == filled]
        able = [row for row in able if not filled or len(texts[row]) + room < CONTEXT]
        return (
            sorted(random.permutation(able)[: random.integers(1, len(able) + 1)].tolist())
            if able
            else []
        )

    def prefill() -> None:
        rows = some(False) or [int(random.integers(ROWS))]
        for row in rows:
            prompts[row] = tokens(int(random.integers(1, 12)))
            texts[row] = list(prompts[row])
        read_all([Reading(stream, rows, [prompts[row] for row in rows], prompt=True)])

    def extend() -> None:
        rows = some(True, 9)
        chunks = [tokens(int(random.integers(1, random.choice([2, 9])))) for _ in rows]
        read_all([Reading(stream, rows, chunks)])
        for row, chunk in zip(rows, chunks, strict=True):
            texts[row] += chunk

    def peek() -> None:
        rows = some(True, 4)
        if not rows:
            return
        tails = torch.tensor([[tokens(3) for _ in range(2)] for _ in rows])
        hidden = stream.peek(rows, tails).hidden
        place = int(random.integers(len(rows)))
        ours = network.outputs(hidden[place, 1]).double().numpy()
        theirs = oracles.logits(plain(family), texts[rows[place]] + tails[place, 1].tolist())[-3:]
        assert np.abs(ours - theirs).max() < CLOSE

    def commit() -> None:
        rows = some(True, 2)
        if not rows:
            return
        candidates = torch.tensor([tokens(4) for _ in rows])
        picks = random.integers(-1, 4, len(rows)).tolist()
        stream.peek(rows, candidates[:, :, None]).commit(picks)
        for place, (row, choice) in enumerate(zip(rows, picks, strict=True)):
            if choice >= 0:
                texts[row].append(int(candidates[place, choice]))

    def restart() -> None:
        whole = [row for row in some(True) if stream.intact[row]]
        if whole:
            source = whole[0]
            targets = random.permutation(ROWS)[:3].tolist()
            stream.restart(targets, source)
            for row in targets:
                prompts[row] = list(prompts[source])
                texts[row] = list(prompts[source])

    def copy() -> None:
        for source in some(True):
            kin = [
                row
                for row in range(ROWS)
                if row != source and prompts[row] == prompts[source] is not None
            ]
            if kin:
                stream.copy(kin, [source] * len(kin))
                for row in kin:
                    texts[row] = list(texts[source])
                return

    def rewind() -> None:
        for row in some(True, 3)[:1]:
            length = int(random.integers(0, len(texts[row])))
            stream.rewind(row, length)
            fresh = tokens(2)
            read_all([Reading(stream, [row], [fresh])])
            texts[row] = texts[row][:length] + fresh
            # What a retokenised text may do to its row: nothing restarts from it, but its siblings
            # become copies of it.
            assert stream.intact[row] or length < len(prompts[row])

    prefill()
    for action in random.choice([prefill, extend, peek, commit, restart, copy, rewind], 40):
        action()
        for row in range(ROWS):
            if texts[row] is not None and random.random() < 0.3:
                ours = stream.outputs([row])[0].double().numpy()
                assert np.abs(ours - oracles.logits(plain(family), texts[row])[-1]).max() < CLOSE
