"""ivg as a contestant: its engine, on the networks that every contestant gets, each idea removable."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.contest import SEARCHES, Networks, Outcome, Settings
from benchmarks.cost import head_of
from ivgcli.decoding import ChunkRanking, Limits, Mode, TokenGuidance
from ivgcli.decoding.engine import Engine
from ivgcli.decoding.search import Request
from ivgcli.models.network import Network
from ivgcli.models.packed import PackedWeights
from ivgcli.models.readings import Reading, read_all
from ivgcli.models.slots import ATTENTION
from ivgcli.models.streams import Stream
from ivgcli.values import Prompted, Row, Value
from ivgcli.values.explicit import ScalarValue
from ivgcli.values.implicit import ImplicitValue

IDEAS = ("rows", "incremental", "prefill-once", "packed", "graphs", "speculation")
"""What can be left out, to see what it gains:

rows: many searches decode at once. incremental: values read new tokens only. prefill-once: samples of
a prompt share its reading. packed: weights laid out for the processor. graphs, speculation: the
engine's own keywords of that meaning.
"""
ENGINE_KEYWORDS = {"graphs": "graphs", "speculation": "speculate"}
"""Keyword of the engine, where it has it, which takes `auto` and `off`."""


class GivenIds:
    """A prompt format for prompts that are token ids already."""

    key = ("ids",)
    chat = False

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self.prompts = prompts

    def encode(self, text: str, messages: object = None, where: str = "") -> list[int]:
        """Return the ids of the prompt whose number is `text`."""
        return list(self.prompts[int(text)])


class Rereading:
    """A value that forgets what it has read before it ranks: prompt and response are read anew."""

    def __init__(self, value: Value) -> None:
        self.value = value

    def __getattr__(self, name: str) -> object:
        return getattr(self.value, name)

    def values(self, rows: Sequence[int], states: Sequence[Row]) -> Tensor:
        """Return the value's own answer after every row's prompt has been read again."""
        for stream in self.value.streams():
            prompts = [stream.prompts.encode(state.prompt.text) for state in states]
            read_all([Reading(stream, list(rows), prompts, prompt=True)])
        return self.value.values(rows, states)


@functools.lru_cache(maxsize=8)
def packed(model: PreTrainedModel) -> PackedWeights:
    """Return a model's packed weights, made once as when ivg loads it; the peers never see them."""
    return PackedWeights(model)


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    deterministic: bool = False,
) -> Stream:
    """Return a stream over a model that other contestants use too."""
    head = head_of(model)
    network = Network("contestant", model, tokenizer, head, head.weight.shape[0])
    if deterministic:
        network.fix_heights()
    return Stream(network, GivenIds(prompts), 1)


def engine_words(without: frozenset[str]) -> dict[str, str]:
    """Return `auto` or `off` for each idea that the engine has a keyword for."""
    known = inspect.signature(Engine).parameters
    return {
        idea: "off" if idea in without else "auto"
        for idea, keyword in ENGINE_KEYWORDS.items()
        if keyword in known
    }


def require_idea(idea: str, mode: str) -> None:
    """Refuse to leave out what the engine or the mode has not got.

    Raises:
        NotImplementedError: nothing would change.
    """
    if idea in ENGINE_KEYWORDS and idea not in engine_words(frozenset()):
        raise NotImplementedError(f"the engine has no keyword {ENGINE_KEYWORDS[idea]}")
    if idea == "incremental" and mode not in SEARCHES:
        raise NotImplementedError(f"nothing is ranked in the mode {mode}")
    if idea == "prefill-once" and mode in SEARCHES:
        raise NotImplementedError("candidates of one search cannot be read apart")


