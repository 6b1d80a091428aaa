"""A base that two processes hold between them draws what one process draws; and what cannot be divided."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ivgcli.decoding.search import Request
from ivgcli.errors import ModelError
from ivgcli.models.loading import Networks
from ivgcli.models.shards import require_heads
from ivgcli.recipes import GenerateRecipe, ModelSpec, run_id
from tests.models import engine_of, folder, pair, prompted, recipe
from tests.sharded_work import CONTRARY, decoded

GUIDE = {"implicit": pair("llama-tuned", "llama-reference"), "explicit": folder("scalar")}
OWN = {"model": folder("llama"), "tuned_prompt": "good: {prompt}", "reference_prompt": "{prompt}"}
SHARED = {
    "base": {"model": folder("llama"), "shards": 2},
    "guide": GUIDE,
    "sampling": {"max_new_tokens": 12, "samples": 2},
    "chunk": {"beam_width": 2, "successors": 2, "chunk_length": 4},
    "engine": {"rows": 8, "device": "cpu"},
}
RUNS: dict[str, dict[str, Any]] = {
    **{mode: {**SHARED, "mode": mode} for mode in ("base", "eft-i", "cbs-i", "ivg")},
    "a guide with the base's weights": {**SHARED, "mode": "eft-i", "guide": {"implicit": OWN}},
    "processes that differ": {**SHARED, "mode": "ivg", "seed": CONTRARY},
    "halves of different sizes": {**SHARED, "base": {"model": folder("llama-odd"), "shards": 2}},
    "rows by memory": {**SHARED, "engine": {"device": "cpu"}},
    "no plan": {**SHARED, "base": {"model": folder("gpt2"), "shards": 2}},
    "too many": {**SHARED, "base": {"model": folder("llama"), "shards": 3}},
}
REFUSED = {
    "no plan": "transformers has no plan by which a gpt2 could be divided → leave --shards out, "
    "or use base.quantization: 4bit",
    "too many": "base.shards: 3 processes are to hold the base between them, and 2 are there → "
    "run the ivg command, which starts them",
}
ANSWERED = [name for name in RUNS if name not in REFUSED]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes make of all runs, in one launch."""
    place = tmp_path_factory.mktemp("shards")
    (place / "plan.json").write_text(json.dumps(list(RUNS.values())))
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.sharded_work", str(place), str(number)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )
        for number in range(2)
    ]
    try:
        assert [each.wait(timeout=240) for each in started] == [0, 0]
    finally:
        for each in started:
            each.kill()
    return {name: json.loads((place / f"{n}.json").read_text()) for n, name in enumerate(RUNS)}


@pytest.mark.parametrize("name", ANSWERED)
def test_two_processes_that_hold_the_base_draw_what_one_draws(found, name):
    """Sums over two halves of a row end in other last digits, and records have six."""
    whole = {**RUNS[name], "base": RUNS[name]["base"]["model"]}
    whole["engine"] = {**whole["engine"], "speculate": "off"}
    expected = decoded(whole)
    assert [each["response"] for each in found[name]["records"]] == [
        each["response"] for each in expected["records"]
    ]
    for ours, theirs in zip(found[name]["records"], expected["records"], strict=True):
        for key in ("value", "base_logprob", "kl"):
            assert (ours[key] is None) == (theirs[key] is None)
            assert ours[key] is None or ours[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-5)
        for key in ("tokens", "finish", "compute", "run"):
            assert ours[key] == theirs[key]
    assert found[name]["passes"] == expected["passes"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_divided_is_refused_in_a_sentence(found, name):
    assert found[name].endswith(REFUSED[name])


def test_heads_are_dealt_out_evenly_or_not_at_all():
    """8 heads to 6 GPUs: 4 is the largest number up to 6 that divides 8."""
    require_heads("a model", 8, 8)
    with pytest.raises(ModelError) as caught:
        require_heads("a model", 8, 6)
    told = "a model: its 8 key/value heads cannot be dealt out evenly to 6 GPUs → --shards 4"
    assert str(caught.value) == told
    with pytest.raises(ModelError, match=r"→ --shards 1$"):
        require_heads("a model", 1, 4)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"base": {"model": "m", "shards": 2, "quantization": "4bit"}}, "4bit weights cannot be"),
        ({"base": {"model": "openai:m", "shards": 2}}, "divided by its server"),
        ({"base": {"model": "m", "shards": 2}, "engine": {"speculate": 3}}, "nobody guesses ahead"),
        ({"base": {"model": "m", "shards": 2}, "engine": {"graphs": "on"}}, "without CUDA graphs"),
        ({"base": {"model": "m", "shards": 0}}, "greater than or equal to 1"),
    ],
)
def test_what_contradicts_a_divided_base_is_refused(keys, sentence):
    with pytest.raises(ValidationError, match=sentence):
        GenerateRecipe.model_validate(keys)


def test_a_run_may_be_resumed_with_another_number_of_shards():
    runs = {
        run_id(GenerateRecipe.model_validate({"base": {"model": "m", **rest}}))
        for rest in ({}, {"shards": 1}, {"shards": 4})
    }
    assert len(runs) == 1


def test_an_adapter_over_a_divided_base_is_refused(tmp_path):
    networks = Networks("cpu")
    network, _ = networks.language_model(ModelSpec(model=folder("llama")))
    network.shards = object()
    with pytest.raises(ModelError, match="an adapter cannot share the weights of a base that is"):
        networks._adapter(network, str(tmp_path))


def test_memory_that_runs_out_on_one_gpu_ends_the_run_with_a_sentence(monkeypatch):
    """The other processes still have room, and would go on with as many rows."""
    _, engine = engine_of(recipe("llama"), rows=6)
    engine.shards = type("Four", (), {"count": 4})()

    def fail() -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(engine, "_step", fail)
    with pytest.raises(ModelError) as caught:
        list(engine.run([Request(prompted(["a"])[0])]))
    told = "engine.rows: out of memory with 6 rows on one of 4 GPUs → --rows 3, or more --shards"
    assert str(caught.value) == told
