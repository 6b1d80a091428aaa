"""The report's figure: what is in it, and that it is the same every time."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

import matplotlib
from matplotlib.image import imread

from ivgcli import figures
from ivgcli.figures import report_figure

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)


def along(measure: str, kind: str, n: int, unit: str, start: float = 0.5) -> list[dict]:
    """Return the lines of a measure that rises along the response."""
    return [
        {
            **{"measure": measure, "kind": kind, "fraction": fraction, "n": n, "unit": unit},
            **{"value": start + 0.3 * fraction, "low": start, "high": start + 0.4},
        }
        for fraction in FRACTIONS
    ]


BINS = [
    {
        **{"measure": "calibration_bin", "kind": "explicit", "bin": place, "n": 64},
        **{"mean_value": place - 2.0, "mean_return": 0.8 * place - 1.5, "standard_error": 0.2},
        "unit": "prefixes",
    }
    for place in range(5)
]
FIT = [
    {"measure": f"calibration_{name}", "value": value, "low": value - 0.1, "high": value + 0.1}
    for name, value in (("slope", 0.8), ("intercept", -0.25))
]
SHARES = [
    *along("pairwise_accuracy", "explicit", 1200, "pairs"),
    *along("pairwise_accuracy", "implicit", 1200, "pairs"),
    *along("agreement", "both", 1200, "pairs"),
]
RANKS = [
    *along("reward_spearman", "explicit", 2400, "responses", 0.1),
    *along("difference_spearman", "explicit", 1199, "pairs", 0.1),
    *along("difference_spearman", "implicit", 1199, "pairs", 0.1),
]
LOG = [
    *({"stage": "reward_model", "step": step, "loss": 1 / step} for step in range(1, 30)),
    *({"stage": "value", "step": step, "loss": 2 / step} for step in (1, 10, 20)),
    {"stage": "report", "measure": "agreement"},
]


def texts(path: Path) -> list[str]:
    """Return the words of an SVG whose text is text."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def test_the_figure_says_what_is_on_its_axes_and_of_how_many(tmp_path: Path) -> None:
    png, svg = report_figure([*SHARES, *RANKS, *BINS, *FIT], LOG, tmp_path / "report")
    assert (png.name, svg.name) == ("report.png", "report.svg")
    words = texts(svg)
    for expected in (
        "Pairs in order",
        "share of pairs (n = 1,200)",
        "part of the response seen (%)",
        "explicit value",
        "implicit value",
        "the two agree",
        "chance",
        "rank correlation (Spearman)",
        "explicit, 2,400 responses",
        "implicit, 1,199 differences",
        "Calibration of the explicit value",
        "mean value in a bin of prefixes (reward units)",
        "mean return (reward units)",
        "n = 320 prefixes",
        "slope 0.80 (0.70 to 0.90)",
        "intercept −0.25 (−0.35 to −0.15)",
        "Training loss: reward model",
        "Training loss: value",
        "optimiser step",
    ):
        assert expected in words, expected
    # 200 dots per inch of a page's 7.2 inches, and three rows of panels.
    assert imread(png).shape[:2] == (1650, 1440)


def test_no_letter_is_smaller_than_eight_points(tmp_path: Path) -> None:
    _, svg = report_figure([*SHARES, *RANKS, *BINS, *FIT], LOG, tmp_path / "report")
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", svg.read_text())]
    assert sizes
    assert min(sizes) >= 8.0


def test_two_runs_write_the_same_bytes_and_change_no_settings(tmp_path: Path) -> None:
    with matplotlib.rc_context({"font.size": 31.0, "svg.hashsalt": "other"}):
        first = [
            path.read_bytes() for path in report_figure([*SHARES, *BINS], LOG, tmp_path / "one")
        ]
        assert matplotlib.rcParams["font.size"] == 31.0
    second = [path.read_bytes() for path in report_figure([*SHARES, *BINS], LOG, tmp_path / "two")]
    assert first == second
    assert "matplotlib.pyplot" not in sys.modules


def test_panels_without_lines_are_left_out(tmp_path: Path) -> None:
    _, svg = report_figure(SHARES, [], tmp_path / "shares")
    assert "share of pairs (n = 1,200)" in texts(svg)
    assert not [word for word in texts(svg) if "Training" in word or "alibration" in word]
    undefined = [{**line, "value": None, "low": None, "high": None} for line in RANKS]
    assert report_figure(undefined, [], tmp_path / "nothing") == []
    assert report_figure([], [{"stage": "value", "step": 1}], tmp_path / "nothing") == []
    assert not list(tmp_path.glob("nothing*"))


def test_a_point_without_an_interval_and_one_outside_its_interval_are_drawn(tmp_path: Path) -> None:
    odd = [{**line, "low": None, "high": None} for line in RANKS[:5]]
    odd += [{**line, "low": line["value"] + 0.1} for line in RANKS[5:10]]
    _, svg = report_figure(odd, [], tmp_path / "odd.v2")
    assert svg.name == "odd.v2.svg"
    assert "explicit, 2,400 responses" in texts(svg)


def test_where_matplotlib_is_absent_that_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert figures.available()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not figures.available()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError):
        report_figure(SHARES, [], Path("never"))


def test_matplotlib_is_not_imported_with_the_module() -> None:
    import subprocess

    code = "import sys, ivgcli.figures; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
