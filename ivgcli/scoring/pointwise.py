"""Reward models that read a whole text at once, encoders included; nothing is cached between calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

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

    A model whose config.json says `"ivg": {"ends_with_eos": true}`, as those trained by this project do, reads EOS
    after every response that ended by itself, and after no other.

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
        self.ends_with_eos = bool((getattr(model.config, "ivg", None) or {}).get("ends_with_eos"))
        # A chat template's turn is closed by EOS; a tokenizer that frames every text closes it by itself.
        by_text = prompts.chat and not self.ends_with_eos
        self.closing = (tokenizer.eos_token or "") if by_text else ""
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
            batch = self._batch(
                [texts[index] for index in chosen], [finished[index] for index in chosen]
            )
            for index, reward in zip(chosen, self._read_out(batch), strict=True):
                rewards[index] = reward
        return rewards

    def _batch(self, texts: Sequence[str], finished: Sequence[bool]) -> dict[str, Tensor]:
        """Return a network's inputs (B, S) for some texts, padded on the right."""
        options = {
            "truncation": self.limit is not None,
            "max_length": self.limit,
            "add_special_tokens": not self.prompts.chat,
        }
        if not self.ends_with_eos:
            encoded = self.tokenizer(list(texts), padding=True, return_tensors="pt", **options)
            return {name: tensor.to(self.model.device) for name, tensor in encoded.items()}
        rows = [
            torch.tensor(self._ended(ids, ended))
            for ids, ended in zip(
                self.tokenizer(list(texts), **options)["input_ids"], finished, strict=True
            )
        ]
        mask = [torch.ones_like(row) for row in rows]
        device: Any = self.model.device
        return {
            "input_ids": pad_sequence(rows, True, self.tokenizer.pad_token_id).to(device),
            "attention_mask": pad_sequence(mask, True, 0).to(device),
        }

    def _ended(self, ids: Sequence[int], finished: bool) -> list[int]:
        """Return a text's ids with EOS at their end if the response ended by itself, else without."""
        eos = self.tokenizer.eos_token_id
        if len(ids) == self.limit:
            return list(ids)  # cut off, so its end is not read
        bare = list(ids[:-1]) if len(ids) > 1 and ids[-1] == eos else list(ids)
        return [*bare, eos] if finished else bare

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
