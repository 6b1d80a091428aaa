"""The peers compute what they claim, so that a ratio between them and ivg compares equal work."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel, TopPLogitsWarper

from benchmarks import bench, shapes, turns
from benchmarks.contest import Contestant, Networks, Outcome, Settings
from benchmarks.cost import arithmetic, counted
from benchmarks.peers import batched_generate, published_loop

PROMPTS = ([5, 9, 301, 77, 8, 123, 44, 2, 19, 250, 31], [400, 3, 88], [17, 230, 6, 6, 91, 510, 12])
"""Of different lengths, so that a padded batch has something to get wrong."""
LENGTH = 11
SAME = 1e-4
"""Nats between two sums of float32 log-probabilities in another order: a dozen ulps of sums near
100, far below what one wrongly placed token would make."""


@pytest.fixture(scope="module", params=["tiny", "tiny-gpt2"])
def networks(request: pytest.FixtureRequest) -> Networks:
    return shapes.build_networks(request.param)


def naive_logprob(
    network: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]
) -> float:
    """Sum the response's log-probabilities, one full forward of one row per token, no cache."""
    total = 0.0
    for position, token in enumerate(response):
        read = torch.tensor([[*prompt, *response[:position]]])
        with torch.no_grad():
            logits = network(input_ids=read).logits[0, -1].double()
        total += (logits[token] - logits.logsumexp(-1)).item()
    return total


def naive_value(networks: Networks, prompt: Sequence[int], response: Sequence[int]) -> float:
    return naive_logprob(networks.tuned, prompt, response) - naive_logprob(
        networks.reference, prompt, response
    )


def naive_greedy(networks: Networks, prompt: Sequence[int], weight: float) -> list[int]:
    """Take the argmax of base + weight · (tuned − reference), by full forwards only."""
    ids = list(prompt)
    for _ in range(LENGTH):
        read = torch.tensor([ids])
        with torch.no_grad():
            base, tuned, reference = (
                network(input_ids=read).logits[0, -1].double().log_softmax(-1)
                for network in (networks.base, networks.tuned, networks.reference)
            )
        ids.append(int((base + weight * (tuned - reference)).argmax()))
    return ids[len(prompt) :]


def three(networks: Networks) -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel]:
    return networks.base, networks.tuned, networks.reference


@pytest.mark.parametrize("weight", [0.0, 1.0, -2.5])
def test_greedy_guidance_of_both_peers_equals_a_naive_loop(
    networks: Networks, weight: float
) -> None:
    naive = [naive_greedy(networks, prompt, weight) for prompt in PROMPTS]
    greedy = {"weight": weight, "max_new_tokens": LENGTH, "temperature": 0.0}
    published = [published_loop.eft_i(*three(networks), prompt, **greedy)[0] for prompt in PROMPTS]
    batched = batched_generate.eft_i(*three(networks), PROMPTS, samples=2, **greedy)
    assert published == naive
    assert batched == [response for response in naive for _ in range(2)]


def test_guidance_changes_the_greedy_response(networks: Networks) -> None:
    """Without this the test above could pass with guides that are never read."""
    assert naive_greedy(networks, PROMPTS[0], 1.0) != naive_greedy(networks, PROMPTS[0], 0.0)


def test_base_equal_to_reference_samples_the_tuned_network(networks: Networks) -> None:
    tuned, reference = networks.tuned, networks.reference
    settings = {"max_new_tokens": LENGTH, "seed": 3}
    guided, _ = published_loop.eft_i(reference, tuned, reference, PROMPTS[0], **settings)
    direct, _ = published_loop.plain(tuned, PROMPTS[0], **settings)
    assert guided == direct


def test_published_values_equal_naive_teacher_forced_sums(networks: Networks) -> None:
    response, stats = published_loop.cbs_i(
        *three(networks),
        networks.tokenizer,
        PROMPTS[0],
        beam_width=2,
        successors=2,
        chunk_length=4,
        max_new_tokens=LENGTH,
        seed=1,
    )
    assert [len(entry.candidates[0]) for entry in stats.rounds] == [4, 8, 11]
    for entry in stats.rounds:
        naive = [naive_value(networks, PROMPTS[0], row) for row in entry.candidates]
        assert entry.values == pytest.approx(naive, abs=SAME)
    assert_rounds_keep_the_best(stats.rounds, beam_width=2, response=response)


def test_batched_values_equal_naive_teacher_forced_sums(networks: Networks) -> None:
    responses, rounds = batched_generate.cbs_i(
        *three(networks),
        PROMPTS,
        beam_width=2,
        successors=2,
        chunk_length=4,
        max_new_tokens=LENGTH,
        seed=1,
    )
    for prompt, response, entries in zip(PROMPTS, responses, rounds, strict=True):
        assert [len(entry.candidates[0]) for entry in entries] == [4, 8, 11]
        for entry in entries:
            naive = [naive_value(networks, prompt, row) for row in entry.candidates]
            assert entry.values == pytest.approx(naive, abs=SAME)
        assert_rounds_keep_the_best(entries, beam_width=2, response=response)


