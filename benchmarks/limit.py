"""The limit line: the least time that a run's arithmetic and memory traffic take on this machine.

Bandwidth and matrix-product rate are measured in the same run as everything that is compared with
them. A pass takes at best the longer of (bytes / bandwidth) and (operations / rate); passes of
several networks add up, since they share one device. Prompts are read once, each row's token once,
and what beams have in common is stored and read once, whatever a contestant does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from benchmarks.contest import SEARCHES, Networks, Settings
from benchmarks.cost import Arithmetic, arithmetic


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches on the two simplest tasks."""

    bandwidth: float
    """Bytes per second of a copy, read and written bytes both counted."""
    rate: float
    """Operations per second of a square matrix product; a multiply-add counts as two."""


@dataclass(frozen=True)
class Load:
    """What one network moves and computes."""

    layer_bytes: float
    """Bytes of the layers' weights, read once in every pass."""
    head_bytes: float
    """Bytes of the output head, read once in every pass that wants outputs."""
    kv_bytes: float
    """Bytes of keys and values of one position, all layers together."""
    work: Arithmetic

    def seconds(self, ceilings: Ceilings, read: Reading) -> float:
        """Return what a reading takes at best."""
        moved = read.passes * (self.layer_bytes + (self.head_bytes if read.outputs else 0))
        moved += self.kv_bytes * (read.cached + read.tokens)
        operations = read.tokens * self.work.layers + read.outputs * self.work.head
        operations += read.pairs * self.work.attention
        return max(moved / ceilings.bandwidth, operations / ceilings.rate)


@dataclass(frozen=True)
class Reading:
    """What a network is given in one pass, or in several alike that take turns."""

    tokens: float
    """New tokens; their keys and values are written."""
    cached: float = 0.0
    """Positions whose keys and values are read from memory, those that rows share counted once."""
    pairs: float = 0.0
    """Pairs of a new token and a position that it attends to."""
    outputs: float = 0.0
    """Tokens after which the head's outputs are wanted."""
    passes: float = 1.0
    """How many times the weights are read."""


def load_of(network: PreTrainedModel) -> Load:
    """Read a network's load off its weights and configuration."""
    work, config = arithmetic(network), network.config
    size = next(network.parameters()).element_size()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Load(
        layer_bytes=work.layers / 2 * size,
        head_bytes=work.head / 2 * size,
        kv_bytes=2.0 * config.num_hidden_layers * heads * width * size,
        work=work,
    )


def step_seconds(load: Load, ceilings: Ceilings, rows: int, context: float) -> float:
    """Return the least time of one decoding step of rows that share nothing.

        max( (weights + rows · (context + 1) · KV) / bandwidth,
             rows · (layers + head + context · attention) / rate )

    Args:
        load: of the network.
        ceilings: of the device.
        rows: sequences that decode at once, at least 1.
        context: positions that each row attends to.
    """
    pairs = rows * context
    return load.seconds(ceilings, Reading(rows, cached=pairs, pairs=pairs, outputs=rows))


def run_seconds(
    networks: Networks,
    prompt_lengths: Sequence[int],
    mode: str,
    settings: Settings,
    ceilings: Ceilings,
) -> float:
    """Return the least time of a whole run, summed over networks and steps.

    Rows that end make room for waiting prompts at once, so `settings.rows` rows are always busy while
    there is work, and no step takes less than one reading of the weights.

    Args:
        networks: what the run decodes with.
        prompt_lengths: tokens of each prompt.
        mode: one of `MODES`.
        settings: lengths, W, K, L, samples and rows of the run.
        ceilings: of the device.
    """
    stepping = [networks.base]
    if mode in ("eft-i", "ivg"):
        stepping += [networks.tuned, networks.reference]
    ranking = {"cbs-i": [networks.tuned, networks.reference], "ivg": [networks.value]}.get(mode, [])
    lengths = [settings.length(number) for number in range(len(prompt_lengths))]
    seconds = 0.0
    for network in stepping:
        readings = [prompt_reading(prompt_lengths)]
        readings += step_readings(prompt_lengths, lengths, mode, settings)
        seconds += total(load_of(network), readings, ceilings)
    for network in ranking:
        readings = [prompt_reading(prompt_lengths)]
        readings += chunk_readings(prompt_lengths, lengths, settings, network is networks.value)
        seconds += total(load_of(network), readings, ceilings)
    return seconds


