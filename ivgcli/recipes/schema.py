"""The recipes of the decoding commands and their sections.

Names, types, defaults, and the sentences for combinations that make no sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from ivgcli.recipes.base import BaseSpec
from ivgcli.recipes.guide import Dtype, ExplicitSpec, Guide, Section, Text
from ivgcli.recipes.sentences import show

Value = Literal["implicit", "explicit"]
"""The two kinds of value a guide can hold."""

MODES: dict[str, tuple[Value | None, Value | None]] = {
    "base": (None, None),
    "eft-i": ("implicit", None),
    "eft-e": ("explicit", None),
    "cbs-i": (None, "implicit"),
    "cbs-e": (None, "explicit"),
    "eft-i+cbs-i": ("implicit", "implicit"),
    "eft-e+cbs-e": ("explicit", "explicit"),
    "eft-e+cbs-i": ("explicit", "implicit"),
    "ivg": ("implicit", "explicit"),
}
"""Each mode as a pair: the value that guides tokens, the value that ranks chunks."""

ModeName = Literal[
    "base", "eft-i", "eft-e", "cbs-i", "cbs-e", "eft-i+cbs-i", "eft-e+cbs-e", "eft-e+cbs-i", "ivg"
]
Vocabulary = Literal["auto", "same", "ids", "bytes"]

AtLeastOne = Annotated[int, Field(ge=1)]
Speculate = Literal["auto", "off"] | AtLeastOne


class PrecisionSpec(Section):
    """How exactly an implicit value of another vocabulary is worked out in each step."""

    tokenisations: Literal["canonical", "possible", "all"] = "canonical"
    """What the probability of a text sums over: its canonical tokenisation and all tokens that run
    past its end; also tokens that a longer text could have; or every sequence of tokens."""
    width: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """Nats between the bounds of a candidate's value from which on it counts as uncertain."""
    mass: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Probability that the base may give to candidates that are not read ahead or stay uncertain."""


class TokenSpec(Section):
    """How a value tilts the next-token distribution."""

    weight: FiniteFloat = 1.0
    """Strength of token guidance; 0 is the base model."""
    candidates: AtLeastOne | None = None
    """Most likely tokens of the base that are evaluated; unset: 20 for a scalar value, 64 for an
    implicit value in bytes, else all."""
    outside: Literal["auto", "prefix", "centred", "mass", "drop"] = "auto"
    """What the other tokens get.

    prefix: the prefix's value (IVO); centred: nothing, with the candidates' values centred on their
    mean (VAS); mass: the probability that the base gives them; drop: no probability (ARGS, FUDGE).
    auto: mass for an implicit value of another vocabulary, else prefix."""
    every: AtLeastOne = 1
    """Guide every n-th token only (block-wise sampling)."""
    warp: Literal["before", "after"] = "after"
    """Whether temperature, top-k and top-p apply before or after guidance."""
    precision: PrecisionSpec = PrecisionSpec()
    """For a guide of another vocabulary."""


class ChunkSpec(Section):
    """How chunks are ranked: chunk-level beam search."""

    beam_width: AtLeastOne = 2
    """W, hypotheses kept."""
    successors: AtLeastOne = 2
    """K, continuations of each hypothesis."""
    chunk_length: AtLeastOne | None = 30
    """L, tokens between rankings; null: the whole response."""
    score: Literal["absolute", "advantage"] = "absolute"
    """Rank by a candidate's value, or by its difference to its parent's."""
    compat: Literal["w2s"] | None = None
    """Treat finished hypotheses as the published weak-to-strong-search code does."""


class SamplingSpec(Section):
    """How tokens are drawn."""

    samples: AtLeastOne = 1
    """Responses for each prompt."""
    temperature: Annotated[FiniteFloat, Field(ge=0)] = 1.0
    """0 takes the most likely token."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from the k most likely tokens only; 0: from all."""
    top_p: Annotated[FiniteFloat, Field(gt=0, le=1)] = 1.0
    """Draw from the smallest set of tokens that holds this probability; 1: from all."""
    max_new_tokens: AtLeastOne = 256
    """Longest response, in tokens of the base."""
    stop: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """Texts that end a response, one or a list."""

    @field_validator("stop", mode="before")
    @classmethod
    def accept_one(cls, raw: Any) -> Any:
        """Read a single text as a list of one."""
        return (raw,) if isinstance(raw, str) else raw


