"""The recipes of the training commands: what is trained, from which weights, on what, and how.

Keys that TRL or transformers' trainer have keep their names; `batch_size` is the whole step's, over
all devices and accumulated passes, so that a recipe means the same on any number of GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, FiniteFloat, JsonValue, field_validator, model_validator

from ivgcli.recipes.base import BaseSpec
from ivgcli.recipes.guide import Guide, ModelSpec, Section, Text
from ivgcli.recipes.schema import (
    MODES,
    AtLeastOne,
    ChunkSpec,
    EngineSpec,
    GenerateRecipe,
    ModeName,
    SamplingSpec,
    TokenSpec,
    Vocabulary,
)
from ivgcli.recipes.synthesis import RewardSpec

PreferenceLoss = Literal[
    "dpo",
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
"""TRL's preference losses by their names there; `dpo` is `sigmoid`."""

SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}
"""Losses in which TRL heeds `label_smoothing`; the others pass it over in silence."""

Head = Literal["scalar", "token-q"]
Target = Literal["fudge", "fudge-bce", "monte-carlo", "td-lambda", "cd-q"]
Responses = Literal["given", "base", "guided"]

Positive = Annotated[FiniteFloat, Field(gt=0)]
NotNegative = Annotated[FiniteFloat, Field(ge=0)]


class InitSpec(ModelSpec):
    """The model that training starts from, whole or its first layers only."""

    layers: AtLeastOne | None = None
    """Keep the first n layers, with the embeddings, the last norm and the head; unset: all."""


class DataSpec(Section):
    """What is trained on, and what is kept for the report."""

    held_out: Annotated[FiniteFloat, Field(ge=0)] | int | Text = 0.05
    """Kept from training: a share below 1, a number of pairs or prompts, or a file of them."""
    max_length: AtLeastOne = 1024
    """Longest prompt and response together, in tokens."""

    @field_validator("held_out")
    @classmethod
    def check_number(cls, held_out: float | int | str) -> float | int | str:
        """Refuse 3.5 pairs."""
        if isinstance(held_out, float) and held_out >= 1:
            if held_out != int(held_out):
                raise ValueError(f"expected a share below 1, a whole number or a file: {held_out}")
            return int(held_out)
        return held_out


class LoraSpec(Section):
    """Train low-rank adapters instead of all weights."""

    rank: AtLeastOne = 16
    alpha: Positive = 32.0
    dropout: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.0
    target_modules: Annotated[tuple[Text, ...], Field(strict=False)] | Text = "all-linear"
    """Names of the layers that get an adapter."""


class OptimiserSpec(Section):
    """How one network is trained. The names are those of transformers' trainer."""

    learning_rate: Positive
    batch_size: AtLeastOne = 64
    """Pairs (or responses, where there are no pairs) of one optimiser step, over all devices."""
    per_device_train_batch_size: AtLeastOne | None = None
    """How many of them go through a device at once; unset: up to 8, the rest accumulated."""
    num_train_epochs: Positive = 1.0
    max_steps: AtLeastOne | None = None
    """Stop after this many steps, whatever the epochs."""
    lr_scheduler_type: Text = "cosine"
    warmup_steps: NotNegative = 0.0
    """Steps over which the learning rate rises; below 1, a share of all steps."""
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0
    trl: dict[str, JsonValue] = Field(default_factory=dict)
    """Any other argument of the trainer (TRL's config class, for the value transformers'), as it is
    called there."""


class SftSpec(OptimiserSpec):
    """Fine-tuning on the pairs' responses, which makes the reference."""

    learning_rate: Positive = 2e-5
    responses: Literal["both", "chosen"] = "both"
    """Whether to imitate both responses of a pair or the chosen one only."""


class PreferenceSpec(OptimiserSpec):
    """Preference optimisation against the reference, which makes the tuned model."""

    learning_rate: Positive = 1e-6
    loss: Annotated[tuple[PreferenceLoss, ...], Field(strict=False)] = ("sigmoid",)
    """One of TRL's losses, or a list to mix."""
    loss_weights: Annotated[tuple[FiniteFloat, ...], Field(strict=False)] | None = None
    """A factor for each loss of a mix; unset: 1."""
    beta: Positive = 0.1
    """β, how strongly the tuned model is held to the reference."""
    label_smoothing: Annotated[FiniteFloat, Field(ge=0, lt=0.5)] = 0.0
    """Share of the labels taken to be wrong, for robust (conservative DPO), exo_pair and aot."""

    @field_validator("loss", mode="before")
    @classmethod
    def accept_one(cls, raw: Any) -> Any:
        """Read a single loss as a list of one."""
        return (raw,) if isinstance(raw, str) else raw

    @field_validator("loss")
    @classmethod
    def call_it_sigmoid(cls, loss: tuple[str, ...]) -> tuple[str, ...]:
        """Give DPO's own loss its name in TRL."""
        return tuple("sigmoid" if name == "dpo" else name for name in loss)

    @model_validator(mode="after")
    def check_mix(self) -> PreferenceSpec:
        """Refuse weights that do not match the losses, and a loss that cannot be computed."""
        if not self.loss:
            raise ValueError("there is no loss → sigmoid")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss):
            what = f"{len(self.loss_weights)} loss_weights for {len(self.loss)} losses"
            raise ValueError(f"{what} → one for each")
        if self.label_smoothing and not set(self.loss) & SMOOTHED:
            known = ", ".join(sorted(SMOOTHED))
            raise ValueError(f"label_smoothing is for {known} only → one of these, or 0")
        if "exo_pair" in self.loss and self.label_smoothing == 0:
            raise ValueError("exo_pair takes a logarithm of label_smoothing → 0.001")
        return self


