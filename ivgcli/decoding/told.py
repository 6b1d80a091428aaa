"""Token guidance on the most probable tokens that a server tells of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ivgcli.decoding import Limits, TokenGuidance
from ivgcli.decoding.choice import choose_tilted
from ivgcli.decoding.draws import step_keys
from ivgcli.decoding.guidance import tilted
from ivgcli.decoding.sampling import warped
from ivgcli.models.readings import read_all
from ivgcli.models.served import ServedNetwork
from ivgcli.serving.replies import Choice
from ivgcli.values import Row, require_finite


class Told(NamedTuple):
    """What was drawn, row by row."""

    tokens: list[int]
    logprobs: list[float]
    """Of each token under the base."""
    gains: list[float]
    """log p_guided − log p_base of each token; at a temperature that is neither 0 nor 1, the base's
    distribution is known over the candidates alone, and taken to be all of it."""


def draw_told(
    network: ServedNetwork,
    guidance: TokenGuidance,
    limits: Limits,
    slots: Sequence[int],
    states: Sequence[Row],
    keys: Sequence[int],
    choices: Sequence[Choice],
) -> Told:
    """Draw the next token of every row from the tokens that the server told of, tilted by values.

    The others have no probability, whatever `outside` says.

    Args:
        network: what is here of the base.
        guidance: how values tilt it.
        limits: temperature, top-k, top-p.
        slots: B rows.
        states: their responses so far.
        keys: their draw keys.
        choices: what the server told of each.

    Raises:
        RowFailure: a value gave a number that is not finite.

    Reference:
        Han et al. (2024), VAS, section 3.4, on models that only tell their most probable tokens.
    """
    logprobs = table(network, choices)
    tokens = [state.tokens for state in states]
    streams = {id(each): each for each in guidance.value.token_streams()}
    read_all([each.unread(slots, tokens) for each in streams.values()])
    source = logprobs
    if guidance.warp == "before":
        source, limits = warped(logprobs, limits), Limits()
    count = guidance.candidates
    if guidance.value.needs_candidates or count is not None:
        known = int(torch.isfinite(logprobs).sum(-1).max())
        count = min(known, count or known)
    tilt = tilted(replace(guidance, candidates=count, outside="drop"), source, slots, states)
    vocabulary = torch.arange(tilt.shape[1], dtype=torch.int32, device=tilt.device)
    words = step_keys(keys, list(map(len, tokens)), tilt.device)
    choice = choose_tilted(logprobs, source, tilt, limits, words, vocabulary)
    require_finite(guidance.value.name, slots, choice.logprobs)
    drawn = choice.tokens.tolist()
    guidance.value.drawn(slots, drawn)
    return Told(drawn, choice.base_logprobs.tolist(), choice.gains.tolist())


def table(network: ServedNetwork, choices: Sequence[Choice]) -> Tensor:
    """Return the log-probabilities (B, V) that a server told, −inf for the tokens that it did not tell of."""
    found = torch.full((len(choices), network.width), -torch.inf)
    for row, choice in enumerate(choices):
        for name, logprob in choice.tops:
            token = network.ids.get(name) if isinstance(name, str) else name
            if token is not None and token < found.shape[1]:
                found[row, token] = logprob
    return found.to(network.device)
