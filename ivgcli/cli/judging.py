"""`ivg judge`: responses in, judged responses out."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ivgcli import console, records
from ivgcli.cli import crewing
from ivgcli.cli.decoding import FAILURES, calm_libraries, counted, key_of
from ivgcli.cli.options import (
    MODELS,
    STREAMS,
    Device,
    DryRun,
    Dtype,
    Gpus,
    Limit,
    PrintRecipe,
    Quiet,
    RecipeFile,
    Resume,
    Seed,
    Sets,
)
from ivgcli.cli.planning import show_judge
from ivgcli.errors import RecipeError, RecordError

if TYPE_CHECKING:
    from ivgcli.recipes import JudgeRecipe
    from ivgcli.workers.link import Link
    from ivgcli.workers.team import Team

PAIRS, SAFETY = "Comparing in pairs", "Safety and AlpacaEval"

PORTIONS = 2
"""Into how many portions a worker's share is cut: it judges a block at a time, and the last should be small."""


@dataclass(frozen=True)
class Files:
    """Where the command reads and writes: one output for each input."""

    sources: list[str]
    targets: list[str]
    limit: int | None
    resume: bool
    quiet: bool
    gpus: int | None = None


def judge(
    recipe: RecipeFile = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            "--reward",
            metavar="[NAME=]MODEL|MODULE:FUNCTION",
            help="What a response is worth; repeatable.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    reward_label: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Label of the classifiers among them whose log-odds are the reward.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Other responses to the same prompts, to compare with.",
            rich_help_panel=PAIRS,
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|openai:[URL#]MODEL",
            help="Who compares: a model that is loaded here, or one behind a server.",
            rich_help_panel=PAIRS,
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="How it is asked: a file of recipes/judges or your own.",
            rich_help_panel=PAIRS,
        ),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            metavar="ORDER",
            help="Who comes first: both (asks twice), random or given.",
            rich_help_panel=PAIRS,
        ),
    ] = None,
    safety: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|openai:[URL#]MODEL",
            help="Who says whether a response is safe.",
            rich_help_panel=SAFETY,
        ),
    ] = None,
    alpaca_eval: Annotated[
        str | None,
        typer.Option(
            "--alpaca-eval",
            metavar="DIR",
            help="Write AlpacaEval's files there; win rates, where annotations are there.",
            rich_help_panel=SAFETY,
        ),
    ] = None,
    annotator: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="AlpacaEval's annotator to run.", rich_help_panel=SAFETY),
    ] = None,
    seed: Seed = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--in",
            "-i",
            metavar="FILE|-|hf:NAME",
            help="Responses: JSONL, AlpacaEval's array, stdin; repeatable; default: -.",
            rich_help_panel=STREAMS,
        ),
    ] = None,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE|DIR|-",
            help="Judged responses; a folder, where there are several inputs.",
            rich_help_panel=STREAMS,
        ),
    ] = "-",
    limit: Limit = None,
    resume: Resume = False,
    device: Device = None,
    dtype: Dtype = None,
    gpus: Gpus = None,
    sets: Sets = None,
    print_recipe: PrintRecipe = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Score responses by rewards, compare them in pairs, and say how many are safe."""
    with console.guard():
        from ivgcli import recipes

        given = dict(map(_named, reward or ()))
        flags: dict[str, Any] = {f"rewards.{name}": spec for name, spec in given.items()}
        if reward_label is not None:
            labelled = [name for name, spec in given.items() if not recipes.is_callable(spec)]
            flags |= {f"rewards.{name}.label": reward_label for name in labelled}
        compared = "alpaca_eval.reference" if alpaca_eval and not judge else "pairwise.against"
        flags |= {
            **{compared: against, "pairwise.judge": judge},
            **{"pairwise.template": template, "pairwise.order": order},
            **{"safety": None if safety is None else {"judge": safety}},
            **{"alpaca_eval.folder": alpaca_eval, "alpaca_eval.annotator": annotator},
            **{"seed": seed, "engine.device": device, "engine.dtype": dtype},
        }
        loaded = recipes.load(recipes.JudgeRecipe, recipe, sets or (), flags)
        resolved = recipes.with_templates(loaded, None if recipe is None else Path(recipe).parent)
        if print_recipe:
            sys.stdout.write(recipes.to_yaml(resolved))
            return
        sources = source or ["-"]
        if dry_run:
            show_judge(resolved, sources, limit, gpus)
            return
        _judge(resolved, Files(sources, _targets(sources, out), limit, resume, quiet, gpus))


def _named(text: str) -> tuple[str, str]:
    """Return the name and the rest of `NAME=SPEC`, or a name for a SPEC without one."""
    name, equals, spec = text.partition("=")
    if equals and name and "/" not in name and ":" not in name:
        return name, spec
    return text.rstrip("/").replace(":", "/").split("/")[-1].replace(".", "-"), text


def _targets(sources: list[str], out: str) -> list[str]:
    """Return the output for each input.

    Raises:
        RecordError: several inputs have one output, or one name.
    """
    if len(sources) == 1 and not out.endswith("/") and not Path(out).is_dir():
        return [out]
    if out == "-" or Path(out).is_file():
        hint = "name a folder with --out"
        raise RecordError("--out", f"{len(sources)} inputs have one output", hint)
    names = ["stdin.jsonl" if source == "-" else Path(source).name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecordError("--in", f'two inputs are called "{twice[0]}"', "judge them in turn")
    Path(out).mkdir(parents=True, exist_ok=True)
    return [str(Path(out) / name) for name in names]


def _judge(recipe: JudgeRecipe, files: Files) -> None:
    """Read all inputs, judge them in turn by what is loaded once, and tell how it went."""
    from ivgcli import recipes

    if "-" in files.sources and sys.stdin.isatty():
        hint = "name a file with --in, or pipe JSON lines in"
        raise RecordError("--in", "there are no responses to read", hint)
    if crewing.crewed(files.gpus):
        _require_one_file(recipe, files)
    inputs = [records.read_responses(source, files.limit) for source in files.sources]
    for source, target in zip(files.sources, files.targets, strict=True):
        there = target != "-" and Path(source).exists() and Path(target).exists()
        if there and Path(source).samefile(target):
            raise RecordError(target, "would be written while it is read", "another --out")
    if recipe.alpaca_eval is not None and len(inputs) > 1:
        what = f"{len(inputs)} inputs would be written to {recipe.alpaca_eval.folder}"
        raise RecordError("--alpaca-eval", what, "judge them in turn, each with a folder")
    run = recipes.run_id(recipe)
    crew = crewing.join("judge", run, inputs, files.gpus, recipe.engine.device)
    calm_libraries(files.quiet or crew.link is not None)
    if crew.link is not None:
        crewing.work(crew.link, partial(_judge_share, recipe, inputs[0]))
        return
    loaded: list[Any] = []
    failed = 0
    for source, target, answered in zip(files.sources, files.targets, inputs, strict=True):
        title = Path(source).name if len(files.sources) > 1 else ""
        summary = _judge_one(recipe, files, target, answered, loaded, (title, source), crew.team)
        _tell(summary, title, files.quiet)
        failed += len(summary.failures)
    if failed:
        again = "" if files.targets == ["-"] else "; --resume tries them again"
        lacking = f"{counted(failed, 'response')} without a judgement"
        raise RecordError("", lacking, f"their lines say why{again}")


def _judge_one(
    recipe: JudgeRecipe,
    files: Files,
    target: str,
    answered: list[records.Answered],
    loaded: list[Any],
    names: tuple[str, str],
    team: Team | None,
) -> Any:
    """Judge one input and return what came of it.

    Args:
        recipe: what to ask.
        files: how to go about it.
        target: where the judged responses go.
        answered: the responses.
        loaded: what judges, empty until a response needs it.
        names: title of the bar, and the responses' file.
        team: workers that do it; None: this process does.
    """
    from ivgcli import recipes
    from ivgcli.judging.judge import Judged, Judging, lacking, summarise

    title, source = names
    texts = {(each.id, each.sample): each.response for each in answered}
    run = recipes.run_id(recipe)

    def unfinished(record: Any) -> bool:
        key = record["id"], record["sample"]
        # Annotations may have come since AlpacaEval's files were written.
        waiting = recipe.alpaca_eval is not None and "pairwise" not in record
        changed = texts.get(key, record["response"]) != record["response"]
        return waiting or changed or lacking(record)

    with ExitStack() as stack:
        writer = records.open_responses(
            target,
            keys=list(texts),
            run=run,
            recipe_yaml=recipes.to_yaml(recipe),
            resume=files.resume,
            unfinished=unfinished,
        )
        stack.enter_context(writer)
        done = sum(key in writer.done for key in texts)
        progress = console.Progress(len(texts), done=done, quiet=files.quiet, title=title)
        stack.enter_context(progress)
        if files.resume and done:
            progress.say(f"resuming: {done} of {len(texts)} responses are judged")
        judged = Judged([])
        if done < len(texts) or recipe.alpaca_eval is not None:
            progress.note("loading models")
            if team is not None:
                judged = _led(team, list(texts), writer, progress)
            else:
                if not loaded:
                    loaded.append(Judging(recipe, progress))
                judged = loaded[0].judge(answered, writer, progress)
    path = Path(target)
    output = records.read_records(path) if target != "-" and path.is_file() else None
    summary = summarise(judged, output, records.read_account(source))
    if output is not None:
        records.write_account(target, run, summary)
    return summary


def _require_one_file(recipe: JudgeRecipe, files: Files) -> None:
    """Check that what is asked for can be shared by several processes.

    Raises:
        RecordError: it cannot.
        RecipeError: it cannot.
    """
    if len(files.sources) > 1:
        what = f"several processes judge one file at a time, and {len(files.sources)} are given"
        raise RecordError("--in", what, "judge them in turn")
    if recipe.alpaca_eval is not None:
        what = "AlpacaEval runs in one process"
        raise RecipeError("--alpaca-eval", what, "a command of its own, without --gpus")
    crewing.require_file(files.sources[0])


def _judge_share(
    recipe: JudgeRecipe, answered: list[records.Answered], writer: Link, progress: Link, share: Link
) -> Any:
    """Judge a worker's share of the responses; return what it came to, without the records."""
    from ivgcli.judging.judge import Judging

    judged = Judging(recipe, progress).judge(answered, writer, progress, share)
    return replace(judged, records=[])


