"""The models of a recipe, and the values that make a guide of them.

Every field is a public YAML key of the same name. Types are strict (a quoted number is not a
number), unknown keys are errors, and a constructed recipe cannot change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    field_validator,
    model_validator,
)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Link = Literal["identity", "log-sigmoid"]

Text = Annotated[str, Field(min_length=1)]

CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""`module:function`; a model never looks like this, for `package:NAME/FILE` has a slash."""


SERVED = "openai:"
"""How the name of a served model begins."""

SERVER = re.compile(r"openai:(?:(?P<url>https?://[^#\s]+)#)?(?P<model>[^#\s]+)")
"""`openai:MODEL`, at the client's own address, or `openai:http://HOST:PORT/v1#MODEL`."""


def check_server(server: str) -> str:
    """Refuse an address that names no model."""
    if not SERVER.fullmatch(server):
        what = f'expected openai:MODEL or openai:http://HOST:PORT/v1#MODEL, got "{server}"'
        raise ValueError(what)
    return server


class Section(BaseModel):
    """The behaviour that all parts of a recipe share: strict types, no unknown keys, frozen."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class ModelSpec(Section):
    """A network with its tokenizer, and how a prompt is put to it.

    A bare string means `{model: it}`.
    """

    model: Text
    """Hub id (with `@revision`), folder, PEFT adapter, `.gguf` file or `package:NAME/FILE`."""
    template: str | None = None
    """Text with the literal `{prompt}` where the prompt goes; all other braces are data.

    It takes the place of a chat template; with `chat: true` it wraps the last user message."""
    system: str | None = None
    """System prompt, for chat models."""
    chat: bool | None = None
    """Whether to use the tokenizer's chat template; unset: if it has one and no template is given."""
    dtype: Dtype = "auto"
    """Number format of the weights; auto: as `engine.dtype` or the model says."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Load quantised weights with bitsandbytes."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run on this machine."""

    @model_validator(mode="before")
    @classmethod
    def accept_name(cls, raw: Any) -> Any:
        """Read a bare string as the model's name."""
        return {"model": raw} if isinstance(raw, str) else raw

    @field_validator("model")
    @classmethod
    def check_package(cls, model: str) -> str:
        """Refuse a `package:` reference without a file."""
        if model.startswith("package:") and not re.fullmatch(r"package:[\w.]+/.+", model):
            raise ValueError(f'expected package:NAME/FILE, got "{model}"')
        return model

    @field_validator("model")
    @classmethod
    def check_served(cls, model: str) -> str:
        """Refuse a served model, which can be a base or a judge and nothing else."""
        if model.startswith(SERVED):
            what = f'"{model}" is a server, which can be the base of generate and bon, or a judge'
            raise ValueError(f"{what} → name a model that is loaded here")
        return model

    @field_validator("template")
    @classmethod
    def check_template(cls, template: str | None) -> str | None:
        """Refuse a template that would drop the prompt."""
        if template is not None and "{prompt}" not in template:
            raise ValueError("{prompt} is not in the template → write it where the prompt goes")
        return template

    @model_validator(mode="after")
    def check_one_format(self) -> ModelSpec:
        """Refuse a system prompt that has no place in the text."""
        plain = self.template is not None and not self.chat
        if self.system is not None and (plain or self.chat is False):
            raise ValueError("system needs the chat template → write it into template instead")
        return self


