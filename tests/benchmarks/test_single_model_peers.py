"""Peers that drive one network at a time draw what `generate()` draws, and ivg does without each idea."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import ours, shapes, turns
from benchmarks.contest import Contestant, Networks, Settings
from benchmarks.cost import counted
from benchmarks.peers import compiled_decode, published_loop
from benchmarks.peers.batched_generate import cbs_i, run_batched
from benchmarks.peers.compiled_decode import decode_static, run_compiled
from benchmarks.peers.continuous_batching import run_continuous
from benchmarks.peers.static_generate import run_static

PROMPTS = ([5, 9, 301, 77, 8, 123, 44, 2, 19, 250, 31], [400, 3, 88], [17, 230, 6, 6, 91, 510, 12])
LENGTH = 9
GREEDY = Settings(samples=2, max_new_tokens=LENGTH, temperature=0.0)


@pytest.fixture(scope="module", params=["tiny", "tiny-gpt2"])
def networks(request: pytest.FixtureRequest) -> Networks:
    return shapes.build_networks(request.param)


@pytest.fixture(scope="module")
def valued() -> Networks:
    return shapes.build_networks("tiny")


def greedy(network: torch.nn.Module, device: str = "cpu") -> list[list[int]]:
    """Decode each prompt alone with the library's own default cache."""
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt], device=device)
        output = network.generate(ids, max_new_tokens=LENGTH, do_sample=False)
        found += [output[0, len(prompt) :].tolist()] * 2
    return found


@pytest.mark.parametrize("runner", [run_static, run_continuous, run_compiled])
def test_greedy_responses_equal_those_of_generate(networks: Networks, runner: Contestant) -> None:
    before = networks.base.config._attn_implementation
    outcome = runner(networks, PROMPTS, "base", GREEDY)
    assert outcome.responses == greedy(networks.base)
    assert outcome.row_tokens == 6 * LENGTH
    assert networks.base.config._attn_implementation == before


@pytest.mark.parametrize("runner", [run_static, run_compiled])
def test_under_guidance_the_three_networks_decode_as_many_tokens_each(
    networks: Networks, runner: Contestant
) -> None:
    with counted(networks.named()) as readings:
        outcome = runner(networks, PROMPTS, "eft-i", GREEDY)
    assert outcome.responses == greedy(networks.base)
    passes = {readings[name].passes for name in ("base", "tuned", "reference")}
    assert passes == {LENGTH}


def test_the_whole_step_of_the_static_decoder_is_one_graph(valued: Networks) -> None:
    torch.compiler.reset()
    found = decode_static(valued.base, PROMPTS, GREEDY, backend="eager")  # fullgraph, or it raises
    assert found == greedy(valued.base)