@contextmanager
def borrowed(networks: Networks, pack: bool) -> Iterator[None]:
    """Give every network ivg's attention (and packed weights) for a while."""
    models = list(networks.named().values())
    before = [model.config._attn_implementation for model in models]
    for model in models:
        model.set_attn_implementation(ATTENTION)
        if pack:
            packed(model).attach()
    try:
        yield
    finally:
        for model, name in zip(models, before, strict=True):
            model.set_attn_implementation(name)
            if pack:
                packed(model).detach()


def build_mode(
    networks: Networks,
    prompts: Sequence[Sequence[int]],
    mode: str,
    settings: Settings,
    incremental: bool,
) -> Mode:
    """Return the engine's mode over fresh streams."""
    pair = ImplicitValue(
        "pair",
        *(
            stream(model, networks.tokenizer, prompts, settings.deterministic)
            for model in (networks.tuned, networks.reference)
        ),
    )
    token = TokenGuidance(pair, settings.weight) if mode in ("eft-i", "ivg") else None
    chunk = None
    if mode in SEARCHES:
        ranks: Value = pair
        if mode == "ivg":
            if networks.value is None:
                raise NotImplementedError("the shape has no value network")
            ranks = ScalarValue(
                "value",
                stream(networks.value, networks.tokenizer, prompts, settings.deterministic),
            )
        shape = (settings.beam_width, settings.successors, settings.chunk_length)
        chunk = ChunkRanking(ranks if incremental else Rereading(ranks), *shape)
    return Mode(mode, token, chunk)


def build_requests(prompts: int, mode: str, settings: Settings, shared: bool) -> list[Request]:
    """List one request per response; unless `shared`, samples of a prompt do not know of each other."""
    samples = 1 if mode in SEARCHES else settings.samples
    return [
        Request(
            Prompted(str(number) if shared else f"{number}/{sample}", str(number)),
            sample,
            max_new_tokens=settings.length(number),
        )
        for number in range(prompts)
        for sample in range(samples)
    ]


def run_ivg(
    networks: Networks,
    prompts: Sequence[Sequence[int]],
    mode: str,
    settings: Settings,
    without: frozenset[str] = frozenset(),
    shuffled: bool = False,
) -> Outcome:
    """Decode every prompt with ivg's engine.

    Args:
        networks: base, guide pair, value and tokenizer.
        prompts: token ids of each prompt, of any length.
        mode: one of `MODES`.
        settings: how to decode; lengths are forced.
        without: the `IDEAS` to leave out.
        shuffled: hand the requests over in another order; the responses come back in the usual one.

    Returns:
        One response per prompt in a search, `settings.samples` per prompt otherwise, prompt by
        prompt.

    Raises:
        NotImplementedError: an idea to leave out is not there.
    """
    for idea in without:
        require_idea(idea, mode)
    with borrowed(networks, "packed" not in without):
        base = stream(networks.base, networks.tokenizer, prompts, settings.deterministic)
        base.counting = True
        limits = Limits(
            settings.max_new_tokens, settings.temperature, settings.top_k, settings.top_p
        )
        words = {ENGINE_KEYWORDS[idea]: word for idea, word in engine_words(without).items()}
        if settings.deterministic:
            words["speculate"] = "off"
            if base.network.device.type == "cpu":
                words["graphs"] = "off"
        need = settings.rows_per_prompt(mode) if mode in SEARCHES else 1
        rows = settings.rows or len(prompts) * settings.rows_per_prompt(mode)
        engine = Engine(
            base,
            build_mode(networks, prompts, mode, settings, "incremental" not in without),
            limits,
            frozenset(),
            need if "rows" in without else max(need, rows),
            settings.seed,
            **words,
        )
        requests = build_requests(len(prompts), mode, settings, "prefill-once" not in without)
        order = random.Random(0).sample(requests, len(requests)) if shuffled else requests
        found = {
            (outcome.request.prompt.id, outcome.request.sample): outcome.winner.row.tokens
            for outcome in engine.run(order)
        }
    responses = [found[request.prompt.id, request.sample] for request in requests]
    return Outcome(responses, settings.row_tokens(len(prompts), mode))