class ImplicitSpec(Section):
    """An implicit value, log π_tuned − log π_reference: two models, or one with two prompts."""

    tuned: ModelSpec | None = None
    """The model that has learnt the preference."""
    reference: ModelSpec | None = None
    """The model it was tuned from."""
    model: ModelSpec | None = None
    """The one model of a prompt pair."""
    tuned_prompt: str | None = None
    """What the model is told as tuned.

    A template if it holds `{prompt}`, else a system prompt or prefix."""
    reference_prompt: str | None = None
    """What the model is told as reference; unset: the prompt alone."""
    weight: FiniteFloat = 1.0
    """Factor of this value in the guide's sum; negative steers away."""

    @model_validator(mode="after")
    def check_pair(self) -> ImplicitSpec:
        """Refuse anything but one complete pair."""
        prompts = (self.tuned_prompt, self.reference_prompt) != (None, None)
        by_models = self.tuned is not None or self.reference is not None
        by_prompts = self.model is not None or prompts
        wanted = "give tuned and reference, or model and tuned_prompt"
        if by_models and by_prompts:
            raise ValueError(f"two models and a prompt pair are both described → {wanted}")
        if by_models and (self.tuned is None or self.reference is None):
            absent = "tuned" if self.tuned is None else "reference"
            raise ValueError(f"{absent} is missing → {wanted}")
        if not by_models and (self.model is None or self.tuned_prompt is None):
            absent = "model" if self.model is None and prompts else "tuned_prompt"
            raise ValueError(f"{absent if by_prompts else 'the pair'} is missing → {wanted}")
        return self


def _importable(name: str) -> str:
    """Return a callable's name if it can be one."""
    if not CALLABLE.fullmatch(name):
        raise ValueError(f'expected module:function, got "{name}"')
    return name


CallableName = Annotated[str, AfterValidator(_importable)]
"""`module:function`."""


def is_callable(text: str) -> bool:
    """Return whether a bare name means a Python function, not a model."""
    return CALLABLE.fullmatch(text) is not None


def named(raw: Any) -> Any:
    """Read a bare string as a callable if it looks like one, else as a model."""
    if isinstance(raw, str):
        return {"callable" if is_callable(raw) else "model": raw}
    return raw


def require_one(one: Any, other: Any, name: str = "model", second: str = "callable") -> None:
    """Refuse both or neither of two keys, of which `name` and `second` are the names."""
    if (one is None) == (other is None):
        found = "neither is given" if one is None else "both are given"
        raise ValueError(f"needs a {name} or a {second}, and {found} → give one of them")


class ExplicitSpec(Section):
    """An explicit value or reward: a network with a head, or a Python callable on text.

    A bare string means `{callable: it}` if it reads `module:function`, else `{model: it}`.
    """

    model: ModelSpec | None = None
    """The network that judges a prefix."""
    head: Literal["auto", "scalar", "token-q"] = "auto"
    """One value for each prefix, or one for each next token; auto: as the network's outputs say."""
    by_text: bool = False
    """Whether the network reads the response as text even where it shares the base's tokenizer."""
    link: Link = "identity"
    """What is done to the network's output; log-sigmoid: it is a logit, and the value is the log of
    the probability that it stands for."""
    callable: CallableName | None = None
    """`module:function`, called with a list of prompts and a list of responses."""
    weight: FiniteFloat = 1.0
    """Factor of this value in the guide's sum; negative steers away."""

    _accept_name = model_validator(mode="before")(named)

    @model_validator(mode="after")
    def check_one(self) -> ExplicitSpec:
        """Refuse both or neither of a network and a callable."""
        require_one(self.model, self.callable)
        if self.callable is not None and self.link != "identity":
            raise ValueError("link belongs to a model → let the callable return the value itself")
        if self.callable is not None and (self.by_text or self.head != "auto"):
            raise ValueError("head and by_text belong to a model → leave them out beside callable")
        return self


class Guide(Section):
    """Where values come from. Several values of one kind add up, each with its weight."""

    name: Text = "inline"
    """How records call this guide; a guide file's own name unless it says otherwise."""
    description: str | None = None
    """A sentence for readers of the file."""
    implicit: Annotated[tuple[ImplicitSpec, ...], Field(strict=False)] = ()
    """Implicit values, one or a list."""
    explicit: Annotated[tuple[ExplicitSpec, ...], Field(strict=False)] = ()
    """Explicit values, one or a list."""

    @field_validator("implicit", "explicit", mode="before")
    @classmethod
    def accept_one(cls, raw: Any) -> Any:
        """Read a single value as a list of one."""
        return (raw,) if isinstance(raw, (Mapping, str, Section)) else raw

    @model_validator(mode="after")
    def check_any(self) -> Guide:
        """Refuse a guide that guides nothing."""
        if not self.implicit and not self.explicit:
            raise ValueError("the guide has no value → give it implicit, explicit or both")
        return self
