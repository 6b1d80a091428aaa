"""Reward models that read a whole text at once, encoders included; nothing is cached between calls."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ivgcli.models.prompts import PromptFormat
from ivgcli.scoring.adapters import Family, family_of
from ivgcli.scoring.texts import Conversation, TextEncoder, padded

__all__ = ["BATCH", "Conversation", "RewardModel"]

BATCH = 16
"""Texts read at once."""


class RewardModel:
    """A reward model of one of the families of `ivgcli.scoring.adapters`.

    With one output, that is the reward. With several labels, the reward is the log-odds of one against all others,
    logit[label] − log Σ exp(logits of the others): the log of p/(1 − p).

    Texts are scored in batches of similar length. A text longer than the model can read loses the beginning of its
    prompt, and of its response only where that alone is too long; `left_out` says of how many tokens. (Published code
    mostly cuts at the end, or does not cut at all.)

    A model whose config.json says `"ivg": {"ends_with_eos": true}`, as those trained by this project do, reads EOS
    after every response that ended by itself, and after no other.

    Args:
        name: what to call it in errors.
        model: the network, in the stock class that `Networks.reward_model` gives.
        tokenizer: its tokenizer.
        prompts: how it is shown a prompt.
        label: index of the label whose log-odds are the reward; None for a model with one output.
        family: how it is shown texts and read; None: a sequence classifier, of pairs if it is a DeBERTa.
        together: texts read at once; with 1, no reward depends on which those are.

    Attributes:
        left_out: tokens left out of each text of the latest call of `score`, 0 where all were read.
        spent: tokens read of each of them.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: Any,
        prompts: PromptFormat,
        label: int | None = None,
        family: Family | None = None,
        together: int = BATCH,
    ) -> None:
        self.name = name
        self.together = together
        self.label = label
        self.model = model
        self.tokenizer = tokenizer
        self.left_out: list[int] = []
        self.spent: list[int] = []
        config: Any = model.config
        self.family = family_of(config) if family is None else family
        # RoBERTa has two positions more than it can use, so the tokenizer's word counts too.
        positions = getattr(config, "max_position_embeddings", None) or 10**9
        longest = min(positions, tokenizer.model_max_length or 10**9)
        limit = longest if longest < 10**9 else None
        self.texts = TextEncoder(tokenizer, prompts, self.family.layout, limit)
        # GPT-2 would add a token's embedding for each type; only encoders that ask for types get them.
        asks = "token_type_ids" in inspect.signature(model.forward).parameters
        self._typed = asks and not hasattr(model, "score")
        # Some checkpoints name a padding token that their embedding has no row for.
        rows = getattr(config, "vocab_size", None) or 10**9
        pad = next(
            (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0
        )
        self._pad = pad if pad < rows else 0

    @property
    def flops_per_token(self) -> int:
        """2·N, N being the weights but for the embeddings; see `Network.flops_per_token`."""
        model: Any = self.model
        return 2 * int(model.num_parameters(exclude_embeddings=True))

    def render(self, prompt: str | Conversation) -> str:
        """Return the text that the model reads before a response.

        Raises:
            RecordError: a conversation for a model without a chat template, or one that its template refuses.
        """
        return self.texts.render(prompt)

    @torch.inference_mode()
    def score(
        self,
        prompts: Sequence[str | Conversation],
        responses: Sequence[str],
        finished: Sequence[bool],
    ) -> list[float]:
        """Return the reward of each response; `left_out` then says what was not read.

        Args:
            prompts: N texts, or conversations if the model has a chat template.
            responses: N texts.
            finished: N; whether the response ended by itself.

        Raises:
            RecordError: a prompt that the model cannot be shown.
        """
        rows = self.texts.encode(prompts, responses, finished)
        self.left_out = [row.left_out for row in rows]
        self.spent = [len(row.ids) for row in rows]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        rewards = [0.0] * len(rows)
        device: Any = self.model.device
        for begin in range(0, len(order), self.together):
            chosen = order[begin : begin + self.together]
            batch = padded([rows[index] for index in chosen], self._pad, device, self._typed)
            found = self._rewards(self.family.read(self.model, batch, self.tokenizer).float())
            for index, reward in zip(chosen, found, strict=True):
                bare = self.family.bare is not None and not rows[index].answered
                rewards[index] = self.family.bare if bare else reward  # type: ignore[assignment]
        return rewards

    def _rewards(self, outputs: Tensor) -> list[float]:
        """Return the rewards in outputs (B, D)."""
        if self.label is None:
            return outputs[:, 0].tolist()
        others = torch.arange(outputs.shape[1], device=outputs.device) != self.label
        return (outputs[:, self.label] - outputs[:, others].logsumexp(-1)).tolist()
