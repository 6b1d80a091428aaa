"""Responses that a value learns from, drawn by this project's own engine: by the base, or guided.

Reference: Mudgal et al. (2023), controlled decoding, for rollouts of the base; Liu et al. (2025), iterative value
optimisation, for those guided by the round before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ivgcli import records
from ivgcli.errors import RecordError
from ivgcli.recipes import Guide, InitSpec, TrainExplicitRecipe, run_id, to_yaml
from ivgcli.records import Prompt
from ivgcli.training.answers import Answer
from ivgcli.training.lookahead import next_distributions
from ivgcli.training.reading import AT_ONCE
from ivgcli.training.sequences import Encoder, Example
from ivgcli.training.stages import Setting
from ivgcli.training.start import Start
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
    if not prompts:
        return []
    path = setting.folder.path / FOLDER / f"{name}.jsonl"
    try:
        if setting.processes.first and not path.is_file():
            _write(setting, path, prompts, responses, guide, reward, seed)
    finally:
        # Whatever came of it: the others see whether the file is there.
        setting.processes.wait()
    if not path.is_file():
        raise RecordError(str(path), "the first process has not drawn it")
    return _answers(records.read_records(path), name, prompts)


def _write(
    setting: Setting,
    path: Path,
    prompts: Sequence[Prompt],
    responses: int,
    guide: Guide | None,
    reward: Rewarding,
    seed: int,
) -> None:
    """Draw, reward and write responses; what is drawn is kept apart until all have their rewards."""
    with records.telling(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    drawn = path.with_suffix(".drawn.jsonl")
    _decode(setting, drawn, prompts, responses, guide, seed, path.stem)
    lines = records.read_records(drawn)
    answers = reward(_answers(lines, path.stem, prompts))
    rewarded = [_line(line, answer.reward) for line, answer in zip(lines, answers, strict=True)]
    records.write_records(path, rewarded)
    for each in path.parent.glob(f"{drawn.name}*"):
        each.unlink()


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


def _answers(
    lines: Sequence[Mapping[str, Any]], name: str, prompts: Sequence[Prompt]
) -> list[Answer]:
    """Return the responses that the lines of a file hold."""
    known = {prompt.id: prompt for prompt in prompts}
    return [
        Answer(
            f"{line['id']}/{name}/{line['sample']}",
            known[line["id"]],
            line["response"],
            line["finish"] == "eos",
            line.get("reward"),
        )
        for line in lines
    ]


def _line(line: Mapping[str, Any], reward: float | None) -> dict[str, Any]:
    """Return a response's record with its reward; the run is the folder's, not one of its own."""
    return {**{name: value for name, value in line.items() if name != "run"}, "reward": reward}


def next_tokens(
    setting: Setting, answers: Sequence[Answer], examples: Sequence[Example], vocabulary: int
) -> list[tuple[Tensor, Tensor]]:
    """Return what the base may say next after every prefix, as `next_distributions` does, for cd-q.

    The base is shown a prompt in its own format; the response's token ids are the value's, which
    are the base's as well.

    Args:
        setting: recipe and folder; the recipe has rollouts.
        answers: the responses.
        examples: the same, in the value's tokens.
        vocabulary: number of tokens that count.
    """
    recipe: Any = setting.recipe
    base = Start(InitSpec(**recipe.rollouts.base.model_dump()), setting.say)
    encoder = Encoder(base.form)
    asked = [
        replace(example, prompt_ids=encoder.encode(answer.prompt, "").prompt_ids)
        for answer, example in zip(answers, examples, strict=True)
    ]
    dtype = torch.bfloat16 if setting.bf16 else torch.float32
    model = base.load(dtype).eval().to(setting.device)
    return next_distributions(model, asked, recipe.value.candidates, AT_ONCE, vocabulary)


def seed_of(recipe: TrainExplicitRecipe, number: int) -> int:
    """Return the seed of a round's draws, no two of which repeat each other."""
    return recipe.seed + 1_000_003 * number
