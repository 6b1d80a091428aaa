"""Tilt the base's next-token distribution by values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ivgcli.decoding import TokenGuidance
from ivgcli.values import Row, TokenValue

CANDIDATES = 20
"""Candidates of a value that needs some, if the recipe names no number (VAS and IVO use 20)."""

CANDIDATES_IN_BYTES = 64
"""The same for a value in bytes, which costs little more for each: they hold what a token-wise tilt moves most."""


def tilted(
    guidance: TokenGuidance,
    logprobs: Tensor,
    rows: Sequence[int],
    states: Sequence[Row],
    value: TokenValue | None = None,
) -> Tensor:
    """Return log π_base(a) + w·V(s·a) (B, V'), unnormalised.

    Over the whole vocabulary this is the exact tilt. With candidates, the base's most probable C tokens are valued, and
    the others get
        prefix:   w·V(s), the value of the prefix, as if they changed nothing (IVO, eq. 5);
        centred:  the mean of the candidates' values, so that values only move mass among candidates (VAS);
        mass:     the probability that the base gives them: the candidates share theirs anew;
        drop:     probability 0 (ARGS, FUDGE, RAD).
    A constant per row does not matter, so the constant of the others is subtracted from the candidates instead.

    Args:
        guidance: value, weight, candidates, outside.
        logprobs: (B, V) the base's log-probabilities.
        rows: B rows whose streams have read everything.
        states: their responses.
        value: what stands for the guidance's own value at these rows, None for that itself.
    """
    value = value or guidance.value
    count = guidance.candidates
    if count is None and value.needs_candidates:
        count = CANDIDATES_IN_BYTES if value.always else CANDIDATES
    if count is None:
        values = value.next_values(rows, states, None)
        width = min(values.shape[1], logprobs.shape[1])
        return values[:, :width].mul_(guidance.weight).add_(logprobs[:, :width])
    candidates = _candidates(logprobs, count, value.always)
    base = logprobs.gather(1, candidates)
    values = value.next_values(rows, states, candidates, logprobs)
    if guidance.outside == "mass":
        gained = base + guidance.weight * values
        level = gained.logsumexp(-1, keepdim=True) - base.logsumexp(-1, keepdim=True)
        return logprobs.scatter(1, candidates, gained - level)
    if guidance.outside == "drop":
        empty = torch.full_like(logprobs, -torch.inf)
        return empty.scatter_(1, candidates, base + guidance.weight * values)
    level = values.mean(-1) if guidance.outside == "centred" else value.here(rows)
    return logprobs.scatter(1, candidates, base + guidance.weight * (values - level[:, None]))


def _candidates(logprobs: Tensor, count: int, always: frozenset[int]) -> Tensor:
    """Return the ids (B, C) of the base's most probable `count` tokens and of those that are always candidates."""
    ids = sorted(token for token in always if token < logprobs.shape[1])
    if ids:
        index = torch.tensor(ids, device=logprobs.device)
        logprobs = logprobs.index_fill(1, index, torch.inf)
    return logprobs.topk(min(count + len(ids), logprobs.shape[1]), dim=-1).indices
