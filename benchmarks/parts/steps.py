"""G0, G1 and G6: ceilings and host cost, one decoding step at many sizes, one stage of a 70B network."""

from __future__ import annotations

import time

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.contest import Networks, Settings
from benchmarks.limit import load_of, step_seconds, wait
from benchmarks.parts import Run, free
from benchmarks.shapes import build_networks, random_prompts
from benchmarks.turns import CONTESTANTS

WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "aten::_local_scalar_dense",
)
"""What makes the host wait for the device, as the profiler calls it."""
PROMPT = 64
"""Tokens of every prompt here."""


def sizes(run: Run) -> dict[str, tuple[int, ...]]:
    """Return the shapes of G1 and the numbers of rows for each."""
    if run.tiny:
        return {"tiny": (1, 4)}
    many = (1, 16, 64, 256, 1024, 4, 128, 512, 2048)
    return {
        "mistral-7b": many,
        "gpt2-xl": many,
        "gpt2": many,
        "llama2-7b": (1, 16, 64, 128, 256),
        "llama3-8b": many,
    }


def ceilings(run: Run) -> None:
    """G0: bandwidth, matrix products, and what the host spends on one layer of an eager pass."""
    found = run.ceilings
    run.log(f"{found.bandwidth / 1e9:.4g} GB/s, {found.rate / 1e12:.4g} TFLOP/s")
    for shape in ("tiny",) if run.tiny else ("gpt2-xl", "mistral-7b"):
        with run.kept(shape):
            host_cost(run, shape)


@torch.inference_mode()
def host_cost(run: Run, shape: str) -> None:
    """Time an eager pass of one token until the host is through, and until the device is."""
    base = build_networks(shape, device=str(run.device), dtype=run.dtype, guided=False).base
    ids = torch.full((1, 1), 5, device=run.device)
    layers = base.config.num_hidden_layers
    through, done = [], []
    for _ in range(13):
        wait(run.device)
        start = time.perf_counter()
        base.base_model(input_ids=ids, use_cache=False)
        through.append(time.perf_counter() - start)
        wait(run.device)
        done.append(time.perf_counter() - start)
    # The best of a dozen: the host's cost is what is left when nothing interrupts it.
    run.note(
        name="host",
        shape=shape,
        layers=layers,
        host_ms_per_layer=1e3 * min(through[3:]) / layers,
        pass_ms=1e3 * min(done[3:]),
    )


def steps(run: Run) -> None:
    """G1: time of one decoding step of one network, by rows."""
    plan = sizes(run)
    share = run.left() / len(plan) if run.left() < float("inf") else float("inf")
    for place, (shape, counts) in enumerate(plan.items(), start=1):
        end = run.deadline - share * (len(plan) - place)
        with run.kept(shape):
            networks = build_networks(shape, device=str(run.device), dtype=run.dtype, guided=False)
            for rows in counts:
                if time.monotonic() < end:
                    step_times(run, networks, shape, rows)
            with run.kept(f"{shape} host waits"):
                count_waits(run, networks, shape, counts[1])


def step_times(run: Run, networks: Networks, shape: str, rows: int) -> None:
    """Note the time of one step of ivg and of each peer, the limit line beside it."""
    few = 4 if run.tiny else 8
    prompts = random_prompts(1, networks.base.config.vocab_size, 0, PROMPT, PROMPT)
    load = load_of(networks.base)
    names = ["ivg", "compiled-decode", *([] if run.tiny else ["ivg-without-graphs"])]
    for name in names:
        with run.kept(f"{name} {shape} {rows}"):
            seconds = seconds_of_step(networks, name, prompts, rows, few)
            limit = step_seconds(load, run.ceilings, rows, PROMPT + 1.5 * few)
            moved = load.layer_bytes + load.head_bytes
            moved += load.kv_bytes * rows * (PROMPT + 1.5 * few)
            run.note(
                name=name,
                shape=shape,
                rows=rows,
                step_ms=1e3 * seconds,
                limit_ms=1e3 * limit,
                share_of_limit=limit / seconds,
                GB_per_s=moved / seconds / 1e9,
                TFLOP_per_s=rows * (load.work.layers + load.work.head) / seconds / 1e12,
            )


def seconds_of_step(
    networks: Networks, name: str, prompts: list[list[int]], rows: int, few: int
) -> float:
    """Return (time of 2n tokens − time of n tokens) / n, the best of two each: prompts cancel."""
    best = []
    for tokens in (few, 2 * few):
        settings = Settings(samples=rows, max_new_tokens=tokens, top_k=0)
        times = []
        for _ in range(3):
            wait(networks.base.device)
            start = time.perf_counter()
            CONTESTANTS[name](networks, prompts, "base", settings)
            wait(networks.base.device)
            times.append(time.perf_counter() - start)
            free(networks.base.device)
        best.append(min(times[1:]))
    # On a busy machine the longer run can come out shorter; a step then took no measurable time.
    return max(best[1] - best[0], 1e-9) / few


def count_waits(run: Run, networks: Networks, shape: str, rows: int) -> None:
    """Note how often the host waits for the device in one token of ivg, by the profiler's count."""
    prompts = random_prompts(1, networks.base.config.vocab_size, 0, PROMPT, PROMPT)
    found = []
    kinds = [ProfilerActivity.CPU]
    kinds += [ProfilerActivity.CUDA] if run.device.type == "cuda" else []
    for tokens in (4, 8):
        settings = Settings(samples=rows, max_new_tokens=tokens, top_k=0)
        with profile(activities=kinds) as profiler:
            CONTESTANTS["ivg"](networks, prompts, "base", settings)
        found.append(
            {event.key: event.count for event in profiler.key_averages() if event.key in WAITS}
        )
    each = {name: (count - found[0].get(name, 0)) / 4 for name, count in found[1].items()}
    run.note(name="ivg", shape=shape, rows=rows, host_waits_per_token=each)


def stage(run: Run) -> None:
    """G6: one of four stages of a 70B network, and what a full pipeline of such stages would decode.

    With at least as many groups of rows as stages under way, every stage always has work: each group's
    token leaves the last stage one stage time after the group before it.
    """
    networks = build_networks(
        "tiny" if run.tiny else "stage-70b", device=str(run.device), dtype=run.dtype, guided=False
    )
    prompts = random_prompts(1, networks.base.config.vocab_size, 0, PROMPT, PROMPT)
    load, few = load_of(networks.base), 4 if run.tiny else 8
    for rows in (4,) if run.tiny else (64, 256, 128, 512):
        for name in ("ivg", "compiled-decode"):
            with run.kept(f"{name} {rows}"):
                seconds = seconds_of_step(networks, name, prompts, rows, few)
                limit = step_seconds(load, run.ceilings, rows, PROMPT + 1.5 * few)
                run.note(
                    name=name,
                    shape="20 of 80 layers",
                    rows_of_a_group=rows,
                    step_ms=1e3 * seconds,
                    share_of_limit=limit / seconds,
                    extrapolated_row_rate_of_4_gpus=rows / seconds,
                )
