"""Several tokens without the host: the same responses as one step at a time, and nothing that a GPU would wait for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from ivgcli.decoding import burst as burst_module
from ivgcli.decoding import sampling as sampling_module
from ivgcli.decoding.burst import STEPS, Burst
from tests.models import PROMPTS, Run, decode, folder, pair, recipe

GUIDE = {"implicit": pair("llama-tuned", "llama-reference"), "explicit": folder("scalar")}
PERMUTED = {"implicit": pair("llama-permuted", "llama-superset")}
SHARED = {"implicit": {"model": folder("llama"), "tuned": {"system": "be kind"}, "reference": {}}}
SEVERAL = {
    "implicit": [
        pair("llama-tuned", "llama-reference", weight=0.7),
        pair("llama-reference", "llama", weight=-0.4),
    ]
}


def plan(mode: str = "base", base: str = "llama", guide: Any = None, **sections: Any) -> Any:
    sampling = {"max_new_tokens": 40, "samples": 2, **sections.pop("sampling", {})}
    return recipe(base, mode, guide=guide or GUIDE, sampling=sampling, **sections)


CASES = {
    "base": plan(),
    "gpt2": plan(base="gpt2"),
    "a window of positions": plan(base="mistral"),
    "greedy": plan("eft-i", sampling={"temperature": 0.0}),
    "a nucleus": plan("eft-i", sampling={"temperature": 0.8, "top_k": 40, "top_p": 0.9}),
    "warped before": plan(
        "eft-i", sampling={"top_p": 0.9, "temperature": 1.2}, token={"warp": "before"}
    ),
    "weights": plan("eft-i", guide=SEVERAL, token={"weight": 0.5}),
    "another order of ids": plan("eft-i", guide=PERMUTED),
    "stop strings": plan("eft-i", sampling={"stop": ["e", "film"]}),
    "one token": plan("eft-i", sampling={"max_new_tokens": 1}),
    "cbs-i": plan("cbs-i", chunk={"chunk_length": 5}),
    "cbs-e": plan("cbs-e", chunk={"chunk_length": 20}),
    "ivg": plan("ivg", chunk={"beam_width": 3, "successors": 2, "chunk_length": 3}),
    "eft-i+cbs-i": plan("eft-i+cbs-i"),
}


@pytest.mark.parametrize("name", CASES)
def test_bursts_draw_what_single_steps_draw(name: str) -> None:
    """Log-probabilities agree to 1e-4: 40 tokens, each summed in another order in float32."""
    alone, ahead = (decode(CASES[name], PROMPTS[:3], rows=7, graphs=each) for each in ("off", "on"))
    assert ahead.engine.stepper.burst is not None
    assert ahead.tokens() == alone.tokens()
    for key, expected in alone.outcomes.items():
        found = ahead.outcomes[key]
        assert (found.text, found.winner.row.finish) == (expected.text, expected.winner.row.finish)
        assert found.spent == expected.spent
        for number in ("kl", "base_logprob", "value"):
            wanted = getattr(expected.winner, number)
            assert getattr(found.winner, number) == pytest.approx(wanted, abs=1e-4), number


@pytest.mark.parametrize(
    ("mode", "token"),
    [("eft-e", {}), ("eft-i", {"candidates": 5}), ("eft-i", {"every": 2})],
    ids=str,
)
def test_other_guidance_takes_single_steps(mode: str, token: dict[str, Any]) -> None:
    run = decode(plan(mode, token=token), PROMPTS[:1], graphs="on")
    assert run.engine.stepper.burst is None


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of lanes of every burst."""
    lanes: list[int] = []
    draw = Burst.draw

    def counting(burst: Burst, given: Any) -> Any:
        lanes.append(len(given))
        return draw(burst, given)

    monkeypatch.setattr(Burst, "draw", counting)
    return lanes


def test_the_host_looks_once_in_sixteen_tokens(looks: list[int]) -> None:
    """The first token comes from the prompt's last state; the other 64 in four bursts."""
    forced = plan("eft-i", sampling={"max_new_tokens": 1 + 4 * STEPS, "samples": 1})
    run = decode(forced, rows=8, graphs="on", eos_ids=frozenset())
    assert looks == [len(PROMPTS)] * 4
    assert run.network("llama").ledger.passes == 1 + 4 * STEPS


def test_chunks_end_together_and_bursts_with_them(looks: list[int]) -> None:
    """Chunks of 5 in responses of 20: the first begins with an ordinary step, and all take one burst."""
    forced = plan("cbs-i", sampling={"max_new_tokens": 20, "samples": 1}, chunk={"chunk_length": 5})
    decode(forced, rows=64, graphs="on", eos_ids=frozenset())
    assert looks == [4 * len(PROMPTS)] * 4


