"""ivg as a contestant."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.contest import Networks, Outcome, Settings


def run_ivg(
    networks: Networks, prompts: Sequence[Sequence[int]], mode: str, settings: Settings
) -> Outcome:
    """Decode every prompt with ivg's engine.

    Args:
        networks: base, guide pair and tokenizer.
        prompts: token ids of each prompt, of any length.
        mode: `base`, `eft-i` or `cbs-i`.
        settings: how to decode; lengths are forced.

    Returns:
        One response per prompt under `cbs-i`, `settings.samples` per prompt otherwise, prompt by
        prompt.
    """
    raise NotImplementedError("the engine is not connected to the benchmark yet")
