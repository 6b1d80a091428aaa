"""What a careful user builds on `generate()`: all prompts in one left-padded batch.

Token guidance is a logits processor that steps the two guides with caches of their own. Chunk
search calls `generate()` once per chunk with the cache of the chunk before, then both guides read
every candidate again in one padded batch. Ids go straight to the guides; only response positions
get logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from benchmarks.contest import SEARCHES, Networks, Outcome, Round, Settings

SCORED_ROWS = 32
"""Candidates valued in one pass: at 49,152 tokens their logits take a few hundred megabytes."""


def left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Pad prompts on the left.

    Args:
        prompts: token ids of each prompt.
        pad_id: id that fills the gaps.
        device: where the tensors live.

    Returns:
        ids: (P, T) tokens.
        mask: (P, T), 1 on tokens and 0 on padding.
    """
    longest = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def positions_of(mask: Tensor) -> Tensor:
    """Number the tokens of each row of `mask` (R, T) from 0, padding excluded.

    A network with learned positions reads other embeddings if padding is numbered too.
    """
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)


class ImplicitGuidance(LogitsProcessor):
    """Add weight · (z_tuned − z_reference) to the base's logits inside `generate()`.

    Raw logits stand in for log-probabilities: they differ by a constant per row, which sampling
    does not see. One object follows one batch, from one call of `generate()` to the next.
    """

    def __init__(
        self, tuned: PreTrainedModel, reference: PreTrainedModel, mask: Tensor, weight: float
    ) -> None:
        self.guides = (tuned, reference)
        self.caches = tuple(DynamicCache(config=guide.config) for guide in self.guides)
        self.mask = mask
        self.weight = weight

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Guide the next token of `input_ids` (R, T), whose base logits are `scores` (R, V)."""
        new = input_ids.shape[1] - self.caches[0].get_seq_length()
        grown = input_ids.shape[1] - self.mask.shape[1]
        self.mask = torch.cat([self.mask, self.mask.new_ones(self.mask.shape[0], grown)], dim=-1)
        positions = positions_of(self.mask)[:, -new:]
        tuned, reference = (
            guide(
                input_ids=input_ids[:, -new:],
                attention_mask=self.mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            for guide, cache in zip(self.guides, self.caches, strict=True)
        )
        return scores + self.weight * (tuned.float() - reference.float())

    def reorder(self, parents: Tensor) -> None:
        """Follow rows (R,) that were copied from `parents` of the same prompt."""
        for cache in self.caches:
            cache.reorder_cache(parents)


def forced_length(
    tokens: int, temperature: float, top_k: int, top_p: float, pad_id: int
) -> GenerationConfig:
    """Describe `tokens` draws per row that nothing ends early; temperature 0 is greedy."""
    if temperature == 0:
        sampler = {"do_sample": False}
    else:
        sampler = {
            "do_sample": True,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
    return GenerationConfig(
        max_new_tokens=tokens,
        eos_token_id=None,
        pad_token_id=pad_id,
        return_dict_in_generate=True,
        **sampler,
    )


@torch.no_grad()
def eft_i(
    base: PreTrainedModel,
    tuned: PreTrainedModel | None,
    reference: PreTrainedModel | None,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int = 1,
    weight: float = 1.0,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int = 0,
    pad_id: int = 0,
) -> list[list[int]]:
    """Draw `samples` guided responses of `max_new_tokens` tokens for every prompt, all at once.

    Args:
        base: the network that writes.
        tuned: the guide after tuning, or None for plain sampling.
        reference: the guide before tuning, or None for plain sampling.
        prompts: token ids of each prompt, of any length.
        samples: responses per prompt, at least 1.
        weight: multiplies the difference of the guides' logits.
        max_new_tokens: tokens of every response, at least 1.
        temperature: divides the combined logits; 0 takes the most probable token.
        top_k: tokens that may be drawn; 0 admits all.
        top_p: probability mass that may be drawn; 1 admits all.
        seed: seed of the draws, shared by the batch.
        pad_id: id that fills the gaps on the left.

    Returns:
        Response tokens, prompt by prompt and sample by sample.
    """
    ids, mask = left_padded(prompts, pad_id, base.device)
    ids, mask = ids.repeat_interleave(samples, 0), mask.repeat_interleave(samples, 0)
    processors = LogitsProcessorList()
    if tuned is not None and reference is not None:
        processors.append(ImplicitGuidance(tuned, reference, mask, weight))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = base.generate(
            ids,
            attention_mask=mask,
            logits_processor=processors,
            generation_config=forced_length(max_new_tokens, temperature, top_k, top_p, pad_id),
        )
    return output.sequences[:, ids.shape[1] :].tolist()


@torch.no_grad()
def cbs_i(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    beam_width: int = 4,
    successors: int = 4,
    chunk_length: int = 5,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int = 0,
    pad_id: int = 0,
    value: PreTrainedModel | None = None,
    weight: float = 0.0,
) -> tuple[list[list[int]], list[list[Round]]]:
    """Search chunk by chunk, all prompts at once, for the largest log p_tuned − log p_reference.

    With `value`, a sequence classifier ranks the chunks instead.

    Args:
        base: the network that writes.
        tuned: the guide after tuning, with the base's vocabulary.
        reference: the guide before tuning, with the base's vocabulary.
        prompts: token ids of each prompt, of any length.
        beam_width: W, beams kept after each chunk, at least 1.
        successors: K, continuations of each beam, at least 1.
        chunk_length: L, tokens between two selections, at least 1.
        max_new_tokens: tokens of every response, at least 1.
        temperature: divides the logits; 0 takes the most probable token.
        top_k: tokens that may be drawn; 0 admits all.
        top_p: probability mass that may be drawn; 1 admits all.
        seed: seed of the draws, shared by the batch.
        pad_id: id that fills the gaps on the left.
        value: network with one output per text, which replaces the implicit value in the ranking.
        weight: multiplies the guides' tilt of every token's logits; 0 draws from the base alone.

    Returns:
        The best response of each prompt, and each prompt's selections in order.
    """
    rows = beam_width * successors
    ids, mask = left_padded(prompts, pad_id, base.device)
    ids, mask = ids.repeat_interleave(rows, 0), mask.repeat_interleave(rows, 0)
    start = ids.shape[1]
    first_row = torch.arange(len(prompts), device=base.device)[:, None] * rows
    cache = DynamicCache(config=base.config)
    guidance = ImplicitGuidance(tuned, reference, mask, weight) if weight else None
    rounds: list[list[Round]] = [[] for _ in prompts]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        while ids.shape[1] - start < max_new_tokens:
            step = min(chunk_length, max_new_tokens - (ids.shape[1] - start))
            output = base.generate(
                ids,
                attention_mask=mask,
                past_key_values=cache,
                logits_processor=LogitsProcessorList([guidance] if guidance else []),
                generation_config=forced_length(step, temperature, top_k, top_p, pad_id),
            )
            ids = output.sequences
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], step)], dim=-1)
            if value is None:
                values = implicit_values(tuned, reference, ids, mask, start)
            else:
                values = explicit_values(value, ids, mask)
            values = values.view(len(prompts), rows)
            survivors = values.topk(beam_width, dim=-1).indices
            note_rounds(rounds, ids[:, start:], values, survivors)
            # The mask stays: rows of one prompt are padded alike.
            parents = (survivors.repeat(1, successors) + first_row).flatten()
            ids = ids[parents]
            cache.reorder_cache(parents)
            if guidance:
                guidance.reorder(parents)
    return ids[::rows, start:].tolist(), rounds


def note_rounds(
    rounds: list[list[Round]], responses: Tensor, values: Tensor, survivors: Tensor
) -> None:
    """Append one selection to each prompt's list.

    Args:
        rounds: one list per prompt, extended in place.
        responses: (P·W·K, t) response tokens.
        values: (P, W·K) implicit values.
        survivors: (P, W) candidates that go on.
    """
    tokens = responses.view(*values.shape, -1).tolist()
    for prompt, round_list in enumerate(rounds):
        round_list.append(
            Round(tokens[prompt], values[prompt].tolist(), survivors[prompt].tolist())
        )


def implicit_values(
    tuned: PreTrainedModel, reference: PreTrainedModel, ids: Tensor, mask: Tensor, start: int
) -> Tensor:
    """Return log p_tuned − log p_reference (R,) of the tokens from column `start` on, in nats.

    Args:
        tuned: the guide after tuning.
        reference: the guide before tuning.
        ids: (R, T) tokens, padded on the left, responses from column `start`.
        mask: (R, T), 1 on tokens and 0 on padding.
        start: first response column, at least 1.
    """
    values = [
        response_logprobs(tuned, part, part_mask, start)
        - response_logprobs(reference, part, part_mask, start)
        for part, part_mask in zip(ids.split(SCORED_ROWS), mask.split(SCORED_ROWS), strict=True)
    ]
    return torch.cat(values)


def explicit_values(value: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Return a classifier's output (R,) after the last token of each row of `ids` (R, T), without a cache."""
    found = []
    for part, part_mask in zip(ids.split(SCORED_ROWS), mask.split(SCORED_ROWS), strict=True):
        hidden = value.base_model(
            input_ids=part,
            attention_mask=part_mask,
            position_ids=positions_of(part_mask),
            use_cache=False,
        ).last_hidden_state
        found.append(value.score(hidden[:, -1])[:, 0].float())
    return torch.cat(found)


