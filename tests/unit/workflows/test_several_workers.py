"""The same responses from several processes as from one, in every mode; and workers that are busy to the end."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ivgcli import console
from ivgcli.cli import crewing
from ivgcli.decoding.search import Request
from ivgcli.recipes import MODES
from ivgcli.workers.dispenser import Dispenser
from ivgcli.workers.team import Team
from ivgcli.workflows.shares import SharedRequests
from tests.models import CONTEXT, PROMPTS, engine_of, folder, pair, prompted, recipe
from tests.shared_work import task

COUNT = 2
"""Of processes; loading libraries is what takes time here."""

ENGINES = 3
"""In lockstep, in one process."""

GUIDE = {"implicit": pair("llama-tuned", "llama-reference"), "explicit": folder("scalar")}
ACROSS = {"implicit": pair("llama-other", "llama-other-reference")}
MEASURED = ("value", "base_logprob", "kl", "reward")
SAMPLING = {"max_new_tokens": 10, "samples": 2}
ASKED = [f"{prompt} {again}" for again in ("once", "twice") for prompt in PROMPTS[:4]]


def plan() -> list[dict[str, Any]]:
    """Return one entry for each mode, for best-of-N and for drawing pairs."""
    shared = {"base": folder("llama"), "sampling": SAMPLING, "engine": {"rows": 8}}
    chunk = {"beam_width": 2, "successors": 2, "chunk_length": 4}
    entries = [("generate", {"mode": mode, "guide": GUIDE, "chunk": chunk}) for mode in MODES]
    entries += [
        ("generate", {"mode": "eft-i", "guide": ACROSS}),
        ("bon", {"by": "explicit", "guide": GUIDE, "best_of": 3}),
        ("synthesize", {"reward": "tests.toys:vowels", "responses": 4, "sampling": {"max_new_tokens": 10}}),
    ]  # fmt: skip
    return [
        {"workflow": name, "recipe": {**shared, **keys}, "prompts": ASKED} for name, keys in entries
    ]


class Gathered:
    """A writer that keeps records in the order of the input, whatever finishes a unit."""

    def __init__(self) -> None:
        self.done: set[Any] = set()
        self.records: dict[tuple[str, int], Mapping[str, Any]] = {}

    def write(self, given: Any) -> None:
        for record in given if isinstance(given, list) else [given]:
            key = (record["id"], record["sample"])
            assert key not in self.records
            self.records[key] = json.loads(json.dumps(record))


@contextlib.contextmanager
def processes(place: Path) -> Iterator[None]:
    """Start the workers, and see that they end well."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.shared_work", str(place), str(number)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )
        for number in range(COUNT)
    ]
    try:
        yield
        assert [each.wait(timeout=60) for each in started] == [0] * COUNT
    finally:
        for each in started:
            each.kill()
            each.wait()


def test_every_mode_gives_what_one_process_gives(tmp_path):
    entries = plan()
    (tmp_path / "plan.json").write_text(json.dumps(entries))
    with processes(tmp_path):
        for index, entry in enumerate(entries):
            alone = Gathered()
            expected = task(entry)(alone)
            pairs = entry["workflow"] == "synthesize"
            ids = [f"p{place}" for place in range(len(ASKED))]
            keys = ids if pairs else [(each, sample) for each in ids for sample in (0, 1)]

            def opened(port: int, token: str, index: int = index) -> Mapping[str, str]:
                partial = tmp_path / "partial"
                partial.write_text(f"{port} {token}")
                partial.rename(tmp_path / f"{index}.leader")
                return {}

            together = Gathered()
            summary = crewing.decode(
                Team("a run", [], others=COUNT, opened=opened),
                keys,
                lambda given, pairs=pairs: (
                    given[0]["id"] if pairs else (given["id"], given["sample"])
                ),
                together,  # type: ignore[arg-type]
                console.Progress(len(keys), quiet=True),
            )
            assert together.records.keys() == alone.records.keys()
            for key, record in alone.records.items():
                other = together.records[key]
                # Sums of floats differ by what other rows beside them leave, as with another --rows.
                for name in MEASURED:
                    if record.get(name) is None:
                        continue
                    assert other[name] == pytest.approx(record[name], rel=1e-5, abs=2e-5)
                blank = {name: None for name in MEASURED if record.get(name) is not None}
                assert {**other, **blank} == {**record, **blank}, (entry["recipe"], key)
            assert (summary.records, summary.tokens) == (expected.records, expected.tokens)
            assert len(summary.notes) == len(expected.notes)
            assert sum(each.units for each in summary.workers) == len(keys)


