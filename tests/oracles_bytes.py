"""Guidance in bytes by brute force: toy vocabularies, tiny networks over them, and sums over all tokenisations.

The oracle, `Sums`, runs plain forward passes without a cache and enumerates; it shares nothing with ivgcli. Only
`Rows`, which drives the value under test as the engine does, imports it.
"""

from __future__ import annotations

import codecs
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ivgcli.models.readings import Reading, read_all
from ivgcli.recipes import GenerateRecipe
from ivgcli.values import Prompted, Row
from ivgcli.values.implicit_bytes import ByteImplicitValue
from ivgcli.values.precision import Precision
from ivgcli.workflows.assembly import Assembly
from tests.models import scratch, wrapped

SPECIALS = ["<|pad|>", "<|end|>", "<|stop|>"]
END, STOP = 1, 2
LETTERS = ["a", "b", "c"]
BYTES = [0xC3, 0xA9, 0xEF, 0xBF, 0xBD]
"""Those of é and of U+FFFD, which stands for what is no character."""
AS_CHARACTERS = {0x20: "Ġ", 0xC3: "Ã", 0xA9: "©", 0xEF: "ï", 0xBF: "¿", 0xBD: "½"}
"""How byte-level BPE writes bytes."""
SPREAD = 0.25


def _byte_level(merges: Sequence[str], regex: bool, begins: bool) -> Tokenizer:
    """Return a byte-level BPE."""
    letters = [*LETTERS, *AS_CHARACTERS.values()]
    specials = [*SPECIALS, *(["<s>"] if begins else [])]
    strings = [*specials, *letters, *(merge.replace(" ", "") for merge in merges)]
    pairs = [tuple(merge.split()) for merge in merges]
    core = Tokenizer(models.BPE({string: i for i, string in enumerate(strings)}, pairs))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    core.decoder = decoders.ByteLevel()
    if begins:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 3)]
        )
    return core


def _sentencepiece(merges: Sequence[str]) -> Tokenizer:
    """Return a BPE as SentencePiece has it: a space before every document, unknown characters as bytes."""
    specials = [*SPECIALS, "<s>", "<unk>"]
    strings = [*specials, *(f"<0x{byte:02X}>" for byte in BYTES), "▁", *LETTERS]
    strings += [merge.replace(" ", "") for merge in merges]
    pairs = [tuple(merge.split()) for merge in merges]
    vocabulary = {string: i for i, string in enumerate(strings)}
    core = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return _spaced(core)


def _unigram(scores: dict[str, float]) -> Tokenizer:
    """Return a unigram model: the most probable segmentation as a whole, which text to come can change far back."""
    listed = [(string, 0.0) for string in [*SPECIALS, "<s>", "<unk>"]]
    listed += [(f"<0x{byte:02X}>", -9.0) for byte in BYTES]
    core = Tokenizer(models.Unigram([*listed, *scores.items()], unk_id=4, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _spaced(core)


def _spaced(core: Tokenizer) -> Tokenizer:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 3)]
    )
    return core


SCORES = {"▁": -3.0, "a": -3.1, "b": -3.2, "c": -3.3, "ab": -4.0, "bc": -4.1, "▁a": -4.3}
SCORES |= {"abc": -5.9, "cab": -5.5, "bca": -5.2, "c▁": -4.4, "aa": -4.6, "é": -4.5, "a▁b": -6.0}

CORES: dict[str, Any] = {
    "bytes": lambda: _byte_level(
        ["a b", "b c", "Ġ a", "ab c", "Ã ©", "c Ġ", "a a", "bc a", "© a"], False, True
    ),
    "words": lambda: _byte_level(["Ġ a", "a b", "Ġ b", "ab c", "Ã ©", "c a", "Ġa b"], True, False),
    "pieces": lambda: _sentencepiece(
        ["▁ a", "b c", "c a", "▁a b", "a b", "ca b", "▁ b", "c ▁", "a a"]
    ),
    "unigram": lambda: _unigram(SCORES),
}
"""At most 40 tokens each: byte-level BPE that merges across spaces, and one that cuts words by a regular expression
and puts nothing before a text; SentencePiece's BPE; a unigram model."""