class RewardModelSpec(OptimiserSpec):
    """A reward model fitted to the pairs by Bradley and Terry's likelihood."""

    learning_rate: Positive = 1e-5
    center_rewards_coefficient: NotNegative | None = None
    """Factor of (r_chosen + r_rejected)², which keeps rewards around 0."""


class ValueSpec(OptimiserSpec):
    """The prefix scorer: its head, its target, the responses it learns from."""

    learning_rate: Positive = 1e-5
    head: Head = "scalar"
    """scalar: one value for each prefix; token-q: one for each next token."""
    target: Target = "fudge"
    """What a prefix regresses on.

    fudge: the response's reward; fudge-bce: whether that exceeds `threshold`, by cross-entropy;
    monte-carlo: the mean reward of `continuations` drawn from the prefix; td-lambda: the λ-return;
    cd-q: the base's expectation of the next prefix's value."""
    responses: Responses = "given"
    """given: those of the pairs; base: drawn from the base; guided: drawn from the base under the
    value of the round before."""
    rounds: AtLeastOne = 1
    """How often responses are drawn and the value is trained on all of them."""
    start: Literal["auto", "reward-model", "init"] = "auto"
    """Weights to start from; auto: the reward model's, if one is trained here."""
    lam: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.95
    """λ of td-lambda; 1 is fudge."""
    continuations: AtLeastOne = 1
    """Responses whose mean reward is a monte-carlo target; 1: the response itself."""
    branches: AtLeastOne = 4
    """Prefixes of each response that more continuations are drawn from."""
    candidates: AtLeastOne | None = 20
    """Most likely next tokens of the base in the expectation of cd-q."""
    threshold: FiniteFloat = 0.0
    """Reward above which fudge-bce calls a response good."""

    @model_validator(mode="after")
    def check_rounds(self) -> ValueSpec:
        """Refuse rounds without new responses, and guidance without a value to guide by."""
        if self.responses == "guided" and self.rounds < 2:
            what = "guided responses need the value of a round before"
            raise ValueError(f"{what} → rounds: 2, or responses: base")
        if self.responses == "given" and self.rounds > 1:
            raise ValueError("more rounds need new responses → responses: guided, or rounds: 1")
        return self


class RolloutSpec(Section):
    """How responses are drawn for a value to learn from."""

    base: ModelSpec
    """The model that draws."""
    responses: AtLeastOne = 4
    """Responses for each prompt and round."""
    held_out: AtLeastOne = 64
    """Held-out prompts that are answered for the report, by the base."""
    mode: ModeName = "eft-e"
    """How later rounds of guided responses are drawn; the first one is the base's."""
    token: TokenSpec = TokenSpec()
    chunk: ChunkSpec = ChunkSpec()
    sampling: SamplingSpec = SamplingSpec()
    vocabulary: Vocabulary = "auto"

    @field_validator("sampling")
    @classmethod
    def check_sampling(cls, sampling: SamplingSpec) -> SamplingSpec:
        """Refuse two ways to say how many."""
        if sampling.samples != 1:
            raise ValueError("samples is not for rollouts → say how many with rollouts.responses")
        return sampling

    @field_validator("mode")
    @classmethod
    def check_mode(cls, mode: ModeName) -> ModeName:
        """Refuse a mode that would not be guided by the value that is trained."""
        if "explicit" not in MODES[mode]:
            ways = " or ".join(name for name, pair in MODES.items() if "explicit" in pair)
            raise ValueError(f"{mode} does not use the value that is trained → {ways}")
        return mode


