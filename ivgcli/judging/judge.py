"""`ivg judge`: responses to the same responses with rewards, preferences and safety beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ivgcli.console import Narrator
from ivgcli.judging.alpaca_eval import run as run_alpaca_eval
from ivgcli.judging.pairwise import Comparison
from ivgcli.judging.safety import Assessment
from ivgcli.models.loading import Networks
from ivgcli.recipes import JudgeRecipe, run_id
from ivgcli.records import Answered, ResponseWriter
from ivgcli.statistics import mean_intervals
from ivgcli.workflows.fields import prompted, rounded
from ivgcli.workflows.generate import device_name
from ivgcli.workflows.rewards import Reward
from ivgcli.workflows.shares import portions
from ivgcli.workflows.summary import Share

BLOCK = 256
"""Responses that are scored together, those of like length in one batch, before they are written."""

ASKED = 64
"""The same where a judge is asked: its verdicts cost more than padding does."""

VERDICTS = {"pairwise": "preference", "safety": "safe"}
"""The number that each kind of verdict comes to."""


@dataclass(frozen=True)
class Mean:
    """A mean of the responses that have the number."""

    mean: float | None
    low: float | None
    high: float | None
    """Ends of its 95 % interval over responses."""
    n: int
    missing: int
    """Responses that do not have it."""


@dataclass(frozen=True)
class JudgeSummary:
    """What judging one file came to."""

    records: int
    """Judged in this run, without those that were there. All that follows is of the whole output."""
    means: dict[str, Mean]
    """By reward, and under `preference` and `safe`."""
    failures: list[tuple[str, str]]
    """(id, sentence) of each record that lacks a judgement."""
    unanswered: int
    """Records without a response, which had failed before."""
    truncated: int
    """Responses of which a reward model left out tokens."""
    usage: dict[str, float]
    """Tokens of the judges, and their cost where there is a price."""
    seconds: float
    device: str
    alpaca_eval: dict[str, Any] | None = None
    """Its win rates in percent, where they were asked for."""
    responses: Mapping[str, Any] | None = None
    """The account of the run that made the responses."""


@dataclass(frozen=True)
class Judged:
    """What one run has done."""

    records: list[Mapping[str, Any]]
    seconds: float = 0.0
    device: str = ""
    alpaca_eval: dict[str, Any] | None = None


class Judging:
    """Everything that a recipe asks of responses, loaded once for any number of files.

    Args:
        recipe: what to ask.
        progress: told what takes long.

    Raises:
        ModelError: a model cannot be had.
        RecipeError: there is no such template.
        RecordError: the responses to compare with cannot be read.
    """

    def __init__(self, recipe: JudgeRecipe, progress: Narrator | None = None) -> None:
        say = progress.say if progress is not None else lambda sentence: None
        self.recipe = recipe
        self.run = run_id(recipe)
        self.networks = Networks(recipe.engine.device, recipe.engine.dtype, say)
        self.rewards = {name: Reward(spec, self.networks) for name, spec in recipe.rewards.items()}
        self.comparison = (
            None
            if recipe.pairwise is None
            else Comparison(recipe.pairwise, self.networks, recipe.seed)
        )
        self.assessment = (
            None if recipe.safety is None else Assessment(recipe.safety, self.networks, recipe.seed)
        )

    def judge(
        self,
        answered: Sequence[Answered],
        writer: ResponseWriter,
        progress: Narrator | None = None,
        share: Share | None = None,
    ) -> Judged:
        """Judge responses, and write each with what is said of it as soon as all of that is known.

        A judgement that cannot be had is null, with the reason beside it.

        Args:
            answered: the responses.
            writer: where they go.
            progress: told how far things are.
            share: which of the responses this process is to judge; None: all.

        Raises:
            ModelError: a judge gives no verdicts at all.
            RecordError: none of the responses to compare with answers one of the prompts.
        """
        began = time.monotonic()
        wanted = [each for each in answered if (each.id, each.sample) not in writer.done]
        preferences, rates = self._alpaca_eval(answered)
        if self.comparison is not None and wanted:
            # Of all responses: those left over by a stop may have no partner, and that is for them
            # to say; and prompts that occur twice are matched in their order.
            self.comparison.meet(answered)
        size = BLOCK if self.comparison is None and self.assessment is None else ASKED
        written: list[Mapping[str, Any]] = []
        for block in portions(wanted, size, share):
            fields = self._score(block)
            for index in self._ask(block, fields):
                each = block[index]
                own = {**fields[index], **preferences.get((each.id, each.sample), {})}
                before = each.prompt.extra.get("run")
                made_by = {} if before is None else {"response_run": before}
                record = each.record({**made_by, **own, "run": self.run})
                writer.write(record)
                written.append(record)
                if progress is not None:
                    progress.advance()
        seconds = time.monotonic() - began
        return Judged(written, seconds, device_name(self.networks.device), rates)

    def _score(self, block: Sequence[Answered]) -> list[dict[str, Any]]:
        """Return the fields of each response that its rewards make, with those that it had before."""
        found = [_former(each) for each in block]
        there = [index for index, each in enumerate(block) if each.response is not None]
        prompts = [prompted(block[index].prompt) for index in there]
        texts = [str(block[index].response) for index in there]
        ended = [block[index].prompt.extra.get("finish", "eos") == "eos" for index in there]
        for name, reward in self.rewards.items():
            for each in found:
                each.setdefault("rewards", {})[name] = None
                each.setdefault("reward_errors", {})[name] = "there is no response"
                each.get("truncated", {}).pop(name, None)
            for index, scored in zip(there, reward.score_many(prompts, texts, ended), strict=True):
                each = found[index]
                each["rewards"][name] = rounded(scored.reward)
                if scored.error is None:
                    del each["reward_errors"][name]
                else:
                    each["reward_errors"][name] = scored.error
                if scored.left_out:
                    each.setdefault("truncated", {})[name] = scored.left_out
        for each in found:
            for name in ("truncated", "reward_errors"):
                if not each.get(name):
                    each.pop(name, None)
        return found

    def _ask(self, block: Sequence[Answered], fields: Sequence[dict[str, Any]]) -> Iterator[int]:
        """Add each judge's verdicts, and yield the place of every response that has all of them."""
        kinds = {"pairwise": self.comparison, "safety": self.assessment}
        asked = [(name, judge) for name, judge in kinds.items() if judge is not None]
        if not asked:
            yield from range(len(block))
        for name, judge in asked:
            for index, verdict in judge.verdicts(block):
                fields[index][name] = verdict
                if name == asked[-1][0]:
                    yield index

    def _alpaca_eval(
        self, answered: Sequence[Answered]
    ) -> tuple[dict[tuple[str, int], dict[str, Any]], dict[str, Any] | None]:
        """Return AlpacaEval's preference for each response, and its win rates; nothing if not asked."""
        spec = self.recipe.alpaca_eval
        if spec is None:
            return {}, None
        rates, preferences = run_alpaca_eval(spec, [each.record({}) for each in answered])
        if rates is None:
            return {}, None
        told = {
            "against": spec.reference or spec.folder,
            "judge": spec.annotator or "annotations",
            "template": "alpaca-eval",
        }
        fields = {}
        for each, preference in zip(answered, preferences, strict=True):
            reason = None if preference is not None else "there is no annotation with a preference"
            verdict = {**told, "preference": rounded(preference), "reason": reason}
            fields[each.id, each.sample] = {"pairwise": verdict}
        return fields, {**rates.to_columns(), "note": rates.note, "annotator": rates.annotator}


