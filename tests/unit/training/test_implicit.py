"""The two stages of `ivg train-implicit`, called directly: TRL's losses, and what they stand on."""

from __future__ import annotations

import gc
import inspect
import json
import math
import re
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from trl import DPOTrainer

from ivgcli import console
from ivgcli.errors import ModelError
from ivgcli.recipes import TrainImplicitRecipe
from ivgcli.recipes.training import SMOOTHED, PreferenceLoss
from ivgcli.records import Pair, Prompt, TrainingFolder
from ivgcli.training.implicit import (
    ReferenceCheck,
    optimise_preference,
    supervised_rows,
    train_pair,
)
from ivgcli.training.selection import EncodedPair, encode_pairs
from ivgcli.training.sequences import Encoder, Example
from ivgcli.training.stages import Setting
from ivgcli.training.start import Start
from tests.models import folder, plain, scratch

BETA, SMOOTHING = 0.1, 0.25
LN2 = math.log(2)
PAIRS = [
    ("film 1 is", " tender", " bad"),
    ("the film", " opens with a slow shot", " is fine"),
    ("an effective but", " tender film", " tepid biopic, the acting is fine"),
    ("a", " good film", " b"),
]

AT_ZERO: dict[str, float] = {
    # −log σ(β·0), and what is made of it where a share ε of the labels is taken to be wrong.
    "dpo": LN2,
    "sigmoid": LN2,
    "sigmoid_norm": LN2,
    "robust": LN2,
    "aot": LN2,
    "aot_unpaired": LN2,
    # max(0, 1 − 0)
    "hinge": 1.0,
    # (0 − 1/2β)²
    "ipo": (1 / (2 * BETA)) ** 2,
    # KL((½, ½) ‖ (1 − ε, ε))
    "exo_pair": 0.5 * math.log(0.5 / (1 - SMOOTHING)) + 0.5 * math.log(0.5 / SMOOTHING),
    # −log σ(0) − ½ log σ(0) − ½ log σ(0), and −log σ(0) − log σ(0)
    "nca_pair": 2 * LN2,
    "bco_pair": 2 * LN2,
    # (0 − 1/2β)² + (0 + 1/2β)²
    "sppo_hard": 2 * (1 / (2 * BETA)) ** 2,
    # (1 − σ(0)) + σ(0), and σ(0) + (1 − σ(0))
    "apo_zero": 1.0,
    "apo_down": 1.0,
    # (1 − σ(0)) · −log σ(0) + σ(0) · exp(−0)
    "discopop": 0.5 * LN2 + 0.5,
}
"""Each loss where tuned and reference are one: all log-ratios are 0. `sft` is not of them."""


@pytest.fixture(autouse=True, scope="module")
def unhurried() -> Iterator[None]:
    """Train tiny networks by one thread, and collect nothing of what libraries hold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    torch.set_num_threads(threads)
    gc.unfreeze()


def setting_of(model: str, **sections: Any) -> tuple[Setting, Start]:
    """Return a run's setting over an empty folder, and its start."""
    recipe = TrainImplicitRecipe.model_validate(
        {
            "init": {"model": folder(model)},
            "sft": None,
            "engine": {"device": "cpu"},
            "train": {"save_steps": 10_000, "logging_steps": 1},
            **sections,
        }
    )
    place = TrainingFolder(scratch("run"), "7c1e0b92", "", False)
    bar = lambda title, total, done: console.Progress(total, done=done, quiet=True)  # noqa: E731
    return Setting(recipe, place, bar), Start(recipe.init)


def encoded(start: Start, texts: Sequence[tuple[str, str, str]] = PAIRS) -> list[EncodedPair]:
    """Return pairs in tokens."""
    pairs = [
        Pair(Prompt(str(n), one, None), two, three) for n, (one, two, three) in enumerate(texts)
    ]
    return encode_pairs(pairs, Encoder(start.form), 64, True).pairs


def log_probability(model: Any, example: Example) -> float:
    """Return log π(response | prompt), one token after another."""
    total, ids = 0.0, list(example.prompt_ids)
    for token in example.response_ids:
        with torch.no_grad():
            total += float(model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token])
        ids.append(token)
    return total


def first_line(setting: Setting) -> dict[str, Any]:
    """Return the first line of the metrics."""
    return next(line for line in setting.folder.lines() if line["stage"] == "preference")


@pytest.mark.parametrize("name", get_args(PreferenceLoss))
def test_every_loss_of_trl_has_its_value_at_the_reference(name: str) -> None:
    """One step each: the loss of the first is what the paper's formula says of equal models."""
    smoothing = SMOOTHING if name in SMOOTHED else 0.0
    preference = {"loss": name, "beta": BETA, "label_smoothing": smoothing, "max_steps": 1}
    setting, start = setting_of("llama", preference=preference)
    pairs = encoded(start)
    optimise_preference(setting, start, pairs)
    if name == "sft":
        chosen = [pair.chosen for pair in pairs]
        total = sum(log_probability(plain("llama"), each) for each in chosen)
        expected = -total / sum(len(each.response_ids) for each in chosen)
    else:
        expected = AT_ZERO[name]
    # Means over a batch of float32 numbers.
    assert first_line(setting)["loss"] == pytest.approx(expected, rel=1e-5)
    assert setting.folder.has("tuned")


