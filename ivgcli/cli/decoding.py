"""`ivg generate` and `ivg bon`: prompts in, responses out."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from ivgcli import console, records
from ivgcli.cli import crewing, planning
from ivgcli.cli.options import (
    MODELS,
    STEERING,
    Base,
    Deterministic,
    Device,
    DryRun,
    Dtype,
    Gpus,
    Guides,
    Limit,
    MaxNewTokens,
    Out,
    OutputFormat,
    PrintRecipe,
    PromptText,
    Quiet,
    RecipeFile,
    Resume,
    Rows,
    Samples,
    Seed,
    Sets,
    Shards,
    Source,
    Speculate,
    Stop,
    Temperature,
    TopK,
    TopP,
    Trace,
)
from ivgcli.errors import RecipeError, RecordError

if TYPE_CHECKING:
    from ivgcli.recipes import BonRecipe, GenerateRecipe

FAILURES = 5
"""How many failed records are told one by one."""


@dataclass(frozen=True)
class Streams:
    """Where a command reads and writes."""

    source: str | None
    prompt: str | None
    out: str
    format: records.Format
    trace: str | None
    limit: int | None
    resume: bool
    quiet: bool
    gpus: int | None = None


def generate(
    recipe: RecipeFile = None,
    base: Base = None,
    guide: Guides = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="base, eft-i, eft-e, cbs-i, cbs-e, eft-i+cbs-i, eft-e+cbs-e, eft-e+cbs-i or ivg.",
            rich_help_panel=STEERING,
        ),
    ] = None,
    weight: Annotated[
        float | None,
        typer.Option(metavar="X", help="Strength of token guidance.", rich_help_panel=STEERING),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens a value is asked about.", rich_help_panel=STEERING),
    ] = None,
    beam_width: Annotated[
        int | None,
        typer.Option(
            "--beam-width", "-W", metavar="N", help="Hypotheses kept.", rich_help_panel=STEERING
        ),
    ] = None,
    successors: Annotated[
        int | None,
        typer.Option(
            "--successors",
            "-K",
            metavar="N",
            help="Continuations of each.",
            rich_help_panel=STEERING,
        ),
    ] = None,
    chunk_length: Annotated[
        int | None,
        typer.Option(
            "--chunk-length", "-L", metavar="N", help="Tokens per chunk.", rich_help_panel=STEERING
        ),
    ] = None,
    samples: Samples = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    max_new_tokens: MaxNewTokens = None,
    stop: Stop = None,
    seed: Seed = None,
    source: Source = None,
    prompt: PromptText = None,
    out: Out = "-",
    format: OutputFormat = "ivg",
    trace: Trace = None,
    limit: Limit = None,
    resume: Resume = False,
    device: Device = None,
    dtype: Dtype = None,
    rows: Rows = None,
    speculate: Speculate = None,
    deterministic: Deterministic = False,
    gpus: Gpus = None,
    shards: Shards = None,
    sets: Sets = None,
    print_recipe: PrintRecipe = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Decode prompts under a mode: how tokens are drawn, how chunks are ranked."""
    with console.guard():
        from ivgcli import recipes

        flags = {
            **shared_flags(base, samples, temperature, top_k, top_p, max_new_tokens, stop),
            **{"seed": seed, "engine.device": device, "engine.dtype": dtype, "engine.rows": rows},
            **{"engine.speculate": speculate, "engine.deterministic": deterministic or None},
            "base.shards": shards,
            **{"mode": mode, "token.weight": weight, "token.candidates": candidates},
            **{"chunk.beam_width": beam_width, "chunk.successors": successors},
            "chunk.chunk_length": chunk_length,
        }
        resolved = recipes.load(recipes.GenerateRecipe, recipe, sets or (), flags, guide or ())
        if print_recipe:
            sys.stdout.write(recipes.to_yaml(resolved))
            return
        form = _checked_format(format)
        streams = Streams(source, prompt, out, form, trace, limit, resume, quiet, gpus)
        if dry_run:
            _show_plan(resolved, streams, "plan_generate")
            return
        _decode(resolved, streams, "ivgcli.workflows.generate", "generate")


