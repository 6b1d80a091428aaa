"""The stages of `ivg train-explicit`, called directly: the reward model, the value, and who reads them."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ivgcli import console
from ivgcli.errors import IvgError, ModelError, RecipeError
from ivgcli.models.loading import Networks
from ivgcli.recipes import RewardSpec, TrainExplicitRecipe
from ivgcli.records import Pair, Prompt, TrainingFolder
from ivgcli.training.answers import Answer, answers_of, encode, rewarded
from ivgcli.training.explicit import REWARD_MODEL, VALUE, Explicit
from ivgcli.training.reading import explicit_values
from ivgcli.training.selection import encode_pairs
from ivgcli.training.sequences import Encoder
from ivgcli.training.stages import Setting
from ivgcli.training.start import Start
from tests.models import decode, folder, recipe, scratch

GOOD = [" tender", " fine", " a tender film", " slow and tender"]
BAD = [" bad", " tepid", " a bad film", " tepid and bad"]
MIXED = [
    Answer("a", Prompt("a", "film 1 is", None), " tender"),
    Answer("b", Prompt("b", "an effective but", None), " tepid biopic, the acting is", False),
    Answer("c", Prompt("c", "a", None), " bad ending, and that is all there is to it"),
    Answer("d", Prompt("d", "the film", None), "", True),
]
"""Uneven lengths, one that did not end by itself, one that is EOS alone."""


@pytest.fixture(autouse=True, scope="module")
def unhurried() -> Iterator[None]:
    """Keep what libraries hold out of the collections that accelerate runs after each stage."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def stages_of(said: list[str] | None = None, **sections: Any) -> Explicit:
    """Return the stages of a run over an empty folder."""
    raw: dict[str, Any] = {
        "init": {"model": folder("llama-tuned")},
        "data": {"max_length": 64},
        "reward_model": {"learning_rate": 5e-3, "batch_size": 8, "max_steps": 12},
        "value": {"learning_rate": 1e-3, "batch_size": 4, "max_steps": 2},
        "train": {"save_steps": 10_000, "logging_steps": 1},
        "engine": {"device": "cpu"},
    }
    for name, section in sections.items():
        both = isinstance(section, dict) and isinstance(raw.get(name), dict)
        raw[name] = {**raw[name], **section} if both else section

    def bar(title: str, total: int, done: int, things: str = "steps") -> console.Progress:
        return console.Progress(total, done=done, quiet=True)

    run = TrainingFolder(scratch("run"), "7c1e0b92", "", False)
    spec = TrainExplicitRecipe.model_validate(raw)
    setting = Setting(spec, run, bar, (said if said is not None else []).append)
    return Explicit(setting, Start(spec.init))