class EngineSpec(Section):
    """Where and how wide to decode. Device, rows and speculation never change what a response says."""

    device: Text | None = None
    """cpu, cuda, cuda:1, …; unset: a GPU if there is one."""
    dtype: Dtype | None = None
    """Number format of models that do not name one."""
    rows: AtLeastOne | None = None
    """Sequences that decode at once; unset: what memory holds."""
    graphs: Literal["auto", "on", "off"] = "auto"
    """Whether up to 16 tokens are drawn between two looks of the host at them, each step a CUDA graph, where no token
    is guided or implicit values guide over the whole vocabulary. auto: on a GPU."""
    deterministic: bool = False
    """Whether a response and its numbers are the same to the bit for any batch, order, resume and number of workers, on
    one kind of device and one version of the libraries."""
    speculate: Speculate = "auto"
    """Tokens that the tuned model of an implicit guide guesses ahead, for base and guides to check in
    one pass; off: none; auto: as many as pay, where the input is a single prompt. The text is the same."""

    @model_validator(mode="after")
    def check_deterministic(self) -> EngineSpec:
        """Refuse what makes the last bits depend on how guesses went."""
        if self.deterministic and self.speculate not in ("auto", "off"):
            raise ValueError("deterministic: true leaves no room for guesses: speculate: off")
        return self

    @field_validator("speculate", mode="before")
    @classmethod
    def check_speculate(cls, raw: Any) -> Any:
        """Refuse anything but auto, off or a number of tokens, in one sentence."""
        number = isinstance(raw, int) and not isinstance(raw, bool)
        if raw in ("auto", "off") or (number and raw >= 1):
            return raw
        raise ValueError(f"expected auto, off or a number of tokens, got {show(raw)}")


def offered(guide: Any) -> tuple[Value, ...]:
    """Return the kinds of value that a `Guide`, its raw mapping or None holds."""
    if isinstance(guide, Guide):
        guide = dict(guide)
    kinds: tuple[Value, ...] = ("implicit", "explicit")
    return tuple(kind for kind in kinds if isinstance(guide, Mapping) and guide.get(kind))


def describe_offer(guide: Any) -> str:
    """Return what the guide holds as the end of a sentence."""
    if guide is None:
        return "no guide is given"
    named = dict(guide).get("name", "inline") if isinstance(guide, (Guide, Mapping)) else guide
    return f'guide "{named}" has {" and ".join(offered(guide)) or "none"} only'


class Decoding(Section):
    """The keys that all decoding commands share."""

    checked_key: ClassVar[str]
    """The key that `shortfall` is about."""
    incidental: ClassVar[tuple[str, ...]] = ("base.server", "base.shards")
    """Keys that do not change a response."""

    version: Literal[1] = 1
    """Version of the recipe format."""
    base: BaseSpec
    """The large frozen model that is steered, loaded here or served."""
    guide: Guide | None = None
    """Where values come from: NAME, FILE, DIR, a list of them, or the guide itself."""
    sampling: SamplingSpec = SamplingSpec()
    """How tokens are drawn."""
    seed: int = 0
    """Seed of all draws."""
    vocabulary: Vocabulary = "auto"
    """Guidance across vocabularies.

    auto: find the exact way; same: refuse; ids: add by id, as published code does;
    bytes: guide tokens in bytes even where the ids agree, to see what that costs."""
    engine: EngineSpec = EngineSpec()
    """Where and how wide to decode."""

    @classmethod
    def shortfall(cls, raw: Mapping[str, Any]) -> str | None:
        """Return a sentence if the recipe, given by its keys, asks for a value it does not have."""
        raise NotImplementedError

    @model_validator(mode="after")
    def check_values(self) -> Decoding:
        """Refuse a recipe that lacks the value it asks for."""
        sentence = self.shortfall(dict(self))
        if sentence is not None:
            raise ValueError(sentence)
        return self

    @model_validator(mode="after")
    def check_shards(self) -> Decoding:
        """Refuse ways to draw that a divided base does not have."""
        if isinstance(self.base, BaseSpec) and self.base.divided:
            if self.engine.graphs == "on":
                what = "a base that is divided among GPUs draws without CUDA graphs"
                raise ValueError(f"{what} → leave out base.shards or engine.graphs")
            if isinstance(self.engine.speculate, int):
                what = "nobody guesses ahead for a base that is divided among GPUs"
                raise ValueError(f"{what} → leave out base.shards or engine.speculate")
            if self.engine.deterministic:
                what = "deterministic: sums over several GPUs are not worked out in blocks"
                raise ValueError(f"{what} → leave out base.shards or engine.deterministic")
        return self


