"""What is handed to the flash kernel, tried with a kernel written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ivgcli.models import lanes as lanes_module
from ivgcli.models import slots as slots_module
from ivgcli.models.flash import flash_agrees
from ivgcli.models.lanes import Lanes
from ivgcli.models.slots import Segment, SlotCache

CAPACITY, WIDTH = 20, 8


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
    """Do what the kernel's documentation says, a query at a time; the last query sees the last key."""
    assert (dropout, causal, debug) == (0.0, True, False)
    assert window_size_right == (None if window_size_left is None else 0)
    out = torch.full_like(query, torch.nan)
    for number, used in enumerate(seqused_k.tolist()):
        begin, first, end = (int(first_key[number]), *first_query[number : number + 2].tolist())
        assert 0 < end - first <= most_queries
        assert used <= most_keys
        for place in range(first, end):
            last = used - (end - place)
            low = 0 if window_size_left is None else max(0, last - window_size_left)
            near = slice(begin + low, begin + last + 1)
            weights = torch.softmax(query[place] @ key[near, 0].T * scale, -1)
            out[place] = weights @ value[near, 0]
    return (out,)


@pytest.fixture(params=[None, 1, 5], ids=lambda window: f"window {window}")
def window(request: pytest.FixtureRequest) -> int | None:
    return request.param


def attended(
    monkeypatch: pytest.MonkeyPatch,
    build: Any,
    tokens: int,
    heads: int,
    kept: int,
    window: int | None,
    repeat: int | None = None,
) -> list[torch.Tensor]:
    """Return what a segment finds by the kernel and without, having checked that both write the same."""
    torch.manual_seed(0)
    store = torch.randn(2, 2, 5, kept, CAPACITY, WIDTH)
    fresh = [torch.randn(count, tokens, WIDTH) for count in (heads, kept, kept)]
    if repeat is not None:
        for each in fresh:
            each[:, repeat] = each[:, 0]
    found, stores = [], []
    for flash in (True, False):
        cache = SlotCache(2, 5, CAPACITY)
        cache.store = store.clone()
        with monkeypatch.context() as patched:
            for module in (lanes_module, slots_module):
                patched.setattr(module, "flash_agrees", lambda *_: flash)  # noqa: B023
            patched.setattr(torch.ops.aten, "_flash_attention_forward", kernel)
            found.append(build(cache).attend(1, *fresh, 0.3, window))
        stores.append(cache.store)
    assert torch.equal(*stores)
    return found


@pytest.mark.parametrize(("heads", "kept"), [(4, 4), (8, 2), (3, 1)])
def test_the_kernel_is_shown_each_head_of_each_lane_as_a_sequence(
    monkeypatch: pytest.MonkeyPatch, window: int | None, heads: int, kept: int
) -> None:
    """Slots out of order, one of them twice, full and nearly empty; 1e-6 is float32's rounding."""
    slots, positions = torch.tensor([4, 0, 2, 4]), torch.tensor([11, 0, 19, 11])
    by_kernel, plainly = attended(
        monkeypatch, lambda cache: Lanes(cache, slots, positions), 4, heads, kept, window, repeat=3
    )
    assert torch.allclose(by_kernel, plainly, atol=1e-6)
    assert torch.equal(by_kernel[0], by_kernel[3])


@pytest.mark.parametrize(("heads", "kept"), [(4, 4), (6, 2)])
@pytest.mark.parametrize(
    ("starts", "counts"),
    [([0, 0, 0], [7, 1, 12]), ([3, 9, 0], [5, 1, 8]), ([1, 2, 3], [1, 1, 1])],
    ids=["prompts", "mixed", "single tokens"],
)
def test_the_kernel_is_shown_runs_of_tokens_behind_what_a_slot_holds(
    monkeypatch: pytest.MonkeyPatch,
    window: int | None,
    starts: list[int],
    counts: list[int],
    heads: int,
    kept: int,
) -> None:
    def build(cache: SlotCache) -> Segment:
        return Segment(cache, [3, 1, 4], starts, counts, torch.device("cpu"))

    by_kernel, plainly = attended(monkeypatch, build, int(np.sum(counts)), heads, kept, window)
    assert torch.allclose(by_kernel, plainly, atol=1e-6)


def test_without_a_gpu_there_is_no_flash_kernel() -> None:
    assert not flash_agrees(torch.device("cpu"), torch.bfloat16, 8, 8, 64, False)