def _led(
    team: Team,
    keys: list[tuple[str, int]],
    writer: records.ResponseWriter,
    progress: console.Progress,
) -> Any:
    """Have a team judge everything that a writer lacks."""
    from ivgcli.judging.judge import Judged
    from ivgcli.workflows.summary import devices

    written: list[Any] = []

    def keep(worker: int, record: Any) -> None:
        written.append(record)

    crew = crewing.lead(team, keys, key_of, writer, progress, keep, portions=PORTIONS)
    return Judged(written, crew.seconds, devices(list(crew.accounts.values())))


def _tell(summary: Any, title: str, quiet: bool) -> None:
    """Print means with their intervals, and what was left out."""
    rows = []
    for name, found in summary.means.items():
        ends = "" if found.low is None else f"{found.low:+.3g} … {found.high:+.3g}"
        mean = "–" if found.mean is None else f"{found.mean:+.3g}"
        rows.append([name, mean, ends, str(found.n), str(found.missing)])
    if rows:
        head = [title, "mean", "95 % over responses", "n", "missing"]
        console.say(console.table(head, rows), quiet=quiet)
    if summary.alpaca_eval is not None:
        shown = ("win_rate", "length_controlled_winrate", "n_total")
        told = [
            f"{name} {summary.alpaca_eval[name]:.4g}"
            for name in shown
            if summary.alpaca_eval.get(name) is not None
        ]
        console.say(f"AlpacaEval: {', '.join(told)}", quiet=quiet)
    parts = [counted(summary.records, "response"), f"{summary.seconds:.1f} s"]
    parts += [f"{number:,.6g} {unit.replace('_', ' ')}" for unit, number in summary.usage.items()]
    console.say(", ".join(parts), quiet=quiet)
    if summary.truncated:
        what = counted(summary.truncated, "response")
        console.warn(f"{what} longer than a reward model takes: truncated says by how many tokens")
    if summary.unanswered:
        console.warn(f"{counted(summary.unanswered, 'record')} without a response, left as it was")
    for identity, sentence in summary.failures[:FAILURES]:
        console.warn(f"{identity}: {sentence}")
