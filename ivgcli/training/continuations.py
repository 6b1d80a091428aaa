"""Further continuations of prefixes, whose mean reward is what a value by Monte Carlo regresses on.

Reference: Liu et al. (2025), iterative value optimisation, which draws them under the guided policy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ivgcli.models.text import BROKEN, response_text
from ivgcli.records import Prompt
from ivgcli.training.answers import Answer
from ivgcli.training.sequences import Encoder, Example
from ivgcli.training.value_trainer import Targets

Place = tuple[int, Prompt]
"""Tokens of a response that a prefix has, and the prompt that its continuations answer."""


def branch(
    answers: Sequence[Answer],
    examples: Sequence[Example],
    tokenizer: Any,
    branches: int,
    first: int,
    seed: int,
) -> list[list[Place]]:
    """Choose prefixes of responses to draw further continuations from.

    Args:
        answers: the responses.
        examples: the same, in tokens.
        tokenizer: of those tokens.
        branches: how many prefixes of each.
        first: the first prefix that is trained: 0 for a scalar head, 1 for token-q.
        seed: of the choice, which is uniform and without repetition.

    Returns:
        For each response of n tokens, its EOS among them, the chosen t in first..n−1. A prefix that
        ends inside a character is not chosen, for it has no text.
    """
    found = []
    for answer, example in zip(answers, examples, strict=True):
        lengths = range(first, len(example.response_ids))
        chosen: list[Place] = []
        for t in sorted(lengths, key=lambda t: _draw(seed, answer.id, t)):
            text = response_text(tokenizer, example.prompt_ids, example.response_ids[:t])
            if len(chosen) < branches and not text.endswith(BROKEN):
                chosen.append((t, continued(answer.prompt, text, f"{answer.id}#{t}")))
        found.append(sorted(chosen, key=lambda place: place[0]))
    return found


def continued(prompt: Prompt, text: str, identity: str) -> Prompt:
    """Return a prompt that is answered by going on from `text`, the beginning of a response to it.

    It is a conversation whose last message is the assistant's, whatever the prompt was: a template
    goes around what was asked, and not around the beginning of the answer.
    """
    if not text:
        return Prompt(identity, prompt.text, prompt.messages)
    asked = prompt.messages or ({"role": "user", "content": prompt.text},)
    return Prompt(identity, None, (*asked, {"role": "assistant", "content": text}))


def completed(
    continuations: Sequence[Answer],
    answers: Sequence[Answer],
    encoder: Encoder,
    longest: int | None,
) -> list[Answer]:
    """Return the whole responses that continuations complete, which is what is rewarded.

    Args:
        continuations: what was drawn.
        answers: the responses that they branch off from.
        encoder: how a response becomes tokens.
        longest: tokens after which the responses themselves were cut; a continuation that goes on
            beyond would have another law. None: given responses, which were not cut.
    """
    origin = {answer.id: answer for answer in answers}
    whole = []
    for each in continuations:
        source = origin[each.prompt.id.rpartition("#")[0]]
        turns = each.prompt.messages or ()
        begun = str(turns[-1]["content"]) if turns and turns[-1]["role"] == "assistant" else ""
        full = replace(each, prompt=source.prompt, text=begun + each.text)
        whole.append(full if longest is None else _cut(full, encoder, longest))
    return whole


def _cut(answer: Answer, encoder: Encoder, longest: int) -> Answer:
    """Return an answer as if its drawing had stopped at a number of tokens."""
    example = encoder.encode(answer.prompt, answer.text, answer.ended)
    if len(example.response_ids) <= longest:
        return answer
    kept = example.response_ids[:longest]
    text = response_text(encoder.tokenizer, example.prompt_ids, kept)
    return replace(answer, text=text, ended=False)


def mean_targets(
    answers: Sequence[Answer],
    examples: Sequence[Example],
    places: Sequence[Sequence[Place]],
    continuations: Sequence[Answer],
    drawn: bool,
) -> list[Targets]:
    """Return what the prefixes 0..n of each response regress on.

        V(x, y≤t) → (r_1 + … + r_K) / K at a branched prefix, with the response's own reward among
        them if it was drawn by the same policy

    A whole response is worth its own reward. So is, as a mean of one, every other prefix of a drawn
    response; given responses were drawn from no model, and their other prefixes are not trained.

    Args:
        answers: the responses, rewarded.
        examples: the same, in tokens.
        places: where continuations branch off.
        continuations: rewarded; each answers the prompt of its place.
        drawn: whether the responses were drawn.
    """
    returns: dict[str, list[float]] = {}
    for each in continuations:
        returns.setdefault(each.prompt.id, []).append(_reward(each))
    found: list[Targets] = []
    for answer, example, chosen in zip(answers, examples, places, strict=True):
        own = [_reward(answer)]
        targets: list[float | None] = [own[0] if drawn else None] * len(example.response_ids)
        for t, prompt in chosen:
            rewards = returns[prompt.id] + (own if drawn else [])
            targets[t] = sum(rewards) / len(rewards)
        found.append([*targets, *own])
    return found


def _reward(answer: Answer) -> float:
    """Return the reward of an answer that has one."""
    if answer.reward is None:
        raise AssertionError("continuations are of rewarded answers, and rewarded themselves")
    return answer.reward


def _draw(seed: int, identity: str, place: int) -> bytes:
    """Return a prefix's place in a random order."""
    return hashlib.blake2b(f"{seed}/{place}/{identity}".encode("utf-8", "surrogatepass")).digest()
