"""What both training commands measure at their end, and what they draw of it."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ivgcli import console, figures, statistics
from ivgcli.recipes import TrainExplicitRecipe, TrainImplicitRecipe
from ivgcli.records import Pair, Prompt, TrainingFolder
from ivgcli.training import report
from ivgcli.training.answers import Answer, answers_of
from ivgcli.training.reading import explicit_values, implicit_values
from ivgcli.training.runs import best_and_worst
from ivgcli.training.scorer import as_scorer
from ivgcli.training.sequences import Encoder
from ivgcli.training.stages import Setting
from ivgcli.training.start import Start
from tests.models import folder, plain, plain_value, scratch

REWARDS = [3.0, 1.0, 0.0, 2.0, 5.0, 4.0]
PAIRS = [
    Pair(Prompt("a", "the film opens", None), " with a slow shot", " bad"),
    Pair(Prompt("b", "an effective but", None), " too tepid biopic", " fine"),
    Pair(Prompt("c", "a", None), " good film", " film with a bad ending, and"),
]


@pytest.fixture(autouse=True, scope="module")
def resampled_little() -> Iterator[None]:
    """Intervals have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        few = functools.partial(statistics.bootstrap_interval, n=10)
        patch.setattr(statistics, "bootstrap_interval", few)
        yield


def setting_of(guide: Any = None, said: list[str] | None = None, implicit: bool = False) -> Setting:
    """Return the setting of a run over an empty folder, which may know of another guide."""
    raw = {"init": folder("llama"), "engine": {"device": "cpu"}, "guide": guide}
    kind: Any = TrainImplicitRecipe if implicit else TrainExplicitRecipe

    def bar(title: str, total: int, done: int, things: str = "steps") -> console.Progress:
        return console.Progress(total, done=done, quiet=True)

    place = TrainingFolder(scratch("run"), "7c1e0b92", "", False)
    told = said if said is not None else []
    return Setting(kind.model_validate(raw), place, bar, told.append)


def encoder() -> Encoder:
    """Return how the networks of these tests read."""
    return Encoder(Start(setting_of().recipe.init).form)


def answers(rewarded: bool = True) -> list[Answer]:
    """Return the responses of the pairs with their rewards."""
    found = answers_of(PAIRS)
    if not rewarded:
        return found
    return [
        Answer(each.id, each.prompt, each.text, each.ended, reward)
        for each, reward in zip(found, REWARDS, strict=True)
    ]


def measured(lines: Sequence[dict[str, Any]], name: str, kind: str | None = None) -> list[Any]:
    """Return the values of a measure, in the order of their fractions."""
    return [
        line["value"] for line in lines if line["measure"] == name and kind in (None, line["kind"])
    ]


def explicit_lines(name: str, link: str = "identity", guide: Any = None, **given: Any) -> Any:
    """Return the report of a value, read from its folder."""
    head = "token-q" if name == "token-q" else "scalar"
    model = plain_value(name)
    drawn = given.get("rollouts", [])
    own = given.get("answers", answers())
    return report.explicit_lines(setting_of(guide), model, head, link, encoder(), own, drawn)


# ------------------------------------------------------------------------------ recorded rewards


@pytest.mark.parametrize(
    "fields",
    [
        ("chosen_reward", "rejected_reward"),
        ("score_chosen", "score_rejected"),
        ("chosen_rating", "rejected_rating"),
    ],
)
def test_rewards_that_records_carry_are_found(fields: tuple[str, str]) -> None:
    """Ours, UltraFeedback's and ratings; of a text, of true and of nothing, there is none."""
    extras: list[dict[str, Any]] = [
        dict(zip(fields, pair, strict=True)) for pair in ((2, -0.5), ("9", True), (None, 1.0))
    ]
    pairs = [Pair(Prompt(str(n), "a", None, extra), "x", "y") for n, extra in enumerate(extras)]
    pairs.append(Pair(Prompt("9", "a", None, {fields[0]: 4.0}), "x", "y"))
    found = report.recorded_rewards(pairs)
    assert found == [2.0, -0.5, None, None, None, 1.0, None, None]


def test_chosen_and_rejected_alternate() -> None:
    own = report.paired([[1.0], [2.0], [3.0], [4.0]], [10.0, 20.0, 30.0, None])
    assert [(each.values, each.reward) for each in own.chosen] == [([1.0], 10.0), ([3.0], 30.0)]
    assert [(each.values, each.reward) for each in own.rejected] == [([2.0], 20.0), ([4.0], None)]


