"""The report of a training run as text: what it comes to in a sentence, and all of it in small tables."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

from ivgcli.console import table as drawn
from ivgcli.training.measures import FRACTIONS, Kind, Line

ALONG = {
    "pairwise_accuracy": "chosen above rejected, share of pairs",
    "agreement": "implicit and explicit order pairs alike",
    "reward_spearman": "rank correlation with the reward",
    "difference_spearman": "rank correlation of pair differences",
}
"""Measures along the response, in the order of their rows; metrics.jsonl has linear correlations, too."""

SINGLE = {
    "reward_margin": "reward margin, implicit",
    "reward_accuracy": "reward accuracy, implicit",
    "calibration_slope": "calibration slope (ideal 1)",
    "calibration_intercept": "calibration offset (ideal 0)",
    "calibration_error": "expected calibration error",
    "td_step_mean": "TD step, mean (ideal 0)",
    "td_step_rms": "TD step, root mean square",
    "td_end_mean": "TD end, mean (ideal 0)",
    "td_end_rms": "TD end, root mean square",
}
"""Measures that are one number."""

LEGEND = (
    ("reward_", "reward: β (log π_tuned − log π_reference) of whole responses"),
    ("calibration_", "calibration: returns of rollouts against the values of their prefixes"),
    ("td_", "TD: V(t+1) − V(t) inside a response, reward − V(n) at its end"),
)

KINDS: tuple[Kind, ...] = ("explicit", "implicit")
GAP = "–"
"""What stands for a number that is not defined."""


def table(lines: Sequence[Line]) -> str:
    """Return the lines of a report as tables of at most 80 columns, a caption above each.

    Args:
        lines: of `ivgcli.training.measures`; others are passed over, and a table without lines is
            left out.
    """
    parts = [_along(lines), _single(lines)]
    return "\n\n".join(part for part in parts if part)


def headline(lines: Sequence[Line]) -> str:
    """Return what a reader wants to know first, one sentence for each kind of value; "" without pairs."""
    found = {(each.get("measure"), each.get("kind"), each.get("fraction")): each for each in lines}
    sentences = []
    for kind in KINDS:
        whole = found.get(("pairwise_accuracy", kind, 1.0))
        half = found.get(("pairwise_accuracy", kind, 0.5))
        if whole is None or half is None:
            continue
        words = (
            f"{kind} value: ranks chosen above rejected on {100 * whole['value']:.0f} % of"
            f" {whole['n']:,} held-out pairs, on {100 * half['value']:.0f} % after half of each"
        )
        reward = found.get(("reward_spearman", kind, 1.0))
        if reward is not None and reward["value"] is not None:
            words += f"; rank correlation with the reward {_fixed(reward['value'])}"
        sentences.append(words)
    return "\n".join(sentences)


def _along(lines: Sequence[Line]) -> str:
    """Return the table of everything that is measured along the response, with its half intervals."""
    found: dict[tuple[str, str], dict[float, Line]] = {}
    for each in lines:
        if each.get("measure") in ALONG:
            place = found.setdefault((each["measure"], each["kind"]), {})
            place[each["fraction"]] = each
    rows: list[list[str]] = []
    for measure, words in ALONG.items():
        kinds = [kind for kind in (*KINDS, "both") if (measure, kind) in found]
        if kinds and kinds != ["both"]:
            rows.append([words] + [""] * len(FRACTIONS))
        for kind in kinds:
            name = words if kind == "both" else f"  {kind}"
            along = [found[measure, kind].get(fraction) for fraction in FRACTIONS]
            rows.append([name, *(GAP if each is None else _fixed(each["value"]) for each in along)])
            rows.append(["", *("" if each is None else _half(each) for each in along)])
    if not rows:
        return ""
    columns = ["share of the response seen", *(f"{100 * share:.0f} %" for share in FRACTIONS)]
    caption = f"Held out: {_counts(lines, ALONG)}; ± half a 95 % interval"
    return f"{caption}\n\n{drawn(columns, rows)}"


def _single(lines: Sequence[Line]) -> str:
    """Return the table of everything that is one number, with its interval."""
    known = {each["measure"]: each for each in lines if each.get("measure") in SINGLE}
    rows = []
    for measure, words in SINGLE.items():
        if measure not in known:
            continue
        each = known[measure]
        digits = _digits(each["value"], each["low"], each["high"])
        ends = [_fixed(each[end], digits) for end in ("low", "high")]
        interval = GAP if each["low"] is None else " … ".join(ends)
        number = _fixed(each["value"], digits)
        rows.append([words, number, interval, f"{each['n']:,} {each['unit']}"])
    if not rows:
        return ""
    caption = [words for head, words in LEGEND if any(name.startswith(head) for name in known)]
    return "\n".join([*caption, "", drawn(["", "value", "95 %", "n"], rows)])


def _counts(lines: Sequence[Line], measures: Container[str]) -> str:
    """Return how many of what the lines are about: `600 pairs, 1,200 responses`."""
    counts: dict[tuple[str, int], None] = {}
    for each in lines:
        if each.get("measure") in measures:
            counts[each["unit"], each["n"]] = None
    return ", ".join(f"{n:,} {unit}" for unit, n in counts)


def _digits(*numbers: float | None) -> int:
    """Return how many decimals give the largest of some numbers three significant digits."""
    largest = max((abs(number) for number in numbers if number), default=1.0)
    return min(8, max(0, 2 - math.floor(math.log10(largest))))


def _fixed(number: float | None, digits: int = 2) -> str:
    """Return a number with so many decimals, never -0.00."""
    return GAP if number is None else f"{round(number, digits) + 0.0:,.{digits}f}"


def _half(line: Line) -> str:
    """Return half of a line's interval."""
    return "" if line["low"] is None else f"±{_fixed((line['high'] - line['low']) / 2)}"
