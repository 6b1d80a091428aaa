"""Responses that a value learns from, drawn by this project's own engine: by the base, or guided.

Reference: Mudgal et al. (2023), controlled decoding, for rollouts of the base; Liu et al. (2025), iterative value
optimisation, for those guided by the round before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ivgcli import records
from ivgcli.errors import RecordError
from ivgcli.recipes import Guide, TrainExplicitRecipe, run_id, to_yaml
from ivgcli.records import Prompt
from ivgcli.training.answers import Answer
from ivgcli.training.stages import Setting
from ivgcli.workflows.generate import generate

FOLDER = "rollouts"

Rewarding = Callable[[Sequence[Answer]], list[Answer]]
"""Adds rewards to answers."""


def draw(
    setting: Setting,
    name: str,
    prompts: Sequence[Prompt],
    responses: int,
    guide: Guide | None,
    reward: Rewarding,
    seed: int,
) -> list[Answer]:
    """Return drawn and rewarded responses, drawing only what an earlier run has not.

    The first process draws while the others wait; `OUT/rollouts/NAME.jsonl` then holds one line for
    each response with its reward.

    Args:
        setting: recipe and folder; the recipe has rollouts.
        name: of the file.
        prompts: what is answered.
        responses: how many to each prompt.
        guide: what steers them; None: the base alone.
        reward: scores them.
        seed: of the draws.

    Raises:
        RecordError: a prompt cannot be answered, or a response has no finite reward.
    """
    path = setting.folder.path / FOLDER / f"{name}.jsonl"
    if setting.processes.first and not path.is_file():
        with records.telling(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        drawn = path.with_suffix(".drawn.jsonl")
        _decode(setting, drawn, prompts, responses, guide, seed, name)
        answers = reward(_answers(drawn, prompts))
        lines = [_line(each) for each in answers]
        records.write_records(path, lines)
        for each in path.parent.glob(f"{drawn.name}*"):
            each.unlink()
    setting.processes.wait()
    return [
        replace(answer, reward=float(line["reward"]))
        for answer, line in zip(
            _answers(path, prompts), records.read_records(path), strict=True
        )
    ]


def _decode(
    setting: Setting,
    path: Path,
    prompts: Sequence[Prompt],
    responses: int,
    guide: Guide | None,
    seed: int,
    name: str,
) -> None:
    """Draw responses into a file that can be resumed."""
    training: Any = setting.recipe
    recipe = training.rollout_recipe(guide).model_copy(update={"seed": seed})
    sampling = recipe.sampling.model_copy(update={"samples": responses})
    recipe = recipe.model_copy(update={"sampling": sampling})
    keys = [(prompt.id, sample) for prompt in prompts for sample in range(responses)]
    bare = [replace(prompt, extra={}) for prompt in prompts]
    with records.open_responses(
        str(path), keys=keys, run=run_id(recipe), recipe_yaml=to_yaml(recipe), resume=path.exists()
    ) as writer:
        bar = setting.progress(f"drawing {name}", len(keys), len(writer.done), "responses")
        with bar as progress:
            summary = generate(recipe, bare, writer, None, progress)
    if summary.failures:
        identity, sentence = summary.failures[0]
        what = f"cannot be answered ({len(summary.failures)} of {len(prompts)}): {sentence}"
        raise RecordError(identity, what, "mend the prompt or leave it out")
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()


def _answers(path: Path, prompts: Sequence[Prompt]) -> list[Answer]:
    """Return the responses of a file."""
    known = {prompt.id: prompt for prompt in prompts}
    return [
        Answer(
            f"{line['id']}/{path.stem.partition('.')[0]}/{line['sample']}",
            known[line["id"]],
            line["response"],
            line["finish"] == "eos",
        )
        for line in records.read_records(path)
    ]


def _line(answer: Answer) -> dict[str, Any]:
    """Return an answer as a record."""
    fields = {
        "response": answer.text,
        "sample": int(answer.id.rpartition("/")[2]),
        "finish": "eos" if answer.ended else "length",
        "reward": answer.reward,
    }
    return replace(answer.prompt, extra={}).respond(fields)


def branch(
    answers: Sequence[Answer],
    tokens: Sequence[Sequence[int]],
    branches: int,
    seed: int,
    text_of: Callable[[int, int], str | None],
) -> list[list[tuple[int, Prompt]]]:
    """Choose prefixes of responses to draw further continuations from.

    Args:
        answers: the responses.
        tokens: (n,) token ids of each.
        branches: how many prefixes of each.
        seed: of the choice, which is uniform and without repetition.
        text_of: text of the first t tokens of a response by its number and t; None if they end
            inside a character.

    Returns:
        For each response, t in 0..n−1 with the prompt that such a continuation answers.
    """
    found = []
    for number, (answer, ids) in enumerate(zip(answers, tokens, strict=True)):
        order = sorted(range(len(ids)), key=lambda t: _draw(seed, answer.id, t))
        chosen: list[tuple[int, Prompt]] = []
        for t in order:
            text = text_of(number, t)
            if len(chosen) < branches and text is not None:
                chosen.append((t, continued(answer.prompt, text, f"{answer.id}#{t}")))
        found.append(sorted(chosen, key=lambda each: each[0]))
    return found


def continued(prompt: Prompt, text: str, identity: str) -> Prompt:
    """Return a prompt that is answered by going on from `text`, the beginning of a response to it.

    A conversation gets a last message of the assistant, which chat templates leave open.
    """
    if prompt.messages is None:
        return Prompt(identity, (prompt.text or "") + text, None)
    turn = ({"role": "assistant", "content": text},) if text else ()
    return Prompt(identity, None, (*prompt.messages, *turn))


def _draw(seed: int, identity: str, place: int) -> bytes:
    """Return a prefix's place in a random order."""
    return hashlib.blake2b(f"{seed}/{place}/{identity}".encode("utf-8", "surrogatepass")).digest()


def seed_of(recipe: TrainExplicitRecipe, number: int) -> int:
    """Return the seed of a round's draws, no two of which repeat each other."""
    return recipe.seed + 1_000_003 * number
