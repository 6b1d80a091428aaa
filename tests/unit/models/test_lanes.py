"""What is handed to the flash kernel, tried with a kernel written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ivgcli.models import lanes as lanes_module
from ivgcli.models.lanes import Lanes
from ivgcli.models.slots import SlotCache


def kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    first_query: torch.Tensor,
    first_key: torch.Tensor,
    most_queries: int,
    most_keys: int,
    dropout: float,
    causal: bool,
    debug: bool,
    *,
    scale: float,
    window_size_left: int | None,
    window_size_right: int | None,
    seqused_k: torch.Tensor,
) -> tuple[torch.Tensor]:
    """Do what the documentation of the kernel says, a sequence at a time."""
    assert (most_queries, dropout, causal, debug) == (1, 0.0, False, False)
    out = torch.zeros_like(query)
    for number, used in enumerate(seqused_k.tolist()):
        begin = int(first_key[number])
        assert used <= most_keys
        low = 0 if window_size_left is None else max(0, used - 1 - window_size_left)
        keys, values = key[begin + low : begin + used, 0], value[begin + low : begin + used, 0]
        at = int(first_query[number])
        assert int(first_query[number + 1]) == at + 1
        out[at] = torch.softmax(query[at] @ keys.T * scale, -1) @ values
    return (out,)


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize(("heads", "kept"), [(4, 4), (8, 2), (3, 1)])
def test_the_flash_kernel_is_shown_each_head_of_each_slot_as_a_sequence(
    monkeypatch: pytest.MonkeyPatch, window: int | None, heads: int, kept: int
) -> None:
    """Slots out of order, one of them twice, full and nearly empty; 1e-6 is float32's rounding."""
    torch.manual_seed(0)
    width, capacity = 8, 20
    slots, positions = torch.tensor([4, 0, 2, 4]), torch.tensor([11, 0, 19, 11])
    caches = [SlotCache(2, 5, capacity) for _ in range(2)]
    store = torch.randn(2, 2, 5, kept, capacity, width)
    fresh = [torch.randn(count, 4, width) for count in (heads, kept, kept)]
    for each in fresh:
        each[:, 3] = each[:, 0]  # a lane without a row of its own repeats another one
    found = []
    for cache, flash in zip(caches, (True, False), strict=True):
        cache.store = store.clone()
        lanes = Lanes(cache, slots, positions)
        monkeypatch.setattr(lanes_module, "flash_agrees", lambda *_: flash)  # noqa: B023
        with monkeypatch.context() as patched:
            packet: Any = torch.ops.aten
            patched.setattr(packet, "_flash_attention_forward", kernel)
            found.append(lanes.attend(1, *fresh, 0.3, window))
    assert torch.equal(caches[0].store, caches[1].store)
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert torch.equal(found[0][0], found[0][3])


def test_without_a_gpu_there_is_no_flash_kernel() -> None:
    assert not lanes_module.flash_agrees(torch.device("cpu"), torch.bfloat16, 8, 8, 64, False)
