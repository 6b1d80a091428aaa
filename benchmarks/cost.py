"""What a run costs: forward passes, tokens read, floating-point operations and peak memory."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel


@dataclass
class Reading:
    """What one network was asked to read."""

    passes: int = 0
    """Forward passes of the network without its output head."""
    tokens: int = 0
    """Rows times positions fed in over all passes; padding counts, because it costs."""


@dataclass
class Peak:
    """Largest memory seen while a block ran, in bytes; None where the platform does not tell."""

    total: int | None = None
    growth: int | None = None


@contextmanager
def counted(networks: Mapping[str, PreTrainedModel]) -> Iterator[dict[str, Reading]]:
    """Count the forward passes and tokens of each named network while the block runs.

    The count sits on the network below the output head, so that it is the same whether a caller
    asks for logits or for hidden states.

    Args:
        networks: the names to report and the networks behind them.

    Returns:
        One `Reading` per name, filled while the block runs.
    """
    readings = {name: Reading() for name in networks}
    hooks = []
    for name, network in networks.items():

        def note(
            _module: nn.Module, args: tuple, kwargs: dict, reading: Reading = readings[name]
        ) -> None:
            ids = args[0] if args else kwargs.get("input_ids")
            read = ids if ids is not None else kwargs["inputs_embeds"][..., 0]
            reading.passes += 1
            reading.tokens += read.numel()

        hooks.append(network.base_model.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield readings
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of one network; a multiply-add counts as two."""

    layers: float
    """Operations in the layers' matrix products for one token."""
    head: float
    """Operations in the output head for one position whose logits are wanted."""
    attention: float
    """Operations in attention for one token and one position it attends to."""

    def of_run(self, prompt_lengths: Sequence[int], rows_per_prompt: int, tokens: int) -> float:
        """Add up the least that decoding needs: each prompt read once, each row's token read once.

            prompt of P tokens:       P · layers + attention · P (P + 1) / 2 + head
            rows after it, t = 1 … T−1:   layers + head + attention · (P + t)

        The last token of a response is drawn (and its value known) without being read.

        Args:
            prompt_lengths: P of every prompt, at least 1.
            rows_per_prompt: sequences that share a prompt, at least 1.
            tokens: T, response tokens of every row, at least 1.
        """
        total = 0.0
        for length in prompt_lengths:
            total += length * self.layers + self.attention * length * (length + 1) / 2 + self.head
            steps = tokens - 1
            contexts = steps * length + steps * (steps + 1) / 2
            total += rows_per_prompt * (
                steps * (self.layers + self.head) + self.attention * contexts
            )
        return total


def head_of(network: PreTrainedModel) -> nn.Module:
    """Return the output head: of a language model, or of a sequence classifier."""
    head = network.get_output_embeddings()
    return network.score if head is None else head


def arithmetic(network: PreTrainedModel) -> Arithmetic:
    """Read a network's operation counts off its weights and configuration."""
    embeddings = {
        id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)
    }
    head = head_of(network).weight
    matrices = sum(
        weight.numel()
        for weight in network.base_model.parameters()
        if weight.ndim == 2 and id(weight) not in embeddings
    )
    config = network.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Scores and weighted sum, each one multiply-add per head dimension.
    attention = 4.0 * config.num_hidden_layers * config.num_attention_heads * width
    return Arithmetic(layers=2.0 * matrices, head=2.0 * head.numel(), attention=attention)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the largest memory held while the block runs: allocated on CUDA, resident elsewhere.

    On the CPU the kernel's high-water mark is reset before the block (Linux only); `total` includes
    the weights and whatever else the process holds, `growth` is what the block added.
    """
    peak = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.total = torch.cuda.max_memory_allocated(device)
        peak.growth = peak.total - before
        return
    return_free_memory()
    start = resident("VmRSS") if reset_high_water() else None
    yield peak
    if start is not None:
        peak.total = resident("VmHWM")
        peak.growth = max(0, peak.total - start)


def return_free_memory() -> None:
    """Hand freed heap pages back, so that one run does not hide the growth of the next."""
    # With another C library nothing is handed back, and growth is a lower bound.
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def reset_high_water() -> bool:
    """Reset the process's high-water mark; False where the platform has none to reset."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident(field_name: str) -> int:
    """Read one memory field of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == field_name:
            return int(rest.split()[0]) * 1024
    raise KeyError(field_name)
