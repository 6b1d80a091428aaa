"""The recipe of `ivg synthesize`: what draws responses, rewards them and makes pairs of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, FiniteFloat, ValidationInfo, field_validator, model_validator

from ivgcli.recipes.base import BaseSpec
from ivgcli.recipes.guide import CallableName, ModelSpec, Section, named, require_one
from ivgcli.recipes.schema import GenerateRecipe, SamplingSpec

Adapter = Literal[
    "auto",
    "classifier",
    "pair",
    "ultrarm",
    "starling",
    "safe-rlhf",
    "token-q",
    "trl-value-head",
    "seahorse",
]
"""The families of published reward models.

classifier: any sequence classifier; pair: one of question and answer as two texts, such as
OpenAssistant's; ultrarm, starling: the models of that name, with their templates; safe-rlhf: a
`score_head`, read at EOS; token-q: a `score_head` with one output per token; trl-value-head: TRL's
AutoModelForCausalLMWithValueHead; seahorse: mT5 metrics of summaries, the probability of "1"."""

Labelling = Literal["bradley-terry", "argmax"]
Pairing = Literal["disjoint", "all", "best-worst"]


class RewardSpec(Section):
    """A gold reward of whole responses: a sequence classifier or a Python callable.

    A bare string means `{callable: it}` if it reads `module:function`, else `{model: it}`.
    """

    model: ModelSpec | None = None
    """A reward model with one output, or a classifier with several labels."""
    label: int | str | None = None
    """The label, by name or number from 0, whose log-odds against all others are the reward."""
    adapter: Adapter = "auto"
    """How a published reward model is loaded and read; auto: as its config.json and weights say."""
    whole: bool = False
    """Read a response that was cut at its longest length as if it had ended by itself."""
    callable: CallableName | None = None
    """`module:function`, called with a list of prompts and a list of responses."""

    _accept_name = model_validator(mode="before")(named)

    @model_validator(mode="after")
    def check_one(self) -> RewardSpec:
        """Refuse both or neither of a network and a callable."""
        require_one(self.model, self.callable)
        if self.callable is not None and self.label is not None:
            raise ValueError("label belongs to a classifier → leave it out beside callable")
        return self


class SynthesizeRecipe(GenerateRecipe):
    """What `ivg synthesize` runs: a recipe of `ivg generate`, a reward, and how to label pairs."""

    checked_key: ClassVar[str] = "mode"

    base: BaseSpec | None  # type: ignore[assignment]  # relabelling draws nothing
    """The model that draws; relabelling needs none."""
    reward: RewardSpec
    """What a response is worth."""
    responses: Annotated[int, Field(ge=2)] = 2
    """k, responses drawn for each prompt."""
    pairs: Annotated[Pairing, Field(validate_default=True)] = "disjoint"
    """Which of the k make pairs.

    disjoint: k/2 in the order of drawing; all: k(k-1)/2; best-worst: one."""
    label: Labelling = "bradley-terry"
    """How the chosen one is found.

    bradley-terry: drawn with probability σ((r_a − r_b)/label_temperature); argmax: the higher
    reward."""
    label_temperature: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    """Noise of Bradley-Terry labels; towards 0 they become argmax."""
    margin: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    """Least difference of the two rewards; closer pairs are left out."""
    conversational: bool = False
    """Whether to write messages even where the prompt was text."""
    relabel: bool = False
    """Whether to label the pairs of the input anew instead of drawing responses."""

    @model_validator(mode="before")
    @classmethod
    def settle_base(cls, raw: Any) -> Any:
        """Require a base, which may be null only where nothing is drawn."""
        if not isinstance(raw, Mapping) or raw.get("base") is not None:
            return raw
        rest = {key: value for key, value in raw.items() if key != "base"}
        return {**rest, "base": None} if raw.get("relabel") is True else rest

    @field_validator("base")
    @classmethod
    def check_base(cls, base: BaseSpec | None) -> BaseSpec | None:
        """Refuse a served base."""
        if base is not None:
            ModelSpec.check_served(base.model)
        return base

    @field_validator("sampling")
    @classmethod
    def check_sampling(cls, sampling: SamplingSpec) -> SamplingSpec:
        """Refuse what contradicts several different responses."""
        if sampling.samples != 1:
            raise ValueError("samples is not for pairs → say how many with responses")
        if sampling.temperature == 0:
            raise ValueError("temperature 0 draws the same response each time → more than 0")
        return sampling

    @field_validator("pairs")
    @classmethod
    def check_partners(cls, pairs: Pairing, known: ValidationInfo) -> Pairing:
        """Refuse an odd number of responses where each needs a partner."""
        count = known.data.get("responses", 2)
        if pairs == "disjoint" and count % 2:
            what = f"disjoint leaves one of {count} responses without a partner"
            raise ValueError(f"{what} → an even number of responses, or pairs: all or best-worst")
        return pairs
