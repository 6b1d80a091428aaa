"""`ivg generate`: prompts under a mode to responses."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple
from importlib.metadata import version
from typing import Any

import torch

from ivgcli import __version__
from ivgcli.console import Narrator
from ivgcli.decoding import ChunkRanking, Limits, Mode, TokenGuidance
from ivgcli.decoding.engine import Engine
from ivgcli.decoding.guesses import Guessed
from ivgcli.decoding.search import Outcome, Request
from ivgcli.decoding.stepper import Graphs
from ivgcli.errors import RecipeError, RecordError
from ivgcli.models.memory import peak_memory
from ivgcli.models.streams import Stream
from ivgcli.recipes import MODES, EngineSpec, GenerateRecipe, ModelSpec, SamplingSpec
from ivgcli.records import Prompt, ResponseWriter, TraceWriter
from ivgcli.values import Prompted, Value
from ivgcli.values.coverage import Tally, summed
from ivgcli.workflows.assembly import Assembly
from ivgcli.workflows.capacity import affordable_rows
from ivgcli.workflows.fields import (
    choice_bound,
    prompted,
    response_fields,
    shared_fields,
    tracer,
)
from ivgcli.workflows.served import serving
from ivgcli.workflows.shares import SharedRequests
from ivgcli.workflows.summary import Part, Share, Summary


def generate(
    recipe: GenerateRecipe,
    prompts: Sequence[Prompt],
    writer: ResponseWriter,
    trace: TraceWriter | None = None,
    progress: Narrator | None = None,
    share: Share | None = None,
) -> Summary:
    """Decode every prompt `sampling.samples` times under the recipe's mode and write each response as it ends.

    Args:
        recipe: how.
        prompts: what to answer.
        writer: takes the responses.
        trace: takes every ranking.
        progress: told how far things are.
        share: which of the responses, prompt by prompt, this process is to make; None: all.

    Raises:
        ModelError: a model cannot be had, driven or used in this mode.
        RecipeError: one search needs more rows than `engine.rows`.
    """
    assembly = assemble(recipe, progress)
    mode = build_mode(recipe, assembly)
    keys = [
        (prompt, sample)
        for prompt in prompts
        for sample in range(recipe.sampling.samples)
        if (prompt.id, sample) not in writer.done
    ]
    known = {prompt.id: prompted(prompt) for prompt in prompts}
    requests = [Request(known[prompt.id], sample) for prompt, sample in keys]
    by_id = {prompt.id: prompt for prompt in prompts}
    shared = shared_fields(recipe, recipe.mode)
    if mode.token is not None:
        shared["weight"] = recipe.token.weight

    def record(outcome: Outcome) -> None:
        request = outcome.request
        fields = {**shared, "sample": request.sample}
        found = response_fields(outcome, fields, choice_bound(mode.chunk, outcome))
        writer.write(by_id[request.prompt.id].respond(found))

    found = tracer(trace, assembly)
    return decode_all(
        recipe,
        assembly,
        mode,
        requests,
        record,
        found,
        progress,
        share=share,
        single=len(prompts) == 1,
    )


def assemble(recipe: Any, progress: Narrator | None) -> Assembly:
    """Load the base of a recipe; what takes long is told."""
    where = recipe.engine
    say = progress.say if progress is not None else lambda sentence: None
    guides = token_guides(recipe)
    token = getattr(recipe, "token", None)
    precision = None if token is None else token.precision
    serve = serving(recipe, sampling_limits(recipe.sampling))
    return Assembly(
        recipe.base,
        where.device,
        where.dtype,
        recipe.vocabulary,
        say,
        guides,
        precision,
        serve,
        where.deterministic,
    )


def token_guides(recipe: Any) -> list[ModelSpec]:
    """Return the models that a recipe lets guide tokens by an implicit value."""
    for_tokens, _ = MODES.get(getattr(recipe, "mode", ""), (None, None))
    if for_tokens != "implicit":
        return []
    models = ((pair.tuned, pair.reference, pair.model) for pair in recipe.guide.implicit)
    return [model for models_of_pair in models for model in models_of_pair if model is not None]


def build_mode(recipe: GenerateRecipe, assembly: Assembly) -> Mode:
    """Return the mode of a recipe, its values built."""
    for_tokens, for_chunks = MODES[recipe.mode]
    values: dict[str, Value] = {}
    for kind in ("implicit", "explicit"):
        if kind in (for_tokens, for_chunks):
            if kind == "implicit":
                values[kind] = assembly.implicit(recipe.guide, kind == for_tokens)
            else:
                values[kind] = assembly.explicit(recipe.guide.explicit, kind == for_tokens)
    token = chunk = None
    if for_tokens is not None:
        spec, value = recipe.token, values[for_tokens]
        outside = spec.outside
        if outside == "auto":
            in_bytes = for_tokens == "implicit" and value.needs_candidates
            outside = "mass" if in_bytes else "prefix"
        token = TokenGuidance(value, spec.weight, spec.candidates, outside, spec.every, spec.warp)
    if for_chunks is not None:
        spec = recipe.chunk
        chunk = ChunkRanking(
            values[for_chunks],
            spec.beam_width,
            spec.successors,
            spec.chunk_length,
            spec.score,
            spec.compat,
        )
    return Mode(recipe.mode, token, chunk)


def decode_all(
    recipe: Any,
    assembly: Assembly,
    mode: Mode,
    requests: Sequence[Request],
    record: Callable[[Outcome], None],
    trace: Callable[..., None] | None,
    progress: Narrator | None,
    completes: Callable[[Outcome], int] = lambda outcome: 1,
    requests_each: int = 1,
    share: Share | None = None,
    unit: int = 1,
    single: bool = False,
) -> Summary:
    """Run the engine over requests and hand every outcome on.

    Args:
        recipe: gives sampling, seed and engine.
        assembly: base and values.
        mode: how to decode.
        requests: what to decode.
        record: takes each outcome, in the order of finishing.
        trace: called at every ranking.
        progress: told how far things are.
        completes: how many wanted responses an outcome completes.
        requests_each: requests of one wanted response.
        share: which units this process is to do; None: all.
        unit: requests of one unit.
        single: whether the whole input is one prompt.
    """
    limits = sampling_limits(recipe.sampling)
    engine = Engine(
        assembly.base,
        mode,
        limits,
        assembly.eos_ids,
        rows=1,
        seed=recipe.seed,
        width=assembly.width,
        trace=trace,
        warn=progress.warn if progress is not None else lambda sentence: None,
        stepped=lambda: show(0),
        meters=assembly.meters,
        coverages=assembly.coverages,
        graphs=bursts(recipe.engine, assembly),
        speculate=_speculated(recipe.engine, single),
    )
    engine.resize(_rows(recipe.engine.rows, engine, requests))
    began = time.monotonic()
    tokens = ended = completed = 0
    failures = []
    bridged: list[Tally] = []

    def show(count: int) -> None:
        """Count finished responses, and show how far the others are."""
        drawn, begun = engine.under_way()
        under_way = (ended + begun) / requests_each - completed
        if share is not None:
            share.report(tokens + drawn, under_way)
        elif progress is not None:
            rate = (tokens + drawn) / max(time.monotonic() - began, 1e-9)
            progress.advance(count, f"{rate:,.0f} tokens/s", under_way)

    supply = requests if share is None else SharedRequests(share, requests, unit)
    with contextlib.closing(assembly):
        for outcome in engine.run(supply):
            record(outcome)
            ended += 1
            if outcome.winner is None:
                failures.append((outcome.request.prompt.id, outcome.failure))
            else:
                tokens += len(outcome.winner.row.tokens)
                bridged.append(outcome.coverage)
            count = completes(outcome)
            completed += count
            show(count)
    seconds = time.monotonic() - began
    peak = peak_memory(assembly.base.network.device)
    guessed = engine.guessed()
    summary = Summary(
        ended,
        failures,
        tokens,
        seconds,
        engine.rows,
        peak,
        (
            *assembly.told(),
            *((*bridging(bridged), *guessing(guessed)) if share is None else ()),
        ),
        device_name(assembly.base.network.device),
        {network.name: dict(vars(network.ledger)) for network in assembly.networks.all()},
        {"ivgcli": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        {} if guessed is None else guessed.to_json(),
    )
    if share is None:
        return summary
    tally = astuple(sum(bridged, Tally()))
    return Part(**vars(summary), base=assembly.base.network.name, bridged=tally)


def bursts(spec: EngineSpec, assembly: Assembly) -> Graphs:
    """Return whether to draw in bursts: not where attention over lanes would depend on how far they reach.

    That is so without the flash kernel, which takes half-precision numbers on a GPU.
    """
    halves = {
        network.model.get_input_embeddings().weight.dtype for network in assembly.networks.all()
    } <= {torch.float16, torch.bfloat16}
    by_kernel = assembly.networks.device.type == "cuda" and halves
    return "off" if spec.deterministic and not by_kernel else spec.graphs


def _speculated(spec: EngineSpec, single: bool) -> Any:
    """Return how the engine is to guess ahead: `auto` is for a single prompt.

    The last bits of log-probabilities depend on what is read together. In a long run the lines of a resumed run would
    no longer be, to the byte, those of one that was never stopped.
    """
    wanted = spec.speculate
    return "off" if wanted == "auto" and (spec.deterministic or not single) else wanted


def bridging(tallies: Sequence[Tally]) -> list[str]:
    """Return what to say about guidance across vocabularies, in one sentence at most."""
    found = summed(tallies)
    if found is None:
        return []
    steps = sum(tally.steps for tally in tallies)
    return [
        f"across vocabularies: {found['outside']:.1%} of the base's probability on strings that are no token "
        f"of the guide, {found['aligned']:.1%} of tokens aligned, bounds {found['width']:.2g} nats apart, "
        f"{found['passes'] / steps:.2g} further passes a token"
    ]


def guessing(guessed: Guessed | None) -> list[str]:
    """Return what to say about tokens guessed ahead, in one sentence at most."""
    if guessed is None:
        return []
    return [
        f"speculation: {guessed.acceptance:.1%} of {guessed.made:,} guessed tokens right, "
        f"{guessed.saved:,} of {guessed.saved + guessed.rounds:,} passes of the base saved"
    ]


def device_name(device: torch.device) -> str:
    """Return what a result should say about where it was made."""
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads"
    )


def _rows(wanted: int | None, engine: Engine, requests: Sequence[Request]) -> int:
    """Return how many rows to decode at once."""
    need = engine.ranking.rows
    if wanted is not None:
        if wanted < need:
            beam = f"W·K = {engine.ranking.beam_width}·{engine.ranking.successors} = {need}"
            what = f"one search decodes {beam} sequences, but rows is {wanted}"
            raise RecipeError("chunk", what, f"--rows {need} or a smaller beam")
        return wanted
    most = max(1, len(requests)) * need
    if engine.served is not None:
        # Each of a search's hypotheses is one request.
        searches = -(-engine.served.in_flight // engine.ranking.beam_width)
        most = min(most, searches * need)
    if not engine.streams:
        return most
    prompts = {id(request.prompt): request.prompt for request in requests}.values()
    longest = max(
        (_length(stream, prompt) for stream in engine.streams for prompt in prompts), default=0
    )
    rows = affordable_rows(engine.streams, longest + engine.limits.max_new_tokens, need)
    return min(rows, most)


def _length(stream: Stream, prompt: Prompted) -> int:
    """Return the number of tokens of a prompt; 0 if it does not suit the model, which its record will say."""
    try:
        return len(stream.prompts.encode(prompt.text, prompt.messages, prompt.id))
    except RecordError:
        return 0


def sampling_limits(spec: SamplingSpec) -> Limits:
    """Return a recipe's sampling as the engine takes it."""
    return Limits(spec.max_new_tokens, spec.temperature, spec.top_k, spec.top_p, spec.stop)
