"""ivg as a contestant: its engine, on the networks that every contestant gets."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.contest import Networks, Outcome, Settings
from ivgcli.decoding import ChunkRanking, Limits, Mode, TokenGuidance
from ivgcli.decoding.engine import Engine
from ivgcli.decoding.search import Request
from ivgcli.models.network import Network
from ivgcli.models.packed import PackedWeights
from ivgcli.models.slots import ATTENTION
from ivgcli.models.streams import Stream
from ivgcli.values import Prompted
from ivgcli.values.implicit import ImplicitValue


class GivenIds:
    """A prompt format for prompts that are token ids already."""

    key = ("ids",)
    chat = False

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self.prompts = prompts

    def encode(self, text: str, messages: object = None, where: str = "") -> list[int]:
        """Return the ids of the prompt whose number is `text`."""
        return list(self.prompts[int(text)])


@functools.lru_cache(maxsize=8)
def packed(model: PreTrainedModel) -> PackedWeights:
    """Return a model's packed weights, made once as when ivg loads it; the peers never see them."""
    return PackedWeights(model)


def stream(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]
) -> Stream:
    """Return a stream over a model that other contestants use too."""
    head = model.get_output_embeddings()
    network = Network("contestant", model, tokenizer, head, head.weight.shape[0])
    return Stream(network, GivenIds(prompts), 1)


def run_ivg(
    networks: Networks, prompts: Sequence[Sequence[int]], mode: str, settings: Settings
) -> Outcome:
    """Decode every prompt with ivg's engine, all rows at once.

    Args:
        networks: base, guide pair and tokenizer.
        prompts: token ids of each prompt, of any length.
        mode: `base`, `eft-i` or `cbs-i`.
        settings: how to decode; lengths are forced.

    Returns:
        One response per prompt under `cbs-i`, `settings.samples` per prompt otherwise, prompt by
        prompt.
    """
    models = (networks.base, networks.tuned, networks.reference)
    before = [model.config._attn_implementation for model in models]
    for model in models:
        model.set_attn_implementation(ATTENTION)
        packed(model).attach()
    try:
        base, tuned, reference = (stream(model, networks.tokenizer, prompts) for model in models)
        base.counting = True
        value = ImplicitValue("pair", tuned, reference)
        token = TokenGuidance(value, settings.weight) if mode == "eft-i" else None
        chunk = None
        if mode == "cbs-i":
            width = (settings.beam_width, settings.successors)
            chunk = ChunkRanking(value, *width, settings.chunk_length)
        limits = Limits(
            settings.max_new_tokens, settings.temperature, settings.top_k, settings.top_p
        )
        rows = len(prompts) * settings.rows_per_prompt(mode)
        engine = Engine(base, Mode(mode, token, chunk), limits, frozenset(), rows, settings.seed)
        samples = 1 if mode == "cbs-i" else settings.samples
        requests = [
            Request(Prompted(str(number), str(number)), sample)
            for number in range(len(prompts))
            for sample in range(samples)
        ]
        found = {
            (outcome.request.prompt.id, outcome.request.sample): outcome.winner.row.tokens
            for outcome in engine.run(requests)
        }
    finally:
        for model, name in zip(models, before, strict=True):
            model.set_attn_implementation(name)
            packed(model).detach()
    responses = [found[request.prompt.id, request.sample] for request in requests]
    return Outcome(responses, rows * settings.max_new_tokens)
