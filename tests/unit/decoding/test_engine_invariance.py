"""A response depends on seed, id, sample and recipe: not on its neighbours, the order, the rows, or
on memory running out."""

from __future__ import annotations

import functools
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from ivgcli.decoding.search import Request
from ivgcli.errors import ModelError
from ivgcli.models.network import Network
from ivgcli.models.streams import Stream
from tests.models import PROMPTS, decode, folder, pair, recipe, tokenizer

SAMPLING = {"max_new_tokens": 14, "samples": 2}
GUIDE = {"implicit": pair("llama-tuned", "llama-reference"), "explicit": folder("scalar")}
CHUNK = {"beam_width": 2, "successors": 2, "chunk_length": 3}
BY_TEXT = {"implicit": pair("llama-tuned", "llama-reference"), "explicit": folder("scalar-other")}
MODES: dict[str, dict[str, Any]] = {
    "base": {"mode": "base"},
    "eft-i": {"mode": "eft-i", "guide": GUIDE},
    "eft-e": {"mode": "eft-e", "guide": GUIDE, "token": {"candidates": 3}},
    "cbs-i": {"mode": "cbs-i", "guide": GUIDE, "chunk": CHUNK},
    "ivg": {"mode": "ivg", "guide": GUIDE, "chunk": CHUNK},
    "ivg by text": {"mode": "ivg", "guide": BY_TEXT, "chunk": CHUNK},
}


def plan(name: str, **sampling: Any) -> Any:
    return recipe("llama", **MODES[name], sampling={**SAMPLING, **sampling})


@functools.cache
def calmly(name: str) -> Any:
    """Return what a mode gives when nothing goes wrong."""
    return decode(plan(name), rows=8)


def numbers(run: Any) -> dict[tuple[str, int], tuple]:
    """Return tokens, finish and all numbers of every outcome, numbers rounded to what float32 sums
    keep."""
    return {
        key: (
            tuple(outcome.winner.row.tokens),
            outcome.winner.row.finish,
            outcome.text,
            pytest.approx(outcome.winner.kl, abs=1e-4),
            pytest.approx(outcome.winner.base_logprob, abs=1e-4),
            None if outcome.winner.value is None else pytest.approx(outcome.winner.value, abs=1e-4),
        )
        for key, outcome in run.outcomes.items()
    }


def same(one: Any, other: Any) -> bool:
    ours, theirs = numbers(one), numbers(other)
    return ours.keys() == theirs.keys() and all(ours[key] == plain(theirs[key]) for key in ours)


def plain(entry: tuple) -> tuple:
    return tuple(part.expected if hasattr(part, "expected") else part for part in entry)


@pytest.mark.parametrize("name", MODES)
def test_rows_order_and_neighbours_do_not_change_a_response(name):
    shuffled = random.Random(1)
    for rows in (5, 40):
        again = decode(
            plan(name), rows=rows, order=lambda requests: shuffled.sample(requests, len(requests))
        )
        assert same(calmly(name), again)


@pytest.mark.parametrize("name", ["base", "ivg", "ivg by text"])
def test_a_response_alone_is_the_response_in_company(name):
    together = decode(plan(name), rows=12)
    for sample in (0, 1):
        alone = decode(
            plan(name),
            rows=4,
            order=lambda requests, s=sample: [
                r for r in requests if r.prompt.id == "p3" and r.sample == s
            ],
        )
        assert plain(numbers(alone)["p3", sample]) == numbers(together)["p3", sample]


@pytest.mark.parametrize("name", ["base", "eft-i"])
def test_a_request_with_a_length_of_its_own_ends_there_and_its_neighbours_go_on(name):
    def shortened(requests: list[Request]) -> list[Request]:
        first, *others = requests
        return [replace(first, max_new_tokens=3), *others]

    forever = {"rows": 8, "eos_ids": frozenset()}
    whole, run = decode(plan(name), **forever), decode(plan(name), order=shortened, **forever)
    key = ("p0", 0)
    long, short = whole.outcomes[key], run.outcomes[key].winner.row
    others = [(other, outcome) for other, outcome in whole.outcomes.items() if other != key]
    assert (short.tokens, short.finish) == (long.winner.row.tokens[:3], "length")
    assert {other: run.outcomes[other].winner.row.tokens for other, _ in others} == {
        other: outcome.winner.row.tokens for other, outcome in others
    }


def test_samples_that_start_late_share_the_prompt_that_has_been_read():
    """Four samples of one prompt in four rows of a search each: one prefill, the rest restart from
    a sibling."""
    for name in ("base", "cbs-i", "ivg by text"):
        run = decode(plan(name, samples=4), ["the film opens"], rows=4)
        wide = decode(plan(name, samples=4), ["the film opens"], rows=16)
        assert same(run, wide)
        if name != "ivg by text":
            prompt = len(tokenizer("bytes")("the film opens")["input_ids"])
            assert {network.ledger.prefilled for network in run.assembly.networks.all()} == {prompt}


