"""Brute force: full forward passes, plain lists, enumeration. Nothing of ivgcli is imported here.

What a test compares with must not share code with what it tests, so the keyed noise, the warps, the
searches and the
log-probabilities are written again, in the slowest and plainest way.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

M32, M64 = (1 << 32) - 1, (1 << 64) - 1


@torch.no_grad()
def logits(model: Any, ids: Sequence[int]) -> np.ndarray:
    """Return next-token logits (T, V) in float64 of one uncached forward pass over `ids`."""
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double().numpy()


@torch.no_grad()
def head_outputs(model: Any, ids: Sequence[int]) -> np.ndarray:
    """Return the value head's outputs (T, D) in float64 at every position of `ids`."""
    hidden = model.base_model(
        input_ids=torch.tensor([list(ids)]), use_cache=False
    ).last_hidden_state
    return model.score(hidden)[0].double().numpy()


def log_softmax(values: np.ndarray) -> np.ndarray:
    """Return values − log Σ exp(values) along the last axis."""
    top = values.max(-1, keepdims=True)
    return values - top - np.log(np.exp(values - top).sum(-1, keepdims=True))


def next_logprobs(model: Any, ids: Sequence[int]) -> np.ndarray:
    """Return log p(next token) (V,) after `ids`."""
    return log_softmax(logits(model, ids)[-1])


def response_logprob(model: Any, prompt: Sequence[int], response: Sequence[int]) -> float:
    """Return the teacher-forced log-probability of a response, in one full forward."""
    if not response:
        return 0.0
    logprobs = log_softmax(logits(model, [*prompt, *response]))
    return float(
        sum(logprobs[len(prompt) - 1 + place, token] for place, token in enumerate(response))
    )