def test_the_best_and_the_worst_of_a_prompt_make_a_pair() -> None:
    """Ties of all make none."""
    drawn = [
        Answer(f"{name}/{n}", Prompt(name, name, None), "", True, reward)
        for name, rewards in (("a", (1.0, 3.0, -2.0)), ("b", (1.0, 1.0)), ("c", (0.0, 5.0)))
        for n, reward in enumerate(rewards)
    ]
    assert [each.id for each in best_and_worst(drawn)] == ["a/1", "a/2", "c/1", "c/0"]


# -------------------------------------------------------------------------------- explicit values


def test_an_explicit_report_is_of_the_values_that_the_network_has() -> None:
    """Accuracy at the end, δ = r − V_n, and the correlation, worked out from the values."""
    lines = explicit_lines("scalar")
    model = as_scorer(folder("scalar"), "scalar", 1).model
    examples = [encoder().encode(each.prompt, each.text) for each in answers()]
    ends = torch.tensor([float(v[-1]) for v in explicit_values(model, "scalar", examples, 1)])
    right = (ends[::2] > ends[1::2]).float().mean()
    # Float32 values in batches of six against one by one.
    assert measured(lines, "pairwise_accuracy")[-1] == pytest.approx(float(right))
    residuals = torch.tensor(REWARDS) - ends
    assert measured(lines, "td_end_mean") == [pytest.approx(float(residuals.mean()), abs=1e-5)]
    both = torch.stack([ends, torch.tensor(REWARDS)])
    expected = float(torch.corrcoef(both)[0, 1])
    assert measured(lines, "reward_pearson")[-1] == pytest.approx(expected, abs=1e-5)
    assert {line["n"] for line in lines if line["measure"] == "pairwise_accuracy"} == {3}


def test_rollouts_are_what_it_is_calibrated_on() -> None:
    drawn = [
        Answer(f"r{n}", PAIRS[0].prompt, text, n > 0, float(n))
        for n, text in enumerate((" with", " a slow", " shot of", " the sea"))
    ]
    lines = explicit_lines("scalar", rollouts=drawn)
    [error] = [line for line in lines if line["measure"] == "calibration_error"]
    [end] = [line for line in lines if line["measure"] == "td_end_mean"]
    assert (error["n"], end["n"]) == (5 * len(drawn), len(drawn))
    # Nothing is compared where there are no pairs.
    alone = explicit_lines("scalar", rollouts=drawn, answers=[])
    assert {line["measure"] for line in alone} == {
        "td_step_mean", "td_step_rms", "td_end_mean", "td_end_rms", "calibration_bin",
        "calibration_slope", "calibration_intercept", "calibration_error",
    }  # fmt: skip
    assert [each for each in lines if each in alone] == alone
    assert explicit_lines("scalar", answers=[]) == []


