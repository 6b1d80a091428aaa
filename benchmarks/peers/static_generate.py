"""`generate()` with a static cache, which transformers compiles on a GPU: the fast path it documents.

It has no guidance: a logits processor that steps other networks leaves the compiled graph. In the mode
eft-i, base, tuned and reference therefore decode as many rows one after another, which is the least that
token guidance with three such models could take.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from benchmarks.contest import Networks, Outcome, Settings
from benchmarks.peers.batched_generate import forced_length, left_padded


@torch.no_grad()
def generate_static(
    network: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    pad_id: int,
) -> list[list[int]]:
    """Draw `settings.samples` responses of full length for every prompt, all at once."""
    ids, mask = left_padded(prompts, pad_id, network.device)
    ids, mask = (tensor.repeat_interleave(settings.samples, 0) for tensor in (ids, mask))
    wanted = forced_length(
        settings.max_new_tokens, settings.temperature, settings.top_k, settings.top_p, pad_id
    )
    wanted.cache_implementation = "static"
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        output = network.generate(ids, attention_mask=mask, generation_config=wanted)
    return output.sequences[:, ids.shape[1] :].tolist()


def run_static(
    networks: Networks, prompts: Sequence[Sequence[int]], mode: str, settings: Settings
) -> Outcome:
    """Decode all prompts in one padded batch; in the mode eft-i the three networks in turn.

    The responses are the base's own in either mode.

    Raises:
        NotImplementedError: the mode ranks chunks.
    """
    if mode not in ("base", "eft-i"):
        raise NotImplementedError(f"it has no {mode}")
    pad_id = networks.tokenizer.pad_token_id
    responses = generate_static(networks.base, prompts, settings, pad_id)
    if mode == "eft-i":
        for guide in (networks.tuned, networks.reference):
            generate_static(guide, prompts, settings, pad_id)
    return Outcome(settings.cut(responses, mode), settings.row_tokens(len(prompts), mode))
