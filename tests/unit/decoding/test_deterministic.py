"""`engine.deterministic`: the same bits whoever decodes beside a response, in whatever order, on however many rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ivgcli.decoding.search import Request
from ivgcli.errors import ModelError
from ivgcli.models.fixed import Blocked, fix_heights
from ivgcli.recipes import EngineSpec
from ivgcli.workflows.generate import bursts
from tests.models import PROMPTS, Run, decode, folder, pair, prompted, recipe

GUIDE = {"implicit": pair("llama-tuned", "llama-reference"), "explicit": folder("scalar")}
OTHER = {"implicit": pair("llama-other", "llama-other-reference")}
BY_TEXT = {**GUIDE, "explicit": folder("scalar-other")}


def plan(mode: str, base: str = "llama", guide: Any = None, **sections: Any) -> Any:
    return recipe(
        base,
        mode,
        guide=guide or GUIDE,
        sampling={"max_new_tokens": 12},
        engine={"deterministic": True},
        **sections,
    )


CASES = {
    "base": plan("base"),
    "gpt2": plan("base", "gpt2"),
    "a window": plan("base", "mistral"),
    "eft-i": plan("eft-i"),
    "a scalar head for tokens": plan("eft-e", token={"candidates": 4}),
    "in bytes": plan("eft-i", guide=OTHER),
    "ivg": plan("ivg", chunk={"chunk_length": 6}),
    "cbs-e by text": plan("cbs-e", guide=BY_TEXT, chunk={"chunk_length": 6}),
}


def bits(run: Run) -> dict[tuple[str, int], tuple[Any, ...]]:
    """Return every number of a run as it is, unrounded."""
    return {
        key: (
            done.text,
            tuple(done.winner.row.tokens),
            *(getattr(done.winner, number) for number in ("kl", "base_logprob", "value")),
        )
        for key, done in run.outcomes.items()
    }


def shuffled(requests: list[Request]) -> Sequence[Request]:
    return random.Random(3).sample(requests, len(requests))


@pytest.mark.parametrize("name", CASES)
def test_company_leaves_no_trace_in_any_bit(name: str) -> None:
    expected = bits(decode(CASES[name], rows=12))
    assert bits(decode(CASES[name], rows=4, order=shuffled)) == expected
    alone = bits(decode(CASES[name], prompted(PROMPTS)[1:2], rows=4))
    assert alone == {key: expected[key] for key in alone}


def test_by_default_company_leaves_one() -> None:
    """What the other tests forbid does happen: otherwise they would show nothing."""
    default = CASES["ivg"].model_copy(update={"engine": recipe("llama").engine})
    wide, narrow = (bits(decode(default, rows=rows)) for rows in (12, 4))
    assert wide != narrow
    assert {key: each[1] for key, each in wide.items()} == {
        key: each[1] for key, each in narrow.items()
    }


@pytest.mark.parametrize("shape", [(1, 5, 8), (5, 8), (1, 70, 8), (64, 8), (1, 40, 3, 8)])
def test_blocks_change_no_result_beyond_rounding(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 4)
    inputs = torch.randn(shape)
    heights: list[int] = []

    def watched(part: torch.Tensor) -> torch.Tensor:
        heights.append(part.shape[0 if part.dim() == 2 else 1])
        return layer(part)

    found = Blocked(watched, 32)(inputs)
    assert torch.allclose(found, layer(inputs), atol=1e-6)
    assert set(heights) == {32}


def test_experts_are_refused() -> None:
    model = nn.Linear(2, 2)
    model.config = type("Config", (), {"num_local_experts": 8})()
    with pytest.raises(ModelError, match="a mixture of experts: how many tokens meet an expert"):
        fix_heights("mixtral", model, 32)


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", torch.float32, "off"),
        ("cuda", torch.float32, "off"),
        ("cuda", torch.bfloat16, "on"),
    ],
)
def test_bursts_are_for_where_the_flash_kernel_attends(
    device: str, dtype: torch.dtype, expected: str
) -> None:
    """Without it, lanes attend over as many positions as the longest of them has room for."""
    network = SimpleNamespace(model=nn.Sequential())
    network.model.get_input_embeddings = lambda: nn.Embedding(2, 2, dtype=dtype)
    networks = SimpleNamespace(device=torch.device(device), all=lambda: [network])
    assembly: Any = SimpleNamespace(networks=networks)
    assert bursts(EngineSpec(graphs="on", deterministic=True), assembly) == expected
    assert bursts(EngineSpec(graphs="on"), assembly) == "on"