def summarise(
    judged: Judged,
    output: Sequence[Mapping[str, Any]] | None,
    responses: Mapping[str, Any] | None,
) -> JudgeSummary:
    """Return what judging came to.

    Args:
        judged: what this run has done.
        output: all records of the output; None if there are only those that this run has written.
        responses: the account of the run that made the responses.
    """
    numbers: dict[str, list[float | None]] = {}
    usage: dict[str, float] = {}
    failures, unanswered, truncated = [], 0, 0
    for record in judged.records if output is None else output:
        if record.get("response") is None:
            unanswered += 1
            continue
        for name, reward in record.get("rewards", {}).items():
            numbers.setdefault(name, []).append(reward)
        reasons = list(record.get("reward_errors", {}).values())
        for kind, number in VERDICTS.items():
            verdict = record.get(kind)
            if verdict is None:
                continue
            numbers.setdefault(number, []).append(verdict[number])
            if verdict[number] is None:
                reasons.append(verdict.get("reason") or "no verdict")
            for unit, count in (verdict.get("usage") or {}).items():
                usage[unit] = usage.get(unit, 0) + count
        truncated += bool(record.get("truncated"))
        failures += [(record["id"], reason) for reason in reasons[:1]]
    means = {name: mean_of(each) for name, each in numbers.items()}
    return JudgeSummary(
        len(judged.records),
        means,
        failures,
        unanswered,
        truncated,
        usage,
        judged.seconds,
        judged.device,
        judged.alpaca_eval,
        responses,
    )


def mean_of(numbers: Sequence[float | None]) -> Mean:
    """Return the mean of the numbers that are there, with its interval by resampling them."""
    there = [number for number in numbers if number is not None]
    missing = len(numbers) - len(there)
    if not there:
        return Mean(None, None, None, 0, missing)
    [interval] = mean_intervals([there])
    low, high = (None, None) if interval is None else map(rounded, interval)
    return Mean(rounded(fmean(there)), low, high, len(there), missing)


def lacking(record: Mapping[str, Any]) -> bool:
    """Return whether a judged record lacks a judgement that another attempt may bring."""
    if record.get("reward_errors"):
        return True
    verdicts = [(record.get(kind), number) for kind, number in VERDICTS.items()]
    return any(verdict is not None and verdict[number] is None for verdict, number in verdicts)


def _former(answered: Answered) -> dict[str, Any]:
    """Return a copy of what an earlier judging has added to a response."""
    found = {}
    for name in ("rewards", "truncated", "reward_errors"):
        there = answered.prompt.extra.get(name)
        if isinstance(there, Mapping):
            found[name] = dict(there)
    return found
