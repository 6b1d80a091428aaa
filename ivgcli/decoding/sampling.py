"""From log-probabilities to a token: temperature, top-k, top-p, and the keyed draw."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ivgcli.decoding import Limits
from ivgcli.decoding.draws import exponential_noise
from ivgcli.models.logprobs import blocks

HEAD = 1024
"""Top-p looks at this many most probable tokens first; they hold the nucleus of almost every row."""


class Drawn(NamedTuple):
    """One drawn token per row."""

    tokens: Tensor
    """(B,) token ids."""
    logprobs: Tensor
    """(B,) log-probability of the token at the temperature (1 where that is 0), before top-k and top-p."""


def draw(
    logits: Tensor,
    limits: Limits,
    keys: Tensor,
    vocabulary: Tensor,
    beyond: Tensor | None = None,
) -> Drawn:
    """Draw one token per row by argmax p/E with the keyed noise E.

    Order as in transformers: temperature, then top-k, then top-p of what is left. Temperature 0 takes the most probable
    token (the lowest id of equals); top_k 0 and top_p 1 are off and cost nothing.

    Args:
        logits: (B, V) unnormalised log-probabilities, float32; −inf forbids a token.
        limits: temperature, top_k, top_p.
        keys: (B, 2) int32 from `draws.step_keys`.
        vocabulary: (V,) int32, 0 … V−1.
        beyond: as in `truncate`.
    """
    parts = [
        _draw_block(logits[rows], limits, keys[rows], vocabulary, beyond) for rows in blocks(logits)
    ]
    return Drawn(
        torch.cat([part.tokens for part in parts]), torch.cat([part.logprobs for part in parts])
    )


def _draw_block(
    logits: Tensor, limits: Limits, keys: Tensor, vocabulary: Tensor, beyond: Tensor | None
) -> Drawn:
    greedy = limits.temperature == 0
    scaled = logits if greedy or limits.temperature == 1 else logits / limits.temperature
    probabilities = torch.softmax(scaled, dim=-1)
    if greedy:
        tokens = scaled.argmax(dim=-1)
    elif limits.top_k or limits.top_p < 1:
        kept, ids = truncate(probabilities, limits.top_k, limits.top_p, beyond)
        race = kept / exponential_noise(keys, ids.to(torch.int32))
        tokens = ids.gather(1, race.argmax(dim=-1, keepdim=True))[:, 0]
    else:
        tokens = (probabilities / exponential_noise(keys, vocabulary)).argmax(dim=-1)
    return Drawn(tokens, probabilities.gather(1, tokens[:, None])[:, 0].log())


def truncate(
    probabilities: Tensor, top_k: int, top_p: float, beyond: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the probabilities (B, C), not renormalised, and ids (B, C) that top-k and then top-p leave; 0 elsewhere.

    Only rows whose nucleus reaches beyond their `HEAD` most probable tokens are sorted.

    Args:
        probabilities: (B, V), each row summing to 1.
        top_k: keep this many most probable tokens, 0 for all.
        top_p: then keep the smallest set of most probable tokens that holds this share of what is left.
        beyond: (1,) bool. Given it, nothing is waited for: it becomes true where a row would have to be sorted, and
            that row's result is wrong then.
    """
    size = probabilities.shape[-1]
    if top_k:
        kept, ids = probabilities.topk(min(top_k, size), dim=-1)
        return (
            (_nucleus(kept, kept.sum(-1, keepdim=True), top_p), ids) if top_p < 1 else (kept, ids)
        )
    kept, ids = probabilities.topk(min(HEAD, size), dim=-1)
    wide = kept.sum(-1) < top_p
    kept = _nucleus(kept, torch.ones_like(kept[:, :1]), top_p)
    if size <= HEAD:
        return kept, ids
    if beyond is not None:
        beyond |= wide.any()
        return kept, ids
    rows = wide.nonzero()[:, 0]
    return _widened(probabilities, kept, ids, rows, top_p) if len(rows) else (kept, ids)


def _widened(
    probabilities: Tensor, kept: Tensor, ids: Tensor, rows: Tensor, top_p: float
) -> tuple[Tensor, Tensor]:
    """Return what `truncate` does once these rows (N,) have been sorted as a whole."""
    ordered, order = probabilities[rows].sort(dim=-1, descending=True, stable=True)
    nucleus = _nucleus(ordered, torch.ones_like(ordered[:, :1]), top_p)
    width = max(int((nucleus > 0).sum(-1).max()), kept.shape[1])
    # A token of probability 0 never wins its race, whatever its id.
    kept, ids = (F.pad(each, (0, width - each.shape[1])) for each in (kept, ids))
    kept[rows], ids[rows] = nucleus[:, :width], order[:, :width]
    return kept, ids


def _nucleus(kept: Tensor, mass: Tensor, top_p: float) -> Tensor:
    """Zero every probability (descending) in front of which there is already a share `top_p` of `mass`."""
    before = kept.cumsum(-1) - kept
    return kept.masked_fill(before >= top_p * mass, 0.0)


def warped(logits: Tensor, limits: Limits, beyond: Tensor | None = None) -> Tensor:
    """Return log-probabilities (B, V) after temperature, top-k and top-p, −inf where they forbid a token.

    For `warp: before`, where the base is warped and the guide's tilt comes on top. Temperature 0 leaves one token.
    `beyond` is what it is for `truncate`.
    """
    if limits.temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter_(1, best, 0.0)
    probabilities = torch.softmax(logits / limits.temperature, dim=-1)
    if limits.top_k or limits.top_p < 1:
        kept, ids = truncate(probabilities, limits.top_k, limits.top_p, beyond)
        probabilities = torch.zeros_like(probabilities).scatter_add_(1, ids, kept)
    return torch.log(probabilities / probabilities.sum(-1, keepdim=True))
