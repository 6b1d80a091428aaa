"""The two training commands from end to end: records in, a guide folder and a report out."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from ivgcli import __version__
from ivgcli.recipes import to_guide
from ivgcli.records import Pair, Prompt
from ivgcli.training import report, tables
from ivgcli.training.answers import Answer, answers_of, distinct
from ivgcli.training.explicit import VALUE, Explicit
from ivgcli.training.foresight import longest
from ivgcli.training.selection import Selection, encode_pairs
from ivgcli.training.sequences import Encoder
from ivgcli.training.stages import Setting
from ivgcli.training.start import Start
from ivgcli.workflows.generate import device_name


@dataclass(frozen=True)
class Outcome:
    """What a training run came to."""

    lines: list[dict[str, Any]]
    """The report's measures."""
    seconds: float
    table: str = ""
    """The report, to be shown."""


def train_implicit(setting: Setting, pairs: Sequence[Pair], held_out: Sequence[Pair]) -> Outcome:
    """Train a reference and a tuned model on pairs, and measure the value on held-out ones.

    Raises:
        IvgError: as the stages say.
    """
    from ivgcli.training import implicit  # TRL takes seconds, and values do without it

    began = time.monotonic()
    recipe: Any = setting.recipe
    start = Start(recipe.init, setting.say)
    chosen = selected(setting, start, pairs, "trained on", cutting=True)
    kept = selected(setting, start, held_out, "held out", cutting=True)
    account = described(setting, chosen, kept)
    account["stages"] = implicit.train_pair(setting, start, chosen.pairs)
    measuring = setting.processes.first and kept.records  # the others wait at the end
    models = implicit.load_pair(setting, start) if measuring else None
    lines = _measure_implicit(setting, start, models, kept.records)
    tuned = start.described(implicit.TUNED)
    reference = start.described(
        implicit.REFERENCE if setting.folder.has(implicit.REFERENCE) else start.place
    )
    guide = {
        "name": recipe.name or setting.folder.path.resolve().name,
        "description": f"{start.spec.model}, tuned on {len(chosen.pairs):,} pairs",
        "implicit": {"tuned": tuned, "reference": reference},
    }
    return finished(setting, guide, lines, account, time.monotonic() - began)


def _measure_implicit(
    setting: Setting, start: Start, models: tuple[Any, Any] | None, pairs: Sequence[Pair]
) -> list[dict[str, Any]]:
    """Return the measures of tuned and reference model on held-out pairs."""
    if models is None:
        return []
    recipe: Any = setting.recipe
    return report.implicit_lines(
        setting,
        models,
        Encoder(start.form),
        answers_of(pairs),
        report.recorded_rewards(pairs),
        recipe.preference.beta,
    )


def selected(
    setting: Setting, start: Start, pairs: Sequence[Pair], role: str, cutting: bool
) -> Selection:
    """Return pairs in tokens, having told what was left out of them."""
    if not pairs:
        return Selection([])
    most = longest(start.config, setting.recipe.data.max_length) or sys.maxsize
    found = encode_pairs(pairs, Encoder(start.form), most, cutting)
    reasons = [f"{count:,} left out ({why})" for why, count in found.left_out.items()]
    if found.cut:
        reasons.append(f"{found.cut:,} cut at {most} tokens")
    setting.say(", ".join([f"{len(found.pairs):,} pairs {role}", *reasons]))
    return found


def described(setting: Setting, chosen: Selection, kept: Selection) -> dict[str, Any]:
    """Return what run.json says of a run before it has come to anything."""
    libraries = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
    return {
        "pairs": len(chosen.pairs),
        "held_out": len(kept.pairs),
        "left_out": dict(chosen.left_out),
        "cut": chosen.cut,
        "device": device_name(setting.device),
        "processes": setting.processes.count,
        "versions": {"ivgcli": __version__, **{name: version(name) for name in libraries}},
    }