class Watch(TorchDispatchMode):
    """Notes the operators that make a host wait for its device, or that give results of unknown shape."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "_to_copy.cpu")

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        name = func.overloadpacket.__name__
        if any(name.startswith(each) for each in self.waiting):
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "name", ["base", "gpt2", "a window of positions", "a nucleus", "warped before", "weights",
             "another order of ids"]
)  # fmt: skip
def test_a_step_asks_its_device_nothing_and_keeps_its_addresses(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What could not be captured as a graph would be seen here, without a GPU."""
    watch = Watch()
    advance = Burst._advance
    places: set[tuple[int, ...]] = set()

    def watched(burst: Burst, table: Any) -> None:
        with watch:
            advance(burst, table)
        kept = (table.inputs, table.results, table.trouble, *table.stores)
        places.add(tuple(each.data_ptr() for each in kept))

    monkeypatch.setattr(Burst, "_advance", watched)
    monkeypatch.setattr(burst_module, "SIZES", (16,))
    # GPT-2 looks for padding among its tokens, but not while a stream is captured.
    quiet = "warn_if_padding_and_no_attention_mask"
    monkeypatch.setattr(transformers.PreTrainedModel, quiet, lambda *_: None)
    sampling = CASES[name].sampling.model_copy(update={"max_new_tokens": 4})
    short = CASES[name].model_copy(update={"sampling": sampling})
    decode(short, PROMPTS[:1], rows=16, graphs="on", eos_ids=frozenset())
    assert watch.count > 100
    assert not watch.seen
    assert len(places) == 1


def test_a_nucleus_beyond_the_head_is_left_to_single_steps(
    monkeypatch: pytest.MonkeyPatch, looks: list[int]
) -> None:
    monkeypatch.setattr(sampling_module, "HEAD", 8)
    wide = plan("eft-i", sampling={"top_p": 0.95, "max_new_tokens": 40})
    alone, ahead = (decode(wide, rows=12, graphs=each) for each in ("off", "on"))
    assert ahead.tokens() == alone.tokens()
    longest = max(len(tokens) for tokens in ahead.tokens().values())
    # After a burst that met one, sixteen single steps go by before the next is tried.
    assert 1 <= len(looks) <= 1 + longest // STEPS


def test_numbers_that_are_not_finite_fail_the_same_records() -> None:
    """The tuned model fails on one token: lanes without it stand beside in the same burst, and go on."""
    calm = decode(plan("eft-i"), rows=12).tokens()
    read = [set(tokens[:-1]) for tokens in calm.values()]
    token = next(t for t in set().union(*read) if 1 < sum(t in each for each in read) < 8)

    def poisoned(assembly: Any, engine: Any) -> None:
        tuned = next(n for n in assembly.networks.all() if n.name == folder("llama-tuned"))
        tuned.model.get_input_embeddings().weight.data[token] = torch.nan

    runs = [decode(plan("eft-i"), rows=12, graphs=each, prepare=poisoned) for each in ("off", "on")]
    alone, ahead = ({key: done.failure for key, done in run.outcomes.items()} for run in runs)
    assert alone == ahead
    for key, failure in ahead.items():
        said = failure is not None and "gave a number that is not finite" in failure
        assert said == (token in calm[key][:-1])


def test_what_a_burst_reads_behind_an_end_fails_nobody() -> None:
    """The tuned model fails on EOS, which single steps never read; bursts go on behind it until they are over."""

    def poisoned(assembly: Any, engine: Any) -> None:
        tuned = next(n for n in assembly.networks.all() if n.name == folder("llama-tuned"))
        for token in assembly.eos_ids:
            tuned.model.get_input_embeddings().weight.data[token] = torch.nan

    runs = [decode(plan("eft-i"), rows=12, graphs=each, prepare=poisoned) for each in ("off", "on")]
    assert {done.failure for run in runs for done in run.outcomes.values()} == {None}
    assert runs[0].tokens() == runs[1].tokens()


def test_a_cache_that_grows_gets_new_tables() -> None:
    """Two rows, and prompts that grow longer and longer."""
    prompts = ["a film", "the film opens with it and it " * 2, "in the sea of the film " * 5]
    runs = [decode(plan(), prompts, rows=2, graphs=each) for each in ("off", "on")]
    assert runs[0].tokens() == runs[1].tokens()


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let memory run out in the third step of the second burst."""
    advance, calls = Burst._advance, [0]

    def failing(burst: Burst, table: Any) -> None:
        calls[0] += 1
        if calls[0] == STEPS + 3:
            raise torch.OutOfMemoryError("out of memory")
        advance(burst, table)

    monkeypatch.setattr(Burst, "_advance", failing)
    return


@pytest.mark.usefixtures("scarce")
def test_memory_that_runs_out_in_a_burst_halves_the_rows() -> None:
    run: Run = decode(plan(), rows=8, graphs="on")
    assert run.warnings == ["out of memory with 8 rows: going on with 4"]
    assert run.tokens() == decode(plan(), rows=8, graphs="off").tokens()