def total(load: Load, readings: Sequence[Reading], ceilings: Ceilings) -> float:
    """Add up what one network's readings take at best."""
    return sum(load.seconds(ceilings, reading) for reading in readings)


def prompt_reading(prompt_lengths: Sequence[int]) -> Reading:
    """Return the reading of all prompts in one pass."""
    pairs = sum(length * (length + 1) / 2 for length in prompt_lengths)
    return Reading(sum(prompt_lengths), pairs=pairs, outputs=len(prompt_lengths))


def step_readings(
    prompt_lengths: Sequence[int], lengths: Sequence[int], mode: str, settings: Settings
) -> list[Reading]:
    """List the readings of a network that decodes token by token, one entry per place in the response.

    The last token of a response is drawn without being read.
    """
    rows = settings.rows_per_prompt(mode)
    searching = mode in SEARCHES
    readings = []
    for place in range(1, max(lengths)):
        live = [prompt for prompt, end in zip(prompt_lengths, lengths, strict=True) if place < end]
        start = place // settings.chunk_length * settings.chunk_length if searching else 0
        trunks = settings.beam_width if searching else 0
        cached = sum(prompt + trunks * start + rows * (place - start) for prompt in live)
        tokens = rows * len(live)
        readings.append(
            Reading(
                tokens,
                cached=cached,
                pairs=sum(rows * (prompt + place) for prompt in live),
                outputs=tokens,
                passes=passes(tokens, settings),
            )
        )
    return readings


def chunk_readings(
    prompt_lengths: Sequence[int], lengths: Sequence[int], settings: Settings, scalar: bool
) -> list[Reading]:
    """List the readings of a network that values chunks: each candidate's new tokens in one pass."""
    rows = settings.beam_width * settings.successors
    readings = []
    for start in range(0, max(lengths), settings.chunk_length):
        tokens = cached = pairs = outputs = 0.0
        for prompt, end in zip(prompt_lengths, lengths, strict=True):
            new = min(settings.chunk_length, end - start)
            if new <= 0:
                continue
            tokens += rows * new
            outputs += rows if scalar else rows * new
            cached += prompt + settings.beam_width * start
            pairs += rows * (new * (prompt + start) + new * (new + 1) / 2)
        weights = passes(tokens / settings.chunk_length, settings)
        readings.append(Reading(tokens, cached, pairs, outputs, weights))
    return readings


def passes(rows: float, settings: Settings) -> float:
    """Return how often the weights are read so that `rows` rows advance, `settings.rows` at a time."""
    return 1.0 if settings.rows is None else max(1.0, rows / settings.rows)


def measure_ceilings(
    device: torch.device | str, dtype: torch.dtype, *, copied: int = 0, side: int = 0
) -> Ceilings:
    """Measure bandwidth and matrix-product rate: the best of several repetitions of each.

    Args:
        device: where to measure, with the threads in use on a CPU.
        dtype: type of the matrices.
        copied: bytes of the copied tensor; 0 chooses 4 GiB on a GPU and 256 MiB on a CPU.
        side: rows and columns of the matrices; 0 chooses 8192 on a GPU and 1024 on a CPU.
    """
    device = torch.device(device)
    cuda = device.type == "cuda"
    copied = copied or (1 << 32 if cuda else 1 << 28)
    side = side or (8192 if cuda else 1024)
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    copying = best_seconds(partial(torch.empty_like(source).copy_, source), device)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty(side, side, device=device, dtype=dtype)
    multiplying = best_seconds(partial(torch.mm, left, right, out=product), device)
    return Ceilings(2 * copied / copying, 2 * side**3 / multiplying)


def best_seconds(work: Callable[[], object], device: torch.device, repeat: int = 7) -> float:
    """Return the shortest time of `repeat` runs after one that warms up."""
    work()
    found = []
    for _ in range(repeat):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - start)
    return min(found)


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(ceilings: Ceilings) -> Mapping[str, float]:
    """Return the ceilings in GB/s and TFLOP/s."""
    return {"GB/s": ceilings.bandwidth / 1e9, "TFLOP/s": ceilings.rate / 1e12}
