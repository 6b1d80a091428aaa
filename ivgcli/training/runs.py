"""The two training commands from end to end: records in, a guide folder and a report out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ivgcli import __version__
from ivgcli.recipes import to_guide
from ivgcli.records import Pair
from ivgcli.training import implicit
from ivgcli.training.selection import EncodedPair, Selection, encode_pairs
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
    began = time.monotonic()
    recipe: Any = setting.recipe
    start = Start(recipe.init, setting.say)
    chosen = selected(setting, start, pairs, "trained on", cutting=True)
    kept = selected(setting, start, held_out, "held out", cutting=True)
    account = described(setting, chosen, kept)
    account["stages"] = implicit.train_pair(setting, start, chosen.pairs)
    lines = _measure_implicit(setting, start, kept.pairs)
    tuned = start.described(implicit.TUNED)
    reference = start.described(
        implicit.REFERENCE if setting.folder.has(implicit.REFERENCE) else start.spec.model
    )
    guide = {
        "name": recipe.name or setting.folder.path.resolve().name,
        "description": f"{start.spec.model}, tuned on {len(chosen.pairs):,} pairs",
        "implicit": {"tuned": tuned, "reference": reference},
    }
    return finished(setting, guide, lines, account, time.monotonic() - began)


def selected(
    setting: Setting, start: Start, pairs: Sequence[Pair], role: str, cutting: bool
) -> Selection:
    """Return pairs in tokens, having told what was left out of them."""
    if not pairs:
        return Selection([])
    found = encode_pairs(pairs, Encoder(start.form), setting.recipe.data.max_length, cutting)
    reasons = [f"{count:,} left out ({why})" for why, count in found.left_out.items()]
    if found.cut:
        reasons.append(f"{found.cut:,} cut at {setting.recipe.data.max_length} tokens")
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
    folder.account({**account, "seconds": round(seconds, 1)})
    folder.finish(to_guide(guide))
    setting.processes.wait()
    return Outcome(lines, seconds)


def _measure_implicit(
    setting: Setting, start: Start, pairs: Sequence[EncodedPair]
) -> list[dict[str, Any]]:
    return []
