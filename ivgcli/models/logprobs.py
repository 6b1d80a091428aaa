"""Log-probabilities of wide vocabularies, a few rows at a time where that keeps them in a CPU's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 16
"""16 rows of a 50k vocabulary are 3 MB: they stay in the cache, and no temporary has to be paged in anew."""


def blocks(tensor: Tensor) -> Iterator[slice]:
    """Return the row ranges in which to work on a (B, V) tensor: all at once on a GPU."""
    step = BLOCK if tensor.device.type == "cpu" else max(1, tensor.shape[0])
    return (slice(begin, begin + step) for begin in range(0, tensor.shape[0], step))


def log_softmax_(logits: Tensor) -> Tensor:
    """Turn logits (B, V) into log-probabilities in place, and return them."""
    for rows in blocks(logits):
        logits[rows] = torch.log_softmax(logits[rows], dim=-1)
    return logits


def picked(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log-softmax(logits) (B,) at one token (B,) of each row, leaving the logits as they are."""
    found = [
        torch.log_softmax(logits[rows], dim=-1).gather(1, tokens[rows, None])[:, 0]
        for rows in blocks(logits)
    ]
    return torch.cat(found) if found else logits.new_zeros(0)