def pairs(begin: int, end: int) -> list[Pair]:
    """Return pairs of films by number, in which what is tender beats what is not."""
    return [
        Pair(Prompt(f"p{n}", f"film {n} is", None), GOOD[n % 4], BAD[n // 2 % 4])
        for n in range(begin, end)
    ]


def trained(said: list[str] | None = None, **sections: Any) -> Explicit:
    """Train a reward model on sixteen pairs."""
    stages = stages_of(said, **sections)
    stages.train_reward_model(encode_pairs(pairs(0, 16), stages.encoder, 64, False).pairs)
    return stages


def rewards(answers: Sequence[Answer]) -> list[float]:
    """Return the rewards of rewarded answers."""
    return [float(each.reward or 0.0) for each in answers]


def place(stages: Explicit, name: str = REWARD_MODEL) -> str:
    """Return the folder of a model."""
    return str(stages.setting.folder.path / name)


@pytest.fixture(scope="module")
def stages() -> Explicit:
    """A run with a reward model, and a value that was learnt from its rewards."""
    found = trained()
    found.train_value(found.reward(answers_of(pairs(0, 4))), [])
    return found


# ------------------------------------------------------------------------------ the reward model


def test_a_reward_model_tells_what_it_has_not_seen(stages: Explicit) -> None:
    """The pairs are separable by one word, so that held-out films are, too."""
    judged = rewards(stages.reward(answers_of(pairs(20, 30))))
    assert all(good > bad for good, bad in zip(judged[::2], judged[1::2], strict=True))


def test_its_first_loss_is_ln_2(stages: Explicit) -> None:
    """The head begins at 0, so −log σ(0 − 0), whatever the pairs."""
    line = next(each for each in stages.setting.folder.lines() if each["stage"] == "reward_model")
    assert (line["step"], line["loss"]) == (1, pytest.approx(0.693147, abs=1e-6))


@pytest.mark.parametrize("name", [REWARD_MODEL, VALUE])
def test_a_model_is_an_ordinary_classifier_of_whole_responses(stages: Explicit, name: str) -> None:
    """transformers reads it at the last token that is not padding, which is EOS where there is one."""
    model = AutoModelForSequenceClassification.from_pretrained(place(stages, name)).eval()
    tokenizer = AutoTokenizer.from_pretrained(place(stages, name))
    assert (model.config.num_labels, model.config.ivg) == (1, {"ends_with_eos": True})
    texts = [f"{each.prompt.text}{each.text}{tokenizer.eos_token * each.ended}" for each in MIXED]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = model(**batch).logits[:, 0].tolist()
    read = explicit_values(stages.load(name), "scalar", encode(MIXED, stages.encoder), 4)
    assert [float(values[-1]) for values in read] == pytest.approx(pooled, abs=1e-5)
    if name == REWARD_MODEL:
        assert rewards(stages.reward(MIXED)) == pytest.approx(pooled, abs=1e-5)


@pytest.mark.parametrize("name", [REWARD_MODEL, VALUE])
def test_a_model_is_a_reward_of_other_commands(stages: Explicit, name: str) -> None:
    """`--reward FOLDER` puts EOS after what ended, and after nothing else; plain prompts, too."""
    spec = RewardSpec.model_validate(place(stages, name))
    found = rewarded(MIXED, spec, Networks("cpu"), lambda count: None)
    read = explicit_values(stages.load(name), "scalar", encode(MIXED, stages.encoder), 4)
    assert rewards(found) == pytest.approx([float(values[-1]) for values in read], abs=1e-5)
    # What it would be without its end is another number.
    cut = [Answer(each.id, each.prompt, each.text, not each.ended) for each in MIXED]
    other = rewards(rewarded(cut, spec, Networks("cpu"), lambda count: None))
    assert all(abs(a - b) > 1e-4 for a, b in zip(rewards(found), other, strict=True))


@pytest.mark.parametrize("by_text", [False, True])
def test_best_of_n_ranks_by_the_same_numbers(stages: Explicit, by_text: bool) -> None:
    """Read token by token or as text: each response's value is its reward."""
    guide = {"explicit": {"model": place(stages), "by_text": by_text}}
    chunk = {"beam_width": 1, "successors": 1, "chunk_length": 64}
    sampling = {"max_new_tokens": 4, "samples": 8}
    run = decode(recipe("llama", "cbs-e", guide=guide, chunk=chunk, sampling=sampling))
    drawn = [each for each in run.outcomes.values() if "\ufffd" not in each.text]
    assert {each.winner.row.finish for each in drawn} == {"eos", "length"}
    answers = [
        Answer("r", Prompt("p", each.request.prompt.text, None), each.text, each.winner.row.finish == "eos")
        for each in drawn
    ]  # fmt: skip
    values = [each.winner.value for each in drawn]
    own = [
        index
        for index, example in enumerate(encode(answers, stages.encoder))
        if by_text or example.response_ids == drawn[index].winner.row.tokens
    ]
    assert len(own) > len(drawn) / 2, "most of what is drawn is tokenised as it was drawn"
    judged = rewards(stages.reward(answers))
    assert [values[n] for n in own] == pytest.approx([judged[n] for n in own], abs=1e-4)


def test_chat_models_are_closed_once() -> None:
    """The chat template of a reward model closes its turn by EOS already."""
    stages = trained(init={"model": folder("llama-chat")}, reward_model={"max_steps": 1})
    talk = ({"role": "user", "content": "a film?"},)
    answers = [Answer("a", Prompt("a", None, talk), " tender"), *MIXED]
    spec = RewardSpec.model_validate(place(stages))
    found = rewarded(answers, spec, Networks("cpu"), lambda count: None)
    assert rewards(found) == pytest.approx(rewards(stages.reward(answers)), abs=1e-5)


# --------------------------------------------------------------------------------- where it starts


def weights(stages: Explicit, name: str) -> dict[str, torch.Tensor]:
    """Return the weights of a model."""
    return dict(load_file(Path(place(stages, name)) / "model.safetensors"))


@pytest.mark.parametrize("start", ["auto", "reward-model", "init"])
def test_a_value_begins_from_the_reward_model_or_from_the_start(start: str) -> None:
    """After one step of a vanishing learning rate, it still is what it began from."""
    stages = trained(
        value={"start": start, "learning_rate": 1e-12, "max_steps": 1},
        reward_model={"max_steps": 1},
    )
    stages.train_value(stages.reward(answers_of(pairs(0, 4))), [])
    ours, theirs = weights(stages, VALUE), weights(stages, REWARD_MODEL)
    if start == "init":
        source = dict(load_file(Path(folder("llama-tuned")) / "model.safetensors"))
        theirs = {name: source.get(name, torch.zeros_like(ours[name])) for name in ours}
    assert ours.keys() == theirs.keys()
    # AdamW's step is the learning rate, so 1e-12 of numbers of size 1, which float32 rounds away.
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-9


def test_a_token_q_head_over_a_reward_model_s_body_begins_at_0() -> None:
    stages = trained(
        value={"head": "token-q", "learning_rate": 1e-12, "max_steps": 1},
        reward_model={"max_steps": 1},
    )
    stages.train_value(stages.reward(answers_of(pairs(0, 4))), [])
    ours, theirs = weights(stages, VALUE), weights(stages, REWARD_MODEL)
    assert ours["score.weight"].shape[0] == stages.vocabulary
    assert float(ours.pop("score.weight").abs().max()) < 1e-9
    del theirs["score.weight"]
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-9


@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("head", ["scalar", "token-q"])
def test_adapters_are_merged_and_layers_left_out(layers: int | None, head: str) -> None:
    """Reward model and value are folders without an adapter, with as many layers as were asked for."""
    stages = trained(
        lora={"rank": 2},
        init={"model": folder("llama-tuned"), "layers": layers},
        reward_model={"max_steps": 2},
        value={"head": head},
    )
    stages.train_value(stages.reward(answers_of(pairs(0, 4))), [])
    for name, width in ((REWARD_MODEL, 1), (VALUE, 1 if head == "scalar" else stages.vocabulary)):
        assert not (Path(place(stages, name)) / "adapter_config.json").exists()
        model, report = AutoModelForSequenceClassification.from_pretrained(
            place(stages, name), output_loading_info=True
        )
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert model.config.num_hidden_layers == (layers or 2)
        assert model.score.weight.shape[0] == width
        assert float(model.score.weight.detach().abs().max()) > 1e-5, "the head has been trained"
    source = dict(load_file(Path(folder("llama-tuned")) / "model.safetensors"))
    name = "model.layers.0.self_attn.q_proj.weight"
    change = weights(stages, REWARD_MODEL)[name] - source[name]
    # Merged: the change of a weight is the product of two matrices of rank 2.
    singular = torch.linalg.svdvals(change.double())
    assert float(singular[1]) > 1e-7
    assert float(singular[2]) < 1e-5 * float(singular[0]) + 1e-6


def test_an_adapter_to_start_from_is_merged_first(tmp_path: Path) -> None:
    """An adapter's base alone is not what was named."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder("llama-tuned"))
    adapted = get_peft_model(
        base, LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload().state_dict()
    stages = trained(
        init={"model": str(tmp_path / "adapter")},
        reward_model={"learning_rate": 1e-12, "max_steps": 1},
    )
    ours = weights(stages, REWARD_MODEL)
    name = "model.layers.1.self_attn.q_proj.weight"
    torch.testing.assert_close(ours[name], merged[name], atol=1e-9, rtol=0)


# ------------------------------------------------------------------------------- what it refuses


def test_overlong_responses_are_left_out_and_counted() -> None:
    said: list[str] = []
    stages = stages_of(said, reward="tests.toys:vowels", data={"max_length": 12})
    prompt = Prompt("p", "film 1 is", None)
    short, long = (
        Answer("a", prompt, " bad", reward=1.0),
        Answer("b", prompt, " bad" * 30, reward=2.0),
    )
    stages.train_value([short, long, long], [])
    assert said == ["2 responses left out (beyond 12 tokens)"]
    with pytest.raises(ModelError) as raised:
        stages_of(reward="tests.toys:vowels", data={"max_length": 12}).train_value([long], [])
    assert str(raised.value) == (
        "data.max_length: no response ends within 12 tokens → raise it, or start from a network"
        " with more positions"
    )


def test_responses_beyond_a_network_s_positions_are_left_out() -> None:
    """Found as an IndexError: GPT-2's table of positions has an end, here at 96."""
    said: list[str] = []
    gpt2 = {"model": folder("gpt2")}
    stages = trained(said=said, init=gpt2, data={"max_length": 1024}, reward_model={"max_steps": 1})
    prompt = Prompt("p", "film 1 is", None)
    answers = [Answer("a", prompt, " bad"), Answer("b", prompt, " bad film" * 80)]
    judged = stages.reward(answers)
    assert judged[0].reward == pytest.approx(rewards(stages.reward(answers[:1]))[0], abs=1e-6)
    stages.train_value(judged, [])
    assert said == ["1 responses left out (beyond 96 tokens)"]


def rolled(**sections: Any) -> dict[str, Any]:
    """Return the sections of a run that draws, `sections` over them."""
    drawing = {
        "base": folder("llama"),
        "sampling": {"max_new_tokens": 4},
        **sections.pop("rollouts", {}),
    }
    value = {"responses": "guided", "rounds": 2, **sections.pop("value", {})}
    return {"reward": "tests.toys:vowels", "rollouts": drawing, "value": value, **sections}


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"value": {"trl": {"lerning_rate": 1}}, "reward": None},
            'value.trl: TrainingArguments has no argument "lerning_rate"'),
        ({"reward_model": {"trl": {"bta": 1}}, "reward": None},
            'reward_model.trl: RewardConfig has no argument "bta"'),
        ({"reward": "tests.toys:nothing"},
            "tests.toys:nothing: the module has no function nothing → check the name"),
        ({"reward": {"model": "nowhere/at-all"}},
            "nowhere/at-all: not a local folder, and the hub could not provide it"),
        ({"reward": {"model": "FOLDER/two-labels"}},
            "reward.label names none → --reward-label LABEL_1"),
        ({"reward": {"model": "FOLDER/two-labels", "label": "good"}},
            'no label "good" → known: LABEL_0, LABEL_1; or 0 to 1'),
        ({"rollouts": {"base": "nowhere/at-all"}},
            "nowhere/at-all: not a local folder, and the hub could not provide it"),
        ({"guide": {"implicit": {"tuned": "nowhere/at-all", "reference": "FOLDER/llama"}}},
            "nowhere/at-all: not a local folder, and the hub could not provide it"),
        ({"rollouts": {"base": "FOLDER/llama-other"}, "value": {"target": "cd-q"}},
            "; cd-q needs one vocabulary → start from a model of the base's family, or another target"),
        ({"rollouts": {"base": "FOLDER/llama-other"}, "value": {"head": "token-q"}},
            "; guidance by a token-q head needs one vocabulary → start from a model of the base's"
            " family, or value.head: scalar"),
    ],
)  # fmt: skip
def test_what_cannot_come_to_an_end_is_told_before_it_begins(
    sections: dict[str, Any], told: str
) -> None:
    """Each of these would have failed only after a reward model, rollouts or a round."""
    text = json.dumps(rolled(**sections))
    for name in ("two-labels", "llama-other", "llama"):
        text = text.replace(f"FOLDER/{name}", folder(name))
    with pytest.raises(IvgError) as raised:
        stages_of(**json.loads(text))
    assert told in str(raised.value)
    assert isinstance(raised.value, RecipeError if "trl" in told else ModelError)


def test_another_vocabulary_may_draw_for_a_scalar_head_that_reads_text() -> None:
    stages = stages_of(**rolled(rollouts={"base": folder("llama-other")}))
    stages.train_value([], [Prompt("p", "the film", None)])
    assert stages.setting.folder.has(VALUE)


def test_a_merge_over_the_border_of_prompt_and_response_reads_the_prompt_s_own_tokens() -> None:
    """`reward` keeps the ids that decoding starts from; the sum of both texts may have others."""
    stages = trained(reward_model={"max_steps": 1})
    answer = Answer("a", Prompt("a", "the fi", None), "lm", True)
    [example] = encode([answer], Encoder(stages.start.form))
    assert example.prompt_ids == stages.start.tokenizer("the fi")["input_ids"]
    [values] = explicit_values(stages.load(REWARD_MODEL), "scalar", [example], 1)
    assert rewards(stages.reward([answer])) == pytest.approx([float(values[-1])], abs=1e-6)
