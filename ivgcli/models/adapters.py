"""One pass for a model with an adapter and without: weights are read once, the adapter counts for some tokens only."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftType
from peft.tuners.lora import LoraLayer
from torch import Tensor


def mixable(adapters: Any, name: str) -> bool:
    """Return whether an adapter adds to each token by itself, so that it can count for some and not for others.

    That is so for plain LoRA; DoRA scales the weights themselves, and biases or whole modules are swapped.

    Args:
        adapters: the PeftModel.
        name: of the adapter.
    """
    config = adapters.peft_config[name]
    return (
        config.peft_type == PeftType.LORA
        and config.bias == "none"
        and not config.use_dora
        and not config.modules_to_save
        and not any(layer.merged for layer in _layers(adapters, name))
    )


@contextlib.contextmanager
def counting_for(
    adapters: Any, name: str, tokens: Sequence[int], on: Sequence[bool]
) -> Iterator[None]:
    """Let an adapter that is switched on count for some runs of the tokens of a packed pass.

    LoRA adds s·B(Ax); here s is a number of each token, 0 where the adapter is off.

    Args:
        adapters: the PeftModel.
        name: of the adapter, `mixable`.
        tokens: lengths of the runs, which add up to the pass.
        on: for each run, whether the adapter counts.
    """
    layers = _layers(adapters, name)
    device = next(iter(layers[0].lora_A[name].parameters())).device
    spread = _spread(tokens, on, device)
    kept = [layer.scaling[name] for layer in layers]
    factors = {scale: spread * scale for scale in set(kept)}
    try:
        for layer, scale in zip(layers, kept, strict=True):
            layer.scaling[name] = factors[scale]
        yield
    finally:
        for layer, scale in zip(layers, kept, strict=True):
            layer.scaling[name] = scale


def _spread(tokens: Sequence[int], on: Sequence[bool], device: torch.device) -> Tensor:
    """Return a column (N, 1) with 1 for each token of the runs that are on; made by filling, as a capture has to."""
    spread = torch.zeros((sum(tokens), 1), device=device)
    for count, end, counts in zip(tokens, itertools.accumulate(tokens), on, strict=True):
        if counts:
            spread[end - count : end] = 1.0
    return spread


def _layers(adapters: Any, name: str) -> list[Any]:
    """Return the layers that an adapter adds to."""
    return [
        layer
        for layer in adapters.modules()
        if isinstance(layer, LoraLayer) and name in layer.scaling
    ]
