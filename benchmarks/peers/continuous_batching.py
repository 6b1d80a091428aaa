"""`generate_batch()`: transformers' continuous batching, with paged keys and values.

It samples from one network, so it is a peer for plain sampling and best-of-N, not for guidance. Without
the package flash-attn it runs on torch's own attention. On a CPU the size of its cache is given, since it
would otherwise take what memory there is and spend the time of the run on that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from benchmarks.contest import Networks, Outcome, Settings

PAGE = 256
"""Tokens of one page of its cache, which is its default."""


def cache_config(
    network: PreTrainedModel, prompts: Sequence[Sequence[int]], settings: Settings
) -> ContinuousBatchingConfig:
    """Return its own defaults on a GPU, and a cache that just holds every row on a CPU."""
    if network.device.type == "cuda":
        return ContinuousBatchingConfig()
    longest = max(len(prompt) for prompt in prompts) + settings.max_new_tokens
    rows = len(prompts) * settings.samples
    return ContinuousBatchingConfig(
        num_blocks=rows * math.ceil(longest / PAGE) + 1,
        max_batch_tokens=max(PAGE, rows, sum(len(prompt) for prompt in prompts)),
    )


def run_continuous(
    networks: Networks, prompts: Sequence[Sequence[int]], mode: str, settings: Settings
) -> Outcome:
    """Draw `settings.samples` responses for every prompt, rows coming and going as they finish.

    Responses of prompts with different lengths are decoded to the longest of them, as its own function
    takes one length for all; what is beyond is not counted.

    Raises:
        NotImplementedError: the mode guides or ranks.
        RuntimeError: it gave up on a response.
    """
    if mode != "base":
        raise NotImplementedError(f"it has no {mode}")
    network = networks.base
    # It refuses several greedy responses to a prompt; drawing from one token is the same.
    greedy = settings.temperature == 0
    wanted = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_return_sequences=settings.samples,
        eos_token_id=-1,
        pad_token_id=networks.tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0 if greedy else settings.temperature,
        top_k=1 if greedy else settings.top_k,
        top_p=1.0 if greedy else settings.top_p,
    )
    before = network.config._attn_implementation
    try:
        found = network.generate_batch(
            [list(prompt) for prompt in prompts],
            generation_config=wanted,
            continuous_batching_config=cache_config(network, prompts, settings),
        )
    finally:
        network.set_attn_implementation(before)
    responses = [list(output.generated_tokens) for output in found.values()]
    if len(responses) != len(prompts) * settings.samples:
        raise RuntimeError(f"{len(responses)} of {len(prompts) * settings.samples} responses came")
    return Outcome(settings.cut(responses, mode), settings.row_tokens(len(prompts), mode))
