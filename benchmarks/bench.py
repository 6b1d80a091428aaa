"""Measure ivg and its peers side by side: `python -m benchmarks.bench --shape smollm2`.

One process, the same networks, prompts and forced lengths for everyone; a warm-up, then repetitions
that take turns (A B A B), so that a slow minute of the machine hits all of them. Every contestant
that can also runs plain sampling at the same rows, which tells what guidance costs against what its
arithmetic justifies.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedTokenizerBase

from benchmarks.contest import MODES, Contestant, Networks, Settings
from benchmarks.cost import Peak, Reading, arithmetic, counted, peak_memory
from benchmarks.ours import run_ivg
from benchmarks.peers.batched_generate import run_batched
from benchmarks.peers.published_loop import run_published
from benchmarks.shapes import SHAPES, build_networks
from ivgcli.models.memory import keep_large_blocks

CONTESTANTS: dict[str, Contestant] = {
    "ivg": run_ivg,
    "published-loop": run_published,
    "batched-generate": run_batched,
}
"""Everyone who can be measured; add a function of the same form to measure another."""

SERIAL = {"published-loop"}
"""Contestants that take one prompt after another: their rate can be measured on fewer prompts."""

GOALS = {("cbs-i", "published-loop"): 6.0, ("eft-i", "batched-generate"): 1.8}
"""How many times a peer's rate ivg wants to reach, at the larger shape on two cores."""

GUIDANCE_GOAL = 1.25
"""How many times the time that the guides' arithmetic justifies guidance may take."""