def test_the_recipes_losses_are_trls() -> None:
    source = inspect.getsource(DPOTrainer)
    theirs = set(re.findall(r'loss_type == "(\w+)"', source))
    assert theirs == set(get_args(PreferenceLoss)) - {"dpo"}
    assert theirs | {"dpo"} == {*AT_ZERO, "sft"}


def test_a_mix_is_the_weighted_sum() -> None:
    preference = {
        "loss": ["dpo", "bco_pair", "hinge"],
        "loss_weights": [0.8, 0.2, -1.0],
        "max_steps": 1,
    }
    setting, start = setting_of("llama", preference=preference)
    optimise_preference(setting, start, encoded(start))
    expected = 0.8 * LN2 + 0.2 * 2 * LN2 - 1.0
    assert first_line(setting)["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("model", ["llama", "gpt2", "llama-metaspace"])
def test_trl_is_given_the_sequences_that_decoding_reads(model: str) -> None:
    """The mean log-probabilities that TRL logs are those of our ids, token by token.

    Batched and padded passes sum float32 in another order: 1e-3 of some −60.
    """
    setting, start = setting_of(model, preference={"max_steps": 1})
    pairs = encoded(start)
    optimise_preference(setting, start, pairs)
    line = first_line(setting)
    for side in ("chosen", "rejected"):
        ours = [log_probability(plain(model), getattr(pair, side)) for pair in pairs]
        assert line[f"logps/{side}"] == pytest.approx(sum(ours) / len(ours), abs=1e-3)


def test_fine_tuning_reads_every_response_once() -> None:
    """TRL's first loss is the mean over the tokens of distinct responses, the prompt's left out."""
    sft = {"max_steps": 1, "learning_rate": 1e-9}
    setting, start = setting_of("llama", sft=sft, preference={"max_steps": 1})
    pairs = encoded(start, [*PAIRS, (PAIRS[0][0], PAIRS[0][1], " dull"), PAIRS[2]])
    rows = supervised_rows(pairs, both=True)
    assert len(rows) == 9
    assert len(supervised_rows(pairs, both=False)) == 4
    first = rows[0]
    assert first["input_ids"] == pairs[0].chosen.ids
    assert sum(first["completion_mask"]) == len(pairs[0].chosen.response_ids)
    assert first["completion_mask"][: len(pairs[0].chosen.prompt_ids)] == [0] * len(
        pairs[0].chosen.prompt_ids
    )
    train_pair(setting, start, pairs)
    responses = {tuple(each.ids): each for pair in pairs for each in (pair.chosen, pair.rejected)}
    total = sum(log_probability(plain("llama"), each) for each in responses.values())
    expected = -total / sum(len(each.response_ids) for each in responses.values())
    line = next(line for line in setting.folder.lines() if line["stage"] == "sft")
    assert line["loss"] == pytest.approx(expected, rel=1e-5)


def test_dropout_is_off_where_policies_are_compared() -> None:
    """GPT-2 drops a tenth unless told otherwise, and equal networks would then differ."""
    setting, start = setting_of("gpt2", preference={"max_steps": 1})
    start.config.resid_pdrop = start.config.attn_pdrop = start.config.embd_pdrop = 0.5
    optimise_preference(setting, start, encoded(start))
    line = first_line(setting)
    assert (line["loss"], line["rewards/chosen"]) == (pytest.approx(LN2, abs=1e-6), 0.0)


def told(loss: float, reward: float = 0.0, **rest: Any) -> None:
    """Let the check see a first step."""
    arguments = {"disable_dropout": True, "loss_type": ["sigmoid"], "loss_weights": None}
    given = SimpleNamespace(**{**arguments, "use_weighting": False, **rest.pop("args", {})})
    logs = {"loss": loss, "rewards/chosen": reward, "rewards/rejected": 0.0, **rest}
    ReferenceCheck(1e-4).on_log(given, SimpleNamespace(global_step=1), None, logs)


def test_the_check_knows_when_ln_2_is_due() -> None:
    told(LN2)
    for args in ({"loss_type": ["hinge"]}, {"loss_weights": [0.5]}, {"use_weighting": True}):
        told(1.0, args=args)
    told(1.0, aux_loss=0.3)  # a mixture of experts adds its own
    told(1.0, reward=0.5, args={"disable_dropout": False})
    with pytest.raises(ModelError, match=r"loss is 1\.000000 where ln 2 is due"):
        told(1.0)
    with pytest.raises(ModelError, match=r"its rewards 0\.5 and 0 where 0 is"):
        told(LN2, reward=0.5)
    with pytest.raises(ModelError, match="the reference is not the model"):
        told(1.0, reward=-0.5, args={"loss_type": ["hinge"]})
    ReferenceCheck(1e-4).on_log(None, SimpleNamespace(global_step=2), None, {"loss": 1.0})


def test_what_was_finished_is_not_trained_again() -> None:
    """A run that goes on tells of both stages, and the models of the first are left alone."""
    sections = {"sft": {"max_steps": 1}, "preference": {"max_steps": 1}}
    setting, start = setting_of("llama", **sections)
    pairs = encoded(start)
    first = train_pair(setting, start, pairs)
    assert {name: each["steps"] for name, each in first.items()} == {"sft": 1, "preference": 1}
    place = setting.folder.path
    before = {each: each.stat().st_mtime_ns for each in place.glob("*/model.safetensors")}
    assert train_pair(setting, start, pairs) == first
    assert {each: each.stat().st_mtime_ns for each in before} == before
    assert json.loads((place / "run.json").read_text())["stages"] == first
