"""`--dry-run`: the plan of a command on stdout, and what it reads of its input for that."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivgcli import console
from ivgcli.errors import RecordError

if TYPE_CHECKING:
    from ivgcli.recipes import JudgeRecipe, Training
    from ivgcli.workflows.cast import Part
    from ivgcli.workflows.plan import Plan
    from ivgcli.workflows.survey import Asked

WIDTH = 80
NAMES = 16
"""Columns of the names of roles."""


def stay_offline() -> None:
    """Keep libraries from the network: a plan downloads nothing. Call it before they are imported."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def read_or_guess(read: Callable[[], Sequence[Any]], source: str | None) -> Sequence[Any] | None:
    """Return a command's input; None if it is a file or data set that is not here.

    Raises:
        RecordError: it is here, and something is wrong with it.
    """
    try:
        return read()
    except RecordError:
        gone = source is not None and source != "-" and not Path(source).exists()
        if gone:
            return None
        raise


def guessed(source: str | None, limit: int | None, things: str) -> Asked:
    """Return what is known of an input that is not here."""
    from ivgcli.recipes.sizes import known_rows
    from ivgcli.workflows.survey import Asked

    rows = known_rows(source or "")
    if limit is not None and (rows is None or limit <= rows):
        return Asked(str(source), None, limit, "their number is --limit's", things)
    told_by = "their number is the data set's own"
    return Asked(str(source), None, rows, told_by, things)


def asked_prompts(
    read: Callable[[], Sequence[Any]],
    source: str | None,
    limit: int | None,
    prompt: str | None = None,
) -> Asked:
    """Return the prompts of a command, or what is known of them; `prompt`: that of a flag of its own."""
    from ivgcli.workflows.survey import Asked, questions

    place = "stdin" if source in (None, "-") else str(source)
    if prompt is not None:
        place = "the command line"
    prompts = read_or_guess(read, source)
    if prompts is None:
        return guessed(source, limit, "prompts")
    return Asked(place, questions(prompts), len(prompts))


def asked_pairs(
    read: Callable[[], Sequence[Any]], source: str | None, limit: int | None
) -> tuple[Asked, Asked]:
    """Return the responses of a command's pairs behind their prompts, and the distinct prompts.

    Where the input holds prompts alone, both are these.
    """
    from ivgcli import records
    from ivgcli.workflows.survey import Asked, Question, questions

    found = read_or_guess(read, source)
    place = "stdin" if source in (None, "-") else str(source)
    if found is None:
        return guessed(source, limit, "pairs"), guessed(source, limit, "prompts")
    if not all(isinstance(each, records.Pair) for each in found):
        asked = Asked(place, questions(found), len(found))
        return asked, asked
    texts = tuple(
        Question(pair.prompt.text, pair.prompt.messages, text)
        for pair in found
        for text in (pair.chosen, pair.rejected)
    )
    prompts = {(each.prompt.text, repr(each.prompt.messages)): each.prompt for each in found}
    alone = Asked(place, questions(list(prompts.values())), len(prompts))
    return Asked(place, texts, len(found), things="pairs"), alone


def asked_responses(sources: Sequence[str], limit: int | None) -> Asked:
    """Return the responses of all inputs of `ivg judge`, or what is known of them."""
    from ivgcli import records
    from ivgcli.workflows.survey import Asked, Question

    place = sources[0] if len(sources) == 1 else f"{len(sources)} files"
    found: list[Question] = []
    for source in sources:
        read: Any = read_or_guess(partial(records.read_responses, source, limit), source)
        if read is None:
            number = None if limit is None else limit * len(sources)
            told_by = "their number is --limit's" + (" for each" if len(sources) > 1 else "")
            return Asked(place, None, number, told_by, "responses")
        found += [
            Question(each.prompt.text, each.prompt.messages, each.response)
            for each in read
            if each.response is not None
        ]
    return Asked(place, tuple(found), len(found), things="responses")


def show_judge(
    recipe: JudgeRecipe, sources: Sequence[str], limit: int | None, gpus: int | None
) -> None:
    """Print the plan of `ivg judge`."""
    stay_offline()
    from ivgcli.workflows.judge_plan import plan_judge

    plan = plan_judge(recipe, asked_responses(sources, limit))
    show(shared_out(plan, gpus, recipe.engine.device))