@dataclass
class Measurement:
    """All repetitions of one contestant under one mode."""

    name: str
    mode: str
    prompts: int
    seconds: list[float] = field(default_factory=list)
    row_tokens: int = 0
    accepted_tokens: int = 0
    peak: Peak = field(default_factory=Peak)
    readings: dict[str, Reading] = field(default_factory=dict)

    @property
    def row_rate(self) -> float:
        """Row-tokens per second at the median time."""
        return self.row_tokens / statistics.median(self.seconds)

    @property
    def accepted_rate(self) -> float:
        """Accepted tokens per second at the median time."""
        return self.accepted_tokens / statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest minus fastest repetition, as a part of the median."""
        return (max(self.seconds) - min(self.seconds)) / statistics.median(self.seconds)


def random_prompts(count: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Draw prompts of 16 to 40 random tokens, special ids 0 and 1 excluded."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(16, 41, (count,), generator=generator).tolist()
    return [
        torch.randint(2, vocabulary, (length,), generator=generator).tolist() for length in lengths
    ]


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


def run_once(
    name: str,
    networks: Networks,
    prompts: Sequence[Sequence[int]],
    mode: str,
    settings: Settings,
    into: Measurement | None = None,
) -> None:
    """Run one contestant once and add the result to `into`; with None the run only warms up.

    Raises:
        RuntimeError: a response has another length than the forced one.
    """
    device = networks.base.device
    named = {"base": networks.base, "tuned": networks.tuned, "reference": networks.reference}
    with counted(named) as readings, peak_memory(device) as peak:
        start = time.perf_counter()
        outcome = CONTESTANTS[name](networks, prompts, mode, settings)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    lengths = {len(response) for response in outcome.responses}
    if lengths != {settings.max_new_tokens}:
        raise RuntimeError(
            f"{name}: responses of {sorted(lengths)} tokens "
            f"where {settings.max_new_tokens} are forced"
        )
    if into is not None:
        into.seconds.append(seconds)
        into.row_tokens, into.accepted_tokens = outcome.row_tokens, outcome.accepted_tokens
        into.peak, into.readings = peak, readings


def measure(
    names: Sequence[str],
    networks: Networks,
    prompts: Sequence[Sequence[int]],
    mode: str,
    settings: Settings,
    *,
    repeat: int,
    warmup_tokens: int,
    serial_prompts: int,
    with_base: bool,
) -> list[Measurement]:
    """Warm everyone up, then let them take turns `repeat` times.

    Args:
        names: contestants, in the order in which they take turns.
        networks: what everyone decodes with.
        prompts: token ids of each prompt.
        mode: `base`, `eft-i` or `cbs-i`.
        settings: how to decode.
        repeat: timed repetitions, at least 1.
        warmup_tokens: length of the responses of the warm-up, at least 1.
        serial_prompts: how many prompts a serial contestant gets, at least 1.
        with_base: also time plain sampling at the same rows, where a contestant batches rows.
    """
    rows = settings.rows_per_prompt(mode)
    entries: list[tuple[Measurement, Sequence[Sequence[int]], Settings]] = []
    for name in names:
        given = prompts[:serial_prompts] if name in SERIAL else prompts
        entries.append((Measurement(name, mode, len(given)), given, settings))
        if with_base and mode != "base" and name not in SERIAL:
            plain = replace(settings, samples=rows)
            entries.append((Measurement(name, "base", len(given)), given, plain))
    ready = []
    for entry in entries:
        measurement, given, wanted = entry
        try:
            short = replace(wanted, max_new_tokens=min(warmup_tokens, wanted.max_new_tokens))
            run_once(measurement.name, networks, given, measurement.mode, short)
            ready.append(entry)
        except NotImplementedError as reason:
            print(f"{measurement.name} {measurement.mode}: left out, {reason}")
    for _ in range(repeat):
        for measurement, given, wanted in ready:
            run_once(measurement.name, networks, given, measurement.mode, wanted, measurement)
    return [measurement for measurement, _, _ in ready]


def justified_ratio(
    networks: Networks, prompts: Sequence[Sequence[int]], rows_per_prompt: int, tokens: int
) -> float:
    """Divide the operations of base plus guides by those of the base, at the same rows."""
    lengths = [len(prompt) for prompt in prompts]
    base, tuned, reference = (
        arithmetic(network).of_run(lengths, rows_per_prompt, tokens)
        for network in (networks.base, networks.tuned, networks.reference)
    )
    return (base + tuned + reference) / base


def summarise(
    measurements: Sequence[Measurement], mode: str, flops_ratio: float
) -> dict[str, object]:
    """Put rates, ratios between contestants and the cost of guidance into one mapping.

    A contestant's guidance cost is (time guided / time base) / (operations guided / operations
    base): 1 means that guidance takes exactly the time its arithmetic justifies.
    """
    guided = {entry.name: entry for entry in measurements if entry.mode == mode}
    plain = {entry.name: entry for entry in measurements if entry.mode == "base"}
    ratios = {
        f"{name} / {other}": guided[name].row_rate / guided[other].row_rate
        for name in guided
        for other in guided
        if name != other
    }
    overhead = {
        name: statistics.median(entry.seconds)
        / statistics.median(plain[name].seconds)
        / flops_ratio
        for name, entry in guided.items()
        if mode != "base" and name in plain
    }
    rows = [
        asdict(entry)
        | {
            "row_tokens_per_second": entry.row_rate,
            "accepted_tokens_per_second": entry.accepted_rate,
            "spread": entry.spread,
        }
        for entry in measurements
    ]
    return {
        "measurements": rows,
        "row_rate_ratios": ratios,
        "justified_flops_ratio": flops_ratio,
        "guidance_cost": overhead,
    }


def print_summary(summary: dict, mode: str) -> None:
    """Print the measurements, the ratios and the cost of guidance in lines that fit 100 columns."""
    print(
        f"{'contestant':<18}{'mode':<7}{'prompts':>8}{'row·tok/s':>11}{'accepted/s':>12}"
        f"{'seconds':>9}{'spread':>8}{'peak MiB':>10}{'added MiB':>11}"
    )
    for row in summary["measurements"]:
        memory = [row["peak"][key] for key in ("total", "growth")]
        total, growth = ("–" if size is None else f"{size / 2**20:.0f}" for size in memory)
        seconds = statistics.median(row["seconds"])
        print(
            f"{row['name']:<18}{row['mode']:<7}{row['prompts']:>8}"
            f"{row['row_tokens_per_second']:>11.1f}{row['accepted_tokens_per_second']:>12.1f}"
            f"{seconds:>9.2f}{row['spread']:>8.0%}{total:>10}{growth:>11}"
        )
    print("tokens read (forward passes), by network:")
    for row in summary["measurements"]:
        readings = ", ".join(
            f"{name} {reading['tokens']} ({reading['passes']})"
            for name, reading in row["readings"].items()
        )
        print(f"  {row['name']} {row['mode']}: {readings}")
    print("rates in row·tokens/s, times the other's:")
    for pair, ratio in summary["row_rate_ratios"].items():
        name, _, other = pair.partition(" / ")
        goal = GOALS.get((mode, other)) if name == "ivg" else None
        print(f"  {pair}: {ratio:.2f}" + (f" (goal {goal:g})" if goal else ""))
    if summary["guidance_cost"]:
        print(f"guidance justifies {summary['justified_flops_ratio']:.2f} times the base's time;")
        for name, cost in summary["guidance_cost"].items():
            goal = f" (goal at most {GUIDANCE_GOAL:g})" if name == "ivg" else ""
            print(f"  {name} takes {cost:.2f} times that{goal}")


def describe_machine(networks: Networks) -> dict[str, object]:
    """Name what the numbers depend on: libraries, processor, threads, device, weights."""
    device = networks.base.device
    cuda = device.type == "cuda"
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "dtype": str(networks.base.dtype).removeprefix("torch."),
        "parameters": {
            name: sum(weight.numel() for weight in getattr(networks, name).parameters())
            for name in ("base", "tuned", "reference")
        },
    }


def processor_name() -> str:
    """Read the processor's name from the kernel, else from what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
    elif options.mode == "cbs-i" and options.rows != candidates:
        parser.error(f"cbs-i decodes prompts·W·K = {candidates} rows: leave --rows out")
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
    )
    machine = describe_machine(networks)
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
    measurements = measure(
        options.only or tuple(CONTESTANTS),
        networks,
        prompts,
        options.mode,
        settings,
        repeat=options.repeat,
        warmup_tokens=options.warmup_tokens,
        serial_prompts=options.serial_prompts or options.prompts,
        with_base=not options.no_base,
    )
    rows = settings.rows_per_prompt(options.mode)
    flops_ratio = justified_ratio(networks, prompts, rows, options.tokens)
    summary = summarise(measurements, options.mode, flops_ratio)
    print_summary(summary, options.mode)
    if options.json:
        chosen = {key: str(value) for key, value in vars(options).items() if value is not None}
        report = {"machine": machine, "options": chosen, **summary}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
