"""Is the value any good? What both training commands measure at their end, on what was held out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ivgcli import figures
from ivgcli.recipes import ExplicitSpec, Guide, ImplicitSpec, InitSpec
from ivgcli.recipes.training import Head
from ivgcli.records import Pair
from ivgcli.training import measures
from ivgcli.training.answers import Answer, encode
from ivgcli.training.foresight import longest
from ivgcli.training.measures import Pairs, Valued
from ivgcli.training.reading import AT_ONCE, explicit_values, implicit_values
from ivgcli.training.scorer import as_scorer
from ivgcli.training.selection import cut
from ivgcli.training.sequences import Encoder, Example
from ivgcli.training.stages import Setting
from ivgcli.training.start import Start

Line = dict[str, Any]

REWARD_FIELDS = (
    ("chosen_reward", "rejected_reward"),
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
)
"""Fields in which pairs may carry the rewards of their responses: ours, UltraFeedback's, ratings."""


def recorded_rewards(pairs: Sequence[Pair]) -> list[float | None]:
    """Return the rewards that the records of pairs carry, in the order of `answers_of`; None where they carry none."""
    found: list[float | None] = []
    for pair in pairs:
        extra = pair.prompt.extra
        fields = next((both for both in REWARD_FIELDS if set(both) <= set(extra)), None)
        for name in fields or ("", ""):
            number = extra.get(name)
            real = isinstance(number, (int, float)) and not isinstance(number, bool)
            found.append(float(number) if real else None)  # type: ignore[arg-type]
    return found


def paired(values: Sequence[Any], rewards: Sequence[float | None]) -> Pairs:
    """Return values and rewards, chosen and rejected in turn, as pairs."""
    valued = [Valued(value, reward) for value, reward in zip(values, rewards, strict=True)]
    return Pairs(valued[::2], valued[1::2])


class Reading:
    """Reads the values of held-out responses, with a progress bar.

    Args:
        setting: recipe and folder.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def implicit(self, pair: tuple[Any, Any], encoder: Encoder, answers: Sequence[Answer]) -> Any:
        """Return the implicit value of every prefix of every answer."""
        with self.setting.progress("reading values", len(answers), 0, "responses") as bar:
            return implicit_values(
                *pair, self._tokens(answers, encoder, pair[0]), AT_ONCE, bar.advance
            )

    def explicit(
        self, model: Any, head: Any, link: Any, encoder: Encoder, answers: Sequence[Answer]
    ) -> Any:
        """Return the explicit value of every prefix of every answer."""
        with self.setting.progress("reading values", len(answers), 0, "responses") as bar:
            return explicit_values(
                model, head, self._tokens(answers, encoder, model), AT_ONCE, link, bar.advance
            )

    def _tokens(self, answers: Sequence[Answer], encoder: Encoder, model: Any) -> list[Example]:
        """Return answers in a network's tokens, as far as training would have read them."""
        most = longest(model.config, self.setting.recipe.data.max_length) or sys.maxsize
        return [cut(each, most) for each in encode(answers, encoder)]

    def other_explicit(self, guide: Guide | None, answers: Sequence[Answer]) -> Any:
        """Return the values of another guide's explicit value; None if it has none that reads tokens."""
        spec = _only(guide.explicit if guide else (), self.setting)
        if not isinstance(spec, ExplicitSpec) or spec.model is None:
            return None
        start = Start(InitSpec(**spec.model.model_dump()), self.setting.say, classifier=True)
        known = start.config.architectures or []
        whole = any("SequenceClassification" in name for name in known)
        if start.reference.adapter is not None or not whole:
            # Its head would be missing, and all its values 0.
            self.setting.say(f"{spec.model.model} is no whole classifier: it is not compared")
            return None
        width = int(start.config.num_labels)
        head: Head = "scalar" if width == 1 else "token-q"
        scorer = as_scorer(start.plain.source, head, width, **start.options)
        model = scorer.model.eval().to(self.setting.device)
        return self.explicit(model, head, spec.link, Encoder(start.form), answers)

    def other_implicit(self, guide: Guide | None, answers: Sequence[Answer]) -> Any:
        """Return the values of another guide's implicit value; None if it is not a pair of models."""
        spec = _only(guide.implicit if guide else (), self.setting)
        if not isinstance(spec, ImplicitSpec) or spec.tuned is None or spec.reference is None:
            return None
        pair = [
            Start(InitSpec(**each.model_dump()), self.setting.say)
            for each in (spec.tuned, spec.reference)
        ]
        models = [each.load().eval().to(self.setting.device) for each in pair]
        return self.implicit((models[0], models[1]), Encoder(pair[0].form), answers)


