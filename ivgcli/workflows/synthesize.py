"""`ivg synthesize`: prompts to scored responses, of which preference pairs are made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ivgcli.console import Narrator
from ivgcli.decoding.search import Outcome, Request
from ivgcli.models.loading import Networks
from ivgcli.recipes import SynthesizeRecipe, run_id
from ivgcli.records import Pair, PairWriter, Prompt
from ivgcli.workflows.fields import choice_bound, prompted, response_fields, rounded, shared_fields
from ivgcli.workflows.generate import assemble, build_mode, decode_all, device_name
from ivgcli.workflows.rewards import Reward
from ivgcli.workflows.shares import portions
from ivgcli.workflows.summary import Share, Summary

CHAT_AS_TEXT = (
    "the responses were drawn through the base's chat template, and the pairs are plain text:"
    " --conversational writes messages, which a trainer puts into the template again"
)


def draw_and_score(
    recipe: SynthesizeRecipe,
    prompts: Sequence[Prompt],
    writer: PairWriter,
    progress: Narrator | None = None,
    share: Share | None = None,
) -> Summary:
    """Draw `responses` responses for each prompt of ours, score them, and hand them to the writer.

    They are those that `ivg generate --samples` draws under the same seed. A prompt of whose
    responses one fails has failed as a whole: which pairs it makes is a matter of all of them.

    Raises:
        ModelError: a model cannot be had, driven or used in this mode, or the reward cannot.
        RecipeError: one search needs more rows than `engine.rows`.
    """
    reward = build_reward(recipe, progress)
    assembly = assemble(recipe, progress)
    mode = build_mode(recipe, assembly)
    wanted = [prompt for prompt in prompts if prompt.id not in writer.done]
    by_id = {prompt.id: prompt for prompt in wanted}
    asked = {prompt.id: prompted(prompt) for prompt in wanted}
    requests = [
        Request(asked[prompt.id], sample) for prompt in wanted for sample in range(recipe.responses)
    ]
    shared = shared_fields(recipe, recipe.mode)
    gathered: dict[str, list[Outcome]] = {}
    failures: list[tuple[str, str]] = []

    def record(outcome: Outcome) -> None:
        identity = outcome.request.prompt.id
        drawn = gathered.setdefault(identity, [])
        drawn.append(outcome)
        if len(drawn) < recipe.responses:
            return
        del gathered[identity]
        drawn.sort(key=lambda each: each.request.sample)
        fields = [
            response_fields(
                each,
                {**shared, "sample": each.request.sample},
                choice_bound(mode.chunk, each),
            )
            for each in drawn
        ]
        failure = next((each.failure for each in drawn if each.winner is None), None)
        if failure is None:
            texts = [each["response"] for each in fields]
            ended = [each["finish"] == "eos" for each in fields]
            failure = add_rewards(fields, reward, asked[identity], texts, ended)
        if failure is not None:
            failures.append((identity, failure))
        writer.write([by_id[identity].respond(each) for each in fields])

    each = recipe.responses
    summary = decode_all(
        recipe, assembly, mode, requests, record, None, progress, share=share, unit=each
    )
    notes = summary.notes
    plain = not recipe.conversational and any(prompt.messages is None for prompt in prompts)
    if assembly.base.prompts.chat and plain:
        notes += (CHAT_AS_TEXT,)
    return replace(summary, records=summary.records // each, failures=failures, notes=notes)


def score_again(
    recipe: SynthesizeRecipe,
    pairs: Sequence[Pair],
    writer: PairWriter,
    progress: Narrator | None = None,
    share: Share | None = None,
) -> Summary:
    """Score both responses of each pair and hand them to the writer, the chosen one as number 0.

    Raises:
        ModelError: the reward cannot be had.
    """
    networks = build_networks(recipe, progress)
    reward = Reward(recipe.reward, networks)
    run = run_id(recipe)
    wanted = [pair for pair in pairs if pair.id not in writer.done]
    failures: list[tuple[str, str]] = []
    began = time.monotonic()
    for [pair] in portions(wanted, 1, share):
        texts = [pair.chosen, pair.rejected]
        fields: list[dict[str, Any]] = [
            {"response": text, "sample": sample, "run": run} for sample, text in enumerate(texts)
        ]
        failure = add_rewards(fields, reward, prompted(pair.prompt), texts, [True, True])
        if failure is not None:
            failures.append((pair.id, failure))
        writer.write([pair.prompt.respond(each) for each in fields])
        if progress is not None:
            progress.advance(len(texts), "")
    seconds = time.monotonic() - began
    device = device_name(networks.device)
    return Summary(len(wanted), failures, 0, seconds, 0, None, device=device)


def add_rewards(
    fields: Sequence[dict[str, Any]],
    reward: Reward,
    prompt: Any,
    texts: Sequence[str],
    ended: Sequence[bool],
) -> str | None:
    """Add `reward` to the fields of one prompt's responses; return a sentence if it failed.

    A response without a finite reward gets null and the sentence as its `error`.
    """
    rewards, failure = reward.score(prompt, texts, ended)
    for each, number in zip(fields, rewards, strict=True):
        each["reward"] = rounded(number)
        if each["reward"] is None:
            each["error"] = failure
    return failure


def build_networks(recipe: SynthesizeRecipe, progress: Narrator | None) -> Networks:
    """Return where the reward's networks are loaded."""
    say = progress.say if progress is not None else lambda sentence: None
    return Networks(recipe.engine.device, recipe.engine.dtype, say)


def build_reward(recipe: SynthesizeRecipe, progress: Narrator | None) -> Reward:
    """Return the reward; it comes first, for a misspelt one should not wait for a large base."""
    return Reward(recipe.reward, build_networks(recipe, progress))