def stream_key(seed: int, record: str, sample: int, candidate: int) -> int:
    """Return the 64-bit key of one candidate."""
    text = "\x1f".join([str(seed), str(len(record)), record, str(sample), str(candidate)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def noise(key: int, step: int, size: int) -> np.ndarray:
    """Return Exp(1) noise (size,) for the token ids 0 … size−1, by arbitrary-precision integers."""
    word = (key + (step + 1) * 0x9E3779B97F4A7C15) & M64
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & M64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & M64
    word ^= word >> 31
    low, high = word & M32, word >> 32
    # 64-bit words hold the product of two 32-bit ones, so nothing wraps around unnoticed.
    x = np.arange(size, dtype=np.uint64) ^ np.uint64(low)
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & np.uint64(M32)
    x = (x + np.uint64(high)) & np.uint64(M32)
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(0xC2B2AE35)) & np.uint64(M32)
    x = ((x ^ (x >> np.uint64(13))) * np.uint64(0x27D4EB2F)) & np.uint64(M32)
    x ^= x >> np.uint64(16)
    return -np.log1p(-((x & np.uint64(0x7FFFFFFF)).astype(np.float64) + 0.5) / 2**31)


def warped(
    logprobs: np.ndarray, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> np.ndarray:
    """Return log-probabilities (V,) after transformers' own warpers, in transformers' order."""
    scores = torch.from_numpy(np.asarray(logprobs, dtype=np.float64))[None]
    if temperature == 0:
        kept = torch.full_like(scores, -torch.inf)
        kept[0, int(scores.argmax())] = 0.0
        return kept[0].numpy()
    warpers: list[Any] = [] if temperature == 1 else [TemperatureLogitsWarper(float(temperature))]
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    for warper in warpers:
        scores = warper(None, scores)
    return torch.log_softmax(scores, -1)[0].numpy()


def pick(logprobs: np.ndarray, exponential: np.ndarray) -> int:
    """Return argmax p/E."""
    return int(np.argmax(logprobs - np.log(exponential)))


@dataclass(frozen=True)
class Hypothesis:
    """A response of the naive loops."""

    tokens: tuple[int, ...] = ()
    finish: str | None = None
    kl: float = 0.0
    value: float = 0.0
    score: float = 0.0
    parent: float = 0.0


@dataclass(frozen=True)
class Policy:
    """How the naive loops draw: two distributions of the next token, and how responses end."""

    base: Callable[[Sequence[int]], np.ndarray]
    """Response so far to the base's log-probabilities (V,)."""
    guided: Callable[[Sequence[int]], np.ndarray]
    """Response so far to the log-probabilities that are warped and drawn from."""
    ends: frozenset[int]
    longest: int
    warp: dict[str, float]

    def extend(self, start: Hypothesis, until: int, key: int) -> Hypothesis:
        """Draw until the response has `until` tokens or ends."""
        tokens, finish, kl = list(start.tokens), start.finish, start.kl
        while finish is None and len(tokens) < until:
            logprobs = self.guided(tokens)
            token = pick(warped(logprobs, **self.warp), noise(key, len(tokens), len(logprobs)))
            kl += log_softmax(logprobs)[token] - log_softmax(self.base(tokens))[token]
            tokens.append(token)
            finish = (
                "eos" if token in self.ends else "length" if len(tokens) >= self.longest else None
            )
        return replace(start, tokens=tuple(tokens), finish=finish, kl=kl)


@dataclass(frozen=True)
class Pair:
    """A tuned and a reference model with the prompt that each of them reads."""

    tuned: Any
    reference: Any
    tuned_prompt: Sequence[int]
    reference_prompt: Sequence[int]
    weight: float = 1.0

    def tilt(self, response: Sequence[int]) -> np.ndarray:
        """Return w·(log π_tuned − log π_ref) (V,) of the token after a response."""
        tuned = next_logprobs(self.tuned, [*self.tuned_prompt, *response])
        return self.weight * (
            tuned - next_logprobs(self.reference, [*self.reference_prompt, *response])
        )

    def value(self, response: Sequence[int]) -> float:
        """Return the teacher-forced w·(log π_tuned − log π_ref) of a response."""
        tuned = response_logprob(self.tuned, self.tuned_prompt, response)
        return self.weight * (
            tuned - response_logprob(self.reference, self.reference_prompt, response)
        )


def policy(
    base: Any,
    prompt: Sequence[int],
    longest: int,
    ends: Sequence[int] = (1,),
    tilt: Callable[[Sequence[int]], np.ndarray] | None = None,
    **warp: float,
) -> Policy:
    """Return the policy of full forwards: log π_base + tilt, then the warps. Token 1 is EOS in
    every tiny network."""
    known: dict[tuple[int, ...], np.ndarray] = {}

    def plain(response: Sequence[int]) -> np.ndarray:
        key = tuple(response)
        if key not in known:
            known[key] = next_logprobs(base, [*prompt, *response])
        return known[key]

    def guided(response: Sequence[int]) -> np.ndarray:
        return plain(response) if tilt is None else log_softmax(plain(response) + tilt(response))

    return Policy(plain, guided, frozenset(ends), longest, warp)


def chunk_search(
    policy: Policy,
    value: Callable[[Hypothesis], float],
    keys: Callable[[int], int],
    beam_width: int,
    successors: int,
    chunk_length: int | None,
    advantage: bool = False,
) -> Hypothesis:
    """Search chunk by chunk with lists: the pool keeps what has finished, the best W live ones go
    on, the best of all wins."""
    beam = [Hypothesis() for _ in range(beam_width * successors)]
    pool: list[Hypothesis] = []
    reach = 0
    while beam:
        reach = policy.longest if chunk_length is None else reach + chunk_length
        grown = []
        for number, start in enumerate(beam):
            found = policy.extend(start, reach, keys(number))
            worth = value(found)
            grown.append(
                replace(found, value=worth, score=worth - (start.parent if advantage else 0.0))
            )
        pool.extend(found for found in grown if found.finish is not None)
        live = [found for found in grown if found.finish is None]
        live = [
            live[place]
            for place in sorted(range(len(live)), key=lambda place: (-live[place].score, place))
        ]
        live = live[:beam_width]
        top = sorted((found.value for found in pool), reverse=True)[:beam_width]
        if live and len(top) == beam_width and all(found.value <= top[-1] for found in live):
            break
        beam = [replace(found, parent=found.value) for found in live for _ in range(successors)]
    return max(pool, key=lambda found: found.value)


def published_search(
    policy: Policy,
    value: Callable[[Hypothesis], float],
    keys: Callable[[int], int],
    beam_width: int,
    successors: int,
    chunk_length: int,
) -> Hypothesis:
    """Search as the published loop selects: everything competes in every round, the first of the
    last round wins.

    Finished rows are scored again, copied K times like any other, and the loop ends when all W
    selected have finished.
    """
    rows = [Hypothesis() for _ in range(beam_width * successors)]
    reach = 0
    while True:
        reach += chunk_length
        rows = [policy.extend(row, reach, keys(number)) for number, row in enumerate(rows)]
        scores = np.array([value(row) for row in rows])
        chosen = np.argsort(-scores, kind="stable")[:beam_width]
        selected = [replace(rows[index], value=float(scores[index])) for index in chosen]
        if all(row.finish is not None for row in selected):
            return selected[0]
        rows = [row for row in selected for _ in range(successors)]


def responses(
    vocabulary: int, longest: int, ends: frozenset[int] = frozenset()
) -> list[tuple[int, ...]]:
    """Return every response: those that end by a token of `ends`, and the others of `longest`
    tokens."""
    found = []
    for length in range(1, longest + 1):
        for tokens in itertools.product(range(vocabulary), repeat=length):
            if any(token in ends for token in tokens[:-1]):
                continue
            if tokens[-1] in ends or length == longest:
                found.append(tokens)
    return found


def sequence_probabilities(
    conditional: Callable[[tuple[int, ...]], np.ndarray], every: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], float]:
    """Return p(y) of every response from next-token probabilities of prefixes."""
    cache: dict[tuple[int, ...], np.ndarray] = {}

    def after(prefix: tuple[int, ...]) -> np.ndarray:
        if prefix not in cache:
            cache[prefix] = conditional(prefix)
        return cache[prefix]

    return {
        tokens: math.prod(float(after(tokens[:t])[token]) for t, token in enumerate(tokens))
        for tokens in every
    }


def prefix_expectation(
    probabilities: dict[tuple[int, ...], float], reward: Callable[[tuple[int, ...]], float]
) -> Callable[[tuple[int, ...]], float]:
    """Return prefix ↦ E[reward of the response | prefix], by summing over all responses."""

    def expectation(prefix: tuple[int, ...]) -> float:
        inside = [(y, p) for y, p in probabilities.items() if y[: len(prefix)] == prefix]
        total = sum(p for _, p in inside)
        return sum(p * reward(y) for y, p in inside) / total

    return expectation


def chi_square(counts: Sequence[float], expected: Sequence[float]) -> float:
    """Return the chi-square statistic as a number of standard deviations above its mean
    (Wilson–Hilferty)."""
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    degrees = len(counts) - 1
    return ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(
        2 / (9 * degrees)
    )