def test_every_response_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs are ranked and calibrated by one reading; rollouts are read beside them."""
    read: list[str] = []

    def counted(model: Any, head: Any, examples: Any, *rest: Any) -> Any:
        read.extend(each.id for each in examples)
        return explicit_values(model, head, examples, *rest)

    monkeypatch.setattr(report, "explicit_values", counted)
    explicit_lines("scalar")
    assert read == [each.id for each in answers()]
    read.clear()
    drawn = [Answer(f"r{n}", PAIRS[0].prompt, " a slow", True, float(n)) for n in range(2)]
    explicit_lines("scalar", rollouts=drawn)
    assert read == [each.id for each in (*answers(), *drawn)]


def test_the_step_from_an_empty_response_is_no_residual_of_a_token_q_head() -> None:
    """Its value is 0 by definition: a response of n tokens has n − 1 steps, and of a scalar head n."""
    sizes = [len(encoder().encode(each.prompt, each.text).response_ids) for each in answers()]
    for name, first in (("scalar", 0), ("token-q", 1)):
        [step] = [line for line in explicit_lines(name) if line["measure"] == "td_step_mean"]
        assert step["n"] == sum(sizes) - first * len(sizes)


def test_log_probabilities_are_not_set_against_rewards() -> None:
    """fudge-bce predicts log P(good): what orders responses is measured, and nothing that subtracts."""
    plainly, linked = explicit_lines("scalar"), explicit_lines("scalar", "log-sigmoid")
    assert {line["measure"] for line in plainly} - {line["measure"] for line in linked} == {
        "td_step_mean", "td_step_rms", "td_end_mean", "td_end_rms", "calibration_bin",
        "calibration_slope", "calibration_intercept", "calibration_error",
    }  # fmt: skip
    # The link is increasing, and so changes no order.
    for name in ("pairwise_accuracy", "reward_spearman"):
        assert measured(plainly, name) == measured(linked, name)
    assert measured(plainly, "reward_pearson") != measured(linked, "reward_pearson")


# ------------------------------------------------------------------------------------- both kinds


def pair_of_models() -> dict[str, Any]:
    """Return an implicit guide."""
    return {"implicit": {"tuned": folder("llama-tuned"), "reference": folder("llama-reference")}}


def implicit_lines(guide: Any, said: list[str] | None = None, beta: float = 0.2) -> Any:
    """Return the report of an implicit value."""
    models = (plain("llama-tuned"), plain("llama-reference"))
    setting = setting_of(guide, said, implicit=True)
    return report.implicit_lines(setting, models, encoder(), answers(False), REWARDS, beta)


def test_an_implicit_report_has_dpo_s_margin() -> None:
    lines = implicit_lines(None)
    models = (plain("llama-tuned"), plain("llama-reference"))
    examples = [encoder().encode(each.prompt, each.text) for each in answers()]
    ends = [float(values[-1]) for values in implicit_values(*models, examples, 1)]
    gaps = [0.2 * (one - two) for one, two in zip(ends[::2], ends[1::2], strict=True)]
    assert measured(lines, "reward_margin") == [pytest.approx(sum(gaps) / 3, rel=1e-4)]
    assert measured(lines, "agreement") == []


def test_both_commands_compare_the_same_two_values_alike() -> None:
    """The explicit value of one is the other guide of the other: the same lines of agreement."""
    for name in ("scalar", "token-q"):
        explicit = {"explicit": folder(name)}
        ours = explicit_lines(name, guide=pair_of_models())
        theirs = implicit_lines(explicit)
        assert len(measured(ours, "agreement")) == 5
        assert measured(ours, "agreement") == measured(theirs, "agreement")
        for kind in ("implicit", "explicit"):
            accuracy = measured(ours, "pairwise_accuracy", kind)
            assert accuracy == measured(theirs, "pairwise_accuracy", kind)
            assert len(accuracy) == 5


def test_another_tokenizer_reads_the_same_responses() -> None:
    """A guide of another family is compared by shares of its own tokens."""
    lines = implicit_lines({"explicit": folder("scalar-other")})
    assert len(measured(lines, "agreement")) == 5


def test_what_cannot_be_compared_is_left_out_and_told() -> None:
    said: list[str] = []
    two = [folder("scalar"), folder("token-q")]
    assert measured(implicit_lines({"explicit": two}, said), "agreement") == []
    assert said == ["the other guide has several values of a kind: they are not compared"]
    prompts = {"tuned_prompt": "be kind", "reference_prompt": "be rude"}
    prompted = {"implicit": {"model": folder("llama-chat"), **prompts}}
    for guide in (prompted, {"explicit": "tests.toys:vowels"}):
        assert measured(explicit_lines("scalar", guide=guide), "agreement") == []
        assert measured(implicit_lines(guide), "agreement") == []


def test_a_guide_without_a_head_of_its_own_is_not_compared_by_zeros() -> None:
    """An adapter's head lies beside its base, and a language model has none."""
    adapted = scratch("adapter")
    config = {"base_model_name_or_path": folder("scalar"), "peft_type": "LORA"}
    (adapted / "adapter_config.json").write_text(json.dumps(config))
    for name in (str(adapted), folder("llama-tuned")):
        said: list[str] = []
        assert measured(implicit_lines({"explicit": name}, said), "agreement") == []
        assert said == [f"{name} is no whole classifier: it is not compared"]


# ----------------------------------------------------------------------------------------- figures


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
def test_the_report_is_drawn_beside_the_guide() -> None:
    setting = setting_of()
    setting.folder.log("value", {"step": 1, "loss": 0.5})
    setting.folder.log("value", {"step": 2, "loss": 0.25})
    paths = report.draw_figure(setting, explicit_lines("scalar"))
    assert sorted(path.name for path in paths) == ["report.png", "report.svg"]
    assert all(path.parent == setting.folder.path for path in paths)
    assert paths[0].read_bytes()[:4] in (b"\x89PNG", b"<?xm")
    assert "value" in Path(next(path for path in paths if path.suffix == ".svg")).read_text()


def test_without_matplotlib_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    setting = setting_of(said=said)
    monkeypatch.setattr(figures, "available", lambda: False)
    assert report.draw_figure(setting, explicit_lines("scalar")) == []
    assert said == ["no figure: pip install 'ivgcli[plots]'"]
    assert not [*setting.folder.path.glob("report.*")]