def test_the_static_decoder_draws_only_the_most_probable_tokens_of_each_row(
    valued: Networks,
) -> None:
    settings = Settings(samples=3, max_new_tokens=LENGTH, temperature=20.0, top_k=2, seed=4)
    rows = decode_static(valued.base, PROMPTS, settings)
    assert len({tuple(row) for row in rows}) > 6
    for number, row in enumerate(rows):
        prompt = PROMPTS[number // 3]
        with torch.no_grad():
            logits = valued.base(input_ids=torch.tensor([[*prompt, *row[:-1]]])).logits[0]
        admitted = logits[len(prompt) - 1 :].topk(2).indices.tolist()
        assert all(token in pair for token, pair in zip(row, admitted, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", ["tiny", "tiny-gpt2"])
def test_the_captured_step_decodes_what_generate_does_on_a_gpu(shape: str) -> None:
    networks = shapes.build_networks(shape, device="cuda")
    found = compiled_decode.decode_static(networks.base, PROMPTS, GREEDY)
    assert found == greedy(networks.base, "cuda")


@pytest.mark.parametrize("runner", [run_static, run_continuous, run_compiled])
def test_peers_without_guidance_say_so(networks: Networks, runner: Contestant) -> None:
    with pytest.raises(NotImplementedError, match="it has no cbs-i"):
        runner(networks, PROMPTS, "cbs-i", GREEDY)


def test_greedy_ivg_mode_of_every_contestant_is_guided_greedy_decoding(valued: Networks) -> None:
    """At temperature 0 all candidates are equal, so the search must return the guided response."""
    settings = Settings(
        beam_width=2, successors=2, chunk_length=4, max_new_tokens=LENGTH, temperature=0.0
    )
    expected = run_batched(valued, PROMPTS, "eft-i", settings).responses
    for runner in (ours.run_ivg, published_loop.run_published, run_batched):
        assert runner(valued, PROMPTS, "ivg", settings).responses == expected
    assert expected != run_batched(valued, PROMPTS, "base", settings).responses


def test_the_value_that_ranks_is_the_classifiers_output_after_the_last_token(
    valued: Networks,
) -> None:
    models = (valued.base, valued.tuned, valued.reference)
    search = {"beam_width": 2, "successors": 2, "chunk_length": 4, "max_new_tokens": LENGTH}
    extra = {"value": valued.value, "weight": 1.0, "seed": 1}
    _, rounds = cbs_i(*models, PROMPTS, **search, **extra)
    for prompt, entries in zip(PROMPTS, rounds, strict=True):
        _, stats = published_loop.cbs_i(*models, valued.tokenizer, prompt, **search, **extra)
        for entry in (*entries, *stats.rounds):
            naive = []
            for row in entry.candidates:
                read = torch.tensor([[*prompt, *row]])
                with torch.no_grad():
                    hidden = valued.value.base_model(input_ids=read).last_hidden_state[0, -1]
                    naive.append(valued.value.score(hidden).item())
            # One float32 network, read padded and alone: a few ulps of outputs near 1.
            assert entry.values == pytest.approx(naive, abs=1e-4)


@pytest.mark.parametrize("mode", ["base", "eft-i", "cbs-i", "ivg"])
@pytest.mark.parametrize("idea", ["rows", "incremental", "packed"])
def test_responses_stay_the_same_without_an_idea(valued: Networks, mode: str, idea: str) -> None:
    settings = Settings(
        samples=2, beam_width=2, successors=2, chunk_length=4, max_new_tokens=LENGTH
    )
    settings = replace(settings, lengths=(LENGTH, 5, 7))
    if idea == "incremental" and mode in ("base", "eft-i"):
        with pytest.raises(NotImplementedError, match="nothing is ranked"):
            ours.run_ivg(valued, PROMPTS, mode, settings, frozenset({idea}))
        return
    whole = ours.run_ivg(valued, PROMPTS, mode, settings)
    assert ours.run_ivg(valued, PROMPTS, mode, settings, frozenset({idea})) == whole
    turns.require_lengths("ivg", whole, mode, settings, 3)


def test_without_an_idea_more_tokens_are_read(valued: Networks) -> None:
    settings = Settings(
        samples=3, beam_width=2, successors=2, chunk_length=3, max_new_tokens=LENGTH
    )

    def read(mode: str, *without: str) -> dict[str, int]:
        with counted(valued.named()) as readings:
            ours.run_ivg(valued, PROMPTS[:1], mode, settings, frozenset(without))
        return {name: reading.tokens for name, reading in readings.items()}

    prompt = len(PROMPTS[0])
    # The last token of a response is drawn without being read.
    assert read("base")["base"] == prompt + 3 * (LENGTH - 1)
    assert read("base", "prefill-once")["base"] == 3 * (prompt + LENGTH - 1)
    # Three rounds of four candidates; their copies share what the beam has read.
    assert read("ivg")["value"] == prompt + 4 * LENGTH
    rounds = sum(prompt + length for length in (3, 6, 9))
    assert read("ivg", "incremental")["value"] == prompt + 4 * rounds


def test_an_idea_that_the_engine_lacks_is_named(valued: Networks, monkeypatch) -> None:
    monkeypatch.setitem(ours.ENGINE_KEYWORDS, "graphs", "no_such_keyword")
    with pytest.raises(NotImplementedError, match="the engine has no keyword no_such_keyword"):
        ours.run_ivg(valued, PROMPTS, "base", GREEDY, frozenset({"graphs"}))


def test_a_response_of_another_length_is_refused(valued: Networks, monkeypatch) -> None:
    settings = Settings(max_new_tokens=LENGTH, lengths=(9, 5, 9))
    monkeypatch.setitem(turns.CONTESTANTS, "ivg", lambda *given: run_batched(*given[:3], GREEDY))
    with pytest.raises(RuntimeError, match=r"ivg: responses of \[9\] tokens where 5, 9 are forced"):
        turns.run_once("ivg", valued, PROMPTS, "base", settings)
