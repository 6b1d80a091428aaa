"""Key/value slots inside unmodified transformers models: the cache and the attention that reads it.

Every row (a growing sequence) owns a slot, a stretch of `capacity` positions per layer. A forward pass is
packed: the new tokens of all its sequences lie one after another in a batch of one, so that no matrix product
ever sees padding, and one pass can mix prefills, single decoding steps and whole chunks. Nothing is ever rolled
back: a sequence that shrinks is simply written again from an earlier position.

The contact with transformers is one registered attention function and one keyword argument that the models hand
through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from ivgcli.models.flash import Spans, flash, flash_agrees, spans

ATTENTION = "ivg_slots"
"""Name under which the attention function is registered with transformers."""

SLACK = 1.25
"""Attend over a run of neighbouring slots, holes included, while it is at most this much longer than its rows."""

SHORT = 32
"""Up to this many new tokens per row, explicit matrix products beat the fused kernel on a CPU."""


class SlotCache:
    """Keys and values of one stream, for every layer, slot and position.

    Storage is one tensor of shape (layers, 2, slots, heads, capacity, width); it is allocated when the first
    keys arrive, because only they know the head count and width, and grows by doubling when a longer sequence
    comes.
    """

    def __init__(self, layers: int, slots: int, capacity: int = 0) -> None:
        self.layers = layers
        self.slots = slots
        self.capacity = capacity
        self.store: Tensor | None = None
        self.apart = False
        """Whether each row attends by itself, so that no sum depends on how far other rows reach."""

    def reserve(self, capacity: int) -> None:
        """Make room for sequences of `capacity` tokens, keeping what is stored."""
        if capacity <= self.capacity:
            return
        grown = (
            capacity if self.store is None else max(capacity, self.capacity + self.capacity // 2)
        )
        if self.store is not None:
            old = self.store
            shape = (*old.shape[:4], grown, old.shape[5])
            self.store = _zeros(shape, old)
            self.store[..., : self.capacity, :] = old
        self.capacity = grown

    def allocate(self, key: Tensor) -> None:
        """Allocate storage for keys (1, heads, N, width): zeros, so that masked positions stay finite."""
        _, heads, _, width = key.shape
        self.store = _zeros((self.layers, 2, self.slots, heads, self.capacity, width), key)

    def copy(self, targets: Sequence[int], sources: Sequence[int], start: int, stop: int) -> None:
        """Copy positions `start`..`stop` of the slots `sources` to the slots `targets` (a target is never a source)."""
        if self.store is None or not targets or start >= stop:
            return
        to = torch.as_tensor(targets, device=self.store.device)
        of = torch.as_tensor(sources, device=self.store.device)
        self.store[:, :, to, :, start:stop] = self.store[:, :, of, :, start:stop]

    def wipe(self, row: int, start: int = 0) -> None:
        """Zero a slot from position `start` on.

        A masked position contributes 0 times its value, which is only 0 while the value is finite.
        """
        if self.store is not None:
            self.store[:, :, row, :, start:] = 0


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return zeros; on a CPU their pages come into being when they are first touched, not before."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    blank = np.zeros(math.prod(shape) * like.element_size(), dtype=np.uint8)
    return torch.from_numpy(blank).view(like.dtype).view(shape)


class Segment:
    """The new tokens of some rows of one cache, at one place of a packed pass.

    Row i appends `counts[i]` tokens after its `starts[i]` cached ones. With `tail_width`, nothing is appended: each
    row holds short continuations of that width instead, which see the row's cached tokens and their own past but
    not each other; their keys stay in `self.peeked` until one of them is committed. Tokens that an earlier segment
    of the same pass appends are cached by the time that a later one attends.
    """

    def __init__(
        self,
        cache: SlotCache,
        rows: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        device: torch.device,
        tail_width: int = 0,
    ) -> None:
        self.cache = cache
        self.device = device
        self.rows = np.asarray(rows, dtype=np.int64)
        self.starts = np.asarray(starts, dtype=np.int64)
        self.counts = np.asarray(counts, dtype=np.int64)
        self.tail_width = tail_width
        self.tokens = int(self.counts.sum())
        self.peeked: list[tuple[Tensor, Tensor]] = []
        self._masks: dict[int, Tensor] = {}
        self._spans: Spans | None = None
        self._parts: list[Segment] = []
        within = np.arange(self.tokens) - np.repeat(
            np.cumsum(self.counts) - self.counts, self.counts
        )
        if tail_width:
            within = within % tail_width
        positions = np.repeat(self.starts, self.counts) + within
        self.positions = torch.from_numpy(positions).to(device)
        self.write_rows = torch.from_numpy(np.repeat(self.rows, self.counts)).to(device)
        self.horizon = int((self.starts if tail_width else self.starts + self.counts).max())
        self.width = int(self.counts.max())
        self.uniform = bool((self.counts == self.width).all())
        self._pad_row = np.repeat(np.arange(len(self.rows)), self.counts)
        self._pad_column = np.arange(self.tokens) - np.repeat(
            np.cumsum(self.counts) - self.counts, self.counts
        )
        self._place()

    def _place(self) -> None:
        """Choose between a view of neighbouring slots and a gathered copy."""
        low, high = int(self.rows.min()), int(self.rows.max()) + 1
        # A row that is listed twice has two continuations, and no place for both in a run of slots.
        distinct = len(np.unique(self.rows)) == len(self.rows)
        self.dense = distinct and high - low <= SLACK * len(self.rows) + 1
        self.low, self.high = low, high
        exact = high - low == len(self.rows) and bool((np.diff(self.rows) == 1).all())
        self.scatter = None if exact else torch.from_numpy(self.rows - low).to(self.device)
        self.gather = torch.from_numpy(self.rows).to(self.device)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Return the attention output (N, heads, width) of this segment's tokens in `layer`.

        Args:
            layer: index of the layer.
            query: (heads, N, width).
            key: (kv heads, N, width); heads is a multiple of kv heads.
            value: like `key`.
            scaling: factor on the dot products.
            window: how many latest positions a token sees, None for all.
        """
        if self.cache.store is None:
            raise AssertionError("the cache is allocated before its first segment attends")
        store = self.cache.store[layer]
        heads, _, width = query.shape
        kernel = (query.device, query.dtype, heads, key.shape[0], width, window is not None)
        by_kernel = not self.tail_width and flash_agrees(*kernel)
        if self.cache.apart and len(self.rows) > 1 and not by_kernel:
            return self._attend_apart(layer, query, key, value, scaling, window)
        if self.tail_width:
            self.peeked.append((key, value))
            return self._attend_tails(store, query, key, value, scaling, window)
        keys = key.transpose(0, 1)
        values = value.transpose(0, 1)
        store[0][self.write_rows, :, self.positions] = keys
        store[1][self.write_rows, :, self.positions] = values
        if by_kernel:
            return flash(query, store[0], store[1], self._where(), scaling, window)
        if not self.starts.any() and self.width > 1:
            return self._attend_prefill(query, key, value, scaling, window)
        return self._attend_cached(store, query, scaling, window)

    def _attend_apart(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Attend as segments of one row each; arguments as for `attend`."""
        if not self._parts:
            self._parts = [
                Segment(self.cache, [row], [start], [count], self.device, self.tail_width)
                for row, start, count in zip(
                    *(each.tolist() for each in (self.rows, self.starts, self.counts)), strict=True
                )
            ]
        if self.tail_width:
            self.peeked.append((key, value))
        fresh = (each.split(self.counts.tolist(), dim=1) for each in (query, key, value))
        outputs = [
            part.attend(layer, *each, scaling, window)
            for part, *each in zip(self._parts, *fresh, strict=True)
        ]
        return torch.cat(outputs)

    def _where(self) -> Spans:
        """Return the flash kernel's view of the rows; worked out once per pass and shared by all layers."""
        if self._spans is None:
            ends, counts = (
                torch.from_numpy(each).to(self.device)
                for each in (self.starts + self.counts, self.counts)
            )
            heads, capacity = self.cache.store.shape[3:5]
            self._spans = spans(self.gather, ends, counts, self.width, heads, capacity)
        return self._spans

    def _attend_prefill(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """Causal attention of whole sequences, one fused call each: nothing is padded and nothing is read back."""
        outputs = []
        end = 0
        for count in self.counts.tolist():
            begin, end = end, end + count
            mask = None
            if window is not None and count > window:
                index = torch.arange(count, device=query.device)
                distance = index[:, None] - index[None, :]
                mask = (distance >= 0) & (distance < window)
            out = F.scaled_dot_product_attention(
                query[None, :, begin:end],
                key[None, :, begin:end],
                value[None, :, begin:end],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=query.shape[0] != key.shape[0],
            )
            outputs.append(out[0].transpose(0, 1))
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _slots(self, store: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (S, kv heads, horizon, width) of the slots, as a view where they are neighbours."""
        if self.dense:
            return store[0][self.low : self.high, :, : self.horizon], store[1][
                self.low : self.high, :, : self.horizon
            ]
        return (
            store[0][:, :, : self.horizon].index_select(0, self.gather),
            store[1][:, :, : self.horizon].index_select(0, self.gather),
        )

    def _spread(self, tensor: Tensor) -> Tensor:
        """Put the segment's rows (B, …) at their places in the run of slots (S, …), zeros in the holes."""
        if not self.dense or self.scatter is None:
            return tensor
        spread = tensor.new_zeros((self.high - self.low, *tensor.shape[1:]))
        spread[self.scatter] = tensor
        return spread

    def _collect(self, tensor: Tensor) -> Tensor:
        """Undo `_spread`."""
        return tensor if not self.dense or self.scatter is None else tensor[self.scatter]

    def _attend_cached(
        self, store: Tensor, query: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """Attention of new tokens over their row's slot, the just written keys included."""
        heads, _, width = query.shape
        keys, values = self._slots(store)
        kv_heads = keys.shape[1]
        group = heads // kv_heads
        rows = len(self.rows)
        padded = query.transpose(0, 1)  # (N, heads, width)
        if not self.uniform:
            full = padded.new_zeros((rows, self.width, heads, width))
            full[self._pad_row, self._pad_column] = padded
            padded = full
        padded = self._spread(
            padded.reshape(rows, self.width, heads, width)
        )  # (S, n, heads, width)
        spread = padded.shape[0]
        mask = self._mask(window, query.dtype)  # (S, 1, 1, n, T)
        if self.width <= SHORT and query.device.type == "cpu":
            folded = padded.view(spread, self.width, kv_heads, group, width).permute(0, 2, 3, 1, 4)
            folded = folded.reshape(spread, kv_heads, group * self.width, width) * scaling
            scores = torch.matmul(folded, keys.transpose(2, 3))  # (S, kv, g·n, T)
            scores = scores.view(spread, kv_heads, group, self.width, -1) + mask
            weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
            out = torch.matmul(weights.view(spread, kv_heads, group * self.width, -1), values)
            out = out.view(spread, kv_heads, group, self.width, width).permute(0, 3, 1, 2, 4)
        else:
            out = F.scaled_dot_product_attention(
                padded.transpose(1, 2),
                keys,
                values,
                attn_mask=mask[:, 0],
                scale=scaling,
                enable_gqa=group > 1,
            ).transpose(1, 2)
        out = self._collect(out.reshape(spread, self.width, heads, width))
        if not self.uniform:
            return out[self._pad_row, self._pad_column]
        return out.reshape(rows * self.width, heads, width)

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return the additive mask (S, 1, 1, n, T); computed once per pass and shared by all layers."""
        cached = self._masks.get(window or 0)
        if cached is not None:
            return cached
        column = torch.arange(self.horizon, device=self.device)
        starts = torch.from_numpy(self.starts).to(self.device)
        position = starts[:, None] + torch.arange(self.width, device=self.device)  # (B, n)
        allowed = column <= position[:, :, None]
        if window is not None:
            allowed &= column > position[:, :, None] - window
        allowed = self._spread(allowed)
        # A hole between the rows attends to everything: its output is dropped, and an empty row would be NaN.
        if self.dense and self.scatter is not None:
            allowed |= ~allowed.any(-1, keepdim=True)
        mask = torch.zeros(allowed.shape, dtype=dtype, device=self.device)
        mask.masked_fill_(~allowed, torch.finfo(dtype).min)
        self._masks[window or 0] = mask[:, None, None]
        return self._masks[window or 0]

    def _attend_tails(
        self,
        store: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        """Attention of short alternatives: each sees the cached prefix and its own earlier tokens, nothing else."""
        heads, _, width = query.shape
        keys, values = self._slots(store)
        kv_heads = keys.shape[1]
        group = heads // kv_heads
        rows, count, tail = len(self.rows), self.width, self.tail_width

        def fold(tensor: Tensor, parts: int) -> Tensor:
            tensor = tensor.transpose(0, 1).reshape(rows, count, kv_heads, parts, width)
            return tensor.permute(0, 2, 3, 1, 4)  # (B, kv, parts, n, width)

        queries = fold(query, group) * scaling
        own_keys, own_values = fold(key, 1), fold(value, 1)
        spread = self._spread(queries.reshape(rows, kv_heads, group * count, width))
        past = self._collect(torch.matmul(spread, keys.transpose(2, 3)))
        past = past.reshape(rows, kv_heads, group, count, -1)
        column = torch.arange(self.horizon, device=self.device)
        starts = torch.from_numpy(self.starts).to(self.device)
        hidden = column >= starts[:, None, None, None, None]
        if window is not None:
            position = self.positions.view(rows, 1, 1, count, 1)
            hidden = hidden | (column <= position - window)
        past = past.masked_fill(hidden, -torch.inf)
        tails = count // tail
        own_queries = queries.reshape(rows, kv_heads, group, tails, tail, width)
        own_keys = own_keys.reshape(rows, kv_heads, 1, tails, tail, width)
        own = torch.matmul(own_queries, own_keys.transpose(-1, -2))  # (B, kv, g, tails, tail, tail)
        apart = torch.ones(tail, tail, dtype=torch.bool, device=self.device)
        unseen = apart.triu(1) if window is None else apart.triu(1) | apart.tril(-window)
        own = own.masked_fill(unseen, -torch.inf).reshape(rows, kv_heads, group, count, tail)
        weights = torch.softmax(torch.cat([past, own], dim=-1), dim=-1, dtype=torch.float32).to(
            value.dtype
        )
        old, new = weights[..., : self.horizon], weights[..., self.horizon :]
        out = torch.matmul(self._spread(old.reshape(rows, kv_heads, group * count, -1)), values)
        out = self._collect(out).view(rows, kv_heads, group, count, width)
        own_values = own_values.reshape(rows, kv_heads, 1, tails, tail, width)
        fresh = torch.matmul(new.reshape(rows, kv_heads, group, tails, tail, tail), own_values)
        out = out + fresh.reshape(rows, kv_heads, group, count, width)
        return out.permute(0, 3, 1, 2, 4).reshape(rows * count, heads, width)

    def commit(self, picks: Sequence[int]) -> None:
        """Write the keys of tail `picks[i]` of row i into its slot (-1: none); tails of width 1 only."""
        chosen = np.flatnonzero(np.asarray(picks) >= 0)
        if not len(chosen) or self.cache.store is None:
            return
        flat = torch.from_numpy(chosen * self.width + np.asarray(picks)[chosen]).to(self.device)
        rows = torch.from_numpy(self.rows[chosen]).to(self.device)
        at = torch.from_numpy(self.starts[chosen]).to(self.device)
        for layer, (key, value) in enumerate(self.peeked):
            self.cache.store[layer, 0][rows, :, at] = key.index_select(1, flat).transpose(0, 1)
            self.cache.store[layer, 1][rows, :, at] = value.index_select(1, flat).transpose(0, 1)


def slot_attention(  # noqa: D417 - the signature is transformers'
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Sequence[Segment] | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attend within each segment of a packed pass; the signature is that of transformers' attention registry.

    Args:
        query: (1, heads, N, width), keys and values likewise with the model's kv heads.
        segments: the pass, in the order of its tokens; the models hand it through from their own call.

    Raises:
        KeyError: the model did not hand `segments` through, so it cannot be driven.
        NotImplementedError: its attention caps scores or has sinks.
    """
    if segments is None:
        raise KeyError("segments")
    for extra in ("softcap", "s_aux"):
        # Too small an effect to show in a short probe, so it is refused by name.
        if kwargs.get(extra) is not None:
            raise NotImplementedError(f"its attention uses {extra}")
    layer = module.layer_idx
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    outputs = []
    end = 0
    for segment in segments:
        begin, end = end, end + segment.tokens
        if segment.cache.store is None:
            segment.cache.allocate(key)
        part = slice(begin, end)
        outputs.append(
            segment.attend(
                layer, query[0][:, part], key[0][:, part], value[0][:, part], scale, sliding_window
            )
        )
    joined = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return joined[None], None


AttentionInterface.register(ATTENTION, slot_attention)