def bon(
    recipe: RecipeFile = None,
    base: Base = None,
    guide: Guides = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="implicit, explicit or reward.", rich_help_panel=STEERING
        ),
    ] = None,
    best_of: Annotated[
        int | None,
        typer.Option(
            "--best-of",
            "-n",
            metavar="N",
            help="Responses drawn for each one kept.",
            rich_help_panel=STEERING,
        ),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|MODULE:FUNCTION", help="What ranks them.", rich_help_panel=MODELS
        ),
    ] = None,
    samples: Samples = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    max_new_tokens: MaxNewTokens = None,
    stop: Stop = None,
    seed: Seed = None,
    source: Source = None,
    prompt: PromptText = None,
    out: Out = "-",
    format: OutputFormat = "ivg",
    trace: Trace = None,
    limit: Limit = None,
    resume: Resume = False,
    device: Device = None,
    dtype: Dtype = None,
    rows: Rows = None,
    speculate: Speculate = None,
    deterministic: Deterministic = False,
    gpus: Gpus = None,
    shards: Shards = None,
    sets: Sets = None,
    print_recipe: PrintRecipe = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Draw N responses and keep the best, by an implicit value, an explicit value or a reward."""
    with console.guard():
        from ivgcli import recipes

        flags = {
            **shared_flags(base, samples, temperature, top_k, top_p, max_new_tokens, stop),
            **{"seed": seed, "engine.device": device, "engine.dtype": dtype, "engine.rows": rows},
            **{"engine.speculate": speculate, "engine.deterministic": deterministic or None},
            "base.shards": shards,
            **{"by": by, "best_of": best_of, "reward": reward},
        }
        resolved = recipes.load(recipes.BonRecipe, recipe, sets or (), flags, guide or ())
        if print_recipe:
            sys.stdout.write(recipes.to_yaml(resolved))
            return
        form = _checked_format(format)
        streams = Streams(source, prompt, out, form, trace, limit, resume, quiet, gpus)
        if dry_run:
            _show_plan(resolved, streams, "plan_bon")
            return
        _decode(resolved, streams, "ivgcli.workflows.best_of_n", "best_of_n")


def shared_flags(
    base: str | None,
    samples: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    max_new_tokens: int | None,
    stop: list[str] | None,
) -> dict[str, Any]:
    """Return the recipe keys of the flags that every decoding command has."""
    return {
        "base.model": base,
        "sampling.samples": samples,
        "sampling.temperature": temperature,
        "sampling.top_k": top_k,
        "sampling.top_p": top_p,
        "sampling.max_new_tokens": max_new_tokens,
        "sampling.stop": stop or None,
    }


def _decode(
    recipe: GenerateRecipe | BonRecipe, streams: Streams, module: str, function: str
) -> None:
    """Read the prompts, open the output, run a workflow over them, and tell how it went."""
    from ivgcli import recipes

    shards = recipe.base.shards or 1
    if crewing.crewed(streams.gpus, shards) and streams.prompt is None:
        crewing.require_file(streams.source)
    prompts = prompts_of(streams)
    keys = [(each.id, sample) for each in prompts for sample in range(recipe.sampling.samples)]
    run, device = recipes.run_id(recipe), recipe.engine.device
    crew = crewing.join(function, run, prompts, streams.gpus, device, shards)
    calm_libraries(streams.quiet or crew.link is not None)

    def workflow(*given: Any, **named: Any) -> Any:
        return getattr(importlib.import_module(module), function)(recipe, prompts, *given, **named)

    if crew.link is not None:
        trace_sent = crew.link.trace if streams.trace else None
        crewing.work(crew.link, partial(workflow, trace=trace_sent), shards)
        return
    with ExitStack() as stack:
        writer = records.open_responses(
            streams.out,
            keys=keys,
            run=run,
            recipe_yaml=recipes.to_yaml(recipe),
            resume=streams.resume,
            format=streams.format,
        )
        stack.enter_context(writer)
        trace = records.TraceWriter(streams.trace, streams.resume) if streams.trace else None
        if trace is not None:
            stack.enter_context(trace)
        done = sum(key in writer.done for key in keys)
        progress = console.Progress(len(keys), done=done, quiet=streams.quiet)
        stack.enter_context(progress)
        if streams.resume:
            progress.say(f"resuming: {done} of {len(keys)} responses are there")
        progress.note("loading models")
        if crew.team is None:
            summary = workflow(writer, trace=trace, progress=progress)
        else:
            summary = crewing.decode(crew.team, keys, key_of, writer, progress, trace)
    if streams.out != "-":
        records.write_account(streams.out, run, summary)
    _tell(summary, streams)


def key_of(record: Any) -> tuple[str, int]:
    """Return the key of a record."""
    return record["id"], record["sample"]


def _show_plan(recipe: GenerateRecipe | BonRecipe, streams: Streams, function: str) -> None:
    """Print the plan of a run."""
    planning.stay_offline()
    from ivgcli.workflows import plan

    asked = planning.asked_prompts(
        lambda: prompts_of(streams), streams.source, streams.limit, streams.prompt
    )
    found = getattr(plan, function)(recipe, asked)
    shards = recipe.base.shards or 1
    found = planning.shared_out(found, streams.gpus, recipe.engine.device, shards)
    planning.show(found, streams.out)


def _checked_format(name: str) -> records.Format:
    """Return the name of a format if it is one."""
    known = get_args(records.Format)
    if name not in known:
        raise RecipeError("--format", f'expected {" or ".join(known)}, got "{name}"')
    return cast("records.Format", name)


def prompts_of(streams: Streams) -> list[records.Prompt]:
    """Return the prompts that the flags name."""
    if streams.prompt is not None:
        if streams.source is not None:
            raise RecordError("--prompt", "--in names prompts too", "give one of them")
        if not streams.prompt.strip():
            raise RecordError("--prompt", "the prompt is empty")
        return [records.Prompt("1", streams.prompt, None, {})]
    source = streams.source or "-"
    if source == "-" and sys.stdin.isatty():
        hint = "name a file with --in, give --prompt TEXT, or pipe JSON lines in"
        raise RecordError("--in", "there are no prompts to read", hint)
    return records.read_prompts(source, streams.limit)


def calm_libraries(quiet: bool) -> None:
    """Keep the bars and notices of libraries out of ours, unless the environment wants them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _tell(summary: Any, streams: Streams) -> None:
    """Print a workflow's summary; failed records make the command fail, after all its work."""
    parts = [
        counted(summary.records - len(summary.failures), "response"),
        counted(summary.tokens, "token"),
    ]
    if summary.seconds > 0:
        parts.append(f"{summary.tokens / summary.seconds:.0f} tokens/s")
    parts += [f"{summary.seconds:.1f} s", counted(summary.rows, "row")]
    if summary.peak_memory_bytes is not None:
        parts.append(f"peak memory {summary.peak_memory_bytes / 2**30:.2f} GiB")
    for note in summary.notes:
        console.say(note, quiet=streams.quiet)
    console.say(", ".join(parts), quiet=streams.quiet)
    if summary.failures:
        lines = [f"{identity}: {sentence}" for identity, sentence in summary.failures[:FAILURES]]
        if len(summary.failures) > FAILURES:
            lines.append(f"and {len(summary.failures) - FAILURES} more")
        what = f"{counted(len(summary.failures), 'record')} failed"
        again = "" if streams.out == "-" else "; --resume tries them again"
        raise RecordError("", what, f"their lines say why{again}", lines)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 response`, `16 responses`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
