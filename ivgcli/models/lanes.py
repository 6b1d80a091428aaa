"""The next token of every row in tensors that keep their shapes and addresses: a segment for a captured step.

An ordinary segment is laid out anew for each pass, on the host. Here the host says once which slots decode; positions
then move on the device, so that a pass can be replayed as a CUDA graph and many passes follow one another without the
host.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from ivgcli.models.slots import SlotCache

FLASH_TOLERANCE = 2e-2
"""Largest difference to plain attention in a half-precision format at which torch's flash kernel is believed."""


class Lanes:
    """One new token for each of B rows of one cache, written at a position that is a number on the device.

    Lanes without a row of their own repeat another lane: they write what is written there anyway.

    Args:
        cache: allocated, and not grown while these lanes are in use.
        slots: (B,) int64, each lane's slot.
        positions: (B,) int64, where each lane's token goes; whoever owns the tensor moves it on.
    """

    def __init__(self, cache: SlotCache, slots: Tensor, positions: Tensor) -> None:
        if cache.store is None:
            raise AssertionError("lanes follow prompts, whose keys are there")
        self.cache = cache
        self.slots = slots
        self.positions = positions
        self.tokens = len(slots)
        """Tokens of one pass."""
        self.horizon = cache.capacity
        """Positions that attention without a flash kernel looks at."""
        self._ranges: tuple[Tensor, Tensor, Tensor] | None = None
        self._masks: dict[int, Tensor] = {}

    def begin(self) -> None:
        """Forget what was worked out for the positions before they moved."""
        self._ranges = None
        self._masks.clear()

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Write keys and values, and return the attention output (B, heads, width); arguments as `Segment.attend`."""
        keys, values = self.cache.store[layer]
        keys[self.slots, :, self.positions] = key.transpose(0, 1)
        values[self.slots, :, self.positions] = value.transpose(0, 1)
        queries = query.transpose(0, 1)
        heads, _, width = query.shape
        if flash_agrees(query.device, query.dtype, heads, key.shape[0], width, window is not None):
            return flash(queries, keys, values, self._spans(), scaling, window)
        return self._plainly(queries, keys, values, scaling, window)

    def _spans(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the flash kernel's view of the slots; worked out once per pass and shared by all layers."""
        if self._ranges is None:
            heads, capacity = self.cache.store.shape[3:5]
            self._ranges = spans(self.slots, self.positions, heads, capacity)
        return self._ranges

    def _plainly(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """Attention over a copy of each lane's slot."""
        mask = self._masks.get(window or 0)
        if mask is None:
            column = torch.arange(self.horizon, device=queries.device)
            mask = column <= self.positions[:, None]
            if window is not None:
                mask &= column > self.positions[:, None] - window
            mask = self._masks[window or 0] = mask[:, None, None]
        near = (each[:, :, : self.horizon].index_select(0, self.slots) for each in (keys, values))
        out = F.scaled_dot_product_attention(
            queries[:, :, None],
            *near,
            attn_mask=mask,
            scale=scaling,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
        return out[:, :, 0]


def spans(
    slots: Tensor, positions: Tensor, heads: int, capacity: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the flash kernel finds the queries and the keys of each (lane, head), and how many keys count.

    A cache keeps each head of a slot in one run of memory, so that every pair of lane and key head is a sequence of its
    own to the kernel, of one key head and of the query heads that share it.

    Args:
        slots: (B,) int64.
        positions: (B,) int64 of each lane's latest token.
        heads: key heads.
        capacity: positions of a slot.

    Returns:
        Three int32 tensors: (B·heads + 1,) first query of each sequence, likewise its first key, and (B·heads,) keys.
    """
    count = len(slots) * heads
    queries = torch.arange(count + 1, dtype=torch.int32, device=slots.device)
    first = (slots[:, None] * heads + torch.arange(heads, device=slots.device)) * capacity
    keys = F.pad(first.reshape(-1), (0, 1)).to(torch.int32)
    lengths = (positions + 1)[:, None].expand(-1, heads).reshape(-1).to(torch.int32)
    return queries, keys, lengths


def flash(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    where: tuple[Tensor, Tensor, Tensor],
    scaling: float,
    window: int | None,
) -> Tensor:
    """Return the attention output (B, heads, width) from torch's own flash kernel, which reads the cache in place.

    Args:
        queries: (B, heads, width) of the latest tokens.
        keys: (slots, key heads, capacity, width), contiguous.
        values: likewise.
        where: from `spans`.
        scaling: factor on the dot products.
        window: how many latest positions a token sees, None for all.
    """
    batch, heads, width = queries.shape
    kept = keys.shape[1]
    found = torch.ops.aten._flash_attention_forward(
        queries.reshape(batch * kept, heads // kept, width),
        keys.view(-1, 1, width),
        values.view(-1, 1, width),
        where[0],
        where[1],
        1,
        keys.shape[2],
        0.0,
        False,
        False,
        scale=scaling,
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
        seqused_k=where[2],
    )[0]
    return found.reshape(batch, heads, width)


@functools.cache
def flash_agrees(
    device: torch.device, dtype: torch.dtype, heads: int, kept: int, width: int, windowed: bool
) -> bool:
    """Return whether the flash kernel is there for such heads and finds what plain attention finds.

    It is tried on slots out of order and of several lengths, because its handling of keys that are not packed one after
    another is nowhere promised.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or width > 256:
        return False
    if torch.cuda.is_current_stream_capturing():
        raise AssertionError("the kernel is tried before anything is captured")
    cache = SlotCache(1, 5, 96)
    shape = (1, 2, 5, kept, 96, width)
    generator = torch.Generator(device).manual_seed(0)
    cache.store = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    queries = torch.randn((3, heads, width), generator=generator, device=device, dtype=dtype)
    slots = torch.tensor([4, 0, 2], device=device)
    positions = torch.tensor([70, 0, 95], device=device)
    window = 16 if windowed else None
    keys, values = cache.store[0]
    plain = Lanes(cache, slots, positions)._plainly(queries, keys, values, width**-0.5, window)
    try:
        where = spans(slots, positions, kept, 96)
        found = flash(queries, keys, values, where, width**-0.5, window)
    except (RuntimeError, TypeError):
        return False  # an older kernel, or one that was built without this
    return bool((found - plain).abs().max() <= FLASH_TOLERANCE)