# ------------------------------------------------------------------------------ busy to the end


class Lockstep:
    """Engines that take one step each in turn, as GPUs of one speed would."""

    def __init__(self, count: int) -> None:
        self.turns = [threading.Semaphore(0) for _ in range(count)]
        self.back = threading.Semaphore(0)
        self.over = [False] * count

    def run(self, number: int, work: Any) -> None:
        self.turns[number].acquire()
        work(number)
        self.over[number] = True
        self.back.release()

    def step(self, number: int) -> None:
        self.back.release()
        self.turns[number].acquire()


class Told:
    """A share straight from a dispenser."""

    def __init__(self, dispenser: Dispenser, number: int) -> None:
        self.dispenser, self.number = dispenser, number

    def take(self, room: int, wait: bool) -> list[int] | None:
        return None if self.dispenser.over else self.dispenser.take(self.number, room)

    def report(self, tokens: int, under_way: float) -> None:
        pass


def idle_share(dynamic: bool) -> tuple[float, list[int]]:
    """Return the share of steps in which a worker had nothing to do, and the tokens that each drew.

    A prompt near the network's context leaves room for few tokens, a short one for many.
    """
    lengths = [CONTEXT - 4 - 3 * index for index in range(24)]
    rows = 2
    requests = [Request(each) for each in prompted(["~" * length for length in lengths])]
    dispenser = Dispenser(range(len(requests)), ENGINES)
    lockstep = Lockstep(ENGINES)
    tokens, busy = [0] * ENGINES, [0] * ENGINES

    def work(number: int) -> None:
        def stepped() -> None:
            busy[number] += bool(engine.searches)
            lockstep.step(number)

        sampling = {"max_new_tokens": CONTEXT}
        _, engine = engine_of(
            recipe("llama", sampling=sampling), rows, stepped=stepped, eos_ids=frozenset()
        )
        third = len(requests) // ENGINES
        mine = requests[number * third : (number + 1) * third]
        supply = SharedRequests(Told(dispenser, number), requests, 1) if dynamic else mine
        for outcome in engine.run(supply):
            assert outcome.failure is None
            tokens[number] += len(outcome.winner.row.tokens)
            dispenser.finish(requests.index(outcome.request))

    threads = [
        threading.Thread(target=lockstep.run, args=(number, work)) for number in range(ENGINES)
    ]
    for thread in threads:
        thread.start()
    rounds = 0
    while not all(lockstep.over):
        for number in range(ENGINES):
            if not lockstep.over[number]:
                lockstep.turns[number].release()
                lockstep.back.acquire()
        rounds += 1
    for thread in threads:
        thread.join()
    return 1 - sum(busy) / (ENGINES * rounds), tokens


def test_uneven_prompts_keep_all_workers_busy_to_the_end():
    """Handed out as there is room, idle steps are those of the last responses; by thirds, a third waits for another."""
    shared, ours = idle_share(dynamic=True)
    fixed, theirs = idle_share(dynamic=False)
    assert sum(ours) == sum(theirs)
    assert sum(ours) == sum(range(4, 4 + 3 * 24, 3))  # as the lengths leave room
    assert max(theirs) > 4 * min(theirs)
    assert max(ours) < 1.5 * min(ours)  # the longest come last, which is the worst order
    print(shared, fixed)
    assert shared < 0.15 < 0.35 < fixed
