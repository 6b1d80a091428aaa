"""`--dry-run`: what a decoding command would load, keep in memory and compute, without doing it.

Tokens and operations are upper bounds: every response is taken to run to `max_new_tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ivgcli.errors import ModelError
from ivgcli.models.memory import free_memory
from ivgcli.recipes import (
    MODES,
    BonRecipe,
    EngineSpec,
    GenerateRecipe,
    RewardSpec,
    SamplingSpec,
    SynthesizeRecipe,
)
from ivgcli.workflows.capacity import fitting_rows, row_bytes
from ivgcli.workflows.cast import Cast, Part, cached_bytes
from ivgcli.workflows.placement import Need
from ivgcli.workflows.reckoning import Course, course_of
from ivgcli.workflows.survey import Asked, Survey


@dataclass(frozen=True)
class Stage:
    """One stage of a training run."""

    name: str
    examples: int
    """Pairs, or responses where there are no pairs."""
    steps: int
    tokens: int
    """Tokens that the trained network reads over all epochs, at most."""
    flops: int | None
    """Forward and backward, at most; None: not known."""


@dataclass(frozen=True)
class Plan:
    """What a command would do."""

    title: str
    lines: tuple[str, ...]
    """What it would work on, where."""
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    writes: tuple[str, ...] = ()
    foot: str = "At most: every response at its full length, 2 FLOPs for each weight and token."
    """What tokens and operations mean."""
    refusal: ModelError | None = None
    """Why it cannot be carried out here."""

    @property
    def weights(self) -> int | None:
        """Bytes of all weights; None if those of one network are not known."""
        known = [part.weights for part in self.parts if part.found is not None]
        return None if None in known else sum(each or 0 for each in known)

    @property
    def row(self) -> int:
        """Bytes of the keys and values of one row at its longest, as far as they are known."""
        return sum(part.row or 0 for part in self.parts)


def plan_generate(recipe: GenerateRecipe, asked: Asked) -> Plan:
    """Return what `ivg generate` would do."""
    survey = Survey(recipe.engine)
    cast = cast_of(recipe, asked, survey, recipe.sampling.samples)
    each = counted(recipe.sampling.samples, "response")
    return _decoding(f"generate, mode {recipe.mode}", recipe, asked, survey, cast, each)


def plan_bon(recipe: BonRecipe, asked: Asked) -> Plan:
    """Return what `ivg bon` would do."""
    survey = Survey(recipe.engine)
    sampling, count = recipe.sampling, recipe.sampling.samples
    limit = sampling.max_new_tokens
    searches = count * recipe.best_of
    cast = Cast(survey, asked, recipe.base, Course(), searches, limit, recipe.vocabulary)
    if recipe.by == "implicit" and recipe.guide is not None:
        cast.add_implicit(recipe.guide.implicit, guides=False)
    elif recipe.by == "explicit" and recipe.guide is not None:
        cast.add_explicit(recipe.guide.explicit, guides=False, ranks=True)
    elif recipe.reward is not None:
        cast.add_explicit([recipe.reward], guides=False, ranks=True)
    each = f"{counted(count, 'response')} (the best of {recipe.best_of})"
    return _decoding(f"bon, by {recipe.by}", recipe, asked, survey, cast, each)


def plan_synthesize(recipe: SynthesizeRecipe, asked: Asked) -> Plan:
    """Return what `ivg synthesize` would do; under `relabel`, both responses of a pair are asked about."""
    survey = Survey(recipe.engine)
    if recipe.base is None or recipe.relabel:
        part = reader(survey, "reward", recipe.reward, asked, 0)
        lines = (f"{spoken(asked)}, of which both responses are scored", where(survey))
        return Plan("synthesize, pairs labelled anew", lines, (part,), unknown(asked))
    cast = cast_of(recipe, asked, survey, recipe.responses)
    each = f"{recipe.responses} responses"
    title = f"synthesize, {recipe.pairs} pairs, labels by {recipe.label}"
    limit = recipe.sampling.max_new_tokens
    reward = reader(survey, "reward", recipe.reward, asked, limit, recipe.responses)
    return _decoding(title, recipe, asked, survey, cast, each, (reward,))


def cast_of(recipe: GenerateRecipe, asked: Asked, survey: Survey, searches: int) -> Cast:
    """Return the networks of a mode."""
    guides, ranks = MODES[recipe.mode]
    limit, course = recipe.sampling.max_new_tokens, course_of(recipe)
    cast = Cast(survey, asked, recipe.base, course, searches, limit, recipe.vocabulary)
    if recipe.guide is not None and "implicit" in (guides, ranks):
        cast.add_implicit(recipe.guide.implicit, guides == "implicit")
    if recipe.guide is not None and "explicit" in (guides, ranks):
        values = recipe.guide.explicit
        cast.add_explicit(values, guides == "explicit", ranks == "explicit")
    return cast


def reader(
    survey: Survey, role: str, spec: RewardSpec, asked: Asked, limit: int, each: int = 1
) -> Part:
    """Return the part of a reward of whole responses.

    Args:
        survey: looks models up.
        role: what to call it.
        spec: the reward.
        asked: prompts, or prompts with their responses.
        limit: longest response, where they are prompts alone.
        each: responses to each.
    """
    if spec.model is None:
        return Part(role, str(spec.callable))
    found = survey.find(spec.model, "classifier")
    lengths = survey.lengths(spec.model, asked)
    context = None if found.size is None else found.size.context
    rows = [length + limit for length in lengths or [0] * asked.count]
    tokens = each * sum(row if context is None else min(row, context) for row in rows)
    known = tokens if lengths is not None or limit else None
    form, weights = survey.format_of(spec.model), survey.weight_bytes(spec.model, found)
    return Part(role, spec.model.model, found, form, weights, None, known)


def _decoding(
    title: str,
    recipe: GenerateRecipe | BonRecipe,
    asked: Asked,
    survey: Survey,
    cast: Cast,
    each: str,
    more: Sequence[Part] = (),
) -> Plan:
    """Return the plan of a decoding run."""
    sampling: SamplingSpec = recipe.sampling
    lines = [
        f"{spoken(asked)}, {each} each, at most {counted(sampling.max_new_tokens, 'token')}",
        where(survey),
    ]
    plan = Plan(title, (), (*cast.parts(), *more))
    rows, memory = rows_line(recipe.engine, survey, cast, plan)
    lines += [rows]
    notes = [*unknown(asked), *cast.notes, *memory]
    refusal = unfitting(cast, survey, plan)
    if refusal is not None and survey.device.type == "cpu":
        # Whoever plans on a machine without a GPU mostly plans for another.
        notes.append(f"{refusal.what} → {refusal.hint}")
        refusal = None
    return Plan(title, tuple(lines), plan.parts, tuple(notes), refusal=refusal)


def unfitting(cast: Cast, survey: Survey, plan: Plan) -> ModelError | None:
    """Return what speaks against a plan: weights that memory does not hold; None: they fit, or nobody knows."""
    if plan.weights is None or not survey.device_is_here:
        return None
    free = free_memory(survey.device)
    if plan.weights <= free:
        return None
    base = plan.parts[0]
    if survey.device.type == "cpu" or base.found is None or base.found.size is None:
        what = f"the weights take {size(plan.weights)}, and {size(free)} are free"
        return ModelError(base.name, what, "smaller networks, or a machine with more memory")
    own, spec = base.weights or 0, cast.base
    four = spec.model_copy(update={"quantization": "4bit"})
    small = None if spec.quantization else survey.weight_bytes(four, base.found)
    rows = cast.course.rows
    need = Need(
        own * base.shards,
        plan.weights - own,
        base.found.size.kv_heads if spec.quantization is None else 1,
        small,
        rows * (base.row or 0) * base.shards,
        rows * (plan.row - (base.row or 0)),
    )
    what = f"the weights take {size(plan.weights)} a GPU, and {size(free)} are free there"
    return ModelError(base.name, what, need.what_would_fit(free))


def rows_line(
    engine: EngineSpec, survey: Survey, cast: Cast, plan: Plan
) -> tuple[str, tuple[str, ...]]:
    """Return how many rows would decode at once and what that keeps in memory, and what is amiss with it."""
    need = cast.course.rows
    wanted, weights = engine.rows, plan.weights
    free = free_memory(survey.device) if survey.device_is_here else None
    notes = []
    if wanted is not None and wanted < need:
        notes.append(f"one search decodes {need} sequences, but rows is {wanted}: --rows {need}")
    rows = wanted
    if rows is None and free is not None and weights is not None:
        length = cast.longest() + cast.limit
        kept = [(member.part, member.table) for member in cast.members if member.kept]
        per_row = sum(
            row_bytes(cached_bytes(part), each.outputs, length) + table
            for part, table in kept
            for each in [part.found.size if part.found else None]
            if each is not None
        )
        rows = fitting_rows(max(0, free - weights), per_row, survey.device.type, need)
        rows = min(rows, max(1, cast.asked.count * cast.searches) * need)
    if rows is None:
        line = f"rows: as many as memory holds, {counted(need, 'row')} at least"
        return f"{line}; each keeps {size(plan.row)}", tuple(notes)
    return f"{counted(rows, 'row')} at once keep {size(rows * plan.row)} at most", tuple(notes)


def among_workers(plan: Plan, count: int, gpus: bool, shards: int = 1) -> Plan:
    """Return a plan as several workers would carry it out.

    Args:
        plan: of one process.
        count: workers.
        gpus: whether each has GPUs of its own; else they share the CPU.
        shards: GPUs of each worker.
    """
    if shards > 1:
        return _among_groups(plan, count, gpus, shards)
    weights = "all weights" if plan.weights is None else f"all weights, {size(plan.weights)}"
    place = "each on a GPU of its own" if gpus else "all on this CPU"
    told = f"{count} workers, {place}; each loads {weights}"
    counts = "rows and memory are those of one worker, tokens and FLOPs of all together"
    return replace(plan, lines=(*plan.lines, told, counts))


def _among_groups(plan: Plan, count: int, gpus: bool, shards: int) -> Plan:
    """Return a plan as workers of several processes each would carry it out."""
    held = "" if plan.weights is None else f": {size(plan.weights)} of weights on each"
    place = f"{shards} {'GPUs' if gpus else 'processes of this CPU'}"
    told = f"{counted(count, 'worker')} of {place}{held}"
    why = (
        "the base is divided by tensor parallelism, a part of every matrix and whole heads on each; "
        "the other networks are whole on each, as they fit there and then need no exchange"
    )
    counts = "memory is that of one GPU, rows are those of one worker, tokens and FLOPs of all"
    return replace(plan, lines=(*plan.lines, told, why, counts))


def where(survey: Survey) -> str:
    """Return where all networks would run."""
    if not survey.device_is_here:
        return f"on {survey.device}, which is not on this machine"
    return f"on {survey.device}, {size(free_memory(survey.device))} free"


def spoken(asked: Asked) -> str:
    """Return what is worked on, as the beginning of a sentence."""
    if asked.number is None:
        return f"for one of the {asked.things} of {asked.place}"
    return f"{counted(asked.number, asked.things.removesuffix('s'))} of {asked.place}"


def unknown(asked: Asked, tokens: str = "their own tokens are not counted") -> tuple[str, ...]:
    """Return what is to be said where the prompts are not here, and so of their tokens."""
    if asked.questions is not None:
        return ()
    number = "their number is not known" if asked.number is None else asked.told_by
    return (f"not here: {asked.place} ({number}; {tokens})",)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(count: float) -> str:
    """Return bytes as people say them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.3g} TiB" if count < 1000 else f"{count:,.0f} TiB"
