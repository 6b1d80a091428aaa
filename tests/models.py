"""Tiny networks on disk, as users have them: random weights, real tokenizers, loaded by name.

Every folder is built on first use, once per session. Weights are spread wide (standard deviation
0.25 at a hidden size of
32), so that next-token distributions are far from uniform and a wrong cache, mask or position shows
at once.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from ivgcli.decoding.engine import Engine
from ivgcli.decoding.search import Outcome, Request
from ivgcli.recipes import GenerateRecipe
from ivgcli.values import Prompted
from ivgcli.workflows.assembly import Assembly
from ivgcli.workflows.generate import build_mode, sampling_limits

SPREAD = 0.25
CONTEXT = 96
WINDOW = 5
"""Sliding window of the Mistral: shorter than every text that the tests read."""

SPECIALS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if not (loop.last and m['role'] == 'assistant') %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CORPUS = [
    "the film opens with a slow and tender shot of the sea",
    "an effective but too tepid biopic, the acting is fine and the story is not",
    "this is a good film with a bad ending, and that is all there is to it",
    "naïve café scenes, a tender 😀 here and there",
]
OTHER_CORPUS = [
    "a film, the film, that film opens. opens with it. with it the end.",
    "is a is the in a in the on a on the to a to the of a of the",
    "t e s a o i n r  th he in er an re  ab cd ef gh",
]
PROMPTS = [
    "the film opens",
    "an effective but",
    "a",
    "this is a good film with a bad ending, and",
    "naïve 😀",
]
WORDS = ["<|pad|>", "<|end|>", "north", "east", "south", "west"]
"""Vocabulary of the networks small enough for enumeration."""

_ROOT = Path(tempfile.mkdtemp(prefix="ivg-tiny-"))
atexit.register(shutil.rmtree, _ROOT, ignore_errors=True)


def byte_tokenizer(
    corpus: Sequence[str] = CORPUS,
    size: int = 300,
    chat: str | None = None,
    across_words: bool = False,
    alphabet: bool = True,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE.

    Args:
        corpus: what to learn merges from.
        size: number of tokens.
        chat: chat template.
        across_words: whether merges run over spaces, so that text to come changes the last tokens
        of what is there.
        alphabet: whether all 256 bytes are tokens; else only those of the corpus's ASCII text, and
        every sequence of
            tokens is valid text.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=not across_words
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
        show_progress=False,
    )
    core.train_from_iterator(
        corpus if alphabet else [text for text in corpus if text.isascii()], trainer
    )
    return wrapped(core, chat)


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Train a BPE as SentencePiece has it: `▁` for spaces, unknown characters as bytes, a first
    space that decoding drops."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=84, special_tokens=["<unk>", "<s>", *SPECIALS], show_progress=False
    )
    core.train_from_iterator(CORPUS[:3], trainer)
    text = json.loads(core.to_str())
    # As in SentencePiece, the 256 bytes are ordinary tokens behind the special ones.
    head = len(SPECIALS) + 2
    vocab = {
        string: token if token < head else token + 256
        for string, token in text["model"]["vocab"].items()
    }
    text["model"]["vocab"] = {**vocab, **{f"<0x{byte:02X}>": head + byte for byte in range(256)}}
    core = Tokenizer.from_str(json.dumps(text))
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return wrapped(core, None, unk_token="<unk>", bos_token="<s>")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of six words."""
    core = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<|pad|>")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(core, None)


def permuted_tokenizer() -> PreTrainedTokenizerFast:
    """Return the byte tokenizer with the ids of all ordinary tokens in reverse order."""
    return _rewritten(lambda token, size: len(SPECIALS) + size - 1 - token)


def renamed_tokenizer() -> PreTrainedTokenizerFast:
    """Return the byte tokenizer of the same size in which two tokens have changed places."""
    swap = {40: 41, 41: 40}
    return _rewritten(lambda token, size: swap.get(token, token))


def _rewritten(place: Callable[[int, int], int]) -> PreTrainedTokenizerFast:
    text = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    vocab = text["model"]["vocab"]
    size = len(vocab)
    text["model"]["vocab"] = {
        string: token if token < len(SPECIALS) else place(token, size)
        for string, token in vocab.items()
    }
    return wrapped(Tokenizer.from_str(json.dumps(text)), None)


