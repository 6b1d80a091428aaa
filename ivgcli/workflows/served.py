"""From a recipe to its served base: how it is shown prompts, and what its server turns out to give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ivgcli.decoding import Limits
from ivgcli.decoding.guidance import CANDIDATES
from ivgcli.decoding.served import ServedBase
from ivgcli.errors import ModelError
from ivgcli.models.loading import Networks
from ivgcli.models.prompts import PromptFormat
from ivgcli.models.served import ServedNetwork, ServedPrompts
from ivgcli.recipes import MODES, BaseSpec, ServerSpec
from ivgcli.serving.completions import Completions, Sampling
from ivgcli.serving.probing import probe
from ivgcli.serving.server import Server

TRIED = "The film"
"""What a server is asked to go on with, to see what it gives."""


def serving(recipe: Any, limits: Limits) -> Callable[[Networks], ServedBase] | None:
    """Return what opens the served base of a recipe; None: its base is loaded here."""
    if not isinstance(recipe.base, BaseSpec) or not recipe.base.served:
        return None
    return lambda networks: open_base(recipe, limits, networks)


def open_base(recipe: Any, limits: Limits, networks: Networks) -> ServedBase:
    """Return a served base, having asked its server for a few tokens.

    Raises:
        ModelError: the server does not answer, or lacks what the mode needs.
    """
    spec, mode = recipe.base, getattr(recipe, "mode", "base")
    guided = MODES[mode][0] is not None
    asked = spec.server or ServerSpec()
    server = Server(spec.model, asked.attempts, asked.timeout, asked.requests_per_minute)
    sampling = Sampling(limits.temperature, limits.top_k, limits.top_p, limits.stop)
    tops = (recipe.token.candidates or CANDIDATES) if guided else 0
    texts = Completions(server, sampling, tops=tops)
    # A template says how a prompt is written down, which a chat endpoint does by itself.
    whole = mode == "base" and spec.chat is not False and spec.template is None
    talks = Completions(server, sampling, "chat") if whole and spec.tokenizer is None else None
    reader = spec.reader()
    if reader is None:
        network = ServedNetwork(server.name, None, networks.device)
        prompts = ServedPrompts(None, spec.template, spec.system, talks is not None, spec.converses)
    else:
        tokenizer = networks.tokenizer(reader)
        network = ServedNetwork.of(server.name, tokenizer, networks.device)
        form = PromptFormat(tokenizer, spec.template, spec.system, spec.chat)
        prompts = ServedPrompts(form)
        probe(texts, tuple(tokenizer(TRIED)["input_ids"]), TRIED)
        prompts.by_ids = texts.gifts.ids
        _require(texts, recipe, tops)
    return ServedBase(network, prompts, texts, talks, limits, asked.in_flight, guided)


def _require(texts: Completions, recipe: Any, tops: int) -> None:
    """Refuse a server that does not give what guidance of tokens needs, and tell what it does not give in full."""
    name, gifts = texts.server.name, texts.gifts
    if not gifts.ids:
        how = "it is shown text, and cuts that into tokens of its own"
        texts.notes.append(f"{name} takes or tells no token ids: {how}")
    if not tops:
        return
    if not gifts.tops:
        what = f"the server tells no top log-probabilities, and {recipe.mode} tilts them"
        raise ModelError(name, what, "use a mode that ranks by text (cbs-i, cbs-e), or vLLM")
    if recipe.token.every > 1 and not gifts.ids:
        what = f"the server tells no token ids, and token.every {recipe.token.every} needs them"
        raise ModelError(name, what, "token.every 1, or a server such as vLLM")
    if gifts.tops < tops:
        texts.notes.append(f"{name} tells {gifts.tops} top log-probabilities: so many candidates")