def assert_rounds_keep_the_best(rounds: list, beam_width: int, response: list[int]) -> None:
    """Check with plain lists that the best candidates survive and go on, and the best wins."""
    for entry, following in zip(rounds, [*rounds[1:], None], strict=True):
        survivors = [entry.values[row] for row in entry.survivors]
        assert survivors == sorted(entry.values, reverse=True)[:beam_width]
        if following is not None:
            length = len(entry.candidates[0])
            successors = len(entry.values) // beam_width
            parents = [entry.candidates[row] for row in entry.survivors] * successors
            assert [row[:length] for row in following.candidates] == parents
    assert response == rounds[-1].candidates[rounds[-1].survivors[0]]


@pytest.mark.parametrize("runner", [published_loop.run_published, batched_generate.run_batched])
def test_greedy_chunk_search_is_greedy_decoding(networks: Networks, runner: Contestant) -> None:
    """All candidates of a prompt are equal at temperature 0; a neighbour's cache would show."""
    settings = Settings(
        beam_width=2, successors=3, chunk_length=3, max_new_tokens=LENGTH, temperature=0.0
    )
    outcome = runner(networks, PROMPTS, "cbs-i", settings)
    assert outcome.responses == [naive_greedy(networks, prompt, 0.0) for prompt in PROMPTS]
    assert outcome.row_tokens == 3 * 6 * LENGTH
    assert outcome.accepted_tokens == 3 * LENGTH


def test_every_drawn_token_is_one_of_the_two_most_probable_after_its_own_prefix(
    networks: Networks,
) -> None:
    """Candidates differ here, so a cache that follows another row's parent admits other tokens."""
    search = {"beam_width": 2, "successors": 3, "chunk_length": 3, "max_new_tokens": LENGTH}
    sampling = {"temperature": 20.0, "top_k": 2, "seed": 5}
    _, batched = batched_generate.cbs_i(*three(networks), PROMPTS, **search, **sampling)
    for prompt, rounds in zip(PROMPTS, batched, strict=True):
        _, stats = published_loop.cbs_i(
            *three(networks), networks.tokenizer, prompt, **search, **sampling
        )
        for last in (rounds[-1], stats.rounds[-1]):
            assert len({tuple(row) for row in last.candidates}) > 2
            for row in last.candidates:
                read = torch.tensor([[*prompt, *row[:-1]]])
                with torch.no_grad():
                    logits = networks.base(input_ids=read).logits[0, len(prompt) - 1 :]
                admitted = logits.topk(2).indices.tolist()
                assert all(token in pair for token, pair in zip(row, admitted, strict=True))


def test_published_loop_reads_the_prompt_for_every_row_and_rescoring_reads_it_every_chunk(
    networks: Networks,
) -> None:
    prompt = PROMPTS[0]
    _, stats = published_loop.cbs_i(
        *three(networks),
        networks.tokenizer,
        prompt,
        beam_width=2,
        successors=2,
        chunk_length=5,
        max_new_tokens=10,
    )
    base, tuned, reference = (stats.readings[name] for name in ("base", "tuned", "reference"))
    assert (base.passes, base.tokens) == (10, 4 * (11 + 9))
    assert (tuned.passes, tuned.tokens) == (2, 4 * ((11 + 5) + (11 + 10)))
    assert reference == tuned


def test_batched_search_reads_each_new_token_once_and_its_guides_read_everything_each_chunk(
    networks: Networks,
) -> None:
    named = {"base": networks.base, "tuned": networks.tuned, "reference": networks.reference}
    with counted(named) as readings:
        batched_generate.cbs_i(
            *three(networks),
            PROMPTS,
            beam_width=2,
            successors=2,
            chunk_length=5,
            max_new_tokens=10,
        )
    rows = 3 * 4
    assert (readings["base"].passes, readings["base"].tokens) == (10, rows * (11 + 9))
    assert (readings["tuned"].passes, readings["tuned"].tokens) == (2, rows * (16 + 21))
    assert readings["reference"] == readings["tuned"]


def test_batched_guidance_steps_its_guides_with_caches(networks: Networks) -> None:
    named = {"base": networks.base, "tuned": networks.tuned, "reference": networks.reference}
    with counted(named) as readings:
        batched_generate.eft_i(*three(networks), PROMPTS, max_new_tokens=10)
    assert {(entry.passes, entry.tokens) for entry in readings.values()} == {(10, 3 * (11 + 9))}


