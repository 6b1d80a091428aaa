"""How the published scorers value texts: every network tokenises and reads each one from its first token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def trimmed(response: list[int], eos_ids: Sequence[int] | None) -> list[int]:
    """Cut a row after its first end-of-sequence token, which also drops the padding behind it."""
    for position, token in enumerate(response):
        if eos_ids is not None and token in eos_ids:
            return response[: position + 1]
    return response


def as_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Decode tokens without tidying, special tokens included."""
    return tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def response_texts(
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    prompt_text: str,
    candidates: Sequence[Sequence[int]],
    ended: Tensor,
) -> list[str]:
    """Decode prompt and response together, less the end-of-sequence token, and cut the prompt off.

    A prompt that ends inside a character decodes differently on its own; the response is then
    decoded alone.
    """
    texts = []
    for candidate, is_ended in zip(candidates, ended.tolist(), strict=True):
        kept = candidate[:-1] if is_ended else candidate
        whole = as_text(tokenizer, [*prompt_ids, *kept])
        if whole.startswith(prompt_text):
            texts.append(whole[len(prompt_text) :])
        else:
            texts.append(as_text(tokenizer, kept))
    return texts


def implicit_values(
    tuned: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    responses: Sequence[str],
    ended: Sequence[bool],
) -> Tensor:
    """Return log p_tuned − log p_reference (R,) of each response text, in nats.

    Each guide tokenises and reads every text from its first token, as the published scorer does.
    """
    return response_logprobs(tuned, tokenizer, prompt, responses, ended) - response_logprobs(
        reference, tokenizer, prompt, responses, ended
    )


def response_logprobs(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    responses: Sequence[str],
    ended: Sequence[bool],
) -> Tensor:
    """Return the log-probability (R,) of each response text after the prompt text, in nats.

    The response begins where the tokens of prompt plus response first differ from those of the
    prompt. An ended response is followed by the tokenizer's end-of-sequence token, which counts.
    """
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    sequences, starts = [], []
    for response, is_ended in zip(responses, ended, strict=True):
        tokens = tokenizer(prompt + response, add_special_tokens=False)["input_ids"]
        if is_ended:
            tokens = [*tokens, tokenizer.eos_token_id]
        sequences.append(tokens)
        starts.append(shared_length(alone, tokens))
    longest = max(len(tokens) for tokens in sequences)
    lengths = torch.tensor([len(tokens) for tokens in sequences], device=network.device)
    ids = torch.tensor(
        [tokens + [tokenizer.pad_token_id] * (longest - len(tokens)) for tokens in sequences],
        device=network.device,
    )
    places = torch.arange(longest, device=network.device)
    mask = (places < lengths[:, None]).long()
    # Padding stands on the right, so default positions and the causal order keep it out of sight.
    logits = network(input_ids=ids, attention_mask=mask).logits.to(torch.float32)
    logprobs = logits[:, :-1].log_softmax(dim=-1)
    chosen = logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1)
    counts = mask.bool() & (places >= torch.tensor(starts, device=network.device)[:, None])
    return chosen.masked_fill(~counts[:, 1:], 0.0).sum(dim=-1)


def shared_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Count the tokens two sequences share from the start; 1 if none, as the first has no odds."""
    shared = 0
    for left, right in zip(first, second, strict=False):
        if left != right:
            break
        shared += 1
    return max(shared, 1)


def explicit_values(
    value: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    responses: Sequence[str],
) -> Tensor:
    """Return the output (R,) of a sequence classifier with one label after each response."""
    sequences = [
        tokenizer(prompt + response, add_special_tokens=False)["input_ids"]
        for response in responses
    ]
    longest = max(len(tokens) for tokens in sequences)
    ids = torch.tensor(
        [tokens + [tokenizer.pad_token_id] * (longest - len(tokens)) for tokens in sequences],
        device=value.device,
    )
    ends = torch.tensor([len(tokens) - 1 for tokens in sequences], device=value.device)
    mask = (torch.arange(longest, device=value.device) <= ends[:, None]).long()
    hidden = value.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    return value.score(hidden[torch.arange(len(sequences), device=value.device), ends])[
        :, 0
    ].float()
