"""Reward models that read a whole text at once, encoders included; nothing is cached between calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ivgcli.models.prompts import PromptFormat

BATCH = 16

Conversation = Sequence[dict[str, str]]
"""Messages with `role` and `content`, the last one to be answered."""


class RewardModel:
    """A sequence classifier, read out at the end of prompt and response.

    With one output, that is the reward. With several, the reward is the log-odds of one label against all others,
    logit[label] − log Σ exp(logits of the others): the log of p/(1 − p).

    Texts are scored in batches of similar length. The read-out of a decoder is at the last token by the attention mask,
    never by a search for the padding id, which fails when padding is EOS.

    Args:
        name: what to call it in errors.
        model: a sequence classifier.
        tokenizer: its tokenizer.
        prompts: how it is shown a prompt.
        label: index of the label whose log-odds are the reward; None for a model with one output.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: Any,
        prompts: PromptFormat,
        label: int | None = None,
    ) -> None:
        self.name = name
        self.label = label
        self.model = model
        self.tokenizer = tokenizer
        self.prompts = prompts
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        # A chat template's turn is closed by EOS; a tokenizer that frames every text closes it by itself.
        self.closing = (tokenizer.eos_token or "") if prompts.chat else ""
        # RoBERTa has two positions more than it can use, so the tokenizer's word counts too.
        positions = getattr(model.config, "max_position_embeddings", None) or 10**9
        longest = min(positions, tokenizer.model_max_length or 10**9)
        self.limit = longest if longest < 10**9 else None

    @torch.inference_mode()
    def score(
        self,
        prompts: Sequence[str | Conversation],
        responses: Sequence[str],
        finished: Sequence[bool],
    ) -> list[float]:
        """Return the reward of each response.

        Args:
            prompts: N texts, or conversations if the model has a chat template.
            responses: N texts.
            finished: N; whether the response ended by itself.
        """
        texts = [
            self._rendered(prompt) + response + (self.closing if ended else "")
            for prompt, response, ended in zip(prompts, responses, finished, strict=True)
        ]
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rewards = [0.0] * len(texts)
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            batch = self.tokenizer(
                [texts[index] for index in chosen],
                padding=True,
                truncation=self.limit is not None,
                max_length=self.limit,
                add_special_tokens=not self.prompts.chat,
                return_tensors="pt",
            ).to(self.model.device)
            for index, reward in zip(chosen, self._read_out(batch), strict=True):
                rewards[index] = reward
        return rewards

    def _rendered(self, prompt: str | Conversation) -> str:
        return (
            self.prompts.render(prompt, None)
            if isinstance(prompt, str)
            else self.prompts.render(None, prompt)
        )

    def _read_out(self, batch: Any) -> list[float]:
        logits = self._logits(batch).float()
        if self.label is None:
            return logits[:, 0].tolist()
        others = torch.arange(logits.shape[1], device=logits.device) != self.label
        return (logits[:, self.label] - logits[:, others].logsumexp(-1)).tolist()

    def _logits(self, batch: Any) -> Tensor:
        """Return the outputs (B, D) at the end of each text."""
        score = getattr(self.model, "score", None)
        if score is None:
            return self.model(**batch).logits
        hidden = self.model.base_model(**batch).last_hidden_state
        last = batch["attention_mask"].sum(-1) - 1
        return score(hidden[torch.arange(len(last)), last])
