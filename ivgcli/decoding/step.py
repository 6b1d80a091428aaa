"""One token for every live row: read what is new, tilt the base by values, warp, draw, count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ivgcli.decoding import Limits, TokenGuidance
from ivgcli.decoding.choice import choose_plain, choose_tilted
from ivgcli.decoding.guidance import tilted
from ivgcli.decoding.sampling import warped
from ivgcli.models.logprobs import log_softmax_
from ivgcli.models.readings import read_all
from ivgcli.models.streams import Stream
from ivgcli.values import Row, TokenValue, require_finite


class Step(NamedTuple):
    """What one step drew, row by row."""

    tokens: list[int]
    base_logprobs: Tensor
    """(B,) log-probability of each token under the base."""
    gains: list[float]
    """log p_guided − log p_base of each token, at the temperature and before top-k and top-p."""


def next_tokens(
    base: Stream,
    guidance: TokenGuidance | None,
    limits: Limits,
    vocabulary: Tensor,
    slots: Sequence[int],
    states: Sequence[Row],
    keys: Tensor,
) -> Step:
    """Draw the next token of every row.

    Args:
        base: the base's stream.
        guidance: how values tilt the base, None for the base alone.
        limits: temperature, top-k, top-p.
        vocabulary: (V,) int32, the ids that may be drawn: 0 … V−1.
        slots: B rows.
        states: their responses so far.
        keys: (B, 2) int32 keys of their noise.

    Raises:
        RowFailure: a network or a value gave a number that is not finite; nothing has been drawn or counted then.
    """
    every = guidance.every if guidance is not None else 0
    guided = [i for i, state in enumerate(states) if every and len(state.tokens) % every == 0]
    _read(base, guidance, slots, states, guided)
    logits = base.outputs(slots)[:, : len(vocabulary)]
    if guidance is None or not guided:
        step = draw_plain(base, limits, vocabulary, slots, logits, keys)
    else:
        step = draw_guided(
            base, guidance, guidance.value, limits, vocabulary, slots, states, guided, logits, keys
        )
    base.count(slots, step.base_logprobs)
    return step


def _read(
    base: Stream,
    guidance: TokenGuidance | None,
    slots: Sequence[int],
    states: Sequence[Row],
    guided: Sequence[int],
) -> None:
    """Bring the base, and the guides of the rows that are guided now, up to the latest token."""
    tokens = [state.tokens for state in states]
    readings = [base.unread(slots, tokens)]
    if guidance is not None and guided:
        chosen = [slots[i] for i in guided]
        responses = [tokens[i] for i in guided]
        streams = {id(stream): stream for stream in guidance.value.token_streams()}
        readings += [
            each.unread(chosen, responses) for each in streams.values() if each is not base
        ]
    read_all(readings)


def draw_plain(
    base: Stream,
    limits: Limits,
    vocabulary: Tensor,
    slots: Sequence[int],
    logits: Tensor,
    keys: Tensor,
) -> Step:
    """Draw from the base alone, whose logits (B, V) these are; arguments as for `draw_guided`."""
    choice = choose_plain(logits, limits, keys, vocabulary)
    require_finite(base.network.name, slots, choice.logprobs)
    tokens = base.network.agreed(choice.tokens).tolist()
    return Step(tokens, choice.base_logprobs, [0.0] * len(slots))


def draw_guided(
    base: Stream,
    guidance: TokenGuidance,
    value: TokenValue,
    limits: Limits,
    vocabulary: Tensor,
    slots: Sequence[int],
    states: Sequence[Row],
    guided: Sequence[int],
    logits: Tensor,
    keys: Tensor,
) -> Step:
    """Draw from the tilted base in the rows `guided`, from the base in the others.

    Args:
        base: whose logits these are; its name is in the sentence about one that is not finite.
        guidance: how the value tilts the base.
        value: the guidance's own, or what stands for it at these rows.
        limits: temperature, top-k, top-p.
        vocabulary: (V,) int32, 0 … V−1.
        slots: numbers of B rows, of which the value is asked.
        states: their responses.
        guided: which of them are guided.
        logits: (B, V) of the base; changed.
        keys: (B, 2) int32 keys of their noise.
    """
    plain = log_softmax_(logits)
    require_finite(base.network.name, slots, plain.amax(-1))
    source = plain
    if guidance.warp == "before":
        source, limits = warped(plain, limits), Limits()
    rows = [slots[i] for i in guided]
    everyone = len(guided) == len(slots)
    tilt = tilted(
        guidance, source if everyone else source[guided], rows, [states[i] for i in guided], value
    )
    mixed = tilt
    if not everyone:
        mixed = source[:, : tilt.shape[1]].clone()
        mixed[guided] = tilt
    choice = choose_tilted(plain, source, mixed, limits, keys, vocabulary)
    require_finite(value.name, slots, choice.logprobs)
    tokens = base.network.agreed(choice.tokens).tolist()
    value.drawn(rows, [tokens[i] for i in guided])
    return Step(tokens, choice.base_logprobs, choice.gains.tolist())