def shared_out(plan: Plan, gpus: int | None, device: str | None, shards: int = 1) -> Plan:
    """Return a plan as `--gpus` and `--shards` would carry it out.

    Raises:
        RecipeError: this machine has GPUs, but fewer.
    """
    if max(gpus or 1, shards) == 1:
        return plan
    from ivgcli.workers.devices import VISIBLE, groups, visible_gpus, worker_environments
    from ivgcli.workflows.plan import among_workers

    count = groups(gpus, shards)
    elsewhere = device == "cuda" and not visible_gpus(os.environ)
    found = [] if elsewhere else worker_environments(count, device, os.environ, shards)
    return among_workers(plan, count, elsewhere or bool(found[0].get(VISIBLE)), shards)


def show_training(
    recipe: Training, workflow: str, source: str | None, limit: int | None, out: str | None
) -> None:
    """Print the plan of a training command."""
    stay_offline()
    from ivgcli import records
    from ivgcli.cli.trainers import needs_pairs
    from ivgcli.training import plan

    pairs = needs_pairs(recipe)
    read: Any = records.read_pairs if pairs else records.read_pairs_or_prompts
    texts, prompts = asked_pairs(lambda: read(source or "-", limit), source, limit)
    held_out = plan.held_out_of(recipe, texts.count)
    given = plan.Records(texts, prompts, held_out, texts.things == "pairs")
    planned = getattr(plan, workflow.replace("train", "plan"))
    show(planned(recipe, given, plan.folder(out)))


def show(plan: Plan, out: str = "-") -> None:
    """Print a plan on stdout: networks, a table of at most 80 columns, and what is missing.

    Args:
        plan: what to print.
        out: the file that would be written; `-`: none, or those that the plan names.

    Raises:
        ModelError: it cannot be carried out here.
    """
    writes = plan.writes or (() if out == "-" else (out,))
    print(_folded(f"ivg {plan.title}: the plan; nothing is loaded or written"))
    print("\n".join(map(_folded, plan.lines)) + "\n")
    for part in plan.parts:
        # A model's name stays whole, however long it is.
        print(f"{part.role:<{NAMES - 1}} {part.name}")
        for each in _said(part):
            print(_folded(each, NAMES))
    print("\n" + _table(plan))
    if plan.stages:
        print("\n" + _stages(plan))
    print()
    if writes:
        print(_folded(f"Would write {', '.join(writes)}."))
    print("\n".join(map(_folded, (plan.foot, *plan.notes))))
    if plan.refusal is not None:
        sys.stdout.flush()
        raise plan.refusal


def _said(part: Part) -> list[str]:
    """Return what is to be said of one network."""
    found = part.found
    if found is None or found.missing is None:
        return list(part.notes)
    told = f"size by {found.told_by}" if found.told_by else "its size is not known"
    return [f"{found.missing}; {told}", *part.notes]


def _folded(text: str, indent: int = 0) -> str:
    """Return a sentence in lines of at most 80 columns; no word is broken."""
    space = " " * indent
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=space,
        subsequent_indent=space or "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _table(plan: Plan) -> str:
    """Return what every network takes."""
    rows = [
        [
            part.role,
            "–" if found is None or found.size is None else number(found.size.parameters),
            part.format or "–",
            "–" if part.weights is None else memory(part.weights),
            "–" if part.row is None else memory(part.row),
            "–" if part.tokens is None else number(part.tokens),
            "–" if part.flops is None else f"{part.flops:.2g}",
        ]
        for part in plan.parts
        for found in [part.found]
    ]
    if len(rows) > 1 and not plan.stages:
        weights, flops = plan.weights, [part.flops for part in plan.parts if part.tokens]
        known = [each for each in flops if each is not None]
        total = "–" if len(known) < len(flops) or not known else f"{sum(known):.2g}"
        held = "–" if weights is None else memory(weights)
        rows.append(["all", "", "", held, memory(plan.row) if plan.row else "–", "", total])
    columns = ["network", "weights", "format", "memory", "K/V a row", "tokens", "FLOPs"]
    return console.table(columns, rows, width=WIDTH)


def _stages(plan: Plan) -> str:
    """Return what every stage of a training run takes."""
    rows = [
        [
            stage.name,
            f"{stage.examples:,}",
            f"{stage.steps:,}",
            number(stage.tokens),
            "–" if stage.flops is None else f"{stage.flops:.2g}",
        ]
        for stage in plan.stages
    ]
    return console.table(["stage", "examples", "steps", "tokens", "FLOPs"], rows, width=WIDTH)


def number(count: int) -> str:
    """Return a large number as people say it: 805, 6.6M, 7.24B."""
    for unit, each in (("T", 10**12), ("B", 10**9), ("M", 10**6)):
        if count >= each:
            return f"{count / each:.3g}{unit}"
    return f"{count:,}"


def memory(count: int) -> str:
    """Return bytes as people say them."""
    from ivgcli.workflows.plan import size

    return size(count)
