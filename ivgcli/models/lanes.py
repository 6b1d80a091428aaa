"""The next token of every row in tensors that keep their shapes and addresses: a segment for a captured step.

An ordinary segment is laid out anew for each pass, on the host. Here the host says once which slots decode; positions
then move on the device, so that a pass can be replayed as a CUDA graph and many passes follow one another without the
host.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ivgcli.models.flash import Spans, flash, flash_agrees, spans
from ivgcli.models.slots import SlotCache


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
        self._spans: Spans | None = None
        self._masks: dict[int, Tensor] = {}

    def begin(self) -> None:
        """Forget what was worked out for the positions before they moved."""
        self._spans = None
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
        heads, _, width = query.shape
        if flash_agrees(query.device, query.dtype, heads, key.shape[0], width, window is not None):
            return flash(query, keys, values, self._where(), scaling, window)
        return self._plainly(query.transpose(0, 1), keys, values, scaling, window)

    def _where(self) -> Spans:
        """Return the flash kernel's view of the slots; worked out once per pass and shared by all layers."""
        if self._spans is None:
            heads, capacity = self.cache.store.shape[3:5]
            single = torch.ones_like(self.slots)
            self._spans = spans(self.slots, self.positions + 1, single, 1, heads, capacity)
        return self._spans

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
