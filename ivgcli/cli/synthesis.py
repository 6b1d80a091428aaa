"""`ivg synthesize`: prompts in, preference pairs out."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ivgcli import console, records
from ivgcli.cli import crewing, planning
from ivgcli.cli.decoding import (
    FAILURES,
    Streams,
    calm_libraries,
    counted,
    prompts_of,
    shared_flags,
)
from ivgcli.cli.options import (
    MODELS,
    STEERING,
    STREAMS,
    Base,
    Deterministic,
    Device,
    DryRun,
    Dtype,
    Gpus,
    Guides,
    Limit,
    MaxNewTokens,
    PrintRecipe,
    Quiet,
    RecipeFile,
    Resume,
    RewardLabel,
    Rows,
    Seed,
    Sets,
    Shards,
    Source,
    Speculate,
    Stop,
    Temperature,
    TopK,
    TopP,
)
from ivgcli.errors import RecordError

if TYPE_CHECKING:
    from ivgcli.recipes import SynthesizeRecipe

PAIRS = "Pairs"


def synthesize(
    recipe: RecipeFile = None,
    base: Base = None,
    guide: Guides = None,
    reward: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|MODULE:FUNCTION",
            help="What a response is worth.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    reward_label: RewardLabel = None,
    responses: Annotated[
        int | None,
        typer.Option(
            "--responses",
            "-n",
            metavar="K",
            help="Responses drawn for each prompt.",
            rich_help_panel=PAIRS,
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="disjoint: K/2 in the order of drawing; all; or best-worst.",
            rich_help_panel=PAIRS,
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="bradley-terry: sampled by the rewards; or argmax.",
            rich_help_panel=PAIRS,
        ),
    ] = None,
    label_temperature: Annotated[
        float | None,
        typer.Option(metavar="T", help="Noise of bradley-terry.", rich_help_panel=PAIRS),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Leave out pairs whose rewards are closer.", rich_help_panel=PAIRS
        ),
    ] = None,
    conversational: Annotated[
        bool,
        typer.Option(
            "--conversational",
            metavar="",
            help="Write messages even where the prompt was text.",
            rich_help_panel=PAIRS,
        ),
    ] = False,
    relabel: Annotated[
        bool,
        typer.Option(
            "--relabel",
            metavar="",
            help="Draw nothing: label the pairs of --in anew.",
            rich_help_panel=PAIRS,
        ),
    ] = False,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE", help="How to draw, as in ivg generate.", rich_help_panel=STEERING
        ),
    ] = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    max_new_tokens: MaxNewTokens = None,
    stop: Stop = None,
    seed: Seed = None,
    source: Source = None,
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", metavar="FILE|-", help="Preference pairs.", rich_help_panel=STREAMS
        ),
    ] = "-",
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
    """Draw responses, score them with a reward, and write preference pairs for training."""
    with console.guard():
        from ivgcli import recipes

        flags = {
            **shared_flags(base, None, temperature, top_k, top_p, max_new_tokens, stop),
            **{"seed": seed, "engine.device": device, "engine.dtype": dtype, "engine.rows": rows},
            **{"engine.speculate": speculate, "engine.deterministic": deterministic or None},
            "base.shards": shards,
            **{"mode": mode, "reward": reward, "reward.label": reward_label},
            **{"responses": responses, "pairs": pairs},
            **{"label": label, "label_temperature": label_temperature, "margin": margin},
            **{"conversational": conversational or None, "relabel": relabel or None},
        }
        resolved = recipes.load(recipes.SynthesizeRecipe, recipe, sets or (), flags, guide or ())
        if print_recipe:
            sys.stdout.write(recipes.to_yaml(resolved))
            return
        streams = Streams(source, None, out, "ivg", None, limit, resume, quiet, gpus)
        if dry_run:
            _show_plan(resolved, streams)
            return
        _synthesize(resolved, streams)


def _show_plan(recipe: SynthesizeRecipe, streams: Streams) -> None:
    """Print the plan of a run."""
    planning.stay_offline()
    from ivgcli.workflows.plan import plan_synthesize

    asked: Any = planning.asked_pairs if recipe.relabel else planning.asked_prompts
    found = asked(lambda: _given(recipe, streams), streams.source, streams.limit)
    plan = plan_synthesize(recipe, found[0] if recipe.relabel else found)
    device = recipe.engine.device
    planning.show(planning.shared_out(plan, streams.gpus, device, _shards(recipe)), streams.out)


def _shards(recipe: SynthesizeRecipe) -> int:
    """Return how many GPUs hold the base between them; 1 if nothing is drawn."""
    base: Any = None if recipe.relabel else recipe.base
    return int(getattr(base, "shards", None) or 1)


def _synthesize(recipe: SynthesizeRecipe, streams: Streams) -> None:
    """Read prompts or pairs, open the output, run the workflow, and tell how it went."""
    from ivgcli import recipes

    shards = _shards(recipe)
    if crewing.crewed(streams.gpus, shards):
        crewing.require_file(streams.source)
    given = _given(recipe, streams)
    run, ids = recipes.run_id(recipe), [each.id for each in given]
    width = 2 if recipe.relabel else recipe.responses
    crew = crewing.join("synthesize", run, given, streams.gpus, recipe.engine.device, shards)
    calm_libraries(streams.quiet or crew.link is not None)

    def workflow(*passed: Any, **named: Any) -> Any:
        from ivgcli.workflows import synthesize

        found = synthesize.score_again if recipe.relabel else synthesize.draw_and_score
        return found(recipe, given, *passed, **named)

    if crew.link is not None:
        crewing.work(crew.link, workflow, shards)
        return
    from ivgcli.workflows.labelling import Account, Labelling

    labeller = Labelling(recipe, given)
    with ExitStack() as stack:
        writer = records.open_pairs(
            streams.out,
            ids=ids,
            responses=width,
            labeller=labeller,
            run=run,
            recipe_yaml=recipes.to_yaml(recipe),
            resume=streams.resume,
        )
        stack.enter_context(writer)
        done, total = len(writer.done) * width, len(given) * width
        progress = console.Progress(total, done=done, quiet=streams.quiet)
        stack.enter_context(progress)
        if streams.resume:
            progress.say(f"resuming: {done} of {total} responses are there")
        progress.note("loading models")
        if crew.team is None:
            summary = workflow(writer, progress=progress)
        else:
            summary = crewing.decode(crew.team, ids, lambda given: given[0]["id"], writer, progress)
    account = labeller.tally.account()
    if streams.out != "-":
        whole = Account(**account, drawing=asdict(summary))
        records.write_account(streams.out, run, whole)
    _tell(recipe, account, summary, streams)


def _given(recipe: SynthesizeRecipe, streams: Streams) -> list[Any]:
    """Return the prompts, or under `relabel` the pairs, of the input."""
    if not recipe.relabel:
        return [records.without_answers(prompt) for prompt in prompts_of(streams)]
    if streams.source in (None, "-") and sys.stdin.isatty():
        hint = "name a file with --in, or pipe JSON lines in"
        raise RecordError("--in", "there are no pairs to read", hint)
    return records.read_pairs(streams.source or "-", streams.limit)


def _tell(
    recipe: SynthesizeRecipe, account: dict[str, Any], summary: Any, streams: Streams
) -> None:
    """Print what came of it; failed prompts make the command fail, after all its work."""

    def say(*parts: str) -> None:
        console.say(", ".join(part for part in parts if part), quiet=streams.quiet)

    for note in summary.notes:
        say(note)
    reasons = [f"{count:,} {reason}" for reason, count in account["skipped"].items()]
    left_out = f"left out: {', '.join(reasons)}" if reasons else ""
    swapped = f"{account['swapped']:,} swapped" if recipe.relabel else ""
    say(counted(account["pairs"], "pair"), swapped, left_out)
    if account["pairs"]:
        agreement = account["agreement"]
        say(
            f"mean reward {account['mean_reward']:.4g}",
            f"mean gap {account['mean_gap']:.4g}",
            "" if agreement is None else f"{agreement:.1%} of the labels agree with the reward",
        )
    if summary.tokens:
        memory = summary.peak_memory_bytes
        say(
            counted(summary.tokens, "token"),
            f"{summary.tokens / max(summary.seconds, 1e-9):.0f} tokens/s",
            f"{summary.seconds:.1f} s",
            counted(summary.rows, "row"),
            "" if memory is None else f"peak memory {memory / 2**30:.2f} GiB",
        )
    if summary.failures:
        lines = [f"{identity}: {sentence}" for identity, sentence in summary.failures[:FAILURES]]
        if len(summary.failures) > FAILURES:
            lines.append(f"and {len(summary.failures) - FAILURES} more")
        what = f"{counted(len(summary.failures), 'prompt')} failed"
        again = "" if streams.out == "-" else "; --resume tries them again"
        raise RecordError("", what, f"they have no pairs{again}", lines)
    if not account["pairs"]:
        console.warn("there is not one pair: every two responses are equal or too close")
