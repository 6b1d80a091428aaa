"""`ivg train-explicit`: pairs to a reward model, and rewarded responses to a value of their prefixes.

Reference: Mudgal et al. (2023), controlled decoding (FUDGE and CD-Q); Han et al. (2024), VAS (TD(λ)); Liu et al.
(2025), IVO (rounds of guided rollouts); Liu et al. (2024), IVG, eq. 12.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainingArguments

from ivgcli.errors import ModelError
from ivgcli.models.loading import Networks
from ivgcli.recipes import (
    ExplicitSpec,
    Guide,
    LoraSpec,
    ModelSpec,
    TrainExplicitRecipe,
)
from ivgcli.recipes.training import Head
from ivgcli.records import Prompt
from ivgcli.training import rollouts
from ivgcli.training.adapters import lora_config
from ivgcli.training.answers import Answer, encode, rewarded
from ivgcli.training.continuations import branch, completed, mean_targets
from ivgcli.training.foresight import longest, require_parts
from ivgcli.training.options import LENGTH, arguments, building
from ivgcli.training.reading import AT_ONCE, explicit_values
from ivgcli.training.scorer import PrefixScorer, as_scorer, save_value
from ivgcli.training.selection import EncodedPair, cut
from ivgcli.training.sequences import Encoder, Example
from ivgcli.training.stages import Setting, saving, train, watched
from ivgcli.training.start import Start
from ivgcli.training.value_trainer import Targets, ValueTrainer, rows

REWARD_MODEL, VALUE = "reward-model", "value"
START = "start"
ROUNDS = "rounds"


class Explicit:
    """The stages of one run of `ivg train-explicit`.

    Args:
        setting: recipe and folder.
        start: the model to start from.
    """

    def __init__(self, setting: Setting, start: Start) -> None:
        self.setting = setting
        self.recipe: TrainExplicitRecipe = setting.recipe  # type: ignore[assignment]
        self.start = start
        self.encoder = Encoder(start.form)
        self.vocabulary = int(start.config.get_text_config().vocab_size)
        folder = setting.folder
        self.came_to: dict[str, Any] = folder.recorded().get("stages", {}) if folder.writes else {}
        require_parts(setting, start)

    def train_reward_model(self, pairs: Sequence[EncodedPair]) -> None:
        """Fit a reward model to pairs by Bradley and Terry's likelihood, unless it is finished already."""
        if not self.setting.folder.has(REWARD_MODEL):
            from trl import RewardConfig, RewardTrainer  # seconds, which a given reward saves

            spec, lora = self.recipe.reward_model, self.recipe.lora
            data = [
                {
                    "chosen_ids": pair.chosen.ids,
                    "rejected_ids": pair.rejected.ids,
                    LENGTH: max(len(pair.chosen.ids), len(pair.rejected.ids)),
                }
                for pair in pairs
            ]
            options = arguments(
                RewardConfig,
                spec,
                self.setting,
                "reward_model",
                len(data),
                max_length=self.recipe.data.max_length,
                center_rewards_coefficient=spec.center_rewards_coefficient,
            )
            with building("reward_model"):
                trainer = watched(RewardTrainer)(
                    model=self._scorer("init", "scalar", None).model,
                    args=options,
                    train_dataset=Dataset.from_list(data),
                    processing_class=self.start.tokenizer,
                    peft_config=None if lora is None else lora_config(lora, "SEQ_CLS"),
                )
            came_to = train(trainer, self.setting, "reward_model", "reward model")
            model = trainer.accelerator.unwrap_model(trainer.model)
            self._write(REWARD_MODEL, PrefixScorer(model), "reward_model", came_to)
        self.setting.processes.wait()

    def reward(self, answers: Sequence[Answer]) -> list[Answer]:
        """Return answers with the reward that the recipe gives, or that the reward model of this run gives.

        Raises:
            RecordError: one of them has no finite reward.
        """
        if not answers:
            return []
        bar = self.setting.progress("rewards", len(answers), 0, "responses")
        with bar as progress:
            if self.recipe.reward is not None:
                where = self.recipe.engine
                networks = Networks(where.device, where.dtype, self.setting.say)
                return rewarded(answers, self.recipe.reward, networks, progress.advance)
            model = self.load(REWARD_MODEL)
            most = longest(model.config) or sys.maxsize
            examples = [cut(each, most) for each in encode(answers, self.encoder)]
            values = explicit_values(model, "scalar", examples, AT_ONCE, advance=progress.advance)
        return [
            replace(answer, reward=float(each[-1]))
            for answer, each in zip(answers, values, strict=True)
        ]

    def train_value(self, given: Sequence[Answer], prompts: Sequence[Prompt]) -> None:
        """Train the prefix scorer, in as many rounds as the recipe has, unless it is finished already.

        Args:
            given: rewarded responses of the pairs.
            prompts: what rollouts answer.
        """
        spec, folder = self.recipe.value, self.setting.folder
        if folder.has(VALUE):
            return
        learnt = list(given) if spec.responses == "given" else []
        for number in range(1, spec.rounds + 1):
            last = number == spec.rounds
            if spec.responses != "given":
                learnt += self._draw(number, prompts)
            name = VALUE if last else f"{ROUNDS}/{number}"
            if not folder.has(name):
                self._train_round(number, name, learnt)
            self.setting.processes.wait()

    def _draw(self, number: int, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return the responses of one round: the base's in the first, then as the recipe says."""
        recipe = self.recipe
        assert recipe.rollouts is not None, "a recipe that draws has rollouts"
        return rollouts.draw(
            self.setting,
            f"round-{number}",
            prompts,
            recipe.rollouts.responses,
            self._guide_of(number),
            self.reward,
            rollouts.seed_of(recipe, number),
        )

    def draw_held_out(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return the base's rewarded responses to held-out prompts, for the report."""
        recipe = self.recipe
        assert recipe.rollouts is not None, "a recipe that draws has rollouts"
        asked = prompts[: recipe.rollouts.held_out]
        count, seed = recipe.rollouts.responses, rollouts.seed_of(recipe, 0)
        return rollouts.draw(self.setting, "held-out", asked, count, None, self.reward, seed)

    def _guide_of(self, number: int) -> Guide | None:
        """Return the guide of a round: the value before it, and the implicit value that the recipe has."""
        if number == 1 or self.recipe.value.responses != "guided":
            return None
        # A whole path, so that a run that goes on elsewhere knows its own drawings.
        value = (self.setting.folder.path / f"{ROUNDS}/{number - 1}").resolve()
        model = ModelSpec(**self.start.described(str(value)))
        spec = ExplicitSpec(model=model, head=self.recipe.value.head, link=self.link)
        given = self.recipe.guide
        return Guide(explicit=(spec,), implicit=() if given is None else given.implicit)

    @property
    def link(self) -> Any:
        """What decoding does to the outputs: a logit of being good is a value as its log-probability."""
        return "log-sigmoid" if self.recipe.value.target == "fudge-bce" else "identity"

    def _train_round(self, number: int, name: str, answers: Sequence[Answer]) -> None:
        """Train on all responses so far and write the value."""
        spec = self.recipe.value
        most = longest(self.start.config, self.recipe.data.max_length) or sys.maxsize
        encoded = list(zip(answers, encode(answers, self.encoder), strict=True))
        fitting = [(answer, each) for answer, each in encoded if len(each.ids) <= most]
        if len(fitting) < len(encoded):
            missed = len(encoded) - len(fitting)
            self.setting.say(f"{missed:,} responses left out (beyond {most} tokens)")
        if not fitting:
            what = f"no response ends within {most} tokens"
            hint = "raise it, or start from a network with more positions"
            raise ModelError("data.max_length", what, hint)
        answers, examples = [each for each, _ in fitting], [each for _, each in fitting]
        data = rows(
            examples,
            self.continuation_targets(number, answers, examples),
            rollouts.next_tokens(self.setting, answers, examples, self.vocabulary)
            if spec.target == "cd-q"
            else None,
        )
        stage = VALUE if spec.rounds == 1 else f"{VALUE}-{number}"
        options = arguments(TrainingArguments, spec, self.setting, stage, len(data))
        for row in data:
            row[LENGTH] = len(row["prompt_ids"]) + len(row["response_ids"])
        with building(VALUE):
            scorer = self._scorer(self._begins_from(number), spec.head, self.recipe.lora)
            dataset, pad_id = Dataset.from_list(data), self.start.pad_id
            trainer = watched(ValueTrainer)(scorer, options, spec, pad_id, dataset)
        title = "value" if spec.rounds == 1 else f"value, round {number} of {spec.rounds}"
        came_to = train(trainer, self.setting, stage, title)
        self._write(name, trainer.accelerator.unwrap_model(trainer.model), stage, came_to)

    def _begins_from(self, number: int) -> str:
        """Return what a round's weights begin from: those of the round before, the reward model's, or the start's."""
        spec = self.recipe.value
        if number > 1:
            return f"{ROUNDS}/{number - 1}"
        if spec.start == "init" or self.recipe.reward is not None:
            return "init"
        return REWARD_MODEL

    def _scorer(self, source: str, head: Head, lora: LoraSpec | None) -> PrefixScorer:
        """Return a scorer to be trained, from a finished model of this run or from the start's weights."""
        torch.manual_seed(self.recipe.seed)
        if source != "init":
            path = str(self.setting.folder.path / source)
            return as_scorer(path, head, self.vocabulary, lora)
        if self.start.reference.adapter is not None:
            return as_scorer(self._merged_start(), head, self.vocabulary, lora)
        own = {"config": self.start.config, **self.start.options}
        return as_scorer(self.start.plain.source, head, self.vocabulary, lora, **own)

    def _merged_start(self) -> str:
        """Return a folder with the starting weights, their adapter merged."""
        path = self.setting.folder.checkpoints(START)
        if self.setting.processes.first and not (path / "config.json").is_file():
            with saving(path):
                self.start.load().save_pretrained(path)
        self.setting.processes.wait()
        return str(path)

    def continuation_targets(
        self, number: int, answers: Sequence[Answer], examples: Sequence[Example]
    ) -> list[Targets] | None:
        """Return monte-carlo's targets where they are means of several continuations."""
        spec, given = self.recipe.value, self.recipe.rollouts
        if spec.target != "monte-carlo" or spec.continuations == 1:
            return None
        assert given is not None, "a recipe that draws has rollouts"
        drawn = spec.responses != "given"
        limit = given.sampling.max_new_tokens if drawn else None
        first = 0 if spec.head == "scalar" else 1
        seed = rollouts.seed_of(self.recipe, 1_000 + number)
        tokenizer = self.start.tokenizer
        places = branch(answers, examples, tokenizer, spec.branches, first, seed)

        def reward(found: Sequence[Answer]) -> list[Answer]:
            """Give continuations the rewards of the whole responses that they complete."""
            whole = self.reward(completed(found, answers, self.encoder, limit))
            return [replace(each, reward=of.reward) for each, of in zip(found, whole, strict=True)]

        continuations = rollouts.draw(
            self.setting,
            f"continuations-{number}",
            [prompt for chosen in places for _, prompt in chosen],
            # The response itself is one of them.
            spec.continuations - drawn,
            self._guide_of(number),
            reward,
            rollouts.seed_of(self.recipe, 2_000 + number),
        )
        return mean_targets(answers, examples, places, continuations, drawn)

    def _write(
        self, name: str, scorer: PrefixScorer, stage: str, came_to: Mapping[str, Any]
    ) -> None:
        """Write what a stage has trained with its tokenizer, by the first process, and note what it came to."""
        folder = self.setting.folder
        with folder.publishing(name) as work:
            if self.setting.processes.first:
                # Responses are scored with their end, whatever the prompt's format.
                scorer.config.ivg = {"ends_with_eos": True}
                with saving(folder.path / name):
                    save_value(scorer, self.start.tokenizer, str(work))
        self.came_to[stage] = came_to
        folder.account({"stages": self.came_to})

    def load(self, name: str) -> Any:
        """Return a finished reward model or value of this run, ready to be read."""
        path: Path = self.setting.folder.path / name
        head = "scalar" if name == REWARD_MODEL else self.recipe.value.head
        return as_scorer(str(path), head, self.vocabulary).model.eval().to(self.setting.device)