class TrainSpec(Section):
    """What all training stages of a run share. None of it changes what is learnt, save bf16."""

    bf16: bool | None = None
    """Compute in bfloat16; unset: on a GPU that can."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them: slower, in less memory."""
    save_steps: AtLeastOne = 200
    """Steps between checkpoints, which --resume goes on from."""
    logging_steps: AtLeastOne = 10
    """Steps between lines of metrics.jsonl."""
    report_to: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """Trackers such as trackio, tensorboard or wandb, one or a list."""

    @field_validator("report_to", mode="before")
    @classmethod
    def accept_one(cls, raw: Any) -> Any:
        """Read a single tracker as a list of one, and `none` as none."""
        if isinstance(raw, str):
            return () if raw == "none" else (raw,)
        return raw


class Training(Section):
    """The keys that both training commands share."""

    checked_key: ClassVar[str] = ""
    incidental: ClassVar[tuple[str, ...]] = (
        "train.save_steps",
        "train.logging_steps",
        "train.report_to",
    )
    """Keys that do not change what is learnt, and so not the run's id."""

    version: Literal[1] = 1
    """Version of the recipe format."""
    name: Text | None = None
    """How records call the guide; unset: the output folder's name."""
    init: InitSpec
    """The model that training starts from."""
    data: DataSpec = DataSpec()
    lora: LoraSpec | None = None
    """Train adapters; unset: all weights."""
    train: TrainSpec = TrainSpec()
    guide: Guide | None = None
    """Another guide, to compare with in the report; for rollouts, its implicit value."""
    seed: int = 0
    """Seed of all draws."""
    engine: EngineSpec = EngineSpec()
    """Where to train, and where and how wide to decode."""

    @classmethod
    def shortfall(cls, raw: Mapping[str, Any]) -> str | None:
        """Return a sentence if the recipe lacks what it asks for; see `Decoding`."""
        return None


class TrainImplicitRecipe(Training):
    """What `ivg train-implicit` runs."""

    sft: SftSpec | None = SftSpec()
    """Fine-tuning; null: the reference is `init` as it is."""
    preference: PreferenceSpec = PreferenceSpec()
    """Preference optimisation."""


class TrainExplicitRecipe(Training):
    """What `ivg train-explicit` runs."""

    checked_key: ClassVar[str] = "value"

    reward: RewardSpec | None = None
    """What a whole response is worth; unset: a reward model is trained on the pairs."""
    reward_model: RewardModelSpec = RewardModelSpec()
    """Training of that reward model."""
    value: ValueSpec = ValueSpec()
    """Training of the prefix scorer."""
    rollouts: RolloutSpec | None = None
    """How responses are drawn, where the value learns from others than the pairs'."""

    @classmethod
    def shortfall(cls, raw: Mapping[str, Any]) -> str | None:
        """Return a sentence if responses are to be drawn and nothing says from what."""
        value = raw.get("value")
        spec = dict(value) if isinstance(value, (Mapping, ValueSpec)) else {}
        drawn = spec.get("responses", "given") in ("base", "guided")
        if raw.get("rollouts") is not None:
            return None
        if drawn:
            return f"responses: {spec['responses']} are drawn from a model → rollouts.base: MODEL"
        if spec.get("target") == "cd-q":
            return "cd-q is an expectation under the base → rollouts.base: MODEL"
        if spec.get("target") == "monte-carlo" and spec.get("continuations", 1) != 1:
            return "continuations are drawn from a model → rollouts.base: MODEL"
        return None

    @model_validator(mode="after")
    def check_parts(self) -> TrainExplicitRecipe:
        """Refuse a recipe whose parts do not fit together."""
        sentence = self.shortfall(dict(self))
        if sentence is not None:
            raise ValueError(sentence)
        if self.value.start == "reward-model" and self.reward is not None:
            what = "start: reward-model, but the reward is given and no reward model is trained"
            raise ValueError(f"{what} → start: init")
        if self.value.responses == "guided" and self.rollouts is not None:
            implicit = self.guide is not None and self.guide.implicit
            if "implicit" in MODES[self.rollouts.mode] and not implicit:
                what = f"rollouts.mode: {self.rollouts.mode} takes an implicit value, too"
                raise ValueError(f"{what} → name a guide that has one, or mode: eft-e")
        return self

    def rollout_recipe(self, guide: Guide | None) -> GenerateRecipe:
        """Return how responses are drawn: under `guide`, or by the base alone where it is None."""
        if self.rollouts is None:
            raise AssertionError("a recipe that draws has rollouts")
        spec = self.rollouts
        return GenerateRecipe(
            base=BaseSpec.model_validate(dict(spec.base)),
            mode="base" if guide is None else spec.mode,
            guide=guide,
            token=spec.token,
            chunk=spec.chunk,
            sampling=spec.sampling.model_copy(update={"samples": spec.responses}),
            vocabulary=spec.vocabulary,
            seed=self.seed,
            engine=self.engine,
        )