def response_logprobs(network: PreTrainedModel, ids: Tensor, mask: Tensor, start: int) -> Tensor:
    """Return the log-probability (R,) of the tokens from column `start` on, without a cache."""
    response = ids[:, start:]
    logits = network(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions_of(mask),
        use_cache=False,
        logits_to_keep=response.shape[1] + 1,
    ).logits[:, :-1]
    # Picking first and normalising by log-sum-exp spares a second tensor of vocabulary size.
    chosen = logits.gather(-1, response[:, :, None]).squeeze(-1).float()
    return (chosen - logits.float().logsumexp(dim=-1)).sum(dim=-1)


def run_batched(
    networks: Networks, prompts: Sequence[Sequence[int]], mode: str, settings: Settings
) -> Outcome:
    """Decode all prompts in one padded batch with `generate()`, as a contestant."""
    shared = {
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "seed": settings.seed,
        "pad_id": networks.tokenizer.pad_token_id,
    }
    if mode in SEARCHES:
        ranked = {"value": networks.value, "weight": settings.weight} if mode == "ivg" else {}
        responses, _ = cbs_i(
            networks.base,
            networks.tuned,
            networks.reference,
            prompts,
            beam_width=settings.beam_width,
            successors=settings.successors,
            chunk_length=settings.chunk_length,
            **ranked,
            **shared,
        )
    else:
        guided = mode == "eft-i"
        responses = eft_i(
            networks.base,
            networks.tuned if guided else None,
            networks.reference if guided else None,
            prompts,
            samples=settings.samples,
            weight=settings.weight,
            **shared,
        )
    return Outcome(settings.cut(responses, mode), settings.row_tokens(len(prompts), mode))