def superset_tokenizer() -> PreTrainedTokenizerFast:
    """Return the byte tokenizer with two more tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<extra-1>", "<extra-2>"])
    return tokenizer


def wrapped(core: Tokenizer, chat: str | None, **specials: str) -> PreTrainedTokenizerFast:
    """Return a transformers tokenizer around a core."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        clean_up_tokenization_spaces=False,
        **specials,
    )
    tokenizer.chat_template = chat
    return tokenizer


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": byte_tokenizer,
    "chat": lambda: byte_tokenizer(chat=CHAT),
    "ascii": lambda: byte_tokenizer(size=90, alphabet=False),
    "other": lambda: byte_tokenizer(OTHER_CORPUS, 330, across_words=True),
    "metaspace": metaspace_tokenizer,
    "words": word_tokenizer,
    "permuted": permuted_tokenizer,
    "renamed": renamed_tokenizer,
    "superset": superset_tokenizer,
}


@functools.cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return one of `TOKENIZERS`, trained once."""
    return TOKENIZERS[name]()


@dataclass(frozen=True)
class Plan:
    """How to build one folder."""

    family: str
    seed: int
    vocabulary: str = "bytes"
    labels: int | None = None
    """None: a language model; else a classifier with that many outputs, -1: one per token."""
    settings: Mapping[str, Any] = field(default_factory=dict)


PLANS: dict[str, Plan] = {
    "llama": Plan("llama", 1),
    "llama-tuned": Plan("llama", 2),
    "llama-reference": Plan("llama", 3),
    "llama-chat": Plan("llama", 4, "chat"),
    "llama-superset": Plan("llama", 5, "superset"),
    "llama-permuted": Plan("llama", 6, "permuted"),
    "llama-renamed": Plan("llama", 7, "renamed"),
    "llama-other": Plan("llama", 8, "other"),
    "llama-other-reference": Plan("llama", 9, "other"),
    "llama-metaspace": Plan("llama", 10, "metaspace"),
    "llama-padded": Plan("llama", 19, settings={"vocab_size": 400}),
    "llama-odd": Plan("llama", 20, settings={"vocab_size": 301}),
    "llama-ascii": Plan("llama", 18, "ascii"),
    "gpt2": Plan("gpt2", 11),
    "gpt2-tuned": Plan("gpt2", 12),
    "gpt2-reference": Plan("gpt2", 13),
    "mistral": Plan("mistral", 14),
    "words": Plan("llama", 15, "words"),
    "words-tuned": Plan("llama", 16, "words"),
    "words-reference": Plan("llama", 17, "words"),
    "scalar": Plan("llama", 21, labels=1),
    "scalar-gpt2": Plan("gpt2", 22, labels=1),
    "scalar-other": Plan("llama", 23, "other", labels=1),
    "token-q": Plan("llama", 24, labels=-1),
    "two-labels": Plan("llama", 25, labels=2),
}

CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "gpt2": GPT2Config}
LANGUAGE = {"llama": LlamaForCausalLM, "mistral": MistralForCausalLM, "gpt2": GPT2LMHeadModel}
CLASSIFIERS = {"llama": LlamaForSequenceClassification, "gpt2": GPT2ForSequenceClassification}


@functools.cache
def folder(name: str) -> str:
    """Return the folder of a network of `PLANS`, built by save_pretrained on first use."""
    plan = PLANS[name]
    reader = tokenizer(plan.vocabulary)
    common: dict[str, Any] = {
        "vocab_size": len(reader),
        "pad_token_id": reader.pad_token_id,
        "eos_token_id": reader.eos_token_id,
        "bos_token_id": None,
        "initializer_range": SPREAD,
        "tie_word_embeddings": False,
    }
    if plan.labels is not None:
        common["num_labels"] = len(reader) if plan.labels == -1 else plan.labels
    if plan.family == "gpt2":
        sizes = {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": CONTEXT,
            "resid_pdrop": 0.0,
        }
    else:
        sizes = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
        }
    if plan.family == "mistral":
        sizes["sliding_window"] = WINDOW
    config = CONFIGS[plan.family](**{**common, **sizes, **plan.settings})
    torch.manual_seed(plan.seed)
    built = (LANGUAGE if plan.labels is None else CLASSIFIERS)[plan.family](config).eval()
    with torch.no_grad():
        if plan.labels is None:
            # EOS is drawn at about one step in ten, so that responses end by themselves at many
            # lengths.
            built.lm_head.weight[reader.eos_token_id] *= 2.5
        else:
            built.score.weight *= 2.0
    target = _ROOT / name
    built.save_pretrained(target)
    reader.save_pretrained(target)
    return str(target)


def scratch(name: str) -> Path:
    """Return an empty folder of this session."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=_ROOT))