def test_published_response_ends_after_its_end_of_sequence_token(networks: Networks) -> None:
    greedy = {"max_new_tokens": LENGTH, "temperature": 0.0}
    whole, _ = published_loop.plain(networks.base, PROMPTS[0], **greedy)
    end = whole[4]
    expected = whole[: whole.index(end) + 1]
    ended, _ = published_loop.plain(networks.base, PROMPTS[0], eos_ids=[end], **greedy)
    found, stats = published_loop.cbs_i(
        *three(networks), networks.tokenizer, PROMPTS[0], chunk_length=3, eos_ids=[end], **greedy
    )
    assert ended == found == expected
    # The scorer reads the text and puts the tokenizer's own end-of-sequence token behind it.
    scored = [*expected[:-1], networks.tokenizer.eos_token_id]
    naive = naive_value(networks, PROMPTS[0], scored)
    assert stats.rounds[-1].values[0] == pytest.approx(naive, abs=SAME)


def test_published_loop_sorts_the_vocabulary_whenever_top_p_is_given() -> None:
    given, left_out = (published_loop.warpers(0.7, 50, top_p) for top_p in (1.0, None))
    assert [type(warper) for warper in given][2:] == [TopPLogitsWarper]
    assert [type(warper) for warper in given][:2] == [type(warper) for warper in left_out]


def test_every_id_survives_the_way_through_text() -> None:
    tokenizer = shapes.word_tokenizer(512)
    ids = [*range(511, -1, -1), *range(512)]
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids


def test_smollm2_shape_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        base = shapes.from_config(shapes.smollm2())
        guide = shapes.from_config(shapes.smollm2(6))
    embedding, layer = 49152 * 576, 576 * (2 * 576 + 2 * 192 + 3 * 1536) + 2 * 576
    # Number of parameters in SmolLM2-135M's own file; head and embedding are one tensor.
    assert base.num_parameters() == embedding + 30 * layer + 576 == 134_515_008
    assert guide.num_parameters() == embedding + 6 * layer + 576


def test_arithmetic_counts_each_matrix_once_per_token() -> None:
    with torch.device("meta"):
        cost = arithmetic(shapes.from_config(shapes.smollm2()))
    assert cost.layers == 2 * 30 * 576 * (2 * 576 + 2 * 192 + 3 * 1536)
    assert cost.head == 2 * 49152 * 576
    assert cost.attention == 30 * 4 * 9 * 64
    # A prompt of 2 tokens attends to 1 and 2 positions; two rows each read one more token, at 3
    # positions.
    total = 2 * cost.layers + 3 * cost.attention + cost.head
    total += 2 * (cost.layers + cost.head + 3 * cost.attention)
    assert cost.of_run([2], rows_per_prompt=2, tokens=2) == total


def test_gpt2_arithmetic_leaves_the_embeddings_out() -> None:
    cost = arithmetic(shapes.build_networks("tiny-gpt2").base)
    assert cost.layers == 2 * 2 * 12 * 64 * 64  # 12 d² weights a layer, two layers
    assert cost.attention == 2 * 4 * 64


def test_bench_reports_rates_ratios_and_what_guidance_costs(
    tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "result.json"
    line = "--prompts 2 -W 2 -K 2 -L 3 --tokens 6 --repeat 2 --warmup-tokens 2 --threads 1"
    peers = ["--only", "published-loop", "--only", "batched-generate", "--serial-prompts", "1"]
    threads = torch.get_num_threads()
    try:
        bench.main([*line.split(), *peers, "--mode", "cbs-i", "--json", str(target)])
    finally:
        torch.set_num_threads(threads)
    report = json.loads(target.read_text())
    by_name = {(row["name"], row["mode"]): row for row in report["measurements"]}
    assert {key: row["row_tokens"] for key, row in by_name.items()} == {
        ("published-loop", "cbs-i"): 1 * 4 * 6,
        ("batched-generate", "cbs-i"): 2 * 4 * 6,
        ("batched-generate", "base"): 2 * 4 * 6,
    }
    assert {len(row["seconds"]) for row in by_name.values()} == {2}
    there, back = (
        report["row_rate_ratios"][pair]
        for pair in ("published-loop / batched-generate", "batched-generate / published-loop")
    )
    assert there * back == pytest.approx(1)
    guided, plain = (by_name["batched-generate", mode]["seconds"] for mode in ("cbs-i", "base"))
    # The median of two repetitions is their mean.
    cost = sum(guided) / sum(plain) / report["justified_flops_ratio"]
    assert report["guidance_cost"]["batched-generate"] == pytest.approx(cost)
    assert "rates in row·tokens/s" in capsys.readouterr().out


def test_bench_refuses_rows_that_prompts_do_not_divide(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--mode", "eft-i", "--prompts", "8", "--rows", "12"])
    assert "--rows 12 is no multiple of 8 prompts" in capsys.readouterr().err


def test_bench_refuses_a_contestant_that_stops_early(networks: Networks, monkeypatch) -> None:
    def lazy(_networks, prompts, _mode, _settings) -> Outcome:
        return Outcome([[1] for _ in prompts], row_tokens=len(prompts))

    monkeypatch.setitem(turns.CONTESTANTS, "published-loop", lazy)
    with pytest.raises(RuntimeError, match=r"responses of \[1\] tokens where 6 are forced"):
        turns.run_once("published-loop", networks, PROMPTS, "base", Settings(max_new_tokens=6))