class Meter:
    """Memory that holds only so many tokens of a pass, of one network or of all.

    Args:
        limit: tokens of a pass that still fit.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        self.failures = 0
        read = Network.read

        def metered(
            network: Network, tokens: torch.Tensor, *arguments: Any, **rest: Any
        ) -> torch.Tensor:
            if tokens.shape[0] > limit:
                self.failures += 1
                raise torch.OutOfMemoryError("out of memory (a test's)")
            return read(network, tokens, *arguments, **rest)

        monkeypatch.setattr(Network, "read", metered)


@pytest.mark.parametrize("name", MODES)
def test_out_of_memory_halves_the_rows_and_changes_no_response(monkeypatch, name):
    # The longest prompt is read alone or with few others, and so is everything that 4 rows need.
    meter = Meter(monkeypatch, 43 if "text" not in name else 60)
    run = decode(plan(name), rows=32)
    assert meter.failures >= 1
    assert run.warnings[0] == "out of memory with 32 rows: going on with 16"
    assert len(run.warnings) == meter.failures
    assert same(calmly(name), run)


@pytest.mark.parametrize("place", ["restart", "copy"])
def test_memory_that_runs_out_while_rows_are_copied_loses_nothing(monkeypatch, place):
    """Admission and ranking both copy rows; no request is forgotten, nor a winner, on the way.

    Memory runs out in the n-th copy of a run, for many n: while a late sample restarts from a
    sibling, and in rankings where some searches go on and others have just been won.
    """
    name, rows = {"restart": ("base", 3), "copy": ("cbs-i", 20)}[place]
    samples = {"restart": 4, "copy": 1}[place]
    calm = decode(plan(name, samples=samples), PROMPTS[:3], rows=4)
    method = getattr(Stream, place)
    for victim in range(0, 24, 3):
        calls: list[int] = []

        def failing(
            stream: Any, targets: Any, sources: Any, victim: int = victim, calls: Any = calls
        ):
            calls.append(0)
            if len(calls) == victim + 1:
                raise torch.OutOfMemoryError("out of memory (a test's)")
            method(stream, targets, sources)

        monkeypatch.setattr(Stream, place, failing)
        run = decode(plan(name, samples=samples), PROMPTS[:3], rows=rows)
        assert bool(run.warnings) == (len(calls) > victim)
        assert same(calm, run)


def test_rows_are_never_halved_below_one_search_while_one_search_fits(monkeypatch):
    """Six rows halve to three, but a search of four still gets its four."""
    calls = []
    read = Network.read

    def metered(
        network: Network, tokens: torch.Tensor, *arguments: Any, **rest: Any
    ) -> torch.Tensor:
        calls.append(0)
        if len(calls) == 20:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"
            )
        return read(network, tokens, *arguments, **rest)

    monkeypatch.setattr(Network, "read", metered)
    run = decode(plan("cbs-i"), rows=6)
    assert run.warnings == ["out of memory with 6 rows: going on with 4"]
    assert same(calmly("cbs-i"), run)


def test_memory_too_small_for_one_search_stops_with_a_sentence(monkeypatch):
    Meter(monkeypatch, 12)
    with pytest.raises(ModelError) as caught:
        decode(plan("cbs-i"), rows=32)
    assert str(caught.value) == (
        "engine.rows: out of memory with 4 rows, and one search needs 4 → "
        "lower beam_width, successors or max_new_tokens, or use a smaller dtype"
    )


def test_another_runtime_error_is_not_taken_for_memory(monkeypatch):
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Network, "read", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        decode(plan("base"))


def poison(
    monkeypatch: pytest.MonkeyPatch, name: str, prompt: str, step: int, number: float
) -> None:
    """Let one network give a number that is not finite for the rows of one prompt, from one
    response length on.

    The number goes into the hidden states of the row, so it also gets into what the row's
    successors would see.
    """
    advance = Stream.keep

    def keep(
        stream: Stream, rows: Any, hidden: torch.Tensor, prompt_read: bool = False, **rest: Any
    ) -> None:
        if stream.network.name == folder(name) and hasattr(stream, "watched"):
            hidden = hidden.clone()
            for place, row in enumerate(rows):
                if stream.watched(row) == prompt and stream.responses_read(row) >= step:
                    hidden[place] = number
                    stream.cache.store[:, :, row, :, stream.origins[row]] = number
        advance(stream, rows, hidden, prompt_read, **rest)

    monkeypatch.setattr(Stream, "keep", keep)


def watch(assembly: Any, engine: Any) -> None:
    for stream in engine.streams:
        stream.watched = lambda row: engine.owner[row]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "network", "number"),
    [
        ("base", "llama", NAN),
        ("base", "llama", INF),
        ("base", "llama", -INF),
        ("eft-i", "llama", NAN),
        ("eft-i", "llama-tuned", NAN),
        ("eft-i", "llama-tuned", INF),
        ("eft-i", "llama-reference", -INF),
        ("eft-e", "scalar", NAN),
        ("cbs-i", "llama-tuned", NAN),
        ("ivg", "scalar", INF),
        ("ivg by text", "scalar-other", NAN),
    ],
)
def test_numbers_that_are_not_finite_fail_their_record_and_no_other(
    monkeypatch, name, network, number
):
    clean = dict(calmly(name).tokens())
    # Both samples have to live long enough to meet the number.
    victim = next(
        f"p{n}"
        for n in range(len(PROMPTS))
        if all(len(clean[f"p{n}", sample]) > 6 for sample in (0, 1))
    )
    poison(monkeypatch, network, victim, 4, number)
    run = decode(plan(name), rows=8, prepare=watch)
    for sample in (0, 1):
        failed = run.outcomes.pop((victim, sample))
        assert failed.winner is None
        assert failed.failure.endswith(
            "gave a number that is not finite → check it; a network may need a wider --dtype"
        )
        assert folder(network) in failed.failure
    expected = {key: outcome for key, outcome in numbers(calmly(name)).items() if key[0] != victim}
    assert {key: plain(outcome) for key, outcome in numbers(run).items()} == expected


def test_later_samples_of_a_prompt_do_not_start_from_a_row_that_has_failed(monkeypatch):
    """The failed row's slot is wiped, so it no longer holds the prompt that it once read."""
    calm = decode(plan("base", samples=4), rows=2)
    victim = next(f"p{n}" for n in range(5) if len(calm.tokens()[f"p{n}", 0]) > 6)
    failed = []
    keep = Stream.keep

    def once(stream: Any, rows: Any, hidden: torch.Tensor, prompt: bool = False) -> None:
        for place, row in enumerate(rows):
            if not failed and stream.watched(row) == victim and stream.responses_read(row) >= 4:
                failed.append(row)
                hidden = hidden.clone()
                hidden[place] = NAN
        keep(stream, rows, hidden, prompt)

    monkeypatch.setattr(Stream, "keep", once)
    run = decode(plan("base", samples=4), rows=2, prepare=watch)
    lost = [key for key, outcome in run.outcomes.items() if outcome.winner is None]
    assert [key[0] for key in lost] == [victim]
    for key in lost:
        del run.outcomes[key]
    expected = {key: outcome for key, outcome in numbers(calm).items() if key not in lost}
    assert {key: plain(outcome) for key, outcome in numbers(run).items()} == expected