@functools.cache
def plain(name: str) -> Any:
    """Return the language model of a folder with transformers' own attention: the oracles'
    network."""
    return AutoModelForCausalLM.from_pretrained(
        folder(name), dtype=torch.float32, attn_implementation="sdpa"
    ).eval()


@functools.cache
def plain_value(name: str) -> Any:
    """Return the sequence classifier of a folder with transformers' own attention."""
    family = PLANS[name].family
    return (
        CLASSIFIERS[family]
        .from_pretrained(folder(name), dtype=torch.float32, attn_implementation="sdpa")
        .eval()
    )


@dataclass
class Run:
    """What a decoding run left behind."""

    outcomes: dict[tuple[str, int], Outcome]
    """By (id, sample)."""
    assembly: Assembly
    engine: Engine
    warnings: list[str]

    def tokens(self) -> dict[tuple[str, int], list[int]]:
        """Return the token ids of every response."""
        return {key: outcome.winner.row.tokens for key, outcome in self.outcomes.items()}

    def network(self, name: str) -> Any:
        """Return the loaded network of a folder."""
        return next(
            network for network in self.assembly.networks.all() if network.name == folder(name)
        )


def recipe(base: str, mode: str = "base", **sections: Any) -> GenerateRecipe:
    """Return a recipe over `folder(base)`; `sampling`, `token`, `chunk` and `guide` are given as in
    YAML."""
    return GenerateRecipe.model_validate({"base": folder(base), "mode": mode, **sections})


def pair(tuned: str, reference: str, **rest: Any) -> dict[str, Any]:
    """Return the `implicit` entry of two folders."""
    return {"tuned": folder(tuned), "reference": folder(reference), **rest}


def prompted(prompts: Sequence[str]) -> list[Prompted]:
    """Return prompts with the ids p0, p1, …"""
    return [Prompted(f"p{number}", text, None, text) for number, text in enumerate(prompts)]


def engine_of(plan: GenerateRecipe, rows: int, **rest: Any) -> tuple[Assembly, Engine]:
    """Return assembly and engine of a recipe, as the workflow builds them."""
    device = rest.pop("device", "cpu")
    assembly = Assembly(
        plan.base,
        device,
        rest.pop("dtype", None),
        plan.vocabulary,
        deterministic=plan.engine.deterministic,
    )
    mode = rest.pop("mode", None) or build_mode(plan, assembly)
    engine = Engine(
        assembly.base,
        mode,
        sampling_limits(plan.sampling),
        rest.pop("eos_ids", assembly.eos_ids),
        rows=rows,
        coverages=assembly.coverages,
        seed=plan.seed,
        width=assembly.width,
        **rest,
    )
    return assembly, engine


def decode(
    plan: GenerateRecipe,
    prompts: Sequence[str | Prompted] = PROMPTS,
    rows: int = 8,
    order: Callable[[list[Request]], Sequence[Request]] = list,
    prepare: Callable[[Assembly, Engine], None] = lambda assembly, engine: None,
    **rest: Any,
) -> Run:
    """Decode prompts under a recipe; `order` may rearrange the requests, `prepare` may tamper with
    what was built."""
    warnings: list[str] = []
    assembly, engine = engine_of(plan, rows, warn=warnings.append, **rest)
    prepare(assembly, engine)
    given = [
        prompt if isinstance(prompt, Prompted) else Prompted(f"p{number}", prompt, None, prompt)
        for number, prompt in enumerate(prompts)
    ]
    requests = order(
        [Request(prompt, sample) for prompt in given for sample in range(plan.sampling.samples)]
    )
    outcomes = {
        (done.request.prompt.id, done.request.sample): done for done in engine.run(requests)
    }
    assert len(outcomes) == len(requests), "every request has exactly one outcome"
    return Run(outcomes, assembly, engine, warnings)
