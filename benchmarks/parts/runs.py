"""G2 to G5: whole runs beside the peers, from a thousand prompts down to one."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.contest import Settings
from benchmarks.parts import Run, compete
from benchmarks.shapes import build_networks, forced_lengths, random_prompts

SAMPLERS = ("ivg", "compiled-decode", "continuous-batching")
ROOMY = 100e9
"""Bytes of a GPU that holds the large run's networks and the keys and values of 64 long rows."""


def small_to_large(run: Run) -> None:
    """G2: GPT-2 steers GPT-2 XL, W = K = 4, L = 5, 50 tokens, short prompts; each idea left out in turn."""
    networks = build_networks(
        "tiny-gpt2" if run.tiny else "gpt2-xl", device=str(run.device), dtype=run.dtype
    )
    count, at_once = (4, 64) if run.tiny else (1000, 1024)
    tokens = 6 if run.tiny else 50
    vocabulary = networks.base.config.vocab_size
    prompts = random_prompts(count, vocabulary, 0, 16, 16)
    settings = Settings(max_new_tokens=tokens, rows=at_once)
    few = max(1, count // 16)
    peers = {"ivg": few, "published-loop": 1, "batched-generate": few}
    ladder = {
        f"ivg-without-{idea}": few if idea != "rows" else 1
        for idea in ("rows", "incremental", "graphs")
    }
    compete(run, networks, prompts, "cbs-i", settings, peers | ladder)
    guided = replace(settings, samples=16, rows=None)
    everyone = {"ivg": few, "batched-generate": few, "compiled-decode": few}
    compete(run, networks, prompts, "eft-i", guided, everyone)
    compete(run, networks, prompts, "cbs-i", settings, {"ivg": count}, repeat=1, case="all prompts")
    if not run.tiny:
        long = random_prompts(few, vocabulary, 1, 350, 350)
        peers = {"ivg": few, "published-loop": 1, "batched-generate": few}
        compete(run, networks, long, "cbs-i", settings, peers, case="prompts of 350")


def large(run: Run) -> None:
    """G3: a 7B pair steers a 7B base and an 8B value ranks, W = K = 2, L = 30."""
    networks = build_networks(
        "tiny" if run.tiny else "mistral-7b", device=str(run.device), dtype=run.dtype
    )
    count, tokens, chunk = (2, 6, 4) if run.tiny else (16, 512, 30)
    prompts = random_prompts(count, min(32000, networks.base.config.vocab_size), 0, 100, 100)
    settings = Settings(
        beam_width=2, successors=2, chunk_length=chunk, max_new_tokens=tokens, top_k=50
    )
    # Rates per token change little after a few chunks, and the whole run is measured below.
    first = replace(settings, max_new_tokens=min(tokens, 120))
    peers = {"ivg": count, "published-loop": 1, "batched-generate": count}
    ladder = {"ivg-without-incremental": count, "ivg-without-graphs": count}
    compete(run, networks, prompts, "ivg", first, peers | ladder, repeat=2)
    guided = replace(first, samples=4)
    everyone = {"ivg": count, "batched-generate": count, "compiled-decode": count}
    compete(run, networks, prompts, "eft-i", guided, everyone, repeat=2)
    if run.device.type == "cuda" and total_memory(run.device) < ROOMY:
        count //= 2
    compete(run, networks, prompts, "ivg", settings, {"ivg": count}, repeat=1, case="full length")


def total_memory(device: torch.device) -> int:
    """Return the bytes that a GPU has."""
    return torch.cuda.get_device_properties(device).total_memory


def sampling(run: Run) -> None:
    """G4: plain sampling and best-of-16 from one network, lengths all alike and log-normal."""
    networks = build_networks(
        "tiny" if run.tiny else "llama3-8b",
        device=str(run.device),
        dtype=run.dtype,
        guided=False,
    )
    count, tokens = (4, 4) if run.tiny else (256, 128)
    prompts = random_prompts(count, networks.base.config.vocab_size, 0)
    everyone = dict.fromkeys(SAMPLERS, count)
    plain = Settings(max_new_tokens=tokens)
    compete(run, networks, prompts, "base", plain, everyone, repeat=2)
    few = max(1, count // 16)
    best_of = replace(plain, samples=16)
    several = dict.fromkeys(everyone, few) | {"ivg-without-prefill-once": few}
    compete(run, networks, prompts, "base", best_of, several, repeat=2, case="best-of-16")
    ragged = replace(
        plain,
        max_new_tokens=2 * tokens,
        lengths=forced_lengths(count, 2 * tokens, 0, median=tokens),
        rows=count // 2,
    )
    compete(run, networks, prompts, "base", ragged, everyone, repeat=1, case="log-normal lengths")
    # Last, since compiling may take longer than everything before.
    everyone = {"ivg": count, "static-generate": count}
    compete(run, networks, prompts, "base", plain, everyone, repeat=2, case="static cache")


def one_prompt(run: Run) -> None:
    """G5: one prompt, with and without speculation, beside the base alone in a compiled decoder.

    The temperature flattens both the drafting and the guided distribution, so that drafts are accepted
    more often.
    """
    networks = build_networks(
        "tiny-gpt2" if run.tiny else "gpt2-xl", device=str(run.device), dtype=run.dtype
    )
    prompts = random_prompts(1, networks.base.config.vocab_size, 0)
    tokens = 5 if run.tiny else 64
    names = ("ivg", "ivg-without-speculation", "compiled-decode", "published-loop")
    for temperature in (1.0,) if run.tiny else (1.0, 2.0, 4.0):
        settings = Settings(max_new_tokens=tokens, temperature=temperature, top_k=0)
        everyone = dict.fromkeys(names, 1)
        compete(run, networks, prompts, "eft-i", settings, everyone, temperature=temperature)
    plain = Settings(max_new_tokens=tokens, top_k=0)
    alone = {"ivg": 1, "compiled-decode": 1}
    compete(run, networks, prompts, "base", plain, alone, case="base alone")
    beam = Settings(beam_width=2, successors=2, chunk_length=5, max_new_tokens=tokens)
    compete(run, networks, prompts, "cbs-i", beam, {"ivg": 1, "published-loop": 1}, case="4 rows")
