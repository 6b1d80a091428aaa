"""Measure ivg and its peers side by side: `python -m benchmarks.bench --shape smollm2`.

One process, the same networks, prompts and forced lengths for everyone; a warm-up, then repetitions
that take turns (A B A B), so that a slow minute of the machine hits all of them. Every contestant
that can also runs plain sampling at the same rows, which tells what guidance costs against what its
arithmetic justifies.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from benchmarks.contest import MODES, SEARCHES, Settings
from benchmarks.limit import describe, measure_ceilings
from benchmarks.machine import describe_machine
from benchmarks.ours import IDEAS
from benchmarks.shapes import SHAPES, build_networks, forced_lengths, random_prompts
from benchmarks.turns import CONTESTANTS, justified_ratio, measure, summarise
from ivgcli.models.memory import keep_large_blocks

GOALS = {("cbs-i", "published-loop"): 8.0, ("eft-i", "batched-generate"): 2.2}
"""How many times a peer's rate ivg wants to reach, at the larger shape on two cores."""

GUIDANCE_GOAL = 1.25
"""How many times the time that the guides' arithmetic justifies guidance may take."""


def read_prompts(path: Path, count: int, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokenise the `prompt` of the first `count` lines of a JSONL file.

    Raises:
        ValueError: the file has fewer lines.
    """
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    if len(lines) < count:
        raise ValueError(f"{path} has {len(lines)} prompts and {count} are wanted")
    texts = [json.loads(line)["prompt"] for line in lines]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def print_summary(summary: dict, mode: str) -> None:
    """Print the measurements, the ratios and the cost of guidance in lines that fit 100 columns."""
    print(
        f"{'contestant':<26}{'mode':<6}{'prompts':>7}{'row·tok/s':>10}{'accepted/s':>11}"
        f"{'seconds':>8}{'spread':>7}{'limit':>6}{'peak MiB':>9}{'added':>7}"
    )
    for row in summary["measurements"]:
        memory = [row["peak"][key] for key in ("total", "growth")]
        total, growth = ("–" if size is None else f"{size / 2**20:.0f}" for size in memory)
        seconds, share = statistics.median(row["seconds"]), row["share_of_limit"]
        print(
            f"{row['name']:<26}{row['mode']:<6}{row['prompts']:>7}"
            f"{row['row_tokens_per_second']:>10.1f}{row['accepted_tokens_per_second']:>11.1f}"
            f"{seconds:>8.2f}{row['spread']:>7.0%}{'–' if share is None else format(share, '.0%'):>6}"
            f"{total:>9}{growth:>7}"
        )
    print("tokens read (forward passes), by network:")
    for row in summary["measurements"]:
        readings = ", ".join(
            f"{name} {reading['tokens']} ({reading['passes']})"
            for name, reading in row["readings"].items()
        )
        print(f"  {row['name']} {row['mode']}: {readings}")
    print("rates in row·tokens/s, times the other's (by processor time):")
    for pair, ratio in summary["row_rate_ratios"].items():
        name, _, other = pair.partition(" / ")
        goal = GOALS.get((mode, other)) if name == "ivg" else None
        work = summary["processor_rate_ratios"][pair]
        print(f"  {pair}: {ratio:.2f} ({work:.2f})" + (f" (goal {goal:g})" if goal else ""))
    if summary["guidance_cost"]:
        print(f"guidance justifies {summary['justified_flops_ratio']:.2f} times the base's time;")
        for name, cost in summary["guidance_cost"].items():
            goal = f" (goal at most {GUIDANCE_GOAL:g})" if name == "ivg" else ""
            print(f"  {name} takes {cost:.2f} times that{goal}")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; a contradiction ends in one sentence."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="tiny")
    add("--weights", choices=("random", "real"), default="random", help="real: SmolLM2's own")
    add("--mode", choices=MODES, default="cbs-i")
    add("--prompts", type=int, default=8, help="number of prompts")
    add("--prompts-file", type=Path, help="JSONL with real prompts; else random tokens")
    add("--rows", type=int, help="sequences in all under eft-i and base (default: prompts·W·K)")
    add("-W", "--beam-width", type=int, default=4)
    add("-K", "--successors", type=int, default=4)
    add("-L", "--chunk-length", type=int, default=5)
    add("--tokens", type=int, default=50, help="tokens of every response")
    add("--temperature", type=float, default=1.0)
    add("--top-k", type=int, default=50, help="0 admits all tokens")
    add("--top-p", type=float, default=1.0)
    add("--weight", type=float, default=1.0)
    add("--seed", type=int, default=0)
    add("--repeat", type=int, default=3, help="timed repetitions")
    add("--warmup-tokens", type=int, default=10, help="length of the warm-up's responses")
    add("--serial-prompts", type=int, help="prompts for contestants that take one after another")
    add("--only", action="append", choices=tuple(CONTESTANTS), help="may be given several times")
    add("--without", action="append", choices=IDEAS, default=[], help="also ivg without an idea")
    add("--log-normal", action="store_true", help="lengths of median 300 and σ 0.6, up to --tokens")
    add("--at-once", type=int, help="rows that ivg decodes at once (default: all)")
    add("--no-base", action="store_true", help="do not time plain sampling at the same rows")
    add("--threads", type=int, default=2)
    add("--device", default="cpu")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args(argv)
    counts = ("prompts", "rows", "beam_width", "successors", "chunk_length", "tokens", "repeat")
    for name in (*counts, "warmup_tokens", "serial_prompts", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}: it counts from 1")
    candidates = options.prompts * options.beam_width * options.successors
    if options.rows is None:
        options.rows = candidates
    elif options.mode in SEARCHES and options.rows != candidates:
        parser.error(f"{options.mode} decodes prompts·W·K = {candidates} rows: leave --rows out")
    if options.rows % options.prompts:
        parser.error(f"--rows {options.rows} is no multiple of {options.prompts} prompts")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, print it, and write it to a file if one is named."""
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    keep_large_blocks()  # as ivg does at loading; in one process it serves every contestant
    networks = build_networks(
        options.shape,
        real_weights=options.weights == "real",
        seed=options.seed,
        device=options.device,
        dtype=getattr(torch, options.dtype),
    )
    if options.prompts_file:
        prompts = read_prompts(options.prompts_file, options.prompts, networks.tokenizer)
    else:
        prompts = random_prompts(options.prompts, networks.base.config.vocab_size, options.seed)
    settings = Settings(
        samples=options.rows // options.prompts,
        beam_width=options.beam_width,
        successors=options.successors,
        chunk_length=options.chunk_length,
        max_new_tokens=options.tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        weight=options.weight,
        seed=options.seed,
        lengths=forced_lengths(options.prompts, options.tokens, options.seed)
        if options.log_normal
        else None,
        rows=options.at_once,
    )
    machine = describe_machine(networks.base.device, networks.base.dtype)
    machine["parameters"] = {
        name: sum(weight.numel() for weight in network.parameters())
        for name, network in networks.named().items()
    }
    print(
        f"{options.shape}, {options.weights} weights, {machine['dtype']} on {machine['device']}, "
        f"{machine['threads']} threads of {machine['processor']}, torch {machine['torch']}, "
        f"transformers {machine['transformers']}"
    )
    print(
        f"{options.mode}: {options.prompts} prompts, {options.rows} rows, {options.tokens} tokens, "
        f"W={options.beam_width} K={options.successors} L={options.chunk_length}, "
        f"temperature {options.temperature:g}, top-k {options.top_k}, top-p {options.top_p:g}, "
        f"{options.repeat} repetitions"
    )
    ceilings = measure_ceilings(options.device, networks.base.dtype)
    print(", ".join(f"{value:.3g} {unit}" for unit, value in describe(ceilings).items()))
    everyone = [name for name in CONTESTANTS if not name.startswith("ivg-without")]
    names = options.only or everyone
    measurements = measure(
        [*names, *(f"ivg-without-{idea}" for idea in options.without)],
        networks,
        prompts,
        options.mode,
        settings,
        repeat=options.repeat,
        warmup_tokens=options.warmup_tokens,
        serial_prompts=options.serial_prompts or options.prompts,
        with_base=not options.no_base,
        ceilings=ceilings,
    )
    flops_ratio = justified_ratio(networks, prompts, options.mode, settings)
    summary = summarise(measurements, options.mode, flops_ratio)
    print_summary(summary, options.mode)
    if options.json:
        chosen = {key: str(value) for key, value in vars(options).items() if value is not None}
        report = {
            "machine": machine,
            "options": chosen,
            "ceilings": describe(ceilings),
            **summary,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
