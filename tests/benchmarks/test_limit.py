"""The limit line's formula against cases worked out by hand, and the shapes it is used with."""

from __future__ import annotations

import statistics

import pytest
import torch

from benchmarks import shapes
from benchmarks.contest import Networks, Settings
from benchmarks.cost import Arithmetic
from benchmarks.limit import (
    Ceilings,
    Load,
    Reading,
    chunk_readings,
    load_of,
    measure_ceilings,
    run_seconds,
    step_readings,
    step_seconds,
)

LOAD = Load(layer_bytes=1000.0, head_bytes=200.0, kv_bytes=2.0, work=Arithmetic(500.0, 100.0, 0.5))
CEILINGS = Ceilings(bandwidth=10.0, rate=100.0)


def test_a_step_of_few_rows_takes_as_long_as_reading_the_weights() -> None:
    # Bytes: 1000 + 200 + 2 · (1·9 + 1) = 1220; operations: 500 + 100 + 0.5·9 = 604.5 → 6 s only.
    assert step_seconds(LOAD, CEILINGS, rows=1, context=9) == pytest.approx(1220 / 10)


def test_a_step_of_many_rows_takes_as_long_as_its_products() -> None:
    # Operations: 50 · (600 + 0.5·9) = 30225; bytes: 1200 + 2 · 50·10 = 2200 → 220 s only.
    assert step_seconds(LOAD, CEILINGS, rows=50, context=9) == pytest.approx(30225 / 100)


def test_no_head_is_read_where_no_output_is_wanted() -> None:
    assert LOAD.seconds(CEILINGS, Reading(tokens=1)) == pytest.approx((1000 + 2) / 10)


def test_rows_of_a_search_share_the_prompt_and_the_beams_they_come_from() -> None:
    settings = Settings(beam_width=2, successors=3, chunk_length=4, max_new_tokens=7)
    readings = step_readings([10], [7], "cbs-i", settings)
    assert len(readings) == 6  # the seventh token is drawn, not read
    # Place 5: two beams of 4 tokens, six rows with 1 token of their own.
    assert readings[4].cached == 10 + 2 * 4 + 6 * 1
    assert readings[4].pairs == 6 * 15
    assert (readings[4].tokens, readings[4].outputs, readings[4].passes) == (6, 6, 1)


def test_samples_share_the_prompt_only() -> None:
    settings = Settings(samples=3, max_new_tokens=4)
    readings = step_readings([10, 20], [4, 2], "base", settings)
    assert [reading.tokens for reading in readings] == [6, 3, 3]
    assert [reading.cached for reading in readings] == [10 + 20 + 2 * 3, 10 + 3 * 2, 10 + 3 * 3]


def test_weights_are_read_as_often_as_full_sets_of_rows_pass() -> None:
    settings = Settings(samples=8, max_new_tokens=3, rows=4)
    readings = step_readings([1, 1], [3, 2], "base", settings)
    assert [reading.passes for reading in readings] == [4, 2]
    few = Settings(samples=1, max_new_tokens=3, rows=4)
    assert [each.passes for each in step_readings([1], [3], "base", few)] == [1, 1]


def test_a_chunk_is_valued_in_one_pass_over_its_new_tokens() -> None:
    settings = Settings(beam_width=2, successors=2, chunk_length=4, max_new_tokens=6)
    first, last = chunk_readings([10], [6], settings, scalar=False)
    assert (first.tokens, first.cached, first.outputs) == (16, 10, 16)
    # Each of four rows: tokens 1 … 4 attend to 10 + 1 … 10 + 4 positions.
    assert first.pairs == 4 * (11 + 12 + 13 + 14)
    assert (last.tokens, last.cached) == (8, 10 + 2 * 4)
    assert last.pairs == 4 * (15 + 16)
    assert chunk_readings([10], [6], settings, scalar=True)[0].outputs == 4


