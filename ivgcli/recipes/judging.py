"""The recipe of `ivg judge`: rewards, comparisons in pairs, safety, AlpacaEval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, FiniteFloat, model_validator

from ivgcli.recipes.guide import ModelSpec, Section, Text, check_server, require_one
from ivgcli.recipes.judges import JudgeTemplate, Kind, read_template
from ivgcli.recipes.schema import AtLeastOne, EngineSpec
from ivgcli.recipes.synthesis import RewardSpec

Order = Literal["both", "random", "given"]
Verdict = Literal["auto", "logprobs", "text"]


class PriceSpec(Section):
    """What a server asks for a million tokens, in any currency."""

    prompt: Annotated[FiniteFloat, Field(ge=0)]
    completion: Annotated[FiniteFloat, Field(ge=0)]


class JudgeSpec(Section):
    """A language model that gives verdicts: a local one, or one behind an OpenAI-compatible server.

    A bare string means `{server: it}` if it begins with `openai:`, else `{model: it}`. The key of a
    server comes from the environment: OPENAI_API_KEY.
    """

    model: ModelSpec | None = None
    """A model that is loaded here."""
    server: Annotated[str, AfterValidator(check_server)] | None = None
    """`openai:MODEL` (the address from OPENAI_BASE_URL) or `openai:http://HOST:PORT/v1#MODEL`."""
    workers: AtLeastOne = 8
    """Requests in flight at once."""
    attempts: AtLeastOne = 8
    """How often a request is made before its verdict is given up."""
    timeout: Annotated[FiniteFloat, Field(gt=0)] = 60.0
    """Seconds that a server has for one answer."""
    requests_per_minute: AtLeastOne | None = None
    """Rate limit; unset: none but the server's own."""
    price: PriceSpec | None = None
    """Unset: tokens are counted, and no cost."""

    @model_validator(mode="before")
    @classmethod
    def accept_name(cls, raw: Any) -> Any:
        """Read a bare string as a server or a model."""
        if isinstance(raw, str):
            return {"server" if raw.startswith("openai:") else "model": raw}
        return raw

    @model_validator(mode="after")
    def check_one(self) -> JudgeSpec:
        """Refuse both or neither of a local model and a server."""
        require_one(self.model, self.server, second="server")
        return self


class PairwiseSpec(Section):
    """A comparison with other responses to the same prompts."""

    against: Text
    """File of the other responses: ours, or AlpacaEval's."""
    judge: JudgeSpec
    """Who says which one is better."""
    template: Text | JudgeTemplate = "alpaca-eval"
    """A name of `recipes/judges`, a file like those, or the template itself."""
    order: Order = "both"
    """Which response comes first.

    both: each once, and the mean counts; random: by the record's id and the seed; given: ours."""
    verdict: Verdict = "auto"
    """Where a preference is read.

    logprobs: the probability of the verdict's token; text: the verdict; auto: the former where the
    judge gives it."""


class SafetySpec(Section):
    """Whether a response is safe, by a judge with a template or by a classifier."""

    judge: JudgeSpec | None = None
    """A language model such as meta-llama/Meta-Llama-Guard-2-8B."""
    template: Text | JudgeTemplate = "llama-guard-2"
    """A name of `recipes/judges`, a file like those, or the template itself."""
    classifier: RewardSpec | None = None
    """A classifier with a label: a response is safe where its log-odds are positive."""
    verdict: Verdict = "auto"
    """As in `pairwise`."""

    @model_validator(mode="after")
    def check_one(self) -> SafetySpec:
        """Refuse both or neither of a judge and a classifier."""
        require_one(self.judge, self.classifier, "judge", "classifier")
        return self


class AlpacaEvalSpec(Section):
    """AlpacaEval 2: its files, its annotator, its win rates."""

    folder: Text
    """Where model_outputs.json, reference_outputs.json and annotations.json are."""
    reference: Text | None = None
    """The other responses, in AlpacaEval's form or ours; unset: those that are in the folder."""
    annotations: Text | None = None
    """Annotations that exist already; unset: annotations.json of the folder, if it is there."""
    annotator: Text | None = None
    """Annotator to run (its package is the extra `alpaca-eval`); unset: none."""
    difficulty: Text | None = None
    """AlpacaEval's df_gamed.csv; unset: from the hub's cache, or the hub."""


class JudgeRecipe(Section):
    """What `ivg judge` runs. All that is asked for is added to each response's record."""

    checked_key: ClassVar[str] = "rewards"
    incidental: ClassVar[tuple[str, ...]] = tuple(
        f"{section}.judge.{key}"
        for section in ("pairwise", "safety")
        for key in ("workers", "attempts", "timeout", "requests_per_minute")
    )
    """Keys that do not change a verdict."""

    version: Literal[1] = 1
    """Version of the recipe format."""
    rewards: dict[Text, RewardSpec] = Field(default_factory=dict)
    """Rewards by the name that records and tables call them."""
    pairwise: PairwiseSpec | None = None
    safety: SafetySpec | None = None
    alpaca_eval: AlpacaEvalSpec | None = None
    seed: int = 0
    """Of random orders."""
    engine: EngineSpec = EngineSpec()
    """Where local models run."""

    @classmethod
    def shortfall(cls, raw: Mapping[str, Any]) -> str | None:
        """Return a sentence if nothing is to be judged."""
        if any(raw.get(key) for key in ("rewards", "pairwise", "safety", "alpaca_eval")):
            return None
        ways = "--reward NAME, --against FILE with --judge MODEL, --safety MODEL or --alpaca-eval"
        return f"nothing is to be judged → {ways}"

    @model_validator(mode="after")
    def check_parts(self) -> JudgeRecipe:
        """Refuse a recipe that asks for nothing."""
        sentence = self.shortfall(dict(self))
        if sentence is not None:
            raise ValueError(sentence)
        if self.pairwise is not None and self.alpaca_eval is not None:
            what = "pairwise and alpaca_eval both say which response is the better one"
            raise ValueError(f"{what}, in one place of the record → judge with them in turn")
        return self


def with_templates(recipe: JudgeRecipe, beside: Path | None = None) -> JudgeRecipe:
    """Return a recipe that holds its templates, so that its run is named by what is asked.

    Args:
        recipe: one that may name them.
        beside: folder of the recipe's file, searched after the working directory.

    Raises:
        RecipeError: there is no such template, or it is for something else.
    """
    kinds: tuple[tuple[str, Kind], ...] = (("pairwise", "pairs"), ("safety", "safety"))
    changed = {}
    for key, kind in kinds:
        section = getattr(recipe, key)
        asked = section is not None and section.judge is not None
        if asked and isinstance(section.template, str):
            template = read_template(section.template, kind, f"{key}.template", beside)
            changed[key] = section.model_copy(update={"template": template})
    return recipe.model_copy(update=changed)
