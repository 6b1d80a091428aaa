"""Which token follows, as tensors: nothing here waits for a device or looks at a number."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ivgcli.decoding import Limits
from ivgcli.decoding.sampling import draw
from ivgcli.models.logprobs import picked


class Choice(NamedTuple):
    """One drawn token per row."""

    tokens: Tensor
    """(B,) token ids."""
    base_logprobs: Tensor
    """(B,) log-probability of each token under the base."""
    gains: Tensor
    """(B,) log p_guided − log p_base of each token, at the temperature and before top-k and top-p."""
    logprobs: Tensor
    """(B,) log p_guided of each token; not finite where a value was not."""


def choose_plain(
    logits: Tensor, limits: Limits, keys: Tensor, vocabulary: Tensor, beyond: Tensor | None = None
) -> Choice:
    """Draw from the base alone.

    Args:
        logits: (B, V) of the base.
        limits: temperature, top-k, top-p.
        keys: (B, 2) int32 keys of the rows' noise.
        vocabulary: (V,) int32, 0 … V−1.
        beyond: as in `sampling.truncate`.
    """
    drawn = draw(logits, limits, keys, vocabulary, beyond)
    logprobs = drawn.logprobs
    if limits.temperature not in (0, 1):
        logprobs = picked(logits, drawn.tokens)
    return Choice(drawn.tokens, logprobs, torch.zeros_like(logprobs), logprobs)


def choose_tilted(
    plain: Tensor,
    source: Tensor,
    tilt: Tensor,
    limits: Limits,
    keys: Tensor,
    vocabulary: Tensor,
    beyond: Tensor | None = None,
) -> Choice:
    """Draw from the tilted base.

    Args:
        plain: (B, V) log-probabilities of the base.
        source: (B, V) what was tilted: `plain`, or what temperature, top-k and top-p have left of it.
        tilt: (B, V' ≤ V) unnormalised log-probabilities.
        limits: as in `choose_plain`; nothing to do where `source` has been warped.
        keys: likewise.
        vocabulary: likewise.
        beyond: likewise.
    """
    drawn = draw(tilt, limits, keys, vocabulary[: tilt.shape[1]], beyond)
    logprobs = plain.gather(1, drawn.tokens[:, None])[:, 0]
    under = logprobs
    if source is not plain or limits.temperature not in (0, 1):
        cold = source if limits.temperature in (0, 1) else source / limits.temperature
        under = picked(cold, drawn.tokens)
    return Choice(drawn.tokens, logprobs, drawn.logprobs - under, drawn.logprobs)