class GenerateRecipe(Decoding):
    """What `ivg generate` runs."""

    checked_key: ClassVar[str] = "mode"

    mode: ModeName = "base"
    """How tokens are drawn and chunks are ranked."""
    token: TokenSpec = TokenSpec()
    """Token guidance, in the modes that have it."""
    chunk: ChunkSpec = ChunkSpec()
    """Chunk ranking, in the modes that have it."""

    @model_validator(mode="after")
    def check_reach(self) -> GenerateRecipe:
        """Refuse a mode that cannot reach into a served base's responses."""
        base = self.base
        if not isinstance(base, BaseSpec) or not base.served or self.mode == "base":
            return self
        if base.converses:
            what = f"{self.mode} continues responses, which a chat endpoint cannot"
            raise ValueError(f"{what} → name the served base's tokenizer: base.tokenizer")
        if MODES[self.mode][0] is not None and base.tokenizer is None:
            what = f"{self.mode} guides the tokens of a served base, and has to know them"
            raise ValueError(f"{what} → name its tokenizer: base.tokenizer")
        return self

    @classmethod
    def shortfall(cls, raw: Mapping[str, Any]) -> str | None:
        """Return a sentence if the mode needs a value that the guide lacks."""
        mode, guide = raw.get("mode", "base"), raw.get("guide")
        if not isinstance(mode, str) or mode not in MODES:
            return None
        have = offered(guide)
        needed = [kind for kind in ("implicit", "explicit") if kind in MODES[mode]]
        if set(needed) <= set(have):
            return None
        able = [name for name, pair in MODES.items() if set(pair) - {None} <= set(have)]
        return (
            f"{mode} needs an {' and an '.join(needed)} value, and {describe_offer(guide)}"
            f" → add one with --guide, or choose --mode {' or '.join(able)}"
        )


class BonRecipe(Decoding):
    """What `ivg bon` runs."""

    checked_key: ClassVar[str] = "by"

    by: Literal["implicit", "explicit", "reward"] = "reward"
    """What ranks the drawn responses."""
    best_of: AtLeastOne = 4
    """N, responses drawn for each one kept."""
    reward: ExplicitSpec | None = None
    """The reward of `by: reward`."""

    @classmethod
    def shortfall(cls, raw: Mapping[str, Any]) -> str | None:
        """Return a sentence if the value that ranks is not there."""
        by, guide = raw.get("by", "reward"), raw.get("guide")
        if by == "reward" and raw.get("reward") is None:
            ways = [f"--by {kind}" for kind in offered(guide)]
            return "reward needs a reward, and none is given → " + " or ".join(
                ["name one with --reward MODEL or --reward module:function", *ways]
            )
        if by in ("implicit", "explicit") and by not in offered(guide):
            return (
                f"{by} needs an {by} value, and {describe_offer(guide)}"
                f" → add one with --guide, or choose another --by"
            )
        return None