def test_a_reward_that_is_not_a_number_fails_its_record_and_names_the_function():
    entry = {"explicit": "tests.toys:undefined_for_the_second"}
    run = decode(recipe("llama", "cbs-e", guide=entry, chunk=CHUNK, sampling={"max_new_tokens": 8}))
    assert run.outcomes["p1", 0].failure.startswith(
        "tests.toys:undefined_for_the_second: gave a number that is not finite"
    )
    assert all(run.outcomes[f"p{n}", 0].winner is not None for n in (0, 2, 3, 4))


def test_a_prompt_longer_than_the_context_fails_its_record_and_no_other():
    prompts = [PROMPTS[0], "xyz " * 60, PROMPTS[2]]
    run = decode(plan("ivg"), prompts, rows=8)
    clean = decode(plan("ivg"), [PROMPTS[0], "a", PROMPTS[2]], rows=8)
    for sample in (0, 1):
        failure = run.outcomes.pop(("p1", sample)).failure
        assert (
            failure == f"the prompt has 240 tokens for {folder('llama')}, whose context is 96"
            " → shorten it"
        )
        clean.outcomes.pop(("p1", sample))
    assert same(clean, run)


def test_a_prompt_that_almost_fills_the_context_gets_what_is_left():
    run = decode(
        recipe("llama", sampling={"max_new_tokens": 50, "temperature": 0.0}),
        ["xyz " * 22],
        eos_ids=frozenset(),
    )
    won = run.outcomes["p0", 0].winner
    assert len(won.row.prompt_ids) == 88
    assert (len(won.row.tokens), won.row.finish) == (8, "length")


def test_a_text_that_outgrows_the_context_of_a_scorer_fails_its_record_and_no_other():
    """The scorer's own tokens are not the base's: the response may need more of them than there is
    room."""
    prompts = ["a", "xyz " * 20, "the film"]
    long = recipe(
        "llama",
        "cbs-e",
        guide={"explicit": folder("scalar-other")},
        chunk=CHUNK,
        sampling={"max_new_tokens": 14},
    )
    run = decode(long, prompts, rows=8)
    assert run.outcomes["p1", 0].failure == (
        f"{folder('scalar-other')}: prompt and response are longer than its context of 96 tokens → "
        "shorten the prompt or lower --max-new-tokens"
    )
    assert run.outcomes["p0", 0].winner is not None
    assert run.outcomes["p2", 0].winner is not None