@dataclass(frozen=True)
class Toy:
    """A tokenizer and, written down independently, the bytes behind its ids."""

    tokenizer: Any
    pieces: tuple[bytes | None, ...]
    """None for special tokens."""

    def text(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of ids."""
        return b"".join(self.pieces[token] or b"" for token in ids)


@functools.cache
def toy(name: str) -> Toy:
    """Return one of `CORES`."""
    core = CORES[name]()
    begins = core.token_to_id("<s>") is not None
    known = {"bos_token": "<s>"} if begins else {}
    known |= {"unk_token": "<unk>"} if core.token_to_id("<unk>") is not None else {}
    tokenizer = wrapped(core, None, additional_special_tokens=["<|stop|>"], **known)
    pieces: list[bytes | None] = [None] * len(tokenizer)
    written = {character: bytes([byte]) for byte, character in AS_CHARACTERS.items()}
    for string, token in tokenizer.get_vocab().items():
        if string in [*SPECIALS, "<s>", "<unk>"]:
            continue
        if string.startswith("<0x"):
            pieces[token] = bytes([int(string[3:5], 16)])
        elif name in ("bytes", "words"):
            pieces[token] = b"".join(written.get(c, c.encode()) for c in string)
        else:
            pieces[token] = string.replace("▁", " ").encode()
    return Toy(tokenizer, tuple(pieces))


@functools.cache
def network(vocabulary: str, seed: int, canonical: bool = False, ends: int = 2) -> str:
    """Return the folder of a tiny network over a toy vocabulary, built once.

    Args:
        vocabulary: name of the toy.
        seed: of its random weights.
        canonical: whether tokens that never follow each other in a canonical tokenisation have probability 0.
        ends: how many EOS ids the network has.
    """
    known = toy(vocabulary)
    size = len(known.pieces)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size + size % 2 + 24 if canonical else 32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=16,
        num_key_value_heads=2,
        max_position_embeddings=96,
        initializer_range=SPREAD,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=[END, STOP][:ends],
    )
    torch.manual_seed(seed)
    built = LlamaForCausalLM(config).eval()
    if canonical:
        _forbid(built, ~allowed_pairs(vocabulary))
    place = scratch(f"{vocabulary}-{seed}")
    built.save_pretrained(place)
    known.tokenizer.save_pretrained(place)
    return str(place)


@torch.no_grad()
def _forbid(model: Any, pairs: np.ndarray) -> None:
    """Give a network one dimension for each token, which nothing writes to, and let it forbid what may not follow."""
    size = len(pairs)
    model.model.embed_tokens.weight[:, :size] = 4 * torch.eye(size)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[:size] = 0
        layer.mlp.down_proj.weight[:size] = 0
    model.lm_head.weight[:, :size] = torch.from_numpy(np.where(pairs, -2000.0, 0.0).T).float()


@functools.cache
def allowed_pairs(vocabulary: str) -> np.ndarray:
    """Return whether (first, second) may follow each other in a BPE's tokenisation of a text (V, V).

    That is a local matter: a sequence is what its text is tokenised into if and only if each pair in it is what the
    pair's text is tokenised into, and its bytes are characters. Special tokens may stand anywhere.
    """
    known = toy(vocabulary)
    core = known.tokenizer.backend_tokenizer
    strings = [core.id_to_token(token) for token in range(len(known.pieces))]
    found = np.ones((len(strings), len(strings)), dtype=bool)
    for first, one in enumerate(known.pieces):
        for second, two in enumerate(known.pieces):
            if one is None or two is None:
                continue
            if strings[first].startswith("<0x") or strings[second].startswith("<0x"):
                found[first, second] = _next_byte(one[-1]) == _next_byte(two[0], before=True)
            else:
                pieces = core.model.tokenize(strings[first] + strings[second])
                found[first, second] = [piece.id for piece in pieces] == [first, second]
    return found


def _next_byte(byte: int, before: bool = False) -> int | None:
    """Return the byte that has to follow, or be the one at a place, where it goes on with a character; else None."""
    following = {0xC3: 0xA9, 0xEF: 0xBF, 0xBF: 0xBD}
    if before:
        return byte if byte in following.values() else None
    return following.get(byte)


class Sums:
    """Probabilities of text under one network: sums over all sequences of its tokens, one plain forward for each.

    Args:
        folder: of the network.
        pieces: the bytes of its tokens, None for special ones.
        ends: its EOS ids.
    """

    def __init__(
        self, folder: str, pieces: Sequence[bytes | None], ends: Sequence[int] = (END, STOP)
    ) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self.pieces = pieces
        self.ends = list(ends)
        self._known: dict[tuple[int, ...], np.ndarray] = {}

    def prefix_probability(self, context: Sequence[int], pending: bytes) -> float:
        """Return P(text after `context` begins with `pending`): the last token may run past its end."""
        return self._sum(context, pending, False)

    def ending_probability(self, context: Sequence[int], pending: bytes) -> float:
        """Return P(text after `context` is `pending`, and then it ends)."""
        return self._sum(context, pending, True)

    def read_ahead(self, context: Sequence[int], pending: bytes, pieces: Iterable[bytes]) -> None:
        """Read all that is asked of the pending text, of its end, and of it with each piece, side by side."""
        wanted = set(self._paths(tuple(context), pending, True))
        for piece in pieces:
            wanted.update(self._paths(tuple(context), pending + piece, False))
        self._read(sorted(wanted))

    def canonical_logprob(self, ids: Sequence[int], begin: int) -> float:
        """Return the log-probability of ids from place `begin` on."""
        return sum(
            float(np.log(self.next_probabilities(tuple(ids[:place]))[ids[place]]))
            for place in range(begin, len(ids))
        )

    def next_probabilities(self, ids: tuple[int, ...]) -> np.ndarray:
        """Return the distribution (V,) in float64 of the token after ids."""
        self._read([ids])
        return self._known[ids]

    def _sum(self, context: Sequence[int], rest: bytes, ended: bool) -> float:
        self._read([*self._paths(tuple(context), rest, ended)])
        return self._sum_from(tuple(context), rest, ended)

    def _sum_from(self, ids: tuple[int, ...], rest: bytes, ended: bool) -> float:
        chances = self._known[ids]
        if not rest:
            return float(chances[self.ends].sum()) if ended else 1.0
        total = 0.0
        for token, piece in enumerate(self.pieces):
            if not piece:
                continue
            if piece.startswith(rest) and not (ended and piece == rest):
                total += 0.0 if ended else float(chances[token])
            elif rest.startswith(piece):
                after = self._sum_from((*ids, token), rest[len(piece) :], ended)
                total += float(chances[token]) * after
        return total

    def _paths(self, ids: tuple[int, ...], rest: bytes, ended: bool) -> Iterator[tuple[int, ...]]:
        """Yield every sequence after which a distribution is needed."""
        yield ids
        for token, piece in enumerate(self.pieces):
            if piece and rest.startswith(piece) and (ended or piece != rest):
                yield from self._paths((*ids, token), rest[len(piece) :], ended)

    @torch.no_grad()
    def _read(self, wanted: Sequence[tuple[int, ...]]) -> None:
        """Run sequences of equal length side by side, without padding and without a cache."""
        by_length: dict[int, list[tuple[int, ...]]] = {}
        for ids in wanted:
            if ids not in self._known:
                by_length.setdefault(len(ids), []).append(ids)
        for ids in by_length.values():
            logits = self.model(input_ids=torch.tensor(ids), use_cache=False).logits[:, -1]
            for each, found in zip(ids, torch.softmax(logits.double(), -1).numpy(), strict=True):
                self._known[each] = found


@functools.cache
def sums(vocabulary: str, folder: str) -> Sums:
    """Return the sums of a network over a toy vocabulary, loaded once."""
    return Sums(folder, toy(vocabulary).pieces)


def decoded(response: bytes) -> tuple[str, bytes]:
    """Return the text of a response's whole characters, U+FFFD for what is none, and the bytes held back."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(response)
    return text, decoder.getstate()[0]


@functools.cache
def assembly(base: str) -> Assembly:
    """Return the assembly over a base in float64; it loads each network once, whoever reads it."""
    plan = GenerateRecipe.model_validate({"base": base})
    return Assembly(plan.base, "cpu", "float64")


class Rows:
    """Rows guided in bytes, driven as the engine drives them.

    Args:
        base: (toy, seed) of the base.
        guide: (toy, seed of the tuned network, seed of its reference).
        prompts: one for each row.
        precision: width, mass, and which tokenisations count.
        canonical: whether the guide's networks forbid other tokenisations.
        ends: EOS ids of the guide's networks.
    """

    def __init__(
        self,
        base: tuple[str, int],
        guide: tuple[str, int, int],
        prompts: Sequence[str],
        precision: tuple[float, float, str] = (0.0, 0.0, "all"),
        canonical: bool = False,
        ends: int = 2,
    ) -> None:
        self.base = toy(base[0])
        self.guide = toy(guide[0])
        self.guide_name = guide[0]
        self.folders = [network(guide[0], seed, canonical, ends) for seed in guide[1:]]
        pair = dict(zip(("tuned", "reference"), self.folders, strict=True))
        self.plan = GenerateRecipe.model_validate(
            {"base": network(*base), "mode": "eft-i", "guide": {"implicit": [pair]}}
        )
        width, mass, counted = precision
        self.assembly = assembly(network(*base))
        self.assembly.precision = Precision(counted, width, mass)
        self.value: ByteImplicitValue = self.assembly.implicit(self.plan.guide, for_tokens=True)
        self.streams = self.value.streams()
        for follower in (*self.streams, self.value):
            follower.resize(len(prompts))
        for reader in self.value.readers:
            reader._table.fill_(torch.nan)  # whatever is used without having been read shows
        self.states: list[Row] = [self._fresh(prompt) for prompt in prompts]
        self.prefill(self.value, self.states)

    def _fresh(self, prompt: str) -> Row:
        ids = self.base.tokenizer(prompt)["input_ids"]
        return Row(Prompted(prompt, prompt, None, prompt), ids)

    @torch.inference_mode()
    def prefill(self, value: Any, states: Sequence[Row]) -> None:
        """Read the prompts of rows 0, 1, … for a value, and begin them there."""
        readings = []
        for stream in value.streams():
            ids = [stream.prompts.encode(state.prompt.text, None) for state in states]
            readings.append(Reading(stream, [*range(len(states))], ids, prompt=True))
        read_all(readings)
        for row, state in enumerate(states):
            value.start(row, state)

    @torch.inference_mode()
    def next_values(
        self,
        rows: Sequence[int] = (0,),
        candidates: Sequence[int] | None = None,
        logprobs: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the values (B, C) of candidates, by default of the whole vocabulary, equally probable."""
        size = len(self.base.pieces)
        chosen = list(range(size)) if candidates is None else list(candidates)
        if logprobs is None:
            logprobs = np.full((len(rows), size), -np.log(size))
        states = [self.states[row] for row in rows]
        table = torch.tensor([chosen] * len(rows))
        found = self.value.next_values(rows, states, table, torch.from_numpy(logprobs).float())
        return found.double().numpy()

    def context(self, row: int, side: int) -> tuple[list[int], bytes]:
        """Return the guide's tokens that are taken as given, and the bytes that have not been covered by them.

        The number of tokens is the value's own; everything else comes from a fresh tokenisation.
        """
        count = self.value.readers[side].first_node(row)
        text, held = decoded(self.base.text(self.states[row].tokens))
        ids = self.guide.tokenizer(self.states[row].prompt.text + text)["input_ids"]
        return ids[:count], self.guide.text(ids[count:]) + held