def _only(specs: Sequence[Any], setting: Setting) -> Any:
    """Return the one value of a kind that a guide has; of several, none."""
    if len(specs) > 1:
        setting.say("the other guide has several values of a kind: they are not compared")
    return specs[0] if len(specs) == 1 else None


def implicit_lines(
    setting: Setting,
    pair: tuple[Any, Any],
    encoder: Encoder,
    answers: Sequence[Answer],
    rewards: Sequence[float | None],
    beta: float,
) -> list[Line]:
    """Return the measures of an implicit value on held-out pairs.

    Args:
        setting: recipe and folder; the recipe's guide may hold an explicit value to compare with.
        pair: tuned and reference model.
        encoder: how they read.
        answers: chosen and rejected responses in turn.
        rewards: of the answers, where they are known.
        beta: β of the preference optimisation.
    """
    reading = Reading(setting)
    own = paired(reading.implicit(pair, encoder, answers), rewards)
    lines = measures.pairwise_accuracy("implicit", own) + measures.correlation("implicit", own)
    lines += measures.reward_margin(own, beta)
    other = reading.other_explicit(setting.recipe.guide, answers)
    if other is not None:
        theirs = paired(other, rewards)
        lines += measures.pairwise_accuracy("explicit", theirs) + measures.agreement(own, theirs)
    return lines


def explicit_lines(
    setting: Setting,
    model: Any,
    head: Any,
    link: Any,
    encoder: Encoder,
    answers: Sequence[Answer],
    rollouts: Sequence[Answer],
) -> list[Line]:
    """Return the measures of an explicit value on held-out pairs and rollouts.

    Args:
        setting: recipe and folder; the recipe's guide may hold an implicit value to compare with.
        model: the value's network.
        head: what its outputs are.
        link: what is done to them.
        encoder: how it reads.
        answers: chosen and rejected responses in turn, rewarded.
        rollouts: rewarded responses to compare values with; without any, the answers.
    """
    reading = Reading(setting)
    lines: list[Line] = []
    values: Sequence[Any] = ()
    if answers:
        rewards = [each.reward for each in answers]
        values = reading.explicit(model, head, link, encoder, answers)
        own = paired(values, rewards)
        lines += measures.pairwise_accuracy("explicit", own) + measures.correlation("explicit", own)
        other = reading.other_implicit(setting.recipe.guide, answers)
        if other is not None:
            theirs = paired(other, rewards)
            lines += measures.pairwise_accuracy("implicit", theirs)
            lines += measures.correlation("implicit", theirs) + measures.agreement(theirs, own)
    # A log-probability is neither a reward nor the mean of what follows it.
    if link != "identity":
        return lines
    if rollouts:
        values = reading.explicit(model, head, link, encoder, rollouts)
    drawn = rollouts or answers
    returns = [Valued(value, each.reward) for value, each in zip(values, drawn, strict=True)]
    first = 0 if head == "scalar" else 1
    return lines + measures.td_residual(returns, first) + measures.calibration(returns)


def draw_figure(setting: Setting, lines: Sequence[Line]) -> list[Path]:
    """Draw the report beside the guide, where matplotlib is installed."""
    if not setting.processes.first:
        return []
    if not figures.available():
        setting.say("no figure: pip install 'ivgcli[plots]'")
        return []
    log = [line for line in setting.folder.lines() if line["stage"] != "report"]
    return figures.report_figure(lines, log, setting.folder.path / "report")