def finished(
    setting: Setting,
    guide: Mapping[str, Any],
    lines: list[dict[str, Any]],
    account: Mapping[str, Any],
    seconds: float,
) -> Outcome:
    """Write the report, the account and, last of all, the guide."""
    folder = setting.folder
    folder.forget("report")
    for line in lines:
        folder.log("report", line)
    for path in report.draw_figure(setting, lines):
        setting.say(f"figure: {path}")
    folder.account({**account, "seconds": round(seconds, 1)})
    folder.finish(to_guide(guide))
    setting.processes.wait()
    shown = [tables.table(lines), tables.headline(lines)]
    return Outcome(lines, seconds, "\n\n".join(part for part in shown if part))


def train_explicit(setting: Setting, given: Sequence[Any], held_out: Sequence[Any]) -> Outcome:
    """Train a reward model, if none is given, and a value, and measure it on what was held out.

    Args:
        setting: recipe and folder.
        given: pairs, or prompts where responses are drawn and the reward is given.
        held_out: pairs or prompts, whichever was given.

    Raises:
        IvgError: as the stages say.
    """
    began = time.monotonic()
    recipe: Any = setting.recipe
    start = Start(recipe.init, setting.say)
    stages = Explicit(setting, start)
    learns = recipe.reward is None or recipe.value.responses == "given"
    chosen = selected(setting, start, _pairs(given) if learns else (), "trained on", cutting=False)
    kept = selected(setting, start, _pairs(held_out), "held out", cutting=False)
    account = described(setting, chosen, kept)
    if recipe.reward is None:
        stages.train_reward_model(chosen.pairs)
    answers: list[Answer] = []
    if recipe.value.responses == "given" and not setting.folder.has(VALUE):
        answers = stages.reward(distinct(answers_of(chosen.records)))
    prompts = _prompts(given)
    stages.train_value(answers, prompts)
    rollouts = stages.draw_held_out(_prompts(held_out)) if recipe.rollouts else []
    lines = _measure_explicit(stages, kept.records, rollouts) if setting.processes.first else []
    account["stages"] = stages.came_to
    account["prompts"] = len(prompts)
    entry: dict[str, Any] = {"model": start.described(VALUE), "head": recipe.value.head}
    if stages.link != "identity":
        entry["link"] = stages.link
    guide = {
        "name": recipe.name or setting.folder.path.resolve().name,
        "description": f"{start.spec.model} as a value, by {recipe.value.target}",
        "explicit": entry,
    }
    return finished(setting, guide, lines, account, time.monotonic() - began)


def _measure_explicit(
    stages: Explicit, pairs: Sequence[Pair], rollouts: Sequence[Answer]
) -> list[dict[str, Any]]:
    """Return the measures of the value on held-out pairs, or on responses that were drawn."""
    judged = stages.reward(answers_of(pairs))
    return report.explicit_lines(
        stages.setting,
        stages.load(VALUE),
        stages.recipe.value.head,
        stages.link,
        stages.encoder,
        judged or best_and_worst(rollouts),
        rollouts,
    )


def _pairs(records: Sequence[Any]) -> list[Pair]:
    """Return the pairs among pairs or prompts."""
    return [record for record in records if isinstance(record, Pair)]


def _prompts(records: Sequence[Any]) -> list[Prompt]:
    """Return the distinct prompts of pairs or prompts, without what else their records hold."""
    found: dict[str, Prompt] = {}
    for record in records:
        prompt = record.prompt if isinstance(record, Pair) else record
        found.setdefault(repr((prompt.text, prompt.messages)), replace(prompt, extra={}))
    return list(found.values())


def best_and_worst(answers: Sequence[Answer]) -> list[Answer]:
    """Return for each prompt its best and its worst response in turn, where their rewards differ."""
    by_prompt: dict[str, list[Answer]] = {}
    for each in answers:
        by_prompt.setdefault(each.prompt.id, []).append(each)
    found = []
    for those in by_prompt.values():
        ranked = sorted(those, key=lambda each: float(each.reward or 0.0))
        if ranked[-1].reward != ranked[0].reward:
            found += [ranked[-1], ranked[0]]
    return found
