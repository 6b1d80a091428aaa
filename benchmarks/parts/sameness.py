"""G7: whether responses depend on what decodes beside them, and how often by how little."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.contest import Outcome, Settings
from benchmarks.ours import run_ivg
from benchmarks.parts import Run
from benchmarks.shapes import build_networks, random_prompts


def same_text(run: Run) -> None:
    """Decode the same requests in other company, and count the responses that turn out otherwise."""
    networks = build_networks(
        "tiny-gpt2" if run.tiny else "gpt2-xl", device=str(run.device), dtype=run.dtype
    )
    count = 8 if run.tiny else 256
    prompts = random_prompts(count, networks.base.config.vocab_size, 0)
    settings = Settings(max_new_tokens=8 if run.tiny else 100, top_k=0)
    for fixed in (False, True):
        chosen = replace(settings, deterministic=fixed)
        began = time.perf_counter()
        whole = run_ivg(networks, prompts, "eft-i", chosen)
        again = run_ivg(networks, prompts, "eft-i", chosen)
        seconds = (time.perf_counter() - began) / 2
        few = replace(chosen, rows=max(1, count // 5))
        found = {
            "the same again": again,
            "another order, a fifth of the rows": run_ivg(
                networks, prompts, "eft-i", few, shuffled=True
            ),
            "half of the prompts": run_ivg(networks, prompts[: count // 2], "eft-i", chosen),
        }
        for company, outcome in found.items():
            name = f"deterministic: {company}" if fixed else company
            run.note(name=name, seconds=seconds, **differences(whole, outcome))


def differences(whole: Outcome, other: Outcome) -> dict[str, object]:
    """Compare responses up to their first difference.

    Returns:
        How many responses differ, the tokens compared (up to and with the first that differs), and the
        differences per million of them.
    """
    pairs = list(zip(whole.responses, other.responses, strict=False))
    shared = [common(left, right) for left, right in pairs]
    differing = sum(left != right for left, right in pairs)
    compared = sum(shared) + differing
    return {
        "responses": len(pairs),
        "differing": differing,
        "tokens": compared,
        "flips_per_million": 1e6 * differing / compared,
    }


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """Count the tokens two responses share from the start."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))
