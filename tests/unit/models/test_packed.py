"""Packed weights: the same products, only where they are believed, and never in the way."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ivgcli.models import packed
from ivgcli.models.packed import PackedWeights
from tests.models import plain

pytestmark = pytest.mark.skipif(not packed._available(), reason="torch without oneDNN")


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 160), nn.Linear(160, 128, bias=False), Conv1D(192, 128))


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_packed_products_equal_the_plain_ones(rows: int) -> None:
    """Float32 sums of 160 products of order 1 differ by a few units in the seventh digit."""
    model = layers()
    inputs = torch.randn(1, rows, 128)
    with torch.inference_mode():
        expected = model(inputs)
        weights = PackedWeights(model)
        weights.attach()
        assert len(weights.products) == 3
        torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(inputs[0]), expected[0], rtol=1e-5, atol=1e-5)


def test_detaching_gives_the_plain_products_back_bit_for_bit() -> None:
    model = layers()
    inputs = torch.randn(2, 128)
    with torch.inference_mode():
        expected = model(inputs)
        weights = PackedWeights(model)
        weights.attach()
        weights.detach()
        assert torch.equal(model(inputs), expected)
    assert all("forward" not in vars(layer) for layer in model)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_whole_model_gives_the_same_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SMALLEST", 1)
    model = copy.deepcopy(plain(name))
    ids = torch.arange(5, 15)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        weights = PackedWeights(model)
        weights.attach()
        assert len(weights.products) > 8
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_operator_that_gives_something_else_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = packed._product
    monkeypatch.setattr(
        packed, "_product", lambda layer: lambda inputs: 1.01 * honest(layer)(inputs)
    )
    assert PackedWeights(layers()).products == []


def test_no_copy_is_made_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layers()
    size = sum(layer.weight.numel() * 4 for layer in model)
    monkeypatch.setattr(packed, "free_memory", lambda device: 4 * size - 1)
    assert PackedWeights(model).products == []
    monkeypatch.setattr(packed, "free_memory", lambda device: 4 * size)
    assert len(PackedWeights(model).products) == 3


def test_other_number_formats_and_small_matrices_keep_their_own_products() -> None:
    assert PackedWeights(layers().bfloat16()).products == []
    assert PackedWeights(nn.Sequential(nn.Linear(64, 1))).products == []