def test_load_of_a_real_shape_is_its_published_size() -> None:
    with torch.device("meta"):
        network = shapes.from_config(shapes.mistral_7b(), torch.bfloat16)
    load = load_of(network)
    # 7,241,732,096 parameters in all; embedding rows and 65 norms of 4096 are not read as matrices.
    assert network.num_parameters() == 7_241_732_096
    embedding = 32000 * 4096
    assert load.layer_bytes == 2 * (7_241_732_096 - 2 * embedding - 65 * 4096)
    assert load.head_bytes == 2 * embedding
    assert load.kv_bytes == 131_072  # 2 · 32 layers · 8 heads · 128 · 2 bytes
    assert load.work.attention == 4 * 32 * 32 * 128


def test_a_guided_run_takes_the_sum_of_its_networks() -> None:
    networks = shapes.build_networks("tiny")
    settings = Settings(samples=2, max_new_tokens=5)
    alone = Networks(networks.base, networks.base, networks.base, networks.tokenizer)
    guides = Networks(networks.tuned, networks.tuned, networks.tuned, networks.tokenizer)
    whole, base, tuned = (
        run_seconds(each, [7, 9], mode, settings, CEILINGS)
        for each, mode in ((networks, "eft-i"), (alone, "base"), (guides, "base"))
    )
    assert whole == pytest.approx(base + 2 * tuned)
    search = Settings(beam_width=2, successors=2, chunk_length=2, max_new_tokens=5)
    ranked = run_seconds(networks, [7, 9], "ivg", search, CEILINGS)
    assert ranked > run_seconds(networks, [7, 9], "cbs-i", search, CEILINGS)


def test_ceilings_are_positive_and_finite() -> None:
    found = measure_ceilings("cpu", torch.float32, copied=1 << 20, side=64)
    assert 1e6 < found.bandwidth < 1e15
    assert 1e6 < found.rate < 1e15


@pytest.mark.parametrize(
    ("name", "role", "parameters"),
    [
        ("gpt2-xl", "base", 1_557_611_200),
        ("gpt2-xl", "guide", 124_439_808),
        ("llama2-7b", "base", 6_738_415_616),
        ("llama3-8b", "base", 8_030_261_248),
    ],
)
def test_real_shapes_have_their_published_number_of_weights(
    name: str, role: str, parameters: int
) -> None:
    with torch.device("meta"):
        network = shapes.from_config(getattr(shapes.SHAPES[name](), role))
    assert network.num_parameters() == parameters


def test_a_stage_holds_a_quarter_of_the_layers_of_a_70b_network() -> None:
    with torch.device("meta"):
        network = shapes.from_config(shapes.SHAPES["stage-70b"]().base)
    # Llama 3 70B: 80 layers of 855,654,400 weights (attention 150,994,944, MLP 704,643,072, norms).
    layers = network.num_parameters() - 2 * 2048 * 8192 - 8192
    assert layers == 20 * (150_994_944 + 704_643_072 + 2 * 8192)


def test_random_networks_are_built_where_and_in_what_type_they_are_asked_for() -> None:
    networks = shapes.build_networks("tiny", dtype=torch.bfloat16)
    assert {each.dtype for each in networks.named().values()} == {torch.bfloat16}
    # Rounded to bfloat16, the angles of late positions would be wrong by whole turns.
    assert networks.base.model.rotary_emb.inv_freq.dtype == torch.float32
    again = shapes.build_networks("tiny", dtype=torch.bfloat16)
    assert torch.equal(networks.tuned.lm_head.weight, again.tuned.lm_head.weight)
    plain = shapes.build_networks("tiny", guided=False)
    assert list(plain.named()) == ["base"]


def test_forced_lengths_follow_the_log_normal_and_know_nothing_of_their_number() -> None:
    lengths = shapes.forced_lengths(2000, 10**6, seed=3)
    assert lengths[:50] == shapes.forced_lengths(50, 10**6, seed=3)
    # Median of 2000 draws: a deviation of 1.25 · 0.6 / √2000 ≈ 1.7 % of it.
    assert statistics.median(lengths) == pytest.approx(300, rel=0.06)
    assert max(shapes.forced_lengths(200, 512, seed=3)) == 512
