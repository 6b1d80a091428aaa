"""Attention over slots by torch's own flash kernel, which reads them where they lie, each row as far as it reaches.

No further package is needed, but what is asked of the kernel is nowhere promised: keys that are not packed one after
another, and as many of them as a tensor says. So it is tried before it is believed.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 2e-2
"""Largest difference to plain attention in a half-precision format at which the kernel is believed."""

WIDEST = 256
"""Width of a head that it takes at most."""


class Spans(NamedTuple):
    """Where the kernel finds the queries and keys of each (key head, row), head after head.

    A cache keeps each head of a slot in one run of memory, so every pair of a key head and a row is a sequence of its
    own, of one key head and the query heads that share it.
    """

    queries: Tensor
    """(S + 1,) int32, the first query of each sequence."""
    keys: Tensor
    """(S + 1,) int32, its first key."""
    used: Tensor
    """(S,) int32, how many keys it has."""
    longest: int
    """Queries of the longest sequence."""


def spans(
    slots: Tensor, ends: Tensor, counts: Tensor, longest: int, heads: int, capacity: int
) -> Spans:
    """Return the spans of some rows.

    Args:
        slots: (B,) int64.
        ends: (B,) int64, keys of each row, its new tokens' included.
        counts: (B,) int64, new tokens of each row: they are its last ones.
        longest: the largest count.
        heads: key heads.
        capacity: positions of a slot.
    """
    head = torch.arange(heads, device=slots.device)[:, None]
    after = counts.cumsum(0)
    queries = head * after[-1] + (after - counts)
    keys = (slots * heads + head) * capacity
    return Spans(
        torch.cat([queries.reshape(-1), heads * after[-1:]]).to(torch.int32),
        F.pad(keys.reshape(-1), (0, 1)).to(torch.int32),
        ends.expand(heads, -1).reshape(-1).to(torch.int32),
        longest,
    )


def flash(
    query: Tensor, keys: Tensor, values: Tensor, where: Spans, scaling: float, window: int | None
) -> Tensor:
    """Return the attention output (N, heads, width); each token sees its row's slot up to itself.

    Args:
        query: (heads, N, width) of the new tokens, row after row.
        keys: (slots, key heads, capacity, width), contiguous.
        values: likewise.
        where: from `spans`.
        scaling: factor on the dot products.
        window: how many latest positions a token sees, None for all.
    """
    heads, count, width = query.shape
    kept, capacity = keys.shape[1:3]
    group = heads // kept
    folded = query.view(kept, group, count, width).transpose(1, 2)
    found = torch.ops.aten._flash_attention_forward(
        folded.reshape(kept * count, group, width),
        keys.view(-1, 1, width),
        values.view(-1, 1, width),
        where.queries,
        where.keys,
        where.longest,
        capacity,
        0.0,
        True,
        False,
        scale=scaling,
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
        seqused_k=where.used,
    )[0]
    return found.view(kept, count, group, width).transpose(0, 1).reshape(count, heads, width)


@functools.cache
def flash_agrees(
    device: torch.device, dtype: torch.dtype, heads: int, kept: int, width: int, windowed: bool
) -> bool:
    """Return whether the kernel is there for such heads, and finds what plain attention finds.

    It is tried on slots out of order, rows of several lengths, single tokens and runs of them.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or width > WIDEST:
        return False
    if torch.cuda.is_current_stream_capturing():
        raise AssertionError("the kernel is tried before anything is captured")
    generator = torch.Generator(device).manual_seed(0)
    random = functools.partial(torch.randn, generator=generator, device=device, dtype=dtype)
    keys, values = random((2, 5, kept, 96, width))
    slots = torch.tensor([4, 0, 2], device=device)
    ends = torch.tensor([71, 5, 96], device=device)
    window = 16 if windowed else None
    for counts in ([1, 1, 1], [3, 5, 20]):
        query = random((heads, sum(counts), width))
        lengths = torch.tensor(counts, device=device)
        try:
            where = spans(slots, ends, lengths, max(counts), kept, 96)
            found = flash(query, keys, values, where, width**-0.5, window)
        except (RuntimeError, TypeError):
            return False  # an older kernel, or one that was built without this
        plain = _plainly(query, keys, values, slots, ends, counts, width**-0.5, window)
        if not bool((found - plain).abs().max() <= TOLERANCE):
            return False
    return True


def _plainly(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    ends: Tensor,
    counts: list[int],
    scaling: float,
    window: int | None,
) -> Tensor:
    """Do the same a row at a time, in float32."""
    outputs = []
    group = query.shape[0] // keys.shape[1]
    for part, slot, end in zip(
        query.split(counts, dim=1), slots.tolist(), ends.tolist(), strict=True
    ):
        near, far = (
            each[slot, :, :end].float().repeat_interleave(group, 0) for each in (keys, values)
        )
        scores = part.float() @ near.transpose(1, 2) * scaling
        column = torch.arange(end, device=query.device)
        position = column[end - part.shape[1] :, None]
        unseen = column > position
        if window is not None:
            unseen |= column <= position - window
        weights = torch.softmax(scores.masked_fill(unseen, -torch.inf), -1)
        outputs.append((weights @ far).transpose(0, 1))
    return torch.cat(outputs)
