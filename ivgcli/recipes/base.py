"""The base of a decoding recipe: a model that is loaded here, or one that somebody serves."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, FiniteFloat, field_validator, model_validator

from ivgcli.recipes.guide import SERVED, ModelSpec, Section, Text, check_server


class ServerSpec(Section):
    """How a server is asked. Nothing here changes what a response says."""

    in_flight: Annotated[int, Field(ge=1)] = 32
    """Requests in flight at once."""
    attempts: Annotated[int, Field(ge=1)] = 8
    """How often a request is made before its response is given up."""
    timeout: Annotated[FiniteFloat, Field(gt=0)] = 300.0
    """Seconds that the server has for one answer."""
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    """Rate limit; unset: none but the server's own."""


class BaseSpec(ModelSpec):
    """The model that is steered: one that is loaded here, or `openai:http://HOST:PORT/v1#MODEL`.

    A served base is asked over HTTP, values stay here, and the key comes from the environment:
    OPENAI_API_KEY. With a `tokenizer` it is shown prompts as a local base of that tokenizer would be.
    Without one it is shown the text itself (inside `template`, if there is one), and conversations,
    `system` and `chat: true` go to the server's chat endpoint, in the modes that draw whole responses.
    """

    tokenizer: Text | None = None
    """For a served base: hub id or folder that has its tokenizer; no weights are loaded."""
    server: ServerSpec | None = None
    """For a served base: how it is asked; unset: the defaults."""
    shards: Annotated[int, Field(ge=1)] | None = None
    """GPUs that hold the base between them, by tensor parallelism; every other network is whole on
    each of them. Unset: one."""

    @property
    def divided(self) -> bool:
        """Whether several GPUs hold the base between them."""
        return (self.shards or 1) > 1

    @property
    def served(self) -> bool:
        """Whether a server draws."""
        return self.model.startswith(SERVED)

    @property
    def converses(self) -> bool:
        """Whether every prompt goes to the server's chat endpoint."""
        by_text = self.tokenizer is not None or self.template is not None
        wanted = self.system is not None if self.chat is None else self.chat
        return self.served and not by_text and wanted

    @field_validator("model")
    @classmethod
    def check_served(cls, model: str) -> str:
        """Refuse an address that names no model, or that holds a password."""
        if model.startswith(SERVED):
            check_server(model)
            if "@" in urlsplit(model.removeprefix(SERVED).partition("#")[0]).netloc:
                raise ValueError("a password in the address → set OPENAI_API_KEY instead")
        return model

    @model_validator(mode="after")
    def check_place(self) -> BaseSpec:
        """Refuse keys of a served base beside a local one, and the other way round."""
        if not self.served:
            for name in ("tokenizer", "server"):
                if getattr(self, name) is not None:
                    what = f"{name} belongs to a served base"
                    raise ValueError(f"{what} → leave it out, or name openai:http://HOST:PORT/v1#M")
            if self.divided and self.quantization is not None:
                what = f"{self.quantization} weights cannot be divided among {self.shards} GPUs"
                raise ValueError(f"{what} → leave out shards or quantization")
            return self
        if self.divided:
            raise ValueError("shards: a served base is divided by its server → leave it out")
        if self.dtype != "auto" or self.quantization is not None:
            raise ValueError("dtype and quantization are the server's own matter → leave them out")
        if self.chat and self.template is not None and self.tokenizer is None:
            what = "a template inside a chat template needs the tokenizer of the served base"
            raise ValueError(f"{what} → name it: base.tokenizer")
        return self

    def reader(self) -> ModelSpec | None:
        """Return what names the tokenizer of a served base, with the options of prompts; None: nothing does."""
        if self.tokenizer is None:
            return None
        return ModelSpec(
            model=self.tokenizer,
            template=self.template,
            system=self.system,
            chat=self.chat,
            trust_remote_code=self.trust_remote_code,
        )
