"""Low-rank adapters, as a recipe asks for them."""

from __future__ import annotations

from typing import Literal

from peft import LoraConfig

from ivgcli.recipes import LoraSpec


def lora_config(spec: LoraSpec, task: Literal["CAUSAL_LM", "SEQ_CLS"]) -> LoraConfig:
    """Return peft's configuration of an adapter.

    Args:
        spec: the recipe's.
        task: peft's name of the task; with SEQ_CLS the head is trained and saved as well, which it
            would otherwise not be.
    """
    modules = spec.target_modules
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type=task,
    )
