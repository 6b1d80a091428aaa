"""From a recipe's reward to the rewards of whole responses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ivgcli.errors import ModelError, RecordError
from ivgcli.models.loading import Networks
from ivgcli.models.prompts import PromptFormat
from ivgcli.recipes import RewardSpec
from ivgcli.scoring.callables import CallableScorer
from ivgcli.scoring.pointwise import RewardModel
from ivgcli.values import Prompted


class Reward:
    """Scores the responses to one prompt at a time, so that their rewards depend on nothing else.

    Args:
        spec: a callable, a reward model or a classifier with the label to look at.
        networks: where models are loaded.

    Raises:
        ModelError: it cannot be had, or the label does not suit it.
    """

    def __init__(self, spec: RewardSpec, networks: Networks) -> None:
        self._scorer: CallableScorer | RewardModel
        if spec.model is None:
            self._scorer = CallableScorer(str(spec.callable))
            self._reads_messages = False
            return
        model, tokenizer = networks.classifier(spec.model, several=True)
        form = PromptFormat(tokenizer, spec.model.template, spec.model.system, spec.model.chat)
        label = label_index(spec.model.model, model.config, spec.label)
        self._scorer = RewardModel(spec.model.model, model, tokenizer, form, label)
        self._reads_messages = form.chat

    @property
    def name(self) -> str:
        """What to call it in errors."""
        return self._scorer.name

    def score(
        self, prompt: Prompted, responses: Sequence[str], finished: Sequence[bool]
    ) -> tuple[list[float], str | None]:
        """Return the reward of each response, and a sentence if one of them has none.

        Args:
            prompt: what they answer.
            responses: k texts.
            finished: k; whether each ended by itself.
        """
        talk = self._reads_messages and prompt.messages is not None
        asked: Any = prompt.messages if talk else prompt.plain
        try:
            rewards = self._scorer.score([asked] * len(responses), responses, finished)
        except RecordError as error:
            return [math.nan] * len(responses), str(error)
        if all(map(math.isfinite, rewards)):
            return rewards, None
        hint = "check it; a network may need a wider --dtype"
        return rewards, f"{self.name}: gave a number that is not finite → {hint}"


def label_index(name: str, config: Any, label: int | str | None) -> int | None:
    """Return the number of a classifier's label; None for a model with one output.

    Args:
        name: what to call the model in errors.
        config: its configuration.
        label: the label, by name or number from 0; None for a model with one output.

    Raises:
        ModelError: there is no such label, or the model needs one and none is given.
    """
    count = int(config.num_labels)
    names = {index: str(config.id2label.get(index, index)) for index in range(count)}
    known = ", ".join(names.values())
    if count == 1:
        if label is None:
            return None
        raise ModelError(name, "has one output and no labels", "leave reward.label out")
    if label is None:
        what = f"a classifier with {count} labels ({known}), and reward.label names none"
        raise ModelError(name, what, f"--reward-label {names[count - 1]}")
    found = [index for index, spoken in names.items() if label == spoken]
    found = found or [index for index in names if str(label) == str(index)]
    if not found:
        raise ModelError(name, f'no label "{label}"', f"known: {known}; or 0 to {count - 1}")
    return found[0]
